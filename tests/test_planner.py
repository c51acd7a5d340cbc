"""Planners find what is known to be best, within budget, and touch nothing of the caller's."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from planning_problems import (
    Corridor,
    Gamble,
    Lock,
    PointMass,
    Problem,
    Situation,
    brute_force,
)
from tiny import NUM_ACTIONS, tiny_contexts, tiny_model

import envs
import worldsim
from agents.features import behaviour_policy
from agents.planner import DreamModel, Planner, PlannerConfig
from agents.planner_distributions import CategoricalPlans, GaussianPlans, prior_plans
from agents.planner_search import FAST_PLANNER, Plan, Search
from agents.planner_trace import PlanTrace, save_trace
from agents.rollout import evaluate, rollout
from worldsim.dream import DreamVectorEnv
from worldsim.world_model import WorldModel

METHODS = ["random", "cem", "mppi", "policy", "rollout"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def at(*features: float, n: int = 1) -> Situation:
    return Situation(torch.tensor([features] * n))


def uniform(num_actions: int) -> Any:
    return lambda features: torch.zeros(len(features), num_actions)


def solve(problem: Problem, state: Situation, seed: int = 0, **options: Any) -> Plan:
    policy = None
    if options.get("method") in ("policy", "rollout"):
        policy = uniform(int(problem.action_space.n))  # type: ignore[attr-defined]
    value = options.pop("value", None)
    search = Search(problem, PlannerConfig(**options), policy=policy, value=value)
    return search.plan(state, generator(seed))


@pytest.mark.parametrize("method", ["cem", "mppi"])
@pytest.mark.parametrize("start", [(1.0, 0.0), (-0.5, 0.6)])
def test_point_mass_is_pushed_as_riccati_would(method: str, start: tuple[float, float]) -> None:
    problem = PointMass()
    best, first = problem.solve(np.array(start), 8)
    plan = solve(
        problem,
        at(*start),
        method=method,
        horizon=8,
        num_candidates=300,
        num_iterations=12,
        temperature=0.2,
        exploration=0.1 if method == "mppi" else 0.01,
        gamma=1.0,
    )
    # The mean that "mppi" reports is over its samples; its plan is their mean, which does better.
    state, reached = at(*start), 0.0
    for action in plan.actions.unbind(1):
        step = problem.step(state, action, torch.zeros(1))
        state, reached = step.state, reached + float(step.reward)
    assert best * 1.03 < reached <= best + 1e-4 and plan.returns[0] <= best + 1e-4
    assert abs(float(plan.actions[0, 0, 0]) - first) < 0.25


@pytest.mark.parametrize("method", ["random", "cem", "mppi", "policy"])
@pytest.mark.parametrize("horizon, gamma", [(6, 0.98), (6, 0.5), (3, 0.98)])
def test_corridor_is_solved_where_horizon_and_discount_let_it(
    method: str, horizon: int, gamma: float
) -> None:
    problem, start = Corridor(), at(1.0)
    best = brute_force(problem, start, horizon, gamma)
    plan = solve(
        problem,
        start,
        method=method,
        horizon=horizon,
        gamma=gamma,
        num_candidates=400,
        num_iterations=6,
        temperature=0.01,
    )
    far_sighted = horizon == 6 and gamma == 0.98
    assert plan.actions[0, 0] == (1 if far_sighted else 0)
    if method != "mppi":  # which reports a mean
        assert float(plan.returns[0]) == pytest.approx(best)
        if far_sighted:
            assert plan.actions[0, :4].tolist() == [1, 1, 1, 1]


def test_value_at_the_horizon_stands_for_what_lies_beyond() -> None:
    options: dict[str, Any] = {"method": "cem", "horizon": 2, "num_candidates": 100}
    assert solve(Corridor(), at(0.0), **options).actions[0, 0] == 0
    plan = solve(Corridor(), at(0.0), value=lambda f: f[:, 0] * (f[:, 0] < 6) / 2, **options)
    assert plan.actions[0].tolist() == [1, 1]
    assert float(plan.returns[0]) == pytest.approx(0.98**2)


def test_nothing_counts_after_the_end() -> None:
    plan = solve(Corridor(), at(4.0), method="random", horizon=4, num_candidates=200, gamma=1.0)
    assert plan.candidate_returns.max() == 1.0


@pytest.mark.parametrize("method", ["cem", "mppi"])
def test_refitting_beats_random_shooting_at_equal_budget(method: str) -> None:
    for problem_of, start, scale in [
        (lambda seed: Lock(seed, 12), at(0.0), 1.0),
        (lambda seed: PointMass(), at(1.0, -0.5), 0.1),
    ]:
        options = {"horizon": 12, "num_candidates": 60, "num_iterations": 8, "gamma": 1.0}
        returns = {
            m: [
                float(
                    solve(
                        problem_of(seed), start, seed, method=m, temperature=0.2, **options
                    ).returns[0]
                )
                for seed in range(5)
            ]
            for m in ("random", method)
        }
        assert np.mean(returns[method]) > np.mean(returns["random"]) + scale


def test_several_envs_are_planned_for_at_once() -> None:
    start = Situation(torch.tensor([[1.0], [4.0], [2.0]]))
    plan = solve(Corridor(), start, method="cem", horizon=5, num_candidates=300, num_iterations=3)
    assert plan.actions[:, 0].tolist() == [1, 1, 1]
    expected = [0.98**3, 1.0, 0.98**2]
    np.testing.assert_allclose(plan.returns.numpy(), expected, rtol=1e-5)


def test_a_bet_is_judged_by_the_mean_over_futures() -> None:
    chosen = {1: [], 32: []}  # type: dict[int, list[int]]
    for particles, first_actions in chosen.items():
        for seed in range(20):
            plan = solve(
                Gamble(),
                at(0.0),
                seed,
                method="random",
                horizon=1,
                num_candidates=8,
                num_particles=particles,
            )
            first_actions.append(int(plan.actions[0, 0]))
    assert sum(chosen[1]) >= 4, "in a single future the bet is often the best plan"
    assert sum(chosen[32]) <= 1


def test_candidates_share_their_futures() -> None:
    plan = solve(Gamble(), at(0.0, n=2), method="random", horizon=2, num_candidates=64)
    for env in range(2):
        by_plan: dict[tuple[int, ...], set[float]] = {}
        for actions, value in zip(plan.candidates[env], plan.candidate_returns[env], strict=True):
            by_plan.setdefault(tuple(actions.tolist()), set()).add(float(value))
        assert len(by_plan) == 4 and all(len(values) == 1 for values in by_plan.values())
    assert not torch.equal(*plan.candidate_returns)


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_plan(method: str) -> None:
    def make(seed: int) -> Plan:
        return solve(Lock(0, 6), at(0.0, n=2), seed, method=method, horizon=6, num_iterations=2)

    first, again, other = make(3), make(3), make(4)
    assert torch.equal(first.actions, again.actions)
    assert torch.equal(first.returns, again.returns)
    assert not torch.equal(first.candidates, other.candidates)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [14, 100, 250, 10_000])
def test_budget_in_steps_is_kept(method: str, budget: int) -> None:
    problem = Lock(0, 7)
    plan = solve(
        problem,
        at(0.0, n=3),
        method=method,
        horizon=7,
        num_particles=2,
        num_candidates=8,
        num_iterations=3,
        max_dream_steps=budget,
    )
    assert plan.dream_steps * 3 == problem.rows_stepped
    plans = min(budget // 14, 8 * 3)
    if method == "mppi" and plans > 8:
        plans -= plans % 8  # a last round of a few plans would undo those before
    assert plan.dream_steps == plans * 14


@pytest.mark.parametrize("method", METHODS)
def test_steps_alone_give_as_many_rounds_as_they_allow(method: str) -> None:
    plan = solve(Lock(0, 7), at(0.0), method=method, horizon=7, max_dream_steps=700)
    rounds = [32, 32, 32] if method == "mppi" else [32, 32, 32, 4]
    assert [made.shape[1] for made in plan.rounds] == rounds
    assert plan.dream_steps == 7 * sum(rounds)


def test_budget_in_seconds_ends_the_search() -> None:
    now = iter(np.arange(0.0, 1000.0, 1.0))  # every look at the clock takes a second
    config = PlannerConfig(method="cem", num_iterations=50, max_seconds=5.0)
    search = Search(Lock(0, 4), config, clock=lambda: float(next(now)))
    rounds = len(search.plan(at(0.0), generator()).rounds)
    assert 1 <= rounds <= 5
    slow = iter(np.arange(0.0, 1000.0, 100.0))
    search = Search(Lock(0, 4), config, clock=lambda: float(next(slow)))
    assert len(search.plan(at(0.0), generator()).rounds) == 1


def test_seconds_alone_give_as_many_rounds_as_they_allow() -> None:
    now = iter(np.arange(0.0, 1000.0, 1.0))
    config = PlannerConfig(method="cem", max_seconds=8.0)
    search = Search(Lock(0, 4), config, clock=lambda: float(next(now)))
    whole = len(search.plan(at(0.0), generator()).rounds)
    half = len(search.plan(at(0.0), generator(), share=0.5).rounds)
    assert whole > half > 1
    assert (
        len(Search(Lock(0, 4), PlannerConfig(method="cem")).plan(at(0.0), generator()).rounds) == 1
    )
    with pytest.raises(ValueError, match="max_seconds must be above 0, got -1"):
        PlannerConfig(max_seconds=-1.0)


def test_a_plan_that_is_given_is_never_made_worse() -> None:
    problem, good = Lock(1, 10), Lock(1, 10).digits[None]
    search = Search(problem, PlannerConfig(method="cem", horizon=10, num_candidates=5))
    plan = search.plan(at(0.0), generator(), first=good)
    assert plan.returns[0] == pytest.approx(sum(0.98**t for t in range(10)))
    assert torch.equal(plan.actions, good)


def walk(warm: bool, seed: int, steps: int = 12, horizon: int = 6) -> float:
    """Act in a lock by planning again after every step; return what was earned."""
    problem = Lock(seed, steps)
    config = PlannerConfig(method="cem", horizon=horizon, num_candidates=12, num_iterations=2)
    search = Search(problem, config)
    state, total, source = at(0.0), 0.0, generator(seed)
    distribution, first, last = None, None, -np.inf
    for _ in range(steps):
        plan = search.plan(state, source, distribution=distribution, first=first)
        if first is not None:
            assert float(plan.returns[0]) >= last - 1e-5, "no worse than what was left of the last"
        step = problem.step(state, plan.actions[:, 0], torch.zeros(1))
        state, total = step.state, total + float(step.reward)
        if warm:
            prior = search.prior(1, torch.device("cpu"))
            distribution = plan.distribution.shift(prior, 0.5)
            first = torch.cat([plan.actions[:, 1:], plan.actions[:, -1:]], dim=1)
            last = (float(plan.returns[0]) - float(step.reward)) / 0.98
    return total


def test_warm_start_earns_more() -> None:
    seeds = range(6)
    assert np.mean([walk(True, s) for s in seeds]) > np.mean([walk(False, s) for s in seeds]) + 1


@pytest.mark.parametrize("warm_start", [0.5, None])
def test_a_planner_begins_from_what_is_left_of_its_last_plan(
    model: WorldModel, warm_start: float | None
) -> None:
    config = dataclasses.replace(SMALL, replan_every=2, warm_start=warm_start)
    planner, frames = Planner(model, config), tiny_contexts(2, 3).frames
    with mock.patch.object(planner.search, "plan", wraps=planner.search.plan) as plan:
        _, state = planner.act(frames[:, 0], None, np.array([True, True]))
        assert plan.call_args.kwargs["first"] is None
        assert plan.call_args.kwargs["distribution"] is None
        for t in (1, 2):  # the second step of the plan is taken, and then a new one is made
            before = state
            _, state = planner.act(frames[:, t], state, np.array([False, False]))
    assert plan.call_count == 2
    first, distribution = (plan.call_args.kwargs[name] for name in ("first", "distribution"))
    if warm_start is None:
        assert first is None and distribution is None
        return
    assert torch.equal(first, before.rest)
    assert torch.equal(distribution.probabilities, before.distribution.probabilities)


def test_rollout_improves_the_policy_and_stays_near_it() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0])
    start = at(4.0, n=600)  # action 1 reaches the goal, 0 takes the bait

    def first_actions(temperature: float, start: Situation) -> torch.Tensor:
        config = PlannerConfig(
            method="rollout", horizon=1, num_candidates=6, temperature=temperature
        )
        search = Search(Corridor(), config, policy=lambda f: logits.expand(len(f), 3))
        plan = search.plan(start, generator())
        return torch.bincount(plan.actions[:, 0], minlength=3) / len(start.features)

    returns = torch.tensor([0.2, 1.0, 0.0])
    for temperature in (0.01, 0.5, 100.0):
        expected = (logits.log_softmax(0) + returns / temperature).softmax(0)
        np.testing.assert_allclose(first_actions(temperature, start), expected, atol=0.06)


def test_policy_rollouts_see_what_they_imagine() -> None:
    def walker(features: torch.Tensor) -> torch.Tensor:
        """Walks to position 3 and stays there."""
        walk = torch.where(features[:, 0] < 3, 8.0, -8.0)
        return torch.stack([torch.full_like(walk, -8), walk, -walk], dim=1)

    search = Search(Corridor(), PlannerConfig(method="policy", horizon=6), policy=walker)
    assert search.plan(at(0.0), generator()).actions[0].tolist() == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("method", ["policy", "rollout"])
def test_the_policy_goes_on_where_the_end_that_is_imagined_may_not_come(method: str) -> None:
    """An end is certain at once; what is planned for after it is the policy's all the same."""

    class Ending(Corridor):
        def dynamics(
            self, features: torch.Tensor, actions: torch.Tensor, noise: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            ended = torch.ones(len(actions), dtype=torch.bool)
            return features, torch.zeros(len(actions)), ended

    config = PlannerConfig(method=method, horizon=6, num_candidates=8)  # type: ignore[arg-type]
    likely = torch.tensor([-50.0, -50.0, 50.0])
    search = Search(Ending(), config, policy=lambda x: likely.expand(len(x), 3))
    plan = search.plan(at(0.0, n=2), generator())
    assert (plan.actions[:, 1:] == 2).all()


def test_policy_share_brings_its_plans_into_the_pool() -> None:
    def knows(features: torch.Tensor) -> torch.Tensor:
        digits = Lock(2, 10).digits[features[:, 0].long().clamp(max=9)]
        return 20.0 * torch.nn.functional.one_hot(digits, 4)

    config = PlannerConfig(method="cem", horizon=10, num_candidates=20, policy_share=0.1, gamma=1)
    assert float(Search(Lock(2, 10), config, policy=knows).plan(at(0.0), generator()).returns) == 10


def test_box_policy_gives_mean_and_std() -> None:
    def pushes(features: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[2.0], [0.01]]).expand(len(features), 2, 1)

    search = Search(PointMass(), PlannerConfig(method="policy", horizon=3), policy=pushes)
    torch.testing.assert_close(
        search.plan(at(1.0, 0.0), generator()).candidates,
        torch.full((1, 32, 3, 1), 2.0),
        atol=0.1,
        rtol=0,
    )


