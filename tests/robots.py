"""A small robot that is fine: its episodes as arrays, made of numbers alone."""

from __future__ import annotations

import numpy as np

import salus

from .planting import Take

SCHEMA = salus.Schema(
    {
        "images": salus.Image(height=24, width=20),
        "states": salus.Feature((7,), names=("x", "y", "z", "vx", "vy", "vz", "width"), unit="m"),
        "actions": salus.Feature((7,), names=("x", "y", "z", "roll", "pitch", "yaw", "gripper")),
        "signals": salus.Feature((4,), names=("error", "effort", "force", "load")),
    },
    rate_hz=25,
    failure_kinds=("drop", "miss"),
    horizons=(6, 10),
)


def healthy(number: int) -> Take:
    """Episode `number`: a hand that follows smooth commands one step later, a gripper that closes, a noisy camera."""
    rng = np.random.default_rng(number)
    steps = int(rng.integers(80, 140))
    time = np.arange(steps) / SCHEMA.rate_hz
    waves = rng.uniform(0.3, 1.5, (3, 4)), rng.uniform(0, 6, (3, 4)), rng.normal(0, 0.3, (3, 4))
    command = np.stack([sum(a * np.sin(6.28 * f * time + p) for f, p, a in zip(*row, strict=True)) for row in
                        zip(*waves, strict=True)], axis=1)  # fmt: skip
    closes = int(rng.integers(30, 60))
    actions = np.zeros((steps, 7))
    actions[:, :3], actions[:, 6] = command, np.where(np.arange(steps) < closes, 1.0, -1.0)
    velocity = np.zeros((steps, 3))
    for step in range(1, steps):
        velocity[step] = 0.3 * velocity[step - 1] + 0.7 * command[step - 1] + rng.normal(0, 0.01, 3)
    place = rng.normal(0, 0.2, 3) + np.cumsum(velocity, axis=0) / SCHEMA.rate_hz
    width = 0.05 + 0.03 * np.tanh((closes + 4 - np.arange(steps)) / 3) + rng.normal(0, 1e-4, steps)
    force = np.where(np.arange(steps) > closes + 6, 5 + rng.normal(0, 0.2, steps), 0.0)
    signals = np.stack([*np.abs(rng.normal(0, 1, (2, steps))), force, rng.normal(0, 1, steps)], axis=1)
    rows, columns = np.mgrid[:24, :20]
    blob = np.exp(-((rows - 12 - 8 * place[:, :1, None]) ** 2 + (columns - 10 - 6 * place[:, 1:2, None]) ** 2) / 20)
    image = 110 + 90 * blob[:, None] + rng.normal(0, 3, (steps, 3, 24, 20))
    failed = number % 3 == 0
    outcome = salus.Outcome("failure", "drop" if number % 2 else "miss", steps - 10) if failed else "success"
    arrays = {
        "images": image.clip(0, 255).astype(np.uint8),
        "states": np.concatenate([place, velocity, width[:, None]], axis=1).astype(np.float32),
        "actions": actions.astype(np.float32),
        "signals": signals.astype(np.float32),
    }
    period = rng.normal(40e6, 0.5e6, steps).astype(np.int64)
    return Take(arrays, np.cumsum(period), salus.Outcome.of(outcome)).with_labels(SCHEMA)
