"""Frame-local attention: bidirectional within a frame, causal over a window of frames.

Po et al. 2025 (arXiv 2505.20171), section 3.3. The memory is the keys and values of the last
`window - 1` frames, so its size is fixed. Time enters through rotary embeddings of the frame index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from worldsim.layers import rotate_pairs
from worldsim.pose import PoseConfig, PoseRotation


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Frame-local attention sizes."""

    d_model: int = 256
    head_dim: int = 64
    window: int = 8
    """Frames a token sees, its own included."""

    @property
    def num_heads(self) -> int:
        if self.d_model % self.head_dim:
            raise ValueError(f"head_dim {self.head_dim} does not divide d_model {self.d_model}")
        return self.d_model // self.head_dim


class AttentionState(NamedTuple):
    """Keys and values of the last frames, each (b, h, window - 1, n, head_dim), oldest first."""

    keys: Tensor
    values: Tensor


def rotate(x: Tensor, index: Tensor) -> Tensor:
    """Rotary embedding of the frame index (Su et al. 2021, arXiv 2104.09864).

    Args:
        x: (b, h, t, n, e). index: (b, t) frame numbers, any integer dtype.
    """
    half = x.shape[-1] // 2
    speeds = 0.01 ** torch.linspace(0, 1, half, device=x.device)  # 1 rad a frame down to 0.01
    return rotate_pairs(x, index[:, None, :, None, None].float() * speeds)


class HeadRotation(nn.Module):
    """Rotary embeddings of queries and keys: of the frame index, and of the pose where it is told.

    With poses, half of each head's numbers turn with the one and half with the other. Where
    attention recalls and there are no poses, that other half does not turn, so that memories are
    found by what they are, however long ago they were (partial rotary embeddings, as in Barbero
    et al. 2024, arXiv 2410.06205): were all to turn, memories would be alike by age, and ages
    beyond those of training would never be learned.

    Args:
        num_heads, head_dim: of the attention.
        pose: of a model that is told poses.
        seed: of the poses' frequencies.
        recalls: attention is what the model remembers by, so it begins as a lookup by likeness, of
            poses above all where they are told, as the scans of `ssm.Mamba2Mixer` do.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        pose: PoseConfig | None,
        seed: int,
        recalls: bool = False,
    ) -> None:
        super().__init__()
        self.recalls = recalls
        self.pose: PoseRotation | None = None
        self.map_bias: nn.Parameter | None = None
        if pose is not None and pose.rotary:
            self.pose = PoseRotation(pose, head_dim // 2, num_heads, seed)
            if recalls:
                # Common to queries and keys whatever the tokens hold: alikeness of poses alone.
                self.map_bias = nn.Parameter(torch.ones(2, num_heads, 1, 1, head_dim // 2))

    def forward(
        self, x: Tensor, index: Tensor, poses: Tensor | None = None, keys: bool = False
    ) -> Tensor:
        """Rotate queries, or keys.

        Args:
            x: (b, h, t, n, e). index: (b, t) frame numbers. poses: (b, t, n, 3) of the tokens.
            keys: these are keys.
        """
        timed, placed = x.chunk(2, dim=-1)
        if self.pose is None or poses is None:
            if self.recalls:
                return torch.cat([rotate(timed, index), placed], dim=-1)
            return rotate(x, index)
        if self.map_bias is not None:
            placed = placed + self.map_bias[int(keys)].to(placed.dtype)
        angle = rearrange(self.pose.angles(poses), "b t n h f -> b h t n f")
        return torch.cat([rotate(timed, index), rotate_pairs(placed, angle)], dim=-1)

    @torch.no_grad()
    def begin_as_lookup(self, qkv: nn.Linear) -> None:
        """Where attention recalls, queries and keys begin as the same map of the same token.

        Args:
            qkv: their projection, and the values'.
        """
        if self.recalls:
            to_q, to_k, _ = qkv.weight.chunk(3)
            to_k.copy_(to_q)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention of q (..., l, e) over k, v (..., m, e) where `mask` (..., l, m) is true.

    On CUDA PyTorch's fused kernels; on CPU plain products, which are twice as fast in bfloat16.
    """
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    bias = torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
    return (scores + bias).softmax(-1) @ v


