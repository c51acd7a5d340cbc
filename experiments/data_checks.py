"""Whether episodes fit what is to be learned from them, said before hours go into it."""

from __future__ import annotations

import contextlib
import json
import math
import posixpath
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from minari.dataset.minari_storage import METADATA_FILE_NAME

import worldsim.checkpoint as checkpoint
from experiments.report import write_json
from worldsim.episodes import DamagedEpisodeError, EpisodeDataset
from worldsim.latents import discounted_returns
from worldsim.pose import poses_of
from worldsim.storage import find_dataset
from worldsim.training_config import DynamicsTraining
from worldsim.world_model_config import WorldModelConfig


def held_out_of(train: EpisodeDataset, kept: Path) -> tuple[EpisodeDataset, EpisodeDataset]:
    """Split off a tenth of the episodes for validation, the same in every call.

    Args:
        train: all episodes; further ones may have been added since the first call.
        kept: JSON file of the names of those split off, written by `keep_held_out`.

    Raises:
        ValueError: there are too few episodes, or none of those split off is among them.
    """
    if not kept.is_file():
        if len(train) < 2:
            raise ValueError(
                "one episode cannot be split into those to learn from and those held out: record "
                "more, or give --validation-dataset"
            )
        return train.split(max(len(train) // 10, 1))
    chosen = are_held_out(train.names, kept)
    if not chosen.any():
        raise ValueError(f"none of the episodes that {kept} holds out is among those given")
    return train.select(np.flatnonzero(~chosen)), train.select(np.flatnonzero(chosen))


def are_held_out(names: Sequence[str], kept: Path) -> np.ndarray:
    """Which episodes a file of `keep_held_out` names.

    Folders may have other paths now, of which one has to end in the other.
    """

    def parts(name: str) -> tuple[str, str]:
        number, _, source = name.partition(" of ")
        return number, _folder(source)

    present = [parts(name) for name in names]
    told = {parts(name) for name in json.loads(kept.read_text())}
    elsewhere = told.difference(present)

    def is_told(number: str, source: str) -> bool:
        sources = [other for n, other in elsewhere if n == number]
        return (number, source) in told or any(may_have_moved(source, s) for s in sources)

    return np.array([is_told(*name) for name in present], dtype=bool)


def may_have_moved(one: str, other: str) -> bool:
    """Whether two paths or ids may be of one dataset: one has to end in the other."""
    a, b = _folder(one), _folder(other)
    return a.endswith(b) or b.endswith(a)


def _folder(source: str) -> str:
    """A dataset's path or id, in one way of writing it."""
    return f"/{posixpath.normpath(source).removesuffix('/data').lstrip('/')}"


def keep_held_out(held_out: EpisodeDataset, kept: Path) -> None:
    """Write which episodes are held out, for `held_out_of`."""
    if not kept.is_file():
        write_json(kept, held_out.names)


def learned_before(
    model: str | Path, datasets: Iterable[str], root: Path | None = None
) -> list[str]:
    """Those of the datasets that a checkpoint says it has learned from, if it says so.

    Args:
        model: shipped name or checkpoint.
        datasets: ids or paths; those that name the same folder are the same.
        root: folder of all datasets, for ids; None for Minari's own.
    """

    def folder(source: str) -> str | Path:
        try:
            return find_dataset(source, root).resolve()
        except FileNotFoundError:
            return source  # not on this machine; ids stay the same

    sources = checkpoint.load_metadata(model).get("learned_from", {})
    known = {*sources, *map(folder, sources)}
    return sorted(name for name in {*datasets} if name in known or folder(name) in known)


def env_of(dataset: EpisodeDataset, root: str | Path | None = None) -> str | None:
    """Name of the env that was played, where all episodes tell the same one.

    Args:
        dataset: its episodes tell it, or the metadata of its folders.
        root: folder of all datasets, for ids; None for Minari's own.
    """
    names = set()
    for i in range(len(dataset)):
        with contextlib.suppress(DamagedEpisodeError):
            names.add(dataset.episode(i, 0, 1).metadata.get("env"))
    if names == {None}:
        for source in dataset.sources:
            metadata = json.loads((find_dataset(source, root) / METADATA_FILE_NAME).read_text())
            names.add(json.loads(metadata.get("env_spec") or "{}").get("id"))
        names.discard(None)
    return names.pop() if len(names) == 1 else None


def check_training_data(
    dataset: EpisodeDataset, model: WorldModelConfig, training: DynamicsTraining
) -> list[str]:
    """Refuse what training could not use, and say what it would leave out.

    Args:
        dataset: episodes to train on.
        model: config of the model that is to be trained.
        training: its segments.

    Returns:
        Notes, one line each: episodes that are too short for some segments, and rewards or returns
        that are larger than the model can tell.

    Raises:
        ValueError: no episode is as long as a segment, or the model is told poses and the episodes
            have none.
    """
    if model.pose is not None:
        for i in range(len(dataset)):
            with contextlib.suppress(DamagedEpisodeError):  # which is told and left out later
                poses_of(dataset.infos(i, 0, 1))
    lengths, longest = training.segment_lengths, int(dataset.lengths.max())
    if max(lengths) > longest:
        own = " and --dynamics.own-dreams.context" if training.own_dreams.share else ""
        cut = ", and as many --dynamics.longest-stretches" if training.longest_stretches else ""
        raise ValueError(
            f"training is on segments of {max(lengths)} frames; the longest episode has {longest}: "
            f"choose shorter ones with --dynamics.curriculum{own}{cut}"
        )
    notes = [note for length in lengths if (note := _too_short(dataset, length))]
    largest = _largest_value(dataset, model.gamma)
    if largest > math.expm1(model.reward_limit):
        notes.append(
            f"rewards or returns of up to {largest:.0f} are beyond the model's "
            f"{math.expm1(model.reward_limit):.0f} and learned as that: a new model with "
            f"--reward-limit {math.ceil(math.log1p(largest))} can tell them"
        )
    return notes


def _too_short(dataset: EpisodeDataset, length: int) -> str | None:
    """What segments of so many frames leave out."""
    short = np.flatnonzero(dataset.lengths < length)
    if not len(short):
        return None
    frames = dataset.lengths[short].sum() / dataset.num_frames
    ended = [bool(dataset.terminated(i).any()) for i in range(len(dataset))]
    note = (
        f"{len(short)} of {len(dataset)} episodes ({frames:.0%} of the frames) are shorter than "
        f"{length} frames: segments of that length are not of them"
    )
    if any(ended):
        lost = sum(ended[i] for i in short)
        note += f", nor {lost} of the {sum(ended)} terminations"
    return note


def _largest_value(dataset: EpisodeDataset, gamma: float) -> float:
    """Largest absolute reward or discounted return of a dataset."""
    largest = 0.0
    for i in range(len(dataset)):
        rewards = torch.from_numpy(dataset.rewards(i)).float()
        ended = torch.from_numpy(dataset.terminated(i))
        returns, _ = discounted_returns(rewards, ended, gamma)
        largest = max(largest, float(rewards[1:].abs().max()), float(returns.abs().max()))
    return largest
