"""The journal of an episode in progress: after a kill, it holds all but the last half second, bit-exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import salus
from salus.codecs import decode_chunk
from salus.layout import array_specs
from salus.recorder.journal import NAME, is_alive, read_journal

from .faults.killed_recorder import SCHEMA, SEGMENT, record_and_die, step


@pytest.fixture
def killed(path: Path) -> tuple[Path, int, int]:
    """A recorder killed after about 1.3 s: the episode's folder, the steps appended, and those half a second before."""
    salus.create(path, SCHEMA)
    journals = path / "_salus" / "journal"

    def alive(slot: int) -> None:
        assert is_alive(journals / f"{slot:010d}" / NAME)

    left = record_and_die(path, 1.3, alive=alive)
    return journals / f"{left.slot:010d}", left.appended, left.durable


def test_a_killed_recorder_leaves_its_steps_in_the_journal(killed: tuple[Path, int, int]) -> None:
    folder, appended, durable = killed
    assert not is_alive(folder / NAME)
    start, *frames = read_journal(folder / NAME)
    assert start.document["type"] == "start"
    assert start.document["metadata"] == {"task": "killed"}
    specs, found = array_specs(SCHEMA), 0
    for frame in frames:
        if frame.document["type"] == "segment":
            found = max(found, (frame.document["segment"] + 1) * SEGMENT)  # these steps are in shards in place
            continue
        first, count, place = frame.document["first"], frame.document["count"], 0
        sizes = frame.document["arrays"]
        rows = {}
        for name in sorted(sizes):
            spec = specs[name]
            raw = np.frombuffer(frame.rows[place : place + sizes[name]], spec.numpy_dtype)
            rows[name], place = raw.reshape(count, *spec.stored_step_shape), place + sizes[name]
        growing = folder / f"camera.{first // SEGMENT}.shard"  # or finished meanwhile: the chunks stay where they are
        in_place = folder.parents[2] / specs["camera"].shard_key(int(folder.name), first // SEGMENT)
        segment = (growing if growing.exists() else in_place).read_bytes()
        for row in range(count):
            number = first + row
            np.testing.assert_array_equal(rows["q"][row], step(number)["q"])
            assert rows["timestamp_ns"][row] == 1000 + number
            assert frame.document["texts"]["say"][row] == step(number)["say"]
            offset, size = frame.document["chunks"]["camera"][row]
            image = decode_chunk(specs["camera"], segment[offset : offset + size])[0].transpose(2, 0, 1)
            np.testing.assert_array_equal(image, step(number)["camera"])
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
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder, recorder.episode() as episode:
        for number in range(40):
            episode.append(step(number))
    assert list((path / "_salus" / "journal").iterdir()) == []
