"""Judging the policies of a run, in the dream and on the real env, with videos of both."""

from __future__ import annotations

from typing import Literal

import numpy as np
from gymnasium.vector import AutoresetMode

from agents.rollout import Policy
from experiments.evaluate import (
    FIRST_EVALUATION_SEED,
    make_real_envs,
    run_episodes,
    torch_threads,
)
from experiments.run_directory import RunDirectory
from experiments.videos import add_video, save_video, tile
from worldsim.contexts import ContextBank
from worldsim.dream import DreamVectorEnv
from worldsim.world_model import WorldModel


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
    """Judge a policy on dreams that start from seeds of their own."""
    config = run.config
    if name in run.evaluations:
        return
    dreams = DreamVectorEnv(
        min(config.num_envs, config.dream_eval_episodes),
        world_model=model,
        contexts=bank,
        horizon=config.judging_horizon,
        obs=obs,
        render_mode="rgb_array",
        autoreset_mode=AutoresetMode.DISABLED,
        num_denoising_steps=config.num_denoising_steps,
    )
    results = run_episodes(
        policy,
        dreams,
        [FIRST_EVALUATION_SEED + i for i in range(config.dream_eval_episodes)],
        episode_limit=config.judging_horizon,
        description=f"{label} in the dream",
        num_recorded=4,
    )
    run.add_evaluation(name, label, "dream", results)
    show_video(run, name, [r.frames for r in results[:4] if r.frames is not None])


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
            with torch_threads(1):
                results = run_episodes(
                    policy,
                    batch,
                    [FIRST_EVALUATION_SEED + i for i in range(config.eval_episodes)],
                    episode_limit=limit,
                    description=f"{label} on {config.env}",
                    num_recorded=1,
                )
            run.add_evaluation(name, label, config.env, results)
            if results[0].frames is not None:
                show_video(run, name, [results[0].frames])
    finally:
        batch.close()


def show_video(
    run: RunDirectory, name: str, videos: list[np.ndarray], max_frames: int = 250
) -> None:
    """Save episodes side by side and show their beginning in TensorBoard."""
    frames = tile(videos)
    save_video(run.path / "videos" / f"{name.replace(' ', '-')}.mp4", frames)
    add_video(run.writer, name, frames[:max_frames], run.get("finished_rounds", 0))


def log_returns(run: RunDirectory, round_index: int) -> None:
    """Write the mean returns of a round and of the baselines to TensorBoard."""
    for name, evaluation in run.evaluations.items():
        where = "dream" if evaluation["where"] == "dream" else "real"
        if name.startswith(f"round {round_index}"):
            run.writer.add_scalar(f"{where}/return", evaluation["mean_return"], round_index)
        elif not name.startswith("round"):
            tag = f"{where}/return_{name.split()[0]}"
            run.writer.add_scalar(tag, evaluation["mean_return"], round_index)
    run.writer.flush()
