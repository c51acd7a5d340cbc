"""Training of an imagination actor-critic for one round of a run: progress, logs, saves, resume."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Mapping

import numpy as np
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from agents.actor_critic import ActorCritic
from agents.cloning import CloningConfig, ReadOuts, clone_advantages, read_out_episodes
from agents.features import doubted_features
from agents.imagination import ImaginationTrainer, starts_of
from agents.on_the_way import shaping_of
from agents.planner import DreamModel
from experiments.run_directory import RunDirectory
from experiments.training_progress import TrainingProgress
from worldsim.checks import check_same_kind
from worldsim.contexts import ContextBank
from worldsim.episodes import EpisodeDataset
from worldsim.world_model import WorldModel
from worldsim.world_model_config import WorldModelConfig


def read_out_dataset(model: WorldModel, dataset: str, num_episodes: int) -> ReadOuts:
    """Have the model observe a dataset's episodes, with a progress bar.

    Raises:
        ValueError: they have other frames or actions than the model's.
    """
    episodes = check_episodes(model.config, dataset)
    with tqdm(unit="frame", desc="observing episodes", dynamic_ncols=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return read_out_episodes(model, episodes, num_episodes, progress=progress)


def check_episodes(model: WorldModelConfig, dataset: str) -> EpisodeDataset:
    """Open episodes that a model can observe.

    Raises:
        ValueError: they have other frames or actions than the model's.
    """
    episodes = EpisodeDataset(dataset, image_key=model.image_key)
    check_same_kind(dataset, episodes, "the model", model)
    return episodes


def cloned_agent(
    model: WorldModel, data: ReadOuts, config: CloningConfig, seed: int, *, shaped: bool
) -> ActorCritic:
    """An agent that has learned which of the recorded actions turned out well.

    Args:
        model: whose read-outs the data has; its prediction of the recorded behaviour is where
            cloning starts.
        data: recorded episodes.
        config: of cloning.
        seed: of the agent, and of cloning.
        shaped: what will be rewarded is not what was, so that the critic is to expect nothing.
    """
    agent = ActorCritic.from_behaviour(model, walking=False, seed=seed)
    values = clone_advantages(agent, data, config, seed)
    shown = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in values.items())
    print(f"cloned {len(data.actions):,} actions: {shown}")
    if shaped:
        agent.forget_returns()
    return agent


def train_actor_critic(
    run: RunDirectory,
    model: WorldModel,
    bank: ContextBank,
    round_index: int,
    note: Mapping[str, str],
) -> None:
    """Train the run's policy for one round, or the rest of one.

    Args:
        run: its config says how many dreams, how long they are and how long to train.
        model, bank: what dreams, and where dreams start.
        round_index: from 1.
        note: from `world_model_note`, of the model as it was loaded; goes beside the policy.
    """
    options, path = run.config, run.config.policy_path
    shaping = shaping_of(options.way, model)
    training = run.path / "training.safetensors"
    if path.is_file():
        agent = ActorCritic.load(path)[0]
    elif options.clone is not None:
        began = time.monotonic()
        data = read_out_dataset(model, options.clone, options.cloning.num_episodes)
        shaped = shaping is not None
        agent = cloned_agent(model, data, options.cloning, options.seed, shaped=shaped)
        run.keep(cloning_seconds=time.monotonic() - began)
        agent.save(path, world_model=note)
    else:
        agent = ActorCritic.from_behaviour(
            model,
            walking=options.walking,
            temperature=options.behaviour_temperature,
            returns=shaping is None,
            seed=options.seed,
        )
    learning = options.actor_critic
    if shaping is not None and learning.min_reward is None:
        learning = dataclasses.replace(learning, min_reward=options.way.min_reward)
    trainer = ImaginationTrainer(
        agent.to(model.device),
        DreamModel(model, options.num_denoising_steps),
        starts_of(bank),
        learning,
        shaping=shaping,
        num_envs=options.num_envs,
        horizon=options.training_horizon,
        doubted=doubted_features(model),
        seed=options.seed + 1000 * round_index,
    )
    if run.get("round_timesteps", 0):
        trainer.load_state_dict(load_file(training))
    agent.save(path, world_model=note)  # as it is in that training

    def save(seconds: float) -> None:
        # The training state first: a round that is known to have begun must have one, and a policy
        # that has been improved must not be taken for what improvement starts from.
        save_file(trainer.state_dict(), training.with_suffix(".tmp"))
        training.with_suffix(".tmp").replace(training)
        run.keep(round_seconds=seconds, round_timesteps=trainer.num_dream_steps)
        agent.save(path, world_model=note)

    # What a step makes, in rewards, and with what is worth something beside them; how many end.
    recent: deque[tuple[float, float, float]] = deque(maxlen=20)
    # Every round of TensorBoard's curves begins after the one before.
    first_step = run.get("finished_timesteps", 0)
    with TrainingProgress.of_round(
        run, round_index, save, timesteps=trainer.num_dream_steps
    ) as progress:
        while not progress.over:
            metrics = trainer.update()
            rewards = metrics["reward_per_step"], metrics["shaped_reward_per_step"]
            recent.append((*rewards, metrics["ended_per_step"]))
            dreamed, shaped, ended = np.mean(recent, axis=0)
            length = options.training_horizon / max(options.training_horizon * ended, 1.0)
            dreamed, shaped = length * dreamed, length * shaped
            logged = {f"actor_critic/{name}": value for name, value in metrics.items()}
            logged |= {"dream/episodic_return": dreamed, "dream/shaped_return": shaped}
            logged["dream/episodic_length"] = length
            for tag, value in logged.items():
                run.writer.add_scalar(tag, value, first_step + trainer.num_dream_steps)
            status = f"dream return {dreamed:.2f}"
            if shaping is not None:
                status += f", with progress {shaped:.2f}"
            progress.update(trainer.num_dream_steps, status)
            progress.save_if_due()
