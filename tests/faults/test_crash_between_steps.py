"""A crash between any two steps: what was acknowledged is there whole, nothing is there in part, and work goes on.

A child dies before its n-th call that changes files, until the script of `scenario.py` runs through: for every third n
in the suite, for every n by `python -m tests.faults.test_crash_between_steps 5000 2000`.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import salus
from salus.schema import STEP, length_name

from .scenario import (
    AFTERWARDS,
    CLOCKS_SCHEMA,
    CRASHED,
    LENGTHS,
    SCHEMA,
    STEPWISE,
    TICKS,
    WHOLE,
    Warm,
    looped_length,
    make_episode,
    make_script_episode,
    make_ticks,
)
from .sharing import AGAIN_EVERY, Kinds, on_all_cores

EVERY = 3  # calls, before one of which the suite crashes
PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
def test_a_crash_between_any_two_steps_loses_nothing_acknowledged(warm: Warm, memory_path: Path, part: int) -> None:
    crashes, number, kinds = 0, 1 + part * EVERY, Kinds()
    while crash_before(warm, memory_path / f"{number}.zarr", number, kinds):
        crashes, number = crashes + 1, number + PARTS * EVERY
    assert crashes > 40, "the script has become shorter than this test thinks"


def crash_before(warm: Warm, path: Path, number: int, kinds: Kinds) -> bool:
    """One crash, and what must hold after it; False where the script has fewer calls.

    Plain zarr looks at it, and recording goes on in it, where `kinds` says that this is due.
    """
    answer = warm.ask(crash_before=number, path=path)
    events = dict(answer["acknowledged"]) | {"number": number}
    if answer["status"] == 0:
        assert events["deleted"] == {}
        return False
    assert answer["status"] == CRASHED, answer
    committed = [details for event, details in answer["acknowledged"] if event == "committed"]
    due = kinds.is_due(path, (event for event, _ in answer["acknowledged"]))
    if due and "created" in events:
        check_plain_zarr_meanwhile(path)
    check_what_is_there(path, events, committed)
    if due:
        check_that_work_goes_on(path, events)
    shutil.rmtree(path)
    return True


def test_the_script_makes_every_kind_of_call(warm: Warm, memory_path: Path) -> None:
    answer = warm.ask(crash_before=0, path=memory_path / "data.zarr")
    expected = {"create", "write", "fsync", "fdatasync", "os.link", "os.rename", "os.mkdir", "os.remove", "os.rmdir"}
    assert set(answer["calls"]) == expected


def check_what_is_there(path: Path, events: dict[str, Any], committed: list[dict[str, Any]]) -> None:
    if "created" not in events:
        salus.create(path, CLOCKS_SCHEMA, exist_ok=True)
    dataset = salus.open(path)
    found = {episode.metadata["seed"]: episode for episode in dataset}
    assert len(found) == len(dataset), events
    assert set(found) <= {WHOLE, STEPWISE}, events
    for details in committed:
        if details["seed"] in found:
            assert found[details["seed"]].uid == details["uid"], events
        else:  # the deletion may be there before it is acknowledged, but nothing else takes an episode away
            assert details["seed"] == STEPWISE, events
            assert "tagged" in events, events
    assert "deleted" not in events or set(found) == {WHOLE}, events
    for seed, episode in found.items():
        check_script_episode(episode, seed)
    if "amended" in events:
        assert found[WHOLE].metadata["note"] == "amended"
        assert found[WHOLE].outcome == salus.Outcome("failure", "drop", 4)
    assert "tagged" not in events or dataset.tags() == ["first"], events
    for name in dataset.tags():
        tagged = salus.open(path, tag=name)
        assert [episode.metadata["seed"] for episode in tagged] == [WHOLE, STEPWISE], events
        for episode in tagged:
            check_script_episode(episode, episode.metadata["seed"])


def check_that_work_goes_on(path: Path, events: dict[str, Any]) -> None:
    before = [episode.uid for episode in salus.open(path)]
    with salus.Recorder(salus.open(path, mode="a")) as recorder:
        entry = recorder.record_episode(make_script_episode(AFTERWARDS), {"seed": AFTERWARDS})
    dataset = salus.open(path)
    assert [episode.uid for episode in dataset] == [*before, entry.uid], events
    check_script_episode(dataset[entry.uid], AFTERWARDS)
    check_plain_zarr(path, dataset)


def check_episode(episode: salus.Episode, seed: int, num_steps: int | None = None) -> None:
    for name, values in make_episode(seed, num_steps).items():
        np.testing.assert_array_equal(episode[name][:], values)
    assert len(episode.timestamp_ns) == (num_steps or LENGTHS[seed])


def check_script_episode(episode: salus.Episode, seed: int) -> None:
    """An episode of `run_script`, on both of its clocks."""
    check_episode(episode, seed)
    np.testing.assert_array_equal(episode["q"][:], make_ticks(seed))
    assert len(episode["joints.timestamp_ns"]) == TICKS[seed]


def check_plain_zarr(path: Path, dataset: salus.Dataset) -> None:
    """Plain zarr sees the episodes of the log, and nothing else."""
    check_plain_lengths(path, dataset)
    check_plain_episodes(path, dataset)


def check_plain_lengths(path: Path, dataset: salus.Dataset) -> None:
    """Plain zarr sees an episode wherever the log has one, and nowhere else."""
    group = zarr.open_group(path, mode="r")
    for clock in (STEP, *dataset.schema.clocks):
        found = group[length_name(clock)][:]
        lengths = np.zeros_like(found)
        for entry in dataset.episodes:
            lengths[entry.slot] = entry.length(clock)
        np.testing.assert_array_equal(found, lengths)


def check_plain_episodes(path: Path, episodes: Iterable[salus.Episode]) -> None:
    """Plain zarr reads the values that SALUS reads of these episodes."""
    group = zarr.open_group(path, mode="r")
    arrays: dict[str, Any] = dict(group.arrays())
    for episode in episodes:
        for name in episode.schema.features:
            values = episode[name][:]
            np.testing.assert_array_equal(arrays[name][episode.slot, : len(values)], values)


def check_plain_zarr_meanwhile(path: Path, *, use_consolidated: bool | None = None) -> None:
    """Before anybody repairs anything, plain zarr opens it, and every row that it shows is a whole episode."""
    group = zarr.open_group(path, mode="r", use_consolidated=use_consolidated)
    texts = group["episode_metadata"][:]
    for slot, num_steps in enumerate(group["episode_length"][:].tolist()):
        if num_steps:
            seed = json.loads(texts[slot])["metadata"]["seed"]
            assert num_steps == LENGTHS[seed]
            assert seed in (WHOLE, STEPWISE)
            assert group["joints.episode_length"][slot] == TICKS[seed]
            for name, values in make_script_episode(seed).items():
                np.testing.assert_array_equal(group[name][slot, : len(values)], values)


def test_kills_at_random_times_lose_nothing_acknowledged(warm: Warm, memory_path: Path) -> None:
    acknowledged = kill_at_random(warm, memory_path / "data.zarr", 30, seed=0)
    assert acknowledged > 2, "the kills come too early for this machine"


def kill_at_random(warm: Warm, path: Path, kills: int, *, seed: int) -> int:
    """Kill a recording again and again, and look each time; returns how many episodes were acknowledged."""
    rng = random.Random(seed)  # noqa: S311 - delays
    acknowledged: dict[str, int] = {}
    checked: set[str] = set()
    for kill in range(kills):
        answer = warm.ask(kill_after=rng.uniform(0.005, 0.12), path=path, seed=kill * 1000)
        assert answer["status"] == -9, answer
        acknowledged |= {details["uid"]: details["seed"] for _, details in answer["acknowledged"]}
        found = {episode.uid: episode for episode in salus.create(path, SCHEMA, exist_ok=True)}
        assert set(acknowledged) <= set(found)
        assert checked <= set(found)
        for uid in set(found) - checked:
            seed_found = found[uid].metadata["seed"]
            assert acknowledged.get(uid, seed_found) == seed_found
            check_episode(found[uid], seed_found, looped_length(seed_found))
        checked = set(found)
    seeds = [episode.metadata["seed"] for episode in salus.open(path)]
    assert len(set(seeds)) == len(seeds)
    dataset = salus.open(path, mode="a")
    dataset.publish(whole=False)
    check_plain_zarr(path, dataset)
    for episode in dataset:
        check_episode(episode, episode.metadata["seed"], looped_length(episode.metadata["seed"]))
    return len(acknowledged)


def crash_share(first: int, of: int, wanted: int, at_random: int) -> tuple[int, int]:
    """Crash before every `of`-th step from `first` on, over and over; kill at random times in every `of`-th dataset.

    Returns:
        Kinds of states after crashes between steps, and episodes acknowledged before kills.
    """
    warm, kinds, crashes, acknowledged, turns = Warm(), Kinds(), 0, 0, 0
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="salus-crash-") as folder:
        while crashes < wanted:
            path, number = Path(folder) / "data.zarr", 1 + (first + turns) % of
            while crashes < wanted and crash_before(warm, path, number, kinds):
                crashes, number = crashes + 1, number + of
            shutil.rmtree(path, ignore_errors=True)
            turns += 1  # so that each process comes to all steps
        for seed in range(first, -(-at_random // 100), of):
            path = Path(folder) / f"{seed}.zarr"
            acknowledged += kill_at_random(warm, path, min(100, at_random - 100 * seed), seed=seed)
            shutil.rmtree(path)
    warm.close()
    return len(kinds.looked_at), acknowledged


def main() -> None:
    """Crash and kill as often as the command line says, on all cores: before a step; at random, 100 in a dataset."""
    between, at_random, began = int(sys.argv[1]), int(sys.argv[2]), time.monotonic()
    kinds, acknowledged = (sum(counts) for counts in zip(*on_all_cores(crash_share, between, at_random), strict=True))
    print(  # noqa: T201
        f"{between} crashes between steps, {at_random} kills at random times, {acknowledged} episodes acknowledged, "
        f"{time.monotonic() - began:.0f} s: none lost, none there in part; resumed and read by plain zarr in each of "
        f"{kinds} kinds of states after crashes, and in 1 of {AGAIN_EVERY} of the rest"
    )


if __name__ == "__main__":
    main()
