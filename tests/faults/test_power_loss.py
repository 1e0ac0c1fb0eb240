"""T2, T3: after a power loss at any point, what was acknowledged is there whole, and nothing is there in part.

The operations of a whole recording session are replayed on a weak disk (`disk.py`), whole and with steps taken out.
`python -m tests.faults.test_power_loss 100000` looks at more states than the suite does.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .disk import Builder, Disk, Tree, digest
from .oplog import Operation, logged_script
from .test_crash_between_steps import check_plain_zarr_meanwhile, check_that_work_goes_on, check_what_is_there

STATES = 1500
MUTANT_STATES = 6000


class PromiseBrokenError(AssertionError):
    """A state after a power loss in which something that was promised does not hold."""


@dataclass
class Replay:
    """States after a power loss, each looked at once.

    Attributes:
        states: Different states that were looked at.
        points: Places in the log at which the power went.
    """

    folder: Path
    seed: int = 0
    resume_every: int = 25
    states: int = 0
    points: int = 0

    def run(self, operations: Sequence[Operation], *, most: int, backwards: bool = False) -> None:
        """Look at up to `most` states, spread over all points.

        Args:
            operations: The log.
            most: States.
            backwards: Begin at the acknowledgements, where most has been promised.
        """
        rng, seen = random.Random(self.seed), set()  # noqa: S311 - which states
        builder = Builder(self.folder)
        points = list(range(len(operations) + 1))
        if backwards:
            points.sort(key=lambda point: not (point and operations[point - 1].kind == "acknowledge"))
        each = max(2, most // len(points))
        for point in points:
            disk, events = Disk(), []
            for operation in operations[:point]:
                disk.apply(operation)
                if operation.event is not None:
                    events.append(operation.event)
            self.points += 1
            for kept, torn in disk.losses(rng, each):
                tree = disk.tree(kept, torn)
                mark = (digest(tree), len(events))
                if mark not in seen and self.states < most:
                    seen.add(mark)
                    self._look(builder, tree, events, point)

    def _look(self, builder: Builder, tree: Tree, events: list[tuple[str, dict[str, Any]]], point: int) -> None:
        self.states += 1
        builder.build(tree, self.folder / "state")
        path = self.folder / "state" / "data.zarr"
        try:
            committed = [details for event, details in events if event == "committed"]
            named = dict(events) | {"point": {"number": point}}
            if "created" in named:
                check_plain_zarr_meanwhile(path)
            check_what_is_there(path, named, committed)
            if self.states % self.resume_every == 0:
                check_that_work_goes_on(path, named)
        except Exception as error:
            where = f"power loss after operation {point}, state {self.states}, seed {self.seed}"
            raise PromiseBrokenError(f"{where}: {error!r}") from error
        finally:
            shutil.rmtree(self.folder / "state")


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> list[Operation]:
    return logged_script(tmp_path_factory.mktemp("log"))


def test_after_a_power_loss_what_was_acknowledged_is_there(operations: list[Operation], memory_path: Path) -> None:
    replay = Replay(memory_path)
    replay.run(operations, most=STATES)
    assert replay.points == len(operations) + 1
    assert replay.states > STATES / 2


def without(operations: Sequence[Operation], site: str) -> list[Operation]:
    """The log of a SALUS that does not sync there: the syncs under a function whose name ends so."""
    return [operation for operation in operations if not any(name.endswith(site) for name in operation.site)]


NEEDED = {
    "the contents of objects": "_write_temporary",
    "the names of new objects": "LocalStorage._place",
    "the names of folders": "LocalStorage.make_folder",
    "the contents of shards": "ShardWriter.finish",
    "the names of derived objects": "LocalStorage.put",
}


@pytest.mark.parametrize("site", NEEDED.values(), ids=NEEDED)
def test_without_a_sync_the_loss_is_found(operations: list[Operation], memory_path: Path, site: str) -> None:
    mutant = without(operations, site)
    assert len(mutant) < len(operations), f"nothing syncs in {site} any more"
    with pytest.raises(PromiseBrokenError):
        Replay(memory_path).run(mutant, most=MUTANT_STATES, backwards=True)


def test_an_acknowledgement_before_its_record_is_found(operations: list[Operation], memory_path: Path) -> None:
    place = next(n for n, operation in enumerate(operations) if operation.event and operation.event[0] == "committed")
    record = max(n for n in range(place) if operations[n].kind == "link" and "/log/" in operations[n].target)
    early = [*operations[:record], operations[place], *operations[record:place], *operations[place + 1 :]]
    with pytest.raises(PromiseBrokenError):
        Replay(memory_path).run(early, most=MUTANT_STATES, backwards=True)


def test_a_record_before_its_shards_is_found(operations: list[Operation], memory_path: Path) -> None:
    """All that is done to the log goes before what is done to the shards of the first episode."""
    first = next(n for n, operation in enumerate(operations) if operation.kind == "link" and "/c." in operation.target)
    end = next(n for n, operation in enumerate(operations) if operation.event and operation.event[0] == "committed")
    between = operations[first:end]
    log = [operation for operation in between if operation.path.startswith("data.zarr/_salus/log")]
    swapped = [*operations[:first], *log, *(each for each in between if each not in log), *operations[end:]]
    with pytest.raises(PromiseBrokenError):
        Replay(memory_path).run(swapped, most=MUTANT_STATES, backwards=False)


def main() -> None:
    """Look at as many states as the command line says, of one recording after another."""
    most, states, recordings, began = int(sys.argv[1]), 0, 0, time.monotonic()
    while states < most:
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="salus-power-") as name:
            replay = Replay(Path(name) / "states", seed=recordings)
            replay.run(logged_script(Path(name)), most=min(most - states, 20_000))
        states, recordings = states + replay.states, recordings + 1
    print(  # noqa: T201
        f"{states} states after power losses at {replay.points} points of {recordings} recordings, "
        f"{time.monotonic() - began:.0f} s: nothing acknowledged was lost, nothing was there in part"
    )


if __name__ == "__main__":
    main()
