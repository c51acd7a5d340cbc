"""The model-free baseline of the agents benchmark: RecurrentPPO on pixels of the real env."""

from __future__ import annotations

import functools
import signal
from pathlib import Path
from typing import Any

import gymnasium
import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.ppo_recurrent import CnnLstmPolicy
from stable_baselines3.common.vec_env import SubprocVecEnv, VecMonitor

import envs
from agents.rollout import ending_on_error
from agents.sb3 import SB3Policy, save_agent
from experiments.agent_progress import AgentProgress, learn
from experiments.report import read_json, write_json
from experiments.training_progress import TrainingProgress

# Apart from the seeds of the world model's data (0 and up), of validation (1,000,000 and up) and of
# evaluation (2,000,000 and up).
MODEL_FREE_SEED = 3_000_000


class WholeSequencesPolicy(CnnLstmPolicy):
    """`CnnLstmPolicy` that does the same with less work: several times as fast on a CPU.

    sb3-contrib goes through a minibatch step by step as soon as an episode begins in it. Its
    buffers let a sequence begin wherever an episode does, so all there is to forget is what came
    before the first step, and the LSTMs take whole sequences. It also pads sequences with black
    frames to equal length, a third of a minibatch, all of which look the same to the convolutions.
    """

    def extract_features(self, obs: Any, *args: Any) -> Any:
        black = (obs == 0).flatten(1).all(dim=1)  # any() of bytes would give bytes
        if not black.any():
            return super().extract_features(obs, *args)
        seen = super().extract_features(torch.cat((torch.zeros_like(obs[:1]), obs[~black])), *args)
        return seen[torch.where(black, 0, (~black).cumsum(0))]

    @staticmethod
    def _process_sequence(
        features: torch.Tensor,
        lstm_states: tuple[torch.Tensor, torch.Tensor],
        episode_starts: torch.Tensor,
        lstm: torch.nn.LSTM,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        num_sequences = lstm_states[0].shape[1]
        starts = episode_starts.reshape(num_sequences, -1)
        if not starts[:, 1:].any():
            kept = (1.0 - starts[:, 0]).view(1, num_sequences, 1)
            lstm_states = (kept * lstm_states[0], kept * lstm_states[1])
            episode_starts = torch.zeros_like(episode_starts)
        return CnnLstmPolicy._process_sequence(features, lstm_states, episode_starts, lstm)


def make_worker_env(env_name: str, max_episode_steps: int | None) -> gymnasium.Env:
    """A real env in a process of its own, which leaves Ctrl-C to the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return envs.make(env_name, max_episode_steps=max_episode_steps)


def training_seconds(work: Path) -> float:
    """How long training in that directory took so far, over all calls."""
    return float(read_json(work / "seconds.json") or 0.0)


def train_model_free(
    env_name: str,
    real_steps: int,
    work: Path,
    *,
    seed: int,
    num_workers: int,
    max_episode_steps: int | None = None,
) -> tuple[SB3Policy, int]:
    """Train on the real env, or go on with it.

    Returns:
        The policy, and the steps that it took: whole rollouts, so a few more than asked for.

    Args:
        env_name: real env.
        real_steps: steps in it, over all that run side by side.
        work: directory of the policy and its logs.
        seed: decides everything random but the timing of processes.
        num_workers: real envs side by side.
        max_episode_steps: cuts episodes, in place of the env's own limit.

    Raises:
        ValueError: the directory holds a policy that learned in other envs, or for longer.
        RuntimeError: the process of an env has ended.
    """
    work.mkdir(parents=True, exist_ok=True)
    path = work / "policy.zip"
    make = functools.partial(make_worker_env, env_name, max_episode_steps)
    processes = SubprocVecEnv([make] * num_workers, start_method="forkserver")
    env = VecMonitor(processes)
    with ending_on_error(processes):
        if path.is_file():
            agent = RecurrentPPO.load(path, env=env, device="cpu", tensorboard_log=str(work))
            agent.set_random_seed(seed + agent.num_timesteps)
        else:
            agent = RecurrentPPO(
                WholeSequencesPolicy,
                env,
                n_steps=128,
                batch_size=min(256, 128 * num_workers // 2),
                n_epochs=4,
                learning_rate=3e-4,
                gamma=0.99,
                ent_coef=0.01,
                seed=seed,
                tensorboard_log=str(work),
                device="cpu",
            )

        # Afterwards, for SB3 seeds envs with the agent's own seed, every time the same.
        env.seed(MODEL_FREE_SEED + 1_000_000 * seed + agent.num_timesteps)

        def save(seconds: float) -> None:
            save_agent(agent, path)
            write_json(work / "seconds.json", seconds)

        rest = real_steps - agent.num_timesteps
        if rest <= -agent.n_steps * num_workers:
            raise ValueError(
                f"{work} holds a policy of {agent.num_timesteps} steps, more than {real_steps}: "
                "choose another --work"
            )
        if rest > 0:
            with TrainingProgress(
                save,
                description=f"model-free, seed {seed}",
                total_timesteps=real_steps,
                time_limit=None,
                timesteps=agent.num_timesteps,
                seconds_before=training_seconds(work),
            ) as progress:
                shown = AgentProgress(progress, where="real")
                learn(agent, rest, shown, tb_log_name="tensorboard")
    env.close()
    return SB3Policy(agent), agent.num_timesteps
