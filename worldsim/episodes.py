"""Episodes to learn from: Minari datasets of images and discrete actions, and segments of them.

Minari stores the step from observation t to t + 1 at index t. Here everything at index t has to do
with the arrival at frame t, as in the whole package: `actions[t]` led to frame t, and `actions[0]`
of an episode is the "no action" token `num_actions`.
"""

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.checks import check_range, check_rewards
from worldsim.storage import EpisodeReader, find_dataset, open_reader


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
    """An episode, or a stretch of one."""

    frames: np.ndarray
    """(t, h, w, c) uint8."""
    actions: np.ndarray
    """(t,) int64: the action that led to each frame; `num_actions` at the start of an episode."""
    rewards: np.ndarray
    """(t,) float32: the reward on arrival at each frame; 0 at the start of an episode."""
    terminated: np.ndarray
    """(t,) bool: whether the arrival at each frame ended the episode for good."""
    infos: dict[str, np.ndarray]
    """(t, ...) each: what else was recorded with each frame."""
    metadata: dict[str, Any]
    """What was recorded about the episode as a whole: seed, policy, maze layout, ..."""

    def __len__(self) -> int:
        return len(self.frames)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segments:
    """A batch of equally long stretches of episodes; fields as in `Episode`, batch first."""

    frames: np.ndarray
    """(b, t, h, w, c) uint8."""
    actions: np.ndarray
    """(b, t) int64. A segment that begins inside an episode has the true action at its start."""
    rewards: np.ndarray
    """(b, t) float32."""
    terminated: np.ndarray
    """(b, t) bool."""
    episodes: np.ndarray
    """(b,) int64: index of each segment's episode in the dataset."""
    starts: np.ndarray
    """(b,) int64: frame of the episode at which each segment begins."""

    def __len__(self) -> int:
        return len(self.frames)


class DamagedEpisodeError(RuntimeError):
    """An episode cannot be read."""


class DamagedEpisodeWarning(UserWarning):
    """An episode cannot be read and is left out."""


@dataclasses.dataclass(frozen=True)
class _Record:
    """Where an episode lies, and all of it that is small."""

    reader: EpisodeReader
    index: int
    source: str
    name: str
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray


