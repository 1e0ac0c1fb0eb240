"""Reading features on clocks of their own, against what numpy says of the arrays that were recorded."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import salus
from salus.clocks import match_clock
from salus.errors import InvalidInputError, NotFoundError

from .slow_clocks import slow_match

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")

MS = 10**6
RATES = {"joints": 200.0, "touch": 8.0}
Method = Literal["nearest", "previous", "linear"]

SCHEMA = salus.Schema(
    {
        "images": salus.Image(height=6, width=5),
        "actions": salus.Feature((2,)),
        "joints": salus.Feature((3,), clock="joints"),
        "effort": salus.Feature((), "float64", clock="joints", nullable=True),
        "touch": salus.Image(height=4, width=3, clock="touch", color="gray"),
        "note": salus.Text(clock="touch"),
    },
    rate_hz=20,
    failure_kinds=("drop",),
    horizons=(3,),
    segment_steps=8,
    clocks=RATES,
)

# Steps, ticks of joints, ticks of touch: several segments of each (8, 80 and 8 steps), one tick, and none.
LENGTHS = ((30, 290, 11), (5, 0, 1), (9, 81, 0), (1, 1, 3), (12, 300, 2), (8, 0, 0))


def stamps_of(count: int, period_ns: int, start_ns: int, rng: np.random.Generator) -> np.ndarray:
    """Jittered, increasing; at times a long pause."""
    gaps = rng.integers(period_ns // 2, period_ns * 3 // 2, count) + (rng.random(count) < 0.03) * 40 * period_ns
    return np.asarray(start_ns + np.cumsum(gaps), np.int64)


def make(number: int, lengths: tuple[int, int, int] = (0, 0, 0)) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Arrays and stamps of episode `number`; joints begin before the steps, touch after them."""
    rng = np.random.default_rng(number)
    steps, joints, touch = lengths if any(lengths) else LENGTHS[number]
    arrays = {
        "images": rng.integers(0, 256, (steps, 3, 6, 5), dtype=np.uint8),
        "actions": rng.normal(size=(steps, 2)).astype(np.float32),
        "joints": rng.normal(size=(joints, 3)).astype(np.float32),
        "effort": rng.normal(size=joints),
        "effort.valid": rng.random(joints) < 0.8,
        "touch": rng.integers(0, 256, (touch, 1, 4, 3), dtype=np.uint8),
        "note": [f"note {number} {tick}" for tick in range(touch)],
    }
    arrays["effort"][~arrays["effort.valid"]] = 0
    stamps = {
        "step": stamps_of(steps, 50 * MS, 10**18, rng),
        "joints": stamps_of(joints, 5 * MS, 10**18 - 80 * MS, rng),
        "touch": stamps_of(touch, 125 * MS, 10**18 + 60 * MS, rng),
    }
    return arrays, stamps


def recorded(path: Path, episodes: list[tuple[dict[str, Any], dict[str, np.ndarray]]]) -> salus.Dataset:
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        for arrays, stamps in episodes:
            given = {name: values for name, values in arrays.items() if len(values)}  # a clock without steps: left out
            recorder.record_episode(given, timestamp_ns=stamps, outcome="success")
    return salus.open(path)


@pytest.fixture(scope="module")
def episodes() -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    return [make(number) for number in range(len(LENGTHS))]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, episodes: Any) -> salus.Dataset:
    return recorded(tmp_path_factory.mktemp("clocks") / "data.zarr", episodes)


# --- episodes and views -----------------------------------------------------------------------------------------


