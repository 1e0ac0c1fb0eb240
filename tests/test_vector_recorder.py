"""Recording from many environments at once: the same bytes as one by one, group commits, and what is refused."""

from __future__ import annotations

import gc
import os
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus
from salus.log.claims import claim_slot
from salus.recorder import VectorRecorder
from salus.storage import open_storage

SCHEMA = salus.Schema(
    {
        "camera": salus.Image(height=4, width=6),
        "states": salus.Feature((3,), "float64"),
        "count": salus.Feature((), "int64"),
        "say": salus.Text(),
        "action": salus.Feature((2,), nullable=True),
    },
    rate_hz=20,
    failure_kinds=("drop",),
    segment_steps=8,
)


def steps_of(num_envs: int, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "camera": random.integers(0, 256, (num_envs, 3, 4, 6), dtype=np.uint8),
        "states": random.normal(size=(num_envs, 3)),
        "count": random.integers(-(2**60), 2**60, num_envs),
        "say": [f"{seed}.{env} grüß" for env in range(num_envs)],
        "action": random.normal(size=(num_envs, 2)).astype(np.float32),
        "action.valid": random.random(num_envs) < 0.5,
    }


def check(episode: salus.Episode, rows: list[dict[str, Any]]) -> None:
    assert len(episode) == len(rows)
    for name in ("camera", "states", "count", "say"):
        np.testing.assert_array_equal(episode[name][:], np.array([row[name] for row in rows]))
    valid = np.array([row["action.valid"] for row in rows])
    np.testing.assert_array_equal(episode["action.valid"][:], valid)
    np.testing.assert_array_equal(episode["action"][:][valid], np.array([row["action"] for row in rows])[valid])


@pytest.fixture
def dataset(tmp_path: Path) -> salus.Dataset:
    return salus.create(tmp_path / "data.zarr", SCHEMA)


def test_every_environment_has_its_own_episodes_bit_for_bit(dataset: salus.Dataset) -> None:
    num_envs, expected, futures = 5, {}, []
    open_rows: list[list[dict[str, Any]]] = [[] for _ in range(num_envs)]
    random = np.random.default_rng(0)
    with salus.Recorder(dataset) as recorder, recorder.vector(num_envs) as vector:
        for step in range(60):
            ids = np.flatnonzero(random.random(num_envs) < 0.8)
            random.shuffle(ids)
            batch = steps_of(len(ids), step)
            if len(ids) == num_envs and step % 2:
                order = np.argsort(ids)
                batch = {name: [values[place] for place in order] for name, values in batch.items()}
                ids = np.arange(num_envs)
                batch = {name: values if name == "say" else np.array(values) for name, values in batch.items()}
                vector.append(batch)
            else:
                vector.append(batch, env_ids=ids)
            for row, env in enumerate(ids.tolist()):
                open_rows[env].append({name: np.array(values[row]) for name, values in batch.items()})
            assert vector.num_steps.tolist() == [len(rows) for rows in open_rows]
            for values in batch.values():  # the caller's buffers are the caller's
                if isinstance(values, np.ndarray):
                    values[...] = 0
            ended = np.flatnonzero((random.random(num_envs) < 0.08) & (vector.num_steps > 0))
            for env, future in zip(ended.tolist(), vector.end(ended, metadata={"last": step}), strict=True):
                futures.append((future, env, step, open_rows[env]))
                open_rows[env] = []
        vector.discard()
    dataset.refresh()
    assert len(dataset) == len(futures) > 10
    assert max(len(rows) for *_, rows in futures) > 16, "no episode crosses two segments"
    for future, env, step, rows in futures:
        entry = future.result(0)
        expected[entry.uid] = entry
        episode = dataset[entry.uid]
        assert dict(episode.metadata) == {"env_id": env, "last": step}
        check(episode, rows)
    assert {entry.uid: entry for entry in dataset.episodes} == expected


def test_stamps_are_nominal_unless_given(dataset: salus.Dataset) -> None:
    with salus.Recorder(dataset) as recorder, recorder.vector(2) as vector:
        for step in range(3):
            vector.append(steps_of(2, step))
        (first, _) = vector.end()
        for step in range(3):
            vector.append(steps_of(2, step), timestamp_ns=np.array([10, 20]) + step)
        with pytest.raises(salus.InvalidInputError, match="got 12 for environment 0, expected more than 12"):
            vector.append(steps_of(2, 9), timestamp_ns=np.array([12, 99]))
        with pytest.raises(salus.InvalidInputError, match="got none for environment 0, expected some"):
            vector.append(steps_of(2, 9))
        (_, second) = vector.end()
    dataset.refresh()
    nominal, given = dataset[first.result().uid], dataset[second.result().uid]
    assert nominal.timestamp_ns.tolist() == [0, 50_000_000, 100_000_000]
    assert given.timestamp_ns.tolist() == [20, 21, 22]


