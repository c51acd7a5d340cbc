"""The real MineRL client, made to fail in one way only: by raising `MinecraftFault`.

Left alone, the client turns a dead server into a random observation, an empty frame into a black
one, a refused port into an attempt to launch Minecraft, and waits for minutes on a server that
hangs. Here the connection enforces a deadline per operation and checks every reply before the
client parses it, and the client's own ways of recovering are switched off; `envs.minerl` does the
recovering.

This module imports `minerl` and is therefore imported only when an env is made.
"""

import json
import math
import socket
import struct
import time
from typing import Any

import gym  # the old one, which the client is built on
import minerl.herobraine.envs
import numpy as np
from lxml import etree
from minerl.env._singleagent import _SingleAgentEnv
from minerl.env.malmo import MinecraftInstance
from minerl.herobraine.env_spec import EnvSpec

LARGEST_MESSAGE = 1 << 26
BUSY_PAUSE = 1.0
CLIENT_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    AssertionError,
    RuntimeError,
    struct.error,
)
"""What the client raises on replies that it can not parse."""

gym.logger.set_level(gym.logger.ERROR)


class MinecraftFault(Exception):
    """The Minecraft instance died, hung or answered nonsense; the text says which."""


def find_spec(minerl_id: str) -> EnvSpec:
    """Look up a task of the installed client.

    Args:
        minerl_id: Such as "MineRLNavigateDense-v0".

    Raises:
        ValueError: The installed version of minerl does not have it.
    """
    specs = {spec.name: spec for spec in vars(minerl.herobraine.envs).values()
             if isinstance(spec, EnvSpec)}  # fmt: skip
    if minerl_id not in specs:
        raise ValueError(
            f"the installed minerl has no task {minerl_id!r}; it has {', '.join(sorted(specs))}. "
            "BASALT and ObtainDiamondShovel in their newer form need minerl 1.0 (see "
            "python -m envs.minerl_setup)"
        )
    return specs[minerl_id]


