"""How processes meet at SCORE_ST_COORDINATOR before JAX connects them: who does not come, and whose settings differ.

Each process sends one line of JSON, process 0 answers each with one. Whatever else connects to the port is turned
away: it neither holds up the others nor takes the place of one. All lines have a token in them, that of
SCORE_ST_TOKEN, which `launch/local.sh` draws anew for each run.
"""

import contextlib
import hashlib
import json
import os
import selectors
import socket
import sys
import time
from typing import Any

from score_st import strict_json
from score_st.config import ConfigError, differences

LONGEST = 2**20  # bytes of a line
PATIENCE = 10.0  # seconds for a line, after which the connection is closed
MOST = 256  # connections without a line; then the oldest is closed
Message = dict[str, Any]


class Missing(Exception):
    """Another process did not come in time."""


def token() -> str:
    """Returns what the lines of this run have in them, and no others."""
    return hashlib.sha256(f"score_st {os.environ.get('SCORE_ST_TOKEN', '')}".encode()).hexdigest()


def line(message: Message) -> bytes:
    """Returns a message as it is sent."""
    return json.dumps({"token": token(), **message}).encode() + b"\n"


def parsed(text: bytes) -> Message | None:
    """Returns the message of a line, or None where it is no line of this run."""
    try:
        message = strict_json.loads(text)
    except ValueError:
        return None
    return message if isinstance(message, dict) and message.get("token") == token() else None


def greeting(text: bytes, count: int) -> Message | None:
    """Returns the message with which one of `count` processes other than process 0 comes, or None; see `parsed`."""
    message = parsed(text) or {}
    types = {"process": int, "host": str, "settings": dict}
    right = all(type(message.get(key)) is kind for key, kind in types.items()) and 0 < message["process"] < count
    return message if right else None


class Door:
    """The port of process 0: all connections are served at the same time."""

    def __init__(self, server: socket.socket, count: int) -> None:
        """Waits for processes 1 ... `count` - 1 at a socket that listens."""
        self.server, self.count, self.strangers = server, count, 0
        self.pending: dict[socket.socket, tuple[bytearray, float]] = {}  # what they have sent, and until when they may
        self.members: dict[int, tuple[socket.socket, Message]] = {}
        self.selector = selectors.DefaultSelector()
        server.setblocking(False)
        self.selector.register(server, selectors.EVENT_READ)

    def serve(self, seconds: float) -> None:
        """Takes what comes within some seconds, or the first of it."""
        for key, _ in self.selector.select(seconds):
            if key.fileobj is self.server:
                with contextlib.suppress(OSError):
                    connection = self.server.accept()[0]
                    connection.setblocking(False)
                    self.selector.register(connection, selectors.EVENT_READ)
                    self.pending[connection] = bytearray(), time.monotonic() + PATIENCE
            elif isinstance(key.fileobj, socket.socket) and key.fileobj.fileno() >= 0:
                self._read(key.fileobj)
        late = [one for one, (_, end) in self.pending.items() if time.monotonic() > end]
        for connection in late or list(self.pending)[: max(len(self.pending) - MOST, 0)]:
            self._turn_away(connection)

    def _read(self, connection: socket.socket) -> None:
        try:
            content = connection.recv(2**16)
        except BlockingIOError:
            return
        except OSError:
            content = b""
        if connection not in self.pending:  # a process that has come: it waits, or has died
            self.members = {number: one for number, one in self.members.items() if one[0] is not connection}
            self._close(connection)
            return
        buffer, _ = self.pending[connection]
        buffer += content
        if content and b"\n" not in buffer and len(buffer) < LONGEST:
            return
        message = greeting(bytes(buffer).partition(b"\n")[0], self.count)
        if message is None or message["process"] in self.members:
            self._turn_away(connection)
        else:
            del self.pending[connection]
            self.members[message["process"]] = connection, message

    def _turn_away(self, connection: socket.socket) -> None:
        del self.pending[connection]
        self.strangers += 1
        self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        self.selector.unregister(connection)
        connection.close()

    def answer(self, message: Message) -> None:
        """Sends all processes a message, and closes the port once they have it."""
        for connection in list(self.pending):
            self._turn_away(connection)
        for act in (lambda one: one.sendall(line(message)), lambda one: one.recv(1)):
            for connection, _ in self.members.values():  # the other side closes first, which leaves the port free
                connection.settimeout(PATIENCE)
                with contextlib.suppress(OSError):
                    act(connection)
        for connection, _ in self.members.values():
            self._close(connection)
        self.selector.close()


def gather(address: str, count: int, own: Message, limit: float) -> None:
    """Waits as process 0 for the others, names those that don't come, and tells all whether their settings agree.

    Raises:
      ConfigError: they do not, or the port can't be had.
      Missing: not all have come within `limit` seconds.
    """
    try:
        server = socket.create_server(("", int(address.rpartition(":")[2])), backlog=max(count, 128))
    except OSError as error:
        raise ConfigError(f"{address}: can't listen there ({error.strerror}); try another port") from error
    with server:
        door, began, warn_at = Door(server, count), time.monotonic(), 30
        while missing := [str(i) for i in range(1, count) if i not in door.members]:
            waited, names = time.monotonic() - began, f"{address}: process {', '.join(missing)} of {count}"
            others = f"; {door.strangers} others were turned away" if door.strangers else ""
            if waited > limit:
                raise Missing(f"{names} did not come within {limit} s (SCORE_ST_START_TIMEOUT){others}")
            if waited > warn_at:
                print(f"{names} has not come in {waited:.0f} s{others}", file=sys.stderr, flush=True)
                warn_at += 30
            door.serve(1)
        verdict = disagreement([own, *(door.members[i][1] for i in range(1, count))])
        door.answer({"verdict": verdict})
    if verdict:
        raise ConfigError(verdict)


def greet_first(address: str, count: int, own: Message, limit: float) -> bool:
    """Reports to process 0, the other side of `gather`; returns whether it finds that the settings agree.

    Raises:
      Missing: process 0 does not answer within `limit` seconds.
    """
    end = time.monotonic() + limit
    host, _, port = address.rpartition(":")
    while (left := end - time.monotonic()) > 0:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((host, int(port)), min(left, 5)) as connection,
        ):
            connection.sendall(line(own))
            content = b""
            while b"\n" not in content and len(content) < LONGEST and (left := end - time.monotonic()) > 0:
                connection.settimeout(left)
                if not (more := connection.recv(2**16)):
                    break
                content += more
            if (answer := parsed(content)) and "verdict" in answer:
                return not answer["verdict"]
        time.sleep(0.3)
    raise Missing(f"{address}: process 0 of {count} did not answer within {limit} s (SCORE_ST_START_TIMEOUT)")


def disagreement(greetings: list[Message]) -> str | None:
    """Says which settings of a process differ from those of process 0."""
    first = greetings[0]["settings"]
    for index, one in enumerate(greetings):
        other = one["settings"]
        if differing := differences(other, first, sorted(first.keys() | other.keys())):
            return f"process {index} on {one['host']} differs from process 0: {differing}"
    return None
