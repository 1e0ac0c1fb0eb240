"""Tags: named, immutable snapshots that embed what they hold (docs/spec.md, section 3.6)."""

from __future__ import annotations

import time

from .. import documents
from ..errors import AlreadyExistsError, CorruptDataError, NotFoundError
from ..layout import PRIVATE, tag_key
from ..storage import Storage
from .snapshot import Entry, Snapshot, sync_log


def put_tag(storage: Storage, name: str, snapshot: Snapshot, *, author: str) -> None:
    """Embed `snapshot` under `name`. Slots whose record does not hold are named in it, as corrupt.

    Raises:
        AlreadyExistsError: The tag is there.
        RecordingError: The storage refused.
    """
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
    document = documents.unseal(body, key=key)
    if document.get("name") != name:
        raise CorruptDataError(f"tag: it is {document.get('name')!r}, exchanged or copied; {key}")
    snapshot = Snapshot.from_json(document, key=key)
    corrupt = {slot: Entry.corrupt(slot) for slot in document.get("corrupt_slots", [])}
    return Snapshot({**snapshot.decided, **corrupt}, snapshot.amendments)


def list_tags(storage: Storage) -> list[str]:
    """The names of all tags, sorted."""
    return sorted(name.removesuffix(".json") for name in storage.list(f"{PRIVATE}/tags") if name.endswith(".json"))
