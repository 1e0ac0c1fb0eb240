"""What opening a file costs, by the way there: by its whole path, folder by folder as SALUS does it, and by `openat2`.

    python benchmarks/open_beneath.py [--rounds 9]

A file one folder deep, in a warm cache; contestants by turns, medians of the rounds, microseconds per opening.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from salus.storage import beneath

OPENAT2 = 437  # its number on all architectures
BENEATH, NO_SYMLINKS = 0x08, 0x04
COUNT = 5000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    libc = ctypes.CDLL(None, use_errno=True)
    with tempfile.TemporaryDirectory() as root:
        key = "images/c.0.0.0.0.0"
        path = Path(root) / key
        path.parent.mkdir()
        path.write_bytes(b"x")
        how = struct.pack("<QQQ", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, 0, BENEATH | NO_SYMLINKS)

        def by_path() -> int:
            return os.open(f"{root}/{key}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)

        def by_openat2() -> int:
            folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                found = libc.syscall(OPENAT2, folder, key.encode(), how, len(how))
            finally:
                os.close(folder)
            if found < 0:
                raise OSError(ctypes.get_errno(), "openat2")
            return int(found)

        ways: dict[str, Callable[[], int]] = {
            "whole path": by_path,
            "folder by folder": lambda: beneath.open_file(root, key)[0],
            "openat2": by_openat2,
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                began = time.perf_counter()
                for _ in range(COUNT):
                    os.close(way())
                times[name].append((time.perf_counter() - began) / COUNT * 1e6)
    print("| way | µs |\n|---|---:|")
    for name, some in times.items():
        print(f"| {name} | {statistics.median(some):.1f} |")


if __name__ == "__main__":
    main()
