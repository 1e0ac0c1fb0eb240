"""The episode table of a snapshot: rows, kept and stored as columns (docs/spec.md, section 3.5)."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from numcodecs import zstd

from .. import documents
from ..codecs import declared_size, decompress
from ..errors import CorruptDataError
from ..labels import Outcome
from ..layout import ArraySpec, record_key
from ..schema import STEP
from .amendments import Overlay
from .records import Record

MAX_OPEN_SLOTS = 10**6
KEPT_ENTRIES = 2**14
MAX_TABLE_BYTES = 4 * documents.MAX_BYTES
_FREE_BYTES, _MAX_RATIO = 2**25, 64  # a table takes at most so much memory, and so many times what is stored of it

_STATUSES = ("committed", "salvaged", "aborted", "corrupt")
_RESULTS = ("unknown", "success", "failure")
_NONE = -1

# A row in memory. Stored, each field but the last is a column of its own.
_ROW = np.dtype(
    [
        ("slot", "<i8"),
        ("uid", "V16"),
        ("digest", "V32"),
        ("started_ns", "<i8"),
        ("ended_ns", "<i8"),
        ("num_steps", "<i4"),
        ("failure_step", "<i4"),
        ("failure_kind", "<i4"),
        ("task", "<i4"),
        ("schema_revision", "<i4"),
        ("num_shards", "<i4"),
        ("status", "u1"),
        ("result", "u1"),
        ("num_clocks", "<i4"),
        ("first_shard", "<i8"),
        ("first_clock", "<i8"),
    ]
)
_CLOCK = np.dtype([("name", "<i4"), ("length", "<i4")])
_CLOCKS = ("num_clocks", "clock_name", "clock_length")  # only in tables of datasets that have clocks
_COLUMNS = tuple(name for name in _ROW.names or () if name not in ("first_shard", "first_clock", "num_clocks"))
_LEAST = {"failure_step": _NONE, "failure_kind": _NONE, "task": _NONE}
_SIZES = "shard_size"
_UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Entry(NamedTuple):
    """One row of the episode table.

    Attributes:
        uid: Immutable name of the episode.
        slot: Row on axis 0 of every array.
        status: `"committed"`, `"salvaged"`, or `"corrupt"` where the record does not hold, or the episode is
            quarantined (`"aborted"` rows are not in the table).
        num_steps: Length; 0 when corrupt.
        result, failure_kind, failure_step: The outcome in force.
        task: `metadata["task"]` where it is text.
        started_ns, ended_ns: Wall clock of the recording, nanoseconds since 1970.
        schema_revision: The revision that it was recorded under.
        shard_sizes: Bytes of each of its shards, ordered by (array name, segment), of the arrays recorded under
            `schema_revision`; an array has as many segments as its clock's length takes.
        digest: Digest of the record.
        clock_lengths: (clock, length) for each clock but `step`, ordered by name.
    """

    uid: str
    slot: int
    status: str
    num_steps: int
    result: str
    failure_kind: str | None
    failure_step: int | None
    task: str | None
    started_ns: int
    ended_ns: int
    schema_revision: int
    shard_sizes: tuple[int, ...]
    digest: str
    clock_lengths: tuple[tuple[str, int], ...] = ()

    def length(self, clock: str) -> int:
        """Steps on a clock; 0 on one that was not there when it was recorded."""
        return self.num_steps if clock == STEP else dict(self.clock_lengths).get(clock, 0)

    @property
    def outcome(self) -> Outcome:
        """The outcome in force."""
        return Outcome(self.result, self.failure_kind, self.failure_step)  # type: ignore[arg-type]  # checked when read

    @property
    def stored_bytes(self) -> int:
        """Bytes of its shards."""
        return sum(self.shard_sizes)

    @classmethod
    def of(cls, record: Record, specs: Sequence[ArraySpec]) -> Entry:
        """The row of a record.

        Args:
            record: The record.
            specs: `recorded_arrays` of the schema revision that it names.

        Raises:
            CorruptDataError: Its shards are not those of such an episode.
        """
        task = record.metadata.get("task")
        return cls(
            record.uid,
            record.slot,
            record.status,
            record.num_steps,
            record.outcome.result,
            record.outcome.kind,
            record.outcome.step,
            task if isinstance(task, str) else None,
            record.started_ns,
            record.ended_ns,
            record.schema_revision,
            _shard_sizes(record, specs) if record.status != "aborted" else (),
            record.digest,
            tuple(sorted(record.clock_lengths.items())) if record.status != "aborted" else (),
        )

    @classmethod
    def corrupt(cls, slot: int, uid: str = "") -> Entry:
        """The row of a slot whose record does not hold, or of an episode `uid` that is quarantined."""
        return cls(uid or f"corrupt-slot-{slot}", slot, "corrupt", 0, "unknown", None, None, None, 0, 0, 0, (), "")

    def amended(self, overlay: Overlay) -> Entry:
        """The row with the amendments in force."""
        if overlay.quarantine is not None:
            return Entry.corrupt(self.slot, self.uid)
        changed = self
        if overlay.outcome is not None:
            outcome = overlay.outcome
            changed = changed._replace(result=outcome.result, failure_kind=outcome.kind, failure_step=outcome.step)
        for key, value in overlay.metadata:
            if key == "task":
                changed = changed._replace(task=value if isinstance(value, str) else None)
        return changed


def _shard_sizes(record: Record, specs: Sequence[ArraySpec]) -> tuple[int, ...]:
    lengths = {STEP: record.num_steps, **record.clock_lengths}
    clocks = {STEP, *(spec.clock for spec in specs)}
    if lengths.keys() != clocks:
        raise CorruptDataError(
            f"record: lengths of {', '.join(sorted(lengths))}, expected {', '.join(sorted(clocks))}; "
            f"{record_key(record.slot)}"
        )
    wanted = sum(spec.segments(lengths[spec.clock]) for spec in specs)
    sizes = {shard.key: shard.size for shard in record.shards}
    if len(record.shards) == wanted:  # before so many keys are made
        keys = [spec.shard_key(record.slot, n) for spec in specs for n in range(spec.segments(lengths[spec.clock]))]
        if sizes.keys() == set(keys):
            return tuple(sizes[key] for key in keys)
    raise CorruptDataError(
        f"record: {len(record.shards)} shards, which are not the {wanted} of {record.num_steps} steps of "
        f"{', '.join(spec.name for spec in specs)}; {record_key(record.slot)}"
    )


class Entries(Sequence[Entry]):
    """Rows as columns: about 200 bytes each, made into an `Entry` when asked for. Nothing changes it.

    Args:
        rows: Structured array (n,); `first_shard` and `num_shards` say which part of `sizes` is theirs.
        sizes: int64, bytes of shards.
        texts: What `failure_kind`, `task` and the names of clocks number.
        clocks: Structured array, names and lengths of clocks; `first_clock` and `num_clocks` say which are a row's.
    """

    def __init__(
        self, rows: np.ndarray, sizes: np.ndarray, texts: tuple[str, ...], clocks: np.ndarray | None = None
    ) -> None:
        self._rows = rows
        self._sizes = sizes
        self._texts = texts
        self._clocks = np.empty(0, _CLOCK) if clocks is None else clocks
        self._made: dict[int, Entry] = {}  # a batch asks for the same rows again and again

    @classmethod
    def of(cls, entries: Iterable[Entry] = ()) -> Entries:
        """The rows of these entries, in the order of their slots."""
        return cls(np.empty(0, _ROW), np.empty(0, "<i8"), ()).merged(entries)

    @classmethod
    def joined(cls, tables: Iterable[Entries]) -> Entries:
        """The rows of several tables, one after another."""
        texts: dict[str, int] = {}
        rows, sizes, num_sizes = [np.empty(0, _ROW)], [np.empty(0, "<i8")], 0
        clocks, num_clocks = [np.empty(0, _CLOCK)], 0
        for table in tables:
            part = table._compact()
            codes = np.array([*(texts.setdefault(text, len(texts)) for text in part._texts), _NONE], "<i4")
            for name in ("failure_kind", "task"):
                part._rows[name] = codes[part._rows[name]]  # _NONE is the last of them
            part._clocks["name"] = codes[part._clocks["name"]]
            part._rows["first_shard"] += num_sizes
            part._rows["first_clock"] += num_clocks
            num_sizes, num_clocks = num_sizes + len(part._sizes), num_clocks + len(part._clocks)
            rows.append(part._rows)
            sizes.append(part._sizes)
            clocks.append(part._clocks)
        return cls(np.concatenate(rows), np.concatenate(sizes), tuple(texts), np.concatenate(clocks))

    # --- as a sequence -------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, key: int) -> Entry: ...
    @overload
    def __getitem__(self, key: slice) -> Entries: ...
    def __getitem__(self, key: int | slice) -> Entry | Entries:
        """A row, or some of them; raises IndexError."""
        if isinstance(key, slice):
            return Entries(self._rows[key], self._sizes, self._texts, self._clocks)  # on the same memory
        entry = self._made.get(key)
        if entry is None:
            if len(self._made) >= KEPT_ENTRIES:
                self._made.clear()
            entry = self._made[key] = self._entry(self._rows[key].item())
        return entry

    def __iter__(self) -> Iterator[Entry]:
        for start in range(0, len(self), 4096):  # in pieces: as Python objects, rows are ten times as large
            yield from map(self._entry, self._rows[start : start + 4096].tolist())

    def _entry(self, row: tuple[Any, ...]) -> Entry:
        slot, uid, digest, started, ended, steps, failed, kind, task, revision, shards, status, result = row[:13]
        num_clocks, first, first_clock = row[13:]
        texts = self._texts
        if _STATUSES[status] == "corrupt":
            return Entry.corrupt(slot, _uid_text(uid.hex()) if any(uid) else "")
        return Entry._make(
            (
                _uid_text(uid.hex()),
                slot,
                _STATUSES[status],
                steps,
                _RESULTS[result],
                None if kind == _NONE else texts[kind],
                None if failed == _NONE else failed,
                None if task == _NONE else texts[task],
                started,
                ended,
                revision,
                tuple(self._sizes[first : first + shards].tolist()),
                "sha256:" + digest.hex(),
                tuple((texts[n], k) for n, k in self._clocks[first_clock : first_clock + num_clocks].tolist()),
            )
        )

    def take(self, rows: np.ndarray | Sequence[int]) -> Entries:
        """Some rows: their positions, int (n,), or a mask, bool (len,)."""
        chosen = np.asarray(rows)
        return Entries(
            self._rows[chosen if chosen.dtype == bool else chosen.astype(np.int64)],
            self._sizes,
            self._texts,
            self._clocks,
        )

    # --- columns -------------------------------------------------------------------------------------------------

    def numbers(self, name: str) -> np.ndarray:
        """`slot`, `num_steps`, `schema_revision` or `stored_bytes` of all rows, int64 (n,)."""
        if name == "stored_bytes":
            ends = np.concatenate([[0], np.cumsum(self._sizes)])
            first = self._rows["first_shard"]
            values: np.ndarray = ends[first + self._rows["num_shards"]] - ends[first]
            return values
        return self._rows[name].astype(np.int64)

    def lengths(self, clock: str) -> np.ndarray:
        """Steps on a clock of all rows, int64 (n,); 0 where it was not there."""
        if clock == STEP:
            return self.numbers("num_steps")
        found = np.zeros(len(self), np.int64)
        counts = self._rows["num_clocks"].astype(np.int64)
        if clock in self._texts and counts.any():
            rows = np.repeat(np.arange(len(self)), counts)
            theirs = self._clocks[_ragged(self._rows["first_clock"], counts)]
            mine = theirs["name"] == self._texts.index(clock)
            found[rows[mine]] = theirs["length"][mine]
        return found

    def column(self, name: str) -> list[Any]:
        """An attribute of all entries."""
        if name in ("slot", "num_steps", "schema_revision", "stored_bytes", "started_ns", "ended_ns"):
            values: list[Any] = self.numbers(name).tolist()
        elif name == "uid" and not self.has("status", "corrupt").any():
            text = self._rows["uid"].tobytes().hex()
            values = [_uid_text(text[start : start + 32]) for start in range(0, len(text), 32)]
        else:
            values = [getattr(entry, name) for entry in self]
        return values

    def has(self, name: str, value: str) -> np.ndarray:
        """In which rows `status`, `result`, `failure_kind` or `task` is `value`, bool (n,)."""
        known = {"status": _STATUSES, "result": _RESULTS}.get(name, self._texts)
        if value not in known:
            return np.zeros(len(self), bool)
        mask: np.ndarray = self._rows[name] == known.index(value)
        return mask

    def has_uid(self, uids: Collection[str]) -> np.ndarray:
        """Which rows have one of these uids, bool (n,)."""
        wanted = [_uid_bytes(uid) for uid in uids if isinstance(uid, str) and _UID.fullmatch(uid)]
        mask = np.zeros(len(self), bool)
        if wanted:
            mask = np.isin(self._rows["uid"].view("S16"), np.array(wanted, "V16").view("S16"))
        for row in np.flatnonzero(self.has("status", "corrupt")).tolist():
            mask[row] = self[row].uid in uids
        return mask

    # --- by slot: rows in the order of their slots ---------------------------------------------------------------

    def at(self, slot: int) -> Entry | None:
        """The entry of a slot."""
        row = int(np.searchsorted(self._rows["slot"], slot))
        return self[row] if row < len(self) and self._rows["slot"][row] == slot else None

    def unlike(self, other: Entries) -> np.ndarray:
        """Which rows are missing in `other`, or are not the same there, bool (n,)."""
        both = Entries.joined([self, other])
        mine, theirs = both._rows[: len(self)], both._rows[len(self) :]
        if not len(theirs):
            return np.ones(len(self), bool)
        theirs = theirs[np.searchsorted(theirs["slot"][:-1], mine["slot"])]
        unlike: np.ndarray = (_own_bytes(mine) != _own_bytes(theirs)).any(axis=1)
        for values, first, count in (
            (both._sizes, "first_shard", "num_shards"),
            (both._clocks, "first_clock", "num_clocks"),
        ):
            rows = np.flatnonzero(~unlike)
            counts = mine[count][rows].astype(np.int64)
            places = [_ragged(side[first][rows], counts) for side in (mine, theirs)]
            unlike[np.repeat(rows, counts)[values[places[0]] != values[places[1]]]] = True
        return unlike

    def merged(self, entries: Iterable[Entry]) -> Entries:
        """With these entries, each in place of the one of its slot."""
        texts = {text: code for code, text in enumerate(self._texts)}
        rows: list[tuple[Any, ...]] = []
        sizes: list[int] = []
        clocks: list[tuple[int, int]] = []
        for entry in entries:
            codes = [
                _NONE if text is None else texts.setdefault(text, len(texts))
                for text in (entry.failure_kind, entry.task)
            ]
            sound = entry.status != "corrupt"
            rows.append(
                (
                    entry.slot,
                    _uid_bytes(entry.uid) if _UID.fullmatch(entry.uid) else bytes(16),
                    bytes.fromhex(entry.digest.removeprefix("sha256:")) if sound else bytes(32),
                    entry.started_ns,
                    entry.ended_ns,
                    entry.num_steps,
                    _NONE if entry.failure_step is None else entry.failure_step,
                    *codes,
                    entry.schema_revision,
                    len(entry.shard_sizes),
                    _STATUSES.index(entry.status),
                    _RESULTS.index(entry.result),
                    len(entry.clock_lengths),
                    len(self._sizes) + len(sizes),
                    len(self._clocks) + len(clocks),
                )
            )
            sizes += entry.shard_sizes
            clocks += [(texts.setdefault(name, len(texts)), length) for name, length in entry.clock_lengths]
        if not rows:
            return self
        new = np.array(rows, _ROW)
        both = np.concatenate([self._rows[~np.isin(self._rows["slot"], new["slot"])], new])
        both = both[np.argsort(both["slot"], kind="stable")]
        return Entries(
            both,
            np.concatenate([self._sizes, np.array(sizes, "<i8")]),
            tuple(texts),
            np.concatenate([self._clocks, np.array(clocks, _CLOCK)]),
        )

    def amended(self, overlays: Mapping[str, Overlay]) -> Entries:
        """With the amendments in force, without deleted rows."""
        touched = self.has_uid(overlays)
        changed, deleted = [], np.zeros(len(self), bool)
        for row in np.flatnonzero(touched).tolist():
            entry = self[row]
            if overlays[entry.uid].deleted:
                deleted[row] = True
            else:
                changed.append(entry.amended(overlays[entry.uid]))
        kept = self.take(~deleted) if deleted.any() else self
        return kept.merged(changed)

    # --- stored --------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """The table as it stands in checkpoints and tags."""
        compact = self._compact()
        columns = {name: _packed(compact._rows[name]) for name in _COLUMNS}
        columns[_SIZES] = _packed(compact._sizes)
        if len(compact._clocks):
            parts = (compact._rows["num_clocks"], compact._clocks["name"], compact._clocks["length"])
            columns |= {name: _packed(np.ascontiguousarray(part)) for name, part in zip(_CLOCKS, parts, strict=True)}
        return {"num_rows": len(self), "texts": list(compact._texts), "columns": columns}

    @classmethod
    def from_json(cls, value: dict[str, Any], *, key: str) -> Entries:
        """Raises CorruptDataError, naming `key`, where it is no table."""
        try:
            num_rows, texts = value["num_rows"], tuple(value["texts"])
            if type(num_rows) is not int or not 0 <= num_rows <= MAX_TABLE_BYTES // _ROW.itemsize:
                raise ValueError(f"{num_rows} rows")
            # Slots that rise take room in the file, too: so they are looked at before the rest takes memory.
            slots = _unpacked(value["columns"]["slot"], _ROW["slot"], num_rows)
            _check_slots(slots)
            stored = sum(len(value["columns"][name]) for name in _COLUMNS)
            if num_rows * _ROW.itemsize > _FREE_BYTES + _MAX_RATIO * stored:
                raise ValueError(f"{num_rows} rows in {stored} bytes")
            rows = np.zeros(num_rows, _ROW)
            for name in _COLUMNS:
                column = value["columns"][name]
                rows[name] = slots if name == "slot" else _unpacked(column, _ROW[name], num_rows)
            ends = np.cumsum(rows["num_shards"], dtype="<i8")
            num_sizes = int(ends[-1]) if num_rows else 0
            sizes = _unpacked(value["columns"][_SIZES], np.dtype("<i8"), num_sizes)
            rows["first_shard"] = ends - rows["num_shards"]
            clocks = _clocks_from(value["columns"], rows)
            problems = list(_problems(rows, sizes, texts, clocks))
            if problems:
                raise ValueError("; ".join(problems))
        except (KeyError, TypeError, ValueError, OverflowError, CorruptDataError) as error:
            raise CorruptDataError(f"episode table: not understood: {error!r}; {key}") from error
        return cls(rows, sizes, texts, clocks)

    def _compact(self) -> Entries:
        """The same rows, with only the sizes, clocks and texts that are theirs."""
        rows = self._rows.copy()
        counts, num_clocks = rows["num_shards"].astype(np.int64), rows["num_clocks"].astype(np.int64)
        sizes = self._sizes[_ragged(rows["first_shard"], counts)]
        clocks = self._clocks[_ragged(rows["first_clock"], num_clocks)]
        rows["first_shard"] = np.cumsum(counts) - counts
        rows["first_clock"] = np.cumsum(num_clocks) - num_clocks
        codes = np.concatenate([rows["failure_kind"], rows["task"], clocks["name"]])
        used, places = np.unique(codes, return_inverse=True)
        missing = int(np.count_nonzero(used == _NONE))  # it sorts before the others, and stays what it is
        ends = np.cumsum([len(rows), len(rows)])
        rows["failure_kind"], rows["task"], clocks["name"] = np.split(places.reshape(-1) - missing, ends)
        return Entries(rows, sizes, tuple(self._texts[code] for code in used[missing:].tolist()), clocks)

    def __getstate__(self) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], np.ndarray]:
        compact = self._compact()
        return compact._rows, compact._sizes, compact._texts, compact._clocks

    def __setstate__(self, state: tuple[np.ndarray, np.ndarray, tuple[str, ...], np.ndarray]) -> None:
        self.__init__(*state)  # type: ignore[misc]


def _own_bytes(rows: np.ndarray) -> np.ndarray:
    """What rows say themselves, not where their sizes and clocks are, uint8 (n, bytes)."""
    size = _ROW.fields["first_shard"][1] if _ROW.fields else 0
    values: np.ndarray = rows.view(np.uint8).reshape(len(rows), _ROW.itemsize)[:, :size]
    return values


def _ragged(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Positions `first`, `first + 1` …, `counts` of them, for each row; one row after another."""
    places: np.ndarray = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    return places


