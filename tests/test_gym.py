"""Gymnasium environments, recorded: every observation lies in its own episode, at its own step, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salus

gymnasium = pytest.importorskip("gymnasium", reason="the extra 'gym' is not installed")

from gymnasium import spaces  # noqa: E402
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv  # noqa: E402

from salus.gym import RecordEpisodes, RecordVectorEpisodes, schema_from_env  # noqa: E402

MODES = list(AutoresetMode)


class Counting(gymnasium.Env[Any, Any]):
    """Observes (environment, episode, step). Its arrays may be used again and again, so that keeping one is seen."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as Gymnasium has it
    action_space = spaces.Box(-1e6, 1e6, (2,), np.float32)
    observation_space = spaces.Dict(
        {
            "count": spaces.Box(-1, 2**31 - 1, (3,), np.int64),
            "camera": spaces.Box(0, 255, (4, 6, 3), np.uint8),
            "pair": spaces.Tuple((spaces.Discrete(1000), spaces.Box(0, 1e9, (), np.float64))),
        }
    )
    render_mode = "rgb_array"

    def __init__(self, number: int = 0, *, reuse: bool = True) -> None:
        self.reuse = reuse
        self.number, self.episode, self.now = number, -1, 0
        self._count = np.zeros(3, np.int64)
        self._camera = np.zeros((4, 6, 3), np.uint8)

    def _observation(self) -> dict[str, Any]:
        if not self.reuse:
            self._count, self._camera = self._count.copy(), self._camera.copy()
        self._count[:] = self.number, self.episode, self.now
        self._camera[:] = (60 * self.number + 10 * self.episode + self.now) % 256
        return {"count": self._count, "camera": self._camera, "pair": (self.now, np.float64(self.episode / 7))}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.now = self.episode + 1, 0
        return self._observation(), {"is_success": False}

    @property
    def length(self) -> int:
        return 2 + (self.number + self.episode) % 3

    def step(self, action: Any) -> Any:
        self.now += 1
        over = self.now == self.length
        terminated = over and self.episode % 2 == 0
        info = {"is_success": over and self.number == 1, "more": {"now": self.now}}
        return self._observation(), self.now / 3, terminated, over and not terminated, info

    def render(self) -> Any:
        return np.full((3, 5, 3), (60 * self.number + 10 * self.episode + self.now) % 256, np.uint8)


class Actions:
    """Actions that differ all, and those that each (environment, episode, step) was given."""

    def __init__(self, num_envs: int) -> None:
        self.random = np.random.default_rng(0)
        self.num_envs = num_envs
        self.given: dict[tuple[int, ...], np.ndarray] = {}

    def next(self, counts: np.ndarray) -> np.ndarray:
        actions = self.random.normal(size=(self.num_envs, 2)).astype(np.float32)
        for count, action in zip(counts.reshape(self.num_envs, 3).tolist(), actions, strict=True):
            self.given[tuple(count)] = action.copy()
        return actions


def check_episode(
    episode: salus.Episode, actions: Actions, *, final: bool = True, num_actions: int | None = None
) -> tuple[int, int]:
    """One whole episode of `Counting`, at most `num_actions` long; returns which."""
    number, number_in_env, _ = episode["observation.count"][0].tolist()
    whole = 2 + (number + number_in_env) % 3
    count = whole if num_actions is None else num_actions
    rows = count + final
    assert len(episode) == rows
    steps = np.arange(rows)
    expected = np.stack([np.full(rows, number), np.full(rows, number_in_env), steps], axis=1)
    np.testing.assert_array_equal(episode["observation.count"][:], expected)
    color = ((60 * number + 10 * number_in_env + steps) % 256).astype(np.uint8)
    np.testing.assert_array_equal(
        episode["observation.camera"][:], np.broadcast_to(color[:, None, None, None], (rows, 4, 6, 3))
    )
    np.testing.assert_array_equal(episode["observation.pair.0"][:], steps)
    np.testing.assert_array_equal(episode["observation.pair.1"][:], np.full(rows, number_in_env / 7))
    np.testing.assert_array_equal(
        episode["action"][:count], [actions.given[number, number_in_env, step] for step in range(count)]
    )
    np.testing.assert_array_equal(episode["reward"][:count], (steps[:count] + 1) / 3)
    last = (np.arange(count) == count - 1) & (count == whole)
    np.testing.assert_array_equal(episode["terminated"][:count], last & (number_in_env % 2 == 0))
    np.testing.assert_array_equal(episode["truncated"][:count], last & (number_in_env % 2 == 1))
    if final:
        for name in ("action", "reward", "terminated", "truncated"):
            assert episode[f"{name}.valid"][:].tolist() == [True] * count + [False]
    np.testing.assert_array_equal(episode.timestamp_ns, steps * 100_000_000)
    if count == whole:
        assert episode.outcome == salus.Outcome("success" if number == 1 else "failure")
        assert "unfinished" not in episode.metadata
    else:
        assert episode.outcome == salus.Outcome()
        assert episode.metadata["unfinished"] is True
    return number, number_in_env


