"""The `salus` command: what it prints, its JSON, its exit statuses, and that nothing in a dataset can dress it up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus
from salus import errors
from salus.cli.app import app

from .conftest import make_arrays


def run(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from salus.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={"COLUMNS": "100", "PATH": "", "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def test_info(path: Path, dataset: salus.Dataset) -> None:
    shown = run("info", path).stdout
    assert "5 episodes, 114 steps (shortest 5, median 20, longest 40) at 50 Hz" in shown
    assert "collision 1, drop 1" in shown
    assert "rad" in shown
    document = json.loads(run("info", path, "--json").stdout)
    assert document["episodes"] == 5
    assert document["outcomes"]["failure"] == {"episodes": 2, "kinds": {"drop": 1, "collision": 1}}
    assert document["raw_bytes"] == 114 * (8 + 360 + 28 + 12)
    shards = [file for name in ("images", "states", "actions", "timestamp_ns") for file in (path / name).glob("c.*")]
    assert document["stored_bytes"] == sum(file.stat().st_size for file in shards)


def test_ls_and_its_filters(path: Path, dataset: salus.Dataset) -> None:
    assert dataset[3].uid in run("ls", path).stdout
    rows = json.loads(run("ls", path, "--outcome", "failure", "--kind", "collision", "--json").stdout)
    assert [(row["episode"], row["uid"], row["failure_step"]) for row in rows] == [(3, dataset[3].uid, 30)]
    assert "3 more; --limit 0 shows all" in run("ls", path, "--limit", "2").stdout
    assert json.loads(run("ls", path, "--task", "nothing", "--json").stdout) == []


def test_show_by_number_and_uid(path: Path, dataset: salus.Dataset) -> None:
    for key in (1, -4, dataset[1].uid):
        shown = run("show", path, key).stdout
        assert dataset[1].uid in shown
        assert "failure (drop at step 3)" in shown
        assert "task: task 1" in shown
    document = json.loads(run("show", path, 1, "--json").stdout)
    assert document["features"]["states"]["shape"] == [5, 7]
    assert document["features"]["states"]["components"]["[0]"]["max"] == pytest.approx(dataset[1]["states"][:, 0].max())


def test_a_tag_can_be_looked_at(path: Path, dataset: salus.Dataset) -> None:
    writer = salus.open(path, mode="a")
    writer.tag("v1")
    writer.delete([0, 1, 2])
    assert json.loads(run("info", path, "--json").stdout)["episodes"] == 2
    assert json.loads(run("info", path, "--tag", "v1", "--json").stdout)["episodes"] == 5


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("info", "missing.zarr"), 3, "nothing is there"),
        (("show", "{path}", "99"), 3, "episode 99: out of range, the dataset has 5"),
        (("show", "{path}", "no-such-uid"), 3, "no episode with uid 'no-such-uid'"),
        (("info", "{path}", "--tag", "v9"), 3, "no tag 'v9'"),
        (("ls", "{path}", "--outcome", "bad"), 2, "outcome: got 'bad'"),
        (("info", "{path}/images"), 5, "this lies inside the dataset"),
        (("info", "{path}/.."), 5, "not a SALUS dataset"),
        (("info", "ftp://host/data.zarr"), 2, "s3://bucket/data.zarr"),
        (("show", "{path}", "0", "--picture", "no/such/folder.png"), 2, "no folder no/such"),
        (("show", "{path}", "0", "--picture", "x.txt"), 2, "ends in .png, .svg or .pdf"),
    ],
)
def test_errors_have_a_message_and_a_status(
    path: Path, dataset: salus.Dataset, arguments: tuple[str, ...], status: int, text: str
) -> None:
    done = run(*(argument.format(path=path) for argument in arguments), status=status)
    assert "Traceback" not in done.stderr
    assert text in done.stderr


def test_a_damaged_episode_exits_with_its_status(path: Path, dataset: salus.Dataset) -> None:
    (path / "states" / "c.1.0.0").unlink()
    assert "missing" in run("show", path, 1, status=6).stderr


def test_every_error_class_has_a_status_of_its_own() -> None:
    classes = [errors.InvalidInputError, errors.NotFoundError, errors.AlreadyExistsError, errors.FormatError]
    classes += [errors.CorruptDataError, errors.RecordingError, errors.MissingExtraError, errors.SalusError]
    classes += [errors.StorageError]
    assert len({cls.exit_status for cls in classes}) == len(classes)


def test_terminal_escapes_and_markup_in_metadata_mean_nothing(path: Path, schema: salus.Schema) -> None:
    evil = "\x1b[2J[bold red]task[/] \u202e\x07"
    with salus.Recorder(salus.create(path, schema)) as recorder:
        recorder.record_episode(make_arrays(2), {"task": evil, "\x1b]0;owned\x07": evil})
    for command in (("ls",), ("show", 0), ("info",)):
        shown = run(command[0], path, *command[1:]).stdout
        assert not set("\x1b\x07\u202e") & set(shown)
    assert "[bold red]task[/]" in run("show", path, 0).stdout


def test_every_command_has_help_with_an_example() -> None:
    import typer.main

    group: Any = typer.main.get_command(app)
    for name in group.commands:
        shown = run(name, "--help").stdout
        assert "Example" in shown
        assert f"salus {name}" in shown


def test_version() -> None:
    assert run("--version").stdout.strip() == f"salus {salus.__version__}"


def test_stats_of_all_and_of_some_features(path: Path, dataset: salus.Dataset) -> None:
    document = json.loads(run("stats", path, "--json").stdout)
    assert (document["episodes"], document["steps"]) == (5, 114)
    assert list(document["features"]) == ["images", "states", "actions"]
    states = dataset.statistics(["states"])["states"]
    assert document["features"]["states"]["std"] == states.std.tolist()
    assert document["features"]["states"]["components"][2] == "[2]"
    assert document["features"]["images"]["components"] == ["red", "green", "blue"]
    shown = run("stats", path, "--feature", "images").stdout
    assert "green" in shown
    assert "states" not in shown
    assert "no feature 'x'" in run("stats", path, "--feature", "x", status=3).stderr


def test_stats_of_an_empty_dataset_and_of_nan(path: Path) -> None:
    schema = salus.Schema({"x": salus.Feature((), allow_nan=True)}, rate_hz=1)
    writer = salus.create(path, schema)
    assert json.loads(run("stats", path, "--json").stdout)["features"]["x"]["mean"] == [None]
    with salus.Recorder(writer) as recorder:
        recorder.record_episode({"x": [float("nan")] * 3})
    assert "–" in run("stats", path).stdout
    assert json.loads(run("stats", path, "--json").stdout)["features"]["x"]["nan"] == [3]


def test_record_demo_records_an_episode_and_says_how_long_append_took(path: Path) -> None:
    options = ("record", path, "--demo", "--seconds", 0.2, "--height", 16, "--width", 24, "--cameras", 2)
    shown = run(*options, "--rate", 100)
    assert "20 steps, 0 lost" in shown.stdout
    assert str(path) in shown.stdout.replace("\n", "")
    for word in ("p50", "p99", "p99.9", "max"):
        assert word in shown.stdout
    assert "append, 20 steps" in shown.stderr
    document = json.loads(run(*options, "--rate", 100, "--json").stdout)
    assert document["steps"] == 20
    assert document["lost"] == 0
    assert document["path"] == str(path)
    assert set(document["append_ms"]) == {"p50", "p99", "p99.9", "max"}
    dataset = salus.open(path)
    assert [len(episode) for episode in dataset] == [20, 20]
    assert dataset[0]["images.1"][:].shape == (20, 16, 24, 3)
    assert dataset[0]["images.1.valid"][:].all()


def test_record_without_demo_or_with_an_unknown_codec_is_refused(path: Path) -> None:
    run("record", path, status=2)
    run("record", path, "--demo", "--codec", "h264", status=2)
    assert not path.exists()


def test_info_and_show_say_what_runs_on_other_clocks(path: Path) -> None:
    schema = salus.Schema(
        {
            "actions": salus.Feature((2,)),
            "joints": salus.Feature((3,), clock="joints"),
            "note": salus.Text(clock="notes"),
        },
        rate_hz=10,
        clocks={"joints": 200, "notes": 1},
    )
    with salus.Recorder(salus.create(path, schema)) as recorder:
        for ticks in (40, 61):
            recorder.record_episode({"actions": np.zeros((5, 2)), "joints": np.ones((ticks, 3))}, outcome="success")
    info = json.loads(run("info", path, "--json").stdout)
    assert info["steps"]["total"] == 10
    assert info["clocks"]["joints"] == {
        "rate_hz": 200,
        "steps": {"total": 101, "shortest": 40, "median": 50.5, "longest": 61},
    }
    assert info["clocks"]["notes"]["steps"]["longest"] == 0
    assert "clock joints: 101 steps (shortest 40, median 50.5, longest 61) at 200 Hz" in run("info", path).stdout
    shown = json.loads(run("show", path, 1, "--json").stdout)
    assert shown["num_steps"] == 5
    assert shown["clocks"]["joints"] == {
        "num_steps": 61,
        "rate_hz": 200,
        "source": "rate",
        "duration_s": 0.3,
        "median_period_ms": 5.0,
        "longest_period_ms": 5.0,
    }
    assert shown["features"]["joints"]["shape"] == [61, 3]
    printed = run("show", path, 1).stdout
    assert "clock joints, 200 Hz: 61 steps in 0.3 s, a step every 5 ms (longest 5 ms); stamps: nominal" in printed
    assert "clock notes, 1 Hz: 0 steps\n" in printed
