"""The dream as an environment: determinism, forks, single against batch, checkers, errors."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from tiny import NUM_ACTIONS, tiny_contexts, tiny_model, write_dataset

from experiments.playing import JUDGE_SEED
from worldsim.checkpoint import CheckpointError, save
from worldsim.contexts import ContextBank, open_contexts, sample_contexts
from worldsim.dataset_writer import DatasetWriter
from worldsim.dream import DreamVectorEnv
from worldsim.dream_env import DreamEnv
from worldsim.dreaming import Dream
from worldsim.episodes import DamagedEpisodeWarning, EpisodeDataset
from worldsim.noise import PER_THREAD, draw_normal
from worldsim.recording import EpisodeRecorder, save_episode
from worldsim.state import WorldState
from worldsim.world_model import WorldModel


def make(model: WorldModel, bank: ContextBank, **options: Any) -> DreamEnv:
    return DreamEnv(world_model=model, contexts=bank, **options)


def make_batch(model: WorldModel, bank: ContextBank, n: int, **options: Any) -> DreamVectorEnv:
    return DreamVectorEnv(n, world_model=model, contexts=bank, **options)


def play(env: Any, actions: Any) -> list[tuple[Any, ...]]:
    return [env.step(a)[:4] for a in actions]


def assert_same(a: list[tuple[Any, ...]], b: list[tuple[Any, ...]]) -> None:
    for step_a, step_b in zip(a, b, strict=True):
        for value_a, value_b in zip(step_a, step_b, strict=True):
            np.testing.assert_array_equal(value_a, value_b)


def actions_for(n: int, shape: tuple[int, ...] = (), seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(NUM_ACTIONS, size=(n, *shape))


def test_bank_equals_contexts_observed_one_by_one(model: WorldModel, bank: ContextBank) -> None:
    contexts = tiny_contexts()
    frames, actions = contexts.frames, contexts.actions
    for i in range(len(frames)):
        state = model.initial_state(1)
        for t in range(frames.shape[1]):
            state = model.observe(
                state,
                torch.as_tensor(actions[i : i + 1, t : t + 1]),
                torch.as_tensor(frames[i : i + 1, t : t + 1]),
            )
        torch.testing.assert_close(bank.states[i].features, state.features, atol=1e-4, rtol=1e-4)
        assert bank.states[i].steps.item() == frames.shape[1]
        np.testing.assert_array_equal(bank.frames[i], frames[i, -1])


@pytest.mark.parametrize("obs", ["pixels", "features"])
@pytest.mark.filterwarnings("error")
def test_checkers_pass_without_a_warning(model: WorldModel, bank: ContextBank, obs: str) -> None:
    options: dict[str, Any] = {"world_model": model, "contexts": bank, "obs": obs}
    env = gymnasium.make("worldsim/Dream-v0", render_mode="rgb_array", **options)
    check_env(env.unwrapped)
    sb3_check_env(env.unwrapped, skip_render_check=False)


def test_same_seed_and_actions_give_the_same_dream(model: WorldModel, bank: ContextBank) -> None:
    env, actions = make(model, bank), actions_for(8)
    for options in (None, {"context": 0}):
        first, _ = env.reset(seed=3, options=options)
        trajectory = play(env, actions)
        again, _ = env.reset(seed=3, options=options)
        np.testing.assert_array_equal(first, again)
        assert_same(trajectory, play(env, actions))
    env.reset(seed=4, options=options)
    other = play(env, actions)
    assert any((a[0] != b[0]).any() for a, b in zip(trajectory, other, strict=True))


def test_actions_matter(model: WorldModel, bank: ContextBank) -> None:
    env = make(model, bank)
    frames = set()
    for action in range(NUM_ACTIONS):
        env.reset(seed=0)
        frames.add(env.step(action)[0].tobytes())
    assert len(frames) == NUM_ACTIONS


@pytest.mark.parametrize("obs", ["pixels", "features"])
def test_batch_dreams_what_single_envs_dream(
    model: WorldModel, bank: ContextBank, obs: str
) -> None:
    n, actions = 4, actions_for(7, (4,))
    batch = make_batch(model, bank, n, obs=obs, horizon=3)
    observations, infos = batch.reset(seed=10)
    singles = [make(model, bank, obs=obs, horizon=3) for _ in range(n)]
    starts = [env.reset(seed=10 + i) for i, env in enumerate(singles)]
    np.testing.assert_array_equal(observations, np.stack([s[0] for s in starts]))
    np.testing.assert_array_equal(infos["context"], [s[1]["context"] for s in starts])
    ended = [False] * n
    for a in actions:
        observations, rewards, terminated, truncated, _ = batch.step(a)
        for i, env in enumerate(singles):
            if ended[i]:
                expected = (env.reset()[0], 0.0, False, False)
            else:
                expected = env.step(a[i])[:4]
            # One rounding step of a pixel; the batched products round differently.
            np.testing.assert_allclose(
                observations[i].astype(np.float64), expected[0], atol=1 if obs == "pixels" else 1e-3
            )
            np.testing.assert_allclose(rewards[i], expected[1], atol=1e-3)
            assert (terminated[i], truncated[i]) == expected[2:]
            ended[i] = bool(terminated[i] or truncated[i])


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_a_dream_that_ends_leaves_the_others_alone(
    model: WorldModel, bank: ContextBank, mode: str
) -> None:
    actions = actions_for(9, (3,))
    batch = make_batch(model, bank, 3, horizon=4, autoreset_mode=mode)
    singles = [make(model, bank, horizon=4) for _ in range(3)]
    batch.reset(seed=5)
    for i, env in enumerate(singles):
        env.reset(seed=5 + i)
    batch.step(actions[0])
    for env, a in zip(singles, actions[0], strict=True):
        env.step(a)
    batch.reset(options={"reset_mask": np.array([False, True, False])})
    singles[1].reset()  # from now on it is a step behind
    waiting, together = [False] * 3, set()
    for a in actions[1:]:
        observations, rewards, terminated, truncated, infos = batch.step(a)
        together.add(tuple(truncated))
        for i, env in enumerate(singles):
            expected = (env.reset()[0], 0.0, False, False) if waiting[i] else env.step(a[i])[:4]
            waiting[i] = expected[3] and mode == "NextStep"
            if expected[3] and mode == "SameStep":
                final = infos["final_obs"][i].astype(float)
                np.testing.assert_allclose(final, expected[0].astype(float), atol=1)
                expected = (env.reset()[0], *expected[1:])
            np.testing.assert_allclose(
                observations[i].astype(float), expected[0].astype(float), atol=1
            )
            np.testing.assert_allclose(rewards[i], expected[1], atol=1e-3)
            assert (terminated[i], truncated[i]) == expected[2:]
    assert {(True, False, True), (False, True, False)} <= together


def test_other_seeds_draw_other_contexts_and_judges_their_own(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, num_episodes=6)
    drawn = [sample_contexts(path, 7, 5, seed=seed).frames for seed in (0, 0, 1, JUDGE_SEED)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2]) and not np.array_equal(drawn[0], drawn[3])
    training, held_out = EpisodeDataset(path).split(3, seed=0)
    others = EpisodeDataset(path).split(3, seed=1)
    assert sorted([*training.names, *held_out.names]) == sorted(EpisodeDataset(path).names)
    assert sorted(held_out.names) != sorted(others[1].names)


def test_threads_draw_what_one_stream_draws_by_itself() -> None:
    n, kept = 2 * PER_THREAD + 3, 5  # the last streams are not drawn from
    generators = [np.random.default_rng(i) for i in range(n)]
    noise = np.zeros((n, 2, 3), np.float32)
    for _ in range(2):
        draw_normal(noise, generators, np.arange(n - kept))
    for i in range(n - kept):
        alone = np.random.default_rng(i).standard_normal((2, 2, 3), np.float32)
        np.testing.assert_array_equal(noise[i], alone[1])
    assert not noise[n - kept :].any()
    unused = np.random.default_rng(n - 1).standard_normal()
    assert generators[-1].standard_normal() == unused


def test_horizon_truncates_and_next_step_resets(model: WorldModel, bank: ContextBank) -> None:
    batch = make_batch(model, bank, 2, horizon=2)
    assert batch.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    batch.reset(seed=0)
    a = np.zeros(2, np.int64)
    assert not batch.step(a)[3].any()
    assert batch.step(a)[3].all()
    observations, rewards, terminated, truncated, infos = batch.step(a)
    np.testing.assert_array_equal(observations, bank.frames[infos["context"]])
    assert not rewards.any() and not terminated.any() and not truncated.any()


def test_same_step_resets_and_keeps_the_final_observation(
    model: WorldModel, bank: ContextBank
) -> None:
    actions = actions_for(3, (2,))
    whole = make_batch(model, bank, 2, horizon=None)
    whole.reset(seed=0)
    expected = play(whole, actions)
    batch = make_batch(model, bank, 2, horizon=3, autoreset_mode="SameStep")
    batch.reset(seed=0)
    play(batch, actions[:2])
    observations, rewards, _, truncated, infos = batch.step(actions[2])
    assert truncated.all()
    np.testing.assert_array_equal(np.stack(infos["final_obs"]), expected[2][0])
    np.testing.assert_array_equal(rewards, expected[2][1])
    np.testing.assert_array_equal(observations, bank.frames[infos["context"]])


def test_termination_ends_the_episode(bank: ContextBank) -> None:
    doomed = tiny_model()
    with torch.no_grad():
        doomed.termination_head[-1].bias.fill_(50)  # type: ignore[union-attr, operator]
    env = make(doomed, bank)
    env.reset(seed=0)
    assert env.step(0)[2:4] == (True, False)
    with pytest.raises(ResetNeeded):
        env.step(0)


def test_only_masked_envs_are_reset(model: WorldModel, bank: ContextBank) -> None:
    actions = actions_for(4, (3,))
    untouched = make_batch(model, bank, 3, horizon=None)
    untouched.reset(seed=0)
    expected = play(untouched, actions)
    batch = make_batch(model, bank, 3, horizon=None)
    batch.reset(seed=0)
    play(batch, actions[:2])
    mask = np.array([False, True, False])
    observations, _ = batch.reset(seed=[None, 9, None], options={"reset_mask": mask, "context": 4})
    np.testing.assert_array_equal(observations[1], bank.frames[4])
    for step, reference in zip(play(batch, actions[2:]), expected[2:], strict=True):
        np.testing.assert_array_equal(step[0][~mask], reference[0][~mask])
        assert (step[0][mask] != reference[0][mask]).any()
    np.testing.assert_array_equal(batch.elapsed_steps, [4, 2, 4])


def test_only_dreams_that_begin_anew_are_taken_from_the_bank(
    model: WorldModel, bank: ContextBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, asked = make_batch(model, bank, 4), []
    batch.reset(seed=0)
    batch.step(np.arange(4))
    before, gather = batch.snapshot(), ContextBank.gather

    def spy(self: ContextBank, indices: np.ndarray) -> tuple[WorldState, np.ndarray]:
        asked.append(indices.tolist())
        return gather(self, indices)

    monkeypatch.setattr(ContextBank, "gather", spy)
    mask = np.array([False, True, False, True])
    observations, _ = batch.reset(options={"reset_mask": mask, "context": [0, 2, 0, 1]})
    assert asked == [[2, 1]]
    np.testing.assert_array_equal(observations[mask], bank.frames[[2, 1]])
    np.testing.assert_array_equal(observations[~mask], before.frames[~mask])  # type: ignore[index]
    after = batch.snapshot().state
    for name, tensor in after.memory.items():
        assert torch.equal(tensor[[0, 2]], before.state.memory[name][[0, 2]])
        assert torch.equal(tensor[[1, 3]], bank.states.memory[name][[2, 1]])
    assert after.steps.tolist() == [
        *(before.state.steps[0], bank.states.steps[2]),
        *(before.state.steps[2], bank.states.steps[1]),
    ]


def compute() -> None:
    torch.ones(4_000_000).exp().sum()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_processes_can_dream_after_the_first_has() -> None:
    compute()  # by as many threads as there are, of which a fork has none
    process = multiprocessing.get_context("fork").Process(target=compute)
    process.start()
    process.join(60)
    stuck = process.exitcode is None
    process.kill()
    assert not stuck and process.exitcode == 0


def test_restored_snapshot_replays_identically(model: WorldModel, bank: ContextBank) -> None:
    env, actions = make(model, bank, horizon=6), actions_for(3)
    env.reset(seed=0)
    seen = play(env, actions)[-1][0]
    snapshot = env.snapshot()
    expected = play(env, actions)
    after = env.reset()[0]
    np.testing.assert_array_equal(env.restore(snapshot), seen)
    assert_same(expected, play(env, actions))
    np.testing.assert_array_equal(env.reset()[0], after)
    fresh = make(model, bank, horizon=6)
    np.testing.assert_array_equal(fresh.restore(snapshot), seen)
    assert_same(expected, play(fresh, actions))
    np.testing.assert_array_equal(fresh.reset()[0], after)


def test_forks_are_of_their_parents_until_the_horizon(model: WorldModel, bank: ContextBank) -> None:
    batch = make_batch(model, bank, 2, horizon=3)
    batch.reset(seed=0, options={"context": [0, 4]})
    batch.step(np.zeros(2, np.int64))
    forks = make_batch(model, bank, 4, horizon=3)
    restored = forks.restore(batch.snapshot().repeat(2))
    np.testing.assert_array_equal(restored, batch.frames.repeat(2, axis=0))
    for a in actions_for(2, (2,)):
        expected, found = batch.step(a), forks.step(a.repeat(2))
        parents = expected[0].repeat(2, axis=0)
        np.testing.assert_allclose(found[0].astype(float), parents.astype(float), atol=1)
        np.testing.assert_array_equal(found[3], expected[3].repeat(2))
    assert found[3].all()
    # What was over when it was kept begins anew with the next step.
    late = make_batch(model, bank, 2, horizon=3)
    late.restore(batch.snapshot())
    observations, rewards, _, _, infos = late.step(np.ones(2, np.int64))
    np.testing.assert_array_equal(observations, bank.frames[infos["context"]])
    assert not rewards.any()


def test_what_is_not_for_as_many_dreams_is_refused(model: WorldModel, bank: ContextBank) -> None:
    batch, two = make_batch(model, bank, 3), make_batch(model, bank, 2)
    with pytest.raises(ResetNeeded, match="the first reset must be of all envs"):
        batch.reset(options={"reset_mask": np.array([True, False, False])})
    for env in (batch, two):
        env.reset(seed=0)
    before = batch.snapshot()
    with pytest.raises(ValueError, match="2 seeds do not match 3 envs"):
        batch.reset(seed=[1, 2])
    for mask in (np.ones(3), np.zeros(3, bool), np.ones(2, bool)):
        with pytest.raises(ValueError, match=r"reset_mask must be \(3,\) bool with a true entry"):
            batch.reset(options={"reset_mask": mask})
    with pytest.raises(ValueError, match="one integer or 3"):
        batch.reset(options={"context": [0, 1]})
    with pytest.raises(ValueError, match="a snapshot of 2 dreams for 3 envs"):
        batch.restore(two.snapshot())
    assert batch.snapshot().generator_states == before.generator_states


def test_the_best_of_several_forks_can_be_gone_on_with(
    model: WorldModel, bank: ContextBank
) -> None:
    forks = make_batch(model, bank, 3)
    forks.reset(seed=0)
    forks.step(np.array([1, 2, 3]))
    chosen = forks.snapshot()[2]
    alone = make_batch(model, bank, 1)
    alone.reset(seed=9)
    np.testing.assert_array_equal(alone.restore(chosen)[0], forks.restore(forks.snapshot())[2])
    for action in (1, 0):
        expected, rewards, *_ = forks.step(np.full(3, action))
        frame, reward, *_ = alone.step(np.array([action]))
        # One rounding step of a pixel: batched products round differently.
        np.testing.assert_allclose(frame[0].astype(float), expected[2].astype(float), atol=1)
        np.testing.assert_allclose(reward[0], rewards[2], atol=1e-3)
    several = forks.snapshot()[[2, 0, 2]]
    assert len(several) == 3 and len(forks.snapshot()[1:]) == 2
    assert several.generator_states[0] == several.generator_states[2]
    with pytest.raises(IndexError):
        forks.snapshot()[3]


def test_a_snapshot_of_another_model_is_refused(model: WorldModel, bank: ContextBank) -> None:
    env = make_batch(model, bank, 2)
    env.reset(seed=0)
    backbone = dataclasses.replace(model.config.backbone, num_layers=1)
    other = tiny_model(backbone=backbone)
    contexts = tiny_contexts()
    elsewhere = make_batch(other, (contexts.frames, contexts.actions), 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the snapshot is of another model"):
        elsewhere.restore(env.snapshot())


def test_a_bank_of_another_model_is_refused(model: WorldModel, bank: ContextBank) -> None:
    backbone = dataclasses.replace(model.config.backbone, num_layers=1)
    fewer = tiny_model(backbone=backbone)
    wider = tiny_model(backbone=dataclasses.replace(model.config.backbone, d_state=16))
    for other in (fewer, wider):
        with pytest.raises(ValueError, match=r"the bank of contexts is of another model: its \d"):
            make_batch(other, bank, 2)
    contexts = tiny_contexts()
    small = ContextBank.observe(fewer, contexts.frames, contexts.actions)
    with pytest.raises(ValueError, match="the bank of contexts is of another model: it lacks 1"):
        make_batch(model, small, 2)


def test_dreams_of_features_alone_have_no_frames_to_go_back_to(
    model: WorldModel, bank: ContextBank
) -> None:
    unseen = make_batch(model, bank, 2, obs="features")
    unseen.reset(seed=0)
    unseen.step(np.zeros(2, np.int64))
    snapshot = unseen.snapshot()
    for options in ({}, {"obs": "features", "render_mode": "rgb_array"}):
        showing = make_batch(model, bank, 2, **options)
        with pytest.raises(ValueError, match="a snapshot of dreams that decode no frames"):
            showing.restore(snapshot)
    assert len(snapshot.repeat(2)) == 4
    again = make_batch(model, bank, 2, obs="features")
    np.testing.assert_array_equal(again.restore(snapshot), snapshot.state.features.numpy())


def test_numpy_seeds_are_seeds_and_bad_contexts_change_nothing(
    model: WorldModel, bank: ContextBank
) -> None:
    env, other = make_batch(model, bank, 3), make_batch(model, bank, 3)
    expected, _ = env.reset(seed=4)
    for seed in (np.int64(4), np.arange(4, 7)):
        np.testing.assert_array_equal(other.reset(seed=seed)[0], expected)  # type: ignore[arg-type]
    with pytest.raises(IndexError, match="context 99 is not in this bank"):
        other.reset(seed=8, options={"context": 99})
    for _ in range(2):
        actions = np.zeros(3, np.int64)
        np.testing.assert_array_equal(other.step(actions)[0], env.step(actions)[0])


def test_forks_do_not_touch_each_other(model: WorldModel, bank: ContextBank) -> None:
    env, actions = make(model, bank), actions_for(4)
    env.reset(seed=0)
    play(env, actions)
    snapshot = env.snapshot()
    before = snapshot.state.clone()
    expected = play(env, actions)

    forks = make_batch(model, bank, NUM_ACTIONS)
    forks.restore(snapshot.repeat(NUM_ACTIONS))
    forks.step(np.arange(NUM_ACTIONS))
    forks.reset(options={"reset_mask": np.arange(NUM_ACTIONS) == 2})
    torch.testing.assert_close(snapshot.state.features, before.features, atol=0, rtol=0)
    for name, value in before.memory.items():
        torch.testing.assert_close(snapshot.state.memory[name], value, atol=0, rtol=0)
    env.restore(snapshot)
    assert_same(expected, play(env, actions))


def test_forks_share_noise_unless_given_seeds(model: WorldModel, bank: ContextBank) -> None:
    env, forks = make(model, bank), make_batch(model, bank, 3)
    env.reset(seed=0)
    snapshot = env.snapshot()
    same = np.zeros(3, np.int64)
    forks.restore(snapshot.repeat(3))
    frames = forks.step(same)[0]
    assert (frames == frames[:1]).all()
    forks.restore(snapshot.repeat(3, seed=7))
    frames = forks.step(same)[0]
    assert (frames[0] != frames[1]).any() and (frames[1] != frames[2]).any()


def test_state_does_not_grow(model: WorldModel, bank: ContextBank) -> None:
    batch = make_batch(model, bank, 2, horizon=None, obs="features")
    batch.reset(seed=0)
    sizes = set()
    for _ in range(200):
        batch.step(np.zeros(2, np.int64))
        assert batch.state is not None
        sizes.add(batch.state.nbytes)
    assert len(sizes) == 1


def test_steps_can_be_worth_something_else(model: WorldModel, bank: ContextBank) -> None:
    asked: list[tuple[WorldState, Dream]] = []

    def worth(before: WorldState, dream: Dream) -> torch.Tensor:
        asked.append((before, dream))
        return 10 + dream.reward

    options: dict[str, Any] = {"horizon": 3, "autoreset_mode": AutoresetMode.SAME_STEP}
    plain = make_batch(model, bank, 2, **options)
    other = make_batch(model, bank, 2, reward_function=worth, **options)
    actions = actions_for(7, (2,))
    for env in (plain, other):
        env.reset(seed=3)
    befores = []
    for action in actions:
        befores.append(other.state)
        expected, got = plain.step(action), other.step(action)
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_allclose(got[1], 10 + expected[1], rtol=1e-6)
        assert got[1].dtype == np.float32
    # The state before is that of the dream, also where it has just begun anew.
    assert all(before is b for (before, _), b in zip(asked, befores, strict=True))
    single = make(model, bank, horizon=3, reward_function=worth)
    single.reset(seed=3)
    assert single.step(int(actions[0, 0]))[1] > 5


def test_render_enlarges_what_was_dreamed(model: WorldModel, bank: ContextBank) -> None:
    env = make(model, bank, render_mode="rgb_array", render_size=192, render_fps=7)
    env.reset(seed=0)
    frame = env.step(1)[0]
    rendered = env.render()
    assert rendered is not None and rendered.shape == (192, 192, 3)
    np.testing.assert_array_equal(rendered[1::3, 1::3], frame)
    assert env.metadata["render_fps"] == 7
    features = make(model, bank, obs="features", render_mode="rgb_array")
    features.reset(seed=0)
    features.step(1)
    np.testing.assert_array_equal(features.render(), frame)
    grey = dataclasses.replace(model.config.tokenizer, frame_shape=(64, 64, 1))
    contexts = tiny_contexts()
    pictures = contexts.frames[..., :1], contexts.actions
    env = make(tiny_model(tokenizer=grey), pictures, render_mode="rgb_array")  # type: ignore[arg-type]
    frame, _ = env.reset(seed=0)
    np.testing.assert_array_equal(env.render(), frame.repeat(3, axis=-1))


def test_make_vec_makes_one_batch(model: WorldModel, bank: ContextBank) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = gymnasium.make_vec(
            "worldsim/Dream-v0", num_envs=3, world_model=model, contexts=bank, horizon=5
        )
    assert isinstance(batch, DreamVectorEnv) and batch.num_envs == 3
    observations, _ = batch.reset(seed=0)
    assert batch.np_random_seed == (0, 1, 2) and batch.np_random == tuple(batch.generators)
    assert observations in batch.observation_space
    for _ in range(6):
        observations = batch.step(batch.action_space.sample())[0]
        assert observations in batch.observation_space
    batch.close()


def test_video_is_recorded(model: WorldModel, bank: ContextBank, tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    env: gymnasium.Env = make(model, bank, horizon=4, render_mode="rgb_array", render_size=128)
    env = gymnasium.wrappers.RecordVideo(env, str(tmp_path / "videos"), lambda _: True)
    env.reset(seed=0)
    for _ in range(4):
        env.step(0)
    env.close()
    assert list(tmp_path.glob("videos/*.mp4"))


def test_fewer_denoising_steps_change_the_dream(model: WorldModel, bank: ContextBank) -> None:
    frames = []
    for steps in (1, 4):
        env = make(model, bank, num_denoising_steps=steps)
        env.reset(seed=0)
        frames.append(env.step(0)[0])
    assert (frames[0] != frames[1]).any()


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (6, ValueError, r"\[0, 6\), got 6"),
        (-1, ValueError, r"\[0, 6\), got -1"),
        (1.0, TypeError, "integers, got float64"),
        ("left", TypeError, "integers"),
        (True, TypeError, "integers, got bool"),
        (np.array([1]), ValueError, "one integer"),
    ],
)
def test_wrong_actions_are_named(
    model: WorldModel, bank: ContextBank, action: Any, error: type[Exception], message: str
) -> None:
    env = make(model, bank)
    env.reset(seed=0)
    with pytest.raises(error, match=message):
        env.step(action)


def test_wrong_batches_of_actions_are_named(model: WorldModel, bank: ContextBank) -> None:
    batch = make_batch(model, bank, 3)
    batch.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(3,\), got \(2,\)"):
        batch.step(np.zeros(2, np.int64))
    with pytest.raises(TypeError, match="integers, got float32"):
        batch.step(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="got 17"):
        batch.step(np.array([0, 17, 0]))


@pytest.mark.parametrize("context", [5, -1, 99])
def test_unknown_contexts_are_named(model: WorldModel, bank: ContextBank, context: int) -> None:
    with pytest.raises(IndexError, match=f"context {context} .* 5 contexts"):
        make(model, bank).reset(options={"context": context})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon .* got 0"),
        ({"obs": "sound"}, "got 'sound'"),
        ({"render_mode": "human"}, "got 'human'"),
        ({"render_size": 100}, "multiple of the frame height 64, got 100"),
        ({"num_denoising_steps": 0}, "got 0"),
        ({"num_envs": 0}, "num_envs .* got 0"),
    ],
)
def test_wrong_options_are_named(
    model: WorldModel, bank: ContextBank, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        DreamVectorEnv(world_model=model, contexts=bank, **options)


def test_wrong_contexts_are_named(model: WorldModel) -> None:
    contexts = tiny_contexts()
    frames, actions = contexts.frames, contexts.actions
    with pytest.raises(ValueError, match="float32"):
        make(model, (frames.astype(np.float32), actions))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(5, 6, 32, 64, 3\)"):
        make(model, (frames[:, :, ::2], actions))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape \(5, 6\), got int64 of shape \(5, 5\)"):
        make(model, (frames, actions[:, 1:]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="values from 0 to 7"):
        make(model, (frames, actions % 2 * 7))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="world_model is an object"):
        make(model, None)  # type: ignore[arg-type]


def test_steps_need_a_reset_first(model: WorldModel, bank: ContextBank) -> None:
    with pytest.raises(ResetNeeded):
        make(model, bank).step(0)
    with pytest.raises(ResetNeeded):
        make(model, bank).snapshot()


def test_unknown_world_model_is_named() -> None:
    with pytest.raises(CheckpointError, match="no-such-model"):
        gymnasium.make("worldsim/Dream-v0", world_model="no-such-model")


def test_a_checkpoint_dreams_from_the_contexts_it_ships(
    model: WorldModel, bank: ContextBank, tmp_path: Path
) -> None:
    save(model, tmp_path / "checkpoint", contexts=tiny_contexts())
    env = gymnasium.make("worldsim/Dream-v0", world_model=str(tmp_path / "checkpoint"))
    observation, info = env.reset(seed=0)
    np.testing.assert_array_equal(observation, bank.frames[info["context"]])
    env.step(0)


def test_a_dataset_gives_contexts(model: WorldModel, tmp_path: Path) -> None:
    env = make(model, tiny_contexts(), horizon=12)  # type: ignore[arg-type]
    played = []
    with DatasetWriter(
        "dreams-v0", env.observation_space, env.action_space, {}, root=tmp_path
    ) as writer:
        for seed in range(2):
            recorder = EpisodeRecorder(*env.reset(seed=seed), seed=seed)
            for action in actions_for(12, seed=seed):
                recorder.step(int(action), *env.step(action))
            episode = recorder.finish()
            save_episode(writer.path_of(seed), episode, seed)
            writer.add(seed, 12)
            played.append(episode.observations)
        writer.publish()
    bank = open_contexts(model, tmp_path / "dreams-v0", num_contexts=7, context_length=5)
    assert len(bank) == 7
    last = np.concatenate([frames[4:] for frames in played])
    assert all((last == frame).all(axis=(1, 2, 3)).any() for frame in bank.frames)
    with pytest.warns(UserWarning, match="no 128 frames, so that contexts have 13"):
        longest = open_contexts(model, tmp_path / "dreams-v0")
    assert longest.states.steps.tolist() == [13] * 64
    rewarded = write_dataset(tmp_path, size=64)  # episodes of 20 frames
    with pytest.warns(UserWarning, match="no 128 frames and a reward after them.* have 16"):
        bank = open_contexts(model, rewarded, num_contexts=5, frames_to_reward=3, num_starts=20)
    assert bank.states.steps.tolist() == [16] * 5  # all where the reward is about to follow
    given = tiny_contexts(n=5, length=6)  # are taken as they are, and nothing is drawn
    assert len(open_contexts(model, given, frames_to_reward=3, num_starts=15)) == 15
    with pytest.raises(ValueError, match="has 6 actions, the model 4: take contexts from"):
        open_contexts(tiny_model(num_actions=4), tmp_path / "dreams-v0")


def test_an_env_that_waits_for_its_reset_does_not_end_again(bank: ContextBank) -> None:
    doomed = tiny_model()
    with torch.no_grad():
        doomed.termination_head[-1].bias.fill_(50)  # type: ignore[union-attr, operator]
    batch, actions = make_batch(doomed, bank, 2), np.zeros(2, np.int64)
    batch.reset(seed=0)
    assert batch.step(actions)[2].all()
    batch.reset(options={"reset_mask": np.array([True, False])})  # the second still waits
    _, rewards, terminated, truncated, _ = batch.step(actions)
    assert terminated.tolist() == [True, False]
    assert rewards[1] == 0 and not truncated.any()


@torch.no_grad()
def test_a_context_can_begin_dreams_within_its_second_half(model: WorldModel) -> None:
    contexts = tiny_contexts(n=3, length=9)
    frames, actions = contexts.frames, contexts.actions
    bank = ContextBank.observe(model, frames, actions, starts_per_context=3, batch_size=2)
    assert len(bank) == 9
    for i in range(3):
        for j, end in enumerate((7, 8, 9)):
            alone = ContextBank.observe(model, frames[i : i + 1, :end], actions[i : i + 1, :end])
            row = bank.states[[3 * i + j]]
            torch.testing.assert_close(row.features, alone.states.features, atol=1e-4, rtol=1e-4)
            assert int(row.steps[0]) == end
            assert np.array_equal(bank.frames[3 * i + j], frames[i, end - 1])
    assert len(open_contexts(model, contexts, num_starts=7)) == 6
    assert len(open_contexts(model, contexts, num_starts=1000)) == 12
    with pytest.raises(ValueError, match=r"starts_per_context is 5; .* from 1 to 4"):
        ContextBank.observe(model, frames, actions, starts_per_context=5)


def test_contexts_can_be_drawn_from_before_a_reward(tmp_path: Path) -> None:
    rewards = {0: [], 1: [9], 2: [4, 15]}  # steps that pay, by episode of 20
    space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)
    actions = gymnasium.spaces.Discrete(2)
    with DatasetWriter("pays-v0", space, actions, {}, root=tmp_path) as writer:
        for episode, paying in rewards.items():
            frame = np.full((8, 8, 3), episode, np.uint8)
            recorder = EpisodeRecorder(frame, {})
            for t in range(1, 21):
                frame = np.full((8, 8, 3), 100 * episode + t, np.uint8)
                recorder.step(0, frame, float(t in paying), False, t == 20, {})
            save_episode(writer.path_of(episode), recorder.finish(), episode)
            writer.add(episode, 20)
        writer.publish()
    contexts = sample_contexts(tmp_path / "pays-v0", 60, 6, frames_to_reward=2)
    # The last frame seen lies one or two frames before the reward, and at least six were seen.
    assert set(contexts.frames[:, -1, 0, 0, 0]) == {107, 108, 213, 214}
    np.testing.assert_array_equal(np.diff(contexts.frames[:, :, 0, 0, 0].astype(int)), 1)
    with pytest.raises(ValueError, match="followed by a reward within 1 frames"):
        sample_contexts(tmp_path / "pays-v0", 4, 18, frames_to_reward=1)
    dataset = EpisodeDataset(tmp_path / "pays-v0")
    os.truncate(writer.path_of(1), 4000)
    with pytest.warns(DamagedEpisodeWarning, match="left out"):
        contexts = sample_contexts(dataset, 60, 6, frames_to_reward=2)
    assert set(contexts.frames[:, -1, 0, 0, 0]) == {213, 214} and len(contexts.frames) == 60
