"""The rules that keep the project readable: imports point one way, files are small and named."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Room: the rooms of ours that it may import.
MAY_IMPORT = {
    "worldsim": {"worldsim"},
    "envs": {"envs"},
    "agents": {"agents", "worldsim"},
    "experiments": {"experiments", "agents", "envs", "worldsim"},
}
MAX_LINES = 420
FILES = sorted(path for room in MAY_IMPORT for path in (ROOT / room).rglob("*.py"))


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            rooms.add(path.relative_to(ROOT).parts[0] if node.level else node.module.split(".")[0])
    return rooms & MAY_IMPORT.keys()


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 10


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    assert imported_rooms(path) <= MAY_IMPORT[room]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_small_and_have_a_purpose(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}
    assert ast.get_docstring(ast.parse(text)), "a file says in its first lines what it is for"


LIBRARIES = [p for p in FILES if p.relative_to(ROOT).parts[0] != "experiments"]


@pytest.mark.parametrize("path", LIBRARIES, ids=lambda p: str(p.relative_to(ROOT)))
def test_libraries_do_not_print(path: Path) -> None:
    text = path.read_text()
    if 'if __name__ == "__main__":' in text:
        pytest.skip("a program")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{path}:{node.lineno} prints"
