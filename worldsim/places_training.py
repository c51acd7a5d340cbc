"""Training of the memory of places: after the world model, on what that reads out of episodes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from worldsim.cache import add_tensors, keep_tensors, kept_tensors
from worldsim.diffusion import noise_slightly
from worldsim.latents import LatentEpisodes
from worldsim.places import Places, next_reward_places
from worldsim.training import Losses, LossFunction, check_divides, own_share, step_rng
from worldsim.training_config import OptimizerConfig
from worldsim.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class PlacesTraining:
    """How the memory of places is trained."""

    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            steps=1000, learning_rate=3e-3, muon_learning_rate=0, decay_share=0.5, ema_decay=0.99
        )
    )
    batch_size: int = 12
    """Episodes per step, over all processes."""
    length: int = 1000
    """Frames of each episode at most, from its beginning; all episodes are learned from."""
    asked_weight: float = 2.0
    """Weight of what the memory is asked on behalf of other frames; at 0.5, training could stay
    where only what counts at the moment is remembered."""
    walk_weight: float = 1.0
    """Weight of walking where told."""
    hindsight: int = 40
    """Steps after which a recorded walk is at the place that it is told, at most."""
    untold_share: float = 0.3
    """Share of the actions that are learned without being told a place."""
    min_signal: float = 0.9
    """Lowest signal level of the latents: dreamed frames, which it also follows, are not exact."""


UNKNOWN_ACTION = torch.iinfo(torch.int64).max
"""Which is not learned."""


class ReadEpisodes(NamedTuple):
    """What a world model makes of recorded episodes."""

    read_outs: Tensor  # (frames, d) float16
    poses: Tensor  # (frames, 3) float32, by odometry
    stands: Tensor  # (frames, 3) float32, the same relative to the grid of the world


def reading(model: WorldModel, episodes: LatentEpisodes) -> str:
    """Fingerprint of the model, all but its places, and of the episodes that it reads."""
    digest = hashlib.sha256(np.ascontiguousarray(episodes.lengths).tobytes())
    weights = {k: t for k, t in model.state_dict().items() if not k.startswith("places.")}
    add_tensors(digest, (*weights.values(), episodes.actions, episodes.latents[::97]))
    return digest.hexdigest()


def read_once(
    model: WorldModel,
    episodes: LatentEpisodes,
    cache: Path | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    keep: bool = True,
) -> ReadEpisodes:
    """`read_episodes`, or what was read before of the same episodes by the same model.

    Args:
        cache: file to keep it in; None keeps nothing.
        progress: called with (frames done, frames in all).
        keep: write the file; of several processes, one should.
    """
    key = reading(model, episodes)
    kept = kept_tensors(cache, key, ReadEpisodes._fields)
    if kept is not None:
        return ReadEpisodes(**kept)
    read = read_episodes(model, episodes, progress=progress)
    if keep:
        keep_tensors(cache, key, read._asdict())
    return read


@torch.no_grad()
def read_episodes(
    model: WorldModel,
    episodes: LatentEpisodes,
    *,
    batch_size: int = 16,
    chunk: int = 64,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ReadEpisodes:
    """Have the model observe episodes from their beginning.

    Args:
        model: with odometry.
        episodes: recorded.
        batch_size: episodes side by side. chunk: frames at once.
        progress: called with (frames done, frames in all).
    """
    assert model.odometry is not None
    width, device = model.config.backbone.d_model, model.device
    read_outs = torch.empty(episodes.num_frames, width, dtype=torch.float16)
    poses = torch.empty(episodes.num_frames, 6)
    done = 0
    for first in range(0, len(episodes.lengths), batch_size):
        rows = [
            slice(offset, offset + length)
            for offset, length in zip(
                episodes.offsets[first : first + batch_size],
                episodes.lengths[first : first + batch_size],
                strict=True,
            )
        ]
        actions = pad_sequence([episodes.actions[row] for row in rows], batch_first=True).to(device)
        latents = pad_sequence([episodes.latents[row] for row in rows], batch_first=True)
        state = model.initial_state(len(rows))
        parts: list[Tensor] = []
        for a, z in zip(actions.split(chunk, 1), latents.split(chunk, 1), strict=True):
            z = z.to(device).float()
            told, stands, _ = model.odometry.locate(state.memory, a, z, state.steps)
            signal = torch.ones(a.shape, device=device)
            state, features = model.commit(state, a, z, signal)
            parts.append(torch.cat([features[..., :width], told, stands], dim=-1).cpu())
        for row, read in zip(rows, torch.cat(parts, dim=1), strict=True):
            size = row.stop - row.start
            read_outs[row], poses[row] = read[:size, :width].half(), read[:size, width:]
            done += int(size)
        progress(done, episodes.num_frames)
    return ReadEpisodes(read_outs, *poses.split(3, dim=-1))


class PlacesLoss(nn.Module):
    """The loss of the memory of places as a forward pass, so that it can be distributed."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places

    def forward(
        self, batch: tuple[Tensor, ...], walks: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        return *self.places.loss(*batch), self.places.walk_loss(*walks)


def places_loss(
    episodes: LatentEpisodes, read: ReadEpisodes, config: PlacesTraining, accel: Accelerator
) -> LossFunction:
    """Loss function of a step of training places; its model is `PlacesLoss`.

    Raises:
        ValueError: the episodes have no poses, or no rewards; a batch does not divide by the
            processes.
    """
    if episodes.poses is None:
        raise ValueError("places are learned from poses, but these episodes were read without")
    check_divides(accel, config.batch_size)
    length = min(config.length, int(episodes.lengths.max()))
    places, known = torch.zeros(episodes.num_frames, 2), torch.zeros(episodes.num_frames).bool()
    for offset, size in zip(episodes.offsets, episodes.lengths, strict=True):
        row = slice(offset, offset + size)
        places[row], known[row] = next_reward_places(episodes.rewards[row], episodes.poses[row])
    if not known.any():
        raise ValueError("places of rewards are learned from rewards above 0: there are none")
    true_poses = episodes.poses

    def loss(model: nn.Module, step: int) -> tuple[Tensor, Losses]:
        rng, generator = step_rng(config.optimizer.seed, step)
        chosen = rng.integers(len(episodes.lengths), size=config.batch_size)
        # Episodes that are shorter stand still at their end, where nothing is learned from them.
        last, frames = episodes.lengths[chosen][:, None] - 1, np.arange(length)
        index = torch.from_numpy(episodes.offsets[chosen][:, None] + np.minimum(frames, last))
        over = frames > last
        others = rng.integers(np.minimum(last + 1, length), size=index.shape)
        read_outs, poses = read.read_outs[index].float(), read.poses[index]
        batch = (
            noise_slightly(episodes.latents[index].float(), config.min_signal, generator),
            read_outs,
            poses,
            places[index],
            known[index] & torch.from_numpy(~over),
            torch.from_numpy(np.where(over, last, others)),  # whom no reward followed
            true_poses[index],
        )
        steps = rng.integers(1, config.hindsight + 1, size=index.shape)
        ahead = torch.from_numpy(np.minimum(steps, np.maximum(last - frames, 0)))
        told = torch.from_numpy(rng.random(index.shape) >= config.untold_share)
        actions = episodes.actions[index].masked_fill(torch.from_numpy(over), UNKNOWN_ACTION)
        walks = (read_outs, poses, actions, ahead, told)
        own, asked, walk = model(
            tuple(own_share(accel, x) for x in batch), tuple(own_share(accel, x) for x in walks)
        )
        total = own + config.asked_weight * asked + config.walk_weight * walk
        return total, {"own": own, "asked": asked, "walk": walk}

    return loss
