"""How far the training of an agent is: a progress bar, the end of its time, and when to save."""

from __future__ import annotations

import time
from collections.abc import Callable

from tqdm import tqdm

from experiments.run_directory import RunDirectory


class TrainingProgress:
    """Shows progress and time left, and saves when asked, but not too often.

    The bar counts steps where these are limited, and seconds where the time is, for then nobody
    knows in advance how many steps there will be.

    Args:
        on_save: called with the seconds trained so far: at the end, and by `save_if_due` at most
            once a minute.
        description: label of the progress bar.
        total_timesteps: steps at which training ends; None: only the time limits it.
        time_limit: seconds after which training ends; None: only the steps limit it.
        timesteps: steps done before.
        seconds_before: seconds that those took.

    Used in a `with` statement, it saves at the end too.
    """

    SAVE_SECONDS = 60.0

    def __init__(
        self,
        on_save: Callable[[float], None],
        *,
        description: str,
        total_timesteps: int | None,
        time_limit: float | None,
        timesteps: int = 0,
        seconds_before: float = 0.0,
    ) -> None:
        self.on_save = on_save
        self.total_timesteps, self.time_limit = total_timesteps, time_limit
        self.timesteps, self.seconds_before = timesteps, seconds_before
        self._first_step = timesteps
        self._start = self._last_save = time.monotonic()
        in_steps = total_timesteps is not None
        self._bar = tqdm(
            total=total_timesteps if in_steps else round(time_limit or 0),
            initial=timesteps if in_steps else round(seconds_before),
            desc=description,
            unit="step",
            dynamic_ncols=True,
            bar_format=None
            if in_steps
            else "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} s{postfix}",
        )

    @classmethod
    def of_round(
        cls,
        run: RunDirectory,
        round_index: int,
        on_save: Callable[[float], None],
        *,
        timesteps: int,
        first_step: int = 0,
    ) -> TrainingProgress:
        """That of a round of a run of the main job, or of the rest of one.

        Args:
            run: its config says how long to train.
            round_index: from 1.
            on_save, timesteps: as above.
            first_step: steps done before this round, where `timesteps` counts these too.
        """
        config, limit = run.config, run.config.total_timesteps
        return cls(
            on_save,
            description=f"dream training, round {round_index}",
            total_timesteps=None if limit is None else first_step + limit,
            time_limit=60 * config.minutes if limit is None else None,
            timesteps=timesteps,
            seconds_before=run.get("round_seconds", 0.0),
        )

    @property
    def seconds(self) -> float:
        """Seconds trained, over all runs that were resumed."""
        return self.seconds_before + time.monotonic() - self._start

    @property
    def out_of_time(self) -> bool:
        """Whether the time, where it limits training, is up."""
        return self.time_limit is not None and self.seconds >= self.time_limit

    @property
    def over(self) -> bool:
        """Whether training has come to its last step, or its last second."""
        limit = self.total_timesteps
        return self.out_of_time or (limit is not None and self.timesteps >= limit)

    def update(self, timesteps: int, status: str) -> None:
        """Show what is done and what it made.

        Args:
            timesteps: steps done, over all runs that were resumed.
            status: what is shown beside them.
        """
        self.timesteps = timesteps
        done = timesteps if self.total_timesteps is not None else round(self.seconds)
        self._bar.update(max(0, min(done, self._bar.total) - self._bar.n))
        rate = (timesteps - self._first_step) / max(time.monotonic() - self._start, 1e-6)
        shown = [f"{timesteps} steps", f"{rate:.0f}/s", *([status] if status else [])]
        self._bar.set_postfix_str(", ".join(shown), refresh=False)

    def save_if_due(self) -> None:
        """Save, if the last time was a while ago; for when all steps done were learned from."""
        if time.monotonic() - self._last_save > self.SAVE_SECONDS:
            self.on_save(self.seconds)
            self._last_save = time.monotonic()

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Save what was trained, unless an error may have spoilt it: then what was saved stays."""
        self._bar.close()
        stopped = kind is not None and not issubclass(kind, Exception)  # such as Ctrl-C
        if (kind is None or stopped) and self.timesteps > self._first_step:
            self.on_save(self.seconds)
