"""A dataset under any sequence of edits, through two handles, is what a plain dict says it is."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import salus
from salus.errors import AlreadyExistsError, InvalidInputError, NotFoundError

SCHEMA = salus.Schema(
    {"q": salus.Feature((2,), "int16")}, rate_hz=10, failure_kinds=("drop", "miss"), horizons=(2,), segment_steps=3
)
MEMORY = Path("/dev/shm")  # noqa: S108 - a fresh private directory is made in it

lengths = st.integers(1, 8)
places = st.integers(0, 20)
handles = st.sampled_from(["first", "second"])
keys = st.sampled_from(["task", "note", "n"])
values = st.one_of(st.none(), st.integers(-5, 5), st.text(max_size=3), st.lists(st.booleans(), max_size=2))
metadatas = st.dictionaries(keys, values, max_size=3)
tag_names = st.sampled_from(["a", "b", "c"])

Model = dict[str, dict[str, Any]]


def make_steps(seed: int, num_steps: int) -> np.ndarray:
    return np.arange(2 * num_steps, dtype=np.int16).reshape(num_steps, 2) * 7 + seed


def in_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


class DatasetMachine(RuleBasedStateMachine):
    """`now` is what the log holds; `seen` is what each handle saw when it was opened or refreshed."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None, prefix="salus-test-"))
        self.path = self.root / "data.zarr"
        self.now: Model = {}
        self.tagged: dict[str, Model] = {}
        self.count = 0

    @initialize()
    def create(self) -> None:
        salus.create(self.path, SCHEMA)
        self.datasets = {name: salus.open(self.path, mode="a") for name in ("first", "second")}
        self.seen: dict[str, Model] = {"first": {}, "second": {}}

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    # --- recording ---------------------------------------------------------------------------------------------

    @rule(
        handle=handles,
        episodes=st.lists(
            st.tuples(lengths, metadatas, st.sampled_from(["success", "unknown", "failure"]), st.booleans()),
            min_size=1,
            max_size=3,
        ),
    )
    def record(self, handle: str, episodes: list[tuple[int, dict[str, Any], Any, bool]]) -> None:
        with salus.Recorder(self.datasets[handle]) as recorder:
            for num_steps, metadata, result, keep in episodes:
                self.count += 1
                episode = recorder.start(metadata)
                for values_of_step in make_steps(self.count, num_steps):
                    episode.append(q=values_of_step)
                if not keep:
                    episode.discard(reason="model")
                    continue
                episode.commit(outcome=result)
                self.now[episode.uid] = {
                    "slot": episode.slot,
                    "seed": self.count,
                    "num_steps": num_steps,
                    "outcome": salus.Outcome(result),
                    "metadata": in_json(metadata),
                    "deleted": False,
                }

    # --- editing -----------------------------------------------------------------------------------------------

    def chosen(self, handle: str, place: int, *, fresh: bool) -> str | None:
        """An episode that the handle sees."""
        if fresh or not self.listed(handle):
            self.refresh(handle)
        listed = self.listed(handle)
        return listed[place % len(listed)] if listed else None

    def listed(self, handle: str) -> list[str]:
        return [uid for uid, episode in self.seen[handle].items() if not episode["deleted"]]

    def change(self, uid: str, **changes: Any) -> None:
        self.now = {**self.now, uid: {**self.now[uid], **changes}}

    @rule(handle=handles, place=places, fresh=st.booleans())
    def delete(self, handle: str, place: int, fresh: bool) -> None:
        uid = self.chosen(handle, place, fresh=fresh)
        if uid is not None:
            self.datasets[handle].delete(uid, author="model")
            self.change(uid, deleted=True)

    @rule(handle=handles, place=places)
    def undelete(self, handle: str, place: int) -> None:
        uids = [uid for uid, episode in self.now.items() if episode["deleted"]] or list(self.now)
        if uids:
            uid = uids[place % len(uids)]
            self.datasets[handle].undelete(uid)
            self.change(uid, deleted=False)

    @rule(
        handle=handles,
        place=places,
        fresh=st.booleans(),
        result=st.sampled_from(["success", "failure", "unknown"]),
        kind=st.sampled_from([None, "drop", "miss"]),
        step=st.one_of(st.none(), st.integers(0, 9)),
    )
    def set_outcome(
        self, handle: str, place: int, fresh: bool, result: Any, kind: str | None, step: int | None
    ) -> None:
        uid = self.chosen(handle, place, fresh=fresh)
        outcome = salus.Outcome(result, kind, step) if result == "failure" else salus.Outcome(result)
        if uid is None:
            return
        if outcome.step is not None and outcome.step >= self.now[uid]["num_steps"]:
            with pytest.raises(InvalidInputError):
                self.datasets[handle].set_outcome(uid, outcome)
        else:
            self.datasets[handle].set_outcome(uid, outcome)
            self.change(uid, outcome=outcome)

    @rule(handle=handles, place=places, fresh=st.booleans(), changes=metadatas)
    def update_metadata(self, handle: str, place: int, fresh: bool, changes: dict[str, Any]) -> None:
        uid = self.chosen(handle, place, fresh=fresh)
        if uid is not None:
            self.datasets[handle].update_metadata(uid, changes)
            merged = {**self.now[uid]["metadata"], **in_json(changes)}
            removed = {key for key, value in changes.items() if value is None}
            self.change(uid, metadata={key: value for key, value in merged.items() if key not in removed})

    @rule(handle=handles, place=places)
    def what_a_handle_does_not_see_it_does_not_edit(self, handle: str, place: int) -> None:
        unseen = [uid for uid in self.now if uid not in self.listed(handle)]
        if unseen:
            uid = unseen[place % len(unseen)]
            for edit in (
                lambda dataset: dataset.delete(uid),
                lambda dataset: dataset.set_outcome(uid, "success"),
                lambda dataset: dataset.update_metadata(uid, {"n": 1}),
            ):
                with pytest.raises(NotFoundError):
                    edit(self.datasets[handle])

    @rule(handle=handles, name=tag_names)
    def tag(self, handle: str, name: str) -> None:
        if name in self.tagged:
            with pytest.raises(AlreadyExistsError):
                self.datasets[handle].tag(name)
        else:
            self.datasets[handle].tag(name)
            self.tagged[name] = self.seen[handle]

    # --- handles -----------------------------------------------------------------------------------------------

    @rule(handle=handles)
    def refresh(self, handle: str) -> None:
        self.datasets[handle].refresh()
        self.seen[handle] = dict(self.now)

    @rule(handle=handles)
    def reopen(self, handle: str) -> None:
        self.datasets[handle] = salus.open(self.path, mode="a")
        self.seen[handle] = dict(self.now)

    @rule(handle=handles, whole=st.booleans())
    def publish(self, handle: str, whole: bool) -> None:
        self.datasets[handle].publish(whole=whole)

    # --- what must hold after each step ------------------------------------------------------------------------

    @invariant()
    def each_handle_is_what_it_saw(self) -> None:
        for handle, dataset in getattr(self, "datasets", {}).items():
            check_dataset(dataset, self.seen[handle])

    @invariant()
    def a_new_handle_sees_all(self) -> None:
        if hasattr(self, "datasets"):
            check_dataset(salus.open(self.path), self.now)

    @invariant()
    def tags_never_change(self) -> None:
        if hasattr(self, "datasets"):
            assert self.datasets["first"].tags() == sorted(self.tagged)
            for name, model in self.tagged.items():
                check_dataset(salus.open(self.path, tag=name), model)

    @invariant()
    def plain_zarr_agrees(self) -> None:
        # Every rule that changes something publishes before it returns.
        if not hasattr(self, "datasets"):
            return
        group = zarr.open_group(self.path, mode="r")
        episode_length, texts = group["episode_length"][:], group["episode_metadata"][:]
        expected = np.zeros(len(episode_length), np.int32)
        for uid, episode in self.now.items():
            text = texts[episode["slot"]]
            if episode["deleted"]:
                assert text == ""
                continue
            expected[episode["slot"]] = episode["num_steps"]
            row = json.loads(text)
            assert (row["uid"], row["metadata"]) == (uid, episode["metadata"])
            assert row["outcome"] == episode["outcome"].to_json()
        np.testing.assert_array_equal(episode_length, expected)


def check_dataset(dataset: salus.Dataset, model: Model) -> None:
    expected = {uid: episode for uid, episode in model.items() if not episode["deleted"]}
    assert [entry.uid for entry in dataset.episodes] == sorted(expected, key=lambda uid: expected[uid]["slot"])
    for episode in dataset:
        known = expected[episode.uid]
        assert episode.slot == known["slot"]
        assert episode.outcome == known["outcome"]
        assert episode.metadata == known["metadata"]
        np.testing.assert_array_equal(episode["q"][:], make_steps(known["seed"], known["num_steps"]))
    tasks = [expected[entry.uid]["metadata"].get("task") for entry in dataset.episodes]
    assert dataset.episodes["task"] == [task if isinstance(task, str) else None for task in tasks]


settings.register_profile(
    "salus-ci",
    max_examples=30,
    stateful_step_count=20,
    deadline=None,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("salus-by-hand", settings.get_profile("salus-ci"), max_examples=2000, stateful_step_count=50)

TestDataset = DatasetMachine.TestCase
TestDataset.settings = settings.get_profile("salus-ci")
