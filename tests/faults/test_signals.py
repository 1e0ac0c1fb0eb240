"""Ctrl-C and SIGTERM at a program that records: its episodes end as it chose, it says so, and commits are finished."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import salus

from .scenario import SCHEMA, make_episode

SCRIPT = """
import sys, time
from pathlib import Path
import salus
from tests.faults.scenario import SCHEMA, make_episode

path, choice = sys.argv[1:]
arrays = make_episode(0, 2000)
try:
    with salus.Recorder(salus.create(path, SCHEMA, exist_ok=True), on_interrupt=choice) as recorder:
        started = recorder.start(kind="started")
        with recorder.episode(kind="block") as episode:
            for step in range(2000):
                values = {name: values[step] for name, values in arrays.items()}
                started.append(values)
                episode.append(values)
                if step == 5:
                    print("recording", flush=True)
                time.sleep(0.01)
finally:
    print("cleaned up", flush=True)
"""
ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(memory_path: Path) -> Path:
    return memory_path / "data.zarr"


@pytest.mark.parametrize("choice", ["abort", "salvage"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_recording_ends_as_it_chose(path: Path, number: signal.Signals, choice: str) -> None:
    command = [sys.executable, "-c", SCRIPT, str(path), choice]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "recording\n"
    time.sleep(0.1)
    process.send_signal(number)
    shown, said = process.communicate(timeout=60)
    assert "cleaned up" in shown
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGINT), said
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    lines = dict(re.findall(rf"salus: {name}: episode (\S+) of (\d+) steps is ", said))
    assert len(lines) == 2, said
    dataset = salus.open(path)
    assert all(found.state == "dead" for found in dataset.unfinished())
    if "salus recover" in said:  # it came inside append
        assert choice == "salvage"
        salus.recover(path)
        dataset.refresh()
    assert dataset.unfinished() == []
    if choice == "abort":
        assert len(dataset) == 0
        assert said.count("is aborted, its steps are not kept") == 2
        return
    assert {entry.uid for entry in dataset.episodes} == set(lines)
    assert dataset.episodes["status"] == ["salvaged"] * 2
    for episode in dataset:
        assert int(lines[episode.uid]) <= len(episode) <= int(lines[episode.uid]) + 1
        for feature, values in make_episode(0, 2000).items():
            np.testing.assert_array_equal(episode[feature][:], values[: len(episode)])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_commit_that_was_under_way_is_finished(
    path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = salus.recorder.files.EpisodeFiles.commit

    def interrupted(*arguments: object) -> object:
        os.kill(os.getpid(), number)
        time.sleep(0.3)
        return commit(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(salus.recorder.files.EpisodeFiles, "commit", interrupted)
    expected = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    with pytest.raises(expected), salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        recorder.record_episode(make_episode(0))
    assert salus.open(path).episodes["status"] == ["committed"]
    assert "of 6 steps is committed" in capsys.readouterr().err


def test_sigterm_is_taken_in_the_block_only_and_given_back(path: Path) -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    dataset = salus.create(path, SCHEMA)
    with salus.Recorder(dataset), salus.Recorder(dataset):
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_of_the_program_stays(path: Path) -> None:
    received: list[int] = []

    def handler(number: int, frame: object) -> None:
        received.append(number)

    signal.signal(signal.SIGTERM, handler)
    try:
        with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
            assert signal.getsignal(signal.SIGTERM) is handler
            os.kill(os.getpid(), signal.SIGTERM)
            recorder.record_episode(make_episode(0))
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert received == [signal.SIGTERM]
    assert len(salus.open(path)) == 1


def test_outside_the_main_thread_nothing_is_taken(path: Path) -> None:
    found: list[object] = []

    def record() -> None:
        with salus.Recorder(salus.create(path, SCHEMA)):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=record)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


def test_an_unknown_choice_is_refused(path: Path) -> None:
    with pytest.raises(salus.InvalidInputError, match='expected "abort" or "salvage"'):
        salus.Recorder(salus.create(path, SCHEMA), on_interrupt="keep")  # type: ignore[arg-type]


def test_steps_before_an_interrupt_inside_append_are_left_for_recover(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = make_episode(0)
    with pytest.raises(KeyboardInterrupt):
        with salus.Recorder(salus.create(path, SCHEMA), on_interrupt="salvage") as recorder:
            with recorder.episode() as episode:
                for step in range(6):
                    episode.append({name: values[step] for name, values in arrays.items()})
                episode._stream.problem = salus.RecordingError("interrupted inside append")  # as `append` does then
                raise KeyboardInterrupt
    assert "salus recover" in capsys.readouterr().err
    assert [found.num_steps for found in salus.recover(path).salvaged] == [6]
    for name, values in arrays.items():
        np.testing.assert_array_equal(salus.open(path)[0][name][:], values)
