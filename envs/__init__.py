"""Real environments as Gymnasium environments, made by name.

`make("memory-maze-9x9", privileged=True)` and
`gymnasium.make("worldsim/MemoryMaze-9x9-v0", privileged=True)` give the same environment. Importing
this package imports no simulator; an environment's own module is imported when it is made.
"""

from __future__ import annotations

import functools
import operator
import re
from typing import Any

import gymnasium
import numpy as np

_MEMORY_MAZE = re.compile(r"memory-maze-(\d+)x(\d+)")

# Name to Gymnasium id, of every environment that can be made.
_IDS = {
    "corridor": "worldsim/Corridor-v0",
    "memory-maze-5x5": "worldsim/MemoryMaze-5x5-v0",
    "memory-maze-7x7": "worldsim/MemoryMaze-7x7-v0",
    "memory-maze-9x9": "worldsim/MemoryMaze-9x9-v0",
    "memory-maze-11x11": "worldsim/MemoryMaze-11x11-v0",
    "memory-maze-13x13": "worldsim/MemoryMaze-13x13-v0",
    "memory-maze-15x15": "worldsim/MemoryMaze-15x15-v0",
    "minerl-navigate": "worldsim/MineRLNavigate-v0",
    "minerl-navigate-dense": "worldsim/MineRLNavigateDense-v0",
    "minerl-navigate-extreme": "worldsim/MineRLNavigateExtreme-v0",
    "minerl-navigate-extreme-dense": "worldsim/MineRLNavigateExtremeDense-v0",
    "minerl-treechop": "worldsim/MineRLTreechop-v0",
    "minerl-obtain-diamond": "worldsim/MineRLObtainDiamond-v0",
    "minerl-obtain-diamond-dense": "worldsim/MineRLObtainDiamondDense-v0",
    "minerl-obtain-iron-pickaxe": "worldsim/MineRLObtainIronPickaxe-v0",
    "minerl-obtain-iron-pickaxe-dense": "worldsim/MineRLObtainIronPickaxeDense-v0",
    "minerl-obtain-diamond-shovel": "worldsim/MineRLObtainDiamondShovel-v0",
    "minerl-basalt-find-cave": "worldsim/MineRLBasaltFindCave-v0",
    "minerl-basalt-make-waterfall": "worldsim/MineRLBasaltMakeWaterfall-v0",
    "minerl-basalt-create-village-animal-pen": "worldsim/MineRLBasaltCreateVillageAnimalPen-v0",
    "minerl-basalt-build-village-house": "worldsim/MineRLBasaltBuildVillageHouse-v0",
    # Not Minecraft but the stand-in for it, in a name of their own so that nobody mixes them up.
    "minerl-navigate-stand-in": "worldsim/MineRLNavigateStandIn-v0",
    "minerl-navigate-dense-stand-in": "worldsim/MineRLNavigateDenseStandIn-v0",
    "minerl-navigate-extreme-stand-in": "worldsim/MineRLNavigateExtremeStandIn-v0",
    "minerl-navigate-extreme-dense-stand-in": "worldsim/MineRLNavigateExtremeDenseStandIn-v0",
    "minerl-treechop-stand-in": "worldsim/MineRLTreechopStandIn-v0",
}

ENV_NAMES = tuple(_IDS)


