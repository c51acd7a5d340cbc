"""Frame-causal transformer: every frame sees itself and the frames before it.

The usual baseline of video world models, as in Po et al. 2025 (arXiv 2505.20171), section 4. With
`window=0` it sees the full context through a cache of keys and values that grows by one frame a
step; with a window the cache has a fixed size and what leaves it is forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from worldsim.attention import AttentionConfig, AttentionState, FrameLocalAttention
from worldsim.frame_attention import (
    FrameProjection,
    extend,
    forget_before,
    frame_attention,
    past_and_present,
)
from worldsim.layers import MLP, AdaptiveNorm, LayeredBackbone, Memory
from worldsim.pose import PoseConfig


@dataclass(frozen=True, kw_only=True)
class CausalConfig:
    """Frame-causal transformer."""

    kind: Literal["causal"] = "causal"
    d_model: int = 256
    num_layers: int = 8
    window: int = 0
    """Frames that attention sees, its own included; 0 sees all."""
    head_dim: int = 64
    mlp_ratio: int = 4


class FullAttention(FrameProjection):
    """Attention over the frame itself and all frames before it; its memory grows."""

    def forward(
        self,
        x: Tensor,
        state: AttentionState,
        steps: Tensor,
        update: bool = True,
        poses: Tensor | None = None,
    ) -> tuple[Tensor, AttentionState]:
        """x (b, t, n, d); state of (b, h, past, n, e); steps (b,): frames before x."""
        index = steps[:, None] + torch.arange(x.shape[1], device=x.device)
        q, k, v = self.project(x, index, poses)
        y = self.merge(frame_attention(q, past_and_present(state, k, v), steps))
        if update:
            state = AttentionState(extend(state.keys, k, 2), extend(state.values, v, 2))
        return y, state


class CausalLayer(nn.Module):
    """Attention, then MLP, each with its own residual."""

    def __init__(
        self, config: CausalConfig, num_tokens: int, pose: PoseConfig | None, seed: int
    ) -> None:
        super().__init__()
        d = config.d_model
        self.num_tokens = num_tokens
        self.attention_norm = AdaptiveNorm(d)
        self.attention: FullAttention | FrameLocalAttention
        if config.window:
            self.attention = FrameLocalAttention(
                AttentionConfig(d_model=d, head_dim=config.head_dim, window=config.window),
                pose,
                seed,
                recalls=True,
            )
            nn.init.zeros_(self.attention.out_proj.weight)
        else:
            self.attention = FullAttention(d, config.head_dim, pose, seed)
        self.mlp_norm = AdaptiveNorm(d)
        self.mlp = MLP(d, config.mlp_ratio)
        nn.init.zeros_(self.mlp.down.weight)

    def initial_state(self, batch_size: int) -> Memory:
        if isinstance(self.attention, FrameLocalAttention):
            return self.attention.initial_state(batch_size, self.num_tokens)._asdict()
        empty = self.attention.empty(batch_size, self.num_tokens)
        return {"keys": empty, "values": empty}

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        memory: Memory,
        steps: Tensor,
        update: bool = True,
        poses: Tensor | None = None,
    ) -> tuple[Tensor, Memory]:
        state = AttentionState(memory["keys"], memory["values"])
        y, state = self.attention(self.attention_norm(x, condition), state, steps, update, poses)
        x = x + y
        return x + self.mlp(self.mlp_norm(x, condition)), state._asdict()


class CausalBackbone(LayeredBackbone):
    """Frame-causal transformer; its memory grows with time unless it has a window."""

    def __init__(
        self, config: CausalConfig, grid: tuple[int, int], pose: PoseConfig | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(
            CausalLayer(config, grid[0] * grid[1], pose, seed=i) for i in range(config.num_layers)
        )

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        memory: Memory,
        steps: Tensor,
        update: bool = True,
        poses: Tensor | None = None,
    ) -> tuple[Tensor, Memory]:
        """Process frames in order; see `LayeredBackbone.forward`."""
        if not self.config.window:
            memory = forget_before(memory, steps, frame_dim=2)
        return super().forward(x, condition, memory, steps, update, poses)
