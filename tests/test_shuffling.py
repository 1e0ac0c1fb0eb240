"""Orders of an epoch: each sample once, at random, the same from anywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salus.errors import InvalidInputError
from salus.shuffling import BlockShuffled, InOrder, Shuffled, Weighted


@given(st.integers(0, 3000), st.integers(0, 2**70), st.integers(0, 1000))
def test_a_shuffled_order_takes_each_sample_once(num_samples: int, seed: int, epoch: int) -> None:
    samples = Shuffled(num_samples, seed=seed, epoch=epoch).at(np.arange(num_samples))
    assert sorted(samples.tolist()) == list(range(num_samples))


@settings(deadline=None)  # many tiny groups take their time
@given(st.integers(1, 3000), st.integers(1, 70), st.integers(1, 20), st.integers(0, 9))
def test_a_block_shuffled_order_takes_each_sample_once(n: int, block_size: int, mixed_blocks: int, epoch: int) -> None:
    order = BlockShuffled(n, block_size=block_size, mixed_blocks=mixed_blocks, seed=1, epoch=epoch)
    assert sorted(order.at(np.arange(n)).tolist()) == list(range(n))


@given(st.lists(st.integers(0, 10**9 - 1), max_size=50))
def test_any_place_gives_the_same_sample_by_itself(places: list[int]) -> None:
    order = Shuffled(10**9, seed=3, epoch=1)
    at_once = order.at(np.array(places, np.int64))
    assert at_once.tolist() == [int(order.at(np.array([place]))[0]) for place in places]
    assert ((at_once >= 0) & (at_once < 10**9)).all()


def test_every_permutation_of_four_comes_about_as_often() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(2400):
        permutation = tuple(Shuffled(4, seed=seed, epoch=0).at(np.arange(4)).tolist())
        counts[permutation] = counts.get(permutation, 0) + 1
    assert len(counts) == 24
    chi_square = sum((count - 100) ** 2 / 100 for count in counts.values())
    assert chi_square < 49.7  # 23 degrees of freedom: 99.9 %


def test_neighbours_do_not_stay_together_and_epochs_differ() -> None:
    first, second = (Shuffled(20_000, seed=0, epoch=epoch).at(np.arange(20_000)) for epoch in (0, 1))
    for order in (first, second):
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.03
        assert abs(np.corrcoef(np.arange(20_000), order)[0, 1]) < 0.03
        assert (np.abs(np.diff(order)) == 1).mean() < 0.001
    assert (first == second).mean() < 0.001
    other_seed = Shuffled(20_000, seed=1, epoch=0).at(np.arange(20_000))
    assert (first == other_seed).mean() < 0.001


def test_a_block_shuffled_batch_comes_from_few_neighbourhoods_and_is_mixed() -> None:
    order = BlockShuffled(100_000, block_size=32, mixed_blocks=64, seed=0, epoch=0)
    samples = order.at(np.arange(2048))
    shifted = (samples - samples.min()) % 100_000
    assert len(np.unique(samples)) == 2048
    assert np.array_equal(np.sort(samples), order.mixed(0))
    # 64 whole blocks of 32 neighbours
    borders = np.flatnonzero(np.diff(np.sort(samples)) > 1)
    assert len(borders) + 1 <= 65
    assert (np.abs(np.diff(shifted)) == 1).mean() < 0.01
    next_epoch = BlockShuffled(100_000, block_size=32, mixed_blocks=64, seed=0, epoch=1).at(np.arange(2048))
    assert set(samples.tolist()) != set(next_epoch.tolist())


def test_in_order() -> None:
    assert InOrder(5).at(np.array([3, 0])).tolist() == [3, 0]
    assert len(InOrder(5)) == 5


def test_weights_of_samples_and_of_groups_are_met() -> None:
    by_sample = Weighted(np.array([1.0, 0, 3]), num_samples=40_000, seed=0, epoch=0)
    shares = np.bincount(by_sample.at(np.arange(40_000)), minlength=3) / 40_000
    np.testing.assert_allclose(shares, [0.25, 0, 0.75], atol=0.01)
    by_group = Weighted(np.array([1.0, 0, 1]), sizes=np.array([2, 5, 8]), num_samples=40_000, seed=0, epoch=0)
    shares = np.bincount(by_group.at(np.arange(40_000)), minlength=15) / 40_000
    np.testing.assert_allclose(shares, [*[0.25] * 2, *[0] * 5, *[0.0625] * 8], atol=0.01)
    again = Weighted(np.array([1.0, 0, 3]), num_samples=40_000, seed=0, epoch=1).at(np.arange(100))
    assert again.tolist() != by_sample.at(np.arange(100)).tolist()


@pytest.mark.parametrize("weights", [[-1.0, 2], [0.0, 0], [np.nan, 1], [np.inf, 1], [[1.0]]])
def test_weights_that_are_none(weights: list[float]) -> None:
    with pytest.raises(InvalidInputError, match="weights: got"):
        Weighted(np.array(weights), num_samples=1, seed=0, epoch=0)


def test_a_weight_on_nothing() -> None:
    with pytest.raises(InvalidInputError, match="an episode without samples"):
        Weighted(np.array([1.0, 1]), sizes=np.array([3, 0]), num_samples=1, seed=0, epoch=0)
