"""What `append` costs a robot's control loop: 3 cameras of 640 × 480 RGB at 50 Hz and 42 floats, paced by the clock.

    python benchmarks/append_latency.py [--seconds 60] [--runs 3] [--codec zstd --codec jpeg] [--folder DIR]

In the same loop, other frames of the same size are copied just before each `append`, so what `append` costs beyond
copying, and what the machine itself does to any such loop, come from one run. "beyond" is p99.9 of `append` minus the
median of copying. "late" is how late the loop wakes up: that is the operating system and the GIL, not `append`.
"bits/byte" is what a byte of the frames takes on disk. CPU is that of the whole process, 1.0 being one core. On a
machine with other work, `--realtime` keeps that work out of the figures, but neither the encoding threads nor the GIL.

`--full-speed N` records N steps as fast as it goes instead, and prints steps per second.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import salus
from salus.bench.latency import Cameras, Run, record, summary


def show(run: Run, label: str) -> None:
    append, copy, late = summary(run.append_s), summary(run.copy_s), summary(run.late_s)
    figures = " | ".join(f"{value:.2f}" for values in (append, copy) for value in values.values())
    print(
        f"| {label} | {figures} | {run.beyond_copy_ms:.2f} | {late['p99.9']:.1f} | {run.lost} | "
        f"{run.bits_per_byte:.2f} | {run.cpu:.2f} | {run.queue.peak_bytes / 2**20:.0f} | {os.getloadavg()[0]:.1f} |",
        flush=True,
    )


def full_speed(folder: Path, cameras: Cameras, steps: int) -> float:
    frames = cameras.frames()
    states, actions = [0.0] * 28, [0.0] * 14
    with salus.Recorder(salus.create(folder, cameras.schema())) as recorder:
        began = time.perf_counter()
        with recorder.episode() as episode:
            for number in range(steps):
                images = dict(zip(cameras.names, frames[number % len(frames)], strict=True))
                episode.append(images, states=states, actions=actions)
        return steps / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--codec", action="append", choices=["zstd", "jpeg"])
    parser.add_argument("--cameras", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=[480, 640], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--realtime", action="store_true", help="The loop under SCHED_FIFO, as on robots.")
    parser.add_argument("--noise", type=float, default=1.0, help="Sensor noise, grey levels; 0 is a simulator.")
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--full-speed", type=int, default=0, metavar="STEPS")
    parser.add_argument("--folder", type=Path, help="Where to record; a temporary folder by default.")
    parser.add_argument("--json", type=Path, help="Also write all figures here.")
    options = parser.parse_args()
    documents = []
    if not options.full_speed:
        names = ["p50", "p99", "p99.9", "max"]
        heads = [f"{what} {name}" for what in ("append", "copy") for name in names]
        print(f"| ms | {' | '.join(heads)} | beyond | late p99.9 | lost | bits/byte | CPU | peak MiB | load |")
        print("|---|" + "---:|" * 15)
    for codec in options.codec or ["zstd", "jpeg"]:
        cameras = Cameras(options.cameras, *options.size, rate_hz=options.rate, codec=codec, noise=options.noise)
        for number in range(options.runs):
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                path = Path(folder) / "data.zarr"
                if options.full_speed:
                    print(f"{codec}: {full_speed(path, cameras, options.full_speed):.0f} steps/s", flush=True)
                else:
                    run = record(
                        salus.create(path, cameras.schema()),
                        cameras,
                        seconds=options.seconds,
                        realtime=options.realtime,
                    )
                    show(run, f"{codec} {number + 1}")
                    documents.append({"codec": codec, **run.to_json()})
                shutil.rmtree(path)
    if options.json:
        options.json.write_text(json.dumps(documents, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
