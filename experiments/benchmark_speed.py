"""How fast is the dream? Everything measured side by side in one run, as ratios.

    python experiments/benchmark_speed.py --output results/speed

Compares the real Memory Maze as its package ships it, the same env of this project and the dream
by batch size and number of denoising steps; times resets, snapshots and forks; and relates the
model's useful floating-point operations to the matrix-product peak measured here. Medians over
repetitions. That cost stays constant over a long dream is shown by benchmark_dream.py.
"""

from __future__ import annotations

import importlib.util
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import tyro
from tqdm import tqdm

import envs
import worldsim
from experiments.platform_settings import keep_memory
from experiments.report import provenance, write_json
from worldsim.contexts import ContextBank
from worldsim.dream import DreamVectorEnv
from worldsim.world_model import WorldModel

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """Measure the dream's speed."""

    world_model: str = "memory-maze-9x9"
    """Shipped name or checkpoint directory."""
    num_envs: tuple[int, ...] = (1, 8, 32, 128)
    """Batch sizes of the dream."""
    num_denoising_steps: tuple[int, ...] = (1, 2, 4)
    steps: int = 30
    """Timed dream steps per setting."""
    real_steps: int = 300
    """Timed steps of the real envs; 0 leaves them out."""
    compile: bool = False
    """Compile the network (torch.compile); the first steps of each batch size take minutes."""
    device: str = "cpu"
    seed: int = 0
    output: Path = Path("runs/benchmark_speed")


def main(config: SpeedConfig) -> dict[str, Any]:
    """Measure, write and print everything.

    Returns:
        What results.json holds.
    """
    keep_memory()
    model = worldsim.load(config.world_model, config.device)
    if config.compile:
        model.compile_network()
    results: dict[str, Any] = {
        "dtype": str(model.compute_dtype),
        "matrix_product_peak_gflops": matrix_peak(model),
        "model_gflop_per_pass": flops_per_pass(model) / 1e9,
        "state_bytes_per_env": model.initial_state(1).nbytes,
        "dream": [],
    }
    contexts = worldsim.load_contexts(config.world_model)
    bank = ContextBank.observe(model, contexts.frames, contexts.actions)
    if config.real_steps:
        results["real"] = time_real(config.real_steps, config.seed)
    for num_envs in tqdm(config.num_envs, desc="dream", unit="batch size"):
        for steps in config.num_denoising_steps:
            for obs in ("pixels", "features"):
                row = time_dream(model, bank, num_envs, steps, obs, config)
                peak = results["matrix_product_peak_gflops"]
                flops = row["steps_per_second"] * (steps + 1) * results["model_gflop_per_pass"]
                results["dream"].append(row | {"share_of_peak": flops / peak})
    results["parts"] = time_parts(model, max(config.num_envs[:3]))
    results |= {"config": config, "provenance": provenance()}
    write_json(config.output / "results.json", results)
    plot(results, config.output / "dream_speed.png")
    print_table(results)
    print(f"everything is in {config.output}")
    return results


def median_time(
    function: Callable[[], object], repetitions: int, device: torch.device, warm_up: int = 2
) -> float:
    """Median seconds of a call."""
    times = []
    for i in range(repetitions + warm_up):
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if i >= warm_up:
            times.append(time.perf_counter() - started)
    return float(np.median(times))


def matrix_peak(model: WorldModel, size: int = 2048) -> float:
    """GFLOP/s of a large matrix product in the model's compute dtype."""
    a = torch.randn(size, size, device=model.device, dtype=model.compute_dtype)
    seconds = median_time(lambda: a @ a, 10, model.device)
    return 2 * size**3 / seconds / 1e9


def flops_per_pass(model: WorldModel) -> float:
    """Operations of the matrix products with weights, per env and network pass."""
    tokens = int(np.prod(model.config.tokenizer.grid))
    total = 0
    for name, module in model.denoiser.named_modules():
        if isinstance(module, torch.nn.Linear):
            per_frame = "modulation" in name or "signal_condition" in name
            total += 2 * module.weight.numel() * (1 if per_frame else tokens)
    return float(total)


