"""`salus bench`: everybody gives back what they were given, who does not is caught; the arithmetic of the report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus

pytest.importorskip("torch", reason="the extra 'torch' is not installed")

from salus.bench import run as bench
from salus.bench.contestants import ALL, Contestant
from salus.bench.contestants.hdf5 import Hdf5Plain
from salus.bench.contestants.ours import DecodingAlone, DecodingTogether, Salus
from salus.bench.contestants.zarr_python import Zarrs, ZarrSharded
from salus.bench.many import measure_many
from salus.bench.page import page
from salus.bench.report import DEMANDS, chart, demands, markdown, method, number
from salus.bench.source import Source, of_dataset

LENGTHS = (21, 30)


def track(items: Any, title: str, total: int) -> Any:
    assert title
    assert total >= 0
    return items


@pytest.fixture
def tiny() -> Source:
    """Two short episodes of two cameras, one gray and smaller; names with a dot, as nested observations have."""
    rng = np.random.default_rng(0)
    episodes = [
        {
            "images.front": rng.integers(0, 256, (steps, 10, 12, 3), dtype=np.uint8),
            "images.hand": rng.integers(0, 256, (steps, 8, 6, 1), dtype=np.uint8),
            "states": rng.normal(size=(steps, 5)).astype(np.float32),
            "actions": rng.normal(size=(steps, 7)).astype(np.float32),
        }
        for steps in LENGTHS
    ]
    cameras = ("images.front", "images.hand")
    return Source.of(episodes, description="noise", cameras=cameras, actions="actions", rate_hz=25)


def filmed(source: Source) -> Source:
    """The same with smooth RGB images of 64 × 64, which a video encoder takes, and keeps within the error allowed."""
    ramp = np.add.outer(np.arange(64), np.arange(64)) + np.zeros((3, 1, 1), int)
    episodes = []
    for arrays in source.episodes:
        frames = (ramp.transpose(1, 2, 0) + np.arange(len(arrays["actions"])).reshape(-1, 1, 1, 1)).astype(np.uint8)
        episodes.append({**arrays, **dict.fromkeys(source.cameras, frames)})
    return Source.of(episodes, description="ramps", cameras=source.cameras, actions="actions", rate_hz=source.rate_hz)


def written(kind: type[Contestant], source: Source, folder: Path) -> Contestant:
    """A contestant that is open, with everything written that it reads."""
    missing = kind.missing()
    if missing:
        pytest.skip(missing)
    owner = next((other for other in ALL if other.name == kind.reads_files_of), kind)
    writer = owner(folder, source, 2)
    writer.write(folder, writer.source)
    if writer.name.startswith("lerobot"):
        writer.close()
    contestant = kind(folder, source, 2)
    contestant.open()
    return contestant


def measure(source: Source, kinds: list[type[Contestant]], folder: Path, rounds: int = 1) -> bench.Results:
    return bench.run(source, kinds, folder, rounds=rounds, threads=2, budget_s=0.01, track=track)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its files open
@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_a_contestant_gives_back_what_it_was_given(kind: type[Contestant], tiny: Source, tmp_path: Path) -> None:
    if kind.name.startswith("lerobot") and not kind.missing():
        tiny = filmed(tiny)
    contestant = written(kind, tiny, tmp_path)
    try:
        bench.check(contestant)
        contestant.time_samples(2, np.random.default_rng(0))
    finally:
        contestant.close()


class _Changed(Hdf5Plain):
    """Reads other values than it was given, by as much as `error` says."""

    error = 1

    def frames(self, pairs: np.ndarray) -> np.ndarray:
        return np.clip(super().frames(pairs).astype(int) + self.error, 0, 255).astype(np.uint8)


class _Late(Hdf5Plain):
    """Its windows begin a step late."""

    def samples(self, pairs: np.ndarray) -> dict[str, np.ndarray]:
        batch = super().samples(pairs)
        return {**batch, "actions": np.roll(batch["actions"], 1, axis=1)}


class _Short(Hdf5Plain):
    """Leaves out the last step of an episode."""

    def episode(self, number: int) -> dict[str, np.ndarray]:
        return {name: values[:-1] for name, values in super().episode(number).items()}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (_Changed, "other values of 'images.front'"),
        (_Late, "other values of 'actions'"),
        (_Short, r"\(20, 10, 12, 3\), expected \(21, 10, 12, 3\)"),
    ],
)
def test_wrong_values_are_caught(kind: type[Contestant], message: str, tiny: Source, tmp_path: Path) -> None:
    contestant = written(kind, tiny, tmp_path)
    with pytest.raises(salus.CorruptDataError, match=message):
        bench.check(contestant)
    contestant.close()


@pytest.mark.parametrize(("error", "same"), [(4, True), (40, False)])
def test_of_lossy_images_the_error_is_bounded(error: int, same: bool, tiny: Source, tmp_path: Path) -> None:
    kind = type("_Lossy", (_Changed,), {"error": error, "lossless": False})
    contestant = written(kind, tiny, tmp_path)
    if same:
        bench.check(contestant)
    else:
        with pytest.raises(salus.CorruptDataError, match="dB, not the same images"):
            bench.check(contestant)
    contestant.close()


@pytest.fixture
def no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the work that starts worker processes, which takes seconds."""
    monkeypatch.delitem(bench.UNITS, "DataLoader")


