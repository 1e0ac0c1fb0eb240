"""Schemas: what is refused and how it says so, the schema of an example step, and the JSON that it is stored as."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus
from salus.errors import FormatError, InvalidInputError
from salus.labels import Horizons
from salus.schema import SALUS, Feature, Image, Schema, Text, flatten

Q = Feature((2,))


def one(name: Any, feature: Any, **more: Any) -> Schema:
    return Schema({"q": Q, name: feature}, **{"rate_hz": 10, **more})


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: Schema({}, rate_hz=10), "features: got none, expected at least one"),
    (lambda: Schema([Q], rate_hz=10), "features: got list, expected names to features"),  # type: ignore[arg-type]
    (lambda: one("a b", Q), "feature name: got 'a b', expected letters, digits, _ and -, joined by '.'"),
    (lambda: one("", Q), "feature name: got ''"),
    (lambda: one("1a", Q), "feature name: got '1a'"),
    (lambda: one("a..b", Q), "feature name: got 'a..b'"),
    (lambda: one(".a", Q), "feature name: got '.a'"),
    (lambda: one("a.", Q), "feature name: got 'a.'"),
    (lambda: one("a/b", Q), "feature name: got 'a/b'"),
    (lambda: one("a\n", Q), "feature name: got 'a\\n'"),
    (lambda: one("ä", Q), "feature name: got 'ä'"),
    (lambda: one("_salus", Q), "feature name: got '_salus'"),
    (lambda: one("x" * 129, Q), "feature name: got 'xxx"),
    (lambda: one(7, Q), "feature name: got 7"),
    (lambda: one("timestamp_ns", Q), "feature name: 'timestamp_ns' is reserved"),
    (lambda: one("episode_length", Q), "feature name: 'episode_length' is reserved"),
    (lambda: one("episode_metadata", Q), "feature name: 'episode_metadata' is reserved"),
    (lambda: one("labels", Q), "feature name: 'labels' is reserved"),
    (lambda: one("labels_mask", Q), "feature name: 'labels_mask' is reserved"),
    (lambda: one("a.valid", Q), "'a.valid' ends in '.valid', which is kept for nullable features"),
    (lambda: one("Q", Q), "names that differ in case only"),
    (lambda: one("a", (2,)), "'a': got tuple, expected a Feature, Image or Text"),
    (lambda: one("a", Feature((2,), "float16")), "'a': dtype: got 'float16', expected one of bool, int8"),
    (lambda: one("a", Feature((2,), "no")), "'a': dtype: got 'no', expected one of"),
    (lambda: one("a", Feature((2,), "string")), "'a': dtype: got 'string', expected one of"),
    (lambda: one("a", Feature((0,))), "'a': shape: got (0,), expected at most 8 whole numbers of at least 1"),
    (lambda: one("a", Feature((-1,))), "'a': shape: got (-1,)"),
    (lambda: one("a", Feature((1.5,))), "'a': shape: got (1.5,)"),  # type: ignore[arg-type]
    (lambda: one("a", Feature((True,))), "'a': shape: got (True,)"),
    (lambda: one("a", Feature((1,) * 9)), "'a': shape: got (1, 1, 1, 1, 1, 1, 1, 1, 1)"),
    (lambda: one("a", Feature((2**20, 2**20))), "'a': shape: got (1048576, 1048576), 4398046511104 bytes a step"),
    (lambda: one("a", Feature((2**70,))), f"'a': shape: got ({2**70},), {2**72} bytes a step"),
    (
        lambda: one("a", Feature((2,), names=("x",))),
        "'a': names: got 1 names, expected one per component of shape",
    ),
    (lambda: one("a", Feature((1, 1), names=("x",))), "'a': names: got 1 names"),
    (
        lambda: one("a", Feature(range=(1, 1))),
        "'a': range: got (1, 1), expected finite numbers (low, high) with low < high",
    ),
    (lambda: one("a", Feature(range=(0, 1, 2))), "'a': range: got (0, 1, 2)"),  # type: ignore[arg-type]
    (lambda: one("a", Feature((), "int8", allow_nan=True)), "'a': allow_nan: int8 has no NaN"),
    (lambda: one("a", Feature(derived="length")), "'a': derived: got 'length', expected 'outcome' or nothing"),  # type: ignore[arg-type]
    (
        lambda: one("a", Feature(clock="joints")),
        "'a': clock: got 'joints', expected one of 'step'; Schema(..., clocks=",
    ),
    (
        lambda: one("a", Feature((3, 2), derived="outcome")),
        "got shape (3, 2), expected the labels' (horizons, kinds) (0, 1)",
    ),
    (
        lambda: Schema({"a": Feature((1, 1), derived="outcome")}, rate_hz=10, horizons=(2,)),
        "features: got derived ones only, expected at least one that is recorded",
    ),
    (lambda: one("a", Image(height=0, width=4)), "'a': shape: got (3, 0, 4)"),
    (lambda: one("a", Image(height=4, width=4, layout="WHC")), "'a': layout: got 'WHC', expected 'CHW' or 'HWC'"),  # type: ignore[arg-type]
    (lambda: one("a", Image(height=4, width=4, color="hsv")), "'a': color: got 'hsv', expected one of rgb, bgr, gray"),  # type: ignore[arg-type]
    (lambda: one("a", Q, rate_hz=0), "rate_hz: got 0, expected a number above 0"),
    (lambda: one("a", Q, rate_hz=-5), "rate_hz: got -5"),
    (lambda: one("a", Q, rate_hz=float("nan")), "rate_hz: got nan"),
    (lambda: one("a", Q, rate_hz=float("inf")), "rate_hz: got inf"),
    (lambda: one("a", Q, rate_hz=True), "rate_hz: got True"),
    (lambda: one("a", Q, rate_hz="10"), "rate_hz: got '10'"),
    (lambda: one("a", Q, failure_kinds=("drop", "drop")), "failure_kinds: got 'drop', expected distinct words"),
    (lambda: one("a", Q, failure_kinds=("",)), "failure_kinds: got ''"),
    (lambda: one("a", Q, failure_kinds=(1,)), "failure_kinds: got 1"),
    (lambda: one("a", Q, segment_steps=1), "segment_steps: got 1, expected 2 .. 65536"),
    (lambda: one("a", Q, segment_steps=65537), "segment_steps: got 65537"),
    (lambda: one("a", Q, segment_steps=1.5), "segment_steps: got 1.5"),
    (lambda: one("a", Q, horizons=(0,)), "horizons: got 0, expected whole steps of at least 1 (or unit='s')"),
    (lambda: one("a", Q, horizons=(1.5,)), "horizons: got 1.5"),
    (lambda: Horizons((-1.0,), "s"), "horizons: got -1.0, expected a positive number of seconds"),
    (lambda: Horizons((1,), "ms"), "horizons: got unit 'ms', expected 'steps' or 's'"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "text"), REFUSED, ids=[text[:40] for _, text in REFUSED])
def test_what_is_wrong_is_said(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(InvalidInputError) as info:
        make()
    assert text in str(info.value)


def test_every_problem_is_listed_at_once() -> None:
    with pytest.raises(InvalidInputError) as info:
        Schema({"a b": Feature((0,)), "labels": Text(), "c": 5}, rate_hz=0, segment_steps=0)  # type: ignore[dict-item]
    message = str(info.value)
    assert message.startswith("schema: 6 problems:\n  - ")
    for part in ("'a b'", "shape: got (0,)", "'labels' is reserved", "'c': got int", "rate_hz", "segment_steps"):
        assert part in message


def test_derived_features_can_say_that_a_label_is_unknown() -> None:
    for feature in (Feature((1, 1), "uint8", derived="outcome"), Feature((1, 1), derived="outcome", nullable=True)):
        with pytest.raises(InvalidInputError, match="expected a float: unknown labels are NaN"):
            Schema({"q": Feature(), "labels_kept": feature}, rate_hz=10, horizons=(2,))


UNTYPED: dict[str, Callable[[], Any]] = {
    "shape of a number": lambda: one("a", Feature(7)),  # type: ignore[arg-type]
    "range of a number": lambda: one("a", Feature(range=5)),  # type: ignore[arg-type]
    "range of text": lambda: one("a", Feature(range=("a", 1))),  # type: ignore[arg-type]
    "color of a list": lambda: one("a", Image(height=4, width=4, color=[])),  # type: ignore[arg-type]
    "horizons of a number": lambda: one("a", Q, horizons=5),
    "horizons of infinity": lambda: one("a", Q, horizons=(float("inf"),)),
    "failure kinds of a number": lambda: one("a", Q, failure_kinds=5),
    "failure kinds of one text": lambda: one("a", Q, failure_kinds="drop"),
    "segment steps of a bool": lambda: one("a", Q, segment_steps=True),
    "range to infinity": lambda: one("a", Feature(range=(0, float("inf")))),
    "unit of an object": lambda: one("a", Feature(unit=object())),  # type: ignore[arg-type]
    "name of the root's metadata": lambda: one("zarr.json", Q),
}


@pytest.mark.parametrize("what", UNTYPED)
def test_what_should_be_refused_as_the_rest_is(what: str) -> None:
    try:
        UNTYPED[what]()
    except InvalidInputError:
        return
    except Exception as error:  # noqa: BLE001 - the error is the subject
        pytest.fail(f"untyped: {error!r}")
    pytest.fail("accepted")


def test_the_bounds_themselves_are_fine() -> None:
    schema = one("x" * 128, Feature((1,) * 8, names=None), segment_steps=65536, rate_hz=0.001, failure_kinds=("a b-c",))
    assert schema.segment_steps == 65536
    assert one("observation.images.front-2", Image(height=1, width=1)).features["q"] is Q
    one("a", Feature((2**28,)))  # 1 GiB a step


# --- properties ------------------------------------------------------------------------------------------------


def test_images_of_both_layouts() -> None:
    assert Image(height=4, width=6).shape == (3, 4, 6)
    assert Image(height=4, width=6, layout="HWC").shape == (4, 6, 3)
    assert Image(height=4, width=6, color="gray").shape == (1, 4, 6)
    assert Image(height=4, width=6).other_layout_shape == (4, 6, 3)
    assert Image(height=4, width=6, layout="HWC").other_layout_shape == (3, 4, 6)
    assert Image(height=4, width=6).dtype == "uint8"


def test_what_is_recorded_and_what_labels_are_shaped_like() -> None:
    assert list(SALUS.recorded) == ["images", "states", "actions", "signals"]
    assert SALUS.label_shape == SALUS.features["horizon_labels"].shape == (4, 4)
    assert one("a", Q, horizons=(1, 2)).label_shape == (2, 1)
    assert Feature((3, 2), "int16").step_bytes == 12
    assert Text().step_bytes == 0


def test_dtypes_have_one_name() -> None:
    for dtype in ("float32", np.float32, np.dtype("<f4"), "f4"):
        assert Feature((1,), dtype).dtype == "float32"  # type: ignore[arg-type]


def test_a_schema_does_not_change_with_the_mapping_that_it_was_made_of() -> None:
    features: dict[str, Feature] = {"q": Q}
    schema = Schema(features, rate_hz=10)
    features["later"] = Q
    assert list(schema.features) == ["q"]


def test_flattening_joins_names_with_dots() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": 2}, "e": 3}) == {"a.b.c": 1, "a.d": 2, "e": 3}


# --- infer -----------------------------------------------------------------------------------------------------


def test_infer_finds_the_schema_of_an_example_step() -> None:
    schema = Schema.infer(
        {
            "observation": {
                "front": np.zeros((48, 64, 3), np.uint8),
                "wrist": np.zeros((3, 48, 64), np.uint8),
                "mono": np.zeros((48, 64, 1), np.uint8),
                "state": np.zeros(7),
                "half": np.zeros(2, np.float16),
            },
            "count": 3,
            "done": np.bool_(False),
            "say": "pick",
            "bytes": np.zeros((4, 4), np.uint8),
            "flat": [1.0, 2.0],
        },
        rate_hz=20,
        failure_kinds=("drop",),
        segment_steps=8,
    )
    assert schema.features == {
        "observation.front": Image(height=48, width=64, layout="HWC"),
        "observation.wrist": Image(height=48, width=64, layout="CHW"),
        "observation.mono": Image(height=48, width=64, layout="HWC", color="gray"),
        "observation.state": Feature((7,), "float32"),
        "observation.half": Feature((2,), "float32"),
        "count": Feature((), "int64"),
        "done": Feature((), "bool"),
        "say": Text(),
        "bytes": Feature((4, 4), "uint8"),
        "flat": Feature((2,), "float32"),
    }
    assert (schema.rate_hz, schema.failure_kinds, schema.segment_steps) == (20, ("drop",), 8)


def test_infer_names_what_no_feature_fits() -> None:
    with pytest.raises(InvalidInputError) as info:
        Schema.infer({"a": object(), "b": {"c": np.zeros(2, "complex64")}, "d": 1.0}, rate_hz=20)
    message = str(info.value)
    assert "'a': got object of dtype object, expected numbers or text" in message
    assert "'b.c': got ndarray of dtype complex64" in message
    assert "'d'" not in message


# --- JSON, differences, extended -------------------------------------------------------------------------------

FULL = Schema(
    {
        "images": Image(height=4, width=6, layout="HWC", color="bgr", nullable=True),
        "q": Feature((2,), "float64", unit="rad", names=("a", "b"), range=(-1.5, 2), allow_nan=True),
        "say": Text(),
        "kept": Feature((2, 1), derived="outcome", allow_nan=True),
    },
    rate_hz=12.5,
    failure_kinds=("drop",),
    horizons=Horizons((0.5, 1.0), "s"),
    segment_steps=32,
)


@pytest.mark.parametrize("schema", [FULL, SALUS], ids=["full", "SALUS"])
def test_json_round_trip(schema: Schema) -> None:
    document = json.loads(json.dumps(schema.to_json()))
    assert Schema.from_json(document) == schema
    assert list(Schema.from_json(document).features) == list(schema.features)
    assert schema.differences(Schema.from_json(document)) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("features"),
        lambda document: document.pop("horizons"),
        lambda document: document["features"][0].update(kind="hologram"),
        lambda document: document["features"][1].update(color="red"),
        lambda document: document["features"][1].pop("name"),
        lambda document: document["features"][1].update(dtype="object"),
        lambda document: document["features"][1].update(shape=[2**70]),
        lambda document: document.update(features=7),
        lambda document: document.update(features=[7]),
        lambda document: document.update(rate_hz=None),
        lambda document: document.update(segment_steps=2**40),
        lambda document: document["features"][0].update(height="tall"),
    ],
)
def test_json_that_this_version_does_not_know_is_refused(change: Callable[[Any], Any]) -> None:
    document = json.loads(json.dumps(FULL.to_json()))
    change(document)
    with pytest.raises(FormatError, match="schema: this version of salus cannot read it"):
        Schema.from_json(document)


def test_differences_say_which_side_has_what() -> None:
    other = Schema(
        {"images": FULL.features["images"], "q": Feature((3,)), "new": Q},
        rate_hz=25,
        failure_kinds=("drop",),
        segment_steps=32,
    )
    found = "\n".join(FULL.differences(other))
    for part in (
        "say: the dataset has it, the given schema does not",
        "new: the given schema has it, the dataset does not (add_features adds it)",
        "q.shape: the dataset has [2], got [3]",
        "q.dtype: the dataset has 'float64', got 'float32'",
        "q.unit: the dataset has 'rad', got None",
        "rate_hz: the dataset has 12.5, got 25",
        "horizons: the dataset has",
    ):
        assert part in found
    assert "images" not in found
    assert "failure_kinds" not in found
    assert "segment_steps" not in found


def test_extended_adds_and_never_changes() -> None:
    extended = FULL.extended({"force": Feature((6,), unit="N")})
    assert list(extended.features) == [*FULL.features, "force"]
    assert "force" not in FULL.features
    assert (extended.rate_hz, extended.segment_steps) == (FULL.rate_hz, FULL.segment_steps)
    with pytest.raises(InvalidInputError, match="add_features: 'q' is there already"):
        FULL.extended({"q": Q})
    with pytest.raises(InvalidInputError, match="'labels' is reserved"):
        FULL.extended({"labels": Q})


def test_a_schema_comes_back_from_a_dataset(path: Path) -> None:
    salus.create(path, FULL)
    assert salus.open(path).schema == FULL
