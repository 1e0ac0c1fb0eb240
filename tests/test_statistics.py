"""Statistics: against numpy on whole arrays, in records, merged over episodes, and what a bad record costs."""

from __future__ import annotations

import base64
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

import salus
from salus import documents
from salus.layout import record_key
from salus.sketches import RECORD_K, check_kll
from salus.statistics import EpisodeStatistics, FeatureStatistics, from_record

from .conftest import Arrays, make_arrays, steps_of

FIELDS = ("count", "mean", "std", "min", "max", "num_nan", "num_infinite")


def statistics_of(values: np.ndarray, feature: salus.Feature, cuts: list[int]) -> FeatureStatistics:
    """In batches cut at `cuts`, through the text of a record."""
    schema = salus.Schema({"x": feature}, rate_hz=10)
    made = EpisodeStatistics(schema)
    for batch in np.split(values, sorted(cut % (len(values) + 1) for cut in cuts)):
        made.add({"x": batch})
    document = json.loads(documents.canonical(made.to_json()))
    read = from_record(document, schema, "x", key="test")
    assert read is not None
    assert documents.canonical({"x": read.to_json()}) == documents.canonical(made.to_json())
    return read


def assert_as_numpy(got: FeatureStatistics, values: np.ndarray) -> None:
    """Of float64 (n, …) without NaN. Rounding is relative to the largest value, as no sum can do better."""
    scale = max(float(np.abs(values).max(initial=0)), 1e-300)
    assert (got.count == len(values)).all()
    np.testing.assert_allclose(got.mean, values.mean(axis=0), rtol=0, atol=1e-13 * scale)
    np.testing.assert_allclose(got.std, values.std(axis=0), rtol=1e-9, atol=1e-13 * scale)
    np.testing.assert_array_equal(got.min, values.min(axis=0))
    np.testing.assert_array_equal(got.max, values.max(axis=0))


cuts = st.lists(st.integers(0, 300), max_size=6)
dtypes = st.sampled_from(["bool", "int8", "uint8", "int16", "int32", "uint32", "float32", "float64"])


@settings(max_examples=150, deadline=None)
@given(st.data(), dtypes, st.integers(1, 200), cuts)
def test_any_values_in_any_batches(data: st.DataObject, dtype: str, num_steps: int, cuts: list[int]) -> None:
    numbers = {"allow_nan": False, "allow_infinity": False, "min_value": -1e6, "max_value": 1e6}
    kind: Any = arrays_of.from_dtype(np.dtype(dtype), **(numbers if "float" in dtype else {}))
    values = data.draw(arrays_of.arrays(dtype, (num_steps, 2), elements=kind))
    got = statistics_of(values, salus.Feature((2,), dtype), cuts)
    assert_as_numpy(got, values.astype(np.float64))
    assert got.num_nan.tolist() == [0, 0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 300), cuts, st.sampled_from([0.0, 1e9, -1e12]))
def test_a_huge_offset_costs_no_precision(seed: int, num_steps: int, cuts: list[int], offset: float) -> None:
    values = np.random.default_rng(seed).normal(size=(num_steps, 3)) + offset
    got = statistics_of(values, salus.Feature((3,), "float64"), cuts)
    assert_as_numpy(got, values)
    exact = (values - offset).std(axis=0)  # the subtraction is exact to the rounding of `values`
    np.testing.assert_allclose(got.std, exact, rtol=1e-6, atol=1e-15 * abs(offset))


def test_constants_have_no_spread() -> None:
    got = statistics_of(np.full((500, 2), 0.1, np.float32), salus.Feature((2,)), [100, 300])
    assert got.std.tolist() == [0.0, 0.0]
    assert got.quantile(0.3).tolist() == got.mean.tolist() == got.min.tolist() == [np.float32(0.1)] * 2


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 120), cuts)
def test_nan_and_infinity_are_left_out_and_counted(seed: int, num_steps: int, cuts: list[int]) -> None:
    random = np.random.default_rng(seed)
    values = random.normal(size=(num_steps, 2)).astype(np.float32)
    values[random.random(values.shape) < 0.3] = np.nan
    values[random.random(values.shape) < 0.2] = np.inf
    values[random.random(values.shape) < 0.2] = -np.inf
    got = statistics_of(values, salus.Feature((2,), allow_nan=True), cuts)
    assert got.num_nan.tolist() == np.isnan(values).sum(axis=0).tolist()
    assert got.num_infinite.tolist() == np.isinf(values).sum(axis=0).tolist()
    for component in range(2):
        kept = values[np.isfinite(values[:, component]), component].astype(np.float64)
        assert got.count[component] == len(kept)
        if len(kept):
            np.testing.assert_allclose(got.mean[component], kept.mean(), atol=1e-12)
            np.testing.assert_allclose(got.std[component], kept.std(), atol=1e-12)
            assert got.quantile([0, 1])[:, component].tolist() == [kept.min(), kept.max()]
        else:
            row = [got.mean, got.std, got.min, got.max, got.quantile(0.5)]
            assert np.isnan([numbers[component] for numbers in row]).all()


