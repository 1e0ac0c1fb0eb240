"""Bounded caches: values used last, and decoded chunks side by side."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from salus.caches import Cache, ChunkBlock


def test_the_values_used_last_stay() -> None:
    cache: Cache[str] = Cache(6, len)
    made: list[str] = []

    def get(key: str) -> str:
        def make() -> str:
            made.append(key)
            return key * 2

        return cache.get(key, make)

    for key in "abcabdab":
        assert get(key) == key * 2
    assert "".join(made) == "abcd"  # d pushed c out
    get("c")
    assert "".join(made) == "abcdc"
    cache.drop(lambda key: key == "c")
    get("c")
    assert "".join(made) == "abcdcc"


def test_what_is_kept_counts_and_what_is_found_stays() -> None:
    cache: Cache[str] = Cache(6, len)
    for key in "abc":
        assert cache.find(key) is None
        cache.keep(key, key * 2)
    assert cache.find("a") == "aa"
    cache.keep("d", "dd")  # pushes b out
    assert [cache.find(key) for key in "abcd"] == ["aa", None, "cc", "dd"]
    cache.keep("a", "aaaa")  # kept twice, by two threads: counts once, and pushes c out
    assert [cache.find(key) for key in "abcd"] == ["aaaa", None, None, "dd"]


def test_a_failure_reaches_a_thread_that_waits_for_it() -> None:
    cache: Cache[int] = Cache(10, lambda _: 1)
    at_it, go = threading.Event(), threading.Event()
    failures: list[str] = []

    def make() -> int:
        at_it.set()
        go.wait(10)
        raise ValueError("no")

    def want() -> None:
        try:
            cache.get("key", make)
        except ValueError as error:
            failures.append(str(error))

    first, second = threading.Thread(target=want), threading.Thread(target=want)
    first.start()
    at_it.wait(10)
    second.start()
    while cache._making["key"] is None and second.is_alive():
        threading.Event().wait(0.001)
    go.set()
    first.join()
    second.join()
    assert failures == ["no", "no"]
    assert cache.get("key", lambda: 7) == 7


def test_a_value_that_several_threads_want_is_made_once_and_a_failure_reaches_all() -> None:
    cache: Cache[int] = Cache(10, lambda _: 1)
    started, go = threading.Barrier(4), threading.Event()
    made, seen, failures = [], [], []

    def make() -> int:
        made.append(1)
        go.wait(10)
        return 5

    def want() -> None:
        started.wait(10)
        seen.append(cache.get("key", make))

    threads = [threading.Thread(target=want) for _ in range(3)]
    for thread in threads:
        thread.start()
    started.wait(10)
    threading.Event().wait(0.1)  # so that the others wait for the first
    go.set()
    for thread in threads:
        thread.join()
    assert (made, seen) == ([1], [5, 5, 5])

    def fail() -> int:
        failures.append(1)
        raise ValueError("no")

    for _ in range(2):  # a failure is not kept
        with pytest.raises(ValueError, match="no"):
            cache.get("other", fail)
    assert len(failures) == 2


def test_a_block_of_chunks() -> None:
    block = ChunkBlock((4, 2), np.dtype("float32"), 3)
    places = block.reserve(2)
    assert places == range(2)
    block.chunks(1, 1)[:] = 7
    block.know("b", 1)
    assert block.find(["a", "b"]) == [-1, 1]
    assert (block.steps[4:8] == 7).all()
    assert block.reserve(2) is None
    assert block.reserve(1) == range(2, 3)
    assert block.steps.shape == (12, 2)
    assert len(block) == 3
