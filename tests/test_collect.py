"""Collection ends with the same dataset however often it was killed; imports shift nothing."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from minari.dataset.minari_dataset import parse_dataset_id
from tiny import tiny_model

from agents.actor_critic import ActorCritic
from agents.explorers import ExplorerConfig
from experiments import import_npz
from experiments.collect import CollectConfig, CollectResult, main, make_policy
from experiments.command_line import run_script
from experiments.workers import CollectionError, play_episode
from worldsim.checkpoint import load, save
from worldsim.episodes import DamagedEpisodeWarning, EpisodeDataset
from worldsim.recording import RecordedEpisode
from worldsim.tokenizer import TokenizerConfig

NUM_STEPS = 30


class CounterEnv(gymnasium.Env[np.ndarray, np.int64]):
    """Shows its seed, the step and the last action; pays for action 1.

    Args:
        delay: Seconds that a step takes in episodes with seeds from 3 up.
        trouble: What happens at step 10 of the episode with seed 2.
    """

    def __init__(self, delay: float = 0.0, trouble: str = "") -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(3)
        self.delay = delay
        self.trouble = trouble

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.seed, self.steps = seed or 0, 0
        return self.draw(0), {"step": 0}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        time.sleep(self.delay if self.seed >= 3 else 0)
        self.steps += 1
        if self.seed == 2 and self.steps == 10:
            if self.trouble == "pipe":
                raise BrokenPipeError("the simulator died")
            if self.trouble == "raise":
                raise RuntimeError("the maze caught fire")
            if self.trouble == "full disk":
                raise OSError(errno.ENOSPC, "No space left on device")
            if self.trouble == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.trouble == "die once" and not Path(os.environ["DIED"]).exists():
                Path(os.environ["DIED"]).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        truncated = self.steps == NUM_STEPS
        return self.draw(int(action)), float(action == 1), False, truncated, {"step": self.steps}

    def draw(self, action: int) -> np.ndarray:
        frame = self.np_random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        frame[0, 0] = [self.seed, self.steps, action]
        return frame


def make_counter(config: CollectConfig) -> gymnasium.Env:
    return CounterEnv()


def make_slow_counter(config: CollectConfig) -> gymnasium.Env:
    return CounterEnv(delay=0.2)


def make_trouble(config: CollectConfig) -> gymnasium.Env:
    return CounterEnv(trouble=os.environ["TROUBLE"])


def counter_config(root: Path, **options: Any) -> CollectConfig:
    defaults: dict[str, Any] = {
        "env": "counter",
        "policy": "random",
        "dataset": "counter/random-v0",
        "datasets_root": root,
        "episodes": 5,
        "num_workers": 1,
    }
    return CollectConfig(**{**defaults, **options})


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (path / "data" / "episodes").glob("*.hdf5")}


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> CollectResult:
    """Five episodes collected without disturbance."""
    root = tmp_path_factory.mktemp("undisturbed")
    return main(counter_config(root, num_workers=2), make=make_counter)


def test_episodes_can_be_cut_short(tmp_path: Path) -> None:
    config = counter_config(tmp_path, env="corridor", episodes=2, max_episode_steps=7)
    result = main(config)
    assert EpisodeDataset(result.path).lengths.tolist() == [8, 8]
    with pytest.raises(ValueError, match="settings"):
        main(counter_config(tmp_path, env="corridor", episodes=2, max_episode_steps=9))
    with pytest.raises(ValueError, match="max_episode_steps"):
        CollectConfig(max_episode_steps=0)


def test_episode_i_is_played_with_seed_plus_i(collected: CollectResult) -> None:
    dataset = EpisodeDataset(collected.path)
    assert (collected.episodes, collected.frames) == (5, 5 * (NUM_STEPS + 1))
    for index, episode in enumerate(dataset):
        assert (episode.frames[:, 0, 0, 0] == index).all()
        assert episode.metadata["seed"] == index
        assert episode.metadata["policy"] == "random"
        np.testing.assert_array_equal(episode.frames[:, 0, 0, 1], np.arange(NUM_STEPS + 1))
        np.testing.assert_array_equal(episode.infos["step"], np.arange(NUM_STEPS + 1))
        # The frame shows the action that led to it, and the reward goes with both.
        np.testing.assert_array_equal(episode.frames[1:, 0, 0, 2], episode.actions[1:])
        np.testing.assert_array_equal(episode.rewards, episode.actions == 1)
        assert not episode.terminated.any()
        assert collected.returns[index] == episode.rewards.sum() == episode.metadata["return"]
    actions = [dataset.episode(i).actions.tolist() for i in range(5)]
    assert len({tuple(a) for a in actions}) == 5


def test_number_of_workers_changes_nothing(collected: CollectResult, tmp_path: Path) -> None:
    alone = main(counter_config(tmp_path), make=make_counter)
    assert files_of(alone.path) == files_of(collected.path)


def test_running_again_makes_what_is_missing(collected: CollectResult, tmp_path: Path) -> None:
    few = main(counter_config(tmp_path, episodes=3), make=make_counter)
    folder = few.path / "data" / "episodes"
    times = {name: (folder / name).stat().st_mtime_ns for name in files_of(few.path)}
    lost = folder / "episode_000001.hdf5"
    lost.unlink()
    with pytest.warns(DamagedEpisodeWarning, match="episode 1 of"):
        assert len(EpisodeDataset(few.path)) == 2
    more = main(counter_config(tmp_path), make=make_counter)
    assert files_of(more.path) == files_of(collected.path)
    for name, modified in times.items():
        assert ((folder / name).stat().st_mtime_ns == modified) == (name != lost.name)


def test_killed_collection_continues_to_the_same_dataset(
    collected: CollectResult, tmp_path: Path
) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "import test_collect as t\n"
        "if __name__ == '__main__':\n"
        "    config = t.counter_config(Path(sys.argv[1]), num_workers=2)\n"
        "    t.main(config, make=t.make_slow_counter)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    arguments = [sys.executable, str(script), str(tmp_path), str(Path(__file__).parent)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "counter" / "random-v0" / "data" / "episodes"
    deadline = time.monotonic() + 300
    while len(list(folder.glob("episode_*.hdf5"))) < 3:
        assert process.poll() is None, "collection ended too soon"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers = children_of(process.pid)
    process.kill()
    process.wait()
    assert len(workers) >= 2
    saved = set(files_of(tmp_path / "counter" / "random-v0"))
    assert len(saved) == 3
    deadline = time.monotonic() + 100
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)

    resumed = main(counter_config(tmp_path), make=make_counter)
    assert files_of(resumed.path) == files_of(collected.path)
    assert [p.name for p in folder.iterdir() if p.name.endswith(".tmp")] == []


def children_of(pid: int) -> list[int]:
    """Return the spawned workers of a process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("pipe", r"(?s)the simulator died.*episode 2 \(seed 2\) of counter failed.*2 episodes"),
        ("raise", r"(?s)the maze caught fire.*episode 2 \(seed 2\) of counter failed.*2 episodes"),
        ("full disk", "no space left on the disk of .*: free some. 2 episodes are safe"),
        ("die", r"episode 2 \(seed 2\) of counter died twice, last with exit code -9"),
    ],
)
def test_trouble_stops_with_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str, message: str
) -> None:
    monkeypatch.setenv("TROUBLE", trouble)
    with pytest.raises(CollectionError, match=message):
        main(counter_config(tmp_path), make=make_trouble)
    assert len(EpisodeDataset(tmp_path / "counter/random-v0")) == 2
    monkeypatch.setenv("TROUBLE", "")
    assert main(counter_config(tmp_path), make=make_trouble).episodes == 5


