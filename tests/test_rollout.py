"""Rollout: every seed is played once, in parallel as alone. Saved policies, statistics."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from sb3_contrib import RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy

from agents.rollout import evaluate, make_parallel, rollout, unbatch_infos
from agents.sb3 import SB3Policy, algorithm_of
from agents.statistics import (
    bootstrap_interval,
    crossed_bootstrap_interval,
    paired_bootstrap_interval,
)
from experiments.model_free import WholeSequencesPolicy
from experiments.workers import play_episode
from worldsim.recording import RecordedEpisode


class Countdown(gymnasium.Env):
    """Lasts 3 to 9 steps, drawn from the seed; action 1 pays what the info says it pays."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, size: int = 8) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(3, 10))
        self.pay = int(self.np_random.integers(1, 5))
        return self.observe(), {"pay": self.pay, "nested": {"left": self.left}}

    def observe(self) -> np.ndarray:
        return np.full(self.observation_space.shape, self.left, np.uint8)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        info = {"pay": self.pay, "nested": {"left": self.left}}
        return self.observe(), float(action * self.pay), self.left == 0, False, info


class Checker:
    """Always acts 1, and holds every observation, start flag and info against the others."""

    def __init__(self) -> None:
        self.starts = 0

    def act(
        self,
        observation: np.ndarray,
        state: Any,
        episode_start: np.ndarray,
        infos: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[np.ndarray, Any]:
        assert infos is not None
        left = np.array([info["nested"]["left"] for info in infos])
        np.testing.assert_array_equal(observation[:, 0, 0, 0], left)
        if state is None:
            assert episode_start.all()
        else:
            np.testing.assert_array_equal(left[~episode_start], state[~episode_start] - 1)
        self.starts += int(episode_start.sum())
        return np.ones(len(infos), np.int64), left


def expected(seed: int) -> tuple[float, int]:
    env = Countdown()
    _, info = env.reset(seed=seed)
    return float(info["pay"] * info["nested"]["left"]), info["nested"]["left"]


def sync(n: int) -> SyncVectorEnv:
    return SyncVectorEnv([Countdown] * n, autoreset_mode=AutoresetMode.DISABLED)


@pytest.mark.parametrize(("num_envs", "num_seeds"), [(1, 3), (3, 3), (3, 10), (4, 2)])
def test_every_seed_is_played_once(num_envs: int, num_seeds: int) -> None:
    seeds = list(range(100, 100 + num_seeds))
    steps: list[int] = []
    results = rollout(Checker(), sync(num_envs), seeds, on_step=steps.append)
    assert [r.seed for r in results] == seeds
    assert [(r.episodic_return, r.length) for r in results] == [expected(s) for s in seeds]
    assert all(r.terminated for r in results)
    assert sum(steps) == sum(r.length for r in results)


def test_processes_give_the_same_episodes() -> None:
    seeds = list(range(5))
    finished: list[int] = []
    results = evaluate(
        Checker(), Countdown, seeds, num_workers=2, on_episode=lambda r: finished.append(r.seed)
    )
    assert [(r.episodic_return, r.length) for r in results] == [expected(s) for s in seeds]
    assert sorted(finished) == seeds


class Errands(Countdown):
    """Asks for targets 0 and 1 in turn, and pays one on every other step, at the odd ones."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = super().reset(seed=seed)
        self.paid = 0
        return observation, info | {"target_index": 0}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = super().step(action)
        pays = self.left % 2 == 1
        self.paid += pays
        info["target_index"] = self.paid % 2
        return observation, float(pays), terminated, truncated, info


def test_what_was_reached_is_told_where_infos_say_what_is_asked_for() -> None:
    batch = SyncVectorEnv([Errands] * 2, autoreset_mode=AutoresetMode.DISABLED)
    for seed, result in zip(range(5), rollout(Checker(), batch, range(5)), strict=True):
        length = expected(seed)[1]
        odd = [step for step in range(1, length + 1) if (length - step) % 2 == 1]
        assert result.reached == tuple((step, i % 2) for i, step in enumerate(odd))
    assert all(r.reached is None for r in rollout(Checker(), sync(2), range(3)))


def test_recorded_frames_are_those_of_the_episode() -> None:
    results = rollout(Checker(), sync(2), [3, 4, 5], num_recorded=2)
    for result in results[:2]:
        assert result.frames is not None
        countdown = np.arange(result.length, -1, -1)
        np.testing.assert_array_equal(result.frames[:, 0, 0, 0], countdown)
    assert results[2].frames is None


def test_rollout_refuses_envs_that_reset_themselves_and_no_seeds() -> None:
    with pytest.raises(ValueError, match="autoreset_mode"):
        rollout(Checker(), SyncVectorEnv([Countdown]), [0])
    with pytest.raises(ValueError, match="seeds are empty"):
        rollout(Checker(), make_parallel(Countdown, 0), [])


def test_unbatched_infos_leave_out_what_an_env_does_not_have() -> None:
    infos = {
        "pay": np.array([1, 0, 3]),
        "_pay": np.array([True, False, True]),
        "nested": {"left": np.array([0, 5, 0]), "_left": np.array([False, True, False])},
        "_nested": np.array([False, True, False]),
    }
    assert unbatch_infos(infos, 3) == [{"pay": 1}, {"nested": {"left": 5}}, {"pay": 3}]


@pytest.mark.parametrize(
    ("algorithm", "policy"),
    [(PPO, "CnnPolicy"), (A2C, "CnnPolicy"), (RecurrentPPO, "MlpLstmPolicy")],
)
def test_saved_sb3_models_are_recognised_and_keep_their_memory(
    algorithm: Any, policy: str, tmp_path: Path
) -> None:
    env = make_vec_env(lambda: Countdown(36))
    kwargs: dict[str, Any] = {"n_steps": 8}
    if algorithm is not A2C:
        kwargs["batch_size"] = 8
    if policy == "MlpLstmPolicy":
        kwargs["policy_kwargs"] = {"lstm_hidden_size": 8, "net_arch": [8]}
    model = algorithm(policy, env, seed=0, device="cpu", **kwargs)
    model.save(tmp_path / "policy")
    path = tmp_path / "policy.zip"
    assert algorithm_of(path) is algorithm

    loaded = SB3Policy.load(path, deterministic=True)
    observation = np.random.default_rng(0).integers(0, 256, (3, 36, 36, 3)).astype(np.uint8)
    state, expected_state = None, None
    starts = np.ones(3, bool)
    for _ in range(3):
        actions, state = loaded.act(observation, state, starts)
        expected_actions, expected_state = model.predict(
            observation, expected_state, starts, deterministic=True
        )
        np.testing.assert_array_equal(actions, expected_actions)
        starts = np.zeros(3, bool)
    assert (state is not None) == (algorithm is RecurrentPPO)


class OwnPolicy(ActorCriticPolicy):
    pass


def test_policies_of_own_classes_are_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env, path = make_vec_env(lambda: Countdown(36)), tmp_path / "policy.zip"
    PPO(OwnPolicy, env, n_steps=8, batch_size=8, device="cpu").save(path)
    assert algorithm_of(path) is PPO
    RecurrentPPO(WholeSequencesPolicy, env, n_steps=8, batch_size=8, device="cpu").save(path)
    assert algorithm_of(path) is RecurrentPPO
    DQN("CnnPolicy", env, buffer_size=8, device="cpu").save(path)
    assert algorithm_of(path) is DQN
    PPO(OwnPolicy, env, n_steps=8, batch_size=8, device="cpu").save(path)
    monkeypatch.delattr(f"{__name__}.OwnPolicy")
    with pytest.raises(ValueError, match=r"policy class of .* cannot be imported: .*OwnPolicy"):
        SB3Policy.load(path)


def test_files_that_are_no_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.zip"):
        SB3Policy.load(tmp_path / "missing.zip")
    (tmp_path / "wrong.zip").write_text("not a zip")
    with pytest.raises(ValueError, match=r"wrong\.zip is not a model"):
        SB3Policy.load(tmp_path / "wrong.zip")


def test_bootstrap_interval_covers_the_mean() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        low, high = bootstrap_interval(rng.normal(3, 2, 40), num_resamples=1000, seed=trial)
        covered += low <= 3 <= high
    assert 0.88 < covered / 200 < 0.99
    assert bootstrap_interval([5.0, 5.0]) == (5.0, 5.0)


def test_rows_are_drawn_anew_as_columns_are() -> None:
    values = np.random.default_rng(0).normal(size=12)
    assert crossed_bootstrap_interval(values[None]) == bootstrap_interval(values)
    assert crossed_bootstrap_interval(np.array([[1.0, 1.0], [3.0, 3.0]])) == (1.0, 3.0)
    with pytest.raises(ValueError, match="must be a table of finite numbers"):
        crossed_bootstrap_interval(values)


def test_paired_intervals_are_of_differences_by_maze() -> None:
    ours, theirs = np.random.default_rng(1).normal(0, 5, (2, 1, 20))
    low, high = bootstrap_interval((ours - theirs)[0])
    found = paired_bootstrap_interval(ours, theirs)
    np.testing.assert_allclose(found, (low, high), atol=0.05 * (high - low))
    # What both have in common by maze adds nothing to how unsure the difference is.
    mazes = np.random.default_rng(2).normal(0, 100, 20)
    shifted = paired_bootstrap_interval(ours + mazes, theirs + mazes)
    np.testing.assert_allclose(shifted, found, atol=1e-9)


class Faulty(Countdown):
    """The simulator of seed 3 dies at its first or second step, but for the second time."""

    def __init__(self, fault_at: int, faults: int = 1) -> None:
        super().__init__()
        self.fault_at, self.faults = fault_at, faults

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        self.steps = 0
        return super().reset(seed=seed)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        self.steps += 1
        if self.np_random_seed == 3 and self.steps == self.fault_at and self.faults:
            self.faults -= 1
            return observation, 99.0, False, True, info | {"fault": "it died"}
        return observation, reward, terminated, truncated, info


@pytest.mark.parametrize("fault_at", [1, 2])
def test_an_episode_whose_env_broke_down_is_played_again(fault_at: int) -> None:
    batch = SyncVectorEnv(
        [lambda: Faulty(fault_at), lambda: Faulty(fault_at, 0)],
        autoreset_mode=AutoresetMode.DISABLED,
    )
    seeds, seen = [3, 4, 5], []
    results = rollout(Checker(), batch, seeds, num_recorded=1, on_episode=seen.append)
    assert [(r.episodic_return, r.length) for r in results] == [expected(s) for s in seeds]
    assert sorted(r.seed for r in seen) == seeds and all(r.terminated for r in results)
    assert results[0].frames is not None
    countdown = np.arange(results[0].length, -1, -1)
    np.testing.assert_array_equal(results[0].frames[:, 0, 0, 0], countdown)


def test_an_env_that_breaks_down_every_time_is_given_up() -> None:
    batch = SyncVectorEnv([lambda: Faulty(1, 99)], autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(RuntimeError, match=r"of seed 3 has met 4 faults, the last being 'it died'"):
        rollout(Checker(), batch, [3])
    with pytest.raises(RuntimeError, match=r"of seed 3 has met 4 faults"):
        list(play_episode(Faulty(1, 99), Checker(), 3, {}))


def test_a_recording_keeps_nothing_of_a_faulty_step() -> None:
    def record(env: gymnasium.Env) -> RecordedEpisode:
        *_, episode = play_episode(env, Checker(), 3, {})
        assert isinstance(episode, RecordedEpisode)
        return episode

    whole, again, cut = (record(Faulty(at, n)) for at, n in ((1, 0), (1, 1), (2, 1)))
    assert len(whole.rewards) == expected(3)[1]
    np.testing.assert_array_equal(again.rewards, whole.rewards)
    np.testing.assert_array_equal(again.observations, whole.observations)
    np.testing.assert_array_equal(cut.rewards, whole.rewards[:1])
    np.testing.assert_array_equal(cut.observations, whole.observations[:2])
    assert cut.truncations[-1] and not cut.terminations.any()


class Chatty(Countdown):
    """Tells in its infos what no array can hold of many envs, and something called fault."""

    def observe(self) -> np.ndarray:
        self.told = {"seen": np.arange(self.left), "hit": self.left if self.left % 2 else None}
        return super().observe()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        *result, info = super().step(action)
        return *result, info | self.told | {"fault": False}  # type: ignore[return-value]


class Listener(Checker):
    """Holds what it is told against what it sees."""

    def act(
        self, observation: np.ndarray, state: Any, episode_start: np.ndarray, infos: Any = None
    ) -> tuple[np.ndarray, Any]:
        for frame, start, info in zip(observation, episode_start, infos, strict=True):
            left = int(frame[0, 0, 0])
            if not start:
                assert info["seen"].tolist() == list(range(left)) and info["fault"] is False
                assert info["hit"] == (left if left % 2 else None)
        return super().act(observation, state, episode_start, infos)


@pytest.mark.parametrize("num_workers", [0, 3])
def test_envs_tell_policies_what_they_like(num_workers: int) -> None:
    results = evaluate(Listener(), Chatty, [3, 4, 5, 6], num_workers=num_workers)
    assert [(r.episodic_return, r.length) for r in results] == [expected(s) for s in range(3, 7)]
    *_, episode = play_episode(Chatty(), Checker(), 3, {})
    assert isinstance(episode, RecordedEpisode) and len(episode.rewards) == expected(3)[1]


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [[1.0]]])
def test_bootstrap_interval_refuses_what_has_no_mean(values: Any) -> None:
    with pytest.raises(ValueError, match="finite numbers"):
        bootstrap_interval(values)


class Failing(Countdown):
    """In a process: its seed 1 ends that process at the first step, its seed 2 never answers."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.np_random_seed == 1:
            os._exit(1)
        if self.np_random_seed == 2:
            time.sleep(60)  # longer than any test waits, and no longer where one fails
        return super().step(action)


def test_a_process_that_ends_is_told_and_the_others_are_not_waited_for() -> None:
    envs = make_parallel(Failing, 3)
    with pytest.raises(RuntimeError, match="the process of an env has ended"):
        rollout(Checker(), envs, [0, 1, 2])
    assert envs.closed and not any(process.is_alive() for process in envs.processes)


def test_ctrl_c_ends_processes_that_have_not_all_answered() -> None:
    envs = make_parallel(Failing, 2)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 2)  # the first env has answered, the second will not
        with pytest.raises(KeyboardInterrupt):
            rollout(Checker(), envs, [0, 2])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    envs.close()
    assert not any(process.is_alive() for process in envs.processes)
