"""Settings of the main job, and which of them may change when a run goes on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from agents.cloning import CloningConfig
from agents.imagination import ActorCriticConfig
from agents.on_the_way import WayConfig
from agents.planner_search import FAST_PLANNER, PlannerConfig
from agents.rollout import BEHAVIOUR_TEMPERATURE
from experiments.platform_settings import chosen_device
from experiments.policies import BEHAVIOURS, OF_MODELS
from experiments.report import read_json
from experiments.sb3_training import PPOConfig
from experiments.settings import defaults_of, refuse_given

# Apart from the seeds of the shipped model's training data (0 and up), of validation (1,000,000 and
# up) and of evaluation (2,000,000 and up): 10,000 for every seed of training, of these 1,000 for
# every round.
FIRST_COLLECTION_SEED = 500_000
MOST_EPISODES, MOST_ROUNDS, MOST_SEEDS = 1000, 9, 49


@dataclasses.dataclass(frozen=True, kw_only=True)
class DreamTrainConfig:
    """Train a policy in the dream and judge it on the real env."""

    env: str = "memory-maze-9x9"
    """Real env that the policy is judged on."""
    world_model: str | None = None
    """Shipped name or checkpoint directory; by default the shipped model of the env's name."""
    contexts: str | None = None
    """Dataset whose stretches the dreams start from; by default those shipped with the model."""
    num_contexts: int = 64
    """Stretches drawn from that dataset, or the collected one of a later round, to start from."""
    context_length: int = 128
    """Real frames in each of them, or as many as half of the episodes have."""
    frames_to_reward: int | None = None
    """Draw only stretches that a reward followed within so many frames."""
    agent: Literal["actor-critic", "ppo", "recurrent-ppo", "planner", "walker", "behaviour"] = (
        "actor-critic"
    )
    """The imagination actor-critic, SB3's PPO or RecurrentPPO; or, without any training, a planner
    that looks ahead in the dream, the walker, which goes to where a world model with places expects
    rewards, or behaviour, the recorded one that the model has learned to predict."""
    obs: Literal["pixels", "features"] = "features"
    """What the policy sees: frames, or the world model's memory read-out. On features, PPO starts
    from what the world model does untrained, see --walking."""
    behaviour_temperature: float = BEHAVIOUR_TEMPERATURE
    """At which walker and behaviour draw their actions; below 1 likely ones become likelier, and
    less of the noise in the recordings is left."""
    walking: bool = True
    """Where the world model remembers places, actor-critic and planner start from the walker; False
    takes behaviour in its place."""
    total_timesteps: int | None = None
    """Dream steps per round; by default as many as --minutes allow."""
    minutes: float = 5.0
    """Time for dream training per round, where --total-timesteps is not given. How many steps that
    is differs from run to run: runs of the same seed are the same with --total-timesteps alone,
    on the same machine and with as many threads."""
    num_envs: int = 64
    """Dreams in the batch."""
    num_starts: int = 256
    """States that dreams start from: of few contexts, several each. They are kept in memory, each
    1.5 MiB with the shipped model."""
    horizon: int | None = None
    """Steps of a dreamed episode; by default 64, and 16 where the actor-critic, or PPO on features,
    trains: its critic looks beyond."""
    num_denoising_steps: int | None = None
    """Sampler steps per dreamed frame; by default the model's own."""
    ppo: PPOConfig = dataclasses.field(default_factory=PPOConfig)
    actor_critic: ActorCriticConfig = dataclasses.field(default_factory=ActorCriticConfig)
    way: WayConfig = dataclasses.field(default_factory=WayConfig)
    """What training is rewarded for on the way to rewards, where the world model draws a map; with
    --way.progress 0 --way.touch 0 for dreamed rewards alone. It rests on rewards of 1."""
    planner: PlannerConfig = FAST_PLANNER
    clone: str | None = None
    """Dataset from which the actor-critic first learns which recorded actions turned out well; by
    default it starts from the behaviour that the world model has learned to predict."""
    cloning: CloningConfig = dataclasses.field(default_factory=CloningConfig)
    judge: bool = True
    """Judge the policies, in the dream and on the real env; without it they are only trained."""
    eval_episodes: int = 10
    """Real episodes per policy."""
    dream_eval_episodes: int = 16
    """Dreamed episodes per policy."""
    max_episode_steps: int | None = None
    """Steps after which real episodes are cut, in place of the env's own limit."""
    num_workers: int = 5
    """Real envs that run side by side, one process each. The policy acts on all of them at once, so
    some more than there are cores is best."""
    rounds: int = 1
    """Times to train in the dream and judge; from the second on, collect and learn before it."""
    collect_episodes: int = 20
    """Real episodes that the policy, or the behaviour of a planner's model, collects before each
    later round."""
    world_model_steps: int = 1000
    """Training steps of the world model on them."""
    dataset: str | None = None
    """Dataset that the world model goes on learning from besides, in later rounds."""
    seed: int = 0
    output: Path | None = None
    """Run directory; by default runs/dream_train/<env>-<agent>-<obs>-seed<seed>."""
    compile: bool = False
    """Compile the world model (torch.compile): a minute or so at the start, then faster dreams."""
    cuda_graphs: bool = True
    """On CUDA, dream every step as one graph; it is faster and takes more memory."""
    device: str = "auto"
    """Where the world model and the policy run."""

    def __post_init__(self) -> None:
        for name in (
            *("num_envs", "horizon", "eval_episodes", "dream_eval_episodes", "rounds"),
            *("num_contexts", "num_starts", "context_length", "collect_episodes"),
            *("max_episode_steps", "world_model_steps", "num_denoising_steps", "frames_to_reward"),
        ):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.total_timesteps is not None and self.total_timesteps < 1:
            raise ValueError(f"total_timesteps must be at least 1, got {self.total_timesteps}")
        if self.minutes <= 0:
            raise ValueError(f"minutes must be positive, got {self.minutes}")
        if self.behaviour_temperature <= 0:
            raise ValueError(
                f"behaviour_temperature must be above 0, got {self.behaviour_temperature}"
            )
        num_steps = self.actor_critic.num_steps
        if self.agent == "actor-critic" and self.training_horizon % num_steps:
            raise ValueError(
                f"horizon {self.training_horizon} is not a multiple of the {num_steps} steps of "
                "actor_critic.num_steps"
            )
        if self.agent == "actor-critic" and self.obs != "features":
            raise ValueError("the actor-critic acts on features: give --obs features")
        if not self.walking and self.agent in ("ppo", "recurrent-ppo"):
            raise ValueError(
                f"{self.agent} starts from walking, if anything: leave --no-walking out"
            )
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if self.num_workers < (1 if self.rounds > 1 else 0):
            raise ValueError(
                f"num_workers must be at least 0, and 1 to collect in rounds, got "
                f"{self.num_workers}"
            )
        if self.contexts is None and self.rounds == 1:
            refuse_given(self, OF_DATASETS, "is of stretches of a dataset: give --contexts")
            why = "chooses among the stretches of a dataset: give --contexts"
            refuse_given(self, ("frames_to_reward",), why)
        self.planner.refuse_given("policy_temperature", instead="--behaviour-temperature")
        self.planner.refuse_given("walking", instead="--no-walking")
        if self.rounds > 1:
            self._check_rounds()
        else:
            why = (
                "is what the world model goes on learning from in later rounds: give --rounds, or "
                "--contexts to dream from its stretches"
            )
            refuse_given(self, ("dataset",), why)
        if self.agent != "actor-critic":
            refuse_given(self, ("clone",), f"is for the actor-critic, not for {self.agent}")
        if self.clone is None:
            why = "says how to learn from the episodes of --clone: give that"
            refuse_given(self, ("cloning",), why)
        if not self.walking and self.agent in BEHAVIOURS:
            raise ValueError(
                f"no-walking changes nothing for {self.agent}: leave it out (behaviour does not "
                "walk, walker does)"
            )
        if self.obs == "pixels" and self.agent in OF_MODELS:
            raise ValueError(f"{self.agent} needs no --obs pixels: leave it out")

    def _check_rounds(self) -> None:
        """Refuse what would let rounds collect the same episodes, or too few to learn from."""
        least = 2 if self.dataset is None else 1  # one is held out
        if not least <= self.collect_episodes <= MOST_EPISODES:
            raise ValueError(
                f"collect_episodes must lie between {least} and {MOST_EPISODES}, got "
                f"{self.collect_episodes}"
            )
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(
                f"device is {self.device!r}: where rounds train the world model, choose cuda, and "
                "which with CUDA_VISIBLE_DEVICES"
            )
        for name, most in (("rounds", MOST_ROUNDS), ("seed", MOST_SEEDS)):
            if getattr(self, name) > most:
                raise ValueError(
                    f"{name} can be at most {most} where rounds collect, for every one of them has "
                    f"mazes of its own: got {getattr(self, name)}"
                )

    @property
    def walks(self) -> bool:
        """Whether a model's own behaviour walks to where it expects rewards, if it can."""
        return self.walking and self.agent != "behaviour"

    @property
    def training_horizon(self) -> int:
        """Steps of a dreamed episode to train on."""
        return self.horizon or (16 if self.improves_behaviour else 64)

    @property
    def improves_behaviour(self) -> bool:
        """Whether training starts from the model's own behaviour, not from nothing."""
        return self.obs == "features" and self.agent in ("actor-critic", "ppo")

    @property
    def judging_horizon(self) -> int:
        """Steps of a dreamed episode to judge by."""
        return self.horizon or 64

    def collection_seed(self, round_index: int) -> int:
        """First seed of the real episodes that are collected before a round."""
        return FIRST_COLLECTION_SEED + 10_000 * self.seed + 1000 * round_index

    @property
    def run_directory(self) -> Path:
        name = f"{self.env}-{self.agent}-{self.obs}-seed{self.seed}"
        return self.output or Path("runs/dream_train") / name

    @property
    def policy_path(self) -> Path:
        suffix = "safetensors" if self.agent == "actor-critic" else "zip"
        return self.run_directory / f"policy.{suffix}"

    @property
    def torch_device(self) -> str:
        return chosen_device(self.device)


