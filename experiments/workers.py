"""Play episodes in parallel processes, each with an environment of its own, into a dataset.

Episode i is always played with seed `seed + i`, whoever plays it, and every process saves its
episodes itself, so what the dataset holds in the end depends neither on the number of processes nor
on where an earlier run was killed.
"""

import dataclasses
import errno
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import gymnasium
import numpy as np

from agents.rollout import Policy, check_faults, fault_in
from worldsim.dataset_writer import DatasetWriter
from worldsim.recording import EpisodeRecorder, RecordedEpisode, save_episode
from worldsim.storage import check_discrete

REPORT_EVERY = 25  # steps between two signs of life of a worker
PUBLISH_EVERY = 5.0  # seconds between two updates of the dataset's main file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What the workers play. It is pickled to get to them."""

    name: str
    """Of the environment, for error messages."""
    make_env: Callable[[], gymnasium.Env]
    make_policy: Callable[[gymnasium.Env], Callable[[int], Policy]]
    """Given the environment, returns what makes the policy of an episode from its seed."""
    seed: int
    """Episode i is played with seed + i."""
    metadata: Mapping[str, Any]
    """Kept with every episode."""


class CollectionError(RuntimeError):
    """Collection stopped; what was saved stays, and running again continues."""


def play_episode(
    env: gymnasium.Env, policy: Policy, seed: int, metadata: Mapping[str, Any]
) -> Iterator[int | RecordedEpisode]:
    """Play one episode; yield the step count now and then, and the episode at the end.

    A step that reports a `fault` in its info did not happen, its simulator having died or hung: the
    episode is kept up to there, or played anew if nothing has happened yet.

    Raises:
        RuntimeError: that has been reported at the first step time and again.
    """
    offset = int(check_discrete(env.action_space, str(env)).start)
    observation, info = env.reset(seed=seed)
    recorder = EpisodeRecorder(observation, info, seed=seed)
    state, finished, faults = None, False, 0
    while not finished:
        batch: Any = (
            {key: value[None] for key, value in observation.items()}
            if isinstance(observation, Mapping)
            else observation[None]
        )
        actions, state = policy.act(batch, state, np.array([len(recorder) == 0]), [info])
        action = int(actions[0]) + offset
        observation, reward, terminated, truncated, info = env.step(action)
        if (fault := fault_in(info)) is not None:
            if len(recorder) > 0:
                recorder.truncate()
                break
            faults += 1
            check_faults(faults, seed, fault)
            observation, info = env.reset(seed=seed)
            recorder = EpisodeRecorder(observation, info, seed=seed)
            continue
        recorder.step(action, observation, float(reward), terminated, truncated, info)
        finished = terminated or truncated
        if len(recorder) % REPORT_EVERY == 0:
            yield len(recorder)
    yield recorder.finish({**metadata, "return": sum(recorder.rewards)})


class ParentGoneError(Exception):
    """The process that asked for episodes has ended."""


def tell(connection: Connection, *message: Any) -> None:
    """Send a message to the parent.

    Raises:
        ParentGoneError: it has ended. An env's own pipes may break, too, which is something else.
    """
    try:
        connection.send(message)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise ParentGoneError from error


