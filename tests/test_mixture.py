"""Several datasets read as one."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus
from salus.errors import CorruptDataError, InvalidInputError, NotFoundError

from .conftest import make_arrays

Make = Callable[..., salus.Dataset]


@pytest.fixture
def make(tmp_path: Path, schema: salus.Schema) -> Make:
    """`make("a", [5, 6], rate_hz=…)`: a dataset of that name with episodes of these lengths, seeds from `seed` on."""

    def recorded(name: str, lengths: list[int], *, seed: int = 0, more: Any = None, **changes: Any) -> salus.Dataset:
        changed = replace(schema, **changes)
        if more:
            changed = changed.extended(more)
        with salus.Recorder(salus.create(tmp_path / name, changed)) as recorder:
            for number, length in enumerate(lengths):
                arrays = make_arrays(length, seed + number)
                extra = {
                    key: np.zeros((length, *feature.shape), feature.dtype) for key, feature in (more or {}).items()
                }
                arrays = {key: values for key, values in arrays.items() if key in changed.features}
                recorder.record_episode({**arrays, **extra}, outcome="success")
        return salus.open(tmp_path / name)

    return recorded


def test_episodes_are_numbered_through(make: Make) -> None:
    a, b = make("a", [5, 6]), make("b", [7], seed=2)
    both = salus.concat([a, b[0:0], b])
    assert (len(both), both.num_steps) == (3, 18)
    assert both.episodes["num_steps"] == [5, 6, 7]
    assert [episode.uid for episode in both] == [*a.episodes["uid"], *b.episodes["uid"]]
    assert both[2] == b[0] == both[-1] == both[b[0].uid]
    assert both[1] == a[1] == both[np.int64(-2)]
    assert both.part_of_episodes.tolist() == [0, 0, 2]
    assert both.url == f"{a.url}, {b.url}, {b.url}"
    assert "3 episodes, 18 steps" in repr(both)
    for key in (3, -4):
        with pytest.raises(IndexError, match=f"episode {key}: out of range, there are 3"):
            both[key]
    with pytest.raises(NotFoundError, match="no episode with uid 'x' among these 3"):
        both["x"]
    with pytest.raises(InvalidInputError, match="episode: got slice"):
        both[0:1]  # type: ignore[index]


def test_a_read_takes_from_every_dataset(make: Make) -> None:
    both = salus.concat([make("a", [5, 6]), make("b", [7, 4], seed=2)])
    source = [make_arrays(length, seed) for seed, length in enumerate([5, 6, 7, 4])]
    rows = np.array([3, 0, 2, 2, 1, 3])
    steps = np.array([[3, 0], [4, 4], [6, 1], [0, 2], [5, 0], [1, 1]])
    values = both.read({"images": (rows, steps), "states": (rows, steps[:, 0]), "labels_mask": (rows[:2], steps[:2])})
    for name, at in (("images", steps), ("states", steps[:, :1])):
        expected = np.stack([source[row][name][line] for row, line in zip(rows, at, strict=True)])
        np.testing.assert_array_equal(values[name], expected if name == "images" else expected[:, 0])
    assert values["images"].transpose(0, 1, 3, 4, 2).flags.c_contiguous
    assert values["labels_mask"].shape == (2, 2, 2, 2)
    assert values["labels_mask"].dtype == bool
    only = both.read({"images": (np.array([2, 3]), np.array([0, 3]))})["images"]
    np.testing.assert_array_equal(only, np.stack([source[2]["images"][0], source[3]["images"][3]]))
    assert both.read({}) == {}


def test_one_array_is_made_per_feature_in_order(make: Make) -> None:
    both = salus.concat([make("a", [5]), make("b", [4], seed=1)])
    made: list[tuple[int, ...]] = []

    def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        made.append(shape)
        return np.empty(shape, dtype)

    rows, steps = np.array([0, 1]), np.array([1, 2])
    values = both.read({"states": (rows, steps), "images": (rows, steps[:, None])}, empty=empty)
    assert made == [(2, 7), (2, 1, 12, 10, 3)]
    assert values["images"].shape == (2, 1, 3, 12, 10)
    made.clear()
    both.read({"images": (np.array([1, 1]), steps)}, empty=empty)  # of one dataset: without a copy
    assert made == [(2, 12, 10, 3)]


def test_reading_ahead_and_scanning_reach_every_dataset(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = make("a", [5, 6]), make("b", [4], seed=2)
    both = salus.concat([a, b])
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(both.parts[0], "prefetch", lambda *places: calls.append(("a", *places)))
    monkeypatch.setattr(both.parts[1], "prefetch", lambda *places: calls.append(("b", *places)))
    both.prefetch("images", 2, 0, 3)
    both.prefetch("images", 1, 2, 4)
    assert calls == [("b", "images", 0, 0, 3), ("a", "images", 1, 2, 4)]
    blocks = list(both.scan(["states"]))
    assert [(block.episode.uid, len(block.arrays["states"])) for block in blocks] == [
        (a[0].uid, 5),
        (a[1].uid, 6),
        (b[0].uid, 4),
    ]


def test_text_of_several_datasets(tmp_path: Path) -> None:
    schema = salus.Schema({"words": salus.Text()}, rate_hz=10)
    views = []
    for name in "ab":
        with salus.Recorder(salus.create(tmp_path / name, schema)) as recorder, recorder.episode() as episode:
            for step in range(3):
                episode.append(words=f"{name}{step}")
        views.append(salus.open(tmp_path / name))
    values = salus.concat(views).read({"words": (np.array([1, 0]), np.array([2, 1]))})
    assert values["words"].tolist() == ["b2", "a1"]


def test_a_mixture_travels_to_other_processes(make: Make) -> None:
    both = salus.concat([make("a", [5]), make("b", [4], seed=1)], weights=[1, 3])
    again = pickle.loads(pickle.dumps(both))  # noqa: S301 - our own
    assert again.weights == (0.25, 0.75)
    places = {"states": (np.array([1, 0]), np.array([2, 1]))}
    np.testing.assert_array_equal(again.read(places)["states"], both.read(places)["states"])


def test_what_is_asked_for_must_mean_the_same(make: Make, schema: salus.Schema) -> None:
    a = make("a", [5], more={"force": salus.Feature((3,), unit="N")})
    degrees = {
        **schema.features,
        "states": salus.Feature((7,), unit="deg"),
        "actions": salus.Feature((3,), range=(0, 1)),
    }
    b = make("b", [5], features=degrees, horizons=(2, 6), rate_hz=10)
    both = salus.concat([a, b])
    assert list(both.schema.features) == ["images", "actions"]
    both.check_feature("images")
    both.check_feature("actions")  # what may be recorded may differ
    both.check_feature("timestamp_ns")
    with pytest.raises(InvalidInputError, match=rf"do not agree on 'states': unit: 'rad' in {a.url}, 'deg' in {b.url}"):
        both.check_feature("states")
    with pytest.raises(InvalidInputError, match=r"do not agree on 'labels': horizons: .*\(2, 5\).*\(2, 6\)"):
        both.check_feature("labels")
    with pytest.raises(NotFoundError, match=f"no feature 'force'.*{b.url}"):
        both.check_feature("force")


def test_layouts_and_component_names_are_compared(make: Make, schema: salus.Schema) -> None:
    a = make("a", [3])
    other = {
        "images": salus.Image(height=10, width=12, layout="HWC"),
        "states": salus.Feature((7,), "float64", unit="rad", names=tuple("abcdefg")),
    }
    with salus.Recorder(salus.create(Path(a.url).parent / "b", replace(schema, features=other))) as recorder:
        arrays = {"images": np.zeros((3, 10, 12, 3), np.uint8), "states": np.zeros((3, 7))}
        recorder.record_episode(arrays)
    both = salus.concat([a, salus.open(Path(a.url).parent / "b")])
    with pytest.raises(InvalidInputError, match=r"(?s)'images': 2 problems:.*shape: \[3, 12, 10\].*layout: 'CHW' in"):
        both.check_feature("images")
    with pytest.raises(InvalidInputError, match=r"(?s)'states': 2 problems:.*dtype: 'float32'.*names: None in"):
        both.check_feature("states")


def test_damage_names_the_dataset_and_the_episode(make: Make) -> None:
    a, b = make("a", [5]), make("b", [4], seed=1)
    shard = next(Path(b.url).glob("states/c.*"))
    shard.write_bytes(shard.read_bytes()[:-9] + b"\0" * 9)
    with pytest.raises(CorruptDataError, match=f"{b[0].uid}.*'states'"):
        salus.concat([a, b]).read({"states": (np.array([0, 1]), np.array([0, 0]))})


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -1], [1, np.nan], [1, np.inf], [1, "2"], [True, 1], [1, 2, 3]])
def test_weights_that_do_not_fit_are_refused(make: Make, weights: list[Any]) -> None:
    a = make("a", [3])
    with pytest.raises(InvalidInputError, match="weights: got .*, expected 2 finite numbers above 0"):
        salus.concat([a, a], weights=weights)


def test_only_datasets_can_be_mixed(make: Make) -> None:
    a = make("a", [3])
    for wrong, got in (([], "no dataset"), (a, "Dataset"), ([a, "b.zarr"], "str"), ([a, salus.concat([a])], "ConcatV")):
        with pytest.raises(InvalidInputError, match=f"concat: got {got}.*, expected datasets"):
            salus.concat(wrong)  # type: ignore[arg-type]


# --- in salus.torch ---------------------------------------------------------------------------------------------


def test_windows_of_a_mixture(make: Make) -> None:
    torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")
    from salus.torch import EpisodeDataset, Loader, WindowDataset

    a, b = make("a", [20, 30]), make("b", [10], seed=2, rate_hz=10)
    both = salus.concat([a, b], weights=[1, 3])
    offsets = {"images": [-1, 0], "states": salus.Seconds([-0.1, 0.0], "linear"), "actions": 0}
    windows = WindowDataset(both, offsets, stride=2, pad_before=0)
    alone = [WindowDataset(view, offsets, stride=2, pad_before=0) for view in (a, b)]
    batch = windows.batch(np.arange(len(windows)))
    parts = [one.batch(np.arange(len(one))) for one in alone]
    for name in ("images", "images_is_pad", "states", "states_is_pad", "actions", "step"):
        assert torch.equal(batch[name], torch.cat([part[name] for part in parts])), name
    assert batch["images"].permute(0, 1, 3, 4, 2).is_contiguous()
    assert len(EpisodeDataset(both)[2]["states"]) == 10

    sample_weights = windows.sample_weights()
    assert sample_weights is not None
    assert sample_weights.shape == (len(windows),)
    assert sample_weights[: len(alone[0])].sum() == pytest.approx(0.25)
    assert len(set(sample_weights.round(12).tolist())) == 2
    of_episodes = windows.episode_weights
    assert of_episodes is not None
    assert of_episodes.sum() == pytest.approx(1)
    assert of_episodes[2] == pytest.approx(0.75)
    assert of_episodes[0] / of_episodes[1] == pytest.approx(8 / 13)  # its samples: steps 1, 3, … up to 15, and up to 25
    assert windows.samples_per_episode.tolist() == [8, 13, 5]
    drawn = [int(e) for batch in Loader(windows, 50, weights=of_episodes, num_samples=2000) for e in batch["episode"]]
    assert 0.7 < np.mean(np.array(drawn) == 2) < 0.8

    plain = WindowDataset(salus.concat([a, b]), offsets)
    assert plain.sample_weights() is plain.episode_weights is None
    assert alone[0].episode_weights is None


def test_a_weight_needs_samples(make: Make) -> None:
    pytest.importorskip("torch", reason="the extra 'torch' is not installed")
    from salus.torch import WindowDataset

    a, b = make("a", [20]), make("b", [3], seed=2)
    windows = {"actions": range(8)}
    WindowDataset(salus.concat([a, b]), windows, pad_after=0)
    with pytest.raises(InvalidInputError, match=f"a dataset with a weight gives no samples; {b.url}"):
        WindowDataset(salus.concat([a, b], weights=[1, 1]), windows, pad_after=0)
    with pytest.raises(NotFoundError, match=f"no feature 'force'.*{a.url}"):
        WindowDataset(salus.concat([a, b]), {"force": 0})


def test_the_table_of_a_mixture_is_that_of_its_parts(dataset: salus.Dataset) -> None:
    parts = [dataset[3:], dataset.select(outcome="success"), dataset[:2]]
    rows = [entry for part in parts for entry in part.episodes]
    table = salus.concat(parts).episodes
    assert list(table) == rows
    assert [table[number] for number in range(len(rows))] == rows
    assert table["failure_kind"] == [entry.failure_kind for entry in rows]
    assert [entry.shard_sizes for entry in table] == [entry.shard_sizes for entry in rows]
