"""One turn of the outer loop: collect with the current policy, go on training the world model."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agents.actor_critic import note_of
from agents.rollout import BEHAVIOUR_TEMPERATURE
from experiments import collect, train_world_model
from experiments.data_checks import are_held_out, held_out_of
from experiments.train_config import TrainConfig, ValidationConfig
from experiments.train_world_model import HELD_OUT
from worldsim.checkpoint import load_config
from worldsim.episodes import EpisodeDataset
from worldsim.occupancy_training import OccupancyTraining
from worldsim.own_dreams import OwnDreams
from worldsim.places_training import PlacesTraining
from worldsim.training_config import DynamicsTraining, OptimizerConfig
from worldsim.world_model import WorldModel

COLLECTED = "collected-v0"
SEGMENT_LENGTH = 128
REWARD_WEIGHT = 3.0
"""Of rewards in training, which are rare: that of the presets for Memory Mazes."""


def improve_world_model(
    *,
    env: str,
    policy: Path | None,
    world_model: str,
    output: Path,
    episodes: int,
    steps: int,
    first_seed: int,
    num_workers: int = 2,
    max_episode_steps: int | None = None,
    temperature: float = BEHAVIOUR_TEMPERATURE,
    walking: bool = True,
    datasets: Sequence[str] = (),
    seed: int = 0,
    device: str = "auto",
) -> tuple[str, str]:
    """Collect real episodes and let the world model learn from them. What is done is not repeated.

    Args:
        env: name of the real env.
        policy: saved policy that collects; None is the world model's own behaviour.
        world_model: name or directory of the model to go on from; left as it is.
        output: directory for the episodes and the new model.
        episodes: episodes to collect.
        steps: training steps.
        first_seed: seed of the first episode.
        num_workers: envs that run side by side.
        max_episode_steps: cuts collected episodes, in place of the env's own limit.
        temperature: at which the world model's own behaviour draws its actions.
        walking: that behaviour walks to where it expects rewards, if it can.
        datasets: others to go on learning from besides.
        seed: of the training.
        device: where the world model is trained.

    Returns:
        The new model's directory and the path of the new dataset.
    """
    if not datasets:
        warnings.warn(
            f"the world model now learns from {episodes} collected episodes alone and may forget "
            "others: name the dataset that it has learned from with --dataset",
            stacklevel=2,
        )
    model = load_config(world_model)
    own = "walker" if walking and model.places is not None else "behaviour"
    collected = collect.main(
        collect.CollectConfig(
            env=env,
            policy=own if policy is None else str(_keep_policy(policy, output)),
            policy_model=world_model if policy is None else None,
            temperature=temperature if policy is None else BEHAVIOUR_TEMPERATURE,
            episodes=episodes,
            seed=first_seed,
            dataset=COLLECTED,
            datasets_root=output / "datasets",
            num_workers=num_workers,
            max_episode_steps=max_episode_steps,
        )
    )
    output = output / "world_model"
    checkpoint = output / "checkpoint"
    finished = output / "finished"
    if not finished.is_file():
        learned = (str(collected.path), *datasets)
        recorded = EpisodeDataset(learned, image_key=model.image_key)
        train, _ = held_out_of(recorded, output / HELD_OUT)
        length, longest = segment_lengths(train.lengths)
        lengths = (length,) if length == longest else (length, longest)
        dreamed = max(length // 4, 1)
        train_world_model.main(
            TrainConfig(
                dataset=learned,
                init=world_model,
                output=output,
                dynamics=DynamicsTraining(
                    # Both rates lower than those for a new model: 1e-3 and 2e-3.
                    optimizer=OptimizerConfig(
                        steps=steps, learning_rate=3e-4, muon_learning_rate=6e-4, seed=seed
                    ),
                    curriculum=tuple((one, 1.0) for one in lengths),
                    # Without, dreams of more than some steps soon go astray again.
                    own_dreams=OwnDreams(
                        share=0.5 if length > 1 else 0.0,
                        begin=0.0,
                        context=max(length - dreamed, 1),
                        length=dreamed,
                    ),
                    reward_weight=REWARD_WEIGHT,
                    # Recall is learned after cuts, where a model can be told poses across them.
                    longest_stretches=() if model.pose is None else lengths,
                ),
                # Where it remembers places: what it reads out has changed a little.
                places_training=PlacesTraining(
                    optimizer=OptimizerConfig(
                        steps=min(steps, 300), learning_rate=1e-3, muon_learning_rate=0, seed=seed
                    )
                ),
                # These walks leave out cells, which the map would learn to take for walls.
                occupancy_training=OccupancyTraining(
                    optimizer=OptimizerConfig(steps=0, muon_learning_rate=0)
                ),
                validation=ValidationConfig(every=0),
                device=device,
            )
        )
        finished.touch()
    return str(checkpoint), str(collected.path)


def learned_episodes(dataset: str, output: Path, model: WorldModel) -> EpisodeDataset:
    """Collected episodes, but for those that were held out, in whose dreams policies are judged.

    They are all of them where all were held out, of one alone.

    Args:
        dataset: path of what was collected.
        output: as in `improve_world_model`.
        model: what learned from them.
    """
    episodes = EpisodeDataset(dataset, image_key=model.config.image_key)
    here = f"{output.name}/datasets/{COLLECTED}"  # wherever the run has been moved to
    names = [f"{name.partition(' of ')[0]} of {here}" for name in episodes.names]
    learned = np.flatnonzero(~are_held_out(names, output / "world_model" / HELD_OUT))
    return episodes.select(learned) if len(learned) else episodes


def segment_lengths(lengths: np.ndarray) -> tuple[int, int]:
    """Two lengths of segments: one that nearly all episodes have, and as long as they allow.

    Of episodes that end when they succeed, the longest are failures, and memory is not to be
    unlearned. Those that are far shorter than most are left out.

    Args:
        lengths: frames in each episode.
    """
    longest = min(SEGMENT_LENGTH, int(lengths.max()))
    least = min(16, max(int(np.median(lengths)) // 2, 1))
    return min(max(int(np.quantile(lengths, 0.1)), least), longest), longest


def _keep_policy(policy: Path, directory: Path) -> Path:
    """A copy of the policy as it was when collection began, which training then changes."""
    kept = directory / policy.name
    if not kept.is_file():
        directory.mkdir(parents=True, exist_ok=True)
        note = note_of(policy)
        if note.is_file():
            shutil.copy(note, directory)
        shutil.copy(policy, directory / f"{policy.name}.partial")
        (directory / f"{policy.name}.partial").replace(kept)
    return kept
