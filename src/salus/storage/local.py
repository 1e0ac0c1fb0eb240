"""A dataset in a local directory: durable creation by `fsync` and `link`.

The order of the system calls is the durability. A file is written under a temporary name, `fsync`ed, linked into
place, which fails where something is there, and then its directory is `fsync`ed: a crash between any two of them leaves
either nothing or the whole object. tests/faults/ takes the steps out one by one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from ..errors import (
    AlreadyExistsError,
    CommitUnknownError,
    CorruptDataError,
    RecordingError,
    SalusError,
    StorageError,
)
from . import beneath
from .base import MAX_OBJECT_BYTES, Found, Result, Storage, StoredFile

LOCK = "_salus/publish.lock"

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_RENAME_NOREPLACE = 1
_AT_FDCWD = -100
_SYNC_THREADS = 16

_held_locks: set[int] = set()


def _drop_locks_in_child() -> None:
    # A forked child shares the lock, and would hold it for as long as it lives if its parent died meanwhile.
    for descriptor in _held_locks:
        os.close(descriptor)
    _held_locks.clear()


os.register_at_fork(after_in_child=_drop_locks_in_child)


class LocalStorage:
    """The `Storage` of one directory on a local file system.

    Args:
        root: The directory, absolute.

    Thread-safety: safe. Picklable; it holds no descriptors.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._durable: set[Path] = set()
        self._root_text = str(root)

    @property
    def url(self) -> str:
        return str(self.root)

    @property
    def requests_at_once(self) -> int:
        return 1

    def path(self, key: str) -> Path:
        return self.root / key

    def checked_folder(self, key: str) -> Path:
        """The path of a folder that files are to be made in: no part of it below the root is a link.

        Raises:
            CorruptDataError: A part of it is no plain folder.
        """
        with _reading(key), suppress(FileNotFoundError):
            beneath.check_folder(self._root_text, key)
        return self.path(key)

    def open_file(self, key: str) -> int:
        """A descriptor for reading, which the caller closes.

        Raises:
            FileNotFoundError: Nothing is there.
            CorruptDataError, StorageError: As `get`.
        """
        try:
            return beneath.open_file(self._root_text, key)[0]
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _unreadable(error, key) from error

    # --- writing -----------------------------------------------------------------------------------------------

    def put_new(self, key: str, body: bytes) -> None:
        target = self.path(key)
        with _refusals(key, target):
            self.make_folder(target.parent)
            temporary = _write_temporary(target, body)
        try:
            self._place(temporary, target, key, same=partial(self._holds, key, body), remove=True)
        finally:
            with suppress(OSError):  # a left-over temporary file is garbage, never data
                temporary.unlink()

    def put_new_many(self, objects: Mapping[str, bytes]) -> dict[str, SalusError]:
        failed: dict[str, SalusError] = {}
        temporaries: dict[str, Path] = {}

        def write(key: str) -> None:
            target = self.path(key)
            try:
                with _refusals(key, target):
                    temporaries[key] = _write_temporary(target, objects[key])
            except RecordingError as error:
                failed[key] = error

        try:
            self._make_folders_of(objects, failed)
            waiting = [key for key in objects if key not in failed]
            # Many threads: what waits for the disk at the same time shares one commit of the file system's journal.
            with ThreadPoolExecutor(min(_SYNC_THREADS, len(waiting) or 1), "salus-fsync") as threads:
                list(threads.map(write, waiting))
            failed.update(self._place_many(temporaries, objects))
        finally:
            for temporary in temporaries.values():
                with suppress(OSError):  # a left-over temporary file is garbage, never data
                    temporary.unlink()
        return failed

    def _make_folders_of(self, keys: Iterable[str], failed: dict[str, SalusError]) -> None:
        for folder, inside in _by_folder(self.path(key) for key in keys).items():
            try:
                with _refusals(str(folder), folder):
                    self.make_folder(folder)
            except (RecordingError, CorruptDataError, StorageError) as error:
                failed.update({key: error for key in keys if self.path(key) in inside})

    def _place_many(self, temporaries: Mapping[str, Path], objects: Mapping[str, bytes]) -> dict[str, SalusError]:
        """Link all, make the folders durable, and only then say of each key what became of it, as `_place` does."""
        failed: dict[str, SalusError] = {}
        doubtful: dict[str, OSError] = {}
        for key, temporary in temporaries.items():
            try:
                _link(temporary, self.path(key))
            except OSError as error:
                doubtful[key] = error
        for temporary in temporaries.values():
            with suppress(OSError):
                temporary.unlink()
        unknown: dict[Path, CommitUnknownError] = {}
        for folder in _by_folder(map(self.path, temporaries)):
            try:
                self.sync_folder(folder, str(folder))
            except CommitUnknownError as error:
                unknown[folder] = error
        for key in temporaries:
            target = self.path(key)
            if target.parent in unknown:
                failed[key] = unknown[target.parent]
            elif key in doubtful:
                try:
                    self._read_back(target, key, doubtful[key], same=partial(self._holds, key, objects[key]))
                except SalusError as error:
                    failed[key] = error
        return failed

    def put_new_file(self, key: str, source: Path) -> None:
        target = self.path(key)
        with _refusals(key, target):
            self.make_folder(target.parent)
        self._place(source, target, key, same=lambda: os.path.samestat(source.lstat(), target.lstat()))

    def _place(self, source: Path, target: Path, key: str, *, same: Callable[[], bool], remove: bool = False) -> None:
        try:
            _link(source, target)
        except OSError as error:
            # It may be there all the same: ours, with the answer lost, or another's. Durable first, then look.
            self.sync_folder(target.parent, key)
            self._read_back(target, key, error, same=same)
            return
        if remove:
            with suppress(OSError):
                source.unlink()
        self.sync_folder(target.parent, key)

    def _read_back(self, target: Path, key: str, error: OSError, *, same: Callable[[], bool]) -> None:
        """Return where ours is there after a link that failed with `error`; the directory is durable already."""
        try:
            if os.path.lexists(target) and same():
                return
            found = os.path.lexists(target)
        except (OSError, CorruptDataError) as unreadable:
            raise CommitUnknownError(f"put {key}: it cannot be read back: {unreadable}; {target}") from unreadable
        if found:
            raise AlreadyExistsError(f"put {key}: another object is there; {target}") from error
        raise _refused(error, key, target) from error

    def put(self, objects: Mapping[str, bytes]) -> None:
        for key, body in objects.items():
            target = self.path(key)
            with _refusals(key, target):
                self.make_folder(target.parent)
                temporary = _write_temporary(target, body)
                try:
                    os.replace(temporary, target)
                except OSError:
                    temporary.unlink()
                    raise
        for folder in {self.path(key).parent for key in objects}:
            self.sync_folder(folder, str(folder))

    def make_folder(self, folder: Path) -> None:
        """Create `folder` and what is missing up to the root, and make every entry of that path durable.

        A folder that another process has just created may not be durable yet, so the entries are synced by each
        process once, whoever created them.
        """
        if folder != self.root:
            beneath.check_folder(self._root_text, folder.relative_to(self.root).as_posix())
        if folder in self._durable and folder.is_dir():
            return
        if folder != self.root:
            self.make_folder(folder.parent)
        elif not folder.parent.is_dir():
            self._make_above(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_directory(folder.parent)
        self._durable.add(folder)

    def _make_above(self, folder: Path) -> None:
        if not folder.parent.is_dir():
            self._make_above(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_directory(folder.parent)

    def sync(self, folder: str) -> None:
        path = self.checked_folder(folder)
        try:
            _sync_directory(path)
        except FileNotFoundError:
            return  # what is not there, nobody has written
        except OSError as error:
            raise _not_synced(error, folder, path) from error

    def sync_folder(self, folder: Path, key: str) -> None:
        try:
            _sync_directory(folder)
        except OSError as error:
            raise _not_synced(error, key, folder) from error

    def publication(self, publish: Callable[[Storage], Result]) -> Result:
        with self.lock():
            return publish(self)

    def check_writable(self) -> None:
        pass  # a file system that has neither links nor RENAME_NOREPLACE refuses the first `put_new`

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the dataset's one lock."""
        path = self.path(LOCK)
        with _refusals(LOCK, path):
            # Nothing is synced: the folder was durable before the schema was put into it, and the lock file is nothing.
            self.checked_folder("_salus").mkdir(parents=True, exist_ok=True)
            descriptor, _ = beneath.open_plain(path, os.O_RDWR | os.O_CREAT)
        _held_locks.add(descriptor)
        try:
            with _refusals(LOCK, path):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            _held_locks.discard(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # also when a child forked meanwhile still has it open
            os.close(descriptor)

    # --- reading -----------------------------------------------------------------------------------------------

    def get(self, key: str) -> bytes | None:
        with _reading(key):
            try:
                return self._read(key)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def list(self, folder: str) -> Found:
        with _reading(folder):
            try:
                descriptor = beneath.open_folder(self._root_text, folder)
            except (FileNotFoundError, NotADirectoryError):
                return []
            try:
                return [name for name in os.listdir(descriptor) if not name.startswith(".")]
            finally:
                os.close(descriptor)

    def open_shard(self, key: str) -> StoredFile | None:
        try:
            return _LocalFile(key, *beneath.open_file(self._root_text, key))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(error, key) from error

    def _read(self, key: str) -> bytes:
        descriptor, size = beneath.open_file(self._root_text, key)
        with open(descriptor, "rb") as file:
            if size > MAX_OBJECT_BYTES:  # before anything is allocated: a file of holes says any size it likes
                raise CorruptDataError(f"an object of {size} bytes, expected at most {MAX_OBJECT_BYTES}; {key}")
            return file.read(size)

    def _holds(self, key: str, body: bytes) -> bool:
        return self._read(key) == body


class _LocalFile:
    """A `StoredFile` of a descriptor."""

    __slots__ = ("_descriptor", "_key", "size")

    def __init__(self, key: str, descriptor: int, size: int) -> None:
        self._key = key
        self._descriptor = descriptor
        self.size = size

    def read(self, start: int, size: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, start)
        except OSError as error:
            raise _unreadable(error, self._key) from error

    def prefetch(self, start: int, size: int) -> None:
        if hasattr(os, "posix_fadvise"):  # Linux
            with suppress(OSError):  # only a hint
                os.posix_fadvise(self._descriptor, start, size, os.POSIX_FADV_WILLNEED)

    def __del__(self) -> None:
        # Whoever still reads holds a reference: so the descriptor is never closed, and reused, under a reader.
        os.close(self._descriptor)


def _write_temporary(target: Path, body: bytes) -> Path:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with open(descriptor, "wb", buffering=0) as file:
            remaining = memoryview(body)
            while remaining:
                remaining = remaining[file.write(remaining) :]
            os.fsync(file.fileno())
    except OSError:
        # After a failed fsync nothing can be said of the file: it is given up, never synced again.
        with suppress(OSError):
            temporary.unlink()
        raise
    return temporary


def _by_folder(paths: Iterable[Path]) -> dict[Path, set[Path]]:
    found: dict[Path, set[Path]] = {}
    for path in paths:
        found.setdefault(path.parent, set()).add(path)
    return found


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS or not sys.platform.startswith("linux"):
            raise
        _rename_new(source, target)


def _rename_new(source: Path, target: Path) -> None:
    """Rename, unless something is there: for file systems without hard links."""
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE)
    if done != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_synced(error: OSError, key: str, folder: Path) -> CommitUnknownError:
    return CommitUnknownError(f"put {key}: fsync of its directory failed: {error.strerror}; {folder}")


@contextmanager
def _refusals(key: str, target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _refused(error, key, target) from error


@contextmanager
def _reading(key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unreadable(error, key) from error


def _unreadable(error: OSError, key: str) -> StorageError:
    hints = {errno.EMFILE: ": raise the limit of open files (ulimit -n)", errno.EACCES: ": check the permissions"}
    return StorageError(f"read {key}: {error.strerror}{hints.get(error.errno or 0, '')}; {error.filename}")


def _refused(error: OSError, key: str, target: Path) -> RecordingError:
    hints = {
        errno.ENOSPC: "free some space, then record the episode again",
        errno.EDQUOT: "the quota is used up",
        errno.EROFS: "the file system is read-only",
        errno.EACCES: "check the permissions",
    }
    hint = hints.get(error.errno or 0)
    return RecordingError(f"put {key}: {error.strerror}{f': {hint}' if hint else ''}; {target}")
