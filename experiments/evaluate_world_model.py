"""Judge a world model on episodes it was never trained on.

    python experiments/evaluate_world_model.py --world-model memory-maze-9x9 \
        --dataset memory-maze-9x9/validation-v0

Observes a real context of each held-out episode, dreams on under the true actions and compares with
what really happened, by step: beside the autoencoder (the ceiling), the last context frame copied
and the same dream under shuffled actions (the floors), or after a shorter context (what memory is
worth). Also how well rewards are told on real frames, and whether dreams reward reaching the target
and nothing else. Leaves results.json, plots, real/dream strips and a video in the output.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import torch
from tqdm import tqdm

import worldsim
from agents.statistics import bootstrap_interval
from experiments.command_line import run_script
from experiments.data_checks import learned_before
from experiments.dreamed_poses import dreamed_poses
from experiments.dreamed_rewards import dreamed_rewards, format_shares
from experiments.platform_settings import chosen_device, keep_memory
from experiments.report import name_of_model, provenance, write_json
from experiments.reward_events import events_in
from experiments.told_map import map_on_real_frames
from experiments.told_places import places_on_real_frames
from experiments.told_rewards import rewards_on_real_frames
from experiments.videos import save_video
from worldsim.episodes import EpisodeDataset
from worldsim.metrics import average_precision
from worldsim.open_loop import (
    OpenLoopResult,
    draw_stretches,
    evaluate_open_loop,
    odometry_error,
)
from worldsim.pose import has_poses
from worldsim.world_model import WorldModel

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LABELS = {
    "autoencoder": "autoencoder (ceiling)",
    "dream": "dream, true actions",
    "shuffled": "dream, shuffled actions",
    "copy_last": "last context frame copied",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateWorldModelConfig:
    """Judge a world model on held-out episodes."""

    world_model: str = "memory-maze-9x9"
    """Shipped name or checkpoint directory."""
    dataset: tuple[str, ...] = ("memory-maze-9x9/validation-v0",)
    """Episodes never trained on."""
    datasets_root: Path | None = None
    """Folder of all datasets; by default Minari's own."""
    num_contexts: int = 24
    """Held-out stretches, from different episodes as far as there are; and tours, at most."""
    context: int = 256
    """Real frames observed first."""
    horizon: int = 64
    """Frames dreamed."""
    num_denoising_steps: tuple[int, ...] = ()
    """Also score these numbers of denoising steps, without floors."""
    dream_signals: tuple[float, ...] = ()
    """Also score dreams that are committed to memory at these signal levels, without floors."""
    precisions: tuple[Literal["float32", "bfloat16"], ...] = ()
    """Also score dreams in these, without floors; by default it is what the device is fast in."""
    shorter_contexts: tuple[int, ...] = (8, 64)
    """Also score dreams after only so many real frames, where that is fewer: what a longer memory
    is worth."""
    reward_episodes: int = 8
    """Whole held-out episodes on which rewards are told from real frames."""
    map_dataset: tuple[str, ...] = ()
    """Held-out tours that come to every cell, to judge the model's map on."""
    batch_size: int = 8
    """Dreams at a time; smaller saves memory."""
    device: str = "auto"
    """Where the world model runs."""
    seed: int = 0
    output: Path | None = None
    """By default runs/evaluate_world_model/<world model, or its run>."""

    def __post_init__(self) -> None:
        if self.context < 1 or self.horizon < 1:
            raise ValueError(
                f"context and horizon must be at least 1, got {self.context} and {self.horizon}"
            )
        for name in ("num_contexts", "reward_episodes", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if min(self.shorter_contexts, default=1) < 1:
            raise ValueError(f"shorter_contexts must be at least 1, got {self.shorter_contexts}")


def main(config: EvaluateWorldModelConfig) -> dict[str, Any]:
    """Evaluate, write and print everything.

    Returns:
        What results.json holds.
    """
    keep_memory()
    device = chosen_device(config.device)
    runs = Path("runs/evaluate_world_model")
    output = config.output or runs / name_of_model(config.world_model)
    model = worldsim.load(config.world_model, device)
    if config.map_dataset and model.occupancy is None:
        raise ValueError(f"map_dataset is given, but {config.world_model} has no map")
    judged_on = (*config.dataset, *config.map_dataset)
    for name in learned_before(config.world_model, judged_on, config.datasets_root):
        warnings.warn(f"{config.world_model} has learned from {name}", stacklevel=2)
    root, image_key = config.datasets_root, model.config.image_key
    dataset = EpisodeDataset(config.dataset, root, image_key).readable()
    length = config.context + config.horizon
    stretches = draw_stretches(dataset, config.num_contexts, length, config.seed)
    result = dream_in_batches(model, stretches, config, "dream")
    events = events_in(dataset)
    happened = events.among(result.rewards)
    values: dict[str, Any] = {
        "open_loop": summarise_by_step(result.psnr, result.ssim),
        "rewards": {
            "dreamed_average_precision": average_precision(
                events.distance(result.dreamed_rewards), happened
            ),
            "dreamed_events": int(happened.sum()),
            **rewards_on_real_frames(model, dataset, config.reward_episodes),
        },
        "dreamed_rewards": dreamed_rewards(
            model, dataset, batch_size=config.batch_size, seed=config.seed
        ),
        "state_bytes_per_env": model.initial_state(1).nbytes,
        "precision": str(model.compute_dtype).removeprefix("torch."),
        "denoising_steps": {},
        "dream_signals": {},
        "precisions": {},
        "shorter_contexts": {},
    }
    if model.odometry is not None and has_poses(dataset.infos(0)):
        longest = int(dataset.lengths.max())
        error = odometry_error(model, dataset, config.reward_episodes, longest)
        values["odometry_error"] = error.tolist()
        values["dreamed_poses"] = dreamed_poses(
            model,
            dataset,
            config.num_contexts,
            config.context,
            config.horizon,
            seed=config.seed,
            batch_size=config.batch_size,
        )
    if model.places is not None and has_poses(dataset.infos(0)):
        values["places"] = places_on_real_frames(model, dataset, config.reward_episodes)
    if config.map_dataset:
        tours = EpisodeDataset(config.map_dataset, root, image_key).readable()
        values["map"] = map_on_real_frames(model, tours, config.num_contexts)
    for steps in config.num_denoising_steps:
        other = dream_in_batches(model, stretches, config, f"{steps} steps", steps, floors=False)
        values["denoising_steps"][steps] = summarise_first(other)
    for level in config.dream_signals:
        other = dream_in_batches(
            model.reconfigured(dream_signal=level).eval(),
            stretches,
            config,
            f"committed at {level:g}",
            floors=False,
        )
        values["dream_signals"][f"{level:g}"] = summarise_first(other)
    for precision in config.precisions:
        same = worldsim.load(config.world_model, device, getattr(torch, precision))
        other = dream_in_batches(same, stretches, config, precision, floors=False)
        values["precisions"][precision] = summarise_first(other)
    for context in (n for n in config.shorter_contexts if n < config.context):
        cut = tuple(x[:, config.context - context :] for x in stretches)
        shorter = dataclasses.replace(config, context=context)
        other = dream_in_batches(model, cut, shorter, f"context of {context}", floors=False)
        values["shorter_contexts"][context] = summarise_first(other)
    values |= {"config": config, "provenance": provenance()}
    write_json(output / "results.json", values)
    plot_by_step(values["open_loop"], output / "quality_by_step.png")
    draw_strips(result, output / "strips.png")
    write_video(result, output / "dreams.gif")
    print_tables(values)
    print(f"everything is in {output}")
    return values


def dream_in_batches(
    model: WorldModel,
    stretches: tuple[np.ndarray, ...],
    config: EvaluateWorldModelConfig,
    name: str,
    num_denoising_steps: int | None = None,
    floors: bool = True,
) -> OpenLoopResult:
    """`evaluate_open_loop` over parts of the stretches, under a progress bar."""
    parts = []
    starts = range(0, len(stretches[0]), config.batch_size)
    total = len(starts) * config.horizon * (1 + floors)
    with tqdm(total=total, desc=name, unit="step", mininterval=2) as bar:
        for start in starts:
            part = slice(start, start + config.batch_size)

            def report(done: int, _: int, before: int = bar.n) -> None:
                bar.update(before + done - bar.n)

            parts.append(
                evaluate_open_loop(
                    model,
                    *(x[part] for x in stretches),
                    context=config.context,
                    seed=config.seed + start,
                    num_denoising_steps=num_denoising_steps,
                    floors=floors,
                    progress=report,
                )
            )

    def join(field: str) -> Any:
        values = [getattr(p, field) for p in parts]
        if isinstance(values[0], dict):
            return {k: np.concatenate([v[k] for v in values]) for k in values[0]}
        return np.concatenate(values)

    return OpenLoopResult(**{field: join(field) for field in OpenLoopResult.__dataclass_fields__})


def summarise_first(result: OpenLoopResult) -> dict[str, Any]:
    """Scores of dreams over their first steps."""
    summary = summarise_by_step(result.psnr, result.ssim)["dream"]
    return {key: value for key, value in summary.items() if key.startswith("first_")}


def summarise_by_step(
    psnr: Mapping[str, np.ndarray], ssim: Mapping[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """Means over stretches by dreamed step, and over the first 8, 16, 32, ... with intervals."""
    summary: dict[str, dict[str, Any]] = {}
    for name in psnr:
        summary[name] = {
            "psnr_by_step": psnr[name].mean(0).round(3).tolist(),
            "ssim_by_step": ssim[name].mean(0).round(4).tolist(),
        }
        horizon = psnr[name].shape[1]
        for first in sorted({n for n in (1, 8, 16, 32, 64) if n <= horizon} | {horizon}):
            means = psnr[name][:, :first].mean(1)
            summary[name][f"first_{first}"] = {
                "psnr": float(means.mean()),
                "psnr_interval": list(bootstrap_interval(means.tolist())),
                "ssim": float(ssim[name][:, :first].mean()),
            }
    return summary


def plot_by_step(summary: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """PSNR and SSIM against dreamed step."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    for axis, metric in zip(axes, ("psnr", "ssim"), strict=True):
        for name, label in LABELS.items():
            values = summary[name][f"{metric}_by_step"]
            axis.plot(range(1, len(values) + 1), values, label=label)
        axis.set(xlabel="dreamed step", ylabel="PSNR (dB)" if metric == "psnr" else "SSIM")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_strips(result: OpenLoopResult, path: Path, num_strips: int = 6) -> None:
    """Real frames above dreamed ones, at a few steps; best, median and others by their order."""
    horizon = result.real.shape[1]
    steps = [s for s in (0, 1, 3, 5, 7, 11, 15, 23, 31, 47, 63) if s < horizon]
    n = min(num_strips, len(result.real))
    figure, axes = plt.subplots(
        2 * n, len(steps), figsize=(1.0 * len(steps), 2.1 * n), squeeze=False
    )
    for i in range(n):
        for j, step in enumerate(steps):
            for row, frames in enumerate((result.real, result.dreamed)):
                axis = axes[2 * i + row, j]
                axis.imshow(frames[i, step], cmap="gray", vmin=0, vmax=255)
                axis.set(xticks=[], yticks=[])
                if j == 0:
                    axis.set_ylabel("dream" if row else "real", fontsize=8)
                if i == 0 and row == 0:
                    axis.set_title(f"step {step + 1}", fontsize=8)
    figure.tight_layout(pad=0.3, h_pad=0.15, w_pad=0.1)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def write_video(result: OpenLoopResult, path: Path, num_dreams: int = 6, scale: int = 2) -> None:
    """An animation: real above dreamed, several dreams side by side."""
    pairs = np.concatenate([result.real, result.dreamed], axis=2)[:num_dreams]
    pairs = np.pad(pairs, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    video = np.concatenate(list(pairs), axis=2)
    video = video.repeat(scale, axis=1).repeat(scale, axis=2)
    save_video(path, video, fps=6.25)


def print_tables(values: Mapping[str, Any]) -> None:
    """The quality table on the terminal."""
    summary = values["open_loop"]
    horizons = [key for key in summary["dream"] if key.startswith("first_")]
    print(f"{'PSNR dB / SSIM':28s}" + "".join(f"{h.replace('_', ' '):>16s}" for h in horizons))
    for name, label in LABELS.items():
        cells = (
            f"{summary[name][h]['psnr']:.2f} / {summary[name][h]['ssim']:.3f}" for h in horizons
        )
        print(f"{label:28s}" + "".join(f"{c:>16s}" for c in cells))
    others = {f"{n} denoising steps": v for n, v in values["denoising_steps"].items()}
    others |= {f"committed at signal {n}": v for n, v in values["dream_signals"].items()}
    others |= {f"in {name}": v for name, v in values["precisions"].items()}
    others |= {f"context of {n} frames": v for n, v in values["shorter_contexts"].items()}
    for label, scores in others.items():
        cells = (f"{scores[h]['psnr']:.2f} / {scores[h]['ssim']:.3f}" for h in horizons)
        print(f"{label:28s}" + "".join(f"{c:>16s}" for c in cells))
    for key, value in values["rewards"].items():
        print(f"{key:32s} {value:.4g}")
    if "odometry_error" in values:
        error = values["odometry_error"]
        shown = [f"{error[n]:.2f} after {n}" for n in (16, 64, 256, 999) if n < len(error)]
        print(f"cells that odometry is off, by real frames: {', '.join(shown)}")
    for key, error in values.get("dreamed_poses", {}).items():
        shown = [f"{error[n - 1]:.2f} after {n}" for n in (8, 16, 32, 64) if n <= len(error)]
        print(f"cells in dreams, by dreamed steps: {key.replace('_', ' ')} {', '.join(shown)}")
    for key, value in values.get("places", {}).items():
        print(f"places of rewards: {key:34s} {value:.4g}")
    for key, value in values.get("map", {}).items():
        print(f"map beside the way: {key:33s} {value:.4g}")
    for lead, kinds in values["dreamed_rewards"].items():
        print(f"rewarded at dreamed step {lead}: {format_shares(kinds)}")


if __name__ == "__main__":
    run_script(main, EvaluateWorldModelConfig, __doc__)
