"""One target for each parser of bytes that come out of a dataset: what is mutated, how, and what is done with it.

A target does more than parse: it takes what came out through what readers do with it, since a value that a parser
lets through and its users choke on is the usual fault.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import random
import shutil
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import zstd

import salus
from salus import documents, zarr_codecs
from salus.cli.terminal import plain
from salus.codecs import crc32c, declared_size, decode_chunk, decode_chunks
from salus.dataset import Dataset
from salus.errors import CorruptDataError, SalusError
from salus.layout import (
    ArraySpec,
    array_metadata,
    array_specs,
    checkpoint_key,
    claim_key,
    index_metadata,
    journal_key,
    metadata_bytes,
    number_in,
    record_key,
    recorded_arrays,
    schema_key,
)
from salus.log.amendments import quarantined
from salus.log.claims import read_claim
from salus.log.digest import root_digest
from salus.log.entries import Entries, Entry
from salus.log.publish import decode_index, publish
from salus.log.records import Record
from salus.log.revisions import Revisions, read_revisions
from salus.log.snapshot import Snapshot, load
from salus.log.tags import read_tag
from salus.log.unfinished import find_unfinished, state_of
from salus.metadata import check_metadata
from salus.recorder.recovery import Found
from salus.recorder.replay import check_finished, open_parts, read_start, replay
from salus.recorder.salvaged_statistics import read_statistics
from salus.schema import STEP, Schema
from salus.shards import INDEX_CHECKSUM_BYTES, INDEX_ENTRY_BYTES, ShardReader
from salus.sketches import Histogram, Sketches
from salus.statistics import FeatureStatistics, described, from_record
from salus.storage import open_local
from salus.verification.shards import ExpectedShard, InMemory, check_shards

from .examples import TAG, WRITE_ID, Examples, Objects, first_form_tag, frame, many_rows
from .mutators import (
    INTEGERS,
    Mutator,
    json_mutator,
    mutate_bytes,
    mutate_json,
    mutate_packed,
    mutate_text,
    seal,
    to_text,
    tolerant,
    unsealed,
    with_crc32c,
)


@dataclass(frozen=True)
class Target:
    """One parser.

    Attributes:
        name: Short; the start of the names of its regressions.
        seeds: Inputs that are right.
        mutate: Another input from one.
        run: Takes an input through the parser and its users; raises SalusError where it is refused.
        weight: Its share of the executions above the least number.
    """

    name: str
    seeds: tuple[bytes, ...]
    mutate: Mutator
    run: Callable[[bytes], None]
    weight: int = 1


def all_targets(examples: Examples, folder: Path) -> dict[str, Target]:
    """All targets by name; `folder` is where those that need files put them."""
    made = [
        *_documents(examples),
        *_log(examples),
        *_tables(examples),
        *_statistics(examples),
        *_shards(examples),
        *_derived(examples, folder),
        _journal(examples),
        _dataset(examples),
        _terminal(),
    ]
    return {target.name: target for target in made}


def _of_documents(
    name: str,
    seeds: Sequence[bytes],
    run: Callable[[bytes], None],
    *,
    sealed: bool = True,
    weight: int = 1,
    more: Callable[[Any, random.Random], Any] | None = None,
) -> Target:
    return Target(name, tuple(seeds), json_mutator(seeds, sealed=sealed, more=more), run, weight)


# --- JSON, metadata, schema --------------------------------------------------------------------------------------


def _documents(examples: Examples) -> list[Target]:
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
        _of_documents("documents", sealed, unseal),
        Target("json", tuple(plain_json), mutate_bytes, bare, weight=6),
        _of_documents("metadata", metadata, bare, sealed=False, weight=3),
        _of_documents("schema", examples.sealed("schema"), partial(_run_schema, examples), weight=0),
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


def _log(examples: Examples) -> list[Target]:
    return [
        _of_documents("record", examples.sealed("log"), partial(_run_record, examples), weight=0),
        _of_documents("claim", examples.sealed("claims"), partial(_run_claim, examples)),
        _of_documents("amendment", _amendments(examples), partial(_run_amendment, examples), weight=0),
    ]


def _run_record(examples: Examples, body: bytes) -> None:
    slot = _slot_of(body)
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


def _slot_of(body: bytes) -> int:
    """The slot that a body is put at: where its key is of a slot that it names, else 0."""
    with suppress(SalusError):
        slot = documents.parse(body, key="key").get("slot")
        if type(slot) is int and 0 <= slot < 10:
            return slot
    return 0


def _run_claim(examples: Examples, body: bytes) -> None:
    slot = examples.running_slot
    storage = Objects({claim_key(slot): body})
    claim = read_claim(storage, slot)
    assert claim is not None
    _ = (claim.is_of_this_host, claim.process_lives)
    state_of(storage, claim)
    for episode in find_unfinished(storage, Snapshot()):
        json.dumps(episode.to_json())
        plain(episode.host)
    _check_readable(Record(slot, claim.uid, "aborted", started_ns=claim.time_ns, reason="recover"))


def _check_readable(record: Record) -> None:
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


def _tables(examples: Examples) -> list[Target]:
    checkpoint = examples.objects[checkpoint_key(0)]
    tag = examples.objects[f"_salus/tags/{TAG}.json"]
    kept = {key: body for key, body in examples.objects.items() if "/schema/" in key or "/log/" in key}

    def run_checkpoint(body: bytes) -> None:
        _use_snapshot(Snapshot.from_json(documents.unseal(body, key="key"), key="key"))

    def run_tag(body: bytes) -> None:
        _use_snapshot(read_tag(Objects({**kept, f"_salus/tags/{TAG}.json": body}), TAG))

    return [
        _of_documents("checkpoint", [checkpoint, many_rows(200)], run_checkpoint, weight=0, more=_other_rows),
        _of_documents("tag", [tag, first_form_tag(examples.snapshot)], run_tag, weight=0, more=_other_rows),
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


def _statistics(examples: Examples) -> list[Target]:
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
        _of_documents("statistics", seeds, run, sealed=False),
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


# --- shards ------------------------------------------------------------------------------------------------------

_SHARDS = {  # by array: the kind of codec, and the weight
    "camera": ("zstd-images", 1),
    "wrist": ("jpeg", 1),
    "thermal": ("jpeg-gray", 1),
    "states": ("zstd", 2),
    "flags": ("bool", 1),
    "timestamp_ns": ("stamps", 1),
    "say": ("text", 1),
    "lidar": ("blosc", 0),
    "zipped": ("gzip", 0),
}


def _shards(examples: Examples) -> list[Target]:
    targets = []
    for name, (kind, weight) in _SHARDS.items():
        spec, seeds = examples.specs[name], tuple(examples.shards(name))
        mutate = tolerant(partial(_mutate_shard, spec), seeds)
        targets.append(Target(f"shard.{kind}", seeds, mutate, partial(_run_shard, spec), weight))
    targets.append(_zarr_codecs(examples))
    return targets


def _mutate_shard(spec: ArraySpec, data: bytes, rng: random.Random) -> bytes:
    size = spec.chunks_per_shard * INDEX_ENTRY_BYTES
    end = len(data) - size - INDEX_CHECKSUM_BYTES
    if end < 0:
        raise ValueError("no shard")
    numbers = list(struct.unpack(f"<{2 * spec.chunks_per_shard}Q", data[end : end + size]))
    chunks = [
        data[offset : offset + length] if offset + length <= end else None
        for offset, length in zip(numbers[::2], numbers[1::2], strict=True)
    ]
    there = [place for place, chunk in enumerate(chunks) if chunk is not None and len(chunk) > 4]
    if not there:
        raise ValueError("no chunk")
    if rng.random() < 0.85:
        place = rng.choice(there)
        packed = _mutate_chunk(spec, bytes(chunks[place] or b"")[:-4], rng)
        chunks[place] = with_crc32c(packed) if rng.random() < 0.98 else packed
    body, numbers = b"", []
    for chunk in chunks:
        numbers += [2**64 - 1] * 2 if chunk is None else [len(body), len(chunk)]
        body += chunk or b""
    if rng.random() < 0.25:
        place = rng.randrange(len(numbers))
        near = (len(body), len(body) + 1, numbers[place] + 1, numbers[place] - 1, 2**64 - 1, 2**64 - 4)
        numbers[place] = rng.choice((*near, *INTEGERS)) % 2**64
    tail = with_crc32c(struct.pack(f"<{len(numbers)}Q", *numbers))
    shard = body + tail
    return mutate_bytes(shard, rng, times=1) if rng.random() < 0.03 else shard


def _mutate_chunk(spec: ArraySpec, packed: bytes, rng: random.Random) -> bytes:
    if spec.codec == "jpeg" and rng.random() < 0.6:  # the headers, where the sizes are
        return (
            mutate_bytes(packed[:24], rng, times=1) + packed[24:] if rng.random() < 0.2 else _mutate_marker(packed, rng)
        )
    return mutate_packed(packed, rng) if spec.codec == "zstd" else mutate_bytes(packed, rng)


def _mutate_marker(packed: bytes, rng: random.Random) -> bytes:
    """Bytes of one segment of a JPEG image."""
    places = [place for place in range(len(packed) - 1) if packed[place] == 0xFF and packed[place + 1] not in (0, 0xFF)]
    place = rng.choice(places)
    part = packed[place : place + 24]
    if rng.random() < 0.1:
        return packed[:place] + part * 2 + packed[place + 24 :]
    return packed[:place] + mutate_bytes(part, rng, times=1) + packed[place + 24 :]


def _run_shard(spec: ArraySpec, body: bytes) -> None:
    problem: SalusError | None = None
    file = InMemory(body)
    checked = check_shards(Objects({spec.shard_key(0, 0): body}), spec, [_expected(body)], uid="u", slot=0, length=4)
    _ = [plain(finding) for finding in checked.findings]
    reader = ShardReader(file, spec)
    for chunk in range(spec.chunks_per_shard):
        try:
            decode_chunk(spec, reader.chunk(chunk)).tolist()
        except SalusError as error:
            problem = error
    with suppress(CorruptDataError):
        reader.prefetch(0, spec.chunks_per_shard)
    out = np.empty((spec.segment_steps, *spec.stored_step_shape), spec.numpy_dtype)
    if not spec.is_text:
        decode_chunks(spec, reader.chunks(0, spec.chunks_per_shard), out)
    if problem is not None:
        raise problem


def _expected(body: bytes) -> Any:
    return ExpectedShard(0, len(body), hashlib.sha256(body).hexdigest())


def _zarr_codecs(examples: Examples) -> Target:
    """Codecs that a schema names itself: configurations, and the chunk that they are to decode."""
    seeds = []
    for name in ("lidar", "zipped"):
        spec = examples.specs[name]
        chunk = ShardReader(InMemory(examples.shards(name)[0]), spec).chunk(0)[:-4]
        seeds.append(to_text({"chain": json.loads(spec.chain), "chunk": chunk.hex()}))
    seeds.append(to_text({"chain": [{"name": "imagecodecs_jpeg", "configuration": {"level": 9}}], "chunk": ""}))

    def run(body: bytes) -> None:
        document = documents.parse(body, key="key")
        chain = document.get("chain")
        feature = {"codec": chain, "kind": "array", "name": "a", "shape": [4], "dtype": "int16"}
        schema = Schema.from_json({**examples.schemas[0].to_json(), "features": [feature], "clocks": {}})
        spec = next(spec for spec in recorded_arrays(schema) if spec.name == "a")
        zarr_codecs.require(spec)
        with suppress(ValueError):
            packed = bytes.fromhex(str(document.get("chunk")))
            decode_chunk(spec, with_crc32c(packed))

    return _of_documents("codecs", seeds, run, sealed=False, weight=0)


# --- what is built for plain readers -----------------------------------------------------------------------------


def _derived(examples: Examples, folder: Path) -> list[Target]:
    targets = []
    for name in ("episode_length", "episode_metadata"):
        seeds = tuple(examples.shards(name))

        def mutate(data: bytes, rng: random.Random) -> bytes:
            return with_crc32c(mutate_packed(data[:-4], rng)) if rng.random() < 0.98 else mutate_bytes(data, rng)

        def run(body: bytes, name: str = name) -> None:
            rows = decode_index(name, body)
            if rows is None:
                raise CorruptDataError("not the rows of an index array")
            plain(rows)

        targets.append(Target(f"index.{name}", seeds, mutate, run))
    return [*targets, _root(examples), _plain_zarr(examples, folder), _names()]


def _root(examples: Examples) -> Target:
    """The root's zarr.json, which says what was published."""
    objects = examples.small
    snapshot = load(Objects(objects))

    def run(body: bytes) -> None:
        publish(Objects({**objects, "zarr.json": body}), known=snapshot)
        documents.parse(body, key="zarr.json")

    seeds = [to_text(json.loads(objects["zarr.json"]))]
    return _of_documents("root", seeds, run, sealed=False, weight=0)


