"""Train a world model on recorded episodes.

    python experiments/train_world_model.py cpu --dataset memory-maze-9x9/explorer-v0

First the tokenizer, then every frame is encoded once, then the world model on the latents. A run
that was stopped or killed goes on from its last checkpoint when started again with the same output.
Several processes or GPUs: `accelerate launch experiments/train_world_model.py ...`. The trained
model is in OUTPUT/checkpoint, ready for `worldsim.load`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import worldsim.checkpoint as checkpoint
from experiments.command_line import CONTINUES, run_script
from experiments.platform_settings import keep_memory
from experiments.report import provenance
from experiments.run_directory import as_json, check_config
from experiments.train_config import TrainConfig, presets
from experiments.validation import validate
from worldsim.backbone import count_parameters
from worldsim.episodes import EpisodeDataset
from worldsim.latents import LatentEpisodes, encode_dataset
from worldsim.odometry import Odometry, OdometryConfig
from worldsim.odometry_training import OdometryLoss, odometry_loss
from worldsim.open_loop import draw_stretches
from worldsim.tokenizer import Tokenizer
from worldsim.training import (
    TokenizerLoss,
    Trainer,
    dynamics_loss,
    spaced_frames,
    step_rng,
    tokenizer_loss,
)
from worldsim.world_model import WorldModel
from worldsim.world_model_config import WorldModelConfig

FREE_TO_CHANGE = {
    *("output", "save_every", "validation", "validation_dataset", "compile", "device", "precision"),
    *("tokenizer_training", "odometry_training", "dynamics"),
}
"""Settings that may differ when a run goes on: of a rate that was too high, say."""


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
    check_config(config.output, config, FREE_TO_CHANGE, write=accelerator.is_main_process)
    model.to(accelerator.device)
    if config.init is None and config.tokenizer_of is None:
        train_tokenizer(config, model.tokenizer, train, accelerator)
    started = time.monotonic()
    model = train_dynamics(config, model, train, held_out, accelerator)
    tell(f"world model trained in {(time.monotonic() - started) / 60:.1f} min of this run")
    path = config.output / "checkpoint"
    tell(f"checkpoint: {path}\nnext: python experiments/dream_train.py --world-model {path}")
    return path


def make_accelerator(config: TrainConfig) -> Accelerator:
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if checkpoint.fast_dtype(device) == torch.bfloat16 else "no"
    return Accelerator(mixed_precision=precision, cpu=device == "cpu")


def open_datasets(config: TrainConfig) -> tuple[EpisodeDataset, EpisodeDataset]:
    """Training episodes and episodes never trained on."""
    train = EpisodeDataset(config.dataset, config.datasets_root, config.image_key)
    if not config.validation_dataset:
        return train.split(max(len(train) // 10, 1))
    held_out = EpisodeDataset(config.validation_dataset, config.datasets_root, config.image_key)
    if (held_out.frame_shape, held_out.num_actions) != (train.frame_shape, train.num_actions):
        raise ValueError(
            f"validation episodes have frames {held_out.frame_shape} and {held_out.num_actions} "
            f"actions, training episodes {train.frame_shape} and {train.num_actions}"
        )
    return train, held_out


def build_model(config: TrainConfig, dataset: EpisodeDataset) -> WorldModel:
    """A new model for the dataset's frames and actions, or `config.init` continued."""
    dreaming: dict[str, Any] = {
        name: getattr(config, name)
        for name in ("num_denoising_steps", "dream_signal")
        if getattr(config, name) is not None
    }
    if config.init is not None:
        if config.tokenizer_of is not None:
            raise ValueError("init takes over a whole world model: leave tokenizer_of out")
        model = checkpoint.load(config.init, dtype=torch.float32)
        model = model.reconfigured(**dreaming).requires_grad_(True)
        expected = (model.config.frame_shape, model.config.num_actions)
        if (dataset.frame_shape, dataset.num_actions) != expected:
            raise ValueError(
                f"{config.init} was made for frames {expected[0]} and {expected[1]} actions; the "
                f"dataset has {dataset.frame_shape} and {dataset.num_actions}"
            )
        if config.odometry and model.odometry is None:
            raise ValueError(
                f"{config.init} has no odometry, and to continue it keeps what it is: leave "
                "--odometry out, or start anew with its tokenizer (--tokenizer-of)"
            )
        return model
    taken = None
    tokenizer = dataclasses.replace(config.tokenizer, frame_shape=dataset.frame_shape)
    if config.tokenizer_of is not None:
        taken = checkpoint.load(config.tokenizer_of, dtype=torch.float32).tokenizer
        if taken.config.frame_shape != dataset.frame_shape:
            raise ValueError(
                f"the tokenizer of {config.tokenizer_of} is for frames {taken.config.frame_shape}; "
                f"the dataset has {dataset.frame_shape}"
            )
        tokenizer = taken.config
    model = WorldModel(
        WorldModelConfig(
            num_actions=dataset.num_actions,
            tokenizer=tokenizer,
            backbone=config.backbone,
            latent_patch=config.latent_patch,
            diffusion=config.diffusion,
            **dreaming,
            pose=config.pose if config.odometry else None,
            odometry=OdometryConfig() if config.odometry else None,
            reward_limit=config.reward_limit,
        )
    )
    if taken is not None:
        model.tokenizer.load_state_dict(taken.state_dict())
    return model


