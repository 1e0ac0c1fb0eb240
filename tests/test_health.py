"""`salus.health.check`: finds what was planted, one defect at a time, and nothing in episodes that are fine."""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus
from salus import health
from salus.errors import InvalidInputError
from salus.health.duplicates import near_pairs, signature
from salus.health.lags import REACH, correlations

from .planting import DEFECTS, Take, write
from .robots import SCHEMA, healthy
from .test_cli import run
from .test_recorder_queue import Gate

NUM_EPISODES = 10


def alarms(report: health.HealthReport) -> list[tuple[str, str | None, int | None]]:
    """What is worse than a note."""
    return [(each.rule, each.feature, each.episode) for each in report if each.severity != "info"]


@pytest.fixture(scope="module")
def takes() -> list[Take]:
    return [healthy(number) for number in range(NUM_EPISODES)]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, takes: list[Take]) -> salus.Dataset:
    return write(tmp_path_factory.mktemp("clean") / "data.zarr", SCHEMA, takes)


@pytest.fixture
def own_rules() -> Iterator[None]:
    """Takes away the rules that a test adds."""
    before = set(health.rules())
    yield
    for name in set(health.rules()) - before:
        health.forget(name)


# --- the rules --------------------------------------------------------------------------------------------------


def test_nothing_is_said_against_episodes_that_are_fine(clean: salus.Dataset) -> None:
    report = health.check(clean)
    assert alarms(report) == []
    assert (report.num_episodes, report.num_steps, report.num_images) == (10, clean.num_steps, clean.num_steps)


@pytest.mark.parametrize("rule", DEFECTS)
def test_a_planted_defect_is_found_where_it_is_and_nowhere_else(rule: str, takes: list[Take], tmp_path: Path) -> None:
    planted = copy.deepcopy(takes)
    DEFECTS[rule](planted[4])
    report = health.check(write(tmp_path / "data.zarr", SCHEMA, planted))
    assert (rule, 4) in {(name, episode) for name, _, episode in alarms(report)}
    assert {episode for _, _, episode in alarms(report)} == {4}


def _stuck(take: Take) -> None:
    take.arrays["signals"][20:60, 0] = take.arrays["signals"][20, 0]


def _blown_out(take: Take) -> None:
    take.arrays["images"][:30] = 255


def _repeated(take: Take) -> None:
    images = take.arrays["images"]
    images[1::2] = images[0::2][: len(images[1::2])]


def _without_step(take: Take) -> None:
    take.outcome = salus.Outcome("failure", "drop")
    take.arrays["stored_labels"][:] = np.nan


@pytest.mark.parametrize(
    ("rule", "plant"),
    [
        ("stuck_component", _stuck),
        ("blown_out_images", _blown_out),
        ("repeated_images", _repeated),
        ("failure_details", _without_step),
    ],
)
def test_other_defects_of_an_episode_are_found(
    rule: str, plant: Callable[[Take], None], takes: list[Take], tmp_path: Path
) -> None:
    planted = copy.deepcopy(takes)
    plant(planted[5])
    found = {(name, episode) for name, _, episode in alarms(health.check(write(tmp_path / "x.zarr", SCHEMA, planted)))}
    assert found == {(rule, 5)}


def test_outcomes_without_failures_or_with_few_are_said(takes: list[Take], tmp_path: Path) -> None:
    short = [Take({n: a[:12] for n, a in take.arrays.items()}, take.stamps[:12], take.outcome) for take in takes * 3]
    for take in short:
        take.outcome = salus.Outcome("success")
        take.arrays["stored_labels"] = np.zeros((12, 2, 2), np.float32)
    rules = {"duplicate": False}
    report = health.check(write(tmp_path / "none.zarr", SCHEMA, short), rules=rules)
    assert {(rule, feature) for rule, feature, _ in alarms(report)} == {
        ("no_failures", None),
        ("zero_labels", "stored_labels"),
    }
    short[0].outcome = salus.Outcome("failure", "drop", 6)
    short[0].with_labels(SCHEMA)
    report = health.check(write(tmp_path / "one.zarr", SCHEMA, short), rules=rules)
    assert alarms(report) == [("class_balance", None, None)]
    assert [each.message for each in report if each.rule == "missing_kind"] == ["no episode failed with miss"]


