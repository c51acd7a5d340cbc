"""Ends a Minecraft when whoever started it is gone: run as a script, beside the game.

    python minecraft_watchdog.py PROCESS_GROUP DIRECTORY

It reads its standard input. When that closes, on purpose or because the parent died in whatever
way, it ends the whole process group, waits for it, and removes the game's temporary directory. It
imports nothing but the standard library, so that it starts at once and can not fail with the
package.
"""

import os
import shutil
import signal
import sys
import time

PATIENCE = 5.0


def end_group(group: int, patience: float = PATIENCE) -> None:
    """Ask a process group to end, then make it.

    Args:
        group: Process group id.
        patience: Seconds between asking and killing.
    """
    deadline = time.monotonic() + patience
    how = signal.SIGTERM
    while True:
        try:
            os.killpg(group, how)
        except (ProcessLookupError, PermissionError):
            return  # nobody left
        if time.monotonic() > deadline:
            if how is signal.SIGKILL:
                return  # not even that helped: a zombie that its parent has to collect
            how, deadline = signal.SIGKILL, time.monotonic() + patience
        time.sleep(0.05)


def main() -> None:
    """Wait, then clean up."""
    group, directory = int(sys.argv[1]), sys.argv[2]
    while sys.stdin.buffer.read(1):
        pass
    end_group(group)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