def open_writer(config: TrainConfig, stage: str, trainer: Trainer) -> SummaryWriter | None:
    """TensorBoard logs of a stage, in the main process alone.

    What a run that was killed had logged after its last checkpoint is dropped.
    """
    if not trainer.accelerator.is_main_process:
        return None
    path = config.output / "tensorboard" / stage
    return SummaryWriter(str(path), purge_step=trainer.step + 1)


def run_with_progress(
    trainer: Trainer,
    name: str,
    save_every: int,
    frames_per_step: int,
    writer: SummaryWriter | None,
) -> Iterator[int]:
    """Run a trainer under a progress bar and write its losses; yields the step number."""
    with tqdm(
        total=trainer.config.steps,
        initial=trainer.step,
        desc=name,
        unit="step",
        disable=writer is None,
        mininterval=2,
    ) as bar:
        last = time.monotonic()
        for values in trainer.run(save_every):
            bar.update()
            now = time.monotonic()
            values["frames_per_second"] = frames_per_step / (now - last)
            last = now
            if writer and (trainer.step % 10 == 0 or trainer.step == trainer.config.steps):
                for key, value in values.items():
                    writer.add_scalar(f"{name}/{key}", value, trainer.step)
                shown = {k: f"{v:.3g}" for k, v in values.items() if k not in ("rate", "grad_norm")}
                bar.set_postfix(shown, refresh=False)
            yield trainer.step


def run_stage(config: TrainConfig, trainer: Trainer, name: str, frames_per_step: int) -> None:
    """Run a trainer from its last checkpoint to its end, with progress and logs."""
    if trainer.resume():
        tqdm.write(f"{name}: resumed at step {trainer.step}")
    writer = open_writer(config, name, trainer)
    for _ in run_with_progress(trainer, name, config.save_every, frames_per_step, writer):
        pass
    if writer:
        writer.close()


def train_odometry(
    config: TrainConfig, odometry: Odometry, episodes: LatentEpisodes, accelerator: Accelerator
) -> None:
    """Train the odometry in place; ends with the averaged weights."""
    training = config.odometry_training
    trainer = Trainer(
        OdometryLoss(odometry),
        odometry_loss(episodes, training, accelerator),
        training.optimizer,
        accelerator,
        config.output / "odometry",
    )
    run_stage(config, trainer, "odometry", training.batch_size * training.length)
    average = trainer.average.module
    assert isinstance(average, OdometryLoss)
    odometry.load_state_dict(average.odometry.state_dict())


