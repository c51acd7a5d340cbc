"""The stages of world-model training around the dynamics: tokenizer, odometry, places; progress."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from experiments.train_config import TrainConfig
from worldsim.cache import add_tensors
from worldsim.episodes import EpisodeDataset
from worldsim.latents import LatentEpisodes, encode_dataset
from worldsim.occupancy import Occupancy
from worldsim.occupancy_config import OccupancyConfig
from worldsim.occupancy_training import long_enough, occupancy_loss
from worldsim.odometry_training import odometry_loss
from worldsim.places import Places, PlacesConfig
from worldsim.places_training import (
    PlacesLoss,
    ReadEpisodes,
    places_loss,
    read_once,
    reading,
)
from worldsim.tokenizer import Tokenizer
from worldsim.training import (
    LossFunction,
    LossModule,
    Trainer,
    check_divides,
    check_dynamics,
    spaced_frames,
    step_rng,
    tokenizer_loss,
)
from worldsim.training_config import OptimizerConfig
from worldsim.world_model import WorldModel
from worldsim.world_model_config import WorldModelConfig


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


def run_stage(
    config: TrainConfig,
    name: str,
    module: nn.Module,
    loss: LossFunction,
    optimizer: OptimizerConfig,
    accelerator: Accelerator,
    frames_per_step: int,
) -> None:
    """Train a module in place, from its last checkpoint on; it ends with the averaged weights."""
    trainer = Trainer(module, loss, optimizer, accelerator, config.output / name)
    if trainer.resume():
        tqdm.write(f"{name}: resumed at step {trainer.step}")
    writer = open_writer(config, name, trainer)
    for _ in run_with_progress(trainer, name, config.save_every, frames_per_step, writer):
        pass
    if writer:
        writer.close()
    module.load_state_dict(trainer.average.module.state_dict())


def train_odometry(
    config: TrainConfig,
    model: WorldModel,
    episodes: LatentEpisodes,
    accelerator: Accelerator,
    *,
    begun: bool,
) -> None:
    """Train the model's odometry in place; ends with the averaged weights.

    Args:
        begun: the dynamics have, so that it stays what they learn from. Before, what has learned
            from the latents of another tokenizer begins anew.
    """
    odometry, training = model.odometry, config.odometry_training
    assert odometry is not None
    if accelerator.is_main_process and not begun:
        digest = hashlib.sha256()  # without its calibration, which new episodes change a little
        add_tensors(digest, model.tokenizer.parameters())
        forget_other_models(config.output / "odometry", digest.hexdigest())
    accelerator.wait_for_everyone()
    run_stage(
        config,
        "odometry",
        LossModule(odometry),
        odometry_loss(episodes, training, accelerator),
        training.optimizer,
        accelerator,
        training.batch_size * training.length,
    )


def train_tokenizer(
    config: TrainConfig,
    tokenizer: Tokenizer,
    dataset: EpisodeDataset,
    accelerator: Accelerator,
) -> None:
    """Train the tokenizer in place; ends with the averaged weights and calibrated latents."""
    training = config.tokenizer_training
    frames = spaced_frames(dataset, training.max_frames)
    run_stage(
        config,
        "tokenizer",
        LossModule(tokenizer),
        tokenizer_loss(frames, training, tokenizer, accelerator),
        training.optimizer,
        accelerator,
        training.batch_size,
    )
    rng, _ = step_rng(training.optimizer.seed, training.optimizer.steps)
    sample = frames[torch.from_numpy(rng.integers(len(frames), size=512))]
    tokenizer.calibrate(sample.to(accelerator.device))
    tokenizer.eval().requires_grad_(False)


def encode(
    config: TrainConfig, model: WorldModel, dataset: EpisodeDataset, accelerator: Accelerator
) -> LatentEpisodes:
    """Encode every frame, or take what an earlier start of this run has encoded."""
    bf16 = accelerator.mixed_precision == "bf16"
    with tqdm(total=dataset.num_frames, desc="encode", unit="frame", mininterval=2) as bar:
        return encode_dataset(
            model.tokenizer,
            dataset,
            config.output / "latents.safetensors",
            device=accelerator.device,
            dtype=torch.bfloat16 if bf16 else torch.float32,
            gamma=model.config.gamma,
            poses=model.config.pose is not None,
            keep=accelerator.is_main_process,
            progress=lambda done, _: bar.update(done - bar.n),
        )


def places_config(config: TrainConfig, model: WorldModelConfig) -> PlacesConfig:
    """The memory of places, and the map, that a training ends with."""
    places = model.places or PlacesConfig()
    if config.occupancy and places.occupancy is None:
        assert model.odometry is not None
        cell = model.odometry.grid or OccupancyConfig().cell
        places = dataclasses.replace(places, occupancy=OccupancyConfig(cell=cell))
    return places


def check_stages(config: TrainConfig, model: WorldModel, accelerator: Accelerator) -> None:
    """Refuse now what a later stage could not train with, before hours go into those before it.

    Raises:
        ValueError: a batch does not divide by the number of processes, or stretches do not fit
            curriculum or model.
    """
    places, occupancy = learned_where_to_go(config, model.config)
    trained = {
        "tokenizer_training": config.init is None and config.tokenizer_of is None,
        "odometry_training": config.odometry,
        "places_training": places,
        "occupancy_training": occupancy,
    }
    check_dynamics(config.dynamics, model.config, accelerator)
    for name in [name for name, is_trained in trained.items() if is_trained]:
        try:
            check_divides(accelerator, getattr(config, name).batch_size)
        except ValueError as error:
            option = f"--{name.replace('_', '-')}.batch-size"
            raise ValueError(f"{error}: choose another {option}") from error


def learned_where_to_go(config: TrainConfig, model: WorldModelConfig) -> tuple[bool, bool]:
    """Whether places, and whether a map, are learned after the dynamics.

    Both are where the config asks for them, and where the model has them and is trained further, so
    that they see its new read-outs.
    """
    asked = config.places or config.occupancy
    if not asked and model.places is None:
        return False, False
    changed = config.dynamics.optimizer.steps > 0 or config.odometry
    has_map = places_config(config, model).occupancy is not None
    return (
        config.places or changed or model.places is None,
        has_map and (config.occupancy or changed),
    )


def train_where_to_go(
    config: TrainConfig, model: WorldModel, episodes: LatentEpisodes, accelerator: Accelerator
) -> WorldModel:
    """The trained model with a memory of places and a map; what it had learned stays as it is."""
    learns_places, learns_map = learned_where_to_go(config, model.config)
    model = model.reconfigured(places=places_config(config, model.config)).eval()
    assert model.places is not None
    with tqdm(total=episodes.num_frames, desc="read episodes", unit="frame", mininterval=2) as bar:
        cache, keep = config.output / "read_outs.safetensors", accelerator.is_main_process
        read = read_once(model, episodes, cache, lambda done, _: bar.update(done - bar.n), keep)
    if accelerator.is_main_process:
        fingerprint = reading(model, episodes)
        for stage in ("places", "occupancy"):
            forget_other_models(config.output / stage, fingerprint)
    accelerator.wait_for_everyone()
    if learns_places:
        train_places(config, model.places, episodes, read, accelerator)
    if learns_map:
        assert model.places.occupancy is not None
        train_occupancy(config, model.places.occupancy, episodes, read, accelerator)
    return model.eval().requires_grad_(False)


def forget_other_models(directory: Path, fingerprint: str) -> None:
    """Drop a stage's training that learned from what the model read before it was changed."""
    note = directory / "learned_from.txt"
    if directory.is_dir() and (not note.is_file() or note.read_text() != fingerprint):
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    note.write_text(fingerprint)


