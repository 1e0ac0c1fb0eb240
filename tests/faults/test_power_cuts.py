"""Real power cuts: recorders write to an ext4 or xfs of their own, which is shut down at a random time.

`python -m tests.faults.test_power_cuts 200 200` cuts so often: on ext4, on xfs. `--without files` lets the recorders
skip a kind of fsync, and counts how many cuts then lose something. Needs root, loop devices and xfsprogs (`apt-get
install xfsprogs`); the mounts are in a mount namespace of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import selectors
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import salus

from .loopdisk import KINDS, Kind, LoopDisk, why_not
from .power_judge import SCHEMA, Line, check, make_arrays, make_step, num_steps_of
from .scenario import warm_up

LONGEST_S = 2.0  # from the start of a recording to the cut
END_S = 60.0  # a process that has met the end of its disk and does not end in this time hangs
MUTANTS = ("files", "folders", "everything")  # what is not synced

Say = Callable[[str, Any], None]
Body = Callable[[Path, int, random.Random, Say], None]


# --- the processes that write ----------------------------------------------------------------------------------------


def record_whole(path: Path, first: int, rng: random.Random, say: Say) -> None:
    """Episodes one after another, from arrays, with pauses in which nobody else may sync."""
    with salus.Recorder(salus.open(path, mode="a")) as recorder:
        for seed in range(first, first + 100_000):
            entry = recorder.record_episode(make_arrays(seed, num_steps_of(seed)), {"seed": seed})
            say("committed", {"uid": entry.uid, "seed": seed})
            time.sleep(rng.choice((0, 0, 0.02, 0.1)))


def record_stepwise(path: Path, first: int, rng: random.Random, say: Say) -> None:
    """Episodes step by step; a few are discarded."""
    with salus.Recorder(salus.open(path, mode="a")) as recorder:
        for seed in range(first, first + 100_000):
            episode = recorder.start(seed=seed)
            for step in range(num_steps_of(seed)):
                episode.append(make_step(seed, step))
            if rng.random() < 0.1:
                episode.discard(reason="operator")
                say("discarded", {"uid": episode.uid})
            else:
                episode.commit()
                say("committed", {"uid": episode.uid, "seed": seed})
            time.sleep(rng.choice((0, 0, 0.02, 0.1)))


def record_groups(path: Path, first: int, rng: random.Random, say: Say) -> None:
    """Groups of episodes that are committed together."""
    with salus.Recorder(salus.open(path, mode="a")) as recorder, recorder.vector(3) as vector:
        for group in range(first, first + 100_000, 3):
            for env in range(3):
                for step in range(num_steps_of(group + env)):
                    values = make_step(group + env, step)
                    vector.append({name: [value] for name, value in values.items()}, env_ids=[env])
            futures = vector.end(range(3), metadata=[{"seed": group + env} for env in range(3)])
            for env, future in enumerate(futures):
                say("committed", {"uid": future.result().uid, "seed": group + env})
            time.sleep(rng.choice((0, 0.02, 0.1)))


def record_long(path: Path, first: int, rng: random.Random, say: Say) -> None:
    """One episode in real time, which never ends."""
    with salus.Recorder(salus.open(path, mode="a")) as recorder:
        episode = recorder.start(seed=first)
        say("started", {"uid": episode.uid})
        for step in range(100_000):
            episode.append(make_step(first, step))
            say("step", step)
            time.sleep(rng.uniform(0, 2 / SCHEMA.rate_hz))


def publish(path: Path, _: int, rng: random.Random, say: Say) -> None:
    """Publish for plain Zarr readers, again and again."""
    while True:
        salus.open(path, mode="a").publish(whole=rng.random() < 0.3)
        say("published", None)
        time.sleep(rng.uniform(0, 0.2))


def skip_syncs(what: str) -> None:
    """From here on this process syncs less: a mutant, for the judge to catch."""

    def skipping(function: Callable[[int], None]) -> Callable[[int], None]:
        def sync(descriptor: int) -> None:
            of_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            if what != "everything" and of_folder != (what == "folders"):
                function(descriptor)

        return sync

    os.fsync, os.fdatasync = skipping(os.fsync), skipping(os.fdatasync)  # type: ignore[assignment]


class Processes:
    """Forked children, and the lines that they say until they end."""

    def __init__(self, path: Path, seed: int, without: str) -> None:
        self.lines: list[Line] = []
        self._path = path
        self._seed = seed
        self._without = without
        self._selector = selectors.DefaultSelector()
        self._parts: dict[int, bytes] = {}
        self._pids: dict[int, int] = {}  # of those that live

    def start(self, body: Body) -> int:
        """Fork a child that runs `body` until its disk is gone; its pid. This process must have no threads."""
        number = len(self._parts) + 1
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._be_child(body, number, writing)
        os.close(writing)
        self._selector.register(reading, selectors.EVENT_READ, number)
        self._parts[number], self._pids[number] = b"", pid
        return pid

    def kill(self) -> None:
        """Those that live still."""
        for pid in self._pids.values():
            os.kill(pid, signal.SIGKILL)

    def alive(self, pid: int) -> bool:
        """Whether it was not seen to end yet."""
        return pid in self._pids.values()

    def _be_child(self, body: Body, number: int, writing: int) -> None:
        def say(event: str, details: Any) -> None:
            os.write(writing, (json.dumps([number, event, details, time.monotonic()]) + "\n").encode())

        def raised(arguments: threading.ExceptHookArgs) -> None:
            say("raised", f"{arguments.exc_type.__name__} in a thread: {arguments.exc_value}")

        threading.excepthook = raised
        for pipe in list(self._selector.get_map()):  # else nobody would notice that the parent is gone
            os.close(pipe)
        try:
            if self._without:
                skip_syncs(self._without)
            body(self._path, number * 100_000, random.Random(f"{self._seed}.{number}"), say)  # noqa: S311 - pauses
        except salus.SalusError as error:
            say("refused", f"{type(error).__name__}: {error}")
        except BaseException:  # noqa: BLE001 - whatever it is, the judge is to see it
            say("raised", traceback.format_exc())
        finally:
            os._exit(0)

    def listen(self, seconds: float, *, until: str = "") -> bool:
        """Take in what they say, for so long, or until one says `until`, or all have ended; whether none is left."""
        deadline = time.monotonic() + seconds
        while self._selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                part = os.read(key.fd, 65536)
                if not part:
                    self._selector.unregister(key.fd)
                    os.close(key.fd)
                    os.waitpid(self._pids.pop(key.data), 0)
                    continue
                *whole, self._parts[key.data] = (self._parts[key.data] + part).split(b"\n")
                said = [Line(*json.loads(line)) for line in whole]
                self.lines += said
                if until and any(line.event == until for line in said):
                    return False
        return not self._selector.get_map()


# --- one cut -----------------------------------------------------------------------------------------------------


def cut_once(folder: Path, kind: Kind, seed: int, *, without: str = "") -> dict[str, Any]:
    """Record, cut the power, mount again, and look.

    Returns:
        What `power_judge.check` counts; of a mutant that lost something, `{"lost": what}`.

    Raises:
        AssertionError: Something was lost, or a process ended in another way than with a typed error.
    """
    rng = random.Random(seed)  # noqa: S311 - who writes, and when the power goes
    disk = LoopDisk(folder, kind, variant=seed)
    path = disk.path / "data.zarr"
    after = rng.choice((rng.uniform(0, 0.3), rng.uniform(0.3, LONGEST_S), rng.uniform(1.0, LONGEST_S)))
    others: list[Body] = [record_long, publish, record_whole, record_stepwise, record_groups]
    others = [body for body in others if rng.random() < 0.5]
    first = rng.choice((record_whole, record_stepwise))

    def create_and_record(path: Path, seed: int, rng: random.Random, say: Say) -> None:
        salus.create(path, SCHEMA)
        say("created", None)
        first(path, seed, rng, say)

    processes, began = Processes(path, seed, without), time.monotonic()
    try:
        processes.start(create_and_record)
        processes.listen(after, until="created")
        if any(line.event == "created" for line in processes.lines):
            for body in others:
                processes.start(body)
        ended = processes.listen(max(began + after - time.monotonic(), 0))
        cut_at = disk.cut()
        about = f"seed {seed}, {disk.about}, cut after {after:.3f} s, {[first.__name__, *(b.__name__ for b in others)]}"
        assert not ended, f"they ended before the cut; {about}: {processes.lines[-3:]}"
        assert processes.listen(END_S), f"a process without a disk does not end; {about}"
        raised = [line.details for line in processes.lines if line.event == "raised"]
        assert not raised, f"{about}: {raised[0]}"
        disk.unmount()
        disk.mount()
        answer = in_child(lambda: check(path, processes.lines, cut_at=cut_at))
    finally:
        processes.kill()
        processes.listen(END_S)
        disk.remove()
    if "lost" in answer and not without:
        raise AssertionError(f"{about}: {answer['lost']}")
    return answer


def in_child(judge: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `judge` returns, or `{"lost": why}`. It starts threads, and who has threads does not fork: so in a child."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = judge()
        except BaseException:  # noqa: BLE001 - an error of any kind is a loss
            answer = {"lost": traceback.format_exc()}
        os.write(writing, json.dumps(answer)[:60_000].encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:  # noqa: PTH123 - a descriptor
        body = file.read()
    os.waitpid(pid, 0)
    found: dict[str, Any] = json.loads(body)
    return found


def main() -> None:
    """Cut as often as the command line says; in a mount namespace of its own, so it starts itself anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ext4", type=int, help="cuts on ext4")
    parser.add_argument("xfs", type=int, nargs="?", help="cuts on xfs; as many, unless given")
    parser.add_argument("--without", default="", choices=MUTANTS, help="let the recorders not sync these")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.inside:
        unshare = ["unshare", "-m", "--propagation", "private"]
        inside = [sys.executable, "-W", "ignore", "-m", "tests.faults.test_power_cuts", *sys.argv[1:], "--inside"]
        sys.exit(subprocess.run([*unshare, *inside], check=False).returncode)
    wanted: dict[Kind, int] = {
        "ext4": arguments.ext4,
        "xfs": arguments.ext4 if arguments.xfs is None else arguments.xfs,
    }
    for kind, count in wanted.items():
        if count and (reason := why_not(kind)):
            sys.exit(f"power cuts on {kind}: {reason}")
    warm_up()
    began, first = time.monotonic(), arguments.first_seed
    seeds = [(kind, seed) for kind, count in wanted.items() for seed in range(first, first + count)]
    if arguments.without:
        lost = sum("lost" in answer for answer in cut_all(seeds, arguments.without))
        print(f"with no fsync of {arguments.without}, {lost} of {len(seeds)} cuts lost something")  # noqa: T201
        return
    answers = cut_all(seeds)
    judged = []
    for without in MUTANTS if len(seeds) >= 40 else ():  # can it see a loss?
        some = seeds[::20]
        lost = sum("lost" in answer for answer in cut_all(some, without))
        judged.append(f"{without} {lost} of {len(some)}")
        assert lost or without == "folders", f"no cut lost anything without fsync of {without}: nothing was tested"
    total = {name: sum(answer[name] for answer in answers) for name in answers[0]}
    worst = max(answer["lost_s"] for answer in answers)
    counts = (
        f"{wanted['ext4']} cuts of ext4",
        f"{wanted['xfs']} of xfs",
        f"{total['acknowledged']} episodes acknowledged",
        f"{total['unacknowledged']} more whole",
        f"{total['too_late']} acknowledged after the cut and not kept",
        f"{total['salvaged']} running ones salvaged (at most their last {worst:.2f} s lost)",
        f"{total['aborted']} without a step",
        f"{time.monotonic() - began:.0f} s",
    )
    print(  # noqa: T201
        f"{', '.join(counts)}: none acknowledged lost, none there in part, recording always went on"
        + (f". Cuts that lose something without fsync: of {', of '.join(judged)}" if judged else "")
    )


def cut_all(seeds: list[tuple[Kind, int]], without: str = "") -> list[dict[str, Any]]:
    """One cut for each kind of disk and seed, one after another."""
    answers = []
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="salus-power-") as folder:
        for kind, seed in seeds:
            answers.append(cut_once(Path(folder), kind, seed, without=without))
            sys.stderr.write(f"{kind} {seed}: {str(answers[-1])[-300:]}\n")
    return answers


def run_main(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.faults.test_power_cuts", *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_a_power_cut_loses_nothing_acknowledged(kind: Kind) -> None:
    if reason := why_not(kind):
        pytest.skip(reason)
    said = run_main(*("2" if kind == each else "0" for each in KINDS))
    assert "none acknowledged lost" in said


@pytest.mark.parametrize("kind", KINDS)
def test_the_judge_sees_what_is_lost_without_fsync(kind: Kind) -> None:
    if reason := why_not(kind):
        pytest.skip(reason)
    said = run_main(*("2" if kind == each else "0" for each in KINDS), "--without", "everything", "--first-seed", "3")
    assert ", 0 of" not in said


if __name__ == "__main__":
    main()
