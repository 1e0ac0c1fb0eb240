"""A long recording while others die: what is acknowledged stays, and memory and descriptors do not grow.

`python -m tests.faults.soak 30` records for 30 minutes: one process with several recorders, which also amends and
publishes, and one that reads, live all the time; writers beside them are killed and started again; unfinished episodes
are recovered now and then.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import salus

from .power_judge import SCHEMA, check_episodes, check_that_work_goes_on, make_arrays, make_step, num_steps_of, recover
from .scenario import warm_up
from .test_power_cuts import (
    END_S,
    Body,
    Processes,
    Say,
    in_child,
    record_groups,
    record_long,
    record_stepwise,
    record_whole,
)

SAMPLE_S = 1.0
WRITERS: tuple[Body, ...] = (record_whole, record_stepwise, record_groups, record_long)
READER_FILES = 256  # descriptors; the reader keeps half as many files open
READER_CACHE_BYTES = 2**18  # small, so that it is full in seconds: what grows after that is a leak

SOME_DESCRIPTORS = 16  # a recorder that is open, an episode under way
GROWTH_BYTES = 10 * 2**20
GROWTH_SHARE = 0.1
FRESH_S = 90.0


class Sample(NamedTuple):
    """What a process holds at a moment.

    Attributes:
        rss: Bytes of memory.
        descriptors: How many are open.
        episodes: How many were acknowledged by all by then.
    """

    rss: int
    descriptors: int
    episodes: int

    @classmethod
    def of(cls, pid: int, episodes: int) -> Sample:
        """As `/proc` says."""
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls(pages * resource.getpagesize(), len(os.listdir(f"/proc/{pid}/fd")), episodes)


# --- the two that live long ----------------------------------------------------------------------------------------


def record_on(path: Path, first: int, rng: random.Random, say: Say) -> None:
    """Record in every way there is, amend, refresh and publish, until SIGTERM."""
    stopped = until_terminated()
    dataset, uids = salus.open(path, mode="a"), list[str]()

    def committed(uid: str, seed: int) -> None:
        say("committed", {"uid": uid, "seed": seed})
        uids.append(uid)

    with salus.Recorder(dataset) as recorder:
        for turn, seed in enumerate(range(first, first + 2**40, 3)):
            if stopped():
                return
            arrays = make_arrays(seed, num_steps_of(seed))
            if turn % 4 == 0:
                committed(recorder.record_episode(arrays, {"seed": seed}).uid, seed)
            elif turn % 4 == 1:
                with recorder.episode(seed=seed) as episode:
                    for step in range(num_steps_of(seed)):
                        episode.append(make_step(seed, step))
                committed(episode.uid, seed)
            elif turn % 4 == 2:
                with salus.Recorder(salus.open(path, mode="a")) as another:
                    committed(another.record_episode(arrays, {"seed": seed}).uid, seed)
            else:
                with recorder.vector(3) as vector:
                    for env in range(3):
                        for step in range(num_steps_of(seed + env)):
                            values = make_step(seed + env, step)
                            vector.append({name: [value] for name, value in values.items()}, env_ids=[env])
                    futures = vector.end(range(3), metadata=[{"seed": seed + env} for env in range(3)])
                    for env, future in enumerate(futures):
                        committed(future.result().uid, seed + env)
            if turn % 8 == 7:
                dataset.refresh()
                uid = uids.pop(rng.randrange(len(uids)))
                dataset.delete(uid)
                say("deleted", {"uid": uid})
                dataset.set_outcome(uids[-1], "success")
                dataset.publish(whole=turn % 80 == 79)
            time.sleep(rng.uniform(0, 0.2))


def read_on(path: Path, _: int, rng: random.Random, say: Say) -> None:
    """Refresh, and read random windows of 2 steps, until SIGTERM."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (READER_FILES, READER_FILES))
    salus.gather.CHUNK_CACHE_BYTES = salus.gather.LABEL_CACHE_BYTES = READER_CACHE_BYTES  # type: ignore[attr-defined]
    stopped, dataset, reads = until_terminated(), salus.open(path), 0
    while not stopped():
        dataset.refresh()
        for _ in range(10 if len(dataset) else 0):
            numbers = rng.choices(range(len(dataset)), k=8)
            pairs = [(number, rng.randrange(len(dataset[number]))) for number in numbers]
            batch = dataset.gather({"camera": pairs, "states": pairs})
            number, step = pairs[0]
            expected = make_step(dataset[number].metadata["seed"], step)
            for name in ("camera", "states"):
                np.testing.assert_array_equal(batch[name][0], expected[name])
            reads += len(pairs)
        time.sleep(0.1)
    say("read", reads)


def until_terminated() -> Callable[[], bool]:
    """Whether SIGTERM has come; from here on it does nothing else."""
    came: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    return lambda: bool(came)


def recover_once(path: Path, _: int, rng: random.Random, say: Say) -> None:
    """What died is brought back, while the others record."""
    report = salus.recover(path)
    say("recovered", {"salvaged": len(report.salvaged), "aborted": len(report.aborted)})


# --- the soak ------------------------------------------------------------------------------------------------------


