"""`salus.create` and `salus.open`: what is there, and what to do when it is not what was expected."""

from __future__ import annotations

import os
import warnings
from typing import Any, get_args

from . import documents
from .codecs import check_codecs
from .dataset import Dataset, Mode, OnCorrupt
from .errors import (
    AlreadyExistsError,
    CorruptDataError,
    FormatError,
    InvalidInputError,
    NotFoundError,
    UnfinishedEpisodesWarning,
)
from .layout import PRIVATE, array_specs
from .log.publish import publish
from .log.revisions import put_revision, read_revisions
from .log.snapshot import Snapshot, load
from .log.tags import read_tag
from .log.unfinished import find_unfinished
from .schema import Schema
from .storage import DiskCache, LocalStorage, Storage, StorageOptions, is_url, open_storage


def create(
    path: str | os.PathLike[str],
    schema: Schema,
    *,
    exist_ok: bool = False,
    strict: bool = False,
    storage_options: StorageOptions | None = None,
) -> Dataset:
    """Create an empty dataset, durable on return, and open it for writing.

    Args:
        path: A local directory that does not exist yet, or is empty; or such a place in a bucket, as in `open`.
        schema: What it will hold.
        exist_ok: Open the dataset that is there, if its schema is this one: for scripts that are run again, and for
            several processes that start together.
        strict: As `open`.
        storage_options: As `open`.

    Raises:
        AlreadyExistsError: Something is there.
        InvalidInputError: `exist_ok`, and the schemas differ: lists the differences. Or a codec that the schema names
            does not fit its feature.
        MissingExtraError: JPEG images, and the extra `jpeg` is not installed.
        FormatError: `strict` refuses the schema.
        RecordingError: The storage refused.
        StorageError: An object store that does not keep what parallel writing needs.
    """
    if not isinstance(schema, Schema):
        raise InvalidInputError(f"create: got {type(schema).__name__} as schema, expected a salus.Schema")
    storage = open_storage(path, storage_options)
    if strict:
        schema.check_native(storage.url)
    check_codecs(array_specs(schema).values())
    storage.check_writable()
    if not read_revisions(storage):
        try:
            check_empty(storage)
            put_revision(storage, 0, schema)
        except AlreadyExistsError:
            if not read_revisions(storage):
                raise
            if not exist_ok:  # another process created it in this moment
                raise _exists(storage) from None
    elif not exist_ok:
        raise _exists(storage)
    dataset = _opened(storage, "a", strict=strict)
    differences = dataset.schema.differences(schema) if exist_ok else []
    if differences:
        raise InvalidInputError.listing(differences, subject=f"create: the schema differs from that of {storage.url}")
    return dataset


def open(
    path: str | os.PathLike[str],
    mode: Mode = "r",
    *,
    tag: str | None = None,
    strict: bool = False,
    on_corrupt: OnCorrupt = "raise",
    storage_options: StorageOptions | None = None,
    cache: str | os.PathLike[str] | None = None,
    cache_bytes: int = 50 * 10**9,
) -> Dataset:
    """Open a dataset at its newest state, or at a tag.

    Args:
        path: The dataset: a local path, or `s3://bucket/data.zarr`, `gs://bucket/data.zarr`, `az://container/data.zarr`
            (the extra `cloud`).
        mode: `"r"` to read; `"a"` to record, amend and tag as well. With `"a"`, episodes that dead recorders left give
            an `UnfinishedEpisodesWarning`; nothing is done about them: see `salus.recover`.
        tag: Read the snapshot of that name.
        strict: Refuse a dataset with features whose codecs SALUS does not decode itself: these go through zarr-python,
            which is slow, and what they allocate is not limited, so data of strangers is better opened strictly.
        on_corrupt: `"skip"` leaves out the episodes whose record does not hold, and those that `salus verify --repair`
            quarantined. By default they are there, and raise CorruptDataError when they are asked for.
        storage_options: Of an object store: what obstore's store takes, such as `endpoint`, `region`,
            `access_key_id`, `client_options`. What is not given comes from the environment, as the provider's own
            tools take it.
        cache: Of an object store: a folder on a local disk that keeps what is read of the shards, for later epochs and
            other processes; any number of them share it. Without effect on a local dataset.
        cache_bytes: What the cache keeps; what was read longest ago goes first.

    Raises:
        NotFoundError: Nothing is there, or no such tag.
        FormatError: Not a SALUS dataset, or one of a newer format; or `strict` refuses it.
        CorruptDataError: The schema, an amendment or the tag does not hold.
        StorageError: It cannot be read; or, with `"a"`, an object store does not keep what parallel writing needs.
    """
    if mode not in get_args(Mode):
        raise InvalidInputError(f'mode: got {mode!r}, expected "r" or "a"')
    if on_corrupt not in get_args(OnCorrupt):
        raise InvalidInputError(f'on_corrupt: got {on_corrupt!r}, expected "raise" or "skip"')
    if tag is not None and mode != "r":
        raise InvalidInputError(
            f'open: a tag never changes, so mode {mode!r} does not go with tag {tag!r}; use mode="r"'
        )
    kept = None if cache is None or not is_url(path) else DiskCache(cache, cache_bytes)
    storage = open_storage(path, storage_options, kept)
    if not read_revisions(storage):
        raise not_a_dataset(storage)
    if mode == "a":
        storage.check_writable()
    return _opened(storage, mode, tag, strict=strict, on_corrupt=on_corrupt)


