"""Odometry: displacements and poses are inverses, it is learned, and models find poses with it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny import tiny_model, write_dataset

from worldsim.checkpoint import load, save
from worldsim.episodes import EpisodeDataset
from worldsim.latents import LatentBatch
from worldsim.odometry import HIDDEN, POSE, Odometry, OdometryConfig, displacements, integrate
from worldsim.odometry_training import OdometryTraining, odometry_loss
from worldsim.open_loop import odometry_error
from worldsim.pose import PoseConfig, relative_poses
from worldsim.world_model import WorldModel

TURN = math.pi / 4


def finding_poses() -> WorldModel:
    """A tiny model with odometry."""
    return tiny_model(pose=PoseConfig(), odometry=OdometryConfig(hidden=16))


def episode(model: WorldModel, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Actions (2, t) from the start of an episode, and frames."""
    generator = torch.Generator().manual_seed(0)
    actions = torch.randint(0, model.config.num_actions, (2, t), generator=generator)
    actions[:, 0] = model.no_action
    frames = torch.randint(0, 256, (2, t, 64, 64, 3), generator=generator, dtype=torch.uint8)
    return actions, frames


def walk(b: int, t: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Actions and true poses of a walker: 0 walks 0.2 ahead, 1 and 2 turn; 3 is "no action"."""
    actions = torch.randint(0, 3, (b, t), generator=torch.Generator().manual_seed(seed))
    moved = torch.tensor([[0.2, 0, 0], [0, 0, TURN], [0, 0, -TURN]])[actions]
    moved[:, 0] = 0
    actions[:, 0] = 3
    return actions, integrate(torch.tensor([[3.0, 4.0, 1.0]]).expand(b, 3), moved)


def test_displacements_lead_to_the_poses_they_came_from() -> None:
    generator = torch.Generator().manual_seed(0)
    moved = torch.randn(3, 50, 3, generator=generator)
    moved[:, 0] = 0
    moved[..., 2] = moved[..., 2].clamp(-3, 3)
    start = torch.randn(3, 3, generator=generator)
    poses = integrate(start, moved)
    assert poses[..., 2].abs().max() <= math.pi + 1e-5
    torch.testing.assert_close(displacements(poses), moved, atol=1e-4, rtol=0)
    # In pieces it is the same.
    pieces = [integrate(start, moved[:, :20])]
    pieces.append(integrate(pieces[0][:, -1], moved[:, 20:]))
    torch.testing.assert_close(torch.cat(pieces, 1), poses, atol=1e-4, rtol=0)


def test_ahead_and_left_are_seen_from_the_walker() -> None:
    poses = torch.tensor([[[0.0, 0, math.pi / 2], [0, 2, math.pi / 2], [-1, 2, -3]]])
    expected = [[0, 0, 0], [2, 0, 0], [0, 1, 2 * math.pi - 3 - math.pi / 2]]
    torch.testing.assert_close(displacements(poses)[0], torch.tensor(expected), atol=1e-5, rtol=0)


def test_it_learns_to_walk_and_finds_its_way() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        odometry = Odometry(3, 4, OdometryConfig(hidden=32))
    optimizer = torch.optim.AdamW(odometry.parameters(), lr=1e-2)
    latents = torch.zeros(16, 12, 2, 2)
    for step in range(150):
        actions, poses = walk(16, 12, step)
        loss = odometry.loss(actions, latents, poses)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    actions, poses = walk(4, 12, -1)
    true = relative_poses(poses)
    with torch.no_grad():
        memory = odometry.initial_memory(4)
        none = torch.zeros(4, dtype=torch.int64)
        found, _, after = odometry.locate(memory, actions, latents[:4], none)
        assert (found - true)[..., :2].norm(dim=-1).max() < 0.3  # lost: about 1
        for t in range(12):  # one by one, expected before each frame is there
            steps = none + t
            expected = odometry.expect(memory, actions[:, t], steps)
            one = (actions[:, t : t + 1], latents[:4, :1], steps)
            here, stands, memory = odometry.locate(memory, *one)
            assert torch.equal(stands, here)  # no grid is seen
            torch.testing.assert_close(here, found[:, t : t + 1], atol=1e-4, rtol=0)
            assert (expected - here)[..., :2].norm(dim=-1).max() < 0.1
    torch.testing.assert_close(memory[POSE], after[POSE], atol=1e-4, rtol=0)


def test_frames_that_no_action_led_to_are_not_learned_from() -> None:
    odometry = Odometry(3, 4, OdometryConfig(hidden=8))
    actions, poses = walk(2, 12, 0)
    actions[:, 6] = 3
    latents = torch.zeros(2, 12, 2, 2)
    jumped = poses.clone()
    jumped[:, 6:, :2] += 5.0  # a new stretch begins there
    same = odometry.loss(actions, latents, jumped) - odometry.loss(actions, latents, poses)
    assert same.abs() < 1e-4
    actions[:, 6] = 0
    assert odometry.loss(actions, latents, jumped) > odometry.loss(actions, latents, poses) + 1


def test_nothing_moves_where_no_action_led() -> None:
    model = finding_poses()
    actions = torch.full((2, 1), model.no_action)
    _, frames = episode(model, 1)
    assert not model.observe(model.initial_state(2), actions, frames).memory[POSE].any()


def test_the_first_frame_is_the_origin_whatever_led_there() -> None:
    """As in training, where poses are relative to the first frame of a segment."""
    model = finding_poses()
    actions, frames = episode(model, 3)
    actions[:, 0] = 1  # a context from the middle of an episode
    state = model.observe(model.initial_state(2), actions[:, :1], frames[:, :1])
    assert not state.memory[POSE].any()
    assert not model.tell(model.initial_state(2), actions[:, 0]).any()
    assert model.observe(state, actions[:, 1:], frames[:, 1:]).memory[POSE].any()


def test_dreams_are_followed_without_the_noise_they_are_remembered_with() -> None:
    """The odometry has not learned from latents as noisy as a low dream_signal makes them."""
    hidden = []
    for signal in (0.2, 0.9):
        model = finding_poses().reconfigured(dream_signal=signal)
        state = model.observe(model.initial_state(2), *episode(model, 4))
        noise = torch.randn(2, *model.noise_shape, generator=torch.Generator().manual_seed(0))
        hidden.append(model.imagine(state, torch.tensor([0, 1]), noise=noise).state.memory[HIDDEN])
    assert torch.equal(*hidden)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_any_integers_are_actions(dtype: torch.dtype) -> None:
    model = finding_poses()
    actions, frames = episode(model, 3)
    states = [
        model.observe(model.initial_state(2), a, frames) for a in (actions, actions.to(dtype))
    ]
    assert torch.equal(states[0].memory[POSE], states[1].memory[POSE])
    dreams = [model.imagine(states[0], torch.tensor([1, 2]).to(d)) for d in (dtype, torch.int64)]
    assert torch.equal(dreams[0].state.memory[POSE], dreams[1].state.memory[POSE])


def test_many_frames_at_once_equal_one_by_one() -> None:
    model = finding_poses()
    actions, frames = episode(model, 7)
    together = model.observe(model.initial_state(2), actions, frames)
    state = model.initial_state(2)
    for t in range(7):
        state = model.observe(state, actions[:, t : t + 1], frames[:, t : t + 1])
    torch.testing.assert_close(state.features, together.features, atol=1e-4, rtol=1e-3)
    assert together.memory[POSE].any()
    for name, tensor in together.memory.items():
        torch.testing.assert_close(state.memory[name], tensor, atol=1e-4, rtol=1e-3)


def test_dreams_stand_where_the_action_leads() -> None:
    model = finding_poses()
    assert model.odometry is not None
    actions, frames = episode(model, 4)
    state = model.observe(model.initial_state(2), actions, frames)
    noise = torch.randn(2, *model.noise_shape, generator=torch.Generator().manual_seed(0))
    dreams = [model.imagine(state, torch.full((2,), a), noise=noise) for a in (0, 1)]
    for a, dream in enumerate(dreams):
        expected = model.odometry.expect(state.memory, torch.full((2,), a), state.steps)
        torch.testing.assert_close(dream.state.memory[POSE], expected[:, 0])
    assert not torch.equal(dreams[0].state.memory[POSE], dreams[1].state.memory[POSE])
    assert not torch.equal(dreams[0].frame, dreams[1].frame)
    forked = state.repeat(2)[1:3]
    assert torch.equal(forked.memory[POSE], state.memory[POSE])


def test_training_tells_poses_from_where_memory_began() -> None:
    model = finding_poses()
    actions, frames = episode(model, 5)
    latents = model.encode(frames)
    zeros, ones = torch.zeros(2, 5), torch.ones(2, 5)
    poses = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    turned = poses.clone()
    turned[..., 0], turned[..., 1] = 2 - poses[..., 1], 1 + poses[..., 0]
    turned[..., 2] += math.pi / 2
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))

    def losses(poses: torch.Tensor) -> dict[str, torch.Tensor]:
        heads = (zeros, zeros.bool(), zeros, ones)
        return model(latents, actions, poses, *heads, noise, ones / 2, ones.bool())

    here, there = losses(poses), losses(turned)
    for name, value in here.items():
        torch.testing.assert_close(there[name], value, atol=1e-4, rtol=1e-3)


def test_its_error_is_the_distance_from_the_truth(tmp_path: Path) -> None:
    dataset = EpisodeDataset(write_dataset(tmp_path, size=64, poses=True))
    model = finding_poses()
    assert model.odometry is not None
    for parameter in model.odometry.after.parameters():
        parameter.data.zero_()  # believes that it never moves
    error = odometry_error(model, dataset, num_episodes=3, length=12)
    walked = []
    for i in range(3):
        places = dataset.infos(i)["agent_pos"][:12]
        walked.append(np.linalg.norm(places - places[0], axis=1))
    np.testing.assert_allclose(error, np.mean(walked, 0), atol=1e-5)
    with pytest.raises(ValueError, match="no episode has 99 frames"):
        odometry_error(model, dataset, length=99)
    with pytest.raises(ValueError, match="no odometry"):
        odometry_error(tiny_model(), dataset)


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model = finding_poses()
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.config == model.config
    actions, frames = episode(model, 3)
    states = [m.observe(m.initial_state(2), actions, frames) for m in (model, loaded)]
    # Weights are kept in half precision.
    torch.testing.assert_close(states[0].memory[POSE], states[1].memory[POSE], atol=0.02, rtol=0.02)


def test_one_long_episode_is_not_all_that_is_learned_from() -> None:
    asked: list[int] = []

    class Episodes:
        poses = torch.zeros(1)
        lengths = np.array([20] * 19 + [120])

        def sample(self, batch_size: int, length: int, rng: np.random.Generator) -> LatentBatch:
            asked.append(length)
            t = length
            shapes = [(t, 4, 8), (t,), (t, 3), (t,), (t,), (t,), (t,)]
            return LatentBatch(*(torch.zeros(batch_size, *shape) for shape in shapes))

    accelerator = Accelerator(cpu=True)
    config = OdometryTraining(batch_size=2)
    loss = odometry_loss(Episodes(), config, accelerator)  # type: ignore[arg-type]
    loss(lambda actions, latents, poses: latents.mean(), 0)  # type: ignore[arg-type, return-value]
    assert asked == [20]


def test_odometry_without_poses_is_refused() -> None:
    with pytest.raises(ValueError, match="set pose too"):
        tiny_model(odometry=OdometryConfig())
