"""JPEG images: lossy where asked for, the same for plain Zarr as for SALUS, and never larger than the schema says."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus
from salus import jpeg
from salus.codecs import crc32c, decode_chunk, encode_chunk
from salus.errors import CorruptDataError, FormatError, InvalidInputError, MissingExtraError
from salus.layout import ArraySpec, array_metadata, array_specs
from salus.log.revisions import read_revisions
from salus.schema import Schema

if importlib.util.find_spec("imagecodecs") is None and not os.environ.get("CI"):
    pytest.skip("imagecodecs is not installed; run `make setup`", allow_module_level=True)
imagecodecs: Any = importlib.import_module("imagecodecs")

IMAGES = {
    "chw": salus.Image(height=40, width=56, codec="jpeg"),
    "hwc": salus.Image(height=40, width=56, layout="HWC", codec="jpeg", quality=90),
    "bgr": salus.Image(height=40, width=56, color="bgr", codec="jpeg"),
    "gray": salus.Image(height=40, width=56, color="gray", codec="jpeg", quality=80),
    "gray_hwc": salus.Image(height=40, width=56, color="gray", layout="HWC", codec="jpeg"),
}
SCHEMA = salus.Schema(
    {**IMAGES, "lossless": salus.Image(height=40, width=56), "states": salus.Feature((7,))},
    rate_hz=30,
    segment_steps=4,
)
SPECS = array_specs(SCHEMA)
RED, GREEN, BLUE = (220, 30, 20), (20, 200, 40), (30, 40, 210)
needs_entry_point = pytest.mark.skipif(
    not os.environ.get("CI") and not entry_points(group="zarr.codecs", name="imagecodecs_jpeg"),
    reason="salus is not installed with its entry points; run `make setup`",
)


def scene(step: int) -> np.ndarray:
    """uint8 (40, 56, 3) RGB: three colored stripes, a gradient and dots."""
    image = np.zeros((40, 56, 3), np.uint8)
    for place, color in enumerate((RED, GREEN, BLUE)):
        image[:, 16 * place : 16 * place + 16] = color
    image[:, 48:] = (np.arange(40) * 5 + step)[:, None, None]
    image[::7, 50::3] += 25  # what JPEG keeps less well
    return image


def as_recorded(name: str, step: int) -> np.ndarray:
    """The scene in the color and layout of the feature."""
    feature: Any = SCHEMA.features[name]
    image = scene(step)
    image = {"rgb": image, "bgr": image[:, :, ::-1], "gray": image[:, :, 1:2]}[feature.color]
    return image if feature.layout == "HWC" else image.transpose(2, 0, 1)


STEPS = 6
CAMERAS = [name for name in SCHEMA.features if name != "states"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("jpeg") / "data.zarr"
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        for shift in range(2):
            with recorder.episode() as episode:
                for step in range(STEPS):
                    images = {name: as_recorded(name, step + shift) for name in CAMERAS}
                    episode.append(images, states=np.full(7, step))
    return path


@pytest.mark.parametrize("name", CAMERAS)
def test_what_is_read_is_close_to_what_was_recorded_channel_by_channel(path: Path, name: str) -> None:
    read = salus.open(path)[1][name][:]
    recorded = np.stack([as_recorded(name, step + 1) for step in range(STEPS)])
    assert (read.dtype, read.shape) == (np.uint8, recorded.shape)
    error = np.abs(read.astype(int) - recorded)
    # The stripes' borders ring a little; inside of them hardly anything is lost.
    assert error.mean() < 3
    axis = -1 if SCHEMA.features[name].layout == "CHW" else -2  # type: ignore[attr-defined]
    assert np.take(error, [4, 5, 6, 20, 21, 22, 36, 37, 38], axis).max() < 5
    assert (name == "lossless") == (not error.any())


def test_jpeg_is_smaller_and_a_lower_quality_is_smaller_still() -> None:
    rng = np.random.default_rng(0)
    noisy = (scene(0) + rng.normal(scale=4, size=(40, 56, 3))).clip(0, 255).astype(np.uint8)[None]
    sizes = [
        len(encode_chunk(ArraySpec("a", "uint8", (3, 40, 56), 1, 4, channels_last=True, **more), noisy))
        for more in ({}, {"codec": "jpeg", "quality": 95}, {"codec": "jpeg", "quality": 50})
    ]
    assert sizes[0] > 2 * sizes[1] > 3 * sizes[2]


def test_gather_reads_as_episodes_do(path: Path) -> None:
    dataset = salus.open(path)
    pairs = [(1, 5), (0, 0), (1, 5), (0, 3), *((e, s) for e in range(2) for s in range(6))]
    for name in CAMERAS:
        batch = dataset.gather({name: pairs})[name]
        for image, (episode, step) in zip(batch, pairs, strict=True):
            np.testing.assert_array_equal(image, dataset[episode][name][step])


def test_a_missing_image_of_a_nullable_feature_is_black(tmp_path: Path) -> None:
    schema = salus.Schema({"wrist": salus.Image(height=9, width=7, nullable=True, codec="jpeg", quality=20)}, rate_hz=1)
    with salus.Recorder(salus.create(tmp_path / "data.zarr", schema)) as recorder, recorder.episode() as episode:
        for image in (None, np.full((9, 7, 3), 77, np.uint8)):
            episode.append(wrist=image)
    read = salus.open(tmp_path / "data.zarr")[0]
    assert read["wrist.valid"][:].tolist() == [False, True]
    assert not read["wrist"][0].any()
    assert read["wrist"][1].min() > 70


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1), (8, 8), (17, 33)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_size(shape: tuple[int, int], channels: int) -> None:
    spec = ArraySpec("a", "uint8", (channels, *shape), 1, 4, channels_last=True, codec="jpeg", quality=95)
    image = np.full((1, *shape, channels), 90, np.uint8)
    out = np.zeros((3, *shape, channels), np.uint8)
    assert np.shares_memory(decode_chunk(spec, encode_chunk(spec, image), out[1:2]), out)
    assert np.abs(out[1].astype(int) - 90).max() <= 1
    assert not out[[0, 2]].any()


# --- plain Zarr ----------------------------------------------------------------------------------------------------


def test_the_codecs_in_the_metadata() -> None:
    chains = {name: array_metadata(SPECS[name], 1, 4)["codecs"][0]["configuration"]["codecs"] for name in IMAGES}
    names = {name: [codec["name"] for codec in chain] for name, chain in chains.items()}
    assert names["chw"] == ["transpose", "imagecodecs_jpeg", "crc32c"]
    assert names["hwc"] == ["imagecodecs_jpeg", "crc32c"]
    assert chains["chw"][0]["configuration"] == {"order": [0, 1, 3, 4, 2]}
    assert chains["chw"][1]["configuration"] == {"level": 95, "subsampling": "444"}
    assert chains["hwc"][0]["configuration"] == {"level": 90, "subsampling": "444"}
    assert chains["gray"][1]["configuration"] == {"level": 80}
    sharding = array_metadata(SPECS["chw"], 1, 4)["codecs"][0]["configuration"]
    assert [codec["name"] for codec in sharding["index_codecs"]] == ["bytes", "crc32c"]


READ = """
import sys
import numpy as np
import zarr

