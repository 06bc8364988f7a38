"""Object storage: gs:// and s3:// by fsspec, with errors that say what is wrong and operations that are tried again.

Nothing else in the package opens a bucket, but for Orbax, ArrayRecord and JAX's compilation cache, which open gs://
themselves. Folders in a bucket are mirrored by a local folder, see `mirror`. gcsfuse and other mounts are ordinary
folders.
"""

import concurrent.futures
import contextlib
import functools
import importlib
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from score_st.config import ConfigError
from score_st.runtime.replacing import replacing

T = TypeVar("T")

EXTRAS = {"gs": "gcs", "s3": "s3"}  # what brings the libraries of a scheme
PROBE_SECONDS = 60  # for all places together
ATTEMPT_SECONDS = 90  # an operation that takes longer counts as failed; gcsfs itself tries for 34 s
SLOWEST = 2**20  # bytes/s, for objects that take longer
PATIENCE = 900.0  # storage.patience, for commands without a configuration
PAUSES = (1, 2, 4, 8, 15, 30)  # seconds between attempts; the last is repeated


class Unreachable(Exception):
    """A bucket that does not answer: the program ends with exit code 75, and the launchers start it again."""


class Interrupted(Exception):
    """What was tried is to stop: SIGTERM, or another signal, came while the bucket did not answer."""

    code = 143  # with which the program ends


def scheme(place: str | os.PathLike) -> str:
    """Returns "gs" or "s3" for a URL, and "" for a local path.

    Raises:
      ConfigError: a URL of another scheme.
    """
    name, separator, rest = str(place).partition("://")
    if not separator or "/" in name:
        return ""
    if name not in EXTRAS or not rest.strip("/"):
        raise ConfigError(f"{place}: should be a local path, gs://bucket/folder or s3://bucket/folder")
    return name


def join(url: str, *parts: str) -> str:
    """Returns the URL of what lies below `url`."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts if part)])


@functools.cache
def filesystem(scheme: str) -> Any:
    """Returns fsspec's file system of a scheme.

    Raises:
      ConfigError: its libraries are not installed.
    """
    # otherwise each process warns and tries gRPC for 60 s
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints the traceback of every lost connection
    try:
        importlib.import_module({"gs": "gcsfs", "s3": "s3fs"}[scheme])
        return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        extra = EXTRAS[scheme]
        raise ConfigError(f"{scheme}://: needs {error.name}; pip install 'score_st[{extra}]' brings it") from error


def of(url: str) -> Any:
    """Returns the file system of a URL, see `filesystem`."""
    return filesystem(scheme(url))


def begin(operation: Callable[[], T]) -> "concurrent.futures.Future[T]":
    """Starts an operation in a thread that does not hold up the end of the program."""
    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def work() -> None:
        try:
            future.set_result(operation())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True, name="storage").start()
    return future


def attempt(operation: Callable[[], T], seconds: float = ATTEMPT_SECONDS, stop: Callable[[], bool] | None = None) -> T:
    """Runs an operation once, in a thread that is left behind if it hangs.

    Raises:
      TimeoutError: it took longer than `seconds`.
      Interrupted: `stop` has returned True.
    """
    future, end = begin(operation), time.monotonic() + seconds
    while True:
        with contextlib.suppress(concurrent.futures.TimeoutError):
            return future.result(max(min(0.2, end - time.monotonic()), 0))
        if future.done():
            return future.result()
        if stop and stop():
            raise Interrupted
        if time.monotonic() >= end:
            raise TimeoutError(f"no answer within {seconds:.0f} s")


def reason(error: BaseException) -> str:
    """Returns one line about why an operation failed."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 200 else f"{text[:200]}…"


def is_refused(error: BaseException) -> bool:
    """Whether the credentials are missing or do not suffice."""
    names = {cls.__name__ for cls in type(error).__mro__}
    code = getattr(error, "code", None)
    return (
        isinstance(error, PermissionError)
        or bool(names & {"NoCredentialsError", "DefaultCredentialsError", "RefreshError", "ProfileNotFound"})
        or str(code) in ("401", "403")
        or any(word in str(error) for word in ("Forbidden", "Unauthorized", "AccessDenied", "Anonymous caller"))
    )


