"""DFoT: a bidirectional transformer over a sliding window of frames, history as context.

Song et al. 2025, "History-Guided Video Diffusion" (arXiv 2502.06764), the diffusion forcing
transformer, as the baseline of Po et al. 2025 (arXiv 2505.20171).

Its training and its use differ. In training mode a segment is cut into windows and the frames of a
window see each other in both directions, whatever their noise levels; train it on segments of one
window, so that clean prefixes fall into every window. In evaluation mode a frame is denoised as the
last of its window, from the frames before it: every step computes the whole window anew, since in a
bidirectional network the past's inner values change with every new frame. So the memory is the
inputs of the last `window - 1` frames, and a step costs `window` times that of a cached model.

What is predicted from a frame's features in training has seen the window's later frames. Its policy
head therefore learns to read the future and is of no use; rewards and terminations do not suffer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from worldsim.attention import attend
from worldsim.frame_attention import FrameProjection, extend, forget_before
from worldsim.layers import MLP, AdaptiveNorm, Memory
from worldsim.pose import PoseConfig

FRAMES_AT_ONCE = 16
"""Windows of one env that are computed side by side when many frames are observed."""


@dataclass(frozen=True, kw_only=True)
class DFoTConfig:
    """Bidirectional transformer in a sliding window."""

    kind: Literal["dfot"] = "dfot"
    d_model: int = 256
    num_layers: int = 8
    window: int = 25
    """Frames that see each other, the generated one included."""
    head_dim: int = 64
    mlp_ratio: int = 4


class BidirectionalLayer(nn.Module):
    """Attention among all tokens of a window, then MLP."""

    def __init__(self, config: DFoTConfig, pose: PoseConfig | None, seed: int) -> None:
        super().__init__()
        self.attention_norm = AdaptiveNorm(config.d_model)
        self.attention = FrameProjection(config.d_model, config.head_dim, pose, seed)
        self.mlp_norm = AdaptiveNorm(config.d_model)
        self.mlp = MLP(config.d_model, config.mlp_ratio)
        nn.init.zeros_(self.mlp.down.weight)

    def forward(
        self, x: Tensor, condition: Tensor, known: Tensor, poses: Tensor | None = None
    ) -> Tensor:
        """x (b, w, n, d), condition (b, w, d), known (b, w) bool: frames that exist.

        Where poses are told, those of the tokens: (b, w, n, 3).
        """
        b, w, n, _ = x.shape
        index = torch.arange(w, device=x.device).expand(b, w)
        q, k, v = self.attention.project(self.attention_norm(x, condition), index, poses)
        q, k, v = (rearrange(a, "b h w n e -> b h (w n) e") for a in (q, k, v))
        if known.all():
            known = known[:1]  # one mask for all windows
        mask = repeat(known, "b w -> b 1 l (w n)", n=n, l=w * n)
        y = attend(q, k, v, mask)
        x = x + self.attention.merge(rearrange(y, "b h (w n) e -> b h w n e", n=n))
        return x + self.mlp(self.mlp_norm(x, condition))


class DFoTBackbone(nn.Module):
    """Bidirectional transformer; remembers the last `window - 1` frames and nothing else.

    Raises:
        ValueError: there is no window.
    """

    def __init__(
        self, config: DFoTConfig, grid: tuple[int, int], pose: PoseConfig | None = None
    ) -> None:
        super().__init__()
        if config.window < 1:
            raise ValueError(f"window is {config.window}; it must be 1 or more")
        self.config = config
        self.num_tokens = grid[0] * grid[1]
        self.layers = nn.ModuleList(
            BidirectionalLayer(config, pose, seed=i) for i in range(config.num_layers)
        )
        self.told_poses = pose is not None

    def initial_state(self, batch_size: int) -> Memory:
        """Memory before the first frame: none."""
        d, n, weight = self.config.d_model, self.num_tokens, next(self.parameters())
        # In float32 as in training, for all that is added up begins with them.
        memory = {
            "tokens": torch.zeros(batch_size, 0, n, d, device=weight.device),
            "condition": torch.zeros(batch_size, 0, d, device=weight.device),
        }
        if self.told_poses:
            memory["poses"] = torch.zeros(batch_size, 0, n, 3, device=weight.device)
        return memory

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        memory: Memory,
        steps: Tensor,
        update: bool = True,
        poses: Tensor | None = None,
    ) -> tuple[Tensor, Memory]:
        """Process frames; see `LayeredBackbone.forward`.

        In training mode frames see later frames of their window, and the memory given is not seen.
        """
        memory = forget_before(memory, steps, frame_dim=1)
        new = {"tokens": x, "condition": condition}
        if poses is not None:
            new["poses"] = poses
        if self.training:
            y = self._cut_into_windows(new)
        else:
            extended = {name: extend(memory[name], t, 1) for name, t in new.items()}
            y = self._slide(extended, x.shape[1], steps).to(x.dtype)
        if update:
            past = self.config.window - 1
            memory = {name: extend(memory[name], t, 1, past) for name, t in new.items()}
        return y, memory

    def _run(self, inputs: Memory, known: Tensor) -> Tensor:
        x = inputs["tokens"]
        for layer in self.layers:
            x = layer(x, inputs["condition"], known, inputs.get("poses"))
        return x

    def _cut_into_windows(self, inputs: Memory) -> Tensor:
        """Windows side by side, the last one shorter."""
        b, t = inputs["condition"].shape[:2]
        window = min(self.config.window, t)

        def cut(frames: Tensor) -> Tensor:
            padded = pad_frames(frames, 0, -t % window)
            return rearrange(padded, "b (k w) ... -> (b k) w ...", w=window)

        known = torch.ones(b, t, dtype=torch.bool, device=inputs["condition"].device)
        y = self._run({name: cut(x) for name, x in inputs.items()}, cut(known))
        return rearrange(y, "(b k) w n d -> b (k w) n d", b=b)[:, :t]

    def _slide(self, inputs: Memory, t: int, steps: Tensor) -> Tensor:
        """Each of the last t frames as the last of its own window: (b, t, n, d)."""
        b, total = inputs["condition"].shape[:2]
        window = min(self.config.window, total)
        before = max(window - 1 - (total - t), 0)  # slots in front of what there is
        inputs = {name: pad_frames(x, before, 0) for name, x in inputs.items()}
        first = torch.arange(before + total, device=steps.device) - before - (total - t)
        known = first >= -steps[:, None]  # (b, frames)
        outputs = []
        for start in range(0, t, FRAMES_AT_ONCE):
            ends = torch.arange(start, min(start + FRAMES_AT_ONCE, t), device=steps.device)
            offset = before + total - t - window + 1
            index = ends[:, None] + torch.arange(window, device=steps.device) + offset
            parts = {name: x[:, index].flatten(0, 1) for name, x in inputs.items()}
            y = self._run(parts, known[:, index].flatten(0, 1))
            outputs.append(y[:, -1].unflatten(0, (b, len(ends))))
        return torch.cat(outputs, dim=1)


def pad_frames(x: Tensor, before: int, after: int) -> Tensor:
    """Zeros before and after the frames of x (b, t, ...)."""
    return F.pad(x, [0, 0] * (x.ndim - 2) + [before, after])
