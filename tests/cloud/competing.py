"""Writers and readers that compete for the same objects through a bad network, and what must be true of it afterwards.

Each thread notes what it tried and what it was told. What is in the store at the end, seen without the network between,
has to agree with all of them. What only one thread can know, such as that it has read an object before, it checks
itself.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import numpy as np

import salus
from salus import documents
from salus.codecs import crc32c, encode_chunk
from salus.errors import AlreadyExistsError, CommitUnknownError, RecordingError, SalusError, StorageError
from salus.layout import claim_key, record_key, recorded_arrays
from salus.log.claims import claim_slot, claimed_slots, read_claim
from salus.log.publish import publish
from salus.log.records import Record
from salus.log.snapshot import load
from salus.recorder.uids import new_uid
from salus.shards import ShardInfo, whole_shard
from salus.storage import ObjectStorage, Storage

SCHEMA = salus.Schema({"camera": salus.Image(height=4, width=5), "states": salus.Feature((3,))}, rate_hz=10)
DATASET = "data.zarr"
THREADS = 4  # of each process
COUNTERS = 3
LOG, FIRST, LAST = "_salus/log", "length/c.0", "zarr.json"
# How often each is tried, of all.
KINDS = {"put_new": 30, "put_new_many": 6, "put": 8, "replace": 10, "publication": 4, "claim_slot": 8, "episode": 4} | {
    "get": 10,
    "list": 8,
    "range": 12,
}
# One process leaves trying again to SALUS, the next one to obstore.
RETRIES = (
    {"max_retries": 0, "retry_timeout": timedelta(seconds=30)},
    {
        "max_retries": 4,
        "retry_timeout": timedelta(seconds=30),
        "backoff": {
            "init_backoff": timedelta(milliseconds=5),
            "max_backoff": timedelta(milliseconds=50),
            "base": 2,
        },
    },
)

Answer = TypeVar("Answer")


class Event(NamedTuple):
    """What was tried, and what became of it by what was said.

    Attributes:
        kind: One of KINDS.
        key: Of the object; "" where the answer says it.
        identity: What was to be written.
        told: "done", "exists", "unknown" (a `CommitUnknownError`), "refused" (another `RecordingError`), "unread" (a
            `StorageError`), or "stale" (another version was there).
        answer: A number or names that came with it.
    """

    kind: str
    key: str
    identity: str
    told: str
    answer: Any = None


def body_of(identity: str) -> bytes:
    """A body that names itself: each is different, and a part of it, or another's part, is told from it."""
    filling = random.Random(identity)  # noqa: S311
    return f"{identity}\n".encode() + filling.randbytes(filling.choice((0, 10, 1000, 30_000)))


def identity_of(body: bytes) -> str:
    """Raises AssertionError where the body is not whole."""
    identity = body.partition(b"\n")[0].decode(errors="replace")
    assert body == body_of(identity), f"torn: {body[:80]!r} with {len(body)} bytes"
    return identity


