"""Splitting episodes into parts. Pure: no files, no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate

from .errors import InvalidInputError


def position(uid: str, seed: int, within: str = "") -> float:
    """Where `uid` falls in [0, 1): the same on every machine, and whatever else the dataset holds."""
    digest = hashlib.sha256(f"{seed}:{within}{uid}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # 53 bits: what a float in [0, 1) holds


def split(
    uids: Sequence[str],
    fractions: Mapping[str, float],
    *,
    seed: int = 0,
    strata: Sequence[Hashable] | None = None,
    within: str = "",
) -> dict[str, list[int]]:
    """Assign each episode to one part.

    Without `strata`, by the hash of its uid alone: a dataset that grows or loses episodes moves none, and the shares
    hold on average. With `strata` (one value per episode), each stratum is cut at exact shares, in hash order: balanced
    now, but not growth-stable, as a new episode can push another over a border.

    `within` names the part that is split again: without it, all of a part would fall on the same side of a border.

    Returns:
        Positions into `uids` by part, ascending.

    Raises:
        InvalidInputError: The fractions are not positive or do not add up to 1.
    """
    if not isinstance(fractions, Mapping):
        raise InvalidInputError(
            f"fractions: got {fractions!r}, expected shares by name, such as {{'train': 0.9, 'val': 0.1}}"
        )
    values = list(fractions.values())
    if any(not isinstance(value, int | float) or not 0 <= value <= 1 for value in values) or not values:
        raise InvalidInputError(f"fractions: got {dict(fractions)}, expected numbers from 0 to 1 by name")
    if abs(sum(values) - 1) > 1e-6:
        raise InvalidInputError(f"fractions: got a sum of {sum(values):g}, expected 1; {dict(fractions)}")
    names, borders = list(fractions), list(accumulate(values))
    borders[-1] = 1.0
    parts: dict[str, list[int]] = {name: [] for name in names}
    groups: dict[Hashable, list[int]] = {}
    for row in range(len(uids)):
        groups.setdefault(strata[row] if strata is not None else None, []).append(row)
    for group in groups.values():
        places = {row: position(uids[row], seed, within) for row in group}
        if strata is not None:
            ranked = sorted(group, key=places.__getitem__)
            places = {row: (rank + 0.5) / len(ranked) for rank, row in enumerate(ranked)}
        for row, place in places.items():
            parts[next(name for name, border in zip(names, borders, strict=True) if place < border)].append(row)
    return {name: sorted(rows) for name, rows in parts.items()}
