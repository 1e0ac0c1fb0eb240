"""`salus bench`: a tiny run of the contestants that are here, and the arithmetic of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra 'torch' is not installed")
for module in ("h5py", "lance", "tensorstore", "webdataset", "zarrs"):
    pytest.importorskip(module, reason="the extra 'bench' is not installed")

import salus  # noqa: E402
from salus.bench import run as running  # noqa: E402 - after the checks of what is there
from salus.bench.contestants import ALL  # noqa: E402
from salus.bench.contestants.hdf5 import Hdf5Plain  # noqa: E402
from salus.bench.report import chart, demands, markdown, method, number, rows  # noqa: E402
from salus.bench.run import Results, check, chosen, evict, run  # noqa: E402
from salus.bench.source import Source, of_dataset  # noqa: E402
from salus.errors import CorruptDataError, InvalidInputError  # noqa: E402

from .test_cli import run as run_cli  # noqa: E402


def no_bar(items: Any, title: str, total: int) -> Any:
    del title, total
    return items


@pytest.fixture
def noise() -> Source:
    random = np.random.default_rng(0)
    episodes = [
        {
            "front": random.integers(0, 9, (steps, 32, 24, 3), dtype=np.uint8),
            "wrist": random.integers(0, 9, (steps, 16, 16, 1), dtype=np.uint8),
            "states": random.normal(size=(steps, 3)).astype(np.float32),
            "actions": random.normal(size=(steps, 2)).astype(np.float32),
        }
        for steps in (30, 7, 45)
    ]
    return Source.of(episodes, description="noise", cameras=("front", "wrist"), actions="actions", rate_hz=10)


@pytest.mark.filterwarnings("default::ResourceWarning")  # WebDataset leaves its files to the garbage collector
@pytest.mark.filterwarnings("default::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", [kind for kind in ALL if not kind.name.startswith("lerobot")], ids=lambda k: k.name)
def test_every_contestant_gives_back_what_it_was_given(noise: Source, tmp_path: Path, kind: type[Any]) -> None:
    kinds = [other for other in ALL if other.name in (kind.name, kind.reads_files_of)]
    there, _ = running._prepared(kinds, noise, tmp_path, 2, Results({}), no_bar)
    contestant = next(one for one in there if one.name == kind.name)
    check(contestant, noise)
    assert contestant.time_samples(2, np.random.default_rng(0)) > 0
    for one in there:
        one.close()


def test_lerobot_gives_back_what_it_was_given(noise: Source, tmp_path: Path) -> None:
    kinds = [kind for kind in ALL if kind.name.startswith("lerobot")]
    if kinds[0].missing():
        pytest.skip(str(kinds[0].missing()))  # 1.9 GB: not for CI; `make bench` has it
    running._prepared(kinds, noise.first(1), tmp_path, 2, Results({}), no_bar)


def test_a_contestant_that_changes_a_value_is_found(noise: Source, tmp_path: Path) -> None:
    class Careless(Hdf5Plain):
        name, title = "careless", "Careless"

        def frames(self, pairs: np.ndarray) -> np.ndarray:
            images = super().frames(pairs)
            images[3, 5, 5, 1] ^= 1
            return images

    with pytest.raises(CorruptDataError, match="Careless gives other values of 'front' than it was given"):
        running._prepared([Careless], noise, tmp_path, 1, Results({}), no_bar)


def test_a_tiny_run_measures_everything(noise: Source, tmp_path: Path) -> None:
    kinds = chosen(["hdf5-gzip", "decoding"])
    assert [kind.name for kind in kinds] == ["salus", "decoding", "hdf5-gzip"]
    results = run(noise, kinds, tmp_path, rounds=2, threads=2, budget_s=0.01, track=no_bar)
    assert {work for work, name in results.rates if name == "salus"} == set(running.UNITS)
    assert {work for work, name in results.rates if name == "decoding"} == {"samples"}
    assert all(rate > 0 for rates in results.rates.values() for rate in rates)
    assert results.sizes["hdf5-gzip"]["files"] == 3
    assert results.sizes["salus"]["bytes"] == sum(
        file.stat().st_size for file in (tmp_path / "salus").rglob("*") if file.is_file()
    )
    document = json.loads(json.dumps(results.to_json()))
    assert len(document["works"]) == len(results.rates)
    page = markdown(results)
    assert "| HDF5 per episode, gzip |" in page
    assert "82 steps" in method(results)
    chart(results, tmp_path / "chart.svg")
    assert "SALUS" in (tmp_path / "chart.svg").read_text(encoding="utf-8") or (tmp_path / "chart.svg").stat().st_size


def test_medians_and_ratios_are_those_of_rounds() -> None:
    results = Results({}, titles={"salus": "SALUS", "zarr": "Zarr"})
    results.rates = {("samples", "salus"): [10.0, 40.0, 30.0], ("samples", "zarr"): [1.0, 2.0, 10.0]}
    assert results.rate("samples", "salus") == 30
    assert results.ratio("samples", "salus", "zarr") == 10  # of 10, 20 and 3; not 30 / 2
    assert results.ratio("samples", "salus", "hdf5") is None
    assert [(d.against, ratio) for d, ratio in demands(results) if ratio] == [("zarr", 10)]
    ((_, unit, lines),) = rows(results)
    assert (unit, lines[1]) == ("samples/s", ("Zarr", 2.0, 10.0, ""))


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (12345.6, "12,300"), (99.96, "1e+02"), (3.14159, "3.1"), (0.734, "0.73")]
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert number(value) == text


def test_windows_are_held_and_pairs_are_of_all_steps(noise: Source) -> None:
    assert noise.window(np.array([[1, 5]]))[0].tolist() == [5, *[6] * 15]
    pairs = noise.random_pairs(4000, np.random.default_rng(0))
    assert (pairs[:, 1] < noise.lengths[pairs[:, 0]]).all()
    shares = np.bincount(pairs[:, 0]) / 4000
    np.testing.assert_allclose(shares, noise.lengths / noise.lengths.sum(), atol=0.03)


def test_the_users_own_dataset(dataset: salus.Dataset, tmp_path: Path) -> None:
    source = of_dataset(dataset, 3)
    assert (source.cameras, source.actions, source.lengths.tolist()) == (("images",), "actions", [20, 5, 16])
    np.testing.assert_array_equal(source.episodes[0]["images"][4].transpose(2, 0, 1), dataset[0]["images"][4])
    schema = salus.Schema({"x": salus.Feature((2,))}, rate_hz=1)
    with pytest.raises(InvalidInputError, match="0 image features and 1 others"):
        of_dataset(salus.create(tmp_path / "other.zarr", schema), 3)


def test_files_are_forgotten_but_not_changed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    evict(tmp_path)
    assert (tmp_path / "file").read_bytes() == b"abc"


def test_the_command(dataset: salus.Dataset, tmp_path: Path) -> None:
    options = ["--episodes", "3", "--rounds", "1", "--seconds", "0.01", "--work", str(tmp_path / "work"), "--json"]
    done = run_cli("bench", dataset.url, *options, "--only", "hdf5")
    assert {work["contestant"] for work in json.loads(done.stdout)["works"]} == {"salus", "hdf5"}
    wrong = run_cli("bench", dataset.url, *options, "--only", "hdf", status=2)
    assert "no contestant 'hdf'; did you mean 'hdf5'?" in wrong.stderr
