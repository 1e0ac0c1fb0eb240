"""What `salus.verify` found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from ..errors import CorruptDataError, SalusError, StorageError
from ..layout import schema_key
from ..storage import LocalStorage, Storage

Severity = Literal["damage", "derived", "leftover"]
Kind = Literal[
    "schema",
    "record",
    "amendment",
    "tag",
    "shard",
    "digest",
    "checkpoint",
    "index",
    "metadata",
    "feature",
    "claim",
    "unfinished",
    "journal",
    "temporary",
    "orphan",
    "odd file",
]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was committed, or that does not belong there.

    Attributes:
        kind: What kind of object it is.
        severity: `"damage"`: committed data is not what it was. `"derived"`: only what is built from it, for plain Zarr
            readers or for speed, is wrong; nothing is lost. `"leftover"`: no data depends on it.
        key: Where it is, below the root of the dataset.
        failed: What is wrong.
        got: What is there, where that says something.
        expected: What should be there.
        remedy: What to do.
        uid: The episode, where it belongs to one.
        slot: Its slot.
        repaired: `repair` mended it in this run.
    """

    kind: Kind
    severity: Severity
    key: str
    failed: str
    got: str = ""
    expected: str = ""
    remedy: str = ""
    uid: str = ""
    slot: int | None = None
    repaired: bool = False

    def __str__(self) -> str:
        got = f"got {self.got}, expected {self.expected}" if self.got and self.expected else self.got or self.expected
        return "; ".join(part for part in (f"{self.kind}: {self.failed}", got, self.remedy, self.key) if part)


@dataclass(frozen=True)
class VerifyReport:
    """What `salus.verify` found.

    Attributes:
        url: The dataset.
        findings: All of them; none where everything is as it was committed.
        root_digest: `"sha256:<hex>"` over schema revisions, records and amendments: to be kept elsewhere, and given as
            `expect` later.
        num_episodes: Episodes whose shards were read.
        num_shards: Shards that were read.
        bytes_read: Bytes of shards that were read.
        num_recording: Episodes that are being recorded, or brought back, at this moment. They are no findings.
    """

    url: str
    findings: tuple[Finding, ...] = ()
    root_digest: str = ""
    num_episodes: int = 0
    num_shards: int = 0
    bytes_read: int = 0
    num_recording: int = 0

    def of(self, severity: Severity) -> list[Finding]:
        """The findings of a severity that were not repaired."""
        return [finding for finding in self.findings if finding.severity == severity and not finding.repaired]

    @property
    def is_damaged(self) -> bool:
        """Whether committed data is not what it was."""
        return bool(self.of("damage"))

    @property
    def is_whole(self) -> bool:
        """Whether there is nothing that was not repaired."""
        return all(finding.repaired for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "url": self.url,
            "is_whole": self.is_whole,
            "root_digest": self.root_digest,
            "num_episodes": self.num_episodes,
            "num_shards": self.num_shards,
            "bytes_read": self.bytes_read,
            "num_recording": self.num_recording,
            **{severity: len(self.of(severity)) for severity in get_args(Severity)},
            "findings": [asdict(finding) for finding in self.findings],
        }


Findings = Iterator[Finding]

RESTORE = "bring the file back from a copy of the dataset"


def damage(kind: Kind, key: str, error: SalusError | str, *, uid: str = "", slot: int | None = None) -> Finding:
    """Committed data is not what it was: `error` says how."""
    remedy = RESTORE if isinstance(error, (CorruptDataError, str)) else "make it readable, then verify again"
    return Finding(kind, "damage", key, said(error, key), remedy=remedy, uid=uid, slot=slot)


def check_reach(storage: Storage, error: SalusError) -> None:
    """Raise `error` where a bucket cannot be asked at all: that says nothing of the data.

    A disk, or one object, that cannot be read is damage.
    """
    if isinstance(error, StorageError) and not isinstance(storage, LocalStorage):
        storage.get(schema_key(0))


def said(error: SalusError | str, key: str) -> str:
    """The message of an error, without the key, which stands apart."""
    return str(error).removesuffix(f"; {key}")
