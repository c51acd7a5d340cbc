"""Acting by planning: observe every real frame, fork the memory, imagine, choose.

    model = worldsim.load("memory-maze-9x9")
    planner = Planner(model, PlannerConfig(method="rollout", horizon=12, num_candidates=48))
    state, episode_start = None, np.array([True])
    action, state = planner.act(observation[None], state, episode_start)

`Planner` is a policy like any other (see `agents.rollout.Policy`); the methods are in
`agents.planner_search`, which plans in anything that can imagine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from torch import Tensor

from agents.features import observe_frames
from agents.map_value import MapValue
from agents.planner_distributions import Plans
from agents.planner_search import FeatureFunction, Plan, PlannerConfig, Search, Step
from agents.planner_trace import PlanTrace
from worldsim.state import WorldState
from worldsim.world_model import WorldModel

__all__ = ["DreamModel", "PlanMemory", "Planner", "PlannerConfig", "bootstrap_of"]


class DreamModel:
    """A world model to plan in; see `agents.planner_search.PlanningModel`.

    Args:
        model: the world model.
        num_denoising_steps: of each imagined frame; None: the model's own.
    """

    def __init__(self, model: WorldModel, num_denoising_steps: int | None = None) -> None:
        self.model = model.eval()
        self.num_denoising_steps = num_denoising_steps
        self.action_space = gymnasium.spaces.Discrete(model.config.num_actions)

    def draw_noise(self, n: int, generator: torch.Generator) -> Tensor:
        """See `PlanningModel`."""
        return torch.randn(n, *self.model.noise_shape, generator=generator, device=generator.device)

    def step(self, state: WorldState, actions: Tensor, noise: Tensor) -> Step:
        """See `PlanningModel`; frames are not decoded."""
        dream = self.model.imagine(
            state,
            actions,
            noise=noise,
            num_denoising_steps=self.num_denoising_steps,
            decode=False,
        )
        return Step(dream.state, dream.reward, dream.terminated)

    def show(
        self, state: WorldState, plans: Tensor, noise: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Imagine plans (n, t) once more, to look at.

        Args:
            state: where they begin, n rows.
            plans: (n, t) int64.
            noise: of each step, (n, ...); that of the search gives what it imagined.

        Returns:
            Frames (n, t, h, w, c) uint8 and rewards (n, t).
        """
        frames, rewards = [], []
        for actions, scenario in zip(plans.unbind(1), noise, strict=True):
            dream = self.model.imagine(
                state, actions, noise=scenario, num_denoising_steps=self.num_denoising_steps
            )
            state = dream.state
            frames.append(dream.frame)
            rewards.append(dream.reward)
        return torch.stack(frames, 1), torch.stack(rewards, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanMemory:
    """What a `Planner` remembers between two steps of n envs."""

    world: WorldState
    actions: np.ndarray
    """(n,) int64, chosen last."""
    rest: Tensor
    """(n, horizon): what is left of the plans."""
    distribution: Plans
    """What is left of their distributions."""
    age: np.ndarray
    """(n,) int64: steps taken since the decision."""
    num_steps: int
    """Calls of `act` so far; seeds the next decision."""


class Planner:
    """Plans in a world model, in all envs of a batch at once.

    Args:
        model: the world model that observes and imagines.
        config: how to plan.
        policy: features (b, d) to logits (b, num_actions); None: the behaviour that the model has
            learned to predict, as the config says.
        value: features (b, d) to the return beyond the horizon (b,); None: what the config's
            `bootstrap` says.
        seed: decides every plan, together with what was observed.
        num_denoising_steps: of each imagined frame; None: the model's own.
        on_plan: called with a trace of every decision; making traces costs some imagination.
        num_shown: plans whose frames are in a trace.

    Raises:
        ValueError: the config does not fit the model.
    """

    def __init__(
        self,
        model: WorldModel,
        config: PlannerConfig | None = None,
        *,
        policy: FeatureFunction | None = None,
        value: FeatureFunction | None = None,
        seed: int = 0,
        num_denoising_steps: int | None = None,
        on_plan: Callable[[PlanTrace], None] | None = None,
        num_shown: int = 4,
    ) -> None:
        self.model = model
        self.config = config or PlannerConfig()
        self.dream = DreamModel(model, num_denoising_steps)
        bootstrap = bootstrap_of(self.config, model)
        by_map = value is None and bootstrap == "map"
        self.map_value = MapValue(model, self.config.gamma) if by_map else None
        if value is None and bootstrap == "return":
            value = model.predict_value
        self.search = Search(self.dream, self.config, policy=policy or self._behave, value=value)
        self.seed = seed
        self.on_plan = on_plan
        self.num_shown = num_shown

    def _behave(self, features: Tensor) -> Tensor:
        """Logits (b, num_actions) of the model's behaviour, by features (b, d)."""
        logits = self.model.predict_policy(features, self.config.walking)
        return logits / self.config.policy_temperature

    @torch.no_grad()
    def act(
        self,
        observation: np.ndarray,
        state: PlanMemory | None,
        episode_start: np.ndarray,
        infos: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[np.ndarray, PlanMemory]:
        """Choose one action per env from frames (n, h, w, c) uint8; see `agents.rollout.Policy`."""
        n, device = len(observation), self.model.device
        fresh = np.asarray(episode_start, bool)
        prior = self.search.prior(n, device)
        if state is None:
            fresh = np.ones(n, bool)
            blank = torch.zeros(n, self.config.horizon, dtype=torch.int64, device=device)
            state = PlanMemory(
                world=self.model.initial_state(n),
                actions=np.zeros(n, np.int64),
                rest=blank,
                distribution=prior,
                age=np.zeros(n, np.int64),
                num_steps=0,
            )
        world = observe_frames(self.model, state.world, state.actions, observation, fresh)
        due = fresh | (state.age >= self.config.replan_every)
        plans, distribution = state.rest, state.distribution
        if due.any():
            generator = torch.Generator(device).manual_seed(_mix(self.seed, state.num_steps))
            # Envs that start know no plan to begin from, so they are asked apart.
            groups = [np.flatnonzero(due & fresh), np.flatnonzero(due & ~fresh)]
            groups = [rows for rows in groups if len(rows)]
            for rows in groups:
                index = torch.as_tensor(rows, device=device)
                warm = self.config.warm_start is not None and not fresh[rows[0]]
                plan = self.search.plan(
                    world[index],
                    generator,
                    distribution=state.distribution[index] if warm else None,
                    first=state.rest[index] if warm else None,
                    value=None
                    if self.map_value is None
                    else self.map_value.seen_from(world[index]),
                    share=1 / len(groups),
                )
                plans = plans.index_copy(0, index, plan.actions)
                distribution = distribution.put(index, plan.distribution)
                if self.on_plan is not None:
                    self._trace(world[index], observation[rows], rows, plan, state.num_steps)
        chosen = plans[:, 0].cpu().numpy()
        age = np.where(due, 1, state.age + 1)
        # Mixed with the prior once, before the next decision, however many steps lie between.
        before = torch.as_tensor(age >= self.config.replan_every, device=device)
        trust = torch.where(before, self.config.warm_start or 0.0, 1.0)[:, None, None]
        return chosen, PlanMemory(
            world=world,
            actions=chosen,
            rest=torch.cat([plans[:, 1:], plans[:, -1:]], dim=1),
            distribution=distribution.shift(prior, trust),
            age=age,
            num_steps=state.num_steps + 1,
        )

    def _trace(
        self, world: WorldState, frames: np.ndarray, envs: np.ndarray, plan: Plan, step: int
    ) -> None:
        """Imagine the chosen plan and its best rivals again, in the first future, and report."""
        assert self.on_plan is not None
        particles = self.config.num_particles
        for row, env in enumerate(envs):
            rivals = plan.candidates[row]
            differs = (rivals != plan.actions[row]).any(1)
            shown = torch.cat([plan.actions[row : row + 1], rivals[differs][: self.num_shown - 1]])
            scenario = [x[row * particles].expand(len(shown), *x.shape[1:]) for x in plan.noise]
            imagined, rewards = self.dream.show(world[row].repeat(len(shown)), shown, scenario)
            self.on_plan(
                PlanTrace(
                    env=int(env),
                    step=step,
                    frame=frames[row],
                    plans=shown.cpu().numpy(),
                    frames=imagined.cpu().numpy(),
                    rewards=rewards.cpu().numpy(),
                    rounds=[r[row].cpu().numpy() for r in plan.rounds],
                    expected_return=float(plan.returns[row]),
                    dream_steps=plan.dream_steps,
                )
            )


def bootstrap_of(config: PlannerConfig, model: WorldModel) -> Literal["return", "map", "none"]:
    """What counts beyond the horizon in a model: what the config says, or by default what is best.

    Args:
        config, model: of a planner.
    """
    return config.bootstrap or ("return" if model.occupancy is None else "map")


def _mix(seed: int, step: int) -> int:
    """One seed for every decision of a run."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)
