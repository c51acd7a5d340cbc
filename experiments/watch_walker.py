"""Watch what the walker sees, knows and wants: a video of one episode in a real Memory Maze.

    python experiments/watch_walker.py --world-model memory-maze-9x9 --output walker.mp4

Left the frame, which is all that it gets. In the middle the map that it has drawn so far, where it
expects the next reward and which place it walks to next. Right the maze as it is, for comparison;
the walker never sees that. The map is laid over the maze by the walker's pose, as it believes it to
be: where odometry slips, the map jumps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

import envs
from agents.features import FeatureState, behaviour_policy
from agents.rollout import BEHAVIOUR_TEMPERATURE
from experiments.command_line import run_script
from experiments.playing import FIRST_EVALUATION_SEED
from experiments.videos import check_video, save_video
from worldsim.checkpoint import load
from worldsim.occupancy import CELLS, SEEN, WEIGHT
from worldsim.odometry import standing
from worldsim.places import way_in
from worldsim.pose import placed_at, poses_of, seen_from
from worldsim.world_model import WorldModel

SIDE = 256
"""Pixels of each of the three pictures."""
UNKNOWN, WALL, FREE = np.array([150, 150, 160]), np.array([50, 50, 60]), np.array([245, 245, 240])
WALKER, WANTED, NEXT, TARGET = (30, 90, 220), (235, 120, 20), (20, 150, 60), (200, 40, 160)


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """Watch the walker."""

    world_model: str = "memory-maze-9x9"
    """Shipped name or checkpoint directory of a model that draws a map."""
    env: str = "memory-maze-9x9"
    """A Memory Maze."""
    seed: int = FIRST_EVALUATION_SEED
    """Of the maze."""
    steps: int = 1000
    """Steps at most."""
    every: int = 2
    """Every so manieth step is shown."""
    temperature: float = BEHAVIOUR_TEMPERATURE
    """At which actions are drawn; below 1 likely ones become likelier."""
    fps: float = 20
    output: Path = Path("walker.mp4")
    """.mp4 or .gif."""


def main(config: WatchConfig) -> float:
    """Play, write the video, and print the return, which is also returned.

    Raises:
        ValueError: the model draws no map, or a setting is out of range.
    """
    for name, least in (("steps", 1), ("every", 1), ("seed", 0)):
        if getattr(config, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(config, name)}")
    check_video(config.output, "--output")
    if not config.env.startswith("memory-maze-"):
        raise ValueError(f"only Memory Mazes tell what their map is: {config.env} does not")
    model = load(config.world_model)
    if not model.config.draws_map:
        raise ValueError(f"{config.world_model} draws no map: train one (--places --occupancy)")
    policy = behaviour_policy(model, seed=config.seed, temperature=config.temperature)
    env = envs.make(config.env, privileged=True)
    observation, info = env.reset(seed=config.seed)
    total, state, pictures = 0.0, None, []
    try:
        for step in tqdm(range(config.steps), desc="walking", unit="step"):
            action, state = policy.act(observation[None], state, np.array([step == 0]))
            if step % config.every == 0:
                pictures.append(draw(model, observation, state, info, f"return {total:.0f}"))
            observation, reward, terminated, truncated, info = env.step(int(action[0]))
            total += float(reward)
            if terminated or truncated:
                break
    finally:
        env.close()
    save_video(config.output, np.stack(pictures), fps=config.fps)
    print(f"return {total:.0f} in {step + 1} steps; video: {config.output}")
    return total


def draw(
    model: WorldModel, frame: np.ndarray, state: FeatureState, info: dict[str, Any], caption: str
) -> np.ndarray:
    """One picture of the video, (SIDE, 3 SIDE, 3) uint8.

    Args:
        model: draws a map.
        frame: (h, w, 3) uint8 observed last.
        state: of the walker, after it.
        info: privileged, of the same moment.
        caption: written into the frame's corner.
    """
    assert model.config.places is not None
    features = state.world.features
    expected, certainty = (x[0] for x in model.place_told(features))
    next_place = way_in(features, model.config.places)[0]
    true_pose = torch.from_numpy(poses_of({k: np.asarray(v)[None] for k, v in info.items()}))[0]
    layout = np.asarray(info["maze_layout"]) > 0
    scale = SIDE / max(layout.shape)
    seen = Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    known = _grid(map_colours(model, state.world.memory, true_pose, layout.shape), scale)
    truth = _grid(np.where(layout[..., None], FREE, WALL), scale)
    ImageDraw.Draw(seen).text((6, 4), caption, fill=(255, 255, 255))
    targets = np.asarray(info["targets_pos"], np.float32)
    wanted = int(info["target_index"])
    pen = ImageDraw.Draw(known)
    _dot(pen, placed_at(true_pose, next_place).numpy() * scale, 0.16 * scale, NEXT)
    if float(certainty) > 0.1:
        place = placed_at(true_pose, expected).numpy() * scale
        _dot(pen, place, 0.4 * scale * float(certainty), WANTED, filled=False)
    _arrow(pen, true_pose.numpy(), scale)
    pen = ImageDraw.Draw(truth)
    for i, place in enumerate(targets):
        _dot(pen, place * scale, 0.28 * scale, TARGET, filled=i == wanted)
    _arrow(pen, true_pose.numpy(), scale)
    return np.concatenate([np.asarray(p) for p in (seen, known, truth)], axis=1)


def map_colours(
    model: WorldModel, memory: dict[str, Tensor], true_pose: Tensor, shape: tuple[int, ...]
) -> np.ndarray:
    """What the map says of every cell of the true maze, as colours (rows, columns, 3).

    Cells that were not looked at, and are only guessed, are pale.
    """
    occupancy = model.occupancy
    assert occupancy is not None
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    middles = torch.from_numpy(np.stack([columns + 0.5, rows + 0.5], -1).astype(np.float32))
    there = placed_at(standing(memory)[0], seen_from(true_pose, middles))
    index = occupancy.index(occupancy.cell_of(there))
    free = occupancy.log_odds(memory[CELLS])[0, index].sigmoid().detach().numpy()[..., None]
    seen = (memory[CELLS][0, index, SEEN] > 0).numpy()[..., None]
    told = (memory[CELLS][0, index, WEIGHT] > 0).numpy()[..., None]
    known = free * FREE + (1 - free) * WALL
    return np.where(seen, known, np.where(told, 0.3 * known + 0.7 * UNKNOWN, UNKNOWN))


def _grid(colours: np.ndarray, scale: float) -> Image.Image:
    """Cells (rows, columns, 3) as a picture with the first row at the bottom left."""
    picture = Image.new("RGB", (SIDE, SIDE), (0, 0, 0))
    pen = ImageDraw.Draw(picture)
    for row, column in np.ndindex(colours.shape[:2]):
        x, y = column * scale, row * scale
        box = (x, SIDE - y - scale, x + scale - 1, SIDE - y - 1)
        pen.rectangle(box, fill=tuple(int(c) for c in colours[row, column]))
    return picture


def _dot(
    pen: ImageDraw.ImageDraw,
    at: np.ndarray,
    radius: float,
    colour: tuple[int, int, int],
    filled: bool = True,
) -> None:
    x, y = float(at[0]), SIDE - float(at[1])
    box = (x - radius, y - radius, x + radius, y + radius)
    pen.ellipse(box, fill=colour if filled else None, outline=colour, width=2)


def _arrow(pen: ImageDraw.ImageDraw, pose: np.ndarray, scale: float) -> None:
    """The walker, pointing where it looks."""
    turns = pose[2] + np.array([0.0, 2.5, -2.5])
    corners = pose[:2] + 0.45 * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    pen.polygon([(x * scale, SIDE - y * scale) for x, y in corners], fill=WALKER)


if __name__ == "__main__":
    run_script(main, WatchConfig, __doc__)
