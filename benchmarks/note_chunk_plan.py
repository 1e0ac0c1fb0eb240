"""The chunk plan of the original note, `(100, 10, 1, 224, 224)`, beside one shard per episode segment.

    python benchmarks/note_chunk_plan.py

Reads and writes one episode of 20 steps among 100, and lets two processes write neighbouring episodes of the note's
array at the same time. Contestants take turns over several rounds; medians are shown.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import zarr

import salus

EPISODES, STEPS, ROUNDS = 100, 20, 5


def episode_images(seed: int) -> np.ndarray:
    """uint8 (20, 3, 224, 224): a gradient with a square that moves."""
    y, x = np.mgrid[0:224, 0:224]
    images = np.broadcast_to(((x * 0.7 + y * 0.4) % 256).astype(np.uint8), (STEPS, 3, 224, 224)).copy()
    for step in range(STEPS):
        images[step, :, 50 + step : 90 + step, 60:100] = (seed * 37 + step) % 256
    return images


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def write_rows(path: Path, rows: range, barrier: Any) -> None:
    array = zarr.open_group(path, mode="r+")["images"]
    barrier.wait()
    for row in rows:
        array[row] = np.full((STEPS, 3, 224, 224), row + 1, np.uint8)


def lost_rows(path: Path) -> int:
    """Of 8 neighbouring episodes written by two processes at once, how many are not what was written."""
    barrier = multiprocessing.Barrier(2)
    rows = [range(start, 8, 2) for start in (0, 1)]
    writers = [multiprocessing.Process(target=write_rows, args=(path, part, barrier)) for part in rows]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    images = zarr.open_group(path, mode="r")["images"][:8]
    return sum(not (images[row] == row + 1).all() for row in range(8))


def main(folder: Path) -> None:
    note = zarr.open_group(folder / "note.zarr", mode="w")
    array = note.create_array(
        "images", shape=(EPISODES, STEPS, 3, 224, 224), chunks=(100, 10, 1, 224, 224), dtype="uint8"
    )
    episodes = [episode_images(seed) for seed in range(EPISODES)]
    array[:] = np.stack(episodes)
    schema = salus.Schema({"images": salus.Image(height=224, width=224)}, rate_hz=30)
    times: dict[str, list[float]] = {"read, note": [], "read, SALUS": [], "write, note": [], "write, SALUS": []}
    with salus.Recorder(salus.create(folder / "data.zarr", schema)) as recorder:
        for images in episodes:
            recorder.record_episode({"images": images})
        dataset = salus.open(folder / "data.zarr")
        for round_number in range(ROUNDS):
            row = 17 * (round_number + 1) % EPISODES
            times["read, note"].append(seconds(lambda row=row: array[row]))
            times["read, SALUS"].append(seconds(lambda row=row: dataset[row]["images"][:]))
            times["write, note"].append(seconds(lambda row=row: array.__setitem__(row, episodes[row])))
            times["write, SALUS"].append(seconds(lambda row=row: recorder.record_episode({"images": episodes[row]})))
    print(f"one episode of {STEPS} steps among {EPISODES}, median of {ROUNDS}\n")
    print("| | note's plan | SALUS | ratio |\n|---|---|---|---|")
    for what in ("read", "write"):
        theirs, ours = median(times[f"{what}, note"]), median(times[f"{what}, SALUS"])
        print(f"| {what} | {theirs * 1e3:.0f} ms | {ours * 1e3:.1f} ms | {theirs / ours:.0f} × |")
    print(
        f"\ntwo processes on neighbouring episodes, note's plan: {lost_rows(folder / 'note.zarr')} of 8 episodes lost"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
