"""Recording into a bucket: through a spool on this machine, which outlives both the network and the process."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import salus
from salus.errors import CommitUnknownError, InvalidInputError, QueueFullError
from salus.log.spool import spool_of

from ..conftest import make_arrays, steps_of
from . import servers
from .conftest import Network
from .proxy import Proxy

_datasets = itertools.count()


@pytest.fixture(params=servers.SERVERS)
def server(request: pytest.FixtureRequest, stores: Callable[[str], servers.Server]) -> servers.Server:
    """Each kind of store, with an empty place in it."""
    server = stores(request.param)
    return server._replace(url=f"{server.url}/recorded-{next(_datasets)}")


def create(server: servers.Server, schema: salus.Schema) -> salus.Dataset:
    return salus.create(f"{server.url}/data.zarr", schema, storage_options=server.options)


def open_again(dataset: salus.Dataset, server: servers.Server, mode: Any = "r") -> salus.Dataset:
    return salus.open(dataset.url, mode, storage_options=server.options)


def files_in(spools: Path) -> list[str]:
    return [path.name for path in spools.rglob("*") if path.is_file() and path.name != "spool"]  # its id stays


def assert_episode(episode: salus.Episode, arrays: dict[str, np.ndarray], num_steps: int) -> None:
    assert len(episode) == num_steps
    for name, values in arrays.items():
        np.testing.assert_array_equal(episode[name][:], values[:num_steps])


def test_episodes_are_recorded_into_a_bucket(server: servers.Server, schema: salus.Schema, spools: Path) -> None:
    dataset = create(server, schema)
    with salus.Recorder(dataset) as recorder:
        whole = recorder.record_episode(make_arrays(40, 0), task="whole")
        with recorder.episode(task="steps") as episode:
            for step in steps_of(make_arrays(53, 1)):
                episode.append(step)
            episode.fail("drop")
        recorder.start(task="dropped").discard(reason="operator")
        with recorder.vector(2) as vector:
            for step in zip(steps_of(make_arrays(20, 2)), steps_of(make_arrays(20, 3)), strict=True):
                vector.append({name: [each[name] for each in step] for name in step[0]})
            futures = vector.end([0, 1], metadata=[{"task": "vector"}] * 2)
            uids = [future.result().uid for future in futures]
        status = recorder.upload_status
    assert status is not None
    assert (status.depth_bytes, status.failures, status.error) == (0, 0, "")
    assert status.uploaded_bytes > 0
    assert files_in(spools) == []
    read = open_again(dataset, server)
    assert [episode.uid for episode in read] == [whole.uid, episode.uid, *uids]
    for number, num_steps in enumerate((40, 53, 20, 20)):
        assert_episode(read[number], make_arrays(num_steps, number), num_steps)
    assert read[1].outcome == salus.Outcome("failure", "drop", 52)
    assert salus.verify(read).findings == ()
    assert read.unfinished() == []


def test_plain_zarr_reads_what_was_recorded_into_a_bucket(s3: servers.Server, schema: salus.Schema) -> None:
    dataset = create(s3, schema)
    arrays = make_arrays(40)
    with salus.Recorder(dataset) as recorder:
        entry = recorder.record_episode(arrays)
    named = {"key": s3.options["access_key_id"], "secret": s3.options["secret_access_key"]}
    client = {"endpoint_url": s3.options["endpoint"], "region_name": s3.options["region"]}
    group = zarr.open(dataset.url, mode="r", storage_options={**named, "client_kwargs": client})
    np.testing.assert_array_equal(group["images"][entry.slot, :40], arrays["images"])


# --- a network that goes away -------------------------------------------------------------------------------------


def test_recording_goes_on_while_the_network_is_away(
    s3: servers.Server, schema: salus.Schema, spools: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arrays = make_arrays(100)
    with Proxy(s3.options["endpoint"]) as proxy:
        behind = s3._replace(options=s3.options | {"endpoint": proxy.endpoint, "retry_config": {"max_retries": 0}})
        dataset = create(behind, schema)
        with salus.Recorder(dataset) as recorder:
            episode = recorder.start()
            outage = ExitStack()
            outage.enter_context(proxy.outage())
            for step in steps_of(arrays):
                episode.append(step)  # six segments
            while recorder.upload_status.failures < 2:  # type: ignore[union-attr]
                time.sleep(0.01)
            assert recorder.upload_status.depth_bytes > 0  # type: ignore[union-attr]
            assert recorder.upload_status.error  # type: ignore[union-attr]
            threading.Timer(0.3, outage.close).start()
            entry = episode.commit()
    assert_episode(open_again(dataset, s3)[entry.uid], arrays, 100)
    assert files_in(spools) == []
    said = capfd.readouterr().err.splitlines()
    assert [line.partition(";")[0] for line in said] == [
        "salus: uploading fails and is tried again, recording goes on into the spool",
        "salus: uploading goes on",
    ]


def test_a_full_spool_is_never_silent(s3: servers.Server, schema: salus.Schema, network: Network) -> None:
    dataset, arrays = create(s3, schema), make_arrays(400)
    with salus.Recorder(dataset, spool_bytes=20_000, queue_bytes=20_000, when_full="raise") as recorder:
        episode = recorder.start()
        network.away.set()
        kept = refused = 0
        for step in itertools.cycle(steps_of(arrays)):
            try:
                episode.append(step)
                kept += 1
            except QueueFullError:
                refused += 1
                if recorder.upload_status.depth_bytes > 20_000:  # type: ignore[union-attr]
                    break
                time.sleep(0.01)  # only the queue was full
        network.away.clear()
        entry = episode.commit()
        assert recorder.upload_status.waits > 0  # type: ignore[union-attr]
        assert recorder.queue_status.refused_steps == refused
    assert entry.num_steps == kept


def test_what_the_bucket_does_not_confirm_is_kept_for_recover(
    s3: servers.Server, schema: salus.Schema, network: Network, spools: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset, arrays = create(s3, schema), make_arrays(40)
    with suppress(CommitUnknownError), salus.Recorder(dataset, upload_within_s=0.5) as recorder:
        with pytest.raises(CommitUnknownError, match="did not confirm .* is kept in .*salus.recover"):
            with recorder.episode(task="away") as episode:
                network.away.set()
                for step in steps_of(arrays):
                    episode.append(step)
        assert episode.state == "failed"
    assert "uploading goes on" not in capfd.readouterr().err
    network.away.clear()
    report = salus.recover(dataset.url, storage_options=s3.options)
    assert [(each.action, each.num_steps, each.lost_steps) for each in report.episodes] == [("salvaged", 40, 0)]
    assert_episode(open_again(dataset, s3)[episode.uid], arrays, 40)
    assert files_in(spools) == []


def test_a_discarded_episode_waits_for_no_upload_and_leaves_nothing_in_the_spool(
    s3: servers.Server, schema: salus.Schema, network: Network, spools: Path
) -> None:
    dataset = create(s3, schema)
    network.stuck = "images/"
    with salus.Recorder(dataset, spool_bytes=1) as recorder:
        episode = recorder.start()
        for step in steps_of(make_arrays(40)):
            episode.append(step)
        while not recorder.upload_status.failures:  # type: ignore[union-attr]
            time.sleep(0.01)
        episode.discard()
    assert episode.state == "discarded"
    assert files_in(spools) == []
    assert len(open_again(dataset, s3)) == 0
    assert open_again(dataset, s3).unfinished() == []


# --- a process that dies ------------------------------------------------------------------------------------------

_RECORDING = """
import json, sys, time
from pathlib import Path
import salus
from salus.errors import CommitUnknownError
from salus.storage import ObjectStorage
from tests.conftest import make_arrays, steps_of

