"""Opening what lies beneath the root of a dataset, which is untrusted: no symbolic link, named pipe or device in it.

Each folder on the way is opened relative to the one before, and no link is followed, so nobody can exchange a folder
between the check and the opening. The root itself may be reached through links: that path is the user's.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from ..errors import CorruptDataError

_FOLDER = os.O_DIRECTORY | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)  # O_PATH: on the way only (Linux)
_FILE = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a named pipe must not make anybody wait
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symbolic link", stat.S_IFIFO: "named pipe"}


def open_file(root: str, key: str, flags: int = os.O_RDONLY) -> tuple[int, int]:
    """Open a plain file.

    Args:
        root: The root.
        key: Relative to it, from a builder of keys.
        flags: As `os.open` takes them; never to empty a file, as it is looked at afterwards.

    Returns:
        Descriptor, which the caller closes, and bytes of the file.

    Raises:
        CorruptDataError: Something else is there, or on the way.
        FileNotFoundError: Nothing is there, or there is no root.
        OSError: The storage refused.
    """
    folder, name = _open_parent(root, key)
    try:
        return _open_leaf(name, flags, key, folder)
    except OSError as error:
        raise _named(error, root, key) from error
    finally:
        os.close(folder)


def open_plain(path: Path, flags: int = os.O_RDONLY) -> tuple[int, int]:
    """Open a plain file in a folder that was checked; returns and raises as `open_file`."""
    return _open_leaf(str(path), flags, str(path))


def _open_leaf(name: str, flags: int, key: str, folder: int | None = None) -> tuple[int, int]:
    try:
        descriptor = os.open(name, flags | _FILE, 0o644, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # a link; a socket or device; a folder
            raise CorruptDataError(f"a {_kind(name, folder)}, expected a plain file; {key}") from error
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise CorruptDataError(f"a {_kind_of(status.st_mode)}, expected a plain file; {key}")
    return descriptor, status.st_size


def open_folder(root: str, key: str) -> int:
    """Open a folder to list it: its descriptor, which the caller closes.

    Args:
        root: The root.
        key: Relative to it; `""` is the root itself.

    Raises:
        As `open_file`.
    """
    if not key:
        return os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    parent, name = _open_parent(root, key)
    try:
        return _enter(parent, name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, root, key)
    finally:
        os.close(parent)


def check_folder(root: str, key: str) -> None:
    """Make sure that what is there of the way to a folder is plain folders.

    Raises:
        CorruptDataError: A part of it is something else.
        OSError: The storage refused.
    """
    try:
        folder, _ = _open_parent(root, f"{key}/")
    except FileNotFoundError:
        return
    os.close(folder)


def _open_parent(root: str, key: str) -> tuple[int, str]:
    """The folder that an object lies in, and the name of the object there."""
    *folders, name = key.split("/")
    descriptor = os.open(root, _FOLDER)
    try:
        for folder in folders:
            inner = _enter(descriptor, folder, _FOLDER, root, key)
            os.close(descriptor)
            descriptor = inner
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, name


def _enter(parent: int, name: str, flags: int, root: str, key: str) -> int:
    try:
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            kind = _kind(name, parent)
            raise CorruptDataError(f"a {kind} {name!r}, expected a plain folder; {key.rstrip('/')}") from error
        raise _named(error, root, key) from error


def _kind(name: str, folder: int | None) -> str:
    """What lies there, in words: asked only after it was refused, so nothing rests on it."""
    try:
        return _kind_of(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:  # gone in this moment
        return "symbolic link"


def _kind_of(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "device or socket")


def _named(error: OSError, root: str, key: str) -> OSError:
    """The same error with the whole path: the system only knows the last name."""
    return OSError(error.errno, error.strerror, f"{root}/{key}")
