"""A hostile dataset costs whoever reads it an error (promise 7): the catalogue in `attacks.py`, run by `child.py`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus

from .attacks import ATTACKS
from .child import arrays_of

TIME_LIMIT_S = 900
CHILDREN = 4
PEAK_BYTES = 256 * 2**20
"""Above what the process had before: a bomb inflates to 400 MB."""
LENGTHS = (20, 5, 8)

pytest.importorskip("imagecodecs", reason="the extra 'jpeg' is not installed")


def make_dataset(path: Path) -> salus.Dataset:
    """Three episodes of every kind of feature."""
    schema = salus.Schema(
        {
            "images": salus.Image(height=12, width=10),
            "states": salus.Feature((7,), unit="rad"),
            "actions": salus.Feature((3,)),
            "photo": salus.Image(height=12, width=10, codec="jpeg"),
            "said": salus.Text(),
        },
        rate_hz=50,
        failure_kinds=("collision", "drop"),
        horizons=(2, 5),
        segment_steps=16,
    )
    rng = np.random.default_rng(0)
    with salus.Recorder(salus.create(path, schema)) as recorder:
        for number, length in enumerate(LENGTHS):
            images = rng.integers(0, 256, (length, 3, 12, 10), dtype=np.uint8)
            values = {
                "images": images,
                "photo": images,
                "states": rng.normal(size=(length, 7)).astype(np.float32),
                "actions": rng.normal(size=(length, 3)).astype(np.float32),
                "said": [f"step {step}" for step in range(length)],
            }
            recorder.record_episode(values, {"task": f"task {number}"})
    return salus.open(path)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "template/outside").mkdir(parents=True)
    (folder / "template/outside/secret").write_text("nobody reads this")
    make_dataset(folder / "template/data.zarr")
    return folder / "template"


@pytest.fixture(scope="module")
def sound(template: Path) -> dict[str, str]:
    """Digests of all values before any attack."""
    said: list[str] = []
    values = arrays_of(salus.open(template / "data.zarr"), said)
    assert len(values) == len(LENGTHS) * 6
    assert not said
    return values


@pytest.fixture(scope="module")
def results(template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of each attack, by name. A child that dies is told of under the attack at which it did."""
    names = list(ATTACKS)

    def run(number: int) -> dict[str, dict[str, Any]]:  # verify mostly waits, for recorders that might publish
        share = names[number::CHILDREN]
        command = [sys.executable, "-m", "tests.hostile.child", str(template), str(template.parent / f"{number}")]
        ran = subprocess.run([*command, *share], check=False, capture_output=True, text=True, timeout=TIME_LIMIT_S)
        found = {line["name"]: line for line in map(json.loads, ran.stdout.splitlines())}
        missing = [name for name in share if name not in found]
        died = {"failed": {"": f"the child ended with {ran.returncode} at {missing[:1]}: {ran.stderr[-2000:]}"}}
        return {**dict.fromkeys(missing, died), **found}

    with ThreadPoolExecutor(CHILDREN) as threads:
        return {name: result for part in threads.map(run, range(CHILDREN)) for name, result in part.items()}


def attacked(sound: dict[str, str]) -> str:
    """The uid of the episode in slot 1, which is the one that is attacked."""
    return sorted(key.partition("/")[0] for key in sound)[len(sound) // len(LENGTHS)]


@pytest.mark.parametrize("name", ATTACKS)
def test_it_costs_an_error_and_no_more(name: str, results: dict[str, Any], sound: dict[str, str]) -> None:
    attack, result = ATTACKS[name], results[name]
    assert not result["failed"], "\n".join(result["failed"].values())
    assert re.search(attack.says, result["said"], re.DOTALL), result["said"]
    assert result["outside"], "something outside of the dataset changed"
    assert result["peak"] < PEAK_BYTES
    for read in (result["read"], result["read_again"]):  # of other episodes, what is read is what was recorded
        others = {key: value for key, value in (read or {}).items() if not key.startswith(attacked(sound))}
        assert others.items() <= sound.items()
    if attack.unaffected:
        assert result["read"] == result["read_again"] == sound


def test_what_is_shown_is_escaped(results: dict[str, Any]) -> None:
    shown = results["escapes in text"]["shown"]
    assert "<script>" in shown or "&lt;script&gt;" in shown
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown)
    html = shown[shown.index("<!doctype") :] if "<!doctype" in shown else shown
    assert "<script>alert" not in html[: html.index("</html>")]
