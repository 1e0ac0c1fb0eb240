"""Targets: everything that is JSON, sealed or not, and what is packed inside."""

from __future__ import annotations

import base64
import copy
import json
import os
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
from numcodecs import zstd

from salus import documents
from salus.cli.terminal import plain
from salus.codecs import crc32c, declared_size
from salus.errors import CorruptDataError, SalusError
from salus.layout import (
    ArraySpec,
    array_metadata,
    array_specs,
    checkpoint_key,
    claim_key,
    metadata_bytes,
    recorded_arrays,
    schema_key,
)
from salus.log.amendments import quarantined
from salus.log.claims import read_claim
from salus.log.digest import root_digest
from salus.log.entries import Entries, Entry
from salus.log.records import Record
from salus.log.revisions import read_revisions
from salus.log.snapshot import Snapshot, load
from salus.log.tags import read_tag
from salus.log.unfinished import find_unfinished, state_of
from salus.metadata import check_metadata
from salus.schema import STEP, Schema
from salus.sketches import Histogram, Sketches
from salus.statistics import FeatureStatistics, described, from_record

from .examples import TAG, WRITE_ID, Examples, Objects, first_form_tag, many_rows
from .mutators import (
    mutate_bytes,
    mutate_packed,
    mutate_text,
    seal,
    to_text,
    unsealed,
)
from .target import Target, of_documents

# --- JSON, metadata, schema --------------------------------------------------------------------------------------


def document_targets(examples: Examples) -> list[Target]:
    sealed = [body for folder in ("schema", "claims", "log", "amendments") for body in examples.sealed(folder)]

    def unseal(body: bytes) -> None:
        document = documents.unseal(body, key="key")
        documents.digest_of(body)
        with suppress(SalusError):  # as metadata it may be too deep, or too large
            check_metadata(document)

    def bare(body: bytes) -> None:
        check_metadata(documents.parse(body, key="key"))

    metadata = [to_text(unsealed(body)["metadata"]) for body in examples.sealed("log")]
    plain_json = [to_text(unsealed(body)) for body in sealed]
    return [
        of_documents("documents", sealed, unseal),
        Target("json", tuple(plain_json), mutate_bytes, bare, weight=6),
        of_documents("metadata", metadata, bare, sealed=False, weight=3),
        of_documents("schema", examples.sealed("schema"), partial(_run_schema, examples), weight=0),
    ]


def _run_schema(examples: Examples, body: bytes) -> None:
    document = documents.unseal(body, key="key")
    number = 1 if document.get("revision") == 1 else 0
    objects = {schema_key(0): examples.objects[schema_key(0)], schema_key(number): body}
    if number == 0:
        del objects[schema_key(0)]
        objects[schema_key(0)] = body
    schema = read_revisions(Objects(objects))[number]
    arrays = recorded_arrays(schema)
    _use_specs(arrays)
    assert Schema.from_json(json.loads(documents.canonical(schema.to_json()))) == schema
    examples.schemas[0].differences(schema)
    schema.step_bytes_of(STEP)
    repr(schema)
    _ = [plain(feature.coding) for feature in schema.features.values()]
    if (
        document.get("write_id") == WRITE_ID and crc32c(body) % 64 == 0
    ):  # zarr-python makes it, which takes milliseconds
        for spec in array_specs(schema).values():
            metadata_bytes(array_metadata(spec, 1, 1))


def _use_specs(specs: Sequence[ArraySpec]) -> None:
    for spec in specs:
        spec.shard_key(3, 5)
        _ = (spec.chunk_bytes, spec.chunks_per_shard, spec.own_codecs, spec.stored_step_shape, spec.fill_value)
        assert spec.segment_steps % spec.chunk_steps == 0


# --- records, claims, amendments ---------------------------------------------------------------------------------


def log_targets(examples: Examples) -> list[Target]:
    return [
        of_documents("record", examples.sealed("log"), partial(_run_record, examples), weight=0),
        of_documents("claim", examples.sealed("claims"), partial(_run_claim, examples)),
        of_documents("amendment", _amendments(examples), partial(_run_amendment, examples), weight=0),
    ]


def _run_record(examples: Examples, body: bytes) -> None:
    slot = slot_of(body)
    record = Record.from_bytes(body, slot)
    if record.schema_revision >= len(examples.schemas):
        raise CorruptDataError("no such revision")
    entry = Entry.of(record, examples.arrays[record.schema_revision])
    schema = examples.schemas[record.schema_revision]
    again = Record.from_bytes(record.to_bytes(), slot)
    assert replace(again, digest="") == replace(record, digest="")
    copy.deepcopy(record.metadata)
    plain(record.metadata)
    plain(record.reason)
    json.dumps(record.metadata, allow_nan=False)
    names = described(schema)
    with suppress(CorruptDataError):  # one of them: statistics have a target of their own
        kept = from_record(record.statistics, schema, names[crc32c(body) % len(names)], key="key")
        if kept is not None:
            _use_feature_statistics(kept)
    _use_table(Entries.of([entry]))