class FrameLocalAttention(nn.Module):
    """Multi-head attention over the tokens of the last `window` frames.

    Args:
        config: sizes.
        pose: of a model that is told poses.
        seed: of the rotations.
        recalls: see `HeadRotation`.
    """

    def __init__(
        self,
        config: AttentionConfig,
        pose: PoseConfig | None = None,
        seed: int = 0,
        recalls: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.rotation = HeadRotation(config.num_heads, config.head_dim, pose, seed, recalls)
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.rotation.begin_as_lookup(self.qkv)
        self.query_norm = nn.RMSNorm(config.head_dim, eps=1e-5)
        self.key_norm = nn.RMSNorm(config.head_dim, eps=1e-5)
        self.out_proj = nn.Linear(config.d_model, config.d_model, bias=False)

    def initial_state(self, batch_size: int, num_tokens: int) -> AttentionState:
        c = self.config
        shape = (batch_size, c.num_heads, c.window - 1, num_tokens, c.head_dim)
        empty = self.qkv.weight.new_zeros(shape)
        return AttentionState(empty, empty.clone())

    def forward(
        self,
        x: Tensor,
        state: AttentionState,
        steps: Tensor,
        update: bool = True,
        poses: Tensor | None = None,
    ) -> tuple[Tensor, AttentionState]:
        """Attend.

        Args:
            x: (b, t, n, d_model), any t >= 1.
            state: the frames before the first one of x.
            steps: (b,) how many frames came before; older slots of the state are ignored.
            update: False spares computing the state; the one given is then returned.
            poses: (b, t, n, 3) float32 of the tokens, where they are told.

        Returns:
            (b, t, n, d_model) and the state after the last frame.
        """
        window, t = self.config.window, x.shape[1]
        q, k, v = rearrange(
            self.qkv(x), "b t n (s h e) -> s b h t n e", s=3, e=self.config.head_dim
        )
        index = steps[:, None] + torch.arange(t, device=x.device)
        q = self.rotation(self.query_norm(q.float()).to(v.dtype), index, poses)
        k = self.rotation(self.key_norm(k.float()).to(v.dtype), index, poses, keys=True)
        k = torch.cat([state.keys.to(k.dtype), k], dim=2)
        v = torch.cat([state.values.to(v.dtype), v], dim=2)
        if update:
            # Copies: views would keep every frame of x in memory for as long as the state lives.
            state = AttentionState(
                k[:, :, t:].to(state.keys.dtype, copy=True),
                v[:, :, t:].to(state.values.dtype, copy=True),
            )
        if t <= window:
            y = self._attend(q, k, v, steps)
        else:
            y = self._attend_chunks(q, k, v, steps)
        y = rearrange(y, "b h t n e -> b t n (h e)")
        return self.out_proj(y), state

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, steps: Tensor) -> Tensor:
        """q (b, h, t, n, e) against k, v (b, h, window - 1 + t, n, e)."""
        b, _, t, n, _ = q.shape
        past = k.shape[2] - t
        i = torch.arange(t, device=q.device)[:, None] + past  # query frames, in key numbering
        j = torch.arange(past + t, device=q.device)[None]
        visible = (j <= i) & (j > i - self.config.window)
        known = j >= past - steps[:, None]  # (b, keys): slots filled by real frames
        mask = visible[None] & known[:, None]  # (b, t, keys)
        mask = mask[:, None, :, None, :, None].expand(b, 1, t, n, past + t, n)
        mask = mask.reshape(b, 1, t * n, (past + t) * n)
        q, k, v = (rearrange(a, "b h t n e -> b h (t n) e") for a in (q, k, v))
        y = attend(q, k, v, mask)
        return rearrange(y, "b h (t n) e -> b h t n e", n=n)

    def _attend_chunks(self, q: Tensor, k: Tensor, v: Tensor, steps: Tensor) -> Tensor:
        """The same for long sequences: each chunk of frames sees itself and the one before."""
        b, _, t, n, _ = q.shape
        size = self.config.window
        after = -t % size
        q = F.pad(q, (0, 0, 0, 0, 0, after))
        k, v = (F.pad(a, (0, 0, 0, 0, 1, after)) for a in (k, v))  # the state becomes one chunk
        q = rearrange(q, "b h (c t) n e -> b c h (t n) e", t=size)
        k, v = (rearrange(a, "b h (c t) n e -> b c h (t n) e", t=size) for a in (k, v))
        k, v = (torch.cat([a[:, :-1], a[:, 1:]], dim=3) for a in (k, v))
        chunks = q.shape[1]
        i = torch.arange(size, device=q.device)[:, None] + size
        j = torch.arange(2 * size, device=q.device)[None]
        visible = (j <= i) & (j > i - size)  # (size, 2 size)
        first = torch.arange(chunks, device=q.device)[:, None] * size + j - size  # (c, 2 size)
        known = first[None] >= -steps[:, None, None]  # (b, c, 2 size)
        mask = visible & known[:, :, None]  # (b, c, size, 2 size)
        mask = mask[:, :, :, None, :, None].expand(b, chunks, size, n, 2 * size, n)
        mask = mask.reshape(b * chunks, 1, size * n, 2 * size * n)
        q, k, v = (rearrange(a, "b c h l e -> (b c) h l e") for a in (q, k, v))
        y = attend(q, k, v, mask)
        y = rearrange(y, "(b c) h (t n) e -> b h (c t) n e", b=b, n=n)
        return y[:, :, :t]