def new_dataset(path: Path, env: Any, **more: Any) -> salus.Dataset:
    return salus.create(path / "data.zarr", schema_from_env(env, rate_hz=10, **more))


# --- many environments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_every_observation_lies_in_its_episode(tmp_path: Path, mode: AutoresetMode, final: bool) -> None:
    reuse = mode is not AutoresetMode.SAME_STEP  # there, Gymnasium's `final_obs` is the array that the reset fills
    makers = [lambda n=n: Counting(n, reuse=reuse) for n in range(3)]
    inner = SyncVectorEnv(makers, autoreset_mode=mode, copy=False)
    run_and_check(tmp_path, inner, mode, final)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_environments_in_processes(tmp_path: Path, mode: AutoresetMode) -> None:
    makers = [make_counting_0, make_counting_1, make_counting_2]
    inner = AsyncVectorEnv(makers, autoreset_mode=mode, context="spawn", shared_memory=False)
    run_and_check(tmp_path, inner, mode, final=True)


def make_counting_0() -> Counting:
    return Counting(0, reuse=False)


def make_counting_1() -> Counting:
    return Counting(1, reuse=False)


def make_counting_2() -> Counting:
    return Counting(2, reuse=False)


def run_and_check(path: Path, inner: Any, mode: AutoresetMode, final: bool) -> None:
    dataset = new_dataset(path, inner, final_observation=final)
    actions, over = Actions(3), 0
    with salus.Recorder(dataset) as recorder:
        env = RecordVectorEpisodes(inner, recorder, metadata={"task": "count"})
        observed, _ = env.reset(seed=5)
        for _ in range(25):
            observed, _, terminated, truncated, _ = env.step(actions.next(observed["count"]))
            over += int((terminated | truncated).sum())
            if mode is AutoresetMode.DISABLED and (terminated | truncated).any():
                observed, _ = env.reset(options={"reset_mask": terminated | truncated})
        env.close()
        env.close()
    dataset.refresh()
    found, unfinished = set(), 0
    for episode in dataset:
        cut = "unfinished" in episode.metadata
        unfinished += cut
        number, number_in_env = check_episode(
            episode, actions, final=final, num_actions=len(episode) - final if cut else None
        )
        found.add((number, number_in_env))
        assert episode.metadata["env_id"] == number
        assert episode.metadata["task"] == "count"
        assert episode.metadata.get("seed") == (5 + number if number_in_env == 0 else None)
    assert len(found) == len(dataset) == over + unfinished
    assert over > 15
    for number in range(3):
        assert sorted(e for n, e in found if n == number) == list(range(sum(n == number for n, _ in found)))


def test_reset_commits_what_had_not_ended(tmp_path: Path) -> None:
    inner = SyncVectorEnv([lambda n=n: Counting(n) for n in range(3)])
    dataset, actions = new_dataset(tmp_path, inner), Actions(3)
    with salus.Recorder(dataset) as recorder:
        env = RecordVectorEpisodes(inner, recorder)
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step(np.zeros((3, 2), np.float32))
        for _ in range(2):
            observed, _ = env.reset()
            observed, *_ = env.step(actions.next(observed["count"]))
        env.flush()
        assert len(dataset.refresh()) == 3
        env.close()
    dataset.refresh()
    assert sorted(check_episode(episode, actions, num_actions=1) for episode in dataset) == [
        (number, episode) for number in range(3) for episode in range(2)
    ]


