"""SALUS: the episode store for robot learning, in plain Zarr v3."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import errors, labels, schema
from .clocks import Seconds
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
)
from .labels import Outcome
from .mixture import ConcatView, concat
from .opening import create, open
from .recorder import Recorder
from .schema import Feature, Image, Schema, Text
from .view import DatasetView

if TYPE_CHECKING:
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
    "concat",
    "create",
    "errors",
    "labels",
    "open",
    "schema",
]


def __getattr__(name: str) -> Any:
    if name == "torch":  # loaded when it is asked for: it needs the extra, and takes seconds
        return importlib.import_module(".torch", __name__)
    raise AttributeError(f"module 'salus' has no attribute {name!r}")
