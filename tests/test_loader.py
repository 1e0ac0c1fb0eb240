"""The loader: every sample once, resumable anywhere, the same for any number of threads and ranks."""

from __future__ import annotations

import copy
import itertools
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")

import salus  # noqa: E402 - after the check that torch is there
import salus.torch  # noqa: E402
from salus.errors import CorruptDataError, InvalidInputError, NotFoundError  # noqa: E402
from salus.torch import Loader, Progress, WindowDataset  # noqa: E402

from .conftest import LENGTHS  # noqa: E402

NUM_SAMPLES = sum(LENGTHS)
ORDERS: list[dict[str, Any]] = [
    {},
    {"shuffle": True},
    {"shuffle": True, "block_size": 4, "mixed_blocks": 3},
    {"weights": "outcome", "num_samples": 100},
]


@pytest.fixture
def windows(dataset: salus.Dataset) -> WindowDataset:
    return WindowDataset(dataset, {"images": [-1, 0], "actions": range(4)})


def samples_of(batch: dict[str, Any]) -> list[tuple[int, int]]:
    return list(zip(batch["episode"].tolist(), batch["step"].tolist(), strict=True))


def epoch_of(loader: Loader) -> list[tuple[int, int]]:
    return [sample for batch in loader for sample in samples_of(batch)]


