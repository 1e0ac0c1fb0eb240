"""A cut of the soak, 12 seconds of it; `python -m tests.faults.soak 30` is the whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .soak import GROWTH_BYTES, SOME_DESCRIPTORS, Sample, check_growth


def test_nothing_is_lost_and_no_descriptors_are_kept_while_others_die() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults.soak", "0.2"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "none lost" in done.stdout


def test_the_soak_sees_what_grows() -> None:
    fresh = [Sample(7 * GROWTH_BYTES, 10, 0)] * 3
    check_growth("flat", [Sample(7 * GROWTH_BYTES, 10, 0)] * 8, fresh)
    check_growth("with the dataset", [Sample(number * GROWTH_BYTES, 10, 0) for number in range(8)], fresh)
    with pytest.raises(AssertionError, match="descriptors"):
        check_growth("descriptors", [Sample(50, 10 + number * SOME_DESCRIPTORS, 0) for number in range(8)], fresh)
    with pytest.raises(AssertionError, match="expected at most"):
        check_growth("memory", [Sample(number * GROWTH_BYTES, 10, 0) for number in range(11)], fresh)
