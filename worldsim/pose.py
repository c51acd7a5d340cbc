"""Where the camera is, as features that a network can compare.

A pose is (x, y, heading): a position in the plane and an angle in radians. Positions become sines
and cosines of several wavelengths (Fourier features, Tancik et al. 2020, arXiv 2006.10739), so that
near places look alike and far ones do not; a heading becomes its first harmonics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class PoseConfig:
    """How poses are made into features."""

    wavelength: float = 16.0
    """Longest wavelength of a position's features, in the unit of positions; about the size of the
    world."""
    octaves: int = 5
    """Wavelengths, each half of the one before."""
    harmonics: int = 4
    """Of the heading."""

    @property
    def num_features(self) -> int:
        return 4 * self.octaves + 2 * self.harmonics


def has_poses(infos: Mapping[str, np.ndarray]) -> bool:
    """Whether infos tell poses."""
    return "agent_pos" in infos and "agent_dir" in infos


def poses_of(infos: Mapping[str, np.ndarray]) -> np.ndarray:
    """Poses (t, 3) float32 of an episode: x and y in cells, and the heading in radians.

    Args:
        infos: with agent_pos (t, 2) and agent_dir (t, 2), as privileged Memory Mazes give them.

    Raises:
        ValueError: the infos have none.
    """
    if not has_poses(infos):
        raise ValueError(
            "these episodes have no poses (agent_pos and agent_dir): collect them with privileged "
            "infos, or train a model that is told actions"
        )
    heading = np.arctan2(infos["agent_dir"][:, 1], infos["agent_dir"][:, 0])
    return np.concatenate([infos["agent_pos"], heading[:, None]], axis=1).astype(np.float32)


def relative_poses(poses: Tensor) -> Tensor:
    """Poses (b, t, 3) seen from the first of each sequence, which becomes (0, 0, 0)."""
    step = poses - poses[:, :1]
    cos, sin = poses[:, :1, 2].cos(), poses[:, :1, 2].sin()
    ahead = step[..., 0] * cos + step[..., 1] * sin
    left = step[..., 1] * cos - step[..., 0] * sin
    turn = torch.atan2(step[..., 2].sin(), step[..., 2].cos())
    return torch.stack([ahead, left, turn], dim=-1)


def pose_features(poses: Tensor, config: PoseConfig) -> Tensor:
    """Features of poses: (..., 3) float32 to (..., num_features) float32."""
    position, heading = poses[..., :2], poses[..., 2:]
    octave = torch.arange(config.octaves, device=poses.device)
    places = position[..., None] * (2 * math.pi / config.wavelength * 2.0**octave)
    angles = heading * torch.arange(1, config.harmonics + 1, device=poses.device)
    parts = torch.cat([places.flatten(-2), angles], dim=-1)
    return torch.cat([parts.sin(), parts.cos()], dim=-1)


class PoseEmbedding(nn.Module):
    """Poses to vectors of width d: (..., 3) float32 to (..., d).

    It begins larger than the embedded latents, so that frames seen from near poses make near tokens
    and a memory can look one up by the other from the first steps of training.
    """

    def __init__(self, config: PoseConfig, d_model: int) -> None:
        super().__init__()
        self.config = config
        first, last = nn.Linear(config.num_features, d_model), nn.Linear(d_model, d_model)
        nn.init.normal_(first.weight, std=2 * config.num_features**-0.5)
        nn.init.normal_(last.weight, std=3 * d_model**-0.5)
        self.layers = nn.Sequential(first, nn.SiLU(), last)

    def forward(self, poses: Tensor) -> Tensor:
        return self.layers(pose_features(poses, self.config))
