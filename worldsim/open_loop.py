"""Open-loop quality: observe a real context, dream on under the true actions, compare by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from worldsim.episodes import Episode, EpisodeDataset
from worldsim.metrics import psnr, ssim
from worldsim.pose import poses_of, relative_poses
from worldsim.world_model import WorldModel


@dataclass(frozen=True)
class OpenLoopResult:
    """Dreams of held-out stretches beside the truth. Arrays are (n, horizon, ...)."""

    real: np.ndarray
    """Frames (n, horizon, h, w, c) uint8."""
    dreamed: np.ndarray
    psnr: dict[str, np.ndarray]
    """(n, horizon) dB of "dream", "autoencoder" (ceiling), "copy_last" and "shuffled" (floors: the
    last context frame, and the same dreams under shuffled actions)."""
    ssim: dict[str, np.ndarray]
    rewards: np.ndarray
    """(n, horizon) real rewards."""
    dreamed_rewards: np.ndarray


def draw_episodes(
    dataset: EpisodeDataset, num_stretches: int, length: int, seed: int, *, going_on: bool = False
) -> list[Episode]:
    """Stretches of as many different episodes as there are, each at a random start.

    With `going_on`, none ends in a frame in which its episode terminated.

    Raises:
        ValueError: no episode is that long.
    """
    rng = np.random.default_rng(seed)
    lengths = dataset.frames_going_on() if going_on else dataset.lengths
    long = np.flatnonzero(lengths >= length)
    if not len(long):
        raise ValueError(f"no episode has {length} frames; the longest {lengths.max()}")
    stretches = []
    for i in np.resize(rng.permutation(long), num_stretches):
        start = int(rng.integers(lengths[i] - length + 1))
        stretches.append(dataset.episode(int(i), start, start + length))
    return stretches


def draw_stretches(
    dataset: EpisodeDataset, num_stretches: int, length: int, seed: int, *, going_on: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `draw_episodes` draws, as arrays.

    Returns:
        Frames (n, t, h, w, c) uint8, actions (n, t) int64, rewards (n, t) float32.

    Raises:
        ValueError: no episode is that long.
    """
    stretches = draw_episodes(dataset, num_stretches, length, seed, going_on=going_on)
    return (
        np.stack([s.frames for s in stretches]),
        np.stack([s.actions for s in stretches]),
        np.stack([s.rewards for s in stretches]),
    )


def evaluate_open_loop(
    model: WorldModel,
    frames: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    *,
    context: int,
    seed: int = 0,
    num_denoising_steps: int | None = None,
    floors: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> OpenLoopResult:
    """Observe the first `context` frames of each stretch, dream the others.

    Args:
        model: the world model.
        frames, actions, rewards: as from `draw_stretches`, (n, context + horizon, ...).
        context: real frames observed first.
        seed: of the dreams' noise and the shuffling.
        num_denoising_steps: overrides the model's.
        floors: also dream under shuffled actions.
        progress: called with (steps done, steps in all).
    """
    device = model.device
    x = torch.from_numpy(frames).to(device)
    a = torch.from_numpy(actions).to(device)
    state = model.observe(model.initial_state(len(x)), a[:, :context], x[:, :context])
    real, future = x[:, context:], a[:, context:]
    total = future.shape[1] * (1 + floors)

    def dream(actions: torch.Tensor, before: int) -> tuple[torch.Tensor, torch.Tensor]:
        return model.dream(
            state,
            actions,
            generator=torch.Generator(device).manual_seed(seed),
            num_denoising_steps=num_denoising_steps,
            progress=lambda done, _: progress(before + done, total),
        )

    dreamed, predicted = dream(future, 0)
    if floors:
        order = np.random.default_rng(seed).permuted(
            np.tile(np.arange(future.shape[1]), (len(x), 1)), axis=1
        )
        shuffled, _ = dream(future.gather(1, torch.from_numpy(order).to(device)), total // 2)
    candidates = {
        "dream": dreamed,
        "autoencoder": model.decode(model.encode(real)),
        "copy_last": x[:, context - 1 : context].expand_as(real),
    }
    if floors:
        candidates["shuffled"] = shuffled
    return OpenLoopResult(
        real=real.cpu().numpy(),
        dreamed=dreamed.cpu().numpy(),
        psnr={k: psnr(v, real).cpu().numpy() for k, v in candidates.items()},
        ssim={k: ssim(v, real).cpu().numpy() for k, v in candidates.items()},
        rewards=rewards[:, context:],
        dreamed_rewards=predicted.cpu().numpy(),
    )


@torch.no_grad()
def encode_episode(model: WorldModel, episode: Episode) -> tuple[torch.Tensor, torch.Tensor]:
    """Actions (1, t) int64 and latents (1, t, n, c) float32, on the model's device."""
    parts = torch.from_numpy(episode.frames).split(128)
    latents = torch.cat([model.encode(part.to(model.device)) for part in parts])[None]
    return torch.from_numpy(episode.actions)[None].to(model.device), latents


@torch.no_grad()
def read_out_episode(model: WorldModel, episode: Episode) -> torch.Tensor:
    """Have a model observe an episode from its beginning; features (t, d) float32 of its frames."""
    state = model.initial_state(1)
    return model.observe_latents(state, *encode_episode(model, episode))[1][0]


@torch.no_grad()
def odometry_error(
    model: WorldModel, dataset: EpisodeDataset, num_episodes: int = 4, length: int = 500
) -> np.ndarray:
    """How far from the truth a model's odometry is after so many real frames.

    Args:
        model: with odometry.
        dataset: episodes with poses in their infos.
        num_episodes: of the first ones, those that are long enough.
        length: frames of each.

    Returns:
        (length,) mean distance in cells by frame.

    Raises:
        ValueError: the model has no odometry, no episode is that long, or there are no poses.
    """
    if model.odometry is None:
        raise ValueError("this model has no odometry")
    long = np.flatnonzero(dataset.lengths >= length)[:num_episodes]
    if not len(long):
        raise ValueError(f"no episode has {length} frames; the longest {dataset.lengths.max()}")
    errors = []
    for i in long:
        episode = dataset.episode(int(i), 0, length)
        start = model.initial_state(1)
        seen = encode_episode(model, episode)
        found, _, _ = model.odometry.locate(start.memory, *seen, start.steps)
        true = relative_poses(torch.from_numpy(poses_of(episode.infos))[None])
        errors.append((found.cpu() - true)[0, :, :2].norm(dim=-1).numpy())
    return np.mean(errors, axis=0)
