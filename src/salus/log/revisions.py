"""Schema revisions: `_salus/schema/000000.json` creates a dataset, later ones add features."""

from __future__ import annotations

import time

from .. import documents
from ..errors import CorruptDataError, FormatError
from ..layout import ArraySpec, recorded_arrays, schema_key
from ..schema import FORMAT, Schema
from ..storage import Storage


class Revisions:
    """The schema revisions and the arrays recorded under each, read when one is first asked for."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._schemas: list[Schema] = []
        self._arrays: list[list[ArraySpec]] = []

    def schema(self, revision: int) -> Schema:
        """The schema of that revision.

        Raises:
            CorruptDataError: There is no such revision.
        """
        self.recorded_arrays(revision)
        return self._schemas[revision]

    def recorded_arrays(self, revision: int) -> list[ArraySpec]:
        """The recorded arrays of that revision, by name.

        Raises:
            CorruptDataError: There is no such revision.
        """
        if revision >= len(self._arrays):
            self._schemas = read_revisions(self._storage)
            self._arrays = [recorded_arrays(schema) for schema in self._schemas]
        if revision >= len(self._arrays):
            raise CorruptDataError(f"record: schema revision {revision}, but there are {len(self._arrays)}")
        return self._arrays[revision]


def put_revision(storage: Storage, revision: int, schema: Schema) -> None:
    """Write revision `revision`.

    Raises:
        AlreadyExistsError: Another process wrote it first.
        RecordingError: The storage refused.
    """
    document = {"format": FORMAT, "revision": revision, "time_ns": time.time_ns(), "schema": schema.to_json()}
    storage.put_new(schema_key(revision), documents.seal(document))


def read_revisions(storage: Storage) -> list[Schema]:
    """All revisions, oldest first; empty where there is no dataset.

    Raises:
        FormatError: A newer format, or a schema that this version does not know.
        CorruptDataError: A revision does not hold.
    """
    found: list[Schema] = []
    while (body := storage.get(schema_key(len(found)))) is not None:
        found.append(read_revision(storage, len(found), body))
    return found


def read_revision(storage: Storage, number: int, body: bytes) -> Schema:
    """The schema in the `body` of revision `number`; raises as `read_revisions`."""
    key = schema_key(number)
    document = documents.unseal(body, key=key)
    version = document.get("format")
    if type(version) is not int:
        raise CorruptDataError(f"schema: it says no format, so it is something else, exchanged or copied; {key}")
    if version != FORMAT:
        raise FormatError(
            f"open: the dataset is of format {version}, this salus reads up to {FORMAT}: "
            f"a newer salus is needed; {storage.url}"
        )
    if document.get("revision") != number:
        raise CorruptDataError(f"schema: it is revision {document.get('revision')}, exchanged or copied; {key}")
    return Schema.from_json(document.get("schema", {}))
