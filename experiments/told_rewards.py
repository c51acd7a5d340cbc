"""How well a world model tells rewards and returns while it observes real episodes."""

from __future__ import annotations

import numpy as np
import torch
from tqdm import tqdm

from experiments.reward_events import events_in
from worldsim.episodes import EpisodeDataset
from worldsim.latents import discounted_returns
from worldsim.metrics import average_precision
from worldsim.open_loop import read_out_episode
from worldsim.world_model import WorldModel


@torch.no_grad()
def rewards_on_real_frames(
    model: WorldModel, dataset: EpisodeDataset, num_episodes: int, length: int | None = None
) -> dict[str, float]:
    """Rewards and returns that are told, beside those that were.

    Returns are compared where at least nine tenths of them were recorded; for events see
    `RewardEvents`. What cannot be told for want of any is NaN.

    Args:
        model: observes.
        dataset: real episodes.
        num_episodes: of the first ones.
        length: frames of each, from its beginning, which has no reward; None for all.
    """
    scores, rewards, values, returns = [], [], [], []
    episodes = range(min(num_episodes, len(dataset)))
    for i in tqdm(episodes, desc="rewards", unit="episode", leave=False):
        size = int(dataset.lengths[i])
        episode = dataset.episode(i, 0, size if length is None else min(size, length))
        features = read_out_episode(model, episode)
        scores.append(model.predict_reward(features).cpu().numpy()[1:])
        rewards.append(episode.rewards[1:])
        followed, known = discounted_returns(
            torch.from_numpy(episode.rewards),
            torch.from_numpy(episode.terminated),
            model.config.gamma,
        )
        values.append(model.predict_value(features).cpu().numpy()[known > 0.9])
        returns.append(followed.numpy()[known > 0.9])
    value, made = np.concatenate(values), np.concatenate(returns)
    score, reward = np.concatenate(scores), np.concatenate(rewards)
    events = events_in(dataset)
    real, flagged = events.among(reward), events.among(score)
    hits, none = float((flagged & real).sum()), float("nan")
    return {
        "real_average_precision": average_precision(events.distance(score), real),
        "real_precision": hits / float(flagged.sum()) if real.any() and flagged.any() else none,
        "real_recall": hits / float(real.sum()) if real.any() else none,
        "real_events": int(real.sum()),
        "real_frames": len(score),
        "mean_predicted_where_rewarded": float(score[real].mean()) if real.any() else none,
        "mean_predicted_elsewhere": float(score[~real].mean()),
        **(compare_returns(value, made) if len(set(made.tolist())) > 1 else {}),
    }


def compare_returns(value: np.ndarray, made: np.ndarray) -> dict[str, float]:
    """Returns that were told, (n,), beside those that were made."""
    return {
        "return_correlation": float(np.corrcoef(value, made)[0, 1]),
        "return_mean": float(made.mean()),
        "return_predicted_mean": float(value.mean()),
    }
