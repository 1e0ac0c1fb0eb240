"""Runs all attacks, one after the other: `python -m tests.hostile.child TEMPLATE FOLDER`; a line of JSON for each.

One process, so that they are quick; an address space limit, an alarm clock and the peak of its memory judge each.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import salus
from salus.cli.app import main
from salus.errors import SalusError
from salus.verification import derived

from .attacks import ATTACKS

ADDRESS_SPACE = 6 * 2**30
SECONDS = 60


def arrays_of(dataset: salus.Dataset, said: list[str]) -> dict[str, str]:
    """A digest of every value that can be read; what is raised instead goes to `said`."""
    found: dict[str, str] = {}
    for number in range(len(dataset)):
        try:
            episode = dataset[number]
            repr(episode)
            for name in episode.schema.features:
                try:
                    values = episode[name][:]
                    body = (
                        "\0".join(values).encode() if values.dtype == object else np.ascontiguousarray(values).tobytes()
                    )
                    found[f"{episode.uid}/{name}"] = hashlib.sha256(body).hexdigest()
                except SalusError as error:
                    said.append(str(error))
            found[f"{episode.uid}/stamps"] = hashlib.sha256(episode.timestamp_ns.tobytes()).hexdigest()
        except SalusError as error:
            said.append(str(error))
    return found


def outside_of(folder: Path) -> list[tuple[str, int, int, str]]:
    """Everything in the folder that nobody may touch."""
    found = []
    for path in sorted((folder / "outside").rglob("*")):
        status = path.lstat()
        body = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found.append((str(path), status.st_mtime_ns, status.st_mode, body))
    return found


def memory(field: str) -> int:
    """Bytes of resident memory: now (VmRSS), or at the most (VmHWM) since `clear_refs`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def command(*arguments: str) -> str:
    """What `salus` shows; it ends by itself, whatever the status."""
    shown, before = io.StringIO(), sys.argv
    sys.argv = ["salus", *arguments]
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            main()
    except SystemExit:
        pass
    finally:
        sys.argv = before
    return shown.getvalue()


def run(name: str, template: Path, folder: Path) -> dict[str, Any]:
    """One attack, and everything that people do to a dataset."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder, symlinks=True)
    os.mkfifo(folder / "outside/pipe")
    path = folder / "data.zarr"
    said: list[str] = []
    shown: list[str] = []
    failed: dict[str, str] = {}
    reads: dict[str, Any] = {}

    def read(mode: Any = "r") -> dict[str, str]:
        return arrays_of(salus.open(path, mode=mode), said)

    def read_tags() -> None:
        for tag in ("v1",):
            arrays_of(salus.open(path, tag=tag), said)

    def verify(**options: Any) -> None:
        report = salus.verify(path, threads=1, **options)
        said.extend(f"{f.key}: {f.failed}: got {f.got}, expected {f.expected}" for f in report.findings)

    def check() -> None:
        shown.append(salus.health.check(salus.open(path, on_corrupt="skip"), threads=1).to_html())
        shown[-1].encode()

    def write() -> None:
        dataset = salus.open(path, mode="a")
        dataset.publish()

    def record() -> None:
        with salus.Recorder(salus.open(path, mode="a")) as recorder:
            first = next(iter(salus.open(template / "data.zarr")))
            recorder.record_episode({feature: first[feature][:] for feature in first.schema.features})
            with recorder.episode() as episode:
                episode.append({feature: first[feature][0] for feature in first.schema.features})

    steps: dict[str, Callable[[], Any]] = {
        "open": read,
        "tags": read_tags,
        "strict": lambda: len(salus.open(path, strict=True)),
        "verify": verify,
        "check": check,
        "info": lambda: shown.append(command("info", str(path))),
        "ls": lambda: shown.append(command("ls", str(path))),
        "show": lambda: shown.append(command("show", str(path), "1")),
        "recover dry": lambda: shown.append(command("recover", str(path), "--dry-run")),
        "append": write,
        "recover": lambda: said.extend(e.reason for e in salus.recover(path, force=True).episodes),
        "repair": lambda: verify(repair=True),
        "read again": read,
        "record": record,
        "create": lambda: salus.create(path, salus.schema.SALUS),
        "shown": lambda: shown.append(command("verify", str(path))) if "text" in name else None,
    }
    ATTACKS[name].change(path)
    before = outside_of(folder)
    Path("/proc/self/clear_refs").write_text("5")
    at_start, started = memory("VmRSS"), time.monotonic()
    for step, do in steps.items():
        try:
            signal.alarm(SECONDS)
            reads[step] = do()
        except SalusError as error:
            said.append(str(error))
        except BaseException:  # noqa: BLE001 - whatever else it is, the test shows it
            failed[step] = traceback.format_exc()
        finally:
            signal.alarm(0)
    return {
        "name": name,
        "failed": failed,
        "said": "\n".join(said).encode("utf-8", "backslashreplace").decode(),
        "shown": "\n".join(shown),
        "read": reads.get("open"),
        "read_again": reads.get("read again"),
        "outside": before == outside_of(folder),
        "peak": memory("VmHWM") - at_start,
        "seconds": time.monotonic() - started,
    }


def timed_out(*_: Any) -> None:
    raise TimeoutError(f"not done after {SECONDS} s")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    derived.PUBLISHED_WITHIN_S = 0  # nobody records, so nobody is waited for
    signal.signal(signal.SIGALRM, timed_out)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    template, folder = map(Path, sys.argv[1:3])
    for name in sys.argv[3:] or ATTACKS:
        sys.stdout.write(json.dumps(run(name, template, folder)) + "\n")
        sys.stdout.flush()
