"""The storages that one behavioural suite runs on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from salus.storage import LocalStorage, Storage

IMPLEMENTATIONS: dict[str, Callable[[Path], Storage]] = {"local": LocalStorage}


@pytest.fixture(params=IMPLEMENTATIONS)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return IMPLEMENTATIONS[request.param](tmp_path / "data.zarr")


@pytest.fixture
def local(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "data.zarr")
