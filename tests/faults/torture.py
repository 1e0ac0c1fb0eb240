"""The promises at their full figures, test by test: `make torture`, which writes docs/reliability.md.

    python -m tests.faults.torture [--share 0.1] [--only NAME]

What has run is kept in torture.tmp/results.json, so a run that was stopped goes on; `--again` runs everything anew.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

_ROOT = Path(__file__).parents[2]
_RESULTS = _ROOT / "torture.tmp" / "results.json"
_PAGE = _ROOT / "docs" / "reliability.md"


class Trial(NamedTuple):
    """One test at its figures.

    Attributes:
        name: Short.
        promise: What it tries to break.
        module: Run as `python -m` with the figures as arguments; its last line says what it did.
        package: Where it is, below `tests`.
        figures: What is asked for.
        joined: What stands between them.
        seeds: Of what is drawn, said from the figures; "" where nothing is drawn.
    """

    name: str
    promise: str
    module: str
    figures: tuple[int, ...]
    joined: str = " + "
    package: str = "faults"
    seeds: Callable[[list[int]], str] = lambda _: ""


def up_to(count: int) -> str:
    """So many seeds, counted from 0."""
    return f"seeds 0 to {count - 1:,}" if count > 1 else "seed 0"


TRIALS = (
    Trial(
        "kills",
        "A process that ends, at once and without cleaning up, before each call that changes files, and SIGKILL at "
        "random times: what was committed is there, nothing is there in part, and recording goes on",
        "test_crash_between_steps",
        (5_000, 2_000),
        seeds=lambda figures: up_to(-(-figures[1] // 100)),
    ),
    Trial(
        "power loss",
        "Every operation of a recording replayed on a disk that loses, reorders and tears all that was not synced: "
        "what was committed is there, and `salus.recover` brings back all that a journal held for sure",
        "test_power_loss",
        (100_000,),
        seeds=lambda _: "seed 0 and on, one for each recording",
    ),
    Trial(
        "power cuts",
        "Recorders, publishers and an episode that is running, on an ext4 and an xfs of their own that are shut down "
        "at a random time and mounted again, with several mount options: so many cuts of each",
        "test_power_cuts",
        (200, 200),
        seeds=lambda figures: up_to(max(figures)),
    ),
    Trial(
        "killed recoverers",
        "`salus.recover` killed before each call that changes files, in the states that dead recorders left: the next "
        "one goes on, and brings back the same steps",
        "test_recover",
        (2_000,),
    ),
    Trial(
        "refused calls",
        "Each call that changes files refused, once or from then on: ENOSPC, EIO, EDQUOT, EMFILE, EROFS, ESTALE, "
        "EACCES. Each is a typed error, and the dataset stays whole",
        "test_error_injection",
        (20_000,),
    ),
    Trial(
        "full disks",
        "A recording on disks with too few pages or inodes, and with a limit on the size of files: typed errors, and "
        "the dataset stays whole and takes more once there is room",
        "test_full_disk",
        (500,),
    ),
    Trial(
        "parallel writers",
        "Writer processes on one dataset, a tenth of them killed, while four readers look on: 64 writers, 200 episodes "
        "each, 20 rounds",
        "test_many_writers",
        (64, 200, 20),
        " × ",
        seeds=lambda figures: up_to(figures[2]),
    ),
    Trial(
        "interleavings",
        "Writers, recoverers, publishers, checkpointers, editors, taggers and readers in drawn orders, crashing "
        "anywhere; the real log code on a storage in memory",
        "test_interleavings",
        (50_000,),
        seeds=lambda figures: up_to(figures[0]),
    ),
    Trial(
        "bit flips",
        "Bits of every file of a small dataset flipped, of each byte so many percent, every file cut to every length, "
        "shards and records exchanged: `salus verify` finds all that changes committed data, and calls it damage; what "
        "is built from it, it calls derived; nothing that was changed is read without an error",
        "test_bit_flips",
        (100,),
        seeds=lambda _: "seed 0",
    ),
    Trial(
        "fuzzing",
        "Documents, tables, shards, journals and codecs with what no writer writes, their checksums made to hold: "
        "everything that reads them raises typed errors only, takes under 2 s and 512 MB, and opens nothing outside of "
        "the dataset",
        "run",
        (10_000_000,),
        package="fuzz",
        seeds=lambda _: "seed 0 and on, of each target",
    ),
    Trial(
        "object store faults",
        "Processes that create, replace, publish, claim, commit, list and read the same objects of an S3 store "
        "(SeaweedFS) through a network that cuts connections before, within and after a body, loses acknowledgements, "
        "delays, goes away, and answers 409, 412, 429, 500 and 503 before and after the store has done it: what was "
        "acknowledged is there, nothing was won by two, and nobody was told of a conflict that is none",
        "test_faulted_store",
        (10_000,),
        package="cloud",
        seeds=lambda _: up_to(1),
    ),
    Trial(
        "bucket writers",
        "Writer processes on one dataset in an S3 store (SeaweedFS), a tenth of them killed, and what they left in "
        "their spool recovered: 16 writers, 50 episodes each",
        "test_many_bucket_writers",
        (16, 50),
        " × ",
        package="cloud",
        seeds=lambda _: "seed 0",
    ),
    Trial(
        "soak",
        "Minutes of recording, amending, publishing and reading by two processes that live on, while writers beside "
        "them are killed and what they left is recovered: nothing is lost, and neither memory nor descriptors grow",
        "soak",
        (30,),
        seeds=lambda _: up_to(1),
    ),
)


def run(trial: Trial, share: float) -> dict[str, Any]:
    """Run one trial at a share of its figures."""
    figures = [max(1, round(figure * share)) for figure in trial.figures]
    command = [sys.executable, "-W", "ignore", "-m", f"tests.{trial.package}.{trial.module}", *map(str, figures)]
    tested, began = commit(), time.monotonic()
    done = subprocess.run(command, check=False, cwd=_ROOT, capture_output=True, text=True)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": tested,
        "figures": figures,
        "seeds": trial.seeds(figures),
        "passed": done.returncode == 0,
        "said": lines[-1] if lines else "",
        "output": [] if done.returncode == 0 else lines[-60:],
        "seconds": round(time.monotonic() - began),
        "machine": f"{platform.system()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }


def commit() -> str:
    """The commit that is tested, with "+" where files differ from it; "" where there is no git."""
    # The page is this program's own, so it does not make a difference.
    changed = _git("status", "--porcelain", "--", ".", ":!docs/reliability.md")
    return _git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], check=False, cwd=_ROOT, capture_output=True, text=True)  # noqa: S607
    return done.stdout.strip()


def page(results: dict[str, dict[str, Any]]) -> str:
    """docs/reliability.md."""
    lines = [
        "# Reliability",
        "",
        "<!-- Written by `make torture`: do not edit, run it again. -->",
        "",
        "What SALUS promises is tested by breaking things. `make check` runs a cut of each trial below; `make torture`",
        "runs them at full length, one by one, and writes this page. Files lie in memory (`/dev/shm`) while it runs.",
        "Power cuts need root, loop devices and `apt-get install xfsprogs`.",
        "The processes that die are real ones, except in the replayed power losses and the interleavings.",
        "",
        "| trial | asked | run | outcome |",
        "|---|---:|---:|---|",
    ]
    for trial in TRIALS:
        asked = trial.joined.join(f"{figure:,}" for figure in trial.figures)
        result = results.get(trial.name)
        if result is None:
            lines.append(f"| {trial.name} | {asked} | – | not run |")
        else:
            ran = trial.joined.join(f"{figure:,}" for figure in result["figures"])
            lines.append(f"| {trial.name} | {asked} | {ran} | {'passed' if result['passed'] else '**failed**'} |")
    for trial in TRIALS:
        result = results.get(trial.name)
        lines += ["", f"## {trial.name[0].upper()}{trial.name[1:]}", "", f"{trial.promise}.", ""]
        if result is None:
            lines.append(f"Not run yet: `python -m tests.faults.torture --only '{trial.name}'`.")
        else:
            where = [result["date"], result["machine"]]
            if result.get("commit"):  # older results do not say
                where.append(f"commit {result['commit']}")
            if result.get("seeds"):
                where.append(result["seeds"])
            lines.append(f"{', '.join(where)}, {result['seconds']:,} s: {result['said']}.")
        lines.append(f"The test: `tests/{trial.package}/{trial.module}.py`.")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what has not run, and write the page after each trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the figures; 0.1 takes minutes, not hours")
    parser.add_argument("--only", help="one trial")
    parser.add_argument("--again", action="store_true", help="also what has run already")
    arguments = parser.parse_args()
    if arguments.only not in (None, *(trial.name for trial in TRIALS)):
        parser.error(f"no trial {arguments.only!r}; there are {', '.join(trial.name for trial in TRIALS)}")
    _RESULTS.parent.mkdir(exist_ok=True)
    results: dict[str, dict[str, Any]] = json.loads(_RESULTS.read_text()) if _RESULTS.exists() else {}
    failed = False
    for trial in TRIALS:
        if arguments.only not in (None, trial.name) or (trial.name in results and not arguments.again):
            continue
        sys.stderr.write(f"{trial.name} …\n")
        results[trial.name] = result = run(trial, arguments.share)
        sys.stderr.write("\n".join(result["output"]) + f"{result['said']} ({result['seconds']} s)\n")
        failed |= not result["passed"]
        _RESULTS.write_text(json.dumps(results, indent=1))
        _PAGE.write_text(page(results), encoding="utf-8")
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
