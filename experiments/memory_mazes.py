"""The memory benchmark's tasks on real Memory Mazes: retrieval and reasoning, with held-out mazes.

Po et al. 2025 (arXiv 2505.20171), section 5. The model observes a tour of the maze and dreams what
follows under the true poses, or actions: the same tour again (retrieval), or a walk anywhere
(reasoning). For every dreamed frame the privileged poses tell how
many frames ago its place and heading were last seen in the tour, if at all.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import envs
from agents.rollout import Policy
from agents.touring import TouringExplorer
from experiments.memory_recall import (
    by_row,
    pose_recall_distance,
    recall_table,
    reward_recall,
    share,
)
from experiments.wall_colors import ColorReader
from experiments.workers import Task, collect
from worldsim.checks import check_same_kind
from worldsim.dataset_writer import DatasetWriter
from worldsim.episodes import Episode, EpisodeDataset
from worldsim.latents import LatentEpisodes, encode_dataset
from worldsim.metrics import psnr, ssim
from worldsim.pose import PoseConfig, poses_of
from worldsim.tokenizer import Tokenizer
from worldsim.training import spaced_frames
from worldsim.world_model import WorldModel

Kind = Literal["retrieval", "reasoning"]
Predict = Callable[[list[Episode], Tensor], tuple[Tensor, Tensor]]
"""Whole episodes and their frames to the frames after the context, and rewards (b, horizon)."""
THEN: dict[Kind, Literal["retrace", "random"]] = {"retrieval": "retrace", "reasoning": "random"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MazeTask:
    """Which mazes, how long, and on what data."""

    env: str = "memory-maze-9x9"
    conditioning: Literal["pose", "action"] = "pose"
    """What the models are told of every frame: where it is seen from, as in Po et al. 2025, so that
    memory alone is measured; or the action that led there."""
    training_dataset: tuple[str, ...] = ()
    """Minari ids or paths of training episodes; by default walks like those of the test, half of
    either kind, are recorded."""
    datasets_root: str | None = None
    """Folder of those datasets; by default Minari's own."""
    training_episodes: int = 200
    """Episodes to record where no dataset is given."""
    test_episodes: int = 16
    """Held-out mazes for each kind of task."""
    test_seed: int = 10_000_000
    """Of the first of them. Choose models on other mazes than those that are reported."""
    context: int = 400
    """Frames of the tour."""
    horizon: int = 400
    """Dreamed frames."""
    batch_size: int = 8
    num_workers: int = 2
    max_frames: int = 50_000
    """Frames kept to train the tokenizer on."""


def copy_nearest(frames: Tensor, poses: Tensor, context: int) -> Tensor:
    """What copying gives: for each later frame the context's frame of the nearest pose.

    Args:
        frames: (b, t, h, w, c) uint8. poses: (b, t, 3); an eighth of a turn counts as a cell.
        context: frames at the start that may be copied.

    Returns:
        (b, t - context, h, w, c) uint8.
    """
    step = poses[:, context:, None] - poses[:, None, :context]
    turn = torch.atan2(step[..., 2].sin(), step[..., 2].cos()).abs()
    nearest = (step[..., :2].norm(dim=-1) + turn / (math.pi / 4)).argmin(-1)
    return frames[torch.arange(len(frames), device=frames.device)[:, None], nearest]


