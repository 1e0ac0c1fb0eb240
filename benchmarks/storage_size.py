"""How much smaller than raw a dataset is, lossless: rendered Fetch, rendered Meta-World, and Fetch with sensor noise.

    python benchmarks/storage_size.py          # a table; about two minutes

Fetch frames flatter any codec (large flat areas), so the others stand beside them. The figure is that of the whole
dataset: images, states, actions, signals and stamps against the bytes of their values.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import salus
from salus.demo.check import size_of
from salus.demo.sim import PickAndPlace, require_sim

EPISODES = 4
Step = dict[str, np.ndarray]


def fetch() -> Iterator[list[Step]]:
    with PickAndPlace() as robot:
        for seed in range(EPISODES):
            yield list(robot.rollout(seed))


def with_noise(grey_levels: float) -> Iterator[list[Step]]:
    random = np.random.default_rng(0)
    for steps in fetch():
        for step in steps:
            noisy = step["images"] + random.normal(scale=grey_levels, size=step["images"].shape)
            step["images"] = noisy.round().clip(0, 255).astype(np.uint8)
        yield steps


def meta_world(camera: str) -> Iterator[list[Step]]:
    require_sim()  # chooses the OpenGL backend
    import gymnasium
    import metaworld  # noqa: F401 - registers the environment
    from metaworld.policies import SawyerPickPlaceV3Policy

    size = {"width": 224, "height": 224}
    env: Any = gymnasium.make(
        "Meta-World/MT1", env_name="pick-place-v3", render_mode="rgb_array", camera_name=camera, **size
    )
    policy = SawyerPickPlaceV3Policy()
    for seed in range(EPISODES):
        observation, _ = env.reset(seed=seed)
        steps = []
        for _ in range(120):
            action = np.clip(policy.get_action(observation), -1, 1)
            image = np.ascontiguousarray(env.render().transpose(2, 0, 1))
            numbers = observation[:26].astype(np.float32)
            actions = np.pad(action, (0, 3)).astype(np.float32)
            steps.append({"images": image, "states": numbers[:7], "actions": actions, "signals": numbers[7:19]})
            observation, *_ = env.step(action)
        yield steps
    env.close()


def measure(episodes: Iterator[list[Step]]) -> tuple[float, float]:
    """(ratio of the whole dataset, ratio of the images alone)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.zarr"
        with salus.Recorder(salus.create(path, salus.schema.SALUS)) as recorder:
            for steps in episodes:
                with recorder.episode() as episode:
                    for step in steps:
                        episode.append(step)
        dataset = salus.open(path)
        stored = sum(file.stat().st_size for file in (path / "images").glob("c.*"))
        return size_of(dataset).ratio, dataset.num_steps * 3 * 224 * 224 / stored


def main() -> None:
    sources: dict[str, Callable[[], Iterator[list[Step]]]] = {
        "Fetch, external camera": fetch,
        "Meta-World, external camera (corner2)": lambda: meta_world("corner2"),
        "Meta-World, wrist camera (gripperPOV)": lambda: meta_world("gripperPOV"),
        "Fetch + sensor noise, σ = 1 grey level": lambda: with_noise(1),
        "Fetch + sensor noise, σ = 4 grey levels": lambda: with_noise(4),
    }
    print("| images, 224 × 224 | dataset against raw | images alone |\n|---|---|---|")
    for name, source in sources.items():
        whole, images = measure(source())
        print(f"| {name} | {whole:.1f} × | {images:.1f} × |", flush=True)


if __name__ == "__main__":
    main()
    os._exit(0)  # Meta-World's renderer fails while the interpreter shuts down, after everything is done
