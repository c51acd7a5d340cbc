"""Judging the policies of a run, in the dream and on the real env, with videos of both."""

from __future__ import annotations

import warnings
from typing import Literal

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

import envs
from agents.planner import Planner
from agents.rollout import EpisodeResult, Policy
from experiments.playing import (
    FIRST_EVALUATION_SEED,
    make_real_envs,
    run_episodes,
    torch_threads,
)
from experiments.run_directory import RunDirectory
from experiments.videos import add_video, save_video, tile
from worldsim.checkpoint import CheckpointError, load_config, load_metadata
from worldsim.checks import check_spaces
from worldsim.contexts import ContextBank
from worldsim.dream import DreamVectorEnv, RewardFunction
from worldsim.world_model import WorldModel


def play_dreams(
    model: WorldModel,
    bank: ContextBank,
    policy: Policy,
    num_episodes: int,
    *,
    num_envs: int,
    horizon: int,
    obs: Literal["pixels", "features"],
    label: str,
    num_recorded: int = 0,
    num_denoising_steps: int | None = None,
    reward_function: RewardFunction | None = None,
) -> list[EpisodeResult]:
    """Dreamed episodes of a policy, from seeds of their own.

    Args:
        model, bank: what dreams, and where dreams start.
        policy: acts on `obs`.
        num_episodes, horizon: how many, of how many steps.
        num_envs: dreams side by side, at most.
        obs: what the policy sees.
        label: of the progress bar.
        num_recorded: of the first ones, those whose frames are kept.
        num_denoising_steps: by default the model's own.
        reward_function: what steps are worth; by default the reward that the model expects.
    """
    dreams = DreamVectorEnv(
        min(num_envs, num_episodes),
        world_model=model,
        contexts=bank,
        horizon=horizon,
        obs=obs,
        render_mode="rgb_array" if num_recorded else None,
        autoreset_mode=AutoresetMode.DISABLED,
        num_denoising_steps=num_denoising_steps,
        reward_function=reward_function,
    )
    return run_episodes(
        policy,
        dreams,
        [FIRST_EVALUATION_SEED + i for i in range(num_episodes)],
        episode_limit=horizon,
        description=f"{label} in the dream",
        num_recorded=num_recorded,
    )


def play_real_episodes(
    batch: VectorEnv,
    episode_limit: int | None,
    policy: Policy,
    num_episodes: int,
    *,
    label: str,
    threads: int = 1,
) -> list[EpisodeResult]:
    """Real episodes of a policy, from seeds that nothing was trained on; the first is recorded.

    Args:
        batch, episode_limit: from `experiments.playing.make_real_envs`.
        policy: acts on frames.
        num_episodes: how many.
        label: of the progress bar.
        threads: of torch in this process, beside the envs' own processes.
    """
    with torch_threads(threads):
        return run_episodes(
            policy,
            batch,
            [FIRST_EVALUATION_SEED + i for i in range(num_episodes)],
            episode_limit=episode_limit,
            description=label,
            num_recorded=1,
        )


def check_env(
    name: str,
    world_model: str,
    advice: str = "name the model's own env with --env (as my_package:MyEnv-v0 where it is "
    "registered with Gymnasium), or only train with --no-judge",
) -> None:
    """Refuse a real env that is not the one that a world model dreams, as far as spaces tell.

    Of one with the same frames and actions that the model is not known to have learned from, it is
    warned.

    Args:
        name: of the env.
        world_model: shipped name or checkpoint.
        advice: what to do where it is refused.

    Raises:
        ValueError: it has other frames or actions.
    """
    env = envs.make(name)
    env.close()
    try:
        model = load_config(world_model)
    except CheckpointError as error:
        if world_model != name:
            raise
        raise CheckpointError(f"{error}: name one with --world-model") from error
    try:
        check_spaces(name, env.observation_space, env.action_space, model)
    except ValueError as error:
        raise ValueError(f"{world_model} does not dream {name} ({error}): {advice}") from error
    learned = learned_from(world_model)
    if not is_env(env, name, learned):
        of_what = f"has learned from {learned}"
        if learned is None:
            of_what = "does not tell what env it has learned from"
        warnings.warn(
            f"{world_model} {of_what}, and policies are judged on {name} (--env)", stacklevel=2
        )


def learned_from(world_model: str) -> str | None:
    """The env that a world model has learned from, where it says so."""
    return load_metadata(world_model).get("env")


def is_env(env: gymnasium.Env, name: str, other: str | None) -> bool:
    """Whether a name is an env's; recordings of others note the id of its spec alone."""
    return other in {name, *([env.spec.id] if env.spec is not None else [])}


def evaluate_in_dream(
    run: RunDirectory,
    model: WorldModel,
    bank: ContextBank,
    name: str,
    policy: Policy,
    label: str,
    *,
    obs: Literal["pixels", "features"],
) -> None:
    """Judge a policy of a run on dreams."""
    config = run.config
    if name in run.evaluations:
        return
    results = play_dreams(
        model,
        bank,
        policy,
        config.dream_eval_episodes,
        num_envs=config.num_envs,
        horizon=config.judging_horizon,
        obs=obs,
        label=label,
        num_recorded=4,
        num_denoising_steps=config.num_denoising_steps,
    )
    show_video(run, name, [r.frames for r in results[:4] if r.frames is not None])
    run.add_evaluation(name, label, "dream", results)


def evaluate_on_real(run: RunDirectory, policies: dict[str, tuple[Policy, str]]) -> None:
    """Judge policies, by evaluation name, on the same episodes of the real env."""
    config = run.config
    todo = {name: p for name, p in policies.items() if name not in run.evaluations}
    if not todo:
        return
    num_workers = min(config.num_workers, config.eval_episodes)
    batch, limit = make_real_envs(config.env, num_workers, config.max_episode_steps)
    try:
        for name, (policy, label) in todo.items():
            results = play_real_episodes(
                batch,
                limit,
                policy,
                config.eval_episodes,
                label=f"{label} on {config.env}",
                threads=torch.get_num_threads() if isinstance(policy, Planner) else 1,
            )
            if results[0].frames is not None:
                show_video(run, name, [results[0].frames])
            run.add_evaluation(name, label, config.env, results)
    finally:
        batch.close()


def show_video(
    run: RunDirectory, name: str, videos: list[np.ndarray], max_frames: int = 250
) -> None:
    """Save episodes side by side and show their beginning in TensorBoard."""
    frames = tile(videos)
    save_video(run.path / "videos" / f"{name.replace(' ', '-')}.mp4", frames)
    add_video(run.writer, name, frames[:max_frames], run.get("finished_rounds", 0))


def random_in_dream(round_index: int) -> str:
    """Name of the evaluation of a random policy in the dream of a round, which differ."""
    return "random in dream" if round_index == 1 else f"random in dream of round {round_index}"


def log_returns(run: RunDirectory, round_index: int) -> None:
    """Write the mean returns of a round and of the baselines to TensorBoard."""
    for name, evaluation in run.evaluations.items():
        where = "dream" if evaluation["where"] == "dream" else "real"
        if name.startswith(f"round {round_index}"):
            run.writer.add_scalar(f"{where}/return", evaluation["mean_return"], round_index)
        elif name.startswith("random in dream") and name != random_in_dream(round_index):
            continue
        elif not name.startswith("round"):
            tag = f"{where}/return_{name.split()[0]}"
            run.writer.add_scalar(tag, evaluation["mean_return"], round_index)
    run.writer.flush()
