"""Noise levels, loss and sampler against what can be worked out by hand."""

import pytest
import torch
from torch import Tensor

from worldsim.diffusion import (
    DiffusionForcingConfig,
    add_noise,
    diffusion_loss,
    sample,
    sample_signal_levels,
)


def draw(batch_size: int, length: int, **changes: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    config = DiffusionForcingConfig(**changes)
    return sample_signal_levels(batch_size, length, config, generator)


def test_noise_runs_from_noise_to_clean() -> None:
    x, noise = torch.randn(2, 2, 3, 4, 5)
    assert torch.equal(add_noise(x, noise, torch.ones(2, 3)), x)
    assert torch.equal(add_noise(x, noise, torch.zeros(2, 3)), noise)
    signal = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.0, 0.25]])
    z = add_noise(x, noise, signal)
    assert torch.equal(z[0, 0], noise[0, 0]) and torch.equal(z[1, 0], x[1, 0])
    torch.testing.assert_close(z[1, 2], 0.25 * x[1, 2] + 0.75 * noise[1, 2])


@pytest.mark.parametrize("length", [3, 4, 5, 16, 33])
def test_a_prefix_is_longer_than_half_and_leaves_a_rest(length: int) -> None:
    signal, mask = draw(
        2000,
        length,
        clean_prefix_probability=1.0,
        context_probability=0.0,
        noisy_context_probability=0.0,
    )
    lengths = (~mask).sum(1)
    assert (2 * lengths > length).all() and (lengths < length).all()
    assert set(lengths.tolist()) == set(range(length // 2 + 1, length))  # and every such length
    index = torch.arange(length)
    assert torch.equal(~mask, index < lengths[:, None])  # it is a prefix
    assert (signal[~mask] == 1).all()
    assert (signal[mask] < 1).all()


@pytest.mark.parametrize("length", [1, 2])
def test_the_shortest_segments_keep_a_frame_to_learn_from(length: int) -> None:
    _, mask = draw(500, length, clean_prefix_probability=1.0)
    assert mask[:, -1].all()


def test_shares_of_clean_and_noisy_prefixes() -> None:
    signal, mask = draw(
        4000,
        8,
        clean_prefix_probability=0.3,
        context_probability=0.0,
        noisy_context_probability=0.6,
        min_context_signal=0.8,
        level_power=1.0,
    )
    has_prefix = ~mask[:, 0]
    assert has_prefix.float().mean() == pytest.approx(0.3, abs=0.03)
    first = signal[has_prefix, 0]
    assert (first < 1).float().mean() == pytest.approx(0.6, abs=0.05)
    assert first.min() >= 0.8
    assert (signal[~mask] == first.repeat_interleave((~mask).sum(1)[has_prefix])).all()  # one level
    whole = signal[~has_prefix]
    assert mask[~has_prefix].all()
    assert whole.mean() == pytest.approx(0.5, abs=0.02)
    assert whole.std() == pytest.approx(12**-0.5, abs=0.02)  # uniform
    correlation = torch.corrcoef(whole.T) - torch.eye(8)
    assert correlation.abs().max() < 0.1  # independent frame by frame


def test_context_frames_are_spread_at_random_and_learned_from() -> None:
    signal, mask = draw(
        4000,
        8,
        clean_prefix_probability=0.0,
        context_probability=0.4,
        noisy_context_probability=0.0,
    )
    is_context = signal == 1
    assert mask.all()
    assert is_context.float().mean() == pytest.approx(0.4, abs=0.02)
    correlation = torch.corrcoef(is_context.float().T) - torch.eye(8)
    assert correlation.abs().max() < 0.1


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_levels_lean_to_noise_by_their_power(power: float) -> None:
    options = {"clean_prefix_probability": 0.0, "context_probability": 0.0}
    signal, _ = draw(4000, 8, level_power=power, **options)
    for level in (0.1, 0.5, 0.9):
        assert (signal < level).float().mean() == pytest.approx(level ** (1 / power), abs=0.02)


def test_without_prefixes_every_frame_is_learned_from() -> None:
    _, mask = draw(100, 9, clean_prefix_probability=0.0)
    assert mask.all()


def test_an_exact_denoiser_has_zero_loss() -> None:
    x = torch.randn(3, 5, 4, 2)
    _, mask = draw(3, 5)
    assert diffusion_loss(x, x, mask) == 0
    assert diffusion_loss(x + 1, x, mask) > 0


def test_masked_frames_do_not_count() -> None:
    x = torch.randn(3, 6, 4, 2)
    _, mask = draw(3, 6, clean_prefix_probability=1.0)
    wrong = torch.where(mask[..., None, None], x, x + 100)
    assert diffusion_loss(wrong, x, mask) == 0


def test_loss_is_the_error_by_hand() -> None:
    x = torch.zeros(2, 2, 1, 2)
    prediction = torch.tensor([[[[1.0, 3.0]], [[2.0, 2.0]]], [[[0.0, 2.0]], [[9.0, 9.0]]]])
    mask = torch.tensor([[True, True], [True, False]])
    expected = ((5 + 4) / 2 + 2) / 2
    assert diffusion_loss(prediction, x, mask) == pytest.approx(expected)


def test_mean_over_halves_is_the_whole() -> None:
    """What makes two processes with half the batch each give the gradient of one."""
    x, prediction = torch.randn(2, 8, 6, 3, 2)
    _, mask = draw(8, 6)
    whole = diffusion_loss(prediction, x, mask)
    halves = [
        diffusion_loss(*(t[part] for t in (prediction, x, mask)))
        for part in (slice(0, 4), slice(4, 8))
    ]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, whole)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_an_exact_denoiser_is_sampled_exactly(num_steps: int) -> None:
    x, noise = torch.randn(2, 3, 4)
    torch.testing.assert_close(sample(lambda z, s: x, noise, num_steps), x)


def test_sampler_recovers_a_gaussian() -> None:
    """The posterior mean of a Gaussian is linear, so the exact denoiser is known."""
    mean = torch.tensor([1.0, -2.0])
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.5]])

    def denoise(z: Tensor, s: float) -> Tensor:
        noised = s**2 * covariance + (1 - s) ** 2 * torch.eye(2)
        gain = s * covariance @ torch.linalg.inv(noised)
        return mean + (z - s * mean) @ gain.T

    noise = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    samples = sample(denoise, noise, 100)
    torch.testing.assert_close(samples.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(samples.T.cov(), covariance, rtol=0, atol=0.04)


def test_levels_rise_evenly_and_noise_is_left_alone() -> None:
    levels: list[float] = []
    noise = torch.randn(3)
    before = noise.clone()

    def denoise(z: Tensor, s: float) -> Tensor:
        levels.append(s)
        return torch.zeros_like(z)

    sample(denoise, noise, 4)
    assert levels == [0, 0.25, 0.5, 0.75]
    assert torch.equal(noise, before)


@pytest.mark.parametrize("num_steps", [0, -1])
def test_no_steps_is_an_error(num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_denoising_steps is {num_steps}"):
        sample(lambda z, s: z, torch.zeros(1), num_steps)