def test_frames_lie_at_the_step_that_they_show(tmp_path: Path) -> None:
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        inner = SyncVectorEnv([lambda n=n: Counting(n) for n in range(2)], autoreset_mode=mode)
        path = tmp_path / mode.name
        dataset = new_dataset(path, inner, render="frame")
        with salus.Recorder(dataset) as recorder:
            env = RecordVectorEpisodes(inner, recorder, render="frame")
            env.reset()
            for _ in range(9):
                env.step(np.zeros((2, 2), np.float32))
            env.close()
        for episode in dataset.refresh():
            shown = episode["frame"][:, 0, 0, 0]
            valid = episode["frame.valid"][:]
            finished = "unfinished" not in episode.metadata
            assert valid.tolist() == [True] * (len(valid) - 1) + [not (finished and mode is AutoresetMode.SAME_STEP)]
            np.testing.assert_array_equal(shown[valid], episode["observation.camera"][:, 0, 0, 0][valid])


def test_a_closed_recorder_says_what_was_open(tmp_path: Path) -> None:
    inner = SyncVectorEnv([Counting])
    recorder = salus.Recorder(new_dataset(tmp_path, inner))
    env = RecordVectorEpisodes(inner, recorder)
    env.reset()
    env.step(np.zeros((1, 2), np.float32))
    with pytest.raises(salus.RecordingError, match="were still open and are lost"):
        recorder.close()
    env.close()


