"""Frame autoencoder: one uint8 frame to a grid of latent tokens and back, never across time.

A small convolutional autoencoder. Latents are squashed by tanh and slightly noised in training, so
that the decoder forgives small errors of the denoiser; outside, they are scaled to unit variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Autoencoder sizes."""

    frame_shape: tuple[int, int, int] = (64, 64, 3)
    """Height, width, channels."""
    patch_size: int = 4
    """Pixels folded into channels before the first convolution."""
    channels: tuple[int, ...] = (64, 128, 256)
    """Width at each scale; each scale after the first halves the resolution."""
    blocks: int = 1
    """Residual blocks per scale in the encoder; the decoder has one more."""
    latent_channels: int = 32
    latent_noise: float = 0.05
    """Standard deviation of the noise on tanh latents during training."""

    @property
    def downsampling(self) -> int:
        return self.patch_size * 2 ** (len(self.channels) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of latent tokens."""
        h, w, _ = self.frame_shape
        if h % self.downsampling or w % self.downsampling:
            scale = self.downsampling // self.patch_size
            fits = [str(p) for p in range(2, 17) if h % (p * scale) == w % (p * scale) == 0]
            advice = f"patch_size (to {' or '.join(fits)}) or channels" if fits else "channels"
            raise ValueError(
                f"frames of {h}x{w} do not divide into tokens of {self.downsampling}x"
                f"{self.downsampling} pixels: change their size, or the tokenizer's {advice}"
            )
        return h // self.downsampling, w // self.downsampling

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Tokens of a frame, and numbers in each."""
        rows, columns = self.grid
        return rows * columns, self.latent_channels


def to_model(frames: Tensor) -> Tensor:
    """uint8 (..., h, w, c) in [0, 255] to float32 (..., c, h, w) in [-1, 1]."""
    return rearrange(frames.float() / 127.5 - 1, "... h w c -> ... c h w")


def to_uint8(x: Tensor) -> Tensor:
    """Float (..., c, h, w) in [-1, 1] to uint8 (..., h, w, c)."""
    x = ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return rearrange(x, "... c h w -> ... h w c")


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(y)))


class Tokenizer(nn.Module):
    """Convolutional autoencoder with a tanh bottleneck."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        patch = config.frame_shape[2] * config.patch_size**2
        encoder: list[nn.Module] = [
            nn.PixelUnshuffle(config.patch_size),
            nn.Conv2d(patch, c[0], 3, padding=1),
        ]
        for i, width in enumerate(c):
            if i:
                encoder.append(nn.Conv2d(c[i - 1], width, 2, stride=2))
            encoder += [ResidualBlock(width) for _ in range(config.blocks)]
        encoder += [nn.GroupNorm(8, c[-1]), nn.SiLU(), nn.Conv2d(c[-1], config.latent_channels, 1)]
        decoder: list[nn.Module] = [nn.Conv2d(config.latent_channels, c[-1], 1)]
        for i in reversed(range(len(c))):
            decoder += [ResidualBlock(c[i]) for _ in range(config.blocks + 1)]
            if i:
                decoder += [nn.Conv2d(c[i], 4 * c[i - 1], 1), nn.PixelShuffle(2)]
        decoder += [
            nn.GroupNorm(8, c[0]),
            nn.SiLU(),
            nn.Conv2d(c[0], patch, 3, padding=1),
            nn.PixelShuffle(config.patch_size),
        ]
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(*decoder)
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))

    def loss(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction loss.

        Args:
            frames: (b, h, w, c) uint8.
            noise: (b, latent_channels, rows, columns) standard normal.

        Returns:
            The loss (L1 plus squared error) and the mean squared error in [-1, 1] units, for PSNR.
        """
        x = to_model(frames)
        z = torch.tanh(self.encoder(x).float())
        y = self.decoder(z + self.config.latent_noise * noise).float()
        squared = F.mse_loss(y, x)
        return F.l1_loss(y, x) + squared, squared.detach()

    @torch.no_grad()
    def calibrate(self, frames: Tensor) -> None:
        """Set the scale of latents from frames (b, h, w, c) uint8: zero mean and unit variance."""
        z = torch.tanh(self.encoder(to_model(frames)).float())
        self.latent_mean.copy_(z.mean((0, 2, 3)))
        self.latent_std.copy_(z.std((0, 2, 3)).clamp(min=1e-3))

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Frames to latent tokens.

        Args:
            frames: (..., h, w, c) uint8.

        Returns:
            (..., n, latent_channels) float32 of about zero mean and unit variance.

        Raises:
            ValueError: wrong frame shape or dtype.
        """
        if frames.dtype != torch.uint8 or tuple(frames.shape[-3:]) != self.config.frame_shape:
            raise ValueError(
                f"frames are {frames.dtype} of shape {tuple(frames.shape[-3:])}; this model takes "
                f"uint8 of shape {self.config.frame_shape}"
            )
        x = to_model(frames.reshape(-1, *self.config.frame_shape))
        z = rearrange(torch.tanh(self.encoder(x).float()), "b c h w -> b (h w) c")
        z = (z - self.latent_mean) / self.latent_std
        return z.reshape(*frames.shape[:-3], *z.shape[1:])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latent tokens (..., n, latent_channels) to frames (..., h, w, c) uint8."""
        z = latents.reshape(-1, *latents.shape[-2:])
        z = (z * self.latent_std + self.latent_mean).clamp(-1, 1)
        z = rearrange(z, "b (h w) c -> b c h w", h=self.config.grid[0])
        return to_uint8(self.decoder(z)).reshape(*latents.shape[:-2], *self.config.frame_shape)