def test_outcomes_and_metadata_for_all_or_one_each(dataset: salus.Dataset) -> None:
    with salus.Recorder(dataset) as recorder, recorder.vector(3) as vector:
        vector.append(steps_of(3, 0))
        ends = vector.end(
            outcome=["success", salus.Outcome("failure", "drop", 0), None],
            metadata=[{"seed": 7}, {"env_id": "mine"}, {}],
            task="stack",
        )
        vector.append(steps_of(3, 1))
        ends += vector.end([1], outcome="success")
        vector.discard()
    dataset.refresh()
    episodes = [dataset[future.result().uid] for future in ends]
    assert [episode.outcome for episode in episodes] == [
        salus.Outcome("success"),
        salus.Outcome("failure", "drop", 0),
        salus.Outcome(),
        salus.Outcome("success"),
    ]
    assert [dict(episode.metadata) for episode in episodes] == [
        {"env_id": 0, "seed": 7, "task": "stack"},
        {"env_id": "mine", "task": "stack"},
        {"env_id": 2, "task": "stack"},
        {"env_id": 1},
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": np.zeros((2, 3))}, "'states': got 2 steps, others have 3|got 3 steps, others have"),
        ({"states": np.zeros((3, 4))}, r"expected \(N, …\) with a step of \(3,\)"),
        ({"states": np.full((3, 3), np.nan)}, "expected finite values"),
        ({"count": np.zeros(3)}, "got dtype float64, expected int64"),
        ({"other": np.zeros(3)}, "'other': not a feature"),
        ({"action.valid": np.ones(3)}, r"expected bool \(3,\)"),
    ],
)
def test_a_wrong_batch_is_refused_whole(dataset: salus.Dataset, change: dict[str, Any], message: str) -> None:
    with salus.Recorder(dataset) as recorder, recorder.vector(3) as vector:
        first = steps_of(3, 0)
        vector.append(first)
        with pytest.raises(salus.InvalidInputError, match=message) as error:
            vector.append({**steps_of(3, 1), **change})
        assert "record_episode" not in str(error.value)
        assert vector.num_steps.tolist() == [1, 1, 1]
        last = steps_of(3, 2)
        vector.append(last)
        ends = vector.end()
    dataset.refresh()
    for env, future in enumerate(ends):
        check(dataset[future.result().uid], [{n: v[env] for n, v in batch.items()} for batch in (first, last)])


@pytest.mark.parametrize("ids", [[0, 0], [3], [-1], [[0]], [0.5]])
def test_wrong_env_ids_are_refused(dataset: salus.Dataset, ids: Any) -> None:
    with salus.Recorder(dataset) as recorder, recorder.vector(3) as vector:
        for call in (lambda: vector.append(steps_of(1, 0), env_ids=ids), lambda: vector.end(ids)):
            with pytest.raises(salus.InvalidInputError, match="env_ids"):
                call()
        assert vector.end([]) == []
        vector.append({}, env_ids=[])


def test_end_is_refused_whole(dataset: salus.Dataset) -> None:
    with salus.Recorder(dataset) as recorder, recorder.vector(2) as vector:
        vector.append(steps_of(1, 0), env_ids=[1])
        with pytest.raises(salus.InvalidInputError, match="environment 0 has no open episode"):
            vector.end()
        with pytest.raises(salus.InvalidInputError, match="failure step: got 1"):
            vector.end([1], outcome=salus.Outcome("failure", step=1))
        with pytest.raises(
            salus.InvalidInputError, match="outcome: got 2 values, expected one for all, or a list of 1"
        ):
            vector.end([1], outcome=["success", None])
        assert vector.num_steps.tolist() == [0, 1]
        assert vector.end([1])[0].result(30).num_steps == 1


def test_a_recorder_forgets_the_vectors_that_were_closed(dataset: salus.Dataset) -> None:
    with salus.Recorder(dataset) as recorder:
        closed = []
        for seed in range(3):
            with recorder.vector(2) as vector:
                vector.append(steps_of(2, seed))
                vector.end([0, 1])
            closed.append(weakref.ref(vector))
        del vector
        recorder.vector(1)
        gc.collect()
        assert [each() for each in closed] == [None] * 3
    assert len(dataset.refresh()) == 6


def test_open_episodes_at_close_are_an_error(dataset: salus.Dataset) -> None:
    with pytest.raises(salus.RecordingError, match=r"2 environments were still open and are lost \(2 steps\)"):
        with salus.Recorder(dataset) as recorder:
            vector = recorder.vector(3)
            vector.append(steps_of(3, 0))
            (kept,) = vector.end([1])
    assert kept.done()
    assert [entry.uid for entry in dataset.refresh().episodes] == [kept.result().uid]
    with pytest.raises(salus.RecordingError, match="closed"):
        vector.append(steps_of(3, 0))


