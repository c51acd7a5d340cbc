"""A map of where one can walk, and the way that it shows: to the next reward, or to what is unseen.

An occupancy grid (Moravec and Elfes 1985) whose sensor is learned: every frame says of the cells
around the camera how likely they can be walked to, and how sure it is; cells remember the average
of what was said of them, weighted by how sure it was. The sensor learns from recorded walks alone:
a cell can be walked to where the episode comes to it, sooner or later, and mostly cannot where it
never does. On that map the cheapest way is found by value iteration, each cell costing the more
the less likely it is free, and the next place on it is told to policies: towards where the next
reward is expected, or, where none is, to the nearest free cells that were not seen yet
(frontier-based exploration, Yamauchi 1997; learned maps with a planner between them and a policy,
Chaplot et al. 2020, arXiv 2004.05155). The memory has constant size. Dreams go on drawing it
where nothing is known, and stop at walls that are.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldsim.collision import Walls, stop_at_walls
from worldsim.grid_ways import beside_any, cost_to_go
from worldsim.heads import mean_where
from worldsim.layers import Memory, in_float32
from worldsim.occupancy_config import OccupancyConfig
from worldsim.pose import placed_at, seen_from

CELLS = "places.cells"
"""Name in a world model's memory: (b, side^2, NUMBERS), what is known of each cell."""
ODDS, WEIGHT, SEEN, CLOSE, STOOD, DOUBTED, SEEN_NEAR = range(7)
"""Of a cell: the sum of log odds times their weights, the sum of the weights, when it was last seen
(0 for never), for how many frames it has been close, for how many the camera has stood there for a
reward, until when no reward is looked for there, and when it was last seen from near."""
NUMBERS = 7
TIME_UNIT = 100.0
"""Of times in cells: some frames."""


class Ways(NamedTuple):
    """To where a map wants to go."""

    known: Tensor  # (n,) bool: to a reward, not to what is unseen
    goals: Tensor  # (n, side^2) bool
    cost: Tensor  # (n, side^2) of coming to a cell, 1 for one that is surely free
    to_go: Tensor  # (n, side^2) from there to a goal


