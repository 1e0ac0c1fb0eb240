"""One episode: a lazy mapping of feature names to array-like features. Nothing is read until it is indexed."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from .codecs import require_codec
from .errors import CorruptDataError, NotFoundError, did_you_mean
from .gather import Reader, Request
from .labels import Outcome, horizon_labels
from .layout import ArraySpec, array_specs, record_key
from .log.amendments import Overlay, quarantined
from .log.entries import Entry
from .log.records import Record
from .log.revisions import Revisions
from .log.snapshot import read_record, read_sound_entry
from .schema import STEP, TIMESTAMP, Feature, Schema, stamps_name
from .statistics import EpisodeStatistics, FeatureStatistics, described, from_record

MANY_STEPS = 64
"""From so many images on, the disk is told to read ahead."""


class Episode:
    """One episode of a snapshot.

    `episode["states"][10:20]` reads steps 10 to 19. Iterating gives the feature names; `len` is the number of steps. A
    feature on another clock of the schema has the length of that clock.

    Attributes:
        uid: Immutable name, UUIDv7 text.
        slot: Row on axis 0 of every array of the Zarr hierarchy.
        schema: The schema that it was recorded under.
        outcome: The outcome in force.
    """

    def __init__(self, reader: Reader, entry: Entry, schema: Schema, overlay: Overlay | None = None) -> None:
        if overlay is not None and overlay.quarantine is not None:
            raise CorruptDataError(quarantined(entry.uid, overlay.quarantine, reader.storage.url))
        if entry.status == "corrupt":
            # Reading the record again raises the error that says what is wrong with it.
            read_sound_entry(reader.storage, entry.slot, Revisions(reader.storage))
            raise CorruptDataError(f"the record of slot {entry.slot} was corrupt when this snapshot was loaded")
        self._reader = reader
        self._entry = entry
        self._overlay = overlay
        self.uid = entry.uid
        self.slot = entry.slot
        self.schema = schema
        self.outcome: Outcome = entry.outcome

    def __len__(self) -> int:
        return self._entry.num_steps

    @property
    def num_steps(self) -> int:
        """The number of steps, T."""
        return self._entry.num_steps

    @property
    def clock_lengths(self) -> dict[str, int]:
        """Length of each clock of the schema beside the steps, 0 where nothing came: `{"joints": 12000}`."""
        return {clock: self._entry.length(clock) for clock in self.schema.clocks}

    def keys(self) -> Iterable[str]:
        """The feature names."""
        return self.schema.features.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.schema.features)

    def __contains__(self, name: object) -> bool:
        return name in self._specs

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Episode) and (self._entry, self._overlay) == (other._entry, other._overlay)

    def __hash__(self) -> int:
        return hash(self.uid)

    def __getitem__(self, name: str) -> FeatureData:
        """The feature `name`, lazily; also `"timestamp_ns"`, and `"<name>.valid"` of a nullable feature.

        The stamps of another clock are `"<clock>.timestamp_ns"`.

        Raises:
            NotFoundError: The episode has no such feature.
        """
        if name not in self._specs:
            hint = did_you_mean(str(name), self._specs)
            raise NotFoundError(f"episode {self.uid} has no feature {name!r}{hint}")
        return FeatureData(self, self._specs[name])

    @cached_property
    def _specs(self) -> dict[str, ArraySpec]:
        return array_specs(self.schema)

    @cached_property
    def _record(self) -> Record:
        record = read_record(self._reader.storage, self.slot)
        if record is None:
            raise CorruptDataError(f"episode {self.uid}: its record is gone; slot {self.slot}")
        return record

    @property
    def status(self) -> str:
        """`"committed"`, or `"salvaged"` where a crash was repaired."""
        return self._entry.status

    @property
    def metadata(self) -> dict[str, Any]:
        """What was given to `episode(...)`, with later changes in force."""
        metadata = copy.deepcopy(self._record.metadata)
        return self._overlay.apply_to(metadata) if self._overlay is not None else metadata

    @property
    def stored_bytes(self) -> int:
        """Bytes of the episode's shards on disk."""
        return self._entry.stored_bytes

    @property
    def timestamp_source(self) -> str:
        """Where the stamps come from: `"caller"`, `"monotonic"` or `"rate"` (nominal, made from the rate)."""
        return self._record.timestamp_source

    @property
    def timestamp_sources(self) -> dict[str, str]:
        """The same by clock, `"step"` first; of other clocks only those on which something came."""
        sources = self._record.clock_sources
        return {
            STEP: self.timestamp_source,
            **{clock: sources[clock] for clock in self.schema.clocks if clock in sources},
        }

    @property
    def dropped_images(self) -> dict[str, int]:
        """Images that were dropped while recording because the queue was full, by feature; empty where none was."""
        return dict(self._record.dropped_images)

    @property
    def timestamp_ns(self) -> np.ndarray:
        """int64 (T,), nanoseconds, strictly increasing."""
        return self.timestamps()

    def timestamps(self, clock: str = STEP) -> np.ndarray:
        """The stamps of a clock.

        Args:
            clock: `"step"`, or one of `clock_lengths`.

        Returns:
            int64 (K,), nanoseconds, strictly increasing. The stamps of all clocks of an episode are on one time base.

        Raises:
            NotFoundError: The episode has no such clock.
        """
        if clock not in (STEP, *self.schema.clocks):
            hint = did_you_mean(str(clock), (STEP, *self.schema.clocks))
            raise NotFoundError(f"episode {self.uid} has no clock {clock!r}{hint}")
        stamps: np.ndarray = self[stamps_name(clock)][:]
        return stamps

    @property
    def duration_s(self) -> float:
        """Seconds from the first step to the last."""
        stamps = self[TIMESTAMP][[0, -1]]
        return float(stamps[1] - stamps[0]) / 1e9

    @property
    def statistics(self) -> Mapping[str, FeatureStatistics]:
        """Statistics by feature, of the values as they were recorded: `episode.statistics["actions"].mean`.

        They come out of the record, when a feature is asked for. Where the episode was recorded without, its values of
        that feature are read instead (of lossy images, that is what the codec left of them). Text and derived features
        have none (NotFoundError); CorruptDataError where what the record says does not hold, and the values stay
        readable.
        """
        return _Statistics(self)

    def read_statistics(self, name: str, *, recompute: bool = False) -> FeatureStatistics:
        """The statistics of one feature, as `statistics` gives them; `recompute` reads the values in any case."""
        kept = None
        if not recompute:
            kept = from_record(self._record.statistics, self.schema, name, key=record_key(self.slot))
        return kept if kept is not None else self._computed_statistics(name)

    def _computed_statistics(self, name: str) -> FeatureStatistics:
        feature, made = self.schema.features[name], EpisodeStatistics(self.schema, [name])
        size = self.schema.segment_steps_of(feature.clock)  # the batches of a recorder
        arrays = [name, f"{name}.valid"] if feature.nullable else [name]
        for start in range(0, self._entry.length(feature.clock), size):
            values = {array: self[array][start : start + size] for array in arrays}
            made.add({array: self._specs[array].as_stored(steps) for array, steps in values.items()})
        return made.features[name]

    @property
    def _labels(self) -> tuple[np.ndarray, np.ndarray]:
        return self._reader.labels(self._entry, self._compute_labels)

    def _compute_labels(self) -> tuple[np.ndarray, np.ndarray]:
        horizons = self.schema.label_horizons
        stamps = self.timestamp_ns if horizons.unit == "s" else None
        return horizon_labels(self.num_steps, self.outcome, horizons, self.schema.failure_kinds, timestamp_ns=stamps)

    @property
    def labels(self) -> np.ndarray:
        """float32 (T, H, K), 0 or 1: whether failure kind k comes within horizon h, from the outcome in force."""
        return self._labels[0].copy()

    @property
    def labels_mask(self) -> np.ndarray:
        """bool (T, H, K): True where the label is known."""
        return self._labels[1].copy()

    def compute(self, name: str, dtype: np.dtype[Any]) -> np.ndarray:
        """All steps of what is computed from the outcome: `labels`, `labels_mask`, or a derived feature."""
        labels, mask = self._labels
        if name == "labels_mask":
            return mask
        return labels if name == "labels" else np.where(mask, labels, np.float32(np.nan)).astype(dtype)

    def read_steps(self, spec: ArraySpec, steps: np.ndarray) -> np.ndarray:
        """The given steps of its clock (int64 (n,), within the episode) of one array: (n, *step_shape)."""
        compute = (lambda _: self.compute(spec.name, spec.numpy_dtype)) if spec.derived else None
        if len(steps) >= MANY_STEPS and spec.chunk_steps == 1 and not spec.derived:
            self._reader.prefetch(spec, self._entry, int(steps.min()), int(steps.max()) + 1)
        require_codec(spec)
        request = Request(spec, [self._entry], np.zeros(len(steps), np.int64), steps, compute)
        return self._reader.read([request])[0]

    def __repr__(self) -> str:
        features = ", ".join(repr(self[name])[1:-1] for name in self)
        clocks = "".join(f", {length} of {clock}" for clock, length in self.clock_lengths.items())
        return f"<salus.Episode {self.uid}: {self.num_steps} steps{clocks}, {describe(self.outcome)}; {features}>"


