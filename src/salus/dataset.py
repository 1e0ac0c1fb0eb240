"""Datasets: views of a snapshot for reading, and the handle that edits, tags and refreshes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, overload

import numpy as np

from . import sampling
from .episode import Episode
from .errors import CorruptDataError, InvalidInputError, NotFoundError, SalusError, did_you_mean
from .gather import Reader
from .labels import Outcome, Result
from .layout import ArraySpec, array_specs, tag_key
from .log import publish as publishing
from .log.amendments import Amendment, append_amendment
from .log.revisions import put_revision, read_revisions
from .log.snapshot import Entry, Snapshot, load, read_record, write_checkpoint
from .log.tags import list_tags, put_tag
from .metadata import check_metadata
from .schema import Feature, Schema
from .storage import Storage
from .table import EpisodeTable

Mode = Literal["r", "a"]
LABELS = ("labels", "labels_mask")
STATUSES = ("committed", "salvaged", "corrupt")


class DatasetView(Sequence[Episode]):
    """Some episodes of one snapshot, in order. No data is read until it is asked for; views are cheap.

    Made by `dataset.select(...)`, `dataset.split(...)`, `dataset[10:20]`; `salus.open` gives the view of all.

    Thread-safety: reading is safe. Fork and pickle: both work; a forked or spawned worker reads the same snapshot.
    """

    def __init__(
        self, reader: Reader, schemas: list[Schema], snapshot: Snapshot, entries: list[Entry], part: str = ""
    ) -> None:
        self._reader = reader
        self._part = part
        self._schemas = schemas
        self._snapshot = snapshot
        self._entries = entries

    @property
    def schema(self) -> Schema:
        """The newest revision of the schema."""
        return self._schemas[-1]

    @property
    def schema_revision(self) -> int:
        """The number of that revision."""
        return len(self._schemas) - 1

    @property
    def url(self) -> str:
        """Where the dataset is."""
        return self._reader.storage.url

    @property
    def num_steps(self) -> int:
        """Steps of all episodes together."""
        return sum(entry.num_steps for entry in self._entries)

    @property
    def episodes(self) -> EpisodeTable:
        """The episode table."""
        return EpisodeTable(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, episode: object) -> bool:
        """Whether an episode, or the episode of a uid, is among these."""
        return (episode.uid if isinstance(episode, Episode) else episode) in self._rows_by_uid

    def __iter__(self) -> Iterator[Episode]:
        return (self._episode(entry) for entry in self._entries)

    @overload
    def __getitem__(self, key: int | str) -> Episode: ...
    @overload
    def __getitem__(self, key: slice) -> DatasetView: ...
    def __getitem__(self, key: int | str | slice) -> Episode | DatasetView:
        """An episode by its number (negative from the end) or uid, or a view of a slice.

        Raises:
            IndexError: No such number.
            NotFoundError: No such uid.
            CorruptDataError: The episode's record does not hold.
        """
        if isinstance(key, slice):
            return self._view(self._entries[key])
        return self._episode(self._entries[self._row(key)])

    def _episode(self, entry: Entry) -> Episode:
        schema = self._schemas[entry.schema_revision]
        return Episode(self._reader, entry, schema, self._snapshot.overlays.get(entry.uid))

    def _view(self, entries: list[Entry], part: str = "") -> DatasetView:
        return DatasetView(self._reader, self._schemas, self._snapshot, entries, f"{self._part}{part}")

    def _row(self, key: Any) -> int:
        if isinstance(key, str):
            row = self._rows_by_uid.get(key)
            if row is None:
                overlay = self._snapshot.overlays.get(key)
                why = "; it was deleted (undelete brings it back)" if overlay is not None and overlay.deleted else ""
                raise NotFoundError(f"no episode with uid {key!r} among these {len(self)}{why}; {self.url}")
            return row
        if isinstance(key, bool) or not isinstance(key, int | np.integer):
            raise InvalidInputError(f"episode: got {type(key).__name__} {key!r}, expected a number or a uid")
        if not -len(self) <= key < len(self):
            hint = "" if len(self) else "; refresh() shows what was committed since it was opened"
            raise IndexError(f"episode {key}: out of range, the dataset has {len(self)}{hint}; {self.url}")
        return int(key) % len(self)

    @cached_property
    def _rows_by_uid(self) -> dict[str, int]:
        return {entry.uid: row for row, entry in enumerate(self._entries)}

    # --- choosing ----------------------------------------------------------------------------------------------

    def select(
        self,
        *,
        outcome: Result | None = None,
        failure_kind: str | None = None,
        task: str | None = None,
        uids: Iterable[str] | None = None,
        status: str | Collection[str] | None = None,
        where: Callable[[Episode], bool] | None = None,
    ) -> DatasetView:
        """The episodes that meet all conditions given, as a view. No data moves.

        Args:
            outcome: `"success"`, `"failure"` or `"unknown"`.
            failure_kind: One of the schema's `failure_kinds`.
            task: `metadata["task"]`, exactly.
            uids: These episodes, in this order.
            status: `"committed"`, `"salvaged"`, `"corrupt"`, or several: `("committed", "salvaged")` leaves out the
                episodes whose record does not hold. These meet no condition but this one and `uids`.
            where: Any predicate, such as `lambda episode: episode.metadata["robot"] == "ur5"`.

        Raises:
            InvalidInputError: An outcome or kind that cannot be.
            NotFoundError: A uid that is not among the episodes.
        """
        if outcome is not None:
            Outcome(outcome)
        if failure_kind is not None:
            Outcome("failure", failure_kind).check(num_steps=1, kinds=self.schema.failure_kinds)
        if isinstance(uids, str):
            raise InvalidInputError(f"uids: got the text {uids!r}, expected several uids, such as [uid]")
        statuses = (status,) if isinstance(status, str) else status
        unknown = [name for name in statuses or () if name not in STATUSES]
        if unknown:
            raise InvalidInputError(f"status: got {unknown[0]!r}, expected one of {', '.join(map(repr, STATUSES))}")

        def meets(entry: Entry) -> bool:
            if statuses is not None and entry.status not in statuses:
                return False
            if entry.status == "corrupt":
                return outcome is None and failure_kind is None and task is None and where is None
            return (
                (outcome is None or entry.result == outcome)
                and (failure_kind is None or entry.failure_kind == failure_kind)
                and (task is None or entry.task == task)
                and (where is None or where(self._episode(entry)))
            )

        entries = self._entries if uids is None else [self._entries[self._row(uid)] for uid in uids]
        return self._view([entry for entry in entries if meets(entry)])

    def split(
        self, fractions: Mapping[str, float], *, seed: int = 0, stratify: str | None = None
    ) -> tuple[DatasetView, ...]:
        """Split by episode: `train, val = dataset.split({"train": 0.9, "val": 0.1})`.

        By the hash of each uid: the same on every machine, and a dataset that grows, or loses episodes, moves none from
        one part to another. The shares hold on average. A part can be split again.

        Args:
            fractions: Share of each part, adding up to 1. The parts come back in this order.
            seed: Another seed, another split.
            stratify: A column of the episode table, such as `"outcome"`: keeps its shares in every part exactly. Not
                growth-stable: as episodes are added, some may change parts.

        Raises:
            InvalidInputError: The fractions do not add up to 1, or there is no such column.
        """
        strata: list[Hashable] | None = None
        if stratify is not None:
            try:
                strata = self.episodes[stratify]
            except NotFoundError as error:
                raise InvalidInputError(f"stratify: {error}") from error
        uids = [entry.uid for entry in self._entries]
        parts = sampling.split(uids, fractions, seed=seed, strata=strata, within=self._part)
        return tuple(self._view([self._entries[row] for row in rows], f"{name}/") for name, rows in parts.items())

    # --- reading -----------------------------------------------------------------------------------------------

    def gather(self, wanted: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Read single steps of many episodes at once: the fast way to a training batch.

        Args:
            wanted: For each feature, pairs (episode, step): a list whose episodes are numbers or uids, or an int array
                (..., 2). Negative numbers count from the end. Besides features, `"timestamp_ns"`, `"labels"` and
                `"labels_mask"`.

        Returns:
            For each feature, (..., *shape of a step). Images of layout CHW are a view on channels-last memory.

        Raises:
            InvalidInputError: Not pairs.
            IndexError: An episode or step is out of range.
            NotFoundError: An unknown feature or uid.
            CorruptDataError: Bytes are missing or changed.
        """
        if not isinstance(wanted, Mapping):
            raise InvalidInputError(
                f"gather: got {type(wanted).__name__}, expected features with (episode, step) pairs"
            )
        return {name: self._gather(name, pairs) for name, pairs in wanted.items()}

    def _gather(self, name: str, pairs: Any) -> np.ndarray:
        shape, rows, steps = self._pairs(name, pairs)
        lengths = self._lengths[rows]
        outside = np.flatnonzero((steps < -lengths) | (steps >= lengths))
        if len(outside):
            entry = self._entries[rows[outside[0]]]
            if entry.status == "corrupt":
                self._episode(entry)  # raises what is wrong with it
            raise IndexError(f"step {steps[outside[0]]}: out of range, episode {entry.uid} has {entry.num_steps} steps")
        return self.read(name, rows, np.where(steps < 0, steps + lengths, steps), shape)

    def read(self, name: str, rows: np.ndarray, steps: np.ndarray, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """`gather` for callers that have checked their input: int64 (n,) rows in 0 … len - 1, steps in 0 … T - 1.

        Returns:
            (*shape, *shape of a step); shape is (n,) unless given.
        """
        shape = shape if shape is not None else rows.shape
        if name in LABELS:
            self.check_feature(name)
            empty = np.empty((0, *self.schema.label_shape), bool if name == "labels_mask" else np.float32)
            values = self._by_episode(rows, steps, lambda episode, steps: episode.labels_at(name, steps), empty)
        else:
            spec = self._spec(name, rows)
            if spec.derived:
                empty = np.empty((0, *spec.step_shape), spec.numpy_dtype)
                values = self._by_episode(rows, steps, lambda episode, steps: episode.read_steps(spec, steps), empty)
            else:
                values = self._reader.read(spec, self._entries, rows, steps)
        return values.reshape(*shape, *values.shape[1:])

    def _pairs(self, name: str, pairs: Any) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
        if not isinstance(pairs, np.ndarray):
            try:
                pairs = np.array(
                    [(self._row(episode), step) for episode, step in pairs], dtype=np.int64 if not len(pairs) else None
                )
            except (TypeError, ValueError) as error:
                if isinstance(error, SalusError):
                    raise
                raise InvalidInputError(f"gather {name!r}: expected pairs of (episode, step): {error}") from error
            pairs = pairs.reshape(-1, 2)
        if pairs.ndim < 2 or pairs.shape[-1] != 2 or pairs.dtype.kind not in "iu":
            raise InvalidInputError(
                f"gather {name!r}: got {pairs.dtype} {pairs.shape}, expected pairs of (episode, step), int (..., 2)"
            )
        rows, steps = pairs.reshape(-1, 2).astype(np.int64).T
        outside = rows[(rows < -len(self)) | (rows >= len(self))]
        if len(outside):
            self._row(int(outside[0]))
        return pairs.shape[:-1], np.where(rows < 0, rows + len(self), rows), steps

    def check_sound(self) -> None:
        """Raise CorruptDataError where the record of an episode does not hold, and say how to leave it out."""
        corrupt = [entry.slot for entry in self._entries if entry.status == "corrupt"]
        if corrupt:
            raise CorruptDataError(
                f"{len(corrupt)} of {len(self)} episodes have a record that does not hold, the first in slot "
                f'{corrupt[0]}; .select(status=("committed", "salvaged")) leaves them out; {self.url}'
            )

    def check_feature(self, name: str) -> None:
        """Raise NotFoundError unless every episode of this view has the feature `name`; labels need horizons."""
        if name not in LABELS:
            self._spec(name, np.arange(len(self)))
        elif not len(self.schema.label_horizons):
            raise InvalidInputError(f"{name!r}: the schema declares no label horizons; {self.url}")

    def _spec(self, name: str, rows: np.ndarray) -> ArraySpec:
        entries = (self._entries[row] for row in np.unique(rows))
        revisions = {entry.schema_revision for entry in entries if entry.status != "corrupt"} or {
            len(self._schemas) - 1
        }
        for revision in sorted(revisions):
            if name in self._specs[revision]:
                continue
            if name not in self._specs[-1]:
                raise NotFoundError(f"no feature {name!r}{did_you_mean(name, [*self._specs[-1], *LABELS])}; {self.url}")
            lacking = next(self._entries[row] for row in rows if self._entries[row].schema_revision == revision)
            raise NotFoundError(
                f"episode {lacking.uid} has no feature {name!r}: it was recorded before that was added; {self.url}"
            )
        return self._specs[-1][name]

    @cached_property
    def _specs(self) -> list[dict[str, ArraySpec]]:
        return [array_specs(schema) for schema in self._schemas]

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.array([entry.num_steps for entry in self._entries], dtype=np.int64)

    def _by_episode(
        self, rows: np.ndarray, steps: np.ndarray, read: Callable[[Episode, np.ndarray], np.ndarray], empty: np.ndarray
    ) -> np.ndarray:
        """`read(episode, steps)` for each episode, put back into the order asked for."""
        values = np.empty((len(rows), *empty.shape[1:]), empty.dtype)
        order = np.argsort(rows, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(rows[order])) + 1):
            if len(group):
                values[group] = read(self._episode(self._entries[rows[group[0]]]), steps[group])
        return values

    def __repr__(self) -> str:
        features = ", ".join(
            f"{name} {feature.dtype} {feature.shape}" for name, feature in self.schema.features.items()
        )
        kind = type(self).__name__
        return f"<salus.{kind} {self.url}: {len(self)} episodes, {self.num_steps} steps; {features}>"