def competes(
    url: str, options: Mapping[str, Any], process: int, operations: int, seed: int, threads: int = THREADS
) -> list[Event]:
    """So many operations from several threads of this process; returns what each was told."""
    merged = {**options, "retry_config": RETRIES[process % len(RETRIES)]}
    storages = (ObjectStorage(url, merged), ObjectStorage(f"{url}/{DATASET}", merged))
    workers = [
        Worker(*storages, f"{seed}.{process}.{number}", operations // threads + (number < operations % threads))
        for number in range(threads)
    ]
    with ThreadPoolExecutor(threads) as pool:
        return [event for events in pool.map(Worker.run, workers) for event in events]


class Worker:
    """One thread: it draws operations by its name, and checks at once what only it can know."""

    def __init__(self, storage: ObjectStorage, dataset: ObjectStorage, name: str, operations: int) -> None:
        self._storage = storage
        self._dataset = dataset
        self._name = name
        self._operations = operations
        self._random = random.Random(name)  # noqa: S311 - the seed is in the name
        self._number = 0
        self._events: list[Event] = []
        self._seen: dict[str, str] = {}  # immutable objects: key to identity
        self._published: set[str] = set()  # what plain readers have seen
        self._committed: set[str] = set()

    def run(self) -> list[Event]:
        for number in range(self._operations):
            self._number = number
            kind = self._random.choices(list(KINDS), list(KINDS.values()))[0]
            getattr(self, f"_{kind}")()
            if self._events and self._events[-1].told not in ("done", "exists", "stale"):
                time.sleep(0.02)  # else most is tried while the network is away
        return self._events

    def _tries(
        self, kind: str, key: str, identity: str, call: Callable[[], Answer], *, note: bool = False
    ) -> Answer | None:
        """Try it, and note what was told; the answer only where it is done."""
        answer = None
        try:
            answer = call()
            told = "done"
        except SalusError as error:
            told = told_by(error)
        self._events.append(Event(kind, key, identity, told, answer if note else None))
        return answer

    def _fresh(self) -> str:
        return f"{self._name}.{self._number}"

    def _contested(self) -> str:
        """A key that the others try at about the same time."""
        return f"new/{self._random.randint(max(0, self._number - 4), self._number)}"

    # --- objects that are created once --------------------------------------------------------------------------

    def _put_new(self) -> None:
        key = self._contested()
        # One in eight has a body that others have as well, as recoverers do.
        identity = f"shared {key}" if self._random.random() < 1 / 8 else self._fresh()
        self._tries("put_new", key, identity, lambda: self._storage.put_new(key, body_of(identity)))
        self._notice(key, identity)

    def _put_new_many(self) -> None:
        objects = {self._contested(): f"{self._fresh()}.{number}" for number in range(6)}
        failed = self._storage.put_new_many({key: body_of(identity) for key, identity in objects.items()})
        assert failed.keys() <= objects.keys()
        for key, identity in objects.items():
            told = told_by(failed[key]) if key in failed else "done"
            self._events.append(Event("put_new_many", key, identity, told))
            self._notice(key, identity)

    def _notice(self, key: str, identity: str) -> None:
        told = self._events[-1].told
        if told == "done":
            assert self._seen.setdefault(key, identity) == identity, f"{key}: won by two"
        elif told == "exists":
            self._look(key)
            assert self._events[-1].told != "done" or key in self._seen, f"{key}: a false conflict, nothing is there"
            assert self._seen.get(key) != identity, f"{key}: a false conflict with itself"

    def _get(self) -> None:
        self._look(self._contested())

    def _look(self, key: str) -> None:
        body = self._tries("get", key, "", lambda: self._storage.get(key))
        if body is None:
            assert self._events[-1].told != "done" or key not in self._seen, f"{key}: it was there, and has gone"
            return
        identity = identity_of(body)
        assert self._seen.setdefault(key, identity) == identity, f"{key}: it has changed"

    def _range(self) -> None:
        if not self._seen:
            return
        key = self._random.choice(list(self._seen)[-50:])
        whole = body_of(self._seen[key])
        start = self._random.randrange(len(whole))
        size = self._random.randint(1, len(whole))

        def read() -> bytes:
            shard = self._storage.open_shard(key)
            assert shard is not None, f"{key}: it was there, and has gone"
            assert shard.size == len(whole)
            if self._random.random() < 0.5:
                shard.prefetch(start, size)
            return shard.read(start, size)

        part = self._tries("range", key, "", read)
        assert part is None or part == whole[start : start + size], f"{key}: another part was read"

    def _list(self) -> None:
        seen = {key.rpartition("/")[2] for key in self._seen}
        found = self._tries("list", "new", "", lambda: self._storage.list("new"))
        if found is not None:
            assert len(found) == len(set(found)), "listed twice"
            assert seen <= set(found), f"not listed: {seen - set(found)}"

    # --- objects that are replaced --------------------------------------------------------------------------------

    def _put(self) -> None:
        """Of this thread alone."""
        key, identity = f"derived/{self._name}", self._fresh()
        self._tries("put", key, identity, lambda: self._storage.put({key: body_of(identity)}))

    def _replace(self) -> None:
        """Each version says which one it came after."""
        key = f"counters/{self._random.randrange(COUNTERS)}"
        identity = json.dumps([self._fresh(), ""])
        try:
            found = self._storage.get_version(key)
            assert found is None or found[0], f"{key}: torn: nothing is in it"
            identity = json.dumps([self._fresh(), json.loads(found[0])[0] if found else ""])
            version = self._storage.replace(key, identity.encode(), None if found is None else found[1])
            told = "stale" if version is None else "done"
        except SalusError as error:
            told = told_by(error)
        self._events.append(Event("replace", key, identity, told))

    def _publication(self) -> None:
        name = self._fresh()
        self._tries("put_new", f"{LOG}/{name}", name, lambda: self._storage.put_new(f"{LOG}/{name}", body_of(name)))
        is_there = self._events[-1].told == "done"
        names = self._tries("publication", "", name, lambda: self._storage.publication(publish_names), note=True)
        assert names is None or not is_there or name in names, "published without what was there before"
        last = self._read_names(LAST)
        first = self._read_names(FIRST)
        if last is not None:
            assert self._published <= last, "what was published has gone"
            self._published = last
            assert first is None or last <= first, "the last object is younger than the first"

    def _read_names(self, key: str) -> set[str] | None:
        body = self._tries("get", key, "", lambda: self._storage.get(key))
        return None if body is None else set(json.loads(body))

    # --- episodes -------------------------------------------------------------------------------------------------

    def _claim_slot(self) -> None:
        uid = new_uid()
        self._tries("claim_slot", "", uid, lambda: claim_slot(self._storage, uid), note=True)

    def _episode(self) -> None:
        """As a recorder commits one, and a reader sees it."""
        uid = new_uid()
        if self._tries("episode", "", uid, lambda: commit_episode(self._dataset, uid), note=True) is not None:
            self._committed.add(uid)
        if self._random.random() < 0.3:
            snapshot = self._tries("get", "snapshot", "", lambda: load(self._dataset))
            if snapshot is not None:
                assert self._committed <= set(snapshot.entries.column("uid")), "a committed episode is not seen"


def told_by(error: SalusError) -> str:
    """As `Event.told`; other errors are none that a network may cause."""
    kinds = {
        AlreadyExistsError: "exists",
        CommitUnknownError: "unknown",
        RecordingError: "refused",
        StorageError: "unread",
    }
    if type(error) not in kinds:
        raise error
    return kinds[type(error)]


def publish_names(storage: Storage) -> list[str]:
    """A publisher: what it publishes are the names in the log."""
    names = sorted(storage.list(LOG))
    body = json.dumps(names).encode()
    storage.get(LAST)
    storage.put({FIRST: body})
    storage.put({LAST: body})
    return names


def episode_of(uid: str) -> dict[str, np.ndarray]:
    """The arrays of an episode: camera uint8 (T, 3, 4, 5), states float32 (T, 3)."""
    values = np.random.default_rng(int(hashlib.sha256(uid.encode()).hexdigest()[:16], 16))
    num_steps = int(values.integers(1, 12))
    return {
        "camera": values.integers(0, 256, (num_steps, 3, 4, 5), dtype=np.uint8),
        "states": values.normal(size=(num_steps, 3)).astype(np.float32),
    }


def commit_episode(storage: Storage, uid: str) -> int:
    """Claim, shards, record; returns the slot."""
    slot, rows = claim_slot(storage, uid), episode_of(uid)
    num_steps = len(rows["states"])
    rows |= {"camera": rows["camera"].transpose(0, 2, 3, 1), "timestamp_ns": np.arange(num_steps) * 10**8}
    bodies = {}
    for spec in recorded_arrays(SCHEMA):
        values = np.ascontiguousarray(rows[spec.name])
        chunks = [
            encode_chunk(spec, values[at : at + spec.chunk_steps]) for at in range(0, num_steps, spec.chunk_steps)
        ]
        bodies[spec.shard_key(slot, 0)] = whole_shard(spec.chunks_per_shard, chunks, spec.shard_identity(uid, 0))
    for error in storage.put_new_many(bodies).values():
        raise error
    shards = tuple(
        ShardInfo(key, len(body), crc32c(body), hashlib.sha256(body).hexdigest()) for key, body in bodies.items()
    )
    record = Record(slot, uid, "committed", num_steps=num_steps, shards=shards, timestamp_source="rate")
    storage.put_new(record_key(slot), record.to_bytes())
    return slot


# --- what must be true of it ---------------------------------------------------------------------------------------


def check_all(url: str, options: Mapping[str, Any], events: Sequence[Event]) -> Counter[str]:
    """Compare what was told with what is in the store; returns how much of it was looked at.

    Args:
        url, options: The store, without the network between.
        events: Of all threads of all processes.

    Raises:
        AssertionError: Something was lost, done twice, or told wrongly.
    """
    storage = ObjectStorage(url, options)
    of: defaultdict[str, list[Event]] = defaultdict(list)
    for event in events:
        of[event.kind].append(event)
    looked = check_created(storage, [*of["put_new"], *of["put_new_many"]])
    check_put(storage, of["put"])
    check_replaced(storage, of["replace"])
    check_published(storage, of["publication"])
    check_claims(storage, of["claim_slot"])
    looked["episodes"] = check_episodes(f"{url}/{DATASET}", options, of["episode"])
    return looked


def by_key(events: Iterable[Event]) -> dict[str, list[Event]]:
    found: defaultdict[str, list[Event]] = defaultdict(list)
    for event in events:
        found[event.key].append(event)
    return found


def check_created(storage: Storage, events: Sequence[Event]) -> Counter[str]:
    """Who was told "done" finds his body, and who was told "exists" finds another's."""
    looked: Counter[str] = Counter()
    for key, tries in by_key(events).items():
        body = storage.get(key)
        winner = None if body is None else identity_of(body)
        assert winner is None or any(event.identity == winner for event in tries), f"{key}: nobody wrote {winner}"
        for event in tries:
            if event.told == "done":
                assert winner is not None, f"{key}: lost: {event}"
                assert winner == event.identity, f"{key}: won by two: {event}, and {winner} is there"
            elif event.told == "exists":
                assert winner is not None, f"{key}: a false conflict, nothing is there: {event}"
                assert winner != event.identity, f"{key}: a false conflict with itself: {event}"
            else:
                assert event.told == "unknown", f"{key}: {event}"
                looked["unknown, and there" if winner == event.identity else "unknown, and not there"] += 1
        looked["keys"] += 1
        looked["keys with losers"] += any(event.told == "exists" for event in tries)
    return looked


def check_put(storage: Storage, events: Sequence[Event]) -> None:
    """The last that was done is there, or one that was tried later."""
    for key, tries in by_key(events).items():
        done = [number for number, event in enumerate(tries) if event.told == "done"]
        body = storage.get(key)
        found = None if body is None else identity_of(body)
        allowed = [event.identity for event in tries[done[-1] if done else 0 :]] + [None] * (not done)
        assert found in allowed, f"{key}: lost: {found} is there, expected one of {allowed}"


def check_replaced(storage: Storage, events: Sequence[Event]) -> None:
    """The versions are one chain from the last to the first, and all that were done are in it."""
    for key, tries in by_key(events).items():
        before = {json.loads(event.identity)[0]: json.loads(event.identity)[1] for event in tries}
        body = storage.get(key)
        at, chain = "" if body is None else json.loads(body)[0], set()
        while at:
            chain.add(at)
            at = before[at]
        lost = {json.loads(event.identity)[0] for event in tries if event.told == "done"} - chain
        assert not lost, f"{key}: replaced by somebody who had not read it: {lost}"


def check_published(storage: Storage, events: Sequence[Event]) -> None:
    """Nobody's publication was undone."""
    for key in (FIRST, LAST):
        body = storage.get(key)
        found = set() if body is None else set(json.loads(body))
        for event in events:
            if event.told == "done":
                assert set(event.answer) <= found, f"{key}: undone: {event.identity}"


def check_claims(storage: Storage, events: Sequence[Event]) -> None:
    """Each slot was given to one; who was refused has none."""
    given: dict[int, str] = {}
    claimed = {claim.uid for slot in claimed_slots(storage) if (claim := read_claim(storage, slot)) is not None}
    for event in events:
        if event.told != "done":
            assert event.told in ("unknown", "refused"), event
            assert event.told == "unknown" or event.identity not in claimed, f"refused, and there: {event}"
            continue
        assert event.answer not in given, f"slot {event.answer}: given to {given[event.answer]} and {event.identity}"
        given[event.answer] = event.identity
        body = storage.get(claim_key(event.answer))
        assert body is not None, f"slot {event.answer}: the claim is lost"
        assert documents.unseal(body, key=claim_key(event.answer))["uid"] == event.identity


def check_episodes(url: str, options: Mapping[str, Any], events: Sequence[Event]) -> int:
    """What was committed is there, bit by bit; what was not told is there whole, or not at all. Returns how many."""
    dataset = salus.open(url, storage_options=options)
    found = {episode.uid: episode for episode in dataset}
    assert len({episode.slot for episode in dataset}) == len(dataset), "a slot was given twice"
    for event in events:
        if event.told == "done":
            assert event.identity in found, f"lost: {event}"
            assert found[event.identity].slot == event.answer
        else:
            assert event.told in ("unknown", "refused", "unread"), f"a false conflict: {event}"
            assert event.told == "unknown" or event.identity not in found, f"it was not even tried: {event}"
    assert set(found) <= {event.identity for event in events}
    for uid, episode in found.items():
        for name, values in episode_of(uid).items():
            np.testing.assert_array_equal(episode[name][:], values)
    publish(ObjectStorage(url, options))
    report = salus.verify(url, storage_options=options)
    assert {finding.severity for finding in report.findings} <= {"leftover"}, report.findings
    return len(found)


def goes_away(outage: Callable[[], Any], every_s: float, ended: threading.Event) -> int:
    """Take the network away for a moment, again and again; returns how often."""
    count = 0
    while not ended.wait(every_s):
        with outage():
            time.sleep(0.1)
        count += 1
    return count