def _plain_zarr(examples: Examples, folder: Path) -> Target:
    """The zarr.json of a directory that is no dataset of ours, which `salus.open` describes."""
    path = folder / "plain.zarr"
    shutil.rmtree(path, ignore_errors=True)
    (path / "a").mkdir(parents=True)
    (path / "zarr.json").write_bytes(b"{}")

    def run(body: bytes) -> None:
        (path / "a" / "zarr.json").write_bytes(body)
        salus.open(path)

    seeds = [to_text(index_metadata("episode_length", 3)), to_text(json.loads(examples.objects["zarr.json"]))]
    return _of_documents("zarr.json", seeds, run, sealed=False, weight=0)


def _names() -> Target:
    """Listed names of objects and folders."""

    def run(body: bytes) -> None:
        name = body.decode("utf-8", "surrogateescape")
        for suffix in ("", ".json"):
            number = number_in(name, suffix=suffix)
            assert number is None or (record_key(number).isascii() and name.removesuffix(suffix).isdigit())
        checked = Objects({})
        checked.get(salus.layout.tag_key(name))

    seeds = (b"0000000001.json", b"0", b"12", b"v1", b"final-2.1")
    return Target("names", seeds, mutate_bytes, run, weight=4)


# --- the journal -------------------------------------------------------------------------------------------------


