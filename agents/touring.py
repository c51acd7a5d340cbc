"""Walks that test memory: tour a Memory Maze, then walk the same way again, or anywhere.

The tasks of Po et al. 2025 (arXiv 2505.20171), section 5. For retrieval the walk goes back to where
it began and through the same cells in the same order, so that places are seen again from the same
side; for reasoning it goes to random cells.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from agents.explorers import (
    Cell,
    ExplorerConfig,
    Plan,
    ScriptedExplorer,
    cell_of,
    distances_to,
    find_waypoint,
    steer,
)


@dataclasses.dataclass
class Trail:
    """What is remembered of one environment's tour."""

    cells: list[Cell] = dataclasses.field(default_factory=list)
    time: int = 0
    next: int = 0
    """Cell of the tour to walk to next when retracing."""
    positions: deque[np.ndarray] = dataclasses.field(default_factory=lambda: deque(maxlen=12))
    detour: int = 0
    """Steps left of shaking loose from a corner."""


@dataclasses.dataclass
class TourState:
    """Memory of `TouringExplorer`: one trail per environment, and both explorers' plans."""

    trails: list[Trail]
    tour: list[Plan] | None = None
    afterwards: list[Plan] | None = None


class TouringExplorer:
    """Tours the maze for `tour_steps` steps, then retraces the tour or goes anywhere.

    Args:
        tour_steps: steps of the tour.
        then: "retrace" or "random".
        epsilon: fraction of the steps spent in bursts of a random action, see `ExplorerConfig`.
        seed: as for `ScriptedExplorer`.
    """

    def __init__(
        self,
        tour_steps: int,
        then: Literal["retrace", "random"],
        *,
        epsilon: float = 0.05,
        seed: int = 0,
    ) -> None:
        if tour_steps < 1 or then not in ("retrace", "random"):
            raise ValueError(
                f"tour_steps must be at least 1 and then 'retrace' or 'random', got {tour_steps} "
                f"and {then!r}"
            )
        self.tour_steps = tour_steps
        self.then = then
        tour = ExplorerConfig(goals="tour", target_probability=0.0, epsilon=epsilon)
        anywhere = ExplorerConfig(goals="random", target_probability=0.0, epsilon=epsilon)
        self._tour = ScriptedExplorer(tour, seed)
        self._anywhere = ScriptedExplorer(anywhere, seed + 1)

    def act(
        self,
        observation: Any,
        state: TourState | None,
        episode_start: np.ndarray,
        infos: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[np.ndarray, TourState]:
        """Choose one action per environment; see `ScriptedExplorer.act`."""
        if state is None:
            state = TourState([Trail() for _ in episode_start])
        tour, state.tour = self._tour.act(observation, state.tour, episode_start, infos)
        anywhere, state.afterwards = self._anywhere.act(
            observation, state.afterwards, episode_start, infos
        )
        assert infos is not None  # the explorers have refused that
        actions = tour.copy()
        for i, info in enumerate(infos):
            if episode_start[i]:
                state.trails[i] = Trail()
            trail = state.trails[i]
            cell = cell_of(np.asarray(info["agent_pos"], np.float64), info["maze_layout"])
            if trail.time < self.tour_steps:
                if not trail.cells or trail.cells[-1] != cell:
                    trail.cells.append(cell)
            elif self.then == "random":
                actions[i] = anywhere[i]
            else:
                actions[i] = self._retrace(trail, cell, info, int(anywhere[i]))
            trail.time += 1
        return actions, state

    def _retrace(self, trail: Trail, cell: Cell, info: Mapping[str, Any], shake: int) -> int:
        """Walk to the tour's next cell; a way around where pushed off the tour is found."""
        position = np.asarray(info["agent_pos"], dtype=np.float64)
        trail.positions.append(position)
        if trail.detour:
            trail.detour -= 1
            return shake
        full = len(trail.positions) == trail.positions.maxlen
        if full and np.ptp(np.stack(trail.positions), axis=0).max() < 0.1:
            trail.detour = 5
            trail.positions.clear()
            return shake
        for _ in trail.cells:
            if trail.cells[trail.next] != cell:
                break
            trail.next = (trail.next + 1) % len(trail.cells)
        layout = np.asarray(info["maze_layout"])
        distances = distances_to(trail.cells[trail.next], layout)
        waypoint = find_waypoint(position, cell, distances, layout)
        return steer(position, np.asarray(info["agent_dir"], dtype=np.float64), waypoint)
