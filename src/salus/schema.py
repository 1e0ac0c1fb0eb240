"""What a dataset holds: features with dtype, shape and unit, the rate, failure kinds and label horizons.

A schema is immutable. It is stored as revisions to which features can be added; nothing is ever removed or changed, so
an episode is always read by the revision that it was recorded under.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from .errors import FormatError, InvalidInputError
from .jpeg import DEFAULT_QUALITY, MAX_SIDE
from .labels import Horizons

FORMAT = 1
DEFAULT_SEGMENT_STEPS = 256
STEP = "step"
TIMESTAMP = "timestamp_ns"
LENGTH = "episode_length"
RESERVED = frozenset({"zarr.json", TIMESTAMP, LENGTH, "episode_metadata", "labels", "labels_mask"})
DTYPES = ("bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float32", "float64")
COLORS = {"rgb": 3, "bgr": 3, "gray": 1}
MAX_STEP_BYTES = 2**30
MAX_CODECS = 16
MAX_CLOCKS = 64
MAX_FEATURES = 4096
MAX_FAILURE_KINDS = 1024
MAX_SEGMENT_STEPS = 65536

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
_CLOCK = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_KIND = re.compile(r"[A-Za-z][A-Za-z0-9_ -]*")


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
            object.__setattr__(self, "codec", copy.deepcopy(_as_tuple(self.codec, "feature: codec")))
        for name in ("shape", "names", "range"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _as_tuple(getattr(self, name), f"feature: {name}"))
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


_KINDS: dict[str, type[Feature]] = {cls.kind: cls for cls in (Feature, Image, Text)}


@dataclass(frozen=True)
class Schema:
    """The features of a dataset and what its labels mean.

    Attributes:
        features: Feature by name. Names are letters, digits, `_`, `-`, joined by "." where observations are nested
            (`observation.images.front`).
        rate_hz: Steps per second that the recording aims at. Real stamps are kept beside it.
        failure_kinds: The kinds of failure, in the order of the labels' last axis; at most 1,024.
        horizons: How far ahead a failure is to be predicted, for `episode.labels`: whole steps, or a
            `salus.labels.Horizons` in seconds.
        segment_steps: Steps per shard file, 2 … 65536.
        clocks: Time axes beside the steps, each with lengths and stamps of its own, by name, and the rate in Hz that
            their recording aims at: `{"joints": 1000}` beside cameras at 50 Hz. Features name theirs,
            `Feature((7,), clock="joints")`, and `episode.push("joints", …)` records them.

    Raises:
        InvalidInputError: Every problem at once.
    """

    features: Mapping[str, Feature]
    rate_hz: float = field(kw_only=True)
    failure_kinds: tuple[str, ...] = field(default=(), kw_only=True)
    horizons: Horizons | tuple[int, ...] = field(default=(), kw_only=True)
    segment_steps: int = field(default=DEFAULT_SEGMENT_STEPS, kw_only=True)
    clocks: Mapping[str, float] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.features, Mapping):
            raise InvalidInputError(f"schema: features: got {type(self.features).__name__}, expected names to features")
        if not isinstance(self.clocks, Mapping):
            raise InvalidInputError(f"schema: clocks: got {type(self.clocks).__name__}, expected names to rates in Hz")
        object.__setattr__(self, "features", dict(self.features))
        object.__setattr__(self, "clocks", dict(self.clocks))
        object.__setattr__(self, "failure_kinds", _as_tuple(self.failure_kinds, "schema: failure_kinds"))
        if not isinstance(self.horizons, Horizons):
            object.__setattr__(self, "horizons", Horizons(_as_tuple(self.horizons, "schema: horizons")))
        problems = list(self._problems())
        if problems:
            raise InvalidInputError.listing(problems, subject="schema")

    def _problems(self) -> Iterable[str]:
        if not self.features:
            yield "features: got none, expected at least one"
        if len(self.features) > MAX_FEATURES:
            yield f"features: got {len(self.features)}, expected at most {MAX_FEATURES}"
            return
        for name, feature in self.features.items():
            yield from _name_problems(name)
            if not isinstance(feature, Feature):
                yield f"{name!r}: got {type(feature).__name__}, expected a Feature, Image or Text"
                continue
            yield from (f"{name!r}: {problem}" for problem in feature.problems())
            if feature.derived and feature.shape != self.label_shape:
                yield f"{name!r}: got shape {feature.shape}, expected the labels' (horizons, kinds) {self.label_shape}"
        if all(isinstance(feature, Feature) and feature.derived for feature in self.features.values()):
            yield "features: got derived ones only, expected at least one that is recorded"
        if len({str(name).casefold() for name in self.features}) < len(self.features):
            yield "feature names: got names that differ in case only, which some file systems cannot tell apart"
        if not _is_rate(self.rate_hz):
            yield f"rate_hz: got {self.rate_hz!r}, expected a number above 0"
        yield from self._clock_problems()
        if (
            isinstance(self.segment_steps, bool)
            or not isinstance(self.segment_steps, int)
            or not 2 <= self.segment_steps <= MAX_SEGMENT_STEPS
        ):
            yield f"segment_steps: got {self.segment_steps!r}, expected 2 .. {MAX_SEGMENT_STEPS}"
        if len(self.failure_kinds) > MAX_FAILURE_KINDS:
            yield f"failure_kinds: got {len(self.failure_kinds)}, expected at most {MAX_FAILURE_KINDS}"
            return
        for kind in self.failure_kinds:
            if not isinstance(kind, str) or not _KIND.fullmatch(kind) or self.failure_kinds.count(kind) > 1:
                yield f"failure_kinds: got {kind!r}, expected distinct words"

    def _clock_problems(self) -> Iterable[str]:
        if len(self.clocks) > MAX_CLOCKS:
            yield f"clocks: got {len(self.clocks)}, expected at most {MAX_CLOCKS}"
            return
        recorded = {name: feature for name, feature in self.features.items() if isinstance(feature, Feature)}
        used = {feature.clock for feature in recorded.values()}
        for name, rate in self.clocks.items():
            if not isinstance(name, str) or not _CLOCK.fullmatch(name) or name == STEP:
                yield f"clocks: got the name {name!r}, expected up to 64 letters, digits, _ and -, and not 'step'"
                continue
            if not _is_rate(rate):
                yield f"clocks: {name!r}: got {rate!r}, expected its rate in Hz, a number above 0"
            if name not in used:
                yield f"clocks: {name!r}: no feature runs on it; Feature(..., clock={name!r}) does"
        if len({str(name).casefold() for name in self.clocks}) < len(self.clocks):
            yield "clocks: got names that differ in case only, which some file systems cannot tell apart"
        kept = {array.casefold() for clock in self.clocks for array in (stamps_name(clock), length_name(clock))}
        for name, feature in recorded.items():
            if feature.clock not in (STEP, *self.clocks):
                known = ", ".join(map(repr, (STEP, *self.clocks)))
                yield (
                    f"{name!r}: clock: got {feature.clock!r}, expected one of {known}; "
                    f"Schema(..., clocks={{{feature.clock!r}: rate in Hz}}) declares it"
                )
            if str(name).casefold() in kept:
                yield f"feature name: {name!r} is kept for what belongs to the clock"

    @property
    def label_horizons(self) -> Horizons:
        """The horizons, always as `Horizons`."""
        assert isinstance(self.horizons, Horizons)  # noqa: S101 - for the type checker; __post_init__ made it so
        return self.horizons

    @property
    def label_shape(self) -> tuple[int, int]:
        """(H, max(K, 1)): the shape of one step of `episode.labels`."""
        return len(self.label_horizons), max(len(self.failure_kinds), 1)

    def rate_of(self, clock: str) -> float:
        """Steps per second that the recording of a clock aims at."""
        return self.rate_hz if clock == STEP else self.clocks[clock]

    def segment_steps_of(self, clock: str) -> int:
        """Steps per shard file of a clock: a multiple of `segment_steps` that takes about as long as a segment does."""
        most = MAX_SEGMENT_STEPS // self.segment_steps
        return self.segment_steps * round(min(max(1, self.rate_of(clock) / self.rate_hz), most))

    @property
    def recorded(self) -> dict[str, Feature]:
        """The features that a recording brings: all but the derived ones."""
        return {name: feature for name, feature in self.features.items() if not feature.derived}

    @property
    def step_bytes(self) -> int:
        """Bytes of one step of the clock `step`, stamp included, before compression; texts not counted."""
        return self.step_bytes_of(STEP)

    def step_bytes_of(self, clock: str) -> int:
        """The same of any clock."""
        return 8 + sum(feature.step_bytes for feature in self.recorded.values() if feature.clock == clock)

    @classmethod
    def infer(cls, step: Mapping[str, Any], *, rate_hz: float, **more: Any) -> Schema:
        """The schema that fits one example step.

        An array of uint8 with three axes, 1 or 3 channels first or last, becomes an `Image`; a str becomes `Text`; a
        float64 becomes float32; everything else keeps its dtype and shape. Nested mappings are joined with ".".

        Args:
            step: A mapping such as an observation of an environment.
            rate_hz: Steps per second.
            **more: `failure_kinds`, `horizons`, `segment_steps`.

        Raises:
            InvalidInputError: A value has no feature that fits it.
        """
        features: dict[str, Feature] = {}
        problems = []
        for name, value in flatten(step).items():
            if isinstance(value, str):
                features[name] = Text()
                continue
            array = np.asarray(value)
            dtype = "float32" if array.dtype.name in ("float16", "float64") else array.dtype.name
            if dtype not in DTYPES:
                problems.append(
                    f"{name!r}: got {type(value).__name__} of dtype {array.dtype}, expected numbers or text"
                )
            elif dtype == "uint8" and array.ndim == 3 and array.shape[-1] in (1, 3):
                height, width, channels = array.shape
                features[name] = Image(
                    height=height, width=width, layout="HWC", color="rgb" if channels == 3 else "gray"
                )
            elif dtype == "uint8" and array.ndim == 3 and array.shape[0] in (1, 3):
                channels, height, width = array.shape
                features[name] = Image(
                    height=height, width=width, layout="CHW", color="rgb" if channels == 3 else "gray"
                )
            else:
                features[name] = Feature(array.shape, dtype)
        if problems:
            raise InvalidInputError.listing(problems, subject="schema of the example step")
        return cls(features, rate_hz=rate_hz, **more)

    def check_native(self, url: str) -> None:
        """Raise FormatError where a feature has codecs of its own, naming all that have."""
        foreign = [(name, feature) for name, feature in self.features.items() if not isinstance(feature.codec, str)]
        if foreign:
            what = "; ".join(f"{name!r}: {feature.coding}" for name, feature in foreign)
            problems = [(name, feature.coding) for name, feature in foreign]
            raise FormatError(f"strict: {what}; expected codecs of SALUS; leave out strict to read it; {url}", problems)

    def extended(self, features: Mapping[str, Feature], clocks: Mapping[str, float] | None = None) -> Schema:
        """This schema with more features, and clocks for them.

        Raises:
            InvalidInputError: A name is there already, or a feature or clock is wrong.
        """
        taken = [f"{name!r} is there already" for name in features if name in self.features]
        taken += [f"the clock {name!r} is there already" for name in clocks or {} if name in self.clocks]
        if taken:
            raise InvalidInputError.listing(taken, subject="add_features")
        return replace(self, features={**self.features, **features}, clocks={**self.clocks, **(clocks or {})})

    def differences(self, other: Schema) -> list[str]:
        """How `other` differs from this schema, in words that call this one "the dataset"."""
        found = []
        for name in sorted(set(self.features) | set(other.features)):
            if name not in other.features:
                found.append(f"{name}: the dataset has it, the given schema does not")
            elif name not in self.features:
                found.append(f"{name}: the given schema has it, the dataset does not (add_features adds it)")
            else:
                found += _differences(self.features[name].to_json(), other.features[name].to_json(), f"{name}.")
        mine, theirs = self.to_json(), other.to_json()
        return found + _differences(
            {key: value for key, value in mine.items() if key != "features"},
            {key: value for key, value in theirs.items() if key != "features"},
            "",
        )

    def to_json(self) -> dict[str, Any]:
        """The schema as it stands in a revision (docs/spec.md, section 2)."""
        horizons = self.label_horizons
        return {
            "rate_hz": self.rate_hz,
            "segment_steps": self.segment_steps,
            "failure_kinds": list(self.failure_kinds),
            "horizons": {"values": list(horizons.values), "unit": horizons.unit},
            **({"clocks": dict(self.clocks)} if self.clocks else {}),
            "features": [{"name": name, **feature.to_json()} for name, feature in self.features.items()],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Schema:
        """The schema of a revision.

        Raises:
            FormatError: The document does not describe a schema that this version knows.
        """
        try:
            features = {}
            for entry in document["features"]:
                values = dict(entry)
                name, kind = values.pop("name"), _KINDS[values.pop("kind")]
                if values.get("dtype") not in kind._dtypes():  # numpy would understand much more
                    raise ValueError(f"{name!r}: dtype {values.get('dtype')!r}")
                if name in features:
                    raise ValueError(f"{name!r}: twice")
                computed = {key for key, item in kind.__dataclass_fields__.items() if not item.init}
                features[name] = kind(**{key: value for key, value in values.items() if key not in computed})
            horizons = Horizons(tuple(document["horizons"]["values"]), document["horizons"]["unit"])
            return cls(
                features,
                rate_hz=document["rate_hz"],
                failure_kinds=tuple(document["failure_kinds"]),
                horizons=horizons,
                segment_steps=document["segment_steps"],
                clocks=document.get("clocks", {}),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise FormatError(f"schema: this version of salus cannot read it: {error}") from error


def stamps_name(clock: str) -> str:
    """The array of the stamps of a clock."""
    return TIMESTAMP if clock == STEP else f"{clock}.{TIMESTAMP}"


def length_name(clock: str) -> str:
    """The array that tells plain readers how many steps of a clock each row has."""
    return LENGTH if clock == STEP else f"{clock}.{LENGTH}"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, names joined with "."."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        full_name = f"{prefix}{name}"
        parts = flatten(value, f"{full_name}.") if isinstance(value, Mapping) else {full_name: value}
        for full in parts.keys() & flat.keys():
            raise InvalidInputError(f"{full!r}: given twice, nested and with its full name")
        flat.update(parts)
    return flat


def _as_tuple(value: Any, what: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidInputError(f"{what}: got {type(value).__name__} {value!r}, expected several values, as a tuple")
    return tuple(value)


def _is_range(values: tuple[Any, ...]) -> bool:
    numbers = [value for value in values if isinstance(value, int | float) and abs(value) < math.inf]
    return len(numbers) == len(values) == 2 and numbers[0] < numbers[1]


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9


def _is_codec(value: Any) -> bool:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return False
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return value.keys() <= {"name", "configuration"} and isinstance(value.get("configuration", {}), Mapping)


def _name_problems(name: Any) -> Iterable[str]:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > 128:
        yield f"feature name: got {name!r}, expected letters, digits, _ and -, joined by '.'"
    elif name in RESERVED:
        yield f"feature name: {name!r} is reserved"
    elif name.endswith(".valid"):
        yield f"feature name: {name!r} ends in '.valid', which is kept for nullable features"


def _dtype_name(dtype: Any) -> str:
    if dtype == "string":
        return "string"
    try:
        return str(np.dtype(dtype).name)
    except TypeError:
        return str(dtype)


def _differences(mine: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str) -> list[str]:
    return [
        f"{prefix}{key}: the dataset has {mine.get(key)!r}, got {theirs.get(key)!r}"
        for key in sorted(set(mine) | set(theirs))
        if mine.get(key) != theirs.get(key)
    ]


SALUS = Schema(
    {
        "images": Image(height=224, width=224),
        "states": Feature((7,)),
        "actions": Feature((7,)),
        "signals": Feature((12,)),
        "horizon_labels": Feature((4, 4), derived="outcome", allow_nan=True),
    },
    rate_hz=25,
    failure_kinds=("collision", "drop", "miss", "timeout"),
    horizons=(6, 10, 13, 16),
)
"""The dataset of the SALUS failure predictor: with `episode_metadata`, which every dataset has, its six arrays.

images uint8 (N, T, 3, 224, 224), states float32 (N, T, 7), actions float32 (N, T, 7), signals float32 (N, T, 12),
horizon_labels float32 (N, T, 4 horizons, 4 kinds). The rate is that of the demo; `dataclasses.replace` gives another.
"""
