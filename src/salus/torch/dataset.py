"""Map-style datasets over a view: whole episodes, and windows of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from ..episode import Episode
from ..errors import InvalidInputError
from ..schema import Text
from ..view import DatasetView
from ..windows import WindowIndex, parse_offsets

Sample: TypeAlias = dict[str, Any]
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
        self._texts = {name for name, feature in view.schema.features.items() if isinstance(feature, Text)}
        self._transform = transform
        view.check_sound()
        taken = {"episode", "step"} | {f"{name}_is_pad" for name, (_, single) in self._windows.items() if not single}
        for name in self._windows:
            view.check_feature(name)
            if name in taken:
                raise InvalidInputError(f"windows: a feature called {name!r} would hide the {name!r} of the sample")
        valid = None if where is None else [_checked_mask(episode, where(episode)) for episode in view]
        self._index = WindowIndex([entry.num_steps for entry in view.episodes], valid)
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

    def __getitems__(self, samples: list[int]) -> list[Sample]:
        """Several samples in one read; `DataLoader` calls this."""
        rows, steps = self._index.locate(np.asarray(samples))
        columns: dict[str, Any] = {"episode": torch.from_numpy(rows), "step": torch.from_numpy(steps)}
        for name, (offsets, single) in self._windows.items():
            inside, is_pad = self._index.window(rows, steps, offsets)
            values = self.view.read(name, np.repeat(rows, len(offsets)), inside.ravel(), inside.shape)
            columns[name] = self._column(name, values, single)
            if not single:
                columns[f"{name}_is_pad"] = torch.from_numpy(is_pad)
        batch = [{name: values[row] for name, values in columns.items()} for row in range(len(rows))]
        return batch if self._transform is None else [self._transform(sample) for sample in batch]

    def _column(self, name: str, values: np.ndarray, single: bool) -> Any:
        if single:
            values = values[:, 0]
        return values.tolist() if name in self._texts else torch.from_numpy(values)

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
        values = {name: _whole(episode, name) for name in self._features}
        return values if self._transform is None else self._transform(values)

    def __repr__(self) -> str:
        return f"<salus.torch.EpisodeDataset: {len(self)} episodes; {', '.join(self._features)}>"


def _whole(episode: Episode, name: str) -> Any:
    if name in ("labels", "labels_mask"):
        return torch.from_numpy(getattr(episode, name))
    values = episode[name][:]
    return values.tolist() if values.dtype == object else torch.from_numpy(values)


def _checked_mask(episode: Episode, mask: Any) -> np.ndarray:
    array = np.asarray(mask)
    if array.dtype != bool or array.shape != (len(episode),):
        raise InvalidInputError(
            f"where: got {array.dtype} {array.shape} for episode {episode.uid}, expected bool ({len(episode)},)"
        )
    return array
