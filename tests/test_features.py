"""Policies on the world model's memory read-out see the same in real envs as in the dream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import VecMonitor
from tiny import NUM_ACTIONS, tiny_contexts, tiny_model

from agents.features import (
    FeaturePolicy,
    MemoryFeatures,
    feature_policy_kwargs,
    load_policy,
    start_from_behaviour,
)
from agents.sb3 import BatchedVecEnv, SB3Policy
from experiments.report import write_json
from worldsim.checkpoint import save
from worldsim.contexts import ContextBank
from worldsim.dream import DreamVectorEnv
from worldsim.dream_env import DreamEnv
from worldsim.occupancy_config import OccupancyConfig
from worldsim.odometry import OdometryConfig
from worldsim.places import PlacesConfig
from worldsim.pose import PoseConfig
from worldsim.world_model import WorldModel


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return tiny_model()


class Spy:
    """Plays given actions and keeps the features that it was shown."""

    def __init__(self, actions: np.ndarray) -> None:
        self.actions = actions
        self.features: list[np.ndarray] = []

    def act(
        self,
        observation: np.ndarray,
        state: int | None,
        episode_start: np.ndarray,
        infos: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[np.ndarray, int]:
        self.features.append(observation)
        t = state or 0
        return self.actions[:, t], t + 1


def make_agent(model: WorldModel, **options: Any) -> PPO:
    dreams = DreamVectorEnv(
        2,
        world_model=model,
        contexts=tiny_contexts(),
        obs="features",
        autoreset_mode="SameStep",
    )
    env = VecMonitor(BatchedVecEnv(dreams))
    return PPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu", **options)


def test_features_of_real_frames_are_those_of_the_whole_episode(model: WorldModel) -> None:
    contexts = tiny_contexts(n=3, length=8)
    frames, actions = contexts.frames, contexts.actions
    cut = 5  # env 1 begins a new episode here
    spy = Spy(np.roll(actions, -1, axis=1))
    policy, state = FeaturePolicy(model, spy), None
    for t in range(8):
        start = np.array([t == 0, t in (0, cut), t == 0])
        _, state = policy.act(frames[:, t], state, start)
    led = actions.copy()
    led[1, cut] = model.no_action
    for i, begin in [(0, 0), (1, cut), (2, 0)]:
        whole = model.observe(
            model.initial_state(1),
            torch.as_tensor(led[i : i + 1, begin:]),
            torch.as_tensor(frames[i : i + 1, begin:]),
        )
        np.testing.assert_allclose(spy.features[-1][i], whole.features[0], atol=1e-4, rtol=1e-4)


class Replay(gymnasium.Env):
    """Shows recorded frames, whatever is done."""

    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(NUM_ACTIONS)

    def __init__(self, frames: np.ndarray) -> None:
        self.frames = frames

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return self.frames[0], {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        return self.frames[self.t], 0.0, False, self.t == len(self.frames) - 1, {}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("with_map", [False, True])
def test_a_real_env_and_a_dream_show_identical_features_for_identical_frames(
    with_map: bool,
) -> None:
    model = tiny_model()
    if with_map:
        occupancy = OccupancyConfig(side=12, reach=3.0, width=32)
        model = tiny_model(
            pose=PoseConfig(),
            odometry=OdometryConfig(hidden=16, grid=1.0),
            places=PlacesConfig(slots=4, width=32, occupancy=occupancy),
        )
    contexts = tiny_contexts(n=1, length=8)
    frames, actions = contexts.frames[0], contexts.actions[0]
    env = MemoryFeatures(Replay(frames), model)
    check_env(env)
    for _ in range(2):  # a new episode forgets the old one
        features = [env.reset()[0]]
        features += [env.step(int(a))[0] for a in actions[1:]]
    for t in (0, 4, 7):
        bank = ContextBank.observe(model, contexts.frames[:, : t + 1], contexts.actions[:, : t + 1])
        dream = DreamEnv(world_model=model, contexts=bank, obs="features")
        assert dream.observation_space == env.observation_space
        np.testing.assert_allclose(features[t], dream.reset(seed=0)[0], atol=1e-4, rtol=1e-4)


def test_an_env_that_the_model_does_not_know_is_refused(model: WorldModel) -> None:
    env = Replay(np.zeros((3, 64, 64, 3), np.uint8))
    env.action_space = gymnasium.spaces.Discrete(3)
    with pytest.raises(ValueError, match=r"and 6 actions; the env has .* actions Discrete.3."):
        MemoryFeatures(env, model)
    env.observation_space = gymnasium.spaces.Box(0, 255, (32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match=r"\(64, 64, 3\) and 6 .* has frames uint8 \(32, 32, 3\)"):
        MemoryFeatures(env, model)


def test_agent_starts_from_the_behaviour_the_model_predicts(model: WorldModel) -> None:
    agent = make_agent(model, policy_kwargs=feature_policy_kwargs(model))
    start_from_behaviour(agent, model)
    features = torch.randn(20, model.config.num_features)
    expected = model.predict_policy(features).softmax(-1)
    distribution = agent.policy.get_distribution(features).distribution  # type: ignore[operator]
    torch.testing.assert_close(distribution.probs, expected, atol=1e-5, rtol=1e-4)
    assert not agent.policy.predict_values(features).any()  # type: ignore[operator]
    before = [p.clone() for p in model.parameters()]
    agent.learn(16)
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new)


def test_networks_of_another_shape_are_refused(model: WorldModel) -> None:
    with pytest.raises(ValueError, match="feature_policy_kwargs"):
        start_from_behaviour(make_agent(model), model)
    width = model.config.num_features
    tanh = {"net_arch": {"pi": [width], "vf": [width]}}
    with pytest.raises(ValueError, match="its activation is Tanh, not SiLU"):
        start_from_behaviour(make_agent(model, policy_kwargs=tanh), model)
    narrow = {"net_arch": {"pi": [4], "vf": [4]}, "activation_fn": torch.nn.SiLU}
    with pytest.raises(ValueError, match="feature_policy_kwargs"):
        start_from_behaviour(make_agent(model, policy_kwargs=narrow), model)


def test_saved_feature_policy_knows_its_world_model(model: WorldModel, tmp_path: Path) -> None:
    agent = make_agent(model)
    agent.save(tmp_path / "policy.zip")
    with pytest.raises(FileNotFoundError, match=r"policy\.json"):
        load_policy(tmp_path / "policy.zip")
    save(model, tmp_path / "checkpoint")
    write_json(tmp_path / "policy.json", {"world_model": str(tmp_path / "checkpoint")})
    policy = load_policy(tmp_path / "policy.zip", deterministic=True)
    assert isinstance(policy, FeaturePolicy) and isinstance(policy.policy, SB3Policy)
    frames = tiny_contexts().frames[:, 0]
    actions, _ = policy.act(frames, None, np.ones(len(frames), bool))
    assert actions.shape == (len(frames),) and (actions < NUM_ACTIONS).all()
