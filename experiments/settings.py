"""Settings of scripts: their defaults, and whether what was kept before was made with the same."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import worldsim.checkpoint as checkpoint
from experiments.report import read_json

Settings = dict[str, Any]
"""What decides a result, by name."""


def as_json(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def defaults_of(config: Any) -> dict[str, Any]:
    """Defaults of a config dataclass by field; fields without are left out."""
    defaults = {}
    for field in dataclasses.fields(config):
        if field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory()
        elif field.default is not dataclasses.MISSING:
            defaults[field.name] = field.default
    return defaults


def refuse_given(config: Any, names: Iterable[str], why: str) -> None:
    """Refuse settings that were given where they are of no use.

    Raises:
        ValueError: "NAME WHY", of the first that is not at its default.
    """
    defaults = defaults_of(config)
    for name in names:
        if getattr(config, name) != defaults[name]:
            raise ValueError(f"{name} {why}")


def settings_as_json(settings: Settings) -> dict[str, Any]:
    """Settings as plain JSON values, as results keep them."""
    return {name: checkpoint.to_json(value) for name, value in settings.items()}


def same_setting(setting: Any, kept: Any) -> bool:
    """Whether a setting is what was kept of it as JSON.

    Fields of a config dataclass that were not known then were at their defaults.
    """
    if not dataclasses.is_dataclass(setting):
        return json.loads(json.dumps(setting, default=str)) == kept
    try:
        return setting == checkpoint.from_json(type(setting), kept)
    except checkpoint.CheckpointError:
        return False


def same_settings(settings: Settings, kept: dict[str, Any]) -> bool:
    """Whether settings are those of kept JSON; what that does not know yet was at its default.

    Args:
        settings: config dataclasses by name.
        kept: from `settings_as_json`.
    """
    return all(same_setting(setting, kept.get(name, {})) for name, setting in settings.items())


def is_done(path: Path, settings: Settings) -> bool:
    """Whether a result is there; settings that it does not know yet were at their defaults.

    Raises:
        ValueError: there is one of other settings.
    """
    if (kept := read_json(path)) is None:
        return False
    if not same_settings(settings, kept.get("settings", {})):
        raise ValueError(
            f"{path} is the result of other settings: choose another --output and --work, or move "
            "it away"
        )
    return True
