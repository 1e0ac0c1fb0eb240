"""A dataset of 20 GB read by a process that may use 2 GB of memory, page cache included, beside one that may use all.

    python benchmarks/memory_limit.py [folder] [--keep]

Records noisy 224 × 224 images until 20 GB are on disk. Then processes scan it whole, load an epoch in random order, and
one in random blocks of 32 samples: without a limit, and in a memory cgroup of 2 GB (where none can be made: under
RLIMIT_DATA, which leaves the page cache out). Cold: the dataset's files were dropped from the page cache before. Warm:
right after a run without a limit, with as much of them cached as the machine had room for. Needs 21 GB of disk, about
ten minutes, and Linux; as root, for the cgroup.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import salus

LIMIT_BYTES = 2 * 2**30
STORED_BYTES = 20 * 10**9
STEPS, BATCH = 512, 64
LONGEST_S = 240  # of one run; one that takes longer is stopped, and the share that it read is shown
CGROUPS = Path("/sys/fs/cgroup/memory")

SCHEMA = salus.Schema(
    {"images": salus.Image(height=224, width=224), "actions": salus.Feature((7,))}, rate_hz=30, segment_steps=256
)


def record(path: Path) -> None:
    """Shading with six bits of noise in each value: zstd takes it to about three quarters."""
    random = np.random.default_rng(0)
    pool = random.integers(0, 64, 64 * 2**20, dtype=np.uint8)
    size = 3 * 224 * 224
    shading = np.broadcast_to(np.linspace(0, 31, 224).astype(np.uint8), (3, 224, 224))
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        stored = 0
        while stored < STORED_BYTES:
            starts = random.integers(0, len(pool) - size, STEPS)
            images = np.stack([shading + pool[start : start + size].reshape(3, 224, 224) for start in starts])
            actions = random.normal(size=(STEPS, 7)).astype(np.float32)
            stored += recorder.record_episode({"images": images, "actions": actions}).stored_bytes


# --- in the process that is measured -----------------------------------------------------------------------------


def sizes_of_batches(dataset: salus.Dataset, how: str) -> Iterator[int]:
    """Reads everything, and says how many samples came."""
    from salus.torch import Loader, WindowDataset

    if how == "scan":
        yield from (len(block.arrays["images"]) for block in dataset.scan())
    else:
        windows = WindowDataset(dataset, {"images": 0, "actions": range(16)})
        # Blocks are read ahead into the page cache: 128 of 32 samples are 0.5 GB, which the limit has room for.
        blocks = {"block_size": 32, "mixed_blocks": 128} if how == "shuffled blocks" else {}
        yield from (len(batch["step"]) for batch in Loader(windows, BATCH, shuffle=True, **blocks))


def read(path: Path, how: str) -> dict[str, Any]:
    """Read all samples, and say how fast, and with how much memory."""
    dataset = salus.open(path)
    samples, started = 0, time.perf_counter()
    for size in sizes_of_batches(dataset, how):
        samples += size
        if time.perf_counter() - started > LONGEST_S:
            break
    seconds = time.perf_counter() - started
    return {
        "samples": samples,
        "share": samples / dataset.num_steps,
        "seconds": seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


# --- in the process that measures --------------------------------------------------------------------------------


def drop_from_cache(path: Path) -> None:
    """Of this dataset only: others may be at work on this machine."""
    for file in path.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def limited(group: Path) -> str | None:
    """Shell that puts itself under the limit; None where that cannot be done by a cgroup."""
    try:
        group.mkdir(exist_ok=True)
        (group / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
    except OSError:
        return None
    return f"echo $$ > {group}/cgroup.procs"


def run(path: Path, how: str, *, limit: bool, cold: bool) -> dict[str, Any]:
    group = CGROUPS / f"salus-memory-limit-{os.getpid()}"
    under = limited(group) if limit else None
    setup = ":" if not limit else under or f"ulimit -d {LIMIT_BYTES // 1024}"
    if cold:
        drop_from_cache(path)
    command = ["sh", "-c", f'{setup} && exec "$@"', "sh", sys.executable, __file__, "--read", str(path), how]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    result["group_mb"] = None
    if under is not None:
        result["group_mb"] = int((group / "memory.max_usage_in_bytes").read_text()) / 2**20
        group.rmdir()
    return result


def main(path: Path) -> None:
    if not path.exists():
        started = time.perf_counter()
        record(path)
        print(f"recorded in {time.perf_counter() - started:.0f} s")
    dataset = salus.open(path)
    frame = dataset.stored_bytes / dataset.num_steps
    print(f"{dataset.stored_bytes / 1e9:.1f} GB in {len(dataset)} episodes, {dataset.num_steps} images", flush=True)
    probe = CGROUPS / f"salus-memory-limit-{os.getpid()}"
    how_limited = "memory cgroup, page cache included" if limited(probe) else "RLIMIT_DATA, without the page cache"
    if probe.exists():
        probe.rmdir()
    print(f"limit: {LIMIT_BYTES / 2**30:.0f} GiB ({how_limited})\n")
    print("| | images/s | MB/s stored | read | peak resident, MB | peak of the group, MB |\n|---|---|---|---|---|---|")
    for how in ("scan", "shuffled", "shuffled blocks"):
        for name, limit, cold in (
            ("2 GB, cold", True, True),
            ("no limit, cold", False, True),
            ("no limit, warm", False, False),
        ):
            result = run(path, how, limit=limit, cold=cold)
            rate = result["samples"] / result["seconds"]
            group = "" if result["group_mb"] is None else f"{result['group_mb']:.0f}"
            print(
                f"| {how}, {name} | {rate:.0f} | {rate * frame / 1e6:.0f} | {result['share']:.0%} | "
                f"{result['peak_mb']:.0f} | {group} |",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        print(json.dumps(read(Path(sys.argv[2]), sys.argv[3])))
    else:
        names = [name for name in sys.argv[1:] if name != "--keep"]
        place = Path(names[0]) if names else Path(tempfile.mkdtemp(prefix="salus-memory-"))
        place.mkdir(exist_ok=True)
        try:
            main(place / "data.zarr")
        finally:
            if "--keep" not in sys.argv:
                shutil.rmtree(place)
