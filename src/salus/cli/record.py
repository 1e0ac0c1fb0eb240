"""What `salus record --demo` shows: a histogram of `append` while it records, and the figures at the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from rich.live import Live
from rich.text import Text

from .terminal import console, errors, size, table, text

if TYPE_CHECKING:
    from ..bench.latency import Progress, Run
    from ..recorder import Recorder

BOUNDS_MS = (0.25, 0.5, 1, 2, 4, 8, 16, 32)
_REFRESH_S = 0.25
_BAR = 40


def histogram(append_s: Sequence[float]) -> list[tuple[str, int]]:
    """(label, count) for each class of milliseconds; the first is below, the last above all `BOUNDS_MS`."""
    counts = np.bincount(np.searchsorted(BOUNDS_MS, np.asarray(append_s) * 1e3), minlength=len(BOUNDS_MS) + 1)
    labels = [*(f"≤ {bound:g} ms" for bound in BOUNDS_MS), f"> {BOUNDS_MS[-1]:g} ms"]
    return list(zip(labels, counts.tolist(), strict=True))


def _picture(append_s: Sequence[float], recorder: Recorder) -> Text:
    rows, status = histogram(append_s), recorder.queue_status
    most = max(1, *(count for _, count in rows))
    lines = [
        f"{label:>9} {count:>7} {'█' * (-(-_BAR * count // most))}"
        for label, count in rows
        if count or label == "≤ 1 ms"
    ]
    queued = f"queue {size(status.depth_bytes)} of {size(status.capacity_bytes)}, peak {size(status.peak_bytes)}"
    return Text("\n".join([f"append, {len(append_s)} steps; {queued}", *lines]))


class Show:
    """Draws the histogram on stderr, from a thread of its own, while a recording runs."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, recorder: Recorder, progress: Progress) -> None:
        """To be given to `record` as `on_start`."""
        self._thread = threading.Thread(target=self._draw, args=(recorder, progress), name="salus-show", daemon=True)
        self._thread.start()

    def _draw(self, recorder: Recorder, progress: Progress) -> None:
        with Live(console=errors, auto_refresh=False) as live:
            done = False
            while not done:
                done = self._stop.wait(_REFRESH_S)
                live.update(_picture(progress.append_s[:], recorder), refresh=True)

    def stop(self) -> None:
        """Draw for the last time."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()


@contextmanager
def shown() -> Iterator[Show]:
    """A `Show`, stopped on leaving."""
    show = Show()
    try:
        yield show
    finally:
        show.stop()


def print_run(run: Run, path: str) -> None:
    """The figures of a recording, and where the data is."""
    from ..bench.latency import summary

    kinds = {"append": run.append_s, "copying the same frames": run.copy_s, "lateness of the loop": run.late_s}
    rows = table("ms", ">p50", ">p99", ">p99.9", ">max")
    for name, seconds in kinds.items():
        rows.add_row(name, *(f"{value:.2f}" for value in summary(seconds).values()))
    console.print(rows)
    console.print(
        f"{len(run.append_s)} steps, {run.lost} lost; {run.cpu:.2f} cores; "
        f"{run.bits_per_byte:.2f} bits on disk per byte; waited {run.queue.waited_s:.2f} s for the queue"
    )
    console.print(text(f"the data is in {path}"), soft_wrap=True)
