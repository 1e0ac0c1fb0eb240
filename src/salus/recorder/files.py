"""The files of one episode in progress: shards that grow, the journal, and the commit.

Everything here runs on the recorder's writing thread, in the order of the protocol (docs/spec.md, section 3.2).
"""

from __future__ import annotations

import os
import shutil
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..codecs import encode_chunk
from ..errors import AlreadyExistsError, CommitUnknownError, EpisodeFencedError, RecordingError, SalusError
from ..layout import ArraySpec, journal_folder, record_key
from ..log.entries import Entry
from ..log.records import Record
from ..schema import STEP
from ..shards import ShardInfo, ShardWriter
from ..storage import LocalStorage, Storage
from .journal import JournalWriter
from .replay import progress_path
from .uploads import Upload, Uploads

FLUSH_INTERVAL_S = 0.5

_open_files: weakref.WeakSet[EpisodeFiles] = weakref.WeakSet()


@dataclass
class Pending:
    """Steps that were written to shards but not yet to the journal."""

    first: int = 0
    count: int = 0
    chunks: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    rows: dict[str, list[np.ndarray]] = field(default_factory=dict)


@dataclass
class _Clock:
    """What of the arrays on one clock is being written.

    Attributes:
        name: Of the clock.
        segment_steps: Steps per segment.
        segment: The segment that grows.
        pending: What of it is not in the journal.
        timestamp_source: Where the stamps come from; the journal tells a recoverer.
        dropped_images: Images that were dropped so far, by feature; the journal tells a recoverer.
    """

    name: str
    segment_steps: int
    segment: int = 0
    pending: Pending = field(default_factory=Pending)
    timestamp_source: str = "monotonic"
    dropped_images: Mapping[str, int] = field(default_factory=dict)

    def frame(self, kind: str) -> dict[str, Any]:
        """What every frame of the journal about this clock says."""
        return {
            "type": kind,
            **({} if self.name == STEP else {"clock": self.name}),
            "timestamp_source": self.timestamp_source,
            **({"dropped_images": dict(self.dropped_images)} if self.dropped_images else {}),
        }


