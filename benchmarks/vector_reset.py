"""1,024 environments reset at once: seconds and fsyncs of a group commit, beside one episode after the other.

    python benchmarks/vector_reset.py [folder] [--envs 1024]

Each episode has 50 steps of five small features. The folder decides what an fsync costs: give one on the disk that you
record to. Rounds are interleaved; each is a fresh dataset. Also: claims of as many slots at once, and one by one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

import salus
from salus.log.claims import claim_slot, claim_slots
from salus.recorder.uids import new_uid
from salus.storage import open_storage

STEPS = 50
SCHEMA = salus.Schema(
    {
        "observation": salus.Feature((48,)),
        "action": salus.Feature((12,)),
        "reward": salus.Feature(),
        "terminated": salus.Feature((), "bool"),
        "truncated": salus.Feature((), "bool"),
    },
    rate_hz=50,
)


class Counted:
    """Counts the fsyncs of this process."""

    def __init__(self) -> None:
        self.count = 0
        for name in ("fsync", "fdatasync"):
            setattr(os, name, self._counting(getattr(os, name)))

    def _counting(self, plain: Callable[[int], None]) -> Callable[[int], None]:
        def call(descriptor: int) -> None:
            self.count += 1
            plain(descriptor)

        return call

    def measure(self, work: Callable[[], object]) -> tuple[float, int]:
        before, started = self.count, time.perf_counter()
        work()
        return time.perf_counter() - started, self.count - before


def batch(num_envs: int, step: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(step)
    return {
        "observation": random.normal(size=(num_envs, 48)).astype(np.float32),
        "action": random.normal(size=(num_envs, 12)).astype(np.float32),
        "reward": random.normal(size=num_envs).astype(np.float32),
        "terminated": np.zeros(num_envs, bool),
        "truncated": np.zeros(num_envs, bool),
    }


def together(path: Path, counted: Counted, num_envs: int) -> dict[str, tuple[float, int]]:
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder, recorder.vector(num_envs) as vector:
        batches = [batch(num_envs, step) for step in range(STEPS)]
        appended = counted.measure(lambda: [vector.append(each) for each in batches])

        def end() -> None:
            vector.end()
            vector.flush()

        ended = counted.measure(end)
    assert len(salus.open(path)) == num_envs
    return {"50 batches appended": appended, "all ended at once": ended}


def one_by_one(path: Path, counted: Counted, num_envs: int) -> tuple[float, int]:
    episodes = np.stack([batch(num_envs, step)["observation"] for step in range(STEPS)], axis=1)
    others = {name: np.stack([batch(num_envs, s)[name] for s in range(STEPS)], axis=1) for name in batch(1, 0)}
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:

        def record() -> None:
            for env in range(num_envs):
                recorder.record_episode({n: v[env] for n, v in others.items()} | {"observation": episodes[env]})

        measured = counted.measure(record)
    assert len(salus.open(path)) == num_envs
    return measured


def claims(path: Path, counted: Counted, num_envs: int) -> dict[str, tuple[float, int]]:
    storage = open_storage(salus.create(path, SCHEMA).url)
    uids = [new_uid() for _ in range(num_envs)]
    found = {"claims at once": counted.measure(lambda: claim_slots(storage, uids))}

    def each() -> None:
        for number, uid in enumerate(uids):
            claim_slot(storage, uid, hint=num_envs + number)

    return found | {"claims one by one": counted.measure(each)}


def main(folder: Path, num_envs: int, rounds: int) -> None:
    counted = Counted()
    found: dict[str, list[tuple[float, int]]] = {}
    for number in range(rounds):
        measured = together(folder / f"a{number}", counted, num_envs)
        measured["one by one"] = one_by_one(folder / f"b{number}", counted, num_envs)
        measured |= claims(folder / f"c{number}", counted, num_envs)
        for name, value in measured.items():
            found.setdefault(name, []).append(value)
        print(f"round {number + 1} of {rounds} done", file=sys.stderr, flush=True)
    print(f"{num_envs} environments, {STEPS} steps each, medians of {rounds} rounds\n")
    print("| what | seconds | fsyncs |\n|---|---|---|")
    for name, values in found.items():
        print(f"| {name} | {median(s for s, _ in values):.2f} | {median(count for _, count in values):.0f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--envs", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="salus-vector-", dir=given.folder))
    try:
        main(place, given.envs, given.rounds)
    finally:
        shutil.rmtree(place)
