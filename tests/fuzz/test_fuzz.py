"""T9, a cut: so many executions of each target, what was found before, documents that hypothesis makes up.

`python -m tests.fuzz.run 10000000` runs it at full length, `python -m tests.fuzz.guided TARGET` guided by coverage.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .examples import OutsideRootError, checked, make_examples
from .execution import MAX_SECONDS, REGRESSIONS, execute, note, noted, run_range
from .mutators import seal, to_text, unsealed
from .run import Runner, chunks_of, plan
from .target import Target
from .targets import all_targets

EXECUTIONS = 40_000
NAMES = (
    *("documents", "json", "metadata", "schema", "record", "claim", "amendment", "checkpoint", "tag", "statistics"),
    *("sketch.float", "sketch.double", "histogram", "shard.zstd-images", "shard.jpeg", "shard.jpeg-gray", "shard.zstd"),
    *("shard.bool", "shard.stamps", "shard.text", "shard.blosc", "shard.gzip", "codecs", "index.episode_length"),
    *("index.episode_metadata", "root", "zarr.json", "names", "journal", "dataset", "terminal"),
)
SEALED = ("documents", "schema", "record", "claim", "amendment", "checkpoint", "tag", "dataset")

pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    memory = Path("/dev/shm")  # noqa: S108 - faster than a disk
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="salus-fuzz-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def targets(folder: Path) -> dict[str, Target]:
    return all_targets(make_examples(folder), folder)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """A run of its own process, whose children are few megabytes large and may be forked."""
    command = [sys.executable, "-m", "tests.fuzz.run", str(EXECUTIONS), "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def regressions(results: dict[str, Any]) -> dict[str, list[str]]:
    """What came of the inputs in `regressions/`, in a process that may have 512 MB more."""
    found: dict[str, list[str]] = results["regressions"]
    return found


def test_every_target_is_in_the_list(targets: dict[str, Target]) -> None:
    assert sorted(targets) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_only_typed_errors_come_out(results: dict[str, Any], name: str) -> None:
    result = results[name]
    assert not result["failures"], "\n\n".join(result["failures"])
    assert result["executions"] >= 0.02 * EXECUTIONS


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("terminal", "zarr.json")])
def test_some_inputs_are_taken_and_some_refused(results: dict[str, Any], name: str) -> None:
    share = results[name]["accepted"] / results[name]["executions"]
    assert 0.01 < share < 0.99, "the mutators lost their point"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "zarr.json"])
def test_what_is_mutated_was_right(targets: dict[str, Target], name: str) -> None:
    found = [execute(targets[name], seed) for seed in targets[name].seeds]
    assert not [failure for _, _, failure in found if failure is not None]
    assert any(accepted for accepted, _, _ in found)


@pytest.mark.parametrize("path", sorted(REGRESSIONS.glob("*.bin")), ids=lambda path: path.name)
def test_what_was_found_before(regressions: dict[str, list[str]], path: Path) -> None:
    assert not regressions[path.name], "\n".join(regressions[path.name])


def test_what_was_found_by_thinking(targets: dict[str, Target]) -> None:
    """Schemas that took 26 s, and more memory than there is: too large for a file."""
    document = unsealed(targets["schema"].seeds[0])
    features = [{"name": f"f{n}", "kind": "array", "shape": [], "dtype": "int8", "clock": "x"} for n in range(3000)]
    changes: list[dict[str, Any]] = [
        {"failure_kinds": [f"k{number}" for number in range(50_000)]},
        {"clocks": {f"c{number:060d}": 1 for number in range(3000)}, "features": features},
        {"features": [{**features[0], "name": f"f{number}"} for number in range(50_000)]},
    ]
    for change in changes:
        _, seconds, failure = execute(
            targets["schema"], seal(to_text({**document, "schema": document["schema"] | change}))
        )
        assert failure is None, f"{failure.why}\n{failure.trace}"
        assert seconds < MAX_SECONDS


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=8), inside, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize("name", SEALED)
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_value_in_any_member(targets: dict[str, Target], name: str, data: st.DataObject) -> None:
    document = json.loads(data.draw(st.sampled_from(targets[name].seeds)))
    del document["digest"]
    document[data.draw(st.sampled_from(sorted(document)))] = data.draw(JSON)
    _, _, failure = execute(targets[name], seal(to_text(document)))
    assert failure is None, f"{failure.why}\n{failure.trace}"


# --- the harness itself ------------------------------------------------------------------------------------------


def _target(run: Any) -> Target:
    return Target("planted", (b"seed",), lambda data, rng: rng.randbytes(4), run)


def _raise(error: BaseException) -> Any:
    def run(data: bytes) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "why"),
    [
        (_raise(TypeError("unhashable")), "TypeError"),
        (_raise(RecursionError()), "RecursionError"),
        (_raise(OutsideRootError("../x")), "outside of the root"),
        (lambda data: Path("/etc/hostname").read_bytes(), "outside of the root"),
        (lambda data: warnings.warn("overflow", RuntimeWarning, stacklevel=1), "RuntimeWarning"),
        (lambda data: bytearray(2**30), "MemoryError"),
        (lambda data: sys.exit, ""),
    ],
)
def test_what_none_may_do_is_noticed(tmp_path: Path, run: Any, why: str) -> None:
    runner = Runner({"planted": _target(run)}, tmp_path, processes=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads: the child does little
        ((_, _, _, result),) = runner.run(iter([("planted", 0, 3)]))
    assert result.executions == 3
    assert [failure.why.startswith(why) for failure in result.failures.values()] == [True] * bool(why)


def test_a_process_that_dies_leaves_its_input(tmp_path: Path) -> None:
    import os
    import signal

    def run(data: bytes) -> None:
        if data[0] < 128:
            os.kill(os.getpid(), signal.SIGKILL)

    runner = Runner({"planted": _target(run)}, tmp_path, processes=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        ((_, _, _, result),) = runner.run(iter([("planted", 0, 1000)]))
    (failure,) = result.failures.values()
    assert failure.why == f"the process died with signal {signal.SIGKILL.value}"
    assert failure.data[0] < 128


def test_the_same_seeds_give_the_same_inputs(targets: dict[str, Target], folder: Path) -> None:
    for name in ("record", "shard.jpeg", "journal"):
        one, two = (
            [targets[name].mutate(targets[name].seeds[0], random.Random(seed)) for seed in range(20)]  # noqa: S311
            for _ in range(2)
        )
        assert one == two
        assert len(set(one)) > 10


def test_slow_executions_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.execution.MAX_SECONDS", 0.0)
    result = run_range(_target(lambda data: sum(range(1000))), 0, 2, root=tmp_path)
    assert [failure.why.startswith("slow") for failure in result.failures.values()] == [True]


def test_the_plan_gives_each_target_its_part(targets: dict[str, Target]) -> None:
    wanted = plan(targets, 10_000_000)
    assert min(wanted.values()) >= 200_000
    assert 10_000_000 <= sum(wanted.values()) < 10_000_100
    chunks = list(chunks_of(wanted, {"record": [[0, 5_000]]}))
    assert ("record", 0, 5_000) not in chunks
    assert sum(count for _, _, count in chunks) == sum(wanted.values()) - 5_000


def test_keys_that_lead_outside_are_noticed() -> None:
    for key in ("../a", "a/../b", "/etc/passwd", "a//b", "a/\0"):
        with pytest.raises(OutsideRootError):
            checked(key)
    assert checked("_salus/log/0/0000000000.json")


def test_the_note_is_read_back() -> None:
    box = memoryview(bytearray(64))
    note(box, 7, b"input")
    assert noted(box) == (7, b"input")
