"""The world model: loss on recorded segments, `observe` real frames, `imagine` the next one.

A frame is a grid of latent tokens. The denoiser sees noised tokens, their signal level, the action
that led to the frame and the memory of all earlier frames. To imagine, the frame is denoised
against frozen memory in a few steps and then committed to memory once. A read-out pools the tokens
of a committed frame; reward, termination and the behaviour policy are predicted from it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from worldsim.backbone import Memory
from worldsim.checks import check_actions, check_frames
from worldsim.cuda_graphs import replay
from worldsim.denoiser import Denoiser
from worldsim.diffusion import add_noise, diffusion_loss
from worldsim.dreaming import Dreaming
from worldsim.execution import Execution
from worldsim.heads import Heads
from worldsim.layers import memory_of_backbone
from worldsim.occupancy import CELLS, Occupancy
from worldsim.odometry import ORIGIN, Odometry, standing
from worldsim.places import Places, place_in
from worldsim.pose import compose, inverse, relative_poses
from worldsim.state import WorldState
from worldsim.tokenizer import Tokenizer
from worldsim.world_model_config import WorldModelConfig


class WorldModel(Dreaming, Execution, Heads):
    """Tokenizer, denoiser and heads.

    What is predicted from a frame is in `worldsim.heads`, how it runs in `worldsim.execution`, how
    it dreams in `worldsim.dreaming`.

    Raises:
        ValueError: odometry without poses, places without odometry, or sizes that do not fit.
    """

    def __init__(self, config: WorldModelConfig) -> None:
        d = config.backbone.d_model
        super().__init__(d, config.num_actions, config.reward_bins, config.reward_limit)
        self.config = config
        self.tokenizer = Tokenizer(config.tokenizer)
        self.denoiser = Denoiser(
            config.num_actions,
            config.tokenizer,
            config.backbone,
            config.pose,
            config.latent_patch,
        )
        size = math.prod(config.tokenizer.latent_shape)
        self.odometry: Odometry | None = None
        if config.odometry is not None:
            if config.pose is None:
                raise ValueError("odometry finds poses: set pose too (PoseConfig)")
            self.odometry = Odometry(config.num_actions, size, config.odometry)
        self.places: Places | None = None
        if config.places is not None:
            if self.odometry is None:
                raise ValueError("places are kept where odometry says: set odometry too")
            self.places = Places(config.num_actions, size, d, config.places)

    @property
    def occupancy(self) -> Occupancy | None:
        """The map that the model draws, if it does."""
        return None if self.places is None else self.places.occupancy

    @property
    def told_poses(self) -> bool:
        """Whether the model takes poses wherever it asks for actions."""
        return self.config.pose is not None and self.odometry is None

    @property
    def no_action(self) -> int:
        """The token for "no action led here": the first frame of an episode."""
        return self.config.num_actions

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Per-env shape of the noise behind one dreamed frame: the sampler's and the commit's."""
        return 2, *self.config.tokenizer.latent_shape

    def initial_state(self, batch_size: int) -> WorldState:
        """Memory of nothing, for `batch_size` envs."""
        memory = self.denoiser.backbone.initial_state(batch_size)
        if self.odometry is not None:
            memory |= self.odometry.initial_memory(batch_size)
        if self.places is not None:
            memory |= self.places.initial_memory(batch_size)
        return WorldState(
            memory,
            torch.zeros(batch_size, dtype=torch.int64, device=self.device),
            torch.zeros(batch_size, self.config.num_features, device=self.device),
        )

    def forward(
        self,
        latents: Tensor,
        actions: Tensor,
        poses: Tensor,
        rewards: Tensor,
        terminated: Tensor,
        returns: Tensor,
        return_weights: Tensor,
        noise: Tensor,
        signal: Tensor,
        mask: Tensor,
        seen: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Training losses of segments, each a mean over segments of a mean over frames.

        Args:
            latents: (b, t, n, c) float32 from `tokenizer.encode`.
            actions: (b, t) int64, "no action" where what came before is not known.
            poses: (b, t, 3) float32, used by a model with poses only.
            rewards: (b, t) float32. terminated: (b, t) bool.
            returns: (b, t) float32 discounted rewards that followed each frame.
            return_weights: (b, t) float32, how much of each return was recorded.
            noise: like latents, standard normal.
            signal, mask: (b, t) from `sample_signal_levels`.
            seen: like latents, what is shown in their place where that is not what is to be
                predicted: own dreams.

        Returns:
            Scalars "diffusion", "reward", "termination", "policy", "value".
        """
        state = self.initial_state(latents.shape[0])
        z = add_noise(latents if seen is None else seen, noise, signal)
        told, memory = self.told(actions, poses), memory_of_backbone(state.memory)
        prediction, tokens, _ = self.denoiser(z, signal, told, memory, state.steps)
        losses = self.head_losses(
            self.read_out(tokens),
            actions,
            rewards,
            terminated,
            returns,
            return_weights,
            signal.square(),
        )
        return {"diffusion": diffusion_loss(prediction, latents, mask)} | losses

    def told(self, actions: Tensor, poses: Tensor) -> Tensor:
        """What the network is told of recorded frames: actions (b, t) or poses (b, t, 3)."""
        if self.config.pose is None:
            return actions
        return poses if self.odometry is None else relative_poses(poses)

    def predict_policy(self, features: Tensor, walking: bool = True) -> Tensor:
        """Logits of the recorded behaviour's next action: (..., d) to (..., num_actions).

        With places, of the behaviour that goes where the next reward is expected, unless it is not
        to be `walking`.
        """
        head = self.behaviour_head if walking else self.policy_head
        return head(features[..., : head[0].in_features]).float()

    @property
    def behaviour_head(self) -> nn.Sequential:
        """What `predict_policy` asks: of features (..., num_features)."""
        return self.policy_head if self.places is None else self.places.walk

    def place_told(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Where features (..., d) of a model with places expect the next reward: see `place_in`."""
        assert self.config.places is not None
        return place_in(features, self.config.places)

    def _check_actions(self, actions: Tensor, shape: tuple[int, ...]) -> None:
        check_actions(actions, shape, self.no_action, told_poses=self.told_poses)

    @torch.no_grad()
    def observe(
        self, state: WorldState, actions: Tensor, frames: Tensor, chunk: int = 64
    ) -> WorldState:
        """Commit real frames to memory; many at once equals one by one.

        Args:
            state: memory before the first frame.
            actions: (b, t) int64, `actions[:, i]` led to `frames[:, i]`; `no_action` for the first
                frame of an episode.
            frames: (b, t, h, w, c) uint8.
            chunk: frames processed in parallel; bounds the working memory, never the result.

        Raises:
            ValueError: actions or frames of a wrong shape, dtype or range.
        """
        check_frames(frames, state.batch_size)
        self._check_actions(actions, tuple(frames.shape[:2]))
        if self.cuda_graphs is not None and frames.shape[1] == 1:
            key = ("observe", self.compute_dtype)
            return replay(self.cuda_graphs, self._observe_one, state, actions, frames, key=key)[0]
        latents = torch.cat([self.encode(part) for part in frames.split(chunk, dim=1)], dim=1)
        return self.observe_latents(state, actions, latents, chunk)[0]

    def _observe_one(
        self, state: WorldState, actions: Tensor, frames: Tensor
    ) -> tuple[WorldState, Tensor]:
        """`observe` for one frame each, checked, and its features; waits for nothing."""
        return self.observe_latents(state, actions, self.encode(frames))

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (..., h, w, c) uint8 to latent tokens (..., n, latent_channels) float32."""
        with self._autocast():
            return self.tokenizer.encode(frames)

    def decode(self, latents: Tensor) -> Tensor:
        """Latent tokens (..., n, latent_channels) to frames (..., h, w, c) uint8."""
        with self._autocast():
            return self.tokenizer.decode(latents)

    @torch.no_grad()
    def tell(self, state: WorldState, actions: Tensor) -> Tensor:
        """What the network is told of the next frame: the action, or the pose that it leads to.

        With a map, in a world that stands on a grid, the pose is not past walls that are known
        (`worldsim.collision`).

        Args:
            state: memory of a batch of envs.
            actions: (b,) int64, or (b, 3) float32 poses for a model that is told poses.

        Returns:
            (b, 1) int64 actions or (b, 1, 3) float32 poses.
        """
        if self.odometry is None:
            return actions[:, None]
        memory = state.memory
        told = self.odometry.expect(memory, actions, state.steps)
        # The cells of a map are those of the world's walls only where these stand on a grid.
        if self.occupancy is None or ORIGIN not in memory:
            return told
        origin = memory[ORIGIN][:, :3]
        to = compose(origin, told[:, 0])
        ends = self.occupancy.stop(memory[CELLS], standing(memory), to)
        stopped = compose(inverse(origin), ends)[:, None, :2]
        return torch.cat([stopped, told[..., 2:]], dim=-1)

    @torch.no_grad()
    def denoise(self, state: WorldState, told: Tensor, z: Tensor, level: float) -> Tensor:
        """Predict clean latents of the next frame from noised ones, against frozen memory.

        Args:
            state: memory of a batch of envs.
            told: (b, 1) int64 actions, or (b, 1, 3) float32 poses for a model with poses.
            z: (b, 1, n, c) latents noised to signal level `level`.
        """
        signal = torch.full(told.shape[:2], level, device=z.device)
        memory = memory_of_backbone(state.memory)
        with self._autocast():
            return self.denoiser(z, signal, told, memory, state.steps, update=False)[0]

    def reconfigured(self, **changes: Any) -> WorldModel:
        """The same weights under a config with other values, such as num_denoising_steps.

        What only the new config has, such as places, begins new; what it lacks is left out.
        """
        model = WorldModel(dataclasses.replace(self.config, **changes)).to(self.device)
        mine, weights = self.state_dict(), model.state_dict()
        model.load_state_dict({name: mine.get(name, new) for name, new in weights.items()})
        model.compute_dtype = self.compute_dtype
        if self.cuda_graphs is not None:
            model.use_cuda_graphs(if_possible=True)
        return model.train(self.training)

    @torch.no_grad()
    def observe_latents(
        self, state: WorldState, actions: Tensor, latents: Tensor, chunk: int = 64
    ) -> tuple[WorldState, Tensor]:
        """`observe` for encoded frames; also gives the features of every frame (b, t, d)."""
        features = []
        for a, x in zip(actions.split(chunk, 1), latents.split(chunk, 1), strict=True):
            signal = torch.ones(a.shape[:2], device=x.device)
            state, f = self.commit(state, a, x, signal)
            features.append(f)
        return state, torch.cat(features, dim=1)

    def commit(
        self,
        state: WorldState,
        actions: Tensor,
        z: Tensor,
        signal: Tensor,
        dreamed: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[WorldState, Tensor]:
        """Take frames to memory.

        Args:
            state, actions: memory and (b, t) actions.
            z, signal: (b, t, n, c) latents, noised to signal levels (b, t).
            dreamed: of dreamed frames, their latents without noise and what was told of them.
        """
        told, stands, located = actions, actions, Memory()
        seen, poses = (z, None) if dreamed is None else dreamed
        if self.odometry is not None:
            told, stands, located = self.odometry.locate(
                state.memory, actions, seen, state.steps, poses
            )
        memory = memory_of_backbone(state.memory)
        with self._autocast():
            _, tokens, memory = self.denoiser(z, signal, told, memory, state.steps)
            features = self.read_out(tokens).float()
        if self.places is not None:
            # Only single steps as compiled: many frames, one after the other, compile for minutes.
            follow = self.places if actions.shape[1] == 1 else self.places.forward
            more, placed = follow(
                state.memory, seen, features, told, stands, state.steps, dreamed is not None
            )
            features, located = torch.cat([features, more], dim=-1), located | placed
        steps = state.steps + actions.shape[1]
        return WorldState(memory | located, steps, features[:, -1].clone()), features
