"""Where a dataset lies: objects under keys, created once, replaced whole, listed and read."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import InvalidInputError
from .base import Found, Storage, StoredFile
from .beneath import open_plain
from .connecting import SCHEMES, StorageOptions, is_url
from .disk_cache import DiskCache
from .local import LocalStorage
from .objects import ObjectStorage

__all__ = [
    "DiskCache",
    "Found",
    "LocalStorage",
    "ObjectStorage",
    "Storage",
    "StorageOptions",
    "StoredFile",
    "is_url",
    "open_plain",
    "open_storage",
]


def open_storage(
    path: str | os.PathLike[str], options: StorageOptions | None = None, cache: DiskCache | None = None
) -> Storage:
    """The storage of a local path, or of the URL of an object store.

    Args:
        path: Such as `data.zarr`, `file:///data.zarr`, `s3://bucket/data.zarr`, `gs://…`, `az://container/…`.
        options: Of an object store: as `ObjectStorage`.
        cache: Of an object store: as `ObjectStorage`; of a local path, nothing is kept twice.

    Raises:
        InvalidInputError: Not such a URL, or options that do not go with it.
        MissingExtraError: An object store, and the extra `cloud` is not installed.
    """
    text = os.fspath(path)
    if is_url(text):
        return ObjectStorage(text, options, cache)
    of_url = re.match(r"(\w+):/(?!/)(.+)", text)
    if of_url and of_url[1] in SCHEMES:
        raise InvalidInputError(
            f"path: got {text!r}, which is what Path makes of a URL; give it as text: '{of_url[1]}://{of_url[2]}'"
        )
    if options:
        raise InvalidInputError(f"storage_options: got {', '.join(options)}, expected none for a local path; {text}")
    return LocalStorage(Path(os.path.abspath(Path(text.removeprefix("file://")).expanduser())))
