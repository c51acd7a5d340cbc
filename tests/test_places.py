"""The memory of places: seen from anywhere it is the same, it is learned, and models carry it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny import tiny_model, write_dataset

from agents.actor_critic import ActorCritic
from experiments.told_places import places_on_real_frames
from worldsim.checkpoint import load, save
from worldsim.episodes import EpisodeDataset
from worldsim.latents import LatentEpisodes
from worldsim.odometry import ORIGIN, POSE, OdometryConfig
from worldsim.places import (
    NUM_PLACE_FEATURES,
    NUM_POSE_FEATURES,
    SLOTS,
    Outlook,
    Places,
    PlacesConfig,
    next_reward_places,
    place_features,
    place_in,
    pose_features_of,
)
from worldsim.places_training import (
    PlacesLoss,
    PlacesTraining,
    ReadEpisodes,
    places_loss,
    read_episodes,
    read_once,
)
from worldsim.pose import PoseConfig, compose, placed_at, seen_from
from worldsim.training import Trainer
from worldsim.training_config import OptimizerConfig
from worldsim.world_model import WorldModel

MORE = NUM_PLACE_FEATURES + NUM_POSE_FEATURES
CONFIG = PlacesConfig(slots=4, width=32)


def remembering() -> WorldModel:
    """A tiny model with odometry and places."""
    return tiny_model(pose=PoseConfig(), odometry=OdometryConfig(hidden=16), places=CONFIG)


def episode(model: WorldModel, b: int, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Actions (b, t) from the start of an episode, and frames."""
    generator = torch.Generator().manual_seed(0)
    actions = torch.randint(0, model.config.num_actions, (b, t), generator=generator)
    actions[:, 0] = model.no_action
    frames = torch.randint(0, 256, (b, t, 64, 64, 3), generator=generator, dtype=torch.uint8)
    return actions, frames


def turned(poses: torch.Tensor, angle: float, shift: torch.Tensor) -> torch.Tensor:
    """The same poses (..., 3) in a world that was turned and then moved."""
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = poses[..., 0] * cos - poses[..., 1] * sin, poses[..., 0] * sin + poses[..., 1] * cos
    return torch.stack([x + shift[0], y + shift[1], poses[..., 2] + angle], dim=-1)


def test_what_is_placed_is_seen_where_it_was() -> None:
    generator = torch.Generator().manual_seed(0)
    poses, seen = torch.randn(5, 3, generator=generator), torch.randn(5, 2, generator=generator)
    torch.testing.assert_close(seen_from(poses, placed_at(poses, seen)), seen)
    west = torch.tensor([1.0, 2.0, math.pi])
    torch.testing.assert_close(
        seen_from(west, torch.tensor([0.0, 5.0])), torch.tensor([1.0, -3.0]), atol=1e-5, rtol=0
    )


def test_next_reward_places() -> None:
    rewards = torch.tensor([0.0, 0.0, 1.0, 0.0, 2.0, 0.0, -1.0])
    poses = torch.zeros(7, 3)
    poses[:, 0] = torch.arange(7)
    places, known = next_reward_places(rewards, poses)
    assert known.tolist() == [True, True, True, True, False, False, False]
    assert places[:4, 0].tolist() == [2, 1, 2, 1]  # on arrival it is the one after that counts
    assert not next_reward_places(torch.zeros(3), poses[:3])[1].any()


def test_features_fade_with_certainty_and_tell_near_from_far() -> None:
    place = torch.tensor([[3.0, -4.0]])
    certain = place_features(place, torch.ones(1))
    assert certain.shape == (1, NUM_PLACE_FEATURES)
    assert not place_features(place, torch.zeros(1)).any()
    torch.testing.assert_close(place_features(place, torch.full((1,), 0.5)), certain / 2)
    torch.testing.assert_close(certain[0, :2], torch.tensor([0.6, -0.8]))
    half = torch.cat([torch.randn(1, 5), certain / 2, torch.randn(1, NUM_POSE_FEATURES)], dim=-1)
    told, certainty = place_in(half, CONFIG)
    torch.testing.assert_close(told, place)
    assert certainty.item() == 0.5
    assert torch.isfinite(place_features(torch.zeros(1, 2), torch.ones(1))).all()


