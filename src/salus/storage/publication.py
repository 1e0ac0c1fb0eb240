"""Publishing into an object store, where there is no lock: what is put replaces only what was read before the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..errors import SalusError
from .base import Found, Storage, StoredFile

if TYPE_CHECKING:
    from .objects import ObjectStorage, Version

Result = TypeVar("Result")


class OvertakenError(Exception):
    """Another publisher replaced what this one had read."""


class Publication:
    """The storage that one publisher sees: what it puts replaces only what it read, before it read the log.

    A first run reads, and puts nothing: it finds out which objects matter, and their versions. The second run reads
    the log, which now is younger than these, and builds from the bodies that were read. Whoever publishes a younger
    log in between changes a version, and then nothing of this one gets in its way.
    """

    def __init__(self, storage: ObjectStorage) -> None:
        self._storage = storage
        self._known: dict[str, tuple[bytes, Version] | None] = {}
        self._written: dict[str, bytes] = {}
        self._rehearses = True

    def run(self, publish: Callable[[Storage], Result]) -> Result:
        publish(self)
        self._written.clear()
        self._rehearses = False
        return publish(self)

    @property
    def url(self) -> str:
        return self._storage.url

    def get(self, key: str) -> bytes | None:
        if key.startswith("_salus/"):
            return self._storage.get(key)
        if key in self._written:
            return self._written[key]
        found = self._version(key)
        return None if found is None else found[0]

    def _version(self, key: str) -> tuple[bytes, Version] | None:
        if key not in self._known:
            if not self._rehearses:
                raise OvertakenError  # the log has changed so much that other objects matter
            self._known[key] = self._storage.get_version(key)
        return self._known[key]

    def put(self, objects: Mapping[str, bytes]) -> None:
        for key, body in objects.items():
            self._version(key)
            if not self._rehearses:
                self._replace(key, body)
            self._written[key] = body

    def _replace(self, key: str, body: bytes) -> None:
        from obstore.exceptions import AlreadyExistsError as Exists
        from obstore.exceptions import PreconditionError

        known = self._known[key]
        try:
            version = self._storage.replace(key, body, None if known is None else known[1])
        except (Exists, PreconditionError) as error:
            found = self._storage.get_version(key)
            if found is None or found[0] != body:  # else it was ours, and the answer was lost
                raise OvertakenError from error
            self._known[key] = found
        else:
            self._known[key] = (body, version)

    def list(self, folder: str) -> Found:
        return self._storage.list(folder)

    def open_shard(self, key: str) -> StoredFile | None:
        return self._storage.open_shard(key)

    def sync(self, folder: str) -> None:
        pass  # what can be seen is durable

    def check_writable(self) -> None:
        pass  # it was asked when the dataset was opened

    def publication(self, publish: Callable[[Storage], Result]) -> Result:
        return publish(self)

    def put_new(self, key: str, body: bytes) -> None:
        self._storage.put_new(key, body)

    def put_new_many(self, objects: Mapping[str, bytes]) -> dict[str, SalusError]:
        return self._storage.put_new_many(objects)

    def put_new_file(self, key: str, source: Path) -> None:
        self._storage.put_new_file(key, source)
