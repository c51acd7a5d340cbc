"""The memory benchmark: its measures are right, and it runs to the end and goes on where it was."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from tqdm import tqdm

import experiments.benchmark_memory as benchmark_memory
from agents.statistics import crossed_bootstrap_interval
from envs.corridor import Corridor as CorridorEnv
from experiments.memory_backbones import (
    ABLATIONS,
    ALL,
    BACKBONES,
    BackboneSizes,
    diffusion_for,
    matched_config,
    pose_for,
)
from experiments.memory_corridor import Corridor, CorridorTask, seen_in_context, simulate
from experiments.memory_mazes import MazeTask, _summarise, commonest, copy_nearest
from experiments.memory_plots import recall_bins
from experiments.memory_presets import BenchmarkConfig, presets
from experiments.memory_recall import (
    by_row,
    pose_recall_distance,
    recall_by_time,
    recall_table,
    reward_recall,
    share,
)
from experiments.memory_report import (
    REFERENCE,
    format_differences,
    format_interval,
    format_table,
)
from experiments.memory_runs import Workers, choose_rates, find_pending
from experiments.memory_training import Benchmark
from experiments.report import read_runs
from experiments.wall_colors import ColorReader
from worldsim.backbone import count_backbone_parameters
from worldsim.diffusion import DiffusionForcingConfig
from worldsim.pose import PoseConfig
from worldsim.training import Trainer


def test_simulated_walks_are_those_of_the_env() -> None:
    task = CorridorTask(num_cells=6, conditioning="move")
    walks = simulate(task, 3, 80, seed=4)
    assert (walks.actions[:, 0] == 4).all() and (walks.actions[:, 1:] < 4).all()
    world = Corridor(task)
    for i in range(3):
        env = CorridorEnv(num_cells=6)
        env.reset(seed=0)
        # Hang the simulation's panels (unseen ones do not matter) and start where it does.
        for name in ("color", "mark"):
            panels = getattr(env._panels, name)
            panels[walks.cell[i], walks.side[i]] = getattr(walks, name)[i]
        env._cell, env._side = walks.cell[i, 0], walks.side[i, 0]
        env._seen = {(int(env._cell), int(env._side)): 0}
        frames = world._all_frames[world._index(walks)[i]]
        for t in range(1, 80):
            frame, *_, info = env.step(int(walks.actions[i, t]))
            assert (info["cell"], info["side"]) == (walks.cell[i, t], walks.side[i, t])
            assert info["last_seen"] == walks.distance[i, t]
            assert np.array_equal(frame, frames[t])


def test_poses_are_told_of_the_same_walks() -> None:
    task = CorridorTask(num_cells=6)
    posed, moved = (
        simulate(dataclasses.replace(task, conditioning=c), 3, 50, seed=2) for c in ("pose", "move")
    )
    assert np.array_equal(posed.cell, moved.cell) and np.array_equal(posed.color, moved.color)
    assert np.array_equal(posed.actions, 2 * moved.cell + moved.side)
    assert posed.actions.max() < Corridor(task).num_actions == 12


@pytest.mark.parametrize("task", [CorridorTask(), presets()["corridor"][1].corridor])
def test_walks_ask_for_recall_over_all_laps(task: CorridorTask) -> None:
    walks = simulate(task, task.test_episodes, task.episode_length, 0, task.test_turn_probability)
    for low, high in ((1, 25), (26, 64), (65, 128)):
        assert ((walks.distance >= low) & (walks.distance <= high)).sum() > 200
    assert (walks.distance > 128).sum() > 20


def test_what_was_seen_in_the_context_is_known() -> None:
    task = CorridorTask(num_cells=6)
    walks = simulate(task, 2, 30, seed=1)
    known = seen_in_context(walks, 20)
    for i in range(2):
        seen = set(zip(walks.cell[i, :20], walks.side[i, :20], strict=True))
        later = zip(walks.cell[i, 20:], walks.side[i, 20:], strict=True)
        assert known[i].tolist() == [pose in seen for pose in later]


def test_recall_table_counts_by_distance() -> None:
    distance = np.array([-1, 1, 1, 30, 70, 70, 70, -1])
    right = np.array([0, 1, 1, 1, 0, 0, 1, 1], bool)
    table = recall_table(distance, {"color": right})
    assert [(r["first"], r["last"], r["count"]) for r in table["bins"]] == [
        (1, 1, 2),
        (26, 32, 1),
        (65, 96, 3),
    ]
    assert [r["color"] for r in table["bins"]] == pytest.approx([1, 1, 1 / 3])
    assert table["never"] == {"count": 2, "color": 0.5}
    assert share(table, "color", 1, 25) == 1
    assert share(table, "color", 26, None) == pytest.approx(0.5)
    assert share(table, "color", 129, None) is None


def test_recall_by_time_is_of_what_was_seen_before() -> None:
    distance = np.array([[-1, 1, 1, 1, 5], [-1, -1, 2, -1, 7]])
    right = np.array([[1, 1, 1, 0, 1], [1, 1, 0, 1, 0]], bool)
    rows = recall_by_time(distance, right, first=4, width=2)
    assert [row["frame"] for row in rows] == [5.5, 7.5, 9]  # frames 5 and 6, 7 and 8, 9
    assert [row["count"] for row in rows] == [1, 3, 2]
    assert [row["right"] for row in rows] == pytest.approx([1, 1 / 3, 1 / 2])


def test_intervals_weigh_walks_by_their_frames() -> None:
    many, few = [[99, 100]], [[0, 1]]
    low, high = map(float, format_interval([many + few]).strip(" []").split(", "))
    assert low == 0 and high == pytest.approx(0.99)
    assert format_interval([[(3, 3), (5, 5)], [(3, 3), (5, 5)]]) == " [1.000, 1.000]"
    assert format_interval([[(0, 0), (0, 0)]]) == ""
    with pytest.raises(ValueError, match="counts must be of shape"):
        crossed_bootstrap_interval(np.ones((2, 3)), np.zeros((2, 3)))


def test_pose_recall_needs_place_and_heading() -> None:
    position = np.array([[0, 0], [1, 0], [2, 0], [2, 0], [1.2, 0], [0.1, 0.1], [5, 5]], float)
    heading = np.tile([1.0, 0.0], (7, 1))
    assert pose_recall_distance(position, heading, 4).tolist() == [3, 5, -1]
    heading[4] = [-1, 0]
    angle = np.radians(19)
    heading[5] = [np.cos(angle), np.sin(angle)]
    assert pose_recall_distance(position, heading, 4).tolist() == [-1, 5, -1]


def test_the_seen_frame_of_the_nearest_pose_is_copied() -> None:
    frames = torch.arange(6, dtype=torch.uint8).view(1, 6, 1, 1, 1).expand(1, 6, 2, 2, 3)
    poses = torch.tensor(
        [[[0.0, 0, 0], [1, 0, 0], [1, 0, 3], [0.9, 0, 0], [1, 0.1, -3], [0, 0, 6]]]
    )
    copied = copy_nearest(frames, poses, 3)
    assert copied.shape == (1, 3, 2, 2, 3)
    assert copied[0, :, 0, 0, 0].tolist() == [1, 2, 0]  # headings of 3 and -3 are nearly the same


def test_ablations_change_one_thing_of_ours() -> None:
    sizes, diffusion, pose = BackboneSizes(), DiffusionForcingConfig(), PoseConfig(learned=True)
    ours = dataclasses.asdict(matched_config("block_ssm", sizes, (4, 4)))
    changed = {}
    for name in ABLATIONS:
        config = dataclasses.asdict(matched_config(name, sizes, (4, 4)))
        names = {key for key, value in config.items() if value != ours[key]}
        names -= {"d_model", "num_layers"}  # so that parameters are as many
        if diffusion_for(name, diffusion) != diffusion:
            names.add("diffusion")
        if pose_for(name, pose) != pose:
            names.add("pose")
        changed[name] = names
    assert changed == {
        "block_1": {"block_sizes"},
        "no_clean_context": {"diffusion"},
        "window_2": {"window"},
        "window_1": {"window"},
        "no_attention": {"window"},
        "fixed_rotations": {"pose"},
    }
    assert pose_for("fixed_rotations", None) is None


def test_wall_colors_are_read_by_side() -> None:
    palette = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]], np.uint8)
    chosen = np.random.default_rng(0).integers(3, size=(40, 3))
    frames = np.zeros((40, 64, 63, 3), np.uint8)
    for side in range(3):
        frames[:, :, 21 * side : 21 * (side + 1)] = palette[chosen[:, side], None, None]
    reader = ColorReader(frames, num_colors=3)
    noise = np.random.default_rng(1).normal(0, 20, frames.shape)
    read = reader.read((frames + noise).clip(0, 255).astype(np.uint8))
    names = reader.read(palette[:, None, None].repeat(64, 1).repeat(63, 2))[:, 0]
    assert sorted(names) == [0, 1, 2]
    assert np.array_equal(read, names[chosen])
    assert np.array_equal(reader.read(frames // 3), names[chosen])  # the same walls in the shade
    frames[:, 36:] = 50  # below eye level there is floor
    assert np.array_equal(reader.read(frames), names[chosen])


def test_rewards_are_recalled_within_slack() -> None:
    real, dreamed = np.zeros((2, 10)), np.zeros((2, 10))
    assert reward_recall(real, dreamed) is None
    real[0, 5] = real[1, 5] = 1
    dreamed[0, 7] = dreamed[1, 9] = 1
    assert reward_recall(real, dreamed) == 0.5


def test_recall_is_told_by_task_and_rare_distances_are_left_out() -> None:
    def table(*rows: tuple[int, float, int]) -> dict[str, Any]:
        names = ("first", "colors", "count")
        return {"bins": [dict(zip(names, row, strict=True), distance=row[0]) for row in rows]}

    parts = {
        "retrieval": {"recall": table((1, 1.0, 30), (5, 0.5, 10))},
        "reasoning": {"recall": table((1, 0.4, 10), (5, 0.0, 9), (9, 0.2, 50))},
    }
    main = parts["retrieval"]["recall"]
    evaluation = {"recall": main, "hit": "colors", "parts": parts}
    result = {"evaluation": evaluation}
    assert recall_bins(result, "retrieval") == {1: (1, 1.0, 30)}
    assert recall_bins(result, "reasoning") == {9: (9, 0.2, 50)}
    assert recall_bins({"evaluation": {"recall": main, "hit": "colors"}}) == {1: (1, 1.0, 30)}


def test_the_commonest_color_takes_no_memory_of_places() -> None:
    tour = np.array([[[3, 3, 5]], [[1, 0, 0]]])
    assert commonest(tour).tolist() == [3, 0]
    far = np.full((2, 1), 100)
    values = {
        "real_colors": np.array([[[3, 3, 1]], [[1, 1, 1]]]),
        "dreamed_colors": np.array([[[3, 3, 1]], [[0, 0, 0]]]),
        "tour_colors": tour,
        **{name: np.zeros((2, 1)) for name in ("psnr", "ssim", "rewards", "dreamed_rewards")},
        "distance": far,
    }
    summary = _summarise(values)
    assert summary["chance"] == pytest.approx(1 / 3) and summary["colors"] == 0.5
    assert summary["by_maze"]["guess"]["all"] == pytest.approx([2 / 3, 0.0])


def test_rows_are_averaged_one_by_one() -> None:
    values = np.array([[1.0, 2.0, 6.0], [4.0, 8.0, 0.0]])
    chosen = np.array([[True, True, False], [False, False, False]])
    assert by_row(values) == [3.0, 4.0]
    assert by_row(values, chosen) == [1.5, None]


@pytest.mark.parametrize("preset", ["corridor", "cpu", "gpu"])
def test_compared_models_match_in_parameters(preset: str) -> None:
    config = presets()[preset][1]
    grid = config.tokenizer.grid
    target = count_backbone_parameters(matched_config("block_ssm", config.sizes, grid), grid)
    for name in BACKBONES:
        matched = matched_config(name, config.sizes, grid)
        assert abs(count_backbone_parameters(matched, grid) / target - 1) <= 0.05, name


def test_unknown_models_are_named() -> None:
    with pytest.raises(ValueError, match="unknown model 'lstm'"):
        matched_config("lstm", BackboneSizes(), (2, 2))


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Accelerate keeps its settings in the process, and other tests have others."""
    AcceleratorState._reset_state(True)


