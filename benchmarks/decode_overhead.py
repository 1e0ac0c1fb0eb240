"""What `decode_chunk` costs beyond the zstd that it calls, and other zstd libraries on the same bytes.

    python benchmarks/decode_overhead.py

One 224 × 224 image that compresses about 2 × and one that compresses about 8 ×. The contestants take turns over many
rounds, in another order each time; medians. Libraries that are not installed are left out.
"""

from __future__ import annotations

import importlib
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from numcodecs import zstd

from salus.codecs import decode_chunk, encode_chunk
from salus.layout import ArraySpec

SPEC = ArraySpec("images", "uint8", (3, 224, 224), 1, 256, channels_last=True)
ROUNDS, CALLS = 60, 40


def image(grey_levels: float) -> np.ndarray:
    """Smooth, with noise."""
    y, x = np.mgrid[0:224, 0:224]
    smooth = np.stack([np.sin(x / 20) * 60 + np.cos(y / 15) * 50 + 120 + shade for shade in (0, 9, 18)], -1) // 4 * 4
    noise = np.random.default_rng(0).normal(scale=grey_levels, size=smooth.shape)
    return (smooth + noise).round().clip(0, 255).astype(np.uint8)[None]


def contestants(encoded: bytes, out: np.ndarray) -> dict[str, Callable[[], Any]]:
    packed, flat = encoded[:-4], out.reshape(-1)
    found: dict[str, Callable[[], Any]] = {
        "numcodecs.zstd.decompress alone": lambda: zstd.decompress(packed, out),
        "decode_chunk": lambda: decode_chunk(SPEC, encoded, out),
    }
    for name in ("imagecodecs", "cramjam", "zstandard"):
        try:
            library = importlib.import_module(name)
        except ImportError:
            continue
        if name == "imagecodecs":
            found["imagecodecs.zstd_decode(out=)"] = lambda library=library: library.zstd_decode(packed, out=flat)
        elif name == "cramjam":
            found["cramjam.zstd.decompress_into"] = lambda library=library: library.zstd.decompress_into(packed, out)
        else:
            reader = library.ZstdDecompressor()
            found["zstandard, stream_reader.readinto"] = lambda reader=reader: reader.stream_reader(packed).readinto(
                flat
            )
    return found


def main() -> None:
    for grey_levels in (0.35, 0.0):
        encoded = encode_chunk(SPEC, image(grey_levels))
        out = np.empty((1, *SPEC.stored_step_shape), np.uint8)
        calls = contestants(encoded, out)
        times: dict[str, list[float]] = {name: [] for name in calls}
        order = list(calls)
        for _ in range(ROUNDS):
            random.shuffle(order)
            for name in order:
                call = calls[name]
                started = time.perf_counter()
                for _ in range(CALLS):
                    call()
                times[name].append((time.perf_counter() - started) / CALLS * 1e6)
        print(f"\n{SPEC.chunk_bytes / len(encoded):.1f} × smaller than raw, {len(encoded)} bytes\n")
        bare = times["numcodecs.zstd.decompress alone"]
        print("| | µs a call | beyond zstd alone, µs |\n|---|---|---|")
        for name, values in times.items():
            beyond = median(value - base for value, base in zip(values, bare, strict=True))
            print(f"| {name} | {median(values):.1f} | {beyond:+.1f} |")


if __name__ == "__main__":
    main()
