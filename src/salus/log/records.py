"""Records: the small JSON object whose creation decides a slot (docs/spec.md, section 3.2)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from .. import documents
from ..errors import CorruptDataError
from ..labels import Outcome
from ..layout import record_key
from ..schema import STEP
from ..shards import ShardInfo

_UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

Status = Literal["committed", "salvaged", "aborted"]


def is_uid(value: Any) -> bool:
    """Whether it has the form of an episode's uid."""
    return isinstance(value, str) and _UID.fullmatch(value) is not None


@dataclass(frozen=True)
class Record:
    """What is known of a decided slot.

    Attributes:
        slot: Row on axis 0 of every array.
        uid: UUIDv7 text.
        status: `"committed"`, `"salvaged"` or `"aborted"`.
        num_steps: Length on the clock `step`; 0 when aborted.
        clock_lengths: Length on each other clock of the revision; 0 where nothing came.
        schema_revision: The revision that it was recorded under.
        shards: One per array and segment.
        outcome: How it ended.
        metadata: JSON values by key, given by the user.
        timestamp_source: Where the stamps come from: `"caller"`, `"monotonic"` (the recorder's clock) or `"rate"`
            (made from the declared rate, for episodes that came as whole arrays without stamps).
        clock_sources: The same of the other clocks on which something came.
        started_ns, ended_ns: Wall clock of the recording, nanoseconds since 1970. For people; nothing depends on them.
        reason: Why it was aborted.
        statistics: Of each feature (`salus.statistics`), as JSON that is checked when it is asked for; None where the
            episode was recorded without.
        dropped_images: Images that were dropped because the queue was full, by feature; only those above 0.
        digest: Digest of the record's bytes; empty until it is written or read.
    """

    slot: int
    uid: str
    status: Status
    num_steps: int = 0
    clock_lengths: dict[str, int] = field(default_factory=dict)
    schema_revision: int = 0
    shards: tuple[ShardInfo, ...] = ()
    outcome: Outcome = field(default_factory=Outcome)
    metadata: dict[str, Any] = field(default_factory=dict)
    timestamp_source: str = "monotonic"
    clock_sources: dict[str, str] = field(default_factory=dict)
    started_ns: int = 0
    ended_ns: int = 0
    reason: str | None = None
    statistics: Any = None
    dropped_images: dict[str, int] = field(default_factory=dict)
    digest: str = ""

    def to_bytes(self) -> bytes:
        """The sealed body."""
        return documents.seal(
            {
                "slot": self.slot,
                "uid": self.uid,
                "status": self.status,
                "lengths": {STEP: self.num_steps, **self.clock_lengths},
                "schema_revision": self.schema_revision,
                "shards": [shard.to_json() for shard in self.shards],
                "outcome": self.outcome.to_json(),
                "metadata": self.metadata,
                "timestamp_source": self.timestamp_source,
                "started_ns": self.started_ns,
                "ended_ns": self.ended_ns,
                "reason": self.reason,
                **({"timestamp_sources": self.clock_sources} if self.clock_sources else {}),
                **({} if self.statistics is None else {"statistics": self.statistics}),
                **({"dropped_images": self.dropped_images} if self.dropped_images else {}),
            }
        )

    @classmethod
    def from_bytes(cls, body: bytes, slot: int) -> Record:
        """Parse the record of `slot`. Members that this version does not know are left alone.

        Raises:
            CorruptDataError: The digest does not hold, or the content is not that of a record of this slot.
        """
        key = record_key(slot)
        document = documents.unseal(body, key=key)
        try:
            for name in ("lengths", "timestamp_sources", "dropped_images"):
                if not isinstance(document.get(name, {}), dict):
                    raise TypeError(f"{name}: {type(document[name]).__name__}")
            lengths = dict(document["lengths"])
            record = cls(
                slot=document["slot"],
                uid=document["uid"],
                status=document["status"],
                num_steps=lengths.pop(STEP),
                clock_lengths=lengths,
                schema_revision=document["schema_revision"],
                shards=tuple(ShardInfo.from_json(shard) for shard in document["shards"]),
                outcome=Outcome.from_json(document["outcome"]),
                metadata=document["metadata"],
                timestamp_source=document["timestamp_source"],
                clock_sources=dict(document.get("timestamp_sources", {})),
                started_ns=document["started_ns"],
                ended_ns=document["ended_ns"],
                reason=document["reason"],
                statistics=document.get("statistics"),
                dropped_images=dict(document.get("dropped_images", {})),
                digest=documents.digest_of(body),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CorruptDataError(f"record: not understood: {error!r}; {key}") from error
        problems = list(record._problems(slot))
        if problems:
            raise CorruptDataError(f"record: {'; '.join(problems)}; {key}")
        return record

    def _problems(self, slot: int) -> Iterator[str]:
        """What no recorder would have written."""
        if type(self.slot) is not int or self.slot != slot:
            yield f"it is of slot {self.slot}, expected slot {slot}"
        if not is_uid(self.uid):
            yield f"uid {self.uid!r}"
        for source in (self.timestamp_source, *self.clock_sources.values()):
            if not isinstance(source, str) or not source:
                yield f"timestamp_source {source!r}"
        if not self.clock_sources.keys() <= self.clock_lengths.keys():
            yield f"stamps of {sorted(self.clock_sources)}, but lengths of {sorted(self.clock_lengths)}"
        for clock, length in self.clock_lengths.items():
            if type(length) is not int or not 0 <= length < 2**31 or (length and self.status == "aborted"):
                yield f"length {length!r} of {clock}"
        numbers = {"revision": self.schema_revision, "start": self.started_ns, "end": self.ended_ns}
        numbers |= {f"dropped images of {name}": count for name, count in self.dropped_images.items()}
        numbers |= {f"size of {shard.key}": shard.size for shard in self.shards}
        yield from (
            f"{name} {value!r}" for name, value in numbers.items() if type(value) is not int or not 0 <= value < 2**63
        )
        if not isinstance(self.metadata, dict):
            yield f"metadata {type(self.metadata).__name__}"
        if type(self.num_steps) is not int or not 0 <= self.num_steps < 2**31:
            yield f"length {self.num_steps!r}"
        elif self.status not in get_args(Status) or (self.num_steps > 0) != (self.status != "aborted"):
            yield f"status {self.status!r} with {self.num_steps} steps"
        elif self.outcome.step is not None and self.outcome.step not in range(self.num_steps):
            yield f"failure at step {self.outcome.step} of {self.num_steps}"
