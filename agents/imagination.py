"""Improving an actor-critic in imagination.

    model, bank = open_world("memory-maze-9x9", None)
    agent = ActorCritic.from_behaviour(model, returns=False)
    trainer = ImaginationTrainer(
        agent, DreamModel(model), starts_of(bank), shaping=WayReward(model), horizon=16
    )
    for _ in range(200):
        metrics = trainer.update()
    policy = FeaturePolicy(model, ActorCriticPolicy(agent))  # acts on real frames

Lambda-returns are bootstrapped by a slowly moving critic and advantages scaled by the spread of
returns (DreamerV3, Hafner et al. 2023, arXiv 2301.04104); leaving the cloned behaviour is penalised
(Dreamer 4, Hafner et al. 2025, arXiv 2509.24527); and because dreams cost more than gradients, each
is used for a few clipped passes (PPO, Schulman et al. 2017, arXiv 1707.06347). Steps can be worth
something beside dreamed rewards (`agents.on_the_way`).

Against exploiting the model: no dream runs longer than its horizon; small rewards count as none;
and, if wanted, dreams end where they are doubtful (as in MOReL, Kidambi et al. 2020, arXiv
2005.05951, but without its penalty), or doubt costs something (as in MOPO, Yu et al. 2020, arXiv
2005.13239). There is one model and no ensemble: a step is doubtful where two dreams of it, from
different noise, lie far apart. `experiments/evaluate_doubt.py` measures whether such steps are
wrong more often, `experiments/benchmark_guards.py` which guards help.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from agents.actor_critic import ActorCritic
from agents.planner_search import PlanningModel
from worldsim.contexts import ContextBank
from worldsim.state import WorldState

# Draws n states to begin dreams from, on the generator's device.
Starts: TypeAlias = Callable[[int, torch.Generator], Any]
# What steps are worth beside dreamed rewards, from the states before and after: (n,).
Shaping: TypeAlias = Callable[[Any, Any], Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActorCriticConfig:
    """How to improve in imagination."""

    num_steps: int = 16
    """Steps of every dream between two updates."""
    learning_rate: float = 1e-3
    max_grad_norm: float = 1.0
    num_epochs: int = 6
    """Passes over the steps of a batch of dreams."""
    batch_size: int = 256
    """Steps that are learned from at once, drawn at random without repetition."""
    clip_range: float = 0.2
    gamma: float = 0.98
    return_lambda: float = 0.9
    ent_coef: float = 0.0
    prior_coef: float = 0.01
    """Weight of KL(policy || behaviour)."""
    vf_coef: float = 0.5
    target_decay: float = 0.98
    """Share of the target critic that stays at each update."""
    scale_decay: float = 0.99
    """The same of the spread of returns."""
    min_return_scale: float | None = None
    """Spread below which advantages are not enlarged any more: small returns may be noise. By
    default 1, and 0.1 where progress on the way is rewarded."""
    min_reward: float | None = None
    """Dreamed rewards smaller than this count as none. They are expected rewards: where a dream is
    blurred, a policy could collect small shares of a reward wherever its target may be. By default
    0, and 0.5 where progress on the way is rewarded, which rests on rewards of 1."""
    max_doubt: float | None = None
    """Dreams end with a step that is doubtful: what two dreams of it tell (of places, where the
    model remembers some, else all features) differs by more than this, as a root mean square. Every
    step is dreamed twice for that, which is not counted."""
    doubt_coef: float = 0.0
    """What such a difference of 1 costs. It, too, has every step dreamed twice."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("gamma", "return_lambda", "target_decay", "scale_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.max_doubt is not None and not self.max_doubt > 0:
            raise ValueError(f"max_doubt must be above 0, got {self.max_doubt}")
        if not self.doubt_coef >= 0:
            raise ValueError(f"doubt_coef must be at least 0, got {self.doubt_coef}")

    @property
    def doubts(self) -> bool:
        """Whether steps are dreamed twice, to see how far the two lie apart."""
        return self.max_doubt is not None or self.doubt_coef > 0


