"""One environment, recorded while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium.wrappers import Autoreset

from ..recorder import EpisodeWriter, Recorder
from .outcomes import OutcomeOf, outcome_from_info
from .spaces import ACTION, OBSERVATION, check_metadata_argument, check_schema, effect_of, values_of


class RecordEpisodes(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Records every episode of an environment.

    Step `t` holds observation `t`, the action taken on it, and the reward, `terminated` and `truncated` that it
    brought. Where the schema has a place for it (`schema_from_env(final_observation=True)`), a last step holds the
    observation after the last action alone. Stamps are simulated time: `t / rate_hz`.

    An episode is committed when it terminates or is truncated. One that `reset()` or `close()` cuts short is committed
    as well, with `metadata["unfinished"]` true and an unknown outcome. What `reset(seed=…)` was given is
    `metadata["seed"]`. Closing the environment leaves the recorder open.

    Args:
        env: The environment.
        recorder: Of a dataset with the schema that `schema_from_env` makes of the environment.
        outcome: A function of (info of the last step, terminated, truncated) that says how it ended. By default
            `info["is_success"]`, else `info["success"]`, of the last step; unknown where there is neither.
        metadata: Metadata of every episode.
        render: Name of the image feature that takes the frames of `env.render()`.

    Raises:
        InvalidInputError: The dataset's schema is not that of the environment.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        recorder: Recorder,
        *,
        outcome: OutcomeOf = outcome_from_info,
        metadata: Mapping[str, Any] | None = None,
        render: str | None = None,
    ) -> None:
        super().__init__(env)
        self._recorder = recorder
        self._keeps_last = check_schema(recorder.schema, env, render)
        self._period_ns = 1e9 / recorder.schema.rate_hz
        self._outcome = outcome
        self._episode_metadata = check_metadata_argument(metadata)
        self._render = render
        self._seed: dict[str, Any] = {}
        self._observed: dict[str, Any] | None = None
        self._episode: EpisodeWriter | None = None
        layer: Any = env
        while isinstance(layer, gymnasium.Wrapper) and not isinstance(layer, Autoreset):
            layer = layer.env
        self._autoreset = isinstance(layer, Autoreset)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; an episode that had not ended is committed as unfinished."""
        self._end_unfinished()
        observation, info = self.env.reset(seed=seed, options=options)
        self._seed = {} if seed is None else {"seed": seed}
        self._observed = self._observe(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the environment and record the step; commits the episode when it is over.

        Raises:
            ResetNeeded: Neither `reset()` nor an `Autoreset` wrapper began an episode.
            RecordingError, InvalidInputError: As `EpisodeWriter.append` and `commit`.
        """
        if self._observed is None:
            if not self._autoreset:
                raise gymnasium.error.ResetNeeded("step: the episode is over, expected a call of reset() first")
            result = self.env.step(action)  # Autoreset ignores the action, and begins the next episode
            self._observed = self._observe(result[0])
            return result
        observed, acted = self._observed, values_of(self.env.action_space, action, ACTION)
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._episode is None:
            self._episode = self._recorder.start({**self._seed, **self._episode_metadata})
            self._seed = {}
        self._append(self._episode, observed | acted | effect_of(reward, terminated, truncated))
        self._observed = self._observe(observation)
        if terminated or truncated:
            episode, last = self._episode, self._observed
            self._episode = self._observed = None
            if self._keeps_last:
                self._append(episode, last)
            episode.commit(self._outcome(info, bool(terminated), bool(truncated)))
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        """Close the environment; an episode that had not ended is committed as unfinished."""
        try:
            self._end_unfinished()
        finally:
            super().close()

    def _observe(self, observation: Any) -> dict[str, Any]:
        values = values_of(self.env.observation_space, observation, OBSERVATION)
        if self._render is not None:
            values[self._render] = np.array(self.env.render())
        return values

    def _append(self, episode: EpisodeWriter, values: dict[str, Any]) -> None:
        episode.append(values, timestamp_ns=round(episode.num_steps * self._period_ns))

    def _end_unfinished(self) -> None:
        episode, self._episode = self._episode, None
        last, self._observed = self._observed, None
        if episode is None or episode.state != "recording":
            return  # the recorder was closed before, or writing failed: whoever did it was told
        if self._keeps_last and last is not None:
            self._append(episode, last)
        episode.add_metadata({"unfinished": True})
        episode.commit()