def run_worker(connection: Connection, task: Task) -> None:
    """Play and save the episodes asked for through the connection until it closes.

    The parent sends (index, path). The answers are ("steps", n) as a sign of life, ("saved", index,
    number of steps, return) and ("failed", index, errno or None, text).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # One rendering thread per process: with one process per core, more only get in the way.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    env, policy = None, None
    with suppress(EOFError, ConnectionResetError, ParentGoneError):
        while True:
            index, path = connection.recv()
            try:
                if env is None or policy is None:
                    env = task.make_env()
                    policy = task.make_policy(env)
                seed, steps = task.seed + index, 0
                for result in play_episode(env, policy(seed), seed, task.metadata):
                    if isinstance(result, RecordedEpisode):
                        save_episode(path, result, index)
                        num_steps, total = len(result.rewards), float(result.rewards.sum())
                        tell(connection, "steps", num_steps - steps)
                        tell(connection, "saved", index, num_steps, total)
                    else:
                        tell(connection, "steps", result - steps)
                        steps = result
            except ParentGoneError:
                raise
            except Exception as error:
                code = error.errno if isinstance(error, OSError) else None
                tell(connection, "failed", index, code, traceback.format_exc())
    if env is not None:
        env.close()


class Worker:
    """A worker process and the episode that it plays."""

    def __init__(self, task: Task) -> None:
        # Spawned, not forked: an OpenGL context does not survive a fork.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.index: int | None = None
        self.process = context.Process(target=run_worker, args=(theirs, task), daemon=True)
        self.process.start()
        theirs.close()

    def play(self, index: int, writer: DatasetWriter) -> None:
        """Ask for an episode."""
        self.index = index
        with suppress(BrokenPipeError):  # it died; `collect` notices when it listens
            self.connection.send((index, writer.path_of(index)))

    def stop(self) -> None:
        """End the process at once."""
        self.connection.close()
        self.process.terminate()
        self.process.join()


def collect(
    task: Task,
    writer: DatasetWriter,
    num_episodes: int,
    num_workers: int,
    on_steps: Callable[[int], object],
    on_episode: Callable[[float], object],
) -> None:
    """Play what the dataset lacks of episodes 0 to num_episodes, and publish it.

    Args:
        task: What is played.
        writer: The dataset.
        num_episodes: Episodes that the dataset shall have.
        num_workers: Processes.
        on_steps: Called with the number of new steps.
        on_episode: Called with the return of each new episode.

    Raises:
        CollectionError: If an episode fails, its process dies twice, or the disk is full.
    """
    missing = [i for i in reversed(range(num_episodes)) if i not in writer.finished]
    deaths: dict[int, int] = {}
    published = time.monotonic()
    workers = [Worker(task) for _ in range(min(num_workers, len(missing)))]
    try:
        for worker in workers:
            worker.play(missing.pop(), writer)
        while busy := {w.connection: w for w in workers if w.index is not None}:
            for connection in wait(list(busy), timeout=1.0):
                worker = busy[connection]  # type: ignore[index]
                try:
                    message = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    workers[workers.index(worker)] = _replace(worker, task, writer, deaths)
                    continue
                if message[0] == "steps":
                    on_steps(message[1])
                    continue
                if message[0] == "failed":
                    raise CollectionError(_describe(task, writer, *message[1:]))
                _, index, num_steps, episode_return = message
                writer.add(index, num_steps)
                on_episode(episode_return)
                worker.index = None
                if missing:
                    worker.play(missing.pop(), writer)
                if time.monotonic() - published > PUBLISH_EVERY:
                    writer.publish()
                    published = time.monotonic()
        writer.publish()
    except OSError as error:
        if not _disk_is_full(error.errno):
            raise
        raise CollectionError(_describe_full_disk(writer)) from error
    finally:
        for worker in workers:
            worker.stop()


def _replace(worker: Worker, task: Task, writer: DatasetWriter, deaths: dict[int, int]) -> Worker:
    """Start a new worker for the episode of one that died; the second time it is an error."""
    worker.process.join()
    index = worker.index
    assert index is not None
    deaths[index] = deaths.get(index, 0) + 1
    if deaths[index] > 1:
        raise CollectionError(
            f"the process playing {_name(task, index)} died twice, last with exit code "
            f"{worker.process.exitcode} (-9: killed, often for lack of memory). {_comfort(writer)}"
        )
    fresh = Worker(task)
    fresh.play(index, writer)
    return fresh


def _describe(task: Task, writer: DatasetWriter, index: int, code: int | None, text: str) -> str:
    if _disk_is_full(code):
        return _describe_full_disk(writer)
    return f"{text}\n{_name(task, index)} failed, see above. {_comfort(writer)}"


def _describe_full_disk(writer: DatasetWriter) -> str:
    return f"no space left on the disk of {writer.path}: free some. {_comfort(writer)}"


def _disk_is_full(code: int | None) -> bool:
    return code in (errno.ENOSPC, errno.EDQUOT)


def _name(task: Task, index: int) -> str:
    return f"episode {index} (seed {task.seed + index}) of {task.name}"


def _comfort(writer: DatasetWriter) -> str:
    return f"{len(writer.finished)} episodes are safe; running the same command again continues."
