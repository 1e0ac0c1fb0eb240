"""One record that does not hold costs its own episode, and nothing else (promise 5)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus
from salus import documents
from salus.errors import CorruptDataError
from salus.layout import record_key

from .conftest import LENGTHS, make_arrays

SOUND = ("committed", "salvaged")


def change(path: Path, slot: int, edit: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite a record with another content, properly sealed: what a hostile or broken writer could do."""
    file = path / record_key(slot)
    document = documents.unseal(file.read_bytes(), key="")
    edit(document)
    file.write_bytes(documents.seal(document))


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "metadata is a list": lambda d: d.update(metadata=[]),
    "uid is a list": lambda d: d.update(uid=[]),
    "start is text": lambda d: d.update(started_ns="x"),
    "a revision that is not there": lambda d: d.update(schema_revision=7),
    "a failure past the end": lambda d: d["outcome"].update(result="failure", step=10**6),
    "a failure at True": lambda d: d["outcome"].update(result="failure", step=True),
    "length as text": lambda d: d.update(lengths={"step": "5"}),
    "another slot": lambda d: d.update(slot=3),
    "a shard of negative size": lambda d: d["shards"][0].update(size=-1),
    "shards are numbers": lambda d: d.update(shards=[1, 2]),
    "a shard too few": lambda d: d["shards"].pop(),
    "a shard twice": lambda d: d["shards"].append(d["shards"][0]),
    "a shard in place of another": lambda d: d["shards"].__setitem__(0, d["shards"][1]),
    "a shard of an array that is not there": lambda d: d["shards"][0].update(key="other/c.1.0.0"),
    "a shard of another episode": lambda d: d["shards"][0].update(key=d["shards"][0]["key"].replace("c.1.", "c.2.")),
    "a uid that is none": lambda d: d.update(uid="robot 7"),
    "a start past 64 bits": lambda d: d.update(started_ns=2**63),
}


@pytest.mark.parametrize("what", EDITS)
def test_a_record_that_no_recorder_writes_is_corrupt(path: Path, dataset: salus.Dataset, what: str) -> None:
    change(path, 1, EDITS[what])
    damaged = salus.open(path, mode="a")
    assert damaged.episodes["status"] == ["committed", "corrupt", *["committed"] * 3]
    with pytest.raises(CorruptDataError):
        damaged[1]
    assert len(damaged[2]["states"][:]) == LENGTHS[2]
    damaged.publish()
    with salus.Recorder(damaged) as recorder:
        recorder.record_episode(make_arrays(3))
    assert len(salus.open(path)) == 6


@pytest.fixture
def damaged(path: Path, dataset: salus.Dataset) -> salus.Dataset:
    (path / record_key(1)).write_bytes(b"garbage")
    return salus.open(path, mode="a")


def test_conditions_leave_it_out_and_a_status_names_it(damaged: salus.Dataset) -> None:
    assert len(damaged.select()) == 5
    assert len(damaged.select(status=SOUND)) == 4
    assert len(damaged.select(status="corrupt")) == 1
    assert [len(e) for e in damaged.select(outcome="unknown")] == [16]
    assert len(damaged.select(where=lambda episode: len(episode) > 0)) == 4


def test_training_on_it_says_how_to_leave_it_out(damaged: salus.Dataset) -> None:
    pytest.importorskip("torch", reason="the extra 'torch' is not installed")
    with pytest.raises(CorruptDataError, match=r"1 of 5 episodes .* slot 1; \.select\(status="):
        salus.torch.WindowDataset(damaged, {"states": 0})
    assert len(salus.torch.WindowDataset(damaged.select(status=SOUND), {"states": 0})) == sum(LENGTHS) - LENGTHS[1]


def test_a_tag_keeps_it_as_corrupt(path: Path, damaged: salus.Dataset) -> None:
    damaged.tag("v1")
    tagged = salus.open(path, tag="v1")
    assert tagged.episodes["status"] == damaged.episodes["status"]
    np.testing.assert_array_equal(tagged[3]["states"][:], damaged[3]["states"][:])


def test_exchanged_tags_and_revisions_are_found(path: Path, dataset: salus.Dataset) -> None:
    writer = salus.open(path, mode="a")
    writer.tag("v1")
    (path / "_salus" / "tags" / "v2.json").write_bytes((path / "_salus" / "tags" / "v1.json").read_bytes())
    with pytest.raises(CorruptDataError, match="exchanged or copied"):
        salus.open(path, tag="v2")
    revisions = path / "_salus" / "schema"
    (revisions / "000001.json").write_bytes((revisions / "000000.json").read_bytes())
    with pytest.raises(CorruptDataError, match="exchanged or copied"):
        salus.open(path)


def test_metadata_of_any_size_that_is_accepted_can_be_published(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An eighth of the real cap on a chunk of text, and about an eighth of what 64 rows may hold at most.
    monkeypatch.setattr("salus.codecs.MAX_TEXT_CHUNK_BYTES", 33 * 2**20)
    schema = salus.Schema({"q": salus.Feature()}, rate_hz=10)
    with salus.Recorder(salus.create(path, schema)) as recorder:
        for number in range(70):
            recorder.record_episode({"q": [0.0]}, {"n": number, "long": "x" * 2**19})
    import zarr

    assert all(text for text in zarr.open_group(path, mode="r")["episode_metadata"][:])
    with pytest.raises(salus.InvalidInputError, match="metadata: .* bytes of JSON"):
        salus.open(path, mode="a").update_metadata(0, {"more": "x" * 2**19})


def test_text_without_a_utf8_form_is_refused_before_it_is_committed(path: Path, schema: salus.Schema) -> None:
    with salus.Recorder(salus.create(path, schema)) as recorder:
        with pytest.raises(salus.InvalidInputError, match="metadata"):
            recorder.record_episode(make_arrays(2), {"source": "caf\udce9.bag"})
        recorder.record_episode(make_arrays(2), {"source": "café"})