def _journal(examples: Examples) -> Target:
    storage = open_local(examples.running.root)
    slot = examples.running_slot
    path = storage.path(journal_key(slot))
    revisions = Revisions(storage)
    schema = revisions.schema(0)
    specs = {spec.name: spec for spec in revisions.recorded_arrays(0)}
    uid = unsealed(examples.claim)["uid"]

    def run(body: bytes) -> None:
        path.write_bytes(body)
        start = read_start(path)
        if start is None:
            raise CorruptDataError("nothing")
        if (start["uid"], start["slot"]) != (uid, slot):
            raise CorruptDataError("of another episode")
        revisions.recorded_arrays(start["schema_revision"])
        journal = replay(path, specs, kinds=schema.failure_kinds)
        check_finished(storage, journal)
        found = Found(journal, {name: open_parts(storage, slot, clock) for name, clock in journal.clocks.items()})
        statistics, _ = read_statistics(storage, schema, journal, found.parts, found.counts)
        _ = found.lost_steps
        if not found.lengths[STEP]:
            raise CorruptDataError("no step is whole")
        _check_readable(_salvaged(journal, found, statistics))

    return Target("journal", (examples.journal,), tolerant(_mutate_journal, (examples.journal,)), run, weight=0)


def _salvaged(journal: Any, found: Found, statistics: Any) -> Record:
    """The record that recovering would write, but for its shards."""
    others = {name: clock for name, clock in journal.clocks.items() if name != STEP}
    return Record(
        slot=journal.slot,
        uid=journal.start["uid"],
        status="salvaged",
        num_steps=found.lengths[STEP],
        schema_revision=journal.start["schema_revision"],
        metadata=journal.metadata,
        timestamp_source=journal.clocks[STEP].timestamp_source,
        clock_lengths={name: found.lengths[name] for name in others},
        clock_sources={name: clock.timestamp_source for name, clock in others.items() if found.lengths[name]},
        dropped_images={n: count for clock in journal.clocks.values() for n, count in clock.dropped_images.items()},
        started_ns=journal.start["started_ns"],
        statistics=statistics,
    )


