"""What steps of a dream are worth on the way to a reward: progress, and what touching walls costs.

Dreams of some steps seldom come to a reward, and what they expect of one far ahead is blurred. The
map knows the way. So a step is rewarded for what it brings nearer to where the next reward is
expected, or, while that is not known, to what was not seen yet: after the shaping of rewards by a
potential (Ng, Harada & Russell 1999), here the length of the way that is left. The map is that of
the moment before the step, so that no change of what is known, or made up, counts.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from agents.map_value import MapValue
from worldsim.dreaming import Dream
from worldsim.state import WorldState
from worldsim.world_model import WorldModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class WayConfig:
    """What steps on the way are worth where a reward is worth 1; scale it with an env's rewards."""

    progress: float = 0.025
    """What one step of the way is worth; a way to a reward has about 40."""
    touch: float = 0.05
    """What a step near a wall costs: there one is slowed, and odometry may lose count."""
    near: float = 0.25
    """Cells within which a wall is near."""
    min_reward: float = 0.5
    """Dreamed rewards smaller than this count as none beside progress: blurred dreams expect small
    shares of a reward wherever its target may be."""

    def __post_init__(self) -> None:
        if self.progress < 0 or self.touch < 0:
            raise ValueError(
                f"progress and touch must be at least 0, got {self.progress} and {self.touch}"
            )
        if not 0 < self.near < 0.5:
            raise ValueError(f"near must lie between 0 and 0.5 cells, got {self.near}")


class WayReward:
    """Rewards progress on a world model's map.

    Args:
        model: draws a map.
        config: what progress is worth.

    Raises:
        ValueError: the model draws no map.
    """

    def __init__(self, model: WorldModel, config: WayConfig | None = None) -> None:
        self.config = config or WayConfig()
        self.map = MapValue(model, gamma=1.0)

    def __call__(self, before: WorldState, after: WorldState) -> Tensor:
        """Of steps of n envs, from their states before and after: (n,) float32."""
        config = self.config
        reward = config.progress * self.map.steps_nearer(before, after)
        if config.touch:
            reward = reward - config.touch * self.map.touches(before, after, config.near)
        return reward

    def of_dream(self, before: WorldState, dream: Dream) -> Tensor:
        """What dreamed steps are worth in all, their rewards included: (n,) float32.

        It is the `reward_function` of dreams as envs:

            dreams = DreamVectorEnv(32, world_model=model, contexts=contexts,
                                    reward_function=WayReward(model).of_dream)
        """
        return self.sure(dream.reward) + self(before, dream.state)

    def sure(self, rewards: Tensor) -> Tensor:
        """Dreamed rewards (n,), those that are too small to be sure left out."""
        return torch.where(rewards.abs() < self.config.min_reward, 0.0, rewards)


def shaping_of(way: WayConfig, model: WorldModel) -> WayReward | None:
    """What rewards progress, where the model draws a map and the config wants that."""
    wanted = way.progress or way.touch
    return WayReward(model, way) if model.occupancy is not None and wanted else None
