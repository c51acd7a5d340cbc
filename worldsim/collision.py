"""Moves end at the walls of a grid: nothing comes closer to one than its radius.

A learned model of motion has seen few collisions, and lets dreams pass through walls. Where the
walls are known, it is plain geometry: a coordinate that would come into a wall stops in front of
it, and the move along the wall is slowed by friction (separate axes, as simple physics of games
do it; here a ball in a maze of square cells).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Walls = Callable[[Tensor], Tensor]
"""Whether cells (n, k, 2) int64 are walls: (n, k) bool."""

MARGIN = 1e-4
"""Of a cell: how much farther off what was stopped stays, so that rounding does not put it past."""


def stop_at_walls(walls: Walls, at: Tensor, to: Tensor, radius: float, friction: float) -> Tensor:
    """Where moves end.

    What is in a wall already may leave it. Moves are taken to be shorter than a cell.

    Args:
        walls: tells cells that are walls; cell (i, j) spans i to i + 1 and j to j + 1.
        at, to: (n, 2) in cells, before the move and where it would lead.
        radius: how close to walls what moves can come, in cells, below one half.
        friction: share of a move along a wall that is lost, 0 to 1.

    Returns:
        (n, 2) in cells.
    """
    hit = torch.stack([_stop(walls, at, to, radius, axis)[1] for axis in (0, 1)], dim=-1)
    # What touches a wall across one axis is slowed along the other.
    to = torch.where(hit.flip(-1), at + (1 - friction) * (to - at), to)
    for axis in (0, 1):  # the second from where the first led: round corners
        x = _stop(walls, at, to, radius, axis)[0]
        at = torch.stack([x, at[:, 1]] if axis == 0 else [at[:, 0], x], dim=-1)
    return at


def _stop(walls: Walls, at: Tensor, to: Tensor, radius: float, axis: int) -> tuple[Tensor, Tensor]:
    """One coordinate (n,) after a move along it alone, and whether a wall stopped that."""
    x, to_x, across = at[:, axis], to[:, axis], at[:, 1 - axis]
    reach = radius * (to_x - x).sign()
    centre, front = x.floor(), (to_x + reach).floor()
    sides = torch.stack([across - radius, across + radius], dim=-1).floor()

    def at_column(column: Tensor) -> Tensor:
        columns = column[:, None].expand_as(sides)
        return walls(torch.stack([columns, sides] if axis == 0 else [sides, columns], -1).long())

    # A wall beside, which is touched all along, does not stand in front.
    beside = at_column(centre) & (sides != across.floor()[:, None])
    hit = (at_column(front) & ~beside).any(-1) & (front != centre)
    face = torch.where(to_x > x, front - MARGIN, front + 1 + MARGIN) - reach
    # What is nearer already stays where it is.
    face = torch.where(to_x > x, torch.maximum(face, x), torch.minimum(face, x))
    return torch.where(hit, face, to_x), hit
