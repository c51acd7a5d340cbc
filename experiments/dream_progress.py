"""What is seen of an SB3 agent that trains in a dream: progress bar, TensorBoard, saved policy."""

from __future__ import annotations

import time
from collections.abc import Callable

from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm


class DreamProgress(BaseCallback):
    """Shows progress and time left, saves now and then, and stops when the time is up.

    Args:
        on_save: called every `save_seconds` with the seconds trained so far.
        description: label of the progress bar.
        total_timesteps: steps at which training ends; None: only the time limits it.
        time_limit: seconds after which training stops; None: no limit.
        seconds_before: seconds trained before this run resumed.
        save_seconds: seconds between two saves.
        mean_return: return of a recent episode, to be shown; by default what the agent is rewarded
            with. It is logged as "dream/episodic_return", and the agent's own beside it as
            "dream/shaped_return".
        label: of that return.
    """

    def __init__(
        self,
        on_save: Callable[[float], None],
        *,
        description: str,
        total_timesteps: int | None,
        time_limit: float | None,
        seconds_before: float = 0.0,
        save_seconds: float = 60.0,
        mean_return: Callable[[], float] | None = None,
        label: str = "dream return",
    ) -> None:
        super().__init__()
        self.on_save = on_save
        self.description = description
        self.total_timesteps = total_timesteps
        self.time_limit = time_limit
        self.seconds_before = seconds_before
        self.save_seconds = save_seconds
        self.mean_return = mean_return
        self.label = label
        self._bar: tqdm | None = None
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds trained, over all runs that were resumed."""
        return self.seconds_before + time.monotonic() - self._start

    def _on_training_start(self) -> None:
        self._start = self._last_save = time.monotonic()
        self._first_step = self.num_timesteps
        self._rollout_start = (time.monotonic(), self.num_timesteps)
        if self.total_timesteps is not None:
            self._bar = tqdm(
                total=self.total_timesteps,
                initial=self.num_timesteps,
                desc=self.description,
                unit="step",
                dynamic_ncols=True,
            )
        else:
            # Steps are unknown in advance, seconds are not: the bar counts these.
            self._bar = tqdm(
                total=round(self.time_limit or 0),
                initial=round(self.seconds_before),
                desc=self.description,
                dynamic_ncols=True,
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} s{postfix}",
            )

    def _on_step(self) -> bool:
        assert self._bar is not None
        if self.total_timesteps is not None:
            self._bar.update(self.num_timesteps - self._bar.n)
        else:
            self._bar.update(min(round(self.seconds), self._bar.total) - self._bar.n)
        self._bar.set_postfix_str(self._status(), refresh=False)
        if time.monotonic() - self._last_save > self.save_seconds:
            self.on_save(self.seconds)
            self._last_save = time.monotonic()
        return self.time_limit is None or self.seconds < self.time_limit

    def _status(self) -> str:
        run = self.num_timesteps - self._first_step
        rate = run / max(time.monotonic() - self._start, 1e-6)
        status = f"{self.num_timesteps} steps, {rate:.0f}/s"
        return_ = self._own_return() if self.mean_return is None else self.mean_return()
        return status if return_ is None else f"{status}, {self.label} {return_:.2f}"

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

    def _on_training_end(self) -> None:
        self.close()

    def close(self) -> None:
        """Leave the progress bar as it is."""
        if self._bar is not None:
            self._bar.close()
