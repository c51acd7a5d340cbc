"""The network of the world model: noised latents, level, action and memory to clean latents.

Token embedding, backbone and output. Squares of latents may be taken as one token (patches, as in
DiT, Peebles and Xie 2023, arXiv 2212.09748), which makes all that follows cheaper. Instead of the
action, poses may tell what is seen.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from worldsim.backbone import BackboneConfig, Memory, make_backbone
from worldsim.pose import PoseConfig, PoseEmbedding, token_poses
from worldsim.tokenizer import TokenizerConfig


class Denoiser(nn.Module):
    """Predicts clean latents from noised ones, given level, action and memory.

    Args:
        num_actions, tokenizer, backbone: sizes.
        pose: of a model that is told poses.
        patch: side of the square of latents that is one token.

    Raises:
        ValueError: the patches do not divide the grid of latents, or the backbone does not fit.
    """

    def __init__(
        self,
        num_actions: int,
        tokenizer: TokenizerConfig,
        backbone: BackboneConfig,
        pose: PoseConfig | None = None,
        patch: int = 1,
    ) -> None:
        super().__init__()
        h, w = tokenizer.grid
        if patch < 1 or h % patch or w % patch:
            raise ValueError(
                f"latent_patch {patch} does not divide the grid of latents {h, w}: of frames "
                f"{tokenizer.frame_shape}, sides must be multiples of "
                f"{patch * tokenizer.frame_shape[0] // h} pixels, or latent_patch 1"
            )
        grid = h // patch, w // patch
        d, c = backbone.d_model, patch**2 * tokenizer.latent_channels
        self.cut = {"i": grid[0], "j": grid[1], "p": patch, "q": patch}
        self.latent_in = nn.Linear(c, d)
        self.position = nn.Parameter(0.02 * torch.randn(grid[0] * grid[1], d))
        self.pose, self.grid = pose, grid
        self.action_in = _action_embedding(num_actions, pose, d)
        self.action_condition = _action_embedding(num_actions, pose, d)
        self.signal_condition = nn.Sequential(nn.Linear(64, d), nn.SiLU(), nn.Linear(d, d))
        self.backbone = make_backbone(backbone, grid, pose)
        self.latent_out = nn.Linear(d, c)
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
            z: (b, t, n, c) noised latents. signal: (b, t).
            actions: (b, t) int64, or poses (b, t, 3) float32 where the model is told poses.
            memory, steps: what came before.
            update: False where the memory afterwards is not needed.

        Returns:
            Predicted clean latents (b, t, n, c), final tokens (b, t, tokens, d), memory afterwards.
        """
        z = rearrange(z, "b t (i p j q) c -> b t (i j) (p q c)", **self.cut)
        poses = None
        if self.pose is None:
            actions = actions.long()
            told = self.action_in(actions)[:, :, None]
        else:
            poses = token_poses(actions, self.grid, self.pose.field_of_view)
            told = self.action_in(poses)
        x = self.latent_in(z) + self.position + told
        frequencies = torch.pi * torch.arange(1, 33, device=z.device)
        angle = signal[..., None] * frequencies / 2
        level = self.signal_condition(torch.cat([angle.sin(), angle.cos()], dim=-1))
        condition = F.silu(level + self.action_condition(actions))
        x, memory = self.backbone(x, condition, memory, steps, update, poses)
        x = F.rms_norm(x, (x.shape[-1],), eps=1e-5)
        z = rearrange(self.latent_out(x), "b t (i j) (p q c) -> b t (i p j q) c", **self.cut)
        return z.float(), x, memory


def _action_embedding(num_actions: int, pose: PoseConfig | None, d_model: int) -> nn.Module:
    """Of actions, "no action" among them, or of poses."""
    if pose is not None:
        return PoseEmbedding(pose, d_model)
    embedding = nn.Embedding(num_actions + 1, d_model)
    nn.init.normal_(embedding.weight, std=0.5)
    return embedding
