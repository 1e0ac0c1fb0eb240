"""Tags: named, immutable snapshots that embed what they hold (docs/spec.md, section 3.6)."""

from __future__ import annotations

import time
from typing import Any

from .. import documents
from ..errors import AlreadyExistsError, CorruptDataError, NotFoundError
from ..layout import PRIVATE, tag_key
from ..storage import Storage
from .amendments import Amendment
from .entries import Entries, Entry
from .revisions import Revisions
from .snapshot import Snapshot, read_entry, sync_log


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
    if "table" not in document:
        return _read_first_form(storage, document, key)
    return Snapshot.from_json(document, key=key)


def _read_first_form(storage: Storage, document: dict[str, Any], key: str) -> Snapshot:
    """A tag of before 0.1.0: lists instead of columns, without the sizes of shards, which the records have."""
    revisions, entries = Revisions(storage), []
    try:
        names = [name for name in Entry._fields if name not in ("shard_sizes", "clock_lengths")]
        for values in zip(*(document["columns"][name] for name in names), strict=True):
            entry = Entry(**dict(zip(names, values, strict=True)), shard_sizes=())
            now = read_entry(storage, entry.slot, revisions)
            if now is not None and now.digest == entry.digest:
                entry = entry._replace(shard_sizes=now.shard_sizes)
            entries.append(entry)
        entries += [Entry.corrupt(slot) for slot in document.get("corrupt_slots", [])]
        amendments = tuple(Amendment.from_json(value, key=key) for value in document["amendments"])
        return Snapshot(Entries.of(entries), amendments)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CorruptDataError(f"tag: not understood: {error!r}; {key}") from error


def list_tags(storage: Storage) -> list[str]:
    """The names of all tags, sorted."""
    return sorted(name.removesuffix(".json") for name in storage.list(f"{PRIVATE}/tags") if name.endswith(".json"))
