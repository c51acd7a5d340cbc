"""The main job: train a policy inside the dream of a real env, judge it on the real env.

    python experiments/dream_train.py
    python experiments/dream_train.py --agent ppo --total-timesteps 200000 --seed 1
    python experiments/dream_train.py --agent planner
    python experiments/dream_train.py --rounds 3

The policy is trained in the dream only, by PPO or as an imagination actor-critic; a planner, and
what the world model does by itself, need no training. The policy, the behaviour that it starts
from, a random policy and, where the env has one, a scripted player that sees more than frames then
play the same episodes of the real env, from seeds that nothing was trained on. With more rounds,
the policy collects new real episodes, the world model learns from them, and the policy trains on in
the new dream. Stopped at any moment, the same command continues.

The run directory holds results.json, policy.zip (an actor-critic's: policy.safetensors), videos/
and tensorboard/.
"""

from __future__ import annotations

import dataclasses
import functools
import time
import warnings
from pathlib import Path
from typing import Any

from agents.actor_critic import world_model_note
from agents.explorers import RandomPolicy
from agents.features import FeaturePolicy, behaviour_policy, in_dreams, load_policy
from agents.on_the_way import WayConfig
from agents.planner import Planner
from agents.rollout import Policy
from agents.scripted import has_scripted_player, scripted_player
from experiments.actor_critic_training import check_episodes, train_actor_critic
from experiments.command_line import CONTINUES, run_script
from experiments.dream_judging import (
    check_env,
    evaluate_in_dream,
    evaluate_on_real,
    log_returns,
    random_in_dream,
)
from experiments.dream_train_config import (
    FREE_TO_CHANGE,
    OF_OTHERS,
    DreamTrainConfig,
    given_for_nothing,
    not_used_yet,
)
from experiments.improve_world_model import improve_world_model, learned_episodes
from experiments.platform_settings import keep_memory
from experiments.playing import JUDGE_SEED
from experiments.policies import BEHAVIOURS
from experiments.report import format_table
from experiments.run_directory import RunDirectory
from experiments.sb3_training import too_small_for_pixels, train_with_sb3
from worldsim.checkpoint import fingerprint, load, load_config
from worldsim.contexts import ContextBank, NoRewardError, open_contexts
from worldsim.episodes import EpisodeDataset
from worldsim.world_model import WorldModel

TRAINERS = {
    "actor-critic": train_actor_critic,
    "ppo": train_with_sb3,
    "recurrent-ppo": train_with_sb3,
}
"""What trains agents in the dream; the others need no training."""


def own_behaviour(config: DreamTrainConfig, model: WorldModel) -> FeaturePolicy:
    """What a world model does itself; it walks to where it expects rewards if it can."""
    return behaviour_policy(
        model,
        walking=config.walks and model.places is not None,
        seed=config.seed,
        temperature=config.behaviour_temperature,
    )


def finished_policy(config: DreamTrainConfig, model: WorldModel) -> Policy:
    """The agent as it is after a round, acting on frames."""
    if config.agent == "planner":
        return Planner(
            model,
            dataclasses.replace(
                config.planner,
                policy_temperature=config.behaviour_temperature,
                walking=config.walking,
            ),
            seed=config.seed,
            num_denoising_steps=config.num_denoising_steps,
        )
    if config.agent in BEHAVIOURS:
        return own_behaviour(config, model)
    return load_policy(
        config.policy_path,
        seed=config.seed,
        device=config.torch_device,
        cuda_graphs=config.cuda_graphs,
    )


def take_up_again(run: RunDirectory) -> None:
    """Go on with the last round where it is to be longer, or judged; what judged it is dropped.

    Raises:
        ValueError: the round after it has begun already, and trains the same policy.
    """
    config, last = run.config, run.get("last_round", None)
    if last is None or run.get("finished_rounds", 0) != config.rounds:
        return
    if config.agent not in TRAINERS:
        longer = False
    elif config.total_timesteps is not None:
        longer = config.total_timesteps > last["timesteps"]
    else:
        longer = 60 * config.minutes > last["seconds"]
    if longer or (config.judge and f"round {config.rounds}" not in run.evaluations):
        following = config.rounds + 1
        if config.agent in TRAINERS and f"round {following}" in run.get("world_models", {}):
            raise ValueError(
                f"round {following} of {run.path} has begun to train the policy of round "
                f"{config.rounds}: go on with --rounds {following}, or choose another --output"
            )
        names = (f"round {config.rounds}", f"round {config.rounds} in dream")
        run.keep(
            finished_rounds=config.rounds - 1,
            finished_timesteps=run.get("finished_timesteps", 0) - last["timesteps"],
            round_seconds=last["seconds"],
            round_timesteps=last["timesteps"],
            last_round=None,
            evaluations={k: v for k, v in run.evaluations.items() if k not in names},
        )


