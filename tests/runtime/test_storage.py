"""What is said about a bucket that is missing, refuses access, or does not answer."""

import http.server
import sys
import threading

import pytest

from score_st.config import ConfigError
from score_st.runtime import storage
from score_st.runtime.storage import Interrupted, Unreachable


@pytest.fixture
def answering(monkeypatch):
    """A server that answers everything with one status; it counts its requests."""
    servers = []

    def serve(status):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # which answers Expect: 100-continue

            def answer(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                servers[0].requests += 1
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.send_header("Connection", "close")
                self.end_headers()

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = answer

            def log_message(self, *arguments):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.requests = 0
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        storage.filesystem.cache_clear()
        return server

    yield serve
    for server in servers:
        server.shutdown()
    storage.filesystem.cache_clear()


@pytest.mark.parametrize("scheme", ["gs", "s3"])
@pytest.mark.parametrize("status", [401, 403])
def test_refused_access_is_a_wrong_request(answering, scheme, status):
    server = answering(status)
    with pytest.raises(ConfigError, match=f"{scheme}://bucket/run: access is refused .* sets the credentials"):
        storage.probe([f"{scheme}://bucket/run"], seconds=10)
    assert server.requests


@pytest.mark.parametrize("scheme", ["gs", "s3"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_or_broken_server_is_tried_again_and_not_a_wrong_request(answering, scheme, status):
    server = answering(status)
    with pytest.raises(Unreachable, match=f"{scheme}://bucket/run: does not answer"):
        storage.probe([f"{scheme}://bucket/run"], seconds=4)
    assert server.requests > 1


@pytest.mark.parametrize("scheme, module, extra", [("gs", "gcsfs", "gcs"), ("s3", "s3fs", "s3")])
def test_a_missing_extra_is_named(monkeypatch, scheme, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    storage.filesystem.cache_clear()
    with pytest.raises(ConfigError, match=rf"pip install 'score_st\[{extra}\]'"):
        storage.probe([f"{scheme}://bucket/run"])


def test_operations_are_tried_again_until_they_work():
    calls = []

    def operation():
        calls.append(1)
        if len(calls) < 3:
            raise OSError("busy")
        return "done"

    assert storage.patiently("gs://bucket", operation, 60) == "done" and len(calls) == 3


def test_patience_ends():
    def operation():
        raise OSError("busy")

    with pytest.raises(Unreachable, match=r"gs://bucket: does not answer for 2 s \(busy\)"):
        storage.patiently("gs://bucket", operation, 2)


def test_waiting_can_be_interrupted():
    event = threading.Event()
    threading.Timer(0.5, event.set).start()
    with pytest.raises(Interrupted):
        storage.patiently("gs://bucket", lambda: threading.Event().wait(20), 60, event.is_set)


def test_an_outage_is_said_once(capsys):
    outage = storage.Outage("gs://bucket")
    for _ in range(3):
        outage.failed(OSError("busy"))
    outage.worked()
    outage.worked()
    assert capsys.readouterr().err.splitlines() == [
        "warning: gs://bucket: busy; trying again",
        "gs://bucket: works again after 0 s",
    ]