def test_the_shift_of_actions_is_estimated(takes: list[Take], tmp_path: Path) -> None:
    for steps in (-3, 2, 5):
        planted = copy.deepcopy(takes)
        actions = planted[2].arrays["actions"]
        planted[2].arrays["actions"] = np.roll(actions, steps, axis=0)
        report = health.check(write(tmp_path / f"{steps}.zarr", SCHEMA, planted))
        (found,) = [finding for finding in report if finding.rule == "action_shift"]
        assert (found.episode, found.measured) == (2, -steps)


def test_a_dataset_whose_states_move_before_the_actions_is_warned_about(takes: list[Take], tmp_path: Path) -> None:
    late = copy.deepcopy(takes)
    for take in late:
        take.arrays["actions"] = np.roll(take.arrays["actions"], 4, axis=0)
    report = health.check(write(tmp_path / "data.zarr", SCHEMA, late))
    found = {each.component: each for each in report if each.rule == "action_lag" and each.severity == "warning"}
    assert {found[axis].measured for axis in "xyz"} == {-3.0}  # the state follows one step later, and four are lost


def test_actions_of_another_robot_have_no_effect(takes: list[Take], tmp_path: Path) -> None:
    mixed = copy.deepcopy(takes)
    rng = np.random.default_rng(0)
    for take in mixed:
        take.arrays["actions"][:, 1] = rng.normal(size=len(take.stamps))
    report = health.check(write(tmp_path / "data.zarr", SCHEMA, mixed))
    assert [(each.rule, each.component) for each in report if each.severity != "info"] == [
        ("action_without_effect", "y")
    ]


def test_a_duplicate_across_a_split_is_leakage(takes: list[Take], tmp_path: Path) -> None:
    doubled = [*takes, copy.deepcopy(takes[3])]
    doubled[-1].arrays["states"] = doubled[-1].arrays["states"] + np.float32(1e-5)
    dataset = write(tmp_path / "data.zarr", SCHEMA, doubled)
    assert alarms(health.check(dataset)) == [("duplicate", None, NUM_EPISODES)]
    report = health.check(dataset, splits={"train": dataset[:-1], "val": dataset[-1:]})
    assert alarms(report) == [("leakage", None, NUM_EPISODES), ("duplicate", None, NUM_EPISODES)]
    shared = health.check(dataset[:5], splits={"train": dataset[:3], "val": dataset[2:5]})
    assert alarms(shared) == [("leakage", None, 2)]
    assert alarms(health.check(dataset[:5], splits={"train": dataset[:3], "val": dataset[3:5]})) == []


