"""`salus.recover` beside live recorders and other recoverers, on torn journals, and where it must give up."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus
from salus import documents
from salus.layout import array_specs, claim_key, journal_key
from salus.recorder.journal import JournalWriter, is_alive, read_journal
from salus.recorder.recovery import RecoveryReport

from .scenario import SCHEMA, make_episode

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def path(memory_path: Path) -> Path:
    return memory_path / "data.zarr"


def die_while_recording(path: Path, num_steps: int) -> None:
    """Record steps, make them durable, and die."""
    salus.recorder.files.FLUSH_INTERVAL_S = 0  # a frame of the journal per step
    recorder = salus.Recorder(salus.create(path, SCHEMA, exist_ok=True))
    episode = recorder.start(task="killed")
    arrays = make_episode(0, num_steps)
    for step in range(num_steps):
        episode.append({name: values[step] for name, values in arrays.items()}, timestamp_ns=step)
    recorder._background.start(lambda: None).result()  # all of it is written
    os._exit(9)


def dead(path: Path, num_steps: int) -> Path:
    """A dataset that a recorder left with an unfinished episode; returns its journal."""
    process = SPAWN.Process(target=die_while_recording, args=(path, num_steps))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    slot = salus.open(path).unfinished()[-1].slot
    return path / journal_key(slot)


def check_salvaged(path: Path, whole: int, num_steps: int) -> None:
    [episode] = salus.open(path)
    assert len(episode) == num_steps
    for name, values in make_episode(0, whole).items():
        np.testing.assert_array_equal(episode[name][:], values[:num_steps])
    np.testing.assert_array_equal(episode.timestamp_ns, np.arange(num_steps))


def test_a_journal_cut_at_every_byte_gives_the_whole_steps_before_the_cut(path: Path, memory_path: Path) -> None:
    journal = dead(path, 6)  # a whole segment of 4, then 2 steps
    body = journal.read_bytes()
    sizes, counts = [0], [0]
    for frame in read_journal(journal):
        raw = documents.canonical(frame.document)
        sizes.append(sizes[-1] + 8 + len(raw) + 1 + len(frame.rows))
        counts.append(counts[-1] + (frame.document["count"] if frame.document["type"] == "steps" else 0))
    assert sizes[-1] == len(body)
    assert counts[-1] == 6
    for size in range(sizes[-4] - 1, len(body)):  # the last frames: of the segment, and of the two steps after it
        copy = memory_path / "copy.zarr"
        shutil.copytree(path, copy)
        (copy / journal.relative_to(path)).write_bytes(body[:size])
        expected = max(count for end, count in zip(sizes, counts, strict=True) if end <= size)
        report = salus.recover(copy)
        assert [(found.action, found.num_steps) for found in report.episodes] == [("salvaged", expected)], size
        check_salvaged(copy, 6, expected)
        shutil.rmtree(copy)


def test_a_journal_without_a_whole_frame_is_aborted(path: Path) -> None:
    journal = dead(path, 3)
    for body in (b"", journal.read_bytes()[:20]):
        journal.write_bytes(body)
        assert [found.action for found in salus.recover(path, dry_run=True).episodes] == ["aborted"]
    assert [found.action for found in salus.recover(path).episodes] == ["aborted"]
    assert len(salus.open(path)) == 0
    assert salus.open(path).unfinished() == []


@pytest.mark.parametrize("twice", [True, False])
def test_an_array_in_the_wrong_member_of_a_frame_is_not_understood(path: Path, twice: bool) -> None:
    journal = dead(path, 3)
    frames = list(read_journal(journal))
    journal.unlink()
    writer = JournalWriter(journal.parent)
    for frame in frames:
        if frame.document["type"] == "steps":
            frame.document["texts"]["states"] = ["0"] * frame.document["count"]
            if not twice:
                del frame.document["arrays"]["states"]
        writer.add(frame.document, frame.rows)
    writer.close()
    [found] = salus.recover(path).episodes
    assert found.action == "left"
    assert "a frame is not understood" in found.reason
    assert "('states', 'texts')" in found.reason


@pytest.mark.parametrize("zeros", [8, 9, 4096])
def test_zeros_that_a_power_cut_left_end_the_journal(path: Path, zeros: int) -> None:
    journal = dead(path, 3)
    with journal.open("ab") as file:
        file.write(bytes(zeros))
    [found] = salus.recover(path).episodes
    assert (found.action, found.num_steps, found.lost_steps) == ("salvaged", 3, 0)


def test_a_journal_of_zeros_is_aborted(path: Path) -> None:
    journal = dead(path, 3)
    journal.write_bytes(bytes(4096))
    [found] = salus.recover(path).episodes
    assert (found.action, found.num_steps) == ("aborted", 0)


def test_a_journal_that_the_disk_refuses_is_a_typed_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, plain_open = dead(path, 3), os.open

    def refusing(file: Any, flags: int, *more: Any, **named: Any) -> int:
        if file == journal.name and not flags & os.O_DIRECTORY:  # relative to its folder
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))
        return plain_open(file, flags, *more, **named)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(salus.StorageError, match="Input/output error"):
        salus.open(path, mode="a")
    with pytest.raises(salus.StorageError, match="Input/output error"):
        salus.recover(path)


def test_the_first_image_that_does_not_hold_ends_the_episode(path: Path) -> None:
    journal = dead(path, 3)
    [shard] = journal.parent.glob("camera.0.shard")
    [*_, last] = read_journal(journal)
    offset = last.document["chunks"]["camera"][0][0]
    body = bytearray(shard.read_bytes())
    body[offset] ^= 1  # of the third image
    shard.write_bytes(body)
    report = salus.recover(path)
    assert [(found.num_steps, found.lost_steps) for found in report.episodes] == [(2, 1)]
    assert report.something_was_lost
    check_salvaged(path, 3, 2)


@pytest.mark.parametrize("damage", ["changed", "missing", "of another"])
def test_a_shard_in_place_that_the_journal_does_not_know_gives_the_episode_up(path: Path, damage: str) -> None:
    dead(path, 6)
    key = array_specs(SCHEMA)["states"].shard_key(0, 1 if damage == "of another" else 0)
    shard = path / key
    if damage == "changed":
        body = bytearray(shard.read_bytes())
        body[0] ^= 1
        shard.write_bytes(body)
    elif damage == "missing":
        shard.unlink()
    else:
        shutil.copyfile(path / array_specs(SCHEMA)["states"].shard_key(0, 0), shard)
    report = salus.recover(path)
    assert [(found.action, found.lost_steps) for found in report.episodes] == [("aborted", 6)]
    assert key in report.episodes[0].reason
    assert len(salus.open(path)) == 0


def test_a_live_recorder_is_left_alone(path: Path) -> None:
    dead(path, 3)
    with pytest.warns(salus.UnfinishedEpisodesWarning):
        dataset = salus.open(path, mode="a")
    with salus.Recorder(dataset) as recorder:
        live = recorder.start(task="live")
        arrays = make_episode(1)
        live.append({name: values[0] for name, values in arrays.items()})
        assert {found.uid: found.state for found in dataset.unfinished()}[live.uid] == "recording"
        for force in (False, True):
            report = salus.recover(path, force=force)
            assert [(found.uid, "alive" in found.reason) for found in report.left] == [(live.uid, True)]
            assert len(report.salvaged) == (0 if force else 1)
        live.append({name: values[1] for name, values in arrays.items()})
        entry = live.commit()
    assert salus.open(path).episodes["status"] == ["salvaged", "committed"]
    np.testing.assert_array_equal(salus.open(path)[entry.uid]["camera"][:], arrays["camera"][:2])


def recover_at_once(path: Path, barrier: Any, connection: Connection) -> None:
    barrier.wait()
    connection.send([(found.slot, found.action, found.reason) for found in salus.recover(path).episodes])


def test_of_two_recoverers_exactly_one_wins(path: Path) -> None:
    episodes = 6
    for _ in range(episodes):
        dead(path, 6)
    barrier = SPAWN.Barrier(2)
    pipes = [SPAWN.Pipe() for _ in range(2)]
    processes = [SPAWN.Process(target=recover_at_once, args=(path, barrier, theirs)) for _, theirs in pipes]
    for process, (_, theirs) in zip(processes, pipes, strict=True):
        process.start()
        theirs.close()  # so that one that dies is seen, and not waited for
    answers = [ours.recv() for ours, _ in pipes]
    for process in processes:
        process.join(60)
    won = [slot for answer in answers for slot, action, _ in answer if action == "salvaged"]
    assert sorted(won) == list(range(episodes))
    assert all("another process" in reason for answer in answers for _, action, reason in answer if action == "left")
    assert salus.open(path).episodes["num_steps"] == [6] * episodes


def test_an_episode_that_another_process_recovers_is_left_to_it(path: Path) -> None:
    journal = dead(path, 3)
    with journal.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as the other one holds it
        assert [found.state for found in salus.open(path).unfinished()] == ["recovering"]
        [found] = salus.recover(path).episodes
        assert (found.action, found.reason) == ("left", "another process recovers it")
    assert salus.recover(path).salvaged


def claim_of_another_host(path: Path, slot: int) -> None:
    file = path / claim_key(slot)
    document = documents.unseal(file.read_bytes(), key="claim")
    file.write_bytes(documents.seal(document | {"host": "elsewhere", "boot_id": "another"}))


def test_an_episode_of_another_host_is_given_up_only_by_force(path: Path) -> None:
    dead(path, 3)
    claim_of_another_host(path, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [found.state for found in salus.open(path, mode="a").unfinished()] == ["other host"]
    report = salus.recover(path)
    assert [(found.action, "elsewhere" in found.reason) for found in report.episodes] == [("left", True)]
    assert not report.something_was_lost
    report = salus.recover(path, force=True)
    assert [(found.action, found.lost_steps) for found in report.episodes] == [("aborted", None)]
    assert report.something_was_lost
    assert salus.recover(path) == RecoveryReport(())


def test_opening_for_writing_tells_of_dead_recorders_and_recovers_nothing(path: Path) -> None:
    journal = dead(path, 3)
    with pytest.warns(salus.UnfinishedEpisodesWarning, match=f"1 episode .* salus recover {path}") as caught:
        salus.open(path, mode="a")
    assert caught[0].filename == __file__
    assert len(salus.open(path)) == 0
    assert salus.recover(path, dry_run=True).salvaged
    assert journal.exists()
    assert not is_alive(journal)
    assert salus.open(path).unfinished()[0].state == "dead"


def test_an_episode_whose_record_was_removed_is_not_taken_for_an_unfinished_one(path: Path) -> None:
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        recorder.record_episode(make_episode(0))
    [record] = (path / "_salus" / "log").rglob("*.json")
    record.unlink()
    script = "import salus, sys; print([(e.action, e.reason) for e in salus.recover(sys.argv[1]).episodes])"
    shown = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=False, timeout=60
    )
    assert "its record" not in shown.stdout  # the process that recorded it, this one, is alive
    file = path / claim_key(0)
    document = documents.unseal(file.read_bytes(), key="claim")
    file.write_bytes(documents.seal(document | {"process_start": 1}))
    [found] = salus.recover(path).episodes
    assert (found.action, "its record" in found.reason) == ("left", True)


def run(*arguments: object, status: int) -> str:
    command = [sys.executable, "-c", "from salus.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def test_the_command_says_what_was_saved_and_what_was_lost(path: Path) -> None:
    dead(path, 6)
    document = json.loads(run("recover", path, "--dry-run", "--json", status=0))
    assert [(found["action"], found["num_steps"]) for found in document["episodes"]] == [("salvaged", 6)]
    shown = run("recover", path, status=0)
    assert "salvaged: 6 steps saved; recorded" in shown
    assert "nothing to recover" in run("recover", path, status=0)
    dead(path, 3)
    claim_of_another_host(path, 1)
    assert "left: it was recorded on the host 'elsewhere'" in run("recover", path, status=0)
    assert "an unknown number of steps lost" in run("recover", path, "--force", status=10)


def test_creating_with_another_schema_shows_every_difference(path: Path) -> None:
    salus.create(path, SCHEMA)
    other = salus.Schema(
        {"camera": salus.Image(height=2, width=4), "states": salus.Feature((2,)), "force": salus.Feature((1,))},
        rate_hz=25,
        segment_steps=4,
    )
    with pytest.raises(salus.InvalidInputError) as caught:
        salus.create(path, other, exist_ok=True)
    for name in ("camera.width", "force: the given schema has it", "say: the dataset has it", "rate_hz"):
        assert name in str(caught.value)
