"""What keeps an actor-critic from exploiting its dream? Guards left out and added, one by one.

    python experiments/benchmark_guards.py
    python experiments/benchmark_guards.py --guards as_given horizon_64 --agents actor_critic

A policy learns what its world model gets wrong, too: dreams promise it more and more, and outside
it makes less. The same agent is trained on as many dreamed steps with every guard, and judged in
the same real mazes and the same dreams. (Where doubt is asked for, every step is dreamed twice.)
Results are JSON files in a directory for every guard, as experiments/benchmark_agents.py makes
them: what is there is kept, so that a run that was stopped goes on, and further guards and seeds
add up over calls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from experiments.agents_config import BenchmarkAgentsConfig
from experiments.agents_labels import LABELS
from experiments.agents_report import gain, mean_return
from experiments.agents_work import check_comparable
from experiments.benchmark_agents import AgentsBenchmark
from experiments.command_line import CONTINUES, run_script
from experiments.platform_settings import keep_memory
from experiments.report import Runs, read_runs

AS_GIVEN = "as_given"
LEFT_OUT: dict[str, dict[str, Any]] = {
    "horizon_64": {"training_horizon": 64},
    "free_walls": {"way": {"touch": 0.0}},
    "small_rewards": {"way": {"min_reward": 0.0}},
    "free_of_behaviour": {"actor_critic": {"prior_coef": 0.0}},
}
"""Guards that an actor-critic has by default, each set to nothing."""
GUARDS: dict[str, dict[str, Any]] = {
    AS_GIVEN: {},
    **LEFT_OUT,
    "none": {
        "training_horizon": 64,
        "way": {"touch": 0.0, "min_reward": 0.0},
        "actor_critic": {"prior_coef": 0.0},
    },
    "rewards_alone": {"way": {"progress": 0.0, "touch": 0.0}},
    "doubt_ends": {"actor_critic": {"max_doubt": 0.03}},
    "doubt_costs": {"actor_critic": {"doubt_coef": 1.0}},
}
"""What is compared: settings in place of those given. Progress on the way is no guard, but with it
there is much less that a dreamed reward can deceive about; without it, dreamed rewards are taken as
they are, and advantages are scaled as for these."""
GUARD_LABELS = {
    AS_GIVEN: "all guards, as given",
    "horizon_64": "dreams of 64 steps, not 16",
    "free_walls": "touching walls costs nothing",
    "small_rewards": "small dreamed rewards count",
    "free_of_behaviour": "leaving the cloned behaviour costs nothing",
    "none": "none of these four",
    "rewards_alone": "dreamed rewards alone, small ones too, without the map",
    "doubt_ends": "all, and doubtful dreams end",
    "doubt_costs": "all, and doubt costs something",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkGuardsConfig(BenchmarkAgentsConfig):
    """Compare guards of an actor-critic on one real env."""

    agents: tuple[str, ...] | None = ("actor_critic_from_cloning",)
    """The actor-critic to train; from cloning it has the most to learn in its dreams."""
    total_timesteps: int | None = 80_000
    """Dream steps per guard and seed; not the second dreams of steps that are doubted."""
    guards: tuple[str, ...] = tuple(GUARDS)
    """What to compare."""

    def __post_init__(self) -> None:
        super().__post_init__()
        of_the_kind = [name for name in LABELS if name.startswith("actor_critic")]
        if len(self.agents or ()) != 1 or self.agents[0] not in of_the_kind:  # type: ignore[index]
            raise ValueError(
                f"agents must be one of {', '.join(of_the_kind)}, got {self.agents or 'none'}"
            )
        for guard in self.guards:
            if guard not in GUARDS:
                raise ValueError(f"unknown guard {guard!r}: choose from {', '.join(GUARDS)}")
        if self.actor_critic.min_reward is not None:
            raise ValueError("give --way.min-reward in place of --actor-critic.min-reward")
        if self.total_timesteps is None:
            raise ValueError(
                "guards take their time, and are compared by steps: give total_timesteps"
            )

    @property
    def work_directory(self) -> Path:
        return self.work or Path("runs/guards") / self.env


def with_guard(
    config: BenchmarkGuardsConfig, guard: str, *, must_differ: bool = True
) -> BenchmarkGuardsConfig:
    """The config with the settings of one guard, and directories of its own.

    Raises:
        ValueError: they are those that are given already, and `must_differ`.
    """
    changes = {
        name: dataclasses.replace(getattr(config, name), **value)
        if isinstance(value, Mapping)
        else value
        for name, value in GUARDS[guard].items()
    }
    same = all(getattr(config, name) == new for name, new in changes.items())
    if must_differ and guard != AS_GIVEN and same:
        raise ValueError(f"{guard} changes nothing of what is given: leave it out of guards")
    return dataclasses.replace(
        config,
        output=config.output_directory / guard,
        work=config.work_directory / guard,
        guards=(guard,),
        **changes,
    )


def check_all_kept(config: BenchmarkGuardsConfig, benchmark: AgentsBenchmark, agent: str) -> None:
    """Refuse to report what was made before with other settings, of guards of other calls too.

    Raises:
        ValueError: there is such a result.
    """
    for guard in GUARDS:
        directory = config.output_directory / guard
        check_comparable(directory, [agent], benchmark.config, benchmark.weights)
        benchmark.check_kept(agent, with_guard(config, guard, must_differ=False))


def write_report(output: Path, agent: str) -> str:
    """Write table.md and guards.png from all results of an agent; returns the table.

    Raises:
        FileNotFoundError: there is no result.
    """
    runs: Runs = {}
    for guard in GUARDS:
        if found := read_runs(output / guard, [agent]).get(agent):
            runs[guard] = found
    if not runs:
        raise FileNotFoundError(f"no results of {agent} in {output}")
    table = format_table(runs, agent)
    (output / "table.md").write_text(table + "\n")
    plot_guards(output / "guards.png", runs)
    return table


def format_table(runs: Runs, agent: str) -> str:
    """Markdown: one row per guard."""
    titles = ("guards", "seeds", "real return", "95 %", "more than as given, paired", "95 %")
    header = [*titles, "dreamed rewards", "dreamed progress", "minutes"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for guard, results in runs.items():
        mean, low, high = mean_return(results)
        cells = [GUARD_LABELS[guard], str(len(results)), f"{mean:.2f}", f"{low:.2f} to {high:.2f}"]
        more = None
        if guard != AS_GIVEN and AS_GIVEN in runs:
            more = gain(results, runs[AS_GIVEN])
        cells += [f"{more[0]:+.2f}", f"{more[1]:+.2f} to {more[2]:+.2f}"] if more else ["-", "-"]
        dreamed = (_dreamed(results, which) for which in ("dream", "dream_way"))
        cells += ["-" if value is None else f"{value:.2f}" for value in dreamed]
        cells.append(f"{np.mean([r['training_minutes'] for r in results]):.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    judged = next(iter(runs.values()))[0]["config"]
    lines += [
        "",
        f"Of: {LABELS[agent]}. Dreamed rewards and progress: of the trained policies in the same "
        f"{judged['dream_episodes']} dreams of {judged['horizon']} steps, whatever they were "
        "trained on; all dreamed rewards count, and progress is that on the map, touching walls "
        "free. Minutes: training of one seed. Intervals are of mazes and seeds.",
    ]
    return "\n".join(lines)


def _dreamed(results: list[dict[str, Any]], which: str) -> float | None:
    """Mean over seeds of what policies make in dreams."""
    known = [r[which]["mean_return"] for r in results if r.get(which)]
    return float(np.mean(known)) if known else None


def plot_guards(file: Path, runs: Runs) -> None:
    """Real returns with intervals beside what dreams promised; every seed's mean is a dot."""
    sides = [("real", "return of a real episode"), ("dream_way", "progress in dreams")]
    shown = [s for s in sides if all(r.get(s[0]) for results in runs.values() for r in results)]
    figure, all_axes = plt.subplots(
        1,
        len(shown),
        figsize=(5 * len(shown) + 3, 0.5 * len(runs) + 1.2),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, (which, label) in zip(all_axes[0], shown, strict=True):
        for row, results in enumerate(runs.values()):
            means = [r[which]["mean_return"] for r in results]
            axes.barh(row, np.mean(means), color="tab:blue", alpha=0.5)
            if which == "real":
                mean, low, high = mean_return(results)
                axes.errorbar(mean, row, xerr=[[mean - low], [high - mean]], color="k", capsize=3)
            axes.plot(means, [row] * len(means), "k.", alpha=0.5)
        axes.set_xlabel(label)
    all_axes[0][0].set_yticks(range(len(runs)), [GUARD_LABELS[guard] for guard in runs])
    all_axes[0][0].invert_yaxis()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(config: BenchmarkGuardsConfig) -> str:
    """Run what is missing; returns the table, which is printed too."""
    keep_memory()
    assert config.agents is not None
    (agent,) = config.agents
    benchmarks = {guard: AgentsBenchmark(with_guard(config, guard)) for guard in config.guards}
    first = next(iter(benchmarks.values()))
    if needing := [guard for guard in config.guards if "way" in GUARDS[guard]]:
        if not first.model.config.draws_map:
            raise ValueError(
                f"{first.name} draws no map to find the way on: leave {', '.join(needing)} out of "
                "guards"
            )
    check_all_kept(config, first, agent)
    # Seed by seed, so that a run that is stopped has compared something.
    for seed in config.seeds:
        for guard, benchmark in benchmarks.items():
            print(f"{GUARD_LABELS[guard]}, seed {seed}", flush=True)
            benchmark.run(agent, seed)
    table = write_report(config.output_directory, agent)
    print(f"\n{table}\n\neverything is in {config.output_directory}")
    return table


if __name__ == "__main__":
    run_script(main, BenchmarkGuardsConfig, __doc__, stopped=CONTINUES)
