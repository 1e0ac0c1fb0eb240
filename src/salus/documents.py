"""Sealed JSON documents: the body of every immutable object of a dataset (docs/spec.md, section 3).

A sealed document carries a fresh `write_id`, which tells a writer whose acknowledgement was lost that the object it
finds is its own, and ends in a `digest` of all bytes before it, which tells a reader that they are the ones written.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from typing import Any, NoReturn

from .errors import CorruptDataError, InvalidInputError

MAX_BYTES = 256 * 2**20
MAX_DEPTH = 64
"""Levels of nesting: half of them are for metadata, which may have 32."""
MAX_VALUES = 2**22
"""Values, keys and containers: each takes up to a hundred bytes of memory, however few it takes in the file."""

_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_DIGEST = b',"digest":"sha256:%b"}'
_SEAL_VALUES = 8
_DIGEST_SIZE = len(_DIGEST) - len(b"%b") + 64


def seal(document: dict[str, Any]) -> bytes:
    """`document` as canonical JSON, with a fresh `write_id`, ending in the sha256 `digest` of what is before it.

    Raises:
        InvalidInputError: It is larger, or nested deeper, than readers accept.
    """
    content = {key: value for key, value in document.items() if key != "digest"}
    content["write_id"] = secrets.token_hex(16)
    body = canonical(content)[:-1]
    if len(body) + _DIGEST_SIZE > MAX_BYTES:
        raise InvalidInputError(f"document of {len(body)} bytes, expected at most {MAX_BYTES}: no reader would take it")
    if (count := _num_values(body)) > MAX_VALUES - _SEAL_VALUES or _is_deep(body + b"}", content):
        raise InvalidInputError(
            f"document of {count} values, expected at most {MAX_VALUES} in {MAX_DEPTH} levels: no reader would take it"
        )
    return body + _DIGEST % hashlib.sha256(body).hexdigest().encode()


def unseal(body: bytes, *, key: str) -> dict[str, Any]:
    """Check and parse a sealed document.

    Raises:
        CorruptDataError: The digest does not hold, or what it covers is not JSON. Names `key`.
    """
    content, digest = body[:-_DIGEST_SIZE], body[-_DIGEST_SIZE:]
    if digest != _DIGEST % hashlib.sha256(content).hexdigest().encode():
        raise CorruptDataError(f"the digest does not hold: these are not the bytes that were written; {key}")
    return parse(body, key=key)


def digest_of(body: bytes) -> str:
    """The digest that a sealed `body` ends in, as `sha256:<hex>`."""
    return body[-66 - len("sha256:") : -2].decode()


def canonical(value: Any) -> bytes:
    """The one JSON text of `value`: sorted keys, no spaces, ASCII, no NaN.

    Raises:
        ValueError, TypeError: `value` has no JSON text.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def parse(body: bytes, *, key: str) -> dict[str, Any]:
    """Parse untrusted JSON: one object, of bounded size and depth, without duplicate keys, NaN or infinity.

    Raises:
        CorruptDataError: Anything else. Names `key`.
    """
    if len(body) > MAX_BYTES:
        raise CorruptDataError(f"JSON of {len(body)} bytes, expected at most {MAX_BYTES}; {key}")
    if (count := _num_values(body)) > MAX_VALUES:  # before they are made
        raise CorruptDataError(f"JSON of {count} values, expected at most {MAX_VALUES}; {key}")
    try:
        document = json.loads(
            body, object_pairs_hook=_no_duplicates, parse_constant=_refuse_constant, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:  # RecursionError: the parser's own cap on depth
        raise CorruptDataError(f"not valid JSON: {error}; {key}") from error
    if _is_deep(body, document):
        raise CorruptDataError(f"JSON nested deeper than {MAX_DEPTH} levels; {key}")
    if not isinstance(document, dict):
        raise CorruptDataError(f"JSON {type(document).__name__}, expected an object; {key}")
    return document


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("duplicate key")
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):  # 1e999
        raise ValueError("a number that no float64 holds")
    return value


def _num_values(body: bytes) -> int:
    """At least as many as there are: commas in text are counted, too. A short text is not looked at."""
    return len(body) if len(body) <= MAX_VALUES // 2 else sum(map(body.count, (b",", b"[", b"{", b":")))


def _is_deep(body: bytes, document: Any) -> bool:
    """Whether `document`, whose text is `body`, is nested deeper than `MAX_DEPTH`."""
    if len(body.translate(None, _NO_BRACKETS)) <= 2 * MAX_DEPTH:
        return False
    level = [document]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for value in level
            for item in (value.values() if isinstance(value, dict) else value)
            if isinstance(item, dict | list | tuple)
        ]
        if not level:
            return False
    return True