def test_worker_that_dies_once_is_replaced(
    collected: CollectResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TROUBLE", "die once")
    monkeypatch.setenv("DIED", str(tmp_path / "died"))
    result = main(counter_config(tmp_path), make=make_trouble)
    assert (tmp_path / "died").exists()
    assert files_of(result.path) == files_of(collected.path)


def test_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from worldsim import recording

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(recording.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        recording.replace_file(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_other_settings_do_not_mix(collected: CollectResult) -> None:
    root = collected.path.parent.parent
    with pytest.raises(ValueError, match="differs in collection"):
        main(counter_config(root, seed=7), make=make_counter)


def test_bad_requests_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="explorer only knows its way in Memory Mazes"):
        CollectConfig(env="corridor", policy="explorer")
    with pytest.raises(ValueError, match=r"no saved policy nowhere\.zip"):
        CollectConfig(policy="nowhere.zip")
    with pytest.raises(ValueError, match="at least 1"):
        CollectConfig(episodes=0)
    for changes in (
        {"policy_model": "memory-maze-9x9"},
        {"temperature": 2.0},
        {"policy": "walker", "explorer": ExplorerConfig(epsilon=0.5)},
    ):
        with pytest.raises(ValueError, match=f"{list(changes)[-1]} is for .*leave it out"):
            CollectConfig(**changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="deterministic changes nothing for random"):
        CollectConfig(policy="random", deterministic=True)
    with pytest.raises(ValueError, match="explorer is for Memory Mazes, not for minerl-navigate"):
        CollectConfig(env="minerl-navigate-stand-in", explorer=ExplorerConfig(epsilon=0.5))
    assert CollectConfig(env="memory-maze-7x7").dataset_id == "memory-maze-7x7/explorer-v0"
    own = CollectConfig(env="mine:My-v0", policy="random")
    assert own.dataset_id == "My-v0/random-v0" and parse_dataset_id(own.dataset_id)[1] == "random"
    (tmp_path / "mine.zip").touch()
    with pytest.raises(ValueError, match="need a name: give --dataset"):
        CollectConfig(policy=str(tmp_path / "mine.zip"))
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    config = counter_config(tmp_path, policy=str(tmp_path / "bad.zip"))
    with pytest.raises(ValueError, match="not a model saved by Stable-Baselines3"):
        main(config, make=make_counter)
    arguments = ["--env", "no-such-maze", "--policy", "random", "--datasets-root", str(tmp_path)]
    with pytest.raises(SystemExit, match="unknown environment 'no-such-maze'"):
        run_script(main, CollectConfig, None, arguments=arguments)


class NoPictures(gymnasium.Env[np.ndarray, np.int64]):
    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)


class NoChoices(CounterEnv):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)  # type: ignore[assignment]