@pytest.mark.parametrize("steps", [4, 900])
def test_a_length_outlier_is_found(steps: int, takes: list[Take], tmp_path: Path) -> None:
    long = copy.deepcopy(takes)
    repeats = -(-steps // len(long[6].stamps))
    labels = long[6].arrays.pop("stored_labels")
    rng = np.random.default_rng(0)
    long[6].arrays = {name: np.concatenate([a] * repeats)[:steps] for name, a in long[6].arrays.items()}
    long[6].arrays["signals"] = rng.normal(size=(steps, 4)).astype(np.float32)
    long[6].arrays["stored_labels"] = np.full((steps, *labels.shape[1:]), np.nan, np.float32)
    long[6].stamps = np.arange(steps) * 40_000_000
    long[6].outcome = salus.Outcome("success")
    report = health.check(write(tmp_path / "data.zarr", SCHEMA, long))
    assert ("length_outlier", None, 6) in alarms(report)


def test_the_defects_of_the_original_dataset_are_found(takes: list[Take], tmp_path: Path) -> None:
    """Three quarters of the signals NaN, labels all zero though episodes failed, lengths guessed by padding."""
    original = copy.deepcopy(takes)
    rng = np.random.default_rng(0)
    longest = max(len(take.stamps) for take in original)
    for take in original:
        take.arrays["signals"][rng.random(take.arrays["signals"].shape) < 0.75] = np.nan
        more = longest - len(take.stamps)
        take.arrays = {name: np.pad(a, [(0, more)] + [(0, 0)] * (a.ndim - 1)) for name, a in take.arrays.items()}
        take.arrays["stored_labels"][:] = 0.0
        take.stamps = np.arange(longest) * 40_000_000
    report = health.check(write(tmp_path / "data.zarr", SCHEMA, original))
    errors = {(each.rule, each.feature) for each in report if each.severity == "error"}
    assert {("nan", "signals"), ("zero_labels", "stored_labels"), ("label_contradiction", "stored_labels")} <= errors
    shares = [each.measured for each in report if each.rule == "nan"]
    assert len(shares) == 4 * NUM_EPISODES
    assert 0.5 < np.median(shares) < 0.8  # three quarters of the signals before the padding
    padded = {each.episode for each in report if each.rule == "padding"}
    tails = {number: longest - len(take.stamps) for number, take in enumerate(takes)}
    assert padded == {number for number, tail in tails.items() if tail >= 8 and tail > 0.05 * longest}
    assert len(padded) > 5
    assert "equal_lengths" in report.counts


def test_values_outside_the_declared_range_are_found(tmp_path: Path) -> None:
    schema = salus.Schema({"joints": salus.Feature((2,), range=(-1.0, 1.0), names=("a", "b"))}, rate_hz=10)
    values = np.random.default_rng(0).uniform(-1, 1, (100, 2))
    values[7, 1], values[8, 0] = 3.0, 1.005  # the second lies within 1 % of the range
    with salus.Recorder(salus.create(tmp_path / "data.zarr", schema)) as recorder:
        recorder.record_episode({"joints": values})
    (found,) = [each for each in health.check(tmp_path / "data.zarr") if each.severity != "info"]
    assert (found.rule, found.severity, found.component, found.measured) == ("outside_range", "warning", "b", 0.01)
    assert found.plot is not None
    assert found.plot.lines == (-1.0, 1.0)


def test_clocks_with_jitter_another_rate_or_half_an_episode_are_found(tmp_path: Path) -> None:
    features = {"states": salus.Feature((1,)), "force": salus.Feature((1,), clock="force")}
    schema = salus.Schema(features, rate_hz=50, clocks={"force": 1000})
    rng = np.random.default_rng(0)
    even = np.arange(100) * 20_000_000
    cases = {
        "fine": (even, np.arange(2000) * 1_000_000),
        "rate": (even, np.arange(2000) * 1_300_000),
        "jitter": (np.cumsum(rng.choice([5_000_000, 35_000_000], 100)), np.arange(2000) * 1_000_000),
        "coverage": (even, np.arange(1000) * 1_000_000),
    }
    with salus.Recorder(salus.create(tmp_path / "data.zarr", schema)) as recorder:
        for steps, force in cases.values():
            arrays = {"states": rng.normal(size=(len(steps), 1)), "force": rng.normal(size=(len(force), 1))}
            recorder.record_episode(arrays, timestamp_ns={"step": steps, "force": force})
        with recorder.episode() as episode:  # nothing comes on the other clock
            for stamp in even.tolist():
                episode.append(states=rng.normal(size=1), timestamp_ns=stamp)
    clocks = {each for each in alarms(health.check(tmp_path / "data.zarr")) if each[0].startswith("clock")}
    assert {("clock_rate", "force", 1), ("clock_jitter", "step", 2), ("clock_coverage", "force", 3)} <= clocks
    assert ("clock_coverage", "force", 4) in clocks
    assert not [each for each in clocks if each[2] == 0]


def test_nullable_steps_that_are_missing_are_counted(tmp_path: Path) -> None:
    schema = salus.Schema(
        {"images": salus.Image(height=8, width=8, nullable=True), "x": salus.Feature((1,), nullable=True)}, rate_hz=10
    )
    rng = np.random.default_rng(0)
    images, x = rng.integers(0, 255, (20, 3, 8, 8), dtype=np.uint8), rng.normal(size=(20, 1))
    images[10:], x[-1] = 0, 0.0  # what stands where nothing is must not be taken for black
    there = np.arange(20) < 10
    with salus.Recorder(salus.create(tmp_path / "data.zarr", schema)) as recorder:
        recorder.record_episode({"images": images, "images.valid": there, "x": x, "x.valid": np.arange(20) < 19})
    report = health.check(tmp_path / "data.zarr")
    assert alarms(report) == [("missing_values", "images", 0)]
    assert report.num_images == 10


def test_images_that_the_recorder_dropped_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = salus.Schema(
        {"images": salus.Image(height=8, width=8, nullable=True), "states": salus.Feature((2,))}, rate_hz=10
    )
    random = np.random.default_rng(0)
    dataset = salus.create(tmp_path / "data.zarr", schema)
    for dropping in (True, False):
        gate = Gate(monkeypatch)
        with salus.Recorder(dataset, queue_bytes=10 * 8 * 8 * 3, when_full="drop") as recorder:
            episode = recorder.start()
            if not dropping:
                gate.open.set()
            for step in range(20):
                image = random.integers(60, 200, (3, 8, 8), dtype=np.uint8)
                episode.append(images=image, states=random.normal(size=2), timestamp_ns=step * 100_000_000)
                while not dropping and recorder.queue_status.depth_bytes:
                    time.sleep(0.001)
            gate.open.set()
            with pytest.warns(RuntimeWarning, match="images were dropped") if dropping else nullcontext():
                episode.commit()
    report = health.check(dataset.refresh())
    (found,) = [each for each in report if each.rule == "dropped_images"]
    dropped = dataset[0].dropped_images["images"]
    assert 10 <= dropped == 20 - report.num_images + 20
    assert (found.feature, found.episode, found.message) == ("images", 0, f"{dropped} of 20 images were dropped")
    assert found.measured == dropped / 20
    lenient = health.check(dataset, rules={"dropped_images": {"most_share": 0.95}})
    assert "dropped_images" not in {each.rule for each in lenient}


def test_a_wide_feature_is_judged_by_its_record(tmp_path: Path) -> None:
    schema = salus.Schema({"depth": salus.Feature((20, 20), allow_nan=True)}, rate_hz=10)
    depth = np.ones((6, 20, 20))
    depth[:3] = np.nan
    with salus.Recorder(salus.create(tmp_path / "data.zarr", schema)) as recorder:
        recorder.record_episode({"depth": depth})
    for shard in (tmp_path / "data.zarr" / "depth").glob("c.*"):
        shard.unlink()  # the record suffices
    (found,) = [each for each in health.check(tmp_path / "data.zarr") if each.severity != "info"]
    assert (found.rule, found.feature, found.measured) == ("nan", "depth", 0.5)


def test_an_episode_that_cannot_be_read_is_a_finding_and_the_others_are_checked(
    takes: list[Take], tmp_path: Path
) -> None:
    path = tmp_path / "data.zarr"
    dataset = write(path, SCHEMA, takes[:4])
    shard = max((path / "states").glob(f"c.{dataset[1].slot}.*"))
    data = bytearray(shard.read_bytes())
    data[10] ^= 0xFF
    shard.write_bytes(data)
    report = health.check(path)
    assert alarms(report) == [("unreadable", None, 1)]
    assert report.num_steps == sum(len(takes[number].stamps) for number in (0, 2, 3))


def test_datasets_with_next_to_nothing_in_them_are_no_trouble(tmp_path: Path) -> None:
    schema = salus.Schema(
        {"actions": salus.Feature(()), "states": salus.Feature((2,), "int32"), "say": salus.Text()}, rate_hz=10
    )
    dataset = salus.create(tmp_path / "data.zarr", schema)
    assert len(health.check(dataset)) == 0
    with salus.Recorder(dataset) as recorder:
        for steps in (1, 2, 45):
            states = np.zeros((steps, 2), np.int32)
            recorder.record_episode({"actions": np.zeros(steps), "states": states, "say": ["go"] * steps})
    report = health.check(dataset.refresh())
    assert {each.rule for each in report} == {"dead_component", "nominal_stamps"}
    assert "nominal" in report.to_html()


def test_images_of_a_robot_at_rest_may_repeat(takes: list[Take], tmp_path: Path) -> None:
    resting = copy.deepcopy(takes)
    for name in ("images", "states", "actions"):
        resting[1].arrays[name][:40] = resting[1].arrays[name][0]
    report = health.check(write(tmp_path / "data.zarr", SCHEMA, resting), rules={"stuck_component": False})
    moving = {each.feature for each in report if each.rule == "frozen_images"}
    assert moving == {"images"}  # the signals go on
    resting[1].arrays["signals"][:40] = resting[1].arrays["signals"][0]
    report = health.check(write(tmp_path / "rest.zarr", SCHEMA, resting), rules={"stuck_component": False})
    assert "frozen_images" not in report.counts


# --- the parts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lag", [-4, 0, 1, 7])
def test_correlations_peak_at_the_lag(lag: int) -> None:
    rng = np.random.default_rng(1)
    motion = rng.normal(size=(300, 2))
    actions = motion[20:220]
    states = np.cumsum(np.roll(motion, lag, axis=0), axis=0)[20:220]
    found = correlations(actions, states)
    assert found is not None
    assert found.shape == (2, 2, 2, 2 * REACH + 1)
    for component in (0, 1):
        assert int(np.abs(found[0, component, component]).argmax()) - REACH == lag
        assert found[0, component, component].max() == pytest.approx(1, abs=1e-5)


def test_near_pairs_are_those_of_comparing_all_with_all() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(30, 5)) for _ in range(60)]
    rows += [rows[n] + rng.normal(0, scale, (30, 5)) for n, scale in ((3, 1e-4), (9, 4e-3), (20, 0.05), (31, 1.0))]
    signatures = [signature(each) for each in rows]
    found = near_pairs(signatures, [30] * len(rows), most_distance=0.02, most_length=0.0)
    stacked = np.stack(signatures) / np.stack(signatures).std(axis=(0, 1))
    distances = np.sqrt(((stacked[:, None] - stacked[None]) ** 2).mean(axis=(2, 3)))
    expected = [(i, j) for i, j in np.argwhere(distances <= 0.02).tolist() if i < j]
    assert [pair[:2] for pair in found] == expected == [(3, 60), (9, 61)]
    lengths = [30] * len(rows)
    lengths[60] = 40
    assert [pair[:2] for pair in near_pairs(signatures, lengths, most_distance=0.02, most_length=0.1)] == [(9, 61)]


