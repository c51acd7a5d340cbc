"""Runs of the memory benchmark, one after the other or several processes side by side.

A finished run is a JSON file in OUTPUT; an unfinished one goes on from its last checkpoint in WORK.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from tqdm import tqdm

import worldsim.checkpoint as checkpoint
from experiments.memory_backbones import ALL
from experiments.memory_presets import BenchmarkConfig, TokenizerSource
from experiments.memory_training import Benchmark, check_settings
from experiments.platform_settings import keep_memory
from experiments.report import provenance, read_json, write_json
from experiments.settings import is_done, same_settings, settings_as_json
from worldsim.backbone import count_parameters
from worldsim.training_config import DynamicsTraining
from worldsim.world_model import WorldModel

Job = TypeVar("Job")
Result = TypeVar("Result")


class Trial(NamedTuple):
    """A model to be trained shortly at a learning rate."""

    name: str
    rate: float


class Pending(NamedTuple):
    """A model that is to be trained and judged."""

    name: str
    seed: int
    rate: float
    """Factor on the learning rates."""


class Workers:
    """Does jobs with a benchmark: here, or in `num_processes` processes with one of their own each.

    Where a job fails, and on Ctrl-C, the processes end at once; their runs go on another time.

    Args:
        benchmark: this process's; its bar shows the progress of all.
        bar: of steps.
    """

    def __init__(self, benchmark: Benchmark, bar: tqdm) -> None:
        self._benchmark, self._bar = benchmark, bar
        self._size = benchmark.config.num_processes
        self._pool: ProcessPoolExecutor | None = None
        if self._size > 1:
            context = multiprocessing.get_context("spawn")
            self._steps, self._stop = context.Value("q", 0), context.Event()
            shared = (benchmark.config, self._steps, self._stop)
            self._pool = ProcessPoolExecutor(self._size, context, _start_worker, shared)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self._pool is not None:
            if error is not None:
                self._stop.set()
            self._pool.shutdown(cancel_futures=True)

    def do(
        self, work: Callable[[Benchmark, Job], Result], jobs: Sequence[Job]
    ) -> Iterator[tuple[Job, Result]]:
        """Yield every job with its result, as they finish.

        Args:
            work: a function of a module, so that other processes find it.
            jobs: what it is called with.
        """
        if self._pool is None:
            for job in jobs:
                yield job, work(self._benchmark, job)
            return
        if jobs:
            self._benchmark.prepare()  # what several processes would record at once
        before = self._steps.value
        left, running = list(jobs), dict[Future[Result], Job]()
        while left or running:
            while left and len(running) < self._size:  # one that waits could not be called off
                job = left.pop(0)
                running[self._pool.submit(_work, work, job)] = job
            done, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
            self._bar.update(self._steps.value - before - self._bar.n)
            for future in done:
                yield running.pop(future), future.result()


class _SharedBar:
    """The progress of a worker, which counts in the bar of the process that started it."""

    def __init__(self, steps: Any) -> None:
        self._steps = steps

    def update(self, n: int = 1) -> None:
        with self._steps.get_lock():
            self._steps.value += n

    def set_description(self, text: str) -> None:
        """Not shown: there are several workers."""

    def set_postfix(self, *, refresh: bool, **values: str) -> None:
        """Not shown: there are several workers."""


_own: Benchmark | None = None  # of a worker


def _start_worker(config: BenchmarkConfig, steps: Any, stop: Any) -> None:
    global _own
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it says when to end
    threading.Thread(target=_end_with_parent, args=(stop,), daemon=True).start()
    keep_memory()
    torch.set_num_threads(max(torch.get_num_threads() // config.num_processes, 1))
    _own = Benchmark(config, _SharedBar(steps), prepared=True)


def _end_with_parent(stop: Any) -> None:
    """End when told to, and where the parent was killed: a worker would wait for jobs forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    while parent.is_alive() and not stop.wait(0.5):
        pass
    os._exit(1)


