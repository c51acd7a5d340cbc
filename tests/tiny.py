"""A world model small enough to dream hundreds of steps in a second, and episodes to train it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from worldsim.backbone import BlockSSMConfig
from worldsim.checkpoint import Contexts
from worldsim.dataset_writer import DatasetWriter
from worldsim.recording import RecordedEpisode
from worldsim.tokenizer import TokenizerConfig
from worldsim.world_model import WorldModel
from worldsim.world_model_config import WorldModelConfig

NUM_ACTIONS = 6


def tiny_config(num_actions: int = NUM_ACTIONS) -> WorldModelConfig:
    """Frames (64, 64, 3), 2 x 2 tokens, two layers."""
    return WorldModelConfig(
        num_actions=num_actions,
        tokenizer=TokenizerConfig(
            frame_shape=(64, 64, 3), patch_size=32, channels=(16,), latent_channels=8
        ),
        backbone=BlockSSMConfig(
            d_model=32,
            num_layers=2,
            block_sizes=(1, 2),
            window=4,
            head_dim=16,
            d_state=8,
            mlp_ratio=2,
            chunk_size=8,
        ),
        num_denoising_steps=2,
    )


@torch.no_grad()
def leave_nothing_at_zero(module: torch.nn.Module, std: float = 0.3) -> None:
    """Make everything matter: what begins at zero becomes noise, but for terminations, which would
    end dreams at once."""
    for name, parameter in module.named_parameters():
        if (parameter == 0).any() and not name.startswith("termination_head"):
            noise = std * torch.randn_like(parameter)
            parameter.copy_(torch.where(parameter == 0, noise, parameter))


def tiny_model(seed: int = 0, num_actions: int = NUM_ACTIONS, **changes: Any) -> WorldModel:
    """A model whose dreams depend on everything: no weight is left at zero.

    `changes` are fields of its config.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = WorldModel(dataclasses.replace(tiny_config(num_actions), **changes))
        leave_nothing_at_zero(model)
    return model.eval()


def tiny_contexts(
    n: int = 5, length: int = 6, seed: int = 0, num_actions: int = NUM_ACTIONS
) -> Contexts:
    """Smooth random frames and random actions, each from the start of an episode."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, length, 8, 8, 3)).astype(np.uint8)
    frames = coarse.repeat(8, axis=2).repeat(8, axis=3)
    actions = rng.integers(num_actions, size=(n, length))
    actions[:, 0] = num_actions
    return Contexts(frames, actions)


def write_dataset(
    root: Path,
    num_episodes: int = 6,
    num_steps: int = 19,
    seed: int = 0,
    size: int = 16,
    poses: bool = False,
    paid_action: int = 0,
) -> Path:
    """Record episodes of frames (size, size, 3) that show the action that led to them.

    One action is rewarded; every second episode terminates, the others are truncated. With `poses`,
    the infos are those of somebody who turns by the action and walks 0.1 cells.
    """
    rng = np.random.default_rng(seed)
    colours = np.random.default_rng(0).integers(0, 256, (NUM_ACTIONS + 1, 2, 2, 3), dtype=np.uint8)
    spaces = (gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8), gymnasium.spaces.Discrete(6))
    with DatasetWriter("tiny/episodes-v0", *spaces, {"seed": seed}, root=root) as writer:
        for index in range(num_episodes):
            actions = rng.integers(NUM_ACTIONS, size=num_steps)
            frames = colours[np.concatenate([[NUM_ACTIONS], actions])]
            ends = np.arange(num_steps) == num_steps - 1
            heading = np.concatenate([[0], actions]).cumsum() * 0.5
            direction = np.stack([np.cos(heading), np.sin(heading)], axis=1).astype(np.float32)
            walk = {"agent_pos": 0.1 * direction.cumsum(0), "agent_dir": direction}
            episode = RecordedEpisode(
                observations=frames.repeat(size // 2, axis=1).repeat(size // 2, axis=2),
                actions=actions,
                rewards=(actions == paid_action).astype(np.float64),
                terminations=ends & (index % 2 == 0),
                truncations=ends & (index % 2 == 1),
                infos=walk if poses else {},
                seed=index,
                metadata={},
            )
            writer.save(index, episode)
        return writer.path
