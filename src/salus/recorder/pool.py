"""Memory for the images of steps on their way to the encoder, used again and again.

Fresh memory costs the kernel a page fault for each 4 KiB, on the thread that first writes to it, which would be the
robot's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np

from ..layout import ArraySpec

_PAGE_BYTES = 4096


class StepBuffer:
    """Room for one step of every array with one step per chunk.

    Attributes:
        arrays: Array name to (1, *stored_step_shape).
        bytes: The same memory, flat.
    """

    __slots__ = ("arrays", "bytes")

    def __init__(self, specs: Mapping[str, ArraySpec]) -> None:
        self.arrays = {name: np.empty((1, *spec.stored_step_shape), spec.numpy_dtype) for name, spec in specs.items()}
        self.bytes = {name: _flat(array) for name, array in self.arrays.items()}

    def copy(self, name: str, values: np.ndarray) -> np.ndarray:
        """Copy one step, (1, *stored_step_shape), whatever the order of its memory; returns it, on this buffer.

        Memory without gaps is copied as it lies, and without giving up the GIL: taking it back from an encoding thread
        can take longer than the copy. What the encoder gets may therefore be no C-contiguous array.
        """
        if values.flags.c_contiguous:
            self.bytes[name][:] = _flat(values)
            return self.arrays[name]
        # Turned axes and exchanged channels: undone here, so that the memory is read from its start to its end.
        turned = tuple(slice(None, None, -1 if stride < 0 else 1) for stride in values.strides)
        order = sorted(range(values.ndim), key=lambda axis: -abs(values.strides[axis]))
        plain = values[turned].transpose(order)
        copied = self.arrays[name].reshape(plain.shape)
        if plain.flags.c_contiguous:
            self.bytes[name][:] = _flat(plain)
        else:
            np.copyto(copied, plain)
        return copied.transpose(np.argsort(order))[turned]


class BufferPool:
    """Buffers of one recorder. As many exist as steps ever waited at once, which the recorder's queue bounds.

    Args:
        specs: Arrays with one step per chunk, by name.
        prepared: Buffers to make at the start, their memory touched.

    Thread-safety: safe. The buffer used last is given out first, as its memory is the likeliest to be in a cache.
    """

    def __init__(self, specs: Mapping[str, ArraySpec], *, prepared: int) -> None:
        self._specs = specs
        self._free: deque[StepBuffer] = deque()
        self.made = 0
        for _ in range(prepared if specs else 0):
            buffer = self._make()
            for flat in buffer.bytes.values():
                np.frombuffer(flat, np.uint8)[::_PAGE_BYTES] = 0
            self._free.append(buffer)

    def take(self) -> StepBuffer:
        """A free buffer, or a new one."""
        try:
            return self._free.pop()
        except IndexError:
            return self._make()

    def give_back(self, buffer: StepBuffer) -> None:
        """Nobody reads it any more."""
        self._free.append(buffer)

    def _make(self) -> StepBuffer:
        self.made += 1
        return StepBuffer(self._specs)


def _flat(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