def test_the_likelier_guess_is_told_and_certain_where_it_is_sharp() -> None:
    places = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]])
    share = torch.tensor([[[0.2, 0.8]]]).log()
    sharp = Outlook(places, torch.tensor([[[-1.0, -1.0]]]), share)
    place, certainty = sharp.best()
    assert place.tolist() == [[[0.0, 2.0]]] and 0.75 < certainty.item() < 0.8
    assert Outlook(places, torch.ones(1, 1, 2), share).best()[1].item() < 0.05
    near = sharp.log_likelihood(torch.tensor([[[0.0, 2.1]]]))
    assert near > sharp.log_likelihood(torch.tensor([[[0.0, 4.0]]]))


def test_density_of_places_sums_to_one() -> None:
    axis = torch.linspace(-60, 60, 1201)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).reshape(-1, 1, 2)
    outlook = Outlook(
        torch.tensor([[[1.0, 0.5], [-2.0, 0.0]]]).expand(len(grid), 1, 2, 2),
        torch.tensor([-0.7, -1.0]).expand(len(grid), 1, 2),
        torch.tensor([0.3, 0.7]).log().expand(len(grid), 1, 2),
    )
    total = outlook.log_likelihood(grid).exp().sum() * 0.1**2
    assert abs(total.item() - 1) < 0.02


def test_read_out_does_not_depend_on_where_the_world_is() -> None:
    torch.manual_seed(0)
    places = Places(4, 6, 5, CONFIG)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 12, 3, 2, generator=generator)
    read_outs = torch.randn(2, 12, 5, generator=generator)
    poses = torch.randn(2, 12, 3, generator=generator)
    moved = turned(poses, 0.7, torch.tensor([2.0, -1.0]))
    steps = torch.zeros(2, dtype=torch.int64)
    here, there = (
        places(places.initial_memory(2), latents, read_outs, p, p, steps)[0][
            ..., :NUM_PLACE_FEATURES
        ]
        for p in (poses, moved)
    )
    assert here[:, 1:].std() > 0.01
    # Slots that are hardly filled are a little nearer to the origin.
    torch.testing.assert_close(here[:, 4:], there[:, 4:], atol=0.02, rtol=0.05)


