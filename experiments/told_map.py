"""How well a world model tells which cells can be walked to, before they were."""

from __future__ import annotations

import numpy as np
import torch
from tqdm import tqdm

from worldsim.episodes import EpisodeDataset
from worldsim.grid_ways import beside_any
from worldsim.occupancy import CELLS
from worldsim.open_loop import encode_episode
from worldsim.world_model import WorldModel


@torch.no_grad()
def map_on_real_frames(
    model: WorldModel, dataset: EpisodeDataset, num_episodes: int, share: float = 1 / 3
) -> dict[str, float]:
    """What the map tells of cells beside the way so far, against where the episode comes later.

    Args:
        model: with odometry and a map.
        dataset: episodes that come to every cell that can be walked to (the explorer's tours); a
            cell that none comes to counts as a wall.
        num_episodes: of the first ones.
        share: of each episode that is observed.

    Returns:
        Numbers of free cells and walls beside the way, and the shares told right; nan of none.
    """
    assert model.odometry is not None
    occupancy = model.occupancy
    assert occupancy is not None
    square = (occupancy.config.side, occupancy.config.side)
    told_of_free, told_of_walls = [], []
    for i in tqdm(range(min(num_episodes, len(dataset))), desc="map", leave=False):
        length = int(dataset.lengths[i])
        actions, latents = encode_episode(model, dataset.episode(i, 0, length))
        start = model.initial_state(1)
        _, stands, _ = model.odometry.locate(start.memory, actions, latents, start.steps)
        index = occupancy.index(occupancy.cell_of(stands[0, :, :2]))
        seen = max(round(share * length), 1)
        state, _ = model.observe_latents(start, actions[:, :seen], latents[:, :seen])
        walked, comes = (
            torch.zeros(square, dtype=torch.bool, device=index.device) for _ in range(2)
        )
        walked.view(-1)[index[:seen]] = True
        comes.view(-1)[index] = True
        free = occupancy.log_odds(state.memory[CELLS])[0].view(square) > 0
        beside = beside_any(walked) & ~walked
        told_of_free.append(free[beside & comes].cpu().numpy())
        told_of_walls.append(free[beside & ~comes].cpu().numpy())
    free_right, wall_right = np.concatenate(told_of_free), ~np.concatenate(told_of_walls)
    return {
        "observed_share": share,
        "free_cells": len(free_right),
        "free_told_right": float(free_right.mean()) if len(free_right) else float("nan"),
        "walls": len(wall_right),
        "walls_told_right": float(wall_right.mean()) if len(wall_right) else float("nan"),
    }