def _work(work: Callable[[Benchmark, Job], Result], job: Job) -> Result:
    assert _own is not None
    return work(_own, job)


def trial_directory(config: BenchmarkConfig, trial: Trial) -> Path:
    """Where a trial is trained, until its result is written."""
    return config.work / f"sweep-{trial.name}-{trial.rate:g}"


def try_rate(benchmark: Benchmark, trial: Trial) -> float:
    """Validation loss (of recall) after short training at a rate; infinite where it diverges."""
    config = benchmark.config
    name, rate = trial
    benchmark.bar.set_description(f"sweep {name} x{rate:g}")
    training = benchmark.training(name, 0, rate, config.sweep_steps)
    directory = trial_directory(config, trial)
    try:
        model, _ = benchmark.train(name, training, directory)
        loss = benchmark.validation_loss(model, recall=True)
    except FloatingPointError:  # diverged: that rate is too high
        loss = float("inf")
    return loss


def choose_rates(benchmark: Benchmark, workers: Workers, bar: tqdm) -> dict[str, float]:
    """The learning-rate factor of each model, by the sweep that was made or is asked for.

    Raises:
        ValueError: it was made with other settings, or without some of the models: these would be
            compared untuned with tuned ones.
    """
    config = benchmark.config
    file = config.output / "sweep.json"
    kept = read_json(file) or {}
    optimizer = dataclasses.replace(config.dynamics.optimizer, steps=config.sweep_steps)
    settings = {
        **benchmark.learning_settings,
        "sizes": config.sizes,
        "dynamics": dataclasses.replace(config.dynamics, optimizer=optimizer),
        "diffusion": config.diffusion,
        "tokenizer": config.tokenizer,
        "tokenizer_source": TokenizerSource(model=config.tokenizer_of),
    }
    if config.task == "memory-maze" and (not kept or "pose" in kept["settings"]):
        settings["pose"] = config.pose  # sweeps of before do not tell it
    if kept and not same_settings(settings, kept.get("settings", {})):
        raise ValueError(
            f"{file} is the result of other settings: choose another --output and --work, or move "
            "it away"
        )
    losses: dict[str, dict[str, float]] = kept.get("validation_loss", {})
    wanted = [
        Trial(name, rate)
        for name in config.backbones
        for rate in config.sweep
        if str(rate) not in losses.get(name, {})
    ]
    bar.reset(total=len(wanted) * config.sweep_steps)
    for (name, rate), loss in workers.do(try_rate, wanted):
        losses.setdefault(name, {})[str(rate)] = loss
        noted = settings_as_json(settings)
        write_json(file, {"settings": noted, "validation_loss": losses, **provenance()})
        shutil.rmtree(trial_directory(config, Trial(name, rate)), ignore_errors=True)
    asked = [str(rate) for rate in config.sweep]

    if losses and (missing := [name for name in config.backbones if name not in losses]):
        raise ValueError(
            f"{file} has learning rates of other models, but none of {', '.join(missing)}: give "
            "--sweep with the same factors"
        )

    def best(name: str) -> float:
        tried = {k: v for k, v in losses.get(name, {}).items() if not asked or k in asked}
        if not tried:
            return 1.0
        rate = float(min(tried, key=tried.__getitem__))
        others = [float(k) for k in tried if float(k) != rate]
        if others and (rate > max(others) or rate < min(others)):
            bar.write(f"sweep: {name} learns best at x{rate:g}, at the edge of what was tried")
        return rate

    return {name: best(name) for name in config.backbones}


def check_others(benchmark: Benchmark) -> None:
    """Refuse to put models beside those of other calls that were trained or judged otherwise.

    Raises:
        ValueError: there are such results.
    """
    output = benchmark.config.output
    for name in (other for other in ALL if other not in benchmark.config.backbones):
        for file in output.glob(f"{name}-seed*.json"):
            kept = json.loads(file.read_text())
            training = benchmark.training(name, kept["seed"], kept["rate"], None)
            is_done(file, benchmark.settings(name, training))


