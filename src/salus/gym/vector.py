"""A vector of environments, recorded while it runs, in each of Gymnasium's autoreset modes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from ..errors import InvalidInputError
from ..labels import Outcome, Result
from ..recorder import Recorder, VectorRecorder
from .outcomes import OutcomeOf, info_of, outcome_from_info
from .spaces import (
    ACTION,
    OBSERVATION,
    TERMINATED,
    TRUNCATED,
    check_metadata_argument,
    check_schema,
    effect_of,
    values_of,
)

_RESET_MASK = "reset_mask"

Values = dict[str, Any]


class RecordVectorEpisodes(VectorWrapper):
    """Records every episode of every environment of a vector.

    Steps, last observations, stamps, outcomes and unfinished episodes are as in `RecordEpisodes`. Each episode has
    `metadata["env_id"]`. Episodes are committed in the background, those that end together in one group; a crash loses
    the ones that had not ended. `flush()`, `close()` and the recorder's `close()` wait for all commits.

    All three autoreset modes are recorded alike: `NEXT_STEP` (the action that only resets is not recorded), `SAME_STEP`
    (the last observation comes from `info["final_obs"]`; there is no rendered frame of it) and `DISABLED` (`reset` with
    `options={"reset_mask": mask}`).

    Args:
        env: The vector of environments.
        recorder: Of a dataset with the schema that `schema_from_env` makes of the environments.
        outcome: As in `RecordEpisodes`; `info` is that of one environment.
        metadata: Metadata of every episode.
        render: Name of the image feature that takes the frames of `env.render()`, one per environment.
        autoreset_mode: By default `env.metadata["autoreset_mode"]`; give it where the environments do not say.

    Raises:
        InvalidInputError: The dataset's schema is not that of the environments, or no autoreset mode is known.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        recorder: Recorder,
        *,
        outcome: OutcomeOf = outcome_from_info,
        metadata: Mapping[str, Any] | None = None,
        render: str | None = None,
        autoreset_mode: AutoresetMode | None = None,
    ) -> None:
        super().__init__(env)
        mode = env.metadata.get("autoreset_mode") if autoreset_mode is None else autoreset_mode
        if not isinstance(mode, AutoresetMode):
            raise InvalidInputError(
                f"autoreset_mode: got {mode!r}, expected an AutoresetMode; the environments do not say, so give it"
            )
        self._mode = mode
        self._keeps_last = check_schema(recorder.schema, env, render)
        self._outcome = outcome
        self._episode_metadata = check_metadata_argument(metadata)
        self._render = render
        self._observed: Values = {}
        self._waits_for_reset = np.ones(env.num_envs, bool)
        self._seeds: dict[int, int] = {}
        self._vector = recorder.vector(env.num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or those of `options["reset_mask"]`; what had not ended is committed, unfinished."""
        given = (options or {}).get(_RESET_MASK)  # looked at before the environments take it out
        mask = np.ones(self.num_envs, bool) if given is None else np.array(given, bool)
        self._end_unfinished(mask)
        observations, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]  # lists are taken, too
        seeds = [seed + env for env in range(self.num_envs)] if isinstance(seed, int) else seed or []
        self._seeds |= {env: each for env, each in enumerate(seeds) if each is not None and mask[env]}
        self._observed = self._observe(observations)
        self._waits_for_reset &= ~mask
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all environments and record the step; episodes that are over are committed in the background.

        Raises:
            ResetNeeded: `reset()` was never called.
            RecordingError, InvalidInputError: As `VectorRecorder.append` and `end`.
        """
        if not self._observed:
            raise gymnasium.error.ResetNeeded("step: got no observation yet, expected a call of reset() first")
        acted = values_of(self.env.single_action_space, actions, ACTION)
        result = self.env.step(actions)
        observations, rewards, terminated, truncated, infos = result
        effect = effect_of(rewards, terminated, truncated)
        recorded = ~self._waits_for_reset
        self._append(np.flatnonzero(recorded), self._observed | acted | effect)
        self._observed = self._observe(observations)
        over = (effect[TERMINATED] | effect[TRUNCATED]) & recorded
        if over.any():
            self._end_over(np.flatnonzero(over), effect, infos)
        if self._mode is AutoresetMode.NEXT_STEP:
            self._waits_for_reset = over  # those that waited were reset by this step
        elif self._mode is AutoresetMode.DISABLED:
            self._waits_for_reset |= over
        return result

    def flush(self) -> None:
        """Wait until every episode that is over is on disk.

        Raises:
            RecordingError: As `VectorRecorder.flush`.
        """
        self._vector.flush()

    def close(self, **kwargs: Any) -> None:
        """Close the environments; episodes that had not ended are committed as unfinished, and all commits awaited."""
        vector: VectorRecorder | None = getattr(self, "_vector", None)  # __del__ calls this, also when __init__ failed
        try:
            if vector is not None and not vector.is_closed:
                self._end_unfinished(np.ones(self.num_envs, bool))
                vector.close()
        finally:
            super().close(**kwargs)

    def _observe(self, observations: Any) -> Values:
        values = values_of(self.env.single_observation_space, observations, OBSERVATION)
        if self._render is not None:
            values[self._render] = np.stack(self.env.render() or ())
        return values

    def _append(self, ids: np.ndarray, values: Values) -> None:
        if len(ids):
            self._vector.append({name: _rows(each, ids) for name, each in values.items()}, env_ids=ids)

    def _append_last(self, ids: np.ndarray, observed: Values) -> None:
        """The step of the last observation: `observed` has a row per environment, in the order of `ids`."""
        if self._keeps_last and len(ids):
            self._vector.append(observed, env_ids=ids)

    def _end_over(self, ids: np.ndarray, effect: Values, infos: dict[str, Any]) -> None:
        same_step = self._mode is AutoresetMode.SAME_STEP
        if same_step:
            self._append_last(ids, self._final_observations(infos, ids))
        else:
            self._append_last(ids, {name: _rows(each, ids) for name, each in self._observed.items()})
        last = infos.get("final_info", {}) if same_step else infos
        outcomes: list[Outcome | Result | None] = [
            self._outcome(info_of(last, env), bool(effect[TERMINATED][env]), bool(effect[TRUNCATED][env]))
            for env in ids.tolist()
        ]
        self._end(ids, outcomes, {})

    def _final_observations(self, infos: dict[str, Any], ids: np.ndarray) -> Values:
        """The last observations of environments that were reset within the same step, a row for each of `ids`."""
        space, final = self.env.single_observation_space, infos.get("final_obs")
        if final is None:
            raise InvalidInputError("step: got no info['final_obs'] of an episode that ended, expected it in SAME_STEP")
        if isinstance(final, np.ndarray) and final.dtype == object:  # one observation per environment, None elsewhere
            each = [values_of(space, final[env], OBSERVATION) for env in ids.tolist()]
            return {name: _stacked([values[name] for values in each]) for name in each[0]}
        return {name: _rows(values, ids) for name, values in values_of(space, final, OBSERVATION).items()}

    def _end(self, ids: np.ndarray, outcomes: list[Outcome | Result | None], more: Values) -> None:
        metadata = []
        for env in ids.tolist():
            seed = {"seed": self._seeds.pop(env)} if env in self._seeds else {}
            metadata.append({**seed, **self._episode_metadata, **more})
        self._vector.end(ids, outcome=outcomes, metadata=metadata)

    def _end_unfinished(self, mask: np.ndarray) -> None:
        ids = np.flatnonzero(mask & (self._vector.num_steps > 0))
        if len(ids):
            self._append_last(ids, {name: _rows(each, ids) for name, each in self._observed.items()})
            self._end(ids, [None] * len(ids), {"unfinished": True})


def _rows(values: Any, ids: np.ndarray) -> Any:
    return values[ids] if isinstance(values, np.ndarray) else [values[env] for env in ids.tolist()]


def _stacked(values: list[Any]) -> Any:
    return values if isinstance(values[0], str) else np.stack(values)
