"""Everything that goes wrong with a Minecraft, through the real client on the stand-in.

Skipped where the client is not installed (`python -m envs.minerl_setup` installs it).
"""

# ruff: noqa: F811

import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import gymnasium
import numpy as np
import psutil
import pytest
from minerl_fixtures import FORWARD, frames_of, make, server  # noqa: F401

from agents.explorers import RandomPolicy
from agents.rollout import rollout
from envs.minecraft_standin import Faults, StandInMinecraft
from envs.minerl import MinecraftError
from experiments.workers import play_episode

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


FAULTS = {
    "die_at": "closed|lost",
    "hang_at": "timeout",
    "trickle_at": "timeout|garbage",
    "short_frame_at": "garbage: a frame of 12281 bytes instead of 12288",
    "empty_frame_at": "garbage: a frame of 0 bytes",
    "garbage_info_at": "garbage: info",
    "nan_info_at": "garbage: info.*NaN",
    "bad_reward_at": "garbage: reward",
    "endless_message_at": "garbage: a frame of 4294967295 bytes",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_truncates_and_is_never_data(
    fault: str, server: StandInMinecraft, make: type
) -> None:
    server.faults = Faults(**{fault: 6})  # the third tick of the second step
    silent = fault in ("hang_at", "trickle_at")
    env = make(obs="dict", step_timeout=60.0)
    seen = [env.reset(seed=9)[0], env.step(FORWARD)[0]]
    if silent:  # only now: on a busy machine a healthy step may take long
        env.unwrapped._step_timeout = 1.0
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


def test_faults_between_episodes_that_were_cut_short_are_not_in_a_row(make: type) -> None:
    env = make(minecraft="stand-in", max_restarts=1)
    for _ in range(3):  # a fault before every episode but the first
        env.reset(seed=1)
        assert not env.step(0)[3]  # a limit on steps from outside may end the episode here
        (pid,) = env.pids
        os.kill(pid, signal.SIGKILL)


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
