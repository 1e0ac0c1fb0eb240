"""T5: a disk that is full, has no inodes left or limits files, at any point: a typed error, and the dataset stays.

`python -m tests.faults.test_full_disk 500` cuts at more points than the suite does. The disks are small tmpfs, mounted
in a mount namespace of their own (`unshare -Urm`).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .scenario import Warm
from .test_crash_between_steps import check_plain_zarr_meanwhile, check_that_work_goes_on, check_what_is_there

SUITE_CUTS = 30
FILE_LIMIT = 8000  # bytes; few files of the script are longer
LARGEST = 120  # pages and inodes; the script fits
PAGE = 4096


def cut(warm: Warm, folder: Path, *, options: str = "", file_limit: int | None = None) -> str:
    """One recording into a small disk, or with short files, and what must hold after it.

    Returns:
        The error that the recording ended with; empty where it ran through.
    """
    if options:
        mount(folder, options)
    path = folder / "data.zarr"
    answer = warm.ask(file_limit=file_limit, path=path)
    about = f"{options or file_limit}: {answer}"
    events: dict[str, Any] = dict(answer["acknowledged"]) | {"about": {"about": about}}
    assert answer["status"] == 0, about
    assert "raised" not in events, about
    if "created" in events:
        check_plain_zarr_meanwhile(path)
    if options:
        mount(folder, "remount,size=64m,nr_inodes=10000")
    committed = [details for event, details in answer["acknowledged"] if event == "committed"]
    check_what_is_there(path, events, committed)
    check_that_work_goes_on(path, events)
    if options:
        subprocess.run(["umount", str(folder)], check=True)  # noqa: S607
    else:
        shutil.rmtree(path)
    return str(events["refused"]["error"]) if "refused" in events else ""


def mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)  # noqa: S607


def cuts(wanted: int) -> Iterator[dict[str, Any]]:
    """So many cut points: different numbers of pages and of inodes, and for the rest different limits of a file."""
    third = wanted // 3
    pages, inodes = spread(2, LARGEST, third), spread(2, LARGEST, third)
    limits = spread(1, FILE_LIMIT, wanted - len(pages) - len(inodes))
    yield from ({"options": f"size={PAGE * number},nr_inodes=10000"} for number in pages)
    yield from ({"options": f"size=64m,nr_inodes={number}"} for number in inodes)
    yield from ({"file_limit": number} for number in limits)


def spread(first: int, last: int, wanted: int) -> list[int]:
    """At most `wanted` different numbers from `first` to `last`, evenly."""
    return sorted({first + round(n * (last - first) / max(wanted - 1, 1)) for n in range(wanted)})


def main() -> None:
    """Cut at as many points as the command line says; in a mount namespace of its own, so it starts itself anew."""
    if "--inside" not in sys.argv:
        command = ["unshare", "-Urm", sys.executable, "-W", "ignore", "-m", "tests.faults.test_full_disk"]
        sys.exit(subprocess.run([*command, sys.argv[1], "--inside"], check=False).returncode)
    began, refused, done, warm = time.monotonic(), 0, 0, Warm()
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="salus-full-") as folder:
        for each in cuts(int(sys.argv[1])):
            error = cut(warm, Path(folder), **each)
            done, refused = done + 1, refused + bool(error)
    warm.close()
    assert refused > done / 3, f"only {refused} of {done} recordings were refused: the disks are too large"
    print(  # noqa: T201
        f"{done} cut points, {refused} recordings refused, {time.monotonic() - began:.0f} s: typed errors only, no "
        "dataset damaged"
    )


def test_a_full_disk_costs_a_typed_error_and_nothing_else() -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-Urm", "true"], check=False).returncode:
        pytest.skip("needs user namespaces (unshare -Urm), to mount a small disk")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.faults.test_full_disk", str(SUITE_CUTS)],
        cwd=Path(__file__).parents[2],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{SUITE_CUTS} cut points" in done.stdout


if __name__ == "__main__":
    main()
