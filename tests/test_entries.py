"""The episode table as columns: what goes in comes out, of memory, documents and pickles; hostile tables do not."""

from __future__ import annotations

import base64
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numcodecs import zstd

import salus
from salus import documents
from salus.errors import CorruptDataError
from salus.layout import checkpoint_key, record_key, tag_key
from salus.log.amendments import Overlay
from salus.log.entries import Entries, Entry
from salus.log.snapshot import Snapshot, checkpoint_due, load
from salus.storage import LocalStorage

from .conftest import LENGTHS, make_arrays


def entry(slot: int, **changes: Any) -> Entry:
    made = Entry(
        uid=f"01890000-0000-7000-8000-{slot:012x}",
        slot=slot,
        status="committed",
        num_steps=slot + 1,
        result="success",
        failure_kind=None,
        failure_step=None,
        task=f"task {slot % 2}",
        started_ns=10**18 + slot,
        ended_ns=2 * 10**18 + slot,
        schema_revision=slot % 2,
        shard_sizes=tuple(range(slot)),
        digest=f"sha256:{slot:064x}",
    )
    return made._replace(**changes)


ROWS = [
    entry(0, clock_lengths=(("joints", 200), ("wrist", 0))),
    entry(1, result="failure", failure_kind="drop", failure_step=0, task=None),
    entry(4, result="failure", failure_kind="task 0", task="caf\udce9", shard_sizes=(2**40, 0)),  # texts are shared
    Entry.corrupt(5),
    entry(6, status="aborted", num_steps=0, result="unknown", shard_sizes=()),
    entry(9, status="salvaged", result="unknown", clock_lengths=(("drop", 2**31 - 1), ("joints", 7))),
]


@pytest.fixture
def entries() -> Entries:
    return Entries.of(ROWS)


def stored(entries: Entries) -> dict[str, Any]:
    """The table as it comes out of a sealed document."""
    return documents.unseal(documents.seal(entries.to_json()), key="")


# --- rows and columns --------------------------------------------------------------------------------------------


def test_rows_come_out_as_they_went_in(entries: Entries) -> None:
    assert list(entries) == ROWS
    assert [entries[row] for row in range(len(entries))] == ROWS
    assert entries[-1] == ROWS[-1]
    assert list(entries[1:4]) == ROWS[1:4]
    assert list(entries[::-2]) == ROWS[::-2]
    assert list(entries.take([4, 0, 4])) == [ROWS[4], ROWS[0], ROWS[4]]
    assert list(entries.take([])) == []
    with pytest.raises(IndexError):
        entries[len(ROWS)]


@pytest.mark.parametrize("name", [*Entry._fields, "stored_bytes"])
@pytest.mark.parametrize("some", [slice(None), slice(0, 3), slice(0, 0)])
def test_a_column_is_the_attribute_of_each_row(entries: Entries, name: str, some: slice) -> None:
    assert entries[some].column(name) == [getattr(row, name) for row in ROWS[some]]


@pytest.mark.parametrize(
    ("name", "value"), [("status", "salvaged"), ("result", "failure"), ("failure_kind", "task 0"), ("task", "task 0")]
)
def test_rows_are_found_by_value(entries: Entries, name: str, value: str) -> None:
    assert entries.has(name, value).tolist() == [getattr(row, name) == value for row in ROWS]
    assert entries.has(name, value).any()
    assert not entries.has(name, "nothing of that").any()


def test_lengths_by_clock(entries: Entries) -> None:
    for clock in ("step", "joints", "wrist", "drop", "task 0", "arms"):
        assert entries.lengths(clock).tolist() == [row.length(clock) for row in ROWS]
        assert entries[::-2].lengths(clock).tolist() == [row.length(clock) for row in ROWS[::-2]]
    assert [row.length("joints") for row in ROWS] == [200, 0, 0, 0, 0, 7]
    assert Entries.of().lengths("joints").tolist() == []


def test_rows_are_found_by_uid(entries: Entries) -> None:
    wanted = [ROWS[1].uid, ROWS[3].uid, ROWS[5].uid, "no uid", entry(77).uid, "00000000-0000-0000-0000-000000000000"]
    assert entries.has_uid(wanted).tolist() == [False, True, False, True, False, True]
    assert not entries.has_uid([]).any()


def test_rows_are_found_by_slot(entries: Entries) -> None:
    assert [entries.at(slot) for slot in (0, 4, 9)] == [ROWS[0], ROWS[2], ROWS[5]]
    assert [entries.at(slot) for slot in (-1, 3, 10)] == [None, None, None]


