"""The trainers that people use, unmodified: Lightning, Accelerate, torchdata's StatefulDataLoader."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")

from torch.utils.data import DataLoader  # noqa: E402 - after the check that torch is there

import salus  # noqa: E402
import salus.torch  # noqa: E402
from salus.torch import Loader, Normalizer, WindowDataset  # noqa: E402

from .conftest import LENGTHS  # noqa: E402

Seen = list[tuple[int, int]]
EVERYTHING = [(episode, step) for episode, length in enumerate(LENGTHS) for step in range(length)]


def require(module: str) -> None:
    """Skip where a trainer is not installed; in CI, where all are, fail."""
    if importlib.util.find_spec(module) is None:
        if os.environ.get("CI"):
            pytest.fail(f"{module} is not installed, and CI must test it")
        pytest.skip(f"{module} is not installed; run `make setup`")


@pytest.fixture
def windows(dataset: salus.Dataset) -> WindowDataset:
    return WindowDataset(dataset, {"images": [-1, 0], "states": 0, "actions": range(4)})


def samples_of(batch: dict[str, Any]) -> Seen:
    return list(zip(batch["episode"].tolist(), batch["step"].tolist(), strict=True))


class Regression(torch.nn.Module):
    """States to actions, with the normaliser as a part of it."""

    def __init__(self, normalizer: Normalizer) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.head = torch.nn.Linear(7, 12)

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        batch = self.normalizer(batch)
        assert batch["images"].dtype == torch.float32
        predicted = self.head(batch["states"]).view(-1, 4, 3)
        errors = (predicted - batch["actions"]).square().mean(dim=-1)
        return errors[~batch["actions_is_pad"]].mean()


def fitted(windows: WindowDataset) -> Normalizer:
    return Normalizer.fit(windows, {"images": "imagenet", "states": "meanstd", "actions": "minmax"})


# --- Lightning --------------------------------------------------------------------------------------------------


def loaders_of(windows: WindowDataset) -> dict[str, Any]:
    return {
        "stock": DataLoader(windows, batch_size=16, shuffle=True),
        "workers": DataLoader(windows, batch_size=16, shuffle=True, num_workers=2, persistent_workers=True),
        "salus": Loader(windows, 16, shuffle=True),
    }


@pytest.mark.parametrize("kind", ["stock", "workers", "salus"])
# Of Lightning itself: it says so on a machine with few cores, and where no logger is set.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning", "ignore::FutureWarning:lightning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*is a wrapper around.*")
def test_lightning_trains_an_epoch(windows: WindowDataset, tmp_path: Path, kind: str) -> None:
    require("lightning")
    import lightning

    seen: list[Seen] = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Regression(fitted(windows))

        def on_train_epoch_start(self) -> None:
            seen.append([])

        def training_step(self, batch: dict[str, Any]) -> torch.Tensor:
            seen[-1].extend(samples_of(batch))
            return self.model(batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=1e-2)

    module = Module()
    before = module.model.head.weight.detach().clone()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, loaders_of(windows)[kind])
    assert [sorted(epoch) for epoch in seen] == [EVERYTHING, EVERYTHING]
    assert seen[0] != seen[1]
    assert not torch.equal(module.model.head.weight, before)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    state = torch.load(tmp_path / "model.ckpt", weights_only=False)["state_dict"]
    fresh = Regression(Normalizer())
    fresh.load_state_dict({key.removeprefix("model."): values for key, values in state.items()})
    batch = windows.batch(np.arange(8))
    assert torch.equal(fresh(batch), module.model(batch))


# --- Accelerate -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dispatch", [False, True])
def test_accelerate_trains_an_epoch(windows: WindowDataset, tmp_path: Path, dispatch: bool) -> None:
    require("accelerate")
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=dispatch))
    model = Regression(fitted(windows))
    loader = DataLoader(windows, batch_size=16, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.Adam(model.parameters()), loader)
    seen: Seen = []
    for batch in loader:
        loss = model(batch)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        seen += samples_of(batch)
    assert sorted(seen) == EVERYTHING
    accelerator.save_model(accelerator.unwrap_model(model), tmp_path)  # as safetensors: tensors only
    from safetensors.torch import load_file

    fresh = Regression(Normalizer())
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert fresh.normalizer.modes == fitted(windows).modes


def test_accelerate_shards_the_stock_loader(windows: WindowDataset) -> None:
    require("accelerate")
    from accelerate.data_loader import prepare_data_loader

    seen: list[Seen] = []
    for rank in range(2):
        loader = DataLoader(windows, batch_size=8, drop_last=True)
        sharded = prepare_data_loader(loader, num_processes=2, process_index=rank, put_on_device=False)
        seen.append([sample for batch in sharded for sample in samples_of(batch)])
    assert not set(seen[0]) & set(seen[1])
    assert len(seen[0]) == len(seen[1]) == len(EVERYTHING) // 16 * 8
    assert sorted(seen[0] + seen[1]) == EVERYTHING[: len(EVERYTHING) // 16 * 16]


# --- torchdata --------------------------------------------------------------------------------------------------

RESUME = """
import pickle, sys
import torch
from torchdata.stateful_dataloader import StatefulDataLoader
import salus, salus.torch

