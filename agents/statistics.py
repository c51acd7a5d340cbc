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


def paired_bootstrap_interval(
    values: np.ndarray,
    others: np.ndarray,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """The interval of the difference of the means of two tables of the same columns.

    Such as the results of n seeds of one agent and k seeds of another on the same m mazes: in every
    resample both are of the same mazes, and each of seeds of its own.

    Args:
        values, others: (n, m) and (k, m) finite numbers.
        confidence, num_resamples, seed: as for `bootstrap_interval`.

    Raises:
        ValueError: no values, values that are not finite, or tables of other columns.
    """
    tables = [np.asarray(table, dtype=np.float64) for table in (values, others)]
    shapes = [table.shape for table in tables]
    if any(t.ndim != 2 or t.size == 0 or not np.isfinite(t).all() for t in tables):
        raise ValueError(f"values must be tables of finite numbers, got shapes {shapes}")
    m = shapes[0][1]
    if shapes[1][1] != m:
        raise ValueError(f"tables must have the same columns, got shapes {shapes}")
    rng = np.random.default_rng(seed)
    columns = rng.integers(m, size=(num_resamples, 1, m))
    mine, theirs = (
        table[rng.integers(len(table), size=(num_resamples, len(table), 1)), columns].mean((1, 2))
        for table in tables
    )
    return _middle(mine - theirs, confidence)


def _middle(means: np.ndarray, confidence: float) -> tuple[float, float]:
    """Between what means of resamples lie, but for equal tails."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
