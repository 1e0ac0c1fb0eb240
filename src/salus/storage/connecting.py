"""From the URL of a bucket and what is said of it to a store of obstore."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from ..errors import InvalidInputError, MissingExtraError

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore, S3Store

    ObjectStore: TypeAlias = S3Store | GCSStore | AzureStore

StorageOptions: TypeAlias = Mapping[str, Any]

SCHEMES = ("s3", "gs", "az")
# http only comes into play where somebody gives an endpoint that says so: a store in the lab, or of a test.
_CLIENT_OPTIONS = {"allow_http": True, "timeout": timedelta(seconds=120), "connect_timeout": timedelta(seconds=10)}
_RETRIES = {
    "max_retries": 10,
    "retry_timeout": timedelta(seconds=120),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=10), "base": 2},
}
_BUCKET = re.compile(r"[\w$][\w.$-]*", re.ASCII)
_NO_NAME = re.compile(r"[\x00-\x1f\x7f\\]")
_FROM_ENVIRONMENT = {
    "endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "account_name": ("AZURE_STORAGE_ACCOUNT_NAME",),
}


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether this is the URL of something that is not on a local disk."""
    text = os.fspath(path)
    return "://" in text and not text.startswith("file://")


def connected(url: str, options: StorageOptions | None) -> ObjectStore:
    """The store of obstore for a prefix of a bucket; nothing is asked of it yet.

    Raises:
        InvalidInputError: Not such a URL, or options that obstore does not know.
        MissingExtraError: The extra `cloud` is not installed.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.rstrip("/").partition("/")
    if scheme not in SCHEMES or not _BUCKET.fullmatch(bucket):
        expected = ", ".join(f"{each}://bucket/data.zarr" for each in SCHEMES)
        raise InvalidInputError(f"path: got {url!r}, expected a local path, or one of {expected}")
    if prefix and (_NO_NAME.search(prefix) or {"", ".", ".."} & set(prefix.split("/"))):
        raise InvalidInputError(
            f"path: got {url!r}, expected names between the slashes, without backslashes, control characters, '.' and "
            "'..'"
        )
    try:
        import obstore.store
        from obstore.exceptions import BaseError
    except ImportError as error:
        raise MissingExtraError(f"{url}: object stores need obstore: pip install 'salus[cloud]'") from error
    given = _checked(options, url)
    defaults: dict[str, Any] = {"client_options": _CLIENT_OPTIONS, "retry_config": _RETRIES}
    if scheme == "s3":
        # Without a checksum, SeaweedFS keeps an empty object of a put that breaks off after its head: nobody's, in our
        # place. It costs nothing, as it is made for the signature anyway.
        of_s3 = {"copy_if_not_exists": "multipart", "checksum_algorithm": "SHA256"}
        defaults |= {name: value for name, value in of_s3.items() if f"aws_{name}" not in given}
    merged = {**defaults, **given, "client_options": {**_CLIENT_OPTIONS, **(given.get("client_options") or {})}}
    merged = {name: value for name, value in merged.items() if value is not None}
    # Quoted, as else "#" and "?" would end the path, and "%20" would be another name.
    quoted = f"{scheme}://{bucket}/{urllib.parse.quote(prefix)}"
    try:
        store = cast("ObjectStore", obstore.store.from_url(quoted, **merged))
    except (BaseError, ValueError, TypeError) as error:
        raise InvalidInputError(f"storage_options: {said(error)}; {url}") from error
    endpoint = _setting(store, "endpoint")
    if scheme == "s3" and endpoint is not None and not _is_endpoint(endpoint):  # obstore would panic
        raise InvalidInputError(f"endpoint: got {endpoint!r}, expected such as 'https://minio.lab:9000'; {url}")
    return store


def _checked(options: StorageOptions | None, url: str) -> dict[str, Any]:
    """The options. obstore looks at their names itself, but for those within `retry_config`."""
    given = _mapping("storage_options", options, url)
    _mapping("storage_options: client_options", given.get("client_options"), url)
    unknown = _mapping("storage_options: retry_config", given.get("retry_config"), url).keys() - _RETRIES.keys()
    if unknown:
        raise InvalidInputError(
            f"storage_options: retry_config: got {', '.join(map(repr, sorted(unknown)))}, expected "
            f"{', '.join(_RETRIES)}; {url}"
        )
    return given


def _mapping(what: str, value: Any, url: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise InvalidInputError(f"{what}: got {type(value).__name__}, expected a dict; {url}")
    return dict(value or {})


def settings(store: ObjectStore) -> tuple[str, ...]:
    """Which store a URL is in, as options or environment say: its endpoint and account, "" where they do not."""
    return tuple(_setting(store, name) or "" for name in _FROM_ENVIRONMENT)


def _setting(store: ObjectStore, name: str) -> str | None:
    """What the options or the environment say of it."""
    given = [store.config.get(name), *map(os.environ.get, _FROM_ENVIRONMENT[name])]
    return next((str(value) for value in given if value is not None), None)


def _is_endpoint(text: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and " " not in text
    except ValueError:  # of the port
        return False


def said(error: BaseException) -> str:
    """What an error of obstore says, without requests, XML, and what it says to its own developers."""
    text = str(error).partition("\n\nDebug source")[0]
    status = re.search(r"status code: (\d+ [\w ]+)", text)
    if status is not None:
        message = re.search(r"<Message>([^<\n]*)", text)
        return f"the store answered {status[1]}" + (f": {message[1].rstrip('.')}" if message else "")
    lines = text.splitlines() or [type(error).__name__]
    return re.sub(r"^Generic \w+ error: (?:Error performing .*? - )?", "", lines[0]).rstrip(".")
