"""A policy and a critic on the world model's memory read-out; `agents.imagination` improves them.

The policy starts from behaviour cloning: from the head with which the world model predicts the
recorded behaviour, or trained on recorded read-outs (`agents.cloning`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldsim.checkpoint import PRETRAINED, CheckpointError, fingerprint, resolve
from worldsim.heads import SymlogHead, make_head
from worldsim.world_model import WorldModel


def world_model_note(world_model: str | Path) -> dict[str, str]:
    """What is noted beside a policy on features: its world model, and which weights it had.

    A directory is noted as an absolute path, so that the policy can be loaded from anywhere.
    """
    try:
        # A directory of a shipped model's name that holds no model is not the one.
        shipped = resolve(world_model) == PRETRAINED / world_model
        name = str(world_model if shipped else Path(world_model).resolve())
        return {"world_model": name, "world_model_sha256": fingerprint(world_model)}
    except CheckpointError:  # a model that was never saved
        return {"world_model": str(world_model)}


def note_of(policy: str | Path) -> Path:
    """The JSON file beside a saved policy that says of which world model it is."""
    return Path(policy).with_suffix(".json")


def noted_world_model(policy: str | Path) -> str | None:
    """The world model whose features a saved policy acts on, or in whose dream it has learned.

    None where it has no note; others keep results in files of that name.
    """
    try:
        values = json.loads(note_of(policy).read_text())
    except (OSError, ValueError):
        return None
    return values.get("world_model") if isinstance(values, dict) else None


def check_world_model(note: Mapping[str, str], path: Path) -> None:
    """Raise a ValueError where a policy's world model is not the one that it learned from."""
    if "world_model" not in note:
        raise ValueError(
            f"{path} acts on features, but the JSON file beside it does not say of which world "
            'model: write {"world_model": NAME OR DIRECTORY} there'
        )
    name, kept = note["world_model"], note.get("world_model_sha256")
    if kept is None:
        return
    try:
        found = fingerprint(name)
    except CheckpointError as error:
        raise ValueError(
            f"{path} acts on the features of {name}, which is not there: write where that model is "
            f"now as world_model in {note_of(path)}"
        ) from error
    if kept != found:
        raise ValueError(
            f"{path} acts on the features of another {name} than there is now: train it again, or "
            "bring back that model"
        )


def check_temperature(temperature: float) -> None:
    """Raise a ValueError where a temperature to draw actions at is not above 0."""
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")


