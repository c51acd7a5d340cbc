"""Does a dream reward reaching the target, and nothing else?

Held-out moments at which the recorded agent really was rewarded are dreamed under the true actions,
from a few steps before, and so are moments at which it walked into a target that it was not asked
for, and moments at which it was at none. A dream is right to reward the first kind alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from tqdm import tqdm

from experiments.reward_events import events_in
from worldsim.episodes import EpisodeDataset
from worldsim.world_model import WorldModel

TOUCH = 0.5
"""Cells between an agent and a target that it is at; the package's rewards come at 0.4 to 0.6."""
SLACK = 2
"""Steps by which a dreamed reward may be early or late."""
Moments = dict[str, list[tuple[int, int]]]
"""Episode and frame of each moment, by kind."""


def arrivals_at_other_targets(infos: Mapping[str, np.ndarray]) -> np.ndarray:
    """Frames at which the agent comes to a target that is not the current one, (n,) int64.

    Args:
        infos: of an episode: `agent_pos` (t, 2), `targets_pos` (t, targets, 2) in cells, and
            `target_index` (t,).
    """
    distance = np.linalg.norm(infos["targets_pos"] - infos["agent_pos"][:, None], axis=-1)
    distance[np.arange(len(distance)), infos["target_index"]] = np.inf
    at_other = distance.min(-1) < TOUCH
    return np.flatnonzero(at_other[1:] & ~at_other[:-1]) + 1


def find_moments(
    dataset: EpisodeDataset, context: int, before: int, after: int, seed: int = 0
) -> Moments:
    """Moments with `context + before` recorded frames before them, and `after` frames behind.

    Returns:
        "target": rewarded frames; "other target": arrivals at another one, where the infos tell;
        "elsewhere": as many moments as rewarded ones, drawn from the rest. Around moments of the
        last two kinds there is no reward.
    """
    rng, events = np.random.default_rng(seed), events_in(dataset)
    moments: Moments = {"target": [], "other target": [], "elsewhere": []}
    free = []
    for i in range(len(dataset)):
        rewarded = events.among(dataset.rewards(i))
        rewarded[0] = False  # the first frame has no reward
        kernel = np.ones(2 * (before + after) + 1)
        quiet = np.convolve(rewarded, kernel, mode="same")[: len(rewarded)] < 0.5
        usable = np.zeros(len(rewarded), bool)
        usable[context + before : len(rewarded) - after] = True
        infos = dataset.infos(i)
        others = np.zeros(len(rewarded), bool)
        if "target_index" in infos and "targets_pos" in infos:
            others[arrivals_at_other_targets(infos)] = True
        near_other = np.convolve(others, kernel, mode="same")[: len(others)] > 0.5
        moments["target"] += [(i, int(t)) for t in np.flatnonzero(rewarded & usable)]
        moments["other target"] += [(i, int(t)) for t in np.flatnonzero(others & usable & quiet)]
        free += [(i, int(t)) for t in np.flatnonzero(usable & quiet & ~near_other)]
    count = min(len(moments["target"]), len(free))
    moments["elsewhere"] = [free[k] for k in rng.choice(len(free), count, replace=False)]
    return moments


@torch.no_grad()
def dreamed_rewards(
    model: WorldModel,
    dataset: EpisodeDataset,
    *,
    leads: tuple[int, ...] = (1, 4, 8),
    context: int = 32,
    max_moments: int = 100,
    batch_size: int = 32,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, float]]]:
    """Share of the moments of each kind that are rewarded in a dream.

    Args:
        model: the world model.
        dataset: held-out episodes.
        leads: at which step of the dream the moment comes.
        context: real frames observed before the dream.
        max_moments: of each kind; where there are more, so many are drawn.
        batch_size: dreams side by side.
        seed: of the dreams' noise and of the moments drawn.

    Returns:
        By lead, then by kind of moment (see `find_moments`): `count`; `rewarded`, the share of
        dreams in which the predicted reward is an event (see `RewardEvents`) at the moment or at
        most two steps from it; and `expected`, the mean sum of the rewards predicted there, which
        is what a policy learns from.
    """
    result: dict[str, dict[str, dict[str, float]]] = {}
    rng, events = np.random.default_rng(seed), events_in(dataset)
    kinds = {
        kind: [found[k] for k in rng.permutation(len(found))[:max_moments]]
        for kind, found in find_moments(dataset, context, max(leads), SLACK, seed).items()
    }
    total = len(leads) * sum(map(len, kinds.values()))
    generator = torch.Generator(model.device).manual_seed(seed)
    with tqdm(total=total, desc="rewards in dreams", unit="dream", mininterval=2) as bar:
        for lead in leads:
            row = result[str(lead)] = {}
            for kind, moments in kinds.items():
                hits: list[bool] = []
                sums: list[float] = []
                for first in range(0, len(moments), batch_size):
                    part = moments[first : first + batch_size]
                    episodes = [
                        dataset.episode(i, t - lead - context + 1, t + SLACK + 1) for i, t in part
                    ]
                    frames, actions = (
                        torch.from_numpy(np.stack([getattr(e, name) for e in episodes]))
                        for name in ("frames", "actions")
                    )
                    frames, actions = frames.to(model.device), actions.to(model.device)
                    state = model.observe(
                        model.initial_state(len(part)), actions[:, :context], frames[:, :context]
                    )
                    _, rewards = model.dream(state, actions[:, context:], generator=generator)
                    near = rewards[:, max(lead - 1 - SLACK, 0) :].cpu().numpy()
                    hits += [bool(one.any()) for one in events.among(near)]
                    sums += [float(one.sum()) for one in near]
                    bar.update(len(part))
                if hits:
                    shares = {"rewarded": float(np.mean(hits)), "expected": float(np.mean(sums))}
                    row[kind] = {"count": len(hits), **shares}
    return result


def format_shares(kinds: Mapping[str, Mapping[str, float]]) -> str:
    """One lead's shares in words."""
    return ", ".join(
        f"{kind} {v['rewarded']:.0%} of {v['count']} (expected {v['expected']:.2f})"
        for kind, v in kinds.items()
    )
