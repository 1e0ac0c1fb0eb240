"""Statistics of episodes of `recorder.vector`: those that a recorder of one episode would have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus
from salus.statistics import described

SCHEMA = salus.Schema(
    {
        "image": salus.Image(height=8, width=10),
        "large": salus.Image(height=96, width=140, layout="HWC", nullable=True),  # every third row
        "depth": salus.Feature((40, 50)),
        "states": salus.Feature((3,), allow_nan=True),
        "say": salus.Text(),
        "action": salus.Feature((2,), nullable=True),
    },
    rate_hz=20,
    segment_steps=8,
)
IMAGES = {"image", "large", "depth"}


def make_batch(num_envs: int, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "image": random.integers(0, 256, (num_envs, 3, 8, 10), dtype=np.uint8),
        "large": random.integers(0, 256, (num_envs, 96, 140, 3), dtype=np.uint8),
        "large.valid": random.random(num_envs) < 0.7,
        "depth": random.normal(size=(num_envs, 40, 50)).astype(np.float32),
        "states": np.where(random.random((num_envs, 3)) < 0.2, np.nan, random.normal(size=(num_envs, 3))),
        "say": [f"{seed}.{env}" for env in range(num_envs)],
        "action": random.normal(size=(num_envs, 2)).astype(np.float32),
        "action.valid": random.random(num_envs) < 0.5,
    }


def step_of(batch: dict[str, Any], row: int) -> dict[str, Any]:
    missing = [name for name in ("large", "action") if not batch[f"{name}.valid"][row]]
    step = {name: values[row] for name, values in batch.items() if not name.endswith(".valid")}
    return step | dict.fromkeys(missing)


def without_sketches(episode: salus.Episode) -> dict[str, Any]:
    """The statistics in its record, but for the random choices of sketches."""
    kept: dict[str, dict[str, Any]] = episode._record.statistics
    return {name: {key: value for key, value in each.items() if key != "kll"} for name, each in kept.items()}


def test_they_are_the_same_bits_as_those_of_one_episode_at_a_time(path: Path) -> None:
    num_envs, dataset = 3, salus.create(path, SCHEMA)
    steps: list[list[dict[str, Any]]] = [[] for _ in range(num_envs)]
    expected: dict[str, list[dict[str, Any]]] = {}
    with salus.Recorder(dataset) as recorder, recorder.vector(num_envs) as vector:
        for seed in range(40):
            ids = [env for env in range(num_envs) if (seed + env) % 4]
            batch = make_batch(len(ids), seed)
            vector.append(batch, env_ids=ids)
            for row, env in enumerate(ids):
                steps[env].append(step_of(batch, row))
            if seed == 5:
                vector.discard([1])
                steps[1] = []
            ended = [env for env in range(num_envs) if len(steps[env]) == 10 + 7 * env]
            for env, future in zip(ended, vector.end(ended) if ended else [], strict=True):
                expected[future.result().uid], steps[env] = steps[env], []
        rest = [env for env in range(num_envs) if steps[env]]
        for env, future in zip(rest, vector.end(rest), strict=True):
            expected[future.result().uid] = steps[env]
        singles = {}
        for uid, rows in expected.items():
            with recorder.episode() as episode:
                for row in rows:
                    episode.append(row)
            singles[uid] = episode.uid
    assert len(expected) > 4
    dataset.refresh()
    for uid, single in singles.items():
        mine, theirs = dataset[uid], dataset[single]
        assert mine._record.statistics.keys() == set(described(SCHEMA))
        assert without_sketches(mine) == without_sketches(theirs)
        for name in described(SCHEMA):
            ours, others = mine.statistics[name], theirs.statistics[name]
            np.testing.assert_allclose(ours.quantile([0, 0.5, 1]), others.quantile([0, 0.5, 1]), atol=0.3, rtol=0.3)


def test_an_interrupted_append_leaves_images_to_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between the images and the steps: what was counted of them belongs to no step."""
    dataset = salus.create(path, SCHEMA)
    with salus.Recorder(dataset) as recorder, recorder.vector(2) as vector:
        vector.append(make_batch(2, 0))
        plain = vector._steps.append

        def interrupted(*_: Any) -> None:
            monkeypatch.setattr(vector._steps, "append", plain)
            raise KeyboardInterrupt

        monkeypatch.setattr(vector._steps, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            vector.append(make_batch(1, 1), env_ids=[1])
        vector.append(make_batch(2, 2))
        first, second = (future.result() for future in vector.end())
        vector.append(make_batch(2, 3))
        (third,) = (future.result() for future in vector.end([1]))
        vector.discard()
    dataset.refresh()
    assert [dataset[entry.uid]._record.statistics.keys() for entry in (first, second, third)] == [
        set(described(SCHEMA)),
        set(described(SCHEMA)) - IMAGES,
        set(described(SCHEMA)),
    ]
    for entry in (first, second, third):
        for name in described(SCHEMA):
            kept, read = dataset[entry.uid].statistics[name], dataset[entry.uid].read_statistics(name, recompute=True)
            np.testing.assert_array_equal(kept.mean, read.mean)
            np.testing.assert_array_equal(kept.count, read.count)
