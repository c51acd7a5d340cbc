"""Training: resuming and several processes change nothing, and a tiny world is learned."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import NUM_ACTIONS, tiny_config, tiny_contexts, tiny_model, write_dataset
from torch import Tensor, nn

import worldsim.checkpoint as checkpoint
import worldsim.training
from experiments import train_world_model
from experiments.data_checks import are_held_out, held_out_of
from experiments.model_to_train import check_kept_settings, new_model
from experiments.sb3_training import PPOConfig
from experiments.ship_model import ShipConfig, choose_contexts
from experiments.ship_model import main as ship_main
from experiments.train_config import TrainConfig, ValidationConfig, presets
from experiments.train_stages import check_stages, open_writer
from experiments.train_world_model import main
from worldsim.backbone import BlockSSMConfig
from worldsim.backbone_far import FARConfig
from worldsim.diffusion import DiffusionForcingConfig
from worldsim.episodes import EpisodeDataset
from worldsim.heads import mean_where
from worldsim.latents import LatentEpisodes, encode_dataset
from worldsim.occupancy_training import OccupancyTraining
from worldsim.odometry import OdometryConfig
from worldsim.odometry_training import OdometryTraining
from worldsim.own_dreams import OwnDreams
from worldsim.places_training import PlacesTraining
from worldsim.pose import PoseConfig
from worldsim.tokenizer import Tokenizer, TokenizerConfig
from worldsim.training import (
    Losses,
    LossFunction,
    LossModule,
    Trainer,
    dynamics_loss,
    make_optimizers,
    own_share,
    spaced_frames,
    step_rng,
    tokenizer_loss,
)
from worldsim.training_config import DynamicsTraining, OptimizerConfig, TokenizerTraining
from worldsim.world_model import WorldModel
from worldsim.world_model_config import WorldModelConfig


@pytest.fixture
def accelerator() -> Accelerator:
    AcceleratorState._reset_state(True)
    return Accelerator(cpu=True, mixed_precision="no")


def make_model(seed: int = 0) -> WorldModel:
    torch.manual_seed(seed)
    model = WorldModel(tiny_config())
    model.tokenizer.requires_grad_(False)
    return model


def episodes(n: int = 6, length: int = 20) -> LatentEpisodes:
    """A world that is learned at once: latents show the action, action 0 is rewarded."""
    rng = np.random.default_rng(0)
    actions = torch.from_numpy(rng.integers(NUM_ACTIONS, size=n * length))
    actions[::length] = NUM_ACTIONS
    table = torch.randn(NUM_ACTIONS + 1, 4, 8, generator=torch.Generator().manual_seed(0))
    ends = torch.arange(n * length) % length == length - 1
    return LatentEpisodes(
        table[actions].half(), actions, (actions == 0).float(), ends, np.full(n, length)
    )


def training(steps: int = 8, **changes: object) -> DynamicsTraining:
    settings = {"warmup_steps": 2, "ema_decay": 0.8} | changes
    return DynamicsTraining(
        optimizer=OptimizerConfig(steps=steps, **settings),  # type: ignore[arg-type]
        frames_per_step=32,
        curriculum=((8, 0.5), (16, 0.5)),
        own_dreams=OwnDreams(share=0.5, begin=0.25, context=6, length=2),
    )


def make_trainer(
    accelerator: Accelerator,
    directory: Path | None = None,
    seed: int = 0,
    config: DynamicsTraining | None = None,
) -> Trainer:
    config = config or training()
    model = make_model(seed)
    loss = dynamics_loss(episodes(), config, model, accelerator)
    return Trainer(model, loss, config.optimizer, accelerator, directory)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    average = {f"average.{k}": v for k, v in trainer.average.state_dict().items()}
    return {k: v.detach().clone() for k, v in (trainer.model.state_dict() | average).items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("killed_after", [2, 3, 5])
def test_a_killed_and_resumed_run_is_the_uninterrupted_one(
    accelerator: Accelerator, tmp_path: Path, killed_after: int
) -> None:
    whole = make_trainer(accelerator)
    assert not whole.resume()
    expected = list(whole.run())
    assert len(expected) == 8 and whole.step == 8

    killed = make_trainer(accelerator, tmp_path)
    assert not killed.resume()
    for done, values in enumerate(killed.run(save_every=2), start=1):
        assert values == expected[done - 1]
        if done == killed_after:
            break
    last = 2 * (killed_after // 2)  # a step that has been yielded is saved before that
    resumed = make_trainer(accelerator, tmp_path, seed=1)  # what it starts from is overwritten
    assert resumed.resume()
    assert resumed.step == last
    assert list(resumed.run(save_every=2)) == expected[last:]
    assert_equal(weights(resumed), weights(whole))
    finished = make_trainer(accelerator, tmp_path, seed=2)
    assert finished.resume() and list(finished.run()) == []
    assert_equal(weights(finished), weights(whole))


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("step", ["write", "first move", "second move"])
def test_a_killed_save_leaves_the_last_checkpoint(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    trainer = make_trainer(accelerator, tmp_path)
    run = trainer.run(save_every=1)
    for _ in range(3):
        next(run)
    saved = 3
    moves: list[object] = []
    replace = os.replace

    def killed_replace(source: Path, target: Path) -> None:
        if len(moves) == {"first move": 0, "second move": 1}[step]:
            raise KilledError
        moves.append(target)
        replace(source, target)

    def killed_write(_: object, file: Path) -> None:
        file.write_bytes(b"half a")
        raise KilledError

    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr(torch, "save", killed_write)
        else:
            patch.setattr(os, "replace", killed_replace)
        with pytest.raises(KilledError):
            next(run)
    resumed = make_trainer(accelerator, tmp_path, seed=1)
    assert resumed.resume() and resumed.step == saved
    list(resumed.run(save_every=1))
    assert [p.name for p in tmp_path.iterdir()] == ["latest"]


def test_a_resumed_run_takes_the_rates_it_is_given(
    accelerator: Accelerator, tmp_path: Path
) -> None:
    list(make_trainer(accelerator, tmp_path, config=training(steps=2)).run())
    slower = training(steps=3, learning_rate=1e-5, muon_learning_rate=1e-6, weight_decay=0.5)
    resumed = make_trainer(accelerator, tmp_path, config=slower)
    assert resumed.resume()
    next(resumed.run())
    groups = [group for optimizer in resumed._optimizers for group in optimizer.param_groups]
    assert {group["initial_lr"] for group in groups} == {1e-5, 1e-6}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.5}
    rate = slower.optimizer.rate(resumed.step - 1)
    assert all(group["lr"] == pytest.approx(rate * group["initial_lr"]) for group in groups)


def test_muon_is_not_switched_on_the_way(accelerator: Accelerator, tmp_path: Path) -> None:
    list(make_trainer(accelerator, tmp_path, config=training(steps=2)).run())
    without = make_trainer(accelerator, tmp_path, config=training(muon_learning_rate=0.0))
    with pytest.raises(ValueError, match=r"was trained with Muon.*keep muon_learning_rate above 0"):
        without.resume()


def test_the_average_forgets_the_weights_it_began_with(accelerator: Accelerator) -> None:
    """A short run's average is of its own last steps, however slowly a long run's may change."""
    config = OptimizerConfig(steps=40, warmup_steps=0, learning_rate=0.0, ema_decay=0.9999)
    trainer = Trainer(
        Line(), lambda model, step: (model(torch.ones(1)).sum(), {}), config, accelerator
    )
    list(trainer.run())
    with torch.no_grad():
        trainer.model.weight.fill_(2.0)  # from here on; it was 1 for 40 steps
    for _ in range(40):
        trainer.average.update_parameters(trainer.model)
    average = float(trainer.average.module.weight.detach())
    assert 1.98 < average < 2.0  # (40 / 80)^9 of the first is left; 0.996 with the decay alone


def test_a_tiny_world_is_learned(accelerator: Accelerator) -> None:
    config = training(steps=60, ema_decay=0.9, muon_learning_rate=1e-2, learning_rate=1e-2)
    values = list(make_trainer(accelerator, config=config).run())
    for name in ("diffusion", "reward", "loss"):
        early, late = (np.mean([v[name] for v in part]) for part in (values[:5], values[-5:]))
        assert late < 0.5 * early, (name, early, late)
    assert all(v["grad_norm"] > 0 for v in values)


class Line(nn.Module):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


def line_trainer(accelerator: Accelerator, directory: Path | None, *inputs: float) -> Trainer:
    """The loss of step i is sqrt(|w x_i|), whose gradient at zero is infinite."""

    def loss(model: nn.Module, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        value = model(torch.tensor([inputs[step]])).abs().sqrt().sum()
        return value, {"value": value}

    config = OptimizerConfig(steps=len(inputs), warmup_steps=0, ema_decay=0.75, learning_rate=0.1)
    return Trainer(Line(), loss, config, accelerator, directory)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (float("nan"), r"the loss is nan .*at step 3; lower the learning rate \(now 0.1\)"),
        (float("inf"), r"the loss is inf"),
        (0.0, r"the loss is 0.0 and the gradient norm (nan|inf) at step 3"),
    ],
)
def test_a_loss_or_gradient_that_is_no_number_stops_before_the_checkpoint(
    accelerator: Accelerator, tmp_path: Path, bad: float, message: str
) -> None:
    trainer = line_trainer(accelerator, tmp_path, 1.0, 1.0, bad, 1.0)
    with pytest.raises(FloatingPointError, match=message):
        list(trainer.run(save_every=1))
    resumed = line_trainer(accelerator, tmp_path, 1.0, 1.0, 1.0, 1.0)
    assert resumed.resume() and resumed.step == 2
    assert all(t.isfinite().all() for t in weights(resumed).values())


def test_average_follows_the_weights(accelerator: Accelerator) -> None:
    trainer = line_trainer(accelerator, None, 1.0, 2.0, 3.0, 1.0)
    expected = 0.0
    for step, _ in enumerate(trainer.run()):
        now = float(trainer.model.weight.detach())  # type: ignore[operator]
        kept = min(0.75, (1 + step) / (10 + step)) if step else 0.0
        expected = kept * expected + (1 - kept) * now
        assert float(trainer.average.module.weight.detach()) == pytest.approx(expected)  # type: ignore


def test_rate_rises_stays_and_falls_to_zero() -> None:
    config = OptimizerConfig(steps=100, warmup_steps=10, decay_share=0.3)
    rates = [config.rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9:71] == [1.0] * 62
    assert rates[85] == pytest.approx(0.5) and rates[100] == 0
    assert min(rates[:100]) > 0
    assert OptimizerConfig(steps=1, warmup_steps=0, decay_share=0).rate(0) == 1


def test_curriculum_keeps_the_frames_per_step() -> None:
    config = DynamicsTraining(
        optimizer=OptimizerConfig(steps=100),
        frames_per_step=64,
        curriculum=((8, 2.0), (16, 1.0), (128, 1.0)),  # shares need not add up to one
    )
    lengths = [config.segment_length(step) for step in range(101)]
    assert lengths == [8] * 50 + [16] * 25 + [128] * 26
    assert [config.batch_size(n) for n in (8, 16, 128)] == [8, 4, 1]


def test_impossible_curricula_are_named_before_the_first_step(accelerator: Accelerator) -> None:
    config = DynamicsTraining(curriculum=((8, 0.9), (21, 0.1)))
    with pytest.raises(ValueError, match="segments of 21 frames; the longest episode has 20"):
        dynamics_loss(episodes(), config, make_model(), accelerator)
    for curriculum in (((0, 1.0),), ((8, -1.0), (16, 2.0)), ((8, 0.0),), ()):
        with pytest.raises(ValueError, match="curriculum must "):
            DynamicsTraining(curriculum=curriculum)


def test_stretches_fit_curriculum_and_model(accelerator: Accelerator) -> None:
    config = DynamicsTraining(
        optimizer=OptimizerConfig(steps=10),
        curriculum=((4, 0.5), (8, 0.5)),
        longest_stretches=(1, 8),
    )
    assert [config.longest_stretch(step) for step in (0, 4, 5, 9)] == [1, 1, 8, 8]
    assert dataclasses.replace(config, longest_stretches=()).longest_stretch(7) == 0
    with pytest.raises(ValueError, match="this model has no poses"):
        dynamics_loss(episodes(), config, make_model(), accelerator)
    short = dataclasses.replace(config, longest_stretches=(1,))
    with pytest.raises(ValueError, match="has 1 entries for the 2 stages"):
        dynamics_loss(episodes(), short, make_model(), accelerator)


def test_optimizers_share_the_parameters_out() -> None:
    model = make_model()
    adamw, muon = make_optimizers(model, OptimizerConfig(steps=1))
    names = {id(p): name for name, p in model.named_parameters()}
    owned = [[names[id(p)] for g in o.param_groups for p in g["params"]] for o in (adamw, muon)]
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert sorted(owned[0] + owned[1]) == sorted(trained)
    assert all("backbone" in name and name.endswith(".weight") for name in owned[1])
    assert not any(name.startswith("tokenizer") for name in trained)
    (single,) = make_optimizers(model, OptimizerConfig(steps=1, muon_learning_rate=0))
    assert sum(len(g["params"]) for g in single.param_groups) == len(trained)


def test_draws_depend_on_seed_and_step_alone() -> None:
    def draw(seed: int, step: int) -> list[float]:
        rng, generator = step_rng(seed, step)
        return [rng.random(), float(torch.rand(1, generator=generator))]

    assert draw(0, 5) == draw(0, 5)
    assert len({tuple(draw(seed, step)) for seed in range(3) for step in range(3)}) == 9


class Process:
    """Stands for one process of several."""

    device = torch.device("cpu")

    def __init__(self, process_index: int, num_processes: int) -> None:
        self.process_index, self.num_processes = process_index, num_processes


def test_processes_share_a_batch_out() -> None:
    batch = torch.arange(12).reshape(6, 2)
    shares = [own_share(Process(i, 3), batch) for i in range(3)]  # type: ignore[arg-type]
    assert torch.equal(torch.cat(shares), batch)
    with pytest.raises(ValueError, match="a batch of 6 does not divide among 4 processes"):
        own_share(Process(0, 4), batch)  # type: ignore[arg-type]
    config = DynamicsTraining(frames_per_step=32, curriculum=((8, 0.5), (16, 0.5)))
    with pytest.raises(ValueError, match="a batch of 2 does not divide among 4 processes"):
        dynamics_loss(episodes(), config, make_model(), Process(0, 4))  # type: ignore[arg-type]


def test_unused_parameters_are_looked_for_where_the_model_has_some(tmp_path: Path) -> None:
    far = dataclasses.replace(
        tiny_config(), backbone=FARConfig(d_model=32, num_layers=1, head_dim=16)
    )
    checkpoint.save(WorldModel(far), tmp_path / "far")
    for init, expected in ((str(tmp_path / "far"), True), (None, False)):
        AcceleratorState._reset_state(True)
        config = TrainConfig(init=init, device="cpu")
        handler = train_world_model.make_accelerator(config).ddp_handler
        assert handler is not None and handler.find_unused_parameters == expected


def test_processes_take_the_precision_that_the_first_finds_fast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for found, precision in ((torch.bfloat16, "bf16"), (torch.float32, "no")):
        AcceleratorState._reset_state(True)
        monkeypatch.setattr(worldsim.training, "fast_dtype", lambda _, found=found: found)
        config = TrainConfig(device="cpu")
        assert train_world_model.make_accelerator(config).mixed_precision == precision


def test_what_a_later_stage_cannot_be_trained_with_is_told_first() -> None:
    config, eight = presets()["memory-maze"][1], Process(0, 8)
    dynamics = dataclasses.replace(config.dynamics, frames_per_step=8 * 512)
    config = dataclasses.replace(config, dynamics=dynamics)
    model = tiny_model(pose=PoseConfig(), odometry=OdometryConfig())

    def check(**changes: Any) -> None:
        check_stages(dataclasses.replace(config, **changes), model, eight)  # type: ignore[arg-type]

    assert config.places_training.batch_size % 8
    with pytest.raises(ValueError, match=r"of 12 does not divide .* --places-training\.batch-size"):
        check()
    check(places_training=PlacesTraining(batch_size=16))
    check(places=False, occupancy=False)
    fewer = dataclasses.replace(dynamics, frames_per_step=7 * 512)
    with pytest.raises(ValueError, match=r"of 28 does not divide .*--dynamics\.frames-per-step"):
        check(places=False, occupancy=False, dynamics=fewer)
    shorter = dataclasses.replace(dynamics, curriculum=((64, 1.0),))
    with pytest.raises(ValueError, match=r"for the 1 stages.*--dynamics\.longest-stretches"):
        check(places=False, occupancy=False, dynamics=shorter)


class Uneven(nn.Module):
    """Learns where something is known, which is all in the first half of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 1)

    def loss(self, x: Tensor, known: Tensor) -> Tensor:
        return mean_where(self.linear(x)[:, 0].square(), known)


