"""Train a world model on recorded episodes.

    python experiments/train_world_model.py cpu --dataset memory-maze-9x9/explorer-v0

First the tokenizer, then every frame is encoded once, then the world model on the latents, with its
odometry before and its memory of places after it where it has these. A run that was stopped or
killed goes on from its last checkpoint when started again with the same output. Several processes
or GPUs: `accelerate launch experiments/train_world_model.py ...`. The trained model is in
OUTPUT/checkpoint, ready for `worldsim.load`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from tqdm import tqdm

import worldsim.checkpoint as checkpoint
from experiments.command_line import CONTINUES, run_script
from experiments.data_checks import (
    check_training_data,
    env_of,
    held_out_of,
    keep_held_out,
    learned_before,
    may_have_moved,
)
from experiments.model_to_train import build_model
from experiments.platform_settings import chosen_device, keep_memory
from experiments.report import provenance, read_json
from experiments.run_directory import check_config
from experiments.settings import as_json
from experiments.train_config import TrainConfig, presets
from experiments.train_stages import (
    check_stages,
    encode,
    learned_where_to_go,
    open_writer,
    run_with_progress,
    train_odometry,
    train_tokenizer,
    train_where_to_go,
)
from experiments.validation import validate
from worldsim.backbone import count_parameters
from worldsim.checks import check_device, check_same_kind
from worldsim.episodes import EpisodeDataset
from worldsim.latents import LatentEpisodes
from worldsim.open_loop import draw_stretches
from worldsim.training import Trainer, agreed_dtype, dynamics_loss, kept_model
from worldsim.world_model import WorldModel

FREE_TO_CHANGE = {
    *("output", "save_every", "validation", "compile", "device", "precision"),
    *("tokenizer_training", "odometry_training", "dynamics", "places_training"),
    "occupancy_training",
}
"""Settings that may differ when a run goes on: of a rate that was too high, say."""
BEFORE_DYNAMICS = {"tokenizer_training", "odometry_training"}
"""Those that may not any more once the world model learns from what they have made."""

HELD_OUT = "held_out.json"
"""Names of the episodes that a run without a validation dataset does not train on."""
NUM_CONTEXTS, CONTEXT_LENGTH = 8, 128
"""Held-out stretches kept with the checkpoint, for dreams to start from."""


def main(config: TrainConfig) -> Path:
    """Train, validate, save.

    Returns:
        The checkpoint directory.

    Raises:
        ValueError: no dataset is given, data and model do not fit, or the output holds a run with
            another config.
    """
    if not config.dataset:
        raise ValueError("no --dataset given: record one with python experiments/collect.py")
    keep_memory()
    accelerator = make_accelerator(config)
    set_seed(config.dynamics.optimizer.seed)
    train, held_out = open_datasets(config)
    tell = tqdm.write if accelerator.is_main_process else lambda _: None
    tell(
        f"training on {len(train)} episodes ({train.num_frames} frames), validating on "
        f"{len(held_out)}; device {accelerator.device}, precision {accelerator.mixed_precision}"
    )
    model = build_model(config, train)
    if (config.places or config.occupancy) and model.odometry is None:
        advice = "give --odometry too"
        if config.init is not None:
            advice = f"{config.init} has none, so choose another --init, or train anew with it"
        raise ValueError(f"places and maps are kept where odometry says: {advice}")
    check_stages(config, model, accelerator)
    for note in check_training_data(train, model.config, config.dynamics):
        tell(note)
    if config.init is not None and not config.validation_dataset:
        for name in learned_before(config.init, config.dataset, config.datasets_root):
            tell(
                f"{config.init} has learned from {name}: episodes of it that are held out now may "
                "not be new to it; give --validation-dataset"
            )
    begun = kept_model(config.output / "dynamics")
    free = FREE_TO_CHANGE if begun is None else FREE_TO_CHANGE - BEFORE_DYNAMICS
    free = free | moved_datasets(config)
    check_config(config.output, config, free, write=accelerator.is_main_process)
    if accelerator.is_main_process and not config.validation_dataset:
        keep_held_out(held_out, config.output / HELD_OUT)
    held_out = held_out.readable()
    model.to(accelerator.device)
    if config.init is None and config.tokenizer_of is None:
        train_tokenizer(config, model.tokenizer, train, accelerator)
    if begun is not None:  # it may be calibrated on other episodes by now, or taken from elsewhere
        prefix = "tokenizer."
        weights = {k.removeprefix(prefix): t for k, t in begun.items() if k.startswith(prefix)}
        model.tokenizer.load_state_dict(weights)
    model.tokenizer.eval().requires_grad_(False)
    episodes = encode(config, model, train, accelerator)
    if model.odometry is not None:
        if config.odometry:
            train_odometry(config, model, episodes, accelerator, begun=begun is not None)
        model.odometry.requires_grad_(False)
    if model.places is not None:
        model.places.requires_grad_(False)
    started = time.monotonic()
    env = env_of(train, config.datasets_root)
    learned = {"env": env, "learned_from": train.sources}
    model = train_dynamics(config, model, episodes, held_out, accelerator, learned)
    learns_places, learns_map = learned_where_to_go(config, model.config)
    if learns_places and not bool((episodes.rewards > 0).any()):
        what = "neither places nor a map" if learns_map else "no places"
        tell(f"no rewards above 0 in these episodes: {what} can be learned from them")
    elif config.places or config.occupancy or model.places is not None:
        model = train_where_to_go(config, model, episodes, accelerator)
        if accelerator.is_main_process:
            keep_with_places(config, model)
    tell(f"world model trained in {(time.monotonic() - started) / 60:.1f} min of this run")
    path = config.output / "checkpoint"
    judged_on = f" --env {env}" if env is not None else ""
    tell(
        f"checkpoint: {path}\n"
        f"next: python experiments/dream_train.py{judged_on} --world-model {path}"
    )
    return path


def moved_datasets(config: TrainConfig) -> set[str]:
    """Settings that name the datasets of the run that its output holds by other paths now."""
    kept, moved = read_json(config.output / "config.json") or {}, set()
    if (root := kept.get("datasets_root")) is not None and not Path(root).is_dir():
        moved.add("datasets_root")
    for name in ("dataset", "validation_dataset"):
        then, now = kept.get(name, []), getattr(config, name)
        if len(then) == len(now) and all(map(may_have_moved, then, now)):
            moved.add(name)
    return moved


def make_accelerator(config: TrainConfig) -> Accelerator:
    """What says where and in which precision it is trained.

    Raises:
        ValueError: there is no such device or precision.
    """
    device, precision = chosen_device(config.device), config.precision
    if check_device(device).index:
        raise ValueError(f"device is {device!r}: choose cuda, and which with CUDA_VISIBLE_DEVICES")
    if precision not in ("auto", "bf16", "no"):
        raise ValueError(f"precision must be auto, bf16 or no, got {precision!r}")
    if precision == "auto":
        PartialState(cpu=device == "cpu")  # of processes, which agree
        precision = "bf16" if agreed_dtype(device) == torch.bfloat16 else "no"
    backbone = checkpoint.load_config(config.init).backbone if config.init else config.backbone
    # On segments that its window holds, FAR uses none of its coarse tokens.
    far = backbone.kind == "far"
    options = DistributedDataParallelKwargs(find_unused_parameters=far)
    return Accelerator(mixed_precision=precision, cpu=device == "cpu", kwargs_handlers=[options])


def open_datasets(config: TrainConfig) -> tuple[EpisodeDataset, EpisodeDataset]:
    """Training episodes and episodes never trained on."""
    image_key = config.image_key
    if image_key is None and config.init is not None:
        image_key = checkpoint.load_config(config.init).image_key
    train = EpisodeDataset(config.dataset, config.datasets_root, image_key)
    if not config.validation_dataset:
        return held_out_of(train, config.output / HELD_OUT)
    held_out = EpisodeDataset(config.validation_dataset, config.datasets_root, image_key)
    check_same_kind("validation_dataset", held_out, "dataset", train)
    return train, held_out


def train_dynamics(
    config: TrainConfig,
    model: WorldModel,
    episodes: LatentEpisodes,
    held_out: EpisodeDataset,
    accelerator: Accelerator,
    learned: dict[str, Any],
) -> WorldModel:
    """Train denoiser and heads, with checkpoints; returns the averaged model.

    Args:
        learned: for the checkpoints' metadata: the env, and the numbers of episodes and frames that
            each dataset has of it.
    """
    training = config.dynamics
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    trainer = Trainer(
        model,
        dynamics_loss(near(accelerator.device, episodes), training, model, accelerator),
        training.optimizer,
        accelerator,
        config.output / "dynamics",
    )
    if resumed := trainer.resume():
        tqdm.write(f"world model: resumed at step {trainer.step}")
    tqdm.write(
        f"{count_parameters(model.denoiser) / 1e6:.1f} M parameters, tokenizer "
        f"{count_parameters(model.tokenizer) / 1e6:.1f} M"
    )
    average = trainer.average.module
    assert isinstance(average, WorldModel)
    average.compute_dtype = dtype
    if training.own_dreams.share:
        model.use_cuda_graphs(if_possible=True)
    if config.compile:
        model.compile_network()
    before = {} if config.init is None else checkpoint.load_metadata(config.init)
    sources = before.get("learned_from", {}) | learned["learned_from"]
    contexts = contexts_to_keep(held_out)
    writer = open_writer(config, "world_model", trainer)
    started, first, path = time.monotonic(), trainer.step, config.output / "checkpoint"

    def show(step: int) -> None:
        assert writer is not None
        average.eval()
        metrics = validate(average, held_out, config.validation, writer, step)
        tqdm.write(f"step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in metrics.items()))

    def keep(step: int) -> None:
        metadata = {
            "step": step,
            "frames_seen": before.get("frames_seen", 0) + training.frames_until(step),
            "continued_from": config.init,
            "env": learned["env"],
            "learned_from": sources,
            "odometry_steps": config.odometry_training.optimizer.steps if config.odometry else 0,
            "minutes_this_run": (time.monotonic() - started) / 60,
            "steps_this_run": step - first,
            "device": str(accelerator.device),
            "config": as_json(config),
            **provenance(),
        }
        checkpoint.save(average, path, contexts=contexts, metadata=metadata)

    steps = training.optimizer.steps
    for step in run_with_progress(
        trainer, "world model", config.save_every, training.frames_per_step, writer
    ):
        if writer is None or step == steps:
            continue
        if config.save_every and step % config.save_every == 0:
            keep(step)
        if config.validation.every and step % config.validation.every == 0:
            show(step)
    # It is kept also where training had ended before, or where odometry alone was trained.
    noted = {"step": trainer.step}
    if config.odometry and steps == 0:
        noted["odometry_steps"] = config.odometry_training.optimizer.steps
    unchanged = resumed or steps == 0
    if writer is not None and not (unchanged and is_kept(path, noted)):
        keep(trainer.step)
        show(trainer.step)
    if writer:
        writer.close()
    average.eval().requires_grad_(False)
    return average


def contexts_to_keep(held_out: EpisodeDataset) -> checkpoint.Contexts:
    """Stretches to keep with a checkpoint, as long as several episodes allow."""
    lengths = np.sort(held_out.frames_going_on())[::-1]
    length = min(CONTEXT_LENGTH, int(lengths[min(NUM_CONTEXTS, -(-len(lengths) // 2)) - 1]))
    stretches = draw_stretches(held_out, NUM_CONTEXTS, max(length, 1), seed=0, going_on=True)
    return checkpoint.Contexts(*stretches[:2])


def near(device: torch.device, episodes: LatentEpisodes) -> LatentEpisodes:
    """Episodes on a GPU where they take no more than a quarter of what is free there."""
    if device.type != "cuda":
        return episodes
    return episodes.to(device) if 4 * episodes.nbytes < torch.cuda.mem_get_info()[0] else episodes


def keep_with_places(config: TrainConfig, model: WorldModel) -> None:
    """Put the model with its memory of places in the place of the one without."""
    path = config.output / "checkpoint"
    contexts, metadata = checkpoint.load_contexts(path), checkpoint.load_metadata(path)
    places, occupancy = config.places_training.optimizer, config.occupancy_training.optimizer
    for stage, optimizer in (("places", places), ("occupancy", occupancy)):
        if (config.output / stage / "latest").is_dir():
            metadata[f"{stage}_steps"] = optimizer.steps
    checkpoint.save(model, path, contexts=contexts, metadata=metadata)


def is_kept(path: Path, noted: dict[str, Any]) -> bool:
    """Whether a checkpoint is there whose metadata say this."""
    try:
        return noted.items() <= checkpoint.load_metadata(path).items()
    except checkpoint.CheckpointError:
        return False


if __name__ == "__main__":
    run_script(main, presets(), __doc__, stopped=CONTINUES)
