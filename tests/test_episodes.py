"""Episodes survive the way to the disk and back, and what is damaged is never trained on."""

import errno
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from worldsim import dataset_writer
from worldsim.dataset_writer import DatasetWriter
from worldsim.episodes import (
    DamagedEpisodeError,
    DamagedEpisodeWarning,
    EpisodeDataset,
)
from worldsim.recording import EpisodeRecorder, RecordedEpisode

SHAPE = (8, 6, 3)
NUM_ACTIONS = 4
IMAGES = gymnasium.spaces.Box(0, 255, SHAPE, np.uint8)
ACTIONS = gymnasium.spaces.Discrete(NUM_ACTIONS)


def make_episode(num_steps: int, seed: int, terminated: bool = False) -> RecordedEpisode:
    """An episode whose frame t shows its seed and t; the reward of step t is t + 1."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (num_steps + 1, *SHAPE), dtype=np.uint8)
    frames[:, 0, 0, 0] = seed
    frames[:, 0, 0, 1] = np.arange(num_steps + 1) % 256
    ends = np.zeros(num_steps, bool)
    ends[-1] = True
    return RecordedEpisode(
        observations=frames,
        actions=rng.integers(0, NUM_ACTIONS, num_steps),
        rewards=np.arange(1, num_steps + 1, dtype=np.float64),
        terminations=ends & terminated,
        truncations=ends & (not terminated),
        infos={"position": np.arange(num_steps + 1, dtype=np.float32)},
        seed=seed,
        metadata={"policy": "test", "maze_layout": np.eye(3, dtype=np.uint8)},
    )


def write_dataset(
    root: Path, episodes: list[RecordedEpisode], name: str = "test/episodes-v0"
) -> Path:
    """Write a dataset and return its folder."""
    with DatasetWriter(name, IMAGES, ACTIONS, {"test": 1}, root=root) as writer:
        for index, episode in enumerate(episodes):
            writer.save(index, episode)
        return writer.path


def episode_file(dataset: Path, index: int) -> Path:
    return dataset / "data" / "episodes" / f"episode_{index:06d}.hdf5"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("actions", 9, r"action 9 of step 2 is not one of 0 to"),
        ("rewards", np.nan, "the reward of step 2 is nan"),
        ("terminations", 1.0, "it goes on after step 2, which ends it"),
    ],
)
def test_what_is_wrong_in_a_recording_is_told_and_flags_may_be_numbers(
    tmp_path: Path, field: str, value: float, message: str
) -> None:
    path = write_dataset(tmp_path, [make_episode(5, seed=0), make_episode(6, seed=1)])
    with h5py.File(episode_file(path, 1), "r+") as file:
        for name in ("episode/terminations", "episode/truncations"):
            numbers = np.asarray(file[name], np.float64)
            del file[name]
            file[name] = numbers
    assert len(EpisodeDataset(path)) == 2
    with h5py.File(episode_file(path, 1), "r+") as file:
        file[f"episode/{field}"][2] = value
    with pytest.warns(DamagedEpisodeWarning, match=f"episode 1 of .*{message}"):
        assert len(EpisodeDataset(path)) == 1


def test_round_trip_keeps_everything_in_arrival_order(tmp_path: Path) -> None:
    recorded = make_episode(20, seed=3, terminated=True)
    dataset = EpisodeDataset(write_dataset(tmp_path, [make_episode(5, seed=1), recorded]))
    assert len(dataset) == 2
    assert dataset.frame_shape == SHAPE
    assert dataset.num_actions == NUM_ACTIONS
    assert dataset.num_frames == 6 + 21
    np.testing.assert_array_equal(dataset.returns, [15, 210])

    episode = dataset.episode(1)
    np.testing.assert_array_equal(episode.frames, recorded.observations)
    assert episode.actions[0] == NUM_ACTIONS
    np.testing.assert_array_equal(episode.actions[1:], recorded.actions)
    assert episode.rewards[0] == 0
    np.testing.assert_array_equal(episode.rewards[1:], recorded.rewards)
    assert episode.terminated.tolist() == [False] * 20 + [True]
    np.testing.assert_array_equal(episode.infos["position"], np.arange(21))
    assert episode.metadata["seed"] == 3
    np.testing.assert_array_equal(episode.metadata["maze_layout"], np.eye(3))
    assert (episode.frames.dtype, episode.actions.dtype) == (np.uint8, np.int64)
    assert (episode.rewards.dtype, episode.terminated.dtype) == (np.float32, np.bool_)


def test_part_of_an_episode_equals_the_slice_of_all_of_it(tmp_path: Path) -> None:
    dataset = EpisodeDataset(write_dataset(tmp_path, [make_episode(90, seed=0)]))
    whole, part = dataset.episode(0), dataset.episode(0, 30, 75)
    for field in ("frames", "actions", "rewards", "terminated"):
        np.testing.assert_array_equal(getattr(part, field), getattr(whole, field)[30:75])
    np.testing.assert_array_equal(part.infos["position"], whole.infos["position"][30:75])
    alone = dataset.infos(0, 30, 75)
    assert alone.keys() == part.infos.keys()
    np.testing.assert_array_equal(alone["position"], part.infos["position"])
    with pytest.raises(IndexError, match="frames 80 to 92"):
        dataset.episode(0, 80, 92)


def test_segments_are_stretches_of_episodes(tmp_path: Path) -> None:
    lengths = [9, 40, 17, 12]
    recorded = [make_episode(n, seed=i, terminated=True) for i, n in enumerate(lengths)]
    dataset = EpisodeDataset(write_dataset(tmp_path, recorded))
    segments = dataset.sample_segments(200, 12, np.random.default_rng(0))
    assert segments.frames.shape == (200, 12, *SHAPE)
    assert len(segments) == 200
    for i in range(200):
        start = int(segments.starts[i])
        episode = dataset.episode(int(segments.episodes[i]), start, start + 12)
        for field in ("frames", "actions", "rewards", "terminated"):
            np.testing.assert_array_equal(getattr(segments, field)[i], getattr(episode, field))
        # One episode, consecutive frames, and an end only at the end.
        assert len(np.unique(segments.frames[i, :, 0, 0, 0])) == 1
        assert (np.diff(segments.frames[i, :, 0, 0, 1].astype(int)) == 1).all()
        assert not segments.terminated[i, :-1].any()
        assert (segments.actions[i, 0] == NUM_ACTIONS) == (start == 0)
        assert (segments.actions[i, 1:] < NUM_ACTIONS).all()
    assert set(segments.episodes) == {1, 2, 3}  # the first has only 10 frames


def test_segments_begin_uniformly(tmp_path: Path) -> None:
    recorded = [make_episode(n, seed=i) for i, n in enumerate([10, 20, 5])]
    dataset = EpisodeDataset(write_dataset(tmp_path, recorded))
    segments = dataset.sample_segments(2500, 4, np.random.default_rng(1))
    starts = [(e, s) for e, n in enumerate([11, 21, 6]) for s in range(n - 3)]
    drawn = list(zip(segments.episodes.tolist(), segments.starts.tolist(), strict=True))
    counts = np.array([drawn.count(start) for start in starts])
    assert counts.sum() == 2500
    expected = 2500 / len(starts)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < len(starts) + 5 * np.sqrt(2 * len(starts))


def test_same_generator_draws_the_same_segments(tmp_path: Path) -> None:
    dataset = EpisodeDataset(write_dataset(tmp_path, [make_episode(30, seed=i) for i in range(3)]))
    first = dataset.sample_segments(5, 7, np.random.default_rng(2))
    again = pickle.loads(pickle.dumps(dataset)).sample_segments(5, 7, np.random.default_rng(2))
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(first.starts, again.starts)


def test_too_long_segments_are_refused(tmp_path: Path) -> None:
    dataset = EpisodeDataset(write_dataset(tmp_path, [make_episode(10, seed=0)]))
    assert len(dataset.sample_segments(1, 11, np.random.default_rng(0))) == 1
    with pytest.raises(ValueError, match="no episode has 12 frames"):
        dataset.sample_segments(1, 12, np.random.default_rng(0))


def test_split_and_select(tmp_path: Path) -> None:
    dataset = EpisodeDataset(write_dataset(tmp_path, [make_episode(5, seed=i) for i in range(6)]))
    train, validation = dataset.split(2, seed=1)
    seeds = [[int(e.metadata["seed"]) for e in part] for part in (train, validation)]
    assert sorted(seeds[0] + seeds[1]) == list(range(6))
    assert [len(s) for s in seeds] == [4, 2]
    assert [int(e.metadata["seed"]) for e in dataset.select([4, 2])] == [4, 2]
    with pytest.raises(ValueError, match="between 1 and 5"):
        dataset.split(6)


def test_minari_reads_what_we_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    recorded = [make_episode(5, seed=1), make_episode(7, seed=2)]
    write_dataset(tmp_path, recorded)
    assert "test/episodes-v0" in minari.list_local_datasets()
    dataset = minari.load_dataset("test/episodes-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (2, 12)
    assert dataset.observation_space == IMAGES
    assert dataset.action_space == ACTIONS
    for found, expected in zip(dataset, recorded, strict=True):
        np.testing.assert_array_equal(found.observations, expected.observations)
        np.testing.assert_array_equal(found.actions, expected.actions)
        np.testing.assert_array_equal(found.rewards, expected.rewards)
        np.testing.assert_array_equal(found.truncations, expected.truncations)
        np.testing.assert_array_equal(found.infos["position"], expected.infos["position"])
    assert len(EpisodeDataset("test/episodes-v0")) == 2


@pytest.mark.parametrize("dict_observations", [False, True])
@pytest.mark.parametrize("jpeg", [False, True])
def test_datasets_of_others_are_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dict_observations: bool, jpeg: bool
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    # Smooth pictures, so that JPEG changes them little; actions that do not begin at 0.
    ramp = np.linspace(0, 200, 32, dtype=np.uint8)
    frames = np.stack([np.broadcast_to(ramp[:, None, None] + t, (32, 40, 3)) for t in range(10)])
    image = gymnasium.spaces.Box(0, 255, (32, 40, 3), np.uint8)
    space: gymnasium.Space = image
    observations: object = list(frames)
    if dict_observations:
        vector = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        space = gymnasium.spaces.Dict({"camera": image, "vector": vector})
        observations = {"camera": list(frames), "vector": [np.zeros(2, np.float32)] * 10}
    actions = [2, 3, 4, 2, 3, 4, 2, 3, 4]
    buffer = EpisodeBuffer(
        observations=observations,  # type: ignore[arg-type]
        actions=actions,
        rewards=[1.0] * 9,
        terminations=[False] * 8 + [True],
        truncations=[False] * 9,
        infos={"nested": {"x": list(range(10))}},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari asks for author and the like
        minari.create_dataset_from_buffers(
            "other-v0",
            [buffer, buffer],
            observation_space=space,
            action_space=gymnasium.spaces.Discrete(3, start=2),
            jpeg_encoding=jpeg,
        )
    dataset = EpisodeDataset("other-v0")
    assert (len(dataset), dataset.num_actions, dataset.frame_shape) == (2, 3, (32, 40, 3))
    episode = dataset.episode(1, 2, 9)
    assert episode.frames.shape == (7, 32, 40, 3)
    assert np.abs(episode.frames.astype(int) - frames[2:9]).max() <= (4 if jpeg else 0)
    assert episode.actions.tolist() == [1, 2, 0, 1, 2, 0, 1]
    assert episode.infos["nested/x"].tolist() == list(range(2, 9))
    assert dataset.episode(0).terminated.tolist() == [False] * 9 + [True]


def replace(group: h5py.Group, key: str, value: np.ndarray) -> None:
    del group[key]
    group[key] = value


def cut_all(group: h5py.Group) -> None:
    for key in ("observations", "actions", "rewards", "terminations", "truncations"):
        replace(group, key, group[key][:-3])


DAMAGES: dict[str, Callable[[h5py.Group], None]] = {
    "a missing key": lambda g: g.__delitem__("rewards"),
    "missing frames": lambda g: g.__delitem__("observations"),
    "too few frames": lambda g: replace(g, "observations", g["observations"][:-1]),
    "too few actions": lambda g: replace(g, "actions", g["actions"][:-1]),
    "cut everywhere alike": cut_all,
    "frames of another type": lambda g: replace(
        g, "observations", g["observations"][()].astype(np.float32)
    ),
    "frames of another shape": lambda g: replace(g, "observations", g["observations"][:, :4]),
    "actions of another type": lambda g: replace(g, "actions", g["actions"][()] + 0.5),
    "an unknown action": lambda g: replace(g, "actions", g["actions"][()] + NUM_ACTIONS),
    "a reward that is no number": lambda g: replace(g, "rewards", g["rewards"][()] * np.nan),
    "an end before the end": lambda g: replace(g, "terminations", ~g["terminations"][()]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_episodes_are_named_and_left_out(tmp_path: Path, damage: str) -> None:
    path = write_dataset(tmp_path, [make_episode(40, seed=i) for i in range(3)])
    with h5py.File(episode_file(path, 1), "r+") as file:
        DAMAGES[damage](file["episode"])
    with pytest.warns(DamagedEpisodeWarning, match="episode 1 of .* is damaged"):
        dataset = EpisodeDataset(path)
    assert [int(episode.metadata["seed"]) for episode in dataset] == [0, 2]
    segments = dataset.sample_segments(50, 10, np.random.default_rng(0))
    assert set(segments.frames[:, 0, 0, 0, 0]) == {0, 2}


@pytest.mark.parametrize("how", ["truncated", "emptied", "deleted"])
def test_damaged_files_are_named_and_left_out(tmp_path: Path, how: str) -> None:
    path = write_dataset(tmp_path, [make_episode(40, seed=i) for i in range(3)])
    file = episode_file(path, 1)
    if how == "deleted":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size // 2 if how == "truncated" else 0)
    with pytest.warns(DamagedEpisodeWarning, match="episode 1 of .* is damaged"):
        dataset = EpisodeDataset(path)
    assert [int(episode.metadata["seed"]) for episode in dataset] == [0, 2]


def damage_chunk(path: Path, index: int) -> None:
    with h5py.File(path, "r") as file:
        chunk = file["episode/observations"].id.get_chunk_info(index)
    with open(path, "r+b") as raw:
        raw.seek(chunk.byte_offset + chunk.size // 2)
        raw.write(b"\0\0\0\0")


def test_unreadable_frames_put_their_episode_out(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, [make_episode(200, seed=i) for i in range(3)])
    damage_chunk(episode_file(path, 1), 3)
    dataset = EpisodeDataset(path)  # nothing shows yet
    dataset.episode(1, 0, 90)  # the chunk holds frames 96 to 128
    with pytest.raises(DamagedEpisodeError, match="episode 1 of"):
        dataset.episode(1)
    with pytest.warns(DamagedEpisodeWarning, match="episode 1 of"):
        segments = dataset.sample_segments(100, 60, np.random.default_rng(0))
    for i in range(100):
        if segments.episodes[i] == 1:
            assert segments.starts[i] + 60 <= 96 or segments.starts[i] >= 128
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it has been named; now it stays out
        assert 1 not in dataset.sample_segments(100, 60, np.random.default_rng(1)).episodes
        assert [int(episode.metadata["seed"]) for episode in dataset] == [0, 2]
        assert [int(e.metadata["seed"]) for e in dataset.select([2, 1])] == [2]


def test_what_can_be_read_is_told_by_reading_it(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, [make_episode(200, seed=i) for i in range(3)])
    assert EpisodeDataset(path).readable().names == EpisodeDataset(path).names
    damage_chunk(episode_file(path, 1), 3)
    with pytest.warns(DamagedEpisodeWarning, match="episode 1 of"):
        readable = EpisodeDataset(path).readable()
    assert [int(episode.metadata["seed"]) for episode in readable] == [0, 2]


def test_all_frames_unreadable_is_an_error(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, [make_episode(20, seed=0)])
    damage_chunk(episode_file(path, 0), 0)
    dataset = EpisodeDataset(path)
    with (
        pytest.warns(DamagedEpisodeWarning),
        pytest.raises(ValueError, match=r"no episode has 5 frames: .* 1 damaged"),
    ):
        dataset.sample_segments(1, 5, np.random.default_rng(0))


def test_dataset_damaged_as_a_whole_is_an_error(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, [make_episode(5, seed=0)])
    main_file = path / "data" / "main_data.hdf5"
    main_file.write_bytes(b"not HDF5")
    with pytest.raises(OSError, match=r"main_data.hdf5 is damaged as a whole"):
        EpisodeDataset(path)


def test_no_readable_episode_is_an_error(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, [make_episode(5, seed=0)])
    episode_file(path, 0).unlink()
    with (
        pytest.warns(DamagedEpisodeWarning),
        pytest.raises(ValueError, match="no readable episode"),
    ):
        EpisodeDataset(path)


def write_empty(root: Path, observations: gymnasium.Space, actions: gymnasium.Space) -> Path:
    with DatasetWriter("empty-v0", observations, actions, {}, root=root) as writer:
        return writer.path


def test_unsuitable_spaces_are_named(tmp_path: Path) -> None:
    vector = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    with pytest.raises(ValueError, match=r"actions Box.*needed is a Discrete"):
        EpisodeDataset(write_empty(tmp_path / "a", IMAGES, vector))
    with pytest.raises(ValueError, match=r"observations Box.*needed are images"):
        EpisodeDataset(write_empty(tmp_path / "b", vector, ACTIONS))
    channels_first = gymnasium.spaces.Box(0, 255, (3, 64, 64), np.uint8)
    with pytest.raises(ValueError, match=r"needed are images.*height, width, channels"):
        EpisodeDataset(write_empty(tmp_path / "c", channels_first, ACTIONS))
    two = gymnasium.spaces.Dict({"left": IMAGES, "right": IMAGES})
    path = write_empty(tmp_path / "d", two, ACTIONS)
    with pytest.raises(ValueError, match=r"several images.*left, right"):
        EpisodeDataset(path)
    with pytest.raises(ValueError, match="no image 'middle'"):
        EpisodeDataset(path, image_key="middle")


def test_datasets_must_fit_together(tmp_path: Path) -> None:
    first = write_dataset(tmp_path, [make_episode(5, seed=0)], "first-v0")
    second = write_dataset(tmp_path, [make_episode(6, seed=1)], "second-v0")
    assert len(EpisodeDataset([first, second])) == 2
    assert EpisodeDataset(["first-v0", "second-v0"], root=tmp_path).num_frames == 13
    space = gymnasium.spaces.Discrete(9)
    with DatasetWriter("third-v0", IMAGES, space, {}, root=tmp_path) as writer:
        writer.save(0, make_episode(5, seed=0))
    with pytest.raises(ValueError, match=r"first-v0.* 4 actions, .*third-v0.* 9"):
        EpisodeDataset([first, writer.path])


def test_unknown_dataset_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    write_dataset(tmp_path, [make_episode(5, seed=0)])
    with pytest.raises(FileNotFoundError, match=r"no dataset 'nowhere-v0'.*test/episodes-v0"):
        EpisodeDataset("nowhere-v0")
    with pytest.raises(FileNotFoundError, match=r"no dataset 'nowhere-v0'.*test/episodes-v0"):
        EpisodeDataset("nowhere-v0", tmp_path)
    # Whatever else is there, such as datasets of other formats.
    (tmp_path / "pusht/data").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no dataset 'nowhere-v0'.*test/episodes-v0"):
        EpisodeDataset("nowhere-v0")


def test_writer_shows_only_the_unbroken_run(tmp_path: Path) -> None:
    with DatasetWriter("gap-v0", IMAGES, ACTIONS, {}, root=tmp_path) as writer:
        writer.save(0, make_episode(5, seed=0))
        writer.save(2, make_episode(5, seed=2))
        assert writer.publish() == 1
        assert len(EpisodeDataset(writer.path)) == 1
    with DatasetWriter("gap-v0", IMAGES, ACTIONS, {}, root=tmp_path) as writer:
        assert writer.finished == {0, 2}
        assert writer.next_index == 1
        writer.save(1, make_episode(5, seed=1))
    dataset = EpisodeDataset(writer.path)
    assert [int(episode.metadata["seed"]) for episode in dataset] == [0, 1, 2]


def test_writer_makes_damaged_episodes_anew(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, [make_episode(40, seed=i) for i in range(3)])
    os.truncate(episode_file(path, 1), 1000)
    leftover = path / "data" / "episodes" / ".episode_000007.hdf5.1.tmp"
    leftover.touch()
    with (
        pytest.warns(UserWarning, match=r"episode_000001.hdf5 is damaged"),
        DatasetWriter("test/episodes-v0", IMAGES, ACTIONS, {"test": 1}, root=tmp_path) as writer,
    ):
        assert writer.finished == {0, 2}
    assert not leftover.exists()
    # Until it is, the others stay visible.
    with pytest.warns(DamagedEpisodeWarning, match="episode 1 of"):
        left = EpisodeDataset(path).readable()
    assert [int(episode.metadata["seed"]) for episode in left] == [0, 2]
    with DatasetWriter("test/episodes-v0", IMAGES, ACTIONS, {"test": 1}, root=tmp_path) as writer:
        writer.save(1, make_episode(40, seed=1))
    assert len(EpisodeDataset(path)) == 3
    assert episode_file(path, 1).with_suffix(".damaged").stat().st_size == 1000


def test_infos_that_no_file_can_hold_are_left_out(tmp_path: Path) -> None:
    class OnGpu:
        def __array__(self, *_: object) -> np.ndarray:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

    info = {"a": 1.0, "a/b": 2.0, 3: 1.0, "": 1.0, "/c": 1.0, "gpu": OnGpu(), "kept": 4.0}
    frame = np.zeros(SHAPE, np.uint8)
    recorder = EpisodeRecorder(frame, info, seed=0)
    recorder.step(1, frame, 0.0, False, True, info)
    with DatasetWriter("infos-v0", IMAGES, ACTIONS, {}, root=tmp_path) as writer:
        writer.save(0, recorder.finish())
    episode = EpisodeDataset(writer.path).episode(0)
    assert episode.infos["kept"].tolist() == [4.0, 4.0] and not {"a", "c"} & episode.infos.keys()


def test_writer_refuses_other_settings_and_company(tmp_path: Path) -> None:
    arguments = ("test/episodes-v0", IMAGES, ACTIONS)
    with DatasetWriter(*arguments, {"test": 0}, root=tmp_path):
        pass  # without episodes, nothing is settled
    with DatasetWriter(*arguments, {"test": 1}, root=tmp_path) as writer:
        writer.save(0, make_episode(5, seed=0))
        with pytest.raises(RuntimeError, match="being written by another process"):
            DatasetWriter(*arguments, {"test": 1}, root=tmp_path)
    with pytest.raises(ValueError, match="differs in collection"):
        DatasetWriter(*arguments, {"test": 2}, root=tmp_path)
    with pytest.raises(ValueError, match="differs in action_space"):
        space = gymnasium.spaces.Discrete(9)
        DatasetWriter("test/episodes-v0", IMAGES, space, {"test": 1}, root=tmp_path)
    with pytest.raises(ValueError, match="'mine' has no version: end it in -v0"):
        DatasetWriter("mine", IMAGES, ACTIONS, {}, root=tmp_path)
    with pytest.raises(ValueError, match="Malformed dataset ID"):
        DatasetWriter("no version", IMAGES, ACTIONS, {}, root=tmp_path)


@pytest.mark.parametrize("file", ["metadata.json", "main_data.hdf5"])
def test_full_disk_at_the_beginning_does_not_take_the_name(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = dataset_writer.replace_file

    def full(path: Path, content: bytes) -> None:
        if path.name == file:
            raise OSError(errno.ENOSPC, "No space left on device")
        written(path, content)

    monkeypatch.setattr(dataset_writer, "replace_file", full)
    with pytest.raises(OSError, match="No space"):
        DatasetWriter("full-v0", IMAGES, ACTIONS, {}, root=tmp_path)
    monkeypatch.undo()
    with DatasetWriter("full-v0", IMAGES, ACTIONS, {}, root=tmp_path) as writer:
        writer.save(0, make_episode(5, seed=0))
    assert len(EpisodeDataset(writer.path)) == 1


def test_full_disk_at_the_end_does_not_hide_the_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ValueError, match="first"):
        with DatasetWriter("full-v0", IMAGES, ACTIONS, {}, root=tmp_path) as writer:
            writer.save(0, make_episode(5, seed=0))
            monkeypatch.setattr(dataset_writer, "replace_file", full)
            raise ValueError("first")
    monkeypatch.undo()
    with DatasetWriter("full-v0", IMAGES, ACTIONS, {}, root=tmp_path) as writer:
        assert writer.finished == {0}


def test_recorder_keeps_numeric_infos_of_every_step() -> None:
    frame = np.zeros(SHAPE, np.uint8)
    first = {"x": 1, "where": np.zeros(2), "note": "text", "maze_layout": np.eye(2), "rare": 1}
    first |= {"path": [[1, 2], [3]], "events": []}
    recorder = EpisodeRecorder(frame, first, seed=4)
    frame += 1  # envs may reuse their buffers
    later = {"x": 2, "where": np.ones(2), "note": "text", "maze_layout": np.eye(2)}
    later |= {"path": [[1], [2, 3]], "events": []}
    recorder.step(3, frame, 0.5, False, True, later)
    episode = recorder.finish({"policy": "p"})
    assert episode.observations[:, 0, 0, 0].tolist() == [0, 1]
    assert set(episode.infos) == {"x", "where"}
    assert episode.infos["where"].shape == (2, 2)
    assert set(episode.metadata) == {"maze_layout", "policy"}
    assert (episode.seed, episode.actions.tolist()) == (4, [3])
