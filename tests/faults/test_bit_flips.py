"""T10: every bit of every byte of a small dataset flipped, every truncation, shards and records exchanged.

`python -m tests.faults.test_bit_flips 100` flips every bit; a smaller number that share of them, in percent. After each
change, verify looks at what the changed file can affect, through its own functions, and a reader reads what lies in it.
tests/test_verify.py runs whole verifications.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import salus
from salus import documents
from salus.errors import CorruptDataError, FormatError
from salus.gather import Reader
from salus.layout import checkpoint_key, number_in
from salus.log.claims import read_claim
from salus.log.revisions import read_revisions
from salus.log.snapshot import load, read_record
from salus.log.tags import read_tag
from salus.storage import open_storage
from salus.verification.derived import Comparison
from salus.verification.log import check_checkpoint, check_claim, check_tag, read_amendment, read_entry, read_log
from salus.verification.report import Finding
from salus.verification.run import pieces
from salus.verification.shards import check_shards

SCHEMA = salus.Schema(
    {
        "camera": salus.Image(height=2, width=3),
        "states": salus.Feature((2,), nullable=True),
        "say": salus.Text(),
        "torques": salus.Feature((1,), clock="joints"),
        "horizon_labels": salus.Feature((1, 1), derived="outcome", allow_nan=True),
    },
    rate_hz=50,
    failure_kinds=("drop",),
    horizons=(2,),
    segment_steps=4,
    clocks={"joints": 100},
)
LENGTHS = (6, 5, 6)  # two segments; the first and the last have shards of equal sizes
TAG = "v1"
STRIDE = {"zarr.json": 23}
"""Of the root, which is long and derived, the suite looks at one byte in so many."""
SEVERITIES = {"shard": "damage", "log": "damage", "derived": "derived", "claim": "leftover", "cache": "derived"}
"""What verify has to call a change of each kind of file."""
EVERY = 5  # the suite reads documents after one change in so many


def make_steps(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    steps = LENGTHS[seed]
    return {
        "camera": rng.integers(0, 256, (steps, 3, 2, 3), dtype=np.uint8),
        "states": rng.normal(size=(steps, 2)).astype(np.float32),
        "say": np.array([f"{seed}.{step} grüß" for step in range(steps)], object),
    }


def make_dataset(path: Path) -> None:
    """Three episodes, one of them deleted and one amended; a checkpoint, a tag, and a revision that adds a feature."""
    dataset = salus.create(path, SCHEMA)
    with salus.Recorder(dataset) as recorder:
        for seed in range(len(LENGTHS)):
            with recorder.episode(seed=seed) as episode:
                steps = make_steps(seed)
                for step in range(LENGTHS[seed]):
                    stamp = 20_000_000 * step
                    values = {name: array[step] for name, array in steps.items()}
                    if step == 1:
                        del values["states"]
                    episode.append(values, timestamp_ns=stamp)
                    episode.push("joints", np.array([float(step)], np.float32), timestamp_ns=stamp)
                episode.succeed()
    dataset.refresh()
    dataset.set_outcome(1, salus.Outcome("failure", "drop", 3))
    dataset.delete(2)
    dataset.add_features({"later": salus.Feature((2,), nullable=True)})
    dataset.refresh().tag(TAG)
    dataset.storage.put_new(checkpoint_key(0), documents.seal(load(dataset.storage).to_json()))


class Judge:
    """What verify says of one changed file, and what a reader gets.

    Attributes:
        files: Every file of the dataset, by key.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = {
            str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()
        }
        self.files.pop("_salus/publish.lock")  # it is empty, and stays so
        self.storage = storage = open_storage(path)
        self.log = read_log(storage)
        assert not self.log.findings
        self.snapshot = load(storage)
        self.tagged = read_tag(storage, TAG)
        self.claims = {entry.slot: read_claim(storage, entry.slot) for entry in self.log.decided}
        self.derived: dict[str, bytes] = {}
        self.comparison = _Keeping(self)
        assert not self.comparison.found
        for key in [key for key in self.files if key.startswith("horizon_labels/c.2.")]:
            del self.files[key]  # derived, of a deleted episode: nobody sees it, and undeleting writes it anew
        self.schemas = read_revisions(storage)
        self.records = [read_record(storage, entry.slot) for entry in self.log.decided]
        self.pieces = {}
        for entry in self.log.decided:
            for spec, shards in pieces(self.log.arrays[entry.schema_revision], entry, self.log.hashes[entry.slot]):
                self.pieces |= {spec.shard_key(entry.slot, shard.segment): (entry, spec, shards) for shard in shards}
        self.values = {key: self.read(key) for key in self.pieces}

    def kind(self, key: str) -> str:
        if key in self.pieces:
            return "shard"
        if key in self.derived:
            return "derived"
        folder = key.split("/")[1]
        return {"claims": "claim", "checkpoints": "cache"}.get(folder, "log")

    def verify(self, key: str) -> list[Finding]:
        """The findings of the one file."""
        if key in self.pieces:
            entry, spec, shards = self.pieces[key]
            length = entry.length(spec.clock)
            return check_shards(self.storage, spec, shards, uid=entry.uid, slot=entry.slot, length=length).findings
        if key in self.derived:
            return self.comparison.compare(key, self.derived[key])
        _, folder, *_, name = key.split("/")
        number = number_in(name, suffix="" if folder == "claims" else ".json")
        if folder == "checkpoints":
            return list(check_checkpoint(self.storage, number or 0, self.log))
        if folder == "tags":
            return list(check_tag(self.storage, TAG, self.log))
        if folder == "claims":
            return list(check_claim(self.storage, self.log.decided[number or 0]))
        try:
            if folder == "log":
                read_entry(self.storage, number or 0, self.log)
            elif folder == "amendments":
                read_amendment(self.storage, number or 0)
            else:
                read_revisions(self.storage)
        except CorruptDataError as error:
            return [Finding("record", "damage", key, str(error))]  # as `read_log` does
        return []

    def read(self, key: str) -> list[np.ndarray]:
        """What a reader gets of an array that a shard belongs to, with nothing of it in a cache."""
        entry, spec, _ = self.pieces[key]
        schema = self.log.schemas[entry.schema_revision]
        found = salus.Episode(Reader(self.storage, self.log.schemas), entry, schema)
        steps = np.arange(entry.length(spec.clock))
        return [found.read_steps(spec, steps)]

    def is_read_wrong(self, key: str) -> bool:
        """Whether a reader gets something else than what was committed, without an error."""
        try:
            if key in self.pieces:
                return not all(map(np.array_equal, self.read(key), self.values[key]))
            if key in self.derived:
                return False  # no reader of SALUS looks at it
            folder = key.split("/")[1]
            if folder == "log":
                slot = number_in(key.rpartition("/")[2], suffix=".json") or 0
                return read_record(self.storage, slot) != self.records[slot]
            if folder == "tags":
                return bool(read_tag(self.storage, TAG).to_json() != self.tagged.to_json())
            if folder == "claims":
                return False
            if folder == "schema":
                return read_revisions(self.storage) != self.schemas
            return bool(load(self.storage).to_json() != self.snapshot.to_json())
        except (CorruptDataError, FormatError):
            return False


