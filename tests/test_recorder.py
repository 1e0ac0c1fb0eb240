"""The recorder: what `append` accepts and refuses, how an episode ends, and what is left on disk."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus
from salus.errors import (
    EpisodeFencedError,
    InvalidInputError,
    RecordingError,
)

from .conftest import make_arrays, steps_of


@pytest.fixture
def recorder(path: Path, schema: salus.Schema) -> Any:
    with salus.Recorder(salus.create(path, schema)) as recorder:
        yield recorder


def good_step(seed: int = 0) -> dict[str, Any]:
    return next(steps_of(make_arrays(1, seed)))


def test_a_block_commits_on_leaving(path: Path, schema: salus.Schema) -> None:
    arrays = make_arrays(40)
    dataset = salus.create(path, schema)
    with salus.Recorder(dataset) as recorder:
        with recorder.episode(task="pick up the block") as episode:
            for step in steps_of(arrays):
                images = step.pop("images")
                episode.append({"images": images}, **step)
            episode.succeed()
        assert len(dataset) == 0  # a snapshot stays what it was ...
        dataset.refresh()
        assert len(dataset) == 1  # ... until it is refreshed
    read = salus.open(path)[0]
    assert read.metadata == {"task": "pick up the block"}
    assert read.outcome == salus.Outcome("success")
    assert read.uid == episode.uid
    for name, values in arrays.items():
        np.testing.assert_array_equal(read[name][:], values)


def test_an_exception_inside_the_block_aborts_the_episode(path: Path, recorder: salus.Recorder) -> None:
    with pytest.raises(ZeroDivisionError), recorder.episode() as episode:
        episode.append(good_step())
        1 / 0  # noqa: B018 - the exception is what the test is about
    with recorder.episode() as kept:
        kept.append(good_step())
    dataset = salus.open(path)
    assert [entry.uid for entry in dataset.episodes] == [kept.uid]
    assert not list((path / "_salus" / "journal").iterdir())


@pytest.mark.parametrize(
    ("why", "said"), [(ValueError, "the episode could not be marked as aborted"), (KeyboardInterrupt, "not be ended")]
)
def test_an_episode_that_cannot_be_aborted_is_a_note_on_why_it_was_to_be(
    path: Path, recorder: salus.Recorder, why: type[BaseException], said: str
) -> None:
    log = path / "_salus" / "log"
    with pytest.raises(why) as raised:
        with recorder.episode() as episode:
            episode.append(good_step())
            log.write_text("a file where the log should be")
            raise why
    log.unlink()
    (note,) = raised.value.__notes__
    assert said in note
    assert f"episode {episode.uid}: a file 'log', expected a plain folder" in note


def test_start_commit_and_discard_without_a_block(path: Path, recorder: salus.Recorder) -> None:
    kept = recorder.start(task="a")
    dropped = recorder.start(task="b")
    for seed in range(20):
        kept.append(good_step(seed))
        dropped.append(good_step(seed + 100))
    dropped.discard(reason="operator")
    kept.commit(outcome="success")
    dataset = salus.open(path)
    assert len(dataset) == 1
    assert dataset[0].metadata["task"] == "a"
    np.testing.assert_array_equal(dataset[0]["states"][7], good_step(7)["states"])


def test_any_number_of_episodes_open_at_once_from_threads(path: Path, recorder: salus.Recorder) -> None:
    def record(seed: int) -> None:
        episode = recorder.start(seed=seed)
        for step in steps_of(make_arrays(35, seed)):
            episode.append(step)
        episode.commit()

    threads = [threading.Thread(target=record, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    dataset = salus.open(path)
    assert sorted(episode.metadata["seed"] for episode in dataset) == list(range(6))
    for episode in dataset:
        np.testing.assert_array_equal(episode["images"][:], make_arrays(35, episode.metadata["seed"])["images"])


def test_append_copies_so_that_the_caller_may_reuse_its_buffers(path: Path, recorder: salus.Recorder) -> None:
    images, states, actions = np.zeros((3, 12, 10), np.uint8), np.zeros(7, np.float32), np.zeros(3, np.float32)
    with recorder.episode() as episode:
        for value in range(30):
            images[:], states[:], actions[:] = value, value, value
            episode.append(images=images, states=states, actions=actions)
    read = salus.open(path)[0]
    np.testing.assert_array_equal(read["images"][:, 0, 0, 0], np.arange(30))
    np.testing.assert_array_equal(read["states"][:, 0], np.arange(30))


def test_channels_last_input_for_a_channels_first_schema(path: Path, recorder: salus.Recorder) -> None:
    arrays = make_arrays(3)
    with recorder.episode() as episode:
        for step in steps_of(arrays):
            episode.append({**step, "images": step["images"].transpose(1, 2, 0)})
    recorder.record_episode({**arrays, "images": arrays["images"].transpose(0, 2, 3, 1)})
    for read in salus.open(path):
        np.testing.assert_array_equal(read["images"][:], arrays["images"])


def test_bgr_input_is_stored_as_the_schema_declares(path: Path, schema: salus.Schema) -> None:
    arrays = make_arrays(2)
    with salus.Recorder(salus.create(path, schema), bgr=("images",)) as recorder:
        with recorder.episode() as episode:
            for step in steps_of(arrays):
                episode.append(step)
    np.testing.assert_array_equal(salus.open(path)[0]["images"][:], arrays["images"][:, ::-1])


def test_timestamps_from_the_caller_and_from_the_clock(path: Path, recorder: salus.Recorder) -> None:
    stamps = [10, 35, 1_000_000]
    with recorder.episode() as episode:
        for stamp in stamps:
            episode.append(good_step(), timestamp_ns=stamp)
    began_ns = time.time_ns()
    with recorder.episode() as episode:
        for _ in stamps:
            episode.append(good_step())
    ended_ns = time.time_ns()
    given, clocked = salus.open(path)
    assert given.timestamp_ns.tolist() == stamps
    assert (np.diff(clocked.timestamp_ns) > 0).all()
    second = 10**9  # the wall clock may be set meanwhile, which moves no stamp
    assert began_ns - second < clocked.timestamp_ns[0] < clocked.timestamp_ns[-1] < ended_ns + second
    assert given.timestamp_source == "caller"
    assert clocked.timestamp_source == "monotonic"


def test_failure_defaults_to_the_step_just_appended(path: Path, recorder: salus.Recorder) -> None:
    with recorder.episode() as episode:
        for _ in range(4):
            episode.append(good_step())
        episode.fail(kind="drop")
        episode.append(good_step())
    with recorder.episode() as episode:
        episode.append(good_step())
        episode.fail("collision", step=0)
    first, second = salus.open(path)
    assert first.outcome == salus.Outcome("failure", kind="drop", step=3)
    assert second.outcome == salus.Outcome("failure", kind="collision", step=0)


def test_nullable_features_keep_a_missing_value_as_missing(path: Path) -> None:
    schema = salus.Schema(
        {"q": salus.Feature((2,)), "wrist": salus.Image(height=4, width=4, nullable=True)}, rate_hz=10, segment_steps=4
    )
    with salus.Recorder(salus.create(path, schema)) as recorder:
        with recorder.episode() as episode:
            for step in range(6):
                image = np.full((3, 4, 4), 7, np.uint8) if step % 2 else None
                episode.append(q=[step, step], wrist=image)
    read = salus.open(path)[0]
    assert read["wrist.valid"][:].tolist() == [False, True] * 3
    assert read["wrist"][1].max() == 7
    assert read["wrist"][0].max() == 0


def test_text_features(path: Path) -> None:
    schema = salus.Schema({"q": salus.Feature((1,)), "say": salus.Text()}, rate_hz=10, segment_steps=4)
    words = ["", "grüß", "pick", "日本語", "x" * 1000, "end"]
    with salus.Recorder(salus.create(path, schema)) as recorder:
        with recorder.episode() as episode:
            for word in words:
                episode.append(q=[0.0], say=word)
    read = salus.open(path)[0]
    assert read["say"][:].tolist() == words
    assert read["say"][3] == "日本語"


def test_several_recorders_on_one_dataset(path: Path, schema: salus.Schema) -> None:
    salus.create(path, schema)
    first, second = salus.Recorder(salus.open(path, mode="a")), salus.Recorder(salus.open(path, mode="a"))
    for seed in range(4):
        (first, second)[seed % 2].record_episode(make_arrays(5, seed), {"seed": seed})
    first.close()
    second.close()
    dataset = salus.open(path)
    assert [episode.metadata["seed"] for episode in dataset] == [0, 1, 2, 3]
    assert len({entry.slot for entry in dataset.episodes}) == 4


# --- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"states": np.zeros(6, np.float32)}, "'states': got shape (6,), expected (7,)"),
        ({"states": np.zeros(7, "complex64")}, "'states': got dtype complex64, expected float32"),
        ({"images": np.zeros((3, 12, 10), np.float32)}, "'images': got dtype float32, expected uint8"),
        ({"images": np.zeros((12, 10), np.uint8)}, "'images': got shape (12, 10), expected (3, 12, 10)"),
        ({"states": [0, 0, np.nan, 0, 0, 0, 0]}, "'states': got nan at (2,), expected finite values"),
        ({"actions": [0, np.inf, 0]}, "'actions': got inf at (1,), expected finite values"),
        ({"states": None}, "'states': got None, expected float32 (7,)"),
        ({"actions": "left"}, "'actions': got str, expected float32 (3,)"),
        ({"gripper": 1.0}, "'gripper': not a feature of this dataset"),
    ],
)
def test_append_names_feature_got_and_expected(recorder: salus.Recorder, change: dict[str, Any], text: str) -> None:
    episode = recorder.start()
    with pytest.raises(InvalidInputError) as info:
        episode.append({**good_step(), **change})
    assert text in str(info.value)
    assert episode.num_steps == 0  # nothing of a refused step is kept
    episode.append(good_step())
    assert episode.commit().num_steps == 1


def test_append_reports_every_problem_at_once(recorder: salus.Recorder) -> None:
    episode = recorder.start()
    with pytest.raises(InvalidInputError) as info:
        episode.append({"states": np.zeros(3), "imagse": np.zeros((3, 12, 10), np.uint8)})
    message = str(info.value)
    for part in ("'states'", "'imagse'", "did you mean 'images'?", "'images': missing", "'actions': missing"):
        assert part in message
    episode.discard()


def test_a_feature_may_allow_nan(path: Path) -> None:
    schema = salus.Schema({"force": salus.Feature((2,), allow_nan=True)}, rate_hz=10)
    with salus.Recorder(salus.create(path, schema)) as recorder:
        recorder.record_episode({"force": np.array([[np.nan, 1.0]], np.float32)})
    assert np.isnan(salus.open(path)[0]["force"][0, 0])


def test_time_must_go_forward(recorder: salus.Recorder) -> None:
    episode = recorder.start()
    episode.append(good_step(), timestamp_ns=100)
    with pytest.raises(InvalidInputError, match="timestamp_ns: got 100, expected more than 100"):
        episode.append(good_step(), timestamp_ns=100)
    with pytest.raises(InvalidInputError, match="timestamp_ns: got none"):
        episode.append(good_step())
    with pytest.raises(InvalidInputError, match="timestamp_ns: got float"):
        episode.append(good_step(), timestamp_ns=1.5)  # type: ignore[arg-type]  # the error is the subject
    assert episode.num_steps == 1
    episode.discard()


def test_integers_that_do_not_fit_are_refused(path: Path) -> None:
    schema = salus.Schema({"count": salus.Feature((), dtype="int16")}, rate_hz=10)
    with salus.Recorder(salus.create(path, schema)) as recorder:
        episode = recorder.start()
        episode.append(count=12)
        with pytest.raises(InvalidInputError, match="'count': got 70000, which int16 cannot hold"):
            episode.append(count=70000)
        with pytest.raises(InvalidInputError, match="'count': got dtype float64, expected int16"):
            episode.append(count=0.5)
        episode.commit()


def test_an_unknown_failure_kind_or_step_is_refused(recorder: salus.Recorder) -> None:
    episode = recorder.start()
    episode.append(good_step())
    with pytest.raises(InvalidInputError, match="failure kind: got 'droop', expected one of 'collision', 'drop'"):
        episode.fail(kind="droop")
    with pytest.raises(InvalidInputError, match=r"failure step: got 5, expected 0 \.\. 0"):
        episode.fail(kind="drop", step=5)
    with pytest.raises(InvalidInputError, match="outcome: got 'great', expected"):
        episode.commit(outcome="great")
    episode.commit(outcome="failure")


def test_an_empty_episode_is_refused(path: Path, recorder: salus.Recorder) -> None:
    with pytest.raises(InvalidInputError, match="no step was appended"), recorder.episode():
        pass
    assert len(salus.open(path)) == 0


def test_an_ended_episode_takes_nothing_more(recorder: salus.Recorder) -> None:
    episode = recorder.start()
    episode.append(good_step())
    episode.commit()
    with pytest.raises(RecordingError, match="append: the episode is already committed"):
        episode.append(good_step())
    with pytest.raises(RecordingError, match="discard: the episode is already committed"):
        episode.discard()


def test_a_closed_recorder_takes_nothing_more(path: Path, schema: salus.Schema) -> None:
    recorder = salus.Recorder(salus.create(path, schema))
    recorder.close()
    recorder.close()  # twice is fine
    with pytest.raises(RecordingError, match="start: the recorder is closed"):
        recorder.start()


def test_closing_with_an_open_episode_is_an_error_that_says_what_was_lost(path: Path, schema: salus.Schema) -> None:
    recorder = salus.Recorder(salus.create(path, schema))
    episode = recorder.start()
    for _ in range(3):
        episode.append(good_step())
    with pytest.raises(RecordingError, match=r"1 episode was still open .*3 steps.*commit\(\) or discard\(\)"):
        recorder.close()
    assert len(salus.open(path)) == 0


def test_a_read_only_dataset_is_refused(dataset: salus.Dataset) -> None:
    with pytest.raises(InvalidInputError, match='read-only.*mode="a"'):
        salus.Recorder(dataset)


def test_whole_episodes_are_checked_like_steps(recorder: salus.Recorder) -> None:
    arrays = make_arrays(4)
    with pytest.raises(InvalidInputError, match=r"'states': got 3 steps, others have 4"):
        recorder.record_episode({**arrays, "states": arrays["states"][:3]})
    bad = arrays["states"].copy()
    bad[2, 1] = np.nan
    with pytest.raises(InvalidInputError, match=r"'states': got nan at \(2, 1\), expected finite values"):
        recorder.record_episode({**arrays, "states": bad})
    with pytest.raises(InvalidInputError, match="timestamp_ns: got 3 stamps for 4 steps"):
        recorder.record_episode(arrays, timestamp_ns=np.arange(3))
    with pytest.raises(InvalidInputError, match="metadata"):
        recorder.record_episode(arrays, {"when": object()})
    with pytest.raises(InvalidInputError, match="metadata"):
        recorder.record_episode(arrays, {"value": float("nan")})


def test_whole_episodes_without_stamps_say_that_time_is_nominal(path: Path, recorder: salus.Recorder) -> None:
    recorder.record_episode(make_arrays(3))
    read = salus.open(path)[0]
    assert read.timestamp_source == "rate"
    assert read.timestamp_ns.tolist() == [0, 20_000_000, 40_000_000]


def test_a_slot_decided_by_another_fences_the_writer(path: Path, recorder: salus.Recorder) -> None:
    episode = recorder.start()
    episode.append(good_step())
    record = path / "_salus" / "log" / "0" / f"{episode.slot:010d}.json"
    record.parent.mkdir(parents=True)
    record.write_bytes(b"{}")
    with pytest.raises(EpisodeFencedError, match=episode.uid):
        episode.commit()


def test_a_forked_child_may_not_record(recorder: salus.Recorder) -> None:
    import multiprocessing

    def child(connection: Any) -> None:
        try:
            recorder.start()
        except RecordingError as error:
            connection.send(str(error))

    ours, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(theirs,))
    process.start()
    assert ours.poll(20)
    assert "another process" in ours.recv()
    process.join()


def test_nan_in_a_scalar_feature_is_refused(path: Path) -> None:
    schema = salus.Schema({"force": salus.Feature()}, rate_hz=10)
    with salus.Recorder(salus.create(path, schema)) as recorder:
        episode = recorder.start()
        with pytest.raises(InvalidInputError, match="'force': got nan, expected finite values"):
            episode.append(force=float("nan"))
        episode.discard()


def test_whole_episodes_with_missing_values(path: Path) -> None:
    schema = salus.Schema({"q": salus.Feature((2,)), "depth": salus.Feature((1,), nullable=True)}, rate_hz=10)
    valid = np.array([True, False, True])
    arrays = {"q": np.zeros((3, 2)), "depth": np.ones((3, 1)), "depth.valid": valid}
    with salus.Recorder(salus.create(path, schema)) as recorder:
        recorder.record_episode(arrays, task="scan")
        with pytest.raises(InvalidInputError, match=r"'depth.valid' is int64 \(2,\), expected bool \(3,\)"):
            recorder.record_episode({**arrays, "depth.valid": [1, 0]})
        with pytest.raises(InvalidInputError, match="'q.valid': not a feature"):
            recorder.record_episode({**arrays, "q.valid": valid})
    read = salus.open(path)[0]
    assert read["depth.valid"][:].tolist() == valid.tolist()
    assert read.metadata == {"task": "scan"}


def test_a_failure_at_an_unknown_step_is_the_same_everywhere(path: Path, recorder: salus.Recorder) -> None:
    episode = recorder.start()
    episode.append(good_step())
    episode.commit(outcome="failure")
    recorder.record_episode(make_arrays(1), outcome="failure")
    assert [read.outcome for read in salus.open(path)] == [salus.Outcome("failure")] * 2


def test_arguments_of_the_wrong_kind_are_named(path: Path, schema: salus.Schema, recorder: salus.Recorder) -> None:
    with pytest.raises(InvalidInputError, match="metadata: got str 'pick up', expected a mapping or keywords"):
        recorder.episode("pick up")  # type: ignore[arg-type]  # the error is the subject
    with pytest.raises(InvalidInputError, match="record_episode: got list, expected a mapping"):
        recorder.record_episode([1, 2])  # type: ignore[arg-type]  # the error is the subject
    with pytest.raises(InvalidInputError, match=r"create: got dict as schema, expected a salus\.Schema"):
        salus.create(path / "other", {})  # type: ignore[arg-type]  # the error is the subject
    dataset = salus.open(path)
    with pytest.raises(InvalidInputError, match=r"fractions: got \[0\.8, 0\.2\], expected shares by name"):
        dataset.split([0.8, 0.2])  # type: ignore[arg-type]  # the error is the subject
    with pytest.raises(InvalidInputError, match=r"gather 'states': expected pairs"):
        dataset.gather({"states": [(0, 0, 0)]})


def test_commit_keeps_what_fail_said_and_refuses_a_contradiction(path: Path, recorder: salus.Recorder) -> None:
    episode = recorder.start()
    episode.append(good_step())
    episode.fail("drop", step=np.int64(0))  # type: ignore[arg-type]  # a numpy integer is fine
    with pytest.raises(InvalidInputError, match="outcome: got 'success', but it said 'failure' before"):
        episode.commit("success")
    episode.commit("failure")
    assert salus.open(path)[0].outcome == salus.Outcome("failure", "drop", 0)


def test_metadata_as_an_argument_and_names_that_are_no_metadata(path: Path, recorder: salus.Recorder) -> None:
    episode = recorder.start(metadata={"task": "pick"}, operator="me")
    episode.append(good_step())
    episode.commit()
    assert salus.open(path)[0].metadata == {"task": "pick", "operator": "me"}
    with pytest.raises(InvalidInputError, match=r"'outcome' is no metadata here; give it to commit\(\)"):
        recorder.start(outcome="success")
    with pytest.raises(InvalidInputError, match=r"metadata 'seed': got numpy int64.*tolist"):
        recorder.start(seed=np.int64(3))


def test_a_value_too_large_for_the_type_is_named_as_it_came(path: Path) -> None:
    schema = salus.Schema({"force": salus.Feature(allow_nan=True)}, rate_hz=10)
    with salus.Recorder(salus.create(path, schema)) as recorder:
        episode = recorder.start()
        with pytest.raises(InvalidInputError, match=r"'force': got 1e\+300, which float32 cannot hold"):
            episode.append(force=1e300)
        episode.append(force=np.inf)
        episode.commit()


def failing_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    from salus.shards import ShardWriter

    def add(*arguments: Any) -> tuple[int, int]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ShardWriter, "add", add)


@pytest.mark.parametrize("how", ["block", "whole", "commit"])
def test_an_episode_that_cannot_be_written_holds_nothing_afterwards(
    path: Path, schema: salus.Schema, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    with salus.Recorder(salus.create(path, schema)) as recorder:
        with monkeypatch.context() as patch:
            failing_shards(patch)
            with pytest.raises(RecordingError, match="No space left on device"):
                if how == "whole":
                    recorder.record_episode(make_arrays(20))
                elif how == "block":
                    with recorder.episode() as episode:
                        episode.append(good_step())
                else:
                    episode = recorder.start()
                    episode.append(good_step())
                    episode.commit()
        assert recorder.open_episodes == []
        if how != "commit":  # where there is no handle any more, it is aborted at once
            assert list((path / "_salus" / "journal").iterdir()) == []
        else:
            episode.discard()
        recorder.record_episode(make_arrays(4))
    assert [len(episode) for episode in salus.open(path)] == [4]


def test_a_start_that_fails_leaves_nothing_behind(
    path: Path, schema: salus.Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    from salus.recorder.journal import JournalWriter

    def add(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with salus.Recorder(salus.create(path, schema)) as recorder:
        with monkeypatch.context() as patch:
            patch.setattr(JournalWriter, "add", add)
            before = len(list(Path("/proc/self/fd").iterdir()))
            for _ in range(5):
                with pytest.raises(RecordingError, match="start: No space left on device"):
                    recorder.start()
            assert len(list(Path("/proc/self/fd").iterdir())) == before
        assert list((path / "_salus" / "journal").iterdir()) == []
        recorder.record_episode(make_arrays(4))
    assert len(salus.open(path)) == 1


def test_a_program_that_forgets_to_commit_is_told(path: Path) -> None:
    import subprocess
    import sys

    script = (
        "import sys, salus\n"
        "schema = salus.Schema({'q': salus.Feature()}, rate_hz=10)\n"
        "recorder = salus.Recorder(salus.create(sys.argv[1], schema))\n"
        "episode = recorder.start()\n"
        "episode.append(q=1.0)\n"
        "episode.succeed()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert "was never committed: 1 steps" in done.stderr
    assert "call commit()" in done.stderr
