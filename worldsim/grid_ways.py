"""Ways on a grid of cells whose edges lie beside one another, by value iteration."""

from __future__ import annotations

import torch
from torch import Tensor

FAR = 1e4
"""Cost of what has no way to it."""


def beside_any(cells: Tensor) -> Tensor:
    """Cells (..., side, side) that lie beside one of those given, across the map's edges too."""
    return torch.stack([cells.roll(way, dims=dim) for way in (1, -1) for dim in (-2, -1)]).any(0)


def cost_to_go(cost: Tensor, goals: Tensor, iterations: int) -> Tensor:
    """Least cost from each cell to a goal, by value iteration.

    Args:
        cost: (n, side, side) of coming to a cell from one of the four beside it; the map's edges
            lie beside one another.
        goals: (n, side, side) bool.
        iterations: cells that a way has, at most.

    Returns:
        (n, side, side), `FAR` where there is no way.
    """
    to_go = torch.where(goals, 0.0, FAR)
    for _ in range(iterations):
        through = to_go + cost
        across = torch.minimum(through.roll(1, dims=2), through.roll(-1, dims=2))
        along = torch.minimum(through.roll(1, dims=1), through.roll(-1, dims=1))
        to_go = torch.minimum(to_go, torch.minimum(across, along))
    return to_go
