"""What windows in seconds and mixtures cost beside windows in steps, and what making a large window dataset costs.

    python benchmarks/windows.py

Batches of 64: two 96 × 96 images, 16 actions and a state per sample; warm cache. The contestants take turns over
several rounds; medians are shown, and what matters is their ratio to windows in steps.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

import salus
import salus.torch
from salus.view import DatasetView

ROUNDS = 9
BATCHES = 30
EPISODES, STEPS = 40, 100
LARGE = 100_000


def recorded(path: Path, seed: int) -> salus.Dataset:
    random = np.random.default_rng(seed)
    features = {
        "images": salus.Image(height=96, width=96),
        "states": salus.Feature((7,)),
        "actions": salus.Feature((7,)),
    }
    images = random.integers(0, 256, (STEPS, 3, 96, 96), dtype=np.uint8)
    images[:, :, 20:80] = 30  # noise all over would not compress, and would be copied instead of decoded
    with salus.Recorder(salus.create(path, salus.Schema(features, rate_hz=30))) as recorder:
        for _ in range(EPISODES):
            numbers = {name: random.normal(size=(STEPS, 7)) for name in ("states", "actions")}
            recorder.record_episode({"images": images, **numbers})
    return salus.open(path)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = (recorded(Path(folder, name), seed) for seed, name in enumerate("ab"))
        in_steps = {"images": [-1, 0], "actions": range(-1, 15), "states": 0}
        at = np.arange(-1, 15) / 30
        timed = {"images": salus.Seconds([-1 / 30, 0]), "actions": salus.Seconds(at), "states": salus.Seconds(0)}
        mixed = {**timed, "actions": salus.Seconds(at, "linear")}
        make = salus.torch.WindowDataset
        contestants = {
            "steps": make(first, in_steps),
            "seconds, nearest": make(first, timed),
            "seconds, actions interpolated": make(first, mixed),
            "steps, of two datasets": make(salus.concat([first, second]), in_steps),
        }
        random = np.random.default_rng(0)
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(ROUNDS + 1):
            for name, windows in contestants.items():
                batches = random.integers(0, len(windows), (BATCHES, 64))
                took = seconds(lambda w=windows, b=batches: [w.batch(samples) for samples in b])
                if number:  # the first round fills the caches
                    times[name].append(took / BATCHES)
        for name, took in times.items():
            ratio = median(a / b for a, b in zip(took, times["steps"], strict=True))
            print(f"{name:32} {median(took) * 1e3:6.2f} ms a batch, {ratio:5.2f} ×")

        entry = next(iter(first.episodes))._replace(num_steps=200)
        large = DatasetView(first._reader, first._schemas, first._snapshot, [entry] * LARGE)
        took_s = median(seconds(lambda: make(large, in_steps, stride=2, pad_before=1, pad_after=7)) for _ in range(5))
        print(f"making the windows of {LARGE:,} episodes of 200 steps: {took_s * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
