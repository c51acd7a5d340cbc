"""Record episodes of a real environment into a Minari dataset.

    python experiments/collect.py --env memory-maze-9x9 --policy explorer --episodes 260 \\
        --dataset memory-maze-9x9/explorer-v0

Worker processes each run one environment and save whole episodes. Episode i is always played with
seed `seed + i`, whoever plays it, so a run that was killed continues when it is started again and
ends with the dataset that it would have made undisturbed.
"""

import dataclasses
import errno
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import tyro
from tqdm import tqdm

import envs
from agents.explorers import PRIVILEGED_KEYS, ExplorerConfig, RandomPolicy, ScriptedExplorer
from worldsim.recording import DatasetWriter, EpisodeRecorder, RecordedEpisode, save_episode

REPORT_EVERY = 25  # steps between two signs of life of a worker
MakeEnv = Callable[["CollectConfig"], gymnasium.Env]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """Record episodes of a real environment into a Minari dataset."""

    env: str = "memory-maze-9x9"
    """Environment to play."""
    policy: str = "explorer"
    """random, explorer (Memory Maze only), or the path of a saved Stable-Baselines3 policy (.zip)."""
    episodes: int = 260
    """Number of episodes that the dataset shall have."""
    seed: int = 0
    """Episode i is played with seed + i. Keep the seeds of training and validation sets apart."""
    dataset: str = "memory-maze-9x9/explorer-v0"
    """Minari id of the dataset, `(namespace/)name-v0`. One that exists is continued."""
    datasets_root: Path | None = None
    """Folder of all datasets; by default Minari's (MINARI_DATASETS_PATH, or ~/.minari/datasets)."""
    num_workers: int = 2
    """Processes that play at the same time."""
    deterministic: bool = False
    """Take the most probable action of a saved policy instead of sampling."""
    explorer: ExplorerConfig = dataclasses.field(default_factory=ExplorerConfig)
    """How the scripted explorer moves."""

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.num_workers < 1 or self.seed < 0:
            raise ValueError(
                "episodes and num_workers must be at least 1 and seed at least 0, "
                f"got {self.episodes}, {self.num_workers} and {self.seed}"
            )
        if self.policy == "explorer" and not self.env.startswith("memory-maze-"):
            raise ValueError(
                f"the explorer only knows its way in Memory Mazes, not in {self.env!r}: "
                "use --policy random or a saved policy"
            )
        if self.policy not in ("random", "explorer") and not Path(self.policy).is_file():
            raise ValueError(
                f"there is no policy {self.policy!r}: use random, explorer or the path of a .zip"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the episodes' content, kept with the dataset."""
        settings: dict[str, Any] = {"env": self.env, "policy": self.policy, "seed": self.seed}
        if self.policy == "explorer":
            settings["explorer"] = dataclasses.asdict(self.explorer)
        elif self.policy != "random":
            settings |= {"policy": Path(self.policy).name, "deterministic": self.deterministic}
        return settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectResult:
    """What the dataset holds after collection."""

    path: Path
    episodes: int
    frames: int
    returns: np.ndarray  # (episodes,) float64

    @property
    def mean_return(self) -> float:
        """Mean undiscounted return of an episode."""
        return float(self.returns.mean())

    @property
    def half_width(self) -> float:
        """Half of the normal 95 % interval of the mean return; nan for a single episode."""
        n = len(self.returns)
        return float(1.96 * self.returns.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")


class CollectionError(RuntimeError):
    """Collection stopped; what was saved stays, and running again continues."""


def make_env(config: CollectConfig) -> gymnasium.Env:
    """Make the environment by name; Memory Mazes with their privileged state in the info."""
    options = {"privileged": True} if config.env.startswith("memory-maze-") else {}
    return envs.make(config.env, **options)


def make_policy(config: CollectConfig, env: gymnasium.Env, seed: int) -> Any:
    """Make the policy for one episode, its randomness determined by the seed."""
    if config.policy == "random":
        assert isinstance(env.action_space, gymnasium.spaces.Discrete)
        return RandomPolicy(int(env.action_space.n), seed=seed)
    if config.policy == "explorer":
        return ScriptedExplorer(config.explorer, seed=seed)
    raise NotImplementedError


def play_episode(
    env: gymnasium.Env, config: CollectConfig, seed: int
) -> Iterator[int | RecordedEpisode]:
    """Play one episode; yield the step count now and then, and the episode at the end."""
    policy = make_policy(config, env, seed)
    start = int(env.action_space.start) if hasattr(env.action_space, "start") else 0
    observation, info = env.reset(seed=seed)
    recorder = EpisodeRecorder(observation, info, seed=seed)
    state, finished = None, False
    total = 0.0
    while not finished:
        first = np.array([len(recorder) == 0])
        actions, state = policy.act(observation[None], state, first, [info])
        action = int(actions[0]) + start
        observation, reward, terminated, truncated, info = env.step(action)
        recorder.step(action, observation, float(reward), terminated, truncated, info)
        finished = terminated or truncated
        total += float(reward)
        if len(recorder) % REPORT_EVERY == 0:
            yield len(recorder)
    yield recorder.finish({"policy": Path(config.policy).name, "env": config.env, "return": total})


def run_worker(connection: Connection, config: CollectConfig, make: MakeEnv) -> None:
    """Play and save the episodes asked for through the connection until it closes.

    The parent sends (index, path). The answers are ("steps", n) as a sign of life, ("saved", index,
    number of steps, return) and ("failed", index, errno or None, text).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # One rendering thread per process: with one process per core, more only get in the way.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    env = None
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        while True:
            index, path = connection.recv()
            try:
                env = make(config) if env is None else env
                steps = 0
                for result in play_episode(env, config, config.seed + index):
                    if isinstance(result, RecordedEpisode):
                        save_episode(path, result, index)
                        steps_left = len(result.rewards) - steps
                        connection.send(("steps", steps_left))
                        total = float(result.rewards.sum())
                        connection.send(("saved", index, len(result.rewards), total))
                    else:
                        connection.send(("steps", result - steps))
                        steps = result
            except (BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:
                code = error.errno if isinstance(error, OSError) else None
                connection.send(("failed", index, code, traceback.format_exc()))
    if env is not None:
        env.close()


class Worker:
    """A worker process and the episode that it plays."""

    def __init__(self, config: CollectConfig, make: MakeEnv) -> None:
        # Spawned, not forked: an OpenGL context does not survive a fork.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.index: int | None = None
        self.process = context.Process(target=run_worker, args=(theirs, config, make), daemon=True)
        self.process.start()
        theirs.close()

    def play(self, index: int, path: Path) -> None:
        """Ask for an episode."""
        self.index = index
        self.connection.send((index, path))

    def stop(self) -> None:
        """End the process at once."""
        self.connection.close()
        self.process.terminate()
        self.process.join()


def collect(
    config: CollectConfig,
    writer: DatasetWriter,
    make: MakeEnv,
    on_steps: Callable[[int], None],
    on_episode: Callable[[float], None],
) -> None:
    """Play the episodes that the dataset lacks.

    Raises:
        CollectionError: If an episode fails, its process dies twice, or the disk is full.
    """
    missing = [i for i in reversed(range(config.episodes)) if i not in writer.finished]
    deaths: dict[int, int] = {}
    published = time.monotonic()
    workers = [Worker(config, make) for _ in range(min(config.num_workers, len(missing)))]
    try:
        for worker in workers:
            index = missing.pop()
            worker.play(index, writer.path_of(index))
        while any(worker.index is not None for worker in workers):
            by_connection = {worker.connection: worker for worker in workers}
            for connection in wait(list(by_connection), timeout=1.0):
                worker = by_connection[connection]  # type: ignore[index]
                try:
                    message = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    workers[workers.index(worker)] = revive(worker, config, make, writer, deaths)
                    continue
                if message[0] == "steps":
                    on_steps(message[1])
                    continue
                if message[0] == "failed":
                    raise CollectionError(describe_failure(config, writer, *message[1:]))
                _, index, num_steps, episode_return = message
                writer.add(index, num_steps)
                on_episode(episode_return)
                worker.index = None
                if missing:
                    index = missing.pop()
                    worker.play(index, writer.path_of(index))
                if time.monotonic() - published > 5:
                    writer.publish()
                    published = time.monotonic()
    finally:
        for worker in workers:
            worker.stop()


def revive(
    worker: Worker,
    config: CollectConfig,
    make: MakeEnv,
    writer: DatasetWriter,
    deaths: dict[int, int],
) -> Worker:
    """Replace a worker whose process died, and play its episode again.

    Raises:
        CollectionError: If this episode has cost a process before.
    """
    worker.process.join()
    index = worker.index
    assert index is not None
    deaths[index] = deaths.get(index, 0) + 1
    if deaths[index] > 1:
        raise CollectionError(
            f"the process playing episode {index} (seed {config.seed + index}) of {config.env} died "
            f"twice, last with exit code {worker.process.exitcode} (-9: killed, often for lack of "
            f"memory); {len(writer.finished)} episodes are safe, running again continues"
        )
    fresh = Worker(config, make)
    fresh.play(index, writer.path_of(index))
    return fresh


def describe_failure(
    config: CollectConfig, writer: DatasetWriter, index: int, code: int | None, text: str
) -> str:
    """Say what went wrong with an episode and what to do."""
    safe = f"{len(writer.finished)} episodes are safe; running the same command again continues"
    if code in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left for {writer.path}: free some, or use --datasets-root. {safe}."
    return f"{text}\nepisode {index} (seed {config.seed + index}) failed, see above. {safe}."


def summarise(config: CollectConfig, writer: DatasetWriter) -> CollectResult:
    """Read lengths and returns of all episodes back from their files."""
    returns, frames = [], 0
    for i in range(config.episodes):
        with h5py.File(writer.path_of(i), "r") as file:
            returns.append(float(file["episode"]["rewards"][()].sum()))
            frames += int(file["episode"].attrs["total_steps"]) + 1
    return CollectResult(
        path=writer.path, episodes=len(returns), frames=frames, returns=np.array(returns)
    )


def main(config: CollectConfig, make: MakeEnv = make_env) -> CollectResult:
    """Collect what is missing of a dataset, with a progress bar, and print a summary.

    Args:
        config: What to collect.
        make: Makes the environment in a worker; must be picklable.

    Returns:
        Path and statistics of the whole dataset.

    Raises:
        CollectionError: If collection cannot go on.
        ValueError: If the environment's actions are not discrete, or the dataset exists with other
            settings.
    """
    env = make(config)
    if not isinstance(env.action_space, gymnasium.spaces.Discrete):
        raise ValueError(f"{config.env} has actions {env.action_space}; they must be Discrete")
    writer = DatasetWriter(
        config.dataset,
        env.observation_space,
        env.action_space,
        config.settings,
        root=config.datasets_root,
        env_spec=env.spec,
        metadata={
            "algorithm_name": Path(config.policy).name,
            "description": f"{config.env} played by {Path(config.policy).name}",
        },
    )
    longest = env.spec.max_episode_steps if env.spec is not None else None
    env.close()
    with writer:
        done = sum(1 for i in range(config.episodes) if i in writer.finished)
        if done:
            print(f"{writer.path} has {done} of {config.episodes} episodes; continuing")
        bar = tqdm(
            total=config.episodes * longest if longest else None,
            initial=writer.num_steps if longest else 0,
            unit=" frames",
            smoothing=0.05,
            dynamic_ncols=True,
        )
        returns: list[float] = []

        def on_episode(episode_return: float) -> None:
            returns.append(episode_return)
            bar.set_postfix_str(
                f"{done + len(returns)}/{config.episodes} episodes, return {np.mean(returns):.1f}"
            )

        with bar:
            try:
                collect(config, writer, make, bar.update, on_episode)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                message = describe_failure(config, writer, 0, error.errno, "")
                raise CollectionError(message) from error
        writer.publish()
        result = summarise(config, writer)
    print(
        f"{result.episodes} episodes, {result.frames} frames, "
        f"mean return {result.mean_return:.2f} ± {result.half_width:.2f}\n"
        f"{result.path}\n"
        f"next: python experiments/train_world_model.py --dataset {result.path}"
    )
    return result


def cli(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line, with errors as one message instead of a traceback."""
    config = tyro.cli(CollectConfig, args=arguments)
    try:
        main(config)
    except KeyboardInterrupt:
        sys.exit("\nstopped; the finished episodes are saved, running again continues")
    except (CollectionError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    cli()
