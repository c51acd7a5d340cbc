"""How sure a mean is: 95 % intervals by the percentile bootstrap (Efron 1979)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

AT_ONCE = 10_000_000
"""Numbers that are drawn at once: 160 MB."""


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    *,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the interval (low, high) in which the mean lies with 95 % confidence.

    Args:
        values: (n,) independent observations, such as the returns of n episodes.
        num_resamples: bootstrap samples drawn.
        seed: decides them.

    Raises:
        ValueError: no values, or values that are not finite.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"values must be a list of one or more finite numbers, got {values!r}")
    rng, rows = np.random.default_rng(seed), max(AT_ONCE // sample.size, 1)
    sizes = (min(rows, num_resamples - done) for done in range(0, num_resamples, rows))
    means = [rng.choice(sample, (size, sample.size)).mean(axis=1) for size in sizes]
    return _middle(np.concatenate(means))


def crossed_bootstrap_interval(
    values: np.ndarray,
    counts: np.ndarray | None = None,
    *,
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
        num_resamples, seed: as for `bootstrap_interval`.

    Raises:
        ValueError: no values, values that are not finite, or counts of which all are 0.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 2 or sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"values must be a table of finite numbers, got shape {sample.shape}")
    if counts is not None and (np.shape(counts) != sample.shape or not np.any(counts)):
        raise ValueError(f"counts must be of shape {sample.shape} and not all 0, got {counts!r}")
    if len(sample) == 1 and counts is None:
        return bootstrap_interval(sample[0], num_resamples=num_resamples, seed=seed)
    rng = np.random.default_rng(seed)
    n, m = sample.shape
    rows = rng.integers(n, size=(num_resamples, n, 1))
    columns = rng.integers(m, size=(num_resamples, 1, m))
    if counts is None:
        return _middle(sample[rows, columns].mean(axis=(1, 2)))
    observed = np.asarray(counts)[rows, columns].sum(axis=(1, 2))
    sums = sample[rows, columns].sum(axis=(1, 2))
    return _middle(sums[observed > 0] / observed[observed > 0])


def paired_bootstrap_interval(
    values: np.ndarray,
    others: np.ndarray,
    *,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """The interval of the difference of the means of two tables of the same columns.

    Such as the results of n seeds of one agent and k seeds of another on the same m mazes: in every
    resample both are of the same mazes, and each of seeds of its own.

    Args:
        values, others: (n, m) and (k, m) finite numbers.
        num_resamples, seed: as for `bootstrap_interval`.

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
    return _middle(mine - theirs)


def _middle(means: np.ndarray) -> tuple[float, float]:
    """Between what 95 % of the means of resamples lie, but for equal tails."""
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
