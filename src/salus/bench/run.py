"""The measurement: everybody writes and reads the same episodes, taking turns over several rounds."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import math
import multiprocessing
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..errors import CorruptDataError, InvalidInputError, did_you_mean
from .contestants import ALL, Contestant, UnsupportedError
from .contestants.base import BATCH_SIZE, seconds
from .source import Source, Track

UNITS = {
    "record": "steps/s",
    "one episode": "steps/s",
    "all": "steps/s",
    "frames": "images/s",
    "samples": "samples/s",
    "DataLoader": "samples/s",
    "all, cold": "steps/s",
    "frames, cold": "images/s",
}
RECORDED_EPISODES = 2
LOADER_WORKERS = 2
LEAST_PSNR_DB = 25.0
MEMORY_BATCHES = 20


@dataclass
class Results:
    """What was measured.

    Attributes:
        about: Machine, versions, settings.
        titles: Contestant to its name for people, in the order of the table.
        rates: (work, contestant) to the rate in each round; unit by work in `UNITS`.
        notes: (work, contestant) to why there is no rate.
        sizes: Contestant to bytes on disk, files, and bytes of memory beyond what opening takes.
        absent: Contestants that took no part, and why.
    """

    about: dict[str, Any]
    titles: dict[str, str] = field(default_factory=dict)
    rates: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    notes: dict[tuple[str, str], str] = field(default_factory=dict)
    sizes: dict[str, dict[str, float | None]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def rate(self, work: str, contestant: str) -> float | None:
        """The median over the rounds; None where there is none."""
        rates = self.rates.get((work, contestant))
        return median(rates) if rates else None

    def ratio(self, work: str, contestant: str, against: str) -> float | None:
        """The median over the rounds of the ratio of two contestants, each pair measured in the same round."""
        ours, theirs = self.rates.get((work, contestant)), self.rates.get((work, against))
        return median(a / b for a, b in zip(ours, theirs, strict=True)) if ours and theirs else None

    def to_json(self) -> dict[str, Any]:
        """All of it, for scripts."""
        works = [
            {"work": work, "contestant": name, "unit": UNITS[work], "median": median(rates), "rounds": rates}
            for (work, name), rates in self.rates.items()
        ]
        notes = [{"work": work, "contestant": name, "note": note} for (work, name), note in self.notes.items()]
        sizes = [{"contestant": name, **values} for name, values in self.sizes.items()]
        return {**self.about, "works": works, "notes": notes, "sizes": sizes, "absent": self.absent}


def chosen(names: Sequence[str]) -> list[type[Contestant]]:
    """The contestants of these names, all if none is given. SALUS is always among them.

    Raises:
        InvalidInputError: An unknown name.
    """
    known = {kind.name: kind for kind in ALL}
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise InvalidInputError(f"bench: no contestant {name!r}{hint}; there are {', '.join(known)}")
    needed = {known[name].reads_files_of for name in names}
    return [kind for kind in ALL if not names or kind.name in {*names, *needed, "salus"}]


def run(
    source: Source,
    kinds: Sequence[type[Contestant]],
    work_folder: Path,
    *,
    rounds: int,
    threads: int,
    budget_s: float,
    track: Track,
) -> Results:
    """Write, check and measure.

    Args:
        source: The episodes.
        kinds: Who takes part.
        work_folder: Where they write; what earlier runs wrote is removed.
        rounds: How often each measurement is taken.
        threads: Threads of each contestant, and of torch.
        budget_s: Seconds that a measurement takes at least; what takes longer is done once per round.
        track: Shows progress.

    Raises:
        CorruptDataError: A contestant gives back other values than it was given.
    """
    import torch

    torch.set_num_threads(threads)
    results = Results(_about(source, rounds, threads, budget_s))
    there = _prepared(kinds, source, work_folder, threads, results, track)
    random = np.random.default_rng(0)
    loaders: dict[str, Any] = {}
    for number in track(range(rounds), "rounds", rounds):
        order = np.random.default_rng(number).permutation(len(there)).tolist()
        for work in UNITS:
            for contestant in (there[place] for place in order):
                if (work, contestant.name) in results.notes:
                    continue
                try:
                    rate = _measured(work, contestant, random, budget_s, loaders)
                except UnsupportedError as reason:
                    results.notes[work, contestant.name] = str(reason) or "–"
                except Exception as error:  # noqa: BLE001 - `_failure` says which are raised again
                    results.notes[work, contestant.name] = _failure(contestant, error)
                    results.rates.pop((work, contestant.name), None)  # of earlier rounds
                else:
                    results.rates.setdefault((work, contestant.name), []).append(rate)
    for contestant in there:
        contestant.close()
        results.sizes[contestant.name] = _sizes(contestant, threads)
    return results


def _prepared(
    kinds: Sequence[type[Contestant]],
    source: Source,
    work_folder: Path,
    threads: int,
    results: Results,
    track: Track,
) -> list[Contestant]:
    """Those who are there, with all written, open and checked."""
    there: list[Contestant] = []
    for kind in kinds:
        reason = kind.missing()
        if reason is not None:
            results.absent[kind.title] = reason
            continue
        there.append(kind(work_folder / (kind.reads_files_of or kind.name), source, threads))
    there = _those_who_can(there, _write, "writing", results, track)
    there = _those_who_can(there, _open_and_check, "checking", results, track)  # some read the files of others
    results.titles = {contestant.name: contestant.title for contestant in there}
    return there


def _write(contestant: Contestant) -> None:
    if contestant.reads_files_of is None:
        shutil.rmtree(contestant.folder, ignore_errors=True)
        contestant.folder.mkdir(parents=True)
        contestant.write(contestant.folder, contestant.source)


def _open_and_check(contestant: Contestant) -> None:
    contestant.open()
    check(contestant)


def _those_who_can(
    contestants: list[Contestant], work: Callable[[Contestant], None], title: str, results: Results, track: Track
) -> list[Contestant]:
    able = []
    for contestant in track(contestants, title, len(contestants)):
        try:
            work(contestant)
        except Exception as error:  # noqa: BLE001 - `_failure` says which are raised again
            results.absent[contestant.title] = _failure(contestant, error)
        else:
            able.append(contestant)
    return able


def _failure(contestant: Contestant, error: Exception) -> str:
    """What is said of an error in a peer's library, which must not end the run of the others; else it is raised."""
    if isinstance(error, CorruptDataError) or contestant.name == "salus":
        raise error
    first_line = str(error).partition("\n")[0]  # some libraries print pages
    return f"failed: {type(error).__name__}: {first_line[:200]}"


