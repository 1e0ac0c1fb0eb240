"""Map-style datasets over a view: whole episodes, and windows of steps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from ..clocks import Matched, ReadStamps, Seconds, interpolate, match_clock, match_steps
from ..episode import Episode
from ..errors import InvalidInputError
from ..gather import Empty
from ..mixture import ConcatView, View, empty_steps
from ..schema import STEP, TIMESTAMP, stamps_name
from ..view import Block, DatasetView
from ..windows import Bounds, Window, WindowIndex, check_count, ends_of, step_bounds, time_bounds
from .batch import Batch, Rows, Sample, SharedMemory, in_worker

Transform: TypeAlias = Callable[[Sample], Sample]


class WindowDataset(TorchDataset[Sample]):
    """Samples around single steps, for policies and predictors.

    `WindowDataset(train, {"images": [-1, 0], "actions": range(-1, 15)})` gives, for every step of every episode, two
    images and 16 actions. Where a window leaves its episode, the first or last step is repeated, and
    `"actions_is_pad"` (bool (16,)) is True there. An offset that is a plain number gives no window axis:
    `{"signals": 0}` gives (12,).

    A feature on another clock than the steps is found by time alone: `{"joints": salus.Seconds([-0.02, -0.01, 0.0])}`,
    from the stamp of the sample's step, on the feature's clock. It always has its `_is_pad`: bool (), where there is no
    window axis.

    Args:
        view: The episodes: a dataset, a part of one, or several as one (`salus.concat`).
        windows: Feature to offsets relative to the sample's step: in steps, or `salus.Seconds`. Besides features:
            `"labels"`, `"labels_mask"`, `"timestamp_ns"`, `"<clock>.timestamp_ns"`.
        stride: Every how many steps is a sample, counted in each episode from the first that padding allows.
        pad_before: How many entries of any window may lie before the episode; steps where more would are no samples.
            None allows any number, 0 none.
        pad_after: The same for entries after the episode.
        where: For an episode, bool (T,) of the steps that may be samples, such as
            `lambda episode: episode.labels_mask.all(axis=(1, 2))`; called once per episode, when the dataset is made.
            Applies to the samples that stride and padding leave.
        transform: Applied to every sample last.

    A sample is a dict of tensors: `<feature>` (W, *shape of a step), `<feature>_is_pad` bool (W,), and `"episode"` and
    `"step"`, int64, which tell where it comes from (`view[episode]`). Text features come as lists of str.

    `DataLoader(windows, batch_size=64, num_workers=4)` reads a whole batch at once, under fork, spawn and forkserver.

    Attributes:
        view: The episodes.
        transform: What is applied to every sample last, or None.

    Raises:
        InvalidInputError: Bad offsets, offsets in steps for a feature on another clock, or a mask of the wrong shape.
        NotFoundError: An unknown feature, or one that some episodes do not have.
        CorruptDataError: The record of an episode does not hold.

    Cost: making it takes milliseconds for 100,000 episodes. `where` is called for each of them, and limits on the
    padding of windows in seconds read the stamps of all.
    """

    def __init__(
        self,
        view: View,
        windows: Mapping[str, int | Iterable[int] | Seconds],
        *,
        stride: int = 1,
        pad_before: int | None = None,
        pad_after: int | None = None,
        where: Callable[[Episode], np.ndarray] | None = None,
        transform: Transform | None = None,
    ) -> None:
        if not isinstance(view, View):
            raise InvalidInputError(f"windows: got {type(view).__name__}, expected a dataset: salus.open(path)")
        if not windows or not isinstance(windows, Mapping):
            raise InvalidInputError(
                f"windows: got {windows!r}, expected features with offsets, such as {{'states': [0]}}"
            )
        # What a dataset's handle sees changes with refresh(); the samples are those of now.
        self.view = view[:] if isinstance(view, DatasetView) else view
        check_count("stride", stride, least=1)
        check_count("pad_before", pad_before, least=0, optional=True)
        check_count("pad_after", pad_after, least=0, optional=True)
        for name, function in (("where", where), ("transform", transform)):
            if function is not None and not callable(function):
                raise InvalidInputError(f"windows: {name}: got {type(function).__name__}, expected a function")
        self._windows = {name: Window.parse(name, offsets) for name, offsets in windows.items()}
        self.transform = transform
        view.check_sound()
        for name in self._windows:
            view.check_feature(name)
        self._clocks = {name: view.clock_of(name) for name in self._windows}
        padded = (name for name, window in self._windows.items() if not window.single or self._clocks[name] != STEP)
        self._padded = frozenset(padded)
        taken = {"episode", "step"} | {f"{name}_is_pad" for name in self._padded}
        for name, window in self._windows.items():
            _check_clock(name, window, self._clocks[name])
            if window.seconds is not None and window.seconds.method == "linear":
                _check_linear(name, view)
            if name in taken:
                raise InvalidInputError(f"windows: a feature called {name!r} would hide the {name!r} of the sample")
        valid = None if where is None else [_mask(where, episode) for episode in view]
        self._lengths = {clock: view.lengths(clock) for clock in {STEP, *self._clocks.values()}}
        self._periods_ns = {clock: 1e9 / _rates_hz(view, clock) for clock in self._lengths}
        lengths = self._lengths[STEP]
        timed = [(self._windows[name], clock) for name, clock in self._clocks.items()]
        bounds = _bounds(view, timed, lengths, pad_before, pad_after)
        self._index = WindowIndex(lengths, valid, bounds=bounds, stride=stride)
        if not len(self._index):
            why = (
                "where= or the padding allowed leave no step"
                if len(view)
                else "no episodes (refresh()? an empty part?)"
            )
            raise InvalidInputError(f"windows: no samples: {why}; {view.url}")
        self._check_shares()

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, sample: int) -> Sample:
        """One sample; negative numbers count from the end."""
        if isinstance(sample, bool) or not isinstance(sample, int | np.integer):
            raise InvalidInputError(f"windows: got {sample!r}, expected the number of a sample; several: batch([0, 1])")
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
                sample = self.transform(dict(row)) if self.transform is not None else row
                if sample is None:
                    raise InvalidInputError("transform: got None, expected the sample; the function returns it")
                samples.append(sample)
            except Exception as error:
                uid = self.view[int(row["episode"])].uid
                error.add_note(f"salus: in the transform of episode {uid}, step {int(row['step'])}; {self.view.url}")
                raise
        return samples

    @property
    def windows(self) -> Mapping[str, Window]:
        """The window of each feature."""
        return self._windows

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Episode (position in `view`) and step of samples, int64 (n,) each."""
        return self._index.locate(samples)

    @property
    def samples_per_episode(self) -> np.ndarray:
        """int64 (E,): samples of each episode of `view`."""
        return self._index.counts

    def fingerprint(self) -> str:
        """Equal for windows with the same samples in the same order: the same steps of the same episodes."""
        uids = "".join(self.view.episodes["uid"])
        return hashlib.sha256(uids.encode() + self._index.fingerprint()).hexdigest()

    @property
    def episode_weights(self) -> np.ndarray | None:
        """float64 (E,): the weights of `salus.concat`, spread over the episodes of `view`; None where there are none.

        To draw a sample: draw an episode by these weights, then any of its samples evenly.
        """
        if not isinstance(self.view, ConcatView) or self.view.weights is None:
            return None
        parts, counts = self.view.part_of_episodes, self._index.counts
        totals = np.bincount(parts, weights=counts, minlength=len(self.view.parts))
        return np.asarray(np.array(self.view.weights)[parts] * counts / totals[parts])

    def sample_weights(self) -> np.ndarray | None:
        """float64 (N,): the same for each sample, for `torch.utils.data.WeightedRandomSampler`.

        Cost: 8 bytes a sample. That sampler takes 2**24 samples at most.
        """
        weights, counts = self.episode_weights, self._index.counts
        return None if weights is None else np.repeat(weights / np.maximum(counts, 1), counts)

    def _check_shares(self) -> None:
        if not isinstance(self.view, ConcatView) or self.view.weights is None:
            return
        totals = np.bincount(self.view.part_of_episodes, weights=self._index.counts, minlength=len(self.view.parts))
        for part, total in zip(self.view.parts, totals, strict=True):
            if not total:
                raise InvalidInputError(f"windows: a dataset with a weight gives no samples; {part.url}")

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
        places: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        matched = self._match(rows, steps, parallel)
        mixed: dict[str, Matched] = {}
        pads: Batch = {}
        for name, window in self._windows.items():
            if window.seconds is None:
                inside, is_pad = self._index.window(rows, steps, window.offsets)
            else:
                found = matched[self._clocks[name], window.seconds]
                inside, is_pad = found.lower, found.is_pad
                if window.seconds.method == "linear":
                    mixed[name] = found
            if name not in mixed:
                places[name] = (rows, inside[:, 0] if window.single else inside)
            if name in self._padded:
                pads[name] = torch.from_numpy(is_pad[:, 0] if window.single else is_pad)
        shared = SharedMemory() if empty is None and in_worker() else None
        empty = shared.empty if shared else empty
        values = self._read(places, empty, parallel)
        if mixed:
            values |= self._interpolated(rows, mixed, empty or np.empty, parallel)
        tensors = _as_tensors(values, shared)
        for name in self._windows:
            batch[name] = tensors[name]
            if name in pads:
                batch[f"{name}_is_pad"] = pads[name]
        return batch

    def prefetch(self, samples: np.ndarray) -> None:
        """Let the disk read the images of these samples ahead, as far as it does.

        Args:
            samples: int64 (n,), 0 … len - 1, in rising order, so that neighbours are read together.
        """
        rows, steps = self._index.locate(samples)
        # Neighbours of one episode, with nothing left out between them.
        borders = np.flatnonzero((np.diff(rows) != 0) | (np.diff(steps) > 1)) + 1
        for part in np.split(np.arange(len(rows)), borders):
            row = int(rows[part[0]])
            for name, window in self._windows.items():
                clock = self._clocks[name]
                period = self._periods_ns[clock][row]
                unit = 1.0 if window.seconds is None else period  # in seconds: about there
                reach = np.rint(np.array([window.offsets.min(), window.offsets.max()]) / unit).astype(np.int64)
                ends = np.array([steps[part[0]], steps[part[-1]]])
                if clock != STEP:
                    ends = np.rint(ends * (self._periods_ns[STEP][row] / period)).astype(np.int64)
                length = int(self._lengths[clock][row])
                start, last = np.clip(ends + reach, 0, max(length - 1, 0)).tolist()
                self.view.prefetch(name, row, start, min(last + 1, length))

    def _match(self, rows: np.ndarray, steps: np.ndarray, parallel: bool) -> dict[tuple[str, Seconds], Matched]:
        """The steps of each clock that its windows in seconds mean."""
        by_clock: dict[str, dict[Seconds, None]] = {}  # no window twice
        for name, window in self._windows.items():
            if window.seconds is not None:
                by_clock.setdefault(self._clocks[name], {})[window.seconds] = None
        matched: dict[tuple[str, Seconds], Matched] = {}
        for clock, windows in by_clock.items():
            timed, lengths, periods_ns = list(windows), self._lengths[clock][rows], self._periods_ns[clock][rows]
            stamps = self._stamps(clock, parallel)
            if clock == STEP:
                found = match_steps(timed, rows, steps, lengths=lengths, periods_ns=periods_ns, read_stamps=stamps)
            else:
                current = self._stamps(STEP, parallel)(rows, steps)
                there = np.flatnonzero(lengths)
                some = match_clock(
                    timed,
                    rows[there],
                    current[there],
                    lengths=lengths[there],
                    periods_ns=periods_ns[there],
                    read_stamps=stamps,
                )
                found = [one.spread(there, len(rows)) for one in some]
            matched |= {(clock, seconds): one for seconds, one in zip(timed, found, strict=True)}
        return matched

    def _stamps(self, clock: str, parallel: bool) -> ReadStamps:
        name = stamps_name(clock)
        return lambda rows, steps: self.view.read({name: (rows, steps)}, parallel=parallel)[name]

    def _read(
        self, places: Mapping[str, tuple[np.ndarray, np.ndarray]], empty: Empty | None, parallel: bool
    ) -> dict[str, np.ndarray]:
        """As `view.read`; zeros, or "", of episodes in which the clock of a feature has no step."""
        lacking = {}
        for name, (rows, _) in places.items():
            there = self._lengths[self._clocks[name]][rows] > 0
            if not there.all():
                lacking[name] = there
        whole = {name: place for name, place in places.items() if name not in lacking}
        values = self.view.read(whole, empty=empty, parallel=parallel)
        for name, there in lacking.items():
            rows, steps = places[name]
            read = self.view.read({name: (rows[there], steps[there])}, parallel=parallel)[name]
            feature = self.view.schema.features.get(name)
            values[name] = empty_steps(feature, read, steps.shape, empty or np.empty)
            values[name][there], values[name][~there] = read, "" if read.dtype == object else 0
        return values

    def _interpolated(
        self, rows: np.ndarray, mixed: Mapping[str, Matched], empty: Empty, parallel: bool
    ) -> dict[str, np.ndarray]:
        places = {name: (rows, np.concatenate([found.lower, found.upper], axis=1)) for name, found in mixed.items()}
        values = self._read(places, None, parallel)
        for name, found in mixed.items():
            lower, upper = np.split(values[name], 2, axis=1)
            result = interpolate(lower, upper, found.weight)
            result = result[:, 0] if self._windows[name].single else result
            values[name] = empty(result.shape, result.dtype)
            values[name][...] = result
        return values

    def __repr__(self) -> str:
        windows = ", ".join(f"{name} {window}" for name, window in self._windows.items())
        return f"<salus.torch.WindowDataset: {len(self)} samples of {len(self.view)} episodes; {windows}>"


