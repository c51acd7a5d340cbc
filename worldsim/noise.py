"""The noise that dreams are sampled from: a random stream for each of a batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

PER_THREAD = 128
"""Streams that one thread draws from at a time: a few milliseconds' work."""


def draw_normal(
    noise: np.ndarray, generators: Sequence[np.random.Generator], rows: np.ndarray
) -> None:
    """Fill rows of noise, each from its own stream; large batches by several threads.

    Args:
        noise: (n, ...) float32, standard normal afterwards in the rows that are named.
        generators: n streams, none of them twice.
        rows: (k,) int64, none of them twice; other streams are not drawn from.
    """

    def draw(some: np.ndarray) -> None:
        for i in some:
            generators[i].standard_normal(out=noise[i], dtype=np.float32)

    if len(rows) <= PER_THREAD:
        draw(rows)
        return
    # NumPy draws without holding the interpreter's lock.
    parts = np.array_split(rows, -(-len(rows) // PER_THREAD))
    with ThreadPoolExecutor(min(len(parts), os.cpu_count() or 1)) as threads:
        list(threads.map(draw, parts))
