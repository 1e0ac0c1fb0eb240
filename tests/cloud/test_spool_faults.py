"""Recording into a bucket where the spool, the bucket or the machine fails: nothing is lost that is said to be kept."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import salus
from salus.errors import CommitUnknownError
from salus.storage import ObjectStorage

from ..conftest import make_arrays, steps_of
from . import servers
from .conftest import Network
from .proxy import Proxy
from .test_recording import assert_episode, create, files_in, kill_a_recorder, open_again

WITHIN_S = 20.0


def in_thread(function: Callable[..., Any], *args: Any) -> Future[Any]:
    """Run what may hang, where it is broken, on a thread that nobody waits for at the end."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(function(*args))
        except Exception as error:  # noqa: BLE001 - raised where the result is asked for
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done


def fill_the_spool(recorder: salus.Recorder, episode: salus.EpisodeWriter) -> None:
    """Append until writing waits for room in the spool and `append` for room in the queue, or raises."""
    for step in itertools.cycle(steps_of(make_arrays(100))):
        episode.append(step)


def test_a_start_that_waits_for_the_bucket_holds_up_no_other_episode(
    s3: servers.Server, schema: salus.Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, asked, put_new = threading.Event(), threading.Event(), ObjectStorage.put_new

    def slow(storage: ObjectStorage, key: str, body: bytes) -> None:
        if asked.is_set() and key.startswith("_salus/claims"):
            answers.wait()
        put_new(storage, key, body)

    monkeypatch.setattr(ObjectStorage, "put_new", slow)
    with salus.Recorder(create(s3, schema)) as recorder:
        episode = recorder.start()
        asked.set()
        other = in_thread(recorder.start)
        try:
            time.sleep(0.5)  # the half-second flush has come round
            for step in steps_of(make_arrays(40)):
                episode.append(step)
            assert in_thread(episode.commit).result(WITHIN_S).num_steps == 40
        finally:
            answers.set()
        other.result().discard()


@pytest.mark.parametrize("in_a_block", [True, False])
def test_an_episode_that_the_spool_has_no_room_for_is_left_to_recover_whole(
    s3: servers.Server, schema: salus.Schema, network: Network, *, in_a_block: bool
) -> None:
    dataset = create(s3, schema)
    recorder = salus.Recorder(dataset, spool_bytes=1, queue_bytes=20_000, upload_within_s=0.3)
    episode = recorder.start()
    network.away.set()
    with pytest.raises(CommitUnknownError, match="the spool is full, .* is kept in .*salus.recover"):
        if in_a_block:
            with episode:
                fill_the_spool(recorder, episode)
        else:
            fill_the_spool(recorder, episode)
    network.away.clear()
    if in_a_block:
        recorder.close()
    else:
        with pytest.raises(CommitUnknownError, match="the spool is full"):
            recorder.close()
    assert episode.state == "failed"
    (found,) = salus.recover(dataset.url, storage_options=s3.options).episodes
    assert (found.action, found.num_steps, found.lost_steps) == ("salvaged", episode.num_steps, 0)


def test_discarding_ends_the_wait_of_a_thread_that_appends(
    s3: servers.Server, schema: salus.Schema, network: Network, spools: Path
) -> None:
    network.stuck = "images/"
    with salus.Recorder(create(s3, schema), spool_bytes=1, queue_bytes=10_000) as recorder:
        episode = recorder.start()
        appending = in_thread(fill_the_spool, recorder, episode)
        steps = -1
        while steps != (steps := episode.num_steps) or not steps:
            time.sleep(0.3)
        in_thread(episode.discard).result(WITHIN_S)
        assert isinstance(appending.exception(WITHIN_S), salus.RecordingError)
        assert episode.state == "discarded"
    assert files_in(spools) == []


def test_an_episode_whose_spool_is_gone_is_aborted(s3: servers.Server, schema: salus.Schema, spools: Path) -> None:
    dataset = create(s3, schema)
    with salus.Recorder(dataset) as recorder:
        episode = recorder.start()
        shutil.rmtree(spools)
        with pytest.raises(salus.RecordingError, match=f"No such file or directory; {spools}"), episode:
            for step in steps_of(make_arrays(40)):
                episode.append(step)
        assert episode.state == "discarded"
    assert open_again(dataset, s3).unfinished() == []


def test_a_full_disk_is_said_to_be_the_one_of_the_spool(
    s3: servers.Server, schema: salus.Schema, spools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, is_full = os.write, threading.Event()

    def full(descriptor: int, data: Any) -> int:
        if is_full.is_set() and str(spools) in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    dataset = create(s3, schema)
    with salus.Recorder(dataset) as recorder:
        with (
            pytest.raises(salus.RecordingError, match=f"No space left on device; {spools}"),
            recorder.episode() as episode,
        ):
            is_full.set()
            for step in steps_of(make_arrays(40)):
                episode.append(step)
        assert episode.state == "discarded"
        with pytest.raises(salus.RecordingError, match=f"start: No space left on device; {spools}"):
            recorder.start()
    assert open_again(dataset, s3).unfinished() == []
    assert files_in(spools) == []


def test_an_upload_is_repeated_whatever_kept_it(
    s3: servers.Server, schema: salus.Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails, put_new_file = itertools.count(), ObjectStorage.put_new_file

    def put(storage: ObjectStorage, key: str, source: Path) -> None:
        if next(fails) < 4:
            raise OSError(errno.EMFILE, "Too many open files", str(source))
        put_new_file(storage, key, source)

    monkeypatch.setattr(ObjectStorage, "put_new_file", put)
    dataset = create(s3, schema)
    with salus.Recorder(dataset) as recorder:
        entry = recorder.record_episode(make_arrays(20))
        assert recorder.upload_status.failures == 4  # type: ignore[union-attr]
    assert_episode(open_again(dataset, s3)[entry.uid], make_arrays(20), 20)


def test_commit_waits_no_longer_than_it_was_told_for_a_bucket_that_swallows_everything(
    s3: servers.Server, schema: salus.Schema, spools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, put_new = threading.Event(), ObjectStorage.put_new

    def swallowing(storage: ObjectStorage, key: str, body: bytes) -> None:
        if key.startswith("_salus/log"):
            answers.wait()
        put_new(storage, key, body)

    monkeypatch.setattr(ObjectStorage, "put_new", swallowing)
    dataset = create(s3, schema)
    with salus.Recorder(dataset, upload_within_s=0.5) as recorder:
        recording = in_thread(recorder.record_episode, make_arrays(40))
        try:
            assert isinstance(recording.exception(WITHIN_S), CommitUnknownError)
        finally:
            answers.set()  # so the record comes after all
        while len(read := open_again(dataset, s3)) == 0:
            time.sleep(0.05)
    assert salus.recover(dataset.url, storage_options=s3.options).episodes == ()
    assert_episode(read[0], make_arrays(40), 40)
    assert files_in(spools) == []


def test_starting_an_episode_without_the_bucket_is_a_recording_error(s3: servers.Server, schema: salus.Schema) -> None:
    with Proxy(s3.options["endpoint"]) as proxy:
        options = s3.options | {"endpoint": proxy.endpoint, "retry_config": {"max_retries": 0}}
        dataset = create(s3._replace(options=options), schema)
        with salus.Recorder(dataset) as recorder, proxy.outage(), pytest.raises(salus.RecordingError, match="claim"):
            recorder.start()
        with salus.Recorder(dataset) as recorder:
            recorder.record_episode(make_arrays(20))


# --- recovering ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_one", [False, True])
def test_the_spool_of_a_machine_of_the_same_name_is_not_taken_for_an_empty_one(
    s3: servers.Server, schema: salus.Schema, spools: Path, *, has_one: bool
) -> None:
    dataset = create(s3, schema)
    uid = kill_a_recorder(dataset, s3, stuck=True)
    elsewhere = spools.rename(spools.with_name("elsewhere"))  # of this path, here is none, or another one
    if has_one:
        salus.Recorder(dataset).close()
    assert [each.state for each in dataset.unfinished()] == ["other host"]
    (left,) = salus.recover(dataset.url, storage_options=s3.options).episodes
    assert (left.action, left.lost_steps) == ("left", None)
    assert f"in the spool {spools}" in left.reason
    assert "of another machine or container with the name" in left.reason
    shutil.rmtree(spools, ignore_errors=True)
    elsewhere.rename(spools)
    salus.recover(dataset.url, storage_options=s3.options)
    assert_episode(open_again(dataset, s3)[uid], make_arrays(90, 7), 90)


def test_giving_up_an_episode_in_another_spool_is_said_to_lose_something(
    s3: servers.Server, schema: salus.Schema, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = create(s3, schema)
    kill_a_recorder(dataset, s3, stuck=True)
    monkeypatch.setenv("SALUS_SPOOL", str(tmp_path / "elsewhere"))
    report = salus.recover(dataset.url, force=True, storage_options=s3.options)
    assert [(each.action, each.lost_steps) for each in report.episodes] == [("aborted", None)]
    assert report.something_was_lost
    assert "its journal is in the spool" in report.episodes[0].reason


class LateUpload:
    """The recorder that gave up brings a shard, and removes it from the spool, while the recoverer looks at it."""

    def __init__(self, spools: Path) -> None:
        self.spools = spools
        self.came = 0

    def __call__(self, storage: ObjectStorage, key: str) -> None:
        for path in self.spools.rglob("images.0.shard"):
            self.came += 1
            storage.put_new(key, path.read_bytes())
            path.unlink()


@pytest.mark.parametrize("step", ["open_shard", "put_new_file"])
def test_a_recorder_that_gave_up_may_bring_a_shard_while_it_is_recovered(
    s3: servers.Server,
    schema: salus.Schema,
    network: Network,
    spools: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    dataset, arrays = create(s3, schema), make_arrays(40)
    network.stuck = "images/"
    with salus.Recorder(dataset, upload_within_s=0.3) as recorder, pytest.raises(CommitUnknownError):
        recorder.record_episode(arrays)
    network.stuck = None
    late, done = LateUpload(spools), getattr(ObjectStorage, step)

    def interrupted(storage: ObjectStorage, key: str, *args: Any) -> Any:
        if step == "open_shard":
            found = done(storage, key)
            if key == "images/c.0.0.0.0.0":
                late(storage, key)
            return found
        if key == "images/c.0.0.0.0.0":
            late(storage, key)
        return done(storage, key, *args)

    monkeypatch.setattr(ObjectStorage, step, interrupted)
    (found,) = salus.recover(dataset.url, storage_options=s3.options).episodes
    assert late.came == 1
    assert (found.action, found.num_steps, found.lost_steps) == ("salvaged", 40, 0)
    assert_episode(open_again(dataset, s3)[found.uid], arrays, 40)


def test_an_episode_that_its_recorder_discards_while_it_is_recovered_is_left(
    s3: servers.Server, schema: salus.Schema, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = create(s3, schema)
    with salus.Recorder(dataset, upload_within_s=0.3) as recorder:
        episode = recorder.start()
        for step in steps_of(make_arrays(40)):
            episode.append(step)
        network.stuck = "images/"
        with pytest.raises(CommitUnknownError):
            episode.commit()
        network.stuck = None
        put_new_file = ObjectStorage.put_new_file

        def put(storage: ObjectStorage, key: str, source: Path) -> None:
            if episode.state == "failed":
                episode.discard()
            put_new_file(storage, key, source)

        monkeypatch.setattr(ObjectStorage, "put_new_file", put)
        (found,) = salus.recover(dataset.url, storage_options=s3.options).episodes
    assert (found.action, episode.state) == ("left", "discarded")
    assert "ended it, in this moment" in found.reason
    assert open_again(dataset, s3).unfinished() == []


def test_an_episode_that_was_discarded_without_the_network_does_not_come_back(
    s3: servers.Server, schema: salus.Schema, network: Network, spools: Path
) -> None:
    dataset = create(s3, schema)
    with salus.Recorder(dataset, upload_within_s=0.3) as recorder:
        episode = recorder.start()
        for step in steps_of(make_arrays(40)):
            episode.append(step)
        network.away.set()
        with pytest.raises(CommitUnknownError, match="is kept in .*salus.recover.* marks it as aborted"):
            episode.discard(reason="operator")
    network.away.clear()
    (found,) = salus.recover(dataset.url, storage_options=s3.options).episodes
    assert (found.action, found.lost_steps, found.reason) == ("aborted", 0, "it was discarded: operator")
    assert len(open_again(dataset, s3)) == 0
    assert files_in(spools) == []
