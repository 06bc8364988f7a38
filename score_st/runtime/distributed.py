"""Several processes: how they find each other, and end together.

TPU pods, SLURM and Open MPI are found by JAX. Otherwise SCORE_ST_COORDINATOR=host:port, SCORE_ST_PROCESSES and
SCORE_ST_PROCESS say it; with nothing set there is one process, and nothing here does anything.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time

import jax
from jax._src import clusters, distributed

from score_st.config import ConfigError, differences
from score_st.runtime import one_line

GONE = 75  # exit code: another process never came


def setting(name: str, default: str = "") -> int:
    """The environment's SCORE_ST_`name`, or a ConfigError."""
    text = os.environ.get(f"SCORE_ST_{name}", default)
    if not text.isdecimal():
        raise ConfigError(f"SCORE_ST_{name}={text!r}: should be a whole number")
    return int(text)


def find(limit: int) -> tuple | None:
    """Coordinator, number of processes, this one's, its devices (None: all); or None for a process by itself."""
    if address := os.environ.get("SCORE_ST_COORDINATOR"):
        count, index = setting("PROCESSES"), setting("PROCESS")
        if index >= count or not address.rpartition(":")[2].isdecimal():
            raise ConfigError(f"SCORE_ST_COORDINATOR={address}: should be host:port, and SCORE_ST_PROCESS < {count}")
        found = address, count, index, None
    else:  # not Kubernetes: to JAX any of its pods looks like a part of a job
        kinds = (clusters.OmpiCluster, clusters.SlurmCluster, clusters.GkeTpuCluster, clusters.GceTpuCluster)
        kind = setting("PROCESSES", "2") > 1 and next((kind for kind in kinds if kind.is_env_present()), None)
        found = kind and kind.auto_detect_unset_distributed_params(None, None, None, None, kind.name, limit)
    return found if found and found[1] > 1 else None


def start(settings: dict):
    """Joins the other processes, before any device is touched; `settings` should be the same everywhere.

    Ends the program (75) where a process does not come within SCORE_ST_START_TIMEOUT seconds (300).

    Raises:
      ConfigError: the environment makes no sense, or the settings differ.
    """
    limit = setting("START_TIMEOUT", "300")
    if jax.distributed.is_initialized() or not (found := find(limit)):
        return
    address, count, index, devices = found
    hello = {"process": index, "host": socket.gethostname(), "settings": json.loads(json.dumps(settings, default=str))}
    (join if index else gather)(address, count, hello, limit)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    command = [sys.executable, "-S", one_line.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True).stdin as pipe:
        os.dup2(pipe.fileno(), 2)
    if index:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # process 0 alone prints
    jax.config.update("jax_enable_preemption_service", False)  # it swallows SIGTERM where nobody asks it
    alive = {"heartbeat_timeout_seconds": setting("HEARTBEAT", "30"), "shutdown_timeout_seconds": 600}
    jax.distributed.initialize(address, count, index, devices, "deactivate", initialization_timeout=60, **alive)


def gather(address: str, count: int, hello: dict, limit: int):
    """Process 0 waits for the others, names those that don't come, and tells all whether they agree."""
    try:
        server = socket.create_server(("", int(address.rpartition(":")[2])), backlog=count)
    except OSError as error:
        raise ConfigError(f"{address}: can't listen there ({error.strerror}); another port would do") from error
    came, began, said = {}, time.monotonic(), 30
    with server, contextlib.ExitStack() as stack:
        server.settimeout(1)
        while missing := [str(i) for i in range(1, count) if i not in came]:
            waited, who = time.monotonic() - began, f"{address}: process {', '.join(missing)} of {count}"
            if waited > limit:
                leave(GONE, f"error: {who} did not come within {limit} s; more is SCORE_ST_START_TIMEOUT")
            if waited > said:
                print(f"{who} has not come in {waited:.0f} s", file=sys.stderr, flush=True)
                said += 30
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # whoever is no process of ours
                line = stack.enter_context(server.accept()[0])
                line.settimeout(10)
                other = json.loads(line.makefile().readline())
                came[other["process"]] = line, other
        verdict = next(filter(None, (difference(hello, other) for _, other in came.values())), None)
        for line, _ in came.values():
            with contextlib.suppress(OSError):
                line.sendall(json.dumps(verdict).encode() + b"\n")
                line.recv(1)  # the other side closes first, which leaves the port free
    if verdict:
        raise ConfigError(verdict)


def join(address: str, count: int, hello: dict, limit: int):
    """The other processes' side of `gather`; ends with exit code 2 where process 0 says why."""
    end = time.monotonic() + limit
    host, _, port = address.rpartition(":")
    while (left := end - time.monotonic()) > 0:
        with (
            contextlib.suppress(OSError, ValueError),
            socket.create_connection((host, int(port)), min(left, 5)) as line,
        ):
            line.sendall(json.dumps(hello).encode() + b"\n")
            line.settimeout(left)
            return os._exit(2) if json.loads(line.makefile().readline()) else None
        time.sleep(0.3)
    leave(GONE, f"error: {address}: no answer within {limit} s; process 0 of {count} should be there")


def difference(first: dict, other: dict) -> str | None:
    """Says which settings differ from those of process 0."""
    a, b = first["settings"], other["settings"]
    found = differences(b, a, sorted(a.keys() | b.keys()))
    return f"process {other['process']} on {other['host']} differs from process 0: {found}" if found else None


def leave(code: int, line: str):
    """Ends with one line on stderr: of process 0 where all fail alike, and without waiting for the others at exit."""
    state, several = distributed.global_state, jax.distributed.is_initialized()
    if several:
        with contextlib.suppress(Exception):
            state.client.wait_at_barrier("score_st/failed", 3000)
            line = "" if state.process_id else line
    print(line, end="\n" if line else "", file=sys.stderr, flush=True)
    if several:
        time.sleep(0 if state.process_id else 1)  # the coordinator goes last
        os._exit(code)
    sys.exit(code)


def broken(error: Exception):
    """Ends after an error that another process's death may be behind: the runtime soon says whose, and aborts."""
    if any(word in str(error) for word in ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE", "ABORTED")):
        time.sleep(setting("HEARTBEAT", "30") + 10)
    sys.excepthook(type(error), error, error.__traceback__)
    os._exit(1)
