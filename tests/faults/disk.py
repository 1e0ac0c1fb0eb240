"""What a disk may hold after a power loss: replays a log of operations, and keeps or loses what was not made durable.

A weak disk: without an fsync of the file, any of its writes may be missing or torn, in any order, with zeros in the
gaps; without an fsync of the folder, any change of its names may be missing. Names and contents are independent of each
other. What was synced stays. This is less than file systems promise, never more; only a rename is whole.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .oplog import Operation

EXHAUSTIVE_UP_TO = 12
TORN_AT = (512, 4096)

Tree = dict[str, "Tree | bytes"]


@dataclass
class _Content:
    durable: bytes = b""
    pending: list[tuple[int, bytes]] = field(default_factory=list)


@dataclass
class _Folder:
    """Names to what they stand for: a file or a folder, by number."""

    durable: dict[str, int] = field(default_factory=dict)
    now: dict[str, int] = field(default_factory=dict)
    pending: list[dict[str, int | None]] = field(default_factory=list)  # each change: names and what they become


Item = tuple[str, int, int]
"""One pending change: "file" or "folder", its number, and the place among its pending changes."""


class Disk:
    """The state of a disk after some operations."""

    def __init__(self) -> None:
        self._files: dict[int, _Content] = {}
        self._folders: dict[int, _Folder] = {0: _Folder()}
        self._next_folder = -1

    def apply(self, operation: Operation) -> None:
        """One operation more; acknowledgements change nothing."""
        kind, path = operation.kind, operation.path
        if kind == "create":
            self._files[operation.file] = _Content()
            self._change(path, operation.file + 1)
        elif kind == "write":
            self._files[operation.file].pending.append((operation.offset, operation.data))
        elif kind == "sync":
            content = self._files[operation.file]
            content.durable, content.pending = _written(content.durable, content.pending), []
        elif kind == "sync folder":
            folder = self._folders[self._number(path)]
            folder.durable, folder.pending = dict(folder.now), []
        elif kind == "mkdir":
            self._folders[self._next_folder] = _Folder()
            self._change(path, self._next_folder)
            self._next_folder -= 1
        elif kind == "link":
            self._change(operation.target, self._number(path))
        elif kind == "rename":
            assert path.rpartition("/")[0] == operation.target.rpartition("/")[0], "files are renamed within a folder"
            self._change(operation.target, self._number(path), gone=path.rpartition("/")[2])
        elif kind in ("unlink", "rmdir"):
            self._change(path, None)

    def _change(self, path: str, number: int | None, *, gone: str | None = None) -> None:
        above, _, name = path.rpartition("/")
        folder = self._folders[self._number(above)]
        change = {name: number} | ({} if gone is None else {gone: None})
        folder.pending.append(change)
        folder.now = _named(folder.now, [change])

    def _number(self, path: str) -> int:
        number = 0
        for name in path.split("/") if path not in ("", ".") else ():
            number = self._folders[number].now[name]
        return number

    def pending(self) -> list[Item]:
        """All that a power loss may take away now, of what can still have a name after it."""
        items: list[Item] = []
        waiting, reached = [0], {0}  # files count from 1, as names hold them
        while waiting:
            number = waiting.pop()
            if number > 0:
                items += [("file", number - 1, place) for place in range(len(self._files[number - 1].pending))]
                continue
            folder = self._folders[number]
            items += [("folder", number, place) for place in range(len(folder.pending))]
            named = {*folder.durable.values(), *(to for change in folder.pending for to in change.values())}
            found = {to for to in named if to is not None} - reached
            reached |= found
            waiting += sorted(found)
        return items

    def tree(self, kept: frozenset[Item], torn: tuple[Item, int] | None = None) -> Tree:
        """What is found after a power loss that kept these changes, one of them perhaps up to a byte only."""
        return self._tree(0, kept, torn)

    def _tree(self, number: int, kept: frozenset[Item], torn: tuple[Item, int] | None) -> Tree:
        folder = self._folders[number]
        changes = [change for place, change in enumerate(folder.pending) if ("folder", number, place) in kept]
        found: Tree = {}
        for name, target in _named(folder.durable, changes).items():
            found[name] = self._tree(target, kept, torn) if target < 0 else self._content(target - 1, kept, torn)
        return found

    def _content(self, file: int, kept: frozenset[Item], torn: tuple[Item, int] | None) -> bytes:
        content, writes = self._files[file], []
        for place, (offset, data) in enumerate(content.pending):
            item = ("file", file, place)
            if item in kept:
                writes.append((offset, data[: torn[1]] if torn is not None and torn[0] == item else data))
        return _written(content.durable, writes)

    def corners(self) -> Iterator[frozenset[Item]]:
        """Nothing kept, everything, everything but one change, and one change alone."""
        items = frozenset(self.pending())
        yield frozenset()
        yield items
        for item in sorted(items):
            yield items - {item}
            yield frozenset({item})

    def losses(
        self, rng: random.Random, *, every_choice_up_to: int, drawn: int
    ) -> Iterator[tuple[frozenset[Item], tuple[Item, int] | None]]:
        """What may be kept: the corners, then every choice where there are few changes, else some; then torn writes.

        Args:
            rng: Draws.
            every_choice_up_to: Changes.
            drawn: Choices where there are more changes.
        """
        items = self.pending()
        yield from ((kept, None) for kept in self.corners())
        if len(items) <= every_choice_up_to:
            for count in range(2, len(items) - 1):
                for chosen in itertools.combinations(items, count):
                    yield frozenset(chosen), None
        else:
            for _ in range(drawn):
                share = rng.choice((0.1, 0.5, 0.9))
                yield frozenset(item for item in items if rng.random() < share), None
        for kind, number, place in items:
            if kind == "file":
                size = len(self._files[number].pending[place][1])
                cuts = {cut for sector in TORN_AT for cut in range(sector, size, sector)} | {size // 2}
                for cut in rng.sample(sorted(cuts), min(2, len(cuts))):
                    yield frozenset(items), ((kind, number, place), cut)


def _written(content: bytes, writes: list[tuple[int, bytes]]) -> bytes:
    body = bytearray(content)
    for offset, data in writes:
        body.extend(bytes(max(0, offset - len(body))))
        body[offset : offset + len(data)] = data
    return bytes(body)


def _named(names: dict[str, int], changes: list[dict[str, int | None]]) -> dict[str, int]:
    found = dict(names)
    for change in changes:
        for name, number in change.items():
            if number is None:
                found.pop(name, None)
            else:
                found[name] = number
    return found


def digest(tree: Tree) -> str:
    """Equal for equal trees."""
    sha = hashlib.sha256()

    def walk(tree: Tree) -> None:
        for name in sorted(tree):
            value = tree[name]
            sha.update(f"{name}\0{'/' if isinstance(value, dict) else len(value)}\0".encode())
            walk(value) if isinstance(value, dict) else sha.update(value)
        sha.update(b"\0")

    walk(tree)
    return sha.hexdigest()


def without(tree: Tree, path: str) -> Tree:
    """A tree without what lies at `path`."""
    name, _, inside = path.partition("/")
    below = tree.get(name)
    if not inside:
        return {other: value for other, value in tree.items() if other != name}
    return {**tree, name: without(below, inside)} if isinstance(below, dict) else tree


class Builder:
    """Puts trees on a real file system; equal files are one file, hard-linked: nobody writes into them."""

    def __init__(self, folder: Path) -> None:
        self._bodies = folder / "bodies"
        self._bodies.mkdir(parents=True)
        self._known: dict[bytes, Path] = {}

    def build(self, tree: Tree, folder: Path) -> None:
        """Make `folder` hold `tree`."""
        folder.mkdir()
        for name, value in tree.items():
            if isinstance(value, dict):
                self.build(value, folder / name)
            else:
                body = self._known.get(value)
                if body is None:
                    body = self._known[value] = self._bodies / str(len(self._known))
                    body.write_bytes(value)
                os.link(body, folder / name)
