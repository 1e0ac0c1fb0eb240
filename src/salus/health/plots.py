"""The small pictures of findings: a course with the defect marked, or bars. Values are read again, of few episodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from ..errors import CorruptDataError
from ..schema import Image
from ..view import DatasetView
from .components import component_names
from .findings import Finding, Plot
from .lags import REACH
from .measures import DatasetMeasures, EpisodeMeasures

PER_GROUP = 3
"""So many findings of a rule about a feature have a picture."""

WIDTH = 320
"""A picture has at most so many points."""


def with_plots(findings: Iterable[Finding], view: DatasetView, measures: DatasetMeasures) -> tuple[Finding, ...]:
    """The findings, the first ones of each kind with their pictures."""
    drawn: Counter[tuple[str, str | None]] = Counter()
    made = []
    for finding in findings:
        key = (finding.rule, finding.feature)
        plot = _plot(finding, view, measures) if drawn[key] < PER_GROUP else None
        drawn[key] += plot is not None
        made.append(finding if plot is None else replace(finding, plot=plot))
    return tuple(made)


def _plot(finding: Finding, view: DatasetView, measures: DatasetMeasures) -> Plot | None:
    if finding.rule == "length_outlier":
        return _lengths(finding, measures)
    if finding.rule == "action_lag":
        return _correlation(finding, measures)
    by_index = {each.index: each for each in measures.episodes}
    each = by_index.get(-1 if finding.episode is None else finding.episode)
    if each is None:
        return None
    if finding.rule == "action_shift":
        return _shift(each, measures)
    if finding.feature in each.clocks:
        return _intervals(finding, view, each, finding.feature or "")
    if finding.feature in each.images:
        camera = each.images[finding.feature]
        spans = [finding.steps] if finding.steps else []
        return course(camera.brightness, spans, title="brightness of the images, 0–255", every=camera.steps)
    if finding.rule == "padding":
        return _padding(finding, view, each)
    feature = each.schema.features.get(finding.feature or "")
    if feature is None or isinstance(feature, Image) or finding.feature not in each.components:
        return None
    return _component(finding, view, each)


def course(
    values: np.ndarray, spans: Iterable[tuple[int, int]] = (), *, title: str, every: np.ndarray | None = None
) -> Plot:
    """A line through float (n,), with parts marked.

    Args:
        values: One per step.
        spans: (from, to), half-open, in steps.
        title: What is drawn.
        every: int64 (n,), the step of each value, where some steps have none.
    """
    steps = np.arange(len(values)) if every is None else every
    groups = np.array_split(np.arange(len(values)), min(len(values), WIDTH // 2)) if len(values) else []
    drawn: list[float | None] = []
    firsts = []
    for group in groups:
        part = np.asarray(values, np.float64)[group]
        finite = part[np.isfinite(part)]
        # the extremes of each part, in their order: single spikes stay to be seen
        low_first = len(finite) > 1 and finite.argmin() <= finite.argmax()
        pair = (finite.min(), finite.max()) if low_first else (finite.max(), finite.min()) if len(finite) else ()
        points = pair if len(group) > 1 else pair[:1]
        drawn += [float(value) for value in points] or [None]
        firsts += [int(steps[group[0]])] * max(len(points), 1)
    places = np.array(firsts)
    marks = [
        (
            float(np.searchsorted(places, start)),
            float(max(np.searchsorted(places, stop), np.searchsorted(places, start) + 1)),
        )
        for start, stop in spans
    ]
    last = int(steps[-1]) if len(steps) else 0
    return Plot("course", tuple(drawn), tuple(marks), first="step 0", last=f"step {last}", title=title)


def _padding(finding: Finding, view: DatasetView, each: EpisodeMeasures) -> Plot | None:
    """The component that changes at most steps of those that stop."""
    steps = {name: found.changes for name, found in each.components.items() if found.num_steps == each.num_steps}
    name = max(steps, key=lambda feature: int(steps[feature].max(initial=0)))
    component = component_names(each.schema.features[name])[int(steps[name].argmax())]
    return _component(replace(finding, feature=name, component=component), view, each)


def _component(finding: Finding, view: DatasetView, each: EpisodeMeasures) -> Plot | None:
    assert finding.feature is not None  # noqa: S101 - for the type checker: the caller looked
    feature = each.schema.features[finding.feature]
    names = component_names(feature)
    try:
        rows = np.asarray(view[each.index][finding.feature][:], np.float64).reshape(-1, len(names))
    except CorruptDataError:  # it was whole a moment ago; the finding stays, without its picture
        return None
    values = rows[:, names.index(finding.component)] if finding.component in names else rows[:, 0]
    title = f"{finding.component or finding.feature}{f', {feature.unit}' if feature.unit else ''}"
    if finding.feature in each.labels:
        known = np.isfinite(rows)
        values = np.where(known.any(axis=1), np.where(known, rows, -np.inf).max(axis=1), np.nan)
        title = "largest label of each step"
    spans = [finding.steps] if finding.steps else []
    if finding.rule == "nan":
        spans = _stretches(~np.isfinite(values))
    elif finding.rule == "saturated":
        low, high = np.nanmin(values), np.nanmax(values)
        at = values == (high if (values == high).sum() >= (values == low).sum() else low)
        spans = _stretches(at)
    plot = course(values, spans, title=title)
    if finding.rule == "outside_range" and feature.range is not None:
        plot = replace(plot, lines=feature.range)
    return plot


def _stretches(bad: np.ndarray, most: int = 60) -> list[tuple[int, int]]:
    """Where it is True, (from, to), the longest ones."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], bad, [False]]).astype(np.int8)))
    found = sorted(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True), key=lambda span: span[0] - span[1])
    return sorted(found[:most])