def slot_of(body: bytes) -> int:
    """The slot that a body is put at: where its key is of a slot that it names, else 0."""
    with suppress(SalusError):
        slot = documents.parse(body, key="key").get("slot")
        if type(slot) is int and 0 <= slot < 10:
            return slot
    return 0


def _run_claim(examples: Examples, body: bytes) -> None:
    slot = examples.running_slot
    storage = Objects({claim_key(slot): body, schema_key(0): examples.objects[schema_key(0)]})
    claim = read_claim(storage, slot)
    assert claim is not None
    _ = (claim.is_of_this_host, claim.process_lives)
    state_of(examples.running, claim)
    with mock.patch.dict(os.environ, {"SALUS_SPOOL": str(examples.running.root / "spools")}):
        for episode in find_unfinished(storage, Snapshot()):
            json.dumps(episode.to_json())
            plain(episode.host)
    check_readable(Record(slot, claim.uid, "aborted", started_ns=claim.time_ns, reason="recover"))


def check_readable(record: Record) -> None:
    """What recovering would write has to be what a reader takes."""
    try:
        Record.from_bytes(record.to_bytes(), record.slot)
    except SalusError as error:
        raise AssertionError(f"no reader takes the record that would be written: {error}") from error


def _amendments(examples: Examples) -> list[bytes]:
    uid = unsealed(examples.sealed("amendments")[0])["uids"][0]
    common = {"number": 0, "uids": [uid], "author": "", "time_ns": 10**18, "write_id": WRITE_ID}
    made = [{**unsealed(body), "number": 0} for body in examples.sealed("amendments")]
    made += [
        {**common, "change": change, "value": value}
        for change, value in (("undelete", None), ("quarantine", "its shard is missing"), ("unquarantine", None))
    ]
    return [_sealed(document) for document in made]


def _sealed(document: dict[str, Any]) -> bytes:
    return seal(to_text(document))


def _run_amendment(examples: Examples, body: bytes) -> None:
    _use_snapshot(
        load(Objects({"_salus/amendments/0000000000.json": body}), _without_amendments(examples)), stored=False
    )


def _without_amendments(examples: Examples) -> Snapshot:
    return Snapshot(examples.snapshot.decided)


# --- the episode table -------------------------------------------------------------------------------------------


def table_targets(examples: Examples) -> list[Target]:
    checkpoint = examples.objects[checkpoint_key(0)]
    tag = examples.objects[f"_salus/tags/{TAG}.json"]
    kept = {key: body for key, body in examples.objects.items() if "/schema/" in key or "/log/" in key}

    def run_checkpoint(body: bytes) -> None:
        _use_snapshot(Snapshot.from_json(documents.unseal(body, key="key"), key="key"))

    def run_tag(body: bytes) -> None:
        _use_snapshot(read_tag(Objects({**kept, f"_salus/tags/{TAG}.json": body}), TAG))

    return [
        of_documents("checkpoint", [checkpoint, many_rows(200)], run_checkpoint, weight=0, more=_other_rows),
        of_documents("tag", [tag, first_form_tag(examples.snapshot)], run_tag, weight=0, more=_other_rows),
    ]


_WIDTHS = {
    "slot": 8,
    "uid": 16,
    "digest": 32,
    "started_ns": 8,
    "ended_ns": 8,
    "status": 1,
    "result": 1,
    "shard_size": 8,
}


