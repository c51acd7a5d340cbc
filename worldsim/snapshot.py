"""A moment of a dream, kept to go back to or to fork from."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from gymnasium.utils.seeding import np_random

from worldsim.state import WorldState


@dataclasses.dataclass(frozen=True, kw_only=True)
class DreamSnapshot:
    """Everything about n dreams at one moment: restored, they go on exactly as they did."""

    state: WorldState
    frames: np.ndarray | None
    """(n, h, w, c) uint8; None where dreams are of features alone."""
    elapsed_steps: np.ndarray
    """(n,) int64."""
    ended: np.ndarray
    """(n,) bool: the episode is over and waits for its reset."""
    generator_states: tuple[dict[str, Any], ...]
    """State of each env's random stream."""

    def __len__(self) -> int:
        return len(self.elapsed_steps)

    def __getitem__(
        self, index: slice | int | np.integer | list[int] | np.ndarray
    ) -> DreamSnapshot:
        """Select dreams; an integer keeps the batch dimension. A dream may be selected twice.

        Raises:
            IndexError: there are not so many dreams.
        """
        rows = np.atleast_1d(np.arange(len(self))[index])
        return DreamSnapshot(
            state=self.state[rows.tolist()],
            frames=None if self.frames is None else self.frames[rows],
            elapsed_steps=self.elapsed_steps[rows],
            ended=self.ended[rows],
            generator_states=tuple(self.generator_states[i] for i in rows),
        )

    def repeat(self, n: int, seed: int | None = None) -> DreamSnapshot:
        """Fork every dream n times; dream i becomes rows i*n to (i+1)*n - 1.

        Args:
            n: forks of each dream.
            seed: None gives the forks of one dream the same noise, so that only their actions tell
                them apart; a seed gives row r the noise of seed + r.
        """
        states = [s for s in self.generator_states for _ in range(n)]
        if seed is not None:
            states = [dict(np_random(seed + r)[0].bit_generator.state) for r in range(len(states))]
        return DreamSnapshot(
            state=self.state.repeat(n),
            frames=None if self.frames is None else self.frames.repeat(n, axis=0),
            elapsed_steps=self.elapsed_steps.repeat(n),
            ended=self.ended.repeat(n),
            generator_states=tuple(states),
        )
