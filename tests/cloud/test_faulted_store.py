"""T6: an object store behind a network that cuts, loses, delays and lies.

`python -m tests.cloud.test_faulted_store OPERATIONS` runs more operations than the suite does, on SeaweedFS.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import obstore
import pytest

import salus
from salus.errors import AlreadyExistsError, CommitUnknownError
from salus.storage import ObjectStorage, objects

from . import competing, servers
from .competing import DATASET, SCHEMA, Event, check_all, competes, goes_away
from .proxy import AFTERWARDS, ANSWERS, FAULTS, Proxy

PROCESSES = 2
OUTAGE_EVERY_S = 5.0
RATES = {fault: 0.01 if fault in ANSWERS or fault in AFTERWARDS else 0.025 for fault in FAULTS}
_places = itertools.count()


class Outcome(NamedTuple):
    """What a run did."""

    events: list[Event]
    requests: int
    faults: Counter[str]
    outages: int
    looked: Counter[str]

    def __str__(self) -> str:
        told = Counter(event.told for event in self.events)
        return (
            f"{self.requests:,} requests, {sum(self.faults.values()):,} of them with a fault, {self.outages} outages; "
            f"{told['done']:,} done, {told['exists']:,} told that another's is there, {told['unknown']:,} unknown, "
            f"{told['stale'] + told['refused'] + told['unread']:,} refused; {self.looked['keys with losers']:,} of "
            f"{self.looked['keys']:,} keys had losers, {self.looked['episodes']:,} episodes: 0 lost, 0 duplicated, "
            "0 false conflicts"
        )


def run(
    server: servers.Server,
    operations: int,
    *,
    seed: int,
    processes: int = PROCESSES,
    rates: Mapping[str, float] = MappingProxyType(RATES),
) -> Outcome:
    """So many operations from several processes, or from threads of this one (0); then what must be true of them."""
    url = f"{server.url}/faulted-{next(_places)}"
    salus.create(f"{url}/{DATASET}", SCHEMA, storage_options=server.options)
    ended = threading.Event()
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(server.options["endpoint"], rates=rates, seed=seed))
        options = server.options | {"endpoint": proxy.endpoint}
        outages = stack.enter_context(ThreadPoolExecutor(1)).submit(goes_away, proxy.outage, OUTAGE_EVERY_S, ended)
        try:
            if processes:
                spawn = multiprocessing.get_context("spawn")
                pool = stack.enter_context(ProcessPoolExecutor(processes, spawn))
                shares = [operations // processes + (number < operations % processes) for number in range(processes)]
                calls = [pool.submit(competes, url, options, *each, seed) for each in enumerate(shares)]
                events = [event for call in calls for event in call.result()]
            else:
                events = competes(url, options, 1, operations, seed)
        finally:
            ended.set()
        proxy.settle()
        looked = check_all(url, server.options, events)
        return Outcome(events, proxy.requests, proxy.counts, outages.result(), looked)


@pytest.mark.parametrize(("name", "processes", "operations"), [("seaweedfs", PROCESSES, 240), ("moto", 0, 120)])
def test_nothing_is_lost_done_twice_or_told_wrongly(
    stores: Callable[[str], servers.Server], name: str, processes: int, operations: int
) -> None:
    done = run(stores(name), operations, seed=0, processes=processes)
    assert len(done.faults.keys() & set(FAULTS)) > len(FAULTS) / 2
    told = Counter(event.told for event in done.events)
    assert told["done"] > len(done.events) / 4
    assert told["exists"] > 0
    assert len({event.kind for event in done.events}) > len(competing.KINDS) / 2


# --- the checks find what they are there for ------------------------------------------------------------------------


def trusting(storage: ObjectStorage, key: str, create: Callable[[], object], **_: Any) -> None:
    try:
        create()
    except obstore.exceptions.AlreadyExistsError as error:
        raise AlreadyExistsError(key) from error
    except (obstore.exceptions.BaseError, OSError) as error:
        raise CommitUnknownError(key) from error


def careless(storage: ObjectStorage, key: str, create: Callable[[], object], **_: Any) -> None:
    with contextlib.suppress(CommitUnknownError):
        trusting(storage, key, create)


_create = ObjectStorage._create


def not_comparing(storage: ObjectStorage, key: str, create: Callable[[], object], **_: Any) -> None:
    _create(storage, key, create, same=lambda found: True)


def overwriting(storage: ObjectStorage, key: str, body: bytes, version: Any) -> Any:
    storage.put({key: body})
    found = storage.get_version(key)
    return None if found is None else found[1]


@pytest.mark.parametrize(
    ("kind", "method", "mutant", "said"),
    [
        ("put_new", "_create", trusting, "a false conflict"),
        ("put_new", "_create", careless, "lost|won by two|it has changed|a false conflict"),
        ("put_new", "_create", not_comparing, "won by two|it has changed"),
        ("replace", "replace", overwriting, "replaced by somebody who had not read it"),
    ],
    ids=["exists is a conflict", "an error is success", "what is there is ours", "no condition"],
)
def test_a_broken_storage_is_found(
    stores: Callable[[str], servers.Server],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    method: str,
    mutant: Callable[..., Any],
    said: str,
) -> None:
    monkeypatch.setattr(ObjectStorage, method, mutant)
    monkeypatch.setattr(competing, "KINDS", {kind: 1})
    # Who creates is misled by answers; who replaces without looking needs nobody's help.
    rates = {"500 afterwards": 0.2, "412": 0.1, "lost answer": 0.1} if kind == "put_new" else {}
    with pytest.raises(AssertionError, match=said):
        run(stores("seaweedfs"), 120, seed=0, processes=0, rates=rates)


# --- what it found ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["seaweedfs", "moto"])
@pytest.mark.parametrize("mode", ["create", "overwrite"])
def test_nothing_is_kept_of_a_put_that_breaks_off(
    stores: Callable[[str], servers.Server], name: str, mode: str
) -> None:
    server = stores(name)
    key = f"torn-{next(_places)}"
    for fault in ("cut before the body", "cut within the body"):
        with Proxy(server.options["endpoint"], rates={fault: 1.0}) as proxy:
            options = server.options | {"endpoint": proxy.endpoint, "retry_config": {"max_retries": 0}}
            with pytest.raises(obstore.exceptions.GenericError):
                objects._put(ObjectStorage(server.url, options)._store, key, b"body", mode)
            assert proxy.counts == {fault: 1}
        assert ObjectStorage(server.url, server.options).get(key) is None


def test_the_checksum_of_puts_is_the_users_to_choose() -> None:
    keys = {"region": "us-east-1", "access_key_id": "a", "secret_access_key": "b"}
    for options, used in (
        ({}, "SHA256"),
        ({"checksum_algorithm": "CRC64NVME"}, "CRC64NVME"),
        ({"aws_checksum_algorithm": "CRC64NVME"}, "CRC64NVME"),
        ({"checksum_algorithm": None}, None),
    ):
        config = ObjectStorage("s3://bucket", keys | options)._store.config
        assert config.get("checksum_algorithm", config.get("aws_checksum_algorithm")) == used, options


def main() -> None:
    """Run as many operations as the command line says."""
    operations, began = int(sys.argv[1]), time.monotonic()
    with tempfile.TemporaryDirectory() as folder, servers.running("seaweedfs", Path(folder)) as server:
        done = run(server, operations, seed=0)
    sys.stderr.write("".join(f"{fault}: {count:,}\n" for fault, count in sorted(done.faults.items())))
    told = Counter((event.kind, event.told) for event in done.events)
    sys.stderr.write("".join(f"{kind}, {what}: {count:,}\n" for (kind, what), count in sorted(told.items())))
    print(f"{operations:,} operations, {done}, {time.monotonic() - began:.0f} s")  # noqa: T201


if __name__ == "__main__":
    main()
