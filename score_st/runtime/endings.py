"""How a process ends: on a signal, on a disk that is full, and not because nobody reads its output any more."""

import contextlib
import errno
import io
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import absl.logging

from score_st.config import ConfigError
from score_st.runtime import exit_codes, progress, storage

CODES = {
    signal.SIGTERM: exit_codes.STOPPED,
    signal.SIGINT: exit_codes.INTERRUPTED,
    signal.SIGHUP: exit_codes.HUNG_UP,
}
REPEATED = 0.3  # seconds within which a signal that comes twice was sent once, as to a group and by its launcher
LIMIT = 4.0  # seconds that a command has after Ctrl-C
FAILED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)  # full, quota, read-only, gone
UNREAD = (errno.EPIPE, errno.EIO, errno.ENXIO)  # of output: its reader, or its terminal, has gone


def end(code: int) -> NoReturn:
    """Ends the process at once, after what it has printed; threads that compute are not waited for.

    `sys.exit` lets the interpreter end while XLA computes, which now and then is a segmentation fault, or never ends.
    """

    def finish() -> None:
        for step in (progress.close, sys.stdout.flush, sys.stderr.flush):
            with contextlib.suppress(Exception):
                step()

    last = threading.Thread(target=finish, daemon=True)
    last.start()
    last.join(1)
    os._exit(code)


class Watch:
    """Ends the process if it has not ended `limit` seconds after a signal; at a second Ctrl-C, at once.

    A thread sees every signal that has a handler in Python at once, even while the main thread is in a program of XLA
    and runs no handler.
    """

    current: "Watch | None" = None  # of this process; in Python, without a command, there is none

    def __init__(self) -> None:
        """Starts to watch; called by the main thread."""
        self.limit, self.pipe = LIMIT, os.pipe()
        os.set_blocking(self.pipe[1], False)
        self.before = signal.set_wakeup_fd(self.pipe[1], warn_on_full_buffer=False)
        threading.Thread(target=self._work, daemon=True, name="signals").start()

    def close(self) -> None:
        """Watches no longer."""
        signal.set_wakeup_fd(self.before)
        os.close(self.pipe[1])  # which ends the thread

    def begin(self, number: int) -> None:
        """Counts from now, as if the signal had come."""
        os.write(self.pipe[1], bytes([number]))

    def _work(self) -> None:
        first, came = 0, 0.0
        while True:
            if select.select([self.pipe[0]], [], [], 0.1 if first else None)[0]:
                numbers = os.read(self.pipe[0], 64)
                if not numbers:
                    os.close(self.pipe[0])
                    return
                for number in filter(CODES.__contains__, numbers):
                    if not first:
                        first, came = number, time.monotonic()
                    elif number == signal.SIGINT and time.monotonic() > came + REPEATED:
                        end(exit_codes.INTERRUPTED)
            if first and time.monotonic() > came + self.limit:
                end(CODES[signal.Signals(first)])


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Watches the signals that come inside, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    Watch.current = watch = Watch()
    try:
        yield
    finally:
        Watch.current = None
        watch.close()


def allow(seconds: float) -> None:
    """Sets how long the process may take to end after a signal."""
    if Watch.current:
        Watch.current.limit = seconds


class _Output(io.FileIO):
    """A file whose reader may go away; what is written then goes nowhere."""

    def write(self, content: Any) -> int:
        """Writes bytes; returns how many."""
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in UNREAD:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(content)


def output(descriptor: int, encoding: str | None = None, errors: str = "backslashreplace") -> io.TextIOWrapper:
    """Returns a text stream that neither a character nor a reader that has gone stops."""
    raw = _Output(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=descriptor == 2 or raw.isatty())


def set_streams() -> None:
    """Lets stdout and stderr take any character, and go on where they are closed or their reader goes away.

    Those that Python was not started with, such as a test's, are left alone.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # it would be that of the next file that is opened
            os.dup2(nowhere := os.open(os.devnull, os.O_RDWR), descriptor)
            if nowhere > 2:
                os.close(nowhere)
    for descriptor, name, errors in ((1, "stdout", "replace"), (2, "stderr", "backslashreplace")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, output(descriptor, errors=errors))
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            stream.flush()
            setattr(sys, name, output(descriptor, stream.encoding, errors))


def silence_orbax() -> None:
    """Leaves out what Orbax prints beside the error that it raises: a traceback of each array that can't be written.

    It also warns of every checkpoint opened for reading.
    """
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)

    def hook(about: Any) -> None:
        if isinstance(about.exc_value, KeyboardInterrupt):  # in a callback, where it is lost; `Watch` ends the process
            return
        if str(about.exc_value) != "Event loop is closed":  # TensorStore's, of a write that failed
            sys.__unraisablehook__(about)

    sys.unraisablehook = hook


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and all that led to it."""
    seen, left = set[int](), [error]
    while left:
        one = left.pop(0)
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            left += [cause for cause in (one.__cause__, one.__context__) if cause]
            left += getattr(one, "exceptions", ())


def storage_failure(error: BaseException) -> OSError | None:
    """Returns what says that a local disk is full, read-only or gone, if that is behind an error.

    TensorStore says so in the text of its errors alone.
    """
    if isinstance(error, ConfigError | storage.Unreachable | storage.Interrupted):
        return None
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno in FAILED:
            return one
        for number in FAILED:
            if os.strerror(number) in str(one):
                return OSError(number, os.strerror(number))
    return None


@contextlib.contextmanager
def said(consequence: str, unless: Callable[[Exception], bool] = lambda error: False) -> Iterator[None]:
    """Says on stderr what fails inside, and ends it; a disk or a bucket that fails is raised.

    Args:
      consequence: the beginning of the line.
      unless: whether to raise an error.
    """
    try:
        yield
    except Exception as error:
        if storage_failure(error) or isinstance(error, storage.Unreachable | storage.Interrupted) or unless(error):
            raise
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        print(f"warning: {consequence}: {kind}{' '.join(str(error).split())}", file=sys.stderr, flush=True)
