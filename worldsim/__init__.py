"""A learned video world model with long memory, as a Gymnasium environment."""

import gymnasium

gymnasium.register(
    id="worldsim/Dream-v0",
    entry_point="worldsim.dream:DreamEnv",
    vector_entry_point="worldsim.dream:DreamVectorEnv",
)
