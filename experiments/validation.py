"""Open-loop validation of a world model on held-out episodes while it trains."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from experiments.told_rewards import rewards_on_real_frames
from experiments.train_config import ValidationConfig
from experiments.videos import add_video
from worldsim.episodes import EpisodeDataset
from worldsim.open_loop import draw_stretches, evaluate_open_loop, odometry_error
from worldsim.pose import has_poses
from worldsim.world_model import WorldModel


@torch.no_grad()
def validate(
    model: WorldModel,
    held_out: EpisodeDataset,
    config: ValidationConfig,
    writer: SummaryWriter,
    step: int,
) -> dict[str, float]:
    """Dream held-out stretches; writes scalars and a side-by-side video."""
    length = min(config.context + config.horizon, int(held_out.lengths.max()))
    context = length - min(config.horizon, length - 1)
    frames, actions, rewards = draw_stretches(held_out, config.num_contexts, length, seed=0)
    result = evaluate_open_loop(model, frames, actions, rewards, context=context, floors=False)
    values = {}
    for horizon in (8, 16, 32, 64):
        if horizon <= length - context:
            values[f"psnr_{horizon}"] = float(result.psnr["dream"][:, :horizon].mean())
            values[f"ssim_{horizon}"] = float(result.ssim["dream"][:, :horizon].mean())
            values[f"copy_last_psnr_{horizon}"] = float(
                result.psnr["copy_last"][:, :horizon].mean()
            )
    values["autoencoder_psnr"] = float(result.psnr["autoencoder"].mean())
    told = rewards_on_real_frames(model, held_out, num_episodes=4, length=500)
    for name in ("precision", "recall", "average_precision"):
        values[f"reward_{name}"] = told[f"real_{name}"]
    if model.odometry is not None and has_poses(held_out.infos(0)):
        errors = odometry_error(model, held_out, length=min(257, int(held_out.lengths.max())))
        for frames_seen in (16, 64, 256):
            if frames_seen < len(errors):
                values[f"odometry_error_{frames_seen}"] = float(errors[frames_seen])
    for key, value in values.items():
        writer.add_scalar(f"validation/{key}", value, step)
    pair = np.concatenate([result.real, result.dreamed], axis=2)[:4]  # real above dreamed
    video = np.concatenate(list(pair), axis=2)  # (t, 2h, 4w, c)
    add_video(writer, "validation/real_above_dream", video, step)
    return values