def _mutate_journal(data: bytes, rng: random.Random) -> bytes:
    payloads, place = [], 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "little")
        payloads.append(data[place + 8 : place + 8 + size])
        place += 8 + size
    for _ in range(rng.choice((1, 1, 2))):
        number = rng.randrange(len(payloads))
        line, _, rows = payloads[number].partition(b"\n")
        match rng.randrange(12):
            case 0:
                del payloads[number]
            case 1:
                payloads.insert(number, payloads[number])
            case 2:
                other = rng.randrange(len(payloads))
                payloads[number], payloads[other] = payloads[other], payloads[number]
            case 3:
                payloads[number] = line + b"\n" + mutate_bytes(rows, rng)
            case 4:
                payloads[number] = mutate_bytes(line, rng, times=1) + b"\n" + rows
            case 5:
                kind = rng.choice(("outcome", "metadata"))
                content = {"outcome": {"result": "failure", "kind": "drop", "step": 3}, "metadata": {"task": "x"}}[kind]
                note = (
                    mutate_json({"type": kind, kind: content}, rng)
                    if rng.random() < 0.8
                    else {"type": kind, kind: content}
                )
                payloads.insert(number + 1, to_text(note) + b"\n")
            case _:
                payloads[number] = to_text(mutate_json(json.loads(line), rng)) + b"\n" + rows
    body = b"".join(map(frame, payloads))
    return mutate_bytes(body, rng, times=1) if rng.random() < 0.1 else body


