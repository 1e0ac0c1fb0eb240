"""Reads with zarr-python."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import zarr
import zarr.errors
from common import Expected, check, main, same

if TYPE_CHECKING:
    from pathlib import Path


def read(path: Path, expected: Expected) -> int:
    group = zarr.open(path)
    assert isinstance(group, zarr.Group)
    assert sorted(group.array_keys()) == sorted(expected.dimensions)
    assert list(group.group_keys()) == []
    count = check(expected, lambda name: describe(group[name]), lambda name, index: group[name][index])
    if "images" in expected.arrays:
        count += read_as_promised(path, expected)
    read_without_consolidated_metadata(path, expected)
    return count


def describe(array: Any) -> tuple[tuple[int, ...], str | None, list[str]]:
    dtype = None if array.metadata.data_type.to_json(zarr_format=3) == "string" else str(array.dtype)
    return array.shape, dtype, list(array.metadata.dimension_names)


def read_as_promised(path: Path, expected: Expected) -> int:
    """The lines of the README, as they stand there."""
    data = str(path)
    count = same(zarr.open(data)["images"][42, 10:20], expected.values("images", 42)[10:20], "images")
    count += same(zarr.open(data)["signals"][42, 7], expected.values("signals", 42)[7], "signals")
    # One text is a 0-d array of numpy's StringDType: str() before json.loads.
    metadata = json.loads(str(zarr.open(data)["episode_metadata"][42]))
    assert metadata["metadata"] == expected.metadata[42]["metadata"]
    length = zarr.open(data)["episode_length"][42]
    count += same(zarr.open(data)["actions"][42, :length], expected.values("actions", 42), "actions")
    return count


def read_without_consolidated_metadata(path: Path, expected: Expected) -> None:
    """Every array opens by its name without a warning; walking the group warns of `_salus`, and of nothing else."""
    group = zarr.open_group(path, mode="r", use_consolidated=False)
    for name in expected.dimensions:
        assert list(group[name].metadata.dimension_names) == expected.dimensions[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert sorted(group.array_keys()) == sorted(expected.dimensions)
    assert [warning.category for warning in caught] == [zarr.errors.ZarrUserWarning]
    assert "_salus is not recognized as a component of a Zarr hierarchy" in str(caught[0].message)


if __name__ == "__main__":
    main(read)
