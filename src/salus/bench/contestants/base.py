"""What every contestant can do, and how long it took."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..source import Arrays, Source

BATCH_SIZE = 64


class UnsupportedError(Exception):
    """This contestant cannot do this; the message says why."""


class Contestant:
    """One way to store episodes.

    Args:
        folder: Where its files are, or will be.
        source: What it stores; read from for lengths and names only.
        threads: Threads that it may use.

    Subclasses write all episodes, and read what they wrote; one that is too slow for that says with `max_episodes` and
    `max_steps` how much of them it takes, or with `max_scanned` how many it reads where all are asked for. Images come
    back as uint8 (…, H, W, C).
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs: tuple[str, ...] = ()
    lossless: ClassVar[bool] = True
    max_episodes: ClassVar[int | None] = None
    max_steps: ClassVar[int | None] = None
    max_scanned: ClassVar[int | None] = None
    samples_at_once: ClassVar[int] = BATCH_SIZE
    reads_files_of: ClassVar[str | None] = None

    def __init__(self, folder: Path, source: Source, threads: int) -> None:
        self.folder = folder
        self.source = source if self.max_episodes is None else source.first(self.max_episodes, self.max_steps)
        self.threads = threads

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot take part, or None."""
        absent = [module for module in cls.needs if importlib.util.find_spec(module) is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    # --- what they do ------------------------------------------------------------------------------------------

    def write(self, folder: Path, source: Source) -> None:
        """Write the episodes of `source`, step by step or episode by episode, as its users record."""
        raise UnsupportedError

    def open(self) -> None:
        """Open what was written; handles stay open."""

    def episode(self, number: int) -> Arrays:
        """A whole episode."""
        raise UnsupportedError

    def frames(self, pairs: np.ndarray) -> np.ndarray:
        """Random images of the first camera: pairs (n, 2) of episode and step to uint8 (n, H, W, C)."""
        raise UnsupportedError

    def samples(self, pairs: np.ndarray) -> Arrays:
        """Training samples: each camera at one step, uint8 (n, H, W, C), and 16 actions (n, 16, A)."""
        raise UnsupportedError

    def batches(self, num_batches: int, random: np.random.Generator) -> Iterator[Any]:
        """Batches of random training samples."""
        for _ in range(num_batches):
            yield self.samples(self.source.random_pairs(self.samples_at_once, random))

    def torch_dataset(self) -> Any:
        """A map-style dataset of training samples, for the stock `DataLoader`."""
        return SampleItems(self)

    def close(self) -> None:
        """Give up handles."""

    # --- how long it takes -------------------------------------------------------------------------------------

    def time_write(self, folder: Path, source: Source) -> float:
        """Seconds of `write`."""
        return seconds(lambda: self.write(folder, source))

    def time_episode(self, number: int) -> float:
        """Seconds of `episode`."""
        return seconds(lambda: self.episode(number))

    @property
    def num_scanned(self) -> int:
        """How many episodes `time_all` reads: all, or the first few of one that takes long."""
        return len(self.source.lengths[: self.max_scanned])

    def time_all(self) -> float:
        """Seconds of reading each of `num_scanned` episodes once, one after the other."""
        return seconds(lambda: self._drain(map(self.episode, range(self.num_scanned))))

    def time_frames(self, pairs: np.ndarray) -> float:
        """Seconds of `frames`."""
        return seconds(lambda: self.frames(pairs))

    def time_samples(self, num_batches: int, random: np.random.Generator) -> float:
        """Seconds of so many `batches`."""
        return seconds(lambda: self._drain(self.batches(num_batches, random)))

    @staticmethod
    def _drain(values: Iterable[Any]) -> None:
        """Take all, and drop each as a training step that is done with it."""
        for _ in values:
            pass


class SampleItems:
    """Training samples one by one, each process with handles of its own."""

    def __init__(self, contestant: Contestant) -> None:
        self._kind = type(contestant)
        self._arguments = (contestant.folder, contestant.source.without_values(), contestant.threads)
        self._opened: Contestant | None = None

    def __len__(self) -> int:
        return int(self._arguments[1].lengths.sum())

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch

        if self._opened is None:
            self._opened = self._kind(*self._arguments)
            self._opened.open()
        ends = np.cumsum(self._arguments[1].lengths)
        episode = int(np.searchsorted(ends, index, side="right"))
        pair = np.array([[episode, index - (ends[episode - 1] if episode else 0)]])
        return {name: torch.from_numpy(values[0]) for name, values in self._opened.samples(pair).items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


def seconds(work: Callable[[], Any]) -> float:
    """How long `work` took."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
