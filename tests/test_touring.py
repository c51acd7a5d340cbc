"""Tours are walked again in the same order, in a maze of cells without physics."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agents.explorers import FORWARD, FORWARD_LEFT, FORWARD_RIGHT, LEFT, RIGHT, cell_of
from agents.touring import TouringExplorer

LAYOUT = np.array(
    [[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]],
    dtype=np.uint8,
)


class Walker:
    """A point that turns by 18 degrees and walks a quarter of a cell, stopped by walls."""

    def __init__(self) -> None:
        self.position, self.angle = np.array([0.5, 0.5]), 0.0

    def info(self) -> dict:
        return {
            "agent_pos": self.position.copy(),
            "agent_dir": np.array([math.cos(self.angle), math.sin(self.angle)]),
            "targets_pos": np.array([[4.5, 4.5]]),
            "target_index": 0,
            "maze_layout": LAYOUT,
        }

    def step(self, action: int) -> None:
        if action in (LEFT, FORWARD_LEFT):
            self.angle += math.radians(18)
        if action in (RIGHT, FORWARD_RIGHT):
            self.angle -= math.radians(18)
        if action in (FORWARD, FORWARD_LEFT, FORWARD_RIGHT):
            step = 0.25 * np.array([math.cos(self.angle), math.sin(self.angle)])
            for axis in range(2):
                new = self.position.copy()
                new[axis] += step[axis]
                x, y = np.floor(new).astype(int)
                if 0 <= x < 5 and 0 <= y < 5 and LAYOUT[y, x]:
                    self.position = new


def walk(explorer: TouringExplorer, steps: int) -> list[tuple[int, int]]:
    walker, state = Walker(), None
    cells = []
    for t in range(steps):
        cell = cell_of(walker.position, LAYOUT)
        if not cells or cells[-1] != cell:
            cells.append(cell)
        action, state = explorer.act(None, state, np.array([t == 0]), [walker.info()])
        if t == explorer.tour_steps:
            cells = [cell]  # what follows the tour
        walker.step(int(action[0]))
    assert state is not None
    assert state.trails[0].time == steps
    return [*state.trails[0].cells, (-1, -1), *cells]


def test_a_tour_is_retraced_in_its_order() -> None:
    path = walk(TouringExplorer(120, "retrace", epsilon=0.0), 400)
    split = path.index((-1, -1))
    tour, after = path[:split], path[split + 1 :]
    assert len(set(tour)) > 10
    # The tour's first cells again, in order; a way around may put others in between.
    following = iter(after[after.index(tour[0]) :])
    assert all(cell in following for cell in tour[:15])


def test_random_walks_differ_from_the_tour() -> None:
    path = walk(TouringExplorer(120, "random", epsilon=0.0), 400)
    split = path.index((-1, -1))
    tour, after = path[:split], path[split + 1 :]
    assert len(set(after)) > 10
    following = iter(after[after.index(tour[0]) :] if tour[0] in after else after)
    assert not all(cell in following for cell in tour[:15])


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="got 0 and 'retrace'"):
        TouringExplorer(0, "retrace")
    with pytest.raises(ValueError, match="'back'"):
        TouringExplorer(5, "back")  # type: ignore[arg-type]
