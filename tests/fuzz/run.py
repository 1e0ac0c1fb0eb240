"""T9: fuzzing of everything that reads bytes out of a dataset, at full length.

    python -m tests.fuzz.run 10000000 [--only record] [--again]

Each chunk of executions runs in a child that is forked from a warm process, may have 512 MB, and is a function of its
seeds. What has run is kept in torture.tmp/fuzzing.json, so a run that was stopped goes on. Inputs that did what none
may are put into torture.tmp/fuzzing/: mend the fault, and move them to tests/fuzz/regressions/.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import pickle
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .examples import make_examples
from .execution import REGRESSIONS, Failure, Result, limit_memory, noted, run_range
from .target import Target
from .targets import all_targets

CHUNK = 5_000
LEAST = 0.02
"""Of all executions, what each target gets at least; the rest goes by weight."""
HANGS_AFTER_S = 60

_ROOT = Path(__file__).parents[2]
_STATE = _ROOT / "torture.tmp" / "fuzzing.json"
_FOUND = _ROOT / "torture.tmp" / "fuzzing"
_BOX = 2**22


def plan(targets: dict[str, Target], total: int) -> dict[str, int]:
    """How many executions each target gets; `total` in all, or a few more."""
    least = min(int(total * LEAST), total // len(targets))
    weights = sum(target.weight for target in targets.values())
    if not weights:
        return dict.fromkeys(targets, -(-total // len(targets)))
    rest = total - least * len(targets)
    return {name: least + -(-rest * target.weight // weights) for name, target in targets.items()}


@dataclass
class _Child:
    pid: int
    pipe: int
    box: mmap.mmap
    target: str
    first: int
    count: int
    seen: int = -1
    since: float = 0.0


class Runner:
    """Runs chunks in forked children, as many at a time as there are cores."""

    def __init__(self, targets: dict[str, Target], root: Path, *, processes: int) -> None:
        self._targets = targets
        self._root = root
        self._processes = processes
        self._children: dict[int, _Child] = {}

    def run(self, chunks: Iterator[tuple[str, int, int]]) -> Iterator[tuple[str, int, int, Result]]:
        """The result of each (target, first, count), as they come."""
        waiting: tuple[str, int, int] | None = next(chunks, None)
        try:
            while waiting is not None or self._children:
                while waiting is not None and len(self._children) < self._processes:
                    self._start(*waiting)
                    waiting = next(chunks, None)
                ready, _, _ = select.select(list(self._children), [], [], 5)
                for pipe in ready:
                    child = self._children.pop(pipe)
                    yield child.target, child.first, child.count, self._result(child)
                self._end_hanging()
        finally:
            for child in self._children.values():
                os.kill(child.pid, signal.SIGKILL)

    def _start(self, name: str, first: int, count: int) -> None:
        box = mmap.mmap(-1, _BOX)
        read_end, write_end = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(read_end)
                limit_memory()
                result = run_range(self._targets[name], first, count, root=self._root, box=memoryview(box))
                with os.fdopen(write_end, "wb") as out:
                    out.write(pickle.dumps(result))
                status = 0
            except BaseException:  # noqa: BLE001 - of the harness: no code of ours may run on in a child
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(write_end)
        self._children[read_end] = _Child(pid, read_end, box, name, first, count, since=time.monotonic())

    def _result(self, child: _Child) -> Result:
        parts = []
        while part := os.read(child.pipe, 2**20):
            parts.append(part)
        os.close(child.pipe)
        _, status = os.waitpid(child.pid, 0)
        body = b"".join(parts)
        if status == 0:
            result: Result = pickle.loads(body)  # noqa: S301 - of our own child
            return result
        number, data = noted(memoryview(child.box))
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {os.WEXITSTATUS(status)}"
        failure = Failure(child.target, f"the process died with {how}", data)
        return Result(executions=number + 1, failures={failure.signature: failure})

    def _end_hanging(self) -> None:
        now = time.monotonic()
        for child in self._children.values():
            number, _ = noted(memoryview(child.box))
            if number != child.seen:
                child.seen, child.since = number, now
            elif now - child.since > HANGS_AFTER_S:
                os.kill(child.pid, signal.SIGKILL)


def chunks_of(wanted: dict[str, int], done: dict[str, list[list[int]]]) -> Iterator[tuple[str, int, int]]:
    """The (target, first, count) that have not run, one target after another in turn."""
    chunks = [
        (first, name, min(CHUNK, count - first)) for name, count in wanted.items() for first in range(0, count, CHUNK)
    ]
    for first, name, count in sorted(chunks):
        if [first, count] not in done.get(name, []):
            yield name, first, count


def report(results: dict[str, Result]) -> str:
    """A line for each target."""
    lines = [f"{'target':<24}{'executions':>12}{'accepted':>10}{'per s':>8}{'worst s':>9}{'memory MB':>11}"]
    for name, result in results.items():
        rate = result.executions / result.seconds if result.seconds else 0
        lines.append(
            f"{name:<24}{result.executions:>12,}{result.accepted / max(result.executions, 1):>10.0%}{rate:>8,.0f}"
            f"{result.worst_seconds:>9.3f}{result.memory / 2**20:>11.1f}"
        )
    return "\n".join(lines)


def replayed(targets: dict[str, Target], folder: Path) -> dict[str, list[str]]:
    """What is wrong with the inputs that were found before, by file."""
    found = {}
    for path in sorted(REGRESSIONS.glob("*.bin")):
        name = path.name.rpartition("-")[0]
        if name in targets:
            body = path.read_bytes()
            same = {name: replace(targets[name], seeds=(body,), mutate=lambda data, _: data)}
            ((_, _, _, result),) = Runner(same, folder, processes=1).run(iter([(name, 0, 1)]))
            found[path.name] = [f"{failure.why}\n{failure.trace}" for failure in result.failures.values()]
    return found


def fuzz(targets: dict[str, Target], total: int, *, state: dict[str, Any] | None, folder: Path) -> dict[str, Result]:
    """Run `total` executions.

    Args:
        targets: What is fuzzed.
        total: Of all targets together.
        state: What ran before, and where it is kept: chunks and results by target.
        folder: The only one in which files may be opened.
    """
    results: dict[str, Result] = {name: Result() for name in targets}
    done: dict[str, list[list[int]]] = {name: [] for name in targets}
    if state is not None:
        for name, kept in state.items():
            if name in results:
                results[name], done[name] = Result(**kept["result"]), kept["chunks"]
    runner = Runner(targets, folder, processes=os.cpu_count() or 1)
    for name, first, count, result in runner.run(chunks_of(plan(targets, total), done)):
        results[name].add(result)
        if result.failures:
            continue
        done[name].append([first, count])
        if state is not None:
            numbers = {key: value for key, value in vars(results[name]).items() if key != "failures"}
            state[name] = {"result": numbers, "chunks": done[name]}
            _STATE.write_text(json.dumps({"of": version(), "targets": state}))
    return results


def version() -> str:
    """What is fuzzed, and how: the content of the sources. Executions of others do not count."""
    sha = hashlib.sha256()
    for file in sorted([*(_ROOT / "src" / "salus").rglob("*.py"), *Path(__file__).parent.glob("*.py")]):
        sha.update(file.read_bytes())
    return sha.hexdigest()


def main() -> None:
    """Run what has not run, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("executions", type=int)
    parser.add_argument("--only", help="one target")
    parser.add_argument("--again", action="store_true", help="also what has run already")
    parser.add_argument("--json", action="store_true", help="for tests/fuzz/test_fuzz.py; keeps nothing")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the children are ended, too
    began = time.monotonic()
    state: dict[str, Any] | None = None
    if not arguments.json:
        _STATE.parent.mkdir(exist_ok=True)
        kept = json.loads(_STATE.read_text()) if _STATE.exists() and not arguments.again else {}
        state = kept.get("targets", {}) if kept.get("of") == version() else {}
    memory = Path("/dev/shm")  # noqa: S108 - faster than a disk
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="salus-fuzz-") as folder:
        targets = all_targets(make_examples(Path(folder)), Path(folder))
        if arguments.only is not None:
            targets = {arguments.only: targets[arguments.only]}
        regressions = replayed(targets, Path(folder))
        results = fuzz(targets, arguments.executions, state=state, folder=Path(folder))
    again = [f"{name}: {why}" for name, failed in regressions.items() for why in failed]
    failures = [failure for result in results.values() for failure in result.failures.values()]
    if arguments.json:
        numbers = {
            name: {
                **vars(result),
                "failures": [f"{f.why}\n{f.trace}\n{f.data!r:.2000}" for f in result.failures.values()],
            }
            for name, result in results.items()
        }
        sys.stdout.write(json.dumps({**numbers, "regressions": regressions}))
        return
    sys.stdout.write(report(results) + "\n")
    if failures:
        _FOUND.mkdir(exist_ok=True)
        for failure in failures:
            (_FOUND / failure.file_name).write_bytes(failure.data)
            sys.stderr.write(f"\n{failure.target}: {failure.why}\n{failure.trace}{_FOUND / failure.file_name}\n")
    sys.stderr.writelines(f"\n{line}\n" for line in again)
    if failures or again:
        sys.exit(1)
    total = sum(result.executions for result in results.values())
    slowest, largest = (
        max(results, key=lambda name: getattr(results[name], what)) for what in ("worst_seconds", "memory")
    )
    sys.stdout.write(
        f"{total:,} executions of {len(results)} targets, {time.monotonic() - began:.0f} s: typed errors only, nothing "
        f"outside of the root opened; the worst took {results[slowest].worst_seconds:.2f} s ({slowest}) and "
        f"{results[largest].memory / 2**20:.0f} MB ({largest})\n"
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
