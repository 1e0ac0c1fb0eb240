"""Two datasets recorded with SALUS, what they must read as, and the readers of others that run in their own process.

Each dataset lies in a folder of its own: `data.zarr`, `expected.json` (what there is) and `values.bin` (the source
arrays, little-endian, one after another), which a reader in any language compares with. What is expected is computed
here from the source arrays and the note's rules, never by SALUS.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import salus
from salus.log.claims import claim_slot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HERE = Path(__file__).parent

Arrays = dict[str, np.ndarray]


# --- what must be read ------------------------------------------------------------------------------------------


@dataclass
class Expected:
    """Collects what a dataset must read as, and writes it beside the dataset.

    Attributes:
        folder: Where `data.zarr` lies.
        dimensions: The dimension names of every array.
        step_shapes: Shape of one step, and dtype, of every array but texts.
        rows: The rows of axis 0 that hold an episode, with their lengths; all others have length 0.
        clocks: The clock of each array that has another than `step`.
        clock_rows: The same as `rows` for each of these clocks.
    """

    folder: Path
    dimensions: dict[str, list[str]]
    step_shapes: dict[str, tuple[tuple[int, ...], str]]
    rows: dict[int, int] = field(default_factory=dict)
    clocks: dict[str, str] = field(default_factory=dict)
    clock_rows: dict[str, dict[int, int]] = field(default_factory=dict)
    values: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    texts: dict[str, dict[int, list[str]]] = field(default_factory=dict)
    metadata: dict[int, dict[str, Any]] = field(default_factory=dict)

    def episode(self, entry: Any, values: Arrays, texts: Mapping[str, list[str]], metadata: dict[str, Any]) -> None:
        """Row `entry.slot` must hold these."""
        self.rows[entry.slot] = entry.num_steps
        for clock, length in entry.clock_lengths:
            self.clock_rows.setdefault(clock, {})[entry.slot] = length
        for name, array in values.items():
            self.values.setdefault(name, {})[entry.slot] = array
        for name, words in texts.items():
            self.texts.setdefault(name, {})[entry.slot] = words
        self.metadata[entry.slot] = {"uid": entry.uid, "status": "committed", "num_steps": entry.num_steps, **metadata}

    def write(self, num_rows: int) -> Path:
        """Write `expected.json` and `values.bin`; `num_rows` is the size of axis 0. Returns the folder."""
        arrays: dict[str, Any] = {}
        with (self.folder / "values.bin").open("wb") as file:
            for name, rows in self.values.items():
                shape, dtype = self.step_shapes[name]
                arrays[name] = {"dtype": dtype, "step_shape": shape, "rows": {}}
                for row, array in rows.items():
                    assert array.dtype == dtype
                    lengths = self.clock_rows[self.clocks[name]] if name in self.clocks else self.rows
                    assert array.shape == (lengths[row], *shape)
                    arrays[name]["rows"][row] = file.tell()
                    file.write(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())
        document = {
            "lengths": [self.rows.get(row, 0) for row in range(num_rows)],
            "metadata": [self.metadata.get(row) for row in range(num_rows)],
            "clocks": {
                clock: {
                    "lengths": [rows.get(row, 0) for row in range(num_rows)],
                    "arrays": [name for name, on in self.clocks.items() if on == clock],
                }
                for clock, rows in self.clock_rows.items()
            },
            "dimensions": self.dimensions,
            "arrays": arrays,
            "texts": self.texts,
        }
        (self.folder / "expected.json").write_text(json.dumps(document), encoding="utf-8")
        return self.folder


INDEX_DIMENSIONS = {
    "timestamp_ns": ["episode", "step"],
    "episode_length": ["episode"],
    "episode_metadata": ["episode"],
}


# --- the preset -------------------------------------------------------------------------------------------------

ROWS = 47
ABORTED, LONG, UNDECIDED, DELETED, ADDRESSED, AMENDED = 10, 20, 25, 30, 42, 5
LONG_STEPS = 300  # a shard holds 256
AMENDED_OUTCOME = salus.Outcome("failure", kind="miss", step=9)  # recorded as a success
COMPARED_IMAGES = (0, ABORTED - 1, ABORTED + 1, LONG, ADDRESSED, ROWS - 1)  # all of them would be 140 MB

KINDS = ("collision", "drop", "miss", "timeout")
HORIZONS = (6, 10, 13, 16)


@pytest.fixture(scope="session")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """47 rows of `salus.schema.SALUS`: 44 episodes, an aborted take, a deleted episode, and a row never decided."""
    folder = tmp_path_factory.mktemp("preset")
    expected = Expected(
        folder,
        dimensions={
            **INDEX_DIMENSIONS,
            "images": ["episode", "step", "images_channel", "images_y", "images_x"],
            "states": ["episode", "step", "states_component"],
            "actions": ["episode", "step", "actions_component"],
            "signals": ["episode", "step", "signals_component"],
            "horizon_labels": ["episode", "step", "horizon_labels_axis0", "horizon_labels_axis1"],
        },
        step_shapes={
            "timestamp_ns": ((), "int64"),
            "images": ((3, 224, 224), "uint8"),
            "states": ((7,), "float32"),
            "actions": ((7,), "float32"),
            "signals": ((12,), "float32"),
            "horizon_labels": ((4, 4), "float32"),
        },
    )
    dataset = salus.create(folder / "data.zarr", salus.schema.SALUS)
    with salus.Recorder(dataset) as recorder:
        for row in range(ROWS):
            if row == UNDECIDED:  # what a process leaves that dies right after it claimed its row
                claim_slot(dataset.storage, "0", hint=row)
                continue
            num_steps = {LONG: LONG_STEPS, ADDRESSED: 24}.get(row, 12 + row * 5 % 13)
            arrays, stamps = _preset_arrays(row, num_steps)
            outcome = _outcome(row, num_steps)
            metadata: dict[str, Any] = {"task": f"put {row} away, grüße", "n": row}
            episode = recorder.start(metadata)
            assert episode.slot == row
            for step in range(num_steps):
                values = {name: array[step] for name, array in arrays.items()}
                episode.append(values, timestamp_ns=int(stamps[step]))
            if row == ABORTED:
                episode.discard(reason="the operator shook his head")
                continue
            entry = episode.commit(outcome)
            if row == DELETED:
                continue
            if row == AMENDED:
                outcome = AMENDED_OUTCOME
                metadata = {"task": metadata["task"], "robot": "ur5"}
            if row not in COMPARED_IMAGES:
                del arrays["images"]
            expected.episode(
                entry,
                {**arrays, "timestamp_ns": stamps, "horizon_labels": _labels(num_steps, outcome)},
                {},
                {
                    "outcome": {"result": outcome.result, "kind": outcome.kind, "step": outcome.step},
                    "metadata": metadata,
                },
            )
    dataset.refresh()
    rows = {entry.slot: entry.uid for entry in dataset.episodes}
    dataset.set_outcome(rows[AMENDED], AMENDED_OUTCOME)
    dataset.refresh()
    dataset.update_metadata(rows[AMENDED], {"n": None, "robot": "ur5"})
    dataset.refresh()
    dataset.delete(rows[DELETED])
    return expected.write(ROWS)


def _preset_arrays(row: int, num_steps: int) -> tuple[Arrays, np.ndarray]:
    rng = np.random.default_rng(row)
    blocks = rng.integers(0, 256, (num_steps, 3, 56, 56), dtype=np.uint8)
    images = blocks.repeat(4, axis=2).repeat(4, axis=3)
    images[0] = rng.integers(0, 256, (3, 224, 224), dtype=np.uint8)  # and one that no codec makes smaller
    arrays = {"images": images}
    for name, size in (("states", 7), ("actions", 7), ("signals", 12)):
        arrays[name] = rng.normal(size=(num_steps, size)).astype(np.float32)
    info = np.finfo(np.float32)
    arrays["states"][1] = [-0.0, 0.0, info.max, info.min, info.tiny, info.smallest_subnormal, 1 / 3]
    stamps = rng.integers(1, 80_000_000, num_steps).cumsum() + 1_700_000_000_123_456_789
    return arrays, stamps


def _outcome(row: int, num_steps: int) -> salus.Outcome:
    if row == LONG:
        return salus.Outcome("failure", kind="drop", step=260)  # its horizons cross the border of the segments
    return (
        salus.Outcome("success"),
        salus.Outcome("unknown"),
        salus.Outcome("failure", kind=KINDS[row % 4], step=num_steps - 1),
        salus.Outcome("failure"),
        salus.Outcome("failure", step=num_steps - 3),
        salus.Outcome("success"),
    )[row % 6]


def _labels(num_steps: int, outcome: salus.Outcome) -> np.ndarray:
    """The note's rule, cell by cell: 1 where `0 < failure_step - t <= h`, NaN where that cannot be known."""
    labels = np.zeros((num_steps, 4, 4), np.float32)
    for t, h, k in np.ndindex(labels.shape):
        if outcome.result == "unknown":
            known, value = t + HORIZONS[h] <= num_steps - 1, 0.0
        elif outcome.result == "failure" and outcome.step is None:
            known, value = False, 0.0
        elif outcome.step is not None:
            near = 0 < outcome.step - t <= HORIZONS[h]
            known = t < outcome.step and not (near and outcome.kind is None)
            value = float(near and outcome.kind == KINDS[k])
        else:
            known, value = True, 0.0
        labels[t, h, k] = value if known else np.nan
    return labels


