"""Judging whether a world model uses its memory, on a tiny real maze."""

from __future__ import annotations

import json
from pathlib import Path

import imageio.v3 as iio
import pytest
from tiny import tiny_model

from experiments import evaluate_memory
from experiments.evaluate_memory import EvaluateMemoryConfig
from worldsim.checkpoint import save
from worldsim.odometry import OdometryConfig
from worldsim.pose import PoseConfig


def config(root: Path, model: Path, **changes: object) -> EvaluateMemoryConfig:
    values = {
        "world_model": str(model),
        "env": "memory-maze-5x5",
        "episodes": 2,
        "context": 12,
        "horizon": 6,
        "shorter_contexts": (4,),
        "num_workers": 1,
        "work": root / "work",
        "output": root / "results",
    }
    return EvaluateMemoryConfig(**(values | changes))  # type: ignore[arg-type]


def test_only_memory_mazes_are_walked_in(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Memory Mazes alone, got --env corridor"):
        config(tmp_path, tmp_path / "model", env="corridor")


def test_dreams_after_whole_and_cut_tours_are_compared(tmp_path: Path) -> None:
    model = tiny_model(pose=PoseConfig(), odometry=OdometryConfig(hidden=16))
    save(model, tmp_path / "model")
    values = evaluate_memory.main(config(tmp_path, tmp_path / "model"))
    runs = json.loads((tmp_path / "results" / "results.json").read_text())["runs"]
    assert runs == json.loads(json.dumps(values["runs"]))
    assert list(runs) == ["whole", "last_4", "nearest_seen"]
    scores = {name: run["evaluation"]["columns"] for name, run in runs.items()}
    assert all(c.keys() == scores["whole"].keys() for c in scores.values())
    assert scores["whole"]["retrieval PSNR"] != scores["last_4"]["retrieval PSNR"]
    # A tour that is walked again has been seen: copies come near.
    assert scores["nearest_seen"]["retrieval PSNR"] > scores["whole"]["retrieval PSNR"] + 3
    table = (tmp_path / "results" / "table.md").read_text()
    assert "whole tour, 12 frames" in table and "last 4 frames" in table
    for name in ("recall.png", "psnr.png"):
        assert (tmp_path / "results" / name).stat().st_size > 0
    # What the whole tour gains is the difference of the means over mazes.
    gains = values["differences"]["last_4"]["retrieval"]["psnr"]["all"]
    mean = scores["whole"]["retrieval PSNR"] - scores["last_4"]["retrieval PSNR"]
    assert gains["mean"] == pytest.approx(mean, abs=1e-4) and gains["mazes"] == 2
    assert gains["interval"][0] <= gains["mean"] <= gains["interval"][1]
    assert "the whole tour gains" in (tmp_path / "results" / "table.md").read_text()
    video = iio.imread(tmp_path / "results" / "dreams.gif")
    assert video.shape == (6, 4 * 68, 2 * 64, 3)  # real, whole, last 4 and copies; two walks
    # What was dreamed is the model's own; walks are for all.
    assert (tmp_path / "results/whole-seed0/frames.npz").is_file()
    assert not list((tmp_path / "work").rglob("frames.npz"))
    # Walks are recorded once, and dreams are the same again.
    again = evaluate_memory.main(config(tmp_path, tmp_path / "model"))
    assert again["runs"] == values["runs"]


def test_what_cannot_be_judged_is_refused(tmp_path: Path) -> None:
    save(tiny_model(pose=PoseConfig()), tmp_path / "told_poses")
    with pytest.raises(ValueError, match="told poses"):
        evaluate_memory.main(config(tmp_path, tmp_path / "told_poses"))
    save(tiny_model(num_actions=3), tmp_path / "three_actions")
    with pytest.raises(ValueError, match="3 actions"):
        evaluate_memory.main(config(tmp_path, tmp_path / "three_actions"))
    with pytest.raises(ValueError, match="shorter_contexts has 12"):
        config(tmp_path, tmp_path / "model", shorter_contexts=(12,))
