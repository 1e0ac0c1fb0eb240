"""Windows: which step of which episode a sample is, and what is held at the borders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from salus.clocks import Seconds
from salus.errors import InvalidInputError
from salus.windows import Bounds, Window, WindowIndex, check_count, ends_of, step_bounds, time_bounds


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
    window = Window.parse("states", value)
    assert window.offsets.tolist() == offsets
    assert window.offsets.dtype == np.int64
    assert window.single is single
    assert window.seconds is None


@pytest.mark.parametrize("value", [[], [0.5], "ab", [[1, 2]], [None], [True, False], True, range(0), 0.5, None])
def test_offsets_that_are_no_whole_numbers_are_refused(value: Any) -> None:
    with pytest.raises(InvalidInputError, match="window of 'states': got"):
        Window.parse("states", value)


def test_offsets_in_seconds_are_kept_as_nanoseconds() -> None:
    window = Window.parse("states", Seconds([-0.1, 0.25], "linear"))
    assert window.offsets.tolist() == [-100_000_000, 250_000_000]
    assert str(window) == "[-0.1, 0.25] s"
    assert Window.parse("states", Seconds(0.5)).single


# --- stride and padding -----------------------------------------------------------------------------------------

pads = st.one_of(st.none(), st.integers(0, 6))
offset_lists = st.lists(st.integers(-8, 8), min_size=1, max_size=6, unique=True)


def slow_samples(
    lengths: list[int],
    windows: list[list[int]],
    pad_before: int | None,
    pad_after: int | None,
    stride: int,
    valid: list[np.ndarray] | None,
) -> list[tuple[int, int]]:
    """Every sample, by counting the padded entries of every window of every step."""
    samples = []
    for episode, length in enumerate(lengths):
        allowed = [
            step
            for step in range(length)
            if all(
                (pad_before is None or sum(step + offset < 0 for offset in offsets) <= pad_before)
                and (pad_after is None or sum(step + offset >= length for offset in offsets) <= pad_after)
                for offsets in windows
            )
        ]
        samples += [(episode, step) for step in allowed[::stride] if valid is None or valid[episode][step]]
    return samples


@given(
    lengths=st.lists(st.integers(0, 20), max_size=5),
    windows=st.lists(offset_lists, min_size=1, max_size=3),
    pad_before=pads,
    pad_after=pads,
    stride=st.integers(1, 7),
    masked=st.booleans(),
    seed=st.integers(0, 100),
)
@example([4], [[5]], None, 0, 1, True, 0)  # no step is allowed, and the last allowed one is negative
def test_stride_padding_and_masks_together(
    lengths: list[int],
    windows: list[list[int]],
    pad_before: int | None,
    pad_after: int | None,
    stride: int,
    masked: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    valid = [rng.random(length) < 0.6 for length in lengths] if masked else None
    parsed = [Window.parse("states", offsets) for offsets in windows]
    bounds = step_bounds(parsed, np.array(lengths, np.int64), pad_before, pad_after)
    index = WindowIndex(lengths, valid, bounds=bounds, stride=stride)
    expected = slow_samples(lengths, windows, pad_before, pad_after, stride, valid)
    assert pairs(index) == expected
    assert len(index) == len(expected)
    assert index.counts.tolist() == [sum(e == episode for e, _ in expected) for episode in range(len(lengths))]


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    n_obs_steps=st.integers(1, 4),
    horizon=st.integers(4, 20),
    data=st.data(),
)
def test_padding_is_that_of_diffusion_policy(
    lengths: list[int], n_obs_steps: int, horizon: int, data: st.DataObject
) -> None:
    n_action_steps = data.draw(st.integers(1, horizon - n_obs_steps + 1))
    pad_before, pad_after = n_obs_steps - 1, n_action_steps - 1
    sequences = [  # as its SequenceSampler counts them: a sequence of `horizon` steps starts here
        (episode, start)
        for episode, length in enumerate(lengths)
        for start in range(-pad_before, length - horizon + pad_after + 1)
    ]
    windows = [
        Window.parse("states", range(1 - n_obs_steps, 1)),
        Window.parse("actions", range(1 - n_obs_steps, 1 - n_obs_steps + horizon)),
    ]
    index = WindowIndex(lengths, bounds=step_bounds(windows, np.array(lengths), pad_before, pad_after))
    assert [(episode, step + 1 - n_obs_steps) for episode, step in pairs(index)] == sequences


@given(
    gaps=st.lists(st.integers(1, 1000), max_size=25),
    offsets=st.lists(st.integers(-6000, 6000), min_size=1, max_size=5, unique=True),
    pad_before=pads,
    pad_after=pads,
)
def test_padding_of_windows_in_seconds(
    gaps: list[int], offsets: list[int], pad_before: int | None, pad_after: int | None
) -> None:
    stamps = np.cumsum([5 * 10**9, *gaps])
    window = Window.parse("states", Seconds([offset / 1e9 for offset in offsets]))
    start = stamps[0] - (gaps[0] // 2 if gaps else 0)
    stop = stamps[-1] + (gaps[-1] // 2 if gaps else 0)
    expected = [
        step
        for step, stamp in enumerate(stamps.tolist())
        if (pad_before is None or sum(stamp + offset < start for offset in offsets) <= pad_before)
        and (pad_after is None or sum(stamp + offset > stop for offset in offsets) <= pad_after)
    ]
    first, last = time_bounds([(window, stamps[ends_of(len(stamps))])], stamps, pad_before, pad_after)
    assert list(range(first, last + 1)) == expected


def test_bounds_narrow_each_other() -> None:
    narrow = Bounds(np.array([0, 3]), np.array([9, 4])).within(Bounds(np.array([2, 0]), np.array([9, 9])))
    assert (narrow.first.tolist(), narrow.last.tolist()) == ([2, 3], [9, 4])


def test_indexes_with_other_samples_have_other_fingerprints() -> None:
    lengths = [6, 4]
    bounds = Bounds(np.array([1, 0]), np.array([5, 2]))
    shifted = Bounds(np.array([0, 1]), np.array([4, 3]))
    valid = [np.ones(6, bool), np.ones(4, bool)]
    indexes = [
        WindowIndex(lengths),
        WindowIndex(lengths, bounds=bounds),
        WindowIndex(lengths, bounds=shifted),
        WindowIndex(lengths, stride=2),
        WindowIndex(lengths, stride=3),
        WindowIndex(lengths, [np.arange(6) % 2 == 0, np.arange(4) > 0]),
        WindowIndex(lengths, [np.arange(6) % 2 == 1, np.arange(4) > 0]),
    ]
    assert len({index.fingerprint() for index in indexes}) == len(indexes)
    assert WindowIndex(lengths, valid).fingerprint() == WindowIndex(lengths, valid).fingerprint()


def test_counts_are_checked() -> None:
    check_count("stride", 3, least=1)
    check_count("pad_before", None, least=0, optional=True)
    for value in (0, True, 1.0, "2", None):
        with pytest.raises(InvalidInputError, match=f"stride: got {value!r}, expected a whole number of at least 1$"):
            check_count("stride", value, least=1)  # type: ignore[arg-type]
