"""A place on a memory file system where there is one: an fsync costs nothing there, and these tests make thousands."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .scenario import Warm

_MEMORY = Path("/dev/shm")  # noqa: S108 - a fresh private directory is made in it


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    """The process whose children record, and die."""
    process = Warm()
    yield process
    process.close()


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """An empty directory, in memory if possible."""
    if not _MEMORY.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=_MEMORY, prefix="salus-test-") as folder:
        yield Path(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Work goes on beside what a crash left, which opening warns of; test_recover_edges.py is about that warning."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("ignore::salus.UnfinishedEpisodesWarning"))
