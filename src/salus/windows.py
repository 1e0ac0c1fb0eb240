"""Windows over steps: which steps of which episode a training sample takes. Pure: no files, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .clocks import Seconds, half_steps
from .errors import InvalidInputError


@dataclass(frozen=True)
class Window:
    """What a sample takes of one feature.

    Attributes:
        offsets: int64 (W,), steps; for a window in seconds, nanoseconds.
        single: Given as a plain number: a sample then has no window axis.
        seconds: The window in seconds, or None.
    """

    offsets: np.ndarray
    single: bool
    seconds: Seconds | None = None

    @classmethod
    def parse(cls, feature: str, value: int | Iterable[int] | Seconds) -> Window:
        """The window that a user asked for.

        Raises:
            InvalidInputError: Not whole numbers, or none.
        """
        if isinstance(value, Seconds):
            return cls(value.offsets_ns, value.single, value)
        single = isinstance(value, int | np.integer)
        try:
            offsets = np.atleast_1d(np.asarray(value if single else list(value)))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            offsets = np.empty(0)
        if offsets.ndim != 1 or offsets.size == 0 or not np.issubdtype(offsets.dtype, np.integer):
            raise InvalidInputError(
                f"window of {feature!r}: got {value!r}, expected whole steps, such as 0, [-1, 0] or range(16), or "
                "seconds, such as salus.Seconds([-0.1, 0.0])"
            )
        return cls(offsets.astype(np.int64), bool(single))

    def reach(self, pad_before: int | None, pad_after: int | None) -> tuple[int | None, int | None]:
        """The offsets that must lie inside the episode, lowest and highest, when so many may be padded on each side.

        None where any number may be.
        """
        ordered = np.sort(self.offsets)
        lowest = None if pad_before is None or pad_before >= len(ordered) else int(ordered[pad_before])
        highest = None if pad_after is None or pad_after >= len(ordered) else int(ordered[-1 - pad_after])
        return lowest, highest

    def __str__(self) -> str:
        return str(self.offsets.tolist()) if self.seconds is None else f"{list(self.seconds.offsets)} s"


class Bounds(NamedTuple):
    """The first and the last step of each episode that may be a sample, both int64 (E,); none where last < first."""

    first: np.ndarray
    last: np.ndarray

    def within(self, other: Bounds) -> Bounds:
        """What lies within both."""
        return Bounds(np.maximum(self.first, other.first), np.minimum(self.last, other.last))


def step_bounds(
    windows: Iterable[Window], lengths: np.ndarray, pad_before: int | None, pad_after: int | None
) -> Bounds:
    """The samples whose windows in steps are padded so often at most.

    With offsets -b … a and pads of at most b and a, these are the sequences of Diffusion Policy's sampler, which start
    at `-pad_before` … `T - L + pad_after` (L = b + a + 1), each at its step 0.

    Args:
        windows: Those in seconds are passed over.
        lengths: int64 (E,), steps of each episode.
        pad_before: Entries of a window that may lie before the episode; None for any number.
        pad_after: The same, after it.
    """
    first, last = np.zeros_like(lengths), lengths - 1
    for window in windows:
        if window.seconds is None:
            lowest, highest = window.reach(pad_before, pad_after)
            first = first if lowest is None else np.maximum(first, -lowest)
            last = last if highest is None else np.minimum(last, lengths - 1 - highest)
    return Bounds(first, last)


def time_bounds(
    windows: Sequence[tuple[Window, np.ndarray | None]],
    stamps: np.ndarray,
    pad_before: int | None,
    pad_after: int | None,
) -> tuple[int, int]:
    """The same for windows in seconds, of one episode: its first and last sample.

    Args:
        windows: With each, the `ends_of` the stamps of its clock, None where that has no step: all of it is padded.
            Those in steps are passed over.
        stamps: int64 (T,), of the steps.
        pad_before: As for `step_bounds`.
        pad_after: As for `step_bounds`.
    """
    first, last = 0, len(stamps) - 1
    if last < 0:
        return first, last
    for window, ends in windows:
        if window.seconds is not None:
            lowest, highest = window.reach(pad_before, pad_after)
            if ends is None:
                last = last if (lowest, highest) == (None, None) else -1
                continue
            start, stop = half_steps(ends)
            if lowest is not None:
                first = max(first, int(np.searchsorted(stamps, start - lowest, side="left")))
            if highest is not None:
                last = min(last, int(np.searchsorted(stamps, stop - highest, side="right")) - 1)
    return first, last


def ends_of(length: int) -> list[int]:
    """The first two steps and the last two of a clock of at least one step; of one step, that four times."""
    last = length - 1
    return [0, min(1, last), max(last - 1, 0), last]


class WindowIndex:
    """All (episode, step) samples of a set of episodes, numbered 0 … N-1 in order of episode and step.

    Args:
        lengths: int (E,), steps of each episode; at least 0.
        valid: For each episode, bool (T,) of the steps that may be sampled, or None for all steps of all episodes.
        bounds: The first and last step of each episode that may be a sample; by default all.
        stride: Of these, every how many is one, counted from the first within the bounds.

    Attributes:
        lengths: int64 (E,), steps of each episode.
        counts: int64 (E,), samples of each episode.

    Cost: a few numbers per episode; with `valid`, one more per sample.
    """

    def __init__(
        self,
        lengths: Iterable[int],
        valid: Iterable[np.ndarray] | None = None,
        *,
        bounds: Bounds | None = None,
        stride: int = 1,
    ) -> None:
        self.lengths = np.asarray(lengths if isinstance(lengths, np.ndarray) else list(lengths), dtype=np.int64)
        everything = Bounds(np.zeros_like(self.lengths), self.lengths - 1)
        first, last = everything if bounds is None else everything.within(bounds)
        last = np.maximum(last, first - 1)  # no sample at all; a slice to a negative end would mean another thing
        counts: np.ndarray = (last - first) // stride + 1
        self._first, self._stride = first, stride
        self._steps: np.ndarray | None = None
        if valid is not None:
            steps = [
                begin + stride * np.flatnonzero(mask[begin : end + 1 : stride])
                for mask, begin, end in zip(valid, first.tolist(), last.tolist(), strict=True)
            ]
            counts = np.array([len(part) for part in steps], dtype=np.int64)
            self._steps = np.concatenate(steps) if steps else np.empty(0, np.int64)
        self.counts: np.ndarray = counts
        self._ends = np.cumsum(counts)
        self._starts = self._ends - counts

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def fingerprint(self) -> bytes:
        """Equal for indexes with the same samples."""
        steps = np.append(self._first, self._stride) if self._steps is None else self._steps
        fingerprint: bytes = self.counts.tobytes() + steps.tobytes()
        return fingerprint

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The episode (position) and step of each sample, both int64 (B,).

        Raises:
            IndexError: A sample is outside 0 … N-1.
        """
        samples = np.asarray(samples, dtype=np.int64)
        outside = samples[(samples < 0) | (samples >= len(self))]
        if len(outside):
            raise IndexError(f"sample {outside[0]}: out of range, there are {len(self)}")
        episodes = np.searchsorted(self._ends, samples, side="right")
        if self._steps is not None:
            return episodes, self._steps[samples]
        return episodes, self._first[episodes] + self._stride * (samples - self._starts[episodes])

    def window(self, episodes: np.ndarray, steps: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The steps `steps + offsets`, held at the episode's first and last step where they would leave it.

        Args:
            episodes: int64 (B,), positions.
            steps: int64 (B,).
            offsets: int64 (W,), relative to the step; 0 is the step itself, -1 the one before.

        Returns:
            int64 (B, W) steps inside the episode; bool (B, W), True where the step was padded.
        """
        wanted = steps[:, None] + offsets[None, :]
        held = np.clip(wanted, 0, self.lengths[episodes][:, None] - 1)
        return held, held != wanted


def check_count(name: str, value: int | None, *, least: int, optional: bool = False) -> None:
    """Raise InvalidInputError unless `value` is a whole number of at least `least` (or None, where it is optional)."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        what = f"a whole number of at least {least}" + (", or None for any number" if optional else "")
        raise InvalidInputError(f"{name}: got {value!r}, expected {what}")
