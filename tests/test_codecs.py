"""Inner chunks: what is encoded is decoded, zarr-python writes and reads the same bytes, and bad bytes are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numcodecs import zstd

import salus
from salus.codecs import crc32c, declared_size, decode_chunk, decode_chunks, encode_chunk
from salus.errors import CorruptDataError
from salus.layout import ArraySpec, array_metadata, array_specs, metadata_bytes
from salus.schema import DTYPES
from salus.shards import ShardReader, whole_shard
from salus.storage import LocalStorage

SEGMENT = 8
FEATURES = {
    "chw": salus.Image(height=5, width=4),
    "hwc": salus.Image(height=5, width=4, layout="HWC", color="gray"),
    "large": salus.Feature((1024,)),  # a step of 4 KiB is a chunk of its own
    "number": salus.Feature((), "float64"),
    "flags": salus.Feature((3,), "bool"),
    "matrix": salus.Feature((2, 3), "int16"),
    "text": salus.Text(),
}
SPECS = array_specs(salus.Schema(FEATURES, rate_hz=10, segment_steps=SEGMENT))


def make_steps(spec: ArraySpec, count: int) -> np.ndarray:
    """`count` steps as readers see them."""
    rng = np.random.default_rng(0)
    if spec.is_text:
        return np.array(["", "grüß", "日本語", "x" * 300, "\0", "🤖", "end", "."][:count], object)
    values: np.ndarray = rng.integers(0, 256, (count, *spec.step_shape)).astype(spec.numpy_dtype)
    return values


def encoded_chunks(spec: ArraySpec, steps: np.ndarray) -> list[bytes]:
    stored = np.ascontiguousarray(spec.as_stored(steps)) if not spec.is_text else steps
    return [
        encode_chunk(spec, stored[first : first + spec.chunk_steps])
        for first in range(0, len(stored), spec.chunk_steps)
    ]


def decoded_steps(spec: ArraySpec, chunks: list[bytes]) -> np.ndarray:
    return spec.as_seen(np.concatenate([decode_chunk(spec, chunk) for chunk in chunks]))


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("count", [1, 5, SEGMENT])
def test_chunks_round_trip_and_are_filled_up_with_nothing(name: str, count: int) -> None:
    spec = SPECS[name]
    steps = make_steps(spec, count)
    decoded = decoded_steps(spec, encoded_chunks(spec, steps))
    np.testing.assert_array_equal(decoded[:count], steps)
    assert decoded.dtype == spec.numpy_dtype
    assert not any(np.any(value) for value in decoded[count:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_values_of_every_dtype_round_trip(dtype: str) -> None:
    spec = ArraySpec("a", dtype, (2,), 2, 2)
    kind = np.dtype(dtype).kind
    info: Any = np.iinfo(dtype) if kind in "iu" else np.finfo(dtype) if kind == "f" else None
    low, high = (info.min, info.max) if info else (False, True)
    steps = np.array([[low, high], [0, 1]], dtype)
    np.testing.assert_array_equal(decode_chunk(spec, encode_chunk(spec, steps)), steps)


def test_decoding_into_a_given_array() -> None:
    spec = SPECS["chw"]
    image = np.ascontiguousarray(spec.as_stored(make_steps(spec, 1)))
    out = np.zeros((3, *spec.stored_step_shape), np.uint8)
    decode_chunk(spec, encode_chunk(spec, image), out[1:2])
    np.testing.assert_array_equal(out[1], image[0])
    assert not out[[0, 2]].any()


@pytest.mark.parametrize("count", [1, 2, 7])
def test_chunks_side_by_side_in_one_call(count: int) -> None:
    spec = SPECS["chw"]
    images = np.ascontiguousarray(spec.as_stored(make_steps(spec, count)))
    out = np.zeros((count + 2, *spec.stored_step_shape), np.uint8)
    decode_chunks(spec, [encode_chunk(spec, image[None]) for image in images], out[1:-1])
    np.testing.assert_array_equal(out[1:-1], images)
    assert not out[[0, -1]].any()


# --- the same bytes as zarr-python -------------------------------------------------------------------------------


def open_array(path: Path, spec: ArraySpec, slots: int = 2) -> zarr.Array[Any]:
    folder = path / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "zarr.json").write_bytes(metadata_bytes(array_metadata(spec, slots, 2 * SEGMENT)))
    return zarr.open_array(folder, mode="r+")


@pytest.mark.parametrize("name", SPECS)
def test_a_shard_that_zarr_python_writes_is_read(tmp_path: Path, name: str) -> None:
    spec = SPECS[name]
    steps = make_steps(spec, SEGMENT)
    open_array(tmp_path, spec)[1, SEGMENT : 2 * SEGMENT] = steps
    opened = LocalStorage(tmp_path).open_shard(spec.shard_key(1, 1))
    assert opened is not None
    reader = ShardReader(opened, spec, b"")
    np.testing.assert_array_equal(decoded_steps(spec, list(map(reader.chunk, range(spec.chunks_per_shard)))), steps)


@pytest.mark.parametrize("name", SPECS)
def test_zarr_python_reads_a_shard_of_ours(tmp_path: Path, name: str) -> None:
    spec = SPECS[name]
    array = open_array(tmp_path, spec)
    steps = make_steps(spec, 5)
    shard = whole_shard(spec.chunks_per_shard, encoded_chunks(spec, steps))
    LocalStorage(tmp_path).put_new(spec.shard_key(1, 1), shard)
    np.testing.assert_array_equal(array[1, SEGMENT : SEGMENT + 5], steps)
    assert not np.any(array[0].astype(bool))


@pytest.mark.parametrize("name", SPECS)
def test_inner_chunks_are_byte_for_byte_those_of_zarr_python(tmp_path: Path, name: str) -> None:
    spec = SPECS[name]
    steps = make_steps(spec, SEGMENT)
    open_array(tmp_path, spec)[0, :SEGMENT] = steps
    opened = LocalStorage(tmp_path).open_shard(spec.shard_key(0, 0))
    assert opened is not None
    reader = ShardReader(opened, spec, b"")
    assert list(map(reader.chunk, range(spec.chunks_per_shard))) == encoded_chunks(spec, steps)


# --- bad bytes ---------------------------------------------------------------------------------------------------


def sealed(packed: bytes) -> bytes:
    """With the checksum of a chunk, so that only what is in it can be wrong."""
    return packed + crc32c(packed).to_bytes(4, "little")


def test_crc32c_is_the_castagnoli_one_and_goes_on() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"6789", crc32c(b"12345")) == 0xE3069283
    assert crc32c(b"") == 0


@pytest.mark.parametrize("encoded", [b"", b"1234", b"12345", bytes(4)])
def test_what_is_too_short_for_a_chunk(encoded: bytes) -> None:
    with pytest.raises(CorruptDataError, match="crc32c does not hold"):
        decode_chunk(SPECS["number"], encoded)


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: good[:-5] + bytes([good[-5] ^ 1]) + good[-4:],  # the checksum does not hold
        lambda good: sealed(bytes(zstd.compress(bytes(100), 1))),  # of another size
        lambda good: sealed(good[:-4] + bytes(zstd.compress(b"more", 1))),  # more than one frame
        lambda good: sealed(b"not zstd at all"),
        lambda good: good[:4],
    ],
    ids=["changed", "other size", "more", "not zstd", "short"],
)
@pytest.mark.parametrize("place", [0, 2, 3])
def test_one_bad_chunk_among_others_is_refused(damage: Callable[[bytes], bytes], place: int) -> None:
    spec = SPECS["chw"]
    images = np.ascontiguousarray(spec.as_stored(make_steps(spec, 4)))
    encoded = [encode_chunk(spec, image[None]) for image in images]
    encoded[place] = damage(encoded[place])
    with pytest.raises(CorruptDataError):
        decode_chunks(spec, encoded, np.empty_like(images))


@pytest.mark.parametrize(
    ("packed", "text"),
    [
        (b"not zstd at all", "declares None bytes, expected 64"),
        (bytes(zstd.compress(b"x" * 63, 1)), "declares 63 bytes, expected 64"),
        (bytes(zstd.compress(b"x" * 400_000_000, 1)), "declares 400000000 bytes, expected 64"),
        (bytes(zstd.compress(bytes(range(64)), 1))[:-9], "zstd cannot decode"),
    ],
    ids=["not zstd", "too small", "a bomb", "cut"],
)
def test_content_that_is_not_of_the_declared_size_is_refused(packed: bytes, text: str) -> None:
    with pytest.raises(CorruptDataError, match=text):
        decode_chunk(SPECS["number"], sealed(packed))


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\x07\0\0\0", "holds 7 texts, expected 8"),
        (b"\x08\0\0\0" + b"\x05\0\0\0abc", "ends within a text"),
        (b"\x08\0\0\0" + b"\x01\0\0\0\xff" + b"\0" * 28, "not UTF-8"),
    ],
)
def test_text_chunks_that_do_not_hold_are_refused(raw: bytes, text: str) -> None:
    with pytest.raises(CorruptDataError, match=text):
        decode_chunk(SPECS["text"], sealed(bytes(zstd.compress(raw, 1))))


@pytest.mark.parametrize(
    "packed",
    [bytes(zstd.compress(b"abc" * 50, 1))[:-6] + bytes(6), bytes(zstd.compress(b"", 1))],
    ids=["mangled", "empty"],
)
def test_text_that_zstd_cannot_decode_is_refused(packed: bytes) -> None:
    with pytest.raises(CorruptDataError):
        decode_chunk(SPECS["text"], sealed(packed))


@pytest.mark.parametrize("raw", [b"\x08", b"\x08\0\0\0", b"\x08\0\0\0\x01\0\0\0a\0\0"])
def test_text_chunks_that_end_within_a_length_are_refused(raw: bytes) -> None:
    with pytest.raises(CorruptDataError):
        decode_chunk(SPECS["text"], sealed(bytes(zstd.compress(raw, 1))))


def test_text_of_more_than_the_cap_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = encode_chunk(SPECS["text"], np.array(["x" * 5000], object))
    monkeypatch.setattr("salus.codecs.MAX_TEXT_CHUNK_BYTES", 4000)
    with pytest.raises(CorruptDataError, match="declares 5036 bytes, expected at most 4000"):
        decode_chunk(SPECS["text"], encoded)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 65535, 65536, 65791, 65792, 1_000_000])
def test_the_declared_size_is_the_content_size_of_the_frame(size: int) -> None:
    packed = bytes(zstd.compress(bytes(size), 1))
    if size:
        assert declared_size(packed) == size
    assert declared_size(packed[:5]) is None


def test_eight_byte_sizes_and_frames_without_a_size() -> None:
    magic = b"\x28\xb5\x2f\xfd"
    assert declared_size(magic + b"\xe0" + (2**40).to_bytes(8, "little")) == 2**40
    assert declared_size(magic + b"\xc1\0\x07" + (9).to_bytes(8, "little")) == 9  # with a window and a dictionary
    assert declared_size(magic + b"\x00\x58\x01\x00") is None
    assert declared_size(b"\x29" + magic[1:] + b"\x20\x05") is None
