"""Publishing: everything that plain Zarr readers need, built from the log (docs/spec.md, section 3.6).

Idempotent, and anyone may do it, also after a crash at any point: under the dataset's lock, it reads the log, rewrites
the index rows that changed, then the metadata of the arrays, then the root. The root says up to where the log has been
published, and everything that it speaks of is durable before it, so the next publisher only looks at what is newer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from .. import documents
from ..codecs import decode_chunk, encode_chunk
from ..errors import CorruptDataError
from ..labels import horizon_labels
from ..layout import (
    METADATA,
    ArraySpec,
    array_metadata,
    array_specs,
    index_metadata,
    index_rows,
    metadata_bytes,
    root_metadata,
)
from ..schema import LENGTH, STEP, TIMESTAMP, Schema, length_name, stamps_name
from ..shards import ShardReader, whole_shard
from ..storage import Storage
from .entries import Entry
from .records import Record
from .revisions import read_revisions
from .snapshot import Snapshot, load, read_record, sync_log

_ROOT = "zarr.json"

RecordReader: TypeAlias = Callable[[Storage, int], Record | None]


def publish(
    storage: Storage, *, known: Snapshot | None = None, whole: bool = False, read: RecordReader = read_record
) -> Snapshot:
    """Bring what plain Zarr readers see up to the log.

    Args:
        storage: The dataset.
        known: A snapshot loaded before, to start reading the log from.
        whole: Look at every row, not only at those that changed since the root was written: mends index arrays and
            metadata that were lost or mangled.
        read: Reads the record of a slot: for callers that have just read them all.

    Returns:
        The snapshot that was published.

    Raises:
        RecordingError: The storage refused. What was published before is still there.
    """
    return storage.publication(lambda within: _publish(within, known, read, whole=whole))


def _publish(storage: Storage, known: Snapshot | None, read: RecordReader, *, whole: bool) -> Snapshot:
    snapshot = load(storage, known)
    schemas = read_revisions(storage)
    root = None if whole else _read_json(storage, _ROOT)
    mark = _mark(root)
    rows = _changed_rows(snapshot, mark)
    sync_log(storage, rows)  # the rows before are durable: the root that speaks of them came after
    writer = _RowWriter(storage, schemas, snapshot, read)
    writer.put_derived(rows)
    published = {
        "slots": snapshot.num_slots,
        "open": snapshot.open_slots,
        "amendments": len(snapshot.amendments),
    }
    longest = {clock: snapshot.longest(clock) for clock in (STEP, *schemas[-1].clocks)}
    if mark is not None and root is not None and writer.outgrows(rows, mark):
        # A row that plain readers see already becomes an episode longer than all before: the room for it first.
        root = _put_metadata(storage, schemas, mark["slots"], longest, _published(root), root)
    writer.put_index(rows, whole=mark is None)
    _put_metadata(storage, schemas, snapshot.num_slots, longest, published, root)
    return snapshot


def _mark(root: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the root says was published: slots, open slots, amendments, steps of the longest episode by clock."""
    if root is None:
        return None
    try:
        mark, arrays = _published(root), root["consolidated_metadata"]["metadata"]
        clocks = (STEP, *root["attributes"]["salus"].get("clocks", {}))
        return {
            "slots": int(mark["slots"]),
            "open": set(mark["open"]),
            "amendments": int(mark["amendments"]),
            "longest": {clock: int(arrays[stamps_name(clock)]["shape"][1]) for clock in clocks},
        }
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return None


def _published(root: dict[str, Any]) -> dict[str, Any]:
    published: dict[str, Any] = root["attributes"]["salus"]["published"]
    return published


def _changed_rows(snapshot: Snapshot, mark: dict[str, Any] | None) -> list[int]:
    if mark is None:
        return list(range(snapshot.num_slots))
    amended = {uid for amendment in snapshot.amendments[mark["amendments"] :] for uid in amendment.uids}
    slots = snapshot.decided.numbers("slot")
    was_open = np.array([slot in mark["open"] for slot in slots.tolist()], bool)
    changed = (slots >= mark["slots"]) | was_open | snapshot.decided.has_uid(amended)
    rows: list[int] = slots[changed].tolist()
    return rows


