"""Orders of an epoch: which sample comes at which place. Pure: no files, no torch.

An order is a function of seed, epoch and place. It needs no list of all samples, so it costs the same for ten samples
and for a billion, starts anywhere at once, and gives the same samples to any number of ranks and threads.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .errors import InvalidInputError

_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


class Order(Protocol):
    """The samples of one epoch."""

    def __len__(self) -> int:
        """Places in the epoch."""
        ...

    def at(self, places: np.ndarray) -> np.ndarray:
        """The samples at these places: int64 (n,) to int64 (n,)."""
        ...


class InOrder:
    """Sample 0, sample 1, and so on."""

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples

    def __len__(self) -> int:
        return self._num_samples

    def at(self, places: np.ndarray) -> np.ndarray:
        """The places themselves."""
        return places


class Shuffled:
    """A random order in which each sample comes once: a keyed permutation.

    A Feistel network over pairs (l, r) of Z_a × Z_b with a·b ≥ n: each round adds a hash of one half to the other,
    which can be undone, so that the whole is one to one. A place beyond n is sent through again until it is not.
    """

    def __init__(self, num_samples: int, *, seed: int, epoch: int) -> None:
        self._num_samples = num_samples
        self._left = max(1, int(np.ceil(np.sqrt(num_samples))))
        self._right = max(1, -(-num_samples // self._left))
        self._keys = [_key(seed, epoch, number) for number in range(_ROUNDS)]

    def __len__(self) -> int:
        return self._num_samples

    def at(self, places: np.ndarray) -> np.ndarray:
        """The samples at these places."""
        samples = self._permuted(places.astype(np.uint64))
        outside = samples >= self._num_samples
        while outside.any():
            samples[outside] = self._permuted(samples[outside])
            outside = samples >= self._num_samples
        return samples.astype(np.int64)

    def _permuted(self, values: np.ndarray) -> np.ndarray:
        a, b = np.uint64(self._left), np.uint64(self._right)
        left: np.ndarray = values // b
        right: np.ndarray = values % b
        for number, key in enumerate(self._keys):
            if number % 2:
                right = (right + _mixed(left + np.uint64(key)) % b) % b
            else:
                left = (left + _mixed(right + np.uint64(key)) % a) % a
        permuted: np.ndarray = left * b + right
        return permuted


class BlockShuffled:
    """A random order that reads neighbours together: for cold disks, and for buckets.

    Blocks of consecutive samples are shuffled, then the samples of `mixed_blocks` blocks at a time. Where the blocks
    begin differs from epoch to epoch.

    Args:
        num_samples: n.
        block_size: Consecutive samples per block.
        mixed_blocks: Blocks whose samples are mixed: a batch is drawn from `block_size * mixed_blocks` samples.
        seed: Another seed, another order.
        epoch: Another epoch, another order.
    """

    def __init__(self, num_samples: int, *, block_size: int, mixed_blocks: int, seed: int, epoch: int) -> None:
        self._num_samples = num_samples
        self._block_size = block_size
        self.mixed_samples = block_size * mixed_blocks
        self._blocks = Shuffled(num_samples // block_size, seed=seed, epoch=epoch)
        self._shift = _key(seed, epoch, -1) % max(1, num_samples)
        self._seed, self._epoch = seed, epoch

    def __len__(self) -> int:
        return self._num_samples

    def at(self, places: np.ndarray) -> np.ndarray:
        """The samples at these places."""
        groups = places // self.mixed_samples
        within = np.empty_like(places)
        for group in np.unique(groups):
            chosen = groups == group
            first = int(group) * self.mixed_samples
            size = min(self.mixed_samples, self._num_samples - first)
            mixed = Shuffled(size, seed=_key(self._seed, self._epoch, -2), epoch=int(group))
            within[chosen] = first + mixed.at(places[chosen] - first)
        block, offset = np.divmod(within, self._block_size)
        whole = block < len(self._blocks)  # what is left over at the end is no block
        block[whole] = self._blocks.at(block[whole])
        samples: np.ndarray = (block * self._block_size + offset + self._shift) % self._num_samples
        return samples

    def mixed(self, group: int) -> np.ndarray:
        """All samples of the blocks that are mixed at places `group * mixed_samples` and on, in order."""
        first = group * self.mixed_samples
        ordered: np.ndarray = np.sort(self.at(np.arange(first, min(first + self.mixed_samples, self._num_samples))))
        return ordered


class Weighted:
    """Samples drawn by weight, with replacement.

    Args:
        weights: float (k,), not negative: of each sample, or of each group of consecutive samples.
        sizes: int64 (k,), samples of each group, drawn evenly; None where each weight is of one sample.
        num_samples: Draws per epoch.
        seed: Another seed, other draws.
        epoch: Another epoch, other draws.

    Raises:
        InvalidInputError: Weights that are negative, not finite, or all zero; or that fall on a group without samples.
    """

    def __init__(
        self, weights: np.ndarray, *, sizes: np.ndarray | None = None, num_samples: int, seed: int, epoch: int
    ) -> None:
        weights = np.asarray(weights, np.float64)
        if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum() > 0:
            raise InvalidInputError(
                f"weights: got {weights.dtype} {weights.shape}, expected finite numbers of at least 0, not all 0"
            )
        if sizes is not None and (weights[sizes == 0] > 0).any():
            raise InvalidInputError("weights: an episode without samples has a weight above 0; give it 0")
        self._ends = np.cumsum(weights)
        self._last = int(np.flatnonzero(weights)[-1])
        self._sizes = sizes
        self._starts = None if sizes is None else np.cumsum(sizes) - sizes
        self._num_samples = num_samples
        self._keys = _key(seed, epoch, -3), _key(seed, epoch, -4)

    def __len__(self) -> int:
        return self._num_samples

    def at(self, places: np.ndarray) -> np.ndarray:
        """The samples at these places."""
        chosen = np.searchsorted(self._ends, self._uniform(places, 0) * self._ends[-1], side="right")
        chosen = np.minimum(chosen, self._last)  # where rounding reaches the very end
        if self._sizes is None or self._starts is None:
            return np.asarray(chosen)
        within = self._uniform(places, 1) * self._sizes[chosen]
        samples: np.ndarray = self._starts[chosen] + within.astype(np.int64)
        return samples

    def _uniform(self, places: np.ndarray, number: int) -> np.ndarray:
        """float64 in [0, 1) by place."""
        bits = _mixed(_mixed(places.astype(np.uint64)) + np.uint64(self._keys[number])) >> np.uint64(11)
        return np.asarray(bits / 2.0**53)


def _key(seed: int, epoch: int, number: int) -> int:
    key = 0
    for value in (seed, epoch, number):
        key = int(_mixed(np.array([(key ^ (value * _GOLDEN)) & _MASK], np.uint64))[0])
    return key


def _mixed(values: np.ndarray) -> np.ndarray:
    """A hash of each uint64 (the finalizer of SplitMix64)."""
    values = values + np.uint64(_GOLDEN)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