def test_observing_at_once_equals_one_by_one_and_slots_are_carried() -> None:
    model = remembering()
    actions, frames = episode(model, 2, 9)
    together = model.observe(model.initial_state(2), actions, frames)
    assert together.features.shape == (2, model.config.num_features)
    assert model.config.num_features == model.config.backbone.d_model + MORE
    state = model.initial_state(2)
    for t in range(9):
        state = model.observe(state, actions[:, t : t + 1], frames[:, t : t + 1])
    torch.testing.assert_close(state.memory[SLOTS], together.memory[SLOTS], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(state.features, together.features, atol=1e-3, rtol=1e-3)
    assert together.memory[SLOTS].abs().sum() > 0
    assert not model.initial_state(2).memory[SLOTS].any()


def test_dreams_carry_places_and_leave_the_state_alone() -> None:
    model = remembering()
    actions, frames = episode(model, 2, 5)
    state = model.observe(model.initial_state(2), actions, frames)
    before = state.memory[SLOTS].clone()
    dream = model.imagine(state, torch.tensor([0, 1]), generator=torch.Generator().manual_seed(0))
    assert torch.equal(state.memory[SLOTS], before)
    assert not torch.equal(dream.state.memory[SLOTS], before)
    assert dream.state.features.shape == (2, model.config.num_features)


def test_heads_of_frames_do_not_see_places() -> None:
    model = remembering()
    features = torch.randn(3, model.config.num_features)
    other = features.clone()
    other[:, -MORE:] += 1
    for predict in (model.predict_reward, model.predict_value, model.predict_termination):
        assert torch.equal(predict(features), predict(other))
    assert not torch.equal(model.predict_policy(features), model.predict_policy(other))


def test_places_need_odometry() -> None:
    with pytest.raises(ValueError, match="odometry"):
        tiny_model(places=CONFIG)
    with pytest.raises(ValueError, match="slots must be above 0"):
        PlacesConfig(slots=0)


def test_places_are_saved_and_can_be_added(tmp_path: Path) -> None:
    model = remembering()
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model", dtype=torch.float32)
    actions, frames = episode(model, 1, 4)
    states = [m.observe(m.initial_state(1), actions, frames) for m in (model, loaded)]
    torch.testing.assert_close(states[0].features, states[1].features)
    plain = tiny_model(pose=PoseConfig(), odometry=OdometryConfig(hidden=16))
    more = plain.reconfigured(places=CONFIG)
    state = more.observe(more.initial_state(1), actions, frames)
    before = plain.observe(plain.initial_state(1), actions, frames)
    torch.testing.assert_close(state.features[:, :-MORE], before.features)


def test_an_actor_critic_starts_from_walking_or_from_plain_behaviour() -> None:
    model = remembering()
    features = torch.randn(5, model.config.num_features)
    agent = ActorCritic.from_behaviour(model)
    torch.testing.assert_close(agent.logits(features), model.predict_policy(features))
    torch.testing.assert_close(agent.value(features), model.predict_value(features))
    plain = ActorCritic.from_behaviour(model, walking=False)
    read_out = features[:, : model.config.backbone.d_model]
    torch.testing.assert_close(plain.logits(features), model.policy_head(read_out))


def treasure_episodes(n: int, t: int, seed: int) -> tuple[LatentEpisodes, torch.Tensor]:
    """Walks on a plane with two hidden targets, each seen only once, at the start.

    Latents show where the two are as seen from the camera in the first two frames, and after that
    only which of them is rewarded next. So where the next reward is can only be remembered.
    """
    generator = torch.Generator().manual_seed(seed)
    poses = torch.zeros(n, t, 3)
    poses[..., 2] = (4 * torch.rand(n, t, generator=generator) - 2).cumsum(1)
    for i in range(1, t):
        heading = poses[:, i - 1, 2]
        step = torch.stack([heading.cos(), heading.sin()], dim=-1)
        poses[:, i, :2] = poses[:, i - 1, :2] + 0.6 * step
    cue = torch.zeros(n, t, dtype=torch.int64)
    rewards = torch.zeros(n, t)
    latents = torch.zeros(n, t, 1, 6)
    for e in range(n):
        first = int(torch.randint(2, (1,), generator=generator))
        cue[e] = first
        for time, which in ((t // 2, first), (t - 1, 1 - first)):
            rewards[e, time] = 1
            cue[e, time:] = 1 - which
            target = poses[e, time, :2]
            seen = seen_from(poses[e, which], target)
            latents[e, which, 0, :2] = seen / 3
            latents[e, which, 0, 2 + which] = 1
    latents.scatter_(-1, (4 + cue)[..., None, None], 1.0)
    episodes = LatentEpisodes(
        latents.flatten(0, 1).half(),
        torch.randint(4, (n * t,), generator=generator),
        rewards.flatten(),
        torch.zeros(n * t, dtype=torch.bool),
        np.full(n, t),
        poses=poses.flatten(0, 1),
    )
    return episodes, cue


def test_places_are_learned_that_only_memory_tells() -> None:
    t = 24
    episodes, _ = treasure_episodes(256, t, seed=0)
    assert episodes.poses is not None
    torch.manual_seed(0)
    places = Places(4, 6, 4, PlacesConfig(slots=6, width=64))
    read_outs = torch.zeros(episodes.num_frames, 4, dtype=torch.float16)
    config = PlacesTraining(
        optimizer=OptimizerConfig(
            steps=600, learning_rate=5e-3, muon_learning_rate=0, ema_decay=0.9
        ),
        batch_size=32,
        min_signal=1.0,
    )
    accelerator = Accelerator(cpu=True)
    read = ReadEpisodes(read_outs, episodes.poses, episodes.poses)
    loss = places_loss(episodes, read, config, accelerator)
    trainer = Trainer(PlacesLoss(places), loss, config.optimizer, accelerator)
    losses = [values["own"] for values in trainer.run()]
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) - 1
    test, _ = treasure_episodes(64, t, seed=1)
    assert test.poses is not None
    poses, latents = test.poses.view(64, t, 3), test.latents.view(64, t, 1, 6).float()
    average = trainer.average.module
    assert isinstance(average, PlacesLoss)
    places = average.places.eval()
    true = torch.stack(
        [next_reward_places(test.rewards.view(64, t)[e], poses[e])[0] for e in range(64)]
    )
    late = slice(t // 2 + 1, t - 1)  # the second target was seen some ten frames ago

    @torch.no_grad()
    def share_found(forget: float) -> float:
        x = places.look(latents, torch.zeros(64, t, 4))
        time = places.times(torch.zeros(64), t)
        slots = places.write(places.initial_memory(64)[SLOTS], x, poses, time) * (1 - forget)
        found = places.look_up(slots, places.query(x).softmax(-1), poses, time)
        guess, _ = places.outlook(x, *found).best()
        return float(((guess - true).norm(dim=-1) < 0.3)[:, late].float().mean())

    assert share_found(0.0) > 0.4 > 0.1 > share_found(1.0)


def test_places_are_learned_from_all_of_short_episodes_and_nothing_behind_them() -> None:
    whole, _ = treasure_episodes(4, 24, seed=0)
    assert whole.poses is not None
    episodes = LatentEpisodes(
        *(whole.latents, whole.actions, whole.rewards, whole.terminated),
        np.array([24, 6, 48, 18]),
        poses=whole.poses,
    )
    read = ReadEpisodes(torch.zeros(96, 4).half(), whole.poses, whole.poses)
    config = PlacesTraining(batch_size=64, length=40)
    seen: list[tuple[torch.Tensor, ...]] = []

    def spy(batch: tuple[torch.Tensor, ...], walks: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        seen.extend([batch, walks])
        return [torch.zeros(())] * 3

    places_loss(episodes, read, config, Accelerator(cpu=True))(spy, 0)  # type: ignore[arg-type]
    (_, _, poses, _, known, others, _), (_, _, actions, ahead, _) = seen
    starts = torch.from_numpy(episodes.offsets)
    begun = [(poses[:, 0] == whole.poses[start]).all(-1) for start in starts]
    assert all(rows.any() for rows in begun)  # also of the shortest
    now = torch.arange(40)
    for rows, size in zip(begun, (24, 6, 40, 18), strict=True):
        assert known[rows, :size].any() == (size > 6) and not known[rows, size:].any()
        assert (others[rows] < size).all()
        assert not known[rows].gather(1, others[rows])[:, size:].any()
        assert (actions[rows, size:] >= 4).all() and (actions[rows, :size] < 4).all()
        come_to = (now + ahead[rows])[:, :size]
        assert (come_to < (48 if size == 40 else size)).all()  # within the episode


def test_places_are_learned_in_full_precision_under_autocast_too() -> None:
    episodes, _ = treasure_episodes(4, 12, seed=0)
    assert episodes.poses is not None
    torch.manual_seed(0)
    places = Places(4, 6, 4, PlacesConfig(slots=6, width=64))
    latents, poses = episodes.latents.view(4, 12, 1, 6), episodes.poses.view(4, 12, 3)
    others, known = torch.randint(12, (4, 12)), torch.ones(4, 12)
    read_outs = torch.zeros(4, 12, 4, dtype=torch.float16)
    batch = (latents, read_outs, poses, poses[..., :2] + 1, known, others, poses)
    exact = places.loss(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert places.loss(*batch) == exact


def test_walking_follows_what_is_told() -> None:
    torch.manual_seed(0)
    places = Places(3, 4, 4, CONFIG)
    n, t = 64, 20
    turns = torch.randint(3, (n, t), generator=torch.Generator().manual_seed(0))
    turns = turns[:, :1].repeat(1, t)  # an episode turns left, goes ahead, or turns right
    start = 6.3 * torch.rand(n, 1, generator=torch.Generator().manual_seed(1))
    heading = start + (0.3 * (turns - 1)).cumsum(1)
    moves = 0.5 * torch.stack([heading.cos(), heading.sin()], dim=-1)
    poses = torch.cat([moves.cumsum(1), heading[..., None]], dim=-1)
    optimizer = torch.optim.Adam(places.walk.parameters(), 1e-2)
    for step in range(300):
        generator = torch.Generator().manual_seed(step)
        ahead = torch.randint(1, 6, (n, t), generator=generator)
        told = torch.rand(n, t, generator=generator) < 0.7
        loss = places.walk_loss(torch.zeros(n, t, 4), poses, turns, ahead, told)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    read_out, pose = torch.zeros(3, 4), pose_features_of(torch.zeros(3, 3))
    goals = torch.tensor([[1.0, -0.8], [1.5, 0.0], [1.0, 0.8]])
    features = torch.cat([read_out, place_features(goals, torch.ones(3)), pose], dim=-1)
    assert places.walk(features).argmax(-1).tolist() == [0, 1, 2]
    untold = torch.cat([read_out, place_features(goals, torch.zeros(3)), pose], dim=-1)
    assert places.walk(untold).softmax(-1).max() < 0.6


def test_reading_episodes_is_observing_them(tmp_path: Path) -> None:
    model = remembering()
    actions, frames = episode(model, 3, 7)
    latents = model.encode(frames)
    lengths = np.array([7, 5, 7])
    rows = [latents[i, :n] for i, n in enumerate(lengths)]
    num_frames = int(lengths.sum())
    episodes = LatentEpisodes(
        torch.cat(rows).half(),
        torch.cat([actions[i, :n] for i, n in enumerate(lengths)]),
        torch.zeros(num_frames),
        torch.zeros(num_frames, dtype=torch.bool),
        lengths,
    )
    done = []
    read = read_episodes(
        model, episodes, batch_size=2, chunk=3, progress=lambda *values: done.append(values)
    )
    assert done == [(12, 19), (19, 19)]
    cache = tmp_path / "read.safetensors"
    once = read_once(model, episodes, cache)
    cache_time = cache.stat().st_mtime_ns
    for a, b in zip(once, read_once(model, episodes, cache), strict=True):
        assert torch.equal(a, b)
    assert cache.stat().st_mtime_ns == cache_time
    with torch.no_grad():  # another model reads anew
        model.odometry.latent_in.weight.mul_(2)  # type: ignore[union-attr]
    assert not torch.equal(read_once(model, episodes, cache).poses, once.poses)
    cache.write_bytes(b"damaged")
    assert len(read_once(model, episodes, cache).poses) == 19
    with torch.no_grad():
        model.odometry.latent_in.weight.div_(2)  # type: ignore[union-attr]
    for i, n in enumerate(lengths):
        state, features = model.observe_latents(
            model.initial_state(1), actions[i : i + 1, :n], latents[i : i + 1, :n].half().float()
        )
        offset = int(episodes.offsets[i])
        mine = read.read_outs[offset : offset + n].float()
        torch.testing.assert_close(mine, features[0, :, :-MORE], atol=5e-3, rtol=5e-3)
        torch.testing.assert_close(
            read.poses[offset + n - 1], state.memory["odometry.pose"][0], atol=1e-3, rtol=1e-3
        )


def test_places_without_rewards_or_poses_are_refused() -> None:
    episodes, _ = treasure_episodes(4, 8, seed=0)
    assert episodes.poses is not None
    config, accelerator = PlacesTraining(batch_size=2), Accelerator(cpu=True)
    read = ReadEpisodes(torch.zeros(32, 4).half(), episodes.poses, episodes.poses)
    episodes.rewards.zero_()
    with pytest.raises(ValueError, match="rewards above 0"):
        places_loss(episodes, read, config, accelerator)
    episodes.poses = None
    with pytest.raises(ValueError, match="poses"):
        places_loss(episodes, read, config, accelerator)


def test_told_places_are_compared_with_where_rewards_came(tmp_path: Path) -> None:
    dataset = EpisodeDataset(write_dataset(tmp_path, size=64, poses=True))
    model = remembering()
    values = places_on_real_frames(model, dataset, num_episodes=3, chunk=100)
    before_last = [np.flatnonzero(dataset.rewards(i) > 0).max() for i in range(3)]
    assert values["frames"] == sum(before_last)
    # Nothing is forgotten where the stretches are longer than the episodes.
    assert values["share_within_one"] == values["forgetful_share_within_one"]
    assert 0 <= values["share_certain"] <= 1


def test_what_is_read_tells_poses_and_where_they_stand() -> None:
    grid = OdometryConfig(hidden=16, grid=1.0)
    model = tiny_model(pose=PoseConfig(), odometry=grid, places=CONFIG)
    actions, frames = episode(model, 2, 6)
    latents, none = model.encode(frames).half(), torch.zeros(12)
    episodes = LatentEpisodes(
        latents.flatten(0, 1), actions.flatten(), none, none.bool(), np.full(2, 6)
    )
    read = read_episodes(model, episodes)
    state, _ = model.observe_latents(model.initial_state(2), actions, latents.float())
    pose, origin = state.memory[POSE], state.memory[ORIGIN][:, :3]
    stands = compose(origin, pose)[:, :2]
    torch.testing.assert_close(read.poses[5::6], pose, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(read.stands[5::6, :2], stands, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(stands, pose[:, :2], atol=1e-2)
