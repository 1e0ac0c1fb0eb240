"""From a URL and `storage_options` to a place in a store: what is said is what is meant, or it is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import salus
from salus.cli.app import app
from salus.errors import InvalidInputError
from salus.storage import ObjectStorage, open_storage

from . import servers

NAMES = (
    "a b",
    "a%20b",
    "a%2fb",
    "run",
    "run#1",
    "run?x=1",
    "100%",
    "ü/ñ",
    "p+q",
    "a:b",
    "with@at",
)
OPTIONS = {"access_key_id": "a", "secret_access_key": "b", "region": "us-east-1", "endpoint": "http://127.0.0.1:9"}

_places = itertools.count()


@pytest.mark.parametrize("name", servers.SERVERS)
def test_every_name_is_another_place(name: str, stores: Callable[[str], servers.Server]) -> None:
    server = stores(name)
    base = f"{server.url}/connecting-{next(_places)}"
    for place in NAMES:
        ObjectStorage(f"{base}/{place}", server.options).put_new("_salus/one", place.encode())
    for place in NAMES:
        storage = ObjectStorage(f"{base}/{place}/", server.options)
        assert storage.get("_salus/one") == place.encode()
        assert (storage.list(""), storage.list("_salus")) == (["_salus"], ["one"])
    assert sorted(ObjectStorage(base, server.options).list("")) == sorted({place.split("/")[0] for place in NAMES})


@pytest.mark.parametrize("name", servers.SERVERS)
def test_the_root_of_a_bucket_is_a_place(name: str, stores: Callable[[str], servers.Server]) -> None:
    server, key = stores(name), f"root-{next(_places)}"
    for url in (server.url, f"{server.url}/"):
        storage = ObjectStorage(url, server.options)
        storage.put_new(f"{key}/one", b"1")
        assert key in storage.list("")
        assert storage.list(key) == ["one"]


@pytest.mark.parametrize(
    "rest", ["", "/x", "b/a//x", "b/./x", "b/../x", "b/back\\slash", "b/tab\tx", "b/x\n", "b:80/x", "u@b/x"]
)
def test_what_names_no_place_is_refused(rest: str) -> None:
    with pytest.raises(InvalidInputError, match="path: got 's3:.*, expected"):
        ObjectStorage(f"s3://{rest}", OPTIONS)


def test_a_url_that_went_through_a_path_is_no_local_folder(tmp_path: Path, schema: salus.Schema) -> None:
    with pytest.raises(InvalidInputError, match="got 's3:/bucket/x', which is what Path makes of a URL"):
        salus.create(Path("s3://bucket/x"), schema)
    assert open_storage(tmp_path / "s3:" / "x").url == str(tmp_path / "s3:" / "x")


@pytest.mark.parametrize(
    "endpoint", ["127.0.0.1:9000", "", "http://", "http://ho st", "http://h:99999", "ftp://h", "http://[::1"]
)
@pytest.mark.parametrize("given", ["options", "environment"])
def test_an_endpoint_that_is_none_is_refused(endpoint: str, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {name: value for name, value in OPTIONS.items() if name != "endpoint"}
    if given == "options":
        options["aws_endpoint_url"] = endpoint
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(
        InvalidInputError, match="endpoint: got .*, expected such as 'https://minio.lab:9000'; s3://b/x"
    ):
        ObjectStorage("s3://b/x", options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("text", "storage_options: got str, expected a dict"),
        ([1], "storage_options: got list, expected a dict"),
        ({"client_options": "text"}, "storage_options: client_options: got str, expected a dict"),
        ({"client_options": {"tiemout": "5s"}}, "storage_options: .*tiemout"),
        ({"retry_config": 3}, "storage_options: retry_config: got int, expected a dict"),
        (
            {"retry_config": {"max_retry": 1}},
            "retry_config: got 'max_retry', expected max_retries, retry_timeout, backoff",
        ),
        ({"region": 5}, "storage_options: 'int' object"),
    ],
)
def test_options_that_are_none_are_refused(options: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{said}.*; s3://b/x"):
        ObjectStorage("s3://b/x", options)


def test_none_takes_an_option_out() -> None:
    ObjectStorage("s3://b/x", {**OPTIONS, "client_options": None, "retry_config": None, "checksum_algorithm": None})


# --- commands -----------------------------------------------------------------------------------------------------


def test_every_command_takes_a_url(
    stores: Callable[[str], servers.Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = stores("moto")
    url = f"{server.url}/commands-{next(_places)}/data.zarr"
    monkeypatch.setenv("SALUS_SPOOL", str(tmp_path / "spools"))
    monkeypatch.chdir(tmp_path)
    for name, value in server.options.items():
        monkeypatch.setenv(f"AWS_{name.upper()}", value)
    cameras = ("--demo", "--seconds", "0.1", "--rate", "20", "--cameras", "1", "--height", "16", "--width", "24")
    commands: list[tuple[str, ...]] = [("record", url, *cameras)]
    commands += [(name, url) for name in ("info", "ls", "stats", "verify", "check", "recover")]
    commands += [("show", url, "0"), ("cp", url, f"{url}-copy"), ("push", url, f"{url}-copy"), ("pull", url, "p.zarr")]
    for command in commands:
        result = CliRunner().invoke(app, command)
        assert (result.exit_code, result.exception) == (0, None), command
    assert [path.name for path in tmp_path.iterdir() if path.name != "spools"] == ["p.zarr"]
    assert len(salus.open("p.zarr")) == 1


def test_the_demo_says_that_it_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, ("demo", "s3://bucket/demo.zarr", "--episodes", "1"))
    assert isinstance(refused.exception, InvalidInputError)
    assert "demo: got s3://bucket/demo.zarr, expected a local path" in str(refused.exception)
    assert list(tmp_path.iterdir()) == []
