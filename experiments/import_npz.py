"""Read trajectories in the format of the Memory Maze offline dataset into a Minari dataset.

    python experiments/import_npz.py --source train/ --dataset memory-maze-9x9/offline-v0

Each .npz file is one trajectory (github.com/jurgisp/memory-maze, "Offline Dataset"): `image`
(t, h, w, 3) uint8, `action` (t, n) one-hot or (t,) index, `reward` (t,), and optionally `terminal`
(t,), `maze_layout` and further entries with one row per frame. `action[i]` and `reward[i]` belong
to the step that led to `image[i]`; those at 0 mean nothing. With one less of them than of images,
as loops over Gymnasium's `step` record them, the first belong to the step from `image[0]` to
`image[1]`. Files are read one at a time, and an import that was killed continues when it is started
again.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from PIL import Image
from tqdm import tqdm

from experiments.command_line import CONTINUES, run_script
from experiments.imported_files import ImportedFiles
from experiments.workers import PUBLISH_EVERY
from worldsim.checks import check_rewards
from worldsim.dataset_writer import DatasetWriter
from worldsim.recording import PER_EPISODE_INFOS, RecordedEpisode

REQUIRED = ("image", "action", "reward")
TERMINAL = ("terminal", "terminals", "is_terminal", "terminated", "terminations")
"""Names under which files tell where an episode terminated."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Read trajectories in the format of the Memory Maze offline dataset into a Minari dataset."""

    source: Path
    """Folder with the .npz files, in subfolders or not."""
    dataset: str = "memory-maze-9x9/offline-v0"
    """Minari id of the dataset, `(namespace/)name-v0`. One that exists is continued."""
    datasets_root: Path | None = None
    """Folder of all datasets; by default Minari's (MINARI_DATASETS_PATH, or ~/.minari/datasets)."""
    num_actions: int | None = None
    """Size of the action space; by default that of one-hot actions, or one more than the largest
    index in all files."""
    size: tuple[int, int] | None = None
    """Rows and columns that frames are scaled to; by default they stay as they are."""
    max_episodes: int | None = None
    """Stop when the dataset has so many episodes; by default all files are read."""

    def __post_init__(self) -> None:
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size must be two numbers of pixels above 0, got {self.size}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportResult:
    """What an import did."""

    path: Path
    episodes: int
    """In the whole dataset."""
    terminated: int
    """Of the episodes imported now, those that ended by themselves."""
    damaged: list[str]
    """Files that were skipped."""


