"""The journal of an episode in progress: what a recoverer needs to bring it back (docs/spec.md, section 3.2).

A file of `[length u32 | crc32c u32 | payload]` frames, little-endian. A payload is one line of JSON, then raw bytes:

    {"type": "start", uid, slot, schema_revision, metadata, started_ns}
    {"type": "steps", first, count, chunks: {name: [[offset, size] …]}, arrays: {name: bytes}, texts: {name: […]}} rows…
    {"type": "segment", segment, shards: [ShardInfo …]}      the shards of a segment are complete and in place
    {"type": "outcome", outcome}                             the last one counts
    {"type": "metadata", metadata}                           keys that were added or replaced
    {"type": "discarded", reason}                            it is not to be kept; of a dataset in a bucket

`chunks` says where the inner chunks of a shard in progress lie; the raw bytes after the line are the rows of all other
arrays, in the order of `arrays`. The writer holds an exclusive lock on the file for as long as it lives.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import documents
from ..codecs import crc32c
from ..log.unfinished import is_locked as is_alive
from ..storage import open_plain

__all__ = ["NAME", "Frame", "JournalWriter", "is_alive", "read_journal"]

NAME = "journal"
MAX_FRAME_BYTES = 2**30
_HEADER = 8


class JournalWriter:
    """The journal of one episode, locked by this process.

    Thread-safety: none; one thread writes.
    """

    def __init__(self, folder: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(folder / NAME, flags, 0o644)
        # Waits for who only looks whether the writer lives, in the moment between creating the file and locking it.
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def add(self, document: dict[str, Any], rows: bytes = b"") -> None:
        """Append one frame; durable after `sync`."""
        payload = documents.canonical(document) + b"\n" + rows
        frame = len(payload).to_bytes(4, "little") + crc32c(payload).to_bytes(4, "little") + payload
        remaining = memoryview(frame)
        while remaining:
            remaining = remaining[os.write(self._descriptor, remaining) :]

    def sync(self) -> None:
        """Make all frames durable."""
        os.fdatasync(self._descriptor)

    @property
    def is_open(self) -> bool:
        """Whether it was not closed."""
        return self._descriptor >= 0

    def close(self) -> None:
        """Give up the descriptor, and with it the lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass(frozen=True)
class Frame:
    """One whole frame of a journal."""

    document: dict[str, Any]
    rows: bytes


def read_journal(path: Path) -> Iterator[Frame]:
    """The whole frames of a journal, up to the first that a crash cut or tore. Cost: memory of one frame.

    Raises:
        CorruptDataError: A frame that holds its checksum, but is not one that this version knows; or no plain file.
    """
    descriptor, remaining = open_plain(path)
    with os.fdopen(descriptor, "rb") as file:
        while len(header := file.read(_HEADER)) == _HEADER:
            size, remaining = int.from_bytes(header[:4], "little"), remaining - _HEADER
            if size == 0 or size > min(remaining, MAX_FRAME_BYTES):
                return  # torn. Zeros: a power cut kept the file's size, and not its bytes
            payload, remaining = file.read(size), remaining - size
            if len(payload) < size or crc32c(payload) != int.from_bytes(header[4:], "little"):
                return
            line, _, rows = payload.partition(b"\n")
            yield Frame(documents.parse(line, key=str(path)), rows)
