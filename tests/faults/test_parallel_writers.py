"""Several processes record into one dataset at once: nothing is lost, no slot is shared, readers see it grow."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import salus

from .scenario import SCHEMA, looped_length
from .test_crash_between_steps import check_episode, check_plain_zarr

WRITERS = 4
EPISODES = 50


@contextmanager
def processes(*commands: list[Any]) -> Iterator[list[subprocess.Popen[str]]]:
    """Writer processes, started and warm; all are waited for, or killed when the test fails."""
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.faults.writers", *map(str, command)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    try:
        for process in started:
            assert line_of(process) == "ready"
        yield started
        for process in started:
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(120) == 0
    finally:
        for process in started:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_four_processes_record_200_episodes_into_one_dataset(memory_path: Path) -> None:
    path = memory_path / "data.zarr"
    salus.create(path, SCHEMA)
    committed: list[tuple[int, int, str]] = []
    commands = [["record", path, writer * EPISODES, EPISODES] for writer in range(WRITERS)]
    with processes(*commands) as started:

        def collect(process: subprocess.Popen[str]) -> None:
            while line := line_of(process):
                committed.append(tuple(json.loads(line)))

        threads = [threading.Thread(target=collect, args=(process,)) for process in started]
        for thread in threads:
            thread.start()
        for process in started:
            tell(process, "go")
        growth = read_meanwhile(path, committed, threads)
        for thread in threads:
            thread.join()
    assert len(committed) == WRITERS * EPISODES
    assert len({slot for _, slot, _ in committed}) == len(committed), "a slot was given twice"
    assert len(growth) > 3, "the reader saw none of it happen"
    dataset = salus.open(path)
    assert sorted((episode.metadata["seed"], episode.slot, episode.uid) for episode in dataset) == sorted(committed)
    for episode in dataset:
        check_episode(episode, episode.metadata["seed"], looped_length(episode.metadata["seed"]))
    check_plain_zarr(path, dataset)


def read_meanwhile(path: Path, committed: list[tuple[int, int, str]], writers: list[threading.Thread]) -> list[int]:
    """Refresh while the writers live. Returns the sizes that were seen."""
    reader, seen, growth = salus.open(path), set[str](), []
    while any(writer.is_alive() for writer in writers):
        acknowledged = {uid for _, _, uid in list(committed)}
        reader.refresh()
        uids = {entry.uid for entry in reader.episodes}
        assert seen <= uids, "an episode that was seen has gone"
        assert acknowledged <= uids, "a committed episode is not seen"
        assert [entry.slot for entry in reader.episodes] == sorted(entry.slot for entry in reader.episodes)
        for uid in uids - seen:
            episode = reader[uid]
            check_episode(episode, episode.metadata["seed"], looped_length(episode.metadata["seed"]))
        if uids != seen:
            growth.append(len(uids))
        seen = uids
    return growth


def test_processes_that_create_the_same_dataset_at_once_all_get_it(memory_path: Path) -> None:
    answers = []
    with processes(["create"], ["create"]) as started:
        for number in range(60):
            for process in started:
                tell(process, str(memory_path / f"{number}.zarr"))
            answers += [line_of(process) for process in started]
    assert set(answers) == {"0 episodes"}
