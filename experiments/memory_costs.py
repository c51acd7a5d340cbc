"""What memory costs: training against segment length, a dreamed frame against context length.

Weights do not matter for cost, so models are measured as they are made, all in one run.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import torch
from torch import Tensor

from worldsim.diffusion import sample_signal_levels
from worldsim.state import WorldState
from worldsim.world_model import WorldModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostConfig:
    """What is measured."""

    training_lengths: tuple[int, ...] = (64, 128, 256, 512)
    frames_per_step: int = 512
    """Frames of a training step, in segments of each length."""
    contexts: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    """Frames observed before the dream steps that are timed."""
    num_envs: int = 1
    repeats: int = 7
    """Measurements of which the median is taken."""


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def random_actions(model: WorldModel, batch_size: int, length: int, g: torch.Generator) -> Tensor:
    """Actions (b, t), or poses (b, t, 3) where the model is told poses; on g's device."""
    if model.told_poses:
        return torch.randn(batch_size, length, 3, generator=g, device=g.device)
    shape = (batch_size, length)
    return torch.randint(model.config.num_actions, shape, generator=g, device=g.device)


def measure_training(
    model: WorldModel, length: int, config: CostConfig, dtype: torch.dtype
) -> dict[str, float]:
    """Seconds per frame of forward and backward, and bytes per frame kept for the backward pass.

    Args:
        model: any weights, float32.
        length: frames per segment.
        config: what is measured.
        dtype: of mixed precision; float32 is off.
    """
    device = model.device
    b = max(config.frames_per_step // length, 1)
    g = torch.Generator().manual_seed(0)
    shape = (b, length, *model.config.tokenizer.latent_shape)
    signal, mask = sample_signal_levels(b, length, model.config.diffusion, g)
    batch = [
        torch.randn(shape, generator=g),
        torch.randint(model.config.num_actions, (b, length), generator=g),
        torch.randn(b, length, 3, generator=g),
        torch.zeros(b, length),
        torch.zeros(b, length, dtype=torch.bool),
        torch.zeros(b, length),
        torch.ones(b, length),
        torch.randn(shape, generator=g),
        signal,
        mask,
    ]
    batch = [t.to(device) for t in batch]
    model.train()
    kept: dict[int, int] = {}

    def count(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return t

    def losses() -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return sum(model(*batch).values(), torch.zeros((), device=device))

    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):  # which warms up, too
        loss = losses()
    nbytes = sum(size for pointer, size in kept.items() if pointer not in parameters)
    loss.backward()
    seconds = []
    for _ in range(config.repeats):
        model.zero_grad()
        synchronise(device)
        start = time.perf_counter()
        losses().backward()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    model.zero_grad()
    model.eval()
    return {
        "length": length,
        "seconds_per_frame": float(np.median(seconds)) / (b * length),
        "bytes_per_frame": nbytes / (b * length),
    }


@torch.no_grad()
def measure_dreaming(model: WorldModel, config: CostConfig) -> list[dict[str, float]]:
    """Milliseconds per dreamed frame (without its decoding) and state bytes, by context length."""
    model.eval()
    device, b = model.device, config.num_envs
    g = torch.Generator(device).manual_seed(0)
    state: WorldState = model.initial_state(b)
    states: list[tuple[WorldState, Tensor]] = []
    done = 0
    for context in sorted(config.contexts):
        new = context - done
        shape = (b, new, *model.config.tokenizer.latent_shape)
        latents = torch.randn(shape, generator=g, device=device)
        actions = random_actions(model, b, new, g)
        state, _ = model.observe_latents(state, actions, latents)
        states.append((state, actions[:, -1]))
        done = context
    # Round by round, so that what else the machine does slows all contexts alike.
    seconds: list[list[float]] = [[] for _ in states]
    for i in range(config.repeats + 1):
        for (state, action), times in zip(states, seconds, strict=True):
            synchronise(device)
            start = time.perf_counter()
            model.imagine(state, action, generator=g, decode=False)
            synchronise(device)
            if i:
                times.append(time.perf_counter() - start)
    return [
        {
            "context": context,
            "milliseconds": 1000 * float(np.median(times)) / b,
            "state_bytes": state.nbytes / b,
        }
        for context, (state, _), times in zip(sorted(config.contexts), states, seconds, strict=True)
    ]
