"""One clock of an episode in progress: steps come in, are checked, stamped, copied, and queued for the disk."""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..codecs import encode_chunk
from ..errors import CommitUnknownError, InvalidInputError, QueueFullError, RecordingError
from ..layout import ArraySpec
from ..schema import TIMESTAMP
from ..statistics import EpisodeStatistics
from .background import Background, Encoding
from .checking import StepChecker, Stored, check_stamp, check_stamps
from .files import EpisodeFiles, as_recording_error
from .pool import BufferPool

WhenFull = Literal["block", "raise", "drop"]

_BATCH_STEPS = 8


@dataclass
class _Encoded:
    """Of consecutive steps, by array with one step per chunk: the chunks, and what their statistics are made of.

    A blank image has no sample where all are blank; else samples are as many as chunks.
    """

    chunks: dict[str, list[bytes]] = field(default_factory=dict)
    samples: dict[str, list[np.ndarray]] = field(default_factory=dict)


@dataclass
class Writing:
    """One episode on its way to disk: what its streams share, and its jobs on the writing thread.

    After one job has failed, the others do nothing. The episode and its streams have it, and it has none of them: so
    the memory of an episode that has ended is free at once.

    Attributes:
        uid: Of the episode.
        background: The recorder's threads.
        files: Where the episode is written, by the writing thread.
        statistics: Of the episode, the writing thread's.
        when_full: What becomes of a step for which there is no room.
        error: Why writing failed; raised at the next `append`, or at `commit`.
        refusal: Why no more steps are taken, raised there as well; those that are queued are still written.
        started_ns: Wall clock of the start, nanoseconds since 1970.
    """

    uid: str
    background: Background
    files: EpisodeFiles
    statistics: EpisodeStatistics
    when_full: WhenFull
    error: RecordingError | None = None
    refusal: RecordingError | None = None
    started_ns: int = field(default_factory=time.time_ns)

    def __post_init__(self) -> None:
        self._offset_ns = self.started_ns - time.monotonic_ns()

    def now_ns(self) -> int:
        """The recorder's own clock: monotonic, set to the wall clock when the episode started."""
        return time.monotonic_ns() + self._offset_ns

    def submit(self, job: Callable[[], None], cost: int = 0, num_steps: int = 0) -> None:
        """Queue a job, which costs so many bytes and writes so many steps."""

        def guarded() -> None:
            if self.error is not None:
                return
            try:
                job()
            except Exception as error:  # noqa: BLE001 - kept, and raised at the next append or commit
                self.error = as_recording_error(error, self.uid, self.files.url)
                self.error.__cause__ = error

        self.background.submit(guarded, cost, num_steps)


