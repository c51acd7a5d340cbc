"""What is seen of an SB3 agent while it trains: progress bar and TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Callable

from stable_baselines3.common.callbacks import BaseCallback

from experiments.training_progress import TrainingProgress


class DreamProgress(BaseCallback):
    """Shows progress, and stops when the time is up.

    Args:
        progress: what shows it.
        mean_return: return of a recent episode, to be shown; by default what the agent is rewarded
            with. It is logged as "dream/episodic_return", and the agent's own beside it as
            "dream/shaped_return".
        label: of that return.
    """

    def __init__(
        self,
        progress: TrainingProgress,
        *,
        mean_return: Callable[[], float] | None = None,
        label: str = "dream return",
    ) -> None:
        super().__init__()
        self.progress, self.mean_return, self.label = progress, mean_return, label

    def _on_step(self) -> bool:
        return_ = self._own_return() if self.mean_return is None else self.mean_return()
        shown = "" if return_ is None else f"{self.label} {return_:.2f}"
        self.progress.update(self.num_timesteps, shown)
        return not self.progress.out_of_time  # SB3 counts the steps, and ends with a whole rollout

    def _own_return(self) -> float | None:
        episodes = self.model.ep_info_buffer
        if not episodes:
            return None
        return float(sum(e["r"] for e in episodes) / len(episodes))

    def _on_rollout_end(self) -> None:
        then, steps = self._rollout_start
        now = time.monotonic()
        self.logger.record("dream/steps_per_second", (self.num_timesteps - steps) / (now - then))
        own = self._own_return()
        if self.mean_return is not None:
            self.logger.record("dream/episodic_return", self.mean_return())
        if own is not None:
            name = "episodic_return" if self.mean_return is None else "shaped_return"
            self.logger.record(f"dream/{name}", own)

    def _on_rollout_start(self) -> None:
        self._rollout_start = (time.monotonic(), self.num_timesteps)