@pytest.mark.parametrize("value", [1e300, -1.7e308, 5e-324])
def test_numbers_at_the_ends_of_float64(value: float) -> None:
    values = np.array([[value], [-value], [value]])
    got = statistics_of(values, salus.Feature((1,), "float64"), [1])
    assert (got.min, got.max) == (-abs(value), abs(value))
    assert statistics_of(values[:1], salus.Feature((1,), "float64"), []).mean == value
    if value > 1:
        assert np.isnan(got.std)  # float64 cannot hold the sum of squares


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 150), min_size=2, max_size=6), st.randoms())
def test_merging_is_associative_and_commutative(seed: int, lengths: list[int], shuffled: Any) -> None:
    feature = salus.Feature((2,), "float64")
    values = np.random.default_rng(seed).normal(size=(sum(lengths), 2)) + 1e9
    parts = np.split(values, np.cumsum(lengths)[:-1])

    def merged(some: list[np.ndarray]) -> FeatureStatistics:
        total = FeatureStatistics(feature)
        for part in some:
            total.merge(statistics_of(part, feature, []))
        return total

    left, right = merged(parts[:1]), merged(parts[1:])
    left.merge(right)
    others = list(parts)
    shuffled.shuffle(others)
    for got in (merged(parts), left, merged(others)):
        if len(values):
            assert_as_numpy(got, values)


@pytest.mark.parametrize("offset", [0, 1e9])
@pytest.mark.parametrize("num_episodes", [1, 30])
def test_quantiles_are_within_the_stated_error(num_episodes: int, offset: float) -> None:
    feature = salus.Feature((1,), "float64")
    random = np.random.default_rng(num_episodes)
    total, parts = FeatureStatistics(feature), []
    for _ in range(num_episodes):
        parts.append(random.exponential(size=(700, 1)) + random.normal() + offset)
        total.merge(statistics_of(parts[-1], feature, [300]))
    values, shares = np.sort(np.concatenate(parts)[:, 0]), np.linspace(0, 1, 101)
    found = total.quantile(shares)[:, 0]
    below, up_to = (np.searchsorted(values, found, side) / len(values) for side in ("left", "right"))
    assert 0 < total.rank_error < 0.05
    error = np.maximum(np.maximum(below - shares, shares - up_to), 0)
    assert error.max() <= total.rank_error  # 99 % confidence each; in truth far below it
    assert found[[0, -1]].tolist() == values[[0, -1]].tolist()


def test_quantiles_of_few_values_are_exact() -> None:
    values = np.random.default_rng(0).normal(size=(RECORD_K, 1))
    got = statistics_of(values, salus.Feature((1,), "float64"), [9])
    assert got.rank_error == 0
    shares = np.linspace(0, 1, 33)
    expected = np.quantile(values, shares, axis=0, method="inverted_cdf")
    assert got.quantile(shares).tolist() == expected.tolist()
    assert got.quantile(0.25).shape == (1,)
    for wrong in (-0.1, 1.1, float("nan"), "x", [[0.5]], [0.5, 2], None):
        with pytest.raises(salus.InvalidInputError, match="quantile: got"):
            got.quantile(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["CHW", "HWC"])
def test_images_per_channel(layout: Any) -> None:
    feature = salus.Image(height=9, width=7, layout=layout)
    images = np.random.default_rng(0).integers(0, 256, (40, 9, 7, 3), dtype=np.uint8)
    got = statistics_of(images, feature, [11])  # channels-last is how both are stored
    assert (got.over, got.every, got.rank_error) == ("pixels", 1, 0.0)
    pixels = images.reshape(-1, 3).astype(np.float64)
    assert_as_numpy(got, pixels)
    shares = np.linspace(0, 1, 21)
    expected = np.quantile(pixels, shares, axis=0, method="inverted_cdf")
    assert got.quantile(shares).tolist() == expected.tolist()


