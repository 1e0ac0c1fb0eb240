"""Unfinished episodes: claimed, and not decided. Still recording, or left by a recorder that died."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import CorruptDataError
from ..layout import journal_key
from ..storage import LocalStorage, Storage, open_plain
from .claims import Claim, claimed_slots, read_claim
from .snapshot import FEW_SLOTS, Snapshot, read_record
from .spool import spool_id, spool_of

State = Literal["recording", "recovering", "dead", "other host", "corrupt"]


@dataclass(frozen=True)
class UnfinishedEpisode:
    """An episode that was started and has not ended.

    Attributes:
        uid: Its name; `""` where the claim does not hold.
        slot: Its row on axis 0 of every array.
        state: `"recording"`: its process lives. `"recovering"`: its process died, and another one is bringing it back.
            `"dead"`: its process died; `salus.recover` brings it back. `"other host"`: another host, or a container of
            the same name with a spool of its own, claimed it, so nothing is known of its process here. `"corrupt"`: the
            claim does not hold.
        host: Name of the host that records or recorded it.
        pid: Number of the process.
        claimed_ns: Wall clock when it was started, nanoseconds since 1970.
    """

    uid: str
    slot: int
    state: State
    host: str
    pid: int
    claimed_ns: int

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return dict(vars(self))


def unfinished_slots(storage: Storage, snapshot: Snapshot) -> list[int]:
    """Slots that were claimed and have no record in `snapshot`, in order.

    Cost: a listing per 1,024 slots above the snapshot; slots below are known to it.
    """
    decided = snapshot.decided
    corrupt = set(decided.numbers("slot")[decided.has("status", "corrupt")].tolist())
    below = [slot for slot in snapshot.open_slots if slot not in corrupt]
    if len(below) > FEW_SLOTS:
        claimed = claimed_slots(storage, below[0])
        return sorted(set(below).intersection(claimed)) + [slot for slot in claimed if slot >= snapshot.num_slots]
    return below + claimed_slots(storage, snapshot.num_slots)


def find_unfinished(storage: Storage, snapshot: Snapshot) -> list[UnfinishedEpisode]:
    """The unfinished episodes, in the order of their slots.

    Cost: as `unfinished_slots`; two small files for each.

    Raises:
        StorageError: The storage cannot be read.
    """
    found = []
    for slot in unfinished_slots(storage, snapshot):
        try:
            claim = read_claim(storage, slot)
            state = "dead" if claim is None else state_of(spool_of(storage), claim)
        except CorruptDataError:
            found.append(UnfinishedEpisode("", slot, "corrupt", "", 0, 0))
            continue
        if claim is not None and not _was_decided(storage, slot):  # looked at last: it may have ended meanwhile
            found.append(UnfinishedEpisode(claim.uid, slot, state, claim.host, claim.pid, claim.time_ns))
    return found


def _was_decided(storage: Storage, slot: int) -> bool:
    try:
        return read_record(storage, slot) is not None
    except CorruptDataError:
        return True


def state_of(spool: LocalStorage, claim: Claim) -> State:
    """What has become of the process that claimed a slot; its journal is in `spool`.

    Its lock on the journal decides, once the journal has a first frame, which is written under the lock. Before, and
    where there is no journal, the process itself is looked for. Where the spool that the claim names is another one of
    the same path, it is one of another machine or container with the name of this one.

    Raises:
        CorruptDataError: Something that is no plain file is in the place of the journal.
        StorageError: The journal cannot be looked at.
    """
    if not claim.is_of_this_host:
        return "other host"
    found = locked = begun = False
    with suppress(FileNotFoundError):  # it has none, or ended in this moment
        locked, begun = _look_at(spool.open_file(journal_key(claim.slot)))
        found = True
    if locked:
        return "recording" if claim.process_lives else "recovering"
    if claim.process_lives and not begun:
        return "recording"
    is_elsewhere = not found and claim.spool == spool.url and claim.spool_id != spool_id(spool)
    return "other host" if is_elsewhere else "dead"


def is_locked(path: Path) -> bool:
    """Whether the process that writes this journal still lives: it holds the lock."""
    return _look_at(open_plain(path)[0])[0]


def _look_at(journal: int) -> tuple[bool, bool]:
    """Whether it is locked, and whether anything is in it; closes it."""
    try:
        begun = os.fstat(journal).st_size > 0
        fcntl.flock(journal, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True, begun
    finally:
        os.close(journal)
    return False, begun
