"""Where dreams start: stretches of real episodes that the model has observed.

A world model's state has constant size, so the states of many contexts are observed once, in
parallel form, and kept in a bank. Starting a dream is then a gather.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from worldsim.checkpoint import Contexts, load, load_contexts
from worldsim.checks import check_device
from worldsim.episodes import DamagedEpisodeError, Episode, EpisodeDataset
from worldsim.state import WorldState
from worldsim.world_model import WorldModel


class ContextBank:
    """States of observed contexts, with the last frame of each.

    Args:
        states: the model's state after each context, a batch of n.
        frames: last frame of each context, (n, h, w, c) uint8.
    """

    def __init__(self, states: WorldState, frames: np.ndarray) -> None:
        if states.batch_size != len(frames):
            raise ValueError(f"{states.batch_size} states do not match {len(frames)} frames")
        self.states = states
        self.frames = frames

    @classmethod
    @torch.no_grad()
    def observe(
        cls,
        model: WorldModel,
        frames: np.ndarray,
        actions: np.ndarray,
        *,
        batch_size: int = 8,
        starts_per_context: int = 1,
    ) -> ContextBank:
        """Let the model observe contexts.

        Args:
            model: the world model; states stay on its device.
            frames: (n, m, h, w, c) uint8, the frame shape of the model.
            actions: (n, m) integers; `actions[:, i]` led to `frames[:, i]`, `no_action` where an
                episode begins.
            batch_size: contexts observed at once.
            starts_per_context: states kept of each context, evenly spaced over its second half, the
                last at its end; those of one context follow each other.

        Raises:
            ValueError: no context, arrays whose shape, dtype or values the model cannot read, or
                more starts than a context has frames in its second half.
        """
        frames, actions = np.asarray(frames), np.asarray(actions)
        _check(model, frames, actions)
        length = frames.shape[1]
        if not 1 <= starts_per_context <= max(length // 2, 1):
            raise ValueError(
                f"starts_per_context is {starts_per_context}; contexts of {length} frames have "
                f"from 1 to {max(length // 2, 1)}"
            )
        later = reversed(range(starts_per_context))
        ends = [length - i * (length // 2) // starts_per_context for i in later]
        device = next(model.parameters()).device
        states = []
        for start in range(0, len(frames), batch_size):
            part = slice(start, start + batch_size)
            batch = torch.as_tensor(frames[part], device=device)
            led = torch.as_tensor(actions[part].astype(np.int64), device=device)
            state, begin, kept = model.initial_state(len(batch)), 0, []
            for end in ends:
                state = model.observe(state, led[:, begin:end], batch[:, begin:end])
                kept.append(state)
                begin = end
            order = torch.arange(len(batch) * len(ends), device=device)
            order = order.view(len(ends), len(batch)).T.flatten()  # context by context
            states.append(WorldState.cat(kept)[order] if len(kept) > 1 else state)
        last = frames[:, [end - 1 for end in ends]]
        return cls(WorldState.cat(states), last.reshape(-1, *frames.shape[2:]).copy())

    def __len__(self) -> int:
        return len(self.frames)

    def check(self, indices: np.ndarray) -> None:
        """Raise IndexError where an index is outside the bank."""
        for index in indices.tolist():
            if not 0 <= index < len(self):
                raise IndexError(f"context {index} is not in this bank of {len(self)} contexts")

    def gather(self, indices: np.ndarray) -> tuple[WorldState, np.ndarray]:
        """States (b) and last frames (b, h, w, c) of the contexts at indices (b,).

        Raises:
            IndexError: an index is outside the bank.
        """
        self.check(indices)
        rows = torch.as_tensor(indices, device=self.states.device)
        return self.states[rows], self.frames[indices]


def sample_contexts(
    dataset: str | Path | EpisodeDataset,
    num_contexts: int,
    context_length: int,
    *,
    seed: int = 0,
    frames_to_reward: int | None = None,
) -> Contexts:
    """Draw stretches of recorded episodes, uniformly over all that are long enough.

    None ends in a frame in which its episode terminated, for nothing is learned of what is after.

    Args:
        dataset: episodes, or the id or path of a dataset.
        num_contexts: stretches drawn.
        context_length: frames in each of them.
        seed: decides which.
        frames_to_reward: draw only stretches after which the recorded policy was rewarded within so
            many frames: where rewards are rare, short dreams rarely reach one from anywhere else.

    Raises:
        FileNotFoundError: there is no such dataset.
        NoRewardError: no such reward.
        ValueError: no episode is that long.
    """
    if not isinstance(dataset, EpisodeDataset):
        dataset = EpisodeDataset(dataset)
    rng = np.random.default_rng(seed)
    if frames_to_reward is None:
        segments = dataset.sample_segments(num_contexts, context_length, rng, going_on=True)
        return Contexts(segments.frames, segments.actions)
    ends = [
        (episode, end)
        for episode in range(len(dataset))
        for end in _ends_before_reward(dataset.rewards(episode), context_length, frames_to_reward)
    ]
    if not ends:
        raise NoRewardError(
            f"no stretch of {context_length} frames is followed by a reward within "
            f"{frames_to_reward} frames"
        )
    episodes: list[Episode] = []
    while len(episodes) < num_contexts:
        if not ends:
            raise ValueError("no episode with such a stretch can be read")
        for i in rng.integers(len(ends), size=num_contexts - len(episodes)):
            episode, end = ends[i]
            try:
                episodes.append(dataset.episode(episode, end - context_length, end))
            except DamagedEpisodeError as error:
                dataset.leave_out(episode, error)
                ends = [other for other in ends if other[0] != episode]
                break  # what else was drawn may be of it
    return Contexts(np.stack([e.frames for e in episodes]), np.stack([e.actions for e in episodes]))


def _ends_before_reward(rewards: np.ndarray, length: int, within: int) -> list[int]:
    """Ends of stretches (exclusive) with a reward in the `within` frames that follow."""
    rewarded = np.concatenate([[0], np.cumsum(rewards > 0)])  # rewarded[i]: in the first i frames
    ends = np.arange(length, len(rewards))
    follows = rewarded[np.minimum(ends + within, len(rewards))] > rewarded[ends]
    return ends[follows].tolist()


ContextSource: TypeAlias = (
    ContextBank | Contexts | tuple[np.ndarray, np.ndarray] | EpisodeDataset | str | Path
)


class NoRewardError(ValueError):
    """No recorded stretch is followed by a reward."""


def open_contexts(
    model: WorldModel,
    contexts: ContextSource | None,
    *,
    world_model: str | Path | None = None,
    num_contexts: int = 64,
    context_length: int = 128,
    frames_to_reward: int | None = None,
    num_starts: int | None = None,
    seed: int = 0,
) -> ContextBank:
    """Turn whatever names contexts into a bank.

    Args:
        model: the world model that observes them.
        contexts: a bank, taken as it is; arrays (frames, actions), all of them observed; episodes,
            or the id or path of a dataset, of which `num_contexts` stretches of `context_length`
            frames are drawn; or None for the contexts that ship with `world_model`.
        world_model: name or directory of the checkpoint that the model came from.
        num_contexts: stretches drawn from a dataset.
        context_length: frames in each of them, or as many as half of the episodes have; fewer where
            a reward is to follow.
        frames_to_reward: draw them from shortly before rewards, see `sample_contexts`; dreams start
            at the ends of those drawn alone.
        num_starts: about how many starts to make of few contexts, by starting dreams within their
            second halves too; None: one of each.
        seed: decides which stretches are drawn.

    Raises:
        ValueError: there is nothing to start from, or it is of another model or environment.
    """
    if isinstance(contexts, ContextBank):
        contexts.states.check_like(model.initial_state(1), "the bank of contexts")
        return ContextBank(contexts.states.to(model.device), contexts.frames)
    if contexts is None:
        if world_model is None:
            raise ValueError(
                "contexts=None means those shipped with a checkpoint, but world_model is an "
                "object and not a name or path: pass contexts= arrays, a dataset or a ContextBank"
            )
        contexts = load_contexts(world_model)
    elif isinstance(contexts, str | Path | EpisodeDataset):
        dataset, name = contexts, "the dataset"
        if not isinstance(dataset, EpisodeDataset):
            name = str(contexts)
            dataset = EpisodeDataset(dataset, image_key=model.config.image_key)
        known = model.config.num_actions
        if dataset.num_actions != known:
            raise ValueError(
                f"{name} has {dataset.num_actions} actions, the model {known}: take contexts "
                "from the environment that the model learned"
            )
        most = int(np.median(dataset.frames_going_on()))
        if frames_to_reward is not None:
            most, num_starts = max(most - frames_to_reward, most // 2, 1), None
        if most < context_length:
            more = "" if frames_to_reward is None else " and a reward after them"
            warnings.warn(
                f"half of the episodes of {name} have no {context_length} frames{more}, so "
                f"that contexts have {most}",
                stacklevel=2,
            )
            context_length = most
        contexts = sample_contexts(
            dataset, num_contexts, context_length, seed=seed, frames_to_reward=frames_to_reward
        )
    if isinstance(contexts, Contexts):
        contexts = contexts.frames, contexts.actions
    frames, actions = contexts
    most = max(np.shape(frames)[1] // 2, 1)
    starts = 1 if num_starts is None else min(max(num_starts // len(frames), 1), most)
    return ContextBank.observe(model, frames, actions, starts_per_context=starts)


def open_world(
    world_model: str | Path | WorldModel,
    contexts: ContextSource | None,
    *,
    device: str | torch.device | None = None,
    num_contexts: int = 64,
    context_length: int = 128,
) -> tuple[WorldModel, ContextBank]:
    """Open a model, ready for inference, and the contexts that its dreams start from.

    Args:
        world_model: name of a shipped model, a checkpoint directory, or a model.
        contexts, num_contexts, context_length: see `open_contexts`.
        device: where the model is moved; None: where it is, the CPU when it is loaded.

    Raises:
        CheckpointError: there is no such model, or it is damaged.
        ValueError: there is nothing to start from, or no such device.
    """
    if isinstance(world_model, WorldModel):
        model, source = world_model, None
        if device is not None:
            model.to(check_device(device))
    else:
        model, source = load(world_model, device=device or "cpu"), world_model
    bank = open_contexts(
        model.eval(),
        contexts,
        world_model=source,
        num_contexts=num_contexts,
        context_length=context_length,
    )
    return model, bank


def _check(model: WorldModel, frames: np.ndarray, actions: np.ndarray) -> None:
    shape = tuple(model.config.frame_shape)
    if frames.ndim != 5 or frames.shape[2:] != shape or frames.dtype != np.uint8:
        raise ValueError(
            f"context frames must be uint8 of shape (n, m, {', '.join(map(str, shape))}), "
            f"got {frames.dtype} of shape {frames.shape}"
        )
    if 0 in frames.shape:
        raise ValueError(f"contexts are empty: frames of shape {frames.shape}")
    if actions.shape != frames.shape[:2] or not np.issubdtype(actions.dtype, np.integer):
        raise ValueError(
            f"context actions must be integers of shape {frames.shape[:2]}, "
            f"got {actions.dtype} of shape {actions.shape}"
        )
    if actions.min() < 0 or actions.max() > model.no_action:
        raise ValueError(
            f"context actions must lie in [0, {model.no_action}] ({model.no_action} for none), "
            f"got values from {actions.min()} to {actions.max()}"
        )
