"""The dream as an environment: every step is imagined by a world model.

`DreamVectorEnv` dreams many episodes as one batch; `dream_env.DreamEnv` is a batch of one, so that
the two cannot drift apart. Each env has its own random stream, which chooses its contexts and draws
the noise that its frames are sampled from: env i of a batch seeded with s dreams what a single env
seeded with s + i dreams, up to rounding.

    env = gymnasium.make("worldsim/Dream-v0", world_model="memory-maze-9x9", horizon=64)
    envs = gymnasium.make_vec("worldsim/Dream-v0", num_envs=32, world_model="memory-maze-9x9")
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import gymnasium
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from worldsim.contexts import ContextSource, open_world
from worldsim.dreaming import Dream
from worldsim.noise import draw_normal
from worldsim.snapshot import DreamSnapshot
from worldsim.state import WorldState
from worldsim.world_model import WorldModel

# What steps of n dreams are worth, (n,), from the states before and what was dreamed.
RewardFunction: TypeAlias = Callable[[WorldState, Dream], torch.Tensor]


class DreamVectorEnv(VectorEnv):
    """A batch of dreams.

    Args:
        num_envs: dreams in the batch.
        world_model: name of a shipped model, a checkpoint directory, or a model.
        contexts: where dreams start, see `worldsim.contexts.open_contexts`. None: the contexts
            shipped with the checkpoint.
        horizon: steps after which an episode is truncated; None: never.
        obs: what the agent sees: "pixels", the frames (h, w, c) uint8, or "features", the model's
            own memory read-out (d,) float32.
        render_mode: None or "rgb_array".
        render_size: height of the rendered frames, a multiple of the frame's own; None: as dreamed.
        render_fps: frames per second of a recorded video.
        autoreset_mode: what happens to an env whose episode has ended, see Gymnasium.
        num_denoising_steps: steps of the sampler for each frame; None: the model's own.
        device: where the model is moved; None: where it is (the CPU, when loaded by name).
        num_contexts: contexts drawn, when `contexts` is a dataset.
        context_length: frames in each of them.
        reward_function: what a step is worth, (num_envs,) float32, from the state before it and the
            `Dream` that it led to, such as `agents.on_the_way.WayReward(model).of_dream`; None: the
            reward that the model expects.

    Raises:
        ValueError: an argument has no meaning; the message names it.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        world_model: str | Path | WorldModel,
        contexts: ContextSource | None = None,
        horizon: int | None = 64,
        obs: Literal["pixels", "features"] = "pixels",
        render_mode: str | None = None,
        render_size: int | None = None,
        render_fps: int = 4,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        num_denoising_steps: int | None = None,
        device: str | torch.device | None = None,
        num_contexts: int = 64,
        context_length: int = 128,
        reward_function: RewardFunction | None = None,
    ) -> None:
        for name, count in (
            ("num_envs", num_envs),
            ("horizon", horizon),
            ("num_denoising_steps", num_denoising_steps),
            ("num_contexts", num_contexts),
            ("context_length", context_length),
        ):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if obs not in ("pixels", "features"):
            raise ValueError(f"obs must be 'pixels' or 'features', got {obs!r}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        model, self.bank = open_world(
            world_model,
            contexts,
            device=device,
            num_contexts=num_contexts,
            context_length=context_length,
        )
        self.model = model
        self.frame_shape = height, _, _ = model.config.frame_shape
        if render_size is not None and (render_size < 1 or render_size % height != 0):
            raise ValueError(
                f"render_size must be a multiple of the frame height {height}, got {render_size}"
            )
        self.num_envs = num_envs
        self.horizon = horizon
        self.obs = obs
        self.render_mode = render_mode
        self._shows_frames = obs == "pixels" or render_mode is not None
        self.render_scale = 1 if render_size is None else render_size // height
        self.num_denoising_steps = num_denoising_steps
        self.reward_function = reward_function
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = self.metadata | {
            "render_fps": render_fps,
            "autoreset_mode": self.autoreset_mode,
        }
        self.single_action_space = gymnasium.spaces.Discrete(model.config.num_actions)
        self.single_observation_space = gymnasium.spaces.Box(0, 255, self.frame_shape, np.uint8)
        if obs == "features":
            limit, shape = np.finfo(np.float32).max, (model.config.num_features,)
            self.single_observation_space = gymnasium.spaces.Box(-limit, limit, shape, np.float32)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

        drawn = [np_random() for _ in range(num_envs)]
        self.generators, self._seeds = [g for g, _ in drawn], [seed for _, seed in drawn]
        self.state: WorldState | None = None
        self.frames = np.zeros((num_envs, *self.frame_shape), np.uint8)
        self.elapsed_steps = np.zeros(num_envs, np.int64)
        self._ended = np.ones(num_envs, bool)

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The random stream of every env."""
        return tuple(self.generators)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """What every env was last seeded with; -1 after `restore`."""
        return tuple(self._seeds)

    @property
    def device(self) -> torch.device:
        return self.bank.states.device

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new dreams from contexts that each env's random stream chooses.

        Args:
            seed: s seeds env i with s + i; a sequence gives each its own; None goes on drawing.
            options: "context": index into the bank, one for all envs or one each, instead of a
                random choice; "reset_mask": (num_envs,) bool, the envs to reset (all by default).

        Returns:
            Observations, and infos with the "context" (num_envs,) of the envs that were reset.

        Raises:
            IndexError: a context is not in the bank.
            ValueError: a seed, mask or context for another number of envs.
        """
        options = options or {}
        mask = np.ones(self.num_envs, bool)
        if options.get("reset_mask") is not None:
            mask = np.asarray(options["reset_mask"])
        if mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
            raise ValueError(
                f"reset_mask must be ({self.num_envs},) bool with a true entry, "
                f"got {mask.dtype} {mask.tolist()}"
            )
        if self.state is None and not mask.all():
            raise ResetNeeded("the first reset must be of all envs, without a reset_mask")
        seeds: Sequence[int | None] = [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            seeds = [int(seed) + i for i in range(self.num_envs)]
        elif seed is not None:
            seeds = [None if one is None else int(one) for one in seed]
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds do not match {self.num_envs} envs")
        contexts = self.check_contexts(options.get("context"), mask)
        for i, one in enumerate(seeds):  # nothing was changed before all was checked
            if mask[i] and one is not None:
                self.generators[i], self._seeds[i] = np_random(one)
        infos = self._start(mask, contexts)
        return self._observe(), infos

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Dream one step in every env.

        Args:
            actions: (num_envs,) integers in [0, num_actions).

        Returns:
            Observations, rewards (num_envs,) float32, terminated and truncated (num_envs,) bool,
            infos.

        Raises:
            TypeError: actions are not integers.
            ValueError: actions of another shape, or outside the action space.
            ResetNeeded: no reset yet, or an episode has ended and autoreset is disabled.
        """
        actions = self._check_actions(actions)
        if self.state is None:
            raise ResetNeeded("step was called before reset")
        waiting = self._ended.copy()
        if waiting.any() and self.autoreset_mode is not AutoresetMode.NEXT_STEP:
            raise ResetNeeded(f"the episodes of envs {np.flatnonzero(waiting).tolist()} have ended")

        rewards = np.zeros(self.num_envs, np.float32)
        terminated, truncated = np.zeros((2, self.num_envs), bool)
        infos: dict[str, Any] = {}
        if not waiting.all():
            # Envs that wait for their reset are dreamed along, so that the batch keeps its shape;
            # their stream is not drawn from, and what they dreamed is dropped below.
            dream_rewards, dream_terminated = self._imagine(actions, ~waiting)
            self.elapsed_steps += ~waiting
            rewards[~waiting] = dream_rewards[~waiting]
            terminated = dream_terminated & ~waiting
            if self.horizon is not None:
                truncated = (self.elapsed_steps >= self.horizon) & ~waiting
        self._ended = terminated | truncated
        if waiting.any():
            infos = self._start(waiting)
        elif self._ended.any() and self.autoreset_mode is AutoresetMode.SAME_STEP:
            ended, last = self._ended.copy(), self._observe()
            infos = self._start(ended)
            infos |= {
                "final_obs": _masked_objects(last, ended),
                "_final_obs": ended,
                "final_info": {},
                "_final_info": ended.copy(),
            }
        return self._observe(), rewards, terminated, truncated, infos

    def snapshot(self) -> DreamSnapshot:
        """Return everything that decides how the dreams go on.

        Raises:
            ResetNeeded: no dream has begun.
        """
        if self.state is None:
            raise ResetNeeded("snapshot was called before reset")
        return DreamSnapshot(
            state=self.state,
            frames=self.frames.copy() if self._shows_frames else None,
            elapsed_steps=self.elapsed_steps.copy(),
            ended=self._ended.copy(),
            generator_states=tuple(
                copy.deepcopy(dict(g.bit_generator.state)) for g in self.generators
            ),
        )

    def restore(self, snapshot: DreamSnapshot) -> np.ndarray:
        """Go on from a snapshot, of this or another dream of the same model.

        Returns:
            The observations at that moment.

        Raises:
            ValueError: the snapshot holds another number of dreams, is of a model of other sizes,
                or has no frames, which this env shows.
        """
        if len(snapshot) != self.num_envs:
            raise ValueError(f"a snapshot of {len(snapshot)} dreams for {self.num_envs} envs")
        snapshot.state.check_like(self.model.initial_state(1), "the snapshot")
        if snapshot.frames is None and self._shows_frames:
            raise ValueError(
                "a snapshot of dreams that decode no frames, for envs that show them: make the "
                "dreams with obs='pixels' or a render_mode"
            )
        self.state = snapshot.state.to(self.device)
        if snapshot.frames is not None:
            self.frames = snapshot.frames.copy()
        self.elapsed_steps = snapshot.elapsed_steps.copy()
        self._ended = snapshot.ended.copy()
        for generator, state in zip(self.generators, snapshot.generator_states, strict=True):
            generator.bit_generator.state = copy.deepcopy(state)
        self._seeds = [-1] * self.num_envs  # as Gymnasium has it where the seed is not known
        return self._observe()

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return the current frame of every env, (render_size, ..., 3) uint8."""
        if self.render_mode is None:
            return None
        scaled = self.frames.repeat(self.render_scale, axis=1).repeat(self.render_scale, axis=2)
        if scaled.shape[-1] == 1:
            scaled = scaled.repeat(3, axis=-1)
        return tuple(scaled)

    @torch.no_grad()
    def _imagine(self, actions: np.ndarray, drawing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert self.state is not None
        noise = np.zeros((self.num_envs, *self.model.noise_shape), np.float32)
        draw_normal(noise, self.generators, np.flatnonzero(drawing))
        before = self.state
        dream = self.model.imagine(
            before,
            torch.as_tensor(actions, device=self.device),
            noise=torch.as_tensor(noise, device=self.device),
            num_denoising_steps=self.num_denoising_steps,
            decode=self._shows_frames,
        )
        self.state = dream.state
        if self._shows_frames:
            self.frames = dream.frame.cpu().numpy()
        worth = dream.reward
        if self.reward_function is not None:
            worth = self.reward_function(before, dream)
        return worth.float().cpu().numpy(), dream.terminated.cpu().numpy()

    def check_contexts(self, contexts: Any, mask: np.ndarray) -> np.ndarray | None:
        """Contexts that are asked for, (num_envs,) int64, of which those under the mask count."""
        if contexts is None:
            return None
        given = np.asarray(contexts)
        is_integer = np.issubdtype(given.dtype, np.integer)
        if not is_integer or given.shape not in ((), (self.num_envs,)):
            raise ValueError(
                f"options['context'] must be one integer or {self.num_envs}, got {contexts!r}"
            )
        indices = np.where(mask, given, 0).astype(np.int64)
        self.bank.check(indices)
        return indices

    def _start(self, mask: np.ndarray, contexts: np.ndarray | None = None) -> dict[str, Any]:
        """Put the envs under the mask at the end of a context; return their infos."""
        indices = np.zeros(self.num_envs, np.int64) if contexts is None else contexts
        if contexts is None:
            for i in np.flatnonzero(mask):
                indices[i] = self.generators[i].integers(len(self.bank))
        rows = np.flatnonzero(mask)
        state, frames = self.bank.gather(indices[rows])
        if self.state is not None and not mask.all():
            state = self.state.put(torch.as_tensor(rows, device=self.device), state)
        self.state = state
        self.frames = self.frames.copy()
        self.frames[rows] = frames
        self.elapsed_steps = np.where(mask, 0, self.elapsed_steps)
        self._ended = self._ended & ~mask
        return {"context": indices, "_context": mask.copy()}

    def _observe(self) -> np.ndarray:
        if self.obs == "pixels":
            return self.frames.copy()
        assert self.state is not None
        return self.state.features.float().cpu().numpy().copy()

    def _check_actions(self, actions: Any) -> np.ndarray:
        actions = np.asarray(actions)
        if not np.issubdtype(actions.dtype, np.integer):
            raise TypeError(f"actions must be integers, got {actions.dtype}: {actions.tolist()}")
        if actions.shape != (self.num_envs,):
            raise ValueError(f"actions must have shape ({self.num_envs},), got {actions.shape}")
        num_actions = self.model.config.num_actions
        wrong = actions[(actions < 0) | (actions >= num_actions)]
        if wrong.size:
            raise ValueError(f"actions must lie in [0, {num_actions}), got {wrong[0]}")
        return actions.astype(np.int64)


def _masked_objects(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Gymnasium's form of an info that only some envs have: (n,) object, None elsewhere."""
    objects = np.full(len(mask), None, dtype=object)
    for i in np.flatnonzero(mask):
        objects[i] = values[i]
    return objects
