"""Health of values: whether what was recorded is what a robot can have done. `salus.verify` looks at bytes instead."""

from .checking import check
from .findings import Finding, Group, HealthReport, Hit, Plot
from .measures import DatasetMeasures, EpisodeMeasures
from .registry import Rule, forget, rule, rules

__all__ = [
    "DatasetMeasures",
    "EpisodeMeasures",
    "Finding",
    "Group",
    "HealthReport",
    "Hit",
    "Plot",
    "Rule",
    "check",
    "forget",
    "rule",
    "rules",
]
