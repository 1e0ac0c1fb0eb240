"""What every `Storage` does: create once, replace whole, read back, and say why it could not."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from salus import documents
from salus.errors import (
    AlreadyExistsError,
    CommitUnknownError,
    CorruptDataError,
    InvalidInputError,
    RecordingError,
    SalusError,
)
from salus.storage import LocalStorage, Storage, open_storage

KEY = "_salus/log/0/0000000001.json"


# --- put_new ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"one", os.urandom(3_000_000)], ids=["empty", "small", "large"])
def test_put_new_creates_the_whole_body(storage: Storage, body: bytes) -> None:
    storage.put_new(KEY, body)
    assert storage.get(KEY) == body


def test_put_new_refuses_a_second_body_and_keeps_the_first(storage: Storage) -> None:
    storage.put_new(KEY, b"first")
    for body in (b"second", b"firs", b"first ", b""):
        with pytest.raises(AlreadyExistsError, match=KEY):
            storage.put_new(KEY, body)
    assert storage.get(KEY) == b"first"
    assert storage.list("_salus/log/0") == ["0000000001.json"]


def test_put_new_of_a_body_that_is_there_already_succeeds(storage: Storage) -> None:
    body = documents.seal({"slot": 1})
    storage.put_new(KEY, body)
    storage.put_new(KEY, body)  # an acknowledgement was lost, and the writer tries again
    assert storage.get(KEY) == body
    with pytest.raises(AlreadyExistsError):
        storage.put_new(KEY, documents.seal({"slot": 1}))  # equal content, another writer


def test_of_eight_threads_exactly_one_creates(storage: Storage) -> None:
    for number in range(20 if isinstance(storage, LocalStorage) else 8):  # a conflict takes SeaweedFS seconds
        key, barrier, won = f"{KEY}{number}", threading.Barrier(8), []

        def put(writer: int, key: str = key, barrier: threading.Barrier = barrier, won: list[int] = won) -> None:
            barrier.wait()
            try:
                storage.put_new(key, b"%d" % writer)
            except AlreadyExistsError:
                return
            won.append(writer)

        threads = [threading.Thread(target=put, args=(writer,)) for writer in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert storage.get(key) == b"%d" % won[0]


def race(storage: Storage, writer: int, keys: list[str], barrier: Any, results: Any) -> None:
    won = []
    for key in keys:
        barrier.wait(30)
        try:
            storage.put_new(key, b"%d" % writer)
            won.append(key)
        except AlreadyExistsError:
            pass
    results.put((writer, won))


def test_of_four_processes_exactly_one_creates(storage: Storage) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    keys = [f"{KEY}{number}" for number in range(50 if isinstance(storage, LocalStorage) else 15)]
    started = [context.Process(target=race, args=(storage, writer, keys, barrier, results)) for writer in range(4)]
    for process in started:
        process.start()
    winners: dict[str, int] = {}
    for _ in started:
        writer, won = results.get(timeout=60)
        assert not set(won) & set(winners), "two processes created one object"
        winners |= dict.fromkeys(won, writer)
    for process in started:
        process.join()
    results.close()
    results.join_thread()
    assert {key: storage.get(key) for key in keys} == {key: b"%d" % winners[key] for key in keys}


def test_put_new_file_creates_with_the_content_of_a_file(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"shard")
    storage.put_new_file("images/c.0.0", source)
    storage.put_new_file("images/c.0.0", source)  # the same file again
    assert storage.get("images/c.0.0") == b"shard"
    assert source.read_bytes() == b"shard"
    other = tmp_path / "other"
    other.write_bytes(b"other")
    with pytest.raises(AlreadyExistsError):
        storage.put_new_file("images/c.0.0", other)
    source.unlink()
    assert storage.get("images/c.0.0") == b"shard"


def test_a_local_file_of_another_is_another_object_also_with_the_same_bytes(
    local: LocalStorage, tmp_path: Path
) -> None:
    for name in ("source", "other"):
        (tmp_path / name).write_bytes(b"shard")
    local.put_new_file("images/c.0.0", tmp_path / "source")
    with pytest.raises(AlreadyExistsError):
        local.put_new_file("images/c.0.0", tmp_path / "other")


# --- put, get, list, open_shard --------------------------------------------------------------------------------


def test_put_creates_and_replaces_several(storage: Storage) -> None:
    storage.put({"zarr.json": b"1", "images/zarr.json": b"a" * 1000})
    storage.put({"zarr.json": b"2", "states/zarr.json": b"b"})
    assert [storage.get(f"{name}zarr.json") for name in ("", "images/", "states/")] == [b"2", b"a" * 1000, b"b"]
    assert sorted(storage.list("")) == ["images", "states", "zarr.json"]


def test_a_reader_sees_the_old_or_the_new_body_while_put_replaces(storage: Storage) -> None:
    bodies = {bytes([value]) * 200_000 for value in range(2)}
    storage.put({"zarr.json": min(bodies)})
    stop, seen = threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            seen.add(storage.get("zarr.json"))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(60):
        storage.put({"zarr.json": sorted(bodies)[number % 2]})
    stop.set()
    reader.join()
    assert seen <= bodies


def test_what_is_absent(storage: Storage) -> None:
    assert storage.get(KEY) is None
    assert storage.list("_salus/log") == []
    assert storage.open_shard("images/c.0.0") is None
    storage.sync("nothing/there")


def test_open_shard_reads_ranges(storage: Storage) -> None:
    storage.put_new("images/c.0.0", bytes(range(200)))
    opened = storage.open_shard("images/c.0.0")
    assert opened is not None
    opened.prefetch(0, 200)
    assert opened.size == 200
    assert opened.read(10, 5) == bytes(range(10, 15))
    assert opened.read(198, 5) == bytes([198, 199])


def test_open_shard_of_an_empty_object_says_that_it_is_empty(storage: Storage) -> None:
    storage.put_new("images/c.0.0", b"")
    opened = storage.open_shard("images/c.0.0")
    assert opened is not None
    assert (opened.size, opened.read(0, 10)) == (0, b"")


def test_a_shard_is_closed_when_nobody_holds_it(local: LocalStorage) -> None:
    local.put_new("images/c.0.0", b"content")
    before = len(os.listdir("/proc/self/fd"))
    opened = local.open_shard("images/c.0.0")
    assert opened is not None
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del opened
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_lock_is_held_by_one_at_a_time(local: LocalStorage) -> None:
    inside, most = 0, 0

    def hold() -> None:
        nonlocal inside, most
        for _ in range(20):
            with local.lock():
                inside += 1
                most = max(most, inside)
                local.list("")
                inside -= 1

    threads = [threading.Thread(target=hold) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_forked_child_does_not_keep_the_lock(local: LocalStorage) -> None:
    reading, writing = os.pipe()
    with local.lock():
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)  # until the parent is done
            os._exit(0)
    taken = threading.Event()

    def take() -> None:
        with local.lock():
            taken.set()

    thread = threading.Thread(target=take)
    thread.start()
    try:
        assert taken.wait(1)
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(child, 0)
        thread.join()


# --- local files: what is not an object ------------------------------------------------------------------------


def test_list_skips_temporary_files(local: LocalStorage) -> None:
    local.put_new(KEY, b"x")
    (local.path(KEY).parent / ".0000000002.json.0123456789abcdef.tmp").write_bytes(b"half")
    assert local.list("_salus/log/0") == ["0000000001.json"]


def test_no_temporary_file_is_left(local: LocalStorage) -> None:
    local.put_new(KEY, b"x")
    with pytest.raises(AlreadyExistsError):
        local.put_new(KEY, b"y")
    local.put({"zarr.json": b"z"})
    left = [path.name for path in local.root.rglob("*") if path.is_file()]
    assert sorted(left) == ["0000000001.json", "zarr.json"]


def make_link(path: Path) -> None:
    target = path.with_name("outside")
    target.write_bytes(b"x")
    path.symlink_to(target)


STRANGE = {
    "symbolic link": make_link,
    "named pipe": os.mkfifo,
    "directory": Path.mkdir,
}


@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_plain_file_is_refused_without_waiting(local: LocalStorage, kind: str) -> None:
    local.put_new("images/c.0.0", b"x")
    STRANGE[kind](local.path("images/c.1.0"))
    for read in (local.get, local.open_shard):
        with pytest.raises(CorruptDataError, match=f"a {kind}, expected a plain file; images/c.1.0"):
            read("images/c.1.0")
    with pytest.raises((CommitUnknownError, RecordingError)):
        local.put_new("images/c.1.0", b"x")


def test_a_link_to_nowhere_is_refused_too(local: LocalStorage) -> None:
    local.put_new("images/c.0.0", b"x")
    local.path("images/c.1.0").symlink_to("nowhere")
    with pytest.raises(CorruptDataError, match="a symbolic link"):
        local.get("images/c.1.0")
    with pytest.raises(RecordingError):
        local.put_new("images/c.1.0", b"x")
    assert not local.path("images/nowhere").exists()


def test_a_folder_that_is_a_symbolic_link_is_refused(local: LocalStorage, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "c.0.0").write_bytes(b"x")
    local.put_new("zarr.json", b"{}")
    local.path("images").symlink_to(outside)
    with pytest.raises(CorruptDataError):
        local.get("images/c.0.0")


def test_a_path_says_what_storage_it_is_of(tmp_path: Path) -> None:
    for path in (f"file://{tmp_path}/data.zarr", tmp_path / "data.zarr"):
        storage = open_storage(path)
        assert isinstance(storage, LocalStorage)
        assert storage.root == tmp_path / "data.zarr"
        assert storage.root.is_absolute()
    for url in ("ftp://host/data.zarr", "s3://", "http://host/data.zarr"):
        with pytest.raises(InvalidInputError, match=f"path: got '{url}', expected a local path, or one of s3://"):
            open_storage(url)
    with pytest.raises(InvalidInputError, match="expected names between the slashes, without backslashes"):
        open_storage("s3://bucket/run\\1.zarr")  # stores take it for a slash
    with pytest.raises(InvalidInputError, match="storage_options: got region, expected none for a local path"):
        open_storage(tmp_path, {"region": "eu"})


# --- local files: what the disk refuses ------------------------------------------------------------------------


def on_small_disk(tmp_path: Path, what: str) -> dict[str, Any]:
    """Run `small_disk.py` in a mount namespace of its own; skips where there can be none."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-Urm", "true"], check=False).returncode:
        pytest.skip("needs user namespaces (unshare -Urm), to mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        [unshare, "-Urm", sys.executable, "-m", "tests.contract.small_disk", str(folder), what],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("what", ["full", "no inodes"])
def test_a_full_disk_is_a_typed_error_and_keeps_what_was_there(tmp_path: Path, what: str) -> None:
    answer = on_small_disk(tmp_path, what)
    for refused in ("error", "error of put") if what == "full" else ("error",):
        kind, message = answer[refused]
        assert kind == "RecordingError"
        assert "No space left on device: free some space" in message
    assert answer["fitted"] >= 3
    assert answer["whole"]
    assert answer["left behind"] == []
    assert answer["after making room"] == []


def test_a_read_only_disk_is_a_typed_error(tmp_path: Path) -> None:
    answer = on_small_disk(tmp_path, "readonly")
    for refused in ("error", "error of put", "error of a new folder"):
        kind, message = answer[refused]
        assert kind == "RecordingError"
        assert "Read-only file system: the file system is read-only" in message
    assert answer["absent"]


def test_a_folder_without_permission_is_a_typed_error(local: LocalStorage) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    local.put_new("a/kept", b"x")
    (local.root / "a").chmod(0o500)
    with pytest.raises(RecordingError, match="Permission denied: check the permissions"):
        local.put_new("a/refused", b"x")
    (local.root / "a").chmod(0o700)
    assert local.list("a") == ["kept"]


def failing(number: int, *, after: int = 0) -> Callable[..., Any]:
    """A function that raises this OSError at every call but the first `after`."""
    calls = 0

    def fail(*arguments: Any, **named: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ESTALE])
