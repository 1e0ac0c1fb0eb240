"""Memory for batches that is used again once nobody holds the batch any more.

A batch of images is tens of megabytes. Fresh memory of that size comes from the kernel page by page, zeroed, which
costs about a third of decoding the images. A buffer that was handed out comes back by itself when the last array, view
or tensor on it is gone, so nothing that a caller keeps ever changes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

SMALLEST_BYTES = 2**20
KEPT_BYTES = 512 * 2**20

Memory = Callable[[int], np.ndarray]
"""Bytes wanted to uint8 (bytes,)."""


class BufferPool:
    """Arrays on memory that is used again.

    Args:
        memory: Makes fresh memory, such as pinned memory.
        kept_bytes: Bytes of unused buffers that are kept at most.

    Thread-safety: safe. Fork: safe; memory is the child's own.
    """

    def __init__(self, memory: Memory | None = None, *, kept_bytes: int = KEPT_BYTES) -> None:
        self._memory = memory or _heap
        self._kept_bytes = kept_bytes
        # A buffer comes back wherever the garbage collector runs, so also amid a call of this pool on the same thread:
        # a lock would deadlock there. Appending to and popping from a deque is atomic.
        self._unused: deque[np.ndarray] = deque()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """An array of that shape, its values undefined. Small ones, and those of objects, are plain arrays."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < SMALLEST_BYTES or dtype.hasobject:
            return np.empty(shape, dtype)
        buffer = self._unused_one(nbytes)
        lease = _Lease(self._memory(nbytes) if buffer is None else buffer, self)
        return np.asarray(lease)[:nbytes].view(dtype).reshape(shape)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_unused": deque()}  # a copy has memory of its own

    def _unused_one(self, nbytes: int) -> np.ndarray | None:
        """An unused buffer that is large enough, and at most twice as large, as episodes differ in length."""
        for _ in range(len(self._unused)):
            try:
                buffer = self._unused.pop()  # the last one used: it is in the processor's caches
            except IndexError:  # another thread was faster
                return None
            if nbytes <= buffer.nbytes <= 2 * nbytes:
                return buffer
            self._unused.appendleft(buffer)
        return None

    def give_back(self, buffer: np.ndarray) -> None:
        """Called when the last array on `buffer` is gone."""
        self._unused.append(buffer)
        try:
            while sum(unused.nbytes for unused in tuple(self._unused)) > self._kept_bytes:
                self._unused.popleft()
        except (IndexError, RuntimeError):  # other threads take and give meanwhile; the next one tidies up
            return


class _Lease:
    """What arrays on a buffer hold; numpy keeps it, not the buffer, as the base of every view."""

    def __init__(self, buffer: np.ndarray, pool: BufferPool) -> None:
        self._buffer = buffer
        self._pool = pool
        self.__array_interface__ = buffer.__array_interface__

    def __del__(self) -> None:
        self._pool.give_back(self._buffer)


def _heap(nbytes: int) -> np.ndarray:
    return np.empty(nbytes, np.uint8)


default = BufferPool()
"""The pool of this process."""