def test_persistence_holds_actions() -> None:
    plans = prior_plans(Corridor.action_space, 1, 50, torch.device("cpu"))
    drawn = {p: plans.sample(20, p, generator()) for p in (0.0, 0.8)}
    repeats = {p: float((d[..., 1:] == d[..., :-1]).float().mean()) for p, d in drawn.items()}
    assert repeats[0.0] == pytest.approx(1 / 3, abs=0.06)
    assert repeats[0.8] == pytest.approx(0.8 + 0.2 / 3, abs=0.06)
    box = prior_plans(PointMass.action_space, 1, 50, torch.device("cpu"))
    assert isinstance(box, GaussianPlans)
    box = dataclasses.replace(box, std=box.std / 5)  # clipping would take some of it away
    smooth = box.sample(20, 0.8, generator())[0, :, :, 0]
    assert float((smooth[:, 1:] * smooth[:, :-1]).mean() / (smooth**2).mean()) > 0.65


def test_refit_is_the_weighted_count() -> None:
    plans = CategoricalPlans(torch.full((1, 2, 2), 0.5))
    drawn = torch.tensor([[[0, 1], [1, 1]]])
    fitted = plans.refit(drawn, torch.tensor([[0.75, 0.25]]), smoothing=0.5, exploration=0.0)
    expected = torch.tensor([[[0.625, 0.375], [0.25, 0.75]]])
    torch.testing.assert_close(fitted.probabilities, expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"horizon": 0}, "horizon"),
        ({"gamma": 1.5}, "gamma"),
        ({"temperature": 0.0}, "temperature"),
        ({"elite_share": 0.0}, "elite_share"),
        ({"horizon": 2, "replan_every": 3}, "replan_every"),
        ({"warm_start": 2.0}, "warm_start must lie in .0, 1. or be None, got 2.0"),
        ({"horizon": 10, "num_particles": 2, "max_dream_steps": 19}, "takes 20"),
    ],
)
def test_bad_configs_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlannerConfig(**options)


