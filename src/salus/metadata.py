"""Metadata of an episode: JSON values under text keys. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from . import documents
from .errors import InvalidInputError

MAX_METADATA_BYTES = 2**20


def check_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of `metadata`, as it will be read back.

    Raises:
        InvalidInputError: A key is not text, a value has no JSON text (NaN has none), or it is over 1 MiB.
    """
    for key in metadata:
        if not isinstance(key, str):
            raise InvalidInputError(f"metadata: got a key {key!r} of type {type(key).__name__}, expected text")
    try:
        text = documents.canonical(dict(metadata))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"metadata: {error}; expected JSON values (text, numbers, lists, mappings)") from error
    if len(text) > MAX_METADATA_BYTES:
        raise InvalidInputError(f"metadata: {len(text)} bytes of JSON, expected at most {MAX_METADATA_BYTES}")
    copy: dict[str, Any] = json.loads(text)
    return copy
