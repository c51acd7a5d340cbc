"""Names of policies that scripts take, besides the files of saved ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

SCRIPTED = ("random", "explorer")
"""They need no world model."""
BEHAVIOURS = ("walker", "behaviour")
"""What a world model does by itself, without a planner."""
OF_MODELS = ("planner", *BEHAVIOURS)
"""All that act by a world model and need no training."""


def why_unknown(name: str, known: Sequence[str]) -> str | None:
    """Why there is no policy of that name, if so: neither known nor the file of a saved one."""
    if name in known or Path(name).is_file():
        return None
    if Path(name).suffix in (".zip", ".safetensors"):
        return f"there is no saved policy {name}"
    return f"unknown policy {name!r}: choose {', '.join(known)}, or a saved policy's file"
