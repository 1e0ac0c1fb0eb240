"""One episode being recorded: `append`, `succeed` or `fail`, `commit` or `discard`."""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal

import numpy as np

from ..errors import CommitUnknownError, EpisodeFencedError, InvalidInputError, RecordingError, did_you_mean, noted_on
from ..labels import Outcome, Result
from ..log.entries import Entry
from ..log.records import Record
from ..metadata import check_metadata
from ..schema import STEP, Schema
from .checking import StepChecker, Stored
from .files import as_recording_error
from .interrupts import INTERRUPTS, OnInterrupt
from .polling import Poller, Pollers
from .pool import BufferPool
from .stream import Stream, Writing

State = Literal["recording", "committed", "salvaged", "discarded", "failed"]

_ENDED = ("committed", "salvaged", "discarded")


class EpisodeWriter:
    """An episode in progress, made by `recorder.episode(...)` or `recorder.start(...)`.

    As a context manager it commits on leaving the block, and aborts the episode when an exception leaves it.

    Attributes:
        uid: The episode's name from now on.
        slot: Its row on axis 0 of every array.

    Thread-safety: safe. Each clock has a lock of its own: a thread that pushes joints does not wait for one that
    appends images. The steps of one clock are in the order in which they came.
    """

    def __init__(
        self,
        *,
        slot: int,
        schema: Schema,
        revision: int,
        metadata: dict[str, Any],
        checkers: Mapping[str, StepChecker],
        pools: Mapping[str, BufferPool],
        writing: Writing,
        on_end: Callable[[EpisodeWriter], None],
        on_interrupt: OnInterrupt,
    ) -> None:
        self.uid = writing.uid
        self.slot = slot
        self._schema = schema
        self._revision = revision
        self._metadata = metadata
        self._writing = writing
        self._background = writing.background
        self._files = writing.files
        self._on_end = on_end
        self._on_interrupt = on_interrupt
        self._lock = threading.RLock()
        self._state: State = "recording"
        self._decision: Future[Entry] | None = None
        self._ending: State = "recording"
        self._outcome = Outcome()
        self._pid = os.getpid()
        self._streams = {clock: Stream(checker, pools[clock], writing) for clock, checker in checkers.items()}
        self._stream = self._streams[STEP]
        self._pollers = Pollers()
        self._ends = 0

    @property
    def num_steps(self) -> int:
        """Steps appended so far."""
        return self._stream.num_steps

    @property
    def clock_lengths(self) -> dict[str, int]:
        """Steps pushed so far on each clock but `step`."""
        return {clock: stream.num_steps for clock, stream in self._streams.items() if clock != STEP}

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
            RecordingError: The episode has ended, or writing failed (the disk is full), or the step could not be queued
                (no memory); nothing more can be added.

        Cost: a copy of the step, made without giving up the GIL where the memory of an image has no gaps. It waits
        only while more than the recorder's `queue_bytes` of steps wait, and only with `when_full="block"`.
        """
        self._check_process("append")
        with self._stream.lock:
            self._check_recording("append")
            self._check_polled("append")
            self._stream.append(step if step is not None else {}, more, timestamp_ns)

    def push(self, clock: str, values: Any, *, timestamp_ns: Any = None) -> None:
        """Add one step, or several, to a stream on a clock of its own: `episode.push("joints", q, timestamp_ns=t)`.

        Call it from any thread, such as the callback of a driver. The stamps of all clocks have to be on one time base,
        as windows are found by time; without stamps, all are on the recorder's own.

        Args:
            clock: A clock of the schema, `Schema(clocks={"joints": 1000})`; `"step"` is the one of `append`.
            values: Feature name to value, for every feature on that clock; or the value itself, where there is one
                feature.
            timestamp_ns: When it was taken, integer nanoseconds, as for `append`. Several, int64 (n,): `values` are n
                steps then, (n, *shape of a step).

        Raises:
            InvalidInputError: No such clock, or a problem of the values, as for `append`. Nothing of them is kept.
            QueueFullError: As `append`. Nothing of them is kept.
            RecordingError: As `append`.
        """
        self._check_process("push")
        self._push(clock, values, timestamp_ns, polled=False)

    def _push(self, clock: str, values: Any, timestamp_ns: Any, *, polled: bool) -> None:
        stream = self._streams.get(clock)
        if stream is None:
            raise InvalidInputError(self._no_clock(clock))
        with stream.lock:
            self._check_recording("push")
            if not polled:
                self._check_polled("push")
            if not isinstance(values, Mapping):
                values = stream.named(values)
            if timestamp_ns is not None and np.ndim(timestamp_ns) == 1:
                stream.extend(values, timestamp_ns)
            else:
                stream.append(values, {}, timestamp_ns)

    def _no_clock(self, clock: str) -> str:
        known = ", ".join(map(repr, self._streams))
        feature = self._schema.features.get(clock) if isinstance(clock, str) else None
        hint = did_you_mean(str(clock), self._streams) if feature is None else ""
        is_feature = "" if feature is None else f", which is a feature on the clock {feature.clock!r}"
        return f"push: got {clock!r}{is_feature}, expected a clock of the schema: {known}{hint}"

    def poll(self, clock: str, read: Callable[[], Any], *, rate_hz: float | None = None) -> None:
        """Give a stream a thread of its own, which calls `read()` and pushes what it returns until the episode ends.

        Args:
            clock: As for `push`.
            read: Returns the values, as for `push`; or `(values, timestamp_ns)`; or None: the stream has ended. Without
                a stamp, the recorder's own clock says when it returned. It may block, as a driver does that waits for
                the next message; the end of the episode waits at most a second for it, and drops what it returns then.
            rate_hz: How often `read` is called; None: again as soon as it has returned.

        Raises:
            InvalidInputError: No such clock, or rate.
            RecordingError: The episode has ended.

        What `read` raises, or a value that does not fit, ends the stream, not the episode: the next `append` or `push`
        raises it as a `RecordingError`, once, and can be repeated; `commit` keeps the episode, and warns of it where
        nobody was told.
        """
        self._check_process("poll")
        if clock not in self._streams:
            raise InvalidInputError(self._no_clock(clock).replace("push", "poll", 1))
        if rate_hz is not None and not (isinstance(rate_hz, int | float) and 0 < rate_hz <= 1e6):
            raise InvalidInputError(f"poll: rate_hz: got {rate_hz!r}, expected a number above 0, or None")
        with self._lock:
            self._check_recording("poll")
            push = functools.partial(self._push, clock, polled=True)
            self._pollers.add(Poller(clock, read, push, rate_hz=rate_hz))

    def _check_polled(self, what: str) -> None:
        """Raise what ended a stream that is polled, once."""
        ended = self._pollers.ended()
        if ended is not None:
            name, error = ended
            raise RecordingError(
                f"{what}: the stream {name!r} has ended: {error!r}; nothing was kept of this call, and the episode "
                f"goes on; poll({name!r}, …) again, or end the episode; {self.uid}"
            ) from error

    def add_whole(self, clock: str, stored: Stored, num_steps: int, *, timestamp_source: str) -> None:
        """Add all steps of a clock at once, checked already. Used by `Recorder.record_episode`."""
        stream = self._streams[clock]
        with stream.lock:
            stream.add_whole(stored, num_steps, timestamp_source=timestamp_source)

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
            step = max(self.num_steps - 1, 0)
        outcome = Outcome("failure", kind, step)
        outcome.check(num_steps=max(self.num_steps, 1), kinds=self._schema.failure_kinds)
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
        self._writing.submit(lambda: self._files.note(document))

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
            RuntimeWarning: Images were dropped (`when_full="drop"`), and `Episode.dropped_images` says how many; or a
                stream that was polled had ended. The episode is committed.
        """
        self._check_process("commit")
        with self._no_steps():
            try:
                self._check_recording("commit")
            except RecordingError:
                if self._problem is not None:
                    self._give_up()
                raise
            said = self._outcome
            if outcome is not None:
                self._outcome = self._merged_outcome(Outcome.of(outcome))
            if self.num_steps == 0:
                self.discard(reason="no step was appended")
                raise InvalidInputError(f"commit: no step was appended, so episode {self.uid} was aborted")
            if self._outcome != said and self._decision is None:
                self._note({"type": "outcome", "outcome": self._outcome.to_json()})
            entry = self._end("committed")
        while (ended := self._pollers.ended()) is not None:
            warnings.warn(
                f"salus: the stream {ended[0]!r} had ended before the episode did: {ended[1]!r}; episode {self.uid}",
                RuntimeWarning,
                stacklevel=2,
            )
        dropped = self._dropped_images
        if dropped:
            lengths = {STEP: self.num_steps, **self.clock_lengths}
            clocks = {name: self._schema.features[name].clock for name in dropped}
            counts = ", ".join(f"{name!r} {count} of {lengths[clocks[name]]}" for name, count in dropped.items())
            warnings.warn(
                f"salus: images were dropped because the queue was full: {counts}; they are marked as missing; more "
                f"queue_bytes, threads or a faster disk keep them; episode {self.uid}",
                RuntimeWarning,
                stacklevel=2,
            )
        return entry

    def _merged_outcome(self, new: Outcome) -> Outcome:
        """The outcome given to `commit`, with what `succeed` or `fail` said before."""
        new.check(num_steps=max(self.num_steps, 1), kinds=self._schema.failure_kinds)
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
            CommitUnknownError: The storage did not confirm it. In a bucket, `salus.recover` aborts the episode then.
        """
        self._check_process("discard")
        with self._no_steps():
            if self._decision is not None:
                self._end("discarded")  # a commit that was interrupted comes first
            if self._state != "failed":
                self._check_recording("discard", raise_failure=False)
            self._end("discarded", reason=reason)

    def _end(self, state: State, *, reason: str | None = None) -> Entry:
        self._pollers.stop()
        if self._decision is None:
            if state == "discarded":
                self._files.drop_uploads()  # what waits for the network to come back waits no longer
            try:
                self._decision = self._background.start_deciding(self._deciding(state, reason))
            except BaseException as error:  # Ctrl-C, and nobody knows whether the job was queued
                self._writing.error = RecordingError(
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
            if error is self._writing.error:
                raise
            self._writing.error = as_recording_error(error, self.uid, self._files.url)
            raise self._writing.error from error
        finally:
            if self._decision is None or self._decision.done():
                self._files.close()
                self._on_end(self)
        self._state = self._ending
        return entry

    def _give_up(self) -> None:
        """It cannot go on: hold no files and no lock any more. `discard` may still mark the episode as aborted."""
        self._pollers.stop()
        self._state = "failed"
        give_up = self._files.leave if self._writing.error is None else self._files.close
        try:
            self._background.start(give_up).result()  # in its turn: a job may still write to them
        except (RecordingError, OSError):  # the writing thread has stopped, so nobody does; or writing fails now
            self._files.close()
        self._on_end(self)

    def _deciding(self, state: State, reason: str | None) -> Callable[[], Future[Entry]]:
        """The job that ends the episode, on the writing thread."""
        kept = state != "discarded"
        others = {clock: stream for clock, stream in self._streams.items() if clock != STEP}
        finish = [stream.finishing() for stream in self._streams.values()]
        record = Record(
            slot=self.slot,
            uid=self.uid,
            status="aborted" if state == "discarded" else "salvaged" if state == "salvaged" else "committed",
            num_steps=self.num_steps if kept else 0,
            clock_lengths=self.clock_lengths if kept else {},
            schema_revision=self._revision,
            outcome=self._outcome if kept else Outcome(),
            metadata=self._metadata,
            timestamp_source=self._stream.timestamp_source or "monotonic",
            clock_sources={c: s.timestamp_source for c, s in others.items() if s.timestamp_source} if kept else {},
            started_ns=self._writing.started_ns,
            ended_ns=time.time_ns(),
            reason=reason,
            dropped_images=self._dropped_images if kept else {},
        )

        def decide() -> Future[Entry]:
            if not kept:
                return self._files.abort(record)
            if self._writing.error is not None:
                raise self._writing.error
            for finish_clock in finish:
                finish_clock()
            return self._files.commit(replace(record, statistics=self._writing.statistics.to_json()))

        return decide

    @property
    def _dropped_images(self) -> dict[str, int]:
        return {name: count for stream in self._streams.values() for name, count in stream.dropped_images.items()}

    @property
    def _problem(self) -> RecordingError | None:
        """Why the episode cannot go on."""
        return (
            self._writing.error
            or self._writing.refusal
            or next((stream.problem for stream in self._streams.values() if stream.problem), None)
        )

    @contextmanager
    def _no_steps(self) -> Iterator[None]:
        """Nobody adds a step, to no stream, and nobody else ends the episode."""
        self._files.hurry(True)  # before the locks: a step that waits for the spool holds one
        with ExitStack() as stack:
            for lock in (self._lock, *(stream.lock for stream in self._streams.values())):
                stack.enter_context(lock)
            self._ends += 1
            try:
                yield
            finally:
                self._ends -= 1
                outermost = self._ends == 0
                if outermost and self._state == "recording" and self._decision is None:
                    self._files.hurry(False)  # it goes on
        if outermost and self._state != "recording":
            self._pollers.join()  # not before: a poller may wait for a lock

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
        if self._state == "recording" and self._writing.error is None:
            try:
                self._files.flush_if_due()
            except Exception as error:  # noqa: BLE001 - kept, and raised at the next append or commit
                self._writing.error = as_recording_error(error, self.uid, self._files.url)

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
            self._leave_if_unknown()
            return  # decided, or not known: nothing is to be aborted
        with noted_on(error, "the episode could not be marked as aborted"):
            self.discard(reason=f"{type(error).__name__}: {error}")

    def discard_or_leave(self, *, reason: str) -> None:
        """End an episode that nobody ended; raises why where it is left to `salus.recover`."""
        problem = self._problem
        if isinstance(problem, EpisodeFencedError | CommitUnknownError):
            self._leave_if_unknown()
            raise problem
        self.discard(reason=reason)

    def _leave_if_unknown(self) -> None:
        """Leave the episode to `salus.recover`, as its error says, where the storage did not confirm what it has."""
        with self._no_steps():
            if self._state == "recording" and isinstance(self._problem, EpisodeFencedError | CommitUnknownError):
                self._give_up()

    def end_interrupted(self, error: BaseException) -> None:
        """End the episode after Ctrl-C or SIGTERM, as the recorder was told to, and say so on stderr.

        An end that was under way is finished as it was meant. Where the interrupt came inside `append`, so that what
        was queued is not known, the writing thread's steps stay on disk for `salus.recover`.
        """
        what = "Ctrl-C" if isinstance(error, KeyboardInterrupt) else "SIGTERM"
        with self._no_steps():
            if self._state in _ENDED:
                return
            with noted_on(error, f"episode {self.uid} could not be ended"):
                if self._decision is not None:
                    self._end(self._ending)
                elif self._on_interrupt == "abort" or not self.num_steps:
                    self._end("discarded", reason=f"interrupted by {what}")
                elif self._problem is None:
                    self._end("salvaged", reason=f"interrupted by {what}")
                else:
                    self._leave()
            done = {
                "discarded": "is aborted, its steps are not kept",
                "salvaged": "is kept, with the status 'salvaged'",
            }
            if self._state == "failed":
                done["failed"] = f"is unfinished; `salus recover` brings back what was written ({self._problem})"
            then = done.get(self._state, f"is {self._state}")
            sys.stderr.write(f"salus: {what}: episode {self.uid} of {self.num_steps} steps {then}\n")

    def _leave(self) -> None:
        self._pollers.stop()
        self._state = "failed"
        try:
            self._background.start(self._files.leave).result()  # in its turn: what is queued before is written first
        except OSError as error:
            raise as_recording_error(error, self.uid) from error
        finally:
            self._files.close()
            self._on_end(self)

    def __repr__(self) -> str:
        return f"<salus.EpisodeWriter {self.uid}: {self._state}, {self.num_steps} steps>"
