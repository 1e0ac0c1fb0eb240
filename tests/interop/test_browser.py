"""A page in a real browser reads a bucket over HTTP, with zarrita, and compares every value."""

from __future__ import annotations

import http.server
import json
import queue
import shutil
import subprocess
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import salus

from ..cloud import servers
from .conftest import HERE, require

READS_WITHIN_S = 120
ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-sync", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
)


@contextmanager
def page(folder: Path) -> Iterator[tuple[str, queue.Queue[dict[str, Any]]]]:
    """Serves the page and what it expects, from another origin than the bucket's; its URL, and what it sends."""
    results: queue.Queue[dict[str, Any]] = queue.Queue()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(HERE / "zarrita"))

        def translate_path(self, path: str) -> str:
            name = path.rpartition("/")[2]
            return str(folder / name) if name in {"expected.json", "values.bin"} else super().translate_path(path)

        def do_POST(self) -> None:
            results.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing: a page asks for some 40 files."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/page.html", results
        finally:
            server.shutdown()
            thread.join()


def read_in_browser(url: str, folder: Path, profile: Path) -> dict[str, Any]:
    """What the page says of the dataset at `url`."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium: make setup-browser")
    require((HERE / "zarrita" / "node_modules").is_dir(), "zarrita is not installed")
    with page(folder) as (address, results), (profile.parent / "browser.log").open("w+") as log:
        reading = f"{address}?{urllib.parse.urlencode({'data': url})}"
        command = [str(browser), *ARGUMENTS, f"--user-data-dir={profile}", reading]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            return results.get(timeout=READS_WITHIN_S)
        except queue.Empty:
            log.seek(0)
            pytest.fail(f"the page sent nothing within {READS_WITHIN_S} s: {log.read()[-2000:]}")
        finally:
            process.kill()
            process.wait()


@pytest.fixture(params=["scene", "streams"])
def recorded(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def test_a_browser_reads_a_bucket_bit_exact(
    recorded: Path, stores: Callable[[str], servers.Server], tmp_path: Path
) -> None:
    server = stores("seaweedfs")
    key = f"{tmp_path.name}.zarr"
    salus.copy(recorded / "data.zarr", f"{server.url}/{key}", target_options=server.options)
    said = read_in_browser(f"{server.options['endpoint']}/{servers.BUCKET}/{key}", recorded, tmp_path / "profile")
    assert "error" not in said, said["error"]
    assert "Chrome" in said["browser"]
    assert said["count"] > 2_500


def test_a_browser_notices_what_is_not_there(stores: Callable[[str], servers.Server], tmp_path: Path) -> None:
    for name in ("expected.json", "values.bin"):
        (tmp_path / name).write_text("{}")
    url = f"{stores('seaweedfs').options['endpoint']}/{servers.BUCKET}/nothing.zarr"
    assert "NotFound" in read_in_browser(url, tmp_path, tmp_path / "profile")["error"]
