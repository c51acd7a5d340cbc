"""A scripted player of MineRL's Navigate tasks: goes where the compass points, with detours.

It is the source of first data for a world model and the yardstick for trained policies, as
`ScriptedExplorer` is in the Memory Maze. It reads `compass_angle` from `info`, looks at the picture
only for two simple things (has it changed, and is there the cyan of a diamond block), and uses the
indices of the action table "dreamerv3".
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NOOP, ATTACK, UP, DOWN, LEFT, RIGHT, FORWARD, BACK, STRAFE_LEFT, STRAFE_RIGHT, JUMP, PLACE = range(
    12
)
NUM_ACTIONS = 12
TURN = 15.0  # degrees per LEFT or RIGHT
LOOK_DOWN = 30.0
FIELD_OF_VIEW = 70.0
SAME_PICTURE = 2.0  # mean absolute difference in grey levels of pictures that show no movement
LEAST_CYAN = 3  # pixels that make a diamond block


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompassFollowerConfig:
    """How the scripted player moves."""

    detour_probability: float = 0.02
    """Probability per step of leaving the straight way for a while, for variety."""
    detour_length: float = 12.0
    """Mean length of a detour in steps (geometric)."""
    epsilon: float = 0.05
    """Fraction of the steps that are random actions."""

    def __post_init__(self) -> None:
        for name in ("detour_probability", "epsilon"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.detour_length < 1:
            raise ValueError(f"detour_length must be at least 1, got {self.detour_length}")


@dataclasses.dataclass
class Way:
    """What the player remembers about one environment."""

    rng: np.random.Generator
    yaw: float = 0.0  # degrees turned since the start
    pitch: float = 0.0  # degrees down
    detour_yaw: float = 0.0  # where the detour goes
    detour_left: int = 0  # steps
    scan_left: int = 0  # turns of a look around
    walked: int = 0  # steps ahead in a row
    last_angle: float = 0.0
    last_picture: np.ndarray | None = None


class CompassFollower:
    """Walks to the target of a Navigate task.

    Args:
        config: See `CompassFollowerConfig`.
        seed: Environment i of a batch draws from the stream `(seed, i)`.
    """

    def __init__(self, config: CompassFollowerConfig | None = None, seed: int = 0) -> None:
        self.config = config if config is not None else CompassFollowerConfig()
        self.seed = seed

    def act(
        self,
        observation: Any,
        state: list[Way] | None,
        episode_start: np.ndarray,
        infos: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[np.ndarray, list[Way]]:
        """Choose one action per environment.

        Args:
            observation: (n, h, w, 3) uint8, or a dict with such a `pov`.
            state: What the last call returned, or None at the very start. It is updated in place.
            episode_start: (n,) bool, True where the observation is the first of an episode.
            infos: One per environment, with `compass_angle` in degrees, right positive.

        Returns:
            Actions (n,) int64, and the state for the next call.

        Raises:
            ValueError: There are no infos, or one has no compass.
        """
        pictures = observation["pov"] if isinstance(observation, Mapping) else observation
        if infos is None or any("compass_angle" not in info for info in infos):
            raise ValueError(
                "the compass follower needs info['compass_angle']: it plays MineRL's Navigate tasks"
            )
        if state is None:
            state = [Way(np.random.default_rng([self.seed, i])) for i in range(len(episode_start))]
        for i in np.flatnonzero(episode_start):
            state[i] = Way(state[i].rng)
        actions = [
            self._choose(way, np.asarray(picture), float(info["compass_angle"]))
            for way, picture, info in zip(state, pictures, infos, strict=True)
        ]
        return np.array(actions, np.int64), state

    def _choose(self, way: Way, picture: np.ndarray, angle: float) -> int:
        config = self.config
        grey = picture.mean(-1)
        stuck = (
            way.walked >= 2
            and way.last_picture is not None
            and float(np.abs(grey - way.last_picture).mean()) < SAME_PICTURE
        )
        passed = way.walked >= 1 and abs(_wrap(angle - way.last_angle)) > 35
        way.last_picture, way.last_angle = grey, angle
        cyan = _direction_of_cyan(picture)
        way.detour_left = max(0, way.detour_left - 1)
        if stuck:
            self._detour(way, float(way.rng.choice([-1, 1])) * float(way.rng.uniform(60, 120)))
        elif passed:
            # The block is somewhere near: look all around, and if it is not seen, try elsewhere.
            way.scan_left = int(360 / TURN)
            self._detour(way, float(way.rng.uniform(-150, 150)))
        elif way.rng.random() < config.detour_probability:
            self._detour(way, float(way.rng.uniform(-150, 150)))
        action = self._steer(way, angle, None if stuck else cyan)
        if way.rng.random() < config.epsilon:
            action = int(way.rng.integers(NUM_ACTIONS))
        way.walked = way.walked + 1 if action == JUMP else 0
        way.pitch = min(60.0, max(-60.0, way.pitch + TURN * ((action == DOWN) - (action == UP))))
        way.yaw = _wrap(way.yaw + TURN * ((action == RIGHT) - (action == LEFT)))
        return action

    def _detour(self, way: Way, turn: float) -> None:
        way.detour_yaw = _wrap(way.yaw + turn)
        way.detour_left = int(way.rng.geometric(1 / self.config.detour_length)) + 3

    def _steer(self, way: Way, angle: float, cyan: float | None) -> int:
        if cyan is not None:
            heading, way.scan_left = cyan, 0
        elif way.scan_left > 0:
            if way.pitch < LOOK_DOWN:  # a block in a hollow is seen from above only
                return DOWN
            way.scan_left -= 1
            way.detour_left += 1  # begins when the look around is over
            return RIGHT
        elif way.detour_left > 0:
            heading = _wrap(way.detour_yaw - way.yaw)
        else:
            heading = angle
        if abs(heading) > 0.6 * TURN:
            return RIGHT if heading > 0 else LEFT
        return JUMP


def _wrap(angle: float) -> float:
    return (angle + 180.0) % 360.0 - 180.0


def _direction_of_cyan(picture: np.ndarray) -> float | None:
    """Degrees to the right of the view at which a diamond block's colour is, or None."""
    red, green, blue = (picture[..., i].astype(int) for i in range(3))
    columns = np.nonzero((green - red > 60) & (green - blue > -20) & (blue - red > 60))[1]
    if len(columns) < LEAST_CYAN:
        return None
    width = picture.shape[1]
    across = (columns.mean() + 0.5) / width * 2 - 1
    return math.degrees(math.atan(across * math.tan(math.radians(FIELD_OF_VIEW / 2))))
