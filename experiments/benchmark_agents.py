"""Who acts best on the real env, and does the dream know it? All agents on equal terms.

    python experiments/benchmark_agents.py
    python experiments/benchmark_agents.py --agents actor_critic ppo_features --seeds 0 1 2
    python experiments/benchmark_agents.py --env memory-maze-7x7 --world-model runs/mm7/checkpoint

Every agent plays the same real episodes from seeds that nothing was trained on. Those trained in
the dream take the same time each and no real step; the model-free agent takes as many real steps as
the world model was trained on. All that can act in a dream are judged there too, to see whether the
dream ranks policies as reality does. Every result is a JSON file in OUTPUT and is kept, so a run
that was stopped goes on, and further agents and seeds add up over calls. At the end the table and
the plots are made from all that OUTPUT holds.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import worldsim.checkpoint as checkpoint
from agents.actor_critic import ActorCritic, ActorCriticPolicy
from agents.cloning import CloningConfig, ReadOuts
from agents.explorers import ORACLE, RandomPolicy
from agents.features import (
    FeaturePolicy,
    ShortMemoryPolicy,
    behaviour_policy,
    load_policy,
)
from agents.imagination import ActorCriticConfig
from agents.planner import Planner, PlannerConfig
from agents.rollout import Policy
from agents.scripted import has_scripted_player, scripted_player
from experiments.actor_critic_training import clone_and_report, read_out_dataset
from experiments.agents_report import LABELS, write_report
from experiments.command_line import CONTINUES, run_script
from experiments.dream_judging import play_dreams, play_real_episodes
from experiments.dream_train import DreamTrainConfig
from experiments.dream_train import main as dream_train
from experiments.evaluate import make_real_envs
from experiments.model_free import train_model_free
from experiments.platform_settings import keep_memory
from experiments.report import provenance, summarise, write_json
from experiments.videos import save_video
from worldsim.contexts import ContextBank, open_contexts
from worldsim.world_model import WorldModel

DREAM_TRAINED: dict[str, dict[str, Any]] = {
    "ppo_pixels": {"algorithm": "ppo", "obs": "pixels"},
    "recurrent_ppo_pixels": {"algorithm": "recurrent_ppo", "obs": "pixels"},
    "ppo_features": {"algorithm": "ppo", "obs": "features"},
    "actor_critic": {"algorithm": "actor_critic", "obs": "features"},
    "actor_critic_cloned": {"algorithm": "actor_critic", "obs": "features"},
}
"""Agents trained by dream_train, with its options."""
FROM_EPISODES = ("advantage_weighted", "actor_critic_cloned")
"""Agents that learn from recorded episodes."""
WALKERS = ("walker", "walker_without_map", "walker_short_memory")
"""Agents that need a world model with a memory of places."""
PLANNERS = {"planner": True, "planner_cloning": False}
"""Agents that plan, and whether their policy is told where to walk."""
MEMORY_CUT = {"actor_critic_short_memory": "actor_critic", "walker_short_memory": "walker"}
"""Agents that are others with a shorter memory."""


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
    num_starts: int = 64
    """States that dreams start from: of few contexts, several each."""
    frames_to_reward: int | None = None
    """Train from stretches that a reward followed within so many frames, only."""
    agents: tuple[str, ...] = tuple(
        name
        for name in LABELS
        if name not in (*FROM_EPISODES, *WALKERS, "planner_cloning", "model_free", "oracle")
    )
    """What to compare; "model_free" learns on the real env and takes the longest,
    "advantage_weighted" and "actor_critic_cloned" learn from a dataset, those named "walker"
    need a world model with a memory of places, and the "oracle" needs a Memory Maze."""
    dataset: str | None = None
    """Recorded episodes for those that learn from some."""
    cloning: CloningConfig = dataclasses.field(default_factory=CloningConfig)
    """How they do."""
    temperature: float = 1.0
    """At which cloned policies (behaviour, walker, advantage_weighted, those of planners) draw
    their actions; to be chosen on other mazes than they are judged on."""
    actor_critic: ActorCriticConfig = dataclasses.field(default_factory=ActorCriticConfig)
    """How the actor-critic improves in the dream."""
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
    num_envs: int = 32
    """Dreams side by side."""
    num_workers: int = 5
    """Real envs side by side."""
    max_episode_steps: int | None = None
    """Cut real episodes shorter than they are."""
    short_memory: int = 10
    """Frames that an agent with its memory cut remembers."""
    planner: PlannerConfig = dataclasses.field(
        default_factory=lambda: PlannerConfig(method="rollout", horizon=12, num_candidates=16)
    )
    planner_episodes: int = 5
    """Real episodes of the planner per seed; each of its decisions costs many dreamed steps."""
    output: Path | None = None
    """Results; by default results/agents/<env>."""
    work: Path | None = None
    """Policies and logs; by default runs/agents/<env>."""

    def __post_init__(self) -> None:
        for name in self.agents:
            if name not in LABELS:
                raise ValueError(f"unknown agent {name!r}: choose from {', '.join(LABELS)}")
            if name in FROM_EPISODES and self.dataset is None:
                raise ValueError(f"{name} learns from recorded episodes: give --dataset")

    @property
    def output_directory(self) -> Path:
        return self.output or Path("results/agents") / self.env

    @property
    def work_directory(self) -> Path:
        return self.work or Path("runs/agents") / self.env


class Timed:
    """A policy whose decisions are timed; in a batch, each takes its share."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.seconds, self.decisions = 0.0, 0

    def act(self, observation: Any, *rest: Any) -> tuple[np.ndarray, Any]:
        """What the policy does."""
        started = time.perf_counter()
        result = self.policy.act(observation, *rest)
        self.seconds += time.perf_counter() - started
        self.decisions += len(observation)
        return result


