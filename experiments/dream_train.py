"""The main job: train a policy inside the dream of a real env, judge it on the real env.

    python experiments/dream_train.py
    python experiments/dream_train.py --agent ppo --total-timesteps 200000 --seed 1
    python experiments/dream_train.py --agent planner
    python experiments/dream_train.py --rounds 3

The policy is trained in the dream only, by PPO or as an imagination actor-critic; a planner, and
the world model's own behaviour, need no training. The policy, the behaviour that it starts from, a
random policy and the policy that recorded the world model's data then play the same episodes of the
real env, from seeds that nothing was trained on. With more rounds, the policy collects new real
episodes, the world model learns from them, and the policy trains on in the new dream. Stopped at
any moment, the same command continues.

The run directory holds results.json, policy.zip (an actor-critic's: policy.safetensors), videos/
and tensorboard/.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

import torch

from agents.cloning import CloningConfig
from agents.explorers import RandomPolicy
from agents.features import FeaturePolicy, behaviour_policy, load_policy
from agents.imagination import ActorCriticConfig
from agents.on_the_way import WayConfig
from agents.planner import Planner
from agents.planner_search import PlannerConfig
from agents.rollout import BEHAVIOUR_TEMPERATURE, Policy
from agents.scripted import has_scripted_player, scripted_player
from experiments.actor_critic_training import train_actor_critic
from experiments.command_line import CONTINUES, run_script
from experiments.dream_judging import (
    check_env,
    evaluate_in_dream,
    evaluate_on_real,
    log_returns,
)
from experiments.improve_world_model import improve_world_model
from experiments.platform_settings import keep_memory
from experiments.report import format_table
from experiments.run_directory import RunDirectory
from experiments.sb3_training import PPOConfig, train_with_sb3
from worldsim.checkpoint import fingerprint, load
from worldsim.contexts import open_contexts
from worldsim.world_model import WorldModel

TRAINERS = {
    "actor-critic": train_actor_critic,
    "ppo": train_with_sb3,
    "recurrent-ppo": train_with_sb3,
}
"""What trains agents in the dream; the others need no training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DreamTrainConfig:
    """Train a policy in the dream and judge it on the real env."""

    env: str = "memory-maze-9x9"
    """Real env that the policy is judged on."""
    world_model: str | None = None
    """Shipped name or checkpoint directory; by default the shipped model of the env's name."""
    contexts: str | None = None
    """Dataset whose stretches the dreams start from; by default those shipped with the model."""
    num_contexts: int = 64
    """Stretches drawn from that dataset, or the collected one of a later round, to start from."""
    context_length: int = 128
    """Real frames in each of them, or as many as half of the episodes have."""
    frames_to_reward: int | None = None
    """Draw only stretches that a reward followed within so many frames."""
    agent: Literal["actor-critic", "ppo", "recurrent-ppo", "planner", "behaviour"] = "actor-critic"
    """The imagination actor-critic, SB3's PPO or RecurrentPPO; or, without any training, a planner
    that looks ahead in the dream, or the world model's own behaviour, which walks to where it
    expects rewards where it remembers places."""
    obs: Literal["pixels", "features"] = "features"
    """What the policy sees: frames, or the world model's memory read-out. On features, PPO starts
    from the world model's own behaviour."""
    behaviour_temperature: float = BEHAVIOUR_TEMPERATURE
    """At which that behaviour draws its actions; below 1 likely ones become likelier, and less of
    the noise in the recordings is left."""
    walking: bool = True
    """Where the world model remembers places, its behaviour walks to where it expects rewards, and
    actor-critic and planner start from that; False takes plain behaviour cloning in its place."""
    total_timesteps: int | None = None
    """Dream steps per round; by default as many as --minutes allow."""
    minutes: float = 5.0
    """Time for dream training per round, where --total-timesteps is not given."""
    num_envs: int = 64
    """Dreams in the batch."""
    num_starts: int = 256
    """States that dreams start from: of few contexts, several each. They are kept in memory, each
    1.5 MiB with the shipped model."""
    horizon: int | None = None
    """Steps of a dreamed episode; by default 64, and 16 where the actor-critic, or PPO on features,
    trains: its critic looks beyond."""
    num_denoising_steps: int | None = None
    """Sampler steps per dreamed frame; by default the model's own."""
    ppo: PPOConfig = dataclasses.field(default_factory=PPOConfig)
    actor_critic: ActorCriticConfig = dataclasses.field(default_factory=ActorCriticConfig)
    way: WayConfig = dataclasses.field(default_factory=WayConfig)
    """What training is rewarded for on the way to rewards, where the world model draws a map; with
    --way.progress 0 --way.touch 0 for dreamed rewards alone. It rests on rewards of 1."""
    planner: PlannerConfig = dataclasses.field(
        default_factory=lambda: PlannerConfig(horizon=10, num_candidates=8, replan_every=5)
    )
    clone: str | None = None
    """Dataset from which the actor-critic first learns which recorded actions turned out well; by
    default it starts from the behaviour that the world model has learned to predict."""
    cloning: CloningConfig = dataclasses.field(default_factory=CloningConfig)
    judge: bool = True
    """Judge the policies, in the dream and on the real env; without it they are only trained."""
    eval_episodes: int = 10
    """Real episodes per policy."""
    dream_eval_episodes: int = 16
    """Dreamed episodes per policy."""
    max_episode_steps: int | None = None
    """Cut real episodes shorter than they are."""
    num_workers: int = 5
    """Real envs that run side by side, one process each. The policy acts on all of them at once, so
    some more than there are cores is best."""
    rounds: int = 1
    """Times to train in the dream and judge; from the second on, collect and learn before it."""
    collect_episodes: int = 20
    """Real episodes that the policy collects before each later round."""
    world_model_steps: int = 1000
    """Training steps of the world model on them."""
    dataset: str | None = None
    """Dataset that the world model goes on learning from besides, in later rounds."""
    seed: int = 0
    output: Path | None = None
    """Run directory; by default runs/dream_train/<env>-<agent>-<obs>-seed<seed>."""
    compile: bool = False
    """Compile the world model (torch.compile): a minute or so at the start, then faster dreams."""
    cuda_graphs: bool = True
    """On CUDA, dream every step as one graph; it is faster and takes more memory."""
    device: str = "auto"
    """Where the world model and the policy run."""

    def __post_init__(self) -> None:
        for name in (
            *("num_envs", "horizon", "eval_episodes", "dream_eval_episodes", "rounds"),
            *("num_contexts", "num_starts", "context_length", "collect_episodes"),
        ):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.total_timesteps is not None and self.total_timesteps < 1:
            raise ValueError(f"total_timesteps must be at least 1, got {self.total_timesteps}")
        if self.minutes <= 0:
            raise ValueError(f"minutes must be positive, got {self.minutes}")
        if self.behaviour_temperature <= 0:
            raise ValueError(
                f"behaviour_temperature must be above 0, got {self.behaviour_temperature}"
            )
        num_steps = self.actor_critic.num_steps
        if self.agent == "actor-critic" and self.training_horizon % num_steps:
            raise ValueError(
                f"horizon {self.training_horizon} is not a multiple of the {num_steps} steps of "
                "actor_critic.num_steps"
            )
        if self.agent == "actor-critic" and self.obs != "features":
            raise ValueError("the actor-critic acts on features: give --obs features")
        if self.frames_to_reward is not None and self.contexts is None and self.rounds == 1:
            raise ValueError(
                "frames_to_reward chooses among the stretches of a dataset: give --contexts"
            )
        if not self.walking and self.agent in ("ppo", "recurrent-ppo"):
            raise ValueError(
                f"{self.agent} starts from walking, if anything: leave --no-walking out"
            )
        self.planner.refuse_given("policy_temperature", instead="--behaviour-temperature")
        self.planner.refuse_given("walking", instead="--no-walking")
        if self.dataset is not None and self.rounds == 1:
            raise ValueError(
                "dataset is what the world model goes on learning from in later rounds: give "
                "--rounds, or --contexts to dream from its stretches"
            )
        if self.clone is not None and self.agent != "actor-critic":
            raise ValueError(f"clone is for the actor-critic, not for {self.agent}")

    @property
    def training_horizon(self) -> int:
        """Steps of a dreamed episode to train on."""
        return self.horizon or (16 if self.improves_behaviour else 64)

    @property
    def improves_behaviour(self) -> bool:
        """Whether training starts from the model's own behaviour, not from nothing."""
        return self.obs == "features" and self.agent in ("actor-critic", "ppo")

    @property
    def judging_horizon(self) -> int:
        """Steps of a dreamed episode to judge by."""
        return self.horizon or 64

    @property
    def run_directory(self) -> Path:
        name = f"{self.env}-{self.agent}-{self.obs}-seed{self.seed}"
        return self.output or Path("runs/dream_train") / name

    @property
    def policy_path(self) -> Path:
        suffix = "safetensors" if self.agent == "actor-critic" else "zip"
        return self.run_directory / f"policy.{suffix}"

    @property
    def torch_device(self) -> str:
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"


