"""An environment as users bring them: grey images in a Dict, actions from 1, an end by itself."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Lamp(gymnasium.Env):
    """A lamp: actions 1 and 3 dim and brighten it; where it is bright it pays, five times."""

    def __init__(self, length: int = 40) -> None:
        image = gymnasium.spaces.Box(0, 255, (32, 32, 1), np.uint8)
        level = gymnasium.spaces.Box(0, 1, (1,), np.float32)
        self.observation_space = gymnasium.spaces.Dict({"camera": image, "level": level})
        self.action_space = gymnasium.spaces.Discrete(3, start=1)
        self.length = length

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self._level, self._paid = int(self.np_random.integers(4)), 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self._level = int(np.clip(self._level + action - 2, 0, 4))
        reward = float(self._level == 4)
        self._paid += int(reward)
        return self._observe(), reward, self._paid == 5, False, {}

    def _observe(self) -> dict[str, np.ndarray]:
        camera = np.full((32, 32, 1), 50 * self._level, np.uint8)
        return {"camera": camera, "level": np.array([self._level / 4], np.float32)}


class Arm(Lamp):
    """The same with actions that are no choices."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)  # type: ignore[assignment]


gymnasium.register("Lamp-v0", Lamp, max_episode_steps=40)
gymnasium.register("Endless-v0", Lamp)  # ends by itself alone
gymnasium.register("Arm-v0", Arm)


def brighter() -> gymnasium.Env:
    """One whose wrappers cannot be sent from process to process."""
    env = gymnasium.wrappers.TransformReward(Lamp(), lambda reward: 2 * reward)
    return gymnasium.wrappers.TimeLimit(env, 30)


gymnasium.register("Brighter-v0", lambda: brighter(), max_episode_steps=30)