assert "salus" not in sys.modules
root = zarr.open(sys.argv[1], mode="r")
np.savez(sys.argv[2], **{name: root[name][:] for name in sys.argv[3:]}, one=root["chw"][1, 4])
"""


@needs_entry_point
def test_plain_zarr_reads_exactly_what_salus_reads(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", READ, str(path), str(tmp_path / "read.npz"), *CAMERAS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    dataset = salus.open(path)
    with np.load(tmp_path / "read.npz") as read:
        for name in CAMERAS:
            for row in range(2):
                np.testing.assert_array_equal(read[name][row, :STEPS], dataset[row][name][:])
        np.testing.assert_array_equal(read["one"], dataset[1]["chw"][4])


def _fallback() -> bool:
    return tuple(map(int, version("imagecodecs").split(".")[:2])) < (2026, 10)


@needs_entry_point
def test_zarr_finds_one_codec_and_it_is_that_of_imagecodecs_where_it_has_one() -> None:
    from zarr.registry import get_codec_class

    found = get_codec_class("imagecodecs_jpeg")  # two different classes would be a warning, which is an error here
    expected = "salus.zarr_codecs.FallbackJpeg" if _fallback() else "imagecodecs.zarr.Jpeg"
    assert f"{found.__module__}.{found.__qualname__}" == expected


@needs_entry_point
@pytest.mark.parametrize("name", IMAGES)
def test_what_plain_zarr_writes_with_the_same_codecs_is_read(tmp_path: Path, name: str) -> None:
    """The codec of plain Zarr, ours or that of imagecodecs-zarr, encodes what SALUS decodes to the same image."""
    import zarr

    from salus.layout import metadata_bytes
    from salus.shards import ShardReader
    from salus.storage import LocalStorage

    spec = SPECS[name]
    (tmp_path / name).mkdir()
    (tmp_path / name / "zarr.json").write_bytes(metadata_bytes(array_metadata(spec, 1, 4)))
    array = zarr.open_array(tmp_path / name, mode="r+")
    if spec.channels_last and not _fallback():
        pytest.skip("the codec of imagecodecs 2026.10 does not encode behind a transpose; it decodes there")
    array[0, 0] = as_recorded(name, 0)
    opened = LocalStorage(tmp_path).open_shard(spec.shard_key(0, 0))
    assert opened is not None
    reader = ShardReader(opened, spec, b"")
    image = spec.as_seen(decode_chunk(spec, reader.chunk(0)))[0]
    np.testing.assert_array_equal(image, array[0, 0])
    stored = np.ascontiguousarray(spec.as_stored(as_recorded(name, 0)[None]))
    assert reader.chunk(0) == encode_chunk(spec, stored)


def test_the_codec_that_salus_brings_reads_its_own_metadata_back_and_refuses_what_it_does_not_know() -> None:
    from salus.zarr_codecs import FallbackJpeg

    document = {"name": "imagecodecs_jpeg", "configuration": {"level": 80, "subsampling": "444"}}
    assert FallbackJpeg.from_dict(document).to_dict() == document
    assert FallbackJpeg.from_dict({"name": "imagecodecs_jpeg"}).configuration == ()
    with pytest.raises(ValueError, match="'tables': needs the package imagecodecs-zarr"):
        FallbackJpeg.from_dict({"name": "imagecodecs_jpeg", "configuration": {"tables": "AAAA"}})


# --- bad bytes -----------------------------------------------------------------------------------------------------

SMALL = ArraySpec("a", "uint8", (3, 16, 16), 1, 4, channels_last=True, codec="jpeg", quality=95)


def sealed(packed: bytes) -> bytes:
    return packed + crc32c(packed).to_bytes(4, "little")


def of_shape(*shape: int, **more: Any) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(np.zeros(shape, np.uint8), 95, **more))


def lying(packed: bytes, height: int) -> bytes:
    """The same with another height in the frame header."""
    place = packed.index(b"\xff\xc0") + 5
    return packed[:place] + height.to_bytes(2, "big") + packed[place + 2 :]


@pytest.mark.parametrize(
    ("packed", "text"),
    [
        (of_shape(16, 17, 3), r"declares a JPEG image of \(height, width, channels\) \(16, 17, 3\), expected \(16, 16"),
        (of_shape(16, 16), r"\(16, 16, 1\), expected \(16, 16, 3\)"),
        (lying(of_shape(16, 16, 3), 65000), r"\(65000, 16, 3\), expected"),
        (imagecodecs.jpeg8_encode(np.zeros((16, 16, 3), np.uint8), lossless=True), "no baseline JPEG image"),
        (imagecodecs.png_encode(np.zeros((16, 16, 3), np.uint8)), "no baseline JPEG image"),
        (b"\xff\xd8\xff\xe0\x00\x10", "no baseline JPEG image"),
        (b"\xff\xd8\xff\xd0" + of_shape(16, 16, 3)[2:], "no baseline JPEG image"),
        (b"\xff\xd8" + b"\xff\xe1\x00\x00" * 100_000, "no baseline JPEG image"),
        (of_shape(16, 16, 3)[:300], "imagecodecs cannot decode the JPEG image"),
    ],
    ids=["wide", "gray", "tall", "lossless", "png", "cut", "restart", "endless", "no scan"],
)
def test_what_is_not_the_image_of_the_schema_is_refused(packed: bytes, text: str) -> None:
    with pytest.raises(CorruptDataError, match=text):
        decode_chunk(SMALL, sealed(packed))


def test_a_size_that_lies_is_refused_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagecodecs, "jpeg8_decode", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(CorruptDataError, match=r"\(60000, 16, 3\)"):
        decode_chunk(SMALL, sealed(lying(of_shape(16, 16, 3), 60000)))


def test_the_declared_shape_is_that_of_the_image() -> None:
    for shape in ((1, 1, 3), (300, 2, 3), (2, 1000, 1)):
        assert jpeg.declared_shape(memoryview(of_shape(*shape))) == shape
    image = of_shape(4, 4, 3)
    for marker in (0xC2, 0xC3, 0xC9, 0xD0, 0xD9, 0xDA, 0x01):  # frames of other kinds, and what has no length
        assert jpeg.declared_shape(memoryview(b"\xff\xd8\xff" + bytes([marker]) + b"\x00\x02" + image[2:])) is None
    assert jpeg.declared_shape(memoryview(b"\xff\xd8\xff\xfe\x00\x02" + image[2:])) == (4, 4, 3)  # a comment
    twelve_bits = bytearray(of_shape(4, 4, 3))
    twelve_bits[twelve_bits.index(b"\xff\xc0") + 4] = 12
    assert jpeg.declared_shape(memoryview(twelve_bits)) is None


def test_a_changed_byte_of_a_shard_is_found(path: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(path, tmp_path / "copy"))
    shard = copy / "chw" / "c.0.0.0.0.0"
    body = bytearray(shard.read_bytes())
    body[400] ^= 1
    shard.write_bytes(body)
    with pytest.raises(CorruptDataError, match="crc32c does not hold"):
        salus.open(copy)[0]["chw"][:]


# --- the schema ------------------------------------------------------------------------------------------------------


def test_the_default_is_lossless_and_the_quality_of_jpeg_is_95() -> None:
    assert salus.Image(height=2, width=2).codec == "zstd"
    assert salus.Image(height=2, width=2).is_lossless
    assert salus.Image(height=2, width=2, codec="jpeg").quality == 95
    assert not salus.Image(height=2, width=2, codec="jpeg").is_lossless
    assert salus.Image(height=2, width=2, codec="jpeg").coding == "JPEG quality 95, lossy"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: salus.Image(height=2, width=2, quality=95), "quality: got 95, expected none with codec 'zstd'"),
        (lambda: salus.Image(height=2, width=2, codec="jpeg", quality=0), "quality: got 0, expected 1 .. 100"),
        (lambda: salus.Image(height=2, width=2, codec="jpeg", quality=101), "quality: got 101"),
        (lambda: salus.Image(height=2, width=2, codec="jpeg", quality=True), "quality: got True"),
        (lambda: salus.Image(height=2, width=2, codec="jpeg", quality=9.5), "quality: got 9.5"),  # type: ignore[arg-type]
        (lambda: salus.Image(height=2, width=2, codec="png"), "codec: got 'png', expected 'zstd' or 'jpeg', or a list"),
        (lambda: salus.Image(height=2, width=65501, codec="jpeg"), "JPEG holds sides up to 65500"),
        (lambda: salus.Feature((2,), codec="jpeg"), "codec: got 'jpeg', expected 'zstd', or a list"),
    ],
)
def test_what_a_codec_may_not_be(make: Any, text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        salus.Schema({"a": make()}, rate_hz=1)


def test_a_revision_keeps_codec_and_quality_and_older_ones_without_them_load(path: Path) -> None:
    document = json.loads(json.dumps(SCHEMA.to_json()))
    assert [(entry["codec"], entry.get("quality")) for entry in document["features"]] == [
        ("jpeg", 95),
        ("jpeg", 90),
        ("jpeg", 95),
        ("jpeg", 80),
        ("jpeg", 95),
        ("zstd", None),
        ("zstd", None),
    ]
    assert Schema.from_json(document) == SCHEMA == read_revisions(salus.open(path).storage)[0]
    for entry in document["features"]:
        del entry["codec"]
        entry.pop("quality", None)
    assert {feature.codec for feature in Schema.from_json(document).features.values()} == {"zstd"}


@pytest.mark.parametrize("quality", ["95", 0, [95], 1e9])
def test_a_revision_with_a_quality_that_cannot_be_is_refused(quality: Any) -> None:
    document = json.loads(json.dumps(SCHEMA.to_json()))
    document["features"][0]["quality"] = quality
    with pytest.raises(FormatError, match="quality: got"):
        Schema.from_json(document)


def test_another_quality_is_another_schema(path: Path) -> None:
    other = salus.Schema({**SCHEMA.features, "hwc": salus.Image(height=40, width=56, layout="HWC")}, rate_hz=30)
    with pytest.raises(InvalidInputError, match=r"hwc.codec: the dataset has 'jpeg', got 'zstd'"):
        salus.create(path, other, exist_ok=True)


def test_reprs_and_info_say_what_is_lossy(path: Path) -> None:
    from salus.cli.describe import describe_dataset, print_dataset

    dataset = salus.open(path)
    assert "chw uint8 (3, 40, 56) (JPEG quality 95, lossy)" in repr(dataset)
    assert "lossless uint8 (3, 40, 56), states float32 (7,)>" in repr(dataset)
    assert "gray uint8 (6, 1, 40, 56) (JPEG quality 80, lossy)" in repr(dataset[0])
    assert repr(dataset[0]["lossless"]) == "<lossless uint8 (6, 3, 40, 56)>"
    document = describe_dataset(dataset)
    assert document["features"]["hwc"]["storage"] == "JPEG quality 90, lossy, one chunk per image"
    assert (document["features"]["hwc"]["codec"], document["features"]["hwc"]["quality"]) == ("jpeg", 90)
    assert list(document["not_lossless"]) == list(IMAGES)
    from salus.cli.terminal import console

    with console.capture() as captured:
        print_dataset(document)
    assert "gray: JPEG quality 80, lossy" in captured.get()
    assert "nothing lost" not in captured.get()


# --- without the extra ---------------------------------------------------------------------------------------------

WITHOUT = """
import sys
sys.modules["imagecodecs"] = None
import numpy as np
import salus