class Instance(MinecraftInstance):
    """A Minecraft to talk to, with deadlines.

    Args:
        port: Where it listens, or where it is to be launched.
        existing: Whether it runs already; otherwise `launch` starts it.
    """

    def __init__(self, port: int, existing: bool) -> None:
        super().__init__(port=port, existing=existing)
        self._port = port
        self.role = 0
        self.frame_bytes = 0
        self.deadline = math.inf
        self._operation = "launch"
        self._replies: list[str] = []  # what the server still has to say, in order

    def begin(self, operation: str, seconds: float) -> None:
        """Start the clock: all traffic until the next `begin` has to be over in `seconds`."""
        self._operation = operation
        self.deadline = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds until the deadline.

        Raises:
            MinecraftFault: It has passed.
        """
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise MinecraftFault(f"timeout: {self._operation} took too long")
        return min(remaining, 1e6)

    def connect(self, hello: bytes) -> None:
        """Open the connection.

        Raises:
            MinecraftFault: Nothing listens there, or not in time.
        """
        try:
            connection = socket.create_connection((self.host, self.port), self.remaining())
        except OSError as error:
            raise MinecraftFault(f"no connection to {self.host}:{self.port}: {error}") from error
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client_socket = connection
        self._replies = []
        self.client_socket_send_message(hello)

    def disconnect(self) -> None:
        """Drop the connection, politely if it still works."""
        connection: socket.socket | None = self.client_socket
        self._client_socket = None
        if connection is None:
            return
        try:
            connection.settimeout(1.0)
            connection.sendall(struct.pack("!I", 13) + b"<Disconnect/>")
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is gone already
        connection.close()

    def client_socket_send_message(self, msg: bytes) -> None:
        """Send one message; the client calls this."""
        try:
            self.client_socket.settimeout(self.remaining())
            self.client_socket.sendall(struct.pack("!I", len(msg)) + msg)
        except (OSError, AttributeError) as error:
            if msg.startswith(b"<StepServer"):
                return  # the reply to this step is complete and valid; the next step will fail
            raise MinecraftFault(f"connection lost while sending: {error}") from error
        if msg.startswith(b"<StepClient"):
            self._replies = ["frame", "reward", "info"]
        elif msg.startswith(b"<Peek"):
            self._replies = ["frame", "info", "done"]

    def client_socket_recv_message(self) -> bytes:
        """Receive and check one message; the client calls this."""
        (length,) = struct.unpack("!I", self._receive(4))
        kind = self._replies.pop(0) if self._replies else "number"
        if kind == "frame" and length != self.frame_bytes:
            raise MinecraftFault(
                f"garbage: a frame of {length} bytes instead of {self.frame_bytes}"
            )
        if length > LARGEST_MESSAGE:
            raise MinecraftFault(f"garbage: a message of {length} bytes")
        message = self._receive(length)
        try:
            if kind == "reward":
                reward, done, _ = struct.unpack("!dbb", message)
                if not math.isfinite(reward) or done not in (0, 1):
                    raise ValueError(f"reward {reward}, done {done}")
            elif kind == "info":
                json.loads(message.decode("utf-8"), parse_constant=_refuse_constant)
            elif kind == "done" and message not in (b"\0", b"\1"):
                raise ValueError(f"done {message!r}")
        except (ValueError, struct.error) as error:
            raise MinecraftFault(f"garbage: {kind} does not parse: {error}") from error
        return message

    def _receive(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            try:
                self.client_socket.settimeout(self.remaining())
                part = self.client_socket.recv(min(count - len(data), 1 << 16))
            except TimeoutError as error:
                raise MinecraftFault(f"timeout: {self._operation} took too long") from error
            except (OSError, AttributeError) as error:
                raise MinecraftFault(f"connection lost while receiving: {error}") from error
            if not part:
                raise MinecraftFault("connection closed by Minecraft")
            data += part
        return bytes(data)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not an observation")


class Client(_SingleAgentEnv):
    """The MineRL client of one task, talking to one instance.

    Args:
        spec: The task.
    """

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__(env_spec=spec, is_fault_tolerant=False)
        pov = self.observation_space.spaces["pov"]
        self.frame_bytes = int(np.prod(pov.shape))

    def attach(self, instance: Instance) -> None:
        """Use this instance from the next `start` on."""
        instance.frame_bytes = self.frame_bytes
        self.instances = [instance]

    def start(self, seed: int, timeout: float) -> dict[str, Any]:
        """Begin an episode.

        Args:
            seed: Seed of the mission.
            timeout: Seconds that all of it may take, refusals of a busy instance included.

        Returns:
            The client's first observation.

        Raises:
            MinecraftFault: There will be no episode, for the reason given.
        """
        self.instances[0].begin("reset", timeout)
        self.seed(seed, seed_spaces=False)
        return self._guarded("reset", self.reset)[0]

    def advance(
        self, action: dict[str, Any], timeout: float
    ) -> tuple[dict[str, Any], float, bool, dict[str, Any]]:
        """Play one tick.

        Args:
            action: A complete action of the client's action space.
            timeout: Seconds that it may take.

        Returns:
            The client's observation, reward, done and info.

        Raises:
            MinecraftFault: The tick did not happen or can not be believed.
        """
        self.instances[0].begin("step", timeout)
        observation, reward, done, info = self._guarded("step", self.step, action)
        if "error" in info:  # the client is about to pass off a random sample as an observation
            raise MinecraftFault(f"the client gave up: {info['error']}")
        return observation, float(reward), bool(done), info

    def _guarded(self, what: str, call: Any, *arguments: Any) -> Any:
        try:
            result = call(*arguments)
        except CLIENT_ERRORS as error:
            raise MinecraftFault(f"garbage: {what} failed with {error!r}") from error
        return result if isinstance(result, tuple) else (result,)

    def detach(self) -> None:
        """Disconnect from the instance without ending it."""
        for instance in self.instances:
            instance.disconnect()
        self.instances = []

    # What follows replaces the client's own recovery, which may launch another Minecraft.

    def _setup_instances(self) -> None:
        instance = self.instances[0]
        instance.disconnect()
        instance.connect(b"<MalmoEnv0.37.0/>")
        self._TO_MOVE_quit_current_episode(instance)

    def _send_mission(self, instance: Instance, mission_xml_etree: Any, token_in: str) -> None:
        mission = etree.tostring(mission_xml_etree)
        token = f"{token_in}:{self.task.agent_count}:true:{self._seed}".encode()
        while True:
            instance.client_socket_send_message(mission)
            instance.client_socket_send_message(token)
            (accepted,) = struct.unpack("!I", instance.client_socket_recv_message())
            if accepted == 1:
                return
            # Busy: the last mission is still ending. The deadline bounds how often this happens.
            time.sleep(min(BUSY_PAUSE, instance.remaining()))
