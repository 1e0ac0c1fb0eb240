"""Recorders that are interrupted, closed too early, or refused by the disk: no hang, nothing half, nothing untyped."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus
from salus import layout
from salus.errors import AlreadyExistsError, CommitUnknownError, CorruptDataError, RecordingError
from salus.log import snapshot as snapshots
from salus.recorder import files
from salus.recorder.background import Background
from salus.recorder.pool import StepBuffer
from salus.storage import local

from .scenario import SCHEMA, make_episode


@pytest.fixture
def path(memory_path: Path) -> Path:
    return memory_path / "data.zarr"


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Call it to fill the disk (True), or to make room again."""
    real = local._write_temporary

    def fill(full: bool) -> None:
        def refuse(target: Path, body: bytes) -> Path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(local, "_write_temporary", refuse if full else real)

    return fill


def step(seed: int = 0) -> dict[str, Any]:
    return {name: values[0] for name, values in make_episode(seed, 1).items()}


def finishes(function: Callable[[], Any], seconds: float = 3) -> bool:
    """Whether the call ends, in whatever way."""

    def call() -> None:
        with suppress(salus.SalusError):
            function()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def test_a_full_disk_refuses_the_commit_and_keeps_what_was_committed(
    path: Path, full_disk: Callable[[bool], None]
) -> None:
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        kept = recorder.record_episode(make_episode(0), {"seed": 0})
        refused = recorder.start(seed=1)
        refused.append(step())
        full_disk(True)
        with pytest.raises(RecordingError, match="No space left on device"):
            refused.commit()
        with pytest.raises(RecordingError, match="No space left on device"):
            recorder.start()
        full_disk(False)
        again = recorder.record_episode(make_episode(2), {"seed": 2})
    assert [entry.uid for entry in salus.open(path).episodes] == [kept.uid, again.uid]


