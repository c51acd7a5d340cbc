"""A learned video world model with long memory, as a Gymnasium environment."""

import os

import gymnasium
import torch

from worldsim.checkpoint import CheckpointError, Contexts, load, load_contexts, save
from worldsim.dreaming import Dream
from worldsim.state import WorldState
from worldsim.world_model import WorldModel
from worldsim.world_model_config import WorldModelConfig

gymnasium.register(
    id="worldsim/Dream-v0",
    entry_point="worldsim.dream_env:DreamEnv",
    vector_entry_point="worldsim.dream:DreamVectorEnv",
)

# Threads of torch do not survive a fork: where they have computed before, a forked process, as of
# Gymnasium's AsyncVectorEnv, would wait for them for ever.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

__all__ = [
    "CheckpointError",
    "Contexts",
    "Dream",
    "WorldModel",
    "WorldModelConfig",
    "WorldState",
    "load",
    "load_contexts",
    "save",
]