def uneven_loss(accelerator: Accelerator) -> LossFunction:
    def loss(model: nn.Module, step: int) -> tuple[Tensor, Losses]:
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        known = torch.arange(8) < 3
        value = model(*(own_share(accelerator, part) for part in (x, known)))
        return value, {}

    return loss


def train_and_save(directory: str) -> None:
    """Train both models for two steps; keep the gradients of the first and the weights."""
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    torch.manual_seed(0)
    tokenizer = Tokenizer(tiny_config().tokenizer)
    optimizer = OptimizerConfig(steps=2, max_grad_norm=1e9, warmup_steps=0)
    frames = torch.randint(0, 256, (20, 64, 64, 3), dtype=torch.uint8)
    learning = TokenizerTraining(optimizer=optimizer, batch_size=8)
    trainers = {
        "tokenizer": Trainer(
            LossModule(tokenizer),
            tokenizer_loss(frames, learning, tokenizer, accelerator),
            optimizer,
            accelerator,
        ),
        "dynamics": make_trainer(
            accelerator,
            Path(directory) / f"run{accelerator.num_processes}",
            config=training(2, max_grad_norm=1e9),
        ),
        "uneven": Trainer(LossModule(Uneven()), uneven_loss(accelerator), optimizer, accelerator),
    }
    result = {}
    for name, trainer in trainers.items():
        first: dict[str, Tensor] = {}

        def keep(*_: object, trainer: Trainer = trainer, first: dict[str, Tensor] = first) -> None:
            for key, p in trainer.model.named_parameters():
                if p.grad is not None:
                    first.setdefault(key, p.grad.clone())

        trainer._optimizers[0].optimizer.register_step_pre_hook(keep)
        list(trainer.run())
        result |= {f"{name}.gradient.{k}": v for k, v in first.items()}
        result |= {f"{name}.weights.{k}": v for k, v in weights(trainer).items()}
    i, n = accelerator.process_index, accelerator.num_processes
    torch.save(result, f"{directory}/process-{i}-of-{n}.pt")
    accelerator.end_training()


