"""A local folder that stands for a folder in a bucket: read from it when opened, uploaded to it in the background.

All code works on local files. Every few seconds a thread uploads what has changed:

- Logs (`*.jsonl`, TensorBoard's events) in numbered parts, since an object can't be appended to. The parts of
  `metrics.jsonl` are `metrics.jsonl.GGGG.NNNNNNNNNNNN`, where N is the offset in bytes; their names in order are the
  order of their lines. A log that was rewritten, as on resuming after a kill, begins a new generation G.
- Checkpoints on s3:// as folders whose last object is Orbax's `commit_success.txt`; without it they do not count. On
  gs:// Orbax writes and reads them itself.
- Other files as objects of their own, in the order in which they were written.
"""

import contextlib
import fcntl
import functools
import os
import re
import shutil
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from score_st.runtime import storage

_open: dict[Path, "Mirror"] = {}  # by their folders

PREFIX = "score_st-mirror-"  # of the temporary folders
OWNED = ".owned"  # a file in each, locked while its process lives; without it the folder is kept
PERIOD = 5.0  # seconds between uploads
MARKER = "commit_success.txt"  # which Orbax writes last into a checkpoint
PART = re.compile(r"(?P<name>.+)\.(?P<generation>\d{4})\.(?P<offset>\d{12})")
STEP = re.compile(r"(?P<folder>(?P<kind>checkpoints|averages)/\d+)/")
OPENED_BY_OTHERS = ("checkpoints/", "averages/", "compiled/")  # on gs://, by Orbax and JAX
NEVER_READ = ("tensorboard/", "profile/plugins/")
MOST_PARTS = 200  # of a log, before they become one


def of(path: str | os.PathLike) -> "Mirror | None":
    """Returns the open mirror that a local path lies in, or None."""
    inside = Path(path).absolute()
    return next((_open[folder] for folder in (inside, *inside.parents) if folder in _open), None)


def url_of(path: str | os.PathLike) -> str:
    """Returns the URL that a path in a mirror stands for; "" for other local paths."""
    mirror, inside = of(path), Path(path).absolute()
    if mirror is None:
        return ""
    return storage.join(mirror.url, inside.relative_to(mirror.path).as_posix() if inside != mirror.path else "")


def exists(path: Path) -> bool:
    """Whether there is a file here, or in the bucket that its mirror stands for."""
    url = url_of(path)
    return path.exists() or bool(url and storage.patiently(url, lambda: storage.listing(url), storage.PATIENCE))


def exists_below(folder: Path) -> bool:
    """Whether there is a file in this folder, or in that of the bucket which its mirror stands for."""
    url = url_of(folder)
    if folder.is_dir() and any(folder.iterdir()):
        return True
    return bool(url and storage.patiently(url, lambda: storage.listing(url), storage.PATIENCE))


def shown(path: str | os.PathLike) -> str:
    """Returns a path as the user knows it: the URL for one in a mirror."""
    return url_of(path) or str(path)


def delete_abandoned() -> None:
    """Deletes the mirrors of processes that were killed: those whose `OWNED` no process has locked."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{OWNED}"):
        with contextlib.suppress(OSError), path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent, ignore_errors=True)


def is_log(path: str) -> bool:
    """Whether a file is only ever appended to."""
    return path.endswith(".jsonl") or "events.out.tfevents" in path


def complete(path: str, content: bytes) -> int:
    """Returns how many bytes of a log, from where a record begins, are complete records."""
    if path.endswith(".jsonl"):
        return content.rfind(b"\n") + 1
    end = 0
    while len(content) >= end + 12:  # a TFRecord: length, its checksum, content, its checksum
        size = 16 + struct.unpack_from("<Q", content, end)[0]
        if len(content) < end + size:
            break
        end += size
    return end


@dataclass
class Log:
    """What the bucket has of a log.

    Attributes:
      generation: of its parts.
      size: bytes uploaded.
      crc: their CRC-32.
      file: the local file that they are from, as device and inode.
      parts: the objects.
    """

    generation: int = 0
    size: int = 0
    crc: int = 0
    file: tuple[int, int] = (0, 0)
    parts: list[str] = field(default_factory=list)


class Mirror:
    """A local folder that stands for a folder in a bucket."""

    def __init__(
        self, url: str, patience: float = storage.PATIENCE, uploads: Callable[[str], bool] = lambda path: True
    ) -> None:
        """Makes an empty temporary folder; see `download` and `start`.

        Args:
          url: of the folder in the bucket.
          patience: seconds that `flush` waits for a bucket that does not answer.
          uploads: whether this process uploads a file, by its path in the mirror.
        """
        self.url, self.patience, self.uploads = url.rstrip("/"), patience, uploads
        delete_abandoned()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
        unlocked = self.path / f"{OWNED}.unlocked"  # before it is locked, it must not look as if its process were dead
        self._owned = unlocked.open("w")
        fcntl.flock(self._owned, fcntl.LOCK_EX)
        unlocked.rename(self.path / OWNED)
        _open[self.path] = self
        self.files: dict[str, tuple[int, int, int, int]] = {}  # uploaded, with their `state`
        self.logs: dict[str, Log] = {}
        self.steps: set[str] = set()  # checkpoints that are complete here and in the bucket
        self.outage = storage.Outage(self.url)
        self._turn, self._lock = threading.Condition(), threading.Lock()
        self._wanted = self._done = 0
        self._thread: threading.Thread | None = None
        self._closing = self.abandoned = False  # abandoned: another process has the folder, and nothing is uploaded

    def download(
        self, wanted: Callable[[str], bool] = lambda path: True, everything: bool = False, threads: int = 16
    ) -> None:
        """Copies what is in the bucket, without what others open there.

        Args:
          wanted: by the path of a file in the mirror.
          everything: with what others open, and with old checkpoints.
          threads: how many objects are read at the same time.

        Raises:
          storage.Unreachable: the bucket does not answer.
        """
        others = OPENED_BY_OTHERS if storage.scheme(self.url) == "gs" else ()
        paths = [item.path for item in self._ask(lambda: storage.listing(self.url)) if item.path]
        paths = [path for path in paths if not path.rpartition("/")[2].startswith(".")]
        if not everything:
            paths = [path for path in paths if not path.startswith((*others, *NEVER_READ))]
        ends = [path.removesuffix(MARKER) for path in paths if path.endswith(f"/{MARKER}")]
        marked = {path[:-1] for path in ends if STEP.fullmatch(path)}
        saved = [folder for folder in marked if folder.startswith("checkpoints/")]
        newest = max(saved, key=lambda folder: int(folder.rpartition("/")[2]), default="")
        logs: dict[str, dict[int, list[str]]] = {}
        plain = []
        for path in paths:
            part, step = PART.fullmatch(path), STEP.match(path)
            name, generation = (part["name"], int(part["generation"])) if part else (path, 0)
            if not wanted(name) or (step and step["folder"] not in marked):
                continue
            if step and not everything and step["kind"] == "checkpoints" and step["folder"] != newest:
                continue  # see `bring`
            if is_log(name):
                logs.setdefault(name, {}).setdefault(generation, []).append(path)
            else:
                plain.append(path)
        with self._lock, ThreadPoolExecutor(threads) as pool:
            list(pool.map(self._get, plain))
            self.steps |= {step["folder"] for path in plain if (step := STEP.match(path))}
            list(pool.map(lambda name: self._join(name, logs[name]), logs))

    def _ask(self, operation: Callable[[], storage.T]) -> storage.T:
        return storage.patiently(self.url, operation, self.patience, outage=self.outage)

    def _get(self, path: str) -> None:
        local = self.path / path
        self._ask(lambda: storage.get(storage.join(self.url, path), local))
        self.files[path] = state(local)

    def _content(self, path: str) -> bytes:
        return self._ask(lambda: storage.get_bytes(storage.join(self.url, path)))

    def _join(self, name: str, generations: dict[int, list[str]]) -> None:
        """Puts a log together from the parts of its newest generation."""
        newest = max(generations)
        parts = sorted(generations[newest])
        content = b"".join(map(self._content, parts))
        local = self.path / name
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_bytes(content)
        every = [part for generation in generations.values() for part in generation]
        self.logs[name] = Log(newest, len(content), zlib.crc32(content), state(local)[2:], every)

    def start(self) -> None:
        """Starts to upload in the background."""
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"upload to {self.url}")
        self._thread.start()

    def _work(self) -> None:
        pauses = storage.pauses()
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._wanted > self._done or self._closing, PERIOD)
                wanted = self._wanted
                if self._closing and wanted == self._done:
                    return
            try:
                self.sync()
                self.outage.worked()
                pauses = storage.pauses()
            except Exception as error:
                if isinstance(error, FileNotFoundError) and error.filename:
                    continue  # a local file that was deleted meanwhile
                self.outage.failed(error)
                time.sleep(next(pauses))
                continue
            with self._turn:
                self._done = wanted
                self._turn.notify_all()

    def flush(self, stop: Callable[[], bool] = lambda: False, patience: float | None = None) -> None:
        """Waits until everything that is in the folder now is in the bucket.

        Raises:
          storage.Unreachable: not within `patience` seconds.
          storage.Interrupted: `stop` has returned True.
        """
        if self._thread is None:
            return
        limit = self.patience if patience is None else patience
        end = time.monotonic() + limit
        with self._turn:
            self._wanted += 1
            wanted = self._wanted
            self._turn.notify_all()
            while self._done < wanted:
                self._turn.wait(0.2)
                if stop():
                    raise storage.Interrupted
                if time.monotonic() > end:
                    raise storage.Unreachable(f"{self.url}: does not answer for {limit:.0f} s")

    def close(self, patience: float | None = None) -> None:
        """Uploads the rest and deletes the local folder.

        Raises:
          storage.Unreachable: not within `patience` seconds; the local folder is kept, and the message names it.
        """
        try:
            self.flush(patience=patience)
        except storage.Unreachable as error:
            (self.path / OWNED).unlink(missing_ok=True)
            raise storage.Unreachable(f"{error}; what is not there yet is in {self.path}") from error
        with self._turn:
            self._closing = True
            self._turn.notify_all()
        del _open[self.path]
        shutil.rmtree(self.path, ignore_errors=True)
        self._owned.close()

    def sync(self) -> None:
        """Uploads once what has changed; what fails is tried again by the next call."""
        with self._lock:
            if not self.abandoned:
                self._sync()

    def finished_steps(self, folder: str) -> list[int]:
        """Returns the steps of the checkpoints that are complete in the bucket, in ascending order.

        Args:
          folder: "checkpoints" or "averages".

        Raises:
          storage.Unreachable: the bucket does not answer.
        """
        names = [item.path for item in self._ask(lambda: storage.listing(storage.join(self.url, folder)))]
        steps = [name.removesuffix(f"/{MARKER}") for name in names if name.endswith(f"/{MARKER}")]
        return sorted(int(step) for step in steps if step.isdecimal())

    def bring(self, folder: str) -> None:
        """Downloads a checkpoint on s3:// unless it is here; nothing if it is not complete in the bucket.

        Args:
          folder: as "checkpoints/1000".

        Raises:
          storage.Unreachable: the bucket does not answer.
        """
        source, local = storage.join(self.url, folder), self.path / folder
        if storage.scheme(self.url) == "gs" or local.exists():
            return
        names = [item.path for item in self._ask(lambda: storage.listing(source))]
        if MARKER in names:
            temporary = local.with_name(f".{local.name}")
            for name in names:
                self._ask(functools.partial(storage.get, storage.join(source, name), temporary / name))
            with self._lock:
                temporary.replace(local)
                self.steps.add(folder)

    def _sync(self) -> None:
        local = self._local()
        checkpoints: dict[str, list[str]] = {}
        for path in local:
            if step := STEP.match(path):
                checkpoints.setdefault(step["folder"], []).append(path)
            elif is_log(path):
                self._sync_log(path)
            elif self.files.get(path) != (now := state(self.path / path)):
                storage.put(self.path / path, storage.join(self.url, path))
                self.files[path] = now
        for folder, paths in checkpoints.items():
            if folder not in self.steps:
                for path in sorted(paths, key=f"{folder}/{MARKER}".__eq__):
                    storage.put(self.path / path, storage.join(self.url, path))
                self.steps.add(folder)
        for folder in self.steps - checkpoints.keys():
            storage.remove(storage.join(self.url, folder, MARKER))  # first, as without it the rest does not count
            for item in storage.listing(storage.join(self.url, folder)):
                storage.remove(storage.join(self.url, folder, item.path))
            self.steps.remove(folder)
        for path in [path for path in self.files if path not in local and not STEP.match(path)]:
            storage.remove(storage.join(self.url, path))
            del self.files[path]

    def saved_steps(self) -> list[int]:
        """Returns the steps of the checkpoints on s3:// that are complete there, in ascending order."""
        return sorted(int(step.rpartition("/")[2]) for step in self.steps if step.startswith("checkpoints/"))

    def _local(self) -> list[str]:
        """Returns the files that this process uploads, oldest first, without those that are not complete yet."""
        found = []
        for folder, folders, names in os.walk(self.path):
            folders[:] = [name for name in folders if not name.startswith(".") and ".orbax-checkpoint-tmp" not in name]
            found += [Path(folder, name) for name in names if not name.startswith(".") and ".part" not in name]
        age = {}
        for path in found:
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                age[path.relative_to(self.path).as_posix()] = state(path)[1]
        return sorted((path for path in age if self.uploads(path)), key=age.__getitem__)

    def _sync_log(self, path: str) -> None:
        with (self.path / path).open("rb") as file:
            log, now = self.logs.setdefault(path, Log()), os.fstat(file.fileno())
            if log.file != (now.st_dev, now.st_ino) or now.st_size < log.size:
                changed = zlib.crc32(file.read(log.size)) != log.crc or now.st_size < log.size
            else:
                changed = False
            old = log.parts if changed or len(log.parts) >= MOST_PARTS else []
            if old:  # the new generation is complete before the old one goes
                log = Log(log.generation + 1)
            file.seek(log.size)
            content = file.read()
            content = content[: complete(path, content)]
        if content or old:
            part = f"{path}.{log.generation:04d}.{log.size:012d}"
            storage.put_bytes(content, storage.join(self.url, part))
            log.parts.append(part)
        for part in old:
            storage.remove(storage.join(self.url, part))
        log.size, log.crc = log.size + len(content), zlib.crc32(content, log.crc)
        log.file = (now.st_dev, now.st_ino)
        self.logs[path] = log


def state(path: Path) -> tuple[int, int, int, int]:
    """Returns what changes when a file is written: its size, time of change, device and inode."""
    about = path.stat()
    return about.st_size, about.st_mtime_ns, about.st_dev, about.st_ino
