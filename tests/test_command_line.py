"""Scripts take their settings from the command line and say what is wrong in one line."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import pytest
from safetensors import SafetensorError

from experiments.command_line import run_script


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings."""

    number: int = 1
    """A number."""


def test_settings_reach_the_script() -> None:
    seen: list[Config] = []
    run_script(seen.append, Config, None, arguments=["--number", "3"])
    presets = {"few": ("Few.", Config(number=2)), "many": ("Many.", Config(number=9))}
    run_script(seen.append, presets, None, arguments=["many"])
    run_script(seen.append, presets, None, arguments=["few", "--number", "4"])
    assert seen == [Config(number=3), Config(number=9), Config(number=4)]


@pytest.mark.parametrize("presets", [False, True])
def test_help_says_what_the_script_does(presets: bool, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"only": ("Only.", Config())} if presets else Config
    with pytest.raises(SystemExit):
        run_script(print, config, "Counts to a number.", arguments=["--help"])  # type: ignore
    assert "Counts to a number." in capsys.readouterr().out


@pytest.mark.parametrize(
    "error",
    [
        *(ValueError("it is 3"), FileNotFoundError("no 3"), RuntimeError("3!")),
        FloatingPointError("the loss is nan"),
        SafetensorError("the disk is full"),
        gymnasium.error.Error("Seed must be greater or equal to zero"),
    ],
)
def test_errors_are_one_message(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: Config) -> None:
        raise error

    monkeypatch.delenv("WORLDSIM_DEBUG", raising=False)
    with pytest.raises(SystemExit, match=f"error: {error}"):
        run_script(fail, Config, None, arguments=[])
    monkeypatch.setenv("WORLDSIM_DEBUG", "1")
    with pytest.raises(type(error)):
        run_script(fail, Config, None, arguments=[])


def test_modules_of_the_current_folder_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lies_here.py").write_text("answer = 42\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    found: list[int] = []
    run_script(
        lambda _: found.append(importlib.import_module("lies_here").answer),
        Config,
        None,
        arguments=[],
    )
    assert found == [42]


def test_mistakes_of_ours_keep_their_traceback() -> None:
    def fail(config: Config) -> None:
        raise KeyError("colour")

    with pytest.raises(KeyError):
        run_script(fail, Config, None, arguments=[])


def test_stopping_says_what_is_left() -> None:
    def stop(config: Config) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="stopped; half of it is there"):
        run_script(stop, Config, None, stopped="half of it is there", arguments=[])
