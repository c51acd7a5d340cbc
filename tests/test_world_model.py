"""The world model's contract: parallel is streaming; dreams depend on state, action and noise."""

from __future__ import annotations

import dataclasses
import itertools
from unittest import mock

import pytest
import torch
from tiny import NUM_ACTIONS, tiny_config, tiny_contexts, tiny_model
from torch import Tensor

from worldsim.diffusion import diffusion_loss, sample_signal_levels
from worldsim.state import WorldState
from worldsim.world_model import WorldModel


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return tiny_model()


def episode(n: int = 2, t: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Actions (n, t) and frames (n, t, h, w, c) from the start of episodes."""
    contexts = tiny_contexts(n, t, seed)
    return torch.from_numpy(contexts.actions), torch.from_numpy(contexts.frames)


def observed(model: WorldModel, n: int = 2, t: int = 7) -> WorldState:
    return model.observe(model.initial_state(n), *episode(n, t))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(model: WorldModel, n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *model.noise_shape, generator=generator(seed))


def tensors(state: WorldState) -> dict[str, Tensor]:
    return state.memory | {"steps": state.steps, "features": state.features}


def assert_close(a: WorldState, b: WorldState) -> None:
    left, right = tensors(a), tensors(b)
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-3, atol=1e-4)


def assert_equal(a: WorldState, b: WorldState) -> None:
    right = tensors(b)
    for name, t in tensors(a).items():
        assert torch.equal(t, right[name]), name


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_observing_in_any_chunks_is_the_same(model: WorldModel, chunk: int) -> None:
    actions, frames = episode()
    state = model.observe(model.initial_state(2), actions, frames, chunk=chunk)
    assert_close(state, observed(model))
    assert state.steps.tolist() == [7, 7]


def test_observing_at_once_is_observing_one_by_one(model: WorldModel) -> None:
    actions, frames = episode()
    state = model.initial_state(2)
    for t in range(7):
        state = model.observe(state, actions[:, t : t + 1], frames[:, t : t + 1])
    assert_close(state, observed(model))


def test_features_of_every_frame_are_those_after_it(model: WorldModel) -> None:
    actions, frames = episode()
    latents = model.tokenizer.encode(frames)
    _, features = model.observe_latents(model.initial_state(2), actions, latents, chunk=3)
    assert features.shape == (2, 7, model.config.num_features)
    for t in range(7):
        state = model.observe(model.initial_state(2), actions[:, : t + 1], frames[:, : t + 1])
        torch.testing.assert_close(state.features, features[:, t], rtol=1e-3, atol=1e-4)


def test_reward_depends_on_its_action_and_frame_and_not_on_later_ones(model: WorldModel) -> None:
    """The off-by-one of credit: reward t belongs to action t and frame t."""

    def rewards(actions: Tensor, frames: Tensor) -> Tensor:
        latents = model.tokenizer.encode(frames)
        _, features = model.observe_latents(model.initial_state(2), actions, latents)
        return model.predict_reward(features)

    actions, frames = episode()
    before = rewards(actions, frames)
    other_action, other_frame = actions.clone(), frames.clone()
    other_action[:, 4] = (actions[:, 4] + 1) % NUM_ACTIONS
    other_frame[:, 4] = 255 - frames[:, 4]
    for changed in (rewards(other_action, frames), rewards(actions, other_frame)):
        assert torch.equal(changed[:, :4], before[:, :4])
        assert (changed[:, 4] != before[:, 4]).all()


@torch.no_grad()
def test_training_and_dreaming_see_the_same_reward() -> None:
    """In training the head sees what `observe` sees: the loss of true rewards is the lowest."""
    model = tiny_model()
    actions, frames = episode()
    latents = model.tokenizer.encode(frames)
    _, features = model.observe_latents(model.initial_state(2), actions, latents)
    logits = model.reward_head(features)
    signal, terminated = torch.ones(2, 7), torch.zeros(2, 7, dtype=torch.bool)
    rewards = torch.zeros(2, 7)
    rewards[:, 3] = 2.0
    returns, known = 3 * rewards, (rewards > 0).float()
    noise = torch.zeros_like(latents)
    heads = (rewards, terminated, returns, known)
    losses = model(latents, actions, torch.zeros(2, 7, 3), *heads, noise, signal, signal.bool())
    expected = -(model.reward_head.two_hot(rewards) * logits.log_softmax(-1)).sum(-1)
    expected = expected[:, 1:].mean()  # nobody arrived at the first frame
    torch.testing.assert_close(losses["reward"], expected, rtol=1e-3, atol=1e-4)
    values = model.value_head.loss(features, returns)[:, 3]  # the others' returns are not known
    torch.testing.assert_close(losses["value"], values.mean() / 7, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_behaviour_is_read_before_the_action_that_it_took() -> None:
    model = tiny_model()
    torch.nn.init.normal_(model.policy_head[-1].weight)  # type: ignore[arg-type]
    actions, frames = episode()
    latents = model.tokenizer.encode(frames)
    _, features = model.observe_latents(model.initial_state(2), actions, latents)
    logits = model.policy_head(features).log_softmax(-1)
    signal, nothing = torch.ones(2, 7), torch.zeros(2, 7)
    heads = (nothing, nothing.bool(), nothing, nothing)
    losses = model(
        latents, actions, torch.zeros(2, 7, 3), *heads, 0 * latents, signal, signal.bool()
    )
    taken = -logits[:, :-1].gather(-1, actions[:, 1:, None]).mean()
    led = -logits[:, 1:].gather(-1, actions[:, 1:, None]).mean()
    torch.testing.assert_close(losses["policy"], taken, rtol=1e-3, atol=1e-4)
    assert abs(taken - led) > 0.01


@torch.no_grad()
def test_a_dreamed_frame_is_read_as_if_it_had_been_seen() -> None:
    """Shown without noise, it leaves the same memory and features."""
    model = tiny_model().reconfigured(dream_signal=1.0).eval()
    state, action = observed(model), torch.tensor([1, 4])
    dreamed, latents, features = model.imagine_latents(
        state, action, model.tell(state, action), noise(model, 2)
    )
    seen, read = model.observe_latents(state, action[:, None], latents)
    assert_equal(dreamed, seen)
    assert torch.equal(features, read) and not torch.equal(features[:, 0], state.features)


def test_a_dream_is_a_function_of_state_action_and_noise(model: WorldModel) -> None:
    state, actions = observed(model), torch.tensor([1, 4])
    before = state.clone()
    first = model.imagine(state, actions, generator=generator())
    second = model.imagine(state, actions, generator=generator())
    assert torch.equal(first.frame, second.frame)
    assert torch.equal(first.reward, second.reward)
    assert_equal(first.state, second.state)
    assert_equal(state, before)
    assert first.frame.shape == (2, 64, 64, 3) and first.frame.dtype == torch.uint8
    assert first.reward.dtype == torch.float32 and first.terminated.dtype == torch.bool
    assert (first.state.steps == state.steps + 1).all()
    given = model.imagine(state, actions, noise=noise(model, 2))
    assert torch.equal(given.frame, first.frame)  # the generator draws just this noise
    for other in (
        model.imagine(state, actions, generator=generator(1)),
        model.imagine(state, torch.tensor([2, 0]), generator=generator()),
        model.imagine(observed(model, t=6), actions, generator=generator()),
        model.imagine(state, actions, generator=generator(), num_denoising_steps=1),
    ):
        assert (other.frame != first.frame).flatten(1).any(1).all()


def test_dreaming_without_pictures_is_the_same_dream(model: WorldModel) -> None:
    state, actions = observed(model), torch.tensor([1, 4])
    seen = model.imagine(state, actions, generator=generator())
    blind = model.imagine(state, actions, generator=generator(), decode=False)
    assert_equal(seen.state, blind.state)
    assert torch.equal(seen.reward, blind.reward)
    assert not blind.frame.any() and blind.frame.shape == seen.frame.shape


def test_forks_are_independent(model: WorldModel) -> None:
    state = observed(model, n=1)
    forks = state.repeat(NUM_ACTIONS)
    dreams = model.imagine(
        forks, torch.arange(NUM_ACTIONS), noise=noise(model, 1).expand(6, -1, -1, -1)
    )
    for a, b in itertools.combinations(range(NUM_ACTIONS), 2):
        assert (dreams.frame[a] != dreams.frame[b]).any()
    # Going on in one fork leaves the others, and the state they came from, as they were.
    kept = dreams.state.clone()
    model.imagine(dreams.state[2], torch.tensor([0]), generator=generator())
    model.observe(dreams.state[3], *episode(1, 3))
    assert_equal(dreams.state, kept)
    assert_equal(state, observed(model, n=1))


def test_a_row_of_a_batch_is_that_env_alone(model: WorldModel) -> None:
    state, actions, z = observed(model, n=3), torch.tensor([0, 3, 5]), noise(model, 3)
    whole = model.imagine(state, actions, noise=z)
    for i in range(3):
        alone = model.imagine(state[i], actions[i : i + 1], noise=z[i : i + 1])
        assert_close(alone.state, whole.state[i])
        assert (alone.frame[0].int() - whole.frame[i].int()).abs().max() <= 1
        torch.testing.assert_close(alone.reward, whole.reward[i : i + 1], rtol=1e-3, atol=1e-4)


def test_envs_of_different_age_share_a_batch(model: WorldModel) -> None:
    young, old = observed(model, n=1, t=1), observed(model, n=1, t=7)
    z = noise(model, 2)
    both = model.imagine(WorldState.cat([young, old]), torch.tensor([1, 1]), noise=z)
    assert both.state.steps.tolist() == [2, 8]
    for i, state in enumerate((young, old)):
        alone = model.imagine(state, torch.tensor([1]), noise=z[i : i + 1])
        assert_close(alone.state, both.state[i])


def test_state_size_never_changes(model: WorldModel) -> None:
    state = model.initial_state(2)
    size, shapes = state.nbytes, {k: v.shape for k, v in tensors(state).items()}
    state = model.observe(state, *episode(2, 40))
    for step in range(60):
        state = model.imagine(state, torch.tensor([0, step % 6]), generator=generator(step)).state
        if step in (0, 9, 59):
            assert state.nbytes == size
            assert {k: v.shape for k, v in tensors(state).items()} == shapes
    assert state.steps.tolist() == [100, 100]
    assert state[0].nbytes * 2 == size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_holds_no_more_memory_than_it_says(dtype: torch.dtype) -> None:
    """No tensor of a state is a view into the sequence it was computed from."""
    model = tiny_model()
    model.compute_dtype = dtype
    state = observed(model, t=20)
    for current in (state, model.imagine(state, torch.tensor([1, 2]), generator=generator()).state):
        for name, t in tensors(current).items():
            assert t.untyped_storage().nbytes() == t.numel() * t.element_size(), name
            assert t.dtype == (torch.int64 if name == "steps" else torch.float32), name


def test_open_loop_dream_is_imagining_step_by_step(model: WorldModel) -> None:
    state, actions = observed(model), torch.tensor([[0, 1, 2], [3, 4, 5]])
    frames, rewards = model.dream(state, actions, generator=generator())
    g, current = generator(), state
    for t in range(3):
        step = model.imagine(current, actions[:, t], generator=g)
        current = step.state
        assert torch.equal(step.frame, frames[:, t]) and torch.equal(step.reward, rewards[:, t])


@torch.no_grad()
def test_rewards_are_coded_exactly(model: WorldModel) -> None:
    low, high = float(model.reward_head.values[0]), float(model.reward_head.values[-1])
    values = torch.tensor([0.0, 1.0, -1.0, 0.1, 0.013, 17.3, -80.0, low, high])
    code = model.reward_head.two_hot(values)
    assert code.shape == (9, model.config.reward_bins)
    torch.testing.assert_close(code.sum(-1), torch.ones(9))
    assert ((code > 0).sum(-1) <= 2).all() and (code >= 0).all()
    torch.testing.assert_close(code @ model.reward_head.values, values, rtol=1e-5, atol=1e-5)
    beyond = model.reward_head.two_hot(torch.tensor([-1e6, 1e6])) @ model.reward_head.values
    torch.testing.assert_close(beyond, torch.tensor([low, high]))


@torch.no_grad()
def test_reward_is_the_expectation_of_its_distribution() -> None:
    model = tiny_model()
    code = model.reward_head.two_hot(torch.tensor(2.5))
    model.reward_head[2].weight.zero_()
    model.reward_head[2].bias.copy_((code + 1e-12).log())
    reward = model.predict_reward(torch.randn(3, model.config.num_features))
    torch.testing.assert_close(reward, torch.full((3,), 2.5), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_dream_ends_where_the_head_says() -> None:
    model = tiny_model()
    for bias, ends in ((-20.0, False), (20.0, True)):
        model.termination_head[2].bias.fill_(bias)
        dream = model.imagine(observed(model), torch.tensor([0, 1]), generator=generator())
        assert dream.terminated.tolist() == [ends, ends]


def losses(model: WorldModel, part: slice = slice(None), **changes: Tensor) -> dict[str, Tensor]:
    b, t = 4, 6
    actions, frames = episode(b, t)
    latents = model.tokenizer.encode(frames)
    signal, mask = sample_signal_levels(b, t, model.config.diffusion, generator())
    batch = {
        "latents": latents,
        "actions": actions,
        "poses": torch.randn(b, t, 3, generator=generator(5)),
        "rewards": torch.randn(b, t, generator=generator(1)),
        "terminated": torch.zeros(b, t, dtype=torch.bool),
        "returns": torch.randn(b, t, generator=generator(3)),
        "return_weights": torch.rand(b, t, generator=generator(4)),
        "noise": torch.randn(latents.shape, generator=generator(2)),
        "signal": signal,
        "mask": mask,
    } | changes
    return model(**{k: v[part] for k, v in batch.items()})


def test_losses_of_halves_average_to_the_whole(model: WorldModel) -> None:
    whole = losses(model)
    first, second = losses(model, slice(0, 2)), losses(model, slice(2, 4))
    assert whole.keys() == {"diffusion", "reward", "termination", "policy", "value"}
    for name, value in whole.items():
        torch.testing.assert_close((first[name] + second[name]) / 2, value, rtol=1e-4, atol=1e-5)


def test_rewards_are_learned_only_where_an_action_led(model: WorldModel) -> None:
    """A reward is for arriving; across a cut, or at the first frame, nobody arrived."""
    actions = torch.zeros(4, 6, dtype=torch.int64)
    actions[:, 3] = model.no_action
    rewards = torch.zeros(4, 6)
    values = []
    for reward in (0.0, 2.0):
        rewards[:, 3] = reward
        values.append(losses(model, actions=actions, rewards=rewards)["reward"])
    assert values[0] == values[1] > 0


def test_no_loss_on_actions_nobody_took(model: WorldModel) -> None:
    """The token of the first frame is no behaviour to clone, wherever it stands."""
    actions = torch.full((4, 6), model.no_action)
    assert losses(model, actions=actions)["policy"] == 0


def test_every_parameter_but_the_tokenizer_is_trained() -> None:
    model = tiny_model().requires_grad_(True)
    torch.nn.init.normal_(model.termination_head[-1].weight)  # type: ignore[arg-type]
    ended = torch.arange(4 * 6).view(4, 6) % 5 == 0
    sum(losses(model, terminated=ended).values()).backward()  # type: ignore[union-attr]
    for name, p in model.named_parameters():
        if name.startswith("tokenizer"):
            assert p.grad is None, name
        else:
            assert p.grad is not None and p.grad.isfinite().all(), name
            assert p.grad.any(), f"nothing is learned by {name}"


def test_what_is_shown_is_not_what_is_to_be_predicted() -> None:
    model = tiny_model()
    latents = model.tokenizer.encode(episode(4, 6)[1])
    with mock.patch("worldsim.world_model.diffusion_loss", wraps=diffusion_loss) as loss:
        losses(model, seen=latents + 1)
    prediction, target, _ = loss.call_args.args
    assert torch.equal(target, latents)
    with mock.patch("worldsim.world_model.diffusion_loss", wraps=diffusion_loss) as loss:
        losses(model)
    assert not torch.equal(loss.call_args.args[0], prediction)  # it was shown


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (torch.tensor([0, NUM_ACTIONS + 1]), r"actions range from 0 to 7; valid are 0 to 5, and 6"),
        (torch.tensor([-1, 0]), "actions range from -1 to 0"),
        (torch.tensor([0.0, 1.0]), "actions are torch.float32; they must be integers"),
        (torch.tensor([True, False]), "actions are torch.bool"),
        (torch.tensor([0]), r"actions have shape \(1,\); expected \(2,\)"),
        (torch.tensor([[0], [1]]), r"actions have shape \(2, 1\)"),
    ],
)
def test_wrong_actions_are_named(model: WorldModel, actions: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.imagine(observed(model), actions)


def test_wrong_noise_and_steps_are_named(model: WorldModel) -> None:
    state, actions = observed(model), torch.tensor([0, 1])
    with pytest.raises(
        ValueError, match=r"noise has shape \(1, 2, 4, 8\); expected \(2, 2, 4, 8\)"
    ):
        model.imagine(state, actions, noise=noise(model, 1))
    with pytest.raises(ValueError, match=r"noise is torch.float64"):
        model.imagine(state, actions, noise=noise(model, 2).double())
    for steps in (0, -2):
        with pytest.raises(ValueError, match=f"num_denoising_steps is {steps}"):
            model.imagine(state, actions, num_denoising_steps=steps)


def test_wrong_observations_are_named(model: WorldModel) -> None:
    actions, frames = episode()
    state = model.initial_state(2)
    wrong = [
        (actions, frames[:, 0], "frames have 4 dimensions"),
        (actions, frames.float(), r"frames are torch.float32 .*uint8 of shape \(64, 64, 3\)"),
        (actions, frames[:, :, :32], r"shape \(32, 64, 3\)"),
        (actions[:, :3], frames, r"actions have shape \(2, 3\); expected \(2, 7\)"),
        (actions + 1, frames, "actions range from"),
        (actions.float(), frames, "actions are torch.float32"),
        (actions[:1], frames[:1], "frames are of 1 envs.* expected are 2 envs"),
        (actions[:, :0], frames[:, :0], "1 frame or more"),
    ]
    for a, x, message in wrong:
        with pytest.raises(ValueError, match=message):
            model.observe(state, a, x)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_any_integers_are_actions(model: WorldModel, dtype: torch.dtype) -> None:
    actions, frames = episode()
    assert_equal(model.observe(model.initial_state(2), actions.to(dtype), frames), observed(model))


def test_bfloat16_dreams_alike(model: WorldModel) -> None:
    fast = tiny_model()
    fast.compute_dtype = torch.bfloat16
    state, actions = observed(model), torch.tensor([1, 4])
    exact = model.imagine(state, actions, generator=generator())
    rough = fast.imagine(observed(fast), actions, generator=generator())
    assert (exact.frame.float() - rough.frame.float()).abs().mean() < 8
    assert rough.reward.dtype == torch.float32


def test_a_grid_that_does_not_fit_is_named() -> None:
    config = tiny_config()
    backbone = dataclasses.replace(config.backbone, block_sizes=(3,))
    with pytest.raises(ValueError, match="block size 3 does not divide the token grid"):
        WorldModel(dataclasses.replace(config, backbone=backbone))


def test_latents_may_be_taken_in_patches() -> None:
    """Fewer tokens, with the same contract and frames as large as before."""
    backbone = dataclasses.replace(tiny_config().backbone, block_sizes=((1, 2), 2))
    tokenizer = dataclasses.replace(tiny_config().tokenizer, patch_size=16)
    patched = tiny_model(backbone=backbone, tokenizer=tokenizer, latent_patch=2)
    assert patched.config.tokenizer.grid == (4, 4)
    assert patched.config.token_grid == (2, 2)
    state = patched.initial_state(2)
    actions, frames = episode()
    for t in range(7):
        state = patched.observe(state, actions[:, t : t + 1], frames[:, t : t + 1])
    assert_close(state, observed(patched))
    assert patched.imagine(state, torch.tensor([1, 4])).frame.shape == (2, 64, 64, 3)
    z = torch.randn(2, 1, 16, 8, generator=generator())
    latent = patched.denoise(state, torch.tensor([[1], [4]]), z, 0.0)
    assert latent.shape == z.shape


def test_every_latent_of_a_patch_is_seen_and_told() -> None:
    backbone = dataclasses.replace(tiny_config().backbone, block_sizes=(1,), window=0)
    tokenizer = dataclasses.replace(tiny_config().tokenizer, patch_size=16)
    patched = tiny_model(backbone=backbone, tokenizer=tokenizer, latent_patch=2)
    z = torch.randn(1, 1, 16, 8, generator=generator())
    state, action = patched.initial_state(1), torch.tensor([[0]])
    before = patched.denoise(state, action, z, 0.5)
    for latent in range(16):
        changed = z.clone()
        changed[:, :, latent] += 1
        moved = (patched.denoise(state, action, changed, 0.5) - before).abs().amax((0, 1, 3)) > 0
        row, column = latent // 4 // 2 * 2, latent % 4 // 2 * 2  # of the patch's first latent
        patch = [4 * (row + i) + column + j for i in (0, 1) for j in (0, 1)]
        assert moved.nonzero().flatten().tolist() == patch


def test_patches_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"latent_patch 3 does not divide .* \(2, 2\)"):
        WorldModel(dataclasses.replace(tiny_config(), latent_patch=3))


@pytest.mark.gpu
def test_cuda_dreams_as_the_cpu_does(model: WorldModel) -> None:
    state, actions, z = observed(model), torch.tensor([1, 4]), noise(model, 2)
    expected = model.imagine(state, actions, noise=z)
    moved = tiny_model().to("cuda")
    a, x = (t.cuda() for t in episode())
    there = moved.observe(moved.initial_state(2), a, x)
    dream = moved.imagine(there, actions.cuda(), noise=z.cuda())
    assert (dream.frame.cpu().float() - expected.frame.float()).abs().mean() < 3


@torch.no_grad()
def test_a_dreamed_frame_is_remembered_under_noise_of_its_own(model: WorldModel) -> None:
    state, action, z = observed(model), torch.tensor([1, 4]), noise(model, 2)
    with mock.patch.object(model, "commit", wraps=model.commit) as commit:
        _, latents, _ = model.imagine_latents(state, action, model.tell(state, action), z)
    _, _, kept, signal, dreamed = commit.call_args.args
    level = model.config.dream_signal
    torch.testing.assert_close(kept, level * latents + (1 - level) * z[:, 1:])
    assert (signal == level).all() and torch.equal(dreamed[0], latents)
