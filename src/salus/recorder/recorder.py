"""The recorder: starts episodes, owns the writing thread, and keeps plain Zarr readers up to date."""

from __future__ import annotations

import functools
import math
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, get_args

from ..codecs import check_codecs
from ..dataset import Dataset
from ..errors import InvalidInputError, RecordingError, SalusError, noted_on
from ..labels import Outcome, Result
from ..layout import ArraySpec, record_key
from ..log.claims import claim_slot
from ..log.entries import Entry
from ..log.publish import publish
from ..log.records import Record
from ..log.snapshot import Snapshot, checkpoint_due, write_checkpoint
from ..log.spool import make_spool, spool_of
from ..metadata import check_metadata
from ..schema import STEP, Schema
from ..statistics import EpisodeStatistics
from ..storage import LocalStorage, Storage
from .background import Background, QueueStatus
from .checking import StepChecker, checkers, whole_episode
from .episode_writer import EpisodeWriter
from .files import EpisodeFiles
from .interrupts import INTERRUPTS, OnInterrupt, watch
from .pool import BufferPool
from .stream import WhenFull, Writing
from .uids import new_uid
from .uploads import Uploads, UploadStatus
from .vector import VectorRecorder

PUBLISH_INTERVAL_S = 1.0


class Recorder:
    """Records episodes into a dataset: any number at once, from any number of recorders and processes.

    Args:
        dataset: Opened for writing: `salus.create(...)`, or `salus.open(..., mode="a")`.
        bgr: Names of RGB image features whose images arrive as BGR (OpenCV); they are stored as RGB.
        queue_bytes: Bytes of steps that may wait for the encoder and the disk; each thread that appends may exceed them
            by one step.
        threads: Encoding threads.
        on_interrupt: What Ctrl-C or SIGTERM does to the episodes that are being recorded in a `with` block: `"abort"`
            them, or `"salvage"` them: keep their steps, with the status `"salvaged"`. stderr says which. A commit that
            was under way is finished.
        when_full: What `append` does with a step for which there is no room. `"block"` waits: nothing is lost, the
            robot's loop is late. `"raise"` refuses the step with a `QueueFullError`. `"drop"` keeps its small features
            and drops its images, which `<name>.valid` then marks as missing; every image feature must be nullable.
            `record_episode` always waits.
        spool_bytes: Of a dataset in a bucket: bytes of finished shards that may wait on this machine until they are
            uploaded. Beyond it writing waits, and then `queue_bytes` and `when_full` say what `append` does.
        upload_within_s: Of a dataset in a bucket: how long `commit` waits for the bucket, in seconds, before it raises
            a `CommitUnknownError`. What was recorded is kept on this machine then, for `salus.recover`.

    Raises:
        InvalidInputError: The dataset is read-only, `bgr` names no RGB image, a codec that the schema names is not
            there, or `when_full` is unknown or needs nullable features.
        MissingExtraError: The schema has JPEG images, and the extra `jpeg` is not installed.

    Use it as a context manager, or call `close()`. Inside the block, in the main thread, and where the program has no
    handler of its own, SIGTERM ends the program as `sys.exit(143)` does: blocks are left, cleaning up runs.
    Thread-safety: safe.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        bgr: Collection[str] = (),
        queue_bytes: int = 256 * 2**20,
        threads: int = 2,
        on_interrupt: OnInterrupt = "abort",
        when_full: WhenFull = "block",
        spool_bytes: int = 20 * 10**9,
        upload_within_s: float = 600.0,
    ) -> None:
        if not isinstance(dataset, Dataset):
            raise InvalidInputError(
                f"recorder: got {type(dataset).__name__}, expected a dataset; salus.open(path, mode='a')"
            )
        dataset.check_writable("record")
        if threads < 1 or queue_bytes < 1:
            raise InvalidInputError(f"recorder: got threads={threads}, queue_bytes={queue_bytes}, expected at least 1")
        if spool_bytes < 1 or not 0 < upload_within_s < math.inf:
            raise InvalidInputError(
                f"recorder: got spool_bytes={spool_bytes}, upload_within_s={upload_within_s}, expected numbers above 0"
            )
        if on_interrupt not in get_args(OnInterrupt):
            raise InvalidInputError(f'on_interrupt: got {on_interrupt!r}, expected "abort" or "salvage"')
        if isinstance(bgr, str):
            raise InvalidInputError(f"bgr: got the text {bgr!r}, expected several names, such as [{bgr!r}]")
        self._schema = dataset.schema
        self._revision = dataset.schema_revision
        self._storage = dataset.storage
        self._checkers = checkers(self._schema, bgr)
        self._specs = {name: spec for checker in self._checkers.values() for name, spec in checker.specs.items()}
        check_codecs(self._specs.values())
        _check_when_full(when_full, self._schema, self._specs)
        self._when_full = when_full
        self._queue_bytes = queue_bytes
        self._pools: dict[str, BufferPool] | None = None
        self._open: dict[str, EpisodeWriter] = {}
        self._vectors: list[VectorRecorder] = []
        self._threads = threads
        self._lock = threading.Lock()
        self._claiming = threading.Lock()  # of its own: a claim may wait for a bucket, and nobody else with it
        self._next_slot = 0
        self._closed = False
        self._on_interrupt: OnInterrupt = on_interrupt
        self._watched = False
        self._pid = os.getpid()
        self._spool = spool_of(self._storage)
        self._spooled: dict[str, str] = {}
        self._uploads = None
        if self._spool is not self._storage:
            self._spooled = {"spool": self._spool.url, "spool_id": _make_spool(self._spool)}
            self._uploads = Uploads(self._storage, self._spool, capacity_bytes=spool_bytes, within_s=upload_within_s)
        self._background = Background(budget_bytes=queue_bytes, threads=threads, tick=_flusher(weakref.ref(self)))
        self._publisher = _Publisher(self._storage)
        self._abandoned = weakref.finalize(
            self, _abandon, self._background, self._publisher, self._uploads, self._open, self._pid
        )

    @property
    def schema(self) -> Schema:
        """The schema that episodes are recorded under."""
        return self._schema

    @property
    def queue_status(self) -> QueueStatus:
        """What waits for the encoder and the disk, and what waiting cost so far."""
        return self._background.status

    @property
    def upload_status(self) -> UploadStatus | None:
        """What still has to reach the bucket, and how that goes; None of a local dataset."""
        return None if self._uploads is None else self._uploads.status

    @property
    def open_episodes(self) -> list[EpisodeWriter]:
        """The episodes that were started and have not ended."""
        with self._lock:
            return [episode for episode in self._open.values() if episode.state == "recording"]

    def episode(self, metadata: Mapping[str, Any] | None = None, **more: Any) -> EpisodeWriter:
        """Start an episode as a block: `with recorder.episode(task="...") as episode:`. Same as `start`."""
        return self.start(metadata, **more)

    def start(self, metadata: Mapping[str, Any] | None = None, **more: Any) -> EpisodeWriter:
        """Start an episode.

        Args:
            metadata: JSON values by key; `task` becomes a column of the episode table.
            **more: Further metadata, by keyword.

        Raises:
            InvalidInputError: Metadata that has no JSON text.
            RecordingError: The recorder is closed, or the storage refused.
        """
        self._check_open("start")
        merged = _merged(metadata, more)
        with self._lock:
            if self._pools is None:
                self._pools = {clock: self._make_pool(checker) for clock, checker in self._checkers.items()}
        return self._start(merged, self._pools)

    def _make_pool(self, checker: StepChecker) -> BufferPool:
        """Buffers for a second of steps, or what the queue takes of it: the robot's loop meets no new memory."""
        specs = {name: spec for name, spec in checker.specs.items() if spec.chunk_steps == 1 and not spec.derived}
        step_bytes, rate_hz = (
            max(sum(spec.chunk_bytes for spec in specs.values()), 1),
            self._schema.rate_of(checker.clock),
        )
        return BufferPool(specs, prepared=min(math.ceil(rate_hz), self._queue_bytes // step_bytes) + 1)

    def _start(self, metadata: dict[str, Any], pools: Mapping[str, BufferPool]) -> EpisodeWriter:
        uid = new_uid()
        with self._claiming:
            slot = claim_slot(self._storage, uid, hint=self._next_slot, spool=self._spooled)
            self._next_slot = slot + 1
        start = {
            "uid": uid,
            "schema_revision": self._revision,
            "metadata": metadata,
            "started_ns": time.time_ns(),
        }
        specs = {name: spec for name, spec in self._specs.items() if not spec.derived}
        try:
            files = EpisodeFiles(self._storage, self._spool, specs, slot, start, uploads=self._uploads)
        except OSError as error:
            with suppress(SalusError):  # so that the slot does not look as if somebody recorded into it
                self._storage.put_new(record_key(slot), Record(slot, uid, "aborted", reason=str(error)).to_bytes())
            raise RecordingError(f"start: {error.strerror}; {error.filename or self._spool.url}") from error
        episode = EpisodeWriter(
            slot=slot,
            schema=self._schema,
            revision=self._revision,
            metadata=metadata,
            checkers=self._checkers,
            pools=pools,
            writing=Writing(uid, self._background, files, EpisodeStatistics(self._schema), self._when_full),
            on_end=self._ended,
            on_interrupt=self._on_interrupt,
        )
        with self._lock:
            self._open[uid] = episode
        return episode

    def record_episode(
        self,
        arrays: Mapping[str, Any],
        metadata: Mapping[str, Any] | None = None,
        *,
        outcome: Outcome | Result | None = None,
        timestamp_ns: Any = None,
        **more: Any,
    ) -> Entry:
        """Record a whole episode that is there as arrays. Durable on return.

        Args:
            arrays: Feature name to array (T, *shape of a step), T steps of its clock; of a nullable feature also
                `<name>.valid`, bool (T,). T of `step` is at least 1; another clock may have 0, or be left out.
            metadata: JSON values by key.
            outcome: How it ended; give `Outcome("failure", kind, step)`, as without a step no label is known.
            timestamp_ns: int64 (T,), increasing; or these by clock, where there are more. Without it the stamps are
                made from the declared rates, and the episode says so (`timestamp_source == "rate"`).
            **more: Further metadata, by keyword.

        Returns:
            The episode's row in the episode table.

        Raises:
            InvalidInputError: Every problem of the arrays. Nothing was recorded.
            RecordingError: As `EpisodeWriter.commit`.
        """
        self._check_open("record_episode")
        checked = _merged(metadata, more)
        parts = whole_episode(self._checkers, self._schema, arrays, timestamp_ns)
        ending = Outcome.of(outcome)
        ending.check(num_steps=parts[STEP].num_steps, kinds=self._schema.failure_kinds)
        episode = self._start(checked, dict.fromkeys(self._checkers, BufferPool({}, prepared=0)))
        for clock, part in parts.items():
            episode.add_whole(clock, part.stored, part.num_steps, timestamp_source=part.timestamp_source)
        return episode.commit_or_discard(ending)

    def vector(self, num_envs: int) -> VectorRecorder:
        """Record from many environments at once, such as those of a simulator that steps in batches.

        Args:
            num_envs: Number of environments, at least 1.

        Raises:
            InvalidInputError: Not such a number.
            RecordingError: The recorder is closed.
        """
        self._check_open("vector")
        if self._schema.clocks:
            clocks = ", ".join(map(repr, self._schema.clocks))
            raise InvalidInputError(
                f"vector: the schema has the clocks {clocks}, expected features on 'step' alone: a batch has one step "
                "of each environment; record such episodes with recorder.start()"
            )
        vector = VectorRecorder(
            num_envs=num_envs,
            storage=self._storage,
            schema=self._schema,
            revision=self._revision,
            checker=self._checkers[STEP],
            threads=self._threads,
            on_commit=self._publisher.notify,
            check_open=self._check_open,
        )
        with self._lock:  # those that are closed already have nothing to close, and would only take memory
            self._vectors = [each for each in self._vectors if not each.is_closed] + [vector]
        return vector

    def _ended(self, episode: EpisodeWriter) -> None:
        with self._lock:
            self._open.pop(episode.uid, None)
        self._publisher.notify()

    def flush_if_due(self) -> None:
        """Called on the writing thread, about four times a second."""
        for episode in self.open_episodes:
            episode.flush_if_due()

    def _check_open(self, what: str) -> None:
        if os.getpid() != self._pid:
            raise RecordingError(
                f"{what}: the recorder was made in another process; a forked child opens the dataset and makes a "
                "Recorder of its own"
            )
        if self._closed:
            raise RecordingError(f"{what}: the recorder is closed")

    def close(self) -> None:
        """Finish writing, publish for plain Zarr readers, and stop. Twice is fine.

        Raises:
            RecordingError: Episodes were still open: they are aborted, and the error says what was lost; or publishing
                failed, which loses nothing.
            CommitUnknownError: Of an open episode, the storage did not confirm something: it is left to
                `salus.recover`.
        """
        lost = self._close("the recorder was closed")
        if lost:
            count, steps = len(lost), sum(episode.num_steps for episode in lost)
            what = "1 episode was still open and is" if count == 1 else f"{count} episodes were still open and are"
            raise RecordingError(f"close: {what} lost ({steps} steps); end each with commit() or discard() before")

    def _close(self, reason: str, interrupt: BaseException | None = None) -> list[EpisodeWriter]:
        if self._closed or os.getpid() != self._pid:
            return []
        self._closed = True
        if self._watched:
            watch.close()
        try:
            return self._end_all(reason, interrupt)
        finally:
            if self._watched:
                watch.stop()

    def _end_all(self, reason: str, interrupt: BaseException | None) -> list[EpisodeWriter]:
        self._abandoned.detach()
        still_open, failures = self.open_episodes, []
        ends: list[Callable[[], None]] = [
            functools.partial(episode.discard_or_leave, reason=reason)
            if interrupt is None
            else functools.partial(episode.end_interrupted, interrupt)
            for episode in still_open
        ]
        ends += [vector.close for vector in self._vectors]
        ends += [self._background.close, self._publisher.close]
        ends += [] if self._uploads is None else [self._uploads.close]
        for end in ends:
            try:
                end()
            except SalusError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return still_open

    def __enter__(self) -> Recorder:
        self._watched = self._watched or watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            with noted_on(error, "closing the recorder failed as well"):
                self._close(f"{type(error).__name__}: {error}", error if isinstance(error, INTERRUPTS) else None)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self.open_episodes)} open episodes"
        return f"<salus.Recorder {self._storage.url}: {state}>"


