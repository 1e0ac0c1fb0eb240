"""Bounded caches of one process: values used last, and decoded steps side by side in one block of memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

import numpy as np

Value = TypeVar("Value")


class Cache(Generic[Value]):
    """The values used last, up to a budget. A value that several threads want at once is made once.

    Thread-safety: safe.
    """

    def __init__(self, budget: int, cost: Callable[[Value], int]) -> None:
        self._budget = budget
        self._cost = cost
        self._used = 0
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._making: dict[Hashable, Future[Value] | None] = {}
        # Reentrant: a reader may be collected, and drop its files, amid a call on the same thread.
        self._lock = threading.RLock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of `key`, made where it is not there."""
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
                return value
            is_being_made = key in self._making
            if is_being_made:  # by another thread: wait, on what the first to wait puts there
                awaited = self._making[key] = self._making[key] or Future()
            else:
                self._making[key] = None
        if is_being_made:
            return awaited.result()
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                waiting = self._making.pop(key)
            if waiting is not None:
                waiting.set_exception(error)
            raise
        with self._lock:
            fallen = self._keep(key, value)
            waiting = self._making.pop(key)
        del fallen
        if waiting is not None:
            waiting.set_result(value)
        return value

    def find(self, key: Hashable) -> Value | None:
        """The value of `key`, where it is there: for values so cheap to make that two threads may make one twice."""
        value = self._values.get(key)
        if value is not None:
            try:  # noqa: SIM105 - asked for every image, so each microsecond counts
                self._values.move_to_end(key)  # atomic, as `get` is: no lock
            except KeyError:  # it fell out between the two
                pass
        return value

    def keep(self, key: Hashable, value: Value) -> None:
        """Put a value that was not found."""
        with self._lock:
            fallen = self._keep(key, value)
        del fallen

    def _keep(self, key: Hashable, value: Value) -> list[Value]:
        """Returns what falls out: it may close a file, which is to happen when the lock is free."""
        before = self._values.pop(key, None)
        self._values[key] = value
        self._used += self._cost(value) - (self._cost(before) if before is not None else 0)
        fallen = []
        while self._used > self._budget and len(self._values) > 1:
            fallen.append(self._values.popitem(last=False)[1])
            self._used -= self._cost(fallen[-1])
        return fallen

    def drop(self, unwanted: Callable[[Any], bool]) -> None:
        """Forget every value whose key is unwanted."""
        with self._lock:
            keys = [key for key in self._values if unwanted(key)]
            dropped = [self._values.pop(key) for key in keys]
            self._used -= sum(map(self._cost, dropped))


class ChunkBlock:
    """Decoded chunks of one array in one block of memory, so that one indexing operation reads many of them.

    It only grows, so what was once read from it stays right. When it is full, the owner begins another.

    Args:
        chunk_shape: Shape of a chunk, steps first.
        dtype: Of the values.
        num_chunks: How many fit.

    Thread-safety: safe.
    """

    def __init__(self, chunk_shape: tuple[int, ...], dtype: np.dtype[Any], num_chunks: int) -> None:
        # Memory that no chunk was written to is never touched, so it costs nothing.
        self._chunks = np.empty((num_chunks, *chunk_shape), dtype)
        self.steps = self._chunks.reshape(num_chunks * chunk_shape[0], *chunk_shape[1:])
        self._places: dict[Hashable, int] = {}
        self._reserved = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._chunks)

    def find(self, keys: Sequence[Hashable]) -> list[int]:
        """The place of each chunk, -1 where it is not there."""
        places = self._places
        return [places.get(key, -1) for key in keys]

    def reserve(self, count: int) -> range | None:
        """Places for so many more chunks, or None where they do not fit."""
        with self._lock:
            first, after = self._reserved, self._reserved + count
            if after > len(self._chunks):
                return None
            self._reserved = after
            return range(first, after)

    def chunks(self, place: int, count: int) -> np.ndarray:
        """The memory of reserved places side by side: (count * chunk_steps, *step shape)."""
        steps = len(self.steps) // len(self._chunks)
        values: np.ndarray = self.steps[place * steps : (place + count) * steps]
        return values

    def know(self, key: Hashable, place: int) -> None:
        """Say that the chunk of `key` is complete in `place`."""
        self._places[key] = place
