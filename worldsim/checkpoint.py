"""Checkpoints of world models: a directory with config.json, safetensors and a few contexts.

Nothing in it is pickled. `load` takes a directory or the name of a model that ships with the
package. Weights may be cut into several files and stored in half precision; they load as float32.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import json
import os
import shutil
import time
import types
import typing
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldsim.checks import check_device
from worldsim.world_model import WorldModel
from worldsim.world_model_config import WorldModelConfig

PRETRAINED = Path(__file__).parent / "pretrained"
SHARD_BYTES = 15 * 2**20
PARTS = ("config.json", "metadata.json", "contexts.npz", "README.md", "model-*.safetensors")
"""Files of a checkpoint."""


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, or not of this version."""


@dataclasses.dataclass(frozen=True)
class Contexts:
    """Real stretches of episodes that dreams can start from."""

    frames: np.ndarray
    """(n, t, h, w, c) uint8."""
    actions: np.ndarray
    """(n, t) int64; `actions[:, i]` led to frame i."""


def shipped_models() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(p.parent.name for p in PRETRAINED.glob("*/config.json"))


def resolve(name_or_path: str | Path) -> Path:
    """The directory of a shipped model, of a checkpoint, or of that in a directory of training.

    Raises:
        CheckpointError: neither a shipped name nor a directory with a config.json.
    """
    path = _behind_links(Path(name_or_path))
    # A directory of training has a config.json of its own, beside its checkpoint. Where a save was
    # cut off between its two moves, the old checkpoint is still beside its place.
    inner = _behind_links(path / "checkpoint")
    candidates = (inner, _old(inner), path, _old(path), PRETRAINED / str(name_or_path))
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return candidate
    raise CheckpointError(
        f"no world model {str(name_or_path)!r}: not a directory with a config.json, and the models "
        f"that ship are {', '.join(shipped_models()) or 'none'}"
    )


def to_json(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_json(cls: type, values: Mapping[str, Any]) -> Any:
    """Rebuild a config dataclass.

    Raises:
        CheckpointError: an unknown or missing field.
    """
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{cls.__name__} is {values!r}; expected its fields")
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}
    if unknown := set(values) - fields:
        raise CheckpointError(f"{cls.__name__} has no field {', '.join(sorted(unknown))}")
    try:
        return cls(**{name: _convert(hints[name], value) for name, value in values.items()})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{cls.__name__}: {error}") from error


def _convert(hint: Any, value: Any) -> Any:
    """A JSON value as its type hint says; unions of dataclasses are told apart by `kind`."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        classes = [typing.cast(type, o) for o in options if dataclasses.is_dataclass(o)]
        if not classes or value is None:
            return _convert(None, value)
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{value!r} is no {' or '.join(c.__name__ for c in classes)}")
        if len(classes) == 1:
            return from_json(classes[0], value)
        kinds = {k: c for c in classes for k in typing.get_args(typing.get_type_hints(c)["kind"])}
        if value.get("kind") not in kinds:
            raise CheckpointError(f"kind is {value.get('kind')!r}; known are {', '.join(kinds)}")
        return from_json(kinds[value["kind"]], value)
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), value)
    if origin is Literal and value not in options:
        raise CheckpointError(f"{value!r} is not one of {', '.join(map(repr, options))}")
    if isinstance(value, list):
        return tuple(_convert(None, v) for v in value)
    return value


def save(
    model: WorldModel,
    path: str | Path,
    *,
    contexts: Contexts | None = None,
    half: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint; an existing one is replaced in one move, or not at all.

    Args:
        model: what to save.
        path: the directory.
        contexts: real contexts to ship with it.
        half: store weights as float16, and buffers as they are. Those of a model loaded for dreams
            on bfloat16 hardware are rounded already: load it with dtype=torch.float32 to save it.
        metadata: JSON values saved as metadata.json (how the model was trained).

    Raises:
        ValueError: the path holds something else, which would be lost.
    """
    path = _behind_links(Path(path))
    if path.exists() and (others := _no_parts_of_a_checkpoint(path)):
        raise ValueError(
            f"{path} holds {', '.join(others[:3])}, no part of a checkpoint: a checkpoint takes "
            "the place of all that is there, so give it a directory of its own"
        )
    if any(p.dtype == torch.bfloat16 for p in model.parameters()):
        warnings.warn(
            f"the weights saved to {path} were rounded to bfloat16 when they were loaded: load the "
            "model with dtype=torch.float32 to save it as it is",
            stacklevel=2,
        )
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shortened = {name for name, p in model.named_parameters() if half and p.is_floating_point()}
    weights = {
        name: (t.half() if name in shortened else t).detach().cpu().contiguous()
        for name, t in model.state_dict().items()
    }
    for i, shard in enumerate(_shards(weights)):
        save_file(shard, partial / f"model-{i:02d}.safetensors")
    (partial / "config.json").write_text(json.dumps(to_json(model.config), indent=2) + "\n")
    if metadata is not None:
        (partial / "metadata.json").write_text(json.dumps(dict(metadata), indent=2) + "\n")
    if contexts is not None:
        np.savez_compressed(
            partial / "contexts.npz", frames=contexts.frames, actions=contexts.actions
        )
    replace_directory(partial, path)


