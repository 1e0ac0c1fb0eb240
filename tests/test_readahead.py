"""Jobs done ahead: in order, within the budget, given up after an error."""

from __future__ import annotations

import threading
import time

import pytest

from salus.readahead import read_ahead


def test_results_come_in_order_and_never_more_ahead_than_the_budget() -> None:
    lock, taken, most = threading.Lock(), 0, 0
    given = 0

    def job(number: int) -> int:
        nonlocal most
        with lock:
            most = max(most, taken - given)
        time.sleep(0.001 * (number % 3))
        return number

    def jobs():  # type: ignore[no-untyped-def]
        nonlocal taken
        for number in range(40):
            taken += 10
            yield 10, lambda number=number: job(number)

    seen = []
    for value in read_ahead(jobs(), threads=3, budget=50):
        given += 10
        seen.append(value)
    assert seen == list(range(40))
    assert most <= 60  # the budget, and the one job that is taken but does not fit yet


def test_a_job_larger_than_the_budget_runs_alone() -> None:
    assert list(read_ahead([(100, lambda: 1), (100, lambda: 2)], threads=2, budget=10)) == [1, 2]


def test_an_error_comes_in_its_turn() -> None:
    def fail() -> int:
        raise ValueError("third")

    values = read_ahead([(1, lambda: 1), (1, lambda: 2), (1, fail), (1, lambda: 4)], threads=2, budget=10)
    assert [next(values), next(values)] == [1, 2]
    with pytest.raises(ValueError, match="third"):
        next(values)
