"""One episode of an hour: 3 cameras of 640 × 480 RGB at 30 Hz, 42 floats, and joints at 1 kHz. Does memory stay flat?

    python benchmarks/long_episode.py [--hours 1] [--folder DIR]

Recorded as fast as it goes; the stamps are those of the hour. Takes about 12 GB of disk. Prints memory and descriptors
of the process along the way, and reads the first and the last second back.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

import salus
from salus.bench.latency import Cameras

RATE_HZ, JOINTS_HZ = 30, 1000


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    cameras = Cameras(rate_hz=RATE_HZ, noise=0)
    schema = salus.Schema(
        {**cameras.schema().features, "q": salus.Feature((7,), clock="joints")},
        rate_hz=RATE_HZ,
        clocks={"joints": JOINTS_HZ},
    )
    num_steps = round(options.hours * 3600 * RATE_HZ)
    frames, numbers = cameras.frames(), np.random.default_rng(0).normal(size=(64, 42)).astype(np.float32)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        dataset = salus.create(Path(folder) / "data.zarr", schema)
        print("| steps | joints | resident, MB | descriptors | steps/s |\n|---:|---:|---:|---:|---:|")
        with salus.Recorder(dataset) as recorder, recorder.episode() as episode:
            began, ticks = time.perf_counter(), 0
            for step in range(num_steps):
                images = dict(zip(cameras.names, frames[step % len(frames)], strict=True))
                row = numbers[step % 64]
                episode.append(images, states=row[:28], actions=row[28:], timestamp_ns=step * 10**9 // RATE_HZ)
                until = (step + 1) * JOINTS_HZ // RATE_HZ
                stamps = np.arange(ticks, until) * (10**9 // JOINTS_HZ)
                episode.push("joints", np.broadcast_to(row[:7], (len(stamps), 7)), timestamp_ns=stamps)
                ticks = until
                if step % max(num_steps // 12, 1) == 0 or step == num_steps - 1:
                    descriptors, speed = len(os.listdir("/proc/self/fd")), step / (time.perf_counter() - began)
                    print(f"| {step + 1} | {ticks} | {resident_mb():.0f} | {descriptors} | {speed:.0f} |", flush=True)
        began = time.perf_counter()
        read = salus.open(Path(folder) / "data.zarr")[0]
        assert (len(read), read.clock_lengths["joints"]) == (num_steps, ticks)
        for steps in (range(RATE_HZ), range(num_steps - RATE_HZ, num_steps)):
            for camera, name in enumerate(cameras.names):
                expected = np.stack([frames[step % len(frames)][camera] for step in steps])
                np.testing.assert_array_equal(read[name][steps.start : steps.stop], expected)
        print(
            f"\n{read.stored_bytes / 2**30:.1f} GiB stored of {num_steps * frames[0].nbytes / 2**30:.0f}; opened, and "
            f"the first and the last second read back, in {time.perf_counter() - began:.1f} s; {resident_mb():.0f} MB"
        )


if __name__ == "__main__":
    main()
