"""`SALUSMVPDataset("data.zarr")`: the training set of the SALUS failure predictor, under its original name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..clocks import Seconds
from ..episode import Episode
from ..errors import InvalidInputError
from ..mixture import View
from ..opening import open
from ..schema import STEP
from ..torch import WindowDataset
from ..torch.batch import Batch


class SALUSMVPDataset(WindowDataset):
    """One sample per step whose labels are known: `signals` and `horizon_labels`, as torch tensors.

    `DataLoader(SALUSMVPDataset("data.zarr"), batch_size=64, num_workers=4)` works under fork, spawn and forkserver.

    Args:
        data: Path of a dataset, or a view of one (such as `train` of `dataset.split(...)`).
        features: What a sample holds besides `horizon_labels`; add "images", "states", "actions" on request.

    A sample is a dict: `signals` float32 (12,); `horizon_labels` float32 (4, 4), horizons × failure kinds, 0 or 1,
    computed from the outcome in force; on request `images` uint8 (3, 224, 224), `states` float32 (7,), `actions`
    float32 (7,). Steps at or after a failure, and the last steps of an episode whose end is unknown, are no samples,
    since their labels are not known. Of a feature on another clock than the steps, the last value by the step's stamp;
    `<feature>_is_pad` is True where there was none (see `salus.Seconds`).

    Raises:
        InvalidInputError: The dataset's schema has no label horizons.
        NotFoundError, FormatError: As `salus.open`.
    """

    def __init__(self, data: str | os.PathLike[str] | View, features: Iterable[str] = ("signals",)) -> None:
        view = data if isinstance(data, View) else open(data)
        if not len(view.schema.label_horizons):
            raise InvalidInputError(f"SALUSMVPDataset: the schema declares no label horizons; {view.url}")
        by_then = Seconds(0.0, method="previous")  # as a running robot would have it
        windows = {name: 0 if view.clock_of(name) == STEP else by_then for name in (*features, "labels")}
        super().__init__(view, windows, where=_labels_are_known)

    def batch(self, samples: np.ndarray, **options: Any) -> Batch:
        """Several samples as one batch."""
        batch = super().batch(samples, **options)
        batch["horizon_labels"] = batch.pop("labels")
        return batch


def _labels_are_known(episode: Episode) -> np.ndarray:
    return np.asarray(episode.labels_mask.all(axis=(1, 2)))
