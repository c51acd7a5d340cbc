"""The physics and the pictures of Memory Maze, stepped fast.

Builds the tasks of the `memory_maze` package (Pasukonis et al. 2022, arXiv 2210.13383) and runs
them without dm_control's `composer.Environment`. What a step computes is unchanged, to the last
bit; what is left out are the things nobody reads: observables other than the camera, a new scene
and its buffers for every picture, Python hooks after each of the 50 physics substeps, textures
that no wall of the maze uses, and the shadow map of a world without shadows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.machinery
import importlib.util
import logging
import math
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

from envs.memory_maze_rendering import Renderer, choose_gl_backend, missing_gl

# Upper bound of the ball's speed in m/s, four times what its motor reaches against its damping.
# While every target is farther away than the ball could roll, no substep can touch one.
_SPEED_BOUND = 8.0

_ACTIONS = np.array(
    [
        [0.0, 0.0],  # noop
        [-1.0, 0.0],  # forward
        [0.0, -1.0],  # turn left
        [0.0, +1.0],  # turn right
        [-1.0, -1.0],  # forward and left
        [-1.0, +1.0],  # forward and right
    ]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MazeConfig:
    """What a maze is made of; the defaults are the package's 9x9.

    Args:
        size: cells along a side, without the outer walls; odd.
        num_targets: targets in the maze, 2 to 6.
        max_rooms: rooms the generator tries to place.
        room_min_size: smallest side of a room in cells.
        room_max_size: largest side of a room in cells.
        randomize_colors: draw the targets' colours from all six in every episode.
        good_visibility: low walls and raised targets, so that targets are seen from afar.
    """

    size: int = 9
    num_targets: int = 3
    max_rooms: int = 6
    room_min_size: int = 3
    room_max_size: int = 5
    randomize_colors: bool = False
    good_visibility: bool = False


@functools.cache
def _import_memory_maze() -> types.SimpleNamespace:
    """Import `memory_maze.maze` without running the package's own `__init__`.

    That file registers its tasks with the old `gym` and fails where `gym` is not installed. An
    empty parent module with the package's search path stands in for it only while `maze` is
    imported, so that anyone who has `gym` can still import `memory_maze` as usual.

    Returns:
        A namespace with the modules `maze`, `mjcf`, `mujoco`, `labmaze_textures` and `dm_render`.

    Raises:
        RuntimeError: no OpenGL driver can be loaded.
        ImportError: a package is missing.
    """
    choose_gl_backend()
    spec = importlib.util.find_spec("memory_maze")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("memory-maze is not installed: run `pip install memory-maze==1.0.3`")
    stand_in = "memory_maze" not in sys.modules
    if stand_in:
        package = types.ModuleType("memory_maze")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = importlib.machinery.ModuleSpec("memory_maze", None, is_package=True)
        sys.modules["memory_maze"] = package
    try:
        import mujoco
        from dm_control import mjcf
        from dm_control._render import base as dm_render
        from dm_control.locomotion.arenas import labmaze_textures
        from memory_maze import maze
    except ModuleNotFoundError:
        raise
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        raise missing_gl(error) from error
    finally:
        if stand_in:
            del sys.modules["memory_maze"]
    return types.SimpleNamespace(
        maze=maze,
        mjcf=mjcf,
        mujoco=mujoco,
        labmaze_textures=labmaze_textures,
        dm_render=dm_render,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back dm_control's warning that a ball on slides has no velocity to rotate."""
    logger = logging.getLogger("absl")

    def unrelated(record: logging.LogRecord) -> bool:
        return "Cannot set velocity" not in record.getMessage()

    logger.addFilter(unrelated)
    try:
        yield
    finally:
        logger.removeFilter(unrelated)


