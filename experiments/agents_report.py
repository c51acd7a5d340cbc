"""Tables and plots of the agents benchmark, made from the JSON files of its runs.

    python experiments/agents_report.py --output results/agents/memory-maze-9x9

Returns are means over seeds of training and mazes, with a 95 % interval of the bootstrap that draws
both anew: all seeds play the same mazes, so that their episodes are not independent.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from agents.statistics import (
    bootstrap_interval,
    crossed_bootstrap_interval,
    paired_bootstrap_interval,
)
from experiments.agents_config import JUDGING
from experiments.agents_judged import report_judges
from experiments.agents_labels import LABELS, colour_of
from experiments.command_line import run_script
from experiments.report import Runs, read_runs

HELD_AGAINST = (
    ("cloned", "behaviour"),
    ("walker", "behaviour"),
    ("walker", "walker_short_memory"),
    ("ppo_features", "walker"),
    ("actor_critic", "walker"),
    ("actor_critic", "behaviour"),
    ("actor_critic", "cloned"),
    ("actor_critic", "actor_critic_short_memory"),
    ("actor_critic", "model_free"),
    ("actor_critic_from_cloning", "behaviour"),
    ("actor_critic_from_cloning", "cloned"),
    ("actor_critic_from_cloning", "walker"),
    ("actor_critic_from_cloning", "model_free"),
    ("planner", "walker"),
    ("planner", "behaviour"),
    ("planner_cloning", "behaviour"),
    ("planner_cloning", "cloned"),
    ("planner_actor_critic", "actor_critic"),
)
"""Agents, and what they started from or are to be better than."""

Mean: TypeAlias = tuple[float, float, float]
"""With its 95 % interval: mean, low, high."""


def write_report(output: Path) -> str:
    """Write table.md, returns.png, curves.png of what was trained, judge.png; returns the table.

    Policies that `benchmark_guards.py` has trained are judged with the others where their results
    are beside these, in a directory of the same name with "-guards" behind it.

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
    if (gains := format_gains(runs)) is not None:
        lines.append(gains)
    if any("reached" in r["real"] for results in runs.values() for r in results):
        lines.append(format_returning(runs))
    lines += report_judges(output / "judge.png", runs, variants_of(output, runs))
    table = "\n\n".join(lines)
    (output / "table.md").write_text(table + "\n")
    return table


def variants_of(output: Path, runs: Runs) -> Runs:
    """Policies trained with other guards, by guard and agent, that were judged as these were."""

    def judged(result: dict[str, Any]) -> tuple[str, ...]:
        settings = (str(result.get("config", {}).get(name)) for name in JUDGING)
        return result.get("world_model_sha256", ""), *settings

    these = {judged(r) for results in runs.values() for r in results}
    variants: Runs = {}
    for directory in sorted(output.with_name(f"{output.name}-guards").glob("*/")):
        if directory.name == "as_given":  # is an agent of these results
            continue
        for agent, results in read_runs(directory, LABELS).items():
            if alike := [r for r in results if judged(r) in these]:
                variants[f"{directory.name}, {agent}"] = alike
    return variants


def mean_of(mazes: list[list[int]], values: list[list[float]]) -> Mean:
    """Of values for every maze that each seed of training has played, with its interval.

    Where seeds have played different mazes, these are drawn anew alone, each with its mean.
    """
    if all(played == mazes[0] for played in mazes):
        table = np.array(values)
        return float(table.mean()), *crossed_bootstrap_interval(table)
    by_maze: dict[int, list[float]] = {}
    for maze, value in zip(itertools.chain(*mazes), itertools.chain(*values), strict=True):
        by_maze.setdefault(maze, []).append(value)
    means = [float(np.mean(group)) for group in by_maze.values()]
    return float(np.mean(means)), *bootstrap_interval(means)


def mean_return(results: list[dict[str, Any]]) -> Mean:
    """Of real episodes, over seeds and mazes."""
    real = [result["real"] for result in results]
    return mean_of([r["seeds"] for r in real], [r["returns"] for r in real])


def gain(results: list[dict[str, Any]], others: list[dict[str, Any]]) -> Mean | None:
    """By how much the return is higher than others' in the same mazes; None for other mazes.

    Mazes are paired; seeds of training are drawn on their own, for those of two agents have little
    or nothing in common.
    """
    mazes = [r["real"]["seeds"] for r in (*results, *others)]
    if any(played != mazes[0] for played in mazes):
        return None
    mine, theirs = (np.array([r["real"]["returns"] for r in rs]) for rs in (results, others))
    return float(mine.mean() - theirs.mean()), *paired_bootstrap_interval(mine, theirs)