# Apart from the seeds of the shipped model's training data (0 and up), of validation (1,000,000 and
# up) and of evaluation (2,000,000 and up).
FIRST_COLLECTION_SEED = 500_000

# Changing these does not make another run of it, only a longer one, or the same one elsewhere.
FREE_TO_CHANGE = (
    "total_timesteps",
    "minutes",
    "rounds",
    "judge",
    "output",
    "compile",
    "cuda_graphs",
    "num_workers",
    "device",
)

# Settings of other agents than the run's.
OF_OTHERS = {
    "actor-critic": ("ppo", "planner"),
    "ppo": ("actor_critic", "cloning", "planner"),
    "recurrent-ppo": ("actor_critic", "cloning", "planner"),
    "planner": ("ppo", "actor_critic", "cloning", "way"),
    "behaviour": ("ppo", "actor_critic", "cloning", "way", "planner"),
}


def own_behaviour(config: DreamTrainConfig, model: WorldModel) -> FeaturePolicy:
    """What a world model does itself; it walks to where it expects rewards if it can."""
    return behaviour_policy(
        model,
        walking=config.walking and model.places is not None,
        seed=config.seed,
        temperature=config.behaviour_temperature,
    )


def finished_policy(config: DreamTrainConfig, model: WorldModel) -> Policy:
    """The agent as it is after a round, acting on frames."""
    if config.agent == "planner":
        return Planner(
            model,
            dataclasses.replace(
                config.planner,
                policy_temperature=config.behaviour_temperature,
                walking=config.walking,
            ),
            seed=config.seed,
            num_denoising_steps=config.num_denoising_steps,
        )
    if config.agent == "behaviour":
        return own_behaviour(config, model)
    return load_policy(config.policy_path, seed=config.seed, device=config.torch_device)


