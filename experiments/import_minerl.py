"""Read recordings of people playing Minecraft into a Minari dataset, to train world models from.

    python experiments/import_minerl.py --source data/MineRLNavigateDense-v0 \\
        --dataset minerl-navigate-dense/human-v0 --frame-skip 4

Reads MineRL 0.4 folders (recording.mp4 with rendered.npz) and VPT or BASALT videos (mp4 with
jsonl), see `envs.minerl_recordings`; neither Minecraft nor the MineRL client is needed. Use the
action table and frame skip that the environment will be used with. Recordings are read one at a
time, damaged ones are named and skipped, and an import that was killed continues when it is started
again.
"""

import dataclasses
import time
from pathlib import Path

import gymnasium
import h5py
import numpy as np
from tqdm import tqdm

from envs.minerl_actions import find_table
from envs.minerl_recordings import (
    FOLDER_FILES,
    DamagedRecordingError,
    HumanEpisode,
    find_recordings,
    read_recording,
)
from experiments.command_line import CONTINUES, run_script
from experiments.imported_files import ImportedFiles
from experiments.workers import PUBLISH_EVERY
from worldsim.dataset_writer import DatasetWriter
from worldsim.recording import RecordedEpisode


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportMineRLConfig:
    """Read recordings of people playing Minecraft into a Minari dataset."""

    source: Path
    """Folder with the recordings, in subfolders or not."""
    dataset: str
    """Minari id of the dataset, `(namespace/)name-v0`. One that exists is continued."""
    datasets_root: Path | None = None
    """Folder of all datasets; by default Minari's (MINARI_DATASETS_PATH, or ~/.minari/datasets)."""
    actions: str = "dreamerv3"
    """Action table of `envs.minerl_actions` that actions are mapped to: baselines, dreamerv3 or
    combined."""
    frame_skip: int = 4
    """Game ticks (1/20 s) per step."""
    size: int = 64
    """Side of the frames in pixels."""
    max_episodes: int | None = None
    """Stop when the dataset has so many episodes; by default all recordings are read."""

    def __post_init__(self) -> None:
        for name in ("frame_skip", "size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportMineRLResult:
    """What an import did."""

    path: Path
    episodes: int
    """In the whole dataset."""
    mapped_share: float
    """Share of the actions of the whole dataset that the table can express; nan if it is empty."""
    damaged: list[str]
    """Recordings that were skipped."""


def to_recorded(episode: HumanEpisode, origin: dict[str, str]) -> RecordedEpisode:
    """Bring an episode into the form that datasets keep, with the file that it comes from."""
    steps = len(episode.actions)
    last = np.arange(steps) == steps - 1
    infos = {}
    if episode.compass_angles is not None:
        infos["compass_angle"] = episode.compass_angles
    return RecordedEpisode(
        observations=episode.frames,
        actions=episode.actions,
        rewards=episode.rewards,
        terminations=last & episode.terminated,
        truncations=last & (not episode.terminated),
        infos=infos,
        metadata={
            **origin,
            "policy": "human",
            "return": float(episode.rewards.sum()),
            "mapped_actions": int(episode.mapped.sum()),
        },
    )


def main(config: ImportMineRLConfig) -> ImportMineRLResult:
    """Import all recordings of a folder, with a progress bar, and print a summary.

    Returns:
        The dataset's path, the number of its episodes, how many actions mapped, and what was
        skipped.

    Raises:
        FileNotFoundError: If the folder has no recordings.
        ValueError: If there is no such action table, no recording is readable, or the dataset
            exists with other settings.
        OSError: If the dataset can not be written.
    """
    table = find_table(config.actions)
    source = config.source.expanduser()
    recordings = find_recordings(source)
    if not recordings:
        raise FileNotFoundError(f"there are no recordings (.mp4) in {source}")
    damaged: list[str] = []
    published = time.monotonic()
    with DatasetWriter(
        config.dataset,
        gymnasium.spaces.Box(0, 255, (config.size, config.size, 3), np.uint8),
        gymnasium.spaces.Discrete(len(table)),
        settings={
            "source": "minerl recordings",
            "actions": table.name,
            "frame_skip": config.frame_skip,
        },
        root=config.datasets_root,
        metadata={"description": f"People playing Minecraft; actions mapped to {table.name}"},
    ) as writer:
        imported = ImportedFiles(writer, source)
        bar = tqdm(recordings, unit=" recordings", smoothing=0.05, dynamic_ncols=True)
        for recording in bar:
            if config.max_episodes is not None and writer.next_index >= config.max_episodes:
                break
            parts = FOLDER_FILES if recording.path.is_dir() else ()
            try:
                if (origin := imported.new(recording.path, *parts)) is None:
                    continue
                episode = read_recording(recording, table, config.size, config.frame_skip)
            except (OSError, DamagedRecordingError) as error:
                damaged.append(imported.below(recording.path))
                bar.write(f"skipped {recording.path}: {error}")
                continue
            writer.save(writer.next_index, to_recorded(episode, origin))
            if time.monotonic() - published > PUBLISH_EVERY:
                writer.publish()
                published = time.monotonic()
        bar.close()
    if not writer.finished:
        raise ValueError(f"none of {len(recordings)} recordings is readable, see above")
    result = ImportMineRLResult(
        path=writer.path,
        episodes=len(writer.finished),
        mapped_share=_mapped_share(writer),
        damaged=damaged,
    )
    print(
        f"{result.episodes} episodes, {len(damaged)} damaged recordings skipped, "
        f"{imported.there} were there already\n"
        f"{result.mapped_share:.1%} of the actions map to the table {table.name}; the others "
        f"became the nearest entry\n{result.path}\n"
        f"next: python experiments/train_world_model.py cpu --dataset {result.path}"
    )
    return result


def _mapped_share(writer: DatasetWriter) -> float:
    mapped = total = 0
    for index in writer.finished:
        with h5py.File(writer.path_of(index), "r") as file:
            mapped += int(file["episode"].attrs["mapped_actions"])
            total += int(file["episode"].attrs["total_steps"])
    return mapped / total if total else float("nan")


if __name__ == "__main__":
    run_script(main, ImportMineRLConfig, __doc__, stopped=CONTINUES)