url, options, stuck = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3] == "stuck"
recorder = salus.Recorder(salus.open(url, mode="a", storage_options=options))
episode = recorder.start(task="killed")
if stuck:
    def put_new_file(storage, key, source):
        raise CommitUnknownError(f"put {key}: the network is away")
    ObjectStorage.put_new_file = put_new_file
for number, step in enumerate(steps_of(make_arrays(90, 7))):
    episode.append(step)
if not stuck:
    while recorder.upload_status.depth_bytes or not recorder.upload_status.uploaded_bytes:
        time.sleep(0.01)
while recorder.queue_status.depth_bytes:
    time.sleep(0.01)
time.sleep(1)  # what was recorded is durable after half a second
print(episode.uid, flush=True)
time.sleep(600)
"""


def kill_a_recorder(dataset: salus.Dataset, server: servers.Server, *, stuck: bool) -> str:
    """Record 90 steps in another process and kill it before the commit; returns the uid."""
    how = "stuck" if stuck else "uploading"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _RECORDING, dataset.url, json.dumps(server.options), how],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        uid = process.stdout.readline().strip()
    process.kill()
    process.wait()
    assert uid
    return uid


@pytest.mark.parametrize("stuck", [False, True], ids=["uploaded", "spooled"])
def test_recover_uploads_what_a_killed_recorder_left(
    s3: servers.Server, schema: salus.Schema, spools: Path, *, stuck: bool
) -> None:
    dataset = create(s3, schema)
    uid = kill_a_recorder(dataset, s3, stuck=stuck)
    spooled = [name for name in files_in(spools) if name.endswith(".0.shard")]
    assert bool(spooled) == stuck
    assert [(each.uid, each.state) for each in dataset.unfinished()] == [(uid, "dead")]
    told = salus.recover(dataset.url, dry_run=True, storage_options=s3.options)
    assert [(each.action, each.num_steps) for each in told.episodes] == [("salvaged", 90)]
    assert len(open_again(dataset, s3)) == 0
    report = salus.recover(dataset.url, storage_options=s3.options)
    assert [(each.uid, each.action, each.num_steps, each.lost_steps) for each in report.episodes] == [
        (uid, "salvaged", 90, 0)
    ]
    read = open_again(dataset, s3)
    assert_episode(read[uid], make_arrays(90, 7), 90)
    assert read[uid].metadata["task"] == "killed"
    assert salus.verify(read).findings == ()
    assert files_in(spools) == []


def test_recover_with_another_spool_leaves_the_episode_and_says_where_it_is(
    s3: servers.Server, schema: salus.Schema, spools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = create(s3, schema)
    uid = kill_a_recorder(dataset, s3, stuck=True)
    monkeypatch.setenv("SALUS_SPOOL", str(tmp_path / "elsewhere"))
    (left,) = salus.recover(dataset.url, storage_options=s3.options).episodes
    assert left.action == "left"
    assert str(spools) in left.reason
    monkeypatch.setenv("SALUS_SPOOL", str(spools))
    salus.recover(dataset.url, storage_options=s3.options)
    assert_episode(open_again(dataset, s3)[uid], make_arrays(90, 7), 90)


def test_a_spool_that_cannot_be_made_is_refused(
    s3: servers.Server, schema: salus.Schema, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = create(s3, schema)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("SALUS_SPOOL", str(tmp_path / "file"))
    with pytest.raises(salus.RecordingError, match="spool .* cannot be made: File exists; set SALUS_SPOOL"):
        salus.Recorder(dataset)
    with pytest.raises(InvalidInputError, match="spool_bytes=0"):
        salus.Recorder(dataset, spool_bytes=0)


def test_each_dataset_has_a_spool_of_its_own(s3: servers.Server, schema: salus.Schema) -> None:
    dataset = create(s3, schema)
    other = create(s3._replace(url=f"{s3.url}/other"), schema)
    first, second = spool_of(dataset.storage), spool_of(other.storage)
    assert first.root != second.root
    assert spool_of(open_again(dataset, s3).storage).root == first.root
