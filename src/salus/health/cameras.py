"""What is measured of the images of one camera in one episode, from sampled pixels and by comparing them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIDE = 32
"""Of each image a grid of at most 32 × 32 pixels is looked at."""

BLACK = 20
"""An image is black where 99 % of its pixels are below this level, of 255."""

WHITE = 245
"""An image is blown out where 95 % of its pixels are at this level or above."""


@dataclass(frozen=True)
class ImageMeasures:
    """One camera in one episode. Only images that are there count.

    Attributes:
        num_steps: T.
        count: Images.
        missing: Steps without an image.
        brightness: float32 (count,), the mean level of each image, 0–255.
        agreement: float32 (count,), of all pixels the share that changed against the image before to the same side,
            brighter or darker, by more than 4 levels; 0 of the first.
        repeats: bool (count,), whether the image equals the one before, every pixel.
        black: bool (count,).
        white: bool (count,), blown out.
        steps: int64 (count,), the step of each image.
    """

    num_steps: int
    count: int
    missing: int
    brightness: np.ndarray
    agreement: np.ndarray
    repeats: np.ndarray
    black: np.ndarray
    white: np.ndarray
    steps: np.ndarray

    def runs(self) -> tuple[np.ndarray, np.ndarray]:
        """Stretches of equal images: int64 (R,) each, the number of images, and the place of the first."""
        borders = np.append(np.flatnonzero(~self.repeats), self.count)
        return np.diff(borders), borders[:-1]


class ImageMeter:
    """Takes the images of an episode in pieces, in order. Memory is that of one image, and some bytes per step."""

    def __init__(self, *, channels_first: bool) -> None:
        self._channels_first = channels_first
        self._last: np.ndarray | None = None
        self._last_sample: np.ndarray | None = None
        self._steps = 0
        self._rows: list[tuple[float, float, bool, bool, bool, int]] = []

    def add(self, images: np.ndarray, valid: np.ndarray | None = None) -> None:
        """Take in uint8 (n, *shape of an image); valid is bool (n,), the steps that have one."""
        samples = _sampled(images, self._channels_first)
        for place in range(len(images)) if valid is None else np.flatnonzero(valid).tolist():
            self._rows.append(self._look(images[place], samples[place], self._steps + place))
        self._steps += len(images)
        if self._last is not None:
            self._last = self._last.copy()  # a view of it would keep the whole piece

    def _look(self, image: np.ndarray, sample: np.ndarray, step: int) -> tuple[float, float, bool, bool, bool, int]:
        levels = np.sort(sample, axis=None)
        agreement, repeats = 0.0, False
        if self._last is not None and self._last_sample is not None:
            change = sample - self._last_sample
            agreement = float(max((change > 4).mean(), (change < -4).mean()))
            repeats = not change.any() and np.array_equal(image, self._last)
        self._last, self._last_sample = image, sample
        black = bool(levels[int(0.99 * (len(levels) - 1))] < BLACK)
        white = bool(levels[int(0.05 * (len(levels) - 1))] >= WHITE)
        return float(sample.mean()), agreement, repeats, black, white, step

    def measures(self) -> ImageMeasures:
        """What came out."""
        columns = list(zip(*self._rows, strict=True)) or [()] * 6
        brightness, agreement, repeats, black, white, steps = columns
        return ImageMeasures(
            num_steps=self._steps,
            count=len(self._rows),
            missing=self._steps - len(self._rows),
            brightness=np.array(brightness, np.float32),
            agreement=np.array(agreement, np.float32),
            repeats=np.array(repeats, bool),
            black=np.array(black, bool),
            white=np.array(white, bool),
            steps=np.array(steps, np.int64),
        )


def _sampled(images: np.ndarray, channels_first: bool) -> np.ndarray:
    """int16 (n, h, w): the mean of the channels, at most 32 × 32 pixels of each image."""
    if channels_first:
        images = images.transpose(0, 2, 3, 1)
    rows, columns = (np.linspace(0, size - 1, min(size, SIDE)).round().astype(int) for size in images.shape[1:3])
    picked = images[:, rows[:, None], columns]
    return np.asarray(picked.sum(axis=-1, dtype=np.int32) // picked.shape[-1], np.int16)
