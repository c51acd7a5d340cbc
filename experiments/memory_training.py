"""What the memory benchmark trains: the task, the shared tokenizer, and one model."""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

import worldsim.checkpoint as checkpoint
from experiments.memory_backbones import (
    ALL,
    diffusion_for,
    matched_config,
    pose_for,
    training_for,
)
from experiments.memory_corridor import Corridor, Progress
from experiments.memory_mazes import MazeTask, MemoryMazes
from experiments.memory_presets import BenchmarkConfig, Judging, TokenizerSource
from experiments.model_to_train import take_tokenizer
from experiments.report import read_json, write_json
from experiments.settings import Settings, same_settings, settings_as_json
from experiments.train_config import TrainConfig
from experiments.train_world_model import make_accelerator, near
from worldsim.diffusion import sample_signal_levels
from worldsim.latents import LatentEpisodes
from worldsim.pose import PoseConfig
from worldsim.tokenizer import Tokenizer, TokenizerConfig
from worldsim.training import LossModule, Trainer, dynamics_loss, step_rng, tokenizer_loss
from worldsim.training_config import DynamicsTraining
from worldsim.world_model import WorldModel
from worldsim.world_model_config import WorldModelConfig


class Bar(Protocol):
    """Where progress is shown; tqdm's bars are such."""

    def update(self, n: int = 1) -> Any:
        """Count steps."""

    def set_description(self, text: str) -> None:
        """Say what is being done."""

    def set_postfix(self, *, refresh: bool, **values: str) -> None:
        """Show numbers."""