def test_images_with_codecs_of_their_own_are_stored_as_they_are_seen() -> None:
    codec = [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 1}}]
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 9, 7), dtype=np.uint8)
    got = statistics_of(images, salus.Image(height=9, width=7, codec=codec), [])
    assert_as_numpy(got, images.transpose(0, 2, 3, 1).reshape(-1, 3).astype(np.float64))


def test_large_images_are_sampled_and_every_pixel_has_its_turn() -> None:
    feature = salus.Image(height=130, width=190, color="gray")
    every = 6
    images = np.zeros((every, 130, 190, 1), np.uint8)
    got = statistics_of(images, feature, [1])
    assert got.every == every
    assert got.count.tolist() == [130 * 190]
    for row, column in ((129, 189), (0, 0), (64, 3)):
        marked = images.copy()
        marked[:, row, column] = 200
        assert statistics_of(marked, feature, []).mean * 130 * 190 == pytest.approx(200)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_many_components_are_described_together(dtype: str) -> None:
    feature = salus.Feature((100, 90), dtype, nullable=False)
    values = np.random.default_rng(0).integers(0, 100, (4, 100, 90)).astype(dtype)
    got = statistics_of(values, feature, [1])
    assert (got.over, got.every, got.mean.shape) == ("values", 2, ())
    sampled = np.concatenate([values[step].ravel()[step % 2 :: 2] for step in range(4)]).astype(np.float64)
    assert_as_numpy(got, sampled)
    assert len(json.dumps(got.to_json())) < 3000


# --- in datasets -------------------------------------------------------------------------------------------------


def everything() -> tuple[salus.Schema, Arrays, np.ndarray]:
    """A schema with a feature of each kind, 100 steps of it, and which steps have the nullable ones."""
    schema = salus.Schema(
        {
            "image": salus.Image(height=12, width=10),
            "large": salus.Image(height=100, width=200, layout="HWC", nullable=True),
            "nan": salus.Feature((3,), allow_nan=True),
            "depth": salus.Feature((40, 50)),
            "flag": salus.Feature((), "bool"),
            "whole": salus.Feature((2,), "int64"),
            "text": salus.Text(),
            "maybe": salus.Feature((2,), nullable=True),
        },
        rate_hz=10,
        segment_steps=16,
    )
    random, steps = np.random.default_rng(0), 100
    arrays = {
        "image": random.integers(0, 256, (steps, 3, 12, 10), dtype=np.uint8),
        "large": random.integers(0, 256, (steps, 100, 200, 3), dtype=np.uint8),
        "nan": np.where(random.random((steps, 3)) < 0.1, np.nan, random.normal(size=(steps, 3))).astype(np.float32),
        "depth": random.normal(size=(steps, 40, 50)).astype(np.float32),
        "flag": random.random(steps) < 0.3,
        "whole": random.integers(-(10**12), 10**12, (steps, 2)),
        "text": np.array(["a"] * steps),
        "maybe": random.normal(size=(steps, 2)).astype(np.float32),
    }
    return schema, arrays, random.random(steps) < 0.5


def assert_same(one: FeatureStatistics, other: FeatureStatistics) -> None:
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def test_whole_arrays_step_by_step_and_reading_give_the_same_bits(path: Path) -> None:
    schema, arrays, valid = everything()
    with salus.Recorder(salus.create(path, schema)) as recorder:
        recorder.record_episode({**arrays, "large.valid": valid, "maybe.valid": ~valid})
        with recorder.episode() as episode:
            for step, values in enumerate(steps_of(arrays)):
                values["large"] = values["large"] if valid[step] else None
                values["maybe"] = None if valid[step] else values["maybe"]
                values["text"] = str(values["text"])
                episode.append(values)
    whole, by_step = salus.open(path)
    assert list(whole.statistics) == [name for name in schema.features if name != "text"]
    for name in whole.statistics:
        assert_same(whole.statistics[name], by_step.statistics[name])
        assert_same(whole.statistics[name], whole.read_statistics(name, recompute=True))
    assert_as_numpy(whole.statistics["maybe"], arrays["maybe"][~valid].astype(np.float64))
    assert whole.statistics["nan"].num_nan.tolist() == np.isnan(arrays["nan"]).sum(axis=0).tolist()
    assert whole.statistics["large"].count.sum() == 3 * valid.sum() * 5000
    assert whole.statistics["flag"].mean == pytest.approx(arrays["flag"].mean())


