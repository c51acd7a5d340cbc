"""Real environments as Gymnasium environments, made by name.

`make("memory-maze-9x9", privileged=True)` and
`gymnasium.make("worldsim/MemoryMaze-9x9-v0", privileged=True)` give the same environment. Importing
this package imports no simulator; an environment's own module is imported when it is made.
"""

from __future__ import annotations

import re
from typing import Any

import gymnasium

_MEMORY_MAZE = re.compile(r"memory-maze-(\d+)x(\d+)")
_MEMORY_MAZE_STEPS = {5: 250, 7: 500, 9: 1000, 11: 2000, 13: 3000, 15: 4000}

# Name to Gymnasium id, of every environment that can be made.
_IDS = {f"memory-maze-{n}x{n}": f"worldsim/MemoryMaze-{n}x{n}-v0" for n in _MEMORY_MAZE_STEPS}

ENV_NAMES = tuple(_IDS)


def _register_memory_maze(size: int, max_episode_steps: int) -> None:
    gymnasium.register(
        id=f"worldsim/MemoryMaze-{size}x{size}-v0",
        entry_point="envs.memory_maze:MemoryMaze",
        kwargs={"size": size},
        max_episode_steps=max_episode_steps,
        disable_env_checker=True,
    )


def make(name: str, **options: Any) -> gymnasium.Env:
    """Make an environment by name.

    Args:
        name: one of `ENV_NAMES`, or `memory-maze-NxN` for any odd N from 5.
        **options: options of the environment, and those of `gymnasium.make` such as
            `max_episode_steps` and `render_mode`.

    Returns:
        The environment, with its `spec` and its limit on steps.

    Raises:
        ValueError: no environment has this name.
    """
    match = _MEMORY_MAZE.fullmatch(name)
    if match and name not in _IDS:
        width, height = int(match[1]), int(match[2])
        if width == height and width % 2 == 1 and width >= 5:
            _IDS[name] = f"worldsim/MemoryMaze-{width}x{width}-v0"
            _register_memory_maze(width, 1000 * (width - 7) // 2)
    if name not in _IDS:
        raise ValueError(
            f"unknown environment {name!r}: choose one of {', '.join(ENV_NAMES)} "
            "(memory-maze-NxN works for any odd N from 5)"
        )
    return gymnasium.make(_IDS[name], **options)


for _size, _steps in _MEMORY_MAZE_STEPS.items():
    _register_memory_maze(_size, _steps)
