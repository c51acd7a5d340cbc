"""Policies from recorded episodes: behaviour cloning, plain or weighted by advantage.

The world model observes the episodes once; policy and critic learn from its read-outs. Advantage
weighting (AWR, Peng et al. 2019, arXiv 1910.00177) imitates most what turned out better than
expected: the critic is fitted to the returns that followed, and an action counts
exp(advantage / temperature).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from agents.actor_critic import ActorCritic
from worldsim.episodes import DamagedEpisodeError, EpisodeDataset
from worldsim.latents import value_targets
from worldsim.world_model import WorldModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class CloningConfig:
    """How to learn from recorded episodes."""

    num_episodes: int = 160
    """Episodes to read, spread evenly over the dataset."""
    num_steps: int = 1500
    """Gradient steps, of the critic and then of the policy."""
    batch_size: int = 1024
    learning_rate: float = 5e-4
    weight_decay: float = 1e-2
    temperature: float = 0.3
    """Advantage, in standard deviations of it, by which the weight of an action grows e-fold;
    infinity is plain behaviour cloning."""
    max_weight: float = 20.0
    """Largest weight."""

    def __post_init__(self) -> None:
        for name in ("num_episodes", "num_steps", "batch_size", "temperature", "max_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


class ReadOuts(NamedTuple):
    """What the world model reads out of recorded frames, and what followed each."""

    features: Tensor  # (n, d) float16
    actions: Tensor  # (n,) int64, taken after the frame
    returns: Tensor  # (n,) float32, discounted by the model's gamma, see `value_targets`
    weights: Tensor  # (n,) float32, how much of each return was recorded


@torch.no_grad()
def read_out_episodes(
    model: WorldModel,
    dataset: EpisodeDataset,
    num_episodes: int,
    *,
    batch_size: int = 16,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ReadOuts:
    """Have the model observe episodes from their beginning.

    Args:
        model: observes.
        dataset: recorded episodes.
        num_episodes: how many, spread evenly; all where there are fewer.
        batch_size: episodes side by side.
        progress: called with (frames done, frames in all).

    Returns:
        One row for every frame but the last of each episode; damaged ones are warned of and left
        out.

    Raises:
        ValueError: no episode can be read.
    """
    count = min(num_episodes, len(dataset))
    indices = np.linspace(0, len(dataset) - 1, count).round().astype(int)
    lengths = dataset.lengths[indices]
    parts: list[ReadOuts] = []
    done = 0
    for first in range(0, count, batch_size):
        rows, sizes = indices[first : first + batch_size], lengths[first : first + batch_size]
        features, damaged = _observe_together(model, dataset, rows, sizes)
        for row, size, read in zip(rows, sizes, features, strict=True):
            if row in damaged:
                continue
            actions = torch.from_numpy(dataset.actions(row)[1:]).long()
            rewards = torch.from_numpy(dataset.rewards(row))
            ended = torch.from_numpy(dataset.terminated(row))
            returns, known = value_targets(rewards, ended, model.config.gamma)
            parts.append(ReadOuts(read[: size - 1], actions, returns[:-1], known[:-1]))
        done += int(sizes.sum())
        progress(done, int(lengths.sum()))
    if not parts:
        raise ValueError(f"none of {count} episodes can be read")
    return ReadOuts(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _observe_together(
    model: WorldModel, dataset: EpisodeDataset, rows: np.ndarray, sizes: np.ndarray, chunk: int = 64
) -> tuple[Tensor, set[int]]:
    """Features (b, longest, d) float16 on the CPU, and which episodes turned out to be damaged.

    Features after an episode's end mean nothing.
    """
    state, parts, damaged = model.initial_state(len(rows)), [], set[int]()
    for start in range(0, int(sizes.max()), chunk):
        length = min(chunk, int(sizes.max()) - start)
        frames = np.zeros((len(rows), length, *model.config.frame_shape), np.uint8)
        actions = np.zeros((len(rows), length), np.int64)
        for i, (row, size) in enumerate(zip(rows, sizes, strict=True)):
            stop = min(start + length, int(size))
            if start < stop and row not in damaged:
                try:
                    episode = dataset.episode(row, start, stop)
                except DamagedEpisodeError as error:
                    dataset.leave_out(int(row), error)
                    damaged.add(row)
                    continue
                frames[i, : stop - start] = episode.frames
                actions[i, : stop - start] = episode.actions
        state, features = model.observe_latents(
            state,
            torch.from_numpy(actions).to(model.device),
            model.encode(torch.from_numpy(frames).to(model.device)),
        )
        parts.append(features.half().cpu())
    return torch.cat(parts, dim=1), damaged


def fit_critic(agent: ActorCritic, data: ReadOuts, config: CloningConfig, seed: int = 0) -> float:
    """Fit the critic to the returns that followed.

    Returns:
        Share of the returns' variance that it explains, over the data it was fitted to.
    """

    def loss(rows: Tensor) -> Tensor:
        error = agent.value(_features(agent, data, rows)) - data.returns[rows].to(_device(agent))
        return (error.square() * data.weights[rows].to(_device(agent))).mean()

    _minimise(loss, agent.critic, len(data.features), config, seed)
    residual = data.returns - _values(agent, data)
    error = (data.weights * residual.square()).sum() / data.weights.sum()
    return 1 - float(error / _variance(data.returns, data.weights).clamp(min=1e-12))


def _variance(values: Tensor, weights: Tensor) -> Tensor:
    """Of values (n,) that count as much as their weights (n,) say."""
    shares = weights / weights.sum().clamp(min=1e-12)
    return (shares * (values - (shares * values).sum()).square()).sum()


def advantage_weights(agent: ActorCritic, data: ReadOuts, config: CloningConfig) -> Tensor:
    """How much each recorded action counts, (n,) float32 with mean 1; see the module's words."""
    if math.isinf(config.temperature):
        return torch.ones(len(data.actions))  # also where the return was not recorded
    advantages = data.returns - _values(agent, data)
    # As `fit_critic` weighs them: targets of what was hardly recorded are far off.
    spread = _variance(advantages, data.weights).sqrt()
    scale = config.temperature * spread.clamp(min=1e-6)
    largest = torch.tensor(config.max_weight).log()
    weights = (advantages / scale).clamp(max=largest).exp() * data.weights
    return weights / weights.mean().clamp(min=1e-12)


