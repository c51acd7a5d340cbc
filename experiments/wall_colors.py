"""Which colours walls have: a measure of recall that pixels hide."""

from __future__ import annotations

import numpy as np
from scipy.cluster.vq import kmeans2


class ColorReader:
    """Reads off frames which colour fills the walls to the left, ahead and to the right.

    It looks at eye level, where nothing but walls is seen however far they are, and at the hue and
    saturation of pixels (the direction of their RGB), for a wall's brightness changes with the side
    that is seen. Colours are clusters of the pixels of real frames (k-means++), so that a dreamed
    colour counts as the one that it is nearest to.

    Args:
        frames: (n, h, w, 3) uint8, real ones.
        num_colors: clusters.
        seed: of the clustering.
    """

    def __init__(self, frames: np.ndarray, num_colors: int = 12, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        pixels = self._walls(frames).reshape(-1, 3)
        pixels = pixels[rng.integers(len(pixels), size=20_000)]
        self.centers, _ = kmeans2(pixels, num_colors, minit="++", seed=rng)

    @staticmethod
    def _walls(frames: np.ndarray) -> np.ndarray:
        """Directions of the pixels at eye level, without the border in the target's colour."""
        h, w = frames.shape[-3:-1]
        pixels = frames[..., h * 13 // 32 : h // 2, w // 16 : w - w // 16, :].astype(np.float32)
        return pixels / np.maximum(np.linalg.norm(pixels, axis=-1, keepdims=True), 1)

    def read(self, frames: np.ndarray) -> np.ndarray:
        """Commonest colour of each third of the view: (..., h, w, 3) uint8 to (..., 3) int64."""
        walls = self._walls(frames)
        flat = walls.reshape(-1, *walls.shape[-3:])
        read = np.zeros((len(flat), 3), np.int64)
        for i, wall in enumerate(flat):
            nearest = np.square(wall[..., None, :] - self.centers).sum(-1).argmin(-1)
            for side, part in enumerate(np.array_split(nearest, 3, axis=1)):
                read[i, side] = np.bincount(part.ravel(), minlength=len(self.centers)).argmax()
        return read.reshape(*walls.shape[:-3], 3)
