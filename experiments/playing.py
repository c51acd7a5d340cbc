"""Real envs side by side, and episodes in them or in dreams, with a progress bar."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence

import gymnasium
import torch
from gymnasium.vector import VectorEnv
from tqdm import tqdm

import envs
from agents.rollout import EpisodeResult, Policy, check_limit, make_parallel, rollout
from agents.scripted import env_options

# Training data starts at seed 0 and validation data at 1,000,000.
FIRST_EVALUATION_SEED = 2_000_000
JUDGE_SEED = 1_000_000
"""Of the stretches of a dataset that dreams start from where policies are judged: others than those
that were drawn to train in."""


def make_real_envs(
    env: str, num_workers: int, max_episode_steps: int | None = None
) -> tuple[VectorEnv, int | None]:
    """Make real envs that show their hidden state to scripted policies.

    Returns:
        The envs, one process each, and the steps after which they truncate an episode.
    """
    options = env_options(env)

    def make() -> gymnasium.Env:
        # One rendering thread per process: with one process per core, more only get in the way.
        os.environ.setdefault("LP_NUM_THREADS", "0")
        return envs.make(env, max_episode_steps=max_episode_steps, **options)

    # Asked here, for not every spec can be sent from process to process.
    return make_parallel(make, num_workers), episode_limit(make)


def episode_limit(make_env: Callable[[], gymnasium.Env]) -> int | None:
    """Steps after which an env truncates an episode, None where it does not."""
    env = make_env()
    limit = envs.step_limit(env)
    env.close()
    check_limit(limit, str(env))
    return limit


@contextlib.contextmanager
def torch_threads(num_threads: int) -> Iterator[None]:
    """Limit torch's threads for a while: beside env processes, more of them only get in the way."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_episodes(
    policy: Policy,
    batch: VectorEnv,
    seeds: Sequence[int],
    *,
    episode_limit: int | None,
    description: str,
    num_recorded: int = 0,
) -> list[EpisodeResult]:
    """`rollout` with a progress bar: steps, steps per second, time left, return so far."""
    returns: list[float] = []
    total = None if episode_limit is None else episode_limit * len(seeds)
    with tqdm(total=total, desc=description, unit="step", dynamic_ncols=True) as bar:

        def on_step(num_steps: int) -> None:
            bar.update(num_steps)

        def on_episode(result: EpisodeResult) -> None:
            returns.append(result.episodic_return)
            mean = sum(returns) / len(returns)
            bar.set_postfix_str(f"{len(returns)}/{len(seeds)} episodes, return {mean:.2f}")

        return rollout(
            policy,
            batch,
            seeds,
            num_recorded=num_recorded,
            on_step=on_step,
            on_episode=on_episode,
        )
