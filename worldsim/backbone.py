"""The temporal networks: one config and one file for each, all with the same interface.

A backbone is made for a grid of tokens and has

    initial_state(batch_size) -> memory            named tensors, batch first
    forward(x, condition, memory, steps, update=True, poses=None) -> (x, memory)

`forward` continues from the memory for any number of frames: x (b, t, n, d) tokens, condition
(b, t, d) noise level and action of each frame, steps (b,) frames that came before, poses
(b, t, n, 3) of the tokens for a backbone that is told them. Processing
frames together or one after the other gives the same. The memory given is never written to; one
that grows keeps its newest frame last. With `update=False`, for frames that are not committed, a
backbone may return a stale memory and spare its cost.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import torch
from torch import nn

from worldsim.backbone_block_ssm import BlockSSMBackbone, BlockSSMConfig
from worldsim.backbone_causal import CausalBackbone, CausalConfig
from worldsim.backbone_dfot import DFoTBackbone, DFoTConfig
from worldsim.backbone_far import FARBackbone, FARConfig
from worldsim.backbone_frame_ssm import FrameSSMBackbone, FrameSSMConfig
from worldsim.layers import Memory
from worldsim.pose import PoseConfig

BackboneConfig = BlockSSMConfig | CausalConfig | DFoTConfig | FARConfig | FrameSSMConfig
Backbone = BlockSSMBackbone | CausalBackbone | DFoTBackbone | FARBackbone | FrameSSMBackbone
C = TypeVar("C", bound=BackboneConfig)


def make_backbone(
    config: BackboneConfig, grid: tuple[int, int], pose: PoseConfig | None = None
) -> Backbone:
    """The network that a backbone config describes, for a token grid (rows, columns).

    With `pose`, it looks memories up by the poses that it is then told of every token.

    Raises:
        ValueError: the config does not fit the grid, or its sizes do not fit each other.
    """
    match config:
        case BlockSSMConfig():
            return BlockSSMBackbone(config, grid, pose)
        case CausalConfig():
            return CausalBackbone(config, grid, pose)
        case DFoTConfig():
            return DFoTBackbone(config, grid, pose)
        case FARConfig():
            return FARBackbone(config, grid, pose)
        case FrameSSMConfig():
            return FrameSSMBackbone(config, grid, pose)
    raise TypeError(f"{type(config).__name__} is not a backbone config")


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def count_backbone_parameters(config: BackboneConfig, grid: tuple[int, int]) -> int:
    """Parameters of a backbone, without making its weights."""
    with torch.device("meta"):
        return count_parameters(make_backbone(config, grid))


def match_parameters(
    config: C, target: int, grid: tuple[int, int], *, tolerance: float = 0.05
) -> C:
    """Change a backbone's depth, and its width where depth is not enough, to match in parameters.

    Args:
        config: the backbone to change; all but `num_layers` and `d_model` stays.
        target: parameters that it shall have.
        grid: token grid.
        tolerance: largest relative difference allowed.

    Returns:
        The config of the nearest width with a depth within tolerance, the best depth at that width.

    Raises:
        ValueError: no depth at any width from half to twice the given one comes that near.
    """

    def with_best_depth(width: int) -> tuple[float, C]:
        def sized(depth: int) -> C:
            return dataclasses.replace(config, d_model=width, num_layers=depth)

        one, two = (count_backbone_parameters(sized(depth), grid) for depth in (1, 2))
        depth = max(round((target - one) / (two - one)) + 1, 1)
        candidate = sized(depth)
        return abs(count_backbone_parameters(candidate, grid) / target - 1), candidate

    unit = config.head_dim
    widths = range(max(config.d_model // 2 // unit, 1) * unit, 2 * config.d_model + 1, unit)
    errors = []
    for width in sorted({config.d_model, *widths}, key=lambda w: (abs(w - config.d_model), w)):
        error, candidate = with_best_depth(width)
        if error <= tolerance:
            return candidate
        errors.append(error)
    raise ValueError(
        f"no {config.kind} backbone of width {widths[0]} to {widths[-1]} comes within "
        f"{tolerance:.0%} of {target} parameters; the nearest is off by {min(errors):.0%}"
    )


__all__ = [
    "Backbone",
    "BackboneConfig",
    "BlockSSMBackbone",
    "BlockSSMConfig",
    "CausalBackbone",
    "CausalConfig",
    "DFoTBackbone",
    "DFoTConfig",
    "FARBackbone",
    "FARConfig",
    "FrameSSMBackbone",
    "FrameSSMConfig",
    "Memory",
    "count_backbone_parameters",
    "count_parameters",
    "make_backbone",
    "match_parameters",
]
