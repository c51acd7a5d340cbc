"""The scripted explorer finds its way; the random policy is random."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from agents.explorers import (
    ExplorerConfig,
    RandomPolicy,
    ScriptedExplorer,
    distances_to,
    find_waypoint,
    is_clear,
    steer,
)

LAYOUT = np.array(
    [
        [1, 1, 1, 0, 1, 1, 1],
        [1, 0, 1, 0, 1, 0, 1],
        [1, 0, 1, 1, 1, 0, 1],
        [1, 0, 0, 0, 1, 0, 1],
        [1, 1, 1, 0, 1, 1, 1],
        [1, 0, 1, 0, 0, 0, 1],
        [1, 1, 1, 1, 1, 1, 1],
    ],
    dtype=np.uint8,
)


class PointMaze:
    """The Memory Maze without pictures: turns of 18 degrees, steps of 0.22 cells, walls."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.position = np.array([0.5, 0.5])
        self.angle = float(self.rng.uniform(0, 2 * np.pi))
        self.targets = np.array([[6.5, 0.5], [0.5, 6.5], [4.5, 3.5]], dtype=np.float32)
        self.target = 0

    def info(self) -> dict[str, Any]:
        return {
            "agent_pos": self.position.astype(np.float32),
            "agent_dir": np.array([np.cos(self.angle), np.sin(self.angle)], np.float32),
            "targets_pos": self.targets,
            "target_index": self.target,
            "maze_layout": LAYOUT,
        }

    def step(self, action: int) -> float:
        self.angle += np.radians(18) * ((action in (2, 4)) - (action in (3, 5)))
        if action in (1, 4, 5):
            step = 0.22 * np.array([np.cos(self.angle), np.sin(self.angle)])
            for axis in (0, 1):  # slide along walls
                moved = self.position.copy()
                moved[axis] += step[axis]
                if is_clear(moved, moved, LAYOUT, clearance=0.1):
                    self.position = moved
        if np.linalg.norm(self.position - self.targets[self.target]) > 0.4:
            return 0.0
        self.target = (self.target + int(self.rng.integers(1, 3))) % 3
        return 1.0