def test_a_dataset_merges_its_episodes(dataset: salus.Dataset, source: list[Arrays]) -> None:
    for view, parts in ((dataset, source), (dataset[1:3], source[1:3]), (salus.concat([dataset, dataset]), source * 2)):
        merged = view.statistics(["actions", "images"])
        assert list(merged) == ["actions", "images"]
        assert_as_numpy(merged["actions"], np.concatenate([part["actions"] for part in parts]).astype(np.float64))
        pixels = np.concatenate([part["images"].transpose(0, 2, 3, 1).reshape(-1, 3) for part in parts])
        assert_as_numpy(merged["images"], pixels.astype(np.float64))
    assert list(dataset.statistics()) == ["images", "states", "actions"]
    assert list(salus.concat([dataset]).statistics()) == ["images", "states", "actions"]
    assert np.isnan(dataset[:0].statistics(["actions"])["actions"].mean).all()


def test_what_has_no_statistics_is_named(dataset: salus.Dataset) -> None:
    with pytest.raises(salus.NotFoundError, match="did you mean 'actions'"):
        dataset.statistics(["action"])
    with pytest.raises(salus.NotFoundError, match="no statistics of 'labels'"):
        dataset.statistics(["labels"])
    with pytest.raises(salus.NotFoundError, match="has no statistics of 'timestamp_ns'"):
        dataset[0].statistics["timestamp_ns"]
    with pytest.raises(salus.InvalidInputError, match="expected several names"):
        dataset.statistics("actions")


def test_a_feature_that_came_later_is_left_out_unless_asked_for(path: Path, dataset: salus.Dataset) -> None:
    writer = salus.open(path, mode="a")
    writer.add_features({"force": salus.Feature((2,))})
    with salus.Recorder(writer) as recorder:
        recorder.record_episode({**make_arrays(5), "force": np.ones((5, 2))})
    writer.refresh()
    assert list(writer.statistics()) == ["images", "states", "actions"]
    assert writer[-1:].statistics()["force"].mean.tolist() == [1, 1]
    with pytest.raises(salus.NotFoundError, match="recorded before that was added"):
        writer.statistics(["force"])


def rewrite(path: Path, slot: int, change: Any) -> None:
    """The record of a slot with other statistics, sealed as if a recorder had written it so."""
    file = path / record_key(slot)
    document = json.loads(file.read_bytes())
    document["statistics"] = change(document["statistics"])
    if document["statistics"] is None:
        del document["statistics"]
    file.write_bytes(documents.seal(document))


def test_episodes_recorded_without_are_read(path: Path, dataset: salus.Dataset) -> None:
    before = dataset.statistics()
    for slot, change in ((1, lambda _: None), (2, lambda kept: {"states": kept["states"]})):
        rewrite(path, slot, change)
    after = salus.open(path).statistics()
    for name, statistics in before.items():
        assert_same(statistics, after[name])


def broken(kept: dict[str, Any]) -> dict[str, Any]:
    """Ways in which the statistics of `actions` cannot be those of such a feature."""
    actions = kept["actions"]
    sketch = bytearray(base64.b64decode(actions["kll"][0]))
    sketch[8:16] = struct.pack("<Q", 10**6)
    picture = kept["images"]
    return {
        "no object": {**kept, "actions": [1]},
        "no map": [1],
        "short": {**kept, "actions": {**actions, "mean": [0.0]}},
        "text": {**kept, "actions": {**actions, "mean": ["0", 0, 0]}},
        "too large": {**kept, "actions": {**actions, "mean": [10**400, 0, 0]}},
        "no mean": {**kept, "actions": {key: value for key, value in actions.items() if key != "mean"}},
        "bool": {**kept, "actions": {**actions, "count": [True] * 3}},
        "below 0": {**kept, "actions": {**actions, "m2": [-1.0, 0, 0]}},
        "other way": {**kept, "actions": {**actions, "min": actions["max"], "max": actions["min"]}},
        "null": {**kept, "actions": {**actions, "min": [None] * 3}},
        "another count": {**kept, "actions": {**actions, "count": [7] * 3}},
        "over": {**kept, "actions": {**actions, "over": "pixels"}},
        "every": {**kept, "actions": {**actions, "every": 0}},
        "no sketch": {**kept, "actions": {key: value for key, value in actions.items() if key != "kll"}},
        "two sketches": {**kept, "actions": {**actions, "kll": actions["kll"][:2]}},
        "no base64": {**kept, "actions": {**actions, "kll": ["é"] * 3}},
        "sketch": {**kept, "actions": {**actions, "kll": [base64.b64encode(sketch).decode(), *actions["kll"][1:]]}},
        "image": {**kept, "actions": {**actions, "kll": picture["histogram"]}},
    }


