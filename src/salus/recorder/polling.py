"""A thread of its own for a stream: asks a sensor again and again, and pushes what it says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

JOIN_S = 1.0
"""The end of an episode waits so long for a sensor that is being asked; then it goes on without it."""


class Poller:
    """Calls `read` on a thread of its own, and `push` with what it returned, until it is stopped.

    Args:
        name: Of the stream.
        read: Asks the sensor: a value; `(value, timestamp_ns)`; or None, after which it is not asked again.
        push: Takes the value and its stamp, or None.
        rate_hz: How often it is asked; None: again as soon as it has answered.

    Attributes:
        error: What `read` or `push` raised, after which it was not asked again.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[], Any],
        push: Callable[[Any, int | None], None],
        *,
        rate_hz: float | None,
    ) -> None:
        self.name = name
        self.error: Exception | None = None
        self._read = read
        self._push = push
        self._period_s = None if rate_hz is None else 1 / rate_hz
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"salus-poll-{name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask it no more. An answer that is under way is dropped."""
        self._stop.set()

    def join(self) -> None:
        """Wait for the thread, but not long: a sensor may never answer."""
        if self._thread is not threading.current_thread():
            self._thread.join(JOIN_S)

    def _run(self) -> None:
        try:
            self._ask()
        finally:
            del self._read, self._push  # which know the episode, which knows this

    def _ask(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            try:
                value = self._read()
                if value is None:
                    return
                if not self._stop.is_set():
                    self._push(*(value if isinstance(value, tuple) else (value, None)))
            except Exception as error:  # noqa: BLE001 - kept; the episode says so
                if not self._stop.is_set():
                    self.error = error
                return
            if self._period_s is not None:
                due = max(due + self._period_s, time.monotonic() - self._period_s)  # late: no burst to catch up
                self._stop.wait(max(due - time.monotonic(), 0))


class Pollers:
    """The pollers of one episode."""

    def __init__(self) -> None:
        self._all: list[Poller] = []

    def add(self, poller: Poller) -> None:
        """One more."""
        self._all.append(poller)

    def stop(self) -> None:
        """Ask no sensor any more."""
        for poller in self._all:
            poller.stop()

    def join(self) -> None:
        """Wait for the threads, but not long."""
        for poller in self._all:
            poller.join()

    def ended(self) -> tuple[str, Exception] | None:
        """A stream that has ended by an error, and the error; each once."""
        for poller in self._all:
            if poller.error is not None:
                error, poller.error = poller.error, None
                return poller.name, error
        return None
