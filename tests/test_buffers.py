"""Memory that is used again: only once nobody holds it."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from salus.buffers import BufferPool

SHAPE, BYTE = (4, 1024, 512), np.dtype("uint8")


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_comes_back_when_the_last_view_is_gone() -> None:
    pool = BufferPool()
    first = pool.empty(SHAPE, BYTE)
    place = address(first)
    view = first.transpose(2, 0, 1)[5:, :2]
    del first
    gc.collect()
    other = pool.empty(SHAPE, BYTE)
    assert address(other) != place  # a view is held
    view[:] = 7
    del view
    assert address(pool.empty(SHAPE, BYTE)) == place
    del other


def test_what_is_held_never_changes() -> None:
    pool = BufferPool()
    held = []
    for number in range(5):
        array = pool.empty(SHAPE, BYTE)
        array[:] = number
        held.append(array[1:, 3])
        del array
    assert [int(array.min()) for array in held] == [int(array.max()) for array in held] == [0, 1, 2, 3, 4]


def test_a_tensor_holds_its_memory() -> None:
    torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")
    pool = BufferPool()
    array = pool.empty(SHAPE, np.dtype("float32"))
    place = address(array)
    tensor = torch.from_numpy(array[2:])[0]
    del array
    others = [pool.empty(SHAPE, np.dtype("float32"))]
    tensor[:] = 3
    again = tensor.numpy()[3:]
    del tensor
    others.append(pool.empty(SHAPE, np.dtype("float32")))
    assert place not in [address(other) for other in others]
    assert (again == 3).all()
    del again
    assert address(pool.empty(SHAPE, np.dtype("float32"))) == place


def test_other_dtypes_and_small_arrays() -> None:
    pool = BufferPool()
    array = pool.empty((1024, 1024), np.dtype("int64"))
    array[:] = np.arange(1024)
    assert array.dtype == np.int64
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert pool.empty((3,), BYTE).base is None
    assert pool.empty((2**21,), np.dtype(object)).base is None


def test_a_somewhat_larger_buffer_serves_as_well() -> None:
    pool = BufferPool()
    array = pool.empty((3, 2**20), BYTE)
    place = address(array)
    del array
    smaller = pool.empty((2, 2**20), BYTE)
    assert address(smaller) == place
    assert smaller.shape == (2, 2**20)
    del smaller
    assert address(pool.empty((1, 2**20), BYTE)) != place  # three times what is wanted
    assert address(pool.empty((3, 2**20), BYTE)) == place


def test_unused_memory_is_bounded() -> None:
    made: list[int] = []

    def memory(nbytes: int) -> np.ndarray:
        made.append(nbytes)
        return np.empty(nbytes, np.uint8)

    pool = BufferPool(memory, kept_bytes=5 * 2**20)
    arrays = [pool.empty((2, 2**20), BYTE) for _ in range(4)]
    del arrays
    again = [pool.empty((2, 2**20), BYTE) for _ in range(4)]
    assert len(made) == 6  # two of the four were kept
    del again


def test_many_threads() -> None:
    pool, wrong = BufferPool(kept_bytes=2**23), []

    def work(number: int) -> None:
        for turn in range(200):
            array = pool.empty((2, 2**19), BYTE)
            array[:, ::4096] = number
            if not (array[:, ::4096] == number).all():
                wrong.append(turn)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
