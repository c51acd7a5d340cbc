"""The network of the world model: noised latents, level, action and memory to clean latents.

Token embedding, backbone and output.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldsim.backbone import BackboneConfig, Memory, make_backbone
from worldsim.tokenizer import TokenizerConfig


class Denoiser(nn.Module):
    """Predicts clean latents from noised ones, given level, action and memory."""

    def __init__(
        self, num_actions: int, tokenizer: TokenizerConfig, backbone: BackboneConfig
    ) -> None:
        super().__init__()
        d, c, grid = backbone.d_model, tokenizer.latent_channels, tokenizer.grid
        self.latent_in = nn.Linear(c, d)
        self.position = nn.Parameter(0.02 * torch.randn(grid[0] * grid[1], d))
        self.action_in = nn.Embedding(num_actions + 1, d)
        self.action_condition = nn.Embedding(num_actions + 1, d)
        self.signal_condition = nn.Sequential(nn.Linear(64, d), nn.SiLU(), nn.Linear(d, d))
        self.backbone = make_backbone(backbone, grid)
        self.latent_out = nn.Linear(d, c)
        for embedding in (self.action_in, self.action_condition):
            nn.init.normal_(embedding.weight, std=0.5)
        nn.init.zeros_(self.latent_out.weight)

    def forward(
        self,
        z: Tensor,
        signal: Tensor,
        actions: Tensor,
        memory: Memory,
        steps: Tensor,
        update: bool = True,
    ) -> tuple[Tensor, Tensor, Memory]:
        """Denoise frames in order.

        Args:
            z: (b, t, n, c) noised latents. signal: (b, t). actions: (b, t) int64.
            memory, steps: what came before.
            update: False where the memory afterwards is not needed.

        Returns:
            Predicted clean latents (b, t, n, c), final tokens (b, t, n, d), memory afterwards.
        """
        actions = actions.long()
        x = self.latent_in(z) + self.position + self.action_in(actions)[:, :, None]
        frequencies = torch.pi * torch.arange(1, 33, device=z.device)
        angle = signal[..., None] * frequencies / 2
        level = self.signal_condition(torch.cat([angle.sin(), angle.cos()], dim=-1))
        condition = F.silu(level + self.action_condition(actions))
        x, memory = self.backbone(x, condition, memory, steps, update)
        x = F.rms_norm(x, (x.shape[-1],), eps=1e-5)
        return self.latent_out(x).float(), x, memory
