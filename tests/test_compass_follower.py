"""The scripted player of Navigate: its rules on made-up pictures, and the choice of a player."""

import numpy as np
import pytest

from agents.compass_follower import (
    DOWN,
    JUMP,
    LEFT,
    RIGHT,
    CompassFollower,
    CompassFollowerConfig,
)
from agents.explorers import ScriptedExplorer
from agents.scripted import has_scripted_player, scripted_player

STRAIGHT = CompassFollowerConfig(detour_probability=0.0, epsilon=0.0)


def pictures(seed: int, n: int = 1) -> np.ndarray:
    """Pictures that differ from call to call, as they do while walking; grey, so without cyan."""
    grey = np.random.default_rng(seed).integers(0, 255, (n, 64, 64, 1), dtype=np.uint8)
    return np.repeat(grey, 3, axis=-1)


@pytest.mark.parametrize(("angle", "action"), [(90, RIGHT), (-90, LEFT), (3, JUMP), (-180, LEFT)])
def test_turns_to_where_the_compass_points(angle: float, action: int) -> None:
    follower = CompassFollower(STRAIGHT)
    actions, _ = follower.act(pictures(0), None, np.array([True]), [{"compass_angle": angle}])
    assert actions.tolist() == [action]


def test_goes_for_the_block_once_it_is_in_view() -> None:
    frame = pictures(0)
    frame[0, 40:44, 55:60] = (98, 237, 228)  # a diamond block at the right edge
    follower = CompassFollower(STRAIGHT)
    actions, _ = follower.act(frame, None, np.array([True]), [{"compass_angle": -90.0}])
    assert actions.tolist() == [RIGHT]


def test_walks_round_what_it_is_stuck_at() -> None:
    follower, state = CompassFollower(STRAIGHT), None
    chosen = []
    for step in range(8):
        first = np.array([step == 0])
        actions, state = follower.act(pictures(0), state, first, [{"compass_angle": 0.0}])
        chosen.append(int(actions[0]))
    assert chosen[:2] == [JUMP, JUMP] and chosen[2] in (LEFT, RIGHT)


def test_looks_around_where_the_needle_spins() -> None:
    follower, state = CompassFollower(STRAIGHT), None
    chosen = []
    for step in range(30):
        angle = 0.0 if step < 3 else 170.0  # the compass target is behind now
        info = [{"compass_angle": angle}]
        actions, state = follower.act(pictures(step), state, np.array([step == 0]), info)
        chosen.append(int(actions[0]))
    assert chosen[:6] == [JUMP, JUMP, JUMP, DOWN, DOWN, RIGHT]
    assert chosen.count(RIGHT) >= 24


def test_every_env_has_its_own_stream_and_restarts_by_itself() -> None:
    config = CompassFollowerConfig(epsilon=1.0)
    infos = [{"compass_angle": 0.0}] * 3

    def play(seed: int) -> np.ndarray:
        follower, state, rows = CompassFollower(config, seed=seed), None, []
        for step in range(20):
            first = np.full(3, step in (0, 10))
            actions, state = follower.act(pictures(step, 3), state, first, infos)
            rows.append(actions)
        return np.stack(rows)

    np.testing.assert_array_equal(play(1), play(1))
    assert (play(1) != play(2)).any() and (play(1)[:, 0] != play(1)[:, 1]).any()


def test_without_a_compass_it_says_so() -> None:
    with pytest.raises(ValueError, match="compass_angle"):
        CompassFollower().act(pictures(0), None, np.array([True]), [{}])
    with pytest.raises(ValueError, match="epsilon"):
        CompassFollowerConfig(epsilon=2.0)


def test_every_env_gets_its_player() -> None:
    assert isinstance(scripted_player("memory-maze-9x9"), ScriptedExplorer)
    assert isinstance(scripted_player("minerl-navigate-dense-stand-in"), CompassFollower)
    assert not has_scripted_player("minerl-treechop")
    with pytest.raises(ValueError, match="minerl-treechop"):
        scripted_player("minerl-treechop")
