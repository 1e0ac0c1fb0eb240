"""The log of what a recording does to the disk: `python -m tests.faults.oplog FOLDER OUT SCRIPT`.

Runs a script, such as that of `scenario.py`, in a process of its own, with every call of `os` that changes files
written down in the order in which it was made, and the acknowledgements between them. Each fsync says from where in
SALUS it was called.
"""

from __future__ import annotations

import builtins
import io
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from . import scenario

Kind = Literal["create", "write", "sync", "sync folder", "link", "rename", "unlink", "mkdir", "rmdir", "acknowledge"]


@dataclass(frozen=True)
class Operation:
    """One change of the disk, or one acknowledgement.

    Attributes:
        kind: What.
        path: Relative to the folder; of "write" and "sync" the name under which the file was created.
        target: The second path of "link" and "rename".
        offset, data: Of "write".
        file: Number of the file that "create", "write" and "sync" are of: names come and go.
        site: Of a sync, the functions of SALUS that led to it, innermost first.
        event: Of an acknowledgement, what was acknowledged.
    """

    kind: Kind
    path: str = ""
    target: str = ""
    offset: int = 0
    data: bytes = b""
    file: int = -1
    site: tuple[str, ...] = ()
    event: tuple[str, dict[str, Any]] | None = None


class Logger:
    """Writes down what this process does below `folder`, from `install` on. There is no way back.

    Thread-safety: a call and its line in the log are one step, whatever thread makes it.
    """

    def __init__(self, folder: Path) -> None:
        self.operations: list[Operation] = []
        self._root = os.path.abspath(folder)
        self._lock = threading.RLock()
        self._open: dict[int, tuple[str, int]] = {}  # descriptor: path, and number of the file or -1 of a folder
        self._ends: list[int] = []  # of each file

    def acknowledge(self, event: str, **details: Any) -> None:
        """What the script calls when something is promised."""
        with self._lock:
            self.operations.append(Operation("acknowledge", event=(event, details)))

    def install(self) -> None:
        """Replace the functions of `os`, and `open`."""
        self._wrap("open", self._opened)
        self._wrap("close", lambda descriptor, _: self._open.pop(descriptor, None))
        self._wrap(
            "write", lambda descriptor, data, written: self._wrote(descriptor, bytes(memoryview(data)[:written]))
        )
        for name in ("fsync", "fdatasync"):
            self._wrap(name, lambda descriptor, _: self._synced(descriptor))
        self._wrap("link", lambda path, target, _: self._log("link", path, target=target))
        for name in ("rename", "replace"):
            self._wrap(name, lambda path, target, _: self._log("rename", path, target=target))
        for name in ("unlink", "remove"):
            self._wrap(name, lambda path, _: self._log("unlink", path))
        self._wrap("mkdir", lambda path, _: self._log("mkdir", path))
        self._wrap("rmdir", lambda path, _: self._log("rmdir", path))
        plain_open, logger = builtins.open, self

        class LoggedFile(io.FileIO):
            def write(self, data: Any) -> int:
                with logger._lock:
                    written = super().write(data)
                    logger._wrote(self.fileno(), bytes(memoryview(data)[:written]))
                return written

            def close(self) -> None:
                with logger._lock:
                    if not self.closed:
                        logger._open.pop(self.fileno(), None)
                    super().close()

        def logged_open(file: Any, mode: str = "r", buffering: int = -1, *more: Any, **named: Any) -> Any:
            if not set(mode) & set("wax+"):
                return plain_open(file, mode, buffering, *more, **named)
            if isinstance(file, int) and file in self._open and buffering == 0:
                return LoggedFile(file, mode)
            raise AssertionError(f"open({file!r}, {mode!r}): a way of writing that is not logged")

        builtins.open = io.open = logged_open  # type: ignore[assignment]

    def _wrap(self, name: str, seen: Callable[..., object]) -> None:
        plain: Callable[..., Any] = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            with self._lock:
                about = self._about(name, arguments, named)
                result = plain(*arguments, **named)
                if about is not None:
                    seen(*about, result)
            return result

        setattr(os, name, call)

    def _about(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...] | None:
        """What a call is about, before it changes it; None for what does not lie below the folder."""
        if name in ("close", "write", "fsync", "fdatasync"):
            return arguments if arguments[0] in self._open else None
        count = 2 if name in ("link", "rename", "replace") else 1
        paths = [self._relative(path, named.get("dir_fd")) for path in arguments[:count]]
        if None in paths:
            return None
        if name == "open":
            there = os.path.lexists(f"{self._root}/{paths[0]}")
            return paths[0], arguments[1], there
        return tuple(paths)

    def _relative(self, path: Any, folder: int | None) -> str | None:
        text = os.fsdecode(path)
        if folder is not None:
            if folder not in self._open:
                return None
            text = f"{self._root}/{self._open[folder][0]}/{text}"
        text = os.path.abspath(text)
        return os.path.relpath(text, self._root) if f"{text}/".startswith(f"{self._root}/") else None

    def _log(self, kind: Kind, path: str, **more: Any) -> None:
        self.operations.append(Operation(kind, path, **more))

    def _opened(self, path: str, flags: int, there: bool, descriptor: int) -> None:
        file = -1
        if flags & (os.O_WRONLY | os.O_RDWR):
            assert not there or not flags & os.O_TRUNC, "files are not written twice"
            file = len(self._ends)
            self._ends.append(0)
            if not there:
                self._log("create", path, file=file)
        self._open[descriptor] = path, file

    def _wrote(self, descriptor: int, data: bytes) -> None:
        path, file = self._open[descriptor]
        self._log("write", path, file=file, offset=self._ends[file], data=data)
        self._ends[file] += len(data)

    def _synced(self, descriptor: int) -> None:
        path, file = self._open[descriptor]
        if file >= 0:
            self._log("sync", path, file=file, site=_site())
        else:
            self._log("sync folder", path, site=_site())


