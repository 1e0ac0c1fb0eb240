"""The read engine: batched reads of steps of many episodes, decoded straight into the output.

A read is planned first: cut into pieces of a few images that lie side by side in the output; in each, steps sorted by
place, repeated ones dropped, neighbours read together. Then a small pool of threads takes the pieces one by one, reads,
checks and decodes them; zstd takes a whole piece in one call, without the GIL. What is kept is bounded,
each with a budget of its own: open files with their indexes, decoded chunks (64 MiB for each small feature), labels.

Thread-safety: safe. Fork: a forked child gets fresh caches and threads of its own; plain descriptors survive.
"""

from __future__ import annotations

import functools
import itertools
import os
import resource
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from . import buffers
from .caches import Cache, ChunkBlock
from .codecs import decode_chunk, decode_chunks
from .errors import CorruptDataError, InvalidInputError
from .layout import ArraySpec, recorded_arrays
from .log.entries import Entry
from .schema import Schema
from .shards import ShardReader
from .storage import Storage

MAX_THREADS = 8
MAX_WAITING_THREADS = 64
MAX_OPEN_FILES = 2048
CHUNK_CACHE_BYTES = 64 * 2**20
LABEL_CACHE_BYTES = 32 * 2**20
CHUNKS_AT_ONCE = 16
PIECE_BYTES = 5 * 2**19
"""Images decoded in one call: 17 of 224 × 224. More leave the processor's second cache, fewer save less."""
PARALLEL_FROM_BYTES = 2**20

Labels: TypeAlias = tuple[np.ndarray, np.ndarray]
Empty: TypeAlias = Callable[[tuple[int, ...], "np.dtype[Any]"], np.ndarray]
"""Shape and dtype to an array whose values are undefined."""

_Run: TypeAlias = tuple[Entry, int, list[int]]
"""Consecutive steps of one segment: episode, first step, and the place of each in the output."""


