"""The video of the walker shows what its map knows, where it is known to be."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from test_occupancy import SMALL, known_map, mapping, maze
from tiny import tiny_model

from experiments.watch_walker import FREE, UNKNOWN, WALL, WatchConfig, main, map_colours
from worldsim.checkpoint import save
from worldsim.occupancy import CELLS, SEEN, WEIGHT
from worldsim.odometry import ORIGIN, POSE


@pytest.mark.parametrize("turn", [0, 1])
def test_the_map_is_laid_over_the_maze_by_the_believed_pose(turn: int) -> None:
    model, layout = mapping(), maze(3, size=8)
    memory = model.initial_state(1).memory
    known = known_map(layout, SMALL)
    known[..., SEEN] = (known[..., WEIGHT] > 0).float()  # all cells were looked at
    memory[CELLS] = known
    believed = torch.tensor([[3.5, 2.5, 0.3]])
    memory[ORIGIN] = torch.zeros(1, 4)
    memory[POSE] = believed
    # The same place in a maze that is drawn a quarter turn further: x becomes y, y becomes 8 - x.
    true = torch.tensor([8 - 2.5, 3.5, 0.3 + np.pi / 2]) if turn else believed[0]
    colours = map_colours(model, memory, true.float(), layout.shape)
    expected = np.rot90(layout, k=-1) if turn else layout
    # Rows are y: a quarter turn counterclockwise takes cell (x, y) to (7 - y, x).
    np.testing.assert_allclose(
        colours[expected], np.broadcast_to(FREE, (expected.sum(), 3)), atol=1
    )
    np.testing.assert_allclose(colours[~expected][:, 0], WALL[0], atol=1)
    del memory[ORIGIN]  # of a model that sees no grid
    np.testing.assert_array_equal(map_colours(model, memory, true.float(), layout.shape), colours)
    memory[CELLS] = torch.zeros_like(known)
    assert (map_colours(model, memory, true.float(), layout.shape) == UNKNOWN).all()


def test_a_video_is_made_of_a_real_maze(tmp_path: Path) -> None:
    save(mapping(), tmp_path / "model")
    config = WatchConfig(
        world_model=str(tmp_path / "model"),
        env="memory-maze-5x5",
        steps=5,
        every=2,
        output=tmp_path / "walker.gif",
    )
    main(config)
    assert iio.imread(tmp_path / "walker.gif").shape[:3] == (3, 256, 768)


def test_what_cannot_be_watched_is_named(tmp_path: Path) -> None:
    save(tiny_model(), tmp_path / "model")
    for changes, complaint in (
        ({}, "draws no map"),
        ({"env": "corridor"}, "only Memory Mazes"),
        ({"output": Path("walker.png")}, "must end in .mp4 or .gif"),
        ({"every": 0}, "every must be at least 1"),
    ):
        config = WatchConfig(**{"world_model": str(tmp_path / "model"), **changes})
        with pytest.raises(ValueError, match=complaint):
            main(config)
