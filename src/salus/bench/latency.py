"""How long `append` takes beside a control loop: synthetic cameras at a fixed rate, paced by the clock."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..dataset import Dataset
from ..errors import InvalidInputError
from ..recorder import QueueStatus, Recorder, WhenFull
from ..schema import Feature, Image, Schema

NUM_STATES, NUM_ACTIONS = 28, 14
_RING = 8  # different steps of frames, repeated: more than the caches of a processor hold
_PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}


@dataclass(frozen=True)
class Cameras:
    """What is recorded: RGB cameras, 28 states and 14 actions.

    Attributes:
        count: Cameras.
        height, width: Pixels.
        rate_hz: Steps per second.
        codec: Of the images.
        noise: Standard deviation of the sensor noise, in grey levels; it decides how well images compress.
    """

    count: int = 3
    height: int = 480
    width: int = 640
    rate_hz: float = 50
    codec: Literal["zstd", "jpeg"] = "zstd"
    noise: float = 1.0

    @property
    def names(self) -> list[str]:
        """Names of the image features."""
        return [f"images.{number}" for number in range(self.count)]

    def schema(self) -> Schema:
        """Nullable channels-last images, states and actions."""
        images = {
            name: Image(height=self.height, width=self.width, layout="HWC", codec=self.codec, nullable=True)
            for name in self.names
        }
        return Schema(
            {**images, "states": Feature((NUM_STATES,)), "actions": Feature((NUM_ACTIONS,))}, rate_hz=self.rate_hz
        )

    def frames(self, seed: int = 0) -> np.ndarray:
        """uint8 (steps, cameras, height, width, 3): a lit table with moving blocks, and sensor noise on it."""
        random = np.random.default_rng(seed)
        rows, columns = np.mgrid[0 : self.height, 0 : self.width] / max(self.height, self.width)
        out = np.empty((_RING, self.count, self.height, self.width, 3), np.uint8)
        for step, camera in np.ndindex(_RING, self.count):
            scene = 60 + 120 * columns[..., None] * [1.0, 0.9, 0.8] + 40 * rows[..., None]
            for block in range(6):
                y, x = random.uniform(0, 0.7, 2) * [self.height, self.width]
                size = int(random.uniform(0.05, 0.25) * self.height)
                scene[int(y) : int(y) + size, int(x) : int(x) + size] = 40 * np.array([block, 6 - block, 3])
            scene += random.normal(scale=self.noise, size=scene.shape)
            out[step, camera] = scene.round().clip(0, 255)
        return out


def summary(seconds: np.ndarray) -> dict[str, float]:
    """Percentiles of `seconds`, in milliseconds: `{"p50", "p99", "p99.9", "max"}`."""
    return {name: float(np.percentile(seconds, place)) * 1e3 for name, place in _PERCENTILES.items()}


@dataclass(frozen=True)
class Run:
    """One recording, measured.

    Attributes:
        append_s: float64 (T,), what each `append` took.
        copy_s: float64 (T,), what copying other frames of the same size took, just before it.
        late_s: float64 (T,), how late the loop woke up for each step: the operating system and the GIL.
        lost: Steps that were given and not committed, plus images that were dropped.
        bits_per_byte: Bits on disk per byte of the steps: their entropy, as far as the codec sees it.
        cpu: CPU time of the process over the time of the loop; 1.0 is one core, the generating thread included.
        queue: What waited.
    """

    append_s: np.ndarray
    copy_s: np.ndarray
    late_s: np.ndarray
    lost: int
    bits_per_byte: float
    cpu: float
    queue: QueueStatus

    @property
    def beyond_copy_ms(self) -> float:
        """p99.9 of `append` beyond the median of copying, milliseconds."""
        return float(np.percentile(self.append_s, 99.9) - np.percentile(self.copy_s, 50)) * 1e3

    def to_json(self) -> dict[str, Any]:
        """As JSON values; times in milliseconds."""
        return {
            "steps": len(self.append_s),
            "append_ms": summary(self.append_s),
            "copy_ms": summary(self.copy_s),
            "late_ms": summary(self.late_s),
            "beyond_copy_ms": self.beyond_copy_ms,
            "lost": self.lost,
            "bits_per_byte": self.bits_per_byte,
            "cpu": self.cpu,
            "waited_s": self.queue.waited_s,
            "peak_queued_bytes": self.queue.peak_bytes,
        }


@dataclass
class Progress:
    """What a recording reports while it runs: `append_s` grows by one number per step."""

    append_s: list[float] = field(default_factory=list)
    copy_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)


def record(
    dataset: Dataset,
    cameras: Cameras,
    *,
    seconds: float,
    when_full: WhenFull = "block",
    on_start: Callable[[Recorder, Progress], None] | None = None,
    realtime: bool = False,
) -> Run:
    """Record one episode into `dataset`, a step each `1 / rate_hz` seconds. Ctrl-C ends it early and keeps it.

    Args:
        dataset: Made with `cameras.schema()`.
        cameras: What to record.
        seconds: For how long.
        when_full: As of `Recorder`.
        on_start: Called before the first step, with what the loop then fills.
        realtime: Run the loop under SCHED_FIFO (Linux), as control loops of robots are.

    Raises:
        InvalidInputError: The system does not allow `realtime`.
    """
    frames, progress = cameras.frames(), Progress()
    random = np.random.default_rng(0)
    states, actions = random.normal(size=(64, NUM_STATES)), random.normal(size=(64, NUM_ACTIONS))
    spare = [memoryview(bytearray(frames[0, 0].nbytes)) for _ in range(cameras.count)]
    flat = [[memoryview(image).cast("B") for image in step] for step in frames]
    with Recorder(dataset, when_full=when_full) as recorder:
        episode = recorder.start(task="latency")
        if on_start is not None:
            on_start(recorder, progress)
        if realtime:
            _make_realtime()
        usage, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        with suppress(KeyboardInterrupt):  # ends the recording; what was appended is kept
            for number, late_s in _paced(cameras.rate_hz, seconds, began):
                images = dict(zip(cameras.names, frames[number % _RING], strict=True))
                state, action = states[number % 64], actions[number % 64]
                others = flat[(number + _RING // 2) % _RING]
                start = time.perf_counter()
                for target, image in zip(spare, others, strict=True):
                    target[:] = image
                copied = time.perf_counter()
                episode.append(images, states=state, actions=action)
                done = time.perf_counter()
                progress.append_s.append(done - copied)
                progress.copy_s.append(copied - start)
                progress.late_s.append(late_s)
        elapsed, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        if realtime:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        entry = episode.commit()
        status = recorder.queue_status
    cpu = used.ru_utime + used.ru_stime - usage.ru_utime - usage.ru_stime
    count = len(progress.append_s)
    raw = count * (frames[0].nbytes + 4 * (NUM_STATES + NUM_ACTIONS))
    return Run(
        np.array(progress.append_s),
        np.array(progress.copy_s),
        np.array(progress.late_s),
        lost=count - entry.num_steps + status.dropped_images,
        bits_per_byte=8 * entry.stored_bytes / raw,
        cpu=cpu / elapsed,
        queue=status,
    )


def _make_realtime() -> None:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except (AttributeError, PermissionError) as error:
        raise InvalidInputError(
            f"realtime: the system refused SCHED_FIFO ({error}), expected Linux and the right to use it; "
            "raise `ulimit -r`, or measure without it"
        ) from error


def _paced(rate_hz: float, seconds: float, began: float) -> Iterator[tuple[int, float]]:
    """(number, seconds late) of each step; a step that comes late does not move the next ones."""
    for number in range(max(round(rate_hz * seconds), 1)):
        due = began + number / rate_hz
        ahead = due - time.perf_counter()
        if ahead > 0:
            time.sleep(ahead)
        yield number, time.perf_counter() - due
