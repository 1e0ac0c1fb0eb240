"""Rules about whole episodes: unreadable ones, lengths, duplicates, and parts of a split that share episodes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from ..duplicates import groups
from ..findings import Hit
from ..measures import DatasetMeasures
from ..registry import rule


@rule(
    per="dataset",
    severity="error",
    reason="What cannot be read cannot be checked, nor trained on.",
    advice='Run salus verify; .select(status=("committed", "salvaged")) leaves out records that do not hold.',
)
def unreadable(dataset: DatasetMeasures) -> Iterator[Hit]:
    """Episodes whose record or data do not hold."""
    for index, message in dataset.unreadable.items():
        yield Hit(message, episode=index)


@rule(
    per="dataset",
    reason="Episodes that are far longer or shorter than others were not stopped in time, or broke off.",
    advice="Look at them; delete them, or cut what does not belong.",
)
def length_outlier(
    dataset: DatasetMeasures, *, least_deviations: float = 5, least_factor: float = 4, least_episodes: float = 8
) -> Iterator[Hit]:
    """Lengths on a logarithmic scale: the distance from the median in median absolute deviations, and as a factor."""
    if len(dataset.episodes) < least_episodes:
        return
    lengths = np.log([max(each.num_steps, 1) for each in dataset.episodes])
    median = float(np.median(lengths))
    spread = 1.4826 * float(np.median(np.abs(lengths - median)))
    for each, length in zip(dataset.episodes, lengths.tolist(), strict=True):
        factor = float(np.exp(abs(length - median)))
        if factor >= least_factor and abs(length - median) >= least_deviations * spread:
            word = "longer" if length > median else "shorter"
            yield Hit(
                f"{each.num_steps} steps, {factor:.1f} times {word} than the median of {np.exp(median):.0f}",
                float(each.num_steps),
                float(np.exp(median) * least_factor ** (1 if length > median else -1)),
                episode=each.index,
            )


@rule(
    per="dataset",
    severity="info",
    reason="Episodes of one length were padded or cut to it, or the task has a fixed time.",
    advice="Where lengths were guessed, find the true ones: labels and windows at the end depend on them.",
)
def equal_lengths(dataset: DatasetMeasures, *, least_episodes: float = 8) -> Iterator[Hit]:
    """All episodes have the same number of steps."""
    lengths = {each.num_steps for each in dataset.episodes}
    if len(dataset.episodes) >= least_episodes and len(lengths) == 1:
        yield Hit(f"all {len(dataset.episodes)} episodes have {lengths.pop()} steps")


@rule(
    per="dataset",
    reason="An episode that is there twice counts twice, and may stand in training and validation at once.",
    advice="Delete all but one.",
)
def duplicate(
    dataset: DatasetMeasures, *, most_distance: float = 0.01, most_length: float = 0.02, least_steps: float = 5
) -> Iterator[Hit]:
    """Episodes whose states and actions are nearly identical, at 16 times over the episode."""
    for members, distance in groups(dataset.near(most_distance, most_length, least_steps)):
        alike = ", ".join(map(str, members[:10])) + (", …" if len(members) > 10 else "")
        yield Hit(
            f"episodes {alike} are nearly identical: they differ by {distance:.2g} standard deviations",
            distance,
            most_distance,
            episode=members[1],
        )


@rule(
    per="dataset",
    severity="error",
    reason="A model that saw a validation episode in training looks better than it is.",
    advice="Split anew after deleting the duplicates, or put the episodes of a group into one part.",
)
def leakage(
    dataset: DatasetMeasures, *, most_distance: float = 0.01, most_length: float = 0.02, least_steps: float = 5
) -> Iterator[Hit]:
    """Episodes that stand in two parts of the given split, themselves or nearly identical ones."""
    number = {each.uid: each.index for each in dataset.episodes}
    for one, other in combinations(dataset.splits, 2):
        for uid in sorted(dataset.splits[one] & dataset.splits[other]):
            yield Hit(f"the episode is in {one!r} and in {other!r}", 0.0, 0.0, episode=number.get(uid))
    if not dataset.splits:
        return
    uids = {each.index: each.uid for each in dataset.episodes}
    for first, second, distance in dataset.near(most_distance, most_length, least_steps):
        for one, other in combinations(dataset.splits, 2):
            for a, b in ((first, second), (second, first)):
                if uids[a] in dataset.splits[one] and uids[b] in dataset.splits[other]:
                    yield Hit(
                        f"nearly identical: episode {a} in {one!r} and episode {b} in {other!r}",
                        distance,
                        most_distance,
                        episode=b,
                    )
