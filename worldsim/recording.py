"""Recording an episode and saving it, whole or not at all, in the layout of Minari's HDF5 format.

Each episode is an immutable file of its own, written under a temporary name and renamed. Frames are
compressed without loss (Minari's own JPEG encoding is switched off), and checksums tell damage.
`worldsim.dataset_writer` makes a dataset of such files.
"""

import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

CHUNK_FRAMES = 32  # frames are read in chunks of this many
PER_EPISODE_INFOS = ("maze_layout",)  # constant within an episode: kept once, in its metadata


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordedEpisode:
    """One episode as the environment gave it, in Minari's order.

    `actions[t]`, `rewards[t]`, ... belong to the step from observation t to observation t + 1.
    """

    observations: Any  # (n + 1, ...), or a dict of such
    actions: np.ndarray  # (n,)
    rewards: np.ndarray  # (n,) float
    terminations: np.ndarray  # (n,) bool
    truncations: np.ndarray  # (n,) bool
    infos: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # (n + 1, ...) each
    seed: int | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # scalars, str, arrays


class EpisodeRecorder:
    """Gathers the steps of one episode; `finish` returns them as a `RecordedEpisode`.

    Of the infos, the numeric entries that every step has in one shape are kept, if they have names
    that HDF5 can take; those named in `PER_EPISODE_INFOS` go to the episode's metadata once.

    Args:
        observation: First observation.
        info: First info.
        seed: Seed of the reset.
    """

    def __init__(self, observation: Any, info: Mapping[str, Any], seed: int | None = None) -> None:
        self.seed = seed
        self._observations = [_copy(observation)]
        self._actions: list[int] = []
        self._rewards: list[float] = []
        self._terminations: list[bool] = []
        self._truncations: list[bool] = []
        self._constants: dict[str, np.ndarray] = {}
        self._infos: dict[str, list[np.ndarray]] = {}
        for key, value in info.items():
            array = _numeric(value) if _is_name(key, info) else None
            if array is None:
                continue
            if key in PER_EPISODE_INFOS:
                self._constants[key] = array
            else:
                self._infos[key] = [array]

    def __len__(self) -> int:
        return len(self._actions)

    @property
    def rewards(self) -> list[float]:
        """The rewards so far."""
        return list(self._rewards)

    def step(
        self,
        action: int,
        observation: Any,
        reward: float,
        terminated: bool,
        truncated: bool,
        info: Mapping[str, Any],
    ) -> None:
        """Add what `env.step(action)` returned."""
        self._actions.append(int(action))
        self._observations.append(_copy(observation))
        self._rewards.append(float(reward))
        self._terminations.append(bool(terminated))
        self._truncations.append(bool(truncated))
        for key, values in list(self._infos.items()):
            array = _numeric(info.get(key))
            if array is None or array.shape != values[0].shape:
                del self._infos[key]
            else:
                values.append(array)

    def truncate(self) -> None:
        """Let the episode end with the last step added.

        Raises:
            IndexError: If there is no step.
        """
        self._truncations[-1] = not self._terminations[-1]

    def finish(self, metadata: Mapping[str, Any] | None = None) -> RecordedEpisode:
        """Return the episode, with additional metadata."""
        return RecordedEpisode(
            observations=_stack(self._observations),
            actions=np.array(self._actions, dtype=np.int64),
            rewards=np.array(self._rewards, dtype=np.float64),
            terminations=np.array(self._terminations, dtype=bool),
            truncations=np.array(self._truncations, dtype=bool),
            infos={key: np.stack(values) for key, values in self._infos.items()},
            seed=self.seed,
            metadata={**self._constants, **(metadata or {})},
        )


def save_episode(path: Path, episode: RecordedEpisode, index: int) -> None:
    """Write one episode to its own file, all or nothing.

    Args:
        path: The file; a file that is there is replaced.
        episode: The episode.
        index: Its number in the dataset.

    Raises:
        OSError: If the disk is full or cannot be written; nothing is left behind.
    """
    # The file is made in memory, because HDF5 reports a full disk late and unclearly.
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        group = file.create_group("episode")
        group.attrs["id"] = index
        group.attrs["total_steps"] = len(episode.rewards)
        if episode.seed is not None:
            group.attrs["seed"] = episode.seed
        for key, value in episode.metadata.items():
            group.attrs[key] = value
        _write(group, "observations", episode.observations)
        _write(group, "actions", episode.actions)
        _write(group, "rewards", episode.rewards)
        _write(group, "terminations", episode.terminations)
        _write(group, "truncations", episode.truncations)
        if episode.infos:
            _write(group, "infos", dict(episode.infos))
    replace_file(path, buffer.getbuffer())


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file under a temporary name, flush it to the disk and rename it.

    Raises:
        OSError: If that fails; the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _is_name(key: Any, others: Mapping[Any, Any]) -> bool:
    """Whether HDF5 can keep something of that name beside the others."""
    if not isinstance(key, str) or not key or key.startswith("/"):
        return False
    return not any(isinstance(other, str) and other.startswith(f"{key}/") for other in others)


def _numeric(value: Any) -> np.ndarray | None:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):  # rows of different lengths; tensors on a GPU
        return None
    if array.dtype.kind not in "biuf" or not array.size:
        return None
    return array.astype(np.float32) if array.dtype == np.float64 else array.copy()


def _copy(observation: Any) -> Any:
    if isinstance(observation, Mapping):
        return {key: _copy(value) for key, value in observation.items()}
    return np.array(observation)


def _stack(observations: Sequence[Any]) -> Any:
    if isinstance(observations[0], Mapping):
        return {key: _stack([o[key] for o in observations]) for key in observations[0]}
    return np.stack(observations)


def _write(group: h5py.Group, key: str, value: Any) -> None:
    if isinstance(value, Mapping):
        subgroup = group.create_group(key)
        for name, item in value.items():
            _write(subgroup, name, item)
        return
    value = np.asarray(value)
    chunk = min(len(value), CHUNK_FRAMES if value.ndim >= 3 else 4096)
    group.create_dataset(
        key,
        data=value,
        chunks=(max(chunk, 1), *value.shape[1:]),
        maxshape=(None, *value.shape[1:]),
        compression="gzip",
        compression_opts=1,
        fletcher32=True,
    )
