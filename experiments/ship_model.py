"""Make a checkpoint into a model that ships: half precision, real contexts, a model card.

    python experiments/ship_model.py --checkpoint runs/world_model/checkpoint \
        --name memory-maze-9x9 --dataset memory-maze-9x9/validation-v0 \
        --evaluation results/world_model/results.json

Run once without --evaluation, judge the shipped model, then once more with it for the card.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import worldsim
from experiments.command_line import run_script
from experiments.data_checks import learned_before
from experiments.dreamed_rewards import format_shares
from experiments.evaluate_memory import describe
from experiments.settings import refuse_given
from worldsim.backbone import count_parameters
from worldsim.checkpoint import PRETRAINED, Contexts, load_config, load_contexts, load_metadata
from worldsim.episodes import EpisodeDataset
from worldsim.open_loop import draw_stretches
from worldsim.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class ShipConfig:
    """Make a checkpoint into a model that ships."""

    checkpoint: Path
    """Directory that train_world_model wrote."""
    name: str
    """Name of the shipped model, usually the env's."""
    dataset: tuple[str, ...] = ()
    """Episodes never trained on, to take contexts from; by default those kept with the checkpoint
    are shipped."""
    datasets_root: Path | None = None
    """Folder of all datasets; by default Minari's own."""
    num_contexts: int = 8
    context_length: int = 128
    num_denoising_steps: int | None = None
    """Default number of sampler steps; by default as trained."""
    dream_signal: float | None = None
    """Signal level of committed dream frames; by default as trained."""
    evaluation: Path | None = None
    """results.json of evaluate_world_model, for the card."""
    memory: Path | None = None
    """results.json of evaluate_memory, for the card."""
    notes: str = ""
    """A paragraph for the card: data, seeds, training command."""
    seed: int = 0
    output: Path = PRETRAINED


def main(config: ShipConfig) -> Path:
    """Write the shipped model.

    Returns:
        Its directory.
    """
    trained = worldsim.load(config.checkpoint, dtype=torch.float32)
    changes = {
        key: getattr(config, key)
        for key in ("num_denoising_steps", "dream_signal")
        if getattr(config, key) is not None
    }
    model = trained.reconfigured(**changes)
    metadata = load_metadata(config.checkpoint)
    contexts = choose_contexts(config)
    path = config.output / config.name
    evaluation = json.loads(config.evaluation.read_text()) if config.evaluation else None
    card = model_card(config, model, contexts, metadata, evaluation)
    if config.memory:
        values = json.loads(config.memory.read_text())
        lines = ["", "What its memory is worth:", "", *describe(values["differences"])]
        lines += ["", f"Made by `{values['provenance']['command']}`."]
        card += "\n".join(lines) + "\n"
    worldsim.save(model, path, contexts=contexts, half=True, metadata=metadata)
    (path / "README.md").write_text(card)
    size = sum(file.stat().st_size for file in path.iterdir()) / 2**20
    print(f"{path}: {size:.1f} MiB, {len(contexts.frames)} contexts")
    return path


def choose_contexts(config: ShipConfig) -> Contexts:
    """Stretches of a dataset, or those that training kept with the checkpoint.

    Raises:
        ValueError: the dataset is one that was trained on, or what is of one is given without.
    """
    if not config.dataset:
        of_dataset = ("num_contexts", "context_length", "seed", "datasets_root")
        refuse_given(config, of_dataset, "is of contexts drawn from a dataset: give --dataset")
        return load_contexts(config.checkpoint)
    if known := learned_before(config.checkpoint, config.dataset, config.datasets_root):
        raise ValueError(f"{', '.join(known)} was trained on: take contexts from other episodes")
    image_key = load_config(config.checkpoint).image_key
    dataset = EpisodeDataset(config.dataset, config.datasets_root, image_key).readable()
    drawn = draw_stretches(
        dataset, config.num_contexts, config.context_length, config.seed, going_on=True
    )
    return Contexts(*drawn[:2])


def learned_from(metadata: dict[str, Any]) -> list[str]:
    """On what it was trained, as far as the checkpoint says."""
    lines = [
        f"- Learned from {n['frames']:,} frames of {n['episodes']:,} episodes of {source}."
        for source, n in metadata.get("learned_from", {}).items()
    ]
    if "frames_seen" in metadata:
        lines.append(f"- {metadata['frames_seen']:,} frames seen by the denoiser.")
    return lines


