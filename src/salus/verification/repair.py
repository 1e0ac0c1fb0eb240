"""What `verify` mends: only what loses nothing. Truth is never removed, and never written again."""

from __future__ import annotations

import time
from collections.abc import Iterable

from .. import documents
from ..layout import claim_key
from ..log.amendments import Amendment, append_amendment
from ..log.entries import Entry
from ..log.publish import publish
from ..log.snapshot import load, sync_log
from ..log.unfinished import find_unfinished
from ..recorder.recovery import sweep
from ..storage import LocalStorage, Storage
from .log import Log
from .report import Finding

TEMPORARY_AGE_S = 600.0
"""A file that is older was not written a moment ago, so nobody is about to put it in place."""

AUTHOR = "salus verify"


class Repair:
    """Mends one dataset.

    Args:
        storage: The dataset.
        log: What is committed.
        found: What was found.
    """

    def __init__(self, storage: Storage, log: Log, found: Iterable[Finding]) -> None:
        self._storage = storage
        self._log = log
        self._found = list(found)
        self._amended = False

    @property
    def _log_is_whole(self) -> bool:
        """Whether schema revisions and amendments are all there: else nothing is built from them or added to them."""
        return not any(finding.kind in ("schema", "amendment") for finding in self._found)

    def quarantine(self, damaged: Iterable[Entry], whole: Iterable[Entry]) -> None:
        """Keep readers from damaged episodes, and no longer from those that are whole."""
        if not self._log_is_whole:
            return
        overlays = self._log.snapshot.overlays
        reasons: dict[int, list[str]] = {}
        for finding in self._found:
            if finding.kind == "shard" and finding.slot is not None:
                reasons.setdefault(finding.slot, []).append(f"{finding.key}: {finding.failed}")
        held = {uid for uid, overlay in overlays.items() if overlay.quarantine is not None}
        for entry in damaged:
            if entry.uid not in held and entry.slot in reasons:
                first, *more = reasons[entry.slot]
                why = f"{first}, and {len(more)} more shards" if more else first
                self._amend(Amendment((entry.uid,), "quarantine", why[:500], AUTHOR))
        healed = tuple(entry.uid for entry in whole if entry.uid in held)
        if healed:
            self._amend(Amendment(healed, "unquarantine", None, AUTHOR))

    def _amend(self, amendment: Amendment) -> None:
        append_amendment(self._storage, amendment, next_number=len(self._log.amendments))
        self._amended = True

    def mend(self) -> None:
        """Mend the rest of what was found."""
        kinds = {finding.kind for finding in self._found}
        if "claim" in kinds:
            self._put_claims()
        if "temporary" in kinds:
            self._remove_temporaries()
        if "journal" in kinds and isinstance(self._storage, LocalStorage):
            sweep(self._storage)
        if not self._log_is_whole:
            return
        if "checkpoint" in kinds:
            self._storage.publication(self._put_checkpoints)
        if self._amended or kinds & {"index", "metadata", "feature"}:
            # What the rows of a damaged record say may be all that is left of it: these are not touched.
            publish(self._storage, whole="record" not in kinds)

    def _put_claims(self) -> None:
        """A claim of a decided slot only has to be there; its process is nobody's any more."""
        for finding in self._found:
            if finding.kind != "claim" or finding.slot is None:
                continue
            entry = self._log.decided.at(finding.slot)
            if entry is not None:
                nobody = {"host": "", "boot_id": "", "pid": 0, "process_start": 0, "time_ns": entry.started_ns}
                self._storage.put({claim_key(entry.slot): documents.seal({"uid": entry.uid, **nobody})})

    def _put_checkpoints(self, storage: Storage) -> None:
        snapshot = load(storage)
        sync_log(storage)
        for finding in self._found:
            if finding.kind == "checkpoint":
                storage.put({finding.key: documents.seal(snapshot.to_json())})

    def _remove_temporaries(self) -> None:
        storage = self._storage
        if not isinstance(storage, LocalStorage):
            return
        states = {episode.state for episode in find_unfinished(storage, self._log.snapshot)}
        if states & {"recording", "recovering", "other host"}:
            return
        with storage.lock():
            for finding in self._found:
                path = storage.path(finding.key)
                if finding.kind == "temporary" and path.lstat().st_mtime < time.time() - TEMPORARY_AGE_S:
                    path.unlink(missing_ok=True)
