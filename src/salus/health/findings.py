"""What a check found: findings, and the report of all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ..errors import InvalidInputError

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True)
class Plot:
    """A small picture of a finding.

    Attributes:
        kind: `"course"` draws a line through `values`, `"bars"` draws bars.
        values: Up to 320 numbers; None is a gap.
        marks: Parts of the picture that show the defect, (from, to), as places in `values`.
        first, last: What the left and the right end are, in words: `"step 0"`.
        lines: Values at which a level is drawn, such as a threshold.
        title: What is drawn.
    """

    kind: Literal["course", "bars"]
    values: tuple[float | None, ...]
    marks: tuple[tuple[float, float], ...] = ()
    first: str = ""
    last: str = ""
    lines: tuple[float, ...] = ()
    title: str = ""


@dataclass(frozen=True)
class Hit:
    """What a rule yields: where it was met, and what was measured there. `check` makes a `Finding` of it.

    Attributes:
        message: What is wrong, in words, with the number.
        measured: What was measured.
        threshold: What it was compared with.
        feature: Feature or clock; None where it is about none.
        component: Name of a component of the feature.
        steps: (from, to), half-open, where it shows.
        severity: Instead of that of the rule.
        episode: Number of the episode; only rules of a dataset give it, or leave it out.
        advice: Instead of that of the rule.
    """

    message: str
    measured: float | None = None
    threshold: float | None = None
    feature: str | None = None
    component: str | None = None
    steps: tuple[int, int] | None = None
    severity: Severity | None = None
    episode: int | None = None
    advice: str | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        rule: Name of the rule.
        severity: `"error"`: training on it goes wrong. `"warning"`: look at it. `"info"`: good to know.
        message: What is wrong, in words.
        reason: Why the rule is there.
        advice: What to do.
        feature, component: Where, or None.
        episode, uid: Number in the view and uid of the episode; None where it is about the dataset.
        measured, threshold: What was measured, and what it was compared with; None where there is no number.
        steps: (from, to), half-open, where it shows in the episode, on the clock of the feature.
        plot: A picture, of the first findings of each kind.
    """

    rule: str
    severity: Severity
    message: str
    reason: str
    advice: str
    feature: str | None = None
    component: str | None = None
    episode: int | None = None
    uid: str | None = None
    measured: float | None = None
    threshold: float | None = None
    steps: tuple[int, int] | None = None
    plot: Plot | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """All but the plot."""
        document = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "plot"}
        numbers = {name: _finite(document[name]) for name in ("measured", "threshold")}
        return {**document, **numbers, "steps": list(self.steps) if self.steps else None}


@dataclass(frozen=True)
class Group:
    """The findings of one rule about one feature.

    Attributes:
        rule, feature: Which.
        severity: The worst of them.
        findings: All of them, the worst first.
    """

    rule: str
    feature: str | None
    severity: Severity
    findings: tuple[Finding, ...]

    @property
    def episodes(self) -> list[int]:
        """The numbers of the episodes, in order."""
        return sorted({finding.episode for finding in self.findings if finding.episode is not None})

    @property
    def components(self) -> list[str]:
        """The components, as they were found."""
        return list(dict.fromkeys(finding.component for finding in self.findings if finding.component))


@dataclass(frozen=True)
class HealthReport:
    """What `check` found.

    Attributes:
        url: Where the dataset is.
        findings: The worst first, then by episode.
        num_episodes, num_steps: What was looked at.
        num_images: Images that were looked at.
        features: Features that were looked at.
        rules: The rules that were used, and the thresholds of each.
        duration_s: Seconds that it took.
    """

    url: str
    findings: tuple[Finding, ...]
    num_episodes: int
    num_steps: int
    num_images: int
    features: tuple[str, ...]
    rules: dict[str, dict[str, float]]
    duration_s: float

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Findings by rule and severity, of rules that found any: `{"nan": {"error": 3, "warning": 0, "info": 0}}`."""
        found: dict[str, dict[str, int]] = {}
        for finding in self.findings:
            found.setdefault(finding.rule, {"error": 0, "warning": 0, "info": 0})[finding.severity] += 1
        return found

    def count(self, severity: Severity) -> int:
        """Findings of one severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def fails_on(self, severity: str) -> bool:
        """Whether there is a finding as bad as `"error"` or `"warning"`, or worse.

        Raises:
            InvalidInputError: Another word.
        """
        if severity not in ("error", "warning"):
            raise InvalidInputError(f"fail on: got {severity!r}, expected 'error' or 'warning'")
        bad = ("error",) if severity == "error" else ("error", "warning")
        return any(finding.severity in bad for finding in self.findings)

    def groups(self) -> list[Group]:
        """The findings by rule and feature, the worst first."""
        found: dict[tuple[str, str | None], list[Finding]] = {}
        for finding in self.findings:
            found.setdefault((finding.rule, finding.feature), []).append(finding)
        made = [Group(rule, feature, items[0].severity, tuple(items)) for (rule, feature), items in found.items()]
        return sorted(made, key=lambda group: SEVERITIES.index(group.severity))

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "path": self.url,
            "episodes": self.num_episodes,
            "steps": self.num_steps,
            "images": self.num_images,
            "features": list(self.features),
            "duration_s": self.duration_s,
            "rules": {name: dict(thresholds) for name, thresholds in self.rules.items()},
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "infos": self.count("info"),
            "counts": self.counts,
            "findings": [finding.to_json() for finding in self.findings],
        }

    def to_html(self) -> str:
        """The report as one HTML page, which needs nothing else: no script, no file, no network."""
        from .page import page

        return page(self)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __repr__(self) -> str:
        found = ", ".join(f"{self.count(severity)} {severity}" for severity in SEVERITIES)
        return f"<salus.health.HealthReport {self.url}: {self.num_episodes} episodes; {found}>"


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """By severity, then in the order of the rules, then by episode."""
    listed = list(findings)
    rules = {name: place for place, name in enumerate(dict.fromkeys(finding.rule for finding in listed))}

    def key(finding: Finding) -> tuple[int, int, str, int]:
        episode = -1 if finding.episode is None else finding.episode
        return SEVERITIES.index(finding.severity), rules[finding.rule], finding.feature or "", episode

    return tuple(sorted(listed, key=key))


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
