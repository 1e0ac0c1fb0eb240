"""Windows: which step of which episode a sample is, and what is held at the borders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from salus.errors import InvalidInputError
from salus.windows import WindowIndex, parse_offsets


def pairs(index: WindowIndex, samples: Any = None) -> list[tuple[int, int]]:
    samples = np.arange(len(index)) if samples is None else np.asarray(samples)
    episodes, steps = index.locate(samples)
    assert episodes.dtype == steps.dtype == np.int64
    return list(zip(episodes.tolist(), steps.tolist(), strict=True))


@pytest.mark.parametrize("lengths", [[3, 1, 2], [0, 3, 0, 0, 2, 0], [1], [5, 0]])
def test_samples_are_all_steps_in_order(lengths: list[int]) -> None:
    index = WindowIndex(lengths)
    assert pairs(index) == [(episode, step) for episode, length in enumerate(lengths) for step in range(length)]


def test_only_valid_steps_are_sampled() -> None:
    valid = [np.array([0, 1, 1, 0], bool), np.zeros(2, bool), np.array([1, 0, 1], bool)]
    index = WindowIndex([4, 2, 3], valid)
    assert pairs(index) == [(0, 1), (0, 2), (2, 0), (2, 2)]
    assert pairs(index, [3, 0, 3]) == [(2, 2), (0, 1), (2, 2)]


def test_nothing_to_sample() -> None:
    for index in (WindowIndex([]), WindowIndex([0, 0]), WindowIndex([], []), WindowIndex([2], [np.zeros(2, bool)])):
        assert len(index) == 0
        assert pairs(index, []) == []
        with pytest.raises(IndexError, match="sample 0: out of range, there are 0"):
            index.locate(np.array([0]))


@pytest.mark.parametrize("sample", [-1, 6, 2**40])
def test_samples_out_of_range_are_refused(sample: int) -> None:
    with pytest.raises(IndexError, match=rf"sample {sample}: out of range, there are 6"):
        WindowIndex([3, 1, 2]).locate(np.array([0, sample]))


def test_windows_are_held_at_the_borders_of_their_episode() -> None:
    index = WindowIndex([3, 4])
    held, padded = index.window(np.array([0, 1, 1]), np.array([0, 3, 1]), np.array([-2, 0, 1]))
    assert held.tolist() == [[0, 0, 1], [1, 3, 3], [0, 1, 2]]
    assert padded.tolist() == [[True, False, False], [False, False, True], [True, False, False]]
    assert padded.dtype == bool


def test_an_episode_of_one_step_pads_everything_else() -> None:
    held, padded = WindowIndex([1]).window(np.array([0]), np.array([0]), np.arange(-2, 3))
    assert held.tolist() == [[0] * 5]
    assert padded.tolist() == [[True, True, False, True, True]]


@pytest.mark.parametrize(
    ("value", "offsets", "single"),
    [
        (0, [0], True),
        (np.int32(-3), [-3], True),
        ([-1, 0], [-1, 0], False),
        (range(3), [0, 1, 2], False),
        ((4,), [4], False),
        (np.array([2, 1], np.int8), [2, 1], False),
        (iter([5, 6]), [5, 6], False),
    ],
)
def test_offsets(value: Any, offsets: list[int], single: bool) -> None:
    parsed, is_single = parse_offsets("states", value)
    assert parsed.tolist() == offsets
    assert parsed.dtype == np.int64
    assert is_single is single


@pytest.mark.parametrize("value", [[], [0.5], "ab", [[1, 2]], [None], [True, False], True, range(0)])
def test_offsets_that_are_no_whole_numbers_are_refused(value: Any) -> None:
    with pytest.raises(InvalidInputError, match="window of 'states': got"):
        parse_offsets("states", value)


@pytest.mark.parametrize("value", [0.5, None])
def test_an_offset_that_is_no_number_at_all_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInputError):
        parse_offsets("states", value)
