"""A crash within a group commit: what was acknowledged is there whole, nothing is there in part, and work goes on.

A child dies before its n-th call that changes files, in whatever thread, for every n until the script runs through.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import salus

from .scenario import AFTERWARDS, CRASHED, GROUPS, SCHEMA, Warm, looped_length, make_episode
from .test_crash_between_steps import check_episode, check_plain_zarr

SEEDS = {seed for seeds in GROUPS for seed in seeds}
PARTS = 3  # the first group has four records, so each part comes once between two of them


@pytest.mark.parametrize("part", range(PARTS))
def test_a_crash_within_a_group_loses_nothing_acknowledged(warm: Warm, memory_path: Path, part: int) -> None:
    crashes, partly, cut_off, number = 0, 0, 0, part + 1
    while True:
        path = memory_path / f"{number}.zarr"
        answer = warm.ask(crash_before=number, path=path, groups=True)
        if answer["status"] == 0:
            break
        assert answer["status"] == CRASHED, answer
        acknowledged = {d["seed"]: d["uid"] for event, d in answer["acknowledged"] if event == "committed"}
        partly += check_what_is_there(path, acknowledged)
        if crashes % 6 == 0:
            check_that_work_goes_on(path)
        if crashes % 3 == 0:
            cut_off += check_recovered(path)
        shutil.rmtree(path)
        crashes, number = crashes + 1, number + PARTS
    assert {d["seed"] for event, d in answer["acknowledged"] if event == "committed"} == SEEDS
    assert crashes > 40, "the script has become shorter than this test thinks"
    assert partly, "no crash came between the records of a group"
    assert cut_off, "no crash left shards of a group without their records"


def check_what_is_there(path: Path, acknowledged: dict[int, str]) -> bool:
    """Whether the first group is there in part, which it may be: its episodes are committed each for itself."""
    dataset = salus.create(path, SCHEMA, exist_ok=True)
    found = {episode.metadata["seed"]: episode for episode in dataset}
    assert len(found) == len(dataset)
    assert acknowledged.keys() <= found.keys() <= SEEDS
    for seed, uid in acknowledged.items():
        assert found[seed].uid == uid
    for seed, episode in found.items():
        check_episode(episode, seed, looped_length(seed))
    return 0 < len(found.keys() & set(GROUPS[0])) < len(GROUPS[0])


def check_recovered(path: Path) -> int:
    """How many episodes had shards in place. None was acknowledged, so they are given up without force."""
    before = [(episode.uid, len(episode)) for episode in salus.open(path)]
    unfinished = {found.uid for found in salus.open(path).unfinished()}
    report = salus.recover(path)
    assert {found.uid for found in report.aborted} == unfinished
    assert (report.left, report.salvaged) == ([], [])
    cut_off = [found for found in report.aborted if found.lost_steps is None]
    for found in report.aborted:
        assert (found in cut_off) == ("recorder.vector was cut off" in found.reason)
        placed = list(path.glob(f"camera/c.{found.slot}.*")) + list(path.glob(f"s*/c.{found.slot}.*"))
        assert bool(placed) <= (found in cut_off)  # shards stay, for garbage collection
    assert report.something_was_lost == bool(cut_off)
    assert [(episode.uid, len(episode)) for episode in salus.open(path)] == before
    assert salus.open(path).unfinished() == []
    return len(cut_off)


def check_that_work_goes_on(path: Path) -> None:
    before = [episode.uid for episode in salus.open(path)]
    with salus.Recorder(salus.open(path, mode="a")) as recorder, recorder.vector(1) as vector:
        arrays = make_episode(AFTERWARDS)
        for step in range(len(arrays["say"])):
            vector.append({name: values[step : step + 1] for name, values in arrays.items()})
        (future,) = vector.end(metadata={"seed": AFTERWARDS})
    dataset = salus.open(path)
    assert [episode.uid for episode in dataset] == [*before, future.result().uid]
    check_episode(dataset[future.result().uid], AFTERWARDS)
    check_plain_zarr(path, dataset)