def paths(path: Path) -> dict[str, Any]:
    return {"output": path / "results", "work": path / "work"}


def tiny(path: Path, **changes: Any) -> BenchmarkConfig:
    config = presets()["tiny"][1]
    return dataclasses.replace(config, device="cpu", precision="no", **paths(path), **changes)


def test_runs_add_up_and_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path, backbones=("block_ssm",), sweep=(1.0, 2.0))
    output = benchmark_memory.main(config)
    first = json.loads((output / "block_ssm-seed0.json").read_text())
    assert first["evaluation"]["recall"]["bins"] and len(first["evaluation"]["psnr"]) == 8
    assert set(json.loads((output / "sweep.json").read_text())["validation_loss"]["block_ssm"]) == {
        "1.0",
        "2.0",
    }
    # A second call trains only what is new.
    trained = []
    original = Benchmark.train

    def train(self: Benchmark, name: str, *rest: object) -> object:
        trained.append(name)
        return original(self, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Benchmark, "train", train)
    benchmark_memory.main(dataclasses.replace(config, backbones=("block_ssm", "frame_ssm")))
    assert trained == ["frame_ssm", "frame_ssm", "frame_ssm"]  # two rates, then the run
    assert json.loads((output / "block_ssm-seed0.json").read_text()) == first
    table = format_table(read_runs(output, (*ALL, REFERENCE)))
    assert table.count("\n") == 5 and "SSM over frame vectors" in table
    plots = ("recall.png", "psnr.png", "costs.png", "contact_sheet.png")
    for name in ("table.md", "costs.md", *plots):
        assert (output / name).stat().st_size > 0
    # A result from before a setting was there was made with its default.
    file = output / "block_ssm-seed0.json"
    del first["settings"]["training"]["longest_stretches"]
    file.write_text(json.dumps(first))
    trained.clear()
    benchmark_memory.main(dataclasses.replace(config, backbones=("block_ssm",)))
    assert trained == []
    # Other settings are refused, not mixed in.
    sizes = dataclasses.replace(config.sizes, d_model=48)
    with pytest.raises(ValueError, match="result of other settings"):
        benchmark_memory.main(dataclasses.replace(config, sizes=sizes, measure_costs=False))
    with pytest.raises(ValueError, match="costs of other settings"):  # told before any training
        benchmark_memory.main(dataclasses.replace(config, sizes=sizes))
    # Nor are models put beside others that have trained for longer.
    longer = dataclasses.replace(config.dynamics.optimizer, steps=99)
    changes = {"dynamics": dataclasses.replace(config.dynamics, optimizer=longer), "sweep": ()}
    with pytest.raises(ValueError, match=r"_ssm-seed0.json.* result of other settings"):
        benchmark_memory.main(dataclasses.replace(config, backbones=("causal",), **changes))


