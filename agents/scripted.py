"""The scripted player of every environment that has one."""

from agents.compass_follower import CompassFollower
from agents.explorers import ExplorerConfig, ScriptedExplorer


def has_scripted_player(env: str) -> bool:
    """Whether there is a scripted player for an environment of this name."""
    return env.startswith(("memory-maze-", "minerl-navigate"))


def env_options(env: str) -> dict[str, bool]:
    """With which a real env shows its hidden state to its scripted player."""
    return {"privileged": True} if env.startswith("memory-maze-") else {}


def scripted_player(
    env: str, seed: int = 0, explorer: ExplorerConfig | None = None
) -> ScriptedExplorer | CompassFollower:
    """Make the scripted player of an environment.

    Args:
        env: Name of the environment.
        seed: Of the player's own randomness.
        explorer: How it moves, in the Memory Maze.

    Raises:
        ValueError: There is none for this environment.
    """
    if env.startswith("memory-maze-"):
        return ScriptedExplorer(explorer, seed=seed)
    if env.startswith("minerl-navigate"):
        return CompassFollower(seed=seed)
    raise ValueError(
        f"there is no scripted player for {env!r}, only for Memory Mazes and MineRL's Navigate "
        "tasks: use the random policy or a saved one"
    )
