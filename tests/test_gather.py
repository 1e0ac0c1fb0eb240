"""Reading: numpy semantics of an episode's features, and batched reads across episodes."""

from __future__ import annotations

import functools
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus
from salus import gather
from salus.errors import CorruptDataError, InvalidInputError, NotFoundError, StorageError
from salus.gather import Reader, Request, _State
from salus.layout import array_specs
from salus.shards import ShardReader
from salus.storage import LocalStorage, StoredFile, beneath


@pytest.mark.parametrize(
    "index",
    [
        np.s_[:],
        np.s_[3],
        np.s_[-1],
        np.s_[10:20],
        np.s_[5:33:7],
        np.s_[::-1],
        np.s_[30:10:-3],
        np.s_[7:7],
        np.s_[-40:100],
        np.s_[...],
        np.s_[..., 0],
        np.s_[4, 0],
        np.s_[2:5, ..., 1:3],
        np.s_[[3, 3, 20, -1]],
        np.array([31, 0, 16]),
        np.arange(33) % 3 == 0,
        np.s_[1:9, None],
        np.s_[4, ..., [0, 1]],
        np.s_[[4, 2], ..., [0, 1]],
        np.array(5),
        (),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["images", "states"])
def test_numpy_semantics(dataset: salus.Dataset, source: list[Any], name: str, index: Any) -> None:
    got, expected = dataset[3][name][index], source[3][name][index]
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == expected.dtype


def test_an_integer_and_a_list_around_a_slice_put_their_axis_first(dataset: salus.Dataset, source: list[Any]) -> None:
    got = dataset[3]["images"][4, :, [0, 5], 1:3]
    np.testing.assert_array_equal(got, source[3]["images"][4, :, [0, 5], 1:3])


def test_bounds_and_unknown_names(dataset: salus.Dataset) -> None:
    with pytest.raises(IndexError, match=r"step 33: out of range.*33 steps"):
        dataset[3]["states"][33]
    with pytest.raises(IndexError, match="out of range"):
        dataset[3]["states"][[0, -34]]
    with pytest.raises(NotFoundError, match="no feature 'state'.*did you mean 'states'"):
        dataset[3]["state"]
    with pytest.raises(IndexError):
        dataset[3]["states"][0, 7]
    with pytest.raises(IndexError):
        dataset[3]["states"][2**70]
    with pytest.raises(IndexError):
        dataset[3]["states"][np.array(3.0)]


def test_a_feature_behaves_like_an_array(dataset: salus.Dataset, source: list[Any]) -> None:
    feature = dataset[0]["states"]
    assert feature.shape == (20, 7)
    assert feature.dtype == np.float32
    assert len(feature) == 20
    np.testing.assert_array_equal(np.asarray(feature), source[0]["states"])
    assert "states float32 (20, 7)" in repr(feature)
    assert list(dataset[0]) == ["images", "states", "actions"]
    assert "states" in dataset[0]


def test_gather_pairs(dataset: salus.Dataset, source: list[Any]) -> None:
    pairs = [(4, 10), (0, 3), (4, 10), (3, 32), (-1, -1), (1, 4)]
    batch = dataset.gather({"images": pairs, "actions": pairs[:2]})
    assert batch["images"].shape == (6, 3, 12, 10)
    assert batch["actions"].shape == (2, 3)
    for row, (episode, step) in enumerate(pairs):
        np.testing.assert_array_equal(batch["images"][row], source[episode]["images"][step])


def test_gather_takes_uids_and_arrays_of_any_rank(dataset: salus.Dataset, source: list[Any]) -> None:
    by_uid = dataset.gather({"states": [(dataset[3].uid, 5)]})["states"]
    np.testing.assert_array_equal(by_uid[0], source[3]["states"][5])
    pairs = np.array([[[3, 0], [3, 1], [3, 20]], [[0, 0], [2, 5], [4, 39]]])
    windows = dataset.gather({"states": pairs})["states"]
    assert windows.shape == (2, 3, 7)
    np.testing.assert_array_equal(windows[1, 2], source[4]["states"][39])


def test_gather_on_a_selection_counts_within_it(dataset: salus.Dataset, source: list[Any]) -> None:
    failures = dataset.select(outcome="failure")
    np.testing.assert_array_equal(failures.gather({"states": [(1, 30)]})["states"][0], source[3]["states"][30])


def test_gather_images_come_channels_last_in_memory(dataset: salus.Dataset) -> None:
    batch = dataset.gather({"images": [(0, 1), (0, 2)]})["images"]
    assert batch.transpose(0, 2, 3, 1).flags.c_contiguous


def test_reading_one_episode_opens_only_its_own_shards(dataset: salus.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = beneath.open_file

    def counting(root: str, key: str, *flags: int) -> tuple[int, int]:
        opened.append(key)
        return real(root, key, *flags)

    monkeypatch.setattr(beneath, "open_file", counting)
    for name in dataset[3]:
        dataset[3][name][:]
    slot = dataset[3].slot
    shards = [f"{name}/c.{slot}.{segment}" for name in ("images", "states", "actions") for segment in range(3)]
    expected = [shard + (".0.0.0" if "images" in shard else ".0") for shard in shards]
    assert sorted(opened) == sorted(expected)


def test_gather_errors_name_episode_and_step(dataset: salus.Dataset) -> None:
    with pytest.raises(IndexError, match=rf"step 5: out of range.*{dataset[1].uid}.*5 steps"):
        dataset.gather({"states": [(1, 5)]})
    with pytest.raises(IndexError, match="episode 9: out of range"):
        dataset.gather({"states": [(9, 0)]})
    with pytest.raises(NotFoundError, match="no feature 'image'"):
        dataset.gather({"image": [(0, 0)]})
    with pytest.raises(InvalidInputError, match=r"pairs of \(episode, step\)"):
        dataset.gather({"states": [1, 2, 3]})
    assert dataset.gather({"states": []})["states"].shape == (0, 7)


# --- the plan of a batch -----------------------------------------------------------------------------------------


def test_windows_of_several_features_in_one_read(dataset: salus.Dataset, source: list[Any]) -> None:
    rows = np.array([3, 0, 3, 4])
    steps = np.array([[5, 6, 6], [0, 0, 1], [32, 31, 5], [15, 16, 17]])  # over segment borders, repeated, backwards
    got = dataset.read({"images": (rows, steps), "actions": (rows, steps), "labels": (rows, steps[:, 0])})
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(got["images"][place], source[row]["images"][steps[place]])
        np.testing.assert_array_equal(got["actions"][place], source[row]["actions"][steps[place]])
        np.testing.assert_array_equal(got["labels"][place], dataset[int(row)].labels[steps[place, 0]])


def test_a_repeated_step_is_decoded_once_and_neighbours_are_read_at_once(
    dataset: salus.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset.gather({"images": [(3, 0)]})  # opens the file
    reads, decoded = [], []
    real_pread, real_decode = os.pread, gather.decode_chunks
    monkeypatch.setattr(os, "pread", lambda *arguments: reads.append(1) or real_pread(*arguments))
    monkeypatch.setattr(gather, "decode_chunks", lambda *given: decoded.extend(given[1]) or real_decode(*given))
    dataset.gather({"images": [(3, 4), (3, 2), (3, 3), (3, 3), (3, 4), (3, 9)]})
    assert (len(reads), len(decoded)) == (2, 4)


@pytest.mark.parametrize("images_at_once", [1, 3, 1000])
@pytest.mark.parametrize("parallel", [False, True])
def test_any_steps_in_any_order(
    dataset: salus.Dataset,
    source: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    images_at_once: int,
    parallel: bool,
) -> None:
    image_bytes = source[0]["images"][0].nbytes
    monkeypatch.setattr(gather, "PIECE_BYTES", images_at_once * image_bytes)
    monkeypatch.setattr(gather, "PARALLEL_FROM_BYTES", 0)
    random = np.random.default_rng(images_at_once)
    for shape in [(0,), (1,), (2,), (40,), (0, 3), (1, 1), (9, 4), (12, 1)] * 3:
        rows = random.integers(0, 5, shape[0])
        least = min(len(dataset[int(row)]) for row in range(5))
        if random.random() < 0.5:  # windows, which repeat steps and run on
            starts = random.integers(0, least, shape[0])
            steps = starts if len(shape) == 1 else np.minimum(starts[:, None] + np.arange(shape[1]), least - 1)
        else:
            steps = random.integers(0, least, shape)
        got = dataset.read({"images": (rows, steps)}, parallel=parallel)["images"]
        assert got.shape == (*shape, *source[0]["images"].shape[1:])
        for place, row in enumerate(rows.tolist()):
            np.testing.assert_array_equal(got[place], source[row]["images"][steps[place]])


@pytest.mark.parametrize("pairs", [[(3, step) for step in range(8)], [(3, 7), (1, 0), (3, 5), (3, 0), (3, 5), (0, 2)]])
def test_damage_among_images_that_are_decoded_together_names_its_step(
    dataset: salus.Dataset, pairs: list[tuple[int, int]]
) -> None:
    entry, spec = dataset[3], array_specs(dataset.schema)["images"]
    segment, chunk = divmod(5, spec.segment_steps)
    key = spec.shard_key(entry.slot, segment)
    file = dataset.storage.open_shard(key)
    assert file is not None
    offset, _ = ShardReader(file, spec, spec.shard_identity(entry.uid, segment)).index.place(chunk)
    path = Path(dataset.url) / key
    body = bytearray(path.read_bytes())
    body[offset + 20] ^= 1
    path.write_bytes(body)
    with pytest.raises(CorruptDataError, match=f"episode {entry.uid}, 'images', step 5: crc32c does not hold"):
        salus.open(dataset.url).gather({"images": pairs})


def test_where_images_cannot_be_decoded_together_they_are_decoded_one_by_one(
    dataset: salus.Dataset, source: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise CorruptDataError("not together")

    monkeypatch.setattr(gather, "decode_chunks", refuse)
    np.testing.assert_array_equal(dataset[3]["images"][:], source[3]["images"])


def test_small_features_are_read_once(dataset: salus.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = [(row, step) for row in range(5) for step in range(len(dataset[row]))]
    first = dataset.gather({"states": everything})["states"]
    monkeypatch.setattr(gather, "decode_chunk", None)
    np.testing.assert_array_equal(dataset.gather({"states": everything})["states"], first)


@pytest.mark.parametrize("budget", [1, 700])  # one chunk, and a few
def test_a_request_larger_than_the_cache_of_small_features(
    dataset: salus.Dataset, source: list[Any], monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    monkeypatch.setattr(gather, "CHUNK_CACHE_BYTES", budget)
    pairs = [(row, step) for row in (4, 0, 3, 1) for step in range(len(dataset[row]))] * 2
    got = dataset.gather({"states": pairs})["states"]
    np.testing.assert_array_equal(got, [source[row]["states"][step] for row, step in pairs])


def test_one_thread_gives_the_same(dataset: salus.Dataset) -> None:
    rows, steps = np.repeat(np.arange(5), 3), np.tile(np.arange(3), 5)
    places = dict.fromkeys(("images", "states", "labels_mask"), (rows, steps))
    alone, together = dataset.read(places, parallel=False), dataset.read(places)
    for name in places:
        np.testing.assert_array_equal(alone[name], together[name])


def test_open_files_are_bounded_over_all_handles(dataset: salus.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "MAX_OPEN_FILES", 16)
    monkeypatch.setattr(gather, "_process", None)
    before = len(os.listdir("/proc/self/fd"))
    handles = [salus.open(dataset.url) for _ in range(10)]
    for handle in handles:
        for episode in handle:
            episode["images"][:]
    assert len(os.listdir("/proc/self/fd")) <= before + 16
    del handles, handle, episode
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_scan_gives_everything_in_order(dataset: salus.Dataset, source: list[Any]) -> None:
    blocks = list(dataset.scan())
    assert [block.episode.uid for block in blocks] == [entry.uid for entry in dataset.episodes]
    for block, arrays in zip(blocks, source, strict=True):
        assert block.start == 0
        for name in ("images", "states", "actions"):
            np.testing.assert_array_equal(block.arrays[name], arrays[name])


def test_a_scan_cuts_long_episodes_and_reads_labels(dataset: salus.Dataset, source: list[Any]) -> None:
    blocks = list(dataset.scan(["states", "labels"], max_block_bytes=7 * (28 + 16), threads=3))
    assert [block.start for block in blocks if block.episode == dataset[3]] == [0, 7, 14, 21, 28]
    states = np.concatenate([block.arrays["states"] for block in blocks])
    np.testing.assert_array_equal(states, np.concatenate([arrays["states"] for arrays in source]))
    with pytest.raises(NotFoundError, match="no feature 'state'"):
        dataset.scan(["state"])
    with pytest.raises(InvalidInputError, match="got the text 'states'"):
        dataset.scan("states")


class _SlowFile:
    """A stored file whose reads end only when four are under way, or after ten seconds."""

    def __init__(self, file: StoredFile, enough: threading.Event, reading: list[int]) -> None:
        self._file = file
        self._enough = enough
        self._reading = reading
        self.size = file.size

    def read(self, start: int, size: int) -> bytes:
        self._reading.append(1)
        if len(self._reading) >= 4:
            self._enough.set()
        self._enough.wait(10)
        if not self._enough.is_set():
            self._reading.pop()
        return self._file.read(start, size)

    def prefetch(self, start: int, size: int) -> None:
        self._file.prefetch(start, size)


class _SlowStorage(LocalStorage):
    """Every read waits for its answer, as in a bucket."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.enough = threading.Event()
        self.reading: list[int] = []

    @property
    def requests_at_once(self) -> int:
        return 8

    def open_shard(self, key: str) -> StoredFile | None:
        file = super().open_shard(key)
        return None if file is None else _SlowFile(file, self.enough, self.reading)


@pytest.mark.parametrize("name", ["images", "states"])
def test_what_a_batch_needs_of_a_bucket_is_asked_for_at_once(dataset: salus.Dataset, name: str) -> None:
    storage = _SlowStorage(Path(dataset.url))
    reader = Reader(storage, [dataset.schema])
    rows = np.arange(5)
    request = Request(array_specs(dataset.schema)[name], dataset.episodes, rows, np.zeros(5, np.int64))
    (found,) = reader.read([request], parallel=False)
    assert storage.enough.is_set(), "four reads were never under way at the same time"
    for row in rows:
        np.testing.assert_array_equal(found[row], dataset[row][name][0])


# --- reads that end early -----------------------------------------------------------------------------------------


def test_where_one_read_fails_no_thread_begins_another() -> None:
    begun: list[int] = []

    def read(number: int) -> None:
        begun.append(number)
        if number == 3:
            raise StorageError("no answer")
        time.sleep(0.01)

    with pytest.raises(StorageError, match="no answer"):
        _State().run(iter([functools.partial(read, number) for number in range(10_000)]), 32)
    assert len(begun) < 1000


def test_ctrl_c_waits_for_no_other_thread_and_is_not_replaced_by_its_error() -> None:
    waits, answered = threading.Event(), threading.Event()

    def read() -> None:
        if threading.current_thread() is threading.main_thread():
            assert waits.wait(20)
            raise KeyboardInterrupt
        waits.set()
        answered.wait(20)
        raise StorageError("no answer")

    with pytest.raises(KeyboardInterrupt):
        _State().run(iter([read, read]), 2)
    assert not answered.is_set()
    answered.set()
