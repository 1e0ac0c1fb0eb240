"""One execution of a target: what may come out of it, how long it may take, and which files it may touch."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import sys
import time
import traceback
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from salus.errors import SalusError

from .examples import OutsideRootError
from .target import Target

MAX_SECONDS = 2.0
MAX_MEMORY = 512 * 2**20
REGRESSIONS = Path(__file__).parent / "regressions"

_POOL = 64
_PATH_EVENTS = frozenset(
    f"os.{call}"
    for call in ("listdir", "scandir", "mkdir", "remove", "rename", "rmdir", "link", "symlink", "truncate", "chmod")
) | {"open"}
_FORBIDDEN = (
    "pickle.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "socket.connect",
    "socket.bind",
    "shutil.rmtree",
)
_OURS = (
    sys.prefix,
    sys.base_prefix,
    str(Path(__file__).parents[2]),
    "/proc/",
    "/sys/",
    "/dev/null",
    *filter(None, sys.path),
)


@dataclass
class Failure:
    """An execution that did what none may.

    Attributes:
        target: The name of the target.
        why: In words.
        data: The input.
        trace: Where, the innermost call last.
    """

    target: str
    why: str
    data: bytes
    trace: str = ""

    @property
    def signature(self) -> str:
        """The same for failures at the same place."""
        places = [line for line in self.trace.splitlines() if line.strip().startswith("File")]
        return f"{self.target}: {self.why.split(':')[0]} {places[-1].strip() if places else ''}"

    @property
    def file_name(self) -> str:
        return f"{self.target}-{hashlib.sha256(self.data).hexdigest()[:12]}.bin"


@dataclass
class Result:
    """What a number of executions came to.

    Attributes:
        executions: How many.
        accepted: Of these, inputs in which nothing was wrong for the parser.
        seconds: All of them together.
        worst_seconds: The slowest one, in processor time.
        memory: Bytes of resident memory above those at the start, at the worst.
        failures: One for each kind.
    """

    executions: int = 0
    accepted: int = 0
    seconds: float = 0.0
    worst_seconds: float = 0.0
    memory: int = 0
    failures: dict[str, Failure] = field(default_factory=dict)

    def add(self, other: Result) -> None:
        """Take in what other executions came to."""
        self.executions += other.executions
        self.accepted += other.accepted
        self.seconds += other.seconds
        self.worst_seconds = max(self.worst_seconds, other.worst_seconds)
        self.memory = max(self.memory, other.memory)
        for signature, failure in other.failures.items():
            self.failures.setdefault(signature, failure)


class Guard:
    """Watches what executions open: only files of the dataset, of Python, and of the kernel."""

    def __init__(self) -> None:
        self.root = ""
        self.violations: list[str] = []
        self._installed = False
        self._active = False

    @contextmanager
    def watching(self, root: Path) -> Iterator[None]:
        """Watch what is opened outside `root`."""
        if not self._installed:  # there is no way to take it out again
            sys.addaudithook(self._hook)
            self._installed = True
        self.root, self._active = str(root), True
        try:
            yield
        finally:
            self._active = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active:
            return
        if event in _PATH_EVENTS:
            path = arguments[0]
            if isinstance(path, int) or path is None:
                return
            text = os.path.abspath(os.fsdecode(path))
            if not text.startswith((self.root, *_OURS)):
                self.violations.append(f"{event} {text}")
        elif event.startswith(_FORBIDDEN):
            self.violations.append(f"{event} {arguments!r:.80}")


GUARD = Guard()


def execute(target: Target, data: bytes) -> tuple[bool, float, Failure | None]:
    """Run one input: whether it was accepted, the seconds that it took, and what was wrong, if anything was."""
    problem: BaseException | None = None
    why, accepted = "", False
    began = time.process_time()
    try:
        target.run(data)
        accepted = True
    except SalusError as error:
        if _ran_out_of_memory(error):
            problem, why = error, "MemoryError, inside a typed one"
    except (KeyboardInterrupt, SystemExit):
        raise
    except OutsideRootError as error:
        problem, why = error, f"outside of the root: {error}"
    except BaseException as error:  # noqa: BLE001 - this is what fuzzing looks for
        problem, why = error, f"{type(error).__name__}: {str(error)[:300]}"
    seconds = time.process_time() - began
    if seconds > MAX_SECONDS and not why:
        why = f"slow: {seconds:.1f} s, expected at most {MAX_SECONDS}"
    if GUARD.violations:
        why = f"outside of the root: {'; '.join(GUARD.violations)}"
        GUARD.violations.clear()
    if not why:
        return accepted, seconds, None
    trace = "".join(traceback.format_exception(problem, limit=-6)) if problem is not None else ""
    return False, seconds, Failure(target.name, why, data, trace)


def _ran_out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def inputs(target: Target, first: int, count: int) -> Iterator[tuple[bytes, deque[bytes]]]:
    """Inputs number `first` and on, and where those that were accepted are put, to be changed further."""
    accepted: deque[bytes] = deque(maxlen=_POOL)
    for number in range(first, first + count):
        rng = random.Random(f"{target.name} {number}")  # noqa: S311 - a choice that can be made again
        start = rng.choice(accepted) if accepted and rng.random() < 0.4 else rng.choice(target.seeds)
        yield target.mutate(start, rng), accepted


def run_range(target: Target, first: int, count: int, *, root: Path, box: memoryview | None = None) -> Result:
    """Execute inputs number `first` and on.

    Args:
        target: The target.
        first: Number of the first input.
        count: How many.
        root: The only folder in which files may be opened.
        box: Where the number of executions and the input are put before each, for who looks when this process died.
    """
    result, base = Result(), resident()
    began = time.monotonic()
    with GUARD.watching(root), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Numcodecs codecs are not in the Zarr version 3 specification")
        for data, accepted in inputs(target, first, count):
            if box is not None:
                note(box, result.executions, data)
            good, seconds, failure = execute(target, data)
            result.executions += 1
            result.worst_seconds = max(result.worst_seconds, seconds)
            if good:
                result.accepted += 1
                accepted.append(data)
            if failure is not None:
                result.failures.setdefault(failure.signature, failure)
    result.seconds = time.monotonic() - began
    result.memory = max(0, resident(peak=True) - base)
    return result


def note(box: memoryview, number: int, data: bytes) -> None:
    """Put an input where another process finds it."""
    size = min(len(data), len(box) - 16)
    box[:16] = number.to_bytes(8, "little") + size.to_bytes(8, "little")
    box[16 : 16 + size] = data[:size]


def noted(box: memoryview) -> tuple[int, bytes]:
    """The number of executions before it, and the input that was put there last."""
    size = int.from_bytes(box[8:16], "little")
    return int.from_bytes(box[:8], "little"), bytes(box[16 : 16 + size])


def resident(*, peak: bool = False) -> int:
    """Bytes of memory that this process has in use, or had at most."""
    name = "VmHWM:" if peak else "VmRSS:"
    with open("/proc/self/status", encoding="ascii") as lines:  # noqa: PTH123 - read in every process
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def limit_memory() -> None:
    """Let this process have MAX_MEMORY more than it has: more is a MemoryError."""
    with open("/proc/self/statm", encoding="ascii") as sizes:  # noqa: PTH123 - read in every process
        mapped = int(sizes.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MAX_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
