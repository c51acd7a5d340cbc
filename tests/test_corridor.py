"""The corridor: every frame of a seen pose is exactly the one seen, and nothing else tells it."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.corridor import (
    COLORS,
    FORWARD,
    NEVER,
    NUM_ACTIONS,
    NUM_MARKS,
    STAY,
    TURN,
    Corridor,
    Panel,
    draw_frames,
    draw_panels,
    move,
    read_panels,
    recall_distance,
)


def walk(env: gymnasium.Env, seed: int, steps: int) -> tuple[list[np.ndarray], list[dict], list]:
    actions = np.random.default_rng(seed).choice(NUM_ACTIONS, steps, p=[0.6, 0.2, 0.15, 0.05])
    frame, info = env.reset(seed=seed)
    frames, infos, rewards = [frame], [info], [0.0]
    for action in actions:
        frame, reward, terminated, truncated, info = env.step(action)
        assert not terminated and not truncated
        frames.append(frame)
        infos.append(info)
        rewards.append(reward)
    return frames, infos, rewards


def test_gymnasium_finds_nothing_to_complain_about() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(Corridor(render_mode="rgb_array"), skip_render_check=True)
    env = envs.make("corridor", size=16, render_mode="rgb_array")
    assert env.spec is not None and env.spec.max_episode_steps
    frame, _ = env.reset(seed=0)
    assert frame.shape == (16, 16, 3)
    assert np.array_equal(env.render(), frame)


@pytest.mark.parametrize("size", [16, 32, 64])
def test_recall_predicts_every_seen_frame_exactly(size: int) -> None:
    frames, infos, rewards = walk(Corridor(size=size), seed=3, steps=300)
    memory: dict[tuple[int, int], tuple[int, np.ndarray]] = {}
    for t, (frame, info, reward) in enumerate(zip(frames, infos, rewards, strict=True)):
        pose = info["cell"], info["side"]
        if pose in memory:
            last, seen = memory[pose]
            assert np.array_equal(frame, seen)
            assert info["last_seen"] == t - last
        else:
            assert info["last_seen"] == NEVER
        assert reward == float(pose not in memory and t > 0)
        memory[pose] = t, frame
    assert len(memory) == 32  # every panel was seen


def test_a_lap_ends_where_it_began() -> None:
    env = Corridor(num_cells=7)
    first, _ = env.reset(seed=1)
    for _ in range(7):
        frame, *_, info = env.step(FORWARD)
    assert np.array_equal(frame, first) and info["last_seen"] == 7
    turned, *_, info = env.step(TURN)
    assert not np.array_equal(turned, first) and info["last_seen"] == NEVER
    again, *_, info = env.step(TURN)
    assert np.array_equal(again, first) and info["last_seen"] == 2
    *_, info = env.step(STAY)
    assert info["last_seen"] == 1


def test_a_seed_gives_the_same_episode() -> None:
    a, b, other = (walk(Corridor(), seed, 40)[0] for seed in (5, 5, 6))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not all(np.array_equal(x, y) for x, y in zip(a, other, strict=True))


def test_panels_are_independent_of_everything() -> None:
    """Over episodes each panel is uniform, and tells nothing about its neighbour."""
    rng = np.random.default_rng(0)
    panels = [draw_panels(16, rng) for _ in range(4000)]
    color = np.stack([p.color for p in panels])
    mark = np.stack([p.mark for p in panels])
    assert np.abs(np.bincount(color[:, 3, 1], minlength=8) / 4000 - 1 / 8).max() < 0.03
    assert np.abs(np.bincount(mark[:, 3, 1], minlength=4) / 4000 - 1 / 4).max() < 0.03
    same = (color[:, :-1] == color[:, 1:]).mean()
    across = (color[:, :, 0] == color[:, :, 1]).mean()
    assert abs(same - 1 / 8) < 0.01 and abs(across - 1 / 8) < 0.01


def all_frames(size: int, num_cells: int = 16) -> tuple[np.ndarray, Panel]:
    axes = np.indices((len(COLORS), NUM_MARKS, num_cells, 2)).reshape(4, -1)
    panel = Panel(axes[0], axes[1])
    return draw_frames(panel, axes[2], axes[3], num_cells, size), panel


@pytest.mark.parametrize("size", [16, 32])
def test_panels_are_read_off_frames_and_poor_frames(size: int) -> None:
    frames, panel = all_frames(size)
    assert len(np.unique(frames.reshape(len(frames), -1), axis=0)) == len(frames)
    for noise in (0, 40):
        rng = np.random.default_rng(0)
        noisy = (frames + rng.normal(0, noise, frames.shape)).clip(0, 255).astype(np.uint8)
        read = read_panels(noisy.reshape(8, -1, size, size, 3))
        assert read.color.shape == (8, len(frames) // 8)
        assert np.array_equal(read.color.ravel(), panel.color)
        assert np.array_equal(read.mark.ravel(), panel.mark)


def test_reading_is_the_nearest_template() -> None:
    frames, panel = all_frames(16, num_cells=2)
    walls = frames[:, :12].astype(float)
    queries = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3)).astype(np.uint8)
    errors = np.square(queries[:, None, :12].astype(float) - walls[None]).sum((2, 3, 4))
    nearest = errors.argmin(1)
    read = read_panels(queries)
    assert np.array_equal(read.color, panel.color[nearest])
    assert np.array_equal(read.mark, panel.mark[nearest])


def test_distances_of_a_walk_are_those_of_the_env() -> None:
    _, infos, _ = walk(Corridor(num_cells=5), seed=2, steps=60)
    cell, side = (np.array([i[key] for i in infos]) for key in ("cell", "side"))
    expected = [i["last_seen"] for i in infos]
    assert recall_distance(cell, side, 5).tolist() == expected


def test_moves_are_batched() -> None:
    cell, side = move(np.array([4, 0, 2, 2]), np.array([0, 1, 0, 1]), np.arange(4), 5)
    assert cell.tolist() == [0, 4, 2, 2] and side.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_cells": 1}, "from 2 to 256 cells: got 1"),
        ({"size": 18}, "got 18"),
        ({"num_cells": 257}, "got 257"),
        ({"render_mode": "human"}, "'human'"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Corridor(**options)


def test_bad_use_is_named() -> None:
    env = Corridor()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="0 to 3: got 4"):
        env.step(4)
