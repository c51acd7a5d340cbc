"""The model that ships means what it meant when it was trained."""

from __future__ import annotations

import numpy as np
import torch

import worldsim
from worldsim.open_loop import evaluate_open_loop


def test_the_shipped_model_dreams_as_well_as_its_card_says() -> None:
    model = worldsim.load("memory-maze-9x9", dtype=torch.float32)
    contexts = worldsim.load_contexts("memory-maze-9x9")
    frames, actions = contexts.frames[:8, :40], contexts.actions[:8, :40]
    rewards = np.zeros(actions.shape, np.float32)
    found = evaluate_open_loop(model, frames, actions, rewards, context=32, floors=False)
    psnr = {name: values.mean() for name, values in found.psnr.items()}
    # Over the first 8 frames 23.3 to 24.5 dB, by the length of the context; copies have 17.
    assert psnr["dream"] > max(psnr["copy_last"] + 3, 22) and psnr["autoencoder"] > 30