# --- a whole dataset, and what is shown --------------------------------------------------------------------------


def _dataset(examples: Examples) -> Target:
    """A record in its dataset, as readers and publishers take it."""
    objects = examples.small
    seeds = [body for key, body in sorted(objects.items()) if "/log/" in key]

    def run(body: bytes) -> None:
        storage = Objects({**objects, record_key(min(_slot_of(body), 1)): body})
        snapshot = load(storage)
        dataset = Dataset(storage, read_revisions(storage), snapshot, "r", None)
        plain(repr(dataset))
        publish(storage, known=snapshot)
        for number in range(len(dataset)):
            episode = dataset[number]  # a record that does not hold raises here, typed
            _ = (episode.metadata, episode.clock_lengths, episode.timestamp_sources, episode.dropped_images)
            plain(repr(episode))
            _ = (episode.duration_s, episode.labels, np.asarray(episode["states"]))
            for statistics in episode.statistics.values():
                _ = statistics.mean

    return _of_documents("dataset", seeds, run, weight=0)


def _terminal() -> Target:
    """Text out of a dataset, as the command line shows it."""

    def run(body: bytes) -> None:
        shown = plain(body.decode("utf-8", "surrogateescape"))
        assert shown.isprintable(), repr(shown)
        shown.encode()

    seeds = ("stack \x1b[2J \x07 ü \u202e [red]x[/red]\r\n".encode(), b"\xed\xa0\x80\xff", b"plain")
    return Target("terminal", seeds, mutate_bytes, run, weight=4)
