"""The statistics of an episode that is being recovered, read back from what its recorder left on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..codecs import decode_chunk
from ..errors import CorruptDataError, SalusError
from ..layout import ArraySpec
from ..schema import Schema
from ..shards import ShardReader
from ..statistics import EpisodeStatistics, described
from ..storage import Storage
from .replay import Clock, Journal, Part, read_rows, read_shard


def read_statistics(
    storage: Storage, schema: Schema, journal: Journal, parts: Mapping[str, list[Part]], counts: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The member `statistics` of the record, as the recorder itself would have written it.

    In the batches of a recorder, so that moments are the same bits. Of images behind a lossy codec, they are of what
    the codec left.

    Args:
        storage: The dataset's.
        schema: What the episode was recorded under.
        journal: Its journal.
        parts: By clock, the arrays of the segment that was being recorded.
        counts: By clock, steps of that segment that are kept.

    Returns:
        The statistics by feature; and, of features that could not be decoded, why: these have none.

    Cost: reads and decodes the episode once. Memory: a segment of a small feature, or one step of a large one.
    """
    found: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for name in described(schema):
        made, clock = EpisodeStatistics(schema, [name]), schema.features[name].clock
        steps = _Steps(storage, journal, journal.clocks[clock], parts[clock], counts[clock])
        arrays = [name, f"{name}.valid"] if schema.features[name].nullable else [name]
        try:
            for batch in steps.batches(arrays):
                made.add(batch)
        except SalusError as error:  # its checksum holds: a codec is not installed, or does not take it
            failed[name] = str(error)
        else:
            found |= made.to_json()
    return found, failed


class _Steps:
    """The steps of the episode: of finished segments from their shards, of the last one from its parts."""

    def __init__(self, storage: Storage, journal: Journal, clock: Clock, parts: list[Part], count: int) -> None:
        self._storage = storage
        self._journal = journal
        self._clock = clock
        self._parts = {part.spec.name: part for part in parts}
        self._count = count

    def batches(self, names: list[str]) -> Iterator[dict[str, np.ndarray]]:
        """A feature, and whether its values are there, by array: (n, *stored_step_shape), as a recorder adds them."""
        spec = self._parts[names[0]].spec
        for segment, count in self._segments(spec.segment_steps):
            if spec.chunk_steps != 1:
                yield {name: self._rows(name, segment, count) for name in names}
                continue
            valid = {name: self._rows(name, segment, count) for name in names[1:]}
            for step, value in enumerate(self._single(spec, segment, count)):
                yield {spec.name: value, **{name: rows[step : step + 1] for name, rows in valid.items()}}

    def _segments(self, size: int) -> Iterator[tuple[int, int]]:
        """The number of each segment, and its steps."""
        finished = len(self._clock.finished)
        for segment in range(finished):
            yield segment, self._clock.last_count if segment == finished - 1 else size
        if self._count:
            yield finished, self._count

    def _rows(self, name: str, segment: int, count: int) -> np.ndarray:
        if segment == len(self._clock.finished):
            return self._clock.open.values(name, count)
        spec = self._parts[name].spec
        return read_rows(self._shard(spec, segment), spec, count)

    def _single(self, spec: ArraySpec, segment: int, count: int) -> Iterator[np.ndarray]:
        """The steps of an array with one step per chunk, (1, *stored_step_shape) each."""
        if segment < len(self._clock.finished):
            reader = self._shard(spec, segment)
            chunks = (reader.chunk(step) for step in range(count))
        else:
            file = self._parts[spec.name].file
            places = self._clock.open.places[spec.name][:count] if file is not None else []
            chunks = (file.read(*place) for place in places if file is not None)
        for chunk in chunks:
            yield decode_chunk(spec, chunk)

    def _shard(self, spec: ArraySpec, segment: int) -> ShardReader:
        key = spec.shard_key(self._journal.slot, segment)
        opened = self._storage.open_shard(key)
        if opened is None:
            raise CorruptDataError(f"shard: it went missing; {key}")
        return read_shard(opened, spec, self._journal, segment)
