"""Mamba-2 mixer: chunked parallel scan and step recurrence from the same weights.

State-space duality, Dao & Gu 2024 (arXiv 2405.21060), section 6. Symbols of the paper:

    x (b, l, h, p)   inputs, h heads of width p     A (h,)             negative decay rates
    dt (b, l, h)     positive step sizes            B, C (b, l, g, n)  input and output maps
    S (b, h, p, n)   state:   S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T,   y_t = S_t C_t

All heads share one map (g = 1), or each has its own (g = h).

Two backends compute the scan: "torch" runs anywhere, "mamba_ssm" uses that package's Triton kernels
on CUDA. "auto" takes the kernels where they import and the tensors are on CUDA.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from worldsim.layers import rotate_pairs
from worldsim.pose import PoseConfig, PoseRotation

ScanBackend = Literal["auto", "torch", "mamba_ssm"]


@dataclass(frozen=True, kw_only=True)
class SSMConfig:
    """Mamba-2 mixer sizes."""

    d_model: int = 256
    d_state: int = 64
    """Width n of the state per channel: how many things a head can tell apart in memory."""
    d_conv: int = 4
    """Taps of the causal depthwise convolution."""
    mixing_conv: bool = False
    """It begins at random, as in Mamba-2, and mixes neighbours; else as if it was not there."""
    expand: int = 1
    """Inner width over d_model."""
    head_dim: int = 64
    chunk_size: int = 32
    """Tokens per chunk of the parallel scan; changes speed, never results."""
    backend: ScanBackend = "auto"

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model

    @property
    def num_heads(self) -> int:
        if self.d_inner % self.head_dim:
            raise ValueError(f"head_dim {self.head_dim} does not divide d_inner {self.d_inner}")
        return self.d_inner // self.head_dim

    @property
    def d_xbc(self) -> int:
        return self.d_inner + 2 * self.d_state


class SSMState(NamedTuple):
    """What a mixer remembers: `scan` (b, h, p, n) float32 and `conv` (b, d_conv - 1, d_xbc)."""

    scan: Tensor
    conv: Tensor


@functools.cache
def has_mamba_ssm() -> bool:
    """Whether mamba-ssm's compiled kernels import here."""
    if not torch.cuda.is_available() or importlib.util.find_spec("mamba_ssm") is None:
        return False
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


