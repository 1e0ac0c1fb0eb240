"""One target for each parser of bytes that come out of a dataset: what is mutated, how, and what is done with it.

A target does more than parse: it takes what came out through what readers do with it, since a value that a parser
lets through and its users choke on is the usual fault.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from salus.cli.terminal import plain
from salus.dataset import Dataset
from salus.layout import (
    record_key,
)
from salus.log.publish import publish
from salus.log.revisions import read_revisions
from salus.log.snapshot import load

from .data_targets import derived_targets, journal_target, shard_targets
from .document_targets import document_targets, log_targets, slot_of, statistics_targets, table_targets
from .examples import Examples, Objects
from .mutators import (
    mutate_bytes,
)
from .target import Target, of_documents


def all_targets(examples: Examples, folder: Path) -> dict[str, Target]:
    """All targets by name; `folder` is where those that need files put them."""
    made = [
        *document_targets(examples),
        *log_targets(examples),
        *table_targets(examples),
        *statistics_targets(examples),
        *shard_targets(examples),
        *derived_targets(examples, folder),
        journal_target(examples),
        _dataset(examples),
        _terminal(),
    ]
    return {target.name: target for target in made}


# --- a whole dataset, and what is shown --------------------------------------------------------------------------


def _dataset(examples: Examples) -> Target:
    """A record in its dataset, as readers and publishers take it."""
    objects = examples.small
    seeds = [body for key, body in sorted(objects.items()) if "/log/" in key]

    def run(body: bytes) -> None:
        storage = Objects({**objects, record_key(min(slot_of(body), 1)): body})
        snapshot = load(storage)
        dataset = Dataset(storage, read_revisions(storage), snapshot, "r", None)
        plain(repr(dataset))
        publish(storage, known=snapshot)
        for number in range(len(dataset)):
            episode = dataset[number]  # a record that does not hold raises here, typed
            _ = (episode.metadata, episode.clock_lengths, episode.timestamp_sources, episode.dropped_images)
            plain(repr(episode))
            _ = (episode.duration_s, episode.labels, np.asarray(episode["states"]))
            for statistics in episode.statistics.values():
                _ = statistics.mean

    return of_documents("dataset", seeds, run, weight=0)


def _terminal() -> Target:
    """Text out of a dataset, as the command line shows it."""

    def run(body: bytes) -> None:
        shown = plain(body.decode("utf-8", "surrogateescape"))
        assert shown.isprintable(), repr(shown)
        shown.encode()

    seeds = ("stack \x1b[2J \x07 ü \u202e [red]x[/red]\r\n".encode(), b"\xed\xa0\x80\xff", b"plain")
    return Target("terminal", seeds, mutate_bytes, run, weight=4)
