"""Recording from IsaacLab: a dataset file handler that writes SALUS datasets instead of HDF5 files.

It has the methods of `isaaclab.utils.datasets.DatasetFileHandlerBase`, and those of IsaacLab's `HDF5DatasetFileHandler`
beyond it, as IsaacLab 2.0 to 2.3 have them. It was written and is tested against that interface; it has not run inside
IsaacLab, which needs a simulator that the tests do not have. It imports PyTorch and IsaacLab only to load episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from .dataset import Dataset
from .episode import Episode
from .errors import InvalidInputError, MissingExtraError, RecordingError
from .labels import Outcome
from .opening import create, open
from .recorder import Recorder
from .recorder.batched import on_host
from .schema import Feature, Image, Schema

INITIAL_STATE = "initial_state"
_METADATA = "isaaclab"
_SUFFIX = ".zarr"


class SalusDatasetFileHandler:
    """Writes and loads the episodes of IsaacLab's recorder manager, as a `DatasetFileHandlerBase` does.

    In the configuration of the recorder manager:
    `dataset_file_handler_class_type = functools.partial(SalusDatasetFileHandler, rate_hz=50)`.

    Every array of `EpisodeData.data` with a row per step becomes a feature, nested keys joined by "."; dtypes stay, NaN
    and infinity are kept, uint8 images (H, W, 3) become `Image`. `initial_state`, which has one row, is metadata,
    as are the seed, `env_id` and the environment's arguments. `success` is the outcome. The schema is that of the first
    episode, so the dataset is there from that one on.

    Args:
        rate_hz: Control rate, steps per second. By default that of `add_env_args({"sim_args": {"dt": …,
            "decimation": …}})`.
        episode_type: Makes an empty `EpisodeData` to load into; by default IsaacLab's.

    Thread-safety: one thread at a time.
    """

    def __init__(self, *, rate_hz: float | None = None, episode_type: Callable[[], Any] | None = None) -> None:
        self._rate_hz = rate_hz
        self._episode_type = episode_type
        self._path: str | None = None
        self._env_args: dict[str, Any] = {}
        self._dataset: Dataset | None = None
        self._recorder: Recorder | None = None

    # --- opening -----------------------------------------------------------------------------------------------

    def create(self, file_path: str, env_name: str | None = None) -> None:
        """Begin a new dataset at `file_path`, with ".zarr" added where it does not end so.

        Raises:
            RecordingError: This handler has a dataset open already.
        """
        self._check_unused(file_path)
        self._path = file_path if file_path.endswith(_SUFFIX) else f"{file_path}{_SUFFIX}"
        self._env_args = {"env_name": env_name or "", "type": 2}  # as IsaacLab's HDF5 files say, for robomimic

    def open(self, file_path: str, mode: str = "r") -> None:
        """Open the dataset at `file_path`: `"r"` to load episodes, `"r+"` or `"a"` to write more as well.

        Raises:
            InvalidInputError: Another mode.
            NotFoundError, RecordingError: There is none, or this handler has a dataset open already.
        """
        self._check_unused(file_path)
        if mode not in ("r", "r+", "a"):
            raise InvalidInputError(f"open: mode: got {mode!r}, expected 'r', 'r+' or 'a'")
        self._dataset = open(file_path, mode="r" if mode == "r" else "a")
        self._path = file_path
        self._env_args = dict(self._last_of(self._dataset).get("env_args", {}))
        if mode != "r":
            self._recorder = Recorder(self._dataset)

    def _check_unused(self, file_path: str) -> None:
        if self._path is not None:
            raise RecordingError(f"open: got {file_path}, but {self._path} is open; close() it before")

    # --- properties --------------------------------------------------------------------------------------------

    def add_env_args(self, env_args: Mapping[str, Any]) -> None:
        """Add to the arguments of the environment, which every episode from now on carries."""
        self._check_open("add_env_args")
        self._env_args.update(env_args)

    def set_env_name(self, env_name: str) -> None:
        """Set the name of the environment."""
        self.add_env_args({"env_name": env_name})

    def get_env_name(self) -> str | None:
        """The name of the environment, or None."""
        self._check_open("get_env_name")
        return self._env_args.get("env_name")

    def get_episode_names(self) -> list[str]:
        """`"demo_0"`, `"demo_1"`, … in the order of the dataset."""
        return [f"demo_{number}" for number in range(self.get_num_episodes())]

    def get_num_episodes(self) -> int:
        """Number of episodes that were written."""
        self._check_open("get_num_episodes")
        return 0 if self._dataset is None else len(self._dataset)

    @property
    def demo_count(self) -> int:
        """Number of episodes that were written."""
        return self.get_num_episodes()

    # --- episodes ----------------------------------------------------------------------------------------------

    def write_episode(self, episode: Any, demo_id: int | None = None) -> None:  # noqa: ARG002 - names follow the slots
        """Write an `EpisodeData`; durable on return. An empty one is left out.

        Args:
            episode: With `data`, `seed`, `env_id`, `success` and `is_empty()`.
            demo_id: Taken, as newer versions of IsaacLab give one, and not used: names follow the order of writing.

        Raises:
            InvalidInputError: Arrays of different lengths, or that are not those of the first episode.
            RecordingError: The dataset is open for reading only, or the storage refused.
        """
        self._check_open("write_episode")
        if episode.is_empty():
            return
        arrays = {n: v for n, v in _flat(episode.data) if n.split(".")[0] != INITIAL_STATE}
        if not arrays:
            raise InvalidInputError("write_episode: got an initial state only, expected arrays of at least one step")
        if self._dataset is None and self._path is not None:
            self._dataset = create(self._path, self._schema(arrays))
            self._recorder = Recorder(self._dataset)
        if self._recorder is None or self._dataset is None:
            raise RecordingError(f"write_episode: the dataset is open for reading only; open it with 'a'; {self._path}")
        initial = {n: _to_json(v) for n, v in _flat({INITIAL_STATE: episode.data.get(INITIAL_STATE, {})})}
        seed, env_id = (_plain(getattr(episode, name, None)) for name in ("seed", "env_id"))
        about = {"env_args": self._env_args, "seed": seed, "env_id": env_id, "arrays": initial}
        success = _plain(getattr(episode, "success", None))
        outcome = Outcome() if success is None else Outcome("success" if success else "failure")
        self._recorder.record_episode(arrays, {_METADATA: about}, outcome=outcome)
        self._dataset.refresh()

    def load_episode(self, episode_name: str, device: str = "cpu") -> Any | None:
        """The `EpisodeData` of that name, its arrays as tensors on `device`; None where there is none.

        Raises:
            MissingExtraError: Neither IsaacLab nor an `episode_type` is there.
        """
        self._check_open("load_episode")
        if self._dataset is None or episode_name not in self.get_episode_names():
            return None
        import torch

        stored = self._dataset[int(episode_name.removeprefix("demo_"))]
        about = _about(stored)
        arrays = {name: stored[name][:] for name in self._dataset.schema.recorded}
        arrays |= {name: _from_json(value) for name, value in about.get("arrays", {}).items()}
        episode = self._empty_episode()
        episode.data = _nested({name: torch.tensor(array, device=device) for name, array in arrays.items()})
        episode.seed = about.get("seed")
        episode.env_id = about.get("env_id")
        episode.success = {"success": True, "failure": False}.get(stored.outcome.result)
        return episode

    def flush(self) -> None:
        """Nothing is left to do: every episode is on disk when `write_episode` returns."""
        self._check_open("flush")

    def close(self) -> None:
        """Close the dataset. Twice is fine."""
        recorder, self._recorder = self._recorder, None
        self._dataset, self._path = None, None
        if recorder is not None:
            recorder.close()

    def __del__(self) -> None:  # IsaacLab closes its handlers by dropping them
        if hasattr(self, "_recorder"):
            self.close()

    def _check_open(self, what: str) -> None:
        if self._path is None:
            raise RecordingError(f"{what}: no dataset is open; call create() or open() before")

    def _schema(self, arrays: Mapping[str, np.ndarray]) -> Schema:
        rate_hz = self._rate_hz
        simulation = self._env_args.get("sim_args", {})
        if rate_hz is None and {"dt", "decimation"} <= simulation.keys():
            rate_hz = 1 / (simulation["dt"] * simulation["decimation"])
        if rate_hz is None:
            raise InvalidInputError(
                "write_episode: the control rate is not known; expected SalusDatasetFileHandler(rate_hz=…), "
                "or add_env_args({'sim_args': {'dt': …, 'decimation': …}}) before"
            )
        return Schema({name: _feature(array) for name, array in arrays.items()}, rate_hz=rate_hz)

    def _empty_episode(self) -> Any:
        if self._episode_type is None:
            try:
                from isaaclab.utils.datasets import EpisodeData
            except ImportError as error:
                raise MissingExtraError(
                    "load_episode: isaaclab is not installed; expected it, or SalusDatasetFileHandler(episode_type=…)"
                ) from error
            return EpisodeData()
        return self._episode_type()

    def _last_of(self, dataset: Dataset) -> dict[str, Any]:
        return _about(dataset[len(dataset) - 1]) if len(dataset) else {}


def _about(episode: Episode) -> dict[str, Any]:
    found = episode.metadata.get(_METADATA, {})
    return dict(found)


def _flat(values: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of nested mappings, by names joined with "."; lists hold an entry per step."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, np.stack([np.asarray(on_host(v)) for v in values]) if isinstance(values, list) else on_host(values)


def _nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, array in arrays.items():
        *path, last = name.split(".")
        place = found
        for key in path:
            place = place.setdefault(key, {})
        place[last] = array
    return found


def _feature(array: np.ndarray) -> Feature:
    shape, dtype = array.shape[1:], array.dtype.name
    if dtype == "uint8" and len(shape) == 3 and shape[-1] == 3:
        return Image(height=shape[0], width=shape[1], layout="HWC")
    dtype = "float32" if dtype == "float16" else dtype
    return Feature(shape, dtype, allow_nan=dtype in ("float32", "float64"))


def _to_json(array: np.ndarray) -> dict[str, Any]:
    """Exact: JSON numbers keep every float64."""
    return {"dtype": array.dtype.name, "shape": list(array.shape), "values": array.ravel().tolist()}


def _from_json(value: Mapping[str, Any]) -> np.ndarray:
    return np.array(value["values"], value["dtype"]).reshape(value["shape"])


def _plain(value: Any) -> Any:
    """A number of numpy or torch as one of Python."""
    return value.item() if hasattr(value, "item") else value
