"""What comes to the port where processes meet."""

import contextlib
import json
import socket
import struct
import threading
import time

from hypothesis import strategies as st
from support import hostile

from fuzzing import Silent, sound

PORTS = iter(range(20_000, 32_000))


@st.composite
def meetings(draw) -> tuple[list[tuple[bytes, str]], list[bytes]]:
    """What strangers send to process 0 and how they end, and what another program answers process 1."""
    from score_st.runtime import rendezvous

    right = {"token": rendezvous.token(), "process": 1, "host": "h", "settings": {"seed": 0}}
    answer = {"token": rendezvous.token(), "verdict": None}
    wrong = right | {"token": "0" * 64}

    def lines(message: dict) -> st.SearchStrategy[bytes]:
        text = rendezvous.line(message)
        damaged = hostile.changed({key: message[key] for key in message if key != "token"}).map(
            lambda tree: (
                json.dumps({"token": message["token"], **tree} if isinstance(tree, dict) else tree).encode() + b"\n"
            )
        )
        return st.one_of(hostile.mutated([text]), damaged, st.sampled_from([text, text[:-1], text * 2, b"\n" + text]))

    http = st.sampled_from(
        [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"SSH-2.0-x\r\n", b"\0" * 2**20]
    )
    odd = st.sampled_from(hostile.ODD).map(lambda text: text + b"\n")
    sent = st.one_of(
        lines(wrong), st.binary(max_size=60), odd, http, hostile.trees.map(lambda t: json.dumps(t).encode() + b"\n")
    )
    strangers = st.lists(st.tuples(sent, st.sampled_from(("close", "reset", "hold", "half"))), min_size=1, max_size=4)
    answers = st.one_of(st.just([]), st.just([]), st.lists(st.one_of(sent, lines(answer)), min_size=1, max_size=1))
    return draw(strangers), draw(answers)


def meeting(strangers: list[tuple[bytes, str]], answers: list[bytes]) -> None:
    """Process 0 and 1 meet though strangers come first; process 1 meets another program that answers."""
    from score_st.runtime import rendezvous

    own, ends, problems = {"host": "h", "settings": {"seed": 0}}, list[socket.socket](), list[BaseException]()
    port = next(PORTS)
    address = f"127.0.0.1:{port}"

    def first() -> None:
        try:
            rendezvous.gather(address, 2, own | {"process": 0}, 20)
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    for content, end in strangers:
        stranger = connected(port)
        with contextlib.suppress(OSError):
            stranger.settimeout(5)
            stranger.sendall(content)
            if end == "half":
                stranger.shutdown(socket.SHUT_WR)
            if end == "reset":
                stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        ends.append(stranger)
        if end in ("close", "reset"):
            stranger.close()
    try:
        agreed = rendezvous.greet_first(address, 2, own | {"process": 1}, 20)
        thread.join(20)
        sound(agreed and not thread.is_alive() and not problems, f"process 1 is not let in: {problems}")
    finally:
        for stranger in ends:
            stranger.close()
    for content in answers:
        with socket.create_server(("127.0.0.1", 0)) as server:
            threading.Thread(target=impostor, args=(server, content)).start()
            try:
                result = rendezvous.greet_first(f"127.0.0.1:{server.getsockname()[1]}", 2, own | {"process": 1}, 0.25)
                sound(type(result) is bool, "neither True nor False")
            except rendezvous.Missing as error:
                sound("\n" not in str(error), "not one line")


def connected(port: int) -> socket.socket:
    for _ in range(2000):
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", port), 5)
        time.sleep(0.005)
    raise Silent("nobody listens")


def impostor(server: socket.socket, content: bytes) -> None:
    with contextlib.suppress(OSError), server.accept()[0] as connection:
        connection.settimeout(2)
        connection.recv(2**16)
        connection.sendall(content)