def lambda_returns(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    gamma: float,
    return_lambda: float,
    truncated: Tensor | None = None,
) -> Tensor:
    """Mixtures of n-step returns with weights that fall by lambda (Sutton & Barto, 12.1).

    Args:
        rewards: (t, b) of each step. terminated: (t, b) bool, whether the step ended the episode.
        values: (t, b) of the state that the step led to.
        gamma, return_lambda: discount, and the weights' decay.
        truncated: (t, b) bool, whether what follows the step is left out: the value of the state
            that it led to stands for it.

    Returns:
        (t, b) returns from before each step. What follows an end does not enter what precedes it.
    """
    returns, following = torch.empty_like(rewards), values[-1]
    for t in reversed(range(len(rewards))):
        future = (1 - return_lambda) * values[t] + return_lambda * following
        if truncated is not None:
            future = torch.where(truncated[t], values[t], future)
        following = rewards[t] + gamma * future * ~terminated[t]
        returns[t] = following
    return returns


def distance(one: Tensor, other: Tensor) -> Tensor:
    """Root mean square of how features (..., d) differ: (...)."""
    return (one - other).square().mean(-1).sqrt()


def starts_of(bank: ContextBank) -> Starts:
    """Begin dreams at the end of contexts drawn uniformly from a bank."""

    def starts(n: int, generator: torch.Generator) -> WorldState:
        rows = torch.randint(len(bank), (n,), generator=generator, device=generator.device)
        return bank.states[rows]

    return starts


def _with_prefix(values: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: t for key, t in values.items() if key.startswith(prefix)}


class DreamSegment(NamedTuple):
    """A stretch of dreams under the policy."""

    features: Tensor  # (t + 1, b, d)
    actions: Tensor  # (t, b) int64
    rewards: Tensor  # (t, b), with what steps are worth beside, less what doubt costs
    shaped: Tensor  # (t, b), with what steps are worth beside
    dreamed: Tensor  # (t, b) rewards of the dream alone
    terminated: Tensor  # (t, b) bool
    alive: Tensor  # (t, b) bool, false after an end, and after a doubtful step
    truncated: Tensor  # (t, b) bool, whether the step was doubtful
    doubt: Tensor  # (t, b) as features of two dreams differ, 0 where none is asked for
    ended: Tensor  # (b,) bool, whether the dream does not go on after the segment


class DreamSteps(NamedTuple):
    """Steps of dreams to learn from, in any order."""

    features: Tensor  # (n, d)
    actions: Tensor  # (n,) int64
    returns: Tensor  # (n,) lambda-returns
    advantages: Tensor  # (n,) scaled
    old: Tensor  # (n,) log probability of the action when it was taken
    prior: Tensor  # (n, num_actions) log probabilities of the behaviour


