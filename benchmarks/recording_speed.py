"""Recording at full speed, by this version and by another commit: steps per second, interleaved, medians.

    python benchmarks/recording_speed.py BASE_COMMIT [--rounds 9] [--folder DIR]

Each version runs in a process of its own, which records one episode when it is told to. Three kinds: whole episodes as
arrays, step by step with `append`, and step by step from four threads into four episodes. Two 224 × 224 cameras,
rendered shading with sensor noise on a third of the pixels, which zstd takes to about a third, and 42 floats. "CPU" is
processor time per step, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import numpy as np
from scenery import moving_camera

STEPS = 300
KINDS = ("whole", "append", "four threads")


def serve(folder: Path) -> None:
    """Record when told to on stdin; answer with steps per second, of which all are durable."""
    import salus

    schema = salus.Schema(
        {
            "front": salus.Image(height=224, width=224),
            "wrist": salus.Image(height=224, width=224),
            "states": salus.Feature((28,)),
            "actions": salus.Feature((14,)),
        },
        rate_hz=50,
    )
    images = moving_camera(STEPS)
    numbers = np.cumsum(np.random.default_rng(1).normal(size=(STEPS, 42)), axis=0).astype(np.float32)
    arrays = {"front": images, "wrist": images[::-1], "states": numbers[:, :28], "actions": numbers[:, 28:]}
    steps = [{name: values[number] for name, values in arrays.items()} for number in range(STEPS)]

    def record(recorder: salus.Recorder) -> None:
        with recorder.episode() as episode:
            for step in steps:
                episode.append(step)

    for line in sys.stdin:
        path, kind = folder / "data.zarr", line.strip()
        with salus.Recorder(salus.create(path, schema)) as recorder:
            recorder.start().discard()  # so that buffers are made before the clock starts
            began, used = time.perf_counter(), time.process_time()
            if kind == "whole":
                recorder.record_episode(arrays)
            elif kind == "append":
                record(recorder)
            else:
                threads = [threading.Thread(target=record, args=(recorder,)) for _ in range(4)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            taken, used = time.perf_counter() - began, time.process_time() - used
        shutil.rmtree(path)
        count = STEPS * (4 if kind == "four threads" else 1)
        print(count / taken, used / count * 1e3, flush=True)


def ask(process: subprocess.Popen[str], kind: str) -> tuple[float, float]:
    """Steps per second, and milliseconds of processor time per step."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{kind}\n")
    process.stdin.flush()
    speed, used_ms = map(float, process.stdout.readline().split())
    return speed, used_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="The commit to compare with.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm") if Path("/dev/shm").is_dir() else None)  # noqa: S108
    options = parser.parse_args()
    root = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as checkout, tempfile.TemporaryDirectory(dir=options.folder) as folder:
        tar = subprocess.run(["git", "archive", options.base, "src"], cwd=root, check=True, capture_output=True).stdout  # noqa: S607
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            archive.extractall(checkout, filter="data")
        processes = {}
        for name, source in (("base", Path(checkout) / "src"), ("this", root / "src")):
            place = Path(folder) / name
            place.mkdir()
            processes[name] = subprocess.Popen(
                [sys.executable, __file__, "--serve", str(place)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(source)},
            )
        print(f"| | {options.base}, steps/s | this | ratio, median of rounds | CPU ms | this | ratio |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        for kind in KINDS:
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in processes}
            for number in range(options.rounds + 1):
                for name, process in processes.items():
                    answer = ask(process, kind)
                    if number:  # the first is for warming up
                        found[name].append(answer)
            cells = []
            for place, form in enumerate((".0f", ".2f")):
                before, now = ([answer[place] for answer in found[name]] for name in ("base", "this"))
                ratio = median(one / other for one, other in zip(now, before, strict=True))
                cells += [format(median(before), form), format(median(now), form), format(ratio, ".3f")]
            print(f"| {kind} | {' | '.join(cells)} |", flush=True)
        for process in processes.values():
            process.kill()
            process.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]))
    else:
        main()