def test_the_number_of_threads_changes_nothing(clean: salus.Dataset) -> None:
    one, four = (health.check(clean, threads=threads) for threads in (1, 4))
    assert one.findings == four.findings
    calls: list[tuple[int, int]] = []
    health.check(clean, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(n, NUM_EPISODES) for n in range(1, NUM_EPISODES + 1)]


# --- rules of one's own, thresholds -----------------------------------------------------------------------------


def test_a_rule_is_one_decorated_function(clean: salus.Dataset, own_rules: None) -> None:
    @health.rule(severity="error", reason="Above it the cup breaks.", advice="Lower the current.")
    def grip_force(episode: health.EpisodeMeasures, *, most_n: float = 1e6) -> Iterator[health.Hit]:
        force = episode.values("signals")[:, 2]
        if force.max() > most_n:
            yield health.Hit("too strong", float(force.max()), most_n, feature="signals", component="force")

    @health.rule("too_few", per="dataset", severity="info", reason="Learning takes many.")
    def _too_few(dataset: health.DatasetMeasures, *, least: float = 50) -> Iterator[health.Hit]:
        if len(dataset.episodes) < least:
            yield health.Hit(f"{len(dataset.episodes)} episodes", len(dataset.episodes), least)

    report = health.check(clean)
    assert alarms(report) == []
    assert report.counts["too_few"] == {"error": 0, "warning": 0, "info": 1}
    report = health.check(clean, rules={"grip_force": {"most_n": 1.0}, "too_few": False})
    found = [each for each in report if each.rule == "grip_force"]
    assert [each.episode for each in found] == list(range(NUM_EPISODES))
    assert (found[0].reason, found[0].advice) == ("Above it the cup breaks.", "Lower the current.")
    assert report.rules["grip_force"] == {"most_n": 1.0}
    assert "too_few" not in report.rules
    assert health.check(clean, rules={"grip_force": {"most_n": 1.0, "severity": "warning"}}).fails_on("error") is False


