"""How well a world model tells where the next reward will be while it observes real episodes."""

from __future__ import annotations

import numpy as np
import torch
from tqdm import tqdm

from worldsim.episodes import EpisodeDataset
from worldsim.open_loop import read_out_episode
from worldsim.places import next_reward_places
from worldsim.pose import poses_of
from worldsim.world_model import WorldModel


@torch.no_grad()
def places_on_real_frames(
    model: WorldModel, dataset: EpisodeDataset, num_episodes: int, chunk: int = 64
) -> dict[str, float]:
    """Places that are told, beside where the next reward came; lengths in the unit of positions.

    Args:
        model: observes; with a memory of places.
        dataset: real episodes with poses.
        num_episodes: of the first ones.
        chunk: frames that are forgotten together for comparison: what the model tells when it has
            only seen the frames since the last multiple of so many.
    """
    errors, certainties, forgetful = [], [], []
    for i in tqdm(range(min(num_episodes, len(dataset))), desc="places", leave=False):
        episode = dataset.episode(i, 0, int(dataset.lengths[i]))
        poses = torch.from_numpy(poses_of(dataset.infos(i)))
        places, known = next_reward_places(torch.from_numpy(episode.rewards), poses)
        told, certainty = model.place_told(read_out_episode(model, episode).cpu())
        errors.append((told - places).norm(dim=-1)[known])
        certainties.append(certainty[known])
        parts = [
            read_out_episode(model, dataset.episode(i, start, min(start + chunk, len(poses))))
            for start in range(0, len(poses), chunk)
        ]
        told, _ = model.place_told(torch.cat(parts).cpu())
        forgetful.append((told - places).norm(dim=-1)[known])
    error, certain = torch.cat(errors).numpy(), torch.cat(certainties).numpy() > 0.5
    sure = error[certain] if certain.any() else np.full(1, np.nan)
    return {
        "frames": len(error),
        "share_within_one": float((error < 1).mean()),
        "share_certain": float(certain.mean()),
        "share_within_one_where_certain": float(np.mean(sure < 1)),
        "median_error_where_certain": float(np.median(sure)),
        "forgetful_frames": chunk,
        "forgetful_share_within_one": float((torch.cat(forgetful).numpy() < 1).mean()),
    }
