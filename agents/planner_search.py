"""Planning by forked states: imagine many plans at once, keep what promises most.

Every method is the same loop over candidate plans and differs only in where they come from and how
their returns are used:

    random   shooting: the best of plans drawn from the prior
    cem      cross-entropy method: refit the distribution to the elites, keep these in the pool
             (Rubinstein 1999; PETS, Chua et al. 2018, arXiv 1805.12114; iCEM, arXiv 2008.06389)
    mppi     refit it to all plans, weighted by exp(return / temperature)
             (Williams et al. 2017, arXiv 1707.02342; with refitted spread as in TD-MPC, Hansen et
             al. 2022, arXiv 2203.04955)
    policy   the best of plans drawn from a policy that sees what is imagined
    rollout  every first action, then the policy: act by policy(a) exp(mean return(a) / temperature)
             (rollout policies, Tesauro & Galperin 1996, with a penalty on leaving the policy)

All candidates of a decision are imagined in the same random futures ("scenarios"; PEGASUS, Ng &
Jordan 2000, arXiv 1301.3878): otherwise the best of many is the luckiest.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import gymnasium
import torch
from einops import rearrange, repeat
from torch import Tensor

from agents.planner_distributions import Plans, draw_actions, prior_plans
from agents.rollout import BEHAVIOUR_TEMPERATURE


class PlanningState(Protocol):
    """A batch of n imagined situations; `WorldState` is one."""

    @property
    def features(self) -> Tensor:
        """What policy and value see, (n, d) float32."""
        ...

    def repeat(self, n: int) -> Any:
        """Fork every situation n times: i becomes rows i*n to (i+1)*n - 1."""
        ...


class Step(NamedTuple):
    """One imagined step of a batch."""

    state: Any
    reward: Tensor  # (b,) float32
    terminated: Tensor  # (b,) bool


class PlanningModel(Protocol):
    """What a planner imagines with: a world model, or a problem with a known answer."""

    @property
    def action_space(self) -> gymnasium.Space:
        """Discrete(n), or a bounded Box of shape (d,)."""
        ...

    def draw_noise(self, n: int, generator: torch.Generator) -> Tensor:
        """All that is random in one step of n futures: (n, ...)."""
        ...

    def step(self, state: Any, actions: Tensor, noise: Tensor) -> Step:
        """Imagine one step; leaves `state` unchanged. The same noise gives the same step."""
        ...


FeatureFunction: TypeAlias = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannerConfig:
    """How a planner spends its imagination."""

    method: Literal["random", "cem", "mppi", "policy", "rollout"] = "policy"
    horizon: int = 12
    """Steps imagined ahead."""
    num_candidates: int = 32
    """Plans imagined side by side, per env."""
    num_iterations: int | None = None
    """Rounds of candidates in a decision; by default one, or as many as `max_dream_steps` and
    `max_seconds` allow where one of them is given."""
    num_particles: int = 1
    """Random futures that every plan is imagined in; its return is their mean."""
    gamma: float = 0.98
    elite_share: float = 0.1
    """Share of the candidates that "cem" refits to."""
    temperature: float = 0.05
    """Of "mppi" and "rollout", in units of return: a difference worth a factor e. Far below the
    spread of returns, "mppi" follows a single sample and settles early."""
    smoothing: float = 0.1
    """Share of the old distribution that stays when it is refitted."""
    exploration: float = 0.02
    """Share of probability spread over all actions; for Box, least std in half boxes."""
    persistence: float = 0.0
    """How much a sampled step follows the last one, from 0 to 1."""
    walking: bool = True
    """Of a model that remembers places, the policy is its behaviour told where to go; False takes
    plain behaviour cloning."""
    policy_temperature: float = BEHAVIOUR_TEMPERATURE
    """At which the model's policy draws actions."""
    policy_share: float = 0.0
    """Share of the first round that "random", "cem" and "mppi" draw from the policy."""
    warm_start: float | None = 0.5
    """Begin from what is left of the last plan; its distribution counts for this share, the prior
    for the rest. None: plan anew."""
    replan_every: int = 1
    """Steps of a plan that are taken before the next decision."""
    bootstrap: Literal["return", "map", "none"] | None = None
    """What is counted beyond the horizon: the "return" that the recorded behaviour would make from
    there, how soon the "map" says that the next reward can be reached, or nothing ("none"). By
    default the map of a model that draws one, and of others the return."""
    max_dream_steps: int | None = None
    """Imagined steps that a decision may cost, per env."""
    max_seconds: float | None = None
    """Seconds that a decision may take: no round of candidates begins that would go beyond; the
    first always runs."""

    def __post_init__(self) -> None:
        counts = ("horizon", "num_candidates", "num_iterations", "num_particles", "replan_every")
        for name in counts:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_seconds is not None and self.max_seconds <= 0:
            raise ValueError(f"max_seconds must be above 0, got {self.max_seconds}")
        for name in ("gamma", "smoothing", "exploration", "persistence", "policy_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.warm_start is not None and not 0 <= self.warm_start <= 1:
            raise ValueError(f"warm_start must lie in [0, 1] or be None, got {self.warm_start}")
        if not 0 < self.elite_share <= 1:
            raise ValueError(f"elite_share must lie in (0, 1], got {self.elite_share}")
        for name in ("temperature", "policy_temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.replan_every > self.horizon:
            raise ValueError(
                f"replan_every={self.replan_every} is longer than the horizon {self.horizon}"
            )
        least = self.horizon * self.num_particles
        if self.max_dream_steps is not None and self.max_dream_steps < least:
            raise ValueError(
                f"max_dream_steps={self.max_dream_steps} does not pay for one plan of horizon "
                f"{self.horizon} in {self.num_particles} futures, which takes {least}"
            )

    def refuse_given(self, name: str, *, instead: str) -> None:
        """Raise a ValueError where a setting was given that something else decides."""
        if getattr(self, name) != getattr(PlannerConfig(), name):
            raise ValueError(f"planner.{name} is not taken from there: give {instead}")


FAST_PLANNER = PlannerConfig(horizon=10, num_candidates=8, replan_every=5)
"""What experiments plan with by default: cheap enough to judge by whole episodes on a CPU."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A decision for n envs."""

    actions: Tensor
    """(n, horizon) int64 or (n, horizon, d) float32: what to do."""
    returns: Tensor
    """(n,) float32: the imagined return; for "mppi" and "rollout" the mean that it stands for."""
    distribution: Plans
    """What the next decision may begin from."""
    candidates: Tensor
    """(n, c, horizon[, d]): plans of the last pool, best first."""
    candidate_returns: Tensor
    """(n, c)."""
    rounds: tuple[Tensor, ...]
    """Returns (n, c_i) of the candidates of every round."""
    noise: tuple[Tensor, ...]
    """The scenarios: per step (n * num_particles, ...)."""
    dream_steps: int
    """Imagined steps that it cost, per env."""


class Search:
    """Plans in imagination.

    Args:
        model: what to imagine with.
        config: how.
        policy: features (b, d) to logits (b, num_actions), or for Box to mean and std (b, 2, d).
        value: features (b, d) to the return beyond the horizon (b,); None: 0.
        clock: seconds, for `max_seconds`.

    Raises:
        ValueError: the method needs a policy, or other actions than the model has.
    """

    def __init__(
        self,
        model: PlanningModel,
        config: PlannerConfig,
        *,
        policy: FeatureFunction | None = None,
        value: FeatureFunction | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if policy is None and (config.method in ("policy", "rollout") or config.policy_share):
            raise ValueError(
                f"method {config.method!r} with policy_share={config.policy_share} needs a policy"
            )
        discrete = isinstance(model.action_space, gymnasium.spaces.Discrete)
        if config.method == "rollout" and not discrete:
            raise ValueError(f"method 'rollout' needs discrete actions, not {model.action_space}")
        self.model, self.config = model, config
        self.policy, self.value, self.clock = policy, value, clock

    def prior(self, n: int, device: torch.device) -> Plans:
        """The distribution that planning anew begins from."""
        return prior_plans(self.model.action_space, n, self.config.horizon, device)

    @torch.no_grad()
    def plan(
        self,
        state: PlanningState,
        generator: torch.Generator,
        *,
        distribution: Plans | None = None,
        first: Tensor | None = None,
        value: Callable[[Any], Tensor] | None = None,
        share: float = 1.0,
    ) -> Plan:
        """Decide for the n envs of a state, which stays as it is.

        Args:
            state: where they are.
            generator: on the state's device; decides scenarios and candidates.
            distribution: to begin from; None: the prior.
            first: (n, horizon[, d]) a plan that is certainly among the candidates, where these are
                several.
            value: instead of the search's own, the return beyond the horizon (b,) of imagined
                states, b = n * candidates * particles, those of each env side by side.
            share: of the time that a decision may take.
        """
        config, start = self.config, self.clock()
        if value is None and self.value is not None:
            value = functools.partial(_value_of_features, self.value)
        n = len(state.features)
        plans = distribution or self.prior(n, state.features.device)
        noise = tuple(
            self.model.draw_noise(n * config.num_particles, generator)
            for _ in range(config.horizon)
        )
        candidates, returns = None, torch.zeros(n, 0)
        rounds: list[Tensor] = []
        weights, cost = returns, 0
        budget = config.max_seconds is not None or config.max_dream_steps is not None
        limit = config.num_iterations or (None if budget else 1)
        if config.num_candidates == limit == 1 or self._affordable(0) == 1:
            first = None  # nothing would be compared with it, for good
        for index in itertools.count() if limit is None else range(limit):
            num = config.num_candidates
            if (affordable := self._affordable(cost)) is not None:
                num = min(num, affordable)
            average = (self.clock() - start) / max(index, 1)
            allowed = None if config.max_seconds is None else share * config.max_seconds
            late = allowed is not None and (index + 1) * average > allowed
            if num < 1 or (index and late):
                break
            if config.method == "mppi" and index and num < config.num_candidates:
                break  # it refits to the last round alone, which is not to be of a few plans
            drawn = plans.sample(num, config.persistence, generator)
            fixed = self._fixed_steps(state, num, index, drawn, first)
            drawn, made, steps = self._imagine(state, drawn, fixed, noise, generator, value)
            cost += steps
            rounds.append(made)
            if candidates is None or config.method == "mppi":
                candidates, returns = drawn, made
            else:
                candidates = torch.cat([candidates, drawn], dim=1)
                returns = torch.cat([returns, made], dim=1)
            # Ties keep their order: the warm start comes first, then the earliest.
            order = returns.argsort(dim=1, descending=True, stable=True)
            keep = config.num_candidates if config.method != "rollout" else order.shape[1]
            candidates, returns = (
                _take(candidates, order[:, :keep]),
                _take(returns, order[:, :keep]),
            )
            if config.method in ("cem", "mppi"):
                weights = self._weights(returns)
                plans = plans.refit(
                    candidates,
                    weights,
                    smoothing=config.smoothing,
                    exploration=config.exploration,
                )
        assert candidates is not None
        chosen, expected = candidates[:, 0], returns[:, 0]
        if config.method == "mppi":
            chosen, expected = plans.mode(), (weights * returns).sum(1)
        elif config.method == "rollout":
            chosen, expected = self._improve(state, candidates, returns, generator)
        return Plan(chosen, expected, plans, candidates, returns, tuple(rounds), noise, cost)

    def _affordable(self, cost: int) -> int | None:
        """Plans that the budget in steps allows after a cost; None where there is none."""
        config = self.config
        if config.max_dream_steps is None:
            return None
        return (config.max_dream_steps - cost) // (config.horizon * config.num_particles)

    def _fixed_steps(
        self, state: PlanningState, num: int, index: int, drawn: Tensor, first: Tensor | None
    ) -> Tensor:
        """How many steps of each candidate stand before the policy takes over: (num,).

        Writes the plans that are not drawn, which are the warm start and every first action, the
        likeliest first, into `drawn` (n, num, horizon[, d]).
        """
        config = self.config
        fixed = torch.full((num,), config.horizon)
        if config.method == "rollout":
            assert self.policy is not None
            likeliest = self.policy(state.features).argsort(dim=1, descending=True, stable=True)
            rank = torch.arange(num) + index * config.num_candidates
            drawn[:, :, 0] = likeliest[:, rank.to(drawn.device) % likeliest.shape[1]]
            fixed[:] = 1
            return fixed
        if config.method == "policy":
            fixed[:] = 0
        elif index == 0 and config.policy_share:
            fixed[num - round(config.policy_share * num) :] = 0
        if index == 0 and first is not None:
            drawn[:, 0] = first
            fixed[0] = config.horizon
        return fixed

    def _imagine(
        self,
        state: PlanningState,
        plans: Tensor,
        fixed: Tensor,
        noise: tuple[Tensor, ...],
        generator: torch.Generator,
        value: Callable[[Any], Tensor] | None,
    ) -> tuple[Tensor, Tensor, int]:
        """Imagine candidates (n, c, horizon[, d]) in all scenarios.

        Returns:
            The plans with the policy's choices filled in, their returns (n, c), and the steps
            imagined per env.
        """
        n, c = plans.shape[:2]
        p = self.config.num_particles
        rows, plans = state.repeat(c * p), plans.clone()
        device = plans.device
        total, discount = torch.zeros(n * c * p, device=device), 1.0
        alive = torch.ones(n * c * p, dtype=torch.bool, device=device)
        steps = 0
        for t, scenario in enumerate(noise):
            by_policy = (fixed <= t).to(device)
            if by_policy.any():
                assert self.policy is not None
                # One future decides for all: a plan is one list of actions.
                features = rearrange(rows.features, "(n c p) d -> n c p d", n=n, c=c)[:, by_policy]
                says = self.policy(features[:, :, 0].flatten(0, 1))
                draws = draw_actions(self.model.action_space, says, generator)
                plans[:, by_policy, t] = draws.unflatten(0, (n, -1)).to(plans.dtype)
            actions = plans[:, :, t].flatten(0, 1).repeat_interleave(p, dim=0)
            step = self.model.step(
                rows, actions, repeat(scenario, "(n p) ... -> (n c p) ...", n=n, c=c)
            )
            rows, steps = step.state, steps + c * p
            total += discount * alive * step.reward
            discount *= self.config.gamma
            alive &= ~step.terminated
            # Where the end that was imagined does not come, the policy's plans go on.
            if not alive.any() and bool((fixed >= len(noise)).all()):
                break
        if value is not None and alive.any():
            total += discount * alive * value(rows)
        return plans, rearrange(total, "(n c p) -> n c p", n=n, c=c).mean(-1), steps

    def _weights(self, returns: Tensor) -> Tensor:
        """How much each plan of a sorted pool counts when refitting: (n, c), sums to 1."""
        if self.config.method == "mppi":
            return (returns / self.config.temperature).softmax(dim=1)
        num_elites = min(
            max(2, round(self.config.elite_share * self.config.num_candidates)), returns.shape[1]
        )
        weights = torch.zeros_like(returns)
        weights[:, :num_elites] = 1 / num_elites
        return weights

    def _improve(
        self, state: PlanningState, candidates: Tensor, returns: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw the first action from the improved policy; go on with its best candidate."""
        assert self.policy is not None
        logits = self.policy(state.features)
        starts = torch.nn.functional.one_hot(candidates[:, :, 0], logits.shape[1]).bool()
        tried = starts.sum(1)
        means = (starts * returns[..., None]).sum(1) / tried.clamp(min=1)
        improved = logits.log_softmax(-1) + means / self.config.temperature
        improved = improved.masked_fill(tried == 0, -torch.inf)
        action = draw_actions(self.model.action_space, improved, generator)
        best = (candidates[:, :, 0] == action[:, None]).int().argmax(dim=1, keepdim=True)
        return _take(candidates, best)[:, 0], means.gather(1, action[:, None])[:, 0]


def _value_of_features(value: FeatureFunction, state: PlanningState) -> Tensor:
    return value(state.features)


def _take(values: Tensor, order: Tensor) -> Tensor:
    """Rows of every env: values (n, c, ...), order (n, k) to (n, k, ...)."""
    return values[torch.arange(len(values), device=values.device)[:, None], order]
