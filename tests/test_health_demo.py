"""The check on rendered episodes of the demo: no false alarm, and every planted defect found."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest

import salus
from salus import health

from .planting import DEFECTS, Take, takes_of, write
from .test_demo import _sim_is_missing

NUM_EPISODES = len(DEFECTS) + 2


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> salus.Dataset:
    """Twelve episodes of the demo: about a minute."""
    missing = _sim_is_missing()
    if missing:
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    from salus.demo.record import record

    path = tmp_path_factory.mktemp("demo") / "demo.zarr"
    assert len(list(record(path, num_episodes=NUM_EPISODES, num_processes=2))) == NUM_EPISODES
    return salus.open(path)


@pytest.fixture(scope="module")
def takes(demo: salus.Dataset) -> list[Take]:
    return takes_of(demo)


def test_the_demo_is_healthy(demo: salus.Dataset, takes: list[Take], tmp_path: Path) -> None:
    for dataset in (demo, write(tmp_path / "data.zarr", demo.schema, takes)):
        report = health.check(dataset)
        assert [(each.rule, each.message) for each in report if each.severity != "info"] == []


def test_ten_defects_and_a_duplicate_are_found_in_one_dataset(
    demo: salus.Dataset, takes: list[Take], tmp_path: Path
) -> None:
    planted = copy.deepcopy(takes)
    planted.append(copy.deepcopy(planted[-1]))
    for episode, plant in enumerate(DEFECTS.values()):
        plant(planted[episode])
    dataset = write(tmp_path / "data.zarr", demo.schema, planted)
    report = health.check(dataset, splits={"train": dataset[:-1], "val": dataset[-1:]})
    found = {(each.rule, each.episode): each for each in report if each.severity != "info"}
    expected = {(rule, episode) for episode, rule in enumerate(DEFECTS)}
    assert expected | {("leakage", NUM_EPISODES), ("duplicate", NUM_EPISODES)} <= set(found)
    shift = found["action_shift", list(DEFECTS).index("action_shift")]
    assert shift.measured == -3
    assert not [key for key in found if key[1] in (NUM_EPISODES - 2, NUM_EPISODES - 1)]  # these two are fine
