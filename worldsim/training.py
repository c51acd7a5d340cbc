"""The training loop: optimisers, schedule, averaging of weights, checkpoints, several processes.

Every random draw of a step depends on the seed and the step's number alone, so a run that was
killed and resumed goes through the same losses, and N processes see the same global batch as one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from worldsim.checkpoint import fast_dtype, replace_directory
from worldsim.diffusion import sample_signal_levels
from worldsim.episodes import EpisodeDataset
from worldsim.latents import LatentBatch, LatentEpisodes
from worldsim.muon import Muon
from worldsim.own_dreams import DreamNoise, draw_dream_noise, end_in_dreams
from worldsim.tokenizer import Tokenizer
from worldsim.training_config import DynamicsTraining, OptimizerConfig, TokenizerTraining
from worldsim.world_model import WorldModel
from worldsim.world_model_config import WorldModelConfig

Tensors = list[Tensor] | tuple[Tensor, ...]
Losses = dict[str, Tensor]
LossFunction = Callable[[nn.Module, int], tuple[Tensor, Losses]]
"""Maps the (wrapped) model and the step to the loss and what to log."""


def agreed_dtype(device: torch.device | str) -> torch.dtype:
    """`fast_dtype` as the first process finds it: on CPUs a trial tells, and all do the same."""
    found = [fast_dtype(device)]
    broadcast_object_list(found)
    return found[0]


def make_optimizers(
    model: nn.Module, config: OptimizerConfig, dtype: torch.dtype | None = None
) -> list[torch.optim.Optimizer]:
    """Muon for the linear maps of the backbone, AdamW for all else.

    Args:
        model: to be trained.
        config: rates and decays.
        dtype: of Muon's matrix products, see there.
    """
    matrices = []
    if config.muon_learning_rate:
        matrices = [
            module.weight
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and ".backbone." in f".{name}."
        ]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    decayed = [p for p in others if p.ndim >= 2]
    plain = [p for p in others if p.ndim < 2]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(0.9, 0.99),
            fused=True,
        )
    ]
    if matrices:
        optimizers.append(
            Muon(
                matrices,
                lr=config.muon_learning_rate,
                weight_decay=config.weight_decay,
                dtype=dtype,
            )
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


class Trainer:
    """Trains one model with one loss; knows nothing of what they are.

    Args:
        model: the module whose parameters are trained; its forward pass is what is distributed.
        loss: called with the wrapped model and the step.
        config: optimiser settings.
        accelerator: precision, devices and processes.
        directory: where checkpoints go; None keeps none.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction,
        config: OptimizerConfig,
        accelerator: Accelerator,
        directory: Path | None = None,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.directory = directory
        self.step = 0
        self._loss = loss
        self.model = model.to(accelerator.device).train()
        self.average = AveragedModel(self.model, multi_avg_fn=self._average)
        for module in self.average.modules():
            if isinstance(module, nn.RNNBase):  # copied, their weights lie apart on a GPU
                module.flatten_parameters()
        optimizers = make_optimizers(self.model, config, agreed_dtype(accelerator.device))
        self._wrapped, *self._optimizers = accelerator.prepare(self.model, *optimizers)

    def _average(self, averaged: Tensors, current: Tensors, steps: Tensor | int) -> None:
        """Move the average on; at first faster, so that it forgets the weights it began with."""
        count = int(self.average.n_averaged)  # the same as `steps`, which may lie on a GPU
        decay = min(self.config.ema_decay, (1 + count) / (10 + count))
        get_ema_multi_avg_fn(decay)(averaged, current, steps)

    def run(self, save_every: int = 0) -> Iterator[dict[str, float]]:
        """Train to the last step, yielding what to log after each step.

        Args:
            save_every: steps between checkpoints; 0 saves only at the end.
        """
        while self.step < self.config.steps:
            values = self._train_step()
            finished = self.step == self.config.steps
            if finished or (save_every and self.step % save_every == 0):
                self.save()
            yield values

    def _train_step(self) -> dict[str, float]:
        rate = self.config.rate(self.step)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate
        with self.accelerator.autocast():
            loss, logged = self._loss(self._wrapped, self.step)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(
            self._wrapped.parameters(), self.config.max_grad_norm
        )
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.average.update_parameters(self.model)
        self.step += 1
        logged = logged | {"loss": loss, "grad_norm": torch.as_tensor(norm)}
        numbers = torch.stack([v.detach().float().to(loss.device) for v in logged.values()])
        values = dict(zip(logged, numbers.tolist(), strict=True))  # waits for the device once
        # Gradients are shared: where one process has an infinite loss, all of them stop here.
        if not np.isfinite([values["loss"], values["grad_norm"]]).all():
            raise FloatingPointError(
                f"the loss is {values['loss']} and the gradient norm {values['grad_norm']} at step "
                f"{self.step}; lower the learning rate (now {self.config.learning_rate}) and "
                "resume from the last checkpoint"
            )
        return values | {"rate": rate}

    def save(self) -> None:
        """Write a checkpoint in one move and drop the one before."""
        self.accelerator.wait_for_everyone()
        if self.directory is None or not self.accelerator.is_main_process:
            return
        partial = self.directory / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        state: dict[str, Any] = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [o.state_dict() for o in self._optimizers],
        }
        torch.save(state, partial / "training.pt")
        replace_directory(partial, self.directory / "latest")

    def resume(self) -> bool:
        """Continue from the last checkpoint, if there is one.

        Raises:
            ValueError: it was trained by other optimizers; or processes have found different ones.
        """
        file = None if self.directory is None else kept_file(self.directory)
        if file is not None:
            self._load(file)
        steps = torch.tensor([self.step], device=self.accelerator.device)
        found = sorted(set(self.accelerator.gather(steps).tolist()))
        if len(found) > 1:
            raise ValueError(
                f"processes would go on from steps {', '.join(map(str, found))}: {self.directory} "
                "has to be on a disk that all machines share"
            )
        return file is not None

    def _load(self, file: Path) -> None:
        state = torch.load(file, map_location=self.accelerator.device, weights_only=True)
        if len(state["optimizers"]) != len(self._optimizers):
            raise ValueError(
                f"{file} was trained with{'out' * (len(self._optimizers) > 1)} Muon, which "
                "cannot be switched on or off on the way: keep muon_learning_rate "
                f"{'0' if len(self._optimizers) > 1 else 'above 0'}, or train anew"
            )
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, values in zip(self._optimizers, state["optimizers"], strict=True):
            # Rates and decays are the config's, which may have been changed on purpose.
            for kept, now in zip(values["param_groups"], optimizer.param_groups, strict=True):
                kept |= {name: now[name] for name in ("initial_lr", "weight_decay")}
            optimizer.load_state_dict(values)
        self.step = state["step"]


