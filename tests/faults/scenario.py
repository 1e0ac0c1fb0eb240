"""The recording that the crash tests kill, and the process that runs it: `python -m tests.faults.scenario`.

The process is warm (salus and zarr are imported once) and single-purpose: it forks one child per command that it reads
on stdin, lets it die, and answers with one line of JSON: how the child ended, and what it had acknowledged by then.

    {"crash_before": n, "path": …}           die before the n-th call that changes files, counted from 1
    {"fail_at": n, "errno": e, "lasting": bool, "path": …}   let the n-th such call fail, or it and all after it
    {"crash_before": n, "path": …, "groups": true}   the same while groups of episodes are committed
    {"file_limit": bytes, "path": …}         let no file grow beyond that (None: no limit, the disk may be full instead)
    {"kill_after": seconds, "path": …, "seed": k}   record in a loop from seed k on, until SIGKILL
"""

from __future__ import annotations

import builtins
import io
import itertools
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import salus

_FEATURES = {
    "camera": salus.Image(height=2, width=3),
    "states": salus.Feature((2,)),
    "say": salus.Text(),
    "horizon_labels": salus.Feature((1, 1), derived="outcome", allow_nan=True),
}
_OPTIONS: dict[str, Any] = {"rate_hz": 50, "failure_kinds": ("drop",), "horizons": (2,), "segment_steps": 4}
SCHEMA = salus.Schema(_FEATURES, **_OPTIONS)  # one clock: what recorder.vector and a simple test need
CLOCKS_SCHEMA = salus.Schema(
    {**_FEATURES, "q": salus.Feature((2,), clock="joints")}, **_OPTIONS, clocks={"joints": 100}
)  # that of `run_script`; a segment has 8 ticks of the joints
LENGTHS = {0: 6, 1: 5, 2: 3, 3: 2}  # by seed; 6 and 5 cross the border of a segment
WHOLE, STEPWISE, DISCARDED, AFTERWARDS = LENGTHS
TICKS = {WHOLE: 11, STEPWISE: 10, DISCARDED: 3, AFTERWARDS: 0}  # of the joints; 11 and 10 cross a border as well

GROUPS = ((4, 0, 1, 2), (10,))  # seeds; the first has 5 steps, which cross the border of a segment

CRASHED = 9
UNKNOWN_WRITER = 77  # files were written in a way that is not counted: count it


def make_episode(seed: int, num_steps: int | None = None) -> dict[str, Any]:
    """The recorded arrays of the episode `seed`, for SCHEMA; the same in every process."""
    num_steps = LENGTHS[seed] if num_steps is None else num_steps
    rng = np.random.default_rng(seed)
    return {
        "camera": rng.integers(0, 256, (num_steps, 3, 2, 3), dtype=np.uint8),
        "states": rng.normal(size=(num_steps, 2)).astype(np.float32),
        "say": np.array([f"{seed}.{step} grüß" for step in range(num_steps)], object),
    }


def make_ticks(seed: int) -> np.ndarray:
    """The feature "q" of the episode `seed` of `run_script`, float32 (ticks of the clock "joints", 2)."""
    return np.random.default_rng([seed, 1]).normal(size=(TICKS[seed], 2)).astype(np.float32)


def make_script_episode(seed: int) -> dict[str, Any]:
    """All recorded arrays of the episode `seed` of `run_script`, for CLOCKS_SCHEMA; none on a clock without ticks."""
    return make_episode(seed) | ({"q": make_ticks(seed)} if TICKS[seed] else {})


def looped_length(seed: int) -> int:
    """Steps of the episode `seed` of the endless recording."""
    return 1 + seed % 9


