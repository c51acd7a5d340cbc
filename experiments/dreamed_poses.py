"""How far dreams stray from where the same actions lead in reality."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from worldsim.episodes import EpisodeDataset
from worldsim.odometry import POSE
from worldsim.open_loop import draw_episodes
from worldsim.pose import poses_of, seen_from
from worldsim.world_model import WorldModel


def dreamed_poses(
    model: WorldModel,
    dataset: EpisodeDataset,
    num_contexts: int,
    context: int,
    horizon: int,
    *,
    seed: int = 0,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Distance of dreamed from true places by dreamed step, both as seen from the last real frame.

    Args:
        model: with odometry.
        dataset: held-out episodes with poses.
        num_contexts: stretches, from different episodes as far as there are.
        context: real frames observed first.
        horizon: frames dreamed under the true actions.
        seed: of what is drawn.
        batch_size: dreams at a time.

    Returns:
        Means over stretches by step: the "error", that of dreams that walls do not stop
        ("error_through_walls", of a model with a map), and that of standing still ("distance").

    Raises:
        ValueError: no episode is that long, or there are no poses.
    """
    models = {"error": model}
    if (places := model.config.places) is not None and places.occupancy is not None:
        passing = dataclasses.replace(places.occupancy, radius=0.0)
        changed = dataclasses.replace(places, occupancy=passing)
        models["error_through_walls"] = model.reconfigured(places=changed).eval()
    stretches = draw_episodes(dataset, num_contexts, context + horizon, seed)
    errors: dict[str, list[torch.Tensor]] = {name: [] for name in (*models, "distance")}
    parts = range(0, num_contexts, batch_size)
    with tqdm(total=len(parts) * len(models), desc="dreamed poses", leave=False) as bar:
        for first in parts:
            part = stretches[first : first + batch_size]
            frames = torch.from_numpy(np.stack([s.frames[:context] for s in part]))
            actions = torch.from_numpy(np.stack([s.actions for s in part])).to(model.device)
            true = torch.from_numpy(np.stack([poses_of(s.infos)[context - 1 :] for s in part]))
            came_to = seen_from(true[:, :1], true[:, 1:, :2])
            errors["distance"].append(came_to.norm(dim=-1))
            blank = model.initial_state(len(part))
            # What is observed is the same for both: walls stop dreams alone.
            observed = model.observe(blank, actions[:, :context], frames.to(model.device))
            began = observed.memory[POSE]
            for name, dreamer in models.items():
                state, places_dreamed = observed, []
                generator = torch.Generator(model.device).manual_seed(seed + first)
                for action in actions[:, context:].unbind(1):
                    dream = dreamer.imagine(state, action, generator=generator, decode=False)
                    state = dream.state
                    places_dreamed.append(state.memory[POSE][:, :2])
                found = seen_from(began[:, None], torch.stack(places_dreamed, dim=1)).cpu()
                errors[name].append((found - came_to).norm(dim=-1))
                bar.update()
    return {name: torch.cat(parts).mean(0).tolist() for name, parts in errors.items()}
