"""What `verify` says to people."""

from __future__ import annotations

from collections.abc import Sequence

from ..verification import Finding, Kind, Severity, VerifyReport
from .terminal import console, plain, size

SHOWN = 10
"""Findings of one kind that are shown; `--json` has all."""

_TITLES: dict[Severity, tuple[str, str]] = {
    "damage": ("damage: committed data is not what it was", "bold red"),
    "derived": ("derived: nothing is lost; it is built from the log again", "yellow"),
    "leftover": ("leftover: no data depends on it", "yellow"),
}


def print_verification(report: VerifyReport) -> None:
    """The findings by severity and kind, then the sums."""
    for severity, (title, style) in _TITLES.items():
        found = [finding for finding in report.findings if finding.severity == severity]
        if found:
            _print(title, style)
        kinds: dict[Kind, list[Finding]] = {}
        for finding in found:
            kinds.setdefault(finding.kind, []).append(finding)
        for kind, some in kinds.items():
            _print_kind(kind, some)
    repaired = sum(finding.repaired for finding in report.findings)
    done = f"; repaired: {repaired}" if repaired else ""
    recording = f", {report.num_recording} more being recorded" if report.num_recording else ""
    _print(
        f"{report.num_episodes} episodes, {report.num_shards} shards, {size(report.bytes_read)} read{recording}: "
        f"damage: {len(report.of('damage'))}; derived: {len(report.of('derived'))}; "
        f"leftover: {len(report.of('leftover'))}{done}",
        "green" if report.is_whole else "bold",
    )
    _print(f"root digest {report.root_digest}")


def _print_kind(kind: Kind, findings: Sequence[Finding]) -> None:
    many = len({finding.slot for finding in findings})
    _print(f"  {kind}: {len(findings)}" + (f" in {many} slots" if many > 1 else ""))
    for finding in findings[:SHOWN]:
        got = f": got {finding.got}, expected {finding.expected}" if finding.got and finding.expected else ""
        _print(f"    {finding.key}{' (repaired)' if finding.repaired else ''}")
        _print(f"      {finding.failed}{got}")
        if finding.uid:
            _print(f"      episode {finding.uid}")
    if len(findings) > SHOWN:
        _print(f"    … {len(findings) - SHOWN} more; --json lists all")
    for remedy in dict.fromkeys(finding.remedy for finding in findings if finding.remedy and not finding.repaired):
        _print(f"    → {remedy}")


def _print(line: str, style: str = "") -> None:
    console.print(plain(line), style=style, markup=False, highlight=False, soft_wrap=True)
