"""The normaliser: what it is fitted to, what it does to a batch, and that it survives a checkpoint."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")

from hypothesis import given  # noqa: E402 - after the check that torch is there
from hypothesis import strategies as st  # noqa: E402

import salus  # noqa: E402
import salus.torch  # noqa: E402
from salus.errors import InvalidInputError  # noqa: E402
from salus.torch import Normalizer, WindowDataset  # noqa: E402
from salus.torch.fitting import Statistics, Values  # noqa: E402

from .conftest import LENGTHS, make_arrays  # noqa: E402

MODES = {"actions": "minmax", "states": "meanstd", "images": "unit"}
WINDOWS: dict[str, Any] = {"images": [-1, 0], "states": 0, "actions": range(-1, 4)}


@pytest.fixture
def windows(dataset: salus.Dataset) -> WindowDataset:
    return WindowDataset(dataset, WINDOWS)


def all_of(source: list[Any], name: str) -> np.ndarray:
    return np.concatenate([arrays[name] for arrays in source]).astype(np.float64)


def batch_of(windows: WindowDataset) -> dict[str, Any]:
    return windows.batch(np.arange(len(windows)))


# --- what is fitted ---------------------------------------------------------------------------------------------


def test_minmax_and_meanstd_are_of_all_steps(windows: WindowDataset, source: list[Any]) -> None:
    normalizer = Normalizer.fit(windows, MODES)
    assert normalizer.modes == {"images": "unit", "actions": "minmax", "states": "meanstd"}
    batch = batch_of(windows)
    result = normalizer(batch)
    actions, states = all_of(source, "actions"), all_of(source, "states")
    low, high = actions.min(axis=0), actions.max(axis=0)
    expected = 2 * (batch["actions"].double().numpy() - low) / (high - low) - 1
    np.testing.assert_allclose(result["actions"], expected, atol=1e-5)
    assert result["actions"].amin(dim=(0, 1)).tolist() == pytest.approx([-1] * 3, abs=1e-6)
    assert result["actions"].amax(dim=(0, 1)).tolist() == pytest.approx([1] * 3, abs=1e-6)
    expected = (batch["states"].double().numpy() - states.mean(axis=0)) / states.std(axis=0)
    np.testing.assert_allclose(result["states"], expected, atol=1e-5)
    assert result["actions"].dtype == result["states"].dtype == torch.float32
    assert result["step"] is batch["step"]
    assert batch["images"].dtype == torch.uint8  # what came in is unchanged


def test_stride_padding_and_masks_change_no_statistics(dataset: salus.Dataset, windows: WindowDataset) -> None:
    few = WindowDataset(dataset, WINDOWS, stride=5, pad_after=0, where=lambda episode: np.arange(len(episode)) > 9)
    assert len(few) < 20
    expected = Normalizer.fit(windows, MODES).state_dict()
    for key, values in Normalizer.fit(few, MODES).state_dict().items():
        assert torch.equal(values, expected[key])


@pytest.mark.parametrize("clipped", [False, True])
def test_quantiles(windows: WindowDataset, source: list[Any], clipped: bool) -> None:
    mode = "quantile_clipped" if clipped else "quantile"
    batch = batch_of(windows)
    result = Normalizer.fit(windows, {"states": mode})(batch)["states"]
    low, high = np.quantile(all_of(source, "states"), [0.01, 0.99], axis=0)
    expected = 2 * (batch["states"].numpy() - low) / (high - low) - 1
    assert abs(expected).max() > 1.05
    np.testing.assert_allclose(result, np.clip(expected, -1, 1) if clipped else expected, atol=1e-5)


def test_quantiles_of_more_than_fits_are_of_a_random_share(windows: WindowDataset) -> None:
    exact = Normalizer.fit(windows, {"states": "quantile"}).state_dict()
    fits = Normalizer.fit(windows, {"states": "quantile"}, max_bytes=sum(LENGTHS) * 7 * 4).state_dict()
    assert all(torch.equal(exact[key], fits[key]) for key in exact)
    half, again, other = (
        Normalizer.fit(windows, {"states": "quantile"}, max_bytes=sum(LENGTHS) * 7 * 2, seed=seed).state_dict()
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(half[key], again[key]) for key in exact)
    assert not any(torch.equal(half[key], other[key]) for key in exact)
    assert not any(torch.equal(half[key], exact[key]) for key in exact)
    spread = "states:quantile:spread"
    np.testing.assert_allclose(half[spread], exact[spread], rtol=0.5)


def test_a_subset_of_the_steps(windows: WindowDataset, source: list[Any]) -> None:
    first, again, other = (
        Normalizer.fit(windows, {"states": "minmax", "actions": "minmax"}, num_samples=20, seed=seed)
        for seed in (0, 0, 1)
    )
    states = all_of(source, "states")
    steps = np.sort(np.random.default_rng(0).choice(len(states), 20, replace=False, shuffle=False))
    low, high = states[steps].min(axis=0), states[steps].max(axis=0)
    state = first.state_dict()
    np.testing.assert_allclose(state["states:minmax:center"], (low + high) / 2, rtol=1e-6)
    np.testing.assert_allclose(state["states:minmax:spread"], (high - low) / 2, rtol=1e-6)
    assert all(torch.equal(values, again.state_dict()[key]) for key, values in state.items())
    assert not any(torch.equal(values, other.state_dict()[key]) for key, values in state.items())


def relative(sample: dict[str, Any]) -> dict[str, Any]:
    """Actions less the state, of which there are as many; and an action that is not in the schema."""
    delta = sample["actions"] - sample["states"][:3]
    return {**sample, "actions": delta, "first.action": delta[0]}


def test_with_a_transform_its_results_are_fitted_without_the_padded_ones(dataset: salus.Dataset) -> None:
    windows = WindowDataset(dataset, WINDOWS, transform=relative, stride=3)
    normalizer = Normalizer.fit(windows, {"actions": "minmax", "first.action": "meanstd", "states": "quantile"})
    samples = [windows[number] for number in range(len(windows))]
    counted = np.concatenate([sample["actions"][~sample["actions_is_pad"]] for sample in samples])
    everything = np.concatenate([sample["actions"] for sample in samples])
    assert len(counted) < len(everything)
    moments = Normalizer.fit(windows, {"actions": "meanstd"}).state_dict()
    np.testing.assert_allclose(moments["actions:meanstd:center"], counted.mean(axis=0), atol=1e-6)
    assert not np.allclose(counted.mean(axis=0), everything.mean(axis=0), atol=1e-3)
    state = normalizer.state_dict()
    low, high = counted.min(axis=0), counted.max(axis=0)
    np.testing.assert_allclose(state["actions:minmax:center"], (low + high) / 2, atol=1e-6)
    np.testing.assert_allclose(state["actions:minmax:spread"], (high - low) / 2, atol=1e-6)
    first = np.stack([sample["first.action"] for sample in samples])
    np.testing.assert_allclose(state["first%2Eaction:meanstd:center"], first.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(state["first%2Eaction:meanstd:spread"], first.std(axis=0), rtol=1e-5)
    states = np.stack([sample["states"] for sample in samples])
    np.testing.assert_allclose(state["states:quantile:center"], np.quantile(states, [0.01, 0.99], axis=0).mean(axis=0))
    result = normalizer({"first.action": samples[0]["first.action"]})
    assert result["first.action"].shape == (3,)


def test_values_that_are_not_there_do_not_count(path: Path, schema: salus.Schema) -> None:
    dataset = salus.create(path, schema.extended({"force": salus.Feature((2,), nullable=True)}))
    values = np.random.default_rng(0).normal(5, 1, (30, 2)).astype(np.float32)
    valid = np.arange(30) % 3 == 0
    with salus.Recorder(dataset) as recorder:
        recorder.record_episode({**make_arrays(30), "force": values, "force.valid": valid})
    dataset.refresh()
    for transform in (None, lambda sample: sample):
        windows = WindowDataset(dataset, {"force": [0], "force.valid": [0]}, transform=transform)
        state = Normalizer.fit(windows, {"force": "meanstd"}).state_dict()
        np.testing.assert_allclose(state["force:meanstd:center"], values[valid].mean(axis=0), rtol=1e-5)
    few = Normalizer.fit(WindowDataset(dataset, {"force": 0}), {"force": "minmax"}, num_samples=29).state_dict()
    assert (few["force:minmax:center"] - few["force:minmax:spread"]).min() > 1  # no zero that stands for nothing


def test_of_a_mixture(dataset: salus.Dataset, windows: WindowDataset) -> None:
    halves = salus.concat([dataset[:2], dataset[2:]], weights=[1, 2])
    expected = Normalizer.fit(windows, MODES).state_dict()
    for options in ({}, {"num_samples": sum(LENGTHS)}):
        state = Normalizer.fit(WindowDataset(halves, WINDOWS), MODES, **options).state_dict()
        assert all(torch.allclose(values, expected[key]) for key, values in state.items())


# --- constant components, NaN -----------------------------------------------------------------------------------


def recorded(path: Path, schema: salus.Schema, **values: np.ndarray) -> salus.Dataset:
    features = {name: replace(schema.features[name], allow_nan=True) for name in ("states", "actions")}
    with salus.Recorder(salus.create(path, replace(schema, features={**schema.features, **features}))) as recorder:
        recorder.record_episode(make_arrays(4, 1))
        recorder.record_episode({**make_arrays(len(next(iter(values.values())))), **values})
    return salus.open(path)


@pytest.mark.parametrize("mode", ["minmax", "quantile", "quantile_clipped", "meanstd"])
def test_a_constant_component_becomes_zero(path: Path, schema: salus.Schema, mode: str) -> None:
    actions = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    actions[:, 1] = 7
    actions[:, 2] = 1000
    actions[::2, 2] = np.nextafter(np.float32(1000), np.float32(2000))  # the noise of rounding
    dataset = recorded(path, schema, actions=actions)
    windows = WindowDataset(dataset[1:], {"actions": 0})
    normalizer = Normalizer.fit(windows, {"actions": mode})
    result = normalizer(windows.batch(np.arange(50)))["actions"]
    assert result[:, 0].std() > 0.3
    assert result[:, 1].eq(0).all()
    assert result[:, 2].abs().max() < 1e-3
    back = normalizer.inverse({"actions": torch.zeros(3)})["actions"]
    assert back[1] == 7


def test_small_units_are_no_constants(path: Path, schema: salus.Schema) -> None:
    actions = (np.random.default_rng(0).normal(size=(50, 3)) * 1e-9).astype(np.float32)
    windows = WindowDataset(recorded(path, schema, actions=actions)[1:], {"actions": 0})
    result = Normalizer.fit(windows, {"actions": "minmax"})(windows.batch(np.arange(50)))["actions"]
    assert result.amax(dim=0).tolist() == pytest.approx([1] * 3, abs=1e-5)


@pytest.mark.parametrize("mode", ["minmax", "quantile", "meanstd"])
@pytest.mark.parametrize("transform", [None, lambda sample: sample])
def test_nan_is_refused_with_its_place_or_passed_over(
    path: Path, schema: salus.Schema, monkeypatch: pytest.MonkeyPatch, mode: str, transform: Any
) -> None:
    states = np.random.default_rng(0).normal(size=(40, 7)).astype(np.float32)
    states[17, 2], states[20, 3] = np.nan, np.inf
    dataset = recorded(path, schema, states=states)
    windows = WindowDataset(dataset, {"states": 0}, transform=transform)
    place = f"'states' has NaN or infinity at episode {dataset[1].uid}, step 17"
    with pytest.raises(InvalidInputError, match=place):
        Normalizer.fit(windows, {"states": mode})
    if transform is None:
        with pytest.raises(InvalidInputError, match=place.replace("17", "(17|20)")):
            Normalizer.fit(windows, {"states": mode}, num_samples=43)
    if transform is None:  # an episode that comes in several blocks
        scan = dataset.scan
        monkeypatch.setattr(dataset, "scan", lambda names: scan(names, max_block_bytes=7 * 4 * 5))
        with pytest.raises(InvalidInputError, match=place):
            Normalizer.fit(windows, {"states": mode})
    state = Normalizer.fit(WindowDataset(dataset[1:], {"states": 0}), {"states": mode}, allow_nan=True).state_dict()
    clean = states.astype(np.float64)
    clean[20, 3] = np.nan
    expected = {
        "minmax": (np.nanmin(clean, axis=0) + np.nanmax(clean, axis=0)) / 2,
        "quantile": np.nanquantile(clean, [0.01, 0.99], axis=0).mean(axis=0),
        "meanstd": np.nanmean(clean, axis=0),
    }[mode]
    np.testing.assert_allclose(state[f"states:{mode}:center"], expected, atol=1e-6)
    if mode == "meanstd":
        np.testing.assert_allclose(state["states:meanstd:spread"], np.nanstd(clean, axis=0), rtol=1e-5)


def test_a_component_without_values_cannot_be_fitted(path: Path, schema: salus.Schema) -> None:
    states = np.ones((5, 7), np.float32)
    states[:, 2] = np.nan
    windows = WindowDataset(recorded(path, schema, states=states)[1:], {"states": 0})
    for mode in ("minmax", "meanstd", "quantile"):
        with pytest.raises(InvalidInputError, match="'states' has a component without any value"):
            Normalizer.fit(windows, {"states": mode}, allow_nan=True)


@given(
    data=st.lists(
        st.lists(st.one_of(st.floats(-1e3, 1e3, width=32), st.just(np.nan)), min_size=1, max_size=8),
        min_size=1,
        max_size=5,
    ),
    offset=st.sampled_from([0.0, 1e6]),
)
def test_moments_of_parts_are_those_of_the_whole(data: list[list[float]], offset: float) -> None:
    parts = [np.array(part) + offset for part in data]
    whole = np.concatenate(parts)
    statistics = Statistics("x", "meanstd", allow_nan=True)
    for part in parts:
        statistics.add(Values("x", part[:, None], lambda row: ("uid", row)))
    if np.isnan(whole).all():
        with pytest.raises(InvalidInputError):
            statistics.center_and_spread()
        return
    center, spread = statistics.center_and_spread()
    std = np.nanstd(whole)
    constant = std <= 2 * np.finfo(np.float32).eps * abs(center[0])
    assert center[0] == pytest.approx(np.nanmean(whole), rel=1e-12)
    assert spread[0] == pytest.approx(1.0 if constant else std, rel=1e-6)


# --- images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["CHW", "HWC"])
@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
def test_images(path: Path, layout: Any, color: Any) -> None:
    image = salus.Image(height=4, width=5, layout=layout, color=color)
    values = np.random.default_rng(0).integers(0, 256, (6, *image.shape), dtype=np.uint8)
    with salus.Recorder(salus.create(path, salus.Schema({"images": image}, rate_hz=10))) as recorder:
        recorder.record_episode({"images": values})
    windows = WindowDataset(salus.open(path), {"images": [-1, 0]})
    batch = windows.batch(np.arange(6))
    unit = Normalizer.fit(windows, {"images": "unit"})
    result = unit(batch)["images"]
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result, batch["images"].numpy() / 255.0, rtol=1e-6)
    assert result.stride() == batch["images"].stride()  # channels-last images stay so
    assert torch.equal(unit.inverse({"images": result})["images"].round().to(torch.uint8), batch["images"])
    if color == "gray":
        with pytest.raises(InvalidInputError, match="'imagenet' needs three channels, and it is gray"):
            Normalizer.fit(windows, {"images": "imagenet"})
        return
    result = Normalizer.fit(windows, {"images": "imagenet"})(batch)["images"].numpy()
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    if color == "bgr":
        mean, std = mean[::-1], std[::-1]
    if layout == "CHW":
        mean, std = mean[:, None, None], std[:, None, None]
    np.testing.assert_allclose(result, (batch["images"].numpy() / 255.0 - mean) / std, atol=1e-5)


def test_images_that_a_transform_made_floats_are_not_divided_again(dataset: salus.Dataset) -> None:
    windows = WindowDataset(dataset, {"images": 0}, transform=lambda s: {**s, "images": s["images"].float()})
    with pytest.raises(InvalidInputError, match="'images': got torch.float32 from the transform, expected uint8"):
        Normalizer.fit(windows, {"images": "unit"})


# --- as a module ------------------------------------------------------------------------------------------------


def test_inverse_takes_actions_back(windows: WindowDataset) -> None:
    normalizer = Normalizer.fit(windows, {"actions": "quantile", "states": "meanstd"})
    batch = batch_of(windows)
    back = normalizer.inverse(normalizer(batch))
    np.testing.assert_allclose(back["actions"], batch["actions"], atol=1e-5)
    predicted = torch.zeros(2, 3, requires_grad=True)
    normalizer.inverse({"actions": predicted})["actions"].sum().backward()
    assert predicted.grad is not None
    given_numpy = normalizer({"states": batch["states"].numpy()})
    assert torch.equal(given_numpy["states"], normalizer(batch)["states"])


def test_a_fresh_one_takes_everything_from_the_state(windows: WindowDataset, tmp_path: Path) -> None:
    normalizer = Normalizer.fit(windows, {**MODES, "states": "quantile_clipped"})
    batch = batch_of(windows)
    expected = normalizer(batch)

    class Policy(torch.nn.Module):
        def __init__(self, normalizer: Normalizer) -> None:
            super().__init__()
            self.normalizer = normalizer
            self.head = torch.nn.Linear(3, 3)

    torch.save(Policy(normalizer).state_dict(), tmp_path / "policy.pt")
    policy = Policy(Normalizer())
    policy.load_state_dict(torch.load(tmp_path / "policy.pt", weights_only=True))
    assert policy.normalizer.modes == {**MODES, "states": "quantile_clipped"}
    alone = Normalizer()
    alone.load_state_dict(normalizer.state_dict())
    for other in (policy.normalizer, alone, copy.deepcopy(normalizer), pickle.loads(pickle.dumps(normalizer))):  # noqa: S301
        result = other(batch)
        assert all(torch.equal(result[name], expected[name]) for name in MODES)
    assert all(isinstance(value, torch.Tensor) for value in normalizer.state_dict().values())  # as safetensors wants
    assert not list(normalizer.parameters())


def test_any_name_survives_the_state(windows: WindowDataset) -> None:
    names = ("observation.state", "a%2Eb", "50%:minmax:center", "plain")
    renamed = WindowDataset(
        windows.view, {"states": 0}, transform=lambda sample: {**sample, **dict.fromkeys(names, sample["states"])}
    )
    normalizer = Normalizer.fit(renamed, dict.fromkeys(names, "minmax"))
    normalizer.add_module("second", Normalizer.fit(windows, {"actions": "meanstd"}))
    fresh = Normalizer()
    fresh.add_module("second", Normalizer())
    fresh.load_state_dict(normalizer.state_dict())
    assert fresh.modes == dict.fromkeys(names, "minmax")
    assert fresh.second.modes == {"actions": "meanstd"}
    batch = {name: torch.ones(7) for name in names}
    assert all(torch.equal(fresh(batch)[name], normalizer(batch)[name]) for name in names)


def test_a_fitted_one_refuses_the_state_of_another(windows: WindowDataset) -> None:
    one, other = Normalizer.fit(windows, {"states": "minmax"}), Normalizer.fit(windows, {"states": "meanstd"})
    with pytest.raises(RuntimeError, match="Missing key.*states:meanstd:center"):
        other.load_state_dict(one.state_dict())


def test_it_moves_with_the_device_and_says_what_it_does(windows: WindowDataset) -> None:
    normalizer = Normalizer.fit(windows, MODES)
    assert repr(normalizer) == "Normalizer(images: unit, actions: minmax, states: meanstd)"
    assert normalizer({"states": torch.zeros(7, device="meta")})["states"].device.type == "meta"  # it follows the batch
    moved = normalizer.to("meta")
    assert all(buffer.device.type == "meta" for buffer in moved.buffers())
    assert moved({"states": torch.zeros(7, device="meta")})["states"].device.type == "meta"
    assert (
        torch.zeros(7, dtype=torch.float64).dtype
        == Normalizer.fit(windows, {"states": "meanstd"})({"states": torch.zeros(7, dtype=torch.float64)})[
            "states"
        ].dtype
    )


def test_batches_that_do_not_fit(windows: WindowDataset) -> None:
    normalizer = Normalizer.fit(windows, {"states": "meanstd", "actions": "minmax"})
    assert set(normalizer({"states": torch.zeros(4, 7)})) == {"states"}  # at the robot there are no actions
    with pytest.raises(InvalidInputError, match="got a batch of state, fitted is states, actions"):
        normalizer({"state": torch.zeros(7)})
    for shape in ((4, 6), (), (7, 1)):
        with pytest.raises(InvalidInputError, match=r"'states': got .*, expected \(…, 7\)"):
            normalizer({"states": torch.zeros(shape)})
    with pytest.raises(InvalidInputError, match=r"use Normalizer.fit, or load a state_dict"):
        Normalizer()({"states": torch.zeros(7)})


@pytest.mark.parametrize(
    ("modes", "message"),
    [
        ({}, "expected names with modes"),
        (["actions"], "expected names with modes"),
        ({"actions": "zscore"}, "'actions': got mode 'zscore', expected one of 'minmax'"),
        ({"action": "minmax"}, "no window of 'action'; did you mean 'actions'"),
        ({"images": "meanstd"}, "'images': got mode 'meanstd', expected 'unit' or 'imagenet': it is an image"),
        ({"actions": "unit"}, "'actions': got mode 'unit', expected 'minmax' .*: it is no image"),
    ],
)
def test_modes_that_do_not_fit(windows: WindowDataset, modes: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Normalizer.fit(windows, modes)


def test_what_cannot_be_fitted(dataset: salus.Dataset, windows: WindowDataset, path: Path) -> None:
    with pytest.raises(InvalidInputError, match="got Dataset, expected a WindowDataset"):
        Normalizer.fit(dataset, MODES)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="num_samples: got 0"):
        Normalizer.fit(windows, MODES, num_samples=0)
    named = WindowDataset(dataset, WINDOWS, transform=lambda sample: {**sample, "words": ["a"]})
    with pytest.raises(InvalidInputError, match="'gone' is not in the samples, which have episode, step"):
        Normalizer.fit(named, {"gone": "minmax"})
    with pytest.raises(InvalidInputError, match="'words' has <U1 values, expected numbers"):
        Normalizer.fit(named, {"words": "minmax"})
    text = salus.Schema({"words": salus.Text()}, rate_hz=10)
    with salus.Recorder(salus.create(path.with_name("text"), text)) as recorder, recorder.episode() as episode:
        episode.append(words="lift")
    with pytest.raises(InvalidInputError, match="'words' is text"):
        Normalizer.fit(WindowDataset(salus.open(path.with_name("text")), {"words": 0}), {"words": "minmax"})
