"""How an episode of an environment ended, told by what the environment says of its last step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from ..labels import Outcome, Result

OutcomeOf: TypeAlias = Callable[[Mapping[str, Any], bool, bool], Outcome | Result | None]
"""(info of the last step, terminated, truncated) -> outcome."""


def outcome_from_info(info: Mapping[str, Any], terminated: bool, truncated: bool) -> Outcome | Result | None:  # noqa: ARG001 - an `OutcomeOf`
    """`info["is_success"]`, else `info["success"]`, of the last step; unknown where there is neither."""
    for name in ("is_success", "success"):
        if name in info:
            return "success" if bool(np.asarray(info[name]).all()) else "failure"
    return None


def info_of(infos: Mapping[str, Any], env: int) -> dict[str, Any]:
    """The info of one environment, out of that of a vector of environments."""
    found: dict[str, Any] = {}
    for name, values in infos.items():
        mask = infos.get(f"_{name}")
        if (name.startswith("_") and name[1:] in infos) or (mask is not None and not mask[env]):
            continue
        if isinstance(values, Mapping):
            found[name] = info_of(values, env)
        elif hasattr(values, "__len__") and not isinstance(values, str) and len(values) > env:
            found[name] = values[env]
    return found
