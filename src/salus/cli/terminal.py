"""What the commands share: escaping, tables, progress bars, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

Item = TypeVar("Item")

console = Console()
errors = Console(stderr=True)


def plain(value: Any) -> str:
    """Text out of a dataset, safe to show: control characters (terminal escapes among them) are spelled out."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(value))


def text(value: Any, style: str = "") -> Text:
    """Text out of a dataset as a cell: neither control characters nor markup in it mean anything."""
    return Text(plain(value), style=style)


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table; columns whose name starts with ">" are right-aligned."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", title_style="bold")
    for column in columns:
        made.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return made


def print_json(document: Any) -> None:
    """The document on stdout; NaN becomes null, as JSON has none."""
    sys.stdout.write(json.dumps(_without_nan(document), indent=2, allow_nan=False, default=str) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and value != value:  # noqa: PLR0124 - NaN is the one value that differs from itself
        return None
    return value


def track(items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
    """The items, with a progress bar on stderr."""
    with progress(title) as show:
        for done, item in enumerate(items, 1):
            show(done, total)
            yield item


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, and what moves it: called with how many are done, and all there are."""
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def size(num_bytes: float) -> str:
    """Bytes for people: 12.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
