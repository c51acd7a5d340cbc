"""Walk through a dream, or the real env, with the keyboard.

    pip install pygame
    python experiments/play.py --world-model memory-maze-9x9
    python experiments/play.py --env memory-maze-9x9

Memory Maze: W forward, A left, D right, W+A and W+D both at once. Other envs: a key for every
action, which is told at the start: 1 to 9, 0, then letters. Where no action is known to do nothing,
as action 0 does in Memory Maze and MineRL, time stands still until a key is pressed.
"""

from __future__ import annotations

import dataclasses
import string
import sys
from typing import Any

import gymnasium
import numpy as np

import envs
import worldsim  # noqa: F401  (registers the dream)
from experiments.command_line import run_script
from experiments.settings import refuse_given
from worldsim.checkpoint import load_metadata

MEMORY_MAZE_KEYS = {"w": 1, "a": 2, "d": 3, "wa": 4, "wd": 5}
OTHER_KEYS = "1234567890" + string.ascii_lowercase


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayConfig:
    """Walk through a dream, or the real env."""

    world_model: str = "memory-maze-9x9"
    """Shipped name or checkpoint directory."""
    env: str | None = None
    """Play this real env instead."""
    contexts: str | None = None
    """Dataset whose stretches the dreams start from; by default those shipped with the model."""
    horizon: int = 500
    """Steps of a dream."""
    size: int = 512
    """Height of the picture in pixels."""
    fps: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.env is not None:
            why = f"is of dreams, and {self.env} a real env: give one of both"
            refuse_given(self, ("world_model", "contexts", "horizon"), why)


class FirstEpisode(gymnasium.Wrapper):
    """Begins with the episode of a seed, however often it is reset before the first step.

    Gymnasium's `play` resets more than once; a seed given to it would begin every episode alike.
    """

    def __init__(self, env: gymnasium.Env, seed: int) -> None:
        super().__init__(env)
        self._first: Any = env.reset(seed=seed)

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        return self._first or self.env.reset(**options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._first = None
        return self.env.step(action)


class Pictures(gymnasium.Wrapper):
    """Renders what is observed, for envs that have no picture of their own."""

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        self._frame, info = self.env.reset(**options)
        return self._frame, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._frame, *rest = self.env.step(action)
        return self._frame, *rest

    def render(self) -> np.ndarray:  # type: ignore[override]
        """The last frame, (h, w, 3) uint8."""
        frame = np.asarray(self._frame)
        return frame.repeat(3, axis=-1) if frame.shape[-1] == 1 else frame

    @property
    def render_mode(self) -> str:  # type: ignore[override]
        return "rgb_array"


def make_env(config: PlayConfig) -> gymnasium.Env:
    """Make the dream or the real env, to be rendered as pictures."""
    if config.env is not None:
        return Pictures(envs.make(config.env))
    return gymnasium.make(
        "worldsim/Dream-v0",
        world_model=config.world_model,
        contexts=config.contexts,
        horizon=config.horizon,
        render_mode="rgb_array",
        render_fps=config.fps,
    )


def env_of(config: PlayConfig) -> str:
    """Name of the real env that is played, or dreamed, as far as the model tells."""
    if config.env is not None:
        return config.env
    return str(load_metadata(config.world_model).get("env") or config.world_model)


def key_bindings(num_actions: int, env: str) -> dict[str, int]:
    """Return the keys of each action.

    Raises:
        ValueError: there are more actions than keys.
    """
    if "memory-maze" in env and num_actions == 6:
        return MEMORY_MAZE_KEYS
    if num_actions > len(OTHER_KEYS):
        raise ValueError(f"{env} has {num_actions} actions, more than the {len(OTHER_KEYS)} keys")
    return {key: action for action, key in enumerate(OTHER_KEYS[:num_actions])}


def waits_for_keys(env: str) -> bool:
    """Whether nothing happens without a key, because action 0 may be anything."""
    return not any(name in env for name in ("memory-maze", "minerl"))


def main(config: PlayConfig) -> None:
    """Play until the window is closed."""
    try:
        from gymnasium.utils.play import play
    except gymnasium.error.DependencyNotInstalled as error:
        sys.exit(f"playing needs a window: pip install pygame ({error})")
    env = FirstEpisode(make_env(config), config.seed)
    assert isinstance(env.action_space, gymnasium.spaces.Discrete)
    env.reset()
    frame = env.render()
    keys = key_bindings(int(env.action_space.n), env_of(config))
    print("keys: " + ", ".join(f"{' and '.join(key)} {action}" for key, action in keys.items()))
    play(
        env,
        keys_to_action=keys,  # type: ignore[arg-type]
        fps=config.fps,
        zoom=config.size / frame.shape[0],  # type: ignore[union-attr]
        noop=0,
        wait_on_player=waits_for_keys(env_of(config)),
    )


if __name__ == "__main__":
    run_script(main, PlayConfig, __doc__)