def made_with(metadata: dict[str, Any]) -> list[str]:
    """Where and how it was trained, as far as the checkpoint says."""
    hardware = metadata.get("hardware", "unknown hardware")
    if isinstance(hardware, dict):
        hardware = f"{hardware['gpu'] or hardware['cpu']}, {hardware['cores']} cores"
    lines = [f"- Hardware: {hardware}, {metadata.get('device', 'unknown device')}."]
    trained = "Trained" if metadata.get("continued_from") is None else "Trained last"
    if "command" in metadata:
        lines.append(f"- {trained} by `{metadata['command']}` at commit {metadata['commit']}.")
    return lines


def model_card(
    config: ShipConfig,
    model: WorldModel,
    contexts: Contexts,
    metadata: dict[str, Any],
    evaluation: dict[str, Any] | None,
) -> str:
    """The card in Markdown."""
    c = model.config
    lines = [
        f"# {config.name}",
        "",
        f"World model of {config.name}: frames {c.frame_shape}, {c.num_actions} actions.",
        "",
        f"- {count_parameters(model.denoiser) / 1e6:.1f} M parameters in the denoiser, "
        f"{count_parameters(model.tokenizer) / 1e6:.1f} M in the tokenizer; "
        f"{c.token_grid[0]} x {c.token_grid[1]} tokens a frame; "
        f"{model.initial_state(1).nbytes / 2**20:.1f} MiB of state per env in float32.",
        *(
            [
                f"- Finds poses by odometry ({count_parameters(model.odometry) / 1e6:.2f} M "
                "parameters): training needed poses in the episodes, dreams and real frames do not."
            ]
            if model.odometry is not None
            else []
        ),
        *(
            [
                f"- Remembers places ({count_parameters(model.places) / 1e6:.2f} M parameters): "
                "features tell where the next reward is expected, and a policy head walks there."
            ]
            if model.places is not None
            else []
        ),
        *learned_from(metadata),
        *made_with(metadata),
        f"- {c.num_denoising_steps} denoising step{'s' * (c.num_denoising_steps > 1)}, dreamed "
        f"frames committed at signal level {c.dream_signal}.",
        f"- Ships {contexts.frames.shape[0]} contexts of {contexts.frames.shape[1]} real frames, "
        "from episodes never trained on.",
    ]
    if config.notes:
        lines += ["", config.notes]
    if evaluation is not None:
        summary = evaluation["open_loop"]
        horizons = [key for key in summary["dream"] if key.startswith("first_")]
        lines += [
            "",
            f"Open loop on {evaluation['config']['num_contexts']} stretches of episodes never "
            f"trained on, {evaluation['config']['context']} real frames of context, PSNR in dB / "
            "SSIM over the first dreamed frames:",
            "",
            "| | " + " | ".join(h.removeprefix("first_") for h in horizons) + " |",
            "|---|" + "---|" * len(horizons),
        ]
        for name, row in summary.items():
            cells = (f"{row[h]['psnr']:.2f} / {row[h]['ssim']:.3f}" for h in horizons)
            lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
        rewards = evaluation["rewards"]
        lines += [
            "",
            f"Rewards told from {rewards['real_frames']:,} real frames with "
            f"{rewards['real_events']} events: average precision "
            f"{rewards['real_average_precision']:.3f}, precision {rewards['real_precision']:.3f} "
            f"and recall {rewards['real_recall']:.3f} at one half. In the dreams above, "
            f"{rewards['dreamed_events']} events: average precision "
            f"{rewards['dreamed_average_precision']:.3f}.",
        ]
        if "return_correlation" in rewards:
            lines[-1] += (
                " Returns told from real frames correlate with those that followed by "
                f"{rewards['return_correlation']:.2f}."
            )
        for lead, kinds in evaluation["dreamed_rewards"].items():
            lines.append(f"Rewarded in a dream at step {lead}: {format_shares(kinds)}.")
        if "odometry_error" in evaluation:
            error = evaluation["odometry_error"]
            shown = [f"{error[n]:.2f} after {n}" for n in (16, 64, 256, 999) if n < len(error)]
            lines.append(f"Odometry is off by {', '.join(shown)} real frames, in cells.")
        if "places" in evaluation:
            places = evaluation["places"]
            lines.append(
                f"Where the next reward will be is told to within one cell in "
                f"{100 * places['share_within_one']:.0f} % of {places['frames']:,} real frames, "
                f"with a memory of at most {places['forgetful_frames']} frames in "
                f"{100 * places['forgetful_share_within_one']:.0f} %."
            )
        for context, row in evaluation["shorter_contexts"].items():
            scores = ", ".join(f"{row[h]['psnr']:.2f}" for h in horizons)
            lines.append(f"After a context of {context} frames only: {scores} dB.")
        lines += [
            "",
            f"Made by `{evaluation['provenance']['command']}`.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_script(main, ShipConfig, __doc__)
