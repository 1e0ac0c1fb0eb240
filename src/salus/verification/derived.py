"""Whether what publishing wrote for plain Zarr readers is what it would write now, by content, not by bytes.

Publishing itself says what that is: it runs on a storage that has nothing yet, and compares instead of writing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from .. import documents
from ..codecs import decode_chunk
from ..errors import CorruptDataError, InvalidInputError, SalusError
from ..layout import METADATA, PRIVATE, array_specs, index_rows, record_key
from ..log.publish import decode_index, publish
from ..log.records import Record
from ..log.snapshot import read_record
from ..schema import LENGTH, STEP, length_name
from ..shards import ShardReader, tail_bytes
from ..storage import Found, Storage, StoredFile
from .log import Log
from .report import Finding, Findings, Kind, check_reach, damage, said
from .shards import InMemory

Result = TypeVar("Result")

PUBLISHED_WITHIN_S = 3.0  # a recorder waits a second, and needs its time

_REMEDY = "--repair publishes it again"
_SHOWN = 5


def check_derived(storage: Storage, log: Log, *, from_log: bool = False) -> Findings:
    """Every object that publishing writes, against what is there.

    A recorder publishes up to a second behind its commits, also one that has no episode open just now. So what is
    wrong is looked at again a while later, and what was written in between is no finding. Where schema revisions or
    amendments do not hold, nobody can say what was to be published, and nothing is looked at.

    Args:
        storage: The dataset.
        log: What is committed.
        from_log: Whether checkpoints and `log` agree: then publishing need not read what `log` has read.
    """
    if any(finding.kind in ("schema", "amendment") for finding in log.findings) or not log.schemas:
        return
    first = Comparison(storage, log, from_log=from_log)
    if not first.found:
        return
    time.sleep(PUBLISHED_WITHIN_S)
    second = Comparison(storage, log, from_log=from_log)
    for key in sorted(first.found.keys() & second.found.keys()):
        if first.bodies.get(key) == second.bodies.get(key):
            yield from second.found[key]
    yield from second.lost_records()


class Comparison:
    """What is there of everything that publishing writes.

    Attributes:
        found: What is wrong, by key.
        bodies: What is there in its place, where anything is that can be read.
    """

    def __init__(self, storage: Storage, log: Log, *, from_log: bool = False) -> None:
        self.found: dict[str, list[Finding]] = {}
        self.bodies: dict[str, bytes] = {}
        self._storage = storage
        self._unknown = {f.slot for f in log.findings if f.kind == "record" and f.slot is not None}
        self._decided = log.decided
        self._specs = array_specs(log.schemas[-1])
        self._lengths = [length_name(clock) for clock in (STEP, *log.schemas[-1].clocks)]
        self._rows_there: dict[str, set[int]] = {}
        self._records = log.records
        known = log.snapshot if from_log else None
        publish(_Publication(storage, self), known=known, whole=True, read=self._read)

    def _read(self, storage: Storage, slot: int) -> Record | None:
        return self._records.get(slot) or read_record(storage, slot)  # records never change

    def lost_records(self) -> Findings:
        """Slots that two index arrays tell of and that have no record: one changed byte does not look like that."""
        both = self._rows_there.get(LENGTH, set()) & self._rows_there.get(METADATA, set())
        for slot in sorted(both):
            if self._decided.at(slot) is None and self._storage.get(record_key(slot)) is None:
                failed = f"it is missing, and {LENGTH} and {METADATA} tell of its episode"
                yield damage("record", record_key(slot), failed, slot=slot)

    def compare(self, key: str, expected: bytes) -> list[Finding]:
        """One object against what publishing would write."""
        array, _, name = key.rpartition("/")
        kind: Kind = "metadata" if name == "zarr.json" else "feature" if array in self._specs else "index"
        finding = Finding(kind, "derived", key, "", remedy=_REMEDY)
        try:
            body = self._storage.get(key)
            if body is None:
                raise CorruptDataError("it is missing")
            if body == expected:
                return []
            self.bodies[key] = body
            if kind == "index":
                return list(self._compare_rows(array, int(name.removeprefix("c.")), body, expected, finding))
            same = self._same_metadata if kind == "metadata" else self._same_shard
            if not same(key, body, expected):
                raise CorruptDataError("it is not what the log says")
        except SalusError as error:
            check_reach(self._storage, error)
            return [replace(finding, failed=said(error, key))]
        return []

    def _compare_rows(self, array: str, chunk: int, body: bytes, expected: bytes, finding: Finding) -> Findings:
        values, wanted = decode_index(array, body), decode_index(array, expected)
        if values is None or wanted is None:
            yield replace(finding, failed="it does not hold its crc32c, or cannot be decoded")
            return
        first = chunk * index_rows(array)
        rows = {
            first + place: (was, new) for place, (was, new) in enumerate(zip(values, wanted, strict=True)) if was != new
        }
        rows = {slot: pair for slot, pair in rows.items() if slot not in self._unknown}
        self._rows_there.setdefault(array, set()).update(slot for slot, (was, new) in rows.items() if was and not new)
        if rows:
            slot, (was, new) = next(iter(rows.items()))
            listed = ", ".join(map(str, list(rows)[:_SHOWN])) + (" …" if len(rows) > _SHOWN else "")
            failed = f"{len(rows)} rows are not what the log says: {listed}"
            yield replace(finding, failed=failed, slot=slot, got=_short(was), expected=_short(new))

    def _same_metadata(self, key: str, body: bytes, expected: bytes) -> bool:
        documents_ = [documents.parse(some, key=key) for some in (body, expected)]
        if self._unknown:  # a record that does not hold may be the longest, or the last: then no shape is known
            documents_ = [_without(some, ("shape", "published")) for some in documents_]
        return bool(documents_[0] == documents_[1])

    def _same_shard(self, key: str, body: bytes, expected: bytes) -> bool:
        spec = self._specs[key.rpartition("/")[0]]
        shard, wanted = (ShardReader(InMemory(some), spec, b"") for some in (body, expected))
        unused = len(body)
        for chunk in range(spec.chunks_per_shard):
            try:
                encoded = wanted.chunk(chunk)
            except CorruptDataError:  # not there: nothing is expected there
                continue
            found = shard.chunk(chunk)
            if not np.array_equal(decode_chunk(spec, found), decode_chunk(spec, encoded), equal_nan=True):
                return False
            unused -= len(found)
        return unused == tail_bytes(spec, b"")


class _Publication:
    """The storage that publishing sees: the log is there, nothing derived is, and what is put is compared."""

    def __init__(self, storage: Storage, comparison: Comparison) -> None:
        self._storage = storage
        self._comparison = comparison

    @property
    def url(self) -> str:
        return self._storage.url

    @property
    def requests_at_once(self) -> int:
        return self._storage.requests_at_once

    def put(self, objects: Mapping[str, bytes]) -> None:
        for key, body in objects.items():
            findings = self._comparison.compare(key, body)
            if findings:
                self._comparison.found[key] = findings
            else:
                self._comparison.found.pop(key, None)  # put again, with all of its rows

    def get(self, key: str) -> bytes | None:
        return self._storage.get(key) if key.startswith(f"{PRIVATE}/") else None

    def list(self, folder: str) -> Found:
        return self._storage.list(folder)

    def open_shard(self, key: str) -> StoredFile | None:
        return self._storage.open_shard(key)

    def sync(self, folder: str) -> None:
        pass  # nothing is written

    def publication(self, publish: Callable[[Storage], Result]) -> Result:
        return publish(self)

    def check_writable(self) -> None:
        pass  # nothing is written

    def put_new(self, key: str, body: bytes) -> NoReturn:
        raise InvalidInputError(f"verify: publishing would create {key} of {len(body)} bytes")

    def put_new_many(self, objects: Mapping[str, bytes]) -> NoReturn:
        raise InvalidInputError(f"verify: publishing would create {len(objects)} objects")

    def put_new_file(self, key: str, source: Path) -> NoReturn:
        raise InvalidInputError(f"verify: publishing would create {key} from {source}")


def _without(value: Any, names: Iterable[str]) -> Any:
    if isinstance(value, dict):
        return {name: _without(item, names) for name, item in value.items() if name not in names}
    return [_without(item, names) for item in value] if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
