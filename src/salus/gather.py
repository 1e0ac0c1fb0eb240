"""The read engine: batched reads of steps of many episodes, decoded straight into the output.

A read is planned first: steps sorted by place, repeated ones dropped, neighbours read together. Then a small pool of
threads takes the pieces one by one, reads, checks and decodes them; zstd runs without the GIL. What is kept is bounded,
each with a budget of its own: open files, shard indexes, decoded chunks (64 MiB for each small feature), labels.

Thread-safety: safe. Fork: a forked child gets fresh caches and threads of its own; plain descriptors survive.
"""

from __future__ import annotations

import functools
import itertools
import os
import resource
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from . import buffers
from .caches import Cache, ChunkBlock
from .codecs import decode_chunk
from .errors import CorruptDataError
from .layout import ArraySpec, recorded_arrays
from .log.entries import Entry
from .schema import Schema
from .shards import ShardIndex, ShardReader
from .storage import Storage

MAX_THREADS = 8
MAX_OPEN_FILES = 2048
INDEX_CACHE_BYTES = 64 * 2**20
CHUNK_CACHE_BYTES = 64 * 2**20
LABEL_CACHE_BYTES = 32 * 2**20
MAX_RUN_BYTES = 4 * 2**20
PARALLEL_FROM_BYTES = 2**20

Labels: TypeAlias = tuple[np.ndarray, np.ndarray]
Empty: TypeAlias = Callable[[tuple[int, ...], "np.dtype[Any]"], np.ndarray]
"""Shape and dtype to an array whose values are undefined."""

_Run: TypeAlias = tuple[ArraySpec, Entry, int, list[int], np.ndarray]
"""Consecutive steps of one segment: array, episode, first step, and the place of each in the output."""


@dataclass(frozen=True)
class Request:
    """Steps of one array.

    Attributes:
        spec: The array.
        entries: Episodes.
        rows: int64 (n,), positions in `entries`.
        steps: int64 (n,) or (n, w), each within its episode.
        compute: For values that are not stored: all steps (T, *step_shape) of an episode.
    """

    spec: ArraySpec
    entries: Sequence[Entry]
    rows: np.ndarray
    steps: np.ndarray
    compute: Callable[[Entry], np.ndarray] | None = None


