"""Objects that change under a reader, stores that send something else, forks, and Ctrl-C."""

from __future__ import annotations

import itertools
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest

import salus
from salus.errors import CorruptDataError, NotFoundError, StorageError
from salus.storage import ObjectStorage, StoredFile, objects

from . import servers
from .proxy import Proxy

_places = itertools.count()
_KEY = "images/c.0.0"


@pytest.fixture(params=servers.SERVERS)
def storage(request: pytest.FixtureRequest, stores: Callable[[str], servers.Server]) -> ObjectStorage:
    """An empty one, in each kind of store."""
    server = stores(request.param)
    return ObjectStorage(f"{server.url}/reading-{next(_places)}", server.options)


@pytest.fixture
def s3(stores: Callable[[str], servers.Server]) -> ObjectStorage:
    server = stores("moto")
    return ObjectStorage(f"{server.url}/reading-{next(_places)}", server.options)


def opened(storage: ObjectStorage) -> StoredFile:
    shard = storage.open_shard(_KEY)
    assert shard is not None
    return shard


# --- objects that are not what was opened -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "said"), [(os.urandom(100_000), "replaced"), (b"short", "cut|replaced"), (None, "removed")]
)
def test_an_object_that_changes_after_it_was_opened_is_named(
    storage: ObjectStorage, now: bytes | None, said: str
) -> None:
    body = os.urandom(100_000)
    storage.put_new(_KEY, body)
    shard = opened(storage)
    assert shard.read(60_000, 10) == body[60_000:60_010]
    if now is None:
        obstore.delete(storage._store, _KEY)
    else:
        storage.put({_KEY: now})
    for start in (0, 60_000):
        with pytest.raises(CorruptDataError, match=f"the object was ({said}) after it was opened.*; {_KEY}"):
            shard.read(start, 10)
    shard.prefetch(0, 10)
    with pytest.raises(CorruptDataError, match="after it was opened"):
        shard.read(0, 10)
    if now is not None:
        assert opened(storage).read(2, 3) == now[2:5]


