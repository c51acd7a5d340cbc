"""Which colours walls have: a measure of recall that pixels hide."""

from __future__ import annotations

import numpy as np


class ColorReader:
    """Reads off frames which colour fills the walls to the left, ahead and to the right.

    Colours are clusters of the pixels of real frames (k-means), so that a dreamed shade counts as
    the colour that it is nearest to.

    Args:
        frames: (n, h, w, 3) uint8, real ones.
        num_colors: clusters.
        seed: of the clustering.
    """

    def __init__(self, frames: np.ndarray, num_colors: int = 12, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        pixels = self._walls(frames).reshape(-1, 3).astype(np.float32)
        pixels = pixels[rng.integers(len(pixels), size=20_000)]
        centers = pixels[rng.integers(len(pixels), size=1)]
        while len(centers) < num_colors:  # the farthest pixel starts the next cluster
            distance = np.square(pixels[:, None] - centers[None]).sum(-1).min(1)
            centers = np.concatenate([centers, pixels[[distance.argmax()]]])
        for _ in range(20):
            nearest = np.square(pixels[:, None] - centers[None]).sum(-1).argmin(1)
            for k in range(num_colors):
                if (nearest == k).any():
                    centers[k] = pixels[nearest == k].mean(0)
        self.centers = centers

    @staticmethod
    def _walls(frames: np.ndarray) -> np.ndarray:
        """The band at eye level without the border, which shows the target's colour."""
        h, w = frames.shape[-3:-1]
        return frames[..., h * 5 // 16 : h * 5 // 8, w // 16 : w - w // 16, :]

    def read(self, frames: np.ndarray) -> np.ndarray:
        """Commonest colour of each third of the view: (..., h, w, 3) uint8 to (..., 3) int64."""
        walls = self._walls(frames)
        flat = walls.reshape(-1, *walls.shape[-3:])
        read = np.zeros((len(flat), 3), np.int64)
        for i, wall in enumerate(flat):
            distance = np.square(wall[..., None, :].astype(np.float32) - self.centers).sum(-1)
            nearest = distance.argmin(-1)
            for side, part in enumerate(np.array_split(nearest, 3, axis=1)):
                read[i, side] = np.bincount(part.ravel(), minlength=len(self.centers)).argmax()
        return read.reshape(*walls.shape[:-3], 3)
