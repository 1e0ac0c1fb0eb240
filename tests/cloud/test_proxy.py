"""The bad network itself: each of its faults is seen to happen, by its client and in the store behind it."""

from __future__ import annotations

import http.client
import itertools
import threading
import time
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import obstore
import pytest

from salus.errors import StorageError
from salus.storage import ObjectStorage

from . import servers
from .proxy import ANSWERS, FAULTS, Proxy

BODY = bytes(range(256)) * 300
_names = itertools.count()
# What a client is told, and whether the store has it then.
SEEN: dict[str, tuple[str, bool]] = {
    "delay": ("200", True),
    "cut before": ("cut", False),
    "cut before the body": ("cut", False),
    "cut within the body": ("cut", False),
    "cut within the answer": ("cut", True),
    "lost answer": ("cut", True),
    "late": ("cut", True),
    "500 afterwards": ("500", True),
    "503 afterwards": ("503", True),
    **{status: (status, False) for status in ANSWERS},
}


class Client:
    """Asks once, with a connection of its own, and by the store's own signatures."""

    def __init__(self, server: servers.Server, endpoint: str | None = None) -> None:
        options = server.options | {"endpoint": endpoint or server.options["endpoint"]}
        self._store = obstore.store.from_url(server.url, **options, client_options={"allow_http": True})

    def ask(self, method: Any, key: str, body: bytes | None = None) -> tuple[str, bytes]:
        """The status, or "cut", and the body."""
        url = urllib.parse.urlsplit(obstore.sign(self._store, method, key, timedelta(minutes=5)))
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=20)
        try:
            connection.request(method, f"{url.path}?{url.query}", body, {"If-None-Match": "*"} if body else {})
            answer = connection.getresponse()
            return str(answer.status), answer.read()
        except (OSError, http.client.HTTPException):
            return "cut", b""
        finally:
            connection.close()


@pytest.fixture
def server(stores: Callable[[str], servers.Server]) -> servers.Server:
    return stores("moto")


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_happens(server: servers.Server, fault: str) -> None:
    key = f"proxy-{next(_names)}"
    with Proxy(server.options["endpoint"], rates={fault: 1.0}, seed=3) as proxy:
        told, _ = Client(server, proxy.endpoint).ask("PUT", key, BODY)
        proxy.settle()
        assert proxy.counts == {fault: 1}
    status, found = Client(server).ask("GET", key)
    assert (told, (status, found) == ("200", BODY)) == SEEN[fault]
    assert status in ("200", "404")


def test_an_answer_is_cut_within_its_body(server: servers.Server) -> None:
    key = f"proxy-{next(_names)}"
    Client(server).ask("PUT", key, BODY)
    with Proxy(server.options["endpoint"], rates={"cut within the answer": 1.0}) as proxy:
        assert [Client(server, proxy.endpoint).ask("GET", key)[0] for _ in range(5)] == ["cut"] * 5
        proxy.rates = {}
        assert Client(server, proxy.endpoint).ask("GET", key) == ("200", BODY)


def test_about_as_many_faults_as_the_rates_say(server: servers.Server) -> None:
    with Proxy(server.options["endpoint"], rates={"503": 0.3, "429": 0.2}, seed=1) as proxy:
        told = [Client(server, proxy.endpoint).ask("HEAD", "none")[0] for _ in range(100)]
    assert proxy.requests == 100
    assert proxy.counts == {status: told.count(status) for status in ("503", "429")}
    assert 15 < told.count("503") < 45
    assert 8 < told.count("429") < 35
    assert told.count("404") == 100 - sum(proxy.counts.values())


def test_a_connection_is_used_again_and_signatures_hold(stores: Callable[[str], servers.Server]) -> None:
    server = stores("seaweedfs")
    with Proxy(server.options["endpoint"]) as proxy:
        storage = ObjectStorage(f"{server.url}/proxy", server.options | {"endpoint": proxy.endpoint})
        for number in range(20):
            storage.put_new(f"a/{number}", BODY)
            assert storage.get(f"a/{number}") == BODY
        assert len(storage.list("a")) == 20
        assert proxy.requests == 41
        assert proxy.connections < 10


def test_requests_that_are_delayed_wait_together(server: servers.Server) -> None:
    count, delay_s = 16, 1.0
    with Proxy(server.options["endpoint"], delay_s=delay_s) as proxy, ThreadPoolExecutor(count) as threads:
        began = time.monotonic()
        clients = [Client(server, proxy.endpoint) for _ in range(count)]
        told = list(threads.map(lambda client: client.ask("GET", "none")[0], clients))
        took_s = time.monotonic() - began
    assert told == ["404"] * count
    assert delay_s < took_s < count * delay_s / 2


def test_nothing_comes_through_while_the_network_is_away(server: servers.Server) -> None:
    with Proxy(server.options["endpoint"], delay_s=0.5) as proxy:
        waiting = threading.Thread(target=lambda: told.append(Client(server, proxy.endpoint).ask("GET", "none")[0]))
        told: list[str] = []
        waiting.start()
        while proxy.requests == 0:
            time.sleep(0.01)
        with proxy.outage():
            assert [Client(server, proxy.endpoint).ask("GET", "none")[0] for _ in range(3)] == ["cut"] * 3
            waiting.join()
        assert told == ["cut"], "a request that was under way is cut as well"
        proxy.delay_s = 0
        assert Client(server, proxy.endpoint).ask("GET", "none")[0] == "404"


def test_a_storage_says_that_the_network_is_away(server: servers.Server) -> None:
    with Proxy(server.options["endpoint"]) as proxy:
        options = server.options | {"endpoint": proxy.endpoint, "retry_config": {"max_retries": 1}}
        storage = ObjectStorage(f"{server.url}/proxy", options)
        with proxy.outage(), pytest.raises(StorageError, match="HTTP error.*: check the network"):
            storage.get("a")
        assert storage.get("a") is None
