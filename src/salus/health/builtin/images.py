"""Rules about cameras: frozen, black, blown out, exposure that jumps, dropped images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..cameras import ImageMeasures
from ..findings import Hit
from ..measures import EpisodeMeasures
from ..registry import rule


@rule(
    severity="error",
    reason="A real camera never gives the same image twice: equal images come from a driver that hung.",
    advice="Look at the camera's driver and its USB bandwidth; delete the episode, or cut it there.",
)
def frozen_images(episode: EpisodeMeasures, *, least_s: float = 0.5, least_images: float = 8) -> Iterator[Hit]:
    """A stretch of equal images while the numbers of the episode go on: a simulator at rest renders one image."""
    for name, found in episode.images.items():
        clock = episode.schema.features[name].clock
        least = max(least_images, least_s * episode.schema.rate_of(clock))
        for length, first in zip(*found.runs(), strict=True):
            steps = int(found.steps[first]), int(found.steps[first + length - 1]) + 1
            if (found.black | found.white)[first : first + length].all():
                continue  # black_images or blown_out_images says so
            if length >= least and _moves(episode, steps, clock):
                share = float(length / found.count)
                yield Hit(
                    f"the same image {int(length)} times from step {steps[0]}, {share:.0%} of the episode",
                    float(length),
                    float(least),
                    feature=name,
                    steps=steps,
                )


@rule(
    reason="Images that repeat in short stretches come from a camera that is slower than the steps.",
    advice="Record the camera on a clock of its own, or lower the rate of the steps.",
)
def repeated_images(episode: EpisodeMeasures, *, most_share: float = 0.2) -> Iterator[Hit]:
    """The share of images that equal the one before, outside of frozen stretches, while the numbers go on."""
    for name, found in episode.images.items():
        lengths, first = found.runs()
        clock = episode.schema.features[name].clock
        short = [
            int(length) - 1
            for length, place in zip(lengths, first, strict=True)
            if 1 < length < 8
            and _moves(episode, (int(found.steps[place]), int(found.steps[place + length - 1]) + 1), clock)
        ]
        share = sum(short) / max(found.count, 1)
        if share > most_share:
            yield Hit(
                f"{share:.0%} of the images equal the one before, in stretches of up to {max(short) + 1}",
                share,
                most_share,
                feature=name,
            )


@rule(
    severity="error",
    reason="A black image shows nothing: the lens is covered, or the camera was not ready.",
    advice="Look at the camera; wait for its first images before recording, and delete these episodes.",
)
def black_images(episode: EpisodeMeasures, *, most_share: float = 0.0, error_share: float = 0.1) -> Iterator[Hit]:
    """Images in which 99 % of the pixels are below 20 of 255."""
    for name, found in episode.images.items():
        yield from _dark_or_bright(name, found, found.black, "black", most_share, error_share)


@rule(
    severity="error",
    reason="A blown-out image shows nothing: the exposure is wrong, or a lamp shines into the camera.",
    advice="Fix exposure and gain of the camera, and delete these episodes.",
)
def blown_out_images(episode: EpisodeMeasures, *, most_share: float = 0.0, error_share: float = 0.1) -> Iterator[Hit]:
    """Images in which 95 % of the pixels are at 245 of 255 or above."""
    for name, found in episode.images.items():
        yield from _dark_or_bright(name, found, found.white, "blown out", most_share, error_share)


@rule(
    reason="When the whole image becomes brighter at once, the camera's automatic exposure or a lamp did it.",
    advice="Fix exposure, gain and white balance of the camera, and the light of the room.",
)
def exposure_jump(
    episode: EpisodeMeasures, *, least_levels: float = 15, least_agreement: float = 0.8, most_before: float = 5
) -> Iterator[Hit]:
    """A change of brightness from one image to the next, in the same direction all over the image, out of rest."""
    for name, found in episode.images.items():
        change = np.diff(found.brightness)
        dark = found.black | found.white
        jumps = (np.abs(change) >= least_levels) & (found.agreement[1:] >= least_agreement) & ~dark[1:] & ~dark[:-1]
        jumps &= np.abs(change) >= most_before * np.median(np.abs(change)) if len(change) else True
        places = np.flatnonzero(jumps)
        if len(places):
            worst = int(places[np.abs(change[places]).argmax()])
            step = int(found.steps[worst + 1])
            more = f", and {len(places) - 1} more times" if len(places) > 1 else ""
            yield Hit(
                f"brightness jumps by {change[worst]:+.0f} of 255 at step {step}{more}",
                abs(float(change[worst])),
                least_levels,
                feature=name,
                steps=(step, step + 1),
            )


@rule(
    reason="The recorder dropped images because its queue was full; a model sees gaps.",
    advice="Record on a faster disk, with smaller images or fewer cameras, or with a longer queue.",
)
def dropped_images(episode: EpisodeMeasures, *, most_share: float = 0.01) -> Iterator[Hit]:
    """Images that the recorder itself marked as dropped."""
    for name, count in episode.dropped_images.items():
        total = episode.images[name].num_steps if name in episode.images else episode.num_steps
        if count > most_share * total:
            yield Hit(f"{count} of {total} images were dropped", count / max(total, 1), most_share, feature=name)


def _dark_or_bright(
    name: str, found: ImageMeasures, bad: np.ndarray, word: str, most_share: float, error_share: float
) -> Iterator[Hit]:
    places = np.flatnonzero(bad)
    share = len(places) / max(found.count, 1)
    if len(places) and share > most_share:
        yield Hit(
            f"{len(places)} of {found.count} images are {word}",
            share,
            most_share,
            feature=name,
            steps=(int(found.steps[places[0]]), int(found.steps[places[-1]]) + 1),
            severity=None if share > error_share else "warning",
        )


def _moves(episode: EpisodeMeasures, steps: tuple[int, int], clock: str) -> bool:
    """Whether any number changes by 5 % of its range within the steps; True where there are no numbers."""
    known = False
    for name, found in episode.components.items():
        if episode.schema.features[name].clock != clock:
            continue
        span = found.max - found.min
        moving = np.isfinite(span) & (span > 0)
        if not moving.any():
            continue
        known = True
        part = np.asarray(episode.values(name)[slice(*steps)], np.float64).reshape(steps[1] - steps[0], -1)[:, moving]
        finite = np.isfinite(part)
        high = np.where(finite, part, -np.inf).max(axis=0)
        low = np.where(finite, part, np.inf).min(axis=0)
        if (np.where(finite.any(axis=0), high - low, 0.0) > 0.05 * span[moving]).any():
            return True
    return not known
