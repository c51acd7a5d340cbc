"""Cloning reads episodes as acting does, and advantage weighting imitates what turned out well."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from test_episodes import damage_chunk, episode_file
from test_features import Spy
from tiny import NUM_ACTIONS, tiny_config

from agents.actor_critic import ActorCritic
from agents.cloning import (
    CloningConfig,
    ReadOuts,
    advantage_weights,
    clone_advantages,
    clone_behaviour,
    fit_critic,
    read_out_episodes,
)
from agents.features import FeaturePolicy
from worldsim.dataset_writer import DatasetWriter
from worldsim.episodes import DamagedEpisodeWarning, EpisodeDataset
from worldsim.latents import value_targets
from worldsim.recording import RecordedEpisode
from worldsim.world_model import WorldModel

CONFIG = CloningConfig(num_steps=300, batch_size=256, learning_rate=1e-2)


def make_agent() -> ActorCritic:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ActorCritic(6, 3)


def bandit(seed: int = 0) -> ReadOuts:
    """Six situations in which one of three actions, all tried equally often, returns 1."""
    generator = torch.Generator().manual_seed(seed)
    situations = torch.randint(6, (4000,), generator=generator)
    actions = torch.randint(3, (4000,), generator=generator)
    returns = (actions == situations % 3).float()
    features = torch.nn.functional.one_hot(situations, 6).half()
    return ReadOuts(features, actions, returns, torch.ones(4000))


def test_plain_cloning_imitates_everything_and_leaves_the_critic() -> None:
    agent, features = make_agent(), torch.eye(6).repeat(50, 1)
    data = ReadOuts(features.half(), features.argmax(-1) % 3, torch.zeros(300), torch.ones(300))
    before = copy.deepcopy(agent.critic.state_dict())
    losses = clone_behaviour(agent, data, CONFIG)
    assert losses[-1] < 0.05 < losses[0]
    assert torch.equal(agent.logits(features).argmax(-1), features.argmax(-1) % 3)
    assert all(torch.equal(t, before[k]) for k, t in agent.critic.state_dict().items())


def test_advantage_weighting_finds_the_action_that_plain_cloning_does_not() -> None:
    data, best = bandit(), torch.arange(6) % 3
    plain, weighted = make_agent(), make_agent()
    clone_behaviour(plain, data, CONFIG)
    values = clone_advantages(weighted, data, CONFIG)
    rows = torch.arange(6)
    assert (plain.logits(torch.eye(6)).softmax(-1)[rows, best] < 0.5).all()
    assert (weighted.logits(torch.eye(6)).softmax(-1)[rows, best] > 0.9).all()
    # The situation says nothing of the return: no critic explains it, a third of actions count.
    assert abs(values["explained_variance"]) < 0.05
    assert values["effective_share"] == pytest.approx(1 / 3, abs=0.05)


def test_with_infinite_temperature_all_actions_count_alike() -> None:
    data = bandit()
    data = data._replace(weights=(torch.arange(len(data.actions)) % 2).float())  # half unrecorded
    plain, weighted = make_agent(), make_agent()
    clone_behaviour(plain, data, CONFIG)
    clone_advantages(weighted, data, dataclasses.replace(CONFIG, temperature=float("inf")))
    heads = (plain.policy_head.parameters(), weighted.policy_head.parameters())
    for one, other in zip(*heads, strict=True):
        torch.testing.assert_close(one, other)


def test_the_critic_learns_returns_and_ignores_what_was_not_recorded() -> None:
    agent, data = make_agent(), bandit()
    expected = data.features.argmax(-1).float() / 6
    unknown = torch.arange(4000) % 2 == 0
    returns = torch.where(unknown, 100.0, expected)
    data = data._replace(returns=returns, weights=(~unknown).float())
    assert fit_critic(agent, data, CONFIG) > 0.99
    torch.testing.assert_close(agent.value(torch.eye(6)), torch.arange(6) / 6, atol=0.05, rtol=0)


def test_weights_grow_e_fold_by_temperature_up_to_a_limit() -> None:
    agent, data = make_agent(), bandit()
    fit_critic(agent, data, CONFIG)
    rewarded = data.returns == 1
    weights = advantage_weights(agent, data, dataclasses.replace(CONFIG, temperature=1.0))
    assert weights.mean() == pytest.approx(1, abs=1e-4)
    # Two outcomes 1 apart, whose standard deviation is sqrt(2)/3.
    ratio = (weights[rewarded].mean() / weights[~rewarded].mean()).log()
    assert ratio == pytest.approx(3 / np.sqrt(2), abs=0.1)
    capped = advantage_weights(agent, data, dataclasses.replace(CONFIG, max_weight=1.5))
    assert capped.max() / capped[~rewarded].mean() > 1.5  # the rest may fall as deep as it does
    assert capped[rewarded].std() < 1e-6
    plain = advantage_weights(agent, data, dataclasses.replace(CONFIG, temperature=np.inf))
    torch.testing.assert_close(plain, torch.ones(4000))


def test_what_was_hardly_recorded_does_not_change_how_much_the_rest_counts() -> None:
    agent, data = make_agent(), bandit()
    fit_critic(agent, data, CONFIG)
    hardly = torch.arange(4000) % 10 == 0
    known = data._replace(weights=(~hardly).float())
    wild = known._replace(returns=torch.where(hardly, 1000.0, data.returns))
    one, other = (advantage_weights(agent, d, CONFIG)[~hardly] for d in (known, wild))
    assert one.std() > 0
    torch.testing.assert_close(one, other)


def write_episodes(root: Path, lengths: list[int]) -> EpisodeDataset:
    """Random frames (16, 16, 3); the second episode terminates."""
    rng = np.random.default_rng(0)
    spaces = (gymnasium.spaces.Box(0, 255, (16, 16, 3), np.uint8), gymnasium.spaces.Discrete(6))
    with DatasetWriter("tiny/episodes-v0", *spaces, {}, root=root) as writer:
        for i, length in enumerate(lengths):
            ends = np.arange(length - 1) == length - 2
            episode = RecordedEpisode(
                observations=rng.integers(0, 256, (length, 16, 16, 3), dtype=np.uint8),
                actions=rng.integers(NUM_ACTIONS, size=length - 1),
                rewards=rng.random(length - 1),
                terminations=ends & (i == 1),
                truncations=ends & (i != 1),
                infos={},
                seed=i,
                metadata={},
            )
            writer.save(i, episode)
    return EpisodeDataset(writer.path)


def small_frames_model() -> WorldModel:
    """Of frames (16, 16, 3)."""
    config = tiny_config()
    tokenizer = dataclasses.replace(config.tokenizer, frame_shape=(16, 16, 3), patch_size=8)
    torch.manual_seed(0)
    model = WorldModel(dataclasses.replace(config, tokenizer=tokenizer)).eval()
    for layer in model.denoiser.backbone.layers:
        torch.nn.init.normal_(layer.mixer.out_proj.weight, std=0.3)
    return model


def test_damaged_episodes_are_named_and_left_out(tmp_path: Path) -> None:
    dataset, model = write_episodes(tmp_path, [9, 70, 9]), small_frames_model()
    whole = read_out_episodes(model, dataset, 3)
    path = tmp_path / "tiny" / "episodes-v0"
    damage_chunk(episode_file(path, 1), 1)
    dataset = EpisodeDataset(path)
    with pytest.warns(DamagedEpisodeWarning, match="episode 1 of"):
        data = read_out_episodes(model, dataset, 3)
    kept = [*range(8), *range(8 + 69, 8 + 69 + 8)]
    torch.testing.assert_close(data.features, whole.features[kept], atol=5e-3, rtol=5e-3)
    assert torch.equal(data.actions, whole.actions[kept])


def test_episodes_are_read_out_as_acting_on_them_would(tmp_path: Path) -> None:
    lengths = [9, 5, 70]
    dataset = write_episodes(tmp_path, lengths)
    model = small_frames_model()
    reports: list[tuple[int, int]] = []
    data = read_out_episodes(
        model, dataset, 5, batch_size=2, progress=lambda done, total: reports.append((done, total))
    )
    assert reports == [(14, 84), (84, 84)]
    start = 0
    for i, length in enumerate(lengths):
        episode = dataset.episode(i)
        spy = Spy(episode.actions[None, 1:])
        policy, state = FeaturePolicy(model, spy), None
        for t in range(length - 1):
            _, state = policy.act(episode.frames[t : t + 1], state, np.array([t == 0]))
        rows = slice(start, start + length - 1)
        seen = torch.from_numpy(np.concatenate(spy.features))
        torch.testing.assert_close(data.features[rows].float(), seen, atol=5e-3, rtol=5e-3)
        np.testing.assert_array_equal(data.actions[rows], episode.actions[1:])
        returns, known = value_targets(
            torch.from_numpy(episode.rewards), torch.from_numpy(episode.terminated), 0.98
        )
        torch.testing.assert_close(data.returns[rows], returns[:-1])
        torch.testing.assert_close(data.weights[rows], known[:-1])
        assert bool((known == 1).all()) == (i == 1)
        start += length - 1
    assert len(data.actions) == start


@pytest.mark.parametrize("field", ["num_episodes", "temperature", "max_weight"])
def test_bad_settings_are_refused(field: str) -> None:
    options: dict[str, Any] = {field: 0}
    with pytest.raises(ValueError, match=f"{field} must be positive, got 0"):
        CloningConfig(**options)