def find_pending(benchmark: Benchmark, rates: dict[str, float]) -> list[Pending]:
    """Every model and seed that has no result yet.

    Raises:
        ValueError: there are results of other settings.
    """
    config = benchmark.config
    pending = []
    for name in config.backbones:
        # The report puts seeds of other calls into the same rows.
        files = config.output.glob(f"{name}-seed*.json")
        known = [int(file.stem.removeprefix(f"{name}-seed")) for file in files]
        for seed in sorted({*config.seeds, *known}):
            settings = benchmark.settings(name, benchmark.training(name, seed, rates[name], None))
            if not is_done(config.output / f"{name}-seed{seed}.json", settings):
                pending.append(Pending(name, seed, rates[name]))
    return sorted(pending, key=lambda run: config.seeds.index(run.seed))


def learn(
    benchmark: Benchmark, name: str, training: DynamicsTraining, directory: Path
) -> tuple[WorldModel, dict[str, float]]:
    """The trained model, as its users load it, and what is to be noted of its training.

    One that was trained before is only loaded.

    Raises:
        FloatingPointError: it diverges.
        ValueError: the directory holds training with other settings.
    """
    path = directory / "checkpoint"
    kept = checkpoint.load_metadata(path).get("learned") if path.is_dir() else None
    if kept is None:
        model, speed = benchmark.train(name, training, directory)
        loss = benchmark.validation_loss(model)
        kept = {"training_frames_per_second": speed, "validation_loss": loss}
        seed = training.optimizer.seed
        checkpoint.save(model, path, metadata={"seed": seed, "name": name, "learned": kept})
        shutil.rmtree(directory / "latest", ignore_errors=True)
    else:
        settings = benchmark.settings_of_training(name, training)
        check_settings(directory / "settings.json", settings)
        benchmark.bar.update(training.optimizer.steps)
    return benchmark.load(path), kept


def train_and_judge(benchmark: Benchmark, pending: Pending) -> str:
    """Train a model, judge it, write its result; a line that tells it.

    One that diverges has no result, and does not keep the others from theirs.
    """
    config = benchmark.config
    name, seed, rate = pending
    title = f"{name} seed {seed}"
    benchmark.bar.set_description(title)
    directory = config.work / f"{name}-seed{seed}"
    training = benchmark.training(name, seed, rate, None)
    try:
        model, learned = learn(benchmark, name, training, directory)
    except FloatingPointError as error:
        return f"{title}: no result, {error} (--sweep with lower rates chooses one that works)"
    started = time.monotonic()
    tried = {}
    if len(config.dream_signals) > 1:
        for level in config.dream_signals:
            benchmark.describe(title, f"dreams of signal {level:g}")
            tried[level] = benchmark.task.development_psnr(model.reconfigured(dream_signal=level))
    if config.dream_signals:
        best = max(config.dream_signals, key=lambda level: tried.get(level, 0.0))
        model = model.reconfigured(dream_signal=best)
    values, frames = benchmark.task.evaluate(model, functools.partial(benchmark.describe, title))
    np.savez_compressed(directory / "frames.npz", **frames)  # type: ignore[arg-type]
    result = {
        "name": name,
        "label": ALL[name].label,
        "seed": seed,
        "rate": rate,
        "parameters": count_parameters(model.denoiser),
        "backbone_parameters": count_parameters(model.denoiser.backbone),
        "num_processes": config.num_processes,
        **learned,
        "evaluation_seconds": time.monotonic() - started,
        "dream_signal": model.config.dream_signal,
        "development_psnr": {f"{level:g}": value for level, value in tried.items()},
        "evaluation": values,
        "settings": settings_as_json(benchmark.settings(name, training)),
        **provenance(),
    }
    write_json(config.output / f"{name}-seed{seed}.json", result)
    columns = values["columns"].items()
    shown = ", ".join(f"{k} {v:.3f}" for k, v in columns if v is not None)
    return f"{title}: loss {learned['validation_loss']:.4f}, {shown}"
