"""What a recovered episode knows besides its steps: outcome, metadata, statistics, as its recorder had them."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus
from salus.layout import journal_key
from salus.recorder.journal import JournalWriter, read_journal
from salus.statistics import described

from .scenario import SCHEMA, make_episode
from .test_recover_edges import run

SPAWN = multiprocessing.get_context("spawn")
EVERYTHING = salus.Schema(
    {
        "image": salus.Image(height=12, width=10),
        "large": salus.Image(height=96, width=140, layout="HWC", nullable=True),
        "lossy": salus.Image(height=16, width=16, codec="jpeg"),
        "nan": salus.Feature((3,), allow_nan=True),
        "depth": salus.Feature((40, 50)),
        "many": salus.Feature((10, 10)),
        "whole": salus.Feature((2,), "int64"),
        "say": salus.Text(),
        "maybe": salus.Feature((2,), nullable=True),
    },
    rate_hz=10,
    segment_steps=16,
)


@pytest.fixture
def path(memory_path: Path) -> Path:
    return memory_path / "data.zarr"


def everything(step: int) -> dict[str, Any]:
    random = np.random.default_rng(step)
    return {
        "image": random.integers(0, 256, (3, 12, 10), dtype=np.uint8),
        "large": random.integers(0, 256, (96, 140, 3), dtype=np.uint8) if step % 3 else None,
        "lossy": random.integers(0, 256, (3, 16, 16), dtype=np.uint8),
        "nan": np.where(random.random(3) < 0.2, np.nan, random.normal(size=3)).astype(np.float32),
        "depth": random.normal(size=(40, 50)).astype(np.float32),
        "many": random.normal(size=(10, 10)).astype(np.float32),
        "whole": random.integers(-(10**12), 10**12, 2),
        "say": f"step {step}",
        "maybe": random.normal(size=2).astype(np.float32) if step % 2 else None,
    }


def written(recorder: salus.Recorder) -> None:
    recorder._background.start(lambda: None).result()


def record_everything_and_die(path: Path, num_steps: int, commit: bool) -> None:
    salus.recorder.files.FLUSH_INTERVAL_S = 0
    recorder = salus.Recorder(salus.open(path, mode="a"))
    episode = recorder.start()
    for step in range(num_steps):
        episode.append(everything(step))
    written(recorder)
    if commit:  # up to its record
        salus.recorder.files.EpisodeFiles.commit = lambda *_: os._exit(9)
        episode.commit()
    os._exit(9)


def die(record: Callable[..., None], *arguments: Any) -> None:
    process = SPAWN.Process(target=record, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == 9


@pytest.mark.parametrize("commit", [False, True])  # die while recording, or when all shards are in place
@pytest.mark.parametrize("num_steps", [5, 32, 41])  # within a segment, at its end, past several
def test_statistics_are_the_same_bits_as_those_of_a_recorder(path: Path, num_steps: int, commit: bool) -> None:
    with salus.Recorder(salus.create(path, EVERYTHING)) as recorder, recorder.episode() as episode:
        for step in range(num_steps):
            episode.append(everything(step))
    die(record_everything_and_die, path, num_steps, commit)
    report = salus.recover(path)
    assert [(found.num_steps, found.remarks) for found in report.salvaged] == [(num_steps, ())]
    recorded, recovered = salus.open(path)
    mine, theirs = recovered._record.statistics, recorded._record.statistics
    assert mine.keys() == theirs.keys() == set(described(EVERYTHING))
    for name in mine:
        for member in mine[name]:
            if (name, member) != ("lossy", "histogram") and (name != "lossy" or member in ("count", "every", "over")):
                sketches = member == "kll"  # their random choices, where they hold more values than they keep
                assert sketches or mine[name][member] == theirs[name][member], (name, member)
        quantiles = [one.statistics[name].quantile([0, 0.5, 1]) for one in (recovered, recorded)]
        if name != "lossy":
            np.testing.assert_allclose(*quantiles, rtol=0.3, atol=0.2)
    read = recovered.read_statistics("lossy", recompute=True)  # of what the codec left
    assert mine["lossy"] == read.to_json()


def test_they_are_of_the_steps_that_were_saved(path: Path) -> None:
    salus.create(path, EVERYTHING)
    die(record_everything_and_die, path, 41, False)
    [progress] = path.joinpath(journal_key(0)).parent.glob("image.2.shard")
    body = bytearray(progress.read_bytes())
    [*_, last] = read_journal(path / journal_key(0))
    body[last.document["chunks"]["image"][0][0]] ^= 1
    progress.write_bytes(body)
    assert [(found.num_steps, found.lost_steps) for found in salus.recover(path).salvaged] == [(40, 1)]
    [episode] = salus.open(path)
    for name in described(EVERYTHING):
        kept, read = episode.statistics[name], episode.read_statistics(name, recompute=True)
        for member in ("count", "mean", "std", "min", "max", "num_nan"):
            np.testing.assert_array_equal(getattr(kept, member), getattr(read, member), err_msg=name)


def test_images_that_cannot_be_decoded_here_come_back_without_statistics(path: Path) -> None:
    salus.create(path, EVERYTHING)
    die(record_everything_and_die, path, 20, False)
    script = (
        "import sys; sys.modules['imagecodecs'] = None; import salus\n"
        "[found] = salus.recover(sys.argv[1]).salvaged; print(found.num_steps, *found.remarks)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=False, timeout=60
    )
    assert shown.stdout.startswith("20 no statistics of 'lossy': "), shown.stderr
    assert "salus[jpeg]" in shown.stdout
    [episode] = salus.open(path)
    assert episode._record.statistics.keys() == set(described(EVERYTHING)) - {"lossy"}
    assert episode.statistics["lossy"].count.tolist() == [20 * 256] * 3  # they are read instead
    assert "no statistics of 'lossy'" in episode._record.reason


# --- outcome and metadata ------------------------------------------------------------------------------------------


def record_notes_and_die(path: Path, notes: list[list[Any]]) -> None:
    """Append steps and say things of the episode, in this order; and die, all of it written."""
    salus.recorder.files.FLUSH_INTERVAL_S = 0
    recorder = salus.Recorder(salus.create(path, SCHEMA, exist_ok=True))
    episode = recorder.start(task="killed", operator="ada")
    arrays, steps = make_episode(0, 6), iter(range(6))
    for method, *arguments in notes:
        if method == "steps":
            for step in itertools.islice(steps, arguments[0]):
                episode.append({name: values[step] for name, values in arrays.items()}, timestamp_ns=step)
        elif method == "fail":
            episode.fail(arguments[0], step=arguments[1])
        else:
            getattr(episode, method)(*arguments)
    written(recorder)
    os._exit(9)


@pytest.mark.parametrize(
    ("notes", "outcome", "metadata"),
    [
        ([["steps", 3]], salus.Outcome(), {}),
        ([["steps", 3], ["succeed"]], salus.Outcome("success"), {}),
        ([["succeed"], ["steps", 6]], salus.Outcome("success"), {}),
        ([["steps", 6], ["succeed"], ["fail", "drop", 4]], salus.Outcome("failure", "drop", 4), {}),
        ([["steps", 2], ["fail", None, None], ["steps", 4]], salus.Outcome("failure", None, 1), {}),
        (
            [["steps", 1], ["add_metadata", {"operator": "bob", "n": 1}], ["steps", 4], ["add_metadata", {"n": [2]}]],
            salus.Outcome(),
            {"operator": "bob", "n": [2]},
        ),
    ],
)
def test_what_was_said_before_the_crash_is_kept(
    path: Path, notes: list[list[Any]], outcome: salus.Outcome, metadata: dict[str, Any]
) -> None:
    die(record_notes_and_die, path, notes)
    [found] = salus.recover(path).salvaged
    assert found.remarks == ()
    [episode] = salus.open(path)
    assert episode.outcome == outcome
    assert episode.metadata == {"task": "killed", "operator": "ada", **metadata}
    assert len(episode) == sum(arguments[0] for method, *arguments in notes if method == "steps")


def test_a_failure_after_the_last_step_that_is_saved_has_no_step(path: Path) -> None:
    die(record_notes_and_die, path, [["steps", 3], ["fail", "drop", 2]])
    [progress] = path.joinpath(journal_key(0)).parent.glob("camera.0.shard")
    progress.write_bytes(progress.read_bytes()[:-1])  # the last image is cut off
    remark = "the failure was at step 2, after the 2 that are saved: its step is unknown now"
    assert remark in run("recover", path, "--dry-run", status=10)
    assert json.loads(run("recover", path, "--dry-run", "--json", status=10))["episodes"][0]["remarks"] == [remark]
    [found] = salus.recover(path).salvaged
    assert (found.num_steps, found.remarks) == (2, (remark,))
    [episode] = salus.open(path)
    assert episode.outcome == salus.Outcome("failure", "drop")
    assert not episode.labels_mask.any()


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "outcome", "outcome": {"result": "failure", "kind": "no such kind", "step": 1}},
        {"type": "outcome", "outcome": {"result": "failure", "kind": "drop", "step": True}},
        {"type": "outcome", "outcome": {"result": ["success"], "kind": None, "step": None}},
        {"type": "outcome"},
        {"type": "metadata", "metadata": 3},
    ],
)
def test_a_note_that_is_not_understood_leaves_the_episode(path: Path, frame: dict[str, Any]) -> None:
    die(record_notes_and_die, path, [["steps", 3]])
    journal = path / journal_key(0)
    with_note = JournalWriter.__new__(JournalWriter)
    with_note._descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND)
    with_note.add(frame)
    with_note.close()
    [found] = salus.recover(path).left
    assert "a frame is not understood" in found.reason
    assert [found.action for found in salus.recover(path, force=True).episodes] == ["aborted"]


def test_what_is_said_of_an_idle_episode_becomes_durable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power loss takes what no sync confirmed: so a note is synced without a step after it."""
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        episode = recorder.start()
        episode.append({name: values[0] for name, values in make_episode(0).items()})
        written(recorder)
        while episode._files._waits:
            time.sleep(0.01)
        synced, plain = threading.Event(), os.fdatasync

        def fdatasync(descriptor: int) -> None:
            journal = Path(f"/proc/self/fd/{descriptor}").readlink().name == "journal"
            said = [frame.document["type"] for frame in read_journal(path / journal_key(episode.slot))]
            plain(descriptor)
            if journal and said[-1] == "outcome":
                synced.set()

        monkeypatch.setattr(os, "fdatasync", fdatasync)
        episode.succeed()
        assert synced.wait(30)
        episode.discard()


def test_notes_do_not_change_what_is_committed(path: Path) -> None:
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder, recorder.episode(task="a") as episode:
        arrays = make_episode(0)
        for step in range(6):
            episode.append({name: values[step] for name, values in arrays.items()})
            episode.add_metadata({"last": step})
        episode.fail("drop", step=3)
    [episode_read] = salus.open(path)
    assert episode_read.metadata == {"task": "a", "last": 5}
    assert episode_read.outcome == salus.Outcome("failure", "drop", 3)
    np.testing.assert_array_equal(episode_read["camera"][:], arrays["camera"])
