"""Distributions over action sequences, one per env, that a planner samples from and refits.

`CategoricalPlans` for discrete actions, `GaussianPlans` for Box actions; both treat the steps of a
plan as independent, as the cross-entropy method and MPPI do. Persistence correlates the steps of a
sample in time, without which long plans stay near where they began (iCEM, Pinneri et al. 2020,
arXiv 2008.06389, colours the noise to the same end).
"""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

import gymnasium
import torch
from einops import rearrange
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class CategoricalPlans:
    """Plans of discrete actions, int64."""

    probabilities: Tensor
    """(n, horizon, num_actions) float32."""

    def sample(self, num_samples: int, persistence: float, generator: torch.Generator) -> Tensor:
        """Draw plans (n, num_samples, horizon); each step repeats the last with `persistence`."""
        n, h, _ = self.probabilities.shape
        rows = rearrange(self.probabilities, "n h a -> (n h) a")
        draws = torch.multinomial(rows, num_samples, replacement=True, generator=generator)
        draws = rearrange(draws, "(n h) s -> n s h", n=n)
        repeats = _uniform(draws.shape, generator) < persistence
        repeats[..., 0] = False
        source = torch.arange(h, device=draws.device).expand_as(draws)
        return draws.gather(-1, source.masked_fill(repeats, 0).cummax(-1).values)

    def refit(
        self, plans: Tensor, weights: Tensor, *, smoothing: float, exploration: float
    ) -> CategoricalPlans:
        """Move towards weighted plans.

        Args:
            plans: (n, s, horizon).
            weights: (n, s), sum to 1.
            smoothing: share of the old probabilities that stays.
            exploration: share of the new ones that is spread evenly over all actions.
        """
        num_actions = self.probabilities.shape[-1]
        one_hot = torch.nn.functional.one_hot(plans, num_actions).to(weights.dtype)
        fitted = torch.einsum("n s, n s h a -> n h a", weights, one_hot)
        new = smoothing * self.probabilities + (1 - smoothing) * fitted
        return CategoricalPlans((1 - exploration) * new + exploration / num_actions)

    def mode(self) -> Tensor:
        """The most likely action of every step: (n, horizon)."""
        return self.probabilities.argmax(-1)

    def shift(self, prior: Plans, trust: float | Tensor) -> CategoricalPlans:
        """What is left after the first step, mixed with the prior; the last step is the prior's.

        Args:
            prior: what planning anew begins from.
            trust: share of what is left, or (n, 1, 1) of each env.
        """
        assert isinstance(prior, CategoricalPlans)
        moved = torch.cat([self.probabilities[:, 1:], prior.probabilities[:, -1:]], dim=1)
        return CategoricalPlans(trust * moved + (1 - trust) * prior.probabilities)

    def put(self, rows: Tensor, other: Plans) -> CategoricalPlans:
        """This one with the envs `rows` (k,) replaced by the k envs of `other`."""
        assert isinstance(other, CategoricalPlans)
        return CategoricalPlans(self.probabilities.index_copy(0, rows, other.probabilities))

    def __getitem__(self, rows: Tensor) -> CategoricalPlans:
        return CategoricalPlans(self.probabilities[rows])


@dataclasses.dataclass(frozen=True)
class GaussianPlans:
    """Plans of Box actions, float32, clipped to the box."""

    mean: Tensor
    """(n, horizon, d)."""
    std: Tensor
    """(n, horizon, d)."""
    low: Tensor
    """(d,)."""
    high: Tensor
    """(d,)."""

    def sample(self, num_samples: int, persistence: float, generator: torch.Generator) -> Tensor:
        """Draw plans (n, num_samples, horizon, d); noise decays by `persistence` per step."""
        n, h, d = self.mean.shape
        fresh = torch.randn(n, num_samples, h, d, generator=generator, device=generator.device)
        noise = [fresh[:, :, 0]]
        for t in range(1, h):
            noise.append(persistence * noise[-1] + (1 - persistence**2) ** 0.5 * fresh[:, :, t])
        plans = self.mean[:, None] + self.std[:, None] * torch.stack(noise, dim=2)
        return plans.clamp(self.low, self.high)

    def refit(
        self, plans: Tensor, weights: Tensor, *, smoothing: float, exploration: float
    ) -> GaussianPlans:
        """Move towards weighted plans (n, s, horizon, d); see `CategoricalPlans.refit`.

        Args:
            plans, weights, smoothing: as there.
            exploration: least std, as a share of half the box.
        """
        mean = torch.einsum("n s, n s h d -> n h d", weights, plans)
        variance = torch.einsum("n s, n s h d -> n h d", weights, (plans - mean[:, None]) ** 2)
        least = exploration * (self.high - self.low) / 2
        return dataclasses.replace(
            self,
            mean=smoothing * self.mean + (1 - smoothing) * mean,
            std=(smoothing * self.std + (1 - smoothing) * variance.sqrt()).clamp(min=least),
        )

    def mode(self) -> Tensor:
        """The mean plan: (n, horizon, d)."""
        return self.mean

    def shift(self, prior: Plans, trust: float | Tensor) -> GaussianPlans:
        """What is left after the first step; spread, and the last step, are mixed with the prior's.

        The mean moves along whole: half a good plan is not a plan.
        """
        assert isinstance(prior, GaussianPlans)
        mean = torch.cat([self.mean[:, 1:], prior.mean[:, -1:]], dim=1)
        std = torch.cat([self.std[:, 1:], prior.std[:, -1:]], dim=1)
        return dataclasses.replace(self, mean=mean, std=trust * std + (1 - trust) * prior.std)

    def put(self, rows: Tensor, other: Plans) -> GaussianPlans:
        """This one with the envs `rows` (k,) replaced by the k envs of `other`."""
        assert isinstance(other, GaussianPlans)
        return dataclasses.replace(
            self,
            mean=self.mean.index_copy(0, rows, other.mean),
            std=self.std.index_copy(0, rows, other.std),
        )

    def __getitem__(self, rows: Tensor) -> GaussianPlans:
        return dataclasses.replace(self, mean=self.mean[rows], std=self.std[rows])


Plans: TypeAlias = CategoricalPlans | GaussianPlans


def prior_plans(space: gymnasium.Space, n: int, horizon: int, device: torch.device) -> Plans:
    """What a planner knows at first: uniform, or the box's middle with half the box as std.

    Raises:
        ValueError: neither a Discrete space from 0 on nor a bounded Box of shape (d,).
    """
    if isinstance(space, gymnasium.spaces.Discrete) and space.start == 0:
        size = (n, horizon, int(space.n))
        return CategoricalPlans(torch.full(size, 1 / float(space.n), device=device))
    if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1 and space.is_bounded():
        low = torch.as_tensor(space.low, dtype=torch.float32, device=device)
        high = torch.as_tensor(space.high, dtype=torch.float32, device=device)
        mean = ((low + high) / 2).expand(n, horizon, -1)
        return GaussianPlans(mean, ((high - low) / 2).expand(n, horizon, -1), low, high)
    raise ValueError(f"planners act in Discrete(n) or a bounded Box of shape (d,), not in {space}")


def draw_actions(space: gymnasium.Space, parameters: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one action per row from what a policy says.

    Args:
        space: as in `prior_plans`.
        parameters: logits (b, num_actions), or mean and std (b, 2, d).
        generator: on the device of the parameters.

    Returns:
        Actions (b,) int64, or (b, d) float32 inside the box.
    """
    if isinstance(space, gymnasium.spaces.Box):
        mean, std = parameters.unbind(1)
        noise = torch.randn(mean.shape, generator=generator, device=generator.device)
        low, high = (torch.as_tensor(x, device=mean.device) for x in (space.low, space.high))
        return (mean + std * noise).clamp(low, high)
    probabilities = parameters.softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)


def _uniform(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)
