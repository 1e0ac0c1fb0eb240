"""Times on clocks: which step of a recorded clock a time in seconds means. Pure: no files, no torch.

Everything works on whole batches: rows are samples. The stamps of the steps decide, never an index times a rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from .errors import InvalidInputError

METHODS = ("nearest", "previous", "linear")
SLACK_NS = 1000
COMPARED_AT_ONCE = 4096
"""From so many comparisons of stamps and targets in a row on, they are searched for one row at a time."""
MAX_OFFSET_S = 1e8

ReadStamps: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""int64 (B,) episodes and int64 (B, K) steps to their stamps, int64 (B, K) nanoseconds."""


@dataclass(frozen=True)
class Seconds:
    """Window offsets in seconds, found through the stamps of each episode, never through a rate.

    They are looked up on the clock that the feature runs on; so they are the offsets for features on other clocks than
    the steps.

    `{"images": salus.Seconds([-0.1, 0.0]), "actions": salus.Seconds([0.0, 0.5], method="linear")}`: a sample at a step
    with stamp s takes the values at s - 0.1 s, s, and so on. `salus.Seconds(0.5)`, a plain number, gives no window
    axis.

    Outside the episode, the first or last step is held. `<feature>_is_pad` is True there when the time is more than
    half a step away: half of the first interval of the feature's clock in this episode, or of its last. Where that
    clock has no step in the episode, values are 0 and `<feature>_is_pad` is True.

    Attributes:
        offsets: Seconds relative to the sample's step, -1e8 to 1e8.
        method: What is taken where no step has that very stamp.
            `"nearest"`: the step nearest in time, the earlier of two at equal distance. With offsets up to 0 it never
            lies after the sample's step.
            `"previous"`: the last step at or before that time, as a running robot would have it. A step less than 1 µs
            late counts: stamps are whole nanoseconds.
            `"linear"`: interpolated between the two neighbours; only for float features that are not nullable.
        single: Whether the offset was a plain number.

    Raises:
        InvalidInputError: Not finite numbers, none, or an unknown method.
    """

    offsets: tuple[float, ...]
    method: Literal["nearest", "previous", "linear"] = "nearest"
    single: bool = field(init=False, default=False)

    def __init__(
        self, offsets: float | Iterable[float], method: Literal["nearest", "previous", "linear"] = "nearest"
    ) -> None:
        single = isinstance(offsets, int | float | np.number) and not isinstance(offsets, bool)
        try:
            values = np.atleast_1d(np.asarray(offsets if single else list(offsets)))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            values = np.empty(0)
        are_numbers = values.ndim == 1 and values.size and values.dtype.kind in "iuf"
        if not are_numbers or not (np.abs(values.astype(float)) <= MAX_OFFSET_S).all():
            raise InvalidInputError(
                f"Seconds: got {offsets!r}, expected a number of seconds or several, such as [-0.1, 0.0]"
            )
        if method not in METHODS:
            raise InvalidInputError(f"Seconds: method: got {method!r}, expected one of {', '.join(map(repr, METHODS))}")
        object.__setattr__(self, "offsets", tuple(values.astype(float).tolist()))
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "single", single)

    @property
    def offsets_ns(self) -> np.ndarray:
        """int64 (W,), nanoseconds."""
        return np.array([round(offset * 1e9) for offset in self.offsets], dtype=np.int64)


class Matched(NamedTuple):
    """Places on a source clock, for target times (B, W).

    Attributes:
        lower: int64 (B, W), index of the step to take; for `"linear"`, of the one at or before.
        upper: int64 (B, W), for `"linear"` the one after; else the same as `lower`.
        weight: float64 (B, W), 0–1, of `upper`; 0 but for `"linear"`.
        is_pad: bool (B, W), True where the time lies outside the source by more than half a step.
    """

    lower: np.ndarray
    upper: np.ndarray
    weight: np.ndarray
    is_pad: np.ndarray

    def spread(self, rows: np.ndarray, count: int) -> Matched:
        """As rows `rows` of `count`; the others are padded, at step 0."""
        shape = (count, self.lower.shape[1])
        whole = Matched(np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape), np.ones(shape, bool))
        for values, mine in zip(whole, self, strict=True):
            values[rows] = mine
        return whole