@pytest.mark.parametrize("block", ["recorder", "vector recorder"])
def test_what_fails_on_leaving_a_block_is_a_note_on_what_left_it(dataset: salus.Dataset, block: str) -> None:
    with pytest.raises(ZeroDivisionError) as raised, salus.Recorder(dataset) as recorder:
        vector = recorder.vector(2)
        vector.append(steps_of(2, 0))
        with vector if block == "vector recorder" else nullcontext():
            1 / 0  # noqa: B018 - the exception is what the test is about
    (note,) = raised.value.__notes__
    assert note.startswith(f"salus: closing the {block} failed as well: close: the episodes of 2 environments were")


def test_a_dropped_vector_recorder_says_what_is_lost(dataset: salus.Dataset, capsys: Any) -> None:
    recorder = salus.Recorder(dataset)
    vector = recorder.vector(3)
    vector.append(steps_of(3, 0))
    vector.itself = vector  # type: ignore[attr-defined]  # so that only the garbage collector takes it
    recorder._vectors.clear()
    del vector
    with pytest.warns(ResourceWarning, match="3 episodes of 3 steps were never committed"):
        gc.collect()
    assert "never committed" in capsys.readouterr().err
    recorder.close()


def test_other_writers_take_slots_meanwhile(dataset: salus.Dataset) -> None:
    storage = open_storage(dataset.url)
    with salus.Recorder(dataset) as recorder, recorder.vector(4) as vector:
        ends = []
        for step in range(3):
            vector.append(steps_of(4, step))
            claim_slot(storage, f"00000000-0000-7000-8000-00000000000{step}", hint=5 * step + 2)
            ends += vector.end()
            vector.flush()
    slots = [future.result().slot for future in ends]
    assert len(set(slots)) == 12
    assert not set(slots) & {2, 7, 12}
    assert len(dataset.refresh()) == 12


def test_one_fenced_episode_costs_the_others_nothing(dataset: salus.Dataset) -> None:
    (Path(dataset.url) / "states").mkdir(exist_ok=True)
    (Path(dataset.url) / "states" / "c.1.0.0").write_bytes(b"another process's")
    with salus.Recorder(dataset) as recorder, recorder.vector(3) as vector:
        vector.append(steps_of(3, 0))
        ends = vector.end()
        with pytest.raises(salus.EpisodeFencedError, match="slot 1"):
            vector.flush()
        vector.flush()  # said once
        with pytest.raises(salus.EpisodeFencedError, match="slot 1"):
            ends[1].result()
        assert [ends[0].result().slot, ends[2].result().slot] == [0, 2]
    assert [entry.slot for entry in dataset.refresh().episodes] == [0, 2]


def test_a_group_costs_one_fsync_per_file_and_few_more(dataset: salus.Dataset, monkeypatch: Any) -> None:
    calls = []
    plain = os.fsync
    with salus.Recorder(dataset) as recorder, recorder.vector(100) as vector:
        vector.append(steps_of(100, 0))
        monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append(descriptor), plain(descriptor))[1])
        vector.end()
        vector.flush()
        monkeypatch.setattr(os, "fsync", plain)
    arrays = 7  # five features, the validity, the stamps
    files, folders = 100 * (arrays + 2), arrays + 2
    assert files < len(calls) <= files + 4 * folders


def test_torch_tensors_are_copied_to_the_host_once(dataset: salus.Dataset) -> None:
    torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")
    copies = []

    class Counted(torch.Tensor):  # type: ignore[misc, name-defined]
        def cpu(self, *more: Any, **named: Any) -> Any:
            copies.append(self.shape)
            return super().cpu(*more, **named).as_subclass(torch.Tensor)

    batch = steps_of(4, 0)
    tensors = {n: v if n == "say" else torch.from_numpy(v).as_subclass(Counted) for n, v in batch.items()}
    with salus.Recorder(dataset) as recorder, recorder.vector(4) as vector:
        vector.append(tensors)
        assert len(copies) == 5
        ends = vector.end(torch.tensor([2, 0]))
        with pytest.raises(salus.InvalidInputError, match="bfloat16"):
            vector.append({**batch, "states": torch.zeros(4, 3, dtype=torch.bfloat16)})
        vector.discard()
    dataset.refresh()
    for env, future in zip((2, 0), ends, strict=True):
        check(dataset[future.result().uid], [{n: v[env] for n, v in batch.items()}])


def test_a_vector_recorder_needs_environments(dataset: salus.Dataset) -> None:
    with salus.Recorder(dataset) as recorder:
        for wrong in (0, -1, 2.0, True):
            with pytest.raises(salus.InvalidInputError, match="num_envs"):
                recorder.vector(wrong)  # type: ignore[arg-type]
        vector = recorder.vector(2)
        assert isinstance(vector, VectorRecorder)
        assert repr(vector) == "<salus.VectorRecorder of 2 environments: 0 open episodes>"
