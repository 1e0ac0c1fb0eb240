"""Memory of a training process after 10 epochs of the loader against after 1.

    python benchmarks/loader_memory.py

Two 224 × 224 cameras and 16 actions, batches of 64, shuffled; a process of its own. A training step takes 30 ms here.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np

import salus

EPISODES, STEPS, EPOCHS, TRAINING_S = 40, 100, 10, 0.03


def write(path: Path) -> None:
    schema = salus.Schema(
        {
            "front": salus.Image(height=224, width=224),
            "wrist": salus.Image(height=224, width=224),
            "actions": salus.Feature((7,)),
        },
        rate_hz=25,
    )
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:224, 0:224]
    with salus.Recorder(salus.create(path, schema)) as recorder:
        for episode in range(EPISODES):
            images = np.broadcast_to(((x + y + episode) // 8 * 8 % 256).astype(np.uint8), (STEPS, 3, 224, 224)).copy()
            images[:, :, ::16] = random.integers(0, 256, (STEPS, 3, 14, 224), dtype=np.uint8)
            actions = random.normal(size=(STEPS, 7)).astype(np.float32)
            recorder.record_episode({"front": images, "wrist": images[:, ::-1], "actions": actions})


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def train(path: Path) -> None:
    import salus.torch

    windows = salus.torch.WindowDataset(salus.open(path), {"front": 0, "wrist": 0, "actions": range(16)})
    loader = salus.torch.Loader(windows, 64, shuffle=True)
    after = []
    for _ in range(EPOCHS):
        for batch in loader:
            time.sleep(TRAINING_S)  # a step that takes longer than loading, so that batches lie ready, as they should
            del batch
        after.append(resident_bytes())
    megabytes = ", ".join(f"{value / 1e6:.0f}" for value in after)
    print(f"resident after each of {EPOCHS} epochs of {len(loader)} batches: {megabytes} MB")
    print(f"after {EPOCHS} against after 1: {after[-1] / after[0]:.3f} ×")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.zarr"
        write(path)
        process = multiprocessing.get_context("spawn").Process(target=train, args=(path,))
        process.start()
        process.join()
        assert process.exitcode == 0


if __name__ == "__main__":
    main()