def match_times(stamps: np.ndarray, targets: np.ndarray, method: str) -> Matched:
    """Find target times on source clocks, one clock per row.

    Args:
        stamps: int64 (B, K), strictly increasing; a shorter clock repeats its last stamp to the end of its row.
        targets: int64 (B, W), any order.
        method: `"nearest"`, `"previous"` or `"linear"`, as `Seconds` describes them.

    Cost: B × W × K comparisons, or B × W × log K where that is much.
    """
    rows = np.arange(len(stamps))
    final = (stamps < stamps[:, -1:]).sum(axis=1)
    slack = SLACK_NS if method == "previous" else 0
    if targets.shape[1] * stamps.shape[1] <= COMPARED_AT_ONCE:
        not_later = (stamps[:, None, :] <= targets[:, :, None] + slack).sum(axis=2)
    else:
        searched = [np.searchsorted(*row, side="right") for row in zip(stamps, targets + slack, strict=True)]
        not_later = np.array(searched, np.int64).reshape(targets.shape)
    lower = np.clip(not_later - 1, 0, final[:, None])
    upper = np.minimum(lower + 1, final[:, None])
    since = targets - stamps[rows[:, None], lower]
    until = stamps[rows[:, None], upper] - targets
    ends = stamps[rows[:, None], np.stack([final * 0, np.minimum(1, final), np.maximum(final - 1, 0), final], axis=1)]
    start, stop = half_steps(ends)
    is_pad = (targets < start[:, None]) | (targets > stop[:, None])
    weight = np.zeros(targets.shape)
    if method == "nearest":
        lower = np.where(since <= until, lower, upper)
    elif method == "linear":
        between = (since > 0) & (until > 0)
        weight[between] = since[between] / (since + until)[between]
        return Matched(lower, np.where(between, upper, lower), weight, is_pad)
    return Matched(lower, lower, weight, is_pad)


def match_steps(
    windows: Sequence[Seconds],
    episodes: np.ndarray,
    steps: np.ndarray,
    *,
    lengths: np.ndarray,
    periods_ns: np.ndarray,
    read_stamps: ReadStamps,
) -> list[Matched]:
    """The steps that offsets in seconds mean, for samples of many episodes.

    Only stamps around each sample are read. The nominal period guesses where they are; where the guess does not reach
    both sides of the times that are wanted, more are read.

    Args:
        windows: The offsets, at least one window.
        episodes: int64 (B,), passed on to `read_stamps`.
        steps: int64 (B,), the samples.
        lengths: int64 (B,), steps of each sample's episode.
        periods_ns: float64 (B,), nominal nanoseconds from step to step; only decides how much is read.
        read_stamps: Gives the stamps.

    Returns:
        For each window, steps of each sample's episode.
    """
    offsets = np.concatenate([seconds.offsets_ns for seconds in windows])
    current = read_stamps(episodes, steps[:, None])[:, 0]
    low = steps + np.floor(offsets.min() / periods_ns).astype(np.int64)
    high = steps + np.ceil(offsets.max() / periods_ns).astype(np.int64)
    return _match_between(windows, episodes, current, low, high, lengths=lengths, read_stamps=read_stamps)


def match_clock(
    windows: Sequence[Seconds],
    episodes: np.ndarray,
    current: np.ndarray,
    *,
    lengths: np.ndarray,
    periods_ns: np.ndarray,
    read_stamps: ReadStamps,
) -> list[Matched]:
    """The same on another clock than that of the samples, of which only the stamps are known.

    Args:
        windows: The offsets, at least one window.
        episodes: int64 (B,), passed on to `read_stamps`.
        current: int64 (B,), the stamps of the samples.
        lengths: int64 (B,), steps of the clock in each sample's episode, at least 1.
        periods_ns: float64 (B,), nominal nanoseconds from step to step of the clock; only decides how much is read.
        read_stamps: Gives the stamps of the clock.

    Returns:
        For each window, steps of the clock in each sample's episode.
    """
    offsets = np.concatenate([seconds.offsets_ns for seconds in windows])
    low, high = (
        _near(episodes, current + offset, lengths=lengths, periods_ns=periods_ns, read_stamps=read_stamps)
        for offset in (offsets.min(), offsets.max())
    )
    return _match_between(windows, episodes, current, low, high, lengths=lengths, read_stamps=read_stamps)