def check_weights(run: RunDirectory, name: str, world_model: str) -> None:
    """Refuse to go on with a round in the dream of another world model."""
    weights, kept = fingerprint(world_model), run.get("world_models", {})
    if kept.setdefault(name, weights) != weights:
        raise ValueError(
            f"{run.path} began {name} with another {world_model} than there is now: choose another "
            "--output"
        )
    run.keep(world_models=kept)


def check_first(config: DreamTrainConfig) -> None:
    """Refuse what cannot work before a run directory is taken for it, and before baselines play.

    What is given and not used is told.

    Raises:
        CheckpointError: there is no such world model.
        FileNotFoundError: there is no such dataset.
        ValueError: there is no such env, or one does not fit the other.
    """
    name = config.world_model or config.env
    if config.judge or config.rounds > 1:
        check_env(config.env, name)
    model = load_config(name)
    for episodes in (config.contexts, config.clone, config.dataset):
        if episodes is not None:
            check_episodes(model, episodes)
    for unused in given_for_nothing(config):
        warnings.warn(
            f"--{unused.replace('_', '-')} is given, and --agent {config.agent} does not use it",
            stacklevel=2,
        )
    if config.way != WayConfig() and not model.draws_map:
        warnings.warn(f"--way is given, and {name} draws no map to find ways on", stacklevel=2)
    if config.obs == "pixels" and (reason := too_small_for_pixels(model.frame_shape)) is not None:
        raise ValueError(f"{reason}: give --obs features")
    if config.agent == "walker" and model.places is None:
        raise ValueError(f"{name} has no memory of places to walk by: choose --agent behaviour")
    by_map = config.agent == "planner" and config.planner.bootstrap == "map"
    if by_map and not model.draws_map:
        raise ValueError(f"{name} draws no map to plan by: leave --planner.bootstrap out")


def main(config: DreamTrainConfig) -> dict[str, Any]:
    """Do, or finish, a run; print its table and return what results.json holds."""
    start = time.monotonic()
    keep_memory()
    check_first(config)
    unused = not_used_yet(config.run_directory, config.contexts)
    free = (*FREE_TO_CHANGE, *OF_OTHERS[config.agent], *unused)
    run = RunDirectory(config.run_directory, config, free)
    world_model, contexts = config.world_model or config.env, config.contexts
    collected: list[str] = []
    take_up_again(run)
    for round_index in range(1, config.rounds + 1):
        if round_index > 1:
            world_model, contexts = improve_world_model(
                env=config.env,
                policy=config.policy_path if config.agent in TRAINERS else None,
                temperature=config.behaviour_temperature,
                walking=config.walks,
                world_model=world_model,
                output=round_directory(run, round_index),
                episodes=config.collect_episodes,
                steps=config.world_model_steps,
                first_seed=config.collection_seed(round_index),
                seed=config.seed,
                num_workers=config.num_workers,
                max_episode_steps=config.max_episode_steps,
                datasets=[*collected, *([config.dataset] if config.dataset is not None else [])],
                device=config.torch_device,
            )
            collected.append(contexts)
        if round_index > run.get("finished_rounds", 0):
            play_round(run, round_index, world_model, contexts)
        else:
            check_weights(run, f"round {round_index}", world_model)
    results = run.write_results()
    run.writer.close()
    rows = [(e["policy"], e["where"], e) for e in results["evaluations"].values()]
    if rows:
        print(f"\n{format_table(sorted(rows, key=lambda row: row[1]))}\n")
    print(f"{(time.monotonic() - start) / 60:.1f} minutes; everything is in {run.path}")
    return results


def round_directory(run: RunDirectory, round_index: int) -> Path:
    """Where a later round keeps its episodes and its world model."""
    return run.path / f"round-{round_index}"


