"""Which codec for images? zstd against PNG, QOI, lossless WebP, JPEG-LS and JPEG XL; and what JPEG costs and saves.

    python benchmarks/image_codecs.py          # tables; about a minute and a half

Rendered 224 × 224 frames: Fetch, Meta-World, and Fetch with sensor noise. Encoding and decoding one image at a time on
one thread, straight into a given buffer where a library can. The contestants take turns over several rounds; medians.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import imagecodecs
import numpy as np
from numcodecs import zstd
from storage_size import fetch, meta_world

FRAMES = 24
ROUNDS = 5
Decode = Callable[[bytes, np.ndarray], Any]


@dataclass(frozen=True)
class Contestant:
    name: str
    encode: Callable[[np.ndarray], bytes]
    decode: Decode
    lossless: bool = True


def _jpeg(level: int, subsampling: str | None = None) -> Contestant:
    name = f"JPEG {level}" + (", 4:4:4" if subsampling else ", 4:2:0")
    return Contestant(
        name,
        lambda image: imagecodecs.jpeg8_encode(image, level, subsampling=subsampling),
        lambda body, out: imagecodecs.jpeg8_decode(body, out=out),
        lossless=False,
    )


CONTESTANTS = [
    Contestant("zstd 1", lambda image: zstd.compress(image, 1), zstd.decompress),
    Contestant("zstd 9", lambda image: zstd.compress(image, 9), zstd.decompress),
    Contestant("zstd 19", lambda image: zstd.compress(image, 19), zstd.decompress),
    Contestant(
        "PNG, zlib 1",
        lambda image: imagecodecs.png_encode(image, 1),
        lambda body, out: imagecodecs.png_decode(body, out=out),
    ),
    Contestant(
        "PNG, zlib 6",
        lambda image: imagecodecs.png_encode(image, 6),
        lambda body, out: imagecodecs.png_decode(body, out=out),
    ),
    Contestant("QOI", imagecodecs.qoi_encode, lambda body, out: imagecodecs.qoi_decode(body, out=out)),
    Contestant(
        "WebP lossless, method 0",
        lambda image: imagecodecs.webp_encode(image, lossless=True, method=0),
        lambda body, out: imagecodecs.webp_decode(body, out=out),
    ),
    Contestant(
        "WebP lossless, method 4",
        lambda image: imagecodecs.webp_encode(image, lossless=True, method=4),
        lambda body, out: imagecodecs.webp_decode(body, out=out),
    ),
    Contestant("JPEG-LS", imagecodecs.jpegls_encode, lambda body, out: imagecodecs.jpegls_decode(body, out=out)),
    Contestant(
        "JPEG XL lossless, effort 1",
        lambda image: imagecodecs.jpegxl_encode(image, lossless=True, effort=1, numthreads=1),
        lambda body, out: imagecodecs.jpegxl_decode(body, numthreads=1, out=out),
    ),
    Contestant(
        "JPEG XL lossless, effort 3",
        lambda image: imagecodecs.jpegxl_encode(image, lossless=True, effort=3, numthreads=1),
        lambda body, out: imagecodecs.jpegxl_decode(body, numthreads=1, out=out),
    ),
    _jpeg(95),
    _jpeg(95, "444"),
    _jpeg(90),
    _jpeg(90, "444"),
    _jpeg(80),
]


def sources() -> dict[str, np.ndarray]:
    """uint8 (FRAMES, 224, 224, 3) by name, spread over one episode."""

    def some(episodes: Any) -> np.ndarray:
        images = [step["images"] for step in next(iter(episodes))]
        chosen = np.linspace(0, len(images) - 1, FRAMES).astype(int)
        return np.ascontiguousarray(np.stack([images[row] for row in chosen]).transpose(0, 2, 3, 1))

    def noisy(images: np.ndarray, grey_levels: float) -> np.ndarray:
        noise = np.random.default_rng(0).normal(scale=grey_levels, size=images.shape)
        return (images + noise).round().clip(0, 255).astype(np.uint8)

    found = {"Fetch, external camera": some(fetch())}
    found["Meta-World, external camera"] = some(meta_world("corner2"))
    found["Meta-World, wrist camera"] = some(meta_world("gripperPOV"))
    found["Fetch + noise, σ = 1"] = noisy(found["Fetch, external camera"], 1)
    found["Fetch + noise, σ = 4"] = noisy(found["Fetch, external camera"], 4)
    return found


def measure(images: np.ndarray) -> None:
    out = np.empty_like(images[0])
    bodies, errors = {}, {}
    for each in CONTESTANTS:
        bodies[each.name] = [bytes(each.encode(image)) for image in images]
        error = np.zeros(0)
        for image, body in zip(images, bodies[each.name], strict=True):
            each.decode(body, out)
            error = np.append(error, np.mean((out.astype(float) - image) ** 2))
        assert each.lossless == (not error.any()), each.name
        errors[each.name] = 10 * np.log10(255**2 / error.mean()) if error.any() else None
    times: dict[str, list[tuple[float, float]]] = {each.name: [] for each in CONTESTANTS}
    for _, each in itertools.product(range(ROUNDS), CONTESTANTS):
        started = time.perf_counter()
        for image in images[::4]:
            each.encode(image)
        between = time.perf_counter()
        for body in bodies[each.name]:
            each.decode(body, out)
        ended = time.perf_counter()
        times[each.name].append(((between - started) / len(images[::4]), (ended - between) / len(images)))
    base = sum(map(len, bodies["zstd 1"]))
    print("| codec | smaller than raw | bytes against zstd 1 | encode, ms | decode, µs | PSNR, dB |")
    print("|---|---|---|---|---|---|")
    for each in CONTESTANTS:
        size = sum(map(len, bodies[each.name]))
        encode, decode = (median(column) for column in zip(*times[each.name], strict=True))
        quality = "lossless" if errors[each.name] is None else f"{errors[each.name]:.1f}"
        print(
            f"| {each.name} | {images.nbytes / size:.1f} × | {size / base:.2f} | {encode * 1e3:.2f} "
            f"| {decode * 1e6:.0f} | {quality} |"
        )


def main() -> None:
    for name, images in sources().items():
        print(f"\n{name}\n")
        measure(images)


if __name__ == "__main__":
    main()
    os._exit(0)  # Meta-World's renderer fails while the interpreter shuts down, after everything is done