def test_a_batched_final_observation(tmp_path: Path) -> None:
    class Batched(gymnasium.vector.VectorWrapper):
        """As simulators on a GPU have it: `final_obs` with a row per environment."""

        def step(self, actions: Any) -> Any:
            *result, infos = self.env.step(actions)
            if "final_obs" in infos:
                rows = np.full((2, 4), np.nan, np.float32)
                rows[infos["_final_obs"]] = np.stack([row for row in infos["final_obs"] if row is not None])
                infos = {**infos, "final_obs": rows}
            return *result, infos

    inner = gymnasium.make_vec("CartPole-v1", 2, "sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP})
    dataset = new_dataset(tmp_path, inner)
    expected = []
    with salus.Recorder(dataset) as recorder:
        env = RecordVectorEpisodes(Batched(inner), recorder)
        env.reset(seed=0)
        while len(expected) < 5:
            _, _, terminated, _, infos = env.step(np.zeros(2, np.int64))
            expected += [infos["final_obs"][number] for number in np.flatnonzero(terminated)]
        env.close()
    finished = [episode for episode in dataset.refresh() if "unfinished" not in episode.metadata]
    np.testing.assert_array_equal([episode["observation"][-1] for episode in finished], expected)


# --- one environment ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("wrap", [lambda env: env, gymnasium.wrappers.Autoreset], ids=["reset", "autoreset"])
def test_one_environment(tmp_path: Path, wrap: Callable[[Any], Any], final: bool) -> None:
    inner = wrap(Counting(1))
    dataset, actions = new_dataset(tmp_path, inner, final_observation=final), Actions(1)
    with salus.Recorder(dataset) as recorder:
        env = RecordEpisodes(inner, recorder, metadata={"task": "count"})
        observed, _ = env.reset(seed=3)
        for _ in range(20):
            observed, _, terminated, truncated, _ = env.step(actions.next(observed["count"])[0])
            if (terminated or truncated) and inner.unwrapped is inner:
                observed, _ = env.reset()
        env.reset()
        env.close()
    dataset.refresh()
    assert len(dataset) > 4
    for number, episode in enumerate(dataset):
        cut = "unfinished" in episode.metadata
        assert not cut or number == len(dataset) - 1
        place = check_episode(episode, actions, final=final, num_actions=len(episode) - final if cut else None)
        assert place == (1, number)
        assert episode.metadata["task"] == "count"
        assert episode.metadata.get("seed") == (3 if number == 0 else None)


def test_a_step_after_the_end_needs_a_reset(tmp_path: Path) -> None:
    dataset = new_dataset(tmp_path, Counting())
    with salus.Recorder(dataset) as recorder:
        env = RecordEpisodes(Counting(), recorder)
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step(np.zeros(2, np.float32))
        env.reset()
        while not any(env.step(np.zeros(2, np.float32))[2:4]):
            pass
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step(np.zeros(2, np.float32))
    assert len(dataset.refresh()) == 1


def test_the_outcome_of_a_function(tmp_path: Path) -> None:
    seen = []

    def outcome(info: Any, terminated: bool, truncated: bool) -> salus.Outcome:
        seen.append((info["more"]["now"], terminated, truncated))
        return salus.Outcome("failure", "late", 0)

    inner = SyncVectorEnv([Counting], autoreset_mode=AutoresetMode.SAME_STEP)
    dataset = new_dataset(tmp_path, inner, failure_kinds=("late",))
    with salus.Recorder(dataset) as recorder:
        env = RecordVectorEpisodes(inner, recorder, outcome=outcome)
        env.reset()
        for _ in range(5):
            env.step(np.zeros((1, 2), np.float32))
        env.close()
    assert seen == [(2, True, False), (3, False, True)]
    assert [e.outcome for e in dataset.refresh()] == [salus.Outcome("failure", "late", 0)] * 2


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_classic_control_is_recorded_bit_for_bit(tmp_path: Path, name: str) -> None:
    plain = gymnasium.make(name)
    dataset = new_dataset(tmp_path, plain)
    observations, taken = [], []
    with salus.Recorder(dataset) as recorder:
        env = RecordEpisodes(plain, recorder)
        env.action_space.seed(0)
        observed, _ = env.reset(seed=0)
        over = False
        for _ in range(30):
            observations.append(observed)
            taken.append(env.action_space.sample())
            observed, _, terminated, truncated, _ = env.step(taken[-1])
            over = terminated or truncated
            if over:
                break
        observations.append(observed)
        env.close()
    (episode,) = dataset.refresh()
    np.testing.assert_array_equal(episode["observation"][:], observations)
    np.testing.assert_array_equal(episode["action"][:-1], taken)
    assert episode.metadata["seed"] == 0
    assert over is (name == "CartPole-v1")


# --- schemas -----------------------------------------------------------------------------------------------------


def test_the_schema_of_an_environment() -> None:
    schema = schema_from_env(Counting(), rate_hz=10, failure_kinds=("drop",), render="frame")
    described = {name: (feature.dtype, feature.shape, feature.nullable) for name, feature in schema.features.items()}
    assert described == {
        "observation.count": ("int64", (3,), False),
        "observation.camera": ("uint8", (4, 6, 3), False),
        "observation.pair.0": ("int64", (), False),
        "observation.pair.1": ("float64", (), False),
        "action": ("float32", (2,), True),
        "reward": ("float64", (), True),
        "terminated": ("bool", (), True),
        "truncated": ("bool", (), True),
        "frame": ("uint8", (3, 5, 3), True),
    }
    assert isinstance(schema.features["observation.camera"], salus.Image)
    assert schema.failure_kinds == ("drop",)
    vector = SyncVectorEnv([Counting, Counting])
    assert schema_from_env(vector, rate_hz=10, failure_kinds=("drop",), render="frame") == schema
    vector.close()


def test_spaces_without_a_feature_are_named() -> None:
    env = Counting()
    env.observation_space = spaces.Dict(a=spaces.Sequence(spaces.Discrete(2)), b=spaces.Discrete(2))
    env.action_space = spaces.Graph(spaces.Discrete(2), None)
    with pytest.raises(salus.InvalidInputError, match=r"(?s)2 problems.*'observation\.a'.*'action'"):
        schema_from_env(env, rate_hz=10)
    with pytest.raises(salus.InvalidInputError, match="got int, expected a gymnasium.Env"):
        schema_from_env(3, rate_hz=10)  # type: ignore[arg-type]


def test_another_schema_is_refused(tmp_path: Path) -> None:
    schema = salus.Schema({"observation": salus.Feature((4,)), "wheel": salus.Feature()}, rate_hz=10)
    with salus.Recorder(salus.create(tmp_path / "data.zarr", schema)) as recorder:
        with pytest.raises(salus.InvalidInputError) as error:
            RecordEpisodes(gymnasium.make("CartPole-v1"), recorder)
        for part in ("'action': the dataset does not have it", "'wheel': the environment does not give it"):
            assert part in str(error.value)
        with pytest.raises(salus.InvalidInputError, match="'action'"):
            RecordVectorEpisodes(SyncVectorEnv([Counting]), recorder)


def test_an_autoreset_mode_must_be_known(tmp_path: Path) -> None:
    inner = SyncVectorEnv([Counting])
    inner.metadata = {}
    with salus.Recorder(new_dataset(tmp_path, inner)) as recorder:
        with pytest.raises(salus.InvalidInputError, match="autoreset_mode: got None"):
            RecordVectorEpisodes(inner, recorder)
        RecordVectorEpisodes(inner, recorder, autoreset_mode=AutoresetMode.NEXT_STEP).close()