def run_process(index: int, num_processes: int, port: int, directory: str) -> None:
    torch.set_num_threads(1)
    if index > 0:  # a trial tells what is fast, and may not tell every process the same
        mine = checkpoint.fast_dtype("cpu")
        other = torch.bfloat16 if mine == torch.float32 else torch.float32
        worldsim.training.fast_dtype = lambda _: other
    os.environ |= {
        "RANK": str(index),
        "LOCAL_RANK": str(index),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    train_and_save(directory)


def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(run_process, (2, port, str(tmp_path)), nprocs=2)
    train_and_save(str(tmp_path))
    AcceleratorState._reset_state(True)
    one, first, second = (
        torch.load(tmp_path / f"process-{name}.pt") for name in ("0-of-1", "0-of-2", "1-of-2")
    )
    assert_equal(first, second)
    assert one.keys() == first.keys()
    assert sum("gradient" in name for name in one) > 20
    for name, t in one.items():
        if "gradient" in name:
            scale = float(t.abs().max())
            torch.testing.assert_close(
                first[name], t, rtol=1e-3, atol=1e-4 * scale + 1e-7, msg=lambda m, n=name: n + m
            )
        else:  # two steps of at most the learning rates, whose signs may differ where flat
            assert (first[name].float() - t.float()).abs().max() < 1e-2, name
            assert (first[name].float() - t.float()).abs().mean() < 5e-4, name
    # One process alone writes checkpoints, and any number of processes can go on from them.
    saved = torch.load(tmp_path / "run2" / "latest" / "training.pt", weights_only=True)
    for name, t in saved["model"].items():
        assert torch.equal(t, first[f"dynamics.weights.{name}"]), name


def test_spaced_frames_are_of_all_episodes(tmp_path: Path) -> None:
    dataset = EpisodeDataset(write_dataset(tmp_path, num_episodes=3, num_steps=19))
    assert spaced_frames(dataset, 1000).shape == (60, 16, 16, 3)
    few = spaced_frames(dataset, 15)
    assert few.shape == (15, 16, 16, 3)
    expected = np.concatenate([episode.frames for episode in dataset])
    assert np.array_equal(few.numpy(), expected[::4])
    short = EpisodeDataset(write_dataset(tmp_path / "short", num_episodes=9, num_steps=4))
    every = np.concatenate([episode.frames for episode in short])
    # Episodes do not begin anew to count, which would show first frames alone.
    assert np.array_equal(spaced_frames(short, 6).numpy(), every[::8])


def tiny_training(dataset: Path, output: Path, **changes: object) -> TrainConfig:
    optimizer = OptimizerConfig(steps=4, muon_learning_rate=0, warmup_steps=1)
    settings = {
        "dataset": (str(dataset),),
        "output": output,
        "tokenizer": TokenizerConfig(patch_size=8, channels=(16,), latent_channels=4),
        "backbone": BlockSSMConfig(
            d_model=16, num_layers=1, block_sizes=(2,), head_dim=8, window=2, d_state=4
        ),
        "diffusion": DiffusionForcingConfig(clean_prefix_probability=0.25),
        "tokenizer_training": TokenizerTraining(optimizer=optimizer, batch_size=4),
        "dynamics": DynamicsTraining(
            optimizer=OptimizerConfig(steps=6, warmup_steps=1),
            frames_per_step=16,
            curriculum=((8, 1.0),),
        ),
        "validation": ValidationConfig(every=3, num_contexts=1, context=8, horizon=8),
        "save_every": 2,
        "precision": "no",
        "device": "cpu",
    }
    return TrainConfig(**(settings | changes))  # type: ignore[arg-type]


def final_weights(path: Path) -> dict[str, Tensor]:
    return checkpoint.load(path, dtype=torch.float32).state_dict()


def test_the_whole_training_from_episodes_to_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AcceleratorState._reset_state(True)
    dataset = write_dataset(tmp_path / "data")
    config = tiny_training(dataset, tmp_path / "run")
    path = main(config)
    model = checkpoint.load(path, dtype=torch.float32)
    assert model.config.frame_shape == (16, 16, 3) and model.config.num_actions == NUM_ACTIONS
    assert model.config.diffusion.clean_prefix_probability == 0.25
    for stage in ("tokenizer", "world_model"):
        assert list((tmp_path / "run" / "tensorboard" / stage).glob("events.*"))
    latents = model.tokenizer.encode(spaced_frames(EpisodeDataset(dataset), 1000))
    assert 0.5 < float(latents.std()) < 1.5  # calibrated

    # The same run, killed inside each of its two stages and started again.
    train_step, steps = Trainer._train_step, []

    def killed(self: Trainer) -> dict[str, float]:
        steps.append(self.step)
        if len(steps) in (4, 8):
            raise KilledError
        return train_step(self)

    monkeypatch.setattr(Trainer, "_train_step", killed)
    other = tiny_training(dataset, tmp_path / "killed")
    for _ in range(2):
        with pytest.raises(KilledError):
            main(other)
    assert main(other) == tmp_path / "killed" / "checkpoint"
    assert steps == [0, 1, 2, 3] + [2, 3] + [0, 1] + [0, 1, 2, 3, 4, 5]
    assert_equal(final_weights(tmp_path / "killed" / "checkpoint"), final_weights(path))

    # What it did not train on stays held out where episodes are added.
    kept = tmp_path / "run" / "held_out.json"
    (name,) = json.loads(kept.read_text())
    # Also where its folder has another path now; and where other folders are beside it.
    index = EpisodeDataset(dataset).names.index(name)
    for source in (
        *("/elsewhere" + str(dataset), str(dataset).lstrip("/"), f"{dataset}/data"),
        *(f".{dataset}", f"{dataset}/", f"{dataset}/../{dataset.name}/data/"),
    ):
        moved = [f"episode {i} of {source}" for i in range(6)]
        assert np.flatnonzero(are_held_out(moved, kept)).tolist() == [index]
    assert not are_held_out([f"episode {index} of {dataset}2"], kept).any()
    # Another folder whose path ends alike is another one where both are there.
    alike = [f"episode {index} of {source}" for source in (dataset, "/elsewhere" + str(dataset))]
    assert are_held_out(alike, kept).tolist() == [True, False]
    both = [dataset, write_dataset(tmp_path / "more", num_episodes=20, seed=1)]
    train, held_out = held_out_of(EpisodeDataset(both), kept)
    assert held_out.names == [name] and len(train) == 25 and name not in train.names
    with pytest.raises(ValueError, match=r"none of the episodes that .*held_out.json holds out"):
        held_out_of(EpisodeDataset(both[1]), kept)
    # By whatever path: it is the folder that was trained on.
    for name in (str(dataset), str(dataset / "data"), str(dataset / ".." / dataset.name)):
        config_to_ship = ShipConfig(checkpoint=path, name="x", dataset=(name,))
        with pytest.raises(ValueError, match="was trained on: take contexts from other episodes"):
            choose_contexts(config_to_ship)
    with pytest.raises(ValueError, match=r"one episode cannot be split.*--validation-dataset"):
        held_out_of(EpisodeDataset(both).select([0]), tmp_path / "none.json")

    # The same output is not for another run, but for the same one with other rates.
    with pytest.raises(ValueError, match=r"holds a run with another config .*dream_signal"):
        main(dataclasses.replace(config, dream_signal=0.5))
    slower = DynamicsTraining(optimizer=OptimizerConfig(steps=6, learning_rate=1e-5))
    main(dataclasses.replace(config, dynamics=dataclasses.replace(slower, curriculum=((8, 1.0),))))

    # Trained further from that checkpoint, the tokenizer stays as it is, and so does the noise.
    further = tiny_training(
        dataset, tmp_path / "further", init=str(path), diffusion=DiffusionForcingConfig()
    )
    again = final_weights(main(further))
    assert checkpoint.load_config(tmp_path / "further" / "checkpoint") == model.config
    metadata = checkpoint.load_metadata(tmp_path / "further" / "checkpoint")
    assert metadata["frames_seen"] == (6 + 6) * 16 and metadata["continued_from"] == str(path)
    # It learned from this dataset before; another one counts on top.
    once = {str(dataset): {"episodes": 5, "frames": 100}}
    assert metadata["learned_from"] == once
    other_data = write_dataset(tmp_path / "other", num_episodes=4)
    last = main(tiny_training(other_data, tmp_path / "last", init=str(path)))
    more = {str(other_data): {"episodes": 3, "frames": 60}}
    assert checkpoint.load_metadata(last)["learned_from"] == once | more
    for name, t in final_weights(path).items():
        if name.startswith("tokenizer"):
            assert torch.equal(t, again[name]), name
        elif t.ndim == 2:
            assert not torch.equal(t, again[name]), name
    # It has all that a dream needs.
    contexts = checkpoint.load_contexts(path)
    assert contexts.frames.shape == (8, 20, 16, 16, 3)
    envs = gymnasium.make_vec("worldsim/Dream-v0", num_envs=2, world_model=str(path), horizon=4)
    envs.reset(seed=0)


def test_what_dynamics_has_learned_from_is_not_trained_further(tmp_path: Path) -> None:
    AcceleratorState._reset_state(True)
    dataset = write_dataset(tmp_path / "data")
    config = tiny_training(dataset, tmp_path / "run")
    weights = final_weights(main(config))
    further = dataclasses.replace(
        config.tokenizer_training,
        optimizer=dataclasses.replace(config.tokenizer_training.optimizer, steps=8),
    )
    with pytest.raises(ValueError, match=r"another config \(tokenizer_training: "):
        main(dataclasses.replace(config, tokenizer_training=further))
    # More episodes have come: the tokenizer stays calibrated as it was.
    write_dataset(tmp_path / "data", num_episodes=9)
    longer = dataclasses.replace(
        config.dynamics, optimizer=dataclasses.replace(config.dynamics.optimizer, steps=8)
    )
    more = final_weights(main(dataclasses.replace(config, dynamics=longer)))
    kept = {name for name in weights if torch.equal(weights[name], more[name])}
    assert {name for name in weights if name.startswith("tokenizer.")} <= kept
    assert any(name not in kept for name in weights)


def test_what_cannot_be_trained_on_is_told_at_once(tmp_path: Path) -> None:
    AcceleratorState._reset_state(True)
    config = tiny_training(write_dataset(tmp_path / "data"), tmp_path / "run")
    checkpoint.save(tiny_model(), tmp_path / "model")
    frames = write_dataset(tmp_path / "frames", size=64)
    for name, value in (("reward_limit", 6.5), ("tokenizer", TokenizerConfig(channels=(8, 16)))):
        other = dataclasses.replace(
            TrainConfig(dataset=(str(frames),), init=str(tmp_path / "model")),
            output=tmp_path / "run",
            **{"precision": "no", "device": "cpu", name: value},  # type: ignore[arg-type]
        )
        with pytest.raises(ValueError, match=rf"model keeps its {name}: leave --.* out"):
            main(other)
    poses = dataclasses.replace(config.pose, field_of_view=33.0)
    told = tiny_model(pose=poses)
    checkpoint.save(told, tmp_path / "told")
    with pytest.raises(ValueError, match="told is told poses from outside"):
        main(dataclasses.replace(other, init=str(tmp_path / "told")))
    for changes, message in (
        ({"pose": poses}, "pose settings are of odometry: give --odometry"),
        (
            {"dataset": (str(frames),), "tokenizer_of": str(tmp_path / "model")},
            "model has another tokenizer, which is taken as it is: leave --tokenizer out",
        ),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"precision": "fp8"}, "precision must be auto, bf16 or no, got 'fp8'"),
    ):
        with pytest.raises(ValueError, match=message):
            main(dataclasses.replace(config, **changes))  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_settings_that_a_continued_model_does_not_take_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = TrainConfig(init="kept", reward_limit=7.0)  # that of a preset
    model = WorldModelConfig(num_actions=4, backbone=config.backbone)
    check_kept_settings(config, model)
    assert "kept keeps its own pose, reward_limit\n" in capsys.readouterr().out