def run_script(path: Path, acknowledge: Callable[..., None]) -> None:
    """Create, record two episodes and discard one, amend, tag, delete, close; acknowledge each when it returned."""
    dataset = salus.create(path, CLOCKS_SCHEMA)
    acknowledge("created")
    with salus.Recorder(dataset) as recorder:
        entry = recorder.record_episode(make_script_episode(WHOLE), {"seed": WHOLE})
        acknowledge("committed", seed=WHOLE, uid=entry.uid)
        dropped = recorder.start(seed=DISCARDED)
        with recorder.episode(seed=STEPWISE) as episode:
            append_and_push(episode, STEPWISE)
        acknowledge("committed", seed=STEPWISE, uid=episode.uid)
        append_and_push(dropped, DISCARDED)
        acknowledge("discarding")
        dropped.discard(reason="operator")
        acknowledge("discarded", uid=dropped.uid)
    acknowledge("closed")
    dataset.refresh()
    dataset.update_metadata(entry.uid, {"note": "amended"})
    dataset.set_outcome(entry.uid, salus.Outcome("failure", "drop", 4))
    acknowledge("amended")
    dataset.refresh().tag("first")
    acknowledge("tagged")
    dataset.delete(episode.uid)
    acknowledge("deleted")


def append_and_push(episode: salus.EpisodeWriter, seed: int) -> None:
    """Append the steps of the episode `seed`, and push two ticks of the joints after each, as long as there are any."""
    arrays, ticks = make_episode(seed), iter(make_ticks(seed))
    for step in range(LENGTHS[seed]):
        episode.append({name: values[step] for name, values in arrays.items()})
        for tick in itertools.islice(ticks, 2):
            episode.push("joints", tick)


def run_groups(path: Path, acknowledge: Callable[..., None]) -> None:
    """Create, and commit two groups of episodes; acknowledge each group when all of it was, in the order of GROUPS."""
    dataset = salus.create(path, SCHEMA)
    acknowledge("created")
    with salus.Recorder(dataset) as recorder, recorder.vector(4) as vector:
        for seeds in GROUPS:
            for env, seed in enumerate(seeds):
                arrays = make_episode(seed, looped_length(seed))
                for step in range(looped_length(seed)):
                    vector.append({name: values[step : step + 1] for name, values in arrays.items()}, env_ids=[env])
            futures = vector.end(range(len(seeds)), metadata=[{"seed": seed} for seed in seeds])
            for seed, future in zip(seeds, futures, strict=True):
                acknowledge("committed", seed=seed, uid=future.result().uid)
    acknowledge("closed")


def record_endlessly(path: Path, seed: int, acknowledge: Callable[..., None]) -> None:
    """Record until killed, publishing now and then."""
    dataset = salus.create(path, SCHEMA, exist_ok=True)
    with salus.Recorder(dataset) as recorder:
        while True:
            arrays = make_episode(seed, looped_length(seed))
            entry = recorder.record_episode(arrays, {"seed": seed})
            acknowledge("committed", seed=seed, uid=entry.uid)
            if seed % 4 == 0:
                dataset.publish(whole=False)
            seed += 1


class CrashBefore:
    """Ends the process before the n-th call that changes files, whatever thread makes it."""

    def __init__(self, number: int) -> None:
        self.calls: list[str] = []
        self._number = number
        self._lock = threading.Lock()
        self._thread = threading.local()

    def step(self, name: str) -> None:
        with self._lock:
            self.calls.append(name)
            if len(self.calls) == self._number:
                os._exit(CRASHED)

    def install(self) -> None:
        """From here on every such call of this process counts. There is no way back: for a child that is to die."""
        for name in ("write", "fsync", "fdatasync"):
            setattr(os, name, self._counted(name, getattr(os, name)))
        crash = self

        class CountedFile(io.FileIO):
            def write(self, data: Any) -> int:
                crash.step("write")
                return super().write(data)

        plain_open = builtins.open

        def counted_open(file: Any, mode: str = "r", buffering: int = -1, *more: Any, **named: Any) -> Any:
            if set(mode) & set("wax+"):
                if buffering != 0:
                    os._exit(UNKNOWN_WRITER)
                return CountedFile(file, mode)
            return plain_open(file, mode, buffering, *more, **named)

        builtins.open = io.open = counted_open  # type: ignore[assignment]
        # Everything that has a name on disk goes past Python's audit events, before it happens, whoever calls it.
        sys.addaudithook(self._audit)

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.step(name)
            return function(*arguments, **named)

        return call

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            flags = arguments[2]
            if isinstance(flags, int) and flags & (os.O_CREAT | os.O_TRUNC):
                self.step("create")
        elif event in ("os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.truncate"):
            self.step(event)


