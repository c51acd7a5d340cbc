"""Judge any policy on any real env or in any dream: mean return with its interval.

    python experiments/evaluate.py --policy runs/dream_train/my_run/policy.safetensors
    python experiments/evaluate.py --policy explorer --num-episodes 20 --video explorer.mp4
    python experiments/evaluate.py --policy walker --num-workers 10 --video walker.mp4
    python experiments/evaluate.py --policy policy.zip --world-model memory-maze-9x9 --horizon 64
    python experiments/evaluate.py --policy planner --planner.method rollout --planner.horizon 8
    python experiments/evaluate.py --policy planner --num-episodes 1 --traces runs/decisions
    python experiments/evaluate.py --policy planner --planner-policy runs/my_run/policy.safetensors

On real envs every episode has a seed that nothing was trained on; with --world-model the policy is
judged in a dream instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from agents.actor_critic import ActorCritic, note_of, noted_world_model
from agents.explorers import MAZE_ACTIONS, RandomPolicy
from agents.features import (
    FeaturePolicy,
    behaviour_policy,
    check_policy_fits,
    in_dreams,
    load_observer,
    load_policy,
)
from agents.planner import Planner
from agents.planner_search import FAST_PLANNER, PlannerConfig
from agents.planner_trace import PlanTrace, save_trace
from agents.rollout import BEHAVIOUR_TEMPERATURE, Policy
from agents.scripted import scripted_player
from experiments.command_line import run_script
from experiments.dream_judging import check_env
from experiments.platform_settings import chosen_device
from experiments.playing import (
    FIRST_EVALUATION_SEED,
    JUDGE_SEED,
    make_real_envs,
    run_episodes,
    torch_threads,
)
from experiments.policies import OF_MODELS, SCRIPTED, why_unknown
from experiments.report import format_table, provenance, summarise, write_json
from experiments.settings import refuse_given
from experiments.videos import check_video, save_video
from worldsim.checkpoint import CheckpointError, fingerprint, shipped_models
from worldsim.contexts import open_contexts
from worldsim.dream import DreamVectorEnv
from worldsim.world_model import WorldModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Judge a policy."""

    policy: str = "random"
    """"random", "explorer" (scripted, reads the maze's hidden state), "planner" (plans in a world
    model), "behaviour" (that a world model has learned to predict), "walker" (the same, going where
    the model expects the next reward), or a saved policy: a zip of SB3, or the safetensors file of
    an actor-critic."""
    env: str = "memory-maze-9x9"
    """Name of the real env; ignored with --world-model."""
    world_model: str | None = None
    """Judge in this model's dream instead: a shipped name or a checkpoint directory."""
    contexts: str | None = None
    """Dataset whose stretches the dreams start from; by default those shipped with the model."""
    horizon: int = 64
    """Steps of an episode in the dream, with --world-model."""
    num_episodes: int = 10
    first_seed: int = FIRST_EVALUATION_SEED
    """Episode i starts from this seed plus i. The default is never used for training."""
    num_workers: int = 2
    """Real envs that run side by side, one process each."""
    max_episode_steps: int | None = None
    """Steps after which real episodes are cut, in place of the env's own limit."""
    deterministic: bool = False
    """Take the policy's most likely action instead of drawing one."""
    planner: PlannerConfig = FAST_PLANNER
    """How "planner" plans; a shorter horizon than `replan-every` needs that shorter, too."""
    planner_policy: Path | None = None
    """Safetensors file of an actor-critic with which "planner" plans, in the world model that it
    learned in; by default it plans with that model's behaviour."""
    temperature: float = BEHAVIOUR_TEMPERATURE
    """At which "walker", "behaviour" and the policy of "planner" draw their actions; below 1 likely
    ones become likelier."""
    policy_model: str | None = None
    """World model of "planner", "walker" and "behaviour", a shipped name or a checkpoint directory;
    by default the dream's own, or the shipped one of the env's name."""
    output: Path | None = None
    """JSON file for the return of every episode, with config, versions and hardware."""
    video: Path | None = None
    """.mp4 or .gif of the first episode."""
    traces: Path | None = None
    """Directory for pictures of what "planner" imagined and chose in the first env, which costs it
    some time."""
    trace_every: int = 50
    """Steps between two of them; with `planner.replan_every`, the next decision is shown."""
    device: str = "auto"
    """Where world models and policies run."""