def load_trajectory(
    path: Path, num_actions: int, size: tuple[int, int] | None = None
) -> RecordedEpisode:
    """Read one trajectory.

    Args:
        path: The .npz file.
        num_actions: Size of the action space.
        size: Rows and columns that frames are scaled to.

    Raises:
        ValueError: If the file is not a whole trajectory; the message says why.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = read_entries(file)
    except Exception as error:  # a damaged file can raise nearly anything
        raise ValueError(f"unreadable: {error}") from error
    missing = [key for key in REQUIRED if key not in arrays]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}; it has {', '.join(sorted(arrays))}")
    shapes = {key: arrays[key].shape for key in REQUIRED}
    images, actions, rewards = (arrays.pop(key) for key in REQUIRED)
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) < 2:
        raise ValueError(f"image is {images.dtype} {images.shape}, not uint8 (t, h, w, c)")
    if images.shape[3] not in (1, 3):
        raise ValueError(f"image is {images.shape}; needed are 1 or 3 channels, and these last")
    if actions.dtype.kind not in "biuf":
        raise ValueError(f"action is {actions.dtype}, not numbers")
    num_frames = len(images)
    one_each = shapes["action"][:1] == shapes["reward"][:1]
    actions, rewards = of_steps(actions, num_frames), of_steps(rewards, num_frames)
    if actions is None or rewards is None or not one_each or rewards.ndim > 1 or actions.ndim > 2:
        raise ValueError(
            f"{num_frames} images do not go with action {shapes['action']} and reward "
            f"{shapes['reward']}: needed is a row for every image, or for every step between two"
        )
    if actions.ndim == 2:
        if actions.shape[1] != num_actions:
            raise ValueError(
                f"action is {shapes['action']}, which is not one-hot of {num_actions} actions "
                "(--num-actions); several actions at once are not supported"
            )
        one_hot = ((actions == 0) | (actions == 1)).all(axis=1) & (actions.sum(axis=1) == 1)
        if not one_hot.all():
            step = np.argmin(one_hot)
            raise ValueError(f"the action of step {step} is not one-hot: {actions[step].tolist()}")
        actions = actions.argmax(axis=1)
    if not (whole := actions.astype(np.float64) % 1 == 0).all():
        wrong = f"action {actions[~whole][0]} of step {np.argmin(whole)}"
        raise ValueError(f"{wrong} is no whole number: only discrete actions are supported")
    actions = actions.astype(np.int64)
    if (outside := (actions < 0) | (actions >= num_actions)).any():
        wrong = f"action {actions[outside][0]} of step {np.argmax(outside)}"
        raise ValueError(f"{wrong} is not one of 0 to {num_actions - 1} (--num-actions)")
    check_rewards(rewards)
    terminations = np.zeros(num_frames - 1, bool)
    for key in TERMINAL:
        if key in arrays:
            told = of_steps(np.asarray(arrays.pop(key), bool), num_frames)
            if told is None or told.ndim != 1 or told[:-1].any():
                raise ValueError(
                    f"{key} is not one value for each of {num_frames} frames, or of the steps "
                    "between them, and true at the end alone"
                )
            terminations |= told
    truncations = np.zeros(num_frames - 1, bool)
    truncations[-1] = not terminations[-1]

    metadata: dict[str, object] = {"return": float(rewards.sum())}
    for key in PER_EPISODE_INFOS:
        if key in arrays:
            array = arrays.pop(key)
            metadata[key] = np.asarray(array[0] if array.ndim == 3 else array, np.uint8)
    infos = {
        key: array.astype(np.float32) if array.dtype == np.float64 else array
        for key, array in arrays.items()
        if array.ndim and len(array) == num_frames and array.dtype.kind in "biuf"
    }
    if "target_index" not in infos and {"targets_pos", "target_pos"} <= infos.keys():
        offsets = infos["targets_pos"] - infos["target_pos"][:, None]  # (t, n, 2)
        infos["target_index"] = np.square(offsets).sum(axis=2).argmin(axis=1)
    return RecordedEpisode(
        observations=images if size is None else scaled(images, size),
        actions=actions,
        rewards=rewards.astype(np.float64),
        terminations=terminations,
        truncations=truncations,
        infos=infos,
        metadata=metadata,
    )


def read_entries(file: Any) -> dict[str, Any]:
    """The arrays of an opened file; what is none, as a list of infos, is left out if it may be.

    Raises:
        ValueError: an entry that is needed holds no numbers.
    """
    arrays = {}
    for key in file.files:
        try:
            arrays[key] = file[key]
        except ValueError:
            if key in (*REQUIRED, *TERMINAL):
                raise
    return arrays


def scaled(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Images (t, h, w, c) uint8 with so many rows and columns, by means of what pixels cover."""
    rows, columns = size
    pictures = (Image.fromarray(i.squeeze(2) if i.shape[2] == 1 else i) for i in images)
    resized = [np.asarray(p.resize((columns, rows), Image.Resampling.BOX)) for p in pictures]
    return np.stack(resized).reshape(len(images), rows, columns, images.shape[3])


def of_steps(rows: np.ndarray, num_frames: int) -> np.ndarray | None:
    """Rows of the steps that led to every frame but the first, or None where they do not fit."""
    if rows.ndim < 1 or len(rows) not in (num_frames, num_frames - 1):
        return None
    return rows[len(rows) - num_frames + 1 :]


