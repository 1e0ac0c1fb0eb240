"""The other end of `contestants/lerobot.py`: runs in LeRobot's own environment, where SALUS is not installed.

Takes one JSON command per line on stdin and answers each with one JSON line on stdout. It measures its own time, so
that the pipe is not in it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch

# The torchvision that installs without CUDA lacks these operators; importing it only asks that they are declared.
_library = torch.library.Library("torchvision", "DEF")
for _schema in (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
):
    _library.define(_schema)

from lerobot.datasets.lerobot_dataset import LeRobotDataset

REPO = "local/bench"


def write(command: dict) -> dict:
    root = Path(command["folder"])
    episodes = [dict(np.load(path)) for path in command["episodes"]]
    first, cameras = episodes[0], command["cameras"]
    kind = "video" if command["video"] else "image"
    features = {
        f"observation.images.{name}": {
            "dtype": kind,
            "shape": first[name].shape[1:],
            "names": ["height", "width", "channel"],
        }
        for name in cameras
    }
    for name in command["small"]:
        key = "action" if name == command["actions"] else f"observation.{name}"
        features[key] = {"dtype": "float32", "shape": first[name].shape[1:], "names": None}
    started = time.perf_counter()
    dataset = LeRobotDataset.create(
        REPO,
        fps=int(command["rate_hz"]),
        root=root,
        features=features,
        use_videos=command["video"],
        image_writer_threads=4,
    )
    for arrays in episodes:
        for step in range(len(arrays[command["actions"]])):
            frame = {f"observation.images.{name}": arrays[name][step] for name in cameras}
            for name in command["small"]:
                key = "action" if name == command["actions"] else f"observation.{name}"
                frame[key] = arrays[name][step].astype(np.float32)
            dataset.add_frame({**frame, "task": "bench"})
        dataset.save_episode()
    dataset.finalize()
    return {"seconds": time.perf_counter() - started}


class Reader:
    """An open dataset."""

    def __init__(self, command: dict) -> None:
        fps, root = int(command["rate_hz"]), command["folder"]
        window = {"action": [step / fps for step in range(16)]}
        self.samples = LeRobotDataset(REPO, root=root, delta_timestamps=window, video_backend="pyav")
        self.plain = LeRobotDataset(REPO, root=root, video_backend="pyav")
        lengths = np.array(command["lengths"])
        self.starts, self.lengths = np.cumsum(lengths) - lengths, lengths
        self.camera = f"observation.images.{command['cameras'][0]}"

    def read(self, command: dict) -> dict:
        started = time.perf_counter()
        if command["do"] == "samples":
            items = [self.samples[int(self.starts[episode] + step)] for episode, step in command["pairs"]]
        elif command["do"] == "frames":
            items = [self.plain[int(self.starts[episode] + step)][self.camera] for episode, step in command["pairs"]]
        else:
            first = int(self.starts[command["episode"]])
            items = [self.plain[place] for place in range(first, first + int(self.lengths[command["episode"]]))]
        seconds = time.perf_counter() - started
        if "save" in command:
            images = [item if torch.is_tensor(item) else item[self.camera] for item in items]
            values = {"images": (torch.stack(images) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()}
            if command["do"] == "samples":
                values["actions"] = torch.stack([item["action"] for item in items]).numpy()
            np.savez(command["save"], **values)
        return {"seconds": seconds}


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    reader = None
    answers.write(json.dumps({"ready": True}) + "\n")
    answers.flush()
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if command["do"] == "write":
                answer = write(command)
            elif command["do"] == "open":
                reader, answer = Reader(command), {}
            else:
                answer = reader.read(command)
        except Exception as error:  # told to the other end, which raises it
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


main()
