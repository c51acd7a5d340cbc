"""Own dreams in training: they are the model's dreams, shown in place of what is to be learned."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tiny import tiny_contexts, tiny_model
from torch import Tensor

from worldsim.latents import LatentBatch, LatentEpisodes
from worldsim.odometry import OdometryConfig
from worldsim.own_dreams import DreamNoise, OwnDreams, draw_dream_noise, end_in_dreams
from worldsim.places import PlacesConfig
from worldsim.pose import PoseConfig, relative_poses
from worldsim.training import dynamics_loss
from worldsim.training_config import DynamicsTraining, OptimizerConfig
from worldsim.world_model import WorldModel

CONTEXT, LENGTH = 5, 4


def segments(model: WorldModel) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, actions and poses of two segments."""
    contexts = tiny_contexts(2, CONTEXT + LENGTH, 0)
    latents = model.encode(torch.from_numpy(contexts.frames))
    poses = torch.randn(2, CONTEXT + LENGTH, 3, generator=torch.Generator().manual_seed(1))
    return latents, torch.from_numpy(contexts.actions), poses


def drawn(model: WorldModel, shown: bool | None = None) -> DreamNoise:
    draws = draw_dream_noise(2, LENGTH, model, torch.Generator().manual_seed(2))
    return draws if shown is None else draws._replace(shown=torch.full_like(draws.shown, shown))


def end(model: WorldModel, draws: DreamNoise) -> tuple[Tensor, Tensor, Tensor]:
    """What is shown, at which levels, and what was recorded."""
    latents, actions, poses = segments(model)
    signal = torch.linspace(0, 1, latents.shape[1]).expand(2, -1)
    return *end_in_dreams(model, latents, actions, poses, signal, draws), latents


@pytest.mark.parametrize("num_denoising_steps", [1, 3])
def test_segments_end_in_what_the_model_would_dream(num_denoising_steps: int) -> None:
    model = tiny_model(num_denoising_steps=num_denoising_steps)
    draws = drawn(model, shown=True)
    seen, signal, latents = end(model, draws)
    _, actions, _ = segments(model)
    state, _ = model.observe_latents(
        model.initial_state(2), actions[:, :CONTEXT], latents[:, :CONTEXT]
    )
    for i in range(LENGTH):
        dream = model.imagine(state, actions[:, CONTEXT + i], noise=draws.noise[:, i])
        state = dream.state
        assert torch.equal(model.decode(seen[:, CONTEXT + i]), dream.frame)
    assert torch.equal(seen[:, :CONTEXT], latents[:, :CONTEXT])
    assert not torch.equal(seen[:, CONTEXT:], latents[:, CONTEXT:])
    assert (signal[:, CONTEXT:] == model.config.dream_signal).all()
    assert torch.equal(signal[0, :CONTEXT], torch.linspace(0, 1, CONTEXT + LENGTH)[:CONTEXT])


def test_frames_that_are_not_shown_are_recorded_ones_under_noise() -> None:
    model = tiny_model()
    draws = drawn(model)
    seen, signal, latents = end(model, draws)
    assert draws.shown.any() and not draws.shown.all()
    hidden = ~draws.shown
    assert torch.equal(seen[:, CONTEXT:][hidden], latents[:, CONTEXT:][hidden])
    assert torch.equal(signal[:, CONTEXT:][hidden], draws.signal[hidden])
    assert not torch.equal(seen[:, CONTEXT:][draws.shown], latents[:, CONTEXT:][draws.shown])


@pytest.mark.parametrize("odometry", [False, True])
def test_dreams_are_dreamed_at_true_poses(odometry: bool) -> None:
    found = OdometryConfig(hidden=16) if odometry else None
    model = tiny_model(pose=PoseConfig(), odometry=found, num_denoising_steps=1)
    draws = drawn(model, shown=True)
    told = []
    denoise = model.denoise

    def spy(state: object, poses: Tensor, *rest: object) -> Tensor:
        told.append(poses)
        return denoise(state, poses, *rest)  # type: ignore[arg-type]

    with mock.patch.object(model, "denoise", spy):
        end(model, draws)
    poses = segments(model)[2]
    expected = relative_poses(poses) if odometry else poses
    assert torch.equal(torch.cat(told, dim=1), expected[:, CONTEXT:])


def test_places_are_left_out_of_dreams_and_there_again_after() -> None:
    model = tiny_model(
        pose=PoseConfig(), odometry=OdometryConfig(hidden=16), places=PlacesConfig(slots=4)
    )
    places, draws = model.places, drawn(model)
    assert places is not None
    expected = end(model.reconfigured(places=None), draws)
    with mock.patch.object(type(places), "forward", side_effect=AssertionError):
        for mine, its in zip(end(model, draws), expected, strict=True):
            assert torch.equal(mine, its)
        assert model.places is places
        with (
            mock.patch.object(model, "commit", side_effect=KeyboardInterrupt),
            pytest.raises(KeyboardInterrupt),
        ):
            end(model, draws)
    assert model.places is places


