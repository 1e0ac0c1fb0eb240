"""T8: the actors of the protocol in any order, any of them crashing at any step.

Writers, recoverers that take the living for dead, checkpointers, publishers, editors, taggers and readers. A schedule
is drawn from a seed, which a failure names, with its steps. `python -m tests.faults.test_interleavings 50000` runs more
of them than the suite does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

import salus
from salus import documents
from salus.codecs import crc32c, decode_chunk
from salus.errors import AlreadyExistsError
from salus.layout import claim_key, record_key, recorded_arrays
from salus.log import publish as publishing
from salus.log import snapshot as snapshots
from salus.log.amendments import Amendment, append_amendment
from salus.log.claims import claim_slot
from salus.log.publish import publish
from salus.log.records import Record
from salus.log.revisions import put_revision
from salus.log.snapshot import Snapshot, load, write_checkpoint
from salus.log.tags import put_tag, read_tag
from salus.recorder.uids import new_uid
from salus.schema import STEP, length_name
from salus.shards import ShardInfo
from salus.storage.publication import Publication

from .stepping import MemoryObjects, MemoryStorage, Schedule

SCHEMA = salus.Schema({"states": salus.Feature((1,))}, rate_hz=10, segment_steps=2)
CLOCKS_SCHEMA = salus.Schema(
    {"states": salus.Feature((1,)), "q": salus.Feature((1,), clock="joints")},
    rate_hz=10,
    segment_steps=2,
    clocks={"joints": 20},
)
SHARD = b"shard"  # nobody looks into it here
SCHEDULES = 500


@dataclass
class World:
    """What the actors know of each other: what was acknowledged, and what was at least tried."""

    storage: MemoryStorage
    schema: salus.Schema = SCHEMA
    committed: dict[str, int] = field(default_factory=dict)
    deleting: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    tags: dict[str, list[str]] = field(default_factory=dict)


def put_shards(world: World, slot: int, lengths: dict[str, int]) -> tuple[ShardInfo, ...]:
    """The shards of an episode with so many steps on each clock."""
    keys = [
        spec.shard_key(slot, segment)
        for spec in recorded_arrays(world.schema)
        for segment in range(spec.segments(lengths[spec.clock]))
    ]
    for key in keys:
        world.storage.put_new(key, SHARD)
    return tuple(ShardInfo(key, len(SHARD), crc32c(SHARD), hashlib.sha256(SHARD).hexdigest()) for key in keys)


def put_episode(world: World, slot: int, uid: str, num_steps: int, ticks: int) -> None:
    """Shards and record of an episode; `ticks` on each clock but that of the steps."""
    clocks = dict.fromkeys(world.schema.clocks, ticks)
    shards = put_shards(world, slot, {STEP: num_steps, **clocks})
    record = Record(slot, uid, "committed", num_steps=num_steps, clock_lengths=clocks, shards=shards)
    world.storage.put_new(record_key(slot), record.to_bytes())


def writer(world: World, episodes: int) -> None:
    hint = 0
    for _ in range(episodes):
        uid = new_uid()
        slot = claim_slot(world.storage, uid, hint=hint)
        hint = slot + 1
        try:
            put_episode(world, slot, uid, num_steps=1 + slot % 2, ticks=3 * slot % 5)
        except AlreadyExistsError:
            continue  # fenced: a recoverer took it for dead
        world.committed[uid] = slot


def recoverer(world: World) -> None:
    """Takes everybody without a record for dead, the living as well: that must cost them their episode, never more."""
    snapshot = load(world.storage)
    for slot in [*snapshot.open_slots, snapshot.num_slots, snapshot.num_slots + 1]:
        claim = world.storage.get(claim_key(slot))
        if claim is not None:
            uid = documents.unseal(claim, key=claim_key(slot))["uid"]
            with contextlib.suppress(AlreadyExistsError):  # it was faster
                world.storage.put_new(record_key(slot), Record(slot, uid, "aborted", reason="dead").to_bytes())


def checkpointer(world: World) -> None:
    known = None
    for _ in range(2):
        known = load(world.storage, known)
        write_checkpoint(world.storage, known)


def publisher(world: World, times: int) -> None:
    known = None
    for _ in range(times):
        known = publish(world.storage, known=known)


def editor(world: World, change: Callable[[World, str], Amendment]) -> None:
    for _ in range(2):
        snapshot = load(world.storage)
        uids = [entry.uid for entry in snapshot.entries]
        if uids:
            amendment = change(world, uids[len(snapshot.amendments) % len(uids)])
            append_amendment(world.storage, amendment, next_number=len(snapshot.amendments))
            done = world.deleted if amendment.change == "delete" else world.failed
            done.update(amendment.uids)


def deletion(world: World, uid: str) -> Amendment:
    world.deleting.add(uid)
    return Amendment((uid,), "delete")


def correction(world: World, uid: str) -> Amendment:
    world.failing.add(uid)
    return Amendment((uid,), "outcome", salus.Outcome("failure").to_json())


def tagger(world: World, name: str) -> None:
    snapshot = load(world.storage)
    try:
        put_tag(world.storage, name, snapshot, author="")
    except AlreadyExistsError:
        assert name in world.storage.list("_salus/tags") or read_tag(world.storage, name)
    else:
        world.tags[name] = [entry.uid for entry in snapshot.entries]


def reader(world: World) -> None:
    known: Snapshot | None = None
    for turn in range(3):
        committed, deleted, failed = set(world.committed), set(world.deleted), set(world.failed)
        snapshot = load(world.storage, known if turn % 2 else None)
        check_view(world, snapshot, committed, deleted, failed)
        if known is not None:
            check_growth(known, snapshot)
        known = snapshot
        for name, uids in list(world.tags.items()):
            assert [entry.uid for entry in read_tag(world.storage, name).entries] == uids


def check_view(world: World, snapshot: Snapshot, committed: set[str], deleted: set[str], failed: set[str]) -> None:
    """A snapshot holds all that was acknowledged before it was loaded, and nothing in part."""
    entries = {entry.uid: entry for entry in snapshot.entries if not snapshot.overlays.get(entry.uid, _NONE).deleted}
    assert len({entry.slot for entry in entries.values()}) == len(entries)
    assert committed - world.deleting <= set(entries), "an acknowledged episode is missing"
    assert not deleted & set(entries), "a deleted episode is back"
    for entry in entries.values():
        assert entry.status == "committed"
        for spec in recorded_arrays(world.schema):
            segments = range(spec.segments(entry.length(spec.clock)))
            assert all(spec.shard_key(entry.slot, segment) in world.storage.objects for segment in segments)
        assert entry.uid not in failed or entry.outcome.result == "failure"
        assert entry.uid in world.failing or entry.outcome.result == "unknown"


_NONE = snapshots.Overlay()


def check_growth(before: Snapshot, after: Snapshot) -> None:
    then, now = set(before.decided.column("uid")), set(after.decided.column("uid"))
    assert then <= now, "a decided slot is gone"
    assert after.amendments[: len(before.amendments)] == before.amendments


class PlainReader:
    """What plain Zarr readers see in every state: rows of whole episodes only, and an extent that never shrinks."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self._objects = objects
        self._extent = 0

    def look(self) -> None:
        if "zarr.json" not in self._objects:
            return
        arrays = json.loads(self._objects["zarr.json"])["consolidated_metadata"]["metadata"]
        slots = arrays["episode_length"]["shape"][0]
        assert slots >= self._extent, "the published extent shrank"
        self._extent = slots
        for slot, (num_steps, text) in enumerate(zip(*rows_of(self._objects, slots), strict=True)):
            if num_steps:
                record = Record.from_bytes(self._objects[record_key(slot)], slot)
                assert (record.status, record.num_steps) == ("committed", num_steps)
                assert text, "a row with a length has no metadata"
                assert json.loads(text)["uid"] == record.uid
                assert num_steps <= arrays["states"]["shape"][1]
                for clock, ticks in record.clock_lengths.items():
                    assert index_of(self._objects, length_name(clock), 0, slots)[slot] == ticks, "two moments in a row"
                    assert ticks <= arrays["q"]["shape"][1]


