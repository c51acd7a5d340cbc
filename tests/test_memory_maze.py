"""The real Memory Maze: the package's own frames, rewards and positions, as a Gymnasium env."""

import contextlib
import importlib.util
import math
import os
import subprocess
import sys
import types
import warnings
from collections import deque

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import envs
from envs import memory_maze_rendering, memory_maze_simulation


@pytest.fixture(scope="module")
def maze():
    """A 9x9 maze that many tests share: a seeded reset must not care what came before."""
    env = envs.make("memory-maze-9x9", privileged=True, render_mode="rgb_array")
    yield env
    env.close()


@pytest.fixture(scope="module")
def package_tasks():
    """`memory_maze.tasks` of the package, without its `__init__`, which needs the old gym."""
    memory_maze_simulation._import_memory_maze()  # chooses the backend before the first import
    spec = importlib.util.find_spec("memory_maze")
    package = types.ModuleType("memory_maze")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["memory_maze"] = package
    from memory_maze import tasks

    yield tasks
    del sys.modules["memory_maze"]


def shortest_path(layout, start, goal):
    """Cells (x, y) from start to goal."""
    came_from, queue = {start: None}, deque([start])
    while queue:
        x, y = queue.popleft()
        for cell in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)):
            inside = 0 <= cell[0] < layout.shape[1] and 0 <= cell[1] < layout.shape[0]
            if inside and layout[cell[1], cell[0]] and cell not in came_from:
                came_from[cell] = (x, y)
                queue.append(cell)
    path = [goal]
    while came_from[path[-1]] is not None:
        path.append(came_from[path[-1]])
    return path[::-1]


def head_for_target(info):
    """The action that follows the shortest path to the current target."""
    position, target = info["agent_pos"], info["targets_pos"][info["target_index"]]
    start, goal = (tuple(int(v) for v in p) for p in (position, target))
    path = shortest_path(info["maze_layout"], start, goal)
    aim = (np.array(path[1]) + 0.5 if len(path) > 1 else target) - position
    angle = math.atan2(aim[1], aim[0]) - math.atan2(*info["agent_dir"][::-1])
    angle = (angle + math.pi) % (2 * math.pi) - math.pi
    if abs(angle) > 0.6:
        return 2 if angle > 0 else 3
    return 1 if abs(angle) < 0.15 else 4 if angle > 0 else 5


