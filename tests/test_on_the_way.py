"""Steps on the way are rewarded by the map as it was, and agents learn in dreams to make them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_map_value import moved, standing
from test_occupancy import mapping
from tiny import tiny_contexts, tiny_model

from agents.actor_critic import ActorCritic, ActorCriticPolicy
from agents.features import FeaturePolicy, load_policy
from agents.imagination import ActorCriticConfig, ImaginationTrainer
from agents.map_value import FARTHEST, STEPS_PER_CELL, STEPS_PER_RADIAN
from agents.on_the_way import WayConfig, WayReward, shaping_of
from agents.planner import DreamModel
from experiments.dream_train import main as dream_train
from experiments.dream_train_config import DreamTrainConfig
from experiments.sb3_training import PPOConfig
from worldsim.checkpoint import save
from worldsim.dreaming import Dream
from worldsim.occupancy import CELLS
from worldsim.state import WorldState
from worldsim.world_model import WorldModel

GOAL = torch.tensor([8.5, 2.5])


def progress(model: WorldModel, pose: tuple[float, float, float]) -> float:
    """What a step from (4.5, 2.5), heading for the goal, to a pose is worth, per unit of way."""
    before = standing(model, (4.5, 2.5, 0.0), GOAL)
    reward = WayReward(model, WayConfig(progress=1.0, touch=0.0))
    return reward(before, moved(before, pose)).item()


def test_progress_is_the_way_that_a_step_makes() -> None:
    model = mapping()
    assert progress(model, (4.5, 2.5, 0.0)) == pytest.approx(0)
    assert progress(model, (4.7, 2.5, 0.0)) == pytest.approx(0.2 * STEPS_PER_CELL, rel=0.02)
    assert progress(model, (4.3, 2.5, 0.0)) == pytest.approx(-0.2 * STEPS_PER_CELL, rel=0.02)
    assert progress(model, (4.5, 2.5, 0.3)) == pytest.approx(-0.3 * STEPS_PER_RADIAN, rel=0.02)
    assert progress(model, (7.5, 2.5, 0.0)) == FARTHEST
    assert progress(model, (1.5, 2.5, 0.0)) == -FARTHEST


def test_what_becomes_known_in_a_step_is_no_progress() -> None:
    model = mapping()
    before = standing(model, (4.5, 2.5, 0.0), GOAL)
    after = moved(before, (4.7, 2.5, 0.0))
    reward = WayReward(model, WayConfig())
    expected = reward(before, after)
    after.memory[CELLS][..., :2] = 0  # all is forgotten
    after.features[:] = 0
    assert torch.equal(reward(before, after), expected)


def test_walls_within_reach_cost() -> None:
    model = mapping()
    before = standing(model, (4.5, 2.5, 0.0), GOAL)
    places = [(4.5, 2.5), (4.5, 2.7), (4.5, 2.85), (4.5, 2.15), (9.5, 4.0)]
    after = moved(before, *((x, y, 0.0) for x, y in places))
    reward = WayReward(model, WayConfig(progress=0.0, touch=0.5))
    assert reward(before.repeat(len(places)), after).tolist() == [0.0, 0.0, -0.5, -0.5, 0.0]
    wider = WayReward(model, WayConfig(progress=0.0, touch=0.5, near=0.35))
    assert wider(before.repeat(len(places)), after).tolist() == [0.0, -0.5, -0.5, -0.5, 0.0]


def test_dreams_as_envs_are_worth_sure_rewards_and_the_way() -> None:
    model = mapping()
    before = standing(model, (4.5, 2.5, 0.0), GOAL)
    before, after = before.repeat(3), moved(before, *[(4.7, 2.5, 0.0)] * 3)
    rewards, ended = torch.tensor([0.2, 0.9, -1.0]), torch.zeros(3, dtype=torch.bool)
    way = WayReward(model)
    dream = Dream(after, torch.zeros(3, 64, 64, 3, dtype=torch.uint8), rewards, ended)
    sure = torch.tensor([0.0, 0.9, -1.0])
    torch.testing.assert_close(way.of_dream(before, dream), sure + way(before, after))


def test_only_maps_show_progress() -> None:
    assert shaping_of(WayConfig(), tiny_model()) is None
    assert shaping_of(WayConfig(progress=0.0, touch=0.0), mapping()) is None
    assert shaping_of(WayConfig(touch=0.0), mapping()) is not None
    with pytest.raises(ValueError, match="draws no map"):
        WayReward(tiny_model())
    for changes in ({"progress": -1.0}, {"touch": -1.0}, {"near": 0.5}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            WayConfig(**changes)


def walking() -> WorldModel:
    """A tiny model in whose dreams action 1 goes ahead, 2 turns to the left and 0 goes back."""
    model = mapping().eval()
    assert model.odometry is not None
    moves = torch.tensor([[-0.2, 0.0, 0.0], [0.2, 0.0, 0.0], [0.0, 0.0, 0.3]])
    hidden = model.odometry.config.hidden
    first, _, last = model.odometry.before
    with torch.no_grad():
        for parameter in model.odometry.before.parameters():
            parameter.zero_()
        model.odometry.action_in.weight.zero_()
        for action, move in enumerate(moves):
            model.odometry.action_in.weight[action, action] = 1.0
            first.weight[action, hidden + action] = 10.0  # type: ignore[index, operator]
            last.weight[:, action] = move / model.odometry.SCALE / 10.0  # type: ignore[index, operator]
    return model


def test_an_agent_learns_to_make_way_in_dreams() -> None:
    model = walking()
    start = standing(model, (4.5, 2.5, 0.0), GOAL)

    def starts(n: int, generator: torch.Generator) -> WorldState:
        return start.repeat(n)

    def trained(way: WayConfig) -> torch.Tensor:
        torch.manual_seed(0)
        agent = ActorCritic.from_behaviour(model, walking=False, returns=False)
        config = ActorCriticConfig(
            num_steps=2, learning_rate=3e-3, prior_coef=0.0, min_return_scale=0.01, min_reward=9.0
        )
        trainer = ImaginationTrainer(
            agent,
            DreamModel(model),
            starts,
            config,
            shaping=WayReward(model, way),
            num_envs=32,
            horizon=2,
        )
        for _ in range(25):
            metrics = trainer.update()
        # What steps are worth beside dreamed rewards is told apart.
        assert metrics["reward_per_step"] == 0
        assert (metrics["shaped_reward_per_step"] > 0) == (way.progress > 0)
        return agent.logits(start.features).softmax(-1)[0]

    ahead = trained(WayConfig(progress=0.1, touch=0.0))
    assert ahead[1] > 0.8, ahead
    # What the map does not say is not learned: it is the map that rewards.
    nothing = trained(WayConfig(progress=0.0, touch=0.0))
    assert nothing[1] < 0.8, nothing


def test_critics_can_begin_with_nothing() -> None:
    model = mapping()
    features = torch.randn(3, model.config.num_features)
    agent = ActorCritic.from_behaviour(model, returns=False)
    recorded = ActorCritic.from_behaviour(model)
    assert agent.value(features).abs().max() < 1e-4
    assert recorded.value(features).abs().max() > 1e-3
    assert torch.equal(agent.logits(features), recorded.logits(features))


def test_ppo_starts_from_walking() -> None:
    with pytest.raises(ValueError, match="leave --no-walking out"):
        DreamTrainConfig(agent="ppo", walking=False)


@pytest.mark.parametrize("agent", ["ppo", "actor-critic"])
def test_curves_tell_dreamed_rewards_and_shaped_ones_apart(agent: str, tmp_path: Path) -> None:
    save(mapping().eval(), tmp_path / "model", contexts=tiny_contexts(2, 8))

    def curves(name: str, way: WayConfig) -> dict[str, list[float]]:
        config = DreamTrainConfig(
            env="corridor",
            world_model=str(tmp_path / "model"),
            agent=agent,
            actor_critic=ActorCriticConfig(num_steps=4),
            way=way,
            total_timesteps=64,
            num_envs=2,
            num_starts=2,
            horizon=4,
            judge=False,
            output=tmp_path / name,
        )
        dream_train(config)
        events = EventAccumulator(str(tmp_path / name / "tensorboard"))
        events.Reload()
        tags = ("dream/episodic_return", "dream/shaped_return")
        return {tag: [e.value for e in events.Scalars(tag)] for tag in tags}

    # All of a dreamed reward is made sure of, so that what is left is what the way is worth.
    plain = curves("plain", WayConfig(progress=0.0, touch=0.0))
    paid = curves("paid", WayConfig(progress=0.0, touch=0.5, near=0.49, min_reward=0.0))
    first = [c["dream/episodic_return"][0] for c in (plain, paid)]
    assert first[0] == pytest.approx(first[1], rel=1e-4)
    assert plain["dream/shaped_return"][0] == pytest.approx(first[0], rel=1e-3)
    assert paid["dream/shaped_return"][0] < first[1] - 0.1


def test_settings_of_ppo_depend_on_what_it_starts_from() -> None:
    config = PPOConfig(learning_rate=0.5)
    improving, anew = config.settled(improving=True), config.settled(improving=False)
    assert improving["learning_rate"] == anew["learning_rate"] == 0.5
    assert improving["ent_coef"] == 0 and anew["ent_coef"] == 0.01
    assert improving["num_steps"] == 16 and anew["num_steps"] == 64
    assert None not in improving.values() and improving.keys() == anew.keys()


@pytest.mark.parametrize("walking", [True, False])
def test_training_starts_from_walking_or_from_plain_cloning(tmp_path: Path, walking: bool) -> None:
    model = mapping().eval()
    save(model, tmp_path / "model", contexts=tiny_contexts(2, 8))
    config = DreamTrainConfig(
        env="corridor",
        world_model=str(tmp_path / "model"),
        walking=walking,
        behaviour_temperature=1.0,
        total_timesteps=1,
        num_envs=1,
        num_starts=2,
        actor_critic=ActorCriticConfig(num_steps=1, learning_rate=0.0),
        horizon=1,
        judge=False,
        output=tmp_path / "run",
    )
    dream_train(config)
    policy = load_policy(config.policy_path)
    assert isinstance(policy, FeaturePolicy) and isinstance(policy.policy, ActorCriticPolicy)
    features = torch.randn(5, model.config.num_features)
    head = model.behaviour_head if walking else model.policy_head
    expected = head(features[:, : head[0].in_features])
    torch.testing.assert_close(policy.policy.agent.logits(features), expected, atol=0.05, rtol=0.05)
    other = model.policy_head if walking else model.behaviour_head
    assert not torch.allclose(other(features[:, : other[0].in_features]), expected, atol=0.1)
