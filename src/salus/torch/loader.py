"""The loader: batches of windows, read by threads of this process, in an order that can be resumed anywhere."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from ..buffers import BufferPool
from ..errors import InvalidInputError
from ..gather import default_threads
from ..shuffling import BlockShuffled, InOrder, Order, Shuffled, Weighted
from .batch import Batch, Rows, collate
from .dataset import WindowDataset

ORDERED_AT_ONCE = 4096

_thread = threading.local()


class Progress(NamedTuple):
    """How far an epoch is.

    Attributes:
        epoch: Number of the epoch, from 0.
        batches: Batches that were given out in it.
        num_batches: Batches of the epoch, for this rank.
        waited_s: Seconds that the training waited for data in this epoch. Near 0 is what you want.
    """

    epoch: int
    batches: int
    num_batches: int
    waited_s: float


class Loader:
    """Batches of a `WindowDataset`, read ahead by threads: no worker processes, no copies between processes.

    `for batch in Loader(windows, batch_size=64, shuffle=True):` gives dicts of tensors, each with the batch's axis
    first. Each pass over it is the next epoch, in an order of its own.

    Args:
        windows: What to load.
        batch_size: Samples of a batch, per rank.
        shuffle: A random order in which each sample comes once.
        seed: Of the order. The same seed gives the same order on every machine.
        drop_last: Leave out the last batch where it is not full.
        weights: Draw samples by weight, with replacement: the name of a column of the episode table, such as
            `"outcome"` or `"failure_kind"`, to draw each of its values equally often; or floats, one per episode of
            `windows.view` (the share of its samples together), or one per sample. Datasets that were mixed with weights
            (`salus.concat`) are drawn by these, whether `shuffle` is on or not.
        num_samples: Samples of an epoch; only with `weights`. By default as many as there are samples.
        block_size: With `shuffle`, read blocks of so many neighbouring samples together, for cold disks: blocks are
            shuffled, then the samples of `mixed_blocks` blocks. The blocks to come are read ahead from the disk.
        mixed_blocks: Blocks whose samples are mixed.
        prefetch: Batches that lie ready, besides those that the threads are at.
        threads: Threads that read; by default one per core, at most 8.
        rank: Of this process among `world_size`; by default that of `torch.distributed` where it is initialised. Ranks
            take neighbouring parts of the same order; without `drop_last`, up to `world_size - 1` samples come twice
            at the end of an epoch, so that all ranks have batches of the same size.
        world_size: Number of processes that train together.
        device: Where the tensors go, in the background, such as `"cuda"`; by default they stay on the CPU.
        pin_memory: Without `device`: copy the batch into pinned memory, so that `.to("cuda", non_blocking=True)` does
            not wait. With a CUDA `device`, batches are decoded into pinned memory anyway.
        progress: Called after each batch that was given out.

    Images are uint8: turn them into floats on the device (`salus.torch.Normalizer` does).

    Memory: `(threads + prefetch + 1)` batches, and for each small feature a cache of at most 64 MiB, whatever the size
    of the dataset; buffers are used again once nobody holds a batch.

    A `transform` of the windows is called for one sample at a time, from several threads. Random numbers that it draws
    from a generator of its own may therefore fall on other samples in each run.

    Raises:
        InvalidInputError: Arguments that do not fit together.

    While iterating: CorruptDataError names episode, feature and step. An exception of a `transform` says which sample
    it came from. Thread-safety: one thread iterates. Fork: a forked child gets threads of its own.
    """

    def __init__(
        self,
        windows: WindowDataset,
        batch_size: int = 1,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        weights: str | Sequence[float] | np.ndarray | None = None,
        num_samples: int | None = None,
        block_size: int | None = None,
        mixed_blocks: int = 128,
        prefetch: int = 2,
        threads: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        device: str | torch.device | None = None,
        pin_memory: bool = False,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        if not isinstance(windows, WindowDataset):
            raise InvalidInputError(
                f"Loader: got {type(windows).__name__}, expected a WindowDataset; whole episodes: dataset.scan()"
            )
        self.windows = windows
        self.batch_size = _whole("batch_size", batch_size, 1)
        self.drop_last = drop_last
        self.rank, self.world_size = _ranks(rank, world_size)
        self._seed = _whole("seed", seed, least=None)
        self._shuffle = shuffle
        self._block_size = block_size if block_size is None else _whole("block_size", block_size, 1)
        self._mixed_blocks = _whole("mixed_blocks", mixed_blocks, 1)
        if block_size is not None and not shuffle:
            raise InvalidInputError("Loader: block_size is for shuffle=True; without it, samples come in order anyway")
        if weights is not None and shuffle:
            raise InvalidInputError("Loader: weights draw at random by themselves; leave out shuffle")
        self._weights = _weights(windows, weights)
        if self._weights is not None and block_size is not None:
            raise InvalidInputError("Loader: block_size is not for samples that are drawn by weight")
        if num_samples is not None and self._weights is None:
            raise InvalidInputError("Loader: num_samples is for weights; a subset of the steps: WindowDataset(where=…)")
        self.num_samples = len(windows) if num_samples is None else _whole("num_samples", num_samples, 1)
        self._threads = default_threads() if threads is None else _whole("threads", threads, 1)
        self._depth = self._threads + _whole("prefetch", prefetch, 0)
        self._device = None if device is None else _device(device)
        _check_pinning(pin_memory)
        # Used again as soon as the batch is on the device: `_moved` waits for that. A user who copies by himself may
        # not, so memory that he is given is pinned by PyTorch, which knows when a copy is done.
        on_cuda = self._device is not None and self._device.type == "cuda"
        self._empty = BufferPool(_pinned_memory).empty if on_cuda else None
        self._pin_memory = pin_memory and not on_cuda
        self._progress = progress
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        self._transforming = threading.Lock()
        if drop_last and not self._num_batches(0):
            raise InvalidInputError(
                f"Loader: drop_last=True leaves no batch: {self.num_samples} samples, a batch takes "
                f"{self.batch_size * self.world_size}"
            )
        self._order_of(0)  # raises where the weights cannot be drawn by
        self._epoch = 0
        self._given = 0  # up to where samples of the epoch were given out, over all ranks
        self._fresh = True  # the next pass is of this epoch, not of the one after it

    @property
    def epoch(self) -> int:
        """Number of the epoch that runs, or that comes next where the last one came to its end."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be of this epoch. Passes count by themselves; this is for trainers that do.

        It begins at its beginning, unless a state of just this epoch was loaded: then where that was taken.
        """
        goes_on = self._fresh and epoch == self._epoch
        self._epoch, self._given = _whole("epoch", epoch), self._given if goes_on else 0
        self._fresh = True

    def __len__(self) -> int:
        """Batches of a whole epoch, for this rank."""
        return self._num_batches(0)

    def _num_batches(self, start: int) -> int:
        step = self.batch_size * self.world_size
        left = self.num_samples - start
        return left // step if self.drop_last else -(-left // step)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: after the last batch that it gave out. Small, and the same on all ranks.

        Another loader of the same windows, seed and order goes on exactly there, with any batch size, world size and
        number of threads: `loader.load_state_dict(state)`.
        """
        return {"version": 1, "epoch": self._epoch, "samples_given": self._given, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            InvalidInputError: The state is of another order: other windows or episodes, another seed. Says which.
        """
        if not isinstance(state, dict):
            raise InvalidInputError(f"Loader: state: got {type(state).__name__}, expected what state_dict() gave")
        expected = {"version": 1, **self._identity}
        differences = [
            f"{name}: the state has {state.get(name)!r}, this loader {value!r}"
            for name, value in expected.items()
            if state.get(name) != value
        ]
        if differences:
            hint = " (open the dataset at the tag that the training began with)"
            raise InvalidInputError(f"Loader: the state is not of this loader: {'; '.join(differences)}{hint}")
        epoch, given = _whole("epoch", state.get("epoch")), _whole("samples_given", state.get("samples_given"))
        if given > self.num_samples:
            raise InvalidInputError(f"Loader: samples_given: got {given}, expected at most {self.num_samples}")
        ended = not self._num_batches(given)
        self._epoch, self._given, self._fresh = (epoch + 1, 0, True) if ended else (epoch, given, True)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """All that the order of samples follows from."""
        weights = None if self._weights is None else hashlib.sha256(self._weights[0].tobytes()).hexdigest()
        return {
            "seed": self._seed,
            "shuffle": self._shuffle,
            "block_size": self._block_size,
            "mixed_blocks": self._mixed_blocks if self._block_size else None,
            "num_samples": self.num_samples,
            "weights": weights,
            "windows": self.windows.fingerprint(),
        }

    def __iter__(self) -> Iterator[Batch]:
        """The rest of this epoch, or the next one where this one was begun already."""
        if not self._fresh:
            self._epoch, self._given = self._epoch + 1, 0
        self._fresh = False
        return self._batches(self._epoch, self._given)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        order, num_batches = self._order_of(epoch), self._num_batches(start)
        samples, announced = self._samples(order, start, num_batches), -1
        pool, reading = self._executor(), deque[Future[Batch]]()
        num_whole, waited_s = len(self), 0.0
        before = num_whole - num_batches
        try:
            for number in range(num_batches):
                while len(reading) <= self._depth and (wanted := next(samples, None)) is not None:
                    if isinstance(order, BlockShuffled):
                        announced = self._announce(order, announced, self._first_place(start, number + len(reading)))
                    reading.append(pool.submit(self._read, wanted))
                began = time.perf_counter()
                batch = reading.popleft().result()
                waited_s += time.perf_counter() - began
                self._hand_over(batch)
                if self._epoch == epoch:
                    done = self._first_place(start, number + 1)
                    self._given = min(done, self.num_samples)
                if self._progress is not None:
                    self._progress(Progress(epoch, before + number + 1, num_whole, waited_s))
                yield batch
            if self._epoch == epoch:
                self._epoch, self._given, self._fresh = epoch + 1, 0, True
        finally:
            for future in reading:
                future.cancel()

    def _samples(self, order: Order, start: int, num_batches: int) -> Iterator[np.ndarray]:
        """The samples of each of this rank's batches."""
        at_once = max(1, ORDERED_AT_ONCE // self.batch_size)
        for some in range(0, num_batches, at_once):
            places = [self._places(start, number) for number in range(some, min(some + at_once, num_batches))]
            ordered = order.at(np.concatenate(places))
            yield from np.split(ordered, np.cumsum([len(part) for part in places[:-1]]))

    def _announce(self, order: BlockShuffled, announced: int, place: int) -> int:
        """Let the disk read ahead the blocks that are mixed at `place` and those after them; returns how far."""
        last = min(place // order.mixed_samples + 1, (len(order) - 1) // order.mixed_samples)
        for group in range(max(announced + 1, last - 1), last + 1):
            self.windows.prefetch(order.mixed(group))
        return max(announced, last)

    def _first_place(self, start: int, number: int) -> int:
        return start + number * self.batch_size * self.world_size

    def _places(self, start: int, number: int) -> np.ndarray:
        """The places in the order that this rank's batch takes."""
        first = self._first_place(start, number)
        size = min(self.batch_size, -(-(self.num_samples - first) // self.world_size))
        places: np.ndarray = (first + self.rank * size + np.arange(size)) % self.num_samples
        return places

    def _read(self, samples: np.ndarray) -> Batch:
        """One batch, on one thread: several threads are at several batches, so none waits for another."""
        batch = self.windows.batch(samples, empty=self._empty, parallel=False)
        if self.windows.transform is not None:
            with self._transforming:
                batch = collate(self.windows.transformed(Rows(batch, len(samples))))
        if self._pin_memory:
            return {name: v.pin_memory() if isinstance(v, torch.Tensor) else v for name, v in batch.items()}
        return batch if self._device is None else _moved(batch, self._device)

    def _order_of(self, epoch: int) -> Order:
        if self._weights is not None:
            weights, sizes = self._weights
            return Weighted(weights, sizes=sizes, num_samples=self.num_samples, seed=self._seed, epoch=epoch)
        if not self._shuffle:
            return InOrder(self.num_samples)
        if self._block_size is None:
            return Shuffled(self.num_samples, seed=self._seed, epoch=epoch)
        return BlockShuffled(
            self.num_samples,
            block_size=self._block_size,
            mixed_blocks=self._mixed_blocks,
            seed=self._seed,
            epoch=epoch,
        )

    def _hand_over(self, batch: Batch) -> None:
        """Tell CUDA that the training's stream uses what another stream made."""
        if self._device is not None and self._device.type == "cuda":
            stream = torch.cuda.current_stream(self._device)
            for value in batch.values():
                if isinstance(value, torch.Tensor):
                    value.record_stream(stream)

    def _executor(self) -> ThreadPoolExecutor:
        if self._pool is None or self._pool[0] != os.getpid():
            self._pool = os.getpid(), ThreadPoolExecutor(self._threads, thread_name_prefix="salus-load")
        return self._pool[1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_pool", "_transforming")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _pool=None, _transforming=threading.Lock())

    def __repr__(self) -> str:
        ranks = f", rank {self.rank} of {self.world_size}" if self.world_size > 1 else ""
        return f"<salus.torch.Loader: {len(self)} batches of {self.batch_size}{ranks}; {self.windows!r}>"


def _whole(name: str, value: Any, least: int | None = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or (least is not None and value < least):
        expected = "a whole number" if least is None else f"a whole number of at least {least}"
        raise InvalidInputError(f"Loader: {name}: got {value!r}, expected {expected}")
    return int(value)


def _ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise InvalidInputError(f"Loader: got rank={rank}, world_size={world_size}, expected both or neither")
    if rank is None or world_size is None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
    size = _whole("world_size", world_size, 1)
    if _whole("rank", rank) >= size:
        raise InvalidInputError(f"Loader: got rank {rank}, expected 0 .. {size - 1} for world_size={size}")
    return int(rank), size


def _weights(
    windows: WindowDataset, given: str | Sequence[float] | np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Weights, and for weights of episodes the number of samples of each. None where samples are not drawn."""
    sizes = windows.samples_per_episode
    if given is None:
        shares = windows.episode_weights
        return None if shares is None else (shares, sizes)
    if isinstance(given, str):
        values = windows.view.episodes[given]
        totals: dict[Any, int] = {}
        for value, size in zip(values, sizes.tolist(), strict=True):
            totals[value] = totals.get(value, 0) + size
        masses = [size / totals[value] if size else 0 for value, size in zip(values, sizes.tolist(), strict=True)]
        return np.array(masses, np.float64), sizes
    try:
        weights = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        weights = np.empty(0)
    if weights.shape == (len(sizes),):
        return weights, sizes
    if weights.shape == (len(windows),):
        return weights, None
    raise InvalidInputError(
        f"Loader: weights: got {type(given).__name__} {weights.shape}, expected one per episode ({len(sizes)},) or per "
        f"sample ({len(windows)},), or the name of a column of the episode table"
    )


def _check_pinning(pin_memory: bool) -> None:
    if pin_memory and not torch.cuda.is_available():
        raise InvalidInputError("Loader: pin_memory=True needs CUDA, and there is none; device='cuda' pins by itself")


def _pinned_memory(nbytes: int) -> np.ndarray:
    memory: np.ndarray = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()
    return memory


def _device(given: str | torch.device) -> torch.device:
    """The device; of `"cuda"`, the one that it means now."""
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError) as error:
        raise InvalidInputError(
            f"Loader: device: got {given!r}, expected 'cuda', 'cuda:1' or another: {error}"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError(f"Loader: device: got {given!r}, but PyTorch finds no CUDA here; leave device out")
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def _moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device, complete. On a stream of the thread's own, so that it does not wait for the training."""
    if device.type != "cuda":
        return {name: _to(value, device) for name, value in batch.items()}
    stream = getattr(_thread, "stream", None)
    if stream is None or stream.device != device:
        stream = _thread.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        moved = {name: _to(value, device, non_blocking=True) for name, value in batch.items()}
    stream.synchronize()  # the pinned memory is used again after this
    return moved


def _to(value: Any, device: torch.device, **options: Any) -> Any:
    return value.to(device, **options) if isinstance(value, torch.Tensor) else value