@pytest.mark.parametrize("change", [lambda body: body[:-1], lambda body: body + b"x", lambda _: b""])
def test_an_answer_of_another_length_is_no_data(
    s3: ObjectStorage, change: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Answer:
        def __init__(self, real: Any) -> None:
            self.meta, self._body = real.meta, change(bytes(real.bytes()))

        def bytes(self) -> bytes:
            return self._body

    s3.put_new(_KEY, os.urandom(100_000))
    shard, real = opened(s3), obstore.get
    monkeypatch.setattr(obstore, "get", lambda *a, **named: Answer(real(*a, **named)))
    with pytest.raises(StorageError, match=rf"read {_KEY}: the store sent \d+ bytes, expected 1000; s3://"):
        shard.read(10, 1000)
    with pytest.raises(StorageError, match=rf"read {_KEY}: the store sent \d+ bytes, expected 16384; s3://"):
        s3.open_shard(_KEY)


def test_an_object_that_is_too_large_to_be_a_document_is_not_read(
    storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "MAX_OBJECT_BYTES", 1000)
    storage.put_new_many({"small": bytes(1000), "large": bytes(1001), _KEY: bytes(2000)})
    assert storage.get("small") == bytes(1000)
    for read in (storage.get, storage.get_version):
        with pytest.raises(CorruptDataError, match="an object of 1001 bytes, expected at most 1000; large"):
            read("large")
    storage.put_new(_KEY, bytes(2000))  # a shard may have more, and is read back
    assert opened(storage).read(0, 2000) == bytes(2000)


def test_a_large_read_is_asked_for_in_parts(storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "REQUEST_BYTES", 10_000)
    asked, real = [], objects._got
    monkeypatch.setattr(objects, "_got", lambda *a, **named: (asked.append(a[2]), real(*a, **named))[1])
    body = os.urandom(100_000)
    storage.put_new(_KEY, body)
    shard = opened(storage)
    asked.clear()
    assert shard.read(5, 25_000) == body[5:25_005]
    assert asked == [(5, 10_005), (10_005, 20_005), (20_005, 25_005)]
    assert shard.read(7, 10_000) == body[7:10_007]
    assert shard.read(0, 100_000) == body


# --- opening -----------------------------------------------------------------------------------------------------


def test_the_records_of_a_bucket_are_asked_for_at_once(copied: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    real, together = ObjectStorage.get, threading.Barrier(4)

    def get(storage: ObjectStorage, key: str) -> bytes | None:
        if key.startswith("_salus/log/"):
            together.wait(20)
        return real(storage, key)

    monkeypatch.setattr(ObjectStorage, "get", get)
    dataset = salus.open(copied.url, storage_options=copied._options)
    assert [episode["states"][0, 0] for episode in dataset] == [0, 1, 2, 3]


# --- verify ------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path: Path, s3: ObjectStorage) -> ObjectStorage:
    """Four episodes of one feature."""
    schema = salus.Schema({"states": salus.Feature(shape=(7,), dtype="float32")}, rate_hz=50)
    with salus.Recorder(salus.create(tmp_path / "data.zarr", schema)) as recorder:
        for number in range(4):
            recorder.record_episode({"states": np.full((10, 7), number, np.float32)})
    salus.copy(tmp_path / "data.zarr", s3.url, target_options=s3._options)
    return s3


@pytest.mark.parametrize("repair", [False, True])
def test_a_bucket_that_is_out_of_reach_is_no_damage(
    copied: ObjectStorage, repair: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, numbers = ObjectStorage.open_shard, itertools.count()
    with Proxy(copied._options["endpoint"]) as proxy:
        options = {**copied._options, "endpoint": proxy.endpoint, "retry_config": {"max_retries": 0}}

        def open_shard(storage: ObjectStorage, key: str) -> StoredFile | None:
            if next(numbers) == 3:
                proxy.rates = {"503": 1.0}
            return real(storage, key)

        monkeypatch.setattr(ObjectStorage, "open_shard", open_shard)
        with pytest.raises(StorageError, match="503 Service Unavailable"):
            salus.verify(copied.url, storage_options=options, repair=repair)
        with pytest.raises(StorageError, match="503 Service Unavailable"):  # and not an amendment after another
            salus.verify(copied.url, storage_options=options)
    monkeypatch.undo()
    assert salus.verify(copied.url, storage_options=copied._options).findings == ()
    assert copied.list("_salus/amendments") == []


def test_one_object_that_cannot_be_read_is_damage(copied: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ObjectStorage.open_shard

    def open_shard(storage: ObjectStorage, key: str) -> StoredFile | None:
        if key == "states/c.2.0.0":
            raise StorageError(f"read {key}: the store answered 500 Internal Server Error; {storage.url}")
        return real(storage, key)

    monkeypatch.setattr(ObjectStorage, "open_shard", open_shard)
    (found,) = salus.verify(copied.url, storage_options=copied._options).findings
    assert (found.key, found.severity, "500 Internal" in found.failed) == ("states/c.2.0.0", "damage", True)


def test_verify_of_nothing_asks_the_store_that_it_was_given(s3: ObjectStorage) -> None:
    with pytest.raises(NotFoundError, match=f"nothing is there; .*; {s3.url}"):
        salus.verify(s3.url, storage_options=s3._options)


# --- processes ----------------------------------------------------------------------------------------------------


def in_a_forked_child(work: Callable[[], object]) -> str:
    """What it raised, or "hangs"."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
            os.write(writing, b"nothing")
        except BaseException as error:  # noqa: BLE001 - the parent looks at it
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    said = os.read(reading, 10_000).decode() if select.select([reading], [], [], 20)[0] else "hangs"
    os.close(reading)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return said


@pytest.mark.parametrize(
    "call", ["get", "list", "open_shard", "read", "prefetch", "put_new", "put_new_many", "put", "connect"]
)
def test_whatever_a_forked_child_asks_for_is_an_error_at_once(s3: ObjectStorage, call: str) -> None:
    s3.put_new_many({_KEY: os.urandom(100_000), "a": b"", "b": b""})  # threads of ours wait for work
    shard = opened(s3)
    shard.prefetch(0, 1000)
    shard.read(0, 1000)

    def prefetched() -> bytes:
        shard.prefetch(0, 1000)
        return shard.read(0, 1000)

    calls: dict[str, Callable[[], object]] = {
        "get": lambda: s3.get("a"),
        "list": lambda: s3.list(""),
        "open_shard": lambda: s3.open_shard(_KEY),
        "read": lambda: shard.read(0, 10),
        "prefetch": prefetched,
        "put_new": lambda: s3.put_new("c", b""),
        "put_new_many": lambda: s3.put_new_many({"c": b"", "d": b""}),
        "put": lambda: s3.put({"c": b"", "d": b""}),
        "connect": lambda: ObjectStorage(s3.url, s3._options).get("a"),
    }
    said = in_a_forked_child(calls[call])
    assert said.startswith("StorageError: s3://")
    assert "this process was forked from one that used a bucket" in said


# --- Ctrl-C -------------------------------------------------------------------------------------------------------


@pytest.fixture
def silent() -> Iterator[ObjectStorage]:
    """A store that takes connections, and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        endpoint = f"http://127.0.0.1:{listening.getsockname()[1]}"
        keys = {"access_key_id": "a", "secret_access_key": "b", "region": "us-east-1"}
        yield ObjectStorage("s3://bucket/x", {**keys, "endpoint": endpoint, "client_options": {"timeout": "20s"}})


@pytest.mark.parametrize("call", ["get", "list", "put_new", "check_writable"])
def test_ctrl_c_ends_waiting_for_a_store_that_never_answers(silent: ObjectStorage, call: str) -> None:
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: silent.get("a"),
        "list": lambda: silent.list(""),
        "put_new": lambda: silent.put_new("a", b""),
        "check_writable": silent.check_writable,
    }
    pressed = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    pressed.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        calls[call]()
    assert time.monotonic() - began < 15, "it waited for the answer"
    pressed.join()
