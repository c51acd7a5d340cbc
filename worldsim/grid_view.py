"""How the camera stands to the grid of its world: what odometry corrects itself by.

In many worlds walls stand on a grid. Then a single frame shows the heading up to quarter turns,
and the place within a cell. A network reads them from the latents and says how sure it is; as they
do not drift, odometry that is drawn to them does not drift either, as long as it errs by less than
half a cell and an eighth of a turn between two clear views.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldsim.pose import placed_at, seen_from

QUARTER = math.pi / 2


def quarter_turns(heading: Tensor) -> Tensor:
    """The grid's directions nearest to headings."""
    return QUARTER * torch.round(heading / QUARTER)


class GridView(nn.Module):
    """Heading and place relative to the grid, from latents.

    Args:
        latent_size: numbers in the latents of a frame.
        cell: side of the grid's cells, in the unit of positions; corners are at multiples of it.
        width: of the network.
    """

    GAIN, CLEAR, SHARPNESS = 0.3, -2.5, 2.0
    """Of corrections: the share of a difference that a clear view takes away, the log scale at
    which it takes half of that, and how suddenly that falls."""

    def __init__(self, latent_size: int, cell: float, width: int = 512) -> None:
        super().__init__()
        self.cell = cell
        self.network = nn.Sequential(
            nn.Linear(latent_size, width),
            nn.SiLU(),
            nn.Linear(width, width // 2),
            nn.SiLU(),
            nn.Linear(width // 2, 9),
        )

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """What is seen in frames.

        Args:
            latents: (..., n, c).

        Returns:
            Unit vectors (..., 3, 2) and the log scale (..., 3) of their errors: of four times the
            heading, and of the place within the cell as a phase, ahead and to the left of where the
            grid's nearest direction points.
        """
        output = self.network(latents.float().flatten(-2)).unflatten(-1, (3, 3))
        return F.normalize(output[..., :2], dim=-1), output[..., 2].clamp(-5.0, 2.0)

    def phases(self, poses: Tensor) -> Tensor:
        """The same of poses (..., 3): angles (..., 3)."""
        turned = quarter_turns(poses[..., 2:])
        corner = torch.cat([torch.zeros_like(poses[..., :2]), turned], dim=-1)
        place = seen_from(corner, poses[..., :2]) * (2 * math.pi / self.cell)
        return torch.cat([4 * (poses[..., 2:] - turned), place], dim=-1)

    def loss(self, latents: Tensor, poses: Tensor) -> Tensor:
        """Negative log likelihood (up to a constant) of true poses, under Laplace densities."""
        seen, spread = self(latents)
        phase = self.phases(poses)
        true = torch.stack([phase.cos(), phase.sin()], dim=-1)
        return ((seen - true).norm(dim=-1) / spread.exp() + spread).sum(-1).mean()

    def place(self, seen: Tensor) -> Tensor:
        """The pose (b, 3) nearest to the origin that sees (b, 3, 2) unit vectors."""
        angle = torch.atan2(seen[..., 1], seen[..., 0])
        place, heading = angle[..., 1:] * (self.cell / (2 * math.pi)), angle[..., :1] / 4
        return torch.cat([place, heading], dim=-1)

    def gain(self, spread: Tensor) -> Tensor:
        """Share of a difference that views of a log scale (..., 3) take away."""
        return self.GAIN * torch.sigmoid(self.SHARPNESS * (self.CLEAR - spread))

    def correct(self, poses: Tensor, seen: Tensor, gain: Tensor) -> Tensor:
        """Draw poses (b, 3) to what is seen (b, 3, 2), by shares (b, 3) of the difference."""
        heading = poses[:, 2:] + gain[:, :1] * self._difference(poses, seen)[:, :1] / 4
        poses = torch.cat([poses[:, :2], heading], dim=-1)
        off = gain[:, 1:] * self._difference(poses, seen)[:, 1:] * (self.cell / (2 * math.pi))
        turned = torch.cat([poses[:, :2], quarter_turns(heading)], dim=-1)
        return torch.cat([placed_at(turned, off), heading], dim=-1)

    def _difference(self, poses: Tensor, seen: Tensor) -> Tensor:
        """Angles (b, 3) from what poses would see to what is seen, in -pi to pi."""
        phase = self.phases(poses)
        cos, sin = phase.cos(), phase.sin()
        return torch.atan2(
            seen[..., 1] * cos - seen[..., 0] * sin, seen[..., 0] * cos + seen[..., 1] * sin
        )
