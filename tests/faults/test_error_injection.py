"""T4: each call that changes files refused, once or from then on: a typed error, and a dataset that stays whole.

`python -m tests.faults.test_error_injection 20000` injects more errors than the suite does. EINTR is left out: Python
itself repeats what it interrupted, so no caller sees it.
"""

from __future__ import annotations

import errno
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .scenario import Warm
from .test_crash_between_steps import check_plain_zarr_meanwhile, check_that_work_goes_on, check_what_is_there

CODES = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EMFILE, errno.EROFS, errno.ESTALE, errno.EACCES)
EVERY = 3  # calls, of which the suite lets one fail
PARTS = 4


def inject(warm: Warm, path: Path, number: int, code: int, *, lasting: bool) -> bool:
    """One recording with one injected error, and what must hold after it; False where the script has fewer calls."""
    answer = warm.ask(fail_at=number, errno=code, lasting=lasting, path=path)
    about = f"call {number}, {errno.errorcode[code]}, {'lasting' if lasting else 'once'}: {answer}"
    assert answer["status"] == 0, about
    events = dict(answer["acknowledged"]) | {"about": {"about": about}}
    assert "raised" not in events, about
    committed = [details for event, details in answer["acknowledged"] if event == "committed"]
    if "created" in events:
        check_plain_zarr_meanwhile(path)
    check_what_is_there(path, events, committed)
    check_that_work_goes_on(path, events)
    shutil.rmtree(path)
    return number <= len(answer["calls"])


def injections(first: int, every: int) -> Iterator[tuple[int, int, bool]]:
    """Number of the call, error, and whether it lasts, without an end."""
    for turn, number in enumerate(itertools.count(first, every)):
        yield number, CODES[(first + turn) % len(CODES)], turn % 2 == 0


@pytest.mark.parametrize("part", range(PARTS))
def test_a_refused_call_costs_a_typed_error_and_nothing_else(warm: Warm, memory_path: Path, part: int) -> None:
    count = 0
    for number, code, lasting in injections(1 + part * EVERY, PARTS * EVERY):
        if not inject(warm, memory_path / f"{number}.zarr", number, code, lasting=lasting):
            break
        count += 1
    assert count > 20, "the script has become shorter than this test thinks"


def main() -> None:
    """Inject as many errors as the command line says: every call, with every error, once and lasting, over and over."""
    wanted, done, began, warm = int(sys.argv[1]), 0, time.monotonic(), Warm()
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="salus-errors-") as folder:
        while done < wanted:
            for code, lasting in itertools.product(CODES, (False, True)):
                number = 1
                while done < wanted and inject(warm, Path(folder) / "data.zarr", number, code, lasting=lasting):
                    number, done = number + 1, done + 1
    warm.close()
    print(  # noqa: T201
        f"{done} errors injected, {time.monotonic() - began:.0f} s: typed errors only, no dataset damaged"
    )


if __name__ == "__main__":
    main()
