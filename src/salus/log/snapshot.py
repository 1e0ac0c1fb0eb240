"""Snapshots: what a reader sees of the log, and how it is loaded from records, amendments and checkpoints.

A snapshot is built from immutable objects alone (docs/spec.md, sections 3.5 and 3.7): shapes, listings of shards and
index arrays never decide what is committed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from numcodecs import zstd

from .. import documents
from ..codecs import declared_size
from ..errors import AlreadyExistsError, CorruptDataError
from ..labels import Outcome
from ..layout import PRIVATE, SLOTS_PER_FOLDER, checkpoint_key, number_in, record_key
from ..storage import Storage
from .amendments import Amendment, Overlay, read_amendments
from .records import Record

CHECKPOINT_MIN_RECORDS = 64
CHECKPOINT_GROWTH = 0.1
MAX_OPEN_SLOTS = 10**6


class Entry(NamedTuple):
    """One row of the episode table.

    Attributes:
        uid: Immutable name of the episode.
        slot: Row on axis 0 of every array.
        status: `"committed"`, `"salvaged"`, or `"corrupt"` where the record does not hold (`"aborted"` rows are not
            in the table).
        num_steps: Length; 0 when corrupt.
        result, failure_kind, failure_step: The outcome in force.
        task: `metadata["task"]` where it is text.
        started_ns, ended_ns: Wall clock of the recording, nanoseconds since 1970.
        schema_revision: The revision that it was recorded under.
        stored_bytes: Bytes of its shards.
        digest: Digest of the record.
    """

    uid: str
    slot: int
    status: str
    num_steps: int
    result: str
    failure_kind: str | None
    failure_step: int | None
    task: str | None
    started_ns: int
    ended_ns: int
    schema_revision: int
    stored_bytes: int
    digest: str

    @property
    def outcome(self) -> Outcome:
        """The outcome in force."""
        return Outcome(self.result, self.failure_kind, self.failure_step)  # type: ignore[arg-type]  # checked when read

    @classmethod
    def of(cls, record: Record) -> Entry:
        """The row of a record."""
        task = record.metadata.get("task")
        return cls(
            record.uid,
            record.slot,
            record.status,
            record.num_steps,
            record.outcome.result,
            record.outcome.kind,
            record.outcome.step,
            task if isinstance(task, str) else None,
            record.started_ns,
            record.ended_ns,
            record.schema_revision,
            sum(shard.size for shard in record.shards),
            record.digest,
        )

    @classmethod
    def corrupt(cls, slot: int) -> Entry:
        """The row of a slot whose record does not hold."""
        return cls(f"corrupt-slot-{slot}", slot, "corrupt", 0, "unknown", None, None, None, 0, 0, 0, 0, "")

    def amended(self, overlay: Overlay) -> Entry:
        """The row with the amendments in force."""
        changed = self
        if overlay.outcome is not None:
            outcome = overlay.outcome
            changed = changed._replace(result=outcome.result, failure_kind=outcome.kind, failure_step=outcome.step)
        for key, value in overlay.metadata:
            if key == "task":
                changed = changed._replace(task=value if isinstance(value, str) else None)
        return changed


@dataclass(frozen=True)
class Snapshot:
    """A frozen set of records and amendments.

    Attributes:
        decided: Entry of every slot with a record, as recorded, by slot.
        amendments: All amendments, in order.
    """

    decided: dict[int, Entry] = field(default_factory=dict)
    amendments: tuple[Amendment, ...] = ()

    @cached_property
    def overlays(self) -> dict[str, Overlay]:
        """What the amendments say, by uid."""
        overlays: dict[str, Overlay] = {}
        for amendment in self.amendments:
            for uid in amendment.uids:
                overlays[uid] = overlays.get(uid, Overlay()).amended(amendment)
        return overlays

    @cached_property
    def entries(self) -> list[Entry]:
        """The episodes of this snapshot, as amended, in the order of their slots."""
        overlays, entries = self.overlays, []
        for slot in sorted(self.decided):
            entry = self.decided[slot]
            if entry.status == "aborted":
                continue
            overlay = overlays.get(entry.uid)
            if overlay is None:
                entries.append(entry)
            elif not overlay.deleted:
                entries.append(entry.amended(overlay))
        return entries

    def visible(self, slot: int) -> Entry | None:
        """The episode in a slot, as amended; None where there is none, or none that a reader sees."""
        entry = self.decided.get(slot)
        if entry is None or entry.status in ("aborted", "corrupt"):
            return None
        overlay = self.overlays.get(entry.uid)
        if overlay is None:
            return entry
        return None if overlay.deleted else entry.amended(overlay)

    @cached_property
    def longest(self) -> int:
        """Steps of the longest episode, deleted ones included."""
        return max((entry.num_steps for entry in self.decided.values()), default=0)

    @cached_property
    def num_slots(self) -> int:
        """One more than the highest slot with a record."""
        return max(self.decided, default=-1) + 1

    @cached_property
    def open_slots(self) -> list[int]:
        """Slots below `num_slots` without a readable record: still recording, left by a crash, or corrupt."""
        return [slot for slot in range(self.num_slots) if not self._holds(slot)]

    @property
    def num_facts(self) -> int:
        """Readable records and amendments: what a checkpoint saves reading."""
        return self.num_slots - len(self.open_slots) + len(self.amendments)

    def _holds(self, slot: int) -> bool:
        entry = self.decided.get(slot)
        return entry is not None and entry.status != "corrupt"

    def to_json(self) -> dict[str, Any]:
        """The columns of all readable entries, and the amendments: the content of a checkpoint or a tag."""
        entries = [self.decided[slot] for slot in sorted(self.decided) if self._holds(slot)]
        corrupt = [slot for slot in sorted(self.decided) if not self._holds(slot)]
        columns = zip(*entries, strict=True) if entries else ([] for _ in Entry._fields)
        return {
            "num_slots": self.num_slots,
            "open_slots": self.open_slots,
            "corrupt_slots": corrupt,
            "columns": {name: list(values) for name, values in zip(Entry._fields, columns, strict=True)},
            "amendments": [amendment.to_json() for amendment in self.amendments],
        }

    @classmethod
    def from_json(cls, document: dict[str, Any], *, key: str) -> Snapshot:
        """Raises CorruptDataError where the content is not that of a snapshot."""
        try:
            columns = [document["columns"][name] for name in Entry._fields]
            entries = list(map(Entry._make, zip(*columns, strict=True)))
            amendments = tuple(Amendment.from_json(value, key=key) for value in document["amendments"])
            return cls({entry.slot: entry for entry in entries}, amendments)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptDataError(f"snapshot: not understood: {error!r}; {key}") from error


def load(storage: Storage, known: Snapshot | None = None) -> Snapshot:
    """The log as it stands now, starting from `known`, else from the newest checkpoint that holds.

    Cost: one listing per 1,024 slots above what is known, one read per record that is new.

    Raises:
        CorruptDataError: An amendment does not hold.
    """
    if known is None:
        known = _newest_checkpoint(storage)[1]
    decided = dict(known.decided)
    for slot in known.open_slots:
        entry = read_entry(storage, slot)
        if entry is not None:
            decided[slot] = entry
    while not _read_new_records(storage, known.num_slots, decided):
        pass
    highest = max(decided, default=-1)
    if highest >= len(decided) + MAX_OPEN_SLOTS:
        raise CorruptDataError(
            f"log: a record of slot {highest}, but only {len(decided)} records in all: no writer leaves such a gap; "
            f"{record_key(highest)}"
        )
    amendments = (*known.amendments, *read_amendments(storage, len(known.amendments)))
    return Snapshot(decided, amendments)


def sync_log(storage: Storage, slots: Iterable[int] | None = None) -> None:
    """Make durable what was just read of the log, before anything is built from it that must not outlive it.

    Args:
        storage: The dataset.
        slots: The records that matter; all, unless given.

    Raises:
        CommitUnknownError: The storage did not confirm it.
    """
    folders = log_folders(storage) if slots is None else sorted({slot // SLOTS_PER_FOLDER for slot in slots})
    for folder in ("schema", "amendments", *(f"log/{number}" for number in folders)):
        storage.sync(f"{PRIVATE}/{folder}")


def read_record(storage: Storage, slot: int) -> Record | None:
    """The record of a slot, or None while it is undecided.

    Raises:
        CorruptDataError: It does not hold.
    """
    body = storage.get(record_key(slot))
    return None if body is None else Record.from_bytes(body, slot)


def read_entry(storage: Storage, slot: int) -> Entry | None:
    """As `read_record`, but a corrupt record keeps its place, as corrupt."""
    try:
        record = read_record(storage, slot)
    except CorruptDataError:
        return Entry.corrupt(slot)
    return None if record is None else Entry.of(record)


def log_folders(storage: Storage, first_slot: int = 0) -> Iterable[int]:
    """The folders of the log that may hold slots from `first_slot` on."""
    numbers = (number_in(name) for name in storage.list(f"{PRIVATE}/log"))
    return sorted(number for number in numbers if number is not None and number >= first_slot // SLOTS_PER_FOLDER)


def _read_new_records(storage: Storage, first_slot: int, decided: dict[int, Entry]) -> bool:
    for folder in log_folders(storage, first_slot):
        slots = (number_in(name, suffix=".json") for name in storage.list(f"{PRIVATE}/log/{folder}"))
        for slot in sorted(slot for slot in slots if slot is not None and slot >= first_slot and slot not in decided):
            if slot // SLOTS_PER_FOLDER != folder:
                continue  # not where the builder of keys would put it: no record of ours
            entry = read_entry(storage, slot)
            if entry is None:
                return False  # listed, then absent: the listing is not to be trusted, so list again
            decided[slot] = entry
    return True


# --- checkpoints: a cache --------------------------------------------------------------------------------------


def write_checkpoint(storage: Storage, snapshot: Snapshot) -> None:
    """Write a checkpoint when the log has grown by a tenth since the newest one.

    Raises:
        RecordingError: The storage refused.
    """
    number, newest = _newest_checkpoint(storage)
    grown = snapshot.num_facts - newest.num_facts
    if snapshot.num_facts < CHECKPOINT_MIN_RECORDS or grown < CHECKPOINT_GROWTH * snapshot.num_facts:
        return
    while True:
        sync_log(storage)
        body = bytes(zstd.compress(documents.seal(snapshot.to_json()), 3))
        try:
            storage.put_new(checkpoint_key(number + 1), body)
        except AlreadyExistsError:
            # Another was faster. What this process knows may be older than what that one saw: read all anew.
            snapshot, number = load(storage, Snapshot()), number + 1
        else:
            return


def _newest_checkpoint(storage: Storage) -> tuple[int, Snapshot]:
    names = storage.list(f"{PRIVATE}/checkpoints")
    numbers = sorted((n for name in names if (n := number_in(name, suffix=".json.zst")) is not None), reverse=True)
    for number in numbers:
        snapshot = _read_checkpoint(storage, number)
        if snapshot is not None:
            return numbers[0], snapshot
    return (numbers[0] if numbers else -1), Snapshot()


def _read_checkpoint(storage: Storage, number: int) -> Snapshot | None:
    key = checkpoint_key(number)
    body = storage.get(key)
    declared = declared_size(body) if body is not None else None
    if body is None or declared is None or declared > documents.MAX_BYTES:
        return None
    try:
        return Snapshot.from_json(documents.unseal(bytes(zstd.decompress(body)), key=key), key=key)
    except (CorruptDataError, RuntimeError):
        return None  # only a cache: the records say the same