class _Statistics(Mapping[str, FeatureStatistics]):
    """Statistics by feature name, each made when it is asked for."""

    def __init__(self, episode: Episode) -> None:
        self._episode = episode
        self._names = described(episode.schema)

    def __getitem__(self, name: str) -> FeatureStatistics:
        if name not in self._names:
            hint = did_you_mean(str(name), self._names)
            raise NotFoundError(f"episode {self._episode.uid} has no statistics of {name!r}{hint}")
        return self._episode.read_statistics(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __repr__(self) -> str:
        return f"<statistics of {', '.join(self._names)}>"


def describe(outcome: Outcome) -> str:
    """The outcome in a few words: `success`, `failure (drop at step 12)`."""
    details = [outcome.kind or "", f"at step {outcome.step}" if outcome.step is not None else ""]
    text = " ".join(detail for detail in details if detail)
    return f"{outcome.result} ({text})" if text else outcome.result


class FeatureData:
    """One feature of one episode: an array (T, *shape) that is read when it is indexed, with numpy's semantics.

    T is the number of steps of its clock.

    Attributes:
        name: Feature name.
        shape: (T, *shape of a step).
        dtype: numpy dtype; object (of str) for text.
    """

    def __init__(self, episode: Episode, spec: ArraySpec) -> None:
        self._episode = episode
        self._spec = spec
        self.name = spec.name
        self.shape = (episode.num_steps if spec.clock == STEP else episode.clock_lengths[spec.clock], *spec.step_shape)
        self.dtype = spec.numpy_dtype

    @property
    def ndim(self) -> int:
        """Axes, the step among them."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        """Steps and parts of steps, as numpy indexes: integers, slices, `...`, lists, arrays, masks.

        Raises:
            IndexError: Out of range.
            CorruptDataError: Bytes are missing or changed.
        """
        parts = index if isinstance(index, tuple) else (index,)
        if any(part is Ellipsis for part in parts):
            if not all(part is Ellipsis or isinstance(part, slice) or _is_integer(part) for part in parts):
                return np.asarray(self)[index]
            parts = _without_ellipsis(parts, self.ndim)
        first, rest = (parts[0], parts[1:]) if parts else (slice(None), ())
        if isinstance(first, slice):
            steps = np.arange(*first.indices(len(self)), dtype=np.int64)
            return self._read(steps)[(slice(None), *rest)]
        if _is_integer(first):
            return self._read(self._checked([operator.index(first)]))[(0, *rest)]
        selected = np.asarray(first) if isinstance(first, list | np.ndarray) else None
        if selected is not None and not rest and selected.dtype.kind in "iu":
            steps = self._checked(selected.ravel().tolist())
            return self._read(steps).reshape(*selected.shape, *self.shape[1:])
        if selected is not None and not rest and selected.dtype == bool and selected.shape == (len(self),):
            return self._read(np.flatnonzero(selected))
        return np.asarray(self)[index]

    def _read(self, steps: np.ndarray) -> np.ndarray:
        return self._episode.read_steps(self._spec, steps)

    def _checked(self, wanted: list[int]) -> np.ndarray:
        outside = [step for step in wanted if not -len(self) <= step < len(self)]
        if outside:
            raise IndexError(
                f"step {outside[0]}: out of range, episode {self._episode.uid} has {len(self)} steps of {self.name!r}"
            )
        steps = np.array(wanted, dtype=np.int64)
        return np.where(steps < 0, steps + len(self), steps)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a feature is read from storage: it cannot be an array without a copy")
        return np.asarray(self._read(np.arange(len(self))), dtype)

    def __iter__(self) -> Iterator[Any]:
        return (self[step] for step in range(len(self)))

    def __repr__(self) -> str:
        coding = unusual(self._episode.schema.features.get(self.name))
        return f"<{self.name} {'text' if self._spec.is_text else self.dtype} {self.shape}{coding}>"


def unusual(feature: Feature | None) -> str:
    """`" (JPEG quality 95, lossy)"` where a feature is stored otherwise than by default; else nothing."""
    return "" if feature is None or feature.is_lossless else f" ({feature.coding})"


def _is_integer(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 0 and value.dtype.kind in "iu"
    return not isinstance(value, bool | np.bool_) and hasattr(value, "__index__")


def _without_ellipsis(parts: tuple[Any, ...], ndim: int) -> tuple[Any, ...]:
    places = [place for place, part in enumerate(parts) if part is Ellipsis]
    if len(places) != 1:
        return parts  # none, or too many, which numpy refuses
    missing = ndim - (len(parts) - 1)
    return parts[: places[0]] + (slice(None),) * missing + parts[places[0] + 1 :]
