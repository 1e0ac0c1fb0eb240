"""Many writer processes record into one bucket, a tenth of them killed: nothing is lost, no slot is given twice.

`python -m tests.cloud.test_many_bucket_writers WRITERS EPISODES` runs it at other sizes than the suite does.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus

from ..faults.scenario import SCHEMA, looped_length, make_episode
from . import servers

_ROOT = Path(__file__).parents[2]


def write(url: str, options: dict[str, Any], first: int, count: int) -> None:
    """One writer: a line of JSON for each episode when it is committed."""
    with salus.Recorder(salus.open(url, mode="a", storage_options=options)) as recorder:
        for seed in range(first, first + count):
            entry = recorder.record_episode(make_episode(seed, looped_length(seed)), {"seed": seed})
            print(json.dumps([entry.uid, entry.slot, seed]), flush=True)  # noqa: T201 - this is how it answers


def run(server: servers.Server, writers: int, episodes: int, *, seed: int) -> str:
    """Let them write, kill some, recover what these left, and look; returns what was counted.

    Raises:
        AssertionError: Something was lost, or is there twice or in part.
    """
    rng = random.Random(seed)  # noqa: S311 - who dies when
    url = f"{server.url}/writers-{seed}/data.zarr"
    salus.create(url, SCHEMA, storage_options=server.options)
    doomed = {number: rng.randint(2, episodes - 2) for number in rng.sample(range(writers), -(-writers // 10))}
    shares = {number: rng.random() for number in doomed}  # of the next episode, when the kill comes
    committed: dict[str, tuple[int, int]] = {}

    def watch(number: int) -> None:
        command = [sys.executable, "-W", "ignore", "-m", __spec__.name, "--write", url, json.dumps(server.options)]
        process = subprocess.Popen(
            [*command, str(number * episodes), str(episodes)], cwd=_ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process.stdout:
            before = time.monotonic()
            for count, line in enumerate(process.stdout, 1):
                uid, slot, episode = json.loads(line)
                committed[uid] = (slot, episode)
                took_s, before = time.monotonic() - before, time.monotonic()
                if count == doomed.get(number):
                    time.sleep(shares[number] * took_s)
                    process.kill()
        statuses[number] = process.wait()

    statuses: dict[int, int] = {}
    threads = [threading.Thread(target=watch, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number for number, status in statuses.items() if status == -9} == set(doomed), statuses
    assert {status for number, status in statuses.items() if number not in doomed} <= {0}, statuses
    report = salus.recover(url, storage_options=server.options)
    assert not report.left
    dataset = salus.open(url, storage_options=server.options)
    assert not dataset.unfinished()
    found = {episode.uid: (episode.slot, episode.metadata["seed"]) for episode in dataset}
    assert len({slot for slot, _ in found.values()}) == len(found), "a slot was given twice"
    assert committed.items() <= found.items(), "an acknowledged episode is not there"
    assert len(found) - len(committed) <= len(doomed)
    for episode in dataset:
        num_steps = looped_length(episode.metadata["seed"])
        assert len(episode) == num_steps or episode.status == "salvaged"
        for name, values in make_episode(episode.metadata["seed"], num_steps).items():
            np.testing.assert_array_equal(episode[name][:], values[: len(episode)])
    assert salus.verify(dataset).findings == ()
    return (
        f"{writers} writers, {len(doomed)} killed, {len(committed)} episodes acknowledged, {len(report.salvaged)} "
        f"salvaged, {len(report.aborted)} aborted"
    )


@pytest.mark.parametrize("name", ["seaweedfs"])
def test_writers_of_one_bucket_lose_nothing_when_some_are_killed(
    name: str, stores: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SALUS_SPOOL", str(tmp_path / "spools"))
    assert "1 killed" in run(stores(name), 4, 4, seed=0)


def main() -> None:
    """What the command line says, on SeaweedFS."""
    if sys.argv[1] == "--write":
        write(sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
        return
    writers, episodes = map(int, sys.argv[1:3])
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="salus-bucket-") as folder:
        os.environ["SALUS_SPOOL"] = f"{folder}/spools"
        (Path(folder) / "server").mkdir()
        with servers.running("seaweedfs", Path(folder) / "server") as server:
            counted = run(server, writers, episodes, seed=0)
    print(f"{counted}, {time.monotonic() - began:.0f} s: none lost, no slot given twice")  # noqa: T201


if __name__ == "__main__":
    main()