def _other_rows(document: Any, rng: random.Random) -> Any:
    """The table with another number of rows, in all columns, or one column with changed numbers."""
    table = document.get("table") if isinstance(document, dict) else None
    if not isinstance(table, dict) or not isinstance(table.get("columns"), dict) or not table["columns"]:
        return document
    columns = table["columns"]
    if rng.random() < 0.6:
        name = rng.choice(list(columns))
        columns[name] = mutate_text(columns[name], rng) if isinstance(columns[name], str) else ""
        return document
    count = rng.choice((0, 1, 2, 3, 4, 10, 1000))
    table["num_rows"] = count
    for name, text in columns.items():
        raw = np.arange(count).tobytes() if name == "slot" else _unpacked(text)
        if raw:
            whole = count * _WIDTHS.get(name, 4)
            columns[name] = _packed((raw * (whole // len(raw) + 1))[:whole])
    return document


def _unpacked(text: Any) -> bytes:
    packed = base64.b64decode(text) if isinstance(text, str) else b""
    try:
        return bytes(zstd.decompress(packed)) if 0 < (declared_size(packed) or 0) < 2**20 else b""
    except RuntimeError:
        return b""


def _packed(raw: bytes) -> str:
    return base64.b64encode(bytes(zstd.compress(raw, 1))).decode() if raw else ""


def _use_table(entries: Entries, *, stored: bool = True) -> None:
    for name in (*Entry._fields, "stored_bytes"):
        entries.column(name)
    for entry in entries:
        _ = (entry.outcome, entry.stored_bytes, entry.length("joints"))
        plain(entry)
    entries.lengths("joints")
    entries.has("task", "other")
    entries.has_uid({"a", *entries.column("uid")[:3]})
    entries.take(np.ones(len(entries), bool))
    entries.at(0)
    if not stored:
        return
    again = Entries.from_json(json.loads(documents.canonical(entries.to_json())), key="key")
    assert list(again) == list(entries)
    Entries.joined([entries, again])


def _use_snapshot(snapshot: Snapshot, *, stored: bool = True) -> None:
    if stored:
        _use_table(snapshot.decided)
    _use_table(snapshot.entries, stored=False)
    _ = (snapshot.num_slots, snapshot.open_slots[:3], snapshot.num_facts, snapshot.longest("joints"))
    for slot in range(min(snapshot.num_slots, 4)):
        snapshot.visible(slot)
    for uid, overlay in snapshot.overlays.items():
        overlay.apply_to({"task": "a"})
        if overlay.quarantine is not None:
            plain(quarantined(uid, overlay.quarantine, "memory"))
    root_digest(snapshot, ["sha256:0"])


# --- statistics --------------------------------------------------------------------------------------------------


def statistics_targets(examples: Examples) -> list[Target]:
    schema = examples.schemas[0]
    members = [unsealed(body)["statistics"] for body in examples.sealed("log")]
    seeds = [to_text({"name": name, "statistics": member[name]}) for member in members for name in member]

    def run(body: bytes) -> None:
        document = documents.parse(body, key="key")
        name = document.get("name")
        name = name if isinstance(name, str) and name in described(schema) else "states"
        kept = from_record({name: document.get("statistics")}, schema, name, key="key")
        assert kept is not None
        _use_feature_statistics(kept)
        more = FeatureStatistics(schema.features[name])
        more.merge(kept)
        more.merge(kept)
        _use_feature_statistics(more)

    return [
        of_documents("statistics", seeds, run, sealed=False),
        *_sketches(examples, members),
    ]


def _use_feature_statistics(statistics: FeatureStatistics) -> None:
    _ = (statistics.count, statistics.mean, statistics.std, statistics.min, statistics.max, statistics.rank_error)
    statistics.quantile([0.0, 0.01, 0.5, 1.0])
    repr(statistics)
    json.dumps(statistics.to_json(), allow_nan=False)


def _sketches(examples: Examples, members: list[dict[str, Any]]) -> list[Target]:
    def of(*names: str) -> tuple[bytes, ...]:
        return tuple(base64.b64decode(text) for member in members for name in names for text in member[name]["kll"])

    big = Sketches.empty(1, np.dtype(np.float32), 64)
    big.add(0, np.random.default_rng(0).normal(size=5000).astype(np.float32))
    wide = Sketches.empty(1, np.dtype(np.float64), 64)
    wide.add(0, np.random.default_rng(0).normal(size=5000))
    histograms = tuple(base64.b64decode(member["camera"]["histogram"]) for member in members)

    def run_sketch(dtype: np.dtype[Any], body: bytes) -> None:
        text = base64.b64encode(body).decode()
        try:
            made = Sketches.from_json([text], 1, dtype)
        except ValueError as error:  # what from_record makes of it
            raise CorruptDataError(str(error)) from error
        merged = Sketches.empty(1, dtype, 1024)
        for _ in range(2):
            merged.merge(made)
        for some in (made, merged):
            if some.counts()[0]:
                some.quantiles(0, np.array([0.0, 0.3, 1.0]))
            _ = (some.rank_error, some.to_json())

    def run_histogram(body: bytes) -> None:
        try:
            made = Histogram.from_json(base64.b64encode(body).decode(), 3)
        except ValueError as error:
            raise CorruptDataError(str(error)) from error
        made.merge(made)
        if made.counts[0].any():
            made.quantiles(0, np.array([0.0, 0.3, 1.0]))

    floats, doubles = (*of("states", "flags"), *_kll(big)), (*of("count"), *_kll(wide))
    return [
        Target("sketch.float", floats, mutate_bytes, partial(run_sketch, np.dtype(np.float32)), 6),
        Target("sketch.double", doubles, mutate_bytes, partial(run_sketch, np.dtype(np.float64)), 6),
        Target("histogram", histograms, mutate_packed, run_histogram, 3),
    ]


def _kll(sketches: Sketches) -> list[bytes]:
    return [base64.b64decode(text) for text in sketches.to_json()]
