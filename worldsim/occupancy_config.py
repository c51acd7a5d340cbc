"""How a map is drawn, how ways are found on it, and what its walls do to dreams."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class OccupancyConfig:
    """How a map is drawn, how ways are found on it, and what its walls do to dreams."""

    cell: float = 1.0
    """Side of its cells, in the unit of positions."""
    side: int = 32
    """Cells along each side; a world that is wider is mapped on itself."""
    reach: float = 4.0
    """How many cells away a frame says something."""
    width: int = 128
    """Of the network that reads frames."""
    full: float = 16.0
    """Weight up to which what was said of a cell adds up; then what is newer counts more."""
    wall_cost: float = 3.0
    """Cost of a cell is 1 and this times the negative log of the probability that it is free."""
    ahead: int = 2
    """Cells to the place on the way that policies are told, at most:"""
    clearance: float = 0.25
    """no farther than a straight line is clear, with so many cells to both sides; 0: do not ask."""
    radius: float = 0.1
    """How close to walls on the map dreams come, in cells, where the world stands on a grid; 0 lets
    them pass."""
    friction: float = 0.9
    """Share of a dreamed move along a wall that is lost."""
    seen_within: float = 2.5
    """Cells within which one that is free counts as seen, if the camera looks that way."""
    near: float = 1.5
    """Cells within which any counts as seen, if the camera looks that way; what was seen from
    farther only is looked at from so near once nothing unseen is left: targets are small."""
    least_odds: float = -2.0
    """Log odds of being free from which on a cell that was not seen yet is worth exploring."""
    close: float = 2.0
    """Cells within which it should come to be seen,"""
    patience: int = 40
    """and the frames after which it is given up; five times as many where it seems to be a wall, or
    is to be seen from near."""
    least_certainty: float = 0.3
    """Of where the next reward is expected, from which on the way there is told."""
    wait: int = 15
    """Frames for which the camera may stand in a cell for a reward in vain,"""
    doubt: int = 100
    """and those for which none is looked for there then."""

    def __post_init__(self) -> None:
        for name in (
            *("cell", "side", "reach", "width", "full", "wall_cost", "ahead"),
            *("seen_within", "near", "close", "patience", "wait"),
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"occupancy.{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.radius < 0.5:
            raise ValueError(f"occupancy.radius is {self.radius}; it must be 0 to below 0.5")
        if not 0 <= self.friction <= 1:
            raise ValueError(f"occupancy.friction must lie in [0, 1], got {self.friction}")
        if 2 * self.reach + 1 > self.side:
            raise ValueError(
                f"occupancy.reach is {self.reach}, but the map of {self.side} cells a side must "
                "hold all that a frame tells of: twice as many and one more"
            )
