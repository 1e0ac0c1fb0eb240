"""T7: many writer processes on one dataset, a tenth of them killed, while readers look on.

`python -m tests.faults.test_many_writers WRITERS EPISODES ROUNDS` runs it at other sizes than the suite does.
"""

from __future__ import annotations

import json
import os
import random
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import salus

from .scenario import SCHEMA, looped_length, make_episode, warm_up
from .sharing import on_all_cores
from .test_crash_between_steps import check_episode, check_plain_episodes, check_plain_lengths

READERS = 4


def run_round(path: Path, writers: int, episodes: int, *, seed: int) -> tuple[int, int]:
    """One round in children of this process, which has no threads yet; returns episodes acknowledged, writers killed.

    Raises:
        AssertionError: A reader saw an episode go, or in part; or the outcome is not what was acknowledged.
    """
    rng = random.Random(seed)  # noqa: S311 - who dies when
    salus.create(path, SCHEMA)
    children: dict[int, int] = {}  # the reading end of its pipe: pid
    for number in range(writers):
        _start(children, lambda say, number=number: _write(path, number * episodes, episodes, say))
    names = set(children.values())
    for _ in range(READERS):
        _start(children, lambda _: _look_on(path))
    doomed = rng.sample(sorted(names), max(1, writers // 10))
    deaths = {pid: rng.randint(1, max(1, episodes - 1)) for pid in doomed}  # after so many of its episodes
    said: dict[int, bytes] = dict.fromkeys(children.values(), b"")
    with selectors.DefaultSelector() as selector:
        for pipe in children:
            selector.register(pipe, selectors.EVENT_READ)
        writing = set(names)
        while selector.get_map():
            for key, _ in selector.select():
                pid, part = children[key.fd], os.read(key.fd, 65536)
                said[pid] += part
                if not part:
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    writing.discard(pid)
                elif pid in deaths and said[pid].count(b"\n") >= deaths[pid]:
                    os.kill(pid, signal.SIGKILL)
            if not writing:
                for pid in set(children.values()) - set(names):
                    os.kill(pid, signal.SIGTERM)  # the readers look once more, and end
                writing = {0}  # only once
    killed = 0
    for pid in children.values():
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == 0 or (status == -signal.SIGKILL and pid in deaths), (status, said[pid].decode())
        killed += status != 0
    lines = [line for pid in names for line in said[pid].decode().splitlines(keepends=True) if line.endswith("\n")]
    committed = {uid: (slot, number) for number, slot, uid in map(json.loads, lines)}
    check_outcome(path, committed, unknown=killed)
    return len(committed), killed


def check_outcome(path: Path, committed: dict[str, tuple[int, int]], *, unknown: int) -> None:
    """All that was acknowledged is there, bit by bit, and at most one more for each writer that was killed."""
    dataset = salus.open(path, mode="a")
    dataset.publish(whole=False)
    found = {episode.uid: (episode.slot, episode.metadata["seed"]) for episode in dataset}
    assert len({slot for slot, _ in found.values()}) == len(found), "a slot was given twice"
    assert committed.items() <= found.items(), "an acknowledged episode is not there"
    assert len(found) - len(committed) <= unknown
    check_plain_lengths(path, dataset)
    assert sum(on_all_cores(check_share, len(found), path)) == len(found)


def check_share(number: int, of: int, _: int, path: Path) -> int:
    """Every `of`-th episode from `number` on, bit by bit, through SALUS and through plain zarr; returns how many."""
    episodes = list(salus.open(path))[number::of]
    for episode in episodes:
        seed = episode.metadata["seed"]
        check_episode(episode, seed, looped_length(seed))
    check_plain_episodes(path, episodes)
    return len(episodes)


def _start(children: dict[int, int], body: Callable[[Callable[[str], None]], None]) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        children[reading] = pid
        return
    status = 1
    try:
        body(lambda line: [os.write(writing, f"{line}\n".encode())])  # type: ignore[arg-type,return-value]
        status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the parent is to see it
        os.write(writing, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _write(path: Path, first: int, count: int, say: Callable[[str], None]) -> None:
    with salus.Recorder(salus.open(path, mode="a")) as recorder:
        for seed in range(first, first + count):
            entry = recorder.record_episode(make_episode(seed, looped_length(seed)), {"seed": seed})
            say(json.dumps([seed, entry.slot, entry.uid]))


def _look_on(path: Path) -> None:
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    reader, seen = salus.open(path), set[str]()
    while True:
        last = bool(ended)
        reader.refresh()
        uids = {entry.uid for entry in reader.episodes}
        assert seen <= uids, "an episode that was seen has gone"
        for uid in sorted(uids - seen)[:20]:
            seed = reader[uid].metadata["seed"]
            check_episode(reader[uid], seed, looped_length(seed))
        seen = uids
        if last:
            return


def test_many_writers_of_which_some_are_killed_lose_nothing(memory_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults.test_many_writers", "10", "6", "1"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "1 writers killed" in done.stdout


def main() -> None:
    """Run as many rounds as the command line says, each in a dataset and a child of its own."""
    writers, episodes, rounds = map(int, sys.argv[1:4])
    warm_up()
    began, committed, killed = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="salus-writers-") as folder:
        for seed in range(rounds):
            path = Path(folder) / f"{seed}.zarr"
            reading, writing = os.pipe()
            pid = os.fork()  # the checks start threads, and who has threads does not fork
            if pid == 0:
                counts = run_round(path, writers, episodes, seed=seed)
                os.write(writing, json.dumps(counts).encode())
                os._exit(0)
            os.close(writing)
            counts_text = os.read(reading, 1000)
            os.close(reading)
            if os.waitpid(pid, 0)[1] or not counts_text:
                sys.exit(f"round {seed} failed")
            done = json.loads(counts_text)
            committed, killed = committed + done[0], killed + done[1]
            sys.stderr.write(f"round {seed}: {done[0]} acknowledged, {time.monotonic() - began:.0f} s\n")
            shutil.rmtree(path)
    print(  # noqa: T201
        f"{rounds} rounds of {writers} writers and {READERS} readers, {killed} writers killed, {committed} episodes "
        f"acknowledged, {time.monotonic() - began:.0f} s: none lost, no slot given twice"
    )


if __name__ == "__main__":
    main()
