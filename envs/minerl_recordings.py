"""Reads recordings of people playing Minecraft: MineRL 0.4 folders, and VPT or BASALT videos.

    <anything>/recording.mp4, rendered.npz, metadata.json    MineRL 0.4 (minerl.data.download)
    <anything>.mp4, <same name>.jsonl                        VPT contractor data, BASALT 2022

Neither needs the `minerl` client or Minecraft. Videos are decoded as a stream and scaled on the
way, so memory holds one episode at its final size. Actions become indices of a table of
`envs.minerl_actions` by `ActionTable.nearest`. When several ticks make one step, a key counts as
pressed if it was in at least half of them, turns and rewards are added up, and the first item
placed, crafted or equipped counts.

MineRL: frames are aligned as in the package's own loader: the last `len(reward) + 1` frames of the
video belong to the states, and the very last is replaced by the one before it. The episode is
terminated if its metadata says "success". VPT: line i holds what was pressed at frame i; there are
no rewards, so these are 0 and the episode is truncated; while a window is open the mouse moves a
cursor, not the view, so such steps count as not mapped; an attack button that is down from the
first frame on is stuck until it is pressed anew, as the VPT loader has it.
"""

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import imageio_ffmpeg
import numpy as np

from envs.minerl_actions import ITEM_VERBS, KEYS, ActionTable

DEGREES_PER_PIXEL = 360.0 / 2400.0
VPT_KEYS = {
    "key.keyboard.w": "forward",
    "key.keyboard.s": "back",
    "key.keyboard.a": "left",
    "key.keyboard.d": "right",
    "key.keyboard.space": "jump",
    "key.keyboard.left.shift": "sneak",
    "key.keyboard.left.control": "sprint",
}
VPT_BUTTONS = {0: "attack", 1: "use"}
LEAST_VIDEO = 0.9  # of the lines of actions; less means that the video was cut off


FOLDER_FILES = ("recording.mp4", "rendered.npz", "metadata.json")
"""Of a recording of MineRL 0.4."""