def run_python(code, **environment):
    """Run code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# The package's own environment is the reference.


@pytest.mark.parametrize(
    ("size", "seed", "num_steps", "min_return", "options", "package_options"),
    [
        (9, 10, 70, 2, {}, {}),
        (11, 13, 20, 1, {"randomize_colors": True}, {"randomize_colors": True}),
        (15, 2, 30, 1, {"good_visibility": True}, {"good_visibility": True}),
        (9, 2**32 - 1, 8, 0, {"resolution": 256}, {"camera_resolution": 256}),
    ],
)
def test_same_as_the_package(
    package_tasks, size, seed, num_steps, min_return, options, package_options
):
    build = getattr(package_tasks, f"memory_maze_{size}x{size}")
    package = build(seed=seed, global_observables=True, **package_options)
    env = envs.make(f"memory-maze-{size}x{size}", privileged=True, **options)
    env.reset(seed=seed + 1 if seed < 2**31 else 0)
    env.step(1)
    obs, info = env.reset(seed=seed)
    step = package.reset()
    rng = np.random.default_rng(0)
    episodic_return = 0.0
    for t in range(num_steps + 1):
        expected = step.observation
        np.testing.assert_array_equal(obs, expected["image"], err_msg=f"frame {t}")
        for key in ("agent_pos", "agent_dir", "targets_pos", "target_color", "maze_layout"):
            np.testing.assert_array_equal(
                info[key], expected[key].astype(info[key].dtype), err_msg=f"{key} at {t}"
            )
        if t == num_steps:
            break
        action = head_for_target(info) if rng.random() < 0.8 else int(rng.integers(6))
        before = info["agent_pos"]
        step = package.step(action)
        obs, reward, terminated, truncated, info = env.step(action)
        assert reward == step.reward
        assert not terminated and not truncated
        episodic_return += reward
        # Substeps are skipped on the ground that the ball is never as fast as the bound.
        meters = 2 * np.linalg.norm(info["agent_pos"] - before)
        assert meters < 0.25 * memory_maze_simulation._SPEED_BOUND / 2
    assert episodic_return >= min_return
    package.close()
    env.close()


def test_limits_are_the_package_s():
    steps = {n: envs.make(f"memory-maze-{n}x{n}").spec.max_episode_steps for n in (9, 11, 13, 15)}
    assert steps == {9: 1000, 11: 2000, 13: 3000, 15: 4000}


def test_walls_out_of_view_change_no_pixel(maze, monkeypatch):
    maze.reset(seed=1)
    for action in [1, 1, 2, 2, 2, 1, 4, 5, 3] * 4:
        obs = maze.step(action)[0]
        with monkeypatch.context() as patch:
            patch.setattr(memory_maze_rendering.Renderer, "_hide_out_of_view", show_everything)
            everything = maze.unwrapped._observe(maze.unwrapped._simulation)
        np.testing.assert_array_equal(obs, everything)


def show_everything(renderer, camera_id):
    renderer._model.geom_group[renderer._static] = renderer._static_group


# Seeds


def test_seed_gives_the_same_episode_whatever_came_before(maze):
    actions = [1, 4, 1, 2, 5, 1]
    fresh = envs.make("memory-maze-9x9", privileged=True)
    episodes = []
    for env in (fresh, maze):
        obs, info = env.reset(seed=5)
        episodes.append([obs, info["maze_layout"], *(env.step(a)[0] for a in actions)])
        env.reset(seed=6)
    obs, info = maze.reset(seed=5)
    episodes.append([obs, info["maze_layout"], *(maze.step(a)[0] for a in actions)])
    for other in episodes[1:]:
        for ours, theirs in zip(episodes[0], other, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_reset_without_a_seed_goes_on_with_the_generator():
    layouts = []
    for _ in range(2):
        env = envs.make("memory-maze-7x7", privileged=True, randomize_colors=True)
        resets = [env.reset(seed=9), env.reset(), env.reset()]
        layouts.append([(obs, info["targets_pos"]) for obs, info in resets])
        env.close()
    for (obs, targets), (other_obs, other_targets) in zip(*layouts, strict=True):
        np.testing.assert_array_equal(obs, other_obs)
        np.testing.assert_array_equal(targets, other_targets)
    assert not np.array_equal(layouts[0][0][0], layouts[0][1][0])
    assert not np.array_equal(layouts[0][1][0], layouts[0][2][0])


def test_seeds_beyond_32_bits_are_seeds_of_their_own(maze):
    frames = [maze.reset(seed=seed)[0] for seed in (7, 7 + 2**32, 7 + 2**32)]
    assert not np.array_equal(frames[0], frames[1])
    np.testing.assert_array_equal(frames[1], frames[2])


# Privileged information


def test_privileged_information(maze):
    obs, info = maze.reset(seed=4)
    shapes = {key: np.shape(value) for key, value in info.items()}
    assert shapes == {
        "agent_pos": (2,),
        "agent_dir": (2,),
        "targets_pos": (3, 2),
        "target_index": (),
        "target_color": (3,),
        "maze_layout": (9, 9),
    }
    assert isinstance(info["target_index"], int)
    assert info["maze_layout"].dtype == np.uint8
    for key in ("agent_pos", "agent_dir", "targets_pos", "target_color"):
        assert info[key].dtype == np.float32
    assert np.linalg.norm(info["agent_dir"]) == pytest.approx(1)
    for x, y in [info["agent_pos"], *info["targets_pos"]]:
        assert info["maze_layout"][int(y), int(x)] == 1
        assert (x % 1, y % 1) == pytest.approx((0.5, 0.5), abs=1e-3)
    border = (info["target_color"] * 255 * 0.7).astype(np.uint8)
    for edge in (obs[0], obs[-1], obs[:, 0], obs[:, -1], obs[1], obs[:, 1]):
        np.testing.assert_allclose(edge, np.broadcast_to(border, edge.shape), atol=1)
    env = envs.make("memory-maze-5x5")
    assert env.reset(seed=0)[1] == {}
    env.close()


def test_information_of_earlier_steps_stays_as_it_was(maze):
    _, info = maze.reset(seed=4)
    before = {key: np.copy(value) for key, value in info.items()}
    for _ in range(3):
        maze.step(4)
    for key, value in info.items():
        np.testing.assert_array_equal(value, before[key])


def test_actions_move_as_their_names_say(maze):
    def angle(info):
        return math.atan2(*info["agent_dir"][::-1])

    _, start = maze.reset(seed=8)
    for _ in range(2):
        stood = maze.step(0)[-1]
    np.testing.assert_allclose(stood["agent_pos"], start["agent_pos"], atol=1e-3)
    left = maze.step(2)[-1]
    assert 0 < (angle(left) - angle(stood)) % (2 * math.pi) < math.pi
    right = maze.step(3)[-1]
    right = maze.step(3)[-1]
    assert 0 < (angle(left) - angle(right)) % (2 * math.pi) < math.pi
    _, start = maze.reset(seed=3)
    forward = maze.step(1)[-1]
    moved = forward["agent_pos"] - start["agent_pos"]
    assert moved @ start["agent_dir"] == pytest.approx(np.linalg.norm(moved), rel=0.05)
    assert np.linalg.norm(moved) > 0.02


def test_reaching_the_target_rewards_once_and_changes_the_target(maze):
    _, info = maze.reset(seed=3)
    rewards = 0
    for _ in range(150):
        before = info
        _, reward, _, _, info = maze.step(head_for_target(info))
        assert reward in (0.0, 1.0)
        assert (reward == 1.0) == (info["target_index"] != before["target_index"])
        if reward:
            target = before["targets_pos"][before["target_index"]]
            assert np.linalg.norm(info["agent_pos"] - target) < 0.8
        rewards += reward
    assert rewards >= 2


# Gymnasium


@pytest.mark.filterwarnings("error")
def test_check_env_of_gymnasium_and_stable_baselines3():
    env = envs.make("memory-maze-5x5", render_mode="rgb_array", privileged=True)
    assert env.unwrapped.spec is not None
    gymnasium_check_env(env.unwrapped)
    sb3_check_env(env)
    env.close()


def test_episode_is_truncated_at_the_limit_and_never_terminated():
    env = envs.make("memory-maze-5x5", max_episode_steps=3)
    env.reset(seed=0)
    ends = [env.step(1)[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]
    env.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_make_vec_gives_the_single_environment(maze, mode):
    single = envs.make("memory-maze-5x5", privileged=True)
    expected = [single.reset(seed=21), *(single.step(a)[::4] for a in (1, 4))]
    vector = gymnasium.make_vec(
        "worldsim/MemoryMaze-5x5-v0",
        num_envs=2,
        vectorization_mode=mode,
        privileged=True,
        max_episode_steps=3,
    )
    obs, info = vector.reset(seed=20)
    steps = [(obs, info), *(vector.step(np.array([0, a]))[::4] for a in (1, 4))]
    for (obs, info), (expected_obs, expected_info) in zip(steps, expected, strict=True):
        np.testing.assert_array_equal(obs[1], expected_obs)
        np.testing.assert_array_equal(info["agent_pos"][1], expected_info["agent_pos"])
    assert vector.step(np.array([0, 0]))[3].all()
    vector.close()
    single.close()


def test_environments_in_one_process_draw_their_own_mazes(maze):
    frame = maze.reset(seed=1)[0]
    other = envs.make("memory-maze-5x5", render_mode="rgb_array")
    other_frame = other.reset(seed=2)[0]
    np.testing.assert_array_equal(maze.unwrapped._observe(maze.unwrapped._simulation), frame)
    np.testing.assert_array_equal(
        other.unwrapped._observe(other.unwrapped._simulation), other_frame
    )
    # Thrown away without close: its pictures must not take those of the others with them.
    del other
    np.testing.assert_array_equal(maze.unwrapped._observe(maze.unwrapped._simulation), frame)
    np.testing.assert_array_equal(maze.reset(seed=1)[0], frame)


def test_closed_environment_can_be_reset_again():
    env = envs.make("memory-maze-5x5")
    frame = env.reset(seed=1)[0]
    env.close()
    env.close()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.unwrapped.step(0)
    np.testing.assert_array_equal(env.reset(seed=1)[0], frame)
    env.close()


# Rendering


def test_render_is_the_view_without_the_border(maze):
    hd = envs.make("memory-maze-9x9", resolution=256)
    obs = hd.reset(seed=2)[0]
    maze.reset(seed=2)
    picture = maze.render()
    assert picture.shape == (256, 256, 3) and picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[4:-4, 4:-4], obs[4:-4, 4:-4])
    hd.close()


def test_top_view_shows_the_ball_where_it_is():
    env = envs.make(
        "memory-maze-9x9",
        privileged=True,
        render_mode="rgb_array",
        render_view="top",
        render_resolution=220,
    )
    obs, info = env.reset(seed=2)
    picture = env.render().astype(int)
    red, green, blue = np.moveaxis(picture, -1, 0)
    ears = [(red > 60) & (green + blue < 20), (blue > 60) & (red + green < 20)]
    # The camera shows 11 cells and a little more from edge to edge; rows count downwards.
    rows_and_columns = np.array([np.argwhere(ear).mean(axis=0) for ear in ears])
    right_ear, left_ear = (rows_and_columns[:, ::-1] / 220 - 0.5) * [11.9, -11.9] + 4.5
    np.testing.assert_allclose((right_ear + left_ear) / 2, info["agent_pos"], atol=0.4)
    right = (right_ear - left_ear) / np.linalg.norm(right_ear - left_ear)
    np.testing.assert_allclose([-right[1], right[0]], info["agent_dir"], atol=0.2)
    # The balls on the sides are only in this picture: the observation is the same with and without.
    np.testing.assert_array_equal(env.unwrapped._observe(env.unwrapped._simulation), obs)
    env.close()


def test_no_render_mode_renders_nothing():
    env = envs.make("memory-maze-5x5")
    env.reset(seed=0)
    with warnings.catch_warnings(), contextlib.suppress(gymnasium.error.Error):
        warnings.simplefilter("ignore")
        assert env.render() is None
    env.close()


# Names, sizes and bad input


def test_every_name_makes_an_environment_with_its_spec():
    for name in envs.ENV_NAMES:
        if name.startswith("memory-maze"):
            env = envs.make(name)
            assert name.split("-")[-1] in env.spec.id
            assert env.observation_space == gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
            assert env.action_space == gymnasium.spaces.Discrete(6)
            assert gymnasium.make(env.spec.id).spec.id == env.spec.id


@pytest.mark.parametrize(("size", "targets"), [(5, 2), (7, 2), (17, 6)])
def test_sizes_that_the_package_does_not_have(size, targets):
    env = envs.make(f"memory-maze-{size}x{size}", privileged=True)
    for seed in range(2):
        _, info = env.reset(seed=seed)
        assert info["targets_pos"].shape == (targets, 2)
        assert info["maze_layout"].shape == (size, size)
        x, y = (int(v) for v in info["agent_pos"])
        for target in info["targets_pos"].astype(int):
            assert shortest_path(info["maze_layout"], (x, y), tuple(target.tolist()))
    assert env.spec.max_episode_steps == {5: 250, 7: 500, 17: 5000}[size]
    env.close()


@pytest.mark.parametrize(
    "name", ["memory-maze-8x8", "memory-maze-3x3", "memory-maze-9x11", "Memory-Maze-9x9", "maze"]
)
def test_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=rf"unknown environment '{name}'.*memory-maze-9x9"):
        envs.make(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 32}, "at least 64: got 32"),
        ({"render_view": "side"}, "'egocentric' or 'top': got 'side'"),
        ({"size": 8}, "odd number of cells.*got 8"),
        ({"size": 3}, "odd number of cells.*got 3"),
    ],
)
def test_bad_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        envs.make("memory-maze-9x9", **options)


@pytest.mark.parametrize("action", [6, -1, 1.0, "left", None, np.array([1, 2])])
def test_bad_action_is_named(maze, action):
    maze.reset(seed=1)
    with pytest.raises(ValueError, match="from 0 to 5: got ") as error:
        maze.step(action)
    assert repr(action) in str(error.value)


def test_step_and_render_before_reset():
    env = envs.make("memory-maze-9x9", render_mode="rgb_array")
    for one in (env, env.unwrapped):
        with pytest.raises(gymnasium.error.ResetNeeded):
            one.step(0)
        with pytest.raises(gymnasium.error.ResetNeeded):
            one.render()


def test_silent_lazy_and_without_the_old_gym():
    code = """
