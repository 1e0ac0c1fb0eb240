"""What the attacks are made of: the catalogue, and changes of files, documents and shards that keep checksums whole."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from salus import documents
from salus.codecs import crc32c
from salus.layout import array_specs, record_key, schema_key
from salus.schema import Schema
from salus.shards import tail_bytes

BOMB_BYTES = 400_000_000
Change = Callable[[Path], object]


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        change: What it does to the dataset at a path.
        says: What somebody has to say of it; `""` where nobody has to.
        unaffected: All episodes read as before.
    """

    change: Change
    says: str = ""
    unaffected: bool = False


ATTACKS: dict[str, Attack] = {}


def attack(says: str = "", *, unaffected: bool = False) -> Callable[[Change], Change]:
    """Put a function into the catalogue, under its name in words."""

    def add(change: Change) -> Change:
        ATTACKS[change.__name__.strip("_").replace("_", " ")] = Attack(change, says, unaffected)
        return change

    return add


def outside(path: Path) -> Path:
    """The folder that nobody may touch or read."""
    return path.parent / "outside"


def reseal(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Give a sealed document another content, with a digest that holds."""
    document = documents.unseal(file.read_bytes(), key=str(file))
    document.pop("digest")
    edit(document)
    file.write_bytes(sealed(document))


def sealed(document: Any) -> bytes:
    """A document that a writer of ours would refuse, with a digest that holds."""
    import json

    return seal_text(json.dumps(document).encode())


def seal_text(text: bytes) -> bytes:
    """The same of any text that ends in a brace."""
    import hashlib

    content = text[:-1]
    return content + b',"digest":"sha256:' + hashlib.sha256(content).hexdigest().encode() + b'"}'


def edit_record(path: Path, edit: Callable[[dict[str, Any]], object], slot: int = 1) -> None:
    reseal(path / record_key(slot), edit)


def edit_schema(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    reseal(path / schema_key(0), lambda document: edit(document["schema"]))


def replace_shard(path: Path, name: str, body: bytes, slot: int = 1) -> bytes:
    """Another shard, which says that it is the right one, with a record that vouches for it; returns it."""
    import hashlib

    schema = Schema.from_json(documents.unseal((path / schema_key(0)).read_bytes(), key="")["schema"])
    spec = array_specs(schema)[name]
    key = spec.shard_key(slot, 0)
    uid = documents.unseal((path / record_key(slot)).read_bytes(), key="")["uid"]
    index = max(len(body) - tail_bytes(spec, b""), 0)
    body = body[:index] + spec.shard_identity(uid, 0) + body[index:]
    (path / key).write_bytes(body)

    def vouch(record: dict[str, Any]) -> None:
        for shard in record["shards"]:
            if shard["key"] == key:
                shard.update(size=len(body), crc32c=crc32c(body), sha256=hashlib.sha256(body).hexdigest())

    edit_record(path, vouch, slot)
    return body


def shard_of(chunks: list[tuple[int, int]], data: bytes) -> bytes:
    """A shard whose index says what one likes, with checksums that hold."""
    index = np.array(chunks, "<u8").tobytes()
    return data + index + crc32c(index).to_bytes(4, "little")


def chunk(packed: bytes) -> bytes:
    return packed + crc32c(packed).to_bytes(4, "little")


def one_chunk(packed: bytes, num_chunks: int = 1) -> bytes:
    data = chunk(packed)
    return shard_of([(number * len(data), len(data)) for number in range(num_chunks)], data * num_chunks)


def sparse(file: Path, size: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as made:
        made.truncate(size)


def link_folder(path: Path, key: str) -> None:
    """Move a folder outside, and leave a link to it."""
    target = outside(path) / "moved"
    (path / key).rename(target)
    (path / key).symlink_to(target)


def swap(path: Path, key: str, make: Callable[[Path], object]) -> None:
    """Something else in the place of a file."""
    (path / key).unlink()
    make(path / key)


def make_socket(file: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = os.open(file.parent, os.O_RDONLY)
        made.bind(f"/proc/self/fd/{here}/{file.name}")
        os.close(here)


def to_canary(file: Path) -> None:
    """A link to the named pipe outside, at which whoever follows it waits for ever."""
    folder = next(above for above in file.parents if (above / "outside").is_dir())
    file.symlink_to(folder / "outside/pipe")
