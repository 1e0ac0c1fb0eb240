"""The cache on a local disk: what a bucket was asked for once, it is not asked for again, and nothing stale is read."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import random
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus
from salus.codecs import crc32c
from salus.errors import CorruptDataError, InvalidInputError
from salus.storage import DiskCache, ObjectStorage, objects
from salus.storage.disk_cache import BLOCK_BYTES

from ..conftest import make_arrays
from . import servers

_datasets = itertools.count()
_MB = 2**20
_EPOCH = datetime.fromtimestamp(0, UTC)


def body_of(identity: str, size: int) -> bytes:
    return random.Random(identity).randbytes(size)  # noqa: S311


class Bucket:
    """Objects, and what was fetched of them."""

    def __init__(self, size: int = 3 * _MB + 17) -> None:
        self.size = size
        self.fetched: list[tuple[int, int]] = []

    def read(self, cache: DiskCache, identity: str, start: int, size: int) -> bytes:
        body = body_of(identity, self.size)

        def fetch(first: int, count: int) -> bytes:
            self.fetched.append((first, count))
            return body[first : first + count]

        return cache.read(identity, self.size, start, size, fetch)


def blocks(cache: DiskCache) -> list[Path]:
    return [path for path in (cache.folder / "salus-blocks").rglob("*") if path.is_file()]


def test_every_range_is_read_and_each_block_fetched_once(tmp_path: Path) -> None:
    cache, bucket = DiskCache(tmp_path / "cache", 100 * _MB), Bucket()
    body, rng = body_of("a", bucket.size), random.Random(0)  # noqa: S311
    for _ in range(200):
        start = rng.randrange(bucket.size)
        size = rng.randint(1, min(_MB, bucket.size - start))
        assert bucket.read(cache, "a", start, size) == body[start : start + size]
    assert bucket.read(cache, "a", 0, bucket.size) == body
    assert sum(count for _, count in bucket.fetched) == bucket.size
    bucket.fetched.clear()
    assert bucket.read(DiskCache(tmp_path / "cache", 100 * _MB), "a", 5, 2 * _MB) == body[5 : 5 + 2 * _MB]
    assert bucket.fetched == []
    assert bucket.read(cache, "another version", 0, 9) == body_of("another version", bucket.size)[:9]
    assert bucket.fetched == [(0, BLOCK_BYTES)]


def test_missing_blocks_side_by_side_are_fetched_in_one_call(tmp_path: Path) -> None:
    cache, bucket = DiskCache(tmp_path / "cache", 100 * _MB), Bucket()
    bucket.read(cache, "a", 4 * BLOCK_BYTES, 1)
    bucket.fetched.clear()
    bucket.read(cache, "a", 0, bucket.size)
    last = 5 * BLOCK_BYTES
    assert bucket.fetched == [(0, 4 * BLOCK_BYTES), (last, bucket.size - last)]


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "longer"])
def test_a_block_that_rotted_is_fetched_again(tmp_path: Path, damage: str) -> None:
    cache, bucket = DiskCache(tmp_path / "cache", 100 * _MB), Bucket()
    body = bucket.read(cache, "a", 0, 100)
    (block,) = blocks(cache)
    found = bytearray(block.read_bytes())
    if damage == "bit":
        found[50] ^= 4
    block.write_bytes({"cut": found[:-1], "empty": b"", "longer": found + b"x"}.get(damage, bytes(found)))
    assert bucket.read(cache, "a", 0, 100) == body
    assert bucket.read(cache, "a", 0, 100) == body
    assert len(bucket.fetched) == 2


def test_what_was_read_longest_ago_goes_first(tmp_path: Path) -> None:
    cache, bucket = DiskCache(tmp_path / "cache", 8 * BLOCK_BYTES), Bucket(BLOCK_BYTES)
    bucket.read(cache, "often", 0, 1)
    for number in range(40):
        for path in blocks(cache):  # an hour passes
            os.utime(path, (path.stat().st_mtime - 3600,) * 2)
        bucket.read(cache, str(number), 0, 1)
        bucket.read(cache, "often", 0, 1)
        assert sum(path.stat().st_size for path in blocks(cache)) <= 9 * BLOCK_BYTES
    bucket.fetched.clear()
    bucket.read(cache, "often", 0, 1)
    bucket.read(cache, "39", 0, 1)
    assert bucket.fetched == []
    bucket.read(cache, "20", 0, 1)
    assert bucket.fetched != []


def _read_much(arguments: tuple[DiskCache, int]) -> int:
    cache, seed = arguments
    bucket, rng = Bucket(), random.Random(seed)  # noqa: S311
    for _ in range(60):
        identity, start = str(rng.randrange(4)), rng.randrange(2 * _MB)
        assert bucket.read(cache, identity, start, _MB) == body_of(identity, bucket.size)[start : start + _MB]
    return len(bucket.fetched)


def test_many_processes_share_it_while_it_is_swept(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 6 * _MB)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        fetched = pool.map(_read_much, [(cache, seed) for seed in range(3)])
    assert min(fetched) > 0
    assert sum(path.stat().st_size for path in blocks(cache)) <= 7 * _MB
    assert not [path for path in blocks(cache) if path.name.endswith(".tmp")]


def test_a_cache_that_does_not_work_costs_time_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, bucket = DiskCache(tmp_path / "cache", 100 * _MB), Bucket()
    (tmp_path / "cache" / "salus-blocks").rmdir()
    (tmp_path / "cache" / "salus-blocks").write_bytes(b"a file")
    for _ in range(2):
        assert bucket.read(cache, "a", 7, 100) == body_of("a", bucket.size)[7:107]
    assert capsys.readouterr().err.count("the cache does not work") == 1


def test_a_lock_that_cannot_be_taken_costs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache, bucket = DiskCache(tmp_path / "cache", 100 * _MB), Bucket()
    (tmp_path / "cache" / "sweep.lock").symlink_to(tmp_path / "none" / "there")
    assert bucket.read(cache, "a", 7, 100) == body_of("a", bucket.size)[7:107]
    assert capsys.readouterr().err.count("the cache does not work") == 1


def test_a_cache_that_is_removed_while_it_is_used_costs_time_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, bucket = DiskCache(tmp_path / "cache", 8 * BLOCK_BYTES), Bucket()
    body, real = body_of("a", bucket.size), os.replace
    monkeypatch.setattr(
        Path, "replace", lambda path, target: (real(path, target), shutil.rmtree(tmp_path / "cache"))[0]
    )
    for start in (0, _MB, 2 * _MB):
        assert bucket.read(cache, "a", start, 100) == body[start : start + 100]
    assert not (tmp_path / "cache" / "salus-blocks").exists()


def test_less_than_was_asked_for_is_not_kept(tmp_path: Path) -> None:
    cache, bucket = DiskCache(tmp_path / "cache", 100 * _MB), Bucket()
    cache.read("a", bucket.size, 0, 1000, lambda start, size: b"too few")
    assert blocks(cache) == []
    assert bucket.read(cache, "a", 0, 1000) == body_of("a", bucket.size)[:1000]
    (block,) = blocks(cache)  # as an earlier version may have left it
    block.write_bytes(b"too few" + crc32c(b"too few").to_bytes(4, "little"))
    assert bucket.read(cache, "a", 0, 1000) == body_of("a", bucket.size)[:1000]


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cache_bytes: got 5, expected at least 1048576"):
        DiskCache(tmp_path, 5)
    with pytest.raises(InvalidInputError, match="cache_bytes: got None, expected a number of bytes"):
        DiskCache(tmp_path, None)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="cache: got s3://bucket/cache, expected a folder on a local disk"):
        DiskCache("s3://bucket/cache", 100 * _MB)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidInputError, match=r"cache: .*, expected a folder; .*/file"):
        DiskCache(tmp_path / "file", 100 * _MB)


@pytest.mark.parametrize("name", ["moto", "azurite"])
def test_a_dataset_is_read_from_the_cache_the_second_time(
    name: str,
    stores: Callable[[str], servers.Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SALUS_SPOOL", str(tmp_path / "spools"))
    server = stores(name)
    url = f"{server.url}/cached-{next(_datasets)}/data.zarr"
    schema = salus.Schema({"images": salus.Image(height=48, width=64)}, rate_hz=50)
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 48, 64), np.uint8)
    with salus.Recorder(salus.create(url, schema, storage_options=server.options)) as recorder:
        recorder.record_episode({"images": images})
    asked: list[Any] = []
    real = ObjectStorage._fetch
    monkeypatch.setattr(ObjectStorage, "_fetch", lambda *a: (asked.append(a), real(*a))[1])
    for time in range(2):
        dataset = salus.open(url, storage_options=server.options, cache=tmp_path / "cache")
        dataset = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - as a loader's worker gets it
        np.testing.assert_array_equal(dataset[0]["images"][:], images)
        assert bool(asked) == (time == 0)
        asked.clear()


def test_an_object_that_was_replaced_leaves_nothing_in_the_cache(
    stores: Callable[[str], servers.Server], tmp_path: Path
) -> None:
    """Its first content, and so its ETag, comes back later."""
    server = stores("moto")
    url, cache = f"{server.url}/cached-{next(_datasets)}", DiskCache(tmp_path / "cache", 100 * _MB)
    storage, key = ObjectStorage(url, server.options, cache), "images/c.0.0"
    first, second = os.urandom(100_000), os.urandom(100_000)
    storage.put({key: first})
    shard = storage.open_shard(key)
    assert shard is not None
    storage.put({key: second})
    with pytest.raises(CorruptDataError, match="the object was replaced after it was opened"):
        shard.read(0, 100)
    storage.put({key: first})
    shard = storage.open_shard(key)
    assert shard is not None
    assert shard.read(0, 100) == first[:100]


def test_the_same_url_in_another_store_is_another_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, meta = DiskCache(tmp_path / "cache", 100 * _MB), {"e_tag": "same", "size": 100, "last_modified": _EPOCH}
    keys = {"access_key_id": "a", "secret_access_key": "b", "region": "us-east-1"}
    account = {"account_key": "AAAA", "endpoint": "https://a.example"}
    places = [
        ("s3://bucket/x", {**keys, "endpoint": "http://one:9000"}, {}),
        ("s3://bucket/x", {**keys, "aws_endpoint_url": "http://two:9000"}, {}),
        ("s3://bucket/x", keys, {"AWS_ENDPOINT_URL": "http://three:9000"}),
        ("s3://bucket/x", keys, {}),
        ("az://bucket/x", {**account, "account_name": "ada"}, {}),
        ("az://bucket/x", {**account, "azure_storage_account_name": "bob"}, {}),
    ]
    for number, (url, options, environment) in enumerate(places):
        with monkeypatch.context() as within:
            for name, value in environment.items():
                within.setenv(name, value)
            storage = ObjectStorage(url, options, cache)
        for days in range(2):  # or made again, later
            body = bytes([number, days]) * 50
            monkeypatch.setattr(objects, "_got", lambda *_, body=body: (meta, body))
            found: Any = {**meta, "path": "images/c.0.0", "last_modified": _EPOCH + timedelta(days)}
            assert storage.get_range(found, 0, 100) == body
            assert storage.get_range(found, 50, 50) == body[50:]


def test_verify_asks_the_bucket_and_not_the_cache(
    stores: Callable[[str], servers.Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    schema: salus.Schema,
) -> None:
    monkeypatch.setenv("SALUS_SPOOL", str(tmp_path / "spools"))
    server = stores("moto")
    url = f"{server.url}/cached-{next(_datasets)}/data.zarr"
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 48, 64), np.uint8)
    schema = salus.Schema({"images": salus.Image(height=48, width=64)}, rate_hz=50)
    with salus.Recorder(salus.create(url, schema, storage_options=server.options)) as recorder:
        recorder.record_episode({"images": images})
    dataset = salus.open(url, storage_options=server.options, cache=tmp_path / "cache")
    np.testing.assert_array_equal(dataset[0]["images"][:], images)
    kept = blocks(DiskCache(tmp_path / "cache", 100 * _MB))
    assert kept
    for block in kept:  # what the cache says is whole, the bucket does not have
        part = bytes(block.stat().st_size - 4)
        block.write_bytes(part + crc32c(part).to_bytes(4, "little"))
    assert salus.verify(dataset).findings == ()


def test_a_local_dataset_is_not_kept_twice(tmp_path: Path, schema: salus.Schema) -> None:
    with salus.Recorder(salus.create(tmp_path / "data.zarr", schema)) as recorder:
        recorder.record_episode(make_arrays(20))
    dataset = salus.open(tmp_path / "data.zarr", cache=tmp_path / "cache")
    assert dataset[0]["images"][:].shape == (20, 3, 12, 10)
    assert not (tmp_path / "cache").exists()
