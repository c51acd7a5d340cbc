"""One scan, four ways: chunked, recurrent, the published minimal code, transformers' Mamba-2."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from worldsim.pose import PoseConfig
from worldsim.ssm import (
    Mamba2Mixer,
    SSMConfig,
    SSMState,
    has_mamba_ssm,
    scan_chunked,
    scan_mamba_ssm,
    scan_recurrent,
)

BATCH, HEADS, WIDTH, D_STATE = 2, 3, 4, 5


def scan_inputs(
    length: int, seed: int = 0, dtype: torch.dtype = torch.float32, groups: int = 1
) -> list[Tensor]:
    """x, dt, A, B, C and a state that is not empty; decays from slow to total."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype)

    return [
        normal(BATCH, length, HEADS, WIDTH),
        normal(BATCH, length, HEADS).exp() * 0.3,
        -torch.tensor([0.01, 1.0, 16.0], dtype=dtype),
        normal(BATCH, length, groups, D_STATE),
        normal(BATCH, length, groups, D_STATE),
        normal(BATCH, HEADS, WIDTH, D_STATE),
    ]


def segsum(x: Tensor) -> Tensor:
    """Sums over segments, exp(segsum(A)) being the 1-semiseparable matrix of A."""
    length = x.size(-1)
    x = repeat(x, "... d -> ... d e", e=length)
    lower = torch.ones(length, length, dtype=torch.bool)
    x = x.masked_fill(~lower.tril(-1), 0).cumsum(-2)
    return x.masked_fill(~lower.tril(0), -torch.inf)


def ssd_minimal_discrete(
    X: Tensor, A: Tensor, B: Tensor, C: Tensor, block_len: int, initial_states: Tensor
) -> tuple[Tensor, Tensor]:
    """Listing 1 of Dao & Gu 2024 (arXiv 2405.21060)."""
    X, A, B, C = (rearrange(x, "b (c l) ... -> b c l ...", l=block_len) for x in (X, A, B, C))
    A = rearrange(A, "b c l h -> b h c l")
    A_cumsum = torch.cumsum(A, dim=-1)
    L = torch.exp(segsum(A))
    Y_diag = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", C, B, L, X)
    decay_states = torch.exp(A_cumsum[..., -1:] - A_cumsum)
    states = torch.einsum("bclhn,bhcl,bclhp->bchpn", B, decay_states, X)
    states = torch.cat([initial_states[:, None], states], dim=1)
    decay_chunk = torch.exp(segsum(torch.nn.functional.pad(A_cumsum[..., -1], (1, 0))))
    new_states = torch.einsum("bhzc,bchpn->bzhpn", decay_chunk, states)
    states, final_state = new_states[:, :-1], new_states[:, -1]
    Y_off = torch.einsum("bclhn,bchpn,bhcl->bclhp", C, states, torch.exp(A_cumsum))
    return rearrange(Y_diag + Y_off, "b c l h p -> b (c l) h p"), final_state


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 24, 37])
@pytest.mark.parametrize("chunk_size", [1, 4, 8, 64])
@pytest.mark.parametrize("groups", [1, HEADS])
def test_chunked_scan_is_the_recurrence(length: int, chunk_size: int, groups: int) -> None:
    inputs = scan_inputs(length, groups=groups)
    y, state = scan_chunked(*inputs, chunk_size)
    expected, expected_state = scan_recurrent(*inputs)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, expected_state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block_len", [4, 12, 24])
@pytest.mark.parametrize("groups", [1, HEADS])
def test_scans_are_the_published_one(block_len: int, groups: int) -> None:
    inputs = scan_inputs(24, seed=1, dtype=torch.float64, groups=groups)
    x, dt, A, B, C, state = inputs
    B, C = (t.expand(-1, -1, HEADS, -1) for t in (B, C))
    expected = ssd_minimal_discrete(x * dt[..., None], dt * A, B, C, block_len, state)
    for actual in (scan_recurrent(*inputs), scan_chunked(*inputs, 8), scan_chunked(*inputs, 5)):
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-6)


