"""The catalogue of hostile datasets: each attack changes a small, sound dataset, and names what SALUS says of it.

To add one: write a function that changes the dataset at `path`, and decorate it with `@attack(...)`, which takes

    says        text (a regular expression) that an error, or a finding of `verify`, has to contain
    unaffected  what was attacked is never believed, or is nobody's yet: all episodes read as before, also afterwards

The functions run in a child with a memory limit and a time limit (`child.py`); the folder above the dataset holds
`outside/`, with a named pipe that would hang whoever follows a link there, and files that must stay as they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import zstd

from salus import documents
from salus.codecs import crc32c
from salus.layout import amendment_key, checkpoint_key, claim_key, journal_key, record_key, schema_key
from salus.log.claims import _process_identity

from .making import (
    ATTACKS,
    BOMB_BYTES,
    Change,
    attack,
    chunk,
    edit_record,
    edit_schema,
    link_folder,
    make_socket,
    one_chunk,
    outside,
    replace_shard,
    seal_text,
    sealed,
    shard_of,
    sparse,
    swap,
    to_canary,
)

__all__ = ["ATTACKS"]

IMAGE = "images/c.1.0.0.0.0"
STATES = "states/c.1.0.0"


# --- what is no plain file, and links ----------------------------------------------------------------------------


@attack(r"symbolic link, expected a plain file; _salus/log/0/0000000001.json")
def a_record_is_a_link(path: Path) -> None:
    swap(path, record_key(1), to_canary)


@attack(r"named pipe, expected a plain file; _salus/log/0/0000000001.json")
def a_record_is_a_pipe(path: Path) -> None:
    swap(path, record_key(1), os.mkfifo)


@attack(r"device or socket, expected a plain file; _salus/log/0/0000000001.json")
def a_record_is_a_socket(path: Path) -> None:
    swap(path, record_key(1), make_socket)


@attack(r"directory, expected a plain file; _salus/log/0/0000000001.json")
def a_record_is_a_folder(path: Path) -> None:
    swap(path, record_key(1), Path.mkdir)


@attack(r"symbolic link, expected a plain file; states/c.1.0.0")
def a_shard_is_a_link(path: Path) -> None:
    swap(path, STATES, to_canary)


@attack(r"named pipe, expected a plain file; images/c.1.0.0.0.0")
def a_shard_is_a_pipe(path: Path) -> None:
    swap(path, IMAGE, os.mkfifo)


@attack(r"symbolic link 'images', expected a plain folder; images/c\.")
def the_folder_of_an_array_is_a_link(path: Path) -> None:
    link_folder(path, "images")


@attack(r"symbolic link '_salus', expected a plain folder; _salus/schema/000000.json")
def the_private_folder_is_a_link(path: Path) -> None:
    link_folder(path, "_salus")


@attack(r"symbolic link 'log', expected a plain folder; _salus/log")
def the_log_is_a_link(path: Path) -> None:
    link_folder(path, "_salus/log")


@attack(r"symbolic link '0', expected a plain folder; _salus/log/0")
def a_folder_of_the_log_is_a_link(path: Path) -> None:
    link_folder(path, "_salus/log/0")


@attack(r"file '_salus', expected a plain folder; _salus/schema/000000.json")
def the_private_folder_is_a_file(path: Path) -> None:
    (path / "_salus").rename(outside(path) / "moved")
    (path / "_salus").write_bytes(b"")


@attack(r"file 'log', expected a plain folder; _salus/log")
def the_log_is_a_file(path: Path) -> None:
    (path / "_salus/log").rename(outside(path) / "moved")
    (path / "_salus/log").write_bytes(b"")


@attack(r"symbolic link 'amendments', expected a plain folder")
def the_amendments_are_a_link(path: Path) -> None:
    (path / "_salus/amendments").symlink_to(outside(path))


@attack(r"named pipe, expected a plain file; _salus/amendments/0000000000.json")
def an_amendment_is_a_pipe(path: Path) -> None:
    (path / "_salus/amendments").mkdir()
    os.mkfifo(path / amendment_key(0))


@attack(r"symbolic link, expected a plain file; _salus/schema/000001.json")
def the_next_revision_is_a_link(path: Path) -> None:
    (path / schema_key(1)).symlink_to(path / schema_key(0))


@attack(r"a symbolic link, expected a plain file; .*_salus/publish.lock", unaffected=True)
def the_lock_is_a_link(path: Path) -> None:
    (path / "_salus/publish.lock").unlink(missing_ok=True)
    (path / "_salus/publish.lock").symlink_to(outside(path) / "created")


@attack(r"named pipe, expected a plain file; .*_salus/publish.lock", unaffected=True)
def the_lock_is_a_pipe(path: Path) -> None:
    (path / "_salus/publish.lock").unlink(missing_ok=True)
    os.mkfifo(path / "_salus/publish.lock")


@attack(r"symbolic link.*zarr.json", unaffected=True)
def the_metadata_is_a_link(path: Path) -> None:
    swap(path, "zarr.json", to_canary)


@attack(r"directory.*zarr.json", unaffected=True)
def the_metadata_is_a_folder(path: Path) -> None:
    swap(path, "zarr.json", Path.mkdir)


@attack(r"episode_length", unaffected=True)
def the_folder_of_the_lengths_is_a_link(path: Path) -> None:
    link_folder(path, "episode_length")


@attack(r"'journal', expected a plain folder", unaffected=True)
def the_journals_are_a_link(path: Path) -> None:
    leave_an_episode(path)
    link_folder(path, "_salus/journal")


@attack(r"symbolic link, expected a plain file; _salus/journal", unaffected=True)
def a_journal_is_a_link(path: Path) -> None:
    leave_an_episode(path)
    swap(path, journal_key(3), to_canary)


@attack(r"named pipe, expected a plain file; _salus/journal", unaffected=True)
def a_journal_is_a_pipe(path: Path) -> None:
    leave_an_episode(path)
    swap(path, journal_key(3), os.mkfifo)


@attack(r"named pipe, expected a plain file; _salus/claims", unaffected=True)
def a_claim_is_a_pipe(path: Path) -> None:
    os.mkfifo(path / claim_key(3))


# --- sizes -------------------------------------------------------------------------------------------------------


@attack(r"an object of 1099511627776 bytes, expected at most .*; _salus/log/0/0000000001.json")
def a_record_of_a_terabyte_of_holes(path: Path) -> None:
    sparse(path / record_key(1), 2**40)


@attack(r"an object of 1099511627776 bytes, expected at most", unaffected=True)
def a_metadata_file_of_a_terabyte_of_holes(path: Path) -> None:
    sparse(path / "zarr.json", 2**40)


@attack(r"the shard has 1099511627776 bytes, expected|its size: got 1099511627776 bytes")
def a_shard_of_a_terabyte_of_holes(path: Path) -> None:
    sparse(path / STATES, 2**40)


@attack(r"chunk 0 has .* bytes, expected at most", unaffected=False)
def a_chunk_of_a_gigabyte_of_holes(path: Path) -> None:
    size = 2**30
    shard = replace_shard(path, "states", shard_of([(0, size)], b""))
    sparse(path / STATES, size)
    with (path / STATES).open("ab") as file:
        file.write(shard)

    def vouch(record: dict[str, Any]) -> None:
        for found in record["shards"]:
            if found["key"] == STATES:
                found["size"] = size + len(shard)

    edit_record(path, vouch)


@attack(r"steps 0 .. 4: chunk declares 400000000 bytes, expected 448")
def a_chunk_that_declares_more(path: Path) -> None:
    replace_shard(path, "states", one_chunk(bytes(zstd.compress(bytes(BOMB_BYTES), 1))))


@attack(r"zstd cannot decode the chunk")
def a_chunk_with_a_second_frame(path: Path) -> None:
    frames = bytes(zstd.compress(bytes(448), 1)) + bytes(zstd.compress(bytes(BOMB_BYTES), 1))
    replace_shard(path, "states", one_chunk(frames))


@attack(r"zstd cannot decode the chunk")
def a_text_with_a_second_frame(path: Path) -> None:
    frames = bytes(zstd.compress(bytes(16), 1)) + bytes(zstd.compress(bytes(BOMB_BYTES), 1))
    replace_shard(path, "said", one_chunk(frames))


@attack(r"text chunk declares 400000000 bytes")
def a_text_that_declares_more(path: Path) -> None:
    replace_shard(path, "said", one_chunk(bytes(zstd.compress(bytes(BOMB_BYTES), 1))))


@attack(r"text chunk ends within a text")
def a_text_longer_than_its_chunk(path: Path) -> None:
    raw = (16).to_bytes(4, "little") + b"\xff\xff\xff\xff" + b"x" * 90
    replace_shard(path, "said", one_chunk(bytes(zstd.compress(raw, 1))))


@attack(r"JPEG image of \(height, width, channels\) \(65000, 65000, 3\), expected \(12, 10, 3\)")
def a_jpeg_of_four_gigapixels(path: Path) -> None:
    head = b"\xff\xd8\xff\xc0\x00\x11\x08" + (65000).to_bytes(2, "big") * 2 + b"\x03" + b"\x01\x11\x00" * 3
    replace_shard(path, "photo", one_chunk(head + bytes(100), 16))


@attack(r"no baseline JPEG image, expected")
def a_jpeg_that_is_none(path: Path) -> None:
    replace_shard(path, "photo", one_chunk(b"\xff\xd8" + b"\xff\xe0\x00\x02" * 1000, 16))


@attack(r"the shard index points outside its \d+ bytes: chunk 0")
def an_index_past_the_end(path: Path) -> None:
    replace_shard(path, "states", shard_of([(2**40, 100)], bytes(500)))


@attack(r"the shard index points outside its \d+ bytes: chunk 0")
def an_index_of_2_to_the_63(path: Path) -> None:
    replace_shard(path, "states", shard_of([(2**63, 2**63)], bytes(500)))


@attack(r"the shard index lays chunk \d+ over chunk \d+")
def an_index_whose_chunks_overlap(path: Path) -> None:
    data = chunk(bytes(zstd.compress(bytes(360), 1)))
    replace_shard(path, "images", shard_of([(0, len(data))] * 16, data))


@attack(r"the shard index does not hold its crc32c|its size|at least the")
def a_shard_of_one_byte(path: Path) -> None:
    replace_shard(path, "states", b"x")


# --- documents ---------------------------------------------------------------------------------------------------


def json_attack(text: bytes, says: str) -> Change:
    def change(path: Path) -> None:
        (path / record_key(1)).write_bytes(seal_text(text))

    return attack(says)(_named(change, "a record that is " + says))


def _named(change: Change, name: str) -> Change:
    change.__name__ = name  # type: ignore[attr-defined]
    return change


for _text, _says in {
    b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}": r"not valid JSON: .*recursion",
    b'{"a":' + b"[" * 100 + b"]" * 100 + b"}": "JSON nested deeper than 64 levels",
    b'{"a":' + b'["]",' * 100 + b"1" + b"]" * 100 + b"}": "nested deeper than 64 levels",
    b'{"a":1,"a":2}': "duplicate key",
    b'{"a":NaN}': "NaN is not JSON",
    b'{"a":1e999}': "a number that no float64 holds",
    b'{"a":' + b"9" * 5000 + b"}": "Exceeds the limit .* for integer string conversion",
    b'{"a":[' + b"[]," * 3_000_000 + b"1]}": r"JSON of \d+ values, expected at most 4194304",
    b'{"a":"\xff"}': "codec can't decode",
    b"[1]}": "not valid JSON: Extra data",
}.items():
    json_attack(_text, _says)


@attack("the digest does not hold")
def an_empty_record(path: Path) -> None:
    (path / record_key(1)).write_bytes(b"")


RECORD_EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a failure kind that is a list": (lambda d: d["outcome"].update(result="failure", kind=[1]), "outcome with kind"),
    "a failure at step 1.0": (lambda d: d["outcome"].update(result="failure", step=1.0), "outcome with kind"),
    "a length of 2 to the 70": (lambda d: d["lengths"].update(step=2**70), "length 1180591620717411303424"),
    "a length of 2 to the 31, with few shards": (
        lambda d: d["lengths"].update(step=2**31 - 1),
        "shards, which are not",
    ),
    "a revision of 2 to the 62": (lambda d: d.update(schema_revision=2**62), "revision"),
    "a shard whose key leads outside": (
        lambda d: d["shards"][0].update(key="../outside/secret"),
        "shards, which are not",
    ),
    "a shard whose key is absolute": (lambda d: d["shards"][0].update(key="/etc/passwd"), "shards, which are not"),
    "a shard whose key is a list": (lambda d: d["shards"][0].update(key=[]), "record: not understood"),
    "a shard whose sha256 is a number": (lambda d: d["shards"][0].update(sha256=7), "record: not understood"),
    "a slot of its own": (lambda d: d.update(slot=2**80), "expected slot 1"),
    "a start in the year 300,000": (lambda d: d.update(started_ns=2**63), "start 9223372036854775808"),
}
for _name, (_edit, _said) in RECORD_EDITS.items():

    def _edit_record(path: Path, edit: Any = _edit) -> None:
        edit_record(path, edit)

    attack(_said)(_named(_edit_record, _name))

SCHEMA_EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a shape of 2 to the 70": (lambda s: s["features"][1].update(shape=[2**70]), "bytes a step, expected at most"),
    "a shape with more digits than Python shows": (lambda s: s["features"][1].update(shape=[10**4000] * 8), "schema: "),
    "a shape of rank 1,000": (lambda s: s["features"][1].update(shape=[1] * 1000), "expected at most 8 whole numbers"),
    "a shape of 0": (lambda s: s["features"][1].update(shape=[0]), "whole numbers of at least 1"),
    "an image of 2 to the 40 pixels": (lambda s: s["features"][0].update(height=2**40), "expected at most"),
    "a segment of no steps": (lambda s: s.update(segment_steps=0), "segment_steps: got 0"),
    "a segment of 2 to the 40 steps": (lambda s: s.update(segment_steps=2**40), "segment_steps: got 1099511627776"),
    "dtype object": (lambda s: s["features"][1].update(dtype="object"), "dtype 'object'"),
    "dtype O": (lambda s: s["features"][1].update(dtype="|O"), "dtype '|O'"),
    "a structured dtype": (lambda s: s["features"][1].update(dtype=[["a", "f4"]]), "dtype"),
    "a dtype that numpy parses": (lambda s: s["features"][1].update(dtype="(1,)f4," * 10_000), "dtype"),
    "codec pickle": (lambda s: s["features"][1].update(codec="pickle"), "codec: got 'pickle', expected 'zstd'"),
    "a range past float64": (lambda s: s["features"][1].update(range=[0, 10**400]), "schema: "),
    "a rate of almost nothing": (lambda s: s.update(rate_hz=-1e-320), "rate_hz"),
    "a name that leads outside": (lambda s: s["features"][1].update(name="../outside"), "feature name"),
    "a name that is absolute": (lambda s: s["features"][1].update(name="/etc/x"), "feature name"),
    "a name with a NUL": (lambda s: s["features"][1].update(name="a\0b"), "feature name"),
    "a name in Unicode digits": (lambda s: s["features"][1].update(name="a١"), "feature name"),
    "the name of the private folder": (lambda s: s["features"][1].update(name="_salus"), "feature name"),
    "a name twice": (lambda s: s["features"][1].update(name=s["features"][2]["name"]), "twice"),
    "100,000 failure kinds": (lambda s: s.update(failure_kinds=["a b"] * 100_000), "failure_kinds"),
    "a kind of feature that is none": (lambda s: s["features"][1].update(kind="pickle"), "schema: "),
    "a schema that is a list": (lambda s: s.update(features=[[]]), "schema: "),
    "a clock that is a list": (lambda s: s["features"][1].update(clock=[]), "schema: "),
}
for _name, (_edit, _said) in SCHEMA_EDITS.items():

    def _edit_schema(path: Path, edit: Any = _edit) -> None:
        edit_schema(path, edit)

    attack(_said)(_named(_edit_schema, _name))


def unknown_codec(path: Path, codec: list[dict[str, Any]]) -> None:
    edit_schema(path, lambda schema: schema["features"][1].update(codec=codec))


@attack(r"no installed package brings the Zarr codec 'no-such-codec'")
def a_codec_that_nobody_knows(path: Path) -> None:
    unknown_codec(path, [{"name": "bytes"}, {"name": "no-such-codec"}])


@attack(r"zarr-python cannot build the codecs")
def a_nested_codec_that_nobody_knows(path: Path) -> None:
    inner = {"chunk_shape": [1, 16, 7], "codecs": [{"name": "bytes"}, {"name": "pickle"}], "index_codecs": []}
    unknown_codec(path, [{"name": "sharding_indexed", "configuration": inner}])


@attack(r"codec: got .*, expected 1 to 16 Zarr codecs")
def a_hundred_codecs(path: Path) -> None:
    unknown_codec(path, [{"name": "bytes"}] * 100)


AMENDMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "uids that are lists": ({"uids": [[]]}, "uids or author that are no text"),
    "metadata that is a list": ({"change": "metadata", "value": [["task", 1]]}, "metadata list"),
    "an unknown change": ({"change": "exec", "value": "rm"}, "unknown change 'exec'"),
    "a time past all years": ({"time_ns": 10**300}, "time 1"),
    "an outcome at step 10 to the 30": (
        {"change": "outcome", "value": {"result": "failure", "kind": None, "step": 10**30}},
        "outcome with kind",
    ),
}
for _name, (_content, _said) in AMENDMENTS.items():

    def _amend(path: Path, content: Any = _content) -> None:
        plain = {"number": 0, "uids": [], "change": "delete", "value": None, "author": "", "time_ns": 0}
        (path / "_salus/amendments").mkdir()
        (path / amendment_key(0)).write_bytes(sealed({**plain, **content}))

    attack(_said)(_named(_amend, f"an amendment with {_name}"))


def put_checkpoint(path: Path, document: Any) -> None:
    (path / "_salus/checkpoints").mkdir(exist_ok=True)
    (path / checkpoint_key(0)).write_bytes(sealed(document))


def packed(values: np.ndarray) -> str:
    import base64

    return base64.b64encode(bytes(zstd.compress(values.tobytes(), 1))).decode()


@attack(r"a column of 400000000 bytes", unaffected=True)
def a_checkpoint_whose_column_inflates(path: Path) -> None:
    columns = {"slot": packed(np.zeros(BOMB_BYTES // 8, "<i8"))}
    put_checkpoint(path, {"table": {"num_rows": 1, "texts": [], "columns": columns}, "amendments": []})


@attack(r"a column of 40000000 bytes in", unaffected=True)
def a_checkpoint_of_five_million_rows(path: Path) -> None:
    columns = {"slot": packed(np.zeros(5_000_000, "<i8"))}
    put_checkpoint(path, {"table": {"num_rows": 5_000_000, "texts": [], "columns": columns}, "amendments": []})


@attack(r"zstd cannot decode", unaffected=True)
def a_checkpoint_with_a_second_frame(path: Path) -> None:
    import base64

    body = bytes(zstd.compress(bytes(8), 1)) + bytes(zstd.compress(bytes(BOMB_BYTES), 1))
    columns = {"slot": base64.b64encode(body).decode()}
    put_checkpoint(path, {"table": {"num_rows": 1, "texts": [], "columns": columns}, "amendments": []})


@attack(r"rows", unaffected=True)
def a_checkpoint_of_2_to_the_70_rows(path: Path) -> None:
    put_checkpoint(path, {"table": {"num_rows": 2**70, "texts": [], "columns": {}}, "amendments": []})


@attack(r"not understood", unaffected=True)
def a_checkpoint_that_is_something_else(path: Path) -> None:
    put_checkpoint(path, {"table": {"num_rows": 1, "texts": 7, "columns": []}, "amendments": 7})


@attack(r"tag|Entry|not understood", unaffected=True)
def a_tag_of_the_first_form_that_is_something_else(path: Path) -> None:
    (path / "_salus/tags").mkdir()
    (path / "_salus/tags/v1.json").write_bytes(sealed({"name": "v1", "columns": {"uid": [7]}, "amendments": []}))


# --- derived: for others, never believed -------------------------------------------------------------------------

ROOTS: dict[str, Any] = {
    "of another shape": {"zarr_format": 3, "consolidated_metadata": [], "attributes": []},
    "that says 2 to the 70 slots": {
        "attributes": {"salus": {"published": {"slots": 2**70, "open": [], "amendments": 2**70}}},
        "consolidated_metadata": {"metadata": {"timestamp_ns": {"shape": [0, 2**70]}}},
    },
    "with lists for numbers": {
        "attributes": {"salus": {"published": {"slots": [], "open": [[]], "amendments": None}, "clocks": [[]]}},
        "consolidated_metadata": {"metadata": {"timestamp_ns": {"shape": "xx"}}},
    },
    "with attributes of attributes": {"attributes": {"salus": []}, "consolidated_metadata": {"metadata": []}},
}
for _name, _content in ROOTS.items():

    def _mangle(path: Path, content: Any = _content) -> None:
        import json

        (path / "zarr.json").write_text(json.dumps(content))

    attack("zarr.json", unaffected=True)(_named(_mangle, f"a root {_name}"))


@attack("images/zarr.json", unaffected=True)
def an_array_of_objects_with_a_storage_transformer(path: Path) -> None:
    import json

    document = json.loads((path / "images/zarr.json").read_text())
    document["data_type"], document["codecs"] = "object", [{"name": "pickle"}]
    document["storage_transformers"] = [{"name": "x"}]
    document["unknown"] = {"must_understand": True}
    document["shape"] = [2**70] * 1000
    (path / "images/zarr.json").write_text(json.dumps(document))


@attack("episode_metadata/c.0", unaffected=True)
def an_index_chunk_that_inflates(path: Path) -> None:
    (path / "episode_metadata/c.0").write_bytes(chunk(bytes(zstd.compress(bytes(BOMB_BYTES), 1))))


@attack("episode_length/c.0", unaffected=True)
def an_index_chunk_with_a_second_frame(path: Path) -> None:
    frames = bytes(zstd.compress(bytes(4096), 1)) + bytes(zstd.compress(bytes(BOMB_BYTES), 1))
    (path / "episode_length/c.0").write_bytes(chunk(frames))


# --- claims and journals -----------------------------------------------------------------------------------------


def leave_an_episode(path: Path, journal: bytes = b"") -> None:
    """A claim on slot 3 by a process of this host that is dead, and its journal."""
    claim = {"uid": "01900000-0000-7000-8000-000000000003", **_process_identity(), "pid": 2**22 + 7}
    (path / claim_key(3)).write_bytes(documents.seal(claim))
    (path / journal_key(3)).parent.mkdir(parents=True)
    (path / journal_key(3)).write_bytes(journal)


def frame(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "little") + crc32c(payload).to_bytes(4, "little") + payload


START = {
    "type": "start",
    "slot": 3,
    "uid": "01900000-0000-7000-8000-000000000003",
    "schema_revision": 0,
    "metadata": {},
    "started_ns": 1,
}
JOURNALS: dict[str, tuple[bytes, str]] = {
    "a frame of 4 gigabytes": (b"\xff" * 8, "no step was written"),
    "JSON that is deep": (frame(b'{"a":' + b"[" * 1000 + b"]" * 1000 + b"}"), "JSON nested deeper|recursion"),
    "a start in the year 300,000": (frame(documents.canonical({**START, "started_ns": 2**63})), "first frame"),
    "a clock that is none": (
        frame(documents.canonical(START)) + frame(b'{"type":"steps","clock":[],"timestamp_source":"x"}'),
        "a frame is not understood",
    ),
    "2 to the 63 steps": (
        frame(documents.canonical(START))
        + frame(
            documents.canonical({"type": "steps", "timestamp_source": "x", "first": 0, "count": 2**63, "arrays": {}})
        ),
        "a frame is not understood",
    ),
}
for _name, (_body, _said) in JOURNALS.items():

    def _leave(path: Path, body: bytes = _body) -> None:
        leave_an_episode(path, body)

    attack(_said, unaffected=True)(_named(_leave, f"a journal with {_name}"))


@attack("no step was written", unaffected=True)
def a_journal_of_a_terabyte_of_holes(path: Path) -> None:
    leave_an_episode(path)
    sparse(path / journal_key(3), 2**40)
    with (path / journal_key(3)).open("r+b") as file:
        file.write(b"\xff\xff\xff\x7f" + bytes(4))


@attack("claim", unaffected=True)
def a_claim_of_process_2_to_the_70(path: Path) -> None:
    claim = {"uid": "x", **_process_identity(), "pid": 2**70, "boot_id": ""}
    (path / claim_key(3)).write_bytes(documents.seal(claim))


# --- text that is to be shown ------------------------------------------------------------------------------------

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m<script>alert(1)</script>\u202e[bold]\ud800"


@attack(unaffected=True)
def escapes_in_text(path: Path) -> None:
    edit_record(path, lambda d: d["metadata"].update({"task": ESCAPES, ESCAPES: ESCAPES}))
    edit_schema(path, lambda s: s["features"][1].update(unit=ESCAPES, names=[ESCAPES] * 7))
    claim = {"uid": ESCAPES, **_process_identity(), "boot_id": "x", "host": ESCAPES}
    (path / claim_key(3)).write_bytes(documents.seal(claim))
    (path / "\x1b[2J<script>").write_bytes(b"")
