"""The actor-critic's returns are right, it learns what is known to be best, and saves itself."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from planning_problems import Corridor, Situation
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny import NUM_ACTIONS, tiny_contexts, tiny_model

from agents import actor_critic
from agents.actor_critic import ActorCritic, ActorCriticPolicy, world_model_note
from agents.features import FeaturePolicy, doubted_features, load_policy
from agents.imagination import (
    ActorCriticConfig,
    DreamSteps,
    ImaginationTrainer,
    lambda_returns,
    starts_of,
)
from agents.planner import DreamModel
from agents.planner_search import Step
from worldsim.checkpoint import load, save
from worldsim.contexts import ContextBank
from worldsim.odometry import OdometryConfig
from worldsim.places import PlacesConfig
from worldsim.pose import PoseConfig


class OneHotCorridor(Corridor):
    """The corridor with its position one-hot, the first 5 of 6 features; the bait leads to none."""

    def dynamics(
        self, features: torch.Tensor, actions: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        position = features.argmax(-1, keepdim=True).float()
        position, reward, terminated = super().dynamics(position, actions, noise)
        return one_hot(position[:, 0].clamp(max=5).long()).features, reward, terminated


def one_hot(positions: torch.Tensor) -> Situation:
    return Situation(torch.nn.functional.one_hot(positions, 6).float())


def anywhere(n: int, generator: torch.Generator) -> Situation:
    return one_hot(torch.randint(5, (n,), generator=generator))


def make_agent(seed: int = 0) -> ActorCritic:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ActorCritic(6, 3)


def make_trainer(seed: int = 0, **options: Any) -> ImaginationTrainer:
    toy = {"num_steps": 8, "learning_rate": 3e-3, "prior_coef": 0.0}
    steady = {"ent_coef": 3e-3, "return_lambda": 0.95, "min_return_scale": 1.0}
    options = toy | steady | {"num_epochs": 4, "batch_size": 128} | options
    config = ActorCriticConfig(**options)
    return ImaginationTrainer(
        make_agent(), OneHotCorridor(), anywhere, config, horizon=16, seed=seed
    )


def train(updates: int, seed: int = 0, **options: Any) -> tuple[ActorCritic, dict[str, float]]:
    trainer = make_trainer(seed, **options)
    metrics: dict[str, float] = {}
    for _ in range(updates):
        metrics = trainer.update()
    return trainer.agent, metrics


def naive_lambda_return(
    rewards: np.ndarray, values: np.ndarray, ended: np.ndarray, gamma: float, lam: float
) -> np.ndarray:
    """The definition, for one env: (1 - lambda) sum of lambda^(n-1) n-step returns."""
    length, result = len(rewards), np.zeros(len(rewards))
    for t in range(length):
        n_step = []
        for n in range(1, length - t + 1):
            total, alive = 0.0, True
            for k in range(n):
                total += alive * gamma**k * rewards[t + k]
                alive = alive and not ended[t + k]
            n_step.append(total + alive * gamma**n * values[t + n - 1])
        weights = [(1 - lam) * lam**i for i in range(len(n_step) - 1)] + [lam ** (len(n_step) - 1)]
        result[t] = np.dot(weights, n_step)
    return result


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_lambda_returns_are_as_defined(lam: float) -> None:
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 12, 4))
    ended = rng.random((12, 4)) < 0.15
    ended[:, 0] = False
    returns = lambda_returns(*map(torch.as_tensor, (rewards, values, ended)), 0.9, lam)
    for i in range(4):
        expected = naive_lambda_return(rewards[:, i], values[:, i], ended[:, i], 0.9, lam)
        np.testing.assert_allclose(returns[:, i], expected)


def test_the_return_of_a_truncated_step_does_not_know_what_follows() -> None:
    rng = np.random.default_rng(0)
    rewards, values = (torch.as_tensor(x) for x in rng.normal(size=(2, 12, 3)))
    ended = torch.zeros(12, 3, dtype=torch.bool)
    ended[9, 2] = True
    truncated = torch.zeros(12, 3, dtype=torch.bool)
    truncated[5, 0] = truncated[9, 2] = True
    returns = lambda_returns(rewards, values, ended, 0.9, 0.8, truncated)
    whole = lambda_returns(rewards, values, ended, 0.9, 0.8)
    short = lambda_returns(rewards[:6], values[:6], ended[:6], 0.9, 0.8)
    torch.testing.assert_close(returns[:6, 0], short[:, 0])  # as if it had been the last
    torch.testing.assert_close(returns[6:, 0], whole[6:, 0])
    torch.testing.assert_close(returns[:, 1:], whole[:, 1:])  # what has ended has no future


class FoggyCorridor(OneHotCorridor):
    """From its middle on a step to the right may, or may not, be one."""

    def dynamics(
        self, features: torch.Tensor, actions: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        lost = (features.argmax(-1) >= 2) & (actions == 1) & (noise > 0)
        return super().dynamics(features, torch.where(lost, 2, actions), noise)


def foggy_trainer(
    doubted: slice = slice(None), num_envs: int = 32, **options: Any
) -> ImaginationTrainer:
    config = ActorCriticConfig(num_steps=8, prior_coef=0.0, min_return_scale=1.0, **options)
    return ImaginationTrainer(
        *(make_agent(), FoggyCorridor(), anywhere, config),
        num_envs=num_envs,
        horizon=16,
        doubted=doubted,
        seed=0,
    )


def test_a_dream_ends_with_a_doubtful_step() -> None:
    trainer = foggy_trainer(max_doubt=0.1)
    learned: list[DreamSteps] = []
    loss = trainer._loss

    def keep(steps: DreamSteps) -> tuple[torch.Tensor, dict[str, float]]:
        learned.append(steps)
        return loss(steps)

    dream, values = trainer._dream(), copy.deepcopy(trainer.target)
    with (
        mock.patch.object(trainer, "_dream", lambda: dream),
        mock.patch.object(trainer, "_loss", keep),
    ):
        metrics = trainer.update()
    doubtful = dream.doubt > 0.1
    position = dream.features[:-1].argmax(-1)
    assert ((position >= 2) & (dream.actions == 1))[doubtful & dream.alive].all()
    assert 0.02 < doubtful.float().mean() < 0.6

    # What a dream makes until its first doubtful step, and what the critic expects from there.
    expected = []
    for row in range(trainer.num_envs):
        over = (doubtful | dream.terminated)[:, row]
        length = int(over.float().argmax()) + 1 if over.any() else len(over)
        part = slice(0, length)
        after = values(dream.features[1 : length + 1, row]).detach()[:, None]
        returns = lambda_returns(
            *(dream.rewards[part, row, None], after, dream.terminated[part, row, None]),
            *(trainer.config.gamma, trainer.config.return_lambda),
        )
        expected.append(returns[:, 0])
    found = torch.cat([steps.returns for steps in learned[: len(learned) // 6]])
    assert len(learned) % 6 == 0 and metrics["learned_share"] < 1
    torch.testing.assert_close(found.sort().values, torch.cat(expected).sort().values)

    # Those that ended begin anew with the next segment, at any of the starts.
    ended = (doubtful | dream.terminated).any(0)
    went_on = (trainer.state.features == dream.features[-1]).all(-1)
    assert (trainer.age[ended] == 0).all() and went_on[~ended & (trainer.age > 0)].all()
    assert not went_on[ended].all()


def test_who_doubts_nothing_dreams_no_step_twice() -> None:
    plain, doubting = foggy_trainer(), foggy_trainer(doubt_coef=1.0)
    for trainer, dreams in ((plain, 1), (doubting, 2)):
        assert isinstance(trainer.model, FoggyCorridor)
        metrics = trainer.update()
        assert trainer.model.rows_stepped == dreams * trainer.num_dream_steps
        assert (metrics["doubt"] > 0) == (trainer is doubting)
    assert not plain._dream().truncated.any()


def test_doubt_costs_what_it_is_said_to() -> None:
    trainer = foggy_trainer(doubt_coef=2.0)
    dream = trainer._dream()
    torch.testing.assert_close(dream.rewards, dream.shaped - 2.0 * dream.doubt)
    torch.testing.assert_close(dream.shaped, dream.dreamed)
    # Two dreams of one-hot positions differ in two of six, or not at all.
    apart = (2 / 6) ** 0.5
    assert ((dream.doubt == 0) | ((dream.doubt - apart).abs() < 1e-6)).all()
    assert not dream.truncated.any() and (dream.doubt > 0).any()
    # Only features that are to be looked at count: position 0 is never in doubt.
    assert not foggy_trainer(slice(0, 1), doubt_coef=2.0)._dream().doubt.any()


def test_an_agent_that_shuns_doubt_stays_out_of_the_fog() -> None:
    def share_of_steps_right(**options: Any) -> float:
        trainer = foggy_trainer(learning_rate=3e-3, **options)
        for _ in range(60):
            trainer.update()
        logits = trainer.agent.logits(one_hot(torch.arange(2, 5)).features).detach()
        return float(logits.softmax(-1)[:, 1].min())

    assert share_of_steps_right(doubt_coef=5.0) < 0.1 < 0.8 < share_of_steps_right()


def test_a_world_model_is_doubted_by_what_it_tells_of_places() -> None:
    model = tiny_model()
    assert doubted_features(model) == slice(0, None)
    told = tiny_model(
        pose=PoseConfig(),
        odometry=OdometryConfig(hidden=16),
        places=PlacesConfig(slots=4, width=32),
    )
    assert told.config.num_features > told.d_model == doubted_features(told).start


@pytest.mark.parametrize("options", [{"max_doubt": 0.0}, {"doubt_coef": -1.0}])
def test_doubt_of_no_size_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        ActorCriticConfig(**options)


def test_the_corridor_is_walked_and_its_value_known() -> None:
    agent, metrics = train(250)
    features = one_hot(torch.arange(5)).features
    assert (agent.logits(features).softmax(-1)[:, 1] > 0.9).all()
    expected = torch.tensor([0.98 ** (4 - p) for p in range(5)])
    torch.testing.assert_close(agent.value(features), expected, atol=0.08, rtol=0)
    assert metrics["reward_per_step"] > 0.22


def test_a_critic_begins_with_the_returns_of_the_recorded_behaviour() -> None:
    model = tiny_model()
    agent = ActorCritic.from_behaviour(model)
    features = torch.randn(7, model.config.num_features)
    torch.testing.assert_close(agent.value(features), model.predict_value(features))
    torch.testing.assert_close(agent.logits(features), model.predict_policy(features))
    assert make_agent().value(one_hot(torch.arange(5)).features).abs().max() < 1e-4  # nothing known


def test_the_prior_holds_the_policy() -> None:
    features = one_hot(torch.arange(5)).features
    before = make_agent().logits(features).softmax(-1)
    held, metrics = train(40, prior_coef=10.0, ent_coef=0.0)
    free, _ = train(40)
    held_change = (held.logits(features).softmax(-1) - before).abs().max()
    free_change = (free.logits(features).softmax(-1) - before).abs().max()
    assert held_change < 0.3 * free_change and metrics["prior_divergence"] < 1e-2


def test_rewards_below_the_smallest_count_as_none() -> None:
    """At once and discounted much, the bait of 0.2 is the better choice far from the goal."""
    options = {"gamma": 0.5, "min_return_scale": 0.1}
    start = one_hot(torch.zeros(1, dtype=torch.int64)).features
    greedy, _ = train(150, **options)
    assert greedy.logits(start).argmax().item() == 0
    patient, _ = train(150, min_reward=0.5, **options)
    assert patient.logits(start).argmax().item() != 0


class Costly(OneHotCorridor):
    """Pays from -1 to 1, by the row; nothing ends."""

    def dynamics(
        self, features: torch.Tensor, actions: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ends = torch.zeros(len(actions), dtype=torch.bool)
        return features, torch.linspace(-1, 1, len(actions)), ends


def test_penalties_are_no_small_rewards() -> None:
    trainer = make_trainer(min_reward=0.5)
    trainer.model = Costly()
    worth = torch.linspace(-1, 1, trainer.num_envs)
    expected = torch.where(worth.abs() < 0.5, 0.0, worth)
    torch.testing.assert_close(trainer._dream().dreamed, expected.expand(8, -1))


class Paying(OneHotCorridor):
    """The corridor, where every reward is worth more."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def step(self, state: Any, actions: torch.Tensor, noise: torch.Tensor) -> Step:
        step = super().step(state, actions, noise)
        return step._replace(reward=self.factor * step.reward)


