"""Moves end at walls, in plain geometry and in dreams."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from test_occupancy import SMALL, drawn, known_map, mapping, maze
from tiny import write_dataset

from agents.explorers import distances_to
from experiments.dreamed_poses import dreamed_poses
from worldsim.collision import stop_at_walls
from worldsim.episodes import EpisodeDataset
from worldsim.occupancy import CELLS, Occupancy
from worldsim.odometry import ORIGIN, POSE, standing
from worldsim.world_model import WorldModel

RADIUS = 0.1


def walls_of(layout: np.ndarray):  # type: ignore[no-untyped-def]
    """Tells walls of a layout (h, w), indexed [y, x], 1 where free; all around is wall."""
    free = torch.zeros(layout.shape[1] + 2, layout.shape[0] + 2, dtype=torch.bool)
    free[1:-1, 1:-1] = torch.from_numpy(layout.T.astype(bool))

    def walls(cells: torch.Tensor) -> torch.Tensor:
        return ~free[cells[..., 0] + 1, cells[..., 1] + 1]

    return walls


def distance_to_walls(layout: np.ndarray, places: torch.Tensor) -> torch.Tensor:
    """From places (n, 2) to the nearest cell that is a wall, by axis: (n,)."""
    padded = np.pad(layout, 1)
    cells = torch.from_numpy(np.argwhere(padded == 0)[:, ::-1] - 1.0)  # (k, 2) as x, y
    apart = torch.maximum(cells - places[:, None], places[:, None] - cells - 1).clamp(min=0)
    return apart.amax(-1).amin(-1)


def test_random_walks_never_come_into_walls_and_still_come_everywhere() -> None:
    layout = maze(3)
    walls, generator = walls_of(layout), torch.Generator().manual_seed(0)
    y, x = map(int, np.argwhere(layout)[0])
    at = torch.tensor([[x + 0.5, y + 0.5]], dtype=torch.float64).repeat(500, 1)
    heading = 2 * torch.pi * torch.rand(500, generator=generator, dtype=torch.float64)
    visited = np.zeros_like(layout)
    for _ in range(500):
        turn = torch.randn(500, generator=generator, dtype=torch.float64)
        heading = heading + 0.3 * turn
        move = 0.4 * torch.stack([heading.cos(), heading.sin()], dim=-1)
        at = stop_at_walls(walls, at, at + move, RADIUS, 0.5)
        assert distance_to_walls(layout, at).min() > RADIUS - 1e-9
        cells = at.floor().long().numpy()
        visited[cells[:, 1], cells[:, 0]] = 1
    assert (visited == (distances_to((x, y), layout) >= 0)).all()


def test_walls_stop_across_and_slow_along() -> None:
    layout = np.ones((4, 4), int)
    walls = walls_of(layout)
    at = torch.tensor([[3.5, 2.0], [0.3, 2.0], [2.0, 3.7], [3.7, 3.7], [2.0, 2.0]])
    move = torch.tensor([[0.9, 0.4], [-0.4, 0.4], [0.3, 0.3], [0.4, 0.4], [0.3, -0.2]])
    ends = stop_at_walls(walls, at, at + move, RADIUS, 0.75)
    expected = [[3.9, 2.1], [0.1, 2.1], [2.075, 3.9], [3.8, 3.8], [2.3, 1.8]]
    # In a corner both are slowed, so that neither is stopped yet.
    assert torch.allclose(ends, torch.tensor(expected), atol=1e-3)


def test_what_is_in_a_wall_may_leave_it() -> None:
    layout = np.ones((4, 4), int)
    layout[1, 1] = 0
    at, to = torch.tensor([[1.2, 1.5]]), torch.tensor([[0.8, 1.5]])
    assert torch.equal(stop_at_walls(walls_of(layout), at, to, RADIUS, 0.5), to)


def test_who_is_closer_than_the_radius_neither_passes_nor_sticks() -> None:
    walls = walls_of(np.ones((4, 4), int))
    at, down = torch.tensor([[2.5, 0.05]]), torch.tensor([[0.0, -0.2]])
    torch.testing.assert_close(stop_at_walls(walls, at, at + down, RADIUS, 0.5), at)
    for _ in range(5):  # along the wall, over the seams of its cells
        at = stop_at_walls(walls, at, at + torch.tensor([[0.2, 0.0]]), RADIUS, 0.5)
    assert at[0, 0].item() == pytest.approx(3.5) and at[0, 1].item() == pytest.approx(0.05)
    away = stop_at_walls(walls, at, at - down, RADIUS, 0.5)
    torch.testing.assert_close(away, at - down)


def dreaming(radius: float) -> WorldModel:
    """A tiny model whose dreams go ahead by a third of a cell a step."""
    model = mapping()
    assert model.config.places is not None and model.odometry is not None
    occupancy = dataclasses.replace(SMALL, radius=radius)
    places = dataclasses.replace(model.config.places, occupancy=occupancy)
    model = model.reconfigured(places=places).eval()
    ahead = model.odometry.before[-1]  # type: ignore[union-attr]
    with torch.no_grad():
        ahead.weight.zero_()
        ahead.bias.copy_(torch.tensor([0.3 / model.odometry.SCALE, 0.0, 0.0]))  # type: ignore[union-attr]
    return model


@pytest.mark.parametrize(("radius", "end"), [(0.1, 6.9), (0.3, 6.7), (0.0, 8.5)])
def test_dreams_stop_at_walls_that_are_known_wherever_memory_began(
    radius: float, end: float
) -> None:
    """East along the bottom of a room of 7 by 7 cells, whose map stands otherwise than memory."""
    model, layout = dreaming(radius), np.zeros((12, 12), int)
    layout[:7, :7] = 1
    state = model.initial_state(1)
    origin = torch.tensor([[2.5, 0.5, torch.pi / 2, 0.0]])
    memory = state.memory | {CELLS: known_map(layout, SMALL), ORIGIN: origin}
    memory[POSE] = torch.tensor([[0.0, 0.0, -torch.pi / 2]])  # on the grid: (2.5, 0.5), east
    state = type(state)(memory, state.steps + 5, state.features)
    for _ in range(20):
        state = model.imagine(state, torch.tensor([1])).state
    stands = standing(state.memory)[0]
    assert stands[1].item() == pytest.approx(0.5, abs=1e-3)
    assert stands[2].item() == pytest.approx(0.0, abs=1e-3)
    assert stands[0].item() == pytest.approx(end, abs=1e-2)


def test_maps_of_worlds_without_a_grid_stop_nothing() -> None:
    """Their cells are not those of the world's walls."""
    model = mapping()
    assert model.config.odometry is not None
    model = model.reconfigured(odometry=dataclasses.replace(model.config.odometry, grid=0.0))
    state = model.initial_state(1)
    state.memory[CELLS][:] = known_map(np.zeros((12, 12), int), SMALL)
    state = type(state)(state.memory, state.steps + 5, state.features)
    assert model.odometry is not None and ORIGIN not in state.memory
    actions = torch.tensor([1])
    expected = model.odometry.expect(state.memory, actions, state.steps)
    assert torch.equal(model.tell(state, actions), expected) and expected.abs().max() > 0


