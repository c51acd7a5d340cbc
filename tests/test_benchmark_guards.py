"""Guards change what they say, results are kept by guard, and gains are over all guards."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tiny import tiny_contexts, tiny_model, write_dataset

from agents.imagination import ActorCriticConfig, ImaginationTrainer
from experiments import benchmark_guards
from experiments.benchmark_guards import (
    AS_GIVEN,
    GUARD_LABELS,
    GUARDS,
    LEFT_OUT,
    BenchmarkGuardsConfig,
    check_all_kept,
    format_table,
    with_guard,
)
from experiments.settings import as_json
from worldsim.checkpoint import save
from worldsim.occupancy_config import OccupancyConfig
from worldsim.odometry import OdometryConfig
from worldsim.places import PlacesConfig
from worldsim.pose import PoseConfig


def make_config(tmp_path: Path, **options: Any) -> BenchmarkGuardsConfig:
    return BenchmarkGuardsConfig(
        env="memory-maze-5x5",
        world_model=str(tmp_path / "model"),
        agents=("actor_critic",),
        guards=(AS_GIVEN, "horizon_64", "doubt_costs"),
        seeds=(0,),
        total_timesteps=64,
        num_envs=4,
        horizon=16,
        eval_episodes=2,
        dream_episodes=2,
        num_workers=2,
        max_episode_steps=6,
        output=tmp_path / "results",
        work=tmp_path / "work",
        **options,
    )


def test_guards_are_compared_on_the_same_episodes_and_kept(tmp_path: Path) -> None:
    save(tiny_model(), tmp_path / "model", contexts=tiny_contexts())
    config = make_config(tmp_path)
    table = benchmark_guards.main(config)
    files = {f.parent.name: f for f in (tmp_path / "results").glob("*/actor_critic-seed0.json")}
    assert set(files) == set(config.guards)
    results = {guard: json.loads(f.read_text()) for guard, f in files.items()}
    lengths = {guard: max(r["curve_steps"]) for guard, r in results.items()}
    assert set(lengths.values()) == {16, 64} and lengths["horizon_64"] == 64
    assert len({tuple(r["real"]["seeds"]) for r in results.values()}) == 1
    assert len(table.split("\n\n")[0].splitlines()) == 2 + len(files)
    for name in ("table.md", "guards.png"):
        assert (tmp_path / "results" / name).stat().st_size > 0

    before = {guard: f.read_bytes() for guard, f in files.items()}
    benchmark_guards.main(dataclasses.replace(config, guards=(AS_GIVEN, "free_of_behaviour")))
    assert {guard: f.read_bytes() for guard, f in files.items()} == before
    assert (tmp_path / "results/free_of_behaviour/actor_critic-seed0.json").is_file()


@pytest.mark.parametrize("guard", GUARDS)
def test_a_guard_changes_its_own_settings_alone(guard: str) -> None:
    given = BenchmarkGuardsConfig(actor_critic=ActorCriticConfig(num_epochs=2), temperature=0.7)
    changed = as_json(with_guard(given, guard))
    before = as_json(given)
    for name in before.keys() - {"output", "work", "guards"}:
        now, wanted = changed[name], before[name]
        if isinstance(GUARDS[guard].get(name), dict):
            wanted = wanted | GUARDS[guard][name]
        else:
            wanted = GUARDS[guard].get(name, wanted)
        assert now == wanted


def test_guards_that_were_not_asked_for_need_not_change_anything(tmp_path: Path) -> None:
    given = BenchmarkGuardsConfig(
        agents=("actor_critic_cloned",),
        dataset=str(write_dataset(tmp_path, size=64)),
        training_horizon=64,
        output=tmp_path / "results",
    )
    checked: list[tuple[str, str]] = []
    benchmark = mock.Mock(name="benchmark", weights="abc")
    benchmark.check_kept = lambda agent, config: checked.append((agent, config.output.name))
    check_all_kept(given, benchmark, "actor_critic_cloned")
    assert checked == [("actor_critic_cloned", guard) for guard in GUARDS]


def test_a_guard_that_changes_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="horizon_64 changes nothing of what is given"):
        with_guard(BenchmarkGuardsConfig(training_horizon=64), "horizon_64")


def test_without_guards_all_of_them_are_left_out() -> None:
    for left_out in LEFT_OUT.values():
        for name, value in left_out.items():
            said = GUARDS["none"][name]
            assert value.items() <= said.items() if isinstance(value, dict) else said == value
    assert set(GUARDS) == set(GUARD_LABELS)


def test_a_guard_is_held_against_all_as_given_by_maze() -> None:
    def results(*returns: list[float]) -> list[dict[str, Any]]:
        return [
            {
                "real": {"seeds": [1, 2], "returns": r, "mean_return": sum(r) / 2},
                "dream": {"mean_return": 0.5},
                "dream_way": None,
                "training_minutes": 3.0,
                "config": {"dream_episodes": 4, "horizon": 64},
            }
            for r in returns
        ]

    runs = {AS_GIVEN: results([4.0, 8.0], [4.0, 8.0]), "none": results([1.0, 5.0], [1.0, 5.0])}
    rows = [
        [c.strip() for c in row.split("|")[1:-1]]
        for row in format_table(runs, "actor_critic").splitlines()[2:4]
    ]
    assert rows[0][2] == "6.00" and rows[0][4:6] == ["-", "-"]
    assert rows[1][2] == "3.00" and rows[1][4:6] == ["-3.00", "-3.00 to -3.00"]
    assert rows[1][6:] == ["0.50", "-", "3.0"]


def test_way_guards_reach_the_training_of_a_model_with_a_map(tmp_path: Path) -> None:
    occupancy = OccupancyConfig(side=12, reach=3.0, width=32)
    model = tiny_model(
        pose=PoseConfig(),
        odometry=OdometryConfig(hidden=16),
        places=PlacesConfig(slots=4, width=32, occupancy=occupancy),
    )
    save(model, tmp_path / "model", contexts=tiny_contexts())
    made = []
    trainer = ImaginationTrainer

    def make(*args: Any, **options: Any) -> ImaginationTrainer:
        made.append(trainer(*args, **options))
        return made[-1]

    guards = (AS_GIVEN, "none", "doubt_ends")
    config = dataclasses.replace(make_config(tmp_path), guards=guards, dream_episodes=1)
    with mock.patch("experiments.actor_critic_training.ImaginationTrainer", make):
        benchmark_guards.main(config)
    assert [t.horizon for t in made] == [16, 64, 16]
    assert [t.shaping.config.touch for t in made] == [0.05, 0.0, 0.05]
    assert [t.min_reward for t in made] == [0.5, 0.0, 0.5]
    assert [t.config.prior_coef for t in made] == [0.01, 0.0, 0.01]
    assert [t.config.max_doubt for t in made] == [
        None,
        None,
        GUARDS["doubt_ends"]["actor_critic"]["max_doubt"],
    ]
    assert {t.doubted.start for t in made} == {model.d_model}


def test_what_is_not_the_same_training_but_for_its_guards_is_not_reported(tmp_path: Path) -> None:
    save(tiny_model(), tmp_path / "model", contexts=tiny_contexts())
    config = dataclasses.replace(make_config(tmp_path), guards=(AS_GIVEN,))
    benchmark_guards.main(config)
    other = dataclasses.replace(config, guards=("doubt_costs",), total_timesteps=128)
    with pytest.raises(ValueError, match=r"as_given/actor_critic-seed0.json was made with total_"):
        benchmark_guards.main(other)
    with pytest.raises(ValueError, match=r"draws no map .*: leave free_walls, none out of guards"):
        benchmark_guards.main(dataclasses.replace(config, guards=("free_walls", "none")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_timesteps": None}, r"guards take their time, .*: give total_timesteps"),
        (
            {"actor_critic": ActorCriticConfig(min_reward=0.1)},
            r"give --way.min-reward in place of --actor-critic.min-reward",
        ),
        ({"guards": ("hope",)}, r"unknown guard 'hope': choose from as_given, "),
        ({"agents": ("walker",)}, r"agents must be one of actor_critic, .* got \('walker',\)"),
        ({"agents": None}, r"agents must be one of .* got none"),
    ],
)
def test_what_is_no_guard_or_no_actor_critic_is_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        BenchmarkGuardsConfig(**options)
