"""Where the values of a feature lie: exact histograms of uint8, and KLL sketches of everything else.

Both are small, and merge. The sketches are those of Apache DataSketches, in its portable byte format. Its parser trusts
what it is given (some bytes crash the process), so bytes out of a dataset are checked here before it sees them.
"""

from __future__ import annotations

import base64
import binascii
import functools
import itertools
import math
import struct
from typing import Any, Self

import numpy as np
from numcodecs import zstd

from .codecs import declared_size, decompress
from .errors import CorruptDataError

RECORD_K = 64
"""Accuracy of the sketches in a record: 428 bytes for 200 values."""

MERGED_K = 1024
"""Accuracy of the sketches that those of many episodes are merged into."""

_LEVELS = 256
_MAX_COUNT = 2**62
_M = 8  # the least capacity of a level; a constant of the format
_EMPTY, _SINGLE = 1, 4  # flags
_HEADER = struct.Struct("<BBBBHBx")
_FULL = struct.Struct("<QHBx")
_MAX_LEVELS = 60
_POWERS_OF_3: tuple[int, ...] = tuple(3**depth for depth in range(_MAX_LEVELS))


class Histogram:
    """How often each of the 256 values of uint8 comes, per channel. Exact.

    Args:
        counts: int64 (C, 256).
    """

    rank_error = 0.0

    def __init__(self, counts: np.ndarray) -> None:
        self.counts = counts

    @classmethod
    def empty(cls, size: int) -> Self:
        """Of `size` channels, without values."""
        return cls(np.zeros((size, _LEVELS), np.int64))

    def add(self, channel: int, values: np.ndarray) -> None:
        """Take in uint8 (n,) of one channel."""
        self.counts[channel] += np.bincount(values, minlength=_LEVELS)

    def merge(self, other: Self) -> None:
        """Take in what another one holds."""
        self.counts += other.counts

    def quantiles(self, channel: int, shares: np.ndarray) -> np.ndarray:
        """The least values that at least these shares of a channel's values do not exceed: float64 (q,)."""
        below = np.cumsum(self.counts[channel])
        places: np.ndarray = np.searchsorted(below, np.maximum(np.ceil(shares * below[-1]), 1))
        return places.astype(np.float64)

    def to_json(self) -> str:
        """Base64 of one zstd frame of uint64 (C, 256), little-endian."""
        return base64.b64encode(bytes(zstd.compress(self.counts.astype("<u8").tobytes(), 3))).decode()

    @classmethod
    def from_json(cls, document: Any, size: int) -> Self:
        """Raises ValueError unless the document is that of `size` channels."""
        packed = _bytes_of(document)
        if declared_size(packed) != size * _LEVELS * 8:  # before anything is allocated
            raise ValueError(f"a histogram of {declared_size(packed)} bytes, expected {size} × {_LEVELS} × 8")
        try:
            counts = decompress(packed, size * _LEVELS * 8).view("<u8").reshape(size, _LEVELS)
        except CorruptDataError as error:
            raise ValueError(f"a histogram that does not decompress: {error}") from error
        if (counts > _MAX_COUNT // _LEVELS).any():
            raise ValueError("a histogram that counts too much")
        return cls(counts.astype(np.int64))


class Sketches:
    """One KLL sketch per component.

    Args:
        sketches: Those of DataSketches, of floats or doubles.
        dtype: float32 or float64: what they hold.
    """

    def __init__(self, sketches: list[Any], dtype: np.dtype[Any]) -> None:
        self._sketches = sketches
        self._dtype = dtype

    @classmethod
    def empty(cls, size: int, dtype: np.dtype[Any], k: int) -> Self:
        """Of `size` components, without values."""
        return cls([_kind(dtype)(k) for _ in range(size)], dtype)

    @property
    def rank_error(self) -> float:
        """What share of the values may lie between a quantile given and the true one, with 99 % confidence."""
        errors = [s.normalized_rank_error(False) for s in self._sketches if s.is_estimation_mode()]
        return float(max(errors, default=0.0))

    def add(self, component: int, values: np.ndarray) -> None:
        """Take in finite values (n,) of one component."""
        self._sketches[component].update(np.ascontiguousarray(values, self._dtype))

    def merge(self, other: Self) -> None:
        """Take in what another one holds."""
        for mine, theirs in zip(self._sketches, other._sketches, strict=True):
            mine.merge(theirs)

    def quantiles(self, component: int, shares: np.ndarray) -> np.ndarray:
        """The least values that about these shares of a component's values do not exceed: float64 (q,)."""
        found = self._sketches[component].get_quantiles(shares.tolist(), True)
        return np.asarray(found, np.float64)

    def to_json(self) -> list[str]:
        """Of each component, base64 of DataSketches' bytes."""
        return [base64.b64encode(sketch.serialize()).decode() for sketch in self._sketches]

    @classmethod
    def from_json(cls, document: Any, size: int, dtype: np.dtype[Any]) -> Self:
        """Raises ValueError unless the document is that of `size` components."""
        if not isinstance(document, list) or len(document) != size:
            raise ValueError(f"sketches: got {type(document).__name__}, expected a list of {size}")
        bodies = [_bytes_of(text) for text in document]
        for body in bodies:
            check_kll(body, dtype)
        return cls([_kind(dtype).deserialize(body) for body in bodies], dtype)

    def counts(self) -> np.ndarray:
        """int64 (size,), how many values each has taken in."""
        return np.array([sketch.n for sketch in self._sketches], np.int64)


def sketch_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """float32 where it holds every value of `dtype`, else float64 (of 64-bit integers above 2⁵³ it drops bits)."""
    return np.dtype(np.float32 if dtype == np.float32 or dtype.itemsize <= 2 else np.float64)


def check_kll(body: bytes, dtype: np.dtype[Any]) -> None:
    """Raise ValueError unless `body` is a KLL sketch as DataSketches writes it: every length, order and count.

    Its layout: preamble size, version, family 15, flags, k, M; then, where it holds more than one value, n, the least k
    merged into it, the number of levels, where each level starts (uint32), the least and the largest value, the values.
    """
    if len(body) < _HEADER.size:
        raise ValueError(f"a sketch of {len(body)} bytes")
    preamble, version, family, flags, k, m = _HEADER.unpack_from(body)
    if family != 15 or m != _M or k != RECORD_K:
        raise ValueError(f"a sketch of family {family}, M {m}, k {k}; expected 15, {_M}, {RECORD_K}")
    if flags & _EMPTY:
        wanted = (2, 1, _HEADER.size)
    elif flags & _SINGLE:
        wanted = (2, 2, _HEADER.size + dtype.itemsize)
    else:
        wanted = (5, 1, _check_levels(body, dtype))
    if (preamble, version, len(body)) != wanted or flags > 7 or flags & 5 == 5:
        raise ValueError(f"a sketch of {len(body)} bytes whose header does not fit")
    if flags & _SINGLE and not np.isfinite(np.frombuffer(body, dtype, 1, _HEADER.size)).all():
        raise ValueError("a sketch of a value that is not finite")


def _check_levels(body: bytes, dtype: np.dtype[Any]) -> int:
    """Check a sketch of several values; the size that it should have."""
    if len(body) < _HEADER.size + _FULL.size:
        raise ValueError(f"a sketch of {len(body)} bytes")
    count, least_k, num_levels = _FULL.unpack_from(body, _HEADER.size)
    start = _HEADER.size + _FULL.size + 4 * num_levels
    if least_k != RECORD_K or not 1 <= num_levels <= _MAX_LEVELS or len(body) < start:
        raise ValueError(f"a sketch of {num_levels} levels, least k {least_k}")
    bounds = [*struct.unpack_from(f"<{num_levels}I", body, start - 4 * num_levels), _capacity(num_levels)]
    sizes = [after - before for before, after in itertools.pairwise(bounds)]
    if min(sizes) < 0 or count < 2 or sum(size << level for level, size in enumerate(sizes)) != count:
        raise ValueError(f"a sketch of {count} values whose levels hold others")
    size: int = start + (2 + sum(sizes)) * dtype.itemsize
    if len(body) != size:
        raise ValueError(f"a sketch of {len(body)} bytes, expected {size}")
    values = np.frombuffer(body, dtype, offset=start)
    low, high, kept = float(values[0]), float(values[1]), values[2:]
    if not (-math.inf < low <= kept.min() and kept.max() <= high < math.inf):  # NaN fails them all
        raise ValueError("a sketch with values that are not between its least and its largest")
    falls: list[int] = (kept[1:] < kept[:-1]).nonzero()[0].tolist()
    first = 0 if body[3] & 2 else sizes[0]  # level 0 is sorted only where the flag says so
    if not {fall + 1 for fall in falls if fall + 1 > first} <= set(itertools.accumulate(sizes)):
        raise ValueError("a sketch with a level that is not sorted")
    return size


@functools.cache
def _capacity(num_levels: int) -> int:
    """How many values a sketch of that many levels has room for: k · (2/3)ᵈ at depth d, rounded, and at least M."""
    doubled = [(2 << depth) * RECORD_K // _POWERS_OF_3[depth] for depth in range(num_levels)]
    return sum(max(_M, (size + 1) // 2) for size in doubled)


def _kind(dtype: np.dtype[Any]) -> Any:
    import datasketches  # here, so that `import salus` does not wait for it

    return datasketches.kll_floats_sketch if dtype == np.float32 else datasketches.kll_doubles_sketch


def _bytes_of(text: Any) -> bytes:
    if not isinstance(text, str):
        raise ValueError(f"got {type(text).__name__}, expected base64")  # noqa: TRY004 - one class for what is wrong
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error