def test_a_shard_that_cannot_grow_stops_the_episode_at_the_next_append(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        episode = recorder.start()
        episode.append(step())
        with monkeypatch.context() as patch:

            def write(*arguments: Any) -> int:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            patch.setattr(os, "write", write)
            with pytest.raises(RecordingError, match="No space left on device"):
                for _ in range(200):
                    episode.append(step())
                    time.sleep(0.01)
        with pytest.raises(RecordingError, match="No space left on device"):
            episode.commit()
        episode.discard()
    assert len(salus.open(path)) == 0


def test_ending_a_failed_episode_after_the_recorder_was_closed_does_not_hang(
    path: Path, full_disk: Callable[[bool], None]
) -> None:
    recorder = salus.Recorder(salus.create(path, SCHEMA))
    episode = recorder.start()
    episode.append(step())
    full_disk(True)
    with pytest.raises(RecordingError):
        episode.commit()
    full_disk(False)
    recorder.close()
    assert finishes(episode.discard)


def test_close_ends_all_threads_even_if_an_episode_cannot_be_discarded(
    path: Path, full_disk: Callable[[bool], None]
) -> None:
    before = set(threading.enumerate())
    recorder = salus.Recorder(salus.create(path, SCHEMA))
    for _ in range(2):
        recorder.start().append(step())
    full_disk(True)
    with pytest.raises(RecordingError):
        recorder.close()
    full_disk(False)
    left = [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("salus-")]
    # For the tests after this one, whatever comes out.
    recorder._background.close()
    recorder._publisher.close()
    assert left == []


def test_an_episode_committed_after_ctrl_c_is_complete(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_steps = files.EpisodeFiles.write_steps

    def slow(*arguments: Any, **named: Any) -> None:
        time.sleep(0.3)
        write_steps(*arguments, **named)

    monkeypatch.setattr(files.EpisodeFiles, "write_steps", slow)
    with salus.Recorder(salus.create(path, SCHEMA), queue_bytes=40) as recorder:  # two images fit
        episode = recorder.start()
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):  # while `append` waits for room
            while True:
                episode.append(step())
        timer.join()
        entry = episode.commit()
    read = salus.open(path)[0]
    assert read["camera"][:].shape == (entry.num_steps, 3, 2, 3)


@pytest.mark.parametrize("later", ["append", "commit"])
def test_an_error_inside_append_is_named_then_and_later(
    path: Path, monkeypatch: pytest.MonkeyPatch, later: str
) -> None:
    salus.create(path, SCHEMA)
    failed = MemoryError("no room for a copy")

    def refuse(*arguments: object) -> None:
        raise failed

    with salus.Recorder(salus.open(path, mode="a")) as recorder:
        episode = recorder.start()
        episode.append(step(0))
        with monkeypatch.context() as patch, pytest.raises(RecordingError, match="failed: MemoryError: no room") as now:
            patch.setattr(StepBuffer, "copy", refuse)
            episode.append(step(1))
        assert now.value.__cause__ is failed
        with pytest.raises(RecordingError, match="append failed: MemoryError: no room for a copy.*discard") as then:
            episode.append(step(1)) if later == "append" else episode.commit()
        assert then.value.__cause__ is failed
        episode.discard()
    assert len(salus.open(path)) == 0


def test_an_idle_episode_is_flushed_while_another_is_busy(path: Path) -> None:
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        idle, busy = recorder.start(), recorder.start()
        idle.append(step())
        journal = path / "_salus" / "journal" / f"{idle.slot:010d}" / "journal"
        started, deadline = journal.stat().st_size, time.monotonic() + 2
        while time.monotonic() < deadline:
            busy.append(step())
            time.sleep(0.02)
        flushed = journal.stat().st_size
        idle.discard()
        busy.discard()
    assert flushed > started


def test_metadata_that_was_committed_is_readable_from_a_deep_stack(path: Path) -> None:
    nested: dict[str, Any] = {}
    for _ in range(900):
        nested = {"a": nested}
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        try:
            recorder.record_episode(make_episode(0), {"nested": nested})
        except salus.InvalidInputError:
            return

    def deep(calls: int) -> list[str]:
        return deep(calls - 1) if calls else salus.open(path).episodes["status"]

    assert deep(200) == ["committed"]


def test_text_that_was_committed_is_readable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("salus.codecs.MAX_TEXT_CHUNK_BYTES", 2000)
    arrays = make_episode(0) | {"say": ["x" * 1000] * 6}
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        try:
            recorder.record_episode(arrays)
        except salus.SalusError:
            return
    assert salus.open(path)[0]["say"][0] == "x" * 1000


def test_stamps_that_int64_cannot_hold_are_refused(path: Path) -> None:
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder, pytest.raises(salus.InvalidInputError):
        recorder.record_episode(make_episode(0), timestamp_ns=np.arange(6, dtype=np.uint64) + 2**63)


# --- races with other processes, played step by step -------------------------------------------------------------


def test_creating_while_another_creates_is_fine_with_exist_ok(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from salus import opening

    real = opening.check_empty

    def check_empty(storage: Any) -> None:
        monkeypatch.setattr(opening, "check_empty", real)
        salus.create(path, SCHEMA)  # the other process, in this moment
        real(storage)

    monkeypatch.setattr(opening, "check_empty", check_empty)
    try:
        assert len(salus.create(path, SCHEMA, exist_ok=True)) == 0
    except AlreadyExistsError as error:
        pytest.fail(f"exist_ok, and yet: {error}")


def test_opening_while_another_adds_a_feature_and_records(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from salus import opening

    salus.create(path, SCHEMA)
    real = opening.load

    def load(*arguments: Any) -> Any:
        monkeypatch.setattr(opening, "load", real)
        other = salus.open(path, mode="a")  # the other process, in this moment
        other.add_features({"force": salus.Feature((1,))})
        with salus.Recorder(other) as recorder:
            recorder.record_episode(make_episode(0) | {"force": np.ones((6, 1), np.float32)})
        return real(*arguments)

    monkeypatch.setattr(opening, "load", load)
    dataset = salus.open(path)
    assert [episode["force"][0, 0] for episode in dataset] == [1.0] * len(dataset)


# --- publishing ------------------------------------------------------------------------------------------------


class Told(local.LocalStorage):
    """A storage that says what it was asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.calls: list[tuple[str, str]] = []

    def get(self, key: str) -> bytes | None:
        self.calls.append(("get", key))
        return super().get(key)

    def list(self, folder: str) -> list[str]:
        self.calls.append(("list", folder))
        return super().list(folder)

    def sync(self, folder: str) -> None:
        self.calls.append(("sync", folder))
        super().sync(folder)

    def put(self, objects: Any) -> None:
        self.calls += [("put", key) for key in objects]
        super().put(objects)


@pytest.mark.parametrize(
    ("folder", "reading"), [("_salus/log/0", "list _salus/log/0"), ("_salus/amendments", "get _salus/amendments/")]
)
def test_what_is_published_is_synced_between_reading_the_log_and_writing(path: Path, folder: str, reading: str) -> None:
    from salus.log.publish import publish

    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        recorder.record_episode(make_episode(0))
        salus.open(path, mode="a").set_outcome(0, "success")
        storage = Told(path)
        for file in path.rglob("c.0"):
            file.unlink()  # so that there is something to write
        publish(storage, whole=True)
    calls = [" ".join(call) for call in storage.calls]
    first_write = next(place for place, call in enumerate(calls) if call.startswith("put "))
    last_read = max(place for place, call in enumerate(calls[:first_write]) if call.startswith(reading))
    assert f"sync {folder}" in calls[last_read:first_write], "what is published may not be durable"


def test_what_cannot_be_synced_is_not_published(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from salus.log.publish import publish

    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        recorder.record_episode(make_episode(0))
    derived = list(path.rglob("c.0"))
    for file in derived:
        file.unlink()  # so that there is something to write
    plain = os.fsync

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink() == path / "_salus/log/0":
            raise OSError(errno.EIO, "Input/output error")
        plain(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(CommitUnknownError, match="_salus/log/0: fsync of its directory failed: Input/output error"):
            publish(local.LocalStorage(path), whole=True)
    assert not [file for file in derived if file.exists()]
    publish(local.LocalStorage(path), whole=True)
    assert derived
    assert all(file.exists() for file in derived)


def damage(file: Path) -> None:
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    file.write_bytes(body)


def test_publishing_goes_on_past_a_corrupt_record_under_a_checkpoint(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "CHECKPOINT_MIN_RECORDS", 2)
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        for seed in (0, 1, 2):
            recorder.record_episode(make_episode(seed))
    assert (path / "_salus" / "checkpoints").is_dir()
    damage(path / "_salus" / "log" / "0" / "0000000001.json")
    dataset = salus.open(path, mode="a")
    with pytest.raises(CorruptDataError):
        assert dataset[1].metadata == {}
    dataset.publish()


def test_publishing_goes_on_past_a_damaged_shard(path: Path) -> None:
    import zarr

    schema = salus.Schema(
        {"q": salus.Feature((1,)), "labels_kept": salus.Feature((1, 1), derived="outcome", allow_nan=True)},
        rate_hz=10,
        failure_kinds=("drop",),
        horizons=salus.labels.Horizons((1.0,), "s"),
    )
    arrays = {"q": np.zeros((2, 1), np.float32)}
    with salus.Recorder(salus.create(path, schema)) as recorder:
        recorder.record_episode(arrays)
    damage(path / "timestamp_ns" / "c.0.0")
    dataset = salus.open(path, mode="a")
    with salus.Recorder(dataset) as recorder:
        with suppress(CorruptDataError):
            dataset.set_outcome(0, "success")
        recorder.record_episode(arrays)
    assert zarr.open_group(path, mode="r")["episode_length"][:].tolist()[1] == 2


@pytest.mark.parametrize("shape", [["x", "y", 2], [10**12, 10**9, 2]])
def test_publishing_mends_a_mangled_shape(path: Path, shape: list[Any]) -> None:
    import json

    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        recorder.record_episode(make_episode(0))
    file = path / "states" / "zarr.json"
    whole = file.read_text()
    file.write_text(json.dumps(json.loads(whole) | {"shape": shape}))
    salus.open(path, mode="a").publish()
    assert file.read_text() == whole


# --- a log that others tampered with -----------------------------------------------------------------------------


def test_a_stray_file_in_the_log_does_not_hang_opening(path: Path) -> None:
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        recorder.record_episode(make_episode(0))
    stray = path / "_salus" / "log" / "0" / "7.json"
    stray.write_text("{}")
    try:
        assert finishes(lambda: salus.open(path), seconds=2)
    finally:
        stray.unlink()  # lets the thread end


def test_exchanged_amendments_are_found(path: Path) -> None:
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        entry = recorder.record_episode(make_episode(0))
    dataset = salus.open(path, mode="a")
    dataset.delete(entry.uid)
    dataset.undelete(entry.uid)
    first, second = sorted((path / "_salus" / "amendments").iterdir())
    bodies = first.read_bytes(), second.read_bytes()
    second.write_bytes(bodies[0])
    first.write_bytes(bodies[1])
    with pytest.raises(CorruptDataError):
        salus.open(path)


def test_a_record_with_an_enormous_slot_costs_an_error_and_not_the_memory(path: Path) -> None:
    slot = 10**9  # 10**17 would be accepted as well, and never end
    salus.create(path, SCHEMA)
    record = path / layout.record_key(slot)
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    tracemalloc.start()
    try:
        finished = finishes(lambda: salus.open(path).refresh(), seconds=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        record.unlink()
    assert finished
    assert peak < 64 * 2**20


# --- further findings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
def test_committing_again_after_ctrl_c_inside_commit_keeps_every_value(
    path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    schema = salus.Schema({"q": salus.Feature((1,))}, rate_hz=10, segment_steps=4)
    with salus.Recorder(salus.create(path, schema)) as recorder:
        episode = recorder.start()
        for number in range(3):
            episode.append(q=[number + 1], timestamp_ns=number)
        with monkeypatch.context() as patch:
            submit = Background.submit

            def interrupted(*arguments: Any) -> None:
                if when == "after":
                    submit(*arguments)
                raise KeyboardInterrupt

            patch.setattr(Background, "submit", interrupted)
            with pytest.raises(KeyboardInterrupt):
                episode.commit()
        try:
            episode.commit()
        except RecordingError:
            return
    read = salus.open(path)[0]
    assert read["q"][:, 0].tolist() == [1, 2, 3]
    assert read.timestamp_ns.tolist() == [0, 1, 2]
    assert not (path / "q" / "c.0.1.0").exists()


@pytest.mark.parametrize("folder", ["log/0", "amendments"])
def test_what_a_tag_embeds_is_synced_before_the_tag(path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        recorder.record_episode(make_episode(0))
    salus.open(path, mode="a").set_outcome(0, "success")
    dataset = salus.open(path, mode="a")
    synced: list[Path] = []
    real = local._sync_directory

    def sync(place: Path) -> None:
        synced.append(place)
        real(place)

    monkeypatch.setattr(local, "_sync_directory", sync)
    dataset.tag("first")
    places = [place.relative_to(path / "_salus").as_posix() for place in synced if (path / "_salus") in place.parents]
    assert places[-1] == "tags"
    assert folder in places
