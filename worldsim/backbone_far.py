"""FAR's long short-term context: recent frames in full, older ones as a few coarse tokens.

Gu et al. 2025, "Long-Context Autoregressive Video Modeling with Next-Frame Prediction" (arXiv
2503.19325), section 3.3. The last `window` frames are seen at full token resolution. Every frame is
also encoded a second time from patches of tokens, by a projection of its own, which begins as the
patch's mean so that coarse keys are alike what they are of, and the same layers; these few tokens
stand for the frame once it has left the window.
The cache therefore has two levels: one of fixed size, one that grows by few tokens a frame.

A coarse frame sees only coarse frames, so its second encoding may be made when the frame is
committed and stay hidden until it leaves the window: the same values as encoding it on leaving. The
paper's stochastic clean context (some context frames are clean and carry no loss) is the clean
prefix of `diffusion.sample_signal_levels`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from worldsim.attention import AttentionState
from worldsim.frame_attention import (
    FrameProjection,
    KeySource,
    extend,
    forget_before,
    frame_attention,
    past_and_present,
)
from worldsim.layers import (
    MLP,
    AdaptiveNorm,
    BlockSize,
    Memory,
    initial_memory,
    layer_memory,
    rows_and_columns,
)
from worldsim.pose import PoseConfig


@dataclass(frozen=True, kw_only=True)
class FARConfig:
    """Transformer with a short fine and a long coarse context."""

    kind: Literal["far"] = "far"
    d_model: int = 256
    num_layers: int = 8
    window: int = 16
    """Frames seen at full resolution, the generated one included."""
    coarse_patch: BlockSize = 2
    """Side in tokens, or rows and columns, of the patch that becomes one coarse token; must divide
    the token grid. Fine and coarse tokens have the same headings if it is one column wide."""
    head_dim: int = 64
    mlp_ratio: int = 4


class FARLayer(nn.Module):
    """Attention over both levels, then MLP; the same weights for fine and coarse tokens."""

    def __init__(
        self,
        config: FARConfig,
        num_fine: int,
        num_coarse: int,
        pose: PoseConfig | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.window = config.window
        self.num_fine, self.num_coarse = num_fine, num_coarse
        self.attention_norm = AdaptiveNorm(config.d_model)
        self.attention = FrameProjection(config.d_model, config.head_dim, pose, seed)
        self.mlp_norm = AdaptiveNorm(config.d_model)
        self.mlp = MLP(config.d_model, config.mlp_ratio)
        nn.init.zeros_(self.mlp.down.weight)

    def initial_state(self, batch_size: int) -> Memory:
        fine = self.attention.empty(batch_size, self.num_fine)
        coarse = self.attention.empty(batch_size, self.num_coarse)
        return {
            "fine_keys": fine,
            "fine_values": fine,
            "coarse_keys": coarse,
            "coarse_values": coarse,
        }

    def forward(
        self,
        fine: Tensor,
        coarse: Tensor | None,
        condition: Tensor,
        memory: Memory,
        steps: Tensor,
        fine_poses: Tensor | None = None,
        coarse_poses: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Memory]:
        """fine (b, t, n, d) and coarse (b, t, m, d) tokens of the same frames, and their poses.

        Without coarse tokens the memory is not extended.
        """
        index = steps[:, None] + torch.arange(fine.shape[1], device=fine.device)
        recent = AttentionState(memory["fine_keys"], memory["fine_values"])
        older = AttentionState(memory["coarse_keys"], memory["coarse_values"])
        q, k, v = self.attention.project(self.attention_norm(fine, condition), index, fine_poses)
        sources = past_and_present(recent, k, v, 0, self.window - 1)
        if coarse is None:
            sources.append(past_and_present(older, k, v, self.window)[0])
            return self._finish(fine, q, sources, condition, steps), None, memory
        coarse_q, coarse_k, coarse_v = self.attention.project(
            self.attention_norm(coarse, condition), index, coarse_poses
        )
        sources += past_and_present(older, coarse_k, coarse_v, self.window)
        fine = self._finish(fine, q, sources, condition, steps)
        coarse_sources = past_and_present(older, coarse_k, coarse_v)
        coarse = self._finish(coarse, coarse_q, coarse_sources, condition, steps)
        return (
            fine,
            coarse,
            {
                "fine_keys": extend(recent.keys, k, 2, self.window - 1),
                "fine_values": extend(recent.values, v, 2, self.window - 1),
                "coarse_keys": extend(older.keys, coarse_k, 2),
                "coarse_values": extend(older.values, coarse_v, 2),
            },
        )

    def _finish(
        self, x: Tensor, q: Tensor, sources: list[KeySource], condition: Tensor, steps: Tensor
    ) -> Tensor:
        x = x + self.attention.merge(frame_attention(q, sources, steps))
        return x + self.mlp(self.mlp_norm(x, condition))


class FARBackbone(nn.Module):
    """Transformer with a two-level cache that grows by few tokens a frame.

    Raises:
        ValueError: `coarse_patch` does not divide the token grid, or there is no window.
    """

    def __init__(
        self, config: FARConfig, grid: tuple[int, int], pose: PoseConfig | None = None
    ) -> None:
        super().__init__()
        rows, columns = patch = rows_and_columns(config.coarse_patch, grid)
        if min(patch) < 1 or grid[0] % rows or grid[1] % columns:
            raise ValueError(
                f"coarse_patch {config.coarse_patch} does not divide the token grid {grid}"
            )
        if config.window < 1:
            raise ValueError(f"window is {config.window}; it must be 1 or more")
        self.grid, self.patch, self.window = grid, patch, config.window
        num_fine = grid[0] * grid[1]
        size = rows * columns
        self.coarse_in = nn.Linear(size * config.d_model, config.d_model)
        nn.init.zeros_(self.coarse_in.bias)
        with torch.no_grad():
            self.coarse_in.weight.copy_(torch.eye(config.d_model).repeat(1, size) / size)
        self.layers = nn.ModuleList(
            FARLayer(config, num_fine, num_fine // size, pose, seed=i)
            for i in range(config.num_layers)
        )

    def initial_state(self, batch_size: int) -> Memory:
        """Memory before the first frame."""
        return initial_memory(self.layers, batch_size)

    def _patches(self, tokens: Tensor) -> Tensor:
        """Tokens by patch: (b, t, n, d) to (b, t, patches, tokens of a patch, d)."""
        (h, w), (p, q) = self.grid, self.patch
        sizes = {"i": h // p, "j": w // q, "p": p, "q": q}
        return rearrange(tokens, "b t (i p j q) d -> b t (i j) (p q) d", **sizes)

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
        memory = forget_before(memory, steps, frame_dim=2)
        coarse, coarse_poses = None, None if poses is None else self._patches(poses).mean(-2)
        if update or x.shape[1] > self.window:  # what is not committed is never seen coarse
            coarse = self.coarse_in(self._patches(x).flatten(-2)).to(x.dtype)
        new_memory: Memory = {}
        for i, layer in enumerate(self.layers):
            own = layer_memory(memory, i)
            x, coarse, own = layer(x, coarse, condition, own, steps, poses, coarse_poses)
            new_memory |= {f"{i}.{name}": tensor for name, tensor in own.items()}
        return x, new_memory
