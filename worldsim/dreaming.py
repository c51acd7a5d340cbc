"""How a world model dreams: a frame is denoised against frozen memory and then committed once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from worldsim.checks import check_noise
from worldsim.cuda_graphs import replay
from worldsim.diffusion import add_noise, sample
from worldsim.state import WorldState

if TYPE_CHECKING:
    from worldsim.world_model import WorldModel


class Dream(NamedTuple):
    """One imagined step of a batch."""

    state: WorldState
    frame: Tensor  # (b, h, w, c) uint8
    reward: Tensor  # (b,) float32, expected reward
    terminated: Tensor  # (b,) bool


class Dreaming(nn.Module):
    """The part of a `WorldModel` that dreams."""

    @torch.no_grad()
    def imagine(
        self,
        state: WorldState,
        actions: Tensor,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        num_denoising_steps: int | None = None,
        decode: bool = True,
    ) -> Dream:
        """Dream the next frame of every env.

        Args:
            state: memory of a batch of envs; left unchanged.
            actions: (b,) int64.
            generator: draws the noise where `noise` is not given.
            noise: (b, *noise_shape) float32, fixes the dream of each env by itself.
            num_denoising_steps: overrides the config's.
            decode: False leaves the frame black and saves its decoding.

        Returns:
            New state, frames uint8 (b, h, w, c), expected rewards and terminations (b,).

        Raises:
            ValueError: actions or noise of a wrong shape, dtype or range.
        """
        b, model = state.batch_size, cast("WorldModel", self)
        model._check_actions(actions, (b,))
        if noise is None:
            noise = torch.randn(b, *model.noise_shape, generator=generator, device=model.device)
        check_noise(noise, (b, *model.noise_shape))
        if num_denoising_steps is None:
            num_denoising_steps = model.config.num_denoising_steps
        if model.cuda_graphs is None:
            return self._imagine(num_denoising_steps, decode, state, actions, noise)
        step = functools.partial(self._imagine, num_denoising_steps, decode)
        key = ("imagine", num_denoising_steps, decode, model.compute_dtype)
        return Dream(*replay(model.cuda_graphs, step, state, actions, noise, key=key))

    def _imagine(
        self, steps: int, decode: bool, state: WorldState, actions: Tensor, noise: Tensor
    ) -> Dream:
        """`imagine` with all arguments, checked; waits for nothing on the device."""
        b, model = len(actions), cast("WorldModel", self)
        new_state, latents, features = self.imagine_latents(
            state, actions, model.tell(state, actions), noise, steps
        )
        if decode:
            frames = model.decode(latents)[:, 0]
        else:
            frames = torch.zeros(
                b, *model.config.frame_shape, dtype=torch.uint8, device=model.device
            )
        return Dream(
            new_state,
            frames,
            model.predict_reward(features[:, 0]),
            model.predict_termination(features[:, 0]) > 0.5,
        )

    @torch.no_grad()
    def imagine_latents(
        self,
        state: WorldState,
        actions: Tensor,
        told: Tensor,
        noise: Tensor,
        num_denoising_steps: int | None = None,
    ) -> tuple[WorldState, Tensor, Tensor]:
        """`imagine` before decoding and heads, where the network may be told what is known better.

        Args:
            state, actions, noise, num_denoising_steps: as for `imagine`.
            told: (b, 1) actions or (b, 1, 3) poses, as from `tell`.

        Returns:
            New state, latents (b, 1, n, c) and features (b, 1, d) of the dreamed frame.
        """
        model = cast("WorldModel", self)

        def denoise(z: Tensor, level: float) -> Tensor:
            return model.denoise(state, told, z, level)

        if num_denoising_steps is None:
            num_denoising_steps = model.config.num_denoising_steps
        latents = sample(denoise, noise[:, :1], num_denoising_steps)
        signal = torch.full(told.shape[:2], model.config.dream_signal, device=model.device)
        z = add_noise(latents, noise[:, 1:], signal)
        state, features = model.commit(state, actions[:, None], z, signal, (latents, told))
        return state, latents, features

    @torch.no_grad()
    def dream(
        self,
        state: WorldState,
        actions: Tensor,
        *,
        generator: torch.Generator | None = None,
        num_denoising_steps: int | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> tuple[Tensor, Tensor]:
        """Open-loop rollout under given actions.

        Args:
            state, generator, num_denoising_steps: as for `imagine`.
            actions: (b, t) int64.
            progress: called with (steps done, steps in all).

        Returns:
            Frames (b, t, h, w, c) uint8 and expected rewards (b, t).
        """
        frames, rewards = [], []
        for step, a in enumerate(actions.unbind(1), start=1):
            dream = self.imagine(
                state, a, generator=generator, num_denoising_steps=num_denoising_steps
            )
            state = dream.state
            frames.append(dream.frame)
            rewards.append(dream.reward)
            progress(step, actions.shape[1])
        return torch.stack(frames, 1), torch.stack(rewards, 1)
