"""Batches: the columns of many samples, which the stock `DataLoader` takes as they are.

`DataLoader` asks a dataset for the samples of a batch, then stacks them again. Here the samples of a batch are rows of
one `Rows`, and the collate function that PyTorch looks up for a row gives back the columns, without a copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from torch.utils.data import default_collate, get_worker_info
from torch.utils.data._utils.collate import collate as collate_any
from torch.utils.data._utils.collate import default_collate_fn_map

Sample: TypeAlias = dict[str, Any]
Batch: TypeAlias = dict[str, Any]


class Row(dict[str, Any]):
    """One sample of a batch: what users see as a dict."""


class Rows(Sequence[Row]):
    """The samples of a batch, as views on its columns.

    Args:
        columns: Feature name to a tensor or list of B values.
        count: B.
    """

    def __init__(self, columns: Batch, count: int) -> None:
        self.columns = columns
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        """A sample, or several."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return Row((name, values[index]) for name, values in self.columns.items())


def collate(samples: Sequence[Sample]) -> Batch:
    """The batch of samples: as PyTorch's own function, without a copy where they are the rows of one batch."""
    batch: Batch = default_collate(samples)  # type: ignore[arg-type]  # a sequence is all that it needs
    return batch


class SharedMemory:
    """Makes the arrays of a batch in shared memory, so that it travels from a worker process without a copy."""

    def __init__(self) -> None:
        self._tensors: list[torch.Tensor | None] = []

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """An array of that shape, its values undefined."""
        if dtype.hasobject:
            self._tensors.append(None)
            return np.empty(shape, dtype)
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)  # type: ignore[no-untyped-call]
        tensor = torch.empty(0, dtype=kind).set_(storage).view(shape)
        self._tensors.append(tensor)
        array: np.ndarray = tensor.numpy()
        return array

    def tensors(self, arrays: Iterable[np.ndarray]) -> list[torch.Tensor | None]:
        """For views of all arrays made here, in order, tensors that say that they are shared; None for objects."""
        return [
            None if tensor is None else tensor.as_strided(array.shape, [s // array.itemsize for s in array.strides])
            for array, tensor in zip(arrays, self._tensors, strict=True)
        ]


def in_worker() -> bool:
    """Whether this is a worker process of a `DataLoader`."""
    return get_worker_info() is not None


def _collate_rows(samples: Any, *, collate_fn_map: Any = None) -> Batch:
    if isinstance(samples, Rows):
        return samples.columns
    batch: Batch = collate_any([dict(sample) for sample in samples], collate_fn_map=collate_fn_map)
    return batch


default_collate_fn_map[Row] = _collate_rows
