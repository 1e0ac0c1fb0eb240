"""Reads with the zarrs pipeline under zarr-python: the decoding is done in Rust."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import zarr
from common import Expected, check, main
from read_zarr import describe, read_as_promised

if TYPE_CHECKING:
    from pathlib import Path


def read(path: Path, expected: Expected) -> int:
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    group = zarr.open(path)
    # zarrs has no numpy texts, and reads them through zarr-python. Everything else it must decode by itself:
    # "strict" leaves it no other way.
    with zarr.config.set({"codec_pipeline.strict": True}):
        strict = zarr.open(path)
        numbers = {name: strict[name] for name in ("episode_length", *expected.arrays)}
    for array in numbers.values():
        pipeline = array.async_array.codec_pipeline
        assert type(pipeline).__module__.startswith("zarrs")
        assert pipeline.python_impl is None

    def fetch(name: str, index: Any) -> Any:
        if name not in numbers:
            return group[name][index]
        if isinstance(index, tuple) and isinstance(index[1], slice):
            # zarrs 0.2.3 loses count of the axes where an integer stands beside a slice over several shards: it reads
            # through zarr-python, and fails with "incompatible offset" where one shard holds one step of the slice.
            # Any array written by zarr-python shows the same. A row as a slice is read by zarrs itself.
            row, steps = index
            return numbers[name][row : row + 1, steps][0]
        return numbers[name][index]

    count = check(expected, lambda name: describe(group[name]), fetch)
    if "images" in expected.arrays:
        count += read_as_promised(path, expected)
    return count


if __name__ == "__main__":
    main(read)