@dataclass(frozen=True)
class _Piece:
    """Images that one thread reads.

    Attributes:
        spec: The array.
        runs: What is read, in the order of the disk.
        stretches: (first, end) places that are decoded in one call; all of `runs` together.
        out: (n, *stored_step_shape), all of the output.
    """

    spec: ArraySpec
    runs: list[_Run]
    stretches: list[tuple[int, int]]
    out: np.ndarray


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
        self._arrays = [recorded_arrays(schema) for schema in schemas]
        self._ranks = [{spec.name: rank for rank, spec in enumerate(some)} for some in self._arrays]

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
            InvalidInputError: More at once than memory takes.
            StorageError: They cannot be read.
        """
        state = self._fresh_state()
        empty = empty or buffers.default.empty
        nbytes = sum(request.steps.size * request.spec.chunk_bytes for request in requests if _is_of_images(request))
        threads = state.process.threads if parallel and nbytes >= PARALLEL_FROM_BYTES else 1
        threads = max(threads, self.storage.requests_at_once)  # those of a bucket wait for answers, not for a core
        # Small enough that no thread waits long for the last piece of another.
        piece_bytes = PIECE_BYTES if threads == 1 else min(PIECE_BYTES, nbytes // (4 * threads))
        outputs: list[np.ndarray] = []
        small: list[Callable[[], None]] = []
        pieces: list[Callable[[], None]] = []
        repeated = []
        for request in requests:
            spec = request.spec
            out = _allocated(empty, request)
            flat = out.reshape(-1, *spec.stored_step_shape)
            outputs.append(spec.as_seen(flat).reshape(*request.steps.shape, *spec.step_shape))
            if _is_of_images(request):
                planned, copies = _plan(request, flat, max(1, piece_bytes // spec.chunk_bytes))
                pieces += [functools.partial(self._decode_piece, state, piece) for piece in planned]
                repeated.append((flat, *copies))
            elif spec.is_text:
                small.append(functools.partial(self._read_texts, state, request, flat))
            else:
                small.append(functools.partial(self._read_small, state, request, flat, parallel))
        waiting = iter([*small, *pieces])  # shared: each thread takes the next one, so none waits for another's share

        state.run(waiting, min(threads, len(small) + len(pieces)))
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

    def _decode_piece(self, state: _State, piece: _Piece) -> None:
        spec = piece.spec
        packed: dict[int, bytes] = {}
        for entry, step, places in piece.runs:
            segment, chunk = divmod(step, spec.segment_steps)
            try:
                shard = self._shard(state, spec, entry, segment)
                if len(places) == 1:  # the usual case of training
                    packed[places[0]] = shard.chunk(chunk)
                else:
                    packed.update(zip(places, shard.chunks(chunk, len(places)), strict=True))
            except CorruptDataError as error:
                raise _located(error, spec, entry, step, step + len(places) - 1) from error
        for first, end in piece.stretches:
            try:
                decode_chunks(spec, [packed[place] for place in range(first, end)], piece.out[first:end])
            except CorruptDataError:
                self._decode_one_by_one(piece, packed)  # says which; if it says none, all are decoded
                return

    @staticmethod
    def _decode_one_by_one(piece: _Piece, packed: dict[int, bytes]) -> None:
        for entry, first, places in piece.runs:
            for step, place in enumerate(places, first):
                try:
                    decode_chunk(piece.spec, packed[place], piece.out[place : place + 1])
                except CorruptDataError as error:
                    raise _located(error, piece.spec, entry, step, step) from error

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
        wanted = list(missing.values())
        at_once = self.storage.requests_at_once
        size = CHUNKS_AT_ONCE if at_once == 1 else max(1, min(CHUNKS_AT_ONCE, len(wanted) // at_once))
        groups = [slice(start, start + size) for start in range(0, len(wanted), size)]

        def fill(group: slice) -> None:
            some = wanted[group]
            self._fill(state, request, some, block.chunks(free[group.start], len(some)))
            for (name, _, _), place in zip(some, free[group], strict=True):
                block.know(name, place)

        # What is computed may read by itself, and must not wait for threads that wait for it.
        many = len(missing) * spec.chunk_bytes >= PARALLEL_FROM_BYTES
        helped = (at_once > 1 or (parallel and many)) and request.compute is None
        jobs = iter([functools.partial(fill, group) for group in groups])
        state.run(jobs, min(max(at_once, state.process.threads), len(groups)) if helped else 1)
        return block, block.find([key[0] for key in keys])

    def _fill(self, state: _State, request: Request, wanted: list[_ChunkKey], out: np.ndarray) -> None:
        """Compute or decode chunks that lie side by side in `out`, (n * chunk_steps, *stored_step_shape)."""
        spec = request.spec
        if request.compute is not None:
            for (_, entry, chunk), part in zip(wanted, np.split(out, len(wanted)), strict=True):
                values = request.compute(entry)[chunk * spec.chunk_steps :][: spec.chunk_steps]
                part[: len(values)] = values
            return
        try:
            packed = []
            for _, entry, number in wanted:
                segment, chunk = divmod(number, spec.chunks_per_shard)
                packed.append(self._opened(state, spec, entry, segment).chunk(chunk))
            decode_chunks(spec, packed, out)
        except CorruptDataError:  # one by one, to say which; if it says none, all are decoded
            for (_, entry, number), part in zip(wanted, np.split(out, len(wanted)), strict=True):
                self._decode_chunk(state, spec, entry, number, part)

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
            return decode_chunk(spec, self._opened(state, spec, entry, segment).chunk(chunk), out)
        except CorruptDataError as error:
            first = number * spec.chunk_steps
            last = min(first + spec.chunk_steps, entry.length(spec.clock)) - 1
            raise _located(error, spec, entry, first, last) from error

    # --- shards --------------------------------------------------------------------------------------------------

    def _opened(self, state: _State, spec: ArraySpec, entry: Entry, segment: int) -> ShardReader:
        """Where one chunk is all, it is read once and then kept decoded: the open file is not worth keeping."""
        if spec.chunks_per_shard == 1:
            return self._open(spec, entry, segment)
        return self._shard(state, spec, entry, segment)

    def _shard(self, state: _State, spec: ArraySpec, entry: Entry, segment: int) -> ShardReader:
        key = (state.number, spec.name, entry.digest, segment)
        shard = state.process.files.find(key)
        if shard is None:
            shard = self._open(spec, entry, segment)
            state.process.files.keep(key, shard)
        return shard

    def _open(self, spec: ArraySpec, entry: Entry, segment: int) -> ShardReader:
        key = spec.shard_key(entry.slot, segment)
        expected = self._shard_size(spec, entry, segment)
        file = self.storage.open_shard(key)
        if file is None:
            raise CorruptDataError("the shard is missing")
        if file.size != expected:
            raise CorruptDataError(f"the shard has {file.size} bytes, expected {expected}")
        return ShardReader(file, spec, spec.shard_identity(entry.uid, segment))

    def _shard_size(self, spec: ArraySpec, entry: Entry, segment: int) -> int:
        ranks, segments = self._ranks[entry.schema_revision], spec.segments(entry.num_steps)
        place, expected = ranks[spec.name] * segments + segment, len(ranks) * segments
        if entry.clock_lengths:  # arrays with different numbers of segments
            arrays = self._arrays[entry.schema_revision]
            counts = [array.segments(entry.length(array.clock)) for array in arrays]
            place, expected = sum(counts[: ranks[spec.name]]) + segment, sum(counts)
        if len(entry.shard_sizes) != expected:
            raise CorruptDataError(
                f"the snapshot knows the sizes of {len(entry.shard_sizes)} shards, expected {expected}"
            )
        return entry.shard_sizes[place]

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
        self.waiting_pool = ThreadPoolExecutor(MAX_WAITING_THREADS, thread_name_prefix="salus-fetch")


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

    def run(self, jobs: Iterator[Callable[[], None]], threads: int) -> None:
        """Do all jobs on this thread, and on others at the same time: a few that compute, or many that mostly wait.

        Where one fails, no thread begins another, and those that are at one are not waited for.
        """

        def work() -> None:
            try:
                for job in jobs:
                    job()
            except BaseException:
                deque(jobs, maxlen=0)
                raise

        process = self.process
        pool = process.pool if threads <= process.threads else process.waiting_pool
        helpers = [pool.submit(work) for _ in range(threads - 1)]
        try:
            work()
        finally:
            # One that has not begun, behind another reader's work, is not waited for.
            begun = [helper for helper in helpers if not helper.cancel()]
        for helper in begun:
            helper.result()


_ChunkKey: TypeAlias = tuple[Hashable, Entry, int]


def _chunk_key(request: Request, row: int, chunk: int) -> _ChunkKey:
    entry = request.entries[row]
    name = (entry.digest, chunk) if request.compute is None else (entry.digest, chunk, *_outcome(entry))
    return name, entry, chunk


def _outcome(entry: Entry) -> tuple[Hashable, ...]:
    return entry.result, entry.failure_kind, entry.failure_step


def _is_of_images(request: Request) -> bool:
    return request.spec.chunk_steps == 1 and request.compute is None


def _plan(request: Request, out: np.ndarray, most: int) -> tuple[Iterable[_Piece], tuple[np.ndarray, np.ndarray]]:
    """Pieces of at most `most` steps or windows, each step in one of them; then what is copied, and from where."""
    spec, rows, steps, size = request.spec, request.rows, request.steps, most
    if steps.ndim == 2:
        width = steps.shape[-1]
        rows, steps, size = np.repeat(rows, width), steps.ravel(), most * width
    if not len(steps):
        return (), (steps, steps)
    key = rows * (int(steps.max()) + 2) + steps  # neighbours, and only they, differ by one
    order = key.argsort(kind="stable")
    is_first = _goes_not_on(key[order], 0)
    firsts = order[is_first]
    number = firsts // size
    by_piece = number.argsort(kind="stable")
    firsts, number = firsts[by_piece], number[by_piece]
    new_run = _goes_not_on(key[firsts], 1) | _goes_not_on(number, 0) | (steps[firsts] % spec.segment_steps == 0)
    begins = new_run.nonzero()[0]
    places, heads = firsts.tolist(), firsts[begins]
    ends = [*begins[1:].tolist(), len(places)]
    pieces: dict[int, _Piece] = {}
    for place, row, step, begin, end in zip(
        heads.tolist(), rows[heads].tolist(), steps[heads].tolist(), begins.tolist(), ends, strict=True
    ):
        piece = pieces.get(place // size)
        if piece is None:
            piece = pieces[place // size] = _Piece(spec, [], [], out)
        piece.runs.append((request.entries[row], step, places[begin:end]))
    if len(places) == len(order):
        for place in range(0, len(places), most):
            pieces[place // size].stretches.append((place, min(place + most, len(places))))
        return pieces.values(), (order[:0], order[:0])
    in_order = np.sort(firsts)
    cuts = (_goes_not_on(in_order, 1) | (in_order % most == 0)).nonzero()[0]
    last = in_order[np.append(cuts[1:], len(in_order)) - 1]
    for place, end in zip(in_order[cuts].tolist(), (last + 1).tolist(), strict=True):
        pieces[place // size].stretches.append((place, end))
    repeated = np.flatnonzero(~is_first)
    sources = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))[repeated]]
    return pieces.values(), (order[repeated], sources)


def _goes_not_on(values: np.ndarray, distance: int) -> np.ndarray:
    """Whether each is not the one before plus `distance`; true of the first."""
    breaks = np.ones(len(values), bool)
    np.not_equal(values[1:] - values[:-1], distance, out=breaks[1:])
    return breaks


def _located(error: CorruptDataError, spec: ArraySpec, entry: Entry, first: int, last: int) -> CorruptDataError:
    steps = f"step {first}" if first == last else f"steps {first} .. {last}"
    key = spec.shard_key(entry.slot, first // spec.segment_steps)
    what = str(error).removesuffix(f"; {key}")  # the storage names it, too
    return CorruptDataError(f"episode {entry.uid}, {spec.name!r}, {steps}: {what}; {key}")


def _allocated(empty: Empty, request: Request) -> np.ndarray:
    spec = request.spec
    try:
        return empty((*request.steps.shape, *spec.stored_step_shape), spec.numpy_dtype)
    except (MemoryError, ValueError) as error:  # ValueError: more than numpy can count
        nbytes = request.steps.size * spec.step_bytes
        raise InvalidInputError(
            f"read: {request.steps.size} steps of {spec.name!r} are {nbytes} bytes, more than memory takes; "
            "read fewer at once"
        ) from error
