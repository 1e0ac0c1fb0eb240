"""A dataset in an object store: S3, GCS or Azure, through obstore.

An object is durable once its PUT is acknowledged, and `put_new` is a conditional create. An answer that got lost says
nothing, so after every error but a plain refusal the object is read back, and compared with what was to be written.
"""

from __future__ import annotations

import functools
import os
import random
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import (
    AlreadyExistsError,
    CommitUnknownError,
    CorruptDataError,
    RecordingError,
    SalusError,
    StorageError,
)
from .base import MAX_OBJECT_BYTES, Found, Storage, StoredFile
from .connecting import StorageOptions, connected, said, settings
from .disk_cache import DiskCache
from .publication import Version, published

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

Result = TypeVar("Result")

CREATE_WITHIN_S = 60.0  # beyond the retries of obstore itself
TAIL_BYTES = 16 * 2**10  # of a shard, read when it is opened: the index of 1,000 images
AHEAD_BYTES = 256 * 2**20  # read ahead, and not asked for yet
MULTIPART_FROM_BYTES = 64 * 2**20
REQUEST_BYTES = 8 * 2**20  # read in one request: that a slow network answers it before it times out
_PARTS_AT_ONCE = 4  # of 5 MiB, for the same reason
_THREADS = 64
_UPLOADS = "_salus/uploads"
_PROBES = "_salus/probes"
_user: int | None = None  # the process that made the first request


