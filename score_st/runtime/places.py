"""The paths of a command line, any of which may be in a bucket: tested, then replaced by local ones while it runs."""

import argparse
import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from score_st.config import ConfigError
from score_st.runtime import storage
from score_st.runtime.mirror import Mirror

WRITTEN = ("folder", "file")
GRACE = 4.0  # seconds for the last uploads of a command that fails or is interrupted


@dataclasses.dataclass(frozen=True)
class Place:
    """A path as it was given.

    Attributes:
      text: a local path or a URL.
      kind: "folder" is read and written, "file" is written, "input" is a file or folder that is read, and so is
        "everything", with what Orbax and JAX open themselves.
    """

    text: str
    kind: str

    def __str__(self) -> str:
        """Returns the path as it was given."""
        return self.text


def meant(place: str | os.PathLike) -> str:
    """Returns a path or URL as it was meant: with ~ expanded, which a shell leaves alone in --workdir=~/run.

    Raises:
      ConfigError: it is empty, as an unset variable of a shell is, or one of ~nobody/run, file:///run, gs:/bucket.
    """
    text = str(place)
    if not text.strip():
        raise ConfigError("an empty path; should be a folder or file, . for the current folder")
    if storage.scheme(text):
        return text
    if re.match(r"(gs|s3):", text):
        raise ConfigError(f"{text}: should be {text[:2]}://bucket/folder, or ./{text} for a local path")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ConfigError(f"{text}: there is no such user; should be ./{text} for a local path of that name")
    return expanded


def _place(text: str, kind: str) -> Place:
    try:
        return Place(meant(text), kind)
    except ConfigError as error:  # argparse would show neither this nor any other ValueError
        raise argparse.ArgumentTypeError(str(error)) from error


def folder(text: str) -> Place:
    """The type, for argparse, of a folder that a command reads and writes."""
    return _place(text, "folder")


def file(text: str) -> Place:
    """The type, for argparse, of a file that a command writes."""
    return _place(text, "file")


def source(text: str) -> Place:
    """The type, for argparse, of a file or folder that a command reads."""
    return _place(text, "input")


def everything(text: str) -> Place:
    """The type, for argparse, of a workdir that a command reads with its checkpoints."""
    return _place(text, "everything")


def uploads(path: str) -> bool:
    """Whether this process uploads a file of a mirror: process 0 everything, the others their profiles."""
    import jax  # takes seconds, which --help should not

    return jax.process_index() == 0 or path.startswith("profile/")


def is_needed(path: str, shards: bool) -> bool:
    """Whether a command needs a file of its folder: samples, which are large, only where it asks for `shards`."""
    return shards or not path.endswith(".npz")


def _open(place: Place, patience: float, shards: bool) -> tuple[Mirror, Path]:
    url = place.text.rstrip("/")
    if place.kind in ("input", "everything"):
        return read(url, patience, everything=place.kind == "everything")
    parent, _, name = url.rpartition("/") if place.kind == "file" else (url, "", "")
    opened = Mirror(parent, patience, uploads)
    with closed_on_error(opened):
        if place.kind == "folder":
            opened.download(functools.partial(is_needed, shards=shards))
        opened.start()
    return opened, opened.path / name


def read(
    url: str, patience: float, wanted: Callable[[str], bool] = lambda path: True, everything: bool = False
) -> tuple[Mirror, Path]:
    """Downloads a file or a folder; returns the mirror, which uploads nothing, and the local path in it."""
    alone = [item.path for item in storage.patiently(url, lambda: storage.listing(url), patience)] == [""]
    parent, _, name = url.rpartition("/") if alone else (url, "", "")
    opened = Mirror(parent, patience)
    with closed_on_error(opened):
        if alone:
            storage.patiently(url, lambda: storage.get(url, opened.path / name), patience)
        else:
            opened.download(wanted, everything)
    return opened, opened.path / name


@contextlib.contextmanager
def closed_on_error(opened: Mirror) -> Iterator[None]:
    """Deletes the local folder of a mirror that could not be opened."""
    try:
        yield
    except BaseException:
        opened.close()
        raise


def _found(value: Any) -> list[Place]:
    values = value if isinstance(value, list) else [value]
    return [place for place in values if isinstance(place, Place)]


def _replaced(value: Any, paths: dict[Place, Path]) -> Any:
    if isinstance(value, list):
        return [_replaced(item, paths) for item in value]
    return paths.get(value, Path(value.text)) if isinstance(value, Place) else value


def probe(arguments: argparse.Namespace, inputs: list[str]) -> list[Place]:
    """Tests all places of a command that are in buckets, and returns those of its options.

    Args:
      arguments: the options, some of which are a `Place`.
      inputs: other places that are read.

    Raises:
      ConfigError: see `storage.probe`.
      storage.Unreachable: see `storage.probe`.
    """
    found = dict.fromkeys(place for value in vars(arguments).values() for place in _found(value))
    remote = [place for place in found if storage.scheme(place.text)]
    outputs = [p.text.rpartition("/")[0] if p.kind == "file" else p.text for p in remote if p.kind in WRITTEN]
    read = [place.text for place in remote if place.kind not in WRITTEN] + [
        url for url in inputs if storage.scheme(url)
    ]
    storage.probe(dict.fromkeys(outputs), dict.fromkeys(read))
    return remote


@contextlib.contextmanager
def opened(
    arguments: argparse.Namespace, patience: float, inputs: list[str], shards: bool = False
) -> Iterator[dict[str, Any]]:
    """Replaces each `Place` of the options by a local path, and yields the options that have changed.

    At the end, what has been written is uploaded.

    Args:
      arguments: the options; not changed.
      patience: seconds to wait for a bucket that does not answer.
      inputs: places that are read, beside those of the options.
      shards: whether the command needs the samples in its folders.

    Raises:
      ConfigError: a bucket is missing or refuses access, or what the command raises, with URLs.
      storage.Unreachable: a bucket does not answer.
    """
    mirrors, paths = [], {}
    try:
        for place in probe(arguments, inputs):
            new, paths[place] = _open(place, patience, shards)
            mirrors.append(new)
        if mirrors:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("places opened")  # nobody writes before all have read
        yield {name: _replaced(value, paths) for name, value in vars(arguments).items() if _found(value)}
    except BaseException as error:
        for one in mirrors:
            with contextlib.suppress(storage.Unreachable):
                one.close(GRACE)
        if isinstance(error, ConfigError) and mirrors:
            raise type(error)(named(str(error), mirrors)) from error
        raise
    for one in mirrors:
        one.close()


def named(text: str, mirrors: list[Mirror]) -> str:
    """Returns a message in which mirrors have the names that the user knows."""
    for one in mirrors:
        text = text.replace(str(one.path), one.url)
    return text


def is_about_weights(path: str) -> bool:
    """Whether a file of a workdir is needed to read weights: its configuration, and what Orbax stores."""
    return "/" not in path or path.startswith(("checkpoints/", "averages/"))


@contextlib.contextmanager
def reading(place: str | Path, wanted: Callable[[str], bool] = is_about_weights) -> Iterator[Path]:
    """Yields a local path for a folder that is read, with the files that are `wanted`.

    Raises:
      ConfigError: the bucket is missing or refuses access, or there is nothing.
      storage.Unreachable: the bucket does not answer.
    """
    place = meant(place)
    if not storage.scheme(place):
        yield Path(place)
        return
    storage.probe([], [place])
    opened, path = read(place.rstrip("/"), storage.PATIENCE, wanted)
    try:
        yield path
    except ConfigError as error:
        raise type(error)(named(str(error), [opened])) from error
    finally:
        opened.close()