def load_lpips() -> Any:
    """LPIPS with AlexNet where torchvision and its weights are on this machine, else None."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth"
    if importlib.util.find_spec("torchvision") is None or not weights.is_file():
        return None
    from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)


def make_walk_env(task: MazeTask) -> gymnasium.Env:
    steps = task.context + task.horizon
    return envs.make(task.env, privileged=True, max_episode_steps=steps)


def make_walk_policy(task: MazeTask, kind: Kind, env: gymnasium.Env) -> Callable[[int], Policy]:
    """What makes the policy of an episode from its seed."""
    return lambda seed: TouringExplorer(task.context, THEN[kind], seed=seed)


class MemoryMazes:
    """Memory Mazes as a task of the benchmark; episodes that are missing are recorded when needed.

    Args:
        task: its settings.
        datasets: folder for what is recorded.
        recorded: another process has recorded all that is needed.
    """

    VALIDATION_SEED, DEVELOPMENT_SEED = 20_000_000, 40_000_000
    """Far from every training seed and those of tests, so that no maze is in two."""

    def __init__(
        self,
        task: MazeTask,
        datasets: Path,
        recorded: bool = False,
        pose: PoseConfig | None = None,
    ) -> None:
        self.task = task
        self._recorded = recorded
        self.datasets = datasets
        env = make_walk_env(task)
        self.num_actions = int(env.action_space.n)  # type: ignore[attr-defined]
        self.frame_shape: tuple[int, int, int] = env.observation_space.shape  # type: ignore
        env.close()
        self.pose = pose if task.conditioning == "pose" else None
        self._colors: ColorReader | None = None
        self._lpips = load_lpips()

    @functools.cached_property
    def train(self) -> EpisodeDataset:
        """The datasets given, or walks of both kinds.

        Raises:
            ValueError: a dataset of other frames or actions.
        """
        task = self.task
        if task.training_dataset:
            given = EpisodeDataset(task.training_dataset, task.datasets_root)
            check_same_kind("training_dataset", given, task.env, self)
            return given
        count = task.training_episodes
        paths = [
            self._record("training-retrieval", "retrieval", count - count // 2, 0),
            self._record("training-reasoning", "reasoning", count // 2, count),
        ]
        return EpisodeDataset([str(p) for p in paths if p is not None])

    @functools.cached_property
    def development(self) -> dict[Kind, EpisodeDataset]:
        """Walks of neither training nor test, half as many as these."""
        return self._walks(-(-self.task.test_episodes // 2), self.DEVELOPMENT_SEED)

    @functools.cached_property
    def tests(self) -> dict[Kind, EpisodeDataset]:
        """Walks of mazes that nothing is trained on."""
        return self._walks(self.task.test_episodes, self.task.test_seed)

    def _walks(self, count: int, seed: int) -> dict[Kind, EpisodeDataset]:
        paths = {kind: self._record(f"{kind}-{seed}", kind, count, seed) for kind in THEN}
        # A folder may hold more, of calls before.
        walks = {kind: EpisodeDataset(str(path)) for kind, path in paths.items()}
        return {kind: found.select(range(min(count, len(found)))) for kind, found in walks.items()}

    def prepare(self) -> None:
        """Record what is missing now."""
        _ = self.train, self.tests, self.development

    def _record(self, label: str, kind: Kind, count: int, seed: int) -> Path | None:
        """Record what is missing of `count` walks of a kind, from seeds `seed` and up."""
        task = self.task
        if not count:
            return None
        name = f"memory/{task.env}-{label}-{task.context}-{task.horizon}-v0"
        if self._recorded:
            return self.datasets / name
        env = make_walk_env(task)
        settings = {"env": task.env, "kind": kind, "context": task.context, "seed": seed}
        writer = DatasetWriter(
            name,
            env.observation_space,
            env.action_space,
            settings,
            root=self.datasets,
            env_spec=env.spec,
            metadata={"description": f"{kind} on {task.env}", "algorithm_name": "tour"},
        )
        env.close()
        work = Task(
            name=task.env,
            make_env=functools.partial(make_walk_env, task),
            make_policy=functools.partial(make_walk_policy, task, kind),
            seed=seed,
            metadata={"env": task.env, "policy": f"tour, then {THEN[kind]}"},
        )
        total = count * (task.context + task.horizon)
        with writer, tqdm(total=total, desc=label, unit="frame", mininterval=1) as bar:
            collect(work, writer, count, task.num_workers, bar.update, lambda value: None)
        return writer.path

    def training_frames(self) -> Tensor:
        """Frames to train the tokenizer on, (n, h, w, c) uint8."""
        return spaced_frames(self.train, self.task.max_frames)

    def training_latents(self, tokenizer: Tokenizer) -> LatentEpisodes:
        """Training episodes, encoded once and kept."""
        return self._encode(tokenizer, self.train, "training")

    def validation_latents(self, tokenizer: Tokenizer) -> LatentEpisodes:
        """Walks of neither training nor test, recorded when learning rates are to be chosen."""
        path = self._record(
            "validation", "reasoning", self.task.test_episodes, self.VALIDATION_SEED
        )
        return self._encode(tokenizer, EpisodeDataset(str(path)), "validation")

    def _encode(self, tokenizer: Tokenizer, episodes: EpisodeDataset, name: str) -> LatentEpisodes:
        device = next(tokenizer.parameters()).device
        cache = self.datasets / f"latents-{name}.safetensors"
        poses = self.pose is not None
        return encode_dataset(tokenizer, episodes, cache, device=device, poses=poses)

    def reference(
        self, device: torch.device, progress: Any = lambda text: None
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What `evaluate` gives for copies of the nearest seen frame: recall without a model."""

        def copy(episodes: list[Episode], frames: Tensor) -> tuple[Tensor, Tensor]:
            poses = torch.from_numpy(np.stack([poses_of(e.infos) for e in episodes]))
            copied = copy_nearest(frames, poses.to(device), self.task.context)
            return copied, torch.zeros(copied.shape[:2])

        return self._evaluate_with(copy, device, progress)

    @torch.no_grad()
    def evaluate(
        self,
        model: WorldModel,
        progress: Any = lambda text: None,
        observed: int | None = None,
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Dream both tasks.

        Args:
            model: told poses or actions, as the task says.
            progress: called with what is being dreamed.
            observed: last frames of the tour that the model gets to see; by default all.

        Returns:
            JSON values, and arrays for the contact sheet.
        """
        return self._evaluate_with(self._dream_with(model, observed), model.device, progress)

    @torch.no_grad()
    def development_psnr(self, model: WorldModel) -> float:
        """PSNR of dreams on both kinds of `development` walks."""
        dream, task = self._dream_with(model), self.task
        scores = []
        for walks in self.development.values():
            for start in range(0, len(walks), task.batch_size):
                part = range(start, min(start + task.batch_size, len(walks)))
                episodes = [walks.episode(i, 0, task.context + task.horizon) for i in part]
                frames = torch.from_numpy(np.stack([e.frames for e in episodes])).to(model.device)
                dreamed, _ = dream(episodes, frames)
                scores += psnr(dreamed, frames[:, task.context :]).mean(1).tolist()
        return float(np.mean(scores))

    def _dream_with(self, model: WorldModel, observed: int | None = None) -> Predict:
        """Observe the tour, or its last frames, and dream on."""
        context = self.task.context
        first = 0 if observed is None else context - observed
        generator = torch.Generator(model.device).manual_seed(0)

        def dream(episodes: list[Episode], frames: Tensor) -> tuple[Tensor, Tensor]:
            told = [e.actions if self.pose is None else poses_of(e.infos) for e in episodes]
            actions = torch.from_numpy(np.stack(told)).to(model.device)
            state = model.initial_state(len(episodes))
            state = model.observe(state, actions[:, first:context], frames[:, first:context])
            return model.dream(state, actions[:, context:], generator=generator)

        return dream

    def _evaluate_with(
        self, predict: Predict, device: torch.device, progress: Any
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        if self._colors is None:
            self._colors = ColorReader(spaced_frames(self.train, 500).numpy())
        parts: dict[Kind, dict[str, Any]] = {}
        frames: dict[str, np.ndarray] = {}
        for kind in THEN:
            progress(kind)
            parts[kind], shown = self._evaluate(predict, device, kind, self._colors)
            frames |= shown if kind == "retrieval" else {}
        columns: dict[str, float | None] = {}
        for kind, values in parts.items():
            for name in ("ssim", "lpips", "psnr"):
                column = values[name]
                columns[f"{kind} {name.upper()}"] = float(np.mean(column)) if column else None
            columns[f"{kind} PSNR, seen over 64 frames ago"] = share(
                values["recall"], "psnr", 65, None
            )
            columns[f"{kind} wall colours"] = values["colors"]
            columns[f"{kind} reward recall"] = values["reward_recall"]
        main = parts["retrieval"]
        return {
            "recall": main["recall"],
            "hit": "colors",
            "chance": main["chance"],
            "chance_label": "the tour's commonest colour, everywhere",
            "psnr": main["psnr"],
            "ssim": main["ssim"],
            "columns": columns,
            "parts": parts,
        }, frames

    def _evaluate(
        self, predict: Predict, device: torch.device, kind: Kind, colors: ColorReader
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        task = self.task
        lpips = None if self._lpips is None else self._lpips.to(device)
        length = task.context + task.horizon
        gathered: dict[str, list[np.ndarray]] = {}
        for start in range(0, len(self.tests[kind]), task.batch_size):
            stop = min(start + task.batch_size, len(self.tests[kind]))
            episodes = [self.tests[kind].episode(i, 0, length) for i in range(start, stop)]
            frames = torch.from_numpy(np.stack([e.frames for e in episodes])).to(device)
            dreamed, rewards = predict(episodes, frames)
            real = frames[:, task.context :]
            values = {
                "psnr": psnr(dreamed, real).cpu().numpy(),
                "ssim": ssim(dreamed, real).cpu().numpy(),
                "distance": np.stack(
                    [
                        pose_recall_distance(
                            e.infos["agent_pos"], e.infos["agent_dir"], task.context
                        )
                        for e in episodes
                    ]
                ),
                "real_colors": colors.read(real.cpu().numpy()),
                "dreamed_colors": colors.read(dreamed.cpu().numpy()),
                "tour_colors": colors.read(frames[:, : task.context].cpu().numpy()),
                "rewards": np.stack([e.rewards[task.context :] for e in episodes]),
                "dreamed_rewards": rewards.cpu().numpy(),
            }
            if lpips is not None:
                pair = [x.flatten(0, 1).movedim(-1, 1).float() / 255 for x in (dreamed, real)]
                scores = [float(lpips(a[None], b[None])) for a, b in zip(*pair, strict=True)]
                values["lpips"] = np.array(scores).reshape(values["psnr"].shape)
            if start == 0:
                shown = {
                    "context": frames[:4, : task.context].cpu().numpy(),
                    "real": real[:4].cpu().numpy(),
                    "dreamed": dreamed[:4].cpu().numpy(),
                    "known": values["distance"][:4] >= 0,
                }
            for key, value in values.items():
                gathered.setdefault(key, []).append(value)
        all_values = {key: np.concatenate(value) for key, value in gathered.items()}
        return _summarise(all_values), shown


def commonest(colors: np.ndarray) -> np.ndarray:
    """The commonest of each row: (n, ...) int64 to (n,). Told everywhere, it takes no memory of
    places to be right as often as it is."""
    return np.array([np.bincount(row.ravel()).argmax() for row in colors])


def _summarise(values: dict[str, np.ndarray]) -> dict[str, Any]:
    """JSON values of one kind of task from arrays (n, horizon, ...)."""
    right = (values["real_colors"] == values["dreamed_colors"]).mean(-1)
    guessed = (values["real_colors"] == commonest(values["tour_colors"])[:, None, None]).mean(-1)
    hits = {"psnr": values["psnr"], "ssim": values["ssim"], "colors": right}
    far = values["distance"] > 64
    return {
        "by_maze": {
            name: {"all": by_row(hit), "seen over 64 frames ago": by_row(hit, far)}
            for name, hit in (hits | {"guess": guessed}).items()
        },
        "recall": recall_table(values["distance"], hits),
        "psnr": values["psnr"].mean(0).tolist(),
        "ssim": values["ssim"].mean(0).tolist(),
        "lpips": values["lpips"].mean(0).tolist() if "lpips" in values else [],
        "colors": float(right.mean()),
        "chance": float(guessed.mean()),
        "reward_recall": reward_recall(values["rewards"], values["dreamed_rewards"]),
    }
