"""The log of operations that the power-loss tests replay is what the kernel saw: checked against strace."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from .oplog import Operation

_CALLS = (
    "openat,write,pwrite64,writev,fsync,fdatasync,sync_file_range,link,linkat,rename,renameat,renameat2,"
    "unlink,unlinkat,mkdir,mkdirat,rmdir,truncate,ftruncate,symlink,symlinkat"
)
_KINDS = {
    "openat": "create",
    "write": "write",
    "fsync": "sync",
    "fdatasync": "sync",
    "linkat": "link",
    "rename": "rename",
    "unlink": "unlink",
    "unlinkat": "unlink",
    "mkdir": "mkdir",
    "rmdir": "rmdir",
}
_LINE = re.compile(r"(?P<call>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)")
_PATH = re.compile(r'"([^"]*)"|<([^>]*)>')


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_log_holds_every_change_that_the_kernel_saw(tmp_path: Path) -> None:
    trace, out = tmp_path / "trace", tmp_path / "operations"
    recording = [sys.executable, "-W", "ignore", "-m", "tests.faults.oplog", str(tmp_path / "run"), str(out), "script"]
    command = ["strace", "-f", "-y", "-qq", "-s", "0", "-e", f"trace={_CALLS}", "-o", str(trace), *recording]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    logged: list[Operation] = pickle.loads(out.read_bytes())  # noqa: S301 - written by us, just now
    ours = Counter(
        ("sync" if operation.kind == "sync folder" else operation.kind, operation.target or operation.path)
        for operation in logged
        if operation.kind != "acknowledge"
    )
    seen = Counter(changes(trace.read_text(), tmp_path / "run"))
    assert seen.total() > 300
    assert ours == seen


def changes(trace: str, folder: Path) -> list[tuple[str, str]]:
    """Kind and path of every call below `folder` that changed something."""
    found: list[tuple[str, str]] = []
    halves: dict[str, str] = {}
    for line in trace.splitlines():
        process, _, call = line.partition(" ")
        if "<unfinished ...>" in call:
            halves[process] = call.replace("<unfinished ...>", "")
            continue
        if "resumed>" in call:
            call = halves.pop(process) + call.partition("resumed>")[2]
        match = _LINE.match(call.strip())
        if match is None or int(match["result"]) < 0:
            continue
        name, arguments = match["call"], match["arguments"]
        if name == "openat" and "O_CREAT" not in arguments:
            continue
        paths = [quoted or opened for quoted, opened in _PATH.findall(arguments)]
        path = {"write": paths[0], "unlinkat": "/".join(paths)}.get(name, paths[-1])
        place = os.path.relpath(path, folder)
        kind = "rmdir" if "AT_REMOVEDIR" in arguments else _KINDS[name]
        known = kind == "create" and (kind, place) in found  # opened again, or made by another
        if not place.startswith("..") and not known and (kind, place) != ("mkdir", "."):
            found.append((kind, place))
    return found
