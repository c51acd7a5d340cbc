"""How sure a mean is: percentile bootstrap (Efron 1979)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the interval (low, high) in which the mean lies with the given confidence.

    Args:
        values: (n,) independent observations, such as the returns of n episodes.
        confidence: probability mass of the interval.
        num_resamples: bootstrap samples drawn.
        seed: decides them.

    Raises:
        ValueError: no values, values that are not finite, or a confidence outside (0, 1).
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"values must be a list of one or more finite numbers, got {values!r}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    rng = np.random.default_rng(seed)
    means = rng.choice(sample, (num_resamples, sample.size)).mean(axis=1)
    return _middle(means, confidence)


def crossed_bootstrap_interval(
    values: np.ndarray,
    counts: np.ndarray | None = None,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """The interval of the mean of values (n, m) of which rows and columns are both drawn.

    Such as the results of n seeds of training on the same m mazes: both are drawn anew in every
    resample. One row gives what `bootstrap_interval` gives.

    Args:
        values: (n, m) finite numbers.
        counts: (n, m) of how many observations each value is the sum; the interval is then of the
            mean of those, so that a maze counts for as much as was observed in it.
        confidence, num_resamples, seed: as for `bootstrap_interval`.

    Raises:
        ValueError: no values, values that are not finite, or counts of which all are 0.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 2 or sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"values must be a table of finite numbers, got shape {sample.shape}")
    if counts is not None and (np.shape(counts) != sample.shape or not np.any(counts)):
        raise ValueError(f"counts must be of shape {sample.shape} and not all 0, got {counts!r}")
    if len(sample) == 1 and counts is None:
        return bootstrap_interval(
            sample[0], confidence=confidence, num_resamples=num_resamples, seed=seed
        )
    rng = np.random.default_rng(seed)
    n, m = sample.shape
    rows = rng.integers(n, size=(num_resamples, n, 1))
    columns = rng.integers(m, size=(num_resamples, 1, m))
    if counts is None:
        return _middle(sample[rows, columns].mean(axis=(1, 2)), confidence)
    observed = np.asarray(counts)[rows, columns].sum(axis=(1, 2))
    sums = sample[rows, columns].sum(axis=(1, 2))
    return _middle(sums[observed > 0] / observed[observed > 0], confidence)


def _middle(means: np.ndarray, confidence: float) -> tuple[float, float]:
    """Between what means of resamples lie, but for equal tails."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
