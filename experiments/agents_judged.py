"""Does a dream rank policies as reality does? The judge's part of the agents benchmark's report."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import matplotlib
import numpy as np
from scipy.stats import rankdata, spearmanr

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments.agents_config import SCRIPTED
from experiments.agents_labels import LABELS, colour_of
from experiments.report import Runs

JUDGES = {"dream": "rewards", "dream_way": "reward by the way on the map"}
"""What policies are judged by in dreams: name in results, and in words."""

Pair: TypeAlias = tuple[str, float, float]
"""Agent, mean return of dreams and of real episodes."""


def report_judges(file: Path, runs: Runs, variants: Runs | None = None) -> list[str]:
    """Say how each judge ranks policies, and plot it; nothing where there are too few.

    Args:
        file: of the plot.
        runs: results of the benchmark, by agent.
        variants: further policies, which are trained otherwise: those of `benchmark_guards.py`.
    """
    judged = {name: judge_pairs(runs, name) for name in JUDGES}
    if all(can_rank(pairs) for pairs in judged.values()):  # of the same agents, to be compared
        both = set.intersection(*({agent for agent, *_ in pairs} for pairs in judged.values()))
        judged = {name: [p for p in pairs if p[0] in both] for name, pairs in judged.items()}
    judged = {name: pairs for name, pairs in judged.items() if can_rank(pairs)}
    others = {name: judge_pairs(variants or {}, name) for name in judged}
    lines = []
    for name, pairs in judged.items():
        dreamed, real = means_of(pairs)
        found = f"{spearmanr(dreamed, real).statistic:.2f}"
        agents = dict.fromkeys(agent for agent, *_ in pairs)
        if (interval := rank_interval({a: runs[a] for a in agents}, name)) is not None:
            found += f" [{interval[0]:.2f}, {interval[1]:.2f}]"
        lines.append(
            f"Rank correlation of {JUDGES[name]} in dreams and real returns, {len(real)} policies "
            f"(means over seeds): {found}."
        )
        if others[name]:
            dreamed, real = means_of(pairs + others[name])
            lines[-1] += (
                f" With {len(real) - len(agents)} more that are trained with other guards "
                f"(benchmark_guards.py): {spearmanr(dreamed, real).statistic:.2f}."
            )
    if judged:
        plot_judges(file, judged, others)
    return lines


def judge_pairs(runs: Runs, judge: str = "dream") -> list[Pair]:
    """(agent, dreamed, real) mean return of every policy judged in both."""
    return [
        (agent, float(np.mean(r[judge]["returns"])), float(np.mean(r["real"]["returns"])))
        for agent, results in runs.items()
        for r in results
        if r.get(judge) is not None
    ]


def means_of(pairs: list[Pair]) -> np.ndarray:
    """Dreamed and real return of every agent, (2, n): seeds differ by chance, so their means."""
    agents = dict.fromkeys(agent for agent, _, _ in pairs)
    means = [np.mean([p[1:] for p in pairs if p[0] == agent], axis=0) for agent in agents]
    return np.array(means).reshape(-1, 2).T


def rank_interval(
    runs: Runs, judge: str, num_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float] | None:
    """95 % interval of the rank correlation: seeds of training, mazes and dreams are drawn anew.

    All agents are drawn in the same mazes and the same dreams, for hard ones are hard for all;
    scripted players, whose dreams are others, in theirs. None where they have not all played the
    same.
    """
    rng = np.random.default_rng(seed)
    judged = {agent: [r for r in rs if r.get(judge) is not None] for agent, rs in runs.items()}
    seeds = {a: rng.integers(len(rs), size=(num_resamples, len(rs), 1)) for a, rs in judged.items()}
    returns = []
    for where in (judge, "real"):
        played = {tuple(r[where]["seeds"]) for rs in judged.values() for r in rs}
        if len(played) != 1:
            return None
        count = len(played.pop())
        shared, apart = rng.integers(count, size=(2, num_resamples, 1, count))
        drawn = []
        for agent, rs in judged.items():
            episodes = apart if agent in SCRIPTED and where != "real" else shared
            table = np.array([r[where]["returns"] for r in rs])
            drawn.append(table[seeds[agent], episodes].mean(axis=(1, 2)))
        returns.append(np.stack(drawn, axis=1))
    dreamed, real = (rankdata(one, axis=1) for one in returns)
    dreamed, real = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (dreamed, real))
    spread = np.sqrt((dreamed**2).sum(axis=1) * (real**2).sum(axis=1))
    correlations = (dreamed * real).sum(axis=1)[spread > 0] / spread[spread > 0]
    if not len(correlations):
        return None
    low, high = np.quantile(correlations, [0.025, 0.975])
    return float(low), float(high)


def can_rank(pairs: list[Pair]) -> bool:
    """Whether there are at least three agents that differ."""
    return all(len(set(values)) > 2 for values in means_of(pairs))


def plot_judges(file: Path, judges: dict[str, list[Pair]], variants: dict[str, list[Pair]]) -> None:
    """Dreamed against real returns, one dot per policy and seed, for each way to judge."""
    figure, all_axes = plt.subplots(
        1, len(judges), figsize=(5.5 * len(judges), 5), layout="constrained", squeeze=False
    )
    for axes, (name, judged) in zip(all_axes[0], judges.items(), strict=True):
        for agent in dict.fromkeys(agent for agent, _, _ in judged):
            points = [(d, r) for a, d, r in judged if a == agent]
            marker, label = "o", LABELS[agent]
            if agent in SCRIPTED:
                marker, label = "s", f"{label} (its real actions, dreamed)"
            axes.plot(*zip(*points, strict=True), marker, color=colour_of(agent), label=label)
        if variants[name]:
            points = [pair[1:] for pair in variants[name]]
            label = "with other guards (benchmark_guards.py)"
            axes.plot(*zip(*points, strict=True), "x", color="grey", label=label)
        axes.grid(alpha=0.3)
        axes.set(
            xlabel=f"{JUDGES[name]} in a dream",
            ylabel="return of a real episode",
            title=f"rank correlation {spearmanr(*means_of(judged)).statistic:.2f}",
        )
    handles, labels = all_axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(file, dpi=120)
    plt.close(figure)