class Task(Protocol):
    """What the benchmark needs to know of a world."""

    num_actions: int
    frame_shape: tuple[int, int, int]
    pose: PoseConfig | None
    """Where set, its models are told poses instead of actions."""

    def prepare(self) -> None:
        """Record now what is else recorded when it is first needed."""

    def training_frames(self) -> Tensor:
        """Frames to train the tokenizer on, (n, h, w, c) uint8."""

    def training_latents(self, tokenizer: Tokenizer) -> LatentEpisodes:
        """Training episodes, encoded."""

    def validation_latents(self, tokenizer: Tokenizer) -> LatentEpisodes:
        """Episodes of neither training nor test, encoded."""

    def evaluate(
        self, model: WorldModel, progress: Progress
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """JSON values (`recall`, `hit`, `chance`, `psnr`, `ssim`, `columns`), and frames."""

    def development_psnr(self, model: WorldModel) -> float:
        """PSNR of dreams on walks of neither training nor test, by which to choose settings."""

    def reference(
        self, device: torch.device, progress: Progress
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """The same of copying seen frames, where that says something."""


def check_settings(file: Path, settings: Settings) -> None:
    """Keep the settings of what is kept beside a file, and refuse to go on with others.

    Raises:
        ValueError: they have changed.
    """
    now = settings_as_json(settings)
    kept = read_json(file)
    if kept is None:
        write_json(file, now)
    elif not same_settings(settings, kept):
        changed = ", ".join(name for name in now if kept.get(name) != now[name])
        raise ValueError(
            f"{file.parent} holds work of other settings ({changed}): choose another --work, or "
            "remove it"
        )


class Benchmark:
    """The state of one process: the data and the tokenizer, made when first needed, and the bar.

    Args:
        config: what is compared.
        bar: where progress is shown; by default nowhere.
        prepared: another process has called `prepare`.

    Raises:
        ValueError: an unknown model.
    """

    def __init__(
        self, config: BenchmarkConfig, bar: Bar | None = None, prepared: bool = False
    ) -> None:
        self.config = config
        for name in config.backbones:
            if name not in ALL:
                raise ValueError(f"unknown model {name!r}: choose from {', '.join(ALL)}")
        self.accelerator: Accelerator = make_accelerator(
            TrainConfig(device=config.device, precision=config.precision)
        )
        mixed = self.accelerator.mixed_precision
        self.dtype = torch.bfloat16 if mixed == "bf16" else torch.float32
        self.task: Task
        if config.task == "corridor":
            self.task = Corridor(config.corridor)
        else:
            self.task = MemoryMazes(config.maze, config.work / "datasets", prepared, config.pose)
        self.bar: Bar = tqdm(unit="step", disable=True) if bar is None else bar

    def prepare(self) -> None:
        """Record, train and encode now what is else made when it is first needed."""
        self.task.prepare()
        _ = self.episodes, self.validation_episodes

    @functools.cached_property
    def episodes(self) -> LatentEpisodes:
        """What models are trained on."""
        return near(self.accelerator.device, self.task.training_latents(self.tokenizer))

    @functools.cached_property
    def validation_episodes(self) -> LatentEpisodes:
        """What learning rates are chosen by."""
        return self.task.validation_latents(self.tokenizer)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that all models share: another model's, the one of the work, a new one.

        Raises:
            ValueError: another model's is for frames of another shape.
        """
        config, device = self.config, self.accelerator.device
        if config.tokenizer_of is not None:
            tokenizer = take_tokenizer(config.tokenizer_of, self.task.frame_shape)
        else:
            tokenizer = self._train_tokenizer()
        return tokenizer.to(device).eval().requires_grad_(False)

    @functools.cached_property
    def tokenizer_config(self) -> TokenizerConfig:
        """Sizes of the tokenizer, for which it need not be trained."""
        if self.config.tokenizer_of is not None:
            return self.tokenizer.config
        return dataclasses.replace(self.config.tokenizer, frame_shape=self.task.frame_shape)

    def _train_tokenizer(self) -> Tokenizer:
        config, training = self.config, self.config.tokenizer_training
        torch.manual_seed(training.optimizer.seed)
        tokenizer = Tokenizer(self.tokenizer_config)
        device = self.accelerator.device
        file = config.work / "tokenizer.safetensors"
        check_settings(
            config.work / "tokenizer.json",
            {**self.learning_settings, "tokenizer": self.tokenizer_config, "training": training},
        )
        if not file.is_file():
            frames = self.task.training_frames()
            trainer = Trainer(
                LossModule(tokenizer),
                tokenizer_loss(frames, training, tokenizer, self.accelerator),
                training.optimizer,
                self.accelerator,
                config.work / "tokenizer",
            )
            trainer.resume()
            steps = trainer.run(config.save_every)
            for _ in tqdm(steps, "tokenizer", training.optimizer.steps, initial=trainer.step):
                pass
            average = trainer.average.module
            assert isinstance(average, LossModule)
            assert isinstance(average.learner, Tokenizer)
            tokenizer = average.learner
            rng, _ = step_rng(training.optimizer.seed, training.optimizer.steps)
            chosen = torch.from_numpy(rng.integers(len(frames), size=512))
            tokenizer.calibrate(frames[chosen].to(device))
            save_file(tokenizer.state_dict(), config.work / "partial.safetensors")
            (config.work / "partial.safetensors").rename(file)
            self.accelerator.free_memory()
        tokenizer.load_state_dict(load_file(file))
        return tokenizer

    def describe(self, title: str, part: str) -> None:
        """Say on the bar what is being done."""
        self.bar.set_description(f"{title}: {part}")

    def model_config(self, name: str) -> WorldModelConfig:
        tokenizer = self.tokenizer_config
        return WorldModelConfig(
            num_actions=self.task.num_actions,
            tokenizer=tokenizer,
            backbone=matched_config(name, self.config.sizes, tokenizer.grid),
            diffusion=diffusion_for(name, self.config.diffusion),
            pose=pose_for(name, self.task.pose),
            num_denoising_steps=self.config.num_denoising_steps,
            dream_signal=self.config.dream_signal,
        )

    def make_model(self, name: str, seed: int) -> WorldModel:
        """A new model with the shared tokenizer."""
        model = self.untrained_model(name, seed)
        model.tokenizer.load_state_dict(self.tokenizer.state_dict())
        model.tokenizer.eval().requires_grad_(False)
        return model

    def untrained_model(self, name: str, seed: int = 0) -> WorldModel:
        """A new model whose tokenizer is new too: enough to see what it costs."""
        torch.manual_seed(seed)
        return WorldModel(self.model_config(name)).to(self.accelerator.device)

    def load(self, path: Path) -> WorldModel:
        """A saved model as its users load it."""
        return checkpoint.load(path, device=self.accelerator.device, dtype=self.dtype)

    def train(
        self, name: str, training: DynamicsTraining, directory: Path
    ) -> tuple[WorldModel, float]:
        """Train from the last checkpoint on; the averaged model and this call's frames/s.

        Raises:
            ValueError: the directory holds training with other settings.
        """
        check_settings(directory / "settings.json", self.settings_of_training(name, training))
        model = self.make_model(name, training.optimizer.seed)
        trainer = Trainer(
            model,
            dynamics_loss(self.episodes, training, model, self.accelerator),
            training.optimizer,
            self.accelerator,
            directory,
        )
        trainer.resume()
        first, started = trainer.step, time.monotonic()
        self.bar.update(first)
        for values in trainer.run(self.config.save_every):
            self.bar.update()
            self.bar.set_postfix(loss=f"{values['diffusion']:.3f}", refresh=False)
        seconds = max(time.monotonic() - started, 1e-9)
        average = trainer.average.module
        assert isinstance(average, WorldModel)
        average.eval().requires_grad_(False)
        self.accelerator.free_memory()
        frames = training.frames_until(trainer.step) - training.frames_until(first)
        return average, frames / seconds

    @torch.no_grad()
    def validation_loss(
        self,
        model: WorldModel,
        num_batches: int = 4,
        batch_size: int = 8,
        recall: bool = False,
    ) -> float:
        """Diffusion loss on held-out episodes: the same segments and noise for every model.

        Args:
            model: told poses or actions, as the task says.
            num_batches, batch_size: segments.
            recall: on segments as those of the first stage of training: where it puts single frames
                in any order, only memory tells anything of them, and the loss is of recall.
        """
        episodes, common = self.validation_episodes, self.training_of_all
        length, _ = common.curriculum[0 if recall else -1]
        length = min(length, int(episodes.lengths.max()))
        stretch = common.longest_stretches[0] if recall and common.longest_stretches else 0
        losses = []
        for i in range(num_batches):
            rng, generator = step_rng(2**31, i)
            batch = episodes.sample(batch_size, length, rng, longest_stretch=stretch)
            levels = sample_signal_levels(batch_size, length, self.config.diffusion, generator)
            noise = torch.randn(batch.latents.shape, generator=generator)
            tensors = (x.to(model.device) for x in (*batch, noise, *levels))
            with self.accelerator.autocast():
                losses.append(float(model(*tensors)["diffusion"]))
        return float(np.mean(losses))

    @property
    def training_of_all(self) -> DynamicsTraining:
        """What is common to all; models told actions cannot learn from frames in any order."""
        if self.task.pose is not None:
            return self.config.dynamics
        return dataclasses.replace(self.config.dynamics, longest_stretches=())

    def training(self, name: str, seed: int, rate: float, steps: int | None) -> DynamicsTraining:
        common = self.training_of_all
        if steps is not None:
            optimizer = dataclasses.replace(common.optimizer, steps=steps)
            common = dataclasses.replace(common, optimizer=optimizer)
        return training_for(self.model_config(name).backbone, common, seed, rate)

    @property
    def task_settings(self) -> Settings:
        """What decides the result of what is not trained."""
        return {
            "task": self.config.corridor if self.config.task == "corridor" else self.config.maze
        }

    @property
    def learning_settings(self) -> Settings:
        """The same without which mazes it is judged on, which nothing is learned from."""
        if self.config.task == "corridor":
            return self.task_settings
        return {"task": dataclasses.replace(self.config.maze, test_seed=MazeTask.test_seed)}

    def settings(self, name: str, training: DynamicsTraining) -> Settings:
        """What decides a run's result; a kept result with other settings is not mixed in."""
        judging = Judging(dream_signals=self.config.dream_signals)
        of_training = self.settings_of_training(name, training)
        return {**of_training, **self.task_settings, "judging": judging}

    def settings_of_training(self, name: str, training: DynamicsTraining) -> Settings:
        """What decides what a run learns."""
        return {
            **self.learning_settings,
            "model": self.model_config(name),
            "training": training,
            "tokenizer_training": self.config.tokenizer_training,
            "tokenizer": TokenizerSource(model=self.config.tokenizer_of),
        }
