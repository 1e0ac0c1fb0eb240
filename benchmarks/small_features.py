"""Which codec for states, actions and signals: zstd as it is, or blosc with byte shuffle?

    python benchmarks/small_features.py [demo.zarr]

On the numbers of recorded episodes: bytes against raw, and microseconds to encode and decode one inner chunk. The
contestants take turns over several rounds; medians are shown.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from numcodecs import Blosc, Zstd
from numcodecs.abc import Codec

import salus
from salus.demo.record import demo_schema
from salus.demo.sim import PickAndPlace

ROUNDS = 7


def recorded(path: Path) -> None:
    """A few episodes, without rendering: the numbers are what counts."""
    schema = demo_schema()
    features = {name: schema.features[name] for name in ("states", "actions", "signals")}
    with (
        PickAndPlace(render=False) as robot,
        salus.Recorder(salus.create(path, salus.Schema(features, rate_hz=25))) as recorder,
    ):
        for seed in range(12):
            with recorder.episode() as episode:
                for step in robot.rollout(seed):
                    step.pop("images")
                    episode.append(step)


def main(path: Path) -> None:
    codecs: dict[str, Callable[[int], Codec]] = {
        "zstd 1": lambda _: Zstd(1),
        "zstd 3": lambda _: Zstd(3),
        "blosc shuffle + zstd 1": lambda size: Blosc("zstd", 1, Blosc.SHUFFLE, typesize=size),
        "blosc shuffle + lz4 5": lambda size: Blosc("lz4", 5, Blosc.SHUFFLE, typesize=size),
    }
    dataset = salus.open(path)
    names = ["states", "actions", "signals", "timestamp_ns"]
    chunks = [np.ascontiguousarray(episode[name][:256]) for episode in dataset for name in names]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in codecs}
    sizes = dict.fromkeys(codecs, 0)
    for _ in range(ROUNDS):
        for name, make in codecs.items():
            made = [make(chunk.itemsize) for chunk in chunks]
            started = time.perf_counter()
            encoded = [codec.encode(chunk) for codec, chunk in zip(made, chunks, strict=True)]
            between = time.perf_counter()
            for codec, body in zip(made, encoded, strict=True):
                codec.decode(body)
            times[name].append((between - started, time.perf_counter() - between))
            sizes[name] = sum(len(body) for body in encoded)
    raw = sum(chunk.nbytes for chunk in chunks)
    print(f"{len(chunks)} chunks of {raw / len(chunks):.0f} bytes\n")
    print("| codec | against raw | encode, µs a chunk | decode, µs a chunk |\n|---|---|---|---|")
    for name in codecs:
        encode, decode = (median(column) / len(chunks) * 1e6 for column in zip(*times[name], strict=True))
        print(f"| {name} | {raw / sizes[name]:.2f} × | {encode:.0f} | {decode:.0f} |")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            recorded(Path(folder) / "data.zarr")
            main(Path(folder) / "data.zarr")
