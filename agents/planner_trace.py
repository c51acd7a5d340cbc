"""What a planner imagined and what it chose, as pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanTrace:
    """One decision of one env."""

    env: int
    """Row in the batch."""
    step: int
    """Calls of `act` before it."""
    frame: np.ndarray
    """(h, w, c) uint8, what was observed."""
    plans: np.ndarray
    """(k, horizon) int64: the chosen plan, then its best rivals."""
    frames: np.ndarray
    """(k, horizon, h, w, c) uint8, what they were imagined to lead to."""
    rewards: np.ndarray
    """(k, horizon) float32."""
    rounds: list[np.ndarray]
    """Returns of all candidates, one array (c,) for each round."""
    expected_return: float
    """Of the chosen plan."""
    dream_steps: int
    """Imagined steps that the decision cost."""


def save_trace(path: str | Path, trace: PlanTrace, action_names: Sequence[str] = ()) -> None:
    """Draw a decision: plans as rows of imagined frames, beside the returns of every round.

    Args:
        path: an image file; its ending says which kind.
        trace: the decision.
        action_names: shown instead of numbers.
    """
    from matplotlib.figure import Figure

    k, horizon = trace.plans.shape
    figure = Figure(figsize=(1.1 * (horizon + 4), 1.4 * k + 0.4), layout="constrained")
    grid = figure.add_gridspec(k, horizon + 4)
    for row in range(k):
        for t in range(horizon + 1):
            axes = figure.add_subplot(grid[row, t])
            axes.imshow(
                trace.frame if t == 0 else trace.frames[row, t - 1], cmap="gray", vmin=0, vmax=255
            )
            axes.set_xticks([])
            axes.set_yticks([])
            if t == 0:
                axes.set_ylabel("chosen" if row == 0 else f"rival {row}", fontsize=8)
                continue
            action = int(trace.plans[row, t - 1])
            name = action_names[action] if action_names else str(action)
            axes.set_title(f"{name}  {trace.rewards[row, t - 1]:+.2f}", fontsize=7)
    axes = figure.add_subplot(grid[:, horizon + 1 :])
    for index, returns in enumerate(trace.rounds):
        axes.plot(np.full(len(returns), index + 1), returns, ".", alpha=0.4, color="tab:blue")
    axes.axhline(trace.expected_return, color="tab:orange", linewidth=1)
    axes.set_xticks(range(1, len(trace.rounds) + 1))
    axes.set_xlabel("round")
    axes.set_title(f"imagined returns, {trace.dream_steps} steps", fontsize=8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
