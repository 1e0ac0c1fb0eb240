"""What is mutated: the documents, shards and journals of a small dataset, recorded when the harness starts.

Uids, which are drawn, are exchanged for fixed ones, so that an input that was kept means the same in another process.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import salus
from salus import documents
from salus.layout import ArraySpec, array_specs, claim_key, journal_key, record_key, recorded_arrays, schema_key
from salus.log.claims import read_claim
from salus.log.entries import Entries, Entry
from salus.log.records import Record
from salus.log.revisions import read_revisions
from salus.log.snapshot import Snapshot, load
from salus.recorder.replay import read_start, replay
from salus.schema import STEP
from salus.storage import LocalStorage, StoredFile
from salus.verification.shards import InMemory

from .mutators import seal, to_text, unsealed

BLOSC = {
    "name": "blosc",
    "configuration": {"typesize": 4, "cname": "lz4", "clevel": 5, "shuffle": "shuffle", "blocksize": 0},
}
BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
GZIP = {"name": "gzip", "configuration": {"level": 1}}

SCHEMA = salus.Schema(
    {
        "camera": salus.Image(height=4, width=5),
        "wrist": salus.Image(height=8, width=8, codec="jpeg"),
        "thermal": salus.Image(height=8, width=9, layout="HWC", color="gray", codec="jpeg"),
        "states": salus.Feature((2,), nullable=True, unit="rad", names=("a", "b"), range=(-4, 4)),
        "flags": salus.Feature((3,), "bool"),
        "count": salus.Feature((), "int64"),
        "say": salus.Text(),
        "lidar": salus.Feature((70,), codec=[BYTES, BLOSC]),
        "zipped": salus.Feature((4,), "int16", codec=[BYTES, GZIP]),
        "torques": salus.Feature((1,), clock="joints"),
        "horizon_labels": salus.Feature((1, 2), derived="outcome", allow_nan=True),
    },
    rate_hz=50,
    failure_kinds=("drop", "slip"),
    horizons=(2,),
    segment_steps=4,
    clocks={"joints": 100},
)
"""Every kind of feature and of codec; small, so that an execution takes a fraction of a millisecond."""

PLAIN = salus.Schema({"states": salus.Feature((1,))}, rate_hz=10, segment_steps=2)
LENGTHS = (6, 3, 5)
RUNNING_STEPS = 6
UIDS = tuple(f"00000000-0000-7000-8000-{number:012d}" for number in range(len(LENGTHS) + 1))
METADATA = {"task": "stack the cubes", "operator": "ü", "trial": 7, "ratings": [1, 2.5, None], "robot": {"arm": "left"}}
WRITE_ID = "0" * 32
TAG = "v1"


class Objects:
    """A `salus.storage.Storage` in memory that refuses every key that no builder of keys makes."""

    url = "memory"
    requests_at_once = 1

    def __init__(self, objects: Mapping[str, bytes]) -> None:
        self.objects = dict(objects)

    def get(self, key: str) -> bytes | None:
        return self.objects.get(checked(key))

    def list(self, folder: str) -> list[str]:
        start = f"{checked(folder)}/" if folder else ""
        return sorted({key[len(start) :].partition("/")[0] for key in self.objects if key.startswith(start)})

    def open_shard(self, key: str) -> StoredFile | None:
        body = self.objects.get(checked(key))
        return None if body is None else InMemory(body)

    def put(self, objects: Mapping[str, bytes]) -> None:
        for key, body in objects.items():
            self.objects[checked(key)] = body

    def put_new(self, key: str, body: bytes) -> None:
        self.objects.setdefault(checked(key), body)

    def sync(self, folder: str) -> None:
        checked(folder)

    def publication(self, publish: Callable[[Any], Any]) -> Any:
        return publish(self)


class OutsideRootError(BaseException):
    """A key or a path that leads out of the dataset. Nothing under test catches it."""


@functools.lru_cache(4096)
def checked(key: str) -> str:
    """The key, where it stays inside the dataset."""
    if key and not all(part and set(part) != {"."} and part.isascii() and "\0" not in part for part in key.split("/")):
        raise OutsideRootError(f"the key {key!r}")
    return key


def make_steps(seed: int, steps: int) -> dict[str, Any]:
    """An episode on the clock `step`."""
    rng = np.random.default_rng(seed)
    smooth = np.linspace(0, 200, steps * 8 * 9).astype(np.uint8)
    return {
        "camera": rng.integers(0, 256, (steps, 3, 4, 5), dtype=np.uint8),
        "wrist": rng.integers(0, 256, (steps, 3, 8, 8), dtype=np.uint8),
        "thermal": smooth.reshape(steps, 8, 9, 1),
        "states": rng.normal(size=(steps, 2)).astype(np.float32),
        "flags": rng.random((steps, 3)) < 0.5,
        "count": np.arange(steps) * 10**12,
        "say": np.array([f"{seed}.{step} grüß" for step in range(steps)], object),
        "lidar": rng.normal(size=(steps, 70)).astype(np.float32),
        "zipped": rng.integers(-9, 9, (steps, 4)).astype(np.int16),
    }


def _record(episode: Any, seed: int, steps: int) -> None:
    arrays = make_steps(seed, steps)
    for step in range(steps):
        values = {name: array[step] for name, array in arrays.items()}
        if step == 1:
            del values["states"]
        stamp = 20_000_000 * step
        episode.append(values, timestamp_ns=stamp)
        episode.push("joints", np.array([step], np.float32), timestamp_ns=stamp)
        episode.push("joints", np.array([-step], np.float32), timestamp_ns=stamp + 10_000_000)


@dataclass
class Examples:
    """What the targets start from.

    Attributes:
        objects: The dataset, by key.
        schemas: Its revisions.
        arrays: The recorded arrays of each.
        snapshot: Its log.
        specs: All arrays of the first revision.
        claim: The claim of the running episode, whose slot is the last.
        journal: Its journal.
        running: Where the files of the running episode lie, as a dataset of its own.
        small: A dataset with one feature and two episodes, by key.
    """

    objects: dict[str, bytes]
    schemas: list[salus.Schema]
    arrays: list[list[ArraySpec]]
    snapshot: Snapshot
    specs: dict[str, ArraySpec]
    claim: bytes
    journal: bytes
    running: LocalStorage
    small: dict[str, bytes]

    @property
    def running_slot(self) -> int:
        return len(LENGTHS)

    def shards(self, name: str) -> list[bytes]:
        """All shards of an array."""
        return [body for key, body in sorted(self.objects.items()) if key.startswith(f"{name}/c.")]

    def sealed(self, folder: str) -> list[bytes]:
        """All documents below a folder of `_salus`."""
        return [body for key, body in sorted(self.objects.items()) if key.startswith(f"_salus/{folder}/")]


def make_examples(folder: Path) -> Examples:
    """Record a dataset into `folder`, an empty directory, and take it apart."""
    path = folder / "data.zarr"
    dataset = salus.create(path, SCHEMA)
    outcomes = ("success", salus.Outcome("failure", "drop", 1), None)
    with salus.Recorder(dataset) as recorder:
        for seed, steps in enumerate(LENGTHS):
            with recorder.episode(METADATA) as episode:
                _record(episode, seed, steps)
                if outcomes[seed] is not None:
                    episode.succeed() if seed == 0 else episode.fail(kind="drop", step=1)
        dataset.refresh()
        dataset.set_outcome(1, salus.Outcome("failure", "slip", 2))
        dataset.update_metadata(0, {"task": "other", "trial": None})
        dataset.delete(2)
        episode = recorder.start(task="running")
        _record(episode, 9, RUNNING_STEPS)
        running = _copy_running(path, folder / "running.zarr", slot=len(LENGTHS))
        episode.discard(reason="fuzzing")
    dataset.add_features({"later": salus.Feature((2,), nullable=True)})
    return _examples(path, running, _small(folder / "small.zarr"))


def _copy_running(path: Path, target: Path, *, slot: int) -> LocalStorage:
    """The dataset while an episode is running, once all of its steps are in its journal."""
    storage = LocalStorage(path)
    specs = {spec.name: spec for spec in recorded_arrays(SCHEMA)}
    wanted = {STEP: RUNNING_STEPS, "joints": 2 * RUNNING_STEPS}
    deadline = time.monotonic() + 30
    while True:
        journal = storage.path(journal_key(slot))
        if journal.exists() and read_start(journal) is not None:
            clocks = replay(journal, specs, kinds=SCHEMA.failure_kinds).clocks
            if {name: clock.num_steps for name, clock in clocks.items()} == wanted:
                break
        if time.monotonic() > deadline:
            raise TimeoutError("the journal did not get all steps")
        time.sleep(0.05)
    shutil.copytree(path, target)
    return LocalStorage(target)


def _objects(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "publish.lock"
    }


def _small(path: Path) -> dict[str, bytes]:
    with salus.Recorder(salus.create(path, PLAIN)) as recorder:
        for steps in (1, 2):
            recorder.record_episode({"states": np.ones((steps, 1), np.float32)}, {"task": "a"}, outcome="success")
    return _objects(path)


def _examples(path: Path, running: LocalStorage, small: dict[str, bytes]) -> Examples:
    storage = LocalStorage(path)
    objects = _objects(path)
    schemas = read_revisions(storage)
    arrays = [recorded_arrays(schema) for schema in schemas]
    uids = {claim.uid: UIDS[slot] for slot in range(len(UIDS)) if (claim := read_claim(storage, slot)) is not None}

    def fixed(body: bytes) -> bytes:
        text = body.decode()
        for uid, other in uids.items():
            text = text.replace(uid, other)
        return seal(to_text({**unsealed(text.encode()), "write_id": WRITE_ID}))

    for key in [key for key in objects if key.startswith("_salus/")]:
        objects[key] = fixed(objects[key])
    del objects[record_key(len(LENGTHS))]
    in_memory = Objects(objects)
    snapshot = load(in_memory)
    content = snapshot.to_json()
    objects["_salus/checkpoints/0000000000.json"] = fixed(documents.seal(content))
    tag = {"name": TAG, "author": "me", "time_ns": 1, **content}
    objects[f"_salus/tags/{TAG}.json"] = fixed(documents.seal(tag))
    journal = running.path(journal_key(len(LENGTHS))).read_bytes()
    for file in running.path(schema_key(0)).parent.parent.rglob("*.json"):
        file.write_bytes(fixed(file.read_bytes()))
    claim = fixed(running.path(claim_key(len(LENGTHS))).read_bytes())
    running.path(claim_key(len(LENGTHS))).write_bytes(claim)
    uid = next(uid for uid, other in uids.items() if other == UIDS[-1])
    return Examples(
        objects,
        schemas,
        arrays,
        snapshot,
        array_specs(schemas[0]),
        claim,
        _with_uid(journal, uid, UIDS[-1]),
        running,
        small,
    )


def _with_uid(journal: bytes, uid: str, other: str) -> bytes:
    size = int.from_bytes(journal[:4], "little")
    payload = journal[8 : 8 + size].replace(uid.encode(), other.encode())
    return frame(payload) + journal[8 + size :]


def frame(payload: bytes) -> bytes:
    """A frame of a journal."""
    from salus.codecs import crc32c

    return len(payload).to_bytes(4, "little") + crc32c(payload).to_bytes(4, "little") + payload


def first_form_tag(snapshot: Snapshot) -> bytes:
    """A tag as builds before 0.1.0 wrote it."""
    names = [name for name in Entry._fields if name not in ("shard_sizes", "clock_lengths")]
    columns = {name: snapshot.decided.column(name) for name in names}
    amendments = [amendment.to_json() for amendment in snapshot.amendments]
    document = {"name": TAG, "columns": columns, "corrupt_slots": [7], "amendments": amendments}
    return seal(to_text({**document, "write_id": WRITE_ID}))


def many_rows(count: int) -> bytes:
    """A checkpoint of so many rows."""
    record = Record(0, UIDS[0], "aborted", reason="example", digest="sha256:" + "ab" * 32)
    entry = Entry.of(record, [])
    table = Entries.of(replace_slot(entry, slot) for slot in range(count))
    return seal(to_text({**Snapshot(table).to_json(), "write_id": WRITE_ID}))


def replace_slot(entry: Entry, slot: int) -> Entry:
    """The entry in another slot."""
    return entry._replace(slot=slot)


def as_json(value: Any) -> bytes:
    """Plain JSON text."""
    return json.dumps(value).encode()


__all__ = ["Examples", "Objects", "OutsideRootError", "make_examples", "replace"]
