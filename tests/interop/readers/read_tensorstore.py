"""Reads with TensorStore. It has no data type for text, so texts are not looked at: it refuses to open those arrays."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import tensorstore
from common import Expected, check, main

if TYPE_CHECKING:
    from pathlib import Path


def read(path: Path, expected: Expected) -> int:
    @cache
    def array(name: str) -> tensorstore.TensorStore:
        kvstore = {"driver": "file", "path": f"{path.absolute()}/{name}/"}
        return tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()

    def describe(name: str) -> tuple[tuple[int, ...], str | None, list[str]]:
        opened = array(name)
        return opened.shape, opened.dtype.name, list(opened.domain.labels)

    def fetch(name: str, index: Any) -> Any:
        return array(name)[index].read().result()

    return check(expected, describe, fetch, texts=False)


if __name__ == "__main__":
    main(read)
