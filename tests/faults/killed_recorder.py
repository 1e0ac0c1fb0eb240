"""A recorder at real time that is killed with SIGKILL: an episode is left that was never ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import salus

RATE = 100.0
SEGMENT = 32
SCHEMA = salus.Schema(
    {"camera": salus.Image(height=6, width=8), "q": salus.Feature((2,)), "say": salus.Text()},
    rate_hz=RATE,
    segment_steps=SEGMENT,
)


class Killed(NamedTuple):
    """The episode that was left.

    Attributes:
        uid: Its name.
        slot: Its row.
        appended: Steps whose `append` returned; one more may have been given.
        durable: Steps that were appended a second before the last one: the half second of the promise, and as much
            again for the writing thread to come round on a busy machine.
    """

    uid: str
    slot: int
    appended: int
    durable: int


def step(number: int) -> dict[str, Any]:
    """What is appended as step `number`; its stamp is `1000 + number`."""
    rng = np.random.default_rng(number)
    return {
        "camera": rng.integers(0, 256, (3, 6, 8), dtype=np.uint8),
        "q": rng.normal(size=2).astype(np.float32),
        "say": f"step {number} grüß",
    }


def record_and_die(path: Path, seconds: float, *, alive: Callable[[int], None] = lambda _: None) -> Killed:
    """Record one episode into the dataset at `path`, and kill the recorder after so many seconds of steps.

    Args:
        path: A dataset of SCHEMA.
        seconds: From the first step on.
        alive: Called with the slot while the recorder still lives.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_record, args=(path, theirs), daemon=True)
    process.start()
    theirs.close()  # so that a child that dies is seen, and not waited for
    assert ours.poll(60)
    uid, slot = ours.recv()
    given: list[tuple[int, float]] = []  # steps, and when
    while not given or given[-1][1] - given[0][1] < seconds:
        assert ours.poll(30)
        given.append(ours.recv())
    alive(slot)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    due = [number for number, when in given if when < given[-1][1] - 1.0]
    return Killed(uid, slot, given[-1][0], due[-1])


def _record(path: Path, connection: Connection) -> None:
    recorder = salus.Recorder(salus.open(path, mode="a"))
    episode = recorder.start(task="killed")
    connection.send((episode.uid, episode.slot))
    number = 0
    while True:
        episode.append(step(number), timestamp_ns=1000 + number)
        number += 1
        connection.send((number, time.monotonic()))
        time.sleep(1 / RATE)