def take_up_again(run: RunDirectory) -> None:
    """Go on with the last round where it is to be longer, or judged; what judged it is dropped."""
    config, last = run.config, run.get("last_round", None)
    if last is None or run.get("finished_rounds", 0) != config.rounds:
        return
    if config.agent not in TRAINERS:
        longer = False
    elif config.total_timesteps is not None:
        longer = config.total_timesteps > last["timesteps"]
    else:
        longer = 60 * config.minutes > last["seconds"]
    if longer or (config.judge and f"round {config.rounds}" not in run.evaluations):
        names = (f"round {config.rounds}", f"round {config.rounds} in dream")
        run.keep(
            finished_rounds=config.rounds - 1,
            finished_timesteps=run.get("finished_timesteps", 0) - last["timesteps"],
            round_seconds=last["seconds"],
            round_timesteps=last["timesteps"],
            last_round=None,
            evaluations={k: v for k, v in run.evaluations.items() if k not in names},
        )


def check_weights(run: RunDirectory, name: str, world_model: str) -> None:
    """Refuse to go on with a round in the dream of another world model."""
    weights, kept = fingerprint(world_model), run.get("world_models", {})
    if kept.setdefault(name, weights) != weights:
        raise ValueError(
            f"{run.path} began {name} with another {world_model} than there is now: choose another "
            "--output"
        )
    run.keep(world_models=kept)


