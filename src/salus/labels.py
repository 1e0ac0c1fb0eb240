"""Outcomes and the horizon labels that follow from them. Pure: no files, no torch.

The label rule: 1 at step `t` for horizon `h` when `0 < failure_step - t <= h`. A step whose label cannot be known is
masked, never negative: steps at or after the failure, and the last `h` steps of an episode whose end is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from .errors import InvalidInputError, did_you_mean

Result = Literal["success", "failure", "unknown"]


@dataclass(frozen=True)
class Outcome:
    """How an episode ended.

    Attributes:
        result: `"success"`, `"failure"` or `"unknown"`.
        kind: The kind of failure, one of the schema's `failure_kinds`; None when unknown or no failure.
        step: The step at which the failure happened, 0 … num_steps - 1; None when unknown or no failure.
    """

    result: Result = "unknown"
    kind: str | None = None
    step: int | None = None

    def __post_init__(self) -> None:
        if self.result not in get_args(Result):
            expected = ", ".join(map(repr, get_args(Result)))
            raise InvalidInputError(f"outcome: got {self.result!r}, expected one of {expected}")
        if self.kind is not None and not isinstance(self.kind, str):
            raise InvalidInputError(f"outcome: got a kind of failure {self.kind!r}, expected text")
        if isinstance(self.step, np.integer):
            object.__setattr__(self, "step", int(self.step))
        if self.result != "failure" and (self.kind is not None or self.step is not None):
            raise InvalidInputError(f"outcome: {self.result!r} has neither a failure kind nor a failure step")

    @classmethod
    def of(cls, value: Outcome | str | None) -> Outcome:
        """An outcome from itself, from its result alone, or from None (unknown).

        Raises:
            InvalidInputError: Not a known result.
        """
        if isinstance(value, Outcome):
            return value
        if value is None:
            return cls()
        return cls(value)  # type: ignore[arg-type]  # __post_init__ checks it

    def check(self, *, num_steps: int, kinds: tuple[str, ...]) -> None:
        """Raise InvalidInputError unless kind and step fit an episode of `num_steps` under a schema with `kinds`."""
        if self.kind is not None and self.kind not in kinds:
            expected = (
                f"one of {', '.join(map(repr, kinds))}" if kinds else "none: the schema declares no failure_kinds"
            )
            raise InvalidInputError(f"failure kind: got {self.kind!r}, expected {expected}{_hint(self.kind, kinds)}")
        step = self.step
        if step is not None and (isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < num_steps):
            raise InvalidInputError(f"failure step: got {step!r}, expected 0 .. {num_steps - 1}")

    def to_json(self) -> dict[str, Any]:
        """As it stands in a record."""
        return {"result": self.result, "kind": self.kind, "step": self.step}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Outcome:
        """The outcome of a record; raises KeyError, TypeError or InvalidInputError where it is none."""
        result, kind, step = value["result"], value["kind"], value["step"]
        if not isinstance(kind, str | None) or not (step is None or (type(step) is int and 0 <= step < 2**31)):
            raise TypeError(f"outcome with kind {kind!r} and step {step!r}")
        return cls(result, kind, step)


@dataclass(frozen=True)
class Horizons:
    """How far ahead a failure is to be predicted.

    Attributes:
        values: One number per horizon: whole steps, or seconds.
        unit: `"steps"` or `"s"`.
    """

    values: tuple[float, ...] = ()
    unit: Literal["steps", "s"] = "steps"

    def __post_init__(self) -> None:
        if self.unit not in ("steps", "s"):
            raise InvalidInputError(f"horizons: got unit {self.unit!r}, expected 'steps' or 's'")
        for value in self.values:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if self.unit == "steps" and (not number or value % 1 or not 1 <= value < 2**31):
                raise InvalidInputError(f"horizons: got {value}, expected whole steps of at least 1 (or unit='s')")
            if not number or not 0 < value < 1e9:
                raise InvalidInputError(f"horizons: got {value}, expected a positive number of seconds")

    def __len__(self) -> int:
        return len(self.values)


def horizon_labels(
    num_steps: int,
    outcome: Outcome,
    horizons: Horizons,
    kinds: tuple[str, ...],
    *,
    timestamp_ns: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The labels of one episode, and which of them are known.

    Args:
        num_steps: T, at least 1.
        outcome: How the episode ended.
        horizons: H horizons, in steps or seconds.
        kinds: K failure kinds, in the order of the last axis. Without any, the last axis is 1: "a failure".
        timestamp_ns: int64 (T,), nanoseconds; needed for horizons in seconds only.

    Returns:
        labels, float32 (T, H, max(K, 1)), 0 or 1; and mask, bool of the same shape: True where the label is known.

    Raises:
        InvalidInputError: Horizons in seconds without stamps, or an outcome that does not fit.
    """
    outcome.check(num_steps=num_steps, kinds=kinds)
    if horizons.unit == "steps":
        time = np.arange(num_steps, dtype=np.int64)
        reach = np.array(horizons.values, dtype=np.int64)
    else:
        if timestamp_ns is None:
            raise InvalidInputError("horizons in seconds: needs timestamp_ns, the stamps of the steps")
        time = np.asarray(timestamp_ns, dtype=np.int64)
        reach = np.array([round(value * 1e9) for value in horizons.values], dtype=np.int64)
    shape = (num_steps, len(horizons), max(len(kinds), 1))
    labels, mask = np.zeros(shape, np.float32), np.ones(shape, bool)
    if outcome.result == "unknown":
        mask[:] = (time[-1] - time)[:, None, None] >= reach[None, :, None]
    elif outcome.result == "failure" and outcome.step is None:
        mask[:] = False  # it failed, at a step that nobody named: no label is known
    elif outcome.step is not None:
        before = np.arange(num_steps) < outcome.step
        within = before[:, None] & ((time[outcome.step] - time)[:, None] <= reach)
        mask[:] = before[:, None, None]
        if outcome.kind is not None:
            labels[:, :, kinds.index(outcome.kind)] = within
        elif not kinds:
            labels[:, :, 0] = within
        else:
            mask &= ~within[:, :, None]  # a failure is near, of a kind that nobody named
    return labels, mask


def _hint(kind: Any, kinds: tuple[str, ...]) -> str:
    hint = did_you_mean(str(kind), kinds)
    return hint if "did you mean" in hint else ""
