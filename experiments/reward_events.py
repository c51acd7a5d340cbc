"""Which rewards are events, the same for what is recorded, told and dreamed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from worldsim.episodes import EpisodeDataset


class RewardEvents(NamedTuple):
    """An event is a reward, or a penalty, that lies further from what is usual than half of what
    does so most: of rewards of 0 and 1, those above one half."""

    usual: float
    half: float

    def distance(self, rewards: ArrayLike) -> np.ndarray:
        """How far rewards lie from what is usual."""
        return np.abs(np.asarray(rewards) - self.usual)

    def among(self, rewards: ArrayLike) -> np.ndarray:
        """Which of them are events, bool."""
        return self.distance(rewards) > self.half


def events_of(rewards: np.ndarray) -> RewardEvents:
    """What counts as an event, by recorded rewards (n,): their median is what is usual."""
    usual = float(np.median(rewards))
    return RewardEvents(usual, 0.5 * max(float(np.abs(rewards - usual).max()), 1e-6))


def events_in(dataset: EpisodeDataset) -> RewardEvents:
    """What counts as an event in recorded episodes; the frame that each begins with has no
    reward."""
    return events_of(np.concatenate([dataset.rewards(i)[1:] for i in range(len(dataset))]))
