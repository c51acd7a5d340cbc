"""The whole loop on the stand-in: collect, learn a world model, train in its dream, judge. Tiny.

It shows that the pieces fit, not that anything is learned, and nothing about Minecraft.
"""

import dataclasses
from pathlib import Path

import gymnasium
import minerl_fixtures  # noqa: F401  # skips this file where the client is not installed
import numpy as np
import pytest

import envs
from experiments import collect, dream_train, train_world_model
from experiments.collect import CollectConfig
from experiments.dream_train_config import DreamTrainConfig, PPOConfig
from experiments.train_config import TrainConfig, ValidationConfig
from worldsim.episodes import EpisodeDataset

ENV = "minerl-navigate-dense-stand-in"


def short_env(config: CollectConfig) -> gymnasium.Env:
    """Episodes of 24 steps; at module level, so that a worker process can find it."""
    return envs.make(config.env, max_ticks=96)


def tiny_training(dataset: Path, output: Path) -> TrainConfig:
    preset = train_world_model.presets()["tiny"][1]

    def steps(training: object, **changes: object) -> object:
        optimizer = dataclasses.replace(training.optimizer, steps=2)  # type: ignore[attr-defined]
        return dataclasses.replace(training, optimizer=optimizer, **changes)  # type: ignore[type-var]

    return dataclasses.replace(
        preset,
        dataset=(str(dataset),),
        output=output,
        tokenizer_training=steps(preset.tokenizer_training),  # type: ignore[arg-type]
        dynamics=steps(preset.dynamics, frames_per_step=16, curriculum=((8, 1.0),)),  # type: ignore[arg-type]
        validation=ValidationConfig(every=0, num_contexts=1, context=8, horizon=2),
        device="cpu",
    )


@pytest.mark.slow
def test_collect_learn_dream_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collected = collect.main(
        CollectConfig(
            env=ENV,
            episodes=2,
            dataset=f"{ENV}/explorer-v0",
            datasets_root=tmp_path / "datasets",
            num_workers=1,
        ),
        make=short_env,
    )
    episodes = list(EpisodeDataset(collected.path))
    assert [len(episode) for episode in episodes] == [25, 25]
    assert "stand-in" in str(collected.path) and episodes[0].metadata["env"] == ENV
    assert np.isfinite(episodes[0].infos["compass_angle"]).all()

    train_world_model.main(tiny_training(collected.path, tmp_path / "world_model"))
    results = dream_train.main(
        DreamTrainConfig(
            env=ENV,
            world_model=str(tmp_path / "world_model" / "checkpoint"),
            contexts=str(collected.path),
            num_contexts=2,
            context_length=8,
            agent="ppo",
            total_timesteps=16,
            num_envs=2,
            horizon=4,
            ppo=PPOConfig(num_steps=8, batch_size=8, num_epochs=1),
            eval_episodes=1,
            dream_eval_episodes=1,
            max_episode_steps=3,
            num_workers=1,
            output=tmp_path / "run",
            device="cpu",
        )
    )
    evaluations = results["evaluations"]
    assert set(evaluations) == {"random", "data", "random in dream", "round 1 in dream", "round 1"}
    assert {name: evaluation["lengths"] for name, evaluation in evaluations.items()} == {
        "random": [3],
        "data": [3],
        "round 1": [3],
        "random in dream": [4],
        "round 1 in dream": [4],
    }
    assert "stand-in" in capsys.readouterr().out
