"""Blocks of the shards of a bucket, kept on a local disk: bounded, checked, and shared by any number of processes.

A block is a file with its bytes and their crc32c. It is written whole under another name and renamed, and never
changed, so readers need no lock. What was read longest ago goes first.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from ..codecs import crc32c
from ..errors import InvalidInputError
from .connecting import is_url

BLOCK_BYTES = 256 * 2**10
_CHECKSUM = 4
_SWEEP_SHARE = 0.02  # of the capacity may be written before it is looked at again
_KEEP_SHARE = 0.9  # of the capacity is left by a sweep
_TOUCH_S = 60.0  # how exactly it is known when a block was read last
_LOCK = "sweep.lock"


class DiskCache:
    """A folder of blocks.

    Args:
        folder: Made where it is none; for caches alone, since a sweep removes what is in it.
        capacity_bytes: What all processes together keep there; each may exceed it by 2 % for a moment.

    Raises:
        InvalidInputError: No capacity, or the folder cannot be made.

    Thread-safety: safe, and safe between processes. Picklable.
    """

    def __init__(self, folder: str | os.PathLike[str], capacity_bytes: int) -> None:
        if is_url(folder):
            raise InvalidInputError(f"cache: got {folder}, expected a folder on a local disk")
        if isinstance(capacity_bytes, bool) or not isinstance(capacity_bytes, int | float):
            raise InvalidInputError(f"cache_bytes: got {capacity_bytes!r}, expected a number of bytes")
        self.folder = Path(os.path.abspath(Path(folder).expanduser()))
        self.capacity_bytes = int(capacity_bytes)
        if self.capacity_bytes < 4 * BLOCK_BYTES:
            raise InvalidInputError(f"cache_bytes: got {capacity_bytes}, expected at least {4 * BLOCK_BYTES}")
        try:
            self._blocks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(f"cache: {error.strerror}, expected a folder; {self.folder}") from error
        self._unswept = self.capacity_bytes  # what other processes have left is looked at first
        self._complained = False

    @property
    def _blocks(self) -> Path:
        return self.folder / "salus-blocks"

    def read(self, identity: str, object_size: int, start: int, size: int, fetch: Callable[[int, int], bytes]) -> bytes:
        """Bytes of an object, of which only the missing blocks are fetched, in one call where they lie side by side.

        Args:
            identity: Of exactly these bytes: another version of the object has another one.
            object_size: Its bytes.
            start: Where they begin.
            size: How many; they are there.
            fetch: Reads from the bucket: start and size, both from the start of the object.
        """
        name = hashlib.sha256(identity.encode()).hexdigest()
        numbers = range(start // BLOCK_BYTES, -(-(start + size) // BLOCK_BYTES))
        sizes = {number: min(BLOCK_BYTES, object_size - number * BLOCK_BYTES) for number in numbers}
        parts = {number: self._get(self._path(name, number), sizes[number]) for number in numbers}
        for first, last in _runs([number for number, part in parts.items() if part is None]):
            begin, end = first * BLOCK_BYTES, min((last + 1) * BLOCK_BYTES, object_size)
            body = memoryview(fetch(begin, end - begin))
            for number in range(first, last + 1):
                offset = (number - first) * BLOCK_BYTES
                part = parts[number] = bytes(body[offset : offset + BLOCK_BYTES])
                if len(part) == sizes[number]:
                    self._put(self._path(name, number), part)
        begin = start - numbers[0] * BLOCK_BYTES
        return b"".join(part for part in parts.values() if part is not None)[begin : begin + size]

    def _path(self, name: str, number: int) -> Path:
        return self._blocks / name[:2] / f"{name}-{number}"

    def _get(self, path: Path, size: int) -> bytes | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._complain(error)
            return None
        try:
            status = os.fstat(descriptor)
            body = os.read(descriptor, size + _CHECKSUM + 1)
            part, checksum = body[:-_CHECKSUM], body[-_CHECKSUM:]
            if len(part) != size or crc32c(part) != int.from_bytes(checksum, "little"):
                return None  # cut by a full disk or a power cut, or rotten: it is fetched again, and replaced
            if time.time() - status.st_mtime > _TOUCH_S:
                with suppress(OSError):  # of another user: then it looks older than it is
                    os.utime(descriptor)
        except OSError as error:
            self._complain(error)
            return None
        else:
            return part
        finally:
            os.close(descriptor)

    def _put(self, path: Path, part: bytes) -> None:
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
        try:
            path.parent.mkdir(exist_ok=True)
            temporary.write_bytes(part + crc32c(part).to_bytes(_CHECKSUM, "little"))
            temporary.replace(path)
        except OSError as error:  # a full disk: what was asked for has been fetched all the same
            with suppress(OSError):
                temporary.unlink()
            self._complain(error)
            return
        self._unswept += len(part)
        if self._unswept > self.capacity_bytes * _SWEEP_SHARE:
            self._unswept = 0
            self._sweep()

    def _sweep(self) -> None:
        """Remove what was read longest ago, if there is too much; one process at a time does."""
        try:
            lock = os.open(self.folder / _LOCK, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:  # the folder was removed, or may not be written to
            self._complain(error)
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = sorted(self._found())
            total = sum(size for _, size, _ in found)
            if total <= self.capacity_bytes:
                return
            for _, size, path in found:
                with suppress(FileNotFoundError):
                    path.unlink()
                total -= size
                if total <= self.capacity_bytes * _KEEP_SHARE:
                    return
        except BlockingIOError:
            return  # another process is at it
        except OSError as error:
            self._complain(error)
        finally:
            os.close(lock)

    def _found(self) -> Iterator[tuple[float, int, Path]]:
        """When each file was read last, its bytes, and its path."""
        for folder in os.scandir(self._blocks):
            if folder.is_dir(follow_symlinks=False):
                for entry in os.scandir(folder):
                    with suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        yield status.st_mtime, status.st_size, Path(entry.path)

    def _complain(self, error: OSError) -> None:
        """Once: a cache that does not work costs time, and nothing else."""
        if not self._complained:
            self._complained = True
            sys.stderr.write(
                f"salus: the cache does not work, so the bucket is read instead: {error.strerror}; {self.folder}\n"
            )


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """The first and the last of each stretch of consecutive numbers."""
    first = None
    for index, number in enumerate(numbers):
        first = number if first is None else first
        if index + 1 == len(numbers) or numbers[index + 1] != number + 1:
            yield first, number
            first = None