class _Keeping(Comparison):
    """Keeps what publishing would write."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        super().__init__(judge.storage, judge.log)

    def compare(self, key: str, expected: bytes) -> list[Finding]:
        self._judge.derived[key] = expected
        return super().compare(key, expected)


def try_change(judge: Judge, key: str, body: bytes, counts: Counter[str], *, every: int) -> None:
    """Put `body` in the place of a file, look at it, and put the file back; read documents after one in `every`."""
    path = judge.path / key
    write(path, body)
    findings = judge.verify(key)
    kind = judge.kind(key)
    counts[kind] += 1
    wanted = SEVERITIES[kind]
    about = f"{key}: {len(body)} bytes, {findings}"
    assert {finding.severity for finding in findings} <= {wanted}, about
    if not findings:  # the same content in other bytes: only JSON has that, in the metadata for plain readers
        assert key.endswith("zarr.json"), f"{about}: not found, {changed(judge.files[key], body)}"
        same = [documents.parse(some, key=key) for some in (body, judge.files[key])]
        assert same[0] == same[1], about
        counts["meaningless"] += 1
    if kind == "shard" or counts[kind] % every == 0:
        assert not judge.is_read_wrong(key), f"{about}: read without an error"
    write(path, judge.files[key])


def write(path: Path, body: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
    os.write(descriptor, body)
    os.close(descriptor)


def changed(before: bytes, after: bytes) -> str:
    places = [place for place, (a, b) in enumerate(zip(before, after, strict=False)) if a != b]
    return f"bytes {places[:3]} of {len(before)}"


def flips(body: bytes, bits: Callable[[int], Iterator[int] | range], places: range) -> Iterator[bytes]:
    """The body with one bit changed: of each byte in `places`, those that `bits` says."""
    for place in places:
        for bit in bits(place):
            other = bytearray(body)
            other[place] ^= 1 << bit
            yield bytes(other)


def longer(body: bytes) -> tuple[bytes, ...]:
    return body + b"\0", body + b" ", body + body


def check_flips(judge: Judge, share: float, seed: int, *, whole: bool) -> Counter[str]:
    """Flip this share of the bits of each byte, drawn; at least one."""
    counts: Counter[str] = Counter()
    drawn = random.Random(seed)  # noqa: S311 - it chooses bits
    each = max(1, round(8 * share))
    for key, body in judge.files.items():
        places = range(0, len(body), 1 if whole else STRIDE.get(key, 1))
        for other in flips(body, lambda _: iter(drawn.sample(range(8), each)), places):
            try_change(judge, key, other, counts, every=1 if whole else EVERY)
    return counts


def check_lengths(judge: Judge, *, whole: bool) -> Counter[str]:
    """Every truncation of every file, and some longer ones."""
    counts: Counter[str] = Counter()
    for key, body in judge.files.items():
        for size in range(0, len(body), 1 if whole else 7 * STRIDE.get(key, 1)):
            try_change(judge, key, body[:size], counts, every=1 if whole else EVERY)
        if not key.endswith(".json") or key.startswith("_salus"):
            for other in longer(body):
                try_change(judge, key, other, counts, every=1 if whole else EVERY)
    return counts


def check_exchanges(judge: Judge) -> Counter[str]:
    """Each file of the log, and each shard, in the place of each other."""
    counts: Counter[str] = Counter()
    for key, other in itertools.permutations(judge.files, 2):
        kind = judge.kind(key)
        if kind != judge.kind(other) or kind in ("derived", "cache") or judge.files[key] == judge.files[other]:
            continue
        write(judge.path / key, judge.files[other])
        findings = judge.verify(key)
        assert {finding.severity for finding in findings} == {SEVERITIES[kind]}, f"{other} as {key}: {findings}"
        counts[kind] += 1
        counts["equal size"] += kind == "shard" and len(judge.files[key]) == len(judge.files[other])
        assert not judge.is_read_wrong(key), f"{other} as {key}: read without an error"
        write(judge.path / key, judge.files[key])
    return counts


def test_every_changed_byte_is_found(memory_path: Path) -> None:
    make_dataset(memory_path / "data.zarr")
    counts = check_flips(Judge(memory_path / "data.zarr"), 1 / 8, 0, whole=False)
    assert all(counts[kind] > 50 for kind in SEVERITIES), counts


def test_truncations_are_found(memory_path: Path) -> None:
    make_dataset(memory_path / "data.zarr")
    counts = check_lengths(Judge(memory_path / "data.zarr"), whole=False)
    assert all(counts[kind] > 10 for kind in SEVERITIES), counts


def test_exchanged_files_are_found(memory_path: Path) -> None:
    make_dataset(memory_path / "data.zarr")
    counts = check_exchanges(Judge(memory_path / "data.zarr"))
    assert counts["shard"] > 50, counts
    assert counts["log"] > 5, counts
    assert counts["equal size"] > 10, "no two shards are alike enough: the test lost its point"


def main() -> None:
    """All bits, or the share that the command line says in percent."""
    share, began = int(sys.argv[1]) / 100, time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="salus-flips-") as folder:
        path = Path(folder) / "data.zarr"
        make_dataset(path)
        judge = Judge(path)
        size = sum(map(len, judge.files.values()))
        flipped = check_flips(judge, share, 0, whole=share >= 1)
        cut = check_lengths(judge, whole=share >= 1)
        exchanged = check_exchanges(judge)
    flipped_bits, lengths, files = (sum(some[kind] for kind in SEVERITIES) for some in (flipped, cut, exchanged))
    committed = sum(flipped[kind] for kind in ("shard", "log"))
    sys.stdout.write(
        f"{len(judge.files)} files of {size:,} bytes, {flipped_bits:,} bits flipped ({committed:,} of committed data), "
        f"{lengths:,} lengths changed, {files:,} files exchanged ({exchanged['equal size']} "
        f"shards for others of their size), {time.monotonic() - began:.0f} s: all found "
        f"({flipped['meaningless']} bits change no content of a zarr.json and are none); "
        "nothing that was changed was read without an error\n"
    )


if __name__ == "__main__":
    main()
