"""What rules look at: the measures of an episode, and those of all episodes together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..errors import InvalidInputError, did_you_mean
from ..labels import Outcome
from ..schema import STEP, Schema
from .cameras import ImageMeasures
from .components import ComponentMeasures, is_label
from .duplicates import POINTS, near_pairs
from .lags import Lags


@dataclass(frozen=True)
class ClockMeasures:
    """The stamps of one clock in one episode. Times in seconds, NaN with fewer than two stamps.

    Attributes:
        count: Stamps.
        source: `"caller"`, `"monotonic"`, or `"rate"` (nominal: they say nothing about time).
        declared_s: The interval that the schema's rate means.
        median_s: Median of the intervals.
        spread_s: From the 10 % to the 90 % quantile of the intervals.
        longest_s: The longest interval.
        longest_step: The step before it.
        gaps: Intervals that are longer than three times the median.
        first_ns, last_ns: The first and last stamp; 0 without any.
    """

    count: int
    source: str
    declared_s: float
    median_s: float
    spread_s: float
    longest_s: float
    longest_step: int
    gaps: int
    first_ns: int
    last_ns: int


def measure_clock(stamps: np.ndarray, *, source: str, rate_hz: float) -> ClockMeasures:
    """Measure int64 (K,) nanoseconds."""
    intervals = np.diff(stamps) / 1e9
    known = len(intervals) > 0
    low, median, high = np.quantile(intervals, [0.1, 0.5, 0.9]).tolist() if known else [float("nan")] * 3
    return ClockMeasures(
        count=len(stamps),
        source=source,
        declared_s=1 / rate_hz,
        median_s=median,
        spread_s=high - low,
        longest_s=float(intervals.max()) if known else float("nan"),
        longest_step=int(intervals.argmax()) if known else 0,
        gaps=int((intervals > 3 * median).sum()),
        first_ns=int(stamps[0]) if len(stamps) else 0,
        last_ns=int(stamps[-1]) if len(stamps) else 0,
    )


@dataclass(frozen=True)
class LabelMeasures:
    """A stored feature of labels in one episode, beside what the outcome says.

    Attributes:
        count: Values that are not NaN.
        positive: Values above 0.5.
        compared: Values that the outcome decides; 0 where the shape is not that of the labels.
        differing: Of these, values that say something else.
        first_differing: The first step at which one does; -1 without any.
    """

    count: int
    positive: int
    compared: int
    differing: int
    first_differing: int


@dataclass
class EpisodeMeasures:
    """What was measured of one episode.

    Attributes:
        index: Its number in the view that is checked.
        uid: Its uid.
        schema: The schema that it was recorded under.
        outcome: The outcome in force.
        num_steps: T.
        components: By feature of numbers, up to 64 components.
        wide: By feature of more components: (finite values, NaN, infinite, minimum, maximum), from the record.
        images: By camera.
        clocks: By clock, `"step"` first.
        labels: By stored feature that holds labels.
        dropped_images: By camera, images that the recorder dropped.
        signature: float32 (16, c); empty where it has no numbers.
        arrays: The values, as long as the episode is at hand: see `values`.
    """

    index: int
    uid: str
    schema: Schema
    outcome: Outcome
    num_steps: int
    components: dict[str, ComponentMeasures] = field(default_factory=dict)
    wide: dict[str, tuple[float, float, float, float, float]] = field(default_factory=dict)
    images: dict[str, ImageMeasures] = field(default_factory=dict)
    clocks: dict[str, ClockMeasures] = field(default_factory=dict)
    labels: dict[str, LabelMeasures] = field(default_factory=dict)
    dropped_images: dict[str, int] = field(default_factory=dict)
    signature: np.ndarray = field(default_factory=lambda: np.zeros((POINTS, 0), np.float32))
    arrays: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def tail(self) -> int:
        """Steps at the end in which no number changes that changed before; 0 where none ever does."""
        tails = [
            found.tail
            for name, found in self.components.items()
            if found.changes.any() and not is_label(name) and self.schema.features[name].clock == STEP
        ]
        return min(tails, default=0)

    def values(self, name: str) -> np.ndarray:
        """All values of a feature of up to 64 components, (T, *shape of a step), for rules per episode.

        Raises:
            InvalidInputError: No such feature, or its values are not at hand.
        """
        if name not in self.arrays:
            hint = did_you_mean(name, self.arrays) if self.arrays else "; only rules per episode have the values"
            raise InvalidInputError(f"values: got {name!r}, expected a feature of numbers of episode {self.uid}{hint}")
        return self.arrays[name]


@dataclass(frozen=True)
class DatasetMeasures:
    """What was measured of all episodes.

    Attributes:
        schema: The newest revision of the schema.
        episodes: Of each, in order; their values are no longer at hand.
        lags: Actions against states.
        actions, states: Feature and component of each, in the order in which `lags` counts them.
        splits: By name of a part, the uids of its episodes.
        unreadable: By number of an episode, why it cannot be read; it is not among `episodes`.
    """

    schema: Schema
    episodes: Sequence[EpisodeMeasures]
    lags: Lags
    actions: tuple[tuple[str, str], ...] = ()
    states: tuple[tuple[str, str], ...] = ()
    splits: Mapping[str, frozenset[str]] = field(default_factory=dict)
    unreadable: Mapping[int, str] = field(default_factory=dict)

    @cached_property
    def features(self) -> list[str]:
        """Features of numbers that any episode has."""
        return list(dict.fromkeys(name for episode in self.episodes for name in episode.components))

    def of(self, feature: str) -> list[tuple[EpisodeMeasures, ComponentMeasures]]:
        """The episodes that have a feature of numbers, and its measures."""
        return [(each, each.components[feature]) for each in self.episodes if feature in each.components]

    @cached_property
    def cameras(self) -> list[str]:
        """Cameras that any episode has."""
        return list(dict.fromkeys(name for episode in self.episodes for name in episode.images))

    @cached_property
    def clocks(self) -> list[str]:
        """Clocks that any episode has."""
        return list(dict.fromkeys(name for episode in self.episodes for name in episode.clocks))

    def near(self, most_distance: float, most_length: float, least_steps: float = 5) -> list[tuple[int, int, float]]:
        """Numbers of episodes that are nearly identical, in pairs, and their distance: see `duplicates.near_pairs`."""
        by_size: dict[int, list[EpisodeMeasures]] = {}
        for each in self.episodes:
            if each.num_steps >= least_steps:
                by_size.setdefault(each.signature.shape[1], []).append(each)
        found = []
        for alike in by_size.values():
            signatures, lengths = [each.signature for each in alike], [each.num_steps for each in alike]
            pairs = near_pairs(signatures, lengths, most_distance=most_distance, most_length=most_length)
            found += [(alike[one].index, alike[other].index, distance) for one, other, distance in pairs]
        return sorted(found)
