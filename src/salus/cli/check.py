"""What `salus check` takes and says."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

from rich.text import Text

from ..errors import InvalidInputError, NotFoundError
from ..health import Group, HealthReport, check
from ..health.findings import Severity
from ..view import DatasetView
from .terminal import console, plain, text

SHOWN = 3
"""Findings of a group that are shown; --json and --html have more."""

_STYLES = {"error": "bold red", "warning": "bold yellow", "info": "bold blue"}
_WORDS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "note"}


def run_check(
    view: DatasetView,
    *,
    skip: list[str],
    changes: list[str],
    files: list[Path],
    split: list[str],
    seed: int,
    threads: int | None,
    on_progress: Callable[[int, int], None],
) -> HealthReport:
    """`salus.health.check` with what the command line says.

    Raises:
        InvalidInputError: A change or a part of a split that cannot be read.
        NotFoundError: A file or a rule that is not there.
    """
    for file in files:
        if not file.is_file():
            raise NotFoundError(f"rules: no such file: {file}")
        runpy.run_path(str(file))
    rules: dict[str, dict[str, float] | bool] = {}
    for change in changes:
        name, threshold, value = _change(change)
        rules[name] = {**(rules[name] if isinstance(rules.get(name), dict) else {}), threshold: value}  # type: ignore[dict-item]
    rules.update(dict.fromkeys(skip, False))
    fractions = dict(map(_part, split))
    parts = dict(zip(fractions, view.split(fractions, seed=seed), strict=True)) if fractions else None
    return check(view, rules=rules, threads=threads, splits=parts, on_progress=on_progress)


def _change(given: str) -> tuple[str, str, float]:
    name, _, value = given.partition("=")
    rule, _, threshold = name.partition(".")
    number = _number(value)
    if not rule or not threshold or number is None:
        raise InvalidInputError(f"--set: got {given!r}, expected RULE.THRESHOLD=NUMBER, such as clock_gap.least_s=0.2")
    return rule, threshold, number


def _part(given: str) -> tuple[str, float]:
    name, _, value = given.partition("=")
    share = _number(value)
    if not name or share is None:
        raise InvalidInputError(f"--split: got {given!r}, expected PART=SHARE, such as train=0.9")
    return name, share


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def print_health(report: HealthReport) -> None:
    """The report for people: a paragraph for each rule and feature, then the sums."""
    console.print(text(report.url, "bold"))
    images = f", {report.num_images} images" if report.num_images else ""
    console.print(f"{report.num_episodes} episodes, {report.num_steps} steps{images}", highlight=False)
    for group in report.groups():
        console.print()
        _print_group(group)
    console.print()
    numbers = {word: report.count(severity) for severity, word in _WORDS.items()}
    counts = [f"{number} {word}{'s' * (number != 1)}" for word, number in numbers.items()]
    console.print(f"{', '.join(counts)}; {len(report.rules)} rules looked", highlight=False)


def _print_group(group: Group) -> None:
    head = Text(_WORDS[group.severity], style=_STYLES[group.severity])
    head.append(f" {plain(group.rule)}", style="bold")
    if group.feature:
        head.append(f" {plain(group.feature)}", style="cyan")
    console.print(head)
    for finding in group.findings[:SHOWN]:
        episode = "" if finding.episode is None else f"episode {finding.episode}: "
        component = f"{finding.component}: " if finding.component else ""
        console.print(text(f"  {episode}{component}{finding.message}"), soft_wrap=True)
    more = len(group.findings) - SHOWN
    if more > 0:
        console.print(text(f"  … {more} more{_in_episodes(group)}", "dim"), soft_wrap=True)
    first = group.findings[0]
    console.print(text(f"  why: {first.reason}", "dim"), soft_wrap=True)
    console.print(text(f"  do:  {first.advice}", "dim"), soft_wrap=True)


def _in_episodes(group: Group) -> str:
    episodes = group.episodes
    if len(episodes) < 2:
        return ""
    return f"; in {len(episodes)} episodes: {', '.join(map(str, episodes[:10]))}{', …' if len(episodes) > 10 else ''}"
