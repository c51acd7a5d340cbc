"""Recall against distance: what share is right, by how many frames ago it was last seen."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

BINS = (1, 2, 3, 5, 9, 17, 26, 33, 49, 65, 97, 129, 193, 257, 385, 513, 1025, 2049, 4097)
"""First distance of each bin of a recall table; 25 and 64 are last ones of a bin, and the last bin
has no end."""


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
    for first, after in itertools.pairwise((*BINS, 10**9)):
        chosen = (distance >= first) & (distance < after)
        if chosen.any():
            mean = float(distance[chosen].mean())
            rows.append({"first": first, "last": after - 1, "distance": mean} | row(chosen))
    never = distance < 0
    return {"bins": rows, "never": row(never) if never.any() else {"count": 0}}


def recall_by_time(
    distance: np.ndarray, right: np.ndarray, first: int, width: int = 16
) -> list[dict[str, Any]]:
    """Share of frames, of what was seen before, that are right, by frame of the episode.

    Args:
        distance: (n, t) frames since last seen, or -1 for never.
        right: (n, t) bool.
        first: which frame of the episode the first column is, counted from 0.
        width: frames of a bin.
    """
    rows = []
    for start in range(0, distance.shape[1], width):
        columns = slice(start, start + width)
        seen = distance[:, columns] >= 1
        if seen.any():
            middle = first + (start + min(start + width, distance.shape[1]) - 1) / 2 + 1
            value = float(right[:, columns][seen].mean())
            rows.append({"frame": middle, "count": int(seen.sum()), "right": value})
    return rows


def count_by_row(right: np.ndarray, chosen: np.ndarray) -> list[tuple[int, int]]:
    """Of each row of (n, t): how many of what is chosen are right, and how many there are."""
    return list(zip((right & chosen).sum(1).tolist(), chosen.sum(1).tolist(), strict=True))


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


def pose_recall_distance(
    position: np.ndarray,
    heading: np.ndarray,
    context: int,
    *,
    radius: float = 0.5,
    degrees: float = 20.0,
) -> np.ndarray:
    """How many frames ago each frame's pose was last seen within the context.

    Args:
        position: (t, 2) in cells. heading: (t, 2) unit vectors.
        context: frames at the start that were really seen.
        radius, degrees: how near place and heading must be.

    Returns:
        (t - context,) int64, -1 where the context has no such pose.
    """
    near = np.linalg.norm(position[context:, None] - position[None, :context], axis=-1) <= radius
    aligned = heading[context:] @ heading[:context].T >= np.cos(np.radians(degrees))
    seen = near & aligned
    last = context - 1 - seen[:, ::-1].argmax(1)
    now = np.arange(context, len(position))
    return np.where(seen.any(1), now - last, -1)


def by_row(values: np.ndarray, chosen: np.ndarray | None = None) -> list[float | None]:
    """Mean of each row of (n, t), or of what is chosen of it; None where nothing is."""
    chosen = np.ones(values.shape, bool) if chosen is None else chosen
    rows = zip(values, chosen, strict=True)
    return [float(v[c].mean()) if c.any() else None for v, c in rows]


def reward_recall(real: np.ndarray, dreamed: np.ndarray, slack: int = 2) -> float | None:
    """Share of real rewards that are dreamed within `slack` frames; (n, t) each; None without."""
    events = np.argwhere(real > 0.5)
    if not len(events):
        return None
    flagged = dreamed > 0.5
    found = [flagged[i, max(t - slack, 0) : t + slack + 1].any() for i, t in events]
    return float(np.mean(found))
