"""Checkpoints come back as they were, or say what is wrong; nothing in them is pickled."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tiny import tiny_contexts, tiny_model

import worldsim.checkpoint as checkpoint
from worldsim import CheckpointError, WorldModel, load, load_contexts, save
from worldsim.checkpoint import fingerprint, from_json, load_config, shipped_models, to_json
from worldsim.contexts import open_world


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return tiny_model()


def dream(model: WorldModel) -> tuple[torch.Tensor, torch.Tensor]:
    contexts = tiny_contexts(2, 4)
    actions, frames = torch.from_numpy(contexts.actions), torch.from_numpy(contexts.frames)
    state = model.observe(model.initial_state(2), actions, frames)
    generator = torch.Generator().manual_seed(0)
    return model.dream(state, torch.tensor([[0, 1], [2, 3]]), generator=generator)


def test_round_trip_dreams_the_same(model: WorldModel, tmp_path: Path) -> None:
    contexts = tiny_contexts()
    save(model, tmp_path / "a", contexts=contexts, metadata={"steps": 3})
    again = load(tmp_path / "a", dtype=torch.float32)
    assert again.config == model.config
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    for ours, theirs in zip(dream(model), dream(again), strict=True):
        assert torch.equal(ours, theirs)
    loaded = load_contexts(tmp_path / "a")
    assert np.array_equal(loaded.frames, contexts.frames)
    assert np.array_equal(loaded.actions, contexts.actions)
    assert json.loads((tmp_path / "a" / "metadata.json").read_text()) == {"steps": 3}


def test_half_precision_halves_the_files_and_dreams_alike(
    model: WorldModel, tmp_path: Path
) -> None:
    save(model, tmp_path / "full")
    save(model, tmp_path / "half", half=True)
    full, half = (
        sum(f.stat().st_size for f in (tmp_path / name).glob("*.safetensors"))
        for name in ("full", "half")
    )
    assert half < 0.6 * full
    again = load(tmp_path / "half", dtype=torch.float32)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert (dream(model)[0].float() - dream(again)[0].float()).abs().mean() < 2


def test_rounded_weights_are_not_saved_without_a_word(model: WorldModel, tmp_path: Path) -> None:
    save(model, tmp_path / "whole")
    rounded = load(tmp_path / "whole", dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match=r"rounded to bfloat16.*dtype=torch\.float32"):
        save(rounded, tmp_path / "rounded")


def test_shards_hold_every_tensor_once(
    model: WorldModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = max(t.numel() * 4 for t in model.state_dict().values())
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", largest)
    save(model, tmp_path / "a")
    files = sorted((tmp_path / "a").glob("*.safetensors"))
    assert len(files) > 2
    assert max(f.stat().st_size for f in files) < largest + 20_000  # and a header
    for ours, theirs in zip(
        dream(model), dream(load(tmp_path / "a", dtype=torch.float32)), strict=True
    ):
        assert torch.equal(ours, theirs)
    files[1].unlink()
    with pytest.raises(CheckpointError, match="damaged or of another model"):
        load(tmp_path / "a")


def test_no_pickle_is_written_or_read(
    model: WorldModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pickle was used")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch, "save", refuse)
    for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, refuse)
    save(model, tmp_path / "a", contexts=tiny_contexts(), metadata={})
    load(tmp_path / "a")
    load_contexts(tmp_path / "a")
    assert {f.suffix for f in (tmp_path / "a").iterdir()} == {".safetensors", ".json", ".npz"}


def test_pickled_contexts_are_refused(model: WorldModel, tmp_path: Path) -> None:
    save(model, tmp_path / "a")
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "a" / "contexts.npz", frames=objects, actions=objects)
    with pytest.raises(CheckpointError, match=r"contexts.npz is damaged"):
        load_contexts(tmp_path / "a")


def overwrite(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda path: (path / name).write_bytes(content)


def truncate(name: str, share: float) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        size = (path / name).stat().st_size
        os.truncate(path / name, int(size * share))

    return damage


def edit(**changes: Any) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        file = path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return damage


WEIGHTS = "model-00.safetensors"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights cut short": (truncate(WEIGHTS, 0.5), "weights in .* are damaged"),
    "weights empty": (truncate(WEIGHTS, 0), "weights in .* are damaged"),
    "weights of noise": (overwrite(WEIGHTS, b"\xff" * 1000), "weights in .* are damaged"),
    "weights gone": (lambda path: (path / WEIGHTS).unlink(), "weights in .* are damaged"),
    "config cut short": (truncate("config.json", 0.5), "config.json is damaged"),
    "config empty": (truncate("config.json", 0), "config.json is damaged"),
    "config not text": (overwrite("config.json", b"\xff\xfe\x00"), "config.json is damaged"),
    "config a list": (overwrite("config.json", b"[1]"), "WorldModelConfig is .* expected its"),
    "config null": (overwrite("config.json", b"null"), "WorldModelConfig is None"),
    "config of another model": (edit(num_actions=3), "damaged or of another model"),
    "unknown field": (edit(colour=1), "WorldModelConfig has no field colour"),
    "unknown nested field": (edit(diffusion={"wings": 2}), "DiffusionForcingConfig has no .*wings"),
    "missing field": (overwrite("config.json", b"{}"), "WorldModelConfig: .*num_actions"),
    "field of another type": (edit(num_actions="six"), "config.json describes no model"),
    "group of another type": (edit(tokenizer=None), "TokenizerConfig is None"),
    "group of a number": (edit(odometry=5), "5 is no OdometryConfig"),
    "impossible value": (edit(pose={"field_of_view": 200}), "PoseConfig: field_of_view is 200"),
    "unknown backbone": (edit(backbone={"kind": "magic"}), "'magic'"),
    "impossible sizes": (
        edit(backbone={"kind": "block_ssm", "block_sizes": [3]}),
        "describes no model: block size 3",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_clear_error(model: WorldModel, tmp_path: Path, damage: str) -> None:
    save(model, tmp_path / "a")
    spoil, message = DAMAGES[damage]
    spoil(tmp_path / "a")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "a")


@pytest.mark.parametrize("share", [0.9, 0.5, 0.01, 0])
def test_truncated_contexts_are_one_clear_error(
    model: WorldModel, tmp_path: Path, share: float
) -> None:
    save(model, tmp_path / "a", contexts=tiny_contexts())
    truncate("contexts.npz", share)(tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"contexts.npz is damaged"):
        load_contexts(tmp_path / "a")


def test_overwritten_contexts_are_one_clear_error(model: WorldModel, tmp_path: Path) -> None:
    save(model, tmp_path / "a", contexts=tiny_contexts())
    file = tmp_path / "a" / "contexts.npz"
    content = bytearray(file.read_bytes())
    content[200:260] = bytes(60)
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"contexts.npz is damaged"):
        load_contexts(tmp_path / "a")


def test_missing_contexts_are_named(model: WorldModel, tmp_path: Path) -> None:
    save(model, tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"ships no contexts; pass some"):
        load_contexts(tmp_path / "a")


def test_names_of_shipped_models(
    model: WorldModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "PRETRAINED", tmp_path)
    with pytest.raises(CheckpointError, match=r"no world model 'maze': .*that ship are none"):
        load("maze")
    save(model, tmp_path / "some-maze")
    save(model, tmp_path / "other-maze")
    assert shipped_models() == ["other-maze", "some-maze"]
    assert load("some-maze").config == model.config
    with pytest.raises(CheckpointError, match=r"no world model 'maze': .*other-maze, some-maze"):
        load("maze")


def test_a_checkpoint_is_replaced_as_a_whole(model: WorldModel, tmp_path: Path) -> None:
    save(model, tmp_path / "a", contexts=tiny_contexts(), metadata={"steps": 1})
    save(tiny_model(seed=1), tmp_path / "a")
    assert not (tmp_path / "a" / "contexts.npz").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert torch.equal(dream(load(tmp_path / "a", dtype=torch.float32))[0], dream(tiny_model(1))[0])


def test_what_is_no_checkpoint_is_not_replaced(model: WorldModel, tmp_path: Path) -> None:
    (tmp_path / "run" / "videos").mkdir(parents=True)
    # Runs have a config.json of their own.
    for others in ("videos", "config.json", "training.pt"):
        if others != "videos":
            (tmp_path / "run" / others).write_text("{}")
        with pytest.raises(ValueError, match=r"run holds .*no part of a checkpoint"):
            save(model, tmp_path / "run")
        assert (tmp_path / "run" / others).exists() and not (tmp_path / ".run.partial").exists()
    (tmp_path / "run/videos").rmdir()
    (tmp_path / "run/training.pt").unlink()
    save(model, tmp_path / "run", metadata={})  # a config.json alone is what a checkpoint has
    (tmp_path / "run/README.md").write_text("a card")
    save(model, tmp_path / "run")
    assert not (tmp_path / "run/README.md").exists()
    (tmp_path / "empty").mkdir()
    save(model, tmp_path / "empty")
    assert load(tmp_path / "empty").config == model.config


def test_a_directory_of_training_stands_for_its_checkpoint(
    model: WorldModel, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    settings = json.dumps({"dataset": ["mine"], "dynamics": {}})
    (tmp_path / "run/config.json").write_text(settings)
    with pytest.raises(CheckpointError, match="run is of training that has not kept a checkpoint"):
        load(tmp_path / "run")
    save(model, tmp_path / "run/checkpoint")
    assert load(tmp_path / "run").config == model.config
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "run/checkpoint")


def test_a_checkpoint_behind_a_link_is_replaced_where_it_is(
    model: WorldModel, tmp_path: Path
) -> None:
    (tmp_path / "large disk/models").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "large disk/models/mine")
    for seed in range(3):
        save(tiny_model(seed=seed), tmp_path / "link")
        assert torch.equal(dream(load(tmp_path / "link"))[0], dream(tiny_model(seed))[0])
    assert (tmp_path / "link").is_symlink()
    # Cut off between its two moves, too.
    where = tmp_path / "large disk/models/mine"
    where.rename(where.with_name(".mine.old"))
    assert load(tmp_path / "link").config == tiny_model().config
    where.with_name(".mine.old").rename(where)
    assert [p.name for p in (tmp_path / "large disk/models").iterdir()] == ["mine"]


def test_where_directories_cannot_be_synced_checkpoints_are_kept_all_the_same(
    model: WorldModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, failing = os.fsync, errno.EINVAL

    def without_directories(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(failing, "not here")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", without_directories)
    save(model, tmp_path / "a")
    assert load(tmp_path / "a").config == model.config
    failing = errno.EIO  # this is a failing disk
    with pytest.raises(OSError, match="not here"):
        save(model, tmp_path / "a")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_here_is_told(model: WorldModel, tmp_path: Path) -> None:
    save(model, tmp_path / "a")
    with pytest.raises(ValueError, match=r"'cuda' is not here.*choose cpu"):
        load(tmp_path / "a", device="cuda")
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        load(tmp_path / "a", device="gpu")
    with pytest.raises(ValueError, match="device 'meta' is not supported"):
        open_world(model, tiny_contexts(), device="meta")


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("step", ["write", "first move", "second move"])
def test_a_killed_save_leaves_the_old_checkpoint(
    model: WorldModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "a"
    save(model, path)
    moves = {"first move": 0, "second move": 1}
    done: list[object] = []
    replace, save_file = os.replace, checkpoint.save_file

    def killed_replace(source: Path, target: Path) -> None:
        if len(done) == moves.get(step, 9):
            raise KilledError
        done.append(target)
        replace(source, target)

    def killed_write(tensors: dict[str, torch.Tensor], file: Path) -> None:
        save_file(tensors, file)
        if step == "write":
            truncate(file.name, 0.5)(file.parent)
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed_replace)
        patch.setattr(checkpoint, "save_file", killed_write)
        with pytest.raises(KilledError):
            save(tiny_model(seed=1), path)
    assert torch.equal(dream(load(path, dtype=torch.float32))[0], dream(model)[0])
    save(tiny_model(seed=1), path)  # what is left over does not stand in the way
    assert torch.equal(dream(load(path, dtype=torch.float32))[0], dream(tiny_model(1))[0])
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_config_alone_is_read_without_weights(model: WorldModel, tmp_path: Path) -> None:
    save(model, tmp_path / "a")
    (tmp_path / "a" / WEIGHTS).unlink()
    assert load_config(tmp_path / "a") == model.config


@dataclasses.dataclass(frozen=True)
class Square:
    kind: Literal["square"] = "square"
    side: int = 1


@dataclasses.dataclass(frozen=True)
class Polyline:
    kind: Literal["line"] = "line"
    points: tuple[tuple[int, tuple[int, ...]], ...] = ()


@dataclasses.dataclass(frozen=True)
class Drawing:
    shape: Square | Polyline
    frame: Square | None = None
    width: float | None = None
    name: str | None = None


@pytest.mark.parametrize(
    "drawing",
    [
        Drawing(Square(side=3)),
        Drawing(Polyline(points=((1, (2, 3)), (4, ()))), frame=Square(side=2), width=0.5),
        Drawing(Polyline(), name="x"),
    ],
)
def test_configs_survive_json(drawing: Drawing) -> None:
    again = from_json(Drawing, json.loads(json.dumps(to_json(drawing))))
    assert again == drawing
    assert hash(again) == hash(drawing)  # tuples all the way down


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(CheckpointError, match="kind is 'circle'; known are square, line"):
        from_json(Drawing, {"shape": {"kind": "circle"}})
    with pytest.raises(CheckpointError, match="'circle' is not one of 'square'"):
        from_json(Square, {"kind": "circle"})
