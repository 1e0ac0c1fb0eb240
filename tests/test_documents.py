"""Sealed JSON: the digest holds for exactly the bytes that were written, and hostile JSON is refused."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from salus import documents
from salus.errors import CorruptDataError

VALUE: dict[str, Any] = {"b": [1, 2.5, None, True], "a": {"ü": "grüß\n\u2028"}, "z": -(10**30)}


def test_a_sealed_document_comes_back() -> None:
    read = documents.unseal(documents.seal(VALUE), key="k")
    assert {key: read[key] for key in VALUE} == VALUE
    assert set(read) == {*VALUE, "write_id", "digest"}


def test_each_body_has_a_write_id_of_its_own() -> None:
    bodies = {documents.seal(VALUE) for _ in range(50)}
    assert len(bodies) == 50


def test_the_digest_is_the_sha256_of_what_is_before_it() -> None:
    body = documents.seal(VALUE)
    content, _, _ = body.rpartition(b',"digest":')
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert json.loads(body)["digest"] == digest
    assert documents.digest_of(body) == digest
    assert body.isascii()


def test_an_old_digest_in_the_document_is_left_out() -> None:
    body = documents.seal({**VALUE, "digest": "sha256:0"})
    assert body.count(b'"digest"') == 1
    assert documents.unseal(body, key="k")["b"] == VALUE["b"]


def test_every_changed_byte_and_every_cut_is_found() -> None:
    body = documents.seal({"a": 1})
    for place in range(len(body)):
        changed = bytearray(body)
        changed[place] ^= 1
        for wrong in (bytes(changed), body[:place], body[:place] + b" " + body[place:]):
            with pytest.raises(CorruptDataError, match="digest does not hold.*; the/key"):
                documents.unseal(wrong, key="the/key")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, object(), b"bytes"])
def test_what_has_no_json_text_is_refused_when_writing(value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        documents.canonical({"a": value})


def test_there_is_one_text_per_value() -> None:
    assert documents.canonical({"b": 1, "a": [1.0, "é"]}) == b'{"a":[1.0,"\\u00e9"],"b":1}'


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"{} {}", "not valid JSON"),
        (b'{"a":1,"a":2}', "duplicate key"),
        (b'{"x":{"a":1,"b":2,"a":3}}', "duplicate key"),
        (b'{"a":NaN}', "NaN is not JSON"),
        (b'{"a":-Infinity}', "-Infinity is not JSON"),
        (b'{"a":"\xff"}', "not valid JSON"),
        (b'{"a":' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b"[1]", "JSON list, expected an object"),
        (b'"text"', "JSON str, expected an object"),
        (b"null", "JSON NoneType, expected an object"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not valid JSON"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not valid JSON"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else None,
)
def test_hostile_json_is_refused(body: bytes, text: str) -> None:
    with pytest.raises(CorruptDataError, match=f"{text}.*; the/key"):
        documents.parse(body, key="the/key")


def test_a_body_over_the_cap_is_refused_unparsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_BYTES", 10)
    assert documents.parse(b'{"a":  10}', key="k") == {"a": 10}
    with pytest.raises(CorruptDataError, match="JSON of 11 bytes, expected at most 10; k"):
        documents.parse(b'{"a":   10}', key="k")
