"""Batches of steps of many environments: from any device, into growing buffers."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import InvalidInputError
from ..layout import ArraySpec
from ..schema import TIMESTAMP

_FIRST_CAPACITY = 64
_NEW, _CALLER, _RATE = 0, 1, 2


def on_host(value: Any) -> Any:
    """A tensor of torch as a numpy array, copied from its device at most once; mappings of them; all else as it is.

    Raises:
        InvalidInputError: A tensor whose dtype numpy does not have.
    """
    if isinstance(value, Mapping):
        return {name: on_host(each) for name, each in value.items()}
    torch = sys.modules.get("torch")  # who hands over a tensor has imported it
    if torch is None or not isinstance(value, torch.Tensor):
        return value
    try:
        return value.detach().cpu().numpy()
    except TypeError as error:
        raise InvalidInputError(f"got a tensor of {value.dtype}, expected a dtype that numpy has; .float()") from error


def as_stamps(value: Any, count: int) -> np.ndarray:
    """int64 (count,) stamps of one step of many environments, from as many, or from one for all.

    Raises:
        InvalidInputError: Not whole numbers, or not as many.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "iu" or array.shape not in ((), (count,)):
        raise InvalidInputError(
            f"{TIMESTAMP}: got {array.dtype} {array.shape}, expected int64 ({count},) or one number"
        )
    if array.dtype == np.uint64 and (array >= 2**63).any():
        raise InvalidInputError(f"{TIMESTAMP}: got {array.max()}, expected numbers that int64 holds")
    return np.broadcast_to(array.astype(np.int64), (count,))


class StepBuffers:
    """The steps of the open episode of each environment, in arrays (num_envs, capacity, *stored_step_shape).

    Args:
        specs: The arrays to keep, `timestamp_ns` among them.
        num_envs: Number of environments.

    Attributes:
        lengths: int64 (num_envs,), steps of each open episode.
        started_ns: int64 (num_envs,), wall clock of the first step of each, nanoseconds since 1970.

    Thread-safety: none; one thread at a time.
    """

    def __init__(self, specs: Mapping[str, ArraySpec], num_envs: int) -> None:
        self.lengths = np.zeros(num_envs, np.int64)
        self.started_ns = np.zeros(num_envs, np.int64)
        self._sources = np.zeros(num_envs, np.int8)
        self._last_stamps = np.zeros(num_envs, np.int64)
        self._values = {
            name: np.empty((num_envs, 0, *spec.stored_step_shape), spec.numpy_dtype) for name, spec in specs.items()
        }

    def check_stamps(self, env_ids: np.ndarray, stamps: np.ndarray | None) -> None:
        """Raise InvalidInputError unless the stamps, or their absence, follow on the steps before."""
        source = _RATE if stamps is None else _CALLER
        other = (self._sources[env_ids] != source) & (self._sources[env_ids] != _NEW)
        if other.any():
            env, got, expected = int(env_ids[other][0]), "none", "some"
            if stamps is not None:
                got, expected = expected, got
            raise InvalidInputError(
                f"{TIMESTAMP}: got {got} for environment {env}, expected {expected}, as for the steps before"
            )
        if stamps is not None:
            late = (self.lengths[env_ids] > 0) & (stamps <= self._last_stamps[env_ids])
            if late.any():
                env, stamp = int(env_ids[late][0]), int(stamps[late][0])
                raise InvalidInputError(
                    f"{TIMESTAMP}: got {stamp} for environment {env}, expected more than {self._last_stamps[env]}: "
                    "time goes forward"
                )

    def append(self, env_ids: np.ndarray, stored: Mapping[str, np.ndarray], stamps: np.ndarray | None) -> None:
        """Add a step of each of these environments: array name to (N, *stored_step_shape), all checked."""
        if len(env_ids) == 0:
            return
        places = self.lengths[env_ids]
        self._make_room(int(places.max()) + 1)
        for name, values in self._values.items():
            if name != TIMESTAMP:
                values[env_ids, places] = stored[name]
        if stamps is not None:
            self._values[TIMESTAMP][env_ids, places] = stamps
            self._last_stamps[env_ids] = stamps
        self._sources[env_ids] = _RATE if stamps is None else _CALLER
        self.started_ns[env_ids[places == 0]] = time.time_ns()
        self.lengths[env_ids] += 1

    def _make_room(self, capacity: int) -> None:
        for name, values in self._values.items():
            if values.shape[1] < capacity:
                wider = np.empty(
                    (len(values), max(2 * values.shape[1], _FIRST_CAPACITY), *values.shape[2:]), values.dtype
                )
                wider[:, : values.shape[1]] = values
                self._values[name] = wider

    def take(self, env: int) -> dict[str, np.ndarray]:
        """A copy of the steps of one environment: array name to (T, *stored_step_shape)."""
        return {name: values[env, : self.lengths[env]].copy() for name, values in self._values.items()}

    def source(self, env: int) -> str:
        """Where the stamps of its steps come from: `"caller"` or `"rate"`."""
        return "caller" if self._sources[env] == _CALLER else "rate"

    def clear(self, env: int) -> None:
        """Forget the steps of one environment."""
        self.lengths[env] = 0
        self._sources[env] = _NEW
