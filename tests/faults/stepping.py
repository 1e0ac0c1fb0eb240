"""Actors on one dataset that take turns between any two steps of the protocol, in an order drawn from a seed.

The log code is the real one. What it runs on is a `Storage` in memory, whose every call is one step: so a whole
schedule takes milliseconds, and the same seed gives the same schedule. An actor may crash between any two steps.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from salus.errors import AlreadyExistsError
from salus.storage import Storage
from salus.storage.publication import OvertakenError, Publication, Version

Body = Callable[[], None]
Result = TypeVar("Result")


class CrashError(BaseException):
    """Ends an actor where it stands, as SIGKILL would; nothing in the code under test catches it."""


class Schedule:
    """Runs actors in turns.

    Args:
        seed: Of the order, and of who crashes when.
        crashes: Probability that an actor which may crash does so at a step.
    """

    def __init__(self, seed: int, *, crashes: float = 0.01) -> None:
        self.random = random.Random(seed)  # noqa: S311 - an order
        self.steps: list[str] = []
        self._crashes = crashes
        self._actors: list[_Actor] = []
        self._turn = threading.local()
        self._back = threading.Semaphore(0)

    def add(self, name: str, body: Body, *, may_crash: bool = False) -> None:
        """An actor more; it begins with the first step of `run`."""
        self._actors.append(_Actor(name, body, may_crash))

    def run(self) -> list[str]:
        """Run all actors to their ends; returns the names of those that crashed, raises what one raised."""
        for actor in self._actors:
            actor.thread = threading.Thread(target=self._play, args=(actor,), name=actor.name)
            actor.thread.start()
        going, crashed = list(self._actors), []
        while going:
            able = [actor for actor in going if actor.waits_for is None or not actor.waits_for()]
            if not able:
                raise AssertionError(f"all wait for each other: {[actor.name for actor in going]}")
            actor = self.random.choice(able)
            if actor.may_crash and self.random.random() < self._crashes:
                actor.crashed = True
                crashed.append(actor.name)
            actor.go.release()
            self._back.acquire()
            if actor.ended:
                actor.thread.join()
                going.remove(actor)
        for actor in self._actors:
            if actor.error is not None:
                raise actor.error
        return crashed

    def step(self, what: str, waits_for: Callable[[], bool] | None = None) -> None:
        """Called by an actor before each step: the others may take theirs. No step where no actor is running."""
        actor = getattr(self._turn, "actor", None)
        if actor is None:
            return
        if not actor.crashed:
            actor.waits_for = waits_for
            self._back.release()
            actor.go.acquire()
        if actor.crashed:  # also at the steps of any clean-up that would follow
            raise CrashError
        self.steps.append(f"{actor.name}: {what}")

    def _play(self, actor: _Actor) -> None:
        actor.go.acquire()
        self._turn.actor = actor
        try:
            if not actor.crashed:
                actor.body()
        except CrashError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by run()
            error.add_note(f"in {actor.name}, after: {'; '.join(self.steps[-40:])}")
            actor.error = error
        finally:
            actor.ended = True
            self._back.release()


class _Actor:
    def __init__(self, name: str, body: Body, may_crash: bool) -> None:
        self.name, self.body, self.may_crash = name, body, may_crash
        self.go = threading.Semaphore(0)
        self.crashed = self.ended = False
        self.waits_for: Callable[[], bool] | None = None
        self.error: BaseException | None = None
        self.thread: threading.Thread


class MemoryStorage:
    """A `salus.storage.Storage` in memory. Every call is a step of the schedule; each step is atomic.

    Attributes:
        objects: All objects by key.
        watch: Called after every `put` of one object: it sees each state that a reader of derived objects could see.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.objects: dict[str, bytes] = {}
        self.watch: Body = lambda: None
        self._schedule = schedule
        self._locked = False

    requests_at_once = 1

    @property
    def url(self) -> str:
        return "memory"

    def put_new(self, key: str, body: bytes) -> None:
        self._schedule.step(f"put_new {key}")
        if key in self.objects and self.objects[key] != body:
            raise AlreadyExistsError(f"put {key}: another object is there")
        self.objects[key] = body

    def put_new_file(self, key: str, source: Path) -> None:
        self.put_new(key, source.read_bytes())

    def put(self, objects: Mapping[str, bytes]) -> None:
        for key, body in objects.items():
            self._schedule.step(f"put {key}")
            self.objects[key] = body
            self.watch()

    def get(self, key: str) -> bytes | None:
        self._schedule.step(f"get {key}")
        return self.objects.get(key)

    def list(self, folder: str) -> list[str]:
        self._schedule.step(f"list {folder}")
        start = f"{folder}/"
        return sorted({key[len(start) :].partition("/")[0] for key in self.objects if key.startswith(start)})

    def sync(self, folder: str) -> None:
        self._schedule.step(f"sync {folder}")

    def publication(self, publish: Callable[[Storage], Result]) -> Result:
        with self.lock():
            return publish(self)

    @contextmanager
    def lock(self) -> Iterator[None]:
        self._schedule.step("lock", waits_for=lambda: self._locked)
        self._locked = True
        try:
            yield
        finally:
            self._locked = False  # a crash gives it up as well

    def open_shard(self, key: str) -> _MemoryFile | None:
        self._schedule.step(f"open {key}")
        body = self.objects.get(key)
        return None if body is None else _MemoryFile(body)


class MemoryObjects(MemoryStorage):
    """The same without a lock, as object stores are: what a publisher puts replaces only the version that it read."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        self._versions: dict[str, int] = {}

    def publication(self, publish: Callable[[Storage], Result]) -> Result:
        while True:  # as `published` does, which waits in between
            with suppress(OvertakenError):
                return Publication(self).run(publish)

    def get_version(self, key: str) -> tuple[bytes, Version] | None:
        self._schedule.step(f"get {key}")
        body = self.objects.get(key)
        return None if body is None else (body, {"e_tag": str(self._versions[key])})

    def replace(self, key: str, body: bytes, version: Version | None) -> Version | None:
        self._schedule.step(f"replace {key}")
        there = {"e_tag": str(self._versions[key])} if key in self.objects else None
        if there != version:
            return None
        self.objects[key] = body
        self._versions[key] = self._versions.get(key, 0) + 1
        self.watch()
        return {"e_tag": str(self._versions[key])}


class _MemoryFile:
    def __init__(self, body: bytes) -> None:
        self._body = body
        self.size = len(body)

    def read(self, start: int, size: int) -> bytes:
        return self._body[start : start + size]

    def prefetch(self, start: int, size: int) -> None:
        pass
