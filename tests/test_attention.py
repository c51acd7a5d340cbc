"""Attention reaches exactly its window, never the future, and streams as it runs in parallel."""

import math

import pytest
import torch
from torch import Tensor

from worldsim.attention import (
    AttentionConfig,
    AttentionState,
    FrameLocalAttention,
    HeadRotation,
    rotate,
)
from worldsim.backbone_far import FARBackbone, FARConfig
from worldsim.frame_attention import FrameProjection
from worldsim.pose import PoseConfig

TOKENS = 3


def make_attention(window: int, seed: int = 0) -> FrameLocalAttention:
    torch.manual_seed(seed)
    return FrameLocalAttention(AttentionConfig(d_model=16, head_dim=8, window=window)).eval()


def frames(t: int, b: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(b, t, TOKENS, 16, generator=torch.Generator().manual_seed(seed))


def no_steps(b: int = 2) -> Tensor:
    return torch.zeros(b, dtype=torch.int64)


def parallel(attention: FrameLocalAttention, x: Tensor) -> Tensor:
    return attention(x, attention.initial_state(len(x), TOKENS), no_steps(len(x)))[0]


def reference(attention: FrameLocalAttention, x: Tensor) -> Tensor:
    """Every frame on its own, from the definition."""
    c = attention.config
    q, k, v = (
        part.unflatten(-1, (c.num_heads, c.head_dim)).permute(0, 3, 1, 2, 4)
        for part in attention.qkv(x).chunk(3, dim=-1)
    )  # (b, h, t, n, e)
    index = torch.arange(x.shape[1]).expand(len(x), -1)
    q, k = rotate(attention.query_norm(q), index), rotate(attention.key_norm(k), index)
    outputs = []
    for t in range(x.shape[1]):
        first = max(t - c.window + 1, 0)
        keys, values = (a[:, :, first : t + 1].flatten(2, 3) for a in (k, v))
        weights = (q[:, :, t] @ keys.transpose(-1, -2) * c.head_dim**-0.5).softmax(-1)
        outputs.append((weights @ values).transpose(1, 2).flatten(2))
    return attention.out_proj(torch.stack(outputs, 1))


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("t", [1, 2, 4, 5, 8, 11])
@torch.no_grad()
def test_parallel_form_is_the_definition(window: int, t: int) -> None:
    attention, x = make_attention(window), frames(t)
    torch.testing.assert_close(parallel(attention, x), reference(attention, x))


@pytest.mark.parametrize("window", [1, 2, 3, 5])
@torch.no_grad()
def test_window_is_exact_and_causal(window: int) -> None:
    attention, x = make_attention(window), frames(12)
    y = parallel(attention, x)
    for t in (0, 4, 11):
        changed = x.clone()
        changed[:, t, 1] += 1
        difference = (parallel(attention, changed) - y).abs().amax((0, 3))  # (t, n)
        inside = torch.arange(12).ge(t) & torch.arange(12).lt(t + window)
        assert (difference[inside] > 0).all()  # every token of a frame sees every other
        assert (difference[~inside] == 0).all()


@pytest.mark.parametrize("window", [1, 2, 4])
@torch.no_grad()
def test_streaming_in_any_pieces_is_parallel(window: int) -> None:
    attention, x = make_attention(window), frames(13)
    expected = parallel(attention, x)
    for pieces in ([1] * 13, [5, 1, 7], [2, 11], [12, 1], [4, 4, 5]):
        state, steps, outputs = attention.initial_state(2, TOKENS), no_steps(), []
        for piece in x.split(pieces, dim=1):
            y, state = attention(piece, state, steps)
            steps = steps + piece.shape[1]
            outputs.append(y)
            assert state.keys.shape == (2, 2, window - 1, TOKENS, 8)
        torch.testing.assert_close(torch.cat(outputs, 1), expected)


@pytest.mark.parametrize("t", [2, 9])
@torch.no_grad()
def test_slots_that_no_frame_has_filled_are_ignored(t: int) -> None:
    attention, x = make_attention(4), frames(t)
    empty = attention.initial_state(2, TOKENS)
    garbage = AttentionState(*(100 * torch.randn_like(a) for a in empty))
    steps = torch.tensor([0, 2])
    y, _ = attention(x, empty, steps)
    z, _ = attention(x, garbage, steps)
    assert torch.equal(y[0], z[0])
    assert not torch.allclose(y[1], z[1])
    oldest = AttentionState(*(a.clone() for a in empty))
    for a in oldest:
        a[:, :, 0] = 100.0  # with two frames seen, this slot of three is empty
    assert torch.equal(attention(x, oldest, steps)[0], y)


@torch.no_grad()
def test_envs_at_different_steps_do_not_touch() -> None:
    attention, x = make_attention(3), frames(6)
    state, steps = attention.initial_state(1, TOKENS), no_steps(1)
    _, seen = attention(x[:1, :4], state, steps)
    both = AttentionState(*(torch.cat(pair) for pair in zip(seen, state, strict=True)))
    y, _ = attention(x[:, 4:], both, torch.tensor([4, 0]))
    torch.testing.assert_close(y[:1], parallel(attention, x[:1])[:, 4:])
    torch.testing.assert_close(y[1:], parallel(attention, x[1:, 4:]))


@torch.no_grad()
def test_only_differences_of_time_matter() -> None:
    attention, x = make_attention(3), frames(7)
    state = attention.initial_state(2, TOKENS)
    _, early = attention(x[:, :3], state, no_steps())
    _, late = attention(x[:, :3], state, no_steps() + 1000)
    y, _ = attention(x[:, 3:], early, no_steps() + 3)
    z, _ = attention(x[:, 3:], late, no_steps() + 1003)
    torch.testing.assert_close(y, z, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_state_given_is_left_alone() -> None:
    attention, x = make_attention(3), frames(2)
    _, state = attention(x, attention.initial_state(2, TOKENS), no_steps())
    before = [a.clone() for a in state]
    attention(x, state, no_steps() + 2)
    assert all(torch.equal(a, b) for a, b in zip(state, before, strict=True))


def test_rotation_keeps_length_and_depends_on_distance() -> None:
    q, k = torch.randn(2, 1, 1, 1, 1, 8)
    at = lambda x, i: rotate(x, torch.tensor([[i]]))  # noqa: E731
    torch.testing.assert_close(at(q, 7).norm(), q.norm())
    torch.testing.assert_close((at(q, 9) * at(k, 4)).sum(), (at(q, 5) * at(k, 0)).sum())


def test_gradients_flow_through_both_paths() -> None:
    for t in (3, 9):
        attention = make_attention(4)
        x = frames(t).requires_grad_()
        parallel(attention, x).square().sum().backward()
        assert x.grad is not None and x.grad.isfinite().all()
        for p in attention.parameters():
            assert p.grad is not None and p.grad.isfinite().all() and p.grad.any()


def test_a_head_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="head_dim 5 does not divide d_model 16"):
        _ = AttentionConfig(d_model=16, head_dim=5).num_heads


@pytest.mark.gpu
@torch.no_grad()
def test_fused_kernels_agree_with_plain_products() -> None:
    for t in (3, 9):
        attention, x = make_attention(4), frames(t)
        expected = parallel(attention, x)
        y = attention.cuda()(x.cuda(), attention.initial_state(2, TOKENS), no_steps().cuda())[0]
        torch.testing.assert_close(y.cpu(), expected, rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_coarse_frames_begin_like_what_they_are_of() -> None:
    """So that fine queries find the coarse keys of tokens like them."""
    torch.manual_seed(0)
    far = FARBackbone(FARConfig(d_model=64, num_layers=1, head_dim=32), (2, 2))
    x = torch.randn(1, 3, 4, 64)
    torch.testing.assert_close(far.coarse_in(far._patches(x).flatten(-2)), x.mean(2, keepdim=True))


@torch.no_grad()
def test_what_recalls_begins_as_a_lookup() -> None:
    """As the scans do, so that no backbone has to find out first what poses are for."""
    torch.manual_seed(0)
    t, width, pose = 128, 128, PoseConfig()
    poses = torch.rand(1, t, 1, 3) * torch.tensor([7, 7, 2 * math.pi])
    seen, then = torch.randn(2, 1, t, 1, width)  # other content at the same places
    times = torch.arange(2 * t)[None]
    attention = FrameProjection(width, 32, pose)
    _, k, _ = attention.project(seen, times[:, :t], poses)
    q, _, _ = attention.project(then, times[:, t:], poses)
    weights = torch.einsum("bhtne,bhsne->bhts", q, k * 32**-0.5).softmax(-1)
    assert t * weights.diagonal(dim1=-2, dim2=-1).mean() > 4  # 1 where nothing is looked up
    local = FrameLocalAttention(AttentionConfig(d_model=width, head_dim=32), pose)
    assert local.rotation.map_bias is None
    windowed = FrameLocalAttention(AttentionConfig(d_model=width, head_dim=32), pose, recalls=True)
    assert windowed.rotation.map_bias is not None
    for recalling in (windowed, FrameProjection(width, 32)):  # told poses, and told none
        to_q, to_k, _ = recalling.qkv.weight.chunk(3)
        torch.testing.assert_close(to_q, to_k)
    mixing = FrameProjection(width, 32, recalls=False)  # among neighbours
    to_q, to_k, _ = mixing.qkv.weight.chunk(3)
    assert (to_q - to_k).abs().max() > 0.01


@torch.no_grad()
def test_what_recalls_finds_memories_of_any_age() -> None:
    """Without poses, a key is as much like the same query after 1,000 frames as after 100."""
    x = torch.randn(1, 64, 1, 1, 16)
    likeness = {}
    for recalls in (True, False):
        rotation = HeadRotation(64, 16, None, seed=0, recalls=recalls)
        turned = [rotation(x, torch.tensor([[age]])) for age in range(1100)]
        products = torch.stack([(turned[0] * k).sum() for k in turned]) / x.square().sum()
        likeness[recalls] = [products[at : at + 100].mean() for at in (100, 1000)]
    assert min(likeness[True]) > 0.4
    assert max(likeness[False]) < 0.2  # what attention over the last few frames need not find
