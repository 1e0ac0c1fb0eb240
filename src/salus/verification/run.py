"""`salus.verify`: everything of a dataset, or some of its episodes, against what was committed."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np

from ..dataset import Dataset
from ..errors import InvalidInputError, NotFoundError
from ..gather import default_threads
from ..layout import ArraySpec, claim_key, record_key
from ..log.digest import root_digest
from ..log.entries import Entries, Entry
from ..log.snapshot import Snapshot
from ..log.tags import read_tag
from ..log.unfinished import find_unfinished, unfinished_slots
from ..opening import not_a_dataset
from ..readahead import read_ahead
from ..storage import LocalStorage, ObjectStorage, Storage, StorageOptions, open_storage
from ..view import DatasetView
from .derived import check_derived
from .log import Log, check_checkpoints, check_claims, check_tag, check_tags, read_log
from .repair import Repair
from .report import Finding, Findings, VerifyReport, damage
from .shards import BLOCK_BYTES, ExpectedShard, ShardCheck, check_shards
from .tree import check_tree

Progress: TypeAlias = Callable[[int, int], None]
JOBS_AHEAD = 8
BATCH_PIECES = 64


def verify(
    dataset: DatasetView | str | os.PathLike[str],
    *,
    episodes: Iterable[int | str] | int | str | None = None,
    tag: str | None = None,
    repair: bool = False,
    expect: str | None = None,
    threads: int | None = None,
    on_progress: Progress | None = None,
    storage_options: StorageOptions | None = None,
) -> VerifyReport:
    """Find every byte that is not what was committed.

    A path, or a whole dataset: all of it, as it is now. Schema revisions, records, amendments, tags and checkpoints
    have to hold and agree; every shard has to have the size and the sha256 of its record, deleted episodes included;
    what plain Zarr readers see has to be what publishing writes; and whatever belongs to none of these is named. A
    view, a tag or `episodes`: the records and shards of these episodes alone.

    Args:
        dataset: A path, a dataset, or a view of one. A dataset that was opened at a tag is that tag.
        episodes: Numbers or uids; deleted ones by uid.
        tag: The episodes of this tag.
        repair: Mend what can be mended without losing anything: publish again, write bad checkpoints and claims of
            decided slots anew, remove what dead writers left. Readers are kept from damaged episodes ("quarantined")
            until a later repair finds them whole. Only for a whole dataset or `episodes` of its newest state.
        expect: The `root_digest` that was written down before; another one is damage. Checksums inside a dataset
            tell accidents, this one tells forgers.
        threads: Threads that read; by default one per core, at most 8.
        on_progress: Called with the episodes that are done, and all there are.
        storage_options: As `salus.open`, with the URL of an object store.

    Returns:
        What was found; `is_whole` where that is nothing.

    Raises:
        NotFoundError: No dataset, tag or episode of that name.
        FormatError: Not a dataset, or one of a newer format.
        InvalidInputError: Arguments that do not go together.
        StorageError: A bucket cannot be asked; what was not read yet is not damaged by that.
        RecordingError: `repair`, and the storage refused.

    Cost: reads every shard once, as fast as the disk or sha256 allow, 1 MiB at a time on each thread.
    """
    if not isinstance(dataset, DatasetView | str | os.PathLike):
        raise InvalidInputError(
            f"verify: got {type(dataset).__name__}, expected a path, a dataset, or a view of one; of a mixture, verify "
            "each of its `parts`"
        )
    if threads is not None and threads < 1:
        raise InvalidInputError(f"verify: threads: got {threads}, expected at least 1")
    if expect is not None and not expect.startswith("sha256:"):
        raise InvalidInputError(f"verify: expect: got {expect!r}, expected a root digest, sha256:…")
    if isinstance(dataset, Dataset):
        tag = dataset.tag_name if tag is None else tag
    if repair and tag is not None:
        raise InvalidInputError(f"verify: repair does not go with tag {tag!r}, which never changes")
    storage = dataset.storage if isinstance(dataset, DatasetView) else open_storage(dataset, storage_options)
    if isinstance(storage, ObjectStorage):
        storage = storage.without_cache()  # it says nothing of what the bucket has
    verifier = _Verifier(storage, threads or default_threads(), on_progress)
    return verifier.run(_choose(verifier.log, storage, dataset, episodes, tag), repair=repair, expect=expect)


@dataclass(frozen=True)
class _Choice:
    """Some episodes of a snapshot.

    Attributes:
        entries: Their rows, in the order of their slots.
        tag: The tag that they are of.
        snapshot: The snapshot.
    """

    entries: Entries
    tag: str | None
    snapshot: Snapshot


def _choose(
    log: Log,
    storage: Storage,
    dataset: DatasetView | str | os.PathLike[str],
    episodes: Iterable[int | str] | int | str | None,
    tag: str | None,
) -> _Choice | None:
    """What is to be looked at; None for everything."""
    snapshot = log.snapshot if tag is None else read_tag(storage, tag)
    if isinstance(dataset, DatasetView) and not isinstance(dataset, Dataset):
        seen = Entries.of(dataset.episodes)
    elif episodes is None and tag is None:
        return None
    else:
        seen = snapshot.entries
    if episodes is None:
        return _Choice(snapshot.decided if seen is snapshot.entries else seen, tag, snapshot)
    keys = (episodes,) if isinstance(episodes, int | str | np.integer) else tuple(episodes)
    rows = [_row(key, seen, snapshot.decided, storage) for key in keys]
    return _Choice(Entries.of(rows), tag, snapshot)


def _row(key: int | str, seen: Entries, decided: Entries, storage: Storage) -> Entry:
    if isinstance(key, str):
        matching = decided.take(decided.has_uid([key]) & ~decided.has("status", "aborted"))
        if not len(matching):
            raise NotFoundError(f"verify: no episode with uid {key!r}; {storage.url}")
        return matching[0]
    if isinstance(key, bool) or not isinstance(key, int | np.integer):
        raise InvalidInputError(f"verify: episode: got {type(key).__name__} {key!r}, expected a number or a uid")
    if not -len(seen) <= key < len(seen):
        raise NotFoundError(f"verify: episode {key}: out of range, there are {len(seen)}; {storage.url}")
    return seen[int(key) % len(seen)]


class _Verifier:
    """One run over one dataset."""

    def __init__(self, storage: Storage, threads: int, on_progress: Progress | None) -> None:
        self._storage = storage
        self._threads = threads
        self._on_progress = on_progress or (lambda _done, _all: None)
        self._num_shards = self._bytes_read = self._num_recording = 0
        self.log = read_log(storage, threads=threads)
        if not self.log.schemas and not self.log.findings:
            raise not_a_dataset(storage)
        self._overlays = self.log.snapshot.overlays

    def run(self, chosen: _Choice | None, *, repair: bool, expect: str | None) -> VerifyReport:
        """Check all, or what is chosen."""
        storage, log = self._storage, self.log
        slots = (log.decided if chosen is None else chosen.entries).numbers("slot").tolist()
        documents = self._whole() if chosen is None else self._documents_of(chosen, slots)
        digest = (
            log.root_digest if chosen is None or chosen.tag is None else root_digest(chosen.snapshot, log.revisions)
        )
        if expect is not None and expect != digest:
            remedy = "somebody changed committed data, or it is another state: see the tag that the digest was of"
            documents.append(Finding("digest", "damage", "_salus", "the root digest", digest, expect, remedy))
        rows = [row for slot in slots if (row := log.decided.at(slot)) is not None]
        recorded = [entry for entry in rows if entry.status not in ("corrupt", "aborted")]
        shards = list(self._shards(recorded))
        shards = [self._noted(finding) for finding in shards]
        found = [*documents, *shards]
        if repair:
            damaged = {f.slot for f in found if f.kind in ("shard", "record") and f.slot is not None}
            mending = Repair(storage, log, found)
            mending.quarantine(
                [e for e in recorded if e.slot in damaged], [e for e in recorded if e.slot not in damaged]
            )
            mending.mend()
            again = _Verifier(storage, self._threads, None)
            found, digest = self._after_repair(again, chosen, found), again.log.root_digest
        return VerifyReport(
            storage.url, tuple(found), digest, len(recorded), self._num_shards, self._bytes_read, self._num_recording
        )

    def _after_repair(self, again: _Verifier, chosen: _Choice | None, found: list[Finding]) -> list[Finding]:
        """What was found, and whether it is mended now: `again` looks at everything but the shards."""
        left = again._whole() if chosen is None else again.log.findings
        still = {(finding.kind, finding.key) for finding in left}
        self._overlays = again._overlays
        noted = (self._noted(finding) for finding in found)
        found = [replace(f, repaired=f.severity != "damage" and (f.kind, f.key) not in still) for f in noted]
        return _distinct([*found, *left])

    # --- documents -----------------------------------------------------------------------------------------------

    def _whole(self) -> list[Finding]:
        """Everything but the shards."""
        storage, log = self._storage, self.log
        found = [*log.findings]
        found += check_claims(storage, log, threads=self._threads)
        found += check_checkpoints(storage, log)
        found += check_tags(storage, log)
        found += self._unfinished()
        agree = not any(finding.kind == "record" for finding in found)
        found += check_derived(storage, log, from_log=agree)
        if isinstance(storage, LocalStorage):
            undecided = set(unfinished_slots(storage, log.snapshot))
            strays = list(check_tree(storage, log, undecided))
            found += [f for f in strays if f.kind != "temporary" or os.path.lexists(storage.path(f.key))]
        return _distinct(found)

    def _documents_of(self, chosen: _Choice, slots: list[int]) -> list[Finding]:
        """What the chosen episodes rest on: the schema, the amendments, the tag, their records."""
        wanted = set(slots)
        found = [f for f in self.log.findings if f.kind != "record" or f.slot in wanted]
        if chosen.tag is not None:
            found += [f for f in check_tag(self._storage, chosen.tag, self.log) if f.slot is None or f.slot in wanted]
        for slot in slots:
            entry, now = chosen.entries.at(slot), self.log.decided.at(slot)
            if now is None:
                found.append(damage("record", record_key(slot), "it is missing", slot=slot))
            elif entry is not None and "corrupt" not in (entry.status, now.status) and entry.digest != now.digest:
                found.append(damage("record", record_key(slot), "it is not the one of the snapshot", slot=slot))
        return _distinct(found)

    def _unfinished(self) -> Findings:
        for episode in find_unfinished(self._storage, self.log.snapshot):
            if episode.state in ("recording", "recovering"):
                self._num_recording += 1
                continue
            failed = {
                "dead": "an episode that a recorder left when it died",
                "other host": f"an episode that the host {episode.host!r} records, or recorded",
                "corrupt": "the claim of an episode that is not decided does not hold",
            }[episode.state]
            remedy = "salus recover brings back what was written" + (
                " --force gives it up" if episode.state == "corrupt" else ""
            )
            yield Finding(
                "unfinished",
                "leftover",
                claim_key(episode.slot),
                failed,
                remedy=remedy,
                uid=episode.uid,
                slot=episode.slot,
            )

    # --- shards --------------------------------------------------------------------------------------------------

    def _shards(self, entries: list[Entry]) -> Iterator[Finding]:
        done, total = 0, len(entries)
        self._on_progress(0, total)
        jobs = ((1, functools.partial(self._check, batch)) for batch in self._batches(entries))
        for checks in read_ahead(jobs, threads=self._threads, budget=JOBS_AHEAD * self._threads):
            for check, is_last in checks:
                self._num_shards += check.num_shards
                self._bytes_read += check.bytes_read
                yield from check.findings
                if is_last:
                    done += 1
                    self._on_progress(done, total)

    def _check(self, batch: Sequence[_Piece]) -> list[tuple[ShardCheck, bool]]:
        found = []
        for piece in batch:
            entry, length = piece.entry, piece.entry.length(piece.spec.clock)
            check = check_shards(self._storage, piece.spec, piece.shards, uid=entry.uid, slot=entry.slot, length=length)
            found.append((check, piece.is_last))
        return found

    def _batches(self, entries: list[Entry]) -> Iterator[list[_Piece]]:
        """What a thread takes at once: a block, as handing over one small shard takes longer than reading it."""
        batch: list[_Piece] = []
        size = 0
        for entry in entries:
            parts = list(pieces(self.log.arrays[entry.schema_revision], entry, self.log.hashes[entry.slot]))
            for number, (spec, shards) in enumerate(parts):
                batch.append(_Piece(entry, spec, shards, number == len(parts) - 1))
                size += sum(shard.size for shard in shards)
                if size >= BLOCK_BYTES or len(batch) >= BATCH_PIECES:
                    yield batch
                    batch, size = [], 0
        if batch:
            yield batch

    def _noted(self, finding: Finding) -> Finding:
        """With a word on the quarantine of its episode."""
        overlay = self._overlays.get(finding.uid)
        if finding.kind != "shard" or overlay is None or overlay.quarantine is None:
            return finding
        remedy = "the episode is quarantined; bring the file back from a copy of the dataset, then verify with --repair"
        return replace(finding, remedy=remedy)


class _Piece(NamedTuple):
    """Some shards of one array of an episode; `is_last` where the episode has no more."""

    entry: Entry
    spec: ArraySpec
    shards: list[ExpectedShard]
    is_last: bool


def pieces(specs: list[ArraySpec], entry: Entry, hashes: bytes) -> Iterator[tuple[ArraySpec, list[ExpectedShard]]]:
    """The shards of an episode, as one thread takes them: small arrays whole, images by the shard."""
    place = 0
    for spec in specs:
        shards = []
        for segment in range(spec.segments(entry.length(spec.clock))):
            shards.append(ExpectedShard(segment, entry.shard_sizes[place], hashes[32 * place : 32 * place + 32].hex()))
            place += 1
        if shards and spec.chunk_steps == spec.segment_steps:
            yield spec, shards
        else:
            yield from ((spec, [shard]) for shard in shards)


def _distinct(findings: Iterable[Finding]) -> list[Finding]:
    """The first of each kind and key."""
    found: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        found.setdefault((finding.kind, finding.key), finding)
    return list(found.values())
