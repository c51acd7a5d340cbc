"""Stable-Baselines3 in the dream: a `VecEnv` over one batched env, and its models as policies.

SB3 runs a vector of separate envs, in one process each or one after the other. A batched dream is
one object that steps all of them at once, so `BatchedVecEnv` presents it as SB3's `VecEnv`:

    envs = gymnasium.make_vec("worldsim/Dream-v0", num_envs=32, world_model="memory-maze-9x9",
                              autoreset_mode="SameStep")
    PPO("CnnPolicy", VecMonitor(BatchedVecEnv(envs))).learn(100_000)
"""

from __future__ import annotations

import base64
import glob
import hashlib
import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from agents.rollout import unbatch_infos


class BatchedVecEnv(VecEnv):
    """SB3's view of a Gymnasium vector env that resets in the same step.

    Args:
        env: a vector env in `AutoresetMode.SAME_STEP`, such as `DreamVectorEnv`.

    Raises:
        ValueError: the env resets in another way.
    """

    def __init__(self, env: VectorEnv) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"SB3 needs a vector env with autoreset_mode={AutoresetMode.SAME_STEP.value!r}, "
                f"this one has {getattr(mode, 'value', mode)!r}"
            )
        self.env = env
        self._actions: np.ndarray | None = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> VecEnvObs:
        """Reset all envs, with the seeds given to `seed` since the last reset."""
        options = [o for o in self._options if o]
        if options and any(o != options[0] for o in self._options):
            raise ValueError(f"a batched env takes the same options for all envs: {self._options}")
        seeds = None if all(s is None for s in self._seeds) else self._seeds
        observations, infos = self.env.reset(
            seed=seeds,  # type: ignore[arg-type]
            options=options[0] if options else None,
        )
        self.reset_infos = unbatch_infos(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step with the actions given to `step_async`.

        Returns:
            Observations, rewards (n,) float32, dones (n,) bool, and one info per env with
            "TimeLimit.truncated", and "terminal_observation" where the episode ended.
        """
        observations, rewards, terminated, truncated, infos = self.env.step(self._actions)
        dones = terminated | truncated
        final = infos.pop("final_obs", None)
        final_infos = unbatch_infos(infos.pop("final_info", {}), self.num_envs)
        for key in ("_final_obs", "_final_info"):
            infos.pop(key, None)
        per_env = unbatch_infos(infos, self.num_envs)
        for i in range(self.num_envs):
            if dones[i]:
                # What the batch reports for an env that ended already belongs to the new episode.
                self.reset_infos[i] = per_env[i]
                ended = final_infos[i] | {"terminal_observation": final[i]}
                if "episode" in per_env[i]:  # but for what RecordEpisodeStatistics has counted
                    ended["episode"] = per_env[i].pop("episode")
                per_env[i] = ended
            per_env[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
        return observations, np.asarray(rewards, np.float32), dones, per_env

    def close(self) -> None:
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        frames = self.env.render()
        return [None] * self.num_envs if frames is None else [np.asarray(f) for f in frames]

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The batch is one object: every env has its attributes."""
        value = getattr(self.env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the whole batch.

        Raises:
            ValueError: only some of the envs are named.
        """
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise ValueError(f"{attr_name} of a batched env cannot be set for some envs only")
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Not there: envs of a batch are not objects.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            f"the envs of a batch have no methods of their own: call .env.{method_name}() instead"
        )

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper], indices: Any = None
    ) -> list[bool]:
        return [False for _ in self._get_indices(indices)]


class SB3Policy:
    """A trained SB3 model, recurrent or not, as a policy.

    Args:
        model: the model.
        deterministic: take the most likely action instead of drawing one. DQN and its kin, whose
            draws are those of exploration in training, always take the best.
        normalize: what normalised the model's observations in training, if anything did. It is no
            part of a saved model, but `save_agent` keeps it beside.
    """

    def __init__(
        self,
        model: BaseAlgorithm,
        *,
        deterministic: bool = False,
        normalize: VecNormalize | None = None,
    ) -> None:
        self.model = model
        self.deterministic = deterministic or hasattr(model, "exploration_rate")
        self.normalize = normalize

    @classmethod
    def load(
        cls, path: str | Path, *, deterministic: bool = False, device: str = "cpu"
    ) -> SB3Policy:
        """Load a model that SB3 or `save_agent` saved, with what normalised its observations.

        Like every SB3 load, it unpickles: trust the files first.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is not a saved model, or of an algorithm not known here.
        """
        model = algorithm_of(path).load(path, device=device)
        statistics, normalize = _statistics_path(Path(path), Path(path)), None
        if statistics.is_file():
            normalize = pickle.loads(statistics.read_bytes())
        return cls(model, deterministic=deterministic, normalize=normalize)

    def act(
        self,
        observation: np.ndarray,
        state: Any,
        episode_start: np.ndarray,
        infos: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[np.ndarray, Any]:
        """Choose one action per env; see `agents.rollout.Policy`."""
        if self.normalize is not None:
            observation = np.asarray(self.normalize.normalize_obs(observation))
        return self.model.predict(
            observation, state, episode_start, deterministic=self.deterministic
        )


def save_agent(agent: BaseAlgorithm, path: Path) -> None:
    """Save an agent (.zip) in one move: a crash leaves the old file or the new one.

    Where its env is in a `VecNormalize`, that is kept beside it (.DIGEST.vecnormalize.pkl).
    """
    temporary = path.with_suffix(".tmp.zip")
    agent.save(temporary)
    statistics = _statistics_path(path, temporary)
    if (normalize := agent.get_vec_normalize_env()) is not None:
        normalize.save(str(statistics.with_suffix(".tmp")))
        statistics.with_suffix(".tmp").replace(statistics)
    temporary.replace(path)
    digest = "[0-9a-f]" * 16  # other names may begin with this one
    for other in path.parent.glob(f"{glob.escape(path.stem)}.{digest}.vecnormalize.pkl"):
        if other != statistics:  # of an agent that was there before
            other.unlink()


def _statistics_path(path: Path, content: Path) -> Path:
    """Where statistics lie beside an agent: no other agent's of that name are taken for its own."""
    digest = hashlib.sha256(content.read_bytes()).hexdigest()
    return path.with_suffix(f".{digest[:16]}.vecnormalize.pkl")


def algorithm_of(path: str | Path) -> type[BaseAlgorithm]:
    """Return the class that saved a model, told by its policy class and settings.

    That class is unpickled: trust the file first.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a saved model, or of an algorithm not known here, or its policy
            class cannot be imported.
    """
    import sb3_contrib
    import stable_baselines3
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
    from sb3_contrib.qrdqn.policies import QRDQNPolicy
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.dqn.policies import DQNPolicy

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no saved policy at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data"))
        kept = base64.b64decode(data["policy_class"][":serialized:"])
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a model saved by Stable-Baselines3: {error}") from error
    try:
        policy = pickle.loads(kept)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the policy class of {path} cannot be imported: {error}") from error
    algorithms = {
        RecurrentActorCriticPolicy: sb3_contrib.RecurrentPPO,
        ActorCriticPolicy: (
            stable_baselines3.PPO if "clip_range" in data else stable_baselines3.A2C
        ),
        DQNPolicy: stable_baselines3.DQN,
        QRDQNPolicy: sb3_contrib.QRDQN,
    }
    for known, algorithm in algorithms.items():
        if issubclass(policy, known):
            return algorithm
    raise ValueError(
        f"{path} holds a {policy.__module__}.{policy.__name__}, not a policy of PPO, RecurrentPPO, "
        "A2C, DQN or QRDQN: load it yourself and wrap it in SB3Policy"
    )
