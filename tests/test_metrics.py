"""Metrics against their definitions."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from worldsim.metrics import average_precision, psnr, ssim


def frames(seed: int, *shape: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (*shape, 24, 32, 3)).astype(np.uint8))


def noisy(x: torch.Tensor, seed: int) -> torch.Tensor:
    noise = 20 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return (x.float() + noise).clamp(0, 255).to(torch.uint8)


def test_psnr_by_definition() -> None:
    target = frames(0, 2, 3)
    prediction = noisy(target, 1)
    values = psnr(prediction, target)
    assert values.shape == (2, 3)
    error = (prediction[1, 2].double() - target[1, 2].double()).square().mean()
    assert values[1, 2] == pytest.approx(10 * math.log10(255**2 / error), rel=1e-5)
    off_by_one = torch.full((4, 4, 3), 100, dtype=torch.uint8)
    assert psnr(off_by_one, off_by_one + 1) == pytest.approx(20 * math.log10(255), rel=1e-5)


def test_psnr_of_extremes() -> None:
    x = frames(0)
    assert psnr(x, x) == pytest.approx(60, rel=1e-5)
    black, white = torch.zeros(8, 8, 3, dtype=torch.uint8), torch.full((8, 8, 3), 255).byte()
    assert psnr(black, white) == pytest.approx(0, abs=1e-5)
    assert psnr(white, black) == pytest.approx(0, abs=1e-5)  # no wrapping around of uint8


def reference_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004: Gaussian windows of deviation 1.5 and 11 taps, averaged over the image."""
    a, b = a.astype(np.float64) / 255, b.astype(np.float64) / 255

    def blur(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, (1.5, 1.5, 0), truncate=3.5, mode="mirror")

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    values = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float(np.mean(values / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))))


def test_ssim_by_definition() -> None:
    target = frames(0, 2, 2)
    prediction = noisy(target, 1)
    values = ssim(prediction, target)
    assert values.shape == (2, 2)
    expected = reference_ssim(prediction[1, 0].numpy(), target[1, 0].numpy())
    assert float(values[1, 0]) == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(ssim(target, target), torch.ones(2, 2))


def test_average_precision_by_hand() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    events = np.array([1, 0, 1, 0, 1])
    assert average_precision(scores, events) == pytest.approx((1 / 1 + 2 / 3 + 3 / 5) / 3)
    order = np.array([3, 1, 4, 0, 2])
    assert average_precision(scores[order], events[order]) == pytest.approx(
        (1 / 1 + 2 / 3 + 3 / 5) / 3
    )


def test_average_precision_of_extremes() -> None:
    events = np.array([[0, 1], [0, 0]])
    assert average_precision(np.array([[0, 1], [0, 0]]), events) == 1
    assert average_precision(np.array([[1, 0], [1, 1]]), events) == 0.25
    assert average_precision(np.zeros((2, 2)), events) == 0.25  # a constant wins nothing by ties
    assert math.isnan(average_precision(np.zeros(3), np.zeros(3)))