@pytest.mark.parametrize("task", ["corridor", "memory-maze"])
def test_costs_are_measured_without_data_or_training(tmp_path: Path, task: Any) -> None:
    config = tiny(tmp_path, task=task, seeds=(), backbones=("block_ssm", "causal"))
    output = benchmark_memory.main(config)
    ours, causal = (output / "costs.md").read_text().splitlines()[2:4]
    assert ours.endswith("(x1.00) |")
    assert 1.9 < float(causal.split("(x")[-1].rstrip(") |")) <= 2.0  # of 4 and 8 frames
    assert sorted(p.name for p in output.iterdir()) == ["costs.json", "costs.md", "costs.png"]
    assert [p.name for p in config.work.iterdir()] == ["costs"]


@pytest.mark.parametrize("conditioning", ["pose", "action"])
def test_mazes_are_toured_and_dreamed(tmp_path: Path, conditioning: Any) -> None:
    task = MazeTask(
        env="memory-maze-5x5",
        conditioning=conditioning,
        training_episodes=2,
        test_episodes=2,
        context=12,
        horizon=6,
        num_workers=1,
    )
    config = tiny(tmp_path, task="memory-maze", maze=task, backbones=("block_ssm",))
    config = dataclasses.replace(
        config, tokenizer=dataclasses.replace(config.tokenizer, patch_size=32)
    )
    output = benchmark_memory.main(config)
    run = json.loads((output / "block_ssm-seed0.json").read_text())
    assert (run["settings"]["model"]["pose"] is None) == (conditioning == "action")
    parts = run["evaluation"]["parts"]
    for kind in ("retrieval", "reasoning"):
        counts = [row["count"] for row in parts[kind]["recall"]["bins"]]
        assert sum(counts) + parts[kind]["recall"]["never"]["count"] == 2 * 6
        assert len(parts[kind]["psnr"]) == 6
    copied = json.loads((output / "nearest_seen-seed0.json").read_text())
    assert copied["evaluation"].keys() == run["evaluation"].keys()
    assert "nearest seen frame" in (output / "table.md").read_text()
    assert (output / "recall.png").stat().st_size > 0