def _site() -> tuple[str, ...]:
    """The functions of SALUS on the stack, innermost first."""
    found, frame = [], sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("salus."):
            found.append(f"{module.removeprefix('salus.')}.{frame.f_code.co_qualname}")
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(found)


def logged_script(folder: Path, script: str = "script") -> list[Operation]:
    """The operations of a script of SCRIPTS, recorded into `folder`/data.zarr by a process of its own."""
    out = folder / "operations"
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults.oplog", str(folder / "run"), str(out), script]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    operations: list[Operation] = pickle.loads(out.read_bytes())  # noqa: S301 - written by us, just now
    return operations


def _note_what_is_journalled(logger: Logger) -> None:
    """Acknowledge the steps of each clock of a slot when the flush that made them durable has returned."""
    files = scenario.salus.recorder.files.EpisodeFiles
    flush = files._flush

    def noted(self: Any) -> None:
        pending = {clock: state.pending for clock, state in self._clocks.items() if state.pending.count}
        flush(self)
        for clock, steps in pending.items():
            logger.acknowledge("journalled", slot=self.slot, clock=clock, steps=steps.first + steps.count)

    files._flush = noted  # type: ignore[method-assign]


def two_writers(path: Path, acknowledge: Callable[..., None]) -> None:
    """A second writer publishes and tags an episode between the link of its record and the sync of the folder.

    Two writers that share nothing but the folder: what they do to the disk is the same as from two processes.
    """
    first = scenario.salus.create(path, scenario.CLOCKS_SCHEMA)
    acknowledge("created")
    storage, waiting = first.storage, [scenario.salus.open(path, mode="a")]
    sync_folder = storage.sync_folder

    def interrupted(folder: Path, key: str) -> None:
        if key.startswith("_salus/log/") and waiting:
            second = waiting.pop()
            second.publish(whole=False)
            acknowledge("published")
            second.refresh().tag("first")
            acknowledge("tagged")
        sync_folder(folder, key)

    storage.sync_folder = interrupted
    with scenario.salus.Recorder(first) as recorder:
        recorder.record_episode(scenario.make_script_episode(scenario.WHOLE), {"seed": scenario.WHOLE})
        acknowledge("committed")
    assert not waiting


SCRIPTS: dict[str, Callable[[Path, Callable[..., None]], None]] = {
    "script": scenario.run_script,
    "two writers": two_writers,
}


def main() -> None:
    """Run the script under the log."""
    folder, out, script = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    folder.mkdir()
    scenario.warm_up()
    scenario.salus.recorder.files.FLUSH_INTERVAL_S = 0  # flush the journal at every step
    logger = Logger(folder)
    logger.install()
    _note_what_is_journalled(logger)
    SCRIPTS[script](folder / "data.zarr", logger.acknowledge)
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(descriptor, pickle.dumps(logger.operations))
    os._exit(0)


if __name__ == "__main__":
    sys.modules["tests.faults.oplog"] = sys.modules["__main__"]  # so that what is pickled names this module
    Operation.__module__ = "tests.faults.oplog"
    main()