def test_dreams_before_a_step_in_half_precision_take_no_gradient_away() -> None:
    """Weights that autocast has rounded for dreams, without gradients, are rounded anew."""
    model, draws = tiny_model().train(), drawn(tiny_model())
    model.tokenizer.requires_grad_(False)
    latents, actions, poses = segments(model)
    signal = torch.linspace(0, 1, CONTEXT + LENGTH).expand(2, -1)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    none, mask = torch.zeros(2, CONTEXT + LENGTH), torch.ones(2, CONTEXT + LENGTH).bool()
    half = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    gradients = []
    for together in (True, False):
        model.zero_grad(set_to_none=True)
        with half() if together else contextlib.nullcontext():
            with contextlib.nullcontext() if together else half():
                seen, levels = end_in_dreams(model, latents, actions, poses, signal, draws)
            with contextlib.nullcontext() if together else half():
                batch = LatentBatch(latents, actions, poses, none, none.bool(), none, none + 1)
                losses = model(*batch, noise, levels, mask, seen)
        sum(losses.values()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert all(gradient is not None for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"share": 1.5}, "own_dreams.share is 1.5; it must be 0 to 1"),
        ({"begin": -1.0}, "own_dreams.begin is -1.0"),
        ({"context": 0}, "own_dreams.context is 0; it must be 1 or more"),
        ({"length": 0}, "own_dreams.length is 0"),
    ],
)
def test_impossible_settings_are_named(values: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OwnDreams(**values)  # type: ignore[arg-type]


def losses_by_step(own: OwnDreams, steps: int = 6) -> list[dict[str, float]]:
    AcceleratorState._reset_state(True)
    model = tiny_model()
    actions = torch.from_numpy(np.random.default_rng(0).integers(3, size=80))
    latents = torch.randn(80, *model.noise_shape[1:], generator=torch.Generator().manual_seed(0))
    recorded = LatentEpisodes(
        latents.half(), actions, torch.zeros(80), torch.zeros(80).bool(), np.full(4, 20)
    )
    config = DynamicsTraining(
        optimizer=OptimizerConfig(steps=steps),
        frames_per_step=16,
        curriculum=((8, 1.0),),
        own_dreams=own,
    )
    loss = dynamics_loss(recorded, config, model, Accelerator(cpu=True, mixed_precision="no"))
    with torch.no_grad():
        return [{k: float(v) for k, v in loss(model, step)[1].items()} for step in range(steps)]


def test_they_begin_late_and_change_nothing_before() -> None:
    own = OwnDreams(share=1.0, begin=0.5, context=6, length=2)
    without, late = losses_by_step(dataclasses.replace(own, share=0.0)), losses_by_step(own)
    with_all = losses_by_step(dataclasses.replace(own, begin=0.0))
    assert [a == b for a, b in zip(without, late, strict=True)] == [True] * 3 + [False] * 3
    assert [a == b for a, b in zip(with_all, late, strict=True)] == [False] * 3 + [True] * 3


def test_segments_longer_than_the_episodes_are_named() -> None:
    with pytest.raises(ValueError, match="segments of 21 frames; the longest episode has 20"):
        losses_by_step(OwnDreams(share=0.5, context=16, length=5))


def test_training_shows_the_dreams_at_their_levels() -> None:
    AcceleratorState._reset_state(True)
    model = tiny_model()
    latents = torch.randn(80, *model.noise_shape[1:], generator=torch.Generator().manual_seed(0))
    none = torch.zeros(80)
    recorded = LatentEpisodes(latents.half(), none.long(), none, none.bool(), np.full(4, 20))
    config = DynamicsTraining(
        optimizer=OptimizerConfig(steps=6),
        frames_per_step=16,
        curriculum=((8, 1.0),),
        own_dreams=OwnDreams(share=1.0, begin=0.0, context=6, length=2),
    )
    ends, shown = [], []

    def dream(*args: Any) -> Any:
        ends.append(end_in_dreams(*args))
        return ends[-1]

    def wrapped(*batch: Tensor) -> dict[str, Tensor]:
        shown.append(batch)
        return model(*batch)

    loss = dynamics_loss(recorded, config, model, Accelerator(cpu=True, mixed_precision="no"))
    with torch.no_grad(), mock.patch("worldsim.training.end_in_dreams", dream):
        loss(wrapped, 0)  # type: ignore[arg-type]
    (seen, signal), batch = ends[0], shown[0]  # 7 of LatentBatch, noise, signal, mask, seen
    assert len(batch) == 11 and torch.equal(batch[10], seen) and torch.equal(batch[8], signal)
