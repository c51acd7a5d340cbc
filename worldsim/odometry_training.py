"""Training of the odometry: before the world model, on latents in order and true poses."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn

from worldsim.diffusion import noise_slightly
from worldsim.latents import LatentEpisodes
from worldsim.training import Losses, LossFunction, check_divides, own_share, step_rng
from worldsim.training_config import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class OdometryTraining:
    """How the odometry is trained."""

    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            steps=1500, learning_rate=3e-3, muon_learning_rate=0, decay_share=0.7, ema_decay=0.99
        )
    )
    batch_size: int = 16
    """Segments per step, over all processes."""
    length: int = 256
    """Frames per segment, or as many as nine of ten episodes have; shorter ones are left out."""
    min_signal: float = 0.95
    """Lowest signal level of the latents: dreamed frames, which it also follows, are not exact."""


def odometry_loss(
    episodes: LatentEpisodes, config: OdometryTraining, accel: Accelerator
) -> LossFunction:
    """Loss function of a step of odometry training; its model is its `LossModule`.

    Raises:
        ValueError: the episodes have no poses, or a batch does not divide by the processes.
    """
    if episodes.poses is None:
        raise ValueError("odometry learns from poses, but these episodes were read without")
    check_divides(accel, config.batch_size)
    length = min(config.length, max(int(np.quantile(episodes.lengths, 0.1)), 2))

    def loss(model: nn.Module, step: int) -> tuple[Tensor, Losses]:
        rng, generator = step_rng(config.optimizer.seed, step)
        batch = episodes.sample(config.batch_size, length, rng)
        latents = noise_slightly(batch.latents, config.min_signal, generator)
        parts = (own_share(accel, x) for x in (batch.actions, latents, batch.poses))
        value = model(*parts)
        return value, {"error": value}

    return loss
