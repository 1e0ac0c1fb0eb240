"""What the long runs save: costly checks of states that were looked at before, and cores that would stand idle."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

AGAIN_EVERY = 10
"""Of states of a kind that was looked at in whole, one of so many is looked at in whole again."""

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp$")

Result = TypeVar("Result")


class Kinds:
    """Which kinds of dataset have been looked at in whole.

    Two datasets are of one kind if the same was acknowledged, the same files lie in them with the same sizes, and the
    arrays have the same contents. Uids, times and digests in the log differ from recording to recording.
    """

    def __init__(self) -> None:
        self.looked_at: set[str] = set()
        self._states = 0

    def is_due(self, path: Path, events: Iterable[str]) -> bool:
        """Whether this state is to be looked at in whole: the first of its kind, or one of AGAIN_EVERY."""
        self._states += 1
        kind = kind_of(path, events)
        known = kind in self.looked_at
        self.looked_at.add(kind)
        return not known or self._states % AGAIN_EVERY == 0


def kind_of(path: Path, events: Iterable[str]) -> str:
    """The kind of the dataset at `path`, of which `events` were acknowledged, as a digest."""
    sha = hashlib.sha256("\0".join(events).encode())
    for folder, folders, files in os.walk(path):
        folders.sort()
        inside = os.path.relpath(folder, path)
        sha.update(f"\0{inside}/".encode())
        named = inside.startswith(("_salus", "episode_metadata"))  # uids and times are in these
        for name, file in sorted((_TEMPORARY.sub(".tmp", file), file) for file in files):
            body = (Path(folder) / file).read_bytes()
            sha.update(f"\0{name}\0{len(body)}\0".encode() + (b"" if named else body))
    return sha.hexdigest()


def on_all_cores(function: Callable[..., Result], wanted: int, *more: Any) -> list[Result]:
    """Call `function(number, of, share, *more)` once in each of `of` processes, whose shares add up to `wanted`."""
    count = min(os.cpu_count() or 1, wanted)
    shares = [wanted // count + (number < wanted % count) for number in range(count)]
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _end_with_parent) as processes:
        calls = [processes.submit(function, number, count, share, *more) for number, share in enumerate(shares)]
        return [call.result() for call in calls]


def _end_with_parent() -> None:
    """A run that is stopped takes its processes along."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
