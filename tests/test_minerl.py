"""MineRL through the real `minerl` client, against the stand-in server.

Nothing here is a result on Minecraft. Skipped where the client is not installed
(`python -m envs.minerl_setup` installs it).
"""

# ruff: noqa: F811

import json
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from minerl_fixtures import FORWARD, QUICK, frames_of, make, server  # noqa: F401
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import envs
from agents.compass_follower import CompassFollower
from envs.minecraft_standin import StandInMinecraft

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.mark.parametrize("obs", ["pixels", "dict"])
def test_checkers_have_nothing_to_say(obs: str, server: StandInMinecraft) -> None:
    options = dict(minecraft=str(server.port), obs=obs, **QUICK)
    env = gymnasium.make("worldsim/MineRLNavigateDense-v0", **options).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(env)
        # Last, since it closes the env; a second Minecraft for its other render modes is not there.
        check_env(env, skip_render_check=True)
    env.close()


def test_env_sees_exactly_what_the_server_sent(server: StandInMinecraft, make: type) -> None:
    env = make(obs="dict", frame_skip=1)
    observations, rewards, ends = [env.reset(seed=5)[0]], [0.0], [False]
    rng = np.random.default_rng(0)
    for _ in range(60):
        observation, reward, terminated, truncated, info = env.step(rng.integers(12))
        observations.append(observation)
        rewards.append(reward)
        ends.append(terminated or truncated)
        assert "fault" not in info
    assert len(server.sent) == 61
    np.testing.assert_array_equal(frames_of(server), [o["pov"] for o in observations])
    assert [sent.reward for sent in server.sent] == rewards
    assert [sent.done for sent in server.sent] == ends
    infos = [json.loads(sent.info) for sent in server.sent]
    angles = np.array([info["compassAngle"] for info in infos], np.float32)
    np.testing.assert_array_equal(angles, [o["compass"][0] for o in observations])
    dirt = [sum(s["quantity"] for s in i["inventory"] if s["type"] == "dirt") for i in infos]
    np.testing.assert_array_equal(dirt, [o["inventory"][0] for o in observations])
    assert len({frame.tobytes() for frame in frames_of(server)}) > 20


def test_frame_skip_adds_rewards_and_turns_once(server: StandInMinecraft, make: type) -> None:
    env = make(frame_skip=4)
    env.reset(seed=1)
    _, reward, *_ = env.step(FORWARD)
    assert reward == sum(sent.reward for sent in server.sent[1:5])
    env.step(5)  # turn right by 15 degrees
    turns = [line for lines in server.commands[4:8] for line in lines.splitlines() if "cam" in line]
    assert turns == ["camera 0.0 15.0", "camera 0.0 0.0", "camera 0.0 0.0", "camera 0.0 0.0"]


def test_same_seed_same_episode_and_other_seed_another(make: type) -> None:
    env = make()

    def play(seed: int | None) -> list[np.ndarray]:
        frames = [env.reset(seed=seed)[0]]
        return frames + [env.step(action)[0] for action in (6, 6, 5, 10, 3, 6)]

    first, second, after, other = play(3), play(3), play(None), play(4)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, after) and not np.array_equal(first, other)