def rows_of(objects: dict[str, bytes], slots: int) -> tuple[list[int], list[str]]:
    """The index rows up to the published extent."""
    return index_of(objects, "episode_length", 0, slots), index_of(objects, "episode_metadata", "", slots)


def index_of(objects: dict[str, bytes], name: str, empty: Any, slots: int) -> list[Any]:
    """The rows of one index array up to the published extent."""
    body = objects.get(f"{name}/c.0")
    values = [] if body is None else decode_chunk(publishing._index_spec(name), body).tolist()
    return [*values, *[empty] * slots][:slots]


def run_schedule(seed: int, names: Sequence[str] = ()) -> int:
    """One schedule, and what must hold in it and after it; returns the number of its steps.

    Args:
        seed: Of the order, of the actors where none are named, and of whether there is a lock.
        names: Actors, besides one writer.
    """
    schedule = Schedule(seed)
    kind = (MemoryStorage, MemoryObjects)[seed // 2 % 2]
    world = World(kind(schedule), (SCHEMA, CLOCKS_SCHEMA)[seed % 2])
    world.storage.watch = PlainReader(world.storage.objects).look
    put_revision(world.storage, 0, world.schema)  # before anybody else
    random, actors = schedule.random, actors_of(world)
    for name in names or random.sample(sorted(actors), random.randint(2, 6)):
        schedule.add(name, actors[name], may_crash=not name.startswith("reader"))
    schedule.add("writer", lambda: writer(world, 2), may_crash=True)
    schedule.run()
    check_the_end(world)
    return len(schedule.steps)


def actors_of(world: World) -> dict[str, Callable[[], None]]:
    return {
        "writer 1": lambda: writer(world, 2),
        "writer 2": lambda: writer(world, 1),
        "recoverer 1": lambda: recoverer(world),
        "recoverer 2": lambda: recoverer(world),
        "checkpointer 1": lambda: checkpointer(world),
        "checkpointer 2": lambda: checkpointer(world),
        "publisher 1": lambda: publisher(world, 2),
        "publisher 2": lambda: publisher(world, 1),
        "deleter": lambda: editor(world, deletion),
        "corrector": lambda: editor(world, correction),
        "tagger 1": lambda: tagger(world, "first"),
        "tagger 2": lambda: tagger(world, "first"),
        "reader 1": lambda: reader(world),
        "reader 2": lambda: reader(world),
    }


def check_the_end(world: World) -> None:
    """When all have ended or crashed: nothing acknowledged is missing, and publishing brings everything up to date."""
    reader(world)
    writer(world, 1)  # work goes on
    publish(world.storage)
    reader(world)
    after = dict(world.storage.objects)
    publish(world.storage, whole=True)
    changed = {key for key, body in world.storage.objects.items() if after.get(key) != body}
    assert not changed, f"publishing only what changed left {changed} behind"
    snapshot = load(world.storage, Snapshot())  # without any checkpoint
    assert snapshot.entries.column("uid") == load(world.storage).entries.column("uid")
    lengths, _ = rows_of(world.storage.objects, snapshot.num_slots)
    visible = [snapshot.visible(slot) for slot in range(snapshot.num_slots)]
    assert lengths == [entry.num_steps if entry is not None else 0 for entry in visible]
    for clock in world.schema.clocks:
        ticks = index_of(world.storage.objects, length_name(clock), 0, snapshot.num_slots)
        assert ticks == [entry.length(clock) if entry is not None else 0 for entry in visible]


@pytest.fixture(autouse=True)
def checkpoints_from_the_first_record_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "CHECKPOINT_MIN_RECORDS", 1)


