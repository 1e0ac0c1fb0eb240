"""Amendments: later changes to episodes, in one dense sequence (docs/spec.md, section 3.4)."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from .. import documents
from ..errors import AlreadyExistsError, CorruptDataError
from ..labels import Outcome
from ..layout import amendment_key
from ..storage import Storage

Change = Literal["delete", "undelete", "outcome", "metadata", "quarantine", "unquarantine"]


@dataclass(frozen=True)
class Amendment:
    """One change to one or more episodes.

    Attributes:
        uids: The episodes.
        change: What changes.
        value: The new outcome, the metadata keys that change (None removes one), or why it is quarantined; else None.
        author: Free text.
        time_ns: Wall clock, nanoseconds since 1970.
    """

    uids: tuple[str, ...]
    change: Change
    value: Any = None
    author: str = ""
    time_ns: int = 0

    def to_json(self) -> dict[str, Any]:
        """As it stands in its object, and in checkpoints and tags."""
        return {
            "uids": list(self.uids),
            "change": self.change,
            "value": self.value,
            "author": self.author,
            "time_ns": self.time_ns,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], *, key: str) -> Amendment:
        """Raises CorruptDataError, naming `key`, where it is no amendment."""
        try:
            made = cls(tuple(value["uids"]), value["change"], value["value"], value["author"], value["time_ns"])
            if not all(isinstance(text, str) for text in (*made.uids, made.author)):
                raise TypeError("uids or author that are no text")
            if type(made.time_ns) is not int or not 0 <= made.time_ns < 2**63:
                raise ValueError(f"time {made.time_ns!r}")
            if made.change == "outcome":
                Outcome.from_json(made.value)
            elif made.change == "metadata":
                if not isinstance(made.value, dict):
                    raise TypeError(f"metadata {type(made.value).__name__}")
            elif made.change == "quarantine":
                if not isinstance(made.value, str):
                    raise TypeError(f"quarantine because of {made.value!r}")
            elif made.change not in ("delete", "undelete", "unquarantine"):
                raise ValueError(f"unknown change {made.change!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptDataError(f"amendment: not understood: {error!r}; {key}") from error
        return made


@dataclass(frozen=True)
class Overlay:
    """What the amendments in force say of one episode.

    Attributes:
        deleted: It was deleted, and not undeleted since.
        outcome: The outcome in force, where one was amended.
        metadata: Keys changed since the record; None for a removed one.
        quarantine: Why and since when `salus verify --repair` keeps readers from it, where it does.
    """

    deleted: bool = False
    outcome: Outcome | None = None
    metadata: tuple[tuple[str, Any], ...] = ()
    quarantine: Amendment | None = None

    def amended(self, amendment: Amendment) -> Overlay:
        """With one more amendment."""
        if amendment.change == "outcome":
            return replace(self, outcome=Outcome.from_json(amendment.value))
        if amendment.change == "metadata":
            return replace(self, metadata=tuple({**dict(self.metadata), **amendment.value}.items()))
        if amendment.change in ("quarantine", "unquarantine"):
            return replace(self, quarantine=amendment if amendment.change == "quarantine" else None)
        return replace(self, deleted=amendment.change == "delete")

    def apply_to(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """`metadata` of the record with the changes."""
        changed = {**metadata, **dict(self.metadata)}
        return {key: value for key, value in changed.items() if not (value is None and key in dict(self.metadata))}


def quarantined(uid: str, amendment: Amendment, url: str) -> str:
    """What a reader of a quarantined episode is told."""
    when = datetime.fromtimestamp(amendment.time_ns / 1e9, UTC).isoformat(" ", "seconds").removesuffix("+00:00")
    return (
        f"episode {uid}: quarantined at {when} UTC because of damage: {amendment.value}; bring its files back from a "
        f'copy, then run salus verify --repair; or leave such episodes out with salus.open(…, on_corrupt="skip"); {url}'
    )


def read_amendments(storage: Storage, first: int) -> list[Amendment]:
    """All amendments from number `first` on.

    Raises:
        CorruptDataError: One does not hold. An older state is never fallen back to.
    """
    found: list[Amendment] = []
    while True:
        key = amendment_key(first + len(found))
        body = storage.get(key)
        if body is None:
            return found
        document = documents.unseal(body, key=key)
        if document.get("number") != first + len(found):
            raise CorruptDataError(f"amendment: it is number {document.get('number')}, exchanged or copied; {key}")
        found.append(Amendment.from_json(document, key=key))


def append_amendment(storage: Storage, amendment: Amendment, *, next_number: int) -> None:
    """Append at the next free number, after whatever others appended meanwhile.

    Raises:
        RecordingError: The storage refused.
    """
    content = replace(amendment, time_ns=time.time_ns()).to_json()
    while True:
        try:
            storage.put_new(amendment_key(next_number), documents.seal({"number": next_number, **content}))
        except AlreadyExistsError:
            next_number += 1
        else:
            return
