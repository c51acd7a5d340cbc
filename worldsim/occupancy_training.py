"""Training of the map of where one can walk, on what a world model reads out of episodes.

What an episode does not come to counts as a wall, so walks should come to every cell that they can
(`collect.py --explorer.goals tour`): where free cells are left out, the map takes others like them,
side passages above all, for walls. For the same reason short episodes are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from worldsim.diffusion import noise_slightly
from worldsim.latents import LatentEpisodes
from worldsim.occupancy import Occupancy
from worldsim.places_training import ReadEpisodes
from worldsim.training import Losses, LossFunction, check_divides, own_share, step_rng
from worldsim.training_config import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class OccupancyTraining:
    """How the map is trained."""

    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            steps=600, learning_rate=2e-3, muon_learning_rate=0, decay_share=0.5, ema_decay=0.99
        )
    )
    batch_size: int = 8
    """Episodes per step, over all processes."""
    stride: int = 4
    """Every so manieth frame of an episode is drawn to its map."""
    min_signal: float = 0.9
    """Lowest signal level of the latents: dreamed frames, which it also follows, are not exact."""


def long_enough(lengths: np.ndarray) -> np.ndarray:
    """Indices of the episodes that the map learns from: at least half as long as the longest.

    These have come to most of what can be come to.
    """
    return np.flatnonzero(2 * lengths >= lengths.max())


def occupancy_loss(
    episodes: LatentEpisodes,
    read: ReadEpisodes,
    occupancy: Occupancy,
    config: OccupancyTraining,
    accel: Accelerator,
) -> LossFunction:
    """Loss function of a step of training the map; its model is its `LossModule`.

    Raises:
        ValueError: a batch does not divide by the processes.
    """
    check_divides(accel, config.batch_size)
    come_to = torch.zeros(len(episodes.lengths), occupancy.config.side**2, dtype=torch.bool)
    for i, (offset, size) in enumerate(zip(episodes.offsets, episodes.lengths, strict=True)):
        walked = occupancy.cell_of(read.stands[offset : offset + size, :2])
        come_to[i, occupancy.index(walked).cpu()] = True
    usable, length = long_enough(episodes.lengths), int(episodes.lengths.max())

    def loss(model: nn.Module, step: int) -> tuple[Tensor, Losses]:
        rng, generator = step_rng(config.optimizer.seed, step)
        chosen = rng.choice(usable, size=config.batch_size)
        frames = np.arange(rng.integers(min(config.stride, length)), length, config.stride)
        last = episodes.lengths[chosen][:, None] - 1
        index = torch.from_numpy(episodes.offsets[chosen][:, None] + np.minimum(frames, last))
        batch = (
            noise_slightly(episodes.latents[index].float(), config.min_signal, generator),
            read.read_outs[index].float(),
            read.stands[index],
            come_to[torch.from_numpy(chosen)],
            torch.from_numpy(frames <= last),
        )
        total = model(*(own_share(accel, x) for x in batch))
        return total, {"occupancy": total}

    return loss
