"""LeRobot, in an environment of its own (`make setup-lerobot`): it needs other versions of much."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...errors import SalusError
from ..source import Arrays, Source
from .base import Contestant, UnsupportedError

PYTHON = Path(".venv-lerobot/bin/python")


class LeRobotVideo(Contestant):
    """Its standard format: frames as video (lossy), rows as Parquet; items one by one, as its `DataLoader` reads."""

    name = "lerobot-video"
    title = "LeRobot, video (lossy)"
    lossless = False
    samples_at_once = 8
    max_scanned = 2
    video: ClassVar[bool] = True

    @classmethod
    def missing(cls) -> str | None:
        return None if PYTHON.exists() else f"no {PYTHON}: run `make setup-lerobot` in a clone of SALUS"

    def write(self, folder: Path, source: Source) -> None:
        self.time_write(folder, source)

    def time_write(self, folder: Path, source: Source) -> float:
        with tempfile.TemporaryDirectory() as temporary:
            paths = []
            for number, arrays in enumerate(source.episodes):
                paths.append(f"{temporary}/{number}.npz")
                np.savez(paths[-1], **arrays)  # type: ignore[arg-type]  # the names are ours
            names = {"cameras": source.cameras, "small": source.small, "actions": source.actions}
            common = {"folder": str(folder / "data"), "video": self.video, "rate_hz": source.rate_hz}
            return self._ask({"do": "write", "episodes": paths, **names, **common})

    def open(self) -> None:
        lengths = self.source.lengths.tolist()
        folder = str(self.folder / "data")
        self._ask(
            {
                "do": "open",
                "folder": folder,
                "lengths": lengths,
                "cameras": self.source.cameras,
                "rate_hz": self.source.rate_hz,
            }
        )

    def frames(self, pairs: np.ndarray) -> np.ndarray:
        return self._values({"do": "frames", "pairs": pairs.tolist()})["images"]

    def samples(self, pairs: np.ndarray) -> Arrays:
        values = self._values({"do": "samples", "pairs": pairs.tolist()})
        return {self.source.cameras[0]: values["images"], self.source.actions: values["actions"]}

    def time_episode(self, number: int) -> float:
        return self._ask({"do": "episode", "episode": number})

    def time_all(self) -> float:
        return sum(self.time_episode(number) for number in range(self.num_scanned))

    def time_frames(self, pairs: np.ndarray) -> float:
        return self._ask({"do": "frames", "pairs": pairs.tolist()})

    def time_samples(self, num_batches: int, random: np.random.Generator) -> float:
        batches = [self.source.random_pairs(self.samples_at_once, random).tolist() for _ in range(num_batches)]
        return sum(self._ask({"do": "samples", "pairs": pairs}) for pairs in batches)

    def batches(self, num_batches: int, random: np.random.Generator) -> Iterator[Any]:
        raise UnsupportedError("in another environment")  # whose memory is not this process's

    def torch_dataset(self) -> Any:
        raise UnsupportedError("in another environment")

    def _values(self, command: dict[str, Any]) -> Arrays:
        with tempfile.TemporaryDirectory() as temporary:
            self._ask({**command, "save": f"{temporary}/values.npz"})
            return dict(np.load(f"{temporary}/values.npz"))

    def _ask(self, command: dict[str, Any]) -> float:
        """Send a command to the other environment; returns the seconds that it took there."""
        process = self._process()
        if process.stdin is None or process.stdout is None:
            raise SalusError("bench: the pipes to LeRobot's environment are gone")
        process.stdin.write(json.dumps(command) + "\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline() or '{"error": "its process died; run with --verbose"}')
        if "error" in answer:
            raise SalusError(f"bench: LeRobot: {answer['error']}")
        return float(answer.get("seconds", 0))

    def _process(self) -> subprocess.Popen[str]:
        running: subprocess.Popen[str] | None = getattr(self, "_running", None)
        if running is None:
            script = Path(__file__).parents[1] / "lerobot_worker.py"
            running = self._running = subprocess.Popen(  # noqa: S603 - our own script
                [str(PYTHON), str(script), str(self.threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            )
            if running.stdout is None or not running.stdout.readline():
                raise SalusError(f"bench: {PYTHON} cannot import LeRobot; run `make setup-lerobot` again")
        return running

    def close(self) -> None:
        running: subprocess.Popen[str] | None = getattr(self, "_running", None)
        if running is not None:
            running.communicate()  # its input ends


class LeRobotImage(LeRobotVideo):
    """Its lossless mode: images as PNG."""

    name = "lerobot-image"
    title = "LeRobot, images"
    lossless = True
    samples_at_once = 4
    video = False
