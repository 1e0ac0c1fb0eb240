"""Where everything lies in a dataset: object keys, chunk grids, and the Zarr v3 metadata. Pure: no files.

Keys come from here and from nowhere else, so no text out of a dataset ever becomes a path (docs/spec.md, section 4).
"""

from __future__ import annotations

import copy
import functools
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from . import jpeg
from .errors import InvalidInputError
from .schema import FORMAT, STEP, Feature, Image, Schema, stamps_name

SLOTS_PER_FOLDER = 1024
ZSTD_LEVEL = 1
WHOLE_SEGMENT_STEP_BYTES = 4096

PRIVATE = "_salus"
METADATA = "episode_metadata"

CONVENTION = {
    "uuid": "f0a3c6d2-6f0b-4d5e-9a53-3c1c5a1f7e11",
    "name": "salus",
    "description": "Robot episodes: row r exists when episode_length[r] > 0, and [:episode_length[r]] bounds it.",
}

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
"""The name under which an object is written before it is in place."""

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


# --- keys ------------------------------------------------------------------------------------------------------


def schema_key(revision: int) -> str:
    """The schema revision of that number."""
    return f"{PRIVATE}/schema/{revision:06d}.json"


def claim_key(slot: int) -> str:
    """The claim on a slot."""
    return f"{PRIVATE}/claims/{slot // SLOTS_PER_FOLDER}/{slot:010d}"


def record_key(slot: int) -> str:
    """The record that decides a slot."""
    return f"{PRIVATE}/log/{slot // SLOTS_PER_FOLDER}/{slot:010d}.json"


def amendment_key(number: int) -> str:
    """The amendment of that number."""
    return f"{PRIVATE}/amendments/{number:010d}.json"


def checkpoint_key(number: int) -> str:
    """The checkpoint of that number."""
    return f"{PRIVATE}/checkpoints/{number:010d}.json"


def tag_key(name: str) -> str:
    """The tag of that name; raises InvalidInputError unless it is 1 to 128 ASCII letters, digits, ".", "_" or "-"."""
    if not isinstance(name, str) or not _TAG.fullmatch(name):
        raise InvalidInputError(
            f"tag name: got {name!r}, expected 1 to 128 ASCII letters, digits, '.', '_' or '-', the first no sign"
        )
    return f"{PRIVATE}/tags/{name}.json"


def journal_folder(slot: int) -> str:
    """The folder of an episode in progress."""
    return f"{PRIVATE}/journal/{slot:010d}"


def journal_key(slot: int) -> str:
    """The journal of an episode in progress."""
    return f"{journal_folder(slot)}/journal"


def spool_id_key() -> str:
    """Which spool this is; not in a dataset."""
    return f"{PRIVATE}/spool"


def number_in(name: str, *, suffix: str = "") -> int | None:
    """The number in the listed name of an object, or of a folder, or None where no key builder made the name."""
    digits = name.removesuffix(suffix) if name.endswith(suffix) else ""
    if not re.fullmatch(r"[0-9]{1,18}", digits):
        return None
    number = int(digits)
    is_object, is_folder = digits == f"{number:010d}", digits == str(number) and not suffix
    return number if is_object or is_folder else None


