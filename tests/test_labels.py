"""Horizon labels: 1 at step t for horizon h when 0 < failure_step - t <= h; what is not known is masked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salus import Outcome
from salus.errors import InvalidInputError
from salus.labels import Horizons, horizon_labels

KINDS = ("collision", "drop")


def test_a_failure() -> None:
    labels, mask = horizon_labels(10, Outcome("failure", kind="drop", step=6), Horizons((2, 4)), KINDS)
    assert labels.shape == mask.shape == (10, 2, 2)
    assert labels[:, 0, 1].tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    assert labels[:, 1, 1].tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    assert labels[:, :, 0].sum() == 0
    assert mask[:, 0, 0].tolist() == [True] * 6 + [False] * 4


def test_a_success_is_negative_to_its_end() -> None:
    labels, mask = horizon_labels(5, Outcome("success"), Horizons((2,)), KINDS)
    assert labels.sum() == 0
    assert mask.all()


def test_an_unknown_end_masks_the_last_h_steps() -> None:
    labels, mask = horizon_labels(6, Outcome(), Horizons((2, 4)), KINDS)
    assert labels.sum() == 0
    assert mask[:, 0, 0].tolist() == [True] * 4 + [False] * 2
    assert mask[:, 1, 1].tolist() == [True] * 2 + [False] * 4


def test_a_failure_of_unknown_kind_masks_what_it_cannot_tell() -> None:
    labels, mask = horizon_labels(8, Outcome("failure", step=5), Horizons((2,)), KINDS)
    assert labels.sum() == 0
    assert mask[:, 0, 0].tolist() == [True] * 3 + [False] * 5


def test_a_failure_at_an_unknown_step_masks_everything() -> None:
    _, mask = horizon_labels(8, Outcome("failure", kind="drop"), Horizons((2,)), KINDS)
    assert not mask.any()


def test_a_schema_without_kinds_has_one_column() -> None:
    labels, mask = horizon_labels(8, Outcome("failure", step=5), Horizons((2,)), ())
    assert labels[:, 0, 0].tolist() == [0, 0, 0, 1, 1, 0, 0, 0]
    assert mask[:, 0, 0].tolist() == [True] * 5 + [False] * 3


def test_horizons_in_seconds_use_the_stamps() -> None:
    stamps = np.array([0, 100, 150, 400, 500], np.int64) * 1_000_000
    labels, _ = horizon_labels(5, Outcome("failure", step=4), Horizons((0.1, 0.35), unit="s"), (), timestamp_ns=stamps)
    assert labels[:, 0, 0].tolist() == [0, 0, 0, 1, 0]
    assert labels[:, 1, 0].tolist() == [0, 0, 1, 1, 0]
    _, mask = horizon_labels(5, Outcome(), Horizons((0.1, 0.35), unit="s"), (), timestamp_ns=stamps)
    assert mask[:, 0, 0].tolist() == [True, True, True, True, False]
    assert mask[:, 1, 0].tolist() == [True, True, True, False, False]


def test_bad_horizons() -> None:
    with pytest.raises(InvalidInputError, match="horizons: got 0, expected whole steps of at least 1"):
        Horizons((0,))
    with pytest.raises(InvalidInputError, match="horizons: got 2.5, expected whole steps"):
        Horizons((2.5,))
    with pytest.raises(InvalidInputError, match="needs timestamp_ns"):
        horizon_labels(5, Outcome(), Horizons((0.1,), unit="s"), ())


@given(
    num_steps=st.integers(1, 60),
    failure=st.one_of(st.none(), st.integers(0, 59)),
    horizons=st.lists(st.integers(1, 70), min_size=1, max_size=4),
)
def test_against_the_definition_step_by_step(num_steps: int, failure: int | None, horizons: list[int]) -> None:
    failure = None if failure is None else min(failure, num_steps - 1)
    outcome = Outcome() if failure is None else Outcome("failure", kind="drop", step=failure)
    labels, mask = horizon_labels(num_steps, outcome, Horizons(tuple(horizons)), KINDS)
    for t in range(num_steps):
        for column, h in enumerate(horizons):
            positive = failure is not None and 0 < failure - t <= h
            known = t < failure if failure is not None else t < num_steps - h
            assert labels[t, column].tolist() == [0, float(positive)]
            assert mask[t, column].tolist() == [known, known]
