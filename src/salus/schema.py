"""What a dataset holds: features with dtype, shape and unit, the rate, failure kinds and label horizons.

A schema is immutable. It is stored as revisions to which features can be added; nothing is ever removed or changed, so
an episode is always read by the revision that it was recorded under.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .errors import FormatError, InvalidInputError
from .features import COLORS, DTYPES, MAX_CODECS, MAX_STEP_BYTES, STEP, Feature, Image, Text, as_tuple
from .labels import Horizons

__all__ = [
    "COLORS",
    "DEFAULT_SEGMENT_STEPS",
    "DTYPES",
    "FORMAT",
    "LENGTH",
    "MAX_CLOCKS",
    "MAX_CODECS",
    "MAX_SEGMENT_STEPS",
    "MAX_STEP_BYTES",
    "RESERVED",
    "SALUS",
    "STEP",
    "TIMESTAMP",
    "Feature",
    "Image",
    "Schema",
    "Text",
    "flatten",
    "length_name",
    "stamps_name",
]

FORMAT = 1
DEFAULT_SEGMENT_STEPS = 256
TIMESTAMP = "timestamp_ns"
LENGTH = "episode_length"
RESERVED = frozenset({"zarr.json", TIMESTAMP, LENGTH, "episode_metadata", "labels", "labels_mask"})
MAX_CLOCKS = 64
MAX_FEATURES = 4096
MAX_FAILURE_KINDS = 1024
MAX_SEGMENT_STEPS = 65536

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
_CLOCK = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_KIND = re.compile(r"[A-Za-z][A-Za-z0-9_ -]*")
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
        object.__setattr__(self, "failure_kinds", as_tuple(self.failure_kinds, "schema: failure_kinds"))
        if not isinstance(self.horizons, Horizons):
            object.__setattr__(self, "horizons", Horizons(as_tuple(self.horizons, "schema: horizons")))
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
            if len(document["features"]) > MAX_FEATURES:  # before each of them is made
                raise ValueError(f"{len(document['features'])} features, expected at most {MAX_FEATURES}")
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


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9


def _name_problems(name: Any) -> Iterable[str]:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > 128:
        yield f"feature name: got {name!r}, expected letters, digits, _ and -, joined by '.'"
    elif name in RESERVED:
        yield f"feature name: {name!r} is reserved"
    elif name.endswith(".valid"):
        yield f"feature name: {name!r} ends in '.valid', which is kept for nullable features"


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
