"""Files from a bucket on the local disk: copied once a host, checked, and shared by its processes."""

import base64
import contextlib
import fcntl
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from score_st import strict_json
from score_st.config import ConfigError
from score_st.runtime import endings, progress, storage
from score_st.runtime.workdir import write_text

DEFAULT = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "score_st"
THREADS = 16


def copied(url: str, cache: str | Path = "", patience: float = storage.PATIENCE) -> Path:
    """Returns the local copy of a file or folder in a bucket, made first where something is missing.

    A file is fetched again if it has changed in the bucket. Of several processes on a host, one copies while the
    others wait. One that is killed leaves complete files alone, and the next continues.

    Args:
      url: a file or folder.
      cache: the folder of all copies; by default `DEFAULT`.
      patience: seconds to wait for a bucket that does not answer.

    Raises:
      FileNotFoundError: there is nothing.
      ConfigError: the copy can't be written.
      storage.Unreachable: the bucket does not answer.
    """
    target = Path(cache or DEFAULT) / url.rstrip("/").replace("://", "/")
    objects = storage.patiently(url, lambda: storage.listing(url), patience)
    if not objects:
        raise FileNotFoundError(url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f".{target.name}.lock")):
            _update(url, target, objects, patience)
    except OSError as error:
        if endings.storage_failure(error) or (isinstance(error, FileNotFoundError) and error.filename is None):
            raise
        raise ConfigError(f"config.data.local_cache={str(cache)!r}: can't be written ({error})") from error
    return target


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _update(url: str, target: Path, objects: list[storage.Listed], patience: float) -> None:
    """Fetches what is missing or has changed. A JSON file beside the copy has what is complete."""
    note = target.with_name(f".{target.name}.json")
    have: dict[str, list] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):
        have = dict(strict_json.loads(note.read_bytes()))

    def is_here(item: storage.Listed) -> bool:
        path = target / item.path if item.path else target
        return have.get(item.path) == [item.size, item.version] and path.is_file() and path.stat().st_size == item.size

    missing = [item for item in objects if not is_here(item)]
    sizes, done = sum(item.size for item in missing), 0
    loop = progress.Loop(f"copying {url}", 0, max(sizes >> 20, 1), "MiB", seconds=2)
    with ThreadPoolExecutor(THREADS) as pool:
        fetch = functools.partial(_fetch, url, target, patience=patience)
        for i, item in enumerate(pool.map(fetch, missing), 1):
            have[item.path] = [item.size, item.version]
            done += item.size
            if i % 256 == 0 or i == len(missing):
                write_text(note, json.dumps(have))
            loop(done >> 20)


def _fetch(url: str, target: Path, item: storage.Listed, patience: float) -> storage.Listed:
    """Copies one file, and compares its size and its MD5 where the bucket has it."""
    path = target / item.path if item.path else target

    def fetch() -> None:
        storage.get(storage.join(url, item.path), path)
        if path.stat().st_size != item.size or not _agrees(path, item.version):
            path.unlink()
            raise OSError(f"{path.name} arrived damaged")

    storage.patiently(url, fetch, patience)
    return item


def _agrees(path: Path, version: str) -> bool:
    """Whether a file has the MD5 of an object, in base64 (gs) or hexadecimal (s3); True if it is unknown."""
    digits = version.strip('"')
    if not (len(digits) == 32 and digits.isalnum()) and not (len(digits) == 24 and digits.endswith("==")):
        return True
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "md5")
    return digits in (digest.hexdigest(), base64.b64encode(digest.digest()).decode())
