"""What `cp`, `push` and `pull` do and say to people."""

from __future__ import annotations

from ..copying import CopyReport
from .terminal import console, plain, size

SHOWN = 10
"""Problems that are shown; `--json` has all."""


def split_tag(source: str) -> tuple[str, str | None]:
    """`data.zarr@v1` as path and tag. An "@" before the last "/" belongs to the path."""
    folder, slash, name = source.rstrip("/").rpartition("/")
    path, at, tag = name.rpartition("@")
    return (f"{folder}{slash}{path}", tag) if at and path and tag else (source, None)


def print_copy(report: CopyReport) -> None:
    """The problems, then the sums."""
    for problem in report.problems[:SHOWN]:
        _print(f"not copied: slot {problem.slot}, episode {problem.uid or '?'}: {problem.failed}", "bold red")
    if len(report.problems) > SHOWN:
        _print(f"… {len(report.problems) - SHOWN} more; --json lists all")
    for tag in report.tags_left_out:
        _print(f"not copied: tag {tag}, which holds such an episode", "bold red")
    verb = "to copy" if report.dry_run else "copied"
    linked = f", {report.num_linked} of them hard links" if report.num_linked else ""
    _print(
        f"{report.num_copied} of {report.num_episodes} slots {verb} ({report.num_shards} shards{linked}, "
        f"{size(report.bytes_copied)}), {report.num_present} were there, {len(report.problems)} damaged",
        "bold" if report.problems else "green",
    )


def _print(line: str, style: str = "") -> None:
    console.print(plain(line), style=style, markup=False, highlight=False, soft_wrap=True)
