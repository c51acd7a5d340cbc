"""The memory benchmark's instrument: recall of panels in the corridor (`envs.corridor`).

Walks are simulated with arrays, and since a world of few cells has few different frames (of 16
cells 1,024), those are drawn and encoded once. Two things are measured on episodes never trained
on: at every step of real episodes the next frame is dreamed and its panel read off the pixels,
which gives recall against distance free of accumulated error; and long dreams under the true
actions are compared with the truth step by step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from envs.corridor import (
    BACK,
    COLORS,
    FORWARD,
    NEVER,
    NUM_ACTIONS,
    NUM_MARKS,
    STAY,
    TURN,
    Panel,
    draw_frames,
    draw_panels,
    move,
    read_panels,
    recall_distance,
)
from experiments.memory_recall import count_by_row, recall_by_time, recall_table
from worldsim.latents import LatentEpisodes
from worldsim.metrics import psnr, ssim
from worldsim.pose import PoseConfig
from worldsim.tokenizer import Tokenizer
from worldsim.world_model import WorldModel

CHANCE = {"color": 1 / len(COLORS), "mark": 1 / NUM_MARKS}
Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorridorTask:
    """How the corridor is walked and what is measured on it."""

    num_cells: int = 16
    conditioning: Literal["pose", "move"] = "pose"
    """What the models are told of every frame: where it is seen from, as in Po et al. 2025, so that
    memory alone is measured; or the move that led there, from which they must learn where it is."""
    frame_size: int = 32
    training_episodes: int = 2000
    episode_length: int = 256
    turn_probability: float = 0.08
    stay_probability: float = 0.04
    reverse_probability: float = 0.04
    test_episodes: int = 64
    """Episodes for recall against distance, all their frames."""
    test_turn_probability: float = 0.02
    """Of these: the rarer the turns, the longer ago the other side was seen."""
    warm_up: int = 16
    """Frames at the start of an episode that are observed only."""
    dreams: int = 32
    context: int = 128
    """Real frames before a long dream."""
    horizon: int = 64
    """Frames of a long dream."""


@dataclasses.dataclass(frozen=True)
class Walks:
    """Simulated episodes; (n, t) int64 each; with moves, `actions[:, 0]` is "no action"."""

    actions: np.ndarray
    cell: np.ndarray
    side: np.ndarray
    color: np.ndarray
    mark: np.ndarray
    distance: np.ndarray
    """Frames since the panel was last seen, or `NEVER`."""


def simulate(
    task: CorridorTask,
    num_episodes: int,
    length: int,
    seed: int,
    turn_probability: float | None = None,
) -> Walks:
    """Walk in one direction, with turns of the head, stops and reversals at random."""
    turns = task.turn_probability if turn_probability is None else turn_probability
    rng = np.random.default_rng(seed)
    panels = [draw_panels(task.num_cells, rng) for _ in range(num_episodes)]
    colors, marks = (np.stack([p[i] for p in panels]) for i in range(2))
    cell = rng.integers(task.num_cells, size=num_episodes)
    side = rng.integers(2, size=num_episodes)
    forward = rng.random(num_episodes) < 0.5
    actions = np.full((num_episodes, length), NUM_ACTIONS)
    cells, sides = (np.zeros((num_episodes, length), np.int64) for _ in range(2))
    cells[:, 0], sides[:, 0] = cell, side
    for t in range(1, length):
        forward ^= rng.random(num_episodes) < task.reverse_probability
        draw = rng.random(num_episodes)
        action = np.where(forward, FORWARD, BACK)
        action[draw < turns + task.stay_probability] = STAY
        action[draw < turns] = TURN
        cell, side = move(cell, side, action, task.num_cells)
        actions[:, t], cells[:, t], sides[:, t] = action, cell, side
    if task.conditioning == "pose":
        actions = 2 * cells + sides
    rows = np.arange(num_episodes)[:, None]
    return Walks(
        actions=actions,
        cell=cells,
        side=sides,
        color=colors[rows, cells, sides],
        mark=marks[rows, cells, sides],
        distance=np.stack(
            [recall_distance(c, s, task.num_cells) for c, s in zip(cells, sides, strict=True)]
        ),
    )


class Corridor:
    """The corridor as a task of the benchmark.

    Args:
        task: its settings.
        seed: of the training episodes; test episodes have others.
    """

    def __init__(self, task: CorridorTask, seed: int = 0) -> None:
        self.task = task
        self.num_actions = 2 * task.num_cells if task.conditioning == "pose" else NUM_ACTIONS
        self.frame_shape = (task.frame_size, task.frame_size, 3)
        self.pose: PoseConfig | None = None  # poses are few here, and told like actions
        self.seed = seed
        shape = (len(COLORS), NUM_MARKS, task.num_cells, 2)
        color, mark, cell, side = np.indices(shape).reshape(4, -1)
        self._all_frames = draw_frames(
            Panel(color, mark), cell, side, task.num_cells, task.frame_size
        )

    def _index(self, walks: Walks) -> np.ndarray:
        """Which of all frames each frame of the walks is, (n, t)."""
        shape = (len(COLORS), NUM_MARKS, self.task.num_cells, 2)
        return np.ravel_multi_index((walks.color, walks.mark, walks.cell, walks.side), shape)

    def prepare(self) -> None:
        """Nothing is recorded: walks are drawn."""

    def training_frames(self) -> Tensor:
        """Frames to train the tokenizer on, (n, h, w, c) uint8."""
        return torch.from_numpy(self._all_frames)

    def _encode_all(self, encoder: Tokenizer | WorldModel) -> Tensor:
        device = next(encoder.parameters()).device
        parts = self.training_frames().split(256)
        return torch.cat([encoder.encode(part.to(device)).cpu() for part in parts])

    def training_latents(self, tokenizer: Tokenizer) -> LatentEpisodes:
        """Training episodes, encoded."""
        return self._latents(tokenizer, self.task.training_episodes, self.seed)

    def validation_latents(self, tokenizer: Tokenizer) -> LatentEpisodes:
        """Episodes of neither training nor test, encoded."""
        return self._latents(tokenizer, self.task.test_episodes, self.seed + 1)

    def _latents(self, tokenizer: Tokenizer, num_episodes: int, seed: int) -> LatentEpisodes:
        walks = simulate(self.task, num_episodes, self.task.episode_length, seed)
        index = torch.from_numpy(self._index(walks).ravel())
        rewards = walks.distance == NEVER
        rewards[:, 0] = False
        return LatentEpisodes(
            self._encode_all(tokenizer).half()[index],
            torch.from_numpy(walks.actions.ravel()),
            torch.from_numpy(rewards.ravel()).float(),
            torch.zeros(len(index), dtype=torch.bool),
            np.full(num_episodes, self.task.episode_length),
        )

    def reference(self, device: torch.device, progress: Progress = lambda text: None) -> None:
        """None: copying what was seen at the same place is always right here."""

    @torch.no_grad()
    def evaluate(
        self, model: WorldModel, progress: Progress = lambda text: None
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Measure recall and long dreams.

        Returns:
            JSON values, and arrays for the contact sheet.
        """
        progress("recall")
        distance, hits = self._measure_recall(model)
        recall = recall_table(distance, hits)
        progress("long dreams")
        dreams, frames = self._measure_dreams(model, self.seed + 3)
        values = {"recall": recall, "hit": "color", "chance": CHANCE["color"], **dreams}
        frame = np.arange(self.task.warm_up, self.task.episode_length) + 1  # of the walk
        chosen = {
            "recall, 1-25 frames": (distance >= 1) & (distance <= 25),
            "recall, 26-64 frames": (distance > 25) & (distance <= 64),
            "recall, over 64 frames": distance > 64,
            "in the first 64 of a walk": (distance >= 1) & (frame <= 64),
            "in the last 64": (distance >= 1) & (frame > self.task.episode_length - 64),
        }
        values["by_time"] = recall_by_time(distance, hits["color"], self.task.warm_up)
        values["by_walk"] = {k: count_by_row(hits["color"], v) for k, v in chosen.items()}
        values["columns"] = {
            **{k: float(hits["color"][v].mean()) if v.any() else None for k, v in chosen.items()},
            "PSNR": float(np.mean(dreams["psnr"])),
            "SSIM": float(np.mean(dreams["ssim"])),
            "long dream, seen panels right": dreams["seen_before_color"],
        }
        return values, frames

    def _measure_recall(self, model: WorldModel) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Distances (n, t) of all frames after the warm-up, and what is told right in each."""
        task, device = self.task, model.device
        walks = simulate(
            task,
            task.test_episodes,
            task.episode_length,
            self.seed + 2,
            task.test_turn_probability,
        )
        latents = self._encode_all(model)[torch.from_numpy(self._index(walks))]
        latents, actions = latents.to(device), torch.from_numpy(walks.actions).to(device)
        generator = torch.Generator(device).manual_seed(self.seed)
        state = model.initial_state(len(actions))
        seen = []
        for t in range(task.episode_length):
            if t >= task.warm_up:
                dream = model.imagine(state, actions[:, t], generator=generator)
                seen.append(read_panels(dream.frame.cpu().numpy()))
            state, _ = model.observe_latents(state, actions[:, t : t + 1], latents[:, t : t + 1])
        color = np.stack([p.color for p in seen], 1) == walks.color[:, task.warm_up :]
        mark = np.stack([p.mark for p in seen], 1) == walks.mark[:, task.warm_up :]
        return walks.distance[:, task.warm_up :], {"color": color, "mark": mark}

    def development_psnr(self, model: WorldModel) -> float:
        """PSNR of long dreams on walks that are no test."""
        return float(np.mean(self._measure_dreams(model, self.seed + 4)[0]["psnr"]))

    @torch.no_grad()
    def _measure_dreams(
        self, model: WorldModel, seed: int
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        task, device = self.task, model.device
        length = task.context + task.horizon
        walks = simulate(task, task.dreams, length, seed)
        frames = torch.from_numpy(self._all_frames[self._index(walks)]).to(device)
        actions = torch.from_numpy(walks.actions).to(device)
        generator = torch.Generator(device).manual_seed(self.seed)
        state = model.initial_state(len(actions))
        state = model.observe(state, actions[:, : task.context], frames[:, : task.context])
        dreamed, _ = model.dream(state, actions[:, task.context :], generator=generator)
        real = frames[:, task.context :]
        panels = read_panels(dreamed.cpu().numpy())
        right = panels.color == walks.color[:, task.context :]
        # What a frame can be recalled from must be real: the pose was seen in the context.
        known = seen_in_context(walks, task.context)
        values = {
            "psnr": psnr(dreamed, real).mean(0).tolist(),
            "ssim": ssim(dreamed, real).mean(0).tolist(),
            "seen_before_color": float(right[known].mean()) if known.any() else None,
            "never_seen_color": float(right[~known].mean()) if not known.all() else None,
        }
        shown = slice(0, 4)
        return values, {
            "context": frames[shown, : task.context].cpu().numpy(),
            "real": real[shown].cpu().numpy(),
            "dreamed": dreamed[shown].cpu().numpy(),
            "known": known[shown],
        }


def seen_in_context(walks: Walks, context: int) -> np.ndarray:
    """Whether the pose of each later frame is among the first `context`: (n, t - context) bool."""
    pose = 2 * walks.cell + walks.side
    return (pose[:, context:, None] == pose[:, None, :context]).any(-1)