def gradients(scan: Callable[..., tuple[Tensor, Tensor]], length: int, *extra: int) -> list[Tensor]:
    inputs = [t.requires_grad_() for t in scan_inputs(length, seed=2)]
    y, state = scan(*inputs, *extra)
    g = torch.Generator().manual_seed(3)
    total = (y * torch.randn(y.shape, generator=g)).sum()
    total = total + (state * torch.randn(state.shape, generator=g)).sum()
    return list(torch.autograd.grad(total, inputs))


@pytest.mark.parametrize("length", [8, 13])
def test_gradients_are_those_of_the_recurrence(length: int) -> None:
    for actual, expected in zip(
        gradients(scan_chunked, length, 4), gradients(scan_recurrent, length), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


def test_strong_decay_stays_finite() -> None:
    x, dt, A, B, C, state = (t.requires_grad_() for t in scan_inputs(32))
    y, last = scan_chunked(x, dt * 100, A * 10, B, C, state, 16)
    assert y.isfinite().all() and last.isfinite().all()
    for gradient in torch.autograd.grad(y.sum() + last.sum(), [x, dt, A, B, C, state]):
        assert gradient.isfinite().all()


def make_mixer(seed: int = 0, pose: PoseConfig | None = None, **changes: object) -> Mamba2Mixer:
    sizes = {"d_model": 16, "d_state": 6, "expand": 2, "head_dim": 8, "chunk_size": 8}
    torch.manual_seed(seed)
    mixer = Mamba2Mixer(SSMConfig(**(sizes | changes)), pose)  # type: ignore[arg-type]
    with torch.no_grad():
        for p in (mixer.D, mixer.norm_weight, mixer.conv_bias):
            p += 0.3 * torch.randn_like(p)
        mixer.dt_bias += 2  # decay and input both matter within a few tokens
    return mixer


def random_state(mixer: Mamba2Mixer, batch_size: int, seed: int = 5) -> SSMState:
    g = torch.Generator().manual_seed(seed)
    empty = mixer.initial_state(batch_size)
    return SSMState(*(torch.randn(t.shape, generator=g) for t in empty))


def assert_same(actual: tuple[Tensor, SSMState], expected: tuple[Tensor, SSMState]) -> None:
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-4, atol=1e-5)
    for a, e in zip(actual[1], expected[1], strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 3, 16, 29])
