"""Jobs done ahead by threads, their results in order, and never more ahead than a budget allows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Value = TypeVar("Value")


def read_ahead(jobs: Iterable[tuple[int, Callable[[], Value]]], *, threads: int, budget: int) -> Iterator[Value]:
    """The results of all jobs, in order.

    Args:
        jobs: Cost and function of each; taken one by one, as they come into the budget.
        threads: How many run at once.
        budget: The cost of all jobs that run or whose result waits, together; one job always runs.

    Raises:
        Exception: What a job raised, in its turn. The jobs after it are given up.
    """
    waiting, started = iter(jobs), deque[tuple[int, Future[Value]]]()
    ahead, following = 0, next(waiting, None)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="salus-scan")
    try:
        while following is not None or started:
            while following is not None and (not started or ahead + following[0] <= budget):
                cost, job = following
                started.append((cost, pool.submit(job)))
                ahead, following = ahead + cost, next(waiting, None)
            cost, done = started.popleft()
            value = done.result()
            ahead -= cost
            yield value
            del value, done  # what the caller has dropped is not held here
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