class EpisodeDataset(TorchDataset[Sample]):
    """Whole episodes, one per sample.

    Args:
        view: The episodes.
        features: What a sample holds; by default all features of the schema. Besides: `"labels"`, `"labels_mask"`,
            `"timestamp_ns"`, `"<clock>.timestamp_ns"`.
        transform: Applied to every sample last.

    A sample is a dict of tensors `<feature>` (T, *shape of a step), T steps of the feature's clock. Episodes differ
    in length, so a `DataLoader` needs `batch_size=None`, or a `collate_fn` that pads.

    Raises:
        NotFoundError: An unknown feature, or one that some episodes do not have.
    """

    def __init__(
        self, view: View, features: Iterable[str] | None = None, *, transform: Transform | None = None
    ) -> None:
        if not isinstance(view, View):
            raise InvalidInputError(f"episodes: got {type(view).__name__}, expected a dataset: salus.open(path)")
        self.view = view[:] if isinstance(view, DatasetView) else view
        if isinstance(features, str):
            raise InvalidInputError(
                f"features: got the text {features!r}, expected several names, such as [{features!r}]"
            )
        self._features = tuple(features) if features is not None else tuple(view.schema.features)
        view.check_sound()
        self._transform = transform
        for name in self._features:
            view.check_feature(name)
        self._clocks = {name: view.clock_of(name) for name in self._features}
        self._lengths = {clock: view.lengths(clock) for clock in set(self._clocks.values())}

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, sample: int) -> Sample:
        """One episode."""
        self.view[sample]  # raises where there is none
        row = sample % len(self.view)
        lengths = {clock: int(lengths[row]) for clock, lengths in self._lengths.items()}
        places = {
            name: (np.full(lengths[clock], row), np.arange(lengths[clock])) for name, clock in self._clocks.items()
        }
        shared = SharedMemory() if in_worker() else None
        arrays = self.view.read(places, empty=shared.empty if shared else None)
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