class AgentsBenchmark:
    """The state of one call: the world model and where its dreams start."""

    def __init__(self, config: BenchmarkAgentsConfig) -> None:
        self.config = config
        self.name = config.world_model or config.env
        self.model: WorldModel = checkpoint.load(self.name)
        self.weights = checkpoint.fingerprint(self.name)
        self.bank: ContextBank = open_contexts(
            self.model, config.contexts, world_model=self.name, seed=0
        )

    @functools.cached_property
    def read_outs(self) -> ReadOuts:
        """Of the recorded episodes."""
        config = self.config
        assert config.dataset is not None
        return read_out_dataset(self.model, config.dataset, config.cloning.num_episodes)

    def run(self, agent: str, seed: int) -> None:
        """Train one agent with one seed where it is to be trained, judge it, keep the result."""
        config = self.config
        file = config.output_directory / f"{agent}-seed{seed}.json"
        if file.is_file():
            if json.loads(file.read_text()).get("world_model_sha256") != self.weights:
                raise ValueError(
                    f"{file} was made with another {self.name} than there is now: choose another "
                    "--output and --work, or move it away"
                )
            return
        started = time.monotonic()
        policy, details = self._make(agent, seed)
        trained = time.monotonic()
        episodes = config.planner_episodes if agent in PLANNERS else config.eval_episodes
        timed = Timed(policy)
        real = self._judge_on_real(agent, seed, timed, episodes)
        result = {
            "agent": agent,
            "seed": seed,
            "world_model_sha256": self.weights,
            "real": real,
            "dream": self._judge_in_dream(agent, policy),
            "real_steps": 0,
            "training_minutes": (trained - started) / 60,
            "seconds_per_decision": timed.seconds / timed.decisions,
            **details,
            "config": json.loads(json.dumps(dataclasses.asdict(config), default=str)),
            **provenance(),
        }
        write_json(file, result)

    def _make(self, agent: str, seed: int) -> tuple[Policy, dict[str, Any]]:
        """The agent, ready to act on frames, and what is to be noted about it."""
        config, model = self.config, self.model
        if agent == "random":
            return RandomPolicy(model.config.num_actions, seed=seed), {}
        if agent == "oracle":
            if not config.env.startswith("memory-maze-"):
                raise ValueError(f"no oracle is known for {config.env}: leave out 'oracle'")
            return scripted_player(config.env, seed, ORACLE), {}
        if agent == "data":
            if not has_scripted_player(config.env):
                raise ValueError(f"no scripted player is known for {config.env}: leave out 'data'")
            return scripted_player(config.env, seed), {}
        if agent in MEMORY_CUT:
            whole, details = self._make(MEMORY_CUT[agent], seed)
            assert isinstance(whole, FeaturePolicy)
            policy = ShortMemoryPolicy(model, whole.policy, config.short_memory)
            return policy, details | {"short_memory": config.short_memory}
        if agent in ("behaviour", "walker"):
            if agent == "walker" and model.places is None:
                raise ValueError(f"{self.name} has no memory of places: leave out 'walker'")
            return self._behaving(model, seed, walking=agent == "walker")
        if agent == "walker_without_map":
            if model.config.places is None or model.config.places.occupancy is None:
                raise ValueError(f"{self.name} draws no map: leave out {agent!r}")
            places = dataclasses.replace(model.config.places, occupancy=None)
            return self._behaving(model.reconfigured(places=places), seed)
        if agent == "advantage_weighted":
            temperature = config.temperature
            cloned = ActorCriticPolicy(self._clone(seed), seed=seed, temperature=temperature)
            return FeaturePolicy(model, cloned), {"temperature": temperature}
        if agent in PLANNERS:
            plan = dataclasses.replace(
                config.planner, walking=PLANNERS[agent], policy_temperature=config.temperature
            )
            return Planner(model, plan, seed=seed), {"planner": dataclasses.asdict(plan)}
        if agent == "model_free":
            work = config.work_directory / f"model_free-seed{seed}"
            model_free = train_model_free(
                config.env,
                self._real_steps(),
                work,
                seed=seed,
                num_workers=config.num_workers,
                max_episode_steps=config.max_episode_steps,
            )
            return model_free, {"real_steps": self._real_steps(), "curve": read_curve(work)}
        return self._train_in_dream(agent, seed)

    def _behaving(
        self, model: WorldModel, seed: int, walking: bool = True
    ) -> tuple[Policy, dict[str, Any]]:
        """What a model predicts, acting on frames at the temperature of the config."""
        temperature = self.config.temperature
        policy = behaviour_policy(model, walking=walking, seed=seed, temperature=temperature)
        return policy, {"temperature": temperature}

    def _clone(self, seed: int) -> ActorCritic:
        """Learn from recorded episodes, or take what was learned before."""
        path = self.config.work_directory / f"advantage_weighted-seed{seed}" / "policy.safetensors"
        if not path.is_file():
            agent = ActorCritic.from_behaviour(self.model, told_places=False)
            clone_and_report(agent, self.read_outs, self.config.cloning, seed)
            agent.save(path, world_model=self.name)
        return ActorCritic.load(path)[0]

    def _train_in_dream(self, agent: str, seed: int) -> tuple[Policy, dict[str, Any]]:
        """Train by the main job, or go on with what it has left; only its policy is used."""
        config = self.config
        run = DreamTrainConfig(
            env=config.env,
            world_model=self.name,
            contexts=config.contexts,
            num_contexts=config.num_contexts,
            num_starts=config.num_starts,
            frames_to_reward=config.frames_to_reward,
            actor_critic=config.actor_critic,
            seed=seed,
            minutes=config.minutes,
            total_timesteps=config.total_timesteps,
            num_envs=config.num_envs,
            judge=False,
            output=config.work_directory / f"{agent}-seed{seed}",
            **DREAM_TRAINED[agent],
        )
        if agent == "actor_critic_cloned" and not run.policy_path.is_file():
            self._clone(seed).save(run.policy_path, world_model=self.name)
        dream_train(run)
        details = {"training": run.algorithm, "curve": read_curve(run.run_directory)}
        return load_policy(run.policy_path), details

    def _real_steps(self) -> int:
        """Of the model-free agent: by default one per frame that the world model learned from."""
        if self.config.real_steps is not None:
            return self.config.real_steps
        metadata = checkpoint.load_metadata(self.name)
        if "learned_from" not in metadata:
            raise ValueError(f"{self.name} does not say what it learned from: give real_steps")
        return sum(source["frames"] for source in metadata["learned_from"].values())

    def _judge_on_real(
        self, agent: str, seed: int, policy: Policy, num_episodes: int
    ) -> dict[str, Any]:
        config = self.config
        workers = min(config.num_workers, num_episodes)
        batch, limit = make_real_envs(config.env, workers, config.max_episode_steps)
        try:
            results = play_real_episodes(
                batch,
                limit,
                policy,
                num_episodes,
                label=f"{LABELS[agent]}, seed {seed}, on {config.env}",
                threads=torch.get_num_threads() if agent in PLANNERS else 1,
            )
        finally:
            batch.close()
        if seed == config.seeds[0] and results[0].frames is not None:
            video = config.output_directory / "videos" / f"{agent}.mp4"
            save_video(video, results[0].frames[:250])
        return summarise(results)

    def _judge_in_dream(self, agent: str, policy: Policy) -> dict[str, Any] | None:
        """Dreamed return; None for those that need the real env or too much time."""
        config = self.config
        if agent in ("data", "oracle", "walker_without_map", *PLANNERS, *MEMORY_CUT):
            return None
        in_features = isinstance(policy, FeaturePolicy)
        results = play_dreams(
            self.model,
            self.bank,
            policy.policy if isinstance(policy, FeaturePolicy) else policy,
            config.dream_episodes,
            num_envs=config.num_envs,
            horizon=config.horizon,
            obs="features" if in_features else "pixels",
            label=LABELS[agent],
        )
        return summarise(results)


def read_curve(directory: Path, tag: str = "dream/episodic_return") -> list[list[float]]:
    """[step, return] from the TensorBoard logs of a run, thinned to at most 200 points."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points: dict[int, float] = {}
    for file in sorted(directory.rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(file))
        events.Reload()
        if tag in events.Tags()["scalars"]:
            points |= {e.step: float(e.value) for e in events.Scalars(tag)}
    steps = sorted(points)
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(200, len(steps))).astype(int))
    return [[steps[i], points[steps[i]]] for i in chosen]


def main(config: BenchmarkAgentsConfig) -> str:
    """Run what is missing; returns the table, which is printed too."""
    keep_memory()
    benchmark = AgentsBenchmark(config)
    config.output_directory.mkdir(parents=True, exist_ok=True)
    # Seed by seed, so that a run that is stopped has compared something.
    for seed in config.seeds:
        for agent in config.agents:
            benchmark.run(agent, seed)
    table = write_report(config.output_directory)
    print(f"\n{table}\n\neverything is in {config.output_directory}")
    return table


if __name__ == "__main__":
    run_script(main, BenchmarkAgentsConfig, __doc__, stopped=CONTINUES)
