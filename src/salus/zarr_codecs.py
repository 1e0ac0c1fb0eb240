"""zarr-python's codecs: the one that SALUS brings to it, and chains of its codecs for features that name them.

Everything here needs zarr, which takes a third of a second to load; so it is imported when it is first needed.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArrayConfig
from zarr.core.array_spec import ArraySpec as ChunkSpec
from zarr.core.buffer import Buffer, NDBuffer, default_buffer_prototype
from zarr.core.codec_pipeline import codecs_from_list
from zarr.dtype import parse_dtype
from zarr.registry import get_codec_class

from . import jpeg
from .errors import CorruptDataError, FormatError, InvalidInputError
from .layout import ArraySpec

# --- the codec that SALUS brings to zarr-python ------------------------------------------------------------------

# Keys of the codec's configuration, and the arguments of imagecodecs that they are.
_ENCODING = {
    "level": "level",
    "bitspersample": "bitspersample",
    "colorspace_data": "colorspace",
    "colorspace_jpeg": "outcolorspace",
    "subsampling": "subsampling",
    "optimize": "optimize",
    "smoothing": "smoothing",
    "lossless": "lossless",
    "predictor": "predictor",
}
_DECODING = {"colorspace_jpeg": "colorspace", "colorspace_data": "outcolorspace"}


@dataclass(frozen=True)
class FallbackJpeg(ArrayBytesCodec):
    """`imagecodecs_jpeg`, where the package imagecodecs-zarr is not there to bring it (it needs Python 3.12).

    Attributes:
        configuration: As in the metadata: `level` (the quality), `colorspace_data`, …
    """

    configuration: tuple[tuple[str, Any], ...] = ()
    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FallbackJpeg:
        """From the metadata of an array.

        Raises:
            ValueError: A key that this implementation does not know.
        """
        configuration = data.get("configuration", {})
        unknown = sorted(configuration.keys() - _ENCODING.keys())
        if unknown:
            raise ValueError(f"imagecodecs_jpeg: configuration {unknown[0]!r}: needs the package imagecodecs-zarr")
        return cls(tuple(sorted(configuration.items())))

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the metadata of an array."""
        return {"name": "imagecodecs_jpeg", "configuration": dict(self.configuration)}

    def _arguments(self, names: Mapping[str, str]) -> dict[str, Any]:
        return {names[key]: value for key, value in self.configuration if key in names}

    def _encode_sync(self, chunk_data: NDBuffer, chunk_spec: ChunkSpec) -> Buffer:
        image = np.atleast_2d(np.squeeze(chunk_data.as_numpy_array()))
        return chunk_spec.prototype.buffer.from_bytes(
            jpeg.library().jpeg8_encode(np.ascontiguousarray(image), **self._arguments(_ENCODING))
        )

    def _decode_sync(self, chunk_data: Buffer, chunk_spec: ChunkSpec) -> NDBuffer:
        image = jpeg.library().jpeg8_decode(chunk_data.as_numpy_array(), **self._arguments(_DECODING))
        return chunk_spec.prototype.nd_buffer.from_numpy_array(image.reshape(chunk_spec.shape))

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ChunkSpec) -> Buffer:
        return await asyncio.to_thread(self._encode_sync, chunk_data, chunk_spec)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ChunkSpec) -> NDBuffer:
        return await asyncio.to_thread(self._decode_sync, chunk_data, chunk_spec)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ChunkSpec) -> int:
        """Not known before encoding."""
        raise NotImplementedError


def _of_imagecodecs() -> type[ArrayBytesCodec] | None:
    try:
        from imagecodecs.zarr import Jpeg as Installed  # from 2026.10 on
    except ImportError:
        return None
    found: type[ArrayBytesCodec] = Installed
    return found


# The entry point of SALUS. zarr-python warns of two implementations of a codec unless they are the same class: so where
# imagecodecs has one, this is it.
Jpeg: type[ArrayBytesCodec] = _of_imagecodecs() or FallbackJpeg


# --- chains of a feature's own -----------------------------------------------------------------------------------


def require(spec: ArraySpec) -> None:
    """Raise FormatError where no installed package brings one of the codecs of `spec`."""
    _chain(spec)


def check_chain(spec: ArraySpec) -> None:
    """Take a chunk of zeros through the codecs of `spec` and back.

    Raises:
        InvalidInputError: A codec is not known, not configured as it must be, or does not fit the feature.
    """
    try:
        zeros = np.zeros((spec.chunk_steps, *spec.stored_step_shape), spec.numpy_dtype)
        decode(spec, memoryview(encode(spec, zeros)), np.empty_like(zeros))
    except Exception as error:  # codecs of others raise whatever they like
        raise InvalidInputError(f"{spec.name!r}: codec: {error}") from error


