"""MineRL through the real `minerl` client, against the stand-in server.

Nothing here is a result on Minecraft. The tests are skipped where the client is not installed
(`python -m envs.minerl_setup` installs it).
"""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import psutil
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import envs
from agents.compass_follower import CompassFollower
from agents.explorers import RandomPolicy
from agents.rollout import rollout
from envs.minecraft_standin import Faults, StandInMinecraft

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("minerl", reason="no minerl client: python -m envs.minerl_setup")

from envs.minerl import MinecraftError, MineRLEnv
from experiments.workers import play_episode

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
QUICK = {"step_timeout": 1.0, "reset_timeout": 5.0, "launch_timeout": 30.0, "restart_backoff": 0.01}
FORWARD = 6  # in the table dreamerv3


@pytest.fixture
def server() -> Iterator[StandInMinecraft]:
    server = StandInMinecraft(record=True).start()
    yield server
    server.stop()


@pytest.fixture
def make(server: StandInMinecraft) -> Iterator[type]:
    """Makes envs that talk to `server`, or to another Minecraft, and closes them."""
    made = []

    def make_env(name: str = "minerl-navigate-dense", **options: object) -> MineRLEnv:
        env = MineRLEnv(name, **{"minecraft": str(server.port), **QUICK, **options})  # type: ignore[arg-type]
        made.append(env)
        return env

    yield make_env  # type: ignore[misc]
    for env in made:
        pids = env.pids
        env.close()
        assert env.pids == []
        assert not [pid for pid in pids if psutil.pid_exists(pid)], "a process was left behind"


def frames_of(server: StandInMinecraft) -> np.ndarray:
    pixels = np.frombuffer(b"".join(sent.frame for sent in server.sent), np.uint8)
    return pixels.reshape(-1, 64, 64, 3)[:, ::-1]


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
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)


def test_clock_of_the_game_truncates_too(server: StandInMinecraft, make: type) -> None:
    env = make(frame_skip=1, max_ticks=9000)
    env.reset(seed=0)
    server.mission.ticks = 5998  # the task's limit is 6000
    env._ticks = 5998
    assert [env.step(0)[2:4] for _ in range(2)] == [(False, False), (False, True)]