@pytest.mark.parametrize("task", ["corridor", pytest.param("memory-maze", marks=pytest.mark.slow)])
def test_models_are_trained_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Any
) -> None:
    config = tiny(
        tmp_path / "here",
        task=task,
        maze=MazeTask(
            env="memory-maze-5x5", training_episodes=2, test_episodes=2, context=12, horizon=6
        ),
        backbones=("ssm",),
        sweep=(1.0, 2.0),
        measure_costs=False,
    )
    if task == "memory-maze":
        config = dataclasses.replace(config, tokenizer_of="memory-maze-9x9")
    output = benchmark_memory.main(config)

    def refuse(*args: object) -> None:
        raise AssertionError("trained in the process that others are to train for")

    with monkeypatch.context() as patch:
        patch.setattr(Benchmark, "train", refuse)
        beside = dataclasses.replace(config, num_processes=2, **paths(tmp_path / "beside"))
        benchmark_memory.main(beside)
    run, beside_it = (
        json.loads((p / "ssm-seed0.json").read_text()) for p in (output, beside.output)
    )
    for key in ("validation_loss", "rate", "parameters"):
        assert beside_it[key] == pytest.approx(run[key], rel=1e-4), key
    swept = (json.loads((p / "sweep.json").read_text()) for p in (beside.output, output))
    mine, its = (s["validation_loss"]["ssm"] for s in swept)
    assert mine == pytest.approx(its, rel=1e-4) and len(mine) == 2
    # Another tokenizer is another setting, even where its config is the same.
    benchmark = Benchmark(config, prepared=True)
    _ = benchmark.tokenizer_config  # stays as it is
    other = None if config.tokenizer_of else "memory-maze-9x9"
    benchmark.config = dataclasses.replace(config, tokenizer_of=other)
    for seeds in (config.seeds, (7,)):  # which the report would put into one row
        benchmark.config = dataclasses.replace(benchmark.config, seeds=seeds)
        with pytest.raises(ValueError, match="result of other settings"):
            find_pending(benchmark, {"ssm": run["rate"]})


