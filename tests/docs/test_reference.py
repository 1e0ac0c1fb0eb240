"""The reference documents every public name, and nothing that does not exist."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest

import salus

from .pages import ROOT

DIRECTIVE = re.compile(r"^::: (salus[\w.]*)\s*$", re.MULTILINE)
HEADING = re.compile(r"^#+ .*?`(salus[\w.]*)`", re.MULTILINE)


def documented() -> list[str]:
    """Every identifier that the reference describes: with a `:::` directive, or a heading that has its name as code."""
    found: list[str] = []
    for page in sorted((ROOT / "docs" / "reference").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        found += DIRECTIVE.findall(text) + HEADING.findall(text)
    return found


def exported() -> set[str]:
    torch = pytest.importorskip("salus.torch", reason="the extra 'torch' is not installed", exc_type=ImportError)
    gym = pytest.importorskip("salus.gym", reason="the extra 'gym' is not installed", exc_type=ImportError)
    found = {f"salus.{name}" for name in salus.__all__} | {f"salus.torch.{name}" for name in torch.__all__}
    found |= {f"salus.health.{name}" for name in salus.health.__all__}
    return found | {f"salus.gym.{name}" for name in gym.__all__}


def _resolve(identifier: str) -> Any:
    parts = identifier.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            found = getattr(found, name)
        return found
    raise AssertionError(identifier)


def test_every_exported_name_is_documented_once() -> None:
    found = documented()
    assert exported() - set(found) == set()
    assert sorted(name for name in set(found) if found.count(name) > 1) == []


def test_what_is_documented_of_the_package_is_exported() -> None:
    of_package = {name for name in documented() if name.count(".") == 1}
    of_torch = {name for name in documented() if re.fullmatch(r"salus\.(torch|gym|health)\.\w+", name)}
    also = {
        "salus.data",
        "salus.gym",
        "salus.health",
        "salus.isaaclab",
        "salus.torch",
    }  # a page may have a heading for a module that is not exported
    assert (of_package | of_torch) - also <= exported()


@pytest.mark.parametrize("identifier", documented())
def test_what_is_documented_exists_and_has_a_docstring(identifier: str) -> None:
    found = _resolve(identifier)
    if isinstance(found, type) or callable(found):
        assert (found.__doc__ or "").strip(), identifier
