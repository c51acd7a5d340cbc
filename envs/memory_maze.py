"""The real Memory Maze (Pasukonis et al. 2022, arXiv 2210.13383) as a Gymnasium environment.

A ball rolls through a random maze with coloured targets; the border of the picture shows the
colour of the target to go to, and reaching it gives a reward of 1 and a new colour. Mazes, physics
and pictures are those of the `memory-maze` package, bit for bit.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from envs.memory_maze_simulation import MazeConfig, MazeSimulation


def maze_config(size: int, **options: Any) -> MazeConfig:
    """Targets and rooms of a maze size.

    9, 11, 13 and 15 are the package's. Smaller mazes have two targets (with one, the next target
    would be the one just reached) and small rooms so that two fit; larger ones are like 15 with
    as many rooms as it has, since there are only six colours.

    Args:
        size: cells along a side, odd and at least 5.
        **options: other fields of `MazeConfig`.

    Raises:
        ValueError: the size is even or below 5.
    """
    if size < 5 or size % 2 == 0:
        raise ValueError(f"a maze has an odd number of cells along a side, 5 or more: got {size}")
    rooms: dict[str, Any]
    if size <= 7:
        rooms = dict(num_targets=2, room_min_size=2 if size == 5 else 3, room_max_size=3)
    elif size <= 13:
        rooms = dict(num_targets=(size - 3) // 2)
    else:
        rooms = dict(num_targets=6, max_rooms=9, room_max_size=3)
    return MazeConfig(size=size, **rooms, **options)


class MemoryMaze(gymnasium.Env[np.ndarray, np.int64]):
    """Memory Maze with pictures as observations and six actions at 4 Hz.

    Observations are uint8 (resolution, resolution, 3). Actions: 0 stand, 1 forward, 2 left,
    3 right, 4 forward and left, 5 forward and right. An episode never terminates; the limit on its
    length is the `max_episode_steps` of its spec, which `gymnasium.make` and `envs.make` apply.

    Args:
        size: cells along a side, odd and at least 5.
        randomize_colors: draw the colours of the targets from all six in every episode.
        good_visibility: low walls and raised targets.
        resolution: side of the observation in pixels, at least 64; the package's HD has 256.
        privileged: put the hidden state into `info` at every reset and step: `agent_pos` (2,)
            float32 in cells with (0.5, 0.5) the centre of the bottom left cell, `agent_dir` (2,)
            float32 unit vector, `targets_pos` (n, 2) float32, `target_index` int, `target_color`
            (3,) float32 in [0, 1], `maze_layout` (size, size) uint8 with 1 for free cells,
            indexed [y, x].
        render_mode: None or "rgb_array".
        render_view: "egocentric" or "top".
        render_resolution: side of the rendered picture in pixels, at least 64.

    Raises:
        ValueError: an option has a value it cannot have.
    """

    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 4,
    }

    def __init__(
        self,
        size: int = 9,
        *,
        randomize_colors: bool = False,
        good_visibility: bool = False,
        resolution: int = 64,
        privileged: bool = False,
        render_mode: str | None = None,
        render_view: str = "egocentric",
        render_resolution: int = 256,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array': got {render_mode!r}")
        if render_view not in ("egocentric", "top"):
            raise ValueError(f"render_view must be 'egocentric' or 'top': got {render_view!r}")
        if resolution < 64 or render_resolution < 64:
            raise ValueError(
                "resolution and render_resolution must be at least 64: "
                f"got {resolution} and {render_resolution}"
            )
        self._config = maze_config(
            size, randomize_colors=randomize_colors, good_visibility=good_visibility
        )
        self._resolution = resolution
        self._privileged = privileged
        self.render_mode = render_mode
        self._render_view = render_view
        self._render_resolution = render_resolution
        self.observation_space = gymnasium.spaces.Box(0, 255, (resolution, resolution, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(6)
        self._simulation: MazeSimulation | None = None
        self._started = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode in a new maze.

        Args:
            seed: makes maze, start and all that follows the same every time; the maze is the one
                that the `memory-maze` package builds from this seed. Without it the next maze is
                drawn from `np_random`.
            options: none.

        Returns:
            The first observation and `info`.

        Raises:
            RuntimeError: no OpenGL driver works.
        """
        super().reset(seed=seed)
        maze_seed = int(self.np_random.integers(2**31)) if seed is None else seed
        if self._simulation is None:
            self._simulation = MazeSimulation(
                self._config, max(self._resolution, self._render_resolution)
            )
        self._simulation.reset(maze_seed)
        self._started = True
        return self._observe(self._simulation), self._info(self._simulation)

    def step(self, action: np.int64 | int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Act for a quarter of a second.

        Raises:
            ValueError: the action is not one of 0 to 5.
            gymnasium.error.ResetNeeded: `reset` was never called.
        """
        if self._simulation is None or not self._started:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        if not self.action_space.contains(action):
            raise ValueError(f"an action is an integer from 0 to 5: got {action!r}")
        reward = self._simulation.step(int(action))
        return (
            self._observe(self._simulation),
            reward,
            False,
            False,
            self._info(self._simulation),
        )

    def _observe(self, simulation: MazeSimulation) -> np.ndarray:
        frame = simulation.draw(self._resolution)
        border = int(2 * np.sqrt(self._resolution // 64))
        color = simulation.target_color * 255 * 0.7
        frame[:, :border] = color
        frame[:, -border:] = color
        frame[:border] = color
        frame[-border:] = color
        return frame

    def _info(self, simulation: MazeSimulation) -> dict[str, Any]:
        if not self._privileged:
            return {}
        return {
            "agent_pos": simulation.agent_position.astype(np.float32),
            "agent_dir": simulation.agent_direction.astype(np.float32),
            "targets_pos": simulation.target_positions.astype(np.float32),
            "target_index": simulation.target_index,
            "target_color": simulation.target_color.astype(np.float32),
            "maze_layout": simulation.layout.copy(),
        }

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """Picture of the current state, uint8 (render_resolution, render_resolution, 3)."""
        if self.render_mode is None:
            return None
        if self._simulation is None or not self._started:
            raise gymnasium.error.ResetNeeded("call reset() before render()")
        if self._render_view == "top":
            return self._simulation.draw_from_above(self._render_resolution)
        return self._simulation.draw(self._render_resolution)

    def close(self) -> None:
        """Free the renderer; a later reset builds it anew."""
        if self._simulation is not None:
            self._simulation.close()
            self._simulation = None
        self._started = False
