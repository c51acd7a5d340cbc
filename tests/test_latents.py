"""Segments of latents stay inside their episodes, and cached latents are those of the frames."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import write_dataset

from worldsim.episodes import Episode, EpisodeDataset
from worldsim.latents import (
    LatentEpisodes,
    discounted_returns,
    encode_dataset,
    shuffled_stretches,
    value_targets,
)
from worldsim.tokenizer import Tokenizer, TokenizerConfig


def numbered(*lengths: int) -> LatentEpisodes:
    """Frame t of episode i has the latent (i, t); so do action and reward."""
    i = torch.cat([torch.full((n,), float(k)) for k, n in enumerate(lengths)])
    t = torch.cat([torch.arange(n).float() for n in lengths])
    latents = torch.stack([i, t], -1)[:, None].half()
    return LatentEpisodes(latents, t.long(), i, t == 3, lengths=np.array(lengths))


def test_segments_stay_inside_one_episode_and_fields_stay_together() -> None:
    episodes = numbered(3, 12, 5, 30, 4)
    batch = episodes.sample(500, 5, np.random.default_rng(0))
    assert batch.latents.shape == (500, 5, 1, 2) and batch.latents.dtype == torch.float32
    episode, time = batch.latents[..., 0, 0], batch.latents[..., 0, 1]
    assert (episode == episode[:, :1]).all()
    assert (time.diff(dim=1) == 1).all()
    assert set(episode[:, 0].tolist()) == {1, 2, 3}  # those long enough
    assert torch.equal(batch.actions, time.long())
    assert torch.equal(batch.rewards, episode)
    assert torch.equal(batch.terminated, time == 3)


def test_shuffled_segments_are_stretches_of_one_episode() -> None:
    episodes = numbered(3, 12, 5, 30, 4)
    episodes.actions[:] = 1
    episodes.actions[torch.from_numpy(episodes.offsets)] = 7  # none led to first frames
    batch = episodes.sample(400, 5, np.random.default_rng(0), longest_stretch=2)
    episode, time = batch.latents[..., 0, 0], batch.latents[..., 0, 1]
    assert (episode == episode[:, :1]).all() and torch.equal(batch.rewards, episode)
    assert torch.equal(batch.terminated, time == 3)
    steps = time.diff(dim=1)
    assert (steps < 0).any() and (steps > 10).any()  # from all over the episode, in any order
    assert (steps == 1).any()
    assert torch.equal(batch.actions[:, 1:] == 7, (steps != 1) | (time[:, 1:] == 0))
    assert (batch.actions[:, 0] == 7).all()


@pytest.mark.parametrize(("num_frames", "length"), [(1, 1), (8, 8), (9, 8), (30, 8), (257, 64)])
def test_stretches_are_whole_and_of_all_lengths(num_frames: int, length: int) -> None:
    rng, seen, most = np.random.default_rng(0), set(), 0
    for _ in range(300):
        frames = shuffled_stretches(num_frames, length, length, rng)
        assert frames.shape == (length,) and len(set(frames.tolist())) == length
        assert 0 <= frames.min() and frames.max() < num_frames
        seen |= set(frames.tolist())
        cuts = np.flatnonzero(np.diff(frames) != 1) + 1
        most = max(most, max(np.diff([0, *cuts, length])))
    assert seen == set(range(num_frames))
    alone = [shuffled_stretches(num_frames, length, 1, rng) for _ in range(50)]
    assert length < 8 or all((np.diff(frames) != 1).any() for frames in alone)
    assert most == length or num_frames < 2 * length


def test_stretches_can_be_whole_episodes() -> None:
    episodes = numbered(8, 8)
    batch = episodes.sample(4, 8, np.random.default_rng(0), longest_stretch=8)
    episode, time = batch.latents[..., 0, 0], batch.latents[..., 0, 1]
    assert (episode == episode[:, :1]).all()
    assert torch.equal(time.sort(dim=1).values, torch.arange(8.0).expand(4, 8))


def test_values_of_cut_episodes_are_not_too_low() -> None:
    rng, gamma = np.random.default_rng(0), 0.98
    running = torch.zeros(64, dtype=torch.bool)
    sums = torch.zeros(2)
    for _ in range(2000):  # rewards of 0.1 a step, on average: a value of 5 wherever it is cut
        rewards = torch.from_numpy(rng.random(64) < 0.1).float()
        targets, weights = value_targets(rewards, running, gamma)
        sums += torch.tensor([(targets * weights).sum(), weights.sum()])
    assert float(sums[0] / sums[1]) == pytest.approx(5.0, rel=0.05)
    ended = running.clone()
    ended[-1] = True
    returns, _ = discounted_returns(rewards, ended, gamma)
    assert torch.equal(value_targets(rewards, ended, gamma)[0], returns)  # nothing follows an end


def test_few_frames_of_long_stretches_are_most_often_uncut() -> None:
    rng = np.random.default_rng(0)
    frames = [shuffled_stretches(257, 25, 256, rng) for _ in range(300)]
    assert np.mean([(np.diff(f) == 1).all() for f in frames]) > 0.3


def test_returns_are_discounted_sums_of_the_episode_alone_and_say_how_much_is_known() -> None:
    rewards = torch.tensor([9.0, 1.0, 0.0, 4.0])
    running = torch.zeros(4, dtype=torch.bool)
    returns, known = discounted_returns(rewards, running, 0.5)
    torch.testing.assert_close(returns, torch.tensor([1 + 4 / 4, 4 / 2, 4.0, 0.0]))
    torch.testing.assert_close(known, torch.tensor([1 - 1 / 8, 1 - 1 / 4, 1 / 2, 0.0]))
    ended = torch.tensor([False, False, False, True])
    assert torch.equal(discounted_returns(rewards, ended, 0.5)[1], torch.ones(4))

    episodes = numbered(6, 9)  # rewards 0 in the first, 1 in the second
    batch = episodes.sample(50, 6, np.random.default_rng(0))
    first = batch.rewards[:, 0] == 0
    assert (batch.returns[first] == 0).all() and (batch.returns[~first][:, :-3] > 0).all()
    last = batch.latents[~first][:, -1, 0, 1] == 8
    assert (batch.returns[~first][last, -1] == 0).all()  # nothing of another episode


def test_every_start_is_as_likely_but_the_first() -> None:
    episodes = numbered(2, 8, 24)
    starts = {}
    for probability in (0.0, 0.25, 1.0):
        batch = episodes.sample(4000, 5, np.random.default_rng(0), probability)
        starts[probability] = batch.latents[:, 0, 0]
    counts = np.unique(starts[0.0].numpy(), axis=0, return_counts=True)[1]
    assert len(counts) == 4 + 20
    assert counts.min() > 4000 / 24 * 0.7 and counts.max() < 4000 / 24 * 1.3
    share = (starts[0.25][:, 1] == 0).float().mean()
    assert share == pytest.approx(0.25 + 0.75 * 2 / 24, abs=0.03)
    assert (starts[1.0][:, 1] == 0).all()


def test_too_long_segments_are_named() -> None:
    with pytest.raises(ValueError, match="no episode has 13 frames; the longest 12"):
        numbered(3, 12).sample(1, 13, np.random.default_rng(0))


def make_tokenizer(seed: int = 0) -> Tokenizer:
    torch.manual_seed(seed)
    config = TokenizerConfig(
        frame_shape=(16, 16, 3), patch_size=8, channels=(16,), latent_channels=4
    )
    return Tokenizer(config).eval().requires_grad_(False)


def test_cached_latents_are_those_of_the_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = EpisodeDataset(write_dataset(tmp_path, num_episodes=3))
    tokenizer, cache = make_tokenizer(), tmp_path / "run" / "latents.safetensors"
    calls: list[int] = []
    encode = Tokenizer.encode

    def counted(self: Tokenizer, frames: torch.Tensor) -> torch.Tensor:
        calls.append(len(frames))
        return encode(self, frames)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    done: list[tuple[int, int]] = []
    first = encode_dataset(tokenizer, dataset, cache, progress=lambda *x: done.append(x))
    assert sum(calls) == dataset.num_frames == first.num_frames and done[-1] == (60, 60)
    assert first.lengths.tolist() == dataset.lengths.tolist()
    expected = torch.cat([tokenizer.encode(torch.from_numpy(e.frames)) for e in dataset])
    torch.testing.assert_close(first.latents.float(), expected, rtol=1e-2, atol=1e-2)
    assert first.actions.tolist() == [int(a) for e in dataset for a in e.actions]
    assert first.terminated.sum() == 2

    def again(tokenizer: Tokenizer, dataset: EpisodeDataset) -> tuple[bool, LatentEpisodes]:
        calls.clear()
        result = encode_dataset(tokenizer, dataset, cache)
        return not calls, result

    from_cache, second = again(tokenizer, dataset)
    assert from_cache
    for name in ("latents", "actions", "rewards", "terminated"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert first.lengths.tolist() == second.lengths.tolist()
    assert not again(make_tokenizer(seed=1), dataset)[0]  # another tokenizer
    assert again(make_tokenizer(seed=1), dataset)[0]
    assert not again(make_tokenizer(seed=1), dataset.select([0, 1]))[0]  # other episodes
    assert not again(tokenizer, dataset)[0] and again(tokenizer, dataset)[0]
    repainted = dataset.select([0, 1, 2])
    assert again(tokenizer, repainted)[0]

    def negative(*where: int) -> Episode:
        episode = dataset.episode(*where)
        return dataclasses.replace(episode, frames=255 - episode.frames)

    monkeypatch.setattr(repainted, "episode", negative)
    assert not again(tokenizer, repainted)[0]  # the same actions and rewards, other frames
    os.truncate(cache, 100)
    assert not again(tokenizer, dataset)[0]  # damaged
    assert [p.name for p in cache.parent.iterdir()] == [cache.name]


def test_returns_are_discounted_as_asked_from_the_cache_too(tmp_path: Path) -> None:
    dataset = EpisodeDataset(write_dataset(tmp_path, num_episodes=2))
    cache = tmp_path / "latents.safetensors"
    made, kept, other = (
        encode_dataset(make_tokenizer(), dataset, cache, gamma=g) for g in (0.5, 0.5, 0.9)
    )
    rewards, ended = dataset.rewards(0), dataset.terminated(0)
    expected, _ = value_targets(torch.from_numpy(rewards), torch.from_numpy(ended), 0.5)
    assert torch.equal(made.returns[: len(expected)], expected)
    assert torch.equal(kept.returns, made.returns)
    assert not torch.equal(other.returns, made.returns)
