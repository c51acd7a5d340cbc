"""Does a dream stay as fast and as small as it was? Time and memory of a step against its number.

    python experiments/benchmark_dream.py --world-model memory-maze-9x9

One dream runs for 10,000 steps. Around each of a few checkpoints the median time of a step and the
bytes of the state per env are taken, all in one run.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.command_line import run_script
from experiments.report import provenance, write_json
from worldsim.contexts import ContextSource
from worldsim.dream import DreamVectorEnv
from worldsim.world_model import WorldModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Time and memory of a dream step against its number."""

    world_model: str = "memory-maze-9x9"
    """Shipped name or checkpoint directory."""
    num_envs: int = 1
    steps: tuple[int, ...] = (10, 100, 1000, 10_000)
    """Step numbers to measure at; the last one ends the run."""
    window: int = 50
    """Steps before each of them whose median time is taken."""
    seed: int = 0
    device: str = "cpu"
    output: Path | None = Path("runs/dream_cost.json")


def main(
    config: BenchmarkConfig,
    world_model: WorldModel | None = None,
    contexts: ContextSource | None = None,
) -> dict[str, Any]:
    """Measure, print and return what `output` is written from.

    Args:
        config: What to measure.
        world_model, contexts: Instead of those that the config names.
    """
    if not config.steps or min(config.steps) < 1 or list(config.steps) != sorted(config.steps):
        raise ValueError(f"steps must be positive and rising, got {config.steps}")
    envs = DreamVectorEnv(
        config.num_envs,
        world_model=world_model if world_model is not None else config.world_model,
        contexts=contexts,
        horizon=None,
        device=config.device,
    )
    envs.reset(seed=config.seed)
    actions = np.random.default_rng(config.seed)
    times: list[float] = []
    restarts = 0
    rows = []
    for step in tqdm(range(1, config.steps[-1] + 1), unit="step", dynamic_ncols=True):
        batch = actions.integers(envs.single_action_space.n, size=config.num_envs)  # type: ignore[attr-defined]
        start = time.perf_counter()
        terminated = envs.step(batch)[2]
        times.append(time.perf_counter() - start)
        restarts += int(terminated.sum())
        if step in config.steps:
            assert envs.state is not None
            rows.append(
                {
                    "step": step,
                    "median_ms": 1000 * float(np.median(times[-config.window :])),
                    "state_bytes_per_env": envs.state.nbytes // config.num_envs,
                    "terminations": restarts,
                }
            )
    report = {"config": dataclasses.asdict(config), "results": rows, **provenance()}
    print(f"{'step':>8}{'ms per step':>14}{'state bytes per env':>22}")
    for row in rows:
        print(f"{row['step']:>8}{row['median_ms']:>14.2f}{row['state_bytes_per_env']:>22,}")
    if restarts:
        print(f"{restarts} dreams terminated and began anew, with a memory of their context alone")
    if config.output is not None:
        write_json(config.output, report)
    return report


if __name__ == "__main__":
    run_script(main, BenchmarkConfig, __doc__)
