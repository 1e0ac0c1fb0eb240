"""Creating many objects at once: as durable as one by one, for few syncs."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from salus.errors import AlreadyExistsError, CommitUnknownError, RecordingError
from salus.storage import LocalStorage, Storage


def test_put_new_many_creates_each_and_says_which_were_there(storage: Storage) -> None:
    storage.put_new("b/2", b"another's")
    storage.put_new("b/3", b"3" * 1000)
    failed = storage.put_new_many({f"{folder}/{n}": b"%d" % n * 1000 for folder in "ab" for n in range(40)})
    assert {key: type(error) for key, error in failed.items()} == {"b/2": AlreadyExistsError}
    assert storage.get("b/2") == b"another's"
    for folder in "ab":
        assert sorted(storage.list(folder), key=int) == [str(n) for n in range(40)]
        for n in set(range(40)) - {2}:
            assert storage.get(f"{folder}/{n}") == b"%d" % n * 1000
    assert storage.put_new_many({}) == {}


def test_put_new_many_syncs_each_file_before_its_link_and_each_folder_after(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in "ab":
        local.make_folder(local.path(folder))
    events, plain_fsync, plain_link = [], os.fsync, os.link

    def fsync(descriptor: int) -> None:
        plain_fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append(("folder" if path.is_dir() else "file", path.name.split(".")[1] if path.is_file() else path.name))

    def link(source: Path, target: Path, **named: Any) -> None:
        assert ("file", target.name) in events
        plain_link(source, target, **named)
        events.append(("link", target.name))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    keys = [f"{folder}/{folder}{n}" for folder in "ab" for n in range(5)]
    assert local.put_new_many(dict.fromkeys(keys, b"body")) == {}
    names = {key[2:] for key in keys}
    assert {name for kind, name in events[:10] if kind == "file"} == names
    assert {name for kind, name in events[10:20] if kind == "link"} == names
    assert sorted(events[20:]) == [("folder", "a"), ("folder", "b")]
    assert sorted(path.name for path in local.path("a").iterdir()) == ["a0", "a1", "a2", "a3", "a4"]


def test_put_new_many_does_not_know_of_a_folder_that_was_not_synced(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in "ab":
        local.make_folder(local.path(folder))
    plain = os.fsync

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink() == local.path("b"):
            raise OSError(errno.EIO, "Input/output error")
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    failed = local.put_new_many(dict.fromkeys(["a/1", "b/1", "b/2"], b"body"))
    assert {key: type(error) for key, error in failed.items()} == dict.fromkeys(["b/1", "b/2"], CommitUnknownError)
    assert local.get("a/1") == local.get("b/1") == b"body"  # nothing was deleted


def test_put_new_many_leaves_out_what_cannot_be_written(local: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.fsync

    def fsync(descriptor: int) -> None:
        if ".2." in Path(f"/proc/self/fd/{descriptor}").readlink().name:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    failed = local.put_new_many({f"a/{n}": b"body" for n in range(4)})
    assert list(failed) == ["a/2"]
    assert isinstance(failed["a/2"], RecordingError)
    assert "free some space" in str(failed["a/2"])
    assert sorted(path.name for path in local.path("a").iterdir()) == ["0", "1", "3"]


def test_put_new_many_takes_ours_for_ours_when_the_answer_of_a_link_is_lost(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = os.link

    def link(source: Path, target: Path, **named: Any) -> None:
        plain(source, target, **named)
        if target.name == "1":
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", link)
    assert local.put_new_many({f"a/{n}": b"body" for n in range(3)}) == {}
