"""The writing thread of a recorder: one queue, strict order, bounded memory."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from ..errors import RecordingError
from .files import FLUSH_INTERVAL_S

Job = Callable[[], None]
Value = TypeVar("Value")


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
        self._budget = budget_bytes
        self._waiting = 0
        self._closed = False
        self._room = threading.Condition()
        self._tick = tick
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="salus-encode")
        self._thread = threading.Thread(target=self._run, name="salus-write", daemon=True)
        self._thread.start()

    def encode(self, function: Callable[..., bytes], *arguments: Any) -> Future[bytes]:
        """Run `function` on an encoding thread."""
        return self._pool.submit(function, *arguments)

    def wait_for_room(self, cost_bytes: int) -> None:
        """Wait while more than the budget waits. An interrupt (Ctrl-C) here changes nothing."""
        with self._room:
            while self._waiting and self._waiting + cost_bytes > self._budget:
                self._room.wait()

    def submit(self, job: Job, cost_bytes: int = 0) -> None:
        """Queue a job that must not raise.

        Raises:
            RecordingError: The thread was stopped: the recorder is closed.
        """
        with self._room:
            if self._closed:
                raise RecordingError("the recorder is closed")
            self._waiting += cost_bytes
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

    def close(self) -> None:
        """Finish all jobs and stop."""
        with self._room:
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        self._pool.shutdown()

    def stop(self) -> None:
        """Stop after what is queued, without waiting for it."""
        with self._room:
            self._closed = True
            self._queue.put(None)
        self._pool.shutdown(wait=False)

    def _run(self) -> None:
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
            with self._room:
                self._waiting -= cost
                self._room.notify_all()