def test_training_settings_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"optimizer.steps must be at least 0, got -3"):
        OptimizerConfig(steps=-3)
    with pytest.raises(ValueError, match="frames_per_step must be at least 1, got 0"):
        DynamicsTraining(frames_per_step=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        TokenizerTraining(batch_size=0)
    with pytest.raises(ValueError, match=r"ppo.batch_size must be at least 2, got 0"):
        PPOConfig(batch_size=0)


def test_frames_that_were_trained_on_are_those_of_whole_segments() -> None:
    training = DynamicsTraining(
        optimizer=OptimizerConfig(steps=4), frames_per_step=100, curriculum=((30, 0.5), (64, 0.5))
    )
    assert [training.frames_until(step) for step in range(5)] == [0, 90, 180, 244, 308]


def test_a_bare_checkpoint_can_be_shipped(tmp_path: Path) -> None:
    checkpoint.save(tiny_model(), tmp_path / "bare", contexts=tiny_contexts())
    ship = ShipConfig(checkpoint=tmp_path / "bare", name="mine", output=tmp_path / "shipped")
    path = ship_main(ship)
    card = (path / "README.md").read_text()
    assert "# mine" in card and "frames seen" not in card
    with pytest.raises(FileNotFoundError):
        ship_main(dataclasses.replace(ship, evaluation=tmp_path / "nowhere.json"))
    assert (path / "README.md").read_text() == card


def test_a_model_that_finds_poses_is_trained_on_the_tokenizer_of_another(tmp_path: Path) -> None:
    AcceleratorState._reset_state(True)
    dataset = write_dataset(tmp_path / "data", poses=True)
    first = main(tiny_training(dataset, tmp_path / "first"))
    stretched = DynamicsTraining(
        optimizer=OptimizerConfig(steps=6, warmup_steps=1),
        frames_per_step=16,
        curriculum=((8, 0.5), (16, 0.5)),
        longest_stretches=(1, 16),
    )
    second = tiny_training(
        dataset,
        tmp_path / "second",
        tokenizer_of=str(first),
        odometry=True,
        odometry_training=OdometryTraining(optimizer=OptimizerConfig(steps=4), batch_size=2),
        dynamics=stretched,
    )
    path = main(second)
    assert list((tmp_path / "second" / "tensorboard" / "odometry").glob("events.*"))
    model = checkpoint.load(path, dtype=torch.float32)
    assert model.odometry is not None and not (tmp_path / "second" / "tokenizer").exists()
    taken = final_weights(first)
    for name, t in final_weights(path).items():
        if name.startswith("tokenizer"):
            assert torch.equal(t, taken[name]), name
    taken_odometry = final_weights(path)["odometry.after.2.bias"]
    # Trained further, the odometry stays as it is.
    further = final_weights(main(tiny_training(dataset, tmp_path / "further", init=str(path))))
    for name, t in final_weights(path).items():
        fixed = name.startswith(("tokenizer", "odometry")) or name.endswith("frequencies")
        assert torch.equal(t, further[name]) == fixed, name
    # Its odometry alone can be trained further too.
    longer = dataclasses.replace(
        second,
        output=tmp_path / "longer",
        init=str(path),
        tokenizer_of=None,
        dynamics=dataclasses.replace(stretched, optimizer=OptimizerConfig(steps=0)),
    )
    moved = final_weights(main(longer))
    for name, t in final_weights(path).items():
        if not torch.equal(t, moved[name]):
            assert name.startswith("odometry"), name
    assert not torch.equal(moved["odometry.after.2.bias"], taken_odometry)
    # And longer still, which is kept too, though the dynamics have no more steps than before.
    optimizer = OptimizerConfig(steps=8)
    still_longer = dataclasses.replace(
        longer, odometry_training=OdometryTraining(optimizer=optimizer, batch_size=2)
    )
    bias = final_weights(main(still_longer))["odometry.after.2.bias"]
    assert not torch.equal(moved["odometry.after.2.bias"], bias)
    moved = final_weights(tmp_path / "longer" / "checkpoint")
    longer = still_longer
    # A run that ended before its checkpoint was written writes it when it is started again.
    shutil.rmtree(tmp_path / "longer" / "checkpoint")
    assert_equal(final_weights(main(longer)), moved)
    # Latents kept without poses are not taken for ones with.
    encoded = [
        encode_dataset(model.tokenizer, EpisodeDataset(dataset), tmp_path / "cache", poses=poses)
        for poses in (False, True, True)
    ]
    assert encoded[0].poses is None
    for episodes in encoded[1:]:
        assert episodes.poses is not None and episodes.poses.shape == (6 * 20, 3)
        assert torch.equal(episodes.actions, encoded[0].actions)

    with pytest.raises(ValueError, match="has no odometry"):
        main(tiny_training(dataset, tmp_path / "third", init=str(first), odometry=True))
    with pytest.raises(ValueError, match="leave tokenizer_of out"):
        main(tiny_training(dataset, tmp_path / "third", init=str(first), tokenizer_of=str(first)))
    plain = write_dataset(tmp_path / "plain")
    blind = dataclasses.replace(second, output=tmp_path / "blind", validation_dataset=(str(plain),))
    main(blind)  # where held-out episodes have no poses, odometry is not validated
    with pytest.raises(ValueError, match="have no poses"):
        main(tiny_training(plain, tmp_path / "third", odometry=True))
    other = write_dataset(tmp_path / "other", size=32)
    with pytest.raises(ValueError, match=r"is for frames \(16, 16, 3\)"):
        main(tiny_training(other, tmp_path / "fourth", tokenizer_of=str(first)))


def test_what_is_learned_from_stays_the_latents_of_one_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AcceleratorState._reset_state(True)
    dataset = write_dataset(tmp_path / "data", poses=True)
    told = OdometryTraining(optimizer=OptimizerConfig(steps=2), batch_size=2)
    config = tiny_training(dataset, tmp_path / "run", odometry=True, odometry_training=told)
    train_step, steps, last = Trainer._train_step, [], {"dynamics": 0}

    def until_last(self: Trainer) -> dict[str, float]:
        stage = "" if self.directory is None else self.directory.name
        steps.append((stage, self.step))
        if stage == "dynamics" and self.step == last[stage]:
            raise KilledError
        return train_step(self)

    monkeypatch.setattr(Trainer, "_train_step", until_last)
    with pytest.raises(KilledError):
        main(config)
    # Before the dynamics begin the tokenizer may still change; then the odometry begins anew.
    steps.clear()
    with pytest.raises(KilledError):
        main(config)
    assert not [step for stage, step in steps if stage == "odometry"]
    longer = OptimizerConfig(steps=6, muon_learning_rate=0, warmup_steps=1)
    changed = dataclasses.replace(
        config, tokenizer_training=TokenizerTraining(optimizer=longer, batch_size=4)
    )
    with pytest.raises(KilledError):
        main(changed)
    assert [step for stage, step in steps if stage == "odometry"] == [0, 1]

    # Of a tokenizer from elsewhere it is the one that it was, whatever is there by now.
    monkeypatch.undo()
    first = main(tiny_training(dataset, tmp_path / "first"))
    monkeypatch.setattr(Trainer, "_train_step", until_last)
    last["dynamics"] = 3
    taken = tiny_training(dataset, tmp_path / "taken", tokenizer_of=str(first))
    with pytest.raises(KilledError):
        main(taken)
    latents = (tmp_path / "taken/latents.safetensors").read_bytes()
    tokenizer = {n: t for n, t in final_weights(first).items() if n.startswith("tokenizer")}
    other = checkpoint.load(first, dtype=torch.float32)
    with torch.no_grad():
        for p in other.tokenizer.parameters():
            p.mul_(1.5)
    checkpoint.save(other, first)
    monkeypatch.undo()
    finished = final_weights(main(taken))
    assert (tmp_path / "taken/latents.safetensors").read_bytes() == latents
    for name, t in tokenizer.items():
        assert torch.equal(finished[name], t), name


def test_a_resumed_run_logs_every_step_once(tmp_path: Path, accelerator: Accelerator) -> None:
    config, trainer = TrainConfig(output=tmp_path), make_trainer(accelerator)
    for resumed_at, steps, value in [(0, range(1, 6), 1.0), (3, range(4, 8), 2.0)]:
        trainer.step = resumed_at
        writer = open_writer(config, "world_model", trainer)
        assert writer is not None
        for step in steps:
            writer.add_scalar("loss", value, step)
        writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "world_model"))
    events.Reload()
    logged = [(e.step, e.value) for e in events.Scalars("loss")]
    assert logged == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (7, 2)]


