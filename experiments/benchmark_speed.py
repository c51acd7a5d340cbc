"""How fast is the dream? Everything measured side by side in one run, as ratios.

    python experiments/benchmark_speed.py --output results/speed

Compares the real Memory Maze as its package ships it, the same env of this project and the dream
by batch size and number of denoising steps; times resets, snapshots, forks and training, of the
model and of an actor-critic in its dreams; and relates the model's useful floating-point operations
to the matrix-product peak measured here. Medians over repetitions. That cost stays constant over a
long dream is shown by benchmark_dream.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import worldsim
from experiments.command_line import run_script
from experiments.model_to_train import new_model
from experiments.platform_settings import keep_memory
from experiments.real_env_speed import time_real
from experiments.report import provenance, write_json
from experiments.timing import median_time, time_actor_critic, time_training
from experiments.train_config import presets
from experiments.train_stages import places_config
from worldsim.checkpoint import for_inference, load_config, resolve
from worldsim.contexts import ContextBank
from worldsim.dream import DreamVectorEnv
from worldsim.state import WorldState
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
    preset: str | None = None
    """Instead, an untrained model of this preset of train_world_model.py with `world_model`'s
    frames and actions: how fast a model is does not depend on its weights."""
    training_length: int = 128
    """Frames per segment where training is timed; 0 leaves it out."""
    training_frames: int = 512
    """Frames per step where training is timed."""
    agent_envs: int = 64
    """Dreams side by side where the training of an actor-critic in them is timed; 0 leaves it
    out."""
    compile: bool = False
    """Compile the network (torch.compile); the first steps of each batch size take minutes."""
    cuda_graphs: bool = False
    """Dream every step as one CUDA graph."""
    device: str = "cpu"
    seed: int = 0
    output: Path = Path("runs/benchmark_speed")

    def __post_init__(self) -> None:
        if min((*self.num_envs, *self.num_denoising_steps, self.steps)) < 1:
            raise ValueError("num_envs, num_denoising_steps and steps must be at least 1")
        if self.training_length and self.device.startswith("cuda:") and self.device != "cuda:0":
            raise ValueError(
                f"device is {self.device!r}: where training is timed, choose cuda, and which with "
                "CUDA_VISIBLE_DEVICES, or give --training-length 0"
            )
        if self.agent_envs < 0:
            raise ValueError(f"agent_envs must be at least 0, got {self.agent_envs}")


def main(config: SpeedConfig) -> dict[str, Any]:
    """Measure, write and print everything.

    Returns:
        What results.json holds.
    """
    keep_memory()
    model = make_model(config)
    contexts = worldsim.load_contexts(config.world_model)
    bank = ContextBank.observe(model, contexts.frames, contexts.actions)
    flops_per_pass, flops_per_commit = flops_of_step(model, bank.states[0])
    results: dict[str, Any] = {
        "dtype": str(model.compute_dtype),
        "matrix_product_peak_gflops": matrix_peak(model),
        "model_gflop_per_pass": flops_per_pass / 1e9,
        "gflop_per_commit": flops_per_commit / 1e9,
        "decoder_gflop": decoder_flops(model) / 1e9,
        "state_bytes_per_env": bank.states.nbytes // len(bank),
        "copy_gigabytes_per_second": copy_bandwidth(model),
        "dream": [],
    }
    if config.cuda_graphs:
        model.use_cuda_graphs()
    if config.compile:
        model.compile_network()
    if config.real_steps:
        results["real"] = time_real(config.real_steps, config.seed)
    for num_envs in tqdm(config.num_envs, desc="dream", unit="batch size"):
        for steps in config.num_denoising_steps:
            for obs in ("pixels", "features"):
                row = time_dream(model, bank, num_envs, steps, obs, config)
                peak = results["matrix_product_peak_gflops"]
                work = steps * results["model_gflop_per_pass"] + results["gflop_per_commit"]
                work += results["decoder_gflop"] if obs == "pixels" else 0.0
                flops = row["steps_per_second"] * work
                # Every pass reads the state, and the one that commits writes a new one.
                moved = row["steps_per_second"] * (steps + 2) * results["state_bytes_per_env"]
                share = moved / 1e9 / results["copy_gigabytes_per_second"]
                row |= {"share_of_peak": flops / peak, "share_of_copy_bandwidth": share}
                results["dream"].append(row)
    graphs, model.cuda_graphs = model.cuda_graphs, None
    results["parts"] = time_parts(model, bank, max(config.num_envs[:3]))
    model.cuda_graphs = graphs
    if config.training_length:
        training = time_training(
            make_model(config, torch.float32),
            config.training_length,
            config.training_frames,
            compiled=config.compile,
            seed=config.seed,
        )
        training["share_of_peak"] = training["gflops"] / results["matrix_product_peak_gflops"]
        results["training"] = training
    if config.agent_envs:
        results["actor_critic"] = time_actor_critic(model, bank, config.agent_envs)
    results |= {"config": config, "provenance": provenance()}
    write_json(config.output / "results.json", results)
    plot(results, config.output / "dream_speed.png")
    print_table(results)
    print(f"everything is in {config.output}")
    return results


def matrix_peak(model: WorldModel) -> float:
    """GFLOP/s of a large matrix product in the model's compute dtype."""
    size = 8192 if model.device.type == "cuda" else 2048
    a = torch.randn(size, size, device=model.device, dtype=model.compute_dtype)
    seconds = median_time(lambda: a @ a, 10, model.device)
    return 2 * size**3 / seconds / 1e9


