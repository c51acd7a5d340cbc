"""Stable-Baselines3's PPO and RecurrentPPO as agents of the main job, trained in the dream."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from gymnasium.vector import AutoresetMode
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from agents.actor_critic import world_model_note
from agents.features import feature_policy_kwargs, start_from_behaviour
from agents.sb3 import BatchedVecEnv
from experiments.actor_critic_training import shaping_of
from experiments.dream_progress import DreamProgress
from experiments.report import write_json
from experiments.run_directory import RunDirectory
from worldsim.contexts import ContextBank
from worldsim.dream import DreamVectorEnv
from worldsim.world_model import WorldModel

FIRST_TRAINING_SEED = 100_000_000
"""Of dreams to train in, apart from those that policies are judged in."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347)."""

    learning_rate: float = 3e-4
    num_steps: int = 64
    """Steps of every dream between two updates."""
    batch_size: int = 256
    num_epochs: int = 4
    gamma: float = 0.98
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    ent_coef: float = 0.01
    vf_coef: float = 0.5


def make_agent(config: Any, env: VecEnv, model: WorldModel) -> OnPolicyAlgorithm:
    """Make the SB3 agent; on features it starts from the behaviour that the model predicts."""
    ppo, recurrent = config.ppo, config.agent == "recurrent-ppo"
    kind = "Cnn" if config.obs == "pixels" else "Mlp"
    from_behaviour = config.obs == "features" and not recurrent
    algorithm: type[OnPolicyAlgorithm] = RecurrentPPO if recurrent else PPO
    agent = algorithm(
        f"{kind}{'Lstm' if recurrent else ''}Policy",
        env,
        learning_rate=ppo.learning_rate,
        n_steps=ppo.num_steps,
        batch_size=min(ppo.batch_size, ppo.num_steps * env.num_envs),  # type: ignore[call-arg]
        n_epochs=ppo.num_epochs,  # type: ignore[call-arg]
        gamma=ppo.gamma,
        gae_lambda=ppo.gae_lambda,
        clip_range=ppo.clip_range,  # type: ignore[call-arg]
        ent_coef=ppo.ent_coef,
        vf_coef=ppo.vf_coef,
        policy_kwargs=feature_policy_kwargs(model) if from_behaviour else None,
        seed=config.seed,
        device=config.torch_device,
    )
    if from_behaviour:
        start_from_behaviour(agent, model, temperature=config.behaviour_temperature)
    return agent


def train_with_sb3(
    run: RunDirectory, model: WorldModel, bank: ContextBank, round_index: int, world_model: str
) -> None:
    """Train the run's policy for one round, or the rest of one, and save it.

    Args:
        run: its config says how many dreams, how long they are and how long to train.
        model, bank: what dreams, and where dreams start.
        round_index: from 1.
        world_model: name or directory of the model, to be noted beside the policy.
    """
    config, path = run.config, run.config.policy_path
    shaping = shaping_of(config.way, model)
    dreams = DreamVectorEnv(
        config.num_envs,
        world_model=model,
        contexts=bank,
        horizon=config.training_horizon,
        obs=config.obs,
        autoreset_mode=AutoresetMode.SAME_STEP,
        num_denoising_steps=config.num_denoising_steps,
        reward_function=None if shaping is None else shaping.of_dream,
    )
    env = VecMonitor(BatchedVecEnv(dreams))
    agent = make_agent(config, env, model)
    if path.is_file():
        agent = type(agent).load(path, env=env, device=config.torch_device)
    # Afterwards, for SB3 seeds envs with the agent's own seed, every time the same.
    first_seed = FIRST_TRAINING_SEED + 10_000_000 * config.seed + 1_000_000 * round_index
    env.seed(first_seed + run.get("round_timesteps", 0))
    agent.set_logger(configure(str(run.path / "tensorboard"), ["tensorboard"]))
    first_step = agent.num_timesteps - run.get("round_timesteps", 0)

    def save(seconds: float) -> None:
        temporary = path.with_suffix(".tmp.zip")
        agent.save(temporary)
        temporary.replace(path)
        note = {**world_model_note(world_model), "obs": config.obs}
        write_json(path.with_suffix(".json"), note)
        run.keep(round_seconds=seconds, round_timesteps=agent.num_timesteps - first_step)

    limit = None if config.total_timesteps is None else first_step + config.total_timesteps
    progress = DreamProgress(
        save,
        description=f"dream training, round {round_index}",
        total_timesteps=limit,
        time_limit=60 * config.minutes if limit is None else None,
        seconds_before=run.get("round_seconds", 0.0),
    )
    steps = sys.maxsize // 2 if limit is None else limit - agent.num_timesteps
    if steps <= 0:
        return
    try:
        agent.learn(steps, callback=progress, reset_num_timesteps=False)
    finally:
        progress.close()
        save(progress.seconds)
