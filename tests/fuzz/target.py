"""What a target of fuzzing is."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .mutators import (
    Mutator,
    json_mutator,
)


@dataclass(frozen=True)
class Target:
    """One parser.

    Attributes:
        name: Short; the start of the names of its regressions.
        seeds: Inputs that are right.
        mutate: Another input from one.
        run: Takes an input through the parser and its users; raises SalusError where it is refused.
        weight: Its share of the executions above the least number.
    """

    name: str
    seeds: tuple[bytes, ...]
    mutate: Mutator
    run: Callable[[bytes], None]
    weight: int = 1


def of_documents(
    name: str,
    seeds: Sequence[bytes],
    run: Callable[[bytes], None],
    *,
    sealed: bool = True,
    weight: int = 1,
    more: Callable[[Any, random.Random], Any] | None = None,
) -> Target:
    return Target(name, tuple(seeds), json_mutator(seeds, sealed=sealed, more=more), run, weight)
