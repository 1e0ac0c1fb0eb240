"""Uploads: what a recorder has finished goes from the spool to the bucket in the background, again and again.

An episode in a bucket is committed in two steps: its shards, complete and durable in the spool, go up while it is still
being recorded; its record goes up when they are all there. While the bucket is out of reach, recording goes on.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from ..errors import AlreadyExistsError, CommitUnknownError, EpisodeFencedError, SalusError
from ..storage import LocalStorage, Storage

Value = TypeVar("Value")
Answer = TypeVar("Answer")

_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 10.0


@dataclass(frozen=True)
class UploadStatus:
    """What a recorder still has to bring to the bucket, and how that goes: one consistent moment of it.

    Attributes:
        capacity_bytes: `spool_bytes` of the recorder.
        depth_bytes: Bytes of finished shards that wait in the spool, or are on their way.
        peak_bytes: The most that ever did.
        uploaded_bytes: Bytes of shards that have arrived.
        waits: How often writing had to wait for room in the spool.
        waited_s: How long it waited, in seconds.
        failures: Tries that failed; each is repeated.
        error: Why the last try failed; `""` once one has succeeded after it.
    """

    capacity_bytes: int
    depth_bytes: int = 0
    peak_bytes: int = 0
    uploaded_bytes: int = 0
    waits: int = 0
    waited_s: float = 0.0
    failures: int = 0
    error: str = ""


@dataclass(eq=False)
class Upload:
    """One shard on its way.

    Attributes:
        key: Where it goes.
        path: Where it lies in the spool; removed once it has arrived.
        size: Its bytes.
        dropped: Nobody wants it any more.
        done: Ends with None, or with what kept it from arriving for good.
    """

    key: str
    path: Path
    size: int
    dropped: threading.Event = field(default_factory=threading.Event)
    done: Future[None] = field(default_factory=Future)


class Uploads:
    """Brings shards and records of a recorder to a bucket.

    Args:
        storage: The dataset's.
        spool: Where the shards lie until they have arrived.
        capacity_bytes: Bytes of finished shards that may wait; see `wait_for_room`.
        within_s: How long a commit waits for the bucket, in seconds.
        threads: Shards that are on their way at a time.

    Thread-safety: safe.
    """

    def __init__(
        self, storage: Storage, spool: LocalStorage, *, capacity_bytes: int, within_s: float, threads: int = 4
    ) -> None:
        self.spool = spool
        self._storage = storage
        self._within_s = within_s
        self._queue: queue.SimpleQueue[Upload | None] = queue.SimpleQueue()
        self._status = UploadStatus(capacity_bytes)
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name=f"salus-upload-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def status(self) -> UploadStatus:
        """What waits, and how it goes."""
        with self._changed:
            return self._status

    def add(self, key: str, path: Path, size: int) -> Upload:
        """Bring a shard, which is complete and durable, to its key; it is removed from the spool then."""
        upload = Upload(key, path, size)
        with self._changed:
            depth = self._status.depth_bytes + size
            self._status = replace(self._status, depth_bytes=depth, peak_bytes=max(self._status.peak_bytes, depth))
        self._queue.put(upload)
        return upload

    @property
    def has_room(self) -> bool:
        """Whether `wait_for_room` would not wait."""
        return self._status.depth_bytes <= self._status.capacity_bytes

    def wait_for_room(self, is_over: Callable[[], bool]) -> None:
        """Wait while more than the capacity waits in the spool.

        Args:
            is_over: Whether there is no point in it any more; `ask_again` has it asked again.

        Raises:
            CommitUnknownError: It did for as long as a commit may wait.
        """
        began = time.monotonic()
        with self._changed:
            fits = self._changed.wait_for(lambda: self.has_room or self._stopped.is_set() or is_over(), self._within_s)
            status = self._status
            waited_s = status.waited_s + time.monotonic() - began
            self._status = replace(status, waits=status.waits + 1, waited_s=waited_s)
        if not fits:
            raise self._not_confirmed(f"the spool is full, with {status.depth_bytes} bytes that wait")

    def drop(self, uploads: Sequence[Upload]) -> None:
        """Nobody wants these any more."""
        for upload in uploads:
            upload.dropped.set()
        self.ask_again()

    def ask_again(self) -> None:
        """Have who waits ask again whether there is a point in it."""
        with self._changed:
            self._changed.notify_all()

    def decide(
        self, uploads: Sequence[Upload], put: Callable[[], Answer], end: Callable[[Answer], Value], *, else_recover: str
    ) -> Future[Value]:
        """Put the record of an episode, on a thread of its own, once its shards have arrived.

        Args:
            uploads: Its shards.
            put: Puts the record; called again where the bucket was out of reach. A call that nobody waits for any more
                may still put it.
            end: Takes what `put` returned in time.
            else_recover: What `salus.recover` does with the episode otherwise.

        Returns:
            What `end` returns. Or EpisodeFencedError: another process decided the episode, or wrote its shards; or
            CommitUnknownError: the bucket did not confirm it in time, and what the episode has is in the spool.
        """

        def decide() -> Value:
            try:
                return end(self._decide(uploads, put, else_recover))
            except BaseException:
                self.drop(uploads)
                raise

        return _on_a_thread("salus-decide", decide)

    def _decide(self, uploads: Sequence[Upload], put: Callable[[], Answer], else_recover: str) -> Answer:
        deadline = time.monotonic() + self._within_s
        for upload in uploads:
            try:
                upload.done.result(max(deadline - time.monotonic(), 0))
            except NotInTime:
                raise self._not_confirmed(f"{upload.key} has not arrived", else_recover) from None
        # In a network that swallows everything, one try takes minutes: so it is on a thread of its own.
        tries = _on_a_thread(
            "salus-put", lambda: self._repeated(put, lambda: time.monotonic() > deadline, else_recover)
        )
        try:
            answer = tries.result(max(deadline - time.monotonic(), 0))
        except NotInTime:
            raise self._not_confirmed("the record has not arrived", else_recover) from None
        self._succeeded()
        return answer

    def close(self) -> None:
        """Stop; what has not arrived stays in the spool, for `salus.recover`."""
        self.stop()
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        """Stop soon, without waiting for it."""
        self._stopped.set()
        self.ask_again()
        for _ in self._threads:
            self._queue.put(None)

    def _run(self) -> None:
        while (upload := self._queue.get()) is not None:
            if not self._stopped.is_set():
                self._bring(upload)

    def _bring(self, upload: Upload) -> None:
        arrived = False
        try:
            arrived = self._repeated(lambda: self._put(upload), upload.dropped.is_set)
            if arrived:
                with suppress(OSError):  # left over, it goes with the folder of the episode
                    upload.path.unlink()
            upload.done.set_result(None)
        except Exception as error:  # noqa: BLE001 - the commit raises it
            upload.done.set_exception(error)
        with self._changed:
            status = self._status
            uploaded = status.uploaded_bytes + upload.size * arrived
            self._status = replace(status, depth_bytes=status.depth_bytes - upload.size, uploaded_bytes=uploaded)
            self._changed.notify_all()

    def _put(self, upload: Upload) -> bool:
        """Whether it is there now: what nobody wants any more stays in the spool."""
        if upload.dropped.is_set():
            return False
        try:
            self._storage.put_new_file(upload.key, upload.path)
        except AlreadyExistsError as error:
            raise EpisodeFencedError(f"another process wrote its shards: {error}") from error
        except FileNotFoundError:
            if not upload.dropped.is_set():
                raise
            return False  # the episode was ended meanwhile, and its folder removed
        self._succeeded()
        return True

    def _repeated(
        self, put: Callable[[], Value], is_over: Callable[[], bool], else_recover: str = "brings it up"
    ) -> Value:
        """`put`, until it succeeds, or is refused for good, or there is no point in it any more."""
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                return put()
            except (EpisodeFencedError, FileNotFoundError):  # the latter: the shard is gone from the spool
                raise
            except Exception as error:  # whatever it is, such as too many open files: the spool has it still
                why = str(error) if isinstance(error, SalusError) else repr(error)
                self._failed(why)
                with self._changed:
                    if self._changed.wait_for(lambda: self._stopped.is_set() or is_over(), wait_s):
                        raise self._not_confirmed(why, else_recover) from error
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _failed(self, why: str) -> None:
        with self._changed:
            first = not self._status.error
            self._status = replace(self._status, failures=self._status.failures + 1, error=why)
        if first:
            sys.stderr.write(
                f"salus: uploading fails and is tried again, recording goes on into the spool; {why}; "
                f"{self.spool.url}\n"
            )

    def _succeeded(self) -> None:
        with self._changed:
            failed = bool(self._status.error)
            self._status = replace(self._status, error="")
        if failed:
            sys.stderr.write(f"salus: uploading goes on; {self._storage.url}\n")

    def _not_confirmed(self, why: str, else_recover: str = "brings it up") -> CommitUnknownError:
        last = f" ({self.status.error})" if self.status.error and self.status.error not in why else ""
        return CommitUnknownError(
            f"the bucket did not confirm the episode in {self._within_s:g} s: {why}{last}; what was recorded is kept "
            f"in {self.spool.url}, and salus.recover({self._storage.url!r}) {else_recover}"
        )


def _on_a_thread(name: str, function: Callable[[], Value]) -> Future[Value]:
    done: Future[Value] = Future()

    def run() -> None:
        try:
            done.set_result(function())
        except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is
            done.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return done
