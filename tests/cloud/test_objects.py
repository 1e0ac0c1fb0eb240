"""Datasets in object stores: opened, read, amended, published, checked; and what a store must not get away with."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
import zarr
from obstore.exceptions import PreconditionError

import salus
from salus.errors import (
    AlreadyExistsError,
    CommitUnknownError,
    InvalidInputError,
    NotFoundError,
    RecordingError,
    StorageError,
)
from salus.storage import ObjectStorage, Storage, objects, publication
from salus.torch import Loader, WindowDataset

from . import servers
from .proxy import Proxy

_datasets = itertools.count()
_LENGTHS = (20, 33, 47)


@pytest.fixture(params=servers.SERVERS)
def server(request: pytest.FixtureRequest, stores: Callable[[str], servers.Server]) -> servers.Server:
    """Each kind of store, with an empty place in it."""
    server = stores(request.param)
    return server._replace(url=f"{server.url}/objects-{next(_datasets)}")


@pytest.fixture
def s3(stores: Callable[[str], servers.Server]) -> servers.Server:
    """The one that starts fastest, where the kind makes no difference."""
    server = stores("moto")
    return server._replace(url=f"{server.url}/objects-{next(_datasets)}")


@pytest.fixture
def original(tmp_path: Path, schema: salus.Schema, arrays: Callable[..., Any]) -> salus.Dataset:
    """Three episodes, recorded locally."""
    with salus.Recorder(salus.create(tmp_path / "original.zarr", schema)) as recorder:
        for seed, num_steps in enumerate(_LENGTHS):
            recorder.record_episode(arrays(num_steps, seed), task=f"task {seed}")
    return salus.open(tmp_path / "original.zarr")


def upload(dataset: salus.Dataset, server: servers.Server) -> str:
    """A byte-for-byte copy; returns its URL."""
    root = Path(dataset.url)
    files = [path for path in root.rglob("*") if path.is_file() and path.name != "publish.lock"]
    url = f"{server.url}/data.zarr"
    ObjectStorage(url, server.options).put({path.relative_to(root).as_posix(): path.read_bytes() for path in files})
    return url


def assert_same(dataset: salus.DatasetView, expected: salus.DatasetView) -> None:
    assert [episode.uid for episode in dataset] == [episode.uid for episode in expected]
    for episode, other in zip(dataset, expected, strict=True):
        for name in ("images", "states", "actions"):
            np.testing.assert_array_equal(episode[name][:], other[name][:])


# --- reading and amending -----------------------------------------------------------------------------------------


def test_a_dataset_in_a_bucket_is_read_amended_tagged_and_verified(
    server: servers.Server, original: salus.Dataset
) -> None:
    url = upload(original, server)
    dataset = salus.open(url, mode="a", storage_options=server.options)
    assert_same(dataset, original)
    assert dataset.digest == original.digest
    assert salus.verify(dataset).findings == ()
    dataset.update_metadata(0, {"operator": "Ada"})
    dataset.refresh().tag("v1")
    dataset.delete(1)
    assert len(dataset.refresh()) == 2
    assert dataset[0].metadata["operator"] == "Ada"
    tagged = salus.open(url, tag="v1", storage_options=server.options)
    assert_same(tagged, original)
    assert salus.verify(url, storage_options=server.options).findings == ()


def test_plain_zarr_reads_what_was_published_into_a_bucket(server: servers.Server, original: salus.Dataset) -> None:
    from zarr.storage import ObjectStore

    url = upload(original, server)
    salus.open(url, mode="a", storage_options=server.options).delete(2)
    options = server.options | {"client_options": {"allow_http": True}}
    group = zarr.open_group(ObjectStore(obstore.store.from_url(url, **options), read_only=True), mode="r")
    assert group["episode_length"][:].tolist() == [*_LENGTHS[:2], 0]
    np.testing.assert_array_equal(group["images"][1, 30], original[1]["images"][30])


def test_plain_zarr_reads_a_bucket_through_fsspec(s3: servers.Server, original: salus.Dataset) -> None:
    url, options = upload(original, s3), s3.options
    client = {"endpoint_url": options["endpoint"], "region_name": options["region"]}
    named = {"key": options["access_key_id"], "secret": options["secret_access_key"], "client_kwargs": client}
    array = zarr.open(url, mode="r", storage_options=named)["images"]
    np.testing.assert_array_equal(array[1, 30], original[1]["images"][30])


@pytest.mark.parametrize("name", ["moto", "seaweedfs"])
def test_tensorstore_reads_a_bucket(
    name: str, stores: Callable[[str], servers.Server], original: salus.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorstore

    server = stores(name)
    url = upload(original, server._replace(url=f"{server.url}/objects-{next(_datasets)}"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.options["access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.options["secret_access_key"])
    kvstore = {
        "driver": "s3",
        "bucket": servers.BUCKET,
        "path": f"{url.removeprefix(f's3://{servers.BUCKET}/')}/images/",
        "endpoint": server.options["endpoint"],
        "aws_region": server.options["region"],
        "aws_credentials": {"type": "environment"},
    }
    array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()
    np.testing.assert_array_equal(array[1, 30].read().result(), original[1]["images"][30])


def test_the_loader_reads_windows_from_a_bucket(server: servers.Server, original: salus.Dataset) -> None:
    url = upload(original, server)
    read = []
    for dataset in (salus.open(url, storage_options=server.options), original):
        windows = WindowDataset(dataset, {"images": range(-1, 1), "states": range(2)})
        loader = Loader(windows, batch_size=16, shuffle=True, seed=3, threads=2)
        read.append([batch["images"].numpy() for batch in loader])
    assert len(read[0]) > 3
    for found, expected in zip(*read, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_create_makes_an_empty_dataset_once(server: servers.Server, schema: salus.Schema) -> None:
    url = f"{server.url}/new.zarr"
    dataset = salus.create(url, schema, storage_options=server.options)
    assert len(dataset) == 0
    with pytest.raises(AlreadyExistsError, match="a dataset is there already"):
        salus.create(url, schema, storage_options=server.options)
    assert salus.create(url, schema, exist_ok=True, storage_options=server.options).schema == schema
    assert ObjectStorage(url, server.options).list("_salus/probes") == [], "what was only tried is taken away"


def test_what_is_not_there_is_said(s3: servers.Server, schema: salus.Schema) -> None:
    with pytest.raises(NotFoundError, match=r"nothing is there; salus.create.*; s3://bucket/.*/none.zarr"):
        salus.open(f"{s3.url}/none.zarr", storage_options=s3.options)
    with pytest.raises(StorageError, match="bucket does not exist: check the name of the bucket, and the endpoint"):
        salus.open("s3://no-such-bucket/data.zarr", storage_options=s3.options)
    with pytest.raises(RecordingError, match="bucket does not exist: check the name"):
        salus.create("s3://no-such-bucket/data.zarr", schema, storage_options=s3.options)
    with pytest.raises(InvalidInputError, match="storage_options: .*'regoin'"):
        salus.open(s3.url, storage_options={**s3.options, "regoin": "x"})
    nobody = {**s3.options, "endpoint": f"http://127.0.0.1:{servers.free_port()}", "retry_config": {"max_retries": 1}}
    with pytest.raises(StorageError, match="HTTP error.*: check the network, and the endpoint; s3://"):
        salus.open(s3.url, storage_options=nobody)


def test_wrong_credentials_are_said(stores: Callable[[str], servers.Server]) -> None:
    server = stores("seaweedfs")
    with pytest.raises(StorageError, match="403 Forbidden.*: check the credentials, and what they may do"):
        salus.open(f"{server.url}/data.zarr", storage_options={**server.options, "secret_access_key": "wrong"})


def test_a_dataset_in_gcs_is_read_and_an_emulator_that_refuses_uploads_is_said_so(
    stores: Callable[[str], servers.Server], original: salus.Dataset
) -> None:
    server = stores("fake-gcs")
    assert server.put is not None
    for path in Path(original.url).rglob("*"):
        if path.is_file():
            server.put(f"data.zarr/{path.relative_to(original.url).as_posix()}", path.read_bytes())
    dataset = salus.open(f"{server.url}/data.zarr", storage_options=server.options)
    assert_same(dataset, original)
    assert salus.verify(dataset).findings == ()
    with pytest.raises(RecordingError, match="probe: the store answered 400 Bad Request; gs://bucket/data.zarr"):
        salus.open(dataset.url, mode="a", storage_options=server.options)


# --- processes ----------------------------------------------------------------------------------------------------


def first_states(dataset: salus.Dataset) -> np.ndarray:
    return np.asarray(dataset[0]["states"][:])


def test_a_forked_child_gets_an_error_at_once_and_a_spawned_one_reads(
    s3: servers.Server, original: salus.Dataset
) -> None:
    dataset = salus.open(upload(original, s3), storage_options=s3.options)
    first_states(dataset)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            dataset[1]["states"][:]
            os.write(writing, b"no error")
        except StorageError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    said = os.read(reading, 10_000).decode()
    os.close(reading)
    os.waitpid(child, 0)
    assert "this process was forked from one that used a bucket" in said
    assert "salus.torch.Loader" in said
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(first_states, [dataset]), first_states(original))


def test_a_storage_that_was_pickled_is_the_same_place(s3: servers.Server) -> None:
    storage = ObjectStorage(s3.url, s3.options)
    storage.put_new("a/b", b"x")
    assert pickle.loads(pickle.dumps(storage)).get("a/b") == b"x"  # noqa: S301 - our own


# --- answers that say nothing -------------------------------------------------------------------------------------


class Answering:
    """`obstore.put` of some calls made to fail, after or before it did its work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fails: int, lands: bool) -> None:
        self.calls = 0
        real = objects._put

        def put(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls > fails:
                return real(*arguments)
            if lands:
                real(*arguments)
            raise obstore.exceptions.GenericError("Generic S3 error: HTTP error: the connection was cut")

        monkeypatch.setattr(objects, "_put", put)


@pytest.mark.parametrize("lands", [True, False])
def test_an_answer_that_was_lost_is_looked_for(
    server: servers.Server, monkeypatch: pytest.MonkeyPatch, lands: bool
) -> None:
    storage = ObjectStorage(server.url, server.options)
    answering = Answering(monkeypatch, fails=2, lands=lands)
    storage.put_new("log/0", b"ours")
    assert storage.get("log/0") == b"ours"
    assert answering.calls == (1 if lands else 3)
    with pytest.raises(AlreadyExistsError, match="put log/0: another object is there"):
        storage.put_new("log/0", b"another's")


def test_what_stays_unconfirmed_is_unknown(s3: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = ObjectStorage(s3.url, s3.options)
    monkeypatch.setattr(objects, "CREATE_WITHIN_S", 0.2)
    Answering(monkeypatch, fails=1_000_000, lands=False)
    with pytest.raises(CommitUnknownError, match=r"put log/0: not confirmed in 0 s: HTTP error.*; s3://"):
        storage.put_new("log/0", b"ours")
    failed = storage.put_new_many({"log/1": b"a", "log/2": b"b"})
    assert {key: type(error) for key, error in failed.items()} == dict.fromkeys(failed, CommitUnknownError)
    assert sorted(failed) == ["log/1", "log/2"]


def test_a_large_file_goes_up_in_parts_and_is_created_once(
    server: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "MULTIPART_FROM_BYTES", 2**20)
    storage = ObjectStorage(server.url, server.options)
    for name, size in (("source", 12 * 2**20), ("other", 11 * 2**20)):
        (tmp_path / name).write_bytes(os.urandom(size))
    storage.put_new_file("images/c.0.0", tmp_path / "source")
    storage.put_new_file("images/c.0.0", tmp_path / "source")
    with pytest.raises(AlreadyExistsError):
        storage.put_new_file("images/c.0.0", tmp_path / "other")
    assert storage.get("images/c.0.0") == (tmp_path / "source").read_bytes()
    monkeypatch.setattr(objects, "_put", None)  # a whole one would take no more than 5 GB, and no slow network
    storage.put_new("images/c.0.0", (tmp_path / "source").read_bytes())
    with pytest.raises(AlreadyExistsError):
        storage.put_new("images/c.0.0", (tmp_path / "other").read_bytes())
    storage.put_new("images/c.1.0", (tmp_path / "other").read_bytes())
    assert storage.get("images/c.1.0") == (tmp_path / "other").read_bytes()
    assert storage.list("_salus/uploads") == []


# --- stores that do not keep what parallel writing needs ----------------------------------------------------------


@pytest.mark.parametrize(
    ("ignored", "said"),
    [("create", "create an object only where there is none"), ("update", "replace an object only where it is the")],
)
def test_a_store_without_conditional_puts_is_refused_for_writing(
    s3: servers.Server, original: salus.Dataset, monkeypatch: pytest.MonkeyPatch, ignored: str, said: str
) -> None:
    url, real = upload(original, s3), objects._put

    def put(store: Any, key: str, body: bytes, mode: Any) -> Any:
        is_ignored = mode == "create" if ignored == "create" else isinstance(mode, dict)
        return real(store, key, body, "overwrite" if is_ignored else mode)

    monkeypatch.setattr(objects, "_put", put)
    with pytest.raises(StorageError, match=f"this store does not {said}"):
        salus.open(url, mode="a", storage_options=s3.options)
    assert_same(salus.open(url, storage_options=s3.options), original)


def test_the_probe_takes_an_answer_that_was_lost_for_no_conflict(s3: servers.Server, original: salus.Dataset) -> None:
    upload(original, s3)
    with Proxy(s3.options["endpoint"], rates={"500 afterwards": 0.3}, seed=1) as proxy:
        storage = ObjectStorage(f"{s3.url}/data.zarr", {**s3.options, "endpoint": proxy.endpoint})
        for _ in range(10):
            storage.check_writable()
    assert proxy.counts["500 afterwards"] > 5


@pytest.mark.parametrize("refusal", [obstore.exceptions.PermissionDeniedError, FileNotFoundError])
@pytest.mark.parametrize("lands", [True, False])
def test_a_refusal_says_nothing_of_the_try_before_it(
    s3: servers.Server, monkeypatch: pytest.MonkeyPatch, refusal: type[Exception], lands: bool
) -> None:
    storage, real, tries = ObjectStorage(s3.url, s3.options), objects._put, itertools.count()

    def put(store: Any, key: str, body: bytes, mode: Any) -> Any:
        if next(tries):
            if lands:  # the first one, late
                real(store, key, body, mode)
            raise refusal("no")
        raise obstore.exceptions.GenericError("Generic S3 error: HTTP error: the connection was cut")

    monkeypatch.setattr(objects, "_put", put)
    if lands:
        storage.put_new("log/0", b"ours")
    else:
        with pytest.raises(CommitUnknownError, match="put log/0: not confirmed: no"):
            storage.put_new("log/0", b"ours")
    assert storage.get("log/0") == (b"ours" if lands else None)
    with pytest.raises(RecordingError, match="put log/1: no") as refused:
        storage.put_new("log/1", b"ours")
    assert type(refused.value) is RecordingError, "nothing was created"


# --- publishing without a lock ------------------------------------------------------------------------------------


def put_count(storage: Storage) -> int:
    """A publisher: the log is a count, and what it publishes says how far it is."""
    count = len(storage.list("_salus/log"))
    storage.get("zarr.json")
    storage.put({"length/c.0": b"%d" % count})
    storage.put({"zarr.json": b"%d" % count})
    return count


def test_a_publisher_that_was_overtaken_does_not_undo_the_younger_state(server: servers.Server) -> None:
    slow, fast = (ObjectStorage(server.url, server.options) for _ in range(2))
    slow.put_new("_salus/log/0", b"")
    calls = 0

    def publish(storage: Storage) -> int:
        nonlocal calls
        calls += 1
        count = len(storage.list("_salus/log"))
        if calls == 2:  # the slow one has read the log, and now sleeps: the other is faster
            slow.put_new("_salus/log/1", b"")
            assert fast.publication(put_count) == 2
        storage.put({"length/c.0": b"%d" % count, "zarr.json": b"%d" % count})
        return count

    assert slow.publication(publish) == 2
    assert calls == 4, "it read all anew"
    assert (slow.get("length/c.0"), slow.get("zarr.json")) == (b"2", b"2")


def test_publishers_that_race_end_at_the_youngest_state(s3: servers.Server) -> None:
    counts = range(12)

    def work(first: int) -> None:
        storage = ObjectStorage(s3.url, s3.options)
        for number in counts[first::3]:
            storage.put_new(f"_salus/log/{number}", b"")
            storage.publication(put_count)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    storage = ObjectStorage(s3.url, s3.options)
    assert (storage.get("length/c.0"), storage.get("zarr.json")) == (b"12", b"12")


def test_a_lost_answer_to_a_publisher_is_no_conflict(s3: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, real, failed = ObjectStorage(s3.url, s3.options), objects._put, []

    def put(store: Any, key: str, body: bytes, mode: Any) -> Any:
        answer = real(store, key, body, mode)
        if isinstance(mode, dict) and not failed:
            failed.append(key)
            raise PreconditionError("the first of two tries landed, and its answer was lost")
        return answer

    storage.put_new("_salus/log/0", b"")
    storage.publication(put_count)
    storage.put_new("_salus/log/1", b"")
    monkeypatch.setattr(objects, "_put", put)
    assert storage.publication(put_count) == 2
    assert failed == ["length/c.0"]
    assert storage.get("zarr.json") == b"2"


def test_a_publisher_that_is_always_overtaken_gives_up(s3: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, numbers = ObjectStorage(s3.url, s3.options), itertools.count()
    monkeypatch.setattr(publication, "ATTEMPTS", 3)

    def publish(within: Storage) -> None:
        within.get("zarr.json")
        storage.put({"zarr.json": b"%d" % next(numbers)})
        within.put({"zarr.json": b"mine"})

    with pytest.raises(RecordingError, match="publish: others were faster 3 times"):
        storage.publication(publish)


# --- reading ahead ------------------------------------------------------------------------------------------------


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """The ranges that were asked for."""
    asked: list[tuple[int, int]] = []
    real = ObjectStorage.get_range

    def get_range(storage: ObjectStorage, key: str, start: int, size: int) -> bytes:
        asked.append((start, size))
        return real(storage, key, start, size)

    monkeypatch.setattr(ObjectStorage, "get_range", get_range)
    return asked


def test_what_was_read_ahead_is_not_asked_for_again(server: servers.Server, requests: list[tuple[int, int]]) -> None:
    storage, body = ObjectStorage(server.url, server.options), os.urandom(100_000)
    storage.put_new("images/c.0.0", body)
    shard = storage.open_shard("images/c.0.0")
    assert shard is not None
    shard.prefetch(1000, 5000)
    shard.prefetch(2000, 100)  # is on its way already
    assert shard.read(1000, 2000) + shard.read(3000, 3000) == body[1000:6000]
    assert requests == [(1000, 5000)]
    assert shard.read(1000, 10) == body[1000:1010]  # it was read to its end, so nothing is kept
    assert requests == [(1000, 5000), (1000, 10)]


def test_the_end_of_a_shard_comes_with_opening_it(s3: servers.Server, requests: list[tuple[int, int]]) -> None:
    storage, body = ObjectStorage(s3.url, s3.options), os.urandom(100_000)
    storage.put_new("images/c.0.0", body)
    shard = storage.open_shard("images/c.0.0")
    assert shard is not None
    assert shard.size == 100_000
    assert shard.read(99_000, 2000) == body[99_000:]
    assert shard.read(100_000, 10) == b""
    assert requests == []
    shard.prefetch(50_000, 50_000)  # runs into the end
    assert shard.read(50_000, 50_000) == body[50_000:]
    assert requests == [(50_000, 50_000 - objects.TAIL_BYTES)]


def test_what_is_read_ahead_is_bounded_and_given_back(s3: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "AHEAD_BYTES", 10_000)
    storage, body = ObjectStorage(s3.url, s3.options), os.urandom(100_000)
    storage.put_new("images/c.0.0", body)
    for _ in range(3):  # a file that is dropped gives back what it has not handed out
        shard = storage.open_shard("images/c.0.0")
        assert shard is not None
        shard.prefetch(0, 8000)
        shard.prefetch(20_000, 8000)  # too much: it is read when it is asked for
        assert shard.read(20_000, 8000) == body[20_000:28_000]
        del shard
    shard = storage.open_shard("images/c.0.0")
    assert shard is not None
    deadline = time.monotonic() + 10
    while storage.get_ahead("images/c.0.0", 0, 10_000) is None:
        assert time.monotonic() < deadline, "nothing was given back"
        time.sleep(0.01)
