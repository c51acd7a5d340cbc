"""Acting on the world model's memory read-out instead of on pixels, in real envs as in the dream.

In the dream the read-out is the observation (`obs="features"`). Over a real env, `FeaturePolicy`
lets the model observe every real frame and hands its read-out on. `start_from_behaviour` gives such
a policy the behaviour that the model has learned to predict, as Dreamer 4 (Hafner et al. 2025,
arXiv 2509.24527) begins training in imagination with behaviour cloning.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import nn

from agents.actor_critic import (
    ActorCritic,
    ActorCriticPolicy,
    check_temperature,
    check_world_model,
    note_of,
    widen,
)
from agents.rollout import BEHAVIOUR_TEMPERATURE, Policy
from agents.sb3 import SB3Policy
from worldsim.checkpoint import load
from worldsim.checks import check_spaces
from worldsim.state import WorldState
from worldsim.world_model import WorldModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureState:
    """What a `FeaturePolicy` remembers."""

    world: WorldState
    actions: np.ndarray
    """(n,) int64, chosen last."""
    policy: Any
    """State of the policy within."""


class FeaturePolicy:
    """Shows a policy the model's read-out of the frames observed so far.

    Args:
        model: the world model that observes.
        policy: acts on features (n, d) float32.
    """

    def __init__(self, model: WorldModel, policy: Policy) -> None:
        self.model = model.eval()
        self.policy = policy

    def act(
        self,
        observation: np.ndarray,
        state: FeatureState | None,
        episode_start: np.ndarray,
        infos: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[np.ndarray, FeatureState]:
        """Choose one action per env from frames (n, h, w, c) uint8; see `agents.rollout.Policy`."""
        world, inner = None, None
        actions = np.full(len(observation), self.model.no_action, np.int64)
        if state is not None:
            world, actions, inner = state.world, state.actions, state.policy
        world = observe_frames(self.model, world, actions, observation, episode_start)
        features = world.features.float().cpu().numpy()
        chosen, inner = self.policy.act(features, inner, episode_start, infos)
        chosen = np.asarray(chosen, np.int64)
        return chosen, FeatureState(world=world, actions=chosen, policy=inner)


def behaviour_policy(
    model: WorldModel,
    *,
    walking: bool = True,
    deterministic: bool = False,
    seed: int = 0,
    temperature: float = BEHAVIOUR_TEMPERATURE,
) -> FeaturePolicy:
    """The behaviour that a world model predicts, acting on frames.

    Args:
        model: predicts.
        walking: go where the next reward is expected, as models with places can; False takes plain
            behaviour cloning.
        deterministic, seed, temperature: as for `ActorCriticPolicy`.

    Raises:
        ValueError: `walking` with a model that remembers no places; a temperature not above 0.
    """
    if walking and model.places is None:
        raise ValueError(
            "this world model has no memory of places, so it cannot walk to where a reward is "
            "expected: train them (--places), or take its plain behaviour"
        )
    agent = ActorCritic.from_behaviour(model, walking=walking)
    policy = ActorCriticPolicy(
        agent, deterministic=deterministic, seed=seed, temperature=temperature
    )
    return FeaturePolicy(model, policy)


class ShortMemoryPolicy:
    """A `FeaturePolicy` whose memory is cut: it observes only the last frames, anew at every step.

    What acting loses by it is what the long memory is worth.

    Args:
        model: the world model that observes.
        policy: acts on features (n, d) float32.
        num_frames: frames remembered, the present one included.
    """

    def __init__(self, model: WorldModel, policy: Policy, num_frames: int = 10) -> None:
        if num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}")
        self.model = model.eval()
        self.policy = policy
        self.num_frames = num_frames

    def act(
        self,
        observation: np.ndarray,
        state: ShortMemory | None,
        episode_start: np.ndarray,
        infos: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[np.ndarray, ShortMemory]:
        """Choose one action per env from frames (n, h, w, c) uint8; see `agents.rollout.Policy`."""
        n, no_action = len(observation), self.model.no_action
        frames = [[f] for f in observation]
        actions = [[no_action] for _ in range(n)]
        inner = None
        if state is not None:
            inner = state.policy
            for i in np.flatnonzero(~np.asarray(episode_start, bool)):
                frames[i] = [*state.frames[i], observation[i]][-self.num_frames :]
                actions[i] = [*state.actions[i], int(state.chosen[i])][-self.num_frames :]
        features = np.empty((n, self.model.config.num_features), np.float32)
        lengths = np.array([len(f) for f in frames])
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            world = self.model.observe(
                self.model.initial_state(len(rows)),
                torch.as_tensor([actions[i] for i in rows], device=self.model.device),
                torch.as_tensor(np.stack([np.stack(frames[i]) for i in rows])).to(
                    self.model.device
                ),
            )
            features[rows] = world.features.float().cpu().numpy()
        chosen, inner = self.policy.act(features, inner, episode_start, infos)
        chosen = np.asarray(chosen, np.int64)
        return chosen, ShortMemory(frames=frames, actions=actions, chosen=chosen, policy=inner)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShortMemory:
    """What a `ShortMemoryPolicy` remembers, per env."""

    frames: list[list[np.ndarray]]
    actions: list[list[int]]
    """What led to each of the frames."""
    chosen: np.ndarray
    """(n,) int64, chosen last."""
    policy: Any
    """State of the policy within."""


def observe_frames(
    model: WorldModel,
    world: WorldState | None,
    actions: np.ndarray,
    frames: np.ndarray,
    episode_start: np.ndarray,
) -> WorldState:
    """Let the model observe one real frame per env; where an episode starts, it forgets first.

    Args:
        model: the world model.
        world: its memory before; None at first.
        actions: (n,) int64, what led to the frames; ignored where an episode starts.
        frames: (n, h, w, c) uint8.
        episode_start: (n,) bool.
    """
    device, blank = model.device, model.initial_state(len(frames))
    if world is not None:
        world = blank.where(torch.as_tensor(episode_start, device=device), world)
    actions = np.where(episode_start, model.no_action, actions)
    return model.observe(
        blank if world is None else world,
        torch.as_tensor(actions, device=device)[:, None],
        torch.as_tensor(frames, device=device)[:, None],
    )


class MemoryFeatures(gymnasium.Wrapper[np.ndarray, Any, np.ndarray, Any]):
    """A real env whose observation is the model's read-out of all frames of the episode so far.

    The same observation as a dream env's with `obs="features"`: a policy trained there can be
    evaluated, or trained on, by whatever takes a Gymnasium env. Many envs at once are faster under
    `FeaturePolicy`, which observes them in one batch.

    Args:
        env: observations are frames (h, w, c) uint8, actions those of the model.
        world_model: a model, a shipped name or a checkpoint directory.
        device: where a model that is named is put.

    Raises:
        ValueError: the env has other frames or actions than the model.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        world_model: str | Path | WorldModel,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(env)
        model = world_model
        if not isinstance(model, WorldModel):
            model = load_observer(model, device)
        check_spaces("the env", env.observation_space, env.action_space, model.config)
        self.model = model.eval()
        limit, shape = float(np.finfo(np.float32).max), (model.config.num_features,)
        self.observation_space = gymnasium.spaces.Box(-limit, limit, shape, np.float32)
        self._world: WorldState | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode, and the memory with it."""
        frame, info = self.env.reset(seed=seed, options=options)
        self._world = None
        return self._observe(frame, self.model.no_action), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Step, and observe the frame that the action led to."""
        frame, reward, terminated, truncated, info = self.env.step(action)
        return self._observe(frame, int(action)), float(reward), terminated, truncated, info

    def _observe(self, frame: np.ndarray, action: int) -> np.ndarray:
        start = np.array([self._world is None])
        self._world = observe_frames(
            self.model, self._world, np.array([action]), frame[None], start
        )
        return self._world.features[0].float().cpu().numpy()


