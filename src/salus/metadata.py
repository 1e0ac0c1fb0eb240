"""Metadata of an episode: JSON values under text keys. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import documents
from .errors import InvalidInputError

MAX_METADATA_BYTES = 2**20
MAX_METADATA_DEPTH = 32


def check_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of `metadata`, as it will be read back.

    Raises:
        InvalidInputError: A key is not text, a value has no JSON text (NaN has none), or it is over 1 MiB or 32 levels.
    """
    if not isinstance(metadata, Mapping):
        raise InvalidInputError(f"metadata: got {type(metadata).__name__} {metadata!r}, expected a mapping")
    if _depth(metadata, MAX_METADATA_DEPTH) > MAX_METADATA_DEPTH:
        raise InvalidInputError(f"metadata: nested deeper than {MAX_METADATA_DEPTH} levels")
    for key in metadata:
        if not isinstance(key, str):
            raise InvalidInputError(f"metadata: got a key {key!r} of type {type(key).__name__}, expected text")
    for key, value in metadata.items():
        if isinstance(value, np.generic | np.ndarray):
            raise InvalidInputError(
                f"metadata {key!r}: got numpy {value.dtype}, expected a Python value; value.tolist()"
            )
    try:
        text = documents.canonical(dict(metadata))
        json.dumps(dict(metadata), ensure_ascii=False).encode()  # half of a surrogate pair has no UTF-8 form
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"metadata: {error}; expected JSON values (text, numbers, lists, mappings)") from error
    if len(text) > MAX_METADATA_BYTES:
        raise InvalidInputError(f"metadata: {len(text)} bytes of JSON, expected at most {MAX_METADATA_BYTES}")
    copy: dict[str, Any] = json.loads(text)
    return copy


def _depth(value: Any, limit: int) -> int:
    """Levels of nesting, looked at no further than one past the limit."""
    if limit < 0 or not isinstance(value, Mapping | list | tuple):
        return 0
    items = value.values() if isinstance(value, Mapping) else value
    return 1 + max((_depth(item, limit - 1) for item in items), default=0)
