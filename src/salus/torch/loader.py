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
from ..gather import Empty, default_threads
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
        pin_memory: Decode into pinned memory, which a GPU fetches without a copy; by default where CUDA is there.
        progress: Called after each batch that was given out.

    Images are uint8: turn them into floats on the device (`salus.torch.Normalizer` does).

    Memory: `(threads + prefetch + 1)` batches, whatever the size of the dataset; buffers are used again once nobody
    holds a batch.

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
        pin_memory: bool | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        if not isinstance(windows, WindowDataset):
            raise InvalidInputError(
                f"Loader: got {type(windows).__name__}, expected a WindowDataset; whole episodes: dataset.scan()"
            )
        self.windows = windows
        self.batch_size = _at_least("batch_size", batch_size, 1)
        self.drop_last = drop_last
        self.rank, self.world_size = _ranks(rank, world_size)
        self._seed = seed
        self._shuffle = shuffle
        self._block_size = block_size if block_size is None else _at_least("block_size", block_size, 1)
        self._mixed_blocks = _at_least("mixed_blocks", mixed_blocks, 1)
        if block_size is not None and not shuffle:
            raise InvalidInputError("Loader: block_size is for shuffle=True; without it, samples come in order anyway")
        if weights is not None and shuffle:
            raise InvalidInputError("Loader: weights draw at random by themselves; leave out shuffle")
        self._weights = _weights(windows, weights)
        if self._weights is not None and block_size is not None:
            raise InvalidInputError("Loader: block_size is not for samples that are drawn by weight")
        if num_samples is not None and self._weights is None:
            raise InvalidInputError("Loader: num_samples is for weights; a subset of the steps: WindowDataset(where=…)")
        self.num_samples = len(windows) if num_samples is None else _at_least("num_samples", num_samples, 1)
        self._threads = default_threads() if threads is None else _at_least("threads", threads, 1)
        self._depth = self._threads + _at_least("prefetch", prefetch, 0)
        self._device = None if device is None else _indexed(torch.device(device))
        self._empty = _pinned(pin_memory, self._device)
        self._progress = progress
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        self._epoch = 0
        self._start = 0  # of the samples of the epoch, over all ranks: where this pass begins
        self._given = 0  # up to where samples were given out
        self._fresh = True  # the next pass is of this epoch, not of the one after it

    @property
    def epoch(self) -> int:
        """Number of the epoch that runs, or comes next."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be this epoch, from its beginning. Passes count by themselves; this is for those who do."""
        self._epoch, self._given, self._fresh = _at_least("epoch", epoch, 0), 0, True

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
        expected = {"version": 1, **self._identity}
        differences = [
            f"{name}: the state has {state.get(name)!r}, this loader {value!r}"
            for name, value in expected.items()
            if state.get(name) != value
        ]
        if differences:
            hint = " (open the dataset at the tag that the training began with)"
            raise InvalidInputError(f"Loader: the state is not of this loader: {'; '.join(differences)}{hint}")
        self._epoch, self._given, self._fresh = state["epoch"], state["samples_given"], True

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
        self._start = self._given
        if self._start and not self._num_batches(self._start):  # the state was taken at the end of an epoch
            self._epoch, self._start, self._given = self._epoch + 1, 0, 0
        return self._batches(self._epoch, self._num_batches(self._start))

    def _batches(self, epoch: int, num_batches: int) -> Iterator[Batch]:
        order = self._order_of(epoch)
        samples, announced = self._samples(order, num_batches), -1
        pool, reading = self._executor(), deque[Future[Batch]]()
        num_whole, waited_s = len(self), 0.0
        before = num_whole - num_batches
        try:
            for number in range(num_batches):
                while len(reading) <= self._depth and (wanted := next(samples, None)) is not None:
                    if isinstance(order, BlockShuffled):
                        announced = self._announce(order, announced, self._first_place(number + len(reading)))
                    reading.append(pool.submit(self._read, wanted))
                began = time.perf_counter()
                batch = reading.popleft().result()
                waited_s += time.perf_counter() - began
                self._hand_over(batch)
                if self._epoch == epoch:
                    done = self._start + (number + 1) * self.batch_size * self.world_size
                    self._given = min(done, self.num_samples)
                if self._progress is not None:
                    self._progress(Progress(epoch, before + number + 1, num_whole, waited_s))
                yield batch
            if self._epoch == epoch:
                self._given = self.num_samples
        finally:
            for future in reading:
                future.cancel()

    def _samples(self, order: Order, num_batches: int) -> Iterator[np.ndarray]:
        """The samples of each of this rank's batches."""
        at_once = max(1, ORDERED_AT_ONCE // self.batch_size)
        for some in range(0, num_batches, at_once):
            places = [self._places(number) for number in range(some, min(some + at_once, num_batches))]
            ordered = order.at(np.concatenate(places))
            yield from np.split(ordered, np.cumsum([len(part) for part in places[:-1]]))

    def _announce(self, order: BlockShuffled, announced: int, place: int) -> int:
        """Let the disk read ahead the blocks that are mixed at `place` and those after them; returns how far."""
        last = min(place // order.mixed_samples + 1, (len(order) - 1) // order.mixed_samples)
        for group in range(max(announced + 1, last - 1), last + 1):
            self.windows.prefetch(order.mixed(group))
        return max(announced, last)

    def _first_place(self, number: int) -> int:
        return self._start + number * self.batch_size * self.world_size

    def _places(self, number: int) -> np.ndarray:
        """The places in the order that this rank's batch takes."""
        first = self._first_place(number)
        size = min(self.batch_size, -(-(self.num_samples - first) // self.world_size))
        places: np.ndarray = (first + self.rank * size + np.arange(size)) % self.num_samples
        return places

    def _read(self, samples: np.ndarray) -> Batch:
        """One batch, on one thread: several threads are at several batches, so none waits for another."""
        batch = self.windows.batch(samples, empty=self._empty, parallel=False)
        if self.windows.transform is not None:
            batch = collate(self.windows.transformed(Rows(batch, len(samples))))
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
        return {**self.__dict__, "_pool": None}

    def __repr__(self) -> str:
        ranks = f", rank {self.rank} of {self.world_size}" if self.world_size > 1 else ""
        return f"<salus.torch.Loader: {len(self)} batches of {self.batch_size}{ranks}; {self.windows!r}>"


def _at_least(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InvalidInputError(f"Loader: {name}: got {value!r}, expected a whole number of at least {least}")
    return int(value)


def _ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise InvalidInputError(f"Loader: got rank={rank}, world_size={world_size}, expected both or neither")
    if rank is None or world_size is None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
    size = _at_least("world_size", world_size, 1)
    if not 0 <= rank < size:
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
    weights = np.asarray(given, np.float64)
    if weights.shape == (len(sizes),):
        return weights, sizes
    if weights.shape == (len(windows),):
        return weights, None
    raise InvalidInputError(
        f"Loader: weights: got {weights.shape}, expected one per episode ({len(sizes)},) or per sample "
        f"({len(windows)},), or the name of a column of the episode table"
    )


def _pinned(pin_memory: bool | None, device: torch.device | None) -> Empty | None:
    available = torch.cuda.is_available()
    if pin_memory and not available:
        raise InvalidInputError("Loader: pin_memory=True needs CUDA, and there is none; leave it out: it is automatic")
    wanted = available and (device is None or device.type == "cuda") if pin_memory is None else pin_memory
    if not wanted:
        return None
    return BufferPool(lambda nbytes: torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()).empty


def _indexed(device: torch.device) -> torch.device:
    """`"cuda"` as the device that it means now."""
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