def check_policy_fits(
    policy: Policy, env: str, observation_space: gymnasium.Space, action_space: gymnasium.Space
) -> None:
    """Raise a ValueError where a policy, or its world model, is not of such an env.

    Args:
        policy: any; those that tell what they are of are checked.
        env: name of the env, for the message.
        observation_space, action_space: of one env.
    """
    model = getattr(policy, "model", None)
    if isinstance(model, WorldModel):
        check_spaces(env, observation_space, action_space, model.config)
    elif isinstance(policy, SB3Policy):
        known, actions = policy.model.observation_space, policy.model.action_space
        shapes = {known.shape, *([known.shape[1:] + known.shape[:1]] if known.shape else [])}
        if actions != action_space or observation_space.shape not in shapes:
            raise ValueError(
                f"the policy was trained on observations {known} and actions {actions}; {env} has "
                f"{observation_space} and {action_space}"
            )


def doubted_features(model: WorldModel) -> slice:
    """Features by which to see whether a dreamed step is to be doubted.

    What is told of places, where the model remembers some: two dreams that differ there are often
    wrong there, while read-outs tell little (`experiments/evaluate_doubt.py`).
    """
    return slice(model.d_model if model.places is not None else 0, None)


def feature_policy_kwargs(model: WorldModel) -> dict[str, Any]:
    """SB3's `policy_kwargs` for networks of the shape of the model's own policy head."""
    width = model.config.num_features
    return {"net_arch": {"pi": [width], "vf": [width]}, "activation_fn": nn.SiLU}


