"""What dreams promise the agents of the agents benchmark: the judge's part, before its report."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import envs
from agents.features import in_dreams
from agents.on_the_way import WayConfig, shaping_of
from agents.rollout import EpisodeResult, Policy
from agents.scripted import env_options
from experiments.agents_config import BenchmarkAgentsConfig
from experiments.dream_judging import play_dreams
from experiments.playing import FIRST_EVALUATION_SEED
from experiments.report import summarise
from experiments.workers import play_episode
from worldsim.contexts import ContextBank
from worldsim.dream import RewardFunction
from worldsim.recording import RecordedEpisode
from worldsim.world_model import WorldModel

CONTEXT_LENGTH = 128
"""Real frames of a scripted player that are observed before its dream, as in shipped contexts."""

Judged = dict[str, dict[str, Any] | None]
"""Returns in dreams, by how steps are valued; None where nothing can be said."""


def ways_to_judge(model: WorldModel) -> dict[str, RewardFunction | None]:
    """By dreamed rewards and, where the model draws a map, by progress on it (40 steps are 1)."""
    judges: dict[str, RewardFunction | None] = {"dream": lambda before, dream: dream.reward}
    way = shaping_of(WayConfig(touch=0.0), model)
    judges["dream_way"] = None if way is None else lambda before, dream: way(before, dream.state)
    return judges


def judge_in_dreams(
    policy: Policy, model: WorldModel, bank: ContextBank, config: BenchmarkAgentsConfig, label: str
) -> Judged:
    """Let a policy act in dreams.

    Args:
        policy: on frames, or a `FeaturePolicy`, whose features the dreams show themselves.
        model, bank: what dreams, and where dreams start.
        config: how many dreams, of how many steps.
        label: of the progress bar.
    """
    judged: Judged = {}
    acting, obs = in_dreams(policy)
    for name, worth in ways_to_judge(model).items():
        judged[name] = worth and summarise(
            play_dreams(
                model,
                bank,
                acting,
                config.dream_episodes,
                num_envs=config.num_envs,
                horizon=config.horizon,
                obs=obs,
                label=label if name == "dream" else f"{label}, by its way,",
                reward_function=None if name == "dream" else worth,
            )
        )
    return judged


@torch.no_grad()
def judge_as_recorded(
    player: Callable[[int], Policy], model: WorldModel, config: BenchmarkAgentsConfig, label: str
) -> Judged:
    """Let the model dream what a player does that sees the layout of a real maze.

    It cannot act in a dream, which has none. So it plays real episodes, of which the model observes
    the first `CONTEXT_LENGTH` frames and dreams on under the actions that were taken. Nothing is
    said where an episode ends before that.

    Args:
        player: makes what acts in an episode, on frames and infos, from its number.
        model: observes and dreams.
        config: names the env; how many dreams, of how many steps.
        label: of the progress bar.
    """
    steps = CONTEXT_LENGTH - 1 + config.horizon
    seeds = [FIRST_EVALUATION_SEED + i for i in range(config.dream_episodes)]
    env = envs.make(config.env, max_episode_steps=steps, **env_options(config.env))
    played = []
    try:
        for i, seed in enumerate(tqdm(seeds, f"{label}, to be dreamed", unit="episode")):
            *_, episode = play_episode(env, player(i), seed, {})
            assert isinstance(episode, RecordedEpisode)
            played.append(episode)
    finally:
        env.close()
    judges = ways_to_judge(model)
    if any(len(episode.actions) < steps for episode in played):
        return dict.fromkeys(judges)
    frames = np.stack([e.observations[:CONTEXT_LENGTH] for e in played])
    taken = np.stack([e.actions for e in played]).astype(np.int64)
    first = np.full((len(taken), 1), model.no_action)
    led = np.concatenate([first, taken[:, : CONTEXT_LENGTH - 1]], axis=1)
    state = ContextBank.observe(model, frames, led).states
    generator = torch.Generator(model.device).manual_seed(FIRST_EVALUATION_SEED)
    totals = {name: torch.zeros(len(taken), device=model.device) for name in judges}
    going = torch.ones(len(taken), dtype=torch.bool, device=model.device)
    for actions in torch.from_numpy(taken[:, CONTEXT_LENGTH - 1 :]).to(model.device).unbind(1):
        dream = model.imagine(state, actions, generator=generator, decode=False)
        for name, worth in judges.items():
            totals[name] += going * (0 if worth is None else worth(state, dream))
        state, going = dream.state, going & ~dream.terminated
    result = functools.partial(EpisodeResult, length=config.horizon, terminated=False)
    return {
        name: worth
        and summarise(
            [
                result(seed=seed, episodic_return=total)
                for seed, total in zip(seeds, totals[name].tolist(), strict=True)
            ]
        )
        for name, worth in judges.items()
    }