def _opened(
    storage: Storage, mode: Mode, tag: str | None = None, *, strict: bool = False, on_corrupt: OnCorrupt = "raise"
) -> Dataset:
    """The dataset that is there; the storage was checked."""
    if mode == "a" and storage.get("zarr.json") is None:
        publish(storage)  # a crash came between creating the dataset and publishing it
    snapshot = load(storage) if tag is None else read_tag(storage, tag)
    if mode == "a":
        _warn_of_dead_recorders(storage, snapshot)
    # Read after the log, so that the revision of every record is among them.
    return Dataset(storage, read_revisions(storage), snapshot, mode, tag, strict=strict, on_corrupt=on_corrupt)


def _warn_of_dead_recorders(storage: Storage, snapshot: Snapshot) -> None:
    dead = [episode for episode in find_unfinished(storage, snapshot) if episode.state == "dead"]
    if dead:
        what = "1 episode" if len(dead) == 1 else f"{len(dead)} episodes"
        warnings.warn(
            f"open: {what} of recorders that died are unfinished, the first of them {dead[0].uid}; "
            f"salus recover {storage.url} brings back what they had written",
            UnfinishedEpisodesWarning,
            stacklevel=4,  # of who called open or create
        )


def _exists(storage: Storage) -> AlreadyExistsError:
    return AlreadyExistsError(
        f'create: a dataset is there already; salus.open({storage.url!r}, mode="a") goes on with it, '
        "create(..., exist_ok=True) does either"
    )


def check_empty(storage: Storage) -> None:
    """Raise AlreadyExistsError unless a dataset may be made here."""
    if isinstance(storage, LocalStorage) and storage.root.is_file():
        raise AlreadyExistsError(f"a file is there, expected nothing or an empty directory; {storage.url}")
    others = [name for name in storage.list("") if name != PRIVATE]  # _salus alone: a crash came while creating
    if others:
        raise AlreadyExistsError(
            f"it is not empty ({', '.join(sorted(others)[:3])}); choose another path; {storage.url}"
        )


def not_a_dataset(storage: Storage) -> Exception:
    """The error that says what is there instead of a dataset."""
    where = storage.url
    if isinstance(storage, LocalStorage):
        root = storage.root
        above = next((folder for folder in root.parents if (folder / PRIVATE / "schema").is_dir()), None)
        if above is not None:
            return FormatError(f"open: this lies inside the dataset {above}: open that; {root}")
        if root.exists() and not root.is_dir():
            return FormatError(f"open: a file, expected a directory that holds a SALUS dataset; {root}")
    names = sorted(storage.list(""))
    if not names and not (isinstance(storage, LocalStorage) and storage.root.exists()):
        return NotFoundError(f"open: nothing is there; salus.create(path, schema) makes a dataset; {where}")
    plain = _plain_zarr(storage)
    if plain is not None:
        return FormatError(
            f"open: a plain Zarr v3 group, not a SALUS dataset: it has no log of committed episodes. It holds "
            f"{plain}. To import it, read each row with zarr and hand it to recorder.record_episode(arrays, metadata) "
            f"of a new dataset; docs/howto/import-plain-zarr.md shows it; {where}"
        )
    if storage.get(".zgroup") is not None:
        return FormatError(
            f"open: a Zarr v2 group, not a SALUS dataset; read it with zarr and hand each episode to "
            f"recorder.record_episode(arrays, metadata) of a new dataset; {where}"
        )
    found = ", ".join(names[:4]) or "nothing"
    return FormatError(f"open: not a SALUS dataset: no {PRIVATE}/schema/000000.json; it holds {found}; {where}")


def _plain_zarr(storage: Storage) -> str | None:
    """What a plain Zarr v3 group at the root holds, in words; None where there is none."""
    body = storage.get("zarr.json")
    if body is None:
        return None
    found = []
    for name in sorted(storage.list("")):
        try:
            text = storage.get(f"{name}/zarr.json")
            metadata: dict[str, Any] = {} if text is None else documents.parse(text, key=name)
        except CorruptDataError:
            continue
        if metadata.get("node_type") == "array":
            shape = metadata.get("shape")
            shown = tuple(shape) if isinstance(shape, list) else shape
            found.append(f"{name} {metadata.get('data_type')} {shown}"[:200])
    return "; ".join(found) or "no arrays"