def test_advantages_are_centred_and_do_not_depend_on_the_size_of_rewards() -> None:
    def advantages(factor: float, least: float) -> torch.Tensor:
        trainer = make_trainer(min_return_scale=least)
        trainer.model = Paying(factor)
        for critic in (trainer.target, trainer.agent.critic):
            for p in critic.parameters():
                torch.nn.init.zeros_(p)
        with mock.patch.object(trainer, "_loss", wraps=trainer._loss) as loss:
            trainer.update()
        batches = loss.call_args_list[: len(loss.call_args_list) // trainer.config.num_epochs]
        return torch.cat([call.args[0].advantages for call in batches])

    one, ten = advantages(1.0, 1e-6), advantages(10.0, 1e-6)
    torch.testing.assert_close(one, ten)
    assert abs(float(one.mean())) < 1e-5 and float(one.std()) > 0.1
    # Below the least spread, small returns stay small.
    small, smaller = advantages(1.0, 100.0), advantages(0.1, 100.0)
    torch.testing.assert_close(small, 10 * smaller)
    assert float(small.abs().max()) < 0.1


def test_same_seed_same_agent() -> None:
    first, again, other = (train(5, seed=s)[0].state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_training_goes_on_from_what_was_kept(tmp_path: Path) -> None:
    trainer = make_trainer()
    for _ in range(3):
        trainer.update()
    save_file(trainer.state_dict(), tmp_path / "trainer.safetensors")
    resumed = [make_trainer(seed=0) for _ in range(2)]
    for other in resumed:
        other.load_state_dict(load_file(tmp_path / "trainer.safetensors"))
        assert other.num_dream_steps == trainer.num_dream_steps
        kept = other.state_dict()
        assert all(torch.equal(t, kept[key]) for key, t in trainer.state_dict().items())
        other.update()
    # In new dreams: not those of the beginning once more.
    assert resumed[0].generator.initial_seed() != trainer.generator.initial_seed()
    first, second = (other.agent.state_dict() for other in resumed)
    assert all(torch.equal(first[key], second[key]) for key in first)
    with pytest.raises(ValueError, match="another agent"):
        trainer.load_state_dict({})


def test_returns_are_bootstrapped_by_a_critic_that_moves_slowly() -> None:
    trainer = make_trainer(target_decay=0.9)
    for _ in range(3):
        trainer.update()
    before = copy.deepcopy(trainer.target)
    dream = trainer._dream()
    with mock.patch.object(trainer, "_dream", lambda: dream):
        with mock.patch("agents.imagination.lambda_returns", wraps=lambda_returns) as returns:
            trainer.update()
    values = before(dream.features[1:]).detach()
    torch.testing.assert_close(returns.call_args.args[1], values)
    assert not torch.equal(trainer.agent.value(dream.features[1:]).detach(), values)
    old, slow, fast = (
        [p.detach() for p in critic.parameters() if p.is_floating_point()]
        for critic in (before, trainer.target, trainer.agent.critic)
    )
    for o, s, f in zip(old, slow, fast, strict=True):
        torch.testing.assert_close(s, o.lerp(f, 0.1))


def test_a_policy_is_not_drawn_further_than_the_clip_range() -> None:
    trainer = make_trainer(ent_coef=0.0, vf_coef=0.0, clip_range=0.2)
    features = one_hot(torch.arange(5)).features
    log_policy = trainer.agent.logits(features).log_softmax(-1).detach()
    actions = torch.ones(5, dtype=torch.long)

    def gradient(ratio: float, advantage: float) -> float:
        old = log_policy[:, 1] - float(np.log(ratio))
        rest = (torch.zeros(5), torch.full((5,), advantage), old, log_policy)
        trainer.optimizer.zero_grad()
        trainer._loss(DreamSteps(features, actions, *rest))[0].backward()
        heads = trainer.agent.policy_head.parameters()
        return float(sum(p.grad.abs().sum() for p in heads if p.grad is not None))

    assert gradient(1.0, 1.0) > 1e-3 and gradient(1.0, -1.0) > 1e-3
    assert gradient(1.5, 1.0) == 0 and gradient(0.5, -1.0) == 0  # far enough already
    assert gradient(1.5, -1.0) > 1e-3 and gradient(0.5, 1.0) > 1e-3  # back is not held up


def test_every_step_has_draws_of_its_own() -> None:
    policy, features = ActorCriticPolicy(make_agent()), np.zeros((64, 6), np.float32)
    starts = np.ones(64, bool)
    first, state = policy.act(features, None, starts)
    second, _ = policy.act(features, state, starts)
    assert (first != second).any()
    again, _ = ActorCriticPolicy(make_agent()).act(features, None, starts)
    np.testing.assert_array_equal(first, again)
    other, _ = ActorCriticPolicy(make_agent(), seed=1).act(features, None, starts)
    assert (first != other).any()


def test_dreams_start_again_at_their_cap_and_not_before() -> None:
    class Clock(Corridor):
        """The features count the steps."""

        def dynamics(
            self, features: torch.Tensor, actions: torch.Tensor, noise: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            return features + 1, features[:, 0], torch.zeros(len(actions), dtype=torch.bool)

    def zero(n: int, generator: torch.Generator) -> Situation:
        return Situation(torch.zeros(n, 6))

    config = ActorCriticConfig(num_steps=4)
    trainer = ImaginationTrainer(make_agent(), Clock(), zero, config, num_envs=2, horizon=8)
    ages = []
    for _ in range(4):
        ages.append(trainer.state.features[:, 0].tolist())
        trainer.update()
    assert ages == [[0, 0], [4, 0], [0, 4], [4, 0]]
    assert trainer.num_dream_steps == 2 * 4 * 4


@pytest.mark.parametrize(("batch_size", "batches"), [(100, 3), (256, 1), (1000, 1)])
def test_every_pass_learns_once_from_every_step(batch_size: int, batches: int) -> None:
    trainer = make_trainer(num_epochs=2, batch_size=batch_size)
    learned: list[DreamSteps] = []
    loss = trainer._loss

    def spy(steps: DreamSteps) -> Any:
        learned.append(steps)
        return loss(steps)

    with mock.patch.object(trainer, "_loss", spy):
        trainer.update()
    passes = learned[: len(learned) // 2], learned[len(learned) // 2 :]
    seen = [torch.cat([s.advantages for s in part]) for part in passes]
    assert len(seen[0]) == len(seen[1]) <= 256 and len(passes[0]) <= batches
    assert max(len(s.actions) for s in learned) <= batch_size
    assert torch.equal(seen[0].sort().values, seen[1].sort().values)
    assert len(seen[0]) <= batch_size or not torch.equal(seen[0], seen[1])


def test_nothing_is_learned_from_after_the_end() -> None:
    trainer = make_trainer()
    dream = trainer._dream()
    ends = dream.terminated.int().argmax(0)
    for i, end in enumerate(ends.tolist()):
        if dream.terminated[:, i].any():
            assert dream.alive[: end + 1, i].all() and not dream.alive[end + 1 :, i].any()
    assert not dream.alive.all() and dream.rewards[dream.alive].max() <= 1.0


def test_saved_agent_acts_the_same(tmp_path: Path) -> None:
    agent = make_agent()
    torch.nn.init.normal_(agent.policy_head[2].weight)
    agent.save(tmp_path / "policy.safetensors", world_model="somewhere")
    loaded, world_model = ActorCritic.load(tmp_path / "policy.safetensors")
    assert world_model == "somewhere"
    features, start = np.eye(6, dtype=np.float32), np.ones(6, bool)
    for deterministic in (True, False):
        policies = [ActorCriticPolicy(a, deterministic=deterministic) for a in (agent, loaded)]
        first, second = (p.act(features, None, start)[0] for p in policies)
        np.testing.assert_array_equal(first, second)


def test_a_low_temperature_draws_likely_actions_more_often() -> None:
    agent = make_agent()
    torch.nn.init.normal_(agent.policy_head[2].weight)
    features = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)).numpy()
    start = np.ones(300, bool)
    best, _ = ActorCriticPolicy(agent, deterministic=True).act(features, None, start)
    shares = [
        float(
            (ActorCriticPolicy(agent, temperature=t).act(features, None, start)[0] == best).mean()
        )
        for t in (2.0, 1.0, 0.3, 1e-4)
    ]
    assert shares == sorted(shares) and shares[0] < shares[2] and shares[-1] == 1
    with pytest.raises(ValueError, match="temperature must be above 0"):
        ActorCriticPolicy(agent, temperature=0.0)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    with pytest.raises(FileNotFoundError, match=r"policy\.json"):
        ActorCritic.load(path)
    make_agent().save(path, world_model="somewhere")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"policy\.safetensors holds no actor-critic"):
        ActorCritic.load(path)
    with pytest.raises(ValueError, match=r"\.safetensors"):
        make_agent().save(tmp_path / "policy.zip", world_model="somewhere")


@pytest.mark.parametrize(
    "options, message",
    [({"num_steps": 0}, "num_steps"), ({"batch_size": 0}, "batch_size"), ({"gamma": 2.0}, "gamma")],
)
def test_bad_configs_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActorCriticConfig(**options)


def test_a_horizon_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="horizon 20 is not a multiple of the 16"):
        ImaginationTrainer(make_agent(), OneHotCorridor(), anywhere, horizon=20)


