"""Who acts best on the real env, and does the dream know it? All agents on equal terms.

    python experiments/benchmark_agents.py
    python experiments/benchmark_agents.py --agents actor_critic ppo_features --seeds 0 1 2
    python experiments/benchmark_agents.py --env memory-maze-7x7 --world-model runs/mm7/checkpoint

Every agent plays the same real episodes from seeds that nothing was trained on. Those trained in
the dream take the same time each, or as many dreamed steps (--total-timesteps), and no real step;
the model-free agent takes as many real steps as the world model was trained on. All that can act in
a dream are judged there too, by dreamed rewards and by the way that they make on the map, to see
whether the dream ranks policies as reality does. Every result is a JSON file in OUTPUT and is kept,
so a run that was stopped goes on, and further agents and seeds add up over calls. At the end the
table and the plots are made from all that OUTPUT holds.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import envs
import worldsim.checkpoint as checkpoint
from agents.actor_critic import ActorCritic, ActorCriticPolicy
from agents.cloning import ReadOuts
from agents.explorers import ORACLE, RandomPolicy
from agents.features import (
    FeaturePolicy,
    ShortMemoryPolicy,
    behaviour_policy,
    load_observer,
    load_policy,
)
from agents.on_the_way import shaping_of
from agents.planner import Planner, bootstrap_of
from agents.rollout import Policy
from agents.scripted import scripted_player
from experiments.actor_critic_training import check_episodes, cloned_agent, read_out_dataset
from experiments.agents_config import (
    CLONED,
    DREAM_TRAINED,
    FROM_EPISODES,
    MEMORY_CUT,
    NOT_BY_DEFAULT,
    NOT_IN_DREAMS,
    PLANNERS,
    PLANS_WITH,
    REAL_ENV_ONLY,
    SCRIPTED,
    BenchmarkAgentsConfig,
    obstacle,
    trained_agent,
)
from experiments.agents_in_dreams import Judged, judge_as_recorded, judge_in_dreams
from experiments.agents_labels import LABELS
from experiments.agents_report import write_report
from experiments.agents_work import (
    check_comparable,
    check_kept,
    check_training,
    check_work,
    read_curve,
    read_lengths,
)
from experiments.command_line import CONTINUES, run_script
from experiments.dream_judging import check_env, play_real_episodes
from experiments.dream_train import main as dream_train
from experiments.dream_train_config import DreamTrainConfig
from experiments.model_free import train_model_free, training_seconds
from experiments.platform_settings import keep_memory
from experiments.playing import JUDGE_SEED, episode_limit, make_real_envs
from experiments.report import provenance, summarise, write_json
from experiments.settings import as_json
from experiments.videos import save_video
from worldsim.contexts import ContextBank, open_contexts
from worldsim.world_model import WorldModel


class Timed:
    """A policy whose choices of actions are timed; in a batch, each takes its share."""

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
        self.name = config.world_model or config.env
        self.model: WorldModel = load_observer(self.name, config.torch_device)
        # What is the model's default is compared with kept results, and noted, as what it is.
        planner = dataclasses.replace(
            config.planner, bootstrap=bootstrap_of(config.planner, self.model)
        )
        config = dataclasses.replace(config, planner=planner)
        self.config = config
        self.weights = checkpoint.fingerprint(self.name)
        possible = [a for a in LABELS if a not in NOT_BY_DEFAULT and self._obstacle(a) is None]
        self.agents = config.agents or tuple(possible)
        self.provenance = provenance()  # of the code that runs, whatever becomes of the files
        self._check_agents()

    @functools.cached_property
    def bank(self) -> ContextBank:
        """Where dreams to judge by start. Of a dataset they are drawn otherwise than those to train
        in; of shipped contexts, they are the same."""
        return open_contexts(
            self.model, self.config.judge_contexts, world_model=self.name, seed=JUDGE_SEED
        )

    def _obstacle(self, agent: str) -> str | None:
        """Why an agent cannot be had with this env and world model, if so."""
        return obstacle(agent, self.config, self.model.config, self.name)

    def _check_agents(self) -> None:
        """Refuse at once what would fail after hours, when its turn comes.

        Raises:
            CheckpointError: the model ships no contexts to judge in.
            FileNotFoundError: there is no such dataset.
            ValueError: the env is not the model's, an agent cannot be had with these two, or a kept
                result is of another model or other settings.
        """
        config = self.config
        if config.judge_contexts is not None:
            check_episodes(self.model.config, config.judge_contexts)
        else:
            checkpoint.load_contexts(self.name)
        check_comparable(config.output_directory, LABELS, config, self.weights)
        for agent in self.agents:
            if (reason := self._obstacle(agent)) is not None:
                raise ValueError(f"{reason}: leave out {agent!r}")
            if agent == "model_free":
                self._real_steps()
            trained = trained_agent(agent)
            if trained in DREAM_TRAINED:
                self._training(trained, seed=0)
                if config.contexts is not None:
                    check_episodes(self.model.config, config.contexts)
            self.check_kept(agent, config)
        check_env(config.env, self.name)

    def check_kept(self, agent: str, config: BenchmarkAgentsConfig) -> None:
        """Refuse kept results of other settings, see `agents_work.check_kept`."""
        frames = self._dataset_frames if agent in FROM_EPISODES else None
        check_kept(config.output_directory, agent, config, self.recorded_steps, frames)

    @functools.cached_property
    def _dataset_frames(self) -> int:
        """Of the recorded episodes, to which others may be added under the same name."""
        assert self.config.dataset is not None
        return check_episodes(self.model.config, self.config.dataset).num_frames

    @functools.cached_property
    def read_outs(self) -> tuple[ReadOuts, float]:
        """Of the recorded episodes, and the seconds that they took."""
        config, began = self.config, time.monotonic()
        assert config.dataset is not None
        data = read_out_dataset(self.model, config.dataset, config.cloning.num_episodes)
        return data, time.monotonic() - began

    def run(self, agent: str, seed: int) -> None:
        """Train one agent with one seed where it is to be trained, judge it, keep the result."""
        config = self.config
        file = self._file(agent, seed)
        if file.is_file():
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
            **self._judge_in_dreams(agent, seed, policy),
            "real_steps": 0,
            "recorded_steps": 0 if agent in REAL_ENV_ONLY else self.recorded_steps,
            "training_minutes": (trained - started) / 60,  # of agents that are trained in one go
            "seconds_per_decision": timed.seconds / timed.decisions,
            "device": config.torch_device,
            **details,
            **({"dataset_frames": self._dataset_frames} if agent in FROM_EPISODES else {}),
            "config": as_json(config),
            **self.provenance,
        }
        write_json(file, result)

    def _file(self, agent: str, seed: int) -> Path:
        """Where a result is kept."""
        return self.config.output_directory / f"{agent}-seed{seed}.json"

    def _make(self, agent: str, seed: int) -> tuple[Policy, dict[str, Any]]:
        """The agent, ready to act on frames, and what is to be noted about it."""
        config, model = self.config, self.model
        if agent == "random":
            return RandomPolicy(model.config.num_actions, seed=seed), {}
        if agent in SCRIPTED:
            return self._scripted(agent, seed), {}
        if agent in MEMORY_CUT:
            whole, details = self._make(MEMORY_CUT[agent], seed)
            assert isinstance(whole, FeaturePolicy)
            policy = ShortMemoryPolicy(model, whole.policy, config.short_memory)
            return policy, details | {"short_memory": config.short_memory}
        if agent in ("behaviour", "walker"):
            return self._behaving(model, seed, walking=agent == "walker")
        if agent == "walker_without_map":
            assert model.config.places is not None
            places = dataclasses.replace(model.config.places, occupancy=None)
            return self._behaving(model.reconfigured(places=places), seed)
        if agent in CLONED:
            temperature = config.temperature
            learned, seconds = self._clone(agent, seed)
            cloned = ActorCriticPolicy(learned, seed=seed, temperature=temperature)
            details = {"temperature": temperature, "training_minutes": seconds / 60}
            return FeaturePolicy(model, cloned), details
        if agent in PLANNERS:
            plan = dataclasses.replace(
                config.planner, walking=PLANNERS[agent], policy_temperature=config.temperature
            )
            logits, minutes, trained_on = None, 0.0, {}
            if agent in PLANS_WITH:
                trained, details = self._make(PLANS_WITH[agent], seed)
                assert isinstance(trained, FeaturePolicy)
                assert isinstance(trained.policy, ActorCriticPolicy)
                logits, minutes = trained.policy.agent.logits, details["training_minutes"]
                trained_on = {"device": details["device"]}
            planner = Planner(model, plan, policy=logits, seed=seed)
            noted = {"planner": dataclasses.asdict(plan), "training_minutes": minutes}
            return planner, noted | trained_on
        if agent == "model_free":
            work = config.work_directory / f"model_free-seed{seed}"
            names = ("env", "max_episode_steps", "num_workers")
            check_work(work, {name: getattr(config, name) for name in names})
            model_free, steps = train_model_free(
                config.env,
                self._real_steps(),
                work,
                seed=seed,
                num_workers=config.num_workers,
                max_episode_steps=config.max_episode_steps,
            )
            return model_free, {
                "real_steps": steps,
                "training_minutes": training_seconds(work) / 60,
                "curve": read_curve(work),
                "curve_steps": read_lengths(work)
                or episode_limit(
                    functools.partial(
                        envs.make, config.env, max_episode_steps=config.max_episode_steps
                    )
                ),
            }
        return self._train_in_dream(agent, seed)

    def _scripted(self, agent: str, seed: int) -> Policy:
        """A player that sees the layout of the real env."""
        return scripted_player(self.config.env, seed, ORACLE if agent == "oracle" else None)

    def _behaving(
        self, model: WorldModel, seed: int, walking: bool = True
    ) -> tuple[Policy, dict[str, Any]]:
        """What a model predicts, acting on frames at the temperature of the config."""
        temperature = self.config.temperature
        policy = behaviour_policy(model, walking=walking, seed=seed, temperature=temperature)
        return policy, {"temperature": temperature}

    def _clone(self, agent: str, seed: int) -> tuple[ActorCritic, float]:
        """Learn from recorded episodes, or take what was learned before; and the seconds of it."""
        work, config = self.config.work_directory / f"{agent}-seed{seed}", self.config
        cloning = config.cloning
        if agent == "cloned":
            cloning = dataclasses.replace(cloning, temperature=math.inf)
        of_episodes = {"dataset": config.dataset, "dataset_frames": self._dataset_frames}
        check_work(work, {"world_model_sha256": self.weights, "cloning": cloning, **of_episodes})
        path = work / "policy.safetensors"
        if not path.is_file():
            data, seconds = self.read_outs
            began = time.monotonic()
            learned = cloned_agent(self.model, data, cloning, seed, shaped=False)
            write_json(work / "seconds.json", seconds + time.monotonic() - began)
            learned.save(path, world_model=self.name)
        return ActorCritic.load(path)[0].to(self.model.device), training_seconds(work)

    def _training(self, agent: str, seed: int) -> DreamTrainConfig:
        """Run of the main job that trains an agent; only its policy is used."""
        config, options = self.config, DREAM_TRAINED[agent]
        if agent in FROM_EPISODES:
            options = options | {"clone": config.dataset, "cloning": config.cloning}
        return DreamTrainConfig(
            env=config.env,
            world_model=self.name,
            contexts=config.contexts,
            num_contexts=config.num_contexts,
            num_starts=config.num_starts,
            frames_to_reward=config.frames_to_reward,
            actor_critic=config.actor_critic,
            ppo=config.ppo,
            way=config.way,
            behaviour_temperature=config.temperature,
            seed=seed,
            minutes=config.minutes,
            total_timesteps=config.total_timesteps,
            num_envs=config.num_envs,
            horizon=config.training_horizon,
            judge=False,
            output=config.work_directory / f"{agent}-seed{seed}",
            device=config.torch_device,
            **options,
        )

    def _train_in_dream(self, agent: str, seed: int) -> tuple[Policy, dict[str, Any]]:
        config, run = self.config, self._training(agent, seed)
        if agent in FROM_EPISODES:
            check_work(run.run_directory, {"dataset_frames": self._dataset_frames})
        dream_train(run)
        progress = json.loads((run.run_directory / "progress.json").read_text())
        last_round = progress["last_round"]
        check_training(run, last_round)
        shaped = shaping_of(config.way, self.model) is not None
        details = {
            "training": run.agent,
            "device": last_round.get("device", config.torch_device),
            "dreamed_steps": last_round["timesteps"],
            "training_minutes": (last_round["seconds"] + progress.get("cloning_seconds", 0)) / 60,
            "curve": read_curve(run.run_directory),
            "shaped_curve": read_curve(run.run_directory, "shaped_return") if shaped else None,
            "curve_steps": read_lengths(run.run_directory) or run.training_horizon,
        }
        return load_policy(run.policy_path, seed=seed, device=config.torch_device), details

    @property
    def recorded_steps(self) -> int | None:
        """Frames that the world model learned from, where it says so."""
        sources = checkpoint.load_metadata(self.name).get("learned_from", {})
        return sum(source["frames"] for source in sources.values()) or None

    def _real_steps(self) -> int:
        """Of the model-free agent: by default one per frame that the world model learned from."""
        given = self.config.real_steps
        steps = self.recorded_steps if given is None else given
        if steps is None:
            raise ValueError(f"{self.name} does not say what it learned from: give real_steps")
        return steps

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
                # Where a decision takes longer than a step of the env, the cores are the policy's.
                threads=torch.get_num_threads() if agent in (*PLANNERS, *MEMORY_CUT) else 1,
            )
        finally:
            batch.close()
        # Of the lowest seed that was judged, whichever call it was in.
        lowest = not any(self._file(agent, s).is_file() for s in range(seed))
        if lowest and results[0].frames is not None:
            video = config.output_directory / "videos" / f"{agent}.mp4"
            save_video(video, results[0].frames[:250])
        return summarise(results)

    def _judge_in_dreams(self, agent: str, seed: int, policy: Policy) -> Judged:
        """What dreams promise; None for those that would take too much time."""
        if agent in NOT_IN_DREAMS:
            return {"dream": None, "dream_way": None}
        if agent in SCRIPTED:
            return judge_as_recorded(
                lambda i: self._scripted(agent, 1000 * seed + i), self.model, self.config, agent
            )
        return judge_in_dreams(policy, self.model, self.bank, self.config, LABELS[agent])


def main(config: BenchmarkAgentsConfig) -> str:
    """Run what is missing; returns the table, which is printed too."""
    keep_memory()
    benchmark = AgentsBenchmark(config)
    config.output_directory.mkdir(parents=True, exist_ok=True)
    # Seed by seed, so that a run that is stopped has compared something.
    for seed in config.seeds:
        for agent in benchmark.agents:
            benchmark.run(agent, seed)
    table = write_report(config.output_directory)
    print(f"\n{table}\n\neverything is in {config.output_directory}")
    return table


if __name__ == "__main__":
    run_script(main, BenchmarkAgentsConfig, __doc__, stopped=CONTINUES)