def test_untrainable_envs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"counter has observations Box.*needed are images"):
        main(counter_config(tmp_path), make=lambda _: NoPictures())
    with pytest.raises(ValueError, match=r"counter has actions Box.*needed is a Discrete"):
        main(counter_config(tmp_path), make=lambda _: NoChoices())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_saved_policies_play(tmp_path: Path) -> None:
    from stable_baselines3 import PPO

    settings = {"n_steps": 8, "batch_size": 8, "policy_kwargs": {"normalize_images": True}}
    model = PPO("MlpPolicy", CounterEnv(), **settings)  # type: ignore[arg-type]
    model.save(tmp_path / "ppo.zip")
    config = counter_config(tmp_path, policy=str(tmp_path / "ppo.zip"), episodes=3)
    result = main(config, make=make_counter)
    again = dataclasses.replace(config, datasets_root=tmp_path / "again", num_workers=2)
    assert files_of(main(again, make=make_counter).path) == files_of(result.path)
    assert EpisodeDataset(result.path).episode(0).metadata["policy"] == "ppo.zip"


@pytest.fixture
def world_model(tmp_path: Path) -> Path:
    """A model of the counter's frames and actions, without a memory of places."""
    sizes = TokenizerConfig(frame_shape=(8, 8, 3), patch_size=4, channels=(16,), latent_channels=8)
    save(tiny_model(num_actions=3, tokenizer=sizes), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("saved", [False, True])
def test_what_a_model_predicts_plays_and_seeds_decide_it(
    saved: bool, world_model: Path, tmp_path: Path
) -> None:
    policy = "behaviour"
    if saved:
        agent = ActorCritic.from_behaviour(load(world_model), walking=False)
        agent.save(tmp_path / "agent.safetensors", world_model=str(world_model))
        policy = str(tmp_path / "agent.safetensors")
    told = {} if saved else {"policy_model": str(world_model)}
    config = counter_config(tmp_path, policy=policy, **told)
    env = CounterEnv()
    play = make_policy(config, env)

    def actions(seed: int) -> list[int]:
        *_, episode = play_episode(env, play(seed), seed, {})
        assert isinstance(episode, RecordedEpisode)
        return episode.actions.tolist()

    first, other, again = actions(0), actions(1), actions(0)
    assert first == again and first != other


def test_walking_needs_places(world_model: Path, tmp_path: Path) -> None:
    config = counter_config(tmp_path, policy="walker", policy_model=str(world_model))
    with pytest.raises(ValueError, match="no memory of places"):
        main(config, make=make_counter)
    other = counter_config(tmp_path, policy="behaviour", policy_model=str(world_model))
    warmer = dataclasses.replace(other, temperature=2.0)
    assert other.settings != warmer.settings and "world_model_sha256" in other.settings


@pytest.mark.slow
def test_explorer_plays_the_real_maze(tmp_path: Path) -> None:
    arguments = "--env memory-maze-5x5 --episodes 2 --dataset maze-v0 --datasets-root".split()
    run_script(main, CollectConfig, None, arguments=[*arguments, str(tmp_path)])
    episode = EpisodeDataset("maze-v0", root=tmp_path).episode(1)
    assert episode.frames.shape == (251, 64, 64, 3)
    assert episode.metadata["maze_layout"].shape == (5, 5)
    assert {"agent_pos", "agent_dir", "targets_pos", "target_index"} <= episode.infos.keys()


def make_trajectory(seed: int, num_frames: int = 21) -> dict[str, np.ndarray]:
    """A trajectory as the Memory Maze offline dataset has it."""
    rng = np.random.default_rng(seed)
    actions = rng.integers(0, 6, num_frames)
    one_hot = np.eye(6, dtype=bool)[actions]
    one_hot[0] = False
    return {
        "image": rng.integers(0, 256, (num_frames, 16, 16, 3), dtype=np.uint8),
        "action": one_hot,
        "reward": (np.arange(num_frames) % 7 == 3).astype(np.float64),
        "maze_layout": np.repeat(rng.integers(0, 2, (1, 9, 9)), num_frames, axis=0),
        "agent_pos": rng.random((num_frames, 2)),
        "targets_pos": np.tile(np.arange(6.0).reshape(1, 3, 2), (num_frames, 1, 1)),
        "target_pos": np.tile([2.0, 3.0], (num_frames, 1)),
    }


def test_import_keeps_actions_with_the_frames_they_led_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "npz" / "b").mkdir(parents=True)
    first, second = make_trajectory(0), make_trajectory(1)
    np.savez_compressed(tmp_path / "npz" / "a.npz", **first)  # type: ignore[arg-type]
    second["action"] = second["action"].argmax(axis=1)
    np.savez(tmp_path / "npz" / "b" / "a.npz", **second)  # type: ignore[arg-type]
    np.savez(tmp_path / "npz" / "lacking.npz", image=first["image"])
    short = {**first, "reward": first["reward"][:-1]}
    np.savez(tmp_path / "npz" / "short.npz", **short)  # type: ignore[arg-type]
    (tmp_path / "npz" / "torn.npz").write_bytes((tmp_path / "npz" / "a.npz").read_bytes()[:9000])
    content = bytearray((tmp_path / "npz" / "a.npz").read_bytes())
    central = content.index(b"PK\x01\x02")
    for name, offset, value in (("newer", 6, 84), ("locked", 8, 1)):  # a version, encryption
        damaged = content.copy()
        damaged[central + offset] = value
        (tmp_path / "npz" / f"{name}.npz").write_bytes(damaged)
    with open(tmp_path / "npz" / "single.npz", "wb") as file:
        np.save(file, first["image"])
    config = import_npz.ImportConfig(
        source=tmp_path / "npz", dataset="offline-v0", datasets_root=tmp_path
    )
    result = import_npz.main(config)
    assert result.episodes == 2
    names = ("lacking", "locked", "newer", "short", "single", "torn")
    assert result.damaged == [f"{name}.npz" for name in names]
    dataset = EpisodeDataset(result.path)
    assert dataset.num_actions == 6
    for trajectory, episode in zip([first, second], dataset, strict=True):
        np.testing.assert_array_equal(episode.frames, trajectory["image"])
        actions = trajectory["action"]
        indices = actions.argmax(axis=1) if actions.ndim == 2 else actions
        np.testing.assert_array_equal(episode.actions, [6, *indices[1:]])
        np.testing.assert_array_equal(episode.rewards, [0, *trajectory["reward"][1:]])
        np.testing.assert_allclose(episode.infos["agent_pos"], trajectory["agent_pos"], rtol=1e-6)
        np.testing.assert_array_equal(episode.infos["target_index"], np.ones(21))
        np.testing.assert_array_equal(episode.metadata["maze_layout"], trajectory["maze_layout"][0])
        assert not episode.terminated.any()

    np.savez(tmp_path / "npz" / "c.npz", **make_trajectory(2))  # type: ignore[arg-type]
    assert import_npz.main(config).episodes == 3  # only the new file is read in
    # Files of the same names in another folder are others, whatever that is called; those of a
    # folder within are not.
    for i, other in enumerate(("more", "later/npz")):
        (tmp_path / other).mkdir(parents=True)
        np.savez(tmp_path / other / "a.npz", **make_trajectory(3 + i))  # type: ignore[arg-type]
    for source, there, episodes in (
        *(("more", 0, 4), ("more", 1, 4), ("npz", 3, 4), ("later/npz", 0, 5), ("later/npz", 1, 5)),
        *(("npz", 3, 5), ("later", 1, 5)),
    ):
        capsys.readouterr()
        again = import_npz.main(dataclasses.replace(config, source=tmp_path / source))
        assert again.episodes == episodes
        assert f"{there} files were there already" in capsys.readouterr().out
    (tmp_path / "more" / "b.npz").symlink_to(tmp_path / "nowhere.npz")
    damaged = import_npz.main(dataclasses.replace(config, source=tmp_path / "more")).damaged
    assert damaged == ["b.npz"]
    assert [str(e.metadata["source"]) for e in EpisodeDataset(result.path)] == [
        "npz/a.npz",
        "npz/b/a.npz",
        "npz/c.npz",
        "more/a.npz",
        "npz/a.npz",
    ]