def kept_file(directory: Path) -> Path | None:
    """What a `Trainer` last saved there; where a save was cut off, the one before."""
    files = (directory / name / "training.pt" for name in ("latest", ".latest.old"))
    return next((file for file in files if file.is_file()), None)


def kept_model(directory: Path) -> dict[str, Tensor] | None:
    """Weights of the model that a `Trainer` has in training there; None where there is none.

    On the CPU, so that only those that are used are read.
    """
    file = kept_file(directory)
    if file is None:
        return None
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)["model"]


def step_rng(
    seed: int, step: int, device: torch.device | str = "cpu"
) -> tuple[np.random.Generator, torch.Generator]:
    """Generators of one step, the same in every process; the second draws on `device`."""
    rng = np.random.default_rng((seed, step))
    return rng, torch.Generator(device).manual_seed(int(rng.integers(2**62)))


def own_share(accelerator: Accelerator, batch: Tensor) -> Tensor:
    """This process's part of a global batch, on its device.

    Raises:
        ValueError: the batch does not divide by the number of processes.
    """
    check_divides(accelerator, len(batch))
    size = len(batch) // accelerator.num_processes
    start = accelerator.process_index * size
    return batch[start : start + size].to(accelerator.device)


def check_divides(accelerator: Accelerator, batch_size: int) -> None:
    """Raise a ValueError where a batch does not divide by the number of processes."""
    if batch_size % accelerator.num_processes:
        raise ValueError(
            f"a batch of {batch_size} does not divide among {accelerator.num_processes} processes"
        )


class LossModule(nn.Module):
    """The `loss` of a module as a forward pass, so that it can be distributed."""

    def __init__(self, learner: nn.Module) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, *batch: Any) -> Any:
        return cast(Any, self.learner).loss(*batch)