def _intervals(finding: Finding, view: DatasetView, each: EpisodeMeasures, clock: str) -> Plot | None:
    if each.clocks[clock].count < 2:
        return None
    try:
        intervals = np.diff(view[each.index].timestamps(clock)) / 1e6
    except CorruptDataError:
        return None
    spans = [(finding.steps[0], finding.steps[1] - 1)] if finding.steps else []
    plot = course(intervals, spans, title="ms to the next step; dashed: declared")
    return replace(plot, lines=(each.clocks[clock].declared_s * 1e3,))


def _lengths(finding: Finding, measures: DatasetMeasures) -> Plot:
    lengths = np.array([each.num_steps for each in measures.episodes], np.float64)
    counts, edges = np.histogram(lengths, bins=min(40, max(5, len(lengths))))
    own = int(np.clip(np.searchsorted(edges, finding.measured or 0.0, side="right") - 1, 0, len(counts) - 1))
    return Plot(
        "bars",
        tuple(float(count) for count in counts),
        ((float(own), float(own + 1)),),
        first=f"{edges[0]:.0f} steps",
        last=f"{edges[-1]:.0f} steps",
        title="episodes by length",
    )


def _correlation(finding: Finding, measures: DatasetMeasures) -> Plot | None:
    for pair in measures.lags.pairs():
        if measures.actions[pair.action] == (finding.feature, finding.component or ""):
            return _curve(pair.curve, pair.lag, "correlation with the movement")
    return None


def _shift(each: EpisodeMeasures, measures: DatasetMeasures) -> Plot | None:
    pairs = sorted(measures.lags.pairs(), key=lambda pair: -pair.strength)
    curve = measures.lags.curve_of(each.index, pairs[0]) if pairs else None
    if curve is None or not np.isfinite(curve).any():
        return None
    component = measures.actions[pairs[0].action][1]
    place = int(np.nan_to_num(np.abs(curve)).argmax())
    return _curve(curve, place - REACH, f"correlation of {component}; usual lag {pairs[0].lag:+d}")


def _curve(curve: np.ndarray, lag: int, title: str) -> Plot:
    values = tuple(float(value) if np.isfinite(value) else None for value in curve)
    mark = (float(lag + REACH), float(lag + REACH + 1))
    return Plot("bars", values, (mark,), first=f"lag {-REACH}", last=f"lag +{REACH}", title=title)
