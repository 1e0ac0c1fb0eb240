"""Many short episodes: what the note that SALUS started from compared, 500 files against one store."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from .contestants.base import BATCH_SIZE, Contestant
from .contestants.hdf5 import Hdf5Gzip, Hdf5Plain
from .contestants.ours import Salus
from .run import stored
from .source import Source, Track

STEPS = 40
ROUNDS = 15
KINDS: tuple[type[Contestant], ...] = (Salus, Hdf5Gzip, Hdf5Plain)


@dataclass(frozen=True)
class Many:
    """What one contestant made of many episodes.

    Attributes:
        title: Its name for people.
        num_episodes: Episodes written.
        write_s: Seconds to write all; SALUS commits each durably, the others do not ask the disk.
        one_s: Seconds to load one at random, the median of 15.
        all_s: Seconds to load all, one after the other.
        images_per_s: Random images of one camera, the median of 15 batches of 64.
        stored_bytes: Size on disk.
        files: Number of files.
        raw_bytes: Bytes of the values.
    """

    title: str
    num_episodes: int
    write_s: float
    one_s: float
    all_s: float
    images_per_s: float
    stored_bytes: int
    files: int
    raw_bytes: int


def measure_many(source: Source, work_folder: Path, *, num_episodes: int, threads: int, track: Track) -> list[Many]:
    """Write and read `num_episodes` episodes: those of the source, cut to 40 steps, again and again.

    Writing and loading all are done once, as they take long; the others take turns. Memory does not grow with
    `num_episodes`; the disk takes about twice their raw size.
    """
    few = source.first(len(source.lengths), STEPS)
    again = [number % len(few.lengths) for number in range(num_episodes)]
    many = replace(few, lengths=few.lengths[again], episodes=[few.episodes[number] for number in again])
    there = [kind(work_folder / f"many-{kind.name}", many, threads) for kind in KINDS if kind.missing() is None]
    # A file kept open per episode, by two contestants at once, is more than the usual limit allows.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    write_s, all_s = {}, {}
    try:
        for contestant in track(there, f"{num_episodes} episodes", len(there)):
            shutil.rmtree(contestant.folder, ignore_errors=True)
            contestant.folder.mkdir(parents=True)
            write_s[contestant.name] = contestant.time_write(contestant.folder, many)
            contestant.open()
            all_s[contestant.name] = contestant.time_all()
        random = np.random.default_rng(0)
        one_s = _in_turns(there, lambda contestant: contestant.time_episode(int(random.integers(num_episodes))))
        batch_s = _in_turns(there, lambda contestant: contestant.time_frames(many.random_pairs(BATCH_SIZE, random)))
        return [
            Many(
                contestant.title,
                num_episodes,
                write_s[contestant.name],
                one_s[contestant.name],
                all_s[contestant.name],
                BATCH_SIZE / batch_s[contestant.name],
                *stored(contestant.folder),
                many.raw_bytes,
            )
            for contestant in there
        ]
    finally:
        for contestant in there:
            contestant.close()
            shutil.rmtree(contestant.folder, ignore_errors=True)


def _in_turns(there: list[Contestant], work: Callable[[Contestant], float]) -> dict[str, float]:
    taken: dict[str, list[float]] = {contestant.name: [] for contestant in there}
    for _ in range(ROUNDS):
        for contestant in there:
            taken[contestant.name].append(work(contestant))
    return {name: median(values) for name, values in taken.items()}
