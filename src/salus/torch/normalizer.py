"""Normalising features on the device, by statistics that travel with the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InvalidInputError, did_you_mean
from ..schema import Image, Text
from ..windows import check_count
from .dataset import WindowDataset
from .fitting import Statistics, chosen, values_of_samples, values_of_steps

IMAGE_MODES = ("unit", "imagenet")
VALUE_MODES = ("minmax", "quantile", "quantile_clipped", "meanstd")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalizer(nn.Module):
    """Brings features into the range that networks like, and actions back: `(x - center) / spread` per component.

    `normalizer = Normalizer.fit(windows, {"actions": "minmax", "states": "meanstd", "images": "imagenet"})`, then
    `batch = normalizer(batch)` in the training step, and `normalizer.inverse({"actions": actions})` at the robot.

    It is a module with buffers: as part of a policy it moves with `.to(device)` and is in the policy's `state_dict`. A
    fresh `Normalizer()` takes names, modes and shapes from the state that is loaded into it.

    | mode | result |
    |---|---|
    | `"minmax"` | smallest value to -1, largest to 1 |
    | `"quantile"` | 1 % quantile to -1, 99 % quantile to 1; what lies outside goes beyond |
    | `"quantile_clipped"` | the same, clipped to -1 … 1 |
    | `"meanstd"` | mean 0, standard deviation 1 |
    | `"unit"` | images: uint8 to float32, 0 to 1 |
    | `"imagenet"` | images of three channels: the same, less ImageNet's mean, by its standard deviation |

    A component that is constant, or varies less than float32 can tell, becomes 0: its spread is 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self._modes: dict[str, str] = {}

    @classmethod
    def fit(
        cls,
        windows: WindowDataset,
        modes: Mapping[str, str],
        *,
        num_samples: int | None = None,
        seed: int = 0,
        allow_nan: bool = False,
        max_bytes: int = 2**30,
    ) -> Normalizer:
        """A normalizer for what `windows` gives.

        Without a transform, the statistics are those of all steps of all episodes of `windows.view`, each once,
        whatever the offsets, `stride`, padding and `where`; of a feature on another clock, those of all its steps. With
        a transform, they are those of what comes out of it, over all samples; padded entries do not count. There is one
        statistic per component of a step, for all offsets of a window together; what a transform adds without a
        `<name>_is_pad` is taken as a whole. Steps of a nullable feature without a value do not count. Weights of
        `salus.concat` change nothing.

        Args:
            windows: The training windows, without validation episodes.
            modes: Name in the sample to mode. What is not named stays as it is.
            num_samples: Use so many random steps, of each clock (with a transform: samples), instead of all.
            seed: Of the random choices.
            allow_nan: Pass over NaN and infinity, instead of refusing them.
            max_bytes: Values of one feature that are kept for quantiles. They are exact where all fit; else they are
                those of a random share of the values, the same one for the same seed.

        Raises:
            InvalidInputError: An unknown name or mode, or NaN, with its episode and step.

        Cost: one pass over the named features. With a transform, one over all samples.
        """
        if not isinstance(windows, WindowDataset):
            raise InvalidInputError(f"Normalizer: got {type(windows).__name__}, expected a WindowDataset")
        check_count("num_samples", num_samples, least=1, optional=True)
        _check(windows, modes)
        normalizer = cls()
        for name in (name for name, mode in modes.items() if mode in IMAGE_MODES):
            normalizer._add(name, modes[name], *_image_figures(windows, name, modes[name]))
        names = [name for name, mode in modes.items() if mode in VALUE_MODES]
        if not names:
            return normalizer
        of_steps = windows.transform is None
        first, view = windows[0], windows.view
        by_clock: dict[str, list[str]] = {}
        for name in names:
            by_clock.setdefault(view.clock_of(name) if of_steps else "", []).append(name)
        for clock, some in by_clock.items():
            count = int(view.lengths(clock).sum()) if of_steps else len(windows)
            picked = chosen(count, num_samples, seed)
            taken = count if picked is None else len(picked)
            statistics = {
                name: Statistics(
                    name,
                    modes[name],
                    allow_nan=allow_nan,
                    share=max_bytes / max(1, taken * _nbytes(windows, first, name)),
                    seed=seed,
                )
                for name in some
            }
            for part in values_of_steps(view, some, picked) if of_steps else values_of_samples(windows, some, picked):
                statistics[part.name].add(part)
            for name in some:
                normalizer._add(name, modes[name], *statistics[name].center_and_spread())
        return normalizer

    @property
    def modes(self) -> dict[str, str]:
        """The mode of each name."""
        return dict(self._modes)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with the fitted names normalised, on the device where each is; everything else as it is.

        Names that the batch does not have are passed over: at the robot there are no actions yet.

        Raises:
            InvalidInputError: The batch has none of the names, or a value of another shape.
        """
        return self._applied(batch, self._normalised)

    def inverse(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The other way: `normalizer.inverse({"actions": policy(observation)})["actions"]` is in physical units.

        Raises:
            InvalidInputError: As `forward`.
        """
        return self._applied(batch, self._restored)

    def _applied(self, batch: Mapping[str, Any], function: Any) -> dict[str, Any]:
        known = [name for name in self._modes if name in batch]
        if not known:
            expected = ", ".join(self._modes) or "nothing: use Normalizer.fit, or load a state_dict"
            raise InvalidInputError(f"Normalizer: got a batch of {', '.join(batch) or 'nothing'}, fitted is {expected}")
        return {**batch, **{name: function(name, torch.as_tensor(batch[name])) for name in known}}

    def _normalised(self, name: str, values: Tensor) -> Tensor:
        center, spread = self._figures(name, values)
        if values.is_floating_point():
            result = (values - center) / spread
        else:  # the conversion makes a copy of its own
            result = values.to(center.dtype).sub_(center).div_(spread)
        return result.clamp(-1, 1) if self._modes[name] == "quantile_clipped" else result

    def _restored(self, name: str, values: Tensor) -> Tensor:
        center, spread = self._figures(name, values)
        return values * spread + center

    def _figures(self, name: str, values: Tensor) -> tuple[Tensor, Tensor]:
        center, spread = (getattr(self, _buffer(name, self._modes[name], what)) for what in ("center", "spread"))
        got = values.shape[values.ndim - center.ndim :] if values.ndim >= center.ndim else values.shape
        if len(got) != center.ndim or any(size not in (1, have) for size, have in zip(center.shape, got, strict=True)):
            raise InvalidInputError(
                f"Normalizer: {name!r}: got {tuple(values.shape)}, expected (…, {', '.join(map(str, center.shape))}), "
                "as it was fitted"
            )
        return center.to(values.device), spread.to(values.device)

    def _add(self, name: str, mode: str, center: Any, spread: Any) -> None:
        self._modes[name] = mode
        for what, values in (("center", center), ("spread", spread)):
            self.register_buffer(_buffer(name, mode, what), torch.as_tensor(np.asarray(values, np.float32)))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        if not self._modes:  # fresh: it becomes what the state is of
            for key, value in state_dict.items():
                name, mode, what = _parsed(key.removeprefix(prefix)) if key.startswith(prefix) else ("", "", "")
                if what:
                    self._modes[name] = mode
                    self.register_buffer(_buffer(name, mode, what), torch.empty_like(value))
        super()._load_from_state_dict(state_dict, prefix, *more)

    def extra_repr(self) -> str:
        """The modes, for `repr`."""
        return ", ".join(f"{name}: {mode}" for name, mode in self._modes.items())


