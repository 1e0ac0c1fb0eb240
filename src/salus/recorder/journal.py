"""The journal of an episode in progress: what a recoverer needs to bring it back (docs/spec.md, section 3.2).

A file of `[length u32 | crc32c u32 | payload]` frames, little-endian. A payload is one line of JSON, then raw bytes:

    {"type": "start", uid, slot, schema_revision, metadata, started_ns}
    {"type": "steps", first, count, chunks: {name: [[offset, size] …]}, arrays: {name: bytes}, texts: {name: […]}} rows…
    {"type": "segment", segment, shards: [ShardInfo …]}      the shards of a segment are complete and in place

`chunks` says where the inner chunks of a shard in progress lie; the raw bytes after the line are the rows of all other
arrays, in the order of `arrays`. The writer holds an exclusive lock on the file for as long as it lives.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import documents
from ..codecs import crc32c

NAME = "journal"
_HEADER = 8


class JournalWriter:
    """The journal of one episode, locked by this process.

    Thread-safety: none; one thread writes.
    """

    def __init__(self, folder: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(folder / NAME, flags, 0o644)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

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
    """The whole frames of a journal, up to the first that a crash cut or tore."""
    body, place = path.read_bytes(), 0
    while place + _HEADER <= len(body):
        size = int.from_bytes(body[place : place + 4], "little")
        payload = body[place + _HEADER : place + _HEADER + size]
        if len(payload) < size or crc32c(payload) != int.from_bytes(body[place + 4 : place + 8], "little"):
            return
        line, _, rows = payload.partition(b"\n")
        yield Frame(json.loads(line), rows)
        place += _HEADER + size


def is_alive(path: Path) -> bool:
    """Whether the process that writes this journal still lives: it holds the lock."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
