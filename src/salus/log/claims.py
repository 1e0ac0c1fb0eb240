"""Claims: a slot is given to one writer, once, and never again (docs/spec.md, section 3.2)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from .. import documents
from ..errors import AlreadyExistsError, SalusError
from ..layout import PRIVATE, claim_key, number_in
from ..storage import Storage


def claim_slot(storage: Storage, uid: str, *, hint: int = 0) -> int:
    """Claim the next free slot at or after `hint` for the episode `uid`.

    Raises:
        RecordingError: The storage refused.
    """
    slot = hint or _first_unclaimed(storage)
    while True:
        try:
            storage.put_new(claim_key(slot), documents.seal({"uid": uid, **_process_identity()}))
        except AlreadyExistsError:
            slot = max(slot + 1, _first_unclaimed(storage))  # others may have claimed thousands meanwhile
        else:
            return slot


def claim_slots(storage: Storage, uids: Sequence[str], *, hint: int = 0) -> list[int | SalusError]:
    """Claim a free slot at or after `hint` for each of many episodes, as `claim_slot` does, for few `fsync`s.

    Returns:
        For each uid its slot, or the error that kept it from one.
    """
    found: dict[str, int | SalusError] = {}
    slot = hint or _first_unclaimed(storage)
    while waiting := [uid for uid in uids if uid not in found]:
        slots = dict(zip(waiting, range(slot, slot + len(waiting)), strict=True))
        identity = _process_identity()
        bodies = {claim_key(slots[uid]): documents.seal({"uid": uid, **identity}) for uid in waiting}
        failed = storage.put_new_many(bodies)
        for uid in waiting:
            error = failed.get(claim_key(slots[uid]))
            if not isinstance(error, AlreadyExistsError):
                found[uid] = slots[uid] if error is None else error
        if failed:
            slot = max(slot + len(waiting), _first_unclaimed(storage))
    return [found[uid] for uid in uids]


def _first_unclaimed(storage: Storage) -> int:
    folders = [number for name in storage.list(f"{PRIVATE}/claims") if (number := number_in(name)) is not None]
    if not folders:
        return 0
    last = max(folders)
    slots = [slot for name in storage.list(f"{PRIVATE}/claims/{last}") if (slot := number_in(name)) is not None]
    return max(slots, default=last * 1024 - 1) + 1


def _process_identity() -> dict[str, str | int]:
    """Who claims, told so that another process of this host can tell whether it still lives."""
    return {
        "host": socket.gethostname(),
        "boot_id": _read("/proc/sys/kernel/random/boot_id"),
        "pid": os.getpid(),
        "process_start": _process_start(os.getpid()),
        "time_ns": time.time_ns(),
    }


@cache
def _process_start(pid: int) -> int:
    """Clock ticks from boot to the start of this process: with the pid, it names a process for good."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 else 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:  # not Linux: the lock on the journal still tells the living from the dead
        return ""
