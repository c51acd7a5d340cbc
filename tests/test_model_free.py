"""The model-free baseline: its LSTMs do what sb3-contrib's do."""

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
