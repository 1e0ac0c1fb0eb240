"""What lies in the folder of a dataset and is none of it: orphans, temporary files, links, pipes. Nothing is opened.

Every name is held against the builders of keys; a folder is listed once, name by name, so memory does not grow.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..errors import InvalidInputError
from ..layout import (
    METADATA,
    PRIVATE,
    SLOTS_PER_FOLDER,
    TEMPORARY,
    ArraySpec,
    array_specs,
    index_rows,
    number_in,
    tag_key,
)
from ..schema import LENGTH, length_name
from ..storage import LocalStorage
from .log import Log, schema_number
from .report import Finding, Findings

_SHARD = re.compile(r"c\.([0-9]{1,18})\.([0-9]{1,18})((?:\.0)*)")
_CHUNK = re.compile(r"c\.([0-9]{1,18})")
_KINDS = {stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
_KEEP = "no data depends on it; remove it by hand, if nobody wants it"
_LOOK = "it is never followed or opened; remove it by hand"


def check_tree(storage: LocalStorage, log: Log, undecided: set[int]) -> Findings:
    """Everything below the root that no key builder of this dataset names.

    Args:
        storage: The dataset.
        log: What is committed.
        undecided: Slots that were claimed and have no record: what lies there is theirs.
    """
    arrays = array_specs(log.schemas[-1]) if log.schemas else {}
    index = {LENGTH, METADATA, *(length_name(clock) for clock in (log.schemas[-1].clocks if log.schemas else ()))}
    walk = _Walk(storage, log, undecided)
    for name, kind in _listed(storage.root):
        if name == "zarr.json":
            yield from walk.file(name, kind)
        elif kind != "folder":
            yield walk.stray(name, kind)
        elif name == PRIVATE:
            yield from walk.private()
        elif name in arrays:
            yield from walk.shards(arrays[name])
        elif name in index:
            yield from walk.chunks(name)
        elif log.schemas and not any(f.kind == "schema" for f in log.findings):
            yield walk.stray(name, kind)


def _listed(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and kind of everything in a folder: "file", "folder", or what it is instead."""
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                yield entry.name, "file"
            elif entry.is_dir(follow_symlinks=False):
                yield entry.name, "folder"
            else:
                try:
                    mode = entry.stat(follow_symlinks=False).st_mode
                except FileNotFoundError:  # gone in this moment
                    continue
                yield entry.name, _KINDS.get(stat.S_IFMT(mode), "a device")