FAULTS = {
    "die_at": "closed|lost",
    "hang_at": "timeout",
    "trickle_at": "timeout|garbage",
    "short_frame_at": "garbage: a frame of 12281 bytes instead of 12288",
    "empty_frame_at": "garbage: a frame of 0 bytes",
    "garbage_info_at": "garbage: info",
    "bad_reward_at": "garbage: reward",
    "endless_message_at": "garbage: a frame of 4294967295 bytes",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_truncates_and_is_never_data(
    fault: str, server: StandInMinecraft, make: type
) -> None:
    server.faults = Faults(**{fault: 6})  # the third tick of the second step
    env = make(obs="dict")
    seen = [env.reset(seed=9)[0], env.step(FORWARD)[0]]
    observation, reward, terminated, truncated, info = env.step(FORWARD)
    seen.append(observation)
    assert (terminated, truncated) == (False, True)
    assert re.search(FAULTS[fault], info["fault"]), info["fault"]
    # What is returned is the last tick that arrived whole: 0 is the first frame, 4 and 6 follow.
    np.testing.assert_array_equal([o["pov"] for o in seen], frames_of(server)[[0, 4, 6]])
    assert reward == sum(sent.reward for sent in server.sent[5:7])
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    if fault not in ("die_at", "hang_at"):  # the instance is still there and can be used again
        env.reset()
        _, _, _, truncated, info = env.step(FORWARD)
        assert not truncated and "fault" not in info


def test_dead_instance_is_replaced_a_bounded_number_of_times(make: type) -> None:
    env = make(minecraft="stand-in", standin_faults='{"die_at": 2}', max_restarts=2)
    pids = []
    for _ in range(3):
        env.reset(seed=1)
        pids += env.pids
        *_, truncated, info = env.step(0)
        assert truncated and "fault" in info
    with pytest.raises(MinecraftError, match="failed 3 times in a row, last: connection"):
        env.reset()
    assert len(set(pids)) == 3
    assert not any(psutil.pid_exists(pid) for pid in pids)
    env.reset()  # whoever insists gets another round


def test_killed_instance_is_replaced(make: type) -> None:
    env = make(minecraft="stand-in")
    env.reset(seed=1)
    (pid,) = env.pids
    os.kill(pid, signal.SIGKILL)
    *_, truncated, info = env.step(0)
    assert truncated and "fault" in info
    env.reset()
    assert env.pids and env.pids != [pid]
    assert not env.step(0)[3]


def test_refused_port_is_one_clear_error(make: type) -> None:
    gone = StandInMinecraft()
    gone.stop()
    env = make(minecraft=str(gone.port), max_restarts=1)
    with pytest.raises(MinecraftError, match=f"127.0.0.1:{gone.port}.*refused"):
        env.reset()


def test_hanging_reset_times_out(server: StandInMinecraft, make: type) -> None:
    server.faults = Faults(hang_on_reset=True)
    env = make(max_restarts=0, reset_timeout=0.5)
    with pytest.raises(MinecraftError, match="timeout: reset took too long"):
        env.reset()


def test_busy_instance_is_waited_for(server: StandInMinecraft, make: type) -> None:
    server.faults = Faults(busy=1)
    env = make()
    env.reset(seed=0)
    assert server.faults.busy == 0 and not env.step(0)[3]


def test_instance_that_stays_busy_is_an_error(server: StandInMinecraft, make: type) -> None:
    server.faults = Faults(busy=10**9)
    with pytest.raises(MinecraftError, match="timeout"):
        make(max_restarts=0, reset_timeout=0.5).reset()


def test_two_envs_have_two_instances(make: type) -> None:
    ours, theirs = make(minecraft="stand-in"), make(minecraft="stand-in")
    first, second = ours.reset(seed=1)[0], theirs.reset(seed=2)[0]
    assert not np.array_equal(first, second) and ours.pids != theirs.pids
    together = [(ours.step(a)[0], theirs.step(a)[0]) for a in (6, 5, 6, 10)]
    ours.reset(seed=1)
    np.testing.assert_array_equal(
        [a for a, _ in together], [ours.step(a)[0] for a in (6, 5, 6, 10)]
    )
    assert not theirs.step(0)[3]


def test_two_envs_can_not_share_an_instance(server: StandInMinecraft, make: type) -> None:
    ours = make()
    ours.reset(seed=1)
    with pytest.raises(MinecraftError, match="another env is using"):
        make().reset()
    assert not ours.step(0)[3], "the first env's mission was disturbed"
    ours.close()
    make().reset()


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


def test_launch_without_java_says_what_to_do(
    make: type, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MinecraftError, match=r"no Java.*apt install.*envs\.minerl_setup --check"):
        make(minecraft="launch").reset()


def launcher(folder: Path, script: str) -> str:
    """Make a folder with a `launchClient.sh`, which the client starts as it starts Minecraft."""
    folder.mkdir()
    path = folder / "launchClient.sh"
    path.write_text("#!/bin/sh\n" + textwrap.dedent(script))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(folder)


STANDIN_LAUNCHER = f"""\
cd {Path(__file__).resolve().parent.parent}
sleep 600 &
exec {sys.executable} -m envs.minecraft_standin --port "$2"
"""


def test_launched_instance_is_played_killed_and_replaced(make: type, tmp_path: Path) -> None:
    folder = launcher(tmp_path / "game", STANDIN_LAUNCHER)
    env = make(minecraft="launch", minecraft_dir=folder)
    env.reset(seed=1)
    first = env.pids
    family = [p.pid for p in psutil.Process(first[0]).children(recursive=True)]
    assert len(first) == 2 and family
    assert not env.step(FORWARD)[3]
    os.killpg(first[0], signal.SIGKILL)
    assert env.step(FORWARD)[3]
    env.reset()
    assert not env.step(FORWARD)[3]
    assert not [pid for pid in (*first, *family) if is_running(pid)]
    second = env.pids
    family = [p.pid for p in psutil.Process(second[0]).children(recursive=True)]
    env.close()
    assert not [pid for pid in (*second, *family) if is_running(pid)]


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("script", ["echo no display; exit 1", "sleep 600"])
def test_launch_that_fails_or_hangs(script: str, make: type, tmp_path: Path) -> None:
    folder = launcher(tmp_path / "game", script)
    env = make(minecraft="launch", minecraft_dir=folder, launch_timeout=1.0, max_restarts=1)
    with pytest.raises(MinecraftError, match=r"no display|timeout: launch"):
        env.reset()
    assert env.pids == []


@pytest.mark.parametrize("minecraft", ["stand-in", "launch"])
def test_nothing_survives_the_death_of_the_parent(minecraft: str, tmp_path: Path) -> None:
    folder = launcher(tmp_path / "game", STANDIN_LAUNCHER)
    program = f"""
        import psutil, time
        from envs.minerl import MineRLEnv
        env = MineRLEnv(minecraft={minecraft!r}, minecraft_dir={folder!r})
        env.reset(seed=0)
        print(*[p.pid for p in psutil.Process().children(recursive=True)], *env.pids, flush=True)
        time.sleep(600)
    """
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parent.parent,
    )
    assert child.stdout is not None
    pids = [int(pid) for pid in child.stdout.readline().split()]
    assert pids and all(is_running(pid) for pid in pids)
    child.kill()
    child.wait()
    child.stdout.close()
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if is_running(pid)]


