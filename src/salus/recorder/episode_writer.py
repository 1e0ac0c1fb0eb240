"""One episode being recorded: `append`, `succeed` or `fail`, `commit` or `discard`."""

from __future__ import annotations

import functools
import itertools
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Literal

import numpy as np

from ..codecs import encode_chunk
from ..errors import CommitUnknownError, EpisodeFencedError, InvalidInputError, QueueFullError, RecordingError
from ..labels import Outcome, Result
from ..layout import ArraySpec
from ..log.entries import Entry
from ..log.records import Record
from ..metadata import check_metadata
from ..schema import TIMESTAMP, Schema
from ..statistics import EpisodeStatistics
from .background import Background, Encoding
from .checking import StepChecker, Stored, check_stamp
from .files import EpisodeFiles, as_recording_error
from .interrupts import INTERRUPTS, OnInterrupt
from .pool import BufferPool

State = Literal["recording", "committed", "salvaged", "discarded", "failed"]
WhenFull = Literal["block", "raise", "drop"]

_ENDED = ("committed", "salvaged", "discarded")
_BATCH_STEPS = 8


@dataclass
class _Encoded:
    """Of consecutive steps, by array with one step per chunk: the chunks, and what their statistics are made of.

    A blank image has no sample where all are blank; else samples are as many as chunks.
    """

    chunks: dict[str, list[bytes]] = field(default_factory=dict)
    samples: dict[str, list[np.ndarray]] = field(default_factory=dict)