def check(contestant: Contestant) -> None:
    """Compare what a contestant reads with what it was given.

    Raises:
        CorruptDataError: It differs; in lossy ones, by more than 25 dB.
    """
    source = contestant.source
    pairs = source.random_pairs(8, np.random.default_rng(1))
    readings: list[Callable[[], dict[str, np.ndarray]]] = [
        lambda: {source.cameras[0]: contestant.frames(pairs)},
        lambda: contestant.samples(pairs),
    ]
    windows = source.window(pairs)
    for read in readings:
        try:
            values = read()
        except UnsupportedError:
            continue
        for name, got in values.items():
            if name in source.cameras:
                wanted = np.stack([source.episodes[episode][name][step] for episode, step in pairs.tolist()])
            else:
                wanted = np.stack(
                    [
                        source.episodes[episode][name][window]
                        for (episode, _), window in zip(pairs, windows, strict=True)
                    ]
                )
            _compare(contestant, name, got, wanted)
    try:
        episode = contestant.episode(0)
    except UnsupportedError:
        _check_stream(contestant)
        return
    for name, got in episode.items():
        _compare(contestant, name, got, source.episodes[0][name])


def _compare(contestant: Contestant, name: str, got: np.ndarray, wanted: np.ndarray) -> None:
    if got.shape != wanted.shape:
        raise CorruptDataError(f"bench: {contestant.title} gives {name!r} as {got.shape}, expected {wanted.shape}")
    if contestant.lossless or name not in contestant.source.cameras:
        if not np.array_equal(got, wanted, equal_nan=got.dtype.kind == "f"):
            raise CorruptDataError(f"bench: {contestant.title} gives other values of {name!r} than it was given")
        return
    error = float(np.mean((got.astype(np.float64) - wanted) ** 2))
    decibels = 10 * math.log10(255**2 / error) if error else math.inf
    if decibels < LEAST_PSNR_DB:
        raise CorruptDataError(f"bench: {contestant.title} gives {name!r} at {decibels:.1f} dB, not the same images")


def _check_stream(contestant: Contestant) -> None:
    """Of a stream, that its images are ones that it was given."""
    try:
        batch = next(iter(contestant.batches(1, np.random.default_rng(0))))
    except UnsupportedError:
        return
    if not isinstance(batch, dict) or not contestant.lossless:
        return
    source = contestant.source
    camera = source.cameras[0]
    known = {hashlib.sha256(image.tobytes()).digest() for episode in source.episodes for image in episode[camera]}
    if not all(hashlib.sha256(image.tobytes()).digest() in known for image in batch[camera]):
        raise CorruptDataError(f"bench: {contestant.title} gives other images than it was given")


