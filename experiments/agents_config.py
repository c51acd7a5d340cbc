"""Agents of the agents benchmark by what they need, and its settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from agents.cloning import CloningConfig
from agents.imagination import ActorCriticConfig
from agents.on_the_way import WayConfig
from agents.planner_search import FAST_PLANNER, PlannerConfig
from agents.rollout import BEHAVIOUR_TEMPERATURE
from agents.scripted import has_scripted_player
from experiments.agents_labels import LABELS
from experiments.platform_settings import chosen_device
from experiments.sb3_training import PPOConfig, too_small_for_pixels
from experiments.settings import refuse_given
from worldsim.world_model_config import WorldModelConfig

DREAM_TRAINED: dict[str, dict[str, Any]] = {
    "ppo_pixels": {"agent": "ppo", "obs": "pixels"},
    "recurrent_ppo_pixels": {"agent": "recurrent-ppo", "obs": "pixels"},
    "ppo_features": {"agent": "ppo", "obs": "features"},
    "actor_critic": {"agent": "actor-critic", "obs": "features"},
    "actor_critic_from_cloning": {"agent": "actor-critic", "obs": "features", "walking": False},
    "actor_critic_cloned": {"agent": "actor-critic", "obs": "features"},
}
"""Agents trained by dream_train, with its options."""
CLONED = ("cloned", "advantage_weighted")
"""Agents that imitate recorded episodes, seeing all that those trained in the dream see."""
FROM_EPISODES = (*CLONED, "actor_critic_cloned")
"""Agents that learn from recorded episodes."""
WALKERS = ("walker", "walker_without_map", "walker_short_memory")
"""Agents that need a world model with a memory of places."""
PLANNERS = {"planner": True, "planner_cloning": False, "planner_actor_critic": True}
"""Agents that plan, and whether the behaviour that their policy is, or started from, is told where
to walk."""
PLANS_WITH = {"planner_actor_critic": "actor_critic"}
"""Planners whose policy is another agent, trained in the dream."""
MEMORY_CUT = {"actor_critic_short_memory": "actor_critic", "walker_short_memory": "walker"}
"""Agents that are others with a shorter memory."""

FROM_BEHAVIOUR = (
    *("behaviour", "ppo_features"),
    *CLONED,
    *("actor_critic", "actor_critic_from_cloning"),
    *WALKERS,
    *PLANNERS,
)
"""Agents that act as, or start from, cloned behaviour at a temperature."""
NOT_BY_DEFAULT = (
    *(*FROM_EPISODES, "planner_cloning", "planner_actor_critic"),
    *("model_free", "walker_short_memory"),
)
"""Agents that need more than others, or tell less."""
SCRIPTED = ("data", "oracle")
"""Agents that see the layout of the real env: dreams are of what they did there."""
REAL_ENV_ONLY = ("random", *SCRIPTED, "model_free")
"""Agents that use no world model."""
NOT_IN_DREAMS = ("walker_without_map", *PLANNERS, *MEMORY_CUT)
"""Agents that need another world model, or too much time, to be judged in dreams."""

JUDGING = ("env", "max_episode_steps", "horizon", "judge_contexts")
"""Settings that have to be the same for all agents in a table, as far as they decide results."""


def trained_agent(agent: str) -> str:
    """The agent whose policy one acts with: its own, or that of another."""
    return (MEMORY_CUT | PLANS_WITH).get(agent, agent)


def deciding_settings(agent: str) -> list[str]:
    """Names of the benchmark's settings that decide the result of an agent."""
    trained = trained_agent(agent)
    names = ["env", "max_episode_steps"]
    names.append("planner_episodes" if agent in PLANNERS else "eval_episodes")
    acts_in_dreams = agent not in (*NOT_IN_DREAMS, *SCRIPTED)
    if agent not in NOT_IN_DREAMS:
        names += ["dream_episodes", "horizon"]
    if acts_in_dreams:
        names.append("judge_contexts")
    if trained in DREAM_TRAINED:
        names.append("contexts")
    if acts_in_dreams or trained in DREAM_TRAINED:
        names.append("num_envs")
    if trained in FROM_BEHAVIOUR:
        names.append("temperature")
    if trained in DREAM_TRAINED:
        names += ["num_contexts", "num_starts", "frames_to_reward", "minutes", "total_timesteps"]
        names += ["way", "training_horizon"]
    if trained.startswith("actor_critic"):
        names.append("actor_critic")
    if "ppo" in trained:
        names.append("ppo")
    if trained in FROM_EPISODES:
        names += ["dataset", "cloning"]
    if agent in MEMORY_CUT:
        names.append("short_memory")
    if agent in PLANNERS:
        names.append("planner")
    if agent == "model_free":
        names += ["real_steps", "num_workers"]
    return names


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkAgentsConfig:
    """Compare agents on one real env."""

    env: str = "memory-maze-9x9"
    world_model: str | None = None
    """Shipped name or checkpoint directory; by default the shipped model of the env's name."""
    contexts: str | None = None
    """Dataset whose stretches the dreams start from; by default those shipped with the model."""
    num_contexts: int = 64
    """Stretches drawn from a dataset to start from."""
    num_starts: int = 256
    """States that dreams start from: of few contexts, several each."""
    frames_to_reward: int | None = None
    """Train from stretches that a reward followed within so many frames, only."""
    judge_contexts: str | None = None
    """Dataset whose stretches the dreams start from in which agents are judged, best one of
    episodes that neither model nor agents learned from; by default the contexts shipped with the
    model."""
    agents: tuple[str, ...] | None = None
    """What to compare; by default all that can be had with this env and world model, but those that
    take the longest ("model_free", which learns on the real env, "planner_cloning",
    "planner_actor_critic" and "walker_short_memory") or learn from a dataset ("cloned",
    "advantage_weighted" and "actor_critic_cloned")."""
    dataset: str | None = None
    """Recorded episodes for those that learn from some."""
    cloning: CloningConfig = dataclasses.field(default_factory=CloningConfig)
    """How they do; "cloned" weighs all actions alike, whatever the temperature of advantages."""
    temperature: float = BEHAVIOUR_TEMPERATURE
    """At which cloned policies (behaviour, cloned, walker, advantage_weighted, those of planners)
    draw their actions, and from which actor_critic, actor_critic_from_cloning and ppo_features
    start; to be chosen on other mazes than they are judged on."""
    actor_critic: ActorCriticConfig = dataclasses.field(default_factory=ActorCriticConfig)
    """How the actor-critic improves in the dream."""
    ppo: PPOConfig = dataclasses.field(default_factory=PPOConfig)
    """How SB3's PPO and RecurrentPPO do."""
    way: WayConfig = dataclasses.field(default_factory=WayConfig)
    """What agents trained in dreams are rewarded for on the way to rewards."""
    training_horizon: int | None = None
    """Steps of a dreamed episode to train on; by default 16 for agents that start from the world
    model's behaviour, which look beyond by their critic, and 64 for others."""
    seeds: tuple[int, ...] = (0, 1, 2)
    minutes: float = 5.0
    """Dream training per agent and seed, where total_timesteps is not given."""
    total_timesteps: int | None = None
    """Dream steps per agent and seed."""
    real_steps: int | None = None
    """Real steps of the model-free agent; by default the frames that the world model learned from,
    one after the other."""
    eval_episodes: int = 20
    """Real episodes per agent and seed."""
    dream_episodes: int = 64
    """Dreamed episodes per agent and seed."""
    horizon: int = 64
    """Steps of a dreamed episode where agents are judged."""
    num_envs: int = 64
    """Dreams side by side."""
    num_workers: int = 5
    """Real envs side by side."""
    max_episode_steps: int | None = None
    """Steps after which real episodes are cut, in place of the env's own limit."""
    short_memory: int = 10
    """Frames that an agent with its memory cut remembers."""
    planner: PlannerConfig = FAST_PLANNER
    planner_episodes: int = 20
    """Real episodes of the planner per seed; each of its decisions costs many dreamed steps."""
    device: str = "auto"
    """Where the world model dreams and observes, and what is trained in its dreams learns; by
    default a GPU where there is one. The model-free agent learns on the CPU."""
    output: Path | None = None
    """Results; by default in the directory "results" of the work."""
    work: Path | None = None
    """Policies and logs; by default runs/agents/<env>."""

    def __post_init__(self) -> None:
        for name in (
            *("num_contexts", "num_starts", "minutes", "total_timesteps", "real_steps"),
            *("eval_episodes", "dream_episodes", "horizon", "num_envs", "short_memory"),
            *("planner_episodes", "max_episode_steps", "training_horizon"),
        ):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        least = 1 if "model_free" in (self.agents or ()) else 0
        if self.num_workers < least:
            raise ValueError(f"num_workers must be at least {least}, got {self.num_workers}")
        if min(self.seeds, default=-1) < 0:
            raise ValueError(f"seeds must be one or more, of at least 0 each, got {self.seeds}")
        if self.contexts is None:
            why = "is of stretches of a dataset: give --contexts"
            refuse_given(self, ("num_contexts",), why)
        self.planner.refuse_given("policy_temperature", instead="--temperature")
        self.planner.refuse_given("walking", instead="--agents planner planner_cloning")
        for name in self.agents or ():
            if name not in LABELS:
                raise ValueError(f"unknown agent {name!r}: choose from {', '.join(LABELS)}")
            if name in FROM_EPISODES and self.dataset is None:
                raise ValueError(f"{name} learns from recorded episodes: give --dataset")

    @property
    def torch_device(self) -> str:
        return chosen_device(self.device)

    @property
    def output_directory(self) -> Path:
        return self.output or self.work_directory / "results"

    @property
    def work_directory(self) -> Path:
        return self.work or Path("runs/agents") / self.env


def obstacle(
    agent: str, config: BenchmarkAgentsConfig, model: WorldModelConfig, world_model: str
) -> str | None:
    """Why an agent cannot be had with an env and a world model, if so.

    Args:
        agent: one of `LABELS`.
        config: names the env.
        model: config of the world model.
        world_model: its name.
    """
    if agent == "oracle" and not config.env.startswith("memory-maze-"):
        return f"no oracle is known for {config.env}"
    if agent == "data" and not has_scripted_player(config.env):
        return f"no scripted player is known for {config.env}"
    if agent in (*WALKERS, "actor_critic_from_cloning") and model.places is None:
        return f"{world_model} has no memory of places"
    if agent == "model_free" or DREAM_TRAINED.get(agent, {}).get("obs") == "pixels":
        if (reason := too_small_for_pixels(model.frame_shape)) is not None:
            return reason
    if not model.draws_map:
        if agent == "walker_without_map":
            return f"{world_model} draws no map"
        if agent in PLANNERS and config.planner.bootstrap == "map":
            return f"{world_model} draws no map to plan by (planner.bootstrap)"
    return None
