"""Plots of the memory benchmark: lines are means over seeds, shaded from lowest to highest."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from experiments.memory_backbones import ALL
from experiments.report import Runs

MIN_FRAMES = 20
"""Frames that a point of the recall plot stands for, at least."""


def kinds_of(result: dict[str, Any]) -> tuple[str, ...]:
    """The tasks that a result is of, where there are several."""
    return tuple(result["evaluation"].get("parts", {}))


def part_of(result: dict[str, Any], kind: str | None) -> dict[str, Any]:
    """The evaluation on one kind of task; None is all there is."""
    evaluation = result["evaluation"]
    return evaluation if kind is None else evaluation["parts"][kind]


def plot(file: Path, panels: Sequence[Callable[[Axes], None]]) -> None:
    """Draw panels side by side, at most two in a row."""
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(7 * columns, 4.5 * rows), squeeze=False, layout="constrained"
    )
    for ax, draw in zip(axes.flat, panels, strict=True):
        ax.grid(alpha=0.3)
        draw(ax)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if handles and len(panels) > 1:  # which one would hide lines of the first panel
        figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=4)
    elif handles:
        axes[0, 0].legend(fontsize=8)
    figure.savefig(file, dpi=120, bbox_inches="tight")  # long labels stand outside
    plt.close(figure)


def draw_runs(output: Path, runs: Runs) -> None:
    """Draw recall.png and psnr.png, one panel for each kind of task."""
    kinds: list[str | None] = [*kinds_of(next(iter(runs.values()))[0])] or [None]
    recall = [functools.partial(draw_recall, runs, kind) for kind in kinds]
    if all("by_time" in r["evaluation"] for results in runs.values() for r in results):
        recall.append(functools.partial(draw_recall_by_time, runs))
    plot(output / "recall.png", recall)
    plot(output / "psnr.png", [functools.partial(draw_psnr, runs, kind) for kind in kinds])


def recall_bins(
    result: dict[str, Any], kind: str | None = None
) -> dict[int, tuple[float, float, int]]:
    """Mean distance, share that is right and frames, by first distance, of one kind of task.

    Bins of a few frames say nothing and are left out.
    """
    hit = result["evaluation"]["hit"]
    return {
        row["first"]: (row["distance"], row[hit], row["count"])
        for row in part_of(result, kind)["recall"]["bins"]
        if row["count"] >= MIN_FRAMES
    }


def draw_recall(runs: Runs, kind: str | None, axes: Axes) -> None:
    """Share that is right against frames since last seen."""
    shown: list[float] = []
    for i, results in enumerate(runs.values()):
        seeds = [recall_bins(result, kind) for result in results]
        common = [first for first in seeds[0] if all(first in bins for bins in seeds)]
        if not common:
            continue
        values = np.array([[bins[first] for first in common] for bins in seeds])
        distance = values[..., 0].mean(0).tolist()
        shown += distance
        draw_share(axes, distance, values[..., 1], results[0]["label"], i)
    first = next(iter(runs.values()))[0]
    label = first["evaluation"].get("chance_label", "chance")
    axes.axhline(part_of(first, kind)["chance"], color="grey", linestyle="--", label=label)
    axes.set(ylim=(0, 1.02), xlabel="frames since last seen", ylabel="recall", title=kind or "")
    if shown and max(shown) > 10 * min(shown):
        axes.set_xscale("log")


def draw_recall_by_time(runs: Runs, axes: Axes) -> None:
    """Share that is right of what was seen before, against the frame of the episode."""
    for i, results in enumerate(runs.values()):
        rows = [r["evaluation"]["by_time"] for r in results]
        right = np.array([[row["right"] for row in seed] for seed in rows])
        draw_share(axes, [row["frame"] for row in rows[0]], right, results[0]["label"], i)
    axes.axhline(next(iter(runs.values()))[0]["evaluation"]["chance"], color="grey", linestyle="--")
    axes.set(ylim=(0, 1.02), xlabel="frame of the walk", ylabel="recall of what was seen before")


def draw_share(axes: Axes, x: Sequence[float], values: np.ndarray, label: str, i: int) -> None:
    """One model's line of shares; lines that lie on one another are told apart by their dashes."""
    style = (0, (4, 1 + i % 3)) if i % 2 else "-"
    draw_seeds(axes, x, values, label=label, marker="o", markersize=3, linestyle=style)


def draw_seeds(axes: Axes, x: Sequence[float], values: np.ndarray, **style: Any) -> None:
    """The mean of seeds (n, len(x)), shaded from the lowest to the highest where there are some."""
    (line,) = axes.plot(x, values.mean(0), **style)
    if len(values) > 1:
        axes.fill_between(x, values.min(0), values.max(0), color=line.get_color(), alpha=0.15)


def draw_psnr(runs: Runs, kind: str | None, axes: Axes) -> None:
    """PSNR against dreamed step."""
    for results in runs.values():
        curves = np.array([part_of(r, kind)["psnr"] for r in results])
        draw_seeds(axes, range(1, curves.shape[1] + 1), curves, label=results[0]["label"])
    axes.set(xlabel="dreamed step", ylabel="PSNR (dB)")
    axes.set_title(kind or "")


def draw_cost(
    costs: dict[str, Any], part: str, x: str, y: str, x_label: str, y_label: str, axes: Axes
) -> None:
    """One cost of every model."""
    for name, values in costs.items():
        rows = values[part]
        axes.plot([r[x] for r in rows], [r[y] for r in rows], marker="o", label=ALL[name].label)
    axes.set(xscale="log", yscale="log", xlabel=x_label, ylabel=y_label)


def contact_rows(runs: Runs, work: Path, num_columns: int = 12) -> dict[str, np.ndarray]:
    """Frames (n, h, w, c) by label: real ones, then each model's dreams of them.

    All are of the same dreamed steps, which return to a seen place. Empty where the frames of the
    runs are not on this machine.
    """
    rows: dict[str, np.ndarray] = {}
    chosen = None
    for name, results in runs.items():
        file = work / f"{name}-seed{results[0]['seed']}" / "frames.npz"
        if not file.is_file():
            continue
        with np.load(file) as frames:
            if chosen is None:
                episode = int(frames["known"].sum(1).argmax())
                steps = np.flatnonzero(frames["known"][episode])
                if not len(steps):
                    return {}
                spaced = np.linspace(0, len(steps) - 1, min(num_columns, len(steps)))
                chosen = steps[spaced.round().astype(int)]
                rows["real"] = frames["real"][episode][chosen]
            rows[results[0]["label"]] = frames["dreamed"][episode][chosen]
    return rows


def draw_contact_sheet(axes: Axes, rows: dict[str, np.ndarray]) -> None:
    """One row of frames for each label."""
    sheet = np.concatenate([_in_a_row(frames) for frames in rows.values()])
    height = len(sheet) / len(rows)
    axes.imshow(sheet)
    axes.set_yticks(height * (np.arange(len(rows)) + 0.5), list(rows), fontsize=7)
    axes.set(xticks=[], xlabel="dreamed steps that return to a seen place")
    axes.tick_params(length=0)
    axes.grid(False)
    axes.set_frame_on(False)


def _in_a_row(frames: np.ndarray) -> np.ndarray:
    """Frames (n, h, w, c) side by side with a white line between, (h + 2, n (w + 2), c)."""
    padded = np.pad(frames, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)