def check_used(config: EvaluateConfig) -> None:
    """Raise a ValueError for a setting that changes nothing of what is judged."""
    policy, planner = config.policy, config.policy == "planner"
    own, given = policy in OF_MODELS, config.planner_policy is not None
    whose = "a planner_policy has its own" if given else f"of {', '.join(OF_MODELS)}"
    saved = not own and policy not in SCRIPTED
    for name, used, advice in (
        ("traces", planner, "they are of the policy 'planner'"),
        ("planner", planner, "it is of the policy 'planner'"),
        ("planner_policy", planner, "it is of the policy 'planner'"),
        ("policy_model", own and not given, whose),
        ("temperature", own and not given, whose),
        ("deterministic", saved or (own and not planner), "actions are drawn, or planned"),
        ("contexts", config.world_model is not None, "dreams start there: --world-model"),
        ("max_episode_steps", config.world_model is None, "dreams have --horizon"),
        ("num_workers", config.world_model is None, "of real envs"),
        ("horizon", config.world_model is not None, "of dreams"),
        ("trace_every", config.traces is not None, "of --traces"),
    ):
        if not used:
            why = f"changes nothing for {policy!r} here ({advice}): leave it out"
            refuse_given(config, (name,), why)
    config.planner.refuse_given("policy_temperature", instead="--temperature")
    if given:
        config.planner.refuse_given("walking", instead="a policy that began otherwise")
        if config.planner.method not in ("policy", "rollout") and not config.planner.policy_share:
            raise ValueError(
                f"planner.method {config.planner.method!r} draws no plans from a policy: choose "
                "policy or rollout, or give planner.policy-share"
            )


def check_output(config: EvaluateConfig) -> None:
    """Raise a ValueError where results would take the place of a directory, policy or note."""
    if config.output is not None and config.output.is_dir():
        raise ValueError(f"output is a directory, {config.output}: name a JSON file in it")
    for policy in (Path(config.policy), config.planner_policy):
        if config.output is None or policy is None or not policy.is_file():
            continue
        files = [policy, *([note_of(policy)] if noted_world_model(policy) else [])]
        if config.output.resolve() in [file.resolve() for file in files]:
            raise ValueError(
                f"{config.output} belongs to the policy {policy}: choose another output"
            )


def open_policy(config: EvaluateConfig, num_actions: int) -> Policy:
    """The policy that is named, but for those of a world model.

    Raises:
        FileNotFoundError: neither a known name nor a file.
        ValueError: a file that holds no SB3 model, or no scripted player for this env.
    """
    name, seed = config.policy, config.first_seed
    if name == "random":
        return RandomPolicy(num_actions, seed=seed)
    if name == "explorer":
        return scripted_player(config.env, seed)
    device = chosen_device(config.device)
    return load_policy(name, deterministic=config.deterministic, seed=seed, device=device)


def policy_of_model(config: EvaluateConfig, dreaming: WorldModel | None = None) -> Policy:
    """Make the planner, or take the behaviour, of a world model: of what is dreaming, if one is.

    Raises:
        CheckpointError: there is no such world model.
        FileNotFoundError: there is no such policy to plan with.
        ValueError: the model has other actions than the dream, or no places to walk to; its
            behaviour is asked for in another model's dream, which has other features; or that file
            holds no actor-critic.
    """
    agent, name = None, config.policy_model
    if config.planner_policy is not None:
        agent, name = ActorCritic.load(config.planner_policy)
    if name is not None or dreaming is None:
        if name is None and config.env not in shipped_models():
            raise ValueError(
                f"no world model of {config.env} ships for {config.policy}: name one with "
                f"--policy-model ({', '.join(shipped_models())}, or a checkpoint directory)"
            )
        model = load_observer(name or config.env, chosen_device(config.device))
        if dreaming is not None and model.config.num_actions != dreaming.config.num_actions:
            raise ValueError(
                f"the policy's model {name!r} has {model.config.num_actions} "
                f"actions, the dream {dreaming.config.num_actions}"
            )
    else:
        model = dreaming
    if config.policy == "planner":
        return Planner(
            model,
            dataclasses.replace(config.planner, policy_temperature=config.temperature),
            policy=None if agent is None else agent.to(model.device).logits,
            seed=config.first_seed,
            on_plan=None if config.traces is None else TraceKeeper(config),
        )
    if dreaming is not None and model is not dreaming:
        raise ValueError(
            f"in a dream, {config.policy} is the behaviour of the dreaming model: leave out "
            "--policy-model"
        )
    return behaviour_policy(
        model,
        walking=config.policy == "walker",
        deterministic=config.deterministic,
        seed=config.first_seed,
        temperature=config.temperature,
    )


def check_dreamer(policy: Path, world_model: str) -> None:
    """Refuse a dream whose features are not those that a saved policy acts on.

    Raises:
        ValueError: the policy is of another world model.
    """
    learned_in = noted_world_model(policy)
    assert learned_in is not None  # or it could not have been loaded
    if fingerprint(learned_in) != fingerprint(world_model):
        raise ValueError(
            f"{policy} acts on the features of {learned_in}, not of {world_model}: judge it in "
            f"that dream, with --world-model {learned_in}"
        )


