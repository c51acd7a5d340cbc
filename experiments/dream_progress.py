"""What is seen of an SB3 agent while it trains: progress bar and TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from experiments.training_progress import TrainingProgress


class DreamProgress(BaseCallback):
    """Shows progress, and stops when the time is up.

    Args:
        progress: what shows it.
        reward_per_step: what a recent step made, of which the return of an episode is shown and
            logged as "dream/episodic_return", where the agent is rewarded with something else,
            whose return is logged as "dream/shaped_return"; by default the agent's own.
        label: of that return.
    """

    def __init__(
        self,
        progress: TrainingProgress,
        *,
        reward_per_step: Callable[[], float] | None = None,
        label: str = "dream return",
    ) -> None:
        super().__init__()
        self.progress, self.reward_per_step, self.label = progress, reward_per_step, label

    def _on_step(self) -> bool:
        returns = self._returns()
        shown = f"{self.label} {returns['episodic_return']:.2f}" if returns else ""
        self.progress.update(self.num_timesteps, shown)
        return not self.progress.out_of_time  # SB3 counts the steps, and ends with a whole rollout

    def _returns(self) -> dict[str, float]:
        """Of recent episodes, in the mean, and their length; nothing before the first has ended."""
        episodes = self.model.ep_info_buffer
        if not episodes:
            return {}
        own, length = (float(np.mean([e[key] for e in episodes])) for key in ("r", "l"))
        if self.reward_per_step is None:
            return {"episodic_return": own, "episodic_length": length}
        return {
            "episodic_return": length * self.reward_per_step(),
            "shaped_return": own,
            "episodic_length": length,
        }

    def _on_rollout_end(self) -> None:
        then, steps = self._rollout_start
        now = time.monotonic()
        self.logger.record("dream/steps_per_second", (self.num_timesteps - steps) / (now - then))
        for name, value in self._returns().items():
            self.logger.record(f"dream/{name}", value)

    def _on_rollout_start(self) -> None:
        self._rollout_start = (time.monotonic(), self.num_timesteps)