def test_wrong_rules_and_thresholds_are_refused(clean: salus.Dataset, own_rules: None) -> None:
    with pytest.raises(salus.NotFoundError, match="no rule 'clock_gab'; did you mean 'clock_gap'"):
        health.check(clean, rules={"clock_gab": False})
    with pytest.raises(salus.InvalidInputError, match="got the threshold 'least'.*did you mean 'least_s'"):
        health.check(clean, rules={"clock_gap": {"least": 1}})
    with pytest.raises(salus.InvalidInputError, match="got 'long', expected a number"):
        health.check(clean, rules={"clock_gap": {"least_s": "long"}})
    with pytest.raises(salus.InvalidInputError, match="expected rules with thresholds"):
        health.check(clean, rules=["clock_gap"])  # type: ignore[arg-type]
    with pytest.raises(salus.InvalidInputError, match="severity: got 'bad'"):
        health.rule(severity="bad", reason="")  # type: ignore[arg-type]
    with pytest.raises(salus.InvalidInputError, match="most: got None, expected a number as its default"):

        @health.rule(reason="")
        def without_default(episode: health.EpisodeMeasures, *, most: Any = None) -> list[health.Hit]:
            return []

    with pytest.raises(salus.NotFoundError):
        health.forget("without_default")
    with pytest.raises(salus.InvalidInputError, match="threads: got 0"):
        health.check(clean, threads=0)


