"""WebDataset and Lance: one sample or row per step.

Images are zstd-1 bytes, the codec of SALUS, so that the container is what is compared.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import zstd

from ..source import Arrays, Source
from .base import Contestant, UnsupportedError


class WebDataset(Contestant):
    """Tar shards that are read from front to back, shuffled in a buffer of 1,000 samples: no random access."""

    name = "webdataset"
    title = "WebDataset (a shuffled stream)"
    needs = ("webdataset",)

    def write(self, folder: Path, source: Source) -> None:
        import webdataset

        steps = np.arange(int(source.lengths.max()))
        with webdataset.ShardWriter(f"{folder}/%06d.tar", maxcount=1000, verbose=0) as writer:
            for number, arrays in enumerate(source.episodes):
                for step in steps[: source.lengths[number]].tolist():
                    window = source.window(np.array([[number, step]]))[0]
                    sample: dict[str, Any] = {"__key__": f"{number:06d}-{step:06d}"}
                    for camera in source.cameras:
                        sample[f"{_plain(camera)}.zst"] = bytes(zstd.compress(arrays[camera][step], 1))
                    for name in source.small:
                        values = arrays[name][window] if name == source.actions else arrays[name][step]
                        sample[f"{_plain(name)}.npy"] = values
                    writer.write(sample)

    def open(self) -> None:
        import webdataset

        urls = sorted(map(str, self.folder.glob("*.tar")))
        self._stream = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).shuffle(1000)

    def batches(self, num_batches: int, random: np.random.Generator) -> Iterator[Any]:
        del random
        batch: list[dict[str, Any]] = []
        while num_batches:
            for sample in self._stream:
                batch.append(sample)
                if len(batch) == self.samples_at_once:
                    yield self._decoded(batch)
                    batch, num_batches = [], num_batches - 1
                    if not num_batches:
                        return

    def _decoded(self, batch: list[dict[str, Any]]) -> Arrays:
        decoded: Arrays = {}
        for camera in self.source.cameras:
            images = [_image(sample[f"{_plain(camera)}.zst"]) for sample in batch]
            decoded[camera] = np.stack(images).reshape(-1, *self.source.shapes[camera])
        key = f"{_plain(self.source.actions)}.npy"
        decoded[self.source.actions] = np.stack([np.load(io.BytesIO(sample[key])) for sample in batch])
        return decoded

    def torch_dataset(self) -> Any:
        raise UnsupportedError("a stream")

    def time_all(self) -> float:
        raise UnsupportedError("steps, not episodes")


class Lance(Contestant):
    """A table with one row per step; `take` of random rows, decoded on the same threads."""

    name = "lance"
    title = "Lance (a table of steps)"
    needs = ("lance", "pyarrow")

    def write(self, folder: Path, source: Source) -> None:
        import lance
        import pyarrow as pa

        first = source.episodes[0]
        small = {name: int(np.prod(first[name].shape[1:])) for name in source.small}
        types = [(_plain(name), pa.large_binary()) for name in source.cameras]
        types += [
            (_plain(name), pa.list_(pa.from_numpy_dtype(first[name].dtype), size)) for name, size in small.items()
        ]

        def episodes() -> Iterator[Any]:
            for arrays in source.episodes:
                columns = [
                    pa.array([bytes(zstd.compress(image, 1)) for image in arrays[camera]], pa.large_binary())
                    for camera in source.cameras
                ]
                for name, size in small.items():
                    values = pa.array(np.ascontiguousarray(arrays[name]).reshape(-1))
                    columns.append(pa.FixedSizeListArray.from_arrays(values, size))
                yield pa.RecordBatch.from_arrays(columns, schema=pa.schema(types))

        lance.write_dataset(episodes(), str(folder / "data.lance"), schema=pa.schema(types))

    def open(self) -> None:
        import lance

        self._table = lance.dataset(str(self.folder / "data.lance"))
        self._starts = np.cumsum(self.source.lengths) - self.source.lengths
        self._pool = ThreadPoolExecutor(self.threads)

    def episode(self, number: int) -> Arrays:
        rows = list(range(self._starts[number], self._starts[number] + self.source.lengths[number]))
        names = [*self.source.cameras, *self.source.small]
        return self._take(rows, names)

    def frames(self, pairs: np.ndarray) -> np.ndarray:
        camera = self.source.cameras[0]
        rows = self._starts[pairs[:, 0]] + pairs[:, 1]
        return self._take(rows.tolist(), [camera])[camera]

    def samples(self, pairs: np.ndarray) -> Arrays:
        starts = self._starts[pairs[:, 0]]
        cameras, actions = list(self.source.cameras), self.source.actions
        batch = self._take((starts + pairs[:, 1]).tolist(), cameras)
        window = (starts[:, None] + self.source.window(pairs)).ravel()
        values = self._take(window.tolist(), [actions])[actions]
        return {**batch, actions: values.reshape(len(pairs), -1, *values.shape[1:])}

    def _take(self, rows: list[int], names: list[str]) -> Arrays:
        table = self._table.take(rows, columns=[_plain(name) for name in names])
        decoded: Arrays = {}
        for name in names:
            column = table[_plain(name)].combine_chunks()
            if name in self.source.cameras:
                packed = [value.as_buffer() for value in column]
                decoded[name] = np.stack(list(self._pool.map(_image, packed)))
            else:
                decoded[name] = column.flatten().to_numpy()
            decoded[name] = decoded[name].reshape(len(column), *self.source.shapes[name])
        return decoded

    def torch_dataset(self) -> Any:
        raise UnsupportedError("it must not be forked; its users read whole batches")

    def close(self) -> None:
        self._pool.shutdown()


def _image(packed: Any) -> np.ndarray:
    return np.frombuffer(zstd.decompress(packed), np.uint8)


def _plain(name: str) -> str:
    """A name without dots: WebDataset takes them for extensions, and Lance refuses them."""
    return name.replace(".", "_")
