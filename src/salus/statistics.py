"""Statistics of an episode's values: computed while it is recorded, kept in its record, merged over many.

Of each component of a feature; of each channel of an image, over pixels; of a feature with very many components, over
all of them together. Large steps are sampled: 4096 or more values of each, other ones at every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import numpy as np

from .errors import CorruptDataError, InvalidInputError
from .layout import ArraySpec, feature_specs
from .schema import Feature, Image, Schema
from .sketches import MERGED_K, RECORD_K, Histogram, Sketches, sketch_dtype

MAX_COMPONENTS = 64
"""A feature with more is described by one set of statistics over all of them."""

SAMPLED_VALUES = 4096
"""About so many values of a channel, or of a feature with many components, are looked at in each step, and no less."""

Over = Literal["steps", "pixels", "values"]

_COUNTS = ("count", "nan", "infinite")
_MAX_COUNT = 2**62


@dataclass(frozen=True)
class _Moments:
    """Of each component: int64 and float64 (size,).

    Attributes:
        count: Values.
        mean: Their mean.
        m2: Sum of their squared distances from it.
        min, max: The extremes; infinite where there is no value.
    """

    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray
    min: np.ndarray
    max: np.ndarray

    @classmethod
    def empty(cls, size: int) -> Self:
        return cls(np.zeros(size, np.int64), np.zeros(size), np.zeros(size), *np.full((2, size), [[np.inf], [-np.inf]]))

    def merged(self, other: Self) -> Self:
        """Those of both parts together (Chan, Golub, LeVeque 1979): exact to within rounding."""
        total = self.count + other.count
        share = other.count / np.maximum(total, 1)
        with np.errstate(over="ignore", invalid="ignore"):  # values near the largest float64: the record says null
            delta = other.mean - self.mean
            between = np.where(np.minimum(self.count, other.count) > 0, delta**2 * (self.count * share), 0.0)
            both = np.where(other.count > 0, self.mean + delta * share, self.mean)
            mean = np.where(self.count > 0, both, other.mean)
            m2 = self.m2 + other.m2 + between
        return type(self)(total, mean, m2, np.minimum(self.min, other.min), np.maximum(self.max, other.max))

    def checked(self) -> Self:
        """As read from a record; raises ValueError where they cannot be."""
        some = self.count > 0
        if (self.m2 < 0).any() or not (self.min <= self.max)[some].all():
            raise ValueError("m2 below 0, or min not up to max")
        absent = self.empty(len(some))
        return type(self)(
            *(np.where(some, mine, none) for mine, none in zip(vars(self).values(), vars(absent).values(), strict=True))
        )


_MOMENTS = tuple(field.name for field in fields(_Moments))


class FeatureStatistics:
    """Statistics of one feature, over the steps of one episode or of many.

    All arrays have the shape of a step; of an image they are (C,), one value per channel over its pixels; of a feature
    with more than 64 components they are (), over all of them together. Steps of a nullable feature without a value do
    not count. NaN and infinity are counted, and left out of everything else.

    Attributes:
        over: `"steps"`, `"pixels"` or `"values"`: what each number is taken over, as above.
        every: Of an image every so many rows are looked at, of a feature with more than 64 components every so many
            values, from step to step other ones; 1 where everything counts.
        count: int64, finite values.
        mean: float64; NaN where there is no value.
        min, max: float64, the extremes of what was looked at; NaN where there is no value.
        num_nan, num_infinite: int64.

    Numbers are float64, so integers above 2⁵³ are rounded.
    """

    def __init__(self, feature: Feature, *, k: int = MERGED_K) -> None:
        self.over: Over = _over(feature)
        self.every = _every(feature)
        self._shape = _shape(feature)
        size = math.prod(self._shape)
        self._apart = _Moments.empty(size)  # of what has no histogram, which says them itself
        self._nan, self._infinite = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self._values: Histogram | Sketches
        dtype = np.dtype(feature.dtype)
        if dtype == np.uint8 and self.over != "steps":
            self._values = Histogram.empty(size)
        else:
            self._values = Sketches.empty(size, sketch_dtype(dtype), k)

    @property
    def _moments(self) -> _Moments:
        return _of_histogram(self._values) if isinstance(self._values, Histogram) else self._apart

    # --- what it says --------------------------------------------------------------------------------------------

    @property
    def count(self) -> np.ndarray:  # noqa: D102 - the class describes these
        return self._moments.count.reshape(self._shape).copy()

    @property
    def num_nan(self) -> np.ndarray:  # noqa: D102
        return self._nan.reshape(self._shape).copy()

    @property
    def num_infinite(self) -> np.ndarray:  # noqa: D102
        return self._infinite.reshape(self._shape).copy()

    @property
    def mean(self) -> np.ndarray:  # noqa: D102
        return self._known(self._moments.mean)

    @property
    def min(self) -> np.ndarray:  # noqa: D102
        return self._known(self._moments.min)

    @property
    def max(self) -> np.ndarray:  # noqa: D102
        return self._known(self._moments.max)

    @property
    def std(self) -> np.ndarray:
        """float64, the standard deviation of the values (ddof 0); NaN where there is none, or it is over 1e154."""
        moments = self._moments
        return self._known(np.sqrt(moments.m2 / np.maximum(moments.count, 1)))

    def quantile(self, q: float | Iterable[float]) -> np.ndarray:
        """The least value that a share `q` of the values does not exceed; NaN where there is no value.

        Exact for images. Else from sketches: the share of values up to it is `q` to within `rank_error`.

        Args:
            q: One or several numbers, 0 … 1.

        Returns:
            float64 of the shape of `mean`, or (Q, *shape) for Q numbers.

        Raises:
            InvalidInputError: Not numbers from 0 to 1.
        """
        shares = _checked_shares(q)
        flat = shares.ravel()
        count = self._moments.count
        found = np.full((len(flat), len(count)), np.nan)
        for component in np.flatnonzero(count).tolist():
            found[:, component] = self._values.quantiles(component, flat)
        found[flat == 0], found[flat == 1] = self.min.ravel(), self.max.ravel()  # of which sketches know less
        return found.reshape(*shares.shape, *self._shape)

    @property
    def rank_error(self) -> float:
        """How far the share of values up to a quantile may be from `q`, with 99 % confidence; 0 where it is exact.

        That is what is proven, for the worst component. Of many episodes the errors mostly cancel each other.
        """
        return self._values.rank_error

    def _known(self, numbers: np.ndarray) -> np.ndarray:
        return np.where(self._moments.count > 0, numbers, np.nan).reshape(self._shape)

    def __repr__(self) -> str:
        total = int(self._moments.count.max(initial=0))
        return f"<salus.FeatureStatistics {self._shape}: {total} {self.over}>"

    # --- how it comes about --------------------------------------------------------------------------------------

    def take_rows(self, rows: np.ndarray) -> None:
        """Take in values (n, size): n of each component. Used by `EpisodeStatistics`."""
        if not len(rows):
            return
        if isinstance(self._values, Histogram):
            for channel in range(rows.shape[1]):
                self._values.add(channel, rows[:, channel])
            return
        finite = np.isfinite(rows)
        everything = bool(finite.all())
        if not everything:
            nan = np.isnan(rows)
            self._nan += nan.sum(axis=0)
            self._infinite += (~finite & ~nan).sum(axis=0)
        for component in range(rows.shape[1]):
            values = rows[:, component]
            self._values.add(component, values if everything else values[finite[:, component]])
        with np.errstate(invalid="ignore"):  # a signalling NaN, which is left out as the others are
            wide = rows.astype(np.float64)
        self._apart = self._apart.merged(_of_rows(wide, finite))

    def merge(self, other: Self) -> None:
        """Take in the statistics of other steps of the same feature."""
        self._apart = self._apart.merged(other._apart)
        self._nan, self._infinite = self._nan + other._nan, self._infinite + other._infinite
        self._values.merge(other._values)  # type: ignore[arg-type]  # of one feature, so of one kind

    # --- in a record ---------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """As it stands in a record (docs/spec.md, section 3.2.1)."""
        numbers = {name: _in_json(values) for name, values in vars(self._moments).items()}
        numbers |= {n: values.tolist() for n, values in self._left_out().items() if values.any()}
        kind = "histogram" if isinstance(self._values, Histogram) else "kll"
        return {"over": self.over, "every": self.every, **numbers, kind: self._values.to_json()}

    def _left_out(self) -> dict[str, np.ndarray]:
        return {"nan": self._nan, "infinite": self._infinite}

    @classmethod
    def from_json(cls, document: Any, feature: Feature) -> Self:
        """Raises ValueError where the document is not that of such a feature."""
        made = cls(feature, k=RECORD_K)
        if not isinstance(document, dict):
            raise ValueError(f"got {type(document).__name__}, expected an object")  # noqa: TRY004
        every = document.get("every")
        if document.get("over") != made.over or type(every) is not int or every < 1:
            raise ValueError(f"over {document.get('over')!r}, every {every!r}, expected {made.over!r} and a number")
        made.every = every
        size = len(made._nan)
        moments = _Moments(*(_numbers(document, name, size) for name in _MOMENTS)).checked()
        made._nan, made._infinite = (_numbers(document, name, size, [0] * size) for name in ("nan", "infinite"))
        if isinstance(made._values, Histogram):
            made._values = Histogram.from_json(document.get("histogram"), size)
            held = made._values.counts.sum(axis=1)
        else:
            made._values = Sketches.from_json(document.get("kll"), size, sketch_dtype(np.dtype(feature.dtype)))
            held = made._values.counts()
            made._apart = moments
        if (held != moments.count).any():
            raise ValueError(f"count {moments.count.tolist()}, but quantiles of {held.tolist()}")
        return made


class EpisodeStatistics:
    """The statistics of one episode, from its steps in batches, in the order of the steps. Bounded memory.

    `add` steps, then put `to_json()` into the record. Moments do not depend on how the steps are batched but for
    rounding; they are the same bits where the batches are.

    Args:
        schema: What it is recorded under.
        names: Features; by default all that have statistics: recorded, and not text.

    Thread-safety: none; one thread adds.
    """

    def __init__(self, schema: Schema, names: Iterable[str] | None = None) -> None:
        self._schema = schema
        wanted = described(schema) if names is None else list(names)
        images = {name: feature for name in wanted if isinstance(feature := schema.features[name], Image)}
        self._specs = {name: next(iter(feature_specs(name, each, schema))) for name, each in images.items()}
        self.features = {name: FeatureStatistics(schema.features[name], k=RECORD_K) for name in wanted}
        self._num_steps = dict.fromkeys(wanted, 0)

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take in consecutive steps.

        Args:
            arrays: Array name to (n, *stored_step_shape), as they go into the shards; of a nullable feature also
                `<name>.valid`, bool (n,). Of features that are left out no step is taken in, others are passed over.
        """
        for name in self.features.keys() & arrays.keys():
            feature, statistics, values = self._schema.features[name], self.features[name], arrays[name]
            valid = arrays[f"{name}.valid"] if feature.nullable else np.ones(len(values), bool)
            if statistics.over == "steps":
                statistics.take_rows(values[valid].reshape(-1, math.prod(feature.shape)))
                continue
            first = self._num_steps[name]
            self._num_steps[name] += len(values)
            for row in np.flatnonzero(valid).tolist():
                self.add_sample(name, self.sample(name, values[row], first + row))

    def sample(self, name: str, value: np.ndarray, step: int) -> np.ndarray:
        """What is looked at of the value that a feature of more than 64 components, or an image, has at a step.

        For who has a large value at hand only for a moment, and adds what this returns by `add_sample`.

        Args:
            name: The feature.
            value: (*stored_step_shape).
            step: 0 … T - 1; at each step other rows or values have their turn.

        Returns:
            (n, C) of an image, else (n, 1); a view. Thread-safety: safe.
        """
        feature, every = self._schema.features[name], self.features[name].every
        if isinstance(feature, Image):
            return _pixels(value, feature, self._specs[name], every, step)
        return value.reshape(-1)[step % every :: every].reshape(-1, 1)

    def add_sample(self, name: str, sample: np.ndarray) -> None:
        """Take in a `sample` of one step; the order of the steps does not matter."""
        self.features[name].take_rows(sample)

    def to_json(self) -> dict[str, Any]:
        """The member `statistics` of a record."""
        return {name: statistics.to_json() for name, statistics in self.features.items()}