class Stream:
    """Takes the steps of one clock.

    Args:
        checker: Of the features on the clock.
        pool: Memory for images.
        writing: Of the episode.

    Attributes:
        lock: Held while steps are taken in, and while the episode ends.
        num_steps: Steps taken so far.
        timestamp_source: Where their stamps come from; None before the first.
        dropped_images: Images that were dropped because the queue was full, by feature.
        problem: Why it cannot go on: Ctrl-C or an error came amid a step, and what was queued is not known.

    Thread-safety: who calls holds the lock.
    """

    def __init__(self, checker: StepChecker, pool: BufferPool, writing: Writing) -> None:
        self.lock = threading.RLock()
        self.num_steps = 0
        self.timestamp_source: str | None = None
        self.dropped_images: dict[str, int] = {}
        self.problem: RecordingError | None = None
        self._checker = checker
        self._clock = checker.clock
        self._stamps = checker.stamps
        self._segment_steps = next(iter(checker.specs.values())).segment_steps
        self._pool = pool
        self._writing = writing
        self._background = writing.background
        self._uid = writing.uid
        self._last_stamp: int | None = None
        self._specs = {name: spec for name, spec in checker.specs.items() if not spec.derived}
        self._large = {name: spec for name, spec in self._specs.items() if spec.chunk_steps == 1}
        self._segment = self._new_segment()
        self._texts = [name for name, spec in self._specs.items() if spec.is_text]
        self._row_bytes = sum(values[:1].nbytes for name, values in self._segment.items() if name not in self._texts)

    # --- steps come in -----------------------------------------------------------------------------------------

    def append(self, values: Mapping[str, Any], more: Mapping[str, Any], timestamp_ns: int | None) -> None:
        """Take one step; raises as `EpisodeWriter.append` says."""
        stored = self._checker.step(values, more)
        stamp, source = self._stamp(timestamp_ns)
        stored[self._stamps] = np.array([stamp], np.int64)
        self._add_step(stored, source)

    def named(self, value: Any) -> dict[str, Any]:
        """The only feature on the clock, and its value.

        Raises:
            InvalidInputError: There are several.
        """
        if len(self._checker.features) > 1:
            names = ", ".join(map(repr, self._checker.features))
            raise InvalidInputError(
                f"push to {self._clock!r}: got {type(value).__name__}, expected a mapping of {names} to values"
            )
        return dict.fromkeys(self._checker.features, value)

    def extend(self, values: Mapping[str, Any], timestamp_ns: np.ndarray) -> None:
        """Take several steps; raises as `EpisodeWriter.push` says."""
        stored, num_steps = self._checker.steps(values)
        source = self._source(timestamp_ns)
        stored[self._stamps] = check_stamps(timestamp_ns, num_steps, self._last_stamp)
        if self._writing.when_full == "drop" and self._large:
            for step in range(num_steps):  # each of them may lose its images
                self._add_step({name: array[step : step + 1] for name, array in stored.items()}, source)
            return
        self._refuse(sum(_size(array) for array in stored.values()), num_steps)
        self.add_whole({name: np.array(array) for name, array in stored.items()}, num_steps, timestamp_source=source)

    def _source(self, given: Any) -> str:
        source = "monotonic" if given is None else "caller"
        if self.timestamp_source not in (None, source):
            expected = "one, as for the steps before" if given is None else "none, as for the steps before"
            raise InvalidInputError(f"{TIMESTAMP}: got {'none' if given is None else given}, expected {expected}")
        return source

    def _stamp(self, given: int | None) -> tuple[int, str]:
        source = self._source(given)
        if given is not None:
            return check_stamp(given, self._last_stamp), source
        stamp = self._writing.now_ns()
        return (stamp if self._last_stamp is None else max(stamp, self._last_stamp + 1)), source

    def add_whole(self, stored: Stored, num_steps: int, *, timestamp_source: str) -> None:
        """Take steps that were checked, and that nobody changes."""
        first, most = 0, _BATCH_STEPS if self._large else self._segment_steps
        while first < num_steps:
            room = self._segment_steps - self.num_steps % self._segment_steps
            stop = min(first + min(most, room), num_steps)
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
        over, dropped = 0, Stored()
        self._refuse(cost, 1)
        if self._writing.when_full == "drop" and not self._background.has_room(cost):
            # Rows are small, and kept while they, too, are fewer than the budget.
            cost, over = rows_cost, self._background.status.capacity_bytes
            dropped, images = images, {}
            rows.update({f"{name}.valid": np.zeros(1, bool) for name in dropped})
        self._background.wait_for_room(cost, over_bytes=over)
        if dropped:
            self._background.count(dropped_images=len(dropped))
            more = {name: self.dropped_images.get(name, 0) + 1 for name in dropped}
            self.dropped_images = {**self.dropped_images, **more}  # a new one: the writing thread reads the old one
        self._add(rows, functools.partial(self._encode_step, images), cost, timestamp_source)

    def _refuse(self, cost: int, num_steps: int) -> None:
        if self._writing.when_full != "raise" or self._background.has_room(cost):
            return
        self._background.count(refused_steps=num_steps)
        status, what = (
            self._background.status,
            "the step has" if num_steps == 1 else f"the {num_steps} steps have",
        )
        raise QueueFullError(
            f"append: the queue is full: {status.depth_bytes} bytes wait and {what} {cost}, expected at most "
            f"{status.capacity_bytes} (queue_bytes); nothing of them was kept; append later, or less; {self._uid}"
        )

    # --- on their way to disk ----------------------------------------------------------------------------------

    def _encode_step(self, images: Stored) -> Encoding[_Encoded]:
        """Copy the images of one step, and have the copies encoded; the images that are not there are blank."""
        buffer = self._pool.take() if images else None
        copies = {name: buffer.copy(name, values) for name, values in images.items()} if buffer is not None else {}
        first = self.num_steps

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
        return self._background.encode(functools.partial(self._encode, images, self.num_steps))

    def _encode(self, images: Stored, first: int) -> _Encoded:
        """On an encoding thread: consecutive steps, of whose memory nothing is kept."""
        encoded = _Encoded()
        for name, values in images.items():
            encoded.chunks[name] = [
                encode_chunk(self._specs[name], values[row : row + 1]) for row in range(len(values))
            ]
            if name in self._writing.statistics.features:
                encoded.samples[name] = [
                    self._writing.statistics.sample(name, value, first + row).copy() for row, value in enumerate(values)
                ]
        return encoded

    def _add(
        self, rows: Stored, start_encoding: Callable[[], Encoding[_Encoded]], cost: int, timestamp_source: str
    ) -> None:
        """Queue consecutive steps that lie in one segment."""
        count = len(rows[self._stamps])
        try:
            self._queue(rows, start_encoding() if self._large else None, cost, timestamp_source)
            self.num_steps += count
            self.timestamp_source, self._last_stamp = timestamp_source, int(rows[self._stamps][-1])
            if self.num_steps % self._segment_steps == 0:
                self._finish_segment()
        except BaseException as error:
            # The steps may be queued and not counted: what the episode holds is no longer known.
            # Not an error of writing: the steps before are still written.
            if not isinstance(error, Exception):  # Ctrl-C
                what = f"interrupted inside append by {type(error).__name__}"
                self.problem = RecordingError(f"episode {self._uid}: {what}")
                raise
            self.problem = RecordingError(
                f"episode {self._uid}: append failed: {type(error).__name__}: {error}; nothing more can be added; "
                "discard the episode, or leave the steps before to salus.recover"
            )
            raise self.problem from error

    def _queue(self, rows: Stored, encoding: Encoding[_Encoded] | None, cost: int, timestamp_source: str) -> None:
        count, first, dropped = len(rows[self._stamps]), self.num_steps, self.dropped_images
        start = first % self._segment_steps
        kept: dict[str, np.ndarray] = {}
        for name, values in self._segment.items():
            values[start : start + count] = rows[name]
            kept[name] = values[start : start + count]

        def write() -> None:
            encoded = encoding.result() if encoding is not None else _Encoded()
            for name, samples in encoded.samples.items():
                valid = kept.get(f"{name}.valid", itertools.repeat(True))
                for sample in itertools.compress(samples, valid):
                    self._writing.statistics.add_sample(name, sample)
            self._writing.files.write_steps(
                self._clock, first, kept, encoded.chunks, timestamp_source=timestamp_source, dropped_images=dropped
            )

        self._writing.submit(write, cost, count)

    def _finish_segment(self) -> None:
        rows, self._segment = self._segment, self._new_segment()
        self._writing.submit(lambda: self._finish(rows))

    def _finish(self, rows: dict[str, np.ndarray]) -> None:
        """The end of a segment, on the writing thread."""
        self._writing.statistics.add(rows)
        self._writing.files.finish_segment(self._clock, rows)
        try:
            self._writing.files.wait_for_room()
        except CommitUnknownError as error:
            self._writing.refusal = as_recording_error(error, self._uid)
            self._writing.refusal.__cause__ = error

    def _new_segment(self) -> dict[str, np.ndarray]:
        return {
            name: np.empty((self._segment_steps, *spec.stored_step_shape), spec.numpy_dtype)
            for name, spec in self._specs.items()
            if spec.chunk_steps != 1
        }

    def finishing(self) -> Callable[[], None]:
        """What the writing thread has to do at the end of the episode: the segment that has begun."""
        count = self.num_steps % self._segment_steps
        rows = {name: values[:count] for name, values in self._segment.items()}
        return (lambda: self._finish(rows)) if count else (lambda: None)


def _size(values: np.ndarray) -> int:
    return sum(map(len, values)) if values.dtype == object else values.nbytes


@functools.lru_cache(maxsize=64)
def _blank_chunk(spec: ArraySpec) -> bytes:
    """What is stored where a nullable feature of one step per chunk carries no value."""
    return encode_chunk(spec, np.zeros((1, *spec.stored_step_shape), spec.numpy_dtype))