def test_navigate_is_solved_by_following_the_compass(server: StandInMinecraft, make: type) -> None:
    env = make(obs="dict", actions="native", frame_skip=1)
    observation, _ = env.reset(seed=2)
    total, terminated = 0.0, False
    action = {verb: 0 for verb in env.action_space.spaces}
    action.update(forward=1, jump=1, sprint=1)
    for _ in range(2000):
        target = server.mission.target
        x, _, z = server.mission.player.position
        bearing = np.degrees(np.arctan2(x - target[0] - 0.5, target[2] + 0.5 - z))
        turn = (bearing - server.mission.player.yaw + 180) % 360 - 180
        action["camera"] = np.array([0, turn], np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        total += reward
        if terminated or truncated:
            break
    assert terminated and not truncated
    start = 64  # metres from the start to the target, less what the compass is off
    assert total == pytest.approx(100 + start, abs=16)
    assert info["episode_statistics"]["return"] == pytest.approx(total)
    assert observation in env.observation_space


def test_treechop_pays_for_logs_and_ends_with_the_last(
    server: StandInMinecraft, make: type
) -> None:
    env = make("minerl-treechop", obs="dict", actions="native", frame_skip=1)
    env.reset(seed=0)
    server.mission.spec.quit_on_items = {"log": 2}
    mission = server.mission
    from envs import voxel_world

    x, y, z = (int(np.floor(v)) for v in mission.player.eye)
    mission.player.yaw = 0.0  # faces +z
    mission.world.blocks[y, z + 1 : z + 3, x] = voxel_world.LOG
    action = {verb: 0 for verb in env.action_space.spaces}
    action.update(attack=1, camera=np.zeros(2, np.float32))
    rewards = []
    while True:
        _, reward, terminated, truncated, _ = env.step(action)
        rewards.append(reward)
        if terminated or truncated:
            break
    assert rewards == [*[0.0] * 9, 1.0] * 2  # an iron axe takes ten ticks for a log
    assert terminated and not truncated


def test_time_limit_truncates(make: type) -> None:
    env = make(max_ticks=10)
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]
    assert envs.step_limit(env) == 3
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)


def test_clock_of_the_game_truncates_too(server: StandInMinecraft, make: type) -> None:
    env = make(frame_skip=1, max_ticks=9000)
    env.reset(seed=0)
    server.mission.ticks = 5998  # the task's limit is 6000
    env._ticks = 5998
    assert [env.step(0)[2:4] for _ in range(2)] == [(False, False), (False, True)]


def test_bad_options_and_actions(make: type) -> None:
    with pytest.raises(ValueError, match="minerl-treechop"):
        make("minerl-lumberjack")
    with pytest.raises(ValueError, match="dreamerv3"):
        make(actions="everything")
    with pytest.raises(ValueError, match="HOST:PORT"):
        make(minecraft="minecraft")
    env = make()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.reset()
    with pytest.raises(ValueError, match="12"):
        env.step(12)


def test_default_minecraft_comes_from_the_environment(
    server: StandInMinecraft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLDSIM_MINECRAFT", str(server.port))
    env = envs.make("minerl-navigate")
    env.reset()
    env.close()
    assert server.sent
    monkeypatch.setenv("WORLDSIM_MINECRAFT", "stand-in")
    with pytest.raises(ValueError, match=r"unset it, and take minerl-navigate-stand-in"):
        envs.make("minerl-navigate")


def test_stand_in_has_names_of_its_own() -> None:
    names = [name for name in envs.ENV_NAMES if name.endswith("-stand-in")]
    assert len(names) == 5
    env = envs.make("minerl-treechop-stand-in")
    assert env.unwrapped.minecraft == "stand-in"  # type: ignore[attr-defined]
    assert env.unwrapped.name == "minerl-treechop"  # type: ignore[attr-defined]
    assert "StandIn" in env.spec.id  # type: ignore[union-attr]
    env.reset(seed=0)
    env.close()


def test_compass_follower_gets_closer(server: StandInMinecraft, make: type) -> None:
    env = make(max_ticks=240)
    observation, info = env.reset(seed=4)
    player, state, total, first, over = CompassFollower(seed=0), None, 0.0, True, False
    while not over:
        action, state = player.act(observation[None], state, np.array([first]), [info])
        observation, reward, terminated, truncated, info = env.step(action[0])
        total, first, over = total + reward, False, terminated or truncated
    assert total > 25  # metres


def test_ppo_trains_on_the_env(make: type) -> None:
    from stable_baselines3 import PPO

    env = make("minerl-treechop", max_ticks=40)
    agent = PPO("CnnPolicy", env, n_steps=16, batch_size=16, n_epochs=1, device="cpu")
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    agent.learn(32)
    after = agent.policy.parameters()
    assert any((a != b).any() for a, b in zip(after, before, strict=True))
