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
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from ..errors import (
    AlreadyExistsError,
    CommitUnknownError,
    InvalidInputError,
    MissingExtraError,
    RecordingError,
    SalusError,
    StorageError,
)
from .base import Found, Storage, StoredFile
from .disk_cache import DiskCache
from .publication import Version, published

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

Result = TypeVar("Result")
StorageOptions: TypeAlias = Mapping[str, Any]

SCHEMES = ("s3", "gs", "az")
CREATE_WITHIN_S = 60.0  # beyond the retries of obstore itself
TAIL_BYTES = 16 * 2**10  # of a shard, read when it is opened: the index of 1,000 images
AHEAD_BYTES = 256 * 2**20  # read ahead, and not asked for yet
MULTIPART_FROM_BYTES = 64 * 2**20
_THREADS = 64
_UPLOADS = "_salus/uploads"
_PROBES = "_salus/probes"
# http only comes into play where somebody gives an endpoint that says so: a store in the lab, or of a test.
_CLIENT_OPTIONS = {"allow_http": True, "timeout": timedelta(seconds=120), "connect_timeout": timedelta(seconds=10)}
_RETRIES = {
    "max_retries": 10,
    "retry_timeout": timedelta(seconds=120),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=10), "base": 2},
}


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether this is the URL of something that is not on a local disk."""
    text = os.fspath(path)
    return "://" in text and not text.startswith("file://")


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
    it gets a `StorageError`, as the threads of obstore do not survive a fork.
    """

    def __init__(self, url: str, options: StorageOptions | None = None, cache: DiskCache | None = None) -> None:
        self._options = dict(options or {})
        self._cache = cache
        self._objects = _store(url, self._options)
        self.url = url.rstrip("/")
        self._pid = os.getpid()
        self._threads = ThreadPoolExecutor(_THREADS, "salus-objects")
        self._ahead = _Ahead()
        self._has_suffixes = not self.url.startswith("az:")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "options": self._options, "cache": self._cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # connections and threads do not travel

    @property
    def _store(self) -> ObjectStore:
        if os.getpid() != self._pid:
            raise StorageError(
                f"{self.url}: this process was forked from one that used the bucket, and connections do not survive "
                "that; load with salus.torch.Loader, which uses threads, or take multiprocessing_context='spawn' or "
                "'forkserver' for the DataLoader"
            )
        return self._objects

    @property
    def requests_at_once(self) -> int:
        return _THREADS

    # --- writing -----------------------------------------------------------------------------------------------

    def put_new(self, key: str, body: bytes) -> None:
        self._create(key, lambda: _put(self._store, key, body, "create"), same=lambda found: found == body)

    def put_new_many(self, objects: Mapping[str, bytes]) -> dict[str, SalusError]:
        def put(key: str) -> SalusError | None:
            try:
                self.put_new(key, objects[key])
            except SalusError as error:
                return error
            return None

        answers = zip(objects, self._threads.map(put, objects), strict=True)
        return {key: error for key, error in answers if error is not None}

    def put_new_file(self, key: str, source: Path) -> None:
        if source.stat().st_size < MULTIPART_FROM_BYTES:
            self.put_new(key, source.read_bytes())
            return
        # An upload in parts has no condition, so it goes to a name of its own, and the copy has the condition.
        import obstore

        uploaded = f"{_UPLOADS}/{secrets.token_hex(16)}"
        with _refusals(f"put {key}", self.url):
            obstore.put(self._store, uploaded, source)
        try:
            self._create(
                key,
                lambda: obstore.copy(self._store, uploaded, key, overwrite=False),
                same=lambda found: found == source.read_bytes(),
            )
        finally:
            self._delete(uploaded)

    def _create(self, key: str, create: Callable[[], object], *, same: Callable[[bytes], bool]) -> None:
        """Create an object, and where the answer is not plain, look what is there."""
        from obstore.exceptions import AlreadyExistsError as Exists
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        deadline, wait_s = time.monotonic() + CREATE_WITHIN_S, 0.05
        while True:
            try:
                create()
            except (PermissionDeniedError, UnauthenticatedError) as error:
                raise _refused(f"put {key}", error, self.url) from error
            except (BaseError, OSError) as error:
                failed: Exception = error
            else:
                return
            try:
                found = self.get(key)
            except StorageError as unreadable:
                raise CommitUnknownError(f"put {key}: it cannot be read back: {unreadable}; {self.url}") from failed
            if found is not None:
                if same(found):
                    return
                raise AlreadyExistsError(f"put {key}: another object is there; {self.url}") from failed
            # Absent: refused, or still on its way. To try again is safe, as only one of all tries can create it.
            if time.monotonic() > deadline:
                if isinstance(failed, Exists):
                    raise AlreadyExistsError(
                        f"put {key}: the store says that it exists, and that it does not; {self.url}"
                    ) from failed
                raise CommitUnknownError(
                    f"put {key}: not confirmed in {CREATE_WITHIN_S:.0f} s: {said(failed)}; {self.url}"
                ) from failed
            time.sleep(wait_s * random.uniform(0.5, 1.5))  # noqa: S311 - only so that writers do not go in step
            wait_s = min(2 * wait_s, 5.0)

    def put(self, objects: Mapping[str, bytes]) -> None:
        def put(key: str) -> None:
            with _refusals(f"put {key}", self.url):
                _put(self._store, key, objects[key], "overwrite")

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
        try:
            with _refusals("probe", self.url):
                _put(self._store, key, b"first", "create")
            with self._expecting(Exists, "create an object only where there is none (If-None-Match)"):
                _put(self._store, key, b"second", "create")
            with self._expecting(PreconditionError, "replace an object only where it is the expected one (If-Match)"):
                stale = _version(obstore.head(self._store, key))
                _put(self._store, key, b"third", "overwrite")
                _put(self._store, key, b"fourth", stale)
        finally:
            self._delete(key)

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

    def _delete(self, key: str) -> None:
        import obstore
        from obstore.exceptions import BaseError

        try:
            obstore.delete(self._store, key)
        except (BaseError, OSError, StorageError):
            return  # left over, in a folder where nothing else is

    # --- reading -----------------------------------------------------------------------------------------------

    def get(self, key: str) -> bytes | None:
        found = self.get_version(key)
        return None if found is None else found[0]

    def get_version(self, key: str) -> tuple[bytes, Version] | None:
        """The whole object, and which version of it that is."""
        import obstore

        with _reading(key, self.url):
            try:
                answer = obstore.get(self._store, key)
                return bytes(answer.bytes()), _version(answer.meta)
            except FileNotFoundError:
                return None

    def list(self, folder: str) -> Found:
        import obstore

        with _reading(folder or "the root", self.url):
            found = obstore.list_with_delimiter(self._store, folder or None)
        paths = [*found["common_prefixes"], *(each["path"] for each in found["objects"])]
        # Stores that have real folders list an empty one as itself.
        return [path.rpartition("/")[2] for path in paths if path.rstrip("/") != folder]

    def open_shard(self, key: str) -> StoredFile | None:
        import obstore

        with _reading(key, self.url):
            try:
                if self._has_suffixes:
                    answer = obstore.get(self._store, key, options={"range": {"suffix": TAIL_BYTES}})
                    return _ObjectFile(self, key, answer.meta, bytes(answer.bytes()))
                return _ObjectFile(self, key, obstore.head(self._store, key), b"")
            except FileNotFoundError:
                return None

    def get_range(self, meta: ObjectMeta, start: int, size: int) -> bytes:
        """`size` bytes of an object from `start` on; they must be there."""
        if self._cache is None or not meta["e_tag"]:
            return self._fetch(meta["path"], start, size)
        identity = "\0".join((self.url, meta["path"], meta["e_tag"], str(meta["size"])))
        return self._cache.read(identity, meta["size"], start, size, functools.partial(self._fetch, meta["path"]))

    def _fetch(self, key: str, start: int, size: int) -> bytes:
        import obstore

        with _reading(key, self.url):
            return bytes(obstore.get_range(self._store, key, start=start, length=size))

    def get_ahead(self, meta: ObjectMeta, start: int, size: int) -> Future[bytes] | None:
        """`get_range` on a thread; None where too much is under way."""
        if not self._ahead.take(size):
            return None
        return self._threads.submit(self.get_range, meta, start, size)

    def give_back(self, size: int) -> None:
        """Bytes that were read ahead, and are not kept any more."""
        self._ahead.give_back(size)


