"""A disk that refuses while episodes are recovered: a typed error, and recovering again brings everything back."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import salus

from .scenario import FailAt
from .test_recover_edges import check_salvaged, dead

STEPS = 6  # past the border of a segment


def recover_refused(path: Path, number: int, code: int, *, lasting: bool) -> dict[str, Any]:
    """Recover in a child whose n-th call that changes files fails, or all from there on; what it said."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        plain_write, answer = os.write, {"number_of_calls": 0, "error": "", "typed": True}
        try:
            failing = FailAt(number, code, lasting=lasting)
            failing.install()
            try:
                salus.recover(path)
            except Exception as error:  # noqa: BLE001 - the test is to see it
                answer |= {"error": repr(error), "typed": isinstance(error, salus.RecordingError)}
            answer["number_of_calls"] = len(failing.calls)
            plain_write(writing, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = json.loads(pipe.read())
    os.waitpid(child, 0)
    return dict(answer)


@pytest.mark.parametrize("lasting", [False, True])
def test_a_full_disk_while_recovering_costs_a_typed_error_and_nothing_else(memory_path: Path, lasting: bool) -> None:
    left = memory_path / "left.zarr"
    dead(left, STEPS)
    number = refused = 0
    while True:
        number += 1
        path = memory_path / "data.zarr"
        shutil.copytree(left, path)
        answer = recover_refused(path, number, errno.ENOSPC if number % 2 else errno.EIO, lasting=lasting)
        assert answer["typed"], (number, answer)
        refused += bool(answer["error"])
        for found in salus.recover(path).episodes:  # with room again
            assert (found.action, found.num_steps, found.lost_steps) == ("salvaged", STEPS, 0), (number, answer)
        check_salvaged(path, STEPS, STEPS)
        assert salus.open(path).unfinished() == []
        shutil.rmtree(path)
        if answer["number_of_calls"] < number:
            break
    assert refused > 10
