"""The read engine: batched reads of steps of many episodes, decoded straight into the output.

A read is planned (sorted by place, duplicates dropped), then inner chunks are read by position, checked, and decoded by
a small thread pool; zstd runs without the GIL. Descriptors and decoded small chunks are kept in bounded caches.

Thread-safety: safe. Fork: a forked child gets fresh caches and threads of its own; plain descriptors survive.
"""

from __future__ import annotations

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np

from .codecs import decode_chunk
from .errors import CorruptDataError
from .layout import ArraySpec
from .log.snapshot import Entry, read_record
from .shards import ShardReader
from .storage import Storage

MAX_THREADS = 8
CHUNK_CACHE_BYTES = 64 * 2**20
LABEL_CACHE_BYTES = 32 * 2**20
SIZE_CACHE_SHARDS = 100_000
PARALLEL_FROM_CHUNKS = 8

Value = TypeVar("Value")
Labels: TypeAlias = tuple[np.ndarray, np.ndarray]


class Reader:
    """Reads arrays of one dataset. Shared by all views of it; picklable, for workers."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._state = _State()

    def __getstate__(self) -> dict[str, Any]:
        return {"storage": self.storage}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["storage"])  # type: ignore[misc]  # a fresh reader: caches do not travel

    def read(self, spec: ArraySpec, entries: Sequence[Entry], rows: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Read single steps.

        Args:
            spec: The array.
            entries: Episodes.
            rows: int64 (n,), positions in `entries`.
            steps: int64 (n,), each within its episode.

        Returns:
            (n, *step_shape) of the array's dtype. Images of layout CHW are a view on channels-last memory.

        Raises:
            CorruptDataError: Bytes are missing or changed. Names episode, array and shard.
        """
        state = self._fresh_state()
        out = np.empty((len(rows), *spec.stored_step_shape), spec.numpy_dtype)
        order = np.lexsort((steps, rows))
        if spec.chunk_steps == 1:
            self._read_single(state, spec, entries, rows[order], steps[order], order, out)
        else:
            self._read_grouped(state, spec, entries, rows[order], steps[order], order, out)
        return spec.as_seen(out)

    def labels(self, entry: Entry, compute: Callable[[], Labels]) -> Labels:
        """The labels and mask of an episode, kept for a while; not to be changed."""
        return self._fresh_state().labels.get((entry.uid, entry.outcome), compute)

    def _read_single(
        self,
        state: _State,
        spec: ArraySpec,
        entries: Sequence[Entry],
        rows: np.ndarray,
        steps: np.ndarray,
        places: np.ndarray,
        out: np.ndarray,
    ) -> None:
        """One inner chunk per step, decoded into its place in `out`; a repeated step is decoded once and copied."""
        if len(rows) == 0:
            return
        first = np.ones(len(rows), bool)
        first[1:] = (rows[1:] != rows[:-1]) | (steps[1:] != steps[:-1])
        wanted = np.flatnonzero(first)

        def decode(part: np.ndarray) -> None:
            for index in part.tolist():
                entry, step, place = entries[rows[index]], int(steps[index]), int(places[index])
                segment, chunk = divmod(step, spec.segment_steps)
                shard = self._shard(state, spec, entry, segment)
                self._decode(spec, entry, segment, shard.chunk(chunk), out[place : place + 1])

        state.run(decode, wanted)
        source = places[wanted[np.cumsum(first) - 1]]
        repeated = np.flatnonzero(~first)
        if len(repeated):
            out[places[repeated]] = out[source[repeated]]

    def _read_grouped(
        self,
        state: _State,
        spec: ArraySpec,
        entries: Sequence[Entry],
        rows: np.ndarray,
        steps: np.ndarray,
        places: np.ndarray,
        out: np.ndarray,
    ) -> None:
        """Many steps per inner chunk: each chunk is decoded once, and kept for a while."""
        if len(rows) == 0:
            return
        chunks = steps // spec.chunk_steps
        borders = np.flatnonzero((np.diff(rows) != 0) | (np.diff(chunks) != 0)) + 1
        for group in np.split(np.arange(len(rows)), borders):
            entry, number = entries[rows[group[0]]], int(chunks[group[0]])
            values = self._chunk(state, spec, entry, number)
            out[places[group]] = values[steps[group] - number * spec.chunk_steps]

    def _chunk(self, state: _State, spec: ArraySpec, entry: Entry, number: int) -> np.ndarray:
        segment, chunk = divmod(number, spec.chunks_per_shard)

        def decode() -> np.ndarray:
            shard = self._shard(state, spec, entry, segment)
            return self._decode(spec, entry, segment, shard.chunk(chunk), None)

        return state.chunks.get((spec.name, entry.slot, number), decode)

    def _decode(
        self, spec: ArraySpec, entry: Entry, segment: int, encoded: bytes, out: np.ndarray | None
    ) -> np.ndarray:
        try:
            return decode_chunk(spec, encoded, out)
        except CorruptDataError as error:
            raise _located(error, spec, entry, segment) from error

    def _shard(self, state: _State, spec: ArraySpec, entry: Entry, segment: int) -> ShardReader:
        return state.shards.get((spec.name, entry.slot, segment), lambda: self._open(state, spec, entry, segment))

    def _open(self, state: _State, spec: ArraySpec, entry: Entry, segment: int) -> ShardReader:
        key = spec.shard_key(entry.slot, segment)
        steps = min(entry.num_steps - segment * spec.segment_steps, spec.segment_steps)
        try:
            expected = state.sizes.get(entry.slot, lambda: self._shard_sizes(entry)).get(key)
            opened = self.storage.open_shard(key)
            if opened is None:
                raise CorruptDataError("the shard is missing")
            if opened[1] != expected:
                opened[2]()
                raise CorruptDataError(f"the shard has {opened[1]} bytes, expected {expected}")
            shard = ShardReader(*opened, spec, num_chunks=-(-steps // spec.chunk_steps))
        except CorruptDataError as error:
            raise _located(error, spec, entry, segment) from error
        return shard

    def _shard_sizes(self, entry: Entry) -> dict[str, int]:
        record = read_record(self.storage, entry.slot)
        if record is None or record.digest != entry.digest:
            raise CorruptDataError("the record is not the one that this snapshot was loaded from")
        return {shard.key: shard.size for shard in record.shards}

    def _fresh_state(self) -> _State:
        if self._state.pid != os.getpid():
            self._state = _State()
        return self._state


class _State:
    """Caches and threads of one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.shards: _Cache[ShardReader] = _Cache(max(16, min(512, descriptors // 4)), lambda _: 1)
        self.chunks: _Cache[np.ndarray] = _Cache(CHUNK_CACHE_BYTES, _memory)
        self.sizes: _Cache[dict[str, int]] = _Cache(SIZE_CACHE_SHARDS, len)
        self.labels: _Cache[Labels] = _Cache(LABEL_CACHE_BYTES, lambda pair: pair[0].nbytes + pair[1].nbytes)
        self._threads = min(MAX_THREADS, os.cpu_count() or 1)
        self._pool: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[np.ndarray], None], items: np.ndarray) -> None:
        """`work` on all items, in parallel where there are enough of them."""
        if len(items) < PARALLEL_FROM_CHUNKS or self._threads == 1:
            work(items)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="salus-read")
        for done in [self._pool.submit(work, part) for part in np.array_split(items, self._threads)]:
            done.result()


class _Cache(Generic[Value]):
    """The values used last, up to a budget. A value that several threads want at once is made once."""

    def __init__(self, budget: int, cost: Callable[[Value], int]) -> None:
        self._budget = budget
        self._cost = cost
        self._used = 0
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._making: dict[Hashable, Future[Value]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            making = self._making.get(key)
            if making is None:
                mine = self._making[key] = Future()
        if making is not None:  # another thread is at it
            return making.result()
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._making[key]
            mine.set_exception(error)
            raise
        with self._lock:
            self._values[key] = value
            self._used += self._cost(value)
            while self._used > self._budget and len(self._values) > 1:
                self._used -= self._cost(self._values.popitem(last=False)[1])
            del self._making[key]
        mine.set_result(value)
        return value


def _memory(values: np.ndarray) -> int:
    return values.nbytes + (sum(map(len, values)) if values.dtype == object else 0)


def _located(error: CorruptDataError, spec: ArraySpec, entry: Entry, segment: int) -> CorruptDataError:
    first = segment * spec.segment_steps
    last = min(entry.num_steps, first + spec.segment_steps) - 1
    return CorruptDataError(
        f"episode {entry.uid}, {spec.name!r}, steps {first} .. {last}: {error}; {spec.shard_key(entry.slot, segment)}"
    )