class ObjectStorage:
    """The `Storage` of one prefix of a bucket.

    Args:
        url: `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
        options: What `obstore.store.from_url` takes besides: `endpoint`, `region`, credentials, `client_options`,
            `retry_config`. What is not given comes from the environment, as is usual in the store's own tools; None
            takes a default of SALUS out, such as `checksum_algorithm`.
        cache: Keeps what is read of shards.

    Raises:
        InvalidInputError: Not such a URL, or obstore does not know an option.
        MissingExtraError: The extra `cloud` is not installed.

    Thread-safety: safe. Picklable, options and so credentials included; a process that was forked from one that used
    a bucket gets a `StorageError`, here as well, as the threads of obstore do not survive a fork.
    """

    def __init__(self, url: str, options: StorageOptions | None = None, cache: DiskCache | None = None) -> None:
        self.url = url.rstrip("/")
        self._pid = os.getpid()
        self._cache = cache
        self._objects = connected(url, options)
        self._options = dict(options or {})
        self._place = "\0".join((self.url, *settings(self._objects)))  # the same URL may be in another store
        self.check_process()
        self._threads = ThreadPoolExecutor(_THREADS, "salus-objects")
        self._ahead = _Ahead()
        self._has_suffixes = not self.url.startswith("az:")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "options": self._options, "cache": self._cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # connections and threads do not travel

    @property
    def _store(self) -> ObjectStore:
        global _user  # noqa: PLW0603 - the threads of obstore are the process's
        self.check_process()
        _user = self._pid
        return self._objects

    def check_process(self) -> None:
        """Raise StorageError in a forked child: the threads that obstore began, and ours, are not in it."""
        if os.getpid() != self._pid or _user not in (None, self._pid):
            raise StorageError(
                f"{self.url}: this process was forked from one that used a bucket, and connections do not survive "
                "that; load with salus.torch.Loader, which uses threads, or take multiprocessing_context='spawn' or "
                "'forkserver' for the DataLoader"
            )

    def without_cache(self) -> ObjectStorage:
        """The same place, of which everything is asked."""
        return self if self._cache is None else ObjectStorage(self.url, self._options)

    @property
    def requests_at_once(self) -> int:
        return _THREADS

    # --- writing -----------------------------------------------------------------------------------------------

    def put_new(self, key: str, body: bytes) -> None:
        if len(body) >= MULTIPART_FROM_BYTES:
            self._put_in_parts(key, body, same=lambda found: found == body)
            return
        self._create(key, lambda: _put(self._store, key, body, "create"), same=lambda found: found == body)

    def put_new_many(self, objects: Mapping[str, bytes]) -> dict[str, SalusError]:
        def put(key: str) -> SalusError | None:
            try:
                self.put_new(key, objects[key])
            except SalusError as error:
                return error
            return None

        self.check_process()  # where there are no threads, nobody would do it
        answers = zip(objects, self._threads.map(put, objects), strict=True)
        return {key: error for key, error in answers if error is not None}

    def put_new_file(self, key: str, source: Path) -> None:
        if source.stat().st_size < MULTIPART_FROM_BYTES:
            self.put_new(key, source.read_bytes())
            return
        self._put_in_parts(key, source, same=lambda found: found == source.read_bytes())

    def _put_in_parts(self, key: str, body: bytes | Path, *, same: Callable[[bytes], bool]) -> None:
        # An upload in parts has no condition, so it goes to a name of its own, and the copy has the condition.
        import obstore

        uploaded = f"{_UPLOADS}/{secrets.token_hex(16)}"
        with _refusals(f"put {key}", self.url):
            _answered(lambda: obstore.put(self._store, uploaded, body, max_concurrency=_PARTS_AT_ONCE))
        with self._passing(uploaded):
            self._create(key, lambda: obstore.copy(self._store, uploaded, key, overwrite=False), same=same)

    def _create(self, key: str, create: Callable[[], object], *, same: Callable[[bytes], bool]) -> None:
        """Create an object, and where the answer is not plain, look what is there."""
        from obstore.exceptions import AlreadyExistsError as Exists
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        self.check_process()
        deadline, wait_s = time.monotonic() + CREATE_WITHIN_S, 0.05
        may_be_there = False
        while True:
            is_refused = False
            try:
                _answered(create)
            except (PermissionDeniedError, UnauthenticatedError, FileNotFoundError) as error:
                if not may_be_there and not _was_repeated(error):
                    raise _refused(f"put {key}", error, self.url) from error
                failed: Exception = error
                is_refused = True  # now; the try before may have landed
            except (BaseError, OSError) as error:
                failed = error
                may_be_there = True
            else:
                return
            try:
                found = self._get(key)
            except StorageError as unreadable:
                raise CommitUnknownError(f"put {key}: it cannot be read back: {unreadable}; {self.url}") from failed
            if found is not None:
                if same(found[0]):
                    return
                raise AlreadyExistsError(f"put {key}: another object is there; {self.url}") from failed
            # Absent: refused, or still on its way. To try again is safe, as only one of all tries can create it.
            if is_refused or time.monotonic() > deadline:
                if isinstance(failed, Exists):
                    raise AlreadyExistsError(
                        f"put {key}: the store says that it exists, and that it does not; {self.url}"
                    ) from failed
                when = "" if is_refused else f" in {CREATE_WITHIN_S:.0f} s"
                raise CommitUnknownError(
                    f"put {key}: not confirmed{when}: {said(failed)}{_hint(failed)}; {self.url}"
                ) from failed
            time.sleep(wait_s * random.uniform(0.5, 1.5))  # noqa: S311 - only so that writers do not go in step
            wait_s = min(2 * wait_s, 5.0)

    def put(self, objects: Mapping[str, bytes]) -> None:
        def put(key: str) -> None:
            with _refusals(f"put {key}", self.url):
                _put(self._store, key, objects[key], "overwrite")

        self.check_process()
        list(self._threads.map(put, objects))

    def publication(self, publish: Callable[[Storage], Result]) -> Result:
        return published(self, publish)

    def replace(self, key: str, body: bytes, version: Version | None) -> Version | None:
        """Replace exactly this version of an object; with None, create it.

        Returns:
            The version that is there now; None where another is there, which may be this one, after a lost answer.

        Raises:
            RecordingError: The storage refused.
        """
        from obstore.exceptions import AlreadyExistsError as Exists
        from obstore.exceptions import PreconditionError

        try:
            with _refusals(f"put {key}", self.url, but=(Exists, PreconditionError)):
                return _version(_put(self._store, key, body, "create" if version is None else version))
        except (Exists, PreconditionError):
            return None

    def sync(self, folder: str) -> None:
        pass  # what can be seen is durable

    def check_writable(self) -> None:
        """Try whether the store keeps its promises of conditional puts, as without them writers overwrite another.

        Raises:
            StorageError: It does not.
            RecordingError: It refused to write.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError as Exists
        from obstore.exceptions import PreconditionError

        key = f"{_PROBES}/{secrets.token_hex(16)}"
        with suppress(Exists), _refusals("probe", self.url, but=Exists):  # there: by a try whose answer was lost
            _put(self._store, key, b"first", "create")
        with self._passing(key):
            with self._expecting(Exists, "create an object only where there is none (If-None-Match)"):
                _put(self._store, key, b"second", "create")
            with self._expecting(PreconditionError, "replace an object only where it is the expected one (If-Match)"):
                stale = _version(_answered(lambda: obstore.head(self._store, key)))
                _put(self._store, key, b"third", "overwrite")
                _put(self._store, key, b"fourth", stale)

    @contextmanager
    def _expecting(self, kind: type[Exception], what: str) -> Iterator[None]:
        try:
            with _refusals("probe", self.url, but=kind):
                yield
        except kind:
            return
        raise StorageError(
            f"this store does not {what}, so parallel writers would overwrite each other's episodes; use a store that "
            f"does, or record locally and copy; reading works; {self.url}"
        )

    @contextmanager
    def _passing(self, key: str) -> Iterator[None]:
        """An object that is removed at the end; not where Ctrl-C asks for the end at once."""
        try:
            yield
        except Exception:
            self._delete(key)
            raise
        self._delete(key)

    def _delete(self, key: str) -> None:
        import obstore
        from obstore.exceptions import BaseError

        try:
            _answered(lambda: obstore.delete(self._store, key))
        except (BaseError, OSError, StorageError):
            return  # left over, in a folder where nothing else is

    # --- reading -----------------------------------------------------------------------------------------------

    def get(self, key: str) -> bytes | None:
        found = self.get_version(key)
        return None if found is None else found[0]

    def get_version(self, key: str) -> tuple[bytes, Version] | None:
        """The whole object, and which version of it that is."""
        return self._get(key, most=MAX_OBJECT_BYTES)

    def _get(self, key: str, *, most: int | None = None) -> tuple[bytes, Version] | None:
        with _reading(key, self.url):
            try:
                meta, body = _got(self._store, key, most=most)
                return body, _version(meta)
            except FileNotFoundError:
                return None

    def list(self, folder: str) -> Found:
        import obstore

        with _reading(folder or "the root", self.url):
            found = _answered(lambda: obstore.list_with_delimiter(self._store, folder or None))
        paths = [*found["common_prefixes"], *(each["path"] for each in found["objects"])]
        # Stores that have real folders list an empty one as itself.
        return [path.rpartition("/")[2] for path in paths if path.rstrip("/") != folder]

    def open_shard(self, key: str) -> StoredFile | None:
        import obstore
        from obstore.exceptions import BaseError

        with _reading(key, self.url):
            try:
                if self._has_suffixes:
                    try:
                        meta, tail = _got(self._store, key, {"suffix": TAIL_BYTES})
                        self._check_length(key, tail, min(TAIL_BYTES, meta["size"]))
                        return _ObjectFile(self, key, meta, tail)
                    except BaseError as error:
                        if not re.search("status code: 416|non-partial", str(error)):
                            raise  # else it is empty, so it has no last byte
                return _ObjectFile(self, key, _answered(lambda: obstore.head(self._store, key)), b"")
            except FileNotFoundError:
                return None

    def get_range(self, meta: ObjectMeta, start: int, size: int) -> bytes:
        """`size` bytes from `start` on, of an object as it was when `meta` was read; they must be there.

        Raises:
            CorruptDataError: It was removed or replaced since.
            StorageError: They cannot be read.
        """
        fetch = functools.partial(self._fetch, meta)
        if self._cache is None or not meta["e_tag"]:
            return fetch(start, size)
        version = (meta["e_tag"], str(meta["size"]), meta["last_modified"].isoformat())
        identity = "\0".join((self._place, meta["path"], *version))
        return self._cache.read(identity, meta["size"], start, size, fetch)

    def _fetch(self, meta: ObjectMeta, start: int, size: int) -> bytes:
        starts = range(start, start + size, REQUEST_BYTES)
        parts = [self._fetch_part(meta, first, min(REQUEST_BYTES, start + size - first)) for first in starts]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _fetch_part(self, meta: ObjectMeta, start: int, size: int) -> bytes:
        from obstore.exceptions import BaseError

        key = meta["path"]
        with _reading(key, self.url):
            try:
                found, body = _got(self._store, key, (start, start + size))
            except FileNotFoundError as error:
                raise CorruptDataError(f"the object was removed after it was opened; {key}") from error
            except BaseError as error:
                if "status code: 416" in str(error):
                    raise CorruptDataError(f"the object was cut after it was opened; {key}") from error
                raise
        if (found["e_tag"], found["size"]) != (meta["e_tag"], meta["size"]):
            raise CorruptDataError(
                f"the object was replaced after it was opened: got ETag {found['e_tag']} and {found['size']} bytes, "
                f"expected {meta['e_tag']} and {meta['size']}; open the dataset again; {key}"
            )
        self._check_length(key, body, size)
        return body

    def _check_length(self, key: str, body: bytes, size: int) -> None:
        if len(body) != size:
            raise StorageError(f"read {key}: the store sent {len(body)} bytes, expected {size}; {self.url}")

    def get_ahead(self, meta: ObjectMeta, start: int, size: int) -> Future[bytes] | None:
        """`get_range` on a thread; None where too much is under way."""
        self.check_process()
        if not self._ahead.take(size):
            return None
        return self._threads.submit(self.get_range, meta, start, size)

    def give_back(self, size: int) -> None:
        """Bytes that were read ahead, and are not kept any more."""
        if os.getpid() == self._pid:  # in a forked child, a thread that is not there may hold the lock
            self._ahead.give_back(size)


class _Ahead:
    """How much may be read ahead."""

    def __init__(self) -> None:
        self._left = AHEAD_BYTES
        self._lock = threading.RLock()  # a file may be collected, and give back, amid a call on the same thread

    def take(self, size: int) -> bool:
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True

    def give_back(self, size: int) -> None:
        with self._lock:
            self._left += size


class _ObjectFile:
    """A `StoredFile` of an immutable object: its end was read when it was opened."""

    def __init__(self, storage: ObjectStorage, key: str, meta: ObjectMeta, tail: bytes) -> None:
        self.size = meta["size"]
        self._storage = storage
        self._meta: ObjectMeta = {**meta, "path": key}
        self._tail = tail
        self._tail_start = self.size - len(tail)
        self._ahead: list[tuple[int, int, Future[bytes]]] = []
        self._lock = threading.Lock()

    def read(self, start: int, size: int) -> bytes:
        end = min(start + size, self.size)
        if start >= end:
            return b""
        if start >= self._tail_start:
            return self._tail[start - self._tail_start : end - self._tail_start]
        if end > self._tail_start:
            return self.read(start, self._tail_start - start) + self._tail[: end - self._tail_start]
        self._storage.check_process()
        with self._lock:
            found = next((each for each in self._ahead if each[0] <= start and end <= each[1]), None)
        if found is None:
            return self._storage.get_range(self._meta, start, end - start)
        first, last, future = found
        try:
            return future.result()[start - first : end - first]
        finally:
            if end == last or future.exception() is not None:  # chunks are read in order, so this was the last of them
                self._drop(found)

    def prefetch(self, start: int, size: int) -> None:
        end = min(start + size, self._tail_start)
        if start >= end:
            return
        with self._lock:
            if any(first <= start and end <= last for first, last, _ in self._ahead):
                return
            future = self._storage.get_ahead(self._meta, start, end - start)
            if future is not None:
                self._ahead.append((start, end, future))

    def _drop(self, found: tuple[int, int, Future[bytes]]) -> None:
        with self._lock:
            if found not in self._ahead:
                return
            self._ahead.remove(found)
        self._storage.give_back(found[1] - found[0])

    def __del__(self) -> None:
        for found in self._ahead:
            self._storage.give_back(found[1] - found[0])


def _was_repeated(error: BaseException) -> bool:
    """Whether obstore tried before, and so does not know what came of that."""
    return re.search(r"after [1-9]\d* retries", str(error)) is not None


def _version(found: Any) -> Version:
    return {name: found[name] for name in ("e_tag", "version") if found[name] is not None}


def _put(store: ObjectStore, key: str, body: bytes, mode: Any) -> Any:
    import obstore

    return _answered(lambda: obstore.put(store, key, body, mode=mode, use_multipart=False))


def _got(store: ObjectStore, key: str, part: Any = None, *, most: int | None = None) -> tuple[ObjectMeta, bytes]:
    """An object, or a part of it, and what the store says of the whole, which has at most so many bytes."""
    import obstore

    def get() -> tuple[ObjectMeta, bytes]:
        answer = obstore.get(store, key, options=None if part is None else {"range": part})
        if most is not None and (size := answer.meta["size"]) > most:  # before the body is read
            raise CorruptDataError(f"an object of {size} bytes, expected at most {most}; {key}")
        return answer.meta, bytes(answer.bytes())

    return _answered(get)


def _answered(ask: Callable[[], Result]) -> Result:
    """What `ask` returns. obstore waits without hearing Ctrl-C, so the main thread lets another one ask."""
    if threading.current_thread() is not threading.main_thread():
        return ask()
    answer: Future[Result] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # noqa: BLE001 - it is raised where the answer is waited for
            answer.set_exception(error)

    threading.Thread(target=run, name="salus-request", daemon=True).start()
    return answer.result()


@contextmanager
def _refusals(what: str, url: str, *, but: type[Exception] | tuple[type[Exception], ...] = ()) -> Iterator[None]:
    from obstore.exceptions import BaseError

    try:
        yield
    except but:
        raise
    except SalusError:
        raise
    except (BaseError, OSError) as error:
        raise _refused(what, error, url) from error


def _refused(what: str, error: BaseException, url: str) -> RecordingError:
    return RecordingError(f"{what}: {said(error)}{_hint(error)}; {url}")


@contextmanager
def _reading(what: str, url: str) -> Iterator[None]:
    from obstore.exceptions import BaseError

    try:
        yield
    except SalusError:
        raise
    except (BaseError, OSError) as error:
        raise StorageError(f"read {what}: {said(error)}{_hint(error)}; {url}") from error


def _hint(error: BaseException) -> str:
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return ": check the credentials, and what they may do"
    if "status code: 404" in str(error):  # of an object, it is None
        return ": check the name of the bucket, and the endpoint"
    if "HTTP error" in str(error):
        return ": check the network, and the endpoint"
    return ""
