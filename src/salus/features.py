"""Features: what one stream of a dataset is, with dtype, shape and unit. A schema (`salus.schema`) has several."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from .errors import InvalidInputError
from .jpeg import DEFAULT_QUALITY, MAX_SIDE

STEP = "step"
DTYPES = ("bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float32", "float64")
COLORS = {"rgb": 3, "bgr": 3, "gray": 1}
MAX_STEP_BYTES = 2**30
MAX_CODECS = 16


@dataclass(frozen=True)
class Feature:
    """One named stream of an episode: an array `(T, *shape)`.

    Attributes:
        shape: Shape of one step; `()` for a number.
        dtype: A bool, int, uint or float numpy type. Values are cast to it within their kind (float64 to float32).
        unit: Physical unit, such as `"rad"`, `"m/s"`, `"N"`.
        names: Names of the components of a 1-D feature, as many as it has.
        range: (low, high), the values that make sense. Documentation, for health checks; not enforced when recording.
        nullable: Steps may come without a value; `<name>.valid` (bool) then says which steps carry one.
        allow_nan: NaN and infinity may be recorded. Off, because a NaN that nobody expected costs weeks.
        derived: What the values are computed from (only `"outcome"`, horizon labels). Kept for plain Zarr readers;
            SALUS itself computes it at read.
        clock: The time axis that it runs on: `"step"`, or one of the schema's `clocks`.
        codec: `"zstd"`, lossless; or Zarr codecs of your own as a list of their metadata, `[{"name": …,
            "configuration": {…}}, …]`, for one inner chunk (1, n, *shape), without the crc32c that SALUS always adds.
            Your own go through zarr-python: correct, slow, and what they lose is theirs.
    """

    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    unit: str | None = field(default=None, kw_only=True)
    names: tuple[str, ...] | None = field(default=None, kw_only=True)
    range: tuple[float, float] | None = field(default=None, kw_only=True)
    nullable: bool = field(default=False, kw_only=True)
    allow_nan: bool = field(default=False, kw_only=True)
    derived: Literal["outcome"] | None = field(default=None, kw_only=True)
    clock: str = field(default=STEP, kw_only=True)
    codec: str | Sequence[Mapping[str, Any]] = field(default="zstd", kw_only=True, hash=False)

    kind = "array"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", _dtype_name(self.dtype))
        if not isinstance(self.codec, str):  # a copy, which nobody else can change
            object.__setattr__(self, "codec", copy.deepcopy(as_tuple(self.codec, "feature: codec")))
        for name in ("shape", "names", "range"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, as_tuple(getattr(self, name), f"feature: {name}"))
        whole = tuple(int(size) if isinstance(size, np.integer) else size for size in self.shape)
        object.__setattr__(self, "shape", whole)

    @property
    def coding(self) -> str:
        """How its values are stored, in words: `"zstd, lossless"`."""
        if isinstance(self.codec, str):
            return f"{self.codec}, lossless"
        return f"{' + '.join(str(codec['name']) for codec in self.codec)}, through zarr-python"

    @property
    def is_lossless(self) -> bool:
        """Whether it is known to read exactly as it was recorded."""
        return self.codec == "zstd"

    @property
    def step_bytes(self) -> int:
        """Bytes of one step, before compression."""
        return int(np.prod(self.shape, dtype=object) * np.dtype(self.dtype).itemsize)

    def problems(self) -> Iterable[str]:
        """Everything that is wrong with this feature, in words."""
        if self.dtype not in self._dtypes():
            yield f"dtype: got {self.dtype!r}, expected one of {', '.join(self._dtypes())}"
            return
        sizes_fit = all(isinstance(size, int) and not isinstance(size, bool) and size >= 1 for size in self.shape)
        if not sizes_fit or len(self.shape) > 8:
            yield f"shape: got {self.shape}, expected at most 8 whole numbers of at least 1"
        elif self.step_bytes > MAX_STEP_BYTES:
            yield f"shape: got {self.shape}, {self.step_bytes} bytes a step, expected at most {MAX_STEP_BYTES}"
        if self.names is not None and (len(self.shape) != 1 or len(self.names) != self.shape[0]):
            yield f"names: got {len(self.names)} names, expected one per component of shape {self.shape}"
        if self.names is not None and not all(isinstance(name, str) for name in self.names):
            yield f"names: got {self.names}, expected text"
        if self.range is not None and not _is_range(self.range):
            yield f"range: got {self.range}, expected finite numbers (low, high) with low < high"
        if self.unit is not None and not isinstance(self.unit, str):
            yield f"unit: got {type(self.unit).__name__}, expected text such as 'rad'"
        if self.allow_nan and self.dtype not in ("float32", "float64"):
            yield f"allow_nan: {self.dtype} has no NaN"
        if self.derived not in (None, "outcome"):
            yield f"derived: got {self.derived!r}, expected 'outcome' or nothing"
        if self.derived and (self.dtype not in ("float32", "float64") or self.nullable):
            yield f"derived: got {self.dtype}{', nullable' * self.nullable}, expected a float: unknown labels are NaN"
        if self.derived and self.clock != STEP:
            yield f"clock: got {self.clock!r}, expected 'step' for what is computed from the outcome"
        yield from self._codec_problems()

    def _codec_problems(self) -> Iterable[str]:
        if isinstance(self.codec, str):
            if self.codec not in self._codecs():
                known = " or ".join(map(repr, self._codecs()))
                yield f"codec: got {self.codec!r}, expected {known}, or a list of Zarr codecs"
            return
        if self.derived or self.kind == "text":
            yield f"codec: got a list, expected 'zstd' for {'text' if self.kind == 'text' else 'derived values'}"
        if not 1 <= len(self.codec) <= MAX_CODECS or not all(map(_is_codec, self.codec)):
            yield (
                f"codec: got {self.codec!r}, expected 1 to {MAX_CODECS} Zarr codecs, each "
                '{"name": text} or {"name": text, "configuration": JSON values}'
            )
        elif self.codec[-1]["name"] == "crc32c":
            yield "codec: got crc32c at the end, which SALUS adds; leave it out"

    @classmethod
    def _codecs(cls) -> tuple[str, ...]:
        return ("zstd",)

    @classmethod
    def _dtypes(cls) -> tuple[str, ...]:
        return DTYPES

    def to_json(self) -> dict[str, Any]:
        """The feature as it stands in a schema revision."""
        document = {name: getattr(self, name) for name in self.__dataclass_fields__}
        document = {name: list(value) if isinstance(value, tuple) else value for name, value in document.items()}
        return {"kind": self.kind, **document}


@dataclass(frozen=True)
class Image(Feature):
    """A camera image per step: uint8, 0–255, one compressed chunk per image, lossless unless you say otherwise.

    Attributes:
        height: Pixels from top to bottom.
        width: Pixels from left to right.
        layout: `"CHW"` gives (C, height, width), `"HWC"` gives (height, width, C). The layout is how readers see it;
            on disk images are channels-last, which compresses better and decodes faster. Recording accepts either.
        color: `"rgb"`, `"bgr"` or `"gray"`: what the stored channels mean.
        codec: `"zstd"`, lossless; `"jpeg"`, **lossy**, which needs the extra `jpeg`; or Zarr codecs of your own, as for
            `Feature`.
        quality: Of JPEG, 1 … 100 on libjpeg's scale; 95 unless given. None for other codecs.
    """

    shape: tuple[int, ...] = field(default=(), init=False)
    dtype: str = field(default="uint8", init=False)
    height: int = field(kw_only=True)
    width: int = field(kw_only=True)
    layout: Literal["CHW", "HWC"] = field(default="CHW", kw_only=True)
    color: Literal["rgb", "bgr", "gray"] = field(default="rgb", kw_only=True)
    quality: int | None = field(default=None, kw_only=True)

    kind = "image"

    def __post_init__(self) -> None:
        channels = COLORS.get(self.color, 3) if isinstance(self.color, str) else 3
        hwc = (self.height, self.width, channels)
        object.__setattr__(self, "shape", hwc if self.layout == "HWC" else (channels, self.height, self.width))
        if self.codec == "jpeg" and self.quality is None:
            object.__setattr__(self, "quality", DEFAULT_QUALITY)
        super().__post_init__()

    @property
    def coding(self) -> str:
        """How its values are stored, in words: `"JPEG quality 95, lossy"`."""
        return f"JPEG quality {self.quality}, lossy" if self.codec == "jpeg" else super().coding

    @property
    def other_layout_shape(self) -> tuple[int, ...]:
        """The shape of the same image in the layout that is not the declared one."""
        first, second, third = self.shape
        return (second, third, first) if self.layout == "CHW" else (third, first, second)

    def problems(self) -> Iterable[str]:
        """Everything that is wrong with this image feature, in words."""
        yield from super().problems()
        if self.layout not in ("CHW", "HWC"):
            yield f"layout: got {self.layout!r}, expected 'CHW' or 'HWC'"
        if not isinstance(self.color, str) or self.color not in COLORS:
            yield f"color: got {self.color!r}, expected one of {', '.join(COLORS)}"
        if self.codec != "jpeg":
            if self.quality is not None:
                yield f"quality: got {self.quality!r}, expected none with codec {self.codec!r}"
            return
        if isinstance(self.quality, bool) or not isinstance(self.quality, int) or not 1 <= self.quality <= 100:
            yield f"quality: got {self.quality!r}, expected 1 .. 100"
        if any(isinstance(side, int) and side > MAX_SIDE for side in (self.height, self.width)):
            yield f"codec: got an image of {self.height} × {self.width}, JPEG holds sides up to {MAX_SIDE}"

    @classmethod
    def _codecs(cls) -> tuple[str, ...]:
        return ("zstd", "jpeg")

    @classmethod
    def _dtypes(cls) -> tuple[str, ...]:
        return ("uint8",)


@dataclass(frozen=True)
class Text(Feature):
    """A piece of text per step, such as a spoken instruction.

    Text per episode is metadata: `recorder.episode(task="...")`.
    """

    shape: tuple[int, ...] = field(default=(), init=False)
    dtype: str = field(default="string", init=False)

    kind = "text"

    @property
    def step_bytes(self) -> int:
        """0: the size of a text is not fixed."""
        return 0

    @classmethod
    def _dtypes(cls) -> tuple[str, ...]:
        return ("string",)


def as_tuple(value: Any, what: str) -> tuple[Any, ...]:
    """Several values as a tuple; raises InvalidInputError, which says `what`, where they are none."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidInputError(f"{what}: got {type(value).__name__} {value!r}, expected several values, as a tuple")
    return tuple(value)


def _is_range(values: tuple[Any, ...]) -> bool:
    numbers = [value for value in values if isinstance(value, int | float) and abs(value) <= sys.float_info.max]
    return len(numbers) == len(values) == 2 and numbers[0] < numbers[1]


def _is_codec(value: Any) -> bool:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return False
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return value.keys() <= {"name", "configuration"} and isinstance(value.get("configuration", {}), Mapping)


def _dtype_name(dtype: Any) -> str:
    if dtype == "string":
        return "string"
    try:
        return str(np.dtype(dtype).name)
    except TypeError:
        return str(dtype)
