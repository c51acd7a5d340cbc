"""Diffusion forcing: noise levels, the loss, and the few-step sampler. Networks are arguments.

Conventions: the signal level s runs from 0 (pure noise) to 1 (clean); a noised latent is
z = s x + (1 - s) e with e standard normal (flow matching), and networks predict x.

Sources: diffusion forcing, Chen et al. 2024 (arXiv 2407.01392); the clean prefix, Po et al. 2025
(arXiv 2505.20171); stochastic clean context, Gu et al. 2025 (FAR, arXiv 2503.19325); x-prediction
and slightly noised context, Hafner et al. 2025 (Dreamer 4, arXiv 2509.24527).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class DiffusionForcingConfig:
    """How noise is laid over a training segment."""

    clean_prefix_probability: float = 0.3
    """Share of segments with a prefix longer than half that is all context, and no loss on it."""
    context_probability: float = 0.5
    """Share of the other frames that are context, as nearly all frames are in a dream; 0 noises
    every frame independently."""
    noisy_context_probability: float = 0.75
    """Share of segments whose context carries a slight noise, as the dream's own frames do."""
    min_context_signal: float = 0.7
    """Lowest signal level of such a context."""
    level_power: float = 2.0
    """Signal levels of all frames that are no context are uniform draws raised to this power:
    above 1 they lean to pure noise, where dreaming a frame begins."""


def add_noise(x: Tensor, noise: Tensor, signal: Tensor) -> Tensor:
    """x, noise (b, t, n, c); signal (b, t)."""
    s = signal[..., None, None]
    return s * x + (1 - s) * noise


def noise_slightly(x: Tensor, min_signal: float, generator: torch.Generator) -> Tensor:
    """Noise segments (b, t, n, c), each to one signal level of at least `min_signal`."""
    noise = torch.randn(x.shape, generator=generator)
    level = torch.rand(x.shape[0], 1, generator=generator)
    return add_noise(x, noise, (1 - (1 - min_signal) * level).expand(x.shape[:2]))


def sample_signal_levels(
    batch_size: int, length: int, config: DiffusionForcingConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw signal levels for training segments.

    Returns:
        Signal levels (b, t) float32 in [0, 1], and a mask (b, t) bool that is False on prefixes.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=generator.device)

    signal = uniform(batch_size, length) ** config.level_power
    shortest = length // 2 + 1
    prefix_length = shortest + (uniform(batch_size, 1) * (length - shortest)).long()
    prefix_length = prefix_length.clamp(max=length - 1)  # one frame at least is learned from
    has_prefix = uniform(batch_size, 1) < config.clean_prefix_probability
    index = torch.arange(length, device=generator.device)
    in_prefix = has_prefix & (index < prefix_length)
    is_context = in_prefix | (uniform(batch_size, length) < config.context_probability)
    slightly = 1 - (1 - config.min_context_signal) * uniform(batch_size, 1)
    noisy = uniform(batch_size, 1) < config.noisy_context_probability
    context_signal = torch.where(noisy, slightly, torch.ones_like(slightly))
    return torch.where(is_context, context_signal, signal), ~in_prefix


def diffusion_loss(prediction: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """Squared error of the predicted clean latent over masked frames.

    Every segment counts the same, so that means over parts of a batch average to the whole's.

    Args:
        prediction, x: (b, t, n, c). mask: (b, t) bool.

    Returns:
        Scalar; an exact denoiser has zero.
    """
    error = (prediction.float() - x.float()).square().mean((-1, -2))
    return ((error * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


def sample(denoise: Callable[[Tensor, float], Tensor], noise: Tensor, num_steps: int) -> Tensor:
    """Euler steps of the probability flow from noise to a clean sample.

    Args:
        denoise: maps a noised latent and its signal level to the predicted clean latent.
        noise: standard normal start, any shape.
        num_steps: network evaluations, 1 or more.

    Raises:
        ValueError: `num_steps` is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_denoising_steps is {num_steps}; it must be 1 or more")
    z = noise
    for step in range(num_steps):
        s, s_next = step / num_steps, (step + 1) / num_steps
        x = denoise(z, s)
        z = z + (x - z) * ((s_next - s) / (1 - s))
    return z
