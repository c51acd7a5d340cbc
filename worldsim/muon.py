"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): momentum made orthogonal.

The same update as `torch.optim.Muon`, which takes one matrix after the other, bfloat16 always: on
processors without bfloat16 products that makes a training step ten times slower. Here matrices of a
shape are taken together, in the precision that the device is fast in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from worldsim.checkpoint import fast_dtype

COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of the quintic iteration; they move singular values to between about 0.7 and 1.2 quickly."""


def orthogonalize(matrices: Tensor, dtype: torch.dtype, steps: int = 5) -> Tensor:
    """Matrices with the same singular vectors and singular values near one, by Newton-Schulz.

    Args:
        matrices: (n, rows, columns) float32.
        dtype: precision of the products.
        steps: of the iteration.

    Returns:
        (n, rows, columns) in `dtype`.
    """
    a, b, c = COEFFICIENTS
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = (matrices if wide else matrices.mT).to(dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, its updates scaled to the size of AdamW's.

    Args:
        params: matrices.
        lr: learning rate, as for AdamW (Liu et al. 2025, arXiv 2502.16982).
        weight_decay: decoupled, as AdamW's.
        momentum: of the gradients.
        dtype: of matrix products; None is `fast_dtype` of where the matrices are.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update all matrices that have a gradient; takes no closure."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault(p.shape, []).append(p)
            for (rows, columns), params in alike.items():
                gradients = [p.grad for p in params if p.grad is not None]
                momenta = [self._momentum(p) for p in params]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
                dtype = self.dtype or fast_dtype(params[0].device)
                directions = orthogonalize(torch.stack(updates), dtype)
                scale = 0.2 * max(rows, columns) ** 0.5
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                steps = (-group["lr"] * scale * directions.to(params[0].dtype)).unbind()
                torch._foreach_add_(params, steps)

    def _momentum(self, p: Tensor) -> Tensor:
        """Of the gradients of one matrix so far."""
        if "momentum_buffer" not in self.state[p]:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return self.state[p]["momentum_buffer"]
