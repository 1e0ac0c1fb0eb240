"""Whether the shards of one array of one episode are the bytes that its record tells of. Each is read once."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..codecs import check_chunk, decode_chunk, max_encoded_bytes
from ..errors import CorruptDataError, SalusError
from ..layout import ArraySpec
from ..schema import stamps_name
from ..shards import INDEX_ENTRY_BYTES, MISSING, ShardIndex, tail_bytes
from ..storage import Storage, StoredFile
from .report import RESTORE, Finding, check_reach, said

BLOCK_BYTES = 2**20
_REMEDY = f"{RESTORE}; --repair keeps readers from the episode until then"


class ExpectedShard(NamedTuple):
    """What a record says of a shard.

    Attributes:
        segment: Which one of its array.
        size: Bytes of the file.
        sha256: Over the file, hex.
    """

    segment: int
    size: int
    sha256: str


@dataclass
class ShardCheck:
    """What became of the shards of one array.

    Attributes:
        findings: Of each shard that is damaged, one.
        num_shards: Shards that were read.
        bytes_read: Their bytes.
    """

    findings: list[Finding] = field(default_factory=list)
    num_shards: int = 0
    bytes_read: int = 0


@dataclass(frozen=True)
class _Content:
    """What one read of a shard shows: its sha256, what is wrong with which chunk, decoded values where they count."""

    sha256: str
    problems: list[str]
    values: list[np.ndarray]


def check_shards(
    storage: Storage, spec: ArraySpec, shards: Sequence[ExpectedShard], *, uid: str, slot: int, length: int
) -> ShardCheck:
    """Check shards of one array.

    Args:
        storage: The dataset.
        spec: The array.
        shards: What the record says of them: of all of the array, where they are stamps.
        uid: The episode.
        slot: Its slot.
        length: Its steps on the clock of the array.

    Memory: a block of 1 MiB, or one chunk where that is larger.
    """
    found = ShardCheck()
    last_stamp: int | None = None
    for segment, size, sha256 in shards:
        count = min(spec.segment_steps, length - segment * spec.segment_steps)
        key = spec.shard_key(slot, segment)
        finding = functools.partial(Finding, "shard", "damage", key, uid=uid, slot=slot)
        try:
            file = storage.open_shard(key)
            if file is None:
                raise CorruptDataError("it is missing")
            found.num_shards += 1
            if file.size != size:
                got, expected = f"{file.size} bytes", f"{size} bytes"
                found.findings.append(finding("its size", got, expected, _REMEDY))
                continue
            found.bytes_read += file.size
            content = _read(file, spec, count, spec.shard_identity(uid, segment))
        except SalusError as error:
            check_reach(storage, error)
            found.findings.append(finding(said(error, key), remedy=_REMEDY))
            continue
        problems = content.problems
        if _is_stamps(spec) and not problems:
            stamps = np.concatenate(content.values)[:count]
            before = stamps[:0] if last_stamp is None else np.array([last_stamp])
            if (np.diff(np.concatenate([before, stamps])) <= 0).any():
                problems = ["its stamps do not increase"]
            last_stamp = int(stamps[-1])
        first = segment * spec.segment_steps
        where = f"steps {first} .. {first + count - 1}"
        if content.sha256 != sha256:
            failed = "; ".join(_few(problems)) or "other content, whose own checksums hold"
            got, expected = f"sha256 {content.sha256}", sha256
            found.findings.append(finding(f"{where}: {failed}", got, expected, _REMEDY))
        elif problems:  # as it was recorded, so no copy helps
            failed = f"{where}: it was recorded so: {'; '.join(_few(problems))}"
            remedy = "the recorder wrote it so: please report it; --repair keeps readers from the episode"
            found.findings.append(finding(failed, remedy=remedy))
    return found


def _read(file: StoredFile, spec: ArraySpec, count: int, identity: bytes) -> _Content:
    """Read a shard once: sha256 over the whole, identity, index, and crc32c and declared size of every chunk."""
    tail_size = tail_bytes(spec, identity)
    end = file.size - tail_size
    if end < 0:
        raise CorruptDataError(f"{file.size} bytes, expected at least the {tail_size} of its identity and index")
    sha256, problems, values = hashlib.sha256(), [], []
    if file.size <= BLOCK_BYTES:
        whole = file.read(0, file.size)
        file, tail = InMemory(whole), whole[end:]
    else:
        file.prefetch(0, file.size)
        tail = file.read(end, tail_size)
    try:
        index = ShardIndex(tail, end, max_encoded_bytes(spec), identity)
        places = _places(index, spec, tail[len(identity) :], count)
    except CorruptDataError as error:
        places, problems = [], [str(error)]
    decoded = _is_decoded(spec)
    read = 0
    for group in _groups(places):
        start, stop = places[group[0]][0], sum(places[group[-1]][:2])
        for offset in range(read, start, BLOCK_BYTES):  # what no chunk is in
            sha256.update(file.read(offset, min(BLOCK_BYTES, start - offset)))
        data = file.read(start, stop - start)
        sha256.update(data)
        read = stop
        for place in group:
            offset, size, chunk = places[place]
            encoded = data[offset - start : offset - start + size]
            try:
                if decoded and chunk * spec.chunk_steps < count:
                    values.append(_decoded(spec, encoded))
                else:
                    check_chunk(spec, encoded)
            except CorruptDataError as error:
                problems.append(f"chunk {chunk}: {error}")
    for offset in range(read, end, BLOCK_BYTES):
        sha256.update(file.read(offset, min(BLOCK_BYTES, end - offset)))
    sha256.update(tail)
    return _Content(sha256.hexdigest(), problems, values)


def _places(index: ShardIndex, spec: ArraySpec, entries: bytes, count: int) -> list[tuple[int, int, int]]:
    """Offset, size and number of all chunks that are there, by place; those of `count` steps have to be."""
    places = []
    for chunk in range(spec.chunks_per_shard):
        entry = entries[chunk * INDEX_ENTRY_BYTES :][:INDEX_ENTRY_BYTES]
        if chunk * spec.chunk_steps < count or entry != _NO_CHUNK:
            places.append((*index.place(chunk), chunk))
    places.sort()
    for (offset, size, chunk), (after, _, other) in itertools.pairwise(places):
        if offset + size > after:
            raise CorruptDataError(f"the shard index lays chunk {other} over chunk {chunk}")
    return places


def _groups(places: Sequence[tuple[int, int, int]]) -> Iterator[list[int]]:
    """Chunks that lie side by side, as many as go into a block, by position in `places`; at least one."""
    group: list[int] = []
    for number, (offset, size, _) in enumerate(places):
        if group:
            start, border = places[group[0]][0], sum(places[group[-1]][:2])
            if offset != border or offset + size - start > BLOCK_BYTES:
                yield group
                group = []
        group.append(number)
    if group:
        yield group


_NO_CHUNK = MISSING.to_bytes(8, "little") * 2


def _is_stamps(spec: ArraySpec) -> bool:
    return spec.name == stamps_name(spec.clock)


def _is_decoded(spec: ArraySpec) -> bool:
    """Arrays whose content is looked at as well; of the others what is declared, as all of their bits are allowed."""
    return spec.is_text or _is_stamps(spec) or spec.dtype == "bool"


def _decoded(spec: ArraySpec, encoded: bytes) -> np.ndarray:
    if spec.codec != "zstd":
        check_chunk(spec, encoded)
        return np.empty(0, spec.numpy_dtype)
    values = decode_chunk(spec, encoded)
    if spec.dtype == "bool" and values.view(np.uint8).max(initial=0) > 1:
        raise CorruptDataError("a value that is neither true nor false")
    return values


def _few(problems: Sequence[str], most: int = 3) -> list[str]:
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return [*problems[:most], *more]


class InMemory:
    """A `StoredFile` that was read whole."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self._data)

    def read(self, start: int, size: int) -> bytes:
        """Some of them."""
        return self._data[start : start + size]

    def prefetch(self, start: int, size: int) -> None:
        """Nothing to do."""
