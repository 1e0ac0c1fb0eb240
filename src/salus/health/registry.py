"""Rules: functions with names, thresholds and a reason, and how they are chosen and changed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from ..errors import InvalidInputError, NotFoundError, did_you_mean
from .findings import SEVERITIES, Hit, Severity

Scope = Literal["episode", "dataset"]
Function = TypeVar("Function", bound=Callable[..., Iterable[Hit]])


@dataclass(frozen=True)
class Rule:
    """One thing that is looked for.

    Attributes:
        name: As findings have it.
        severity: `"error"`, `"warning"` or `"info"`; a hit may have another.
        reason: Why it matters.
        advice: What to do about it.
        per: `"episode"`: the function gets `EpisodeMeasures`, once for each episode. `"dataset"`: it gets
            `DatasetMeasures`, once, after all episodes.
        thresholds: Numbers by name: the keyword arguments of the function.
        function: Yields a `Hit` for everything that it finds.
    """

    name: str
    severity: Severity
    reason: str
    advice: str
    per: Scope
    thresholds: Mapping[str, float]
    function: Callable[..., Iterable[Hit]]

    def hits(self, measures: Any) -> list[Hit]:
        """What the function yields with these thresholds."""
        return list(self.function(measures, **self.thresholds))


_RULES: dict[str, Rule] = {}


def rule(
    name: str | None = None,
    *,
    severity: Severity = "warning",
    reason: str,
    advice: str = "Look at these episodes.",
    per: Scope = "episode",
) -> Callable[[Function], Function]:
    """Make a function a rule that every later `check` uses.

    Its keyword arguments with numbers as defaults are its thresholds. It yields `Hit`s::

        @salus.health.rule(reason="Above 80 N the cup breaks.")
        def grip_force(episode, *, most_n=80.0):
            force = episode.values("signals")[:, 2]
            if force.max() > most_n:
                yield salus.health.Hit(f"{force.max():.0f} N", force.max(), most_n, feature="signals")

    Args:
        name: Of the rule; by default that of the function. A rule that was there under this name is replaced.
        severity: `"error"`, `"warning"` or `"info"`.
        reason: Why it matters, a sentence.
        advice: What to do about it, a sentence.
        per: `"episode"` or `"dataset"`, as in `Rule`.

    Returns:
        A decorator that gives the function back as it is.

    Raises:
        InvalidInputError: Another severity or `per`, or a threshold that is no number.
    """
    if severity not in SEVERITIES:
        raise InvalidInputError(f"rule: severity: got {severity!r}, expected one of {', '.join(map(repr, SEVERITIES))}")
    if per not in ("episode", "dataset"):
        raise InvalidInputError(f"rule: per: got {per!r}, expected 'episode' or 'dataset'")

    def decorate(function: Function) -> Function:
        called = name or function.__name__
        _RULES[called] = Rule(called, severity, reason, advice, per, _thresholds(called, function), function)
        return function

    return decorate


def rules() -> dict[str, Rule]:
    """All rules that a `check` uses, by name: those of SALUS, and those that were added with `rule`."""
    from . import builtin as _  # noqa: F401 - the rules of SALUS, which add themselves

    return dict(_RULES)


def forget(name: str) -> None:
    """Remove a rule that was added.

    Raises:
        NotFoundError: No such rule.
    """
    _known(name)
    del _RULES[name]


def chosen(changes: Mapping[str, Any] | None) -> list[Rule]:
    """All rules, with changes: `{"nan": {"most_share": 0.1}, "length_outlier": False}`.

    Raises:
        NotFoundError: No such rule.
        InvalidInputError: No such threshold, or not a number.
    """
    found = rules()
    if changes is not None and not isinstance(changes, Mapping):
        raise InvalidInputError(
            f'rules: got {type(changes).__name__}, expected rules with thresholds or False, such as {{"nan": False}}'
        )
    for name, change in (changes or {}).items():
        _known(name)
        if change is False:
            found.pop(name, None)
        elif change is not True:
            found[name] = _changed(found[name], change)
    return list(found.values())


def _known(name: str) -> None:
    if name not in rules():
        raise NotFoundError(f"no rule {name!r}{did_you_mean(str(name), rules())}")


def _changed(old: Rule, change: Any) -> Rule:
    if not isinstance(change, Mapping):
        raise InvalidInputError(f"rule {old.name!r}: got {change!r}, expected thresholds by name, or False")
    thresholds, severity = dict(old.thresholds), old.severity
    for name, value in change.items():
        if name == "severity" and value in SEVERITIES:
            severity = value
        elif name not in thresholds:
            hint = did_you_mean(str(name), [*thresholds, "severity"])
            raise InvalidInputError(f"rule {old.name!r}: got the threshold {name!r}, expected one that it has{hint}")
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidInputError(f"rule {old.name!r}: {name}: got {value!r}, expected a number")
        else:
            thresholds[name] = value
    return replace(old, thresholds=thresholds, severity=severity)


def _thresholds(name: str, function: Callable[..., Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        default = parameter.default
        if isinstance(default, bool) or not isinstance(default, int | float):
            raise InvalidInputError(
                f"rule {name!r}: {parameter.name}: got {default!r}, expected a number as its default"
            )
        found[parameter.name] = default
    return found
