"""An environment of one's own goes all the way: recorded, learned, dreamed, and judged on."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
from accelerate.state import AcceleratorState
from minari.data_collector import EpisodeBuffer
from tiny import tiny_config, tiny_model, write_dataset

import envs
from experiments import (
    benchmark_agents,
    collect,
    dream_judging,
    dream_train,
    evaluate,
    evaluate_world_model,
    play,
    playing,
    train_world_model,
)
from experiments.actor_critic_training import check_episodes
from experiments.agents_config import BenchmarkAgentsConfig
from experiments.data_checks import check_training_data, env_of
from experiments.dream_train_config import DreamTrainConfig
from experiments.model_to_train import new_model
from experiments.sb3_training import PPOConfig
from experiments.ship_model import ShipConfig, choose_contexts
from experiments.train_config import ValidationConfig, presets
from experiments.videos import encode_gif
from worldsim.checkpoint import Contexts, load, save
from worldsim.contexts import open_contexts, sample_contexts
from worldsim.episodes import EpisodeDataset
from worldsim.open_loop import draw_stretches
from worldsim.training_config import OptimizerConfig
from worldsim.world_model_config import WorldModelConfig

LAMP = "own_env:Lamp-v0"


def record(root: Path, num_episodes: int = 12) -> EpisodeDataset:
    config = collect.CollectConfig(
        env=LAMP,
        policy="random",
        episodes=num_episodes,
        dataset="lamp-v0",
        datasets_root=root,
        num_workers=2,
    )
    return EpisodeDataset(collect.main(config).path)


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> EpisodeDataset:
    return record(tmp_path_factory.mktemp("own"))


def test_only_the_image_is_shown_and_actions_count_from_zero() -> None:
    env = envs.make(LAMP)
    assert env.observation_space == gymnasium.spaces.Box(0, 255, (32, 32, 1), np.uint8)
    assert env.action_space == gymnasium.spaces.Discrete(3)
    frame, _ = env.reset(seed=0)
    assert frame in env.observation_space
    for action, change in ((2, 50), (0, -50), (1, 0)):
        before, (frame, *_) = int(frame[0, 0, 0]), env.step(action)
        assert int(frame[0, 0, 0]) - before == change
    assert env.spec is not None and env.spec.max_episode_steps == 40


def test_envs_that_cannot_be_dreamed_or_made_are_named() -> None:
    with pytest.raises(ValueError, match=r"own_env:Arm-v0 has actions Box.*needed is a Discrete"):
        envs.make("own_env:Arm-v0")
    with pytest.raises(ValueError, match="environment 'own_env:Nothing-v0' cannot be made"):
        envs.make("own_env:Nothing-v0")
    with pytest.raises(ValueError, match="environment 'no_such_module:X-v0' cannot be made"):
        envs.make("no_such_module:X-v0")


def test_dreams_do_not_start_where_episodes_terminated(episodes: EpisodeDataset) -> None:
    lengths = episodes.lengths
    ended = [bool(episodes.terminated(i)[-1]) for i in range(len(episodes))]
    assert any(ended) and episodes.frames_going_on().tolist() == (lengths - ended).tolist()
    i = ended.index(True)
    one, length = episodes.select([i]), int(lengths[i]) - 2
    frames = episodes.episode(i).frames
    starts = [frames[s : s + length] for s in range(2)]  # the third ends where the episode does
    contexts = sample_contexts(one, 40, length)
    drawn, *_ = draw_stretches(one, 40, length, seed=0, going_on=True)
    for stretch in (*contexts.frames, *drawn):
        assert any(np.array_equal(stretch, s) for s in starts)
    with pytest.raises(ValueError, match=f"no episode has {lengths[i]} frames"):
        sample_contexts(one, 1, int(lengths[i]))


def test_contexts_kept_are_of_several_episodes(episodes: EpisodeDataset) -> None:
    kept = train_world_model.contexts_to_keep(episodes)
    longest = np.sort(episodes.frames_going_on())[::-1]
    assert kept.frames.shape[:2] == (8, longest[5])  # half of the twelve are that long
    assert len({stretch.tobytes() for stretch in kept.frames}) > 4


def test_what_training_would_leave_out_is_said(episodes: EpisodeDataset) -> None:
    training = presets()["tiny"][1].dynamics
    model = WorldModelConfig(num_actions=3)
    short = int((episodes.lengths < 32).sum())
    ended = [bool(episodes.terminated(i)[-1]) for i in range(len(episodes))]
    lost = int(((episodes.lengths < 32) & np.array(ended)).sum())
    (note,) = check_training_data(episodes, model, training)
    assert short and note.startswith(f"{short} of 12 episodes") and "shorter than 32" in note
    assert note.endswith(f"nor {lost} of the {sum(ended)} terminations")
    small = dataclasses.replace(model, reward_limit=0.5)
    assert "--reward-limit 2" in check_training_data(episodes, small, training)[-1]
    longer = dataclasses.replace(training, curriculum=((32, 0.5), (64, 0.5)))
    with pytest.raises(ValueError, match=r"64 frames; the longest.*--dynamics.curriculum"):
        check_training_data(episodes, model, longer)


def save_small(path: Path, image_key: str | None = None, **options: Any) -> None:
    """Save a model of lamps."""
    smaller: dict[str, Any] = {"frame_shape": (32, 32, 1), "patch_size": 16}
    tokenizer = dataclasses.replace(tiny_config().tokenizer, **smaller)
    contexts = Contexts(np.zeros((2, 4, 32, 32, 1), np.uint8), np.zeros((2, 4), np.int64))
    model = tiny_model(num_actions=3, tokenizer=tokenizer, image_key=image_key)
    save(model, path, contexts=contexts, **options)


@pytest.mark.filterwarnings("ignore")  # Minari asks for author and the like
def test_a_model_knows_which_of_several_images_it_sees(tmp_path: Path) -> None:
    image = gymnasium.spaces.Box(0, 255, (32, 32, 1), np.uint8)
    frames = {name: [np.full((32, 32, 1), i, np.uint8)] * 40 for i, name in enumerate(("l", "r"))}
    steps = np.zeros(39)
    buffer = EpisodeBuffer(
        observations=frames,  # type: ignore[arg-type]
        actions=[0] * 39,
        rewards=list(steps),
        terminations=list(steps > 0),
        truncations=[*(steps[1:] > 0), True],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
        minari.create_dataset_from_buffers(
            "two-v0",
            [buffer] * 2,
            observation_space=gymnasium.spaces.Dict({"l": image, "r": image}),
            action_space=gymnasium.spaces.Discrete(3),
            jpeg_encoding=False,
        )
    dataset = (str(tmp_path / "two-v0"),)
    config = dataclasses.replace(presets()["tiny"][1], dataset=dataset, output=tmp_path / "run")
    with pytest.raises(ValueError, match=r"several images.*l, r"):
        train_world_model.open_datasets(config)
    config = dataclasses.replace(config, image_key="r")
    for episodes in train_world_model.open_datasets(config):
        assert (episodes.episode(0).frames == 1).all()
    assert new_model(config, (32, 32, 1), 3).config.image_key == "r"

    save_small(tmp_path / "model", image_key="r")
    model = load(tmp_path / "model")
    assert (open_contexts(model, dataset[0], context_length=4).frames == 1).all()
    assert (check_episodes(model.config, dataset[0]).episode(0).frames == 1).all()
    config = dataclasses.replace(config, image_key=None, init=str(tmp_path / "model"))
    for episodes in train_world_model.open_datasets(config):
        assert (episodes.episode(0).frames == 1).all()
    of_dataset = ShipConfig(checkpoint=tmp_path / "model", name="x", num_contexts=3)
    with pytest.raises(ValueError, match="num_contexts is of contexts drawn from a dataset"):
        choose_contexts(of_dataset)
    shipped = ShipConfig(
        checkpoint=tmp_path / "model", name="x", dataset=dataset, context_length=4, num_contexts=1
    )
    assert (choose_contexts(shipped).frames == 1).all()


@pytest.mark.filterwarnings("ignore:.*has learned from")
def test_frames_too_small_for_policies_on_pixels_are_told_at_once(tmp_path: Path) -> None:
    save_small(tmp_path / "model")
    model = {"env": LAMP, "world_model": str(tmp_path / "model")}
    pixels = {"agent": "ppo", "obs": "pixels", "output": tmp_path / "x"}
    with pytest.raises(ValueError, match=r"32 x 32 pixels are too small .* give --obs features"):
        dream_train.main(DreamTrainConfig(**model, **pixels))
    assert not (tmp_path / "x").exists()
    agents = benchmark_agents.AgentsBenchmark(BenchmarkAgentsConfig(**model)).agents
    assert "ppo_features" in agents and "ppo_pixels" not in agents
    with pytest.raises(ValueError, match=r"too small .*: leave out 'model_free'"):
        benchmark_agents.AgentsBenchmark(BenchmarkAgentsConfig(**model, agents=("model_free",)))


def test_the_env_of_recordings_of_others_is_known_by_their_metadata(tmp_path: Path) -> None:
    path = write_dataset(tmp_path)
    assert env_of(EpisodeDataset(path)) is None
    metadata = json.loads((path / "data/metadata.json").read_text())
    spec = gymnasium.spec("CartPole-v1").to_json()
    (path / "data/metadata.json").write_text(json.dumps(metadata | {"env_spec": spec}))
    assert env_of(EpisodeDataset(path)) == "CartPole-v1"
    assert env_of(EpisodeDataset("tiny/episodes-v0", tmp_path), tmp_path) == "CartPole-v1"
    # Such an id does not say what module registers it.
    save_small(tmp_path / "model", metadata={"env": "Lamp-v0"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dream_judging.check_env(LAMP, str(tmp_path / "model"))


def test_grey_frames_make_videos() -> None:
    grey, colour = np.zeros((3, 8, 8, 1), np.uint8), np.zeros((3, 8, 8, 3), np.uint8)
    assert encode_gif(grey) == encode_gif(colour)


def test_envs_whose_specs_cannot_be_sent_are_judged() -> None:
    config = evaluate.EvaluateConfig(env="own_env:Brighter-v0", num_episodes=2, num_workers=1)
    report = evaluate.main(config)
    assert all(r % 2 == 0 for r in report["results"]["returns"])


def test_the_episode_of_the_seed_is_the_first_to_be_played(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[np.ndarray] = []

    def stub(env: gymnasium.Env, **_: Any) -> None:
        for _ in range(2):
            seen.append(env.reset()[0])
        env.step(1)
        seen.append(env.reset()[0])

    window = types.SimpleNamespace(play=stub)  # pygame may not be here
    monkeypatch.setitem(sys.modules, "gymnasium.utils.play", window)  # type: ignore[arg-type]
    play.main(play.PlayConfig(env="memory-maze-5x5", seed=7))
    first = envs.make("memory-maze-5x5").reset(seed=7)[0]
    np.testing.assert_array_equal(seen[0], first)
    np.testing.assert_array_equal(seen[1], first)
    assert (seen[2] != first).any()


def test_own_envs_without_pictures_can_be_played() -> None:
    with pytest.raises(ValueError, match="horizon is of dreams"):
        play.PlayConfig(env=LAMP, horizon=9)
    env = play.make_env(play.PlayConfig(env=LAMP))
    frame, _ = env.reset(seed=0)
    np.testing.assert_array_equal(env.render(), frame.repeat(3, axis=-1))
    frame, *_ = env.step(2)
    np.testing.assert_array_equal(env.render(), frame.repeat(3, axis=-1))
    assert env.render_mode == "rgb_array"


def test_an_env_without_a_limit_on_steps_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="own_env:Endless-v0 has no limit on steps"):
        collect.main(
            collect.CollectConfig(
                env="own_env:Endless-v0", policy="random", episodes=1, datasets_root=tmp_path
            )
        )
    with pytest.warns(UserWarning, match="max_episode_steps cuts them"):
        assert playing.episode_limit(lambda: envs.make("own_env:Endless-v0")) is None
    assert playing.episode_limit(lambda: envs.make(LAMP)) == 40


def test_every_action_has_a_key(tmp_path: Path) -> None:
    save(tiny_model(), tmp_path / "mine", metadata={"env": "memory-maze-9x9"})
    of_maze = play.PlayConfig(world_model=str(tmp_path / "mine"))
    assert play.key_bindings(6, play.env_of(of_maze)) == play.MEMORY_MAZE_KEYS
    assert play.env_of(play.PlayConfig(env=LAMP)) == LAMP
    assert play.waits_for_keys(LAMP) and not play.waits_for_keys("memory-maze-9x9")
    keys = play.key_bindings(12, "minerl-navigate")
    assert sorted(keys.values()) == list(range(12)) and keys["0"] == 9 and keys["b"] == 11
    with pytest.raises(ValueError, match="99 actions, more than the 36 keys"):
        play.key_bindings(99, "other")


def test_an_own_env_goes_all_the_way(
    episodes: EpisodeDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    AcceleratorState._reset_state(True)
    tiny = presets()["tiny"][1]
    steps = OptimizerConfig(steps=4, warmup_steps=1)
    (path,) = {r.rsplit("/data", 1)[0] for r in episodes.sources}
    config = dataclasses.replace(
        tiny,
        dataset=(path,),
        output=tmp_path / "model",
        tokenizer_training=dataclasses.replace(tiny.tokenizer_training, optimizer=steps),
        dynamics=dataclasses.replace(tiny.dynamics, optimizer=steps, curriculum=((16, 1.0),)),
        validation=ValidationConfig(every=2, num_contexts=1, context=8, horizon=8),
        device="cpu",
    )
    checkpoint = str(train_world_model.main(config))
    told = " ".join(capsys.readouterr().out.split())
    assert (
        f"next: python experiments/dream_train.py --env {LAMP} --world-model {checkpoint}" in told
    )
    report = evaluate_world_model.main(
        evaluate_world_model.EvaluateWorldModelConfig(
            world_model=checkpoint,
            dataset=(path,),
            context=8,
            horizon=4,
            num_contexts=2,
            output=tmp_path / "judged",
        )
    )
    assert 0 < report["open_loop"]["dream"]["first_4"]["psnr"] < 60
    job = DreamTrainConfig(
        world_model=checkpoint,
        agent="ppo",
        total_timesteps=32,
        num_envs=2,
        horizon=4,
        ppo=PPOConfig(num_steps=8, batch_size=8, num_epochs=1),
        eval_episodes=2,
        dream_eval_episodes=2,
        output=tmp_path / "run",
        device="cpu",
    )
    with pytest.raises(
        ValueError, match=r"takes uint8 frames \(32, 32, 1\) and 3 actions; .*--env"
    ):
        dream_train.main(job)
    results = dream_train.main(dataclasses.replace(job, env=LAMP, output=tmp_path / "own"))
    assert {"random", "round 1"} <= set(results["evaluations"])
    with pytest.raises(ValueError, match=r"no scripted player is known for .*: leave out 'data'"):
        benchmark_agents.main(
            BenchmarkAgentsConfig(
                env=LAMP, world_model=checkpoint, agents=("data",), work=tmp_path / "work"
            )
        )
    mine = evaluate.EvaluateConfig(
        env=LAMP, policy=str(tmp_path / "own" / "policy.zip"), num_episodes=2
    )
    assert len(evaluate.main(mine)["results"]["returns"]) == 2
    with pytest.raises(ValueError, match=r"does not dream memory-maze-9x9 .*own env with --env"):
        evaluate.main(dataclasses.replace(mine, env="memory-maze-9x9"))
    with pytest.warns(UserWarning, match=r"has learned from own_env:Lamp-v0, and .*Brighter-v0"):
        evaluate.main(dataclasses.replace(mine, env="own_env:Brighter-v0"))
    again = collect.CollectConfig(
        env="own_env:Brighter-v0", policy=mine.policy, dataset="x-v0", datasets_root=tmp_path
    )
    with pytest.warns(UserWarning, match=r"world model of own_env:Lamp-v0, and plays own_env:Bri"):
        collect.main(dataclasses.replace(again, episodes=1))
    with pytest.raises(ValueError, match="memory-maze-5x5 has"):
        collect.main(dataclasses.replace(again, env="memory-maze-5x5", dataset="y-v0"))
    assert not (tmp_path / "y-v0").exists()
