"""Does a world model use its long memory? Dreams of returns to seen places, on real mazes.

    python experiments/evaluate_memory.py --world-model memory-maze-9x9

Held-out mazes are toured; the model observes the tour and dreams on under the true actions: the
same tour again (retrieval), or a walk anywhere (reasoning). The same is dreamed after only the last
few frames of the tour. A model that remembers is better after the whole tour, most of all where a
place was last seen long ago; one that does not dreams the same. Copies of the seen frame of the
nearest pose show what perfect recall without any understanding gives. Leaves results.json, a table,
plots of recall against distance and of quality by step, a contact sheet, and a video.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import worldsim
from agents.statistics import bootstrap_interval
from experiments.command_line import run_script
from experiments.memory_mazes import MazeTask, MemoryMazes
from experiments.memory_report import (
    REFERENCE,
    REFERENCE_LABEL,
    Runs,
    contact_rows,
    draw_contact_sheet,
    draw_runs,
    format_table,
    plot,
)
from experiments.platform_settings import chosen_device, keep_memory
from experiments.report import name_of_model, provenance, write_json
from experiments.videos import save_video, tile
from worldsim.checks import check_same_kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateMemoryConfig:
    """What to judge, and on what walks."""

    world_model: str = "memory-maze-9x9"
    """Shipped name or checkpoint directory; of a model that finds its poses itself, or is told
    actions."""
    env: str = "memory-maze-9x9"
    """Memory Maze to walk in."""
    episodes: int = 12
    """Held-out mazes for each kind of walk."""
    context: int = 256
    """Frames of the tour."""
    horizon: int = 128
    """Dreamed frames."""
    shorter_contexts: tuple[int, ...] = (8,)
    """Last frames of the tour that are observed, to compare."""
    num_denoising_steps: int | None = None
    """Network evaluations per dreamed frame; by default the model's."""
    dream_signal: float | None = None
    """Signal level at which dreamed frames are committed to memory; by default the model's."""
    batch_size: int = 6
    num_workers: int = 2
    device: str = "auto"
    """Where the world model runs."""
    work: Path = Path("runs/evaluate_memory")
    """Recorded walks, which are used again."""
    output: Path | None = None
    """By default runs/evaluate_memory/<world model, or its run>."""

    def __post_init__(self) -> None:
        if not self.env.startswith("memory-maze-"):
            raise ValueError(f"walks are recorded in Memory Mazes alone, got --env {self.env}")
        for name in ("episodes", "context", "horizon", "batch_size", "num_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for observed in self.shorter_contexts:
            if not 1 <= observed < self.context:
                raise ValueError(
                    f"shorter_contexts has {observed}; with a tour of {self.context} frames it "
                    f"must be 1 to {self.context - 1}"
                )


def main(config: EvaluateMemoryConfig) -> dict[str, Any]:
    """Evaluate, write and print everything.

    Returns:
        What results.json holds.

    Raises:
        ValueError: the model is told poses, or frames or actions are not those of the walks.
    """
    keep_memory()
    output = config.output or Path("runs/evaluate_memory") / name_of_model(config.world_model)
    model = worldsim.load(config.world_model, chosen_device(config.device))
    if model.told_poses:
        raise ValueError(
            f"{config.world_model} is told poses, not actions: judge it with "
            "experiments/benchmark_memory.py"
        )
    changes = {name: getattr(config, name) for name in ("num_denoising_steps", "dream_signal")}
    model = model.reconfigured(**{k: v for k, v in changes.items() if v is not None})
    task = MazeTask(
        env=config.env,
        conditioning="action",
        training_episodes=24,  # only to learn which colours there are
        test_episodes=config.episodes,
        context=config.context,
        horizon=config.horizon,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
    )
    mazes = MemoryMazes(task, config.work)
    check_same_kind(config.world_model, model.config, config.env, mazes)
    runs: Runs = {}
    parameters = sum(p.numel() for p in model.parameters())
    with tqdm(total=2 * (2 + len(config.shorter_contexts)), unit="walks", mininterval=0) as bar:

        def judge(name: str, label: str, evaluate: Any) -> None:
            def report(kind: str) -> None:
                bar.set_description(f"{label}, {kind}")
                bar.update()

            evaluation, frames = evaluate(report)
            runs[name] = [
                {"label": label, "seed": 0, "parameters": parameters, "evaluation": evaluation}
            ]
            kept = output / f"{name}-seed0" / "frames.npz"
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.savez(kept, **frames)  # type: ignore[arg-type]

        judge("whole", f"whole tour, {config.context} frames", lambda r: mazes.evaluate(model, r))
        for n in config.shorter_contexts:
            judge(
                f"last_{n}",
                f"last {n} frames",
                lambda r, n=n: mazes.evaluate(model, r, observed=n),
            )
        judge(REFERENCE, REFERENCE_LABEL, lambda r: mazes.reference(model.device, r))
    differences = {
        name: compare(runs["whole"][0]["evaluation"], results[0]["evaluation"])
        for name, results in runs.items()
        if name.startswith("last_")
    }
    values = {
        "runs": {name: results[0] for name, results in runs.items()},
        "differences": differences,
        "config": config,
        "provenance": provenance(),
    }
    write_json(output / "results.json", values)
    table = "\n".join([format_table(runs), "", *describe(differences)])
    (output / "table.md").write_text(table + "\n")
    draw_runs(output, runs)
    save_video(output / "dreams.gif", stack_dreams(runs, output))
    rows = contact_rows(runs, output)
    if rows:
        plot(output / "contact_sheet.png", [lambda axes: draw_contact_sheet(axes, rows)])
    print(table)
    print(f"everything is in {output}")
    return values


def compare(whole: dict[str, Any], cut: dict[str, Any]) -> dict[str, Any]:
    """What the whole tour gains over its last frames: means over mazes of paired differences.

    Returns:
        By task, metric and frames: mean, 95 % bootstrap interval, and number of mazes.
    """
    gains: dict[str, Any] = {}
    for kind, part in whole["parts"].items():
        for metric, groups in part["by_maze"].items():
            for frames, means in groups.items():
                other = cut["parts"][kind]["by_maze"][metric][frames]
                pairs = zip(means, other, strict=True)
                gain = [a - b for a, b in pairs if a is not None and b is not None]
                if gain:
                    gains.setdefault(kind, {}).setdefault(metric, {})[frames] = {
                        "mean": float(np.mean(gain)),
                        "interval": list(bootstrap_interval(gain)),
                        "mazes": len(gain),
                    }
    return gains


def describe(differences: dict[str, Any]) -> list[str]:
    """Lines of text about what the whole tour gains."""
    lines = []
    for name, kinds in differences.items():
        cut = f"the last {name.removeprefix('last_')} frames"
        for kind, metrics in kinds.items():
            for metric, label in (("psnr", "dB PSNR"), ("colors", "of wall colours")):
                for frames, gain in metrics.get(metric, {}).items():
                    low, high = gain["interval"]
                    lines.append(
                        f"- {kind}, {frames}: the whole tour gains {gain['mean']:+.2f} "
                        f"[{low:+.2f}, {high:+.2f}] {label} over {cut} ({gain['mazes']} mazes)"
                    )
    return lines


def stack_dreams(runs: Runs, work: Path) -> np.ndarray:
    """Walks of the same tour again side by side: real, and below what each run dreamed.

    Returns:
        (t, h, w, c) uint8.
    """
    rows: list[np.ndarray] = []
    for name in runs:
        with np.load(work / f"{name}-seed0" / "frames.npz") as frames:
            if not rows:
                rows.append(tile(frames["real"]))
            rows.append(tile(frames["dreamed"]))
    return np.concatenate([np.pad(row, ((0, 0), (2, 2), (0, 0), (0, 0))) for row in rows], axis=1)


if __name__ == "__main__":
    run_script(main, EvaluateMemoryConfig, __doc__)
