"""`salus.recover`: brings unfinished episodes of dead recorders to an end (docs/spec.md, section 3.3)."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..codecs import encode_chunk
from ..errors import AlreadyExistsError, CorruptDataError
from ..labels import Outcome
from ..layout import PRIVATE, journal_folder, journal_key, number_in, record_key
from ..log.claims import Claim, read_claim
from ..log.entries import Entry
from ..log.publish import publish
from ..log.records import Record
from ..log.revisions import Revisions
from ..log.snapshot import load, read_record, write_checkpoint
from ..log.spool import spool_of
from ..log.unfinished import state_of, unfinished_slots
from ..opening import open as open_dataset
from ..schema import STEP, Schema
from ..shards import ShardInfo, ShardWriter
from ..storage import LocalStorage, Storage, StorageOptions
from .files import as_recording_error
from .replay import Clock, Journal, Part, check_finished, describe, open_parts, read_start, replay
from .salvaged_statistics import read_statistics

LOCK_WAIT_S = 1.0

Action = Literal["salvaged", "aborted", "left"]


@dataclass(frozen=True)
class RecoveredEpisode:
    """What became of one unfinished episode.

    Attributes:
        uid: Its name; `""` where its claim does not hold.
        slot: Its row on axis 0 of every array.
        action: `"salvaged"`: its steps are in the dataset now. `"aborted"`: it is not in the dataset, and never
            will be. `"left"`: as it was.
        num_steps: Steps saved.
        lost_steps: Steps, of all clocks, that its journal tells of and that were not whole; None where that is not
            known. What its recorder had not yet written when it died, at most half a second, nobody can count.
        started_ns: Wall clock when it was started, nanoseconds since 1970; 0 when not known.
        stopped_ns: Wall clock when its recorder wrote last; 0 when not known.
        reason: Why, in words.
        remarks: What else there is to know of it: a failure whose step was not saved, a feature without statistics.
    """

    uid: str
    slot: int
    action: Action
    num_steps: int = 0
    lost_steps: int | None = 0
    started_ns: int = 0
    stopped_ns: int = 0
    reason: str = ""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class RecoveryReport:
    """What `salus.recover` did, or would do.

    Attributes:
        episodes: One entry per unfinished episode, in the order of the slots.
        dry_run: Nothing was changed.
    """

    episodes: tuple[RecoveredEpisode, ...]
    dry_run: bool = False

    @property
    def salvaged(self) -> list[RecoveredEpisode]:
        """The episodes that were brought back."""
        return [episode for episode in self.episodes if episode.action == "salvaged"]

    @property
    def aborted(self) -> list[RecoveredEpisode]:
        """The episodes that were given up."""
        return [episode for episode in self.episodes if episode.action == "aborted"]

    @property
    def left(self) -> list[RecoveredEpisode]:
        """The episodes that stay unfinished."""
        return [episode for episode in self.episodes if episode.action == "left"]

    @property
    def something_was_lost(self) -> bool:
        """Whether steps that had been written could not be saved, or it is not known whether."""
        return any(episode.lost_steps != 0 for episode in self.episodes if episode.action != "left")

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "dry_run": self.dry_run,
            "something_was_lost": self.something_was_lost,
            "episodes": [asdict(episode) for episode in self.episodes],
        }


def recover(
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    dry_run: bool = False,
    storage_options: StorageOptions | None = None,
) -> RecoveryReport:
    """Bring back what recorders that died have left, as episodes with the status `"salvaged"`.

    They have the outcome and the metadata that were given before, and statistics. An episode whose process lives is
    left alone. One of which no step is whole is aborted, and so is one whose group commit (`recorder.vector`) was cut
    off: nobody was told that it is kept. An episode of another host can only be aborted, as its steps may be there: it
    is left, unless `force` is given. Running it again, also after a crash of its own, goes on where it stopped.

    Of a dataset in a bucket, what was not uploaded is in the spool of the machine that recorded it, and of the user who
    did: run it there, with the same SALUS_SPOOL. It uploads the rest.

    Args:
        path: The dataset.
        force: Also abort episodes of other hosts, and those whose journal or claim is not understood. A recorder that
            still lives on another host then gets an `EpisodeFencedError` at its commit.
        dry_run: Only say what would be done.
        storage_options: As `salus.open`.

    Returns:
        What became of each unfinished episode.

    Raises:
        NotFoundError, FormatError, CorruptDataError: As `salus.open`.
        RecordingError: The storage refused: the disk is full, or read-only. Nothing is lost; run it again.

    Cost: reads the unfinished episodes whole, and decodes them for their statistics.

    Thread-safety: safe, and from several processes: one of them recovers an episode, the others leave it and say so.
    """
    storage = open_dataset(path, storage_options=storage_options).storage
    snapshot = load(storage)
    recoverer = _Recoverer(storage, force=force, dry_run=dry_run)
    found = [recoverer.recover(slot) for slot in unfinished_slots(storage, snapshot)]
    report = RecoveryReport(tuple(episode for episode in found if episode is not None), dry_run)
    if not dry_run:
        sweep(storage)
        write_checkpoint(storage, publish(storage, known=snapshot))  # also what a crash left unpublished
    return report


@dataclass(frozen=True)
class Found:
    """What of an episode is whole.

    Attributes:
        journal: What its journal tells of.
        parts: By clock, the arrays of the segment that was being recorded.
    """

    journal: Journal
    parts: dict[str, list[Part]]

    @property
    def counts(self) -> dict[str, int]:
        """By clock, steps of that segment that are whole in all its arrays."""
        return {clock: min(part.count for part in parts) for clock, parts in self.parts.items()}

    @property
    def lengths(self) -> dict[str, int]:
        """By clock, steps that are whole."""
        return {clock: self.journal.clocks[clock].finished_steps + count for clock, count in self.counts.items()}

    @property
    def lost_steps(self) -> int:
        """Steps that the journal tells of and that are not whole."""
        return self.journal.num_steps - sum(self.lengths.values())


class _Recoverer:
    """Recovers one episode after another."""

    def __init__(self, storage: Storage, *, force: bool, dry_run: bool) -> None:
        self._storage = storage
        self._spool = spool_of(storage)
        self._revisions = Revisions(storage)
        self._force = force
        self._dry_run = dry_run

    def recover(self, slot: int) -> RecoveredEpisode | None:
        """Bring the episode in a slot to an end, if it may be; None where it ended by itself meanwhile."""
        try:
            claim = read_claim(self._storage, slot)
        except CorruptDataError as error:
            return RecoveredEpisode("", slot, "left", lost_steps=None, reason=str(error))
        if claim is None or _is_decided(self._storage, slot):
            return None
        try:
            state = state_of(self._spool, claim)
        except CorruptDataError as error:  # a link, or a named pipe, in the place of its journal
            return _left(claim, str(error))
        if state == "recording":
            return _left(claim, f"its process {claim.pid} is alive")
        if state == "other host":
            reason = f"it was recorded on the host {claim.host!r}, expected this one"
            if claim.is_of_this_host:
                reason = (
                    f"its journal is in the spool {claim.spool} of another machine or container with the name "
                    f"{claim.host!r}, or in one that was removed"
                )
            return self._leave_or_give_up(claim, reason, "recover it there, or give it up with force")
        if claim.spool not in ("", self._spool.url):
            reason = f"its journal is in the spool {claim.spool}, expected {self._spool.url}"
            return self._leave_or_give_up(claim, reason, "set SALUS_SPOOL")
        with _locked(self._spool, slot) as lock:
            if lock == "taken":
                return _left(claim, "another process recovers it")
            if _is_decided(self._storage, slot):
                return _left(claim, "another process recovered it in this moment")
            return self._take_over(claim) if lock == "ours" else self._without_journal(claim)

    def _leave_or_give_up(self, claim: Claim, reason: str, advice: str) -> RecoveredEpisode:
        if not self._force:
            return _left(claim, f"{reason}; {advice}")
        return self._abort(claim, reason, lost_steps=None)

    def _without_journal(self, claim: Claim) -> RecoveredEpisode:
        specs = self._revisions.recorded_arrays(0)
        first = (spec.shard_key(claim.slot, 0) for spec in specs)
        placed = next((key for key in first if _is_there(self._storage, key)), None)
        if placed is None or self._force or not claim.has_journal:
            reason = "no step was written"
            if placed is not None and not claim.has_journal:
                reason = "its commit by recorder.vector was cut off, so nobody was told that it is kept"
            return self._abort(claim, reason, lost_steps=0 if placed is None else None)
        return _left(claim, f"its shards are in place, but its journal and its record are gone; {placed}")

    def _take_over(self, claim: Claim) -> RecoveredEpisode:
        path = self._spool.path(journal_key(claim.slot))
        try:
            start = read_start(path)
            if start is None:
                return self._abort(claim, "no step was written")
            if (start["uid"], start["slot"]) != (claim.uid, claim.slot):
                raise CorruptDataError(f"journal: it is of episode {start['uid']}, expected {claim.uid}; {path}")
            arrays = self._revisions.recorded_arrays(start["schema_revision"])
            specs = {spec.name: spec for spec in arrays}
            schema = self._revisions.schema(start["schema_revision"])
            journal = replay(path, specs, kinds=schema.failure_kinds)
        except CorruptDataError as error:
            return self._abort(claim, str(error), lost_steps=None) if self._force else _left(claim, str(error))
        stopped_ns = path.stat().st_mtime_ns
        if journal.discarded is not None:
            reason = f"it was discarded{': ' if journal.discarded else ''}{journal.discarded}"
            return self._abort(claim, reason, stopped_ns=stopped_ns)
        try:
            spooled = check_finished(self._storage, self._spool, journal)
            parts = {
                name: open_parts(self._storage, self._spool, journal, clock) for name, clock in journal.clocks.items()
            }
        except CorruptDataError as error:
            return self._abort(claim, str(error), lost_steps=journal.num_steps, stopped_ns=stopped_ns)
        found = Found(journal, parts)
        if not found.lengths[STEP]:
            return self._abort(claim, "no step was whole", lost_steps=journal.num_steps, stopped_ns=stopped_ns)
        if not self._dry_run:
            try:
                for key, file in spooled.items():
                    self._bring(key, file)
            except (AlreadyExistsError, FileNotFoundError) as error:
                return _left(claim, f"another process wrote into it, or ended it, in this moment: {error}")
        return self._salvage(claim, found, stopped_ns, schema)

    def _salvage(
        self,
        claim: Claim,
        found: Found,
        stopped_ns: int,
        schema: Schema,
    ) -> RecoveredEpisode:
        journal, reason = found.journal, "its recorder died"
        num_steps = found.lengths[STEP]
        others = {name: clock for name, clock in journal.clocks.items() if name != STEP}
        outcome, remarks = _outcome_within(journal.outcome, num_steps)
        if not self._dry_run:
            statistics, failed = read_statistics(self._storage, schema, journal, found.parts, found.counts)
            remarks += [f"no statistics of {name!r}: {why}" for name, why in failed.items()]
            shards = [info for clock in journal.clocks.values() for infos in clock.finished for info in infos]
            try:
                for name, clock in journal.clocks.items():
                    count = found.counts[name]
                    shards += [self._put_shard(part, claim, clock, count) for part in found.parts[name] if count]
            except (AlreadyExistsError, FileNotFoundError) as error:
                return _left(claim, f"another process wrote into it, or ended it, in this moment: {error}")
            except OSError as error:
                raise as_recording_error(error, claim.uid) from error
            record = Record(
                slot=claim.slot,
                uid=claim.uid,
                status="salvaged",
                num_steps=num_steps,
                schema_revision=journal.start["schema_revision"],
                shards=tuple(shards),
                outcome=outcome,
                metadata=journal.metadata,
                timestamp_source=journal.clocks[STEP].timestamp_source,
                clock_lengths={name: found.lengths[name] for name in others},
                clock_sources={name: clock.timestamp_source for name, clock in others.items() if found.lengths[name]},
                dropped_images={
                    name: count for clock in journal.clocks.values() for name, count in clock.dropped_images.items()
                },
                started_ns=journal.start["started_ns"],
                ended_ns=stopped_ns,
                reason="; ".join([reason, *remarks]),
                statistics=statistics,
            )
            arrays = self._revisions.recorded_arrays(record.schema_revision)
            Entry.of(record, arrays)  # raises unless a reader will take it
            if not self._decide(record):
                return _left(claim, "another process recovered it in this moment")
        started_ns = journal.start["started_ns"]
        return RecoveredEpisode(
            claim.uid,
            claim.slot,
            "salvaged",
            num_steps,
            found.lost_steps,
            started_ns,
            stopped_ns,
            reason,
            tuple(remarks),
        )

    def _bring(self, key: str, file: Path) -> None:
        """Bring a shard from the spool to its key."""
        try:
            self._storage.put_new_file(key, file)
        except FileNotFoundError:
            if not _is_there(self._storage, key):  # else its recorder, which gave up, has brought it in this moment
                raise

    def _put_shard(self, part: Part, claim: Claim, clock: Clock, count: int) -> ShardInfo:
        """Put the shard of one array in place, or adopt the one that is."""
        spec, number = part.spec, len(clock.finished)
        key = spec.shard_key(claim.slot, number)
        if part.in_place and part.file is not None:
            self._storage.sync(key.rpartition("/")[0])
            return describe(key, part.file)
        folder = self._spool.checked_folder(f"{journal_folder(claim.slot)}/recovered")
        folder.mkdir(exist_ok=True)
        path = folder / f"{spec.name}.{number}.shard"
        path.unlink(missing_ok=True)  # of a recoverer that died
        shard = ShardWriter(path, key, spec.chunks_per_shard, spec.shard_identity(claim.uid, number))
        try:
            if part.file is not None:
                for step, place in enumerate(clock.open.places[spec.name][:count]):
                    shard.add(step, part.file.read(*place))
            else:
                rows = clock.open.values(spec.name, count)
                for chunk, start in enumerate(range(0, count, spec.chunk_steps)):
                    shard.add(chunk, encode_chunk(spec, rows[start : start + spec.chunk_steps]))
            info = shard.finish()
        finally:
            shard.close()
        self._storage.put_new_file(key, path)
        path.unlink(missing_ok=True)
        return info

    def _abort(self, claim: Claim, reason: str, *, lost_steps: int | None = 0, stopped_ns: int = 0) -> RecoveredEpisode:
        record = Record(
            claim.slot, claim.uid, "aborted", started_ns=claim.time_ns, ended_ns=stopped_ns, reason=f"recover: {reason}"
        )
        if not self._dry_run and not self._decide(record):
            return _left(claim, "another process decided it in this moment")
        return RecoveredEpisode(claim.uid, claim.slot, "aborted", 0, lost_steps, claim.time_ns, stopped_ns, reason)

    def _decide(self, record: Record) -> bool:
        try:
            self._storage.put_new(record_key(record.slot), record.to_bytes())
        except AlreadyExistsError:
            return False
        return True


def _outcome_within(outcome: Outcome, num_steps: int) -> tuple[Outcome, list[str]]:
    """What can be said of an outcome where so many steps are saved, and what has to be said beside it."""
    if outcome.step is None or outcome.step < num_steps:
        return outcome, []
    remark = f"the failure was at step {outcome.step}, after the {num_steps} that are saved: its step is unknown now"
    return replace(outcome, step=None), [remark]


def _left(claim: Claim, reason: str) -> RecoveredEpisode:
    return RecoveredEpisode(claim.uid, claim.slot, "left", lost_steps=None, started_ns=claim.time_ns, reason=reason)


def _is_there(storage: Storage, key: str) -> bool:
    if isinstance(storage, LocalStorage):
        return os.path.lexists(storage.path(key))  # whatever it is
    return storage.open_shard(key) is not None


def _is_decided(storage: Storage, slot: int) -> bool:
    try:
        return read_record(storage, slot) is not None
    except CorruptDataError:
        return True


@contextmanager
def _locked(spool: LocalStorage, slot: int) -> Iterator[Literal["ours", "taken", "absent"]]:
    """The exclusive lock on a journal, so that one process recovers it; waits for those who only look."""
    try:
        descriptor = spool.open_file(journal_key(slot))
    except FileNotFoundError:
        yield "absent"
        return
    deadline = time.monotonic() + LOCK_WAIT_S
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    yield "taken"
                    return
                time.sleep(0.01)
            else:
                break
        yield "ours"
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # also when a child forked meanwhile still has it open
        os.close(descriptor)


def sweep(storage: Storage) -> None:
    """Remove what is left of the work on decided episodes."""
    spool = spool_of(storage)
    for name in spool.list(f"{PRIVATE}/journal"):
        slot = number_in(name)
        if slot is None or not _is_decided(storage, slot):
            continue
        with suppress(CorruptDataError), _locked(spool, slot) as lock:  # links and pipes stay, for `verify` to name
            if lock != "taken":
                shutil.rmtree(spool.path(journal_folder(slot)), ignore_errors=True)  # harmless: it is decided