def _clocks_from(columns: Mapping[str, Any], rows: np.ndarray) -> np.ndarray:
    """The clocks of a stored table, and in `rows` whose they are. Tables of datasets without clocks have no columns."""
    if not any(name in columns for name in _CLOCKS):
        return np.empty(0, _CLOCK)
    rows["num_clocks"] = _unpacked(columns[_CLOCKS[0]], _ROW["num_clocks"], len(rows))
    if (rows["num_clocks"] < 0).any():
        raise ValueError("num_clocks below 0")
    ends = np.cumsum(rows["num_clocks"], dtype="<i8")
    rows["first_clock"] = ends - rows["num_clocks"]
    count = int(ends[-1]) if len(rows) else 0
    names, lengths = (_unpacked(columns[column], np.dtype("<i4"), count) for column in _CLOCKS[1:])
    clocks = np.empty(count, _CLOCK)
    clocks["name"], clocks["length"] = names, lengths
    return clocks


def _check_slots(slots: np.ndarray) -> None:
    if (np.diff(slots) <= 0).any():
        raise ValueError("slots out of order")
    if len(slots) and slots[-1] >= len(slots) + MAX_OPEN_SLOTS:
        raise ValueError(f"slot {slots[-1]} among {len(slots)}")


def _problems(rows: np.ndarray, sizes: np.ndarray, texts: tuple[str, ...], clocks: np.ndarray) -> Iterator[str]:
    """What no writer would have written; the digest finds accidents before this does."""
    numbers = [name for name in _COLUMNS if _ROW[name].kind == "i"]
    yield from (f"{name} below {_LEAST.get(name, 0)}" for name in numbers if (rows[name] < _LEAST.get(name, 0)).any())
    if (sizes < 0).any():
        yield "a shard of negative size"
    if (clocks["length"] < 0).any() or (clocks["name"] < 0).any() or (clocks["name"] >= len(texts)).any():
        yield "a clock that cannot be"
    if (rows["status"] >= len(_STATUSES)).any() or (rows["result"] >= len(_RESULTS)).any():
        yield "an unknown status or result"
    if (np.maximum(rows["failure_kind"], rows["task"]) >= len(texts)).any():
        yield "a text that is not there"
    if not all(isinstance(text, str) for text in texts) or len(set(texts)) != len(texts):
        yield "texts that are none, or the same"
    failed = (rows["failure_kind"] != _NONE) | (rows["failure_step"] != _NONE)
    if (failed & (rows["result"] != _RESULTS.index("failure"))).any() or (
        rows["failure_step"] >= np.maximum(rows["num_steps"], 1)
    ).any():
        yield "an outcome that cannot be"


def _packed(values: np.ndarray) -> str:
    body = values.tobytes()
    return base64.b64encode(bytes(zstd.compress(body, 1))).decode() if body else ""


def _unpacked(text: str, dtype: np.dtype[Any], count: int) -> np.ndarray:
    if count == 0 and text == "":
        return np.empty(0, dtype)
    packed = base64.b64decode(text, validate=True)
    declared = declared_size(packed)
    most = min(MAX_TABLE_BYTES, _FREE_BYTES + _MAX_RATIO * len(packed))
    if declared != count * dtype.itemsize or declared > most:  # before anything is allocated
        raise ValueError(f"a column of {declared} bytes in {len(packed)}, expected {count} × {dtype.itemsize}")
    values: np.ndarray = decompress(packed, declared).view(dtype)
    return values


def _uid_text(digits: str) -> str:
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _uid_bytes(uid: str) -> bytes:
    return bytes.fromhex(uid.replace("-", ""))