def test_an_episode_has_each_feature_on_its_own_clock(dataset: salus.Dataset, episodes: Any) -> None:
    for episode, (arrays, stamps), (steps, joints, touch) in zip(dataset, episodes, LENGTHS, strict=True):
        assert len(episode) == episode.num_steps == steps
        assert episode.clock_lengths == {"joints": joints, "touch": touch}
        for name, values in arrays.items():
            assert episode[name].shape == np.shape(values)
            np.testing.assert_array_equal(episode[name][:], values)
        for clock, wanted in stamps.items():
            np.testing.assert_array_equal(episode.timestamps(clock), wanted)
        np.testing.assert_array_equal(episode.timestamps(), episode.timestamp_ns)
        np.testing.assert_array_equal(episode["joints.timestamp_ns"][-3:], stamps["joints"][-3:])
        assert episode["joints.timestamp_ns"].dtype == np.int64
        there = {clock: "caller" for clock, length in zip(RATES, (joints, touch), strict=True) if length}
        assert episode.timestamp_sources == {"step": "caller", **there}
    assert "30 steps, 290 of joints, 11 of touch" in repr(dataset[0])
    with pytest.raises(NotFoundError, match="no clock 'joint'.*joints"):
        dataset[0].timestamps("joint")
    with pytest.raises(IndexError, match="has 81 steps of 'joints'"):
        dataset[2]["joints"][81]


def test_statistics_are_over_the_steps_of_the_clock(dataset: salus.Dataset, episodes: Any) -> None:
    for recompute in (False, True):
        found = dataset.statistics(["joints", "effort", "touch"], recompute=recompute)
        joints = np.concatenate([arrays["joints"] for arrays, _ in episodes])
        effort = np.concatenate([arrays["effort"][arrays["effort.valid"]] for arrays, _ in episodes])
        assert found["joints"].count.tolist() == [len(joints)] * 3
        assert int(found["effort"].count) == len(effort)
        assert int(found["touch"].count[0]) == 17 * 12
        np.testing.assert_allclose(found["joints"].mean, joints.mean(axis=0, dtype=np.float64))
        np.testing.assert_allclose(found["effort"].std, effort.std())
    for episode in dataset:  # to the last bit: in the batches of the recorder
        for name in ("joints", "effort", "touch", "actions"):
            again = episode.read_statistics(name, recompute=True).to_json()
            kept = episode.statistics[name].to_json()
            assert {key: again[key] for key in ("count", "mean", "m2")} == {
                key: kept[key] for key in ("count", "mean", "m2")
            }
    assert np.isnan(dataset[1].statistics["joints"].mean).all()
    assert "joints" in dataset[1].statistics


def test_gather_counts_on_the_clock_of_the_feature(dataset: salus.Dataset, episodes: Any) -> None:
    batch = dataset.gather(
        {
            "joints": [(0, 289), (4, -300), (2, 80), (0, 79), (0, 80)],
            "joints.timestamp_ns": [(0, -1), (3, 0)],
            "touch": [(0, 10), (3, -1)],
            "images": [(0, 29)],
            "labels": [(0, 29)],
        }
    )
    wanted = [episodes[e][0]["joints"][s] for e, s in [(0, 289), (4, 0), (2, 80), (0, 79), (0, 80)]]
    np.testing.assert_array_equal(batch["joints"], wanted)
    assert batch["joints.timestamp_ns"].tolist() == [episodes[0][1]["joints"][-1], episodes[3][1]["joints"][0]]
    np.testing.assert_array_equal(batch["touch"], [episodes[0][0]["touch"][10], episodes[3][0]["touch"][2]])
    with pytest.raises(IndexError, match="step 81: .* has 81 steps of the clock 'joints'"):
        dataset.gather({"joints": [(2, 81)]})
    with pytest.raises(IndexError, match="step 0: .* has 0 steps of the clock 'joints'"):
        dataset.gather({"joints": [(1, 0)]})


@pytest.mark.parametrize("max_block_bytes", [2**30, 3000, 1])
def test_scan_reads_each_step_of_each_clock_once(dataset: salus.Dataset, episodes: Any, max_block_bytes: int) -> None:
    names = ["images", "joints", "joints.timestamp_ns", "note", "effort.valid"]
    parts: dict[str, dict[str, list[Any]]] = {episode.uid: {name: [] for name in names} for episode in dataset}
    num_blocks = 0
    for block in dataset.scan(names, max_block_bytes=max_block_bytes):
        num_blocks += 1
        mine = parts[block.episode.uid]
        assert block.start == sum(map(len, mine["images"]))
        for name in names:
            mine[name].append(block.arrays[name].copy())
    for (arrays, stamps), mine in zip(episodes, parts.values(), strict=True):
        for name in names:
            wanted = stamps["joints"] if name == "joints.timestamp_ns" else arrays[name]
            np.testing.assert_array_equal(np.concatenate(mine[name]), np.asarray(wanted))
    assert num_blocks == len(dataset) if max_block_bytes == 2**30 else num_blocks > len(dataset) + 1


