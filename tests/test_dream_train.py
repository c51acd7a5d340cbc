"""The main job from end to end, on a tiny model and short episodes of a small real maze."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
import warnings
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from stable_baselines3 import PPO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import tiny_contexts, tiny_model, write_dataset

from agents.actor_critic import ActorCritic, ActorCriticPolicy
from agents.cloning import CloningConfig
from agents.imagination import ActorCriticConfig, ImaginationTrainer
from agents.on_the_way import WayConfig
from agents.planner import Planner, PlannerConfig
from agents.sb3 import BatchedVecEnv
from experiments import (
    benchmark_dream,
    benchmark_speed,
    dream_judging,
    dream_train,
    evaluate,
    improve_world_model,
    model_free,
    playing,
    run_directory,
)
from experiments.agent_progress import AgentProgress
from experiments.agents_work import read_curve
from experiments.dream_judging import log_returns, random_in_dream
from experiments.dream_train_config import (
    FIRST_COLLECTION_SEED,
    MOST_EPISODES,
    MOST_SEEDS,
    DreamTrainConfig,
    given_for_nothing,
    not_used_yet,
)
from experiments.run_directory import RunDirectory
from experiments.sb3_training import PPOConfig
from experiments.train_config import TrainConfig
from experiments.training_progress import TrainingProgress
from worldsim.checkpoint import CheckpointError, fingerprint, load, save
from worldsim.episodes import EpisodeDataset
from worldsim.occupancy_config import OccupancyConfig
from worldsim.odometry import OdometryConfig
from worldsim.places import PlacesConfig
from worldsim.pose import PoseConfig


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    save(tiny_model(), path, contexts=tiny_contexts())
    return path


def make_config(checkpoint: Path, output: Path, **changes: Any) -> DreamTrainConfig:
    config = DreamTrainConfig(
        env="memory-maze-5x5",
        world_model=str(checkpoint),
        agent="ppo",
        total_timesteps=64,
        num_envs=2,
        horizon=8,
        ppo=PPOConfig(num_steps=16, batch_size=16, num_epochs=1),
        actor_critic=ActorCriticConfig(num_steps=4, num_epochs=1),
        eval_episodes=2,
        dream_eval_episodes=3,
        max_episode_steps=6,
        output=output,
        device="cpu",
    )
    return dataclasses.replace(config, **changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"world_model": "nowhere"}, CheckpointError, "no world model 'nowhere'"),
        ({"env": "memory-maze-6x6"}, ValueError, "unknown environment 'memory-maze-6x6'"),
        ({"contexts": "no/where-v0"}, FileNotFoundError, "no dataset 'no/where-v0'"),
        ({"dataset": "no/where-v0", "rounds": 2}, FileNotFoundError, "no dataset 'no/where-v0'"),
        ({"clone": "no/where-v0", "agent": "actor-critic"}, FileNotFoundError, "no dataset"),
        ({"agent": "walker"}, ValueError, "no memory of places to walk by: choose --agent behav"),
        (
            {"agent": "planner", "planner": PlannerConfig(bootstrap="map")},
            ValueError,
            "draws no map to plan by",
        ),
    ],
)
def test_a_mistake_takes_no_run_directory(
    checkpoint: Path, tmp_path: Path, changes: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        dream_train.main(make_config(checkpoint, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("agent", ["ppo", "actor-critic"])
def test_curves_tell_returns_of_dreams_that_end_by_themselves(tmp_path: Path, agent: Any) -> None:
    doomed = tiny_model()
    with torch.no_grad():
        doomed.termination_head[-1].bias.fill_(50)  # type: ignore[union-attr, operator]
    save(doomed, tmp_path / "model", contexts=tiny_contexts())
    options = {"obs": "features", "judge": False, "total_timesteps": 128}
    dream_train.main(make_config(tmp_path / "model", tmp_path / "run", agent=agent, **options))
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    first = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert first["dream/episodic_length"] == 1
    own = first["dream/shaped_return" if agent == "ppo" else "actor_critic/reward_per_step"]
    assert first["dream/episodic_return"] == pytest.approx(own, rel=1e-3)


@pytest.mark.parametrize(
    ("agent", "obs"),
    [
        ("ppo", "pixels"),
        ("recurrent-ppo", "pixels"),
        ("ppo", "features"),
        ("recurrent-ppo", "features"),
        ("actor-critic", "features"),
    ],
)
def test_a_policy_is_trained_judged_and_left_ready_to_use(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    agent: Any,
    obs: Any,
) -> None:
    config = make_config(checkpoint, tmp_path / "run", agent=agent, obs=obs)
    results = dream_train.main(config)

    table = capsys.readouterr().out
    assert "trained in the dream, round 1" in table and "95 % interval" in table
    assert json.loads((tmp_path / "run/results.json").read_text()).keys() == results.keys()
    evaluations = results["evaluations"]
    names = {"random", "data", "random in dream", "round 1 in dream", "round 1"}
    assert set(evaluations) == names | ({"start"} if config.improves_behaviour else set())
    for name, evaluation in evaluations.items():
        in_dream = "dream" in name
        assert evaluation["lengths"] == ([8] * 3 if in_dream else [6] * 2)
        assert min(evaluation["seeds"]) == playing.FIRST_EVALUATION_SEED
        low, high = evaluation["interval"]
        assert low <= evaluation["mean_return"] <= high
        video = tmp_path / "run/videos" / f"{name.replace(' ', '-')}.mp4"
        assert video.stat().st_size > 0

    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"dream/episodic_return", "real/return", "dream/return"} <= set(tags["scalars"])
    assert {"round 1", "round 1 in dream"} <= set(tags["images"])

    judged = evaluate.main(
        evaluate.EvaluateConfig(
            policy=str(config.policy_path),
            env="memory-maze-5x5",
            num_episodes=2,
            num_workers=0,
            max_episode_steps=4,
            output=tmp_path / "evaluation.json",
            video=tmp_path / "episode.gif",
        )
    )
    assert judged["results"]["lengths"] == [4, 4]
    dreamed = evaluate.main(
        evaluate.EvaluateConfig(
            policy=str(config.policy_path),
            world_model=str(checkpoint),
            num_episodes=3,
            horizon=8,
        )
    )
    assert dreamed["results"]["lengths"] == [8] * 3
    assert (tmp_path / "episode.gif").read_bytes()[:3] == b"GIF"
    assert json.loads((tmp_path / "evaluation.json").read_text())["config"]["num_episodes"] == 2


@pytest.mark.parametrize("agent", ["planner", "behaviour"])
def test_agents_without_training_are_judged(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], agent: Any
) -> None:
    planner = PlannerConfig(horizon=2, num_candidates=2)
    config = make_config(checkpoint, tmp_path / "run", agent=agent, planner=planner)
    evaluations = dream_train.main(config)["evaluations"]
    in_dream = {"round 1 in dream"} if agent == "behaviour" else set()
    assert set(evaluations) == {"random", "data", "random in dream", "round 1"} | in_dream
    assert f"{agent}, round 1" in capsys.readouterr().out
    assert not list((tmp_path / "run").glob("policy.*"))
    assert dream_train.main(config)["evaluations"] == evaluations


def test_the_walker_walks_and_behaviour_does_not(tmp_path: Path) -> None:
    places = PlacesConfig(slots=4)
    model = tiny_model(pose=PoseConfig(), odometry=OdometryConfig(hidden=16), places=places)
    features = torch.randn(4, model.config.num_features)
    said = {}
    for agent, walking in (("walker", True), ("behaviour", False)):
        config = make_config(tmp_path, tmp_path / "run", agent=agent)
        inner = dream_train.own_behaviour(config, model).policy
        assert isinstance(inner, ActorCriticPolicy)
        said[agent] = inner.agent.logits(features)
        expected = ActorCritic.from_behaviour(model, walking=walking).logits(features)
        torch.testing.assert_close(said[agent], expected)
        with pytest.raises(ValueError, match=f"no-walking changes nothing for {agent}"):
            dataclasses.replace(config, walking=False)
    assert not torch.allclose(said["walker"], said["behaviour"])


@pytest.mark.slow
def test_rounds_without_training_are_played_by_the_model_itself(
    checkpoint: Path, tmp_path: Path
) -> None:
    config = make_config(checkpoint, tmp_path / "run", agent="behaviour", rounds=3, judge=False)
    config = dataclasses.replace(config, world_model_steps=2, num_contexts=3, context_length=5)
    with pytest.warns(UserWarning, match="learns from 2 collected episodes alone"):
        dream_train.main(dataclasses.replace(config, collect_episodes=2))
    metadata = json.loads(
        (tmp_path / "run/round-3/world_model/checkpoint/metadata.json").read_text()
    )
    learned = metadata["learned_from"]
    assert sum("collected-v0" in name for name in learned) == 2, learned  # of both rounds


def test_rounds_collect_learn_and_go_on(checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(checkpoint, tmp_path / "run", obs="features", rounds=2, collect_episodes=2)
    config = dataclasses.replace(config, world_model_steps=2, num_contexts=3, context_length=9)
    results = dream_train.main(config)
    assert {"round 1", "round 2", "round 2 in dream"} <= results["evaluations"].keys()
    collected = EpisodeDataset(tmp_path / "run/round-2/datasets/collected-v0")
    assert len(collected) == 2
    seeds = [episode.metadata["seed"] for episode in collected]
    assert seeds == [502_000, 502_001]
    improved = load(tmp_path / "run/round-2/world_model/checkpoint")
    before = load(checkpoint)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(improved.parameters(), before.parameters(), strict=True)
    )
    note = json.loads((tmp_path / "run/policy.json").read_text())
    assert "round-2" in note["world_model"]
    # Nothing is done twice, although the policy has changed since it collected.
    again = dream_train.main(config)
    assert again["evaluations"] == results["evaluations"]
    further = dream_train.main(dataclasses.replace(config, rounds=3))
    assert {"round 3", *results["evaluations"]} <= further["evaluations"].keys()


def test_later_rounds_dream_of_what_they_were_given_and_start_anywhere_without_rewards(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(
        checkpoint,
        tmp_path / "run",
        rounds=2,
        collect_episodes=3,
        world_model_steps=2,
        num_contexts=3,
        context_length=4,
        frames_to_reward=2,
        judge=False,
    )
    given: list[Any] = []
    open_contexts = dream_train.open_contexts

    def spy(model: Any, contexts: Any, **options: Any) -> Any:
        given.append((contexts, options.get("frames_to_reward")))
        return open_contexts(model, contexts, **options)

    monkeypatch.setattr(dream_train, "open_contexts", spy)
    with pytest.warns(UserWarning, match=r"followed by a reward .*: dreams of round 2 start any"):
        dream_train.main(config)
    assert [within for _, within in given] == [2, 2, None]
    held_out = json.loads((tmp_path / "run/round-2/world_model/held_out.json").read_text())
    collected = EpisodeDataset(tmp_path / "run/round-2/datasets/collected-v0").names
    assert len(held_out) == 1 and given[-1][0].names == [n for n in collected if n not in held_out]


def test_policies_are_judged_in_mazes_that_nothing_was_trained_on() -> None:
    assert playing.FIRST_EVALUATION_SEED == 2_000_000  # of all results
    assert FIRST_COLLECTION_SEED >= 500_000  # the shipped model's training ends before 10,000
    collected = [DreamTrainConfig(seed=s, rounds=9).collection_seed(9) for s in (0, MOST_SEEDS)]
    assert max(collected) + MOST_EPISODES <= 1_000_000  # validation begins there
    assert model_free.MODEL_FREE_SEED >= 3_000_000


@pytest.mark.parametrize(("agent", "obs"), [("ppo", "pixels"), ("actor-critic", "features")])
def test_a_killed_run_goes_on_from_what_was_saved_on_the_way(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: Any, obs: Any
) -> None:
    config = make_config(checkpoint, tmp_path / "run", agent=agent, obs=obs, judge=False)
    update = TrainingProgress.update

    def die(self: TrainingProgress, timesteps: int, status: str) -> None:
        update(self, timesteps, status)
        if timesteps >= 40:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingProgress, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(TrainingProgress, "__exit__", lambda *_: None)  # nothing is saved then
    monkeypatch.setattr(TrainingProgress, "update", die)
    with pytest.raises(KeyboardInterrupt):
        dream_train.main(config)
    monkeypatch.undo()
    kept = json.loads((tmp_path / "run/progress.json").read_text())["round_timesteps"]
    assert kept == 32  # as many as were learned from: a rollout of PPO, or four updates
    steps: list[int] = []
    monkeypatch.setattr(
        TrainingProgress, "update", lambda self, n, s: (steps.append(n), update(self, n, s))[0]
    )
    results = dream_train.main(config)
    assert kept < steps[0] <= kept + 8  # the next step, or the next update
    assert results["timesteps"] >= 64


def test_an_interrupted_run_goes_on_where_it_was(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(checkpoint, tmp_path / "run")
    original = AgentProgress._on_step

    def interrupt(self: AgentProgress) -> bool:
        if self.num_timesteps > 40:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(AgentProgress, "_on_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        dream_train.main(config)
    monkeypatch.undo()
    progress = json.loads((tmp_path / "run/progress.json").read_text())
    # One rollout; the second was cut off, and is not learned from.
    assert progress["round_timesteps"] == 32 and "random" in progress["evaluations"]
    assert PPO.load(tmp_path / "run/policy.zip").num_timesteps == 32
    assert (tmp_path / "run/policy.zip").is_file()

    played: list[str] = []
    run_episodes = dream_judging.run_episodes

    def count(*args: Any, description: str, **kwargs: Any) -> Any:
        played.append(description)
        return run_episodes(*args, description=description, **kwargs)

    monkeypatch.setattr(dream_judging, "run_episodes", count)
    results = dream_train.main(config)
    assert len(played) == 2 and all("trained" in p for p in played)
    assert dream_train.main(config)["evaluations"] == results["evaluations"]
    assert len(played) == 2, "a finished run is not repeated"


def test_time_limits_training_where_steps_do_not(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The time is up after 40 steps.
    monkeypatch.setattr(TrainingProgress, "out_of_time", property(lambda self: self.timesteps > 39))
    config = make_config(checkpoint, tmp_path / "run", total_timesteps=None, minutes=0.02)
    dream_train.main(config)
    steps = json.loads((tmp_path / "run/progress.json").read_text())["last_round"]["timesteps"]
    agent = PPO.load(tmp_path / "run/policy.zip")
    # Rollouts are of 32 steps; that at the end of the time is cut off, and not learned from.
    assert agent.num_timesteps == steps == 32
    assert agent._n_updates == 1


def test_another_config_is_not_mixed_into_a_run(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    config = make_config(checkpoint, tmp_path / "run")
    dream_train.RunDirectory(config.run_directory, config)
    with pytest.raises(ValueError, match=r"horizon: 8 there, 9 now\); choose another --output"):
        dream_train.main(dataclasses.replace(config, horizon=9))


@pytest.mark.parametrize(
    ("field", "value"), [("rounds", 0), ("num_envs", 0), ("total_timesteps", 0), ("minutes", 0.0)]
)
def test_wrong_settings_are_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} must be"):
        DreamTrainConfig(**{field: value})


@pytest.mark.parametrize(
    "changes",
    [
        *({"temperature": 0.3}, {"deterministic": True}, {"planner": PlannerConfig(horizon=3)}),
        {"policy": "planner", "deterministic": True},
        {"world_model": "memory-maze-9x9", "max_episode_steps": 9},
        *({"horizon": 9}, {"policy": "planner", "trace_every": 9}),
        {"world_model": "memory-maze-9x9", "num_workers": 9},
    ],
)
def test_settings_that_change_nothing_of_what_is_judged_are_refused(changes: Any) -> None:
    name = list(changes)[-1]
    with pytest.raises(ValueError, match=f"{name} changes nothing for .*leave it out"):
        evaluate.main(evaluate.EvaluateConfig(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 2, "collect_episodes": 1}, "collect_episodes must lie between 2 and 1000"),
        ({"rounds": 2, "collect_episodes": 1001}, "collect_episodes must lie between 2 and 1000"),
        ({"rounds": 2, "seed": 50}, "seed can be at most 49"),
        ({"rounds": 2, "device": "cuda:1"}, "which with CUDA_VISIBLE_DEVICES"),
        ({"rounds": 10}, "rounds can be at most 9"),
        ({"cloning": CloningConfig(num_steps=3)}, "give that"),
        ({"agent": "planner", "obs": "pixels"}, "planner needs no --obs pixels"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"num_contexts": 9}, "num_contexts is of stretches of a dataset: give --contexts"),
        ({"rounds": 2, "num_workers": 0}, "num_workers must be at least 0, and 1 to collect"),
    ],
)
def test_settings_that_lead_nowhere_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DreamTrainConfig(**changes)


def test_judging_on_an_env_that_was_not_learned_is_told(tmp_path: Path) -> None:
    save(tiny_model(), tmp_path / "model", metadata={"env": "memory-maze-7x7"})
    with pytest.warns(UserWarning, match=r"learned from memory-maze-7x7, .* on memory-maze-5x5"):
        dream_judging.check_env("memory-maze-5x5", str(tmp_path / "model"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dream_judging.check_env("memory-maze-7x7", str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("changes", "unused"),
    [
        ({"ppo": PPOConfig(num_epochs=9)}, ["ppo"]),
        ({"agent": "ppo", "actor_critic": ActorCriticConfig(prior_coef=0.9)}, ["actor_critic"]),
        ({"agent": "ppo", "obs": "pixels", "behaviour_temperature": 1}, ["behaviour_temperature"]),
        ({"agent": "planner", "minutes": 9.0}, ["minutes"]),
        ({"minutes": 9.0, "behaviour_temperature": 1.0}, []),
    ],
)
def test_what_an_agent_does_not_use_is_known(changes: Any, unused: list[str]) -> None:
    assert given_for_nothing(DreamTrainConfig(**changes)) == unused


def test_longer_training_of_a_round_before_the_last_is_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    config = make_config(checkpoint, tmp_path / "run", judge=False)
    dream_train.main(config)
    run = RunDirectory(config.run_directory, config)
    run.keep(world_models=run.get("world_models", {}) | {"round 2": "another"})
    with pytest.raises(ValueError, match=r"round 2 of .* begun .*: go on with --rounds 2"):
        dream_train.main(dataclasses.replace(config, total_timesteps=128))


def test_a_random_policy_is_shown_beside_those_of_its_round(tmp_path: Path) -> None:
    config = DreamTrainConfig(output=tmp_path / "run", rounds=2)
    run = RunDirectory(config.run_directory, config)
    one = {"where": "dream", "mean_return": 1.0}
    run.keep(evaluations={"random in dream": one, "round 1 in dream": one | {"mean_return": 2.0}})
    log_returns(run, 1)
    later = {random_in_dream(2): one | {"mean_return": 3.0}}
    run.keep(evaluations=run.evaluations | later | {"round 2 in dream": one | {"mean_return": 4.0}})
    log_returns(run, 2)
    run.writer.close()
    for name, values in (("return_random", [1, 3]), ("return", [2, 4])):
        assert [value for _, value in read_curve(run.path, name)] == values


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([1001] * 20, (128, 128)),
        ([101] * 10, (101, 101)),
        ([60] * 5 + [501] * 15, (60, 128)),  # a quarter succeeds early
        ([501] * 15 + [3], (128, 128)),  # one far shorter than the others is left out
        ([5, 6, 7, 8, 9, 10, 11, 12], (5, 12)),
        ([2, 2], (2, 2)),
    ],
)
def test_episodes_that_end_early_are_learned_from(
    lengths: list[int], expected: tuple[int, int]
) -> None:
    assert improve_world_model.segment_lengths(np.array(lengths)) == expected


def test_every_seed_and_round_collects_in_mazes_of_its_own() -> None:
    seeds = [
        DreamTrainConfig(seed=seed, rounds=9).collection_seed(round_index)
        for seed in range(50)
        for round_index in range(2, 10)
    ]
    gaps = np.diff(sorted(seeds))
    assert gaps.min() >= 1000 and min(seeds) > 500_000 and max(seeds) <= 999_000


def test_a_run_can_be_given_what_later_rounds_need_until_they_begin(tmp_path: Path) -> None:
    assert {"dataset", "num_contexts"} <= set(not_used_yet(tmp_path))
    assert "num_contexts" not in not_used_yet(tmp_path, "mine/episodes-v0")
    for name, free in (("round 1", True), ("round 2", False)):
        models = {"round 1": "a", name: "b"}
        (tmp_path / "progress.json").write_text(json.dumps({"world_models": models}))
        assert ("world_model_steps" in not_used_yet(tmp_path)) == free


def test_results_tell_what_made_them(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(checkpoint, tmp_path / "run", agent="actor-critic", obs="features")
    first = dream_train.main(config)
    assert first["timesteps"] == 64 and first["config"]["total_timesteps"] == 64
    monkeypatch.setattr(run_directory, "provenance", lambda: {"commit": "later"})
    dream_train.main(dataclasses.replace(config, total_timesteps=32))  # nothing is left to do
    file = tmp_path / "run/results.json"
    assert json.loads(file.read_text()) == first and first["commit"] != "later"
    longer = dream_train.main(dataclasses.replace(config, total_timesteps=96))
    assert longer["commit"] == "later" and longer["timesteps"] == 96
    judged = longer["evaluations"]
    assert judged["round 1"]["commit"] == "later" != judged["random"]["commit"]


@pytest.mark.parametrize(("agent", "obs"), [("ppo", "pixels"), ("actor-critic", "features")])
def test_an_error_leaves_the_policy_as_it_was_saved(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: Any, obs: Any
) -> None:
    config = make_config(checkpoint, tmp_path / "run", agent=agent, obs=obs, judge=False)
    dream_train.main(config)
    policy, original = config.policy_path.read_bytes(), TrainingProgress.update
    longer = dataclasses.replace(config, total_timesteps=256)
    for error, kept in ((ValueError, True), (KeyboardInterrupt, False)):

        def stop(self: TrainingProgress, *rest: Any, error: type[BaseException] = error) -> None:
            original(self, *rest)
            if self.timesteps > 112:
                raise error

        monkeypatch.setattr(TrainingProgress, "update", stop)
        with pytest.raises(error):
            dream_train.main(longer)
        assert (config.policy_path.read_bytes() == policy) == kept, error


def test_a_policy_is_judged_in_the_dream(checkpoint: Path) -> None:
    report = evaluate.main(
        evaluate.EvaluateConfig(world_model=str(checkpoint), num_episodes=5, horizon=7)
    )
    assert report["results"]["lengths"] == [7] * 5


def test_an_interrupted_actor_critic_goes_on_where_it_was(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(checkpoint, tmp_path / "run", agent="actor-critic", obs="features")
    original, calls = ImaginationTrainer.update, []

    def interrupt(trainer: ImaginationTrainer) -> dict[str, float]:
        calls.append(trainer.num_dream_steps)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(trainer)

    monkeypatch.setattr(ImaginationTrainer, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        dream_train.main(config)
    assert calls == [0, 8, 16, 24]
    dream_train.main(config)
    assert calls[4:] == [24, 32, 40, 48, 56], "64 steps in all, in updates of 2 dreams x 4 steps"
    with pytest.raises(ValueError, match="obs features"):
        make_config(checkpoint, tmp_path / "run", agent="actor-critic", obs="pixels")


def test_an_actor_critic_learns_from_episodes_first_and_once(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = str(write_dataset(tmp_path, size=64))
    config = dataclasses.replace(
        make_config(checkpoint, tmp_path / "run", agent="actor-critic", obs="features"),
        clone=dataset,
        cloning=CloningConfig(num_episodes=3, num_steps=4, batch_size=8),
        judge=False,
        total_timesteps=8,
    )
    dream_train.main(config)
    assert "cloned 57 actions" in capsys.readouterr().out  # 3 episodes of 20 frames
    trained = load_file(config.policy_path)
    behaviour = ActorCritic.from_behaviour(load(checkpoint)).state_dict()
    assert not torch.equal(trained["policy_head.2.weight"], behaviour["policy_head.2.weight"])
    dream_train.main(dataclasses.replace(config, total_timesteps=16))
    assert "cloned" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="clone is for the actor-critic, not for ppo"):
        make_config(checkpoint, tmp_path / "run", clone=dataset)


def judge_in_dream_and_maze(
    checkpoint: Path, traces: Path | None = None, **options: Any
) -> evaluate.EvaluateConfig:
    """Two episodes of three steps in a model's dream, and in a real maze; returns the former."""
    config = evaluate.EvaluateConfig(num_episodes=2, **options)
    dreamed = dataclasses.replace(config, world_model=str(checkpoint), horizon=3)
    if traces is not None:
        dreamed = dataclasses.replace(dreamed, traces=traces / "dream")
    assert evaluate.main(dreamed)["results"]["lengths"] == [3, 3]
    real = dataclasses.replace(
        config,
        env="memory-maze-5x5",
        policy_model=str(checkpoint),
        num_workers=0,
        max_episode_steps=3,
        traces=None if traces is None else traces / "maze",
    )
    assert evaluate.main(real)["results"]["lengths"] == [3, 3]
    return dreamed


