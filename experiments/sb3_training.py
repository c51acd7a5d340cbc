"""Stable-Baselines3's PPO and RecurrentPPO as agents of the main job, trained in the dream."""

from __future__ import annotations

import dataclasses
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from torch import Tensor

from agents.actor_critic import note_of
from agents.features import feature_policy_kwargs, start_from_behaviour
from agents.on_the_way import shaping_of
from agents.sb3 import BatchedVecEnv, save_agent
from experiments.agent_progress import AgentProgress, learn
from experiments.report import write_json
from experiments.run_directory import RunDirectory
from experiments.training_progress import TrainingProgress
from worldsim.contexts import ContextBank
from worldsim.dream import DreamVectorEnv
from worldsim.dreaming import Dream
from worldsim.state import WorldState
from worldsim.world_model import WorldModel

FIRST_TRAINING_SEED = 100_000_000
"""Of dreams to train in, apart from those that policies are judged in."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347).

    What is not given depends on whether the policy improves the model's own behaviour, as PPO's
    does on features, or begins with nothing; the latter's values come second below.
    """

    learning_rate: float | None = None
    """By default 1e-3, or 3e-4."""
    num_steps: int | None = None
    """Steps of every dream between two updates; by default 16, or 64."""
    batch_size: int = 256
    num_epochs: int | None = None
    """By default 6, or 4."""
    gamma: float = 0.98
    gae_lambda: float | None = None
    """By default 0.9, or 0.95."""
    clip_range: float = 0.2
    ent_coef: float | None = None
    """By default 0, or 0.01."""
    vf_coef: float = 0.5

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ValueError(f"ppo.batch_size must be at least 2, got {self.batch_size}")
        for name in ("num_steps", "num_epochs", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"ppo.{name} must be above 0, got {value}")

    def settled(self, improving: bool) -> dict[str, Any]:
        """All settings, with those that were not given."""
        given = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        return dataclasses.asdict(self) | (IMPROVING if improving else FROM_NOTHING) | given


IMPROVING = dict(learning_rate=1e-3, num_steps=16, num_epochs=6, gae_lambda=0.9, ent_coef=0.0)
FROM_NOTHING = dict(learning_rate=3e-4, num_steps=64, num_epochs=4, gae_lambda=0.95, ent_coef=0.01)


LEAST_SIDE = 36
"""Pixels that frames must have in height and width for SB3's network for images."""


def too_small_for_pixels(frame_shape: tuple[int, int, int]) -> str | None:
    """Why SB3's policies cannot act on frames (height, width, channels), if so."""
    height, width, _ = frame_shape
    if min(height, width) >= LEAST_SIDE:
        return None
    return (
        f"frames of {height} x {width} pixels are too small for SB3's network for images, which "
        f"needs {LEAST_SIDE} x {LEAST_SIDE}"
    )


def make_agent(config: Any, env: VecEnv, model: WorldModel) -> OnPolicyAlgorithm:
    """Make the SB3 agent; on features it starts from the behaviour that the model predicts."""
    recurrent = config.agent == "recurrent-ppo"
    kind = "Cnn" if config.obs == "pixels" else "Mlp"
    ppo = config.ppo.settled(improving=config.improves_behaviour)
    num_steps = ppo.pop("num_steps")
    algorithm: type[OnPolicyAlgorithm] = RecurrentPPO if recurrent else PPO
    agent = algorithm(
        f"{kind}{'Lstm' if recurrent else ''}Policy",
        env,
        n_steps=num_steps,
        n_epochs=ppo.pop("num_epochs"),  # type: ignore[call-arg]
        batch_size=min(ppo.pop("batch_size"), num_steps * env.num_envs),  # type: ignore[call-arg]
        policy_kwargs=feature_policy_kwargs(model) if config.improves_behaviour else None,
        seed=config.seed,
        device=config.torch_device,
        **ppo,
    )
    if config.improves_behaviour:
        start_from_behaviour(agent, model, temperature=config.behaviour_temperature)
    return agent


def train_with_sb3(
    run: RunDirectory,
    model: WorldModel,
    bank: ContextBank,
    round_index: int,
    note: Mapping[str, str],
) -> None:
    """Train the run's policy for one round, or the rest of one, and save it.

    Args:
        run: its config says how many dreams, how long they are and how long to train.
        model, bank: what dreams, and where dreams start.
        round_index: from 1.
        note: from `world_model_note`, of the model as it was loaded; goes beside the policy.
    """
    config, path = run.config, run.config.policy_path
    shaping = shaping_of(config.way, model)
    recent: deque[float] = deque(maxlen=320)  # dreamed rewards, which curves are drawn of

    def worth(before: WorldState, dream: Dream) -> Tensor:
        rewards = dream.reward if shaping is None else shaping.sure(dream.reward)
        recent.append(float(rewards.mean()))
        return rewards if shaping is None else shaping.of_dream(before, dream)

    dreams = DreamVectorEnv(
        config.num_envs,
        world_model=model,
        contexts=bank,
        horizon=config.training_horizon,
        obs=config.obs,
        autoreset_mode=AutoresetMode.SAME_STEP,
        num_denoising_steps=config.num_denoising_steps,
        reward_function=worth,
    )
    env = VecMonitor(BatchedVecEnv(dreams))
    agent = make_agent(config, env, model)
    if path.is_file():
        agent = type(agent).load(path, env=env, device=config.torch_device)
        agent.set_random_seed(config.seed + 1000 * round_index + run.get("round_timesteps", 0))
    # Afterwards, for SB3 seeds envs with the agent's own seed, every time the same.
    first_seed = FIRST_TRAINING_SEED + 10_000_000 * config.seed + 1_000_000 * round_index
    env.seed(first_seed + run.get("round_timesteps", 0))
    agent.set_logger(configure(str(run.path / "tensorboard"), ["tensorboard"]))
    first_step = run.get("finished_timesteps", 0)

    def save(seconds: float) -> None:
        # The note first: where the policy is, so is what it is of.
        write_json(note_of(path), note)
        save_agent(agent, path)
        run.keep(round_seconds=seconds, round_timesteps=agent.num_timesteps - first_step)

    with TrainingProgress.of_round(
        run, round_index, save, timesteps=agent.num_timesteps, first_step=first_step
    ) as progress:
        limit = progress.total_timesteps
        if not progress.over:
            learn(
                agent,
                sys.maxsize // 2 if limit is None else limit - agent.num_timesteps,
                AgentProgress(progress, reward_per_step=lambda: float(np.mean(recent))),
            )