def test_statistics_that_do_not_hold_cost_nothing_else(path: Path, dataset: salus.Dataset) -> None:
    body = (path / record_key(1)).read_bytes()
    for change in broken(json.loads(body)["statistics"]).values():
        rewrite(path, 1, lambda _, change=change: change)
        opened = salus.open(path)
        with pytest.raises(salus.CorruptDataError, match=r"statistics.*0000000001"):
            opened[1].statistics["actions"]
        with pytest.raises(salus.CorruptDataError):
            opened.statistics()
        np.testing.assert_array_equal(opened[1]["actions"][:], dataset[1]["actions"][:])
        assert opened[1].metadata == {"task": "task 1", "n": 1}
        recomputed = opened.statistics(["actions"], recompute=True)["actions"]
        (path / record_key(1)).write_bytes(body)
        assert_same(recomputed, dataset.statistics(["actions"])["actions"])


@pytest.mark.parametrize("histogram", ["", "AAAA", 5, None])
def test_histograms_that_do_not_hold(path: Path, dataset: salus.Dataset, histogram: Any) -> None:
    rewrite(path, 0, lambda kept: {**kept, "images": {**kept["images"], "histogram": histogram}})
    with pytest.raises(salus.CorruptDataError, match="statistics of 'images' do not hold"):
        salus.open(path)[0].statistics["images"]


FUZZ = """
import sys, numpy as np, datasketches
from salus.sketches import check_kll
random = np.random.default_rng(0)
for kind, dtype in ((datasketches.kll_floats_sketch, "float32"), (datasketches.kll_doubles_sketch, "float64")):
    for count in (0, 1, 2, 64, 65, 300, 5000):
        sketch = kind(64)
        if count:
            sketch.update(random.normal(size=count).round(1).astype(dtype))
        body = sketch.serialize()
        check_kll(body, np.dtype(dtype))
        for _ in range(1000):
            bad = bytearray(body)
            for _ in range(random.integers(1, 4)):
                bad[random.integers(min(len(bad), 60))] = random.integers(256)
            bad = bytes(bad[: random.integers(len(bad) + 1)]) if random.random() < 0.1 else bytes(bad)
            try:
                check_kll(bad, np.dtype(dtype))
            except ValueError:
                continue
            merged = kind(1024)
            merged.merge(kind.deserialize(bad))
            if not merged.is_empty():
                merged.get_quantiles([0.1, 0.9])
print("alive")
"""


def test_no_bytes_of_a_sketch_crash_the_process() -> None:
    """Without the check DataSketches does: it trusts the levels that it is given."""
    done = subprocess.run([sys.executable, "-c", FUZZ], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "alive\n", (done.returncode, done.stderr)


@pytest.mark.parametrize("count", [*range(12), 63, 64, 65, 66, 97, 128, 500, 4096, 10**5, 10**6])
def test_every_sketch_that_is_written_passes_the_check(count: int) -> None:
    schema = salus.Schema({"x": salus.Feature((), "float64")}, rate_hz=1)
    made = EpisodeStatistics(schema)
    for batch in np.array_split(np.random.default_rng(0).normal(size=count), 3):
        made.add({"x": batch})
    (text,) = made.to_json()["x"]["kll"]
    check_kll(base64.b64decode(text), np.dtype(np.float64))


def test_a_record_stays_small(path: Path) -> None:
    """42 floats and two cameras, 200 steps: tens of kB beside some MB."""
    schema = salus.Schema(
        {"a": salus.Image(height=64, width=64), "b": salus.Image(height=64, width=64), "x": salus.Feature((42,))},
        rate_hz=30,
    )
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (200, 3, 64, 64), dtype=np.uint8)
    with salus.Recorder(salus.create(path, schema)) as recorder:
        recorder.record_episode({"a": images, "b": images, "x": random.normal(size=(200, 42))})
    assert (path / record_key(0)).stat().st_size < 50_000


def test_a_discarded_episode_has_none(path: Path, schema: salus.Schema) -> None:
    with salus.Recorder(salus.create(path, schema)) as recorder:
        episode = recorder.start()
        episode.append(next(steps_of(make_arrays(1))))
        episode.discard()
    assert "statistics" not in json.loads((path / record_key(0)).read_bytes())
