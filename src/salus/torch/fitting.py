"""Statistics of what a training reads: one pass over the steps, or over the samples where a transform changes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..errors import InvalidInputError
from ..mixture import View
from ..windows import WindowIndex
from .dataset import WindowDataset

QUANTILES = (0.01, 0.99)
_STEPS_AT_ONCE = 65_536
_SAMPLES_AT_ONCE = 256

Locate: TypeAlias = Callable[[int], tuple[str, int]]
"""A row of some values to the uid of its episode, and its step."""


class Values(NamedTuple):
    """Values of one feature.

    Attributes:
        name: The feature, or the name in the sample.
        rows: (n, *shape), what counts.
        locate: Where each row comes from.
    """

    name: str
    rows: np.ndarray
    locate: Locate


def chosen(count: int, num_samples: int | None, seed: int) -> np.ndarray | None:
    """int64 (num_samples,), rising: which of `count` are taken; None for all."""
    if num_samples is None or num_samples >= count:
        return None
    picked = np.random.default_rng(seed).choice(count, num_samples, replace=False, shuffle=False)
    return np.sort(picked)


def values_of_steps(view: View, names: Iterable[str], steps: np.ndarray | None) -> Iterator[Values]:
    """Every step of the view once, or those of the given numbers, counted over all episodes.

    All names are on one clock; steps are those of it. Steps of a nullable feature without a value are left out.
    """
    features = view.schema.features
    masks = {name: f"{name}.valid" for name in names if name in features and features[name].nullable}
    wanted = [*names, *masks.values()]

    def parts() -> Iterator[tuple[Mapping[str, np.ndarray], Locate]]:
        if steps is None:
            for block in view.scan(wanted):
                yield block.arrays, lambda row, block=block: (block.episode.uid, block.start + row)  # type: ignore[misc]
            return
        index = WindowIndex(view.lengths(view.clock_of(wanted[0])))
        for start in range(0, len(steps), _STEPS_AT_ONCE):
            rows, at = index.locate(steps[start : start + _STEPS_AT_ONCE])
            arrays = view.read(dict.fromkeys(wanted, (rows, at)))
            yield arrays, lambda row, rows=rows, at=at: (view[int(rows[row])].uid, int(at[row]))  # type: ignore[misc]

    for arrays, locate in parts():
        for name in names:
            if name in masks:
                kept = np.flatnonzero(arrays[masks[name]])
                yield Values(name, arrays[name][kept], lambda row, k=kept, f=locate: f(int(k[row])))  # type: ignore[misc]
            else:
                yield Values(name, arrays[name], locate)


def values_of_samples(windows: WindowDataset, names: Iterable[str], samples: np.ndarray | None) -> Iterator[Values]:
    """What comes out of the transform, for all samples or the given ones; padded entries left out."""
    numbers = np.arange(len(windows)) if samples is None else samples
    for start in range(0, len(numbers), _SAMPLES_AT_ONCE):
        some = numbers[start : start + _SAMPLES_AT_ONCE]
        batch = windows.__getitems__(some.tolist())
        rows, steps = windows.locate(some)  # not from the samples: a transform may have left out where they are from
        for name in names:
            parts = [_entries(windows, sample, name) for sample in batch]
            ends = np.cumsum([len(part) for part in parts])

            def locate(row: int, rows: Any = rows, steps: Any = steps, ends: np.ndarray = ends) -> tuple[str, int]:
                sample = int(np.searchsorted(ends, row, side="right"))
                return windows.view[int(rows[sample])].uid, int(steps[sample])

            if len({part.shape[1:] for part in parts}) > 1:
                shapes = sorted({part.shape[1:] for part in parts})
                raise InvalidInputError(f"Normalizer: {name!r} has the shapes {shapes}, expected one for all samples")
            yield Values(name, np.concatenate(parts), locate)


def _entries(windows: WindowDataset, sample: Mapping[str, Any], name: str) -> np.ndarray:
    """(n, *shape): the entries of one sample's window that are not padded; what has no window is one entry."""
    if not isinstance(sample, Mapping):
        raise InvalidInputError(f"Normalizer: the transform gives {type(sample).__name__}, expected a dict")
    if name not in sample:
        raise InvalidInputError(f"Normalizer: {name!r} is not in the samples, which have {', '.join(sample)}")
    values = np.asarray(sample[name])
    if values.dtype.kind not in "biuf":
        raise InvalidInputError(f"Normalizer: {name!r} has {values.dtype} values, expected numbers")
    is_pad, valid = sample.get(f"{name}_is_pad"), sample.get(f"{name}.valid")
    window = windows.windows.get(name)
    if window.single if window is not None else is_pad is None:
        values = values[None]
    kept = np.ones(len(values), bool)
    if is_pad is not None:
        kept &= ~np.atleast_1d(is_pad)
    if valid is not None:
        kept &= np.asarray(valid)
    return np.asarray(values[kept])