def clone_behaviour(
    agent: ActorCritic,
    data: ReadOuts,
    config: CloningConfig | None = None,
    *,
    weights: Tensor | None = None,
    seed: int = 0,
) -> list[float]:
    """Train the policy to predict recorded actions.

    Args:
        agent: its policy is changed, its critic is not.
        data: read-outs and the actions that followed.
        config: of the training.
        weights: (n,) how much each action counts; by default all the same.
        seed: of the batches.

    Returns:
        The loss of every step, in nats.
    """

    def loss(rows: Tensor) -> Tensor:
        logits = agent.logits(_features(agent, data, rows))
        chosen = data.actions[rows].to(logits.device)
        losses = F.cross_entropy(logits, chosen, reduction="none")
        return (losses if weights is None else losses * weights[rows].to(losses.device)).mean()

    config = config or CloningConfig()
    return _minimise(loss, agent.policy_head, len(data.features), config, seed)


def clone_advantages(
    agent: ActorCritic, data: ReadOuts, config: CloningConfig | None = None, seed: int = 0
) -> dict[str, float]:
    """Fit the critic, then train the policy on actions weighted by their advantage.

    Returns:
        What to log: "explained_variance" of the returns, the "effective_share" of the actions that
        the weights leave, and the first and last "loss".
    """
    config = config or CloningConfig()
    explained = fit_critic(agent, data, config, seed)
    weights = advantage_weights(agent, data, config)
    losses = clone_behaviour(agent, data, config, weights=weights, seed=seed)
    return {
        "explained_variance": explained,
        "effective_share": float(weights.sum() ** 2 / weights.square().sum() / len(weights)),
        "first_loss": losses[0],
        "last_loss": float(np.mean(losses[-50:])),
    }


def _device(agent: ActorCritic) -> torch.device:
    return next(agent.parameters()).device


def _features(agent: ActorCritic, data: ReadOuts, rows: Tensor) -> Tensor:
    return data.features[rows].float().to(_device(agent))


@torch.no_grad()
def _values(agent: ActorCritic, data: ReadOuts) -> Tensor:
    parts = data.features.split(8192)
    return torch.cat([agent.value(part.float().to(_device(agent))).cpu() for part in parts])


def _minimise(
    loss: Callable[[Tensor], Tensor],
    module: torch.nn.Module,
    num_rows: int,
    config: CloningConfig,
    seed: int,
) -> list[float]:
    """Minimise a loss of random rows over the module's parameters; the loss of every step."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    generator, losses = torch.Generator().manual_seed(seed), []
    for _ in range(config.num_steps):
        value = loss(torch.randint(num_rows, (config.batch_size,), generator=generator))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses
