"""Episodes as latent tokens in memory: frames are encoded once, training reads these."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldsim.cache import add_tensors, keep_tensors, kept_tensors
from worldsim.episodes import DamagedEpisodeError, EpisodeDataset
from worldsim.pose import poses_of
from worldsim.tokenizer import Tokenizer


class LatentBatch(NamedTuple):
    """Segments of latents; fields as in `episodes.Segments`."""

    latents: Tensor  # (b, t, n, c) float32
    actions: Tensor  # (b, t) int64, "no action" where a new stretch begins
    poses: Tensor  # (b, t, 3) float32, zeros where they are not known
    rewards: Tensor  # (b, t) float32
    terminated: Tensor  # (b, t) bool
    returns: Tensor  # (b, t) float32 discounted rewards after each frame, see `value_targets`
    return_weights: Tensor  # (b, t) float32 share of each return that was recorded


def discounted_returns(rewards: Tensor, terminated: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Returns that followed each frame of an episode, and how much of each was recorded.

    Args:
        rewards: (t,) of arriving at each frame. terminated: (t,) bool.
        gamma: discount.

    Returns:
        (t,) float32 `sum of gamma^(k-1) rewards[i+k]`, and (t,) float32 weights: 1 where the
        episode terminated, else 1 - gamma^(frames left), since what followed is not known.
    """
    returns = [0.0]  # after the last frame, then backwards
    for reward in reversed(rewards[1:].tolist()):
        returns.append(reward + gamma * returns[-1])
    left = torch.arange(len(rewards) - 1, -1, -1).float()
    known = torch.ones(len(rewards)) if bool(terminated.any()) else 1 - gamma**left
    return torch.tensor(returns[::-1]), known


LEAST_KNOWN = 0.05
"""Share of a return from which on the rest is taken to be like it; what is less stays too low."""