def test_a_planner_is_judged_by_name(checkpoint: Path, tmp_path: Path) -> None:
    planner = PlannerConfig(method="rollout", horizon=2, num_candidates=6)
    dreamed = judge_in_dream_and_maze(
        checkpoint, policy="planner", planner=planner, traces=tmp_path, trace_every=2
    )
    # Two episodes of three steps: side by side in the dream, one after the other in the maze.
    for where, steps in (("dream", (0, 2)), ("maze", (0, 2, 4))):
        drawn = sorted(file.name for file in (tmp_path / where).iterdir())
        assert drawn == [f"{step:05d}.png" for step in steps]
    with pytest.warns(UserWarning, match="a planner sees the last frame alone"):
        evaluate.main(dataclasses.replace(dreamed, num_episodes=1))
    with pytest.raises(ValueError, match=r"traces changes nothing for 'random' .*'planner'"):
        evaluate.main(dataclasses.replace(dreamed, policy="random"))


def test_a_planner_plans_with_a_saved_policy(checkpoint: Path, tmp_path: Path) -> None:
    model, path = tiny_model(), tmp_path / "policy.safetensors"
    agent = ActorCritic.from_behaviour(model, temperature=0.1)
    agent.save(path, world_model=str(checkpoint))
    config = evaluate.EvaluateConfig(policy="planner", planner_policy=path)
    planner = evaluate.policy_of_model(config)
    assert isinstance(planner, Planner) and planner.search.policy is not None
    features = torch.randn(4, model.config.num_features)
    torch.testing.assert_close(planner.search.policy(features), agent.logits(features))
    # In another model's dream, too: it observes frames.
    dreamed = dataclasses.replace(
        config,
        world_model=str(checkpoint),
        planner=PlannerConfig(horizon=2, num_candidates=2),
        num_episodes=2,
        horizon=3,
    )
    assert evaluate.main(dreamed)["results"]["lengths"] == [3, 3]
    before = path.read_bytes(), path.with_suffix(".json").read_bytes()
    for output in (path, path.with_suffix(".json")):
        with pytest.raises(ValueError, match=r"belongs to the policy .*: choose another output"):
            evaluate.main(dataclasses.replace(dreamed, output=output))
    assert before == (path.read_bytes(), path.with_suffix(".json").read_bytes())
    # One on frames has no note: what is called so are earlier results of it.
    on_frames, results = tmp_path / "on_frames.zip", tmp_path / "on_frames.json"
    on_frames.touch()
    results.write_text('{"results": {}}')
    evaluate.check_output(evaluate.EvaluateConfig(policy=str(on_frames), output=results))
    for refused, message in (
        ({"temperature": 0.5}, "temperature changes nothing for 'planner' here"),
        ({"policy": "random"}, "planner_policy changes nothing for 'random'"),
        ({"planner": PlannerConfig(walking=False)}, "planner.walking is not taken from there"),
        ({"planner": PlannerConfig(method="cem")}, "'cem' draws no plans from a policy"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate.main(dataclasses.replace(config, **refused))


def test_a_models_behaviour_is_judged_by_name(checkpoint: Path) -> None:
    dreamed = judge_in_dream_and_maze(checkpoint, policy="behaviour", temperature=0.5)
    with pytest.raises(ValueError, match="no memory of places"):
        evaluate.main(dataclasses.replace(dreamed, policy="walker"))
    with pytest.raises(ValueError, match="the behaviour of the dreaming model"):
        evaluate.main(dataclasses.replace(dreamed, policy_model=str(checkpoint)))
    # Spaces of another env: the same frames, other actions.
    elsewhere = evaluate.EvaluateConfig(
        policy="behaviour",
        policy_model=str(checkpoint),
        env="minerl-navigate-stand-in",
        num_workers=0,
        num_episodes=1,
        max_episode_steps=2,
    )
    with pytest.raises(ValueError, match=r"6 actions; minerl-navigate-stand-in has .*Discrete"):
        evaluate.main(elsewhere)
    with pytest.raises(
        ValueError,
        match=r"contexts changes nothing .*--world-model",
    ):
        evaluate.main(dataclasses.replace(elsewhere, contexts="my-env/explorer-v0"))
    with pytest.raises(ValueError, match=r"policy_model changes nothing .*planner, walker"):
        evaluate.main(dataclasses.replace(elsewhere, policy="random"))


def test_unknown_policies_and_video_formats_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="unknown policy 'clever'"):
        evaluate.main(evaluate.EvaluateConfig(policy="clever"))
    with pytest.raises(FileNotFoundError, match=r"there is no saved policy clever\.zip"):
        evaluate.main(evaluate.EvaluateConfig(policy="clever.zip"))
    with pytest.raises(ValueError, match=r"no world model of memory-maze-7x7 ships for walker"):
        evaluate.main(evaluate.EvaluateConfig(policy="walker", env="memory-maze-7x7"))
    with pytest.raises(ValueError, match="first_seed must be at least 0, got -1"):
        evaluate.main(evaluate.EvaluateConfig(first_seed=-1))
    with pytest.raises(ValueError, match="max_episode_steps must be at least 1, got -1"):
        evaluate.main(evaluate.EvaluateConfig(max_episode_steps=-1))
    with pytest.raises(ValueError, match=r"output is a directory, .*: name a JSON file in it"):
        evaluate.main(evaluate.EvaluateConfig(output=tmp_path))
    with pytest.raises(ValueError, match=r"'film\.avi'"):
        evaluate.main(evaluate.EvaluateConfig(video=Path("film.avi")))


def test_benchmark_measures_a_state_that_does_not_grow(tmp_path: Path) -> None:
    config = benchmark_dream.BenchmarkConfig(steps=(2, 5, 40), output=tmp_path / "cost.json")
    report = benchmark_dream.main(config, tiny_model(), tiny_contexts())
    assert [row["step"] for row in report["results"]] == [2, 5, 40]
    assert len({row["state_bytes_per_env"] for row in report["results"]}) == 1
    assert (tmp_path / "cost.json").is_file()


def test_benchmark_of_speed_measures_every_part(checkpoint: Path, tmp_path: Path) -> None:
    AcceleratorState._reset_state(True)
    with pytest.raises(ValueError, match=r"device is 'cuda:1': where training is timed"):
        benchmark_speed.SpeedConfig(device="cuda:1")
    config = benchmark_speed.SpeedConfig(
        world_model=str(checkpoint),
        num_envs=(1, 2),
        num_denoising_steps=(1,),
        steps=2,
        real_steps=3,
        training_length=4,
        agent_envs=2,
        output=tmp_path,
    )
    results = benchmark_speed.main(config)
    trained = results["actor_critic"]
    rates = [trained[f"{name}steps_per_second"] for name in ("", "dream_")]
    assert min(rates) > 0 and trained["share_of_dreaming"] == pytest.approx(rates[0] / rates[1])
    assert [(row["num_envs"], row["obs"]) for row in results["dream"]] == [
        (1, "pixels"),
        (1, "features"),
        (2, "pixels"),
        (2, "features"),
    ]
    parts = results["parts"]
    timed = ("network_pass", "commit", "decode", "heads", "step")
    timed += ("snapshot", "restore", "fork_two", "gather")
    assert min(parts[name] for name in timed) > 0
    inner = sum(parts[name] for name in ("network_pass", "commit", "decode", "heads"))
    assert parts["step"] == pytest.approx(inner + parts["env_overhead"])
    assert min(results["real"].values()) > 0 and results["training"]["frames_per_second"] > 0
    assert (tmp_path / "dream_speed.png").is_file() and (tmp_path / "results.json").is_file()


def test_same_seed_same_results(tmp_path: Path) -> None:
    """All of a run: a map to walk by, training, and the dreams and real episodes to judge it by."""
    occupancy = OccupancyConfig(side=12, reach=3.0, width=32)
    places = PlacesConfig(slots=4, width=32, occupancy=occupancy)
    model = tiny_model(pose=PoseConfig(), odometry=OdometryConfig(hidden=16), places=places)
    save(model, tmp_path / "model", contexts=tiny_contexts())
    first, again, other = (
        dream_train.main(
            make_config(tmp_path / "model", tmp_path / name, agent="actor-critic", seed=seed)
        )["evaluations"]
        for name, seed in (("first", 3), ("again", 3), ("other", 4))
    )
    for name, evaluation in first.items():
        for key in ("seeds", "returns", "lengths"):
            assert again[name][key] == evaluation[key], name
    dreams = "round 1 in dream"
    assert len(set(first[dreams]["returns"])) > 1
    assert other[dreams]["returns"] != first[dreams]["returns"]
    # What was seen in the real env tells what was done there.
    videos = [iio.imread(tmp_path / name / "videos/round-1.mp4") for name in ("first", "again")]
    np.testing.assert_array_equal(*videos)
    other_video = iio.imread(tmp_path / "other/videos/round-1.mp4")
    assert not np.array_equal(other_video, videos[0])


@pytest.mark.parametrize(("agent", "obs"), [("actor-critic", "features"), ("ppo", "features")])
def test_same_seed_same_policy(checkpoint: Path, tmp_path: Path, agent: Any, obs: Any) -> None:
    def weights(name: str, seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(len(name))  # what ran before in the process does not matter
        config = make_config(checkpoint, tmp_path / name, agent=agent, obs=obs)
        dream_train.main(dataclasses.replace(config, seed=seed, judge=False))
        if agent == "actor-critic":
            return load_file(tmp_path / name / "policy.safetensors")
        return PPO.load(tmp_path / name / "policy.zip").policy.state_dict()

    first, again, other = weights("first", 3), weights("once-more", 3), weights("other", 4)
    assert all(torch.equal(t, again[key]) for key, t in first.items())
    assert any(not torch.equal(t, other[key]) for key, t in first.items())


def test_dreams_begin_from_seeds_of_their_own_and_others_after_a_break(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SB3 seeds envs with the agent's seed, whenever one is made or loaded."""
    seeds: list[int | None] = []
    reset = BatchedVecEnv.reset

    def spy(self: BatchedVecEnv) -> Any:
        seeds.append(self._seeds[0])
        return reset(self)

    monkeypatch.setattr(BatchedVecEnv, "reset", spy)
    config = make_config(checkpoint, tmp_path / "run", judge=False)
    dream_train.main(config)
    dream_train.main(dataclasses.replace(config, total_timesteps=128))
    assert seeds == [101_000_000, 101_000_064]


def test_a_finished_run_can_be_made_longer(checkpoint: Path, tmp_path: Path) -> None:
    for agent, obs in (("ppo", "pixels"), ("actor-critic", "features")):
        config = make_config(checkpoint, tmp_path / agent, agent=agent, obs=obs)
        short = dream_train.main(config)
        policy = config.policy_path.read_bytes()
        longer = dream_train.main(dataclasses.replace(config, total_timesteps=96))
        assert config.policy_path.read_bytes() != policy
        progress = json.loads((tmp_path / agent / "progress.json").read_text())
        assert progress["finished_rounds"] == 1 and progress["finished_timesteps"] == 96
        assert longer["evaluations"].keys() == short["evaluations"].keys()
        assert longer["evaluations"]["random"] == short["evaluations"]["random"]
        policy = config.policy_path.read_bytes()
        dream_train.main(config)  # it is long enough
        assert config.policy_path.read_bytes() == policy


def test_settings_of_other_agents_do_not_make_another_run(checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(checkpoint, tmp_path / "run", agent="actor-critic", obs="features")
    config = dataclasses.replace(config, judge=False)
    dream_train.main(config)
    policy = config.policy_path.read_bytes()
    kept = json.loads((tmp_path / "run/config.json").read_text())
    del kept["way"]["min_reward"]  # as if it had been written before there were such settings
    del kept["walking"]
    (tmp_path / "run/config.json").write_text(json.dumps(kept))
    dream_train.main(dataclasses.replace(config, ppo=PPOConfig(num_epochs=9)))
    assert config.policy_path.read_bytes() == policy
    (tmp_path / "run/config.json").write_text(json.dumps(kept))
    with pytest.raises(ValueError, match=r"another config \(way: "):  # then it was at its default
        dream_train.main(dataclasses.replace(config, way=WayConfig(min_reward=0.9)))
    with pytest.raises(ValueError, match=r"another config \(way: "):
        dream_train.main(dataclasses.replace(config, way=WayConfig(progress=9.0)))
    with pytest.raises(ValueError, match=r"another config \(walking: True there, False now"):
        dream_train.main(dataclasses.replace(config, walking=False))
    with pytest.raises(ValueError, match=r"another config \(actor_critic: "):
        other = ActorCriticConfig(num_steps=4, num_epochs=9)
        dream_train.main(dataclasses.replace(config, actor_critic=other))


@pytest.mark.parametrize("agent", ["actor-critic", "ppo"])
def test_a_world_model_that_is_replaced_meanwhile_is_not_taken_for_the_policys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: Any
) -> None:
    model = tmp_path / "model"
    save(tiny_model(), model, contexts=tiny_contexts())
    learned_in = fingerprint(model)
    update = TrainingProgress.update

    def replace(self: TrainingProgress, *shown: Any) -> None:
        save(tiny_model(seed=5), model, contexts=tiny_contexts())
        update(self, *shown)

    monkeypatch.setattr(TrainingProgress, "update", replace)
    config = make_config(model, tmp_path / "run", agent=agent, obs="features", total_timesteps=32)
    with pytest.raises(ValueError, match=r"acts on the features of another .*model than there is"):
        dream_train.main(config)
    assert fingerprint(model) != learned_in
    note = json.loads(config.policy_path.with_suffix(".json").read_text())
    assert note["world_model_sha256"] == learned_in


def test_how_many_dreams_can_be_changed_until_they_are_trained_in(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(checkpoint, tmp_path / "run", judge=False)
    with monkeypatch.context() as patched:
        patched.setattr(dream_train, "load", lambda *_, **__: 1 / 0)  # memory does not suffice
        with pytest.raises(ZeroDivisionError):
            dream_train.main(config)
    fewer = dataclasses.replace(config, num_envs=1, num_starts=2)
    dream_train.main(fewer)
    assert json.loads((tmp_path / "run/config.json").read_text())["num_envs"] == 1
    with pytest.raises(ValueError, match=r"num_envs: 1 there, 2 now, num_starts: 2 there"):
        dream_train.main(config)


def test_what_was_logged_and_not_saved_is_dropped_from_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(1_000_000_000)  # files of logs are in the order of seconds
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    config = DreamTrainConfig(output=tmp_path / "run")
    for saved, steps in ((10, (10, 20)), (20, (20, 30)), (40, (30, 40))):
        run = RunDirectory(config.run_directory, config)  # it goes on from what was saved last
        for step in steps:
            run.writer.add_scalar("dream/episodic_return", saved, step)
        run.keep(round_timesteps=saved)
        run.writer.close()
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    points = [(e.step, e.value) for e in events.Scalars("dream/episodic_return")]
    assert points == [(10, 10), (20, 20), (30, 40), (40, 40)]


def test_a_run_that_was_not_judged_can_be_judged_later(checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(checkpoint, tmp_path / "run")
    assert not dream_train.main(dataclasses.replace(config, judge=False))["evaluations"]
    policy = config.policy_path.read_bytes()
    results = dream_train.main(config)
    assert {"random", "round 1", "round 1 in dream"} <= set(results["evaluations"])
    assert config.policy_path.read_bytes() == policy  # it had learned all that it was to


def test_policies_are_judged_in_the_dream_that_they_know(checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(checkpoint, tmp_path / "run", obs="features", judge=False)
    dream_train.main(config)
    judged = evaluate.EvaluateConfig(
        policy=str(config.policy_path), world_model=str(checkpoint), num_episodes=2, horizon=4
    )
    evaluate.main(judged)
    save(tiny_model(seed=9), tmp_path / "other", contexts=tiny_contexts())
    with pytest.raises(ValueError, match=r"acts on the features of .*, not of .*other"):
        evaluate.main(dataclasses.replace(judged, world_model=str(tmp_path / "other")))


def test_updates_that_do_not_fit_the_horizon_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="horizon 16 is not a multiple of the 32 steps"):
        DreamTrainConfig(actor_critic=ActorCriticConfig(num_steps=32))
    with pytest.raises(ValueError, match="behaviour_temperature must be above 0, got 0"):
        DreamTrainConfig(behaviour_temperature=0)


def test_a_world_model_counts_as_improved_when_all_of_it_is(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Collected:
        path = write_dataset(tmp_path / "data", size=64)

    calls: list[Path] = []

    def train(config: TrainConfig) -> None:
        calls.append(config.output)
        (config.output / "checkpoint").mkdir(parents=True, exist_ok=True)
        (config.output / "checkpoint/metadata.json").write_text('{"step": 2}')
        if len(calls) == 1:  # killed before its places are trained
            raise KeyboardInterrupt

    monkeypatch.setattr(improve_world_model.collect, "main", lambda config: Collected)
    monkeypatch.setattr(improve_world_model.train_world_model, "main", train)
    policy = tmp_path / "policy.zip"
    policy.touch()
    options = {"env": "memory-maze-5x5", "policy": policy, "world_model": str(checkpoint)}
    options |= {"output": tmp_path / "round-2", "episodes": 1, "steps": 2, "first_seed": 0}
    with pytest.raises(KeyboardInterrupt):
        improve_world_model.improve_world_model(**options)  # type: ignore[arg-type]
    for _ in range(2):
        improve_world_model.improve_world_model(**options)  # type: ignore[arg-type]
    assert len(calls) == 2