class DamagedRecordingError(ValueError):
    """A recording can not be read; the text says why."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """One episode on disk."""

    path: Path
    """The folder (MineRL) or the video (VPT)."""
    kind: Literal["minerl", "vpt"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HumanEpisode:
    """One episode as it goes into a dataset; step t leads from frame t to frame t + 1."""

    frames: np.ndarray
    """(n + 1, size, size, 3) uint8."""
    actions: np.ndarray
    """(n,) int64, indices of the action table."""
    mapped: np.ndarray
    """(n,) bool, whether the table could say what was done."""
    rewards: np.ndarray
    """(n,) float64."""
    terminated: bool
    """Whether the last step ended the task."""
    compass_angles: np.ndarray | None
    """(n + 1,) float32 degrees, where recorded."""


def find_recordings(folder: Path) -> list[Recording]:
    """List the recordings in a folder and its subfolders, by path, damaged ones included."""
    found = []
    for video in sorted(folder.rglob("*.mp4")):
        if video.name == "recording.mp4" and not video.with_suffix(".jsonl").exists():
            found.append(Recording(video.parent, "minerl"))
        else:
            found.append(Recording(video, "vpt"))
    return found


def read_recording(
    recording: Recording, table: ActionTable, size: int = 64, frame_skip: int = 1
) -> HumanEpisode:
    """Read one episode.

    Args:
        recording: Where it is.
        table: Action set to translate to.
        size: Side of the frames.
        frame_skip: Ticks (1/20 s) per step.

    Raises:
        DamagedRecordingError: Something is missing, unreadable or does not fit together.
        ValueError: `frame_skip` or `size` is below 1.
    """
    if frame_skip < 1 or size < 1:
        raise ValueError(f"frame_skip and size must be at least 1, got {frame_skip} and {size}")
    read = _read_minerl if recording.kind == "minerl" else _read_vpt
    try:
        return read(recording.path, table, size, frame_skip)
    except DamagedRecordingError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error,
            AttributeError, RuntimeError) as error:  # fmt: skip
        raise DamagedRecordingError(f"{type(error).__name__}: {error}") from error


def _read_minerl(path: Path, table: ActionTable, size: int, frame_skip: int) -> HumanEpisode:
    for name in ("rendered.npz", "metadata.json"):
        if not (path / name).is_file():
            raise DamagedRecordingError(f"there is no {name}")
    metadata = json.loads((path / "metadata.json").read_text())
    with np.load(path / "rendered.npz", allow_pickle=False) as file:
        wanted = ("reward", "action$", "observation$compass")
        arrays = {key: file[key] for key in file.files if key.startswith(wanted)}
    if "action$vector" in arrays:
        raise DamagedRecordingError("its actions are obfuscated vectors (a VectorObf data set)")
    rewards = np.asarray(arrays["reward"], np.float64)
    ticks = len(rewards)
    if ticks < 1 or not np.isfinite(rewards).all():
        raise DamagedRecordingError(f"{ticks} rewards, all finite: {np.isfinite(rewards).all()}")
    columns = {key.split("$", 1)[1]: values for key, values in arrays.items()
               if key.startswith("action$")}  # fmt: skip
    if "camera" not in columns or any(len(values) != ticks for values in columns.values()):
        lengths = {key: len(values) for key, values in columns.items()}
        raise DamagedRecordingError(f"{ticks} rewards do not go with actions {lengths}")
    if not np.isfinite(columns["camera"]).all():
        raise DamagedRecordingError("a camera angle is not finite")
    natives = [{key: values[t] for key, values in columns.items()} for t in range(ticks)]

    lead = int(metadata["true_video_frame_count"]) - (ticks + 1)
    if lead < 0:
        raise DamagedRecordingError(f"the video has {lead + ticks + 1} frames for {ticks} actions")
    # All but the last frame, which the package's loader replaces by the one before it.
    kept = {lead + t for t in _boundaries(ticks, frame_skip) if t < ticks} | {lead + ticks - 1}
    frames = dict(_decode(path / "recording.mp4", size, kept))
    if len(frames) < len(kept):
        raise DamagedRecordingError(f"the video ends before frame {max(kept) + 1}")
    frames[lead + ticks] = frames[lead + ticks - 1]
    boundaries = _boundaries(ticks, frame_skip)
    angles = arrays.get("observation$compass$angle", arrays.get("observation$compassAngle"))
    if angles is not None and len(angles) <= ticks:
        raise DamagedRecordingError(f"{len(angles)} compass angles for {ticks} actions")
    return _assemble(
        frames=[frames[lead + t] for t in boundaries],
        steps=_group(natives, frame_skip),
        rewards=np.add.reduceat(rewards, boundaries[:-1]),
        terminated=bool(metadata.get("success", False)),
        compass_angles=None if angles is None else np.asarray(angles)[boundaries],
        table=table,
    )


def _read_vpt(path: Path, table: ActionTable, size: int, frame_skip: int) -> HumanEpisode:
    lines = path.with_suffix(".jsonl")
    if not lines.is_file():
        raise DamagedRecordingError(f"there is no {lines.name}")
    with open(lines, encoding="utf-8") as file:
        records = [json.loads(line) for line in file if line.strip()]
    natives, windows, stuck = [], [], False
    for i, record in enumerate(records):
        fresh = record["mouse"].get("newButtons", [])
        stuck = (fresh == [0]) if i == 0 else stuck and 0 not in fresh
        window = bool(record.get("isGuiOpen", False))
        natives.append(_vpt_action(record, stuck, window))
        windows.append(window)
    kept = set(_boundaries(len(records) - 1, frame_skip)) if len(records) > 1 else {0}
    frames = dict(_decode(path, size, kept))
    ticks = max(frames, default=0)
    if ticks < 1 or ticks < LEAST_VIDEO * max(kept):
        raise DamagedRecordingError(f"the video ends at frame {ticks} of {max(kept)}")
    boundaries = [t for t in sorted(kept) if t <= ticks]
    episode = _assemble(
        frames=[frames[t] for t in boundaries],
        steps=_group(natives[:ticks], frame_skip),
        rewards=np.zeros(len(boundaries) - 1),
        terminated=False,
        compass_angles=None,
        table=table,
    )
    in_window = np.maximum.reduceat(np.array(windows[:ticks]), boundaries[:-1])
    return dataclasses.replace(episode, mapped=episode.mapped & ~in_window)


def _vpt_action(record: Mapping[str, Any], stuck: bool, window: bool) -> dict[str, Any]:
    mouse = record["mouse"]
    pressed = {VPT_KEYS.get(key) for key in record["keyboard"]["keys"]}
    pressed |= {VPT_BUTTONS.get(button) for button in mouse["buttons"] if button or not stuck}
    action: dict[str, Any] = {key: 1 for key in pressed if key is not None}
    turn = np.array([mouse["dy"], mouse["dx"]], np.float64) * DEGREES_PER_PIXEL
    if not np.isfinite(turn).all():
        raise DamagedRecordingError(f"the mouse moves by {mouse['dx']}, {mouse['dy']}")
    # The recorder now and then reports jumps of more than half a circle, which nobody makes.
    action["camera"] = np.zeros(2) if window else np.where(np.abs(turn) > 180, 0.0, turn)
    return action


def _boundaries(ticks: int, frame_skip: int) -> list[int]:
    """The frames between steps: 0, every `frame_skip`-th, and the last."""
    return [*range(0, ticks, frame_skip), ticks]


def _group(natives: Sequence[Mapping[str, Any]], frame_skip: int) -> list[dict[str, Any]]:
    """Merge the ticks of each step into one native action."""
    steps = []
    for start in range(0, len(natives), frame_skip):
        ticks = natives[start : start + frame_skip]
        step: dict[str, Any] = {
            key: int(2 * sum(int(tick.get(key, 0)) for tick in ticks) >= len(ticks)) for key in KEYS
        }
        step["camera"] = np.sum([np.asarray(tick["camera"], float) for tick in ticks], axis=0)
        for verb in ITEM_VERBS:
            used = [str(tick.get(verb, "none")) for tick in ticks]
            step[verb] = next((item for item in used if item not in ("none", "other", "0")), "none")
        steps.append(step)
    return steps


def _assemble(
    frames: list[np.ndarray],
    steps: list[dict[str, Any]],
    rewards: np.ndarray,
    terminated: bool,
    compass_angles: np.ndarray | None,
    table: ActionTable,
) -> HumanEpisode:
    actions, mapped = table.nearest(steps)
    return HumanEpisode(
        frames=np.stack(frames),
        actions=actions,
        mapped=mapped,
        rewards=rewards,
        terminated=terminated,
        compass_angles=None if compass_angles is None else compass_angles.astype(np.float32),
    )


def _decode(path: Path, size: int, kept: set[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Decode a video up to the last frame asked for, yielding those asked for with their index.

    Raises:
        DamagedRecordingError: It is no video, or damaged before the last frame asked for.
    """
    if not path.is_file():
        raise DamagedRecordingError(f"there is no {path.name}")
    # Passthrough: every stored frame once, none repeated or dropped to keep a frame rate.
    options = ["-fps_mode", "passthrough", "-s", f"{size}x{size}", "-sws_flags", "area"]
    reader = imageio_ffmpeg.read_frames(str(path), output_params=options)
    try:
        next(reader)  # the header
        for index, frame in enumerate(reader):
            if index in kept:
                yield index, np.frombuffer(frame, np.uint8).reshape(size, size, 3)
            if index >= max(kept):
                return
    except (OSError, RuntimeError, StopIteration) as error:
        raise DamagedRecordingError(f"the video can not be decoded: {str(error)[-200:]}") from error
    finally:
        reader.close()
