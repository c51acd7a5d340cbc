"""What the tests of MineRL share: a stand-in server, and envs of the real client that talk to it.

Importing this skips the importing module where the client is not installed.
"""

import warnings
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from envs.minecraft_standin import StandInMinecraft

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("minerl", reason="no minerl client: python -m envs.minerl_setup")

from envs.minerl import MineRLEnv

QUICK = {"reset_timeout": 60.0, "launch_timeout": 60.0, "restart_backoff": 0.01}
FORWARD = 6  # in the table dreamerv3


@pytest.fixture
def server() -> Iterator[StandInMinecraft]:
    server = StandInMinecraft(record=True).start()
    yield server
    server.stop()


@pytest.fixture
def make(server: StandInMinecraft) -> Iterator[type]:
    """Makes envs that talk to `server`, or to another Minecraft, and closes them."""
    made = []

    def make_env(name: str = "minerl-navigate-dense", **options: object) -> MineRLEnv:
        env = MineRLEnv(name, **{"minecraft": str(server.port), **QUICK, **options})  # type: ignore[arg-type]
        made.append(env)
        return env

    yield make_env  # type: ignore[misc]
    for env in made:
        pids = env.pids
        env.close()
        assert env.pids == []
        assert not [pid for pid in pids if psutil.pid_exists(pid)], "a process was left behind"


def frames_of(server: StandInMinecraft) -> np.ndarray:
    pixels = np.frombuffer(b"".join(sent.frame for sent in server.sent), np.uint8)
    return pixels.reshape(-1, 64, 64, 3)[:, ::-1]