schema = salus.Schema({"images": salus.Image(height=40, width=56, codec="jpeg")}, rate_hz=30)
dataset = salus.open(sys.argv[1], mode="a")  # opening, and what is not JPEG, needs no extra
assert dataset[0]["states"][:].shape == (6, 7)
dataset.update_metadata(0, {"seen": True})  # publishes
for attempt in (
    lambda: salus.create(sys.argv[2], schema),
    lambda: salus.Recorder(dataset),
    lambda: dataset.add_features({"more": schema.features["images"]}),
    lambda: dataset[0]["chw"][0],
    lambda: dataset.gather({"chw": [(0, step % 6) for step in range(32)]}),
):
    try:
        attempt()
    except salus.MissingExtraError as error:
        assert "pip install 'salus[jpeg]'" in str(error), error
    else:
        raise AssertionError("no error")
"""


def test_without_the_extra_it_says_what_to_install(path: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(path, tmp_path / "copy")
    command = [sys.executable, "-W", "error", "-c", WITHOUT, str(copy), str(tmp_path / "new.zarr")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "new.zarr").exists()


def test_a_library_without_libjpeg_is_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg.library.cache_clear()
    monkeypatch.setattr(imagecodecs.JPEG8, "available", False)
    with pytest.raises(MissingExtraError, match="built without libjpeg"):
        jpeg.library()
