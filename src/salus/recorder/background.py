"""The threads of a recorder: one that writes, in strict order, and a few that encode; bounded memory."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from ..errors import RecordingError
from .files import FLUSH_INTERVAL_S

Job = Callable[[], None]
Value = TypeVar("Value")


@dataclass(frozen=True)
class QueueStatus:
    """What a recorder's queue held and cost so far: one consistent moment of it.

    Attributes:
        capacity_bytes: `queue_bytes` of the recorder.
        depth_bytes: Bytes of steps that wait now, or are being encoded and written.
        peak_bytes: The most that ever did.
        appended_steps: Steps taken, those of whole episodes included.
        waits: Calls that had to wait for room.
        waited_s: How long they waited, all of them together, in seconds.
        longest_wait_s: How long the longest of them waited, in seconds.
        refused_steps: Steps that `when_full="raise"` refused.
        dropped_images: Images that `when_full="drop"` dropped.
    """

    capacity_bytes: int
    depth_bytes: int = 0
    peak_bytes: int = 0
    appended_steps: int = 0
    waits: int = 0
    waited_s: float = 0.0
    longest_wait_s: float = 0.0
    refused_steps: int = 0
    dropped_images: int = 0


class Encoding(Generic[Value]):
    """Something that an encoding thread does, and the writing thread waits for. Lighter than a `Future`."""

    __slots__ = ("_done", "_error", "_function", "_value")

    def __init__(self, function: Callable[[], Value]) -> None:
        self._function: Callable[[], Value] | None = function
        self._done = threading.Lock()
        self._done.acquire()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do it, once."""
        try:
            if self._function is not None:
                self._value = self._function()
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            self._error = error
        finally:
            self._function = None
            self._done.release()

    def result(self) -> Value:
        """Wait for what it returned or raised; to be asked once."""
        self._done.acquire()
        if self._error is not None:
            raise self._error
        return self._value


class Background:
    """Runs jobs one after the other on one thread, and encodes on a few others.

    Args:
        budget_bytes: Bytes of steps that may wait; see `wait_for_room`.
        threads: Encoding threads.
        tick: Called about four times a second, on the writing thread.

    Thread-safety: safe.
    """

    def __init__(self, *, budget_bytes: int, threads: int, tick: Job) -> None:
        self._queue: queue.SimpleQueue[tuple[Job, int] | None] = queue.SimpleQueue()
        self._encodings: queue.SimpleQueue[Encoding[Any] | None] = queue.SimpleQueue()
        self._budget = budget_bytes
        self._waiting = self._peak = 0
        self._counts = QueueStatus(budget_bytes)
        self._steps = 0
        self._closed = False
        self._room = threading.Condition()
        self._tick = tick
        self._encoders = [
            threading.Thread(target=self._encode, name=f"salus-encode-{number}", daemon=True)
            for number in range(threads)
        ]
        self._thread = threading.Thread(target=self._run, name="salus-write", daemon=True)
        for thread in [*self._encoders, self._thread]:
            thread.start()

    @property
    def status(self) -> QueueStatus:
        """What waits, and what waiting cost so far."""
        with self._room:
            return replace(self._counts, depth_bytes=self._waiting, peak_bytes=self._peak, appended_steps=self._steps)

    def encode(self, function: Callable[[], Value]) -> Encoding[Value]:
        """Run `function` on an encoding thread."""
        encoding = Encoding(function)
        self._encodings.put(encoding)
        return encoding

    def has_room(self, cost_bytes: int) -> bool:
        """Whether `wait_for_room` would not wait."""
        return not self._waiting or self._waiting + cost_bytes <= self._budget

    def wait_for_room(self, cost_bytes: int, *, over_bytes: int = 0) -> None:
        """Wait while more than the budget, and `over_bytes` beyond it, waits.

        An interrupt (Ctrl-C) here changes nothing.
        """
        with self._room:
            limit = self._budget + over_bytes
            if not self._waiting or self._waiting + cost_bytes <= limit:
                return
            began = time.monotonic()
            try:
                while self._waiting and self._waiting + cost_bytes > limit:
                    self._room.wait()
            finally:
                waited, counts = time.monotonic() - began, self._counts
                self._counts = replace(
                    counts,
                    waits=counts.waits + 1,
                    waited_s=counts.waited_s + waited,
                    longest_wait_s=max(counts.longest_wait_s, waited),
                )

    def count(self, *, refused_steps: int = 0, dropped_images: int = 0) -> None:
        """Count what did not go into the queue."""
        with self._room:
            counts = self._counts
            self._counts = replace(
                counts,
                refused_steps=counts.refused_steps + refused_steps,
                dropped_images=counts.dropped_images + dropped_images,
            )

    def submit(self, job: Job, cost_bytes: int = 0, num_steps: int = 0) -> None:
        """Queue a job that must not raise.

        Args:
            job: To run in its turn.
            cost_bytes: Bytes that wait with it.
            num_steps: Steps that it writes, for the count.

        Raises:
            RecordingError: The thread was stopped: the recorder is closed.
        """
        with self._room:
            if self._closed:
                raise RecordingError("the recorder is closed")
            self._waiting += cost_bytes
            self._peak = max(self._peak, self._waiting)
            self._steps += num_steps
            self._queue.put((job, cost_bytes))

    def start(self, function: Callable[[], Value]) -> Future[Value]:
        """Run `function` in its turn; the future holds what it returns or raises."""
        done: Future[Value] = Future()

        def job() -> None:
            try:
                done.set_result(function())
            except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is
                done.set_exception(error)

        self.submit(job)
        return done

    def start_deciding(self, function: Callable[[], Future[Value]]) -> Future[Value]:
        """Run `function` in its turn; the future ends as the one that it returns, or with what it raises."""
        done: Future[Value] = Future()

        def hand_on(ended: Future[Value]) -> None:
            error = ended.exception()
            if error is None:
                done.set_result(ended.result())
            else:
                done.set_exception(error)

        def job() -> None:
            try:
                function().add_done_callback(hand_on)
            except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is
                done.set_exception(error)

        self.submit(job)
        return done

    def close(self) -> None:
        """Finish all jobs and stop."""
        self.stop()
        for thread in [self._thread, *self._encoders]:
            thread.join()

    def stop(self) -> None:
        """Stop after what is queued, without waiting for it."""
        with self._room:
            self._closed = True
            self._queue.put(None)
            for _ in self._encoders:
                self._encodings.put(None)

    def _run(self) -> None:
        _run_behind()
        tick = time.monotonic()
        while True:
            if time.monotonic() - tick >= FLUSH_INTERVAL_S / 2:
                tick = time.monotonic()
                self._tick()
            try:
                item = self._queue.get(timeout=FLUSH_INTERVAL_S / 2)
            except queue.Empty:
                continue
            if item is None:
                return
            job, cost = item
            job()
            del job, item  # what it holds goes before its cost does
            with self._room:
                self._waiting -= cost
                self._room.notify_all()

    def _encode(self) -> None:
        _run_behind()
        while True:
            encoding = self._encodings.get()
            if encoding is None:
                return
            encoding.run()
            del encoding  # held until the next one comes, it would keep what it made


def _run_behind() -> None:
    """Take a plain priority, and do not push the thread off its core that has just handed over a step (Linux).

    A thread inherits the real-time priority of a control loop that makes a recorder; encoding must not have it.
    """
    if hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):  # a sandbox may forbid it; nothing depends on it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
