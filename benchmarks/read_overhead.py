"""What keeps the read engine from the speed of decoding alone: the cost of each step of an image, on one thread.

    python benchmarks/read_overhead.py

CPU time of one thread, so that other programs matter less; minimum and median of many rounds, the contestants taking
turns. Rendered frames of two 224 × 224 cameras, and the same with sensor noise, which take longer to decode.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numcodecs import zstd

from salus.bench.source import Source, rendered
from salus.codecs import decode_chunk
from salus.layout import array_specs
from salus.shards import ShardReader

EPISODES, BATCHES, BATCH_SIZE, ROUNDS = 4, 8, 64, 15
AT_ONCE = 16


def noisy(source: Source, grey_levels: float) -> Source:
    random = np.random.default_rng(0)
    episodes = []
    for arrays in source.episodes:
        changed = dict(arrays)
        for camera in source.cameras:
            noise = random.normal(scale=grey_levels, size=arrays[camera].shape)
            changed[camera] = (arrays[camera] + noise).round().clip(0, 255).astype(np.uint8)
        episodes.append(changed)
    return Source.of(
        episodes, description="noisy", cameras=source.cameras, actions=source.actions, rate_hz=source.rate_hz
    )


def measure(source: Source, folder: Path) -> None:
    import salus.torch

    with salus.Recorder(salus.create(folder, source.schema)) as recorder:
        for arrays in source.episodes:
            recorder.record_episode(arrays)
    dataset = salus.open(folder)
    windows: dict[str, Any] = {**dict.fromkeys(source.cameras, 0), source.actions: range(16)}
    samples = salus.torch.WindowDataset(dataset, windows)
    random = np.random.default_rng(0)
    batches = [random.integers(0, len(samples), BATCH_SIZE) for _ in range(BATCHES)]

    specs, shards, places = array_specs(dataset.schema), {}, []
    for batch in batches:
        found = samples.batch(batch)
        for camera in source.cameras:
            spec = specs[camera]
            for episode, step in zip(found["episode"].tolist(), found["step"].tolist(), strict=True):
                segment, chunk = divmod(step, spec.segment_steps)
                if (camera, episode, segment) not in shards:
                    file = dataset.storage.open_shard(spec.shard_key(dataset[episode].slot, segment))
                    assert file is not None
                    path = Path(dataset.url) / spec.shard_key(dataset[episode].slot, segment)
                    reader = ShardReader(file, spec, spec.shard_identity(dataset[episode].uid, segment))
                    shards[camera, episode, segment] = reader, os.open(path, os.O_RDONLY)
                shard, descriptor = shards[camera, episode, segment]
                places.append((spec, descriptor, *shard.index.place(chunk)))
    encoded = [os.pread(descriptor, size, offset) for _, descriptor, offset, size in places]
    out = np.empty((BATCH_SIZE * len(source.cameras), *specs[source.cameras[0]].stored_step_shape), np.uint8)
    slices = [out[number : number + 1] for number in range(len(out))]
    count = len(places)

    def alone() -> None:
        for number, packed in enumerate(memories):
            zstd.decompress(packed, slices[number % len(slices)])

    def at_once() -> None:
        for number, joined in enumerate(frames):
            start = number * AT_ONCE % len(out)
            zstd.decompress(joined, out[start : start + AT_ONCE])

    def checked() -> None:
        for number, data in enumerate(encoded):
            decode_chunk(places[number][0], data, slices[number % len(slices)])

    def bare() -> None:
        for number, (spec, descriptor, offset, size) in enumerate(places):
            decode_chunk(spec, os.pread(descriptor, size, offset), slices[number % len(slices)])

    def engine() -> None:
        for batch in batches:
            samples.batch(batch, parallel=False)

    memories = [memoryview(data)[:-4] for data in encoded]
    frames = [b"".join(memories[start : start + AT_ONCE]) for start in range(0, count, AT_ONCE)]
    steps: dict[str, Callable[[], None]] = {
        f"zstd alone, {AT_ONCE} images in a call (the bound)": at_once,
        "zstd alone, an image in a call": alone,
        "an image in a call, and its checksum": checked,
        "an image in a call, checksum, and reading it, planned beforehand": bare,
        "a batch of the read engine, actions included": engine,
    }
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            began = time.thread_time()
            step()
            spent[name].append((time.thread_time() - began) / count * 1e6)
    print(f"\n{np.mean([len(data) for data in encoded]):.0f} bytes an image\n")
    print("| | µs an image, least | median | share of it that zstd is |\n|---|---:|---:|---:|")
    for name, times in spent.items():
        share = median(a / b for a, b in zip(next(iter(spent.values())), times, strict=True))
        print(f"| {name} | {min(times):.1f} | {median(times):.1f} | {share:.2f} |")
    for _, descriptor in shards.values():
        os.close(descriptor)
    measure_two_threads(samples, batches, memories, frames)


def measure_two_threads(
    samples: Any, batches: list[np.ndarray], memories: list[memoryview], frames: list[bytes]
) -> None:
    """What a second thread adds: both need the GIL between two images, and the one that waits for it sleeps."""
    size = int(np.prod(samples[0][next(iter(samples.windows))].shape))
    outs = [np.empty((len(memories) // len(batches), size), np.uint8) for _ in range(2)]
    pool, count = ThreadPoolExecutor(2), len(memories)

    def decode(thread: int) -> None:
        for number in range(thread, count, 2):
            zstd.decompress(memories[number], outs[thread][number % len(outs[thread])])

    def decode_at_once(thread: int) -> None:
        for number in range(thread, len(frames), 2):
            start = number // 2 * AT_ONCE % len(outs[thread])
            zstd.decompress(frames[number], outs[thread][start : start + AT_ONCE])

    def read(thread: int) -> None:
        for batch in batches[thread::2]:
            samples.batch(batch, parallel=False)

    works = {
        f"zstd alone, {AT_ONCE} images in a call (the bound)": decode_at_once,
        "zstd alone, an image in a call": decode,
        "batches of the read engine": read,
    }
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            list(pool.map(work, range(2)))
            wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            switches = after.ru_nvcsw - before.ru_nvcsw
            found[name].append((wall / count * 1e6, cpu / count * 1e6, switches / count))
    pool.shutdown()
    print("\n| on two threads | wall µs an image | CPU µs an image | waits an image | share of it that zstd is |")
    print("|---|---:|---:|---:|---:|")
    bound = [wall for wall, _, _ in next(iter(found.values()))]
    for name, rounds in found.items():
        wall, cpu, switches = (median(values) for values in zip(*rounds, strict=True))
        share = median(a / b[0] for a, b in zip(bound, rounds, strict=True))
        print(f"| {name} | {wall:.1f} | {cpu:.1f} | {switches:.2f} | {share:.2f} |")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = rendered(EPISODES, Path(folder) / "rendered", lambda items, _title, _total: items)
        measure(source, Path(folder) / "rendered.zarr")
        measure(noisy(source, 1.0), Path(folder) / "noisy.zarr")


if __name__ == "__main__":
    main()
