"""Installs the MineRL client, and says what real Minecraft still needs on this machine.

    python -m envs.minerl_setup            install the client (once), then report
    python -m envs.minerl_setup --check    report only
    python -m envs.minerl_setup --real     the prebuilt patched wheel instead, with the game's mod

minerl 0.4.4 pins packages of 2021 that no longer install, but works with today's when its
dependencies are installed first, the old gym and minerl without theirs, and minerl's build of the
Java mod is switched off (READTHEDOCS=1 is its own switch for that). That is enough for the client,
and with the stand-in for everything but the game.

The game: JDK 8, a display (or xvfb), and the compiled mod. Building the mod from the package of
PyPI has been broken since 2024, when one of its build dependencies vanished from the net. `--real`
installs the patched wheel that DreamerV3 uses (Python 3.11, Linux, from GitHub); it is not tested
where this was written, nor is the Dockerfile (`Dockerfile`) that puts it all
together. Minecraft itself is downloaded by the mod when it first starts; it is licensed by Mojang.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys

DEPENDENCIES = (
    "lxml",
    "psutil",
    "Pyro4",
    "coloredlogs",
    "dill",
    "daemoniker",
    "xmltodict",
    "inflection",
    "jinja2",
    "filelock",
    "tqdm",
    "requests",
    "opencv-python-headless",
)
GYM = "gym==0.17.3"
MINERL = "minerl==0.4.4"
PATCHED_WHEEL = (
    "https://github.com/danijar/minerl/releases/download/v0.4.4-patched/"
    "minerl_mirror-0.4.4-cp311-cp311-linux_x86_64.whl"
)
MODS = ("Malmo/Minecraft/build/libs/*.jar", "MCP-Reborn/build/libs/*.jar")  # minerl 0.4 and 1.0


def is_installed() -> bool:
    """Whether the client can be imported."""
    return _version("minerl") is not None and _version("gym") is not None


def _version(package: str) -> str | None:
    for name in (package, f"{package}_mirror"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def java_version() -> int | None:
    """The major version of the `java` on the path, 8 for 1.8, or None if there is none."""
    if shutil.which("java") is None:
        return None
    try:
        answer = subprocess.run(
            ["java", "-version"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_java_version(answer.stderr + answer.stdout)


def parse_java_version(text: str) -> int | None:
    """Read the major version out of what `java -version` prints."""
    match = re.search(r'version "(\d+)(?:\.(\d+))?', text)
    if match is None:
        return None
    major = int(match[1])
    return int(match[2]) if major == 1 and match[2] else major


def has_display() -> bool:
    """Whether the game can open a window, real or virtual."""
    headless = os.environ.get("MINERL_HEADLESS") == "1" and shutil.which("xvfb-run") is not None
    return bool(os.environ.get("DISPLAY")) or headless


def has_mod() -> bool:
    """Whether the installed client carries the compiled mod of the game."""
    spec = importlib.util.find_spec("minerl")
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    return any(any(pathlib.Path(place).glob(mod)) for place in places for mod in MODS)


def missing_for_minecraft() -> list[str]:
    """What launching the real game lacks, one sentence each; empty if nothing is known to."""
    problems = []
    java = java_version()
    if java is None:
        problems.append("There is no Java: install JDK 8 (Ubuntu: apt install openjdk-8-jdk).")
    elif java != 8:
        problems.append(f"Java is version {java}: MineRL's Minecraft needs 8, first on the PATH.")
    if not has_display():
        problems.append(
            "There is no display: set DISPLAY, or install xvfb and set MINERL_HEADLESS=1."
        )
    if not has_mod():
        problems.append(
            "The installed minerl has no compiled mod: run python -m envs.minerl_setup --real "
            "(Python 3.11 on Linux), or see the README for other ways."
        )
    return problems


def install_commands(real: bool = False) -> list[list[str]]:
    """The pip commands that install the client, in order, each without the interpreter.

    Args:
        real: The patched prebuilt wheel instead of the client of PyPI.
    """
    quiet = ["-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    return [
        [*quiet, *DEPENDENCIES],
        [*quiet, "--no-deps", GYM],
        [*quiet, "--no-deps", *(["--force-reinstall", PATCHED_WHEEL] if real else [MINERL])],
    ]


def install(real: bool = False) -> None:
    """Install the client into the running interpreter's environment.

    Raises:
        RuntimeError: A command failed; the text has its output.
    """
    if importlib.util.find_spec("pip") is None:
        _run(["-m", "ensurepip"])
    for command in install_commands(real):
        _run(command)
    _run(["-c", "import minerl.env._singleagent, minerl.herobraine.envs"])


def _run(command: list[str]) -> None:
    # READTHEDOCS makes minerl's setup.py leave out the Java build.
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "READTHEDOCS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        line = " ".join([sys.executable, *command])
        raise RuntimeError(f"this failed:\n  {line}\n{(done.stdout + done.stderr)[-3000:]}")


def report() -> str:
    """Describe what is there and what is missing."""
    minerl, gym = _version("minerl"), _version("gym")
    lines = [f"MineRL client: {f'minerl {minerl}, gym {gym}' if is_installed() else 'missing'}"]
    problems = missing_for_minecraft()
    if not problems:
        lines.append("Minecraft: Java 8, a display and the mod are there.")
    else:
        lines.append("Minecraft can not be launched here:")
        lines += [f"  - {problem}" for problem in problems]
    if is_installed():
        lines.append(
            "Without Minecraft, minecraft='stand-in' plays Navigate and Treechop in a small "
            "simulation that is not Minecraft."
        )
    else:
        lines.append("To install the client: python -m envs.minerl_setup")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Install what is asked for and print the report; exits with 1 if installing fails."""
    parser = argparse.ArgumentParser(
        prog="python -m envs.minerl_setup", description="Install the MineRL client."
    )
    parser.add_argument("--check", action="store_true", help="report only")
    parser.add_argument("--real", action="store_true", help="the patched wheel with the mod")
    options = parser.parse_args(arguments)
    if not options.check and (options.real or not is_installed()):
        if options.real and (sys.version_info[:2] != (3, 11) or sys.platform != "linux"):
            sys.exit("the patched wheel is for Python 3.11 on Linux; see the README for other ways")
        print("installing the MineRL client, a download of some 100 MB", flush=True)
        try:
            install(options.real)
        except RuntimeError as error:
            sys.exit(str(error))
        importlib.invalidate_caches()
    print(report())


if __name__ == "__main__":
    main()