class Critic(nn.Module):
    """Expected return: what the recorded behaviour makes, which stays, and a learned difference."""

    def __init__(self, num_features: int, num_bins: int, limit: float) -> None:
        super().__init__()
        self.behaviour = SymlogHead(num_features, num_bins, limit).requires_grad_(False)
        self.difference = make_head(num_features, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(..., d) to (...)."""
        return self.behaviour.expectation(features) + self.difference(features).squeeze(-1)


class ActorCritic(nn.Module):
    """Policy and critic on features, made of heads of the shape of the world model's own."""

    def __init__(
        self,
        num_features: int,
        num_actions: int,
        value_bins: int = 41,
        value_limit: float = 5.0,
    ) -> None:
        super().__init__()
        self.num_features, self.num_actions = num_features, num_actions
        self.value_bins, self.value_limit = value_bins, value_limit
        self.policy_head = make_head(num_features, num_actions)
        self.critic = Critic(num_features, value_bins, value_limit)

    @classmethod
    def from_behaviour(
        cls,
        model: WorldModel,
        *,
        walking: bool = True,
        temperature: float = 1.0,
        returns: bool = True,
        seed: int = 0,
    ) -> ActorCritic:
        """Start from the recorded behaviour, and its returns, as the model predicts them.

        Args:
            model: predicts.
            walking: of a model that remembers places, take the behaviour that goes where the next
                reward is expected; False takes plain behaviour cloning.
            temperature: of the draws of that behaviour, which the weights then have in them; below
                1 likely actions become likelier.
            returns: False lets the critic expect nothing at first, where what will be rewarded is
                not what was.
            seed: of the weights that do not come from the model.

        Raises:
            ValueError: the temperature is not above 0.
        """
        c = model.config
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            agent = cls(c.num_features, c.num_actions, c.reward_bins, c.reward_limit)
        agent = agent.to(model.device)
        head = model.behaviour_head if walking else model.policy_head
        widen(head, agent.policy_head, temperature)
        if returns:
            widen(model.value_head, agent.critic.behaviour)
        else:
            agent.forget_returns()
        return agent

    def forget_returns(self) -> None:
        """Let the critic expect nothing."""
        for head in (self.critic.behaviour, self.critic.difference):
            last = head[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)  # all returns are as likely, and cancel out
            nn.init.zeros_(last.bias)

    def logits(self, features: Tensor) -> Tensor:
        """(..., d) to (..., num_actions)."""
        return self.policy_head(features)

    def value(self, features: Tensor) -> Tensor:
        """Expected return: (..., d) to (...)."""
        return self.critic(features)

    def save(self, path: str | Path, *, world_model: str | Path | Mapping[str, str]) -> None:
        """Write `path` (.safetensors), and a JSON file of the same name beside it; both are always
        whole.

        Args:
            path: file of the weights.
            world_model: name or directory of the world model whose features these are; or what
                `world_model_note` said of it, where the checkpoint may have been replaced since.
        """
        path = _weights_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        weights = {k: t.detach().cpu().contiguous() for k, t in self.state_dict().items()}
        save_file(weights, temporary)
        if not isinstance(world_model, Mapping):
            world_model = world_model_note(world_model)
        note = {
            **world_model,
            "num_features": self.num_features,
            "num_actions": self.num_actions,
            "value_bins": self.value_bins,
            "value_limit": self.value_limit,
        }
        temporary_note = path.with_suffix(".json.tmp")
        temporary_note.write_text(json.dumps(note, indent=2) + "\n")
        temporary_note.replace(note_of(path))
        temporary.replace(path)  # last: where the weights are, so is what they are of

    @classmethod
    def load(cls, path: str | Path) -> tuple[ActorCritic, str]:
        """Read what `save` wrote.

        Returns:
            The agent and its world model's name or directory.

        Raises:
            FileNotFoundError: one of the two files is missing.
            ValueError: they are damaged, hold something else, or are of a world model that has
                since been trained anew.
        """
        path = _weights_path(path)
        try:
            note = json.loads(note_of(path).read_text())
            sizes = ("num_features", "num_actions", "value_bins", "value_limit")
            agent = cls(*(note[name] for name in sizes))
            agent.load_state_dict(load_file(path))
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{path} holds no actor-critic: {error}") from error
        check_world_model(note, path)
        return agent, note["world_model"]


@torch.no_grad()
def widen(head: nn.Sequential, wider: nn.Sequential, temperature: float = 1.0) -> None:
    """Give a head on more features the weights of one on the first of them: it says the same.

    What the further features mean is to be learned; the last layer begins without them. What it
    says, logits, is divided by the temperature.

    Raises:
        ValueError: the temperature is not above 0.
    """
    check_temperature(temperature)
    for source, target in zip(head, wider, strict=True):
        if isinstance(source, nn.Linear) and isinstance(target, nn.Linear):
            rows = source.out_features if target.out_features > source.out_features else None
            target.weight[:rows, source.in_features :] = 0
            target.weight[:rows, : source.in_features] = source.weight
            target.bias[:rows] = source.bias
    last = wider[-1]
    assert isinstance(last, nn.Linear)
    last.weight.div_(temperature)
    last.bias.div_(temperature)


def _weights_path(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"an actor-critic is a .safetensors file, got {path.name!r}")
    return path


class ActorCriticPolicy:
    """Acts on features; `agents.features.FeaturePolicy` makes it act on frames.

    Args:
        agent: what decides.
        deterministic: take the most likely action instead of drawing one.
        seed: of the draws.
        temperature: of the draws; below 1 likely actions become likelier. Cloned behaviour imitates
            noise too, of which less is left.

    Raises:
        ValueError: the temperature is not above 0.
    """

    def __init__(
        self,
        agent: ActorCritic,
        *,
        deterministic: bool = False,
        seed: int = 0,
        temperature: float = 1.0,
    ) -> None:
        check_temperature(temperature)
        self.agent = agent.eval()
        self.deterministic, self.temperature = deterministic, temperature
        self.seed = seed

    @torch.no_grad()
    def act(
        self,
        observation: np.ndarray,
        state: int | None,
        episode_start: np.ndarray,
        infos: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[np.ndarray, int]:
        """Choose actions (n,) int64 from features (n, d) float32; the state counts the calls."""
        step = state or 0
        device = next(self.agent.parameters()).device
        logits = self.agent.logits(torch.as_tensor(observation, device=device)).cpu().numpy()
        if not self.deterministic:
            noise = np.random.default_rng([self.seed, step]).gumbel(size=logits.shape)
            logits = logits + self.temperature * noise
        return logits.argmax(-1).astype(np.int64), step + 1
