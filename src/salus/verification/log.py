"""Whether the immutable documents hold, and agree: schema revisions, claims, records, amendments, checkpoints, tags."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

from .. import documents
from ..errors import CorruptDataError, FormatError, SalusError
from ..layout import (
    PRIVATE,
    SLOTS_PER_FOLDER,
    ArraySpec,
    amendment_key,
    checkpoint_key,
    claim_key,
    number_in,
    record_key,
    recorded_arrays,
    schema_key,
    tag_key,
)
from ..log.amendments import Amendment, Overlay
from ..log.claims import read_claim
from ..log.digest import root_digest
from ..log.entries import Entries, Entry
from ..log.records import Record
from ..log.revisions import read_revision
from ..log.snapshot import Snapshot, log_folders, read_record
from ..log.tags import list_tags, read_tag
from ..readahead import read_ahead
from ..schema import Schema
from ..shards import ShardInfo
from ..storage import Storage
from .report import Finding, Findings, check_reach, damage, said

KEPT_BYTES = 2**26
RECORD_BYTES = 1000
"""What a record without its metadata takes in memory, about."""

BATCH_SLOTS = 64
"""Small documents that a thread reads in a row."""

_HEX = set("0123456789abcdef")
_REBUILT = "--repair builds it again from the log"


@dataclass
class Log:
    """What is committed, read from schema revisions, records and amendments alone, and what is wrong with these.

    Attributes:
        schemas: The schema revisions, up to the first that does not hold.
        arrays: The recorded arrays of each.
        revisions: The digest of each.
        decided: A row per record; that of one that does not hold is corrupt.
        hashes: By slot, the sha256 of its shards, 32 bytes each, in the order of `shard_sizes`.
        records: By slot, records without shards and statistics, as many as go into `KEPT_BYTES`.
        amendments: Up to the first that does not hold.
        findings: Of these three kinds.
    """

    schemas: list[Schema] = field(default_factory=list)
    arrays: list[list[ArraySpec]] = field(default_factory=list)
    revisions: list[str] = field(default_factory=list)
    decided: Entries = field(default_factory=Entries.of)
    hashes: dict[int, bytes] = field(default_factory=dict)
    records: dict[int, Record] = field(default_factory=dict)
    amendments: list[Amendment] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def snapshot(self) -> Snapshot:
        """As a reader would see it."""
        return Snapshot(self.decided, tuple(self.amendments))

    @property
    def root_digest(self) -> str:
        """Over all of it."""
        return root_digest(self.snapshot, self.revisions)

    @property
    def is_damaged(self) -> bool:
        """Whether any of it does not hold: then not all that is committed is known."""
        return bool(self.findings)

    def overlay(self, uid: str) -> Overlay:
        """What the amendments say of an episode."""
        return self.snapshot.overlays.get(uid, Overlay())


def read_log(storage: Storage, *, threads: int = 1) -> Log:
    """Read all of the log, from its documents one by one: no checkpoint is trusted.

    Args:
        storage: The dataset.
        threads: How many read records.

    Raises:
        FormatError: A format that this version does not know.
    """
    log = Log()
    log.findings += _read_schemas(storage, log)
    entries, kept = [], 0
    for read in in_batches(functools.partial(_read_decided, storage, log), record_slots(storage), threads=threads):
        entries.append(read.entry)
        if read.finding is not None:
            log.findings.append(read.finding)
        if read.record is None:
            continue
        if read.entry.status != "aborted":
            log.hashes[read.entry.slot] = read.hashes
        kept += len(str(read.record.metadata)) + RECORD_BYTES
        if kept <= KEPT_BYTES:
            log.records[read.entry.slot] = read.record
    log.decided = Entries.of(entries)
    log.findings += _read_amendments(storage, log)
    return log


class _Decided(NamedTuple):
    """What is kept of the record of a slot.

    Attributes:
        entry: Its row, corrupt where the record does not hold.
        finding: What is wrong with the record then.
        record: Without shards and statistics, where it holds.
        hashes: The sha256 of its shards.
    """

    entry: Entry
    finding: Finding | None = None
    record: Record | None = None
    hashes: bytes = b""


def _read_decided(storage: Storage, log: Log, slots: Sequence[int]) -> list[_Decided]:
    found = []
    for slot in slots:
        try:
            record = read_record(storage, slot)
            if record is not None:
                entry = entry_of(record, log)
                hashes = hashes_of(record) if record.status != "aborted" else b""
                found.append(_Decided(entry, None, replace(record, shards=(), statistics=None), hashes))
        except SalusError as error:
            check_reach(storage, error)
            found.append(_Decided(Entry.corrupt(slot), damage("record", record_key(slot), error, slot=slot)))
    return found


Item = TypeVar("Item")
Value = TypeVar("Value")


def in_batches(
    read: Callable[[Sequence[Item]], list[Value]], items: Iterable[Item], *, threads: int
) -> Iterator[Value]:
    """What threads read of many items, in order: some at a time, as handing over a small one takes longer than it."""
    following = iter(items)
    batches = iter(lambda: list(itertools.islice(following, BATCH_SLOTS)), [])
    jobs = ((1, functools.partial(read, batch)) for batch in batches)
    return itertools.chain.from_iterable(read_ahead(jobs, threads=threads, budget=2 * threads))


def _read_schemas(storage: Storage, log: Log) -> Findings:
    numbers = [n for name in storage.list(f"{PRIVATE}/schema") if (n := schema_number(name)) is not None]
    for number in range(max(numbers, default=-1) + 1):
        key = schema_key(number)
        try:
            body = storage.get(key)
            if body is None:
                raise CorruptDataError("it is missing, and later ones are there")
            schema = read_revision(storage, number, body)
        except FormatError:
            raise
        except SalusError as error:
            check_reach(storage, error)
            yield damage("schema", key, error)
            continue
        if number == len(log.schemas):  # else one before it does not hold, and revisions build on each other
            log.schemas.append(schema)
            log.arrays.append(recorded_arrays(schema))
            log.revisions.append(documents.digest_of(body))


def schema_number(name: str) -> int | None:
    """The number in the name of a schema revision, or None where it is none."""
    return int(name[:6]) if re.fullmatch(r"[0-9]{6}\.json", name) else None


def record_slots(storage: Storage) -> list[int]:
    """The slots with a record, in order."""
    return sorted(
        slot
        for folder in log_folders(storage)
        for name in storage.list(f"{PRIVATE}/log/{folder}")
        if (slot := number_in(name, suffix=".json")) is not None and slot // SLOTS_PER_FOLDER == folder
    )


def read_entry(storage: Storage, slot: int, log: Log) -> Entry | None:
    """The row of a record; None where there is no record.

    Raises:
        CorruptDataError: It does not hold, or does not fit its schema revision.
    """
    record = read_record(storage, slot)
    return None if record is None else entry_of(record, log)


def entry_of(record: Record, log: Log) -> Entry:
    """The row of a record; raises CorruptDataError where it does not fit its schema revision."""
    if record.schema_revision >= len(log.arrays):
        raise CorruptDataError(
            f"it names schema revision {record.schema_revision}, but {len(log.arrays)} can be read; "
            f"{record_key(record.slot)}"
        )
    return Entry.of(record, log.arrays[record.schema_revision])


def hashes_of(record: Record) -> bytes:
    """The sha256 of its shards, 32 bytes each, by array and segment.

    Raises:
        CorruptDataError: One is no sha256.
    """

    def place(shard: ShardInfo) -> tuple[str, int]:
        array, _, name = shard.key.rpartition("/")
        return array, int(name.split(".")[2])

    text = "".join(shard.sha256 for shard in sorted(record.shards, key=place))
    if any(len(shard.sha256) != 64 for shard in record.shards) or not set(text) <= _HEX:
        raise CorruptDataError(f"record: a sha256 that is none; {record_key(record.slot)}")
    return bytes.fromhex(text)


def _read_amendments(storage: Storage, log: Log) -> Findings:
    numbers = [
        n for name in storage.list(f"{PRIVATE}/amendments") if (n := number_in(name, suffix=".json")) is not None
    ]
    highest = max(numbers, default=-1)
    number, whole = 0, True
    while True:
        try:
            amendment = read_amendment(storage, number)
        except SalusError as error:
            check_reach(storage, error)
            yield damage("amendment", amendment_key(number), error)
            whole = False
        else:
            if amendment is not None and whole:
                log.amendments.append(amendment)
            elif amendment is None and number > highest:
                return
            elif amendment is None:
                yield damage("amendment", amendment_key(number), "it is missing, and later ones are there")
                whole = False
        number += 1


def read_amendment(storage: Storage, number: int) -> Amendment | None:
    """Raises CorruptDataError where it does not hold; None where it is not there."""
    key = amendment_key(number)
    body = storage.get(key)
    if body is None:
        return None
    document = documents.unseal(body, key=key)
    if document.get("number") != number:
        raise CorruptDataError(f"it is number {document.get('number')}, exchanged or copied; {key}")
    return Amendment.from_json(document, key=key)


# --- claims ------------------------------------------------------------------------------------------------------


def check_claims(storage: Storage, log: Log, *, threads: int) -> Findings:
    """The claims of all decided slots."""

    def check(entries: Sequence[Entry]) -> list[Finding]:
        return [finding for entry in entries for finding in check_claim(storage, entry)]

    return in_batches(check, log.decided, threads=threads)


def check_claim(storage: Storage, entry: Entry) -> Findings:
    """The claim of a decided slot. Nothing reads it any more: it only has to be there, so that nobody else claims."""
    if entry.status == "corrupt":
        return
    key, uid, slot = claim_key(entry.slot), entry.uid, entry.slot
    try:
        claim = read_claim(storage, slot)
    except SalusError as error:
        check_reach(storage, error)
        failed = said(error, key)
    else:
        if claim is not None and claim.uid == uid:
            return
        failed = "it is missing, while its slot is decided"
        if claim is not None:
            failed = f"it is of episode {claim.uid}, and the record of {uid}"
    remedy = "nothing reads it; --repair writes it anew"
    yield Finding("claim", "leftover", key, failed, remedy=remedy, uid=uid, slot=slot)


# --- what repeats the log ----------------------------------------------------------------------------------------


def check_checkpoints(storage: Storage, log: Log) -> Findings:
    """Checkpoints are a cache: one that does not hold costs time. One that holds is a witness of the records."""
    names = storage.list(f"{PRIVATE}/checkpoints")
    for number in sorted(n for name in names if (n := number_in(name, suffix=".json")) is not None):
        yield from check_checkpoint(storage, number, log)


def check_checkpoint(storage: Storage, number: int, log: Log) -> Findings:
    """One checkpoint."""
    key = checkpoint_key(number)
    try:
        body = storage.get(key)
        if body is None:
            return
        snapshot = Snapshot.from_json(documents.unseal(body, key=key), key=key)
    except SalusError as error:
        check_reach(storage, error)
        yield Finding("checkpoint", "derived", key, said(error, key), remedy=_REBUILT)
        return
    yield from compare(storage, snapshot, log, f"checkpoint {number}", key)


def check_tags(storage: Storage, log: Log) -> Findings:
    """Tags embed what they hold, and have to agree with the records."""
    for name in list_tags(storage):
        try:
            tag_key(name)
        except SalusError:
            continue  # not a tag's name: the walk through the files names it
        yield from check_tag(storage, name, log)


def check_tag(storage: Storage, name: str, log: Log) -> Findings:
    """One tag."""
    key = tag_key(name)
    try:
        snapshot = read_tag(storage, name)
    except SalusError as error:
        check_reach(storage, error)
        yield damage("tag", key, error)
        return
    yield from compare(storage, snapshot, log, f"tag {name}", key)


def compare(storage: Storage, embedded: Snapshot, log: Log, name: str, key: str) -> Findings:
    """Where a sealed document that embeds a snapshot and the log itself say different things."""
    for entry in embedded.decided.take(embedded.decided.unlike(log.decided)):
        now = log.decided.at(entry.slot)
        if "corrupt" in (entry.status, "" if now is None else now.status):
            continue  # a record that does not hold is named itself
        if now is None:
            now = _read_anew(storage, entry.slot, log)  # it may have come meanwhile
        if now is None:
            failed = f"it is missing, and {name} knows it"
        elif now == entry:
            continue
        else:
            failed = f"it is not the one that {name} knows: one of the two was exchanged; {key}"
        found = damage("record", record_key(entry.slot), failed, uid=entry.uid, slot=entry.slot)
        yield replace(found, got="" if now is None else now.digest, expected=entry.digest)
    if any(finding.kind == "amendment" for finding in log.findings):
        return
    for number, amendment in enumerate(embedded.amendments):
        known = log.amendments[number] if number < len(log.amendments) else read_amendment(storage, number)
        if known != amendment:
            failed = f"it is missing, and {name} knows it" if known is None else f"it is not the one of {name}; {key}"
            yield damage("amendment", amendment_key(number), failed)


def _read_anew(storage: Storage, slot: int, log: Log) -> Entry | None:
    try:
        return read_entry(storage, slot, log)
    except SalusError as error:
        check_reach(storage, error)
        return Entry.corrupt(slot)