@pytest.mark.parametrize("call", ["open", "link", "mkdir"])
def test_every_refusal_is_typed(local: LocalStorage, monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    local.put_new("a/kept", b"x")
    with monkeypatch.context() as patch:
        real_open = os.open

        def open_to_read(path: Any, flags: int, *more: Any, **named: Any) -> int:
            return real_open(path, flags, *more, **named) if not flags & os.O_CREAT else failing(number)()

        patch.setattr(os, call, open_to_read if call == "open" else failing(number))
        with pytest.raises(RecordingError, match=os.strerror(number)):
            local.put_new("b/refused" if call == "mkdir" else "a/refused", b"x")
    assert local.list("a") == ["kept"]
    assert [path.name for path in (local.root / "a").iterdir()] == ["kept"]


def test_a_failing_fsync_of_the_body_creates_nothing(local: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    local.put_new("a/kept", b"x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(errno.EIO))
        with pytest.raises(RecordingError, match="Input/output error"):
            local.put_new("a/refused", b"x")
        with pytest.raises(RecordingError, match="Input/output error"):
            local.put({"a/kept": b"y"})
    assert [path.name for path in (local.root / "a").iterdir()] == ["kept"]
    assert local.get("a/kept") == b"x"


def test_a_failing_fsync_of_the_folder_is_unknown_and_deletes_nothing(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.put_new("a/first", b"x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(errno.EIO, after=1))  # the body's succeeds
        with pytest.raises(CommitUnknownError, match="fsync of its directory failed: Input/output error"):
            local.put_new("a/second", b"y")
    assert local.get("a/second") == b"y"
    local.put_new("a/second", b"y")  # looking again, when the disk answers: it is ours


def test_a_sync_that_the_disk_refuses_is_unknown(local: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    local.put_new("a/first", b"x")
    local.sync("a")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(errno.EIO))
        with pytest.raises(CommitUnknownError, match="put a: fsync of its directory failed: Input/output error; .*/a$"):
            local.sync("a")
        local.sync("nothing/there")  # nothing is asked of the disk
    with monkeypatch.context() as patch:
        for call in ("stat", "open"):  # a disk that is gone refuses these, too
            patch.setattr(os, call, failing(errno.EIO))
        with pytest.raises(SalusError, match="Input/output error"):
            local.sync("a")
    local.sync("a")
    assert local.get("a/first") == b"x"


def test_losing_to_another_is_only_said_when_the_other_is_durable(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.put_new("a/first", b"x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(errno.EIO, after=1))
        with pytest.raises(CommitUnknownError):
            local.put_new("a/first", b"another's")
    assert local.get("a/first") == b"x"


def test_a_link_whose_answer_was_lost_is_read_back(local: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link

    def link(*arguments: Any, **named: Any) -> None:
        real(*arguments, **named)
        raise OSError(errno.EIO, "the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", link)
        local.put_new(KEY, b"ours")
    assert local.get(KEY) == b"ours"


def test_everything_is_synced_in_the_order_that_makes_it_durable(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def told(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            target = arguments[0]
            if isinstance(target, int):
                target = Path(f"/proc/self/fd/{target}").readlink()
            place = Path(target).relative_to(local.root.parent).as_posix()
            steps.append(f"{name} {'temporary' if place.endswith('.tmp') else place}")
            return real(*arguments, **named)

        return call

    for name in ("fsync", "link", "mkdir"):
        monkeypatch.setattr(os, name, told(name, getattr(os, name)))
    local.put_new("a/b/key", b"x")
    assert steps == [
        "mkdir data.zarr",
        "fsync .",
        "mkdir data.zarr/a",
        "fsync data.zarr",
        "mkdir data.zarr/a/b",
        "fsync data.zarr/a",
        "fsync temporary",
        "link temporary",
        "fsync data.zarr/a/b",
    ]
    steps.clear()
    LocalStorage(local.root).put_new("a/b/other", b"x")  # a folder that another made may not be durable yet
    assert [step for step in steps if step.startswith("fsync")] == [
        "fsync .",
        "fsync data.zarr",
        "fsync data.zarr/a",
        "fsync temporary",
        "fsync data.zarr/a/b",
    ]


def test_folders_above_a_new_root_are_synced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, real = set(), os.fsync

    def fsync(descriptor: int) -> None:
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    LocalStorage(tmp_path / "lab" / "robot" / "data.zarr").put_new("zarr.json", b"{}")
    assert {tmp_path, tmp_path / "lab", tmp_path / "lab" / "robot"} <= synced


# --- local files: a file system without hard links ---------------------------------------------------------------


@pytest.fixture
def without_links(local: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> LocalStorage:
    if not sys.platform.startswith("linux"):
        pytest.skip("renameat2 is of Linux")

    def link(*arguments: Any, **named: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    return local


def test_without_hard_links_put_new_creates_once(without_links: LocalStorage) -> None:
    without_links.put_new(KEY, b"first")
    with pytest.raises(AlreadyExistsError):
        without_links.put_new(KEY, b"second")
    without_links.put_new(KEY, b"first")
    assert without_links.get(KEY) == b"first"
    assert [path.name for path in without_links.path(KEY).parent.iterdir()] == [Path(KEY).name]


def test_without_hard_links_of_eight_threads_exactly_one_creates(without_links: LocalStorage) -> None:
    test_of_eight_threads_exactly_one_creates(without_links)


def test_without_hard_links_put_new_file_moves_the_file(without_links: LocalStorage, tmp_path: Path) -> None:
    source, other = tmp_path / "source", tmp_path / "other"
    source.write_bytes(b"shard")
    other.write_bytes(b"other")
    without_links.put_new_file("images/c.0.0", source)
    with pytest.raises(AlreadyExistsError):
        without_links.put_new_file("images/c.0.0", other)
    assert without_links.get("images/c.0.0") == b"shard"
