"""Tables of the memory benchmark, and its plots (`memory_plots`), from the JSON files of its runs.

    python experiments/memory_report.py --output results/memory/corridor --work runs/memory/corridor

`benchmark_memory.py` writes them at its end.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.statistics import crossed_bootstrap_interval
from experiments.command_line import run_script
from experiments.memory_backbones import ALL
from experiments.memory_plots import (
    contact_rows,
    draw_contact_sheet,
    draw_cost,
    draw_runs,
    kinds_of,
    part_of,
    plot,
)
from experiments.report import Runs, read_json, read_runs
from worldsim.checkpoint import from_json
from worldsim.world_model import WorldModel
from worldsim.world_model_config import WorldModelConfig

REFERENCE, REFERENCE_LABEL = "nearest_seen", "nearest seen frame, copied"


def write_report(output: Path, work: Path) -> str:
    """Write table.md, costs.md and the plots; returns the tables.

    Args:
        output: where the results are and the report goes.
        work: where the runs' frames are, for the contact sheet.

    Raises:
        FileNotFoundError: there is no result.
    """
    runs, costs = (
        read_runs(output, (*ALL, REFERENCE)),
        (read_json(output / "costs.json") or {}).get("models", {}),
    )
    if not runs and not costs:
        raise FileNotFoundError(f"no results in {output}: run experiments/benchmark_memory.py")
    tables = []
    if runs:
        tables += [format_table(runs), *format_differences(runs)]
        (output / "table.md").write_text("\n\n".join(tables) + "\n")
        draw_runs(output, runs)
    if costs:
        tables.append(format_costs(costs))
        (output / "costs.md").write_text(tables[-1] + "\n")
        panels = [
            ("dreaming", "context", "milliseconds", "context (frames)", "ms per dreamed frame"),
            ("dreaming", "context", "state_bytes", "context (frames)", "state (bytes)"),
            ("training", "length", "seconds_per_frame", "segment (frames)", "training s per frame"),
            ("training", "length", "bytes_per_frame", "segment (frames)", "bytes kept per frame"),
        ]
        draw = [functools.partial(draw_cost, costs, *panel) for panel in panels]
        plot(output / "costs.png", draw)
    rows = contact_rows(runs, work)
    if rows:
        plot(output / "contact_sheet.png", [lambda axes: draw_contact_sheet(axes, rows)])
    return "\n\n".join(tables)


def mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def format_number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 2 else f"{value:.1f}"


def format_table(runs: Runs) -> str:
    """Markdown: one row per model, means over seeds and, with several, their range."""
    first = next(iter(runs.values()))[0]
    columns = list(columns_of(first))
    header = [
        "model",
        "M parameters",
        "layers x width",
        "state, KiB",
        "dream signal",
        "seeds",
        *columns,
    ]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for name, results in runs.items():
        parameters = f"{results[0]['parameters'] / 1e6:.2f}" if name != REFERENCE else "-"
        shape, state = shape_of(results[0]), state_of(results[0])
        signals = sorted({r["dream_signal"] for r in results if "dream_signal" in r})
        signal = ", ".join(f"{level:g}" for level in signals) or "-"
        cells = [results[0]["label"], parameters, shape, state, signal, str(len(results))]
        for column in columns:
            values = [columns_of(r).get(column) for r in results]
            known = [v for v in values if v is not None]
            cell = format_number(mean_or_none(values))
            if all(column in r["evaluation"].get("by_walk", {}) for r in results):
                cell += format_interval([r["evaluation"]["by_walk"][column] for r in results])
            elif len(known) > 1:
                cell += f" ({format_number(min(known))} to {format_number(max(known))})"
            cells.append(cell)
        lines.append("| " + " | ".join(cells) + " |")
    if "by_walk" in first["evaluation"]:
        lines += [
            "",
            "In square brackets: 95 % bootstrap intervals over seeds and walks. Chance is",
        ]
        lines[-1] += f" {format_number(first['evaluation']['chance'])}."
    guesses = {f"{kind} wall colours": part_of(first, kind)["chance"] for kind in kinds_of(first)}
    if guesses:
        label = first["evaluation"].get("chance_label", "chance")
        told = [format_number(guesses.get(column)) for column in columns]
        lines.append("| " + " | ".join([label, *5 * ["-"], *told]) + " |")
    commits = {str(r.get("commit"))[:7] for results in runs.values() for r in results} - {"None"}
    if len(commits) > 1:
        lines += ["", f"Of several commits: {', '.join(sorted(commits))}."]
    if any("LPIPS" in column for column in columns):
        lines += ["", "LPIPS: where torchvision and its AlexNet weights are on the machine."]
    return "\n".join(lines)


def format_interval(counted: Sequence[Sequence[tuple[int, int]]]) -> str:
    """Interval of a share, from how many were right and how many there were by seed and walk."""
    right, counts = np.moveaxis(np.array(counted), -1, 0)
    if not counts.any():
        return ""
    low, high = crossed_bootstrap_interval(right, counts)
    return f" [{format_number(low)}, {format_number(high)}]"


def shape_of(result: dict[str, Any]) -> str:
    """How deep and wide a model is, which matching parameters decides."""
    backbone = result.get("settings", {}).get("model", {}).get("backbone", {})
    return f"{backbone['num_layers']} x {backbone['d_model']}" if backbone else "-"


def state_of(result: dict[str, Any]) -> str:
    """KiB that a model remembers after the context, of one episode."""
    settings = result.get("settings", {})
    if "model" not in settings:
        return "-"
    model = WorldModel(from_json(WorldModelConfig, settings["model"])).eval()
    context = int(settings["task"]["context"])
    shape, state = model.config.tokenizer.latent_shape, model.initial_state(1)
    told = torch.zeros(1, context, 3) if model.told_poses else torch.zeros(1, context).long()
    with torch.no_grad():
        state, _ = model.observe_latents(state, told, torch.zeros(1, context, *shape))
    return f"{state.nbytes / 1024:.0f}"


def columns_of(result: dict[str, Any]) -> dict[str, float | None]:
    """Columns of the table; on mazes, also of what was never seen before."""
    evaluation = result["evaluation"]
    never = {
        f"{kind} {title}, never seen": part["recall"]["never"].get(metric)
        for kind, part in evaluation.get("parts", {}).items()
        for metric, title in (("psnr", "PSNR"), ("colors", "wall colours"))
    }
    return evaluation["columns"] | never


COMPARED = [
    (kind, metric, frames, f"{kind}, {title}, {frames}")
    for kind in ("retrieval", "reasoning")
    for metric, frames, title in (
        ("psnr", "seen over 64 frames ago", "dB"),
        ("colors", "all", "wall colours"),
    )
]
"""Task, metric and frames in which models are compared maze by maze, and their title."""


def format_differences(runs: Runs, ours: str = "block_ssm") -> list[str]:
    """Markdown: how much better ours is than each other model, where results are kept by maze.

    Means of paired differences over mazes and the seeds that both have, with their 95 % bootstrap
    interval, for which both are drawn anew.
    """
    own = {result["seed"]: result for result in runs.get(ours, [])}
    titles = " | ".join(title for *_, title in COMPARED)
    lines = [f"| ours against | {titles} |", "|" + "---|" * (1 + len(COMPARED))]
    for name, results in runs.items():
        if name == REFERENCE:  # which nothing was trained for: the same for all seeds
            pairs = [(result, results[0]) for result in own.values()]
        else:
            pairs = [(own[r["seed"]], r) for r in results if r["seed"] in own]
        if name == ours or not pairs or not all(kept_by_maze(r) for pair in pairs for r in pair):
            continue
        cells = [results[0]["label"]]
        for kind, metric, frames, _ in COMPARED:
            first, other = (
                np.array([by_maze(pair[i], kind, metric, frames) for pair in pairs]) for i in (0, 1)
            )
            cells.append(format_gain(first - other))
        lines.append("| " + " | ".join(cells) + " |")
    if len(lines) == 2:
        return []
    results = list(own.values())
    if all("guess" in part_of(r, kind)["by_maze"] for r in results for kind in kinds_of(r)):
        cells = [results[0]["evaluation"]["chance_label"]]
        for kind, metric, frames, _ in COMPARED:
            right, guess = (
                np.array([by_maze(r, kind, name, frames) for r in results])
                for name in ("colors", "guess")
            )
            cells.append(format_gain(right - guess) if metric == "colors" else "-")
        lines.append("| " + " | ".join(cells) + " |")
    note = (
        "Paired by maze and by the seeds of training that both have; 95 % bootstrap intervals over"
    )
    lines += ["", f"{note} both: those of one seed tell nothing of how seeds differ."]
    return ["\n".join(lines)]


def format_gain(gains: np.ndarray) -> str:
    """Mean and interval of gains (seeds, mazes), of which some may not be known."""
    known = gains[:, ~np.isnan(gains).any(axis=0)]
    if not known.size:
        return "-"
    low, high = crossed_bootstrap_interval(known)
    return f"{known.mean():+.2f} [{low:+.2f}, {high:+.2f}]"


def kept_by_maze(result: dict[str, Any]) -> bool:
    """Whether a result tells mazes apart; those of the corridor, and of long ago, do not."""
    parts = result["evaluation"].get("parts", {})
    return bool(parts) and all("by_maze" in part for part in parts.values())


def by_maze(result: dict[str, Any], kind: str, metric: str, frames: str) -> list[float]:
    """Means by maze, nan where it has no such frames."""
    values = result["evaluation"]["parts"][kind]["by_maze"][metric][frames]
    return [float("nan") if value is None else value for value in values]


def format_costs(costs: dict[str, Any]) -> str:
    """Markdown: what each model costs at the shortest and the longest, and their ratio."""
    first = next(iter(costs.values()))
    ends = {
        part: [first[part][i][x] for i in (0, -1)]
        for part, x in (("training", "length"), ("dreaming", "context"))
    }
    columns = (  # part, key, factor to the unit, title
        ("training", "seconds_per_frame", 1000, "training, ms a frame"),
        ("training", "bytes_per_frame", 1 / 1024, "kept for it, KiB a frame"),
        ("dreaming", "milliseconds", 1, "dreaming, ms a frame"),
        ("dreaming", "state_bytes", 1 / 1024, "state, KiB"),
    )
    titles = [f"{title}: {ends[part][0]} to {ends[part][1]}" for part, _, _, title in columns]
    lines = ["| " + " | ".join(["model", *titles]) + " |", "|" + "---|" * (1 + len(titles))]
    for name, values in costs.items():
        cells = [ALL[name].label]
        for part, key, factor, _ in columns:
            short, long = (factor * values[part][i][key] for i in (0, -1))
            cells.append(f"{short:.3g} to {long:.3g} (x{long / short:.2f})")
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Training by frames of a segment, dreaming a batch of one by frames of context."]
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Make the report of results anew."""

    output: Path = Path("results/memory/corridor")
    """Where they are."""
    work: Path | None = None
    """Where what the dreams show is; by default in runs/memory, under the name of the output."""


def main(config: ReportConfig) -> None:
    """Write the report of a directory of results and print its table."""
    work = config.work or Path("runs/memory") / config.output.name
    print(write_report(config.output, work))


if __name__ == "__main__":
    run_script(main, ReportConfig, __doc__)
