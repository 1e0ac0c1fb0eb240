"""Rules about numbers: NaN, dead, stuck and saturated components, ranges, missing values, padding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..components import ComponentMeasures, component_names, is_label
from ..findings import Hit
from ..measures import DatasetMeasures, EpisodeMeasures
from ..registry import rule

LEAST_STEPS = 10
"""Shorter episodes say too little about what varies."""


@rule(
    severity="warning",
    reason="One NaN in a batch makes the loss NaN, and setting it to 0 teaches a model that nothing happened.",
    advice="Mend the sensor's driver, or mark missing values with Feature(nullable=True); then delete these episodes.",
)
def nan(episode: EpisodeMeasures, *, most_share: float = 0.0, error_share: float = 0.05) -> Iterator[Hit]:
    """NaN and infinite values; in labels NaN means unknown, and only infinity counts."""
    for name, found in episode.components.items():
        bad = found.infinite if is_label(name) else found.nan + found.infinite
        total = found.count + found.nan + found.infinite
        names = component_names(episode.schema.features[name])
        for component in np.flatnonzero(bad > most_share * total).tolist():
            share = float(bad[component] / total[component])
            yield Hit(
                f"{share:.1%} of the values are NaN or infinite",
                share,
                most_share,
                feature=name,
                component=names[component],
                severity="error" if share > error_share else None,
            )
    for name, (finite, num_nan, infinite, _, _) in episode.wide.items():
        share = (num_nan + infinite) / max(finite + num_nan + infinite, 1)
        if share > most_share and not is_label(name):
            yield Hit(
                f"{share:.1%} of the values are NaN or infinite",
                share,
                most_share,
                feature=name,
                severity="error" if share > error_share else None,
            )


@rule(
    per="dataset",
    reason="A sensor that says the same all the time is unplugged, or its driver repeats an old value.",
    advice="Look at the cable and the driver; leave the component out of training, or delete these episodes.",
)
def dead_component(dataset: DatasetMeasures, *, least_changing: float = 0.5) -> Iterator[Hit]:
    """Components that never change in an episode, though they do in others; and those that never change at all.

    Only where the component changes at `least_changing` of the steps of other episodes: a gripper command that stays
    open through an episode is no defect.
    """
    for name in dataset.features:
        if is_label(name):
            continue
        there = [(each, found) for each, found in dataset.of(name) if found.count.max(initial=0) >= LEAST_STEPS]
        if not there:
            continue
        names = component_names(dataset.schema.features[name])
        constant = np.stack([found.is_constant for _, found in there])
        low, high = (_nan_extreme(there, which) for which in ("min", "max"))
        changing = np.stack([found.changes / np.maximum(found.count - 1, 1) for _, found in there])
        whole = constant.all(axis=0) & (low == high)
        if whole.all() and len(there) > 1:
            yield Hit(
                f"no component ever changes, in {len(there)} episodes", 0.0, 0.0, feature=name, severity="warning"
            )
            continue
        for component in range(len(names)):
            flat = constant[:, component]
            if whole[component]:
                yield Hit(
                    f"is {low[component]:.4g} in all {len(there)} episodes",
                    0.0,
                    0.0,
                    feature=name,
                    component=names[component],
                    severity="info",
                    advice="Fine where it only fills the layout; else look at the sensor.",
                )
            elif flat.any() and (usual := float(np.median(changing[~flat, component]))) >= least_changing:
                if flat.mean() > 0.5:
                    yield Hit(
                        f"never changes in {int(flat.sum())} of {len(there)} episodes",
                        float(flat.mean()),
                        0.5,
                        feature=name,
                        component=names[component],
                    )
                    continue
                for place in np.flatnonzero(flat).tolist():
                    each, found = there[place]
                    yield Hit(
                        f"is {found.min[component]:.4g} all the time; in other episodes it changes at {usual:.0%} of "
                        "the steps",
                        0.0,
                        least_changing,
                        feature=name,
                        component=names[component],
                        episode=each.index,
                    )


@rule(
    per="dataset",
    reason="A value that stands still for long while it always changed before comes from a driver that hung.",
    advice="Cut the episode there, or delete it; look at the log of the driver.",
)
def stuck_component(
    dataset: DatasetMeasures, *, least_changing: float = 0.9, least_share: float = 0.3, least_steps: float = 15
) -> Iterator[Hit]:
    """Components that change at nearly every step of the dataset, and then stop for a part of an episode."""
    for name in dataset.features:
        there = [(each, found) for each, found in dataset.of(name) if found.count.max(initial=0) >= LEAST_STEPS]
        if not there or is_label(name):
            continue
        names = component_names(dataset.schema.features[name])
        usual = np.median([found.changes / np.maximum(found.count - 1, 1) for _, found in there], axis=0)
        runs = np.median([found.longest_run / np.maximum(found.count, 1) for _, found in there], axis=0)
        for each, found in there:
            long = found.longest_run >= max(least_steps, least_share * found.num_steps)
            stuck = long & (usual >= least_changing) & (runs < least_share / 2) & (found.changes > 0)
            for component in np.flatnonzero(stuck).tolist():
                start, length = int(found.run_start[component]), int(found.longest_run[component])
                if start + length == found.num_steps and start + 1 >= found.num_steps - each.tail:
                    continue  # padding says so, once for all
                yield Hit(
                    f"stands still for {length} steps from step {start}; else it changes at {usual[component]:.0%} of "
                    "the steps",
                    length / found.num_steps,
                    least_share,
                    feature=name,
                    component=names[component],
                    steps=(start, start + length),
                    episode=each.index,
                )


@rule(
    per="dataset",
    reason="A sensor at its limit no longer says how large the value is, and a clipped command is not what was asked.",
    advice="Widen the range of the sensor or the clipping; a model cannot learn what was cut off.",
)
def saturated(
    dataset: DatasetMeasures, *, most_share: float = 0.3, most_above_usual: float = 0.3, least_distinct: float = 0.2
) -> Iterator[Hit]:
    """Many values exactly at an extreme, of components that are continuous; an extreme of 0 is a floor, not a limit."""
    for name in dataset.features:
        there = [(each, found) for each, found in dataset.of(name) if found.count.max(initial=0) >= LEAST_STEPS]
        if not there or is_label(name):
            continue
        names = component_names(dataset.schema.features[name])
        shares = np.stack([_share_at_limits(found) for _, found in there])
        distinct = np.stack([found.distinct / np.maximum(found.count, 1) for _, found in there])
        usual = np.median(shares, axis=0)
        continuous = np.median(distinct, axis=0) >= least_distinct
        for component in np.flatnonzero(continuous).tolist():
            column = shares[:, component]
            if usual[component] > most_share:
                yield Hit(
                    f"{usual[component]:.0%} of the values of an episode are exactly at its extreme, in the median",
                    float(usual[component]),
                    most_share,
                    feature=name,
                    component=names[component],
                )
                continue
            limit = max(most_share, usual[component] + most_above_usual)
            for place in np.flatnonzero(column > limit).tolist():
                each, found = there[place]
                if found.is_constant[component] or each.tail > most_share * found.num_steps:
                    continue  # dead_component or padding says so
                upper = found.at_max[component] >= found.at_min[component]
                value, word = (found.max, "largest") if upper else (found.min, "least")
                value = value[component]
                yield Hit(
                    f"{column[place]:.0%} of the values are exactly {value:.4g}, the {word}; "
                    f"in other episodes {usual[component]:.0%}",
                    float(column[place]),
                    float(limit),
                    feature=name,
                    component=names[component],
                    episode=each.index,
                )


@rule(
    reason="The schema says which values make sense, such as joint limits; others are wrong units or wrong sensors.",
    advice="Mend the unit or the sensor; or widen Feature(range=...) if these values are right.",
)
def outside_range(episode: EpisodeMeasures, *, most_share: float = 0.0, error_share: float = 0.05) -> Iterator[Hit]:
    """Values outside the declared `range`, by more than 1 % of it."""
    for name, found in episode.components.items():
        feature = episode.schema.features[name]
        outside = found.below + found.above
        names = component_names(feature)
        for component in np.flatnonzero(outside > most_share * np.maximum(found.count, 1)).tolist():
            assert feature.range is not None  # noqa: S101 - for the type checker: else nothing is outside
            share = float(outside[component] / max(found.count[component], 1))
            yield Hit(
                f"{share:.1%} of the values are outside {feature.range[0]:g} … {feature.range[1]:g}: they go from "
                f"{found.min[component]:.4g} to {found.max[component]:.4g}",
                share,
                most_share,
                feature=name,
                component=names[component],
                severity="error" if share > error_share else None,
            )


@rule(
    reason="Steps without a value are left out of training, or padded.",
    advice="Look at what drops them: a slow camera, a queue that was full, a sensor that falls out.",
)
def missing_values(episode: EpisodeMeasures, *, most_share: float = 0.1, least_steps: float = 3) -> Iterator[Hit]:
    """Steps of nullable features that carry no value. One or two are the end of an episode of a simulator."""
    missing = {name: (found.missing, found.num_steps) for name, found in episode.components.items()}
    missing |= {name: (found.missing, found.num_steps) for name, found in episode.images.items()}
    for name, (count, total) in missing.items():
        if count >= least_steps and count > most_share * total:
            share = count / total
            yield Hit(f"{share:.0%} of the steps have no value", share, most_share, feature=name)


@rule(
    reason="The same values in everything until the end are filled up: the length of the episode was guessed.",
    advice="Find the true length, and import again with it: what comes after teaches a model to stand still.",
)
def padding(episode: EpisodeMeasures, *, most_share: float = 0.05, least_steps: float = 8) -> Iterator[Hit]:
    """Steps at the end in which no number changes at all, in no feature that changed before."""
    tail = episode.tail
    share = tail / max(episode.num_steps, 1)
    if tail >= least_steps and share > most_share:
        yield Hit(
            f"nothing changes in the last {tail} steps, in no feature",
            share,
            most_share,
            steps=(episode.num_steps - tail, episode.num_steps),
        )


def _share_at_limits(found: ComponentMeasures) -> np.ndarray:
    """float64 (C,): the larger of the shares at the minimum and at the maximum, of extremes that are not 0."""
    count = np.maximum(found.count, 1)
    low = np.where(found.min == 0, 0.0, found.at_min / count)
    high = np.where(found.max == 0, 0.0, found.at_max / count)
    return np.asarray(np.maximum(low, high))


def _nan_extreme(there: list[tuple[EpisodeMeasures, ComponentMeasures]], which: str) -> np.ndarray:
    values = np.stack([getattr(found, which) for _, found in there])
    known = np.isfinite(values)
    empty = np.inf if which == "min" else -np.inf
    kept = np.where(known, values, empty)
    return np.asarray(kept.min(axis=0) if which == "min" else kept.max(axis=0))
