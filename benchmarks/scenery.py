"""Pictures for the other benchmarks: smooth shading with sensor noise on a third of the pixels.

zstd takes them to about a third, as it does rendered scenes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def picture(random: np.random.Generator, phases: Iterable[float] = range(3)) -> np.ndarray:
    """uint8 (480, 640, 3); `phases` shift the shading of each color."""
    y, x = np.mgrid[0:480, 0:640]
    shading = np.stack([120 + 80 * np.sin(x / 97 + y / 131 + phase) for phase in phases], axis=-1)
    texture = random.normal(0, 3, (480, 640, 1)) * (random.random((480, 640, 1)) < 0.35)
    return (shading + texture).clip(0, 255).astype(np.uint8)


def moving_camera(num_images: int) -> np.ndarray:
    """uint8 (T, 3, 224, 224): a picture seen by a camera that moves by a pixel per image; T is at most 416."""
    whole = picture(np.random.default_rng(0))
    return np.stack([whole[n % 250 : n % 250 + 224, n : n + 224].transpose(2, 0, 1) for n in range(num_images)])
