"""The demo's look at what it recorded: every byte read back, and the same values through plain Zarr."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..episode import Episode
from ..errors import CorruptDataError
from ..view import DatasetView


def check_episodes(view: DatasetView, path: Path) -> Iterator[Episode]:
    """Read every feature of every episode, checksums included, and compare with what plain zarr-python reads.

    Raises:
        CorruptDataError: A byte changed, a value is not finite, or the two readers disagree.
    """
    import zarr

    plain = zarr.open_group(path, mode="r")
    for episode in view:
        for name in episode.schema.recorded:
            mine = episode[name][:]
            array = plain[name]
            assert isinstance(array, zarr.Array)  # noqa: S101 - for the type checker
            # Every value of the small features, a few images: zarr-python needs its time.
            steps = slice(0, len(episode)) if mine[0].size < 1000 else slice(len(episode) // 2, len(episode) // 2 + 2)
            theirs = np.asarray(array[episode.slot, steps])
            if not np.array_equal(mine[steps], theirs) or not np.isfinite(mine).all():
                raise CorruptDataError(
                    f"demo: {name!r} of episode {episode.uid} reads differently; slot {episode.slot}"
                )
        if (np.diff(episode.timestamp_ns) <= 0).any():
            raise CorruptDataError(f"demo: time goes backwards in episode {episode.uid}; slot {episode.slot}")
        yield episode


@dataclass(frozen=True)
class Size:
    """Bytes of a dataset.

    Attributes:
        raw: All recorded values, uncompressed.
        stored: All shards.
    """

    raw: int
    stored: int

    @property
    def ratio(self) -> float:
        """How many times smaller than raw."""
        return self.raw / max(self.stored, 1)


def size_of(view: DatasetView) -> Size:
    """Bytes of the episodes of `view`, from their records."""
    return Size(view.raw_bytes, view.stored_bytes)