def start_from_behaviour(
    agent: OnPolicyAlgorithm, model: WorldModel, *, temperature: float = 1.0
) -> None:
    """Copy the model's head, which predicts the recorded behaviour, into an agent's policy.

    Its critic begins with expecting nothing.

    Args:
        agent: PPO or A2C with `MlpPolicy` on features and `feature_policy_kwargs`.
        model: the world model that it acts in.
        temperature: of the draws of that behaviour; below 1 likely actions become likelier.

    Raises:
        ValueError: the agent's networks have another shape; a temperature not above 0.
    """
    check_temperature(temperature)
    head, policy = model.behaviour_head, agent.policy
    try:
        hidden, activation = policy.mlp_extractor.policy_net  # type: ignore[union-attr, misc]
        if not isinstance(activation, nn.SiLU):
            raise ValueError(f"its activation is {type(activation).__name__}, not SiLU")
        widen(head, nn.Sequential(hidden, activation, policy.action_net), temperature)
        # Returns that a random critic makes up would move the policy before it has learned.
        nn.init.zeros_(policy.value_net.weight)  # type: ignore[union-attr]
        nn.init.zeros_(policy.value_net.bias)  # type: ignore[union-attr]
    except (AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(
            "the agent's policy does not have the shape of the model's policy head: make it with "
            f"MlpPolicy and policy_kwargs=feature_policy_kwargs(model) ({error})"
        ) from error


def in_dreams(policy: Policy) -> tuple[Policy, Literal["pixels", "features"]]:
    """What acts for a policy on frames in dreams, and on what it acts there.

    Dreams show features themselves, with all that their context has put into them.
    """
    if isinstance(policy, FeaturePolicy):
        return policy.policy, "features"
    return policy, "pixels"


def load_policy(
    path: str | Path,
    *,
    deterministic: bool = False,
    seed: int = 0,
    device: str = "cpu",
    cuda_graphs: bool = True,
) -> Policy:
    """Load whatever policy an experiment saved, ready to act on frames.

    A policy on features has a JSON file of the same name beside it, which says what world model
    they come from: {"world_model": name or directory}. An SB3 policy is a zip, an actor-critic a
    safetensors file.

    Args:
        path: of the policy.
        deterministic: take the most likely action instead of drawing one.
        seed: of its draws. Those of SB3's policies come from torch's own generator, which is
            seeded with it.
        device: where it runs.
        cuda_graphs: on CUDA, let its world model observe every frame by one graph.

    Raises:
        FileNotFoundError: no such policy, or a policy on features without that file.
        ValueError: the file holds no policy, one of an algorithm not known here, or one of a world
            model that has since been trained anew.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        agent, world_model = ActorCritic.load(path)
        model = load_observer(world_model, device, cuda_graphs)
        inner = ActorCriticPolicy(agent.to(device), deterministic=deterministic, seed=seed)
        return FeaturePolicy(model, inner)
    policy = SB3Policy.load(path, deterministic=deterministic, device=device)
    torch.manual_seed(seed)
    space = policy.model.observation_space
    if space is None or len(space.shape or ()) != 1:
        return policy
    note = note_of(path)
    if not note.is_file():
        raise FileNotFoundError(
            f"{path} acts on features, but {note}, which names their world model, is missing: "
            'write {"world_model": NAME OR DIRECTORY} there'
        )
    values = json.loads(note.read_text())
    check_world_model(values, path)
    return FeaturePolicy(load_observer(values["world_model"], device, cuda_graphs), policy)


def load_observer(
    name: str | Path, device: torch.device | str = "cpu", cuda_graphs: bool = True
) -> WorldModel:
    """Load a world model that is to observe, or dream, frame by frame; on CUDA, by a graph each."""
    model = load(name, device=device)
    if cuda_graphs:
        model.use_cuda_graphs(if_possible=True)
    return model