def format_gains(runs: Runs) -> str | None:
    """Markdown: what agents make more than those that they are to be held against."""
    lines = ["| agent | held against | more return, paired by maze | 95 % |", "|---|---|---|---|"]
    for agent, other in HELD_AGAINST:
        if agent in runs and other in runs and (found := gain(runs[agent], runs[other])):
            mean, low, high = found
            cells = [LABELS[agent], LABELS[other], f"{mean:.2f}", f"{low:.2f} to {high:.2f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else None


def ways_to_targets(reached: list[list[int]]) -> tuple[list[int], list[int]]:
    """Steps that each way took to targets for the first time in an episode, and back to them.

    Args:
        reached: (step, target) of every reward of an episode.
    """
    first: list[int] = []
    back: list[int] = []
    known, begin = set(), 0
    for step, target in reached:
        (back if target in known else first).append(step - begin)
        known.add(target)
        begin = step
    return first, back


def format_returning(runs: Runs) -> str:
    """Markdown: who comes back to targets that it has reached before, and in how many steps.

    Who remembers nothing has to search for a target again as for the first time.
    """
    lines = [
        "| agent | seeds | targets reached again | 95 % | steps to each | for the first time |",
        "|---|---|---|---|---|---|",
    ]
    for agent, results in runs.items():
        told = [r["real"] for r in results if "reached" in r["real"]]
        if not told:
            continue
        ways = [[ways_to_targets(episode) for episode in real["reached"]] for real in told]
        counts = [[float(len(back)) for _, back in episodes] for episodes in ways]
        mean, low, high = mean_of([real["seeds"] for real in told], counts)
        cells = [LABELS[agent], str(len(told)), f"{mean:.2f}", f"{low:.2f} to {high:.2f}"]
        for which in (1, 0):
            steps = [s for episodes in ways for episode in episodes for s in episode[which]]
            cells.append(f"{np.mean(steps):.0f}" if steps else "-")
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Steps are of ways that came to their target: the last of an episode does not."]
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
        "ms/step",
    ]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for agent, results in runs.items():
        mean, low, high = mean_return(results)
        cells = [
            LABELS[agent],
            str(len(results)),
            str(len(set().union(*(r["real"]["seeds"] for r in results)))),
            f"{mean:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{results[0]['real_steps']:,}",
            _count(results[0].get("recorded_steps")),
            f"{np.mean([r['training_minutes'] for r in results]):.1f}",
            _milliseconds([r.get("seconds_per_decision") for r in results]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    gpu = any(r.get("device", "cpu") != "cpu" for results in runs.values() for r in results)
    lines += [
        "",
        "Real steps: taken to train the policy; recorded steps: those that its world model learned "
        "from. Minutes: training of one seed. ms/step: of choosing an action, on average (planners "
        "decide on several at once), for each of as many real envs as ran "
        "side by side, on one core, and on all where an agent plans or its memory is cut"
        f"{', with a GPU for the model where results say so' if gpu else ''}. "
        "Intervals are of mazes and of as many seeds as there are: of one seed they say nothing of "
        "other seeds.",
    ]
    return "\n".join(lines)


def plot_returns(file: Path, runs: Runs) -> None:
    """Mean real returns with intervals; every seed's mean is a dot."""
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(runs) + 1.2), layout="constrained")
    for row, results in enumerate(runs.values()):
        mean, low, high = mean_return(results)
        axes.barh(row, mean, color="tab:blue", alpha=0.5)
        axes.errorbar(mean, row, xerr=[[mean - low], [high - mean]], color="black", capsize=3)
        for result in results:
            axes.plot(result["real"]["mean_return"], row, "k.", alpha=0.5)
    axes.set_yticks(range(len(runs)), [LABELS[agent] for agent in runs])
    axes.invert_yaxis()
    axes.set_xlabel("return of a real episode")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def has_curve(result: dict[str, Any], curve: str = "curve") -> bool:
    """Whether a result tells how its own training went, and how long its episodes were."""
    # Whose memory is cut has learned as another, whose curve it is.
    of_another = "short_memory" in result
    return bool(result.get(curve)) and result.get("curve_steps") is not None and not of_another


def plot_curves(file: Path, runs: Runs) -> None:
    """Reward while training, against the agent's own steps: dreamed, or real where it trains.

    What it learned from, where that is known, has a plot of its own: with progress on the way.
    """
    titles = {"curve": "rewards alone", "shaped_curve": "with progress on the way"}
    trained = {
        curve: {
            agent: [r for r in results if has_curve(r, curve)] for agent, results in runs.items()
        }
        for curve in titles
    }
    shown = [curve for curve in titles if any(trained[curve].values())]
    figure, all_axes = plt.subplots(
        1, len(shown), figsize=(6 * len(shown), 4.5), layout="constrained", squeeze=False
    )
    lines = {}
    for axes, curve in zip(all_axes[0], shown, strict=True):
        for agent, results in trained[curve].items():
            for result in results:
                step, reward = np.array(result[curve]).T
                reward = 1000 * reward / np.array(result["curve_steps"])
                (lines[LABELS[agent]],) = axes.plot(step, reward, color=colour_of(agent))
        if curve == "curve":  # of real steps too, of which there may be many times as many
            axes.set_xscale("log")
        axes.set(
            xlabel="training steps",
            ylabel="reward per 1,000 steps of training",
            title=titles[curve],
        )
        axes.grid(alpha=0.3)
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(file, dpi=120)
    plt.close(figure)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Make the report of results anew."""

    output: Path = Path("results/agents/memory-maze-9x9")
    """Where they are."""


def main(config: ReportConfig) -> None:
    """Write the report of a directory of results and print its table."""
    print(write_report(config.output))


if __name__ == "__main__":
    run_script(main, ReportConfig, __doc__)
