"""Who remembers what, for how long, at what cost: every backbone on equal terms.

    python experiments/benchmark_memory.py corridor
    python experiments/benchmark_memory.py cpu --backbones block_ssm causal --seeds 0 1

Trains each model with each seed on the same data for the same steps and frames, with the same
number of parameters within 5 %, and evaluates it. Every finished run is a JSON file in OUTPUT and
is kept; a run that was killed goes on from its last checkpoint when the command is started again.
Further seeds and models add up over calls. At the end costs are measured once, and the table and
the plots are made from all that OUTPUT holds. `--sweep 0.5 1 2` first chooses the learning rate of
each family by short runs, which are kept too.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

import worldsim.checkpoint as checkpoint
from experiments.command_line import CONTINUES, run_script
from experiments.memory_backbones import (
    ALL,
    diffusion_for,
    matched_config,
    training_for,
)
from experiments.memory_corridor import Corridor, Progress
from experiments.memory_costs import measure_dreaming, measure_training
from experiments.memory_mazes import MemoryMazes
from experiments.memory_presets import BenchmarkConfig, presets
from experiments.memory_report import REFERENCE, REFERENCE_LABEL, read_json, write_report
from experiments.platform_settings import keep_memory
from experiments.report import Settings, is_done, provenance, write_json
from experiments.train_config import TrainConfig
from experiments.train_world_model import make_accelerator
from worldsim.backbone import count_parameters
from worldsim.diffusion import sample_signal_levels
from worldsim.latents import LatentEpisodes
from worldsim.pose import PoseConfig
from worldsim.tokenizer import Tokenizer, TokenizerConfig
from worldsim.training import (
    DynamicsTraining,
    TokenizerLoss,
    Trainer,
    dynamics_loss,
    step_rng,
    tokenizer_loss,
)
from worldsim.world_model import WorldModel
from worldsim.world_model_config import WorldModelConfig


class Task(Protocol):
    """What the benchmark needs to know of a world."""

    num_actions: int
    pose: PoseConfig | None
    """Where set, its models are told poses instead of actions."""

    def tokenizer_config(self, config: TokenizerConfig) -> TokenizerConfig:
        """The config with this world's frame shape."""

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

    def reference(
        self, device: torch.device, progress: Progress
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """The same of copying seen frames, where that says something."""


class Benchmark:
    """The state of one call: the data, the tokenizer, and the bar."""

    def __init__(self, config: BenchmarkConfig) -> None:
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
            self.task = MemoryMazes(config.maze, config.work / "datasets")
        self.tokenizer = self._train_tokenizer()
        self.episodes = self.task.training_latents(self.tokenizer)
        self.bar: tqdm = tqdm(total=0, unit="step", mininterval=2, smoothing=0.02)

    @functools.cached_property
    def validation_episodes(self) -> LatentEpisodes:
        """What learning rates are chosen by."""
        return self.task.validation_latents(self.tokenizer)

    def _train_tokenizer(self) -> Tokenizer:
        """The tokenizer that all models share: the one in the work directory, or a new one."""
        config, training = self.config, self.config.tokenizer_training
        torch.manual_seed(training.optimizer.seed)
        tokenizer = Tokenizer(self.task.tokenizer_config(config.tokenizer))
        device = self.accelerator.device
        file = config.work / "tokenizer.safetensors"
        if not file.is_file():
            frames = self.task.training_frames()
            trainer = Trainer(
                TokenizerLoss(tokenizer),
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
            assert isinstance(average, TokenizerLoss)
            tokenizer = average.tokenizer
            rng, _ = step_rng(training.optimizer.seed, training.optimizer.steps)
            chosen = torch.from_numpy(rng.integers(len(frames), size=512))
            tokenizer.calibrate(frames[chosen].to(device))
            save_file(tokenizer.state_dict(), config.work / "partial.safetensors")
            (config.work / "partial.safetensors").rename(file)
            self.accelerator.free_memory()
        tokenizer.load_state_dict(load_file(file))
        return tokenizer.to(device).eval().requires_grad_(False)

    def describe(self, title: str, part: str) -> None:
        """Say on the bar what is being done."""
        self.bar.set_description(f"{title}: {part}")

    def model_config(self, name: str) -> WorldModelConfig:
        tokenizer = self.task.tokenizer_config(self.config.tokenizer)
        return WorldModelConfig(
            num_actions=self.task.num_actions,
            tokenizer=tokenizer,
            backbone=matched_config(name, self.config.sizes, tokenizer.grid),
            diffusion=diffusion_for(name, self.config.diffusion),
            pose=self.task.pose,
            num_denoising_steps=self.config.num_denoising_steps,
            dream_signal=self.config.dream_signal,
        )

    def make_model(self, name: str, seed: int) -> WorldModel:
        """A new model with the shared tokenizer."""
        torch.manual_seed(seed)
        model = WorldModel(self.model_config(name))
        model.tokenizer.load_state_dict(self.tokenizer.state_dict())
        model.tokenizer.eval().requires_grad_(False)
        return model.to(self.accelerator.device)

    def load(self, path: Path) -> WorldModel:
        """A saved model as its users load it."""
        return checkpoint.load(path, device=self.accelerator.device, dtype=self.dtype)

    def train(
        self, name: str, training: DynamicsTraining, directory: Path
    ) -> tuple[WorldModel, float]:
        """Train from the last checkpoint on; the averaged model and this call's frames/s."""
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
        return average, (trainer.step - first) * training.frames_per_step / seconds

    @torch.no_grad()
    def validation_loss(
        self, model: WorldModel, num_batches: int = 4, batch_size: int = 8
    ) -> float:
        """Diffusion loss on held-out episodes: the same segments and noise for every model."""
        episodes = self.validation_episodes
        length = min(self.config.dynamics.curriculum[-1][0], int(episodes.lengths.max()))
        losses = []
        for i in range(num_batches):
            rng, generator = step_rng(2**31, i)
            batch = episodes.sample(batch_size, length, rng)
            levels = sample_signal_levels(batch_size, length, self.config.diffusion, generator)
            noise = torch.randn(batch.latents.shape, generator=generator)
            tensors = (x.to(model.device) for x in (*batch, noise, *levels))
            with self.accelerator.autocast():
                losses.append(float(model(*tensors)["diffusion"]))
        return float(np.mean(losses))

    def training(self, name: str, seed: int, rate: float, steps: int | None) -> DynamicsTraining:
        common = self.config.dynamics
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

    def settings(self, name: str, training: DynamicsTraining) -> Settings:
        """What decides a run's result; a kept result with other settings is not mixed in."""
        return {
            **self.task_settings,
            "model": self.model_config(name),
            "training": training,
            "tokenizer_training": self.config.tokenizer_training,
        }


class Pending(NamedTuple):
    """A model that is to be trained and judged."""

    name: str
    seed: int
    training: DynamicsTraining
    settings: Settings


def choose_rates(benchmark: Benchmark) -> dict[str, float]:
    """The learning-rate factor of each model, by the sweep that was made or is asked for."""
    config = benchmark.config
    file = config.output / "sweep.json"
    losses: dict[str, dict[str, float]] = (read_json(file) or {}).get("validation_loss", {})
    wanted = [
        (name, rate)
        for name in config.backbones
        for rate in config.sweep
        if str(rate) not in losses.get(name, {})
    ]
    benchmark.bar.reset(total=len(wanted) * config.sweep_steps)
    for name, rate in wanted:
        benchmark.bar.set_description(f"sweep {name} x{rate:g}")
        training = benchmark.training(name, 0, rate, config.sweep_steps)
        directory = config.work / f"sweep-{name}-{rate:g}"
        try:
            model, _ = benchmark.train(name, training, directory)
            loss = benchmark.validation_loss(model)
        except FloatingPointError:  # diverged: that rate is too high
            loss = float("inf")
        losses.setdefault(name, {})[str(rate)] = loss
        steps = config.sweep_steps
        write_json(file, {"steps": steps, "validation_loss": losses, **provenance()})
        shutil.rmtree(directory, ignore_errors=True)
    return {
        name: float(min(losses[name], key=losses[name].__getitem__)) if name in losses else 1.0
        for name in config.backbones
    }


def find_pending(benchmark: Benchmark, rates: dict[str, float]) -> list[Pending]:
    """Every model and seed that has no result yet.

    Raises:
        ValueError: there are results of other settings.
    """
    config = benchmark.config
    pending = []
    for seed in config.seeds:
        for name in config.backbones:
            training = benchmark.training(name, seed, rates[name], None)
            settings = benchmark.settings(name, training)
            if not is_done(config.output / f"{name}-seed{seed}.json", settings):
                pending.append(Pending(name, seed, training, settings))
    return pending


def run_all(benchmark: Benchmark, rates: dict[str, float], pending: list[Pending]) -> None:
    """Train and evaluate them."""
    config = benchmark.config
    benchmark.bar.reset(total=sum(run.training.optimizer.steps for run in pending))
    for name, seed, training, settings in pending:
        title = f"{name} seed {seed}"
        benchmark.bar.set_description(title)
        directory = config.work / f"{name}-seed{seed}"
        model, speed = benchmark.train(name, training, directory)
        started = time.monotonic()
        loss = benchmark.validation_loss(model)
        checkpoint.save(model, directory / "checkpoint", metadata={"seed": seed, "name": name})
        model = benchmark.load(directory / "checkpoint")
        values, frames = benchmark.task.evaluate(
            model, functools.partial(benchmark.describe, title)
        )
        np.savez_compressed(directory / "frames.npz", **frames)  # type: ignore[arg-type]
        result = {
            "name": name,
            "label": ALL[name].label,
            "seed": seed,
            "rate": rates[name],
            "parameters": count_parameters(model.denoiser),
            "backbone_parameters": count_parameters(model.denoiser.backbone),
            "training_frames_per_second": speed,
            "evaluation_seconds": time.monotonic() - started,
            "validation_loss": loss,
            "evaluation": values,
            "settings": {key: checkpoint.to_json(value) for key, value in settings.items()},
            **provenance(),
        }
        write_json(config.output / f"{name}-seed{seed}.json", result)
        shutil.rmtree(directory / "latest", ignore_errors=True)
        columns = values["columns"].items()
        shown = ", ".join(f"{k} {v:.3f}" for k, v in columns if v is not None)
        benchmark.bar.write(f"{title}: loss {loss:.4f}, {shown}")


def write_reference(benchmark: Benchmark) -> None:
    """Evaluate copies of seen frames, once."""
    config = benchmark.config
    file = config.output / f"{REFERENCE}-seed0.json"
    settings = benchmark.task_settings
    if is_done(file, settings):
        return
    describe = functools.partial(benchmark.describe, REFERENCE_LABEL)
    evaluated = benchmark.task.reference(benchmark.accelerator.device, describe)
    if evaluated is not None:
        values, frames = evaluated
        directory = config.work / f"{REFERENCE}-seed0"
        directory.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(directory / "frames.npz", **frames)  # type: ignore[arg-type]
        result = {
            "name": REFERENCE,
            "label": REFERENCE_LABEL,
            "seed": 0,
            "parameters": 0,
            "evaluation": values,
            "settings": {key: checkpoint.to_json(value) for key, value in settings.items()},
            **provenance(),
        }
        write_json(file, result)


def measure_all_costs(benchmark: Benchmark) -> None:
    """Measure the costs of models that have none yet."""
    config = benchmark.config
    file = config.output / "costs.json"
    kept = (read_json(file) or {}).get("models", {})
    for name in config.backbones:
        if name in kept:
            continue
        benchmark.bar.set_description(f"costs of {name}")
        model = benchmark.make_model(name, 0)
        training = [
            measure_training(model, length, config.costs, benchmark.dtype)
            for length in config.costs.training_lengths
        ]
        checkpoint.save(model, config.work / "costs")
        model = benchmark.load(config.work / "costs")
        kept[name] = {"training": training, "dreaming": measure_dreaming(model, config.costs)}
        write_json(
            file, {"config": checkpoint.to_json(config.costs), "models": kept, **provenance()}
        )


def main(config: BenchmarkConfig) -> Path:
    """Run what is missing, then write the report.

    Returns:
        The directory with the results.
    """
    keep_memory()
    config.work.mkdir(parents=True, exist_ok=True)
    config.output.mkdir(parents=True, exist_ok=True)
    benchmark = Benchmark(config)
    with benchmark.bar:
        rates = choose_rates(benchmark)
        pending = find_pending(benchmark, rates)
        write_reference(benchmark)
        run_all(benchmark, rates, pending)
        if config.measure_costs:
            measure_all_costs(benchmark)
    print(write_report(config.output, config.work))
    return config.output


if __name__ == "__main__":
    run_script(main, presets(), __doc__, stopped=CONTINUES)
