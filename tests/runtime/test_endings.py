"""Signals while a device computes, output that nobody reads, disks that are full."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
from support.commands import ROOT

from score_st.config import ConfigError
from score_st.runtime import endings, storage
from score_st.runtime.workdir import allocate

ENDLESS = """
import concurrent.futures, sys
import jax
from score_st.runtime import cli

def main():
    endless = jax.jit(lambda x: jax.lax.while_loop(lambda i: i >= 0, lambda i: (i + 1) % 7, x))
    endless.lower(0).compile()
    print("running", flush=True)
    if sys.argv[1] == "main":
        endless(0).block_until_ready()  # which runs no Python until it ends
    pool = concurrent.futures.ThreadPoolExecutor(1)
    pool.submit(lambda: endless(0).block_until_ready()).result()

cli.run(main)
"""


def started(code: str, *arguments: str, **options) -> subprocess.Popen:
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) | options
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, **pipe)


@pytest.mark.parametrize(("where", "times", "limit"), [("main", 1, 5), ("thread", 1, 5), ("main", 2, 3)])
def test_ctrl_c_while_a_device_computes(where, times, limit):
    """Ends with 130 within 5 s, at once the second time; without a word, and never with a segmentation fault."""
    process = started(ENDLESS, where)
    assert process.stdout.readline() == "running\n"
    time.sleep(0.5)
    began = time.monotonic()
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "") and time.monotonic() - began < limit


TALKS = """
import time
from score_st.runtime import cli

def main():
    for i in range(2000):
        print("a line of some length", i, "σ τ é", flush=i % 2 == 0)
    open(r"{done}", "w").write("done")

cli.run(main)
"""


@pytest.mark.parametrize("how", ["| head -n 1", ">&-", ">&- 2>&-", "2>&1 | true"])
def test_output_that_nobody_reads_stops_nothing(tmp_path, how):
    program = tmp_path / "talks.py"
    program.write_text(TALKS.format(done=tmp_path / "done"))
    line = f"set -o pipefail; {sys.executable} {program} {how}"
    ran = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert ran.returncode == 0 and ran.stderr == b"" and (tmp_path / "done").read_text() == "done"


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("ascii", b"? ? ?"), ("latin-1", b"? ? \xe9"), ("cp1252", b"? ? \xe9"), ("utf-8", "σ τ é".encode())],
)
def test_terminals_that_lack_a_character(tmp_path, encoding, expected):
    program = tmp_path / "talks.py"
    program.write_text(TALKS.format(done=tmp_path / "done").replace("2000", "1"), "utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
    ran = subprocess.run([sys.executable, program], env=environment, capture_output=True, check=True)
    assert ran.stdout == b"a line of some length 0 " + expected + b"\n"


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


NO_SPACE = OSError(errno.ENOSPC, "No space left on device", "/disk/a")
TENSORSTORE = 'RESOURCE_EXHAUSTED: Error writing local file "/disk/a": Failed writing: [OS error 28: {}]'


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (NO_SPACE, errno.ENOSPC),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), errno.EDQUOT),
        (OSError(errno.EROFS, "Read-only file system"), errno.EROFS),
        (ValueError(TENSORSTORE.format("No space left on device")), errno.ENOSPC),
        (ValueError(TENSORSTORE.format("Disk quota exceeded")), errno.EDQUOT),
        (caused(RuntimeError("the save failed"), NO_SPACE), errno.ENOSPC),
        (ExceptionGroup("of threads", [ValueError("a"), NO_SPACE]), errno.ENOSPC),
        (ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 10 bytes"), None),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), None),
        (caused(ConfigError("can't be written"), NO_SPACE), None),
        (caused(storage.Unreachable("gs://a"), NO_SPACE), None),
    ],
)
def test_what_is_a_failure_of_the_disk(error, number):
    found = endings.storage_failure(error)
    assert found is None if number is None else found.errno == number


def test_what_fails_aside_is_said(capsys):
    with endings.said("no picture"):
        raise ConfigError("the sampler\ndiverged")
    with endings.said("no picture"):
        raise ValueError("no font")
    lines = "warning: no picture: the sampler diverged\nwarning: no picture: ValueError: no font\n"
    assert capsys.readouterr().err == lines
    for error, unless in ((NO_SPACE, lambda error: False), (ValueError("alone"), lambda error: True)):
        with pytest.raises(type(error)), endings.said("no picture", unless):
            raise error
    with pytest.raises(KeyboardInterrupt), endings.said("no picture"):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == ""


def test_a_mapped_file_has_its_room(tmp_path):
    """Every block of it; without room there is an error, and no file."""
    allocate(tmp_path / "a", 1_000_000)
    about = (tmp_path / "a").stat()
    assert about.st_size == 1_000_000 <= about.st_blocks * 512
    assert (tmp_path / "a").read_bytes() == bytes(1_000_000)
    with pytest.raises(OSError):
        allocate(tmp_path / "b", 2**62)
    assert not (tmp_path / "b").exists()