# --- a schema of one's own --------------------------------------------------------------------------------------

SCENE_LENGTHS = (3, 8, None, 9, 20, 17)  # None: an aborted take
SCENE_LATE = 4  # the first row that has the feature added later
WORDS = ("", "pick up the cube", "grüß dich", "日本語", "🤖 ok", 'a\nb\t\x00"\\', "x" * 3000)


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rows of a schema with dotted names, text, HWC and nullable images, many dtypes, and a feature added later."""
    folder = tmp_path_factory.mktemp("scene")
    image = [f"observation.images.front_{axis}" for axis in ("y", "x", "channel")]
    expected = Expected(
        folder,
        dimensions={
            **INDEX_DIMENSIONS,
            "observation.images.front": ["episode", "step", *image],
            "observation.state": ["episode", "step", "observation.state_component"],
            "wrist": ["episode", "step", "wrist_channel", "wrist_y", "wrist_x"],
            "wrist.valid": ["episode", "step"],
            "depth": ["episode", "step", "depth_axis0", "depth_axis1"],
            "gripper": ["episode", "step"],
            "ticks": ["episode", "step"],
            "instruction": ["episode", "step"],
            "late": ["episode", "step", "late_component"],
        },
        step_shapes={
            "timestamp_ns": ((), "int64"),
            "observation.images.front": ((20, 30, 3), "uint8"),
            "observation.state": ((6,), "float64"),
            "wrist": ((1, 10, 12), "uint8"),
            "wrist.valid": ((), "bool"),
            "depth": ((48, 64), "uint16"),
            "gripper": ((), "bool"),
            "ticks": ((), "uint64"),
            "late": ((2,), "int16"),
        },
    )
    schema = salus.Schema(
        {
            "observation.images.front": salus.Image(height=20, width=30, layout="HWC"),
            "observation.state": salus.Feature((6,), "float64", allow_nan=True),
            "wrist": salus.Image(height=10, width=12, color="gray", nullable=True),
            "depth": salus.Feature((48, 64), "uint16"),
            "gripper": salus.Feature((), "bool"),
            "ticks": salus.Feature((), "uint64"),
            "instruction": salus.Text(),
        },
        rate_hz=30,
        segment_steps=8,
    )
    dataset = salus.create(folder / "data.zarr", schema)
    for rows in (range(SCENE_LATE), range(SCENE_LATE, len(SCENE_LENGTHS))):
        if rows.start == SCENE_LATE:
            dataset.add_features({"late": salus.Feature((2,), "int16")})
        with salus.Recorder(dataset) as recorder:
            for row in rows:
                _record_scene(recorder, expected, row)
    return expected.write(len(SCENE_LENGTHS))


def _record_scene(recorder: salus.Recorder, expected: Expected, row: int) -> None:
    num_steps = SCENE_LENGTHS[row] or 5
    rng = np.random.default_rng(row)
    arrays = {
        "observation.images.front": rng.integers(0, 256, (num_steps, 20, 30, 3), dtype=np.uint8),
        "observation.state": rng.normal(size=(num_steps, 6)),
        "wrist": rng.integers(0, 256, (num_steps, 1, 10, 12), dtype=np.uint8),
        "depth": rng.integers(0, 2**16, (num_steps, 48, 64), dtype=np.uint16),
        "gripper": rng.random(num_steps) < 0.5,
        "ticks": rng.integers(0, 2**64, num_steps, dtype=np.uint64),
    }
    arrays["observation.state"][0] = [np.nan, np.inf, -np.inf, -0.0, np.finfo(float).max, 5e-324]
    arrays["ticks"][0] = 2**64 - 1
    if row >= SCENE_LATE:
        arrays["late"] = rng.integers(-(2**15), 2**15, (num_steps, 2), dtype=np.int16)
    valid = rng.random(num_steps) < 0.6
    arrays["wrist"][~valid] = 0
    words = [WORDS[(row + step) % len(WORDS)] for step in range(num_steps)]
    stamps = np.arange(num_steps) * 33_333_333 + row
    episode = recorder.start(note=WORDS[row])
    assert episode.slot == row
    for step in range(num_steps):
        values = {name: array[step] for name, array in arrays.items()}
        values |= {"wrist": arrays["wrist"][step] if valid[step] else None, "instruction": words[step]}
        episode.append(values, timestamp_ns=int(stamps[step]))
    if SCENE_LENGTHS[row] is None:
        episode.discard()
        return
    expected.episode(
        episode.commit("success"),
        {**arrays, "wrist.valid": valid, "timestamp_ns": stamps},
        {"instruction": words},
        {"outcome": {"result": "success", "kind": None, "step": None}, "metadata": {"note": WORDS[row]}},
    )


# --- streams on clocks of their own -----------------------------------------------------------------------------

STREAMS = ((12, 150, 3), (5, 0, 1), (None, 40, 0), (9, 64, 0), (7, 20, 2))  # steps (None: aborted), joints, skin


@pytest.fixture(scope="session")
def streams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five rows with joints at 80 Hz and touch images at 2 Hz beside 10 Hz, pushed and recorded whole by turns."""
    folder = tmp_path_factory.mktemp("streams")
    on_joints, on_skin = ["episode", "joints_step"], ["episode", "skin_step"]
    expected = Expected(
        folder,
        dimensions={
            **INDEX_DIMENSIONS,
            "actions": ["episode", "step", "actions_component"],
            "joints.timestamp_ns": on_joints,
            "joints.episode_length": ["episode"],
            "qpos": [*on_joints, "qpos_component"],
            "effort": on_joints,
            "effort.valid": on_joints,
            "skin.timestamp_ns": on_skin,
            "skin.episode_length": ["episode"],
            "touch": [*on_skin, "touch_channel", "touch_y", "touch_x"],
            "word": on_skin,
        },
        step_shapes={
            "actions": ((2,), "float32"),
            "timestamp_ns": ((), "int64"),
            "joints.timestamp_ns": ((), "int64"),
            "qpos": ((7,), "float32"),
            "effort": ((), "float64"),
            "effort.valid": ((), "bool"),
            "skin.timestamp_ns": ((), "int64"),
            "touch": ((1, 6, 8), "uint8"),
        },
        clocks={
            **dict.fromkeys(("joints.timestamp_ns", "qpos", "effort", "effort.valid"), "joints"),
            **dict.fromkeys(("skin.timestamp_ns", "touch", "word"), "skin"),
        },
    )
    schema = salus.Schema(
        {
            "actions": salus.Feature((2,)),
            "qpos": salus.Feature((7,), clock="joints"),
            "effort": salus.Feature((), "float64", clock="joints", nullable=True),
            "touch": salus.Image(height=6, width=8, color="gray", clock="skin"),
            "word": salus.Text(clock="skin"),
        },
        rate_hz=10,
        segment_steps=8,
        clocks={"joints": 80, "skin": 2},
    )
    with salus.Recorder(salus.create(folder / "data.zarr", schema)) as recorder:
        for row in range(len(STREAMS)):
            _record_streams(recorder, expected, row)
    return expected.write(len(STREAMS))


