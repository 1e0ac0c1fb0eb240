"""What a dead recorder left of an episode, checked step by step: its journal, shards in place, and shards in progress.

Reads only. `recovery` makes a record of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..codecs import crc32c, decode_chunk, max_encoded_bytes
from ..errors import CorruptDataError
from ..labels import Outcome
from ..layout import ArraySpec, journal_key
from ..log.records import is_uid
from ..metadata import check_metadata
from ..schema import STEP
from ..shards import ShardInfo, ShardReader
from ..storage import LocalStorage, Storage, StoredFile, open_plain
from .journal import Frame, read_journal

_BLOCK = 2**22
_CHECKSUM = 4
_MAX_STEPS = 2**31


@dataclass
class Segment:
    """What the journal says of the segment that was being recorded.

    Attributes:
        count: Steps whose rows are in the journal.
        rows: Parts of the arrays with many steps per chunk, (n, *stored_step_shape) each.
        places: Offset and size of each encoded chunk, of the arrays with one step per chunk.
    """

    count: int = 0
    rows: dict[str, list[np.ndarray]] = field(default_factory=dict)
    places: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def values(self, name: str, count: int) -> np.ndarray:
        """The first `count` rows of an array."""
        rows: np.ndarray = np.concatenate(self.rows[name])[:count]
        return rows


@dataclass
class Clock:
    """What the journal says of one clock.

    Attributes:
        specs: Its recorded arrays.
        finished: The shards of each segment that is in place.
        last_count: Steps of the last finished segment.
        open: The segment after it.
        timestamp_source: Where the stamps come from.
        dropped_images: Images that the recorder dropped, by feature.
    """

    specs: dict[str, ArraySpec]
    finished: list[list[ShardInfo]] = field(default_factory=list)
    last_count: int = 0
    open: Segment = field(default_factory=Segment)
    timestamp_source: str = "monotonic"
    dropped_images: dict[str, int] = field(default_factory=dict)

    @property
    def segment_steps(self) -> int:
        """Steps of a whole segment."""
        return next(iter(self.specs.values())).segment_steps

    @property
    def finished_steps(self) -> int:
        """Steps of the finished segments."""
        return (len(self.finished) - 1) * self.segment_steps + self.last_count if self.finished else 0

    @property
    def num_steps(self) -> int:
        """Steps that the journal tells of."""
        return self.finished_steps + self.open.count


@dataclass
class Journal:
    """The content of a journal.

    Attributes:
        start: Its first frame.
        metadata: Of the episode, as it was said last.
        clocks: By name.
        outcome: How it ended, as it was said last. Its step may lie past the steps that are whole.
        discarded: Why it is not to be kept; None where that was not said.
    """

    start: dict[str, Any]
    metadata: dict[str, Any]
    clocks: dict[str, Clock]
    outcome: Outcome = field(default_factory=Outcome)
    discarded: str | None = None

    @property
    def slot(self) -> int:
        """The slot of the episode."""
        slot: int = self.start["slot"]
        return slot

    @property
    def uid(self) -> str:
        """The episode."""
        uid: str = self.start["uid"]
        return uid

    @property
    def num_steps(self) -> int:
        """Steps that it tells of, on all clocks."""
        return sum(clock.num_steps for clock in self.clocks.values())


def read_start(path: Path) -> dict[str, Any] | None:
    """The first frame of a journal, or None where a crash came before it.

    Raises:
        CorruptDataError: It is something else.
    """
    frame = next(read_journal(path), None)
    if frame is None:
        return None
    start = frame.document
    numbers = [start.get(name) for name in ("slot", "schema_revision", "started_ns")]
    sound = is_uid(start.get("uid")) and all(type(n) is int and 0 <= n < 2**63 for n in numbers)
    if start.get("type") != "start" or not sound or not isinstance(start.get("metadata"), dict):
        raise CorruptDataError(f"journal: its first frame is not understood; {path}")
    return start


def replay(path: Path, specs: Mapping[str, ArraySpec], *, kinds: tuple[str, ...] = ()) -> Journal:
    """Read a journal.

    Args:
        path: The file; it has a start.
        specs: The recorded arrays of the schema revision that the start names.
        kinds: The `failure_kinds` of that schema.

    Raises:
        CorruptDataError: A whole frame that is not understood.
    """
    frames = read_journal(path)
    start = next(frames).document
    clocks: dict[str, Clock] = {}
    for name, spec in specs.items():
        clocks.setdefault(spec.clock, Clock({})).specs[name] = spec
    journal = Journal(start, start["metadata"], clocks)
    try:
        for frame in frames:
            if frame.document["type"] == "discarded":
                journal.discarded = str(frame.document["reason"])
            elif frame.document["type"] in ("outcome", "metadata"):
                _add_note(journal, frame.document, kinds)
            else:
                _add(journal.slot, clocks[frame.document.get("clock", STEP)], frame)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptDataError(f"journal: a frame is not understood: {error!r}; {path}") from error
    return journal


def _add_note(journal: Journal, document: dict[str, Any], kinds: tuple[str, ...]) -> None:
    if document["type"] == "outcome":
        journal.outcome = Outcome.from_json(document["outcome"])
        journal.outcome.check(num_steps=_MAX_STEPS, kinds=kinds)
    else:
        journal.metadata = check_metadata({**journal.metadata, **document["metadata"]})


def _add(slot: int, clock: Clock, frame: Frame) -> None:
    document, segment, specs = frame.document, clock.open, clock.specs
    number, segment_steps = len(clock.finished), clock.segment_steps
    if clock.finished and clock.last_count != segment_steps:
        raise ValueError("steps after the last segment")
    source, dropped = str(document["timestamp_source"]), dict(document.get("dropped_images", {}))
    if not source or not all(isinstance(n, str) and type(k) is int and 0 <= k < 2**31 for n, k in dropped.items()):
        raise ValueError(f"stamps of {source!r}, dropped images {dropped}")
    if document["type"] == "segment":
        shards = [ShardInfo.from_json(value) for value in document["shards"]]
        expected = {spec.shard_key(slot, number) for spec in specs.values()}
        if document["segment"] != number or {shard.key for shard in shards} != expected:
            raise ValueError(f"segment {document['segment']} in the place of segment {number}")
        count = document["count"]
        if type(count) is not int or not max(segment.count, 1) <= count <= segment_steps:
            raise ValueError(f"a segment of {count} steps")
        clock.finished.append(shards)
        clock.last_count, clock.open = count, Segment()
        clock.timestamp_source, clock.dropped_images = source, dropped
        return
    if document["type"] != "steps":
        raise ValueError(f"type {document['type']!r}")
    first, count = document["first"], document["count"]
    if first != number * segment_steps + segment.count or not 0 < count <= segment_steps - segment.count:
        raise ValueError(f"{count} steps from {first} on, after {segment.count} of segment {number}")
    found = sorted((name, kind) for kind in ("arrays", "chunks", "texts") for name in document[kind])
    expected_kinds = sorted((name, _kind(spec)) for name, spec in specs.items())
    if found != expected_kinds:
        raise ValueError(f"arrays {found}, expected {expected_kinds}")
    place = 0
    for name in sorted(document["arrays"]):
        size = document["arrays"][name]
        raw = np.frombuffer(frame.rows[place : place + size], specs[name].numpy_dtype)
        segment.rows.setdefault(name, []).append(raw.reshape(count, *specs[name].stored_step_shape))
        place += size
    for name, texts in document["texts"].items():
        array = np.empty(count, object)
        array[:] = [str(text) for text in texts]
        segment.rows.setdefault(name, []).append(array)
    for name, places in document["chunks"].items():
        pairs = [(int(offset), int(size)) for offset, size in places]
        if len(pairs) != count or any(
            offset < 0 or not _CHECKSUM < size <= max_encoded_bytes(specs[name]) for offset, size in pairs
        ):
            raise ValueError(f"{len(pairs)} chunks of {name!r} for {count} steps")
        segment.places.setdefault(name, []).extend(pairs)
    segment.count += count
    clock.timestamp_source, clock.dropped_images = source, dropped


def _kind(spec: ArraySpec) -> str:
    """The member of a frame of steps that holds an array."""
    if spec.chunk_steps == 1:
        return "chunks"
    return "texts" if spec.is_text else "arrays"


@dataclass
class Part:
    """One array of the segment that was being recorded.

    Attributes:
        spec: The array.
        file: Where the encoded chunks are; None for arrays whose rows are in the journal.
        in_place: The shard is at its key already.
        count: Steps from the start of the segment on that are whole.
    """

    spec: ArraySpec
    file: StoredFile | None
    in_place: bool
    count: int


def check_finished(storage: Storage, spool: LocalStorage, journal: Journal) -> dict[str, Path]:
    """Raise CorruptDataError unless the shards of all finished segments are as the journal says.

    Returns:
        By key, the files of those that are still in the spool, and not in the dataset.

    Cost: reads all of them.
    """
    spooled = {}
    for clock in journal.clocks.values():
        for number, infos in enumerate(clock.finished):
            names = {spec.shard_key(journal.slot, number): name for name, spec in clock.specs.items()}
            for info in infos:
                file = storage.open_shard(info.key)
                if file is None:
                    path = progress_path(spool, journal.slot, names[info.key], number)
                    file = _in_progress(path)
                    if file is not None:
                        spooled[info.key] = path
                    else:  # a recorder that gave up may have brought it in this moment
                        file = storage.open_shard(info.key)
                found = None if file is None else describe(info.key, file)
                if found != info:
                    what = "is missing" if found is None else "is not the one that was finished"
                    raise CorruptDataError(f"shard: it {what}; {info.key}")
    return spooled


def progress_path(spool: LocalStorage, slot: int, name: str, segment: int) -> Path:
    """Where the shard of an array grows."""
    return spool.path(journal_key(slot)).with_name(f"{name}.{segment}.shard")


def open_parts(storage: Storage, spool: LocalStorage, journal: Journal, clock: Clock) -> list[Part]:
    """The arrays of the segment that was being recorded on a clock, and how many steps of each are whole.

    Raises:
        CorruptDataError: A shard in place does not agree with the journal.
    """
    parts = [_part(storage, spool, journal, clock, spec) for spec in clock.specs.values()]
    count = min(part.count for part in parts)
    for part in parts if count else ():
        if part.spec.chunk_steps != 1:
            _check_rows_in_place(part, journal, clock, count)
    return parts


def _part(storage: Storage, spool: LocalStorage, journal: Journal, clock: Clock, spec: ArraySpec) -> Part:
    number, segment = len(clock.finished), clock.open
    key = spec.shard_key(journal.slot, number)
    placed = storage.open_shard(key)
    if spec.chunk_steps != 1:
        return Part(spec, placed, placed is not None, segment.count)
    places, file = segment.places.get(spec.name, []), None
    if placed is None:
        file = _in_progress(progress_path(spool, journal.slot, spec.name, number))
        placed = storage.open_shard(key) if file is None else None  # as in `check_finished`
    if placed is None:
        return Part(spec, file, False, 0 if file is None else _whole_chunks(file, places))
    index = read_shard(placed, spec, journal, number).index
    for chunk, place in enumerate(places):
        try:
            found = index.place(chunk)
        except CorruptDataError:  # it has fewer: a recoverer that died made it
            places = places[:chunk]
            break
        if found != place:
            raise CorruptDataError(f"shard: chunk {chunk} is not where the journal says; {key}")
    return Part(spec, placed, True, _whole_chunks(placed, places))


def _check_rows_in_place(part: Part, journal: Journal, clock: Clock, count: int) -> None:
    """Raise CorruptDataError unless the first `count` rows of a shard in place are those of the journal.

    Only of arrays with many steps per chunk.
    """
    spec, segment = part.spec, clock.open
    if part.file is None:
        return
    number = len(clock.finished)
    key = spec.shard_key(journal.slot, number)
    reader = read_shard(part.file, spec, journal, number)
    found, expected = read_rows(reader, spec, count), segment.values(spec.name, count)
    if spec.codec == "zarr":
        return  # a codec of the user's own, which may be lossy: its checksum has to do
    same = list(found) == list(expected) if spec.is_text else found.tobytes() == expected.tobytes()
    if not same:
        raise CorruptDataError(f"shard: its rows are not those of the journal; {key}")


def read_shard(file: StoredFile, spec: ArraySpec, journal: Journal, segment: int) -> ShardReader:
    """A shard that is in place.

    Raises:
        CorruptDataError: Its index does not hold, or it is another shard.
    """
    try:
        return ShardReader(file, spec, spec.shard_identity(journal.uid, segment))
    except CorruptDataError as error:
        raise CorruptDataError(f"shard: {error}; {spec.shard_key(journal.slot, segment)}") from error


def read_rows(reader: ShardReader, spec: ArraySpec, count: int) -> np.ndarray:
    """The first `count` steps of a shard of an array with many steps per chunk: (count, *stored_step_shape)."""
    chunks = [decode_chunk(spec, reader.chunk(chunk)) for chunk in range(-(-count // spec.chunk_steps))]
    rows: np.ndarray = np.concatenate(chunks)[:count]
    return rows


def _whole_chunks(file: StoredFile, places: list[tuple[int, int]]) -> int:
    """How many of the first chunks are there and hold their crc32c."""
    for count, (offset, size) in enumerate(places):
        if offset + size > file.size:
            return count
        chunk = file.read(offset, size)
        if len(chunk) < size or crc32c(chunk[:-_CHECKSUM]) != int.from_bytes(chunk[-_CHECKSUM:], "little"):
            return count
    return len(places)


def describe(key: str, file: StoredFile) -> ShardInfo:
    """What a record says of a shard. Cost: reads all of it."""
    checksum, digest, place = 0, hashlib.sha256(), 0
    while place < file.size:
        block = file.read(place, min(_BLOCK, file.size - place))
        if not block:
            raise CorruptDataError(f"shard: it became shorter; {key}")
        checksum, place = crc32c(block, checksum), place + len(block)
        digest.update(block)
    return ShardInfo(key, file.size, checksum, digest.hexdigest())


class _ProgressFile:
    """A `StoredFile` of a shard in progress, which no key names."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self.size = size

    def read(self, start: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, start)

    def prefetch(self, start: int, size: int) -> None:
        """Nothing: each chunk is read once."""

    def __del__(self) -> None:
        os.close(self._descriptor)


def _in_progress(path: Path) -> StoredFile | None:
    try:
        return _ProgressFile(*open_plain(path))
    except FileNotFoundError:
        return None
