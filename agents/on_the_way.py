"""Dreams that reward every step of the way, and touching no wall.

Dreams of some steps seldom come to a reward, and what they expect of one far ahead is blurred. The
map knows the way. So a step is rewarded for what it brings nearer to where the next reward is
expected, or, while that is not known, to what was not seen yet: shaping by a potential (Ng, Harada
& Russell 1999), the length of the way that is left. The map is that of the moment before the step,
so that no change of what is known, or made up, counts as progress.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from agents.map_value import MapValue
from agents.planner import DreamModel
from agents.planner_search import Step
from worldsim.state import WorldState
from worldsim.world_model import WorldModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class WayConfig:
    """What steps on the way are worth, where a reward is worth 1."""

    progress: float = 0.025
    """A step's length of the way: about one part in as many as the way to a reward has."""
    touch: float = 0.0125
    """What a step near a wall costs: there one is slowed, and odometry may lose count."""
    near: float = 0.2
    """Cells within which a wall is near."""

    def __post_init__(self) -> None:
        if self.progress < 0 or self.touch < 0:
            raise ValueError(
                f"progress and touch must be at least 0, got {self.progress} and {self.touch}"
            )
        if not 0 < self.near < 0.5:
            raise ValueError(f"near must lie between 0 and 0.5 cells, got {self.near}")


class DreamsOnTheWay(DreamModel):
    """A world model to improve in that rewards progress on its map too.

    Args:
        model: draws a map.
        config: what progress is worth.
        num_denoising_steps: of each imagined frame; None: the model's own.
        min_reward: dreamed rewards smaller than this count as none.

    Raises:
        ValueError: the model draws no map.
    """

    def __init__(
        self,
        model: WorldModel,
        config: WayConfig,
        num_denoising_steps: int | None = None,
        min_reward: float = 0.0,
    ) -> None:
        super().__init__(model, num_denoising_steps)
        self.config, self.min_reward = config, min_reward
        self.map = MapValue(model, gamma=1.0)

    def step(self, state: WorldState, actions: Tensor, noise: Tensor) -> Step:
        """See `PlanningModel`."""
        step, config = super().step(state, actions, noise), self.config
        reward = torch.where(step.reward.abs() < self.min_reward, 0.0, step.reward)
        reward = reward + config.progress * self.map.steps_nearer(state, step.state)
        if config.touch:
            reward = reward - config.touch * self.map.touches(step.state, config.near)
        return step._replace(reward=reward)