def _no_parts_of_a_checkpoint(path: Path) -> list[str]:
    """What is there that would be lost to a checkpoint, and was not written by one."""
    if not path.is_dir():
        return [path.name]
    entries = sorted(path.iterdir())
    if entries and not (path / "config.json").is_file():
        return [p.name for p in entries]
    return [p.name for p in entries if not any(p.match(part) for part in PARTS)]


def replace_directory(source: Path, target: Path) -> None:
    """Move a finished directory into place; a crash leaves the old or the new one.

    Also one of the machine: the new one is on the disk before the old one is removed.
    """
    for path in (*source.iterdir(), source):
        _write_through(path)
    old = _old(target)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
    os.replace(source, target)
    _write_through(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _write_through(path: Path) -> None:
    """Wait until a file, or what a directory names, is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # where directories cannot be opened
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot do it for directories.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.EBADF, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


def _behind_links(path: Path) -> Path:
    """Where a link leads: it stays, and what is there is replaced."""
    return path.resolve() if path.is_symlink() else path


def _old(path: Path) -> Path:
    return path.parent / f".{path.name}.old"


def _shards(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, t in weights.items():
        nbytes = t.numel() * t.element_size()
        if size and size + nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = t
        size += nbytes
    return shards


def load_config(name_or_path: str | Path) -> WorldModelConfig:
    """The config of a checkpoint.

    Raises:
        CheckpointError: missing or damaged.
    """
    path = resolve(name_or_path) / "config.json"
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if isinstance(values, dict) and "dynamics" in values:  # a setting of training
        raise CheckpointError(f"{path.parent} is of training that has not kept a checkpoint yet")
    return from_json(WorldModelConfig, values)


def load(
    name_or_path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> WorldModel:
    """Load a world model for inference.

    Args:
        name_or_path: a shipped model's name or a checkpoint directory.
        device: where to put it.
        dtype: compute dtype of the networks, whose weights are kept in it; None takes bfloat16
            where the device has fast bfloat16 products, float32 elsewhere.

    Raises:
        CheckpointError: no such model, or a damaged one.
        ValueError: no such device.
    """
    check_device(device)
    path = resolve(name_or_path)
    config = load_config(path)
    try:
        model = WorldModel(config)
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise CheckpointError(f"{path / 'config.json'} describes no model: {error}") from error
    weights: dict[str, Tensor] = {}
    try:
        for file in sorted(path.glob("*.safetensors")):
            weights |= load_file(file)
        model.load_state_dict({k: v.float() for k, v in weights.items()})
    except (SafetensorError, RuntimeError, OSError) as error:
        raise CheckpointError(
            f"the weights in {path} are damaged or of another model: {error}"
        ) from error
    return for_inference(model, device, dtype)


def for_inference(
    model: WorldModel, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> WorldModel:
    """Put a model where it will dream, in the precision that is fast there; arguments as `load`."""
    model.to(device).eval().requires_grad_(False)
    model.compute_dtype = fast_dtype(device) if dtype is None else dtype
    if model.compute_dtype != torch.float32:
        for part in (model.denoiser, model.tokenizer):
            for module in part.modules():
                if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                    module.to(model.compute_dtype)  # else autocast would do so at every call
    return model


def fast_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 where the hardware multiplies it faster than float32, else float32."""
    if torch.device(device).type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if _multiplies_bfloat16_fast() else torch.float32


@functools.cache
def _multiplies_bfloat16_fast(size: int = 768, repetitions: int = 5) -> bool:
    """Whether this CPU does, by a short trial.

    Of those that have the instructions some take twice as long as with float32 (Xeons whose AMX is
    not there), others half as long or a sixth.
    """
    known = torch.cpu.get_capabilities()
    if not (known.get("avx512_bf16") or known.get("amx_bf16")):
        return False

    def shortest(dtype: torch.dtype) -> float:
        a, times = torch.ones(size, size, dtype=dtype), []
        for _ in range(repetitions):
            start = time.perf_counter()
            a @ a
            times.append(time.perf_counter() - start)
        return min(times)

    return shortest(torch.float32) > 1.2 * shortest(torch.bfloat16)


def fingerprint(name_or_path: str | Path) -> str:
    """SHA-256 of a checkpoint's config and weights: tells models of the same name apart.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    path, digest = resolve(name_or_path), hashlib.sha256()
    for file in [path / "config.json", *sorted(path.glob("*.safetensors"))]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def load_metadata(name_or_path: str | Path) -> dict[str, Any]:
    """How a checkpoint was trained, as `save` was told; empty where it was not.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    file = resolve(name_or_path) / "metadata.json"
    try:
        return json.loads(file.read_text()) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error


def load_contexts(name_or_path: str | Path) -> Contexts:
    """The real contexts that came with a checkpoint.

    Raises:
        CheckpointError: it has none, or they are damaged.
    """
    path = resolve(name_or_path) / "contexts.npz"
    if not path.is_file():
        raise CheckpointError(f"{path.parent} ships no contexts; pass some of your own episodes")
    try:
        with np.load(path, allow_pickle=False) as file:
            return Contexts(frames=file["frames"], actions=file["actions"].astype(np.int64))
    except Exception as error:  # NumPy has no error of its own: a dozen kinds come from damage
        raise CheckpointError(f"{path} is damaged: {error}") from error
