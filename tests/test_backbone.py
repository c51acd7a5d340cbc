"""The backbone streams as it runs in parallel, never sees the future and remembers a fixed size."""

import dataclasses
import re

import pytest
import torch
from tiny import leave_nothing_at_zero
from torch import Tensor, nn

from worldsim.backbone import BlockSSMConfig, Memory, count_parameters, make_backbone
from worldsim.backbone_block_ssm import BlockSSMLayer

GRID = (2, 4)
TINY = BlockSSMConfig(
    d_model=16,
    num_layers=2,
    block_sizes=(1, 2),
    window=3,
    head_dim=8,
    d_state=4,
    mlp_ratio=2,
    chunk_size=8,
)
VARIANTS = {
    "mixed blocks": {},
    "block size 1": {"block_sizes": (1,)},
    "block size 2": {"block_sizes": (2,)},
    "rows": {"block_sizes": ((1, 4), (2, 1))},
    "no attention": {"window": 0},
    "one frame of attention": {"window": 1},
    "long window": {"window": 20},
    "wide, short convolution": {"expand": 2, "d_conv": 2},
}


def build(seed: int = 0, **changes: object) -> nn.Module:
    """A backbone with no weight at zero, so that everything can matter."""
    torch.manual_seed(seed)
    backbone = make_backbone(dataclasses.replace(TINY, **changes), GRID)  # type: ignore[arg-type]
    leave_nothing_at_zero(backbone, std=0.2)
    return backbone.eval()


def inputs(t: int, b: int = 2, seed: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(b, t, GRID[0] * GRID[1], 16, generator=g)
    return x, torch.randn(b, t, 16, generator=g)


def parallel(backbone: nn.Module, x: Tensor, condition: Tensor) -> tuple[Tensor, Memory]:
    steps = torch.zeros(len(x), dtype=torch.int64)
    return backbone(x, condition, backbone.initial_state(len(x)), steps)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_streaming_in_any_pieces_is_parallel(variant: str) -> None:
    backbone = build(**VARIANTS[variant])
    x, condition = inputs(9)
    expected, expected_memory = parallel(backbone, x, condition)
    for pieces in ([1] * 9, [4, 1, 4], [2, 7]):
        memory, steps = backbone.initial_state(2), torch.zeros(2, dtype=torch.int64)
        outputs = []
        for a, c in zip(x.split(pieces, 1), condition.split(pieces, 1), strict=True):
            y, memory = backbone(a, c, memory, steps)
            steps = steps + a.shape[1]
            outputs.append(y)
        torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-3, atol=1e-4)
        assert memory.keys() == expected_memory.keys()
        for name in memory:
            torch.testing.assert_close(memory[name], expected_memory[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_past_does_not_see_the_future(variant: str) -> None:
    backbone = build(**VARIANTS[variant])
    x, condition = inputs(8)
    y, _ = parallel(backbone, x, condition)
    for changed, where in ((x.clone(), 0), (condition.clone(), 1)):
        changed[:, 5] += 1
        z, _ = parallel(backbone, *((changed, condition) if where == 0 else (x, changed)))
        assert torch.equal(y[:, :5], z[:, :5])
        assert not torch.allclose(y[:, 5:], z[:, 5:])


@torch.no_grad()
def test_memory_reaches_beyond_the_window() -> None:
    backbone = build(window=2)
    x, condition = inputs(12)
    changed = x.clone()
    changed[:, 0] += 1
    y, z = (parallel(backbone, a, condition)[0] for a in (x, changed))
    assert not torch.allclose(y[:, -1], z[:, -1], rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_block_has_a_state_of_its_own() -> None:
    """Without attention, blocks of one token never exchange anything."""
    backbone = build(block_sizes=(1,), window=0)
    x, condition = inputs(6)
    changed = x.clone()
    changed[:, 2, 5] += 1
    y, z = (parallel(backbone, a, condition)[0] for a in (x, changed))
    others = [n for n in range(GRID[0] * GRID[1]) if n != 5]
    assert torch.equal(y[:, :, others], z[:, :, others])
    # Blocks of 2 x 2 tokens are squares of the grid: 0, 1, 4, 5 and 2, 3, 6, 7.
    backbone = build(block_sizes=(2,), window=0)
    y, z = (parallel(backbone, a, condition)[0] for a in (x, changed))
    assert torch.equal(y[:, :, [2, 3, 6, 7]], z[:, :, [2, 3, 6, 7]])
    assert ((y - z)[:, 3:, [0, 1, 4, 5]].abs().amax((0, 1, 3)) > 0).all()


@torch.no_grad()
def test_a_row_has_a_state_of_its_own() -> None:
    backbone = build(block_sizes=((1, 4),), window=0)
    x, condition = inputs(6)
    changed = x.clone()
    changed[:, 2, 5] += 1
    y, z = (parallel(backbone, a, condition)[0] for a in (x, changed))
    assert torch.equal(y[:, :, :4], z[:, :, :4])  # the other row
    assert ((y - z)[:, 3:, 4:].abs().amax((0, 1, 3)) > 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_memory_size_is_constant_and_batch_first(variant: str) -> None:
    backbone = build(**VARIANTS[variant])
    empty = {k: v.shape for k, v in backbone.initial_state(3).items()}
    assert all(shape[0] == 3 for shape in empty.values())
    for t in (1, 2, 7, 30):
        _, memory = parallel(backbone, *inputs(t, b=3))
        assert {k: v.shape for k, v in memory.items()} == empty
        assert {v.dtype for v in memory.values()} == {torch.float32}


@torch.no_grad()
def test_batch_rows_are_independent() -> None:
    backbone = build()
    x, condition = inputs(5, b=3)
    y, memory = parallel(backbone, x, condition)
    for i in range(3):
        z, own = parallel(backbone, x[i : i + 1], condition[i : i + 1])
        torch.testing.assert_close(z, y[i : i + 1], rtol=1e-4, atol=1e-5)
        for name in own:
            torch.testing.assert_close(own[name], memory[name][i : i + 1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_memory_given_is_left_alone() -> None:
    backbone = build()
    x, condition = inputs(3)
    _, memory = parallel(backbone, x, condition)
    before = {k: v.clone() for k, v in memory.items()}
    backbone(x, condition, memory, torch.full((2,), 3))
    assert all(torch.equal(memory[k], before[k]) for k in before)


def test_blocks_of_zero_are_as_large_as_the_frame() -> None:
    for size, meant in ((0, (2, 4)), ((1, 0), (1, 4)), ((0, 2), (2, 2))):
        layer = build(block_sizes=(size,)).layers[0]
        assert isinstance(layer, BlockSSMLayer) and layer.block == meant


@pytest.mark.parametrize("size", [-1, 3, 4, (2, 3), (4, 1), (1, -2)])
def test_block_sizes_that_do_not_fit_are_named(size: int | tuple[int, int]) -> None:
    named = re.escape(f"block size {size} does not divide the token grid (2, 4)")
    with pytest.raises(ValueError, match=named):
        build(block_sizes=(1, size))


def test_every_parameter_is_trained() -> None:
    backbone = build()
    parallel(backbone, *inputs(5))[0].square().sum().backward()
    for name, p in backbone.named_parameters():
        assert p.grad is not None and p.grad.any(), name
    assert count_parameters(backbone) == sum(p.numel() for p in backbone.parameters())
