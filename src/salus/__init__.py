"""SALUS: the episode store for robot learning, in plain Zarr v3."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import errors, labels, schema
from .clocks import Seconds
from .copying import copy
from .dataset import Dataset
from .episode import Episode
from .errors import (
    AlreadyExistsError,
    CommitUnknownError,
    CorruptDataError,
    EpisodeFencedError,
    FormatError,
    InvalidInputError,
    MissingExtraError,
    NotFoundError,
    QueueFullError,
    RecordingError,
    SalusError,
    StorageError,
    UnfinishedEpisodesWarning,
)
from .labels import Outcome
from .mixture import ConcatView, concat
from .opening import create, open
from .recorder import Recorder
from .recorder.recovery import recover
from .schema import Feature, Image, Schema, Text
from .verification import verify
from .view import DatasetView

if TYPE_CHECKING:
    from . import gym as gym
    from . import health as health
    from . import isaaclab as isaaclab
    from . import torch as torch

__version__ = "0.1.0"

__all__ = [
    "AlreadyExistsError",
    "CommitUnknownError",
    "ConcatView",
    "CorruptDataError",
    "Dataset",
    "DatasetView",
    "Episode",
    "EpisodeFencedError",
    "Feature",
    "FormatError",
    "Image",
    "InvalidInputError",
    "MissingExtraError",
    "NotFoundError",
    "Outcome",
    "QueueFullError",
    "Recorder",
    "RecordingError",
    "SalusError",
    "Schema",
    "Seconds",
    "StorageError",
    "Text",
    "UnfinishedEpisodesWarning",
    "concat",
    "copy",
    "create",
    "errors",
    "labels",
    "open",
    "recover",
    "schema",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in ("gym", "health", "isaaclab", "torch"):  # loaded when asked for: most need extras, and take seconds
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'salus' has no attribute {name!r}")
