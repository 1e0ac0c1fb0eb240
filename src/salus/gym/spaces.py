"""Spaces of Gymnasium as features, and what is in them as values of these features."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from ..errors import InvalidInputError
from ..recorder.batched import on_host
from ..schema import DTYPES, Feature, Image, Schema, Text

OBSERVATION, ACTION = "observation", "action"
REWARD, TERMINATED, TRUNCATED = "reward", "terminated", "truncated"

AnySpace = spaces.Space[Any]
AnyEnv = gymnasium.Env[Any, Any] | gymnasium.vector.VectorEnv[Any, Any, Any]


def schema_from_env(
    env: AnyEnv, *, rate_hz: float, final_observation: bool = True, render: str | None = None, **more: Any
) -> Schema:
    """The schema of what `RecordEpisodes` and `RecordVectorEpisodes` record of an environment.

    Features: `observation` and `action`, with the parts of Dict spaces joined by "." (`observation.camera.front`) and
    those of Tuple spaces by number; `reward` (float64), `terminated` and `truncated` (bool). dtypes are those of the
    spaces, float16 as float32. A Box of uint8 from 0 to 255 with three axes, 1 or 3 channels first or last, is an
    `Image`; a Text space is `Text`.

    Args:
        env: An environment, or a vector of them.
        rate_hz: Steps per second of simulated time: the control rate.
        final_observation: Whether episodes end with a step that holds the last observation alone. `action`, `reward`,
            `terminated` and `truncated` are nullable then, and without a value at that step.
        render: Name of an image feature for rendered frames. The environment is reset once, to see how large they are.
        **more: `failure_kinds`, `horizons`, `segment_steps` of the schema.

    Raises:
        InvalidInputError: A space that has no feature (Graph, Sequence, OneOf), or no rendered frames; all at once.
    """
    observation, action = single_spaces(env)
    features: dict[str, Feature] = {}
    problems: list[str] = []
    for root, space in ((OBSERVATION, observation), (ACTION, action)):
        for name, leaf in leaves(space, root):
            feature = _feature(leaf, nullable=final_observation and root == ACTION)
            if feature is None:
                problems.append(
                    f"{name!r}: got the space {leaf}, expected Box, Discrete, MultiBinary, MultiDiscrete, Text"
                )
            else:
                features[name] = feature
    if problems:
        raise InvalidInputError.listing(problems, subject="schema_from_env")
    features[REWARD] = Feature((), "float64", nullable=final_observation)
    features[TERMINATED] = Feature((), "bool", nullable=final_observation)
    features[TRUNCATED] = Feature((), "bool", nullable=final_observation)
    if render is not None:
        features[render] = _rendered_feature(env, nullable=final_observation)
    return Schema(features, rate_hz=rate_hz, **more)


def single_spaces(env: AnyEnv) -> tuple[AnySpace, AnySpace]:
    """The spaces of observation and action of one environment.

    Raises:
        InvalidInputError: No environment of Gymnasium.
    """
    if isinstance(env, gymnasium.vector.VectorEnv):
        return env.single_observation_space, env.single_action_space
    if isinstance(env, gymnasium.Env):
        return env.observation_space, env.action_space
    raise InvalidInputError(f"environment: got {type(env).__name__}, expected a gymnasium.Env or VectorEnv")


def leaves(space: AnySpace, name: str) -> Iterator[tuple[str, AnySpace]]:
    """The parts of a space that hold values, by the names of their features."""
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from leaves(part, f"{name}.{key}")
    elif isinstance(space, spaces.Tuple):
        for number, part in enumerate(space.spaces):
            yield from leaves(part, f"{name}.{number}")
    else:
        yield name, space


def values_of(space: AnySpace, value: Any, name: str) -> dict[str, Any]:
    """What is in a space, as values of its features; copied, as environments use their arrays again.

    Of a batch of a vector environment, (N, *shape) each, as well.
    """
    if isinstance(space, spaces.Dict):
        parts = [values_of(part, value[key], f"{name}.{key}") for key, part in space.spaces.items()]
    elif isinstance(space, spaces.Tuple):
        parts = [values_of(part, value[n], f"{name}.{n}") for n, part in enumerate(space.spaces)]
    elif isinstance(space, spaces.Text):
        return {name: copy.copy(value)}
    else:
        return {name: np.array(on_host(value))}
    return {name: each for part in parts for name, each in part.items()}


def effect_of(reward: Any, terminated: Any, truncated: Any) -> dict[str, Any]:
    """What an action brought, of one environment or of a vector of them, as values of its features."""
    effect = {REWARD: (reward, np.float64), TERMINATED: (terminated, bool), TRUNCATED: (truncated, bool)}
    return {name: np.asarray(on_host(value), dtype) for name, (value, dtype) in effect.items()}


def check_schema(schema: Schema, env: AnyEnv, render: str | None) -> bool:
    """Whether the schema has a place for the last observation.

    Raises:
        InvalidInputError: It is not that of this environment, in words.
    """
    needed = {render} if render else set()
    for root, space in zip((OBSERVATION, ACTION), single_spaces(env), strict=True):
        needed |= {name for name, _ in leaves(space, root)}
    needed |= {REWARD, TERMINATED, TRUNCATED}
    problems = [f"{name!r}: the dataset does not have it" for name in sorted(needed - schema.recorded.keys())]
    surplus = [name for name, feature in schema.recorded.items() if name not in needed and not feature.nullable]
    problems += [f"{name!r}: the environment does not give it" for name in surplus]
    if problems:
        raise InvalidInputError.listing([*problems, "make the schema with schema_from_env"], subject="record episodes")
    without = [name for name in needed if not name.startswith(OBSERVATION) and name != render]
    nullable = [name for name in without if schema.recorded[name].nullable]
    if nullable and len(nullable) < len(without):
        raise InvalidInputError(
            f"record episodes: got nullable {', '.join(sorted(nullable))} only, expected all of "
            f"{', '.join(sorted(without))} (the last observation is recorded) or none; use schema_from_env"
        )
    return bool(nullable)


def _feature(space: AnySpace, *, nullable: bool) -> Feature | None:
    if isinstance(space, spaces.Text):
        return Text(nullable=nullable)
    if isinstance(space, spaces.Discrete):
        return Feature((), space.dtype.name if space.dtype is not None else "int64", nullable=nullable)
    if not isinstance(space, spaces.Box | spaces.MultiBinary | spaces.MultiDiscrete) or space.dtype is None:
        return None
    shape = tuple(int(size) for size in space.shape)
    if isinstance(space, spaces.Box) and _holds_images(space):
        return _image(shape, nullable=nullable)
    dtype = "float32" if space.dtype == np.float16 else space.dtype.name
    return Feature(shape, dtype, nullable=nullable) if dtype in DTYPES else None


def _holds_images(box: spaces.Box) -> bool:
    if box.dtype != np.uint8 or len(box.shape) != 3 or not {box.shape[0], box.shape[2]} & {1, 3}:
        return False
    return bool((box.low == 0).all() and (box.high == 255).all())


def _image(shape: tuple[int, ...], *, nullable: bool) -> Image:
    last = shape[2] in (1, 3)
    height, width = shape[:2] if last else shape[1:]
    return Image(
        height=height,
        width=width,
        layout="HWC" if last else "CHW",
        color="gray" if (shape[2] if last else shape[0]) == 1 else "rgb",
        nullable=nullable,
    )


def _rendered_feature(env: AnyEnv, *, nullable: bool) -> Image:
    env.reset()
    frames = env.render()
    frame = np.asarray(frames[0] if isinstance(env, gymnasium.vector.VectorEnv) and frames is not None else frames)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise InvalidInputError(
            f"schema_from_env: render: got {frame.dtype} {frame.shape}, expected uint8 (height, width, 3); "
            "make the environment with render_mode='rgb_array'"
        )
    return _image(frame.shape, nullable=nullable)


def check_metadata_argument(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Metadata that every episode gets."""
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InvalidInputError(f"metadata: got {type(metadata).__name__}, expected a mapping")
    return dict(metadata or {})
