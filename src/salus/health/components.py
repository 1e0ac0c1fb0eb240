"""What is measured of the numbers of one feature in one episode, component by component. Pure: no files."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from ..schema import Feature

_LABEL = re.compile(r"(^|[._-])labels?($|[._-])")


@dataclass(frozen=True)
class ComponentMeasures:
    """One feature in one episode. Arrays are (C,), one entry per component, in the order of a flattened step.

    Attributes:
        num_steps: T, on the clock of the feature.
        missing: Steps of a nullable feature without a value; they count nowhere else.
        nan, infinite: int64, values that are not finite.
        count: int64, finite values.
        min, max, mean, std: float64 of the finite values; NaN where there is none.
        at_min, at_max: int64, values that equal the minimum, or the maximum.
        changes: int64, steps whose value differs from the one before.
        distinct: int64, different values.
        longest_run: int64, steps of the longest stretch of one value.
        run_start: int64, the step at which that stretch begins.
        below, above: int64, values outside the declared range by more than 1 % of it.
        tail: Steps at the end at which no component differs from the last step.
    """

    num_steps: int
    missing: int
    nan: np.ndarray
    infinite: np.ndarray
    count: np.ndarray
    min: np.ndarray
    max: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    at_min: np.ndarray
    at_max: np.ndarray
    changes: np.ndarray
    distinct: np.ndarray
    longest_run: np.ndarray
    run_start: np.ndarray
    below: np.ndarray
    above: np.ndarray
    tail: int

    @property
    def is_constant(self) -> np.ndarray:
        """bool (C,): at least two values, all the same."""
        return np.asarray((self.count > 1) & (self.changes == 0))


def measure_components(values: np.ndarray, feature: Feature, valid: np.ndarray | None = None) -> ComponentMeasures:
    """Measure the values of one episode.

    Args:
        values: (T, *shape of a step), numbers or bool.
        feature: What they are.
        valid: bool (T,), the steps that carry a value; None where all do.
    """
    num_steps = len(values)
    kept = values if valid is None else values[valid]
    rows = np.asarray(kept, np.float64).reshape(len(kept), math.prod(feature.shape))
    finite = np.isfinite(rows)
    count = finite.sum(axis=0)
    some = count > 0
    nan = np.isnan(rows).sum(axis=0)
    low = np.where(some, np.where(finite, rows, np.inf).min(axis=0, initial=np.inf), np.nan)
    high = np.where(some, np.where(finite, rows, -np.inf).max(axis=0, initial=-np.inf), np.nan)
    with np.errstate(over="ignore", invalid="ignore"):  # values near the largest float64
        mean = np.where(some, np.where(finite, rows, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)
        apart = np.where(finite, rows - mean, 0.0)
        std = np.where(some, np.sqrt((apart**2).sum(axis=0) / np.maximum(count, 1)), np.nan)
    both = finite[1:] & finite[:-1]
    changed = (rows[1:] != rows[:-1]) | ~both
    runs = np.array([_longest_run(changed[:, c]) for c in range(rows.shape[1])], np.int64).reshape(-1, 2)
    below, above = np.zeros((2, rows.shape[1]), np.int64)
    if feature.range is not None:
        slack = 0.01 * (feature.range[1] - feature.range[0])
        with np.errstate(invalid="ignore"):
            below = (rows < feature.range[0] - slack).sum(axis=0)
            above = (rows > feature.range[1] + slack).sum(axis=0)
    anything = changed.any(axis=1)
    return ComponentMeasures(
        num_steps=num_steps,
        missing=num_steps - len(kept),
        nan=nan,
        infinite=len(rows) - count - nan,
        count=count,
        min=low,
        max=high,
        mean=mean,
        std=std,
        at_min=(rows == low).sum(axis=0),
        at_max=(rows == high).sum(axis=0),
        changes=((rows[1:] != rows[:-1]) & both).sum(axis=0),
        distinct=np.array([len(np.unique(rows[finite[:, c], c])) for c in range(rows.shape[1])], np.int64),
        longest_run=np.minimum(runs[:, 0], len(rows)),
        run_start=runs[:, 1],
        below=below,
        above=above,
        tail=len(rows) - 1 - int(np.flatnonzero(anything)[-1]) if anything.any() else len(rows),
    )


def component_names(feature: Feature) -> list[str]:
    """A name for each component: that of the schema, else its place, `"[3]"`; `""` for a feature that is one number."""
    if feature.shape == ():
        return [""]
    return list(feature.names or (str(list(place)) for place in np.ndindex(feature.shape)))


def is_label(name: str) -> bool:
    """Whether a feature holds labels, by its name: `horizon_labels`, `label`, `failure.labels`."""
    return _LABEL.search(name) is not None


def _longest_run(changed: np.ndarray) -> tuple[int, int]:
    """Length and start of the longest stretch of equal values; changed is bool (T - 1,)."""
    borders = np.concatenate([[0], np.flatnonzero(changed) + 1, [len(changed) + 1]])
    lengths = np.diff(borders)
    place = int(lengths.argmax())
    return int(lengths[place]), int(borders[place])
