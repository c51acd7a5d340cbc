"""Where the camera is, as features that a network can compare.

A pose is (x, y, heading): a position in the plane and an angle in radians. Positions become sines
and cosines of several wavelengths (Fourier features, Tancik et al. 2020, arXiv 2006.10739), so that
near places look alike and far ones do not; a heading becomes its first harmonics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
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
    field_of_view: float = 0.0
    """Horizontal, in degrees: the pose of a token then has the heading of its column of the image;
    0 gives all tokens that of the camera."""
    rotary: bool = True
    """Rotate what memories are looked up by, too; see `PoseRotation`."""
    lengths: tuple[float, ...] = (0.7, 1.5, 3.0)
    """How near places must be to be alike to rotations, in the unit of positions; each for a share
    of the frequencies."""
    max_harmonic: int = 3
    """Of the heading, in rotations: 3 tells headings apart that differ by some 60 degrees."""
    per_head: bool = False
    """Heads of a scan turn by frequencies of their own, as those of attention always do, and so
    look up in ways of their own; no state grows by it."""
    learned: bool = False
    """Rotations by position are trained too, from the drawn frequencies on. Those by heading stay
    whole numbers, so that a full turn changes nothing."""

    def __post_init__(self) -> None:
        if not 0 <= self.field_of_view < 180:
            raise ValueError(f"field_of_view is {self.field_of_view}; it must be 0 to below 180")
        if not self.lengths or min(self.lengths) <= 0:
            raise ValueError(f"lengths are {self.lengths}; they must be above 0")

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
        ValueError: the infos have none, or of another shape.
    """
    if not has_poses(infos):
        raise ValueError(
            "these episodes have no poses (agent_pos and agent_dir): collect them with privileged "
            "infos, or train a model that is told actions"
        )
    for name in ("agent_pos", "agent_dir"):
        if infos[name].ndim != 2 or infos[name].shape[1] != 2:
            raise ValueError(
                f"poses are positions and directions on a plane: {name} must have shape (t, 2), "
                f"got {infos[name].shape}"
            )
    heading = np.arctan2(infos["agent_dir"][:, 1], infos["agent_dir"][:, 0])
    return np.concatenate([infos["agent_pos"], heading[:, None]], axis=1).astype(np.float32)


def seen_from(poses: Tensor, places: Tensor) -> Tensor:
    """Places (..., 2) as poses (..., 3) see them: ahead and to the left, (..., 2)."""
    dx, dy = (places - poses[..., :2]).unbind(-1)
    cos, sin = poses[..., 2].cos(), poses[..., 2].sin()
    return torch.stack([dx * cos + dy * sin, dy * cos - dx * sin], dim=-1)


def placed_at(poses: Tensor, seen: Tensor) -> Tensor:
    """Where what is seen (..., 2) from poses (..., 3) is: the inverse of `seen_from`."""
    ahead, left = seen.unbind(-1)
    cos, sin = poses[..., 2].cos(), poses[..., 2].sin()
    return poses[..., :2] + torch.stack([ahead * cos - left * sin, ahead * sin + left * cos], -1)


def relative_poses(poses: Tensor) -> Tensor:
    """Poses (b, t, 3) seen from the first of each sequence, which becomes (0, 0, 0)."""
    step = poses[..., 2:] - poses[:, :1, 2:]
    turn = torch.atan2(step.sin(), step.cos())
    return torch.cat([seen_from(poses[:, :1], poses[..., :2]), turn], dim=-1)


def compose(first: Tensor, then: Tensor) -> Tensor:
    """The pose that is `then` (..., 3) as seen from `first` (..., 3); headings are not wrapped."""
    return torch.cat([placed_at(first, then[..., :2]), first[..., 2:] + then[..., 2:]], dim=-1)


def wrapped(heading: Tensor) -> Tensor:
    """The same headings in -pi to pi."""
    return torch.remainder(heading + math.pi, 2 * math.pi) - math.pi


def inverse(poses: Tensor) -> Tensor:
    """What the origin is as seen from poses (..., 3)."""
    origin = torch.zeros_like(poses[..., :2])
    return torch.cat([seen_from(poses, origin), -poses[..., 2:]], dim=-1)


def token_poses(poses: Tensor, grid: tuple[int, int], field_of_view: float) -> Tensor:
    """Where each token of a frame is seen from, and in which direction.

    Args:
        poses: (b, t, 3) of the camera, headings counterclockwise.
        grid: rows and columns of tokens.
        field_of_view: horizontal, in degrees; 0 for the camera's heading everywhere.

    Returns:
        (b, t, n, 3) float32 in raster order.
    """
    rows, columns = grid
    middle = (torch.arange(columns, device=poses.device) + 0.5) / columns * 2 - 1
    to_the_left = -torch.atan(middle * math.tan(math.radians(field_of_view / 2)))
    tokens = poses.float()[:, :, None].repeat(1, 1, rows * columns, 1)
    tokens[..., 2] += to_the_left.repeat(rows)
    return tokens


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


class PoseRotation(nn.Module):
    """Turns pairs of numbers by angles that are linear in the pose.

    The product of two vectors turned so depends on their poses only through the difference: with
    equal vectors it is a sum of cosines, largest for equal poses, and with these random frequencies
    near the kernel exp(-distance^2 / 2 length^2) (random Fourier features, Rahimi and Recht 2007;
    as rotations, Su et al. 2021, arXiv 2104.09864). So keys and queries, or the input and output
    maps of a scan, are alike where they were seen from near poses, wherever that is.

    Args:
        config: lengths and harmonics.
        width: of the vectors, even.
        num_heads: each has frequencies of its own.
        seed: of the frequencies.

    Raises:
        ValueError: the width is odd.
    """

    frequencies: Tensor
    """As they are drawn, (num_heads, width / 2, 3): radians per unit of position and of heading."""

    def __init__(self, config: PoseConfig, width: int, num_heads: int = 1, seed: int = 0) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"vectors of width {width} have no pairs to rotate; make it even")
        rng = np.random.default_rng(seed)
        shape = (num_heads, width // 2)
        place = rng.normal(size=(*shape, 2)) / rng.choice(config.lengths, size=(*shape, 1))
        harmonic = rng.integers(-config.max_harmonic, config.max_harmonic + 1, size=(*shape, 1))
        frequencies = np.concatenate([place, harmonic], axis=-1).astype(np.float32)
        self.register_buffer("frequencies", torch.from_numpy(frequencies))
        self.learned = nn.Parameter(torch.zeros(*shape, 2)) if config.learned else None
        """Added to the frequencies of x and y."""

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """The first checkpoints did not hold the frequencies, which are those of the seed."""
        state_dict.setdefault(prefix + "frequencies", self.frequencies)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def angles(self, poses: Tensor) -> Tensor:
        """Poses (..., 3) to angles (..., num_heads, width / 2), float32 under autocast too."""
        with torch.autocast(poses.device.type, enabled=False):
            frequencies = self.frequencies.float()
            if self.learned is not None:
                frequencies = frequencies + F.pad(self.learned.float(), (0, 1))
            return torch.einsum("...i,hfi->...hf", poses.float(), frequencies)
