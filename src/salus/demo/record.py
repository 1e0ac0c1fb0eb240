"""Recording from several processes into one dataset. Each process opens the dataset and has its own recorder."""

from __future__ import annotations

import multiprocessing
import queue
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.queues import Queue
from pathlib import Path

from ..errors import RecordingError
from ..labels import Outcome
from ..opening import create, open
from ..recorder import Recorder
from ..schema import SALUS, Feature, Schema
from ..view import DatasetView
from .sim import ACTION_NAMES, RATE_HZ, SIGNAL_NAMES, STATE_NAMES, PickAndPlace

TASK = "pick up the block and put it on the target"


def demo_schema() -> Schema:
    """The SALUS preset, with the names of this robot's components."""
    named = {"states": STATE_NAMES, "actions": ACTION_NAMES, "signals": SIGNAL_NAMES}
    features = {name: Feature((len(names),), names=names) for name, names in named.items()}
    return replace(SALUS, features={**SALUS.features, **features}, rate_hz=RATE_HZ)


@dataclass(frozen=True)
class Recorded:
    """One recorded episode, as a recording process reports it.

    Attributes:
        outcome: How it ended.
        num_steps: Its length.
        duration_s: Wall time of simulating, rendering and recording it.
        recording_s: The part of it spent inside `append` and `commit`.
    """

    outcome: Outcome
    num_steps: int
    duration_s: float
    recording_s: float


def record(path: Path, *, num_episodes: int, num_processes: int) -> Iterator[Recorded]:
    """Record episodes in parallel processes; yields each as soon as it is committed.

    A dataset that is there already is gone on with: new episodes get new seeds.

    Raises:
        RecordingError: A process died. What it had committed stays.
        MissingExtraError: The simulator is not installed.
    """
    dataset = create(path, demo_schema(), exist_ok=True)
    first = next_seed(dataset)
    seeds = [list(range(first + rank, first + num_episodes, num_processes)) for rank in range(num_processes)]
    context = multiprocessing.get_context("spawn")
    reports: Queue[Recorded] = context.Queue()
    processes = [
        context.Process(target=_record_seeds, args=(path, part, reports), daemon=True) for part in seeds if part
    ]
    for process in processes:
        process.start()
    try:
        for _ in range(num_episodes):
            yield _next_report(reports, processes)
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
    if any(process.exitcode for process in processes):
        raise RecordingError("demo: a recording process failed while it closed; its message is above")


def _next_report(reports: Queue[Recorded], processes: Sequence[multiprocessing.process.BaseProcess]) -> Recorded:
    while True:
        # Looked at before the queue: a process that ended well has reported everything.
        failed = any(process.exitcode for process in processes)
        try:
            return reports.get(timeout=0.5)
        except queue.Empty:
            if failed:
                raise RecordingError(
                    "demo: a recording process died; its message is above, and what it had committed is kept"
                ) from None


def _record_seeds(path: Path, seeds: list[int], reports: Queue[Recorded]) -> None:
    with PickAndPlace() as robot, Recorder(open(path, mode="a")) as recorder:
        for seed in seeds:
            reports.put(_record_one(robot, recorder, seed))


def _record_one(robot: PickAndPlace, recorder: Recorder, seed: int) -> Recorded:
    started, recording = time.perf_counter(), 0.0
    rollout = robot.rollout(seed)
    with recorder.episode(task=TASK, seed=seed, robot="Fetch (MuJoCo)") as episode:
        while True:
            try:
                step = next(rollout)
            except StopIteration as end:
                verdict = end.value
                break
            before = time.perf_counter()
            episode.append(step, timestamp_ns=robot.time_ns)
            recording += time.perf_counter() - before
        if verdict.success:
            episode.succeed()
        else:
            episode.fail(verdict.kind, step=verdict.step)
        before = time.perf_counter()
        entry = episode.commit()
        recording += time.perf_counter() - before
    return Recorded(entry.outcome, entry.num_steps, time.perf_counter() - started, recording)


def next_seed(dataset: DatasetView) -> int:
    """The first seed that no episode has used yet."""
    return max((int(episode.metadata["seed"]) for episode in dataset), default=-1) + 1
