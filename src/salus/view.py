"""Views: some episodes of one snapshot, for choosing, splitting and reading."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias, overload

import numpy as np

from . import sampling
from .codecs import require_codec
from .episode import Episode, unusual
from .errors import CorruptDataError, InvalidInputError, NotFoundError, SalusError, did_you_mean
from .gather import Empty, Reader, Request, default_threads
from .labels import Outcome, Result
from .layout import ArraySpec, array_specs
from .log.entries import Entries, Entry
from .log.snapshot import Snapshot
from .readahead import read_ahead
from .schema import STEP, Schema
from .statistics import FeatureStatistics, described
from .storage import Storage
from .table import EpisodeTable

LABELS = ("labels", "labels_mask")
STATUSES = ("committed", "salvaged", "corrupt")

_ONE_STEP = (np.zeros(1, np.int64), np.zeros(1, np.int64))


class Block(NamedTuple):
    """Consecutive steps of one episode, as `scan` gives them.

    Attributes:
        episode: The episode.
        start: Its step that the arrays begin with; 0 unless the episode came in several blocks. Counted on the clock of
            the feature that was named first.
        arrays: Feature name to (n, *shape of a step). Features on one clock have the same n.
    """

    episode: Episode
    start: int
    arrays: dict[str, np.ndarray]


_Part: TypeAlias = dict[str, tuple[int, int]]
"""Clock to the first step and the end of a part of an episode."""


class DatasetView(Sequence[Episode]):
    """Some episodes of one snapshot, in order. No data is read until it is asked for; views are cheap.

    Made by `dataset.select(...)`, `dataset.split(...)`, `dataset[10:20]`; `salus.open` gives the view of all.

    Thread-safety: reading is safe. Fork and pickle: both work; a forked or spawned worker reads the same snapshot.
    """

    def __init__(
        self, reader: Reader, schemas: list[Schema], snapshot: Snapshot, entries: Entries, part: str = ""
    ) -> None:
        self._reader = reader
        self._part = part
        self._schemas = schemas
        self._snapshot = snapshot
        self._entries = entries

    def __getstate__(self) -> dict[str, Any]:
        # What the view itself needs, not what it was chosen from; a worker makes the rest again, if it wants it.
        made_again = {"_rows_by_uid", "_lengths_by_clock", "_revisions", "_specs"}
        kept = {name: value for name, value in self.__dict__.items() if name not in made_again}
        return {**kept, "_snapshot": Snapshot(amendments=self._snapshot.amendments)}

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
        return self.storage.url

    @property
    def storage(self) -> Storage:
        """Where its bytes are."""
        return self._reader.storage

    @property
    def num_steps(self) -> int:
        """Steps of all episodes together."""
        return int(self.lengths().sum())

    @property
    def raw_bytes(self) -> int:
        """Bytes of all recorded values, before compression; texts not counted."""
        revisions, total = self._entries.numbers("schema_revision"), 0
        for clock in (STEP, *self.schema.clocks):
            step_bytes = np.array([schema.step_bytes_of(clock) for schema in self._schemas])
            total += int((self.lengths(clock) * step_bytes[revisions]).sum())
        return total

    @property
    def stored_bytes(self) -> int:
        """Bytes of all shards on disk."""
        return int(self._entries.numbers("stored_bytes").sum())

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

    def _view(self, entries: Entries, part: str = "") -> DatasetView:
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
        return {uid: row for row, uid in enumerate(self._entries.column("uid"))}

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
                episodes whose record does not hold, or that are quarantined. These meet no condition but this one and
                `uids`.
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

        entries = self._entries if uids is None else self._entries.take([self._row(uid) for uid in uids])
        meets = np.full(len(entries), statuses is None)
        for name in statuses or ():
            meets |= entries.has("status", name)
        conditions = {"result": outcome, "failure_kind": failure_kind, "task": task}
        for name, value in conditions.items():
            if value is not None:
                meets &= entries.has(name, value) & ~entries.has("status", "corrupt")
        entries = entries.take(meets)
        if where is not None:
            entries = entries.take([row for row, entry in enumerate(entries) if self._meets(where, entry)])
        return self._view(entries)

    def _meets(self, where: Callable[[Episode], bool], entry: Entry) -> bool:
        return entry.status != "corrupt" and bool(where(self._episode(entry)))

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
        uids = self._entries.column("uid")
        parts = sampling.split(uids, fractions, seed=seed, strata=strata, within=self._part)
        return tuple(self._view(self._entries.take(rows), f"{name}/") for name, rows in parts.items())

    # --- reading -----------------------------------------------------------------------------------------------

    def gather(self, wanted: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Read single steps of many episodes at once: the fast way to a training batch.

        Args:
            wanted: For each feature, pairs (episode, step): a list whose episodes are numbers or uids, or an int array
                (..., 2). Steps are those of the feature's clock. Negative numbers count from the end. Besides features,
                `"timestamp_ns"`, `"<clock>.timestamp_ns"`, `"labels"` and `"labels_mask"`.

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
        shapes, places = {}, {}
        for name, pairs in wanted.items():
            shapes[name], *places[name] = self._places(name, pairs)
        values = self.read(places)
        return {name: array.reshape(*shapes[name], *array.shape[1:]) for name, array in values.items()}

    def _places(self, name: str, pairs: Any) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
        """Shape, rows and steps of pairs, all checked."""
        shape, rows, steps = self._pairs(name, pairs)
        clock = self.clock_of(name, rows)
        lengths = self.lengths(clock)[rows]
        outside = np.flatnonzero((steps < -lengths) | (steps >= lengths))
        if len(outside):
            entry = self._entries[rows[outside[0]]]
            if entry.status == "corrupt":
                self._episode(entry)  # raises what is wrong with it
            what = "steps" if clock == STEP else f"steps of the clock {clock!r}"
            raise IndexError(
                f"step {steps[outside[0]]}: out of range, episode {entry.uid} has {entry.length(clock)} {what}"
            )
        return shape, rows, np.where(steps < 0, steps + lengths, steps)

    def read(
        self, places: Mapping[str, Sequence[np.ndarray]], *, empty: Empty | None = None, parallel: bool = True
    ) -> dict[str, np.ndarray]:
        """`gather` for callers that have checked their input.

        Args:
            places: For each feature, rows int64 (n,) in 0 … len - 1 and steps int64 (n,) or (n, w) in 0 … T - 1, of its
                clock.
            empty: Makes the arrays that are decoded into; by default memory that is used again when they are gone.
            parallel: Use several threads.

        Returns:
            For each feature (n, *shape of a step) or (n, w, *shape of a step).
        """
        requests = [self._request(name, rows, steps) for name, (rows, steps) in places.items()]
        return dict(zip(places, self._reader.read(requests, empty=empty, parallel=parallel), strict=True))

    def scan(
        self,
        features: Iterable[str] | None = None,
        *,
        max_block_bytes: int = 2**30,
        read_ahead_bytes: int = 2**29,
        threads: int | None = None,
    ) -> Iterator[Block]:
        """Read everything once, episode by episode, in parallel and ahead: for statistics, exports, checks.

        Features on several clocks come together: each array has the length of its clock. An episode that comes in
        several blocks has each clock cut into as many parts; their borders lie near each other in time, not exactly.

        Args:
            features: Names, as for `gather`; by default all features of the schema.
            max_block_bytes: An episode whose arrays take more than this comes in several blocks.
            read_ahead_bytes: Bytes of blocks that may lie ready or be at work.
            threads: Threads that read; by default one per core, at most 8.

        Yields:
            `Block(episode, start, arrays)`, in the order of the episodes: `arrays[name]` holds the steps from `start`
            on, (n, *shape of a step). Memory is used again once nobody holds the arrays.

        Raises:
            NotFoundError: An unknown feature, or one that some episodes do not have.
            CorruptDataError: Bytes are missing or changed, when their turn comes.
        """
        if isinstance(features, str):
            raise InvalidInputError(f"scan: got the text {features!r}, expected several names, such as [{features!r}]")
        if threads is not None and threads < 1:
            raise InvalidInputError(f"scan: threads: got {threads}, expected at least 1")
        names = list(self.schema.features) if features is None else list(features)
        self.check_sound()
        for name in names:
            self.check_feature(name)
        clocks = {name: self.clock_of(name) for name in names}
        step_bytes = dict.fromkeys(clocks.values(), 0)
        for name, clock in clocks.items() if len(self) else ():
            step_bytes[clock] += self._request(name, *_ONE_STEP).spec.step_bytes

        def jobs() -> Iterator[tuple[int, Callable[[], Block]]]:
            for row, entry in enumerate(self._entries):
                for part in _parts({clock: entry.length(clock) for clock in step_bytes}, step_bytes, max_block_bytes):
                    for name, clock in clocks.items():
                        self.prefetch(name, row, *part[clock])
                    cost = sum((stop - start) * step_bytes[clock] for clock, (start, stop) in part.items())
                    yield cost, functools.partial(self._block, clocks, row, part)

        return read_ahead(jobs(), threads=threads or default_threads(), budget=read_ahead_bytes)

    def statistics(
        self, features: Iterable[str] | None = None, *, recompute: bool = False
    ) -> dict[str, FeatureStatistics]:
        """Statistics of all values, by feature: `dataset.statistics(["actions"])["actions"].quantile(0.99)`.

        Merged from the records of the episodes; an episode that was recorded without is read instead. Count, mean, std
        and extremes are those of all steps together; for quantiles see `FeatureStatistics.rank_error`. An episode that
        is there twice counts twice.

        Args:
            features: Names; by default every feature that all episodes have, but text and derived ones.
            recompute: Read all values, whatever the records say. Of lossy images, that is what the codec left of them.

        Raises:
            NotFoundError: An unknown feature, one without statistics, or one that some episodes do not have.
            InvalidInputError: Not several names.
            CorruptDataError: The record of an episode does not hold, or what it says of a feature (`recompute=True`
                passes over that), or a value that has to be read.

        Cost: one read of a small record per episode, and a millisecond or two to check and merge what it says (42
        floats and a camera); memory does not grow with the episodes. Episodes without statistics cost a read of their
        values.
        """
        names = self.check_described(features)
        merged = {name: FeatureStatistics(self.schema.features[name]) for name in names}
        for episode in self if names else ():
            for name in names:
                merged[name].merge(episode.read_statistics(name, recompute=recompute))
        return merged

    def check_described(self, features: Iterable[str] | None) -> list[str]:
        """The names whose statistics are asked for; raises as `statistics` does where there are none."""
        if isinstance(features, str):
            raise InvalidInputError(f"statistics: got the text {features!r}, expected several names: [{features!r}]")
        self.check_sound()
        revisions = set(self._revisions.tolist()) or {self.schema_revision}
        known = [name for name in described(self.schema) if all(name in self._specs[number] for number in revisions)]
        names = known if features is None else list(dict.fromkeys(features))
        for name in names:
            if name not in known:
                self.check_feature(name)
                raise NotFoundError(f"no statistics of {name!r}{did_you_mean(name, known)}; {self.url}")
        return names

    def _block(self, clocks: Mapping[str, str], row: int, part: _Part) -> Block:
        steps = {clock: np.arange(start, stop, dtype=np.int64) for clock, (start, stop) in part.items()}
        places = {name: (np.full(len(steps[clock]), row), steps[clock]) for name, clock in clocks.items()}
        first = next(iter(part.values()), (0, 0))
        return Block(self[row], first[0], self.read(places, parallel=False))

    def prefetch(self, name: str, row: int, start: int, stop: int) -> None:
        """Tell the storage that steps `start` … `stop - 1` of a feature of episode `row` will be read soon."""
        if name in LABELS or start >= stop:
            return
        spec = self._spec(name, np.array([row]))
        if spec.chunk_steps == 1 and not spec.derived:  # others are small, and kept once they are read
            self._reader.prefetch(spec, self._entries[row], start, stop)

    def _request(self, name: str, rows: np.ndarray, steps: np.ndarray) -> Request:
        spec = self._label_spec(name) if name in LABELS else self._spec(name, rows)
        if not spec.derived:
            require_codec(spec)
            return Request(spec, self._entries, rows, steps)
        return Request(
            spec, self._entries, rows, steps, lambda entry: self._episode(entry).compute(name, spec.numpy_dtype)
        )

    def _label_spec(self, name: str) -> ArraySpec:
        self.check_feature(name)
        dtype = "bool" if name == "labels_mask" else "float32"
        steps = self.schema.segment_steps
        return ArraySpec(name, dtype, self.schema.label_shape, steps, steps, derived=True)

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
        corrupt = self._entries.numbers("slot")[self._entries.has("status", "corrupt")]
        if len(corrupt):
            raise CorruptDataError(
                f"{len(corrupt)} of {len(self)} episodes are quarantined, or their record does not hold, the first in "
                f'slot {corrupt[0]}; .select(status=("committed", "salvaged")) or salus.open(…, on_corrupt="skip") '
                f"leaves them out, and salus verify says what is wrong; {self.url}"
            )

    def check_feature(self, name: str) -> None:
        """Raise NotFoundError unless every episode of this view has the feature `name`; labels need horizons."""
        if name not in LABELS:
            self._spec(name, np.arange(len(self)))
        elif not len(self.schema.label_horizons):
            raise InvalidInputError(f"{name!r}: the schema declares no label horizons; {self.url}")

    def clock_of(self, name: str, rows: np.ndarray | None = None) -> str:
        """The clock that the array `name` runs on, in these episodes or in all; raises as `check_feature`."""
        return STEP if name in LABELS else self._spec(name, np.arange(len(self)) if rows is None else rows).clock

    def _spec(self, name: str, rows: np.ndarray) -> ArraySpec:
        if len(self._specs) == 1 and name in self._specs[0]:
            return self._specs[0][name]
        revisions = set(self._revisions[rows].tolist()) - {-1} or {len(self._schemas) - 1}
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

    def lengths(self, clock: str = STEP) -> np.ndarray:
        """int64 (E,): the length of each episode on a clock; 0 of those recorded before it was added."""
        found = self._lengths_by_clock.get(clock)
        if found is None:
            found = self._lengths_by_clock[clock] = self._entries.lengths(clock)
            found.flags.writeable = False
        return found

    @cached_property
    def _lengths_by_clock(self) -> dict[str, np.ndarray]:
        return {}

    @cached_property
    def _revisions(self) -> np.ndarray:
        """int64 (N,), the schema revision of each episode; -1 of a corrupt one."""
        corrupt = self._entries.has("status", "corrupt")
        return np.where(corrupt, -1, self._entries.numbers("schema_revision"))

    def __repr__(self) -> str:
        features = ", ".join(
            f"{name} {feature.dtype} {feature.shape}{unusual(feature)}"
            for name, feature in self.schema.features.items()
        )
        kind = type(self).__name__
        return f"<salus.{kind} {self.url}: {len(self)} episodes, {self.num_steps} steps; {features}>"


def _parts(lengths: Mapping[str, int], step_bytes: Mapping[str, int], most: int) -> Iterator[_Part]:
    """An episode in parts of about `most` bytes, at least one step of some clock each; at least one part."""
    if len(lengths) == 1:  # of so many steps each but the last, as segments are
        ((clock, length),) = lengths.items()
        size = max(1, most // max(1, step_bytes[clock]))
        yield from ({clock: (start, min(start + size, length))} for start in range(0, max(length, 1), size))
        return
    total = sum(length * step_bytes[clock] for clock, length in lengths.items())
    count = max(1, min(-(-total // max(1, most)), max(lengths.values(), default=1)))
    for n in range(count):
        yield {clock: (length * n // count, length * (n + 1) // count) for clock, length in lengths.items()}
