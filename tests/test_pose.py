"""Models that are told poses: the features of poses, and a model that takes them for actions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_model

from worldsim.checkpoint import load, save
from worldsim.layers import rotate_pairs
from worldsim.pose import (
    PoseConfig,
    PoseEmbedding,
    PoseRotation,
    pose_features,
    poses_of,
    relative_poses,
    token_poses,
)
from worldsim.world_model import WorldModel


def told_poses() -> WorldModel:
    """A tiny model that is told poses."""
    return tiny_model(pose=PoseConfig())


def sample(t: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Poses (2, t, 3) and frames."""
    generator = torch.Generator().manual_seed(seed)
    poses = 8 * torch.rand(2, t, 3, generator=generator)
    frames = torch.randint(0, 256, (2, t, 64, 64, 3), generator=generator, dtype=torch.uint8)
    return poses, frames


def test_poses_come_from_privileged_infos() -> None:
    infos = {"agent_pos": np.array([[1.5, 2.5]]), "agent_dir": np.array([[0.0, -1.0]])}
    np.testing.assert_allclose(poses_of(infos), [[1.5, 2.5, -np.pi / 2]], rtol=1e-6)
    with pytest.raises(ValueError, match="privileged infos"):
        poses_of({})


def test_poses_in_space_are_refused() -> None:
    infos = {"agent_pos": np.zeros((4, 3)), "agent_dir": np.zeros((4, 2))}
    with pytest.raises(ValueError, match=r"agent_pos must have shape \(t, 2\), got \(4, 3\)"):
        poses_of(infos)


def test_relative_poses_are_the_same_wherever_the_walk_began() -> None:
    walk = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [1, 2, math.pi / 2], [1, 2, -3]]])
    torch.testing.assert_close(relative_poses(walk), walk)
    turn, moved = 2.0, torch.tensor([5.0, -3.0])
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    elsewhere = torch.cat([walk[..., :2] @ rotation.T + moved, walk[..., 2:] + turn], dim=-1)
    torch.testing.assert_close(relative_poses(elsewhere), walk, atol=1e-5, rtol=0)


def test_features_tell_poses_apart_and_full_turns_alike() -> None:
    config = PoseConfig()
    poses = torch.tensor([[1.0, 2.0, 0.5], [1.0, 2.0, 0.5 + 2 * math.pi], [1.1, 2.0, 0.5]])
    features = pose_features(poses, config)
    assert features.shape == (3, config.num_features)
    torch.testing.assert_close(features[0], features[1], atol=1e-5, rtol=0)
    far = pose_features(torch.tensor([[5.0, 7.0, 0.5]]), config)[0]
    assert 0.05 < (features[0] - features[2]).norm() < (features[0] - far).norm()


def test_tokens_of_near_poses_are_alike_from_the_start() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        embed = PoseEmbedding(PoseConfig(), 128)
    poses = torch.tensor([[3.0, 4.0, 1.0], [3.05, 4.0, 1.05], [3.0, 4.0, 1.0 + math.pi], [5, 6, 1]])
    here, near, behind, there = embed(poses).detach()
    assert 1 < here.square().mean().sqrt() < 4  # embedded latents are of size 0.6
    similarity = [float(torch.cosine_similarity(here, x, dim=0)) for x in (near, behind, there)]
    assert similarity[0] > 0.95 and max(similarity[1:]) < 0.8


def test_every_part_of_the_pose_matters() -> None:
    base = torch.tensor([3.0, 4.0, 1.0])
    for part in range(3):
        other = base.clone()
        other[part] += 0.25
        a, b = (pose_features(p, PoseConfig()) for p in (base, other))
        assert (a - b).abs().max() > 0.05


def test_rotations_are_alike_for_near_poses_wherever_they_are() -> None:
    rotation = PoseRotation(PoseConfig(), 512)
    ones = torch.full((512,), 512**-0.5)

    def likeness(a: list[float], b: list[float]) -> float:
        x, y = (rotate_pairs(ones, rotation.angles(torch.tensor(p))[0]) for p in (a, b))
        return float(x @ y)

    here = [3.0, 4.0, 1.0]
    assert likeness(here, here) == pytest.approx(1)
    assert likeness(here, [3.2, 4.0, 1.1]) > 0.8
    assert likeness(here, [3.0, 4.0, 1.0 + 2 * math.pi]) == pytest.approx(1, abs=1e-4)
    for far in ([9.0, 4.0, 1.0], [3.0, 4.0, 1.0 + math.pi], [3.0, 9.0, -1.0]):
        assert abs(likeness(here, far)) < 0.25
    moved = likeness([x + 5 for x in here], [8.2, 9.0, 6.1])
    assert moved == pytest.approx(likeness(here, [3.2, 4.0, 1.1]), abs=1e-4)