class MazeSimulation:
    """One Memory Maze: a task of the package, its physics and its renderer.

    Args:
        config: what the maze is made of.
        max_size: side of the largest picture that will be asked for, in pixels.

    Raises:
        RuntimeError: no OpenGL driver works.
    """

    def __init__(self, config: MazeConfig, max_size: int) -> None:
        self._config = config
        self._packages = _import_memory_maze()
        self._renderer = Renderer(self._packages.mujoco, self._packages.dm_render, max_size)
        self._task: Any = None

    def _build_task(self, random_state: np.random.RandomState) -> Any:
        """The task as `memory_maze.tasks._memory_maze` builds it, drawing the same numbers."""
        maze, config = self._packages.maze, self._config
        walls = {"*": maze.FixedWallTexture("style_01", "yellow")}
        # One shared set of textures: the package loads ten copies, one for each kind of wall.
        walls |= dict.fromkeys(
            "0123456789", self._packages.labmaze_textures.WallTextures("style_01")
        )
        arena = maze.MazeWithTargetsArena(
            x_cells=config.size + 2,
            y_cells=config.size + 2,
            xy_scale=2.0,
            z_height=0.4 if config.good_visibility else 1.5,
            max_rooms=config.max_rooms,
            room_min_size=config.room_min_size,
            room_max_size=config.room_max_size,
            spawns_per_room=1,
            targets_per_room=1,
            floor_textures=maze.FixedFloorTexture("style_01", ["blue", "blue_bright"]),
            wall_textures=walls,
            skybox_texture=None,
            random_seed=random_state.randint(2147483648),
        )
        return maze.MemoryMazeTask(
            walker=maze.RollingBallWithFriction(camera_height=0.3),
            maze_arena=arena,
            n_targets=config.num_targets,
            target_radius=0.6,
            target_height_above_ground=0.5 if config.good_visibility else -0.6,
            control_timestep=0.25,
            target_randomize_colors=config.randomize_colors,
        )

    def reset(self, seed: int) -> None:
        """Build the maze of a seed and put the ball at its start.

        Everything that is random comes from `seed` alone; nothing of earlier episodes is kept.
        """
        words = [seed] if seed == 0 else []
        rest = seed
        while rest:
            words.append(rest & 0xFFFFFFFF)
            rest >>= 32
        rng = np.random.RandomState(words[0] if len(words) == 1 else words)
        self._random_state = rng
        self._task = task = self._build_task(rng)
        entities = list(task.root_entity.iter_entities())
        task.initialize_episode_mjcf(rng)
        for entity in entities:
            entity.initialize_episode_mjcf(rng)
        self._drop_unused_textures()
        entities = list(task.root_entity.iter_entities())
        self._physics = physics = self._packages.mjcf.Physics.from_mjcf_model(
            task.root_entity.mjcf_model
        )
        task.after_compile(physics, rng)
        for entity in entities:
            entity.after_compile(physics, rng)
        with _quiet(), physics.reset_context():
            task.initialize_episode(physics, rng)
            for entity in entities:
                entity.initialize_episode(physics, rng)
        self._synchronize()
        self._model, self._data = physics.model.ptr, physics.data.ptr
        self._renderer.load(self._model, self._data)
        self._find_ids()

    def _drop_unused_textures(self) -> None:
        """Leave out the pictures that no wall of this maze shows; loading them takes long."""
        root = self._task.root_entity.mjcf_model
        used = {id(material.texture) for material in root.find_all("material")}
        for texture in root.find_all("texture"):
            if texture.type == "2d" and id(texture) not in used:
                texture.remove()

    def _find_ids(self) -> None:
        physics, task = self._physics, self._task
        self._targets = task._targets
        target_geoms = [target.geom for target in self._targets]
        self._target_ids = [int(i) for i in physics.bind(target_geoms).element_id]
        self._targets_xy = self._data.geom_xpos[self._target_ids, :2].copy()
        root = task._walker.root_body
        self._root_id = int(physics.bind(root).element_id)
        self._egocentric_id = int(physics.bind(task._walker.egocentric_camera).element_id)
        self._top_id = int(physics.bind(task._maze_arena.top_camera).element_id)
        walker_ids = physics.bind(task._walker.mjcf_model.find_all("geom")).element_id
        offsets = self._data.geom_xpos[walker_ids, :2] - self._data.xpos[self._root_id, :2]
        reach = np.max(np.linalg.norm(offsets, axis=1) + self._model.geom_rbound[walker_ids])
        self._touch_distance = float(reach) + task._target_radius
        self._substep_distance = _SPEED_BOUND * self._model.opt.timestep
        cells = task._maze_arena.maze.entity_layer[1:-1, 1:-1][::-1]
        #: Free cells as 1 and walls as 0, uint8 (size, size) indexed [y, x], y upwards.
        self.layout = np.isin(cells, [" ", "P", "G"]).astype(np.uint8)
        self._num_substeps = task.physics_steps_per_control_step

    def _synchronize(self) -> None:
        # The package recomputes the physics when it reads positions after a colour has changed.
        if self._physics.is_dirty:
            self._physics.forward()

    def step(self, action: int) -> float:
        """Move for one control step of 0.25 s.

        Args:
            action: index of the six actions.

        Returns:
            1.0 where the ball touched the current target, else 0.0.

        Raises:
            RuntimeError: the physics diverged.
        """
        mujoco, model, data = self._packages.mujoco, self._model, self._data
        data.ctrl[:] = _ACTIONS[action]
        remaining = self._num_substeps
        while remaining:
            # mj_step2, then (n - 1) whole steps, then mj_step1 are n substeps of dm_control.
            n = min(remaining, self._untouchable_substeps())
            mujoco.mj_step2(model, data)
            if n > 1:
                mujoco.mj_step(model, data, n - 1)
            mujoco.mj_step1(model, data)
            remaining -= n
            self._activate_touched_targets()
        if data.warning.number.any():
            raise RuntimeError(f"the physics diverged at {data.time:.2f} s of the episode")
        self._task.after_step(self._physics, self._random_state)
        self._synchronize()
        return float(self._task.get_reward(self._physics))

    def _untouchable_substeps(self) -> int:
        """Substeps until a target could be touched at the earliest, at least 1."""
        x, y, _ = self._data.xpos[self._root_id]
        nearest = min(
            (
                math.hypot(x - target_x, y - target_y)
                for target, (target_x, target_y) in zip(
                    self._targets, self._targets_xy, strict=True
                )
                if not target.activated
            ),
            default=math.inf,
        )
        margin = nearest - self._touch_distance
        if margin == math.inf:
            return self._num_substeps
        return max(1, int(margin / self._substep_distance))

    def _activate_touched_targets(self) -> None:
        touching = set(self._data.contact.geom.ravel().tolist())
        for target, geom_id in zip(self._targets, self._target_ids, strict=True):
            if geom_id in touching:
                target._activated = True

    def draw(self, size: int) -> np.ndarray:
        """Picture from the ball's camera, uint8 (size, size, 3)."""
        return self._renderer.draw(self._egocentric_id, size)

    def draw_from_above(self, size: int) -> np.ndarray:
        """Picture of the whole maze, uint8 (size, size, 3).

        The ball wears a red ball on its right and a blue one on its left, as in the package.
        """
        position = self._data.xpos[self._root_id]
        right = self._data.xmat[self._root_id].reshape(3, 3)[:, 0]
        ears = (
            (position + 0.22 * right, 0.26, (0.7, 0.0, 0.0, 1.0)),
            (position - 0.22 * right, 0.26, (0.0, 0.0, 0.7, 1.0)),
        )
        return self._renderer.draw(self._top_id, size, ears)

    @property
    def target_index(self) -> int:
        """Index of the target to go to."""
        return int(self._task._current_target_ix)

    @property
    def target_color(self) -> np.ndarray:
        """Colour of the target to go to, float (3,) in [0, 1]."""
        return self._task._target_colors[self._task._current_target_ix]

    @property
    def agent_position(self) -> np.ndarray:
        """Position of the ball (x, y) in cells, float (2,)."""
        return self._data.xpos[self._root_id, :2] / 2.0 + self._config.size / 2.0

    @property
    def agent_direction(self) -> np.ndarray:
        """Unit vector (x, y) that the ball faces, float (2,)."""
        return self._data.xmat[self._root_id].reshape(3, 3)[:2, 1].copy()

    @property
    def target_positions(self) -> np.ndarray:
        """Positions of all targets (x, y) in cells, float (n, 2)."""
        return self._targets_xy / 2.0 + self._config.size / 2.0

    def close(self) -> None:
        """Give the driver's memory back."""
        self._renderer.close()
