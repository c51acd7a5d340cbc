"""What a world model may be given: one clear error for everything else."""

from __future__ import annotations

from typing import Protocol

import gymnasium
import numpy as np
import torch
from torch import Tensor

from worldsim.world_model_config import WorldModelConfig


def check_range(actions: np.ndarray, first: int, number: int) -> None:
    """Raise a ValueError for recorded actions (n,) that are not among so many from the first."""
    last = first + number - 1
    if (outside := (actions < first) | (actions > last)).any():
        wrong = f"action {actions[outside][0]} of step {np.argmax(outside)}"
        raise ValueError(f"{wrong} is not one of {first} to {last}")


def check_rewards(rewards: np.ndarray) -> None:
    """Raise a ValueError for recorded rewards (n,) that are not finite numbers."""
    if rewards.dtype.kind not in "biuf":
        raise ValueError(f"rewards are {rewards.dtype}, not numbers")
    if rewards.ndim != 1:
        raise ValueError(f"rewards have the shape {rewards.shape}, not one number per step")
    if not (finite := np.isfinite(rewards)).all():
        raise ValueError(f"the reward of step {np.argmin(finite)} is {rewards[~finite][0]}")


def check_actions(
    actions: Tensor, shape: tuple[int, ...], no_action: int, *, told_poses: bool
) -> None:
    """Raise a ValueError for actions of a wrong shape, dtype or range.

    Args:
        actions: integers, or float32 poses (..., 3) for a model that is told poses.
        shape: expected, without the 3 of poses.
        no_action: the largest that is valid.
        told_poses: whether the model is told poses.
    """
    if told_poses:
        if tuple(actions.shape) != (*shape, 3) or actions.dtype != torch.float32:
            raise ValueError(
                f"this world model is told poses: expected are float32 {(*shape, 3)} in place "
                f"of actions, got {actions.dtype} {tuple(actions.shape)}"
            )
        return
    if tuple(actions.shape) != shape:
        raise ValueError(f"actions have shape {tuple(actions.shape)}; expected {shape}")
    if actions.is_floating_point() or actions.dtype == torch.bool:
        raise ValueError(f"actions are {actions.dtype}; they must be integers")
    if actions.numel() and (actions.min() < 0 or actions.max() > no_action):
        raise ValueError(
            f"actions range from {int(actions.min())} to {int(actions.max())}; valid are 0 to "
            f"{no_action - 1}, and {no_action} for the first frame of an episode"
        )


def check_frames(frames: Tensor, batch_size: int) -> None:
    """Raise a ValueError unless frames are (batch_size, t, h, w, c) with one frame or more."""
    if frames.ndim != 5:
        raise ValueError(f"frames have {frames.ndim} dimensions; expected (b, t, h, w, c)")
    if frames.shape[0] != batch_size or not frames.shape[1]:
        raise ValueError(
            f"frames are of {frames.shape[0]} envs, {frames.shape[1]} each; expected are "
            f"{batch_size} envs, as many as the state has, and 1 frame or more"
        )


def check_noise(noise: Tensor, shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless noise is float32 of this shape."""
    if tuple(noise.shape) != shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}; expected {shape}")
    if noise.dtype != torch.float32:
        raise ValueError(f"noise is {noise.dtype}; it must be torch.float32")


class OfFrames(Protocol):
    """Episodes, an env or a world model: of frames of one shape, and so many actions."""

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        ...

    @property
    def num_actions(self) -> int:
        """How many, "no action" not counted."""
        ...


def check_same_kind(name: str, one: OfFrames, other_name: str, other: OfFrames) -> None:
    """Raise a ValueError where two are of other frames or actions than each other.

    Args:
        name, other_name: what they are called in the message.
        one, other: episodes, a world model's config, or whatever has frames and actions.
    """
    if (one.frame_shape, one.num_actions) != (other.frame_shape, other.num_actions):
        raise ValueError(
            f"{name} has frames {one.frame_shape} and {one.num_actions} actions, {other_name} "
            f"{other.frame_shape} and {other.num_actions}: take two that fit each other"
        )


def check_spaces(
    env: str,
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    config: WorldModelConfig,
) -> None:
    """Raise a ValueError for an env of other frames or actions than a world model's.

    Args:
        env: its name, for the message.
        observation_space, action_space: of one env.
        config: of the model.
    """
    shape, dtype = observation_space.shape, observation_space.dtype
    discrete = isinstance(action_space, gymnasium.spaces.Discrete)
    fits = discrete and (action_space.n, action_space.start) == (config.num_actions, 0)  # type: ignore[attr-defined]
    if shape != tuple(config.frame_shape) or dtype != np.uint8 or not fits:
        raise ValueError(
            f"the world model takes uint8 frames {tuple(config.frame_shape)} and "
            f"{config.num_actions} actions; {env} has frames {dtype} {shape} and actions "
            f"{action_space}"
        )


def check_device(device: torch.device | str) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: there is none here.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: choose cpu, cuda or cuda:0") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {str(device)!r} is not here: this build of PyTorch, or this machine, has no "
            "CUDA; choose cpu"
        )
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {str(device)!r} is not here: this machine has {torch.cuda.device_count()} GPUs"
        )
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device {str(device)!r} is not supported: choose cpu, cuda or cuda:0")
    return found