class TraceKeeper:
    """Draws decisions of the first env as pictures, STEP.png."""

    def __init__(self, config: EvaluateConfig) -> None:
        assert config.traces is not None
        self.directory, self.every, self.due = config.traces, config.trace_every, 0
        dreamed_or_real = config.world_model or config.env
        self.names = MAZE_ACTIONS if "memory-maze-" in dreamed_or_real else ()

    def __call__(self, trace: PlanTrace) -> None:
        if trace.env == 0 and trace.step >= self.due:
            save_trace(self.directory / f"{trace.step:05d}.png", trace, self.names)
            self.due = trace.step + self.every


class Stage(NamedTuple):
    """Where, and how, a policy is judged."""

    where: str
    batch: VectorEnv
    limit: int | None  # steps after which an episode is truncated
    policy: Policy  # that acts there
    threads: int  # of torch


def in_the_dream(config: EvaluateConfig) -> Stage:
    """Dreams of a world model; policies on features act on what dreams show themselves."""
    assert config.world_model is not None
    model = load_observer(config.world_model, chosen_device(config.device))
    if config.policy in OF_MODELS:
        policy = policy_of_model(config, model)
    else:
        policy = open_policy(config, model.config.num_actions)
        if isinstance(policy, FeaturePolicy):
            check_dreamer(Path(config.policy), config.world_model)
    acting, obs = in_dreams(policy)
    batch = DreamVectorEnv(
        num_envs=min(32, config.num_episodes),
        world_model=model,
        contexts=open_contexts(
            model, config.contexts, world_model=config.world_model, seed=JUDGE_SEED
        ),
        horizon=config.horizon,
        obs=obs,
        render_mode="rgb_array",
        autoreset_mode=AutoresetMode.DISABLED,
    )
    if obs == "pixels":
        spaces = batch.single_observation_space, batch.single_action_space
        check_policy_fits(acting, config.world_model, *spaces)
    return Stage("the dream", batch, config.horizon, acting, torch.get_num_threads())


def on_the_real_env(config: EvaluateConfig) -> Stage:
    """Real envs side by side."""
    # A policy's model is opened first: a wrong name should not cost the start of real envs.
    of_model = policy_of_model(config) if config.policy in OF_MODELS else None
    if (world_model := world_model_of(config)) is not None:
        with contextlib.suppress(CheckpointError):  # policies on frames do without
            check_env(config.env, world_model, advice="name the policy's own env with --env")
    num_workers = min(config.num_workers, config.num_episodes)
    batch, limit = make_real_envs(config.env, num_workers, config.max_episode_steps)
    policy = of_model or open_policy(config, int(batch.single_action_space.n))  # type: ignore[attr-defined]
    spaces = batch.single_observation_space, batch.single_action_space
    check_policy_fits(policy, config.env, *spaces)
    return Stage(config.env, batch, limit, policy, torch.get_num_threads() if of_model else 1)


def world_model_of(config: EvaluateConfig) -> str | None:
    """The world model that a policy acts by, or has learned in; None where none is known."""
    if config.policy in OF_MODELS and config.planner_policy is None:
        return config.policy_model or config.env
    if config.policy in SCRIPTED:
        return None
    return noted_world_model(config.planner_policy or config.policy)


def main(config: EvaluateConfig) -> dict[str, Any]:
    """Run the episodes; print a table and return what `output` is written from."""
    least = {"num_episodes": 1, "first_seed": 0, "num_workers": 0, "max_episode_steps": 1}
    for name, lowest in (least | {"trace_every": 1}).items():
        if (given := getattr(config, name)) is not None and given < lowest:
            raise ValueError(f"{name} must be at least {lowest}, got {given}")
    if config.video is not None:
        check_video(config.video, "--video")
    if (reason := why_unknown(config.policy, (*SCRIPTED, *OF_MODELS))) is not None:
        raise FileNotFoundError(reason)
    check_used(config)
    check_output(config)
    if config.policy == "planner" and config.world_model is not None:
        warnings.warn(
            "of what a dream starts from, a planner sees the last frame alone, and policies on "
            "features all: their returns in dreams do not compare",
            stacklevel=2,
        )
    stage = on_the_real_env(config) if config.world_model is None else in_the_dream(config)
    try:
        with torch_threads(stage.threads):
            results = run_episodes(
                stage.policy,
                stage.batch,
                [config.first_seed + i for i in range(config.num_episodes)],
                episode_limit=stage.limit,
                description=f"{Path(config.policy).name} on {stage.where}",
                num_recorded=int(config.video is not None),
            )
    finally:
        stage.batch.close()
    summary = summarise(results)
    report = {"config": dataclasses.asdict(config), "results": summary, **provenance()}
    print(format_table([(config.policy, stage.where, summary)]))
    if config.output is not None:
        write_json(config.output, report)
        print(f"results: {config.output}")
    if config.video is not None:
        assert results[0].frames is not None
        save_video(config.video, results[0].frames)
        print(f"video: {config.video}")
    if config.traces is not None:
        print(f"pictures of decisions: {config.traces}")
    return report


if __name__ == "__main__":
    run_script(main, EvaluateConfig, __doc__)
