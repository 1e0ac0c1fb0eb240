"""One of several writer processes: `python -m tests.faults.writers record PATH FIRST_SEED COUNT` or `… create`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import salus

from .scenario import SCHEMA, looped_length, make_episode


def record(path: Path, first_seed: int, count: int) -> None:
    """Record `count` episodes; a line of JSON for each when it is committed."""
    dataset = salus.open(path, mode="a")
    print("ready", flush=True)  # noqa: T201 - this is how it answers
    sys.stdin.readline()
    with salus.Recorder(dataset) as recorder:
        for seed in range(first_seed, first_seed + count):
            entry = recorder.record_episode(make_episode(seed, looped_length(seed)), {"seed": seed})
            print(json.dumps([seed, entry.slot, entry.uid]), flush=True)  # noqa: T201


def create() -> None:
    """Create the dataset that each line of stdin names, and say how it went."""
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        try:
            dataset = salus.create(line.strip(), SCHEMA, exist_ok=True)
            answer = f"{len(dataset)} episodes"
        except Exception as error:  # noqa: BLE001 - the test is to see it
            answer = repr(error)
        print(answer, flush=True)  # noqa: T201


if __name__ == "__main__":
    if sys.argv[1] == "record":
        record(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        create()
