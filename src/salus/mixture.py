"""Several datasets read as one: for training on a mixture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from . import buffers
from .episode import Episode
from .errors import InvalidInputError, NotFoundError
from .gather import Empty
from .schema import STEP, Feature, Image, Schema
from .statistics import FeatureStatistics
from .table import EpisodeTable
from .view import LABELS, Block, DatasetView

# What the values mean. The other attributes of a feature say what may be recorded.
_MEANING = ("kind", "shape", "dtype", "unit", "names", "layout", "color", "derived", "clock")


class ConcatView:
    """The episodes of several datasets, one dataset after another, read as one. Made by `salus.concat`.

    Takes the place of a view in `salus.torch`. Episodes are numbered through: `mixture[len(a)]` is the first of the
    second dataset.

    Attributes:
        parts: The datasets or views.
        weights: The share of samples that each gives, adding up to 1; None where every sample counts the same.

    Thread-safety: reading is safe. Fork and pickle: both work.
    """

    def __init__(self, parts: Sequence[DatasetView], weights: Sequence[float] | None) -> None:
        self.parts = tuple(part[:] for part in parts)  # a handle changes with refresh(), this does not
        self.weights: tuple[float, ...] | None = None
        if weights is not None:
            total = sum(weights)
            self.weights = tuple(float(weight) / total for weight in weights)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(part) for part in self.parts])

    @property
    def schema(self) -> Schema:
        """The schema of the first dataset, with the features that all datasets have and agree on."""
        return self._schema

    @cached_property
    def _schema(self) -> Schema:
        first, *others = (part.schema for part in self.parts)
        shared = {
            name: feature
            for name, feature in first.features.items()
            if all(name in other.features and _meaning(feature) == _meaning(other.features[name]) for other in others)
        }
        used = {feature.clock for feature in shared.values()}
        return replace(first, features=shared, clocks={c: rate for c, rate in first.clocks.items() if c in used})

    @property
    def url(self) -> str:
        """Where the datasets are, joined with commas."""
        return ", ".join(part.url for part in self.parts)

    @property
    def num_steps(self) -> int:
        """Steps of all episodes together."""
        return sum(part.num_steps for part in self.parts)

    @cached_property
    def episodes(self) -> EpisodeTable:
        """The episode tables of all, one after another. Slots are those of each dataset."""
        return EpisodeTable.joined(part.episodes for part in self.parts)

    @property
    def part_of_episodes(self) -> np.ndarray:
        """int64 (E,): for each episode, the position in `parts` of the dataset that it is from."""
        return np.repeat(np.arange(len(self.parts)), [len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __iter__(self) -> Iterator[Episode]:
        return (episode for part in self.parts for episode in part)

    def __getitem__(self, key: int | str) -> Episode:
        """An episode by its number (negative from the end) or uid.

        Raises:
            IndexError: No such number.
            NotFoundError: No such uid.
        """
        if isinstance(key, str):
            holding = next((part for part in self.parts if key in part), None)
            if holding is None:
                raise NotFoundError(f"no episode with uid {key!r} among these {len(self)}; {self.url}")
            return holding[key]
        if isinstance(key, bool) or not isinstance(key, int | np.integer):
            raise InvalidInputError(
                f"episode: got {type(key).__name__} {key!r}, expected a number or a uid; slice before concat"
            )
        if not -len(self) <= key < len(self):
            raise IndexError(f"episode {key}: out of range, there are {len(self)}; {self.url}")
        row = int(key) % len(self)
        part = int(np.searchsorted(self._ends, row, side="right"))
        return self.parts[part][row - self._start(part)]

    def _start(self, part: int) -> int:
        return int(self._ends[part]) - len(self.parts[part])

    # --- what salus.torch asks of a view -------------------------------------------------------------------------

    def lengths(self, clock: str = STEP) -> np.ndarray:
        """int64 (E,): the length of each episode on a clock, as `DatasetView.lengths`."""
        return np.concatenate([part.lengths(clock) for part in self.parts])

    def clock_of(self, name: str) -> str:
        """The clock that the array `name` runs on, as `DatasetView.clock_of`."""
        return self.parts[0].clock_of(name)

    def check_sound(self) -> None:
        """Raise CorruptDataError where the record of an episode does not hold."""
        for part in self.parts:
            part.check_sound()

    def check_feature(self, name: str) -> None:
        """Raise an error that names the dataset unless all have the feature `name`, and mean the same by it."""
        for part in self.parts:
            part.check_feature(name)
        differences = list(self._differences(name))
        if differences:
            raise InvalidInputError.listing(differences, subject=f"concat: the datasets do not agree on {name!r}")

    def _differences(self, name: str) -> Iterator[str]:
        features = [part.schema.features.get(name) for part in self.parts]
        meanings = [_meaning(feature) if feature is not None else {} for feature in features]
        if name in LABELS or any(meaning.get("derived") for meaning in meanings):
            for part, meaning in zip(self.parts, meanings, strict=True):
                meaning["failure_kinds"] = part.schema.failure_kinds
                meaning["horizons"] = part.schema.label_horizons
        for key in dict.fromkeys(key for meaning in meanings for key in meaning):
            values = [meaning.get(key) for meaning in meanings]
            if any(value != values[0] for value in values):
                yield f"{key}: " + ", ".join(
                    f"{value!r} in {part.url}" for value, part in zip(values, self.parts, strict=True)
                )

    def read(
        self, places: Mapping[str, Sequence[np.ndarray]], *, empty: Empty | None = None, parallel: bool = True
    ) -> dict[str, np.ndarray]:
        """As `DatasetView.read`, with rows over the episodes of all.

        Cost: one copy more than a read of one dataset, where the rows come from several.
        """
        parts = {name: np.searchsorted(self._ends, rows, side="right") for name, (rows, _) in places.items()}
        involved = np.unique(np.concatenate([*parts.values()])).tolist() if places else []
        if len(involved) <= 1:
            part = involved[0] if involved else 0
            start = self._start(part)
            moved = {name: (rows - start, steps) for name, (rows, steps) in places.items()}
            return self.parts[part].read(moved, empty=empty, parallel=parallel)
        chosen = {(name, part): np.flatnonzero(of_rows == part) for name, of_rows in parts.items() for part in involved}
        found = {
            part: self.parts[part].read(
                {
                    name: (rows[chosen[name, part]] - self._start(part), steps[chosen[name, part]])
                    for name, (rows, steps) in places.items()
                },
                parallel=parallel,
            )
            for part in involved
        }
        values = {}
        for name, (_, steps) in places.items():
            like, make = found[involved[0]][name], empty or buffers.default.empty
            values[name] = empty_steps(self.schema.features.get(name), like, steps.shape, make)
            for part in involved:
                values[name][chosen[name, part]] = found[part].pop(name)
        return values

    def scan(self, features: Iterable[str]) -> Iterator[Block]:
        """As `DatasetView.scan`, one dataset after another."""
        names = list(features)
        return itertools.chain.from_iterable(part.scan(names) for part in self.parts)

    def statistics(
        self, features: Iterable[str] | None = None, *, recompute: bool = False
    ) -> dict[str, FeatureStatistics]:
        """As `DatasetView.statistics`, over the episodes of all datasets, each step once: weights do not count."""
        known = [part.check_described(features) for part in self.parts]
        names = [name for name in known[0] if name in self.schema.features] if features is None else known[0]
        if features is None:
            names = [name for name in names if all(name in others for others in known)]
        for name in names:
            self.check_feature(name)
        merged = {name: FeatureStatistics(self.schema.features[name]) for name in names}
        for part in self.parts:
            for name, found in part.statistics(names, recompute=recompute).items():
                merged[name].merge(found)
        return merged

    def prefetch(self, name: str, row: int, start: int, stop: int) -> None:
        """As `DatasetView.prefetch`, with a row over the episodes of all."""
        part = int(np.searchsorted(self._ends, row, side="right"))
        self.parts[part].prefetch(name, row - self._start(part), start, stop)

    def __repr__(self) -> str:
        weights = self.weights or [None] * len(self.parts)
        parts = "; ".join(
            f"{part.url}: {len(part)} episodes, {part.num_steps} steps, {part.schema.rate_hz:g} Hz"
            + (f", weight {weight:.3g}" if weight is not None else "")
            for part, weight in zip(self.parts, weights, strict=True)
        )
        return f"<salus.ConcatView: {len(self)} episodes, {self.num_steps} steps; {parts}>"


View: TypeAlias = DatasetView | ConcatView
"""What training reads from: a dataset, a part of one, or several as one."""


def concat(views: Iterable[DatasetView], *, weights: Sequence[float] | None = None) -> ConcatView:
    """Read several datasets, or views of them, as one: `salus.concat([real, simulated], weights=[0.5, 0.5])`.

    What is asked of the mixture must mean the same in all datasets: shape, dtype, unit, component names, layout and
    color of a feature, and its clock; failure kinds and horizons of labels. Other features may differ, or be in some
    datasets only.
    Offsets in steps count the steps of each dataset: with different rates, use `salus.Seconds`.

    Args:
        views: Datasets or views, at least one. The same episode may be in several.
        weights: The share of samples that each gives in training, whatever its size: positive numbers, in proportion.
            Without, every sample counts the same.

    Raises:
        InvalidInputError: Not datasets, no dataset, or weights that do not fit.
    """
    given = [views] if isinstance(views, DatasetView) else list(views)
    wrong = next((view for view in given if not isinstance(view, DatasetView)), None)
    if wrong is not None or not given or isinstance(views, DatasetView):
        got = "no dataset" if not given else type(wrong if wrong is not None else views).__name__
        raise InvalidInputError(
            f"concat: got {got}, expected datasets or views, such as [salus.open(a), salus.open(b)]"
        )
    if weights is not None:
        values = list(weights)
        if len(values) != len(given) or not all(_is_weight(value) for value in values):
            raise InvalidInputError(
                f"concat: weights: got {values}, expected {len(given)} finite numbers above 0, one per dataset"
            )
    return ConcatView(given, weights)


def empty_steps(feature: Feature | None, like: np.ndarray, shape: tuple[int, ...], empty: Empty) -> np.ndarray:
    """An array for `shape` steps such as those of `like`, as many axes: images are channels-last in memory."""
    step_shape = like.shape[len(shape) :]
    if isinstance(feature, Image) and feature.layout == "CHW":
        channels, height, width = step_shape
        return np.moveaxis(empty((*shape, height, width, channels), like.dtype), -1, -3)
    return empty((*shape, *step_shape), like.dtype)


def _is_weight(value: Any) -> bool:
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0


def _meaning(feature: Feature) -> dict[str, Any]:
    document = feature.to_json()
    return {key: document[key] for key in _MEANING if key in document}