def test_rotations_are_exact_in_mixed_precision() -> None:
    rotation, poses = PoseRotation(PoseConfig(), 16, num_heads=2), 9 * torch.rand(5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        angles = rotation.angles(poses)
    assert angles.shape == (5, 2, 8) and torch.equal(angles, rotation.angles(poses))
    with pytest.raises(ValueError, match="width 7"):
        PoseRotation(PoseConfig(), 7)


def test_learned_rotations_begin_as_drawn_and_learn() -> None:
    drawn, learned = (
        PoseRotation(PoseConfig(learned=learned), 16, num_heads=2) for learned in (False, True)
    )
    poses = 9 * torch.rand(5, 3)
    angles = learned.angles(poses)
    assert torch.equal(angles, drawn.angles(poses))
    angles.square().sum().backward()
    (parameter,) = learned.parameters()
    assert parameter.grad is not None and bool((parameter.grad != 0).all())
    assert not list(drawn.parameters())
    with torch.no_grad():
        parameter += torch.randn_like(parameter)
    turned = learned.angles(poses + torch.tensor([0.0, 0.0, 2 * torch.pi])) - learned.angles(poses)
    turns = turned / (2 * torch.pi)
    torch.testing.assert_close(turns, turns.round(), atol=1e-4, rtol=0)  # no seam at half a turn


def test_tokens_look_where_their_columns_are() -> None:
    poses = torch.tensor([[[1.0, 2.0, 0.5]]])
    tokens = token_poses(poses, (2, 4), 90.0)[0, 0].unflatten(0, (2, 4))
    assert torch.equal(tokens[0], tokens[1]) and (tokens[..., :2] == poses[0, 0, :2]).all()
    to_the_left = tokens[0, :, 2] - 0.5
    # A quarter of the image's half width is at atan(0.25 tan 45 degrees).
    expected = torch.tensor([0.75, 0.25, -0.25, -0.75]).atan()
    torch.testing.assert_close(to_the_left, expected)
    assert torch.equal(token_poses(poses, (2, 4), 0.0)[0, 0, :, 2], torch.full((8,), 0.5))


@pytest.mark.parametrize(
    "wrong", [{"field_of_view": 180.0}, {"field_of_view": -1.0}, {"lengths": ()}], ids=str
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PoseConfig(**wrong)  # type: ignore[arg-type]


def test_many_frames_at_once_equal_one_by_one() -> None:
    model, (poses, frames) = told_poses(), sample(7)
    together = model.observe(model.initial_state(2), poses, frames)
    state = model.initial_state(2)
    for t in range(7):
        state = model.observe(state, poses[:, t : t + 1], frames[:, t : t + 1])
    for name, value in together.memory.items():
        torch.testing.assert_close(value, state.memory[name], atol=1e-4, rtol=1e-4)


def test_dreams_depend_on_the_pose() -> None:
    model, (poses, frames) = told_poses(), sample(4)
    state = model.observe(model.initial_state(2), poses, frames)
    noise = torch.randn(2, *model.noise_shape, generator=torch.Generator().manual_seed(0))
    here, again, there = (
        model.imagine(state, p, noise=noise).frame.float()
        for p in (poses[:, 0], poses[:, 0], poses[:, 0] + 1)
    )
    assert torch.equal(here, again) and not torch.equal(here, there)
    dreamed, rewards = model.dream(state, poses[:, :3])
    assert dreamed.shape == (2, 3, 64, 64, 3) and rewards.shape == (2, 3)


def test_it_learns_from_poses() -> None:
    model, (poses, frames) = told_poses(), sample(5)
    latents, actions = model.encode(frames), torch.zeros(2, 5, dtype=torch.int64)
    rewards, level = torch.zeros(2, 5), torch.full((2, 5), 0.5)
    ended, mask = torch.zeros(2, 5, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)
    noise = torch.randn(latents.shape)
    heads = (rewards, ended, rewards, rewards)
    losses = model(latents, actions, poses, *heads, noise, level, mask)
    losses["diffusion"].backward()
    gradient = model.denoiser.action_in.layers[0].weight.grad
    assert gradient is not None and gradient.abs().max() > 0


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model, (poses, frames) = told_poses(), sample(3)
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.config == model.config
    states = [m.observe(m.initial_state(2), poses, frames) for m in (model, loaded)]
    # Weights are kept in half precision.
    torch.testing.assert_close(states[0].features, states[1].features, atol=0.05, rtol=0.05)


def test_rotations_are_kept_exactly_even_by_half_precision(tmp_path: Path) -> None:
    """They are drawn, and another version of the library that draws may draw others."""
    model = told_poses()
    for name, buffer in model.named_buffers():
        if name.endswith("frequencies"):
            buffer.add_(0.123)  # as another version would have drawn
    save(model, tmp_path / "model", half=True)
    loaded = dict(load(tmp_path / "model").named_buffers())
    kept = {n: b for n, b in model.named_buffers() if n.endswith("frequencies")}
    assert kept
    for name, buffer in kept.items():
        assert torch.equal(loaded[name], buffer)


def test_models_saved_without_rotations_have_those_of_their_seeds() -> None:
    model = told_poses()
    weights = {k: v for k, v in model.state_dict().items() if not k.endswith("frequencies")}
    assert len(weights) < len(model.state_dict())
    other = told_poses()
    other.load_state_dict(weights)
    for name, buffer in other.named_buffers():
        assert torch.equal(buffer, model.get_buffer(name))


def test_actions_in_place_of_poses_are_refused() -> None:
    model, (_, frames) = told_poses(), sample(3)
    with pytest.raises(ValueError, match=r"told poses: expected are float32 \(2, 3, 3\)"):
        model.observe(model.initial_state(2), torch.zeros(2, 3, dtype=torch.int64), frames)
    with pytest.raises(ValueError, match=r"expected are float32 \(2, 3\)"):
        model.imagine(model.initial_state(2), torch.zeros(2, dtype=torch.int64))
