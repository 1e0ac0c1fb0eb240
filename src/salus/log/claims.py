"""Claims: a slot is given to one writer, once, and never again (docs/spec.md, section 3.2)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from .. import documents
from ..errors import AlreadyExistsError, CorruptDataError, RecordingError, SalusError, StorageError
from ..layout import PRIVATE, SLOTS_PER_FOLDER, claim_key, number_in
from ..storage import Storage
from .records import is_uid


def claim_slot(storage: Storage, uid: str, *, hint: int = 0, spool: Mapping[str, str] | None = None) -> int:
    """Claim the next free slot at or after `hint` for the episode `uid`.

    Its journal is in the dataset; or in a spool, of which the claim says the members `spool` and `spool_id`.

    Raises:
        RecordingError: The storage refused.
    """
    slot = hint or _first_unclaimed(storage)
    claim = {"uid": uid, **_process_identity(), **(spool or {})}
    while True:
        try:
            storage.put_new(claim_key(slot), documents.seal(claim))
        except AlreadyExistsError:
            slot = max(slot + 1, _first_unclaimed(storage))  # others may have claimed thousands meanwhile
        else:
            return slot


def claim_slots(storage: Storage, uids: Sequence[str], *, hint: int = 0) -> list[int | SalusError]:
    """Claim a free slot at or after `hint` for each of many episodes, as `claim_slot` does, for few `fsync`s.

    The claims say that the episodes have no journal: they are whole in memory, and committed together.

    Returns:
        For each uid its slot, or the error that kept it from one.
    """
    found: dict[str, int | SalusError] = {}
    slot = hint or _first_unclaimed(storage)
    while waiting := [uid for uid in uids if uid not in found]:
        slots = dict(zip(waiting, range(slot, slot + len(waiting)), strict=True))
        identity = _process_identity()
        bodies = {claim_key(slots[uid]): documents.seal({"uid": uid, "journal": False, **identity}) for uid in waiting}
        failed = storage.put_new_many(bodies)
        for uid in waiting:
            error = failed.get(claim_key(slots[uid]))
            if not isinstance(error, AlreadyExistsError):
                found[uid] = slots[uid] if error is None else error
        if failed:
            slot = max(slot + len(waiting), _first_unclaimed(storage))
    return [found[uid] for uid in uids]


@dataclass(frozen=True)
class Claim:
    """Who claimed a slot.

    Attributes:
        slot: Row on axis 0 of every array.
        uid: The episode's name.
        host, boot_id, pid, process_start: The process, told so that its host can tell whether it still lives.
        time_ns: Wall clock of the claim, nanoseconds since 1970.
        has_journal: Whether its steps go through a journal; those of a group commit (`recorder.vector`) do not.
        spool: The folder of that host where the journal is; `""`: in the dataset.
        spool_id: Which spool that is: other machines and containers have folders of that name, too.
    """

    slot: int
    uid: str
    host: str
    boot_id: str
    pid: int
    process_start: int
    time_ns: int
    has_journal: bool = True
    spool: str = ""
    spool_id: str = ""

    @property
    def is_of_this_host(self) -> bool:
        """Whether the process ran here: the same name, or the same running kernel under another name."""
        return self.host == socket.gethostname() or self._is_of_this_boot

    @property
    def _is_of_this_boot(self) -> bool:
        return self.boot_id != "" and self.boot_id == _boot_id()

    @property
    def process_lives(self) -> bool:
        """Whether the process runs, on this host, now. Means nothing of claims of other hosts."""
        if self.boot_id and not self._is_of_this_boot:
            return False  # the host was started anew since
        if not self.boot_id:  # not Linux
            return _pid_is_taken(self.pid)
        fields = _process_fields(self.pid)
        return bool(fields) and fields[0] not in ("Z", "X") and int(fields[19]) == self.process_start


def read_claim(storage: Storage, slot: int) -> Claim | None:
    """The claim on a slot, or None while nobody has claimed it.

    Raises:
        CorruptDataError: It does not hold.
    """
    key = claim_key(slot)
    body = storage.get(key)
    if body is None:
        return None
    document = documents.unseal(body, key=key)
    texts = [document.get(name) for name in ("uid", "host", "boot_id")]
    numbers = [document.get(name) for name in ("pid", "process_start", "time_ns")]
    spool = [document.get(name, "") for name in ("spool", "spool_id")]
    sound = is_uid(texts[0]) and all(isinstance(value, str) for value in [*texts, *spool])
    if not sound or not all(type(value) is int and 0 <= value < 2**63 for value in numbers):
        raise CorruptDataError(f"claim: not understood; {key}")
    claim = Claim(slot, *texts, *numbers)  # type: ignore[arg-type]  # just looked at
    return replace(claim, has_journal=document.get("journal") is not False, spool=spool[0], spool_id=spool[1])


def claimed_slots(storage: Storage, first_slot: int = 0) -> list[int]:
    """The slots from `first_slot` on that were claimed, in order. Cost: one listing per 1,024 of them."""
    folders = (number_in(name) for name in storage.list(f"{PRIVATE}/claims"))
    wanted = sorted(n for n in folders if n is not None and n >= first_slot // SLOTS_PER_FOLDER)
    slots = (number_in(name) for folder in wanted for name in storage.list(f"{PRIVATE}/claims/{folder}"))
    return sorted(slot for slot in slots if slot is not None and slot >= first_slot)


def _first_unclaimed(storage: Storage) -> int:
    try:
        folders = [number for name in storage.list(f"{PRIVATE}/claims") if (number := number_in(name)) is not None]
        if not folders:
            return 0
        last = max(folders)
        slots = [slot for name in storage.list(f"{PRIVATE}/claims/{last}") if (slot := number_in(name)) is not None]
    except StorageError as error:
        raise RecordingError(f"claim a slot: {error}") from error
    return max(slots, default=last * 1024 - 1) + 1


def _process_identity() -> dict[str, str | int]:
    """Who claims, told so that another process of this host can tell whether it still lives."""
    return {
        "host": socket.gethostname(),
        "boot_id": _boot_id(),
        "pid": os.getpid(),
        "process_start": _process_start(os.getpid()),
        "time_ns": time.time_ns(),
    }


@cache
def _process_start(pid: int) -> int:
    """Clock ticks from boot to the start of this process: with the pid, it names a process for good."""
    fields = _process_fields(pid)
    return int(fields[19]) if fields else 0


def _process_fields(pid: int) -> list[str]:
    """What /proc says of a process, from its state on; empty where there is none."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields if len(fields) > 19 else []


def _boot_id() -> str:
    return _read("/proc/sys/kernel/random/boot_id")


def _pid_is_taken(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # OverflowError: no system has so many
        return False
    except PermissionError:
        return True  # another user's
    return True


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:  # not Linux: the lock on the journal still tells the living from the dead
        return ""
