"""Many whole episodes committed together: each step of the protocol for all of them, with few `fsync`s.

The order is that of docs/spec.md, section 3.2: claims, shards, records. Nobody is told of an episode before its record
is durable, and what happens to one episode of a group changes nothing for the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from ..codecs import crc32c, encode_chunk
from ..errors import AlreadyExistsError, EpisodeFencedError, RecordingError, SalusError
from ..layout import ArraySpec, record_key
from ..log.claims import claim_slots
from ..log.entries import Entry
from ..log.records import Record
from ..schema import Schema
from ..shards import ShardInfo, whole_shard
from ..statistics import EpisodeStatistics, described
from ..storage import Storage
from .files import as_recording_error

Chunks: TypeAlias = "list[Future[bytes]]"


@dataclass(eq=False)
class EndedEpisode:
    """A whole episode in memory, which waits for its commit.

    Attributes:
        record: Its record, without slot and shards.
        rows: Arrays with many steps per chunk: (T, *stored_step_shape).
        images: Arrays with one step per chunk: T encoded chunks each.
        cost_bytes: Memory that it takes.
        schema: What it was recorded under.
        image_statistics: Those of the arrays with one step per chunk, complete once these are encoded; None where an
            interrupted append left them in doubt.
        done: Holds its row of the episode table once it is durable, or why it is not kept.
    """

    record: Record
    rows: Mapping[str, np.ndarray]
    images: Mapping[str, Chunks]
    cost_bytes: int
    schema: Schema
    image_statistics: EpisodeStatistics | None
    done: Future[Entry] = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.done.set_running_or_notify_cancel()  # an episode that has ended cannot be called back

    def statistics(self) -> dict[str, Any]:
        """The member `statistics` of its record, from the batches of a recorder that writes step by step.

        To be asked for when all images are encoded.
        """
        made = EpisodeStatistics(self.schema, [name for name in described(self.schema) if name in self.rows])
        for start in range(0, self.record.num_steps, self.schema.segment_steps):
            made.add({name: rows[start : start + self.schema.segment_steps] for name, rows in self.rows.items()})
        of_images = {} if self.image_statistics is None else self.image_statistics.to_json()
        return made.to_json() | of_images

    def shards(self, spec: ArraySpec) -> list[bytes]:
        """The shards of one array, segment after segment."""
        if spec.name in self.images:
            encoded = [chunk.result() for chunk in self.images[spec.name]]
            starts = range(0, len(encoded), spec.segment_steps)
            segments = [encoded[start : start + spec.segment_steps] for start in starts]
        else:
            rows = self.rows[spec.name]
            segments = [
                [
                    encode_chunk(spec, rows[start : min(start + spec.chunk_steps, first + spec.segment_steps)])
                    for start in range(first, min(first + spec.segment_steps, len(rows)), spec.chunk_steps)
                ]
                for first in range(0, len(rows), spec.segment_steps)
            ]
        return [
            whole_shard(spec.chunks_per_shard, chunks, spec.shard_identity(self.record.uid, segment))
            for segment, chunks in enumerate(segments)
        ]


class GroupWriter:
    """Commits groups of whole episodes into one dataset.

    Args:
        storage: The dataset's.
        specs: The arrays to write, without derived ones.

    Thread-safety: none; one thread commits.
    """

    def __init__(self, storage: Storage, specs: Mapping[str, ArraySpec]) -> None:
        self._storage = storage
        self._specs = sorted(specs.values(), key=lambda spec: spec.name)
        self._next_slot = 0

    def commit(self, group: Sequence[EndedEpisode]) -> dict[EndedEpisode, Entry | RecordingError]:
        """Commit each episode of the group.

        Returns:
            For each its row of the episode table, durable; or why it is not kept.
        """
        found: dict[EndedEpisode, Entry | RecordingError] = {}
        ready = self._encoded(group, found)
        slots = self._claimed(list(ready), found)
        bodies: dict[str, bytes] = {}
        records: dict[EndedEpisode, Record] = {}
        for ended, slot in slots.items():
            infos = []
            for spec, segments in zip(self._specs, ready[ended], strict=True):
                for segment, body in enumerate(segments):
                    key = spec.shard_key(slot, segment)
                    bodies[key] = body
                    infos.append(ShardInfo(key, len(body), crc32c(body), hashlib.sha256(body).hexdigest()))
            records[ended] = replace(ended.record, slot=slot, shards=tuple(infos))
        failed = self._storage.put_new_many(bodies)
        for ended, record in list(records.items()):
            error = next((failed[shard.key] for shard in record.shards if shard.key in failed), None)
            if error is not None:
                self._abort(records.pop(ended), str(error))
                found[ended] = _as_error(error, record)
        self._decide(records, found)
        return found

    def _encoded(
        self, group: Sequence[EndedEpisode], found: dict[EndedEpisode, Entry | RecordingError]
    ) -> dict[EndedEpisode, list[list[bytes]]]:
        """The shards of each episode, before anything of it is on disk."""
        ready = {}
        for ended in group:
            try:
                ready[ended] = [ended.shards(spec) for spec in self._specs]
                ended.record = replace(ended.record, statistics=ended.statistics())
            except Exception as error:  # noqa: BLE001 - a codec of the user's own may raise anything; the caller gets it
                failed = found[ended] = as_recording_error(error, ended.record.uid)
                failed.__cause__ = error
        return ready

    def _claimed(
        self, group: Sequence[EndedEpisode], found: dict[EndedEpisode, Entry | RecordingError]
    ) -> dict[EndedEpisode, int]:
        slots: dict[EndedEpisode, int] = {}
        answers = claim_slots(self._storage, [ended.record.uid for ended in group], hint=self._next_slot)
        for ended, answer in zip(group, answers, strict=True):
            if isinstance(answer, int):
                slots[ended] = answer
                self._next_slot = max(self._next_slot, answer + 1)
            else:
                found[ended] = as_recording_error(answer, ended.record.uid)
        return slots

    def _decide(
        self, records: Mapping[EndedEpisode, Record], found: dict[EndedEpisode, Entry | RecordingError]
    ) -> None:
        """The commit points: the records of all, then their folders."""
        bodies = {ended: record.to_bytes() for ended, record in records.items()}
        failed = self._storage.put_new_many({record_key(records[ended].slot): body for ended, body in bodies.items()})
        for ended, record in records.items():
            error = failed.get(record_key(record.slot))
            if error is None:
                found[ended] = Entry.of(Record.from_bytes(bodies[ended], record.slot), self._specs)
            else:
                found[ended] = _as_error(error, record)

    def _abort(self, record: Record, reason: str) -> None:
        """So that the slot does not look as if somebody recorded into it. Its shards stay for garbage collection."""
        aborted = Record(record.slot, record.uid, "aborted", reason=reason)
        with suppress(SalusError):  # the disk that refused the shards may refuse this, too; `recover` aborts it then
            self._storage.put_new(record_key(record.slot), aborted.to_bytes())


def _as_error(error: SalusError, record: Record) -> RecordingError:
    if isinstance(error, AlreadyExistsError):
        return EpisodeFencedError(f"episode {record.uid}: slot {record.slot}: another process wrote to it: {error}")
    return as_recording_error(error, record.uid)
