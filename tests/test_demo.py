"""The demo: rendered episodes recorded in two processes, twice, and what it says about them."""

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

SETUP = "run `make setup`; rendering also needs `apt-get install -y libegl1 libgl1 libgl1-mesa-dri`"


def _sim_is_missing() -> str | None:
    try:
        from salus.demo.sim import require_sim

        require_sim()
    except (ImportError, RuntimeError) as error:
        return f"{error} ({SETUP})"
    return None


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Two runs of the demo in one folder, and the report of each."""
    missing = _sim_is_missing()
    if missing:
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "salus.cli", "demo", "demo.zarr", "--json", "--epochs", "2", "--episodes"]
    reports = []
    for episodes in ("6", "3"):
        done = subprocess.run(
            [*command, episodes], cwd=folder, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        reports.append(json.loads(done.stdout))
    return folder, reports


def test_a_second_run_adds_episodes(runs: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, reports = runs
    assert [sum(report["episodes"].values()) for report in reports] == [6, 9]
    assert [report["recorded"] for report in reports] == [6, 3]
    dataset = salus.open(folder / "demo.zarr")
    assert sorted(episode.metadata["seed"] for episode in dataset) == list(range(9))


def test_the_episodes_are_what_the_schema_says(runs: tuple[Path, list[dict[str, Any]]]) -> None:
    dataset = salus.open(runs[0] / "demo.zarr")
    for episode in dataset:
        assert episode["images"].shape == (len(episode), 3, 224, 224)
        assert np.ptp(episode["images"][len(episode) // 2]) > 100  # something is to be seen
        assert np.isfinite(episode["signals"][:]).all()
        assert (np.abs(episode["actions"][:]) <= 1).all()
        period = np.diff(episode.timestamp_ns) * dataset.schema.rate_hz / 1e9
        np.testing.assert_allclose(period, 1, rtol=1e-6)  # simulated time, one control step apart
        assert episode.timestamp_source == "caller"
    assert {episode.outcome.result for episode in dataset} <= {"success", "failure"}


def test_an_episode_depends_on_its_seed_alone(runs: tuple[Path, list[dict[str, Any]]]) -> None:
    from salus.demo.sim import PickAndPlace

    dataset = salus.open(runs[0] / "demo.zarr")
    recorded = dataset.select(where=lambda episode: episode.metadata["seed"] == 4)[0]
    with PickAndPlace(render=False) as robot:
        steps = list(robot.rollout(4))
    np.testing.assert_array_equal([step["actions"] for step in steps], recorded["actions"][:])


def test_the_report_is_complete(runs: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, (_, report) = runs
    dataset = salus.open(folder / "demo.zarr")
    assert report["num_steps"] == dataset.num_steps
    assert report["size"]["raw"] == dataset.num_steps * (8 + 3 * 224 * 224 + 4 * (7 + 7 + 12))
    assert report["compression"] >= 6
    assert 0 < report["record_share"] < 1
    assert report["load_images_per_s"] > 0
    picture = (folder / "demo-episode.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_a_recording_process_that_fails_is_reported(tmp_path: Path) -> None:
    environment = {**os.environ, "MUJOCO_GL": "no-such-backend"}
    command = [sys.executable, "-m", "salus.cli", "demo", "demo.zarr", "--episodes", "2"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == salus.RecordingError.exit_status
    assert "a recording process died" in done.stderr


class TestScores:
    """What the demo says of its predictor, on a dataset made for it."""

    @pytest.fixture
    def view(self, path: Path) -> salus.Dataset:
        schema = salus.Schema(
            {"signals": salus.Feature((1,))}, rate_hz=10, failure_kinds=("drop",), horizons=(2, 4), segment_steps=32
        )
        rng = np.random.default_rng(0)
        with salus.Recorder(salus.create(path, schema)) as recorder:
            for number in range(24):
                failure = 20 + number % 9 if number % 2 else None
                signals = rng.normal(size=(40, 1)).astype(np.float32) * 0.1
                if failure is not None:
                    signals[failure - 4 : failure] += 3  # a clear precursor
                outcome = salus.Outcome("failure", "drop", failure) if failure else salus.Outcome("success")
                recorder.record_episode({"signals": signals}, outcome=outcome)
        return salus.open(path)

    def test_a_predictor_of_a_clear_precursor_is_nearly_perfect(self, view: salus.Dataset) -> None:
        pytest.importorskip("torch", reason="the extra 'torch' is not installed")
        from salus.demo.train import evaluate, train_epochs

        training, held_out = view[:16], view[16:]
        *_, model = train_epochs(training, num_epochs=30, seed=0)
        scores = evaluate(model.eval(), training, held_out)
        assert scores.auroc[4] > 0.95
        assert scores.auroc[4] > scores.baseline_auroc[4]
        assert (scores.num_episodes, scores.num_failures) == (8, 4)
        assert scores.num_warned == 4
        assert scores.false_alarms < 0.5
        assert 0.1 <= scores.lead_s <= 0.4

    def test_alarms_are_counted_by_hand(self, view: salus.Dataset) -> None:
        pytest.importorskip("torch", reason="the extra 'torch' is not installed")
        from salus.demo.train import _Alarms

        success, failure = view[0], view[1]  # the failure is at step 21
        alarms = _Alarms(threshold=0.5, horizon_steps=4)
        score = np.zeros(40)
        score[[5, 6, 7]] = 1  # held from step 6 on: one alarm, false
        score[[12]] = 1  # a single step: no alarm
        alarms.add(success, score)
        assert (alarms.false, alarms.lead_steps) == (1, [])
        score[[18, 19]] = 1  # held at step 19, two before the failure: a warning
        score[[30, 31]] = 1  # after the failure: counts for nothing
        alarms.add(failure, score)
        assert (alarms.false, alarms.lead_steps) == (2, [2])
