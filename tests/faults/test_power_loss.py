"""T2, T3: after a power loss at any point, what was acknowledged is there whole, and nothing is there in part.

`salus.recover` then brings back what the journal held when its sync returned, and no episode that was discarded.

The operations of a whole recording session are replayed on a weak disk (`disk.py`), whole and with steps taken out.
`python -m tests.faults.test_power_loss 100000` looks at more states than the suite does.
"""

from __future__ import annotations

import itertools
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import salus
from salus.recorder.journal import NAME as JOURNAL
from salus.recorder.recovery import RecoveryReport
from salus.schema import STEP

from .disk import EXHAUSTIVE_UP_TO, Builder, Disk, Tree, digest, without
from .oplog import Operation, logged_script
from .scenario import DISCARDED, LENGTHS, STEPWISE, TICKS, WHOLE, make_script_episode
from .sharing import on_all_cores
from .test_crash_between_steps import (
    check_plain_zarr_meanwhile,
    check_script_episode,
    check_that_work_goes_on,
    check_what_is_there,
)

RESUME_EVERY = 25
RECOVER_AGAIN_EVERY = 8
SUITE_LOOKS_EVERY = 2
SUITE_RECOVERS_EVERY = 5
SUITE_LOOKS_TWO_EVERY = 6
HARMLESS_LOOKS_EVERY = 12
MAY_BE_GONE_AFTER = {1: "discarding", 2: "tagged"}
"""By slot: the episode that is discarded, and the one that is deleted after the last acknowledgement before that."""
SUITE_CHOICES = 3
SUITE_DRAWN = 2
DRAWN = 500


class PromiseBrokenError(AssertionError):
    """A state after a power loss in which something that was promised does not hold."""


@dataclass
class Replay:
    """States after a power loss, each looked at once.

    Attributes:
        folder: Where they are built.
        seed: Of what is drawn.
        look_every: One of so many is looked at. The others are taken for good.
        resume_every: Recording is resumed in one of so many states.
        recover_every: `salus.recover` runs in one of so many, before that.
        good: Digests of trees, with how much had been acknowledged: they are not looked at again.
        seen: What plain zarr and `salus.open` have looked at: digests of what they read, without journals.
        states: How many were looked at.
        salvaged: Episodes that were brought back in them.
        most: After so many, `run` returns.
    """

    folder: Path
    seed: int = 0
    look_every: int = 1
    resume_every: int = RESUME_EVERY
    recover_every: int = 1
    good: set[tuple[str, int]] = field(default_factory=set)
    seen: set[tuple[str, int]] = field(default_factory=set)
    states: int = 0
    salvaged: int = 0
    most: int = sys.maxsize

    def run(
        self, operations: Sequence[Operation], *, every_choice_up_to: int = 0, drawn: int = 0, hasty: bool = False
    ) -> bool:
        """Look at the states after each prefix of the log.

        Args:
            operations: The log.
            every_choice_up_to: Up to so many changes that are not durable, each choice of what is lost. The corners
                are looked at however many there are: all lost, none, one alone, all but one.
            drawn: Choices where there are more.
            hasty: Only right after acknowledgements, where most has been promised.

        Returns:
            Whether it came to the end before `most` states.
        """
        rng, builder = random.Random(self.seed), Builder(self.folder)  # noqa: S311 - which states
        disk, events = Disk(), list[tuple[str, dict[str, Any]]]()
        for point, operation in enumerate(operations, 1):
            disk.apply(operation)
            if operation.event is not None:
                events.append(operation.event)
            elif hasty:
                continue
            for kept, torn in disk.losses(rng, every_choice_up_to=every_choice_up_to, drawn=drawn):
                tree = disk.tree(kept, torn)
                mark = (digest(tree), len(events))
                if mark not in self.good:
                    if self.states == self.most:
                        return False
                    if len(self.good) % self.look_every == 0:
                        self._look(builder, tree, events, point)
                    self.good.add(mark)
        return True

    def _is_new(self, tree: Tree, acknowledged: int, hidden: str) -> bool:
        """Whether a reader who never looks into the folder `hidden` finds what was not looked at yet."""
        mark = (digest(without(tree, f"data.zarr/{hidden}")), acknowledged)
        is_new = mark not in self.seen
        self.seen.add(mark)
        return is_new

    def _look(self, builder: Builder, tree: Tree, events: list[tuple[str, dict[str, Any]]], point: int) -> None:
        self.states += 1
        builder.build(tree, self.folder / "state")
        try:
            self._check(self.folder / "state" / "data.zarr", tree, events)
        except Exception as error:
            where = f"power loss after operation {point}, state {self.states}, seed {self.seed}"
            raise PromiseBrokenError(f"{where}: {error!r}") from error
        finally:
            shutil.rmtree(self.folder / "state")

    def _check(self, path: Path, tree: Tree, events: list[tuple[str, dict[str, Any]]]) -> None:
        committed = [details for event, details in events if event == "committed"]
        named = dict(events) | {"state": {"number": self.states}}
        if "created" in named and self._is_new(tree, -1, "_salus"):
            check_plain_zarr_meanwhile(path)
            check_plain_zarr_meanwhile(path, use_consolidated=False)
        if "created" not in named or self._is_new(tree, len(events), "_salus/journal"):
            check_what_is_there(path, named, committed)
        if "created" in named and self.states % self.recover_every == 0:
            self.salvaged += recover_and_check(path, events, again=self.states % RECOVER_AGAIN_EVERY == 0)
        if self.states % self.resume_every == 0:
            check_that_work_goes_on(path, named)