def test_scan_of_a_clock_gives_a_block_of_every_episode_and_counts_on_it(dataset: salus.Dataset) -> None:
    blocks = list(dataset.scan(["joints"], max_block_bytes=100 * 12))
    assert [len(block.arrays["joints"]) for block in blocks] == [100, 100, 90, 0, 81, 1, 100, 100, 100, 0]
    assert [block.start for block in blocks] == [0, 100, 200, 0, 0, 0, 0, 100, 200, 0]


def test_sizes_count_all_clocks(dataset: salus.Dataset) -> None:
    steps, joints, touch = np.array(LENGTHS).sum(axis=0).tolist()
    assert dataset.num_steps == steps
    assert dataset.lengths("touch").tolist() == [lengths[2] for lengths in LENGTHS]
    assert dataset.raw_bytes == steps * (8 + 90 + 8) + joints * (8 + 12 + 8) + touch * (8 + 12)


# --- windows ----------------------------------------------------------------------------------------------------

WINDOWS = {
    "joints": salus.Seconds([-0.1, -0.005, 0.0, 0.02]),
    "effort": salus.Seconds([-0.3, 0.0], "previous"),
    "joints.timestamp_ns": salus.Seconds(0.0, "previous"),
    "touch": salus.Seconds([0.0, 0.4]),
    "note": salus.Seconds(-0.1, "previous"),
    "actions": [0, 1],
    "images": salus.Seconds([-0.05, 0.0]),
    "labels": 0,
}


def check_window(
    episodes: Any, sample: dict[str, Any], name: str, offsets_ns: list[int], method: str, single: bool
) -> None:
    """One window of one sample, against the slow search."""
    arrays, stamps = episodes[int(sample["episode"])]
    clock = "step" if name in ("images", "actions") else "touch" if name in ("touch", "note") else "joints"
    values = stamps["joints"] if name == "joints.timestamp_ns" else arrays[name]
    ticks, now = stamps[clock].tolist(), int(stamps["step"][int(sample["step"])])
    pads = np.atleast_1d(sample[f"{name}_is_pad"])
    got = [sample[name]] if single else sample[name]
    for place, offset in enumerate(offsets_ns):
        if not ticks:
            assert pads[place]
            assert got[place] == "" if name == "note" else not np.any(np.asarray(got[place]))
            continue
        lower, upper, weight, is_pad = slow_match(ticks, now + offset, method)
        assert bool(pads[place]) == is_pad
        if name == "note":
            assert got[place] == values[lower]
        elif weight:
            mixed = values[lower] * np.float32(1 - weight) + values[upper] * np.float32(weight)
            np.testing.assert_allclose(np.asarray(got[place]), mixed, rtol=1e-4, atol=1e-5)
        else:
            np.testing.assert_array_equal(np.asarray(got[place]), values[lower])