def begin(benchmark: Benchmark, job: tuple[Path, bool]) -> None:
    """A job that fails at once, or would take hours."""
    path, fails = job
    path.touch()
    if fails:
        raise ValueError("this one fails")
    time.sleep(3600)


def test_a_failing_run_stops_those_beside_it(tmp_path: Path) -> None:
    benchmark = Benchmark(tiny(tmp_path, num_processes=2))
    jobs = [(tmp_path / str(i), i == 0) for i in range(6)]
    with (
        pytest.raises(ValueError, match="this one fails"),
        tqdm(disable=True) as bar,
        Workers(benchmark, bar) as workers,
    ):
        for _ in workers.do(begin, jobs):
            pass
    assert not any(path.exists() for path, _ in jobs[3:])  # none is begun after that
    with pytest.raises(ValueError, match="num_processes must be at least 1, got 0"):
        tiny(tmp_path, num_processes=0)


def test_models_are_evaluated_in_bfloat16(tmp_path: Path) -> None:
    config = tiny(tmp_path, backbones=("block_ssm",), measure_costs=False)
    output = benchmark_memory.main(dataclasses.replace(config, precision="bf16"))
    evaluation = json.loads((output / "block_ssm-seed0.json").read_text())["evaluation"]
    assert all(np.isfinite(evaluation["psnr"]))


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path, backbones=("ssm",), measure_costs=False)
    expected = benchmark_memory.main(
        tiny(tmp_path / "whole", backbones=("ssm",), measure_costs=False)
    )
    whole = json.loads((expected / "ssm-seed0.json").read_text())

    class Killed(Exception):
        pass

    step = Trainer._train_step

    def die(self: Trainer) -> dict[str, float]:
        if self.directory is not None and self.directory.name == "ssm-seed0" and self.step == 2:
            raise Killed
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", die)
        with pytest.raises(Killed):
            benchmark_memory.main(config)
    steps = []

    def count(self: Trainer) -> dict[str, float]:
        steps.append(self.step)
        return step(self)

    monkeypatch.setattr(Trainer, "_train_step", count)
    output = benchmark_memory.main(config)
    assert steps == [2]  # the tokenizer is kept, and training goes on after the checkpoint
    result = json.loads((output / "ssm-seed0.json").read_text())
    assert result["validation_loss"] == pytest.approx(whole["validation_loss"], rel=1e-5)
    # What is trained is only judged, where it is to be judged otherwise.
    other = dataclasses.replace(config, dream_signals=(0.2, 0.9), output=tmp_path / "other")
    judged = json.loads((benchmark_memory.main(other) / "ssm-seed0.json").read_text())
    assert steps == [2] and judged["validation_loss"] == result["validation_loss"]
    tried = judged["development_psnr"]
    assert set(tried) == {"0.2", "0.9"}
    assert judged["dream_signal"] == float(max(tried, key=tried.__getitem__))