class Dataset(DatasetView):
    """A whole dataset at one moment: a frozen snapshot until `refresh()`. Made by `salus.open` and `salus.create`.

    Attributes:
        mode: `"r"`, or `"a"` for recording, amending and tagging.
        tag_name: The tag that it was opened at, or None.
    """

    def __init__(
        self, storage: Storage, schemas: list[Schema], snapshot: Snapshot, mode: Mode, tag: str | None
    ) -> None:
        super().__init__(Reader(storage), schemas, snapshot, _readable(snapshot, schemas))
        self.mode = mode
        self._latest = snapshot
        self.tag_name = tag

    @property
    def storage(self) -> Storage:
        """Where its bytes are."""
        return self._reader.storage

    def step_bytes(self, entry: Entry) -> int:
        """Bytes of one step of an episode, all recorded features and the stamp, before compression."""
        return 8 + sum(feature.step_bytes for feature in self._schemas[entry.schema_revision].recorded.values())

    @property
    def decided_slots(self) -> set[int]:
        """The slots that have a record, aborted ones included."""
        return set(self._snapshot.decided)

    def refresh(self) -> Dataset:
        """See what was committed and amended since; returns itself.

        Episode numbers may shift when an earlier episode was deleted or committed late; uids never do. Views made
        before keep their snapshot.

        Raises:
            InvalidInputError: It was opened at a tag, which never changes.
        """
        if self.tag_name is not None:
            raise InvalidInputError(f"refresh: the dataset was opened at tag {self.tag_name!r}, which never changes")
        snapshot = load(self.storage, self._snapshot)
        schemas = read_revisions(self.storage)
        self.__dict__.pop("_rows_by_uid", None)
        self.__dict__.pop("_lengths", None)
        self.__dict__.pop("_specs", None)
        self._schemas, self._snapshot, self._latest = schemas, snapshot, snapshot
        self._entries = _readable(snapshot, schemas)
        return self

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
        known = {entry.uid for entry in self._latest.decided.values() if entry.status != "aborted"}
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
        uids = set(amendment.uids)
        for slot in [entry.slot for entry in self._latest.decided.values() if entry.uid in uids]:
            read_record(self.storage, slot)  # a record that does not hold cannot be amended: this raises
        append_amendment(self.storage, amendment, next_number=len(self._latest.amendments))
        self._latest = publishing.publish(self.storage, known=self._latest)

    def add_features(self, features: Mapping[str, Feature]) -> None:
        """Add features, as a new schema revision. Episodes recorded before do not have them.

        Raises:
            InvalidInputError: A name is there already, or a feature is wrong.
            AlreadyExistsError: Another process added features at the same time; `refresh()` and look.
            RecordingError: The storage refused.
        """
        self.check_writable("add_features")
        schema = self.schema.extended(features)
        put_revision(self.storage, len(self._schemas), schema)
        self._schemas = [*self._schemas, schema]
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


def _readable(snapshot: Snapshot, schemas: list[Schema]) -> list[Entry]:
    """The entries of a snapshot; one that names a schema revision that is not there is corrupt."""
    return [entry if entry.schema_revision < len(schemas) else Entry.corrupt(entry.slot) for entry in snapshot.entries]


def _several(keys: Any, what: str) -> tuple[Any, ...]:
    if not isinstance(keys, Iterable):
        raise InvalidInputError(f"{what}: got {type(keys).__name__} {keys!r}, expected an episode or several")
    return tuple(keys)
