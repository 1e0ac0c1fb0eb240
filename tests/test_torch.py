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

from .conftest import LENGTHS, make_arrays  # noqa: E402


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


# --- windows in seconds, stride, padding ------------------------------------------------------------------------

JITTERED = [np.cumsum([10**18, *np.random.default_rng(n).integers(15_000_000, 25_000_000, 29)]) for n in range(3)]
JITTERED[1][10:] += 2 * 10**9


@pytest.fixture
def jittered(path: Path, schema: salus.Schema) -> salus.Dataset:
    """Three episodes of 30 steps at 50 Hz with jitter; the second pauses for two seconds before step 10."""
    with salus.Recorder(salus.create(path, schema)) as recorder:
        for number, stamps in enumerate(JITTERED):
            recorder.record_episode(make_arrays(30, number), timestamp_ns=stamps)
    return salus.open(path)


def test_windows_in_seconds_follow_the_stamps(jittered: salus.Dataset) -> None:
    offsets = [-0.06, 0.0, 0.1]
    windows = salus.torch.WindowDataset(
        jittered,
        {
            "images": salus.Seconds(offsets),
            "states": salus.Seconds(offsets, "previous"),
            "actions": salus.Seconds(offsets, "linear"),
            "labels": salus.Seconds(0.1),
        },
    )
    batch = windows.batch(np.arange(len(windows)))
    assert batch["labels"].shape == (90, 2, 2)
    assert batch["images"].permute(0, 1, 3, 4, 2).is_contiguous()
    for sample in range(len(windows)):
        episode, step = int(batch["episode"][sample]), int(batch["step"][sample])
        stamps, arrays = JITTERED[episode], make_arrays(30, episode)
        for place, offset in enumerate(offsets):
            target = stamps[step] + round(offset * 1e9)
            nearest = int(np.argmin(abs(stamps - target)))
            previous = max(0, int(np.searchsorted(stamps, target, side="right")) - 1)
            np.testing.assert_array_equal(batch["images"][sample, place], arrays["images"][nearest])
            np.testing.assert_array_equal(batch["states"][sample, place], arrays["states"][previous])
            mixed = [
                np.interp(target - stamps[0], stamps - stamps[0], arrays["actions"][:, component])
                for component in range(3)
            ]
            np.testing.assert_allclose(batch["actions"][sample, place], mixed, rtol=1e-5, atol=1e-6)
            start = stamps[0] - (stamps[1] - stamps[0]) // 2
            stop = stamps[-1] + (stamps[-1] - stamps[-2]) // 2
            for name in ("images", "states", "actions"):
                assert bool(batch[f"{name}_is_pad"][sample, place]) == (not start <= target <= stop)
    assert repr(windows).endswith("actions [-0.06, 0.0, 0.1] s, labels [0.1] s>")


def test_a_single_offset_in_seconds_has_no_window_axis(jittered: salus.Dataset) -> None:
    windows = salus.torch.WindowDataset(
        jittered, {"actions": salus.Seconds(0.01, "linear"), "states": salus.Seconds(0)}
    )
    sample = windows[4]
    assert sample["actions"].shape == (3,)
    assert sample["actions"].dtype == torch.float32
    assert "actions_is_pad" not in sample
    np.testing.assert_array_equal(sample["states"], make_arrays(30, 0)["states"][4])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_interpolated_windows_come_from_workers_too(jittered: salus.Dataset) -> None:
    windows = salus.torch.WindowDataset(
        jittered, {"actions": salus.Seconds([-0.05, 0.05], "linear"), "images": 0, "states": [0, 1]}
    )
    expected = windows.batch(np.arange(len(windows)))
    batches = list(DataLoader(windows, batch_size=30, num_workers=1, multiprocessing_context="fork"))
    for name in ("actions", "images", "states", "actions_is_pad"):
        assert torch.equal(torch.cat([batch[name] for batch in batches]), expected[name])


@pytest.mark.parametrize("name", ["images", "labels", "labels_mask", "timestamp_ns", "gripper", "count", "instruction"])
def test_only_plain_floats_are_interpolated(path: Path, schema: salus.Schema, name: str) -> None:
    more = {"gripper": salus.Feature(nullable=True), "count": salus.Feature(dtype="int32"), "instruction": salus.Text()}
    dataset = salus.create(path, schema.extended(more))
    with salus.Recorder(dataset) as recorder, recorder.episode() as episode:
        for step in range(3):
            arrays = {key: values[step] for key, values in make_arrays(3).items()}
            episode.append(arrays, gripper=1.0, count=step, instruction="lift")
    dataset.refresh()
    salus.torch.WindowDataset(dataset, {name: salus.Seconds([0.0])})
    with pytest.raises(InvalidInputError, match=f"window of '{name}': got method 'linear' for .*'nearest'"):
        salus.torch.WindowDataset(dataset, {name: salus.Seconds([0.0], "linear")})


