"""Training on what the model itself dreams, so that it copes with its own mistakes.

A dream is built on dreamed frames, and those are not what a model learns from: small errors add up,
and heads that have only read real frames do not recognise what is dreamed. So segments of real
frames are made to end in the model's own dream under the recorded actions, while all that is to be
predicted stays as recorded: dataset aggregation (Ross et al. 2011, arXiv 1011.0686) for sequences
(scheduled sampling, Bengio et al. 2015, arXiv 1506.03099). No gradient goes through the dreaming.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from worldsim.cuda_graphs import replay

if TYPE_CHECKING:
    from worldsim.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class OwnDreams:
    """How much of the training is on own dreams."""

    share: float = 0.0
    """Share of the steps whose segments end in the model's own dream."""
    begin: float = 0.5
    """Share of all steps that come before the first of them: a new model dreams nothing useful."""
    context: int = 96
    """Real frames that such a segment begins with."""
    length: int = 32
    """Frames dreamed after them, one after the other, which takes as long as in any dream."""

    def __post_init__(self) -> None:
        for name, value in (("share", self.share), ("begin", self.begin)):
            if not 0 <= value <= 1:
                raise ValueError(f"own_dreams.{name} is {value}; it must be 0 to 1")
        for name, value in (("context", self.context), ("length", self.length)):
            if value < 1:
                raise ValueError(f"own_dreams.{name} is {value}; it must be 1 or more")


class DreamNoise(NamedTuple):
    """What is drawn for the dreamed end of segments."""

    noise: Tensor  # (b, length, 2, n, c) float32, standard normal: the sampler's, the commit's
    shown: Tensor  # (b, length) bool, whether the dreamed frame is shown, as in a dream
    signal: Tensor  # (b, length) float32 levels of recorded frames where it is not


def draw_dream_noise(
    batch_size: int, length: int, model: WorldModel, generator: torch.Generator
) -> DreamNoise:
    """Draw for dreams of `length` frames, every second of which is shown, on average.

    What is drawn lies on the generator's device.
    """
    draw: dict[str, Any] = {"generator": generator, "device": generator.device}
    levels = torch.rand(batch_size, length, **draw)
    return DreamNoise(
        torch.randn(batch_size, length, *model.noise_shape, **draw),
        torch.rand(batch_size, length, **draw) < 0.5,
        levels**model.config.diffusion.level_power,
    )


@contextlib.contextmanager
def as_in_dreams(model: WorldModel) -> Iterator[None]:
    """Dream as outside of training, in which DFoT sees both ways and not its memory.

    Places are left out: they follow every frame, and no dreamed frame depends on them where it is
    told where it stands.
    """
    backbone, places = model.denoiser.backbone, model.places
    training = backbone.training
    backbone.eval()
    model.places = None
    try:
        yield
    finally:
        model.places = places
        backbone.train(training)


@torch.no_grad()
def end_in_dreams(
    model: WorldModel,
    latents: Tensor,
    actions: Tensor,
    poses: Tensor,
    signal: Tensor,
    drawn: DreamNoise,
) -> tuple[Tensor, Tensor]:
    """Dream the end of recorded segments.

    Args:
        model: the world model. Its odometry, if it has one, is not asked: true poses are told.
        latents: (b, t, n, c) recorded.
        actions: (b, t) int64. poses: (b, t, 3), used by a model with poses only.
        signal: (b, t) levels of the frames.
        drawn: for the last frames of each segment.

    Returns:
        The latents to show (b, t, n, c), dreamed ones at the end, and their signal levels (b, t).
    """
    context = latents.shape[1] - drawn.signal.shape[1]
    past, end = latents[:, :context], latents[:, context:]
    told = model.told(actions, poses)
    led = told if model.odometry is None else actions
    clean = torch.ones(past.shape[:2], device=latents.device)
    with as_in_dreams(model):
        state, _ = model.commit(
            model.initial_state(len(latents)),
            led[:, :context],
            past,
            clean,
            (past, told[:, :context]),
        )
        dreamed = []
        step: Any = model.imagine_latents
        if model.cuda_graphs is not None:
            step = functools.partial(replay, model.cuda_graphs, step, key="own dreams")
        for i, noise in enumerate(drawn.noise.unbind(1), start=context):
            state, x, _ = step(state, led[:, i], told[:, i : i + 1], noise)
            dreamed.append(x)
    shown = drawn.shown
    end = torch.where(shown[..., None, None], torch.cat(dreamed, dim=1), end)
    level = drawn.signal.masked_fill(shown, model.config.dream_signal)
    return torch.cat([past, end], dim=1), torch.cat([signal[:, :context], level], dim=1)
