"""Frames to latent tokens and back: each frame on its own, and nothing lost in the conversion."""

import pytest
import torch
from torch import Tensor

from worldsim.tokenizer import Tokenizer, TokenizerConfig, to_model, to_uint8

CONFIG = TokenizerConfig(frame_shape=(16, 24, 3), patch_size=4, channels=(8, 16), latent_channels=4)


def make_tokenizer(seed: int = 0) -> Tokenizer:
    torch.manual_seed(seed)
    return Tokenizer(CONFIG).eval()


def frames(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, *CONFIG.frame_shape), dtype=torch.uint8, generator=g)


def test_conversion_is_lossless_and_within_bounds() -> None:
    every = torch.arange(256, dtype=torch.uint8).reshape(16, 16, 1)
    x = to_model(every)
    assert x.shape == (1, 16, 16) and x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)
    assert torch.equal(to_uint8(x), every)
    assert to_uint8(torch.tensor([[[-3.0, 3.0]]])).flatten().tolist() == [0, 255]


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_shapes_of_any_lead(lead: tuple[int, ...]) -> None:
    tokenizer = make_tokenizer()
    assert CONFIG.grid == (2, 3)
    z = tokenizer.encode(frames(*lead))
    assert z.shape == (*lead, 6, 4) and z.dtype == torch.float32
    y = tokenizer.decode(z)
    assert y.shape == (*lead, 16, 24, 3) and y.dtype == torch.uint8


def test_frames_are_encoded_and_decoded_one_by_one() -> None:
    tokenizer, x = make_tokenizer(), frames(2, 3)
    z = tokenizer.encode(x)
    y = tokenizer.decode(z).int()
    for i in range(2):
        for t in range(3):
            torch.testing.assert_close(tokenizer.encode(x[i, t]), z[i, t], rtol=1e-4, atol=1e-5)
            assert (tokenizer.decode(z[i, t]).int() - y[i, t]).abs().max() <= 1


def test_calibration_gives_unit_latents_and_changes_no_picture() -> None:
    tokenizer, x = make_tokenizer(), frames(64)
    before = tokenizer.decode(tokenizer.encode(x)).int()
    tokenizer.calibrate(x)
    z = tokenizer.encode(x)
    torch.testing.assert_close(z.mean((0, 1)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.std((0, 1)), torch.ones(4), rtol=1e-3, atol=0)
    assert (tokenizer.decode(z).int() - before).abs().max() <= 1


def test_out_of_range_latents_are_clamped() -> None:
    tokenizer = make_tokenizer()
    far = torch.full((1, 6, 4), 50.0)
    assert torch.equal(tokenizer.decode(far), tokenizer.decode(far * 10))


def test_loss_reports_the_squared_error_without_noise() -> None:
    tokenizer, x = make_tokenizer(), frames(4)
    loss, squared = tokenizer.loss(x, torch.zeros(4, 4, 2, 3))
    y = tokenizer.decoder(torch.tanh(tokenizer.encoder(to_model(x))))
    error = y - to_model(x)
    torch.testing.assert_close(squared, error.square().mean())
    torch.testing.assert_close(loss, error.abs().mean() + error.square().mean())
    assert loss.requires_grad and not squared.requires_grad
    noisy, _ = tokenizer.loss(x, torch.ones(4, 4, 2, 3))
    assert noisy != loss


def test_it_learns_to_see() -> None:
    """A few colours, a few steps: the error falls well below that of a constant picture."""
    tokenizer = make_tokenizer().train()
    colours = torch.randint(0, 256, (8, 1, 1, 3), generator=torch.Generator().manual_seed(0))
    x = colours.expand(8, 16, 24, 3).to(torch.uint8)
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=5e-3)
    losses = []
    for _ in range(50):
        loss, squared = tokenizer.loss(x, torch.randn(8, 4, 2, 3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(squared))
    assert losses[-1] < 0.5 * float(to_model(x).var((0, 2, 3)).mean())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(2, 16, 24, 3), r"frames are torch.float32 .*uint8 of shape \(16, 24, 3\)"),
        (torch.zeros(2, 24, 16, 3, dtype=torch.uint8), r"shape \(24, 16, 3\)"),
        (torch.zeros(2, 16, 24, 4, dtype=torch.uint8), r"shape \(16, 24, 4\)"),
        (torch.zeros(16, 24, dtype=torch.uint8), r"shape \(16, 24\)"),
    ],
)
def test_wrong_frames_are_named(wrong: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_tokenizer().encode(wrong)


def test_frames_that_do_not_fit_the_patches_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"frames of 20x24 .* tokens of 8x8 pixels: .*patch_size \(to 2\) or chan"
    ):
        _ = TokenizerConfig(frame_shape=(20, 24, 3), patch_size=4, channels=(8, 16)).grid
