"""Problems to plan in whose best plan is known."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from agents.planner_search import Step


@dataclasses.dataclass(frozen=True)
class Situation:
    """A state that its features tell whole."""

    features: Tensor

    def repeat(self, n: int) -> Situation:
        return Situation(self.features.repeat_interleave(n, dim=0))

    def where(self, mask: Tensor, other: Situation) -> Situation:
        return Situation(torch.where(mask[:, None], self.features, other.features))


class Problem:
    """Counts the rows that are stepped."""

    action_space: gymnasium.Space = gymnasium.spaces.Discrete(2)
    rows_stepped = 0

    def draw_noise(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, generator=generator)

    def step(self, state: Any, actions: Tensor, noise: Tensor) -> Step:
        assert len(actions) == len(noise) == len(state.features)
        self.rows_stepped += len(actions)
        features, reward, terminated = self.dynamics(state.features, actions, noise)
        return Step(Situation(features), reward, terminated)

    def dynamics(
        self, features: Tensor, actions: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError


class PointMass(Problem):
    """Push a mass to the origin: quadratic cost, so the Riccati recursion knows the best plan."""

    action_space = gymnasium.spaces.Box(-4.0, 4.0, (1,), np.float32)
    A = np.array([[1.0, 0.2], [0.0, 1.0]])
    B = np.array([[0.0], [0.2]])
    Q, R = np.diag([1.0, 0.1]), np.array([[0.05]])

    def dynamics(
        self, features: Tensor, actions: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        a, b, q = (torch.as_tensor(x, dtype=torch.float32) for x in (self.A, self.B, self.Q))
        cost = ((features @ q) * features).sum(-1) + float(self.R[0, 0]) * actions[:, 0] ** 2
        return features @ a.T + actions @ b.T, -cost, torch.zeros(len(cost), dtype=torch.bool)

    def solve(self, start: np.ndarray, horizon: int) -> tuple[float, float]:
        """The best return and its first action."""
        p, gain = np.zeros((2, 2)), np.zeros((1, 2))
        for _ in range(horizon):
            gain = np.linalg.solve(self.R + self.B.T @ p @ self.B, self.B.T @ p @ self.A)
            p = self.Q + self.A.T @ p @ (self.A - self.B @ gain)
        return float(-start @ p @ start), float((-gain @ start)[0])


class Corridor(Problem):
    """Walk right to a goal that pays 1, or take 0.2 at once and end: a trap for the greedy.

    Position 5 is the goal; action 0 takes the bait and ends, 1 walks right, 2 stays.
    """

    action_space = gymnasium.spaces.Discrete(3)
    length = 5

    def dynamics(
        self, features: Tensor, actions: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        position = features[:, 0] + (actions == 1)
        goal = (actions == 1) & (position == self.length)
        # What lies beyond an end is tempting, and must not count.
        beyond = 100.0 * (features[:, 0] >= self.length)
        reward = 0.2 * (actions == 0) + goal + beyond
        position = torch.where(actions == 0, torch.full_like(position, 99), position)
        return position[:, None], reward, (actions == 0) | goal


class Lock(Problem):
    """A combination of digits: each right one pays 1, wherever it stands."""

    action_space = gymnasium.spaces.Discrete(4)

    def __init__(self, seed: int, length: int) -> None:
        self.digits = torch.as_tensor(np.random.default_rng(seed).integers(4, size=length))

    def dynamics(
        self, features: Tensor, actions: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        t = features[:, 0].long()
        right = (t < len(self.digits)) & (self.digits[t.clamp(max=len(self.digits) - 1)] == actions)
        return features + 1, right.float(), torch.zeros(len(actions), dtype=torch.bool)


class Gamble(Problem):
    """Action 1 pays 3 times a standard normal, less 1; action 0 pays 0.1 for sure."""

    def dynamics(
        self, features: Tensor, actions: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        reward = torch.where(actions == 1, 3 * noise - 1, torch.full_like(noise, 0.1))
        return features, reward, torch.zeros(len(actions), dtype=torch.bool)


def brute_force(problem: Problem, start: Situation, horizon: int, gamma: float) -> float:
    """The best return of all action sequences of a deterministic discrete problem."""
    num_actions = int(problem.action_space.n)  # type: ignore[attr-defined]
    plans = torch.tensor(list(itertools.product(range(num_actions), repeat=horizon)))
    features = start.features.expand(len(plans), -1)
    total, over = torch.zeros(len(plans)), torch.zeros(len(plans), dtype=torch.bool)
    for t, actions in enumerate(plans.unbind(1)):
        features, reward, ended = problem.dynamics(features, actions, torch.zeros(len(plans)))
        total += torch.where(over, 0.0, gamma**t * reward)
        over = over | ended
    return float(total.max())
