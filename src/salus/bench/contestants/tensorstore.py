"""TensorStore on the files that SALUS wrote."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...opening import open
from ..source import ACTION_WINDOW, Arrays
from .base import Contestant, UnsupportedError


class TensorStore(Contestant):
    """One `vindex` read per array and batch, all started before the first is waited for; no cache pool."""

    name = "tensorstore"
    title = "TensorStore (SALUS's files)"
    needs = ("tensorstore",)
    reads_files_of = "salus"

    def open(self) -> None:
        import tensorstore

        dataset = open(self.folder / "data.zarr")
        self._slots = np.array([entry.slot for entry in dataset.episodes])
        context = tensorstore.Context(
            {"cache_pool": {"total_bytes_limit": 0}, "data_copy_concurrency": {"limit": self.threads}}
        )
        self._arrays: dict[str, Any] = {}
        for name in (*self.source.cameras, *self.source.small):
            store = {"driver": "file", "path": str(self.folder / "data.zarr" / name)}
            array = tensorstore.open({"driver": "zarr3", "kvstore": store}, context=context, open=True).result()
            self._arrays[name] = self._seen(array) if name in self.source.cameras else array

    def _seen(self, array: Any) -> Any:
        return array

    def episode(self, number: int) -> Arrays:
        slot, steps = self._slots[number], self.source.lengths[number]
        reads = {name: array[slot, :steps].read() for name, array in self._arrays.items()}
        return self._results(reads)

    def frames(self, pairs: np.ndarray) -> np.ndarray:
        array = self._arrays[self.source.cameras[0]]
        return self._last(array.vindex[self._slots[pairs[:, 0]], pairs[:, 1]].read().result())

    def samples(self, pairs: np.ndarray) -> Arrays:
        slots = self._slots[pairs[:, 0]]
        reads = {name: self._arrays[name].vindex[slots, pairs[:, 1]].read() for name in self.source.cameras}
        window = self._arrays[self.source.actions].vindex
        repeated = np.repeat(slots, ACTION_WINDOW).reshape(-1, ACTION_WINDOW)
        reads[self.source.actions] = window[repeated, self.source.window(pairs)].read()
        return self._results(reads)

    def _results(self, reads: dict[str, Any]) -> Arrays:
        values = {name: read.result() for name, read in reads.items()}
        return {name: self._last(array) if name in self.source.cameras else array for name, array in values.items()}

    def _last(self, images: np.ndarray) -> np.ndarray:
        return np.moveaxis(images, -3, -1)

    def torch_dataset(self) -> Any:
        raise UnsupportedError("its users read whole batches; it must not be forked")


class TensorStoreChannelsLast(TensorStore):
    """The same through a view with the channels last, as the bytes lie: its users have to know."""

    name = "tensorstore-hwc"
    title = "TensorStore, seen channels last"

    def _seen(self, array: Any) -> Any:
        return array.transpose([0, 1, 3, 4, 2])

    def _last(self, images: np.ndarray) -> np.ndarray:
        return images
