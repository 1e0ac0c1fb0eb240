"""The PyTorch datasets, through the stock DataLoader, under every start method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")

from torch.utils.data import DataLoader, default_collate  # noqa: E402 - after the check that torch is there

import salus  # noqa: E402
import salus.torch  # noqa: E402
from salus.data.dataset_mvp import SALUSMVPDataset  # noqa: E402
from salus.errors import InvalidInputError, NotFoundError  # noqa: E402

from .conftest import LENGTHS  # noqa: E402


def test_windows_hold_the_edges_and_say_so(dataset: salus.Dataset, source: list[Any]) -> None:
    windows = salus.torch.WindowDataset(dataset, {"images": [-1, 0], "actions": range(-1, 4), "states": 0})
    assert len(windows) == sum(LENGTHS)
    first = windows[0]
    assert first["images"].shape == (2, 3, 12, 10)
    assert first["states"].shape == (7,)
    assert first["images_is_pad"].tolist() == [True, False]
    np.testing.assert_array_equal(first["images"][0], source[0]["images"][0])
    last = windows[-1]
    assert (int(last["episode"]), int(last["step"])) == (4, 39)
    assert last["actions_is_pad"].tolist() == [False, False, True, True, True]
    np.testing.assert_array_equal(last["actions"], source[4]["actions"][[38, 39, 39, 39, 39]])
    middle = windows[LENGTHS[0] + 2]
    np.testing.assert_array_equal(middle["actions"], source[1]["actions"][[1, 2, 3, 4, 4]])
    assert "states_is_pad" not in middle


def test_windows_where_and_transform(dataset: salus.Dataset) -> None:
    windows = salus.torch.WindowDataset(
        dataset,
        {"labels": 0, "labels_mask": 0},
        where=lambda episode: episode.labels_mask.all(axis=(1, 2)),
        transform=lambda sample: {**sample, "any": sample["labels"].max()},
    )
    # success: all steps; drop at 3: 3 steps; unknown: 16 - 5; collision at 30: 30 steps
    assert len(windows) == 20 + 3 + 11 + 30 + 40
    assert all(bool(windows[i]["labels_mask"].all()) for i in range(len(windows)))
    assert sum(int(windows[i]["any"]) for i in range(len(windows))) == 3 + 5


def test_window_errors(dataset: salus.Dataset) -> None:
    with pytest.raises(NotFoundError, match="no feature 'image'.*did you mean 'images'"):
        salus.torch.WindowDataset(dataset, {"image": 0})
    with pytest.raises(InvalidInputError, match=r"window of 'states': got \[0.5\]"):
        salus.torch.WindowDataset(dataset, {"states": [0.5]})
    with pytest.raises(InvalidInputError, match=r"where: got int64 \(20,\)"):
        salus.torch.WindowDataset(dataset, {"states": 0}, where=lambda episode: np.arange(len(episode)))
    with pytest.raises(IndexError, match="sample 114: out of range"):
        salus.torch.WindowDataset(dataset, {"states": 0})[114]


def test_whole_episodes(dataset: salus.Dataset, source: list[Any]) -> None:
    episodes = salus.torch.EpisodeDataset(dataset, ["states", "labels"])
    sample = next(iter(DataLoader(episodes, batch_size=None)))
    np.testing.assert_array_equal(sample["states"], source[0]["states"])
    assert sample["labels"].shape == (20, 2, 2)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_workers_of_every_start_method(dataset: salus.Dataset, source: list[Any], method: str) -> None:
    windows = salus.torch.WindowDataset(dataset, {"images": 0, "states": [-1, 0]})
    windows.__getitems__(list(range(64)))  # warmed up: caches and threads exist before the workers start
    loader = DataLoader(windows, batch_size=16, shuffle=True, num_workers=2, multiprocessing_context=method)
    seen = 0
    for batch in loader:
        for row, (episode, step) in enumerate(zip(batch["episode"].tolist(), batch["step"].tolist(), strict=True)):
            np.testing.assert_array_equal(batch["images"][row], source[episode]["images"][step])
            seen += 1
    assert seen == len(windows)


@pytest.fixture
def salus_path(path: Path) -> Path:
    """Two episodes under the SALUS preset: a drop at step 30 of 40, and a success of 25 steps."""
    rng = np.random.default_rng(0)
    with salus.Recorder(salus.create(path, salus.schema.SALUS)) as recorder:
        for num_steps, outcome in ((40, salus.Outcome("failure", "drop", 30)), (25, salus.Outcome("success"))):
            arrays = {
                "images": rng.integers(0, 256, (num_steps, 3, 224, 224), dtype=np.uint8),
                "states": rng.normal(size=(num_steps, 7)).astype(np.float32),
                "actions": rng.normal(size=(num_steps, 7)).astype(np.float32),
                "signals": rng.normal(size=(num_steps, 12)).astype(np.float32),
            }
            recorder.record_episode(arrays, outcome=outcome)
    return path


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes:UserWarning")  # on 2 cores
def test_the_original_dataset_class_in_a_loader_with_four_workers(salus_path: Path, method: str) -> None:
    loader = DataLoader(SALUSMVPDataset(salus_path), batch_size=64, num_workers=4, multiprocessing_context=method)
    batches = list(loader)
    assert batches[0]["signals"].shape == (55, 12)
    assert batches[0]["horizon_labels"].shape == (55, 4, 4)


def test_the_original_dataset_class(salus_path: Path) -> None:
    samples = SALUSMVPDataset(salus_path)
    assert len(samples) == 30 + 25
    assert samples[25]["signals"].shape == (12,)
    assert samples[25]["horizon_labels"].dtype == torch.float32
    # 5 steps before the drop: within the horizons 6, 10, 13 and 16, for kind 1 of collision, drop, miss, timeout
    assert samples[25]["horizon_labels"].tolist() == [[0, 1, 0, 0]] * 4
    assert samples[18]["horizon_labels"].tolist() == [[0] * 4, [0] * 4, [0, 1, 0, 0], [0, 1, 0, 0]]
    with_images = SALUSMVPDataset(salus_path, ("signals", "images", "states", "actions"))[3]
    assert with_images["images"].shape == (3, 224, 224)


def test_images_are_channels_last_tensors(salus_path: Path) -> None:
    windows = salus.torch.WindowDataset(salus.open(salus_path), {"images": 0})
    batch = torch.from_numpy(windows.view.gather({"images": [(0, 0), (1, 3)]})["images"])
    assert batch.is_contiguous(memory_format=torch.channels_last)


def is_shared(samples: Any) -> dict[str, bool]:
    batch = default_collate(samples)
    return {name: values.is_shared() for name, values in batch.items()}


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_in_a_worker_a_batch_is_decoded_into_shared_memory(dataset: salus.Dataset) -> None:
    windows = salus.torch.WindowDataset(dataset, {"images": [-1, 0], "states": 0})
    shared = next(iter(DataLoader(windows, batch_size=16, num_workers=1, collate_fn=is_shared)))
    assert shared["images"]
    assert shared["states"]


def test_the_stock_collate_takes_a_batch_as_it_is(dataset: salus.Dataset) -> None:
    windows = salus.torch.WindowDataset(dataset, {"images": [-1, 0], "states": 0})
    rows = windows.__getitems__([5, 9, 70])
    assert default_collate(rows)["images"] is rows.columns["images"]
    assert len(rows) == 3
    stacked = default_collate([rows[0], windows[9], rows[-1]])  # rows of several batches
    for name, values in default_collate(rows).items():
        torch.testing.assert_close(values, stacked[name])
    assert [int(row["step"]) for row in rows[1:]] == [int(step) for step in stacked["step"][1:]]
    with pytest.raises(IndexError):
        rows[3]
