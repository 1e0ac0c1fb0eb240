"""What 100,000 episodes cost, beside 100: opening, random training batches, views sent to workers, memory.

    python benchmarks/many_episodes.py [folder] [--keep]

100 episodes of 200 steps, two 224 × 224 cameras, are recorded. The large dataset has their shards again and again,
under new slots, as hard links; each of its records carries its statistics. Its names and its records are those
of 100,000 episodes; the bytes of its images lie in the page cache, as those of the small one do.
Needs 5 GB of disk and 3 to 5 minutes, most of them for the set-up.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from scenery import picture

import salus
from salus import documents
from salus.layout import SLOTS_PER_FOLDER, record_key
from salus.log.snapshot import load, read_record, write_checkpoint
from salus.storage import open_storage

FEW, MANY, STEPS, BATCH = 100, 100_000, 200, 64
OPENINGS, FIRST_ROUNDS, ROUNDS = 9, 9, 150

SCHEMA = salus.Schema(
    {
        "front": salus.Image(height=224, width=224),
        "wrist": salus.Image(height=224, width=224),
        "states": salus.Feature((7,)),
        "actions": salus.Feature((7,)),
    },
    rate_hz=30,
    failure_kinds=("drop", "collision"),
)
WINDOWS = {"front": 0, "wrist": 0, "actions": range(16)}


# --- the datasets ------------------------------------------------------------------------------------------------


def record_few(path: Path) -> None:
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        for number in range(FEW):
            random = np.random.default_rng(number)
            images = picture(random, random.uniform(0, 2 * np.pi, 3))
            path_y, path_x = (np.cumsum(random.integers(0, 2, STEPS)) for _ in range(2))
            crops = [images[y : y + 224, x : x + 224].transpose(2, 0, 1) for y, x in zip(path_y, path_x, strict=True)]
            values = {name: random.normal(size=(STEPS, 7)).astype(np.float32) for name in ("states", "actions")}
            front = np.stack(crops)
            outcome = salus.Outcome("failure", "drop", STEPS // 2) if number % 3 == 0 else "success"
            task = {"task": f"pick up object {number % 10}"}
            recorder.record_episode({"front": front, "wrist": front[::-1], **values}, task, outcome=outcome)


def multiply(few: Path, many: Path) -> None:
    """100,000 episodes of the shards of 100, without `fsync`: a benchmark may be made again.

    A shard names the uid of its episode, so each uid is there a thousand times; only amendments would see it.
    """
    salus.create(many, SCHEMA)
    storage = open_storage(few)
    records = [read_record(storage, slot) for slot in range(FEW)]
    sealed = [json.loads(record.to_bytes()) for record in records if record is not None]
    for name in (*SCHEMA.features, "timestamp_ns"):
        (many / name).mkdir(exist_ok=True)
    for slot in range(MANY):
        document, old = sealed[slot % FEW], f"c.{slot % FEW}."
        shards = [{**shard, "key": shard["key"].replace(old, f"c.{slot}.")} for shard in document["shards"]]
        for before, after in zip(document["shards"], shards, strict=True):
            os.link(few / before["key"], many / after["key"])
        file = many / record_key(slot)
        if slot % SLOTS_PER_FOLDER == 0:
            file.parent.mkdir(parents=True)
        body = documents.seal({**document, "slot": slot, "shards": shards})
        file.write_bytes(body)


# --- what is measured --------------------------------------------------------------------------------------------


def resident_mb() -> float:
    """Resident memory of this process that is not shared with files."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def open_fresh(path: Path) -> tuple[float, float]:
    """Seconds and MB that `salus.open` takes, in a fresh interpreter."""
    command = [sys.executable, __file__, "--open", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, before, after = map(float, done.stdout.split())
    return seconds, after - before


def print_opening(path: str) -> None:
    before, started = resident_mb(), time.perf_counter()
    dataset = salus.open(path)
    seconds = time.perf_counter() - started
    assert len(dataset) in (FEW, MANY)
    print(seconds, before, resident_mb())


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def batches(path: Path) -> tuple[Callable[[], object], int]:
    """A reader of random batches on a dataset opened just now."""
    from salus.torch import WindowDataset

    windows = WindowDataset(salus.open(path), WINDOWS)
    random = np.random.default_rng(0)
    return lambda: windows.batch(random.integers(0, len(windows), BATCH)), len(windows)


def first_batches(paths: dict[str, Path]) -> dict[str, float]:
    """Milliseconds of the first batch after opening; medians of interleaved rounds."""
    times: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(FIRST_ROUNDS):
        for name, path in paths.items():
            read, _ = batches(path)
            times[name].append(seconds(read) * 1e3)
    return {name: median(values) for name, values in times.items()}


def steady_batches(paths: dict[str, Path]) -> dict[str, float]:
    """Milliseconds of a batch once the caches are full; medians of interleaved rounds."""
    reads = {name: batches(path)[0] for name, path in paths.items()}
    times: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(ROUNDS + 30):
        for name, read in reads.items():
            taken = seconds(read) * 1e3
            if number >= 30:
                times[name].append(taken)
    return {name: median(values) for name, values in times.items()}


def loaded_batches(paths: dict[str, Path]) -> dict[str, float]:
    """Milliseconds per batch of a loader that is asked for one after the other; medians of interleaved rounds."""
    from salus.torch import Loader, WindowDataset

    windows = {name: WindowDataset(salus.open(path), WINDOWS) for name, path in paths.items()}
    times: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(FIRST_ROUNDS):
        for name, some in windows.items():
            batches = iter(Loader(some, BATCH, shuffle=True, seed=number))
            for _ in range(10):
                next(batches)
            times[name].append(seconds(lambda batches=batches: [next(batches) for _ in range(40)]) / 40 * 1e3)
            del batches  # and its threads with it
    return {name: median(values) for name, values in times.items()}


def pickled(path: Path) -> dict[str, float]:
    """MB, and milliseconds to dump and load, of the training part, as a spawned worker gets it."""
    train, _ = salus.open(path).split({"train": 0.9, "val": 0.1})
    body = pickle.dumps(train)
    dumping = median(seconds(lambda: pickle.dumps(train)) for _ in range(5))
    loading = median(seconds(lambda: pickle.loads(body)) for _ in range(5))  # noqa: S301 - made here
    return {"MB": len(body) / 1e6, "dump": dumping * 1e3, "load": loading * 1e3}


def main(folder: Path) -> None:
    paths = {"100": folder / "few.zarr", "100,000": folder / "many.zarr"}
    few, many = paths.values()
    if not many.exists():
        started = time.perf_counter()
        record_few(few)
        multiply(few, many)
        print(f"set-up: {time.perf_counter() - started:.0f} s", flush=True)
        storage = open_storage(many)
        started = time.perf_counter()
        write_checkpoint(storage, load(storage))
        print(f"its records read one by one, and a checkpoint: {time.perf_counter() - started:.0f} s")
    dataset = salus.open(few)
    record = (many / record_key(0)).stat().st_size
    print(f"images {dataset.raw_bytes / dataset.stored_bytes:.1f} × smaller than raw, a record has {record} bytes\n")
    opened: dict[str, list[tuple[float, float]]] = {name: [] for name in paths}
    for _ in range(OPENINGS):
        for name, path in paths.items():
            opened[name].append(open_fresh(path))
    first, steady, loaded = first_batches(paths), steady_batches(paths), loaded_batches(paths)
    views = {name: pickled(path) for name, path in paths.items()}
    rows: dict[str, Callable[[str], float]] = {
        "`salus.open`, ms": lambda name: median(s for s, _ in opened[name]) * 1e3,
        "`salus.open`, slowest, ms": lambda name: max(s for s, _ in opened[name]) * 1e3,
        "memory that opening takes, MB": lambda name: median(mb for _, mb in opened[name]),
        f"first batch of {BATCH} after opening, ms": first.__getitem__,
        f"batch of {BATCH}, steady, ms": steady.__getitem__,
        f"batch of {BATCH} of a Loader, ms": loaded.__getitem__,
        "a part of 90 %, pickled, MB": lambda name: views[name]["MB"],
        "pickling it, ms": lambda name: views[name]["dump"],
        "unpickling it, ms": lambda name: views[name]["load"],
    }
    print("| episodes | 100 | 100,000 | ratio |\n|---|---|---|---|")
    for what, value in rows.items():
        small, large = value("100"), value("100,000")
        print(f"| {what} | {small:.1f} | {large:.1f} | {large / small:.2f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--open"]:
        print_opening(sys.argv[2])
    else:
        names = [name for name in sys.argv[1:] if name != "--keep"]
        place = Path(names[0]) if names else Path(tempfile.mkdtemp(prefix="salus-many-"))
        place.mkdir(exist_ok=True)
        try:
            main(place)
        finally:
            if "--keep" not in sys.argv:
                shutil.rmtree(place)
