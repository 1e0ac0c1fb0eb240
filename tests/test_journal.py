"""The journal of an episode in progress: after a kill, it holds all but the last half second, bit-exact."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

import salus
from salus.codecs import decode_chunk
from salus.layout import array_specs
from salus.recorder.journal import NAME, is_alive, read_journal

RATE = 50.0


def schema() -> salus.Schema:
    features = {"images": salus.Image(height=6, width=8), "q": salus.Feature((2,)), "say": salus.Text()}
    return salus.Schema(features, rate_hz=RATE, segment_steps=32)


def step(number: int) -> dict[str, object]:
    rng = np.random.default_rng(number)
    images = rng.integers(0, 256, (3, 6, 8), dtype=np.uint8)
    return {"images": images, "q": rng.normal(size=2).astype(np.float32), "say": f"step {number}"}


def record_until_killed(path: Path, connection: Connection) -> None:
    recorder = salus.Recorder(salus.create(path, schema()))
    episode = recorder.start(task="killed")
    connection.send(episode.slot)
    number = 0
    while True:
        episode.append(step(number), timestamp_ns=1000 + number)
        number += 1
        connection.send((number, time.monotonic()))
        time.sleep(1 / RATE)


@pytest.fixture
def killed(path: Path) -> tuple[Path, int, int]:
    """A recorder killed after about 1.3 s: the episode's folder, the steps appended, and those half a second before."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=record_until_killed, args=(path, theirs), daemon=True)
    process.start()
    theirs.close()  # so that a child that dies is seen, and not waited for
    assert ours.poll(60)
    slot, appended = ours.recv(), []
    while not appended or appended[-1][1] - appended[0][1] < 1.3:
        assert ours.poll(30)
        appended.append(ours.recv())
    folder = path / "_salus" / "journal" / f"{slot:010d}"
    assert is_alive(folder / NAME)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    # The interval, and as much again for the writing thread to come round on a busy machine.
    before = [number for number, when in appended if when < appended[-1][1] - 1.0]
    return folder, appended[-1][0], before[-1]


def test_a_killed_recorder_leaves_its_steps_in_the_journal(killed: tuple[Path, int, int]) -> None:
    folder, appended, durable = killed
    assert not is_alive(folder / NAME)
    start, *frames = read_journal(folder / NAME)
    assert start.document["type"] == "start"
    assert start.document["metadata"] == {"task": "killed"}
    specs, found = array_specs(schema()), 0
    for frame in frames:
        if frame.document["type"] == "segment":
            found = max(found, (frame.document["segment"] + 1) * 32)  # these steps are in shards in place
            continue
        first, count, place = frame.document["first"], frame.document["count"], 0
        sizes = frame.document["arrays"]
        rows = {}
        for name in sorted(sizes):
            spec = specs[name]
            raw = np.frombuffer(frame.rows[place : place + sizes[name]], spec.numpy_dtype)
            rows[name], place = raw.reshape(count, *spec.stored_step_shape), place + sizes[name]
        growing = folder / f"images.{first // 32}.shard"  # or finished meanwhile: the chunks stay where they are
        in_place = folder.parents[2] / specs["images"].shard_key(int(folder.name), first // 32)
        segment = (growing if growing.exists() else in_place).read_bytes()
        for row in range(count):
            number = first + row
            np.testing.assert_array_equal(rows["q"][row], step(number)["q"])
            assert rows["timestamp_ns"][row] == 1000 + number
            assert frame.document["texts"]["say"][row] == f"step {number}"
            offset, size = frame.document["chunks"]["images"][row]
            image = decode_chunk(specs["images"], segment[offset : offset + size])[0].transpose(2, 0, 1)
            np.testing.assert_array_equal(image, step(number)["images"])
        found = first + count
    assert durable <= found <= appended


def test_a_journal_cut_or_torn_anywhere_gives_whole_frames_only(killed: tuple[Path, int, int], tmp_path: Path) -> None:
    body = (killed[0] / NAME).read_bytes()
    whole = list(read_journal(killed[0] / NAME))
    file = tmp_path / NAME
    for size in range(0, len(body), 97):
        file.write_bytes(body[:size])
        frames = list(read_journal(file))
        assert frames == whole[: len(frames)]
        assert len(frames) < len(whole)
    torn = bytearray(body)
    torn[len(torn) // 2] ^= 1
    file.write_bytes(torn)
    frames = list(read_journal(file))
    assert frames == whole[: len(frames)]
    assert len(frames) < len(whole)


def test_a_committed_episode_leaves_no_journal(path: Path) -> None:
    with salus.Recorder(salus.create(path, schema())) as recorder, recorder.episode() as episode:
        for number in range(40):
            episode.append(step(number))
    assert list((path / "_salus" / "journal").iterdir()) == []