def test_methods_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="needs a policy"):
        Search(Corridor(), PlannerConfig(method="rollout"))
    with pytest.raises(ValueError, match="discrete"):
        Search(PointMass(), PlannerConfig(method="rollout"), policy=uniform(1))


def test_rollout_tries_the_likeliest_actions_where_it_cannot_try_all() -> None:
    problem, likes_right = Corridor(), torch.tensor([0.0, 1.0, 2.0])
    config = PlannerConfig(method="rollout", horizon=1, num_candidates=2)
    search = Search(problem, config, policy=lambda x: likes_right.expand(len(x), -1))
    plan = search.plan(at(1.0, n=3), torch.Generator().manual_seed(0))
    assert [sorted(row) for row in plan.candidates[:, :, 0].tolist()] == [[1, 2]] * 3


# With a world model.


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return tiny_model()


SMALL = PlannerConfig(horizon=3, num_candidates=6)


def test_forks_leave_the_state_as_it_was(model: WorldModel) -> None:
    frames, actions = (torch.as_tensor(x) for x in dataclasses.astuple(tiny_contexts(2)))
    state = model.observe(model.initial_state(2), actions, frames)
    before = state.clone()
    for method in METHODS:
        config = dataclasses.replace(SMALL, method=method)
        search = Search(DreamModel(model), config, policy=model.predict_policy)
        plan = search.plan(state, generator())
        assert plan.actions.shape == (2, 3) and torch.isfinite(plan.returns).all()
    assert torch.equal(state.steps, before.steps) and torch.equal(state.features, before.features)
    for name, memory in state.memory.items():
        assert torch.equal(memory, before.memory[name])


