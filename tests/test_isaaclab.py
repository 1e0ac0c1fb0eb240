"""The handler for IsaacLab, against the interface of its `DatasetFileHandlerBase`.

IsaacLab cannot run here (it needs its simulator), so `EpisodeData` below has the members that its recorder manager and
its replay scripts use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus
from salus.isaaclab import SalusDatasetFileHandler

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")

METHODS = (
    *("open", "create", "get_env_name", "write_episode", "flush", "close", "load_episode", "get_num_episodes"),
    *("add_env_args", "set_env_name", "get_episode_names", "demo_count"),
)


class EpisodeData:
    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.seed: int | None = None
        self.env_id: int | None = None
        self.success: bool | None = None

    def is_empty(self) -> bool:
        return not self.data


def episode_of(seed: int, num_steps: int, *, as_lists: bool = False) -> EpisodeData:
    torch.manual_seed(seed)
    episode = EpisodeData()
    image = torch.randint(0, 256, (num_steps, 4, 6, 3), dtype=torch.uint8)
    depth = torch.rand(num_steps, 4, 6, 1)
    depth[0, 0, 0] = torch.inf
    episode.data = {
        "initial_state": {"articulation": {"robot": {"root_pose": torch.rand(1, 7)}}},
        "obs": {"policy": torch.rand(num_steps, 9), "camera": image, "depth": depth},
        "actions": torch.rand(num_steps, 4, dtype=torch.float64),
        "states": {"articulation": {"robot": {"joint_position": torch.rand(num_steps, 5)}}},
    }
    if as_lists:
        episode.data["actions"] = list(episode.data["actions"])
    episode.seed, episode.env_id, episode.success = seed, seed % 3, [True, False, None][seed % 3]
    return episode


def check_equal(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            check_equal(found[key], expected[key])
    else:
        expected = torch.stack(expected) if isinstance(expected, list) else expected
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_it_has_the_methods_of_the_interface() -> None:
    assert [name for name in METHODS if not hasattr(SalusDatasetFileHandler, name)] == []


@pytest.mark.parametrize("as_lists", [False, True])
def test_what_is_written_is_loaded_bit_for_bit(tmp_path: Path, as_lists: bool) -> None:
    episodes = [episode_of(seed, length, as_lists=as_lists) for seed, length in enumerate((5, 1, 300))]
    handler = SalusDatasetFileHandler(episode_type=EpisodeData)
    handler.create(str(tmp_path / "logs" / "dataset"), env_name="Isaac-Stack-v0")
    handler.add_env_args({"sim_args": {"dt": 0.005, "decimation": 4}})
    assert handler.get_num_episodes() == 0
    for episode in episodes:
        handler.write_episode(episode)
    handler.write_episode(EpisodeData())  # an empty one is left out
    handler.flush()
    assert handler.demo_count == 3
    handler.close()
    handler.close()

    handler.open(str(tmp_path / "logs" / "dataset.zarr"))
    assert handler.get_env_name() == "Isaac-Stack-v0"
    assert handler.get_episode_names() == ["demo_0", "demo_1", "demo_2"]
    for name, episode in zip(handler.get_episode_names(), episodes, strict=True):
        loaded = handler.load_episode(name, "cpu")
        check_equal(loaded.data, episode.data)
        assert (loaded.seed, loaded.env_id, loaded.success) == (episode.seed, episode.env_id, episode.success)
    assert handler.load_episode("demo_3", "cpu") is None
    with pytest.raises(salus.RecordingError, match="for reading only"):
        handler.write_episode(episodes[0])
    handler.close()
    dataset = salus.open(tmp_path / "logs" / "dataset.zarr")
    assert dataset.schema.rate_hz == 50
    assert isinstance(dataset.schema.features["obs.camera"], salus.Image)
    assert [episode.outcome.result for episode in dataset] == ["success", "failure", "unknown"]


def test_more_is_written_to_a_dataset_that_is_there(tmp_path: Path) -> None:
    path = str(tmp_path / "dataset.zarr")
    for seed in range(3):
        handler = SalusDatasetFileHandler(rate_hz=50, episode_type=EpisodeData)
        if seed == 0:
            handler.create(path)
        else:
            handler.open(path, mode="a")
        handler.set_env_name(f"env {seed}")
        handler.write_episode(episode_of(seed, 4))
        assert handler.get_num_episodes() == seed + 1
        assert handler.get_env_name() == f"env {seed}"
        del handler  # IsaacLab closes them so
    assert len(salus.open(path)) == 3


def test_mistakes_are_named(tmp_path: Path) -> None:
    handler = SalusDatasetFileHandler()
    for call in (handler.flush, handler.get_env_name, handler.get_num_episodes, lambda: handler.load_episode("demo_0")):
        with pytest.raises(salus.RecordingError, match="no dataset is open"):
            call()
    with pytest.raises(salus.InvalidInputError, match="mode: got 'w'"):
        handler.open(str(tmp_path), "w")
    handler.create(str(tmp_path / "a"))
    with pytest.raises(salus.RecordingError, match="is open; close"):
        handler.create(str(tmp_path / "b"))
    with pytest.raises(salus.InvalidInputError, match="the control rate is not known"):
        handler.write_episode(episode_of(0, 3))
    handler.add_env_args({"sim_args": {"dt": 0.01, "decimation": 2}})
    handler.write_episode(episode_of(0, 3))
    uneven = episode_of(1, 3)
    uneven.data["actions"] = uneven.data["actions"][:2]
    with pytest.raises(salus.InvalidInputError, match="'actions': got 2 steps, others have 3"):
        handler.write_episode(uneven)
    with pytest.raises(salus.MissingExtraError, match="isaaclab is not installed"):
        handler.load_episode("demo_0")
    handler.close()
    assert np.array_equal([len(episode) for episode in salus.open(tmp_path / "a.zarr")], [3])
