"""Table and plots of the agents benchmark, made from the JSON files of its runs.

    python experiments/agents_report.py --output results/agents/memory-maze-9x9

Returns are means over mazes, of each the mean over seeds, with a 95 % bootstrap interval over
mazes: all seeds play the same ones, so that their episodes are not independent.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
import numpy as np
import tyro
from scipy.stats import spearmanr

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from agents.statistics import bootstrap_interval
from experiments.report import Runs, read_runs

LABELS = {
    "random": "random",
    "behaviour": "behaviour cloning",
    "walker": "walking to where a reward is expected",
    "walker_without_map": "walking straight to there, without a map",
    "walker_short_memory": "walking, memory cut",
    "advantage_weighted": "advantage-weighted cloning",
    "ppo_pixels": "PPO in the dream, pixels",
    "recurrent_ppo_pixels": "RecurrentPPO in the dream, pixels",
    "ppo_features": "PPO in the dream, memory read-out",
    "actor_critic": "actor-critic in the dream, from walking",
    "actor_critic_from_cloning": "actor-critic in the dream, from behaviour cloning",
    "actor_critic_cloned": "the same, from advantage-weighted cloning",
    "actor_critic_short_memory": "actor-critic, memory cut",
    "planner": "planner, whose policy is walking",
    "planner_cloning": "planner, whose policy is behaviour cloning",
    "model_free": "RecurrentPPO on the real env",
    "data": "scripted, as in the data",
    "oracle": "scripted, sees the plan and goes straight to every reward",
}
"""Agents of the benchmark, in the order of its table."""

JUDGES = {"dream": "rewards", "dream_way": "reward promised by the way made on the map"}
"""What policies are judged by in dreams: name in results, and in words."""

Pair: TypeAlias = tuple[str, float, float]
"""Agent, dreamed and real reward per 1,000 steps."""


def colour_of(agent: str) -> tuple[float, float, float, float]:
    """Of an agent in all plots, no other's: there are 20."""
    return plt.get_cmap("tab20")(list(LABELS).index(agent))


def write_report(output: Path) -> str:
    """Write table.md, returns.png, curves.png of what was trained, judge.png; returns the table.

    Raises:
        FileNotFoundError: there is no result.
    """
    runs = read_runs(output, LABELS)
    if not runs:
        raise FileNotFoundError(f"no results in {output}: run experiments/benchmark_agents.py")
    lines = [format_table(runs)]
    plot_returns(output / "returns.png", runs)
    if any(has_curve(r) for results in runs.values() for r in results):
        plot_curves(output / "curves.png", runs)
    if any("reached" in r["real"] for results in runs.values() for r in results):
        lines.append(format_returning(runs))
    judges = {name: pairs for name in JUDGES if can_rank(pairs := judge_pairs(runs, name))}
    for name, pairs in judges.items():
        dreamed, real = means_of(pairs)
        lines.append(
            f"Rank correlation of {JUDGES[name]} in dreams and real returns, {len(real)} policies "
            f"(means over seeds): {spearmanr(dreamed, real).statistic:.2f}."
        )
    if judges:
        plot_judges(output / "judge.png", judges)
    table = "\n\n".join(lines)
    (output / "table.md").write_text(table + "\n")
    return table


def returns_by_maze(results: list[dict[str, Any]]) -> list[float]:
    """Mean real return over seeds, for each maze that was played."""
    real = [result["real"] for result in results]
    return by_mazes([r["seeds"] for r in real], [v for r in real for v in r["returns"]])


def by_mazes(mazes: list[list[int]], values: Sequence[float]) -> list[float]:
    """Mean of each maze over seeds of training: mazes of every seed, and values of all in order."""
    played: dict[int, list[float]] = {}
    for maze, value in zip(itertools.chain(*mazes), values, strict=True):
        played.setdefault(maze, []).append(value)
    return [float(np.mean(group)) for group in played.values()]


def returned_to(reached: list[list[int]]) -> list[int]:
    """Steps that each way back to a target took which had been reached before in the episode.

    Args:
        reached: (step, target) of every reward of an episode.
    """
    steps, known, begin = [], set(), 0
    for step, target in reached:
        if target in known:
            steps.append(step - begin)
        known.add(target)
        begin = step
    return steps