def test_default_minecraft_comes_from_the_environment(
    server: StandInMinecraft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLDSIM_MINECRAFT", str(server.port))
    env = envs.make("minerl-navigate")
    env.reset()
    env.close()
    assert server.sent


def test_stand_in_has_names_of_its_own() -> None:
    names = [name for name in envs.ENV_NAMES if name.endswith("-stand-in")]
    assert len(names) == 5
    env = envs.make("minerl-treechop-stand-in")
    assert env.unwrapped.minecraft == "stand-in"  # type: ignore[attr-defined]
    assert env.unwrapped.name == "minerl-treechop"  # type: ignore[attr-defined]
    assert "StandIn" in env.spec.id  # type: ignore[union-attr]
    env.reset(seed=0)
    env.close()


def test_faulty_step_never_gets_into_a_dataset(server: StandInMinecraft, make: type) -> None:
    server.faults = Faults(short_frame_at=10)  # in the third step
    policy = RandomPolicy(12, seed=0)
    (episode,) = [e for e in play_episode(make(), policy, 5, {}) if not isinstance(e, int)]
    np.testing.assert_array_equal(episode.observations, frames_of(server)[[0, 4, 8]])
    assert episode.truncations.tolist() == [False, True] and not episode.terminations.any()
    assert episode.rewards.sum() == pytest.approx(sum(sent.reward for sent in server.sent[:9]))


def test_episode_that_broke_down_at_once_is_played_anew(
    server: StandInMinecraft, make: type
) -> None:
    server.faults = Faults(short_frame_at=2)
    env = make(max_ticks=12)
    policy = RandomPolicy(12, seed=0)
    (episode,) = [e for e in play_episode(env, policy, 5, {}) if not isinstance(e, int)]
    np.testing.assert_array_equal(episode.observations, frames_of(server)[4::4])
    assert len(episode.rewards) == 3


def test_evaluation_repeats_an_episode_that_broke_down(
    server: StandInMinecraft, make: type
) -> None:
    server.faults = Faults(short_frame_at=10)
    batch = gymnasium.vector.SyncVectorEnv(
        [lambda: make(max_ticks=20)], autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED
    )
    results = rollout(RandomPolicy(12, seed=0), batch, [3, 4], num_recorded=1)
    assert [(result.seed, result.length) for result in results] == [(3, 5), (4, 5)]
    assert len(results[0].frames) == 6
    batch.close()


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
