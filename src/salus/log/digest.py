"""The digest of a snapshot: one value that changes with anything committed (docs/spec.md, section 3.7)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from .. import documents
from ..layout import amendment_key, record_key, schema_key
from ..storage import Storage
from .snapshot import Snapshot


def revision_digests(storage: Storage) -> list[str]:
    """The digests of all schema revisions, oldest first.

    Raises:
        CorruptDataError: One does not hold.
    """
    found: list[str] = []
    while (body := storage.get(schema_key(len(found)))) is not None:
        documents.unseal(body, key=schema_key(len(found)))
        found.append(documents.digest_of(body))
    return found


def root_digest(snapshot: Snapshot, revisions: Sequence[str]) -> str:
    """`sha256:<hex>` over a line for each schema revision that is in use, each record and each amendment.

    Args:
        snapshot: What is committed.
        revisions: The digests of the schema revisions, oldest first; later ones than any record names do not count.
    """
    decided = snapshot.decided
    in_use = int(decided.numbers("schema_revision").max(initial=0)) + 1
    lines = {schema_key(number): digest for number, digest in enumerate(revisions[:in_use])}
    slots = decided.numbers("slot").tolist()
    for slot, digest, corrupt in zip(slots, decided.column("digest"), decided.has("status", "corrupt"), strict=True):
        lines[record_key(slot)] = "corrupt" if corrupt else digest
    for number, amendment in enumerate(snapshot.amendments):
        body = documents.canonical({"number": number, **amendment.to_json()})
        lines[amendment_key(number)] = f"sha256:{hashlib.sha256(body).hexdigest()}"
    text = "".join(f"{key} {lines[key]}\n" for key in sorted(lines))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