def test_windows_are_those_of_a_slow_search(dataset: salus.Dataset, episodes: Any) -> None:
    windows = salus.torch.WindowDataset(dataset, WINDOWS)
    assert len(windows) == dataset.num_steps
    for sample in windows.__getitems__(list(range(len(windows)))):
        for name, window in WINDOWS.items():
            if isinstance(window, salus.Seconds):
                check_window(episodes, sample, name, window.offsets_ns.tolist(), window.method, window.single)
    sample = windows[0]
    assert sample["joints.timestamp_ns_is_pad"].shape == ()
    assert "labels_is_pad" not in sample
    assert sample["touch"].shape == (2, 1, 4, 3)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(
        st.tuples(st.integers(1, 20), st.sampled_from([0, 1, 2, 79, 80, 81, 250]), st.integers(0, 9)),
        min_size=1,
        max_size=3,
    ),
    offsets=st.lists(st.floats(-3, 3), min_size=1, max_size=5),
    method=st.sampled_from(["nearest", "previous", "linear"]),
    seed=st.integers(0, 100),
)
def test_any_windows_of_any_lengths(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[tuple[int, int, int]],
    offsets: list[float],
    method: Method,
    seed: int,
) -> None:
    episodes = [make(seed + number, some) for number, some in enumerate(lengths)]
    view = recorded(tmp_path_factory.mktemp("any") / "data.zarr", episodes)
    seconds = salus.Seconds(offsets, method)
    plain = salus.Seconds(offsets, "nearest" if method == "linear" else method)
    windows = salus.torch.WindowDataset(view, {"joints": seconds, "touch": plain, "actions": seconds})
    for sample in windows.__getitems__(list(range(len(windows)))):
        for name, window in (("joints", seconds), ("touch", plain), ("actions", seconds)):
            check_window(episodes, sample, name, window.offsets_ns.tolist(), window.method, False)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), period_ns=st.sampled_from([1e2, 1e6, 1e9]), count=st.sampled_from([1, 2, 3, 1000]))
def test_a_clock_is_searched_however_wrong_its_rate_is(data: st.DataObject, period_ns: float, count: int) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    gaps = np.where(rng.random(count) < 0.1, 10**9, rng.integers(1, 10**6, count))
    stamps = np.cumsum(gaps)
    current = np.array(data.draw(st.lists(st.integers(-(10**9), int(stamps[-1]) + 10**9), min_size=1, max_size=5)))
    windows = [
        salus.Seconds(data.draw(st.lists(st.floats(-1, 1), min_size=1, max_size=3)), method)
        for method in ("nearest", "previous", "linear")
    ]
    found = match_clock(
        windows,
        np.zeros(len(current), np.int64),
        current,
        lengths=np.full(len(current), count),
        periods_ns=np.full(len(current), period_ns),
        read_stamps=lambda _, steps: stamps[steps],
    )
    for seconds, matched in zip(windows, found, strict=True):
        for row, now in enumerate(current.tolist()):
            for place, offset in enumerate(seconds.offsets_ns.tolist()):
                got = tuple(values[row, place].item() for values in matched)
                assert got == pytest.approx(slow_match(stamps.tolist(), now + offset, seconds.method))


def test_only_stamps_around_the_samples_are_read() -> None:
    stamps = np.cumsum(np.random.default_rng(0).integers(800_000, 1_300_000, 600_000))  # 950 Hz, declared as 1000
    stamps[400_000:] += 50 * 10**9
    read: list[int] = []

    def count(_: np.ndarray, steps: np.ndarray) -> np.ndarray:
        read.append(steps.size)
        return np.asarray(stamps[steps])

    current = stamps[[5, 123_456, 399_999, 599_999]] + 1
    (found,) = match_clock(
        [salus.Seconds([-0.1, 0.0], "previous")],
        np.zeros(4, np.int64),
        current,
        lengths=np.full(4, 600_000),
        periods_ns=np.full(4, 1e6),
        read_stamps=count,
    )
    assert found.lower[:, 1].tolist() == [5, 123_456, 399_999, 599_999]
    assert sum(read) < 4 * 300
    assert len(read) < 40


def test_stamps_that_get_ever_rarer_take_few_looks() -> None:
    stamps = np.arange(100_000) ** 3
    looks = 0

    def count(_: np.ndarray, steps: np.ndarray) -> np.ndarray:
        nonlocal looks
        looks += 1
        return np.asarray(stamps[steps])

    current = stamps[[7, 500, 60_000, 99_990]] + 1
    (found,) = match_clock(
        [salus.Seconds(0.0, "previous")],
        np.zeros(4, np.int64),
        current,
        lengths=np.full(4, 100_000),
        periods_ns=np.full(4, 1.0),
        read_stamps=count,
    )
    slack = [slow_match(stamps[:600].tolist(), int(now), "previous")[0] for now in current[:2]]
    assert found.lower[:, 0].tolist() == [*slack, 60_000, 99_990]
    assert looks < 100


