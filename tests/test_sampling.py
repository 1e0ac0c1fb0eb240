"""Splits: every episode in exactly one part, by its uid alone, or at exact shares by stratum."""

from __future__ import annotations

import random
from typing import Any

import pytest

from salus import sampling
from salus.errors import InvalidInputError

UIDS = [f"uid-{number}" for number in range(1000)]
PARTS = {"train": 0.8, "val": 0.15, "test": 0.05}


def test_every_episode_is_in_exactly_one_part_and_the_shares_hold_on_average() -> None:
    parts = sampling.split(UIDS, PARTS)
    assert list(parts) == list(PARTS)
    assert sorted(row for rows in parts.values() for row in rows) == list(range(1000))
    assert all(rows == sorted(rows) for rows in parts.values())
    for name, share in PARTS.items():
        assert abs(len(parts[name]) / 1000 - share) < 0.04


def test_a_dataset_that_grows_shrinks_or_is_reordered_moves_no_episode() -> None:
    def part_of(uids: list[str]) -> dict[str, str]:
        return {uids[row]: name for name, rows in sampling.split(uids, PARTS, seed=3).items() for row in rows}

    whole = part_of(UIDS)
    shuffled = random.Random(0).sample(UIDS, 400)  # noqa: S311 - an order
    assert part_of(shuffled) == {uid: whole[uid] for uid in shuffled}


def test_positions_never_change() -> None:
    # Written down: another hash would move episodes of published splits from train to test.
    assert sampling.position("01890000-0000-7000-8000-000000000000", 0) == pytest.approx(0.09944281198644311, abs=1e-12)
    assert sampling.position("01890000-0000-7000-8000-000000000000", 1) == pytest.approx(0.7107021950555577, abs=1e-12)


def test_another_seed_is_another_split() -> None:
    assert sampling.split(UIDS, PARTS, seed=1) != sampling.split(UIDS, PARTS, seed=2)


def test_strata_are_cut_at_exact_shares() -> None:
    strata = ["success"] * 100 + ["failure"] * 20
    parts = sampling.split(UIDS[:120], {"a": 0.75, "b": 0.25}, strata=strata)
    assert [sum(strata[row] == "success" for row in rows) for rows in parts.values()] == [75, 25]
    assert [sum(strata[row] == "failure" for row in rows) for rows in parts.values()] == [15, 5]
    assert sorted(parts["a"] + parts["b"]) == list(range(120))


def test_nothing_and_empty_parts() -> None:
    assert sampling.split([], PARTS) == {"train": [], "val": [], "test": []}
    assert sampling.split(UIDS, {"all": 1.0, "none": 0.0}) == {"all": list(range(1000)), "none": []}
    assert sampling.split(UIDS, {"none": 0.0, "all": 1}) == {"none": [], "all": list(range(1000))}
    thirds = sampling.split(UIDS, dict.fromkeys("abc", 1 / 3))
    assert sum(map(len, thirds.values())) == 1000


@pytest.mark.parametrize(
    "fractions",
    [{}, {"a": 0.5}, {"a": 0.6, "b": 0.6}, {"a": 1.5, "b": -0.5}, {"a": float("nan")}, {"a": "1"}, {"a": None}],
)
def test_fractions_that_are_no_shares_are_refused(fractions: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="fractions: got"):
        sampling.split(UIDS, fractions)


def test_the_highest_hash_falls_into_the_last_part(monkeypatch: pytest.MonkeyPatch) -> None:
    class Highest:
        def __init__(self, data: bytes) -> None:
            pass

        def digest(self) -> bytes:
            return b"\xff" * 32

    monkeypatch.setattr(sampling.hashlib, "sha256", Highest)
    assert sampling.position("uid", 0) < 1
    assert sampling.split(["uid"], PARTS)["test"] == [0]
