"""Tags: named, immutable snapshots that embed what they hold (docs/spec.md, section 3.6)."""

from __future__ import annotations

import time

from .. import documents
from ..errors import AlreadyExistsError, CorruptDataError, NotFoundError
from ..layout import PRIVATE, tag_key
from ..storage import Storage
from .snapshot import Snapshot, sync_log


def put_tag(storage: Storage, name: str, snapshot: Snapshot, *, author: str) -> None:
    """Raises AlreadyExistsError, CorruptDataError (a record that does not hold cannot be embedded), RecordingError."""
    corrupt = [entry.slot for entry in snapshot.entries if entry.status == "corrupt"]
    if corrupt:
        raise CorruptDataError(f"tag {name!r}: the record of slot {corrupt[0]} does not hold, so it cannot be tagged")
    document = {"name": name, "author": author, "time_ns": time.time_ns(), **snapshot.to_json()}
    sync_log(storage)
    try:
        storage.put_new(tag_key(name), documents.seal(document))
    except AlreadyExistsError as error:
        raise AlreadyExistsError(
            f"tag {name!r}: it is there already, and tags never change; choose another name; {storage.url}"
        ) from error


def read_tag(storage: Storage, name: str) -> Snapshot:
    """Raises NotFoundError, CorruptDataError."""
    key = tag_key(name)
    body = storage.get(key)
    if body is None:
        known = ", ".join(map(repr, list_tags(storage))) or "none"
        raise NotFoundError(f"open: no tag {name!r}, the dataset has {known}; {storage.url}")
    return Snapshot.from_json(documents.unseal(body, key=key), key=key)


def list_tags(storage: Storage) -> list[str]:
    """The names of all tags, sorted."""
    return sorted(name.removesuffix(".json") for name in storage.list(f"{PRIVATE}/tags") if name.endswith(".json"))
