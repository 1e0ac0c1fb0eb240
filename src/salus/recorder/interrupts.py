"""SIGTERM while a recorder is open becomes an exception, so that blocks are left and episodes end, as for Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Literal

OnInterrupt = Literal["abort", "salvage"]


class Terminated(SystemExit):
    """SIGTERM came while a recorder was open. The program ends with status 143, as shells say it."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


INTERRUPTS = (KeyboardInterrupt, Terminated)


class Watch:
    """Turns SIGTERM into `Terminated` in the main thread, while at least one recorder is open in a block.

    Nothing is done where the program has a handler of its own, or outside the main thread.
    """

    def __init__(self) -> None:
        self._recorders = 0
        self._pid = 0
        self._closing = False
        self._terminating = False
        self._pending = False

    def start(self) -> bool:
        """One more recorder; says whether it is watched for."""
        if threading.current_thread() is not threading.main_thread():
            return False
        current = signal.getsignal(signal.SIGTERM)
        if current is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._received)
            self._pid, self._recorders = os.getpid(), 0
            self._closing = self._terminating = self._pending = False
        elif current != self._received or self._pid != os.getpid():
            return False
        self._recorders += 1
        return True

    def close(self) -> None:
        """A recorder closes: a SIGTERM now waits until `stop`."""
        self._closing = True

    def stop(self) -> None:
        """One recorder less; the last one restores what was.

        Raises:
            Terminated: A SIGTERM waited.
        """
        self._recorders -= 1
        self._closing = False
        if self._recorders == 0 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self._pending and not self._terminating:
            self._terminating = True
            raise Terminated

    def _received(self, number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self._pid or self._recorders == 0:  # a forked child; or closed outside the main thread
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self._closing or self._terminating:  # once is enough
            self._pending = True
        else:
            self._terminating = True
            raise Terminated


watch = Watch()
