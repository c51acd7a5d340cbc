"""Episodes of a policy in any env, real or dreamed: many at once, each from its own seed.

Real envs run in one process each, a dream runs as one batch; the policy always acts on the whole
batch in this process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

BEHAVIOUR_TEMPERATURE = 0.6
"""At which a model's own behaviour draws actions unless told otherwise: much of the noise of
recordings is left out. Chosen for walking on nine Memory Mazes that nothing is judged on."""
MOST_FAULTS = 3
"""Of one episode, whose env may break down for reasons of its own, but not every time."""


class Policy(Protocol):
    """Whatever acts."""

    def act(
        self,
        observation: Any,
        state: Any,
        episode_start: np.ndarray,
        infos: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[np.ndarray, Any]:
        """Choose one action per env.

        Args:
            observation: batch of n observations.
            state: what the last call returned, None at first.
            episode_start: (n,) bool, true where the observation is an episode's first.
            infos: one per env.

        Returns:
            Actions (n,) and the state for the next call.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """One finished episode."""

    seed: int
    episodic_return: float
    length: int
    terminated: bool
    """Ended by the task itself, and not by a limit on steps."""
    frames: np.ndarray | None = None
    """(length + 1, h, w, c) uint8, where the episode was recorded."""
    reached: tuple[tuple[int, int], ...] | None = None
    """(step, target) of every reward, where the env's infos say which target is asked for
    ("target_index", as privileged Memory Mazes do)."""


@dataclasses.dataclass(frozen=True)
class _Whole:
    """One env's info as one object."""

    info: dict[str, Any]


class _WholeInfos(gymnasium.Wrapper):
    """Hands infos on as one object each: what an env tells need not have one shape, nor one type,
    over envs and steps, of which a vector env would make arrays."""

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**options)
        return observation, {"whole": _Whole(info)}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, {"whole": _Whole(info)}


def make_parallel(make_env: Callable[[], gymnasium.Env], num_workers: int) -> VectorEnv:
    """Make envs that step in parallel, one process each, for `rollout`.

    Processes leave Ctrl-C to this one. `unbatch_infos` gives every env's info as it was.

    Args:
        make_env: makes one env; a lambda will do.
        num_workers: processes; 0 steps one env in this process.

    Raises:
        RuntimeError: the processes ended as they began.
    """
    if num_workers == 0:
        return SyncVectorEnv(
            [lambda: _WholeInfos(make_env())], autoreset_mode=AutoresetMode.DISABLED
        )
    # Forking this process would copy the threads' locks of torch and the renderer, held or not.
    methods = multiprocessing.get_all_start_methods()
    context = "forkserver" if "forkserver" in methods else "spawn"

    def make() -> gymnasium.Env:
        if multiprocessing.parent_process() is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return _WholeInfos(make_env())

    try:
        return AsyncVectorEnv(
            [make] * num_workers, context=context, autoreset_mode=AutoresetMode.DISABLED
        )
    except (EOFError, ConnectionError) as error:
        raise RuntimeError(
            "the processes of the envs ended as they began. They import the script that starts "
            'them, so its own work has to stand below `if __name__ == "__main__":`'
        ) from error


@contextlib.contextmanager
def ending_on_error(envs: Any) -> Iterator[None]:
    """Where there is an error or Ctrl-C, end the processes of envs at once, which closes them.

    Not all may have answered then, and their own `close` would wait for the others for ever.

    Args:
        envs: an `AsyncVectorEnv` or SB3's `SubprocVecEnv`; others are left as they are.

    Raises:
        RuntimeError: a process has ended.
    """
    try:
        yield
    except BaseException as error:
        processes = getattr(envs, "processes", ())
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        if processes:
            envs.closed = True
        if processes and isinstance(error, EOFError | ConnectionError):
            raise RuntimeError(
                "the process of an env has ended: its env failed (see above), or it was killed, "
                "perhaps for want of memory, of which fewer side by side (num_workers) need less"
            ) from error
        raise


def evaluate(
    policy: Policy,
    make_env: Callable[[], gymnasium.Env],
    seeds: Sequence[int],
    *,
    num_workers: int = 2,
    num_recorded: int = 0,
    on_step: Callable[[int], None] | None = None,
    on_episode: Callable[[EpisodeResult], None] | None = None,
) -> list[EpisodeResult]:
    """Run one episode from every seed in parallel processes; see `rollout`."""
    envs = make_parallel(make_env, min(num_workers, len(seeds)))
    try:
        return rollout(
            policy,
            envs,
            seeds,
            num_recorded=num_recorded,
            on_step=on_step,
            on_episode=on_episode,
        )
    finally:
        envs.close()


def check_limit(limit: int | None, name: str) -> None:
    """Warn of an env without a limit on steps."""
    if limit is None:
        warnings.warn(
            f"{name} has no limit on steps: episodes that do not end by themselves go on forever "
            "(max_episode_steps cuts them)",
            stacklevel=3,
        )


