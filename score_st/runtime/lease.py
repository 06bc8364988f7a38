"""One trainer a workdir: a lease that its owner renews, and that a successor takes over when it no longer moves.

The lease is the file `.lease` of the workdir, or an object in its bucket, with a random token, who the owner is, and
a counter. Nobody compares clocks: a successor watches the counter for some seconds of its own time. It need not watch
a process of this boot that is dead, or an earlier attempt of the same job of a scheduler.

An owner that was stopped, or whose disk hung, finds another token when it goes on and stops before it writes again.
What it was writing at that moment is not prevented.
"""

import contextlib
import fcntl
import functools
import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from score_st import strict_json
from score_st.config import ConfigError
from score_st.runtime import mirror, storage

NAME = ".lease"
T = TypeVar("T")
GRACE = 4.0  # seconds for the last uploads before a lease is released
SUSPENDED = 2.0  # seconds after which a process that should have changed a file at once leaves it alone
RENEWALS = 3  # in the time after which a lease is taken over


class Taken(ConfigError):
    """Another process trains in the workdir."""


def identity() -> dict[str, Any]:
    """Returns who this process is: host, process, boot, and the job and attempt of a scheduler, if there is one."""
    job = os.environ.get("SCORE_ST_JOB") or os.environ.get("SLURM_JOB_ID", "")
    attempt = os.environ.get("SCORE_ST_ATTEMPT") or os.environ.get("SLURM_RESTART_COUNT", "0")
    who = {"host": socket.gethostname(), "pid": os.getpid(), "boot": boot(), "began": began(os.getpid())}
    return who | {"job": job, "attempt": int(attempt) if attempt.isdecimal() else 0}


def boot() -> str:
    """Returns what is the same for processes that see each other's numbers: boot and namespace; "" if unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def began(pid: int) -> int | None:
    """Returns when a process of this boot began, in clock ticks; None if it is dead."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else int(rest[18])


def is_over(owner: dict[str, Any], me: dict[str, Any]) -> bool:
    """Whether an owner is known to have ended: it is dead, or an earlier attempt of this process's job."""
    if me["boot"] and owner.get("boot") == me["boot"] and began(owner["pid"]) != owner.get("began"):
        return True
    return bool(me["job"]) and owner.get("job") == me["job"] and owner["attempt"] < me["attempt"]


def parse(content: bytes | None) -> dict[str, Any]:
    """Returns what is in a lease; {} if there is none or it is damaged."""
    try:
        owner = strict_json.loads(content or b"")
        types = {"pid": int, "token": str, "attempt": int, "seconds": int | float}
        is_right = isinstance(owner, dict) and all(isinstance(owner.get(key), kind) for key, kind in types.items())
        return owner if is_right and math.isfinite(owner["seconds"]) else {}
    except ValueError:
        return {}


class LocalFile:
    """A lease on a disk or NFS: created exclusively by a link, changed under a lock of the file that it is then."""

    def __init__(self, path: Path) -> None:
        """See `read`, `create`, `replace` and `remove`."""
        self.path = path

    def read(self) -> bytes | None:
        """Returns the content; None if there is none."""
        try:
            return self.path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _temporary(self, content: bytes) -> Path:
        path = self.path.with_name(f"{NAME}.{uuid.uuid4().hex}")
        path.write_bytes(content)
        return path

    def create(self, content: bytes) -> bool:
        """Creates the lease; returns False if there is one."""
        temporary = self._temporary(content)
        try:
            os.link(temporary, self.path)
            return True
        except FileExistsError:
            return False
        except OSError:  # no links, as on some mounted buckets
            with contextlib.suppress(FileExistsError), self.path.open("xb") as file:
                file.write(content)
                return True
            return False
        finally:
            temporary.unlink()

    def _lock(self, file: IO[bytes]) -> None:
        """Locks the lease that is open; returns in the end also if the process that has the lock is suspended."""
        give_up = time.monotonic() + 1.5 * SUSPENDED
        with contextlib.suppress(OSError):  # a file system without locks
            while time.monotonic() < give_up:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                time.sleep(0.005)

    def _change(self, old: bytes, change: Callable[[], object]) -> bool:
        """Calls `change` if the lease is still `old`; returns whether it did."""
        mode = "r+b" if os.access(self.path, os.W_OK) else "rb"  # NFS locks only what is open for writing
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), self.path.open(mode) as file:
            self._lock(file)
            began = time.monotonic()
            if self.read() == old and time.monotonic() < began + SUSPENDED:
                change()
                return True
        return False

    def replace(self, old: bytes, new: bytes) -> bool:
        """Replaces the lease; returns False if it is not `old` any more."""
        temporary = self._temporary(new)
        try:
            return self._change(old, lambda: temporary.replace(self.path))
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, old: bytes) -> bool:
        """Removes a lease that is still `old`, and no other; returns whether it did."""
        return self._change(old, self.path.unlink)


