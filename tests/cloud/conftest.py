"""Shared by the tests of recording into buckets: a store, a spool, and a network that goes away."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from salus.errors import CommitUnknownError
from salus.storage import ObjectStorage

from . import servers

_datasets = itertools.count()


@pytest.fixture
def s3(stores: Callable[[str], servers.Server]) -> servers.Server:
    """The one that starts fastest, where the kind makes no difference."""
    server = stores("moto")
    return server._replace(url=f"{server.url}/recording-{next(_datasets)}")


@pytest.fixture(autouse=True)
def spools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all spools."""
    monkeypatch.setenv("SALUS_SPOOL", str(tmp_path / "spools"))
    return tmp_path / "spools"


class Network:
    """Whether what a recorder finishes gets through to the bucket."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.away = threading.Event()
        self.stuck: str | None = None  # what begins so does not get through
        for name in ("put_new", "put_new_file"):
            monkeypatch.setattr(ObjectStorage, name, self._guarded(getattr(ObjectStorage, name)))

    def _guarded(self, put: Callable[..., None]) -> Callable[..., None]:
        def guarded(storage: ObjectStorage, key: str, body: Any) -> None:
            if self.away.is_set() or (self.stuck is not None and key.startswith(self.stuck)):
                raise CommitUnknownError(f"put {key}: the network is away")
            put(storage, key, body)

        return guarded


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    return Network(monkeypatch)