class Soak:
    """One recording, as long as it is told to take."""

    def __init__(self, path: Path, seed: int) -> None:
        self.processes = Processes(path, seed, "")
        self.samples: dict[str, list[Sample]] = {"recorder": [], "reader": []}
        self.fresh: dict[str, list[Sample]] = {"recorder": [], "reader": []}
        self.kills = 0
        self._path = path
        self._rng = random.Random(seed)  # noqa: S311 - who dies when

    def run(self, seconds: float) -> None:
        """Record, with writers that die, and take samples; then end them all."""
        self.processes.start(lambda path, *_: [salus.create(path, SCHEMA)])  # type: ignore[arg-type,return-value]
        assert self.processes.listen(END_S), "the dataset is not created"
        lives = {"recorder": self.processes.start(record_on), "reader": self.processes.start(read_on)}
        began, now, writers = time.monotonic(), 0.0, dict[int, float]()  # pid: when it is to die
        sample_at, recover_at = SAMPLE_S, 2.0
        while now < seconds:
            while len(writers) < 2:
                writers[self.processes.start(self._rng.choice(WRITERS))] = now + self._rng.uniform(0.2, 4)
            self.processes.listen(max(min(sample_at, recover_at, *writers.values()) - now, 0))
            now = time.monotonic() - began
            for pid in [pid for pid, due in writers.items() if due <= now]:
                assert self.processes.alive(pid), self._bad_news()
                os.kill(pid, signal.SIGKILL)
                del writers[pid]
                self.kills += 1
            if recover_at <= now:
                self.processes.start(recover_once)
                recover_at = now + self._rng.uniform(2, 8)
            if sample_at <= now:
                for name, pid in lives.items():
                    assert self.processes.alive(pid), self._bad_news()
                    self.samples[name].append(Sample.of(pid, len(self.all("committed"))))
                sample_at += SAMPLE_S
        for pid in writers:
            os.kill(pid, signal.SIGKILL)
        for pid in lives.values():
            os.kill(pid, signal.SIGTERM)
        assert self.processes.listen(END_S), "a process does not end"
        assert not self._bad_news(), self._bad_news()
        self._measure_fresh(max(6.0, min(FRESH_S, seconds / 10)))

    def _measure_fresh(self, seconds: float) -> None:
        """What the same two take that have not lived long, on the same dataset: more than that is a leak."""
        fresh = {"recorder": self.processes.start(record_on), "reader": self.processes.start(read_on)}
        for _ in range(round(seconds / SAMPLE_S)):
            self.processes.listen(SAMPLE_S)
            for name, pid in fresh.items():
                assert self.processes.alive(pid), self._bad_news()
                self.fresh[name].append(Sample.of(pid, len(self.all("committed"))))
        for pid in fresh.values():
            os.kill(pid, signal.SIGTERM)
        assert self.processes.listen(END_S), "a process does not end"
        assert not self._bad_news(), self._bad_news()

    def all(self, event: str) -> list[Any]:
        """The details of all events of a kind."""
        return [line.details for line in self.processes.lines if line.event == event]

    def _bad_news(self) -> str:
        return "\n".join([*self.all("raised"), *self.all("refused")])

    def judge(self) -> dict[str, Any]:
        """What was acknowledged is there; in a child."""
        deleted = {details["uid"] for details in self.all("deleted")}
        committed = {details["uid"]: details["seed"] for details in self.all("committed")}
        recover(self._path)
        dataset = salus.open(self._path)
        gone = deleted | {details["uid"] for details in self.all("discarded")}
        check_episodes(dataset, {uid: seed for uid, seed in committed.items() if uid not in deleted}, gone)
        check_that_work_goes_on(self._path, newest=200)
        return {"episodes": len(dataset)}


def medians(samples: list[Sample]) -> Sample:
    """The median of each."""
    return Sample(*(round(statistics.median(column)) for column in zip(*samples, strict=True)))


def check_growth(name: str, samples: list[Sample], fresh: list[Sample]) -> str:
    """Raise AssertionError where a process that lived long takes more than a fresh one that knows the same log.

    A process grows with the dataset that it knows; what goes beyond that has leaked. Says what both take.
    """
    quarter = len(samples) // 4
    early, late, other = medians(samples[quarter : 2 * quarter]), medians(samples[-quarter:]), medians(fresh)
    said = (
        f"{name} at {late.rss / 2**20:.0f} MiB and {late.descriptors} descriptors in the last quarter, "
        f"{early.rss / 2**20:.0f} MiB and {early.descriptors} in the second, a fresh one after it "
        f"{other.rss / 2**20:.0f} MiB and {other.descriptors}"
    )
    assert late.descriptors - early.descriptors <= SOME_DESCRIPTORS, said
    allowed = other.rss * (1 + GROWTH_SHARE) + GROWTH_BYTES
    assert late.rss <= allowed, f"{said}, expected at most {allowed / 2**20:.0f} MiB"
    return said


def main() -> None:
    """Soak for as many minutes as the command line says, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warm_up()
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="salus-soak-") as folder:
        soak = Soak(Path(folder) / "data.zarr", arguments.seed)
        try:
            soak.run(60 * arguments.minutes)
        finally:
            soak.processes.kill()
        answer = in_child(soak.judge)
    for name, samples in soak.samples.items():
        for sample in samples[:: max(len(samples) // 20, 1)]:
            sys.stderr.write(f"{name}: {sample.rss / 2**20:.1f} MiB, {sample}\n")
    assert "lost" not in answer, answer["lost"]
    grew = [check_growth(name, samples, soak.fresh[name]) for name, samples in soak.samples.items()]
    recovered = soak.all("recovered")
    counts = (
        (len(soak.all("committed")), "episodes acknowledged"),
        (len(soak.all("deleted")), "deleted"),
        (soak.kills, "writers killed"),
        (len(recovered), "recoveries"),
        (sum(each["salvaged"] for each in recovered), "episodes salvaged"),
        (sum(soak.all("read")), "steps read"),
    )
    print(  # noqa: T201
        f"{arguments.minutes:g} minutes, {', '.join(f'{count} {what}' for count, what in counts)}; {'; '.join(grew)}: "
        "none lost, nothing left behind"
    )


if __name__ == "__main__":
    main()
