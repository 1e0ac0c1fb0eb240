"""A hostile dataset costs whoever reads it an error (promise 7): the catalogue in `attacks.py`, run by `child.py`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus
from salus import documents
from salus.errors import CorruptDataError, InvalidInputError, SalusError
from salus.gather import Reader, Request
from salus.layout import array_specs
from salus.storage import LocalStorage

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


STRANGE: dict[str, Callable[[Path], object]] = {
    "a file for the private folder": lambda path: (path / "_salus").write_bytes(b""),
    "a pipe for the private folder": lambda path: os.mkfifo(path / "_salus"),
    "a link for the private folder": lambda path: (path / "_salus").symlink_to(path.parent / "outside"),
    "a link for the folder of schemas": lambda path: (
        (path / "_salus").mkdir() or (path / "_salus/schema").symlink_to(path.parent / "outside")
    ),
    "a link for the first schema": lambda path: (
        (path / "_salus/schema").mkdir(parents=True)
        or (path / "_salus/schema/000000.json").symlink_to(path.parent / "outside/created")
    ),
    "a pipe for the dataset": lambda path: path.rmdir() or os.mkfifo(path),
    "a link to nowhere for the dataset": lambda path: path.rmdir() or path.symlink_to(path.parent / "nowhere/data"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_nothing_is_created_through_it(tmp_path: Path, what: str) -> None:
    path = tmp_path / "data.zarr"
    path.mkdir()
    (tmp_path / "outside").mkdir()
    STRANGE[what](path)
    with pytest.raises(SalusError):
        salus.create(path, salus.Schema({"states": salus.Feature()}, rate_hz=1))
    with pytest.raises(SalusError):
        salus.open(path)
    assert not list((tmp_path / "outside").iterdir())


def test_the_root_itself_may_be_a_link(tmp_path: Path, template: Path, sound: dict[str, str]) -> None:
    (tmp_path / "link").symlink_to(template / "data.zarr")
    assert arrays_of(salus.open(tmp_path / "link"), []) == sound


def test_a_folder_that_is_exchanged_for_a_link_is_not_followed(tmp_path: Path, template: Path) -> None:
    """Also where it was read before, and looked at: there is no moment in which a link is followed."""
    path = tmp_path / "data.zarr"
    shutil.copytree(template / "data.zarr", path)
    storage = LocalStorage(path)
    assert storage.open_shard("states/c.0.0.0") is not None
    (path / "states").rename(tmp_path / "moved")
    (path / "states").symlink_to(tmp_path / "moved")
    for read in (storage.open_shard, storage.get):
        with pytest.raises(CorruptDataError, match="a symbolic link 'states', expected a plain folder; states/c.0.0.0"):
            read("states/c.0.0.0")
    with pytest.raises(CorruptDataError, match="a symbolic link 'states'"):
        storage.list("states")
    with pytest.raises(CorruptDataError, match="a symbolic link 'states'"):
        storage.put_new("states/c.9.0.0", b"x")
    assert not (tmp_path / "moved/c.9.0.0").exists()


def test_what_is_not_read_is_not_written_either() -> None:
    wide = b'{"a":[' + b"[]," * 100_000 + b"1]}"
    assert len(documents.parse(wide, key="k")["a"]) == 100_001
    with pytest.raises(CorruptDataError, match="nested deeper than 64 levels"):
        documents.parse(b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", key="k")
    assert documents.parse(b'{"a":' + b"[" * 63 + b"]" * 63 + b"}", key="k")
    with pytest.raises(InvalidInputError, match="in 64 levels: no reader would take it"):
        documents.seal({"a": json.loads("[" * 64 + "]" * 64)})


def test_more_than_memory_takes_is_a_typed_error(template: Path) -> None:
    schema = salus.open(template / "data.zarr").schema
    spec = array_specs(schema)["states"]
    steps = np.broadcast_to(np.int64(0), (2**50,))
    reader = Reader(LocalStorage(template / "data.zarr"), [schema])
    with pytest.raises(InvalidInputError, match=f"read: {2**50} steps of 'states' are {2**50 * 28} bytes, more than"):
        reader.read([Request(spec, [], steps, steps)])
