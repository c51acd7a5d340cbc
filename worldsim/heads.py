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


def mean_where(loss: Tensor, known: Tensor) -> Tensor:
    """Mean of a loss where it is known, in all processes together; zero where it is nowhere.

    Args:
        loss, known: of the same shape, float and bool. Gradients are averaged over processes, of
            which one may know much more than another.
    """
    count, processes = known.sum().float(), 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        processes = torch.distributed.get_world_size()
    return processes * (loss * known).sum() / count.clamp(min=1)


def policy_loss(logits: Tensor, actions: Tensor, weight: Tensor) -> Tensor:
    """Of predicting the action taken after each frame but the last, where it is known.

    Args:
        logits: (b, t, num_actions).
        actions: (b, t) int64 that led to the frames; "no action" is `num_actions`.
        weight: (b, t) of the frames.
    """
    following, num_actions = actions[:, 1:], logits.shape[-1]
    losses = F.cross_entropy(
        rearrange(logits[:, :-1].float(), "b t a -> (b t) a"),
        following.clamp(max=num_actions - 1).flatten(),
        reduction="none",
    ).unflatten(0, following.shape)
    return weighted_mean(losses, weight[:, :-1] * (following < num_actions))


class Heads(nn.Module):
    """The read-out of a frame's tokens, and what is predicted from it.

    Features may have more behind the read-out, which these heads do not look at.

    Args:
        d_model: width of the read-out.
        num_actions: actions, "no action" not counted.
        num_bins, limit: of the distributions of reward and value, see `SymlogHead`.
    """

    def __init__(self, d_model: int, num_actions: int, num_bins: int, limit: float) -> None:
        super().__init__()
        self.d_model = d_model
        self.read_out = ReadOut(d_model)
        self.reward_head = SymlogHead(d_model, num_bins, limit)
        self.termination_head = make_head(d_model, 1)
        self.policy_head = make_head(d_model, num_actions)
        self.value_head = SymlogHead(d_model, num_bins, limit)

    def predict_reward(self, features: Tensor) -> Tensor:
        """Expected reward of arriving at the frame that was read out: (..., d) to (...)."""
        return self.reward_head.expectation(features[..., : self.d_model])

    def predict_termination(self, features: Tensor) -> Tensor:
        """Probability that the episode terminated on that frame: (..., d) to (...)."""
        return self.termination_head(features[..., : self.d_model]).float().squeeze(-1).sigmoid()

    def predict_value(self, features: Tensor) -> Tensor:
        """Discounted return that the recorded behaviour makes from there on: (..., d) to (...)."""
        return self.value_head.expectation(features[..., : self.d_model])

    def head_losses(
        self,
        read_outs: Tensor,
        actions: Tensor,
        rewards: Tensor,
        terminated: Tensor,
        returns: Tensor,
        return_weights: Tensor,
        weight: Tensor,
    ) -> dict[str, Tensor]:
        """Training losses of read-outs (b, t, d); all else is (b, t), as for `WorldModel.forward`.

        Args:
            weight: how much each frame counts.

        Returns:
            Scalars "reward", "termination", "policy", "value".
        """
        led = actions != self.policy_head[-1].out_features
        ended = F.binary_cross_entropy_with_logits(
            self.termination_head(read_outs).float().squeeze(-1),
            terminated.float(),
            reduction="none",
        )
        reward = self.reward_head.loss(read_outs, rewards)
        value = self.value_head.loss(read_outs, returns)
        return {
            "reward": weighted_mean(reward, weight * led),
            "termination": weighted_mean(ended, weight),
            "policy": policy_loss(self.policy_head(read_outs), actions, weight),
            # By the weights of frames alone: where little is known, little is learned.
            "value": weighted_mean(value * return_weights, weight),
        }