class _Publisher:
    """Publishes at most about once a second, on a thread of its own, and once more at the end."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._wanted = threading.Event()
        self._stop = threading.Event()
        self._snapshot: Snapshot | None = None
        self._checkpointed = 0
        self._thread = threading.Thread(target=self._run, name="salus-publish", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        self._wanted.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wanted.wait()
            if self._stop.wait(PUBLISH_INTERVAL_S):
                return
            self._wanted.clear()
            try:
                self._snapshot = publish(self._storage, known=self._snapshot)
                if checkpoint_due(self._snapshot.num_facts, self._checkpointed):
                    write_checkpoint(self._storage, self._snapshot)
                    self._checkpointed = self._snapshot.num_facts
            except SalusError:
                # Nothing is lost by being behind: the next round, or the last one in `close`, does it or raises.
                self._wanted.set()

    def stop(self) -> None:
        self._stop.set()
        self._wanted.set()

    def close(self) -> None:
        self.stop()
        self._thread.join()
        self._snapshot = publish(self._storage, known=self._snapshot)
        write_checkpoint(self._storage, self._snapshot)


def _abandon(
    background: Background,
    publisher: _Publisher,
    uploads: Uploads | None,
    episodes: dict[str, EpisodeWriter],
    pid: int,
) -> None:
    """The recorder was dropped, or the program ended, without `close()`: say so, and what is lost."""
    if os.getpid() != pid:
        return
    lost = [episode for episode in episodes.values() if episode.state == "recording"]
    what = "".join(f"; episode {episode.uid} was never committed: {episode.num_steps} steps" for episode in lost)
    warnings.warn(f"salus: a recorder was not closed (use it in a `with` block){what}", ResourceWarning, stacklevel=2)
    if lost:  # a ResourceWarning is silent by default, and lost data must not be
        sys.stderr.write(f"salus: a recorder was not closed{what}; call commit(), or use a `with` block\n")
    publisher.stop()
    background.stop()
    if uploads is not None:
        uploads.stop()


def _flusher(recorder: weakref.ref[Recorder]) -> Any:
    def flush() -> None:
        alive = recorder()
        if alive is not None:
            alive.flush_if_due()

    return flush


def _merged(metadata: Mapping[str, Any] | None, more: Mapping[str, Any]) -> dict[str, Any]:
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InvalidInputError(
            f"metadata: got {type(metadata).__name__} {metadata!r}, expected a mapping or keywords, such as task='...'"
        )
    for name in more.keys() & {"outcome", "timestamp_ns"}:
        where = {"outcome": "commit()", "timestamp_ns": "append()"}[name]
        raise InvalidInputError(f"metadata: {name!r} is no metadata here; give it to {where}")
    return check_metadata({**(metadata or {}), **more})


def _make_spool(spool: LocalStorage) -> str:
    try:
        return make_spool(spool)
    except OSError as error:
        raise RecordingError(
            f"recorder: the spool on this machine cannot be made: {error.strerror or error}; set SALUS_SPOOL to a "
            f"folder on a local disk; {spool.url}"
        ) from error


def _check_when_full(when_full: str, schema: Schema, specs: Mapping[str, ArraySpec]) -> None:
    if when_full not in get_args(WhenFull):
        expected = ", ".join(map(repr, get_args(WhenFull)))
        raise InvalidInputError(f"when_full: got {when_full!r}, expected one of {expected}")
    large = [name for name in schema.recorded if specs[name].chunk_steps == 1]
    needed = [name for name in large if not schema.features[name].nullable]
    if when_full == "drop" and needed:
        raise InvalidInputError(
            f"when_full: got 'drop', but {', '.join(map(repr, needed))} must be there at every step, expected nullable "
            "features; declare them so, such as salus.Image(..., nullable=True), or take 'block' or 'raise'"
        )