def test_it_dreams_with_a_world_model_and_acts_on_frames(tmp_path: Path) -> None:
    model, contexts = tiny_model(), tiny_contexts()
    bank = ContextBank.observe(model, contexts.frames, contexts.actions)
    agent = ActorCritic.from_behaviour(model)
    features = bank.states.features
    torch.testing.assert_close(agent.logits(features), model.predict_policy(features))
    before = [p.clone() for p in model.parameters()]
    config, starts = ActorCriticConfig(num_steps=4), starts_of(bank)
    trainer = ImaginationTrainer(agent, DreamModel(model), starts, config, num_envs=3, horizon=8)
    for _ in range(3):
        assert all(np.isfinite(value) for value in trainer.update().values())
    assert not torch.equal(agent.logits(features), model.predict_policy(features))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))

    save(model, tmp_path / "model")
    agent.save(tmp_path / "policy.safetensors", world_model=str(tmp_path / "model"))
    model = load(tmp_path / "model")
    frames, start = contexts.frames[:, 0], np.ones(len(contexts.frames), bool)
    actions, _ = FeaturePolicy(model, ActorCriticPolicy(agent)).act(frames, None, start)
    assert ((actions >= 0) & (actions < NUM_ACTIONS)).all()
    policy = load_policy(tmp_path / "policy.safetensors")
    np.testing.assert_array_equal(policy.act(frames, None, start)[0], actions)


