"""The codec chain of inner chunks: bytes (little-endian), zstd, crc32c; vlen-utf8 for text; JPEG; or others' codecs.

The same bytes as zarr-python writes and reads with the codecs that `layout` puts into `zarr.json`. zstd and crc32c
come from numcodecs and google-crc32c, the libraries that zarr-python itself uses. Only codecs that a feature names
itself go through zarr-python.

Thread-safety: all functions are pure; zstd and JPEG run without the GIL.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import zstd

from . import jpeg
from .errors import CorruptDataError, InvalidInputError
from .layout import ZSTD_LEVEL, ArraySpec

MAX_TEXT_CHUNK_BYTES = 2**28

_CHECKSUM = 4
_RESIDUE = 0x48674BC7  # the CRC-32C of any bytes that their own CRC-32C follows
_ZSTD = b"\x28\xb5\x2f\xfd"
_SWAPPED = sys.byteorder == "big"


def crc32c(data: bytes, value: int = 0) -> int:
    """The CRC-32C of `data`, going on from the CRC `value` of what was before it."""
    return int(google_crc32c.extend(value, data)) if value else int(google_crc32c.value(data))


def require_codec(spec: ArraySpec) -> None:
    """Load what decodes `spec`, so that what is missing is found on the caller's thread.

    Raises:
        MissingExtraError: imagecodecs is not installed.
        FormatError: No installed package brings one of the feature's own codecs.
    """
    if spec.codec == "jpeg":
        jpeg.library()
    elif spec.codec == "zarr":
        from . import zarr_codecs

        zarr_codecs.require(spec)


def check_codecs(specs: Iterable[ArraySpec]) -> None:
    """Make sure, before anything is recorded, that all codecs are there and fit.

    Raises:
        MissingExtraError: imagecodecs is not installed.
        InvalidInputError: A codec that zarr-python does not know, or that does not fit the feature.
    """
    for spec in specs:
        if spec.codec == "zarr":
            from . import zarr_codecs

            zarr_codecs.check_chain(spec)
        else:
            require_codec(spec)


def encode_chunk(spec: ArraySpec, steps: np.ndarray) -> bytes:
    """One inner chunk.

    Args:
        spec: The array.
        steps: (n, *stored_step_shape), C-contiguous, n at most `spec.chunk_steps`; a shorter chunk is filled up with
            the fill value, as Zarr chunks are always whole.

    Raises:
        InvalidInputError: More text than a reader accepts in one chunk.
    """
    missing = spec.chunk_steps - len(steps)
    if spec.is_text:
        raw: Any = _encode_text([*steps.tolist(), *[""] * missing])
        if len(raw) > MAX_TEXT_CHUNK_BYTES:
            raise InvalidInputError(
                f"{spec.name!r}: {len(raw)} bytes of text in {len(steps)} steps, expected at most "
                f"{MAX_TEXT_CHUNK_BYTES}; use fewer steps per segment"
            )
    else:
        if missing:
            steps = np.concatenate([steps, np.full((missing, *steps.shape[1:]), spec.fill_value, steps.dtype)])
        raw = np.ascontiguousarray(steps)
    if spec.codec == "jpeg":
        packed = jpeg.encode(raw[0], quality=spec.quality)
    elif spec.codec == "zarr":
        from . import zarr_codecs

        packed = zarr_codecs.encode(spec, raw)
    else:
        if _SWAPPED and not spec.is_text:
            raw = raw.byteswap()
        packed = bytes(zstd.compress(raw, ZSTD_LEVEL))
    return packed + crc32c(packed).to_bytes(_CHECKSUM, "little")


def decode_chunk(spec: ArraySpec, encoded: bytes, out: np.ndarray | None = None) -> np.ndarray:
    """Decode one inner chunk, its checksum checked first.

    Args:
        spec: The array.
        encoded: The bytes of the chunk.
        out: (chunk_steps, *stored_step_shape), C-contiguous: decoded into directly where given.

    Returns:
        `out`, or a new array of its shape.

    Raises:
        CorruptDataError: The checksum does not hold, or the content is not of the declared size.
        MissingExtraError, FormatError: What decodes it is not installed.
    """
    packed = check_chunk(spec, encoded)
    if spec.is_text:
        return _decode_text(decompress(packed, declared_size(packed) or 0).tobytes(), spec.chunk_steps)
    if out is None:
        out = np.empty((spec.chunk_steps, *spec.stored_step_shape), spec.numpy_dtype)
    if spec.codec == "jpeg":
        jpeg.decode(packed, out[0])
    elif spec.codec == "zarr":
        from . import zarr_codecs

        zarr_codecs.decode(spec, packed, out)
    else:
        _decompress(packed, out)
        if _SWAPPED:
            out.byteswap(inplace=True)
    return out


def decode_chunks(spec: ArraySpec, encoded: Sequence[bytes], out: np.ndarray) -> None:
    """Decode several inner chunks, side by side.

    zstd takes them in one call, as frames one after the other: its working memory is prepared once, and the GIL is
    given up once, which is a quarter faster for images of 224 × 224.

    Args:
        spec: The array.
        encoded: The bytes of n chunks.
        out: (n * chunk_steps, *stored_step_shape), C-contiguous.

    Raises:
        CorruptDataError: One of them cannot be decoded: `decode_chunk` of each says which.
        MissingExtraError, FormatError: What decodes them is not installed.
    """
    if spec.codec != "zstd" or len(encoded) == 1:
        for number, data in enumerate(encoded):
            decode_chunk(spec, data, out[number * spec.chunk_steps :][: spec.chunk_steps])
        return
    head, packed = _frame_head(spec.chunk_bytes), []
    for data in encoded:  # the usual form, seen to quickly: every microsecond here is held against decoding
        if google_crc32c.value(data) == _RESIDUE and data.startswith(head):
            packed.append(memoryview(data)[:-_CHECKSUM])
        else:
            packed.append(check_chunk(spec, data))
    _decompress(b"".join(packed), out)
    if _SWAPPED:
        out.byteswap(inplace=True)


def check_chunk(spec: ArraySpec, encoded: bytes) -> memoryview:
    """A chunk without its checksum, which holds; what it says of its own size is right. Decodes nothing.

    Raises:
        CorruptDataError: One of the two does not.
    """
    if google_crc32c.value(encoded) != _RESIDUE or len(encoded) <= _CHECKSUM:
        raise CorruptDataError("crc32c does not hold: the bytes are not the ones that were written")
    packed = memoryview(encoded)[:-_CHECKSUM]
    if spec.is_text:
        declared = declared_size(packed)
        if declared is None or declared > MAX_TEXT_CHUNK_BYTES:
            raise CorruptDataError(f"text chunk declares {declared} bytes, expected at most {MAX_TEXT_CHUNK_BYTES}")
    elif spec.codec == "zstd":
        # The header that zstd itself writes for a chunk of this size, or else the size in another form.
        head = _frame_head(spec.chunk_bytes)
        if encoded[: len(head)] != head and (declared := declared_size(packed)) != spec.chunk_bytes:
            raise CorruptDataError(f"chunk declares {declared} bytes, expected {spec.chunk_bytes}")
    elif spec.codec == "jpeg":
        jpeg.check(packed, spec.stored_step_shape)
    return packed


@functools.cache
def _frame_head(size: int) -> bytes:
    """The start of a zstd frame of one segment that declares `size` bytes, without checksum and dictionary."""
    if size < 256:
        return _ZSTD + b"\x20" + size.to_bytes(1, "little")
    if size < 65536 + 256:
        return _ZSTD + b"\x60" + (size - 256).to_bytes(2, "little")
    if size < 2**32:
        return _ZSTD + b"\xa0" + size.to_bytes(4, "little")
    return _ZSTD + b"\xe0" + size.to_bytes(8, "little")


def max_encoded_bytes(spec: ArraySpec) -> int:
    """More than any encoder makes of one inner chunk: what is larger is refused before it is read."""
    return 2 * (MAX_TEXT_CHUNK_BYTES if spec.is_text else spec.chunk_bytes) + 2**20


def decompress(packed: memoryview | bytes, size: int) -> np.ndarray:
    """Decompress zstd to exactly `size` bytes, uint8 (size,).

    The head of a frame says how large it is, but says nothing of frames after it: so it is decompressed into memory of
    the size that is expected, which zstd does not go beyond.

    Raises:
        CorruptDataError: It does not decompress, or not to that size.
    """
    out = np.empty(size, np.uint8)
    _decompress(packed, out)
    return out


def _decompress(packed: memoryview | bytes, out: np.ndarray) -> None:
    try:
        zstd.decompress(packed, out)
    except (RuntimeError, ValueError) as error:  # ValueError: more content than `out` takes
        raise CorruptDataError(f"zstd cannot decode the chunk: {error}") from error


def declared_size(packed: bytes | memoryview) -> int | None:
    """The content size in a zstd frame header (RFC 8878, section 3.1.1), without decoding anything."""
    if len(packed) < 6 or packed[:4] != _ZSTD:
        return None
    descriptor = packed[4]
    single_segment = bool(descriptor & 0x20)
    size_bytes = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
    start = 5 + (0 if single_segment else 1) + (0, 1, 2, 4)[descriptor & 3]
    if size_bytes == 0 or len(packed) < start + size_bytes:
        return None
    return int.from_bytes(packed[start : start + size_bytes], "little") + (256 if size_bytes == 2 else 0)


def _encode_text(texts: list[str]) -> bytes:
    parts = [len(texts).to_bytes(4, "little")]
    for text in texts:
        data = text.encode()
        parts += [len(data).to_bytes(4, "little"), data]
    return b"".join(parts)


def _decode_text(raw: bytes, count: int) -> np.ndarray:
    texts, place = np.empty(count, object), 4
    if len(raw) < place:
        raise CorruptDataError("text chunk ends within its head")
    if int.from_bytes(raw[:4], "little") != count:
        raise CorruptDataError(f"text chunk holds {int.from_bytes(raw[:4], 'little')} texts, expected {count}")
    for row in range(count):
        size = int.from_bytes(raw[place : place + 4], "little")
        data = raw[place + 4 : place + 4 + size]
        if place + 4 + size > len(raw):
            raise CorruptDataError("text chunk ends within a text")
        try:
            texts[row] = data.decode()
        except UnicodeDecodeError as error:
            raise CorruptDataError(f"text chunk is not UTF-8: {error}") from error
        place += 4 + size
    return texts