class _Walk:
    """Looks at one kind of folder after another."""

    def __init__(self, storage: LocalStorage, log: Log, undecided: set[int]) -> None:
        self._storage = storage
        self._log = log
        self._undecided = undecided
        self._decided = dict(zip(log.decided.column("slot"), log.decided.column("status"), strict=True))

    def private(self) -> Findings:
        """`_salus`."""
        folders = {
            "schema": schema_number,
            "amendments": _numbered,
            "checkpoints": _numbered,
            "tags": _tag_number,
        }
        for name, kind in _listed(self._storage.path(PRIVATE)):
            key = f"{PRIVATE}/{name}"
            if name == "publish.lock":
                yield from self.file(key, kind)
            elif kind == "folder" and name in folders:
                for inner, what in _listed(self._storage.path(key)):
                    if folders[name](inner) is None:
                        yield self.stray(f"{key}/{inner}", what)
                    else:
                        yield from self.file(f"{key}/{inner}", what)
            elif kind == "folder" and name in ("claims", "log"):
                yield from self._by_slot(key, ".json" if name == "log" else "")
            elif kind == "folder" and name == "journal":
                yield from self._journals(key)
            else:
                yield self.stray(key, kind)

    def _by_slot(self, key: str, suffix: str) -> Findings:
        for folder, kind in _listed(self._storage.path(key)):
            number = number_in(folder)
            if number is None or kind != "folder" or folder != str(number):
                yield self.stray(f"{key}/{folder}", kind)
                continue
            for name, what in _listed(self._storage.path(f"{key}/{folder}")):
                slot = number_in(name, suffix=suffix)
                if slot is None or slot // SLOTS_PER_FOLDER != number or name != f"{slot:010d}{suffix}":
                    yield self.stray(f"{key}/{folder}/{name}", what)
                else:
                    yield from self.file(f"{key}/{folder}/{name}", what)

    def _journals(self, key: str) -> Findings:
        for name, kind in _listed(self._storage.path(key)):
            slot = number_in(name)
            if slot is None or kind != "folder" or name != f"{slot:010d}":
                yield self.stray(f"{key}/{name}", kind)
            elif slot in self._decided:
                yield Finding(
                    "journal",
                    "leftover",
                    f"{key}/{name}",
                    "the journal of an episode that is decided",
                    remedy="--repair removes it, once its recorder is dead",
                    slot=slot,
                )
            elif slot not in self._undecided:
                yield replace(self.stray(f"{key}/{name}", kind), failed="the journal of a slot that nobody claimed")

    def shards(self, spec: ArraySpec) -> Findings:
        """The folder of an array `(slot, step, …)`. What lies in a slot that is not decided is that episode's."""
        strays: dict[int, list[str]] = {}
        segments = self._segments(spec)
        for name, kind in _listed(self._storage.path(spec.name)):
            key = f"{spec.name}/{name}"
            found = _SHARD.fullmatch(name)
            slot, segment = (int(found[1]), int(found[2])) if found else (0, 0)
            if name == "zarr.json":
                yield from self.file(key, kind)
            elif not found or spec.shard_key(slot, segment) != key:
                yield self.stray(key, kind)
            elif slot in self._undecided or segment < segments.get(slot, 0):
                yield from self.file(key, kind)
            else:
                strays.setdefault(slot, []).append(key)
        for slot, keys in sorted(strays.items()):
            yield replace(self.stray(keys[0], "file"), failed=self._why(slot, len(keys)), slot=slot)

    def _segments(self, spec: ArraySpec) -> dict[int, float]:
        """How many shards of an array belong to each decided slot."""
        decided = self._log.decided
        counts = -(-decided.lengths(spec.clock) // spec.segment_steps)
        segments: dict[int, float] = dict(zip(decided.column("slot"), counts.tolist(), strict=True))
        corrupt = decided.numbers("slot")[decided.has("status", "corrupt")].tolist()
        return segments | dict.fromkeys(corrupt, math.inf)  # whose a shard is, nobody knows

    def _why(self, slot: int, count: int) -> str:
        shards = "a shard" if count == 1 else f"{count} shards"
        status = self._decided.get(slot)
        if status is None:
            return f"{shards} in a slot that nobody claimed: written past the log"
        if status == "aborted":
            return f"{shards} of an aborted episode"
        return f"{shards} past the end of the episode"

    def chunks(self, name: str) -> Findings:
        """The folder of an index array `(slot,)`."""
        for found, kind in _listed(self._storage.path(name)):
            key, chunk = f"{name}/{found}", _CHUNK.fullmatch(found)
            known = chunk is not None and found == f"c.{int(chunk[1])}"
            if found == "zarr.json" or (known and int(chunk[1]) * index_rows(name) < self._log.snapshot.num_slots):  # type: ignore[index]
                yield from self.file(key, kind)
            else:
                yield self.stray(key, kind)

    def file(self, key: str, kind: str) -> Findings:
        """Something where a file belongs."""
        if kind != "file":
            yield self.stray(key, kind)

    def stray(self, key: str, kind: str) -> Finding:
        """Something where nothing belongs, or something that does not belong there."""
        if kind not in ("file", "folder"):
            return Finding("odd file", "leftover", key, f"{kind}, expected a plain file or folder", remedy=_LOOK)
        if kind == "file" and TEMPORARY.fullmatch(key.rpartition("/")[2]):
            remedy = "--repair removes it once it is old and no recorder lives"
            return Finding("temporary", "leftover", key, "a temporary file that a writer left", remedy=remedy)
        return Finding("orphan", "leftover", key, f"a {kind} that is none of the dataset", remedy=_KEEP)


def _numbered(name: str) -> int | None:
    number = number_in(name, suffix=".json")
    return number if number is not None and name == f"{number:010d}.json" else None


def _tag_number(name: str) -> int | None:
    try:
        tag_key(name.removesuffix(".json"))
    except InvalidInputError:
        return None
    return 0 if name.endswith(".json") else None
