"""Agents of the agents benchmark: their names, and colours in plots."""

from __future__ import annotations

import matplotlib

LABELS = {
    "random": "random",
    "behaviour": "behaviour cloning",
    "cloned": "behaviour cloning, told places and map too",
    "walker": "walking to where a reward is expected",
    "walker_without_map": "walking straight to there, without a map",
    "walker_short_memory": "walking, memory cut",
    "advantage_weighted": "advantage-weighted cloning",
    "ppo_pixels": "PPO in the dream, pixels",
    "recurrent_ppo_pixels": "RecurrentPPO in the dream, pixels",
    "ppo_features": "PPO in the dream, memory read-out",
    "actor_critic": "actor-critic in the dream",
    "actor_critic_from_cloning": "actor-critic in the dream, from behaviour cloning",
    "actor_critic_cloned": "the same, from advantage-weighted cloning",
    "actor_critic_short_memory": "actor-critic, memory cut",
    "planner": "planner, whose policy is walking",
    "planner_cloning": "planner, whose policy is behaviour cloning",
    "planner_actor_critic": "planner, whose policy is the actor-critic",
    "model_free": "RecurrentPPO on the real env",
    "data": "scripted, as in the data",
    "oracle": "scripted, sees the plan and goes straight to every reward",
}
"""Agents of the benchmark, in the order of its table. Actor-critic, PPO on the read-out and planner
start from the model's behaviour: from walking where it remembers places, else from cloning."""


def colour_of(agent: str) -> tuple[float, float, float, float]:
    """Of an agent in all plots, no other's: there are 20, which are all taken."""
    return matplotlib.colormaps["tab20"](list(LABELS).index(agent))