def test_several_datasets_are_checked_one_by_one(clean: salus.Dataset) -> None:
    both = salus.concat([clean, clean[:2]])
    with pytest.raises(InvalidInputError, match="check: got ConcatView of 2 datasets, expected one.* its `parts`; "):
        health.check(both)  # type: ignore[arg-type]  # the error is the subject
    assert [health.check(part).num_episodes for part in both.parts] == [10, 2]


def test_every_rule_says_why_and_what_to_do_and_has_its_place_in_the_documentation() -> None:
    page = (Path(__file__).parents[1] / "docs" / "reference" / "health.md").read_text(encoding="utf-8")
    for name, rule in health.rules().items():
        assert rule.reason.endswith("."), name
        assert rule.advice.endswith("."), name
        assert (rule.function.__doc__ or "").strip(), name
        assert re.search(rf"^\| `{name}` \| {rule.severity} \|", page, re.MULTILINE), name
        for threshold, value in rule.thresholds.items():
            row = re.search(rf"^\| `{name}` .*$", page, re.MULTILINE)
            assert row is not None
            assert f"`{threshold}` {value:g}" in row[0], (name, threshold)


# --- the report -------------------------------------------------------------------------------------------------


class _Tags(HTMLParser):
    """Collects tags and attributes, and that they close."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in ("meta", "rect", "path", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "path", "line"):
            assert self.open.pop() == tag


def test_the_page_needs_nothing_else_and_everything_in_it_is_escaped(tmp_path: Path, takes: list[Take]) -> None:
    evil = "<script>alert(1)</script>\"'&"
    names = (evil, *SCHEMA.features["signals"].names[1:])
    schema = replace(
        SCHEMA, features={**SCHEMA.features, "signals": salus.Feature((4,), names=names, unit=evil, range=(-0.1, 0.1))}
    )
    planted = copy.deepcopy(takes)
    for place, plant in enumerate(DEFECTS.values()):
        plant(planted[place])
    report = health.check(write(tmp_path / "data.zarr", schema, planted))
    page = report.to_html()
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    assert not tags.tags & {"script", "link", "img", "iframe", "object", "form", "a"}
    assert not [name for name, _ in tags.attributes if name.startswith("on") or name in ("href", "src")]
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"url\(|@import|https?:", page)
    assert "nan" not in "".join(re.findall(r'd="[^"]*"', page))
    assert page.count("<svg") > len(DEFECTS)
    assert {each.rule for each in report if each.plot is not None} >= set(DEFECTS)


def test_the_report_as_json_and_its_order(tmp_path: Path, takes: list[Take]) -> None:
    planted = copy.deepcopy(takes)
    DEFECTS["nan"](planted[0])
    DEFECTS["frozen_images"](planted[1])
    report = health.check(write(tmp_path / "data.zarr", SCHEMA, planted))
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    severities = [finding["severity"] for finding in document["findings"]]
    assert severities == sorted(severities, key=["error", "warning", "info"].index)
    frozen = next(finding for finding in document["findings"] if finding["rule"] == "frozen_images")
    assert (frozen["episode"], frozen["feature"], frozen["steps"][0]) == (1, "images", 15)
    assert frozen["uid"] == salus.open(tmp_path / "data.zarr")[1].uid
    assert document["errors"] == report.count("error") >= 1
    assert report.fails_on("error")
    with pytest.raises(salus.InvalidInputError, match="fail on: got 'info'"):
        report.fails_on("info")


def test_check_on_the_command_line(tmp_path: Path, takes: list[Take]) -> None:
    path = tmp_path / "data.zarr"
    planted = copy.deepcopy(takes[:6])
    DEFECTS["clock_gap"](planted[2])
    write(path, SCHEMA, planted)
    page = tmp_path / "report.html"
    shown = run("check", path, "--html", page, "--fail-on", "error").stdout
    assert "warning clock_gap step" in shown
    assert re.search(r"episode 2: 6\d\d ms after step 20", shown)
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    run("check", path, "--fail-on", "warning", status=13)
    run("check", path, "--fail-on", "warning", "--skip", "clock_gap")
    document = json.loads(run("check", path, "--set", "clock_gap.least_s=2", "--json").stdout)
    assert (document["warnings"], document["rules"]["clock_gap"]["least_s"]) == (0, 2.0)
    rules = tmp_path / "rules.py"
    rules.write_text(
        "import salus\n"
        "@salus.health.rule(severity='error', reason='It is mine.')\n"
        "def mine(episode):\n"
        "    yield salus.health.Hit('found by mine')\n",
        encoding="utf-8",
    )
    assert "found by mine" in run("check", path, "--rules", rules, "--fail-on", "error", status=13).stdout
    for wrong in (("--set", "clock_gap"), ("--fail-on", "info"), ("--split", "train"), ("--split", "train=0.5")):
        run("check", path, *wrong, status=2)
    run("check", path, "--skip", "nothing", status=3)
    run("check", path, "--rules", "nothing.py", status=3)
    assert "leakage" not in json.loads(run("check", path, "--split", "a=0.5", "--split", "b=0.5", "--json").stdout)[
        "counts"
    ]  # fmt: skip
