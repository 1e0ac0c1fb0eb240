"""The check itself: one pass over the episodes, in parallel, then the rules about all of them together."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..episode import Episode
from ..errors import CorruptDataError, InvalidInputError
from ..gather import default_threads
from ..labels import horizon_labels
from ..mixture import ConcatView
from ..opening import open
from ..readahead import read_ahead
from ..schema import STEP, Feature, Image
from ..statistics import MAX_COMPONENTS
from ..view import DatasetView
from .cameras import ImageMeter
from .components import component_names, is_label, measure_components
from .duplicates import signature
from .findings import Finding, HealthReport, Hit, worst_first
from .lags import Lags, correlations, is_action, is_state
from .measures import DatasetMeasures, EpisodeMeasures, LabelMeasures, measure_clock
from .plots import with_plots
from .registry import Rule, chosen

PIECE_BYTES = 2**25
"""Images are read in pieces of about so many bytes."""

AHEAD_BYTES = 2**29
"""What all episodes at work may take together; one is always at work."""


@dataclass
class _Looked:
    """What one job gives back."""

    measures: EpisodeMeasures | None
    hits: list[tuple[Rule, Hit]]
    correlations: np.ndarray | None = None
    problem: str = ""


def check(
    view: DatasetView | str | os.PathLike[str],
    *,
    rules: Mapping[str, Any] | None = None,
    threads: int | None = None,
    splits: Mapping[str, DatasetView] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> HealthReport:
    """Look for values that are not as they should be: NaN, dead sensors, frozen cameras, gaps, wrong labels, ….

    Whether the bytes are whole is another question, which `salus.verify` answers.

    Args:
        view: A dataset, a view of it, or the path of one.
        rules: Changes by name of a rule: `False` leaves it out; a mapping sets thresholds, and `"severity"`:
            `{"length_outlier": False, "clock_gap": {"least_s": 0.2}}`. `salus.health.rules()` has them all.
        threads: Threads that read and measure; by default one per core, at most 8.
        splits: Parts that must not share episodes, by name: `{"train": train, "val": val}`.
        on_progress: Is called with the number of episodes that are done, and of all.

    Returns:
        What was found. Episodes that cannot be read are found, too, by the rule `unreadable`.

    Raises:
        NotFoundError: Nothing is at the path, or no such rule.
        InvalidInputError: No such threshold, or a wrong argument, such as what `salus.concat` makes: check its parts.
        FormatError: Not a dataset.

    Cost: one pass over all values. Memory grows with the longest episode (its numbers; images are read in pieces), and
    by some kilobytes per episode.
    """
    started = time.monotonic()
    selected = chosen(rules)
    if threads is not None and (isinstance(threads, bool) or threads < 1):
        raise InvalidInputError(f"check: threads: got {threads}, expected at least 1")
    if isinstance(view, ConcatView):
        raise InvalidInputError(
            f"check: got {type(view).__name__} of {len(view.parts)} datasets, expected one dataset, a view of it, or a "
            f"path: rules compare the episodes of one recording with each other; check each of its `parts`; {view.url}"
        )
    if not isinstance(view, DatasetView):
        view = open(os.fspath(view))
    parts = {name: frozenset(part.episodes["uid"]) for name, part in (splits or {}).items()}
    findings: list[Finding] = []
    episodes: list[EpisodeMeasures] = []
    problems: dict[int, str] = {}
    lags, uids = Lags(), view.episodes["uid"]
    per_episode = [rule for rule in selected if rule.per == "episode"]
    for index, looked in enumerate(_look_at_all(view, per_episode, threads or default_threads())):
        if looked.measures is None:
            problems[index] = looked.problem
        else:
            episodes.append(looked.measures)
            if looked.correlations is not None:
                lags.add(index, looked.measures.num_steps, looked.correlations)
        findings += [_finding(rule, hit, uids, index) for rule, hit in looked.hits]
        if on_progress is not None:
            on_progress(index + 1, len(view))
    measures = DatasetMeasures(
        schema=view.schema,
        episodes=episodes,
        lags=lags,
        actions=_components(view, is_action),
        states=_components(view, is_state),
        splits=parts,
        unreadable=problems,
    )
    for rule in selected:
        if rule.per == "dataset":
            findings += [_finding(rule, hit, uids, None) for hit in rule.hits(measures)]
    order = {rule.name: place for place, rule in enumerate(selected)}
    findings.sort(key=lambda finding: order[finding.rule])
    return HealthReport(
        url=view.url,
        findings=with_plots(worst_first(findings), view, measures),
        num_episodes=len(view),
        num_steps=sum(each.num_steps for each in episodes),
        num_images=sum(camera.count for each in episodes for camera in each.images.values()),
        features=tuple(name for name, feature in view.schema.recorded.items() if feature.kind != "text"),
        rules={rule.name: dict(rule.thresholds) for rule in selected},
        duration_s=time.monotonic() - started,
    )


def _finding(rule: Rule, hit: Hit, uids: list[str], index: int | None) -> Finding:
    episode = hit.episode if index is None else index
    return Finding(
        rule=rule.name,
        severity=hit.severity or rule.severity,
        message=hit.message,
        reason=rule.reason,
        advice=hit.advice or rule.advice,
        feature=hit.feature,
        component=hit.component or None,
        episode=episode,
        uid=None if episode is None else uids[episode],
        measured=None if hit.measured is None else float(hit.measured),
        threshold=None if hit.threshold is None else float(hit.threshold),
        steps=hit.steps,
    )


def _look_at_all(view: DatasetView, rules: list[Rule], threads: int) -> Iterator[_Looked]:
    lengths = {clock: view.lengths(clock) for clock in (STEP, *view.schema.clocks)}

    def jobs() -> Iterable[tuple[int, Callable[[], _Looked]]]:
        for row in range(len(view)):
            small = sum(
                # as stored, as float64, and what is made of it
                int(lengths[feature.clock][row]) * math.prod(feature.shape) * 40
                for feature in view.schema.recorded.values()
                if _is_small(feature)
            )
            yield small + 2 * PIECE_BYTES, functools.partial(_look, view, row, rules)

    return read_ahead(jobs(), threads=threads, budget=AHEAD_BYTES)


def _look(view: DatasetView, row: int, rules: list[Rule]) -> _Looked:
    """Measure one episode, and apply the rules about single ones."""
    try:
        episode = view[row]
        measures = _measure(view, row, episode)
    except CorruptDataError as error:
        return _Looked(None, [], problem=str(error))
    hits = [(rule, hit) for rule in rules for hit in rule.hits(measures)]
    padding = measures.tail if measures.tail > 1 else 0
    moving = slice(0, measures.num_steps - padding)  # what pads an episode says nothing about lags
    actions, states = (_joined(measures, chosen_by)[moving] for chosen_by in (is_action, is_state))
    found = correlations(actions, states) if actions.shape[1] and states.shape[1] else None
    both = np.concatenate([states, actions], axis=1)
    numbers = both if both.shape[1] else _joined(measures, lambda name: not is_label(name))
    done = replace(measures, arrays={}, signature=signature(numbers) if len(numbers) else measures.signature)
    return _Looked(done, hits, found)


def _measure(view: DatasetView, row: int, episode: Episode) -> EpisodeMeasures:
    schema = episode.schema
    sources = episode.timestamp_sources
    measures = EpisodeMeasures(
        index=row,
        uid=episode.uid,
        schema=schema,
        outcome=episode.outcome,
        num_steps=episode.num_steps,
        dropped_images=episode.dropped_images,
    )
    for clock in (STEP, *schema.clocks):
        stamps, rate = episode.timestamps(clock), schema.rate_of(clock)
        measures.clocks[clock] = measure_clock(stamps, source=sources.get(clock, "caller"), rate_hz=rate)
    for name, feature in schema.recorded.items():
        length = episode.num_steps if feature.clock == STEP else episode.clock_lengths[feature.clock]
        if isinstance(feature, Image):
            meter = ImageMeter(channels_first=feature.layout == "CHW")
            size = max(1, PIECE_BYTES // feature.step_bytes)
            for start in range(0, length, size):
                meter.add(*_read(view, row, name, feature, start, min(start + size, length)))
            measures.images[name] = meter.measures()
        elif _is_small(feature):
            values, valid = _read(view, row, name, feature, 0, length)
            measures.arrays[name] = values
            measures.components[name] = measure_components(values, feature, valid)
            if is_label(name) and feature.clock == STEP:
                measures.labels[name] = _labels(episode, values, measures)
        elif feature.kind != "text":
            measures.wide[name] = _wide(episode, name)
    return measures


def _read(
    view: DatasetView, row: int, name: str, feature: Feature, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray | None]:
    steps = np.arange(start, stop, dtype=np.int64)
    view.prefetch(name, row, start, stop)
    names = [name, f"{name}.valid"] if feature.nullable else [name]
    found = view.read({each: (np.full(len(steps), row), steps) for each in names}, parallel=False)
    return found[name], found[names[1]].astype(bool) if feature.nullable else None


def _wide(episode: Episode, name: str) -> tuple[float, float, float, float, float]:
    """Out of the record, as such features are large; where that does not hold, the values themselves."""
    try:
        found = episode.read_statistics(name)
    except CorruptDataError:  # the record's statistics only: reading the values shows whether they hold
        found = episode.read_statistics(name, recompute=True)
    numbers = (found.count, found.num_nan, found.num_infinite, found.min, found.max)
    finite, nan, infinite, low, high = (float(number) for number in numbers)
    return finite, nan, infinite, low, high


def _labels(episode: Episode, values: np.ndarray, measures: EpisodeMeasures) -> LabelMeasures:
    rows = np.asarray(values, np.float64).reshape(len(values), -1)
    known, positive = ~np.isnan(rows), rows > 0.5
    schema, compared = episode.schema, np.zeros_like(known)
    differing = compared
    inside = episode.outcome.step is None or episode.outcome.step < len(rows)
    if len(schema.label_horizons) and rows.shape[1] == math.prod(schema.label_shape) and inside:
        stamps = episode.timestamp_ns if schema.label_horizons.unit == "s" else None
        expected, mask = horizon_labels(
            measures.num_steps, episode.outcome, schema.label_horizons, schema.failure_kinds, timestamp_ns=stamps
        )
        compared = mask.reshape(rows.shape) & known
        differing = compared & (positive != (expected.reshape(rows.shape) > 0.5))
    at = np.flatnonzero(differing.any(axis=1))
    return LabelMeasures(
        count=int(known.sum()),
        positive=int((positive & known).sum()),
        compared=int(compared.sum()),
        differing=int(differing.sum()),
        first_differing=int(at[0]) if len(at) else -1,
    )


def _is_small(feature: Feature) -> bool:
    return feature.kind == "array" and math.prod(feature.shape) <= MAX_COMPONENTS


def _joined(measures: EpisodeMeasures, wanted: Callable[[str], bool]) -> np.ndarray:
    """float64 (T, C): the components of the wanted features that run on the steps; what is not finite is 0."""
    columns = [
        np.nan_to_num(np.asarray(values, np.float64), posinf=0.0, neginf=0.0).reshape(
            len(values), math.prod(values.shape[1:])
        )
        for name, values in measures.arrays.items()
        if wanted(name) and measures.schema.features[name].clock == STEP
    ]
    return np.concatenate(columns, axis=1) if columns else np.zeros((measures.num_steps, 0))


def _components(view: DatasetView, wanted: Callable[[str], bool]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (name, component)
        for name, feature in view.schema.recorded.items()
        if wanted(name) and _is_small(feature) and feature.clock == STEP
        for component in component_names(feature)
    )
