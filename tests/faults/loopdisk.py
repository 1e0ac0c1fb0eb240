"""A real file system in a file, whose power can be cut: a loop device, and the ioctl of `xfs_io -x -c shutdown`.

Shut down so, a file system writes nothing more, its journal included: what no fsync has made durable is gone, as after
a power cut. Every call of those who still use it fails. Mounted anew, it replays its journal.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal, get_args

Kind = Literal["ext4", "xfs"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Sparse files, so this costs what is written. mkfs.xfs makes nothing smaller.
_BYTES = {"ext4": 64 * 2**20, "xfs": 320 * 2**20}

_SHUTDOWN = 0x8004587D  # _IOR('X', 125, u32): XFS_IOC_GOINGDOWN, which ext4 knows as well
_NO_LOG_FLUSH = 2

# How it is made and mounted. A long `commit`, and no flush of files that are renamed over others: more to lose.
VARIANTS: dict[Kind, tuple[tuple[str, str], ...]] = {
    "ext4": (
        ("", "defaults"),
        ("", "data=writeback,commit=60,noauto_da_alloc"),
        ("-O fast_commit", "commit=60"),
        ("", "data=journal,commit=60"),
    ),
    "xfs": (("", "defaults"), ("", "logbsize=256k"), ("-b size=1024", "defaults")),
}


class LoopDisk:
    """A file system of its own under `folder`, freshly made.

    Args:
        folder: For the image and the mount point; best in memory.
        kind: "ext4" or "xfs".
        variant: Index into `VARIANTS[kind]`, modulo their number.

    Raises:
        subprocess.CalledProcessError: It cannot be made or mounted here.
    """

    def __init__(self, folder: Path, kind: Kind, variant: int = 0) -> None:
        made_with, self._options = VARIANTS[kind][variant % len(VARIANTS[kind])]
        self._image = folder / "image"
        self.path = folder / "mounted"
        self.path.mkdir(exist_ok=True)
        self.about = f"{kind} {made_with} {self._options}"
        with self._image.open("wb") as file:
            file.truncate(_BYTES[kind])
        force = "-F" if kind == "ext4" else "-f"
        _run(f"mkfs.{kind}", "-q", force, *made_with.split(), str(self._image))
        self.mount()

    def mount(self) -> None:
        _run("mount", "-o", f"loop,{self._options}", str(self._image), str(self.path))

    def cut(self) -> float:
        """The power is gone, and the journal is not written first; `time.monotonic()` of the moment."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            moment = time.monotonic()
            fcntl.ioctl(descriptor, _SHUTDOWN, _NO_LOG_FLUSH.to_bytes(4, sys.byteorder))
        finally:
            os.close(descriptor)
        return moment

    def unmount(self) -> None:
        _run("umount", str(self.path))

    def remove(self) -> None:
        """Unmount it where it still is, and forget the image."""
        if os.path.ismount(self.path):
            self.unmount()
        self._image.unlink()


def why_not(kind: Kind) -> str:
    """Why no such disk can be had here, and what would help; empty where it can."""
    if os.geteuid() != 0:
        return "needs root, to mount a loop device"
    if shutil.which(f"mkfs.{kind}") is None:
        return f"needs mkfs.{kind}: apt-get install {'e2fsprogs' if kind == 'ext4' else 'xfsprogs'}"
    with tempfile.TemporaryDirectory(prefix="salus-loop-") as folder:
        try:
            LoopDisk(Path(folder), kind).remove()
        except subprocess.CalledProcessError as error:
            return f"needs loop devices: {error.stderr.strip()}"
    return ""


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