@pytest.mark.slow
def test_dreams_stay_stable_past_the_training_length(tmp_path: Path) -> None:
    """A trained model dreams four times the length that it was trained on: frames stay frames."""
    config = tiny(tmp_path)
    steps = {
        part: dataclasses.replace(
            getattr(config, part),
            optimizer=dataclasses.replace(
                getattr(config, part).optimizer, steps=150, ema_decay=0.9, warmup_steps=10
            ),
        )
        for part in ("tokenizer_training", "dynamics")
    }
    benchmark = Benchmark(dataclasses.replace(config, **steps))
    training = benchmark.training("block_ssm", 0, 1.0, None)
    length = training.curriculum[-1][0]
    model, _ = benchmark.train("block_ssm", training, tmp_path / "run")
    task = config.corridor
    walks = simulate(task, 4, 5 * length, seed=9)
    frames = benchmark.task._all_frames[benchmark.task._index(walks)]  # type: ignore[attr-defined]
    real = torch.from_numpy(frames)
    actions = torch.from_numpy(walks.actions)
    state = model.observe(model.initial_state(4), actions[:, :length], real[:, :length])
    sizes = {k: t.shape for k, t in state.memory.items()}
    means, spreads = [], []
    for t in range(length, 5 * length):
        dream = model.imagine(state, actions[:, t], noise=torch.randn(4, *model.noise_shape))
        state = dream.state
        means.append(dream.frame.float().mean())
        spreads.append(dream.frame.float().std())
    assert {k: t.shape for k, t in state.memory.items()} == sizes
    assert all(t.isfinite().all() and t.abs().max() < 1e4 for t in state.memory.values())
    late = slice(3 * length, None)
    mean, spread = real.float().mean(), real.float().std()
    assert abs(torch.stack(means)[late].mean() - mean) < 0.3 * mean
    assert 0.6 * spread < torch.stack(spreads)[late].mean() < 1.4 * spread