class StoredObject:
    """A lease in a bucket, which creates and replaces objects under a condition."""

    def __init__(self, url: str) -> None:
        """See `LocalFile`."""
        self.url = url
        self.versions: dict[bytes, str] = {}  # by content

    def read(self) -> bytes | None:
        """Returns the content; None if there is none."""
        try:
            content, version = storage.get_with_version(self.url)
        except FileNotFoundError:
            return None
        self.versions = {content: version}
        return content

    def create(self, content: bytes) -> bool:
        """Creates the lease; returns False if there is one."""
        return storage.put_if(content, self.url, "")

    def replace(self, old: bytes, new: bytes) -> bool:
        """Replaces the lease; returns False if it is not `old` any more."""
        return self.read() == old and storage.put_if(new, self.url, self.versions[old])

    def remove(self, old: bytes) -> bool:
        """Removes a lease that is still `old`, and no other; returns whether it did."""
        if not self.replace(old, b""):  # an empty one belongs to nobody; others find it until it is gone
            return False
        storage.remove(self.url)
        return True


class Lease:
    """The right to write in a workdir. See `acquire`, `check` and `release`."""

    def __init__(self, workdir: Path, seconds: float, patience: float = storage.PATIENCE) -> None:
        """Begins to watch the lease of another process, if there is one; writes nothing.

        Args:
          workdir: of the run, which may not exist yet.
          seconds: without a renewal after which a lease is taken over (storage.lease).
          patience: seconds to wait for a bucket that does not answer.
        """
        self.workdir, self.seconds, self.patience = workdir, seconds, patience
        self.url, path = mirror.url_of(workdir), Path(workdir) / NAME
        place = StoredObject(storage.join(self.url, NAME)) if self.url else LocalFile(path)
        self.place: LocalFile | StoredObject = place
        self.me = identity() | {"token": uuid.uuid4().hex, "seconds": seconds, "counter": 0}
        self.content, self.renewed, self.lost = b"", 0.0, ""
        self.seen: bytes | None
        self._lock, self._ended = threading.RLock(), threading.Event()
        self.seen, self.since = None, time.monotonic()
        with contextlib.suppress(OSError):  # which `acquire` says
            self.seen = self._ask(self.place.read)

    def acquire(self) -> None:
        """Takes the lease, once that of another process is known to be over or has not moved for long enough.

        Process 0 does so for all that work together.

        Raises:
          Taken: it moves.
          ConfigError: the workdir can't be written.
          storage.Unreachable: its bucket does not answer.
        """
        refusal: Exception | None = None
        if jax.process_index() == 0:
            try:
                self._acquire()
            except OSError as error:
                problem = f"can't be written ({error.strerror}); name a folder that can"
                refusal = ConfigError(f"--workdir {self.workdir}: {problem}")
            except Exception as error:
                refusal = error
        if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.int32(refusal is not None)):
            raise refusal or Taken(f"--workdir {self.workdir}: process 0 can't write there")
        if refusal:
            raise refusal

    def _ask(self, operation: Callable[[], T]) -> T:
        return storage.patiently(self.url, operation, self.patience) if self.url else operation()

    def _acquire(self) -> None:
        self.workdir.mkdir(parents=True, exist_ok=True)
        mine = json.dumps(self.me).encode()
        while (current := self._ask(self.place.read)) != mine:
            owner = parse(self.seen)
            if current is None:
                take = functools.partial(self.place.create, mine)
            elif current != self.seen:
                if (now := parse(current)) and owner and now["token"] == owner["token"]:
                    raise Taken(self._said(now))
                self.seen, self.since = current, time.monotonic()
                continue
            elif (owner and is_over(owner, self.me)) or time.monotonic() > self.since + self._wait(owner):
                take = functools.partial(self.place.replace, current, mine)
            else:
                time.sleep(min(0.2, self.seconds / 10))
                continue
            self.renewed = time.monotonic()
            self._ask(take)  # whether it did is read, as the answer of a bucket may be lost
        self.content = mine
        threading.Thread(target=self._renew, daemon=True, name="lease").start()

    def _wait(self, owner: dict[str, Any]) -> float:
        return max(self.seconds, owner.get("seconds", 0.0))

    def _said(self, owner: dict[str, Any]) -> str:
        who = f"process {owner['pid']} on {owner.get('host')}"
        return f"--workdir {mirror.shown(self.workdir)}: {who} trains there; stop it first, or name another folder"

    def _renew(self) -> None:
        while not self._ended.wait(self.seconds / RENEWALS) and not self.lost:
            with contextlib.suppress(Exception):  # tried again, and by `check`
                self._renew_once()

    def _renew_once(self) -> None:
        with self._lock:
            if self._ended.is_set() or self.lost:
                return
            at, counter = time.monotonic(), self.me["counter"] + 1
            new = json.dumps(self.me | {"counter": counter}).encode()
            if not self.place.replace(self.content, new):
                current = self.place.read()
                owner = parse(current)
                if current is not None and owner.get("token") == self.me["token"]:  # renewed, though it seemed not
                    self.content = current
                    return
                if current is not None or not self.place.create(new):
                    self.lost = self._said(owner or parse(self.place.read()) or {"pid": "of another trainer"})
                    if uploading := mirror.of(self.workdir):
                        uploading.abandoned = True
                    return
            self.content, self.renewed, self.me["counter"] = new, at, counter

    def _is_stale(self) -> bool:
        late = self.renewed + self.seconds * (RENEWALS - 1) / RENEWALS
        return bool(self.content) and not self.lost and time.monotonic() > late

    def check(self, stop: Callable[[], bool] | None = None) -> None:
        """Returns if this process still has the lease; asks first if it has not been renewed for a while.

        Args:
          stop: asked while it waits for a bucket; without it, no bucket is asked.

        Raises:
          Taken: another process has it.
          OSError: it can't be renewed.
          storage.Unreachable: the bucket does not answer.
          storage.Interrupted: `stop` has returned True.
        """
        while self._is_stale() and (stop or not self.url):
            if self.url:
                storage.patiently(self.url, self._renew_once, self.patience, stop or (lambda: False))
            else:
                self._renew_once()
        if self.lost:
            raise Taken(self.lost)

    def release(self) -> None:
        """Gives the lease back, once all is uploaded, so that the next process need not wait."""
        if not self.content:
            return
        with contextlib.suppress(Exception):
            if not self.lost and (uploading := mirror.of(self.workdir)):
                uploading.flush(patience=GRACE)
            self._ended.set()
            with self._lock:
                self.place.remove(self.content)


@contextlib.contextmanager
def watching(workdir: Path, seconds: float, patience: float) -> Iterator[Lease]:
    """Yields a `Lease` to acquire, which is released at the end."""
    lease = Lease(workdir, seconds, patience)
    try:
        yield lease
    finally:
        lease.release()