class _Ahead:
    """How much may be read ahead."""

    def __init__(self) -> None:
        self._left = AHEAD_BYTES
        self._lock = threading.Lock()

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


def said(error: BaseException) -> str:
    """What an error of obstore says, without requests, XML, and what it says to its own developers."""
    text = str(error).partition("\n\nDebug source")[0]
    status = re.search(r"status code: (\d+ [\w ]+)", text)
    if status is not None:
        message = re.search(r"<Message>([^<\n]*)", text)
        return f"the store answered {status[1]}" + (f": {message[1].rstrip('.')}" if message else "")
    lines = text.splitlines() or [type(error).__name__]
    return re.sub(r"^Generic \w+ error: (?:Error performing .*? - )?", "", lines[0]).rstrip(".")


def _version(found: Any) -> Version:
    return {name: found[name] for name in ("e_tag", "version") if found[name] is not None}


def _put(store: ObjectStore, key: str, body: bytes, mode: Any) -> Any:
    import obstore

    return obstore.put(store, key, body, mode=mode, use_multipart=False)


def _store(url: str, options: StorageOptions) -> ObjectStore:
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES or not rest.strip("/"):
        expected = ", ".join(f"{each}://bucket/data.zarr" for each in SCHEMES)
        raise InvalidInputError(f"path: got {url!r}, expected a local path, or one of {expected}")
    if found := sorted(set("?#\\").intersection(rest)):
        raise InvalidInputError(
            f"path: got {url!r} with {' and '.join(found)}, expected a URL without: ? and # would end its path, and "
            "stores take \\ for /; take another name"
        )
    try:
        import obstore.store
        from obstore.exceptions import BaseError
    except ImportError as error:
        raise MissingExtraError(f"{url}: object stores need obstore: pip install 'salus[cloud]'") from error
    defaults: dict[str, Any] = {"client_options": _CLIENT_OPTIONS, "retry_config": _RETRIES}
    if scheme == "s3":
        # Without a checksum, SeaweedFS keeps an empty object of a put that breaks off after its head: nobody's, in our
        # place. It costs nothing, as it is made for the signature anyway.
        of_s3 = {"copy_if_not_exists": "multipart", "checksum_algorithm": "SHA256"}
        defaults |= {name: value for name, value in of_s3.items() if f"aws_{name}" not in options}
    merged = {**defaults, **options, "client_options": {**_CLIENT_OPTIONS, **options.get("client_options", {})}}
    merged = {name: value for name, value in merged.items() if value is not None}
    try:
        return obstore.store.from_url(url, **merged)
    except (BaseError, ValueError, TypeError) as error:
        raise InvalidInputError(f"storage_options: {said(error)}; {url}") from error


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
