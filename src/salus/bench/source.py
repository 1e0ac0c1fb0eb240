"""The episodes that all contestants write and read: rendered ones, or those of the user's own dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..demo.sim import RATE_HZ, PickAndPlace
from ..errors import InvalidInputError
from ..schema import Feature, Image, Schema
from ..view import DatasetView

IMAGE_SIZE = 224
ACTION_WINDOW = 16

Arrays: TypeAlias = dict[str, np.ndarray]
Track: TypeAlias = Callable[[Iterable[Any], str, int], Iterator[Any]]


@dataclass(frozen=True)
class Source:
    """Episodes as arrays.

    Attributes:
        description: Where they come from, for the report.
        cameras: Names of the image features; at most two.
        small: Names of the other features.
        actions: The one of these that a training sample takes a window of.
        rate_hz: Steps per second.
        lengths: int64 (E,): steps of each episode.
        shapes: Shape of one step by feature; images (H, W, C).
        episodes: For each, feature name to (T, …); images uint8 (T, H, W, C), RGB. Empty in other processes.
    """

    description: str
    cameras: tuple[str, ...]
    small: tuple[str, ...]
    actions: str
    rate_hz: float
    lengths: np.ndarray
    shapes: dict[str, tuple[int, ...]]
    episodes: list[Arrays] = field(repr=False)

    @classmethod
    def of(
        cls, episodes: list[Arrays], *, description: str, cameras: tuple[str, ...], actions: str, rate_hz: float
    ) -> Source:
        """The source of these arrays."""
        shapes = {name: array.shape[1:] for name, array in episodes[0].items()}
        small = tuple(name for name in shapes if name not in cameras)
        lengths = np.array([len(episode[actions]) for episode in episodes], np.int64)
        return cls(description, cameras, small, actions, rate_hz, lengths, shapes, episodes)

    @property
    def raw_bytes(self) -> int:
        """Bytes of all values."""
        return sum(array.nbytes for episode in self.episodes for array in episode.values())

    @property
    def schema(self) -> Schema:
        """What SALUS is given: images as (C, H, W), stored losslessly."""
        first = self.episodes[0]
        features: dict[str, Feature] = {}
        for name in self.cameras:
            height, width, channels = first[name].shape[1:]
            features[name] = Image(height=height, width=width, color="rgb" if channels == 3 else "gray")
        for name in self.small:
            features[name] = Feature(first[name].shape[1:], first[name].dtype.name, allow_nan=True)
        return Schema(features, rate_hz=self.rate_hz)

    def first(self, num_episodes: int, max_steps: int | None = None) -> Source:
        """The same with the first episodes only, and of these the first steps."""
        episodes = [
            {name: values[:max_steps] for name, values in arrays.items()} for arrays in self.episodes[:num_episodes]
        ]
        lengths = self.lengths[:num_episodes]
        return replace(
            self, lengths=lengths if max_steps is None else np.minimum(lengths, max_steps), episodes=episodes
        )

    def without_values(self) -> Source:
        """The same without arrays, to send to another process."""
        return replace(self, episodes=[])

    def random_pairs(self, count: int, random: np.random.Generator) -> np.ndarray:
        """int64 (count, 2): episodes and steps, each step of all as likely."""
        ends = np.cumsum(self.lengths)
        steps = random.integers(0, ends[-1], count)
        episodes = np.searchsorted(ends, steps, side="right")
        return np.stack([episodes, steps - (ends - self.lengths)[episodes]], axis=1)

    def window(self, pairs: np.ndarray) -> np.ndarray:
        """int64 (n, 16): the steps of the action window of each pair, held at the end of the episode."""
        last = self.lengths[pairs[:, 0]] - 1
        window: np.ndarray = np.minimum(pairs[:, 1:] + np.arange(ACTION_WINDOW), last[:, None])
        return window


def rendered(num_episodes: int, cache: Path, track: Track) -> Source:
    """Pick-and-place episodes of the demo's robot, seen by two 224 × 224 cameras. Rendered once, then kept in `cache`.

    Raises:
        MissingExtraError: The simulator is not installed.
    """
    cache.mkdir(parents=True, exist_ok=True)
    files = [cache / f"front-hand-{seed}.npz" for seed in range(num_episodes)]
    missing = [seed for seed, file in enumerate(files) if not file.exists()]
    if missing:
        with PickAndPlace(image_size=IMAGE_SIZE) as robot:
            for seed in track(missing, "rendering", len(missing)):
                unfinished = cache / "unfinished.npz"
                np.savez(unfinished, **_render(robot, seed))  # type: ignore[arg-type]  # the names are ours
                unfinished.rename(files[seed])
    episodes = [dict(np.load(file)) for file in files]
    return Source.of(
        episodes,
        description=f"{num_episodes} rendered pick-and-place episodes, two {IMAGE_SIZE} × {IMAGE_SIZE} cameras",
        cameras=("images.front", "images.hand"),
        actions="actions",
        rate_hz=RATE_HZ,
    )


def _render(robot: PickAndPlace, seed: int) -> Arrays:
    steps = [{**step, "images.hand": robot.hand_image()} for step in robot.rollout(seed)]
    episode = {name: np.stack([step[name] for step in steps]) for name in steps[0]}
    episode["images.front"] = np.ascontiguousarray(episode.pop("images").transpose(0, 2, 3, 1))
    return episode


def of_dataset(dataset: DatasetView, num_episodes: int) -> Source:
    """The first episodes of a dataset, with its first two cameras.

    Raises:
        InvalidInputError: The dataset has no images, or nothing that could be actions.
    """
    features = dataset.schema.recorded
    cameras = tuple(name for name, feature in features.items() if isinstance(feature, Image))[:2]
    small = tuple(
        name
        for name, feature in features.items()
        if not isinstance(feature, Image) and feature.dtype != "string" and not feature.nullable
    )
    if not cameras or not small:
        raise InvalidInputError(
            f"bench: the dataset has {len(cameras)} image features and {len(small)} others, expected at least one of "
            f"each; {dataset.url}"
        )
    likely = [name for name in small if name.rpartition(".")[2] in ("action", "actions")]
    episodes = []
    for block in dataset[:num_episodes].scan([*cameras, *small], max_block_bytes=2**40):
        arrays = {name: np.ascontiguousarray(_channels_last(block.arrays[name], features[name])) for name in cameras}
        episodes.append(arrays | {name: block.arrays[name].copy() for name in small})
    description = f"the first {len(episodes)} episodes of {dataset.url}"
    return Source.of(
        episodes,
        description=description,
        cameras=cameras,
        actions=(likely or list(small))[0],
        rate_hz=dataset.schema.rate_hz,
    )


def _channels_last(images: np.ndarray, feature: Feature) -> np.ndarray:
    return images.transpose(0, 2, 3, 1) if isinstance(feature, Image) and feature.layout == "CHW" else images
