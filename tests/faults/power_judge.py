"""What the power-cut test records, and what must hold of it once the disk is mounted again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr

import salus

SCHEMA = salus.Schema(
    {
        "camera": salus.Image(height=24, width=32),
        "states": salus.Feature((7,)),
        "say": salus.Text(),
        "horizon_labels": salus.Feature((1, 1), derived="outcome", allow_nan=True),
    },
    rate_hz=100,
    failure_kinds=("drop",),
    horizons=(2,),
    segment_steps=8,
)
INTERVAL_S = 0.5  # the journal's
SLACK_S = 1.0  # for the writing thread to come round on a busy machine, and for its fsync


class Line(NamedTuple):
    """What a process said.

    Attributes:
        process: Its number.
        event: Such as "committed".
        details: Of the event.
        when: `time.monotonic()` when it was said.
    """

    process: int
    event: str
    details: Any
    when: float


def num_steps_of(seed: int) -> int:
    """Steps of the whole episode `seed`: up to three segments."""
    return 1 + seed % 20


def make_step(seed: int, step: int) -> dict[str, Any]:
    """One step of the episode `seed`; the same in every process."""
    rng = np.random.default_rng((seed, step))
    return {
        "camera": rng.integers(0, 256, (3, 24, 32), dtype=np.uint8),
        "states": rng.normal(size=7).astype(np.float32),
        "say": f"{seed}.{step} grüß",
    }


def make_arrays(seed: int, num_steps: int) -> dict[str, Any]:
    """The first steps of the episode `seed`, as arrays (T, …)."""
    steps = [make_step(seed, step) for step in range(num_steps)]
    return {name: np.array([step[name] for step in steps]) for name in steps[0]}


def check(path: Path, lines: list[Line], *, cut_at: float) -> dict[str, Any]:
    """What must hold after the cut; returns what there was.

    Args:
        path: The dataset, on the disk that is mounted again.
        lines: What the processes said before they ended.
        cut_at: `time.monotonic()` of the cut.
    """
    events = {line.event for line in lines if line.when < cut_at}
    if "created" in events:
        _check_plain_zarr(path)
    else:
        salus.create(path, SCHEMA, exist_ok=True)
    committed = [line for line in lines if line.event == "committed"]
    # xfs confirms an fsync of a directory that runs into the shutdown, and loses it: with no more than link and fsync,
    # 94 of 165 links confirmed in the milliseconds after the cut were gone, and none confirmed before. With the power
    # the process would have gone, too, before it said so: what counts was said before.
    acknowledged = {line.details["uid"]: line.details["seed"] for line in committed if line.when < cut_at}
    discarded = {line.details["uid"] for line in lines if line.event == "discarded" and line.when < cut_at}
    dataset = salus.open(path, mode="a")
    check_episodes(dataset, acknowledged, discarded)
    report = recover(path)
    running = _check_running(path, lines, cut_at)
    dataset = salus.open(path)
    check_episodes(dataset, acknowledged, discarded)
    check_that_work_goes_on(path)
    found = {entry.uid for entry in dataset.episodes}
    too_late = [1000 * (line.when - cut_at) for line in committed if line.details["uid"] not in found]
    if too_late:
        sys.stderr.write(f"said after the cut, and not there: {too_late} ms after it\n")
    return running | {
        "acknowledged": len(acknowledged),
        "unacknowledged": len(dataset) - len(acknowledged) - len(report.salvaged),
        "too_late": len(too_late),
        "salvaged": len(report.salvaged),
        "aborted": len(report.aborted),
    }


def recover(path: Path) -> salus.RecoveryReport:
    """Bring everything that was left to an end, which leaves no journal."""
    report = salus.recover(path)
    assert not report.left, report
    assert salus.open(path).unfinished() == []
    assert list((path / "_salus" / "journal").glob("*")) == []
    return report


def check_episodes(dataset: salus.Dataset, acknowledged: dict[str, int], discarded: set[str]) -> None:
    """Every acknowledged episode (uid to seed) is there, no discarded one is, and all that is there is whole."""
    found = {entry.uid: entry.status for entry in dataset.episodes}
    missing = [uid for uid in acknowledged if found.get(uid) != "committed"]
    assert not missing, f"{len(missing)} of {len(acknowledged)} acknowledged episodes are not there: {missing[:3]}"
    assert not discarded & found.keys(), "a discarded episode has come back"
    for episode in dataset:
        seed = episode.metadata["seed"]
        assert acknowledged.get(episode.uid, seed) == seed
        if found[episode.uid] == "committed":
            assert len(episode) == num_steps_of(seed)
        for name, values in make_arrays(seed, len(episode)).items():
            np.testing.assert_array_equal(episode[name][:], values)
        assert len(episode.timestamp_ns) == len(episode)


def _check_plain_zarr(path: Path) -> int:
    """Before anybody mends anything, plain zarr opens it, and every row that it shows is a whole episode."""
    group = zarr.open_group(path, mode="r")
    texts, rows = group["episode_metadata"][:], 0
    for slot, num_steps in enumerate(group["episode_length"][:].tolist()):
        if num_steps:
            content = json.loads(texts[slot])
            seed = content["metadata"]["seed"]
            assert num_steps == content["num_steps"] == num_steps_of(seed)
            for name, values in make_arrays(seed, num_steps).items():
                np.testing.assert_array_equal(group[name][slot, :num_steps], values)
            rows += 1
    return rows


def _check_running(path: Path, lines: list[Line], cut_at: float) -> dict[str, Any]:
    """The episodes that were cut off while they ran: what was older than the journal's interval is there."""
    dataset = salus.open(path)
    lengths = {entry.uid: entry.num_steps for entry in dataset.episodes if entry.status == "salvaged"}
    lost_s = [0.0]
    for started in lines:
        if started.event != "started":
            continue
        times = [line.when for line in lines if line.process == started.process and line.event == "step"]
        kept = lengths.get(started.details["uid"], 0)
        assert kept <= len(times) + 1, "more steps than there were"
        if kept < len(times):
            lost_s.append(cut_at - times[kept])
    assert max(lost_s) < INTERVAL_S + SLACK_S, f"a running episode lost {max(lost_s):.2f} s"
    return {"lost_s": max(lost_s)}


def check_that_work_goes_on(path: Path, *, newest: int = 1_000) -> None:
    """One more episode is recorded; then plain zarr has all lengths, and the same values for the newest episodes."""
    seed = 5  # of no writer
    with salus.Recorder(salus.open(path, mode="a")) as recorder:
        entry = recorder.record_episode(make_arrays(seed, num_steps_of(seed)), {"seed": seed})
    dataset = salus.open(path)
    assert dataset.episodes[-1].uid == entry.uid
    group = zarr.open_group(path, mode="r")
    lengths = np.zeros(group["episode_length"].shape, np.int32)
    for entry in dataset.episodes:
        lengths[entry.slot] = entry.num_steps
    np.testing.assert_array_equal(group["episode_length"][:], lengths)
    for number in range(max(len(dataset) - newest, 0), len(dataset)):
        episode = dataset[number]
        for name in ("camera", "states", "say", "horizon_labels"):
            np.testing.assert_array_equal(group[name][episode.slot, : len(episode)], episode[name][:])