class ImaginationTrainer:
    """Improves an agent on dreams.

    Args:
        agent: improved in place; what it does now is the behaviour that it is kept near.
        model: what dreams; `agents.planner.DreamModel` for a world model.
        starts: where dreams begin, `starts_of(bank)`.
        config: how.
        shaping: what steps are worth beside dreamed rewards, `agents.on_the_way.WayReward`.
        num_envs: dreams side by side.
        horizon: steps after which a dream starts again, a multiple of the config's `num_steps`.
        doubted: features in which two dreams of a step are compared, where steps are doubted.
        seed: decides everything that is random.

    Raises:
        ValueError: the horizon is not a multiple of `num_steps`.
    """

    def __init__(
        self,
        agent: ActorCritic,
        model: PlanningModel,
        starts: Starts,
        config: ActorCriticConfig | None = None,
        *,
        shaping: Shaping | None = None,
        num_envs: int = 32,
        horizon: int = 64,
        doubted: slice = slice(None),
        seed: int = 0,
    ) -> None:
        self.config = config = config or ActorCriticConfig()
        if horizon < 1 or horizon % config.num_steps:
            raise ValueError(
                f"horizon {horizon} is not a multiple of the {config.num_steps} steps between two "
                "updates"
            )
        self.agent, self.model, self.starts = agent, model, starts
        self.shaping, self.doubted = shaping, doubted
        smallest, spread = (0.0, 1.0) if shaping is None else (0.5, 0.1)
        self.min_reward = smallest if config.min_reward is None else config.min_reward
        given = config.min_return_scale
        self.min_return_scale = spread if given is None else given
        self.num_envs, self.horizon, self.seed = num_envs, horizon, seed
        self.prior = copy.deepcopy(agent.policy_head).requires_grad_(False)
        self.target = copy.deepcopy(agent.critic).requires_grad_(False)
        self.optimizer = torch.optim.Adam(agent.parameters(), lr=config.learning_rate, eps=1e-5)
        self.device = next(agent.parameters()).device
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.return_scale: float | None = None
        self.num_dream_steps = 0
        self.state = starts(num_envs, self.generator)
        # Dreams begin at different ages, so that they do not all start again at once.
        ages = torch.arange(num_envs) % (horizon // config.num_steps)
        self.age = config.num_steps * ages.to(self.device)

    def update(self) -> dict[str, float]:
        """Dream a segment, learn from it, and say how it went."""
        config, dream = self.config, self._dream()
        with torch.no_grad():
            logits = self.agent.logits(dream.features[:-1])
            old = logits.log_softmax(-1).gather(-1, dream.actions[..., None]).squeeze(-1)
            prior = self.prior(dream.features[:-1]).log_softmax(-1)
            values = self.target(dream.features)
            returns = lambda_returns(
                *(dream.rewards, values[1:], dream.terminated),
                *(config.gamma, config.return_lambda, dream.truncated),
            )
            advantages = returns - values[:-1]
            # Centred: a critic that is too hopeful everywhere would put every action off.
            advantages = advantages - advantages[dream.alive].mean()
            advantages = advantages / self._scale(returns[dream.alive])
        steps = DreamSteps(
            *(x[dream.alive] for x in (dream.features[:-1], dream.actions, returns, advantages)),
            *(x[dream.alive] for x in (old, prior)),
        )
        logged = []
        for _ in range(config.num_epochs):
            order = torch.randperm(len(steps.actions), generator=self.generator, device=self.device)
            for rows in order.split(config.batch_size):
                loss, metrics = self._loss(DreamSteps(*(x[rows] for x in steps)))
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.agent.parameters(), config.max_grad_norm)
                self.optimizer.step()
                logged.append(metrics)
        with torch.no_grad():
            pairs = zip(self.target.parameters(), self.agent.critic.parameters(), strict=True)
            for slow, fast in pairs:
                slow.lerp_(fast, 1 - config.target_decay)
        return {
            **{name: float(torch.stack([m[name] for m in logged]).mean()) for name in logged[0]},
            "reward_per_step": float(dream.dreamed[dream.alive].mean()),
            "shaped_reward_per_step": float(dream.shaped[dream.alive].mean()),
            "return": float(returns[dream.alive].mean()),
            "return_scale": self.return_scale or 0.0,
            "dream_steps": float(self.num_dream_steps),
            "ended_per_step": float(dream.ended.sum() / dream.alive.sum()),
            "doubt": float(dream.doubt[dream.alive].mean()),
            "learned_share": float(dream.alive.float().mean()),
        }

    def state_dict(self) -> dict[str, Tensor]:
        """What training goes on from, for a safetensors file; the dreams are not kept."""
        values = {
            f"{name}.{key}": t.detach().cpu().contiguous()
            for name, module in self._modules().items()
            for key, t in module.state_dict().items()
        }
        for index, slots in self.optimizer.state_dict()["state"].items():
            values |= {f"optimizer.{index}.{key}": t.cpu() for key, t in slots.items()}
        scale = float("nan") if self.return_scale is None else self.return_scale
        values["return_scale"] = torch.tensor(scale, dtype=torch.float64)
        values["num_dream_steps"] = torch.tensor(self.num_dream_steps)
        return values

    def load_state_dict(self, values: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave, in new dreams.

        Raises:
            ValueError: it is of another agent.
        """
        try:
            for name, module in self._modules().items():
                module.load_state_dict(_with_prefix(values, f"{name}."))
            optimizer = self.optimizer.state_dict()
            parameters = range(len(optimizer["param_groups"][0]["params"]))
            slots = {i: _with_prefix(values, f"optimizer.{i}.") for i in parameters}
            optimizer["state"] = {i: kept for i, kept in slots.items() if kept}
            self.optimizer.load_state_dict(optimizer)
            scale = float(values["return_scale"])
            self.num_dream_steps = int(values["num_dream_steps"])
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"this is the training of another agent: {error}") from error
        self.return_scale = None if np.isnan(scale) else scale
        self.generator.manual_seed(self.seed + self.num_dream_steps)

    def _modules(self) -> dict[str, nn.Module]:
        return {"agent": self.agent, "prior": self.prior, "target": self.target}

    def _loss(self, steps: DreamSteps) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        log_policy = self.agent.logits(steps.features).log_softmax(-1)
        chosen = log_policy.gather(-1, steps.actions[:, None]).squeeze(-1)
        ratio = (chosen - steps.old).exp()
        clipped = ratio.clamp(1 - config.clip_range, 1 + config.clip_range)
        policy_loss = -torch.minimum(ratio * steps.advantages, clipped * steps.advantages).mean()
        entropy = -(log_policy.exp() * log_policy).sum(-1).mean()
        divergence = (log_policy.exp() * (log_policy - steps.prior)).sum(-1).mean()
        value_loss = (self.agent.value(steps.features) - steps.returns).square().mean()
        loss = (
            policy_loss
            - config.ent_coef * entropy
            + config.prior_coef * divergence
            + config.vf_coef * value_loss
        )
        metrics = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "prior_divergence": divergence,
            # How far this batch has moved the policy, as PPO's users know it.
            "approx_kl": (ratio - 1 - ratio.log()).mean(),
            "clip_fraction": ((ratio - 1).abs() > config.clip_range).float().mean(),
        }
        return loss, {name: t.detach() for name, t in metrics.items()}

    @torch.no_grad()
    def _dream(self) -> DreamSegment:
        """Go on with the dreams for a segment; those that ended, or are too old, start again."""
        config = self.config
        features, actions, shaped, dreamed, terminated, alive = [], [], [], [], [], []
        doubts, none = [], torch.zeros(self.num_envs, device=self.device)
        limit = float("inf") if config.max_doubt is None else config.max_doubt
        over = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        state = self.state
        for _ in range(config.num_steps):
            probabilities = self.agent.logits(state.features).softmax(-1)
            action = torch.multinomial(probabilities, 1, generator=self.generator).squeeze(-1)
            features.append(state.features)
            actions.append(action)
            alive.append(~over)
            noise = self.model.draw_noise(self.num_envs, self.generator)
            before = state
            state, reward, ended = self.model.step(state, action, noise)
            doubts.append(self._doubt(before, action, state) if config.doubts else none)
            reward = torch.where(reward.abs() < self.min_reward, 0.0, reward)
            dreamed.append(reward)
            if self.shaping is not None:
                reward = reward + self.shaping(before, state)
            shaped.append(reward)
            terminated.append(ended)
            over = over | ended | (doubts[-1] > limit)
        features.append(state.features)
        self.num_dream_steps += self.num_envs * config.num_steps
        self.age += config.num_steps
        over = over | (self.age >= self.horizon)
        if over.any():
            state = self.starts(self.num_envs, self.generator).where(over, state)
            self.age = torch.where(over, 0, self.age)
        self.state = state
        worth, doubt = torch.stack(shaped), torch.stack(doubts)
        return DreamSegment(
            features=torch.stack(features),
            actions=torch.stack(actions),
            rewards=worth - config.doubt_coef * doubt,
            shaped=worth,
            dreamed=torch.stack(dreamed),
            terminated=torch.stack(terminated),
            alive=torch.stack(alive),
            truncated=doubt > limit,
            doubt=doubt,
            ended=over,
        )

    def _doubt(self, before: Any, actions: Tensor, after: Any) -> Tensor:
        """How far another dream of the same steps lies from this one: (n,)."""
        noise = self.model.draw_noise(self.num_envs, self.generator)
        other = self.model.step(before, actions, noise).state
        return distance(other.features[:, self.doubted], after.features[:, self.doubted])

    def _scale(self, returns: Tensor) -> float:
        """What advantages are divided by: the spread of returns, without the outermost tenth."""
        low, high = torch.quantile(returns, torch.tensor([0.05, 0.95], device=returns.device))
        spread = float(high - low)
        decay = self.config.scale_decay if self.return_scale is not None else 0.0
        self.return_scale = decay * (self.return_scale or 0.0) + (1 - decay) * spread
        return max(self.min_return_scale, self.return_scale)
