"""A small multi-horizon failure predictor on the signals, and what it is worth on episodes it has never seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from ..episode import Episode
from ..torch import WindowDataset
from ..view import DatasetView

HISTORY = 16
BATCH_SIZE = 256
ALARM_STEPS = 2
QUIET_SHARE = 0.9


class FailurePredictor(nn.Module):
    """Signals of the last 16 steps, and the time so far, to the logits of "failure kind k within horizon h".

    Args:
        num_signals: S.
        num_horizons: H.
        num_kinds: K.
    """

    def __init__(self, num_signals: int, num_horizons: int, num_kinds: int) -> None:
        super().__init__()
        num_inputs = 6 * num_signals + 1
        self.normalize = nn.BatchNorm1d(num_inputs)
        self.layers = nn.Sequential(
            nn.Linear(num_inputs, 64),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(64, num_horizons * num_kinds),
        )
        self._shape = (num_horizons, num_kinds)

    def forward(self, signals: torch.Tensor, elapsed_s: torch.Tensor) -> torch.Tensor:
        """Float32 (B, 16, S) as recorded, and float32 (B,) seconds since the start, to float32 (B, H, K)."""
        signals = torch.asinh(signals)  # forces span three decades
        now = signals[:, -1]
        changes = [now - signals[:, -1 - steps] for steps in (3, 8, HISTORY - 1)]
        inputs = torch.cat([now, *changes, signals.amax(1), signals.amin(1), elapsed_s[:, None]], dim=1)
        logits: torch.Tensor = self.layers(self.normalize(inputs))
        return logits.reshape(-1, *self._shape)


def has_known_label(episode: Episode) -> np.ndarray:
    """bool (T,): the steps at which at least one label is known."""
    return np.asarray(episode.labels_mask.any(axis=(1, 2)))


def train_epochs(view: DatasetView, *, num_epochs: int, seed: int) -> Iterator[FailurePredictor]:
    """Train on the episodes of `view`; yields the model after every epoch."""
    torch.manual_seed(seed)
    windows = WindowDataset(
        view, {"signals": range(1 - HISTORY, 1), "labels": 0, "labels_mask": 0}, where=has_known_label
    )
    loader = DataLoader(windows, batch_size=BATCH_SIZE, shuffle=True, drop_last=len(windows) > BATCH_SIZE)
    num_signals, (num_horizons, num_kinds) = view.schema.features["signals"].shape[0], view.schema.label_shape
    model = FailurePredictor(num_signals, num_horizons, num_kinds)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=num_epochs * len(loader))
    for _ in range(num_epochs):
        model.train()
        for batch in loader:
            logits, known = model(batch["signals"], batch["step"] / view.schema.rate_hz), batch["labels_mask"]
            loss = nn.functional.binary_cross_entropy_with_logits(logits[known], batch["labels"][known])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
            optimizer.step()
            schedule.step()
        yield model


def predict(model: FailurePredictor, episode: Episode) -> np.ndarray:
    """float32 (T, H): the probability of any failure within each horizon, at every step."""
    signals = episode["signals"][:]
    steps = np.arange(len(signals))[:, None] + np.arange(1 - HISTORY, 1)
    windows = torch.from_numpy(signals[np.maximum(steps, 0)])
    with torch.no_grad():
        elapsed_s = torch.arange(len(signals)) / episode.schema.rate_hz
        probabilities = torch.sigmoid(model(windows, elapsed_s))
    return (1 - (1 - probabilities).prod(dim=2)).numpy()


@dataclass(frozen=True)
class Scores:
    """What the predictor is worth on held-out episodes.

    Attributes:
        auroc: AUROC by horizon, of "any failure within the horizon"; NaN where the episodes hold no such failure.
        baseline_auroc: The same for a predictor that knows only how many steps the episode has run.
        num_episodes, num_failures: Held-out episodes, and how many of them failed.
        num_warned: Failures with an alarm within the longest horizon before them.
        false_alarms: Alarms per episode that no failure followed within the longest horizon.
        lead_s: Seconds from alarm to failure, median of the warned ones; NaN without any.
    """

    auroc: dict[float, float]
    baseline_auroc: dict[float, float]
    num_episodes: int
    num_failures: int
    num_warned: int
    false_alarms: float
    lead_s: float


def evaluate(model: FailurePredictor, training: DatasetView, held_out: DatasetView) -> Scores:
    """Score on `held_out`; the alarm's threshold and the baseline come from `training` alone."""
    horizons = held_out.schema.label_horizons.values
    known = [_known_labels(episode) for episode in held_out]
    predicted = [predict(model, episode) for episode in held_out]
    rate_by_step = _failure_rate_by_step(training)
    elapsed = [rate_by_step[np.minimum(np.arange(len(episode)), len(rate_by_step) - 1)] for episode in held_out]
    alarms = _Alarms(_alarm_threshold(model, training), horizon_steps=_longest_horizon_steps(held_out))
    for episode, probabilities in zip(held_out, predicted, strict=True):
        alarms.add(episode, probabilities[:, -1])
    return Scores(
        auroc={h: _auroc(known, predicted, column) for column, h in enumerate(horizons)},
        baseline_auroc={h: _auroc(known, elapsed, column) for column, h in enumerate(horizons)},
        num_episodes=len(held_out),
        num_failures=sum(episode.outcome.result == "failure" for episode in held_out),
        num_warned=len(alarms.lead_steps),
        false_alarms=alarms.false / max(len(held_out), 1),
        lead_s=float(np.median(alarms.lead_steps)) / held_out.schema.rate_hz if alarms.lead_steps else float("nan"),
    )