def _mask(where: Callable[[Episode], np.ndarray], episode: Episode) -> np.ndarray:
    try:
        steps = where(episode)
    except Exception as error:
        error.add_note(f"salus: in where= of episode {episode.uid}")
        raise
    return _checked_mask(episode, steps)


def _checked_mask(episode: Episode, mask: Any) -> np.ndarray:
    array = np.asarray(mask)
    if array.dtype != bool or array.shape != (len(episode),):
        raise InvalidInputError(
            f"where: got {array.dtype} {array.shape} for episode {episode.uid}, expected bool ({len(episode)},)"
        )
    return array


def _check_clock(name: str, window: Window, clock: str) -> None:
    if clock != STEP and window.seconds is None:
        raise InvalidInputError(
            f"window of {name!r}: got the steps {window.offsets.tolist()}, expected seconds: it runs on the clock "
            f"{clock!r}, whose steps are not those of the samples; salus.Seconds(0.0, method='previous') takes the "
            "last value by then"
        )


def _check_linear(name: str, view: View) -> None:
    feature = view.schema.features.get(name)
    if feature is None or feature.derived or feature.nullable or not feature.dtype.startswith("float"):
        what = name if feature is None else f"{'nullable ' * feature.nullable}{feature.dtype}"
        raise InvalidInputError(
            f"window of {name!r}: got method 'linear' for {what}, expected a recorded float feature that is not "
            f"nullable; 'nearest' and 'previous' work for all; {view.url}"
        )


