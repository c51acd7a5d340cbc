"""What dreams reward: moments are what they are called, and shares count what is dreamed there."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tiny import NUM_ACTIONS, tiny_model

import worldsim.checkpoint as checkpoint
from experiments import told_rewards
from experiments.dreamed_rewards import (
    arrivals_at_other_targets,
    dreamed_rewards,
    find_moments,
)
from experiments.evaluate_world_model import EvaluateWorldModelConfig
from experiments.evaluate_world_model import main as evaluate_world_model
from experiments.reward_events import events_of
from worldsim.dataset_writer import DatasetWriter
from worldsim.episodes import EpisodeDataset
from worldsim.recording import RecordedEpisode

REWARDED, OTHER = 20, 45
"""Frames at which every episode is rewarded, and at which the agent comes to another target."""
GRAB = 3
"""The action that is only taken to be rewarded."""


@pytest.fixture
def dataset(tmp_path: Path) -> EpisodeDataset:
    return record(tmp_path)


def record(tmp_path: Path, reward: float = 1.0) -> EpisodeDataset:
    """Three episodes of 80 frames; targets 0 (current) and 1 hang at (1, 1) and (3, 3)."""
    spaces = (gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8), gymnasium.spaces.Discrete(6))
    with DatasetWriter("moments-v0", *spaces, {"seed": 0}, root=tmp_path) as writer:
        for index in range(3):
            rng = np.random.default_rng(index)
            actions = rng.choice([a for a in range(NUM_ACTIONS) if a != GRAB], size=79)
            actions[REWARDED - 1] = GRAB
            position = np.full((80, 2), 5.0, np.float32)
            position[REWARDED], position[OTHER : OTHER + 3] = (1.0, 1.2), (3.0, 2.8)
            targets = np.array([[1, 1], [3, 3]], np.float32)
            episode = RecordedEpisode(
                observations=rng.integers(0, 256, (80, 64, 64, 3)).astype(np.uint8),
                actions=actions,
                rewards=reward * (actions == GRAB),
                terminations=np.zeros(79, bool),
                truncations=np.arange(79) == 78,
                infos={
                    "agent_pos": position,
                    "targets_pos": np.broadcast_to(targets, (80, 2, 2)).copy(),
                    "target_index": np.zeros(80, np.int64),
                },
                seed=index,
                metadata={},
            )
            writer.save(index, episode)
    return EpisodeDataset(writer.path)


def test_only_arrivals_at_targets_not_asked_for_count() -> None:
    position = np.array([[0, 0], [1, 1], [1, 1], [5, 5], [3, 3.2], [9, 9]], np.float32)
    infos = {
        "agent_pos": position,
        "targets_pos": np.broadcast_to(np.float32([[1, 1], [3, 3]]), (6, 2, 2)),
        "target_index": np.zeros(6, np.int64),
    }
    assert arrivals_at_other_targets(infos).tolist() == [4]
    assert arrivals_at_other_targets(infos | {"target_index": np.ones(6, np.int64)}).tolist() == [1]


def test_moments_are_what_they_are_called(dataset: EpisodeDataset) -> None:
    moments = find_moments(dataset, context=8, before=4, after=2)
    assert moments["target"] == [(i, REWARDED) for i in range(3)]
    assert moments["other target"] == [(i, OTHER) for i in range(3)]
    assert len(moments["elsewhere"]) == 3
    for _, frame in moments["elsewhere"]:
        assert abs(frame - REWARDED) > 6 and abs(frame - OTHER) > 6
        assert 12 <= frame < 78


def test_moments_without_room_for_a_context_are_left_out(dataset: EpisodeDataset) -> None:
    assert not find_moments(dataset, context=17, before=4, after=2)["target"]
    assert len(find_moments(dataset, context=16, before=4, after=2)["target"]) == 3


class Dreamer:
    """Stands for a world model: rewards grabbing, `delay` steps late."""

    device = torch.device("cpu")

    def __init__(self, delay: int = 0, always: bool = False, reward: float = 1.0) -> None:
        self.delay, self.always, self.reward = delay, always, reward

    def initial_state(self, batch_size: int) -> None:
        return None

    def observe(self, state: None, actions: torch.Tensor, frames: torch.Tensor) -> None:
        assert actions.shape == frames.shape[:2] == (len(actions), 8)

    def dream(self, state: None, actions: torch.Tensor, **_: Any) -> tuple[None, torch.Tensor]:
        rewards = self.reward * (actions == GRAB)
        late = torch.zeros_like(rewards)
        late[:, self.delay :] = rewards[:, : rewards.shape[1] - self.delay]
        return None, torch.ones_like(rewards) if self.always else late


@pytest.mark.parametrize(
    ("dreamer", "shares"),
    [
        (Dreamer(), {"target": 1.0, "other target": 0.0, "elsewhere": 0.0}),
        (Dreamer(delay=2), {"target": 1.0, "other target": 0.0, "elsewhere": 0.0}),
        (Dreamer(delay=3), {"target": 0.0, "other target": 0.0, "elsewhere": 0.0}),
        (Dreamer(always=True), {"target": 1.0, "other target": 1.0, "elsewhere": 1.0}),
    ],
)
def test_shares_count_what_is_dreamed_at_the_moment(
    dataset: EpisodeDataset, dreamer: Any, shares: dict[str, float]
) -> None:
    result = dreamed_rewards(dreamer, dataset, leads=(1, 4), context=8, batch_size=2)
    assert list(result) == ["1", "4"]
    for row in result.values():
        assert {kind: value["rewarded"] for kind, value in row.items()} == shares
        assert all(value["count"] == 3 for value in row.values())
    # One reward of 1 at the most, unless every step is rewarded: 5 are near the moment.
    expected = {kind: value["expected"] for kind, value in result["4"].items()}
    assert expected == {k: v * (5 if dreamer.always else 1) for k, v in shares.items()}


def test_rewards_of_any_size_count(tmp_path: Path) -> None:
    for reward in (0.2, 10.0, -5.0):
        dataset = record(tmp_path / str(reward), reward)
        dreamer: Any = Dreamer(reward=reward)
        (row,) = dreamed_rewards(dreamer, dataset, leads=(1,), context=8).values()
        assert {kind: value["rewarded"] for kind, value in row.items()} == {
            "target": 1.0,
            "other target": 0.0,
            "elsewhere": 0.0,
        }


def test_a_model_is_judged_with_all_its_scores(dataset: EpisodeDataset, tmp_path: Path) -> None:
    checkpoint.save(tiny_model(), tmp_path / "model", metadata={})
    (folder,) = tmp_path.glob("moments-v0")
    config = EvaluateWorldModelConfig(
        world_model=str(tmp_path / "model"),
        dataset=(str(folder),),
        num_contexts=3,
        context=12,
        horizon=8,
        shorter_contexts=(4,),
        num_denoising_steps=(1,),
        precisions=("float32", "bfloat16"),
        dream_signals=(0.1, 0.9),
        reward_episodes=1,
        output=tmp_path / "results",
    )
    evaluate_world_model(config)
    values = json.loads((config.output / "results.json").read_text())
    assert values["denoising_steps"]["1"]["first_8"] != values["shorter_contexts"]["4"]["first_8"]
    assert values["open_loop"]["dream"]["first_8"] != values["shorter_contexts"]["4"]["first_8"]
    first = {name: scores["first_8"] for name, scores in values["precisions"].items()}
    assert first[values["precision"]] == values["open_loop"]["dream"]["first_8"]
    assert first["float32"] != first["bfloat16"]
    levels = {level: scores["first_8"] for level, scores in values["dream_signals"].items()}
    assert levels["0.9"] == values["open_loop"]["dream"]["first_8"] != levels["0.1"]
    for name in ("quality_by_step.png", "strips.png", "dreams.gif"):
        assert (config.output / name).stat().st_size > 0


@pytest.mark.parametrize(("usual", "rare"), [(0.0, 1.0), (0.0, -1.0), (-0.1, -10.0), (-1.0, 5.0)])
def test_events_are_what_lies_furthest_from_what_is_usual(usual: float, rare: float) -> None:
    rewards = np.full(100, usual, np.float32)
    rewards[[3, 50]] = rare
    rewards[7] = usual + 0.4 * (rare - usual)
    assert np.flatnonzero(events_of(rewards).among(rewards)).tolist() == [3, 50]
    assert not events_of(np.full(10, usual)).among(np.full(3, usual)).any()


@pytest.mark.parametrize("reward", [1.0, -10.0])
def test_what_is_told_of_penalties_counts_as_of_rewards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reward: float
) -> None:
    oracle: Any = SimpleNamespace(
        config=SimpleNamespace(gamma=0.9), predict_reward=lambda x: x, predict_value=lambda x: x
    )
    monkeypatch.setattr(
        told_rewards, "read_out_episode", lambda _, episode: torch.from_numpy(episode.rewards)
    )
    told = told_rewards.rewards_on_real_frames(oracle, record(tmp_path / "some", reward), 2)
    scores = {name: told[f"real_{name}"] for name in ("precision", "recall", "average_precision")}
    assert scores == dict.fromkeys(scores, 1.0) and told["real_events"] == 2
    # Where nothing happened, nothing was missed.
    none = told_rewards.rewards_on_real_frames(oracle, record(tmp_path / "none", 0.0), 2)
    assert none["real_events"] == 0 and all(np.isnan(none[f"real_{name}"]) for name in scores)
