"""What the README and the results' README show works: Python runs, commands and links are good."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments import command_line

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "results/README.md")
README = "\n".join((ROOT / name).read_text() for name in DOCUMENTS)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def anchor(heading: str) -> str:
    """Where a heading is linked to, as GitHub names it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def commands() -> list[str]:
    """Calls of scripts, in blocks and in the text."""
    inline = [" ".join(code.split()) for code in re.findall(r"`(python [^`]+)`", README)]
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    calls = [part for line in lines for part in line.split("&&")]
    # Without the variables that are set for a call.
    found = [re.sub(r"^(\w+=\S+ )+", "", " ".join(call.split())) for call in (*calls, *inline)]
    return sorted({call for call in found if call.startswith("python experiments/")})


def test_there_is_something_to_check() -> None:
    assert len(blocks("python")) >= 6 and len(commands()) >= 10


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text())
    assert len(links) >= 5
    for link in links:
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.MULTILINE)
            assert heading in [anchor(text) for text in headings], link


@pytest.mark.parametrize("index", range(len(blocks("python"))))
def test_examples_run(index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = blocks("python")[index].replace("10_000", "1").replace("n_steps=64", "n_steps=2")
    code = code.replace('"runs/', f'"{tmp_path}/')
    code = code.replace("partial(envs.make, name)", "partial(envs.make, name, max_episode_steps=5)")
    if "__main__" in code:  # it starts processes, which import the script
        code = code.replace("num_workers=5", "num_workers=1, seeds=[1_600_000]")
        script = tmp_path / "mine.py"
        script.write_text(code)
        paths = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, str(script)], check=True, cwd=ROOT, env=paths)
        return
    monkeypatch.chdir(ROOT)
    exec(compile(code, f"README.md, example {index + 1}", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script, *arguments = shlex.split(command)[1:]
    understood: list[Any] = []
    original = command_line.run_script

    def parse(main: Any, config: Any, description: str | None, **options: Any) -> None:
        original(understood.append, config, description)

    monkeypatch.setattr(command_line, "run_script", parse)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(ROOT / script), run_name="__main__")
    assert len(understood) == 1
