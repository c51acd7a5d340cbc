"""Recordings of people playing, in files of the real layouts that the tests make themselves."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import minari
import numpy as np
import pytest

from envs.minerl_actions import find_table
from envs.minerl_recordings import (
    DamagedRecordingError,
    Recording,
    find_recordings,
    read_recording,
)
from experiments.import_minerl import ImportMineRLConfig, main

TABLE = find_table("dreamerv3")
SIDE = 64


def grey_of(index: int) -> int:
    """The shade of frame `index` in the videos made here: tells frames apart after compression."""
    return 20 + 5 * index


def write_video(path: Path, frames: int, width: int = SIDE, height: int = SIDE) -> None:
    writer = imageio_ffmpeg.write_frames(str(path), (width, height), fps=20, macro_block_size=1)
    writer.send(None)
    for index in range(frames):
        writer.send(np.full((height, width, 3), grey_of(index), np.uint8))
    writer.close()


def frame_indices(frames: np.ndarray) -> list[int]:
    """Which frames of the video these are."""
    return np.rint((frames.mean((1, 2, 3)) - 20) / 5).astype(int).tolist()


def write_minerl(folder: Path, ticks: int = 10, lead: int = 3, **replaced: Any) -> Path:
    """Make a MineRL 0.4 folder: `lead` frames of video before the first state."""
    folder.mkdir(parents=True)
    write_video(folder / "recording.mp4", ticks + 1 + lead)
    arrays: dict[str, Any] = {
        "reward": np.arange(ticks, dtype=np.float32),
        "action$forward": np.ones(ticks, np.int64),
        "action$attack": np.zeros(ticks, np.int64),
        "action$camera": np.zeros((ticks, 2), np.float32),
        "action$place": np.full(ticks, "none"),
        "observation$compass$angle": np.linspace(-90, 90, ticks + 1),
        "observation$inventory$dirt": np.zeros(ticks + 1, np.int64),
    }
    arrays.update({key: value for key, value in replaced.items() if "$" in key or key == "reward"})
    np.savez_compressed(folder / "rendered.npz", **arrays)
    metadata = {"true_video_frame_count": ticks + 1 + lead, "success": True, "stream_name": "x"}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


def vpt_line(*keys: str, dx: float = 0, dy: float = 0, **fields: Any) -> dict[str, Any]:
    buttons = fields.pop("buttons", [])
    return {
        "mouse": {"dx": dx, "dy": dy, "buttons": buttons, "newButtons": fields.pop("new", [])},
        "keyboard": {"keys": [f"key.keyboard.{key}" for key in keys], "newKeys": [], "chars": ""},
        "hotbar": 0,
        "isGuiOpen": False,
        **fields,
    }


def write_vpt(path: Path, lines: list[dict[str, Any]], frames: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, len(lines) if frames is None else frames, 80, 44)
    path.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def names(indices: np.ndarray) -> list[str]:
    return [TABLE.action_names[i] for i in indices]


def test_minerl_frames_actions_and_rewards_line_up(tmp_path: Path) -> None:
    forward = np.array([1, 0, 1, 0, 1, 0, 1, 0, 1, 0])
    folder = write_minerl(tmp_path / "a", **{"action$forward": forward})
    episode = read_recording(Recording(folder, "minerl"), TABLE)
    # Three frames come before the first state, and the last is the one before it once more.
    assert frame_indices(episode.frames) == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 12]
    assert names(episode.actions) == ["forward", "noop"] * 5 and episode.mapped.all()
    np.testing.assert_array_equal(episode.rewards, np.arange(10))
    assert episode.terminated
    np.testing.assert_allclose(episode.compass_angles, np.linspace(-90, 90, 11), rtol=1e-5)


def test_several_ticks_make_a_step(tmp_path: Path) -> None:
    camera = np.zeros((10, 2), np.float32)
    camera[4:8, 1] = 4.0  # adds up to 16 degrees to the right
    place = np.full(10, "none", dtype="<U8")
    place[9] = "dirt"
    forward = np.array([1, 1, 0, 0, 0, 0, 0, 1, 0, 0])
    folder = write_minerl(
        tmp_path / "a",
        **{"action$camera": camera, "action$place": place, "action$forward": forward},
    )
    episode = read_recording(Recording(folder, "minerl"), TABLE, frame_skip=4)
    assert names(episode.actions) == ["forward", "turn-right", "place-dirt"]
    assert episode.mapped.all()
    assert frame_indices(episode.frames) == [3, 7, 11, 12]
    assert episode.rewards.tolist() == [0 + 1 + 2 + 3, 4 + 5 + 6 + 7, 8 + 9]
    assert len(episode.compass_angles) == 4


def test_vpt_keys_mouse_and_windows(tmp_path: Path) -> None:
    lines = [
        vpt_line("w", "left.control"),
        vpt_line(dx=100.0),  # 15 degrees
        vpt_line(dy=-100.0),
        vpt_line(dx=100.0, isGuiOpen=True),
        vpt_line(buttons=[0], new=[0]),
        vpt_line("w", "space", "q"),
        vpt_line("s"),  # the last line leads nowhere
    ]
    video = write_vpt(tmp_path / "woozy.mp4", lines)
    episode = read_recording(Recording(video, "vpt"), TABLE)
    assert frame_indices(episode.frames) == list(range(7))
    assert episode.frames.shape[1:] == (64, 64, 3)
    expected = ["forward", "turn-right", "turn-up", "noop", "attack", "forward+jump"]
    assert names(episode.actions) == expected
    assert episode.mapped.tolist() == [True, True, True, False, True, True]
    assert not episode.rewards.any() and not episode.terminated


def test_vpt_attack_that_is_stuck_from_the_start(tmp_path: Path) -> None:
    lines = [
        vpt_line(buttons=[0], new=[0]),
        vpt_line(buttons=[0]),
        vpt_line(buttons=[0], new=[0]),
        vpt_line(buttons=[0]),
        vpt_line(),
    ]
    video = write_vpt(tmp_path / "a.mp4", lines)
    episode = read_recording(Recording(video, "vpt"), TABLE)
    assert names(episode.actions) == ["noop", "noop", "attack", "attack"]


def damage_video(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def test_damaged_recordings_say_what_is_wrong(tmp_path: Path) -> None:
    def reason(recording: Recording) -> str:
        with pytest.raises(DamagedRecordingError) as caught:
            read_recording(recording, TABLE)
        return str(caught.value)

    folder = write_minerl(tmp_path / "cut")
    damage_video(folder / "recording.mp4")
    assert reason(Recording(folder, "minerl"))
    folder = write_minerl(tmp_path / "short")
    write_video(folder / "recording.mp4", 5)
    assert "ends before" in reason(Recording(folder, "minerl"))
    folder = write_minerl(tmp_path / "bytes")
    (folder / "rendered.npz").write_bytes(b"PK\3\4 not a zip")
    assert reason(Recording(folder, "minerl"))
    folder = write_minerl(tmp_path / "gone")
    (folder / "rendered.npz").unlink()
    assert "no rendered.npz" in reason(Recording(folder, "minerl"))
    folder = write_minerl(tmp_path / "uneven", **{"action$forward": np.ones(4)})
    assert "do not go with" in reason(Recording(folder, "minerl"))
    folder = write_minerl(tmp_path / "nan", reward=np.full(10, np.nan))
    assert "finite" in reason(Recording(folder, "minerl"))
    folder = write_minerl(tmp_path / "obf", **{"action$vector": np.zeros((10, 64))})
    assert "obfuscated" in reason(Recording(folder, "minerl"))
    video = write_vpt(tmp_path / "half.mp4", [vpt_line()] * 20, frames=6)
    assert "ends at frame 5 of 19" in reason(Recording(video, "vpt"))
    video = write_vpt(tmp_path / "text.mp4", [vpt_line()] * 3)
    video.with_suffix(".jsonl").write_text('{"mouse": ')
    assert "JSON" in reason(Recording(video, "vpt"))
    video = write_vpt(tmp_path / "silent.mp4", [vpt_line()] * 3)
    video.with_suffix(".jsonl").unlink()
    assert "no silent.jsonl" in reason(Recording(video, "vpt"))


def test_import_makes_a_dataset_and_continues_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    write_minerl(source / "navigate" / "v3_a", ticks=8)
    write_minerl(source / "navigate" / "v3_b", ticks=6)
    write_vpt(source / "vpt" / "c.mp4", [vpt_line("w", buttons=[0])] * 5)
    damage_video(write_minerl(source / "navigate" / "v3_bad") / "recording.mp4")
    assert len(find_recordings(source)) == 4
    config = ImportMineRLConfig(
        source=source, dataset="human/mixed-v0", datasets_root=tmp_path / "sets", frame_skip=2
    )
    first = main(dataclasses.replace(config, max_episodes=1))
    assert first.episodes == 1
    result = main(config)
    assert (result.episodes, result.damaged) == (3, ["navigate/v3_bad"])
    assert result.mapped_share == pytest.approx(7 / 9)  # forward+attack is not in the table
    output = capsys.readouterr()
    assert "77.8%" in output.out and "v3_bad" in output.out + output.err
    (source / "navigate" / "v3_a" / "notes").mkdir()  # what is not of a recording does not count
    (source / "navigate" / "v3_a" / "notes.txt").touch()
    assert main(config).episodes == 3
    assert "3 were there already" in capsys.readouterr().out

    dataset = minari.MinariDataset(result.path / "data")
    episodes = list(dataset.iterate_episodes())
    assert [len(episode) for episode in episodes] == [4, 3, 2]
    assert [bool(episode.terminations[-1]) for episode in episodes] == [True, True, False]
    assert [bool(episode.truncations[-1]) for episode in episodes] == [False, False, True]
    assert episodes[0].observations.shape == (5, 64, 64, 3)
    assert episodes[0].rewards.sum() == sum(range(8))
    assert all(episode.actions.max() < len(TABLE) for episode in episodes)


def test_import_without_anything_to_import(tmp_path: Path) -> None:
    config = ImportMineRLConfig(source=tmp_path, dataset="a-v0", datasets_root=tmp_path / "sets")
    with pytest.raises(FileNotFoundError, match="no recordings"):
        main(config)
    (tmp_path / "b.mp4").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="none of 1 recordings"):
        main(config)
    with pytest.raises(ValueError, match="action table"):
        main(dataclasses.replace(config, actions="all"))