class _RowWriter:
    """Writes the rows of index arrays and derived features."""

    def __init__(self, storage: Storage, schemas: list[Schema], snapshot: Snapshot, read: RecordReader) -> None:
        self._storage = storage
        self._read = read
        self._schemas = schemas
        self._snapshot = snapshot
        self._clocks = (STEP, *schemas[-1].clocks)
        self._derived = [[spec for spec in array_specs(schema).values() if spec.derived] for schema in schemas]
        self._rows: dict[int, dict[str, Any]] = {}

    def outgrows(self, rows: list[int], mark: dict[str, Any]) -> bool:
        """Whether a row that plain readers see already is longer, on some clock, than what was published."""
        return any(
            self._row(slot)[length_name(clock)] > mark["longest"].get(clock, 0)
            for slot in rows
            if slot < mark["slots"]
            for clock in self._clocks
        )

    def put_index(self, rows: list[int], *, whole: bool) -> None:
        """A row exists for plain readers while it has a length: so that goes first, and comes last."""
        self._put_index(LENGTH, [slot for slot in rows if self._visible(slot) is None], whole=False)
        self._put_index(METADATA, rows, whole=whole)
        for clock in reversed(self._clocks):  # that of the steps is the last
            self._put_index(length_name(clock), rows, whole=whole)

    def _put_index(self, name: str, rows: list[int], *, whole: bool) -> None:
        size = index_rows(name)
        changed: dict[int, list[int]] = {}
        for slot in rows:
            changed.setdefault(slot // size, []).append(slot)
        objects = {}
        for chunk, some in changed.items():
            key = f"{name}/c.{chunk}"
            body = _get_derived(self._storage, key)
            values = None if whole or body is None else decode_index(name, body)
            slots = some
            if values is None:  # lost or mangled: all rows of the chunk are built again
                values = [_empty(name)] * size
                slots = list(range(chunk * size, (chunk + 1) * size))
            for slot in slots:
                values[slot % size] = self._row(slot)[name]
            encoded = _encode_index(name, values)
            if encoded != body:
                objects[key] = encoded
        self._storage.put(objects)

    def _visible(self, slot: int) -> Entry | None:
        """The episode in a row, as plain readers are to see it."""
        entry = self._snapshot.visible(slot)
        return entry if entry is not None and entry.schema_revision < len(self._schemas) else None

    def _row(self, slot: int) -> dict[str, Any]:
        """The row by array: lengths and metadata; 0 and "" where no episode is, or its record holds no longer."""
        if slot not in self._rows:
            row: dict[str, Any] = {METADATA: "", **{length_name(clock): 0 for clock in self._clocks}}
            entry = self._visible(slot)
            try:
                record = None if entry is None else self._read(self._storage, slot)
            except CorruptDataError:
                record = None  # a checkpoint knows it; readers of the episode are told what is wrong
            if entry is not None and record is not None:
                row = {length_name(clock): entry.length(clock) for clock in self._clocks}
                row[METADATA] = self._metadata_text(entry, record)
            self._rows[slot] = row
        return self._rows[slot]

    def _metadata_text(self, entry: Entry, record: Record) -> str:
        overlay = self._snapshot.overlays.get(entry.uid)
        content = {
            "uid": entry.uid,
            "status": entry.status,
            "num_steps": entry.num_steps,
            "outcome": entry.outcome.to_json(),
            "started_ns": entry.started_ns,
            "metadata": overlay.apply_to(record.metadata) if overlay is not None else record.metadata,
        }
        text = json.dumps(content, ensure_ascii=False, sort_keys=True, allow_nan=False)
        try:
            text.encode()
        except UnicodeEncodeError:  # not from a recorder of ours: escaped, rather than no row for anybody
            text = json.dumps(content, sort_keys=True, allow_nan=False)
        return text

    def put_derived(self, rows: list[int]) -> None:
        """The stored horizon labels, NaN where a label is not known."""
        if not any(self._derived):
            return
        for slot in rows:
            entry = self._visible(slot)
            if entry is None or not self._row(slot)[LENGTH]:
                continue
            schema = self._schemas[entry.schema_revision]
            derived = self._derived[entry.schema_revision]
            try:
                labels = self._labels(entry, schema) if derived else None
            except CorruptDataError:
                continue  # its stamps do not hold: readers of the episode are told, and plain readers see NaN
            for spec in derived:
                shards = _derived_shards(spec, entry, labels)
                self._storage.put(
                    {key: body for key, body in shards.items() if _get_derived(self._storage, key) != body}
                )

    def _labels(self, entry: Entry, schema: Schema) -> np.ndarray:
        horizons, stamps = schema.label_horizons, None
        if horizons.unit == "s":
            stamps = _read_stamps(self._storage, array_specs(schema)[TIMESTAMP], entry)
        labels, mask = horizon_labels(
            entry.num_steps, entry.outcome, horizons, schema.failure_kinds, timestamp_ns=stamps
        )
        return np.where(mask, labels, np.nan)


def _derived_shards(spec: ArraySpec, entry: Entry, labels: np.ndarray | None) -> dict[str, bytes]:
    values, shards = np.asarray(labels, spec.numpy_dtype), {}
    for segment in range(spec.segments(entry.num_steps)):
        part = values[segment * spec.segment_steps : (segment + 1) * spec.segment_steps]
        chunks = [
            encode_chunk(spec, part[start : start + spec.chunk_steps])
            for start in range(0, len(part), spec.chunk_steps)
        ]
        shards[spec.shard_key(entry.slot, segment)] = whole_shard(spec.chunks_per_shard, chunks)
    return shards


def _read_stamps(storage: Storage, spec: ArraySpec, entry: Entry) -> np.ndarray:
    parts = []
    for segment in range(spec.segments(entry.num_steps)):
        key = spec.shard_key(entry.slot, segment)
        opened = storage.open_shard(key)
        if opened is None:
            raise CorruptDataError(f"publish: episode {entry.uid}: the shard is missing; {key}")
        parts.append(decode_chunk(spec, ShardReader(opened, spec, spec.shard_identity(entry.uid, segment)).chunk(0)))
    return np.concatenate(parts)[: entry.num_steps]


def _put_metadata(
    storage: Storage,
    schemas: list[Schema],
    slots: int,
    longest: dict[str, int],
    published: dict[str, Any],
    root: dict[str, Any] | None,
) -> dict[str, Any]:
    """Write the metadata of all arrays, then the root, where they differ; returns the root."""
    schema = schemas[-1]
    arrays = {name: array_metadata(spec, slots, longest[spec.clock]) for name, spec in array_specs(schema).items()}
    for name in (METADATA, *(length_name(clock) for clock in schema.clocks), LENGTH):
        arrays[name] = index_metadata(name, slots)
    for name, document in arrays.items():  # episode_length is the last of them
        _put_json(storage, f"{name}/zarr.json", document)
    document = root_metadata(schema, len(schemas) - 1, arrays)
    document["attributes"]["salus"]["published"] = published
    if document != root:
        _put_json(storage, _ROOT, document)
    return document


def _put_json(storage: Storage, key: str, document: dict[str, Any]) -> None:
    body = metadata_bytes(document)
    if _get_derived(storage, key) != body:
        storage.put({key: body})


def _read_json(storage: Storage, key: str) -> dict[str, Any] | None:
    body = _get_derived(storage, key)
    try:
        return None if body is None else documents.parse(body, key=key)
    except CorruptDataError:
        return None  # derived: it is written anew


def _get_derived(storage: Storage, key: str) -> bytes | None:
    """A derived object; None where it is not there, or something else is: it is written anew, over that."""
    try:
        return storage.get(key)
    except CorruptDataError:
        return None


def _empty(name: str) -> Any:
    return "" if name == METADATA else 0


def _index_spec(name: str) -> ArraySpec:
    return ArraySpec(name, "string" if name == METADATA else "int32", (), index_rows(name), index_rows(name))


def _encode_index(name: str, values: list[Any]) -> bytes:
    spec = _index_spec(name)
    return encode_chunk(spec, np.array(values, spec.numpy_dtype))


def decode_index(name: str, body: bytes) -> list[Any] | None:
    """The rows of a chunk of an index array; None where it does not hold."""
    try:
        values: list[Any] = decode_chunk(_index_spec(name), body).tolist()
    except CorruptDataError:
        return None
    return values