@pytest.mark.slow
def test_every_model_runs_to_the_end(tmp_path: Path) -> None:
    output = benchmark_memory.main(tiny(tmp_path, backbones=tuple(ALL)))
    runs = read_runs(output, (*ALL, REFERENCE))
    assert set(runs) == set(ALL)
    costs = json.loads((output / "costs.json").read_text())["models"]
    for name in ALL:
        state = [row["state_bytes"] for row in costs[name]["dreaming"]]
        assert (state[1] > state[0]) == (name in ("causal", "far"))


def test_work_and_costs_of_other_settings_are_refused(tmp_path: Path) -> None:
    config = tiny(tmp_path, backbones=("ssm",))
    benchmark = Benchmark(config)
    training = benchmark.training("ssm", 0, 1.0, None)
    benchmark.train("ssm", training, config.work / "ssm-seed0")
    faster = benchmark.training("ssm", 0, 2.0, None)
    with pytest.raises(ValueError, match=r"ssm-seed0 holds work of other settings \(training\)"):
        benchmark.train("ssm", faster, config.work / "ssm-seed0")
    tokenizer = dataclasses.replace(config.tokenizer, latent_channels=4)
    with pytest.raises(ValueError, match=r"work holds work of other settings \(tokenizer\)"):
        _ = Benchmark(dataclasses.replace(config, tokenizer=tokenizer)).tokenizer
    costs_only = dataclasses.replace(config, seeds=())
    benchmark_memory.main(costs_only)
    costs = dataclasses.replace(config.costs, repeats=2)
    with pytest.raises(ValueError, match=r"costs\.json has the costs of other settings"):
        benchmark_memory.main(dataclasses.replace(costs_only, costs=costs))
    both = dataclasses.replace(costs_only, backbones=("ssm", "frame_ssm"))
    file = config.output / "costs.json"
    kept = json.loads(file.read_text())
    file.write_text(json.dumps(kept | {"device": "cuda"}))
    benchmark_memory.main(costs_only)  # nothing is measured here
    with pytest.raises(ValueError, match="costs measured with device cuda, now cpu"):
        benchmark_memory.main(both)
    file.write_text(json.dumps(kept))
    benchmark_memory.main(both)
    assert set(json.loads(file.read_text())["models"]) == {"ssm", "frame_ssm"}


def test_a_sweep_chooses_among_what_is_asked_for_alone(tmp_path: Path) -> None:
    config = tiny(tmp_path, backbones=("ssm",), sweep=(1.0, 2.0))
    config.output.mkdir(parents=True)
    benchmark = Benchmark(config)
    with tqdm(disable=True) as bar, Workers(benchmark, bar) as workers:
        choose_rates(benchmark, workers, bar)
        file = config.output / "sweep.json"
        kept = json.loads(file.read_text())
        kept["validation_loss"]["ssm"] = {"1.0": 0.3, "2.0": 0.2, "4.0": 0.1}
        file.write_text(json.dumps(kept))
        assert choose_rates(benchmark, workers, bar) == {"ssm": 2.0}
        all_of_it = Benchmark(dataclasses.replace(config, sweep=()))
        assert choose_rates(all_of_it, workers, bar) == {"ssm": 4.0}
        shorter = Benchmark(dataclasses.replace(config, sweep_steps=1))
        with pytest.raises(ValueError, match="result of other settings"):
            choose_rates(shorter, workers, bar)
        other = Benchmark(dataclasses.replace(config, backbones=("ssm", "frame_ssm"), sweep=()))
        with pytest.raises(ValueError, match=r"of other models, but none of frame_ssm: give"):
            choose_rates(other, workers, bar)


