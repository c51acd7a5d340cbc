"""A recurrent state-space model over frame vectors: the cheapest memory.

The family of S4WM (Deng et al. 2023, arXiv 2307.02064) and R2I (Samsami et al. 2024, arXiv
2403.04253): a frame is one token of the sequence model. Here each layer squeezes the tokens of a
frame into one vector, scans the vectors through time with one Mamba-2 mixer, spreads the result
over the tokens again, and lets the tokens of the frame attend to each other. All that is remembered
passes through that one vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from worldsim.frame_attention import FrameProjection, KeySource, frame_attention
from worldsim.layers import MLP, AdaptiveNorm, LayeredBackbone, Memory
from worldsim.pose import PoseConfig
from worldsim.ssm import Mamba2Mixer, ScanBackend, SSMConfig, SSMState


@dataclass(frozen=True, kw_only=True)
class FrameSSMConfig:
    """One vector per frame, scanned through time."""

    kind: Literal["frame_ssm"] = "frame_ssm"
    d_model: int = 256
    num_layers: int = 4
    d_frame: int = 512
    """Width of the frame vector; the number of tokens must divide it."""
    head_dim: int = 64
    d_state: int = 64
    d_conv: int = 4
    mixing_conv: bool = False
    """See `ssm.SSMConfig`."""
    mlp_ratio: int = 4
    chunk_size: int = 32
    scan_backend: ScanBackend = "auto"

    def ssm(self) -> SSMConfig:
        return SSMConfig(
            d_model=self.d_frame,
            d_state=self.d_state,
            d_conv=self.d_conv,
            mixing_conv=self.mixing_conv,
            head_dim=self.head_dim,
            chunk_size=self.chunk_size,
            backend=self.scan_backend,
        )


class FrameSSMLayer(nn.Module):
    """Scan of frame vectors, then attention within frames, then MLP, each with its residual."""

    def __init__(
        self, config: FrameSSMConfig, num_tokens: int, pose: PoseConfig | None, seed: int
    ) -> None:
        super().__init__()
        d = config.d_model
        share = config.d_frame // num_tokens
        self.num_tokens = num_tokens
        self.mixer_norm = AdaptiveNorm(d)
        self.squeeze = nn.Linear(d, share, bias=False)
        self.mixer = Mamba2Mixer(config.ssm(), pose, seed)
        self.spread = nn.Linear(share, d, bias=False)
        self.attention_norm = AdaptiveNorm(d)
        self.attention = FrameProjection(d, config.head_dim, recalls=False)
        self.mlp_norm = AdaptiveNorm(d)
        self.mlp = MLP(d, config.mlp_ratio)
        for projection in (self.spread, self.mlp.down):
            nn.init.zeros_(projection.weight)

    def initial_state(self, batch_size: int) -> Memory:
        return self.mixer.initial_state(batch_size)._asdict()

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        memory: Memory,
        steps: Tensor,
        update: bool = True,
        poses: Tensor | None = None,
    ) -> tuple[Tensor, Memory]:
        if poses is not None:
            poses = poses.mean(2)  # columns to the left and to the right cancel out
        vectors = rearrange(self.squeeze(self.mixer_norm(x, condition)), "b t n s -> b t (n s)")
        state = SSMState(memory["scan"], memory["conv"])
        vectors, state = self.mixer(vectors, state, update, poses)
        x = x + self.spread(rearrange(vectors, "b t (n s) -> b t n s", n=self.num_tokens))
        x = x + self._attend_within_frames(self.attention_norm(x, condition))
        return x + self.mlp(self.mlp_norm(x, condition)), state._asdict()

    def _attend_within_frames(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        x = rearrange(x, "b t n d -> (b t) 1 n d")
        zero = torch.zeros(len(x), 1, dtype=torch.int64, device=x.device)
        q, k, v = self.attention.project(x, zero)
        y = self.attention.merge(frame_attention(q, [KeySource(k, v)], zero[:, 0]))
        return rearrange(y, "(b t) 1 n d -> b t n d", b=b)


class FrameSSMBackbone(LayeredBackbone):
    """Recurrent state-space model over frames; memory of constant, small size.

    Raises:
        ValueError: the number of tokens does not divide `d_frame`.
    """

    def __init__(
        self, config: FrameSSMConfig, grid: tuple[int, int], pose: PoseConfig | None = None
    ) -> None:
        super().__init__()
        num_tokens = grid[0] * grid[1]
        if config.d_frame % num_tokens:
            raise ValueError(
                f"d_frame {config.d_frame} is not a multiple of the {num_tokens} tokens of a frame"
            )
        self.layers = nn.ModuleList(
            FrameSSMLayer(config, num_tokens, pose, seed=i) for i in range(config.num_layers)
        )
