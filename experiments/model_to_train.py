"""The world model that a training begins with: a new one, or another that goes on learning."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm

import worldsim.checkpoint as checkpoint
from experiments.train_config import TrainConfig, presets
from worldsim.checks import check_same_kind
from worldsim.episodes import EpisodeDataset
from worldsim.odometry import OdometryConfig
from worldsim.tokenizer import Tokenizer
from worldsim.world_model import WorldModel
from worldsim.world_model_config import WorldModelConfig

PRESETS = [TrainConfig(), *(preset for _, preset in presets().values())]


def build_model(config: TrainConfig, dataset: EpisodeDataset) -> WorldModel:
    """A new model for the dataset's frames and actions, or `config.init` continued."""
    if config.grid and not config.odometry:
        raise ValueError("the grid is what odometry sees: give --odometry, or leave --grid out")
    if config.init is not None:
        if config.tokenizer_of is not None:
            raise ValueError("init takes over a whole world model: leave tokenizer_of out")
        model = checkpoint.load(config.init, dtype=torch.float32)
        model = model.reconfigured(**_always_taken(config)).requires_grad_(True)
        check_same_kind(config.init, model.config, "the dataset", dataset)
        if model.told_poses:
            raise ValueError(
                f"{config.init} is told poses from outside, as models of the memory benchmark are, "
                "which training here does not: choose one with odometry, or one of actions"
            )
        check_kept_settings(config, model.config)
        if config.odometry and model.odometry is None:
            raise ValueError(
                f"{config.init} has no odometry, and to continue it keeps what it is: leave "
                "--odometry out, or start anew with its tokenizer (--tokenizer-of)"
            )
        if config.grid and model.config.odometry is not None:
            odometry = dataclasses.replace(model.config.odometry, grid=config.grid)
            model = model.reconfigured(odometry=odometry).requires_grad_(True)
        return model
    return new_model(config, dataset.frame_shape, dataset.num_actions)


def check_kept_settings(config: TrainConfig, model: WorldModelConfig) -> None:
    """Refuse settings of a new model that the one to continue from does not have.

    Those of presets are taken for not given, and told.

    Raises:
        ValueError: there is one.
    """
    others = []
    for name in ("tokenizer", "backbone", "latent_patch", "diffusion", "pose", "reward_limit"):
        given, kept = getattr(config, name), getattr(model, name)
        if name == "tokenizer":
            given = dataclasses.replace(given, frame_shape=kept.frame_shape)
            ours = [dataclasses.replace(p.tokenizer, frame_shape=kept.frame_shape) for p in PRESETS]
        else:
            ours = [getattr(preset, name) for preset in PRESETS]
        if given != kept and given not in ours:
            raise ValueError(
                f"{config.init} keeps its {name}: leave --{name.replace('_', '-')} out, or start a "
                "new model without --init"
            )
        if given != kept:
            others.append(name)
    if others and PartialState().is_main_process:
        tqdm.write(f"{config.init} keeps its own {', '.join(others)}")


def _always_taken(config: TrainConfig) -> dict[str, Any]:
    """What a model takes over where it is set, also one that goes on learning."""
    names = ("image_key", "num_denoising_steps", "dream_signal")
    values = {name: getattr(config, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def new_model(
    config: TrainConfig, frame_shape: tuple[int, int, int], num_actions: int
) -> WorldModel:
    """A new model for such frames and so many actions, with the tokenizer of another if wanted."""
    if not config.odometry and config.pose not in [preset.pose for preset in PRESETS]:
        raise ValueError("the pose settings are of odometry: give --odometry, or leave them out")
    taken: Tokenizer | None = None
    tokenizer = dataclasses.replace(config.tokenizer, frame_shape=frame_shape)
    if config.tokenizer_of is not None:
        taken = take_tokenizer(config.tokenizer_of, frame_shape)
        of_preset = config.tokenizer in [preset.tokenizer for preset in PRESETS]
        if not of_preset and tokenizer != taken.config:
            raise ValueError(
                f"{config.tokenizer_of} has another tokenizer, which is taken as it is: leave "
                "--tokenizer out"
            )
        tokenizer = taken.config
    model = WorldModel(
        WorldModelConfig(
            num_actions=num_actions,
            tokenizer=tokenizer,
            backbone=config.backbone,
            latent_patch=config.latent_patch,
            diffusion=config.diffusion,
            **_always_taken(config),
            pose=config.pose if config.odometry else None,
            odometry=OdometryConfig(grid=config.grid) if config.odometry else None,
            reward_limit=config.reward_limit,
        )
    )
    if taken is not None:
        model.tokenizer.load_state_dict(taken.state_dict())
    return model


def take_tokenizer(model: str, frame_shape: tuple[int, int, int]) -> Tokenizer:
    """The trained tokenizer of another model, a shipped name or a checkpoint.

    Raises:
        ValueError: it is for frames of another shape.
    """
    tokenizer = checkpoint.load(model, dtype=torch.float32).tokenizer
    if tokenizer.config.frame_shape != frame_shape:
        raise ValueError(
            f"the tokenizer of {model} is for frames {tokenizer.config.frame_shape}; "
            f"these are {frame_shape}"
        )
    return tokenizer
