"""The whole demo: record, check, train, and say what was found."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..dataset import Dataset
from ..errors import InvalidInputError
from ..opening import open
from ..view import DatasetView
from .check import Size, check_episodes, size_of

LOAD_BATCH = 64
LOAD_SECONDS = 3.0
PARTS = {"train": 0.75, "held_out": 0.25}

Item = TypeVar("Item")
Progress = Callable[[Iterable[Item], str, int], Iterable[Item]]


@dataclass(frozen=True)
class Report:
    """What the demo found.

    Attributes:
        path: The dataset.
        picture: The contact sheet.
        episodes: Episodes by outcome, all runs together.
        recorded: Episodes of this run.
        num_steps: Steps of the dataset.
        size: Bytes raw and stored.
        record_steps_per_s: Steps per second of this run, simulation and rendering included, all processes.
        record_share: Part of the recording processes' time that was spent in SALUS.
        load_images_per_s: Random images per second, in batches of 64, page cache warm.
        scores: Of the predictor on held-out episodes; None where there were too few episodes to train.
        seconds: Wall time of the whole run.
    """

    path: Path
    picture: Path
    episodes: dict[str, int]
    recorded: int
    num_steps: int
    size: Size
    record_steps_per_s: float
    record_share: float
    load_images_per_s: float
    scores: Any
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The report as `salus demo --json` prints it."""
        document = asdict(self)
        return {**document, "path": str(self.path), "picture": str(self.picture), "compression": self.size.ratio}


def run_demo(
    path: Path, *, num_episodes: int, num_processes: int, num_epochs: int, seed: int, progress: Progress[Any]
) -> Report:
    """Record, check, train, and report.

    Args:
        path: The dataset; one that is there is added to.
        num_episodes: Episodes to record, at least 1.
        num_processes: Processes that record at once.
        num_epochs: Passes over the training windows.
        seed: Of the training.
        progress: `progress(items, title, total)` passes the items on and shows how far it is.

    Raises:
        InvalidInputError: No episodes asked for.
        MissingExtraError: The simulator, torch or matplotlib is missing.
        RecordingError, CorruptDataError: As recording and checking do.
    """
    if num_episodes < 1 or num_processes < 1 or num_epochs < 1:
        raise InvalidInputError("demo: episodes, processes and epochs: expected at least 1 of each")
    from .picture import contact_sheet
    from .record import record
    from .train import evaluate, predict

    started = time.perf_counter()
    reports = list(
        progress(record(path, num_episodes=num_episodes, num_processes=num_processes), "recording", num_episodes)
    )
    recording_s = time.perf_counter() - started
    dataset = open(path)
    for _ in progress(check_episodes(dataset, path), "checking", len(dataset)):
        pass
    load_images_per_s = measure_loading(dataset)
    training, held_out = dataset.split(PARTS)
    model = None
    if training.select(outcome="failure") and held_out.select(outcome="failure"):
        model = _train_with_progress(training, num_epochs, seed, progress)
    shown = _episode_to_show(held_out) if model is not None else dataset[0]
    picture = path.with_name(f"{path.stem}-episode.png")
    contact_sheet(shown, picture, risk=None if model is None else predict(model, shown))
    return Report(
        path=path,
        picture=picture,
        episodes=count_outcomes(dataset),
        recorded=len(reports),
        num_steps=dataset.num_steps,
        size=size_of(dataset),
        record_steps_per_s=sum(report.num_steps for report in reports) / recording_s,
        record_share=sum(report.recording_s for report in reports) / sum(report.duration_s for report in reports),
        load_images_per_s=load_images_per_s,
        scores=None if model is None else evaluate(model, training, held_out),
        seconds=time.perf_counter() - started,
    )


def _train_with_progress(training: DatasetView, num_epochs: int, seed: int, progress: Progress[Any]) -> Any:
    from .train import FailurePredictor, train_epochs

    model: FailurePredictor | None = None
    for trained in progress(train_epochs(training, num_epochs=num_epochs, seed=seed), "training", num_epochs):
        model = trained
    assert model is not None  # noqa: S101 - for the type checker; there is at least one epoch
    return model.eval()


def _episode_to_show(view: DatasetView) -> Any:
    """A held-out failure, a drop if there is one: it has the most to see."""
    failures = view.select(outcome="failure")
    drops = failures.select(failure_kind="drop")
    return (drops or failures)[0]


def count_outcomes(dataset: Dataset) -> dict[str, int]:
    """Episodes by `"success"`, `"failure: <kind>"`, `"unknown"`, most frequent first."""
    names = [
        f"{entry.result}: {entry.failure_kind}" if entry.failure_kind else entry.result for entry in dataset.episodes
    ]
    return dict(Counter(names).most_common())


def measure_loading(view: DatasetView) -> float:
    """Random images per second, in batches of 64, over about three seconds."""
    random, lengths = np.random.default_rng(0), np.array(view.episodes["num_steps"])
    rows = np.arange(len(view))
    batches, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < LOAD_SECONDS:
        chosen = random.choice(rows, LOAD_BATCH, p=lengths / lengths.sum())
        view.gather({"images": np.stack([chosen, random.integers(0, lengths[chosen])], axis=1)})
        batches += 1
    return batches * LOAD_BATCH / elapsed
