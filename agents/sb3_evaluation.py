"""Judging an SB3 agent on the real env while it trains in the dream.

import functools, envs
from agents.sb3_evaluation import RealEnvEvaluation

if __name__ == "__main__":  # the real envs are processes, which import the script
    make_env = functools.partial(envs.make, "memory-maze-9x9")
    callback = RealEnvEvaluation(make_env, every=50_000, videos="runs/videos")
    PPO("CnnPolicy", dreams).learn(500_000, callback=callback)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import gymnasium
import imageio.v3 as iio
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from stable_baselines3.common.callbacks import BaseCallback

from agents.actor_critic import note_of, noted_world_model, world_model_note
from agents.features import FeaturePolicy, check_policy_fits, load_observer
from agents.rollout import EpisodeResult, Policy, make_parallel, rollout
from agents.sb3 import SB3Policy, save_agent
from worldsim.world_model import WorldModel


class RealEnvEvaluation(BaseCallback):
    """Plays real episodes now and then, as SB3's `EvalCallback` does on an env of its own kind.

    Logs `eval/mean_reward` and `eval/mean_ep_length`, keeps a video of the first episode of every
    evaluation, and the best agent. Observations are normalised as the agent's own env normalises
    them (SB3's `VecNormalize`).

    Args:
        make_env: makes a real env, such as `functools.partial(envs.make, "memory-maze-9x9")`.
        every: training steps between two evaluations; one is made at the end of training, too.
        world_model: whose features the agent acts on; None for an agent on frames. Of one that is
            given by its shipped name or checkpoint directory, a note is kept beside the best agent,
            with which `load_policy` and `evaluate.py` find it.
        seeds: of the real episodes, one each; the same ones every time. Those by which the best
            agent is chosen should not be those that it is judged by in the end.
        num_workers: real envs side by side, one process each; 0 plays one in this process.
        deterministic: take the most likely actions instead of drawing them.
        videos: directory of the videos, STEPS.mp4; None records none.
        best_model_save_path: file of the agent with the best mean return (.zip); None saves none.
        device: where a world model that is named is put.

    Raises:
        ValueError: `every` is below 1; or, as training starts, an agent on features without their
            world model.
        CheckpointError: there is no such world model.
    """

    def __init__(
        self,
        make_env: Callable[[], gymnasium.Env],
        *,
        every: int,
        world_model: str | Path | WorldModel | None = None,
        seeds: Sequence[int] = range(1_600_000, 1_600_005),
        num_workers: int = 2,
        deterministic: bool = False,
        videos: str | Path | None = None,
        best_model_save_path: str | Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.make_env, self.every = make_env, every
        self._note: dict[str, str] | None = None
        if isinstance(world_model, str | Path):
            self._note = world_model_note(world_model)
            world_model = load_observer(world_model, device)
        self.world_model = world_model
        self.seeds, self.num_workers, self.deterministic = list(seeds), num_workers, deterministic
        self.videos = None if videos is None else Path(videos)
        best = best_model_save_path
        self.best_path = None if best is None else Path(f"{str(best).removesuffix('.zip')}.zip")
        self.best_return = -np.inf
        self.last_results: list[EpisodeResult] = []
        self._envs: VectorEnv | None = None
        self._last = 0

    def _on_training_start(self) -> None:
        shape = self.model.observation_space.shape
        if shape is not None and len(shape) == 1 and self.world_model is None:
            raise ValueError(
                "the agent acts on a vector, and real envs show frames: give "
                "RealEnvEvaluation(..., world_model=), whose features they are"
            )
        self._last = self.num_timesteps
        if self._envs is None or self._envs.closed:
            self._envs = make_parallel(self.make_env, min(self.num_workers, len(self.seeds)))
        spaces = self._envs.single_observation_space, self._envs.single_action_space
        try:
            check_policy_fits(self._policy(), "the real env", *spaces)
        except ValueError:
            self._envs.close()
            raise

    def _on_step(self) -> bool:
        if self.num_timesteps - self._last >= self.every:
            self._evaluate()
        return True

    def _on_training_end(self) -> None:
        if self.num_timesteps > self._last:
            self._evaluate()
            self.logger.dump(self.num_timesteps)
        if self._envs is not None:
            self._envs.close()
            self._envs = None

    def _policy(self) -> Policy:
        """The agent as it is, acting on real frames."""
        policy = SB3Policy(
            self.model,
            deterministic=self.deterministic,
            normalize=self.model.get_vec_normalize_env(),
        )
        return policy if self.world_model is None else FeaturePolicy(self.world_model, policy)

    def _evaluate(self) -> None:
        assert self._envs is not None
        self._last = self.num_timesteps
        recorded = 0 if self.videos is None else 1
        results = rollout(self._policy(), self._envs, self.seeds, num_recorded=recorded)
        mean = float(np.mean([r.episodic_return for r in results]))
        self.logger.record("eval/mean_reward", mean)
        self.logger.record("eval/mean_ep_length", float(np.mean([r.length for r in results])))
        self.last_results = results
        frames = results[0].frames
        if self.videos is not None and frames is not None:
            self.videos.mkdir(parents=True, exist_ok=True)
            file = self.videos / f"{self.num_timesteps}.mp4"
            larger = frames.repeat(2, axis=1).repeat(2, axis=2)
            iio.imwrite(file, larger, plugin="FFMPEG", fps=10, macro_block_size=2)
        if self.best_path is not None and mean > self.best_return:
            self.best_path.parent.mkdir(parents=True, exist_ok=True)
            if self._note is None:
                if noted_world_model(self.best_path):  # of an agent that was there before
                    note_of(self.best_path).unlink()
            else:
                note_of(self.best_path).write_text(json.dumps(self._note) + "\n")
            save_agent(self.model, self.best_path)
        self.best_return = max(self.best_return, mean)
