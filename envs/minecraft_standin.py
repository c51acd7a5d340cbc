"""A stand-in for Minecraft: a server that speaks the MineRL client's protocol. It is not Minecraft.

Minecraft is a licensed download and needs Java and a display. This server lets the real `minerl`
client, and everything built on it, run in tests and demonstrations without it: it answers the
client's messages and plays the missions in a small voxel world (`envs.minecraft_mission`). Results
obtained through it say nothing about Minecraft and are labelled "stand-in" wherever they appear.

    python -m envs.minecraft_standin --port 9000

The protocol is that of Malmo's MalmoEnvServer 0.37.0: TCP, every message a 4-byte big-endian length
and that many bytes. As in the mod, there is one mission per server, whoever is connected. `Faults`
makes it fail in the ways in which Minecraft fails.
"""

import argparse
import dataclasses
import json
import os
import socket
import struct
import sys
import threading
import time

from envs.minecraft_mission import Mission, parse_mission

HELLO = "<MalmoEnv0.37.0/>"
LARGEST_MESSAGE = 1 << 24


@dataclasses.dataclass(kw_only=True)
class Faults:
    """Ways to fail, each at the n-th step since the server began (0 is the first), or never."""

    die_at: int | None = None
    """The server goes away without a word."""
    hang_at: int | None = None
    """The server stays connected but does not answer any more."""
    short_frame_at: int | None = None
    """A frame of the wrong size."""
    empty_frame_at: int | None = None
    """A frame of no bytes, which the client alone would turn into a black one."""
    garbage_info_at: int | None = None
    """Bytes that are not JSON where the observations should be."""
    nan_info_at: int | None = None
    """A compass angle that is not a number, which Python's JSON accepts."""
    bad_reward_at: int | None = None
    """A reward that is not a number."""
    endless_message_at: int | None = None
    """A length header that promises 4 GB."""
    trickle_at: int | None = None
    """A reply that comes one byte at a time, each in time, the whole of it never."""
    busy: int = 0
    """How many missions are refused with "busy" before one is taken."""
    hang_on_reset: bool = False
    """The first observation of a mission never comes."""


@dataclasses.dataclass(frozen=True)
class Sent:
    """One observation that the server has sent, for comparison with what an env received."""

    frame: bytes
    info: str
    reward: float
    done: bool
    first: bool


class Gone(Exception):
    """The server plays dead."""