def test_a_run_measures_every_work_in_every_round(tiny: Source, tmp_path: Path, no_workers: None) -> None:
    results = measure(tiny, [Salus, DecodingAlone, DecodingTogether, Hdf5Plain], tmp_path, rounds=2)
    works = set(bench.UNITS)
    assert {work for work, name in results.rates if name == "salus"} == works
    assert {work for work, name in results.rates if name == "hdf5"} == works
    assert {work for work, name in results.rates if name.startswith("decoding")} == {"samples"}
    assert {len(rates) for rates in results.rates.values()} == {2}
    assert all(rate > 0 for rates in results.rates.values() for rate in rates)
    assert results.sizes["hdf5"]["files"] == 2
    files = [file for file in (tmp_path / "salus").rglob("*") if file.is_file()]
    assert results.sizes["salus"]["files"] == len(files)
    assert results.sizes["salus"]["bytes"] == sum(file.stat().st_size for file in files)
    assert results.sizes["decoding"]["bytes"] is None
    assert not list(tmp_path.glob("*-recording"))


def test_who_reads_the_files_of_another_may_come_first(tiny: Source, tmp_path: Path, no_workers: None) -> None:
    assert "zarr" in {kind.name for kind in bench.chosen(["zarrs"])}
    if Zarrs.missing():
        pytest.skip(str(Zarrs.missing()))
    assert measure(tiny, [Zarrs, ZarrSharded], tmp_path).rate("samples", "zarrs")


class _BreaksLater(Hdf5Plain):
    name = "breaks-later"

    def time_episode(self, number: int) -> float:
        raise OSError("a bug of theirs")


class _BreaksAtOnce(Hdf5Plain):
    name, title = "breaks", "breaks at once"

    def write(self, folder: Path, source: Source) -> None:
        raise TypeError("cannot write this\nand a page of what else it knows")


def test_one_that_breaks_costs_nobody_else_anything(tiny: Source, tmp_path: Path, no_workers: None) -> None:
    results = measure(tiny, [Hdf5Plain, _BreaksLater, _BreaksAtOnce], tmp_path)
    assert results.notes["one episode", "breaks-later"] == "failed: OSError: a bug of theirs"
    assert results.rate("all", "hdf5")
    assert results.absent == {"breaks at once": "failed: TypeError: cannot write this"}
    assert "cannot write this" in method(results)


def test_a_missing_library_is_said(tiny: Source, tmp_path: Path, no_workers: None) -> None:
    kind = type("_Missing", (Hdf5Plain,), {"needs": ("no_such_library",), "name": "m", "title": "M"})
    assert measure(tiny, [kind], tmp_path).absent == {"M": "not installed: no_such_library"}