def play_round(run: RunDirectory, round_index: int, world_model: str, contexts: str | None) -> None:
    """Train the agent in the dream for one round, or the rest of one; judge it; keep what is done.

    Args:
        run: of the main job.
        round_index: from 1.
        world_model: name or directory of what dreams.
        contexts: dataset whose stretches dreams start from; None: those that ship with the model.
    """
    config, name = run.config, f"round {round_index}"
    model = load(world_model, device=config.torch_device)
    # Noted now: the checkpoint may be of a training that goes on, and replaces it.
    note = world_model_note(world_model)
    check_weights(run, name, world_model)
    bank, judges = open_banks(run, model, round_index, world_model, contexts)
    if config.cuda_graphs:
        model.use_cuda_graphs(if_possible=True)
    if config.compile:
        model.compile_network()
    if config.judge:
        judge_baselines(run, model, judges, round_index)
    label = f"{config.agent}, {name}"
    if config.agent in TRAINERS:
        label = f"trained in the dream, {name}"
        TRAINERS[config.agent](run, model, bank, round_index, note)
    if config.judge:
        policy = finished_policy(config, model)
        inner, obs = in_dreams(policy)
        if config.agent != "planner":  # it would dream of dreams
            evaluate_in_dream(run, model, judges, f"{name} in dream", inner, label, obs=obs)
        evaluate_on_real(run, {name: (policy, label)})
    run.keep(
        finished_rounds=round_index,
        finished_timesteps=run.get("finished_timesteps", 0) + run.get("round_timesteps", 0),
        last_round={
            "seconds": run.get("round_seconds", 0.0),
            "timesteps": run.get("round_timesteps", 0),
            "device": config.torch_device,
        },
        round_seconds=0.0,
        round_timesteps=0,
    )
    log_returns(run, round_index)
    run.write_results()


def open_banks(
    run: RunDirectory,
    model: WorldModel,
    round_index: int,
    world_model: str,
    contexts: str | None,
) -> tuple[ContextBank, ContextBank]:
    """Where the dreams of a round start: those to train in, and those to judge policies in.

    Later rounds train in dreams of what was collected and learned from, and judge in dreams of what
    was held out of it. See `play_round` for the arguments.
    """
    config = run.config
    episodes: str | EpisodeDataset | None = contexts
    if contexts is not None and round_index > 1:
        episodes = learned_episodes(contexts, round_directory(run, round_index), model)
    draw_contexts = functools.partial(
        open_contexts,
        model,
        episodes,
        world_model=world_model,
        num_contexts=config.num_contexts,
        context_length=config.context_length,
    )
    to_train = functools.partial(draw_contexts, num_starts=config.num_starts, seed=config.seed)
    try:
        bank = to_train(frames_to_reward=config.frames_to_reward)
    except NoRewardError as error:
        if round_index == 1:
            raise
        warnings.warn(f"{error}: dreams of round {round_index} start anywhere", stacklevel=2)
        bank = to_train()
    if not config.judge:
        return bank, bank
    if round_index == 1:
        return bank, draw_contexts(seed=JUDGE_SEED)
    held_out = open_contexts(model, None, world_model=world_model, num_starts=config.num_contexts)
    return bank, held_out


def judge_baselines(
    run: RunDirectory, model: WorldModel, judges: ContextBank, round_index: int
) -> None:
    """Let those play that the agent is compared with, in reality and, at random, in dreams."""
    config = run.config
    random = RandomPolicy(model.config.num_actions, seed=config.seed)
    baselines: dict[str, tuple[Policy, str]] = {"random": (random, "random")}
    if has_scripted_player(config.env):
        player = scripted_player(config.env, config.seed)
        baselines["data"] = (player, "scripted, sees more")
    if config.improves_behaviour and (round_index == 1 or "start" in run.evaluations):
        own = "the behaviour that it starts from" if config.clone is None else "own behaviour"
        baselines["start"] = (own_behaviour(config, model), own)
    evaluate_on_real(run, baselines)
    playing = random_in_dream(round_index)
    evaluate_in_dream(run, model, judges, playing, random, "random", obs="pixels")


if __name__ == "__main__":
    run_script(main, DreamTrainConfig, __doc__, stopped=CONTINUES)
