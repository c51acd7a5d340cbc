"""Writing episodes: a Minari dataset that survives being killed at any moment.

Every finished episode is one immutable HDF5 file, written under a temporary name and renamed, so it
is either whole or absent. The dataset's main file, the one Minari opens, holds nothing but links to
these files and is itself replaced by renaming:

    <root>/<dataset id>/data/metadata.json              what Minari wants to know, and our settings
                             main_data.hdf5             episode_0, episode_1, ...: external links
                             episodes/episode_000000.hdf5, ...

Frames are compressed without loss (Minari's own JPEG encoding is switched off).
"""

import dataclasses
import errno
import fcntl
import importlib.metadata
import io
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import gymnasium
import h5py
import numpy as np
from minari.dataset.minari_dataset import parse_dataset_id
from minari.namespace import NAMESPACE_METADATA_FILENAME
from minari.serialization import serialize_space
from minari.storage import get_dataset_path

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

    Of the infos, the numeric entries that every step has in one shape are kept; those named in
    `PER_EPISODE_INFOS` go to the episode's metadata once.

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
            array = _numeric(value)
            if array is None:
                continue
            if key in PER_EPISODE_INFOS:
                self._constants[key] = array
            else:
                self._infos[key] = [array]

    def __len__(self) -> int:
        return len(self._actions)

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


class DatasetWriter:
    """A dataset open for adding episodes; locked, so that nobody else adds to it meanwhile.

    Opening a dataset that exists continues it: `finished` names the episodes that are there.
    Episodes may be saved in any order and by other processes (`save_episode(writer.path_of(i), ...)`
    followed by `writer.add(i, num_steps)`); `publish` makes the unbroken run from episode 0 visible.

    Args:
        dataset_id: Minari id, `(namespace/)name-v0`.
        observation_space: Space of single observations.
        action_space: Space of single actions.
        settings: How the episodes come about, kept in the metadata as `collection`. A dataset is
            only continued with equal settings.
        root: Folder of all datasets; None for Minari's own.
        env_spec: Kept in the metadata where it can be serialised.
        metadata: Further Minari metadata (`algorithm_name`, `description`, ...).

    Raises:
        ValueError: If the id is malformed, or the dataset exists with other spaces or settings.
        RuntimeError: If another process is adding to the dataset.
    """

    def __init__(
        self,
        dataset_id: str,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        settings: Mapping[str, Any],
        root: str | Path | None = None,
        env_spec: Any = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        namespace, _, _ = parse_dataset_id(dataset_id)
        root = get_dataset_path() if root is None else Path(root).expanduser()
        self.dataset_id = dataset_id
        self.path = root / dataset_id
        self._data = self.path / "data"
        self._episodes = self._data / "episodes"
        self._episodes.mkdir(parents=True, exist_ok=True)
        self._lock = open(self._episodes / ".lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            message = f"{self._data} is being written by another process; wait for it, or stop it"
            raise RuntimeError(message) from None

        try:
            self._metadata = self._merge_metadata(
                observation_space, action_space, settings, env_spec, metadata or {}
            )
            parent = root
            for part in namespace.split("/") if namespace else ():
                parent = parent / part
                if not (parent / NAMESPACE_METADATA_FILENAME).exists():
                    replace_file(parent / NAMESPACE_METADATA_FILENAME, b"{}")
            self._steps: dict[int, int] = {}
            self._scan()
            self.publish()
        except BaseException:
            self._lock.close()
            raise

    @property
    def finished(self) -> frozenset[int]:
        """Numbers of the episodes that are saved."""
        return frozenset(self._steps)

    @property
    def num_steps(self) -> int:
        """Steps of all saved episodes."""
        return sum(self._steps.values())

    def path_of(self, index: int) -> Path:
        """Return the file of an episode."""
        return self._episodes / f"episode_{index:06d}.hdf5"

    def save(self, index: int, episode: RecordedEpisode) -> None:
        """Save an episode from this process.

        Raises:
            OSError: If it cannot be written.
        """
        save_episode(self.path_of(index), episode, index)
        self.add(index, len(episode.rewards))

    def add(self, index: int, num_steps: int) -> None:
        """Take note of an episode of `num_steps` steps that has been saved by any process."""
        self._steps[index] = num_steps

    def publish(self) -> int:
        """Rewrite the main file and the metadata; return the number of episodes visible now.

        Raises:
            OSError: If they cannot be written; what was visible before stays.
        """
        count = 0
        while count in self._steps:
            count += 1
        buffer = io.BytesIO()
        with h5py.File(buffer, "w", track_order=True) as file:
            for i in range(count):
                link = h5py.ExternalLink(f"episodes/{self.path_of(i).name}", "/episode")
                file[f"episode_{i}"] = link
        replace_file(self._data / "main_data.hdf5", buffer.getbuffer())
        size = sum(self.path_of(i).stat().st_size for i in range(count)) / 1e6
        self._metadata |= {
            "total_episodes": count,
            "total_steps": sum(self._steps[i] for i in range(count)),
            "dataset_size": round(size, 1),
        }
        content = json.dumps(self._metadata, indent=1).encode()
        replace_file(self._data / "metadata.json", content)
        return count

    def close(self) -> None:
        """Publish and give up the lock."""
        if not self._lock.closed:
            try:
                self.publish()
            finally:
                self._lock.close()

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _merge_metadata(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        settings: Mapping[str, Any],
        env_spec: Any,
        metadata: Mapping[str, Any],
    ) -> dict[str, Any]:
        fixed = {
            "observation_space": serialize_space(observation_space),
            "action_space": serialize_space(action_space),
            "collection": json.loads(json.dumps(dict(settings))),
        }
        path = self._data / "metadata.json"
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text())
            for key, value in fixed.items():
                if found.get(key) != value:
                    raise ValueError(
                        f"{self._data} exists and differs in {key}:\n  there: {found.get(key)}\n"
                        f"  now:   {value}\nUse the same settings to continue it, or another name."
                    )
            return found
        if (self._data / "main_data.hdf5").exists():
            raise ValueError(
                f"{self._data} holds a dataset without metadata.json; use another name"
            )
        result = {
            "dataset_id": self.dataset_id,
            "data_format": "hdf5",
            "jpeg_encoding": False,
            "minari_version": importlib.metadata.version("minari"),
            **fixed,
            **metadata,
        }
        if env_spec is not None:
            try:
                result["env_spec"] = env_spec.to_json()
            except TypeError:
                pass  # a spec with an entry point or wrapper that has no name cannot be kept
        return result

    def _scan(self) -> None:
        for leftover in self._episodes.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        for path in sorted(self._episodes.glob("episode_*.hdf5")):
            match = re.fullmatch(r"episode_(\d+)\.hdf5", path.name)
            if match is None:
                continue
            try:
                with h5py.File(path, "r") as file:
                    group = file["episode"]
                    steps = int(group.attrs["total_steps"])
                    if len(group["rewards"]) != steps or len(group["actions"]) != steps:
                        raise ValueError("its lengths do not agree")
            except (OSError, KeyError, ValueError) as error:
                warnings.warn(f"{path} is damaged ({error}) and is made anew", stacklevel=3)
                path.unlink()
                continue
            self._steps[int(match.group(1))] = steps


def _numeric(value: Any) -> np.ndarray | None:
    array = np.asarray(value) if value is not None else np.empty(0, dtype=object)
    if array.dtype.kind not in "biuf":
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