def test_an_epoch_holds_every_sample_once_with_its_values(windows: WindowDataset, source: list[Any]) -> None:
    loader = Loader(windows, 16, shuffle=True, seed=3, threads=3)
    seen = []
    for batch in loader:
        for row, (episode, step) in enumerate(samples_of(batch)):
            seen.append((episode, step))
            np.testing.assert_array_equal(batch["images"][row, 1], source[episode]["images"][step])
            np.testing.assert_array_equal(batch["actions"][row, 0], source[episode]["actions"][step])
    assert len(loader) == -(-NUM_SAMPLES // 16)
    assert len(seen) == len(set(seen)) == NUM_SAMPLES
    assert seen != sorted(seen)
    assert batch["images"].dtype == torch.uint8
    assert batch["images"].shape == (NUM_SAMPLES % 16, 2, 3, 12, 10)


def test_epochs_differ_seeds_repeat_and_threads_change_nothing(windows: WindowDataset) -> None:
    first = Loader(windows, 8, shuffle=True, seed=1, threads=1, prefetch=0)
    second = Loader(windows, 32, shuffle=True, seed=1, threads=4)
    epochs = [epoch_of(first), epoch_of(first)]
    assert epochs == [epoch_of(second), epoch_of(second)]
    assert epochs[0] != epochs[1]
    assert epoch_of(Loader(windows, 8, shuffle=True, seed=2)) != epochs[0]
    again = Loader(windows, 8, shuffle=True, seed=1)
    again.set_epoch(1)
    assert again.epoch == 1
    assert epoch_of(again) == epochs[1]
    assert epoch_of(Loader(windows, 8)) == sorted(epochs[0])


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("taken", [0, 1, 5])
def test_it_resumes_at_the_exact_sample_with_another_batch_size(
    windows: WindowDataset, order: dict[str, Any], taken: int
) -> None:
    whole = epoch_of(Loader(windows, 8, seed=5, **order))
    loader = Loader(windows, 8, seed=5, **order)
    seen = [sample for batch in itertools.islice(loader, taken) for sample in samples_of(batch)]
    state = pickle.loads(pickle.dumps(loader.state_dict()))  # noqa: S301 - our own, as a checkpoint keeps it
    other = Loader(windows, 5, seed=5, threads=1, **order)
    other.load_state_dict(state)
    assert seen + epoch_of(other) == whole
    following = epoch_of(other)
    loader.set_epoch(1)
    assert following == epoch_of(loader)


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_ranks_share_an_epoch_and_it_resumes_with_another_world_size(
    windows: WindowDataset, order: dict[str, Any]
) -> None:
    whole = epoch_of(Loader(windows, 4, **order))
    ranks = [Loader(windows, 4, rank=rank, world_size=3, **order) for rank in range(3)]
    steps = [[samples_of(batch) for batch in itertools.islice(loader, 2)] for loader in ranks]
    seen = [sample for step in zip(*steps, strict=True) for part in step for sample in part]
    assert seen == whole[:24]
    assert ranks[0].state_dict() == ranks[2].state_dict()
    resumed = [Loader(windows, 7, rank=rank, world_size=2, **order) for rank in range(2)]
    for loader in resumed:
        loader.load_state_dict(ranks[0].state_dict())
    rest = [[samples_of(batch) for batch in loader] for loader in resumed]
    assert [len(batch) for batch in rest[0]] == [len(batch) for batch in rest[1]]
    seen += [sample for step in zip(*rest, strict=True) for part in step for sample in part]
    assert seen[: len(whole)] == whole
    assert len(seen) - len(whole) <= 1  # at most world_size - 1 come twice


def test_drop_last_leaves_out_what_does_not_fill_a_batch_of_all_ranks(windows: WindowDataset) -> None:
    loader = Loader(windows, 10, rank=1, world_size=2, drop_last=True)
    sizes = [len(batch["step"]) for batch in loader]
    assert sizes == [10] * (NUM_SAMPLES // 20)
    assert len(loader) == len(sizes)
    assert loader.epoch == 1
    state = loader.state_dict()
    loader.load_state_dict(state)
    assert [len(batch["step"]) for batch in loader] == sizes
    assert loader.epoch == 2
    with pytest.raises(InvalidInputError, match="drop_last=True leaves no batch: 114 samples, a batch takes 200"):
        Loader(windows, 100, rank=0, world_size=2, drop_last=True)


def test_a_state_taken_with_the_last_batch_begins_the_next_epoch(windows: WindowDataset) -> None:
    for drop_last in (False, True):
        loader = Loader(windows, 10, shuffle=True, drop_last=drop_last)
        for number, _ in enumerate(loader, 1):
            if number == len(loader):
                state = loader.state_dict()
        other = Loader(windows, 10, shuffle=True, drop_last=drop_last)
        other.load_state_dict(state)
        assert other.epoch == loader.epoch == 1
        assert epoch_of(other) == epoch_of(loader)
        assert other.epoch == 2


def test_a_trainer_that_counts_goes_on_where_the_state_was_taken(windows: WindowDataset) -> None:
    loader = Loader(windows, 10, shuffle=True)
    whole = [[samples_of(batch) for batch in loader] for _ in range(3)]
    other = Loader(windows, 10, shuffle=True)
    other.set_epoch(1)
    list(itertools.islice(other, 4))
    resumed, seen = Loader(windows, 10, shuffle=True), []
    resumed.load_state_dict(other.state_dict())
    for epoch in range(resumed.epoch, 3):
        resumed.set_epoch(epoch)
        seen.append([samples_of(batch) for batch in resumed])
    assert seen == [whole[1][4:], whole[2]]


def test_two_passes_at_once_do_not_disturb_each_other(windows: WindowDataset) -> None:
    loader = Loader(windows, 10)
    state = {**loader.state_dict(), "samples_given": 90}
    loader.load_state_dict(state)
    first, second = iter(loader), iter(loader)
    assert samples_of(next(second))[0] == (0, 0)
    rest = [sample for batch in first for sample in samples_of(batch)]
    assert rest == epoch_of(Loader(windows, 10))[90:]


def test_a_transform_is_called_by_one_thread_at_a_time(dataset: salus.Dataset) -> None:
    scratch = torch.zeros(7)

    def careless(sample: dict[str, Any]) -> dict[str, Any]:
        scratch.copy_(sample["states"])
        time.sleep(0.0005)
        return {**sample, "same": bool((scratch == sample["states"]).all())}

    loader = Loader(WindowDataset(dataset, {"states": 0}, transform=careless), 4, threads=4)
    assert all(bool(same) for batch in loader for same in batch["same"])


def test_a_copy_of_a_loader_gives_the_same(windows: WindowDataset) -> None:
    loader = Loader(windows, 10, shuffle=True)
    batches = iter(loader)
    next(batches)
    for copied in (pickle.loads(pickle.dumps(loader)), copy.deepcopy(loader)):  # noqa: S301 - our own
        copied.set_epoch(0)
        assert epoch_of(copied) == epoch_of(Loader(windows, 10, shuffle=True))


def test_leaving_an_epoch_begins_the_next_one(windows: WindowDataset) -> None:
    loader = Loader(windows, 8, shuffle=True)
    next(iter(loader))
    assert loader.epoch == 0
    left = epoch_of(loader)
    assert loader.epoch == 2
    other = Loader(windows, 8, shuffle=True)
    other.set_epoch(1)
    assert left == epoch_of(other)


def test_a_state_of_another_order_is_refused(windows: WindowDataset, dataset: salus.Dataset) -> None:
    state = Loader(windows, 8, shuffle=True).state_dict()
    with pytest.raises(InvalidInputError, match="seed: the state has 0, this loader 1"):
        Loader(windows, 8, shuffle=True, seed=1).load_state_dict(state)
    with pytest.raises(InvalidInputError, match="shuffle: the state has True, this loader False"):
        Loader(windows, 8).load_state_dict(state)
    fewer = WindowDataset(dataset[1:], {"actions": 0})
    for name, value in (("epoch", "x"), ("samples_given", None), ("samples_given", 115)):
        with pytest.raises(InvalidInputError, match=f"{name}: got {value!r}"):
            Loader(windows, 8, shuffle=True).load_state_dict({**state, name: value})
    with pytest.raises(InvalidInputError, match="state: got NoneType"):
        Loader(windows, 8).load_state_dict(None)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="num_samples: the state has 114, this loader 94.*tag"):
        Loader(fewer, 8, shuffle=True).load_state_dict(state)
    reordered = WindowDataset(dataset.select(uids=[entry.uid for entry in dataset.episodes][::-1]), {"actions": 0})
    with pytest.raises(InvalidInputError, match="windows: the state has"):
        Loader(reordered, 8, shuffle=True).load_state_dict(state)


def test_weights_balance_a_column_and_episodes(windows: WindowDataset, dataset: salus.Dataset) -> None:
    drawn = epoch_of(Loader(windows, 64, weights="outcome", num_samples=6000))
    outcomes = [entry.result for entry in dataset.episodes]
    shares = {name: np.mean([outcomes[episode] == name for episode, _ in drawn]) for name in set(outcomes)}
    assert all(abs(share - 1 / len(shares)) < 0.03 for share in shares.values())
    only = epoch_of(Loader(windows, 64, weights=[0, 0, 0, 1, 0]))
    assert {episode for episode, _ in only} == {3}
    assert len(only) == NUM_SAMPLES
    one = np.zeros(NUM_SAMPLES)
    one[LENGTHS[0] + 2] = 1
    assert set(epoch_of(Loader(windows, 64, weights=one))) == {(1, 2)}
    with pytest.raises(NotFoundError, match="outcom"):
        Loader(windows, 64, weights="outcom")
    with pytest.raises(InvalidInputError, match=r"weights: got list \(3,\), expected one per episode \(5,\)"):
        Loader(windows, 64, weights=[1, 2, 3])


def test_datasets_are_mixed_by_their_weights(dataset: salus.Dataset) -> None:
    mixed = salus.concat([dataset[:1], dataset[1:]], weights=[0.7, 0.3])
    loader = Loader(WindowDataset(mixed, {"states": 0}), 64, num_samples=6000, shuffle=True)
    drawn = epoch_of(loader)
    assert len(drawn) == 6000
    assert abs(np.mean([episode == 0 for episode, _ in drawn]) - 0.7) < 0.03
    whole = Loader(WindowDataset(salus.concat([dataset[:1], dataset[1:]]), {"states": 0}), 64, shuffle=True)
    assert len(set(epoch_of(whole))) == NUM_SAMPLES
    with pytest.raises(InvalidInputError, match="block_size is not for samples that are drawn by weight"):
        Loader(WindowDataset(mixed, {"states": 0}), shuffle=True, block_size=4)


def test_arguments_that_do_not_fit(windows: WindowDataset, dataset: salus.Dataset) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"threads": 1.5}, "threads: got 1.5"),
        ({"block_size": 8}, "block_size is for shuffle=True"),
        ({"num_samples": 8}, "num_samples is for weights"),
        ({"weights": "outcome", "shuffle": True}, "leave out shuffle"),
        ({"rank": 1}, "expected both or neither"),
        ({"rank": 2, "world_size": 2}, r"rank 2, expected 0 .. 1"),
        ({"rank": "0", "world_size": 2}, "rank: got '0', expected a whole number"),
        ({"seed": None}, "seed: got None, expected a whole number"),
        ({"weights": {"success": 1}}, r"weights: got dict \(0,\), expected one per episode"),
        ({"weights": [-1] * 5}, "expected finite numbers of at least 0"),
        ({"device": "gpu"}, "device: got 'gpu'"),
    ]
    for options, message in wrong:
        with pytest.raises(InvalidInputError, match=message):
            Loader(windows, **options)
    with pytest.raises(InvalidInputError, match=r"got Dataset, expected a WindowDataset"):
        Loader(dataset)  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        with pytest.raises(InvalidInputError, match="pin_memory=True needs CUDA"):
            Loader(windows, pin_memory=True)


