"""h5py: one file per episode, as robomimic and ALOHA store them, a file kept open per episode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..source import Arrays, Source
from .base import Contestant


class Hdf5Plain(Contestant):
    """Uncompressed, contiguous."""

    name = "hdf5"
    title = "HDF5 per episode, uncompressed"
    needs = ("h5py",)

    def __init__(self, folder: Path, source: Source, threads: int) -> None:
        super().__init__(folder, source, threads)
        self._files: list[Any] = []

    def write(self, folder: Path, source: Source) -> None:
        import h5py

        for number, arrays in enumerate(source.episodes):
            with h5py.File(folder / f"{number}.hdf5", "w") as file:
                for name, values in arrays.items():
                    file.create_dataset(name, data=values, **self._options(values))

    def _options(self, values: np.ndarray) -> dict[str, Any]:
        del values
        return {}

    def open(self) -> None:
        import h5py

        self._files = [h5py.File(self.folder / f"{number}.hdf5", "r") for number in range(len(self.source.lengths))]

    def episode(self, number: int) -> Arrays:
        file = self._files[number]
        return {name: file[name][:] for name in (*self.source.cameras, *self.source.small)}

    def frames(self, pairs: np.ndarray) -> np.ndarray:
        return np.stack([self._files[episode][self.source.cameras[0]][step] for episode, step in pairs.tolist()])

    def samples(self, pairs: np.ndarray) -> Arrays:
        batch: dict[str, list[np.ndarray]] = {name: [] for name in (*self.source.cameras, self.source.actions)}
        for (episode, step), window in zip(pairs.tolist(), self.source.window(pairs), strict=True):
            file = self._files[episode]
            for name in self.source.cameras:
                batch[name].append(file[name][step])
            batch[self.source.actions].append(file[self.source.actions][window[0] : window[-1] + 1][window - window[0]])
        return {name: np.stack(values) for name, values in batch.items()}

    def close(self) -> None:
        for file in self._files:
            file.close()


class Hdf5Gzip(Hdf5Plain):
    """gzip level 4, the default of h5py, one image per chunk."""

    name = "hdf5-gzip"
    title = "HDF5 per episode, gzip"

    def _options(self, values: np.ndarray) -> dict[str, Any]:
        return {"compression": "gzip", "chunks": (1, *values.shape[1:]) if values.ndim == 4 else True}