def test_missing_and_unfit_datasets_are_named(tmp_path: Path) -> None:
    AcceleratorState._reset_state(True)
    with pytest.raises(ValueError, match="no --dataset given"):
        main(TrainConfig())
    dataset = write_dataset(tmp_path / "data", num_episodes=2)
    with pytest.raises(
        ValueError, match=r"other has frames .64, 64, 3. and 6 actions, the dataset .16, 16, 3. and"
    ):
        path = tmp_path / "other"
        checkpoint.save(WorldModel(tiny_config()), path)  # frames of 64 x 64
        main(tiny_training(dataset, tmp_path / "run", init=str(path)))


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_places_and_a_grid_are_added_to_a_trained_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_dataset(tmp_path, poses=True)
    told = OdometryTraining(optimizer=OptimizerConfig(steps=4), batch_size=2)
    places = PlacesTraining(optimizer=OptimizerConfig(steps=6), batch_size=2)
    drawing = OccupancyTraining(optimizer=OptimizerConfig(steps=3), batch_size=2)
    config = tiny_training(dataset, tmp_path / "first", odometry=True, odometry_training=told)
    first = main(config)
    with pytest.raises(ValueError, match="give --odometry"):
        main(tiny_training(dataset, tmp_path / "no", init=str(first), grid=1.0))
    for wish in ("places", "occupancy"):  # before anything is trained
        with pytest.raises(ValueError, match="give --odometry too"):
            main(tiny_training(dataset, tmp_path / wish, **{wish: True}))
        assert not (tmp_path / wish).exists()
    more = tiny_training(
        dataset,
        tmp_path / "second",
        init=str(first),
        odometry=True,
        odometry_training=told,
        grid=1.0,
        places=True,
        places_training=places,
        occupancy=True,
        occupancy_training=drawing,
    )
    still = dataclasses.replace(more.dynamics.optimizer, steps=0)
    more = dataclasses.replace(more, dynamics=dataclasses.replace(more.dynamics, optimizer=still))
    path = main(more)
    model = checkpoint.load(path)
    assert model.odometry is not None and model.odometry.grid_view is not None
    assert model.places is not None and checkpoint.load_metadata(path)["places_steps"] == 6
    assert model.places.occupancy is not None
    assert model.places.occupancy.config.cell == 1.0
    assert checkpoint.load_metadata(path)["occupancy_steps"] == 3
    for stage in ("places", "occupancy"):
        assert list((tmp_path / "second" / "tensorboard" / stage).glob("events.*"))
    before, after = final_weights(first), final_weights(path)
    for name, tensor in before.items():
        if not name.startswith("odometry"):
            assert torch.equal(tensor, after[name]), name
    # Started again it is done, and ends the same; what is there is not replaced on the way.
    replaced: list[Path] = []
    with monkeypatch.context() as patched:
        patched.setattr(train_world_model, "validate", lambda *_: replaced.append(path) or {})
        again = final_weights(main(more))
    assert all(torch.equal(tensor, again[name]) for name, tensor in after.items())
    assert not replaced
    # The model's features change when it is trained further, so its places are trained too.
    further = tiny_training(
        dataset,
        tmp_path / "third",
        init=str(path),
        places_training=places,
        occupancy_training=drawing,
    )
    third = final_weights(main(further))
    for name in ("places.query.weight", "places.occupancy.cell_in.weight"):
        assert not torch.equal(third[name], after[name])
    # So they are where the same run goes on to more steps.
    steps = further.dynamics.optimizer.steps + 2
    optimizer = dataclasses.replace(further.dynamics.optimizer, steps=steps)
    longer = dataclasses.replace(further.dynamics, optimizer=optimizer)
    fourth = final_weights(main(dataclasses.replace(further, dynamics=longer)))
    for name in ("places.query.weight", "places.occupancy.cell_in.weight"):
        assert not torch.equal(fourth[name], third[name])
    # A map alone is added to what stays as it is; it needs no rewards.
    unpaid = write_dataset(tmp_path / "unpaid", poses=True, paid_action=-1)
    with_places = main(dataclasses.replace(more, occupancy=False, output=tmp_path / "places"))
    assert checkpoint.load(with_places).places.occupancy is None  # type: ignore[union-attr]
    alone = dataclasses.replace(
        more,
        dataset=(str(unpaid),),
        init=str(with_places),
        odometry=False,
        grid=0.0,
        places=False,
        output=tmp_path / "map",
    )
    kept, mapped = final_weights(with_places), final_weights(main(alone))
    assert all(torch.equal(tensor, mapped[name]) for name, tensor in kept.items())
    assert "places.occupancy.cell_in.weight" in mapped
    # While such a run is started again, what it has made before stays.
    monkeypatch.setattr(train_world_model, "train_where_to_go", interrupt)
    with pytest.raises(KeyboardInterrupt):
        main(alone)
    assert_equal(final_weights(tmp_path / "map/checkpoint"), mapped)


