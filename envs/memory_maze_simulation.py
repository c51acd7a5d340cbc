"""The physics and the pictures of Memory Maze, stepped fast.

Builds the tasks of the `memory_maze` package (Pasukonis et al. 2022, arXiv 2210.13383) and runs
them without dm_control's `composer.Environment`. What a step computes is unchanged, to the last
bit; what is left out are the things nobody reads: observables other than the camera, a new scene
and its buffers for every picture, Python hooks after each of the 50 physics substeps, textures
that no wall of the maze uses, and the shadow map of a world without shadows.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import importlib.machinery
import importlib.util
import logging
import math
import os
import sys
import types
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

_MISSING_GL = (
    "Memory Maze cannot render: no working OpenGL driver ({backend}). On Debian or Ubuntu install "
    "one with `apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri` and run with MUJOCO_GL=egl, "
    "or with `apt-get install libosmesa6` and run with MUJOCO_GL=osmesa. The driver said: {error}"
)

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
    headless = not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    if sys.platform.startswith("linux") and headless:
        os.environ.setdefault("MUJOCO_GL", "egl")
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
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        raise _missing_gl(error) from error
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


def _missing_gl(error: Exception) -> RuntimeError:
    backend = f"MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}"
    return RuntimeError(_MISSING_GL.format(backend=backend, error=error))


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


class Renderer:
    """Draws one model's cameras into NumPy arrays, with everything that can be kept kept.

    Args:
        packages: the modules from `_import_memory_maze`.
        max_size: side of the largest picture in pixels.

    Raises:
        RuntimeError: no OpenGL driver works.
    """

    def __init__(self, packages: types.SimpleNamespace, max_size: int) -> None:
        self._mujoco = mujoco = packages.mujoco
        self._dm_render = packages.dm_render
        self._max_size = max_size
        self._context: Any = None
        try:
            self._gl = mujoco.GLContext(max_size, max_size)
            self._make_current()
        except Exception as error:  # each backend fails with an exception of its own
            raise _missing_gl(error) from error
        # Contexts have to go before the driver does, which mujoco shuts down at exit.
        reference = weakref.ref(self)
        atexit.register(lambda: (renderer := reference()) and renderer.close())

    def _make_current(self) -> None:
        self._gl.make_current()
        # dm_control remembers which of its contexts is current and would draw into ours.
        self._dm_render._CURRENT_CONTEXT_FOR_THREAD.clear()
        self._dm_render._CURRENT_THREAD_FOR_CONTEXT.clear()

    def load(self, model: Any) -> None:
        """Take over a newly compiled model, in place of the one before."""
        mujoco = self._mujoco
        # No light of the mazes casts a shadow and overlays are never drawn.
        model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = self._max_size
        self._make_current()
        if self._context is not None:
            self._context.free()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, model.ngeom + model.nsite + 8)
        self._option = mujoco.MjvOption()
        self._option.flags[mujoco.mjtVisFlag.mjVIS_RANGEFINDER] = False
        self._perturb = mujoco.MjvPerturb()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def draw(self, model: Any, data: Any, camera_id: int, size: int) -> np.ndarray:
        """Picture of one camera.

        Returns:
            A new uint8 array (size, size, 3).
        """
        mujoco = self._mujoco
        self._camera.fixedcamid = camera_id
        self._make_current()
        mujoco.mjv_updateScene(
            model,
            data,
            self._option,
            self._perturb,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        rect = mujoco.MjrRect(0, 0, size, size)
        mujoco.mjr_render(rect, self._scene, self._context)
        pixels = np.empty((size, size, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, rect, self._context)
        return np.ascontiguousarray(pixels[::-1])  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Give the driver's memory back."""
        if self._gl is not None:
            self._make_current()
            if self._context is not None:
                self._context.free()
            self._gl.free()
            self._context = self._gl = None


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
        self._renderer = Renderer(self._packages, max_size)
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
        self._renderer.load(self._model)
        self._find_ids()

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
        self._num_substeps = task.physics_steps_per_control_step

    def _synchronize(self) -> None:
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

    def draw(self, size: int, *, top_view: bool = False) -> np.ndarray:
        """Picture from the ball's camera or from above, uint8 (size, size, 3)."""
        camera_id = self._top_id if top_view else self._egocentric_id
        return self._renderer.draw(self._model, self._data, camera_id, size)

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

    @property
    def layout(self) -> np.ndarray:
        """Free cells as 1 and walls as 0, uint8 (size, size) indexed [y, x], y upwards."""
        cells = self._task._maze_arena.maze.entity_layer[1:-1, 1:-1][::-1]
        return np.isin(cells, [" ", "P", "G"]).astype(np.uint8)

    def close(self) -> None:
        """Give the driver's memory back."""
        self._renderer.close()
