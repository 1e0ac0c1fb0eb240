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
from .sharing import AGAIN_EVERY, Kinds, on_all_cores
from .test_crash_between_steps import check_plain_zarr_meanwhile, check_that_work_goes_on, check_what_is_there

CODES = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EMFILE, errno.EROFS, errno.ESTALE, errno.EACCES)
EVERY = 3  # calls, of which the suite lets one fail
PARTS = 4


def inject(warm: Warm, path: Path, number: int, code: int, kinds: Kinds, *, lasting: bool) -> bool:
    """One recording with one injected error, and what must hold after it; False where the script has fewer calls.

    Plain zarr looks at it, and recording goes on in it, where `kinds` says that this is due.
    """
    answer = warm.ask(fail_at=number, errno=code, lasting=lasting, path=path)
    about = f"call {number}, {errno.errorcode[code]}, {'lasting' if lasting else 'once'}: {answer}"
    assert answer["status"] == 0, about
    events = dict(answer["acknowledged"]) | {"about": {"about": about}}
    assert "raised" not in events, about
    committed = [details for event, details in answer["acknowledged"] if event == "committed"]
    due = kinds.is_due(path, (event for event, _ in answer["acknowledged"]))
    if due and "created" in events:
        check_plain_zarr_meanwhile(path)
    check_what_is_there(path, events, committed)
    if due:
        check_that_work_goes_on(path, events)
    shutil.rmtree(path)
    return number <= len(answer["calls"])


def injections(first: int, every: int) -> Iterator[tuple[int, int, bool]]:
    """Number of the call, error, and whether it lasts, without an end."""
    for turn, number in enumerate(itertools.count(first, every)):
        yield number, CODES[(first + turn) % len(CODES)], turn % 2 == 0


@pytest.mark.parametrize("part", range(PARTS))
def test_a_refused_call_costs_a_typed_error_and_nothing_else(warm: Warm, memory_path: Path, part: int) -> None:
    count, kinds = 0, Kinds()
    for number, code, lasting in injections(1 + part * EVERY, PARTS * EVERY):
        if not inject(warm, memory_path / f"{number}.zarr", number, code, kinds, lasting=lasting):
            break
        count += 1
    assert count > 20, "the script has become shorter than this test thinks"


def inject_share(first: int, of: int, wanted: int) -> int:
    """Inject errors: every `of`-th call from `first` on, with every error, once and lasting, over and over.

    Returns:
        Kinds of states that came of it.
    """
    done, turns, warm, kinds = 0, 0, Warm(), Kinds()
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="salus-errors-") as folder:
        while done < wanted:
            for code, lasting in itertools.product(CODES, (False, True)):
                number, turns = 1 + (first + turns) % of, turns + 1  # so that each process comes to all calls
                path = Path(folder) / "data.zarr"
                while done < wanted and inject(warm, path, number, code, kinds, lasting=lasting):
                    number, done = number + of, done + 1
    warm.close()
    return len(kinds.looked_at)


def main() -> None:
    """Inject as many errors as the command line says, on all cores."""
    wanted, began = int(sys.argv[1]), time.monotonic()
    kinds = on_all_cores(inject_share, wanted)
    print(  # noqa: T201
        f"{wanted} errors injected, {time.monotonic() - began:.0f} s: typed errors only, no dataset damaged; "
        f"resumed and read by plain zarr in each of {sum(kinds)} kinds of states, and in 1 of {AGAIN_EVERY} of the rest"
    )


if __name__ == "__main__":
    main()