# Changing these does not make another run of it, only a longer one, or the same one elsewhere.
FREE_TO_CHANGE = (
    "total_timesteps",
    "minutes",
    "rounds",
    "judge",
    "output",
    "compile",
    "cuda_graphs",
    "num_workers",
    "device",
)

# Settings of other agents than the run's.
OF_OTHERS = {
    "actor-critic": ("ppo", "planner"),
    "ppo": ("actor_critic", "cloning", "planner"),
    "recurrent-ppo": ("actor_critic", "cloning", "planner"),
    "planner": ("ppo", "actor_critic", "cloning", "way"),
    "walker": ("ppo", "actor_critic", "cloning", "way", "planner"),
    "behaviour": ("ppo", "actor_critic", "cloning", "way", "planner"),
}
OF_TRAINING = ("total_timesteps", "minutes", "num_starts", "frames_to_reward")


def given_for_nothing(config: DreamTrainConfig) -> list[str]:
    """Settings that were given, and that this agent does not use."""
    names = OF_OTHERS[config.agent]
    if config.agent in OF_MODELS:
        names += OF_TRAINING
    elif not config.improves_behaviour:
        names += ("behaviour_temperature",)
    defaults = defaults_of(config)
    return [name for name in names if getattr(config, name) != defaults[name]]


OF_DATASETS = ("num_contexts", "context_length")
"""Settings that nothing takes before there is a dataset to start from."""


BEFORE_TRAINING = ("num_envs", "num_starts", "frames_to_reward")
"""Settings for which memory may not suffice; before training begins, only the dreams of the random
policy depend on them."""


def not_used_yet(directory: Path, contexts: str | None = None) -> tuple[str, ...]:
    """Settings of training, where it has not begun, and of later rounds, where none has.

    Args:
        directory: of the run.
        contexts: dataset whose stretches its first round starts from, if it is from one.
    """
    progress = directory / "progress.json"
    kept = read_json(progress) or {}
    if kept.get("world_models", {}).keys() - {"round 1"}:
        return ()
    unused: tuple[str, ...] = ("dataset", "collect_episodes", "world_model_steps")
    if contexts is None:
        unused += OF_DATASETS
    if not (kept.get("round_timesteps") or kept.get("finished_rounds")):
        unused += BEFORE_TRAINING
    return unused