@pytest.mark.parametrize(("pad_before", "pad_after"), [(0, None), (None, 0), (0, 0), (1, 1), (3, 3)])
@pytest.mark.parametrize("name", ["joints", "touch"])
def test_padding_is_limited_by_the_features_clock(
    dataset: salus.Dataset, episodes: Any, name: str, pad_before: int | None, pad_after: int | None
) -> None:
    offsets = [-100 * MS, 0, 30 * MS]
    expected = []
    for number, (_, stamps) in enumerate(episodes):
        ticks = stamps[name].tolist()
        for step, now in enumerate(stamps["step"].tolist()):
            if ticks:
                outside = [now + offset for offset in offsets if slow_match(ticks, now + offset, "nearest")[3]]
                before, after = (sum(t < ticks[0] for t in outside), sum(t > ticks[0] for t in outside))
            limits = [(pad_before, before), (pad_after, after)] if ticks else [(pad_before, 3), (pad_after, 3)]
            if all(limit is None or limit >= 3 or padded <= limit for limit, padded in limits):
                expected.append((number, step))
    seconds = salus.Seconds([offset / 1e9 for offset in offsets])
    windows = salus.torch.WindowDataset(dataset, {name: seconds}, pad_before=pad_before, pad_after=pad_after)
    rows, steps = windows.locate(np.arange(len(windows)))
    assert list(zip(rows.tolist(), steps.tolist(), strict=True)) == expected


def test_offsets_in_steps_are_refused_for_another_clock(dataset: salus.Dataset) -> None:
    for offsets in (0, [-1, 0], range(3)):
        with pytest.raises(InvalidInputError, match=r"'joints'.*expected seconds: it runs on the clock 'joints'"):
            salus.torch.WindowDataset(dataset, {"joints": offsets})
    with pytest.raises(InvalidInputError, match="'effort'.*nullable"):
        salus.torch.WindowDataset(dataset, {"effort": salus.Seconds(0.0, "linear")})


def test_windows_without_any_sample_on_the_clock_are_zeros(dataset: salus.Dataset) -> None:
    windows = salus.torch.WindowDataset(
        dataset[5:], {"joints": salus.Seconds([0.0], "linear"), "touch": salus.Seconds(0.0), "images": 0}
    )
    batch = windows.batch(np.arange(8))
    assert batch["joints"].shape == (8, 1, 3)
    assert batch["touch"].shape == (8, 1, 4, 3)
    assert not batch["joints"].any()
    assert not batch["touch"].any()
    assert batch["joints_is_pad"].all()
    assert batch["touch_is_pad"].tolist() == [True] * 8


def same(batch: dict[str, Any], other: dict[str, Any]) -> bool:
    return batch.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in batch.items()
    )


def test_loader_and_workers_give_the_same_batches(dataset: salus.Dataset) -> None:
    windows = salus.torch.WindowDataset(dataset, {**WINDOWS, "joints": salus.Seconds([-0.02, 0.0], "linear")})
    direct = [windows.batch(np.arange(start, min(start + 10, len(windows)))) for start in range(0, len(windows), 10)]
    for loader in (
        salus.torch.Loader(windows, batch_size=10),
        torch.utils.data.DataLoader(windows, batch_size=10, num_workers=1, multiprocessing_context="fork"),
        torch.utils.data.DataLoader(pickle.loads(pickle.dumps(windows)), batch_size=10),  # noqa: S301 - our own
    ):
        batches = list(loader)
        assert len(batches) == len(direct)
        assert all(same(batch, other) for batch, other in zip(batches, direct, strict=True))
    shuffled = salus.torch.Loader(windows, batch_size=5, shuffle=True, block_size=4)
    assert sum(len(batch["step"]) for batch in shuffled) == len(windows)


