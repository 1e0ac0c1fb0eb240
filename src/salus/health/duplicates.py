"""Episodes that are nearly identical: a short signature of each, and the pairs whose signatures lie close together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

POINTS = 16
"""A signature has the values at so many times, evenly spread over the episode."""

MAX_COMPONENTS = 32
"""Of so many components, the first ones."""


def signature(rows: np.ndarray) -> np.ndarray:
    """float32 (16, c): float64 (T, C) at 16 steps, the first 32 components; what is not finite counts as 0."""
    steps = np.linspace(0, len(rows) - 1, POINTS).round().astype(int)
    return np.asarray(np.nan_to_num(rows[steps][:, :MAX_COMPONENTS], posinf=0.0, neginf=0.0), np.float32)


def near_pairs(
    signatures: Sequence[np.ndarray], lengths: Sequence[int], *, most_distance: float, most_length: float
) -> list[tuple[int, int, float]]:
    """The pairs whose signatures differ by little.

    Args:
        signatures: float32 (16, c) each, of one shape.
        lengths: Steps of each.
        most_distance: Root mean square of the differences, in units of each component's standard deviation.
        most_length: Share by which lengths may differ.

    Returns:
        (i, j, distance), i < j. Episodes in which nothing varies are never near: they say nothing.
    """
    if len(signatures) < 2:
        return []
    stacked = np.stack(signatures).astype(np.float64)
    spread = stacked.std(axis=(0, 1))
    varying = spread > 1e-9 * (1 + np.abs(stacked).max(axis=(0, 1)))
    flat = (stacked[:, :, varying] / spread[varying]).reshape(len(stacked), -1)
    moving = stacked[:, :, varying].std(axis=1).any(axis=1) if varying.any() else np.zeros(len(stacked), bool)
    if not flat.shape[1]:
        return []
    # Near signatures have near projections: only neighbours on a line are compared in full.
    line = flat @ _unit_vector(flat.shape[1])
    order = np.argsort(line, kind="stable")
    ordered = line[order]
    reach = most_distance * np.sqrt(flat.shape[1])
    steps = np.asarray(lengths, np.float64)
    found = []
    for place, one in enumerate(order.tolist()):
        if not moving[one]:
            continue
        end = int(np.searchsorted(ordered, line[one] + reach, side="right"))
        others = order[place + 1 : end]
        others = others[np.abs(steps[others] - steps[one]) <= most_length * steps[one] + 1e-9]
        distances = np.sqrt(((flat[others] - flat[one]) ** 2).mean(axis=1))
        near = distances <= most_distance
        for other, distance in zip(others[near].tolist(), distances[near].tolist(), strict=True):
            found.append((min(one, other), max(one, other), distance))
    return sorted(found)


def groups(pairs: Sequence[tuple[int, int, float]]) -> list[tuple[list[int], float]]:
    """Pairs joined into groups: the members in order, and the largest distance of a pair among them."""
    group_of: dict[int, set[int]] = {}
    for one, other, _ in pairs:
        joined = group_of.get(one, {one}) | group_of.get(other, {other})
        for member in joined:
            group_of[member] = joined
    found = {id(members): members for members in group_of.values()}
    return sorted(
        (sorted(members), max(distance for one, _, distance in pairs if one in members)) for members in found.values()
    )


def _unit_vector(size: int) -> np.ndarray:
    vector = np.random.default_rng(0).normal(size=size)
    return np.asarray(vector / np.linalg.norm(vector))