def _register_memory_maze(size: int) -> str:
    """Register a size with Gymnasium; the package defines the limits of 9, 11, 13 and 15."""
    env_id = f"worldsim/MemoryMaze-{size}x{size}-v0"
    gymnasium.register(
        id=env_id,
        entry_point="envs.memory_maze:MemoryMaze",
        kwargs={"size": size},
        max_episode_steps={5: 250, 7: 500}.get(size, 1000 * (size - 7) // 2),
        disable_env_checker=True,
    )
    return env_id


def make(name: str, **options: Any) -> gymnasium.Env:
    """Make an environment by name.

    Args:
        name: one of `ENV_NAMES`, `memory-maze-NxN` for any odd N from 5, or the id of any
            environment that is registered with Gymnasium; in `my_package:MyEnv-v0` the package is
            imported first. Of these, only the image is shown, and actions count from 0.
        **options: options of the environment, and those of `gymnasium.make` such as
            `max_episode_steps` (None: as many as it has) and `render_mode`.

    Returns:
        The environment, with its `spec` and its limit on steps.

    Raises:
        ValueError: no environment has this name; one with this id shows no image, or has actions
            that are not discrete.
    """
    match = _MEMORY_MAZE.fullmatch(name)
    if match and name not in _IDS and match[1] == match[2] and int(match[1]) % 2 == 1:
        if int(match[1]) >= 5:
            _IDS[name] = _register_memory_maze(int(match[1]))
    if name in _IDS:
        return gymnasium.make(_IDS[name], **options)
    if ":" not in name and name not in gymnasium.registry:
        raise ValueError(
            f"unknown environment {name!r}: choose one of {', '.join(ENV_NAMES)} (memory-maze-NxN "
            "works for any odd N from 5), or the id of an environment that is registered with "
            "Gymnasium, as in my_package:MyEnv-v0"
        )
    try:
        env = gymnasium.make(name, **options)
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(f"environment {name!r} cannot be made: {error}") from error
    return adapted(env, name)


def step_limit(env: gymnasium.Env) -> int | None:
    """Steps after which an env truncates an episode, None where it does not."""
    limits = (
        None if env.spec is None else env.spec.max_episode_steps,
        getattr(env.unwrapped, "max_episode_steps", None),  # of those that cut episodes themselves
    )
    return min((limit for limit in limits if isinstance(limit, int)), default=None)


def adapted(env: gymnasium.Env, name: str) -> gymnasium.Env:
    """The environment as worldsim takes it: the image alone, and actions that count from 0.

    Args:
        env: with Discrete actions and an image (h, w, c) uint8 as observation, or as the only image
            of a Dict.
        name: of the environment, for messages.

    Raises:
        ValueError: it has no such observations or actions.
    """
    shown, actions = env.observation_space, env.action_space
    named = isinstance(shown, gymnasium.spaces.Dict)
    spaces = dict(shown.spaces) if named else {"": shown}  # type: ignore[attr-defined]
    images = [key for key, space in spaces.items() if _is_image(space)]
    if len(images) != 1:
        env.close()
        raise ValueError(
            f"{name} has observations {shown}; needed is one image: Box uint8 (height, width, "
            "channels) with 1 or 3 channels"
        )
    if not isinstance(actions, gymnasium.spaces.Discrete):
        env.close()
        raise ValueError(f"{name} has actions {actions}; needed is a Discrete action space")
    if named:
        (key,) = images
        pick = operator.itemgetter(key)
        env = gymnasium.wrappers.TransformObservation(env, pick, spaces[key])
    if actions.start:
        shift = functools.partial(operator.add, int(actions.start))  # which can be pickled
        space = gymnasium.spaces.Discrete(int(actions.n))
        env = gymnasium.wrappers.TransformAction(env, shift, space)
    return env


def _is_image(space: gymnasium.Space) -> bool:
    return (
        isinstance(space, gymnasium.spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) == 3
        and space.shape[2] in (1, 3)
    )


gymnasium.register(
    id=_IDS["corridor"],
    entry_point="envs.corridor:Corridor",
    max_episode_steps=256,
    disable_env_checker=True,
)

for _size in (5, 7, 9, 11, 13, 15):
    _register_memory_maze(_size)

for _name, _id in _IDS.items():
    if _name.startswith("minerl-"):
        _task = _name.removesuffix("-stand-in")
        gymnasium.register(
            id=_id,
            entry_point="envs.minerl:MineRLEnv",
            kwargs={"name": _task} if _task == _name else {"name": _task, "minecraft": "stand-in"},
            disable_env_checker=True,
        )