def format_returning(runs: Runs) -> str:
    """Markdown: who comes back to targets that it has reached before, and in how many steps.

    Who remembers nothing has to search for a target again as for the first time.
    """
    lines = [
        "| agent | seeds | targets reached again | 95 % | steps to each |",
        "|---|---|---|---|---|",
    ]
    for agent, results in runs.items():
        told = [r for r in results if "reached" in r["real"]]
        ways = [[returned_to(e) for e in r["real"]["reached"]] for r in told]
        taken = [step for episodes in ways for episode in episodes for step in episode]
        if not told:
            continue
        counts = [len(episode) for episodes in ways for episode in episodes]
        by_maze = by_mazes([r["real"]["seeds"] for r in told], counts)
        low, high = bootstrap_interval(by_maze)
        cells = [
            LABELS[agent],
            str(len(told)),
            f"{np.mean(by_maze):.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{np.mean(taken):.0f}" if taken else "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _count(number: int | None) -> str:
    """With thousands apart; results of long ago do not have it."""
    return "-" if number is None else f"{number:,}"


def _milliseconds(seconds: list[float | None]) -> str:
    """Mean in milliseconds; results of long ago do not have it."""
    known = [s for s in seconds if s is not None]
    return f"{1000 * np.mean(known):.1f}" if known else "-"


def format_table(runs: Runs) -> str:
    """Markdown: one row per agent."""
    header = [
        "agent",
        "seeds",
        "mazes",
        "real return",
        "95 %",
        "real steps",
        "recorded steps",
        "minutes",
        "ms/decision",
    ]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for agent, results in runs.items():
        returns = returns_by_maze(results)
        low, high = bootstrap_interval(returns)
        cells = [
            LABELS[agent],
            str(len(results)),
            str(len(returns)),
            f"{np.mean(returns):.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{results[0]['real_steps']:,}",
            _count(results[0].get("recorded_steps")),
            f"{np.mean([r['training_minutes'] for r in results]):.1f}",
            _milliseconds([r.get("seconds_per_decision") for r in results]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Real steps: taken to train the policy; recorded steps: those that its world model learned "
        "from. Minutes: training of one seed. ms/decision: for each of as many real envs as ran "
        "side by side.",
    ]
    return "\n".join(lines)


def plot_returns(file: Path, runs: Runs) -> None:
    """Mean real returns with intervals; every seed's mean is a dot."""
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(runs) + 1.2), layout="constrained")
    for row, results in enumerate(runs.values()):
        returns = returns_by_maze(results)
        mean, (low, high) = float(np.mean(returns)), bootstrap_interval(returns)
        axes.barh(row, mean, color="tab:blue", alpha=0.5)
        axes.errorbar(mean, row, xerr=[[mean - low], [high - mean]], color="black", capsize=3)
        for result in results:
            axes.plot(result["real"]["mean_return"], row, "k.", alpha=0.5)
    axes.set_yticks(range(len(runs)), [LABELS[agent] for agent in runs])
    axes.invert_yaxis()
    axes.set_xlabel("return of a real episode")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def has_curve(result: dict[str, Any]) -> bool:
    """Whether a result tells how training went, and how long its episodes were."""
    return bool(result.get("curve")) and result.get("curve_steps") is not None


def plot_curves(file: Path, runs: Runs) -> None:
    """Reward while training, against the agent's own steps: dreamed, or real where it trains."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for agent, results in runs.items():
        trained = [r for r in results if has_curve(r)]
        for i, result in enumerate(trained):
            label = LABELS[agent] if i == 0 else None
            step, reward = np.array(result["curve"]).T
            reward = 1000 * reward / result["curve_steps"]
            axes.plot(step, reward, color=colour_of(agent), label=label)
    axes.legend(fontsize=8)
    axes.set(xlabel="training steps", ylabel="reward per 1,000 steps of training")
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def judge_pairs(runs: Runs, judge: str = "dream") -> list[Pair]:
    """(agent, dreamed, real) mean reward per 1,000 steps of every policy judged in both."""
    return [
        (agent, *(1000 * sum(r[w]["returns"]) / sum(r[w]["lengths"]) for w in (judge, "real")))
        for agent, results in runs.items()
        for r in results
        if r.get(judge) is not None
    ]


def means_of(pairs: list[Pair]) -> np.ndarray:
    """Dreamed and real reward of every agent, (2, n): seeds differ by chance, so their means."""
    agents = dict.fromkeys(agent for agent, _, _ in pairs)
    means = [np.mean([p[1:] for p in pairs if p[0] == agent], axis=0) for agent in agents]
    return np.array(means).reshape(-1, 2).T


def can_rank(pairs: list[Pair]) -> bool:
    """Whether there are at least three agents that differ."""
    return all(len(set(values)) > 2 for values in means_of(pairs))


def plot_judges(file: Path, judges: dict[str, list[Pair]]) -> None:
    """Dreamed against real reward, one dot per policy and seed, for each way to judge."""
    figure, all_axes = plt.subplots(
        1, len(judges), figsize=(5.5 * len(judges), 5), layout="constrained", squeeze=False
    )
    for axes, (name, judged) in zip(all_axes[0], judges.items(), strict=True):
        for agent in dict.fromkeys(agent for agent, _, _ in judged):
            points = [(d, r) for a, d, r in judged if a == agent]
            axes.plot(*zip(*points, strict=True), "o", color=colour_of(agent), label=LABELS[agent])
        limit = max(max(d, r) for _, d, r in judged) * 1.05 + 1e-6
        axes.plot([0, limit], [0, limit], "--", color="grey", linewidth=1)
        axes.set(
            xlabel=f"{JUDGES[name]} per 1,000 dreamed steps",
            ylabel="reward per 1,000 real steps",
            title=f"rank correlation {spearmanr(*means_of(judged)).statistic:.2f}",
        )
    all_axes[0, 0].legend(fontsize=8)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(output: Path = Path("results/agents/memory-maze-9x9")) -> None:
    """Write the report of a directory of results and print its table."""
    print(write_report(output))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