# --- the report ------------------------------------------------------------------------------------------------


@pytest.fixture
def results() -> bench.Results:
    """Three rounds, the second on a machine that was twice as slow."""
    about = {"date": "d", "source": "s", "steps": 1, "raw_bytes": 10, "rounds": 3, "threads": 2, "budget_s": 1}
    made = bench.Results({**about, "machine": "m", "versions": {"zarr": "3"}})
    made.titles = {"salus": "SALUS", "tensorstore": "TensorStore", "hdf5": "HDF5"}
    made.rates = {
        ("samples", "salus"): [300.0, 100.0, 240.0],
        ("samples", "tensorstore"): [100.0, 50.0, 120.0],
        ("all", "salus"): [50.0, 25.0, 50.0],
        ("all", "hdf5"): [100.0, 50.0, 100.0],
    }
    made.notes = {("samples", "hdf5"): "too slow"}
    made.sizes = {"salus": {"bytes": 5.0, "files": 3.0, "times_smaller": 2.0, "memory_bytes": None}}
    return made


def test_rates_are_medians_and_ratios_are_taken_within_a_round(results: bench.Results) -> None:
    assert results.rate("samples", "salus") == 240
    assert results.ratio("samples", "salus", "tensorstore") == 2  # of 3, 2, 2; of the medians it would be 2.4
    assert results.ratio("samples", "salus", "hdf5") is None
    measured = {(demand.work, demand.against): ratio for demand, ratio in demands(results)}
    assert len(measured) == len(DEMANDS)
    assert measured["samples", "tensorstore"] == 2
    assert measured["all", "hdf5"] == 0.5
    assert measured["record", "hdf5-gzip"] is None


def test_the_tables_show_lost_rows_too(results: bench.Results) -> None:
    text = markdown(results)
    assert "| TensorStore | 100 | 2 × |" in text
    assert "| HDF5 | 100 | 0.5 × |" in text
    assert "| HDF5 | too slow |  |" in text
    assert "| SALUS | 5e-06 | 2 × | 3 |  |" in text


def test_the_page_says_what_holds_and_what_does_not(results: bench.Results) -> None:
    results.rates["samples", "decoding"] = [1000.0] * 3
    text = page(results, [], chart="images/performance.svg")
    assert "training samples against TensorStore on the same files | 1.5 × | 2.00 × | holds |" in text
    assert "decoding alone, image by image | 0.9 × | 0.24 × | **does not hold** |" in text
    assert "recording against h5py gzip | 2 × |  | not measured |" in text
    assert "(images/performance.svg)" in text


def test_many_episodes_are_really_written(tiny: Source, results: bench.Results, tmp_path: Path) -> None:
    rows = measure_many(tiny, tmp_path, num_episodes=5, threads=2, track=track)
    assert [row.title for row in rows][:1] == ["SALUS"]
    raw = (3 * LENGTHS[0] + 2 * LENGTHS[1]) * (10 * 12 * 3 + 8 * 6 + 4 * 5 + 4 * 7)
    assert {(row.num_episodes, row.raw_bytes) for row in rows} == {(5, raw)}
    assert all(min(row.write_s, row.one_s, row.all_s, row.images_per_s, row.stored_bytes) > 0 for row in rows)
    assert {row.files for row in rows if row.title.startswith("HDF5")} <= {5}
    assert not list(tmp_path.iterdir())
    assert "| write 5 episodes |" in page(results, rows)


def test_json_holds_every_round(results: bench.Results) -> None:
    document = json.loads(json.dumps(results.to_json()))
    assert {"date", "machine", "versions", "rounds", "works", "notes", "sizes", "absent"} <= set(document)
    first = {"work": "samples", "contestant": "salus", "unit": "samples/s", "median": 240, "rounds": [300, 100, 240]}
    assert document["works"][0] == first
    assert document["notes"] == [{"work": "samples", "contestant": "hdf5", "note": "too slow"}]