def count_actions(files: Sequence[Path]) -> int:
    """The size of the action space as the files' actions show it.

    Raises:
        ValueError: none of them has actions.
    """
    largest = 0
    for path in files:
        try:
            with np.load(path, allow_pickle=False) as file:
                actions, num_frames = file["action"], len(file["image"])
        except Exception:  # a damaged file can raise nearly anything; it is told later
            continue
        if actions.dtype.kind not in "biuf":
            continue
        if actions.ndim == 2:
            return int(actions.shape[1])
        steps = of_steps(actions, num_frames)
        if steps is not None and steps.ndim == 1 and len(steps) and np.isfinite(steps).all():
            largest = max(largest, int(steps.max()) + 1)
    if not largest:
        raise ValueError(
            f"none of {len(files)} files has actions that can be counted: give --num-actions"
        )
    return largest


def main(config: ImportConfig) -> ImportResult:
    """Import all trajectories of a folder, with a progress bar, and print a summary.

    Returns:
        The dataset's path, the number of its episodes, and the files that were skipped.

    Raises:
        FileNotFoundError: If the folder has no .npz files.
        ValueError: If no file is a trajectory, or the dataset exists with other frames or actions.
        OSError: If the dataset cannot be written.
    """
    source = config.source.expanduser()
    files = sorted(source.rglob("*.npz"))
    if not files:
        raise FileNotFoundError(f"there are no .npz files in {source}")
    num_actions = count_actions(files) if config.num_actions is None else config.num_actions
    shape = frame_shape(files, num_actions, config.size)
    damaged: list[str] = []
    terminated = 0
    published = time.monotonic()
    with open_writer(config, shape, num_actions) as writer:
        imported = ImportedFiles(writer, source)
        bar = tqdm(files, unit=" files", smoothing=0.05, dynamic_ncols=True)
        for path in bar:
            index = writer.next_index
            if config.max_episodes is not None and index >= config.max_episodes:
                break
            try:
                if (origin := imported.new(path)) is None:
                    continue
                episode = load_trajectory(path, num_actions, config.size)
                if episode.observations.shape[1:] != shape:
                    raise ValueError(f"frames are {episode.observations.shape[1:]}, not {shape}")
            except (OSError, ValueError) as error:
                damaged.append(imported.below(path))
                bar.write(f"skipped {path}: {error}")
                continue
            metadata = {**episode.metadata, **origin}
            writer.save(index, dataclasses.replace(episode, metadata=metadata))
            terminated += int(episode.terminations[-1])
            if time.monotonic() - published > PUBLISH_EVERY:
                writer.publish()
                published = time.monotonic()
        bar.close()
    result = ImportResult(
        path=writer.path, episodes=len(writer.finished), terminated=terminated, damaged=damaged
    )
    print(
        f"{result.episodes} episodes, {num_actions} actions, {len(damaged)} damaged files skipped, "
        f"{imported.there} files were there already\n"
        f"{terminated} of those imported now terminated, the others count as cut off (what tells "
        f"is an entry named {', '.join(TERMINAL)})\n{result.path}\n"
        f"next: python experiments/train_world_model.py cpu --dataset {result.path}"
    )
    return result


def frame_shape(
    files: Sequence[Path], num_actions: int, size: tuple[int, int] | None
) -> tuple[int, ...]:
    """Return the frame shape of the first file that is a trajectory.

    Raises:
        ValueError: If none is.
    """
    reasons = []
    for path in files:
        try:
            return load_trajectory(path, num_actions, size).observations.shape[1:]
        except ValueError as error:
            reasons.append(f"{path.name}: {error}")
    raise ValueError(f"none of {len(files)} files is a trajectory, for example {reasons[0]}")


def open_writer(config: ImportConfig, shape: tuple[int, ...], num_actions: int) -> DatasetWriter:
    """Open the dataset for frames of this shape and so many actions."""
    return DatasetWriter(
        config.dataset,
        gymnasium.spaces.Box(0, 255, shape, np.uint8),
        gymnasium.spaces.Discrete(num_actions),
        settings={"source": "npz"},
        root=config.datasets_root,
        metadata={"description": "Imported trajectories of the Memory Maze offline dataset"},
    )


if __name__ == "__main__":
    run_script(main, ImportConfig, __doc__, stopped=CONTINUES)
