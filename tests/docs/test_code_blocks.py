"""Every code block of README.md and docs/ runs, and prints what the page says it prints.

The Python blocks of a page run in order, in one namespace, in a folder of their own. A block is marked by an HTML
comment on the line before it: `<!-- not run: reason -->`, or `<!-- run -->` for a console block whose commands are
to be run, too. A `text` block right after a Python block is its output: its lines must be printed, in this order, and
"…" in it stands for anything. A Python block with `title="name.py"` is saved under that name and run as a script.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from salus.cli.app import app

from .pages import ROOT, Block, blocks_of, pages

PAGES = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages()]
HERE = Path(__file__).parent
IMPORTED = re.compile(r"^\s*(?:import|from) (\w+)", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path) -> None:
    jobs, expected = _jobs(page)
    if not jobs:
        return
    _require_imports(jobs)
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps(jobs), encoding="utf-8")
    folder = tmp_path / "page"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, str(HERE / "run_page.py"), str(file)],
        cwd=folder,
        # One thread: torch's threads fight over the few cores of a test machine.
        env={**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = json.loads(done.stdout)
    problems = [
        f"{job['page']}:{job['line']}: the page shows {missing!r}; printed:\n{output}"
        for job, output, text in zip(jobs, outputs, expected, strict=True)
        if (missing := _first_missing(text, output)) is not None
    ]
    assert not problems, "\n".join(problems)


def _jobs(page: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What is to be run, and what each is to print ("" where the page does not say)."""
    jobs: list[dict[str, Any]] = []
    expected: list[str] = []
    before: Block | None = None
    for block in blocks_of(page):
        is_output = block.language == "text" and block.follows and before is not None and before.language == "python"
        if is_output and not before.skipped:
            expected[-1] = block.body
        runs = not block.skipped if block.language == "python" else block.language == "console" and block.mark == "run"
        if runs:
            name = str(page.relative_to(ROOT))
            job = {"kind": block.language, "body": block.body, "line": block.line, "title": block.title, "page": name}
            jobs.append(job)
            expected.append(block.body if block.language == "console" else "")
        before = block
    return jobs, expected


def _first_missing(text: str, output: str) -> str | None:
    """The first line of `text` that `output` does not have after the line before; None where all are there."""
    printed = iter([line.rstrip() for line in output.splitlines()])
    for line in filter(None, map(str.rstrip, text.splitlines())):
        pattern = re.compile(".*".join(map(re.escape, line.split("…"))))
        if not any(pattern.fullmatch(other) for other in printed):
            return line
    return None


def _require_imports(jobs: list[dict[str, Any]]) -> None:
    """Skip where a block imports what is not installed; in CI, where all is, fail."""
    text = "\n".join(job["body"] for job in jobs if job["kind"] == "python")
    wanted = {name for name in IMPORTED.findall(text) if not any(job["title"] == f"{name}.py" for job in jobs)}
    if "salus.torch" in text:
        wanted.add("torch")
    missing = sorted(name for name in wanted if importlib.util.find_spec(name) is None)
    if not missing:
        return
    if os.environ.get("CI"):
        pytest.fail(f"{', '.join(missing)}: not installed, and CI must run every page")
    pytest.skip(f"{', '.join(missing)}: not installed; run `make setup`")


@pytest.mark.parametrize("page", PAGES)
def test_the_salus_commands_of_a_page_exist_with_their_options(page: Path) -> None:
    for block in blocks_of(page):
        if block.language in ("console", "bash", "sh", "shell"):
            for words in _salus_commands(block.body):
                _check_command(words, f"{page.relative_to(ROOT)}:{block.line}")


def _salus_commands(body: str) -> list[list[str]]:
    """The words of each `salus …` in a shell block, up to a pipe, a redirection or the next command."""
    commands = []
    for line in body.splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        if not line.removeprefix("$ ").startswith("salus "):
            continue
        words: list[str] = []
        for word in lexer:
            if set(word) <= set("|&;<>"):
                break
            words.append(word)
        commands.append(words[1:])
    return commands


def _check_command(words: list[str], where: str) -> None:
    group: Any = typer.main.get_command(app)
    root = {name for parameter in group.params for name in parameter.opts} | {"--help"}
    if words[0].startswith("-"):
        assert set(words) <= root, f"{where}: salus {' '.join(words)}"
        return
    assert words[0] in group.commands, f"{where}: salus has no command {words[0]!r}"
    known = {name for parameter in group.commands[words[0]].params for name in parameter.opts} | {"--help"}
    for word in words[1:]:
        if word.startswith("--"):
            assert word.partition("=")[0] in known, f"{where}: salus {words[0]} has no option {word}"


# --- the checks themselves --------------------------------------------------------------------------------------


def test_blocks_are_found_with_marks_titles_and_outputs(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        'Text\n\n```python title="a.py"\nprint(1)\n```\n\n```text\n1\n```\n\n'
        "<!-- not run: needs a robot -->\n```python\nmove()\n```\n\n"
        "- item\n\n    ```python\n    if 1:\n        pass\n    ```\n\n"
        "<!-- run -->\n```console\n$ salus --version\n```\n",
        encoding="utf-8",
    )
    found = blocks_of(page)
    assert [block.language for block in found] == ["python", "text", "python", "python", "console"]
    assert [block.skipped for block in found] == [False, False, True, False, False]
    assert (found[0].title, found[0].line) == ("a.py", 4)
    assert [block.follows for block in found[:4]] == [False, True, True, False]
    assert found[3].body == "if 1:\n    pass\n"
    assert found[4].mark == "run"


def test_output_is_compared_line_by_line_with_wildcards() -> None:
    assert _first_missing("a\nuid …, 3 steps\n", "a\nb\nuid 0193, 3 steps\n") is None
    assert _first_missing("b\na\n", "a\nb\n") == "a"
    assert _first_missing("uid …, 4 steps\n", "uid 0193, 3 steps\n") == "uid …, 4 steps"


def test_commands_and_options_that_do_not_exist_are_noticed() -> None:
    assert _salus_commands("$ salus ls data.zarr --json | jq .\nls\n") == [["ls", "data.zarr", "--json"]]
    _check_command(["show", "data.zarr", "-1", "--picture", "x.png"], "here")
    with pytest.raises(AssertionError, match="no option --pictures"):
        _check_command(["show", "data.zarr", "--pictures"], "here")
    with pytest.raises(AssertionError, match="no command 'lst'"):
        _check_command(["lst"], "here")
