"""Image and event metrics: PSNR, SSIM, average precision."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of uint8 frames (..., h, w, c), one value per frame (...).

    Capped at 60 dB, so that exact frames do not make means infinite.
    """
    error = (prediction.float() - target.float()).square().mean((-1, -2, -3))
    return 10 * torch.log10(255**2 / error.clamp(min=255**2 * 1e-6))


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of uint8 frames (..., h, w, c), one value per frame (...)."""
    shape = prediction.shape[:-3]
    a, b = (x.flatten(0, -4).movedim(-1, 1).float() / 255 for x in (prediction, target))
    values = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
    assert isinstance(values, Tensor)
    return values.unflatten(0, shape)


def average_precision(scores: np.ndarray, events: np.ndarray) -> float:
    """Area under the precision-recall curve of scores for binary events, both of any one shape.

    NaN without a positive event. Ties are broken against the scorer.
    """
    scores, events = scores.ravel(), events.ravel().astype(bool)
    if not events.any():
        return float("nan")
    order = np.lexsort((events, -scores))
    hits = events[order].cumsum()
    precision = hits / np.arange(1, len(hits) + 1)
    return float(precision[events[order]].mean())
