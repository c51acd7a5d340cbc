"""What a planner expects by the map: nearer on the way is worth more, and walls count."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from test_occupancy import SMALL, known_map, mapping
from tiny import tiny_contexts, tiny_model

from agents.features import behaviour_policy
from agents.map_value import STEPS_PER_CELL, STEPS_PER_RADIAN, UNKNOWN, MapValue
from agents.planner import Planner, PlannerConfig
from worldsim.occupancy import CELLS, SEEN
from worldsim.odometry import ORIGIN, POSE
from worldsim.places import NUM_PLACE_FEATURES, place_features
from worldsim.state import WorldState
from worldsim.world_model import WorldModel

GAMMA = 0.98


def standing(model: WorldModel, pose: tuple[float, float, float], goal: torch.Tensor) -> WorldState:
    """A state that knows a U of free cells, and expects a reward at a goal (2,), or if NaN not."""
    layout = np.zeros((12, 12), bool)
    layout[2, 1:10] = layout[2:6, 9] = layout[5, 1:10] = True  # two corridors, joined at x = 9
    state = model.initial_state(1)
    state.memory[CELLS][:] = known_map(layout, SMALL)
    state.memory[CELLS][..., SEEN] = 1.0  # all was seen
    state.memory[POSE][:] = torch.tensor(pose)
    state.memory[ORIGIN][:] = 0.0
    unknown = goal.isnan().any()
    seen = torch.zeros(1, 2) if unknown else goal[None] - torch.tensor(pose[:2])
    assert pose[2] == 0
    told = place_features(seen, torch.tensor([0.0 if unknown else 1.0]))
    state.features[:, -NUM_PLACE_FEATURES:] = told
    return WorldState(state.memory, torch.tensor([200]), state.features)


def moved(state: WorldState, *poses: tuple[float, float, float]) -> WorldState:
    """Imagined states at other poses."""
    rows = state.repeat(len(poses))
    rows.memory[POSE][:] = torch.tensor(poses)
    return rows


def test_value_is_the_discount_of_the_way_that_is_left() -> None:
    model = mapping()
    state = standing(model, (1.5, 2.5, 0.0), torch.tensor([8.5, 2.5]))
    value = MapValue(model, GAMMA).seen_from(state)
    ahead = value(moved(state, (1.5, 2.5, 0.0), (4.5, 2.5, 0.0), (7.5, 2.5, 0.0)))
    expected = torch.tensor([GAMMA ** (STEPS_PER_CELL * n) for n in (7, 4, 1)])
    torch.testing.assert_close(ahead, expected, rtol=1e-2, atol=0)
    # A quarter turn away from the way costs its time, and so does a wall that has to be gone round.
    turned, across = value(moved(state, (4.5, 2.5, math.pi / 2), (8.5, 5.5, 0.0)))
    quarter = GAMMA ** (STEPS_PER_RADIAN * math.pi / 2)
    torch.testing.assert_close(turned, ahead[1] * quarter, rtol=1e-2, atol=0)
    assert across < GAMMA ** (STEPS_PER_CELL * 4.9)


def test_maps_and_goals_that_dreams_make_up_do_not_count() -> None:
    model = mapping()
    state = standing(model, (1.5, 2.5, 0.0), torch.tensor([8.5, 2.5]))
    value = MapValue(model, GAMMA).seen_from(state)
    rows = moved(state, (4.5, 2.5, 0.0))
    before = value(rows)
    rows.memory[CELLS].zero_()
    rows.features.zero_()
    torch.testing.assert_close(value(rows), before)


def test_what_is_unseen_is_worth_less_than_a_reward() -> None:
    model = mapping()
    state = standing(model, (4.5, 2.5, 0.0), torch.tensor([math.nan, math.nan]))
    state.memory[CELLS][0, 2 * 12 + 7, SEEN] = 0.0  # not seen yet, three cells ahead
    value = MapValue(model, GAMMA).seen_from(state)(moved(state, (4.5, 2.5, 0.0)))
    expected = torch.tensor([UNKNOWN * GAMMA ** (STEPS_PER_CELL * 3)])
    torch.testing.assert_close(value, expected, rtol=1e-2, atol=0)


def test_every_env_has_its_own_map() -> None:
    model = mapping()
    near = standing(model, (4.5, 2.5, 0.0), torch.tensor([5.5, 2.5]))
    far = standing(model, (4.5, 2.5, 0.0), torch.tensor([8.5, 2.5]))
    both = WorldState(
        {name: torch.cat([near.memory[name], far.memory[name]]) for name in near.memory},
        torch.cat([near.steps, far.steps]),
        torch.cat([near.features, far.features]),
    )
    found = MapValue(model, GAMMA).seen_from(both)(both.repeat(2))
    alone = [MapValue(model, GAMMA).seen_from(s)(s) for s in (near, near, far, far)]
    torch.testing.assert_close(found, torch.cat(alone))
    assert found[0] > found[2]


def test_the_map_changes_what_plans_are_worth() -> None:
    model = mapping()
    config = PlannerConfig(method="policy", horizon=3, num_candidates=4)
    frames = tiny_contexts(n=2, length=4).frames
    values: list[float] = []
    for bootstrap in ("map", "none", None):
        planner = Planner(
            model,
            dataclasses.replace(config, bootstrap=bootstrap),
            on_plan=lambda trace: values.append(trace.expected_return),
        )
        state = None
        for t in range(2):
            actions, state = planner.act(frames[:, t], state, np.full(2, t == 0))
            assert actions.shape == (2,)
    assert len(values) == 12 and not np.allclose(values[:4], values[4:8])
    assert values[8:] == values[:4]  # the map is what is taken by default, where there is one


def test_a_model_without_a_map_is_refused() -> None:
    with pytest.raises(ValueError, match="draws no map"):
        Planner(tiny_model(), PlannerConfig(bootstrap="map"))


def test_the_policy_of_plans_walks_or_does_what_was_recorded() -> None:
    model = mapping()
    features = torch.randn(4, model.config.num_features)
    said = {}
    for walking in (True, False):
        config = PlannerConfig(walking=walking, policy_temperature=0.5)
        policy = Planner(model, config).search.policy
        assert policy is not None
        said[walking] = policy(features)
        policy_of_model = behaviour_policy(model, walking=walking).policy.agent.logits
        torch.testing.assert_close(said[walking], policy_of_model(features) / 0.5)
    assert not torch.allclose(said[True], said[False])
