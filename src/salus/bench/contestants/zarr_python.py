"""zarr-python: sharded as SALUS is, through zarrs, the note's chunk plan, and Diffusion Policy's buffer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..source import Arrays, Source
from .base import Contestant


class ZarrSharded(Contestant):
    """The layout of SALUS through zarr-python: one shard per episode, one image per chunk; item by item."""

    name = "zarr"
    title = "zarr-python, item by item"
    needs: tuple[str, ...] = ("zarr",)
    samples_at_once = 16

    def write(self, folder: Path, source: Source) -> None:
        import zarr

        group: Any = zarr.open_group(folder / "data.zarr", mode="w")
        for name, first in source.episodes[0].items():
            is_image = name in source.cameras
            group.create_array(
                name,
                shape=(len(source.episodes), int(source.lengths.max()), *first.shape[1:]),
                dtype=first.dtype,
                **self._chunks(first.shape[1:], int(source.lengths.max()), is_image=is_image),
                compressors=zarr.codecs.ZstdCodec(level=1),
            )
        for number, arrays in enumerate(source.episodes):
            for name, values in arrays.items():
                group[name][number, : len(values)] = values

    def _chunks(self, shape: tuple[int, ...], steps: int, *, is_image: bool) -> dict[str, Any]:
        return {"chunks": (1, 1 if is_image else steps, *shape), "shards": (1, steps, *shape)}

    def open(self) -> None:
        import zarr

        group = zarr.open_group(self.folder / "data.zarr", mode="r")
        self._arrays: dict[str, Any] = {name: group[name] for name in (*self.source.cameras, *self.source.small)}

    def episode(self, number: int) -> Arrays:
        return {name: array[number, : self.source.lengths[number]] for name, array in self._arrays.items()}

    def frames(self, pairs: np.ndarray) -> np.ndarray:
        array = self._arrays[self.source.cameras[0]]
        return np.stack([array[episode, step] for episode, step in pairs.tolist()])

    def samples(self, pairs: np.ndarray) -> Arrays:
        batch: dict[str, list[np.ndarray]] = {name: [] for name in (*self.source.cameras, self.source.actions)}
        for (episode, step), window in zip(pairs.tolist(), self.source.window(pairs), strict=True):
            for name in self.source.cameras:
                batch[name].append(self._arrays[name][episode, step])
            actions = self._arrays[self.source.actions][episode, window[0] : window[-1] + 1]
            batch[self.source.actions].append(actions[window - window[0]])
        return {name: np.stack(values) for name, values in batch.items()}


class Zarrs(ZarrSharded):
    """The same store through the zarrs codec pipeline."""

    name = "zarrs"
    title = "zarr-python with zarrs, item by item"
    needs = ("zarr", "zarrs")
    reads_files_of = "zarr"

    def open(self) -> None:
        import zarr

        with zarr.config.set(
            {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": self.threads}
        ):
            super().open()


class NoteChunkPlan(ZarrSharded):
    """The chunk plan of the original note, `(100, 10, 1, 224, 224)`: chunks of 50 MB that 100 episodes share.

    So slow that it gets two episodes of 20 steps. The other 98 of each chunk are zeros, which flatters it.
    """

    name = "note"
    title = "Zarr, the note's chunk plan"
    max_episodes = 2
    max_steps = 20
    samples_at_once = 1

    def _chunks(self, shape: tuple[int, ...], steps: int, *, is_image: bool) -> dict[str, Any]:
        return {"chunks": (100, 10, *(shape[:2] if is_image else shape), *((1,) if is_image else ()))}


class DiffusionPolicy(Contestant):
    """Zarr v2: all episodes one after the other, one image per chunk, Blosc-zstd; small arrays in memory."""

    name = "diffusion-policy"
    title = "Diffusion Policy's buffer (Zarr v2)"
    needs = ("zarr", "numcodecs")
    samples_at_once = 16

    def write(self, folder: Path, source: Source) -> None:
        import zarr
        from numcodecs import Blosc

        group = zarr.open_group(folder / "data.zarr", mode="w", zarr_format=2)
        data: Any = group.create_group("data")
        meta = group.create_group("meta")
        for name, first in source.episodes[0].items():
            data.create_array(
                name,
                shape=(0, *first.shape[1:]),
                dtype=first.dtype,
                chunks=(1 if name in source.cameras else 1024, *first.shape[1:]),
                compressors=Blosc("zstd", clevel=5, shuffle=Blosc.BITSHUFFLE),
            )
        ends = meta.create_array("episode_ends", shape=(0,), dtype="int64", chunks=(1024,))
        for number, arrays in enumerate(source.episodes):
            for name, values in arrays.items():
                data[name].append(values)
            ends.append(np.cumsum(source.lengths)[number : number + 1])

    def open(self) -> None:
        import zarr

        group = zarr.open_group(self.folder / "data.zarr", mode="r", zarr_format=2)
        data: Any = group["data"]
        self._cameras = {name: data[name] for name in self.source.cameras}
        self._small = {name: data[name][:] for name in self.source.small}
        self._starts = np.concatenate([[0], np.asarray(group["meta/episode_ends"])])

    def episode(self, number: int) -> Arrays:
        steps = slice(self._starts[number], self._starts[number + 1])
        return {name: array[steps] for name, array in (self._cameras | self._small).items()}

    def frames(self, pairs: np.ndarray) -> np.ndarray:
        array = self._cameras[self.source.cameras[0]]
        return np.stack([array[self._starts[episode] + step] for episode, step in pairs.tolist()])

    def samples(self, pairs: np.ndarray) -> Arrays:
        places = (self._starts[pairs[:, 0]] + pairs[:, 1]).tolist()
        batch = {name: np.stack([array[place] for place in places]) for name, array in self._cameras.items()}
        window = self._starts[pairs[:, :1]] + self.source.window(pairs)
        return {**batch, self.source.actions: self._small[self.source.actions][window]}
