"""Recording from many environments at once: batched steps in, groups of durable episodes out."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np

from ..codecs import encode_chunk
from ..errors import InvalidInputError, RecordingError, noted_on
from ..labels import Outcome, Result
from ..layout import ArraySpec
from ..log.entries import Entry
from ..log.records import Record
from ..metadata import check_metadata
from ..schema import TIMESTAMP, Schema
from ..statistics import EpisodeStatistics, described
from ..storage import Storage
from .batched import StepBuffers, as_stamps, on_host
from .checking import StepChecker
from .files import as_recording_error
from .group import EndedEpisode, GroupWriter
from .uids import new_uid

MAX_WAITING_BYTES = 256 * 2**20


class VectorRecorder:
    """Records many environments at once, every environment its own episodes; made by `recorder.vector(num_envs)`.

    Steps come as batches, (N, *shape) with one row per environment. An episode starts with the first step that its
    environment appends, and is committed by `end`. Episodes that end together are committed together.

    **Until it is committed, an episode is in memory only**: there is no journal, and a crash loses the episodes that
    had not ended. Memory grows with the steps of the open episodes: small features as they are, images compressed.

    Use it as a context manager, or call `close()`; closing the recorder closes it, too.

    Attributes:
        num_envs: Number of environments.

    Thread-safety: one thread at a time.
    """

    def __init__(
        self,
        *,
        num_envs: int,
        storage: Storage,
        schema: Schema,
        revision: int,
        checker: StepChecker,
        threads: int,
        on_commit: Callable[[], None],
        check_open: Callable[[str], None],
    ) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise InvalidInputError(f"vector: num_envs: got {num_envs!r}, expected a whole number of at least 1")
        self.num_envs = int(num_envs)
        self._schema = schema
        self._revision = revision
        self._checker = checker
        self._on_commit = on_commit
        self._check_recorder = check_open
        specs = {name: spec for name, spec in checker.specs.items() if not spec.derived}
        self._images = {name: spec for name, spec in specs.items() if spec.chunk_steps == 1}
        self._chunks: dict[str, list[list[Future[bytes]]]] = {
            name: [[] for _ in range(self.num_envs)] for name in self._images
        }
        self._described = [name for name in described(schema) if name in self._images]
        self._image_statistics: list[EpisodeStatistics | None] = [None] * self.num_envs
        rows = {name: spec for name, spec in specs.items() if name not in self._images}
        self._steps = StepBuffers(rows, self.num_envs)
        self._encoding: list[Future[bytes]] = []
        self._writer = GroupWriter(storage, specs)
        self._waiting: list[EndedEpisode] = []
        self._waiting_bytes = 0
        self._failures: list[RecordingError] = []
        self._changed = threading.Condition()
        self._encoders = ThreadPoolExecutor(threads, "salus-encode")
        self._committer = ThreadPoolExecutor(1, "salus-commit")  # what it was given is finished when Python exits
        self._closed = False
        self._pid = os.getpid()
        self._abandoned = weakref.finalize(self, _abandon, self._steps, self._pid)

    @property
    def num_steps(self) -> np.ndarray:
        """Steps appended so far to the open episode of each environment, int64 (num_envs,); 0 where none is open."""
        return self._steps.lengths.copy()

    @property
    def is_closed(self) -> bool:
        """Whether it was closed, by itself or with its recorder."""
        return self._closed

    # --- recording ---------------------------------------------------------------------------------------------

    def append(
        self,
        steps: Mapping[str, Any] | None = None,
        /,
        *,
        env_ids: Any = None,
        timestamp_ns: Any = None,
        **more: Any,
    ) -> None:
        """Add one step to the episode of each environment, or of some; starts the episodes that are not open.

        Args:
            steps: Feature name to values (N, *shape of a step), one row per environment: numpy arrays, or torch tensors
                on any device, which are copied to the host once each. Nested mappings are joined with ".". Of a
                nullable feature also `<name>.valid`, bool (N,).
            env_ids: int (N,), 0 … num_envs - 1, each once: the environments of the rows; all in their order by default.
            timestamp_ns: int64 (N,), or one number for all: when the step was taken, increasing. Without it the stamps
                are made from the declared rate (`timestamp_source == "rate"`). Either for all steps of an episode, or
                for none.
            **more: Further features, by keyword.

        Raises:
            InvalidInputError: Every problem of the batch. Nothing of it is kept, and the episodes go on.
            RecordingError: The recorder is closed; or an episode that ended before could not be committed. That is said
                once, and nothing of this batch is kept: append it again to go on.

        Cost: a copy of the batch. Images are encoded in the background, at most one batch behind.
        """
        self._check("append")
        ids = self._env_ids(env_ids, "append")
        if len(ids) == 0:
            return
        stored = self._checker.batch(on_host(steps if steps is not None else {}), on_host(more), num_envs=len(ids))
        stamps = None if timestamp_ns is None else as_stamps(on_host(timestamp_ns), len(ids))
        self._steps.check_stamps(ids, stamps)
        for pending in self._encoding:
            pending.exception()  # wait, so that no more than two batches of images are in memory; errors come at commit
        self._encoding = []
        try:
            self._encode_images(ids, stored)
            self._steps.append(ids, stored, stamps)
        except BaseException:  # Ctrl-C: images that belong to no step may have been counted
            for env in ids.tolist():
                self._image_statistics[env] = None
            raise

    def _encode_images(self, ids: np.ndarray, stored: Mapping[str, np.ndarray]) -> None:
        """Have the images of a step encoded, and taken into the statistics of their episodes."""
        if not self._images:
            return
        lengths = self._steps.lengths[ids].tolist()
        if self._described:
            for env, step in zip(ids.tolist(), lengths, strict=True):
                if step == 0:
                    self._image_statistics[env] = EpisodeStatistics(self._schema, self._described)
        for name, spec in self._images.items():
            values = np.array(stored[name], order="C", copy=True)
            valid = stored.get(f"{name}.valid", np.ones(len(ids), bool)).tolist()
            for row, (env, step) in enumerate(zip(ids.tolist(), lengths, strict=True)):
                counted = self._image_statistics[env] if valid[row] and name in self._described else None
                future = self._encoders.submit(_encode, spec, values[row : row + 1], counted, step)
                chunks = self._chunks[name][env]
                del chunks[step:]  # left by an append that Ctrl-C interrupted
                chunks.append(future)
                self._encoding.append(future)

    def end(
        self,
        env_ids: Any = None,
        *,
        outcome: Outcome | Result | Sequence[Outcome | Result | None] | None = None,
        metadata: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        **more: Any,
    ) -> list[Future[Entry]]:
        """End the episodes of these environments and keep them. Returns at once; they are committed in the background.

        Args:
            env_ids: int (N,), the environments; all by default. Each needs at least one step.
            outcome: How they ended: one for all, or a list of N.
            metadata: JSON values by key: one mapping for all, or a list of N. `env_id` is added where it is not given.
            **more: Further metadata of all, by keyword.

        Returns:
            For each environment a future of the episode's row in the episode table. It is done only when the episode
            is on disk, whole, for good; `flush()` waits for all. It raises `RecordingError` where the episode was not
            kept.

        Raises:
            InvalidInputError: An environment without an open episode, an outcome or metadata that do not fit. Nothing
                was ended.
            RecordingError: As `append`.

        Cost: a copy of the episodes; waits while more than 256 MiB of ended episodes wait for the disk.
        """
        self._check("end")
        ids = self._env_ids(env_ids, "end")
        lengths = self._steps.lengths[ids]
        if not lengths.all():
            raise InvalidInputError(
                f"end: environment {int(ids[lengths == 0][0])} has no open episode, expected at least one step; "
                "append steps first, or leave it out of env_ids"
            )
        outcomes = [Outcome.of(value) for value in _one_each(outcome, len(ids), "outcome", Outcome | str | None)]
        for ending, length in zip(outcomes, lengths.tolist(), strict=True):
            ending.check(num_steps=length, kinds=self._schema.failure_kinds)
        given = _one_each(metadata, len(ids), "metadata", Mapping | None)
        texts = [
            check_metadata({"env_id": env, **(values or {}), **more})
            for env, values in zip(ids.tolist(), given, strict=True)
        ]
        group = [self._ended(*each) for each in zip(ids.tolist(), outcomes, texts, strict=True)]
        with self._changed:
            self._waiting += group
            self._waiting_bytes += sum(ended.cost_bytes for ended in group)
        self._committer.submit(self._commit_waiting)
        with self._changed:
            self._changed.wait_for(lambda: self._waiting_bytes <= MAX_WAITING_BYTES)
        return [ended.done for ended in group]

    def discard(self, env_ids: Any = None) -> None:
        """Drop the open episodes of these environments, all by default. Nothing of them was ever on disk.

        Raises:
            InvalidInputError: No such environment.
            RecordingError: As `append`.
        """
        self._check("discard")
        for env in self._env_ids(env_ids, "discard").tolist():
            self._clear(env)

    def flush(self) -> None:
        """Wait until every episode that has ended is on disk.

        Raises:
            RecordingError: Some could not be committed; the first is named.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting)
        self._raise_failures()

    def _ended(self, env: int, outcome: Outcome, metadata: dict[str, Any]) -> EndedEpisode:
        steps = self._steps
        rows, source, started_ns = steps.take(env), steps.source(env), int(steps.started_ns[env])
        if source == "rate":
            rows[TIMESTAMP] = np.round(np.arange(len(rows[TIMESTAMP])) * (1e9 / self._schema.rate_hz)).astype(np.int64)
        record = Record(
            slot=0,
            uid=new_uid(),
            status="committed",
            num_steps=len(rows[TIMESTAMP]),
            schema_revision=self._revision,
            outcome=outcome,
            metadata=metadata,
            timestamp_source=source,
            started_ns=started_ns,
            ended_ns=time.time_ns(),
        )
        images = {name: chunks[env][: record.num_steps] for name, chunks in self._chunks.items()}
        cost = sum(values.nbytes for values in rows.values()) + sum(
            len(chunk.result()) for chunks in images.values() for chunk in chunks if chunk.exception() is None
        )
        counted = self._image_statistics[env]
        self._clear(env)
        return EndedEpisode(record, rows, images, cost, self._schema, counted)

    def _clear(self, env: int) -> None:
        self._steps.clear(env)
        self._image_statistics[env] = None
        for chunks in self._chunks.values():
            chunks[env] = []

    def _commit_waiting(self) -> None:
        """On the committing thread: all that waits, as one group; what ends meanwhile is the next group."""
        with self._changed:
            group = list(self._waiting)
        if not group:
            return
        try:
            found = self._writer.commit(group)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets it
            found = {ended: as_recording_error(error, ended.record.uid) for ended in group}
        for ended in group:
            answer = found[ended]
            if isinstance(answer, Entry):
                ended.done.set_result(answer)
            else:
                ended.done.set_exception(answer)
        failures = [answer for answer in found.values() if isinstance(answer, RecordingError)]
        with self._changed:
            self._failures += failures
            self._waiting = self._waiting[len(group) :]
            self._waiting_bytes -= sum(ended.cost_bytes for ended in group)
            self._changed.notify_all()
        self._on_commit()

    def _env_ids(self, env_ids: Any, what: str) -> np.ndarray:
        if env_ids is None:
            return np.arange(self.num_envs)
        ids = np.asarray(on_host(env_ids))
        if ids.size == 0:
            return np.empty(0, np.int64)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise InvalidInputError(f"{what}: env_ids: got {ids.dtype} {ids.shape}, expected whole numbers (N,)")
        if ids.min() < 0 or ids.max() >= self.num_envs or len(np.unique(ids)) < len(ids):
            raise InvalidInputError(
                f"{what}: env_ids: got {ids.tolist()}, expected each once, 0 .. {self.num_envs - 1}"
            )
        return ids.astype(np.int64)

    def _check(self, what: str) -> None:
        self._check_recorder(what)
        if self._closed:
            raise RecordingError(f"{what}: the vector recorder is closed")
        self._raise_failures()

    def _raise_failures(self) -> None:
        with self._changed:
            failures, self._failures = self._failures, []
        if failures:
            first = failures[0]
            more = f" ({len(failures) - 1} more episodes were lost with it)" if len(failures) > 1 else ""
            raise type(first)(f"{first}{more}") from first

    # --- closing -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Wait for the commits and stop. Twice is fine.

        Raises:
            RecordingError: Episodes were still open, and are lost (`end` or `discard` them before); or some that had
                ended could not be committed.
        """
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        self._abandoned.detach()
        self._committer.shutdown()
        self._encoders.shutdown()
        self._raise_failures()
        lost = self._steps.lengths[self._steps.lengths > 0]
        if len(lost):
            raise RecordingError(
                f"close: the episodes of {len(lost)} environments were still open and are lost ({lost.sum()} steps); "
                "call end() or discard() before"
            )

    def __enter__(self) -> VectorRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            with noted_on(error, "closing the vector recorder failed as well"):
                self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{np.count_nonzero(self._steps.lengths)} open episodes"
        return f"<salus.VectorRecorder of {self.num_envs} environments: {state}>"


def _encode(spec: ArraySpec, value: np.ndarray, statistics: EpisodeStatistics | None, step: int) -> bytes:
    """On an encoding thread: one image, (1, *stored_step_shape).

    `append` waits for the batch before, so one thread at a time adds to a feature of an episode, in the order of steps.
    """
    if statistics is not None:
        statistics.add_sample(spec.name, statistics.sample(spec.name, value[0], step))
    return encode_chunk(spec, value)


def _one_each(value: Any, count: int, what: str, single: Any) -> list[Any]:
    """`value` for each of `count`, or the `count` values that it holds."""
    if isinstance(value, single):
        return [value] * count
    if not isinstance(value, Sequence) or len(value) != count:
        got = f"{len(value)} values" if isinstance(value, Sequence) else type(value).__name__
        raise InvalidInputError(f"end: {what}: got {got}, expected one for all, or a list of {count}")
    for each in value:
        if not isinstance(each, single):
            raise InvalidInputError(f"end: {what}: got a list with {type(each).__name__} {each!r} in it")
    return list(value)


def _abandon(steps: StepBuffers, pid: int) -> None:
    """It was dropped, or the program ended, without `close()`: say what is lost."""
    lost = steps.lengths[steps.lengths > 0]
    if os.getpid() != pid or not len(lost):
        return
    what = f"salus: a vector recorder was not closed; {len(lost)} episodes of {lost.sum()} steps were never committed"
    warnings.warn(what, ResourceWarning, stacklevel=2)
    sys.stderr.write(f"{what}; call end(), or use a `with` block\n")  # a ResourceWarning is silent by default
