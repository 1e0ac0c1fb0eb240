"""How fast `salus.verify` is, against reading every value with `view.scan` and with the loader: interleaved, medians.

    python benchmarks/verify_speed.py [--episodes 24] [--rounds 7] [--folder DIR]

Two 224 × 224 cameras (shading with sensor noise on a third of the pixels) and 42 floats, 200 steps an episode; the page
cache is warm. All read the same shards. Asked for: verify at 0.7 of the speed of each, or more.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

import salus
import salus.torch

STEPS = 200


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
    y, x = np.mgrid[0:480, 0:640]
    shading = np.stack([120 + 80 * np.sin(x / 97 + y / 131 + phase) for phase in range(3)], axis=-1)
    texture = random.normal(0, 3, (480, 640, 1)) * (random.random((480, 640, 1)) < 0.35)
    picture = (shading + texture).clip(0, 255).astype(np.uint8)
    images = np.stack([picture[n % 250 : n % 250 + 224, n : n + 224].transpose(2, 0, 1) for n in range(STEPS)])
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
    windows = salus.torch.WindowDataset(
        salus.open(path), {name: [0] for name in ("front", "wrist", "states", "actions")}
    )
    for batch in salus.torch.Loader(windows, batch_size=64):
        del batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where the dataset is made, and removed again")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder, prefix="salus-verify-"))
    ways: dict[str, Callable[[Path], None]] = {"verify": verify, "scan": scan, "loader": load}
    try:
        path = folder / "data.zarr"
        record(path, arguments.episodes)
        stored = salus.open(path).stored_bytes
        took: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(arguments.rounds + 1):
            for name, way in ways.items():
                began = time.perf_counter()
                way(path)
                if number:  # the first round warms up
                    took[name].append(time.perf_counter() - began)
    finally:
        shutil.rmtree(folder)
    print(f"{arguments.episodes} episodes, {arguments.episodes * STEPS} steps, {stored / 1e6:.0f} MB stored")
    for name, times in took.items():
        speeds = [stored / 1e6 / one for one in times]
        ratio = median(other / one for one, other in zip(took["verify"], times, strict=True))
        against = "" if name == "verify" else f"   verify is {ratio:.2f} times as fast"
        print(f"{name:8} {median(speeds):7.0f} MB/s ({min(speeds):.0f} to {max(speeds):.0f}){against}")


if __name__ == "__main__":
    main()
