"""Where the camera went, from actions and frames: poses for a model that is told them.

A recurrent network reads the actions and the frames' latents and says how far the camera moved with
each action: before the frame is seen (as a dream must) and better after (as with real frames). The
displacements add up to poses relative to where memory began. True poses are needed in training
only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldsim.layers import Memory
from worldsim.pose import relative_poses

HIDDEN, POSE = "odometry.hidden", "odometry.pose"
"""Names in a world model's memory: the recurrent state (b, hidden), and where it is (b, 3)."""


@dataclass(frozen=True, kw_only=True)
class OdometryConfig:
    """Size of the odometry."""

    hidden: int = 128
    """Width of the recurrent network."""


def displacements(poses: Tensor) -> Tensor:
    """What each pose is, seen from the one before.

    Args:
        poses: (b, t, 3) float32, each x, y and heading in radians.

    Returns:
        (b, t, 3) float32 ahead, to the left, and the turn in -pi to pi; zero for the first frame.
    """
    pairs = torch.stack([poses[:, :-1], poses[:, 1:]], dim=2).flatten(0, 1)
    moved = relative_poses(pairs)[:, 1].unflatten(0, (len(poses), -1))
    return F.pad(moved, (0, 0, 1, 0))


def integrate(pose: Tensor, moved: Tensor) -> Tensor:
    """The poses that displacements lead to: the inverse of `displacements`.

    Args:
        pose: (b, 3) before the first. moved: (b, t, 3).

    Returns:
        (b, t, 3) float32, headings in -pi to pi.
    """
    heading = pose[:, None, 2] + moved[..., 2].cumsum(1)
    before = torch.cat([pose[:, None, 2], heading[:, :-1]], dim=1)
    cos, sin = before.cos(), before.sin()
    dx = moved[..., 0] * cos - moved[..., 1] * sin
    dy = moved[..., 0] * sin + moved[..., 1] * cos
    place = pose[:, None, :2] + torch.stack([dx, dy], dim=-1).cumsum(1)
    heading = torch.remainder(heading + math.pi, 2 * math.pi) - math.pi
    return torch.cat([place, heading[..., None]], dim=-1)


class Odometry(nn.Module):
    """Displacements of the camera from actions and latents.

    Args:
        num_actions: actions, "no action" not counted.
        latent_size: numbers in the latents of a frame.
        config: sizes.
    """

    SCALE = 0.2
    """Of displacements inside the network: about that of a step, in cells and radians."""

    def __init__(self, num_actions: int, latent_size: int, config: OdometryConfig) -> None:
        super().__init__()
        self.config = config
        h = config.hidden
        self.action_in = nn.Embedding(num_actions + 1, h)
        self.latent_in = nn.Linear(latent_size, h)
        self.network = nn.GRU(2 * h, h, batch_first=True)
        self.before = nn.Sequential(nn.Linear(2 * h, h), nn.SiLU(), nn.Linear(h, 3))
        self.after = nn.Sequential(nn.Linear(h, h), nn.SiLU(), nn.Linear(h, 3))

    def initial_memory(self, batch_size: int) -> Memory:
        """Before the first frame: at the origin."""
        device = self.latent_in.weight.device
        hidden = torch.zeros(batch_size, self.config.hidden, device=device)
        return {HIDDEN: hidden, POSE: torch.zeros(batch_size, 3, device=device)}

    def expect(self, memory: Memory, actions: Tensor, steps: Tensor) -> Tensor:
        """Pose that an action will lead to, before its frame is there.

        Args:
            memory: as from `initial_memory` or `locate`.
            actions: (b,) integers. steps: (b,) frames that came before.

        Returns:
            (b, 1, 3) float32.
        """
        actions = actions.long()
        inputs = torch.cat([memory[HIDDEN], self.action_in(actions)], dim=-1)
        moved = self._moved(self.before(inputs), actions) * (steps > 0)[:, None]
        return integrate(memory[POSE], moved[:, None])

    def locate(
        self,
        memory: Memory,
        actions: Tensor,
        latents: Tensor,
        steps: Tensor,
        poses: Tensor | None = None,
    ) -> tuple[Tensor, Memory]:
        """Follow frames. The first that is remembered is the origin, whatever led there.

        Args:
            memory: as from `initial_memory` or a call before.
            actions: (b, t) integers, those that led to the frames.
            latents: (b, t, n, c) of the frames.
            steps: (b,) frames that came before.
            poses: (b, t, 3) where they are known: of a dreamed frame, the one it was dreamed at.

        Returns:
            Poses (b, t, 3) and the memory after the last frame.
        """
        _, moved, hidden = self(actions, latents, memory[HIDDEN])
        if poses is None:
            known = torch.cat([steps[:, None] > 0, torch.ones_like(actions[:, 1:]).bool()], dim=1)
            poses = integrate(memory[POSE], moved * known[..., None])
        return poses, {HIDDEN: hidden, POSE: poses[:, -1].clone()}

    def forward(
        self, actions: Tensor, latents: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Displacements along a sequence.

        Args:
            actions: (b, t) integers, those that led to the frames.
            latents: (b, t, n, c) of the frames.
            hidden: (b, hidden) before the first frame.

        Returns:
            Displacements (b, t, 3) expected before each frame is seen, those judged after, and the
            state (b, hidden) after the last frame.
        """
        actions = actions.long()
        with torch.autocast(latents.device.type, enabled=False):
            led = self.action_in(actions)
            seen = self.latent_in(latents.float().flatten(2))
            states, last = self.network(torch.cat([led, seen], dim=-1), hidden[None])
            known = torch.cat([hidden[:, None], states[:, :-1]], dim=1)
            before = self.before(torch.cat([known, led], dim=-1))
            return self._moved(before, actions), self._moved(self.after(states), actions), last[0]

    def _moved(self, output: Tensor, actions: Tensor) -> Tensor:
        """Displacements; none where no action led to a frame."""
        return self.SCALE * output * (actions < self.action_in.num_embeddings - 1)[..., None]

    def loss(self, actions: Tensor, latents: Tensor, poses: Tensor) -> Tensor:
        """Mean absolute error of both displacements, in `SCALE`.

        Args:
            actions, latents: as for `forward`, of segments (b, t). The first frame does not count,
                nor does one which no action led to.
            poses: (b, t, 3) true ones.
        """
        before, after, _ = self(actions, latents, self.initial_memory(len(actions))[HIDDEN])
        true = self._moved(displacements(poses) / self.SCALE, actions)
        error = (before - true).abs() + (after - true).abs()
        return error[:, 1:].mean() / self.SCALE


def without_odometry(memory: Memory) -> Memory:
    """The backbone's part of a memory."""
    return {name: tensor for name, tensor in memory.items() if name not in (HIDDEN, POSE)}
