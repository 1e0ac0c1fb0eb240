"""JPEG, one image per inner chunk: lossy, and only where a feature asks for it.

What the Zarr codec `imagecodecs_jpeg` of the package imagecodecs-zarr writes and reads, by the same library,
imagecodecs (libjpeg-turbo). `zarr_codecs` brings that codec to plain Zarr where the package is not installed.

Thread-safety: all functions are pure; the library works without the GIL.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .errors import CorruptDataError, MissingExtraError

MAX_SIDE = 65500  # libjpeg's JPEG_MAX_DIMENSION
DEFAULT_QUALITY = 95

_START = b"\xff\xd8"
_BASELINE_FRAME = 0xC0
# Quantization and Huffman tables, restart interval, comment, application data: what may come before the frame header.
_SKIPPED = frozenset({0xDB, 0xC4, 0xDD, 0xFE, *range(0xE0, 0xF0)})


@functools.cache
def library() -> Any:
    """The module imagecodecs.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import imagecodecs
    except ImportError as error:
        raise MissingExtraError.of("JPEG images", extra="jpeg") from error
    if not imagecodecs.JPEG8.available:
        raise MissingExtraError.of("JPEG images (the installed imagecodecs was built without libjpeg)", extra="jpeg")
    return imagecodecs


def configuration(quality: int, channels: int) -> dict[str, Any]:
    """How to encode, as the Zarr codec `imagecodecs_jpeg` says it, and as imagecodecs takes it.

    Color at its full resolution: at the same size it keeps more than a higher quality with half of it does.
    """
    return {"level": quality, **({"subsampling": "444"} if channels == 3 else {})}


def encode(image: np.ndarray, *, quality: int) -> bytes:
    """A baseline JPEG of one image.

    Args:
        image: uint8 (height, width, 3), or 1 channel for gray; C-contiguous.
        quality: 1 … 100, libjpeg's scale.
    """
    return bytes(library().jpeg8_encode(image, **configuration(quality, image.shape[-1])))


def check(packed: memoryview, shape: tuple[int, ...]) -> None:
    """Raise CorruptDataError unless it declares an image of `shape`, (height, width, channels)."""
    declared = declared_shape(packed)
    if declared != shape:
        found = f"a JPEG image of (height, width, channels) {declared}" if declared else "no baseline JPEG image"
        raise CorruptDataError(f"chunk declares {found}, expected {shape}")


def decode(packed: memoryview, out: np.ndarray) -> None:
    """Decode one image that was checked into `out`, uint8 (height, width, channels), C-contiguous.

    Raises:
        CorruptDataError: It does not decode.
    """
    try:
        library().jpeg8_decode(packed, out=out)
    except (RuntimeError, ValueError) as error:
        raise CorruptDataError(f"imagecodecs cannot decode the JPEG image: {error}") from error


def declared_shape(packed: memoryview) -> tuple[int, int, int] | None:
    """(height, width, channels) in the frame header of a baseline JPEG (ITU-T T.81, B.2.2); nothing is decoded.

    None for everything else, progressive and lossless JPEG included, which SALUS never writes.
    """
    place, size = 2, len(packed)
    if packed[:2] != _START:
        return None
    while place + 10 <= size and packed[place] == 0xFF:
        marker = packed[place + 1]
        if marker == _BASELINE_FRAME:
            precision, channels = packed[place + 4], packed[place + 9]
            height, width = packed[place + 5] << 8 | packed[place + 6], packed[place + 7] << 8 | packed[place + 8]
            return (height, width, channels) if precision == 8 else None
        if marker not in _SKIPPED:
            return None
        place += 2 + (packed[place + 2] << 8 | packed[place + 3])
    return None
