"""`salus.recover` after real deaths: what it brings back is bit for bit what was appended, and nothing else changes."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus
from salus.layout import journal_key
from salus.recorder.files import FLUSH_INTERVAL_S, EpisodeFiles
from salus.recorder.recovery import RecoveryReport

from .killed_recorder import SCHEMA, record_and_die, step
from .scenario import CRASHED, LENGTHS, TICKS, CrashBefore, Warm, make_script_episode
from .sharing import on_all_cores
from .test_crash_between_steps import check_plain_zarr

EVERY = 43
"""Crash points of a recoverer, of which the suite takes one."""


@pytest.fixture
def path(memory_path: Path) -> Path:
    return memory_path / "data.zarr"


# --- recorders that die ------------------------------------------------------------------------------------------


def check_steps(episode: salus.Episode) -> None:
    count = len(episode)
    for name in ("camera", "q", "say"):
        np.testing.assert_array_equal(episode[name][:], np.array([step(number)[name] for number in range(count)]))
    np.testing.assert_array_equal(episode.timestamp_ns, 1000 + np.arange(count))


def test_an_episode_of_a_killed_recorder_comes_back_but_for_the_last_half_second(path: Path) -> None:
    salus.create(path, SCHEMA)
    rng = random.Random(3)  # noqa: S311 - delays
    for _ in range(4):
        uid, _, appended, durable = record_and_die(path, rng.uniform(1.1, 1.9))
        report = salus.recover(path)
        assert [(found.uid, found.action, found.lost_steps) for found in report.episodes] == [(uid, "salvaged", 0)]
        assert not report.something_was_lost
        episode = salus.open(path)[uid]
        check_steps(episode)
        assert durable <= len(episode) == report.episodes[0].num_steps <= appended + 1
        entry = salus.open(path).episodes[-1]
        assert entry.status == "salvaged"
        assert entry.started_ns < report.episodes[0].stopped_ns == entry.ended_ns
        assert episode.metadata["task"] == "killed"
        assert episode.timestamp_source == "caller"
        assert not (path / journal_key(entry.slot)).parent.exists()
        assert salus.recover(path) == RecoveryReport(())
    assert len(salus.open(path)) == 4
    assert salus.open(path).unfinished() == []


@pytest.mark.parametrize("stage", ["finish_segment", "commit"])
def test_an_outcome_that_only_commit_was_told_comes_back(
    path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    salus.create(path, SCHEMA)
    given = salus.Outcome("failure", step=3)

    def die(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def record() -> None:
        episode = salus.Recorder(salus.open(path, mode="a")).start()
        for number in range(8):
            episode.append(step(number), timestamp_ns=1000 + number)
        time.sleep(2 * FLUSH_INTERVAL_S)  # so that the steps are in the journal
        monkeypatch.setattr(EpisodeFiles, stage, die)
        episode.commit(outcome=given)

    process = multiprocessing.get_context("fork").Process(target=record)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [(found.action, found.num_steps) for found in salus.recover(path).episodes] == [("salvaged", 8)]
    episode = salus.open(path)[0]
    assert episode.outcome == given
    check_steps(episode)


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


def crash_recoverers(dead: Path, first: int, every: int) -> int:
    """Recoverers of one dead state that die at every so many points, each gone on with by another; how many died."""
    expected = {found.slot: found.num_steps for found in salus.recover(dead, dry_run=True).salvaged}
    path, number = dead.with_name("again.zarr"), first
    while True:
        shutil.copytree(dead, path)
        status = recover_and_crash(path, number)
        done = {entry.slot: entry.num_steps for entry in salus.open(path).episodes if entry.status == "salvaged"}
        report = salus.recover(path)
        done |= {found.slot: found.num_steps for found in report.salvaged}
        assert done == expected, (dead, number)
        salus.open(path, mode="a").publish(whole=False)
        check_recovered(path, set(), (dead, number))
        shutil.rmtree(path)
        if status == 0:
            return (number - first) // every
        assert status == CRASHED
        number += every


def test_a_recoverer_that_dies_anywhere_is_gone_on_with(warm: Warm, memory_path: Path) -> None:
    crashes = states = 0
    for states, dead in enumerate(dead_states(warm, memory_path), 1):
        crashes += crash_recoverers(dead, 1 + states % EVERY, EVERY)  # other points of each state
    assert states > 5
    assert crashes > 20


def crash_share(first: int, of: int, wanted: int) -> tuple[int, int]:
    """Kill so many recoverers, at every point of every `of`-th dead state from `first` on, over and over.

    Returns:
        Recoverers killed, which may be more than were wanted, and the dead states that they found.
    """
    crashes, states, warm = 0, 0, Warm()
    while crashes < wanted:
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="salus-recover-") as folder:
            for number, dead in enumerate(dead_states(warm, Path(folder))):
                if number % of == first and crashes < wanted:
                    crashes, states = crashes + crash_recoverers(dead, 1, 1), states + 1
    warm.close()
    return crashes, states


def main() -> None:
    """Kill as many recoverers as the command line says, on all cores."""
    began, wanted = time.monotonic(), int(sys.argv[1])
    crashes, states = (sum(counts) for counts in zip(*on_all_cores(crash_share, wanted), strict=True))
    print(  # noqa: T201
        f"{crashes} recoverers killed, at each call that changes files, in {states} states that dead recorders left, "
        f"{time.monotonic() - began:.0f} s: the next one always brought back the same steps"
    )


if __name__ == "__main__":
    main()