def explained(url: str, error: BaseException) -> Exception:
    """Returns what to raise for an error at the beginning of a command: a ConfigError, or `Unreachable`."""
    bucket = "/".join(url.split("/")[:3])
    if isinstance(error, ConfigError | Unreachable):
        return error
    if isinstance(error, FileNotFoundError):
        return ConfigError(f"{url}: there is no bucket {bucket}, or nothing there; create it, or name another")
    if is_refused(error):
        way = "gcloud auth application-default login" if scheme(url) == "gs" else "aws configure"
        return ConfigError(f"{url}: access is refused ({reason(error)}); `{way}` sets the credentials")
    return Unreachable(f"{url}: does not answer ({reason(error)})")


class Outage:
    """Says once that a bucket does not answer, and once that it answers again."""

    def __init__(self, url: str) -> None:
        """Begins without an outage."""
        self.url, self.since, self._lock = url, 0.0, threading.Lock()

    def failed(self, error: BaseException) -> None:
        """Notes that an operation failed."""
        with self._lock:
            if not self.since:
                self.since = time.monotonic()
                print(f"warning: {self.url}: {reason(error)}; trying again", file=sys.stderr, flush=True)

    def worked(self) -> None:
        """Notes that an operation worked."""
        with self._lock:
            if self.since:
                seconds, self.since = time.monotonic() - self.since, 0.0
                print(f"{self.url}: works again after {seconds:.0f} s", file=sys.stderr, flush=True)


def pauses() -> Iterator[float]:
    """Yields the seconds to wait before each further attempt, growing up to half a minute."""
    yield from PAUSES
    while True:
        yield PAUSES[-1]


def patiently(
    url: str,
    operation: Callable[[], T],
    patience: float,
    stop: Callable[[], bool] = lambda: False,
    outage: Outage | None = None,
    check: Callable[[Exception], None] = lambda error: None,
) -> T:
    """Runs an operation, again and again while it fails.

    Args:
      url: what it works on.
      operation: may be run again after it has failed.
      patience: seconds after which it is given up.
      stop: asked while it waits.
      outage: of `url`, if the caller has one.
      check: called with every error; what it raises ends the attempts.

    Raises:
      Unreachable: it still failed after `patience` seconds.
      Interrupted: `stop` has returned True.
    """
    outage, end = outage or Outage(url), time.monotonic() + patience
    for pause in pauses():
        try:
            result = attempt(operation, max(min(ATTEMPT_SECONDS, end - time.monotonic()), 1), stop)
            outage.worked()
            return result
        except (Interrupted, ConfigError):
            raise
        except Exception as error:
            check(error)
            outage.failed(error)
            if time.monotonic() + pause > end:
                raise Unreachable(f"{url}: does not answer for {patience:.0f} s ({reason(error)})") from error
        wait(pause, stop)
    raise AssertionError


