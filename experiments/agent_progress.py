"""SB3 agents while they train: progress bar and TensorBoard, and what counts as learned."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from experiments.training_progress import TrainingProgress


class AgentProgress(BaseCallback):
    """Shows progress, saves between rollouts, and stops when the time is up.

    Args:
        progress: what shows it.
        reward_per_step: what a recent step made, of which the return of an episode is shown and
            logged as "episodic_return", where the agent is rewarded with something else, whose
            return is logged as "shaped_return"; by default the agent's own.
        where: it is trained, "dream" or "real": the group of what is logged.
    """

    def __init__(
        self,
        progress: TrainingProgress,
        *,
        reward_per_step: Callable[[], float] | None = None,
        where: Literal["dream", "real"] = "dream",
    ) -> None:
        super().__init__()
        self.progress, self.reward_per_step, self.where = progress, reward_per_step, where
        self.learned = 0
        """Steps that the agent has learned from."""

    def _on_step(self) -> bool:
        returns = self._returns()
        shown = f"{self.where} return {returns['episodic_return']:.2f}" if returns else ""
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
        rate = (self.num_timesteps - steps) / (now - then)
        self.logger.record(f"{self.where}/steps_per_second", rate)
        for name, value in self._returns().items():
            self.logger.record(f"{self.where}/{name}", value)

    def _on_rollout_start(self) -> None:
        self._rollout_start = (time.monotonic(), self.num_timesteps)
        self.learned = self.model.num_timesteps
        self.progress.save_if_due()


def learn(
    agent: OnPolicyAlgorithm, timesteps: int, callback: AgentProgress, **options: Any
) -> None:
    """Train an agent, or go on with it.

    A rollout that is cut off, by Ctrl-C or the end of the time, is not learned from, and its steps
    do not count.

    Args:
        agent, timesteps: see its `learn`.
        callback: of this training.
        options: further ones of `learn`.
    """
    callback.learned = agent.num_timesteps
    try:
        agent.learn(timesteps, callback=callback, reset_num_timesteps=False, **options)
        if agent.rollout_buffer.full:
            callback.learned = agent.num_timesteps
    finally:
        agent.num_timesteps = callback.learned