def encode(spec: ArraySpec, steps: np.ndarray) -> bytes:
    """One whole inner chunk, (chunk_steps, *stored_step_shape), through the codecs of `spec`, without crc32c."""
    chain = _chain(spec)
    data: Any = default_buffer_prototype().nd_buffer.from_numpy_array(steps[None])
    for codec, chunk in chain:
        data = _run(codec, "encode", data, chunk)
        if data is None:
            raise FormatError(f"{spec.name!r}: codec {_name(codec)} stored nothing for a chunk")
    encoded: bytes = data.to_bytes()
    return encoded


def decode(spec: ArraySpec, packed: memoryview, out: np.ndarray) -> None:
    """Decode one inner chunk into `out`, (chunk_steps, *stored_step_shape). What a codec allocates is not limited.

    Raises:
        CorruptDataError: A codec cannot decode it, or gives another shape or dtype.
        FormatError: No installed package brings one of the codecs.
    """
    chain = _chain(spec)
    data: Any = default_buffer_prototype().buffer.from_bytes(bytes(packed))
    for codec, chunk in reversed(chain):
        _check_blosc(spec, codec, data)
        try:
            data = _run(codec, "decode", data, chunk)
        except Exception as error:  # codecs of others raise whatever they like
            raise CorruptDataError(f"codec {_name(codec)} cannot decode the chunk: {error}") from error
    values = data.as_numpy_array()
    if values.shape != (1, *out.shape) or values.dtype != out.dtype:
        raise CorruptDataError(f"chunk holds {values.dtype} {values.shape}, expected {out.dtype} {(1, *out.shape)}")
    out[...] = values[0]


@functools.cache
def _chain(spec: ArraySpec) -> list[tuple[Any, ChunkSpec]]:
    """The codecs in the order of encoding, each with the chunk that it is given."""
    chunk = ChunkSpec(
        shape=(1, spec.chunk_steps, *spec.stored_step_shape),
        dtype=parse_dtype(spec.numpy_dtype, zarr_format=3),
        fill_value=spec.fill_value,
        config=ArrayConfig(order="C", write_empty_chunks=True),
        prototype=default_buffer_prototype(),
    )
    chain = []
    try:
        codecs = [_codec(document) for document in json.loads(spec.chain)]
        first, middle, last = codecs_from_list(codecs)
        ordered: list[Any] = [*first, middle, *last]
        for given in ordered:
            codec = given.evolve_from_array_spec(chunk)
            chain.append((codec, chunk))
            chunk = codec.resolve_metadata(chunk)
    except Exception as error:  # codecs of others raise whatever they like
        raise FormatError(f"{spec.name!r}: zarr-python cannot build the codecs {spec.chain}: {error}") from error
    return chain


def _codec(document: dict[str, Any]) -> Any:
    try:
        found = get_codec_class(document["name"])
    except (KeyError, ValueError) as error:  # by version of zarr-python
        raise LookupError(f"no installed package brings the Zarr codec {document['name']!r}") from error
    return found.from_dict(document)


def _name(codec: Any) -> str:
    return repr(codec.to_dict().get("name", type(codec).__name__))


_BLOSC_HEADER_BYTES = 16


def _check_blosc(spec: ArraySpec, codec: Any, data: Any) -> None:
    """Raise CorruptDataError where a blosc header lies: the library allocates, and reads, what it is told to."""
    if str(codec.to_dict().get("name")).endswith("blosc"):
        packed = data.to_bytes()
        declared, most = int.from_bytes(packed[4:8], "little"), 2 * spec.chunk_bytes + 2**16
        if declared > most:
            raise CorruptDataError(f"codec 'blosc': chunk declares {declared} bytes, expected at most {most}")
        size = int.from_bytes(packed[12:16], "little")
        if len(packed) < _BLOSC_HEADER_BYTES or size != len(packed):
            raise CorruptDataError(f"codec 'blosc': chunk of {len(packed)} bytes declares that it has {size}")


def _run(codec: Any, direction: str, data: Any, chunk: ChunkSpec) -> Any:
    """Encode or decode, not on zarr's own event loop: that is one thread for all, and a fork leaves it behind."""
    direct = getattr(codec, f"_{direction}_sync", None)
    if direct is not None and getattr(codec, "_sync_capable", True):
        return direct(data, chunk)

    async def run() -> Any:
        (result,) = await getattr(codec, direction)([(data, chunk)])
        return result

    # A thread of its own, as the calling one may already run a loop: notebooks do.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, run()).result()