def main(config: DreamTrainConfig) -> dict[str, Any]:
    """Do, or finish, a run; print its table and return what results.json holds."""
    start = time.monotonic()
    keep_memory()
    run = RunDirectory(config.run_directory, config, (*FREE_TO_CHANGE, *OF_OTHERS[config.agent]))
    device = config.torch_device
    world_model, contexts = config.world_model or config.env, config.contexts
    collected: list[str] = []
    if config.judge or config.rounds > 1:
        check_env(config.env, world_model)
    take_up_again(run)
    for round_index in range(1, config.rounds + 1):
        if round_index > 1:
            world_model, contexts = improve_world_model(
                env=config.env,
                policy=config.policy_path if config.agent in TRAINERS else None,
                temperature=config.behaviour_temperature,
                walking=config.walking,
                world_model=world_model,
                output=run.path / f"round-{round_index}",
                episodes=config.collect_episodes,
                steps=config.world_model_steps,
                first_seed=FIRST_COLLECTION_SEED + 1000 * round_index,
                num_workers=config.num_workers,
                max_episode_steps=config.max_episode_steps,
                datasets=[*collected, *([config.dataset] if config.dataset is not None else [])],
                device=device,
            )
            collected.append(contexts)
        check_weights(run, f"round {round_index}", world_model)
        if round_index <= run.get("finished_rounds", 0):
            continue
        model = load(world_model, device=device)
        bank = open_contexts(
            model,
            contexts,
            world_model=world_model,
            num_contexts=config.num_contexts,
            context_length=config.context_length,
            frames_to_reward=config.frames_to_reward,
            num_starts=config.num_starts,
            seed=config.seed,
        )
        if config.cuda_graphs:
            model.use_cuda_graphs(if_possible=True)
        if config.compile:
            model.compile_network()
        random = RandomPolicy(model.config.num_actions, seed=config.seed)
        baselines: dict[str, tuple[Policy, str]] = {"random": (random, "random")}
        if has_scripted_player(config.env):
            player = scripted_player(config.env, config.seed)
            baselines["data"] = (player, "scripted, as in the data")
        if config.improves_behaviour:
            own = "the behaviour that it starts from" if config.clone is None else "own behaviour"
            baselines["start"] = (own_behaviour(config, model), own)
        if config.judge:
            evaluate_on_real(run, baselines)
            evaluate_in_dream(run, model, bank, "random in dream", random, "random", obs="pixels")

        name, label = f"round {round_index}", f"{config.agent}, round {round_index}"
        if config.agent in TRAINERS:
            label = f"trained in the dream, round {round_index}"
            TRAINERS[config.agent](run, model, bank, round_index, world_model)
        if config.judge:
            policy = finished_policy(config, model)
            # The dream shows the features itself, with all that the context has put into them.
            inner = policy.policy if isinstance(policy, FeaturePolicy) else policy
            if config.agent != "planner":  # it would dream of dreams
                obs: Literal["pixels", "features"] = "features" if inner is not policy else "pixels"
                evaluate_in_dream(run, model, bank, f"{name} in dream", inner, label, obs=obs)
            evaluate_on_real(run, {name: (policy, label)})
        run.keep(
            finished_rounds=round_index,
            finished_timesteps=run.get("finished_timesteps", 0) + run.get("round_timesteps", 0),
            last_round={
                "seconds": run.get("round_seconds", 0.0),
                "timesteps": run.get("round_timesteps", 0),
            },
            round_seconds=0.0,
            round_timesteps=0,
        )
        log_returns(run, round_index)
        run.write_results()
    results = run.write_results()
    run.writer.close()
    rows = [(e["policy"], e["where"], e) for e in results["evaluations"].values()]
    if rows:
        print(f"\n{format_table(sorted(rows, key=lambda row: row[1]))}\n")
    print(f"{(time.monotonic() - start) / 60:.1f} minutes; everything is in {run.path}")
    return results


if __name__ == "__main__":
    run_script(main, DreamTrainConfig, __doc__, stopped=CONTINUES)
