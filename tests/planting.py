"""Defects put into episodes that are fine, one each: what `salus.health.check` has to find, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import salus
from salus.labels import horizon_labels
from salus.schema import Schema

Arrays = dict[str, np.ndarray]


@dataclass
class Take:
    """One episode as arrays, to be changed."""

    arrays: Arrays
    stamps: np.ndarray
    outcome: salus.Outcome

    def with_labels(self, schema: Schema) -> Take:
        """With labels stored beside it, as an import from elsewhere brings them."""
        horizons, kinds = schema.label_horizons, schema.failure_kinds
        labels, mask = horizon_labels(len(self.stamps), self.outcome, horizons, kinds)
        self.arrays["stored_labels"] = np.where(mask, labels, np.float32(np.nan))
        return self


def takes_of(view: salus.DatasetView) -> list[Take]:
    """The episodes of a dataset."""
    return [
        Take(
            {name: np.array(episode[name][:]) for name in episode.schema.recorded},
            episode.timestamp_ns,
            episode.outcome,
        ).with_labels(view.schema)
        for episode in view
    ]


def schema_of(schema: Schema) -> Schema:
    """The same with stored labels, and signals that may be NaN."""
    features = {name: feature for name, feature in schema.features.items() if not feature.derived}
    features["signals"] = replace(features["signals"], allow_nan=True)
    features["stored_labels"] = salus.Feature(schema.label_shape, allow_nan=True)
    return replace(schema, features=features)


def write(path: Path, schema: Schema, takes: Iterable[Take]) -> salus.Dataset:
    """A dataset of these episodes."""
    with salus.Recorder(salus.create(path, schema_of(schema))) as recorder:
        for take in takes:
            recorder.record_episode(take.arrays, outcome=take.outcome, timestamp_ns=take.stamps)
    return salus.open(path)


# --- the defects ------------------------------------------------------------------------------------------------


def nan_in_signals(take: Take) -> None:
    take.arrays["signals"][10:20, 2] = np.nan


def dead_component(take: Take) -> None:
    take.arrays["states"][:, 4] = take.arrays["states"][0, 4]


def saturated_gripper(take: Take) -> None:
    width = take.arrays["states"][:, 6]
    take.arrays["states"][:, 6] = np.minimum(width, np.quantile(width, 0.5))


def frozen_camera(take: Take) -> None:
    images = take.arrays["images"]
    images[15:] = images[15]


def black_camera(take: Take) -> None:
    take.arrays["images"][:6] = 0


def exposure_jump(take: Take) -> None:
    images = take.arrays["images"]
    images[20:] = (images[20:] * 0.7).astype(np.uint8)


def clock_gap(take: Take) -> None:
    take.stamps = take.stamps + np.where(np.arange(len(take.stamps)) > 20, 600_000_000, 0)


def shifted_actions(take: Take) -> None:
    actions = take.arrays["actions"]
    take.arrays["actions"] = np.concatenate([np.repeat(actions[:1], 3, axis=0), actions[:-3]])


def contradicting_labels(take: Take) -> None:
    failed = take.outcome.result == "failure"
    take.arrays["stored_labels"][:] = 0.0
    if not failed:
        take.arrays["stored_labels"][-5:, -1] = 1.0


def guessed_length(take: Take) -> None:
    steps = 4 * len(take.stamps)
    more = steps - len(take.stamps)
    take.arrays = {name: np.concatenate([a, np.repeat(a[-1:], more, axis=0)]) for name, a in take.arrays.items()}
    period = np.diff(take.stamps).mean().astype(np.int64)
    take.stamps = np.concatenate([take.stamps, take.stamps[-1] + period * np.arange(1, more + 1)])
    take.arrays["stored_labels"][:] = np.nan
    take.outcome = salus.Outcome()


DEFECTS: dict[str, Callable[[Take], None]] = {
    "nan": nan_in_signals,
    "dead_component": dead_component,
    "saturated": saturated_gripper,
    "frozen_images": frozen_camera,
    "black_images": black_camera,
    "exposure_jump": exposure_jump,
    "clock_gap": clock_gap,
    "action_shift": shifted_actions,
    "label_contradiction": contradicting_labels,
    "padding": guessed_length,
}
"""The rule that has to find it, and what does it. The eleventh, a duplicate across a split, adds an episode."""
