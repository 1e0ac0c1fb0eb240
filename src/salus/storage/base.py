"""What the commit protocol needs of a storage. `tests/contract/` is its behaviour, run on every implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

from ..errors import SalusError

MAX_OBJECT_BYTES = 2**28 + 2**22
"""What is read whole: documents, and chunks of index arrays, which hold at most 2²⁸ bytes before compression."""

Found: TypeAlias = list[str]
Result = TypeVar("Result")


class Storage(Protocol):
    """Objects under keys such as `"_salus/log/0/0000000001.json"`, relative to the root of one dataset.

    Keys come from `salus.layout` only. Immutable objects are made with `put_new`; derived ones, which can be built
    again, with `put`.
    """

    @property
    def url(self) -> str:
        """Where the root is, for messages and reprs."""
        ...

    @property
    def requests_at_once(self) -> int:
        """How many reads are to be under way at a time, as each mostly waits for its answer; 1 where none does."""
        ...

    def put_new(self, key: str, body: bytes) -> None:
        """Create a complete, durable object, or fail because one is there.

        Raises:
            AlreadyExistsError: Another body is there. Nothing was changed.
            CommitUnknownError: The storage did not say whether the object is durable. Nothing was deleted.
            RecordingError: Nothing was created: the storage is full, read-only, closed to us.
        """
        ...

    def put_new_many(self, objects: Mapping[str, bytes]) -> dict[str, SalusError]:
        """`put_new` of many keys at once: each with the same guarantees, at a lower cost than one by one.

        Returns:
            For each key that was not created, or may not be, the error that `put_new` raises. All other objects are
            durable. One key's error changes nothing for the others.
        """
        ...

    def put_new_file(self, key: str, source: Path) -> None:
        """`put_new` with a complete local file as the body.

        `source` is the caller's own, to be removed afterwards: where a file system has no links, it is gone already.

        Raises:
            As `put_new`.
        """
        ...

    def put(self, objects: Mapping[str, bytes]) -> None:
        """Create or replace derived objects, each whole or not at all, all durable on return.

        Raises:
            RecordingError: The storage refused. What was there is there still, or replaced whole.
        """
        ...

    def get(self, key: str) -> bytes | None:
        """The whole object, or None where there is none.

        Raises:
            CorruptDataError: Something that is no plain object lies there.
            StorageError: It cannot be read.
        """
        ...

    def list(self, folder: str) -> Found:
        """Names of the objects and folders directly in `folder`, unsorted; empty where there is none.

        Raises:
            CorruptDataError, StorageError: As `get`.
        """
        ...

    def sync(self, folder: str) -> None:
        """Make every entry seen in `folder` durable (a no-op where objects are durable once they are visible).

        Raises:
            CommitUnknownError: The storage did not confirm it.
        """
        ...

    def publication(self, publish: Callable[[Storage], Result]) -> Result:
        """Run `publish` so that no publisher undoes what one that read a younger log has put.

        It gets the storage that it is to work on: it reads the log from there, and puts derived objects. It may run
        more than once. Never needed to record or to read.

        Raises:
            RecordingError: The storage refused, or others were faster again and again.
        """
        ...

    def check_writable(self) -> None:
        """Whether what the commit protocol rests on holds here; asked once, when a dataset is opened for writing.

        Raises:
            StorageError: It does not.
            RecordingError: The storage refuses to write.
        """
        ...

    def open_shard(self, key: str) -> StoredFile | None:
        """Open an object for ranged reads, or None where there is none.

        Raises:
            CorruptDataError, StorageError: As `get`.
        """
        ...


class StoredFile(Protocol):
    """An object open for ranged reads. It is closed when nobody holds it any more.

    Thread-safety: safe; in a forked child as well, where a bucket gives a StorageError.
    """

    @property
    def size(self) -> int:
        """Bytes of the whole object when it was opened."""
        ...

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start` on; fewer where the object ends before.

        Raises:
            StorageError: It cannot be read.
        """
        ...

    def prefetch(self, start: int, size: int) -> None:
        """Say that these bytes will be read soon. Returns at once; changes nothing but the time of reading."""
        ...
