"""Record episodes of a real environment into a Minari dataset.

    python experiments/collect.py --env memory-maze-9x9 --policy explorer --episodes 260 \\
        --dataset memory-maze-9x9/explorer-v0

Worker processes each run one environment and save whole episodes. Episode i is always played with
seed `seed + i`, whoever plays it, so a run that was killed continues when it is started again and
ends with the dataset that it would have made undisturbed.
"""

import contextlib
import dataclasses
import functools
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from tqdm import tqdm

import envs
from agents.actor_critic import ActorCriticPolicy, noted_world_model, world_model_note
from agents.explorers import ExplorerConfig, RandomPolicy
from agents.rollout import BEHAVIOUR_TEMPERATURE, Policy, check_limit
from agents.scripted import env_options, has_scripted_player, scripted_player
from agents.statistics import bootstrap_interval
from experiments.command_line import CONTINUES, run_script
from experiments.policies import BEHAVIOURS, SCRIPTED, why_unknown
from experiments.settings import refuse_given
from experiments.workers import Task, collect
from worldsim.checkpoint import CheckpointError, load
from worldsim.dataset_writer import DatasetWriter
from worldsim.episodes import EpisodeDataset
from worldsim.storage import check_discrete, find_image

MakeEnv = Callable[["CollectConfig"], gymnasium.Env]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """Record episodes of a real environment into a Minari dataset."""

    env: str = "memory-maze-9x9"
    """Environment to play."""
    policy: str = "explorer"
    """random, explorer (the scripted player of Memory Mazes and of MineRL's Navigate), behaviour
    (that a world model has learned to predict), walker (the same, going where the model expects the
    next reward), or a saved policy: a zip of Stable-Baselines3, or the safetensors file of an
    actor-critic."""
    policy_model: str | None = None
    """World model of walker and behaviour, a shipped name or a checkpoint directory; by default the
    shipped one of the env's name."""
    temperature: float = BEHAVIOUR_TEMPERATURE
    """At which these two draw their actions; below 1 likely ones become likelier."""
    episodes: int = 260
    """Number of episodes that the dataset shall have."""
    seed: int = 0
    """Episode i is played with seed + i. Keep the seeds of training and validation sets apart."""
    max_episode_steps: int | None = None
    """Steps after which episodes are cut, in place of the env's own limit."""
    dataset: str | None = None
    """Minari id of the dataset, `(namespace/)name-v0`; by default ENV/POLICY-v0. One that exists is
    continued."""
    datasets_root: Path | None = None
    """Folder of all datasets; by default Minari's (MINARI_DATASETS_PATH, or ~/.minari/datasets)."""
    num_workers: int = 2
    """Processes that play at the same time."""
    deterministic: bool = False
    """Take the most probable action of a saved policy instead of sampling."""
    explorer: ExplorerConfig = dataclasses.field(default_factory=ExplorerConfig)
    """How the scripted explorer moves."""

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.num_workers < 1 or self.seed < 0:
            raise ValueError(
                "episodes and num_workers must be at least 1 and seed at least 0, "
                f"got {self.episodes}, {self.num_workers} and {self.seed}"
            )
        if self.max_episode_steps is not None and self.max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be at least 1, got {self.max_episode_steps}")
        if self.policy == "explorer" and not has_scripted_player(self.env):
            raise ValueError(
                f"the explorer only knows its way in Memory Mazes and MineRL's Navigate, not in "
                f"{self.env!r}: use --policy random or a saved policy"
            )
        known = (*SCRIPTED, *BEHAVIOURS)
        if (reason := why_unknown(self.policy, known)) is not None:
            raise ValueError(reason)
        if self.dataset is None and self.policy not in known:
            raise ValueError("the episodes of a saved policy need a name: give --dataset")
        for name, used_by in (
            ("policy_model", BEHAVIOURS),
            ("temperature", BEHAVIOURS),
            ("explorer", ("explorer",)),
        ):
            if self.policy not in used_by:
                why = f"is for {' and '.join(used_by)}, not for {self.policy}: leave it out"
                refuse_given(self, (name,), why)
        if self.deterministic and self.policy in SCRIPTED:
            raise ValueError(f"deterministic changes nothing for {self.policy}: leave it out")
        if not self.env.startswith("memory-maze-"):
            why = f"is for Memory Mazes, not for {self.env}: leave it out"
            refuse_given(self, ("explorer",), why)

    @property
    def dataset_id(self) -> str:
        """The dataset that was named, or its name by default."""
        return self.dataset or f"{self.env.split(':')[-1]}/{self.policy}-v0"

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the episodes' content, kept with the dataset."""
        settings: dict[str, Any] = {"env": self.env, "policy": self.policy, "seed": self.seed}
        if self.max_episode_steps is not None:
            settings["max_episode_steps"] = self.max_episode_steps
        if self.policy == "explorer" and self.env.startswith("memory-maze-"):
            settings["explorer"] = dataclasses.asdict(self.explorer)
        elif self.policy in BEHAVIOURS:
            settings |= world_model_note(self.policy_model or self.env)
            settings |= {"temperature": self.temperature, "deterministic": self.deterministic}
        elif self.policy not in SCRIPTED:
            digest = hashlib.sha256(Path(self.policy).read_bytes()).hexdigest()
            settings |= {
                "policy": Path(self.policy).name,
                "policy_sha256": digest,
                "deterministic": self.deterministic,
            }
        return settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectResult:
    """What the dataset holds after collection."""

    path: Path
    episodes: int
    frames: int
    returns: np.ndarray  # (episodes,) float64

    @property
    def mean_return(self) -> float:
        """Mean undiscounted return of an episode."""
        return float(self.returns.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """In which the mean return lies with 95 % confidence."""
        return bootstrap_interval(self.returns)


def make_env(config: CollectConfig) -> gymnasium.Env:
    """Make the environment by name; Memory Mazes with their privileged state in the info."""
    options = env_options(config.env)
    return envs.make(config.env, max_episode_steps=config.max_episode_steps, **options)


def make_policy(config: CollectConfig, env: gymnasium.Env) -> Callable[[int], Policy]:
    """Return what makes the policy of an episode, its randomness determined by a seed.

    Raises:
        ValueError: If the file holds no saved policy, or one whose world model is of another env.
    """
    if config.policy == "random":
        num_actions = int(check_discrete(env.action_space, config.env).n)
        return lambda seed: RandomPolicy(num_actions, seed=seed)
    if config.policy == "explorer":
        return lambda seed: scripted_player(config.env, seed, config.explorer)
    # Late, for workers with a scripted policy do without: SB3 takes seconds to import.
    from stable_baselines3.common.utils import set_random_seed

    from agents.features import FeaturePolicy, check_policy_fits

    torch.set_num_threads(1)
    policy = learned_policy(config)
    check_policy_fits(policy, config.env, env.observation_space, env.action_space)

    def reseed(seed: int) -> Policy:
        set_random_seed(seed)
        if isinstance(policy, FeaturePolicy) and isinstance(policy.policy, ActorCriticPolicy):
            policy.policy.seed = seed
        return policy

    return reseed


def learned_policy(config: CollectConfig) -> Policy:
    """The behaviour of a world model, or a saved policy.

    Raises:
        CheckpointError: there is no such world model.
        ValueError: the model remembers no places to walk to; the file holds no saved policy.
    """
    from agents.features import behaviour_policy, load_policy

    if config.policy in BEHAVIOURS:
        return behaviour_policy(
            load(config.policy_model or config.env),
            walking=config.policy == "walker",
            deterministic=config.deterministic,
            temperature=config.temperature,
        )
    return load_policy(config.policy, deterministic=config.deterministic)


def check_learned(config: CollectConfig, policy: Policy, env: gymnasium.Env) -> None:
    """Refuse a policy that does not fit the env; warn of one that has learned in another.

    Raises:
        ValueError: it has other observations or actions.
    """
    from agents.features import check_policy_fits
    from experiments.dream_judging import is_env, learned_from

    check_policy_fits(policy, config.env, env.observation_space, env.action_space)
    of_model = config.policy in BEHAVIOURS
    model = config.policy_model if of_model else noted_world_model(config.policy)
    learned = None
    if model is not None:
        with contextlib.suppress(CheckpointError):  # policies on frames do without
            learned = learned_from(model)
    if learned is not None and not is_env(env, config.env, learned):
        warnings.warn(
            f"{config.policy} is of a world model of {learned}, and plays {config.env} (--env)",
            stacklevel=2,
        )


def main(config: CollectConfig, make: MakeEnv = make_env) -> CollectResult:
    """Collect what is missing of a dataset, with a progress bar, and print a summary.

    Args:
        config: What to collect.
        make: Makes the environment in a worker; must be picklable.

    Returns:
        Path and statistics of the whole dataset.

    Raises:
        CollectionError: If collection cannot go on.
        ValueError: If the environment has no images or no discrete actions, the policy's file is
            not a saved policy, or the dataset exists with other settings.
        RuntimeError: If another process is adding to the dataset.
    """
    policy = None if config.policy in SCRIPTED else learned_policy(config)
    env = make(config)
    check_discrete(env.action_space, config.env)
    if policy is not None:  # better to fail here than in a worker
        check_learned(config, policy, env)
    find_image(env.observation_space, None, config.env)
    writer = DatasetWriter(
        config.dataset_id,
        env.observation_space,
        env.action_space,
        config.settings,
        root=config.datasets_root,
        env_spec=env.spec,
        metadata={
            "algorithm_name": Path(config.policy).name,
            "description": f"{config.env} played by {Path(config.policy).name}",
        },
    )
    task = Task(
        name=config.env,
        make_env=functools.partial(make, config),
        make_policy=functools.partial(make_policy, config),
        seed=config.seed,
        metadata={"env": config.env, "policy": Path(config.policy).name},
    )
    longest = envs.step_limit(env)
    env.close()
    check_limit(longest, config.env)
    with writer:
        done = len(writer.finished & set(range(config.episodes)))
        if done:
            print(f"{writer.path} has {done} of {config.episodes} episodes; continuing")
        returns: list[float] = []
        with tqdm(
            total=config.episodes * longest if longest else None,
            initial=done * longest if longest else 0,
            unit=" frames",
            smoothing=0.05,
            dynamic_ncols=True,
        ) as bar:

            def on_episode(episode_return: float) -> None:
                returns.append(episode_return)
                count = done + len(returns)
                bar.set_postfix_str(
                    f"{count}/{config.episodes} episodes, return {np.mean(returns):.1f}"
                )

            collect(task, writer, config.episodes, config.num_workers, bar.update, on_episode)
    # Read back, so that what is reported is what a reader finds.
    dataset = EpisodeDataset(writer.path)
    result = CollectResult(
        path=writer.path,
        episodes=len(dataset),
        frames=dataset.num_frames,
        returns=dataset.returns,
    )
    print(
        f"{result.episodes} episodes, {result.frames} frames, "
        "mean return {:.2f} [{:.2f}, {:.2f}]\n".format(result.mean_return, *result.interval)
        + f"{result.path}\n"
        f"next: python experiments/train_world_model.py cpu --dataset {result.path}"
    )
    return result


if __name__ == "__main__":
    run_script(main, CollectConfig, __doc__, stopped=CONTINUES)
