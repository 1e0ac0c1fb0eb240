"""How inputs are changed: JSON by its structure, packed columns by their numbers, bytes as bytes; then sealed again.

A digest or a crc32c that does not hold ends every parser at once, so whoever only flips bytes tests the checksum and
nothing behind it. All of this is a function of the random numbers it is given.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from numcodecs import zstd

from salus.codecs import crc32c, declared_size
from salus.errors import SalusError

Mutator = Callable[[bytes, random.Random], bytes]

_MAX_BYTES = 2**20
_MAX_UNPACKED = 2**22

INTEGERS = (
    *(0, 1, 2, 3, 4, 5, 7, 8, 16, 63, 64, 65, 100, 127, 128, 255, 256, 1023, 1024, 65535, 65536),
    *(2**20, 2**24, 10**9, 2**30, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53 + 1, 10**18),
    *(2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**70, 10**30, 10**400),
    *(-1, -2, -(2**31), -(2**31) - 1, -(2**63), -(2**63) - 1, -(10**400)),
)
TEXTS = (
    *("", " ", "a", "step", "joints", "camera", "states", "success", "failure", "unknown", "committed", "aborted"),
    *("outcome", "zstd", "jpeg", "string", "float32", "f4", "O", "(1 2)i4", "i4,i4", "V99999999999", "zarr.json"),
    *("..", "../../etc/passwd", "/etc/passwd", "c/00/0", "a\\b", "%2f", "a\0b", "\u0661", "é", "\ud800", "\U0001f600"),
    *("\x1b[31m", "<script>alert(1)</script>", "[red]", "\u202e", "null", "NaN", "1e5", "a" * 200, "é" * 5000),
    *("00000000-0000-7000-8000-000000000000", "corrupt-slot-0", "sha256:" + "0" * 64, "AAAA", "KLUv/QAA"),
)
# What json.dumps has no text for, or would not write: put in as a marker, and replaced in the text.
_RAW = {
    '"@inf@"': "1e999",
    '"@-inf@"': "-1e999",
    '"@nan@"': "NaN",
    '"@huge@"': "9" * 5000,
    '"@long@"': "0." + "3" * 3000,
    '"@deep40@"': "[" * 40 + "]" * 40,
    '"@deep200@"': '{"a":' * 200 + "1" + "}" * 200,
    '"@deep450@"': "[" * 450 + "]" * 450,
    '"@deep900@"': "[" * 900 + "]" * 900,
    '"@deep100000@"': "[" * 100_000 + "]" * 100_000,
    '"@twice@"': '{"a":1,"a":2}',
}
_MARKERS = tuple(marker.strip('"') for marker in _RAW)
_RARE_MARKERS = ("@deep100000@",)


# --- bytes -------------------------------------------------------------------------------------------------------


def mutate_bytes(data: bytes, rng: random.Random, *, times: int = 0) -> bytes:
    """A few changes of bytes: bits, integers at aligned places, ranges taken out, doubled or exchanged."""
    changed = bytearray(data)
    for _ in range(times or rng.choice((1, 1, 1, 2, 3, 6))):
        size = len(changed)
        place = rng.randrange(size) if size else 0
        match rng.randrange(9) if size else 6:
            case 0:
                changed[place] ^= 1 << rng.randrange(8)
            case 1:
                changed[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)))
            case 2 | 3:
                width = rng.choice((1, 2, 4, 8))
                place -= place % width
                number = rng.choice(INTEGERS) % 256**width
                changed[place : place + width] = number.to_bytes(width, rng.choice(("little", "big")))
            case 4:
                del changed[place : place + rng.choice((1, 1, 2, 4, 8, 16, size))]
            case 5:
                part = changed[place : place + rng.choice((1, 2, 4, 8, 16, 64))]
                changed[place:place] = part * rng.choice((1, 1, 2, 30))
            case 6:
                changed[place:place] = rng.randbytes(rng.choice((1, 2, 4, 8, 40)))
            case 7:
                other, count = rng.randrange(size), rng.choice((1, 2, 4, 8))
                part = changed[place : place + count]
                changed[place : place + count], changed[other : other + count] = changed[other : other + count], part
            case _:
                changed[place : place + 4] = rng.randbytes(4)
    return bytes(changed[:_MAX_BYTES])


def mutate_packed(packed: bytes, rng: random.Random) -> bytes:
    """A zstd frame with changed content, or a changed frame; other bytes as bytes."""
    declared = declared_size(packed)
    if declared is not None and declared <= _MAX_UNPACKED and rng.random() < 0.75:
        try:
            return bytes(zstd.compress(mutate_bytes(bytes(zstd.decompress(packed)), rng), 1))
        except RuntimeError:
            return mutate_bytes(packed, rng)
    if packed and rng.random() < 0.5:  # the header
        return mutate_bytes(packed[:14], rng, times=1) + packed[14:]
    return mutate_bytes(packed, rng)


def mutate_text(text: str, rng: random.Random) -> str:
    """Other text; base64 as what it holds."""
    if len(text) >= 8 and rng.random() < 0.8:
        try:
            packed = base64.b64decode(text, validate=True)
        except ValueError:
            packed = b""
        if packed:
            return base64.b64encode(mutate_packed(packed, rng)).decode()
    if rng.random() < 0.3:
        return rng.choice(TEXTS)
    place = rng.randrange(len(text) + 1)
    part = rng.choice(("", "", "0", "-", ".", "/", "\0", "z", "é", "\ud800", text))
    return (text[:place] + part + text[place + rng.randrange(3) :])[:_MAX_BYTES]


# --- JSON --------------------------------------------------------------------------------------------------------


def mutate_json(value: Any, rng: random.Random, donors: Sequence[Any] = ()) -> Any:
    """`value` with a few changes at random places; it is changed itself."""
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4, 8))):
        if not isinstance(value, dict | list) or not value or rng.random() < 0.003:
            return other_value(value, rng)
        container, key = _spot(value, rng)
        if isinstance(container, dict):
            _change_member(container, key, rng, donors)
        else:
            _change_item(container, key, rng, donors)
    return value


def _spot(value: Any, rng: random.Random) -> tuple[Any, Any]:
    while True:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        inside = value[key]
        if not isinstance(inside, dict | list) or not inside or rng.random() < 0.12:
            return value, key
        value = inside


def _change_member(members: dict[str, Any], key: str, rng: random.Random, donors: Sequence[Any]) -> None:
    match rng.randrange(12):
        case 0:
            del members[key]
        case 1:
            members[rng.choice((*TEXTS, *members))] = members[key]
        case 2:
            other = rng.choice(list(members))
            members[key], members[other] = members[other], members[key]
        case 3 if donors:
            donor = rng.choice(donors)
            members[key] = donor.get(key, donor) if isinstance(donor, dict) else donor
        case _:
            members[key] = other_value(members[key], rng)


def _change_item(items: list[Any], place: int, rng: random.Random, donors: Sequence[Any]) -> None:
    match rng.randrange(12):
        case 0:
            del items[place]
        case 1:
            items.insert(place, items[place])
        case 2:
            other = rng.randrange(len(items))
            items[place], items[other] = items[other], items[place]
        case 3:
            items *= rng.choice((2, 2, 3, 20) if len(items) < 50 else (2,))
        case 4:
            items.clear()
        case _:
            items[place] = other_value(items[place], rng)


def other_value(value: Any, rng: random.Random) -> Any:
    """Something in the place of a value: mostly of its kind."""
    if rng.random() < 0.6:
        if isinstance(value, str):
            return mutate_text(value, rng)
        if isinstance(value, int | float) and not isinstance(value, bool):
            if isinstance(value, float) and abs(value) > 2.0**1000:  # infinite
                return 1.0
            return rng.choice(
                (
                    value + 1,
                    value - 1,
                    -value,
                    value * 2,
                    value // 2,
                    float(value) if abs(value) < 2**1000 else 0.5,
                    str(value)[:50],
                )
            )
        if isinstance(value, bool):
            return not value
    match rng.randrange(8):
        case 0 | 1 | 2:
            return rng.choice(INTEGERS)
        case 3:
            return rng.choice(TEXTS)
        case 4:
            return rng.choice((None, True, False, [], {}, [[]], {"": None}, [None], ["a"], {"a": 1}))
        case 5:
            return rng.choice((0.5, -0.0, 1.0, 1e-320, 1e308, -1e308, 2.0**31, 1e18))
        case 6:
            marker = rng.choice(_MARKERS)
            return rng.choice(INTEGERS) if marker in _RARE_MARKERS and rng.random() < 0.95 else marker
        case _:
            return rng.choice(([value], {"value": value}, [value, value], [[value]]))


def to_text(value: Any) -> bytes:
    """The JSON text of what `mutate_json` made, with what JSON cannot say put in raw."""
    text = json.dumps(value, separators=(",", ":"))
    if "Infinity" in text:
        text = text.replace("-Infinity", "-1e999").replace("Infinity", "1e999")
    if '"@' in text:
        for marker, raw in _RAW.items():
            text = text.replace(marker, raw)
    return text.encode()


def seal(text: bytes) -> bytes:
    """JSON text of an object, with the digest that makes it a sealed document."""
    content = text[:-1]
    return content + b',"digest":"sha256:' + hashlib.sha256(content).hexdigest().encode() + b'"}'


def unsealed(body: bytes) -> Any:
    """The content of a sealed document, without its digest; ValueError, RecursionError where it is none."""
    value = json.loads(body)
    if isinstance(value, dict):
        value.pop("digest", None)
    return value


def json_mutator(
    seeds: Sequence[bytes], *, sealed: bool, more: Callable[[Any, random.Random], Any] | None = None
) -> Mutator:
    """A mutator of JSON documents.

    Args:
        seeds: What is mutated where an input cannot be.
        sealed: They end in a digest.
        more: Changes that only documents of this kind have, made in one of four inputs.
    """
    donors = [unsealed(seed) for seed in seeds]

    def mutate(data: bytes, rng: random.Random) -> bytes:
        try:
            value = unsealed(data)
        except (ValueError, RecursionError):
            value = unsealed(rng.choice(seeds))
        try:
            if more is not None and rng.random() < 0.25:
                value = more(value, rng)
            text = to_text(mutate_json(value, rng, donors))
        except (ValueError, RecursionError, OverflowError):  # too deep, or too long a number, for json.dumps
            text = to_text(mutate_json(unsealed(rng.choice(seeds)), rng, ()))
        if rng.random() < 0.03:
            text = mutate_bytes(text, rng, times=1)
        text = text[:_MAX_BYTES]
        if not sealed:
            return text
        body = seal(text)
        return mutate_bytes(body, rng, times=1) if rng.random() < 0.01 else body

    return mutate


# --- crc32c ------------------------------------------------------------------------------------------------------


def with_crc32c(data: bytes) -> bytes:
    """Bytes, and their checksum."""
    return data + crc32c(data).to_bytes(4, "little")


_ATTEMPTS = 20


def tolerant(mutate: Mutator, seeds: Sequence[bytes]) -> Mutator:
    """A mutator that takes a seed where an input has a form that it does not understand."""

    def either(data: bytes, rng: random.Random) -> bytes:
        for start in (data, *rng.choices(seeds, k=_ATTEMPTS)):
            try:
                return mutate(start, rng)
            except (ValueError, IndexError, RecursionError, OverflowError, SalusError):
                continue
        return data

    return either
