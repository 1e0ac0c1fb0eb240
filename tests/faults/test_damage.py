"""Damage to one episode: every truncation and every changed byte is found, or changes nothing; others stay readable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import salus
from salus.errors import CorruptDataError

from .scenario import LENGTHS, SCHEMA, make_episode

DAMAGED = 1
SEEDS = tuple(LENGTHS)
EVERY = 16  # the others are read after one damage in so many


@pytest.fixture
def path(memory_path: Path) -> Path:
    path = memory_path / "data.zarr"
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        for seed in SEEDS:
            recorder.record_episode(make_episode(seed), {"seed": seed}, outcome="success")
    return path


def first_shard(feature: str) -> Callable[[Path], Path]:
    axes = 2 + len(SCHEMA.features[feature].shape)
    return lambda path: path / feature / ".".join(["c", str(DAMAGED), *"0" * (axes - 1)])


def record(path: Path) -> Path:
    return path / "_salus" / "log" / "0" / f"{DAMAGED:010d}.json"


def read_whole(dataset: salus.Dataset, number: int) -> None:
    """Read an episode; a wrong value fails the test, damage that was found raises CorruptDataError."""
    episode = dataset[number]
    assert episode.metadata == {"seed": SEEDS[number]}
    assert episode.outcome == salus.Outcome("success")
    assert len(episode) == LENGTHS[SEEDS[number]]
    for name, values in make_episode(SEEDS[number]).items():
        np.testing.assert_array_equal(episode[name][:], values)


def check_damage(path: Path, number: int, *, found: bool) -> None:
    dataset = salus.open(path)
    assert len(dataset) == len(SEEDS)
    if found:
        with pytest.raises(CorruptDataError):
            read_whole(dataset, DAMAGED)
    else:
        read_whole(dataset, DAMAGED)
    if number % EVERY == 0:
        for other in set(range(len(SEEDS))) - {DAMAGED}:
            read_whole(dataset, other)


FILES = pytest.mark.parametrize(
    "file",
    [first_shard("camera"), first_shard("states"), first_shard("say"), record],
    ids=["camera", "states", "say", "record"],
)


@FILES
def test_every_truncation_is_found(path: Path, file: Callable[[Path], Path]) -> None:
    whole = file(path).read_bytes()
    for size in range(len(whole)):
        file(path).write_bytes(whole[:size])
        check_damage(path, size, found=True)
    file(path).write_bytes(whole)
    check_damage(path, 0, found=False)


@FILES
def test_every_changed_byte_is_found(path: Path, file: Callable[[Path], Path]) -> None:
    # Checksums cover all bytes: of the chunks, of the whole shard index (its unused entries too), of the record.
    whole = file(path).read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        file(path).write_bytes(changed)
        check_damage(path, place, found=True)


@FILES
def test_more_bytes_than_were_written_are_found(path: Path, file: Callable[[Path], Path]) -> None:
    whole = file(path).read_bytes()
    for more in (b"\0", b" ", whole):
        file(path).write_bytes(whole + more)
        check_damage(path, 0, found=True)


@FILES
def test_a_lost_file_is_found(path: Path, file: Callable[[Path], Path]) -> None:
    file(path).unlink()
    if file is record:  # a slot without a record was never committed, as far as the log can tell
        assert [episode.metadata["seed"] for episode in salus.open(path)] == [0, 2, 3]
    else:
        check_damage(path, 0, found=True)


@pytest.mark.parametrize("feature", ["camera", "states", "say"])
def test_a_shard_of_another_episode_in_its_place_is_found_by_its_size(path: Path, feature: str) -> None:
    # One of equal size has checksums that hold: only the sha256 in the record tells it, which is for `verify` to check.
    shard = first_shard(feature)(path)
    stranger = shard.with_name(shard.name.replace(f"c.{DAMAGED}.", "c.3."))
    assert stranger.stat().st_size != shard.stat().st_size
    shard.write_bytes(stranger.read_bytes())
    check_damage(path, 0, found=True)


def test_the_record_of_another_episode_in_its_place_is_found(path: Path) -> None:
    other = record(path).with_name("0000000000.json")
    record(path).write_bytes(other.read_bytes())
    check_damage(path, 0, found=True)


def test_damage_does_not_stop_recording_and_publishing(path: Path) -> None:
    record(path).write_bytes(b"{}")
    with salus.Recorder(salus.open(path, mode="a")) as recorder:
        recorder.record_episode(make_episode(0), {"seed": 0})
    dataset = salus.open(path)
    assert len(dataset) == len(SEEDS) + 1
    assert dataset.episodes["status"] == ["committed", "corrupt", "committed", "committed", "committed"]
