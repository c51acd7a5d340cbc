"""The agents benchmark from end to end on a tiny model, and its parts."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_features import Spy
from tiny import tiny_contexts, tiny_model, write_dataset
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import envs
from agents.cloning import CloningConfig
from agents.features import FeaturePolicy, ShortMemoryPolicy, load_policy
from agents.imagination import ActorCriticConfig
from agents.on_the_way import WayConfig
from agents.planner import Planner, PlannerConfig
from agents.statistics import bootstrap_interval
from experiments import agents_in_dreams, benchmark_agents
from experiments.actor_critic_training import read_out_dataset
from experiments.agents_config import (
    CLONED,
    NOT_IN_DREAMS,
    BenchmarkAgentsConfig,
    deciding_settings,
)
from experiments.agents_judged import judge_pairs, rank_interval
from experiments.agents_labels import LABELS
from experiments.agents_report import (
    HELD_AGAINST,
    format_gains,
    format_returning,
    gain,
    mean_return,
    ways_to_targets,
    write_report,
)
from experiments.agents_work import check_kept, check_training, read_curve, read_lengths
from experiments.dream_train_config import DreamTrainConfig
from experiments.report import read_runs
from experiments.settings import as_json
from worldsim.checkpoint import CheckpointError, save
from worldsim.occupancy_config import OccupancyConfig
from worldsim.odometry import OdometryConfig
from worldsim.places import NUM_PLACE_FEATURES, PlacesConfig
from worldsim.pose import PoseConfig

COUNTS = ("eval_episodes", "dream_episodes", "short_memory", "planner_episodes", "real_steps")


def make_config(tmp_path: Path) -> BenchmarkAgentsConfig:
    save(tiny_model(), tmp_path / "model", contexts=tiny_contexts())
    return BenchmarkAgentsConfig(
        env="memory-maze-5x5",
        world_model=str(tmp_path / "model"),
        agents=(
            *("random", "behaviour", "actor_critic", "actor_critic_short_memory"),
            *("planner", "planner_actor_critic"),
        ),
        seeds=(0,),
        total_timesteps=64,
        num_envs=2,
        horizon=16,
        eval_episodes=2,
        dream_episodes=3,
        planner_episodes=1,
        planner=PlannerConfig(method="rollout", horizon=2, num_candidates=6),
        num_workers=2,
        max_episode_steps=6,
        output=tmp_path / "results",
        work=tmp_path / "work",
    )


def test_every_agent_is_judged_once_and_a_second_call_adds_only_what_is_missing(
    tmp_path: Path,
) -> None:
    config = make_config(tmp_path)
    table = benchmark_agents.main(config)
    files = {f.stem: f for f in (tmp_path / "results").glob("*.json")}
    assert set(files) == {f"{agent}-seed0" for agent in config.agents}
    result = json.loads(files["actor_critic-seed0"].read_text())
    assert result["real"]["lengths"] == [6, 6] and result["dream"]["lengths"] == [16] * 3
    assert result["real_steps"] == 0 and len(result["curve"]) > 0
    assert result["shaped_curve"] is None  # nothing is paid beside without a map
    assert json.loads(files["planner-seed0"].read_text())["dream"] is None
    planned = json.loads(files["planner_actor_critic-seed0"].read_text())
    assert planned["training_minutes"] == result["training_minutes"] and "curve" not in planned
    assert result["dream_way"] is None  # without a map
    for plot in ("returns.png", "curves.png", "table.md", "videos/random.mp4"):
        assert (tmp_path / "results" / plot).stat().st_size > 0
    assert len(table.split("\n\n")[0].splitlines()) == 2 + len(config.agents)

    planner, _ = benchmark_agents.AgentsBenchmark(config)._make("planner_actor_critic", 0)
    trained = load_policy(tmp_path / "work/actor_critic-seed0/policy.safetensors")
    assert isinstance(planner, Planner) and isinstance(trained, FeaturePolicy)
    features = torch.randn(4, planner.model.config.num_features)
    assert planner.search.policy is not None
    said = planner.search.policy(features)
    torch.testing.assert_close(said, trained.policy.agent.logits(features))

    before = {stem: f.read_bytes() for stem, f in files.items()}
    video = tmp_path / "results/videos/random.mp4"
    shown = video.read_bytes()
    benchmark_agents.main(dataclasses.replace(config, seeds=(1,), agents=("random",)))
    assert video.read_bytes() == shown  # it stays that of the lowest seed
    assert (tmp_path / "results/random-seed1.json").is_file()
    assert {stem: files[stem].read_bytes() for stem in before} == before
    assert read_runs(tmp_path / "results", LABELS)["random"][1]["seed"] == 1

    # Results of other settings are not taken for those of these; what does not matter may differ.
    with pytest.raises(ValueError, match=r"actor_critic-seed0.json was made with temperature 0.6"):
        benchmark_agents.main(dataclasses.replace(config, agents=("actor_critic",), temperature=2))
    benchmark_agents.main(dataclasses.replace(config, minutes=9.0))  # steps are what ends training
    with pytest.raises(ValueError, match=r"random-seed0.json was made with eval_episodes 2, not 3"):
        benchmark_agents.main(dataclasses.replace(config, agents=("random",), eval_episodes=3))
    with pytest.raises(ValueError, match=r"random-seed0.json was made with eval_episodes 2, not 3"):
        other = dataclasses.replace(config, agents=("random",), seeds=(2,), eval_episodes=3)
        benchmark_agents.main(other)  # the report would put all seeds into one row
    benchmark_agents.main(dataclasses.replace(config, agents=("random",), temperature=2))
    # All in one table are judged in the same env and dreams, whichever agents this call is of.
    for changes in ({"max_episode_steps": 7}, {"horizon": 32}):
        with pytest.raises(ValueError, match=f"seed0.json was made with {next(iter(changes))}"):
            benchmark_agents.main(dataclasses.replace(config, agents=("data",), **changes))
    file = files["actor_critic-seed0"]
    kept = json.loads(file.read_text())
    del kept["config"]["way"]["min_reward"]  # as if there had not been such settings
    del kept["config"]["training_horizon"]
    file.write_text(json.dumps(kept))
    for changes in (
        {"training_horizon": 32},
        {"way": WayConfig(min_reward=0.9)},
        {"actor_critic": ActorCriticConfig(num_epochs=9)},
    ):
        with pytest.raises(ValueError, match=f"was made with {next(iter(changes))}"):
            benchmark_agents.main(
                dataclasses.replace(config, agents=("actor_critic",), **changes)  # type: ignore[arg-type]
            )
    benchmark_agents.main(dataclasses.replace(config, agents=("actor_critic",)))

    # Nor is a policy that has trained for longer than these are to.
    shorter = dataclasses.replace(config, agents=("actor_critic",), output=tmp_path / "shorter")
    steps = kept["dreamed_steps"] - config.num_envs * config.actor_critic.num_steps - 1
    with pytest.raises(ValueError, match=r"actor_critic-seed0 holds .* trained for longer"):
        benchmark_agents.main(dataclasses.replace(shorter, total_timesteps=steps))

    # Results and policies of one world model are not taken for those of another.
    save(tiny_model(seed=1), tmp_path / "model", contexts=tiny_contexts())
    with pytest.raises(ValueError, match=r"random-seed0.json was made with another .*model"):
        benchmark_agents.main(config)
    with pytest.raises(ValueError, match=r"seed0.json was made with another .*model"):
        benchmark_agents.main(dataclasses.replace(config, agents=("data",)))  # reported with these
    with pytest.raises(ValueError, match=r"features of another .*model than there is now"):
        load_policy(tmp_path / "work/actor_critic-seed0/policy.safetensors")
    moved = dataclasses.replace(config, output=tmp_path / "new", agents=("actor_critic",))
    with pytest.raises(ValueError, match=r"began round 1 with another .*model than there is now"):
        benchmark_agents.main(moved)


def test_walkers_act_with_and_without_a_map(tmp_path: Path) -> None:
    occupancy = OccupancyConfig(side=12, reach=3.0, width=32)
    model = tiny_model(
        pose=PoseConfig(),
        odometry=OdometryConfig(hidden=16),
        places=PlacesConfig(slots=4, width=32, occupancy=occupancy),
    )
    config = make_config(tmp_path)
    agents = ("walker", "walker_without_map", "walker_short_memory", "behaviour")
    config = dataclasses.replace(config, agents=agents)
    with pytest.raises(ValueError, match="has no memory of places: leave out 'walker'"):
        benchmark_agents.main(config)
    save(model, tmp_path / "model", contexts=tiny_contexts())
    benchmark_agents.main(config)
    runs = read_runs(tmp_path / "results", LABELS)
    assert set(runs) == set(agents)
    for judge in ("dream", "dream_way"):
        judged = [runs[agent][0][judge] is not None for agent in agents]
        assert judged == [True, False, False, True]
    # Without a map, features end in the place itself.
    places = PlacesConfig(slots=4, width=32)
    without = model.reconfigured(places=places)
    assert without.config.num_features == model.config.num_features - NUM_PLACE_FEATURES
    save(without, tmp_path / "model", contexts=tiny_contexts())
    moved = dataclasses.replace(config, agents=agents[1:2], output=tmp_path / "new")
    with pytest.raises(ValueError, match="draws no map: leave out 'walker_without_map'"):
        benchmark_agents.main(moved)


def test_by_default_all_are_compared_that_can_be_had(tmp_path: Path) -> None:
    config = dataclasses.replace(make_config(tmp_path), agents=None)
    agents = benchmark_agents.AgentsBenchmark(config).agents
    assert {"random", "behaviour", "ppo_pixels", "actor_critic", "oracle", "data"} <= set(agents)
    assert not {"walker", "actor_critic_from_cloning", "model_free"} & set(agents)
    model = tiny_model(
        pose=PoseConfig(),
        odometry=OdometryConfig(hidden=16),
        places=PlacesConfig(slots=4, width=32),
    )
    save(model, tmp_path / "model", contexts=tiny_contexts())
    more = benchmark_agents.AgentsBenchmark(config).agents
    assert set(more) - set(agents) == {"walker", "actor_critic_from_cloning"}
    judged = [agent for agent in more if agent not in NOT_IN_DREAMS]
    assert len(judged) >= 8  # enough to see whether the dream ranks policies as reality does


def test_agents_that_learn_from_episodes_need_some(tmp_path: Path) -> None:
    config = dataclasses.replace(
        make_config(tmp_path),
        agents=("cloned", "advantage_weighted", "actor_critic_cloned"),
        dataset=str(write_dataset(tmp_path, size=64)),
        cloning=CloningConfig(num_episodes=2, num_steps=3, batch_size=8),
    )
    assert "advantage-weighted cloning" in benchmark_agents.main(config)
    # Cloning counts as training, also where it was done by a call before.
    minutes = {
        file.stem: json.loads(file.read_text())["training_minutes"]
        for file in (tmp_path / "results").glob("*-seed0.json")
    }
    dreaming = json.loads((tmp_path / "work/actor_critic_cloned-seed0/progress.json").read_text())
    assert 60 * minutes["actor_critic_cloned-seed0"] > dreaming["last_round"]["seconds"]
    (tmp_path / "results/advantage_weighted-seed0.json").unlink()
    benchmark_agents.main(config)
    again = json.loads((tmp_path / "results/advantage_weighted-seed0.json").read_text())
    assert again["training_minutes"] == minutes["advantage_weighted-seed0"] > 0
    small = str(write_dataset(tmp_path / "small", size=16))
    with pytest.raises(ValueError, match=r"frames \(16, 16, 3\) and 6 actions, the model \(64"):
        read_out_dataset(tiny_model(), small, 2)
    for agent in config.agents:
        assert (tmp_path / "work" / f"{agent}-seed0/policy.safetensors").is_file()
    alike, weighted = (
        json.loads((tmp_path / "work" / f"{agent}-seed0/settings.json").read_text())["cloning"]
        for agent in CLONED
    )
    assert alike == weighted | {"temperature": math.inf}
    other = dataclasses.replace(config.cloning, num_steps=4)
    anew = dataclasses.replace(config, output=tmp_path / "new", cloning=other)
    with pytest.raises(ValueError, match="/cloned-seed0 holds work of another cloning"):
        benchmark_agents.main(anew)
    with pytest.raises(ValueError, match="cloned learns from recorded episodes"):
        dataclasses.replace(config, dataset=None)
    more = write_dataset(tmp_path / "more", num_episodes=7, size=64)
    shutil.rmtree(config.dataset)
    shutil.copytree(more, config.dataset)
    with pytest.raises(ValueError, match=r"was made with 120 frames of .* has 140 now"):
        benchmark_agents.main(config)
    for agent in ("cloned", "actor_critic_cloned"):
        anew = dataclasses.replace(config, output=tmp_path / "newer", agents=(agent,))
        with pytest.raises(
            ValueError, match=f"/{agent}-seed0 holds work of another dataset_frames"
        ):
            benchmark_agents.main(anew)


def test_what_trained_for_minutes_on_a_gpu_is_not_put_beside_that_of_a_cpu(tmp_path: Path) -> None:
    by_steps = make_config(tmp_path)
    by_minutes = dataclasses.replace(by_steps, total_timesteps=None)
    trained = ("actor_critic", "actor_critic_short_memory", "planner_actor_critic")
    for agent in (*trained, "behaviour"):
        for config in (by_steps, by_minutes):
            kept = {"device": "cuda", "config": as_json(config)}
            (tmp_path / f"{agent}-seed0.json").write_text(json.dumps(kept))
            if config is by_minutes and agent in trained:
                with pytest.raises(ValueError, match="was trained on cuda, which dreams another"):
                    check_kept(tmp_path, agent, config, None)
            else:
                check_kept(tmp_path, agent, config, None)
    # Nor is a policy that was trained, and not judged yet.
    last_round = {"timesteps": 100, "seconds": 1.0, "device": "cuda"}
    check_training(DreamTrainConfig(total_timesteps=100, device="cpu"), last_round)
    with pytest.raises(ValueError, match=r"holds a policy that was trained on cuda"):
        check_training(DreamTrainConfig(device="cpu"), last_round)


def test_dreams_without_a_beginning_are_told_at_once(tmp_path: Path) -> None:
    config = dataclasses.replace(make_config(tmp_path), agents=("behaviour",))
    save(tiny_model(), tmp_path / "model")
    with pytest.raises(CheckpointError, match="ships no contexts"):
        benchmark_agents.AgentsBenchmark(config)
    with pytest.raises(FileNotFoundError, match="no dataset 'no/where-v0'"):
        benchmark_agents.AgentsBenchmark(dataclasses.replace(config, judge_contexts="no/where-v0"))


def test_lengths_are_those_of_the_curve_or_none(tmp_path: Path) -> None:
    with SummaryWriter(tmp_path / "all") as whole, SummaryWriter(tmp_path / "part") as part:
        for step in range(600):
            for writer in (whole, part):
                writer.add_scalar("dream/episodic_return", 1.0, step)
            whole.add_scalar("dream/episodic_length", step, step)
            if step >= 300:  # begun by a version that did not log it
                part.add_scalar("dream/episodic_length", step, step)
    assert read_lengths(tmp_path / "all") == [step for step, _ in read_curve(tmp_path / "all")]
    assert len(read_curve(tmp_path / "part")) == 200 and read_lengths(tmp_path / "part") == []


def test_the_judge_compares_returns_of_policies_that_acted_in_both(tmp_path: Path) -> None:
    def summary(reward: float, length: int) -> dict[str, object]:
        return {"returns": [reward], "lengths": [length], "mean_return": reward, "seeds": [7]}

    agents = ("ppo_pixels", "ppo_features", "actor_critic")
    returns = [(1.0, 20.0), (2.0, 30.0), (3.0, 40.0)]
    for agent, (dreamed, real) in zip(agents, returns, strict=True):
        result = {
            "dream": summary(dreamed, 10),
            # Who makes more because its episodes last longer is better, by so many rewards.
            "real": summary(real, int(real**2)),
            "real_steps": 0,
            "training_minutes": 0.0,
            "seconds_per_decision": 0.0,
        }
        (tmp_path / f"{agent}-seed0.json").write_text(json.dumps(result))
    (tmp_path / "data-seed0.json").write_text(json.dumps(result | {"dream": None}))
    (tmp_path / "actor_critic-seed1.json").write_text(json.dumps(result))
    pairs = judge_pairs(read_runs(tmp_path, LABELS))
    assert pairs == [("ppo_pixels", 1.0, 20.0), ("ppo_features", 2.0, 30.0)] + 2 * [
        ("actor_critic", 3.0, 40.0)
    ]
    ranked = (
        "Rank correlation of rewards in dreams and real returns, 3 policies (means over seeds): "
    )
    assert f"{ranked}1.00 [1.00, 1.00]." in write_report(tmp_path)
    assert (tmp_path / "judge.png").stat().st_size > 0

    # By the way that they make they rank the other way round.
    for agent, promised in zip(agents, [3.0, 2.0, 1.0], strict=True):
        file = tmp_path / f"{agent}-seed0.json"
        file.write_text(
            json.dumps(json.loads(file.read_text()) | {"dream_way": summary(promised, 10)})
        )
    assert judge_pairs(read_runs(tmp_path, LABELS), "dream_way")[0] == ("ppo_pixels", 3.0, 20.0)
    table = write_report(tmp_path)
    assert f"{ranked}1.00 [1.00, 1.00]." in table
    other = "by the way on the map in dreams and real returns, 3 policies (means over seeds)"
    assert f"{other}: -1.00 [-1.00, -1.00]." in table

    # A policy of other guards, of which dreams promise the most and which makes the least.
    beside = tmp_path.with_name(f"{tmp_path.name}-guards")
    for guard, other_result in [
        ("none", {}),
        ("of_another_model", {"world_model_sha256": "abc"}),
        ("of_other_dreams", {"config": {"horizon": 16}}),
        ("as_given", {}),
    ]:
        (beside / guard).mkdir(parents=True)
        one = result | {"dream": summary(9.0, 10), "real": summary(1.0, 1)} | other_result
        (beside / guard / "actor_critic-seed0.json").write_text(json.dumps(one))
    table = write_report(tmp_path)
    assert f"{ranked}1.00 [1.00, 1.00]. With 1 more" in table
    assert "(benchmark_guards.py): -0.20." in table
    # Of two agents with the same guards, each is one.
    two = json.dumps(result | {"dream": summary(9.5, 10), "real": summary(1.5, 1)})
    (beside / "none/actor_critic_from_cloning-seed0.json").write_text(two)
    assert "With 2 more" in write_report(tmp_path)


def test_ranks_are_less_sure_where_returns_are(tmp_path: Path) -> None:
    def runs(spread: float) -> dict[str, list[dict[str, Any]]]:
        """Agents of mean return 1 to 4, in dreams too; every other episode by `spread` apart."""
        sign = np.array([1, -1] * 8)
        return {
            str(mean): [
                {
                    where: {
                        "returns": list(mean + spread * np.roll(sign, mean)),
                        "lengths": [10] * 16,
                        "seeds": list(range(16)),
                    }
                    for where in ("dream", "real")
                }
            ]
            for mean in range(1, 5)
        }

    assert rank_interval(runs(0.0), "dream") == pytest.approx((1, 1))
    sure, unsure = rank_interval(runs(1.0), "dream"), rank_interval(runs(3.0), "dream")
    assert sure is not None and unsure is not None
    assert unsure[0] < sure[0] < 1 and unsure[1] > 0.5
    # What is hard for all alike makes no rank less sure.
    alike = runs(0.0)
    for (result,) in alike.values():
        for where in ("dream", "real"):
            result[where]["returns"] = list(np.add(result[where]["returns"], 9 * np.arange(16)))
    assert rank_interval(alike, "dream") == pytest.approx((1, 1))
    alike["1"][0]["real"]["seeds"] = list(range(1, 17))
    assert rank_interval(alike, "dream") is None


def test_what_cannot_be_done_is_refused_before_anything_is_played(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    wrong = dataclasses.replace(config, actor_critic=ActorCriticConfig(num_steps=32))
    with pytest.raises(ValueError, match="not a multiple of the 32 steps"):
        benchmark_agents.main(wrong)
    with pytest.raises(ValueError, match="frames_to_reward chooses among the stretches"):
        benchmark_agents.main(dataclasses.replace(config, frames_to_reward=3))
    assert not (tmp_path / "results").exists()


def test_settings_that_others_decide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"planner.walking is not taken from there: give --agents"):
        BenchmarkAgentsConfig(planner=PlannerConfig(walking=False))
    with pytest.raises(ValueError, match=r"planner.policy_temperature .* give --temperature"):
        BenchmarkAgentsConfig(planner=PlannerConfig(policy_temperature=0.3))
    with pytest.raises(ValueError, match=r"give --behaviour-temperature"):
        DreamTrainConfig(agent="planner", planner=PlannerConfig(policy_temperature=0.3))
    for changes, message in (
        *(({name: 0}, f"{name} must be above 0, got 0") for name in COUNTS),
        ({"seeds": ()}, "seeds must be one or more"),
        ({"agents": ("model_free",), "num_workers": 0}, "num_workers must be at least 1, got 0"),
        ({"num_contexts": 9}, "num_contexts is of stretches of a dataset: give --contexts"),
    ):
        with pytest.raises(ValueError, match=message):
            BenchmarkAgentsConfig(**changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"dataset is what .* later rounds: give --rounds"):
        DreamTrainConfig(dataset="my-env/explorer-v0")
    assert BenchmarkAgentsConfig().output_directory.parts[0] == "runs"


def test_an_unknown_agent_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown agent 'sarsa'"):
        BenchmarkAgentsConfig(agents=("sarsa",))


def test_a_model_free_agent_takes_as_many_real_steps_as_it_is_given(tmp_path: Path) -> None:
    config = dataclasses.replace(make_config(tmp_path), agents=("model_free",), real_steps=300)
    benchmark_agents.main(config)
    result = json.loads((tmp_path / "results/model_free-seed0.json").read_text())
    assert result["real_steps"] == 512  # rollouts of two envs and 128 steps, which are finished
    assert result["dream"] is not None
    (work,) = (tmp_path).rglob("model_free-seed0")
    events = EventAccumulator(str(work / "tensorboard_0"))
    events.Reload()
    points = [[e.step, e.value] for e in events.Scalars("real/episodic_return")]
    assert result["curve"] == points
    seconds = float((work / "seconds.json").read_text())
    (tmp_path / "results/model_free-seed0.json").unlink()
    longer = dataclasses.replace(config, real_steps=700)
    benchmark_agents.main(longer)  # goes on from the policy that is there
    result = json.loads((tmp_path / "results/model_free-seed0.json").read_text())
    assert result["real_steps"] == 768
    assert 60 * result["training_minutes"] > 1.2 * seconds
    anew = dataclasses.replace(config, output=tmp_path / "new", real_steps=100)
    with pytest.raises(ValueError, match="policy of 768 steps, more than 100"):
        benchmark_agents.main(anew)
    with pytest.raises(ValueError, match="holds work of another max_episode_steps"):
        benchmark_agents.main(dataclasses.replace(anew, max_episode_steps=5))


def test_a_short_memory_sees_what_the_model_makes_of_the_last_frames_alone() -> None:
    model, contexts = tiny_model(), tiny_contexts(n=2, length=7)
    frames, actions = contexts.frames, contexts.actions
    spy = Spy(np.roll(actions, -1, axis=1))
    policy, state = ShortMemoryPolicy(model, spy, num_frames=3), None
    for t in range(7):
        _, state = policy.act(frames[:, t], state, np.array([t == 0, t in (0, 5)]))
    # Env 0 remembers frames 4 to 6; env 1 began a new episode at frame 5.
    for i, begin in [(0, 4), (1, 5)]:
        led = torch.as_tensor(actions[i : i + 1, begin:]).clone()
        if i == 1:
            led[0, 0] = model.no_action
        alone = model.observe(
            model.initial_state(1), led, torch.as_tensor(frames[i : i + 1, begin:])
        )
        np.testing.assert_allclose(spy.features[-1][i], alone.features[0].numpy(), atol=1e-4)


def test_a_memory_of_no_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="num_frames must be at least 1"):
        ShortMemoryPolicy(tiny_model(), Spy(np.zeros((1, 1), int)), num_frames=0)


def test_scripted_players_are_dreamed_under_the_actions_that_they_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agents_in_dreams, "CONTEXT_LENGTH", 4)
    model = tiny_model()
    nn.init.normal_(model.reward_head[-1].weight)  # type: ignore[arg-type]
    config = BenchmarkAgentsConfig(env="memory-maze-7x7", dream_episodes=2, horizon=3)
    player = Spy(np.arange(6)[None])  # one action after the other
    with mock.patch.object(model, "observe", wraps=model.observe) as observe:
        judged = agents_in_dreams.judge_as_recorded(lambda i: player, model, config, "player")
    assert judged["dream_way"] is None  # without a map
    state, led, frames = observe.call_args.args
    assert led.tolist() == 2 * [[model.no_action, 0, 1, 2]]
    real = envs.make("memory-maze-7x7")
    for i, seen in enumerate(frames):
        expected = [real.reset(seed=2_000_000 + i)[0], *(real.step(a)[0] for a in range(3))]
        np.testing.assert_array_equal(seen, expected)
    real.close()
    state = model.observe(state, led, frames)
    draws = torch.Generator().manual_seed(2_000_000)
    _, rewards = model.dream(state, torch.tensor(2 * [[3, 4, 5]]), generator=draws)
    np.testing.assert_allclose(judged["dream"]["returns"], rewards.sum(1), rtol=1e-4, atol=1e-5)
    assert judged["dream"]["seeds"] == [2_000_000, 2_000_001]


def test_the_oracle_is_far_better_than_chance(tmp_path: Path) -> None:
    config = dataclasses.replace(
        make_config(tmp_path), agents=("random", "oracle"), max_episode_steps=150
    )
    benchmark_agents.main(config)
    runs = read_runs(tmp_path / "results", LABELS)
    random, oracle = (runs[name][0]["real"]["returns"] for name in ("random", "oracle"))
    assert min(oracle) > 3 + max(random)
    elsewhere = dataclasses.replace(config, env="minerl-navigate", agents=("oracle",))
    with pytest.raises(ValueError, match="no oracle is known for minerl-navigate"):
        benchmark_agents.main(dataclasses.replace(elsewhere, output=tmp_path / "elsewhere"))


def test_intervals_are_of_seeds_and_mazes() -> None:
    """Seeds that play the same mazes are no more mazes."""
    mazes = list(range(20))
    returns = np.random.default_rng(0).normal(10, 5, 20)
    alone = mean_return([{"real": {"seeds": mazes, "returns": returns.tolist()}}])
    assert alone == (pytest.approx(returns.mean()), *bootstrap_interval(returns))
    runs = [{"real": {"seeds": mazes, "returns": (returns + d).tolist()}} for d in (-1.0, 0.0, 1.0)]
    mean, low, high = mean_return(runs)
    assert mean == pytest.approx(returns.mean())
    assert 1 < (high - low) / (alone[2] - alone[1]) < 1.3  # and not less, as of 60 mazes
    # Seeds of other mazes: the mean of each maze counts once.
    uneven = [*runs[:1], {"real": {"seeds": [19, 20], "returns": [returns[19] + 3, 5.0]}}]
    by_maze = [*(returns[:19] - 1), returns[19] + 1, 5.0]
    found = mean_return(uneven)
    assert found == pytest.approx((np.mean(by_maze), *bootstrap_interval(by_maze)))


def test_gains_are_paired_by_maze(tmp_path: Path) -> None:
    mazes = list(range(20))
    returns = np.random.default_rng(0).normal(10, 5, 20)

    def runs(*shifts: float) -> list[dict[str, Any]]:
        real = [{"seeds": mazes, "returns": (returns + d).tolist()} for d in shifts]
        return [{"real": r | {"mean_return": 0.0}, "dream": None} for r in real]

    # Mazes differ by far more than agents do, but by the same for both.
    assert gain(runs(2.0, 2.0, 2.0), runs(0.0, 0.0)) == pytest.approx((2.0, 2.0, 2.0))
    assert gain(runs(2.0, 4.0), runs(0.0)) == pytest.approx((3.0, 2.0, 4.0))
    assert gain(runs(0.0), runs(2.0, 4.0)) == pytest.approx((-3.0, -4.0, -2.0))
    # Which seed is which does not matter: that one differs from the others makes both less sure.
    assert gain(runs(3.0, 5.0), runs(0.0, 2.0)) == pytest.approx((3.0, 1.0, 5.0))
    elsewhere = {"real": {"seeds": [5], "returns": [1.0], "mean_return": 1.0}, "dream": None}
    assert gain(runs(1.0), [elsewhere]) is None
    agents = {"actor_critic": runs(2.0), "walker": runs(0.5), "random": runs(0.0)}
    for agent, results in agents.items():
        result = results[0] | {"real_steps": 0, "training_minutes": 0.0}
        (tmp_path / f"{agent}-seed0.json").write_text(json.dumps(result))
    (row,) = (format_gains(read_runs(tmp_path, LABELS)) or "").splitlines()[2:]
    assert row == f"| {LABELS['actor_critic']} | {LABELS['walker']} | 1.50 | 1.50 to 1.50 |"
    assert row in write_report(tmp_path)
    (tmp_path / "actor_critic-seed0.json").unlink()
    assert format_gains(read_runs(tmp_path, LABELS)) is None


def test_agents_are_held_against_agents() -> None:
    assert {agent for pair in HELD_AGAINST for agent in pair} <= set(LABELS)


def test_ways_back_lead_to_targets_that_were_reached_before(tmp_path: Path) -> None:
    assert ways_to_targets([]) == ([], [])
    assert ways_to_targets([[10, 2], [30, 0], [90, 1]]) == ([10, 20, 60], [])
    reached = [[10, 2], [30, 0], [90, 2], [100, 1], [140, 0]]
    assert ways_to_targets(reached) == ([10, 20, 10], [60, 40])
    real = {
        "returns": [5.0, 1.0],
        "mean_return": 3.0,
        "seeds": [7, 8],
        "reached": [[[10, 2], [30, 0], [90, 2], [100, 1], [140, 0]], [[9, 1]]],
    }
    result = {"real": real, "dream": None, "real_steps": 0, "training_minutes": 0.0}
    (tmp_path / "walker-seed0.json").write_text(json.dumps(result))
    fewer = real | {"reached": [[[10, 2], [30, 0], [90, 2]], [[9, 1]]]}
    (tmp_path / "walker-seed1.json").write_text(json.dumps(result | {"real": fewer}))
    untold = {name: value for name, value in real.items() if name != "reached"}
    (tmp_path / "random-seed0.json").write_text(json.dumps(result | {"real": untold}))
    # Two and one in the first maze, none in the second; back in 60, 40 and 60 steps, first in 10,
    # 20, 10, 9, and 10, 20, 9.
    rows = format_returning(read_runs(tmp_path, LABELS)).splitlines()[2:-2]
    assert rows == [f"| {LABELS['walker']} | 2 | 0.75 | 0.00 to 2.00 | 53 | 13 |"]
    assert rows[0] in write_report(tmp_path)


def test_what_decides_a_result_are_settings_of_the_benchmark() -> None:
    fields = {field.name for field in dataclasses.fields(BenchmarkAgentsConfig)}
    for agent in LABELS:
        assert set(deciding_settings(agent)) <= fields
    assert "real_steps" in deciding_settings("model_free")
    assert {"minutes", "short_memory"} <= set(deciding_settings("actor_critic_short_memory"))
    in_dreams = {"horizon", "dream_episodes", "judge_contexts", "num_envs"}
    trained = {"contexts", "num_starts", "total_timesteps", "training_horizon", "way"}
    for agent, needed in {
        "random": {"env", "max_episode_steps", "eval_episodes"} | in_dreams,
        "behaviour": {"temperature"} | in_dreams,
        "walker_short_memory": {"temperature", "short_memory", "eval_episodes"},
        "planner": {"planner", "planner_episodes", "temperature"},
        "planner_actor_critic": {"planner", "actor_critic", "temperature"} | trained,
        "actor_critic": {"actor_critic", "temperature"} | trained | in_dreams,
        "actor_critic_cloned": {"dataset", "cloning", "actor_critic"} | trained,
        "ppo_features": {"ppo", "temperature"} | trained,
        "ppo_pixels": {"ppo"} | trained,
        "model_free": {"real_steps", "num_workers"},
    }.items():
        assert needed <= set(deciding_settings(agent)), agent
