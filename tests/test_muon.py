"""Muon."""

from __future__ import annotations

import torch

from worldsim.muon import Muon, orthogonalize


def test_it_updates_as_torchs_does() -> None:
    torch.manual_seed(0)
    start = [torch.randn(12, 20), torch.randn(20, 12), torch.randn(12, 20)]
    target = [torch.randn_like(p) for p in start]
    ours, theirs = ([p.clone().requires_grad_() for p in start] for _ in range(2))
    optimizers = (
        Muon(ours, lr=0.05, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.05, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            for p, t in zip(params, target, strict=True):
                p.grad = (p - t).detach()
            optimizer.step()
    for p, other, before in zip(ours, theirs, start, strict=True):
        moved = other - before
        # Theirs takes its products in bfloat16.
        assert (p - other).norm() < 0.02 * moved.norm()


def test_what_it_gives_is_nearly_orthogonal() -> None:
    torch.manual_seed(0)
    x = orthogonalize(torch.randn(3, 16, 40), torch.float32)
    values = torch.linalg.svdvals(x)
    assert values.min() > 0.5 and values.max() < 1.3


def test_matrices_without_a_gradient_stay() -> None:
    a, b = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    a.grad = torch.eye(4)
    Muon([a, b], lr=0.1).step()
    assert torch.equal(b, torch.ones(4, 4)) and not torch.equal(a, torch.ones(4, 4))
