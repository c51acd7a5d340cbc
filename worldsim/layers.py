"""Parts that every backbone is made of: the MLP, adaptive normalisation, memories of layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Memory = dict[str, Tensor]
"""What a backbone remembers: named tensors, batch first."""

BlockSize = int | tuple[int, int]
"""Side of a square block of tokens, or its rows and columns; 0 is all that the frame has."""


def in_float32(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make a module's method leave autocast: what adds up over many frames may not be rounded."""

    @functools.wraps(method)
    def exact(self: Any, *tensors: Tensor) -> Any:
        with torch.autocast(tensors[0].device.type, enabled=False):
            return method(self, *(t.float() if t.is_floating_point() else t for t in tensors))

    return exact


def rows_and_columns(size: BlockSize, grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a block in a grid of tokens."""
    rows, columns = (size, size) if isinstance(size, int) else size
    return rows or grid[0], columns or grid[1]


def memory_of_backbone(memory: Memory) -> Memory:
    """The backbone's part of a world model's memory: without what odometry and places remember."""
    return {k: t for k, t in memory.items() if not k.startswith(("odometry.", "places."))}


def rotate_pairs(x: Tensor, angle: Tensor) -> Tensor:
    """Turn pairs of numbers: x (..., e), of which numbers i and i + e/2 pair; angle (..., e/2)."""
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class MLP(nn.Module):
    """Two layers with a squared ReLU (So et al. 2021, arXiv 2109.08668)."""

    def __init__(self, d_model: int, ratio: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, ratio * d_model, bias=False)
        self.down = nn.Linear(ratio * d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)).square())


class AdaptiveNorm(nn.Module):
    """RMS normalisation whose scale and shift depend on the frame's condition."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.modulation = nn.Linear(d_model, 2 * d_model)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (b, t, n, d), condition (b, t, d)."""
        scale, shift = self.modulation(condition)[:, :, None].chunk(2, dim=-1)
        x = F.rms_norm(x, (self.d_model,), eps=1e-5)
        return x * (1 + scale) + shift


class LayerMemory(Protocol):
    """A layer that remembers."""

    def initial_state(self, batch_size: int) -> Memory:
        """Memory before the first frame."""


def initial_memory(layers: nn.ModuleList, batch_size: int) -> Memory:
    """Memory of all layers, each tensor named `layer.name`."""
    return {
        f"{i}.{name}": tensor
        for i, layer in enumerate(layers)
        for name, tensor in cast(LayerMemory, layer).initial_state(batch_size).items()
    }


def layer_memory(memory: Memory, layer: int) -> Memory:
    """One layer's part of the memory, without its prefix."""
    prefix = f"{layer}."
    return {k.removeprefix(prefix): v for k, v in memory.items() if k.startswith(prefix)}


def run_layers(
    layers: nn.ModuleList,
    x: Tensor,
    condition: Tensor,
    memory: Memory,
    steps: Tensor,
    update: bool = True,
    poses: Tensor | None = None,
) -> tuple[Tensor, Memory]:
    """Run layers one after the other, each `layer(x, condition, own, steps, update, poses)`."""
    new_memory: Memory = {}
    for i, layer in enumerate(layers):
        x, own = layer(x, condition, layer_memory(memory, i), steps, update, poses)
        new_memory |= {f"{i}.{name}": tensor for name, tensor in own.items()}
    return x, new_memory


class LayeredBackbone(nn.Module):
    """A backbone that is its `layers`, one after the other."""

    layers: nn.ModuleList

    def initial_state(self, batch_size: int) -> Memory:
        """Memory before the first frame."""
        return initial_memory(self.layers, batch_size)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        memory: Memory,
        steps: Tensor,
        update: bool = True,
        poses: Tensor | None = None,
    ) -> tuple[Tensor, Memory]:
        """Process frames in order.

        Args:
            x: (b, t, n, d) tokens of t frames, any t >= 1.
            condition: (b, t, d) per-frame condition (noise level and action).
            memory: what came before, as from `initial_state` or a previous call.
            steps: (b,) int64 number of frames that came before.
            update: False allows to spare what only the memory needs; the one returned may then be
                stale.
            poses: (b, t, n, 3) float32 of the tokens, for a backbone that was made with poses.

        Returns:
            (b, t, n, d) and the memory after the last frame.
        """
        return run_layers(self.layers, x, condition, memory, steps, update, poses)
