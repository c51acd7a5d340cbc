"""The map: it is drawn from frames, shows the shortest way, and is learned from walks alone."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny import tiny_model, write_dataset
from torch._dynamo.utils import counters

from agents.explorers import distances_to
from experiments.told_map import map_on_real_frames
from worldsim.checkpoint import load, save
from worldsim.episodes import EpisodeDataset
from worldsim.grid_ways import FAR, beside_any, cost_to_go
from worldsim.latents import LatentEpisodes
from worldsim.layers import Memory
from worldsim.occupancy import (
    CELLS,
    NUMBERS,
    ODDS,
    SEEN,
    SEEN_NEAR,
    TIME_UNIT,
    WEIGHT,
    Occupancy,
)
from worldsim.occupancy_config import OccupancyConfig
from worldsim.occupancy_training import OccupancyTraining, long_enough, occupancy_loss
from worldsim.odometry import HIDDEN, ORIGIN, POSE, OdometryConfig
from worldsim.places import NUM_PLACE_FEATURES, PlacesConfig, place_in
from worldsim.places_training import ReadEpisodes
from worldsim.pose import PoseConfig
from worldsim.training import LossModule, Trainer
from worldsim.training_config import OptimizerConfig
from worldsim.world_model import WorldModel

SMALL = OccupancyConfig(side=12, reach=3.0, width=32)


def mapping() -> WorldModel:
    """A tiny model with odometry that sees a grid, places and a map."""
    torch.manual_seed(0)
    return tiny_model(
        pose=PoseConfig(),
        odometry=OdometryConfig(hidden=16, grid=1.0),
        places=PlacesConfig(slots=4, width=32, occupancy=SMALL),
    )


def known_map(layout: np.ndarray, config: OccupancyConfig) -> torch.Tensor:
    """Cells (1, side^2, NUMBERS) of a map that has seen a layout (h, w), indexed [y, x]."""
    side = config.side
    cells = torch.zeros(side, side, NUMBERS)
    cells[..., ODDS], cells[..., WEIGHT] = -8 * config.full, config.full
    h, w = layout.shape
    cells[:h, :w, ODDS] = torch.from_numpy(np.where(layout, 8.0, -8.0)).float() * config.full
    cells[:h, :w, SEEN] = cells[:h, :w, SEEN_NEAR] = torch.from_numpy(layout).float()
    return cells.flatten(0, 1)[None]


def maze(seed: int, size: int = 12) -> np.ndarray:
    layout = np.random.default_rng(seed).random((size, size)) < 0.75
    layout[[0, -1]], layout[:, [0, -1]] = False, False
    return layout


def test_costs_are_breadth_first_distances_in_mazes() -> None:
    for seed in range(5):
        layout = maze(seed)
        y, x = np.argwhere(layout)[20]
        expected = distances_to((int(x), int(y)), layout)
        cost = torch.from_numpy(np.where(layout, 1.0, FAR)).float()
        goals = torch.zeros(1, 12, 12, dtype=torch.bool)
        goals[0, y, x] = True
        found = cost_to_go(cost[None], goals, iterations=80)[0].numpy()
        reached = expected >= 0
        assert reached.sum() > 5
        np.testing.assert_array_equal(found[reached], expected[reached])
        assert (found[layout & ~reached] >= FAR).all()


def test_the_way_leads_round_walls_to_the_place() -> None:
    layout = np.zeros((12, 12), bool)
    layout[2, 2:9], layout[2:9, 8], layout[8, 2:9] = True, True, True  # three sides of a square
    occupancy = Occupancy(4, 4, SMALL)
    place = torch.tensor([[2.3, 8.6]])
    position, walked = torch.tensor([2.5, 2.5]), [(2, 2)]
    for _ in range(12):
        pose = torch.tensor([[*position, 0.7]])
        cos, sin = math.cos(0.7), math.sin(0.7)
        turn = torch.tensor([[cos, -sin], [sin, cos]])
        seen = (place - position) @ turn
        aim = occupancy.index(occupancy.cell_of(place))
        way = occupancy.way(known_map(layout, SMALL), pose, torch.ones(1), seen, aim)
        position = position + way[0] @ turn.T
        x, y = (int(v) for v in position.floor())
        assert layout[y, x] and abs(x - walked[-1][0]) + abs(y - walked[-1][1]) <= SMALL.ahead
        walked.append((x, y))
    # Two cells at a time along the free cells, and in the end not to a cell but to the place.
    assert walked[3] == (8, 2) and walked[6] == (8, 8)
    torch.testing.assert_close(position, place[0], atol=1e-4, rtol=0)


def test_places_on_the_way_can_be_walked_to_straight() -> None:
    corner = np.zeros((12, 12), bool)
    corner[2, 2:9], corner[2:9, 8] = True, True
    room = corner.copy()
    room[2:9, 2:9] = True
    place = torch.tensor([[8.5, 5.5]])
    for layout, x, clearance, told in (
        (corner, 7.5, 0.25, [8.5, 2.5]),  # not past the corner: that would lead through the wall
        (corner, 7.5, 0.0, [8.5, 3.5]),
        (corner, 8.1, 0.25, [8.5, 3.5]),  # from here there is no wall between
        (corner, 4.5, 0.25, [6.5, 2.5]),
        (room, 7.5, 0.25, [8.5, 3.5]),
    ):
        config = dataclasses.replace(SMALL, clearance=clearance)
        occupancy = Occupancy(4, 4, config)
        pose = torch.tensor([[x, 2.5, 0.0]])
        aim = occupancy.index(occupancy.cell_of(place))
        cells = known_map(layout, config)
        way = occupancy.way(cells, pose, torch.ones(1), place - pose[:, :2], aim)
        at = pose[0, :2] + way[0]
        if layout is room:  # two ways are as short
            assert at.tolist() in ([8.5, 3.5], [7.5, 4.5])
        else:
            torch.testing.assert_close(at, torch.tensor(told), atol=1e-4, rtol=0)


def test_without_a_place_the_way_leads_to_the_nearest_unseen_cell() -> None:
    layout = np.zeros((12, 12), bool)
    layout[2, 1:11] = True
    occupancy = Occupancy(4, 4, SMALL)
    cells = known_map(layout, SMALL)
    pose, nowhere = torch.tensor([[4.5, 2.5, 0.0]]), torch.zeros(1, 2)
    now, aim = torch.tensor([3.0]), torch.tensor([-1])
    for x, expected in ((8, 2.0), (2, -2.0)):
        fresh = cells.clone()
        fresh[0, 2 * 12 + x, 2] = 0
        way = occupancy.way(fresh, pose, now, nowhere, aim)
        torch.testing.assert_close(way, torch.tensor([[expected, 0.0]]), atol=1e-4, rtol=0)
        # So it does where the camera has stood for the reward in vain, for a while.
        place, aim_there = torch.tensor([[-1.0, 0.0]]), torch.tensor([2 * 12 + 3])
        for until, told in ((3.01, [expected, 0.0]), (3.0, [-1.0, 0.0]), (0.0, [-1.0, 0.0])):
            fresh[0, 2 * 12 + 3, 5] = until
            way = occupancy.way(fresh, pose, now, place, aim_there)
            torch.testing.assert_close(way, torch.tensor([told]), atol=1e-4, rtol=0)


def test_what_may_be_free_is_explored_and_then_what_was_seen_longest_ago() -> None:
    occupancy = Occupancy(4, 4, OccupancyConfig(side=2, reach=0.5))
    weight = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    odds = torch.tensor([[3.0, -1.0, -4.0, 3.0]])

    def explored(
        seen: list[float], long: float = 0.0, near: list[float] | None = None
    ) -> list[list[int]]:
        close, none = torch.tensor([[0.0, long, 0.0, 0.0]]), torch.zeros(1, 4)
        last = torch.tensor([seen if near is None else near])
        numbers = [odds * weight, weight, torch.tensor([seen]), close, none, none, last]
        cells = torch.stack(numbers, dim=-1)
        return occupancy.to_explore(cells, odds).int().tolist()

    assert explored([0, 0, 0, 0]) == [[1, 0, 0, 0]]  # not walls, nor what is beyond the map
    assert explored([5, 0, 0, 0]) == [[0, 1, 0, 0]]
    # It cannot be seen, it seems: then what may be walls is looked at, which are beside it.
    assert explored([5, 0, 0, 0], long=41) == [[0, 1, 1, 0]]
    assert explored([5, 0, 0, 0], long=201) == [[0, 0, 1, 0]]
    odds[0, 1] = 2.0
    assert explored([5, 4, 0, 0]) == [[0, 0, 1, 0]]
    assert explored([5, 4, 9, 0]) == [[0, 1, 0, 0]]
    assert explored([5, 6, 9, 0]) == [[1, 0, 0, 0]]
    # What was seen from afar only is looked at from near, unless it cannot be come near to.
    assert explored([5, 6, 9, 0], near=[5, 0, 9, 0]) == [[0, 1, 0, 0]]
    assert explored([5, 6, 9, 0], near=[0, 0, 9, 0]) == [[1, 1, 0, 0]]
    assert explored([5, 6, 9, 0], near=[5, 0, 9, 0], long=201) == [[1, 0, 0, 0]]
    assert explored([5, 4, 0, 0], near=[5, 0, 0, 0]) == [[0, 1, 0, 0]]  # before walls
    odds[0, 1] = -1.0  # together with what may be free
    assert explored([5, 0, 0, 0], near=[0, 0, 0, 0]) == [[1, 1, 0, 0]]


def test_cells_are_seen_where_the_line_to_them_is_free() -> None:
    """From (2.5, 2.5), looking east: a wall stands at x = 4, but for a gap at its northern end."""
    layout = np.zeros((12, 12), bool)
    layout[1:5, 1:7] = True
    layout[1:4, 4] = False
    occupancy = Occupancy(4, 4, dataclasses.replace(SMALL, seen_within=3.0))
    before = known_map(layout, SMALL)
    before[..., SEEN] = before[..., SEEN_NEAR] = 0
    poses = torch.tensor([[[2.5, 2.5, 0.0]]])
    seen = occupancy.offsets[None, None] + 0.0
    odds = torch.where(torch.ones_like(seen[..., 0]) > 0, 8.0, 0.0)
    nothing = torch.full_like(odds, -6.0)  # of no weight: the map stays as it is
    time, aim = torch.ones(1, 1), torch.full((1, 1), -1)
    cells = occupancy.draw(before, odds, nothing, seen, poses, time, aim)[0, 0].unflatten(
        0, (12, 12)
    )
    assert cells[2, [2, 3, 4], SEEN].tolist() == [1, 1, 1]  # up to the wall, and it
    assert cells[2, 5, SEEN] == 0 and cells[3, 5, SEEN] == 0  # not what is behind
    assert cells[4, 4, SEEN] == 1 and cells[4, 5, SEEN] == 0
    assert cells[2, [2, 3], SEEN_NEAR].tolist() == [1, 1]
    assert cells[4, 4, SEEN_NEAR] == 0  # from afar
    behind = occupancy.draw(
        before, odds, nothing, seen, poses + torch.tensor([0, 0, 3.14]), time, aim
    )
    assert behind[0, 0].unflatten(0, (12, 12))[2, 2, SEEN_NEAR] == 1  # where one stands one sees


def drawn(
    occupancy: Occupancy,
    poses: torch.Tensor,
    aim: int = -1,
    cells: torch.Tensor | None = None,
    dreamed: bool = False,
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    b, t = poses.shape[:2]
    latents = torch.randn(b, t, 2, 2, generator=generator)
    read_outs = torch.randn(b, t, 4, generator=generator)
    told = occupancy.sense(latents, read_outs, poses)
    time = torch.arange(1, t + 1.0).expand(b, t)
    before = occupancy.initial_memory(b)[CELLS] if cells is None else cells
    return occupancy.draw(before, *told, poses, time, torch.full((b, t), aim), dreamed)


def test_maps_are_alike_wherever_on_the_grid_the_world_is() -> None:
    torch.manual_seed(0)
    occupancy = Occupancy(4, 4, SMALL).eval()
    poses = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0)) + 4
    moved = poses + torch.tensor([2.0, 1.0, 0.0])  # whole cells
    here, there = (drawn(occupancy, p)[:, -1].unflatten(1, (12, 12)) for p in (poses, moved))
    torch.testing.assert_close(here.roll((1, 2), (1, 2)), there, atol=1e-4, rtol=1e-4)
    x, y = poses[..., :2].unbind(-1)
    turned = torch.stack([-y, x, poses[..., 2] + math.pi / 2], dim=-1)  # a quarter turn
    there = drawn(occupancy, turned)[:, -1].unflatten(1, (12, 12))
    back = there.transpose(1, 2).flip(1)  # the cell (x, y) has come to (-1 - y, x)
    torch.testing.assert_close(here, back, atol=1e-4, rtol=1e-4)


def test_what_is_said_of_a_cell_adds_up_to_a_limit_and_the_camera_stands_on_free_ground() -> None:
    torch.manual_seed(0)
    occupancy = Occupancy(4, 4, SMALL).eval()
    poses = torch.tensor([4.5, 6.5, 0.0]).expand(1, 40, 3)
    cells = drawn(occupancy, poses)
    assert cells[..., WEIGHT].max() <= SMALL.full + 1e-4
    here = 6 * 12 + 4
    assert (occupancy.log_odds(cells)[0, :, here] > 4).all()
    assert cells[0, :, here, 2].tolist() == list(range(1, 41))  # seen last
    assert cells[0, :, here, 3].tolist() == list(range(1, 41))
    assert cells[0, -1, 6 * 12 + 7, 3] == 0  # not close
    assert cells[0, :, here, 6].tolist() == list(range(1, 41))  # and from near
    assert not cells[..., 4:6].any()
    # Where it stands for a reward in vain, none is looked for any more, for a while.
    until = drawn(occupancy, poses, aim=here)[0, :, here, 5]
    waited = SMALL.wait - 1
    assert not until[:waited].any()
    assert until[waited].item() == waited + 1 + SMALL.doubt / TIME_UNIT
    assert not drawn(occupancy, poses, aim=here + 1)[..., 4:6].any()
    untouched = cells[0, -1, :, 1] == 0
    assert 144 - untouched.sum() == len(occupancy.offsets)
    torch.testing.assert_close(
        occupancy.log_odds(cells)[0, -1, untouched], occupancy.prior.expand(untouched.sum())
    )


def test_models_carry_the_map_and_observing_at_once_equals_one_by_one(tmp_path: Path) -> None:
    model = mapping()
    generator = torch.Generator().manual_seed(0)
    actions = torch.randint(0, model.config.num_actions, (2, 20), generator=generator)
    actions[:, 0] = model.no_action
    frames = torch.randint(0, 256, (2, 20, 64, 64, 3), generator=generator, dtype=torch.uint8)
    together = model.observe(model.initial_state(2), actions, frames)
    state = model.initial_state(2)
    for t in range(20):
        state = model.observe(state, actions[:, t : t + 1], frames[:, t : t + 1])
    torch.testing.assert_close(state.memory[CELLS], together.memory[CELLS], atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(state.features, together.features, atol=1e-2, rtol=1e-2)
    before = state.memory[CELLS].clone()
    dream = model.imagine(state, torch.tensor([1, 2]), generator=generator)
    assert torch.equal(state.memory[CELLS], before)
    assert not torch.equal(dream.state.memory[CELLS], before)
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model", dtype=torch.float32)
    assert loaded.config == model.config
    again = loaded.observe(loaded.initial_state(2), actions, frames)
    torch.testing.assert_close(again.features, together.features)


def test_features_tell_the_way_first_and_the_place_last() -> None:
    model = mapping()
    places = model.places
    assert places is not None
    d = model.config.backbone.d_model
    assert model.config.num_features == d + 2 * NUM_PLACE_FEATURES + 4
    features = torch.randn(3, model.config.num_features)
    changed = features.clone()
    changed[:, d + NUM_PLACE_FEATURES + 4 :] += 1
    torch.testing.assert_close(model.predict_policy(changed), model.predict_policy(features))
    told, certainty = place_in(features, places.config)
    torch.testing.assert_close(certainty, features[:, -1])
    assert not torch.allclose(place_in(changed, places.config)[0], told)


def walks(n: int, t: int, seed: int) -> tuple[LatentEpisodes, ReadEpisodes, np.ndarray]:
    """Episodes in mazes of their own, whose latents show which of the cells around are free."""
    rng = np.random.default_rng(seed)
    layouts = np.stack([maze(int(rng.integers(1 << 30)), 10) for _ in range(n)])
    poses, latents = np.zeros((n, t, 3), np.float32), np.zeros((n, t, 1, 4), np.float32)
    moves = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
    for e, layout in enumerate(layouts):
        at = rng.permutation(np.argwhere(layout)[:, ::-1])[0]
        heading, visits = 0, np.zeros_like(layout, dtype=int)
        for i in range(t):
            poses[e, i] = *(at + 0.5), heading * math.pi / 2
            for k in range(4):
                x, y = at + moves[(heading + k) % 4]
                latents[e, i, 0, k] = layout[y, x]
            visits[at[1], at[0]] += 1
            beside = [tuple(at + move) for move in moves]
            # Where it has been least, so that it comes to all that can be come to.
            heading = min(
                range(4),
                key=lambda k: (not layout[beside[k][::-1]], visits[beside[k][::-1]], rng.random()),
            )
            at = at + moves[heading] if layout[beside[heading][::-1]] else at
    episodes = LatentEpisodes(
        torch.from_numpy(latents).flatten(0, 1).half(),
        torch.zeros(n * t, dtype=torch.int64),
        torch.zeros(n * t),
        torch.zeros(n * t, dtype=torch.bool),
        np.full(n, t),
    )
    stands = torch.from_numpy(poses).flatten(0, 1)
    return episodes, ReadEpisodes(torch.zeros(n * t, 4).half(), stands, stands), layouts


def test_what_is_behind_the_end_of_an_episode_teaches_the_map_nothing() -> None:
    torch.manual_seed(0)
    occupancy = Occupancy(4, 4, SMALL)
    episodes, read, _ = walks(1, 12, seed=0)
    latents, poses = episodes.latents.float()[None], read.stands[None]
    come_to = torch.zeros(1, SMALL.side**2, dtype=torch.bool)
    come_to[0, occupancy.index(occupancy.cell_of(read.stands[:8, :2]))] = True
    read_outs = torch.zeros(1, 12, 4)
    alone = occupancy.loss(latents[:, :8], read_outs[:, :8], poses[:, :8], come_to)
    recorded = torch.arange(12)[None] < 8
    padded = occupancy.loss(latents, read_outs, poses, come_to, recorded)
    torch.testing.assert_close(padded, alone)
    assert not torch.isclose(occupancy.loss(latents, read_outs, poses, come_to), alone)
    assert long_enough(np.array([100, 49, 50, 99])).tolist() == [0, 2, 3]


def test_the_map_is_learned_from_walks_alone() -> None:
    torch.manual_seed(0)
    occupancy = Occupancy(4, 4, SMALL)
    config = OccupancyTraining(
        optimizer=OptimizerConfig(steps=250, learning_rate=1e-2, muon_learning_rate=0),
        stride=4,
        min_signal=1.0,
    )
    accelerator = Accelerator(cpu=True)
    episodes, read, _ = walks(40, 160, seed=0)
    loss = occupancy_loss(episodes, read, occupancy, config, accelerator)
    trainer = Trainer(LossModule(occupancy), loss, config.optimizer, accelerator)
    for _ in trainer.run():
        pass
    average = trainer.average.module
    assert isinstance(average, LossModule)
    occupancy = average.learner.eval()
    assert isinstance(occupancy, Occupancy)
    test, read, layouts = walks(20, 12, seed=1)
    poses = read.stands.view(20, 12, 3)
    with torch.no_grad():
        told = occupancy.sense(
            test.latents.view(20, 12, 1, 4).float(), torch.zeros(20, 12, 4), poses
        )
        cells = occupancy.draw(
            occupancy.initial_memory(20)[CELLS],
            *told,
            poses,
            torch.ones(20, 12),
            torch.full((20, 12), -1),
        )[:, -1]
        odds = occupancy.log_odds(cells).view(20, 12, 12)[:, :10, :10].numpy()
    beside = np.zeros_like(layouts)  # cells next to where it has been: frames show what they are
    visited = np.zeros_like(layouts)
    for e, walk in enumerate(poses.numpy()):
        for x, y, _ in walk.astype(int):
            visited[e, y, x] = True
            for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                beside[e, y + dy, x + dx] = True
    beside &= ~visited
    assert beside.sum() > 60
    right = (odds > 0) == layouts
    assert right[visited].all() and right[beside].mean() > 0.9
    # No more than a guess where nothing was shown.
    far = ~(beside | visited)
    assert np.abs(odds[far]).mean() < np.abs(odds[beside]).mean() / 2


def test_settings_that_cannot_be_are_named() -> None:
    with pytest.raises(ValueError, match=r"occupancy\.cell must be above 0, got 0"):
        OccupancyConfig(cell=0)
    with pytest.raises(ValueError, match=r"occupancy\.reach is 4\.0, but the map of 8 cells"):
        OccupancyConfig(side=8)


@pytest.mark.slow
def test_compiled_dreams_are_what_they_were() -> None:
    model = mapping()
    frames, actions = torch.randint(0, 256, (2, 5, 64, 64, 3)).byte(), torch.zeros(2, 5).long()
    state = model.observe(model.initial_state(2), actions, frames)
    noise = torch.randn(2, *model.noise_shape)
    before = model.imagine(state, actions[:, 0], noise=noise)
    model.compile_network()
    counters.clear()
    after = model.imagine(state, actions[:, 0], noise=noise)
    assert counters["frames"]["ok"] and not counters["unimplemented"]
    assert after.state.memory.keys() == before.state.memory.keys()
    for name, t in after.state.memory.items():
        torch.testing.assert_close(t, before.state.memory[name], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(after.state.features, before.state.features, rtol=1e-3, atol=1e-4)


def test_cells_beside_others() -> None:
    cells = torch.zeros(5, 5, dtype=torch.bool)
    cells[2, 2] = cells[2, 3] = cells[0, 0] = True
    beside = {tuple(c) for c in (beside_any(cells) & ~cells).nonzero().tolist()}
    of_two = {(1, 2), (3, 2), (2, 1), (1, 3), (3, 3), (2, 4)}
    assert beside == of_two | {(0, 1), (1, 0), (0, 4), (4, 0)}


@pytest.mark.parametrize("odds", [5.0, -5.0])
def test_what_maps_tell_is_compared_with_where_episodes_come(tmp_path: Path, odds: float) -> None:
    dataset = EpisodeDataset(write_dataset(tmp_path, size=64, poses=True))
    model = mapping().eval()
    assert model.odometry is not None
    assert model.places is not None
    occupancy = model.places.occupancy
    assert occupancy is not None
    with torch.no_grad():  # every cell in reach is told alike
        last = occupancy.tell[-1]
        assert isinstance(last, torch.nn.Linear)
        last.weight.zero_()
        last.bias.copy_(torch.tensor([odds, 0.0]))
    straight = torch.zeros(20, 3)  # it walks a cell on with every fourth of its 20 frames
    straight[:, :2] = 0.5
    straight[:, 0] += torch.arange(20).div(4, rounding_mode="floor")

    def locate(memory: Memory, actions: torch.Tensor, *_: object) -> tuple[torch.Tensor, ...]:
        poses = straight[None, : actions.shape[1]]
        return poses, poses, {key: memory[key] for key in (HIDDEN, POSE, ORIGIN)}

    model.odometry.locate = locate  # type: ignore[assignment, method-assign]
    values = map_on_real_frames(model, dataset, num_episodes=2)
    assert values["free_told_right"] == float(odds > 0)
    assert values["walls_told_right"] == float(odds < 0)
    # Seven frames are seen, two cells: of the six beside, the one ahead is come to later.
    assert values["free_cells"] == 2
    assert values["walls"] == 10


def test_the_map_is_learned_where_frames_stand() -> None:
    episodes, read, _ = walks(2, 8, seed=0)
    config = OccupancyTraining(batch_size=2, stride=1)
    batches: list[tuple[torch.Tensor, ...]] = []

    def spy(*batch: torch.Tensor) -> torch.Tensor:
        batches.append(batch)
        return batch[0].sum()

    for poses in (read.stands, read.stands + 3):  # which do not matter
        other = read._replace(poses=poses)
        occupancy = Occupancy(4, 4, SMALL)
        loss = occupancy_loss(episodes, other, occupancy, config, Accelerator(cpu=True))
        loss(spy, 0)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


@torch.no_grad()
def test_a_map_of_larger_cells_is_the_same_map() -> None:
    torch.manual_seed(0)
    one, two = (Occupancy(4, 4, dataclasses.replace(SMALL, cell=c)).eval() for c in (1.0, 2.0))
    two.load_state_dict(one.state_dict())
    layout = np.zeros((12, 12), bool)
    layout[2, 2:9], layout[2:9, 8] = True, True
    cells, scale = known_map(layout, SMALL), torch.tensor([2.0, 2.0, 1.0])
    pose, to = torch.tensor([[7.5, 2.5, 0.0]]), torch.tensor([[7.6, 2.95, 0.0]])
    end = one.stop(cells, pose, to)
    assert (end - to).abs().max() > 0.01  # a wall stops it
    torch.testing.assert_close(two.stop(cells, scale * pose, scale * to), scale * end)
    place, now = torch.tensor([[1.0, 3.0]]), torch.ones(1)
    aim = one.index(one.cell_of(pose[:, :2] + place))
    way = one.way(cells, pose, now, place, aim)
    torch.testing.assert_close(two.way(cells, scale * pose, now, 2 * place, aim), 2 * way)
    walk = torch.rand(1, 3, 3, generator=torch.Generator().manual_seed(0)) + 4
    torch.testing.assert_close(drawn(two, scale * walk), drawn(one, walk))
