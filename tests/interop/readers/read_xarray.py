"""Reads with xarray, by the names of the dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray
from common import Expected, check, main, same

if TYPE_CHECKING:
    from pathlib import Path


def read(path: Path, expected: Expected) -> int:
    dataset = xarray.open_zarr(path)
    assert set(dataset.data_vars) == set(expected.dimensions)
    assert not dataset.coords
    assert dataset.sizes["episode"] == len(expected.lengths)
    assert dataset.sizes["step"] == max(expected.lengths)

    def describe(name: str) -> tuple[tuple[int, ...], str | None, list[str]]:
        variable = dataset[name]
        text = isinstance(variable.dtype, np.dtypes.StringDType)
        return variable.shape, None if text else str(variable.dtype), list(variable.dims)

    def fetch(name: str, index: Any) -> Any:
        return dataset[name][index].values

    count = check(expected, describe, fetch)
    name, row = next((name, row) for name in expected.arrays for row in expected.rows(name))
    by_name = dataset[name].isel(episode=row, step=slice(1, 3))
    return count + same(by_name.values, expected.values(name, row)[1:3], f"{name} by dimension names")


if __name__ == "__main__":
    main(read)