def _known_labels(episode: Episode) -> tuple[np.ndarray, np.ndarray]:
    """bool (T, H) each: any failure within the horizon; whether that is known."""
    return np.asarray(episode.labels.any(axis=2)), np.asarray(episode.labels_mask.all(axis=2))


def _failure_rate_by_step(view: DatasetView) -> np.ndarray:
    """float (T, H): share of training episodes with a failure within the horizon, by step number alone."""
    longest = max(len(episode) for episode in view)
    positive, count = (np.zeros((longest, len(view.schema.label_horizons))) for _ in range(2))
    for episode in view:
        label, mask = _known_labels(episode)
        positive[: len(episode)] += label & mask
        count[: len(episode)] += mask
    width = 9  # neighbouring steps are alike, and single steps are rare
    kernel = np.ones(width)
    smooth = [np.convolve(array, kernel, "same") for array in (*positive.T, *count.T)]
    half = len(smooth) // 2
    return np.stack([p / np.maximum(c, 1) for p, c in zip(smooth[:half], smooth[half:], strict=True)], axis=1)


def _auroc(known: list[tuple[np.ndarray, np.ndarray]], scores: Iterable[np.ndarray], column: int) -> float:
    from sklearn.metrics import roc_auc_score

    truth = np.concatenate([label[mask[:, column], column] for label, mask in known])
    score = np.concatenate([values[mask[:, column], column] for (_, mask), values in zip(known, scores, strict=True)])
    if truth.all() or not truth.any():
        return float("nan")
    return float(roc_auc_score(truth, score))


def _longest_horizon_steps(view: DatasetView) -> int:
    horizons = view.schema.label_horizons
    scale = 1 if horizons.unit == "steps" else view.schema.rate_hz
    return round(max(horizons.values) * scale)


def _alarm_threshold(model: FailurePredictor, training: DatasetView) -> float:
    """The level that 90 % of the successful training episodes never stay above."""
    peaks = [_held(predict(model, episode)[:, -1]).max() for episode in training.select(outcome="success")]
    return float(np.quantile(peaks, QUIET_SHARE)) if peaks else 0.5


def _held(score: np.ndarray) -> np.ndarray:
    """The level held for two steps in a row: a single step alarms nobody."""
    return np.array([score[max(step - ALARM_STEPS + 1, 0) : step + 1].min() for step in range(len(score))])


class _Alarms:
    """Counts alarms: an alarm is the moment at which the held score rises above the threshold."""

    def __init__(self, threshold: float, horizon_steps: int) -> None:
        self._threshold = threshold
        self._horizon = horizon_steps
        self.false = 0
        self.lead_steps: list[int] = []

    def add(self, episode: Episode, score: np.ndarray) -> None:
        failure = episode.outcome.step
        above = _held(score) > self._threshold
        rises = np.flatnonzero(above & ~np.concatenate([[False], above[:-1]]))
        if failure is None:
            self.false += len(rises)
            return
        window = np.arange(max(failure - self._horizon, 0), failure)
        self.false += int((rises < failure - self._horizon).sum())
        on = window[above[window]]
        if len(on):
            self.lead_steps.append(int(failure - on[0]))