class EpisodeWriter:
    """An episode in progress, made by `recorder.episode(...)` or `recorder.start(...)`.

    As a context manager it commits on leaving the block, and aborts the episode when an exception leaves it.

    Attributes:
        uid: The episode's name from now on.
        slot: Its row on axis 0 of every array.

    Thread-safety: one thread at a time appends to one episode; different episodes may use different threads.
    """

    def __init__(
        self,
        *,
        uid: str,
        slot: int,
        schema: Schema,
        revision: int,
        metadata: dict[str, Any],
        checker: StepChecker,
        background: Background,
        files: EpisodeFiles,
        pool: BufferPool,
        when_full: WhenFull,
        on_end: Callable[[EpisodeWriter], None],
        on_interrupt: OnInterrupt,
    ) -> None:
        self.uid = uid
        self.slot = slot
        self._schema = schema
        self._revision = revision
        self._metadata = metadata
        self._checker = checker
        self._background = background
        self._files = files
        self._pool = pool
        self._when_full = when_full
        self._dropped: dict[str, int] = {}
        self._on_end = on_end
        self._on_interrupt = on_interrupt
        self._lock = threading.RLock()
        self._state: State = "recording"
        self._error: RecordingError | None = None
        self._interrupted: RecordingError | None = None
        self._decision: Future[Entry] | None = None
        self._ending: State = "recording"
        self._outcome = Outcome()
        self._num_steps = 0
        self._timestamp_source: str | None = None
        self._last_stamp: int | None = None
        self._started_ns = time.time_ns()
        self._clock_offset = self._started_ns - time.monotonic_ns()
        self._pid = os.getpid()
        self._specs = {name: spec for name, spec in checker.specs.items() if not spec.derived}
        self._large = {name: spec for name, spec in self._specs.items() if spec.chunk_steps == 1}
        self._segment = self._new_segment()
        self._statistics = EpisodeStatistics(schema)  # the writing thread's
        self._texts = [name for name, spec in self._specs.items() if spec.is_text]
        self._row_bytes = sum(values[:1].nbytes for name, values in self._segment.items() if name not in self._texts)

    @property
    def num_steps(self) -> int:
        """Steps appended so far."""
        return self._num_steps

    @property
    def state(self) -> State:
        """`"recording"`, `"committed"`, `"salvaged"`, `"discarded"`, or `"failed"`.

        Salvaged: kept when an interrupt ended it. Failed: writing failed; nothing was committed.
        """
        return self._state

    # --- recording ---------------------------------------------------------------------------------------------

    def append(self, step: Mapping[str, Any] | None = None, /, *, timestamp_ns: int | None = None, **more: Any) -> None:
        """Add one step: a value for every feature of the schema. Copies, queues, and returns.

        Args:
            step: Feature name to value; nested mappings are joined with ".".
            timestamp_ns: When the step was taken, integer nanoseconds on any clock that goes forward. Without it, the
                recorder's own clock: monotonic, set once to the wall clock when the episode starts. Either for all
                steps of an episode, or for none.
            **more: Further features, by keyword.

        Raises:
            InvalidInputError: Every problem of the step: shape, dtype, NaN, unknown or missing feature, time. Nothing
                of the step is kept, and the episode goes on.
            QueueFullError: The queue is full, and the recorder was made with `when_full="raise"`. Nothing of the step
                is kept, and the episode goes on.
            RecordingError: The episode has ended, or writing failed (the disk is full); nothing more can be added.

        Cost: a copy of the step, made without giving up the GIL where the memory of an image has no gaps. It waits
        only while more than the recorder's `queue_bytes` of steps wait, and only with `when_full="block"`.
        """
        self._check_process("append")
        with self._lock:
            self._check_recording("append")
            stored = self._checker.step(step if step is not None else {}, more)
            stamp, source = self._stamp(timestamp_ns)
            stored[TIMESTAMP] = np.array([stamp], np.int64)
            self._add_step(stored, source)

    def _stamp(self, given: int | None) -> tuple[int, str]:
        source = "monotonic" if given is None else "caller"
        if self._timestamp_source not in (None, source):
            expected = "one, as for the steps before" if given is None else "none, as for the steps before"
            raise InvalidInputError(f"{TIMESTAMP}: got {'none' if given is None else given}, expected {expected}")
        if given is not None:
            return check_stamp(given, self._last_stamp), source
        stamp = time.monotonic_ns() + self._clock_offset
        return (stamp if self._last_stamp is None else max(stamp, self._last_stamp + 1)), source

    def add_whole(self, stored: Stored, num_steps: int, *, timestamp_source: str) -> None:
        """Add all steps at once, checked already. Used by `Recorder.record_episode`."""
        with self._lock:
            size, first = self._schema.segment_steps, 0
            while first < num_steps:
                stop = min(first + _BATCH_STEPS, (first // size + 1) * size, num_steps)
                part = {name: values[first:stop] for name, values in stored.items()}
                images = {name: part.pop(name) for name in self._large}
                cost = sum(_size(values) for values in [*part.values(), *images.values()])
                self._background.wait_for_room(cost)
                self._add(part, functools.partial(self._encode_whole, images), cost, timestamp_source)
                first = stop

    def _add_step(self, stored: Stored, timestamp_source: str) -> None:
        """Queue one step, its images copied; or what `when_full` leaves of it."""
        images = {name: stored[name] for name in self._large if name in stored}
        rows = {name: stored[name] for name in self._segment}
        rows_cost = self._row_bytes + sum(_size(rows[name]) for name in self._texts)
        cost = rows_cost + sum(values.nbytes for values in images.values())
        over = 0
        if self._when_full != "block" and not self._background.has_room(cost):
            if self._when_full == "raise":
                self._background.count(refused_steps=1)
                raise QueueFullError(self._full_message(cost))
            # Rows are small, and kept while they, too, are fewer than the budget.
            cost, over = rows_cost, self._background.status.capacity_bytes
            dropped, images = images, {}
            rows.update({f"{name}.valid": np.zeros(1, bool) for name in dropped})
        else:
            dropped = {}
        self._background.wait_for_room(cost, over_bytes=over)
        self._add(rows, functools.partial(self._encode_step, images), cost, timestamp_source)
        if dropped:
            self._background.count(dropped_images=len(dropped))
            for name in dropped:
                self._dropped[name] = self._dropped.get(name, 0) + 1

    def _full_message(self, cost: int) -> str:
        status = self._background.status
        return (
            f"append: the queue is full: {status.depth_bytes} bytes wait and the step has {cost}, expected at most "
            f"{status.capacity_bytes} (queue_bytes); nothing of the step was kept; append later, or less; {self.uid}"
        )

    def _encode_step(self, images: Stored) -> Encoding[_Encoded]:
        """Copy the images of one step, and have the copies encoded; the images that are not there are blank."""
        buffer = self._pool.take() if images else None
        copies = {name: buffer.copy(name, values) for name, values in images.items()} if buffer is not None else {}
        first = self._num_steps

        def encode() -> _Encoded:
            try:
                encoded = self._encode(copies, first)
            finally:
                if buffer is not None:
                    self._pool.give_back(buffer)
            encoded.chunks |= {name: [_blank_chunk(spec)] for name, spec in self._large.items() if name not in copies}
            return encoded

        return self._background.encode(encode)

    def _encode_whole(self, images: Stored) -> Encoding[_Encoded]:
        """Have consecutive images encoded, which nobody changes."""
        return self._background.encode(functools.partial(self._encode, images, self._num_steps))

    def _encode(self, images: Stored, first: int) -> _Encoded:
        """On an encoding thread: consecutive steps, of which nothing is kept."""
        encoded = _Encoded()
        for name, values in images.items():
            encoded.chunks[name] = [
                encode_chunk(self._specs[name], values[row : row + 1]) for row in range(len(values))
            ]
            if name in self._statistics.features:
                encoded.samples[name] = [
                    self._statistics.sample(name, value, first + row).copy() for row, value in enumerate(values)
                ]
        return encoded

    def _add(
        self, rows: Stored, start_encoding: Callable[[], Encoding[_Encoded]], cost: int, timestamp_source: str
    ) -> None:
        """Queue consecutive steps that lie in one segment."""
        self._files.timestamp_source = timestamp_source
        count = len(rows[TIMESTAMP])
        try:
            self._queue(rows, start_encoding() if self._large else None, cost)
            self._num_steps += count
            self._timestamp_source, self._last_stamp = timestamp_source, int(rows[TIMESTAMP][-1])
            if self._num_steps % self._schema.segment_steps == 0:
                self._finish_segment()
        except BaseException as error:
            # Ctrl-C came between queueing the steps and counting them: what the episode holds is no longer known.
            # Not an error of writing: the steps before are still written.
            self._interrupted = RecordingError(
                f"episode {self.uid}: interrupted inside append by {type(error).__name__}"
            )
            raise

    def _queue(self, rows: Stored, encoding: Encoding[_Encoded] | None, cost: int) -> None:
        count, first = len(rows[TIMESTAMP]), self._num_steps
        start = first % self._schema.segment_steps
        kept: dict[str, np.ndarray] = {}
        for name, values in self._segment.items():
            values[start : start + count] = rows[name]
            kept[name] = values[start : start + count]

        def write() -> None:
            encoded = encoding.result() if encoding is not None else _Encoded()
            for name, samples in encoded.samples.items():
                valid = kept.get(f"{name}.valid", itertools.repeat(True))
                for sample in itertools.compress(samples, valid):
                    self._statistics.add_sample(name, sample)
            self._files.write_steps(first, kept, encoded.chunks)

        self._submit(write, cost, count)

    def _finish_segment(self) -> None:
        rows, self._segment = self._segment, self._new_segment()
        self._submit(lambda: self._finish(rows))

    def _finish(self, rows: dict[str, np.ndarray]) -> None:
        """The end of a segment, on the writing thread."""
        self._statistics.add(rows)
        self._files.finish_segment(rows)

    def _new_segment(self) -> dict[str, np.ndarray]:
        steps = self._schema.segment_steps
        return {
            name: np.empty((steps, *spec.stored_step_shape), spec.numpy_dtype)
            for name, spec in self._specs.items()
            if spec.chunk_steps != 1
        }

    def _submit(self, job: Callable[[], None], cost: int = 0, num_steps: int = 0) -> None:
        def guarded() -> None:
            if self._error is not None:
                return
            try:
                job()
            except Exception as error:  # noqa: BLE001 - kept, and raised at the next append or commit
                self._error = as_recording_error(error, self.uid)
                self._error.__cause__ = error

        self._background.submit(guarded, cost, num_steps)

    # --- outcome -----------------------------------------------------------------------------------------------

    def succeed(self) -> None:
        """The episode reached its goal.

        Raises:
            RecordingError: It has ended already.
        """
        self._check_process("succeed")
        self._check_recording("succeed")
        self._outcome = Outcome("success")
        self._note({"type": "outcome", "outcome": self._outcome.to_json()})

    def fail(self, kind: str | None = None, *, step: int | None = None) -> None:
        """The episode failed. More steps may follow; the last call counts.

        Args:
            kind: One of the schema's `failure_kinds`; None when it is not known.
            step: When it happened, 0 … num_steps - 1; by default the step appended last.

        Raises:
            InvalidInputError: An unknown kind, or no such step.
            RecordingError: The episode has ended already.
        """
        self._check_process("fail")
        self._check_recording("fail")
        if step is None:
            step = max(self._num_steps - 1, 0)
        outcome = Outcome("failure", kind, step)
        outcome.check(num_steps=max(self._num_steps, 1), kinds=self._schema.failure_kinds)
        self._outcome = outcome
        self._note({"type": "outcome", "outcome": outcome.to_json()})

    def add_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Add metadata that was not known when the episode started, or replace some.

        Args:
            metadata: JSON values by key.

        Raises:
            InvalidInputError: Metadata that has no JSON text.
            RecordingError: The episode has ended already.
        """
        self._check_process("add_metadata")
        self._check_recording("add_metadata")
        self._metadata = check_metadata({**self._metadata, **metadata})
        self._note({"type": "metadata", "metadata": {key: self._metadata[key] for key in metadata}})

    def _note(self, document: dict[str, Any]) -> None:
        """Have the journal say it, so that a recovered episode knows it."""
        self._submit(lambda: self._files.note(document))

    # --- ending ------------------------------------------------------------------------------------------------

    def commit(self, outcome: Outcome | Result | None = None) -> Entry:
        """End the episode and keep it. When this returns, it is on disk, whole, for good.

        Args:
            outcome: How it ended, unless `succeed` or `fail` said so. `"failure"` alone is a failure at an unknown
                step, of which no label is known, unless `fail(kind, step=…)` said more.

        Returns:
            The episode's row in the episode table.

        Raises:
            InvalidInputError: No step was appended (the episode is aborted), or the outcome does not fit (it goes on).
            EpisodeFencedError: Another process decided the episode.
            CommitUnknownError: The disk did not say whether it kept the record; look before recording again.
            RecordingError: Writing failed; the episode is not committed.

        Warns:
            RuntimeWarning: Images were dropped (`when_full="drop"`). The episode is committed, and says how many:
                `Episode.dropped_images`.
        """
        self._check_process("commit")
        with self._lock:
            try:
                self._check_recording("commit")
            except RecordingError:
                if self._problem is not None:
                    self._give_up()
                raise
            if outcome is not None:
                self._outcome = self._merged_outcome(Outcome.of(outcome))
            if self._num_steps == 0:
                self.discard(reason="no step was appended")
                raise InvalidInputError(f"commit: no step was appended, so episode {self.uid} was aborted")
            entry = self._end("committed")
        if self._dropped:
            counts = ", ".join(f"{name!r} {count} of {self._num_steps}" for name, count in self._dropped.items())
            warnings.warn(
                f"salus: images were dropped because the queue was full: {counts}; they are marked as missing; more "
                f"queue_bytes, threads or a faster disk keep them; episode {self.uid}",
                RuntimeWarning,
                stacklevel=2,
            )
        return entry

    def _merged_outcome(self, new: Outcome) -> Outcome:
        """The outcome given to `commit`, with what `succeed` or `fail` said before."""
        new.check(num_steps=max(self._num_steps, 1), kinds=self._schema.failure_kinds)
        if new == Outcome(new.result) and self._outcome.result == new.result:
            return self._outcome  # the same in fewer words
        if self._outcome.result not in ("unknown", new.result):
            raise InvalidInputError(f"outcome: got {new.result!r}, but it said {self._outcome.result!r} before")
        return new

    def discard(self, *, reason: str = "") -> None:
        """End the episode and do not keep it.

        Args:
            reason: Why; kept in the log.

        Raises:
            RecordingError: It has ended already.
        """
        self._check_process("discard")
        with self._lock:
            if self._decision is not None:
                self._end("discarded")  # a commit that was interrupted comes first
            if self._state != "failed":
                self._check_recording("discard", raise_failure=False)
            self._end("discarded", reason=reason)

    def _end(self, state: State, *, reason: str | None = None) -> Entry:
        if self._decision is None:
            try:
                self._decision = self._background.start(self._deciding(state, reason))
            except BaseException as error:  # Ctrl-C, and nobody knows whether the job was queued
                self._error = RecordingError(
                    f"episode {self.uid}: interrupted while it ended, by {type(error).__name__}"
                )
                self._state = "failed"
                raise
            self._ending = state
        # Interrupted here, the decision goes on; commit() or discard() again waits for the same one.
        try:
            entry = self._decision.result()
        except Exception as error:
            self._state, self._decision = "failed", None
            if error is self._error:
                raise
            self._error = as_recording_error(error, self.uid)
            raise self._error from error
        finally:
            if self._decision is None or self._decision.done():
                self._files.close()
                self._on_end(self)
        self._state = self._ending
        return entry

    def _give_up(self) -> None:
        """Writing failed: hold no files and no lock any more. `discard` may still mark the episode as aborted."""
        self._state = "failed"
        try:
            self._background.start(self._files.close).result()  # in its turn: a job may still write to them
        except RecordingError:  # the writing thread has stopped, so nobody does
            self._files.close()
        self._on_end(self)

    def _deciding(self, state: State, reason: str | None) -> Callable[[], Entry]:
        """The job that ends the episode, on the writing thread."""
        kept = state != "discarded"
        count = self._num_steps % self._schema.segment_steps
        rest = {name: values[:count] for name, values in self._segment.items()} if kept and count else None
        record = Record(
            slot=self.slot,
            uid=self.uid,
            status="aborted" if state == "discarded" else "salvaged" if state == "salvaged" else "committed",
            num_steps=self._num_steps if kept else 0,
            schema_revision=self._revision,
            outcome=self._outcome if kept else Outcome(),
            metadata=self._metadata,
            timestamp_source=self._timestamp_source or "monotonic",
            started_ns=self._started_ns,
            ended_ns=time.time_ns(),
            reason=reason,
            dropped_images=dict(self._dropped) if kept else {},
        )

        def decide() -> Entry:
            if not kept:
                return self._files.abort(record)
            if self._error is not None:
                raise self._error
            if rest is not None:
                self._finish(rest)
            return self._files.commit(replace(record, statistics=self._statistics.to_json()))

        return decide

    @property
    def _problem(self) -> RecordingError | None:
        """Why the episode cannot go on."""
        return self._error or self._interrupted

    def _check_process(self, what: str) -> None:
        if os.getpid() != self._pid:  # looked at before any lock: a forked child may have inherited it locked
            raise RecordingError(
                f"{what}: the episode was started in another process; a forked child opens the dataset and makes a "
                "Recorder of its own"
            )

    def _check_recording(self, what: str, *, raise_failure: bool = True) -> None:
        if self._state in _ENDED:
            raise RecordingError(f"{what}: the episode is already {self._state}; {self.uid}")
        if self._problem is not None and raise_failure:
            raise self._problem

    def flush_if_due(self) -> None:
        """Keep the half-second promise while no steps come; called on the writing thread."""
        if self._state == "recording" and self._error is None:
            try:
                self._files.flush_if_due()
            except Exception as error:  # noqa: BLE001 - kept, and raised at the next append or commit
                self._error = as_recording_error(error, self.uid)

    # --- as a block --------------------------------------------------------------------------------------------

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._state in _ENDED:
            return
        if error is None:
            self.commit_or_discard()
        elif os.getpid() == self._pid:
            self._discard_after(error)

    def commit_or_discard(self, outcome: Outcome | None = None) -> Entry:
        """Commit; where that fails, mark the episode as aborted, for callers who have no handle to do so later."""
        try:
            return self.commit(outcome)
        except (RecordingError, *INTERRUPTS) as error:
            self._discard_after(error)
            raise

    def _discard_after(self, error: BaseException) -> None:
        if isinstance(error, INTERRUPTS):
            self.end_interrupted(error)
            return
        if self._state == "discarded" or isinstance(error, EpisodeFencedError | CommitUnknownError):
            return  # decided, or not known: nothing is to be aborted
        try:
            self.discard(reason=f"{type(error).__name__}: {error}")
        except RecordingError as failed:
            error.add_note(f"salus: the episode could not be marked as aborted: {failed}")

    def end_interrupted(self, error: BaseException) -> None:
        """End the episode after Ctrl-C or SIGTERM, as the recorder was told to, and say so on stderr.

        An end that was under way is finished as it was meant. Where the interrupt came inside `append`, so that what
        was queued is not known, the writing thread's steps stay on disk for `salus.recover`.
        """
        what = "Ctrl-C" if isinstance(error, KeyboardInterrupt) else "SIGTERM"
        with self._lock:
            if self._state in _ENDED:
                return
            try:
                if self._decision is not None:
                    self._end(self._ending)
                elif self._on_interrupt == "abort" or not self._num_steps:
                    self._end("discarded", reason=f"interrupted by {what}")
                elif self._problem is None:
                    self._end("salvaged", reason=f"interrupted by {what}")
                else:
                    self._leave()
            except RecordingError as failed:
                error.add_note(f"salus: episode {self.uid} could not be ended: {failed}")
            done = {
                "discarded": "is aborted, its steps are not kept",
                "salvaged": "is kept, with the status 'salvaged'",
            }
            if self._state == "failed":
                done["failed"] = f"is unfinished; `salus recover` brings back what was written ({self._problem})"
            then = done.get(self._state, f"is {self._state}")
            sys.stderr.write(f"salus: {what}: episode {self.uid} of {self._num_steps} steps {then}\n")

    def _leave(self) -> None:
        self._state = "failed"
        try:
            self._background.start(self._files.leave).result()  # in its turn: what is queued before is written first
        except OSError as error:
            raise as_recording_error(error, self.uid) from error
        finally:
            self._files.close()
            self._on_end(self)

    def __repr__(self) -> str:
        return f"<salus.EpisodeWriter {self.uid}: {self._state}, {self._num_steps} steps>"


def _size(values: np.ndarray) -> int:
    return sum(map(len, values)) if values.dtype == object else values.nbytes


@functools.lru_cache(maxsize=64)
def _blank_chunk(spec: ArraySpec) -> bytes:
    """What is stored where a nullable feature of one step per chunk carries no value."""
    return encode_chunk(spec, np.zeros((1, *spec.stored_step_shape), spec.numpy_dtype))
