"""How fast the real Memory Maze is: the package's own env and this project's."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
import time
import types
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

import envs

_barrier: Any = None  # of the processes that are timed


def time_real(steps: int, seed: int) -> dict[str, float]:
    """Steps/s of the package's own env and this project's: one process, then one on every core."""
    alone = {name: _real_rates(name, 1, steps, seed) for name in ("package", "ours")}
    cores = os.cpu_count() or 1
    together = {f"{n}_all_cores": _real_rates(n, cores, steps, seed) for n in ("package", "ours")}
    return {
        **alone,
        **together,
        "cores": cores,
        "ratio": alone["ours"] / alone["package"],
        "ratio_all_cores": together["ours_all_cores"] / together["package_all_cores"],
    }


def _real_rates(name: str, processes: int, steps: int, seed: int) -> float:
    """Sum of the steps/s of processes that step at the same time."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    with ProcessPoolExecutor(
        processes, context, initializer=_keep_barrier, initargs=(barrier,)
    ) as pool:
        jobs = [
            pool.submit(_time_real_process, name, steps, seed + i, processes)
            for i in range(processes)
        ]
        return sum(job.result() for job in jobs)


def _keep_barrier(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _time_real_process(name: str, steps: int, seed: int, processes: int) -> float:
    """Steps/s of one env in this process, by the median step, once all processes are ready."""
    if processes > 1:
        os.environ.setdefault("LP_NUM_THREADS", "0")  # one rendering thread per process
    if name == "package":
        env = packaged_memory_maze(seed)
        env.reset()
    else:
        env = envs.make("memory-maze-9x9")
        env.reset(seed=seed)
    actions = np.random.default_rng(seed).integers(6, size=steps)
    for action in actions[:20]:
        env.step(int(action))
    _barrier.wait()
    times = []
    for action in actions:
        started = time.perf_counter()
        env.step(int(action))
        times.append(time.perf_counter() - started)
    return 1 / float(np.median(times))


def packaged_memory_maze(seed: int) -> Any:
    """The dm_env environment of the memory-maze package, as it ships."""
    if not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    spec = importlib.util.find_spec("memory_maze")
    assert spec is not None and spec.submodule_search_locations is not None
    package = types.ModuleType("memory_maze")  # its own __init__ needs the old gym
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["memory_maze"] = package
    try:
        from memory_maze import tasks
    finally:
        del sys.modules["memory_maze"]
    return tasks.memory_maze_9x9(image_only_obs=True, seed=seed)