class FailAt(CrashBefore):
    """Lets the n-th call that changes files fail with an error, or that one and all later ones."""

    def __init__(self, number: int, code: int, *, lasting: bool) -> None:
        super().__init__(number)
        self._code = code
        self._lasting = lasting

    def step(self, name: str) -> None:
        with self._lock:
            self.calls.append(name)
            fails = len(self.calls) == self._number or (self._lasting and len(self.calls) > self._number)
        if fails:
            raise OSError(self._code, os.strerror(self._code))


class Warm:
    """The warm process, from the side of the test."""

    def __init__(self) -> None:
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.faults.scenario"],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **command: Any) -> dict[str, Any]:
        """Run one child: `{"status": exit status or -signal, "acknowledged": [[event, details] …], "calls": […]}`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command, default=str) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


def warm_up() -> None:
    """Let zarr write its templates, once, before anything is counted."""
    for schema in (SCHEMA, CLOCKS_SCHEMA):
        salus.layout.root_metadata(schema, 0, {})
        for spec in salus.layout.array_specs(schema).values():
            salus.layout.array_metadata(spec, 0, 0)
        for name in (salus.layout.METADATA, *map(salus.schema.length_name, (salus.schema.STEP, *schema.clocks))):
            salus.layout.index_metadata(name, 0)


def _serve() -> None:
    warm_up()
    for line in sys.stdin:
        print(json.dumps(_run_child(json.loads(line))), flush=True)  # noqa: T201 - this is how it answers


def _run_child(command: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(command, writing)
    os.close(writing)
    received = b""
    deadline = time.monotonic() + command.get("kill_after", 30)
    while True:
        ready, _, _ = select.select([reading], [], [], max(deadline - time.monotonic(), 0))
        if not ready:
            os.kill(child, signal.SIGKILL)
            deadline = time.monotonic() + 30
            continue
        part = os.read(reading, 65536)
        if not part:
            break
        received += part
    os.close(reading)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    lines = [json.loads(line) for line in received.decode().splitlines()]
    calls = lines.pop()[1]["calls"] if lines and lines[-1][0] == "finished" else []
    return {"status": status, "acknowledged": lines, "calls": calls}


def _child(command: dict[str, Any], writing: int) -> None:
    plain_write, status = os.write, 1

    def acknowledge(event: str, **details: Any) -> None:
        plain_write(writing, (json.dumps([event, details]) + "\n").encode())

    try:
        if "crash_before" in command:
            salus.recorder.files.FLUSH_INTERVAL_S = 0  # flush the journal at every step: more places to die in
            crash = CrashBefore(command["crash_before"])
            crash.install()
            run = run_groups if command.get("groups") else run_script
            run(Path(command["path"]), acknowledge)
            acknowledge("finished", calls=crash.calls)
        elif "fail_at" in command:
            salus.recorder.files.FLUSH_INTERVAL_S = 0
            failing = FailAt(command["fail_at"], command["errno"], lasting=command["lasting"])
            failing.install()
            try:
                run_script(Path(command["path"]), acknowledge)
            except salus.SalusError as error:
                acknowledge("refused", error=f"{type(error).__name__}: {error}")
            acknowledge("finished", calls=failing.calls)
        elif "file_limit" in command:
            salus.recorder.files.FLUSH_INTERVAL_S = 0
            limit = resource.RLIM_INFINITY if command["file_limit"] is None else command["file_limit"]
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                run_script(Path(command["path"]), acknowledge)
            except salus.SalusError as error:
                acknowledge("refused", error=f"{type(error).__name__}: {error}")
            acknowledge("finished", calls=[])
        else:
            record_endlessly(Path(command["path"]), command["seed"], acknowledge)
        status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the test is to see it
        import traceback

        acknowledge("raised", error=traceback.format_exc())
    finally:
        os._exit(status)


if __name__ == "__main__":
    _serve()
