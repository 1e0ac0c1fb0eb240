"""`salus.verify`: what it finds, what it calls it, what it mends, and what readers get of damaged episodes.

tests/faults/test_bit_flips.py changes every byte of a small dataset; here whole verifications run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner, Result

import salus
from salus import documents
from salus.cli.app import app
from salus.codecs import encode_chunk
from salus.errors import CorruptDataError, InvalidInputError, NotFoundError
from salus.layout import array_specs, checkpoint_key, record_key
from salus.log.records import Record
from salus.log.snapshot import load
from salus.shards import ShardInfo, whole_shard
from salus.verification import Finding, VerifyReport, derived

from .faults.test_bit_flips import LENGTHS, make_dataset, make_steps

CAMERA = "camera/c.0.0.0.0.0"
RECORD = "_salus/log/0/0000000001.json"


PUBLISHED_WITHIN_S = derived.PUBLISHED_WITHIN_S


@pytest.fixture(autouse=True)
def _nobody_publishes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is derived is looked at again at once: nobody publishes meanwhile, but in one test."""
    monkeypatch.setattr(derived, "PUBLISHED_WITHIN_S", 0)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes of two segments; 1 is amended, 2 deleted. One checkpoint, one tag."""
    path = tmp_path_factory.mktemp("original") / "data.zarr"
    make_dataset(path)
    return path


@pytest.fixture
def path(tmp_path: Path, original: Path) -> Path:
    """A copy of it, to be damaged."""
    shutil.copytree(original, tmp_path / "data.zarr")
    return tmp_path / "data.zarr"


def flip(file: Path, place: int = -9) -> bytes:
    """Change one bit of a file; returns what it was."""
    before = file.read_bytes()
    after = bytearray(before)
    after[place] ^= 4
    file.write_bytes(after)
    return before


def found(report: VerifyReport) -> set[tuple[str, str, str]]:
    return {(finding.severity, finding.kind, finding.key) for finding in report.findings}


def test_a_whole_dataset_has_no_findings_and_tells_what_was_read(path: Path) -> None:
    progress: list[tuple[int, int]] = []
    report = salus.verify(path, threads=2, on_progress=lambda done, total: progress.append((done, total)))
    assert report.findings == ()
    assert report.is_whole
    assert not report.is_damaged
    decided = load(salus.open(path).storage).decided
    assert report.num_episodes == len(LENGTHS)  # the deleted one as well
    assert report.num_shards == sum(len(entry.shard_sizes) for entry in decided)
    assert report.bytes_read == sum(entry.stored_bytes for entry in decided)
    assert progress == [(done, len(LENGTHS)) for done in range(len(LENGTHS) + 1)]
    assert report.root_digest == salus.open(path).digest


@pytest.mark.parametrize(
    ("key", "severity", "kind"),
    [
        (CAMERA, "damage", "shard"),
        ("say/c.2.1", "damage", "shard"),  # of a deleted episode: it may be undeleted
        ("states.valid/c.1.0", "damage", "shard"),
        ("joints.timestamp_ns/c.1.0", "damage", "shard"),
        (RECORD, "damage", "record"),
        ("_salus/schema/000000.json", "damage", "schema"),
        ("_salus/schema/000001.json", "damage", "schema"),
        ("_salus/amendments/0000000000.json", "damage", "amendment"),
        ("_salus/tags/v1.json", "damage", "tag"),
        ("_salus/checkpoints/0000000000.json", "derived", "checkpoint"),
        ("zarr.json", "derived", "metadata"),
        ("camera/zarr.json", "derived", "metadata"),
        ("episode_length/c.0", "derived", "index"),
        ("joints.episode_length/c.0", "derived", "index"),
        ("episode_metadata/c.0", "derived", "index"),
        ("horizon_labels/c.0.0.0.0", "derived", "feature"),
        ("_salus/claims/0/0000000001", "leftover", "claim"),
    ],
)
def test_a_flipped_bit_is_found_and_repaired_where_nothing_is_lost(
    path: Path, key: str, severity: str, kind: str
) -> None:
    before = flip(path / key)
    report = salus.verify(path)
    assert (severity, kind, key) in found(report)
    assert report.is_damaged == (severity == "damage")
    finding = next(f for f in report.findings if f.key == key)
    assert finding.remedy
    if severity == "damage":
        assert salus.verify(path, repair=True).is_damaged
        assert salus.verify(path).is_damaged
        assert (path / key).read_bytes() != before  # nothing is made up
        (path / key).write_bytes(before)
        salus.verify(path, repair=True)
    else:
        assert found(report) == {(severity, kind, key)}
        assert salus.verify(path, repair=True).is_whole
    assert salus.verify(path).findings == ()
    assert [len(episode) for episode in salus.open(path)] == list(LENGTHS[:2])


def test_a_missing_or_truncated_file_is_found(path: Path) -> None:
    (path / CAMERA).unlink()
    (path / "say/c.1.0").write_bytes(b"")
    report = salus.verify(path)
    assert found(report) == {("damage", "shard", CAMERA), ("damage", "shard", "say/c.1.0")}
    assert [finding.failed for finding in report.findings] == ["it is missing", "its size"]
    assert report.findings[1].got == "0 bytes"


# --- quarantine --------------------------------------------------------------------------------------------------


def test_a_damaged_episode_is_quarantined_until_it_is_whole_again(path: Path) -> None:
    uid = salus.open(path)[0].uid
    number = len(list((path / "_salus/amendments").iterdir()))
    before = flip(path / CAMERA)
    report = salus.verify(path, repair=True)
    assert found(report) == {("damage", "shard", CAMERA)}
    assert "quarantined" in report.findings[0].remedy

    dataset = salus.open(path)
    assert dataset.episodes["status"] == ["corrupt", "committed"]
    for key in (0, uid):
        with pytest.raises(
            CorruptDataError, match=rf"episode {uid}: quarantined at .* UTC because of damage: {CAMERA}"
        ):
            dataset[key]
    with pytest.raises(CorruptDataError, match="quarantined"):
        dataset.gather({"camera": [(0, 1)]})
    with pytest.raises(CorruptDataError, match=r'on_corrupt="skip"'):
        next(iter(dataset.scan(["camera"])))
    assert [len(episode) for episode in dataset.select(status=("committed", "salvaged"))] == [LENGTHS[1]]
    skipping = salus.open(path, on_corrupt="skip")
    assert [len(episode) for episode in skipping] == [LENGTHS[1]]
    assert [len(episode) for episode in skipping.refresh()] == [LENGTHS[1]]
    assert len(list(skipping.scan(["camera"]))) == 1
    assert zarr.open_group(path, mode="r")["episode_length"][:].tolist() == [0, LENGTHS[1], 0]
    assert str(zarr.open_group(path, mode="r")["episode_metadata"][0]) == ""

    assert salus.verify(path, repair=True).is_damaged  # a second time changes nothing
    assert len(list((path / "_salus/amendments").iterdir())) == number + 1
    (path / CAMERA).write_bytes(before)
    assert salus.verify(path).is_whole
    assert salus.open(path).episodes["status"][0] == "corrupt"  # looking changes nothing
    assert salus.verify(path, repair=True).is_whole
    np.testing.assert_array_equal(salus.open(path)[uid]["camera"][:], make_steps(0)["camera"])
    assert zarr.open_group(path, mode="r")["episode_length"][:].tolist() == [*LENGTHS[:2], 0]


def test_repair_leaves_what_is_whole_as_it_is(path: Path) -> None:
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert salus.verify(path, repair=True).findings == ()
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_a_quarantined_episode_is_deleted_and_brought_back_by_uid(path: Path) -> None:
    uid = salus.open(path)[0].uid
    before = flip(path / CAMERA)
    salus.verify(path, repair=True)
    dataset = salus.open(path, mode="a")
    dataset.delete(uid)
    assert uid not in dataset.refresh()
    (path / CAMERA).write_bytes(before)
    assert salus.verify(path, repair=True).is_whole
    dataset.undelete(uid)
    assert len(dataset.refresh()[uid]) == LENGTHS[0]


def test_a_shard_of_another_episode_is_found_and_read_no_more_after_repair(path: Path) -> None:
    twin = path / "camera/c.2.0.0.0.0"
    assert twin.stat().st_size == (path / CAMERA).stat().st_size
    shutil.copyfile(twin, path / CAMERA)
    with pytest.raises(CorruptDataError, match="another shard is in its place: it ends in 'salus "):
        salus.open(path)[0]["camera"][:]
    (finding,) = salus.verify(path, repair=True).findings
    assert (finding.severity, finding.key) == ("damage", CAMERA)
    assert "another shard is in its place" in finding.failed
    with pytest.raises(CorruptDataError, match="quarantined"):
        salus.open(path)[0]


def test_a_shard_with_other_content_and_checksums_that_hold_is_found(path: Path) -> None:
    spec = array_specs(salus.open(path).schema)["states"]
    found = salus.open(path)[0]
    steps = found["states"][: spec.segment_steps]
    identity, file = spec.shard_identity(found.uid, 0), path / spec.shard_key(0, 0)
    size = file.stat().st_size
    for values in (steps[::-1], steps + 1):
        body = whole_shard(spec.chunks_per_shard, [encode_chunk(spec, np.ascontiguousarray(values))], identity)
        file.write_bytes(body)
        (finding,) = salus.verify(path).findings
        assert ("other content, whose own checksums hold" if len(body) == size else "its size") in finding.failed
    assert len(body) == size, "no content of equal size: the test lost its point"


def test_skip_leaves_out_records_that_do_not_hold_too(path: Path) -> None:
    flip(path / RECORD)
    (path / "_salus/checkpoints/0000000000.json").unlink()
    assert salus.open(path).episodes["status"] == ["committed", "corrupt"]
    assert salus.open(path, on_corrupt="skip").episodes["status"] == ["committed"]
    with pytest.raises(InvalidInputError, match="on_corrupt"):
        salus.open(path, on_corrupt="ignore")  # type: ignore[arg-type]


# --- documents ---------------------------------------------------------------------------------------------------


def test_a_lost_record_is_found_by_whoever_knows_it(path: Path) -> None:
    (path / RECORD).unlink()
    for witness in ("_salus/checkpoints/0000000000.json", "_salus/tags/v1.json", ""):
        (finding,) = [f for f in salus.verify(path).findings if f.severity == "damage"]
        assert (finding.kind, finding.key) == ("record", RECORD)
        assert finding.failed.startswith("it is missing")
        if witness:
            (path / witness).unlink()
    assert "episode_length and episode_metadata" in finding.failed


def test_a_lost_amendment_is_found(path: Path) -> None:
    (path / "_salus/amendments/0000000000.json").unlink()
    assert ("damage", "amendment", "_salus/amendments/0000000000.json") in found(salus.verify(path))


def test_the_last_amendment_is_known_to_tags(path: Path) -> None:
    last = "_salus/amendments/0000000001.json"
    (path / last).unlink()
    assert ("damage", "amendment", last) in found(salus.verify(path))


def test_repair_keeps_what_the_index_arrays_say_of_a_damaged_record(path: Path) -> None:
    flip(path / RECORD)
    shutil.rmtree(path / "_salus/checkpoints")  # so that nothing but the rows knows how long it is
    assert found(salus.verify(path)) == {("damage", "record", RECORD)}
    flip(path / "camera/zarr.json")
    salus.verify(path, repair=True)
    group = zarr.open_group(path, mode="r")
    assert group["episode_length"][1] == LENGTHS[1]
    assert json.loads(str(group["episode_metadata"][1]))["metadata"] == {"seed": 1}


def test_a_record_that_was_sealed_again_is_found_by_the_pinned_digest_alone(path: Path) -> None:
    for name in ("checkpoints", "tags"):
        shutil.rmtree(path / "_salus" / name)
    pinned = salus.verify(path).root_digest
    assert salus.verify(path, expect=pinned).is_whole
    record = Record.from_bytes((path / RECORD).read_bytes(), 1)
    (path / RECORD).write_bytes(replace(record, timestamp_source="forged").to_bytes())
    assert salus.verify(path).is_whole
    (finding,) = salus.verify(path, expect=pinned).findings
    assert (finding.kind, finding.severity, finding.expected) == ("digest", "damage", pinned)
    with pytest.raises(InvalidInputError, match="expect: got 'abc'"):
        salus.verify(path, expect="abc")


def test_a_checkpoint_that_disagrees_with_a_record_is_found(path: Path) -> None:
    record = Record.from_bytes((path / RECORD).read_bytes(), 1)
    (path / RECORD).write_bytes(replace(record, timestamp_source="forged").to_bytes())
    assert ("damage", "record", RECORD) in found(salus.verify(path))


def test_a_tag_keeps_its_digest_while_the_dataset_goes_on(path: Path) -> None:
    tagged = salus.open(path, tag="v1").digest
    assert tagged == salus.open(path).digest
    dataset = salus.open(path, mode="a")
    dataset.add_features({"latest": salus.Feature((1,))})
    dataset.set_outcome(0, "failure")
    assert dataset.refresh().digest != tagged
    assert salus.open(path, tag="v1").digest == tagged
    report = salus.verify(path, tag="v1", expect=tagged)
    assert report.is_whole
    assert report.num_episodes == len(LENGTHS)
    assert salus.verify(salus.open(path, tag="v1")).root_digest == tagged
    with pytest.raises(InvalidInputError, match="repair does not go with tag"):
        salus.verify(path, tag="v1", repair=True)


def test_every_amendment_and_every_record_changes_the_digest(path: Path) -> None:
    dataset = salus.open(path, mode="a")
    seen = {dataset.digest}

    def discard() -> None:
        with salus.Recorder(dataset) as recorder:
            recorder.start().discard()

    changes: tuple[Callable[[], Any], ...] = (
        lambda: dataset.update_metadata(0, {"a": 1}),
        lambda: dataset.delete(0),
        discard,
    )
    for number, change in enumerate(changes, 2):
        change()
        seen.add(dataset.refresh().digest)
        assert len(seen) == number


def test_what_was_recorded_wrong_is_told_from_what_changed(path: Path) -> None:
    # A writer with a fault: stamps that do not increase, under a record and checksums that hold.
    spec = array_specs(salus.open(path).schema)["timestamp_ns"]
    key = spec.shard_key(1, 0)
    chunk = encode_chunk(spec, np.array([3, 2, 1, 0], np.int64))
    record = Record.from_bytes((path / RECORD).read_bytes(), 1)
    body = whole_shard(spec.chunks_per_shard, [chunk], spec.shard_identity(record.uid, 0))
    (path / key).write_bytes(body)
    info = ShardInfo(key, len(body), 0, hashlib.sha256(body).hexdigest())
    shards = tuple(info if shard.key == key else shard for shard in record.shards)
    (path / RECORD).write_bytes(replace(record, shards=shards).to_bytes())
    for name in ("checkpoints", "tags"):
        shutil.rmtree(path / "_salus" / name)
    (finding,) = salus.verify(path).findings
    assert finding.key == key
    assert "it was recorded so: its stamps do not increase" in finding.failed


# --- leftovers ---------------------------------------------------------------------------------------------------


def test_what_belongs_to_nothing_is_named_and_stays(path: Path) -> None:
    strays = {
        "notes.txt": "orphan",
        "camera/c.9.0.0.0.0": "orphan",  # written past the log
        "camera/c.0.7.0.0.0": "orphan",  # past the end
        "camera/c.00.0.0.0.0": "orphan",
        "episode_length/c.5": "orphan",
        "_salus/log/0/note": "orphan",
        "_salus/tags/v1.json.bak": "orphan",
        "_salus/log/3/0000000001.json": "orphan",
    }
    for key in strays:
        (path / key).parent.mkdir(exist_ok=True)
        (path / key).write_bytes(b"x")
    os.mkfifo(path / "camera/pipe")
    (path / "elsewhere").symlink_to(path.parent)
    (path / "foreign").mkdir()
    expected = {("leftover", kind, key) for key, kind in strays.items()} | {
        ("leftover", "odd file", "camera/pipe"),
        ("leftover", "odd file", "elsewhere"),
        ("leftover", "orphan", "foreign"),
    }
    assert found(salus.verify(path)) == expected
    report = salus.verify(path, repair=True)
    assert found(report) == expected
    assert not report.is_whole
    assert not any(finding.repaired for finding in report.findings)
    assert all((path / key).exists() for key in strays)


def test_old_temporary_files_go_and_fresh_ones_stay(path: Path) -> None:
    old, fresh = (path / f"camera/.c.0.0.0.0.0.{digit * 16}.tmp" for digit in "ab")
    for file in (old, fresh):
        file.write_bytes(b"half")
    os.utime(old, (1, 1))
    assert {finding.kind for finding in salus.verify(path).findings} == {"temporary"}
    report = salus.verify(path, repair=True)
    assert {finding.key: finding.repaired for finding in report.findings} == {
        f"camera/{old.name}": True,
        f"camera/{fresh.name}": False,
    }
    assert not old.exists()
    assert fresh.exists()


def test_temporary_files_stay_while_a_recorder_lives(path: Path) -> None:
    temporary = path / f"camera/.c.0.0.0.0.0.{'a' * 16}.tmp"
    temporary.write_bytes(b"half")
    os.utime(temporary, (1, 1))
    with salus.Recorder(salus.open(path, mode="a")) as recorder:
        episode = recorder.start()
        episode.append({name: values[0] for name, values in make_steps(0).items()}, timestamp_ns=0)
        assert not salus.verify(path, repair=True).is_whole
        assert temporary.exists()
        episode.discard()


def test_a_link_in_the_place_of_a_file_is_damage(path: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes((path / CAMERA).read_bytes())
    (path / CAMERA).unlink()
    (path / CAMERA).symlink_to(tmp_path / "copy")
    assert found(salus.verify(path)) == {("damage", "shard", CAMERA), ("leftover", "odd file", CAMERA)}


def test_an_episode_that_is_recorded_meanwhile_is_no_finding(path: Path) -> None:
    with salus.Recorder(salus.open(path, mode="a")) as recorder:
        episode = recorder.start()
        episode.append({name: values[0] for name, values in make_steps(0).items()}, timestamp_ns=0)
        report = salus.verify(path)
        assert report.findings == ()
        assert report.num_recording == 1
        episode.commit()
    assert salus.verify(path).num_episodes == len(LENGTHS) + 1


def test_the_shards_of_an_aborted_episode_are_leftovers(path: Path) -> None:
    with salus.Recorder(salus.open(path, mode="a")) as recorder:
        recorder.start().discard()
    for segment in (0, 1):  # as after a crash, and a recovery that gave the episode up
        shutil.copyfile(path / CAMERA, path / f"camera/c.3.{segment}.0.0.0")
    (finding,) = salus.verify(path).findings
    assert (finding.severity, finding.kind, finding.slot) == ("leftover", "orphan", len(LENGTHS))
    assert finding.failed == "2 shards of an aborted episode"


def test_verifying_while_others_record_finds_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derived, "PUBLISHED_WITHIN_S", PUBLISHED_WITHIN_S)
    stop = threading.Event()
    dataset = salus.open(path, mode="a")

    def record() -> None:
        with salus.Recorder(dataset) as recorder:
            while not stop.wait(0.02):  # time to publish: with every new episode there is more to verify
                recorder.record_episode(make_steps(1))

    thread = threading.Thread(target=record)
    thread.start()
    try:
        for _ in range(3):
            report = salus.verify(path)
            assert {finding.kind for finding in report.findings} <= {"temporary"}, report.findings
    finally:
        stop.set()
        thread.join()
    assert salus.verify(path).is_whole


def test_what_was_committed_a_moment_ago_and_is_published_soon_is_no_finding(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derived, "PUBLISHED_WITHIN_S", PUBLISHED_WITHIN_S)
    with salus.Recorder(salus.open(path, mode="a")) as recorder:
        for _ in range(3):
            recorder.record_episode(make_steps(1))
        assert salus.verify(path).is_whole


# --- some episodes -----------------------------------------------------------------------------------------------


def test_what_is_no_dataset_is_refused(path: Path) -> None:
    dataset = salus.open(path)
    for other in (salus.concat([dataset, dataset]), 7, [dataset]):
        with pytest.raises(InvalidInputError, match=r"verify: got \w+, expected a path.* each of its `parts`"):
            salus.verify(other)  # type: ignore[arg-type]


def test_some_episodes_are_verified_alone(path: Path) -> None:
    deleted = load(salus.open(path).storage).decided[2].uid
    flip(path / CAMERA)
    flip(path / "zarr.json")
    assert salus.verify(path, episodes=1).is_whole
    assert salus.verify(path, episodes=deleted).is_whole
    assert salus.verify(salus.open(path)[1:]).is_whole
    for damaged in (salus.verify(path, episodes=[0, 1]), salus.verify(salus.open(path)[:1])):
        assert found(damaged) == {("damage", "shard", CAMERA)}
    assert salus.verify(path, episodes=[0, -1]).num_episodes == 2
    for wrong, error in ((7, NotFoundError), ("no-such-uid", NotFoundError), (1.5, InvalidInputError)):
        with pytest.raises(error, match="verify"):
            salus.verify(path, episodes=[wrong])  # type: ignore[list-item]
    salus.verify(path, episodes=0, repair=True)
    assert salus.open(path).episodes["status"] == ["corrupt", "committed"]


def test_what_is_no_dataset_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        salus.verify(tmp_path / "nothing")
    with pytest.raises(InvalidInputError, match="threads: got 0"):
        salus.verify(tmp_path, threads=0)


def test_many_checkpoints_and_only_bad_ones_are_written_anew(path: Path) -> None:
    dataset = salus.open(path, mode="a")
    dataset.storage.put_new(checkpoint_key(1), documents.seal(load(dataset.storage).to_json()))
    kept = (path / checkpoint_key(1)).read_bytes()
    flip(path / checkpoint_key(0))
    assert salus.verify(path, repair=True).is_whole
    assert (path / checkpoint_key(1)).read_bytes() == kept


# --- the command -------------------------------------------------------------------------------------------------


def command(*arguments: object, status: int) -> Result:
    done = CliRunner().invoke(app, ["verify", *map(str, arguments)], env={"COLUMNS": "200"})
    assert done.exit_code == status, done.output
    return done


def test_the_command_says_what_is_wrong_and_its_exit_status_how_bad_it_is(path: Path) -> None:
    pinned = salus.open(path).digest
    assert f"root digest {pinned}" in command(path, "--expect", pinned, status=0).output
    (path / "stray").touch()
    assert "leftover: no data depends on it" in command(path, status=12).output
    flip(path / CAMERA)
    output = command(path, status=11).output
    assert "damage: committed data is not what it was" in output
    assert CAMERA in output
    document = json.loads(command(path, "--json", "--episode", 0, status=11).stdout)
    assert [Finding(**finding).key for finding in document["findings"]] == [CAMERA]
    assert (document["damage"], document["leftover"]) == (1, 0)
    command(path, "--episode", 1, status=0)
    command(path, "--tag", "v1", status=11)
    (path / "stray").unlink()
    command(path, "--repair", status=11)


def test_the_command_does_not_print_thousands_of_lines_or_escapes(path: Path) -> None:
    for number in range(2000):
        (path / "camera" / f"\x1b[31m{number}").touch()
    output = command(path, status=12).output
    assert len(output.splitlines()) < 50
    assert "1990 more; --json lists all" in output
    assert "\x1b[31m" not in output
    assert len(json.loads(command(path, "--json", status=12).stdout)["findings"]) == 2000


def test_record_keys_are_where_these_tests_look() -> None:
    assert record_key(1) == RECORD