def train_tokenizer(
    config: TrainConfig,
    tokenizer: Tokenizer,
    dataset: EpisodeDataset,
    accelerator: Accelerator,
) -> None:
    """Train the tokenizer in place; ends with the averaged weights and calibrated latents."""
    training = config.tokenizer_training
    frames = spaced_frames(dataset, training.max_frames)
    trainer = Trainer(
        TokenizerLoss(tokenizer),
        tokenizer_loss(frames, training, tokenizer, accelerator),
        training.optimizer,
        accelerator,
        config.output / "tokenizer",
    )
    run_stage(config, trainer, "tokenizer", training.batch_size)
    average = trainer.average.module
    assert isinstance(average, TokenizerLoss)
    tokenizer.load_state_dict(average.tokenizer.state_dict())
    rng, _ = step_rng(training.optimizer.seed, training.optimizer.steps)
    sample = frames[torch.from_numpy(rng.integers(len(frames), size=512))]
    tokenizer.calibrate(sample.to(accelerator.device))
    tokenizer.eval().requires_grad_(False)


def train_dynamics(
    config: TrainConfig,
    model: WorldModel,
    dataset: EpisodeDataset,
    held_out: EpisodeDataset,
    accelerator: Accelerator,
) -> WorldModel:
    """Train everything but the tokenizer, the odometry first; returns the averaged model."""
    training = config.dynamics
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    model.tokenizer.eval().requires_grad_(False)
    with tqdm(total=dataset.num_frames, desc="encode", unit="frame", mininterval=2) as bar:
        episodes = encode_dataset(
            model.tokenizer,
            dataset,
            config.output / "latents.safetensors" if accelerator.is_main_process else None,
            device=accelerator.device,
            dtype=dtype,
            gamma=model.config.gamma,
            poses=model.config.pose is not None,
            progress=lambda done, _: bar.update(done - bar.n),
        )
    if model.odometry is not None:
        if config.odometry:
            train_odometry(config, model.odometry, episodes, accelerator)
        model.odometry.requires_grad_(False)
    trainer = Trainer(
        model,
        dynamics_loss(episodes, training, model, accelerator),
        training.optimizer,
        accelerator,
        config.output / "dynamics",
    )
    if trainer.resume():
        tqdm.write(f"world model: resumed at step {trainer.step}")
    tqdm.write(
        f"{count_parameters(model.denoiser) / 1e6:.1f} M parameters, tokenizer "
        f"{count_parameters(model.tokenizer) / 1e6:.1f} M"
    )
    average = trainer.average.module
    assert isinstance(average, WorldModel)
    average.compute_dtype = dtype
    if config.compile:
        model.compile_network()
    seen_before = 0
    if config.init is not None:
        seen_before = checkpoint.load_metadata(config.init).get("frames_seen", 0)
    length = min(CONTEXT_LENGTH, int(held_out.lengths.max()))
    contexts = checkpoint.Contexts(*draw_stretches(held_out, NUM_CONTEXTS, length, seed=0)[:2])
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
            "frames_seen": seen_before + step * training.frames_per_step,
            "continued_from": config.init,
            "training_frames": dataset.num_frames,
            "training_episodes": len(dataset),
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
        if config.validation.every and step % config.validation.every == 0:
            show(step)
        if config.save_every and step % config.save_every == 0:
            keep(step)
    # Also where training had ended before, but was killed before it was kept.
    if writer is not None and not is_kept(path, steps):
        show(steps)
        keep(steps)
    if writer:
        writer.close()
    average.eval().requires_grad_(False)
    return average


def is_kept(path: Path, step: int) -> bool:
    """Whether a checkpoint of this step is there."""
    try:
        return checkpoint.load_metadata(path).get("step") == step
    except checkpoint.CheckpointError:
        return False


if __name__ == "__main__":
    run_script(main, presets(), __doc__, stopped=CONTINUES)
