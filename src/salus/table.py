"""The episode table: one row per episode of a view, read from the log alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from .errors import MissingExtraError, NotFoundError, did_you_mean
from .log.entries import Entries, Entry

if TYPE_CHECKING:
    import pandas

COLUMNS = (
    "uid",
    "num_steps",
    "outcome",
    "failure_kind",
    "failure_step",
    "task",
    "status",
    "started_ns",
    "ended_ns",
    "slot",
    "schema_revision",
)
_SHOWN = 10


class EpisodeTable(Sequence[Entry]):
    """Episodes as rows. `table["num_steps"]` is a column (list), `table[3]` a row, `table.to_pandas()` a data frame.

    Columns: uid, num_steps, outcome (`"success"`, `"failure"`, `"unknown"`), failure_kind, failure_step, task, status,
    started_ns, ended_ns (wall clock, nanoseconds since 1970), slot, schema_revision.
    """

    def __init__(self, entries: Entries) -> None:
        self._entries = entries

    @classmethod
    def joined(cls, tables: Iterable[EpisodeTable]) -> EpisodeTable:
        """The rows of several tables, one after another."""
        return cls(Entries.joined(table._entries for table in tables))

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    @overload
    def __getitem__(self, key: int) -> Entry: ...
    @overload
    def __getitem__(self, key: slice) -> EpisodeTable: ...
    @overload
    def __getitem__(self, key: str) -> list[Any]: ...
    def __getitem__(self, key: int | slice | str) -> Entry | EpisodeTable | list[Any]:
        """A row, a table of some rows, or a column.

        Raises:
            NotFoundError: No such column.
            IndexError: No such row.
        """
        if isinstance(key, slice):
            return EpisodeTable(self._entries[key])
        if not isinstance(key, str):
            return self._entries[key]
        if key not in COLUMNS:
            raise NotFoundError(f"episode table: no column {key!r}{did_you_mean(key, COLUMNS)}")
        name = "result" if key == "outcome" else key
        return self._entries.column(name)

    def to_dict(self) -> dict[str, list[Any]]:
        """All columns."""
        return {name: self[name] for name in COLUMNS}

    def to_pandas(self) -> pandas.DataFrame:
        """A `pandas.DataFrame` of all columns.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingExtraError.of("to_pandas", extra="pandas") from error
        return pandas.DataFrame(self.to_dict())

    def __repr__(self) -> str:
        shown = self._entries[:_SHOWN]
        lines = [f"<salus.EpisodeTable: {len(self)} episodes>"]
        for row, entry in enumerate(shown):
            kind = f" {entry.failure_kind}" if entry.failure_kind else ""
            lines.append(f"{row:6d}  {entry.uid}  {entry.num_steps:6d} steps  {entry.result}{kind}  {entry.task or ''}")
        if len(self) > len(shown):
            lines.append(f"     … {len(self) - len(shown)} more")
        return "\n".join(lines)
