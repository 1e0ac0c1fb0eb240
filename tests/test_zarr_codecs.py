"""Features with Zarr codecs of their own: through zarr-python, from threads, in forked children, and visibly so."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import salus
from salus.codecs import crc32c, decode_chunk, encode_chunk
from salus.errors import CorruptDataError, FormatError, InvalidInputError
from salus.layout import array_metadata, array_specs
from salus.schema import Schema

BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
GZIP = {"name": "gzip", "configuration": {"level": 5}}
BZ2 = {"name": "numcodecs.bz2", "configuration": {"level": 1}}  # it has no synchronous half
TRANSPOSE = {"name": "transpose", "configuration": {"order": [0, 1, 3, 4, 2]}}
SCHEMA = salus.Schema(
    {
        "images": salus.Image(height=12, width=10, codec=[TRANSPOSE, BYTES, GZIP]),
        "states": salus.Feature((7,), "float64", codec=[BYTES, BZ2]),
        "flags": salus.Feature((), "bool", nullable=True, codec=[{"name": "bytes"}, GZIP]),
        "actions": salus.Feature((3,)),
    },
    rate_hz=30,
    segment_steps=4,
)
STEPS = 10

# zarr-python warns of every codec of numcodecs that the specification does not have.
pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")


def arrays(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(0, 256, (STEPS, 3, 12, 10), dtype=np.uint8),
        "states": rng.normal(size=(STEPS, 7)),
        "flags": rng.random(STEPS) < 0.5,
        "actions": rng.normal(size=(STEPS, 3)).astype(np.float32),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data.zarr"
    with salus.Recorder(salus.create(path, SCHEMA)) as recorder:
        for seed in range(2):
            recorder.record_episode(arrays(seed))
    return path


def test_it_reads_what_was_recorded_and_plain_zarr_reads_the_same(path: Path) -> None:
    dataset, root = salus.open(path), zarr.open_group(path, mode="r")
    for row in range(2):
        for name, values in arrays(row).items():
            np.testing.assert_array_equal(dataset[row][name][:], values)
            plain: Any = root[name]
            np.testing.assert_array_equal(plain[row], values)


def test_the_chain_in_the_metadata_is_the_feature_s_own_and_crc32c() -> None:
    specs = array_specs(SCHEMA)
    chain = array_metadata(specs["images"], 1, 4)["codecs"][0]["configuration"]["codecs"]
    assert chain == [TRANSPOSE, BYTES, GZIP, {"name": "crc32c"}]
    assert not specs["images"].channels_last
    validity = array_metadata(specs["flags.valid"], 1, 4)["codecs"][0]["configuration"]["codecs"]
    assert [codec["name"] for codec in validity] == ["bytes", "zstd", "crc32c"]


def test_from_many_threads_at_once(path: Path) -> None:
    dataset = salus.open(path)
    pairs = [(row, step) for row in range(2) for step in range(STEPS)] * 3
    expected = {name: np.concatenate([arrays(row)[name] for row in range(2)] * 3) for name in ("images", "states")}

    def read(_: int) -> None:
        batch = salus.open(path).gather({"images": pairs, "states": pairs})
        for name, values in expected.items():
            np.testing.assert_array_equal(batch[name], values)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(8)))
    assert len(dataset) == 2


def test_inside_a_running_event_loop(path: Path) -> None:
    async def read() -> np.ndarray:
        states: np.ndarray = salus.open(path)[0]["states"][:]
        return states

    np.testing.assert_array_equal(asyncio.run(read()), arrays(0)["states"])


def _read_in_child(dataset: salus.Dataset, results: Any) -> None:
    batch = dataset.gather({name: [(row, step) for row in range(2) for step in range(STEPS)] for name in arrays(0)})
    results.put({name: values.copy() for name, values in batch.items()})


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_in_a_forked_child_after_the_parent_used_zarr(path: Path) -> None:
    dataset = salus.open(path)
    assert zarr.open_group(path, mode="r")["states"][0].shape == (STEPS, 7)  # type: ignore[index, union-attr]
    assert dataset[0]["states"][:].shape == (STEPS, 7)  # now zarr's loop and our chains are there
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_read_in_child, args=(dataset, results))
    child.start()
    read = results.get(timeout=60)
    child.join(timeout=60)
    assert child.exitcode == 0
    for name, values in arrays(0).items():
        np.testing.assert_array_equal(read[name], np.concatenate([values, arrays(1)[name]]))


def test_a_codec_whose_own_codecs_have_no_synchronous_half() -> None:
    inner = {"chunk_shape": [1, 2, 2], "codecs": [BYTES, BZ2], "index_codecs": [BYTES, {"name": "crc32c"}]}
    spec = array_specs(with_codec([{"name": "sharding_indexed", "configuration": inner}]))["a"]
    values = np.arange(8, dtype=np.float32).reshape(4, 2)
    np.testing.assert_array_equal(decode_chunk(spec, encode_chunk(spec, values)), values)


def test_a_codec_that_says_that_its_synchronous_half_cannot_be_used() -> None:
    from salus.zarr_codecs import _run

    class Nested:
        _sync_capable = False

        def _decode_sync(self, *_: Any) -> Any:
            raise NotImplementedError

        async def decode(self, chunks: Any) -> list[Any]:
            return [data for data, _ in chunks]

    chunk: Any = None
    assert _run(Nested(), "decode", b"data", chunk) == b"data"


# --- what may not be -------------------------------------------------------------------------------------------------


def with_codec(codec: Any, **more: Any) -> salus.Schema:
    return salus.Schema({"a": salus.Feature((2,), codec=codec, **more)}, rate_hz=1, segment_steps=4)


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        ([], "got .., expected 1 to 16 Zarr codecs"),
        ([BYTES] * 17, "expected 1 to 16 Zarr codecs"),
        (["bytes"], "expected 1 to 16 Zarr codecs"),
        ([{"configuration": {}}], "expected 1 to 16"),
        ([{"name": "bytes", "extra": 1}], "expected 1 to 16"),
        ([{"name": "bytes", "configuration": 1}], "expected 1 to 16"),
        ([{"name": "bytes", "configuration": {"a": float("nan")}}], "expected 1 to 16"),
        ([{"name": "bytes", "configuration": {"a": b"x"}}], "expected 1 to 16"),
        ([BYTES, {"name": "crc32c"}], "got crc32c at the end, which SALUS adds"),
        (7, "codec: got int 7, expected several values"),
    ],
)
def test_lists_that_are_no_codecs(codec: Any, text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        with_codec(codec)


def test_text_and_derived_values_have_no_codecs_of_their_own() -> None:
    with pytest.raises(InvalidInputError, match="expected 'zstd' for text"):
        salus.Schema({"a": salus.Text(codec=[BYTES])}, rate_hz=1)
    derived = salus.Feature((1, 1), derived="outcome", allow_nan=True, codec=[BYTES])
    with pytest.raises(InvalidInputError, match="expected 'zstd' for derived values"):
        salus.Schema({"a": salus.Feature(), "b": derived}, rate_hz=1, horizons=(1,))


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        (
            [BYTES, {"name": "no-such-codec"}],
            "no installed package brings the Zarr codec 'no-such-codec'|no-such-codec",
        ),
        ([GZIP, BYTES], "'a': codec: "),
        ([GZIP], "'a': codec: "),
        ([BYTES, {"name": "gzip", "configuration": {"level": 99}}], "'a': codec: "),
        ([{"name": "transpose", "configuration": {"order": [0, 1]}}, BYTES], "'a': codec: "),
    ],
)
def test_codecs_that_do_not_fit_are_found_before_anything_is_created(tmp_path: Path, codec: Any, text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        salus.create(tmp_path / "data.zarr", with_codec(codec))
    assert not (tmp_path / "data.zarr").exists()


def test_a_codec_that_is_gone_costs_its_own_feature(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from salus import zarr_codecs

    threads = set()

    def gone(name: str) -> Any:
        threads.add(threading.current_thread())
        raise KeyError(name)

    zarr_codecs._chain.cache_clear()
    monkeypatch.setattr(zarr_codecs, "get_codec_class", gone)
    dataset = salus.open(path)
    np.testing.assert_array_equal(dataset[0]["actions"][:], arrays(0)["actions"])
    with pytest.raises(FormatError, match="'states': zarr-python cannot build .* no installed package brings"):
        dataset[0]["states"][:]
    with pytest.raises(FormatError, match="'images': zarr-python cannot build"):
        dataset.gather({"images": [(0, step % STEPS) for step in range(64)]})
    assert threads == {threading.main_thread()}  # not deep inside a thread that reads


def test_what_does_not_decode_or_is_of_another_size_is_corrupt() -> None:
    spec = array_specs(with_codec([BYTES, GZIP]))["a"]
    good = encode_chunk(spec, np.ones((4, 2), np.float32))
    np.testing.assert_array_equal(decode_chunk(spec, good), np.ones((4, 2), np.float32))
    with pytest.raises(CorruptDataError, match="crc32c does not hold"):
        decode_chunk(spec, good[:-1] + bytes([good[-1] ^ 1]))
    for packed in (b"no gzip", good[:-10]):
        with pytest.raises(CorruptDataError, match="codec 'gzip' cannot decode the chunk"):
            decode_chunk(spec, packed + crc32c(packed).to_bytes(4, "little"))
    wide = array_specs(salus.Schema({"a": salus.Feature((9,), codec=[BYTES, GZIP])}, rate_hz=1, segment_steps=4))["a"]
    larger = encode_chunk(wide, np.ones((4, 9), np.float32))
    with pytest.raises(CorruptDataError):
        decode_chunk(spec, larger)


def test_a_blosc_header_that_lies_about_its_size_is_not_believed() -> None:
    # The library takes no size of its input: it would read on behind the end, and the process would die.
    blosc = {"name": "blosc", "configuration": {"cname": "lz4", "clevel": 5, "shuffle": "noshuffle", "blocksize": 0}}
    spec = array_specs(with_codec([BYTES, blosc]))["a"]
    packed = encode_chunk(spec, np.arange(8, dtype=np.float32).reshape(4, 2))[:-4]
    for size in (0, len(packed) - 1, len(packed) + 1, 2_000_000_000):
        body = packed[:12] + size.to_bytes(4, "little") + packed[16:]
        with pytest.raises(CorruptDataError, match=f"chunk of {len(packed)} bytes declares that it has {size}"):
            decode_chunk(spec, body + crc32c(body).to_bytes(4, "little"))
    for body in (packed[:8], packed[:15]):
        with pytest.raises(CorruptDataError, match="codec 'blosc'"):
            decode_chunk(spec, body + crc32c(body).to_bytes(4, "little"))


@pytest.mark.parametrize("values", [np.zeros((1, 4, 3), np.float32), np.zeros((1, 4, 2)), np.zeros((4, 2), np.float32)])
def test_a_codec_that_gives_something_else_is_not_believed(monkeypatch: pytest.MonkeyPatch, values: np.ndarray) -> None:
    from zarr.core.buffer import default_buffer_prototype

    spec = array_specs(with_codec([BYTES, GZIP]))["a"]
    good = encode_chunk(spec, np.ones((4, 2), np.float32))
    found = default_buffer_prototype().nd_buffer.from_numpy_array(values)
    monkeypatch.setattr("salus.zarr_codecs._run", lambda *_: found)
    with pytest.raises(CorruptDataError, match=r"expected float32 \(1, 4, 2\)"):
        decode_chunk(spec, good)


# --- visibly ---------------------------------------------------------------------------------------------------------


def test_strict_refuses_them_everywhere(path: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"'images': transpose \+ bytes \+ gzip, through zarr-python") as refused:
        salus.open(path, strict=True)
    assert [name for name, _ in refused.value.problems] == ["images", "states", "flags"]
    with pytest.raises(FormatError, match=r"'states': bytes \+ numcodecs.bz2"):
        salus.create(tmp_path / "new.zarr", SCHEMA, strict=True)
    assert not (tmp_path / "new.zarr").exists()


def test_a_strict_handle_stays_strict(tmp_path: Path) -> None:
    path = tmp_path / "data.zarr"
    strict = salus.create(path, salus.Schema({"a": salus.Feature()}, rate_hz=1), strict=True)
    own = {"b": salus.Feature(codec=[BYTES, GZIP])}
    with pytest.raises(FormatError, match="strict: 'b'"):
        strict.add_features(own)
    salus.open(path, mode="a").add_features(own)
    with pytest.raises(FormatError, match="strict: 'b'"):
        strict.refresh()
    assert salus.open(path).schema.features["b"].coding == "bytes + gzip, through zarr-python"


def test_reprs_and_info_say_so(path: Path) -> None:
    from salus.cli.describe import describe_dataset, print_dataset
    from salus.cli.terminal import console

    dataset = salus.open(path)
    assert "states float64 (7,) (bytes + numcodecs.bz2, through zarr-python)" in repr(dataset)
    document = describe_dataset(dataset)
    assert document["features"]["flags"]["storage"] == "bytes + gzip, through zarr-python"
    assert document["features"]["actions"]["storage"] == "zstd, lossless"
    with console.capture() as captured:
        print_dataset(document)
    assert "flags: bytes + gzip, through zarr-python" in captured.get()
    assert "nothing lost" not in captured.get()


def test_a_list_that_is_changed_later_changes_no_schema() -> None:
    own = [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 5}}]
    feature = salus.Feature((), "uint8", codec=own)
    own[1]["configuration"]["level"] = 9  # type: ignore[index]
    assert feature.to_json()["codec"][1] == {"name": "gzip", "configuration": {"level": 5}}


def test_a_revision_keeps_them() -> None:
    import json

    read = Schema.from_json(json.loads(json.dumps(SCHEMA.to_json())))
    assert read == SCHEMA
    assert hash(read.features["images"]) == hash(SCHEMA.features["images"])