def value_targets(rewards: Tensor, terminated: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """What the values of an episode's frames are to be, and how much each counts.

    Where an episode was cut, what followed is taken to have made as much as what was recorded:
    otherwise values would fall towards every cut, and be too low in all short episodes.

    Args:
        rewards, terminated, gamma: as for `discounted_returns`.

    Returns:
        (t,) float32 targets, and (t,) float32 weights: the shares that were recorded.
    """
    returns, known = discounted_returns(rewards, terminated, gamma)
    return returns / known.clamp(min=LEAST_KNOWN), known


class LatentEpisodes:
    """All frames of a dataset, encoded, one after the other.

    Args:
        latents: (frames, n, c) float16. actions, rewards, terminated: (frames,).
        lengths: frames of each episode, in order.
        gamma: discount of the returns.
        poses: (frames, 3) float32, where models shall learn from them.
    """

    def __init__(
        self,
        latents: Tensor,
        actions: Tensor,
        rewards: Tensor,
        terminated: Tensor,
        lengths: np.ndarray,
        gamma: float = 0.98,
        poses: Tensor | None = None,
    ) -> None:
        self.poses = poses
        self.latents, self.actions = latents, actions
        self.rewards, self.terminated = rewards, terminated
        self.lengths = np.asarray(lengths)
        parts = zip(
            rewards.split(self.lengths.tolist()),
            terminated.split(self.lengths.tolist()),
            strict=True,
        )
        pairs = [value_targets(r, ended, gamma) for r, ended in parts]
        self.returns, self.return_weights = (torch.cat(part) for part in zip(*pairs, strict=True))
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])

    @property
    def num_frames(self) -> int:
        return len(self.actions)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))

    def to(self, device: torch.device | str) -> LatentEpisodes:
        """The same episodes on a device; batches are put together where the episodes are."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device))
        return moved

    def sample(
        self,
        batch_size: int,
        length: int,
        rng: np.random.Generator,
        start_probability: float = 0.1,
        longest_stretch: int = 0,
    ) -> LatentBatch:
        """Draw segments, uniformly over all frames where one of this length can begin.

        Args:
            batch_size, length: shape of the batch.
            rng: source of randomness.
            start_probability: share of segments that begin where an episode begins.
            longest_stretch: where above 0, segments are `shuffled_stretches` of their episodes;
                where one begins, the action is that of an episode's first frame: none.

        Raises:
            ValueError: no episode has `length` frames.
        """
        num_starts = np.maximum(self.lengths - length + 1, 0)
        last = np.cumsum(num_starts)
        if last[-1] == 0:
            raise ValueError(f"no episode has {length} frames; the longest {self.lengths.max()}")
        draws = rng.integers(last[-1], size=batch_size)
        episode = np.searchsorted(last, draws, side="right")
        start = draws - (last[episode] - num_starts[episode])
        start = np.where(rng.random(batch_size) < start_probability, 0, start)
        frames = (self.offsets[episode] + start)[:, None] + np.arange(length)
        if longest_stretch:
            for row, i in zip(frames, episode, strict=True):
                stretches = shuffled_stretches(self.lengths[i], length, longest_stretch, rng)
                row[:] = self.offsets[i] + stretches
        index = torch.from_numpy(frames).to(self.actions.device)
        actions = self.actions[index]
        if longest_stretch:
            cut = torch.ones_like(index, dtype=torch.bool)
            cut[:, 1:] = index.diff(dim=1) != 1
            actions[cut] = self.actions[0]
        return LatentBatch(
            self.latents[index].float(),
            actions,
            index.new_zeros(*index.shape, 3, dtype=torch.float32)
            if self.poses is None
            else self.poses[index],
            self.rewards[index],
            self.terminated[index],
            self.returns[index],
            self.return_weights[index],
        )


def shuffled_stretches(
    num_frames: int, length: int, longest: int, rng: np.random.Generator
) -> np.ndarray:
    """Stretches of an episode, cut and put together in any order.

    All but the first and the last of the episode are equally long: 1, 2, 4, ... or up to `longest`,
    however few frames are wanted: of a few there is then most often no cut.

    Args:
        num_frames: of the episode, at least `length`.
        length: frames wanted.
        longest: frames of a stretch at most, 1 or more.
        rng: source of randomness.

    Returns:
        (length,) int64 different frames of the episode.
    """
    stretch = 2 ** int(rng.integers(min(int(num_frames), longest).bit_length()))
    starts = np.append(0, np.arange(rng.integers(1, stretch + 1), num_frames, stretch))
    sizes = np.diff(starts, append=num_frames)
    order = rng.permutation(len(starts))
    moved_to = np.cumsum(sizes[order]) - sizes[order]
    return (np.repeat(starts[order] - moved_to, sizes[order]) + np.arange(num_frames))[:length]


def fingerprint(tokenizer: Tokenizer, dataset: EpisodeDataset, poses: bool = False) -> str:
    """Names a tokenizer's weights and a dataset's episodes, to tell whether a cache is theirs.

    Of an episode all counts but its frames, of which the first stands for the others.
    """
    digest = hashlib.sha256()
    add_tensors(digest, tokenizer.state_dict().values())
    digest.update(dataset.lengths.tobytes())
    for i in range(len(dataset)):
        digest.update(dataset.actions(i).tobytes())
        digest.update(dataset.rewards(i).tobytes())
        digest.update(dataset.terminated(i).tobytes())
        with contextlib.suppress(DamagedEpisodeError):  # it is left out when it is read
            digest.update(dataset.episode(i, 0, 1).frames.tobytes())
            if poses:
                digest.update(poses_of(dataset.infos(i)).tobytes())
    return digest.hexdigest()


def encode_dataset(
    tokenizer: Tokenizer,
    dataset: EpisodeDataset,
    cache: Path | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    gamma: float = 0.98,
    poses: bool = False,
    keep: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LatentEpisodes:
    """Encode every frame of a dataset.

    Args:
        tokenizer: trained tokenizer, on `device`.
        dataset: episodes; damaged ones are warned of and left out.
        cache: file to keep the latents in and to take them from if they are still these.
        device, dtype: where and in what precision to encode.
        gamma: discount of the returns.
        poses: keep poses too, from privileged infos.
        keep: write the file; of several processes, one should.
        progress: called with (frames done, frames in all).

    Raises:
        ValueError: poses are wanted and an episode has none.
    """
    key = fingerprint(tokenizer, dataset, poses)
    names = ["latents", "actions", "rewards", "terminated", *(["poses"] if poses else [])]
    kept = kept_tensors(cache, key, [*names, "lengths"])
    if kept is not None:
        lengths = kept.pop("lengths").numpy()
        return LatentEpisodes(**kept, lengths=lengths, gamma=gamma)
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    sizes, done = [], 0
    for episode in dataset:
        if poses:
            parts["poses"].append(torch.from_numpy(poses_of(episode.infos)))
        for frames in torch.from_numpy(episode.frames).split(256):
            with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
                parts["latents"].append(tokenizer.encode(frames.to(device)).half().cpu())
            done += len(frames)
            progress(done, dataset.num_frames)
        parts["actions"].append(torch.from_numpy(episode.actions))
        parts["rewards"].append(torch.from_numpy(episode.rewards))
        parts["terminated"].append(torch.from_numpy(episode.terminated))
        sizes.append(len(episode))
    values = {name: torch.cat(part) for name, part in parts.items()}
    result = LatentEpisodes(**values, lengths=np.array(sizes), gamma=gamma)
    if keep:
        keep_tensors(cache, key, values | {"lengths": torch.from_numpy(result.lengths)})
    return result