class Occupancy(nn.Module):
    """Draws the map and finds ways.

    Args:
        latent_size: numbers in the latents of a frame.
        d_model: width of the frame's read-out.
        config: sizes.
    """

    offsets: Tensor
    beside: Tensor
    HARMONICS = 4
    FADING = 0.98
    """Of how long the camera has stood somewhere, with every frame seen from near there."""
    LOOKS = 8
    """Points on the way to a cell that have to be free for it to be seen."""
    KNOWN = 1.0
    """Weight of what was said of a cell from which on dreams take it for what it is: they do not
    draw it anew."""

    def __init__(self, latent_size: int, d_model: int, config: OccupancyConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.read = nn.Sequential(
            nn.Linear(latent_size + d_model, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )
        self.cell_in = nn.Linear(4 * self.HARMONICS + 2, width, bias=False)
        self.tell = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width // 2), nn.SiLU(), nn.Linear(width // 2, 2)
        )
        self.prior = nn.Parameter(torch.zeros(()))
        r = math.floor(config.reach)
        steps = torch.arange(-r, r + 1)
        grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).flatten(0, 1)
        near = grid.float().norm(dim=-1) <= config.reach + 1e-6
        self.register_buffer("offsets", grid[near], persistent=False)
        beside = torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]])
        self.register_buffer("beside", beside, persistent=False)

    def initial_memory(self, batch_size: int) -> Memory:
        """Nothing is known of any cell."""
        size = self.config.side**2
        return {CELLS: torch.zeros(batch_size, size, NUMBERS, device=self.prior.device)}

    def forward(
        self,
        memory: Memory,
        latents: Tensor,
        read_outs: Tensor,
        poses: Tensor,
        place: Tensor,
        certainty: Tensor,
        steps: Tensor,
        dreamed: bool = False,
    ) -> tuple[Tensor, Memory]:
        """Follow frames.

        Args:
            memory: as from `initial_memory` or a call before.
            latents: (b, t, n, c). read_outs: (b, t, d) of the frames.
            poses: (b, t, 3) relative to the grid of the world, where it has one.
            place, certainty: (b, t, 2) and (b, t) where the next reward is expected.
            steps: (b,) frames that came before.
            dreamed: they show nothing new of the world: only what is not on the map yet is drawn.

        Returns:
            The next place on the way, (b, t, 2) ahead and to the left, and the memory afterwards.
        """
        with torch.autocast(latents.device.type, enabled=False):
            time = steps[:, None] + torch.arange(1, poses.shape[1] + 1, device=steps.device)
            told = self.sense(latents.float(), read_outs.float(), poses)
            time = time / TIME_UNIT
            aim = self.aim(poses, place, certainty)
            cells = self.draw(memory[CELLS], *told, poses, time, aim, dreamed)
            way = self.way(*(x.flatten(0, 1) for x in (cells, poses, time, place, aim)))
        return way.unflatten(0, poses.shape[:2]), {CELLS: cells[:, -1].clone()}

    def cells_around(self, poses: Tensor) -> Tensor:
        """Cells (..., k, 2) int64 that frames seen from poses (..., 3) tell of."""
        return self.cell_of(poses[..., :2])[..., None, :] + self.offsets

    def between(self, poses: Tensor, cells: Tensor) -> Tensor:
        """Cells (..., k, m, 2) on the straight lines from poses (..., 3) to cells (..., k, 2)."""
        at = poses[..., None, None, :2] / self.config.cell
        share = torch.linspace(0, 1, self.LOOKS + 1, device=poses.device)[1:, None]
        return (at + share * (cells[..., None, :] + 0.5 - at)).floor().long()

    def index(self, cells: Tensor) -> Tensor:
        """Where cells (..., 2) are kept: (...)."""
        x, y = torch.remainder(cells, self.config.side).unbind(-1)
        return y * self.config.side + x

    def aim(self, poses: Tensor, place: Tensor, certainty: Tensor) -> Tensor:
        """Cells (...) int64 where a reward is expected, -1 where that is not certain enough.

        Args:
            poses: (..., 3). place, certainty: (..., 2) and (...), as poses see them.
        """
        cells = self.index(self.cell_of(placed_at(poses, place)))
        return torch.where(certainty > self.config.least_certainty, cells, -1)

    def sense(
        self, latents: Tensor, read_outs: Tensor, poses: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What frames say of the cells around the camera.

        Returns:
            Log odds (b, t, k) that they can be walked to, the log weight of that, and the cells'
            middles as the camera sees them, (b, t, k, 2) in cells.
        """
        x = self.read(torch.cat([latents.flatten(2), read_outs], dim=-1))
        middle = (self.cells_around(poses) + 0.5) * self.config.cell
        seen = seen_from(poses[..., None, :], middle) / self.config.cell
        waves = seen[..., None] * (
            0.5 * math.pi / 2.0 ** torch.arange(self.HARMONICS, device=seen.device)
        )
        where = torch.cat(
            [waves.sin().flatten(-2), waves.cos().flatten(-2), seen / self.config.reach], dim=-1
        )
        odds, weight = self.tell(x[..., None, :] + self.cell_in(where)).unbind(-1)
        return odds, weight.clamp(-6.0, 2.0), seen

    def draw(
        self,
        cells: Tensor,
        odds: Tensor,
        weight: Tensor,
        seen: Tensor,
        poses: Tensor,
        time: Tensor,
        aim: Tensor,
        dreamed: bool = False,
    ) -> Tensor:
        """Draw what is seen.

        Args:
            cells: (b, side^2, NUMBERS) before. odds, weight, seen: from `sense`.
            poses: (b, t, 3). time: (b, t).
            aim: (b, t) int64 index of the cell where a reward is expected, -1 for none.
            dreamed: leave what is known of whether cells are free as it is.

        Returns:
            Cells after each frame, (b, t, side^2, NUMBERS).
        """
        c = self.config
        weight = weight.exp()
        around = self.cells_around(poses)
        index = self.index(around)
        ahead, left = seen.unbind(-1)
        # Where the camera stands one can stand; its view is taken to be a quarter turn wide.
        inside = (self.offsets == 0).all(-1)
        distance = seen.norm(dim=-1)
        near = distance <= c.near
        ahead_of_it = ahead >= left.abs()
        looked = ahead_of_it & ((distance <= c.seen_within) & (odds > 1.0) | near) | inside
        odds = torch.where(inside, 8.0, odds)
        weight = torch.where(inside, c.full, weight)
        there = inside & (index == aim[..., None])
        close = (distance <= c.close).float()
        between = self.index(self.between(poses, around))
        after = []
        for i in range(odds.shape[1]):
            where = index[:, i, :, None].expand(-1, -1, NUMBERS)
            before = cells.gather(1, where)
            said = weight[:, i]
            if dreamed:
                said = torch.where(before[..., WEIGHT] > self.KNOWN, 0.0, said)
            total = before[..., WEIGHT] + said
            kept = (c.full / total).clamp(max=1.0)
            total_odds = before[..., ODDS] + said * odds[:, i]
            rest = before.unbind(-1)[SEEN:]
            drawn = torch.stack([total_odds * kept, total * kept, *rest], dim=-1)
            cells = cells.scatter(1, where, drawn)
            free = (self.log_odds(cells) > 0).gather(1, between[:, i].flatten(1))
            free = free.unflatten(1, between.shape[2:]) | (between[:, i] == index[:, i, :, None])
            now = time[:, i, None]
            seen_now = looked[:, i] & free.all(-1)
            when = torch.where(seen_now, now, before[..., SEEN])
            near_now = seen_now & (near[:, i] | inside)
            last_near = torch.where(near_now, now, before[..., SEEN_NEAR])
            long = before[..., CLOSE] + close[:, i]
            stood = before[..., STOOD]
            stood = torch.where(there[:, i], stood + 1, self.FADING * stood)
            vain = stood >= c.wait
            until = torch.where(vain, now + c.doubt / TIME_UNIT, before[..., DOUBTED])
            stood = stood.masked_fill(vain, 0.0)
            new = torch.stack(
                [*drawn.unbind(-1)[:SEEN], when, long, stood, until, last_near], dim=-1
            )
            cells = cells.scatter(1, where, new)
            after.append(cells)
        return torch.stack(after, dim=1)

    def log_odds(self, cells: Tensor) -> Tensor:
        """Of each cell that it can be walked to: (..., side^2, n) to (..., side^2)."""
        return (cells[..., ODDS] + 0.1 * self.prior) / (cells[..., WEIGHT] + 0.1)

    def stop(self, cells: Tensor, poses: Tensor, to: Tensor) -> Tensor:
        """Where dreamed moves end, for walls that are known.

        Args:
            cells: (n, side^2, NUMBERS).
            poses, to: (n, 3) before the moves, and where they would lead.

        Returns:
            (n, 3) poses.
        """
        c = self.config
        if c.radius == 0:
            return to
        at, there = poses[:, :2] / c.cell, to[:, :2] / c.cell
        ends = c.cell * stop_at_walls(self.walls(cells), at, there, c.radius, c.friction)
        return torch.cat([ends, to[:, 2:]], dim=-1)

    def walls(self, cells: Tensor) -> Walls:
        """Tells which of cells (n, k, 2) int64 are known to be walls: (n, k) bool.

        Args:
            cells: (n, side^2, NUMBERS).
        """
        known = (self.log_odds(cells) < 0) & (cells[..., WEIGHT] > self.KNOWN)
        return lambda at: known.gather(1, self.index(at))

    @torch.no_grad()
    def ways(self, cells: Tensor, time: Tensor, aim: Tensor) -> Ways:
        """All ways to where a reward is expected, or to what is unseen.

        Args:
            cells: (n, side^2, NUMBERS). time: (n,).
            aim: (n,) int64 index of the cell where a reward is expected, -1 where none is.
        """
        c, odds = self.config, self.log_odds(cells)
        doubted_until = cells[..., DOUBTED].gather(1, aim.clamp(min=0)[:, None]).squeeze(1)
        known = (aim >= 0) & (doubted_until <= time)
        every = torch.arange(c.side**2, device=aim.device)
        goals = aim.clamp(min=0)[:, None] == every
        goals = torch.where(known[:, None], goals, self.to_explore(cells, odds))
        cost = 1 - c.wall_cost * F.logsigmoid(odds)
        square = (c.side, c.side)
        parts = cost.unflatten(1, square), goals.unflatten(1, square)
        to_go = cost_to_go(*parts, iterations=max(48, c.side))
        return Ways(known, goals, cost, to_go.flatten(1))

    @torch.no_grad()
    def way(self, cells: Tensor, poses: Tensor, time: Tensor, place: Tensor, aim: Tensor) -> Tensor:
        """The next place on the way to where a reward is expected, or to what is unseen.

        Args:
            cells: (n, side^2, NUMBERS). poses: (n, 3). time: (n,).
            place: (n, 2) where a reward is expected, as seen from there.
            aim: (n,) int64 index of its cell, -1 where it is not certain.

        Returns:
            (n, 2) ahead and to the left.
        """
        c, ways = self.config, self.ways(cells, time, aim)
        known, goals, through = ways.known, ways.goals, ways.to_go + ways.cost
        at = self.cell_of(poses[:, :2])
        told, reached = at, torch.zeros_like(known)
        clear = ~reached
        for step in range(c.ahead):
            beside = at[:, None] + self.beside
            index = self.index(beside)
            best = through.gather(1, index).argmin(-1)
            reached = reached | goals.gather(1, self.index(at)[:, None]).squeeze(-1)
            there = beside.gather(1, best[:, None, None].expand(-1, 1, 2)).squeeze(1)
            at = torch.where(reached[:, None], at, there)
            if step and c.clearance:
                clear = clear & self.is_clear(cells, poses, at)
            told = torch.where(clear[:, None], at, told)
        at_goal = goals.gather(1, self.index(told)[:, None]).squeeze(-1)
        middle = seen_from(poses, (told + 0.5) * c.cell)
        return torch.where((known & at_goal)[:, None], place, middle)

    def is_clear(self, cells: Tensor, poses: Tensor, to: Tensor) -> Tensor:
        """Whether a straight walk from poses (n, 3) to middles of cells `to` (n, 2) is free: (n,).

        Args:
            cells: (n, side^2, NUMBERS).
        """
        c, start = self.config, poses[:, None, None, :2]
        line = (to[:, None, None] + 0.5) * c.cell - start
        length = line.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        aside = torch.stack([-line[..., 1], line[..., 0]], dim=-1) / length * c.clearance * c.cell
        share = torch.linspace(0, 1, 4 * c.ahead + 1, device=line.device)[:, None, None]
        side = torch.linspace(-1, 1, 3, device=line.device)[:, None]
        # Close to the camera, which may stand near a wall already, only the line itself.
        side = torch.where(share * length > 0.5 * c.cell, side, 0.0)
        points = self.index(self.cell_of(start + share * line + side * aside)).flatten(1)
        return (self.log_odds(cells).gather(1, points) > 0).all(-1)

    def to_explore(self, cells: Tensor, odds: Tensor) -> Tensor:
        """Cells (n, side^2) that are likely free and were not seen yet.

        Where there are none, those that may be free, and free ones that were not seen from near;
        where these are none either, those beside free ones that were not looked at; and then the
        one seen longest ago.

        Args:
            cells: (n, side^2, NUMBERS). odds: (n, side^2) from `log_odds`.
        """
        c, (_, weight, seen, long, _, _, near) = self.config, cells.unbind(-1)
        free, unseen = (odds > 0) & (weight > 0), (seen == 0) & (weight > 0)
        fresh = unseen & (odds > c.least_odds) & (long <= c.patience)
        square = free.unflatten(1, (c.side, c.side))
        walls = unseen & beside_any(square).flatten(1) & (long <= 5 * c.patience)
        distant = free & (near == 0) & (long <= 5 * c.patience)
        oldest = torch.where(free & ~unseen, torch.where(near > 0, near, seen), float("inf"))
        oldest = oldest.argmin(-1, keepdim=True) == torch.arange(seen.shape[-1], device=seen.device)
        rest = oldest
        for better in (walls, distant | fresh, free & fresh):
            rest = torch.where(better.any(-1, keepdim=True), better, rest)
        return rest

    def cell_of(self, places: Tensor) -> Tensor:
        """Cells (..., 2) int64 that hold places (..., 2)."""
        return torch.floor(places / self.config.cell).long()

    @in_float32
    def loss(
        self,
        latents: Tensor,
        read_outs: Tensor,
        poses: Tensor,
        come_to: Tensor,
        recorded: Tensor | None = None,
    ) -> Tensor:
        """Negative log likelihood of where episodes come to, as their maps tell it all along.

        Args:
            latents, read_outs, poses: as for `forward`, of frames in the order of time.
            come_to: (b, side^2) bool, cells that the whole episode comes to.
            recorded: (b, t) bool, false behind the end of a shorter episode; None: all are.
        """
        told = self.sense(latents, read_outs, poses)
        empty = self.initial_memory(len(poses))[CELLS]
        time = torch.zeros(poses.shape[:2], device=poses.device)
        cells = self.draw(empty, *told, poses, time, torch.full_like(time, -1).long())
        seen = cells[..., WEIGHT] > 0
        if recorded is not None:
            seen = seen & recorded[..., None]
        odds, target = self.log_odds(cells), come_to[:, None].expand_as(seen).float()
        losses = F.binary_cross_entropy_with_logits(odds, target, reduction="none")
        return mean_where(losses, seen)
