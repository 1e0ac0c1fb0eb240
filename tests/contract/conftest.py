"""The storages that one behavioural suite runs on: a local directory, and real object stores on loopback."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from salus.storage import LocalStorage, ObjectStorage, Storage

from ..cloud import servers

_datasets = itertools.count()


@pytest.fixture(params=["local", *servers.SERVERS])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty one, of each kind."""
    if request.param == "local":
        return LocalStorage(tmp_path / "data.zarr")
    server = request.getfixturevalue("stores")(request.param)
    return ObjectStorage(f"{server.url}/{next(_datasets)}/data.zarr", server.options)


@pytest.fixture
def local(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "data.zarr")
