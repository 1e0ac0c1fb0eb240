"""Matching of times as it is meant, one target at a time: what the fast ways are compared with."""

from __future__ import annotations

from salus.clocks import SLACK_NS


def slow_match(stamps: list[int], target: int, method: str) -> tuple[int, int, float, bool]:
    """One target on one clock, step by step."""
    last = len(stamps) - 1
    first_half = (stamps[1] - stamps[0]) // 2 if last else 0
    last_half = (stamps[last] - stamps[last - 1]) // 2 if last else 0
    is_pad = target < stamps[0] - first_half or target > stamps[last] + last_half
    if method == "nearest":
        step = min(range(last + 1), key=lambda i: (abs(stamps[i] - target), i))
        return step, step, 0.0, is_pad
    slack = SLACK_NS if method == "previous" else 0
    lower = max((i for i in range(last + 1) if stamps[i] <= target + slack), default=0)
    if method == "previous" or lower == last or target <= stamps[lower]:
        return lower, lower, 0.0, is_pad
    weight = (target - stamps[lower]) / (stamps[lower + 1] - stamps[lower])
    return lower, lower + 1, weight, is_pad