def _buffer(name: str, mode: str, what: str) -> str:
    return f"{name.replace('%', '%25').replace('.', '%2E')}:{mode}:{what}"  # a buffer's name has no "."


def _parsed(key: str) -> tuple[str, str, str]:
    """Name, mode, and what it is, of a key in a state; all empty for keys of others."""
    name, *rest = key.rsplit(":", 2)
    if (
        "." in key
        or len(rest) != 2
        or rest[0] not in (*IMAGE_MODES, *VALUE_MODES)
        or rest[1] not in ("center", "spread")
    ):
        return "", "", ""
    return unquote(name), rest[0], rest[1]


def _check(windows: WindowDataset, modes: Mapping[str, str]) -> None:
    if not isinstance(modes, Mapping) or not modes:
        raise InvalidInputError(
            f"Normalizer: got {modes!r}, expected names with modes, such as {{'actions': 'minmax'}}"
        )
    features = windows.view.schema.features
    for name, mode in modes.items():
        if mode not in (*IMAGE_MODES, *VALUE_MODES):
            known = ", ".join(map(repr, (*VALUE_MODES, *IMAGE_MODES)))
            raise InvalidInputError(f"Normalizer: {name!r}: got mode {mode!r}, expected one of {known}")
        if windows.transform is None and name not in windows.windows:
            raise InvalidInputError(f"Normalizer: no window of {name!r}{did_you_mean(name, windows.windows)}")
        feature = features.get(name)
        if isinstance(feature, Text):
            raise InvalidInputError(f"Normalizer: {name!r} is text, expected numbers or images")
        if isinstance(feature, Image) != (mode in IMAGE_MODES) and (feature is not None or mode in IMAGE_MODES):
            what = "an image" if isinstance(feature, Image) else "no image"
            expected = IMAGE_MODES if isinstance(feature, Image) else VALUE_MODES
            raise InvalidInputError(
                f"Normalizer: {name!r}: got mode {mode!r}, expected {' or '.join(map(repr, expected))}: it is {what}"
            )


def _image_figures(windows: WindowDataset, name: str, mode: str) -> tuple[Any, Any]:
    image = windows.view.schema.features[name]
    assert isinstance(image, Image)  # noqa: S101 - for the type checker; _check made sure
    sample = windows[0].get(name)
    dtype = getattr(sample, "dtype", None)
    if dtype not in (torch.uint8, np.uint8):
        raise InvalidInputError(f"Normalizer: {name!r}: got {dtype} from the transform, expected uint8 for {mode!r}")
    if mode == "unit":
        return 0.0, 255.0
    if image.color == "gray":
        raise InvalidInputError(f"Normalizer: {name!r}: 'imagenet' needs three channels, and it is gray; use 'unit'")
    order = slice(None, None, -1) if image.color == "bgr" else slice(None)
    shape = (3, 1, 1) if image.layout == "CHW" else (3,)
    mean, std = (np.array(figures)[order].reshape(shape) * 255 for figures in (IMAGENET_MEAN, IMAGENET_STD))
    return mean, std


def _nbytes(windows: WindowDataset, first: Mapping[str, Any], name: str) -> int:
    """Bytes of what one step, or one sample of a transform, gives for statistics."""
    values = np.asarray(first[name]) if name in first else np.empty(0)
    window = windows.windows.get(name)
    per_step = windows.transform is None and window is not None and not window.single
    return int(values.nbytes // len(window.offsets)) if per_step and window is not None else int(values.nbytes)