def _record_streams(recorder: salus.Recorder, expected: Expected, row: int) -> None:
    num_steps, joints, skin = STREAMS[row]
    rng = np.random.default_rng(row)
    valid = rng.random(joints) < 0.7
    effort = np.where(valid, rng.normal(size=joints), 0.0)
    on_joints = {"qpos": rng.normal(size=(joints, 7)).astype(np.float32), "effort": effort}
    on_skin = {"touch": rng.integers(0, 256, (skin, 1, 6, 8), dtype=np.uint8)}
    words = [WORDS[tick % len(WORDS)] for tick in range(skin)]
    actions = rng.normal(size=(num_steps or 4, 2)).astype(np.float32)
    stamps = {
        "step": np.arange(len(actions)) * 100_000_000 + row,
        "joints": np.arange(joints) * 12_500_000 + row,
        "skin": np.arange(skin) * 500_000_000 + row,
    }
    metadata = {"n": row}
    if row % 2:
        there = [*(("joints",) if joints else ()), *(("skin",) if skin else ()), "step"]
        given: dict[str, Any] = {"actions": actions}
        given |= {**on_joints, "effort.valid": valid} if joints else {}
        given |= {**on_skin, "word": words} if skin else {}
        entry = recorder.record_episode(
            given, metadata, timestamp_ns={clock: stamps[clock] for clock in there}, outcome="success"
        )
    else:
        episode = recorder.start(metadata)
        for step, action in enumerate(actions):
            for tick in range(step * joints // len(actions), (step + 1) * joints // len(actions)):
                values = {"qpos": on_joints["qpos"][tick], "effort": on_joints["effort"][tick] if valid[tick] else None}
                episode.push("joints", values, timestamp_ns=int(stamps["joints"][tick]))
            episode.append({"actions": action}, timestamp_ns=int(stamps["step"][step]))
        if skin:
            episode.push("skin", {**on_skin, "word": words}, timestamp_ns=stamps["skin"])
        if num_steps is None:
            episode.discard()
            return
        entry = episode.commit("success")
    values = {"actions": actions, "timestamp_ns": stamps["step"]}
    if joints:
        values |= {**on_joints, "effort.valid": valid, "joints.timestamp_ns": stamps["joints"]}
    if skin:
        values |= {**on_skin, "skin.timestamp_ns": stamps["skin"]}
    outcome = {"result": "success", "kind": None, "step": None}
    texts = {"word": words} if skin else {}
    expected.episode(entry, values, texts, {"outcome": outcome, "metadata": metadata})


# --- readers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """A reader of others: a script that is given a folder and fails unless it reads exactly what is expected.

    Attributes:
        name: As the tests call it.
        script: In tests/interop.
        needs: Python modules; none for the one in Node.
        crc_error: What it says of a chunk whose checksum does not hold; None where it does not look.
    """

    name: str
    script: str
    needs: tuple[str, ...] = ()
    crc_error: str | None = None

    def command(self) -> list[str]:
        """How to run it; skips the test where the peer is not installed, and fails it in CI."""
        script = HERE / self.script
        if self.needs:
            for module in self.needs:
                require(importlib.util.find_spec(module) is not None, f"the Python package {module} is not installed")
            # -E, -s: nothing but the environment's own packages; -P would hide common.py.
            return [sys.executable, "-E", "-s", "-W", "error", str(script)]
        node = shutil.which("node")
        require(node is not None, "node is not installed")
        require((script.parent / "node_modules").is_dir(), f"{script.parent}/node_modules is missing")
        return [str(node), "--throw-deprecation", str(script)]

    def read(self, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run it on a folder that holds `data.zarr` and what is expected."""
        before = _tree(folder)
        done = run([*self.command(), "."], cwd=folder)
        assert _tree(folder) == before, f"{self.name} changed the dataset by reading it"
        return done


def run(command: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; the caller looks at the exit status."""
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=300, check=False)


def require(there: bool, missing: str) -> None:
    """Skip the test where something that it needs is missing, saying how to get it; in CI, where all is, fail it."""
    if there:
        return
    if os.environ.get("CI"):
        pytest.fail(f"{missing}, and CI must run every test")
    pytest.skip(f"{missing}; run `make setup`")


def _tree(folder: Path) -> dict[str, tuple[int, int]]:
    stats = {str(path): path.stat() for path in sorted(folder.rglob("*"))}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}