@pytest.mark.parametrize("name", presets())
def test_parts_of_a_preset_fit_together(name: str) -> None:
    config = presets()[name][1]
    with torch.device("meta"):
        model = new_model(config, (64, 64, 3), 6)
    for length, _ in config.dynamics.curriculum:
        assert length <= config.dynamics.frames_per_step
    assert (model.odometry is not None) == config.odometry


def test_every_step_is_at_the_rate_of_the_schedule(accelerator: Accelerator) -> None:
    trainer = make_trainer(accelerator, config=training(steps=8))
    rates = []
    for step, _ in enumerate(trainer.run()):
        rates.append(trainer.config.rate(step))
        for optimizer in trainer._optimizers:
            for group in optimizer.param_groups:
                assert group["lr"] == pytest.approx(group["initial_lr"] * rates[-1])
    assert min(rates) < 0.6 and max(rates) == 1


def test_training_cuts_segments_as_it_is_told(accelerator: Accelerator) -> None:
    config = DynamicsTraining(
        optimizer=OptimizerConfig(steps=10),
        frames_per_step=32,
        curriculum=((4, 0.5), (8, 0.5)),
        longest_stretches=(1, 8),
    )
    model = tiny_model(pose=PoseConfig(), odometry=OdometryConfig(hidden=16))
    recorded = episodes()
    recorded.poses = torch.zeros(recorded.num_frames, 3)
    led: list[Tensor] = []

    def wrapped(*batch: Tensor) -> Losses:
        led.append(batch[1])
        return model(*batch)

    with torch.no_grad():
        dynamics_loss(recorded, config, model, accelerator)(wrapped, 0)  # type: ignore[arg-type]
    assert (led[0] == NUM_ACTIONS).float().mean() > 0.7  # whole segments: a quarter at most