import sys
sys.modules["gym"] = None
import envs
assert not {"mujoco", "dm_control", "labmaze", "memory_maze"} & set(sys.modules)
env = envs.make("memory-maze-5x5")
assert not {"mujoco", "dm_control"} & set(sys.modules)
env.reset(seed=0)
env.reset()
assert "memory_maze" not in sys.modules
"""
    # Warnings of the libraries we stand on are not ours to turn into errors.
    result = run_python("import warnings; warnings.simplefilter('default')\n" + code)
    assert (result.returncode, result.stdout) == (0, "")
    assert "gym" not in result.stderr and "WARNING" not in result.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="drivers of Linux")
@pytest.mark.parametrize(
    "environment",
    [
        {"MUJOCO_GL": "egl", "__EGL_VENDOR_LIBRARY_DIRS": "/nonexistent"},
        {"MUJOCO_GL": "glfw", "DISPLAY": "", "WAYLAND_DISPLAY": ""},
        {"MUJOCO_GL": "nonsense"},
    ],
    ids=["no driver", "no display", "no such backend"],
)
def test_missing_gl_says_what_to_install(environment):
    code = "import envs; envs.make('memory-maze-5x5').reset(seed=0)"
    result = run_python("import warnings; warnings.simplefilter('ignore')\n" + code, **environment)
    assert result.returncode == 1
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("RuntimeError: no working OpenGL driver")
    assert "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri" in message
    assert f"MUJOCO_GL={environment['MUJOCO_GL']!r}" in message
