"""PPO as CleanRL writes it learns, bootstraps where dreams are cut, and runs from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import tiny_contexts, tiny_model

from experiments import cleanrl_ppo
from worldsim.checkpoint import save
from worldsim.world_model import WorldModel


class Lever(gymnasium.Env):
    """One of six levers pays 1, in every step."""

    action_space = gymnasium.spaces.Discrete(6)

    def __init__(self, width: int) -> None:
        self.shown = np.ones(width, np.float32)
        self.observation_space = gymnasium.spaces.Box(-1, 1, (width,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self.shown, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self.shown, float(action == 2), False, False, {}


def make_args(tmp_path: Path, **changes: Any) -> cleanrl_ppo.Args:
    save(tiny_model(), tmp_path / "model", contexts=tiny_contexts())
    options: dict[str, Any] = {"num_envs": 4, "num_steps": 8, "horizon": 4, "eval_episodes": 2}
    options |= {"max_episode_steps": 3, "env": "memory-maze-5x5"}
    options |= {"world_model": str(tmp_path / "model"), "output": tmp_path / "run"}
    return cleanrl_ppo.Args(**options | changes)


def test_it_learns_and_values_what_a_cut_episode_would_have_paid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: WorldModel
) -> None:
    width = model.config.num_features
    levers = SyncVectorEnv(
        [lambda: TimeLimit(Lever(width), 2)] * 8, autoreset_mode=AutoresetMode.SAME_STEP
    )
    monkeypatch.setattr(gymnasium, "make_vec", lambda *_, **__: levers)
    args = make_args(
        tmp_path, num_envs=8, gamma=0.5, learning_rate=3e-3, total_timesteps=8000, eval_episodes=1
    )
    cleanrl_ppo.main(args)
    agent = cleanrl_ppo.Agent(width, 6)
    agent.load_state_dict(torch.load(tmp_path / "run/agent.pt"))
    shown = torch.ones(1, width)
    assert agent.actor(shown).softmax(-1)[0, 2] > 0.9
    # 1 + 1/2 + 1/4 + ...: without the value of what was cut, no more than 1.5 of it.
    assert agent.get_value(shown).item() == pytest.approx(2.0, abs=0.2)


def test_it_trains_in_the_dream_and_plays_real_episodes(tmp_path: Path) -> None:
    returns = cleanrl_ppo.main(args := make_args(tmp_path, total_timesteps=64))
    assert len(returns) == args.eval_episodes
    events = EventAccumulator(str(args.output))
    events.Reload()
    assert [e.step for e in events.Scalars("charts/episodic_return")] == [32, 64]
    weights = torch.load(tmp_path / "run/agent.pt")
    again = make_args(tmp_path, total_timesteps=64, output=tmp_path / "again")
    assert cleanrl_ppo.main(again) == returns
    same = torch.load(tmp_path / "again/agent.pt")
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_runs_have_directories_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        cleanrl_ppo.main(make_args(tmp_path, total_timesteps=32, output=None, seed=seed))
    runs = sorted(file.parent.name for file in Path("runs/cleanrl").glob("*/agent.pt"))
    assert [run.rsplit("__", 1)[0] for run in runs] == ["memory-maze-5x5__1", "memory-maze-5x5__2"]


def test_minibatches_must_divide_the_steps() -> None:
    with pytest.raises(
        ValueError, match="3 envs of 5 steps do not divide into 4 minibatches of two"
    ):
        cleanrl_ppo.Args(num_envs=3, num_steps=5)