def play(policy: Any, num_steps: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the actions, the positions and the return of a walk."""
    env, state = PointMaze(seed), None
    actions, positions, total = [], [], 0.0
    for step in range(num_steps):
        action, state = policy.act(None, state, np.array([step == 0]), [env.info()])
        total += env.step(int(action[0]))
        actions.append(int(action[0]))
        positions.append(env.position.copy())
    return np.array(actions), np.stack(positions), total


def test_distances_are_shortest_paths() -> None:
    distances = distances_to((0, 0), LAYOUT)
    assert distances[0, 0] == 0
    assert distances[0, 2] == 2
    assert distances[2, 4] == 6
    assert distances[0, 6] == 10
    assert (distances[LAYOUT == 0] == -1).all()
    island = np.array([[1, 0, 1]])
    assert distances_to((0, 0), island).tolist() == [[0, -1, -1]]


def test_waypoint_is_the_last_cell_in_clear_view() -> None:
    distances = distances_to((6, 0), LAYOUT)
    waypoint = find_waypoint(np.array([0.5, 0.5]), (0, 0), distances, LAYOUT)
    np.testing.assert_array_equal(waypoint, [2.5, 0.5])
    waypoint = find_waypoint(np.array([2.5, 0.5]), (2, 0), distances, LAYOUT)
    np.testing.assert_array_equal(waypoint, [2.5, 2.5])
    at_goal = find_waypoint(np.array([6.4, 0.6]), (6, 0), distances, LAYOUT)
    np.testing.assert_array_equal(at_goal, [6.5, 0.5])


def test_clear_view_ends_at_walls_and_borders() -> None:
    assert is_clear(np.array([0.5, 0.5]), np.array([0.5, 6.5]), LAYOUT)
    assert not is_clear(np.array([0.5, 0.5]), np.array([2.5, 2.5]), LAYOUT)
    assert not is_clear(np.array([0.5, 0.5]), np.array([-0.5, 0.5]), LAYOUT)


@pytest.mark.parametrize("angle", np.linspace(-np.pi, np.pi, 13))
def test_steering_turns_towards_the_waypoint(angle: float) -> None:
    heading = np.array([np.cos(angle), np.sin(angle)])
    for aim in np.linspace(-np.pi, np.pi, 12, endpoint=False) + 0.1:
        waypoint = np.array([3 + np.cos(aim), 4 + np.sin(aim)])
        action = steer(np.array([3.0, 4.0]), heading, waypoint)
        difference = (aim - angle + np.pi) % (2 * np.pi) - np.pi
        if abs(difference) < np.radians(10):
            assert action == 1
        elif abs(difference) > np.radians(12) and abs(difference) < np.radians(178):
            assert action in ((2, 4) if difference > 0 else (3, 5))


def test_without_noise_it_is_nearly_an_oracle() -> None:
    oracle = ScriptedExplorer(ExplorerConfig(target_probability=1, epsilon=0))
    returns = [play(oracle, 1000, seed)[2] for seed in range(3)]
    # Targets are 8 to 16 cells apart, that is 36 to 73 steps of 0.22 cells, and turns.
    assert min(returns) >= 13


def test_by_default_it_goes_everywhere_and_does_everything() -> None:
    actions, positions, total = play(ScriptedExplorer(), 4000)
    assert len({tuple(cell) for cell in np.floor(positions).astype(int)}) == LAYOUT.sum()
    counts = np.bincount(actions, minlength=6) / len(actions)
    assert counts.min() > 0.01  # every action occurs
    assert counts[1] > 0.2  # but mostly it walks
    assert 0 < total < 60


def test_tour_sees_every_cell_sooner() -> None:
    def steps_to_see_all(goals: Any) -> int:
        config = ExplorerConfig(goals=goals, target_probability=0, epsilon=0)
        _, positions, _ = play(ScriptedExplorer(config), 3000)
        seen: set[tuple[int, ...]] = set()
        for step, cell in enumerate(np.floor(positions).astype(int)):
            seen.add(tuple(cell))
            if len(seen) == LAYOUT.sum():
                return step
        return 3000

    assert steps_to_see_all("tour") < min(600, steps_to_see_all("random"))


def test_epsilon_is_the_fraction_of_random_steps() -> None:
    config = ExplorerConfig(epsilon=1)
    actions, _, _ = play(ScriptedExplorer(config), 6000)
    np.testing.assert_allclose(np.bincount(actions, minlength=6) / 6000, 1 / 6, atol=0.05)
    # Consecutive actions are equal within a burst, and by chance one time in six across bursts.
    same = (actions[1:] == actions[:-1]).mean()
    assert abs(same - (0.8 + 0.2 / 6)) < 0.03


def test_same_seed_same_walk_and_batches_are_independent() -> None:
    first, _, _ = play(ScriptedExplorer(seed=5), 300)
    again, _, _ = play(ScriptedExplorer(seed=5), 300)
    other, _, _ = play(ScriptedExplorer(seed=6), 300)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()

    batch = [PointMaze(0), PointMaze(1)]
    policy, state, actions = ScriptedExplorer(seed=5), None, []
    for step in range(300):
        chosen, state = policy.act(None, state, np.full(2, step == 0), [e.info() for e in batch])
        for env, action in zip(batch, chosen, strict=True):
            env.step(int(action))
        actions.append(chosen)
    np.testing.assert_array_equal(np.stack(actions)[:, 0], first)


def test_episode_start_forgets_the_old_maze() -> None:
    policy = ScriptedExplorer(ExplorerConfig(target_probability=0, epsilon=0))
    info = PointMaze(0).info()
    _, state = policy.act(None, None, np.array([True]), [info])
    small = {**info, "maze_layout": np.ones((2, 2), np.uint8), "agent_pos": np.array([1.5, 1.5])}
    _, state = policy.act(None, state, np.array([True]), [small])
    assert state[0].distances is not None
    assert state[0].distances.shape == (2, 2)


def test_missing_privileged_state_is_named() -> None:
    with pytest.raises(ValueError, match=r"agent_dir.*privileged=True"):
        ScriptedExplorer().act(None, None, np.array([True]), [{"agent_pos": np.zeros(2)}])
    with pytest.raises(ValueError, match=r"one info per environment \(2\), got None"):
        ScriptedExplorer().act(None, None, np.array([True, True]))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="epsilon must lie"):
        ExplorerConfig(epsilon=1.5)
    with pytest.raises(ValueError, match="goals must be"):
        ExplorerConfig(goals="anywhere")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        RandomPolicy(0)


def test_random_policy_is_uniform_and_seeded() -> None:
    def draw(policy: RandomPolicy, num_steps: int) -> np.ndarray:
        state, rows = None, []
        for step in range(num_steps):
            row, state = policy.act(None, state, np.full(3, step == 0))
            rows.append(row)
        return np.stack(rows)  # (t, n)

    actions = draw(RandomPolicy(5, seed=1), 3000)
    np.testing.assert_allclose(np.bincount(actions.ravel()) / actions.size, 0.2, atol=0.02)
    np.testing.assert_array_equal(actions, draw(RandomPolicy(5, seed=1), 3000))
    assert (actions[:, 0] != actions[:, 1]).any()
    # An env that was reset with the same seed draws other numbers.
    env = gymnasium.Env()
    env.reset(seed=1)
    assert (actions[:, 0] != env.np_random.integers(5, size=3000)).mean() > 0.7


@pytest.mark.slow
def test_returns_on_the_real_maze() -> None:
    import envs

    env = envs.make("memory-maze-9x9", privileged=True)
    returns = {}
    for name, config in {
        "oracle": ExplorerConfig(target_probability=1, epsilon=0),
        "explorer": ExplorerConfig(),
    }.items():
        total = 0.0
        for seed in range(4):
            policy, state = ScriptedExplorer(config, seed=seed), None
            _, info = env.reset(seed=seed)
            start, truncated = True, False
            while not truncated:
                actions, state = policy.act(None, state, np.array([start]), [info])
                _, reward, _, truncated, info = env.step(int(actions[0]))
                total, start = total + float(reward), False
        returns[name] = total / 4
    env.close()
    assert returns["oracle"] > 24
    assert 5 < returns["explorer"] < 14
