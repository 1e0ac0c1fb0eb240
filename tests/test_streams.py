"""Streams on clocks of their own: push and poll, lengths and stamps per clock, what is refused, what a crash leaves."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
import warnings
import weakref
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import salus
from salus.errors import InvalidInputError, QueueFullError, RecordingError
from salus.log.publish import publish

SPAWN = multiprocessing.get_context("spawn")
SCHEMA = salus.Schema(
    {
        "camera": salus.Image(height=6, width=8),
        "q": salus.Feature((3,), clock="joints"),
        "effort": salus.Feature((), "float64", nullable=True, clock="joints"),
        "wrist": salus.Image(height=4, width=5, layout="HWC", nullable=True, clock="wrist"),
        "say": salus.Text(),
    },
    rate_hz=50,
    segment_steps=8,
    clocks={"joints": 1000, "wrist": 30},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.zarr"


def image(number: int, shape: tuple[int, ...] = (3, 6, 8)) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def step(number: int) -> dict[str, Any]:
    return {"camera": image(number), "say": f"step {number}"}


def joints(number: int) -> dict[str, Any]:
    q = np.random.default_rng(number).normal(size=3).astype(np.float32)
    return {"q": q, "effort": float(number) if number % 3 else None}


def check_row(path: Path, slot: int, num_steps: int, num_joints: int, num_wrist: int) -> None:
    """What `step`, `joints` and the wrist camera gave, as plain zarr reads it."""
    group = zarr.open_group(path, mode="r")
    assert group["episode_length"][slot] == num_steps
    assert group["joints.episode_length"][slot] == num_joints
    assert group["wrist.episode_length"][slot] == num_wrist
    np.testing.assert_array_equal(group["camera"][slot, :num_steps], [image(n) for n in range(num_steps)])
    assert group["say"][slot, :num_steps].tolist() == [f"step {n}" for n in range(num_steps)]
    wanted = [joints(n) for n in range(num_joints)]
    if wanted:
        np.testing.assert_array_equal(group["q"][slot, :num_joints], [values["q"] for values in wanted])
    assert group["effort.valid"][slot, :num_joints].tolist() == [values["effort"] is not None for values in wanted]
    assert group["effort"][slot, :num_joints].tolist() == [values["effort"] or 0 for values in wanted]
    for n in range(num_wrist):
        expected = image(n, (4, 5, 3)) if n % 2 == 0 else np.zeros((4, 5, 3), np.uint8)
        np.testing.assert_array_equal(group["wrist"][slot, n], expected)


# --- recording ---------------------------------------------------------------------------------------------------


def test_three_threads_record_three_clocks_of_one_episode(path: Path) -> None:
    def push_joints() -> None:
        for number in range(1000):
            episode.push("joints", joints(number), timestamp_ns=10**9 + number * 10**6)

    def push_wrist() -> None:
        for number in range(30):
            value = image(number, (4, 5, 3)) if number % 2 == 0 else None
            episode.push("wrist", {"wrist": value}, timestamp_ns=10**9 + number * 33_000_000)

    with salus.Recorder(salus.create(path, SCHEMA)) as recorder, recorder.episode() as episode:
        threads = [threading.Thread(target=push_joints), threading.Thread(target=push_wrist)]
        for thread in threads:
            thread.start()
        for number in range(50):
            episode.append(step(number), timestamp_ns=10**9 + number * 20_000_000)
        for thread in threads:
            thread.join()
        assert episode.num_steps == 50
        assert episode.clock_lengths == {"joints": 1000, "wrist": 30}
    check_row(path, 0, 50, 1000, 30)
    group = zarr.open_group(path, mode="r")
    np.testing.assert_array_equal(group["joints.timestamp_ns"][0], 10**9 + np.arange(1000) * 10**6)
    np.testing.assert_array_equal(group["wrist.timestamp_ns"][0], 10**9 + np.arange(30) * 33_000_000)
    assert group["joints.timestamp_ns"].metadata.dimension_names == ("episode", "joints_step")
    # A segment of joints takes about as long as one of the steps: 20 times as many, in inner chunks of 8.
    assert group["q"].shards == (1, 160, 3)
    assert group["q"].chunks == (1, 8, 3)
    assert group["wrist"].shards == (1, 8, 4, 5, 3)


def test_the_only_feature_of_a_clock_needs_no_name_and_several_steps_come_at_once(path: Path) -> None:
    schema = salus.Schema(
        {"s": salus.Feature(), "q": salus.Feature((2,), clock="joints")}, rate_hz=10, clocks={"joints": 100}
    )
    values = np.arange(2000, dtype=np.float32).reshape(1000, 2)
    with salus.Recorder(salus.create(path, schema)) as recorder, recorder.episode() as episode:
        episode.push("step", {"s": 1.0}, timestamp_ns=0)
        episode.push("joints", [-1, -1], timestamp_ns=-1)
        episode.push("joints", values, timestamp_ns=np.arange(1000))
        values[:] = 0  # it was copied
        episode.push("joints", {"q": [[7, 7]]}, timestamp_ns=np.array([5000]))
    group = zarr.open_group(path, mode="r")
    expected = [[-1, -1], *np.arange(2000).reshape(1000, 2).tolist(), [7, 7]]
    assert group["q"][0].tolist() == expected
    assert group["joints.timestamp_ns"][0].tolist() == [-1, *range(1000), 5000]


@pytest.mark.parametrize("when_full", ["block", "drop"])
def test_batches_of_any_size_cross_the_borders_of_segments(path: Path, when_full: Any) -> None:
    schema = salus.Schema(
        {"s": salus.Feature(), "wrist": SCHEMA.features["wrist"], "q": salus.Feature((1,), clock="joints")},
        rate_hz=50,
        segment_steps=8,
        clocks={"joints": 1000, "wrist": 30},
    )
    images = np.stack([image(n, (4, 5, 3)) for n in range(30)])
    done = {"joints": 0, "wrist": 0}
    with salus.Recorder(salus.create(path, schema), when_full=when_full) as recorder, recorder.episode() as episode:
        for clock, size in [("joints", 1), ("wrist", 3), ("joints", 200), ("wrist", 7), ("joints", 333), ("wrist", 20)]:
            numbers = np.arange(done[clock], done[clock] + size)
            values = numbers[:, None] if clock == "joints" else images[numbers]
            episode.push(clock, values, timestamp_ns=numbers)
            done[clock] += size
        episode.append(s=1)
        assert episode.clock_lengths == {"joints": 534, "wrist": 30}
    group = zarr.open_group(path, mode="r")
    assert group["q"][0, :, 0].tolist() == list(range(534))
    assert group["joints.timestamp_ns"][0].tolist() == list(range(534))
    np.testing.assert_array_equal(group["wrist"][0], images)


def test_stamps_of_the_recorder_are_on_one_time_base(path: Path) -> None:
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder, recorder.episode() as episode:
        for number in range(20):
            episode.append(step(number))
            episode.push("joints", joints(number))
    group = zarr.open_group(path, mode="r")
    order = np.stack([group["timestamp_ns"][0], group["joints.timestamp_ns"][0]], axis=1).ravel()
    assert (np.diff(order) > 0).all()
    assert salus.open(path)[0]._record.clock_sources == {"joints": "monotonic"}


def test_a_clock_may_stay_empty_and_a_later_episode_may_be_longer_on_it(path: Path) -> None:
    dataset = salus.create(path, SCHEMA)
    with salus.Recorder(dataset) as recorder:
        late = recorder.start()
        with recorder.episode() as episode:
            episode.append(step(0))
        publish(dataset.storage)
        check_row(path, 1, 1, 0, 0)
        late.append(step(0))
        for number in range(3):
            late.push("joints", joints(number))
        late.commit()
    check_row(path, 0, 1, 3, 0)
    check_row(path, 1, 1, 0, 0)
    entries = salus.open(path)._entries
    assert [entry.clock_lengths for entry in entries] == [
        (("joints", 3), ("wrist", 0)),
        (("joints", 0), ("wrist", 0)),
    ]


def test_whole_episodes_with_lengths_of_their_own(path: Path) -> None:
    arrays = {
        "camera": np.stack([image(n) for n in range(4)]),
        "say": [f"step {n}" for n in range(4)],
        "q": np.stack([joints(n)["q"] for n in range(170)]),
        "effort": np.array([joints(n)["effort"] or 0.0 for n in range(170)]),
        "effort.valid": np.array([joints(n)["effort"] is not None for n in range(170)]),
    }
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        recorder.record_episode(arrays, timestamp_ns={"step": [0, 10, 20, 30]})
        recorder.record_episode(arrays)
        with pytest.raises(InvalidInputError, match="'effort': got 4 steps, others have 170"):
            recorder.record_episode({**arrays, "effort": np.zeros(4), "effort.valid": np.ones(4, bool)})
        with pytest.raises(InvalidInputError, match="timestamp_ns: got a clock 'arms', expected step, joints, wrist"):
            recorder.record_episode(arrays, timestamp_ns={"arms": [0]})
    for slot in (0, 1):
        check_row(path, slot, 4, 170, 0)
    first, second = salus.open(path)
    assert (first.timestamp_source, first._record.clock_sources) == ("caller", {"joints": "rate"})
    assert (second.timestamp_source, second._record.clock_sources) == ("rate", {"joints": "rate"})
    group = zarr.open_group(path, mode="r")
    assert group["joints.timestamp_ns"][1, :3].tolist() == [0, 10**6, 2 * 10**6]


def test_a_clock_of_a_whole_episode_may_be_empty_as_if_left_out(path: Path) -> None:
    steps = {"camera": np.stack([image(n) for n in range(4)]), "say": [f"step {n}" for n in range(4)]}
    empty = {"q": np.zeros((0, 3)), "effort": np.zeros(0), "effort.valid": np.zeros(0, bool)}
    no_stamps: list[int] = []
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        recorder.record_episode(steps)
        recorder.record_episode({**steps, **empty})
        recorder.record_episode({**steps, **empty}, timestamp_ns={"step": range(4), "joints": no_stamps})
        for arrays, stamps, text in [
            (
                {**steps, "q": np.zeros((0, 4))},
                None,
                r"'q': got shape \(0, 4\), expected \(T, …\) with a step of \(3,\)",
            ),
            ({**steps, **empty, "q": np.zeros((2, 3))}, None, "'effort': got 0 steps, others have 2"),
            ({**steps, **empty}, {"joints": [1]}, "got 1 stamps for 0 steps"),
            ({"camera": steps["camera"][:0], "say": []}, None, "record_episode: got arrays of 0 steps, expected at"),
        ]:
            with pytest.raises(InvalidInputError, match=text):
                recorder.record_episode(arrays, timestamp_ns=stamps)
    for slot in range(3):
        check_row(path, slot, 4, 0, 0)
    for episode in salus.open(path):
        assert (len(episode["q"]), episode._record.clock_sources) == (0, {})


def test_what_does_not_fit_is_said_and_nothing_of_it_is_kept(path: Path) -> None:
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder, recorder.episode() as episode:
        episode.append(step(0))
        for name, values, stamps, text in [
            ("arms", 1, None, "push: got 'arms', expected a clock of the schema: 'step', 'joints', 'wrist'"),
            ("q", 1, None, "push: got 'q', which is a feature on the clock 'joints', expected a clock"),
            ("joints", [1, 2, 3], None, "push to 'joints': got list, expected a mapping of 'q', 'effort' to values"),
            ("joints", {"q": [1, 2]}, None, r"push to 'joints': 'q': got shape \(2,\), expected \(3,\)"),
            ("joints", {"q": [1, np.nan, 2]}, None, "'q': got nan at"),
            ("joints", {"q": [1, 2, 3], "say": "no"}, None, "'say': runs on the clock 'step', not on 'joints'"),
            ("joints", {"q": np.ones((2, 3))}, [1, 1], "got 1 at step 1, expected more than 1"),
            ("joints", {"q": np.ones((2, 3))}, [1, 2, 3], "got 3 stamps for 2 steps"),
            ("joints", {"q": np.ones((0, 3))}, [], "got arrays of 0 steps"),
            ("joints", {"q": [1, 2, 3]}, 1.5, "got float 1.5, expected whole nanoseconds"),
        ]:
            with pytest.raises(InvalidInputError, match=text):
                episode.push(name, values, timestamp_ns=stamps)
        with pytest.raises(InvalidInputError, match=r"append: 'q': runs on the clock 'joints', not on 'step'; push"):
            episode.append(step(1), q=[1, 2, 3])
        episode.push("joints", joints(0), timestamp_ns=10)
        for stamps, text in [(10, "got 10, expected more than 10"), (None, "got none, expected one, as for the steps")]:
            with pytest.raises(InvalidInputError, match=text):
                episode.push("joints", joints(1), timestamp_ns=stamps)
        with pytest.raises(InvalidInputError, match="got 9, expected more than 10"):
            episode.push("joints", {"q": np.ones((2, 3))}, timestamp_ns=[9, 11])
    with pytest.raises(RecordingError, match="push: the episode is already committed"):
        episode.push("joints", joints(1), timestamp_ns=12)
    check_row(path, 0, 1, 1, 0)


def test_a_full_queue_of_a_stream(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, real = threading.Event(), salus.recorder.stream.encode_chunk
    monkeypatch.setattr(salus.recorder.stream, "encode_chunk", lambda *some: (gate.wait(10), real(*some))[1])
    dataset = salus.create(path, SCHEMA)
    schema_all_nullable = salus.Schema(
        {"s": salus.Feature(), "wrist": SCHEMA.features["wrist"]}, rate_hz=50, clocks={"wrist": 30}
    )
    with salus.Recorder(dataset, queue_bytes=70, when_full="raise") as recorder:
        episode = recorder.start()
        episode.push("wrist", image(0, (4, 5, 3)), timestamp_ns=0)
        with pytest.raises(QueueFullError, match="the 2 steps have 138, expected at most 70"):
            episode.push("wrist", np.zeros((2, 4, 5, 3), np.uint8), timestamp_ns=[1, 2])
        assert recorder.queue_status.refused_steps == 2
        gate.set()
        episode.discard()
    gate.clear()
    other = salus.create(path.with_name("other.zarr"), schema_all_nullable)
    with salus.Recorder(other, queue_bytes=70, when_full="drop") as recorder:
        episode = recorder.start()
        episode.push("wrist", np.stack([image(n, (4, 5, 3)) for n in range(3)]), timestamp_ns=[0, 1, 2])
        gate.set()
        episode.append(s=1)
        with pytest.warns(RuntimeWarning, match="images were dropped.*'wrist' 2 of 3"):
            episode.commit()
    group = zarr.open_group(other.storage.path("."), mode="r")
    assert group["wrist.valid"][0].tolist() == [True, False, False]
    assert salus.open(path.with_name("other.zarr"))[0].dropped_images == {"wrist": 2}


# --- poll --------------------------------------------------------------------------------------------------------


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_streams_that_are_polled_until_the_episode_ends(path: Path) -> None:
    calls = {"joints": 0, "wrist": 0}

    def read_joints() -> Any:
        calls["joints"] += 1
        return joints(calls["joints"] - 1), calls["joints"] * 1000

    def read_wrist() -> Any:
        calls["wrist"] += 1
        return {"wrist": image(0, (4, 5, 3))} if calls["wrist"] == 1 else None

    with salus.Recorder(salus.create(path, SCHEMA)) as recorder, recorder.episode() as episode:
        episode.poll("joints", read_joints, rate_hz=2000)
        episode.poll("wrist", read_wrist)
        wait_for(lambda: episode.clock_lengths["joints"] >= 20)
        episode.append(step(0))
    after = calls["joints"]
    time.sleep(0.02)
    assert calls["joints"] == after, "nobody asks when the episode has ended"
    assert calls["wrist"] == 2, "None ends a stream"
    length = salus.open(path)._entries[0].length("joints")
    assert after - 1 <= length <= after
    check_row(path, 0, 1, length, 1)
    stamps = zarr.open_group(path, mode="r")["joints.timestamp_ns"][0]
    np.testing.assert_array_equal(stamps, np.arange(1, length + 1) * 1000)


def test_a_sensor_that_fails_ends_its_stream_and_not_the_episode(path: Path) -> None:
    def fail() -> Any:
        raise OSError("the cable is loose")

    def bad() -> Any:
        return [1, 2]

    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        with recorder.episode() as episode:
            episode.poll("joints", fail)
            wait_for(lambda: episode._pollers._all[0].error is not None)
            with pytest.raises(RecordingError, match=r"append: the stream 'joints' has ended: OSError\('the cable is"):
                episode.append(step(0))
            episode.append(step(0))  # said once
            episode.poll("joints", bad)
            wait_for(lambda: episode._pollers._all[1].error is not None)
            with pytest.raises(RecordingError, match="push: the stream 'joints' has ended: InvalidInputError"):
                episode.push("joints", joints(0))
            episode.push("joints", joints(0))
        episode = recorder.start()
        episode.append(step(0))
        episode.poll("joints", fail)
        wait_for(lambda: episode._pollers._all[0].error is not None)
        with pytest.warns(RuntimeWarning, match="the stream 'joints' had ended before the episode did: OSError"):
            episode.commit()
        for rate, clock, text in [(0, "joints", "rate_hz: got 0"), (None, "q", "poll: got 'q', which is a feature")]:
            episode = recorder.start()
            with pytest.raises(InvalidInputError, match=text):
                episode.poll(clock, fail, rate_hz=rate)
            episode.discard()
            with pytest.raises(RecordingError, match="poll: the episode is already discarded"):
                episode.poll("joints", fail)
    check_row(path, 0, 1, 1, 0)
    check_row(path, 1, 1, 0, 0)


def test_a_sensor_that_never_answers_does_not_hold_the_episode(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(salus.recorder.polling, "JOIN_S", 0.01)
    answer = threading.Event()

    def read() -> Any:
        answer.wait(20)
        return joints(0)

    with salus.Recorder(salus.create(path, SCHEMA)) as recorder, recorder.episode() as episode:
        episode.poll("joints", read)
        episode.append(step(0))
    thread = episode._pollers._all[0]._thread
    assert thread.is_alive()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer.set()
        thread.join(10)
    check_row(path, 0, 1, 0, 0)


def test_the_memory_of_an_episode_that_has_ended_is_free_at_once(path: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
            episode = recorder.start()
            episode.append(step(0))
            episode.poll("joints", lambda: joints(0), rate_hz=100)
            episode.commit()
            thread = episode._pollers._all[0]._thread
            kept = [weakref.ref(thing) for thing in (episode, *episode._streams.values())]
            del episode
            thread.join(10)
            wait_for(lambda: not any(reference() for reference in kept))  # the writing thread lets go of its last job
    finally:
        gc.enable()


# --- schema ------------------------------------------------------------------------------------------------------


def test_a_dataset_without_other_clocks_has_the_files_that_it_had(path: Path) -> None:
    schema = salus.Schema({"s": salus.Feature()}, rate_hz=10)
    assert "clocks" not in schema.to_json()
    with salus.Recorder(salus.create(path, schema)) as recorder, recorder.episode() as episode:
        episode.append(s=1)
    record = (path / "_salus/log/0/0000000000.json").read_text()
    assert '"lengths":{"step":1}' in record
    assert "timestamp_sources" not in record
    table = salus.open(path)._entries.to_json()
    assert not [name for name in table["columns"] if "clock" in name]


def test_clocks_come_back_from_disk_and_may_be_added(path: Path) -> None:
    dataset = salus.create(path, SCHEMA)
    assert salus.open(path).schema.clocks == {"joints": 1000, "wrist": 30}
    assert dataset.schema.rate_of("joints") == 1000
    assert (dataset.schema.segment_steps_of("joints"), dataset.schema.segment_steps_of("wrist")) == (160, 8)
    slower = salus.Schema(SCHEMA.features, rate_hz=50, segment_steps=8, clocks={"joints": 500, "wrist": 30})
    with pytest.raises(InvalidInputError, match="clocks: the dataset has"):
        salus.create(path, slower, exist_ok=True)
    more = SCHEMA.extended({"force": salus.Feature((6,), clock="force")}, {"force": 250})
    assert more.clocks == {"joints": 1000, "wrist": 30, "force": 250}
    with pytest.raises(InvalidInputError, match="the clock 'joints' is there already"):
        SCHEMA.extended({"x": salus.Feature(clock="joints")}, {"joints": 1000})


@pytest.mark.parametrize(
    ("features", "clocks", "text"),
    [
        ({"a": salus.Feature(clock="b")}, {}, "'a': clock: got 'b', expected one of 'step'; Schema"),
        ({"a": salus.Feature()}, {"b": 5}, "clocks: 'b': no feature runs on it"),
        ({"a": salus.Feature(clock="b")}, {"b": 0}, "clocks: 'b': got 0, expected its rate in Hz"),
        ({"a": salus.Feature(clock="b.c")}, {"b.c": 5}, "clocks: got the name 'b.c'"),
        ({"a": salus.Feature(clock="step")}, {"step": 5}, "clocks: got the name 'step'"),
        (
            {"b.timestamp_ns": salus.Feature(), "a": salus.Feature(clock="b")},
            {"b": 5},
            "feature name: 'b.timestamp_ns' is kept for what belongs to the clock",
        ),
        ({"a": salus.Feature(clock="b"), "c": salus.Feature(clock="B")}, {"b": 5, "B": 5}, "differ in case only"),
        ({"a": salus.Feature((1, 1), derived="outcome", clock="b")}, {"b": 5}, "expected 'step' for what is computed"),
        ({"a": salus.Feature()}, 5, "clocks: got int, expected names to rates"),
    ],
)
def test_clocks_that_cannot_be_are_refused(features: Any, clocks: Any, text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        salus.Schema(features, rate_hz=10, clocks=clocks)


def test_vector_recorders_take_steps_only(path: Path) -> None:
    with (
        salus.Recorder(salus.create(path, SCHEMA)) as recorder,
        pytest.raises(InvalidInputError, match="vector: the schema has the clocks 'joints', 'wrist', expected"),
    ):
        recorder.vector(2)


# --- crashes -----------------------------------------------------------------------------------------------------


def record_until_killed(path: Path, connection: Connection) -> None:
    recorder = salus.Recorder(salus.open(path, mode="a"))
    episode, began = recorder.start(), time.monotonic()
    number = 0
    while True:
        for each in range(20):
            episode.push("joints", joints(number * 20 + each))
        episode.append(step(number))
        if number % 2 == 0:
            value = image(number // 2, (4, 5, 3)) if number // 2 % 2 == 0 else None
            episode.push("wrist", {"wrist": value})
        number += 1
        connection.send((time.monotonic(), number, number * 20))
        time.sleep(max(0, began + number / 50 - time.monotonic()))


@pytest.mark.parametrize("seconds", [1.9, 2.6])
def test_a_killed_recorder_leaves_every_clock_to_be_recovered(path: Path, seconds: float) -> None:
    salus.create(path, SCHEMA)
    here, there = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=record_until_killed, args=(path, there))
    process.start()
    there.close()
    given: list[tuple[float, int, int]] = [here.recv()]
    while time.monotonic() < given[0][0] + seconds:
        given.append(here.recv())
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    killed = time.monotonic()
    process.join()
    (episode,) = salus.recover(path).salvaged
    assert episode.lost_steps == 0
    promised = [(steps, ticks) for when, steps, ticks in given if when < killed - 1.5]  # 0.5 s, and a busy machine
    entry = salus.open(path)._entries[0]
    assert promised, "it died before anything was promised"
    assert entry.num_steps >= promised[-1][0]
    assert entry.length("joints") >= promised[-1][1]
    check_row(path, 0, entry.num_steps, entry.length("joints"), entry.length("wrist"))
    kept = salus.open(path)[0]
    assert sorted(kept._record.statistics) == ["camera", "effort", "q", "wrist"]
    assert kept._record.clock_sources == {"joints": "monotonic", "wrist": "monotonic"}