def _rates_hz(view: View, clock: str) -> np.ndarray:
    """float64 (E,), nominal steps per second of a clock."""
    if isinstance(view, DatasetView):
        return np.full(len(view), view.schema.rate_of(clock), np.float64)
    rates = np.array([part.schema.rate_of(clock) for part in view.parts], np.float64)
    return np.asarray(rates[view.part_of_episodes])


def _bounds(
    view: View, windows: list[tuple[Window, str]], lengths: np.ndarray, pad_before: int | None, pad_after: int | None
) -> Bounds:
    """The samples that the padding leaves, of windows with the clocks that they are looked up on."""
    bounds = step_bounds([window for window, _ in windows], lengths, pad_before, pad_after)
    timed = [(window, clock) for window, clock in windows if window.seconds is not None]
    if all(window.reach(pad_before, pad_after) == (None, None) for window, _ in timed):
        return bounds
    pairs = []
    for block in view.scan([TIMESTAMP]):  # a block is a whole episode: stamps are small
        ends = {clock: _ends(block, clock) for _, clock in timed}
        on_clocks = [(window, ends[clock]) for window, clock in timed]
        pairs.append(time_bounds(on_clocks, block.arrays[TIMESTAMP], pad_before, pad_after))
    first, last = np.array(pairs, np.int64).reshape(-1, 2).T
    return bounds.within(Bounds(first, last))


def _ends(block: Block, clock: str) -> np.ndarray | None:
    """The stamps of a clock at its ends, int64 (4,); None where it has no step in the episode."""
    if clock == STEP:
        stamps: np.ndarray = block.arrays[TIMESTAMP]
        return stamps[ends_of(len(stamps))]
    data = block.episode[stamps_name(clock)]
    return np.asarray(data[ends_of(len(data))]) if len(data) else None
