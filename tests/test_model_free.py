"""The model-free baseline: its networks do what sb3-contrib's do."""

import gymnasium
import numpy as np
import pytest
import torch
from sb3_contrib.ppo_recurrent import CnnLstmPolicy

from experiments.model_free import WholeSequencesPolicy


@pytest.mark.parametrize("begins", [[], [(1, 0)], [(0, 0), (1, 0), (2, 0)], [(0, 0), (2, 4)]])
def test_whole_sequences_give_what_single_steps_give(begins: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(5, 4)
    features = torch.randn(3 * 7, 5, requires_grad=True)
    before = (torch.randn(1, 3, 4), torch.randn(1, 3, 4))
    starts = torch.zeros(3, 7)
    for place in begins:
        starts[place] = 1.0

    found = []
    for policy in (CnnLstmPolicy, WholeSequencesPolicy):
        lstm.zero_grad()
        features.grad = None
        outputs, after = policy._process_sequence(features, before, starts.flatten(), lstm)
        (outputs.square().sum() + after[1].sum()).backward()
        gradients = [features.grad, *(weight.grad for weight in lstm.parameters())]
        assert all(gradient is not None and gradient.any() for gradient in gradients)
        found.append([outputs, *after, *gradients])
    for expected, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])  # as it acts, as it learns
@pytest.mark.parametrize("black", [[], [0], [1, 4, 5], [0, 1, 2, 3, 4, 5]])
def test_black_frames_have_the_features_of_black_frames(
    black: list[int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    space = gymnasium.spaces.Box(0, 255, (3, 36, 36), np.uint8)
    policy = WholeSequencesPolicy(space, gymnasium.spaces.Discrete(6), lambda _: 3e-4)
    frames = torch.randint(1, 256, (6, 3, 36, 36)).to(dtype)
    frames[black] = 0
    frames[2, 0] = 0

    expected = super(WholeSequencesPolicy, policy).extract_features(frames)
    assert not torch.equal(expected[0], expected[1]) or len(black) == 6
    torch.testing.assert_close(policy.extract_features(frames), expected)
