"""Runs the blocks of one page: `python run_page.py JOBS.json`, in the folder where the page's files may lie.

Plain blocks share one namespace; a block with a title is saved under it and run as a script; console blocks that are
marked to run start `salus` or `python`. Writes what each block printed as JSON. A block that fails ends the process.
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

# What the examples cannot help: the machine of the tests has few cores, fork is what one of them is about, and
# Lightning and torchdata call what PyTorch has deprecated.
EXPECTED_WARNINGS = (
    "This DataLoader will create",
    ".*multi-threaded.*fork",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "'set_vital' is deprecated",
)
SALUS = "from salus.cli import main; main()"


def main() -> None:
    warnings.simplefilter("error")
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    jobs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    namespace: dict[str, Any] = {"__name__": "__page__"}
    outputs = [_run(job, namespace) for job in jobs]
    sys.stdout.write(json.dumps(outputs))


def _run(job: dict[str, Any], namespace: dict[str, Any]) -> str:
    if job["kind"] == "console":
        return "".join(
            f"{line}\n{_console(line.removeprefix('$ '))}" for line in job["body"].splitlines() if line.startswith("$ ")
        )
    if job["title"]:
        Path(job["title"]).write_text(job["body"], encoding="utf-8")
        return _process([sys.executable, "-W", "error::ResourceWarning", job["title"]])
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        # The empty lines make a traceback name the line of the page.
        exec(compile("\n" * (job["line"] - 1) + job["body"], job["page"], "exec"), namespace)  # noqa: S102 - our own pages
    return output.getvalue()


def _console(command: str) -> str:
    words = shlex.split(command)
    starts = {"salus": [sys.executable, "-c", SALUS], "python": [sys.executable]}
    return _process([*starts[words[0]], *words[1:]])


def _process(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode:
        sys.exit(f"{command}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
