"""`salus.copy`: a dataset from one storage to another, episode by episode, checked on the way.

The order makes every state of the target a dataset of whole episodes: schema, amendments, then of each episode its
claim, its shards and last its record, which commits it; then tags, and what is built from the log.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from . import documents
from .errors import AlreadyExistsError, CorruptDataError, InvalidInputError
from .layout import amendment_key, claim_key, record_key, schema_key, tag_key
from .log.claims import read_claim
from .log.entries import Entry
from .log.publish import publish
from .log.records import Record
from .log.revisions import Revisions, read_revisions
from .log.snapshot import Snapshot, load, read_record, write_checkpoint
from .log.tags import list_tags, read_tag
from .opening import check_empty
from .opening import open as open_dataset
from .readahead import read_ahead
from .shards import ShardInfo
from .storage import LocalStorage, Storage, StorageOptions, open_storage

AHEAD_BYTES = 512 * 2**20
_NOBODY = {"host": "", "boot_id": "", "pid": 0, "process_start": 0}


@dataclass(frozen=True)
class CopyProblem:
    """An episode that was not copied, because what the source has of it is damaged.

    Attributes:
        slot: Its row on axis 0 of every array.
        uid: Its name; `""` where its record does not hold.
        failed: What is wrong, and where.
    """

    slot: int
    uid: str
    failed: str


@dataclass(frozen=True)
class CopyReport:
    """What `salus.copy` did, or would do.

    Attributes:
        num_episodes: Slots that were decided in the source: episodes, and those that were aborted.
        num_copied: Of these, how many were copied now.
        num_present: How many were there already.
        num_shards: Shards that were copied.
        num_linked: Of these, how many are hard links to the files of the source.
        bytes_copied: Bytes of the shards that were copied and not linked.
        problems: Episodes that are not in the target.
        tags_left_out: Tags that hold such an episode, and so are not in the target either.
        dry_run: Nothing was changed; then `num_copied`, `num_shards` and `bytes_copied` say what there is to do.
    """

    num_episodes: int
    num_copied: int
    num_present: int
    num_shards: int
    num_linked: int
    bytes_copied: int
    problems: tuple[CopyProblem, ...] = ()
    tags_left_out: tuple[str, ...] = ()
    dry_run: bool = False

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def copy(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    tag: str | None = None,
    source_options: StorageOptions | None = None,
    target_options: StorageOptions | None = None,
    threads: int = 8,
    dry_run: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> CopyReport:
    """Copy a dataset, between any two of local disks and buckets; again, to bring over what is new since.

    Every shard is compared with its record (size and sha256) before it is put; an episode of which anything is damaged
    is left out, and said, and so are tags that hold it. What is unfinished in the source is not copied. What is in the
    target already is left as it is, so a copy that was cut off goes on where it stopped, and at every moment the target
    is a dataset of whole episodes. Between two folders of one local file system shards become hard links: the copy
    takes no room, and shares the fate of the disk.

    Args:
        source: Path or URL of a dataset.
        target: Path or URL: of nothing, or of an earlier copy. Nobody else should record into it.
        tag: Copy the episodes and amendments of this tag, and no other tag.
        source_options: As `salus.open(storage_options=…)`, of the source.
        target_options: The same, of the target.
        threads: Episodes that are copied at a time.
        dry_run: Only say what there is to do.
        on_progress: Called with the number of slots that are done, and of all.

    Returns:
        What was copied, and what could not be.

    Raises:
        NotFoundError, FormatError, CorruptDataError: As `salus.open`, of the source.
        InvalidInputError: The target is the source, or in it, or another dataset.
        AlreadyExistsError: Somebody recorded, amended or tagged something else in the target.
        RecordingError: The target refused. Run it again.

    Memory: the shards of an episode per thread, up to 512 MB beyond them.
    """
    if threads < 1:
        raise InvalidInputError(f"copy: threads: got {threads}, expected at least 1")
    from_storage = open_dataset(source, tag=tag, storage_options=source_options).storage
    to_storage = open_storage(target, target_options)
    if (source_options or {}) == (target_options or {}):  # else the same URL may be in another store
        _check_apart(from_storage, to_storage)
    tags = list_tags(from_storage) if tag is None else [tag]  # before the log: none holds more than is copied
    snapshot = load(from_storage) if tag is None else read_tag(from_storage, tag)
    copier = _Copier(from_storage, to_storage, dry_run=dry_run)
    copier.begin(snapshot)
    total = len(snapshot.decided)
    for done, _ in enumerate(read_ahead(copier.jobs(snapshot), threads=threads, budget=AHEAD_BYTES), 1):
        if on_progress is not None:
            on_progress(done, total)
    if not dry_run:
        for name in tags:
            copier.copy_tag(name)
        write_checkpoint(to_storage, publish(to_storage))
    return copier.report(total)


def _check_apart(source: Storage, target: Storage) -> None:
    if source.url == target.url:
        raise InvalidInputError(f"copy: the target is the source; {target.url}")
    if target.url.startswith(f"{source.url}/") or source.url.startswith(f"{target.url}/"):
        raise InvalidInputError(f"copy: one of the two is in the other: {source.url}, {target.url}")
    if isinstance(source, LocalStorage) and isinstance(target, LocalStorage):
        inner, outer = target.root.resolve(), source.root.resolve()
        if inner == outer or inner.is_relative_to(outer) or outer.is_relative_to(inner):
            raise InvalidInputError(f"copy: one of the two is in the other: {source.url}, {target.url}")


@dataclass(frozen=True)
class _Done:
    """What became of one slot."""

    slot: int
    uid: str
    present: bool = False
    shards: int = 0
    linked: int = 0
    nbytes: int = 0
    failed: str = ""


class _Copier:
    """Copies one dataset."""

    def __init__(self, source: Storage, target: Storage, *, dry_run: bool) -> None:
        self._source = source
        self._target = target
        self._dry_run = dry_run
        self._known: dict[int, str] = {}
        self._revisions = Revisions(source)
        self._done: list[_Done] = []
        self._tags_left_out: list[str] = []

    def begin(self, snapshot: Snapshot) -> None:
        """Look whose the target is, and put what comes before the episodes."""
        revisions = [schema_key(number) for number in range(len(read_revisions(self._source)))]
        theirs = self._target.get(revisions[0])
        if theirs is None:
            check_empty(self._target)
        elif theirs != self._source.get(revisions[0]):
            raise InvalidInputError(
                f"copy: the target is another dataset, expected a copy of {self._source.url}, or nothing; "
                f"{self._target.url}"
            )
        else:
            decided = load(self._target).decided
            self._known = dict(zip(decided.numbers("slot").tolist(), decided.column("digest"), strict=True))
        if self._dry_run:
            return
        self._target.check_writable()
        for key in revisions:
            self.put_same(key, "schema")
        for number in range(len(snapshot.amendments)):  # before what they hide or correct
            self.put_same(amendment_key(number), f"amendment {number}")

    def put_same(self, key: str, what: str) -> None:
        """Put an object of the source to the target, unless it is there."""
        body = self._source.get(key)
        if body is None:
            raise CorruptDataError(f"copy: {what} went missing in the source; {key}")
        if self._target.get(key) == body:
            return
        try:
            self._target.put_new(key, body)
        except AlreadyExistsError as error:
            raise AlreadyExistsError(
                f"copy: the target has another {what}: somebody changed it there; copy to another place; {error}"
            ) from error

    def copy_tag(self, name: str) -> None:
        """Put a tag, unless it holds an episode that was left out."""
        damaged = {each.slot for each in self._done if each.failed}
        if damaged and damaged.intersection(read_tag(self._source, name).decided.numbers("slot").tolist()):
            self._tags_left_out.append(name)
        else:
            self.put_same(tag_key(name), f"tag {name!r}")

    def jobs(self, snapshot: Snapshot) -> Iterator[tuple[int, Callable[[], None]]]:
        """The bytes of each slot, and what copies it."""
        for entry in snapshot.decided:
            known = self._known.get(entry.slot) == entry.digest and entry.status != "corrupt"
            yield (0 if known else sum(entry.shard_sizes)), partial(self._copy, entry, known=known)

    def _copy(self, entry: Entry, *, known: bool) -> None:
        if known:
            self._done.append(_Done(entry.slot, entry.uid, present=True))
            return
        try:
            done = self._copy_episode(entry)
        except CorruptDataError as error:
            done = _Done(entry.slot, entry.uid, failed=str(error))
        self._done.append(done)

    def _copy_episode(self, entry: Entry) -> _Done:
        record = read_record(self._source, entry.slot)
        if record is None or record.digest != entry.digest:
            raise CorruptDataError(f"record: it is not the one of the snapshot; {record_key(entry.slot)}")
        # A checkpoint or a tag may say anything: only keys that a recorder makes are read, and written.
        Entry.of(record, self._revisions.recorded_arrays(record.schema_revision))
        if self._dry_run:
            nbytes = sum(shard.size for shard in record.shards)
            return _Done(entry.slot, entry.uid, shards=len(record.shards), nbytes=nbytes)
        bodies = [self._checked(shard) for shard in record.shards]
        # Before the shards: who records into this slot must not find them in the place of his own.
        self._put_claim(record)
        copied = [self._put_shard(shard, body) for shard, body in zip(record.shards, bodies, strict=True)]
        self.put_same(record_key(record.slot), f"record in slot {record.slot}")
        return _Done(
            entry.slot,
            entry.uid,
            shards=sum(how != "present" for how in copied),
            linked=copied.count("linked"),
            nbytes=sum(shard.size for shard, how in zip(record.shards, copied, strict=True) if how == "copied"),
        )

    def _checked(self, info: ShardInfo) -> bytes | None:
        """A shard of the source; None where the target has it, of a copy that was cut off."""
        there = self._target.open_shard(info.key)
        if there is not None and there.size == info.size and _holds(there.read(0, info.size), info):
            return None
        file = self._source.open_shard(info.key)
        found = None if file is None else file.size
        if file is None or found != info.size:
            raise CorruptDataError(f"shard: it has {found or 'no'} bytes, expected {info.size}; {info.key}")
        body = file.read(0, info.size)
        if not _holds(body, info):
            raise CorruptDataError(f"shard: its sha256 does not hold; {info.key}")
        return body

    def _put_shard(self, info: ShardInfo, body: bytes | None) -> str:
        """How it came: `"present"`, `"linked"` or `"copied"`."""
        if body is None:
            return "present"
        if self._link(info.key):
            return "linked"
        self._target.put_new(info.key, body)
        return "copied"

    def _link(self, key: str) -> bool:
        source, target = self._source, self._target
        if not isinstance(source, LocalStorage) or not isinstance(target, LocalStorage):
            return False
        # Not `put_new_file`: where there are no links it renames, which would take the file out of the source.
        final = target.path(key)
        try:
            target.make_folder(final.parent)
            os.link(source.path(key), final, follow_symlinks=False)
        except OSError:
            return False  # another file system, one without links, a file of another user: `put_new` writes or says
        target.sync_folder(final.parent, key)
        return True

    def _put_claim(self, record: Record) -> None:
        """A claim of a decided slot only has to be there: no recorder of this machine has it."""
        document = {"uid": record.uid, "time_ns": record.started_ns, **_NOBODY}
        try:
            self._target.put_new(claim_key(record.slot), documents.seal(document))
        except AlreadyExistsError as error:
            claim = read_claim(self._target, record.slot)
            if claim is None or claim.uid != record.uid:
                raise AlreadyExistsError(
                    f"copy: slot {record.slot} of the target is taken: somebody records into it; copy to another "
                    f"place; {error}"
                ) from error

    def report(self, total: int) -> CopyReport:
        """Of all slots."""
        done = sorted(self._done, key=lambda each: each.slot)
        failed = [each for each in done if each.failed]
        present = sum(each.present for each in done)
        return CopyReport(
            num_episodes=total,
            num_copied=len(done) - present - len(failed),
            num_present=present,
            num_shards=sum(each.shards for each in done),
            num_linked=sum(each.linked for each in done),
            bytes_copied=sum(each.nbytes for each in done),
            problems=tuple(CopyProblem(each.slot, each.uid, each.failed) for each in failed),
            tags_left_out=tuple(self._tags_left_out),
            dry_run=self._dry_run,
        )


def _holds(body: bytes, info: ShardInfo) -> bool:
    return hashlib.sha256(body).hexdigest() == info.sha256
