"""Policies that need no learning: random actions, and a scripted explorer of the Memory Maze.

They produce the data that a world model is first trained on, and the floor and ceiling that trained
policies are compared with. The explorer reads the maze's privileged state from `info` and never
looks at the image. Both speak the agents' interface, batched over environments:

    action, state = policy.act(observation, state, episode_start, infos)
"""

import dataclasses
import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

NOOP, FORWARD, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT = range(6)
MAZE_ACTIONS = ("no-op", "forward", "left", "right", "forward+left", "forward+right")
NUM_MAZE_ACTIONS = len(MAZE_ACTIONS)
PRIVILEGED_KEYS = ("agent_pos", "agent_dir", "targets_pos", "target_index", "maze_layout")

Cell = tuple[int, int]  # (x, y)


class RandomPolicy:
    """Uniformly random actions.

    Args:
        num_actions: Size of the discrete action space.
        seed: Environment i of a batch draws from the stream `(seed, i)`.

    Raises:
        ValueError: There are no actions.
    """

    def __init__(self, num_actions: int, seed: int = 0) -> None:
        if num_actions < 1:
            raise ValueError(f"num_actions must be at least 1, got {num_actions}")
        self.num_actions = num_actions
        self.seed = seed

    def act(
        self,
        observation: Any,
        state: list[np.random.Generator] | None,
        episode_start: np.ndarray,
        infos: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[np.ndarray, list[np.random.Generator]]:
        """Draw one action per environment.

        Args:
            observation: Ignored.
            state: What the last call returned, one random stream per environment, or None at the
                very start. It is updated in place.
            episode_start: (n,) bool; only its length counts.
            infos: Ignored.

        Returns:
            Actions (n,) int64, and the state for the next call.
        """
        if state is None:
            n = len(episode_start)
            # The 1 keeps them apart from what an env draws that was reset with the same seed.
            state = [np.random.default_rng([self.seed, i, 1]) for i in range(n)]
        actions = [rng.integers(self.num_actions) for rng in state]
        return np.array(actions, np.int64), state


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplorerConfig:
    """How the scripted explorer moves."""

    target_probability: float = 0.3
    """Probability that a new goal is the current target; otherwise `goals` chooses a cell."""
    goals: Literal["random", "tour"] = "random"
    """random: any free cell. tour: the nearest cell not yet visited, anew once all have been."""
    epsilon: float = 0.15
    """Fraction of the steps spent in bursts of one random action: bumps, spins, pauses."""
    burst_length: float = 5.0
    """Mean length of a burst in steps (geometric)."""
    patience: int = 200
    """Steps after which a goal that was not reached is given up."""

    def __post_init__(self) -> None:
        for name in ("target_probability", "epsilon"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.burst_length < 1 or self.patience < 1:
            raise ValueError(
                "burst_length and patience must be at least 1, "
                f"got {self.burst_length} and {self.patience}"
            )
        if self.goals not in ("random", "tour"):
            raise ValueError(f"goals must be 'random' or 'tour', got {self.goals!r}")


ORACLE = ExplorerConfig(target_probability=1, epsilon=0)
"""It always knows the way to the target, and goes there."""


@dataclasses.dataclass
class Plan:
    """What the explorer remembers about one environment."""

    rng: np.random.Generator
    goal: Cell | None = None
    chases_target: int | None = None  # index of the target that the goal stands for
    distances: np.ndarray | None = None  # (h, w) int64, steps to the goal, -1 where unreachable
    age: int = 0
    burst_action: int = NOOP
    burst_left: int = 0
    visited: set[Cell] = dataclasses.field(default_factory=set)
    trail: deque[np.ndarray] = dataclasses.field(default_factory=lambda: deque(maxlen=12))

    def restart(self) -> "Plan":
        """Return a blank plan that continues the same random stream."""
        return Plan(self.rng)


class ScriptedExplorer:
    """Walks shortest paths through the Memory Maze to random cells and to the target.

    With the config `ORACLE` it is one, nearly. It needs the discrete actions of the
    Memory Maze (no-op, forward, left, right, forward+left, forward+right) and in every info:
    `agent_pos` (2,) in cells, the centre of the bottom-left cell being (0.5, 0.5); `agent_dir`
    (2,); `targets_pos` (n, 2); `target_index`; `maze_layout` (h, w), 1 where free, indexed [y, x].

    Args:
        config: See `ExplorerConfig`.
        seed: Environment i of a batch draws from the stream `(seed, i)`.
    """

    def __init__(self, config: ExplorerConfig | None = None, seed: int = 0) -> None:
        self.config = config if config is not None else ExplorerConfig()
        self.seed = seed

    def act(
        self,
        observation: Any,
        state: list[Plan] | None,
        episode_start: np.ndarray,
        infos: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[np.ndarray, list[Plan]]:
        """Choose one action per environment.

        Args:
            observation: Ignored.
            state: What the last call returned, or None at the very start. It is updated in place.
            episode_start: (n,) bool, True where the info is the first of an episode.
            infos: One info per environment, with the privileged state.

        Returns:
            Actions (n,) int64, and the state for the next call.

        Raises:
            ValueError: If an info lacks the privileged state.
        """
        if infos is None or len(infos) != len(episode_start):
            raise ValueError(
                f"ScriptedExplorer needs one info per environment ({len(episode_start)}), "
                f"got {None if infos is None else len(infos)}"
            )
        if state is None:
            state = [Plan(np.random.default_rng([self.seed, i])) for i in range(len(infos))]
        actions = np.zeros(len(infos), np.int64)
        for i, info in enumerate(infos):
            missing = [key for key in PRIVILEGED_KEYS if key not in info]
            if missing:
                raise ValueError(
                    f"ScriptedExplorer needs {', '.join(missing)} in the info of environment {i}: "
                    "it walks Memory Mazes made with privileged=True only"
                )
            if episode_start[i]:
                state[i] = state[i].restart()
            actions[i] = self._act(state[i], info)
        return actions, state

    def _act(self, plan: Plan, info: Mapping[str, Any]) -> int:
        layout = np.asarray(info["maze_layout"])
        position = np.asarray(info["agent_pos"], dtype=np.float64)
        cell = cell_of(position, layout)
        plan.visited.add(cell)
        self._update_goal(plan, info, cell, layout)

        if plan.burst_left == 0 and plan.rng.random() < self._burst_start_probability:
            self._start_burst(plan)
        if plan.burst_left > 0:
            plan.burst_left -= 1
            return plan.burst_action

        plan.trail.append(position)
        if (
            len(plan.trail) == plan.trail.maxlen
            and np.ptp(np.stack(plan.trail), axis=0).max() < 0.1
        ):
            # Caught at a corner, or the goal cannot be touched: shake loose and think again.
            self._start_burst(plan)
            plan.goal = None
        assert plan.distances is not None
        waypoint = find_waypoint(position, cell, plan.distances, layout)
        if plan.chases_target is not None and plan.distances[cell[1], cell[0]] <= 1:
            target = np.asarray(info["targets_pos"], dtype=np.float64)[plan.chases_target]
            if is_clear(position, target, layout):
                waypoint = target
        return steer(position, np.asarray(info["agent_dir"], dtype=np.float64), waypoint)

    @property
    def _burst_start_probability(self) -> float:
        # Walks of mean length w alternate with bursts of mean length b: b / (w + b) = epsilon, but
        # for walks of no step at all, which make it a little more: 0.158 of 0.15, 0.55 of 0.5.
        epsilon, length = self.config.epsilon, self.config.burst_length
        return 1.0 if epsilon >= 1 else min(1.0, epsilon / (length * (1 - epsilon)))

    def _start_burst(self, plan: Plan) -> None:
        plan.burst_action = int(plan.rng.integers(NUM_MAZE_ACTIONS))
        plan.burst_left = int(plan.rng.geometric(1 / self.config.burst_length))
        plan.trail.clear()

    def _update_goal(
        self, plan: Plan, info: Mapping[str, Any], cell: Cell, layout: np.ndarray
    ) -> None:
        plan.age += 1
        target_index = int(info["target_index"])
        if plan.chases_target is not None:
            # The target is reached when it stops being the target.
            keep = plan.chases_target == target_index
        else:
            keep = plan.goal != cell
        if plan.goal is not None and keep and plan.age < self.config.patience:
            return
        plan.age = 0
        from_here = distances_to(cell, layout)
        plan.chases_target = None
        if plan.rng.random() < self.config.target_probability:
            plan.chases_target = target_index
            target = np.asarray(info["targets_pos"], dtype=np.float64)[target_index]
            plan.goal = cell_of(target, layout)
        else:
            plan.goal = self._choose_cell(plan, cell, from_here)
        if from_here[plan.goal[1], plan.goal[0]] < 0:
            plan.goal, plan.chases_target = self._choose_cell(plan, cell, from_here), None
        plan.distances = distances_to(plan.goal, layout)

    def _choose_cell(self, plan: Plan, cell: Cell, from_here: np.ndarray) -> Cell:
        reachable = [(int(x), int(y)) for y, x in np.argwhere(from_here > 0)]
        if not reachable:
            return cell
        if self.config.goals == "tour":
            fresh = [c for c in reachable if c not in plan.visited]
            if not fresh:
                plan.visited = {cell}
                fresh = reachable
            nearest = min(from_here[y, x] for x, y in fresh)
            reachable = [(x, y) for x, y in fresh if from_here[y, x] == nearest]
        return reachable[int(plan.rng.integers(len(reachable)))]


def cell_of(position: np.ndarray, layout: np.ndarray) -> Cell:
    """Return the free cell (x, y) that holds, or is nearest to, a position (2,) in cells."""
    height, width = layout.shape
    x = min(max(math.floor(position[0]), 0), width - 1)
    y = min(max(math.floor(position[1]), 0), height - 1)
    if layout[y, x]:
        return x, y
    free = np.argwhere(layout)[:, ::-1]  # (n, 2) as x, y
    nearest = np.argmin(((free + 0.5 - position) ** 2).sum(axis=1))
    return int(free[nearest, 0]), int(free[nearest, 1])


def distances_to(goal: Cell, layout: np.ndarray) -> np.ndarray:
    """Breadth-first distances to a cell.

    Args:
        goal: (x, y).
        layout: (h, w), nonzero where free.

    Returns:
        (h, w) int64: steps to the goal, -1 for walls and cells without a way to it.
    """
    height, width = layout.shape
    free = layout.tolist()
    distances = [[-1] * width for _ in range(height)]
    distances[goal[1]][goal[0]] = 0
    queue = deque([goal])
    while queue:
        x, y = queue.popleft()
        for nx, ny in ((x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)):
            if not (0 <= nx < width and 0 <= ny < height):
                continue
            if free[ny][nx] and distances[ny][nx] < 0:
                distances[ny][nx] = distances[y][x] + 1
                queue.append((nx, ny))
    return np.array(distances, dtype=np.int64)


def find_waypoint(
    position: np.ndarray, cell: Cell, distances: np.ndarray, layout: np.ndarray
) -> np.ndarray:
    """Return the farthest cell centre (2,) on the way to the goal that can be walked to directly.

    Args:
        position: (2,) in cells.
        cell: The cell that holds it.
        distances: (h, w) steps to the goal, from `distances_to`.
        layout: (h, w), nonzero where free.
    """
    height, width = layout.shape
    x, y = cell
    waypoint = np.array([x + 0.5, y + 0.5])
    first = True
    while distances[y, x] > 0:
        for nx, ny in ((x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)):
            inside = 0 <= nx < width and 0 <= ny < height
            if inside and distances[ny, nx] == distances[y, x] - 1:
                x, y = nx, ny
                break
        candidate = np.array([x + 0.5, y + 0.5])
        if not is_clear(position, candidate, layout):
            # Hugging a wall, not even the next cell may be in clear view: head for this cell's
            # centre first, unless already there.
            if first and np.abs(position - waypoint).max() < 0.15:
                return candidate
            return waypoint
        waypoint, first = candidate, False
    return waypoint


def is_clear(
    start: np.ndarray, end: np.ndarray, layout: np.ndarray, clearance: float = 0.2
) -> bool:
    """Tell whether a disc of radius `clearance` (cells) moves from start to end (2,) untouched."""
    height, width = layout.shape
    steps = max(2, math.ceil(float(np.abs(end - start).max()) / 0.1))
    # Leaving a wall is always possible, so the first tenth of a cell is not looked at.
    line = start + (end - start) * np.linspace(0, 1, steps + 1)[1:, None]  # (n, 2)
    offsets = clearance * np.array([(1, 1), (1, -1), (-1, 1), (-1, -1)])
    cells = np.floor(line[:, None] + offsets).astype(np.int64).reshape(-1, 2)
    x, y = cells[:, 0], cells[:, 1]
    if x.min() < 0 or y.min() < 0 or x.max() >= width or y.max() >= height:
        return False
    return bool(layout[y, x].all())


def steer(position: np.ndarray, heading: np.ndarray, waypoint: np.ndarray) -> int:
    """Return the maze action that turns the heading (2,) to the waypoint and goes there.

    One turning action turns by about 18 degrees, some of it a step late.
    """
    aim = waypoint - position
    angle = math.atan2(heading[0] * aim[1] - heading[1] * aim[0], float(heading @ aim))
    if abs(angle) < math.radians(11):
        return FORWARD
    if abs(angle) < math.radians(50):
        return FORWARD_LEFT if angle > 0 else FORWARD_RIGHT
    return LEFT if angle > 0 else RIGHT