def test_a_policy_begins_as_sharp_as_it_is_told_to() -> None:
    model = tiny_model()
    features = torch.randn(7, model.config.num_features)
    agent = ActorCritic.from_behaviour(model, temperature=0.5)
    torch.testing.assert_close(agent.logits(features), 2 * model.predict_policy(features))
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        ActorCritic.from_behaviour(model, temperature=0)


def test_the_start_depends_on_its_seed_alone() -> None:
    model = tiny_model()
    first, again, other = (
        ActorCritic.from_behaviour(model, seed=s).critic.difference[0].weight for s in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    ActorCritic.from_behaviour(model, seed=1)
    assert torch.equal(torch.rand(1), expected)  # others' random numbers are left alone


def test_a_saved_policy_is_found_from_anywhere_and_is_always_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    save(model, tmp_path / "here/model")
    monkeypatch.chdir(tmp_path / "here")
    agent, path = ActorCritic.from_behaviour(model), tmp_path / "policy.safetensors"
    agent.save(path, world_model="model")
    monkeypatch.chdir(tmp_path)
    assert Path(ActorCritic.load(path)[1]) == tmp_path / "here/model"

    # A directory that only has the name of a shipped model is none.
    (tmp_path / "memory-maze-9x9").mkdir()
    assert world_model_note("memory-maze-9x9")["world_model"] == "memory-maze-9x9"

    def fill_the_disk(tensors: dict[str, torch.Tensor], file: Path) -> None:
        Path(file).write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(actor_critic, "save_file", fill_the_disk)
        with pytest.raises(SafetensorError, match="No space left"):
            agent.save(path, world_model="here/model")
    ActorCritic.load(path)
    shutil.rmtree(tmp_path / "here/model")
    with pytest.raises(ValueError, match=r"features of .*here/model, which is not there"):
        ActorCritic.load(path)