class StandInMinecraft:
    """The server.

    Args:
        port: TCP port on the loopback interface; 0 takes a free one, see `port`.
        faults: How and when to fail; may be changed while running.
        record: Whether to keep everything sent in `sent`.
        exit_when_dying: A `die_at` fault ends the process, as a crash does.

    Attributes:
        port: Where it listens.
        sent: Every observation sent so far, if recording.
        commands: The command lines of every step so far, if recording.
    """

    def __init__(
        self,
        port: int = 0,
        faults: Faults | None = None,
        record: bool = False,
        exit_when_dying: bool = False,
    ) -> None:
        self.faults = faults if faults is not None else Faults()
        self.record = record
        self.exit_when_dying = exit_when_dying
        self.sent: list[Sent] = []
        self.commands: list[str] = []
        self.mission: Mission | None = None
        self.steps = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._connections: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]

    def start(self) -> "StandInMinecraft":
        """Serve from a thread of this process."""
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop listening and drop every connection."""
        self._stopped.set()
        # shutdown wakes a thread that is blocked in accept or recv; close alone does not.
        for connection in (self._listener, *self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            connection.close()

    def serve(self) -> None:
        """Accept connections until stopped, one thread each."""
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.append(connection)
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        try:
            if _receive(connection) == HELLO.encode():
                while self._answer(connection, _receive(connection).decode()):
                    pass
        except Gone:
            if self.exit_when_dying:
                os._exit(1)
            self.stop()
        except (OSError, EOFError, ValueError):
            pass  # as the mod does: an unreadable or broken connection is dropped
        finally:
            connection.close()

    def _answer(self, connection: socket.socket, message: str) -> bool:
        """Handle one message. Returns whether the conversation goes on."""
        if message.startswith("<StepClient"):
            with self._lock:
                self._step(connection, message)
        elif message.startswith("<StepServer"):
            pass  # never answered
        elif message.startswith("<Peek"):
            self._peek(connection)
        elif message.startswith("<MissionInit"):
            token = _receive(connection).decode()
            with self._lock:
                started = self._start_mission(message, token)
            _send(connection, struct.pack("!I", int(started)))
        elif message.startswith("<Quit"):
            with self._lock:
                idle = self.mission is None or self.mission.done
                self.mission = None
            _send(connection, struct.pack("!I", int(idle)))
        elif message.startswith("<Echo"):
            _send(connection, f"<Echo>{message}</Echo>".encode())
        elif message.startswith("<Exit"):
            _send(connection, struct.pack("!I", 1))
            raise Gone
        else:  # <Disconnect/> or nonsense
            return False
        return True

    def _start_mission(self, xml: str, token: str) -> bool:
        if self.faults.busy > 0:
            self.faults.busy -= 1
            return False
        fields = token.split(":")  # experiment:role:reset:agents:synchronous[:seed]
        seed = int(fields[5]) if len(fields) > 5 else None
        self.mission = Mission(parse_mission(xml), seed)
        return True

    def _peek(self, connection: socket.socket) -> None:
        if self.faults.hang_on_reset:
            self._stopped.wait()
            raise Gone
        mission = self.mission
        if mission is None:
            raise EOFError("no mission to look at")
        sent = Sent(mission.frame(), mission.info(), 0.0, mission.done, True)
        if self.record:
            self.sent.append(sent)
        _send(connection, sent.frame, sent.info.encode(), struct.pack("!b", sent.done))

    def _step(self, connection: socket.socket, message: str) -> None:
        step, faults = self.steps, self.faults
        self.steps += 1
        if step == faults.die_at:
            raise Gone
        if step == faults.hang_at:
            self._stopped.wait()
            raise Gone
        if self.mission is None:
            raise EOFError("no mission to step")
        lines = message[message.index(">") + 1 : message.rindex("</")]
        if self.record:
            self.commands.append(lines)
        reward = 0.0 if self.mission.done else self.mission.tick(lines)
        sent = Sent(self.mission.frame(), self.mission.info(), reward, self.mission.done, False)
        if self.record:
            self.sent.append(sent)
        frame, info = sent.frame, sent.info.encode()
        if step == faults.short_frame_at:
            frame = frame[:-7]
        if step == faults.empty_frame_at:
            frame = b""
        if step == faults.garbage_info_at:
            info = b"\xff\x00 not json"
        if step == faults.nan_info_at:
            info = b'{"compassAngle": NaN, "inventory": []}'
        if step == faults.bad_reward_at:
            reward = float("nan")
        if step == faults.endless_message_at:
            connection.sendall(struct.pack("!I", 2**32 - 1))
        if step == faults.trickle_at:
            connection.sendall(struct.pack("!I", len(frame)))
            while not self._stopped.wait(0.05):
                connection.sendall(b"\0")
        _send(connection, frame, struct.pack("!dbb", reward, sent.done, 1), info)


def _receive(connection: socket.socket) -> bytes:
    """Read one message.

    Raises:
        EOFError: The other side has gone.
        ValueError: The message is unreasonably long.
    """
    (length,) = struct.unpack("!I", _receive_exactly(connection, 4))
    if length > LARGEST_MESSAGE:
        raise ValueError(f"a message of {length} bytes")
    return _receive_exactly(connection, length)


def _receive_exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError("connection closed")
        data += part
    return bytes(data)


def _send(connection: socket.socket, *messages: bytes) -> None:
    connection.sendall(b"".join(struct.pack("!I", len(each)) + each for each in messages))


def _exit_with_parent() -> None:
    """End the process when its standard input closes, which it does when the parent has died."""
    while sys.stdin.buffer.read(1):
        pass
    os._exit(0)


def main(arguments: list[str] | None = None) -> None:
    """Serve until killed; print what the real launcher prints once it is ready."""
    parser = argparse.ArgumentParser(description="A stand-in for Minecraft. It is not Minecraft.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--faults", default="{}", help="fields of Faults as JSON")
    parser.add_argument("--exit-with-parent", action="store_true", help="end when stdin closes")
    options = parser.parse_args(arguments)
    faults = Faults(**json.loads(options.faults))
    server = StandInMinecraft(options.port, faults, exit_when_dying=True)
    if options.exit_with_parent:
        threading.Thread(target=_exit_with_parent, daemon=True).start()
    server.start()
    print("This is a stand-in for Minecraft, not Minecraft.")
    print(f"***** Start MalmoEnvServer on port {server.port}")
    print("CLIENT enter state: DORMANT", flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
