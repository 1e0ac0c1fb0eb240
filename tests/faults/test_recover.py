"""`salus.recover` after real deaths: what it brings back is bit for bit what was appended, and nothing else changes."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus
from salus.layout import journal_key
from salus.recorder.recovery import RecoveryReport

from .scenario import CRASHED, LENGTHS, TICKS, CrashBefore, Warm, make_script_episode
from .test_crash_between_steps import check_plain_zarr

SPAWN = multiprocessing.get_context("spawn")
RATE = 100.0
SEGMENT = 32
ENDLESS = salus.Schema(
    {"camera": salus.Image(height=6, width=8), "q": salus.Feature((2,)), "say": salus.Text()},
    rate_hz=RATE,
    segment_steps=SEGMENT,
)


@pytest.fixture
def path(memory_path: Path) -> Path:
    return memory_path / "data.zarr"


# --- recorders that die ------------------------------------------------------------------------------------------


def step(number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    return {
        "camera": rng.integers(0, 256, (3, 6, 8), dtype=np.uint8),
        "q": rng.normal(size=2).astype(np.float32),
        "say": f"step {number} grüß",
    }


def record_at_real_time(path: Path, connection: Connection) -> None:
    recorder = salus.Recorder(salus.open(path, mode="a"))
    episode = recorder.start(task="killed")
    connection.send(episode.uid)
    number = 0
    while True:
        episode.append(step(number), timestamp_ns=1000 + number)
        number += 1
        connection.send((number, time.monotonic()))
        time.sleep(1 / RATE)


def record_and_die(path: Path, seconds: float) -> tuple[str, list[tuple[int, float]]]:
    """The uid of an episode whose recorder was killed, and (steps, when) of each append that returned."""
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=record_at_real_time, args=(path, theirs), daemon=True)
    process.start()
    theirs.close()
    assert ours.poll(60)
    uid, appended = ours.recv(), []
    while not appended or appended[-1][1] - appended[0][1] < seconds:
        assert ours.poll(30)
        appended.append(ours.recv())
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return uid, appended


def check_steps(episode: salus.Episode) -> None:
    count = len(episode)
    for name in ("camera", "q", "say"):
        np.testing.assert_array_equal(episode[name][:], np.array([step(number)[name] for number in range(count)]))
    np.testing.assert_array_equal(episode.timestamp_ns, 1000 + np.arange(count))


def test_an_episode_of_a_killed_recorder_comes_back_but_for_the_last_half_second(path: Path) -> None:
    salus.create(path, ENDLESS)
    rng = random.Random(3)  # noqa: S311 - delays
    for _ in range(4):
        uid, appended = record_and_die(path, rng.uniform(1.1, 1.9))
        report = salus.recover(path)
        assert [(found.uid, found.action, found.lost_steps) for found in report.episodes] == [(uid, "salvaged", 0)]
        assert not report.something_was_lost
        episode = salus.open(path)[uid]
        check_steps(episode)
        # The interval, and as much again for the writing thread to come round on a busy machine.
        due = [number for number, when in appended if when < appended[-1][1] - 1.0]
        assert due[-1] <= len(episode) == report.episodes[0].num_steps <= appended[-1][0] + 1
        entry = salus.open(path).episodes[-1]
        assert entry.status == "salvaged"
        assert entry.started_ns < report.episodes[0].stopped_ns == entry.ended_ns
        assert episode.metadata["task"] == "killed"
        assert episode.timestamp_source == "caller"
        assert not (path / journal_key(entry.slot)).parent.exists()
        assert salus.recover(path) == RecoveryReport(())
    assert len(salus.open(path)) == 4
    assert salus.open(path).unfinished() == []


# --- death at every point ------------------------------------------------------------------------------------------


def check_recovered(path: Path, committed: set[str], events: Any) -> None:
    """Everything is decided; what is there is bit for bit the beginning of what was recorded."""
    dataset = salus.open(path)
    assert dataset.unfinished() == []
    statuses = {entry.uid: entry.status for entry in dataset.episodes}
    assert {uid for uid in committed if statuses.get(uid) != "committed"} == set(), events
    for episode in dataset:
        seed = episode.metadata["seed"]
        if statuses[episode.uid] == "committed":
            assert (len(episode), len(episode["q"])) == (LENGTHS[seed], TICKS[seed])
        for name, values in make_script_episode(seed).items():
            found = episode[name][:]
            np.testing.assert_array_equal(found, values[: len(found)], err_msg=str(events))
    check_plain_zarr(path, dataset)
    assert salus.recover(path) == RecoveryReport(())
    assert list((path / "_salus" / "journal").glob("*")) == []


@pytest.mark.parametrize("part", range(4))
def test_recovering_after_a_crash_between_any_two_steps(warm: Warm, memory_path: Path, part: int) -> None:
    salvaged, number = [], part + 1
    while True:
        path = memory_path / f"{number}.zarr"
        answer = warm.ask(crash_before=number, path=path)
        if answer["status"] == 0:
            break
        assert answer["status"] == CRASHED, answer
        events = dict(answer["acknowledged"]) | {"number": number}
        if "created" in events:
            deleted = salus.open(path)._snapshot.overlays.keys()
            report = salus.recover(path)
            assert report.left == []
            assert all(found.lost_steps == 0 for found in report.episodes), events
            committed = {details["uid"] for event, details in answer["acknowledged"] if event == "committed"}
            check_recovered(path, committed - deleted, events)
            salvaged += [found.num_steps for found in report.salvaged]
        shutil.rmtree(path, ignore_errors=True)
        number += 4
    assert max(salvaged) >= 4  # past the border of a segment
    assert len(salvaged) > 10


def dead_states(warm: Warm, folder: Path) -> Iterator[Path]:
    """Datasets with an episode that can be salvaged, of different numbers of steps and of shards in place."""
    seen, number = set(), 1
    while (answer := warm.ask(crash_before=number, path=folder / f"{number}"))["status"] == CRASHED:
        path, number = folder / f"{number}", number + 1
        if not any(event == "created" for event, _ in answer["acknowledged"]):
            continue
        report = salus.recover(path, dry_run=True)
        shards = sorted(str(file.relative_to(path)) for file in path.glob("*/c.*"))
        kind = (str([(found.slot, found.num_steps) for found in report.episodes]), str(shards))
        if report.salvaged and kind not in seen:
            seen.add(kind)
            yield path
        else:
            shutil.rmtree(path)


def recover_and_crash(path: Path, number: int) -> int:
    """Recover in a child that dies before its n-th call that changes files; how the child ended."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            CrashBefore(number).install()
            salus.recover(path)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_recoverer_that_dies_anywhere_is_gone_on_with(warm: Warm, memory_path: Path) -> None:
    (memory_path / "dead").mkdir()
    crashes = states = 0
    for dead in dead_states(warm, memory_path / "dead"):
        states += 1
        expected = salus.recover(dead, dry_run=True)
        number = 1 + states % 13  # a thirteenth of all points for each state
        while True:
            path = memory_path / "again.zarr"
            shutil.copytree(dead, path)
            status = recover_and_crash(path, number)
            done = {entry.slot: entry.num_steps for entry in salus.open(path).episodes if entry.status == "salvaged"}
            report = salus.recover(path)
            done |= {found.slot: found.num_steps for found in report.salvaged}
            assert done == {found.slot: found.num_steps for found in expected.salvaged}, (dead, number)
            salus.open(path, mode="a").publish(whole=False)
            check_recovered(path, set(), (dead, number))
            shutil.rmtree(path)
            if status == 0:
                break
            assert status == CRASHED
            crashes, number = crashes + 1, number + 13
    assert states > 5
    assert crashes > 20