def test_merging_replaces_and_keeps_the_order_of_slots(entries: Entries) -> None:
    merged = entries.merged([entry(2, task="new"), entry(5), entry(4, shard_sizes=(7, 8, 9))])
    expected = [ROWS[0], ROWS[1], entry(2, task="new"), entry(4, shard_sizes=(7, 8, 9)), entry(5), *ROWS[4:]]
    assert list(merged) == expected
    assert list(entries) == ROWS
    assert list(merged.merged([ROWS[0]])) == expected


def test_amendments_delete_and_change_rows(entries: Entries) -> None:
    changed = Overlay(outcome=salus.Outcome("failure", "late", 3), metadata=(("task", "other"),))
    amended = entries.amended({ROWS[0].uid: Overlay(deleted=True), ROWS[5].uid: changed, "another": Overlay()})
    last = ROWS[5]._replace(result="failure", failure_kind="late", failure_step=3, task="other")
    assert list(amended) == [*ROWS[1:5], last]
    assert entries.amended({}) is entries


def test_tables_are_joined(entries: Entries) -> None:
    other = Entries.of([entry(0, task="another"), entry(7, failure_kind="drop", result="failure")])
    assert list(Entries.joined([entries[2:], other, entries[:2]])) == [*ROWS[2:], *other, *ROWS[:2]]
    assert list(Entries.joined([])) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"uid": entry(77).uid},
        {"digest": f"sha256:{77:064x}"},
        {"num_steps": 77},
        {"task": "another"},
        {"failure_kind": "drop", "result": "failure"},
        {"shard_sizes": (1, 2, 4)},
        {"shard_sizes": (0, 1, 2, 3)},
        {"clock_lengths": (("joints", 8),)},
        {"clock_lengths": (("wrist", 7),)},
    ],
)
def test_rows_that_are_not_the_same_in_another_table_are_told(changes: dict[str, Any]) -> None:
    rows = [entry(slot, clock_lengths=(("joints", 7),), shard_sizes=(1, 2, 3)) for slot in (0, 1, 3, 4)]
    table = Entries.of(rows)
    other = Entries.of([entry(2, task="of another"), rows[0], rows[1]._replace(**changes), rows[2]])
    assert list(table.take(table.unlike(other))) == [rows[1], rows[3]]  # other texts and places, and one row less
    assert list(other.take(other.unlike(table))) == [other[1], other[2]]


def test_the_same_rows_are_alike(entries: Entries) -> None:
    assert not entries.unlike(entries.merged([entry(2, task="another")])).any()
    assert entries.unlike(Entries.of()).all()
    assert Entries.of().unlike(entries).tolist() == []


# --- stored and sent ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("some", [slice(None), slice(1, None, 2), slice(4, 5), slice(0, 0)])
def test_a_table_survives_documents_and_pickles(entries: Entries, some: slice) -> None:
    part = entries.merged([entry(3, task="of a part")])[some]
    assert list(Entries.from_json(stored(part), key="")) == list(part)
    assert list(pickle.loads(pickle.dumps(part))) == list(part)  # noqa: S301


def test_a_part_takes_only_its_own_with_it() -> None:
    entries = Entries.of(entry(slot, task=f"a task of its own, number {slot}") for slot in range(1000))
    part = entries.take([999])
    assert stored(part)["texts"] == ["a task of its own, number 999"]
    assert len(pickle.dumps(part)) < len(pickle.dumps(entries)) / 30
    assert list(part) == [entries[999]]


