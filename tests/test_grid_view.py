"""How the camera stands to a grid: phases fit poses, it is learned, odometry stops drifting."""

from __future__ import annotations

import math
from unittest.mock import Mock

import pytest
import torch
from tiny import tiny_model

from worldsim.grid_view import GridView
from worldsim.odometry import ORIGIN, POSE, Odometry, OdometryConfig, integrate
from worldsim.pose import PoseConfig, compose, inverse, relative_poses


def random_poses(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    poses = 10 * torch.rand(*shape, 3, generator=generator)
    poses[..., 2] = poses[..., 2] - 5
    return poses


def unit(phases: torch.Tensor) -> torch.Tensor:
    return torch.stack([phases.cos(), phases.sin()], dim=-1)


def test_compose_and_inverse_undo_each_other() -> None:
    first, then = random_poses(7), random_poses(7, seed=1)
    whole = compose(first, then)
    torch.testing.assert_close(compose(inverse(first), whole), then, atol=1e-4, rtol=1e-4)
    pair = relative_poses(torch.stack([first, whole], dim=1))[:, 1]
    torch.testing.assert_close(pair[:, :2], then[:, :2], atol=1e-4, rtol=1e-4)


def test_the_grid_looks_the_same_from_a_cell_further_and_after_a_quarter_turn() -> None:
    view = GridView(4, cell=2.0)
    poses = random_poses(50)
    seen = unit(view.phases(poses))
    for moved in (torch.tensor([2.0, -4.0, 0.0]), torch.tensor([0.0, 0.0, 2 * math.pi])):
        torch.testing.assert_close(unit(view.phases(poses + moved)), seen, atol=1e-4, rtol=0)
    # The whole world turned by a quarter about a corner of the grid.
    quarter = compose(torch.tensor([0.0, 0.0, math.pi / 2]), poses)
    torch.testing.assert_close(unit(view.phases(quarter)), seen, atol=1e-4, rtol=0)
    other = unit(view.phases(poses + torch.tensor([0.7, 0.0, 0.0])))
    assert (other - seen).abs().max() > 0.5


def test_the_nearest_pose_that_sees_it() -> None:
    view = GridView(4, cell=1.0)
    seen = unit(view.phases(random_poses(50)))
    poses = view.place(seen)
    assert poses[:, :2].abs().max() <= 0.5 + 1e-5 and poses[:, 2].abs().max() <= math.pi / 4 + 1e-5
    torch.testing.assert_close(unit(view.phases(poses)), seen, atol=1e-4, rtol=0)


def test_clear_views_correct_poses_and_unclear_ones_do_not() -> None:
    view = GridView(4, cell=1.0)
    true = random_poses(50)
    seen = unit(view.phases(true))
    wrong = true + torch.tensor([0.1, -0.1, 0.05])
    clear, unclear = (torch.full((50, 3), spread) for spread in (-5.0, 2.0))
    poses = wrong
    for _ in range(40):
        poses = view.correct(poses, seen, view.gain(clear))
    torch.testing.assert_close(poses, true, atol=1e-2, rtol=0)
    same = view.correct(wrong, seen, view.gain(unclear))
    torch.testing.assert_close(same, wrong, atol=1e-3, rtol=0)


def test_odometry_that_sees_the_grid_does_not_drift() -> None:
    """Displacements are told wrong now and then; frames show heading and place."""
    torch.manual_seed(0)
    t = 300
    generator = torch.Generator().manual_seed(1)
    actions = torch.randint(0, 3, (8, t), generator=generator)
    turn = math.pi / 8
    moved = torch.tensor([[0.15, 0, 0], [0.05, 0, turn], [0.05, 0, -turn]])[actions]
    moved[:, 0] = 0
    true = integrate(torch.tensor([3.2, 4.7, 1.0]).expand(8, 3), moved)
    errors = {}
    for grid in (0.0, 1.0):
        odometry = Odometry(3, 6, OdometryConfig(hidden=8, grid=grid))
        said = moved * (torch.rand(8, t, 1, generator=generator) > 0.02)  # as if it had been held
        displaced = {"return_value": (said, said, torch.zeros(8, 8))}
        odometry.forward = Mock(**displaced)  # type: ignore[method-assign]
        if odometry.grid_view is not None:
            seen = unit(odometry.grid_view.phases(true))
            spread = torch.where(torch.rand(8, t, 3, generator=generator) < 0.3, -4.0, 1.0)
            views = {"return_value": (seen, spread)}
            odometry.grid_view.forward = Mock(**views)  # type: ignore[method-assign]
        poses, on_grid, memory = odometry.locate(
            odometry.initial_memory(8), actions, torch.zeros(8, t, 1, 6), torch.zeros(8).long()
        )
        difference = poses - relative_poses(true)
        errors[grid] = difference[:, -1, :2].norm(dim=-1)
        torch.testing.assert_close(memory[POSE], poses[:, -1])
        if grid:
            # The origin is known, up to whole cells and quarter turns, unless it was held at first.
            stands = unit(odometry.grid_view.phases(memory[ORIGIN][:, :3]))  # type: ignore[union-attr]
            expected = unit(odometry.grid_view.phases(true[:, 0]))  # type: ignore[union-attr]
            assert (stands - expected).abs().amax((1, 2)).median() < 0.1
            # On the grid, cells of the world are cells of the map.
            phases = [unit(odometry.grid_view.phases(p[:, -1])) for p in (on_grid, true)]  # type: ignore[union-attr]
            assert (phases[0] - phases[1]).abs().amax((1, 2)).median() < 0.1
    assert errors[1.0].median() < 0.1 < errors[0.0].median()


def test_grid_view_is_learned() -> None:
    torch.manual_seed(0)
    view = GridView(8, cell=1.0, width=64)
    optimizer = torch.optim.Adam(view.parameters(), 3e-3)

    def frames(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        poses = random_poses(256, seed=seed)
        return torch.cat([unit(view.phases(poses)).flatten(1), torch.zeros(256, 2)], -1), poses

    for step in range(200):
        latents, poses = frames(step)
        loss = view.loss(latents[:, None], poses)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    latents, poses = frames(10_000)
    seen, spread = view(latents[:, None])
    assert (seen - unit(view.phases(poses))).norm(dim=-1).mean() < 0.1
    assert spread.mean() < -1


def test_a_model_that_sees_the_grid_streams_and_dreams() -> None:
    model = tiny_model(pose=PoseConfig(), odometry=OdometryConfig(hidden=16, grid=1.0))
    generator = torch.Generator().manual_seed(0)
    actions = torch.randint(0, 6, (2, 20), generator=generator)
    frames = torch.randint(0, 256, (2, 20, 64, 64, 3), generator=generator, dtype=torch.uint8)
    together = model.observe(model.initial_state(2), actions, frames)
    state = model.initial_state(2)
    for t in range(20):
        state = model.observe(state, actions[:, t : t + 1], frames[:, t : t + 1])
    for name in (POSE, ORIGIN):
        torch.testing.assert_close(state.memory[name], together.memory[name], atol=1e-4, rtol=0)
    dream = model.imagine(state, actions[:, 0], generator=generator)
    assert torch.equal(dream.state.memory[ORIGIN], state.memory[ORIGIN])
    assert not torch.equal(dream.state.memory[POSE], state.memory[POSE])


def test_a_grid_of_negative_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="grid is -1"):
        OdometryConfig(grid=-1.0)


def test_dreamed_frames_stand_on_the_grid_too() -> None:
    odometry = Odometry(3, 6, OdometryConfig(hidden=8, grid=1.0))
    memory = odometry.initial_memory(2)
    memory[ORIGIN][:, :3] = torch.tensor([0.3, -0.2, 1.0])
    told = torch.tensor([[[1.0, 2.0, 0.5]]]).repeat(2, 1, 1)
    actions, steps = torch.zeros(2, 1, dtype=torch.int64), torch.full((2,), 3)
    poses, stands, after = odometry.locate(memory, actions, torch.zeros(2, 1, 1, 6), steps, told)
    assert torch.equal(poses, told) and torch.equal(after[POSE], told[:, 0])
    torch.testing.assert_close(stands, compose(memory[ORIGIN][:, None, :3], told))
    assert not torch.allclose(stands, told)
