"""Publishing into an object store, where there is no lock: what is put replaces only what was read before the log."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

from ..errors import RecordingError, SalusError
from .base import Found, Storage, StoredFile

Result = TypeVar("Result")
Version: TypeAlias = dict[str, str]
"""What `obstore.put` takes to replace exactly this version of an object."""

ATTEMPTS = 20


class VersionedStorage(Storage, Protocol):
    """A storage whose objects have versions."""

    def get_version(self, key: str) -> tuple[bytes, Version] | None:
        """The whole object and its version, or None where there is none."""
        ...

    def replace(self, key: str, body: bytes, version: Version | None) -> Version | None:
        """Replace exactly this version (None: create). Returns the new one, or None where another was there."""
        ...


def published(storage: VersionedStorage, publish: Callable[[Storage], Result]) -> Result:
    """Run `publish` until nobody has published a younger log in between.

    Raises:
        RecordingError: The storage refused, or others were faster again and again.
    """
    for attempt in range(ATTEMPTS):
        try:
            return Publication(storage).run(publish)
        except OvertakenError:
            time.sleep(min(0.05 * 2**attempt, 5.0) * random.random())  # noqa: S311 - only to get out of step
    raise RecordingError(
        f"publish: others were faster {ATTEMPTS} times, so plain Zarr readers see what these published; nothing is "
        f"lost, publish again; {storage.url}"
    )


class OvertakenError(Exception):
    """Another publisher replaced what this one had read."""


class Publication:
    """The storage that one publisher sees: what it puts replaces only what it read, before it read the log.

    A first run reads, and puts nothing: it finds out which objects matter, and their versions. The second run reads
    the log, which now is younger than these, and builds from the bodies that were read. Whoever publishes a younger
    log in between changes a version, and then nothing of this one gets in its way.
    """

    def __init__(self, storage: VersionedStorage) -> None:
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
        known = self._known[key]
        version = self._storage.replace(key, body, None if known is None else known[1])
        if version is not None:
            self._known[key] = (body, version)
            return
        found = self._storage.get_version(key)
        if found is None or found[0] != body:  # else it was ours, and the answer was lost
            raise OvertakenError
        self._known[key] = found

    def list(self, folder: str) -> Found:
        return self._storage.list(folder)

    def open_shard(self, key: str) -> StoredFile | None:
        return self._storage.open_shard(key)

    def sync(self, folder: str) -> None:
        pass  # what can be seen is durable

    @property
    def requests_at_once(self) -> int:
        return self._storage.requests_at_once

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
