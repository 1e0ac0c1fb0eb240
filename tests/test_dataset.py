"""Opening, the episode table, selections, amendments, tags, and the errors around them."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

import salus
from salus.errors import (
    AlreadyExistsError,
    CorruptDataError,
    FormatError,
    InvalidInputError,
    NotFoundError,
)

from .conftest import LENGTHS, make_arrays


def test_indexing_by_number_and_uid(dataset: salus.Dataset) -> None:
    assert len(dataset) == 5
    assert [len(episode) for episode in dataset] == list(LENGTHS)
    assert dataset[-1].uid == dataset[4].uid
    assert len(dataset[dataset[3].uid]) == 33
    assert [len(episode) for episode in dataset[1:3]] == [5, 16]


def test_membership_and_equality(dataset: salus.Dataset) -> None:
    failures = dataset.select(outcome="failure")
    assert dataset[1].uid in failures
    assert dataset[1] in failures
    assert dataset[0] not in failures
    assert dataset[1] == failures[0]
    assert len({dataset[1], failures[0], dataset[0]}) == 2


def test_indexing_errors(dataset: salus.Dataset) -> None:
    with pytest.raises(IndexError, match=r"episode 5: out of range, the dataset has 5"):
        dataset[5]
    with pytest.raises(NotFoundError, match="no episode with uid 'nope'"):
        dataset["nope"]
    with pytest.raises(InvalidInputError, match="episode: got float"):
        dataset[1.5]  # type: ignore[index]  # the error is the subject


def test_the_episode_table(dataset: salus.Dataset) -> None:
    table = dataset.episodes
    assert len(table) == 5
    assert table["num_steps"] == list(LENGTHS)
    assert table["outcome"] == ["success", "failure", "unknown", "failure", "success"]
    assert table["failure_kind"] == [None, "drop", None, "collision", None]
    assert table["failure_step"] == [None, 3, None, 30, None]
    assert table["task"] == ["task 0", "task 1", "task 0", "task 1", "task 0"]
    frame = table.to_pandas()
    assert frame["num_steps"].tolist() == list(LENGTHS)
    assert "collision" in repr(table)


def test_select_gives_a_view(dataset: salus.Dataset) -> None:
    failures = dataset.select(outcome="failure")
    assert [len(episode) for episode in failures] == [5, 33]
    assert len(failures.select(failure_kind="drop")) == 1
    assert len(dataset.select(outcome="failure", task="task 0")) == 0
    assert [e.metadata["n"] for e in dataset.select(where=lambda episode: episode.metadata["n"] > 2)] == [3, 4]
    assert [len(e) for e in dataset.select(uids=[dataset[4].uid, dataset[0].uid])] == [40, 20]
    with pytest.raises(InvalidInputError, match="outcome: got 'failed', expected one of"):
        dataset.select(outcome="failed")


def test_a_dataset_can_be_pickled_for_workers(dataset: salus.Dataset) -> None:
    copy = pickle.loads(pickle.dumps(dataset.select(outcome="failure")))  # noqa: S301 - our own bytes
    np.testing.assert_array_equal(copy[1]["states"][:], dataset[3]["states"][:])


def test_repr_shows_sizes_and_no_data(dataset: salus.Dataset) -> None:
    assert "5 episodes" in repr(dataset)
    assert "114 steps" in repr(dataset)
    assert "array(" not in repr(dataset[0])


# --- what may be opened ----------------------------------------------------------------------------------------


def test_a_missing_path(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"open: nothing is there.*salus.create"):
        salus.open(tmp_path / "none.zarr")


def test_a_folder_that_is_not_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(FormatError, match="not a SALUS dataset"):
        salus.open(tmp_path)
    with pytest.raises(FormatError, match="a file, expected a directory"):
        salus.open(tmp_path / "file.txt")


def test_creating_over_something(path: Path, schema: salus.Schema, tmp_path: Path) -> None:
    salus.create(path, schema)
    with pytest.raises(AlreadyExistsError, match=r'open\(.*mode="a"\)'):
        salus.create(path, schema)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    with pytest.raises(AlreadyExistsError, match="not empty"):
        salus.create(other, schema)


def test_create_exist_ok_opens_the_same_schema_and_shows_a_difference(path: Path, schema: salus.Schema) -> None:
    salus.create(path, schema)
    assert len(salus.create(path, schema, exist_ok=True)) == 0
    other = salus.Schema({"states": salus.Feature((8,))}, rate_hz=10)
    with pytest.raises(InvalidInputError) as info:
        salus.create(path, other, exist_ok=True)
    assert "rate_hz: the dataset has 50, got 10" in str(info.value)
    assert "states.shape: the dataset has [7], got [8]" in str(info.value)
    assert "images: the dataset has it, the given schema does not" in str(info.value)


def test_an_unknown_mode_or_place(path: Path, schema: salus.Schema) -> None:
    salus.create(path, schema)
    with pytest.raises(InvalidInputError, match='mode: got \'w\', expected "r" or "a"'):
        salus.open(path, mode="w")  # type: ignore[arg-type]  # the error is the subject
    with pytest.raises(
        InvalidInputError, match="path: got 'ftp://host/data.zarr', expected a local path, or one of s3:"
    ):
        salus.open("ftp://host/data.zarr")


def test_a_newer_format_names_what_it_needs(path: Path, schema: salus.Schema) -> None:
    salus.create(path, schema)
    from salus.documents import seal, unseal

    file = path / "_salus" / "schema" / "000000.json"
    document = unseal(file.read_bytes(), key="schema")
    document["format"] = 2
    file.write_bytes(seal(document))
    with pytest.raises(FormatError, match="format 2.*reads up to 1.*newer salus"):
        salus.open(path)


def test_a_store_written_by_plain_zarr_says_how_to_import(tmp_path: Path) -> None:
    import zarr

    root = zarr.open_group(tmp_path / "plain.zarr", mode="w")
    root.create_array("images", shape=(2, 5, 3, 8, 8), dtype="uint8")
    root.create_array("states", shape=(2, 5, 7), dtype="float32")
    with pytest.raises(FormatError) as info:
        salus.open(tmp_path / "plain.zarr")
    message = str(info.value)
    assert "plain Zarr v3 group" in message
    assert "images uint8 (2, 5, 3, 8, 8)" in message
    assert "record_episode" in message


# --- damage ----------------------------------------------------------------------------------------------------


def test_a_corrupt_record_keeps_its_place_and_the_others_stay_readable(path: Path, dataset: salus.Dataset) -> None:
    record = path / "_salus" / "log" / "0" / "0000000001.json"
    body = bytearray(record.read_bytes())
    body[len(body) // 2] ^= 1
    record.write_bytes(body)
    damaged = salus.open(path)
    assert len(damaged) == 5
    assert damaged.episodes["status"][1] == "corrupt"
    with pytest.raises(CorruptDataError, match="0000000001.json"):
        damaged[1]["states"][:]
    assert len(damaged[2]["states"][:]) == 16


def test_a_changed_byte_in_a_shard_is_an_error_that_names_the_episode(path: Path, dataset: salus.Dataset) -> None:
    shard = path / "states" / "c.3.1.0"
    body = bytearray(shard.read_bytes())
    body[10] ^= 4
    shard.write_bytes(body)
    damaged = salus.open(path)
    with pytest.raises(CorruptDataError, match=rf"{dataset[3].uid}.*crc32c.*states/c.3.1.0"):
        damaged[3]["states"][20]
    assert len(damaged[3]["states"][:16]) == 16


def test_a_missing_or_short_shard_is_an_error_and_never_zeros(path: Path, dataset: salus.Dataset) -> None:
    (path / "states" / "c.0.0.0").unlink()
    shard = path / "actions" / "c.0.0.0"
    shard.write_bytes(shard.read_bytes()[:-1])
    damaged = salus.open(path)
    with pytest.raises(CorruptDataError, match="missing"):
        damaged[0]["states"][0]
    with pytest.raises(CorruptDataError, match="bytes, expected"):
        damaged[0]["actions"][0]


def test_losing_every_derived_file_loses_nothing(path: Path, dataset: salus.Dataset, source: list) -> None:
    for name in ("episode_length", "episode_metadata"):
        for file in (path / name).iterdir():
            file.unlink()
    for file in path.rglob("zarr.json"):
        file.unlink()
    again = salus.open(path, mode="a")
    np.testing.assert_array_equal(again[3]["images"][:], source[3]["images"])
    again.publish()
    import zarr

    assert zarr.open(path, mode="r")["episode_length"][:].tolist() == list(LENGTHS)


# --- amendments ------------------------------------------------------------------------------------------------


def test_delete_and_undelete(path: Path, dataset: salus.Dataset) -> None:
    uid, others = dataset[1].uid, [dataset[i].uid for i in (0, 2, 3, 4)]
    writer = salus.open(path, mode="a")
    writer.delete(uid, author="me")
    assert uid in [e.uid for e in writer.episodes]  # snapshots do not move under their reader
    writer.refresh()
    assert [e.uid for e in writer.episodes] == others
    with pytest.raises(NotFoundError, match="deleted"):
        writer[uid]
    writer.undelete(uid)
    assert [e.uid for e in salus.open(path).episodes] == [dataset[i].uid for i in range(5)]


def test_correcting_outcome_and_metadata(path: Path, dataset: salus.Dataset) -> None:
    writer = salus.open(path, mode="a")
    uid = dataset[0].uid
    writer.set_outcome(uid, salus.Outcome("failure", kind="drop", step=9), author="reviewer")
    writer.update_metadata(uid, {"note": "slipped", "n": None})
    read = salus.open(path)[uid]
    assert read.outcome == salus.Outcome("failure", kind="drop", step=9)
    assert read.metadata == {"task": "task 0", "note": "slipped"}
    assert read.labels[8, 0].tolist() == [0, 1]
    with pytest.raises(InvalidInputError, match="failure step: got 20"):
        writer.set_outcome(uid, salus.Outcome("failure", kind="drop", step=20))
    with pytest.raises(InvalidInputError, match='read-only.*mode="a"'):
        dataset.delete(uid)


def test_amending_a_corrupt_record_is_refused(path: Path, dataset: salus.Dataset) -> None:
    (path / "_salus" / "log" / "0" / "0000000001.json").write_bytes(b"garbage")
    writer = salus.open(path, mode="a")
    with pytest.raises(CorruptDataError):
        writer.delete(1)


# --- tags ------------------------------------------------------------------------------------------------------


def test_a_tag_stays_what_it_was(path: Path, dataset: salus.Dataset) -> None:
    writer = salus.open(path, mode="a")
    writer.tag("v1")
    writer.delete(0)
    writer.set_outcome(1, "success")
    with salus.Recorder(writer) as recorder:
        recorder.record_episode(make_arrays(7))
    tagged = salus.open(path, tag="v1")
    assert [len(e) for e in tagged] == list(LENGTHS)
    assert tagged[1].outcome.kind == "drop"
    assert [len(e) for e in salus.open(path)] == [*LENGTHS[1:], 7]
    assert salus.open(path).tags() == ["v1"]


def test_tag_errors(path: Path, dataset: salus.Dataset) -> None:
    writer = salus.open(path, mode="a")
    writer.tag("v1")
    with pytest.raises(AlreadyExistsError, match="tag 'v1'"):
        writer.tag("v1")
    with pytest.raises(NotFoundError, match="no tag 'v2'.*'v1'"):
        salus.open(path, tag="v2")
    for name in ("../x", "", "a/b", ".hidden", "x" * 200, "ä"):
        with pytest.raises(InvalidInputError, match="tag name"):
            writer.tag(name)


# --- split and growth ------------------------------------------------------------------------------------------


def test_a_split_by_uid_does_not_move_when_the_dataset_changes(path: Path, schema: salus.Schema) -> None:
    with salus.Recorder(salus.create(path, schema)) as recorder:
        for seed in range(40):
            recorder.record_episode(make_arrays(2, seed))
    before = salus.open(path)
    parts = {"train": 0.7, "val": 0.2, "test": 0.1}
    where = {e.uid: name for name, part in zip(parts, before.split(parts), strict=True) for e in part.episodes}
    assert len(where) == 40
    writer = salus.open(path, mode="a")
    writer.tag("v1")
    writer.delete([0, 7])
    with salus.Recorder(writer) as recorder:
        episode = recorder.start()
        episode.append({k: v[0] for k, v in make_arrays(1).items()})
        episode.discard()
        for seed in range(10):
            recorder.record_episode(make_arrays(2, seed))
    after = salus.open(path)
    assert len(after) == 48
    for name, part in zip(parts, after.split(parts), strict=True):
        for entry in part.episodes:
            assert where.get(entry.uid, name) == name
    sizes = [len(part) for part in before.split(parts)]
    assert sizes[0] > sizes[1] > 0
    assert [e.uid for e in before.split(parts, seed=1)[0].episodes] != [e.uid for e in before.split(parts)[0].episodes]


def test_a_part_can_be_split_again(path: Path, schema: salus.Schema) -> None:
    with salus.Recorder(salus.create(path, schema)) as recorder:
        for seed in range(60):
            recorder.record_episode(make_arrays(1, seed))
    train, rest = salus.open(path).split({"train": 0.5, "rest": 0.5})
    val, test = rest[:].split({"val": 0.5, "test": 0.5})
    assert len(train) + len(val) + len(test) == 60
    assert min(len(val), len(test)) > len(rest) / 6


def test_a_stratified_split_keeps_the_shares(path: Path, schema: salus.Schema) -> None:
    with salus.Recorder(salus.create(path, schema)) as recorder:
        for seed in range(20):
            recorder.record_episode(make_arrays(2, seed), outcome="success" if seed % 4 else "failure")
    train, val = salus.open(path).split({"train": 0.8, "val": 0.2}, stratify="outcome")
    assert (len(train), len(val)) == (16, 4)
    assert sum(e.outcome.result == "failure" for e in val.episodes) == 1


def test_split_errors(dataset: salus.Dataset) -> None:
    with pytest.raises(InvalidInputError, match=r"fractions: got a sum of 0\.9, expected 1"):
        dataset.split({"train": 0.8, "val": 0.1})
    with pytest.raises(InvalidInputError, match="stratify"):
        dataset.split({"train": 0.8, "val": 0.2}, stratify="colour")


# --- schema revisions ------------------------------------------------------------------------------------------


def test_features_can_be_added(path: Path, dataset: salus.Dataset) -> None:
    writer = salus.open(path, mode="a")
    writer.add_features({"force": salus.Feature((3,), unit="N")})
    with salus.Recorder(writer) as recorder:
        recorder.record_episode({**make_arrays(4), "force": np.ones((4, 3), np.float32)})
    again = salus.open(path)
    assert again[5]["force"][:].sum() == 12
    with pytest.raises(NotFoundError, match=rf"episode {again[0].uid} has no feature 'force'"):
        again[0]["force"]
    with pytest.raises(InvalidInputError, match="'states' is there already"):
        writer.add_features({"states": salus.Feature((3,))})


# --- concurrent growth -----------------------------------------------------------------------------------------


def test_a_checkpoint_is_only_a_cache(path: Path, schema: salus.Schema) -> None:
    writer = salus.create(path, schema)
    with salus.Recorder(writer) as recorder:
        for seed in range(70):
            recorder.record_episode(make_arrays(1, seed))
    checkpoints = list((path / "_salus" / "checkpoints").iterdir())
    assert checkpoints
    with_checkpoint = [e.uid for e in salus.open(path).episodes]
    for file in checkpoints:
        file.write_bytes(b"garbage")
    assert [e.uid for e in salus.open(path).episodes] == with_checkpoint
    for file in checkpoints:
        file.unlink()
    assert [e.uid for e in salus.open(path).episodes] == with_checkpoint
    assert len(with_checkpoint) == 70


def test_records_are_plain_json(path: Path, dataset: salus.Dataset) -> None:
    record = json.loads((path / "_salus" / "log" / "0" / "0000000003.json").read_text())
    assert record["status"] == "committed"
    assert record["lengths"] == {"step": 33}
    assert {shard["key"] for shard in record["shards"]} >= {"images/c.3.2.0.0.0", "states/c.3.0.0"}


@pytest.mark.parametrize("what", ["_salus/schema/000000.json", "_salus", ""])
def test_refresh_of_a_dataset_that_was_removed_says_so(dataset: salus.Dataset, what: str) -> None:
    gone = Path(dataset.url) / what
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(CorruptDataError, match="refresh: the dataset has 0 schema revisions, and had 1: somebody"):
        dataset.refresh()
    assert len(dataset) == 5
    assert "5 episodes" in repr(dataset)
