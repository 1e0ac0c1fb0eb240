"""`salus.copy`: whole, checked, resumed, and never over something else."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

import salus
from salus import documents
from salus.cli.copying import split_tag
from salus.errors import AlreadyExistsError, InvalidInputError
from salus.layout import checkpoint_key, record_key, tag_key
from salus.log.entries import Entries
from salus.log.snapshot import Snapshot, load
from salus.storage import LocalStorage

from .cloud import servers
from .conftest import make_arrays


def assert_same(copy: salus.DatasetView, original: salus.DatasetView) -> None:
    assert [episode.uid for episode in copy] == [episode.uid for episode in original]
    for episode, other in zip(copy, original, strict=True):
        assert (episode.metadata, episode.outcome) == (other.metadata, other.outcome)
        for name in other.schema.features:
            np.testing.assert_array_equal(episode[name][:], other[name][:])


def amended(dataset: salus.Dataset) -> salus.Dataset:
    """With an episode deleted, one corrected, one aborted, one unfinished, and two tags."""
    dataset = salus.open(dataset.url, mode="a")
    dataset.tag("all")
    dataset.delete(1)
    dataset.refresh().set_outcome(0, "failure")
    with salus.Recorder(dataset) as recorder:
        recorder.start().discard(reason="operator")
        recorder.record_episode(make_arrays(9, 9), task="last")
    dataset.refresh().tag("amended")
    return salus.open(dataset.url)


def test_a_copy_is_the_same_dataset(dataset: salus.Dataset, tmp_path: Path) -> None:
    original = amended(dataset)
    target = tmp_path / "copy.zarr"
    told = salus.copy(original.url, target, dry_run=True)
    assert (told.num_copied, told.bytes_copied > 0, target.exists()) == (7, True, False)
    report = salus.copy(original.url, target)
    assert (report.num_episodes, report.num_copied, report.num_present, report.problems) == (7, 7, 0, ())
    assert (report.num_linked, report.bytes_copied) == (report.num_shards, 0)
    copy = salus.open(target)
    assert_same(copy, original)
    assert copy.digest == original.digest
    assert salus.verify(target).findings == ()
    assert_same(salus.open(target, tag="all"), salus.open(original.url, tag="all"))
    plain = zarr.open_group(target, mode="r")
    np.testing.assert_array_equal(plain["images"][3, :33], original[2]["images"][:])
    assert plain["episode_length"][:].tolist() == zarr.open_group(original.url, mode="r")["episode_length"][:].tolist()


def test_a_second_copy_brings_over_what_is_new(dataset: salus.Dataset, tmp_path: Path) -> None:
    target = tmp_path / "copy.zarr"
    salus.copy(dataset.url, target)
    original = amended(dataset)
    report = salus.copy(original.url, target)
    assert (report.num_copied, report.num_present) == (2, 5)
    assert_same(salus.open(target), original)
    assert salus.verify(target).findings == ()
    again = salus.copy(original.url, target)
    assert (again.num_copied, again.num_shards, again.num_present) == (0, 0, 7)


def test_a_tag_is_copied_alone(dataset: salus.Dataset, tmp_path: Path) -> None:
    original, target = amended(dataset), tmp_path / "copy.zarr"
    salus.copy(original.url, target, tag="all")
    assert_same(salus.open(target), salus.open(original.url, tag="all"))
    assert salus.open(target).tags() == ["all"]


def test_a_damaged_episode_is_named_and_left_out(dataset: salus.Dataset, tmp_path: Path) -> None:
    salus.open(dataset.url, mode="a").tag("v1")
    shards = sorted(Path(dataset.url, "images").glob("c.*"))
    body = bytearray(shards[2].read_bytes())
    body[5] ^= 1
    shards[2].write_bytes(body)
    shards[0].unlink()
    report = salus.copy(dataset.url, tmp_path / "copy.zarr")
    assert [problem.slot for problem in report.problems] == sorted({0, int(shards[2].name.split(".")[1])})
    assert report.tags_left_out == ("v1",)
    assert "it has no bytes" in report.problems[0].failed
    assert shards[0].name in report.problems[0].failed
    assert "sha256 does not hold" in report.problems[-1].failed
    copy = salus.open(tmp_path / "copy.zarr")
    left_out = {problem.uid for problem in report.problems}
    assert [episode.uid for episode in copy] == [e.uid for e in dataset if e.uid not in left_out]
    assert salus.verify(copy).findings == ()


def test_a_copy_that_was_killed_goes_on(dataset: salus.Dataset, tmp_path: Path) -> None:
    with salus.Recorder(salus.open(dataset.url, mode="a")) as recorder:
        for seed in range(120):
            recorder.record_episode(make_arrays(20, seed))
    original, target = amended(dataset), tmp_path / "copy.zarr"
    seen = set()
    for kill in range(6):
        command = [sys.executable, "-W", "ignore", "-m", "salus.cli", "cp", original.url, str(target), "--threads", "2"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list((target / "_salus/log").rglob(f"*{20 * kill + 5:010d}.json")):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        copy = salus.open(target)
        assert [e.uid for e in copy] == [e.uid for e in original if e.uid in {e.uid for e in copy}]
        assert all(len(episode["images"][:]) == len(episode) for episode in copy)
        seen.add(len(copy))
    assert len(seen) > 2, "it was never killed on the way"
    salus.copy(original.url, target)
    assert_same(salus.open(target), original)
    assert {finding.kind for finding in salus.verify(target).findings} <= {"temporary"}  # of what it was killed in


def test_nothing_is_copied_over_something_else(dataset: salus.Dataset, schema: salus.Schema, tmp_path: Path) -> None:
    other = salus.create(tmp_path / "other.zarr", schema)
    with pytest.raises(InvalidInputError, match=r"another dataset, expected a copy of .*; .*other\.zarr"):
        salus.copy(dataset.url, other.url)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").touch()
    with pytest.raises(AlreadyExistsError, match="not empty"):
        salus.copy(dataset.url, tmp_path / "folder")
    with pytest.raises(InvalidInputError, match="the target is the source"):
        salus.copy(dataset.url, dataset.url)
    with pytest.raises(InvalidInputError, match="one of the two is in the other"):
        salus.copy(dataset.url, Path(dataset.url) / "copy.zarr")
    target = tmp_path / "copy.zarr"
    salus.copy(dataset.url, target)
    for path in (dataset.url, target):  # both go on by themselves
        with salus.Recorder(salus.open(path, mode="a")) as recorder:
            recorder.record_episode(make_arrays(5))
    kept = salus.open(target)[5].uid
    with pytest.raises(AlreadyExistsError):
        salus.copy(dataset.url, target)
    assert salus.open(target)[5].uid == kept


def test_the_source_keeps_its_files_where_links_are_refused(
    dataset: salus.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:  # as vfat does, and Linux for a file of another user
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    report = salus.copy(dataset.url, tmp_path / "copy.zarr")
    assert (report.num_linked, report.bytes_copied > 0) == (0, True)
    assert salus.verify(dataset.url).findings == ()
    assert salus.verify(tmp_path / "copy.zarr").findings == ()
    assert not list((tmp_path / "copy.zarr").rglob("*.tmp"))


def test_who_records_into_the_target_loses_nothing(dataset: salus.Dataset, tmp_path: Path) -> None:
    target = tmp_path / "copy.zarr"
    salus.copy(dataset.url, target)
    with salus.Recorder(salus.open(dataset.url, mode="a")) as recorder:
        recorder.record_episode(make_arrays(20))
    with salus.Recorder(salus.open(target, mode="a")) as recorder, recorder.episode() as episode:
        for step in range(40):
            if step == 5:
                with pytest.raises(AlreadyExistsError, match="slot 5 of the target is taken"):
                    salus.copy(dataset.url, target)
            episode.append({name: values[step] for name, values in make_arrays(40, 7).items()})
    np.testing.assert_array_equal(salus.open(target)[5]["images"][:], make_arrays(40, 7)["images"])


def test_a_tag_that_is_made_meanwhile_waits_for_the_next_copy(dataset: salus.Dataset, tmp_path: Path) -> None:
    def go_on(done: int, total: int) -> None:
        if done == 1:
            with salus.Recorder(salus.open(dataset.url, mode="a")) as recorder:
                recorder.record_episode(make_arrays(9))
            salus.open(dataset.url, mode="a").tag("meanwhile")

    target = tmp_path / "copy.zarr"
    salus.copy(dataset.url, target, on_progress=go_on)
    assert salus.open(target).tags() == []
    salus.copy(dataset.url, target)
    assert_same(salus.open(target, tag="meanwhile"), salus.open(dataset.url))


def test_what_a_copy_that_was_cut_off_left_is_checked(dataset: salus.Dataset, tmp_path: Path) -> None:
    source, target = Path(dataset.url), tmp_path / "copy.zarr"
    salus.copy(dataset.url, target)
    with salus.Recorder(salus.open(dataset.url, mode="a")) as recorder:
        recorder.record_episode(make_arrays(20))
    shard = next((source / "states").glob("c.5.*"))
    body = bytearray(shard.read_bytes())
    body[3] ^= 1
    (target / "states" / shard.name).write_bytes(body)
    with pytest.raises(AlreadyExistsError, match=shard.name):
        salus.copy(dataset.url, target)
    (target / "states" / shard.name).write_bytes(shard.read_bytes())
    assert salus.copy(dataset.url, target).num_copied == 1
    assert salus.verify(target).findings == ()


@pytest.mark.parametrize("tag", [None, "v1"])
def test_no_key_of_a_stranger_leads_out_of_the_target(dataset: salus.Dataset, tmp_path: Path, tag: str | None) -> None:
    """A checkpoint or a tag can name a record by its digest, and nobody ever looked at the keys of its shards."""
    evil, key, path = b"ssh-ed25519 stranger", "images/../../escaped", Path(dataset.url, record_key(0))
    (Path(dataset.url).parent / "escaped").write_bytes(evil)
    storage = LocalStorage(Path(dataset.url))
    first, *others = load(storage).decided
    document = documents.unseal(path.read_bytes(), key="record")
    document["shards"][0] |= {"key": key, "size": len(evil), "sha256": hashlib.sha256(evil).hexdigest()}
    path.unlink()
    path.write_bytes(documents.seal({name: value for name, value in document.items() if name != "write_id"}))
    named = first._replace(digest=documents.digest_of(path.read_bytes()))
    body = Snapshot(Entries.of([named, *others]), ()).to_json()
    storage.put_new(
        checkpoint_key(0) if tag is None else tag_key(tag),
        documents.seal({"name": tag, "author": "", "time_ns": 0, **body}),
    )
    victim = tmp_path / "victim" / "copy.zarr"
    report = salus.copy(dataset.url, victim, tag=tag)
    assert [problem.slot for problem in report.problems] == [0]
    assert not (tmp_path / "victim" / "escaped").exists()


@pytest.mark.parametrize("store", ["moto", "azurite"])
def test_a_dataset_goes_into_a_bucket_and_back(
    store: str, stores: Callable[[str], servers.Server], dataset: salus.Dataset, tmp_path: Path
) -> None:
    server, original = stores(store), amended(dataset)
    url = f"{server.url}/copies/{os.urandom(4).hex()}/data.zarr"
    report = salus.copy(original.url, url, target_options=server.options)
    assert (report.num_linked, report.bytes_copied > 0) == (0, True)
    assert_same(salus.open(url, storage_options=server.options), original)
    assert salus.verify(url, storage_options=server.options).findings == ()
    second = f"{server.url}/copies/{os.urandom(4).hex()}/data.zarr"
    salus.copy(url, second, source_options=server.options, target_options=server.options)
    with pytest.raises(InvalidInputError, match="one of the two is in the other"):
        salus.copy(url, f"{url}/copy.zarr", source_options=server.options, target_options=server.options)
    salus.copy(second, tmp_path / "back.zarr", source_options=server.options)
    assert_same(salus.open(tmp_path / "back.zarr"), original)
    assert salus.verify(tmp_path / "back.zarr").findings == ()


def test_the_commands(dataset: salus.Dataset, tmp_path: Path) -> None:
    original, target = amended(dataset), tmp_path / "copy.zarr"
    salus_ = [sys.executable, "-m", "salus.cli"]
    done = subprocess.run(
        [*salus_, "push", f"{original.url}@all", str(target), "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["num_copied"] == 5
    done = subprocess.run([*salus_, "pull", original.url, str(target)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("2 of 7 slots copied")
    shard = next(Path(original.url, "images").glob("c.6.*"))
    shard.write_bytes(b"")
    done = subprocess.run(
        [*salus_, "cp", original.url, str(tmp_path / "b.zarr")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 11
    assert done.stdout.startswith("not copied: slot 6")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("data.zarr", ("data.zarr", None)),
        ("data.zarr@v1", ("data.zarr", "v1")),
        ("s3://user@host/data.zarr", ("s3://user@host/data.zarr", None)),
        ("a@b/data.zarr@v1.2", ("a@b/data.zarr", "v1.2")),
        ("@home", ("@home", None)),
        ("data.zarr/", ("data.zarr/", None)),
    ],
)
def test_the_tag_is_what_comes_after_the_last_at(source: str, expected: tuple[str, str | None]) -> None:
    assert split_tag(source) == expected
