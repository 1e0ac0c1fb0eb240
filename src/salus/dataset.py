"""The handle of a whole dataset: it refreshes, edits, tags and publishes. Reading is in `view`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from .codecs import check_codecs
from .errors import CorruptDataError, InvalidInputError, NotFoundError
from .gather import Reader
from .labels import Outcome, Result
from .layout import array_specs, tag_key
from .log import publish as publishing
from .log.amendments import Amendment, append_amendment
from .log.digest import revision_digests, root_digest
from .log.entries import Entries, Entry
from .log.revisions import put_revision, read_revisions
from .log.snapshot import Snapshot, load, read_record, write_checkpoint
from .log.tags import list_tags, put_tag
from .log.unfinished import UnfinishedEpisode, find_unfinished
from .metadata import check_metadata
from .schema import Feature, Schema
from .storage import Storage
from .view import DatasetView

Mode = Literal["r", "a"]
OnCorrupt = Literal["raise", "skip"]


class Dataset(DatasetView):
    """A whole dataset at one moment: a frozen snapshot until `refresh()`. Made by `salus.open` and `salus.create`.

    Attributes:
        mode: `"r"`, or `"a"` for recording, amending and tagging.
        tag_name: The tag that it was opened at, or None.
        strict: Whether features that need zarr-python's codecs are refused.
        on_corrupt: Whether corrupt and quarantined episodes raise when they are asked for, or are left out.
    """

    def __init__(
        self,
        storage: Storage,
        schemas: list[Schema],
        snapshot: Snapshot,
        mode: Mode,
        tag: str | None,
        *,
        strict: bool = False,
        on_corrupt: OnCorrupt = "raise",
    ) -> None:
        self.strict = strict
        self.on_corrupt: OnCorrupt = on_corrupt
        if strict:
            schemas[-1].check_native(storage.url)
        super().__init__(Reader(storage, schemas), schemas, snapshot, _readable(snapshot, schemas, on_corrupt))
        self.mode = mode
        self._latest = snapshot
        self.tag_name = tag

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_snapshot": self._snapshot}  # to refresh from

    @property
    def digest(self) -> str:
        """`"sha256:<hex>"` over what is committed: schema revisions, records and amendments of this snapshot.

        Equal digests mean equal episodes, bit by bit, where `salus verify` finds no damage. Kept elsewhere, it tells
        whether anybody changed anything: `salus verify --expect`.

        Raises:
            CorruptDataError: A schema revision does not hold.

        Cost: reads the schema revisions; a second per 100,000 episodes.
        """
        return root_digest(self._snapshot, revision_digests(self.storage))

    def refresh(self) -> Dataset:
        """See what was committed and amended since; returns itself.

        Episode numbers may shift when an earlier episode was deleted or committed late; uids never do. Views made
        before keep their snapshot.

        Raises:
            InvalidInputError: It was opened at a tag, which never changes.
            FormatError: It was opened with `strict`, and a feature was added that this refuses.
            CorruptDataError: Schema revisions that were there are gone: somebody removed the dataset.
        """
        if self.tag_name is not None:
            raise InvalidInputError(f"refresh: the dataset was opened at tag {self.tag_name!r}, which never changes")
        snapshot = load(self.storage, self._snapshot)
        schemas = read_revisions(self.storage)
        if len(schemas) < len(self._schemas):
            raise CorruptDataError(
                f"refresh: the dataset has {len(schemas)} schema revisions, and had {len(self._schemas)}: somebody "
                f"removed it, or parts of it; {self.url}"
            )
        if self.strict:
            schemas[-1].check_native(self.url)
        self.__dict__.pop("_rows_by_uid", None)
        self.__dict__.pop("_lengths_by_clock", None)
        self.__dict__.pop("_revisions", None)
        self.__dict__.pop("_specs", None)
        self._schemas, self._snapshot, self._latest = schemas, snapshot, snapshot
        self._reader.schemas = schemas
        self._entries = _readable(snapshot, schemas, self.on_corrupt)
        return self

    def unfinished(self) -> list[UnfinishedEpisode]:
        """The episodes that were started and have not ended, as it is now: being recorded, or left by a crash.

        `salus.recover` brings back those of dead recorders.

        Raises:
            StorageError: The storage cannot be read.

        Cost: two small files for each, and a listing per 1,024 episodes started since the snapshot.
        """
        return find_unfinished(self.storage, load(self.storage, self._latest))

    def check_writable(self, what: str) -> None:
        """Raise InvalidInputError unless the dataset was opened for writing."""
        if self.mode != "a":
            raise InvalidInputError(
                f'{what}: the dataset is read-only; open it with salus.open({self.url!r}, mode="a")'
            )

    # --- editing -----------------------------------------------------------------------------------------------

    def delete(self, episodes: int | str | Iterable[int | str], *, author: str = "") -> None:
        """Delete episodes, by number or uid. Nothing is removed from disk; `undelete` brings them back.

        As every change, it is seen after `refresh()`, so numbers do not shift under a loop that deletes.

        Raises:
            NotFoundError, IndexError: No such episode.
            CorruptDataError: The record of one does not hold: what it is, and so whether to delete it, is not known.
            RecordingError: The storage refused.
        """
        self._amend("delete", Amendment(self._uids(episodes), "delete", author=author))

    def undelete(self, uids: str | Iterable[str], *, author: str = "") -> None:
        """Bring deleted episodes back, by uid.

        Raises:
            NotFoundError: No episode of this dataset ever had the uid.
            RecordingError: The storage refused.
        """
        wanted = (uids,) if isinstance(uids, str) else _several(uids, "undelete")
        self._latest = load(self.storage, self._latest)
        decided = self._latest.decided
        known = set(decided.take(decided.has_uid(wanted) & ~decided.has("status", "aborted")).column("uid"))
        for uid in wanted:
            if uid not in known:
                raise NotFoundError(f"undelete: no episode with uid {uid!r}; {self.url}")
        self._amend("undelete", Amendment(wanted, "undelete", author=author))

    def set_outcome(self, episode: int | str, outcome: Outcome | Result | None, *, author: str = "") -> None:
        """Correct how an episode ended; labels follow from it everywhere.

        Raises:
            InvalidInputError: The outcome does not fit the episode or the schema.
            NotFoundError, IndexError, CorruptDataError, RecordingError: As `delete`.
        """
        entry = self._entries[self._row(episode)]
        new = Outcome.of(outcome)
        new.check(num_steps=entry.num_steps, kinds=self._schemas[entry.schema_revision].failure_kinds)
        self._amend("set_outcome", Amendment((entry.uid,), "outcome", new.to_json(), author))

    def update_metadata(self, episode: int | str, changes: Mapping[str, Any], *, author: str = "") -> None:
        """Set metadata keys of an episode; None removes one.

        Raises:
            InvalidInputError: A value has no JSON text.
            NotFoundError, IndexError, CorruptDataError, RecordingError: As `delete`.
        """
        chosen, checked = self[self._row(episode)], check_metadata(changes)
        check_metadata({**chosen.metadata, **checked})  # the whole must not outgrow what a recorder may give
        self._amend("update_metadata", Amendment((chosen.uid,), "metadata", checked, author))

    def _uids(self, episodes: int | str | Iterable[int | str]) -> tuple[str, ...]:
        keys = (episodes,) if isinstance(episodes, int | str | np.integer) else _several(episodes, "delete")
        return tuple(self._entries[self._row(key)].uid for key in keys)

    def _amend(self, what: str, amendment: Amendment) -> None:
        self.check_writable(what)
        if not isinstance(amendment.author, str):
            raise InvalidInputError(f"{what}: author: got {type(amendment.author).__name__}, expected text")
        decided = self._latest.decided
        for slot in decided.take(decided.has_uid(amendment.uids)).column("slot"):
            read_record(self.storage, slot)  # a record that does not hold cannot be amended: this raises
        append_amendment(self.storage, amendment, next_number=len(self._latest.amendments))
        self._latest = publishing.publish(self.storage, known=self._latest)

    def add_features(self, features: Mapping[str, Feature], *, clocks: Mapping[str, float] | None = None) -> None:
        """Add features, as a new schema revision. Episodes recorded before do not have them.

        Args:
            features: Feature by name.
            clocks: New clocks that some of them run on, by name, and their rates in Hz.

        Raises:
            InvalidInputError: A name is there already, or a feature or clock is wrong.
            AlreadyExistsError: Another process added features at the same time; `refresh()` and look.
            MissingExtraError: JPEG images, and the extra `jpeg` is not installed.
            FormatError: The dataset was opened with `strict`, and a feature names codecs of its own.
            RecordingError: The storage refused.
        """
        self.check_writable("add_features")
        schema = self.schema.extended(features, clocks)
        if self.strict:
            schema.check_native(self.url)
        check_codecs(array_specs(schema).values())
        put_revision(self.storage, len(self._schemas), schema)
        self._schemas = self._reader.schemas = [*self._schemas, schema]
        self.__dict__.pop("_specs", None)
        self._latest = publishing.publish(self.storage, known=self._latest)

    # --- tags and publishing -----------------------------------------------------------------------------------

    def tag(self, name: str, *, author: str = "") -> None:
        """Name this snapshot, for good: `salus.open(path, tag=name)` gives it back whatever happens later.

        Raises:
            InvalidInputError: Not a name.
            AlreadyExistsError: The tag is there; tags never change.
            CorruptDataError: A record does not hold.
            RecordingError: The storage refused.
        """
        self.check_writable("tag")
        tag_key(name)
        put_tag(self.storage, name, self._snapshot, author=author)

    def tags(self) -> list[str]:
        """The names of all tags, sorted."""
        return list_tags(self.storage)

    def publish(self, *, whole: bool = True) -> None:
        """Bring what plain Zarr readers see up to what is committed. A recorder does so by itself.

        Args:
            whole: Build everything again that was lost or mangled, too; else only what is new.

        Raises:
            RecordingError: The storage refused.
        """
        self.check_writable("publish")
        self._latest = publishing.publish(self.storage, known=self._latest, whole=whole)
        write_checkpoint(self.storage, self._latest)


def _readable(snapshot: Snapshot, schemas: list[Schema], on_corrupt: OnCorrupt) -> Entries:
    """The entries of a snapshot; one that names a schema revision that is not there is corrupt."""
    entries = snapshot.entries
    unknown = entries.numbers("schema_revision") >= len(schemas)
    entries = entries.merged(Entry.corrupt(slot) for slot in entries.numbers("slot")[unknown].tolist())
    return entries if on_corrupt == "raise" else entries.take(~entries.has("status", "corrupt"))


def _several(keys: Any, what: str) -> tuple[Any, ...]:
    if not isinstance(keys, Iterable):
        raise InvalidInputError(f"{what}: got {type(keys).__name__} {keys!r}, expected an episode or several")
    return tuple(keys)
