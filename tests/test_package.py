"""The package as a whole: what it exports, how fast it is there, and what it does not drag in."""

from __future__ import annotations

import subprocess
import sys

import pytest

import salus


def test_the_exported_names_are_there_and_sorted() -> None:
    assert salus.__all__ == sorted(salus.__all__)
    for name in set(salus.__all__) - {"torch"}:
        assert getattr(salus, name) is not None


def test_every_error_that_is_defined_is_exported() -> None:
    defined = {
        n for n, cls in vars(salus.errors).items() if isinstance(cls, type) and issubclass(cls, salus.SalusError)
    }
    assert defined <= set(salus.__all__)


def test_importing_needs_no_extra_and_does_not_load_zarr() -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'pandas', 'matplotlib', 'mujoco', 'typer', 'rich', 'sklearn', 'zarr', 'datasketches',"
        "    'gymnasium'):\n"
        "    sys.modules[name] = None\n"  # an import of any of them would fail
        "import salus\n"
        "assert salus.Schema and salus.Recorder\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(("extra", "missing"), [("torch", "torch"), ("gym", "gymnasium")])
def test_a_missing_extra_says_what_to_install(extra: str, missing: str) -> None:
    script = (
        "import sys\n"
        f"sys.modules['{missing}'] = None\n"
        "import salus\n"
        "try:\n"
        f"    salus.{extra}\n"
        "except salus.MissingExtraError as error:\n"
        f"    assert \"pip install 'salus[{extra}]'\" in str(error), error\n"
        "else:\n"
        "    raise AssertionError('no error')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
