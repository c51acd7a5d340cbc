"""Doubt and error are of the steps that they say, and are compared by rank."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_model, write_dataset

from agents.imagination import distance
from experiments.evaluate_doubt import EvaluateDoubtConfig, main, measure, told_apart
from worldsim.checkpoint import save
from worldsim.episodes import EpisodeDataset
from worldsim.odometry import OdometryConfig
from worldsim.open_loop import draw_stretches
from worldsim.places import PlacesConfig
from worldsim.pose import PoseConfig
from worldsim.world_model import WorldModel


def walking_model() -> WorldModel:
    return tiny_model(
        pose=PoseConfig(),
        odometry=OdometryConfig(hidden=16),
        places=PlacesConfig(slots=4, width=32),
    ).eval()


def test_doubt_and_error_are_of_the_steps_that_they_say(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "data", num_episodes=3, size=64)
    model = walking_model()
    config = EvaluateDoubtConfig(dataset=str(path), stretches=3, context=5, steps=2)
    doubts, errors = measure(model, config)
    assert {name: d.shape for name, d in doubts.items()} == {"read-out": (6,), "places": (6,)}

    frames, actions, _ = draw_stretches(EpisodeDataset(path), 3, 7, seed=0)
    shown, led = torch.as_tensor(frames), torch.as_tensor(actions).long()
    observed = model.observe(model.initial_state(3), led[:, :6], shown[:, :6])
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):  # dreams of the first step
        torch.randn(3, *model.noise_shape, generator=generator)
    one, other = (
        model.imagine(observed, led[:, 6], generator=generator, decode=False).state.features
        for _ in range(2)
    )
    real = model.observe(observed, led[:, 6:], shown[:, 6:]).features
    for name, part in (
        ("read-out", slice(0, model.d_model)),
        ("places", slice(model.d_model, None)),
    ):
        found = torch.as_tensor(doubts[name][3:]), torch.as_tensor(errors[name][3:])
        torch.testing.assert_close(found[0], distance(one[:, part], other[:, part]))
        torch.testing.assert_close(found[1], distance(one[:, part], real[:, part]))


def test_wrong_steps_are_told_apart_by_rank() -> None:
    doubt = np.array([0.1, 0.4, 0.2, 0.3])
    assert told_apart(doubt, np.array([False, True, False, True])) == 1.0
    assert told_apart(doubt, np.array([True, False, True, False])) == 0.0
    assert told_apart(doubt, np.array([True, True, False, False])) == 0.5
    assert told_apart(np.ones(4), np.array([True, False, True, False])) == 0.5  # says nothing


def test_all_pairs_are_compared_and_kept(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "data", num_episodes=3, size=64)
    save(walking_model(), tmp_path / "model")
    config = EvaluateDoubtConfig(
        dataset=str(path),
        world_model=str(tmp_path / "model"),
        stretches=4,
        context=5,
        steps=3,
        output=tmp_path / "doubt.json",
    )
    result = main(config)
    assert [(c["doubt"], c["error"]) for c in result["comparisons"]] == [
        ("read-out", "read-out"),
        ("read-out", "places"),
        ("places", "read-out"),
        ("places", "places"),
    ]
    kept = json.loads((tmp_path / "doubt.json").read_text())
    assert kept["comparisons"] == result["comparisons"] and kept["steps"] == 12


@pytest.mark.parametrize("options", [{"steps": 0}, {"wrong": 1.0}])
def test_what_cannot_be_measured_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must"):
        EvaluateDoubtConfig(dataset="data", **options)  # type: ignore[arg-type]