def rollout(
    policy: Policy,
    envs: VectorEnv,
    seeds: Sequence[int],
    *,
    num_recorded: int = 0,
    on_step: Callable[[int], None] | None = None,
    on_episode: Callable[[EpisodeResult], None] | None = None,
) -> list[EpisodeResult]:
    """Run one episode from every seed.

    An env that ends an episode takes the next seed at once, and one that reports a `fault` in its
    info, as real envs do when their simulator died, the same seed once more. Each episode starts
    from `reset(seed=seed)`, so what the env does never depends on how many run side by side; a
    policy that draws at random does.

    Args:
        policy: acts in all envs.
        envs: a vector env in `AutoresetMode.DISABLED`.
        seeds: one per episode.
        num_recorded: keep the frames of the first so many episodes.
        on_step: called after every step with the number of envs that took part.
        on_episode: called with every finished episode.

    Returns:
        One result per seed, in their order.

    Raises:
        ValueError: the envs reset by themselves, or no seeds.
        RuntimeError: the process of an env has ended, or an episode has met one fault after the
            other. The former, an env's own error and Ctrl-C close envs that run in processes.
    """
    mode = envs.metadata.get("autoreset_mode")
    if mode != AutoresetMode.DISABLED:
        raise ValueError(f"rollout resets by itself, but the envs have autoreset_mode={mode}")
    if not seeds:
        raise ValueError("seeds are empty: one episode is run from each")
    n = envs.num_envs
    results: dict[int, EpisodeResult] = {}
    waiting = list(range(len(seeds)))[::-1]  # episodes that have not started
    running, reached = np.full(n, -1), [list[tuple[int, int]]() for _ in range(n)]
    returns, lengths = np.zeros(n), np.zeros(n, np.int64)
    recordings: dict[int, list[np.ndarray]] = {e: [] for e in range(min(num_recorded, len(seeds)))}
    infos: list[dict[str, Any]] = [{} for _ in range(n)]
    faults: dict[int, int] = {}
    observation: Any = None
    state: Any = None
    episode_start = np.ones(n, bool)
    while len(results) < len(seeds):
        if episode_start.any():
            for i in np.flatnonzero(episode_start):
                # An env without a seed left goes on, unseen, so that the batch keeps its shape.
                running[i] = waiting.pop() if waiting else -1
                returns[i], lengths[i], reached[i] = 0, 0, []
            observation, info = _reset(envs, seeds, running, episode_start)
            for j, reset_info in enumerate(unbatch_infos(info, n)):
                if episode_start[j]:
                    infos[j] = reset_info
            _record(recordings, np.where(episode_start, running, -1), observation, envs)
        actions, state = policy.act(observation, state, episode_start, infos)
        asked_for = [one.get("target_index") for one in infos]
        with ending_on_error(envs):
            observation, rewards, terminated, truncated, info = envs.step(actions)
        infos = unbatch_infos(info, n)
        episode_start = terminated | truncated
        active = running >= 0
        returns += rewards
        lengths += 1
        for events, target, reward, step in zip(reached, asked_for, rewards, lengths, strict=True):
            if target is not None and reward > 0:
                events.append((int(step), int(target)))
        _record(recordings, running, observation, envs)
        if on_step is not None:
            on_step(int(active.sum()))
        for i in np.flatnonzero(episode_start & active):
            episode = int(running[i])
            if (fault := fault_in(infos[i])) is not None:  # it is played again
                faults[episode] = faults.get(episode, 0) + 1
                check_faults(faults[episode], int(seeds[episode]), fault)
                waiting.append(episode)
                if episode in recordings:
                    recordings[episode] = []
                continue
            frames = recordings.pop(episode, None)
            results[episode] = EpisodeResult(
                seed=int(seeds[episode]),
                episodic_return=float(returns[i]),
                length=int(lengths[i]),
                terminated=bool(terminated[i]),
                frames=None if frames is None else np.stack(frames),
                reached=None if asked_for[i] is None else tuple(reached[i]),
            )
            if on_episode is not None:
                on_episode(results[episode])
    return [results[e] for e in range(len(seeds))]


def unbatch_infos(infos: Mapping[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """Split a vector env's info into one per env, leaving out what an env does not have."""
    per_env: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for key, value in infos.items():
        if key.startswith("_"):
            continue
        mask: Iterable[bool] = infos.get(f"_{key}", np.ones(num_envs, bool))
        values = unbatch_infos(value, num_envs) if isinstance(value, Mapping) else value
        for i, has in enumerate(mask):
            one = values[i] if has else None
            if isinstance(one, _Whole):
                per_env[i] |= one.info
            elif has:
                per_env[i][key] = one
    return per_env


def fault_in(info: Mapping[str, Any]) -> str | None:
    """Why a step did not happen, where the simulator of a real env died or hung: the "fault" in its
    info, a text. Other envs may mean something else by a value of that name."""
    fault = info.get("fault")
    return fault if isinstance(fault, str) and fault else None


def check_faults(count: int, seed: int, fault: str) -> None:
    """Raise a RuntimeError where an episode has met more than `MOST_FAULTS`."""
    if count > MOST_FAULTS:
        raise RuntimeError(
            f"the episode of seed {seed} has met {count} faults, the last being {fault!r}: its env "
            'breaks down every time, or means something else by "fault" in its info'
        )


def _reset(
    envs: VectorEnv, seeds: Sequence[int], running: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """Reset the envs under the mask, each with the seed of the episode that it runs."""
    chosen = [
        int(seeds[e]) if e >= 0 and start else None for e, start in zip(running, mask, strict=True)
    ]
    with ending_on_error(envs):
        # Every vector env takes one seed per env, though the base class does not say so.
        return envs.reset(seed=chosen, options={"reset_mask": mask.copy()})  # type: ignore[arg-type]


def _record(
    recordings: dict[int, list[np.ndarray]],
    running: np.ndarray,
    observation: np.ndarray,
    envs: VectorEnv,
) -> None:
    wanted = [(i, int(e)) for i, e in enumerate(running) if int(e) in recordings]
    if not wanted:
        return
    is_image = observation.ndim == 4 and observation.dtype == np.uint8
    with ending_on_error(envs):
        frames = observation if is_image else envs.render()
    if frames is None:
        raise ValueError("to record envs without image observations, make them render rgb_array")
    for i, episode in wanted:
        recordings[episode].append(np.array(frames[i]))
