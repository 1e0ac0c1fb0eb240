"""Times on clocks, against a slow and obvious search."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salus.clocks import COMPARED_AT_ONCE, METHODS, SLACK_NS, Seconds, interpolate, match_steps, match_times
from salus.errors import InvalidInputError

from .slow_clocks import slow_match

S = 10**9


clocks = st.builds(
    lambda start, gaps: (start + np.cumsum([0, *gaps])).tolist(),
    st.integers(0, 2 * 10**18),
    st.lists(st.one_of(st.integers(1, 50), st.integers(10**6, 10**8), st.just(20 * S)), max_size=30),
)


@given(
    rows=st.lists(clocks, min_size=1, max_size=5),
    places=st.lists(st.floats(-0.3, 1.3), min_size=1, max_size=6),
    nudge=st.integers(-2000, 2000),
    method=st.sampled_from(METHODS),
)
def test_times_are_matched_as_a_slow_search_does(
    rows: list[list[int]], places: list[float], nudge: int, method: str
) -> None:
    width = max(map(len, rows))
    stamps = np.array([row + row[-1:] * (width - len(row)) for row in rows])
    targets = np.array(
        [[row[0] + round(place * (row[-1] - row[0])) + nudge for place in places] for row in rows], np.int64
    )
    found = match_times(stamps, targets, method)
    for row, clock in enumerate(rows):
        for place, target in enumerate(targets[row].tolist()):
            got = tuple(values[row, place].item() for values in found)
            assert got == pytest.approx(slow_match(clock, target, method))


@pytest.mark.parametrize("method", METHODS)
def test_windows_of_many_entries_are_matched_the_same(method: str) -> None:
    rng = np.random.default_rng(0)
    rows = [np.cumsum(rng.integers(1, 5000, count)) for count in (300, 7, 1)]
    stamps = np.array([[*row, *row[-1:].repeat(300 - len(row))] for row in rows])
    targets = np.concatenate([rng.integers(-9000, 800_000, (3, 90)), stamps[:, :20], stamps[:, :20] - SLACK_NS], axis=1)
    assert targets.shape[1] * stamps.shape[1] > COMPARED_AT_ONCE
    found = match_times(stamps, targets, method)
    for row, place in np.ndindex(targets.shape):
        got = tuple(values[row, place].item() for values in found)
        assert got == pytest.approx(slow_match(rows[row].tolist(), int(targets[row, place]), method))


@given(
    rows=st.lists(clocks, min_size=1, max_size=4),
    windows=st.lists(
        st.builds(Seconds, st.lists(st.floats(-30, 30), min_size=1, max_size=5), st.sampled_from(METHODS)),
        min_size=1,
        max_size=3,
    ),
    period_ns=st.sampled_from([1e3, 3.3e7, 1e10]),
    data=st.data(),
)
def test_steps_are_found_however_wrong_the_rate_is(
    rows: list[list[int]], windows: list[Seconds], period_ns: float, data: st.DataObject
) -> None:
    episodes = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6)))
    steps = np.array([data.draw(st.integers(0, len(rows[episode]) - 1)) for episode in episodes])

    def read(wanted: np.ndarray, at: np.ndarray) -> np.ndarray:
        return np.array([[rows[e][step] for step in line] for e, line in zip(wanted, at.tolist(), strict=True)])

    found = match_steps(
        windows,
        episodes,
        steps,
        lengths=np.array([len(rows[episode]) for episode in episodes]),
        periods_ns=np.full(len(episodes), period_ns),
        read_stamps=read,
    )
    for sample, (episode, step) in enumerate(zip(episodes.tolist(), steps.tolist(), strict=True)):
        for seconds, matched in zip(windows, found, strict=True):
            for place, offset in enumerate(seconds.offsets_ns.tolist()):
                got = tuple(values[sample, place].item() for values in matched)
                assert got == pytest.approx(slow_match(rows[episode], rows[episode][step] + offset, seconds.method))


def test_only_stamps_around_the_samples_are_read() -> None:
    stamps = np.arange(100_000) * (S // 30)
    read = 0

    def count(_: np.ndarray, steps: np.ndarray) -> np.ndarray:
        nonlocal read
        read += steps.size
        return stamps[steps]

    lengths, samples = np.array([100_000, 100_000]), np.array([70_000, 3])
    (found,) = match_steps(
        [Seconds([-0.1, 0.5])],
        np.zeros(2, np.int64),
        samples,
        lengths=lengths,
        periods_ns=np.full(2, S / 30),
        read_stamps=count,
    )
    assert found.lower.tolist() == [[69_997, 70_015], [0, 18]]
    assert read < 100


def test_steps_within_the_slack_are_all_seen() -> None:
    stamps = np.arange(40) * 100
    (found,) = match_steps(
        [Seconds(0.0, "previous")],
        np.zeros(1, np.int64),
        np.array([5]),
        lengths=np.array([40]),
        periods_ns=np.array([1e9]),
        read_stamps=lambda _, steps: stamps[steps],
    )
    assert found.lower.tolist() == [[15]]


def test_nearest_takes_the_earlier_of_two_and_jitter_moves_nothing() -> None:
    stamps = np.array([[0, 10, 20, 30]])
    assert match_times(stamps, np.array([[15, 16, 4, 26]]), "nearest").lower.tolist() == [[1, 2, 0, 3]]
    jittered = np.arange(20) * 33_333_333 + np.random.default_rng(0).integers(-5_000_000, 5_000_000, 20)
    targets = jittered[2:12, None] + np.array([0, 100_000_000])
    found = match_times(np.repeat(jittered[None], 10, 0), targets, "nearest")
    assert found.lower.tolist() == [[step, step + 3] for step in range(2, 12)]


def test_previous_never_looks_ahead_but_for_rounding() -> None:
    stamps = np.array([[0, 33_333_333, 66_666_667]])
    targets = np.array([[33_333_332, 66_666_666, 66_666_667 - 1_001, 66_666_667 + 10]])
    assert match_times(stamps, targets, "previous").lower.tolist() == [[1, 2, 1, 2]]


def test_half_a_step_outside_is_no_padding() -> None:
    found = match_times(np.array([[100, 110, 140]]), np.array([[95, 94, 155, 156]]), "nearest")
    assert found.lower.tolist() == [[0, 0, 2, 2]]
    assert found.is_pad.tolist() == [[False, True, False, True]]
    single = match_times(np.array([[100]]), np.array([[99, 100, 101]]), "linear")
    assert single.is_pad.tolist() == [[True, False, True]]


def test_interpolation_keeps_exact_hits_and_the_dtype() -> None:
    lower = np.array([[[1.0, np.inf], [2.0, np.nan]]], np.float32)
    upper = np.array([[[3.0, np.inf], [np.inf, 5.0]]], np.float32)
    mixed = interpolate(lower, upper, np.array([[0.25, 0.0]]))
    assert mixed.dtype == np.float32
    np.testing.assert_array_equal(mixed, np.array([[[1.5, np.inf], [2.0, np.nan]]], np.float32))
    large = np.full((1, 1), 3e38, np.float32)
    np.testing.assert_allclose(interpolate(large, -large, np.full((1, 1), 0.5)), 0)


@pytest.mark.parametrize(
    ("value", "offsets_ns", "single"),
    [
        (0.1, [100_000_000], True),
        (0, [0], True),
        (np.float32(0.5), [500_000_000], True),
        ([-0.1, 0, 1 / 3], [-100_000_000, 0, 333_333_333], False),
        (np.linspace(0, 1, 3), [0, 500_000_000, S], False),
        (range(2), [0, S], False),
    ],
)
def test_offsets_in_seconds(value: Any, offsets_ns: list[int], single: bool) -> None:
    seconds = Seconds(value)
    assert (seconds.offsets_ns.tolist(), seconds.single, seconds.method) == (offsets_ns, single, "nearest")
    assert seconds.offsets_ns.dtype == np.int64
    assert seconds == Seconds(value) != Seconds(value, "linear")
    assert hash(seconds) == hash(Seconds(value))
    assert pickle.loads(pickle.dumps(seconds)) == seconds  # noqa: S301 - our own


@pytest.mark.parametrize("value", [[], "0.1", None, [None], np.nan, [0.0, np.inf], 1e9, [[0.1]], True, [True]])
def test_offsets_that_are_no_seconds_are_refused(value: Any) -> None:
    with pytest.raises(InvalidInputError, match="Seconds: got"):
        Seconds(value)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="method: got 'closest', expected one of 'nearest', 'previous'"):
        Seconds(0.1, "closest")  # type: ignore[arg-type]
