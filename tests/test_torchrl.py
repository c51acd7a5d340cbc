"""Dreams are environments for TorchRL too."""

from __future__ import annotations

import torch
from gymnasium.vector import AutoresetMode
from torchrl.envs import GymWrapper
from torchrl.envs.utils import check_env_specs

from worldsim.contexts import ContextBank
from worldsim.dream import DreamVectorEnv
from worldsim.dream_env import DreamEnv
from worldsim.world_model import WorldModel


def test_a_single_dream_follows_its_specs(model: WorldModel, bank: ContextBank) -> None:
    env = GymWrapper(DreamEnv(world_model=model, contexts=bank, horizon=5))
    check_env_specs(env)
    rollout = env.rollout(12, break_when_any_done=False)
    assert rollout["pixels"].shape == (12, 64, 64, 3) and rollout["pixels"].dtype == torch.uint8
    truncated = rollout["next", "truncated"].squeeze(-1)
    assert truncated.nonzero().flatten().tolist() == [4, 9]
    # A frame is the next step's observation, except where a new episode begins.
    same = (rollout["next", "pixels"][:-1] == rollout["pixels"][1:]).flatten(1).all(1)
    assert same.tolist() == [i not in (4, 9) for i in range(11)]


def test_a_policy_is_rolled_out_on_batched_dreams(model: WorldModel, bank: ContextBank) -> None:
    dreams = DreamVectorEnv(
        4,
        world_model=model,
        contexts=bank,
        horizon=5,
        obs="features",
        autoreset_mode=AutoresetMode.DISABLED,  # TorchRL resets what has ended
    )
    env = GymWrapper(dreams)
    rollout = env.rollout(12, break_when_any_done=False)
    assert rollout.batch_size == (4, 12)
    assert rollout["observation"].shape == (4, 12, model.config.num_features)
    assert rollout["next", "reward"].isfinite().all()
    assert rollout["next", "done"].sum(1).flatten().tolist() == [2] * 4
