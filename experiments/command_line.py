"""Running a script from the command line: help from its docstring, errors as one message.

With WORLDSIM_DEBUG=1 in the environment, errors come with their traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import gymnasium
import tyro
from safetensors import SafetensorError

C = TypeVar("C")

CONTINUES = "what is finished is kept, the same command continues"


EXPECTED = (
    *(FloatingPointError, OSError, RuntimeError, ValueError, gymnasium.error.Error),
    SafetensorError,  # of a full disk, too
)
"""Errors whose message says all that a user needs."""


def run_script(
    main: Callable[[C], object],
    config: type[C] | Mapping[str, tuple[str, C]],
    description: str | None,
    *,
    stopped: str = "",
    arguments: Sequence[str] | None = None,
) -> None:
    """Read a config from the command line and run a script with it.

    Args:
        main: the script.
        config: its config class, or named presets: a description and a config each.
        description: the script's docstring.
        stopped: what Ctrl-C leaves behind, to be said then.
        arguments: the command line; by default that of the process.
    """
    # Where `python -m` would find modules too: envs are registered in the user's own.
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    if isinstance(config, Mapping):
        chosen = tyro.extras.overridable_config_cli(
            dict(config), description=description, args=arguments
        )
    else:
        chosen = tyro.cli(config, description=description, args=arguments)
    try:
        main(chosen)
    except KeyboardInterrupt:
        sys.exit("\nstopped" + (f"; {stopped}" if stopped else ""))
    except EXPECTED as error:
        if os.environ.get("WORLDSIM_DEBUG"):
            raise
        sys.exit(f"error: {error}")