def copy_bandwidth(model: WorldModel) -> float:
    """GB/s that a copy reads and writes together, of a tensor larger than the caches."""
    megabytes = 4096 if model.device.type == "cuda" else 128
    source = torch.ones(megabytes * 2**18, device=model.device)
    target = source.clone()
    seconds = median_time(lambda: target.copy_(source), 10, model.device)
    return 2 * source.nbytes / seconds / 1e9


def make_model(config: SpeedConfig, dtype: torch.dtype | None = None) -> WorldModel:
    """The model that is measured."""
    if config.preset is None:
        return worldsim.load(config.world_model, config.device, dtype)
    named = presets()
    if config.preset not in named:
        raise ValueError(f"preset {config.preset} is not one of {', '.join(named)}")
    like = load_config(resolve(config.world_model))
    training = named[config.preset][1]
    model = new_model(training, like.frame_shape, like.num_actions)
    if training.places or training.occupancy:  # which training adds at its end
        model = model.reconfigured(places=places_config(training, model.config))
    return for_inference(model, config.device, dtype)


@torch.no_grad()
def flops_of_step(model: WorldModel, state: WorldState) -> tuple[float, float]:
    """Operations of all matrix products of one denoising pass, and of one commit, per env.

    Those within mamba-ssm's kernels are not seen, and left out.

    Args:
        model: not compiled.
        state: of one env, after a context, for some memories cost more the longer they are.
    """
    actions = torch.zeros(1, dtype=torch.int64, device=model.device)
    noise = torch.zeros(1, *model.noise_shape, device=model.device)
    told = model.tell(state, actions)
    counts = []
    for steps in (1, 2):
        with FlopCounterMode(display=False) as counter:
            model.imagine_latents(state, actions, told, noise, steps)
        counts.append(float(counter.get_total_flops()))
    per_pass = counts[1] - counts[0]
    return per_pass, counts[0] - per_pass


