"""Shard files: inner chunks one after the other, whose shard it is, then Zarr's `sharding_indexed` index at the end.

A shard in progress only grows, chunk by chunk; finishing it adds the index and makes it durable. The index is one
(offset, size) pair of uint64 per inner chunk, then its crc32c.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .codecs import crc32c, max_encoded_bytes
from .errors import CorruptDataError
from .layout import ArraySpec
from .storage import StoredFile

MISSING = 2**64 - 1
INDEX_ENTRY_BYTES = 16
INDEX_CHECKSUM_BYTES = 4
_PLACE = struct.Struct("<QQ")


@dataclass(frozen=True)
class ShardInfo:
    """What a record says of one shard, so that a lost, cut or exchanged one is found.

    Attributes:
        key: Its key.
        size: Bytes of the whole file.
        crc32c: CRC-32C of the whole file.
        sha256: sha256 of the whole file, hex.
    """

    key: str
    size: int
    crc32c: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """As it stands in a record."""
        return {"key": self.key, "size": self.size, "crc32c": self.crc32c, "sha256": self.sha256}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ShardInfo:
        """From a record; raises KeyError or TypeError where it is none."""
        made = cls(value["key"], value["size"], value["crc32c"], value["sha256"])
        if [type(item) for item in vars(made).values()] != [str, int, int, str]:
            raise TypeError(f"a shard of {vars(made)}")
        return made


class ShardWriter:
    """One shard in progress: a file that grows by encoded chunks.

    Args:
        path: Where it grows; must not exist.
        key: Its final key.
        num_chunks: Inner chunks of a whole shard.
        identity: `ArraySpec.shard_identity`, which no chunk is.

    Thread-safety: none; one thread writes.
    """

    def __init__(self, path: Path, key: str, num_chunks: int, identity: bytes) -> None:
        self.path = path
        self.key = key
        self._identity = identity
        self._index = np.full((num_chunks, 2), MISSING, "<u8")
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._size = 0
        self._crc32c = 0
        self._sha256 = hashlib.sha256()

    def add(self, chunk: int, encoded: bytes) -> tuple[int, int]:
        """Append one encoded chunk; returns its offset and size."""
        place = (self._size, len(encoded))
        self._index[chunk] = place
        self._write(encoded)
        return place

    def sync(self) -> None:
        """Make what was added durable (the file is not in place yet)."""
        os.fdatasync(self._descriptor)

    def finish(self) -> ShardInfo:
        """Add identity and index, and make the file durable. It is complete then, and ready to be put in place."""
        index = self._index.tobytes()
        self._write(self._identity + index + crc32c(index).to_bytes(INDEX_CHECKSUM_BYTES, "little"))
        os.fsync(self._descriptor)
        self.close()
        return ShardInfo(self.key, self._size, self._crc32c, self._sha256.hexdigest())

    def close(self) -> None:
        """Give up the descriptor; the file stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, data: bytes) -> None:
        remaining = memoryview(data)
        while remaining:
            remaining = remaining[os.write(self._descriptor, remaining) :]
        self._size += len(data)
        self._crc32c = crc32c(data, self._crc32c)
        self._sha256.update(data)


def whole_shard(num_chunks: int, chunks: list[bytes], identity: bytes = b"") -> bytes:
    """A complete shard holding `chunks` from chunk 0 on; what is derived, and so can be made again, has no identity."""
    index = np.full((num_chunks, 2), MISSING, "<u8")
    sizes = np.array([len(chunk) for chunk in chunks], "<u8")
    index[: len(chunks), 0] = np.cumsum(sizes) - sizes
    index[: len(chunks), 1] = sizes
    body = index.tobytes()
    return b"".join([*chunks, identity, body, crc32c(body).to_bytes(INDEX_CHECKSUM_BYTES, "little")])


def tail_bytes(spec: ArraySpec, identity: bytes) -> int:
    """How much of a shard comes behind its chunks."""
    return len(identity) + spec.chunks_per_shard * INDEX_ENTRY_BYTES + INDEX_CHECKSUM_BYTES


