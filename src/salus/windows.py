"""Windows over steps: which steps of which episode a training sample takes. Pure: no files, no torch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .errors import InvalidInputError


class WindowIndex:
    """All (episode, step) samples of a set of episodes, numbered 0 … N-1 in order of episode and step.

    Args:
        lengths: int (E,), steps of each episode; at least 0.
        valid: For each episode, bool (T,) of the steps that may be sampled, or None for all steps of all episodes.
    """

    def __init__(self, lengths: Iterable[int], valid: Iterable[np.ndarray] | None = None) -> None:
        self.lengths = np.asarray(list(lengths), dtype=np.int64)
        self._steps: np.ndarray | None = None
        counts = self.lengths
        if valid is not None:
            steps = [np.flatnonzero(mask) for mask in valid]
            counts = np.array([len(part) for part in steps], dtype=np.int64)
            self._steps = np.concatenate(steps) if steps else np.empty(0, np.int64)
        self.counts = counts
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def fingerprint(self) -> bytes:
        """Equal for indexes with the same samples."""
        return self.counts.tobytes() + (b"" if self._steps is None else self._steps.tobytes())

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
        return episodes, samples - (self._ends - self.lengths)[episodes]

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


def parse_offsets(feature: str, value: int | Iterable[int]) -> tuple[np.ndarray, bool]:
    """Offsets of one feature as int64 (W,), and whether it was a single number (a sample then has no window axis).

    Raises:
        InvalidInputError: Not whole numbers, or none.
    """
    single = isinstance(value, int | np.integer)
    try:
        offsets = np.atleast_1d(np.asarray(value if single else list(value)))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        offsets = np.empty(0)
    if offsets.ndim != 1 or offsets.size == 0 or not np.issubdtype(offsets.dtype, np.integer):
        raise InvalidInputError(
            f"window of {feature!r}: got {value!r}, expected a whole number or several, such as [-1, 0] or range(16)"
        )
    return offsets.astype(np.int64), bool(single)