# --- arrays ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArraySpec:
    """One stored array `(slot, step, *step_shape)`: how its shards and inner chunks are cut and coded.

    Steps are those of its clock.

    Attributes:
        name: Array name, which is the folder below the root.
        dtype: numpy name, or `"string"`.
        step_shape: Shape of one step as readers see it.
        chunk_steps: Steps per inner chunk; divides `segment_steps`.
        segment_steps: Steps per shard.
        channels_last: The step is stored transposed, (C, H, W) as (H, W, C).
        dimensions: Zarr dimension names.
        derived: Built from the records, not recorded.
        codec: What decodes an inner chunk: `"zstd"` and `"jpeg"` natively, `"zarr"` the codecs of `chain`.
        quality: Of JPEG, 1 … 100.
        chain: JSON text of the feature's own Zarr codecs.
        clock: The time axis that it runs on.
    """

    name: str
    dtype: str
    step_shape: tuple[int, ...]
    chunk_steps: int
    segment_steps: int
    channels_last: bool = False
    dimensions: tuple[str, ...] = ()
    derived: bool = False
    codec: Literal["zstd", "jpeg", "zarr"] = "zstd"
    quality: int = 0
    chain: str = ""
    clock: str = STEP

    @cached_property
    def is_text(self) -> bool:
        """Whether its values are text."""
        return self.dtype == "string"

    @cached_property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype in memory: object (of str) for text."""
        return np.dtype(object) if self.is_text else np.dtype(self.dtype)

    @property
    def fill_value(self) -> float | str:
        """What plain readers see where no step is. NaN for labels: 0 would say "no failure" of steps that are not."""
        if self.is_text:
            return ""
        return math.nan if self.derived and self.numpy_dtype.kind == "f" else 0

    @cached_property
    def stored_step_shape(self) -> tuple[int, ...]:
        """Shape of one step in the order of its bytes on disk."""
        if self.channels_last:
            channels, height, width = self.step_shape
            return (height, width, channels)
        return self.step_shape

    @property
    def step_bytes(self) -> int:
        """Bytes of one decoded step; 0 for text."""
        return self.chunk_bytes // self.chunk_steps

    @property
    def chunks_per_shard(self) -> int:
        """Inner chunks of a whole shard."""
        return self.segment_steps // self.chunk_steps

    @cached_property
    def chunk_bytes(self) -> int:
        """Bytes of one decoded inner chunk; 0 for text, whose size is not fixed."""
        if self.is_text:
            return 0
        return self.chunk_steps * math.prod(self.step_shape) * self.numpy_dtype.itemsize

    @property
    def own_codecs(self) -> list[dict[str, Any]]:
        """The Zarr metadata of the codecs that stand in the place of `bytes` and `zstd`; empty where these stay."""
        if self.codec == "zarr":
            own: list[dict[str, Any]] = json.loads(self.chain)
            return own
        if self.codec == "jpeg":
            channels = self.stored_step_shape[-1]
            return [{"name": "imagecodecs_jpeg", "configuration": jpeg.configuration(self.quality, channels)}]
        return []

    def shard_key(self, slot: int, segment: int) -> str:
        """The key that every Zarr reader computes for this shard."""
        return f"{self.name}/c.{slot}.{segment}" + ".0" * len(self.step_shape)

    def shard_identity(self, uid: str, segment: int) -> bytes:
        """What a shard says of itself, before its index; no chunk of Zarr's is there.

        A shard in the place of another is known by it, and a file that a broken disk gave back without its name.
        """
        return f"\nsalus {uid} {self.name} {segment}\n".encode()

    def segments(self, num_steps: int) -> int:
        """Shards of an episode of that length."""
        return -(-num_steps // self.segment_steps)

    def as_stored(self, steps: np.ndarray) -> np.ndarray:
        """`(n, *step_shape)` as a view `(n, *stored_step_shape)`."""
        return steps.transpose(0, 2, 3, 1) if self.channels_last else steps

    def as_seen(self, steps: np.ndarray) -> np.ndarray:
        """`(n, *stored_step_shape)` as a view `(n, *step_shape)`."""
        return steps.transpose(0, 3, 1, 2) if self.channels_last else steps


def index_rows(name: str) -> int:
    """Rows per chunk of an index array."""
    return 64 if name == METADATA else 1024  # metadata may have a megabyte each


def feature_specs(name: str, feature: Feature, schema: Schema) -> Iterable[ArraySpec]:
    """The arrays of one feature: its own, and `<name>.valid` where it is nullable."""
    clock, per_segment = feature.clock, schema.segment_steps_of(feature.clock)
    per_step = isinstance(feature, Image) or feature.step_bytes >= WHOLE_SEGMENT_STEP_BYTES
    layout = feature.layout if isinstance(feature, Image) else None
    own_chain = not isinstance(feature.codec, str)
    yield ArraySpec(
        name=name,
        dtype=feature.dtype,
        step_shape=feature.shape,
        chunk_steps=1 if per_step else schema.segment_steps,
        segment_steps=per_segment,
        channels_last=layout == "CHW" and not own_chain,
        dimensions=(*_dimensions(clock), *_own_dimensions(name, feature, layout)),
        derived=feature.derived is not None,
        codec="zarr" if own_chain else "jpeg" if feature.codec == "jpeg" else "zstd",
        quality=feature.quality or 0 if isinstance(feature, Image) else 0,
        chain=json.dumps(feature.codec, sort_keys=True) if own_chain else "",
        clock=clock,
    )
    if feature.nullable:
        yield _scalar(f"{name}.valid", "bool", clock, schema)


def _scalar(name: str, dtype: str, clock: str, schema: Schema) -> ArraySpec:
    per_segment = schema.segment_steps_of(clock)
    return ArraySpec(name, dtype, (), schema.segment_steps, per_segment, dimensions=_dimensions(clock), clock=clock)


def _dimensions(clock: str) -> tuple[str, str]:
    # Not the bare name of a clock: xarray refuses an array that is named as one of its dimensions.
    return ("episode", STEP if clock == STEP else f"{clock}_step")


def _own_dimensions(name: str, feature: Feature, layout: Literal["CHW", "HWC"] | None) -> list[str]:
    # xarray takes equal names for equal sizes, so these belong to the feature alone.
    if layout is not None:
        axes = {"C": "channel", "H": "y", "W": "x"}
        return [f"{name}_{axes[axis]}" for axis in layout]
    if len(feature.shape) == 1:
        return [f"{name}_component"]
    return [f"{name}_axis{axis}" for axis in range(len(feature.shape))]


def array_specs(schema: Schema) -> dict[str, ArraySpec]:
    """All arrays `(slot, step, …)` of a dataset by name, the stamps of the clocks first."""
    specs = [_scalar(stamps_name(clock), "int64", clock, schema) for clock in (STEP, *schema.clocks)]
    for name, feature in schema.features.items():
        specs.extend(feature_specs(name, feature, schema))
    return {spec.name: spec for spec in specs}


def recorded_arrays(schema: Schema) -> list[ArraySpec]:
    """The arrays that an episode recorded under `schema` has shards of, sorted by name."""
    return sorted((spec for spec in array_specs(schema).values() if not spec.derived), key=lambda spec: spec.name)


# --- Zarr metadata ---------------------------------------------------------------------------------------------


def array_metadata(spec: ArraySpec, slots: int, steps: int) -> dict[str, Any]:
    """The `zarr.json` of a feature array of shape `(slots, steps, *step_shape)`."""
    document = copy.deepcopy(_feature_template(spec))
    document["shape"] = [slots, steps, *spec.step_shape]
    return document


def index_metadata(name: str, slots: int) -> dict[str, Any]:
    """The `zarr.json` of `episode_length` or `episode_metadata`, of shape `(slots,)`."""
    document = copy.deepcopy(_index_template(name))
    document["shape"] = [slots]
    return document


def root_metadata(schema: Schema, revision: int, arrays: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The root `zarr.json`, with the metadata of all arrays inline, so that one read opens the dataset."""
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {
            "salus": {"format": FORMAT, "schema_revision": revision, **schema.to_json()},
            "zarr_conventions": [CONVENTION],
        },
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": arrays},
    }