def train_places(
    config: TrainConfig,
    places: Places,
    episodes: LatentEpisodes,
    read: ReadEpisodes,
    accelerator: Accelerator,
) -> None:
    """Train the memory of places in place; ends with the averaged weights."""
    training = config.places_training
    places.requires_grad_(True)
    if places.occupancy is not None:
        places.occupancy.requires_grad_(False)
    run_stage(
        config,
        "places",
        PlacesLoss(places),
        places_loss(episodes, read, training, accelerator),
        training.optimizer,
        accelerator,
        training.batch_size * min(training.length, int(episodes.lengths.max())),
    )


def train_occupancy(
    config: TrainConfig,
    occupancy: Occupancy,
    episodes: LatentEpisodes,
    read: ReadEpisodes,
    accelerator: Accelerator,
) -> None:
    """Train the map in place; ends with the averaged weights."""
    training = config.occupancy_training
    enough = long_enough(episodes.lengths)
    learns = accelerator.is_main_process and training.optimizer.steps > 0
    if learns and len(enough) < len(episodes.lengths):
        tqdm.write(
            f"the map is learned from {len(enough)} of {len(episodes.lengths)} episodes, those "
            f"of at least half of the longest's {episodes.lengths.max()} frames"
        )
    run_stage(
        config,
        "occupancy",
        LossModule(occupancy.requires_grad_(True)),
        occupancy_loss(episodes, read, occupancy, training, accelerator),
        training.optimizer,
        accelerator,
        training.batch_size * (int(episodes.lengths.max()) // training.stride),
    )