def decoder_flops(model: WorldModel) -> float:
    """Operations of the decoder's convolutions, per frame."""
    latents = torch.zeros(1, *model.config.tokenizer.latent_shape, device=model.device)
    with FlopCounterMode(display=False) as counter:
        model.decode(latents)
    return float(counter.get_total_flops())


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
    actions = np.random.default_rng(config.seed).integers(model.config.num_actions, size=num_envs)
    repetitions = max(config.steps if num_envs <= 32 else config.steps // 3, 3)
    terminated: list[int] = []  # dreams that begin anew at the next step
    seconds = median_time(
        lambda: terminated.append(int(env.step(actions)[2].sum())), repetitions, model.device
    )
    return {
        "num_envs": num_envs,
        "num_denoising_steps": steps,
        "obs": obs,
        "steps_per_second": num_envs / seconds,
        "milliseconds": 1000 * seconds,
        "terminations": sum(terminated),
        "reset_milliseconds": 1000 * median_time(env.reset, 5, model.device),
    }


def time_parts(
    model: WorldModel, bank: ContextBank, num_envs: int, repetitions: int = 10
) -> dict[str, float]:
    """Milliseconds of what a step is made of, and of what is done with states; without graphs.

    A step of the env is `step`: one denoising pass, commit, decode and heads; what is beside them,
    noise and poses that the model is told among it, is `env_overhead`.
    """
    c = model.config
    env = DreamVectorEnv(
        num_envs, world_model=model, contexts=bank, horizon=None, num_denoising_steps=1
    )
    env.reset(seed=0)
    kept = env.snapshot()
    state, _ = bank.gather(np.arange(num_envs) % len(bank))
    z = torch.randn(num_envs, 1, *c.tokenizer.latent_shape, device=model.device)
    actions = torch.zeros(num_envs, 1, dtype=torch.int64, device=model.device)
    with torch.no_grad():
        told = model.tell(state, actions[:, 0])
        parts: dict[str, Callable[[], object]] = {
            "step": lambda: env.step(np.zeros(num_envs, np.int64)),
            "network_pass": lambda: model.denoise(state, told, z, 0.5),
            "commit": lambda: model.observe_latents(state, actions, z),
            "decode": lambda: model.decode(z),
            "heads": lambda: (
                model.predict_reward(state.features),
                model.predict_termination(state.features),
            ),
            "snapshot": env.snapshot,
            "restore": lambda: env.restore(kept),
            "fork_two": lambda: kept.repeat(2),
            "gather": lambda: state[torch.randperm(num_envs)],
        }
        # Taking turns, so that what else the machine does slows all alike.
        rounds = [
            {k: median_time(f, 1, model.device, warm_up=0) for k, f in parts.items()}
            for _ in range(repetitions + 2)
        ]
    times = {k: 1000 * float(np.median([r[k] for r in rounds[2:]])) for k in parts}
    inner = sum(times[name] for name in ("network_pass", "commit", "decode", "heads"))
    times["env_overhead"] = times["step"] - inner
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
            name, label = f"{name}_all_cores", f"{label}, all cores"
            style = "--" if name.startswith("package") else ":"
            axis.axhline(results["real"][name], color="black", linestyle=style, label=label)
    axis.set(xlabel="dreams in the batch", ylabel="steps/s", xscale="log", yscale="log")
    axis.legend(fontsize=8, loc="lower right")
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def print_table(results: dict[str, Any]) -> None:
    """The measurements on the terminal."""
    package = results.get("real", {}).get("package_all_cores")
    if package:
        real = results["real"]
        for name, label in (("package", "real, as shipped"), ("ours", "real, ours")):
            both = real[f"{name}_all_cores"]
            print(
                f"{label:17s} {real[name]:8.1f} steps/s alone, {both:.1f} on {real['cores']} cores"
            )
    ours = results.get("real", {}).get("ours_all_cores")
    for row in results["dream"]:
        against = ""
        if package:
            rate = row["steps_per_second"]
            against = f", x{rate / package:.1f} of real as shipped, x{rate / ours:.1f} of ours"
        print(
            f"dream {row['num_envs']:4d} envs, {row['num_denoising_steps']} steps, "
            f"{row['obs']:8s} {row['steps_per_second']:8.1f} steps/s{against}, "
            f"{100 * row['share_of_peak']:.0f} % of peak, reset {row['reset_milliseconds']:.1f} ms"
        )
    if "training" in results:
        training = results["training"]
        print(
            f"training {training['frames_per_second']:.0f} frames/s, "
            f"{100 * training['share_of_peak']:.0f} % of peak"
        )
    if "actor_critic" in results:
        agent = results["actor_critic"]
        print(
            f"actor-critic in {agent['num_envs']} dreams {agent['steps_per_second']:.0f} steps/s, "
            f"{100 * agent['share_of_dreaming']:.0f} % of bare dreams"
        )
    print("parts, ms:", {k: round(v, 2) for k, v in results["parts"].items()})


if __name__ == "__main__":
    run_script(main, SpeedConfig, __doc__)