def _measured(
    work: str,
    contestant: Contestant,
    random: np.random.Generator,
    budget_s: float,
    loaders: dict[str, Any],
) -> float:
    """The rate of one piece of work in one round."""
    mine = contestant.source
    if work == "record":
        if contestant.reads_files_of is not None:
            raise UnsupportedError
        return _record(contestant)
    if work.endswith(", cold"):
        evict(contestant.folder)
    if work == "one episode":

        def one() -> tuple[float, float]:
            number = int(random.integers(len(mine.lengths)))
            return float(mine.lengths[number]), contestant.time_episode(number)

        return _repeated(one, budget_s)
    if work in ("all", "all, cold"):
        return float(mine.lengths[: contestant.num_scanned].sum()) / contestant.time_all()
    if work in ("frames", "frames, cold"):
        count = contestant.samples_at_once
        pairs = mine.random_pairs(count, random)
        if work == "frames, cold":
            return count / contestant.time_frames(pairs)
        return _repeated(lambda: (count, contestant.time_frames(mine.random_pairs(count, random))), budget_s)
    if work == "samples":
        tried = max(contestant.time_samples(2, random) / 2, 1e-6)
        batches = max(1, round(2 * budget_s / tried))
        return batches * contestant.samples_at_once / contestant.time_samples(batches, random)
    return _through_loader(contestant, budget_s, loaders)


def _repeated(once: Callable[[], tuple[float, float]], budget_s: float) -> float:
    """Items per second of `once`, which returns items and seconds, over at least `budget_s`."""
    items = spent = 0.0
    while spent < budget_s:
        count, took = once()
        items, spent = items + count, spent + took
    return items / spent


def _record(contestant: Contestant) -> float:
    some = contestant.source.first(RECORDED_EPISODES)
    scratch = contestant.folder.with_name(f"{contestant.name}-recording")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        return float(some.lengths.sum()) / contestant.time_write(scratch, some)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _through_loader(contestant: Contestant, budget_s: float, loaders: dict[str, Any]) -> float:
    from torch.utils.data import DataLoader, RandomSampler

    if contestant.name not in loaders:
        dataset = contestant.torch_dataset()
        sampler = RandomSampler(dataset, replacement=True, num_samples=10**7)
        loaders[contestant.name] = DataLoader(
            dataset,
            batch_size=_loader_batch(contestant),
            sampler=sampler,
            num_workers=LOADER_WORKERS,
            persistent_workers=True,
            multiprocessing_context="spawn",
        )
    batches = iter(loaders[contestant.name])
    for _ in range(2 * LOADER_WORKERS + 1):  # the workers have started, and what they had ready is gone
        next(batches)
    rate = _repeated(lambda: (_loader_batch(contestant), seconds(lambda: next(batches))), 2 * budget_s)
    # The workers still read ahead, which must not fall into the time of the next contestant.
    time.sleep(2 * LOADER_WORKERS * _loader_batch(contestant) / rate)
    return rate


def _loader_batch(contestant: Contestant) -> int:
    return min(BATCH_SIZE, 4 * contestant.samples_at_once)


def evict(folder: Path) -> None:
    """Let the operating system forget the content of all files below `folder`."""
    os.sync()
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _sizes(contestant: Contestant, threads: int) -> dict[str, float | None]:
    size, files = (None, None) if contestant.reads_files_of is not None else stored(contestant.folder)
    return {
        "bytes": size,
        "files": files,
        "times_smaller": contestant.source.raw_bytes / size if size else None,
        "memory_bytes": _memory(contestant, threads),
    }


def stored(folder: Path) -> tuple[int, int]:
    """Bytes and number of all files below `folder`."""
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    return sum(sizes), len(sizes)


def _memory(contestant: Contestant, threads: int) -> float | None:
    """Bytes that reading training samples takes at most, in a process of its own, beyond what it takes once open."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, type(contestant), contestant.folder, contestant.source.without_values(), threads)
    process = context.Process(target=_read_and_tell, args=arguments)
    process.start()
    theirs.close()
    try:
        told: float | None = ours.recv()
    except EOFError:
        told = None
    process.join()
    return told


def _read_and_tell(connection: Connection, kind: type[Contestant], folder: Path, source: Source, threads: int) -> None:
    contestant = kind(folder, source, threads)
    try:
        contestant.open()
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
        for _ in contestant.batches(MEMORY_BATCHES, np.random.default_rng(0)):
            pass
    except UnsupportedError:
        connection.send(None)
    else:
        connection.send(float(_status("VmHWM") - before))
    contestant.close()


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _about(source: Source, rounds: int, threads: int, budget_s: float) -> dict[str, Any]:
    packages = ("numpy", "zarr", "numcodecs", "zarrs", "tensorstore", "h5py", "webdataset", "pylance", "torch")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "source": source.description,
        "episodes": len(source.lengths),
        "steps": int(source.lengths.sum()),
        "raw_bytes": source.raw_bytes,
        "rounds": rounds,
        "threads": threads,
        "budget_s": budget_s,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {sys.version.split()[0]}",
        "versions": versions,
    }