def spaced_frames(dataset: EpisodeDataset, max_frames: int) -> Tensor:
    """Every k-th frame of a dataset, so that at most about `max_frames` are kept in memory.

    Returns:
        (frames, h, w, c) uint8.
    """
    stride, seen, kept = -(-dataset.num_frames // max_frames), 0, []
    for episode in dataset:
        # Copies: views would keep all frames of every episode in memory.
        kept.append(episode.frames[-seen % stride :: stride].copy())
        seen += len(episode)
    return torch.from_numpy(np.concatenate(kept))


def tokenizer_loss(
    frames: Tensor, config: TokenizerTraining, tokenizer: Tokenizer, accel: Accelerator
) -> LossFunction:
    """Loss function of a step of tokenizer training; its model is the `LossModule` of
    the tokenizer.

    Args:
        frames: (n, h, w, c) uint8, the frames to learn from.
        config, tokenizer, accel: settings, the module, the processes.
    """
    h, w = tokenizer.config.grid

    def loss(model: nn.Module, step: int) -> tuple[Tensor, Losses]:
        rng, generator = step_rng(config.optimizer.seed, step)
        batch = frames[torch.from_numpy(rng.integers(len(frames), size=config.batch_size))]
        noise = torch.randn(
            config.batch_size, tokenizer.config.latent_channels, h, w, generator=generator
        )
        value, squared = model(own_share(accel, batch), own_share(accel, noise))
        return value, {"psnr": 10 * torch.log10(4 / squared)}

    return loss


def check_dynamics(
    config: DynamicsTraining, model: WorldModelConfig, accelerator: Accelerator
) -> None:
    """Refuse settings that no episodes could be trained on with.

    Raises:
        ValueError: a batch does not divide by the number of processes, or stretches do not fit
            curriculum or model.
    """
    if config.longest_stretches:
        if len(config.longest_stretches) != len(config.curriculum):
            raise ValueError(
                f"longest_stretches has {len(config.longest_stretches)} entries for the "
                f"{len(config.curriculum)} stages of the curriculum: give one for each "
                "(--dynamics.longest-stretches)"
            )
        if model.pose is None:
            raise ValueError(
                "longest_stretches is set, but this model has no poses, and actions mean nothing "
                "across cuts: leave it empty, or give the model poses"
            )
    for length in config.segment_lengths:
        try:
            check_divides(accelerator, config.batch_size(length))
        except ValueError as error:
            raise ValueError(
                f"of segments of {length} frames, {error}: choose another frames_per_step "
                "(--dynamics.frames-per-step)"
            ) from error


def dynamics_loss(
    episodes: LatentEpisodes, config: DynamicsTraining, model: WorldModel, accel: Accelerator
) -> LossFunction:
    """Loss function of a step of world-model training.

    Raises:
        ValueError: no episode is as long as the curriculum's segments, or a batch of them does not
            divide by the number of processes; stretches do not fit curriculum or model; the model
            learns from poses, and the episodes have none.
    """
    if model.config.pose is not None and episodes.poses is None:
        raise ValueError("this model learns from poses, but these episodes were read without")
    check_dynamics(config, model.config, accel)
    for length in config.segment_lengths:
        if length > episodes.lengths.max():
            raise ValueError(
                f"training is on segments of {length} frames; the longest episode has "
                f"{episodes.lengths.max()}"
            )
    own = config.own_dreams

    def loss(wrapped: nn.Module, step: int) -> tuple[Tensor, Losses]:
        rng, generator = step_rng(config.optimizer.seed, step, accel.device)
        dreams = own.share > 0 and step >= own.begin * config.optimizer.steps
        dreams = dreams and rng.random() < own.share
        t = own.context + own.length if dreams else config.segment_length(step)
        b = config.batch_size(t)
        stretch = 0 if dreams else config.longest_stretch(step)
        batch = episodes.sample(b, t, rng, longest_stretch=stretch)
        signal, mask = sample_signal_levels(b, t, model.config.diffusion, generator)
        noise = torch.randn(batch.latents.shape, generator=generator, device=accel.device)
        batch = LatentBatch(*(own_share(accel, x) for x in batch))
        noise, signal, mask = (own_share(accel, x) for x in (noise, signal, mask))
        seen = batch.latents
        if dreams:
            drawn = draw_dream_noise(b, own.length, model, generator)
            drawn = DreamNoise(*(own_share(accel, x) for x in drawn))
            seen, signal = end_in_dreams(
                model, batch.latents, batch.actions, batch.poses, signal, drawn
            )
        losses = wrapped(*batch, noise, signal, mask, seen)
        total = (
            losses["diffusion"]
            + config.reward_weight * losses["reward"]
            + config.termination_weight * losses["termination"]
            + config.policy_weight * losses["policy"]
            + config.value_weight * losses["value"]
        )
        return total, losses

    return loss
