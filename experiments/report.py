"""What an experiment leaves behind: results with everything needed to repeat them, and a table."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.rollout import EpisodeResult
from agents.statistics import bootstrap_interval

Runs = dict[str, list[dict[str, Any]]]
"""Results of a benchmark by what was compared, one per seed."""
PACKAGES = ("worldsim", "torch", "numpy", "gymnasium", "stable-baselines3", "memory-maze", "mujoco")


def provenance() -> dict[str, Any]:
    """Versions, hardware, commit and command of this run."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "commit": _commit(),
        "versions": versions,
        "hardware": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _commit() -> str | None:
    root = Path(__file__).resolve().parent.parent
    git = ["git", "-C", str(root)]
    try:
        # An installed package may lie in a repository of somebody else.
        own = subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True)
        if own.returncode != 0:
            return None
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        # Of what runs: results that are being made again say nothing of the code.
        status = subprocess.run(
            [*git, "status", "--porcelain", "-uno", "--", ":/", ":(exclude,top)results"],
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    if head.returncode != 0:
        return None
    return head.stdout.strip() + (" with local changes" if status.stdout.strip() else "")


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def summarise(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Mean return with its 95 % bootstrap interval, and every episode."""
    returns = [r.episodic_return for r in results]
    low, high = bootstrap_interval(returns)
    reached = [list(map(list, r.reached)) for r in results if r.reached is not None]
    return {
        "num_episodes": len(results),
        "mean_return": float(np.mean(returns)),
        "interval": [low, high],
        "mean_length": float(np.mean([r.length for r in results])),
        "seeds": [r.seed for r in results],
        "returns": returns,
        "lengths": [r.length for r in results],
        "terminated": [r.terminated for r in results],
        **({"reached": reached} if len(reached) == len(results) else {}),
    }


def format_table(rows: Sequence[tuple[str, str, dict[str, Any]]]) -> str:
    """Lay out (policy, where, summary) rows as text."""
    header = ("policy", "judged on", "episodes", "steps", "return", "95 % interval")
    body = [
        (
            policy,
            where,
            str(summary["num_episodes"]),
            f"{summary['mean_length']:.0f}",
            f"{summary['mean_return']:.2f}",
            f"[{summary['interval'][0]:.2f}, {summary['interval'][1]:.2f}]",
        )
        for policy, where, summary in rows
    ]
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    lines = []
    for row in (header, *body):
        cells = [
            c.ljust(w) if i < 2 else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def read_runs(output: Path, names: Iterable[str]) -> Runs:
    """Results of a benchmark, NAME-seedN.json in its directory, in the order of the names."""
    runs: Runs = {}
    for name in names:
        files = sorted(output.glob(f"{name}-seed*.json"))
        if files:
            runs[name] = [json.loads(file.read_text()) for file in files]
    return runs


def name_of_model(world_model: str) -> str:
    """What a folder of results of a world model is called: its name, or that of its run."""
    path = Path(world_model)
    return path.resolve().parent.name if path.name == "checkpoint" else path.name


def read_json(path: Path) -> Any:
    """The content of a file, None where there is none."""
    return json.loads(path.read_text()) if path.is_file() else None


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is always whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2, default=_jsonable) + "\n")
    os.replace(temporary, path)


def _jsonable(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"cannot write {type(value).__name__} {value!r} as JSON")
