"""What statistics cost while recording: the same episodes with and without, in turns.

    python benchmarks/episode_statistics.py [folder]

Two 224 × 224 cameras and 42 floats, 200 steps an episode, handed over step by step as fast as the recorder takes them.
Medians of interleaved rounds: steps per second, processor time, time in `append`, and the record's size. `folder`
is where the episodes go; by default memory (/dev/shm), as a disk would hide the cost.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from scenery import moving_camera

import salus
from salus.layout import record_key
from salus.recorder import recorder as recorder_module
from salus.statistics import EpisodeStatistics

STEPS, EPISODES, ROUNDS = 200, 3, 9

SCHEMA = salus.Schema(
    {
        "front": salus.Image(height=224, width=224),
        "wrist": salus.Image(height=224, width=224),
        "states": salus.Feature((28,)),
        "actions": salus.Feature((14,)),
    },
    rate_hz=30,
)


class Nothing(EpisodeStatistics):
    """Statistics of no feature."""

    def __init__(self, schema: salus.Schema) -> None:
        super().__init__(schema, [])


def record(path: Path, steps: list[dict[str, np.ndarray]]) -> tuple[float, float, float, int]:
    started, used, waited = time.perf_counter(), time.process_time(), 0.0
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        for _ in range(EPISODES):
            with recorder.episode() as episode:
                for step in steps:
                    before = time.perf_counter()
                    episode.append(step)
                    waited += time.perf_counter() - before
        taken, used = time.perf_counter() - started, time.process_time() - used
    count = EPISODES * STEPS
    return count / taken, used / count * 1e3, waited / count * 1e3, (path / record_key(0)).stat().st_size


def main(folder: Path) -> None:
    random = np.random.default_rng(1)
    images = moving_camera(STEPS)
    numbers = np.cumsum(random.normal(size=(STEPS, 42)), axis=0).astype(np.float32)
    steps = [
        {"front": images[n], "wrist": images[-n], "states": numbers[n, :28], "actions": numbers[n, 28:]}
        for n in range(STEPS)
    ]
    kinds = {"without": Nothing, "with": EpisodeStatistics}
    results: dict[str, list[tuple[float, float, float, int]]] = {name: [] for name in kinds}
    for number in range(ROUNDS + 1):
        for name, kind in kinds.items():
            recorder_module.EpisodeStatistics = kind  # type: ignore[misc]
            path = folder / "data.zarr"
            result = record(path, steps)
            shutil.rmtree(path)
            if number:  # the first is for warming up
                results[name].append(result)
    rows = {name: [median(column) for column in zip(*found, strict=True)] for name, found in results.items()}
    assert rows["without"][-1] < rows["with"][-1], "statistics were not left out of the records"
    print("| | without | with | ratio |\n|---|---|---|---|")
    what = ("steps/s", "processor time of a step, ms", "time in `append`, ms", "record, bytes")
    for place, title in enumerate(what):
        before, after = rows["without"][place], rows["with"][place]
        print(f"| {title} | {before:.4g} | {after:.4g} | {after / before:.3f} |")


if __name__ == "__main__":
    place = Path(tempfile.mkdtemp(prefix="salus-statistics-", dir=sys.argv[1] if sys.argv[1:] else "/dev/shm"))  # noqa: S108
    try:
        main(place)
    finally:
        shutil.rmtree(place)