def described(schema: Schema) -> list[str]:
    """The features that have statistics: all that are recorded, but text."""
    return [name for name, feature in schema.recorded.items() if feature.kind != "text"]


def from_record(document: Any, schema: Schema, name: str, *, key: str) -> FeatureStatistics | None:
    """The statistics of a feature out of the member `statistics` of a record; None where the record has none of it.

    Raises:
        CorruptDataError: They are not those of such a feature. Names `key`.
    """
    if document is None:
        return None
    if not isinstance(document, dict):
        raise CorruptDataError(f"statistics: got {type(document).__name__}, expected an object; {key}")
    if name not in document:
        return None
    try:
        return FeatureStatistics.from_json(document[name], schema.features[name])
    except ValueError as error:
        raise CorruptDataError(f"statistics of {name!r} do not hold: {error}; {key}") from error


def _over(feature: Feature) -> Over:
    if isinstance(feature, Image):
        return "pixels"
    return "steps" if math.prod(feature.shape) <= MAX_COMPONENTS else "values"


def _shape(feature: Feature) -> tuple[int, ...]:
    if isinstance(feature, Image):
        return (feature.shape[0 if feature.layout == "CHW" else -1],)
    return feature.shape if _over(feature) == "steps" else ()


def _every(feature: Feature) -> int:
    if isinstance(feature, Image):
        return min(feature.height, max(1, feature.height * feature.width // SAMPLED_VALUES))
    return 1 if _over(feature) == "steps" else max(1, math.prod(feature.shape) // SAMPLED_VALUES)


def _pixels(step: np.ndarray, feature: Image, spec: ArraySpec, every: int, phase: int) -> np.ndarray:
    """uint8 (n, C): rows of one stored image, other ones from step to step until all had their turn."""
    if feature.layout == "CHW" and not spec.channels_last:
        step = step.transpose(1, 2, 0)
    return step[phase % every :: every].reshape(-1, step.shape[-1])


def _of_rows(rows: np.ndarray, finite: np.ndarray) -> _Moments:
    """Of each column of float64 (n, size), in two passes."""
    count = finite.sum(axis=0)
    kept = np.where(finite, rows, 0.0)
    least = np.maximum(count, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = kept.sum(axis=0) / least
        apart = np.where(finite, kept - mean, 0.0)
        m2 = (apart**2).sum(axis=0) - apart.sum(axis=0) ** 2 / least  # the second term takes rounding out of the mean
        mean = mean + apart.sum(axis=0) / least
    low, high = np.where(finite, rows, np.inf).min(axis=0), np.where(finite, rows, -np.inf).max(axis=0)
    return _Moments(count, mean, np.maximum(m2, 0.0), low, high)


def _of_histogram(histogram: Histogram) -> _Moments:
    counts = histogram.counts.astype(np.float64)
    levels = np.arange(counts.shape[1], dtype=np.float64)
    count = histogram.counts.sum(axis=1)
    mean = counts @ levels / np.maximum(count, 1)
    m2 = (counts * (levels - mean[:, None]) ** 2).sum(axis=1)
    there = histogram.counts > 0
    low = np.where(there, levels, np.inf).min(axis=1)
    return _Moments(count, mean, m2, low, np.where(there, levels, -np.inf).max(axis=1))


def _in_json(numbers: np.ndarray) -> list[Any]:
    return [number if number is None or math.isfinite(number) else None for number in numbers.tolist()]


def _numbers(document: dict[str, Any], name: str, size: int, absent: list[int] | None = None) -> np.ndarray:
    """float64 or int64 (size,); null is NaN."""
    value = document.get(name, absent)
    if not isinstance(value, list) or len(value) != size:
        raise ValueError(f"{name}: expected a list of {size}")
    if name in _COUNTS:
        whole = {type(item) for item in value} <= {int}
        if not whole or min(value, default=0) < 0 or max(value, default=0) > _MAX_COUNT:
            raise ValueError(f"{name}: expected whole numbers of at least 0")
        return np.array(value, np.int64)
    numbers = [math.nan if item is None else item for item in value]
    if not {type(item) for item in numbers} <= {int, float}:
        raise ValueError(f"{name}: expected numbers")
    try:
        array = np.array(numbers, np.float64)
    except OverflowError as error:
        raise ValueError(f"{name}: {error}") from error
    if np.isinf(array).any():
        raise ValueError(f"{name}: expected finite numbers")
    return array


def _checked_shares(q: Any) -> np.ndarray:
    try:
        shares = np.asarray(q if isinstance(q, float | int) else list(q), np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"quantile: got {q!r}, expected numbers from 0 to 1") from error
    if shares.ndim > 1 or not ((shares >= 0) & (shares <= 1)).all():
        raise InvalidInputError(f"quantile: got {q!r}, expected numbers from 0 to 1")
    return shares
