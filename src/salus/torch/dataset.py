"""Map-style datasets over a view: whole episodes, and windows of steps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from ..episode import Episode
from ..errors import InvalidInputError
from ..gather import Empty
from ..view import DatasetView
from ..windows import WindowIndex, parse_offsets
from .batch import Batch, Rows, Sample, SharedMemory, in_worker

Transform: TypeAlias = Callable[[Sample], Sample]


class WindowDataset(TorchDataset[Sample]):
    """Samples around single steps, for policies and predictors.

    `WindowDataset(train, {"images": [-1, 0], "actions": range(-1, 15)})` gives, for every step of every episode, two
    images and 16 actions. Where a window leaves its episode, the first or last step is repeated, and
    `"actions_is_pad"` (bool (16,)) is True there. An offset that is a plain number gives no window axis:
    `{"signals": 0}` gives (12,).

    Args:
        view: The episodes: a dataset, or a part of one.
        windows: Feature to offsets in steps, relative to the sample's step. Besides features: `"labels"`,
            `"labels_mask"`, `"timestamp_ns"`.
        where: For an episode, bool (T,) of the steps that may be samples, such as
            `lambda episode: episode.labels_mask.all(axis=(1, 2))`; called once per episode, when the dataset is made.
        transform: Applied to every sample last.

    A sample is a dict of tensors: `<feature>` (W, *shape of a step), `<feature>_is_pad` bool (W,), and `"episode"` and
    `"step"`, int64, which tell where it comes from (`view[episode]`). Text features come as lists of str.

    `DataLoader(windows, batch_size=64, num_workers=4)` reads a whole batch at once, under fork, spawn and forkserver.

    Attributes:
        view: The episodes.
        transform: What is applied to every sample last, or None.

    Raises:
        InvalidInputError: Bad offsets, or a mask of the wrong shape.
        NotFoundError: An unknown feature, or one that some episodes do not have.
        CorruptDataError: The record of an episode does not hold.
    """

    def __init__(
        self,
        view: DatasetView,
        windows: Mapping[str, int | Iterable[int]],
        *,
        where: Callable[[Episode], np.ndarray] | None = None,
        transform: Transform | None = None,
    ) -> None:
        if not isinstance(view, DatasetView):
            raise InvalidInputError(f"windows: got {type(view).__name__}, expected a dataset: salus.open(path)")
        if not windows or not isinstance(windows, Mapping):
            raise InvalidInputError(
                f"windows: got {windows!r}, expected features with offsets, such as {{'states': [0]}}"
            )
        self.view = view
        self._windows = {name: parse_offsets(name, offsets) for name, offsets in windows.items()}
        self.transform = transform
        view.check_sound()
        taken = {"episode", "step"} | {f"{name}_is_pad" for name, (_, single) in self._windows.items() if not single}
        for name in self._windows:
            view.check_feature(name)
            if name in taken:
                raise InvalidInputError(f"windows: a feature called {name!r} would hide the {name!r} of the sample")
        valid = None if where is None else [_checked_mask(episode, where(episode)) for episode in view]
        self._index = WindowIndex(view.episodes["num_steps"], valid)
        if not len(self._index):
            why = "where= leaves no step" if len(view) else "the view has no episodes (refresh()? an empty part?)"
            raise InvalidInputError(f"windows: no samples: {why}; {view.url}")

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, sample: int) -> Sample:
        """One sample; negative numbers count from the end."""
        if not -len(self) <= sample < len(self):
            raise IndexError(f"sample {sample}: out of range, there are {len(self)}")
        return self.__getitems__([sample % len(self)])[0]

    def __getitems__(self, samples: list[int]) -> Sequence[Sample]:
        """Several samples in one read; `DataLoader` calls this. Without a transform they are rows of one batch."""
        batch = self.batch(np.asarray(samples, np.int64))
        rows = Rows(batch, len(samples))
        return rows if self.transform is None else self.transformed(rows)

    def transformed(self, rows: Rows) -> list[Sample]:
        """The transform of each of `rows`. What it raises carries a note that says which sample it came from."""
        samples = []
        for row in rows:
            try:
                samples.append(self.transform(dict(row)) if self.transform is not None else row)
            except Exception as error:
                uid = self.view[int(row["episode"])].uid
                error.add_note(f"salus: in the transform of episode {uid}, step {int(row['step'])}; {self.view.url}")
                raise
        return samples

    @property
    def samples_per_episode(self) -> np.ndarray:
        """int64 (E,): samples of each episode of `view`."""
        return self._index.counts

    def fingerprint(self) -> str:
        """Equal for windows with the same samples in the same order: the same steps of the same episodes."""
        uids = "".join(self.view.episodes["uid"])
        return hashlib.sha256(uids.encode() + self._index.fingerprint()).hexdigest()

    def batch(self, samples: np.ndarray, *, empty: Empty | None = None, parallel: bool = True) -> Batch:
        """Several samples as one batch of tensors, before any transform.

        Args:
            samples: int64 (B,), 0 … len - 1.
            empty: Makes the arrays that are decoded into, such as pinned memory; by default memory that is used again
                when the batch is gone.
            parallel: Read with several threads.

        Returns:
            As a sample, each value with the axis B first.

        Raises:
            IndexError: A sample is out of range.
            CorruptDataError: Bytes are missing or changed. Names episode and step.
        """
        rows, steps = self._index.locate(samples)
        batch: Batch = {"episode": torch.from_numpy(rows), "step": torch.from_numpy(steps)}
        places = {}
        for name, (offsets, single) in self._windows.items():
            inside, is_pad = self._index.window(rows, steps, offsets)
            places[name] = (rows, inside[:, 0] if single else inside)
            if not single:
                batch[f"{name}_is_pad"] = torch.from_numpy(is_pad)
        shared = SharedMemory() if empty is None and in_worker() else None
        values = self.view.read(places, empty=shared.empty if shared else empty, parallel=parallel)
        return batch | _as_tensors(values, shared)

    def prefetch(self, samples: np.ndarray) -> None:
        """Let the disk read the images of these samples ahead, as far as it does.

        Args:
            samples: int64 (n,), 0 … len - 1, in rising order, so that neighbours are read together.
        """
        rows, steps = self._index.locate(samples)
        # Neighbours of one episode, with nothing left out between them.
        borders = np.flatnonzero((np.diff(rows) != 0) | (np.diff(steps) > 1)) + 1
        for part in np.split(np.arange(len(rows)), borders):
            for name, (offsets, _) in self._windows.items():
                ends = np.array([steps[part[0]] + offsets.min(), steps[part[-1]] + offsets.max()])
                start, last = np.clip(ends, 0, self._index.lengths[rows[part[0]]] - 1).tolist()
                self.view.prefetch(name, int(rows[part[0]]), start, last + 1)

    def __repr__(self) -> str:
        windows = ", ".join(f"{name} {offsets.tolist()}" for name, (offsets, _) in self._windows.items())
        return f"<salus.torch.WindowDataset: {len(self)} samples of {len(self.view)} episodes; {windows}>"


class EpisodeDataset(TorchDataset[Sample]):
    """Whole episodes, one per sample.

    Args:
        view: The episodes.
        features: What a sample holds; by default all features of the schema. Besides: `"labels"`, `"labels_mask"`,
            `"timestamp_ns"`.
        transform: Applied to every sample last.

    A sample is a dict of tensors `<feature>` (T, *shape of a step). Episodes differ in length, so a `DataLoader` needs
    `batch_size=None`, or a `collate_fn` that pads.

    Raises:
        NotFoundError: An unknown feature, or one that some episodes do not have.
    """

    def __init__(
        self, view: DatasetView, features: Iterable[str] | None = None, *, transform: Transform | None = None
    ) -> None:
        self.view = view
        if isinstance(features, str):
            raise InvalidInputError(
                f"features: got the text {features!r}, expected several names, such as [{features!r}]"
            )
        self._features = tuple(features) if features is not None else tuple(view.schema.features)
        view.check_sound()
        self._transform = transform
        for name in self._features:
            view.check_feature(name)

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, sample: int) -> Sample:
        """One episode."""
        episode = self.view[sample]
        steps = np.arange(len(episode))
        rows = np.full(len(episode), sample % len(self.view))
        shared = SharedMemory() if in_worker() else None
        arrays = self.view.read(dict.fromkeys(self._features, (rows, steps)), empty=shared.empty if shared else None)
        values: Sample = _as_tensors(arrays, shared)
        return values if self._transform is None else self._transform(values)

    def __repr__(self) -> str:
        return f"<salus.torch.EpisodeDataset: {len(self)} episodes; {', '.join(self._features)}>"


def _as_tensors(arrays: Mapping[str, np.ndarray], shared: SharedMemory | None) -> dict[str, Any]:
    """Each array as a tensor, on the same memory; text as a list."""
    tensors = shared.tensors(arrays.values()) if shared else [None] * len(arrays)
    values: dict[str, Any] = {}
    for (name, array), tensor in zip(arrays.items(), tensors, strict=True):
        if array.dtype == object:
            values[name] = array.tolist()
        else:
            values[name] = torch.from_numpy(array) if tensor is None else tensor
    return values


def _checked_mask(episode: Episode, mask: Any) -> np.ndarray:
    array = np.asarray(mask)
    if array.dtype != bool or array.shape != (len(episode),):
        raise InvalidInputError(
            f"where: got {array.dtype} {array.shape} for episode {episode.uid}, expected bool ({len(episode)},)"
        )
    return array
