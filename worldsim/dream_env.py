"""One dream as an environment: a batch of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from worldsim.contexts import ContextSource
from worldsim.dream import DreamVectorEnv
from worldsim.snapshot import DreamSnapshot
from worldsim.world_model import WorldModel


class DreamEnv(gymnasium.Env):
    """One dream. See `DreamVectorEnv`, which it is a batch of one of, for the arguments.

    Args:
        world_model: name of a shipped model, a checkpoint directory, or a model.
        contexts: where dreams start.
        **options: `horizon`, `obs`, `render_mode` and the other options of `DreamVectorEnv`.

    Raises:
        ValueError: an argument has no meaning; the message names it.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012

    def __init__(
        self,
        *,
        world_model: str | Path | WorldModel,
        contexts: ContextSource | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        for name in ("num_envs", "autoreset_mode"):
            if name in options:
                raise ValueError(
                    f"{name} is {options[name]}, but this is one dream: make many with "
                    "gymnasium.make_vec"
                )
        self.batch = DreamVectorEnv(
            world_model=world_model,
            contexts=contexts,
            render_mode=render_mode,
            autoreset_mode=AutoresetMode.DISABLED,
            **options,
        )
        self.action_space = self.batch.single_action_space
        self.observation_space = self.batch.single_observation_space
        self.render_mode = render_mode
        self.metadata = self.metadata | {"render_fps": self.batch.metadata["render_fps"]}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a new dream from a context that the random stream chooses.

        Args:
            seed: restarts the random stream.
            options: "context": index into the bank, instead of a random choice.

        Returns:
            The last frame of the context (or its features), and an info with its "context".

        Raises:
            IndexError: the context is not in the bank.
        """
        self.batch.check_contexts((options or {}).get("context"), np.ones(1, bool))
        super().reset(seed=seed)
        # One stream: what Gymnasium seeds is what the dream draws from.
        self.batch.generators[0] = self.np_random
        observations, infos = self.batch.reset(options=options)
        return observations[0], {"context": int(infos["context"][0])}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Dream one step.

        Raises:
            TypeError: the action is not an integer.
            ValueError: the action is not one number, or outside the action space.
            ResetNeeded: no reset yet, or the episode has ended.
        """
        if np.shape(action) != ():
            raise ValueError(f"action must be one integer, got {action!r}")
        actions = np.asarray(action)[None]
        observations, rewards, terminated, truncated, _ = self.batch.step(actions)
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), {}

    def render(self) -> np.ndarray | None:
        """Return the current frame, (render_size, ..., 3) uint8."""
        frames = self.batch.render()
        return None if frames is None else frames[0]

    def snapshot(self) -> DreamSnapshot:
        """Return everything that decides how the dream goes on: see `DreamVectorEnv.snapshot`."""
        return self.batch.snapshot()

    def restore(self, snapshot: DreamSnapshot) -> np.ndarray:
        """Go on from a snapshot of one dream and return its observation."""
        observations = self.batch.restore(snapshot)
        self.np_random = self.batch.generators[0]
        return observations[0]