def test_import_of_what_a_loop_over_gymnasium_records(tmp_path: Path) -> None:
    """One action and reward less than frames, and an end by itself, under another name."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 9, 16, 16, 3), dtype=np.uint8)
    actions = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    ended = np.arange(8) == 7
    for i, told in enumerate(({"terminals": ended}, {"truncated": ended})):
        rewards = np.arange(8) * 1.0
        infos = np.array([{"step": step} for step in range(9)], dtype=object)  # no numbers
        entries = {"image": frames[i], "action": actions, "reward": rewards, "info": infos}
        np.savez(tmp_path / f"{i}.npz", **entries, **told)
    config = import_npz.ImportConfig(source=tmp_path, dataset="own-v0", datasets_root=tmp_path)
    result = import_npz.main(config)
    assert (result.episodes, result.terminated) == (2, 1)
    dataset = EpisodeDataset(result.path)
    assert dataset.num_actions == 3  # as many as there are
    for i, episode in enumerate(dataset):
        np.testing.assert_array_equal(episode.frames, frames[i])
        np.testing.assert_array_equal(episode.actions, [3, *actions])
        np.testing.assert_array_equal(episode.rewards, [0, *range(8)])
        assert episode.terminated.tolist() == [False] * 8 + [i == 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_import_scales_frames_by_averaging(tmp_path: Path, channels: int) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (9, 16, 8, channels), dtype=np.uint8)
    frames = coarse.repeat(2, axis=1).repeat(3, axis=2)
    actions = np.arange(9) % 2
    np.savez(tmp_path / "0.npz", image=frames, action=actions, reward=np.zeros(9))
    config = import_npz.ImportConfig(
        source=tmp_path, dataset="own-v0", datasets_root=tmp_path, size=(16, 8)
    )
    dataset = EpisodeDataset(import_npz.main(config).path)
    np.testing.assert_array_equal(dataset.episode(0).frames, coarse)
    with pytest.raises(ValueError, match=r"size must be .* got \(0, 8\)"):
        import_npz.ImportConfig(source=tmp_path, size=(0, 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": np.linspace(0, 1, 21)}, r"action 0\.05 of step 0 is no whole number"),
        ({"action": np.eye(4)[np.zeros(21, int)]}, r"not one-hot of 6 actions \(--num-actions\)"),
        (
            {"action": np.eye(6)[np.zeros(21, int)] * 2 - np.eye(6)[1]},
            r"step 0 is not one-hot: \[2",
        ),
        ({"action": np.full(21, "left")}, "action is <U4, not numbers"),
        ({"reward": np.full(21, "much")}, "rewards are <U4, not numbers"),
        ({"action": np.full(21, 6)}, r"action 6 of step 0 is not one of 0 to 5 \(--num-actions\)"),
        ({"image": np.zeros((21, 3, 16, 16), np.uint8)}, "1 or 3 channels, and these last"),
        ({"reward": np.zeros(20)}, "a row for every image, or for every step between two"),
    ],
)
def test_import_says_what_does_not_fit(
    change: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", **{**make_trajectory(0), **change})  # type: ignore[arg-type]
    config = import_npz.ImportConfig(source=tmp_path, datasets_root=tmp_path, num_actions=6)
    with pytest.raises(ValueError, match=message):
        import_npz.main(config)


def test_import_of_nothing_is_an_error(tmp_path: Path) -> None:
    config = import_npz.ImportConfig(source=tmp_path, datasets_root=tmp_path / "datasets")
    with pytest.raises(FileNotFoundError, match=r"no .npz files"):
        import_npz.main(config)
    np.savez(tmp_path / "x.npz", y=np.zeros(3))
    with pytest.raises(ValueError, match=r"none of 1 files has actions that can be counted"):
        import_npz.main(config)
    config = dataclasses.replace(config, num_actions=6)
    with pytest.raises(ValueError, match=r"none of 1 files.*x.npz: it lacks image, action, reward"):
        import_npz.main(config)
