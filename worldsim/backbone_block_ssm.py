"""Block-wise Mamba-2 scans and frame-local attention, layer by layer: the default backbone.

Po et al. 2025, "Long-Context State-Space Video World Models" (arXiv 2505.20171), section 3. Tokens
(t, h, w) are cut along space into blocks; each block is scanned causally through time with its own
state, so a token's predecessor in time is as many tokens away as the block has, instead of h*w.
Small blocks remember more places, large blocks mix space; layers differ. Blocks of whole rows suit
a camera that turns: what it sees moves along the rows. Noise level and action enter through
adaptive normalisation.

With blocks as large as the frame it is Mamba-2 over the flattened (t, h, w) order: the plain
baseline with `window=0`, the one with local attention otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from einops import rearrange
from torch import Tensor, nn

from worldsim.attention import AttentionConfig, AttentionState, FrameLocalAttention
from worldsim.layers import (
    MLP,
    AdaptiveNorm,
    BlockSize,
    LayeredBackbone,
    Memory,
    rows_and_columns,
)
from worldsim.pose import PoseConfig
from worldsim.ssm import Mamba2Mixer, ScanBackend, SSMConfig, SSMState


@dataclass(frozen=True, kw_only=True)
class BlockSSMConfig:
    """Block-wise SSM with frame-local attention."""

    kind: Literal["block_ssm"] = "block_ssm"
    d_model: int = 256
    num_layers: int = 6
    block_sizes: tuple[BlockSize, ...] = (1, 0)
    """Side of a block in tokens, or its rows and columns, by layer, repeated; must divide the token
    grid. 0 is the whole frame, or row, or column."""
    window: int = 8
    """Frames that attention sees, its own included; 0 leaves attention out."""
    head_dim: int = 64
    d_state: int = 64
    d_conv: int = 4
    expand: int = 1
    mlp_ratio: int = 4
    chunk_size: int = 32
    scan_backend: ScanBackend = "auto"

    def ssm(self) -> SSMConfig:
        return SSMConfig(
            d_model=self.d_model,
            d_state=self.d_state,
            d_conv=self.d_conv,
            expand=self.expand,
            head_dim=self.head_dim,
            chunk_size=self.chunk_size,
            backend=self.scan_backend,
        )

    def attention(self) -> AttentionConfig:
        return AttentionConfig(d_model=self.d_model, head_dim=self.head_dim, window=self.window)


class BlockSSMLayer(nn.Module):
    """Block-wise scan, then frame-local attention, then MLP, each with its own residual."""

    def __init__(
        self,
        config: BlockSSMConfig,
        block_size: BlockSize,
        grid: tuple[int, int],
        pose: PoseConfig | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.block = rows_and_columns(block_size, grid)
        self.grid = grid
        self.mixer_norm = AdaptiveNorm(config.d_model)
        self.mixer = Mamba2Mixer(config.ssm(), pose, seed, math.prod(self.block))
        self.attention = (
            FrameLocalAttention(config.attention(), pose, seed) if config.window else None
        )
        self.attention_norm = AdaptiveNorm(config.d_model) if config.window else None
        self.mlp_norm = AdaptiveNorm(config.d_model)
        self.mlp = MLP(config.d_model, config.mlp_ratio)
        outputs = [self.mixer.out_proj, self.mlp.down]
        if self.attention is not None:
            outputs.append(self.attention.out_proj)
        for projection in outputs:
            nn.init.zeros_(projection.weight)

    @property
    def num_blocks(self) -> int:
        return (self.grid[0] // self.block[0]) * (self.grid[1] // self.block[1])

    def initial_state(self, batch_size: int) -> Memory:
        scan, conv = self.mixer.initial_state(batch_size * self.num_blocks)
        blocks = self.num_blocks
        memory = {
            "scan": rearrange(scan, "(b k) h p n -> b k h p n", k=blocks),
            "conv": rearrange(conv, "(b k) l d -> b k l d", k=blocks),
        }
        if self.attention is not None:
            num_tokens = self.grid[0] * self.grid[1]
            keys, values = self.attention.initial_state(batch_size, num_tokens)
            memory |= {"keys": keys, "values": values}
        return memory

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        memory: Memory,
        steps: Tensor,
        update: bool = True,
        poses: Tensor | None = None,
    ) -> tuple[Tensor, Memory]:
        mixed, new_memory = self._scan_blocks(self.mixer_norm(x, condition), memory, update, poses)
        x = x + mixed
        if self.attention is not None and self.attention_norm is not None:
            state = AttentionState(memory["keys"], memory["values"])
            y, state = self.attention(
                self.attention_norm(x, condition), state, steps, update, poses
            )
            x = x + y
            new_memory |= {"keys": state.keys, "values": state.values}
        return x + self.mlp(self.mlp_norm(x, condition)), new_memory

    def _scan_blocks(
        self, x: Tensor, memory: Memory, update: bool, poses: Tensor | None
    ) -> tuple[Tensor, Memory]:
        """Scan every block through time, its tokens in raster order within a frame."""
        (h, w), (p, q) = self.grid, self.block
        sizes = {"t": x.shape[1], "i": h // p, "j": w // q, "p": p, "q": q}

        def cut(tokens: Tensor) -> Tensor:
            return rearrange(tokens, "b t (i p j q) d -> (b i j) (t p q) d", **sizes)

        state = SSMState(memory["scan"].flatten(0, 1), memory["conv"].flatten(0, 1))
        y, state = self.mixer(cut(x), state, update, None if poses is None else cut(poses))
        y = rearrange(y, "(b i j) (t p q) d -> b t (i p j q) d", **sizes)
        return y, {
            "scan": state.scan.unflatten(0, (-1, self.num_blocks)),
            "conv": state.conv.unflatten(0, (-1, self.num_blocks)),
        }


class BlockSSMBackbone(LayeredBackbone):
    """The default backbone: memory of constant size, training cost linear in time."""

    def __init__(
        self, config: BlockSSMConfig, grid: tuple[int, int], pose: PoseConfig | None = None
    ) -> None:
        super().__init__()
        for size in config.block_sizes:
            rows, columns = rows_and_columns(size, grid)
            if rows < 1 or columns < 1 or grid[0] % rows or grid[1] % columns:
                raise ValueError(
                    f"block size {size} does not divide the token grid {grid}: choose block_sizes "
                    "that do"
                )
        sizes = [config.block_sizes[i % len(config.block_sizes)] for i in range(config.num_layers)]
        self.layers = nn.ModuleList(
            BlockSSMLayer(config, size, grid, pose, seed=i) for i, size in enumerate(sizes)
        )