def test_dreams_do_not_draw_what_is_known_anew() -> None:
    occupancy = Occupancy(4, 4, SMALL).eval()
    poses = torch.tensor([[[5.5, 5.5, 0.0]]])
    cells = known_map(maze(1), SMALL)
    unknown = cells.clone()
    unknown[:, ::2, :2] = 0

    def after(cells: torch.Tensor, dreamed: bool) -> torch.Tensor:
        return drawn(occupancy, poses, cells=cells, dreamed=dreamed)[:, -1]

    assert torch.equal(after(cells, True)[..., :2], cells[..., :2])
    assert not torch.equal(after(cells, False)[..., :2], cells[..., :2])
    told = after(unknown, True)
    assert torch.equal(told[:, 1::2, :2], unknown[:, 1::2, :2])
    assert torch.equal(told[:, ::2, :2], after(unknown, False)[:, ::2, :2])
    assert told[:, ::2, 1].max() > 0


@pytest.mark.parametrize("changes", [{"radius": 0.5}, {"radius": -0.1}, {"friction": 1.1}])
def test_bodies_that_cannot_be_are_named(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        dataclasses.replace(SMALL, **changes)


def test_how_far_dreams_stray_is_told_beside_those_that_walls_do_not_stop(tmp_path: Path) -> None:
    dataset = EpisodeDataset(write_dataset(tmp_path, size=64, poses=True))
    model = dreaming(RADIUS)
    assert model.odometry is not None
    model.odometry.before[-1].bias.data.zero_()  # type: ignore[union-attr]
    told = dreamed_poses(model, dataset, 6, context=4, horizon=8, batch_size=4)
    assert set(told) == {"error", "error_through_walls", "distance"}
    assert all(len(values) == 8 for values in told.values())
    # In dreams that stand still, the error is the distance that was walked.
    assert told["distance"][-1] > 0.1
    np.testing.assert_allclose(told["error"], told["distance"], atol=1e-5)
    with pytest.raises(ValueError, match="no episode has 99 frames"):
        dreamed_poses(model, dataset, 6, context=91, horizon=8)


def test_walls_shorten_the_error_of_dreams_into_them(tmp_path: Path) -> None:
    """Dreams that go straight on, of episodes that turn: where all is wall, they stay near."""
    dataset = EpisodeDataset(write_dataset(tmp_path, size=64, poses=True))
    model = dreaming(RADIUS)
    assert model.places is not None and model.places.occupancy is not None
    tell = model.places.occupancy.tell[-1]
    with torch.no_grad():  # all that is seen is a wall, for sure
        tell.weight.zero_()  # type: ignore[union-attr, operator]
        tell.bias.copy_(torch.tensor([-8.0, 2.0]))  # type: ignore[union-attr, operator]
    told = dreamed_poses(model, dataset, 6, context=4, horizon=8)
    assert told["error"][-1] < told["error_through_walls"][-1] - 0.5


@torch.no_grad()
def test_dreams_of_a_model_leave_its_known_map_as_it_is() -> None:
    model = mapping()
    state = model.initial_state(1)
    memory = state.memory | {CELLS: known_map(maze(1), SMALL)}
    state = type(state)(memory, state.steps + 5, state.features)
    noise = torch.zeros(1, *model.noise_shape)
    dreamed = model.imagine(state, torch.tensor([1]), noise=noise).state.memory[CELLS]
    assert torch.equal(dreamed[..., :2], memory[CELLS][..., :2])
    frames = torch.zeros(1, 1, 64, 64, 3, dtype=torch.uint8)
    seen = model.observe(state, torch.tensor([[1]]), frames).memory[CELLS]
    assert not torch.equal(seen[..., :2], memory[CELLS][..., :2])
