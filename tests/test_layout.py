"""Keys and array layouts: canonical, and equal to what every Zarr reader computes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

import salus
from salus import layout
from salus.errors import InvalidInputError
from salus.layout import ArraySpec, array_specs, number_in, tag_key


def test_keys() -> None:
    assert layout.schema_key(0) == "_salus/schema/000000.json"
    assert layout.claim_key(1023) == "_salus/claims/0/0000001023"
    assert layout.record_key(1024) == "_salus/log/1/0000001024.json"
    assert layout.amendment_key(7) == "_salus/amendments/0000000007.json"
    assert layout.checkpoint_key(7) == "_salus/checkpoints/0000000007.json"
    assert layout.journal_folder(7) == "_salus/journal/0000000007"
    assert tag_key("v1.0_a-b") == "_salus/tags/v1.0_a-b.json"


@pytest.mark.parametrize("slot", [0, 1, 1023, 1024, 123456, 9_999_999_999])
def test_the_number_in_a_key_is_the_one_that_it_was_made_of(slot: int) -> None:
    assert number_in(layout.record_key(slot).rpartition("/")[2], suffix=".json") == slot
    assert number_in(layout.claim_key(slot).rpartition("/")[2]) == slot
    assert number_in(layout.checkpoint_key(slot).rpartition("/")[2], suffix=".json") == slot
    assert number_in(layout.record_key(slot).split("/")[2]) == slot // 1024


ODD = ["", ".json", "-1", "+1", " 1", "1 ", "1\n", "0x1", "1_0", "1.0", "1e3", "١٢٣", "²", "1" * 19, "..", "a", "0/1"]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_hold_no_number(name: str) -> None:
    assert number_in(name) is None
    assert number_in(f"{name}.json", suffix=".json") is None


@pytest.mark.parametrize("name", ["0000000001.json.bak", "0000000001.JSON", "0000000001", ".0000000001.json.ab.tmp"])
def test_a_name_without_its_suffix_holds_no_number(name: str) -> None:
    assert number_in(name, suffix=".json") is None


@pytest.mark.parametrize("name", ["7.json", "007.json", "00000000007.json"])
def test_a_record_named_otherwise_than_its_key_holds_no_number(name: str) -> None:
    assert number_in(name, suffix=".json") is None


BAD_TAGS: list[object] = [
    "",
    ".",
    "..",
    ".hidden",
    "-x",
    "_x",
    "a/b",
    "a\\b",
    "a b",
    "a\n",
    "ä",
    "a\0",
    "%2e",
    "x" * 129,
    "١",
    7,
    None,
]


@pytest.mark.parametrize("name", BAD_TAGS)
def test_tag_names_that_could_be_paths_are_refused(name: object) -> None:
    with pytest.raises(InvalidInputError, match="tag name: got"):
        tag_key(name)  # type: ignore[arg-type]  # the error is the subject


def test_the_longest_tag_name_is_fine() -> None:
    assert tag_key("x" * 128) == f"_salus/tags/{'x' * 128}.json"


# --- arrays ----------------------------------------------------------------------------------------------------


def test_what_is_a_chunk_and_what_is_a_shard() -> None:
    specs = array_specs(
        salus.Schema(
            {
                "chw": salus.Image(height=4, width=6),
                "hwc": salus.Image(height=4, width=6, layout="HWC"),
                "small": salus.Feature((1023,)),
                "large": salus.Feature((1024,)),
                "maybe": salus.Feature((2, 2), "int8", nullable=True),
                "text": salus.Text(),
            },
            rate_hz=10,
            segment_steps=32,
        )
    )
    assert list(specs) == ["timestamp_ns", "chw", "hwc", "small", "large", "maybe", "maybe.valid", "text"]
    chunk_steps = {name: spec.chunk_steps for name, spec in specs.items()}
    assert [name for name, steps in chunk_steps.items() if steps == 1] == ["chw", "hwc", "large"]
    assert set(chunk_steps.values()) == {1, 32}
    assert specs["chw"].stored_step_shape == (4, 6, 3)
    assert specs["hwc"].stored_step_shape == specs["hwc"].step_shape == (4, 6, 3)
    assert specs["chw"].chunk_bytes == 72
    assert specs["small"].chunk_bytes == 32 * 1023 * 4
    assert specs["text"].chunk_bytes == 0
    assert specs["maybe.valid"].dtype == "bool"
    assert specs["chw"].dimensions == ("episode", "step", "chw_channel", "chw_y", "chw_x")
    assert specs["hwc"].dimensions == ("episode", "step", "hwc_y", "hwc_x", "hwc_channel")
    assert specs["small"].dimensions == ("episode", "step", "small_component")
    assert specs["maybe"].dimensions == ("episode", "step", "maybe_axis0", "maybe_axis1")


@pytest.mark.parametrize(("num_steps", "segments"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_segments_of_an_episode(num_steps: int, segments: int) -> None:
    assert ArraySpec("a", "float32", (), 4, 4).segments(num_steps) == segments


def test_stored_and_seen_are_inverse_views() -> None:
    spec = ArraySpec("a", "uint8", (3, 4, 5), 1, 4, channels_last=True)
    steps = np.arange(2 * 60, dtype=np.uint8).reshape(2, 3, 4, 5)
    assert spec.as_stored(steps).shape == (2, 4, 5, 3)
    assert np.shares_memory(spec.as_seen(spec.as_stored(steps)), steps)
    np.testing.assert_array_equal(spec.as_seen(spec.as_stored(steps)), steps)


@pytest.mark.parametrize("shape", [(), (7,), (3, 4, 5)])
def test_the_shard_key_is_the_one_that_zarr_computes(shape: tuple[int, ...]) -> None:
    spec = ArraySpec("a", "uint8", shape, 1, 4)
    document = layout.array_metadata(spec, 20, 12)
    metadata = zarr.core.metadata.ArrayV3Metadata.from_dict(document)
    assert spec.shard_key(13, 2) == "a/" + metadata.encode_chunk_key((13, 2, *[0] * len(shape)))


def test_metadata_is_made_anew_each_time() -> None:
    spec = ArraySpec("a", "float32", (2,), 4, 4, dimensions=("episode", "step", "a_component"))
    first = layout.array_metadata(spec, 3, 8)
    first["shape"][0] = 99
    first["codecs"].clear()
    second = layout.array_metadata(spec, 4, 8)
    assert second["shape"] == [4, 8, 2]
    assert second["codecs"]
    assert layout.index_metadata("episode_length", 5)["shape"] == [5]


def test_the_codecs_are_those_of_the_format() -> None:
    specs = array_specs(salus.Schema({"image": salus.Image(height=4, width=6)}, rate_hz=10, segment_steps=8))
    document = json.loads(layout.metadata_bytes(layout.array_metadata(specs["image"], 1, 8)))
    (sharding,) = document["codecs"]
    assert sharding["name"] == "sharding_indexed"
    assert sharding["configuration"]["index_location"] == "end"
    assert [codec["name"] for codec in sharding["configuration"]["codecs"]] == ["transpose", "bytes", "zstd", "crc32c"]
    assert sharding["configuration"]["codecs"][2]["configuration"]["level"] == 1
    assert [codec["name"] for codec in sharding["configuration"]["index_codecs"]] == ["bytes", "crc32c"]
    assert sharding["configuration"]["chunk_shape"] == [1, 1, 3, 4, 6]
    assert document["chunk_grid"]["configuration"]["chunk_shape"] == [1, 8, 3, 4, 6]
    assert document["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "."}}


def test_no_key_leaves_the_root(tmp_path: Path) -> None:
    keys = [layout.schema_key(1), layout.claim_key(1), layout.record_key(1), layout.journal_folder(1), tag_key("a..b")]
    for key in keys:
        assert (tmp_path / key).resolve().is_relative_to(tmp_path.resolve())
        assert ".." not in key.split("/")
