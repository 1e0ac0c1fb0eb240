"""The spool: where the journal and the growing shards of an episode lie until it is committed.

Those of a local dataset lie in the dataset itself. A bucket has no files that grow, and may be out of reach for
minutes: those of a dataset there lie in a folder of this machine, under the keys that they would have in the dataset.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path

from ..errors import AlreadyExistsError, CorruptDataError
from ..layout import schema_key, spool_id_key
from ..storage import LocalStorage, Storage

VARIABLE = "SALUS_SPOOL"


def spool_root() -> Path:
    """The folder of all spools: the environment's SALUS_SPOOL, else `salus/spool` in the user's folder for state."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(os.path.abspath(os.environ.get(VARIABLE) or Path(state) / "salus/spool"))


def spool_of(storage: Storage) -> LocalStorage:
    """The spool of a dataset, which may not exist yet; of a local dataset, the dataset.

    A dataset in a bucket is told by its URL and by its first schema, which nobody else wrote: one that is deleted, and
    made again in the same place, has another spool.

    Raises:
        CorruptDataError: It has no schema.
        StorageError: It cannot be read.
    """
    if isinstance(storage, LocalStorage):
        return storage
    schema = storage.get(schema_key(0))
    if schema is None:
        raise CorruptDataError(f"schema: it is missing; {schema_key(0)}")
    name = hashlib.sha256(storage.url.encode() + b"\0" + schema).hexdigest()[:32]
    return LocalStorage(spool_root() / name)


def make_spool(spool: LocalStorage) -> str:
    """Make the spool of a dataset in a bucket, where it is none yet; returns its id.

    Raises:
        OSError, RecordingError: The disk refused.
        CorruptDataError: Something is in its place.
    """
    spool.make_folder(spool.root)
    if not spool_id(spool):
        with suppress(AlreadyExistsError):  # made in this moment by another recorder
            spool.put_new(spool_id_key(), secrets.token_hex(16).encode())
    return spool_id(spool)


def spool_id(spool: LocalStorage) -> str:
    """What tells a spool from those that have the same path on another machine, or in another container; `""`: none.

    Raises:
        CorruptDataError: Something is in its place.
        StorageError: It cannot be read.
    """
    return (spool.get(spool_id_key()) or b"").decode("ascii", "replace")