def _near(
    episodes: np.ndarray, targets: np.ndarray, *, lengths: np.ndarray, periods_ns: np.ndarray, read_stamps: ReadStamps
) -> np.ndarray:
    """Steps about at the targets, int64 (B,): within a few periods, or of two neighbours around a longer gap one.

    A stamp in between is guessed at from those around it, by turns with the middle, so that no gap makes it slow.
    """
    low, high = np.zeros_like(lengths), lengths - 1
    ends = read_stamps(episodes, np.stack([low, high], axis=1))
    before, after = ends[:, 0], ends[:, 1]
    found = np.where(targets >= after, high, low)
    open_rows = np.flatnonzero((before < targets) & (targets < after) & (high - low > 1))
    by_stamps = True
    while len(open_rows):
        first, last, goal = low[open_rows], high[open_rows], targets[open_rows]
        share = (goal - before[open_rows]) / (after[open_rows] - before[open_rows]) if by_stamps else 0.5
        probe = np.clip(first + ((last - first) * share).astype(np.int64), first + 1, last - 1)
        stamps = read_stamps(episodes[open_rows], probe[:, None])[:, 0]
        found[open_rows] = probe
        not_later = stamps <= goal
        low[open_rows], before[open_rows] = np.where(not_later, [probe, stamps], [first, before[open_rows]])
        high[open_rows], after[open_rows] = np.where(not_later, [last, after[open_rows]], [probe, stamps])
        far = (np.abs(stamps - goal) > 2 * periods_ns[open_rows]) & (high[open_rows] - low[open_rows] > 1)
        open_rows, by_stamps = open_rows[far], not by_stamps
    return found


def _match_between(
    windows: Sequence[Seconds],
    episodes: np.ndarray,
    current: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    *,
    lengths: np.ndarray,
    read_stamps: ReadStamps,
) -> list[Matched]:
    """As `match_clock`, with a guess (B,) of where the earliest and the latest of the times are on the clock."""
    offsets = np.concatenate([seconds.offsets_ns for seconds in windows])
    earliest, latest = current + offsets.min(), current + offsets.max() + SLACK_NS
    margin = 2
    while True:
        low = np.clip(first - margin, 0, np.maximum(lengths - 2, 0))
        high = np.clip(last + margin, np.minimum(1, lengths - 1), lengths - 1)
        width = int((high - low).max()) + 1 if len(current) else 1
        block = np.minimum(low[:, None] + np.arange(width), (lengths - 1)[:, None])
        stamps = read_stamps(episodes, block)
        reaches = ((block[:, 0] == 0) | (stamps[:, 0] <= earliest)) & (
            (block[:, -1] == lengths - 1) | (stamps[:, -1] > latest)
        )
        if reaches.all():
            break
        margin *= 4
    found = [match_times(stamps, current[:, None] + seconds.offsets_ns, seconds.method) for seconds in windows]
    return [one._replace(lower=one.lower + low[:, None], upper=one.upper + low[:, None]) for one in found]


def interpolate(lower: np.ndarray, upper: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`lower` and `upper`, floats (B, W, *shape), mixed by `weight` (B, W); where it is 0, `lower` exactly."""
    share = weight.reshape(*weight.shape, *[1] * (lower.ndim - weight.ndim)).astype(lower.dtype)
    # Not lower + share × (upper - lower): that overflows near the ends of the range, and 0 × infinity is no number.
    mixed: np.ndarray = np.where(share > 0, lower * (1 - share) + np.where(share > 0, upper, 0) * share, lower)
    return mixed


def half_steps(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From when to when a clock reaches: half a step before its first stamp, and half a step after its last.

    Args:
        ends: int64 (..., 4): its first two stamps and its last two; a clock of one step gives that four times.
    """
    first, second, before_last, last = np.moveaxis(ends, -1, 0)
    return first - (second - first) // 2, last + (last - before_last) // 2