def change(name: str, *values: Any, dtype: str = "<i8") -> Callable[[dict[str, Any]], None]:
    def edit(table: dict[str, Any]) -> None:
        body = bytes(zstd.compress(np.array(values, dtype).tobytes()))
        table["columns"][name] = base64.b64encode(body).decode()

    return edit


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "fewer rows than values": lambda t: t.update(num_rows=2),
    "more rows than anybody has": lambda t: t.update(num_rows=2**38),
    "rows below none": lambda t: t.update(num_rows=-1),
    "rows as text": lambda t: t.update(num_rows="3"),
    "a column is missing": lambda t: t["columns"].pop("digest"),
    "a column is a list": lambda t: t["columns"].update(slot=[0, 1, 2]),
    "a column is empty": lambda t: t["columns"].update(slot=""),
    "a column is no base64": lambda t: t["columns"].update(slot="$$$$"),
    "a column is no zstd": lambda t: t["columns"].update(slot=base64.b64encode(bytes(24)).decode()),
    "slots out of order": change("slot", 0, 2, 1),
    "a slot twice": change("slot", 0, 1, 1),
    "a slot below none": change("slot", -1, 0, 1),
    "a slot that no writer reaches": change("slot", 0, 1, 2**40),
    "a length below none": change("num_steps", 1, -2, 3, dtype="<i4"),
    "a revision below none": change("schema_revision", 0, -1, 0, dtype="<i4"),
    "a status that is none": change("status", 0, 4, 0, dtype="u1"),
    "a result that is none": change("result", 0, 3, 0, dtype="u1"),
    "a text that is not there": change("task", 0, 1, 3, dtype="<i4"),
    "a text below none": change("task", 0, 1, -2, dtype="<i4"),
    "a success that failed": change("failure_step", 0, -1, -1, dtype="<i4"),
    "a failure past the end": change("failure_step", -1, 2, -1, dtype="<i4"),
    "more shards than sizes": change("num_shards", 0, 1, 3, dtype="<i4"),
    "shards below none": change("num_shards", 4, -3, 2, dtype="<i4"),
    "a size below none": change("shard_size", 0, -5, 1),
    "clocks without names": lambda t: t["columns"].pop("clock_name"),
    "more clocks than names": change("num_clocks", 0, 2, 0, dtype="<i4"),
    "clocks below none": change("num_clocks", 2, -1, 0, dtype="<i4"),
    "a clock below none": change("clock_name", -1, dtype="<i4"),
    "a clock that is not there": change("clock_name", 9, dtype="<i4"),
    "a length of a clock below none": change("clock_length", -1, dtype="<i4"),
    "texts are numbers": lambda t: t.update(texts=[1, 2]),
    "texts are the same": lambda t: t.update(texts=["a", "a"]),
    "no texts": lambda t: t.pop("texts"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_table_that_no_writer_makes_is_refused(what: str) -> None:
    table = stored(Entries.of([entry(0), entry(1, result="failure", clock_lengths=(("joints", 5),)), entry(2)]))
    assert Entries.from_json(table, key="")[2].shard_sizes == (0, 1)
    HOSTILE[what](table)
    with pytest.raises(CorruptDataError, match="episode table: not understood: .*; the key"):
        Entries.from_json(table, key="the key")


def test_a_column_that_claims_to_be_enormous_costs_no_memory() -> None:
    table = stored(Entries.of([entry(0)]))
    table["columns"]["slot"] = base64.b64encode(bytes(zstd.compress(bytes(2**28)))).decode()
    tracemalloc.start()
    try:
        with pytest.raises(CorruptDataError):
            Entries.from_json(table, key="")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**22


# --- in a dataset ------------------------------------------------------------------------------------------------


def test_sizes_are_in_the_order_of_names_and_segments(path: Path, dataset: salus.Dataset) -> None:
    writer = salus.open(path, mode="a")
    kept = salus.Feature((2, 2), derived="outcome", allow_nan=True)
    writer.add_features({"zz_last": salus.Text(), "a_first": salus.Feature((2,), nullable=True), "kept": kept})
    with salus.Recorder(writer) as recorder:
        recorder.record_episode({**make_arrays(20), "a_first": np.ones((20, 2), np.float32), "zz_last": ["x"] * 20})
    first = ["actions", "images", "states", "timestamp_ns"]
    np.testing.assert_array_equal(dataset.refresh()[5]["a_first"][:], np.ones((20, 2), np.float32))
    second = ["a_first", "a_first.valid", *first, "zz_last"]
    for row, names, segments in zip(salus.open(path).episodes, [first] * 5 + [second], [2, 1, 1, 3, 3, 2], strict=True):
        files = [path / name / f"c.{row.slot}.{segment}" for name in names for segment in range(segments)]
        sizes = [next(file.parent.glob(f"{file.name}.*"), file).stat().st_size for file in files]
        assert row.shard_sizes == tuple(sizes)


def test_a_record_may_say_more_than_this_version_knows(path: Path, dataset: salus.Dataset) -> None:
    file = path / record_key(1)
    document = documents.unseal(file.read_bytes(), key="")
    file.write_bytes(documents.seal({**document, "statistics": {"states": {"mean": [0.0] * 7}}}))
    assert salus.open(path).episodes["status"] == ["committed"] * 5
    assert salus.open(path)[1].metadata == dataset[1].metadata


def test_opening_reads_no_record_that_a_checkpoint_holds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("salus.log.snapshot.CHECKPOINT_MIN_RECORDS", 3)
    schema = salus.Schema({"q": salus.Feature()}, rate_hz=10)
    with salus.Recorder(salus.create(path, schema)) as recorder:
        for number in range(4):
            recorder.record_episode({"q": [float(number)]})
    before = list(salus.open(path).episodes)
    for slot in range(4):
        (path / record_key(slot)).unlink()
    assert list(salus.open(path).episodes) == before
    assert salus.open(path).gather({"q": [(3, 0), (1, 0)]})["q"].tolist() == [3.0, 1.0]


def test_a_checkpoint_that_claims_a_gap_of_a_million_slots_costs_no_million_reads(
    path: Path, dataset: salus.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = load(dataset.storage).decided
    late = known[4]._replace(slot=900_000, uid=known[4].uid[:-4] + "ffff")
    claimed = Snapshot(Entries.of([known[0], late]))
    (path / "_salus/checkpoints").mkdir(exist_ok=True)
    (path / checkpoint_key(0)).write_bytes(documents.seal(claimed.to_json()))
    asked: list[str] = []
    for name in ("get", "list"):
        real = getattr(LocalStorage, name)

        def counted(storage: LocalStorage, key: str, real: Any = real) -> Any:
            asked.append(key)
            return real(storage, key)

        monkeypatch.setattr(LocalStorage, name, counted)
    opened = salus.open(path, mode="a")
    assert [each.slot for each in opened.episodes] == [0, 1, 2, 3, 4, 900_000], "records that are there are found"
    assert opened.unfinished() == []
    assert len(asked) < 100


@pytest.mark.parametrize(
    ("num_facts", "checkpointed", "due"),
    [
        (63, 0, False),
        (64, 0, True),
        (109, 100, False),
        (112, 100, True),
        (101_023, 100_000, False),
        (101_024, 100_000, True),
    ],
)
def test_what_lies_past_the_checkpoint_stays_few(num_facts: int, checkpointed: int, due: bool) -> None:
    assert checkpoint_due(num_facts, checkpointed) == due


def first_form(path: Path, name: str) -> None:
    """Write a tag as it was before its table was columns."""
    rows = list(salus.open(path).episodes)
    columns = {field: [getattr(row, field) for row in rows] for field in Entry._fields if field != "shard_sizes"}
    columns["stored_bytes"] = [row.stored_bytes for row in rows]
    document = {"name": name, "author": "", "time_ns": 0, "num_slots": 6, "open_slots": [5], "corrupt_slots": [5]}
    file = path / tag_key(name)
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(documents.seal({**document, "columns": columns, "amendments": []}))


def test_a_tag_of_the_first_form_still_opens(path: Path, dataset: salus.Dataset, source: list[Any]) -> None:
    first_form(path, "old")
    with salus.Recorder(salus.open(path, mode="a")) as recorder:
        recorder.record_episode(make_arrays(3))
    old = salus.open(path, tag="old")
    assert list(old.episodes)[:5] == list(dataset.episodes)
    assert old.episodes["status"] == [*["committed"] * 5, "corrupt"]
    np.testing.assert_array_equal(old[4]["images"][:], source[4]["images"])


@pytest.mark.parametrize("record", ["gone", "another"])
def test_an_episode_whose_sizes_are_not_known_is_named(path: Path, dataset: salus.Dataset, record: str) -> None:
    first_form(path, "old")
    file = path / record_key(3)
    another = documents.seal(documents.unseal(file.read_bytes(), key=""))  # another digest
    file.unlink()
    if record == "another":
        file.write_bytes(another)
    old = salus.open(path, tag="old")
    with pytest.raises(CorruptDataError, match=rf"episode {dataset[3].uid}, 'states', .*: .* 0 shards, expected 12"):
        old[3]["states"][:]
    assert len(old[2]["states"][:]) == LENGTHS[2]


def test_a_view_travels_without_what_it_was_chosen_from(path: Path, dataset: salus.Dataset) -> None:
    writer = salus.open(path, mode="a")
    writer.update_metadata(2, {"n": "amended"})
    part = writer.refresh()[2:4]
    sent = pickle.loads(pickle.dumps(part))  # noqa: S301
    assert list(sent.episodes) == list(part.episodes)
    assert sent[0].metadata == {"task": "task 0", "n": "amended"}
    np.testing.assert_array_equal(sent[1]["states"][:], part[1]["states"][:])
    assert sent[part[1].uid] == part[1]
    assert dataset[0].uid.replace("-", "") not in pickle.dumps(part).hex()
    assert part[0].uid.replace("-", "") in pickle.dumps(part).hex()


def test_a_dataset_that_travelled_tags_and_refreshes(path: Path, dataset: salus.Dataset) -> None:
    sent = pickle.loads(pickle.dumps(salus.open(path, mode="a")))  # noqa: S301
    sent.tag("sent")
    assert list(salus.open(path, tag="sent").episodes) == list(dataset.episodes)
    with salus.Recorder(salus.open(path, mode="a")) as recorder:
        recorder.record_episode(make_arrays(3))
    assert len(sent) == 5
    assert len(sent.refresh()) == 6
    assert len(sent[5]["states"][:]) == 3


def test_a_snapshot_without_gaps_and_amendments_is_its_table(entries: Entries) -> None:
    sound = Entries.of([ROWS[0], ROWS[1]])
    assert Snapshot(sound).entries is sound
    assert [row.slot for row in Snapshot(entries).entries] == [0, 1, 4, 5, 9]
    assert Snapshot(entries).open_slots == [2, 3, 5, 7, 8]
