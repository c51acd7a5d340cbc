"""What is read from a frame's tokens: the read-out that pools them, and the heads on it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class ReadOut(nn.Module):
    """Attention pooling of a frame's tokens by learned queries, one per head."""

    def __init__(self, d_model: int, num_heads: int = 4) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scores = nn.Linear(d_model, num_heads)
        self.values = nn.Linear(d_model, d_model)
        self.mix = nn.Linear(d_model, d_model)

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, t, n, d) to (b, t, d)."""
        weights = self.scores(tokens).softmax(dim=-2)
        values = rearrange(self.values(tokens), "b t n (h e) -> b t n h e", h=self.num_heads)
        pooled = (weights[..., None] * values).sum(2).flatten(-2)
        return F.rms_norm(self.mix(F.silu(pooled)).float(), (pooled.shape[-1],), eps=1e-5)


def make_head(d_model: int, num_outputs: int) -> nn.Sequential:
    """Two layers, the last of which begins at zero."""
    last = nn.Linear(d_model, num_outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(d_model, d_model), nn.SiLU(), last)


class SymlogHead(nn.Sequential):
    """Predicts a number of unknown scale as a distribution over bins, evenly spaced in symlog.

    Two-hot targets and their cross-entropy, Hafner et al. 2023 (DreamerV3, arXiv 2301.04104): rare
    large numbers neither drown the small ones nor are drowned by them.

    Args:
        d_model: width of the features.
        num_bins: bins, an odd number has one at 0.
        limit: outermost bins in symlog, -limit and limit: 5 is 147, 7 is 1,096.
    """

    values: Tensor

    def __init__(self, d_model: int, num_bins: int, limit: float) -> None:
        super().__init__(*make_head(d_model, num_bins))
        bins = torch.linspace(-limit, limit, num_bins)
        self.register_buffer("values", bins.sign() * bins.abs().expm1(), persistent=False)

    def expectation(self, features: Tensor) -> Tensor:
        """(..., d) to (...) float32."""
        return self(features).float().softmax(-1) @ self.values

    def loss(self, features: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy with the two-hot code of the target: (..., d) and (...) to (...)."""
        return -(self.two_hot(target) * self(features).float().log_softmax(-1)).sum(-1)

    def two_hot(self, value: Tensor) -> Tensor:
        """Shares of the two bins around each value, which average to it: (...) to (..., bins)."""
        values = self.values
        value = value.float().clamp(values[0], values[-1])[..., None]
        above = (values < value).sum(-1, keepdim=True).clamp(1, len(values) - 1)
        low, high = values[above - 1], values[above]
        share = (value - low) / (high - low)
        code = torch.zeros(*value.shape[:-1], len(values), device=value.device)
        return code.scatter(-1, above - 1, 1 - share).scatter(-1, above, share)


def weighted_mean(loss: Tensor, weight: Tensor) -> Tensor:
    """Mean over segments of a weighted mean over frames; (b, t) each."""
    return ((loss * weight).sum(1) / weight.sum(1).clamp(min=1e-6)).mean()
