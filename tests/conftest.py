"""Shared fixtures: a small schema, whole episodes as arrays, and a dataset that already holds a few."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus

from .cloud import servers

Arrays = dict[str, np.ndarray]

# A shell ignores SIGINT in what it runs in the background, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


Stores = Callable[[str], servers.Server]


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    """Object stores by name, each started when it is first asked for."""
    started: dict[str, servers.Server] = {}
    with ExitStack() as stack:

        def store(name: str) -> servers.Server:
            pytest.importorskip("obstore", reason="the extra `cloud` is not installed")
            if reason := servers.missing(name):
                if os.environ.get("CI"):
                    pytest.fail(reason)
                pytest.skip(reason)
            if name not in started:
                started[name] = stack.enter_context(servers.running(name, tmp_path_factory.mktemp(name)))
            return started[name]

        yield store


@pytest.fixture
def schema() -> salus.Schema:
    """One small camera, states and actions at 50 Hz; short segments so that tests cross their borders."""
    return salus.Schema(
        {
            "images": salus.Image(height=12, width=10),
            "states": salus.Feature(shape=(7,), dtype="float32", unit="rad"),
            "actions": salus.Feature(shape=(3,), dtype="float32"),
        },
        rate_hz=50,
        failure_kinds=("collision", "drop"),
        horizons=(2, 5),
        segment_steps=16,
    )


def make_arrays(num_steps: int, seed: int = 0) -> Arrays:
    """One episode for the `schema` fixture: images (T, 3, 12, 10), states (T, 7), actions (T, 3)."""
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(0, 256, (num_steps, 3, 12, 10), dtype=np.uint8),
        "states": rng.normal(size=(num_steps, 7)).astype(np.float32),
        "actions": rng.normal(size=(num_steps, 3)).astype(np.float32),
    }


def steps_of(arrays: Arrays) -> Iterator[dict[str, Any]]:
    """The same episode step by step, as a robot would hand it over."""
    for step in range(len(next(iter(arrays.values())))):
        yield {name: values[step] for name, values in arrays.items()}


@pytest.fixture
def arrays() -> Callable[..., Arrays]:
    return make_arrays


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.zarr"


LENGTHS = (20, 5, 16, 33, 40)
OUTCOMES: tuple[Any, ...] = (
    "success",
    salus.Outcome("failure", kind="drop", step=3),
    None,
    salus.Outcome("failure", kind="collision", step=30),
    "success",
)


@pytest.fixture
def source() -> list[Arrays]:
    """What `dataset` was recorded from."""
    return [make_arrays(num_steps, seed) for seed, num_steps in enumerate(LENGTHS)]


@pytest.fixture
def dataset(path: Path, schema: salus.Schema, source: list[Arrays]) -> salus.Dataset:
    """Five recorded episodes (success, drop at 3, unknown, collision at 30, success), opened for reading."""
    with salus.Recorder(salus.create(path, schema)) as recorder:
        for number, (episode_arrays, outcome) in enumerate(zip(source, OUTCOMES, strict=True)):
            recorder.record_episode(episode_arrays, {"task": f"task {number % 2}", "n": number}, outcome=outcome)
    return salus.open(path)
