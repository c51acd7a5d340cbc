"""Starting and ending the Minecraft that a MineRL env talks to, so that nothing is left behind.

Three kinds, chosen by `minecraft=`:

    "launch"     the real game, launched by the MineRL client (needs Java 8 and a display)
    "stand-in"   the server of `envs.minecraft_standin`, which is not Minecraft
    "9000", "host:9000"   whatever listens there already; it is used but never ended

A launched game is watched by a small process that ends it when this one is gone for any reason,
SIGKILL included; the stand-in ends by itself when its standard input closes.
"""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from minerl.env.malmo import InstanceManager

from envs import minerl_setup
from envs.minerl_client import Instance, MinecraftFault

ROOT = pathlib.Path(__file__).resolve().parent.parent
PORT_LINE = "Start MalmoEnvServer on port "
Result = TypeVar("Result")
_directories = threading.Lock()


class LaunchedInstance(Instance):
    """A real Minecraft started by the client, with our watchdog instead of the client's."""

    def __init__(self) -> None:
        super().__init__(port=_free_port(), existing=False)
        self.watchdog: subprocess.Popen[bytes] | None = None

    def _launch_minecraft(self, *arguments: Any, **options: Any) -> Any:
        process = super()._launch_minecraft(*arguments, **options)
        script = str(pathlib.Path(__file__).with_name("minecraft_watchdog.py"))
        self.watchdog = subprocess.Popen(
            [sys.executable, script, str(process.pid), str(self.instance_dir)],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us, not for it
        )
        return process

    def end(self) -> None:
        """End the game and everything it started, and remove its directory."""
        self.running = False
        if self.watchdog is not None and self.watchdog.stdin is not None:
            self.watchdog.stdin.close()
            while self.watchdog.poll() is None:
                if self.minecraft_process is not None:
                    self.minecraft_process.poll()  # collect it, or the watchdog waits for a zombie
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.watchdog.wait(0.05)
            self.watchdog = None


