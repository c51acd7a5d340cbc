"""Who remembers what, for how long, at what cost: every backbone on equal terms.

    python experiments/benchmark_memory.py corridor
    python experiments/benchmark_memory.py cpu --backbones block_ssm causal --seeds 0 1

Trains each model with each seed on the same data for the same steps and frames, with the same
number of parameters within 5 %, and evaluates it. Every finished run is a JSON file in OUTPUT and
is kept; a run that was killed goes on from its last checkpoint when the command is started again.
Further seeds and models add up over calls. At the end costs are measured once, and the table and
the plots are made from all that OUTPUT holds. `--sweep 0.5 1 2` first chooses the learning rate of
each family by short runs, which are kept too. `--num-processes 8` trains as many models side by
side, on a machine with many cores. `--seeds` with none measures costs and trains nothing.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import worldsim.checkpoint as checkpoint
from experiments.command_line import CONTINUES, run_script
from experiments.memory_costs import measure_dreaming, measure_training
from experiments.memory_presets import BenchmarkConfig, presets
from experiments.memory_report import REFERENCE, REFERENCE_LABEL, write_report
from experiments.memory_runs import (
    Workers,
    check_others,
    choose_rates,
    find_pending,
    train_and_judge,
)
from experiments.memory_training import Benchmark, TokenizerSource
from experiments.platform_settings import keep_memory
from experiments.report import provenance, read_json, write_json
from experiments.settings import Settings, is_done, same_settings, settings_as_json


def write_reference(benchmark: Benchmark) -> None:
    """Evaluate copies of seen frames, once."""
    config = benchmark.config
    file = config.output / f"{REFERENCE}-seed0.json"
    settings = benchmark.task_settings
    if is_done(file, settings):
        return
    describe = functools.partial(benchmark.describe, REFERENCE_LABEL)
    evaluated = benchmark.task.reference(benchmark.accelerator.device, describe)
    if evaluated is not None:
        values, frames = evaluated
        directory = config.work / f"{REFERENCE}-seed0"
        directory.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(directory / "frames.npz", **frames)  # type: ignore[arg-type]
        result = {
            "name": REFERENCE,
            "label": REFERENCE_LABEL,
            "seed": 0,
            "parameters": 0,
            "evaluation": values,
            "settings": settings_as_json(settings),
            **provenance(),
        }
        write_json(file, result)


def check_costs(benchmark: Benchmark) -> tuple[dict[str, Any], dict[str, Any]]:
    """The costs that are kept, by model, and what is to be noted of those that are missing.

    Raises:
        ValueError: there are costs of other settings, or measured elsewhere.
    """
    config = benchmark.config
    file = config.output / "costs.json"
    found = read_json(file) or {}
    settings: Settings = {
        "config": config.costs,
        "sizes": config.sizes,
        "tokenizer": config.tokenizer,
    }
    if not found or "tokenizer_source" in found:  # costs of before do not tell it
        settings["tokenizer_source"] = TokenizerSource(model=config.tokenizer_of)
    advice = "choose another --output, move it away, or measure none (--no-measure-costs)"
    if found and not same_settings(settings, found):
        raise ValueError(f"{file} has the costs of other settings: {advice}")
    kept = found.get("models", {})
    noted = settings_as_json(settings)
    noted |= {"device": str(benchmark.accelerator.device), "precision": str(benchmark.dtype)}
    noted |= provenance()
    more = kept and not set(config.backbones) <= set(kept)
    for name in ("device", "precision", "hardware") if more else ():
        if found.get(name, noted[name]) != noted[name]:
            raise ValueError(
                f"{file} has costs measured with {name} {found[name]}, now {noted[name]}, which "
                f"cannot be compared: {advice}"
            )
    return kept, noted


def measure_all_costs(benchmark: Benchmark) -> None:
    """Measure the costs of models that have none yet."""
    config = benchmark.config
    kept, noted = check_costs(benchmark)
    for name in config.backbones:
        if name in kept:
            continue
        benchmark.bar.set_description(f"costs of {name}")
        model = benchmark.untrained_model(name)
        training = [
            measure_training(model, length, config.costs, benchmark.dtype)
            for length in config.costs.training_lengths
        ]
        checkpoint.save(model, config.work / "costs")
        model = benchmark.load(config.work / "costs")
        kept[name] = {"training": training, "dreaming": measure_dreaming(model, config.costs)}
        write_json(config.output / "costs.json", {**noted, "models": kept})


def main(config: BenchmarkConfig) -> Path:
    """Run what is missing, then write the report.

    Returns:
        The directory with the results.
    """
    keep_memory()
    config.work.mkdir(parents=True, exist_ok=True)
    config.output.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=0, unit="step", mininterval=2, smoothing=0.02)
    benchmark = Benchmark(config, bar)
    if config.measure_costs:
        check_costs(benchmark)  # now, not after all training
    with bar, Workers(benchmark, bar) as workers:
        if config.seeds:
            check_others(benchmark)
            rates = choose_rates(benchmark, workers, bar)
            pending = find_pending(benchmark, rates)
            write_reference(benchmark)
            bar.reset(total=len(pending) * config.dynamics.optimizer.steps)
            for _, line in workers.do(train_and_judge, pending):
                bar.write(line)
        if config.measure_costs:
            measure_all_costs(benchmark)
    print(write_report(config.output, config.work))
    return config.output


if __name__ == "__main__":
    run_script(main, presets(), __doc__, stopped=CONTINUES)