class EpisodeDataset:
    """Episodes of one or more Minari datasets.

    Opening reads everything but the frames and infos and checks that it fits together. Episodes
    that are damaged are named in a `DamagedEpisodeWarning` and left out; frames that turn out
    unreadable later put their episode out of `sample_segments` and iteration in the same way.
    Instances can be pickled and forked.

    Args:
        sources: Minari id or path of a dataset, or several.
        root: Folder of all datasets, for ids; None for Minari's own.
        image_key: Key of the images, where observations are dicts with several of them.

    Raises:
        FileNotFoundError: If there is no such dataset.
        ValueError: If a dataset has no images or no discrete actions, if several differ in frame
            shape or number of actions, or if no episode is readable.
        OSError: If a dataset is unreadable as a whole.
    """

    def __init__(
        self,
        sources: str | Path | Sequence[str | Path],
        root: str | Path | None = None,
        image_key: str | None = None,
    ) -> None:
        if isinstance(sources, str | Path):
            sources = [sources]
        if not sources:
            raise ValueError("an EpisodeDataset needs at least one dataset")
        self._records: list[_Record] = []
        self._damaged: set[int] = set()
        self._shape: tuple[int, int, int] | None = None
        for source in sources:
            path = find_dataset(source, root)
            reader, metadata = open_reader(path, image_key)
            shape, num_actions = metadata["image"].shape, int(metadata["actions"].n)
            if self._shape is None:
                self._shape, self._num_actions, first = shape, num_actions, path
            elif (shape, num_actions) != (self._shape, self._num_actions):
                raise ValueError(
                    f"datasets do not fit together: {first} has frames {self._shape} and "
                    f"{self._num_actions} actions, {path} has {shape} and {num_actions}"
                )
            offset = int(metadata["actions"].start)
            for index in range(metadata["total_episodes"]):
                name = f"episode {index} of {source}"
                try:
                    self._records.append(
                        _read_record(reader, index, str(source), name, shape, num_actions, offset)
                    )
                except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
                    _warn(name, error)
        self._measure()
        if not self._records:
            raise ValueError(f"no readable episode in {', '.join(map(str, sources))}")

    def __len__(self) -> int:
        return len(self._records)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a frame."""
        assert self._shape is not None
        return self._shape

    @property
    def num_actions(self) -> int:
        """Size of the action space, which is also the "no action" token."""
        return self._num_actions

    @property
    def num_frames(self) -> int:
        """Frames of all episodes."""
        return int(self.lengths.sum())

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64: the number of frames of each episode."""
        return self._lengths.copy()

    @property
    def names(self) -> list[str]:
        """What each episode is called in messages: its number and dataset."""
        return [record.name for record in self._records]

    @property
    def sources(self) -> dict[str, dict[str, int]]:
        """The number of `episodes` and `frames` that come from each source."""
        counts = {record.source: {"episodes": 0, "frames": 0} for record in self._records}
        for record in self._records:
            counts[record.source]["episodes"] += 1
            counts[record.source]["frames"] += len(record.actions)
        return counts

    @property
    def returns(self) -> np.ndarray:
        """(n,) float64: the undiscounted return of each episode."""
        return np.array([record.rewards.sum(dtype=np.float64) for record in self._records])

    def actions(self, index: int) -> np.ndarray:
        """Return the actions (t,) int64 of an episode without reading its frames."""
        return self._records[index].actions

    def rewards(self, index: int) -> np.ndarray:
        """Return the rewards (t,) float32 of an episode without reading its frames."""
        return self._records[index].rewards

    def terminated(self, index: int) -> np.ndarray:
        """Return which frames (t,) bool of an episode ended it, without reading its frames."""
        return self._records[index].terminated

    def infos(self, index: int, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
        """Return the infos of an episode, or of frames start to stop, without reading its frames.

        Raises:
            DamagedEpisodeError: If they cannot be read.
        """
        record = self._records[index]
        stop = len(record.actions) if stop is None else stop
        try:
            return record.reader.infos(record.index, start, stop)
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise DamagedEpisodeError(f"{record.name} is damaged: {error}") from error

    def episode(self, index: int, start: int = 0, stop: int | None = None) -> Episode:
        """Read an episode, or frames start to stop of it; only these are read from the disk.

        Args:
            index: Episode, from 0; negative counts from the end.
            start: First frame.
            stop: Frame after the last; None for the episode's end.

        Raises:
            IndexError: If there is no such episode or the frames are not inside it.
            DamagedEpisodeError: If it cannot be read.
        """
        record = self._records[index]
        stop = len(record.actions) if stop is None else stop
        frames, infos = self._frames(record, start, stop), self.infos(index, start, stop)
        try:
            metadata = record.reader.metadata(record.index)
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise DamagedEpisodeError(f"{record.name} is damaged: {error}") from error
        return Episode(
            frames=frames,
            actions=record.actions[start:stop].copy(),
            rewards=record.rewards[start:stop].copy(),
            terminated=record.terminated[start:stop].copy(),
            infos=infos,
            metadata=metadata,
        )

    def __iter__(self) -> Iterator[Episode]:
        """Iterate over all episodes in order; damaged ones are warned of and left out."""
        for index in range(len(self)):
            if index in self._damaged:
                continue
            try:
                yield self.episode(index)
            except DamagedEpisodeError as error:
                self.leave_out(index, error)

    def readable(self) -> "EpisodeDataset":
        """Those episodes that can be read to their end; the others, which it finds, are warned of.

        Raises:
            ValueError: there are none.
        """
        sum(map(len, self))  # reads all frames
        return self.select([i for i in range(len(self)) if i not in self._damaged])

    def sample_segments(
        self, batch_size: int, length: int, rng: np.random.Generator, *, going_on: bool = False
    ) -> Segments:
        """Draw segments, uniformly over all frames at which one of this length can begin.

        Args:
            batch_size: Number of segments.
            length: Frames of each.
            rng: Source of randomness.
            going_on: Only segments that do not end where their episode terminated.

        Raises:
            ValueError: If no episode is that long.
        """
        episodes, starts = np.zeros(batch_size, np.int64), np.zeros(batch_size, np.int64)
        frames = np.zeros((batch_size, length, *self.frame_shape), np.uint8)
        for i in range(batch_size):
            while True:
                episodes[i], starts[i] = self._draw(length, rng, going_on)
                try:
                    record = self._records[episodes[i]]
                    frames[i] = self._frames(record, starts[i], starts[i] + length)
                    break
                except DamagedEpisodeError as error:
                    self.leave_out(int(episodes[i]), error)

        def gather(field: str) -> np.ndarray:
            parts = zip(episodes, starts, strict=True)
            return np.stack([getattr(self._records[e], field)[s : s + length] for e, s in parts])

        return Segments(
            frames=frames,
            actions=gather("actions"),
            rewards=gather("rewards"),
            terminated=gather("terminated"),
            episodes=episodes,
            starts=starts,
        )

    def select(self, indices: Sequence[int] | np.ndarray) -> "EpisodeDataset":
        """Return a dataset of these episodes, in this order.

        Raises:
            IndexError: If there is no such episode.
            ValueError: If there are none.
        """
        if len(indices) == 0:
            raise ValueError("a dataset needs at least one episode")
        selection = EpisodeDataset.__new__(EpisodeDataset)
        selection._records = [self._records[index] for index in indices]
        selection._damaged = {new for new, old in enumerate(indices) if int(old) in self._damaged}
        selection._shape, selection._num_actions = self._shape, self._num_actions
        selection._measure()
        return selection

    def split(
        self, num_validation: int, seed: int = 0
    ) -> tuple["EpisodeDataset", "EpisodeDataset"]:
        """Split by episodes, at random, into a training and a validation set.

        Args:
            num_validation: Episodes of the validation set.
            seed: Decides which.

        Raises:
            ValueError: If either set would be empty.
        """
        if not 0 < num_validation < len(self):
            raise ValueError(
                f"num_validation must lie between 1 and {len(self) - 1}, got {num_validation}"
            )
        order = np.random.default_rng(seed).permutation(len(self))
        return self.select(np.sort(order[num_validation:])), self.select(
            np.sort(order[:num_validation])
        )

    def _frames(self, record: _Record, start: int, stop: int) -> np.ndarray:
        if not 0 <= start < stop <= len(record.actions):
            raise IndexError(
                f"frames {start} to {stop} are not inside {record.name}, which has "
                f"{len(record.actions)}"
            )
        try:
            frames = record.reader.frames(record.index, int(start), int(stop))
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise DamagedEpisodeError(f"{record.name} is damaged: {error}") from error
        expected = (stop - start, *self.frame_shape)
        if frames.shape != expected or frames.dtype != np.uint8:
            raise DamagedEpisodeError(
                f"{record.name} is damaged: frames are {frames.dtype} {frames.shape}, "
                f"not uint8 {expected}"
            )
        return frames

    def _measure(self) -> None:
        self._lengths = np.array([len(record.actions) for record in self._records], np.int64)

    def frames_going_on(self) -> np.ndarray:
        """Frames of each episode but one in which it terminated, (n,) int64."""
        return self._lengths - np.array([r.terminated[-1] for r in self._records], np.int64)

    def _draw(self, length: int, rng: np.random.Generator, going_on: bool) -> tuple[int, int]:
        lengths = self.frames_going_on() if going_on else self._lengths
        num_starts = np.maximum(lengths - length + 1, 0)
        num_starts[list(self._damaged)] = 0
        last = np.cumsum(num_starts)
        if length < 1 or last[-1] == 0:
            when = " before it terminates" if going_on else ""
            raise ValueError(
                f"no episode has {length} frames{when}: there "
                f"are {len(self)} of {lengths.min()} to {lengths.max()} frames, "
                f"{len(self._damaged)} damaged ones among them"
            )
        draw = int(rng.integers(last[-1]))
        episode = int(np.searchsorted(last, draw, side="right"))
        return episode, draw - int(last[episode] - num_starts[episode])

    def leave_out(self, index: int, error: DamagedEpisodeError) -> None:
        """Warn of an episode that cannot be read, and leave it out from now on."""
        self._damaged.add(index)
        warnings.warn(f"{error}; it is left out", DamagedEpisodeWarning, stacklevel=4)


def _warn(name: str, error: Exception) -> None:
    message = f"{name} is damaged: {error}; it is left out"
    warnings.warn(message, DamagedEpisodeWarning, stacklevel=3)


def _read_record(
    reader: EpisodeReader,
    index: int,
    source: str,
    name: str,
    frame_shape: tuple[int, int, int],
    num_actions: int,
    offset: int,
) -> _Record:
    """Read what is small of an episode and check that all of it fits together."""
    steps = reader.steps(index)
    shape, dtype, num_frames = reader.frames_layout(index)
    lengths = {key: len(value) for key, value in steps.items()}
    total_steps = reader.metadata(index).get("total_steps")
    if total_steps is not None:
        lengths["total_steps"] = int(total_steps)
    if set(lengths.values()) != {num_frames - 1} or num_frames < 2:
        raise ValueError(f"{num_frames} frames need {num_frames - 1} steps, found {lengths}")
    if (shape is not None and shape != frame_shape) or dtype != np.uint8:
        raise ValueError(f"frames are {dtype} {shape}, not uint8 {frame_shape}")
    actions, rewards = steps["actions"], steps["rewards"]
    if actions.dtype.kind not in "iu" or actions.ndim != 1:
        raise ValueError(f"actions are {actions.dtype} {actions.shape}, not one integer per step")
    check_range(actions, offset, num_actions)
    check_rewards(rewards)
    ended = steps["terminations"].astype(bool) | steps["truncations"].astype(bool)
    if ended[:-1].any():
        raise ValueError(f"it goes on after step {np.argmax(ended)}, which ends it")
    return _Record(
        reader=reader,
        index=index,
        source=source,
        name=name,
        actions=np.concatenate([[num_actions], actions.astype(np.int64) - offset]),
        rewards=np.concatenate([[0], rewards]).astype(np.float32),
        terminated=np.concatenate([[False], steps["terminations"]]).astype(bool),
    )
