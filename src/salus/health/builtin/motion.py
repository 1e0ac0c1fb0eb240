"""Rules about actions and states together: whether they have to do with each other, and how far apart they are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..findings import Hit
from ..lags import Pair
from ..measures import DatasetMeasures
from ..registry import rule


@rule(
    per="dataset",
    reason="An action that moves nothing is not the one that the robot carried out, or the streams were mixed up.",
    advice="Look at which topic was recorded as action, and whether the components are in the order of the states.",
)
def action_without_effect(
    dataset: DatasetMeasures, *, least_correlation: float = 0.15, least_steps: float = 1000
) -> Iterator[Hit]:
    """Action components that vary and go together with no state at any lag of up to 10 steps.

    By chance the largest of many correlations of n steps is up to about 5 / √n, which is 0.15 for 1,000 steps.
    """
    for pair in dataset.lags.pairs():
        if pair.num_steps >= least_steps and pair.strength < least_correlation:
            feature, component = dataset.actions[pair.action]
            yield Hit(
                f"goes together with no state at any lag: the largest correlation is {pair.strength:.2f}",
                pair.strength,
                least_correlation,
                feature=feature,
                component=component,
            )


@rule(
    per="dataset",
    severity="info",
    reason="The delay between action and movement belongs to the robot; a policy has to bridge it.",
    advice="Compare it with what the robot should have.",
)
def action_lag(
    dataset: DatasetMeasures, *, least_correlation: float = 0.5, least_lag: float = 0, least_steps: float = 200
) -> Iterator[Hit]:
    """The lag at which each action goes together best with the movement; a warning where the state moves first."""
    for pair in dataset.lags.pairs():
        if pair.num_steps < least_steps or pair.strength < least_correlation:
            continue
        feature, component = dataset.actions[pair.action]
        state = ": ".join(dataset.states[pair.state])
        first = pair.lag < least_lag
        yield Hit(
            f"{state} moves {_lag(pair.lag)} it (correlation {pair.strength:.2f})",
            float(pair.lag),
            least_lag,
            feature=feature,
            component=component,
            severity="warning" if first else None,
            advice="Look at the stamps: the action was recorded late, or measured instead of sent." if first else None,
        )


@rule(
    per="dataset",
    reason="An episode whose actions are shifted against its states teaches a model the wrong cause.",
    advice="Look at the stamps of both streams in this episode; shift the actions back, or delete it.",
)
def action_shift(
    dataset: DatasetMeasures,
    *,
    least_steps: float = 2,
    least_correlation: float = 0.5,
    least_fit: float = 0.5,
    least_gain: float = 0.1,
) -> Iterator[Hit]:
    """Episodes whose lag differs from that of the dataset."""
    pairs = [pair for pair in dataset.lags.pairs() if pair.strength >= least_correlation]
    episodes = dataset.lags.episodes
    if not pairs or len(episodes) < 3:
        return
    for index in episodes:
        found = dataset.lags.shift_of(index, pairs)
        if found is None or abs(found.shift) < least_steps:
            continue
        if found.fit < least_fit or found.gain < least_gain:
            continue
        word = "later" if found.shift < 0 else "earlier"
        yield Hit(
            f"actions come {abs(found.shift)} steps {word} than in the other episodes: the lag to the states is "
            f"{_usual(pairs) + found.shift:+d}, where {_usual(pairs):+d} is usual",
            float(found.shift),
            least_steps,
            feature=dataset.actions[pairs[0].action][0],
            episode=index,
        )


def _lag(lag: int) -> str:
    if lag == 0:
        return "together with"
    return f"{abs(lag)} step{'s' * (abs(lag) > 1)} {'after' if lag > 0 else 'before'}"


def _usual(pairs: list[Pair]) -> int:
    return int(np.median([pair.lag for pair in pairs]))