class Minecraft:
    """Owns at most one running Minecraft.

    Args:
        minecraft: Which kind, see the module.
        minecraft_dir: Folder whose `launchClient.sh` starts the game, for "launch"; None takes the
            one inside of the installed minerl.
        launch_timeout: Seconds that starting may take.
        standin_faults: JSON with fields of `envs.minecraft_standin.Faults`, for "stand-in".

    Raises:
        ValueError: `minecraft` is none of the kinds.
    """

    def __init__(
        self,
        minecraft: str,
        minecraft_dir: str | None = None,
        launch_timeout: float = 600.0,
        standin_faults: str = "{}",
    ) -> None:
        self.kind = minecraft
        self.minecraft_dir = minecraft_dir
        self.launch_timeout = launch_timeout
        self.standin_faults = standin_faults
        self._process: subprocess.Popen[bytes] | None = None
        self._instance: Instance | None = None
        self._lock_file: Any = None
        host, _, port = minecraft.rpartition(":")
        self._host = host or "127.0.0.1"
        self._port = int(port) if port.isdecimal() else None
        if self._port is None and minecraft not in ("launch", "stand-in"):
            raise ValueError(
                f"minecraft must be 'launch', 'stand-in', 'PORT' or 'HOST:PORT', got {minecraft!r}"
            )

    @property
    def pids(self) -> list[int]:
        """The processes started and not yet ended, watchdog included."""
        found = [] if self._process is None else [self._process.pid]
        if isinstance(self._instance, LaunchedInstance):
            owned = (self._instance.minecraft_process, self._instance.watchdog)
            found += [process.pid for process in owned if process is not None]
        return found

    def start(self) -> Instance:
        """Start, or find, the Minecraft.

        Returns:
            The instance, not connected to yet.

        Raises:
            MinecraftFault: It did not start, or not in time.
            RuntimeError: The machine lacks what the game needs, or another env uses the port.
        """
        self.stop()
        if self._port is not None:
            self._take_port(self._port)
            self._instance = Instance(port=self._port, existing=True)
            self._instance._host = self._host
        elif self.kind == "stand-in":
            self._instance = Instance(port=self._start_standin(), existing=True)
            self._instance._host = "127.0.0.1"
        else:
            self._launch()
        assert self._instance is not None
        return self._instance

    def stop(self) -> None:
        """End what was started here; does nothing if nothing was."""
        instance, self._instance = self._instance, None
        if instance is not None:
            instance.disconnect()
        if isinstance(instance, LaunchedInstance):
            instance.end()
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    def _start_standin(self) -> int:
        command = [sys.executable, "-m", "envs.minecraft_standin", "--exit-with-parent"]
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            [*command, "--faults", self.standin_faults],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        self._process = process

        def read_port() -> int:
            assert process.stdout is not None
            for line in process.stdout:
                if PORT_LINE in line.decode():
                    return int(line.decode().split(PORT_LINE)[1])
            raise MinecraftFault("the stand-in ended before it listened")

        return _within(self.launch_timeout, read_port, "launch of the stand-in", self.stop)

    def _launch(self) -> None:
        if self.minecraft_dir is None:
            problems = minerl_setup.missing_for_minecraft()
            if problems:
                raise RuntimeError(
                    "Minecraft can not be launched here: " + " ".join(problems) + " For help run "
                    "python -m envs.minerl_setup --check. Without Minecraft there is only the "
                    "stand-in: minecraft='stand-in'."
                )
        # The client writes the game's log into the working directory unless told otherwise.
        logs = os.path.join(tempfile.gettempdir(), "worldsim-minecraft")
        os.environ.setdefault("MALMO_MINECRAFT_OUTPUT_LOGDIR", logs)
        instance = LaunchedInstance()
        self._instance = instance

        def launch() -> None:
            try:
                with _minecraft_dir(self.minecraft_dir):
                    # daemonize leaves out the client's watcher process and exit hook.
                    instance.launch(daemonize=True, replaceable=False)
            except (OSError, EOFError, RuntimeError, ValueError) as error:
                raise MinecraftFault(f"Minecraft did not start: {str(error)[-500:]}") from error

        _within(self.launch_timeout, launch, "launch", self.stop)

    def _take_port(self, port: int) -> None:
        """Make sure that no other env of this machine talks to the same instance.

        A second connection would end the first one's episode, since an instance has one mission.
        """
        try:
            import fcntl
        except ImportError:  # Windows: the mission of whoever came first ends
            return
        path = os.path.join(tempfile.gettempdir(), f"worldsim-minecraft-{self._host}-{port}.lock")
        lock_file = open(path, "w")
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock_file.close()
            raise RuntimeError(
                f"another env is using the Minecraft at {self._host}:{port}; "
                "every env needs its own, so give --num-workers 1 where there is one"
            ) from error
        self._lock_file = lock_file


def _within(
    seconds: float, function: Callable[[], Result], what: str, give_up: Callable[[], None]
) -> Result:
    """Run something that may block, for a limited time.

    Args:
        seconds: The limit.
        function: What to run, in a thread of its own.
        what: Its name for the error.
        give_up: Called when it has failed or is late; has to make a late one return.

    Raises:
        MinecraftFault: It did not return in time.
    """
    results: list[Result] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(function())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    late = thread.is_alive()
    if results and not late:
        return results[0]
    give_up()
    thread.join(5.0)  # what it was waiting for has just been ended
    if late:
        raise MinecraftFault(f"timeout: {what} took longer than {seconds:g} s")
    raise errors[0]


@contextlib.contextmanager
def _minecraft_dir(directory: str | None) -> Iterator[None]:
    """Point the client's launcher, one for the whole process, to another folder."""
    with _directories:
        before = InstanceManager.MINECRAFT_DIR
        if directory is not None:
            InstanceManager.MINECRAFT_DIR = os.path.abspath(directory)
        try:
            yield
        finally:
            InstanceManager.MINECRAFT_DIR = before


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
