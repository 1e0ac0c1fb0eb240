"""Rules about stamps: rate, jitter, gaps, and clocks that do not cover the episode."""

from __future__ import annotations

from collections.abc import Iterator

from ..findings import Hit
from ..measures import DatasetMeasures, EpisodeMeasures
from ..registry import rule

LEAST_STAMPS = 10
"""Fewer say too little about a rate."""


@rule(
    per="dataset",
    severity="info",
    reason="Nominal stamps are made from the declared rate: they cannot show gaps, jitter or a wrong rate.",
    advice="Pass timestamp_ns= when recording, from the clock of the sensor.",
)
def nominal_stamps(dataset: DatasetMeasures) -> Iterator[Hit]:
    """Clocks whose stamps are not measured."""
    for clock in dataset.clocks:
        with_clock = [each for each in dataset.episodes if clock in each.clocks]
        nominal = sum(each.clocks[clock].source == "rate" for each in with_clock)
        if nominal:
            yield Hit(
                f"the stamps of {nominal} of {len(with_clock)} episodes are made from the rate",
                nominal / len(with_clock),
                0.0,
                feature=clock,
            )


@rule(
    reason="Windows in steps and horizons in steps mean other times than the schema says.",
    advice="Declare the rate that the robot has, or use salus.Seconds.",
)
def clock_rate(episode: EpisodeMeasures, *, most_share: float = 0.1) -> Iterator[Hit]:
    """The median interval against the declared rate."""
    for clock, found in episode.clocks.items():
        if found.source == "rate" or found.count < LEAST_STAMPS:
            continue
        off = abs(found.declared_s / found.median_s - 1)
        if off > most_share:
            yield Hit(
                f"runs at {1 / found.median_s:.4g} Hz, declared are {1 / found.declared_s:.4g} Hz",
                off,
                most_share,
                feature=clock,
            )


@rule(
    reason="During a gap the robot moved and nothing was recorded; neighbouring steps are far apart in time.",
    advice="Look at what blocked the loop (disk, camera, garbage collection); cut the episode there, or delete it.",
)
def clock_gap(episode: EpisodeMeasures, *, least_intervals: float = 3, least_s: float = 0.05) -> Iterator[Hit]:
    """The longest interval against the median one."""
    for clock, found in episode.clocks.items():
        limit = max(least_intervals * found.median_s, least_s)
        if found.source != "rate" and found.count >= LEAST_STAMPS and found.longest_s > limit:
            more = f"; {found.gaps - 1} more gaps" if found.gaps > 1 else ""
            yield Hit(
                f"{found.longest_s * 1e3:.0f} ms after step {found.longest_step} without a step, where "
                f"{found.median_s * 1e3:.4g} ms are usual{more}",
                found.longest_s,
                limit,
                feature=clock,
                steps=(found.longest_step, found.longest_step + 2),
            )


@rule(
    reason="Steps that are unevenly apart make velocities and windows in steps noisy.",
    advice="Use the stamps of the sensor, not of its arrival, or a real-time loop; salus.Seconds reads by time.",
)
def clock_jitter(episode: EpisodeMeasures, *, most_share: float = 0.5) -> Iterator[Hit]:
    """The spread of the intervals, from their 10 % to their 90 % quantile, over the median."""
    for clock, found in episode.clocks.items():
        if found.source == "rate" or found.count < LEAST_STAMPS:
            continue
        share = found.spread_s / found.median_s
        if share > most_share:
            yield Hit(
                f"intervals differ by {found.spread_s * 1e3:.3g} ms around {found.median_s * 1e3:.3g} ms",
                share,
                most_share,
                feature=clock,
            )


@rule(
    reason="Where a clock has no stamps, windows of its features are padded, or nothing can be interpolated.",
    advice="Start the stream before the first step, and stop it after the last.",
)
def clock_coverage(episode: EpisodeMeasures, *, most_s: float = 0.2) -> Iterator[Hit]:
    """Clocks that begin after the first step, or end before the last."""
    step = episode.clocks.get("step")
    for clock, found in episode.clocks.items():
        if step is None or clock == "step":
            continue
        if found.count == 0:
            yield Hit("has no stamps in the episode", feature=clock)
            continue
        late, early = (found.first_ns - step.first_ns) / 1e9, (step.last_ns - found.last_ns) / 1e9
        if max(late, early) > most_s:
            what = (
                f"begins {late:.3g} s after the first step" if late >= early else f"ends {early:.3g} s before the last"
            )
            yield Hit(what, max(late, early), most_s, feature=clock)