def test_a_model_that_diverges_does_not_keep_others_from_their_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Benchmark.train

    def train(self: Benchmark, name: str, *rest: object) -> object:
        if name == "ssm":
            raise FloatingPointError("the loss is nan at step 1")
        return original(self, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Benchmark, "train", train)
    config = tiny(tmp_path, backbones=("ssm", "frame_ssm"), measure_costs=False)
    output = benchmark_memory.main(config)
    assert [file.name for file in output.glob("*-seed0.json")] == ["frame_ssm-seed0.json"]


def test_models_told_actions_are_not_trained_on_frames_in_any_order(tmp_path: Path) -> None:
    cpu = presets()["cpu"][1]
    maze = dataclasses.replace(cpu.maze, conditioning="action")
    told_actions = Benchmark(dataclasses.replace(cpu, maze=maze, **paths(tmp_path)))
    assert told_actions.training("ssm", 0, 1.0, None).longest_stretches == ()
    told_poses = Benchmark(dataclasses.replace(cpu, **paths(tmp_path)))
    assert told_poses.training("ssm", 0, 1.0, None).longest_stretches == (1, 128, 256)


def test_models_are_compared_maze_by_maze_over_the_seeds_that_both_have() -> None:
    def run(seed: int, far: list[float | None], colors: list[float]) -> dict[str, Any]:
        maze = {
            "psnr": {"all": colors, "seen over 64 frames ago": far},
            "colors": {"all": colors, "seen over 64 frames ago": far},
        }
        never = {"never": {"count": 1, "psnr": 9.0}}
        part = {"by_maze": maze, "recall": never, "chance": 0.3}
        parts = {"retrieval": part, "reasoning": part}
        evaluation = {"columns": {"retrieval LPIPS": None}, "parts": parts}
        return {"label": f"seed {seed}", "seed": seed, "parameters": 1, "evaluation": evaluation}

    runs = {
        "block_ssm": [run(0, [20.0, 22.0, None], [0.5] * 3), run(1, [24.0, 26.0, None], [0.7] * 3)],
        "ssm": [run(0, [19.0, 21.0, 20.0], [0.25] * 3)],
        "far": [run(0, [18.0, 20.0, None], [0.5] * 3), run(1, [20.0, 22.0, None], [0.5] * 3)],
        "dfot": [run(2, [0.0] * 3, [0.0] * 3)],  # no seed in common
        # Nothing was trained for it, so it is the same for all seeds.
        REFERENCE: [run(0, [18.0, 20.0, None], [0.5] * 3)],
    }
    (table,) = format_differences(runs)
    ssm, far = table.splitlines()[2:4]
    assert ssm.split("|")[2:4] == [" +1.00 [+1.00, +1.00] ", " +0.25 [+0.25, +0.25] "]
    assert far.split("|")[2:4] == [" +3.00 [+2.00, +4.00] ", " +0.10 [+0.00, +0.20] "]
    copied = table.splitlines()[4]
    assert copied.split("|")[2:4] == [" +4.00 [+2.00, +6.00] ", " +0.10 [+0.00, +0.20] "]
    assert len(table.splitlines()) == 7
    whole = format_table(runs)
    assert "retrieval PSNR, never seen" in whole and "| 9.0" in whole
    for result in runs["block_ssm"]:
        result["evaluation"]["chance_label"] = "a guess"
        for part in result["evaluation"]["parts"].values():
            part["by_maze"]["guess"] = dict.fromkeys(("all", "seen over 64 frames ago"), [0.4] * 3)
    (table,) = format_differences(runs)
    guess = next(line for line in table.splitlines() if line.startswith("| a guess"))
    assert guess.split("|")[2:4] == [" - ", " +0.20 [+0.10, +0.30] "]
    assert "LPIPS: where torchvision" in whole
    for result in runs["block_ssm"]:
        del result["evaluation"]["parts"]["retrieval"]["by_maze"]
    assert format_differences(runs) == []
