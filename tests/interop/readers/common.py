"""What the Python readers share: SALUS cannot be imported, and everything read is compared bit for bit.

Nothing here knows how SALUS stores anything: a reader gives `describe` and `fetch`, and this module compares.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from types import ModuleType

Describe = Callable[[str], tuple[tuple[int, ...], str | None, list[str]]]
Fetch = Callable[[str, Any], Any]


class _NoSalus(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] == "salus":
            raise ImportError("a plain reader does without salus")
        return None


assert "salus" not in sys.modules
sys.meta_path.insert(0, _NoSalus())


class Expected:
    """`expected.json` and `values.bin` of a folder."""

    def __init__(self, folder: Path) -> None:
        document = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
        self.lengths: list[int] = document["lengths"]
        self.metadata: list[dict[str, Any] | None] = document["metadata"]
        self.clocks: dict[str, Any] = document["clocks"]
        self.dimensions: dict[str, list[str]] = document["dimensions"]
        self.arrays: dict[str, Any] = document["arrays"]
        self.texts: dict[str, dict[str, list[str]]] = document["texts"]
        self._values = np.memmap(folder / "values.bin", mode="r")

    def lengths_of(self, name: str) -> list[int]:
        """The length of each row of an array, which is that of its clock."""
        for clock in self.clocks.values():
            if name in clock["arrays"]:
                return list(clock["lengths"])
        return self.lengths

    def rows(self, name: str) -> list[int]:
        return [int(row) for row in self.arrays[name]["rows"]]

    def values(self, name: str, row: int) -> np.ndarray:
        """`(length, *step_shape)`: what row `row` of the array `name` must hold."""
        array = self.arrays[name]
        shape = (self.lengths_of(name)[row], *array["step_shape"])
        dtype = np.dtype(array["dtype"]).newbyteorder("<")
        start = array["rows"][str(row)]
        size = int(np.prod(shape)) * dtype.itemsize
        return self._values[start : start + size].view(dtype).reshape(shape)


def same(actual: Any, expected: np.ndarray, what: str) -> int:
    """Raise unless dtype, shape and every bit agree (-0.0 is not 0.0, and NaN is NaN). Returns how many values."""
    actual = np.asarray(actual)
    assert actual.dtype == expected.dtype, f"{what}: dtype {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    if np.ascontiguousarray(actual).tobytes() != np.ascontiguousarray(expected).tobytes():
        equal = (actual == expected) | ((actual != actual) & (expected != expected))  # noqa: PLR0124 - NaN
        raise AssertionError(f"{what}: differs from what was recorded, at {np.argwhere(~equal)[:3].tolist()}")
    return actual.size


def check(expected: Expected, describe: Describe, fetch: Fetch, *, texts: bool = True) -> int:
    """Compare a whole dataset.

    Args:
        expected: What must be there.
        describe: The shape of an array, its dtype (None for text) and its dimension names.
        fetch: The values of an array at an index of numpy's basic kind.
        texts: Whether the reader knows the data type `string`.

    Returns:
        The number of values compared.
    """
    count = _check_index(expected, describe, fetch, texts=texts)
    rows = len(expected.lengths)
    for name, array in expected.arrays.items():
        shape = (rows, max(expected.lengths_of(name)), *array["step_shape"])
        assert describe(name) == (shape, array["dtype"], expected.dimensions[name]), f"{name}: {describe(name)}"
        count += _check_rows(expected, name, fetch)
        count += _check_random_access(expected, name, fetch)
    if texts:
        for name, by_row in expected.texts.items():
            steps = max(expected.lengths_of(name))
            assert describe(name) == ((rows, steps), None, expected.dimensions[name]), f"{name}: {describe(name)}"
            for row, words in by_row.items():
                assert fetch(name, (int(row), slice(len(words)))).tolist() == words, f"{name}[{row}]"
                assert str(fetch(name, (int(row), len(words) - 1))) == words[-1], f"{name}[{row}, -1]"
                count += len(words)
    return count


def _check_index(expected: Expected, describe: Describe, fetch: Fetch, *, texts: bool) -> int:
    """`episode_length` says which rows hold an episode; `episode_metadata` is empty in all others."""
    rows = len(expected.lengths)
    assert describe("episode_length") == ((rows,), "int32", ["episode"])
    assert 0 in expected.lengths  # a row without an episode is part of what is tested
    count = same(fetch("episode_length", slice(None)), np.array(expected.lengths, np.int32), "episode_length")
    for clock, about in expected.clocks.items():
        name = f"{clock}.episode_length"
        assert describe(name) == ((rows,), "int32", ["episode"])
        count += same(fetch(name, slice(None)), np.array(about["lengths"], np.int32), name)
    if texts:
        assert describe("episode_metadata") == ((rows,), None, ["episode"])
        for row, (text, metadata) in enumerate(
            zip(fetch("episode_metadata", slice(None)).tolist(), expected.metadata, strict=True)
        ):
            if metadata is None:
                assert text == "", f"episode_metadata[{row}]: {text!r}, expected none"
            else:
                found = json.loads(text or "{}")
                assert found, f"episode_metadata[{row}]: none, expected {metadata}"
                assert metadata == {key: found[key] for key in metadata}, f"episode_metadata[{row}]: {found}"
        count += rows
    return count


def _check_rows(expected: Expected, name: str, fetch: Fetch) -> int:
    """Every row that is known: out of the whole array where it is small, else row by row."""
    whole = fetch(name, slice(None)) if len(expected.arrays[name]["step_shape"]) < 3 else None
    count = 0
    for row in expected.rows(name):
        steps = slice(expected.lengths_of(name)[row])
        actual = whole[row, steps] if whole is not None else fetch(name, (row, steps))
        count += same(actual, expected.values(name, row), f"{name}[{row}]")
    return count


def _check_random_access(expected: Expected, name: str, fetch: Fetch) -> int:
    rng = np.random.default_rng(0)
    count = 0
    for row in rng.choice(expected.rows(name), 8).tolist():
        values = expected.values(name, row)
        first, last = sorted(rng.integers(0, len(values), 2).tolist())
        count += same(fetch(name, (row, last)), values[last], f"{name}[{row}, {last}]")
        count += same(fetch(name, (row, slice(first, last))), values[first:last], f"{name}[{row}, {first}:{last}]")
    return count


def main(read: Callable[[Path, Expected], int]) -> None:
    """Run a reader on the folder that the command line names, and print how many values it compared."""
    folder = Path(sys.argv[1])
    count = read(folder / "data.zarr", Expected(folder))
    assert "salus" not in sys.modules
    print(count)  # noqa: T201 - the test reads it
