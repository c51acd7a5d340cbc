"""A run that can be stopped: its directory knows what is done, so that the same command goes on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from agents.rollout import EpisodeResult
from experiments.report import provenance, read_json, summarise, write_json
from experiments.settings import as_json, defaults_of, same_setting


def check_config(
    path: Path, config: Any, free_to_change: Collection[str] = (), write: bool = True
) -> None:
    """Keep a run's config in its directory, and refuse to go on with another.

    Args:
        path: directory of the run, made if it is not there.
        config: a dataclass; what the run is.
        free_to_change: fields of it that may differ when the run goes on.
        write: whether this process is the one that writes.

    Raises:
        ValueError: the directory holds a run with another config.
    """
    path.mkdir(parents=True, exist_ok=True)
    new, old = as_json(config), read_json(path / "config.json")
    if old is not None:
        then = defaults_of(config) | old  # settings that were not there yet were at their defaults

        def same(name: str) -> bool:
            setting = getattr(config, name)
            return same_setting(setting, old[name]) if name in old else setting == then.get(name)

        changed = [k for k in new if k not in free_to_change and not same(k)]
        if changed:
            changes = ", ".join(f"{k}: {then.get(k)} there, {new[k]} now" for k in changed)
            raise ValueError(
                f"{path} holds a run with another config ({changes}); choose another --output"
            )
    if write:
        write_json(path / "config.json", new)


class RunDirectory:
    """The directory of one run.

    Args:
        path: made if it is not there.
        config: a dataclass; what the run is.
        free_to_change: fields of it that may differ when the run goes on.

    Raises:
        ValueError: the directory holds a run with another config.
    """

    def __init__(self, path: Path, config: Any, free_to_change: Collection[str] = ()) -> None:
        self.path = path
        self.config = config
        check_config(path, config, free_to_change)
        self._progress: dict[str, Any] = read_json(path / "progress.json") or {}
        # What a run that was killed had logged after it was last saved is dropped.
        steps = self.get("finished_timesteps", 0) + self.get("round_timesteps", 0)
        purge = steps > 0 or self.get("finished_rounds", 0) == 0
        self.writer = SummaryWriter(
            str(path / "tensorboard"), purge_step=steps + 1 if purge else None
        )

    def get(self, key: str, default: Any) -> Any:
        """Return a value that was kept, or the default."""
        return self._progress.get(key, default)

    def keep(self, **values: Any) -> None:
        """Remember values (JSON) for when the run goes on."""
        self._progress |= values
        write_json(self.path / "progress.json", self._progress)

    @property
    def evaluations(self) -> dict[str, dict[str, Any]]:
        """Summary of every evaluation that is done, by name."""
        return self.get("evaluations", {})

    def add_evaluation(
        self, name: str, policy: str, where: str, results: Sequence[EpisodeResult]
    ) -> None:
        """Keep the results of an evaluation, so that it is not run again."""
        summary = {"policy": policy, "where": where} | summarise(results) | provenance()
        self.keep(evaluations=self.evaluations | {name: summary})

    def write_results(self) -> dict[str, Any]:
        """Write results.json: config, evaluations, steps, versions, hardware; and return it.

        Where nothing has been trained or judged since it was written, it stays as it is: the code
        and the config may be others now.
        """
        file, steps = self.path / "results.json", self.get("finished_timesteps", 0)
        if (kept := read_json(file)) is not None:
            if (kept["evaluations"], kept.get("timesteps")) == (self.evaluations, steps):
                return kept
        results = {
            "config": as_json(self.config),
            "evaluations": self.evaluations,
            "timesteps": steps,
            **provenance(),
        }
        write_json(file, results)
        return results
