"""A bad network in front of an object store: an HTTP/1.1 proxy on loopback that cuts, loses, delays and lies.

    with Proxy(endpoint, rates={"lost answer": 0.05}, seed=1) as proxy:
        ObjectStorage(url, options | {"endpoint": proxy.endpoint})

Each request has at most one fault, drawn from a seed; which request that is depends on the order in which they come.
The head of a request goes on as it is, Host included, so signatures hold.

`python -m tests.cloud.proxy ENDPOINT DELAY_S` is one without faults, in a process of its own. It says where it listens,
and ends with its input.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import sys
import threading
import urllib.parse
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from types import TracebackType
from typing import Any, NamedTuple, Self

ANSWERS = {"409": "ConditionalRequestConflict", "412": "PreconditionFailed", "429": "SlowDown"} | {
    "500": "InternalError",
    "503": "ServiceUnavailable",
}
AFTERWARDS = {"500 afterwards": "500", "503 afterwards": "503"}
FAULTS = (
    "delay",  # it waits for up to SLOW_S
    "cut before",  # the store never hears of it
    "cut before the body",  # the store gets the head of the request
    "cut within the body",  # the store gets a part of it
    "cut within the answer",
    "lost answer",  # the store did it, and nobody says so
    "late",  # the connection is cut, and the store does it up to SLOW_S later; only requests with a condition
    *ANSWERS,  # by the proxy; the store never hears of it
    *AFTERWARDS,  # the store did it, and the answer says otherwise
)
SLOW_S = 0.3


class Proxy:
    """A proxy in a thread of its own.

    Args:
        endpoint: Of the store, `http://127.0.0.1:9000`; a path in it is kept.
        rates: Which part of the requests has which of FAULTS; changed at any time.
        seed: Of what is drawn.
        delay_s: What every request waits; many at once wait together. Changed at any time.

    Attributes:
        endpoint: Where it listens.
        connections, requests: How many came.
        counts: How often each fault was done, and "no answer" where the store itself gave none.
    """

    def __init__(
        self, endpoint: str, *, rates: Mapping[str, float] | None = None, seed: int = 0, delay_s: float = 0
    ) -> None:
        self.rates = dict(rates or {})
        self.delay_s = delay_s
        self.connections = self.requests = 0
        self.counts: Counter[str] = Counter()
        self._random = random.Random(seed)  # noqa: S311 - who meets which fault
        self._store = urllib.parse.urlsplit(endpoint)
        self._clients: dict[asyncio.StreamWriter, asyncio.Task[Any] | None] = {}
        self._late: set[asyncio.Task[None]] = set()
        self._is_down = False
        self._failed: Exception | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._listen()), name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        self.endpoint = self._store._replace(netloc=f"127.0.0.1:{self._port}").geturl()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()
        if self._failed is not None:
            raise self._failed

    @contextmanager
    def outage(self) -> Iterator[None]:
        """The network is away: all connections are cut, and no new one comes to anything.

        Requests that had reached the store are done before this begins, and no other one comes to it later.
        """
        self._ask(self._go_down())
        try:
            yield
        finally:
            self._is_down = False

    def settle(self) -> None:
        """Wait until everything that is late has come."""
        self._ask(self._wait_for_late())

    def _ask(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result()

    # --- in its thread ---------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._ended.wait()
        server.close()

    async def _go_down(self) -> None:
        self._is_down = True
        under_way = [task for task in self._clients.values() if task is not None]
        for client in self._clients:
            _cut(client, resets=True)
        if under_way:
            await asyncio.wait(under_way)

    async def _wait_for_late(self) -> None:
        if self._late:
            await asyncio.wait(self._late)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_down:
            _cut(writer, resets=True)
            return
        self.connections += 1
        self._clients[writer] = asyncio.current_task()
        store = _Store(self._store.hostname or "", self._store.port or 80)
        try:
            while await self._exchange(reader, writer, store):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or all ends
        except Exception as failed:  # noqa: BLE001 - a fault of the proxy is none of the storage
            self._failed = failed
        finally:
            del self._clients[writer]
            _cut(writer, resets=False)
            store.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, store: _Store) -> bool:
        """One request and its answer; returns whether the connection stays."""
        request = await _read(reader, to_client=writer)
        self.requests += 1
        fault = self._draw(request)
        delay_s = self.delay_s + (self._random.uniform(0, SLOW_S) if fault == "delay" else 0)
        if delay_s:
            await asyncio.sleep(delay_s)
        if writer.is_closing():  # the network has gone away meanwhile
            return False
        if fault:
            self.counts[fault] += 1
        if fault == "cut before":
            return self._hang_up(writer)
        if fault in ("cut before the body", "cut within the body"):
            within = fault == "cut within the body"
            await store.send(request.head + request.body[: self._random.randrange(len(request.body)) if within else 0])
            return self._hang_up(writer)
        if fault == "late":
            task = asyncio.create_task(self._forward_late(request))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
            return self._hang_up(writer)
        if fault in ANSWERS:
            writer.write(_refusal(fault, request))
            await writer.drain()
            return True
        try:
            answer = await store.ask(request)
        except (OSError, asyncio.IncompleteReadError):
            self.counts["no answer"] += 1
            return self._hang_up(writer)
        if fault == "lost answer":
            return self._hang_up(writer)
        if fault == "cut within the answer":
            writer.write(answer.whole[: self._random.randrange(1, len(answer.whole))])
            return self._hang_up(writer)
        writer.write(_refusal(AFTERWARDS[fault], request) if fault in AFTERWARDS else answer.whole)
        await writer.drain()
        return not answer.is_last

    def _draw(self, request: _Message) -> str:
        number = self._random.random()
        for fault, rate in self.rates.items():
            number -= rate
            if number < 0:
                has_body = bool(request.body)
                fits = dict.fromkeys(("cut before the body", "cut within the body"), has_body)
                fits["late"] = request.has_condition
                return fault if fits.get(fault, True) else ""
        return ""

    def _hang_up(self, writer: asyncio.StreamWriter) -> bool:
        _cut(writer, resets=self._random.random() < 0.5)
        return False

    async def _forward_late(self, request: _Message) -> None:
        await asyncio.sleep(self._random.uniform(0, SLOW_S))
        store = _Store(self._store.hostname or "", self._store.port or 80)
        try:
            await store.ask(request)
        except (OSError, asyncio.IncompleteReadError):
            self.counts["no answer"] += 1
        finally:
            store.close()


class _Message(NamedTuple):
    """A request or an answer, as it came."""

    head: bytes
    body: bytes

    @property
    def whole(self) -> bytes:
        return self.head + self.body

    @property
    def has_condition(self) -> bool:
        return bool({b"if-none-match", b"if-match"} & _headers(self.head).keys())

    @property
    def is_last(self) -> bool:
        """Whether nothing comes after this answer: without keep-alive, in HTTP/1.0 and with a body up to the end."""
        return self.head.startswith(b"HTTP/1.0") or _headers(self.head).get(b"connection") == b"close"


class _Store:
    """A connection to the store, made when it is needed; it is used by one client, and ends with it."""

    def __init__(self, host: str, port: int) -> None:
        self._place = (host, port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, part: bytes) -> None:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._place)
        self._streams[1].write(part)
        await self._streams[1].drain()

    async def ask(self, request: _Message) -> _Message:
        await self.send(request.whole)
        assert self._streams is not None
        answer = await _read(self._streams[0], answers=request.head.partition(b" ")[0])
        if answer.is_last:
            self.close()
        return answer

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _read(
    reader: asyncio.StreamReader, *, to_client: asyncio.StreamWriter | None = None, answers: bytes = b""
) -> _Message:
    """The next message; as an answer to the method `answers`, where it is one."""
    head = await reader.readuntil(b"\r\n\r\n")
    headers = _headers(head)
    if to_client is not None and headers.get(b"expect") == b"100-continue":
        to_client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if answers:
        status = int(head.split(b" ", 2)[1])
        if status < 200:
            return await _read(reader, answers=answers)  # the client has it from us
        if answers == b"HEAD" or status in (204, 304):
            return _Message(head, b"")
    if headers.get(b"transfer-encoding") == b"chunked":
        return _Message(head, await _read_chunks(reader))
    if b"content-length" in headers:
        return _Message(head, await reader.readexactly(int(headers[b"content-length"])))
    return _Message(head, await reader.read() if answers else b"")


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        parts += [line, await reader.readexactly(size + 2)]
        if size == 0:  # without trailers, which none of these stores sends
            return b"".join(parts)


def _headers(head: bytes) -> dict[bytes, bytes]:
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:] if line)
    return {name.strip().lower(): value.strip() for name, _, value in lines}


def _refusal(status: str, request: _Message) -> bytes:
    phrase, code = HTTPStatus(int(status)).phrase, ANSWERS[status]
    body = f"<Error><Code>{code}</Code><Message>said by the proxy</Message></Error>".encode()
    head = f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + (b"" if request.head.startswith(b"HEAD ") else body)


def _cut(writer: asyncio.StreamWriter, *, resets: bool) -> None:
    """Close a connection: in order, or with a reset, which also takes back what the client has not read."""
    connection = writer.get_extra_info("socket")
    if resets and connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()


def main() -> None:
    """A proxy that only delays."""
    with Proxy(sys.argv[1], delay_s=float(sys.argv[2])) as proxy:
        print(proxy.endpoint, flush=True)  # noqa: T201
        sys.stdin.read()


if __name__ == "__main__":
    main()
