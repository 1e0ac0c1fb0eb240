"""Features that are not zstd, in the workers of a DataLoader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from torch.utils.data import DataLoader

import salus
import salus.torch

STEPS = 10
BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
SCHEMA = salus.Schema(
    {
        "jpeg": salus.Image(height=24, width=16, codec="jpeg"),
        "gzip": salus.Image(height=24, width=16, codec=[{"name": "bytes"}, {"name": "gzip", "configuration": {}}]),
        "bz2": salus.Feature((7,), "float64", codec=[BYTES, {"name": "numcodecs.bz2", "configuration": {"level": 1}}]),
    },
    rate_hz=30,
    segment_steps=4,
)


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_what_this_process_reads(tmp_path: Path, start: str) -> None:
    path, rng = tmp_path / "data.zarr", np.random.default_rng(0)
    images = rng.integers(0, 256, (2, STEPS, 3, 24, 16), dtype=np.uint8)
    states = rng.normal(size=(2, STEPS, 7))
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        for row in range(2):
            recorder.record_episode({"jpeg": images[row], "gzip": images[row], "bz2": states[row]})
    dataset = salus.open(path)
    # The parent has used everything that a fork could break: zarr's loop, the chains, the threads of a read.
    assert zarr.open_group(path, mode="r")["bz2"][0].shape == (STEPS, 7)  # type: ignore[index, union-attr]
    here = dataset.gather(
        {name: [(row, step) for row in range(2) for step in range(STEPS)] for name in SCHEMA.features}
    )
    np.testing.assert_array_equal(here["gzip"], images.reshape(-1, 3, 24, 16))
    windows = salus.torch.WindowDataset(dataset, {name: [0] for name in SCHEMA.features})
    batches = list(DataLoader(windows, batch_size=4, num_workers=2, multiprocessing_context=start))
    for name, values in here.items():
        read = np.concatenate([batch[name].numpy()[:, 0] for batch in batches])
        np.testing.assert_allclose(read, values)
