"""Recall against distance: what share is right, by how many frames ago it was last seen."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

BINS = (1, 2, 3, 5, 9, 17, 26, 33, 49, 65, 97, 129, 193, 257, 385, 513, 1025)
"""First distance of each bin of a recall table; 25 and 64 are last ones of a bin."""


def recall_table(distance: np.ndarray, hits: dict[str, np.ndarray]) -> dict[str, Any]:
    """Hits by distance.

    Args:
        distance: frames since last seen, or -1 for never, any shape.
        hits: bool arrays of that shape, by name.

    Returns:
        `bins`, one entry per bin that has frames: first and last distance, mean distance, count,
        and the share of hits by name; and `never`, the same for what was not seen before.
    """

    def row(chosen: np.ndarray) -> dict[str, Any]:
        return {"count": int(chosen.sum())} | {k: float(v[chosen].mean()) for k, v in hits.items()}

    rows = []
    for first, after in itertools.pairwise(BINS):
        chosen = (distance >= first) & (distance < after)
        if chosen.any():
            mean = float(distance[chosen].mean())
            rows.append({"first": first, "last": after - 1, "distance": mean} | row(chosen))
    never = distance < 0
    return {"bins": rows, "never": row(never) if never.any() else {"count": 0}}


def share(table: dict[str, Any], name: str, first: int, last: int | None) -> float | None:
    """Mean of a hit over the bins of a recall table from one distance to another, None if empty.

    Args:
        table: from `recall_table`.
        name: of the hit.
        first, last: distances; both should be edges of bins. None has no end.
    """
    rows = [
        row
        for row in table["bins"]
        if row["first"] >= first and (last is None or row["last"] <= last)
    ]
    count = sum(row["count"] for row in rows)
    return sum(row[name] * row["count"] for row in rows) / count if count else None
