"""Snapshots: what a reader sees of the log, and how it is loaded from records, amendments and checkpoints.

A snapshot is built from immutable objects alone (docs/spec.md, sections 3.5 and 3.7): shapes, listings of shards and
index arrays never decide what is committed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from .. import documents
from ..errors import AlreadyExistsError, CorruptDataError
from ..layout import PRIVATE, SLOTS_PER_FOLDER, checkpoint_key, number_in, record_key
from ..readahead import read_ahead
from ..storage import Storage
from .amendments import Amendment, Overlay, read_amendments
from .entries import MAX_OPEN_SLOTS, Entries, Entry
from .records import Record
from .revisions import Revisions

FEW_SLOTS = 64
CHECKPOINT_MIN_RECORDS = 64
CHECKPOINT_GROWTH = 0.1
CHECKPOINT_MAX_NEW = 1024  # so that opening reads at most so many records one by one, however large the dataset


@dataclass(frozen=True)
class Snapshot:
    """A frozen set of records and amendments.

    Attributes:
        decided: Every slot with a record, as recorded, aborted and corrupt ones included, in the order of the slots.
        amendments: All amendments, in order.
    """

    decided: Entries = field(default_factory=Entries.of)
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
    def entries(self) -> Entries:
        """The episodes of this snapshot, as amended, in the order of their slots."""
        aborted = self.decided.has("status", "aborted")
        recorded = self.decided.take(~aborted) if aborted.any() else self.decided
        return recorded.amended(self.overlays)

    def visible(self, slot: int) -> Entry | None:
        """The episode in a slot, as amended; None where there is none, or none that a reader sees."""
        entry = self.decided.at(slot)
        if entry is None or entry.status in ("aborted", "corrupt"):
            return None
        overlay = self.overlays.get(entry.uid)
        if overlay is None:
            return entry
        return None if overlay.deleted or overlay.quarantine is not None else entry.amended(overlay)

    def longest(self, clock: str) -> int:
        """Steps of the longest episode on a clock, deleted ones included."""
        return int(self.decided.lengths(clock).max(initial=0))

    @cached_property
    def num_slots(self) -> int:
        """One more than the highest slot with a record."""
        return int(self.decided.numbers("slot").max(initial=-1)) + 1

    @cached_property
    def open_slots(self) -> list[int]:
        """Slots below `num_slots` without a readable record: still recording, left by a crash, or corrupt."""
        is_open = np.ones(self.num_slots, bool)
        is_open[self.decided.numbers("slot")[~self.decided.has("status", "corrupt")]] = False
        slots: list[int] = np.flatnonzero(is_open).tolist()
        return slots

    @property
    def num_facts(self) -> int:
        """Readable records and amendments: what a checkpoint saves reading."""
        return self.num_slots - len(self.open_slots) + len(self.amendments)

    def to_json(self) -> dict[str, Any]:
        """The content of a checkpoint or a tag."""
        return {
            "table": self.decided.to_json(),
            "amendments": [amendment.to_json() for amendment in self.amendments],
        }

    @classmethod
    def from_json(cls, document: dict[str, Any], *, key: str) -> Snapshot:
        """Raises CorruptDataError where the content is not that of a snapshot."""
        try:
            amendments = tuple(Amendment.from_json(value, key=key) for value in document["amendments"])
            return cls(Entries.from_json(document["table"], key=key), amendments)
        except (KeyError, TypeError) as error:
            raise CorruptDataError(f"snapshot: not understood: {error!r}; {key}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {"decided": self.decided, "amendments": self.amendments}  # the rest follows from them


def load(storage: Storage, known: Snapshot | None = None) -> Snapshot:
    """The log as it stands now, starting from `known`, else from the newest checkpoint that holds.

    Cost: one listing per 1,024 slots above what is known, one read per record that is new; of a bucket, many at once.

    Raises:
        CorruptDataError: An amendment does not hold.
    """
    if known is None:
        known = _newest_checkpoint(storage)[1]
    revisions = Revisions(storage)
    read = _read_entries(storage, _perhaps_decided(storage, known.open_slots), revisions)
    new = {slot: entry for slot, entry in read if entry is not None}
    while not _read_new_records(storage, known.num_slots, new, revisions):
        pass
    highest, num_records = max(new, default=-1), len(known.decided) + len(new)
    if highest >= num_records + MAX_OPEN_SLOTS:
        raise CorruptDataError(
            f"log: a record of slot {highest}, but only {num_records} records in all: no writer leaves such a gap; "
            f"{record_key(highest)}"
        )
    amendments = (*known.amendments, *read_amendments(storage, len(known.amendments)))
    return Snapshot(known.decided.merged(new.values()), amendments)


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


def read_entry(storage: Storage, slot: int, revisions: Revisions) -> Entry | None:
    """The row of the record of a slot, or None while it is undecided. A corrupt record keeps its place, as corrupt."""
    try:
        return read_sound_entry(storage, slot, revisions)
    except CorruptDataError:
        return Entry.corrupt(slot)


def read_sound_entry(storage: Storage, slot: int, revisions: Revisions) -> Entry | None:
    """The row of the record of a slot, or None while it is undecided.

    Raises:
        CorruptDataError: The record does not hold, or does not fit the schema revision that it names.
    """
    record = read_record(storage, slot)
    return None if record is None else Entry.of(record, revisions.recorded_arrays(record.schema_revision))


def log_folders(storage: Storage, first_slot: int = 0) -> Iterable[int]:
    """The folders of the log that may hold slots from `first_slot` on."""
    numbers = (number_in(name) for name in storage.list(f"{PRIVATE}/log"))
    return sorted(number for number in numbers if number is not None and number >= first_slot // SLOTS_PER_FOLDER)


def _perhaps_decided(storage: Storage, slots: list[int]) -> Iterable[int]:
    """Slots that had no record, without those that surely have none now: many are not asked for one by one."""
    if len(slots) <= FEW_SLOTS:
        return slots
    wanted, folders = set(slots), log_folders(storage, slots[0])
    listed = (number_in(name, suffix=".json") for n in folders for name in storage.list(f"{PRIVATE}/log/{n}"))
    return sorted(slot for slot in listed if slot in wanted)


def _read_new_records(storage: Storage, first_slot: int, decided: dict[int, Entry], revisions: Revisions) -> bool:
    for folder in log_folders(storage, first_slot):
        slots = (number_in(name, suffix=".json") for name in storage.list(f"{PRIVATE}/log/{folder}"))
        new = sorted(slot for slot in slots if slot is not None and slot >= first_slot and slot not in decided)
        # Another folder is not where the builder of keys would put it: no record of ours.
        new = [slot for slot in new if slot // SLOTS_PER_FOLDER == folder]
        for slot, entry in _read_entries(storage, new, revisions):
            if entry is None:
                return False  # listed, then absent: the listing is not to be trusted, so list again
            decided[slot] = entry
    return True


def _read_entries(storage: Storage, slots: Iterable[int], revisions: Revisions) -> Iterator[tuple[int, Entry | None]]:
    """Slots and their rows, in order; as many at once as the storage takes."""

    def read(slot: int) -> tuple[int, Entry | None]:
        return slot, read_entry(storage, slot, revisions)

    at_once = storage.requests_at_once
    if at_once == 1:
        return map(read, slots)
    return read_ahead(((1, partial(read, slot)) for slot in slots), threads=at_once, budget=at_once)


# --- checkpoints: a cache --------------------------------------------------------------------------------------


def checkpoint_due(num_facts: int, checkpointed: int) -> bool:
    """Whether `num_facts` are worth a checkpoint when the newest one holds `checkpointed`."""
    enough = min(CHECKPOINT_GROWTH * num_facts, CHECKPOINT_MAX_NEW)
    return num_facts >= CHECKPOINT_MIN_RECORDS and num_facts - checkpointed >= enough


def write_checkpoint(storage: Storage, snapshot: Snapshot) -> None:
    """Write a checkpoint when the log has grown enough since the newest one.

    Raises:
        RecordingError: The storage refused.
    """
    number, newest = _newest_checkpoint(storage)
    if not checkpoint_due(snapshot.num_facts, newest.num_facts):
        return
    while True:
        sync_log(storage)
        body = documents.seal(snapshot.to_json())
        try:
            storage.put_new(checkpoint_key(number + 1), body)
        except AlreadyExistsError:
            # Another was faster. What this process knows may be older than what that one saw: read all anew.
            snapshot, number = load(storage, Snapshot()), number + 1
        else:
            return


def _newest_checkpoint(storage: Storage) -> tuple[int, Snapshot]:
    names = storage.list(f"{PRIVATE}/checkpoints")
    numbers = sorted((n for name in names if (n := number_in(name, suffix=".json")) is not None), reverse=True)
    for number in numbers:
        snapshot = _read_checkpoint(storage, number)
        if snapshot is not None:
            return numbers[0], snapshot
    return (numbers[0] if numbers else -1), Snapshot()


def _read_checkpoint(storage: Storage, number: int) -> Snapshot | None:
    key = checkpoint_key(number)
    body = storage.get(key)
    try:
        return None if body is None else Snapshot.from_json(documents.unseal(body, key=key), key=key)
    except CorruptDataError:
        return None  # only a cache: the records say the same