class ReplayOfTwo(Replay):
    """The same of `two_writers` of oplog.py: what one writer published and tagged of the other is in the log."""

    def _check(self, path: Path, tree: Tree, events: list[tuple[str, dict[str, Any]]]) -> None:
        happened = {event for event, _ in events}
        if "created" not in happened:
            return
        check_plain_zarr_meanwhile(path)
        dataset = salus.open(path)
        seeds = {entry.slot: dataset[entry.uid].metadata["seed"] for entry in dataset.episodes}
        shown = np.flatnonzero(zarr.open_group(path, mode="r")["episode_length"][:])
        assert set(shown.tolist()) <= set(seeds), "plain zarr shows an episode that the log does not hold"
        assert "published" not in happened or seeds == {0: WHOLE}
        assert "tagged" not in happened or dataset.tags() == ["first"]
        for name in dataset.tags():
            assert {entry.slot for entry in salus.open(path, tag=name).episodes} <= set(seeds), "only the tag holds it"
        for entry in dataset.episodes:
            check_script_episode(dataset[entry.uid], WHOLE)


def recover_and_check(path: Path, events: Sequence[tuple[str, dict[str, Any]]], *, again: bool = True) -> int:
    """Recover, and see that each episode ends as it must; returns how many were salvaged.

    Args:
        path: The dataset.
        events: What was acknowledged.
        again: See that recovering once more finds nothing to do.
    """
    happened = {event for event, _ in events}
    deleted = salus.open(path)._snapshot.overlays.keys()
    report = salus.recover(path)
    assert report.left == [], report.left
    dataset = salus.open(path)
    assert dataset.unfinished() == []
    entries = {entry.slot: entry for entry in dataset.episodes}
    seeds = {entry.slot: dataset[entry.uid].metadata["seed"] for entry in entries.values()}
    assert len(set(seeds.values())) == len(seeds), "an episode is there twice"
    assert "discarded" not in happened or DISCARDED not in seeds.values(), "a discarded episode came back"
    for slot, entry in entries.items():
        episode = dataset[entry.uid]
        counts = len(episode), len(episode["q"])
        assert counts == (entry.num_steps, entry.length("joints"))
        assert entry.status == "salvaged" or counts == (LENGTHS[seeds[slot]], TICKS[seeds[slot]])
        for name, values in make_script_episode(seeds[slot]).items():
            found = episode[name][:]
            np.testing.assert_array_equal(found, values[: len(found)])
    statuses = {entry.uid: entry.status for entry in entries.values()}
    for event, details in events:
        if event == "committed" and (details["seed"] != STEPWISE or "tagged" not in happened):
            assert details["uid"] in deleted or statuses[details["uid"]] == "committed"
    journalled = {
        (details["slot"], details["clock"]): details["steps"] for event, details in events if event == "journalled"
    }
    for (slot, clock), steps in journalled.items():
        if slot in entries:
            assert entries[slot].length(clock) >= steps, f"slot {slot}: {steps} steps of {clock} were journalled"
        else:
            gone = MAY_BE_GONE_AFTER.get(slot) in happened or (slot, STEP) not in journalled
            assert gone, f"slot {slot}: {steps} steps of {clock} were journalled, none came back"
    if again:
        assert salus.recover(path) == RecoveryReport(())
    return len(report.salvaged)


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> list[Operation]:
    return logged_script(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def good(operations: list[Operation]) -> set[tuple[str, int]]:
    """The states of the unbroken log, in which all holds: a mutant is looked at where it differs from them."""
    with replaying(look_every=SUITE_LOOKS_EVERY, recover_every=SUITE_RECOVERS_EVERY) as replay:
        replay.run(operations, every_choice_up_to=SUITE_CHOICES, drawn=SUITE_DRAWN)
    assert replay.states > 1000
    assert replay.salvaged > 20
    return replay.good


@contextmanager
def replaying(kind: type[Replay] = Replay, **more: Any) -> Iterator[Replay]:
    """A replay in memory, where there is a file system in memory."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a fresh private directory is made in it
    with tempfile.TemporaryDirectory(dir=memory, prefix="salus-power-") as folder:
        yield kind(Path(folder) / "states", **more)


def test_after_a_power_loss_what_was_acknowledged_is_there(
    operations: list[Operation], good: set[tuple[str, int]]
) -> None:
    acknowledgements = sum(operation.event is not None for operation in operations)
    assert {acknowledged for _, acknowledged in good} == set(range(acknowledgements + 1))
    assert len(good) > 1000


_SYNCING = ("storage.", "shards.", "log.", "recorder.files.", "recorder.journal.")


def mutants(operations: Sequence[Operation]) -> dict[str, list[Operation]]:
    """The logs of a SALUS that does not sync under one of its functions; of functions that are the same, the innermost.

    Syncs of files and of folders are taken out one kind at a time.
    """
    found: dict[frozenset[int], str] = {}
    for kind in ("sync", "sync folder"):
        names = dict.fromkeys(name for operation in operations for name in operation.site)
        for name in (name for name in names if name.startswith(_SYNCING)):
            gone = frozenset(
                n for n, operation in enumerate(operations) if operation.kind == kind and name in operation.site
            )
            if gone:
                found.setdefault(gone, f"{kind}: {name}")
    return {name: [o for n, o in enumerate(operations) if n not in gone] for gone, name in found.items()}


def look_at(
    mutant: Sequence[Operation], good: set[tuple[str, int]], *, whole: bool = False, look_every: int = 1
) -> None:
    """Raises PromiseBrokenError where a promise does not hold after an acknowledgement; `whole`: or anywhere else."""
    known = set(good)
    for hasty in (True, False) if whole else (True,):
        with replaying(good=known, resume_every=1, look_every=look_every) as replay:
            replay.run(mutant, hasty=hasty)


NEEDED_BY_TWO = "sync folder: storage.local.LocalStorage.sync"
"""One writer has made all durable itself that it reads; it takes another one to show what this sync is for."""


def test_without_any_one_sync_a_promise_breaks(operations: list[Operation], good: set[tuple[str, int]]) -> None:
    survived = set()
    for name, mutant in mutants(operations).items():
        try:
            look_at(mutant, good)
        except PromiseBrokenError:
            continue
        survived.add(name)
    assert survived == {NEEDED_BY_TWO}


def test_what_one_writer_read_of_another_is_durable_before_it_is_published_or_tagged(tmp_path: Path) -> None:
    log = logged_script(tmp_path, script="two writers")
    with replaying(ReplayOfTwo, look_every=SUITE_LOOKS_TWO_EVERY) as replay:
        replay.run(log)
    assert replay.states > 100
    with replaying(ReplayOfTwo, good=replay.good) as mutant, pytest.raises(PromiseBrokenError):
        mutant.run(mutants(log)[NEEDED_BY_TWO])


def test_an_acknowledgement_before_its_record_is_found(operations: list[Operation], good: set[tuple[str, int]]) -> None:
    place = next(n for n, operation in enumerate(operations) if operation.event and operation.event[0] == "committed")
    record = max(n for n in range(place) if operations[n].kind == "link" and "/log/" in operations[n].target)
    early = [*operations[:record], operations[place], *operations[record:place], *operations[place + 1 :]]
    with pytest.raises(PromiseBrokenError):
        look_at(early, good, whole=True)


def _replaced(operations: Sequence[Operation]) -> list[tuple[int, int, str]]:
    """Where each file is written, put in place by a rename, and made durable there: first, end, and its path."""
    found = []
    for place, operation in enumerate(operations):
        if operation.kind == "rename":
            first = next(n for n in range(place, -1, -1) if operations[n].kind == "create")
            assert operations[first].path == operation.path
            above = operation.target.rpartition("/")[0]
            end = place + 1 + (operations[place + 1].kind == "sync folder" and operations[place + 1].path == above)
            found.append((first, end, operation.target.removeprefix("data.zarr/")))
    return found


def _publishing(operations: Sequence[Operation], rank: Callable[[str], int]) -> list[Operation]:
    """Files that are replaced one right after another are replaced in the order of `rank` instead."""
    mutant, written = list[Operation](), 0
    runs = list[list[tuple[int, int, str]]]()
    for first, end, path in _replaced(operations):
        if not runs or runs[-1][-1][1] != first:
            runs.append([])
        runs[-1].append((first, end, path))
    for run in runs:
        mutant += operations[written : run[0][0]]
        for first, end, _ in sorted(run, key=lambda each: rank(each[2])):
            mutant += operations[first:end]
        written = run[-1][1]
    return [*mutant, *operations[written:]]


def _journal_first(operations: Sequence[Operation]) -> list[Operation]:
    """Each time, the journal is made durable before the shards that it points into, instead of after them."""
    mutant = list(operations)
    for place, operation in enumerate(operations):
        if operation.kind == "sync" and operation.path.endswith(f"/{JOURNAL}"):
            first = place
            while mutant[first - 1].path == operation.path and mutant[first - 1].kind == "write":
                first -= 1
            shards = first
            while mutant[shards - 1].kind == "sync" and mutant[shards - 1].path.endswith(".shard"):
                shards -= 1
            mutant[shards : place + 1] = [*mutant[first : place + 1], *mutant[shards:first]]
    return mutant


def _record_first(operations: Sequence[Operation]) -> list[Operation]:
    """All that is done to the log goes before what is done to the shards of the first episode."""
    first = next(n for n, operation in enumerate(operations) if operation.kind == "link" and "/c." in operation.target)
    end = next(n for n, operation in enumerate(operations) if operation.event and operation.event[0] == "committed")
    between = operations[first:end]
    log = [operation for operation in between if operation.path.startswith("data.zarr/_salus/log")]
    return [*operations[:first], *log, *(each for each in between if each not in log), *operations[end:]]


def _root_first(path: str) -> int:
    return path != "zarr.json"


def _root_before_arrays(path: str) -> int:
    return 0 if not path.endswith("zarr.json") else 1 if path == "zarr.json" else 2


def _length_before_shapes(path: str) -> int:
    return 0 if not path.endswith("zarr.json") else 1 if path == "episode_length/zarr.json" else 2


ORDERS: dict[str, Callable[[Sequence[Operation]], list[Operation]]] = {
    "record before its shards": _record_first,
    "journal before the chunks that it points to": _journal_first,
    "root before the rows": lambda log: _publishing(log, _root_first),
    "root before the arrays": lambda log: _publishing(log, _root_before_arrays),
    "episode_length before the shapes of the others": lambda log: _publishing(log, _length_before_shapes),
}
HARMLESS = {
    "journal before the chunks that it points to": "both are durable before anything is promised, and a recoverer "
    "takes a step only where its chunk is there and its checksum holds",
    "root before the arrays": "who opens the root reads all shapes there; who opens an array is behind until the next "
    "publisher, which compares the metadata of every array",
}
"""Orders that make no difference to any promise, and why."""


@pytest.mark.parametrize("name", ORDERS)
def test_a_swapped_order_breaks_a_promise(operations: list[Operation], good: set[tuple[str, int]], name: str) -> None:
    mutant = ORDERS[name](operations)
    assert mutant != operations
    assert sorted(map(repr, mutant)) == sorted(map(repr, operations))
    if name in HARMLESS:
        look_at(mutant, good, whole=True, look_every=HARMLESS_LOOKS_EVERY)
    else:
        with pytest.raises(PromiseBrokenError):
            look_at(mutant, good, whole=True)


def replay_share(first: int, of: int, most: int) -> tuple[int, int, int, int]:
    """Look at `most` different states of every `of`-th recording from `first` on.

    Returns:
        Operations of the last recording, recordings, those of which every choice was looked at, episodes salvaged.
    """
    states = salvaged = whole = 0
    for recordings, seed in enumerate(itertools.count(first, of), 1):
        with replaying(seed=seed, most=most - states) as replay:
            operations = logged_script(replay.folder.parent)
            whole += replay.run(operations, every_choice_up_to=EXHAUSTIVE_UP_TO, drawn=DRAWN)
        states, salvaged = states + replay.states, salvaged + replay.salvaged
        if states == most:
            return len(operations), recordings, whole, salvaged
    raise AssertionError


def main() -> None:
    """Look at as many different states as the command line says, of recordings on all cores."""
    most, began = int(sys.argv[1]), time.monotonic()
    operations, recordings, whole, salvaged = zip(*on_all_cores(replay_share, most), strict=True)
    print(  # noqa: T201
        f"{most} different states after power losses at the {operations[0]} operations of {sum(recordings)} recordings "
        f"({sum(whole)} with every choice of what is lost, up to {EXHAUSTIVE_UP_TO} changes), "
        f"{time.monotonic() - began:.0f} s: nothing acknowledged was lost, nothing was there in part; "
        f"recovered in each, {sum(salvaged)} episodes salvaged, with all that their journals held for sure"
    )


if __name__ == "__main__":
    main()