@pytest.mark.parametrize("part", range(4))
def test_any_interleaving_of_the_protocol(part: int) -> None:
    for seed in range(part, SCHEDULES, 4):
        run_named(seed)


@pytest.mark.parametrize(("steps", "ticks"), [((1, 2), (0, 0)), ((2, 1), (3, 5))], ids=["steps", "another clock"])
def test_a_late_episode_that_is_longer_than_all_published_ones(steps: tuple[int, int], ticks: tuple[int, int]) -> None:
    """Its row lies within the published extent of slots, but not of steps. Schedule 3383 found it."""
    world = World(MemoryStorage(Schedule(0)), CLOCKS_SCHEMA)
    world.storage.watch = PlainReader(world.storage.objects).look
    put_revision(world.storage, 0, world.schema)
    late, early = claim_slot(world.storage, new_uid()), claim_slot(world.storage, new_uid())
    for slot, num_steps, num_ticks in zip((early, late), steps, ticks, strict=True):
        put_episode(world, slot, new_uid(), num_steps, num_ticks)
        publish(world.storage)
    assert rows_of(world.storage.objects, 2)[0] == [steps[1], steps[0]]
    assert index_of(world.storage.objects, "joints.episode_length", 0, 2) == [ticks[1], ticks[0]]


def run_named(seed: int, names: Sequence[str] = ()) -> int:
    try:
        return run_schedule(seed, names)
    except BaseException as error:
        error.add_note(f"schedule {seed}")
        raise


