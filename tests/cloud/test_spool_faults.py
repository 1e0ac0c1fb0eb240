"""Recording into a bucket where the spool, the bucket or the machine fails: nothing is lost that is said to be kept."""

from __future__ import annotations

import errno
import itertools
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
from .test_recording import assert_episode, create, files_in, open_again

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
