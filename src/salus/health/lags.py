"""How many steps after an action the states move: the cross-correlation of action components with state components."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

REACH = 10
"""Lags from -10 to 10 steps are looked at."""

FIRST_EPISODES = 64
"""The pairs of components are chosen from so many episodes; of later ones only these pairs are kept."""

MOST_SHIFT = 6
"""Shifts of an episode against the others of up to so many steps are tried."""

LEAST_STEPS = 3 * REACH
"""Shorter episodes say nothing about lags."""

_ACTION = re.compile(r"(^|[._-])(actions?|commands?|ctrl|controls?)($|[._-])")
_STATE = re.compile(r"(^|[._-])(states?|qpos|joints?|proprio\w*|pose|position|positions)($|[._-])")


def is_action(name: str) -> bool:
    """Whether a feature holds actions, by its name."""
    return _ACTION.search(name) is not None


def is_state(name: str) -> bool:
    """Whether a feature holds states, by its name."""
    return _STATE.search(name) is not None and not is_action(name)


def correlations(actions: np.ndarray, states: np.ndarray) -> np.ndarray | None:
    """How actions and the changes of states go together, at every lag.

    Args:
        actions: float64 (T, A).
        states: float64 (T, S).

    Returns:
        float32 (2, A, S, 21), -1 … 1: the correlation of the action (0), or of its change (1), at step t with the
        change of the state from t + lag - 1 to t + lag. At lag 1 the state moves between this step and the next. NaN
        for what does not vary. None for episodes that are too short.
    """
    if len(actions) < LEAST_STEPS + 1:
        return None
    moved = np.diff(states, axis=0)
    sources = (actions[1:], np.diff(actions, axis=0))
    inner = slice(REACH, len(moved) - REACH)
    found = np.full((2, actions.shape[1], states.shape[1], 2 * REACH + 1), np.nan, np.float32)
    for mode, source in enumerate(sources):
        mine = _normalised(source[inner])
        for place in range(2 * REACH + 1):
            found[mode, :, :, place] = mine.T @ _normalised(moved[place : place + len(mine)])
    return found


@dataclass(frozen=True)
class Pair:
    """The state component that an action component goes with best, over all episodes.

    Attributes:
        action, state: Their numbers.
        mode: 0 where the action itself goes with the movement, 1 where its change does.
        curve: float64 (21,), the mean correlation at the lags -10 … 10.
        strength: The largest absolute value of the curve.
        lag: That of the largest correlation, in the median over the episodes.
        num_steps: Steps that it comes from.
    """

    action: int
    state: int
    mode: int
    curve: np.ndarray
    strength: float
    lag: int
    num_steps: int

    @property
    def sign(self) -> float:
        """Of the correlation at the lag, 1 or -1."""
        return float(np.sign(self.curve[self.lag + REACH]))


@dataclass(frozen=True)
class Shift:
    """How an episode lies against the others.

    Attributes:
        shift: Steps by which its lag is longer than usual; negative where its actions come late.
        gain: Of what the usual lag leaves unexplained of the movement, the share that this shift explains, 0 … 1.
        fit: The correlation at this shift, root mean square over the pairs, 0 … 1.
    """

    shift: int
    gain: float
    fit: float


class Lags:
    """Gathers the correlations of episodes. Takes them in their order; memory grows by some bytes per episode."""

    def __init__(self) -> None:
        self._first: list[tuple[int, int, np.ndarray]] = []
        self._chosen: list[tuple[int, int, int]] | None = None
        self._curves: dict[int, np.ndarray] = {}
        self._num_steps: dict[int, int] = {}

    def add(self, episode: int, num_steps: int, found: np.ndarray) -> None:
        """Take in the `correlations` of an episode."""
        if self._chosen is None:
            self._first.append((episode, num_steps, found))
            if len(self._first) == FIRST_EPISODES:
                self._choose()
        elif found.shape[1] == len(self._chosen):
            self._keep(episode, num_steps, found)

    def _choose(self) -> None:
        shape = self._first[0][2].shape
        alike = [(weight, found) for _, weight, found in self._first if found.shape == shape]
        weights = np.array([weight for weight, _ in alike], np.float64).reshape(-1, 1, 1, 1, 1)
        mean = _mean(np.stack([found for _, found in alike]), weights)
        self._chosen = []
        for action in range(shape[1]):
            strengths = np.abs(np.nan_to_num(mean[:, action])).max(axis=-1)
            mode, state = np.unravel_index(int(strengths.argmax()), strengths.shape)
            self._chosen.append((action, int(state), int(mode)))
        for episode, num_steps, found in self._first:
            if found.shape == shape:
                self._keep(episode, num_steps, found)
        self._first = []

    def _keep(self, episode: int, num_steps: int, found: np.ndarray) -> None:
        assert self._chosen is not None  # noqa: S101 - for the type checker
        self._curves[episode] = np.stack([found[mode, action, state] for action, state, mode in self._chosen])
        self._num_steps[episode] = num_steps

    def pairs(self) -> list[Pair]:
        """One for each action component that varies together with anything; call it after the last `add`."""
        if self._chosen is None and self._first:
            self._choose()
        if not self._curves or self._chosen is None:
            return []
        stacked = np.stack(list(self._curves.values()))
        weights = np.array(list(self._num_steps.values()), np.float64).reshape(-1, 1, 1)
        mean = _mean(stacked, weights)
        pairs = []
        for place, ((action, state, mode), curve) in enumerate(zip(self._chosen, mean, strict=True)):
            if not np.isfinite(curve).all():
                continue
            # The median over the episodes: one that is shifted does not move it.
            sizes = np.abs(np.nan_to_num(stacked[:, place]))
            peaks = sizes.argmax(axis=1)[sizes.max(axis=1) > 0]
            usual = int(np.median(peaks))
            strength = float(abs(curve).max())
            pairs.append(Pair(action, state, mode, curve, strength, usual - REACH, int(weights.sum())))
        return pairs

    def shift_of(self, episode: int, pairs: list[Pair]) -> Shift | None:
        """By how many steps the lag of an episode is longer than that of all together.

        All pairs are shifted together, and the shift wins that leaves the least of the movement unexplained: the sum of
        log(1 - r²) over the pairs. A sharp peak counts more than the broad shoulders that slow movements have.
        None where the episode has no curves.
        """
        curves = self._curves.get(episode)
        if curves is None:
            return None
        scores, fits = {}, {}
        for shift in sorted(range(-MOST_SHIFT, MOST_SHIFT + 1), key=abs):
            places = [min(max(pair.lag + shift + REACH, 0), 2 * REACH) for pair in pairs]
            found = np.nan_to_num(curves[[pair.action for pair in pairs], places].astype(np.float64))
            same = np.where(found * [pair.sign for pair in pairs] > 0, found, 0.0)
            scores[shift] = float(np.log(1 - np.minimum(same**2, 0.9999)).sum())
            fits[shift] = float(np.sqrt((same**2).mean()))
        best = min(scores, key=lambda shift: scores[shift])
        return Shift(best, 1 - float(np.exp(scores[best] - scores[0])), fits[best])

    def curve_of(self, episode: int, pair: Pair) -> np.ndarray | None:
        """float32 (21,): the correlations of a pair in one episode."""
        curves = self._curves.get(episode)
        return None if curves is None else curves[pair.action]  # a pair was chosen for each, in their order

    @property
    def episodes(self) -> list[int]:
        """The episodes that were long enough."""
        return list(self._curves)


def _normalised(columns: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and norm 1, so that products are correlations; NaN where nothing varies."""
    apart = columns - columns.mean(axis=0)
    norm = np.linalg.norm(apart, axis=0)
    spread = norm / np.sqrt(len(columns))
    return np.asarray(apart / np.where(spread > 1e-9 * (1 + np.abs(columns).max(axis=0)), norm, np.nan))


def _mean(stacked: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted mean over the first axis, of what is not NaN; NaN where nothing is."""
    known = np.isfinite(stacked)
    weight = (known * weights).sum(axis=0)
    total = (np.where(known, stacked, 0.0) * weights).sum(axis=0)
    return np.asarray(np.where(weight > 0, total / np.maximum(weight, 1e-300), np.nan))
