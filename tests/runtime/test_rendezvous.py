"""The coordinator's port: processes that come, strangers that do, and those that are neither."""

import json
import socket
import threading
import time

import pytest

from score_st.config import ConfigError
from score_st.runtime import rendezvous

OWN = {"process": 0, "host": "first", "settings": {"k": 1.0}}
ONE = {"process": 1, "host": "second", "settings": {"k": 1.0}}


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setenv("SCORE_ST_TOKEN", "of this run")
    with socket.socket() as free:
        free.bind(("", 0))
        return f"localhost:{free.getsockname()[1]}"


def connected(address: str) -> socket.socket:
    host, port = address.split(":")
    end = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection((host, int(port)), 5)
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.01)


def gathered(address: str, count: int = 2, limit: float = 10) -> tuple[threading.Thread, list]:
    """Starts process 0, whose list gets what `gather` returns or raises."""
    result: list = []

    def work():
        try:
            result.append(rendezvous.gather(address, count, OWN, limit))
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, result


def without_token(message: dict) -> bytes:
    return json.dumps(message).encode() + b"\n"


STRANGERS = {
    "silent": b"",
    "garbage": bytes(range(256)) + b"\n",
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "endless": b"x" * 3 * rendezvous.LONGEST,
    "nested": b"[" * 100_000 + b"\n",
    "no object": b"[1]\n",
    "without the token": without_token(ONE),
    "another run": without_token({"token": "0" * 64, **ONE}),
    "unfinished": without_token(ONE)[:20],
}


@pytest.mark.parametrize("name", STRANGERS)
def test_strangers_are_turned_away(address, name):
    """Three of a kind come first and stay; process 1 is let in at once, and none of them is answered."""
    thread, result = gathered(address)
    strangers = [connected(address) for _ in range(3)]
    for stranger in strangers:
        try:
            stranger.sendall(STRANGERS[name])
        except OSError:  # it was closed before all was sent
            assert name == "endless"
    began = time.monotonic()
    assert rendezvous.greet_first(address, 2, ONE, 10)
    thread.join(5)
    assert result == [None] and time.monotonic() - began < 4
    for stranger in strangers:
        stranger.settimeout(5)
        try:
            assert stranger.recv(100) == b""
        except ConnectionResetError:
            pass
        stranger.close()


@pytest.mark.parametrize("number", [0, -1, 2, 10**30, True, "1", 1.0, None, [1]])
def test_a_wrong_number_is_no_process(address, number):
    assert rendezvous.greeting(rendezvous.line(ONE), 2) == {"token": rendezvous.token(), **ONE}
    assert rendezvous.greeting(rendezvous.line(ONE | {"process": number}), 2) is None


@pytest.mark.parametrize("change", [{"settings": [1]}, {"host": 3}, {"settings": None}])
def test_a_greeting_of_another_form_is_none(address, change):
    assert rendezvous.greeting(rendezvous.line(ONE | change), 2) is None


def test_nobody_takes_the_place_of_a_process(address):
    """A second process 1 is closed, with whatever settings; one that comes after the first has died is let in."""
    thread, result = gathered(address, count=3)
    first, second = connected(address), connected(address)
    first.sendall(rendezvous.line(ONE))
    time.sleep(0.2)
    second.sendall(rendezvous.line(ONE | {"settings": {"k": 3.0}}))
    assert second.recv(10) == b""
    first.close()
    time.sleep(0.2)
    others = [
        threading.Thread(target=rendezvous.greet_first, args=(address, 3, ONE | {"process": number}, 10), daemon=True)
        for number in (1, 2)
    ]
    for other in others:
        other.start()
    thread.join(5)
    assert result == [None]


def test_a_process_that_differs_is_named_to_all(address):
    thread, result = gathered(address)
    assert not rendezvous.greet_first(address, 2, ONE | {"settings": {"k": 2.0}}, 10)
    thread.join(5)
    assert isinstance(result[0], ConfigError)
    assert str(result[0]) == "process 1 on second differs from process 0: k=2.0 (not 1.0)"


def test_strangers_are_counted_where_a_process_does_not_come(address):
    thread, result = gathered(address, limit=1.5)
    with connected(address) as stranger:
        stranger.sendall(b"hello\n")
        assert stranger.recv(10) == b""
    thread.join(5)
    assert str(result[0]).endswith("did not come within 1.5 s (SCORE_ST_START_TIMEOUT); 1 others were turned away")


@pytest.mark.parametrize("answer", [b"", b"null\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b'{"verdict": null}\n'])
def test_a_stranger_is_not_process_0(address, answer):
    """Something else that listens at the address: process 1 asks again until its time is up."""
    with socket.create_server(("", int(address.split(":")[1]))) as server:

        def serve():
            while True:
                try:
                    connection = server.accept()[0]
                except OSError:
                    return
                with connection:
                    connection.recv(1000)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(rendezvous.Missing, match="process 0 of 2 did not answer within 1 s"):
            rendezvous.greet_first(address, 2, ONE, 1)