def scan_recurrent(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The definition, one token at a time: the reference the other backends are held against."""
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t] * A)[..., None, None]  # (b, h, 1, 1)
        inputs = (x[:, t] * dt[:, t, :, None])[..., None] * B[:, t, :, None]
        state = decay * state + inputs
        outputs.append((state * C[:, t, :, None]).sum(-1))
    return torch.stack(outputs, dim=1), state


def scan_chunked(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    chunk_size: int,
    update: bool = True,
) -> tuple[Tensor, Tensor]:
    """The same scan as matrix products within chunks and one recurrence between them.

    Args:
        x: (b, l, h, p). dt: (b, l, h) float32, positive. A: (h,) float32, negative.
        B, C: (b, l, g, n). state: (b, h, p, n) float32.
        chunk_size: tokens per chunk; any l is allowed.
        update: False spares computing the final state; the one returned is then stale.

    Returns:
        y (b, l, h, p) in x's dtype and the final state (b, h, p, n) float32.
    """
    length = x.shape[1]
    q = min(chunk_size, length)
    padding = -length % q
    if padding:  # zero steps leave the state alone
        x, dt, B, C = (F.pad(t, [0, 0] * (t.ndim - 2) + [0, padding]) for t in (x, dt, B, C))
    u = rearrange(x * dt[..., None].to(x.dtype), "b (c q) h p -> b c h q p", q=q)
    B, C = (rearrange(t, "b (c q) g n -> b c g q n", q=q) for t in (B, C))
    log_decay = rearrange(dt * A, "b (c q) h -> b c h q", q=q)
    a = log_decay.cumsum(-1)  # (b, c, h, q): decay from the chunk's start through q, in logs

    # Within a chunk: a masked, decayed product of C and B.
    visible = torch.ones(q, q, dtype=torch.bool, device=x.device).tril()
    decay = torch.exp((a[..., :, None] - a[..., None, :]).masked_fill(~visible, -torch.inf))
    scores = (C @ B.transpose(-1, -2)) * decay.to(C.dtype)  # (b, c, h, q, q)
    y = scores @ u

    # Between chunks: what each adds to the state, then the recurrence over chunks.
    before, chunks = [state], a.shape[1]
    if update or chunks > 1:  # else nothing but the state given is needed
        to_end = torch.exp(a[..., -1:] - a)[..., None].to(u.dtype)  # (b, c, h, q, 1)
        added = (u * to_end).transpose(-1, -2) @ B  # (b, c, h, p, n)
        kept = torch.exp(a[..., -1])[..., None, None]  # (b, c, h, 1, 1)
        # Not by indexing, whose backward pass fills and adds a whole tensor for every chunk.
        for keep, add in zip(kept.unbind(1), added.float().unbind(1), strict=True):
            state = state * keep + add
            before.append(state)
    entering = torch.stack(before[:chunks], dim=1).to(C.dtype)  # (b, c, h, p, n)
    carried = C @ entering.transpose(-1, -2)  # (b, c, h, q, p)
    y = y + carried.to(y.dtype) * torch.exp(a)[..., None].to(y.dtype)
    y = rearrange(y, "b c h q p -> b (c q) h p")
    return y[:, :length], state


def scan_step(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, update: bool = True
) -> tuple[Tensor, Tensor]:
    """The same scan for a single token, which moves little more than the state itself.

    Shapes as in `scan_chunked`, with l = 1. At batch 32 the states are most of what a dream's step
    reads and writes, so they are read once for the output and once for the new state.
    """
    decay = torch.exp(dt[:, 0] * A)[..., None]  # (b, h, 1)
    u = x[:, 0].float() * dt[:, 0, :, None]  # (b, h, p)
    B, C = B[:, 0].float(), C[:, 0].float()
    with torch.autocast(x.device.type, enabled=False):  # spares a copy of the state
        carried = (C[:, :, None] @ state.transpose(-1, -2)).squeeze(2)
    y = carried * decay + u * (B * C).sum(-1, keepdim=True)
    if update:
        state = (state * decay[..., None]).addcmul_(u[..., None], B[:, :, None])
    return y[:, None].to(x.dtype), state


def scan_mamba_ssm(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """The same scan by mamba-ssm's Triton kernels (CUDA)."""
    if x.shape[1] == 1 and not torch.is_grad_enabled():
        from mamba_ssm.ops.triton.selective_state_update import selective_state_update

        new_state = state.clone()  # the kernel writes in place, a WorldState must not change
        b, _, h, p = x.shape
        zero = dt.new_zeros(h, 1).expand(h, p)  # the kernel's wrapper reads strides of all it takes
        y = selective_state_update(
            new_state,
            x[:, 0],
            dt[:, 0, :, None].expand(b, h, p),
            A[:, None, None].expand(h, p, B.shape[-1]),
            B[:, 0],
            C[:, 0],
            D=zero,
            dt_bias=zero,
        )
        return y[:, None], new_state
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    size = max(16, 1 << (chunk_size - 1).bit_length())
    y, new_state = mamba_chunk_scan_combined(
        x,
        dt,
        A,
        B,
        C,
        chunk_size=size,
        initial_states=state,
        return_final_states=True,
    )
    return y, new_state.float()


class Mamba2Mixer(nn.Module):
    """Mamba-2 mixer over sequences; the whole sequence at once or continued from a state.

    It begins as a memory that is looked up by likeness: B and C start as the same map of the same
    token, so that a token reads what was written by tokens like it; the convolution starts as
    nothing, so that what is written is of that token alone; and the heads forget over 100 to 4,000
    frames. Mamba-2's own initialisation (B and C independent, tokens mixed by the convolution, most
    heads forgetting within some ten tokens) learns recall far later.

    Args:
        config: sizes.
        pose: of a model that is told poses; B and C are then rotated by them.
        seed: of the rotations.
        tokens_per_frame: that the sequence has.
    """

    def __init__(
        self,
        config: SSMConfig,
        pose: PoseConfig | None = None,
        seed: int = 0,
        tokens_per_frame: int = 1,
    ) -> None:
        super().__init__()
        self.config = config
        self.rotation: PoseRotation | None = None
        if pose is not None and pose.rotary:
            groups = config.num_heads if pose.per_head else 1
            self.rotation = PoseRotation(pose, config.d_state, groups, seed)
            # What B and C have in common whatever the tokens hold: alikeness of poses alone.
            self.map_bias = nn.Parameter(torch.full((2, groups * config.d_state), 0.5))
        h = config.num_heads
        self.in_proj = nn.Linear(config.d_model, config.d_inner + config.d_xbc + h, bias=False)
        self.conv_weight = nn.Parameter(torch.zeros(config.d_conv, config.d_xbc))
        self.conv_bias = nn.Parameter(torch.zeros(config.d_xbc))
        dt = torch.exp(torch.empty(h).uniform_(math.log(0.1), math.log(1.0)))
        horizon = tokens_per_frame * torch.logspace(math.log10(100), math.log10(4000), h)
        self.A_log = nn.Parameter(-(horizon * dt).log())
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # inverse softplus
        self.D = nn.Parameter(torch.ones(h))
        self.norm_weight = nn.Parameter(torch.ones(config.d_inner))
        self.out_proj = nn.Linear(config.d_inner, config.d_model, bias=False)
        with torch.no_grad():
            _, to_xbc, _ = self.in_proj.weight.split([config.d_inner, config.d_xbc, h])
            to_b, to_c = to_xbc[config.d_inner :].chunk(2)
            to_c.copy_(to_b)
            if config.mixing_conv:
                nn.init.uniform_(self.conv_weight, -(config.d_conv**-0.5), config.d_conv**-0.5)
            else:
                self.conv_weight[-1] = 1

    def initial_state(self, batch_size: int) -> SSMState:
        c, device = self.config, self.A_log.device
        scan = torch.zeros(batch_size, c.num_heads, c.head_dim, c.d_state, device=device)
        conv = self.in_proj.weight.new_zeros(batch_size, c.d_conv - 1, c.d_xbc)
        return SSMState(scan, conv)

    def forward(
        self, u: Tensor, state: SSMState, update: bool = True, poses: Tensor | None = None
    ) -> tuple[Tensor, SSMState]:
        """Mix along the sequence.

        Args:
            u: (b, l, d_model), any l >= 1.
            state: memory before the first token.
            update: False spares computing the memory; the one returned is then stale.
            poses: (b, l, 3) float32 of the tokens, for a mixer that rotates by them.

        Returns:
            (b, l, d_model) and the memory after the last token.
        """
        c = self.config
        z, xbc, dt = self.in_proj(u).split([c.d_inner, c.d_xbc, c.num_heads], dim=-1)
        xbc, conv = self._convolve(xbc, state.conv)
        x, B, C = xbc.split([c.d_inner, c.d_state, c.d_state], dim=-1)
        B, C = B[:, :, None], C[:, :, None]
        if self.rotation is not None and poses is not None:
            angle = self.rotation.angles(poses)  # (b, l, g, n / 2)
            biases = self.map_bias.to(B.dtype).view(2, 1, 1, -1, c.d_state)
            B, C = rotate_pairs(torch.stack([B, C]) + biases, angle)
        x = rearrange(x, "b l (h p) -> b l h p", p=c.head_dim)
        dt = F.softplus(dt.float() + self.dt_bias)
        y, scan = self._scan(x, dt, -torch.exp(self.A_log), B, C, state.scan.float(), update)
        y = rearrange(y + x * self.D[:, None].to(x.dtype), "b l h p -> b l (h p)")
        y = F.rms_norm((y * F.silu(z)).float(), (c.d_inner,), self.norm_weight, 1e-5)
        return self.out_proj(y.to(u.dtype)), SSMState(scan.to(state.scan.dtype), conv)

    def _convolve(self, xbc: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Causal depthwise convolution as shifted products: on CPU far faster than conv1d."""
        length = xbc.shape[1]
        extended = torch.cat([past.to(xbc.dtype), xbc], dim=1)
        weight = self.conv_weight.to(xbc.dtype)
        out = self.conv_bias.to(xbc.dtype)
        for tap in range(self.config.d_conv):
            out = out + extended[:, tap : tap + length] * weight[tap]
        # A copy: a view would keep the whole sequence in memory for as long as the state lives.
        return F.silu(out), extended[:, length:].to(past.dtype, copy=True)

    def _scan(
        self,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        state: Tensor,
        update: bool,
    ) -> tuple[Tensor, Tensor]:
        backend = self.config.backend
        if backend == "auto":
            backend = "mamba_ssm" if x.is_cuda and has_mamba_ssm() else "torch"
        if backend == "mamba_ssm":
            return scan_mamba_ssm(x, dt, A, B, C, state, self.config.chunk_size)
        if x.shape[1] == 1:
            return scan_step(x, dt, A, B, C, state, update)
        return scan_chunked(x, dt, A, B, C, state, self.config.chunk_size, update)
