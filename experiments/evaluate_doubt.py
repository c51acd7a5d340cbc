"""Are dreamed steps wrong where two dreams of them differ? Measured on recorded episodes.

    python experiments/collect.py --env memory-maze-9x9 --episodes 20 --seed 1000000 \
        --dataset held-out-v0
    python experiments/evaluate_doubt.py --dataset held-out-v0

From moments of real episodes the next frame is dreamed twice under the recorded action, and
observed. How far the two dreams lie apart in features is the doubt of a step, as
`agents.imagination` has it; how far the first lies from what was observed is its error: of the
read-out, and of what is told of places where the model remembers some. Doubt that is of use is
large where the error is.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr
from tqdm import tqdm

from agents.imagination import distance
from experiments.actor_critic_training import check_episodes
from experiments.command_line import run_script
from experiments.report import provenance, write_json
from experiments.settings import as_json
from worldsim.checkpoint import fingerprint, load
from worldsim.open_loop import draw_stretches
from worldsim.world_model import WorldModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateDoubtConfig:
    """Compare doubt and error of dreamed steps."""

    dataset: str
    """Recorded episodes, best ones that the model has not learned from."""
    world_model: str = "memory-maze-9x9"
    """Shipped name or checkpoint directory."""
    stretches: int = 64
    """Of episodes."""
    context: int = 128
    """Frames that are observed before."""
    steps: int = 16
    """Steps of every stretch, each dreamed from what was observed until then."""
    wrong: float = 0.1
    """Share of steps, those of the largest error, that count as wrong."""
    output: Path | None = None
    """JSON file of the result; by default it is only printed."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("stretches", "context", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.wrong < 1:
            raise ValueError(f"wrong must lie between 0 and 1, got {self.wrong}")


def told_apart(doubt: np.ndarray, wrong: np.ndarray) -> float:
    """Probability that a wrong step is doubted more than one that is not: the area under ROC.

    Args:
        doubt: (n,). wrong: (n,) bool, of both kinds.
    """
    count = wrong.sum()
    above = rankdata(doubt)[wrong].sum() - count * (count + 1) / 2
    return float(above / (count * (len(wrong) - count)))


@torch.no_grad()
def measure(
    model: WorldModel, config: EvaluateDoubtConfig
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Doubt and error of dreamed steps, by features: (stretches * steps,) each."""
    dataset = check_episodes(model.config, config.dataset)
    length = config.context + config.steps
    frames, actions, _ = draw_stretches(dataset, config.stretches, length, config.seed)
    shown, led = torch.as_tensor(frames), torch.as_tensor(actions).long()
    shown, led = shown.to(model.device), led.to(model.device)
    parts = {"read-out": slice(0, model.d_model)}
    if model.places is not None:
        parts["places"] = slice(model.d_model, None)
    doubts: dict[str, list[torch.Tensor]] = {name: [] for name in parts}
    errors: dict[str, list[torch.Tensor]] = {name: [] for name in parts}
    generator = torch.Generator(model.device).manual_seed(config.seed)
    state = model.initial_state(config.stretches)
    state = model.observe(state, led[:, : config.context], shown[:, : config.context])
    for t in tqdm(range(config.context, length), desc="steps", unit="step"):
        dreams = [
            model.imagine(state, led[:, t], generator=generator, decode=False).state.features
            for _ in range(2)
        ]
        state = model.observe(state, led[:, t : t + 1], shown[:, t : t + 1])
        for name, part in parts.items():
            doubts[name].append(distance(dreams[0][:, part], dreams[1][:, part]))
            errors[name].append(distance(dreams[0][:, part], state.features[:, part]))
    return tuple(  # type: ignore[return-value]
        {name: torch.cat(steps).cpu().numpy() for name, steps in found.items()}
        for found in (doubts, errors)
    )


def main(config: EvaluateDoubtConfig) -> dict[str, Any]:
    """Measure, print and keep; returns what the JSON file holds."""
    doubts, errors = measure(load(config.world_model).eval(), config)
    comparisons = []
    print(f"{'doubt of':10} {'error of':10} {'rank correlation':>18} {'wrong told apart':>18}")
    for by, doubt in doubts.items():
        for of, error in errors.items():
            wrong = error > np.quantile(error, 1 - config.wrong)
            row = {
                "doubt": by,
                "error": of,
                "rank_correlation": float(spearmanr(doubt, error).statistic),
            }
            row["told_apart"] = told_apart(doubt, wrong)
            comparisons.append(row)
            print(f"{by:10} {of:10} {row['rank_correlation']:18.2f} {row['told_apart']:18.2f}")
    quantiles = (0.5, 0.9, 0.95, 0.99)
    spread = {
        name: {str(q): float(np.quantile(doubt, q)) for q in quantiles}
        for name, doubt in doubts.items()
    }
    for name, found in spread.items():
        shown = ", ".join(f"{value:.3g} at {q}" for q, value in found.items())
        print(f"doubt of {name}, quantiles: {shown}")
    result = {
        "comparisons": comparisons,
        "quantiles_of_doubt": spread,
        "steps": config.stretches * config.steps,
        "world_model_sha256": fingerprint(config.world_model),
        "config": as_json(config),
        **provenance(),
    }
    if config.output is not None:
        write_json(config.output, result)
    return result


if __name__ == "__main__":
    run_script(main, EvaluateDoubtConfig, __doc__)