class ShardIndex:
    """Where the inner chunks of one shard lie; its crc32c was checked.

    Args:
        tail: The end of the file: the identity, one (offset, size) pair of uint64 per inner chunk, the crc32c of these.
        end: Where the chunks end.
        max_chunk: Bytes that an inner chunk may have at most.
        identity: What has to come first in `tail`.

    Raises:
        CorruptDataError: The crc32c does not hold, or the identity is another.

    Thread-safety: safe; it does not change.
    """

    __slots__ = ("_end", "_index", "_max_chunk")

    def __init__(self, tail: bytes, end: int, max_chunk: int = MISSING, identity: bytes = b"") -> None:
        index, checksum = tail[len(identity) : -INDEX_CHECKSUM_BYTES], tail[-INDEX_CHECKSUM_BYTES:]
        if end < 0 or crc32c(index) != int.from_bytes(checksum, "little"):
            raise CorruptDataError("the shard index does not hold its crc32c")
        if not tail.startswith(identity):
            found, expected = (some.decode(errors="replace").strip() for some in (tail[: len(identity)], identity))
            raise CorruptDataError(f"another shard is in its place: it ends in {found!r}, expected {expected!r}")
        self._index = index
        self._end = end
        self._max_chunk = max_chunk

    def place(self, chunk: int) -> tuple[int, int]:
        """Offset and size of one inner chunk.

        Raises:
            CorruptDataError: It is not there, lies outside the file, or is larger than an encoder makes it.
        """
        offset, size = place = _PLACE.unpack_from(self._index, chunk * 16)
        if not 0 < size <= self._end - offset:
            if offset == size == MISSING:
                raise CorruptDataError(f"the shard index lacks chunk {chunk}")
            raise CorruptDataError(f"the shard index points outside its {self._end} bytes: chunk {chunk}")
        if size > self._max_chunk:  # before so much is read
            raise CorruptDataError(f"chunk {chunk} has {size} bytes, expected at most {self._max_chunk}")
        return place


class ShardReader:
    """An open shard.

    Args:
        file: The object.
        spec: The array that it belongs to.
        identity: `ArraySpec.shard_identity` of the shard that it has to be; b"" of what is derived, which has none.

    Raises:
        CorruptDataError: The index does not hold, or it is another shard.

    Thread-safety: safe; it does not change. The file is closed when nobody holds the reader any more.
    """

    __slots__ = ("_file", "_whole", "index")

    def __init__(self, file: StoredFile, spec: ArraySpec, identity: bytes) -> None:
        self._file = file
        self._whole: bytes | None = None
        tail_size = tail_bytes(spec, identity)
        end, max_chunk = file.size - tail_size, max_encoded_bytes(spec)
        if spec.chunk_steps == spec.segment_steps > 1 and end <= max_chunk:  # all is one chunk: one read, not two
            self._whole = file.read(0, file.size)
            tail = self._whole[max(end, 0) :]
        else:
            tail = file.read(max(end, 0), tail_size)
        self.index = ShardIndex(tail, end, max_chunk, identity)

    def chunk(self, number: int) -> bytes:
        """The encoded bytes of one inner chunk."""
        if self._whole is None:
            return self._file.read(*self.index.place(number))
        offset, size = self.index.place(number)
        return self._whole[offset : offset + size]

    def chunks(self, first: int, count: int) -> list[bytes]:
        """The encoded bytes of consecutive inner chunks, in one read where they lie side by side."""
        if count == 1:
            return [self.chunk(first)]
        places = [self.index.place(number) for number in range(first, first + count)]
        borders = [offset for offset, _ in places] + [sum(places[-1])]
        if any(sum(place) != border for place, border in zip(places, borders[1:], strict=True)):
            return [self._file.read(*place) for place in places]
        data = self._file.read(borders[0], borders[-1] - borders[0])
        return [data[start - borders[0] : end - borders[0]] for start, end in itertools.pairwise(borders)]

    def prefetch(self, first: int, count: int) -> None:
        """Tell the storage that these chunks will be read soon."""
        places = [self.index.place(number) for number in (first, first + count - 1)]
        self._file.prefetch(places[0][0], sum(places[1]) - places[0][0])
