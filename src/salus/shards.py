"""Shard files: inner chunks one after the other, then Zarr's `sharding_indexed` index at the end.

A shard in progress only grows, chunk by chunk; finishing it adds the index and makes it durable. The index is one
(offset, size) pair of uint64 per inner chunk, then its crc32c.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .codecs import crc32c
from .errors import CorruptDataError
from .layout import ArraySpec

MISSING = 2**64 - 1
_CHECKSUM = 4


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
        return cls(value["key"], value["size"], value["crc32c"], value["sha256"])


class ShardWriter:
    """One shard in progress: a file that grows by encoded chunks.

    Args:
        path: Where it grows; must not exist.
        key: Its final key.
        num_chunks: Inner chunks of a whole shard.

    Thread-safety: none; one thread writes.
    """

    def __init__(self, path: Path, key: str, num_chunks: int) -> None:
        self.path = path
        self.key = key
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
        """Add the index and make the file durable. It is complete then, and ready to be put in place."""
        index = self._index.tobytes()
        self._write(index + crc32c(index).to_bytes(_CHECKSUM, "little"))
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


def whole_shard(num_chunks: int, chunks: list[bytes]) -> bytes:
    """A complete shard holding `chunks` from chunk 0 on."""
    index = np.full((num_chunks, 2), MISSING, "<u8")
    sizes = np.array([len(chunk) for chunk in chunks], "<u8")
    index[: len(chunks), 0] = np.cumsum(sizes) - sizes
    index[: len(chunks), 1] = sizes
    body = index.tobytes()
    return b"".join([*chunks, body, crc32c(body).to_bytes(_CHECKSUM, "little")])


class ShardReader:
    """An open shard with its index parsed and checked.

    Args:
        read: `read(start, size)` of the object.
        size: Its size in bytes.
        close: Gives up the object; called when the reader is no longer referenced, also when it was refused.
        spec: The array that it belongs to.
        num_chunks: Inner chunks that must be there, from chunk 0 on.

    Raises:
        CorruptDataError: The index does not hold, points outside the file, or lacks a chunk.

    Thread-safety: safe; it does not change.
    """

    def __init__(
        self,
        read: Callable[[int, int], bytes],
        size: int,
        close: Callable[[], None],
        spec: ArraySpec,
        *,
        num_chunks: int,
    ) -> None:
        self._close = close
        self._read = read
        index_size = spec.chunks_per_shard * 16
        end = size - index_size - _CHECKSUM
        tail = read(max(end, 0), index_size + _CHECKSUM)
        if end < 0 or crc32c(tail[:index_size]) != int.from_bytes(tail[index_size:], "little"):
            raise CorruptDataError("the shard index does not hold its crc32c")
        index = np.frombuffer(tail, "<u8", count=spec.chunks_per_shard * 2).reshape(-1, 2)[:num_chunks]
        if (index > end).any() or (index.sum(axis=1) > end).any() or (index[:, 1] == 0).any():
            missing = np.flatnonzero((index == MISSING).all(axis=1))
            what = f"lacks chunk {missing[0]}" if len(missing) else f"points outside its {size} bytes"
            raise CorruptDataError(f"the shard index {what}")
        self._offsets: list[int] = index[:, 0].tolist()
        self._sizes: list[int] = index[:, 1].tolist()

    def chunk(self, number: int) -> bytes:
        """The encoded bytes of one inner chunk."""
        return self._read(self._offsets[number], self._sizes[number])

    def offset(self, number: int) -> int:
        """Where the chunk starts, for reading in the order of the disk."""
        return self._offsets[number]

    def __del__(self) -> None:
        # Whoever still reads holds a reference: so the descriptor is never closed, and reused, under a reader.
        self._close()
