"""A dataset open for adding episodes; whatever kills the writer, the dataset stays valid.

Every finished episode is one immutable file (`worldsim.recording`). The dataset's main file, the
one Minari opens, holds nothing but links to these files and is itself replaced by renaming:

    <root>/<dataset id>/data/metadata.json              what Minari wants to know, and our settings
                             main_data.hdf5             episode_0, episode_1, ...: external links
                             episodes/episode_000000.hdf5, ...
"""

import errno
import fcntl
import importlib.metadata
import io
import itertools
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import gymnasium
import h5py
from minari.dataset.minari_dataset import parse_dataset_id
from minari.namespace import NAMESPACE_METADATA_FILENAME
from minari.serialization import serialize_space
from minari.storage import get_dataset_path

from worldsim.recording import RecordedEpisode, replace_file, save_episode


class DatasetWriter:
    """A dataset open for adding episodes; locked, so that nobody else adds to it meanwhile.

    Opening a dataset that exists continues it: `finished` names the episodes that are there.
    Episodes may be saved in any order, also by other processes: `save_episode(writer.path_of(i), e,
    i)` there, then `writer.add(i, num_steps)` here. `publish` makes the unbroken run from episode 0
    visible. What is visible stays so where an episode is damaged meanwhile: readers leave it out.

    Args:
        dataset_id: Minari id, `(namespace/)name-v0`.
        observation_space: Space of single observations.
        action_space: Space of single actions.
        settings: How the episodes come about, kept in the metadata as `collection`. A dataset that
            has episodes is only continued with equal settings.
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
        try:
            namespace, _, _ = parse_dataset_id(dataset_id)
        except TypeError as error:
            raise ValueError(
                f"dataset id {dataset_id!r} has no version: end it in -v0, as in mine/walks-v0"
            ) from error
        root = get_dataset_path() if root is None else Path(root).expanduser()
        self.dataset_id = dataset_id
        self.path = root / dataset_id
        self._data = self.path / "data"
        self._episodes = self._data / "episodes"
        self._check_ours()
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
            self._visible = int(self._metadata.get("total_episodes", 0))
            self._steps: dict[int, int] = {}
            self._scan()
            if not (self._data / "metadata.json").exists():
                # First, so that the dataset is known as ours whatever ends its first publication.
                self._write_metadata([])
            self.publish()
        except BaseException:
            self._lock.close()
            raise

    @property
    def finished(self) -> frozenset[int]:
        """Numbers of the episodes that are saved."""
        return frozenset(self._steps)

    @property
    def next_index(self) -> int:
        """The lowest number that no saved episode has."""
        return next(index for index in itertools.count() if index not in self._steps)

    def sources(self) -> list[tuple[str, str | None]]:
        """Files that the episodes were imported from, in order: their metadata's `source` and, of
        those that have one, `source_sha256`."""
        sources = []
        for index in sorted(self.finished):
            with h5py.File(self.path_of(index), "r") as file:
                attributes = file["episode"].attrs
                digest = attributes.get("source_sha256")
                sources.append((str(attributes["source"]), None if digest is None else str(digest)))
        return sources

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
        count = self.next_index
        if count < self._visible:
            return self._visible
        buffer = io.BytesIO()
        with h5py.File(buffer, "w", track_order=True) as file:
            for i in range(count):
                link = h5py.ExternalLink(f"episodes/{self.path_of(i).name}", "/episode")
                file[f"episode_{i}"] = link
        replace_file(self._data / "main_data.hdf5", buffer.getbuffer())
        self._write_metadata(range(count))
        self._visible = count
        return count

    def _write_metadata(self, episodes: Sequence[int]) -> None:
        """Write the metadata of a dataset in which these are visible."""
        size = sum(self.path_of(i).stat().st_size for i in episodes) / 1e6
        self._metadata |= {
            "total_episodes": len(episodes),
            "total_steps": sum(self._steps[i] for i in episodes),
            "dataset_size": round(size, 1),
        }
        content = json.dumps(self._metadata, indent=1).encode()
        replace_file(self._data / "metadata.json", content)

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
        try:
            self.close()
        except OSError:
            # On a full disk, the error that says so must not be hidden by this one; the episodes
            # are saved, and the next to open the dataset publishes them.
            if error is None:
                raise

    def _check_ours(self) -> None:
        path = self._data / "metadata.json"
        ours = path.exists() and "collection" in json.loads(path.read_text())
        if not ours and (path.exists() or (self._data / "main_data.hdf5").exists()):
            raise ValueError(f"{self._data} holds a dataset recorded otherwise; use another name")

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
        if path.exists() and any(self._episodes.glob("episode_*.hdf5")):
            found: dict[str, Any] = json.loads(path.read_text())
            for key, value in fixed.items():
                if found.get(key) != value:
                    raise ValueError(
                        f"{self._data} exists and differs in {key}:\n  there: {found.get(key)}\n"
                        f"  now:   {value}\nUse the same settings to continue it, or another name."
                    )
            return found
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
            except (TypeError, ValueError):
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
                aside = path.with_suffix(".damaged")
                warnings.warn(
                    f"{path} is damaged, or cannot be read ({error}): it is kept as "
                    f"{aside.name}, and the episode is made anew",
                    stacklevel=3,
                )
                path.replace(aside)
                continue
            self._steps[int(match.group(1))] = steps