def test_a_chart_is_drawn(results: bench.Results, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'picture' is not installed")
    for ending, start in (("svg", b"<?xml"), ("png", b"\x89PNG")):
        chart(results, tmp_path / f"chart.{ending}")
        assert (tmp_path / f"chart.{ending}").read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.9312, "0.93"), (15.26, "15"), (99.96, "100"), (123.4, "123"), (12345.0, "12,300")],
)
def test_figures_have_as_many_digits_as_mean_something(value: float | None, text: str) -> None:
    assert number(value) == text


# --- the source and the command --------------------------------------------------------------------------------


def test_a_dataset_of_the_user_is_the_source(dataset: salus.Dataset, source: list[dict[str, np.ndarray]]) -> None:
    taken = of_dataset(dataset, 2)
    assert (taken.cameras, taken.actions, taken.lengths.tolist()) == (("images",), "actions", [20, 5])
    np.testing.assert_array_equal(taken.episodes[1]["images"], source[1]["images"].transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(taken.episodes[1]["actions"], source[1]["actions"])


def test_windows_are_held_at_the_end_of_the_episode(tiny: Source) -> None:
    window = tiny.window(np.array([[0, 18], [1, 3]]))
    assert window[0].tolist() == [18, 19, *[20] * 14]
    assert window[1].tolist() == list(range(3, 19))
    pairs = tiny.random_pairs(5000, np.random.default_rng(0))
    assert {tuple(pair) for pair in pairs.tolist()} == {(e, s) for e, n in enumerate(LENGTHS) for s in range(n)}


def test_files_are_forgotten_but_not_changed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    bench.evict(tmp_path)
    assert (tmp_path / "file").read_bytes() == b"abc"


def test_a_part_of_the_source(tiny: Source) -> None:
    part = tiny.first(1, 4)
    assert part.lengths.tolist() == [4]
    assert [arrays["actions"].shape for arrays in part.episodes] == [(4, 7)]
    assert part.raw_bytes == 4 * (10 * 12 * 3 + 8 * 6 + 4 * 5 + 4 * 7)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "salus.cli", "bench", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=200)


def test_the_command_measures_a_dataset(dataset: salus.Dataset, path: Path, tmp_path: Path) -> None:
    options = ("--rounds", 1, "--seconds", 0.01, "--work", tmp_path / "work", "--only", "hdf5", "--json")
    done = command(path, *options, "--chart", tmp_path / "c.svg", "--page", tmp_path / "page.md")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {row["contestant"] for row in document["works"]} == {"salus", "hdf5"}
    assert "DataLoader" in {row["work"] for row in document["works"]}
    assert all(row["median"] > 0 for row in document["works"])
    assert "HDF5 per episode" in (tmp_path / "page.md").read_text(encoding="utf-8")
    assert (tmp_path / "c.svg").exists()


def test_an_unknown_contestant_lists_the_known_ones() -> None:
    done = command("--only", "hdf")
    assert done.returncode == salus.InvalidInputError.exit_status
    assert "no contestant 'hdf'; did you mean 'hdf5'?" in done.stderr.replace("\n", " ")
    assert all(kind.name in done.stderr for kind in ALL)


def test_a_dataset_without_images_is_refused(path: Path) -> None:
    schema = salus.Schema({"states": salus.Feature((2,))}, rate_hz=10)
    with salus.Recorder(salus.create(path, schema)) as recorder:
        recorder.record_episode({"states": np.zeros((3, 2), np.float32)})
    done = command(path)
    assert done.returncode == salus.InvalidInputError.exit_status
    assert "0 image features" in done.stderr


def test_the_help_names_every_contestant() -> None:
    shown = " ".join(command("bench", "--help").stdout.split())
    for kind in ALL:
        assert kind.name == "salus" or kind.name in shown, kind.name
