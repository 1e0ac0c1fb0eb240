"""Targets: shards with every codec, what is built for plain readers, and the journal."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import struct
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import salus
from salus import documents, zarr_codecs
from salus.cli.terminal import plain
from salus.codecs import decode_chunk, decode_chunks
from salus.errors import CorruptDataError, SalusError
from salus.layout import (
    ArraySpec,
    index_metadata,
    journal_key,
    number_in,
    record_key,
    recorded_arrays,
)
from salus.log.publish import decode_index, publish
from salus.log.records import Record
from salus.log.revisions import Revisions
from salus.log.snapshot import load
from salus.recorder.recovery import Found
from salus.recorder.replay import check_finished, open_parts, read_start, replay
from salus.recorder.salvaged_statistics import read_statistics
from salus.schema import STEP, Schema
from salus.shards import INDEX_CHECKSUM_BYTES, ShardReader, tail_bytes
from salus.storage import LocalStorage
from salus.verification.shards import ExpectedShard, InMemory, check_shards

from .document_targets import check_readable
from .examples import Examples, Objects, frame
from .mutators import (
    INTEGERS,
    mutate_bytes,
    mutate_json,
    mutate_packed,
    to_text,
    tolerant,
    unsealed,
    with_crc32c,
)
from .target import Target, of_documents

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


_UID = "u"
_IDENTITY = re.compile(rb"\nsalus [-0-9a-f]{36} [^ ]+ [0-9]+\n")


def shard_targets(examples: Examples) -> list[Target]:
    targets = []
    for name, (kind, weight) in _SHARDS.items():
        spec = examples.specs[name]
        seeds = tuple(_IDENTITY.sub(spec.shard_identity(_UID, 0), body) for body in examples.shards(name))
        mutate = tolerant(partial(_mutate_shard, spec), seeds)
        targets.append(Target(f"shard.{kind}", seeds, mutate, partial(_run_shard, spec), weight))
    targets.append(_zarr_codecs(examples))
    return targets


def _mutate_shard(spec: ArraySpec, data: bytes, rng: random.Random) -> bytes:
    identity = spec.shard_identity(_UID, 0)
    end, start = len(data) - tail_bytes(spec, identity), len(data) - tail_bytes(spec, b"")
    if end < 0:
        raise ValueError("no shard")
    numbers = list(struct.unpack(f"<{2 * spec.chunks_per_shard}Q", data[start:-INDEX_CHECKSUM_BYTES]))
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
    shard = body + (identity if rng.random() < 0.98 else mutate_bytes(identity, rng, times=1)) + tail
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
    checked = check_shards(Objects({spec.shard_key(0, 0): body}), spec, [_expected(body)], uid=_UID, slot=0, length=4)
    _ = [plain(finding) for finding in checked.findings]
    reader = ShardReader(file, spec, spec.shard_identity(_UID, 0))
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
        chunk = ShardReader(InMemory(examples.shards(name)[0]), spec, b"").chunk(0)[:-4]
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

    return of_documents("codecs", seeds, run, sealed=False, weight=0)


# --- what is built for plain readers -----------------------------------------------------------------------------


def derived_targets(examples: Examples, folder: Path) -> list[Target]:
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
    return of_documents("root", seeds, run, sealed=False, weight=0)


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
    return of_documents("zarr.json", seeds, run, sealed=False, weight=0)


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


def journal_target(examples: Examples) -> Target:
    storage = LocalStorage(examples.running.root)
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
        with suppress(CorruptDataError):  # as if the shards had been exchanged, too; gzip puts the time into them
            check_finished(storage, storage, journal)
        found = Found(
            journal, {name: open_parts(storage, storage, journal, clock) for name, clock in journal.clocks.items()}
        )
        statistics, _ = read_statistics(storage, schema, journal, found.parts, found.counts)
        _ = found.lost_steps
        if not found.lengths[STEP]:
            raise CorruptDataError("no step is whole")
        check_readable(_salvaged(journal, found, statistics))

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