def wait(seconds: float, stop: Callable[[], bool]) -> None:
    """Sleeps; raises `Interrupted` once `stop` returns True."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if stop():
            raise Interrupted
        time.sleep(min(0.2, max(end - time.monotonic(), 0)))


def answers(url: str, seconds: float = 5.0) -> bool:
    """Whether a bucket takes a small object at once."""
    try:
        attempt(lambda: probe_output(url), seconds)
        return True
    except Exception:
        return False


class Listed(NamedTuple):
    """An object below a URL: its path relative to it, its size, and what changes with its content."""

    path: str
    size: int
    version: str


def listing(url: str) -> list[Listed]:
    """Returns the objects below a URL in the order of their names, or the object itself, with the path ""."""
    fs = of(url)
    root = fs._strip_protocol(url).rstrip("/")
    found = []
    for name, about in sorted(fs.find(root, detail=True).items()):
        if about["type"] == "file":
            version = about.get("md5Hash") or about.get("crc32c") or about.get("ETag") or about.get("etag") or ""
            found.append(Listed(name[len(root) + 1 :], int(about["size"]), str(version)))
    return found


def put(path: Path, url: str) -> None:
    """Uploads a file; other readers see all of it or nothing.

    Raises:
      TimeoutError: it took too long for its size.
    """
    attempt(lambda: of(url).put_file(str(path), url), ATTEMPT_SECONDS + path.stat().st_size / SLOWEST)


def put_bytes(content: bytes, url: str) -> None:
    """Uploads an object; see `put`."""
    attempt(lambda: of(url).pipe_file(url, content), ATTEMPT_SECONDS + len(content) / SLOWEST)


def put_if(content: bytes, url: str, version: str) -> bool:
    """Uploads a small object unless it was changed meanwhile; returns whether it did.

    Args:
      content: of the object.
      url: of the object.
      version: what `get_with_version` returned; "": the object must not exist.
    """
    fs = of(url)
    bucket, _, key = fs._strip_protocol(url).partition("/")

    def upload() -> None:
        if scheme(url) == "s3":
            condition = {"IfMatch": version} if version else {"IfNoneMatch": "*"}
            fs.call_s3("put_object", Bucket=bucket, Key=key, Body=content, **condition)
            return
        # gcsfs has a condition for new objects alone
        body = b'--==0==\nContent-Type: application/json\n\n{"name": "%s"}\n' % key.encode()
        body += b"--==0==\nContent-Type: application/octet-stream\n\n%s\n--==0==--" % content
        place = f"{fs._location}/upload/storage/v1/b/{bucket}/o"
        headers = {"Content-Type": 'multipart/related; boundary="==0=="'}
        condition = {"uploadType": "multipart", "ifGenerationMatch": version or "0"}
        fs.call("POST", place, headers=headers, data=body, json_out=True, **condition)

    try:
        attempt(upload)
        return True
    except FileExistsError:  # how gcsfs says it
        return False
    except Exception as error:
        codes = str(getattr(error, "code", "")), str(error), str(error.__cause__)
        if any(word in code for code in codes for word in ("412", "Precondition", "pre-conditions")):
            return False
        raise


def get_with_version(url: str) -> tuple[bytes, str]:
    """Downloads a small object; returns its content, and what changes whenever it is written.

    Raises:
      FileNotFoundError: there is none.
    """
    fs = of(url)
    bucket, _, key = fs._strip_protocol(url).partition("/")
    if scheme(url) == "s3":
        version = attempt(lambda: fs.call_s3("head_object", Bucket=bucket, Key=key))["ETag"]
    else:
        version = attempt(lambda: fs.call("GET", "b/{}/o/{}", bucket, key, json_out=True))["generation"]
    return attempt(lambda: fs.cat_file(url)), str(version)  # newer content has another version, which `put_if` refuses


def get(url: str, path: Path) -> None:
    """Downloads an object; the file appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, f".{os.getpid()}") as temporary:
        of(url).get_file(url, str(temporary))


def get_bytes(url: str) -> bytes:
    """Downloads an object."""
    return of(url).cat_file(url)


def remove(url: str) -> None:
    """Deletes an object, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        attempt(lambda: of(url).rm_file(url))


def probe_output(url: str) -> None:
    """Writes and deletes a small object below `url`."""
    name = join(url, f".probe-{uuid.uuid4().hex}")
    put_bytes(b"score_st", name)
    remove(name)


def probe_input(url: str) -> None:
    """Reads the beginning of one object at or below `url`.

    Raises:
      FileNotFoundError: there is nothing.
    """
    fs = of(url)
    bucket, _, prefix = fs._strip_protocol(url).rstrip("/").partition("/")
    if scheme(url) == "gs":
        found = fs.call("GET", "b/{}/o", bucket, prefix=prefix, maxResults=1, json_out=True).get("items", [])
    else:
        found = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1).get("Contents", [])
    if not found:
        raise FileNotFoundError(url)
    name, size = (found[0].get(gs) or found[0].get(s3) for gs, s3 in (("name", "Key"), ("size", "Size")))
    if int(size or 0):
        fs.cat_file(f"{bucket}/{name}", start=0, end=16)


def probe(outputs: Iterable[str], inputs: Iterable[str] = (), seconds: float = PROBE_SECONDS) -> None:
    """Tests every place of a command before anything is computed.

    Args:
      outputs: URLs to which it will write.
      inputs: URLs from which it will read.
      seconds: for all of them together.

    Raises:
      ConfigError: libraries or a bucket are missing, or access is refused.
      Unreachable: a place did not answer in time.
    """
    jobs = [(url, probe_output) for url in outputs] + [(url, probe_input) for url in inputs]
    for url, _ in jobs:
        of(url)
    futures = [(url, begin(functools.partial(operation, url))) for url, operation in jobs]
    end = time.monotonic() + seconds
    for url, future in futures:
        try:
            future.result(max(end - time.monotonic(), 0))
        except concurrent.futures.TimeoutError:
            raise Unreachable(f"{url}: does not answer within {seconds:.0f} s") from None
        except Exception as error:
            raise explained(url, error) from error