def main():
    path, state_file, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    windows = salus.torch.WindowDataset(salus.open(path), {"images": [-1, 0], "states": 0, "actions": range(4)})
    loader = StatefulDataLoader(windows, batch_size=10, shuffle=True, num_workers=workers)
    with open(state_file, "rb") as file:
        loader.load_state_dict(pickle.load(file))
    for batch in loader:
        for episode, step in zip(batch["episode"].tolist(), batch["step"].tolist()):
            print(episode, step)

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata calls it
def test_a_stateful_dataloader_goes_on_in_a_new_process(
    dataset: salus.Dataset, windows: WindowDataset, tmp_path: Path, workers: int
) -> None:
    require("torchdata")
    from torchdata.stateful_dataloader import StatefulDataLoader

    torch.manual_seed(3)
    loader = StatefulDataLoader(windows, batch_size=10, shuffle=True, num_workers=workers)
    seen: Seen = []
    for number, batch in enumerate(loader, start=1):
        seen += samples_of(batch)
        if number == 4:
            break
    (tmp_path / "state.pickle").write_bytes(pickle.dumps(loader.state_dict()))
    (tmp_path / "resume.py").write_text(RESUME, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, tmp_path / "resume.py", dataset.url, tmp_path / "state.pickle", str(workers)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    resumed = [(int(e), int(t)) for e, t in (line.split() for line in done.stdout.splitlines())]
    assert len(seen) == 40
    assert sorted(seen + resumed) == EVERYTHING  # exactly those that were not seen yet, each once
    assert resumed != sorted(resumed)


# --- resuming in the middle of an epoch -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # Lightning's own, on resuming in an epoch, on small machines, on its folders
def test_lightning_resumes_at_the_exact_sample(windows: WindowDataset, tmp_path: Path) -> None:
    require("lightning")
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Recording(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(7, 1)
            self.seen: list[Seen] = []

        def train_dataloader(self) -> Loader:
            return Loader(windows, 10, shuffle=True, seed=4)

        def training_step(self, batch: dict[str, Any]) -> torch.Tensor:
            self.seen.append(samples_of(batch))
            return self.head(batch["states"]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    checkpoints = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=5, save_top_k=-1, filename="{step}")
    whole = Recording()
    lightning.Trainer(max_epochs=2, callbacks=[checkpoints], use_distributed_sampler=False, **quiet).fit(whole)
    rest = Recording()
    trainer = lightning.Trainer(max_epochs=2, enable_checkpointing=False, use_distributed_sampler=False, **quiet)
    trainer.fit(rest, ckpt_path=tmp_path / "step=5.ckpt")
    assert len(whole.seen) == 2 * 12
    assert rest.seen == whole.seen[5:]


def test_accelerate_keeps_the_state_of_the_loader(windows: WindowDataset, tmp_path: Path) -> None:
    require("accelerate")
    from accelerate import Accelerator

    accelerator, loader = Accelerator(cpu=True), Loader(windows, 10, shuffle=True)
    whole = [samples_of(batch) for batch in Loader(windows, 10, shuffle=True)]
    accelerator.register_for_checkpointing(loader)
    for number, _ in enumerate(loader, 1):
        if number == 4:
            accelerator.save_state(str(tmp_path))
            break
    accelerator.load_state(str(tmp_path))
    assert [samples_of(batch) for batch in loader] == whole[4:]