class Statistics:
    """Center and spread of one feature, from values that come in parts.

    Args:
        name: For errors.
        mode: `"minmax"`, `"quantile"`, `"quantile_clipped"` or `"meanstd"`.
        allow_nan: Pass over NaN and infinity, component by component, instead of refusing them.
        share: Of the rows, what share is kept for quantiles: a random one.
        seed: Of that choice.
    """

    def __init__(self, name: str, mode: str, *, allow_nan: bool = False, share: float = 1.0, seed: int = 0) -> None:
        self._name, self._mode, self._allow_nan = name, mode, allow_nan
        self._share, self._random = share, np.random.default_rng(seed)
        self._count: np.ndarray | int = 0
        self._mean: np.ndarray | float = 0.0
        self._squares: np.ndarray | float = 0.0  # sum of squared distances from the mean
        self._low: np.ndarray | float = np.inf
        self._high: np.ndarray | float = -np.inf
        self._kept: list[np.ndarray] = []

    def add(self, values: Values) -> None:
        """Take in some rows.

        Raises:
            InvalidInputError: NaN or infinity among them. Names episode and step.
        """
        rows = values.rows
        if not len(rows):
            return
        finite = np.isfinite(rows)
        if not self._allow_nan and not finite.all():
            uid, step = values.locate(int(np.argwhere(~finite)[0][0]))
            raise InvalidInputError(
                f"Normalizer: {self._name!r} has NaN or infinity at episode {uid}, step {step}; allow_nan=True passes "
                "over such values"
            )
        if self._mode == "meanstd":
            self._add_moments(rows, finite)
        elif self._mode == "minmax":
            self._low = np.minimum(self._low, np.where(finite, rows, np.inf).min(axis=0))
            self._high = np.maximum(self._high, np.where(finite, rows, -np.inf).max(axis=0))
        else:
            kept = rows if self._share >= 1 else rows[self._random.random(len(rows)) < self._share]
            kept = kept.astype(np.float32 if kept.dtype.itemsize <= 2 else np.promote_types(kept.dtype, np.float32))
            self._kept.append(np.where(np.isfinite(kept), kept, np.nan) if self._allow_nan else kept)
        self._count = self._count + finite.sum(axis=0)

    def _add_moments(self, rows: np.ndarray, finite: np.ndarray) -> None:
        # Each part on its own in two passes, then merged (Chan, Golub, LeVeque 1979): exact to rounding.
        here = finite.sum(axis=0)
        safe = np.where(finite, rows, 0).astype(np.float64)
        mean = safe.sum(axis=0) / np.maximum(here, 1)
        squares = (np.where(finite, safe - mean, 0) ** 2).sum(axis=0)
        total = np.maximum(self._count + here, 1)
        delta = np.where(here > 0, mean - self._mean, 0)
        self._squares = self._squares + squares + delta**2 * self._count * here / total
        self._mean = self._mean + delta * here / total

    def center_and_spread(self) -> tuple[np.ndarray, np.ndarray]:
        """float64, of the shape of a row. The spread of a constant component is 1.

        Raises:
            InvalidInputError: A component has no value at all.
        """
        if not np.all(np.asarray(self._count) > 0):
            raise InvalidInputError(f"Normalizer: {self._name!r} has a component without any value: nothing to fit")
        if self._mode == "meanstd":
            center, spread = np.asarray(self._mean), np.sqrt(np.asarray(self._squares) / self._count)
        else:
            low, high = (self._low, self._high) if self._mode == "minmax" else self._quantiles()
            low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
            center, spread = low + (high - low) / 2, (high - low) / 2
        # What float32 cannot tell from a constant is one: dividing by it would blow up rounding.
        constant = spread <= 2 * np.finfo(np.float32).eps * np.abs(center)
        return center, np.where(constant, 1.0, spread)

    def _quantiles(self) -> tuple[np.ndarray, np.ndarray]:
        values = np.concatenate(self._kept)
        self._kept = []
        if not len(values) or np.isnan(values).all(axis=0).any():
            raise InvalidInputError(f"Normalizer: {self._name!r}: too few values were drawn for quantiles; more bytes")
        of = np.nanquantile if self._allow_nan else np.quantile
        low, high = of(values, QUANTILES, axis=0, overwrite_input=True)
        return low, high
