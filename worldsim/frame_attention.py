"""Attention between frames over memories that grow: full context, sliding windows, several levels.

Keys and values of past frames are kept newest last. Slots that lie before an env's first frame
(other envs of the batch are older) are told by its step count and never seen. Queries are processed
in chunks of frames, so that the working memory is linear in time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from worldsim.attention import AttentionState, HeadRotation, attend
from worldsim.pose import PoseConfig

QUERY_CHUNK = 32
"""Frames whose queries are processed at once; changes speed, never results."""


class KeySource(NamedTuple):
    """Frames to attend to, and how far back."""

    keys: Tensor  # (b, h, frames, m, e)
    values: Tensor
    first: int = 0
    """Number of its first frame, counted from the first query frame; past frames are negative."""
    min_lag: int = 0
    """Frames between a query and the newest frame that it sees; 0 sees its own."""
    max_lag: int | None = None
    """Frames between a query and the oldest frame that it sees; None sees all."""


def past_and_present(
    past: AttentionState, keys: Tensor, values: Tensor, min_lag: int = 0, max_lag: int | None = None
) -> list[KeySource]:
    """Sources for remembered frames and for those that the queries belong to."""
    return [
        KeySource(past.keys, past.values, -past.keys.shape[2], min_lag, max_lag),
        KeySource(keys, values, 0, min_lag, max_lag),
    ]


def frame_attention(q: Tensor, sources: list[KeySource], steps: Tensor) -> Tensor:
    """Softmax attention of the tokens of frames to those of earlier frames and their own.

    Args:
        q: (b, h, t, n, e) queries of t frames.
        sources: keys and values; every query must see at least one frame.
        steps: (b,) frames that an env has had before these t; earlier slots are not seen.

    Returns:
        (b, h, t, n, e).
    """
    t, n = q.shape[2:4]
    outputs = []
    for start in range(0, t, QUERY_CHUNK):
        stop = min(start + QUERY_CHUNK, t)
        keys, values, masks = [], [], []
        for source in sources:
            oldest = 0 if source.max_lag is None else start - source.max_lag - source.first
            newest = stop - source.min_lag - source.first
            seen = range(max(oldest, 0), min(newest, source.keys.shape[2]))
            if not seen:
                continue
            part = slice(seen.start, seen.stop)
            keys.append(source.keys[:, :, part].flatten(2, 3).to(q.dtype))
            values.append(source.values[:, :, part].flatten(2, 3).to(q.dtype))
            masks.append(_token_mask(source, range(start, stop), seen, steps, n))
        batch = max(len(mask) for mask in masks)
        mask = torch.cat([m.expand(batch, -1, -1, -1) for m in masks], dim=-1)
        query = rearrange(q[:, :, start:stop], "b h t n e -> b h (t n) e")
        y = _attend_pieces(query, keys, values, mask)
        outputs.append(rearrange(y, "b h (t n) e -> b h t n e", n=n))
    return torch.cat(outputs, dim=2)


def _attend_pieces(q: Tensor, keys: list[Tensor], values: list[Tensor], mask: Tensor) -> Tensor:
    """`attend` to keys in pieces; on CPU without joining them, which would copy a whole memory."""
    if q.is_cuda or len(keys) == 1:
        return attend(q, torch.cat(keys, dim=2), torch.cat(values, dim=2), mask)
    q = q * q.shape[-1] ** -0.5
    scores = torch.cat([q @ k.transpose(-1, -2) for k in keys], dim=-1)
    bias = torch.zeros(mask.shape, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
    weights = (scores + bias).softmax(-1).split([k.shape[2] for k in keys], dim=-1)
    parts = [w.to(v.dtype) @ v for w, v in zip(weights, values, strict=True)]
    return torch.stack(parts).sum(0)


def _token_mask(source: KeySource, queries: range, seen: range, steps: Tensor, n: int) -> Tensor:
    """What tokens of the query frames see of the key frames: (b or 1, 1, queries n, keys m)."""
    device = steps.device
    i = torch.arange(queries.start, queries.stop, device=device)[:, None]
    j = torch.arange(seen.start, seen.stop, device=device)[None] + source.first
    visible = i - j >= source.min_lag
    if source.max_lag is not None:
        visible &= i - j <= source.max_lag
    mask = visible[None]
    if source.first + seen.start < 0:
        mask = mask & (j >= -steps[:, None])[:, None]
    mask = mask[:, None, :, None, :, None].expand(-1, 1, -1, n, -1, source.keys.shape[3])
    return rearrange(mask, "b one i n j m -> b one (i n) (j m)")


def extend(past: Tensor, new: Tensor, frame_dim: int, keep: int | None = None) -> Tensor:
    """A memory with new frames after the old ones; with `keep`, only that many of the last."""
    t = torch.cat([past, new.to(past.dtype)], dim=frame_dim)
    if keep is None or t.shape[frame_dim] <= keep:
        return t
    # A copy: a view would keep what was dropped for as long as the state lives.
    return t.narrow(frame_dim, t.shape[frame_dim] - keep, keep).clone()


def forget_before(memory: dict[str, Tensor], steps: Tensor, frame_dim: int) -> dict[str, Tensor]:
    """Drop slots that no env of the batch has filled: frames lie along `frame_dim`, newest last."""
    longest = int(steps.max()) if len(steps) else 0
    return {
        name: t.narrow(frame_dim, t.shape[frame_dim] - longest, longest)
        if t.shape[frame_dim] > longest
        else t
        for name, t in memory.items()
    }


class FrameProjection(nn.Module):
    """Queries, keys and values of tokens with rotary frame numbers, and the way back.

    The projections and normalisations are those of `attention.FrameLocalAttention`. Where it is
    what its model remembers by (`recalls`), it begins as a lookup (`attention.HeadRotation`).
    """

    def __init__(
        self,
        d_model: int,
        head_dim: int,
        pose: PoseConfig | None = None,
        seed: int = 0,
        recalls: bool = True,
    ) -> None:
        super().__init__()
        if d_model % head_dim:
            raise ValueError(f"head_dim {head_dim} does not divide d_model {d_model}")
        self.num_heads = d_model // head_dim
        self.head_dim = head_dim
        self.rotation = HeadRotation(self.num_heads, head_dim, pose, seed, recalls)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.rotation.begin_as_lookup(self.qkv)
        self.query_norm = nn.RMSNorm(head_dim, eps=1e-5)
        self.key_norm = nn.RMSNorm(head_dim, eps=1e-5)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        nn.init.zeros_(self.out_proj.weight)

    def empty(self, batch_size: int, num_tokens: int) -> Tensor:
        """Keys or values of no frame: (b, h, 0, n, e)."""
        shape = (batch_size, self.num_heads, 0, num_tokens, self.head_dim)
        return self.qkv.weight.new_zeros(shape)

    def project(
        self, x: Tensor, index: Tensor, poses: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens to queries, keys and values (b, h, t, n, e).

        Args:
            x: (b, t, n, d). index: (b, t) frame numbers. poses: (b, t, n, 3), where they are told.
        """
        q, k, v = rearrange(self.qkv(x), "b t n (s h e) -> s b h t n e", s=3, e=self.head_dim)
        q = self.rotation(self.query_norm(q.float()).to(v.dtype), index, poses)
        k = self.rotation(self.key_norm(k.float()).to(v.dtype), index, poses, keys=True)
        return q, k, v

    def merge(self, y: Tensor) -> Tensor:
        """Attended values (b, h, t, n, e) to tokens (b, t, n, d)."""
        return self.out_proj(rearrange(y, "b h t n e -> b t n (h e)"))
