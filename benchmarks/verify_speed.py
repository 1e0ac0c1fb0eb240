"""How fast `salus.verify` is, against reading every value with `view.scan` and with the loader: interleaved, medians.

    python benchmarks/verify_speed.py [--episodes 24] [--short 1000] [--rounds 7] [--folder DIR]

First two 224 × 224 cameras (shading with sensor noise on a third of the pixels) and 42 floats, 200 steps an episode;
then so many short episodes of 50 steps with the floats alone, where it is the small documents that cost. The page cache
is warm. All read the same shards. Asked for: verify at 0.7 of the speed of each, or more.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from scenery import moving_camera

import salus
import salus.torch

STEPS = 200


def record_short(path: Path, episodes: int) -> None:
    schema = salus.Schema({"states": salus.Feature((28,)), "actions": salus.Feature((14,))}, rate_hz=50)
    random = np.random.default_rng(0)
    with salus.Recorder(salus.create(path, schema)) as recorder:
        for _ in range(episodes):
            numbers = random.normal(size=(50, 42)).astype(np.float32)
            recorder.record_episode({"states": numbers[:, :28], "actions": numbers[:, 28:]})


def record(path: Path, episodes: int) -> None:
    schema = salus.Schema(
        {
            "front": salus.Image(height=224, width=224),
            "wrist": salus.Image(height=224, width=224),
            "states": salus.Feature((28,)),
            "actions": salus.Feature((14,)),
        },
        rate_hz=50,
    )
    random = np.random.default_rng(0)
    images = moving_camera(STEPS)
    with salus.Recorder(salus.create(path, schema)) as recorder:
        for _ in range(episodes):
            numbers = np.cumsum(random.normal(size=(STEPS, 42)), axis=0).astype(np.float32)
            arrays = {"front": images, "wrist": images[::-1], "states": numbers[:, :28], "actions": numbers[:, 28:]}
            recorder.record_episode(arrays)


def verify(path: Path) -> None:
    report = salus.verify(path)
    assert report.is_whole, report.findings


def scan(path: Path) -> None:
    for block in salus.open(path).scan():
        del block


def load(path: Path) -> None:
    dataset = salus.open(path)
    windows = salus.torch.WindowDataset(dataset, {name: [0] for name in dataset.schema.features})
    for batch in salus.torch.Loader(windows, batch_size=64):
        del batch


def measure(path: Path, rounds: int) -> None:
    ways: dict[str, Callable[[Path], None]] = {"verify": verify, "scan": scan, "loader": load}
    dataset = salus.open(path)
    took: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way(path)
            if number:  # the first round warms up
                took[name].append(time.perf_counter() - began)
    print(f"{len(dataset)} episodes, {dataset.num_steps} steps, {dataset.stored_bytes / 1e6:.0f} MB stored")
    for name, times in took.items():
        speeds = [dataset.stored_bytes / 1e6 / one for one in times]
        ratio = median(other / one for one, other in zip(took["verify"], times, strict=True))
        against = "" if name == "verify" else f"   verify is {ratio:.2f} times as fast"
        print(f"{name:8} {median(speeds):7.1f} MB/s ({min(speeds):.1f} to {max(speeds):.1f}){against}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--short", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where the datasets are made, and removed again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="salus-verify-") as folder:
        record(Path(folder) / "data.zarr", arguments.episodes)
        measure(Path(folder) / "data.zarr", arguments.rounds)
        record_short(Path(folder) / "short.zarr", arguments.short)
        measure(Path(folder) / "short.zarr", arguments.rounds)


if __name__ == "__main__":
    main()
