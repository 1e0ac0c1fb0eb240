"""What happens when the encoder or the disk cannot keep up: the policies, the counts, and memory that is used again."""

from __future__ import annotations

import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus
from salus.errors import InvalidInputError, QueueFullError, RecordingError
from salus.layout import array_specs
from salus.log.records import Record
from salus.recorder import QueueStatus, stream
from salus.recorder.pool import StepBuffer

HEIGHT, WIDTH = 24, 32
IMAGE_BYTES = HEIGHT * WIDTH * 3
STEP_BYTES = IMAGE_BYTES + 8 + 4  # image, stamp, one float


def make_schema(*, nullable: bool = False, cameras: int = 1) -> salus.Schema:
    images = {f"camera{n}": salus.Image(height=HEIGHT, width=WIDTH, nullable=nullable) for n in range(cameras)}
    return salus.Schema({**images, "q": salus.Feature((1,))}, rate_hz=50, segment_steps=16)


def image(number: int) -> np.ndarray:
    """uint8 (3, H, W) that differs from step to step in many pixels."""
    return np.random.default_rng(number).integers(0, 256, (3, HEIGHT, WIDTH), dtype=np.uint8)


class Gate:
    """An encoder that stands still until it is let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        real = stream.encode_chunk

        def encode(*arguments: Any) -> bytes:
            assert self.open.wait(10)  # a test that fails meanwhile closes its recorder, which waits for this
            return real(*arguments)

        monkeypatch.setattr(stream, "encode_chunk", encode)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


# --- policies ----------------------------------------------------------------------------------------------------


def test_block_waits_loses_nothing_and_reports_the_wait(path: Path, gate: Gate) -> None:
    with salus.Recorder(salus.create(path, make_schema()), queue_bytes=3 * STEP_BYTES) as recorder:
        episode = recorder.start()
        threading.Timer(0.2, gate.open.set).start()
        for number in range(10):
            episode.append(camera0=image(number), q=[number])
        episode.commit()
        status = recorder.queue_status
    assert status.waits >= 1
    assert 0 < status.longest_wait_s <= status.waited_s
    assert status.appended_steps == 10
    assert status.depth_bytes == 0
    assert status.peak_bytes == 3 * STEP_BYTES
    assert (status.refused_steps, status.dropped_images) == (0, 0)
    read = salus.open(path)[0]
    np.testing.assert_array_equal(read["camera0"][:], [image(number) for number in range(10)])
    assert read.dropped_images == {}


def test_raise_keeps_nothing_of_the_step_and_the_episode_goes_on(path: Path, gate: Gate) -> None:
    dataset = salus.create(path, make_schema())
    kept, refused = [], 0
    with salus.Recorder(dataset, queue_bytes=3 * STEP_BYTES, when_full="raise") as recorder:
        episode = recorder.start()
        for number in range(40):
            if number == 20:
                gate.open.set()
                while recorder.queue_status.depth_bytes:
                    time.sleep(0.001)
            before = episode.num_steps
            try:
                episode.append(camera0=image(number), q=[number])
                kept.append(number)
            except QueueFullError as error:
                refused += 1
                assert episode.num_steps == before
                message = str(error)
                assert f"{3 * STEP_BYTES} bytes wait and the step has {STEP_BYTES}" in message
                assert message.endswith(episode.uid)
        assert recorder.queue_status.refused_steps == refused
        assert recorder.queue_status.waits == 0
        assert episode.commit().num_steps == len(kept)
    assert refused >= 17
    assert {0, 1, 2, 20} <= set(kept)
    read = salus.open(path)[0]
    assert read["q"][:, 0].tolist() == kept
    np.testing.assert_array_equal(read["camera0"][:], [image(number) for number in kept])
    assert issubclass(QueueFullError, RecordingError)


def test_drop_keeps_the_rows_marks_the_images_and_says_so(path: Path, gate: Gate) -> None:
    dataset = salus.create(path, make_schema(nullable=True, cameras=2))
    with salus.Recorder(dataset, queue_bytes=3 * (2 * IMAGE_BYTES + 14), when_full="drop") as recorder:
        episode = recorder.start()
        for number in range(20):  # more than a segment; camera1 sends every second image
            second = image(1000 + number) if number % 2 == 0 else None
            episode.append(camera0=image(number), camera1=second, q=[number])
        gate.open.set()
        with pytest.warns(RuntimeWarning, match=r"images were dropped.*'camera0' \d+ of 20.*'camera1' \d+ of 20"):
            episode.commit()
        status = recorder.queue_status
    read = salus.open(path)[0]
    assert read["q"][:, 0].tolist() == list(range(20))
    assert (np.diff(read.timestamp_ns) > 0).all()
    first, second = read["camera0.valid"][:], read["camera1.valid"][:]
    assert first[:3].all()
    assert not first[4:].any()
    for step in range(20):
        np.testing.assert_array_equal(read["camera0"][step], image(step) if first[step] else np.zeros_like(image(0)))
        expected = image(1000 + step) if second[step] else np.zeros_like(image(0))
        np.testing.assert_array_equal(read["camera1"][step], expected)
    # An image that the caller did not have was not dropped.
    dropped = {"camera0": int((~first).sum()), "camera1": int((~second[::2]).sum())}
    assert read.dropped_images == dropped
    assert (read.statistics["camera0"].count == first.sum() * (IMAGE_BYTES // 3)).all()
    assert status.dropped_images == sum(dropped.values())
    assert status.waits == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing was dropped, so nothing is said
        with salus.Recorder(salus.open(path, mode="a"), when_full="drop") as recorder, recorder.episode() as episode:
            episode.append(camera0=image(0), camera1=image(1), q=[0])
    assert salus.open(path)[1].dropped_images == {}


def test_drop_still_waits_when_the_rows_alone_are_too_many(path: Path, gate: Gate) -> None:
    budget = IMAGE_BYTES + 13
    with salus.Recorder(
        salus.create(path, make_schema(nullable=True)), queue_bytes=budget, when_full="drop"
    ) as recorder:
        episode = recorder.start()
        episode.append(camera0=image(0), q=[0])
        threading.Timer(0.3, gate.open.set).start()
        count = 2 * budget // 13
        for number in range(1, count):
            episode.append(camera0=None, q=[number])
        assert recorder.queue_status.peak_bytes <= 2 * budget
        assert recorder.queue_status.waits >= 1
        episode.commit()
    assert salus.open(path)[0]["q"][:, 0].tolist() == list(range(count))


def test_drop_is_refused_where_an_image_must_be_there(path: Path) -> None:
    dataset = salus.create(path, make_schema())
    with pytest.raises(InvalidInputError, match=r"when_full: got 'drop', but 'camera0' must .*nullable=True"):
        salus.Recorder(dataset, when_full="drop")
    with pytest.raises(InvalidInputError, match="when_full: got 'wait', expected one of 'block', 'raise', 'drop'"):
        salus.Recorder(dataset, when_full="wait")  # type: ignore[arg-type]  # the error is the subject


@pytest.mark.parametrize("when_full", ["block", "raise", "drop"])
def test_a_step_larger_than_the_queue_is_taken_when_nothing_waits(path: Path, when_full: Any) -> None:
    dataset = salus.create(path, make_schema(nullable=True))
    with salus.Recorder(dataset, queue_bytes=1, when_full=when_full) as recorder, recorder.episode() as episode:
        episode.append(camera0=image(3), q=[0])
    np.testing.assert_array_equal(salus.open(path)[0]["camera0"][0], image(3))


def test_a_record_with_impossible_counts_of_dropped_images_is_corrupt() -> None:
    good = Record(0, "01900000-0000-7000-8000-000000000000", "committed", 3, dropped_images={"camera0": 2})
    assert Record.from_bytes(good.to_bytes(), 0).dropped_images == {"camera0": 2}
    for wrong in ({"camera0": -1}, {"camera0": 1.5}, {"camera0": True}, ["camera0"], 7):
        body = Record(0, good.uid, "committed", 3, dropped_images=wrong).to_bytes()  # type: ignore[arg-type]
        with pytest.raises(salus.CorruptDataError):
            Record.from_bytes(body, 0)


# --- buffers -----------------------------------------------------------------------------------------------------


def test_ten_thousand_steps_through_a_tiny_pool_keep_every_byte(path: Path) -> None:
    """The caller changes its one image right after each `append`, while a pool of few buffers goes round."""
    schema = salus.Schema(
        {"camera": salus.Image(height=5, width=7, layout="HWC"), "n": salus.Feature((), dtype="int32")}, rate_hz=50
    )
    content = np.random.default_rng(0).integers(0, 256, (10_000, 5, 7, 3), dtype=np.uint8)
    mine = np.zeros((5, 7, 3), np.uint8)
    with salus.Recorder(salus.create(path, schema), queue_bytes=4 * 117, threads=3) as recorder:
        with recorder.episode() as episode:
            for number, values in enumerate(content):
                mine[:] = values
                episode.append(camera=mine, n=number)
                mine[:] = 0
        assert recorder._pools is not None
        assert recorder._pools["step"].made <= 4 + 1
        assert recorder.queue_status.peak_bytes <= 4 * 117
    read = salus.open(path)[0]
    np.testing.assert_array_equal(read["n"][:], np.arange(10_000))
    np.testing.assert_array_equal(read["camera"][:], content)
    # Taken while the images were in memory that is used again.
    assert read.statistics["camera"].to_json() == read.read_statistics("camera", recompute=True).to_json()
    assert read.statistics["camera"].count.tolist() == [35 * 10_000] * 3


def test_a_full_queue_keeps_order_and_content_from_several_threads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, random = stream.encode_chunk, np.random.default_rng(0)

    def uneven(*arguments: Any) -> bytes:
        time.sleep(float(random.uniform(0, 0.004)))  # later steps are often encoded before earlier ones
        return real(*arguments)

    monkeypatch.setattr(stream, "encode_chunk", uneven)
    steps, writers = 60, 4

    def record(seed: int) -> None:
        with recorder.episode(seed=seed) as episode:
            for step in range(steps):
                episode.append(camera0=image(seed * steps + step), q=[step])

    with salus.Recorder(salus.create(path, make_schema()), queue_bytes=3 * STEP_BYTES, threads=3) as recorder:
        threads = [threading.Thread(target=record, args=(seed,)) for seed in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # Each thread may exceed the budget by the step that it looked for room for.
        assert recorder.queue_status.peak_bytes <= (3 + writers) * STEP_BYTES
        assert recorder.queue_status.waits > 0
        assert recorder._pools is not None
        assert recorder._pools["step"].made <= 3 + 1 + writers
    dataset = salus.open(path)
    assert len(dataset) == writers
    for episode in dataset:
        first = episode.metadata["seed"] * steps
        assert episode["q"][:, 0].tolist() == list(range(steps))
        np.testing.assert_array_equal(episode["camera0"][:], [image(first + step) for step in range(steps)])


def test_memory_is_bounded_by_the_queue_and_the_pool(path: Path, gate: Gate) -> None:
    schema = salus.Schema({"camera": salus.Image(height=256, width=256, nullable=True)}, rate_hz=50)
    size = 256 * 256 * 3
    frame = np.zeros((3, 256, 256), np.uint8)
    with salus.Recorder(salus.create(path, schema), queue_bytes=8 * size, when_full="drop") as recorder:
        episode = recorder.start()
        tracemalloc.start()
        try:
            for _ in range(200):  # 39 MB, of which 1.6 MB may wait
                episode.append(camera=frame)
            used = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert recorder._pools is not None
        assert recorder._pools["step"].made <= 8 + 1
        assert used < 2 * size  # the pool was there before; what came since is rows
        gate.open.set()
        with pytest.warns(RuntimeWarning, match="images were dropped"):
            episode.commit()


def _orders(array: np.ndarray) -> dict[str, np.ndarray]:
    """The same values, (1, H, W, C), in memory of every kind that a caller may have."""
    padded = np.zeros((1, *(size + 3 for size in array.shape[1:])), array.dtype)
    inner = padded[:, 1 : 1 + array.shape[1], 2 : 2 + array.shape[2], : array.shape[3]]
    inner[:] = array
    readonly = array.copy()
    readonly.flags.writeable = False
    return {
        "plain": array.copy(),
        "read-only": readonly,
        "planes": np.ascontiguousarray(array.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1),
        "channels exchanged": array[..., ::-1].copy()[..., ::-1],
        "planes exchanged": np.ascontiguousarray(array[..., ::-1].transpose(0, 3, 1, 2))[:, ::-1].transpose(0, 2, 3, 1),
        "upside down": array[:, ::-1].copy()[:, ::-1],
        "columns first": np.asfortranarray(array),
        "cut out": inner,
        "every second": np.repeat(array, 2, axis=2)[:, :, ::2],
    }


@pytest.mark.parametrize("dtype", ["uint8", "float32", "int16", "bool"])
def test_a_buffer_copies_memory_of_every_order(dtype: str) -> None:
    schema = salus.Schema({"x": salus.Feature((24, 32, 8), dtype=dtype)}, rate_hz=10)
    buffer = StepBuffer({"x": array_specs(schema)["x"]})
    values = np.random.default_rng(0).integers(0, 256, (1, 24, 32, 8)).astype(dtype)
    for kind, given in _orders(values).items():
        np.testing.assert_array_equal(given, values)
        buffer.arrays["x"][:] = 0
        copied = buffer.copy("x", given)
        assert np.shares_memory(copied, buffer.arrays["x"]), kind
        assert not np.shares_memory(copied, given), kind
        np.testing.assert_array_equal(copied, values, err_msg=kind)
    same = np.broadcast_to(values[:, :1, :1], values.shape)
    np.testing.assert_array_equal(buffer.copy("x", same), same)


@pytest.mark.parametrize("codec", ["zstd", "jpeg"])
@pytest.mark.parametrize("layout", ["CHW", "HWC"])
def test_images_in_every_order_are_stored_alike(path: Path, layout: Any, codec: Any) -> None:
    if codec == "jpeg":
        pytest.importorskip("imagecodecs", reason="the extra 'jpeg' is not installed")
    schema = salus.Schema({"camera": salus.Image(height=24, width=32, layout=layout, codec=codec)}, rate_hz=10)
    ramp = np.linspace(0, 255, 24 * 32 * 3).reshape(1, 24, 32, 3).astype(np.uint8)
    with salus.Recorder(salus.create(path, schema)) as recorder:
        with recorder.episode() as episode:
            for given in _orders(ramp).values():
                episode.append(camera=given[0])
                episode.append(camera=given[0].transpose(2, 0, 1))
    read = salus.open(path)[0]["camera"][:]
    assert len(read) == 2 * len(_orders(ramp))
    for values in read[1:]:
        np.testing.assert_array_equal(values, read[0])
    if codec == "zstd":
        np.testing.assert_array_equal(read[0], ramp[0] if layout == "HWC" else ramp[0].transpose(2, 0, 1))


# --- the quick way through the checks is the same as the long one ------------------------------------------------


def _checked(check: Callable[[], Any]) -> Any:
    try:
        return check()
    except InvalidInputError as error:
        return str(error)


@pytest.mark.parametrize(
    "step",
    [
        {"a.q": np.ones(2), "a.image": np.ones((3, 4, 5), np.uint8), "n": np.int16(3)},
        {"a": {"q": np.ones(2, "f4"), "image": np.ones((3, 4, 5), np.uint8)}, "n": np.array(3, "i2")},
        {"a": {"q": np.ones(2), "image": np.ones((4, 5, 3), np.uint8)}, "n": 3},
        {"a.q": np.array([1e300, 0]), "a.image": None, "n": np.array(3, "i2")},
        {"a.q": np.array([np.nan, 0]), "a.image": np.ones((3, 4, 5), np.uint8), "n": np.array(3, "i2")},
        {"a.q": np.ones(2, "i8"), "a.image": np.ones((3, 4, 5), np.uint8), "n": np.array(3, "i8")},
        {"a.q": np.ones(3), "a.image": np.ones((3, 4, 5), np.uint8), "n": np.array(3, "i2")},
        {"a.q": np.ones(2), "n": np.array(3, "i2")},
    ],
)
def test_a_step_is_checked_alike_the_quick_and_the_long_way(step: dict[str, Any]) -> None:
    from salus.recorder.checking import StepChecker

    schema = salus.Schema(
        {
            "a.q": salus.Feature((2,)),
            "a.image": salus.Image(height=4, width=5, nullable=True),
            "n": salus.Feature((), dtype="int16"),
        },
        rate_hz=10,
    )
    checker = StepChecker(schema)
    quick, long = _checked(lambda: checker.step(step, {})), _checked(lambda: checker._check(step, {}, whole=False)[0])
    assert type(quick) is type(long)
    if isinstance(long, str):
        assert quick == long
        return
    assert quick.keys() == long.keys()
    for name, values in long.items():
        np.testing.assert_array_equal(quick[name], values)
        assert (quick[name].dtype, quick[name].shape) == (values.dtype, values.shape)


def test_the_counts_start_at_zero(path: Path) -> None:
    with salus.Recorder(salus.create(path, make_schema()), queue_bytes=1000) as recorder:
        assert recorder.queue_status == QueueStatus(capacity_bytes=1000)
        recorder.record_episode({"camera0": np.stack([image(0)] * 5), "q": np.zeros((5, 1))})
        assert recorder.queue_status.appended_steps == 5
