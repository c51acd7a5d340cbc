"""SB3 over the batched dream: its contract, its monitor, and learning through it."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v3 as iio
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.envs import IdentityEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize
from tiny import tiny_model

import envs
from agents.features import FeaturePolicy, MemoryFeatures, check_policy_fits, load_policy
from agents.sb3 import BatchedVecEnv, SB3Policy, save_agent
from agents.sb3_evaluation import RealEnvEvaluation
from worldsim.checkpoint import save
from worldsim.contexts import ContextBank
from worldsim.dream import DreamVectorEnv
from worldsim.dream_env import DreamEnv
from worldsim.world_model import WorldModel


def make(model: WorldModel, bank: ContextBank, n: int, **options: Any) -> BatchedVecEnv:
    options = {"horizon": 4, "autoreset_mode": "SameStep"} | options
    return BatchedVecEnv(DreamVectorEnv(n, world_model=model, contexts=bank, **options))


def test_only_a_dream_that_was_cut_is_told_to_be_truncated(bank: ContextBank) -> None:
    doomed = tiny_model()
    with torch.no_grad():
        doomed.termination_head[-1].bias.fill_(50)  # type: ignore[union-attr, operator]
    env = make(doomed, bank, 2)
    env.reset()
    _, _, dones, infos = env.step(np.zeros(2, np.int64))
    assert dones.all() and not any(info["TimeLimit.truncated"] for info in infos)


def test_batch_behaves_as_separate_envs_do(model: WorldModel, bank: ContextBank) -> None:
    n = 3
    batch = make(model, bank, n)
    separate = DummyVecEnv([lambda: DreamEnv(world_model=model, contexts=bank, horizon=4)] * n)
    batch.seed(5)
    separate.seed(5)
    np.testing.assert_array_equal(batch.reset(), separate.reset())
    assert batch.reset_infos == separate.reset_infos
    rng = np.random.default_rng(0)
    ended = set()
    for step in range(12):
        if step == 2:  # from now on the second is behind the others
            batch.env.reset(options={"reset_mask": np.array([False, True, False])})
            separate.envs[1].reset()
        actions = rng.integers(6, size=n)
        observations, rewards, dones, infos = batch.step(actions)
        ended.add(tuple(dones))
        expected = separate.step(actions)
        # One rounding step of a pixel: batched products round differently.
        np.testing.assert_allclose(observations.astype(float), expected[0].astype(float), atol=1)
        np.testing.assert_allclose(rewards, expected[1], atol=1e-3)
        np.testing.assert_array_equal(dones, expected[2])
        assert rewards.dtype == expected[1].dtype
        assert batch.reset_infos == separate.reset_infos
        for info, expected_info in zip(infos, expected[3], strict=True):
            assert info.keys() == expected_info.keys()
            assert info["TimeLimit.truncated"] == expected_info["TimeLimit.truncated"]
            if "terminal_observation" in info:
                np.testing.assert_allclose(
                    info["terminal_observation"].astype(float),
                    expected_info["terminal_observation"].astype(float),
                    atol=1,
                )
    assert {(True, False, True), (False, True, False)} <= ended


def test_monitor_counts_dreamed_episodes(model: WorldModel, bank: ContextBank) -> None:
    env = VecMonitor(make(model, bank, 2))
    env.reset()
    total = np.zeros(2, np.float32)
    for step in range(4):
        _, rewards, dones, infos = env.step(np.full(2, step))
        total += rewards
    assert dones.all()
    np.testing.assert_allclose([i["episode"]["r"] for i in infos], total, rtol=1e-5)
    assert [i["episode"]["l"] for i in infos] == [4, 4]


def test_gymnasiums_own_statistics_stay_with_the_episode_that_ended(
    model: WorldModel, bank: ContextBank
) -> None:
    dreams = make(model, bank, 2).env
    env = BatchedVecEnv(RecordEpisodeStatistics(dreams))
    env.reset()
    total = np.zeros(2, np.float32)
    for step in range(5):
        _, rewards, dones, infos = env.step(np.full(2, step))
        if step < 4:
            total += rewards
        assert all(("episode" in info) == done for info, done in zip(infos, dones, strict=True))
        if dones.all():
            np.testing.assert_allclose([i["episode"]["r"] for i in infos], total, rtol=1e-5)
            assert all("episode" not in info for info in env.reset_infos)
    assert step == 4


def test_render_tiles_the_envs(model: WorldModel, bank: ContextBank) -> None:
    env = make(model, bank, 4, render_mode="rgb_array")
    env.reset()
    assert env.render_mode == "rgb_array"
    image = env.render()
    assert image is not None and image.shape == (128, 128, 3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("algorithm", "policy", "obs"),
    [
        (PPO, "CnnPolicy", "pixels"),
        (PPO, "MlpPolicy", "features"),
        (RecurrentPPO, "CnnLstmPolicy", "pixels"),
        (RecurrentPPO, "MlpLstmPolicy", "features"),
    ],
)
def test_algorithms_run_on_the_dream(
    model: WorldModel, bank: ContextBank, algorithm: Any, policy: str, obs: str
) -> None:
    env = VecMonitor(make(model, bank, 2, obs=obs))
    agent = algorithm(policy, env, n_steps=8, batch_size=8, n_epochs=1, device="cpu", seed=0)
    agent.learn(32)
    assert agent.num_timesteps == 32
    returns, lengths = evaluate_policy(agent, env, n_eval_episodes=2, return_episode_rewards=True)
    assert np.isfinite(returns).all() and lengths == [4, 4]


def test_dqn_trains_in_a_single_dream(model: WorldModel, bank: ContextBank) -> None:
    env = DreamEnv(world_model=model, contexts=bank, horizon=4, obs="features")
    agent = DQN("MlpPolicy", env, learning_starts=8, buffer_size=100, batch_size=4, device="cpu")
    before = [p.clone() for p in agent.policy.parameters()]
    agent.learn(24)
    pairs = zip(before, agent.policy.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in pairs)
    # Judged, it takes its best actions, not those of exploration in training.
    agent.exploration_rate = 1.0
    features = env.observation_space.sample()[None].clip(-1, 1)
    best, _ = agent.predict(features, deterministic=True)
    policy = SB3Policy(agent)
    for _ in range(20):
        assert policy.act(features, None, np.array([True]))[0] == best


@pytest.mark.parametrize(
    ("algorithm", "policy", "options"),
    [
        (PPO, "MlpPolicy", {"n_steps": 8, "batch_size": 8}),
        (RecurrentPPO, "MlpLstmPolicy", {"n_steps": 8, "batch_size": 8}),
        (DQN, "MlpPolicy", {"learning_starts": 8, "buffer_size": 100, "batch_size": 4}),
    ],
)
def test_what_was_trained_in_dreams_acts_on_the_features_of_a_real_env(
    model: WorldModel, bank: ContextBank, tmp_path: Path, algorithm: Any, policy: str, options: Any
) -> None:
    dreams = VecMonitor(make(model, bank, 2, obs="features"))
    agent = algorithm(policy, dreams, device="cpu", seed=0, **options)
    before = [p.clone() for p in agent.policy.parameters()]
    agent.learn(48)
    pairs = zip(before, agent.policy.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in pairs)
    agent.save(tmp_path / "agent.zip")
    real = envs.make("memory-maze-7x7", max_episode_steps=3)
    env = Monitor(MemoryFeatures(real, model))
    try:
        kept = algorithm.load(tmp_path / "agent.zip", device="cpu")
        found = evaluate_policy(kept, env, n_eval_episodes=2, return_episode_rewards=True)
    finally:
        env.close()
    assert np.isfinite(found[0]).all() and found[1] == [3, 3]


def test_an_identity_env_is_learned_through_the_bridge() -> None:
    envs = SyncVectorEnv(
        [lambda: TimeLimit(IdentityEnv(dim=2, ep_length=20), 20)] * 4,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    agent = PPO(
        "MlpPolicy",
        VecMonitor(BatchedVecEnv(envs)),
        n_steps=32,
        batch_size=32,
        learning_rate=3e-3,
        device="cpu",
        seed=0,
    )
    agent.learn(4000)
    mean, _ = evaluate_policy(agent, agent.get_env(), n_eval_episodes=4)
    assert mean > 18


def test_other_autoreset_modes_are_refused(model: WorldModel, bank: ContextBank) -> None:
    with pytest.raises(ValueError, match="'SameStep', this one has 'NextStep'"):
        make(model, bank, 2, autoreset_mode="NextStep")


def test_methods_of_single_envs_are_refused(model: WorldModel, bank: ContextBank) -> None:
    env = make(model, bank, 2)
    with pytest.raises(NotImplementedError, match=r"\.env\.snapshot\(\)"):
        env.env_method("snapshot")
    assert env.get_attr("horizon") == [4, 4]
    with pytest.raises(ValueError, match="some envs only"):
        env.set_attr("horizon", 5, indices=[0])
    env.set_attr("horizon", 5)
    assert env.env.horizon == 5  # type: ignore[attr-defined]


class Counting(gymnasium.Env):
    """Rewards every step by the seed of the episode; frames show how many were made."""

    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(6)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.seed, self.steps = seed or 0, 0
        return self._frame(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        return self._frame(), float(self.seed), False, self.steps == 5, {}

    def _frame(self) -> np.ndarray:
        return np.full((64, 64, 3), 20 * self.steps, np.uint8)


class Shifted(Counting):
    """Counts its actions from 1."""

    action_space = gymnasium.spaces.Discrete(6, start=1)


@pytest.mark.parametrize("obs", ["pixels", "features"])
def test_real_episodes_are_played_while_the_dream_trains(
    model: WorldModel, bank: ContextBank, tmp_path: Path, obs: str
) -> None:
    env = VecMonitor(make(model, bank, 2, obs=obs))
    policy = "CnnPolicy" if obs == "pixels" else "MlpPolicy"
    agent = PPO(policy, env, n_steps=8, batch_size=8, n_epochs=1, device="cpu", seed=0)
    agent.set_logger(configure(str(tmp_path / "log"), ["csv"]))
    save(model, tmp_path / "model")
    callback = RealEnvEvaluation(
        Counting,
        every=20,
        world_model=tmp_path / "model" if obs == "features" else None,
        seeds=(3, 5, 7),
        num_workers=0,
        videos=tmp_path / "videos",
        best_model_save_path=tmp_path / "best.zip",
    )
    results = '{"config": {}}'  # of another policy, perhaps
    (tmp_path / "best.json").write_text(results)
    agent.learn(48, callback=callback)
    if obs == "pixels":
        assert (tmp_path / "best.json").read_text() == results
    assert [r.episodic_return for r in callback.last_results] == [15.0, 25.0, 35.0]
    rows = list(csv.DictReader((tmp_path / "log/progress.csv").open()))
    judged = [row for row in rows if row["eval/mean_reward"]]
    assert {float(row["eval/mean_reward"]) for row in judged} == {25.0}
    assert {float(row["eval/mean_ep_length"]) for row in judged} == {5.0}
    videos = sorted(int(file.stem) for file in (tmp_path / "videos").iterdir())
    assert videos == [20, 40, 48]
    assert iio.imread(tmp_path / "videos/20.mp4").shape == (6, 128, 128, 3)
    assert PPO.load(tmp_path / "best.zip").num_timesteps == 20  # no later one was better
    best = load_policy(tmp_path / "best.zip")  # it knows whose features it acts on
    assert isinstance(best, FeaturePolicy if obs == "features" else SB3Policy)
    frames, start = np.zeros((99, 64, 64, 3), np.uint8), np.ones(99, bool)
    drawn = [
        load_policy(tmp_path / "best.zip", seed=seed).act(frames, None, start)[0].tolist()
        for seed in (4, 4, 5)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    shifted = RealEnvEvaluation(Shifted, every=20, world_model=callback.world_model, num_workers=0)
    with pytest.raises(ValueError, match=r"the real env has .*start=1"):
        agent.learn(8, callback=shifted)
    blind = RealEnvEvaluation(Counting, every=20, num_workers=0)
    if obs == "features":
        with pytest.raises(ValueError, match=r"give RealEnvEvaluation\(..., world_model=\)"):
            agent.learn(8, callback=blind)
    else:
        images, four = Counting().observation_space, gymnasium.spaces.Discrete(4)
        check_policy_fits(best, "counting", images, agent.action_space)
        with pytest.raises(ValueError, match=r"actions Discrete\(6\); counting has .*Discrete\(4"):
            check_policy_fits(best, "counting", images, four)
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        RealEnvEvaluation(Counting, every=0)


def test_real_frames_are_normalised_as_those_of_training(
    model: WorldModel, bank: ContextBank, tmp_path: Path
) -> None:
    env = VecNormalize(make(model, bank, 2, obs="features"), norm_reward=False)
    agent = PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, device="cpu", seed=0)
    agent.learn(16)
    features = env.unnormalize_obs(np.ones((2, *env.observation_space.shape), np.float32))  # type: ignore[misc]
    shown: list[np.ndarray] = []
    agent.predict = lambda observation, *_, **__: (shown.append(observation), None)  # type: ignore[method-assign]
    starts = np.ones(2, bool)
    SB3Policy(agent, normalize=agent.get_vec_normalize_env()).act(features, None, starts)
    SB3Policy(agent).act(features, None, starts)
    np.testing.assert_allclose(shown[0], 1, atol=1e-3)
    np.testing.assert_array_equal(shown[1], features)
    spied: list[object] = []
    callback = RealEnvEvaluation(Counting, every=8, world_model=model, seeds=(3,), num_workers=0)
    callback.init_callback(agent)
    original = SB3Policy.__init__

    def spy(self: SB3Policy, *args: object, **options: object) -> None:
        spied.append(options["normalize"])
        original(self, *args, **options)  # type: ignore[arg-type]

    del agent.predict
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SB3Policy, "__init__", spy)
        agent.learn(16, callback=callback)
    assert spied and all(n is env for n in spied)
    # What is saved is loaded with it, and what is not, without.
    path = tmp_path / "best.zip"
    save_agent(agent, path)
    kept = SB3Policy.load(path).normalize
    assert kept is not None
    np.testing.assert_array_equal(kept.normalize_obs(features), env.normalize_obs(features))
    save_agent(agent, tmp_path / "best.one.zip")
    plain = PPO("MlpPolicy", make(model, bank, 2, obs="features"), device="cpu")
    save_agent(plain, path)
    assert SB3Policy.load(path).normalize is None
    assert SB3Policy.load(tmp_path / "best.one.zip").normalize is not None
    assert len(list(tmp_path.iterdir())) == 3


def test_processes_without_a_guarded_script_are_explained(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(
        "import functools, envs\nfrom agents.rollout import make_parallel\n"
        'make_parallel(functools.partial(envs.make, "corridor"), 1)\n'
    )
    paths = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 1
    assert 'below `if __name__ == "__main__":`' in ended.stderr.strip().splitlines()[-1]