class EpisodeFiles:
    """One episode on disk, from its claimed slot to its record.

    Args:
        storage: The dataset's.
        spool: Where the journal and the growing shards lie: of a local dataset, in it.
        specs: The arrays to write, without derived ones.
        slot: The claimed slot.
        start: The journal's first frame.
        uploads: Bring the shards from the spool to a bucket; None of a local dataset, where they are linked into place.
    """

    def __init__(
        self,
        storage: Storage,
        spool: LocalStorage,
        specs: Mapping[str, ArraySpec],
        slot: int,
        start: dict[str, Any],
        *,
        uploads: Uploads | None = None,
    ) -> None:
        self.slot = slot
        self._uid: str = start["uid"]
        self._storage = storage
        self._spool = spool
        self._uploads = uploads
        self._uploading: list[Upload] = []
        self._ends = self._dropped = self._hurries = False
        self._specs = specs
        self._clocks = {spec.clock: _Clock(spec.clock, spec.segment_steps) for spec in specs.values()}
        self._folder = spool.checked_folder(journal_folder(slot))
        self._shards: dict[str, ShardWriter] = {}
        self._finished: list[ShardInfo] = []
        self._noted = False
        self._flushed = time.monotonic()
        self._new_files = True
        self._folder.mkdir(parents=True)
        self._journal: JournalWriter | None = None
        _open_files.add(self)
        try:
            self._journal = JournalWriter(self._folder)
            self._journal.add({"type": "start", "slot": slot, **start})
        except OSError:
            self._remove()
            raise

    def write_steps(
        self,
        clock: str,
        first: int,
        rows: Mapping[str, np.ndarray],
        images: Mapping[str, list[bytes]],
        *,
        timestamp_source: str,
        dropped_images: Mapping[str, int],
    ) -> None:
        """Write consecutive steps of one segment of a clock.

        Args:
            clock: Its name.
            first: Number of the first of them in the episode.
            rows: Arrays with many steps per chunk: (n, *stored_step_shape).
            images: Arrays with one step per chunk: n encoded chunks.
            timestamp_source: Where the stamps come from.
            dropped_images: Images that were dropped up to these steps, by feature.
        """
        state = self._clocks[clock]
        state.timestamp_source, state.dropped_images = timestamp_source, dropped_images
        pending = state.pending
        if pending.count == 0:
            pending.first = first
        pending.count += len(next(iter(rows.values())))
        for name, values in rows.items():
            pending.rows.setdefault(name, []).append(values)
        for name, encoded in images.items():
            shard = self._shard(name)
            places = pending.chunks.setdefault(name, [])
            for offset, chunk in enumerate(encoded):
                places.append(shard.add((first + offset) % state.segment_steps, chunk))
        self.flush_if_due()

    def note(self, document: dict[str, Any]) -> None:
        """Add a frame about the episode to the journal: its outcome, or its metadata. Durable as soon as a step is."""
        self._add_frame(document)
        self._noted = True
        self.flush_if_due()

    @property
    def url(self) -> str:
        """Where it is written: the dataset, or the spool of one in a bucket."""
        return self._spool.url

    @property
    def _waits(self) -> bool:
        """Whether something is not durable yet."""
        return not self._ends and (self._noted or any(clock.pending.count for clock in self._clocks.values()))

    def flush_if_due(self) -> None:
        """Make what was written durable; asked twice per interval, so that no step waits longer than it."""
        if self._waits and time.monotonic() - self._flushed >= FLUSH_INTERVAL_S / 2:
            self._flush()

    def _flush(self) -> None:
        self._flush_steps()
        self._noted = False
        if self._journal is not None:
            self._journal.sync()
        if self._new_files:
            self._spool.make_folder(self._folder.parent)
            self._spool.sync_folder(self._folder, journal_folder(self.slot))
            self._spool.sync_folder(self._folder.parent, journal_folder(self.slot))
            self._new_files = False
        self._flushed = time.monotonic()

    def _flush_steps(self) -> None:
        clocks = [clock for clock in self._clocks.values() if clock.pending.count]
        if clocks:
            # Data before the journal that points to it.
            for shard in self._shards.values():
                shard.sync()
        for clock in clocks:
            self._add_steps(clock)

    def _add_steps(self, clock: _Clock) -> None:
        pending, clock.pending = clock.pending, Pending()
        rows = {name: np.concatenate(parts) for name, parts in pending.rows.items()}
        texts = {name: values.tolist() for name, values in rows.items() if self._specs[name].is_text}
        arrays = {name: values.tobytes() for name, values in rows.items() if name not in texts}
        frame = {
            **clock.frame("steps"),
            "first": pending.first,
            "count": pending.count,
            "chunks": {name: [list(place) for place in places] for name, places in pending.chunks.items()},
            "arrays": {name: len(body) for name, body in arrays.items()},
            "texts": texts,
        }
        self._add_frame(frame, b"".join(arrays[name] for name in sorted(arrays)))

    def _add_frame(self, document: dict[str, Any], rows: bytes = b"") -> None:
        if self._journal is not None:
            self._journal.add(document, rows)

    def finish_segment(self, clock: str, rows: Mapping[str, np.ndarray]) -> None:
        """Complete all shards of the current segment of a clock and put them in place, or on their way there.

        Args:
            clock: Its name.
            rows: Arrays with many steps per chunk: all steps of the segment, (n, *stored_step_shape).

        Raises:
            EpisodeFencedError: Another process put other bytes in place.
        """
        for name, values in rows.items():
            spec, shard = self._specs[name], self._shard(name)
            for chunk, start in enumerate(range(0, len(values), spec.chunk_steps)):
                shard.add(chunk, encode_chunk(spec, values[start : start + spec.chunk_steps]))
        infos, state = [], self._clocks[clock]
        complete = [shard for name, shard in self._shards.items() if self._specs[name].clock == clock]
        for shard in complete:
            infos.append(shard.finish())
            if self._uploads is None:
                self._place(shard)
        self._shards = {name: shard for name, shard in self._shards.items() if self._specs[name].clock != clock}
        if self._uploads is not None:
            # Their names as well are durable before the journal says that they are complete.
            self._spool.sync_folder(self._folder, journal_folder(self.slot))
            pairs = zip(complete, infos, strict=True)
            self._uploading += [self._uploads.add(info.key, shard.path, info.size) for shard, info in pairs]
            if self._dropped:
                self._uploads.drop(self._uploading)
        self._finished += infos
        # The shards hold these steps now, so the journal needs no copy of them.
        state.pending = Pending()
        frame = {
            **state.frame("segment"),
            "segment": state.segment,
            "count": len(next(iter(rows.values()))),
            "shards": [info.to_json() for info in infos],
        }
        self._add_frame(frame)
        state.segment += 1

    def wait_for_room(self) -> None:
        """Wait while too much waits in the spool, unless the episode ends.

        Raises:
            CommitUnknownError: The bucket was out of reach for as long as a commit may wait; it is waited for no more.
        """
        if self._uploads is None or self._uploads.has_room:
            return
        self._flush()  # nothing that was written waits with it
        try:
            self._uploads.wait_for_room(lambda: self._hurries)
        except CommitUnknownError:
            self._hurries = True
            raise

    def _place(self, shard: ShardWriter) -> None:
        try:
            self._storage.put_new_file(shard.key, shard.path)
        except AlreadyExistsError as error:
            raise EpisodeFencedError(f"slot {self.slot}: another process wrote its shards: {error}") from error
        shard.path.unlink(missing_ok=True)

    def commit(self, record: Record) -> Future[Entry]:
        """Write the record, which is the commit, and clean up; to a bucket as soon as all shards have arrived.

        Raises, or ends with:
            EpisodeFencedError: Another process decided the slot first.
            CommitUnknownError: The storage did not say, or the bucket was out of reach for too long.
        """
        if self._uploads is not None:
            self._flush()  # the spool has all of it, whatever becomes of the bucket
        body = replace(record, shards=tuple(self._finished)).to_bytes()
        return self._decided(body, self._uploading, "brings it up")

    def abort(self, record: Record) -> Future[Entry]:
        """Write an aborted record, and remove what was in progress. Finished shards stay for garbage collection."""
        if self._uploads is not None and self._journal is not None and self._journal.is_open:
            with suppress(OSError):  # a full disk: the record says it, if the bucket can be reached
                self._journal.add({"type": "discarded", "reason": record.reason or ""})
                self._journal.sync()
        return self._decided(record.to_bytes(), [], "marks it as aborted")

    def hurry(self, hurries: bool) -> None:
        """Whether the episode ends, and waits for no room in the spool. Called on any thread; waits for nothing."""
        self._hurries = hurries
        if hurries and self._uploads is not None:
            self._uploads.ask_again()

    def drop_uploads(self) -> None:
        """Upload nothing more: the episode will be aborted. Called on any thread; waits for nothing."""
        self._dropped = True
        if self._uploads is not None:
            self._uploads.drop(self._uploading)

    def _decided(self, body: bytes, uploading: list[Upload], else_recover: str) -> Future[Entry]:
        if self._uploads is not None:
            self._ends = True
            return self._uploads.decide(
                uploading, lambda: self._put_record(body), lambda lost: self._end(body, lost), else_recover=else_recover
            )
        decided: Future[Entry] = Future()
        decided.set_result(self._end(body, self._put_record(body)))
        return decided

    def _put_record(self, body: bytes) -> AlreadyExistsError | None:
        """Why it lost, where another process decided the slot first."""
        try:
            self._storage.put_new(record_key(self.slot), body)
        except AlreadyExistsError as error:
            return error
        return None

    def _end(self, body: bytes, lost: AlreadyExistsError | None) -> Entry:
        self._remove()
        if lost is not None:
            raise EpisodeFencedError(f"slot {self.slot}: another process decided it first: {lost}") from lost
        return Entry.of(Record.from_bytes(body, self.slot), sorted(self._specs.values(), key=lambda spec: spec.name))

    def _remove(self) -> None:
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)  # left-overs are harmless: the slot is decided

    def leave(self) -> None:
        """Make what was written durable, and give up the lock: `salus.recover` may bring the episode back."""
        if self._waits:
            self._flush()
        self.close()

    def close(self) -> None:
        """Give up all descriptors, and the lock on the journal."""
        if self._journal is not None:
            self._journal.close()
        for shard in self._shards.values():
            shard.close()

    def _shard(self, name: str) -> ShardWriter:
        shard = self._shards.get(name)
        if shard is None:
            spec = self._specs[name]
            segment = self._clocks[spec.clock].segment
            path = progress_path(self._spool, self.slot, name, segment)
            key, identity = spec.shard_key(self.slot, segment), spec.shard_identity(self._uid, segment)
            shard = ShardWriter(path, key, spec.chunks_per_shard, identity)
            self._shards[name] = shard
            self._new_files = True
        return shard


def as_recording_error(error: BaseException, uid: str, folder: str = "") -> RecordingError:
    """What went wrong on the writing thread in a folder, as the caller of `append` or `commit` gets it."""
    if isinstance(error, RecordingError):
        return type(error)(f"episode {uid}: {error}")
    if isinstance(error, SalusError):
        return RecordingError(f"episode {uid}: {error}")
    what = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
    path = error.filename or folder if isinstance(error, OSError) else ""
    where = f"; {path}" if path else ""
    return RecordingError(f"episode {uid}: writing failed: {what}{where}")


def _close_in_child() -> None:
    # A forked child shares the locks: held there, they would make a dead recorder look alive.
    for files in list(_open_files):
        files.close()


os.register_at_fork(after_in_child=_close_in_child)