def test_whole_episodes_have_each_clock_at_its_length(dataset: salus.Dataset, episodes: Any) -> None:
    whole = salus.torch.EpisodeDataset(dataset, [*SCHEMA.features, "joints.timestamp_ns", "labels"])
    for sample, (arrays, stamps), (steps, joints, touch) in zip(whole, episodes, LENGTHS, strict=True):
        assert [len(sample[name]) for name in ("images", "labels", "joints", "note")] == [steps, steps, joints, touch]
        np.testing.assert_array_equal(sample["joints"], arrays["joints"])
        np.testing.assert_array_equal(sample["touch"], arrays["touch"])
        np.testing.assert_array_equal(sample["joints.timestamp_ns"], stamps["joints"])
        assert sample["note"] == arrays["note"]


def test_the_normalizer_is_fitted_to_all_steps_of_the_clock(dataset: salus.Dataset, episodes: Any) -> None:
    windows = salus.torch.WindowDataset(
        dataset, {"joints": salus.Seconds(0.0, "previous"), "effort": salus.Seconds([0.0]), "actions": 0}
    )
    modes = {"joints": "meanstd", "effort": "minmax", "actions": "meanstd"}
    normalizer = salus.torch.Normalizer.fit(windows, modes)
    joints, actions = (np.concatenate([arrays[name] for arrays, _ in episodes]) for name in ("joints", "actions"))
    effort = np.concatenate([arrays["effort"][arrays["effort.valid"]] for arrays, _ in episodes])
    result = normalizer(
        {"joints": torch.from_numpy(joints), "effort": torch.from_numpy(effort), "actions": torch.from_numpy(actions)}
    )
    for name in ("joints", "actions"):
        np.testing.assert_allclose(result[name].mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(result[name].std(axis=0, correction=0), 1, atol=1e-5)
    assert (float(result["effort"].min()), float(result["effort"].max())) == pytest.approx((-1, 1))
    some = salus.torch.Normalizer.fit(windows, {"joints": "minmax"}, num_samples=200)
    assert float(some({"joints": torch.from_numpy(joints)})["joints"].abs().max()) > 1


def test_padded_entries_of_a_single_offset_do_not_count_for_a_transform(dataset: salus.Dataset, episodes: Any) -> None:
    windows = salus.torch.WindowDataset(
        dataset, {"joints": salus.Seconds(0.0, "previous")}, transform=lambda sample: sample
    )
    normalizer = salus.torch.Normalizer.fit(windows, {"joints": "minmax"})
    kept = []
    for arrays, stamps in episodes:
        for now in stamps["step"].tolist():
            if len(stamps["joints"]):
                step, _, _, is_pad = slow_match(stamps["joints"].tolist(), now, "previous")
                kept += [] if is_pad else [arrays["joints"][step]]
    result = normalizer({"joints": torch.from_numpy(np.stack(kept))})["joints"].numpy()
    np.testing.assert_allclose([result.min(axis=0), result.max(axis=0)], [[-1] * 3, [1] * 3], rtol=1e-6)


def test_the_original_dataset_takes_the_last_value_by_then(tmp_path: Path) -> None:
    features = {**salus.schema.SALUS.features, "images": salus.Image(height=8, width=8)}
    features["signals"] = salus.Feature((12,), clock="forces")
    schema = salus.Schema(
        features, rate_hz=25, failure_kinds=salus.schema.SALUS.failure_kinds, horizons=(6, 10, 13, 16),
        clocks={"forces": 100.0},
    )  # fmt: skip
    rng = np.random.default_rng(0)
    signals = rng.normal(size=(80, 12)).astype(np.float32)
    arrays = {"images": np.zeros((20, 3, 8, 8), np.uint8), "states": np.zeros((20, 7)), "actions": np.zeros((20, 7))}
    with salus.Recorder(salus.create(tmp_path / "data.zarr", schema)) as recorder:
        stamps = {"step": np.arange(20) * 40 * MS, "forces": np.arange(80) * 10 * MS - 8 * MS}
        recorder.record_episode({**arrays, "signals": signals}, timestamp_ns=stamps, outcome="success")
    from salus.data.dataset_mvp import SALUSMVPDataset

    samples = SALUSMVPDataset(tmp_path / "data.zarr")
    assert len(samples) == 20
    np.testing.assert_array_equal(np.stack([sample["signals"] for sample in samples]), signals[::4])


# --- mixtures and revisions -------------------------------------------------------------------------------------


def test_a_mixture_reads_clocks_of_all_parts(dataset: salus.Dataset, episodes: Any, tmp_path: Path) -> None:
    others = [make(50, (7, 100, 3)), make(51, (4, 0, 2))]
    mixture = salus.concat([dataset, recorded(tmp_path / "more.zarr", others)])
    both = [*episodes, *others]
    seconds = salus.Seconds([-0.2, 0.0], "linear")
    windows = salus.torch.WindowDataset(mixture, {"joints": seconds, "touch": salus.Seconds([0.0])})
    for sample in windows.__getitems__(list(range(len(windows)))):
        check_window(both, sample, "joints", seconds.offsets_ns.tolist(), "linear", False)
        check_window(both, sample, "touch", [0], "nearest", False)
    assert mixture.lengths("joints").tolist() == [len(stamps["joints"]) for _, stamps in both]


def test_a_mixture_refuses_a_feature_on_different_clocks(dataset: salus.Dataset, tmp_path: Path) -> None:
    schema = salus.Schema({"joints": salus.Feature((3,)), "actions": salus.Feature((2,))}, rate_hz=20)
    plain = salus.create(tmp_path / "plain.zarr", schema)
    mixture = salus.concat([dataset, plain])
    assert list(mixture.schema.features) == ["actions"]
    assert mixture.schema.clocks == {}
    with pytest.raises(InvalidInputError, match="clock: 'joints' in .*, 'step' in"):
        mixture.check_feature("joints")


def test_clocks_are_added_with_their_features(path: Path, schema: salus.Schema, arrays: Any) -> None:
    dataset = salus.create(path, schema)
    with salus.Recorder(dataset) as recorder:
        recorder.record_episode(arrays(20))
    with pytest.raises(InvalidInputError, match="declares it"):
        dataset.add_features({"joints": salus.Feature((3,), clock="joints")})
    dataset.add_features({"joints": salus.Feature((3,), clock="joints")}, clocks={"joints": 500})
    assert dataset.lengths("joints").tolist() == []  # until it is refreshed
    joints = np.arange(600, dtype=np.float32).reshape(200, 3)
    with salus.Recorder(dataset) as recorder:
        recorder.record_episode({**arrays(20), "joints": joints})
    dataset.refresh()
    assert dataset.schema.clocks == {"joints": 500}
    assert dataset.lengths("joints").tolist() == [0, 200]
    assert dataset[0].clock_lengths == {}
    np.testing.assert_array_equal(dataset[1]["joints"][:], joints)
    with pytest.raises(NotFoundError, match="recorded before"):
        salus.torch.WindowDataset(dataset, {"joints": salus.Seconds(0.0)})
    windows = salus.torch.WindowDataset(dataset[1:], {"joints": salus.Seconds(0.0, "previous")})
    np.testing.assert_array_equal(windows[3]["joints"], joints[30])


def test_what_was_pushed_reads_by_time(tmp_path: Path) -> None:
    """As a robot records: steps and pushed ticks by turns."""
    path = tmp_path / "data.zarr"
    schema = salus.Schema(
        {"actions": salus.Feature((1,)), "joints": salus.Feature((2,), clock="joints")}, rate_hz=10,
        segment_steps=8, clocks={"joints": 100},
    )  # fmt: skip
    with salus.Recorder(salus.create(path, schema)) as recorder, recorder.episode() as episode:
        for step in range(30):
            for tick in range(10):
                now = (step * 10 + tick) * 10 * MS
                episode.push("joints", np.array([step, tick], np.float32), timestamp_ns=now)
            episode.append({"actions": np.array([step])}, timestamp_ns=step * 100 * MS + 45 * MS)
    windows = salus.torch.WindowDataset(
        salus.open(path), {"joints": salus.Seconds([-0.05, 0.0], "previous"), "actions": 0}
    )
    assert len(windows) == 30
    for step, sample in enumerate(windows):
        earlier = [step - 1, 9] if step else [0, 0]
        assert sample["joints"].tolist() == [earlier, [step, 4]]
        assert sample["joints_is_pad"].tolist() == [False, False]
