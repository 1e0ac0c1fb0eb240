"""SALUS, and decoding alone, which bounds every reader of the same bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numcodecs import zstd

from ...layout import array_specs
from ...opening import create, open
from ...recorder import Recorder
from ...shards import ShardReader
from ..source import ACTION_WINDOW, Arrays, Source
from .base import BATCH_SIZE, Contestant, UnsupportedError, seconds


class Salus(Contestant):
    """Recorded step by step, committed durably; training samples through `salus.torch.Loader`."""

    name = "salus"
    title = "SALUS"

    def write(self, folder: Path, source: Source) -> None:
        with Recorder(create(folder / "data.zarr", source.schema), threads=self.threads) as recorder:
            for arrays in source.episodes:
                with recorder.episode() as episode:
                    for step in range(len(arrays[source.actions])):
                        episode.append({name: values[step] for name, values in arrays.items()})

    def open(self) -> None:
        from ...torch import Loader, WindowDataset

        self.dataset = open(self.folder / "data.zarr")
        windows: dict[str, Any] = dict.fromkeys(self.source.cameras, 0)
        self._windows = WindowDataset(self.dataset, windows | {self.source.actions: range(ACTION_WINDOW)})
        self._loader = Loader(self._windows, BATCH_SIZE, shuffle=True, threads=self.threads)

    def episode(self, number: int) -> Arrays:
        episode = self.dataset[number]
        return {name: self._seen(name, episode[name][:]) for name in (*self.source.cameras, *self.source.small)}

    def time_all(self) -> float:
        return seconds(lambda: [None for _ in self.dataset.scan(threads=self.threads)])

    def frames(self, pairs: np.ndarray) -> np.ndarray:
        camera = self.source.cameras[0]
        return self._seen(camera, self.dataset.gather({camera: pairs})[camera])

    def samples(self, pairs: np.ndarray) -> Arrays:
        starts = np.cumsum(self.source.lengths) - self.source.lengths
        batch = self._windows.batch(starts[pairs[:, 0]] + pairs[:, 1])
        return {name: self._seen(name, batch[name].numpy()) for name in (*self.source.cameras, self.source.actions)}

    def batches(self, num_batches: int, random: np.random.Generator) -> Iterator[Any]:
        self._loader.set_epoch(int(random.integers(2**31)))
        while num_batches:
            for batch in self._loader:  # an epoch may be shorter
                yield batch
                num_batches -= 1
                if not num_batches:
                    return

    def time_samples(self, num_batches: int, random: np.random.Generator) -> float:
        """Of a training that is under way: the threads are reading ahead when the clock starts, and when it stops."""
        batches = self.batches(2 * self.threads + num_batches, random)
        for _ in range(2 * self.threads):
            next(batches)
        return seconds(lambda: self._drain(batches))

    def torch_dataset(self) -> Any:
        return self._windows

    def _seen(self, name: str, values: np.ndarray) -> np.ndarray:
        return np.moveaxis(values, -3, -1) if name in self.source.cameras else values


class DecodingAlone(Contestant):
    """The compressed images of random training samples, in memory already, decoded one by one on the same threads.

    zstd alone, into memory that is used again: no reading, no checksum, no actions.
    """

    name = "decoding"
    title = "decoding alone, image by image"
    reads_files_of = "salus"
    at_once: ClassVar[int] = 1
    batches_kept: ClassVar[int] = 24

    def open(self) -> None:
        dataset = open(self.folder / "data.zarr")
        specs, random = array_specs(dataset.schema), np.random.default_rng(0)
        shards: dict[tuple[str, int, int], ShardReader] = {}
        self._batches: list[list[list[bytes]]] = []
        for _ in range(self.batches_kept):
            pairs = self.source.random_pairs(BATCH_SIZE, random).tolist()
            batch = []
            for camera in self.source.cameras:
                spec, frames = specs[camera], []
                for episode, step in pairs:
                    segment, chunk = divmod(step, spec.segment_steps)
                    key = (camera, episode, segment)
                    if key not in shards:
                        file = dataset.storage.open_shard(spec.shard_key(dataset[episode].slot, segment))
                        if file is None:
                            raise UnsupportedError("a shard is missing")
                        shards[key] = ShardReader(file, spec, spec.shard_identity(dataset[episode].uid, segment))
                    frames.append(shards[key].chunk(chunk)[:-4])
                starts = range(0, len(frames), self.at_once)
                batch.append([b"".join(frames[start : start + self.at_once]) for start in starts])
            self._batches.append(batch)
        shapes = [(BATCH_SIZE, math.prod(self.source.shapes[camera])) for camera in self.source.cameras]
        self._buffers = [[np.empty(shape, np.uint8) for shape in shapes] for _ in range(self.threads)]
        self._pool = ThreadPoolExecutor(self.threads)

    def time_samples(self, num_batches: int, random: np.random.Generator) -> float:
        def work(thread: int) -> None:
            for number in range(thread, num_batches, self.threads):
                batch = self._batches[number % self.batches_kept]
                for buffer, frames in zip(self._buffers[thread], batch, strict=True):
                    for place, packed in enumerate(frames):
                        zstd.decompress(packed, buffer[place * self.at_once : (place + 1) * self.at_once])

        return seconds(lambda: list(self._pool.map(work, range(self.threads))))

    def torch_dataset(self) -> Any:
        raise UnsupportedError

    def close(self) -> None:
        self._pool.shutdown()


class DecodingTogether(DecodingAlone):
    """The same with many images in each call, as SALUS does it: no reader of these bytes can be faster."""

    name = "decoding-16"
    title = "decoding alone, 16 images in a call (the bound)"
    at_once = 16