class Reader:
    """Reads arrays of one dataset. Shared by all views of it; picklable, for workers."""

    def __init__(self, storage: Storage, schemas: Sequence[Schema]) -> None:
        self.storage = storage
        self.schemas = schemas
        self._state = _State()

    @property
    def schemas(self) -> Sequence[Schema]:
        """All schema revisions; later ones may be added."""
        return self._schemas

    @schemas.setter
    def schemas(self, schemas: Sequence[Schema]) -> None:
        self._schemas = schemas
        names = ([spec.name for spec in recorded_arrays(schema)] for schema in schemas)
        self._ranks = [{name: rank for rank, name in enumerate(some)} for some in names]

    def __getstate__(self) -> dict[str, Any]:
        return {"storage": self.storage, "schemas": self.schemas}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # a fresh reader: caches do not travel

    def read(
        self, requests: Sequence[Request], *, empty: Empty | None = None, parallel: bool = True
    ) -> list[np.ndarray]:
        """Read steps of several arrays at once.

        Args:
            requests: What to read.
            empty: Makes the arrays that are decoded into; by default memory that is used again when they are gone.
            parallel: Use the threads of the read engine, not the calling thread alone.

        Returns:
            For each request (n, *step_shape), or (n, w, *step_shape). Images of layout CHW are a view on channels-last
            memory.

        Raises:
            CorruptDataError: Bytes are missing or changed. Names episode, array, steps and shard.
            StorageError: They cannot be read.
        """
        state = self._fresh_state()
        empty = empty or buffers.default.empty
        outputs: list[np.ndarray] = []
        runs: list[_Run] = []
        repeated = []
        for request in requests:
            spec = request.spec
            out = empty((*request.steps.shape, *spec.stored_step_shape), spec.numpy_dtype)
            flat = out.reshape(-1, *spec.stored_step_shape)
            outputs.append(spec.as_seen(flat).reshape(*request.steps.shape, *spec.step_shape))
            if spec.chunk_steps == 1 and request.compute is None:
                planned, copies = _plan(request, flat)
                runs += planned
                repeated.append((flat, *copies))
            elif spec.is_text:
                self._read_texts(state, request, flat)
            else:
                self._read_small(state, request, flat, parallel)
        self._decode_all(state, runs, parallel)
        for flat, places, sources in repeated:
            if len(places):
                flat[places] = flat[sources]
        return outputs

    def prefetch(self, spec: ArraySpec, entry: Entry, start: int, stop: int) -> None:
        """Tell the storage that steps `start` … `stop - 1` of an episode will be read soon."""
        state = self._fresh_state()
        for segment in range(start // spec.segment_steps, spec.segments(stop)):
            base = segment * spec.segment_steps
            first, last = max(start, base) - base, min(stop - base, spec.segment_steps) - 1
            chunks = first // spec.chunk_steps, last // spec.chunk_steps
            try:
                self._shard(state, spec, entry, segment).prefetch(chunks[0], chunks[1] - chunks[0] + 1)
            except CorruptDataError as error:
                raise _located(error, spec, entry, start, stop - 1) from error

    def labels(self, entry: Entry, compute: Callable[[], Labels]) -> Labels:
        """The labels and mask of an episode, kept for a while; not to be changed."""
        return self._fresh_state().labels.get((entry.digest, *_outcome(entry)), compute)

    # --- arrays of one step per chunk: images --------------------------------------------------------------------

    def _decode_all(self, state: _State, runs: list[_Run], parallel: bool) -> None:
        waiting = iter(runs)  # shared: each thread takes the next run, so none waits for another's share

        def work() -> None:
            for spec, entry, step, places, out in waiting:
                segment, chunk = divmod(step, spec.segment_steps)
                try:
                    shard = self._shard(state, spec, entry, segment)
                    if len(places) == 1:  # the usual case of training: every microsecond here is held against decoding
                        place = places[0]
                        decode_chunk(spec, shard.chunk(chunk), out[place : place + 1])
                        continue
                    for place, data in zip(places, shard.chunks(chunk, len(places)), strict=True):
                        decode_chunk(spec, data, out[place : place + 1])
                        step += 1  # noqa: PLW2901 - for the error: the step that was reached
                except CorruptDataError as error:
                    raise _located(error, spec, entry, step, step) from error

        nbytes = sum(len(places) * spec.chunk_bytes for spec, _, _, places, _ in runs[:64])
        state.run(work, len(runs) if parallel and nbytes >= PARALLEL_FROM_BYTES else 1)

    # --- arrays of many steps per chunk --------------------------------------------------------------------------

    def _read_small(self, state: _State, request: Request, out: np.ndarray, parallel: bool) -> None:
        """Each chunk is decoded once, and kept for a while beside the others, so that a batch is one indexing."""
        spec = request.spec
        if out.shape[0] == 0:
            return
        chunks, within = np.divmod(request.steps, spec.chunk_steps)
        rows = request.rows
        if chunks.ndim == 2:
            if (chunks == chunks[:, :1]).all():  # every window lies in one chunk
                chunks = chunks[:, 0]
            else:
                rows, chunks, within = np.repeat(rows, chunks.shape[1]), chunks.ravel(), within.ravel()
        room = max(1, CHUNK_CACHE_BYTES // spec.chunk_bytes)
        windows = out.reshape(*within.shape, *spec.stored_step_shape)
        for start in range(0, len(rows), room):  # one piece, unless the request is larger than the cache
            part = slice(start, start + room)
            keys = [
                _chunk_key(request, row, chunk)
                for row, chunk in zip(rows[part].tolist(), chunks[part].tolist(), strict=True)
            ]
            block, places = self._chunks(state, request, keys, parallel)
            base = np.array(places, np.int64) * spec.chunk_steps
            wanted = within[part] + (base[:, None] if within.ndim == 2 else base)
            np.take(block.steps, wanted, axis=0, out=windows[part], mode="clip")  # clip: writes without a buffer

    def _chunks(
        self, state: _State, request: Request, keys: list[_ChunkKey], parallel: bool
    ) -> tuple[ChunkBlock, list[int]]:
        """A block that holds all these chunks, and where."""
        spec = request.spec
        block = state.block(spec)
        places = block.find([key[0] for key in keys])
        if -1 not in places:
            return block, places
        missing = {key[0]: key for key, place in zip(keys, places, strict=True) if place < 0}
        free = block.reserve(len(missing))
        while free is None:
            block = state.block(spec, instead_of=block)
            missing = {key[0]: key for key in keys}
            free = block.reserve(len(missing))
        waiting = iter(list(zip(missing.values(), free, strict=True)))

        def work() -> None:
            for (name, entry, chunk), place in waiting:
                if request.compute is None:
                    self._decode_chunk(state, spec, entry, chunk, block.chunk(place))
                else:
                    values = request.compute(entry)[chunk * spec.chunk_steps :][: spec.chunk_steps]
                    block.chunk(place)[: len(values)] = values
                block.know(name, place)

        # What is computed may read by itself, and must not wait for threads that wait for it.
        many = len(missing) * spec.chunk_bytes >= PARALLEL_FROM_BYTES and request.compute is None
        state.run(work, len(missing) if parallel and many else 1)
        return block, block.find([key[0] for key in keys])

    def _read_texts(self, state: _State, request: Request, out: np.ndarray) -> None:
        spec = request.spec
        rows = np.broadcast_to(request.rows.reshape(-1, *[1] * (request.steps.ndim - 1)), request.steps.shape).ravel()
        chunks, within = np.divmod(request.steps.ravel(), spec.chunk_steps)
        order = np.lexsort((chunks, rows))
        borders = np.flatnonzero((np.diff(rows[order]) != 0) | (np.diff(chunks[order]) != 0)) + 1
        for group in np.split(order, borders) if len(order) else []:
            entry, chunk = request.entries[rows[group[0]]], int(chunks[group[0]])
            decode = functools.partial(self._decode_chunk, state, spec, entry, chunk, None)
            values = state.texts.get((spec.name, entry.digest, chunk), decode)
            out[group] = values[within[group]]

    def _decode_chunk(
        self, state: _State, spec: ArraySpec, entry: Entry, number: int, out: np.ndarray | None
    ) -> np.ndarray:
        segment, chunk = divmod(number, spec.chunks_per_shard)
        try:
            # Where one chunk is all, it is read once and then kept decoded: the open file is not worth keeping.
            opened = self._open if spec.chunks_per_shard == 1 else self._shard
            return decode_chunk(spec, opened(state, spec, entry, segment).chunk(chunk), out)
        except CorruptDataError as error:
            first = number * spec.chunk_steps
            last = min(first + spec.chunk_steps, entry.num_steps) - 1
            raise _located(error, spec, entry, first, last) from error

    # --- shards --------------------------------------------------------------------------------------------------

    def _shard(self, state: _State, spec: ArraySpec, entry: Entry, segment: int) -> ShardReader:
        key = (state.number, spec.name, entry.digest, segment)
        shard = state.process.files.find(key)
        if shard is None:
            shard = self._open(state, spec, entry, segment)
            state.process.files.keep(key, shard)
        return shard

    def _open(self, state: _State, spec: ArraySpec, entry: Entry, segment: int) -> ShardReader:
        key = spec.shard_key(entry.slot, segment)
        expected = self._shard_size(spec, entry, segment)
        file = self.storage.open_shard(key)
        if file is None:
            raise CorruptDataError("the shard is missing")
        if file.size != expected:
            raise CorruptDataError(f"the shard has {file.size} bytes, expected {expected}")
        if spec.chunk_steps > 1:
            return ShardReader(file, spec)
        name = (spec.name, entry.digest, segment)
        index = state.indexes.find(name)
        shard = ShardReader(file, spec, index)
        if index is None:
            state.indexes.keep(name, shard.index)
        return shard

    def _shard_size(self, spec: ArraySpec, entry: Entry, segment: int) -> int:
        ranks, segments = self._ranks[entry.schema_revision], spec.segments(entry.num_steps)
        if len(entry.shard_sizes) != len(ranks) * segments:
            raise CorruptDataError(
                f"the snapshot knows the sizes of {len(entry.shard_sizes)} shards, expected {len(ranks) * segments}"
            )
        return entry.shard_sizes[ranks[spec.name] * segments + segment]

    def _fresh_state(self) -> _State:
        if self._state.process.pid != os.getpid():
            self._state = _State()
        return self._state


class _Process:
    """What all readers of one process share: the files that are open, and the threads."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        share = MAX_OPEN_FILES if limit == resource.RLIM_INFINITY else limit // 2
        self.files: Cache[ShardReader] = Cache(max(16, min(MAX_OPEN_FILES, share)), lambda _: 1)
        self.numbers = itertools.count()
        self.threads = default_threads()
        self.pool = ThreadPoolExecutor(max(1, self.threads - 1), thread_name_prefix="salus-read")


def _drop_files(process: _Process, number: int) -> None:
    """Close the files of a reader that is gone. Not in a forked child: a thread that is not there may hold the lock."""
    if process.pid == os.getpid():
        process.files.drop(lambda key: key[0] == number)


def default_threads() -> int:
    """One per core that this process may use, at most `MAX_THREADS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_THREADS, cores)


_process: _Process | None = None


def _this_process() -> _Process:
    global _process  # noqa: PLW0603 - one per process: a limit of open files is the process's
    if _process is None or _process.pid != os.getpid():
        _process = _Process()
    return _process


class _State:
    """The caches of one reader in one process."""

    def __init__(self) -> None:
        self.process = process = _this_process()
        self.number = number = next(process.numbers)
        self.indexes: Cache[ShardIndex] = Cache(INDEX_CACHE_BYTES, lambda index: index.nbytes)
        self.texts: Cache[np.ndarray] = Cache(CHUNK_CACHE_BYTES, lambda texts: texts.nbytes + sum(map(len, texts)))
        self.labels: Cache[Labels] = Cache(LABEL_CACHE_BYTES, lambda pair: pair[0].nbytes + pair[1].nbytes)
        self._blocks: dict[str, ChunkBlock] = {}
        weakref.finalize(self, _drop_files, process, number).atexit = False

    def block(self, spec: ArraySpec, instead_of: ChunkBlock | None = None) -> ChunkBlock:
        """The block of an array; a fresh one in place of one that is full."""
        block = self._blocks.get(spec.name)
        if block is None or block is instead_of:
            room = max(1, CHUNK_CACHE_BYTES // spec.chunk_bytes)
            block = ChunkBlock((spec.chunk_steps, *spec.stored_step_shape), spec.numpy_dtype, room)
            self._blocks[spec.name] = block
        return block

    def run(self, work: Callable[[], None], pieces: int) -> None:
        """`work` on this thread and, where there are pieces enough, on others at the same time."""
        helpers = [self.process.pool.submit(work) for _ in range(min(self.process.threads, pieces) - 1)]
        try:
            work()
        finally:
            for helper in helpers:
                if not helper.cancel():  # one that has not begun, behind another reader's work, is not waited for
                    helper.result()


_ChunkKey: TypeAlias = tuple[Hashable, Entry, int]


def _chunk_key(request: Request, row: int, chunk: int) -> _ChunkKey:
    entry = request.entries[row]
    name = (entry.digest, chunk) if request.compute is None else (entry.digest, chunk, *_outcome(entry))
    return name, entry, chunk


def _outcome(entry: Entry) -> tuple[Hashable, ...]:
    return entry.result, entry.failure_kind, entry.failure_step


def _plan(request: Request, out: np.ndarray) -> tuple[Iterable[_Run], tuple[np.ndarray, np.ndarray]]:
    """Runs of neighbouring steps in the order of the disk, each step once; then what is copied, and from where."""
    spec = request.spec
    rows = request.rows if request.steps.ndim == 1 else np.repeat(request.rows, request.steps.shape[1])
    steps = request.steps.ravel()
    order = np.lexsort((steps, rows))
    rows, steps = rows[order], steps[order]
    next_episode = np.diff(rows, prepend=-1) != 0
    distance = np.diff(steps, prepend=-1)
    first = next_episode | (distance != 0)  # not a repetition of the step before
    kept = np.flatnonzero(first)
    begins = next_episode | (distance > 1) | (steps % spec.segment_steps == 0)
    starts = np.flatnonzero(begins[kept])
    longest = max(1, MAX_RUN_BYTES // spec.chunk_bytes)
    places, entries = order[kept].tolist(), request.entries
    first_steps, first_rows = steps[kept].tolist(), rows[kept].tolist()
    runs = []
    for start, end in itertools.pairwise([*starts.tolist(), len(kept)]):
        for begin in range(start, end, longest):
            part = places[begin : min(begin + longest, end)]
            runs.append((spec, entries[first_rows[begin]], first_steps[begin], part, out))
    repeated = np.flatnonzero(~first)
    sources = order[kept[np.cumsum(first)[repeated] - 1]]
    return runs, (order[repeated], sources)


def _located(error: CorruptDataError, spec: ArraySpec, entry: Entry, first: int, last: int) -> CorruptDataError:
    steps = f"step {first}" if first == last else f"steps {first} .. {last}"
    key = spec.shard_key(entry.slot, first // spec.segment_steps)
    return CorruptDataError(f"episode {entry.uid}, {spec.name!r}, {steps}: {error}; {key}")