# --- the checks find what they are there for ------------------------------------------------------------------------


def overwriting(storage: MemoryStorage, key: str, body: bytes) -> None:
    storage._schedule.step(f"put_new {key}")
    storage.objects[key] = body


def forgets_open_slots(snapshot: Snapshot, mark: dict[str, Any] | None) -> list[int]:
    slots = snapshot.decided.numbers("slot").tolist()
    return [slot for slot in slots if mark is None or slot >= mark["slots"]]


def unlocked(storage: MemoryStorage) -> Any:
    storage._schedule.step("no lock")
    return contextlib.nullcontext()


def without_rehearsal(publication: Publication, publish: Any) -> Any:
    """Versions are read after the log."""
    publication._rehearses = False
    publication._version = lambda key: publication._known.setdefault(key, publication._storage.get_version(key))  # type: ignore[method-assign]
    return publish(publication)


def lengths_only(writer: Any, rows: list[int], *, whole: bool) -> None:
    writer._put_index(publishing.LENGTH, rows, whole=whole)
    writer._put_index(publishing.METADATA, rows, whole=whole)


BUSY = ("publisher 1", "publisher 2", "writer 1", "writer 2")


@pytest.mark.parametrize(
    ("target", "name", "mutant"),
    [
        (MemoryStorage, "put_new", overwriting),
        (MemoryStorage, "lock", unlocked),
        (Publication, "run", without_rehearsal),
        (publishing, "_changed_rows", forgets_open_slots),
        (publishing._RowWriter, "put_index", lengths_only),
        (snapshots, "_read_new_records", lambda *_: True),
    ],
    ids=[
        "objects are overwritten",
        "no lock",
        "versions read after the log",
        "open slots are forgotten",
        "length before metadata",
        "no new records",
    ],
)
def test_a_broken_protocol_is_found(target: Any, name: str, mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, name, mutant)
    is_of_objects = target is Publication
    with pytest.raises((AssertionError, KeyError, salus.SalusError)):
        for seed in range(4 * SCHEDULES):
            run_named(seed, ("publisher 2",) * 4 + ("writer 2",) * 2 if is_of_objects else BUSY)


def main() -> None:
    """Run as many schedules as the command line says, and say how many steps they had."""
    snapshots.CHECKPOINT_MIN_RECORDS = 1
    count, began = int(sys.argv[1]), time.monotonic()
    steps = sum(run_named(seed) for seed in range(count))
    print(f"{count} schedules, {steps} steps, {time.monotonic() - began:.0f} s: no rule was broken")  # noqa: T201


if __name__ == "__main__":
    main()
