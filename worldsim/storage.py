"""Reading single episodes of a Minari dataset, piece by piece.

Minari itself reads whole episodes. Training needs short stretches of many, so frames are sliced on
the disk. Understood are both of Minari's formats (Arrow through Minari's own reader, whole episodes
at a time), raw and JPEG-encoded images, and images inside a dict observation.
"""

import io
import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import h5py
import numpy as np
from minari import MinariDataset
from minari.dataset.minari_storage import METADATA_FILE_NAME, MinariStorage, is_image_space
from minari.serialization import deserialize_space
from minari.storage import get_dataset_path
from PIL import Image

MAX_OPEN_EPISODES = 32
"""Of a dataset; every episode recorded by us is a file, and systems open some 1,000 of them."""


class EpisodeReader(Protocol):
    """Reads the episodes of one dataset by their number in it; raises what the format raises."""

    def steps(self, index: int) -> dict[str, np.ndarray]:
        """Return actions, rewards, terminations and truncations, (n, ...) each."""

    def frames_layout(self, index: int) -> tuple[tuple[int, ...] | None, np.dtype, int]:
        """Return shape and dtype of a frame (None where only decoding tells), and their number."""

    def frames(self, index: int, start: int, stop: int) -> np.ndarray:
        """Return frames start to stop, (t, h, w, c)."""

    def infos(self, index: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """Return the infos that have one entry per frame, flattened to `outer/inner` names."""

    def metadata(self, index: int) -> dict[str, Any]:
        """Return what is known about the episode as a whole."""


class HDF5Reader:
    """Reads episodes of Minari's HDF5 format; see `EpisodeReader`.

    It may be pickled and forked: open files are not shared between processes.
    """

    def __init__(self, path: Path, image_key: str | None, jpeg: bool) -> None:
        self._path = path / "main_data.hdf5"
        self._observations = "observations" if image_key is None else f"observations/{image_key}"
        self._jpeg = jpeg
        self._process = os.getpid()
        self._groups: OrderedDict[int, h5py.Group] = OrderedDict()
        self._file: h5py.File | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_groups": OrderedDict(), "_file": None}

    def steps(self, index: int) -> dict[str, np.ndarray]:
        """See `EpisodeReader`."""
        group = self._group(index)
        names = ("actions", "rewards", "terminations", "truncations")
        return {name: group[name][()] for name in names}

    def frames_layout(self, index: int) -> tuple[tuple[int, ...] | None, np.dtype, int]:
        """See `EpisodeReader`."""
        images = self._group(index)[self._observations]
        if self._jpeg:
            return None, np.dtype(np.uint8), len(images)
        return images.shape[1:], images.dtype, len(images)

    def frames(self, index: int, start: int, stop: int) -> np.ndarray:
        """See `EpisodeReader`."""
        images = self._group(index)[self._observations][start:stop]
        if self._jpeg:
            return np.stack([np.asarray(Image.open(io.BytesIO(i.tobytes()))) for i in images])
        return images

    def infos(self, index: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """See `EpisodeReader`."""
        group = self._group(index)
        num_frames = len(group[self._observations])
        found: dict[str, np.ndarray] = {}

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and item.shape and len(item) == num_frames:
                found[name] = item[start:stop]

        if "infos" in group:
            group["infos"].visititems(visit)
        return found

    def metadata(self, index: int) -> dict[str, Any]:
        """See `EpisodeReader`."""
        return dict(self._group(index).attrs)

    def _group(self, index: int) -> h5py.Group:
        if self._file is None or self._process != os.getpid():
            self._process = os.getpid()
            self._groups = OrderedDict()
            self._file = h5py.File(self._path, "r")
        group = self._groups.get(index)
        if group is None:
            group = self._file[f"episode_{index}"]
            self._groups[index] = group
            if len(self._groups) > MAX_OPEN_EPISODES:
                self._groups.popitem(last=False)
        else:
            self._groups.move_to_end(index)
        return group


class MinariReader:
    """Reads episodes through Minari's own storage classes; see `EpisodeReader`.

    Whole episodes are read and the last few kept, so this is slower than `HDF5Reader`.
    """

    def __init__(self, path: Path, image_key: str | None, keep: int = 8) -> None:
        self._path = path
        self._image_key = image_key
        self._keep = keep
        self._storage = MinariStorage.read(path)
        self._episodes: OrderedDict[int, dict[str, Any]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_episodes": OrderedDict()}

    def steps(self, index: int) -> dict[str, np.ndarray]:
        """See `EpisodeReader`."""
        episode = self._episode(index)
        names = ("actions", "rewards", "terminations", "truncations")
        return {name: np.asarray(episode[name]) for name in names}

    def frames_layout(self, index: int) -> tuple[tuple[int, ...] | None, np.dtype, int]:
        """See `EpisodeReader`."""
        images = self._images(index)
        return images.shape[1:], images.dtype, len(images)

    def frames(self, index: int, start: int, stop: int) -> np.ndarray:
        """See `EpisodeReader`."""
        return self._images(index)[start:stop]

    def infos(self, index: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """See `EpisodeReader`."""
        num_frames = len(self._images(index))
        infos = _flatten(self._episode(index).get("infos") or {})
        return {
            key: value[start:stop]
            for key, value in infos.items()
            if value.ndim and len(value) == num_frames and value.dtype != object
        }

    def metadata(self, index: int) -> dict[str, Any]:
        """See `EpisodeReader`."""
        return dict(next(iter(self._storage.get_episode_metadata([index]))))

    def _images(self, index: int) -> np.ndarray:
        observations = self._episode(index)["observations"]
        images = observations if self._image_key is None else observations[self._image_key]
        return np.asarray(images)

    def _episode(self, index: int) -> dict[str, Any]:
        if index not in self._episodes:
            self._episodes[index] = next(iter(self._storage.get_episodes([index])))
            if len(self._episodes) > self._keep:
                self._episodes.popitem(last=False)
        return self._episodes[index]


def _flatten(infos: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
    for key, value in infos.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = np.asarray(value)
    return flat


def find_dataset(source: str | Path, root: str | Path | None = None) -> Path:
    """Return the data folder of a dataset.

    Args:
        source: Minari id, or path of the dataset's folder.
        root: Folder of all datasets, for ids; None for Minari's own.

    Raises:
        FileNotFoundError: If there is no such dataset; the message lists those there are.
    """
    base = get_dataset_path() if root is None else Path(root).expanduser()
    for candidate in (base / source, Path(source).expanduser()):
        for folder in (candidate / "data", candidate):
            if (folder / METADATA_FILE_NAME).is_file():
                return folder.absolute()
    files = base.rglob(f"data/{METADATA_FILE_NAME}")
    known = [str(file.parent.parent.relative_to(base)) for file in files]
    names = ", ".join(sorted(known)) or "none"
    raise FileNotFoundError(
        f"there is no dataset {str(source)!r}, neither as an id below {base} nor as a path; "
        f"datasets there: {names}"
    )


def find_image(
    space: gymnasium.Space, image_key: str | None, name: str
) -> tuple[str | None, gymnasium.spaces.Box]:
    """Find the images in an observation space.

    Args:
        space: Of single observations.
        image_key: Key of the images in a dict, which plain images do without; None if there is only
            one that could be it.
        name: What has this space, for the error message.

    Returns:
        The key (None if the observation is the image itself) and the image's space, (h, w, c).

    Raises:
        ValueError: If there is no image, or there are several and no key was given.
    """
    needed = "needed are images: Box uint8 (height, width, channels) with 1 or 3 channels"
    if isinstance(space, gymnasium.spaces.Dict):
        images = {key: item for key, item in space.spaces.items() if _is_image(item)}
        if image_key is not None:
            if image_key not in images:
                message = f"{name} has no image {image_key!r} in its observations {space}; {needed}"
                raise ValueError(message)
            return image_key, images[image_key]  # type: ignore[return-value]
        if len(images) == 1:
            key, image = next(iter(images.items()))
            return key, image  # type: ignore[return-value]
        if images:
            raise ValueError(
                f"{name} has several images in its observations: choose one of "
                f"{', '.join(sorted(images))} with image_key"
            )
    elif _is_image(space):
        return None, space  # type: ignore[return-value]
    raise ValueError(f"{name} has observations {space}; {needed}")


def _is_image(space: gymnasium.Space) -> bool:
    return (
        isinstance(space, gymnasium.spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) == 3
        and space.shape[2] in (1, 3)
    )


def check_discrete(space: gymnasium.Space, name: str) -> gymnasium.spaces.Discrete:
    """Return the action space if it is discrete.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(space, gymnasium.spaces.Discrete):
        raise ValueError(f"{name} has actions {space}; needed is a Discrete action space")
    return space


def open_reader(path: Path, image_key: str | None) -> tuple[EpisodeReader, dict[str, Any]]:
    """Open a dataset for reading.

    Args:
        path: Its data folder.
        image_key: Key of the images in dict observations.

    Returns:
        The reader, and the metadata with `image` (the image's Box), `actions` (the Discrete space)
        and `total_episodes` among it.

    Raises:
        ValueError: If its observations have no image, its actions are not discrete, or its metadata
            cannot be read.
        OSError: If its main file cannot be read.
    """
    try:
        metadata: dict[str, Any] = json.loads((path / METADATA_FILE_NAME).read_text())
        num_episodes = int(metadata["total_episodes"])
        if "observation_space" in metadata and "action_space" in metadata:
            observation_space = deserialize_space(metadata["observation_space"])
            action_space = deserialize_space(metadata["action_space"])
        else:  # datasets may leave the spaces to their environment
            dataset = MinariDataset(path)
            observation_space, action_space = dataset.observation_space, dataset.action_space
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path / METADATA_FILE_NAME} is not a dataset's metadata: {error}"
        ) from error
    key, image = find_image(observation_space, image_key, f"dataset {path}")
    actions = check_discrete(action_space, f"dataset {path}")
    reader: EpisodeReader
    if metadata.get("data_format", "hdf5") == "hdf5":
        jpeg = bool(metadata.get("jpeg_encoding", True)) and is_image_space(image)
        reader = HDF5Reader(path, key, jpeg)
        try:
            h5py.File(path / "main_data.hdf5", "r").close()
        except OSError as error:
            raise OSError(f"{path / 'main_data.hdf5'} is damaged as a whole: {error}") from error
    else:
        reader = MinariReader(path, key)
    return reader, {
        **metadata,
        "image": image,
        "actions": actions,
        "total_episodes": num_episodes,
    }
