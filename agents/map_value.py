"""What lies beyond a planner's horizon, by the map that the world model draws.

A dream of some steps seldom comes to a reward. What tells plans apart is how far they come on the
way there. So the map of the moment of decision says, once for all plans, how far every cell is from
where the next reward is expected, or, while that is not known, from what was not seen yet; and a
plan is worth the discount of the time that is left from where it ends (the cost-to-go as terminal
value of a receding horizon, as in model predictive control; Mayne et al. 2000). Dreams go on
drawing where nothing is known, but what they make up there does not count.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worldsim.grid_ways import FAR
from worldsim.occupancy import CELLS, TIME_UNIT, Ways
from worldsim.odometry import standing
from worldsim.pose import seen_from
from worldsim.state import WorldState
from worldsim.world_model import WorldModel

STEPS_PER_CELL = 4.0
"""At a walk straight ahead."""
STEPS_PER_RADIAN = 4.0
"""Of turning, with some to spare: a step of the Memory Maze turns by 0.3."""
FARTHEST = 2.0
"""Steps that one step can bring nearer, or away; what is more does not count."""
UNKNOWN = 0.5
"""What it is worth to come to see something new, where a reward that is expected is worth 1."""


class MapValue:
    """The discounted reward that the map promises.

    Args:
        model: draws a map.
        gamma: discount of a step.

    Raises:
        ValueError: the model draws none.
    """

    def __init__(self, model: WorldModel, gamma: float) -> None:
        if model.occupancy is None:
            raise ValueError(
                "this world model draws no map: train one (--places --occupancy), or do without "
                'its way (a planner with bootstrap="return" or "none")'
            )
        self.model, self.occupancy = model, model.occupancy
        self.gamma = gamma
        sides = torch.tensor([-1.0, 1.0], device=model.device)
        self.corners = torch.cartesian_prod(sides, sides)  # of a square, (4, 2)

    @torch.no_grad()
    def seen_from(self, state: WorldState) -> Callable[[WorldState], Tensor]:
        """The value of what is imagined from a state of n envs, by their maps as they are now.

        Returns:
            Of states (n * k), those of each env side by side, the value (n * k,) float32.
        """
        ways = self._ways(state)
        worth = torch.where(ways.known, 1.0, UNKNOWN)

        def value(imagined: WorldState) -> Tensor:
            k = imagined.batch_size // state.batch_size
            to_go, cost = (x.repeat_interleave(k, dim=0) for x in (ways.to_go, ways.cost))
            steps = self._steps_left(standing(imagined.memory), to_go, cost)
            return worth.repeat_interleave(k) * self.gamma**steps

        return value

    @torch.no_grad()
    def steps_nearer(self, state: WorldState, later: WorldState) -> Tensor:
        """How many steps of the way, as the map showed it before, were made: (n,).

        Args:
            state, later: of n envs, before and after; more than `FARTHEST` steps count as so many.
        """
        ways = self._ways(state)
        left = (self._steps_left(standing(s.memory), ways.to_go, ways.cost) for s in (state, later))
        return (next(left) - next(left)).clamp(-FARTHEST, FARTHEST)

    @torch.no_grad()
    def touches(self, state: WorldState, later: WorldState, within: float) -> Tensor:
        """Whether n envs came as near as that, in cells, to walls that were known: (n,) bool.

        Args:
            state, later: before and after.
            within: along each axis.
        """
        walls = self.occupancy.walls(state.memory[CELLS])
        at = standing(later.memory)[:, None, :2] / self.occupancy.config.cell
        return walls((at + within * self.corners.to(at.device)).floor().long()).any(-1)

    def _ways(self, state: WorldState) -> Ways:
        """All ways to where the next reward is expected, or to what was not seen yet."""
        aim = self.occupancy.aim(standing(state.memory), *self.model.place_told(state.features))
        return self.occupancy.ways(state.memory[CELLS], state.steps / TIME_UNIT, aim)

    def _steps_left(self, poses: Tensor, to_go: Tensor, cost: Tensor) -> Tensor:
        """From poses (b, 3) to a goal, by the middle of a cell beside: (b,)."""
        o, at = self.occupancy, self.occupancy.cell_of(poses[:, :2])
        near = torch.cat([at[:, None], at[:, None] + o.beside], dim=1)
        index = o.index(near)
        seen = seen_from(poses[:, None], (near + 0.5) * o.config.cell)
        distance = seen.norm(dim=-1) / o.config.cell
        turn = torch.atan2(seen[..., 1], seen[..., 0]).abs() * (distance > 0.3)
        cells = to_go.gather(1, index) + distance * cost.gather(1, index)
        cells[:, 0] = torch.where(to_go.gather(1, index[:, :1]).squeeze(1) > 0, FAR, cells[:, 0])
        return (STEPS_PER_CELL * cells + STEPS_PER_RADIAN * turn).min(dim=1).values