def test_imagined_return_is_that_of_the_dream(model: WorldModel) -> None:
    frames, actions = (torch.as_tensor(x) for x in dataclasses.astuple(tiny_contexts(2)))
    state = model.observe(model.initial_state(2), actions, frames)
    dream = DreamModel(model)
    plan = Search(dream, dataclasses.replace(SMALL, method="random")).plan(state, generator())
    _, rewards = dream.show(state, plan.actions, plan.noise)
    total = rewards @ torch.tensor([0.98**t for t in range(3)])
    torch.testing.assert_close(plan.returns, total, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_planner_acts_in_a_batch_of_envs(model: WorldModel, method: str) -> None:
    frames, n = tiny_contexts(n=3, length=5).frames, 3
    config = dataclasses.replace(SMALL, method=method, replan_every=2)

    def play(seed: int) -> np.ndarray:
        planner, state, chosen = Planner(model, config, seed=seed), None, []
        for t in range(5):
            start = np.array([t == 0, t in (0, 3), t == 0])  # env 1 starts anew in between
            actions, state = planner.act(frames[:, t], state, start)
            assert actions.shape == (n,) and actions.dtype == np.int64
            chosen.append(actions)
        assert state is not None and state.world.steps.tolist() == [5, 2, 5]
        return np.stack(chosen)

    first = play(0)
    assert ((first >= 0) & (first < NUM_ACTIONS)).all()
    np.testing.assert_array_equal(first, play(0))


def test_every_seed_and_every_decision_has_candidates_of_its_own(model: WorldModel) -> None:
    frames = tiny_contexts(n=1, length=4).frames
    config = dataclasses.replace(SMALL, method="random", replan_every=1, warm_start=0.0)
    noises = []
    for seed in (0, 0, 1):
        planner, state = Planner(model, config, seed=seed), None
        drawn: list[torch.Tensor] = []
        draw = planner.search.model.draw_noise

        def keep(n: int, generator: torch.Generator, draw: Any = draw, to: Any = drawn) -> Any:
            to.append(draw(n, generator))
            return to[-1]

        planner.search.model.draw_noise = keep  # type: ignore[method-assign]
        for t in range(2):
            _, state = planner.act(frames[:, t], state, np.array([t == 0]))
        half = len(drawn) // 2
        noises.append((torch.stack(drawn[:half]), torch.stack(drawn[half:])))
    assert all(torch.equal(a, b) for a, b in zip(noises[0], noises[1], strict=True))
    assert not torch.equal(noises[0][0], noises[0][1])  # another decision
    assert not torch.equal(noises[0][0], noises[2][0])  # another seed


def test_planning_begins_anew_with_an_episode(model: WorldModel) -> None:
    frames = tiny_contexts(n=1, length=4).frames
    config = dataclasses.replace(SMALL, method="cem", replan_every=3)
    seen: list[PlanTrace] = []
    planner, state = Planner(model, config, on_plan=seen.append), None
    for t, start in enumerate([True, False, True, False]):
        _, state = planner.act(frames[:, t], state, np.array([start]))
    assert [trace.step for trace in seen] == [0, 2]


def test_what_is_left_of_a_plan_is_mixed_with_the_prior_once(model: WorldModel) -> None:
    frames = tiny_contexts(n=2, length=3).frames
    config = dataclasses.replace(SMALL, method="cem", replan_every=2, warm_start=0.6)
    planner, state = Planner(model, config), None
    plans, plan = [], planner.search.plan
    planner.search.plan = lambda *a, **k: plans.append(plan(*a, **k)) or plans[-1]  # type: ignore
    for t in range(2):
        _, state = planner.act(frames[:, t], state, np.full(2, t == 0))
    assert state is not None and len(plans) == 1
    prior = planner.search.prior(2, model.device)
    expected = plans[0].distribution.shift(prior, 1.0).shift(prior, 0.6)
    torch.testing.assert_close(state.distribution.mode(), expected.mode())
    assert isinstance(state.distribution, CategoricalPlans)
    torch.testing.assert_close(state.distribution.probabilities, expected.probabilities)


@pytest.mark.parametrize("method", ["random", "policy"])
def test_a_single_plan_is_made_anew_by_every_decision(model: WorldModel, method: Any) -> None:
    frames = tiny_contexts(n=1, length=2).frames
    config = dataclasses.replace(SMALL, method=method, horizon=12, num_candidates=1)
    planner, state, plans = Planner(model, config), None, []
    for t in range(2):
        _, state = planner.act(frames[:, t], state, np.array([t == 0]))
        plans.append(state.rest[0, :-1])
    assert not torch.equal(plans[1][:-1], plans[0][1:])  # not what was left of the last one
    # Where rounds bring others, it is compared with these.
    dream, first = DreamModel(model), torch.zeros(1, 12, dtype=torch.int64)
    several = dataclasses.replace(config, method="random", num_iterations=3)
    plan = Search(dream, several).plan(model.initial_state(1), generator(), first=first)
    _, rewards = dream.show(model.initial_state(1), first, plan.noise)
    torch.testing.assert_close(plan.rounds[0][0], rewards @ 0.98 ** torch.arange(12.0))
    assert len(plan.rounds) == 3 and plan.returns[0] == torch.cat(plan.rounds, dim=1).max()


def test_act_depends_on_nothing_but_its_arguments(model: WorldModel) -> None:
    frames = tiny_contexts(n=2, length=3).frames
    planner, no = Planner(model, SMALL), np.zeros(2, bool)
    _, state = planner.act(frames[:, 0], None, ~no)
    first, _ = planner.act(frames[:, 1], state, no)
    planner.act(frames[:, 2], state, no)
    again, _ = planner.act(frames[:, 1], state, no)
    np.testing.assert_array_equal(first, again)


def test_trace_shows_what_was_imagined(model: WorldModel, tmp_path: Path) -> None:
    seen: list[PlanTrace] = []
    config = dataclasses.replace(SMALL, method="cem", num_iterations=2, bootstrap="none")
    planner = Planner(model, config, on_plan=seen.append, num_shown=3)
    frames = tiny_contexts(n=2).frames[:, 0]
    actions, _ = planner.act(frames, None, np.ones(2, bool))
    assert [trace.env for trace in seen] == [0, 1]
    trace = seen[1]
    assert trace.plans[0, 0] == actions[1] and trace.dream_steps == 36
    assert [len(r) for r in trace.rounds] == [6, 6]
    assert trace.expected_return == pytest.approx(max(map(np.max, trace.rounds)))
    total = float(trace.rewards[0] @ 0.98 ** np.arange(3))
    assert trace.expected_return == pytest.approx(total, abs=1e-4)
    np.testing.assert_array_equal(trace.frame, frames[1])
    assert trace.frames.shape == (3, 3, 64, 64, 3)
    save_trace(tmp_path / "plan.png", trace)
    assert (tmp_path / "plan.png").stat().st_size > 1000


def test_beyond_the_horizon_counts_what_the_recorded_behaviour_makes(model: WorldModel) -> None:
    """The same plans in the same futures: what differs is the discounted value at their ends."""
    found: dict[str, Plan] = {}
    frames = torch.as_tensor(tiny_contexts(n=1).frames[:, :1])
    state = model.observe(model.initial_state(1), torch.tensor([[model.no_action]]), frames)
    for bootstrap in ("none", "return"):
        config = dataclasses.replace(SMALL, method="random", bootstrap=bootstrap)
        planner = Planner(model, config)
        found[bootstrap] = planner.search.plan(state, torch.Generator().manual_seed(0))
    returns = [
        dict(zip(map(tuple, plans.tolist()), made.tolist(), strict=True))
        for plans, made in ((p.candidates[0], p.candidate_returns[0]) for p in found.values())
    ]
    assert returns[0].keys() == returns[1].keys() and len(returns[0]) > 3
    for plan in returns[0]:
        end = state
        for action, noise in zip(plan, found["none"].noise, strict=True):
            end = planner.dream.step(end, torch.tensor([action]), noise).state
        worth = SMALL.gamma**SMALL.horizon * model.predict_value(end.features).item()
        assert returns[1][plan] - returns[0][plan] == pytest.approx(worth, abs=1e-4)
        assert abs(worth) > 1e-3
    own = Planner(model, dataclasses.replace(SMALL, bootstrap="none"), value=model.predict_value)
    assert own.search.value == model.predict_value


def test_planner_plays_whole_episodes(model: WorldModel) -> None:
    dreams = DreamVectorEnv(
        2,
        world_model=model,
        contexts=tiny_contexts(),
        horizon=3,
        autoreset_mode=AutoresetMode.DISABLED,
    )
    results = rollout(Planner(model, SMALL), dreams, [1, 2, 3])
    assert [r.length for r in results] == [3, 3, 3]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_planning_earns_more_in_real_mazes_than_the_policy_that_it_plans_with() -> None:
    """Small mazes, which the shipped model has never seen, and its plain behaviour cloning."""
    make = functools.partial(envs.make, "memory-maze-7x7", max_episode_steps=250)
    shipped = worldsim.load("memory-maze-9x9")
    config = dataclasses.replace(FAST_PLANNER, walking=False, bootstrap="map")
    alone = behaviour_policy(shipped, walking=False, temperature=config.policy_temperature)
    returns = [
        sum(r.episodic_return for r in evaluate(policy, make, range(6), num_workers=6))
        for policy in (Planner(shipped, config), alone)
    ]
    assert returns[0] > returns[1], returns


def test_a_planner_observes_what_it_did(model: WorldModel) -> None:
    frames, led = tiny_contexts(n=4, length=3).frames, [np.full(4, model.no_action)]
    planner, state = Planner(model, dataclasses.replace(SMALL, method="random")), None
    for t in range(3):
        chosen, state = planner.act(frames[:, t], state, np.full(4, t == 0))
        led.append(chosen)
    assert np.any(led[1:3])
    actions = torch.as_tensor(np.stack(led[:3], axis=1))
    expected = model.observe(model.initial_state(4), actions, torch.as_tensor(frames))
    assert state is not None
    torch.testing.assert_close(state.world.features, expected.features, atol=1e-4, rtol=1e-3)


def test_nothing_is_expected_beyond_an_end() -> None:
    plan = solve(
        Corridor(),
        at(4.0),
        method="random",
        horizon=2,
        num_candidates=200,
        gamma=1.0,
        value=lambda features: torch.full((len(features),), 5.0),
    )
    # Staying is worth 5; the goal pays 1 and ends, the bait 0.2.
    assert plan.actions[0].tolist() == [2, 2]
    assert float(plan.candidate_returns.max()) == 5.0