@torch.no_grad()
def test_mixer_is_that_of_transformers(length: int) -> None:
    pytest.importorskip("transformers")
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer as TheirMixer

    ours = make_mixer()
    c = ours.config
    theirs = TheirMixer(
        Mamba2Config(
            hidden_size=c.d_model,
            num_heads=c.num_heads,
            head_dim=c.head_dim,
            state_size=c.d_state,
            expand=c.expand,
            conv_kernel=c.d_conv,
            n_groups=1,
            use_bias=False,
            use_conv_bias=True,
            chunk_size=4,
            num_hidden_layers=1,
            layer_norm_epsilon=1e-5,
        ),
        layer_idx=0,
    ).eval()
    weights = ours.state_dict()
    weights["conv1d.weight"] = rearrange(weights.pop("conv_weight"), "k d -> d 1 k")
    weights["conv1d.bias"] = weights.pop("conv_bias")
    weights["norm.weight"] = weights.pop("norm_weight")
    theirs.load_state_dict(weights)
    u = torch.randn(2, length, c.d_model)
    expected = theirs(u)
    torch.testing.assert_close(ours(u, ours.initial_state(2))[0], expected, rtol=1e-4, atol=1e-5)
    # Cut in two, the second part starts from a state.
    cut = length // 2
    if cut:
        head, state = ours(u[:, :cut], ours.initial_state(2))
        tail, _ = ours(u[:, cut:], state)
        torch.testing.assert_close(torch.cat([head, tail], 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("d_conv", [1, 2, 4])
@torch.no_grad()
def test_splitting_anywhere_and_resuming_changes_nothing(d_conv: int) -> None:
    mixer = make_mixer(d_conv=d_conv)
    u, state = torch.randn(2, 11, 16), random_state(mixer, 2)
    whole = mixer(u, state)
    for cut in range(1, 11):
        head, between = mixer(u[:, :cut], state)
        tail, last = mixer(u[:, cut:], between)
        assert_same((torch.cat([head, tail], 1), last), whole)
    outputs, current = [], state
    for t in range(11):
        y, current = mixer(u[:, t : t + 1], current)
        outputs.append(y)
    assert_same((torch.cat(outputs, 1), current), whole)


@torch.no_grad()
def test_chunk_size_never_changes_the_result() -> None:
    u = torch.randn(2, 19, 16)
    reference = make_mixer()
    state = random_state(reference, 2)
    for chunk_size in (1, 2, 3, 5, 16, 19, 32):
        assert_same(make_mixer(chunk_size=chunk_size)(u, state), reference(u, state))


@torch.no_grad()
def test_the_future_and_the_state_given_are_left_alone() -> None:
    mixer = make_mixer()
    u, state = torch.randn(2, 12, 16), random_state(mixer, 2)
    before = [t.clone() for t in state]
    y, _ = mixer(u, state)
    changed = u.clone()
    changed[:, 7] += 1
    z, _ = mixer(changed, state)
    assert torch.equal(y[:, :7], z[:, :7])
    assert not torch.allclose(y[:, 7:], z[:, 7:])
    for now, then in zip(state, before, strict=True):
        assert torch.equal(now, then)


def test_state_size_does_not_depend_on_length() -> None:
    mixer = make_mixer()
    sizes = {
        length: [t.shape for t in mixer(torch.randn(1, length, 16), mixer.initial_state(1))[1]]
        for length in (1, 2, 3, 50)
    }
    assert len({tuple(shapes) for shapes in sizes.values()}) == 1


@torch.no_grad()
def test_bfloat16_keeps_a_float32_state() -> None:
    mixer = make_mixer()
    u, state = torch.randn(2, 20, 16), random_state(mixer, 2)
    exact, exact_state = mixer(u, state)
    with torch.autocast("cpu", torch.bfloat16):
        y, new_state = mixer(u, state)
    assert [t.dtype for t in new_state] == [torch.float32, torch.float32]
    torch.testing.assert_close(y.float(), exact, rtol=0.1, atol=0.1)
    torch.testing.assert_close(new_state.scan, exact_state.scan, rtol=0.1, atol=0.1)


def test_a_new_mixer_looks_up_by_likeness() -> None:
    """Before any training a token reads what tokens like it wrote, wherever they stand."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mixer = Mamba2Mixer(SSMConfig(d_model=64, head_dim=16, d_state=64))
    u = torch.randn(1, 40, 64, generator=torch.Generator().manual_seed(1))
    u[0, -1] = u[0, 10]
    c = mixer.config
    xbc = mixer.in_proj(u)[..., c.d_inner : c.d_inner + c.d_xbc]
    xbc, _ = mixer._convolve(xbc, mixer.initial_state(1).conv)
    B, C = xbc[..., c.d_inner :].chunk(2, dim=-1)
    likeness = (C[0, -1] @ B[0, :-1].T).detach()
    assert likeness.argmax() == 10
    assert torch.equal(xbc[0, -1], xbc[0, 10])  # what is written is of the token alone, too


@pytest.mark.parametrize("tokens_per_frame", [1, 4])
def test_heads_of_a_new_mixer_forget_over_hundreds_of_frames(tokens_per_frame: int) -> None:
    mixer = Mamba2Mixer(SSMConfig(d_model=128, head_dim=16), tokens_per_frame=tokens_per_frame)
    horizon = 1 / (torch.exp(mixer.A_log) * F.softplus(mixer.dt_bias)) / tokens_per_frame
    torch.testing.assert_close(horizon.min(), torch.tensor(100.0), rtol=1e-3, atol=0)
    torch.testing.assert_close(horizon.max(), torch.tensor(4000.0), rtol=1e-3, atol=0)


@torch.no_grad()
def test_the_convolution_begins_as_nothing_or_mixes_neighbours() -> None:
    for mixing in (False, True):
        torch.manual_seed(0)
        mixer = Mamba2Mixer(SSMConfig(d_model=8, head_dim=4, d_state=4, mixing_conv=mixing))
        x = torch.randn(1, 6, mixer.config.d_xbc)
        state = mixer.initial_state(1)
        y, _ = mixer._convolve(x, state.conv)
        changed = x.clone()
        changed[:, 2] += 1
        z, _ = mixer._convolve(changed, state.conv)
        touched = (y - z).abs().amax((0, 2)) > 0
        assert touched.tolist() == [False, False, True, mixing, mixing, mixing]


@torch.no_grad()
def test_heads_turn_by_frequencies_of_their_own() -> None:
    u, poses = torch.randn(2, 7, 16), 3 * torch.rand(2, 7, 3)
    shared = make_mixer(pose=PoseConfig())
    own = make_mixer(pose=PoseConfig(per_head=True))
    empty = shared.initial_state(2)
    assert shared.rotation is not None and own.rotation is not None
    expected, _ = shared(u, empty, poses=poses)
    assert (own(u, empty, poses=poses)[0] - expected).abs().max() > 1e-3
    # With the same for all it is the same.
    own.rotation.frequencies.copy_(shared.rotation.frequencies.expand_as(own.rotation.frequencies))
    torch.testing.assert_close(own(u, empty, poses=poses)[0], expected)


def test_a_head_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="head_dim 7 does not divide d_inner 16"):
        Mamba2Mixer(SSMConfig(d_model=16, head_dim=7))


def test_auto_backend_takes_torch_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the kernels were called")

    monkeypatch.setattr("worldsim.ssm.has_mamba_ssm", lambda: True)
    monkeypatch.setattr("worldsim.ssm.scan_mamba_ssm", refuse)
    u = torch.randn(1, 4, 16)
    for backend in ("auto", "torch"):
        mixer = make_mixer(backend=backend)
        mixer(u, mixer.initial_state(1))
    mixer = make_mixer(backend="mamba_ssm")
    with pytest.raises(AssertionError, match="the kernels were called"):
        mixer(u, mixer.initial_state(1))


needs_kernels = pytest.mark.skipif(not has_mamba_ssm(), reason="mamba-ssm's kernels do not import")


@pytest.mark.gpu
@needs_kernels
@pytest.mark.parametrize("length", [1, 2, 31, 64, 100])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("pose", [None, PoseConfig(per_head=True)], ids=["shared", "per head"])
def test_kernels_agree_with_torch(
    length: int, grad: bool, pose: PoseConfig | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By default Triton multiplies float32 in TF32, too coarse for gradients that nearly cancel.
    monkeypatch.setenv("TRITON_F32_DEFAULT", "ieee")
    torch.manual_seed(0)
    sizes = {"d_model": 64, "d_state": 16, "head_dim": 32, "chunk_size": 32}
    u = torch.randn(2, length, 64, device="cuda")
    poses = None if pose is None else 3 * torch.rand(2, length, 3, device="cuda")
    state = SSMState(*(t.cuda() for t in random_state(make_mixer(**sizes), 2)))
    results = {}
    for backend in ("torch", "mamba_ssm"):
        other = make_mixer(pose=pose, **sizes, backend=backend).cuda()
        with torch.set_grad_enabled(grad):
            y, last = other(u, state, poses=poses)
        results[backend] = [y, *last]
        if grad:
            parameters = list(other.parameters())
            results[backend] += torch.autograd.grad(y.square().sum(), parameters)
    for a, e in zip(results["mamba_ssm"], results["torch"], strict=True):
        torch.testing.assert_close(a, e, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
@needs_kernels
@pytest.mark.parametrize("groups", [1, HEADS])
@torch.no_grad()
def test_step_kernel_leaves_the_state_given_alone(groups: int) -> None:
    x, dt, A, B, C, state = (t.cuda() for t in scan_inputs(1, groups=groups))
    before = state.clone()
    y, last = scan_mamba_ssm(x, dt, A, B, C, state, 16)
    expected, expected_last = scan_recurrent(x, dt, A, B, C, state)
    assert torch.equal(state, before)
    torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(last, expected_last, rtol=1e-3, atol=1e-4)