def time_real(steps: int, seed: int) -> dict[str, float]:
    """Steps/s of one process: the package's own env and this project's, taken in turn."""
    packaged = packaged_memory_maze(seed)
    ours = envs.make("memory-maze-9x9")
    packaged.reset()
    ours.reset(seed=seed)
    rng = np.random.default_rng(seed)
    rates: dict[str, list[float]] = {"package": [], "ours": []}
    for _ in range(5):
        actions = rng.integers(6, size=max(steps // 5, 1))
        for name, step in (("package", packaged.step), ("ours", ours.step)):
            started = time.perf_counter()
            for action in actions:
                step(int(action))
            rates[name].append(len(actions) / (time.perf_counter() - started))
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    ours.close()
    return medians | {"ratio": medians["ours"] / medians["package"]}


def packaged_memory_maze(seed: int) -> Any:
    """The dm_env environment of the memory-maze package, as it ships."""
    envs.make("memory-maze-9x9").reset(seed=0)  # chooses the GL backend
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


def time_dream(
    model: WorldModel,
    bank: ContextBank,
    num_envs: int,
    steps: int,
    obs: Any,
    config: SpeedConfig,
) -> dict[str, Any]:
    """Steps/s of the vector env, all its work included."""
    env = DreamVectorEnv(
        num_envs,
        world_model=model,
        contexts=bank,
        obs=obs,
        horizon=None,
        num_denoising_steps=steps,
    )
    env.reset(seed=config.seed)
    actions = np.random.default_rng(config.seed).integers(6, size=num_envs)
    repetitions = max(config.steps if num_envs <= 32 else config.steps // 3, 3)
    seconds = median_time(lambda: env.step(actions), repetitions, model.device)
    return {
        "num_envs": num_envs,
        "num_denoising_steps": steps,
        "obs": obs,
        "steps_per_second": num_envs / seconds,
        "milliseconds": 1000 * seconds,
        "reset_milliseconds": 1000 * median_time(env.reset, 5, model.device),
    }


def time_parts(model: WorldModel, num_envs: int, repetitions: int = 10) -> dict[str, float]:
    """Milliseconds of what a step is made of, and of what is done with states."""
    c = model.config
    state = model.initial_state(num_envs)
    tokens = int(np.prod(c.tokenizer.grid))
    z = torch.randn(num_envs, 1, tokens, c.tokenizer.latent_channels, device=model.device)
    actions = torch.zeros(num_envs, 1, dtype=torch.int64, device=model.device)
    with torch.no_grad():
        parts: dict[str, Callable[[], object]] = {
            "network_pass": lambda: model.denoise(state, actions, z, 0.5),
            "commit": lambda: model.observe_latents(state, actions, z),
            "decode": lambda: model.decode(z),
            "heads": lambda: (
                model.predict_reward(state.features),
                model.predict_termination(state.features),
            ),
            "snapshot_clone": state.clone,
            "fork_two": lambda: state.repeat(2),
            "gather": lambda: state[torch.randperm(num_envs)],
        }
        times = {k: 1000 * median_time(f, repetitions, model.device) for k, f in parts.items()}
    return {"num_envs": num_envs, **times}


def plot(results: dict[str, Any], path: Path) -> None:
    """Dream steps/s against batch size, beside the real envs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axis = plt.subplots(figsize=(6, 4), constrained_layout=True)
    pixels = [row for row in results["dream"] if row["obs"] == "pixels"]
    for steps in sorted({row["num_denoising_steps"] for row in pixels}):
        rows = [row for row in pixels if row["num_denoising_steps"] == steps]
        axis.plot(
            [row["num_envs"] for row in rows],
            [row["steps_per_second"] for row in rows],
            marker="o",
            label=f"dream, {steps} denoising step{'s' * (steps > 1)}",
        )
    for name, label in (("package", "Memory Maze as shipped"), ("ours", "Memory Maze, ours")):
        if "real" in results:
            style = "--" if name == "package" else ":"
            axis.axhline(results["real"][name], color="black", linestyle=style, label=label)
    axis.set(xlabel="dreams in the batch", ylabel="steps/s", xscale="log", yscale="log")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def print_table(results: dict[str, Any]) -> None:
    """The measurements on the terminal."""
    package = results.get("real", {}).get("package")
    if package:
        real = results["real"]
        print(f"real, as shipped  {package:8.1f} steps/s in one process")
        print(f"real, ours        {real['ours']:8.1f} steps/s in one process, x{real['ratio']:.1f}")
    for row in results["dream"]:
        against = f", x{row['steps_per_second'] / package:.1f}" if package else ""
        print(
            f"dream {row['num_envs']:4d} envs, {row['num_denoising_steps']} steps, "
            f"{row['obs']:8s} {row['steps_per_second']:8.1f} steps/s{against}, "
            f"{100 * row['share_of_peak']:.0f} % of peak, reset {row['reset_milliseconds']:.1f} ms"
        )
    print("parts, ms:", {k: round(v, 2) for k, v in results["parts"].items()})


if __name__ == "__main__":
    main(tyro.cli(SpeedConfig))