def test_stride_padding_and_where(dataset: salus.Dataset) -> None:
    def steps(**options: Any) -> list[tuple[int, int]]:
        windows = salus.torch.WindowDataset(
            dataset, {"images": [-1, 0], "actions": range(-1, 7), "states": 0}, **options
        )
        batch = windows.batch(np.arange(len(windows)))
        if options.get("pad_before") == 0:
            assert not batch["images_is_pad"].any()
        if options.get("pad_after") is not None:
            assert batch["actions_is_pad"][:, 1:].sum(dim=1).max() <= options["pad_after"] + 1
        return list(zip(batch["episode"].tolist(), batch["step"].tolist(), strict=True))

    whole = [(e, t) for e, length in enumerate(LENGTHS) for t in range(1, length - 6)]
    assert steps(pad_before=0, pad_after=0) == whole
    assert {episode for episode, _ in whole} == {0, 2, 3, 4}  # the second has 5 steps, too few
    assert steps(pad_before=0) == [(e, t) for e, length in enumerate(LENGTHS) for t in range(1, length)]
    assert steps(pad_before=0, stride=7) == [(e, t) for e, length in enumerate(LENGTHS) for t in range(1, length, 7)]
    assert steps(pad_after=3) == [(e, t) for e, length in enumerate(LENGTHS) for t in range(length - 3)]
    odd = steps(stride=3, where=lambda episode: np.arange(len(episode)) % 2 == 1)
    assert odd == [(e, t) for e, length in enumerate(LENGTHS) for t in range(3, length, 6)]


def test_padding_limits_of_windows_in_seconds(jittered: salus.Dataset) -> None:
    windows = {"images": salus.Seconds([-0.04, 0.0]), "actions": salus.Seconds(np.arange(8) * 0.02), "states": [-1, 0]}
    everything = salus.torch.WindowDataset(jittered, windows)
    batch = everything.batch(np.arange(len(everything)))
    before = torch.stack([batch["images_is_pad"][:, 0], batch["states_is_pad"][:, 0]]).any(dim=0)
    after = batch["actions_is_pad"].sum(dim=1)
    for pad in (0, 2):
        kept = salus.torch.WindowDataset(jittered, windows, pad_before=0, pad_after=pad)
        found = kept.batch(np.arange(len(kept)))
        expected = ~before & (after <= pad)
        assert found["step"].tolist() == batch["step"][expected].tolist()
        assert found["episode"].tolist() == batch["episode"][expected].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride: got 0, expected a whole number of at least 1"),
        ({"pad_before": -1}, "pad_before: got -1, expected a whole number of at least 0, or None"),
        ({"pad_after": 0.5}, "pad_after: got 0.5"),
        ({"pad_after": 0, "pad_before": 0}, "no samples: where= or the padding allowed leave no step"),
    ],
)
def test_bad_strides_and_paddings(dataset: salus.Dataset, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        salus.torch.WindowDataset(dataset, {"actions": range(100)}, **options)


def test_windows_in_seconds_of_an_image_can_be_read_ahead(jittered: salus.Dataset) -> None:
    windows = salus.torch.WindowDataset(jittered, {"images": salus.Seconds([-0.1, 0.2]), "states": [0]})
    calls = []
    windows.view.prefetch = lambda *places: calls.append(places)  # type: ignore[method-assign]
    windows.prefetch(np.arange(10, 20))
    assert calls == [("images", 0, 5, 30), ("states", 0, 10, 20)]


def test_windows_stay_when_the_handle_is_refreshed(dataset: salus.Dataset, source: list[Any]) -> None:
    windows = salus.torch.WindowDataset(dataset, {"states": 0})
    mixed = salus.torch.WindowDataset(salus.concat([dataset]), {"states": 0})
    editor = salus.open(dataset.url, mode="a")
    editor.delete(0)
    dataset.refresh()
    assert len(dataset) == len(source) - 1
    for samples in (windows, mixed):
        np.testing.assert_array_equal(samples[LENGTHS[0]]["states"], source[1]["states"][0])
