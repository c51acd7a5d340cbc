"""Where the camera went, from actions and frames: poses for a model that is told them.

A recurrent network reads the actions and the frames' latents and says how far the camera moved with
each action: before the frame is seen (as a dream must) and better after (as with real frames). The
displacements add up to poses relative to where memory began. They drift, unless the world stands
on a grid: then every frame shows how the camera stands to it (`worldsim.grid_view`), and poses are
drawn to that. True poses are needed in training only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldsim.grid_view import GridView
from worldsim.layers import Memory, in_float32
from worldsim.pose import compose, inverse, relative_poses, wrapped

HIDDEN, POSE, ORIGIN = "odometry.hidden", "odometry.pose", "odometry.origin"
"""Names in a world model's memory: the recurrent state (b, hidden), where it is (b, 3), and how the
place where memory began stands to the grid, where there is one: (b, 4), a pose and how blurred the
view was that told it."""


@dataclass(frozen=True, kw_only=True)
class OdometryConfig:
    """Size of the odometry."""

    hidden: int = 128
    """Width of the recurrent network."""
    grid: float = 0.0
    """Side of the cells of the grid that the world stands on, with corners at multiples of it, in
    the unit of positions: 1 in Memory Mazes; 0 where there is none."""

    def __post_init__(self) -> None:
        if self.grid < 0:
            raise ValueError(f"odometry.grid is {self.grid}; it must be 0 (none) or above")


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
    return torch.cat([place, wrapped(heading)[..., None]], dim=-1)


def standing(memory: Memory) -> Tensor:
    """Pose (b, 3) relative to the grid of the world, or, where none is seen, to where it began.

    Args:
        memory: a world model's.
    """
    origin = memory.get(ORIGIN)
    return memory[POSE] if origin is None else compose(origin[:, :3], memory[POSE])


class Odometry(nn.Module):
    """Displacements of the camera from actions and latents.

    Args:
        num_actions: actions, "no action" not counted.
        latent_size: numbers in the latents of a frame.
        config: sizes.
    """

    SCALE = 0.2
    """Of displacements inside the network: about that of a step, in cells and radians."""
    FIRST = 16
    """Frames of which the clearest tells how the place where memory began stands to the grid."""

    def __init__(self, num_actions: int, latent_size: int, config: OdometryConfig) -> None:
        super().__init__()
        self.config = config
        h = config.hidden
        self.action_in = nn.Embedding(num_actions + 1, h)
        self.latent_in = nn.Linear(latent_size, h)
        self.network = nn.GRU(2 * h, h, batch_first=True)
        self.before = nn.Sequential(nn.Linear(2 * h, h), nn.SiLU(), nn.Linear(h, 3))
        self.after = nn.Sequential(nn.Linear(h, h), nn.SiLU(), nn.Linear(h, 3))
        self.grid_view = GridView(latent_size, config.grid) if config.grid else None

    def initial_memory(self, batch_size: int) -> Memory:
        """Before the first frame: at the origin."""
        device = self.latent_in.weight.device
        hidden = torch.zeros(batch_size, self.config.hidden, device=device)
        memory = {HIDDEN: hidden, POSE: torch.zeros(batch_size, 3, device=device)}
        if self.grid_view is not None:
            memory[ORIGIN] = torch.zeros(batch_size, 4, device=device)
        return memory

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
    ) -> tuple[Tensor, Tensor, Memory]:
        """Follow frames. The first that is remembered is the origin, whatever led there.

        Args:
            memory: as from `initial_memory` or a call before.
            actions: (b, t) integers, those that led to the frames.
            latents: (b, t, n, c) of the frames.
            steps: (b,) frames that came before.
            poses: (b, t, 3) where they are known: of a dreamed frame, the one it was dreamed at.

        Returns:
            Poses (b, t, 3), the same relative to the grid where one is seen, and the memory after
            the last frame.
        """
        _, moved, hidden = self(actions, latents, memory[HIDDEN])
        known = torch.cat([steps[:, None] > 0, torch.ones_like(actions[:, 1:]).bool()], dim=1)
        moved = moved * known[..., None]
        located = memory | {HIDDEN: hidden}
        if poses is None and self.grid_view is not None:
            poses, stands, located[ORIGIN] = self._follow_grid(memory, moved, latents, steps)
        else:
            poses = integrate(memory[POSE], moved) if poses is None else poses
            stands = poses
            if self.grid_view is not None:
                stands = compose(memory[ORIGIN][:, None, :3], poses)
        located[POSE] = poses[:, -1].clone()
        return (
            poses,
            stands,
            {name: t for name, t in located.items() if name in (HIDDEN, POSE, ORIGIN)},
        )

    def _follow_grid(
        self, memory: Memory, moved: Tensor, latents: Tensor, steps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Add up displacements (b, t, 3), drawn to what frames show of the grid.

        Returns:
            Poses (b, t, 3) relative to where memory began and to the grid, and how that stands to
            the grid in the end (b, 4).
        """
        assert self.grid_view is not None
        seen, spread = self.grid_view(latents)
        gain, blur = self.grid_view.gain(spread), spread.sum(-1, keepdim=True)
        pose, (origin, first_blur) = memory[POSE], memory[ORIGIN].split([3, 1], -1)
        followed, on_grid = [], []
        for i, displacement in enumerate(moved.unbind(1)):
            pose = compose(pose, displacement)
            age = (steps + i)[:, None]
            origin = torch.where(age == 0, self.grid_view.place(seen[:, i]), origin)
            first_blur = torch.where(age == 0, blur[:, i], first_blur)
            clearer = (age < self.FIRST) & (blur[:, i] < first_blur)
            taken = torch.where(clearer, 1.0, gain[:, i])
            stands = self.grid_view.correct(compose(origin, pose), seen[:, i], taken)
            origin = torch.where(clearer, compose(stands, inverse(pose)), origin)
            first_blur = torch.where(clearer, blur[:, i], first_blur)
            pose = torch.where(clearer, pose, compose(inverse(origin), stands))
            followed.append(pose)
            on_grid.append(stands)
        poses = torch.stack(followed, dim=1)
        poses = torch.cat([poses[..., :2], wrapped(poses[..., 2:])], dim=-1)
        return poses, torch.stack(on_grid, dim=1), torch.cat([origin, first_blur], dim=-1)

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
            states, last = self.network(torch.cat([led, seen], dim=-1), hidden[None].contiguous())
            known = torch.cat([hidden[:, None], states[:, :-1]], dim=1)
            before = self.before(torch.cat([known, led], dim=-1))
            return self._moved(before, actions), self._moved(self.after(states), actions), last[0]

    def _moved(self, output: Tensor, actions: Tensor) -> Tensor:
        """Displacements; none where no action led to a frame."""
        return self.SCALE * output * (actions < self.action_in.num_embeddings - 1)[..., None]

    @in_float32
    def loss(self, actions: Tensor, latents: Tensor, poses: Tensor) -> Tensor:
        """Mean absolute error of both displacements, in `SCALE`, and what is seen of a grid.

        Args:
            actions, latents: as for `forward`, of segments (b, t). The first frame does not count,
                nor does one which no action led to.
            poses: (b, t, 3) true ones.
        """
        before, after, _ = self(actions, latents, self.initial_memory(len(actions))[HIDDEN])
        true = self._moved(displacements(poses) / self.SCALE, actions)
        error = (before - true).abs() + (after - true).abs()
        loss = error[:, 1:].mean() / self.SCALE
        return loss if self.grid_view is None else loss + 0.1 * self.grid_view.loss(latents, poses)