def metadata_bytes(document: dict[str, Any]) -> bytes:
    """A `zarr.json` as text: indented, as zarr-python writes it, for people."""
    return json.dumps(document, indent=2, allow_nan=False).encode()


@functools.cache
def _feature_template(spec: ArraySpec) -> dict[str, Any]:
    from zarr.codecs import TransposeCodec

    transpose = [TransposeCodec(order=(0, 1, 3, 4, 2))] if spec.channels_last else []
    document = _created_by_zarr(
        shape=(0, 0, *spec.step_shape),
        shards=(1, spec.segment_steps, *spec.step_shape),
        chunks=(1, spec.chunk_steps, *spec.step_shape),
        dtype="str" if spec.is_text else spec.dtype,
        filters=transpose or None,
        fill_value=spec.fill_value,
        dimension_names=spec.dimensions,
    )
    if spec.own_codecs:  # put in as they are, so that publishing needs no package that brings them
        document["codecs"][0]["configuration"]["codecs"][len(transpose) : -1] = spec.own_codecs
    return document


@functools.cache
def _index_template(name: str) -> dict[str, Any]:
    return _created_by_zarr(
        shape=(0,),
        chunks=(index_rows(name),),
        dtype="str" if name == METADATA else "int32",
        filters=None,
        dimension_names=("episode",),
    )


def _created_by_zarr(**arguments: Any) -> dict[str, Any]:
    # zarr-python writes the metadata, into memory; SALUS puts the bytes where they are durable.
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec
    from zarr.storage import MemoryStore

    files: dict[str, Any] = {}
    zarr.create_array(
        MemoryStore(files),
        name="array",
        compressors=[ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
        config={"write_empty_chunks": True},
        **arguments,
    )
    document: dict[str, Any] = json.loads(files["array/zarr.json"].to_bytes())
    return document
