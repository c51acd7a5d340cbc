"""What a call of the agents benchmark finds done already: kept results, and work to go on with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.agents_config import (
    DREAM_TRAINED,
    JUDGING,
    BenchmarkAgentsConfig,
    deciding_settings,
    trained_agent,
)
from experiments.dream_train_config import DreamTrainConfig
from experiments.report import read_json, write_json
from experiments.sb3_training import FROM_NOTHING
from experiments.settings import as_json, same_setting

ADVICE = "choose another --output and --work"


def check_kept(
    directory: Path,
    agent: str,
    config: BenchmarkAgentsConfig,
    recorded_steps: int | None,
    dataset_frames: int | None = None,
) -> None:
    """Refuse results of other settings that decide this agent's results.

    Args:
        directory: of results, of other calls and seeds too, which are reported together.
        agent: whose.
        config: of the benchmark as it is now.
        recorded_steps: frames that its world model learned from; as many real steps where none are
            given.
        dataset_frames: frames of the recorded episodes that the agent learns from itself.

    Raises:
        ValueError: one is of others.
    """
    now = dataclasses.replace(config, real_steps=config.real_steps or recorded_steps)
    for file in sorted(directory.glob(f"{agent}-seed*.json")):
        kept = json.loads(file.read_text())
        if kept.get("dataset_frames", dataset_frames) != dataset_frames:
            raise ValueError(
                f"{file} was made with {kept['dataset_frames']} frames of {config.dataset}, which "
                f"has {dataset_frames} now: {ADVICE}"
            )
        timed = config.total_timesteps is None and trained_agent(agent) in DREAM_TRAINED
        if timed and (device := kept.get("device", "cpu")) != config.torch_device:
            raise ValueError(
                f"{file} was trained on {device}, which dreams another number of steps in the same "
                f"minutes than {config.torch_device}: give --total-timesteps, or {ADVICE}"
            )
        then = settings_of(kept)
        then["real_steps"] = then["real_steps"] or recorded_steps
        for name in deciding_settings(agent):
            if name == "minutes" and config.total_timesteps is not None:
                continue  # steps are what ends training
            if name == "num_contexts" and config.contexts is None:
                continue  # shipped ones are taken as they are
            _check_setting(file, then, now, name)


def settings_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that a result was made with; those that were not there yet were at their default."""
    return as_json(BenchmarkAgentsConfig()) | result["config"]


def _check_setting(
    file: Path, then: Mapping[str, Any], now: BenchmarkAgentsConfig, name: str
) -> None:
    """Refuse a result of another setting."""
    if not same_setting(getattr(now, name), then[name]):
        raise ValueError(
            f"{file} was made with {name} {then[name]}, not {as_json(now)[name]}: {ADVICE}"
        )


def check_comparable(
    directory: Path, agents: Iterable[str], config: BenchmarkAgentsConfig, weights: str
) -> None:
    """Refuse to report agents of several world models, envs, or kinds of dreams together.

    Args:
        directory: of results, of other calls too.
        agents: that there may be.
        config: of the benchmark as it is now.
        weights: fingerprint of its world model as it is now.

    Raises:
        ValueError: a result is of another.
    """
    for agent, file in ((a, f) for a in agents for f in directory.glob(f"{a}-seed*.json")):
        kept = json.loads(file.read_text())
        if kept.get("world_model_sha256") != weights:
            name = config.world_model or config.env
            raise ValueError(f"{file} was made with another {name} than there is now: {ADVICE}")
        deciding, then = deciding_settings(agent), settings_of(kept)
        for name in (name for name in JUDGING if name in deciding):
            _check_setting(file, then, config, name)


def check_training(run: DreamTrainConfig, last_round: Mapping[str, Any]) -> None:
    """Refuse a policy that has trained for longer than it is now to be, or elsewhere by minutes.

    Args:
        run: of the main job, that trained it.
        last_round: "timesteps", "seconds" and "device" of its training.

    Raises:
        ValueError: it has.
    """
    if run.total_timesteps is not None:
        # Training ends with a whole update.
        of_ppo = run.ppo.num_steps or FROM_NOTHING["num_steps"]
        steps = run.actor_critic.num_steps if run.agent == "actor-critic" else of_ppo
        longer = last_round["timesteps"] > run.total_timesteps + steps * run.num_envs
    else:
        longer = last_round["seconds"] > 1.1 * 60 * run.minutes + 30
        if (device := last_round.get("device", run.torch_device)) != run.torch_device:
            raise ValueError(
                f"{run.run_directory} holds a policy that was trained on {device}, which dreams "
                f"another number of steps in the same minutes than {run.torch_device}: choose "
                "another --work"
            )
    if longer:
        raise ValueError(
            f"{run.run_directory} holds a policy that was trained for longer: choose another --work"
        )


def check_work(directory: Path, settings: dict[str, Any]) -> None:
    """Keep what decides the work in a directory, and refuse work of other settings.

    Raises:
        ValueError: it was done with others.
    """
    file = directory / "settings.json"
    if (then := read_json(file)) is not None:
        if changed := [n for n, one in settings.items() if not same_setting(one, then.get(n))]:
            raise ValueError(
                f"{directory} holds work of another {', '.join(changed)}: choose another --work"
            )
    write_json(file, settings)


def read_curve(directory: Path, name: str = "episodic_return") -> list[list[float]]:
    """[step, value] from the TensorBoard logs of a run, thinned to at most 200 points.

    Args:
        directory: of the run.
        name: of what is read, in its group: "dream", or "real" for an agent that is trained there,
            whose logs of before say "dream" too. What a run that was killed had logged after it
            was last saved counts as long as nothing was logged for the same steps again.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points: dict[int, float] = {}
    for file in sorted(directory.rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(file))
        events.Reload()
        for tag in {f"dream/{name}", f"real/{name}"} & set(events.Tags()["scalars"]):
            points |= {e.step: float(e.value) for e in events.Scalars(tag)}
    steps = sorted(points)
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(200, len(steps))).astype(int))
    return [[steps[i], points[steps[i]]] for i in chosen]


def read_lengths(directory: Path) -> list[float]:
    """Of the episodes of every point of `read_curve`; empty where the logs do not tell them all."""
    curve, lengths = read_curve(directory), read_curve(directory, "episodic_length")
    of_all = [step for step, _ in lengths] == [step for step, _ in curve]
    return [length for _, length in lengths] if of_all else []