def test_progress_is_told(windows: WindowDataset) -> None:
    told: list[Progress] = []
    loader = Loader(windows, 40, progress=told.append)
    list(loader)
    list(loader)
    assert [(p.epoch, p.batches, p.num_batches) for p in told] == [(e, n, 3) for e in (0, 1) for n in (1, 2, 3)]
    assert all(p.waited_s >= 0 for p in told)


def test_transforms_run_and_a_failing_one_says_where(dataset: salus.Dataset) -> None:
    plain = WindowDataset(dataset, {"states": 0}, transform=lambda sample: {"sum": sample["states"].sum()})
    batch = next(iter(Loader(plain, 8)))
    assert list(batch) == ["sum"]
    assert batch["sum"].shape == (8,)

    def fail(sample: dict[str, Any]) -> dict[str, Any]:
        if (int(sample["episode"]), int(sample["step"])) == (2, 7):
            raise ValueError("a robot without arms")
        return sample

    with pytest.raises(ValueError, match="without arms") as caught:
        list(Loader(WindowDataset(dataset, {"states": 0}, transform=fail), 8, shuffle=True))
    assert f"episode {dataset[2].uid}, step 7" in caught.value.__notes__[0]


def test_mistakes_of_functions_and_devices_are_named(dataset: salus.Dataset) -> None:
    forgotten = WindowDataset(dataset, {"states": 0}, transform=lambda _: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(InvalidInputError, match="transform: got None, expected the sample") as caught:
        next(iter(Loader(forgotten, 4)))
    assert f"episode {dataset[0].uid}, step 0" in caught.value.__notes__[0]
    with pytest.raises(ZeroDivisionError) as raised:
        WindowDataset(dataset, {"states": 0}, where=lambda _: np.array([1 // 0]))
    assert raised.value.__notes__ == [f"salus: in where= of episode {dataset[0].uid}"]
    with pytest.raises(InvalidInputError, match=r"got slice\(0, 3, None\), expected the number of a sample"):
        WindowDataset(dataset, {"states": 0})[0:3]  # type: ignore[index]
    if not torch.cuda.is_available():
        with pytest.raises(InvalidInputError, match="got 'cuda', but PyTorch finds no CUDA here"):
            Loader(WindowDataset(dataset, {"states": 0}), 4, device="cuda")


def test_damage_names_episode_and_step(windows: WindowDataset, dataset: salus.Dataset) -> None:
    entry = dataset[3]
    shard = Path(dataset.url) / "images" / f"c.{entry.slot}.1.0.0.0"
    body = bytearray(shard.read_bytes())
    body[10] ^= 1
    shard.write_bytes(body)
    with pytest.raises(CorruptDataError, match=rf"episode {entry.uid}, 'images', step \d+: crc32c does not hold"):
        list(Loader(windows, 8, shuffle=True))


def test_a_batch_that_is_kept_does_not_change(windows: WindowDataset, source: list[Any]) -> None:
    kept = [batch["images"] for batch in Loader(windows, 16)]
    whole = torch.cat(kept)[:, 1]
    expected = np.concatenate([episode["images"] for episode in source])
    np.testing.assert_array_equal(whole, expected)


def test_images_are_channels_last(dataset: salus.Dataset) -> None:
    batch = next(iter(Loader(WindowDataset(dataset, {"images": 0}), 16)))
    assert batch["images"].is_contiguous(memory_format=torch.channels_last)


def test_the_device_moves_every_tensor(windows: WindowDataset) -> None:
    batch = next(iter(Loader(windows, 16, device="meta")))
    assert {value.device.type for value in batch.values()} == {"meta"}
