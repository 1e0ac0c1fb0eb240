"""Shard files: what a writer puts together a reader takes apart, and an index that does not hold is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from salus.codecs import crc32c
from salus.errors import CorruptDataError
from salus.layout import ArraySpec
from salus.shards import MISSING, ShardInfo, ShardReader, ShardWriter, whole_shard

SPEC = ArraySpec("images", "uint8", (3,), 1, 4)
CHUNKS = [b"first", b"second one", b"third"]
IDENTITY = SPEC.shard_identity("01931f7e-0000-7000-8000-000000000000", 2)


class Bytes:
    """A stored file in memory that counts its reads."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.size = len(body)
        self.reads: list[tuple[int, int]] = []
        self.hints: list[tuple[int, int]] = []

    def read(self, start: int, size: int) -> bytes:
        self.reads.append((start, size))
        return self._body[start : start + size]

    def prefetch(self, start: int, size: int) -> None:
        self.hints.append((start, size))


def opened(body: bytes) -> ShardReader:
    return ShardReader(Bytes(body), SPEC, IDENTITY)


def with_index(data: bytes, rows: list[tuple[int, int]]) -> bytes:
    index = np.array(rows, "<u8").tobytes()
    return data + IDENTITY + index + crc32c(index).to_bytes(4, "little")


def test_writing_chunk_by_chunk_gives_the_whole_shard(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "shard", "images/c.0.0.0", 4, IDENTITY)
    places = [writer.add(number, chunk) for number, chunk in enumerate(CHUNKS)]
    writer.sync()
    info = writer.finish()
    body = (tmp_path / "shard").read_bytes()
    assert places == [(0, 5), (5, 10), (15, 5)]
    assert body == whole_shard(4, CHUNKS, IDENTITY)
    assert info == ShardInfo("images/c.0.0.0", len(body), crc32c(body), hashlib.sha256(body).hexdigest())
    assert ShardInfo.from_json(info.to_json()) == info


def test_chunks_may_come_in_any_order(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "shard", "key", 4, IDENTITY)
    for number in (2, 0, 1):
        writer.add(number, CHUNKS[number])
    writer.finish()
    reader = opened((tmp_path / "shard").read_bytes())
    assert [reader.chunk(number) for number in range(3)] == CHUNKS
    assert [reader.index.place(number)[0] for number in range(3)] == [5, 10, 0]
    assert reader.chunks(0, 3) == CHUNKS


def test_a_writer_takes_no_file_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(b"x")
    with pytest.raises(FileExistsError):
        ShardWriter(tmp_path / "shard", "key", 4, IDENTITY)


def test_a_writer_may_be_closed_twice_and_leaves_the_file(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "shard", "key", 4, IDENTITY)
    writer.add(0, b"abc")
    writer.close()
    writer.close()
    assert (tmp_path / "shard").read_bytes() == b"abc"


def test_a_reader_reads_every_chunk() -> None:
    reader = opened(whole_shard(4, CHUNKS, IDENTITY))
    assert [reader.chunk(number) for number in range(3)] == CHUNKS


def test_chunks_side_by_side_are_read_at_once() -> None:
    file = Bytes(whole_shard(4, CHUNKS))
    reader = ShardReader(file, SPEC, b"")
    file.reads.clear()
    assert reader.chunks(0, 3) == CHUNKS
    assert reader.chunks(1, 2) == CHUNKS[1:]
    assert file.reads == [(0, 20), (5, 15)]
    reader.prefetch(1, 2)
    assert file.hints == [(5, 15)]


def test_a_chunk_that_should_be_there_and_is_missing_is_named() -> None:
    with pytest.raises(CorruptDataError, match="the shard index lacks chunk 3"):
        opened(whole_shard(4, CHUNKS, IDENTITY)).chunk(3)
    with pytest.raises(CorruptDataError, match="lacks chunk 1"):
        opened(with_index(b"x" * 9, [(0, 4), (MISSING, MISSING), (4, 5), (MISSING, MISSING)])).chunks(0, 3)


@pytest.mark.parametrize(
    "row",
    [
        (0, 10),
        (9, 1),
        (5, 5),
        (2**63, 1),
        (1, 2**64 - 1),
        (2**64 - 1, 1),
        (2**63, 2**63),
        (2**64 - 2, 2**64 - 2),
        (0, 0),
        (3, 0),
    ],
)
def test_an_index_that_points_outside_is_refused(row: tuple[int, int]) -> None:
    good, unused = (0, 9), (MISSING, MISSING)
    assert opened(with_index(b"x" * 9, [good, good, good, unused])).chunk(2) == b"x" * 9
    with pytest.raises(CorruptDataError, match="points outside its 9 bytes: chunk 1"):
        opened(with_index(b"x" * 9, [good, row, good, unused])).chunk(1)


@pytest.mark.parametrize("size", [0, 1, 4, 67, 68])
def test_what_is_too_short_for_an_index_is_refused(size: int) -> None:
    with pytest.raises(CorruptDataError, match="the shard index"):
        opened(whole_shard(4, [], IDENTITY)[:size]).chunk(0)


def test_every_changed_byte_of_the_index_is_found() -> None:
    whole = whole_shard(4, CHUNKS, IDENTITY)
    for place in range(sum(map(len, CHUNKS)) + len(IDENTITY), len(whole)):
        body = bytearray(whole)
        body[place] ^= 0x10
        with pytest.raises(CorruptDataError, match="does not hold its crc32c"):
            opened(bytes(body))


def test_a_shard_that_is_not_the_one_is_refused() -> None:
    for uid, segment in (("01931f7e-0000-7000-8000-000000000001", 2), ("01931f7e-0000-7000-8000-000000000000", 1)):
        body = whole_shard(4, CHUNKS, SPEC.shard_identity(uid, segment))
        named = f"it ends in 'salus {uid} images {segment}', expected 'salus 01931f7"
        with pytest.raises(CorruptDataError, match=named):
            opened(body)
    with pytest.raises(CorruptDataError, match="another shard is in its place"):
        opened(whole_shard(4, [b"x" * 100]))


def test_every_changed_byte_of_the_identity_is_found() -> None:
    whole, start = whole_shard(4, CHUNKS, IDENTITY), sum(map(len, CHUNKS))
    for place in range(start, start + len(IDENTITY)):
        body = bytearray(whole)
        body[place] ^= 0x10
        with pytest.raises(CorruptDataError, match="another shard is in its place"):
            opened(bytes(body))
